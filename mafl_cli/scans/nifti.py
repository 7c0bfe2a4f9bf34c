"""Reading NIfTI files, and saying what they hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from mafl_cli.errors import InputError
from mafl_cli.scans import forms, geometry
from mafl_cli.scans.forms import Forms
from mafl_cli.scans.nifti_file import NiftiFile, load
from mafl_cli.scans.volume import LabelMap, Shape, Volume, require_usable

# Whole numbers up to here are each a float32.
_EXACT = 2**24
# Above so many, numbers are rather measurements.
_MOST_LABELS = 64
_UNIT_NAMES = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}


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
