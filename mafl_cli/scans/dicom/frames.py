"""What a DICOM header says of the frames in its file, before any pixel is read.

Words. *instance*: a DICOM file, named in messages by its Instance Number, for file names are often UIDs. *flavour*: as
in `mafl_cli.scans.dicom.flavours`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    ParametricMapStorage,
    RTDoseStorage,
    SegmentationStorage,
)

from mafl_cli.errors import InputError
from mafl_cli.scans.dicom import codestreams, terms
from mafl_cli.scans.dicom.flavours import flavour_of, no_image_of_slices

# Modalities whose numbers mean something by themselves, and whose images are slices of something.
PHYSICAL = ("CT", "MR", "NM", "PT")

# Label Map Segmentation Storage, the newer kind of SEG.
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"

NO_PIXELS = "without pixels"

# Objects with pixels that are no scans, and what to do with them.
_NO_SCANS: dict[str, str] = {
    LABEL_MAP_SEGMENTATION: "a segmentation (DICOM SEG), which can be a `target`, not a scan",
    SegmentationStorage: "a segmentation (DICOM SEG), which can be a `target`, not a scan",
    RTDoseStorage: "an RT Dose, not a scan",
    ParametricMapStorage: "a Parametric Map, not a scan: convert it to NIfTI if its numbers are those of a scan",
    MediaStorageDirectoryStorage: "a DICOMDIR whose folder holds no scan",
}


@dataclass(frozen=True)
class DicomFile:
    """One file in a folder or archive."""

    name: str
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Pixels:
    """How the numbers of a frame are stored. high: the High Bit; signed: Pixel Representation."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    signed: int
    photometric: str

    @staticmethod
    def of(header: Dataset) -> Pixels:
        """Raises TypeError or ValueError, among others, for values of the wrong kind."""
        allocated = int(header.get("BitsAllocated", 16))
        stored = int(header.get("BitsStored", allocated))
        return Pixels(
            int(header.Rows),
            int(header.Columns),
            allocated,
            stored,
            int(header.get("HighBit", stored - 1)),
            int(header.get("PixelRepresentation", 0)),
            str(header.get("PhotometricInterpretation", "MONOCHROME2")),
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest number that fits into the stored bits."""
        half = 2 ** (self.stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


@dataclass(frozen=True, eq=False)
class DicomFrame:
    """What must be known of one slice before its pixels are read. Lengths in mm, DICOM's LPS axes."""

    source: DicomFile
    series: str
    order: int
    instance: str
    """"instance 12", or "frame 3": how to name it to the user."""
    index: int
    """In its file."""
    modality: str
    flavour: str
    pixels: Pixels
    position: NDArray[np.float64] | None
    grain: float
    """Half a unit of the last decimal that the position is written with; 0 for whole numbers."""
    orientation: NDArray[np.float64] | None
    """Six direction cosines as they stand: along a row, along a column."""
    digit: float
    """As `grain`, of the cosines; 0 also along the axes of the patient, where 1.0 and 0.0 are taken at their word."""
    spacing: NDArray[np.float64] | None
    """Between rows, between columns."""
    apart: float | None
    """From slice to slice, if the header says so."""
    thickness: float | None
    """Thickness of the slice, mm."""
    notes: tuple[str, ...]

    @property
    def placed(self) -> bool:
        """Whether it has a place in the patient."""
        return self.position is not None and self.orientation is not None

    def fits(self, other: DicomFrame) -> bool:
        """Whether both can be slices of one stack, wherever they are."""
        return (
            self.series == other.series
            and self.flavour == other.flavour
            and self.size == other.size
            and self.turned_as(other)
            and self.spaced_as(other)
        )

    @property
    def size(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.pixels.rows, self.pixels.columns

    def spaced_as(self, other: DicomFrame) -> bool:
        """Whether the pixel spacing is the same."""
        return _close(self.spacing, other.spacing, 1e-3)

    def turned_as(self, other: DicomFrame) -> bool:
        """Whether the orientation is the same, but for its last digits."""
        return _close(self.orientation, other.orientation, 1e-3 + self.digit + other.digit)


Stack = list[DicomFrame]

_DEEPEST = 32
"""Levels of sequences in sequences; structured reports, the deepest there are, have about twenty."""


# --- one file -----------------------------------------------------------------------------------------------------


def parsed(name: str, stream: BinaryIO, *, pixels: bool) -> FileDataset:
    """One file, from a stream at its beginning. Raises InputError when it is not DICOM, or damaged."""
    first = head(stream)
    if not first:
        raise InputError(f"{name} is empty (0 bytes): copy or export the file again.")
    try:
        codestreams.require_inflatable(name, stream)
        # A header without the preamble is against the standard, and common.
        dataset = pydicom.dcmread(stream, stop_before_pixels=not pixels, force=_looks_raw(first))
        _drop_undecodable(dataset.file_meta)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = (
                ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            )
        _require_sound_nesting(name, dataset)
        for _ in dataset:  # Elements are only decoded when touched: better here than later.
            pass
    except pydicom.errors.InvalidDicomError:
        raise InputError(f"{name} is not a DICOM file: give a scan in NIfTI or DICOM.") from None
    except InputError:
        raise
    except Exception as exc:  # A damaged header makes pydicom raise nearly any class, with values in its message.
        raise InputError(f"{name}: is a damaged DICOM file ({type(exc).__name__}); export it again.") from exc
    return dataset


def _drop_undecodable(meta: Dataset) -> None:
    """What cannot be decoded of the few words before the header is as if it were not there: the header says it too."""
    for tag in list(meta.keys()):
        try:
            meta[tag]
        except Exception:  # Damage comes as nearly any class.
            del meta[tag]


def _require_sound_nesting(name: str, dataset: Dataset) -> None:
    """Take out sequences that stand where the standard has a plain value, at any depth: as text they have no end.

    Raises InputError for sequences in sequences beyond what any object has.
    """
    level, depth = [dataset], 0
    while level:
        if depth > _DEEPEST:
            raise InputError(
                f"{name}: is a damaged DICOM file (sequences nested more than {_DEEPEST} deep); export it again."
            )
        level = [item for holder in level for item in _items_below(holder)]
        depth += 1


def _items_below(holder: Dataset) -> list[Dataset]:
    """The items of all sequences of a dataset; plain values that claim to be sequences are taken out."""
    items: list[Dataset] = []
    for tag in list(holder.keys()):
        vr = holder.get_item(tag).VR
        meant = dictionary_VR(tag) if dictionary_has_tag(tag) else None
        # Without VRs in the file, or where one does not know, it is what the standard says.
        if vr == "SQ" and meant not in (None, "SQ"):
            del holder[tag]
        elif vr == "SQ" or (vr in (None, "UN") and meant == "SQ"):
            with suppress(Exception):  # A broken one is refused where it is needed.
                items += holder[tag].value or ()
    return items


def kind(header: Dataset) -> str:
    """The SOP Class UID; "" if the file does not state one."""
    return str(header.get("SOPClassUID") or getattr(header, "file_meta", Dataset()).get("MediaStorageSOPClassUID", ""))


def why_no_scan(header: FileDataset) -> str | None:
    """What an object is, as a noun phrase, if it is not a scan."""
    what = kind(header)
    if what in _NO_SCANS:
        return _NO_SCANS[what]
    if not what:
        return "a DICOM object of unknown kind, not a scan"
    if not header.get("Rows") or not header.get("Columns"):
        return f"{terms.uid_name(what, 'a DICOM object of unknown kind')} {NO_PIXELS}, not a scan"
    samples, colours = header.get("SamplesPerPixel", 1), str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if samples != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
        known = terms.shown(colours, terms.PHOTOMETRIC_INTERPRETATIONS)
        if known == terms.NO_TERM:
            return f"an image whose Photometric Interpretation is {known}; export it again"
        return f"a colour image ({known}): convert it to one plain number per pixel"
    return no_image_of_slices(header)


def frames_of(source: DicomFile, header: Dataset) -> list[DicomFrame]:
    """The frames of one file, in its order. Raises InputError when its header does not say where they are."""
    try:
        number = _whole(header.get("InstanceNumber"))
        count = int(header.get("NumberOfFrames") or 1)
        # Any number can stand in a header: each frame must have a place of its own.
        if count != 1 and count != len(header.get("PerFrameFunctionalGroupsSequence") or ()):
            raise InputError(
                f"{source.name}: says it has {count} frames, but not where each lies (a film, or damaged); export "
                "single slices, or use NIfTI."
            )
        instance = f"instance {number}" if number is not None else f"the file {source.name}"
        return [
            _frame(source, header, index, f"frame {index + 1}" if count > 1 else instance) for index in range(count)
        ]
    except InputError:
        raise
    except Exception as exc:  # Values of the wrong kind or number, in any of a dozen attributes.
        raise InputError(
            f"{source.name}: its DICOM header is damaged ({type(exc).__name__}); export it again."
        ) from exc


def _frame(source: DicomFile, header: Dataset, index: int, instance: str) -> DicomFrame:
    measures = group(header, index, "PixelMeasuresSequence")
    spacing, notes = _vector(measures.get("PixelSpacing"), 2), []
    if spacing is None:
        spacing = _vector(header.get("ImagerPixelSpacing"), 2)
        if spacing is not None:
            notes.append(f"{source.name}: pixel spacing is that of the detector, not of the patient.")
    position = group(header, index, "PlanePositionSequence").get("ImagePositionPatient")
    turn = group(header, index, "PlaneOrientationSequence").get("ImageOrientationPatient")
    place, orientation = _vector(position, 3), _vector(turn, 6)
    apart, thickness = (measures.get(each) for each in ("SpacingBetweenSlices", "SliceThickness"))
    return DicomFrame(
        source=source,
        series=str(header.get("SeriesInstanceUID", "")),
        order=_whole(header.get("SeriesNumber")) or 0,
        instance=instance,
        index=index,
        modality=terms.shown(header.get("Modality"), terms.MODALITIES, "unknown modality"),
        flavour=flavour_of(header, index, placed=place is not None and orientation is not None),
        pixels=Pixels.of(header),
        position=place,
        grain=_half_a_digit(position),
        orientation=orientation,
        digit=0.0 if orientation is None or _is_whole(orientation) else _half_a_digit(turn),
        spacing=spacing,
        apart=abs(float(apart)) if apart else None,
        thickness=abs(float(thickness)) if thickness else None,
        notes=tuple(notes),
    )


def group(header: Dataset, index: int, sequence: str) -> Dataset:
    """Where an attribute of a frame is: its own functional group, that of all frames, or the file's top level."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    groups = [per_frame[index]] if index < len(per_frame) else []
    for item in [*groups, *(header.get("SharedFunctionalGroupsSequence") or ())]:
        if item.get(sequence):
            found: Dataset = item.get(sequence)[0]
            return found
    return header


# --- small things -------------------------------------------------------------------------------------------------


def head(stream: BinaryIO) -> bytes:
    """The preamble and what follows it; the stream is at its beginning before and after."""
    first = stream.read(132)
    stream.seek(0)
    return first


def is_dicom_head(first: bytes) -> bool:
    return first[128:132] == b"DICM" or _looks_raw(first)


def _looks_raw(raw: bytes) -> bool:
    """Whether bytes begin with an element of group 0002 or 0008, as DICOM without a preamble does."""
    return len(raw) >= 8 and ((raw[:2] in (b"\x02\0", b"\x08\0") and raw[3:4] == b"\0") or raw[:2] == b"\0\x08")


def _whole(value: Any) -> int | None:
    """A number that only names or sorts; None where a header has none, or something else in its place."""
    try:
        return int(value) if int(value) == float(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _vector(value: Any, count: int) -> NDArray[np.float64] | None:
    if value is None or isinstance(value, str) or not hasattr(value, "__len__") or len(value) != count:
        return None
    vector = np.array([float(part) for part in value])
    return vector if np.isfinite(vector).all() else None


def _half_a_digit(values: Any) -> float:
    """Half a unit of the last decimal that numbers are written with; 0 for whole ones and for none."""
    decimals = 0
    for value in values if hasattr(values, "__iter__") and not isinstance(values, str) else ():
        try:
            # What is left of a zero (6.1e-17) says nothing of how the others were written.
            if abs(float(value)) >= 0.01:
                exponent = Decimal(str(value).strip()).as_tuple().exponent
                decimals = max(decimals, -exponent if isinstance(exponent, int) else 0)
        except (InvalidOperation, TypeError, ValueError):
            continue
    return 0.5 * 10.0**-decimals if decimals else 0.0


def _is_whole(orientation: NDArray[np.float64]) -> bool:
    return bool(np.abs(orientation - np.rint(orientation)).max() < 1e-6)


def _close(a: NDArray[np.float64] | None, b: NDArray[np.float64] | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.abs(a - b).max() <= tolerance)


def named(frames: Sequence[DicomFrame]) -> str:
    """ "instances 3, 4 and 2 more": a few, then how many."""
    names = [frame.instance for frame in frames]
    if len(names) == 1:
        return names[0]
    parts = [re.fullmatch(r"(instance|frame) (-?\d+)( of .+)?", name) for name in names]
    if all(parts) and len({(part[1], part[3]) for part in parts if part}) == 1:
        kind, file = next((part[1], part[3] or "") for part in parts if part)
        shown = ", ".join(part[2] for part in parts[:8] if part)
        return f"{kind}s {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "") + file
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
