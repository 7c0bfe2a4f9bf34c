"""One channel of a scan in memory, and what it takes to write it back as a faithful file.

Words. *stored*: the numbers as the file holds them (raw integers, say). *native*: what they mean, HU for a
CT: native = stored * slope + inter. *stored grid*: the native values that a file of integers can hold.

Files are taken apart and put together as bytes (header, extensions, voxels); nibabel only interprets the
header. Its image classes would clear `scl_slope` on reading, choose a new one on writing, and rewrite
extensions; here a voxel nobody changed must keep its bits, and the header everything but the few fields
that have to change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from mafl_cli.config import SaveAs
from mafl_cli.errors import InputError
from mafl_cli.scans import geometry
from mafl_cli.scans.forms import Forms
from mafl_cli.scans.nifti_file import NO_EXTENSIONS

Shape = tuple[int, int, int]


# What a NIfTI header says of place, type and scaling: all of it numbers. Everything else may be text about a patient.
_NUMBERS = (
    *("dim", "pixdim", "dim_info", "xyzt_units", "datatype", "bitpix", "vox_offset", "toffset"),
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "slice_start", "slice_end", "slice_code", "slice_duration"),
    *("scl_slope", "scl_inter", "cal_min", "cal_max"),
)
# Voxels that are looked at, or written, together.
BLOCK = 1 << 22


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
    """Hash of the file as it lies on disk (compressed), hexadecimal."""
    warnings: tuple[str, ...]
    """Sentences for the user; the scan is usable all the same."""
    padding: NDArray[np.bool_] | None = None
    """(I, J, K), voxels outside the scanned field, which hold no measurement; None for none."""

    forms: Forms | None = None
    """All that the header says of where the voxels are; None unless it is NIfTI."""

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
        """Type of the stored numbers, in the machine's byte order."""
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
    """All that the header says of where the voxels are; None unless it is NIfTI."""

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


def stored_grid(volume: Volume, save_as: SaveAs) -> StoredGrid | None:
    """The native values that `write_image` can write; None when the file will hold floats."""
    if save_as == "float32" or volume.dtype.kind == "f":
        return None
    first, last = (volume.inter + volume.slope * limit for limit in volume.stored_range)
    # Slices may differ in their limits alone, and then all three have an entry for each.
    return StoredGrid(*np.broadcast_arrays(np.abs(volume.slope), np.minimum(first, last), np.maximum(first, last)))


def without_notes(volume: _AnyVolume) -> _AnyVolume:
    """A scan whose NIfTI header says nothing but place, type and scaling: no extensions, no names, no free text."""
    return replace(volume, header=numbers_alone(volume.header), extensions=NO_EXTENSIONS)


def require_usable(name: str, data: NDArray[np.float32], *, constant_is_wrong: bool) -> None:
    """Raise InputError when a scan, or the voxels of one that are not padding, has NaN or Inf or one value only."""
    flat = data.ravel(order="K")
    parts = (flat[first : first + BLOCK] for first in range(0, flat.size, BLOCK))
    bad = data.size - sum(int(np.count_nonzero(np.isfinite(part))) for part in parts)
    if bad:
        raise InputError(f"{name}: {bad} of {data.size} voxels are NaN, Inf or beyond float32; replace them first.")
    if constant_is_wrong and data.min() == data.max():
        raise InputError(f"{name}: is constant, every voxel is {data.min():g}; give another scan.")


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


def numbers_alone(header: Nifti1Header) -> Nifti1Header:
    """A header of the same kind that keeps `_NUMBERS`, for a file without extensions."""
    new = type(header)(endianness=header.endianness)
    for field in _NUMBERS:
        new[field] = header[field]
    new["vox_offset"] = new.sizeof_hdr + len(NO_EXTENSIONS)
    return new
