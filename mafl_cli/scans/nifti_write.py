"""Writing volumes and label maps as NIfTI."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import DTypeLike, NDArray

from mafl_cli.config import SaveAs
from mafl_cli.errors import cannot_be_written
from mafl_cli.scans.nifti_file import NO_EXTENSIONS
from mafl_cli.scans.volume import BLOCK, Shape, Volume, numbers_alone, to_stored

# On a perturbed 240 x 240 x 155 float32 scan level 1 takes 0.4 s and leaves 35 % of the size, level 6 takes
# 1.2 s and leaves 31 %.
_GZIP_LEVEL = 1


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


def write_native(path: Path, like: Volume, data: NDArray[np.float32]) -> None:
    """Write native values of a scan (I, J, K) with its grid and nothing else that its header says.

    The type is that of `like` where that holds every value exactly, else float32.
    Raises: as `write_image`.
    """
    _require_finite(like, data)
    _write_derived(path, like, (data[..., part] for part in _parts(like.shape)), _holding(like, data), "")


def _holding(like: Volume, data: NDArray[np.float32]) -> np.dtype[Any]:
    """The type of a scan, or 16-bit integers where it has an intercept, if that holds all values; else float32."""
    if like.dtype.kind == "f":
        return like.dtype
    whole = all((data[..., part] == np.rint(data[..., part])).all() for part in _parts(like.shape))
    for dtype in (like.dtype, np.dtype(np.int16)) if whole else ():
        if np.iinfo(dtype).min <= data.min() and data.max() <= np.iinfo(dtype).max:
            return dtype
    return np.dtype(np.float32)


def write_difference(path: Path, like: Volume, after: NDArray[np.float32], note: str) -> None:
    """`write_float` of what changed from `like` to `after`, native units."""
    _require_finite(like, after)
    changes = (after[..., part] - like.data[..., part] for part in _parts(like.shape))
    _write_derived(path, like, changes, np.float32, note)


def _write_derived(path: Path, like: Volume, voxels: Iterable[NDArray[Any]], dtype: DTypeLike, note: str) -> None:
    """Write an array on the scan's grid that is not a scan: nothing that the header says of intensities is kept."""
    header = numbers_alone(like.header)
    header.set_data_dtype(dtype)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = _ascii(note)
    _write(path, header, NO_EXTENSIONS, voxels)


def _require_finite(like: Volume, data: NDArray[Any]) -> None:
    finite = data.shape == like.shape and all(np.isfinite(data[..., part]).all() for part in _parts(like.shape))
    if not finite:
        raise ValueError(f"expected finite values of shape {like.shape}, got shape {data.shape}")


def _parts(shape: Shape) -> Iterator[slice]:
    """Some slices at a time: in a file they follow each other."""
    slices = max(1, BLOCK // max(1, shape[0] * shape[1]))
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
