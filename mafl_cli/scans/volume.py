"""Read a scan or a label map from a NIfTI file, and write a changed scan back as a faithful file.

Words. *stored*: the numbers as the file holds them (raw integers, say). *native*: what they mean, HU for a
CT: native = stored * slope + inter. *stored grid*: the native values that a file of integers can hold.

Files are taken apart and put together as bytes (header, extensions, voxels); nibabel only interprets the
header. Its image classes would clear `scl_slope` on reading, choose a new one on writing, and rewrite
extensions; here a voxel nobody changed must keep its bits, and the header everything but the few fields
that have to change.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import DTypeLike, NDArray

from mafl_cli.config import SaveAs
from mafl_cli.errors import InputError, cannot_be_written
from mafl_cli.scans import forms, geometry
from mafl_cli.scans.forms import Forms
from mafl_cli.scans.nifti_file import NO_EXTENSIONS, NiftiFile, load

Shape = tuple[int, int, int]

# On a perturbed 240 x 240 x 155 float32 scan level 1 takes 0.4 s and leaves 35 % of the size, level 6 takes
# 1.2 s and leaves 31 %.
_GZIP_LEVEL = 1

# What a NIfTI header says of place, type and scaling: all of it numbers. Everything else may be text about a patient.
_NUMBERS = (
    *("dim", "pixdim", "dim_info", "xyzt_units", "datatype", "bitpix", "vox_offset", "toffset"),
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "slice_start", "slice_end", "slice_code", "slice_duration"),
    *("scl_slope", "scl_inter", "cal_min", "cal_max"),
)
# Whole numbers up to here are each a float32.
_EXACT = 2**24
# Voxels that are looked at, or written, together.
_BLOCK = 1 << 22
# Above so many, numbers are rather measurements.
_MOST_LABELS = 64
_UNIT_NAMES = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}


@dataclass(frozen=True, eq=False)
class Volume:
    """One channel of a scan, and what it takes to write it back. Frozen; treat the arrays as read-only too.

    The readers of other formats (`mafl_cli.scans.dicom.read`) fill the same fields: `stored` and `slope` from their
    pixels, `header` with `plain_header`.
    """

    name: str
    """File name without its folder."""
    data: NDArray[np.float32]
    """(I, J, K), native units, finite, C order."""
    affine: NDArray[np.float64]
    """(4, 4), voxel -> mm RAS+, whatever length unit the file uses."""
    stored: NDArray[Any]
    """(I, J, K), as on disk: dtype with its byte order, unscaled."""
    slope: NDArray[np.float64]
    inter: NDArray[np.float64]
    """Both (1, 1, 1), or (1, 1, K) where each slice has its own: native = stored * slope + inter."""
    stored_range: tuple[NDArray[np.float64], NDArray[np.float64]]
    """Lowest and highest number that the file can store; shapes as `slope`."""
    header: Nifti1Header
    """As on disk, scl_slope and scl_inter included; copied, never changed."""
    extensions: bytes
    """All bytes between header and voxels."""
    sha256: str
    """Of the file as it lies on disk (compressed), hexadecimal."""
    warnings: tuple[str, ...]
    """Sentences for the user; the scan is usable all the same."""
    padding: NDArray[np.bool_] | None = None
    """(I, J, K), voxels outside the scanned field, which hold no measurement; None for none."""

    forms: Forms | None = None
    """All that the header says of where the voxels are; None for what is no NIfTI."""

    @property
    def shape(self) -> Shape:
        i, j, k = self.data.shape
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm along i, j, k."""
        return geometry.spacing(self.affine)

    @property
    def axcodes(self) -> str:
        return geometry.axcodes(self.affine)

    @property
    def format(self) -> Literal["nifti", "dicom"]:
        return "nifti"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored numbers, in the machine's byte order."""
        dtype: np.dtype[Any] = self.stored.dtype.newbyteorder("=")
        return dtype


