"""Slices turned for the eye: which way is up, where they lie, and the part of them that is worth a look.

Words. *picture*: one slice turned for the eye, rows from top to bottom, columns from left to right. *radiological
convention*: axial and coronal pictures have the patient's right on their left; the front is up in axial ones and
on the left in sagittal ones, the head is up elsewhere.

A wrong flip here would put a lesion on the wrong side, so orientation comes from the affine alone, and a scan
gives the same picture in all 48 ways of storing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from mafl_cli.scans.geometry import Affine, spacing

PLANES = ("sagittal", "coronal", "axial")
POSITIVE, NEGATIVE = "RAS", "LPI"

# Around the body, as a share of its size.
_MARGIN = 0.04


def oriented_slice(
    volume: NDArray[Any], affine: Affine, slice_axis: int, index: int
) -> tuple[NDArray[Any], tuple[str, str, str, str], float]:
    """One slice, turned to the radiological convention.

    Args:
        volume: (I, J, K), any dtype.
        affine: (4, 4), voxel to mm, RAS+.
        slice_axis: array axis across the slices, 0, 1 or 2.
        index: along that axis.
    Returns: the picture (rows, columns), a view, for `imshow(origin="upper")`; the letters of the body side at its
        (left, right, top, bottom) border, the nearest ones when oblique; and its aspect, mm from row to row over
        mm from column to column.
    """
    body_axis, direction = io_orientation(affine).T
    across, down = in_plane(affine, slice_axis)
    picture = np.moveaxis(volume, slice_axis, 0)[index]
    if down < across:
        picture = picture.T  # now (across, down)
    # Right to left, front to back, head to foot: each way is against nibabel's RAS+.
    turned = picture[_backwards(direction[across]), _backwards(direction[down])].T
    x, y = int(body_axis[across]), int(body_axis[down])
    letters = (POSITIVE[x], NEGATIVE[x], POSITIVE[y], NEGATIVE[y])
    sizes = spacing(affine)
    return turned, letters, sizes[down] / sizes[across]


def in_plane(affine: Affine, slice_axis: int) -> tuple[int, int]:
    """The array axes that run across and down a picture."""
    body_axis = io_orientation(affine)[:, 0]
    across, down = sorted((axis for axis in range(3) if axis != slice_axis), key=lambda axis: body_axis[axis])
    return across, down


def _backwards(direction: float) -> slice:
    return slice(None, None, -1) if direction > 0 else slice(None)


def position(shape: Sequence[int], affine: Affine, slice_axis: int, index: int) -> float:
    """Where the middle of a slice lies along the body axis nearest to the slice axis, mm, RAS+."""
    middle = [(n - 1) / 2 for n in shape]
    middle[slice_axis] = index
    return float(apply_affine(affine, middle)[int(io_orientation(affine)[slice_axis, 0])])


def box_around(keep: NDArray[Any]) -> tuple[slice, slice]:
    """The box around the True pixels of a picture plus a margin; the whole picture if there are none."""
    down, across = (_span(keep.any(axis=axis)) for axis in (1, 0))
    return down, across


def _span(inside: Any) -> slice:
    (where,) = np.nonzero(inside)
    if not len(where):
        return slice(0, len(inside))
    first, last = int(where[0]), int(where[-1])
    margin = round(_MARGIN * (last - first)) + 2
    return slice(max(first - margin, 0), min(last + margin + 1, len(inside)))
