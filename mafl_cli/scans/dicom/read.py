"""Read a scan from DICOM: a folder, a zip archive, a DICOMDIR, or one file with one or many frames.

Words. *stored*, *native*: as in `mafl_cli.scans.volume`; native = stored * Rescale Slope + Rescale Intercept, slice by
slice. Nothing that names a patient, a hospital or a UID leaves this module but inside the datasets, which
`mafl_cli.scans.dicom.write` needs to write a series of the same study.
"""

from __future__ import annotations

import hashlib
import io
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from mafl_cli.errors import InputError, is_disk_full
from mafl_cli.names import public_name
from mafl_cli.scans.dicom import codestreams, stacks
from mafl_cli.scans.dicom.frames import PHYSICAL, DicomFrame, Pixels, Stack, group, named, parsed
from mafl_cli.scans.dicom.lattice import ordered, slack
from mafl_cli.scans.volume import Volume, plain_header, require_usable
from mafl_cli.system import sizes, staging
from mafl_cli.system.quiet import mute, silence


@dataclass(frozen=True, eq=False, kw_only=True)
class DicomVolume(Volume):
    """A stack of DICOM frames. (I, J, K) are columns, rows, and slices along the stack's normal, row x column."""

    datasets: tuple[Dataset, ...]
    """The instances, without their pixels."""
    frames: tuple[tuple[int, int], ...]
    """For each slice its place in `datasets`, and its frame in there."""
    crude: float
    """Radians by which its directions may be off for the digits that they are written with."""

    @property
    def format(self) -> Literal["nifti", "dicom"]:
        return "dicom"


def read_dicom(path: Path, *, series: str | None = None, allow_gaps: bool = False) -> DicomVolume:
    """Read one stack of slices, native units.

    Args:
        path: a folder (with all below it), a .zip, a DICOMDIR, or a single file.
        series: its number in the list that the error for several series shows, or its Series Instance UID. Images
            that a header calls something else than slices (a localizer, say) are only read when they are chosen.
        allow_gaps: take slices at uneven distances as if they were even.
    Raises:
        InputError for what holds no scan, several series, colours, or pixels that cannot be decoded.
        GeometryError for slices that make no regular volume; names the slices.
    """
    with silence():
        name = public_name(path)
        chosen, aside = stacks.choose(name, stacks.find(name, path), series)
        stack, affine, notes = ordered(name, chosen, allow_gaps)
        return _volume(name, stack, affine, (*aside, *notes, *stacks.siblings(name, path, stack)))


def describe_dicom(path: Path) -> dict[str, Any]:
    """What `mafl inspect` says about DICOM: a table of the stacks; of the one to read also its grid and its values.

    Raises: InputError when there is no scan.
    """
    with silence():
        name = public_name(path)
        found = stacks.find(name, path)
        facts: dict[str, Any] = {
            "name": name,
            "format": "DICOM",
            "stacks": [stacks.describe(number, stack) for number, stack in enumerate(found.stacks, start=1)],
        }
        try:
            chosen, aside = stacks.choose(name, found, None)
            stack, affine, notes = ordered(name, chosen, allow_gaps=False)
            scan = _volume(name, stack, affine, (*aside, *notes))
        except InputError as refusal:
            return facts | {"refused_as_image": str(refusal)}
    values = scan.data if scan.padding is None else scan.data[~scan.padding]
    ranks = (0.1, 50.0, 99.9)
    return facts | {
        "sha256": scan.sha256,
        "shape": list(scan.shape),
        "spacing_mm": list(scan.spacing),
        "axcodes": scan.axcodes,
        "dtype": scan.dtype.name,
        "rescale_slope": sorted({float(slope) for slope in scan.slope.flat}),
        "stored_range": [float(scan.stored_range[0].min()), float(scan.stored_range[1].max())],
        "padding_voxels": 0 if scan.padding is None else int(scan.padding.sum()),
        "range": [float(values.min()), float(values.max())],
        "percentiles": {f"{r:g}": float(v) for r, v in zip(ranks, np.percentile(values, ranks), strict=True)},
        "refused_as_image": None,
        "warnings": list(scan.warnings),
    }


# --- pixels -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Pixels:
    """What the files of a stack hold, slice by slice: (K, rows, columns), and one slope and intercept each."""

    stored: NDArray[Any]
    padding: NDArray[np.bool_]
    slopes: NDArray[np.float64]
    inters: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    """What each slice can store."""
    datasets: list[Dataset]
    frames: list[tuple[int, int]]
    digests: list[str]


