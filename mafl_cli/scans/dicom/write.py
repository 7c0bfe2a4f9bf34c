"""Write a changed scan as a DICOM series derived from the one it came from (PS3.3 C.7.6.1.1.2, C.12.4).

The pixels differ, so every instance is new: its own UIDs, ImageType DERIVED, a reference to its source, and words that
no reader can miss. Study, patient and place stay, or the series could not be compared with its source; of everything
else only what `mafl_cli.scans.dicom.kept` lets through.
"""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mafl_cli import __version__
from mafl_cli.config import NOTE
from mafl_cli.errors import InputError, cannot_be_written
from mafl_cli.scans.dicom.frames import Pixels
from mafl_cli.scans.dicom.kept import PATIENT_AND_STUDY, Kept, coded, fill_empty, kept, opened, redacted
from mafl_cli.scans.dicom.read import DicomVolume
from mafl_cli.scans.volume import to_stored
from mafl_cli.system.quiet import silence

# Added to the source's Series Number, so that the new series stands apart from the scanner's in a list.
_SERIES_OFFSET = 9000
_LARGEST_SERIES_NUMBER = 2**31 - 1

_LOSSLESS = (
    uid.RLELossless,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
)

# Derived images of these kinds call themselves PRIMARY, as enhanced ones do: the standard has no SECONDARY for them.
_PRIMARY = (
    uid.PositronEmissionTomographyImageStorage,
    uid.NuclearMedicineImageStorage,
    uid.OphthalmicTomographyImageStorage,
)


# An enhanced MR object says these at its top for original images only.
_OF_ORIGINALS = (
    *("MRAcquisitionType", "EchoPulseSequence", "MultipleSpinEcho", "MultiPlanarExcitation", "PhaseContrast"),
    *("VelocityEncodingAcquisitionSequence", "TimeOfFlightContrast", "ArterialSpinLabelingContrast"),
    *("SteadyStatePulseSequence", "EchoPlanarPulseSequence", "SaturationRecovery", "SpectrallySelectedSuppression"),
    *("OversamplingPhase", "GeometryOfKSpaceTraversal", "RectilinearPhaseEncodeReordering"),
    *("SegmentedKSpaceTraversal", "CoverageOfKSpace", "NumberOfKSpaceTrajectories"),
)


@dataclass(frozen=True)
class _Series:
    """What all instances of a derived series share. study: for sources that say none."""

    derivation: str
    uid: str = field(default_factory=lambda: generate_uid(prefix=None))
    study: str = field(default_factory=lambda: generate_uid(prefix=None))
    made: datetime = field(default_factory=datetime.now)

    @property
    def date(self) -> str:
        return self.made.strftime("%Y%m%d")

    @property
    def time(self) -> str:
        return self.made.strftime("%H%M%S.%f")


def prepared(like: DicomVolume, *, redact: bool) -> DicomVolume:
    """A scan that holds no more of its headers than may be written again.

    redact: nothing of its patient and study either; see `scans.dicom.kept.redacted`.
    Raises: InputError when a derived series of it could not be written, so that no search is done in vain.
    """
    series, datasets = _Series(""), []
    for source in like.datasets:
        with silence():
            dataset = redacted(kept(source)) if redact else kept(source)
            number = dataset.get("InstanceNumber")
            try:
                _save(io.BytesIO(), _header(dataset, series))
            except Exception as exc:  # A kind of image that is none, say.
                which = "a file" if number is None else f"instance {number}"
                raise InputError(
                    f"{like.name}: the header of {which} is damaged and could not be written again "
                    f"({type(exc).__name__}); export the series again."
                ) from exc
        datasets.append(dataset)
    return replace(like, datasets=tuple(datasets))


def write_series(folder: Path, like: DicomVolume, data: NDArray[np.float32], derivation: str) -> None:
    """Write a changed scan as Explicit VR Little Endian files 0001.dcm, 0002.dcm, ..., one for each source file.

    Voxels equal to `like.data` keep their stored bits; others become rint((v - inter) / slope) of their slice, within
    what Bits Stored can hold.

    Args:
        folder: is made; must not be there.
        data: (I, J, K), native units, finite.
        derivation: how the pixels came about, for Derivation Description; no patient data.
    Raises: OutputError when the disk is full; ValueError for another shape or NaN.
    """
    if data.shape != like.shape or not np.isfinite(data).all():
        raise ValueError(f"expected finite values of shape {like.shape}, got shape {data.shape}")
    stored = to_stored(like, data).transpose(2, 1, 0)
    series = _Series(derivation[:1024])
    try:
        folder.mkdir()
        with silence():
            for index, source in enumerate(like.datasets):
                slices = sorted((frame, k) for k, (place, frame) in enumerate(like.frames) if place == index)
                dataset = _header(kept(source), series)
                if "NumberOfFrames" in dataset:
                    dataset.NumberOfFrames = len(slices)
                if "PerFrameFunctionalGroupsSequence" in dataset:
                    groups = dataset.PerFrameFunctionalGroupsSequence
                    dataset.PerFrameFunctionalGroupsSequence = [groups[frame] for frame, _ in slices]
                _add_pixels(dataset, source, stored[[k for _, k in slices]])
                _save(folder / f"{index + 1:04d}.dcm", dataset)
    except OSError as exc:
        raise cannot_be_written(folder.name, exc) from exc


def _save(file: Any, dataset: Dataset) -> None:
    """file: a path or a binary stream."""
    with disable_value_validation():
        dataset.save_as(file, enforce_file_format=True)