_AnyVolume = TypeVar("_AnyVolume", bound=Volume)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A mask file: one whole number per voxel."""

    name: str
    labels: NDArray[np.int64]
    """(I, J, K), in [0, 65535]."""
    affine: NDArray[np.float64]
    sha256: str
    warnings: tuple[str, ...]
    forms: Forms | None = None
    """All that the header says of where the voxels are; None for what is no NIfTI."""

    @property
    def shape(self) -> Shape:
        i, j, k = self.labels.shape
        return i, j, k


@dataclass(frozen=True)
class StoredGrid:
    """The native values an integer file can hold: multiples of `step` away from those it holds, between low and high.

    All (1, 1, 1), or (1, 1, K) where slices differ.
    """

    step: NDArray[np.float64]
    """Native units, above 0."""
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def read_image(path: Path) -> Volume:
    """Read one scan from a .nii or .nii.gz file.

    Raises: InputError when it is not a readable NIfTI file, holds more than one volume, colours or complex
        numbers, NaN or Inf, or the same value everywhere, or has no voxels or no usable affine.
    """
    return _volume(load(path), constant_is_wrong=True)


def read_float(path: Path) -> Volume:
    """Read a map of numbers, a perturbation for instance: `read_image`, but all zeros are a legal answer."""
    return _volume(load(path), constant_is_wrong=False)


def read_labels(path: Path) -> LabelMap:
    """Read a mask.

    Fractions up to 1e-3 are rounding errors of the program that wrote it, and are rounded away.

    Raises: InputError as `read_image` (but one label everywhere is legal), and for values that are not whole,
        negative, or above 65535.
    """
    file = load(path)
    shape, found, warnings = _place(file)
    labels = np.empty(shape, np.int64)
    missing, fractions, low, high = 0, 0, 0.0, 0.0
    for k, values in enumerate(_native_slices(file, shape)):
        with np.errstate(invalid="ignore"):
            whole = np.rint(values)
            missing += int(np.count_nonzero(np.isnan(values)))
            fractions += int(np.count_nonzero(~(np.abs(values - whole) <= 1e-3)))
            labels[..., k] = whole
        low, high = min(low, float(whole.min())), max(high, float(whole.max()))
    if missing:
        raise InputError(
            f"{file.name}: {missing} of {labels.size} voxels are NaN; a mask must have a label everywhere: replace "
            "them by 0, the background, if that is meant."
        )
    if fractions:
        raise InputError(
            f"{file.name}: {fractions} of {labels.size} voxels are not whole numbers; a mask must be a label "
            "map (0, 1, 2, ...): threshold it, or give the segmentation instead of a scan or probabilities."
        )
    if low < 0:
        raise InputError(f"{file.name}: has negative labels (down to {low:g}); a mask must not: is it a scan?")
    if high > np.iinfo(np.uint16).max:
        raise InputError(f"{file.name}: has labels up to {high:g}, a mask only up to 65535: is it a scan?")
    return LabelMap(file.name, labels, found.used.affine, file.sha256, warnings, found)


def stored_grid(volume: Volume, save_as: SaveAs) -> StoredGrid | None:
    """The native values that `write_image` can write; None when the file will hold floats."""
    if save_as == "float32" or volume.dtype.kind == "f":
        return None
    first, last = (volume.inter + volume.slope * limit for limit in volume.stored_range)
    # Slices may differ in their limits alone, and then all three have an entry for each.
    return StoredGrid(*np.broadcast_arrays(np.abs(volume.slope), np.minimum(first, last), np.maximum(first, last)))


def without_notes(volume: _AnyVolume) -> _AnyVolume:
    """A scan whose NIfTI header says nothing but place, type and scaling: no extensions, no names, no free text."""
    return replace(volume, header=_numbers(volume.header), extensions=NO_EXTENSIONS)


def write_image(path: Path, like: Volume, data: NDArray[np.float32], *, save_as: SaveAs, note: str) -> None:
    """Write a changed scan with the geometry, header and extensions of `like`.

    float32: native values, no scaling. source: the stored type and scaling of `like`; voxels equal to
    `like.data` keep their stored bits, others become rint((v - inter) / slope) within the type's range
    (floats: unrounded).

    Args:
        path: .nii or .nii.gz; written in place, the same input giving the same bytes.
        data: (I, J, K), native units, finite.
        note: replaces the header's description; cut to 79 ASCII characters.
    Raises: OutputError when the disk is full or the folder not writable; ValueError for another shape or NaN.
    """
    _require_finite(like, data)
    header = like.header.copy()
    header["descrip"] = _ascii(note)
    if save_as == "source":
        _write(path, header, like.extensions, (to_stored(like, data, part) for part in _parts(like.shape)))
        return
    header.set_data_dtype(np.float32)
    header["scl_slope"], header["scl_inter"] = 1, 0
    _write(path, header, like.extensions, (data[..., part] for part in _parts(like.shape)))


def write_labels(path: Path, like: Volume, labels: NDArray[np.integer[Any]]) -> None:
    """Write a mask (I, J, K) on the grid of `like`: uint8, or uint16 when a label is above 255.

    Raises: as `write_image`; ValueError also for labels outside [0, 65535].
    """
    if labels.shape != like.shape or labels.min() < 0 or labels.max() > np.iinfo(np.uint16).max:
        raise ValueError(f"expected labels in [0, 65535] of shape {like.shape}, got shape {labels.shape}")
    dtype = np.uint8 if labels.max() <= np.iinfo(np.uint8).max else np.uint16
    parts = (labels[..., part] for part in _parts(like.shape))
    _write_derived(path, like, parts, dtype, "MAFL LABEL MAP - NOT FOR CLINICAL USE")


def write_float(path: Path, like: Volume, data: NDArray[np.floating[Any]], note: str) -> None:
    """Write float32 values (I, J, K), a perturbation for instance, on the grid of `like`.

    Raises: as `write_image`.
    """
    _require_finite(like, data)
    _write_derived(path, like, (data[..., part] for part in _parts(like.shape)), np.float32, note)


def write_difference(path: Path, like: Volume, after: NDArray[np.float32], note: str) -> None:
    """`write_float` of what changed from `like` to `after`, native units."""
    _require_finite(like, after)
    changes = (after[..., part] - like.data[..., part] for part in _parts(like.shape))
    _write_derived(path, like, changes, np.float32, note)


def describe_image(path: Path) -> dict[str, Any]:
    """What `mafl inspect` says about an image or a mask; plain JSON values, None where there is no answer.

    Images that `read_image` refuses for their values or dimensions are described too; `refused_as_image`
    gives the reason.

    Raises: InputError when the file cannot be read as NIfTI at all.
    """
    file = load(path)
    header = file.header
    facts: dict[str, Any] = {
        "name": file.name,
        "format": "NIfTI-2" if isinstance(header, Nifti2Header) else "NIfTI-1",
        "sha256": file.sha256,
        "shape": list(file.voxels.shape),
        "spacing_mm": None,
        "axcodes": None,
        "dtype": header.get_data_dtype().newbyteorder("=").name,
        "byte_order": "big" if header.endianness == ">" else "little",
        "scl_slope": file.slope,
        "scl_inter": file.inter,
        "sform_code": int(header["sform_code"]),
        "qform_code": int(header["qform_code"]),
        "units": _UNIT_NAMES.get(int(header["xyzt_units"]) % 8, "unknown"),
        "refused_as_image": None,
        "warnings": [],
    }
    i, j, k = (*file.voxels.shape, 1, 1)[:3]
    try:
        found, notes = forms.read(file.name, file.header, (i, j, k))
        affine = found.used.affine
        facts |= {"spacing_mm": list(geometry.spacing(affine)), "axcodes": geometry.axcodes(affine)}
        facts["warnings"] = [*file.notes, *notes]
        _volume(file, constant_is_wrong=True)
    except InputError as refusal:
        facts["refused_as_image"] = str(refusal)
    return facts | _describe_values(file)


def _describe_values(file: NiftiFile) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "nan_voxels": 0,
        "infinite_voxels": 0,
        "range": None,
        "percentiles": None,
        "nonzero_fraction": None,
        "labels": None,
    }
    if file.voxels.dtype.kind not in "iuf" or file.voxels.size == 0:
        return facts
    # In the order on the disk, which is that of a Fortran array, and in one array: a scan may fill half the memory.
    values = file.voxels.ravel(order="K").astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= file.slope
        values += file.inter
    facts["nan_voxels"] = int(np.isnan(values).sum())
    facts["infinite_voxels"] = int(np.isinf(values).sum())
    facts["nonzero_fraction"] = np.count_nonzero(values) / values.size
    if facts["nan_voxels"] or facts["infinite_voxels"]:
        values = values[np.isfinite(values)]
    if values.size == 0:
        return facts
    facts["range"] = [float(values.min()), float(values.max())]
    facts["labels"] = _label_counts(values)
    ranks = (0.1, 50.0, 99.9)
    levels = np.percentile(values, ranks, overwrite_input=True)
    facts["percentiles"] = {f"{rank:g}": float(level) for rank, level in zip(ranks, levels, strict=True)}
    return facts


def _label_counts(values: NDArray[np.float64]) -> dict[int, int] | None:
    """Voxels of each label, if these are whole numbers from 0 on and few."""
    found: dict[int, int] = {}
    for part in np.array_split(values, max(1, values.size >> 20)):
        labels, counts = np.unique(part, return_counts=True)
        if labels[0] < 0 or (labels != np.rint(labels)).any():
            return None
        for label, count in zip(labels, counts, strict=True):
            found[int(label)] = found.get(int(label), 0) + int(count)
        if len(found) > _MOST_LABELS:
            return None
    return dict(sorted(found.items()))


def _place(file: NiftiFile) -> tuple[Shape, Forms, tuple[str, ...]]:
    """The (I, J, K) grid of a file that holds one volume of plain numbers: shape, where it lies, warnings."""
    name, dims = file.name, file.voxels.shape
    if file.voxels.dtype.kind not in "iuf":
        kind = "complex numbers" if file.voxels.dtype.kind == "c" else "colours (RGB)"
        raise InputError(f"{name} holds {kind}: convert it to one plain number per voxel.")
    if len(dims) == 1:
        raise InputError(f"{name} holds one row of {dims[0]} numbers, not an image: give a scan.")
    if math.prod(dims[3:]) > 1:
        what = f"{dims[3]} volumes (4D)" if math.prod(dims[4:]) == 1 else "a vector per voxel (5D)"
        raise InputError(f"{name} holds {what}: extract one 3D volume first.")
    shape = (dims[0], dims[1], dims[2] if len(dims) > 2 else 1)
    found, notes = forms.read(name, file.header, shape)
    return shape, found, file.notes + notes


def _volume(file: NiftiFile, *, constant_is_wrong: bool) -> Volume:
    shape, found, warnings = _place(file)
    data = np.empty(shape, np.float32)
    rounded, step = 0, abs(file.slope)
    # Whether numbers may be too large for float32: 16 bits are not, unless they are moved far away.
    large = file.voxels.dtype.kind in "iu" and (file.voxels.dtype.itemsize > 2 or abs(file.inter) > _EXACT / 2 * step)
    with np.errstate(over="ignore", invalid="ignore"):
        for k, values in enumerate(_native_slices(file, shape)):
            data[..., k] = values
            if large and np.abs(values).max() > _EXACT * step:
                rounded += int(np.count_nonzero(np.abs(data[..., k] - values) > step / 4))
    if rounded:
        warnings += (
            f"{file.name}: {rounded} of {data.size} voxels hold numbers too large for float32 to tell them from their "
            f"neighbours (steps of {step:g}): the network sees them rounded, and a file saved as float32 has them so; "
            "saved as source, what is not changed keeps its bits.",
        )
    require_usable(file.name, data, constant_is_wrong=constant_is_wrong)
    dtype = file.voxels.dtype.newbyteorder("=")
    return Volume(
        name=file.name,
        data=data,
        affine=found.used.affine,
        stored=file.voxels.reshape(shape, order="F"),
        slope=np.full((1, 1, 1), file.slope),
        inter=np.full((1, 1, 1), file.inter),
        stored_range=_stored_range(dtype),
        header=file.header,
        extensions=file.extensions,
        sha256=file.sha256,
        warnings=warnings,
        forms=found,
    )


def require_usable(name: str, data: NDArray[np.float32], *, constant_is_wrong: bool) -> None:
    """Raise InputError when a scan, or the voxels of one that are not padding, has NaN or Inf or one value only."""
    flat = data.ravel(order="K")
    parts = (flat[first : first + _BLOCK] for first in range(0, flat.size, _BLOCK))
    bad = data.size - sum(int(np.count_nonzero(np.isfinite(part))) for part in parts)
    if bad:
        raise InputError(f"{name}: {bad} of {data.size} voxels are NaN, Inf or beyond float32; replace them first.")
    if constant_is_wrong and data.min() == data.max():
        raise InputError(f"{name}: is constant, every voxel is {data.min():g}; give another scan.")


def _native_slices(file: NiftiFile, shape: Shape) -> Iterator[NDArray[np.float64]]:
    """(I, J) native values, one slice after the other: a whole scan in float64 would triple the memory."""
    stored = file.voxels.reshape(shape, order="F")
    for k in range(shape[2]):
        with np.errstate(over="ignore", invalid="ignore"):
            native = stored[..., k].astype(np.float64) * file.slope + file.inter
        yield native


def _stored_range(dtype: np.dtype[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The type's limits as floats it can hold: the largest 64-bit integer would round up, out of range."""
    if dtype.kind == "f":
        low, high = float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    else:
        limits = np.iinfo(dtype)
        low, high = float(limits.min), float(limits.max)
        high = high if int(high) <= limits.max else float(np.nextafter(high, 0))
    return np.full((1, 1, 1), low), np.full((1, 1, 1), high)