def _volume(name: str, stack: Stack, affine: NDArray[np.float64], notes: Sequence[str]) -> DicomVolume:
    """Read and decode the pixels of an ordered stack."""
    for frame in stack:
        _require_plain(name, frame, stack)
    rows, columns = stack[0].size
    sizes.require_voxels(name, (columns, rows, len(stack)), max(frame.pixels.allocated for frame in stack) / 8)
    read, notes = _pixels(name, stack), list(notes)
    slopes, inters = read.slopes, read.inters
    turned = np.array([f.pixels.photometric == "MONOCHROME1" and f.modality not in PHYSICAL for f in stack])
    if turned.any():
        # Small numbers are bright: what a network expects is what is seen.
        inters = np.where(turned, inters + (read.low + read.high) * slopes, inters)
        slopes = np.where(turned, -slopes, slopes)
        notes.append(f"{name}: is stored inverted (MONOCHROME1); it is read so that larger is brighter.")
    slope, inter = _along_slices(slopes, inters)
    stored, padding = read.stored.transpose(2, 1, 0), read.padding.transpose(2, 1, 0)
    data = np.empty(stored.shape, np.float32)
    for k in range(len(stack)):
        data[..., k] = stored[..., k].astype(np.float64) * slope.flat[k % slope.size] + inter.flat[k % inter.size]
    if padding.all():
        raise InputError(f"{name}: every pixel is padding; give another scan.")
    require_usable(name, data if not padding.any() else data[~padding], constant_is_wrong=True)
    one = len(read.digests) == 1
    return DicomVolume(
        name=name,
        data=data,
        affine=affine,
        stored=stored,
        slope=slope,
        inter=inter,
        stored_range=_along_slices(read.low, read.high),
        header=plain_header(data.shape, affine),
        extensions=bytes(4),
        sha256=read.digests[0] if one else hashlib.sha256("".join(read.digests).encode()).hexdigest(),
        warnings=tuple(notes),
        padding=padding if padding.any() else None,
        datasets=tuple(read.datasets),
        frames=tuple(read.frames),
        crude=slack(stack[0]),
    )


def _require_plain(name: str, frame: DicomFrame, stack: Stack) -> None:
    """Raise InputError, naming the slices, unless pixels are plain numbers in the lowest bits."""
    pixels = frame.pixels
    if pixels.allocated == 1:
        raise InputError(f"{name}: has one bit per pixel, so it is a mask, not a scan.")
    if pixels.allocated not in (8, 16, 32) or not 1 <= pixels.stored <= pixels.allocated or pixels.signed not in (0, 1):
        raise InputError(
            f"{name}: its header gives pixels of {pixels.stored} in {pixels.allocated} bits, which nothing writes."
        )
    if pixels.high != pixels.stored - 1:
        wrong = [each for each in stack if each.pixels.high != each.pixels.stored - 1]
        raise InputError(
            f"{name}: {named(wrong)}: the {pixels.stored} bits of a pixel end at bit {pixels.high} (High Bit), not at "
            f"bit {pixels.stored - 1} as DICOM asks, so the numbers may be shifted: export the series again, or use "
            "NIfTI."
        )