def _header(source: Kept, series: _Series) -> Dataset:
    """A new instance without its pixels."""
    new, enhanced = opened(source), "SharedFunctionalGroupsSequence" in source
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.get("SOPInstanceUID") or generate_uid(prefix=None)
    whole_series = Dataset()
    whole_series.SeriesInstanceUID = source.get("SeriesInstanceUID") or generate_uid(prefix=None)
    whole_series.ReferencedInstanceSequence = Sequence([copy.deepcopy(reference)])
    purposed = copy.deepcopy(reference)
    purposed.PurposeOfReferenceCodeSequence = Sequence([coded(codes.DCM.SourceImageForImageProcessingOperation)])

    # Whatever character set the source has, its text was decoded on reading.
    new.SpecificCharacterSet = "ISO_IR 192"
    new.SOPInstanceUID = generate_uid(prefix=None)
    new.SeriesInstanceUID = series.uid
    new.SeriesNumber = _series_number(source.get("SeriesNumber"))
    new.SeriesDescription = new.ImageComments = NOTE
    new.SeriesDate = new.ContentDate = new.InstanceCreationDate = series.date
    new.SeriesTime = new.ContentTime = new.InstanceCreationTime = series.time
    new.Manufacturer = new.ManufacturerModelName = "mafl"
    new.SoftwareVersions, new.DeviceSerialNumber = __version__, "none"
    _say_derived(new)
    new.DerivationDescription = series.derivation
    new.DerivationCodeSequence = Sequence([coded(codes.DCM.PixelByPixelAddition)])
    new.SourceImageSequence = Sequence([purposed])
    new.ReferencedSeriesSequence = Sequence([whole_series])
    new.ContributingEquipmentSequence = Sequence([_equipment(series)])
    syntax = source.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and "LossyImageCompression" not in new:
        new.LossyImageCompression = "00" if syntax in _LOSSLESS else "01"
    if not new.get("StudyInstanceUID"):
        new.StudyInstanceUID = series.study
    fill_empty(new, (*PATIENT_AND_STUDY, "InstanceNumber"))
    if not new.get("Modality"):
        new.Modality = "OT"
    if enhanced:
        _say_derived_frames(new, purposed, series)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = new.SOPClassUID, new.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    new.file_meta = meta
    return new


def _series_number(source: int | None) -> int:
    """The source's and 9000; 9000 for a source that says no legal one, or so large a one that the sum would be none."""
    number = (source or 0) + _SERIES_OFFSET
    return number if number <= _LARGEST_SERIES_NUMBER else _SERIES_OFFSET


def _add_pixels(new: Dataset, source: Dataset, pixels: NDArray[Any]) -> None:
    """pixels: (frames, rows, columns), in the order of the source's frames."""
    # As this file stores them: the others of the series may have other bits.
    own = Pixels.of(source)
    new.SamplesPerPixel, new.PhotometricInterpretation = 1, own.photometric
    new.BitsAllocated, new.BitsStored, new.HighBit = own.allocated, own.stored, own.high
    new.PixelRepresentation = own.signed
    body = np.clip(pixels, *own.limits).astype(own.dtype.newbyteorder("<")).tobytes()
    new.add_new("PixelData", "OB" if own.allocated == 8 else "OW", body + b"\0" * (len(body) % 2))


def _say_derived_frames(new: Dataset, reference: Dataset, series: _Series) -> None:
    """What an enhanced object says of its frames: where it says so, and nothing that only original ones may say."""
    for keyword in _OF_ORIGINALS:
        if keyword in new:
            del new[keyword]
    (whole_series,) = copy.deepcopy(new.ReferencedSeriesSequence)
    whole_series.ReferencedSOPSequence = whole_series.pop("ReferencedInstanceSequence").value
    evidence = Dataset()
    evidence.StudyInstanceUID, evidence.ReferencedSeriesSequence = new.StudyInstanceUID, Sequence([whole_series])
    new.SourceImageEvidenceSequence = Sequence([evidence])
    image = Dataset()
    image.DerivationDescription = series.derivation
    image.DerivationCodeSequence = Sequence([coded(codes.DCM.PixelByPixelAddition)])
    image.SourceImageSequence = Sequence([copy.deepcopy(reference)])
    shared = new.SharedFunctionalGroupsSequence
    new.SharedFunctionalGroupsSequence = shared or Sequence([Dataset()])
    new.SharedFunctionalGroupsSequence[0].DerivationImageSequence = Sequence([image])


def _say_derived(new: Dataset) -> None:
    """Image Type, and Frame Type of each frame."""
    enhanced = "SharedFunctionalGroupsSequence" in new
    second = "PRIMARY" if enhanced or new.SOPClassUID in _PRIMARY else "SECONDARY"
    flavours = _flavours(new.get("ImageType"))
    if new.SOPClassUID == uid.CTImageStorage and flavours[:1] == ["OTHER"]:
        flavours[0] = "AXIAL"  # CT has no other word for what is no localizer.
    new.ImageType = ["DERIVED", second, *flavours]
    groups = [*new.get("SharedFunctionalGroupsSequence", ()), *new.get("PerFrameFunctionalGroupsSequence", ())]
    for item in groups:
        for element in item:
            for part in element.value if element.VR == "SQ" else ():
                if "FrameType" in part:
                    part.FrameType = ["DERIVED", second, *_flavours(part.FrameType)]


def _flavours(kinds: Any) -> list[str]:
    """The third value of an Image Type and what follows."""
    return [] if kinds is None or isinstance(kinds, str) else list(kinds)[2:]


def _equipment(series: _Series) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Sequence([coded(codes.DCM.ModifyingEquipment)])
    item.Manufacturer = item.ManufacturerModelName = "mafl"
    item.SoftwareVersions = __version__
    item.ContributionDateTime = series.date + series.time
    item.ContributionDescription = series.derivation
    return item