def to_stored(like: Volume, data: NDArray[np.float32], part: slice = slice(None)) -> NDArray[Any]:
    """Native values (I, J, K) as `like` stores them; voxels equal to `like.data` keep their bits. part: slices."""
    data = data[..., part]
    changed = data != like.data[..., part]
    slope, inter, low, high = (
        np.broadcast_to(values, like.shape)[..., part][changed]
        for values in (like.slope, like.inter, *like.stored_range)
    )
    values = (data[changed].astype(np.float64) - inter) / slope
    if like.dtype.kind != "f":
        values = np.rint(values)
    voxels: NDArray[Any] = like.stored[..., part].copy(order="K")
    voxels[changed] = np.clip(values, low, high)
    return voxels


def plain_header(shape: Shape, affine: NDArray[np.float64]) -> Nifti1Header:
    """A NIfTI header for a scan that has none of its own. affine: voxel -> mm RAS+."""
    header = Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    header.set_xyzt_units("mm")
    header["vox_offset"] = header.sizeof_hdr + len(NO_EXTENSIONS)
    return header


def _write_derived(path: Path, like: Volume, voxels: Iterable[NDArray[Any]], dtype: DTypeLike, note: str) -> None:
    """Write an array that shares the scan's grid but is no scan: nothing said about intensities is kept."""
    header = _numbers(like.header)
    header.set_data_dtype(dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = _ascii(note)
    _write(path, header, NO_EXTENSIONS, voxels)


def _numbers(header: Nifti1Header) -> Nifti1Header:
    """A header of the same kind that keeps `_NUMBERS`, for a file without extensions."""
    new = type(header)(endianness=header.endianness)
    for field in _NUMBERS:
        new[field] = header[field]
    new["vox_offset"] = new.sizeof_hdr + len(NO_EXTENSIONS)
    return new


def _require_finite(like: Volume, data: NDArray[Any]) -> None:
    finite = data.shape == like.shape and all(np.isfinite(data[..., part]).all() for part in _parts(like.shape))
    if not finite:
        raise ValueError(f"expected finite values of shape {like.shape}, got shape {data.shape}")


def _parts(shape: Shape) -> Iterator[slice]:
    """Some slices at a time: in a file they follow each other."""
    slices = max(1, _BLOCK // max(1, shape[0] * shape[1]))
    for first in range(0, shape[2], slices):
        yield slice(first, first + slices)


def _write(path: Path, header: Nifti1Header, extensions: bytes, voxels: Iterable[NDArray[Any]]) -> None:
    """voxels: (I, J, k) for some slices after the others, in the header's type or one that turns into it."""
    dtype = header.get_data_dtype()
    bodies = (np.asarray(part, dtype, order="F").ravel(order="K").view(np.uint8).data for part in voxels)
    try:
        with path.open("wb") as file:
            if path.suffix.lower() != ".gz":
                file.write(header.binaryblock + extensions)
                for body in bodies:
                    file.write(body)
                return
            # No file name and no time in the gzip header: the same voxels give the same bytes.
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                packed.write(header.binaryblock + extensions)
                for body in bodies:
                    packed.write(body)
    except OSError as exc:
        raise cannot_be_written(path.name, exc) from exc


def _ascii(note: str) -> bytes:
    """The field has 80 bytes; the last stays 0, which C programs rely on."""
    return note.encode("ascii", "replace")[:79]