def _along_slices(*values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two numbers of each slice, as (1, 1, K), or (1, 1, 1) where all slices have the same."""
    first, second = (each.reshape(1, 1, -1) for each in values)
    alike = np.ptp(first) == np.ptp(second) == 0
    return (first[..., :1], second[..., :1]) if alike else (first, second)


def _pixels(name: str, stack: Stack) -> _Pixels:
    """Decode each file once, however many of its frames are in the stack."""
    rows, columns = stack[0].size
    # Slices may differ in sign and width: the type is one that holds them all.
    dtype = np.result_type(*{frame.pixels.dtype for frame in stack})
    limits = np.array([frame.pixels.limits for frame in stack], np.float64)
    found = _Pixels(
        stored=np.empty(0),
        padding=np.empty(0, bool),
        slopes=np.ones(len(stack)),
        inters=np.zeros(len(stack)),
        low=limits[:, 0],
        high=limits[:, 1],
        datasets=[],
        frames=[],
        digests=[],
    )
    places: dict[int, int] = {}
    arrays: dict[int, NDArray[Any]] = {}
    for k, frame in enumerate(stack):
        key = id(frame.source)
        if key not in places:
            with frame.source.open() as stream:
                raw = stream.read()
            file = parsed(frame.source.name, io.BytesIO(raw), pixels=True)
            # The frames of one file may lie anywhere in the stack; of all others only the last is kept.
            arrays = {key: decoded(frame.source.name, file, (rows, columns))} | {
                other: pixels for other, pixels in arrays.items() if len(pixels) > 1
            }
            if not found.stored.size:  # Not before the first slice is there: a damaged header can ask for any size.
                stored = np.empty((len(stack), rows, columns), dtype)
                found = replace(found, stored=stored, padding=np.zeros(stored.shape, bool))
            for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
                if keyword in file:
                    del file[keyword]
            places[key] = len(found.datasets)
            found.datasets.append(file)
            found.digests.append(hashlib.sha256(raw).hexdigest())
        dataset = found.datasets[places[key]]
        found.frames.append((places[key], frame.index))
        try:
            found.stored[k] = arrays[key][frame.index]
            found.slopes[k], found.inters[k] = _rescale(name, frame, dataset)
            found.padding[k] = _padded(dataset, frame.pixels, found.stored[k])
        except (TypeError, ValueError, IndexError) as exc:  # No number, several where one belongs, too few frames.
            raise InputError(f"{name}: the header of {frame.instance} is damaged; export it again.") from exc
    return found


def decoded(name: str, dataset: FileDataset, shape: tuple[int, int]) -> NDArray[Any]:
    """(frames, rows, columns), as stored. pydicom decodes what it has codecs for, GDCM (in SimpleITK) the rest."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not isinstance(syntax, pydicom.uid.UID) or not syntax.is_transfer_syntax:
        raise InputError(f"{name}: its header names no known transfer syntax; export it again.")
    if "PixelData" not in dataset:
        raise InputError(f"{name}: its DICOM file has no pixels; export it again.")
    try:
        codestreams.require_pixels(name, dataset)
        with mute():
            return np.asarray(dataset.pixel_array).reshape(-1, *shape)
    except InputError:
        raise
    except Exception as exc:  # Missing codecs and damaged data come as nearly any class.
        if syntax.is_compressed and syntax.is_encapsulated:
            found = _decoded_by_gdcm(dataset, shape)
            if found is not None:
                return found
            raise InputError(
                f"{name}: pixels compressed as {syntax.name} cannot be decoded here, or are damaged: try "
                "`pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`, or decompress the series first "
                "(dcmdjpeg, gdcmconv --raw)."
            ) from exc
        raise InputError(f"{name}: its pixels are damaged or cut off; copy or export it again.") from exc


def _decoded_by_gdcm(dataset: FileDataset, shape: tuple[int, int]) -> NDArray[Any] | None:
    """As `decoded`; None where GDCM cannot either. Only what describes the pixels goes to the temporary file."""
    import SimpleITK

    bare = Dataset()
    keywords = ("SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "NumberOfFrames")
    numbers = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData")
    for keyword in (*keywords, *numbers):
        if keyword in dataset:
            bare[keyword] = dataset[keyword]
    # GDCM would turn an inverted image round, and these are to be the stored numbers.
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    if "SOPInstanceUID" not in bare:
        bare.SOPInstanceUID = pydicom.uid.generate_uid()
    if "SOPClassUID" not in bare:
        bare.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    with staging.workspace(Path(tempfile.gettempdir())) as work, mute():
        file = work.new / "pixels.dcm"
        try:
            bare.save_as(file, enforce_file_format=True)
            pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file), imageIO="GDCMImageIO"))
            return np.asarray(pixels).reshape(-1, *shape)
        except Exception as exc:  # The caller says what could not be decoded.
            if is_disk_full(exc):
                raise
            return None


def _rescale(name: str, frame: DicomFrame, dataset: Dataset) -> tuple[float, float]:
    if dataset.get("ModalityLUTSequence"):
        raise InputError(f"{name}: its values are given by a Modality LUT, which cannot be written back: use NIfTI.")
    values = group(dataset, frame.index, "PixelValueTransformationSequence")
    slope, inter = values.get("RescaleSlope"), values.get("RescaleIntercept")
    slope, inter = 1.0 if slope is None else float(slope), 0.0 if inter is None else float(inter)
    if not math.isfinite(slope * inter) or slope == 0:
        raise InputError(f"{name}: {frame.instance} has an unusable rescale slope or intercept; export it again.")
    return slope, inter


def _padded(dataset: Dataset, pixels: Pixels, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixel Padding Value, or the range up to its limit (DICOM PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit", value)
    # Some programs write the bits of a negative number as an unsigned one, and no unused bit means anything.
    size = 2**pixels.stored
    ends = [int(end) % size for end in (value, limit)]
    if pixels.signed:
        ends = [end - size if end >= size // 2 else end for end in ends]
    padded: NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return padded
