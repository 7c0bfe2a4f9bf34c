"""Where voxels are: affine, spacing, orientation, and the same-grid test.

Words. *affine*: (4, 4), maps array indices (i, j, k) of voxel centres to millimetres, RAS+ (x to the
patient's right, y to the front, z up), nibabel's convention. *spacing*: mm between neighbouring voxel
centres along each array axis. *axcodes*: where each array axis points, as in "RAS" or "LIP". *slice axis*:
the array axis along which a scan is cut into images for a 2D network.

Array indices mean nothing anatomical: the same scan may be stored in 48 ways. Every choice made here goes
through the affine, so that all 48 give the same answer. Scans are permuted and flipped, which is exact; only
label maps are ever resampled, to the nearest voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from mafl_cli.config import SliceAxisChoice
from mafl_cli.errors import GeometryError, UsageError
from mafl_cli.names import outside

Affine = NDArray[np.float64]

_PLANE_ACROSS = {
    "S": "axial",
    "I": "axial",
    "A": "coronal",
    "P": "coronal",
    "L": "sagittal",
    "R": "sagittal",
}


def axcodes(affine: Affine) -> str:
    """Three letters saying where the array axes i, j, k point, as "RAS"; the nearest ones when oblique."""
    return "".join(aff2axcodes(affine))


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Distance in mm between neighbouring voxel centres along i, j, k."""
    i, j, k = (float(size) for size in voxel_sizes(affine))
    return i, j, k


def describe(shape: Sequence[int], affine: Affine) -> str:
    """One line for people: `9 x 9 x 5 voxels of 1 x 1 x 3 mm, RAS, first voxel at (-90, -126, -72) mm`."""
    size = " x ".join(str(n) for n in shape)
    step = " x ".join(f"{mm:.4g}" for mm in spacing(affine))
    origin = ", ".join(f"{mm:.5g}" for mm in affine[:3, 3])
    return f"{size} voxels of {step} mm, {axcodes(affine)}, first voxel at ({origin}) mm"


def corner_shift(shape: Sequence[int], affine_a: Affine, affine_b: Affine) -> float:
    """Largest distance in mm between the places two affines give to a corner voxel of a grid of `shape`.

    An affine map is linear in the indices, so no voxel is farther apart than the worst corner.
    """
    corners = np.array([(*index, 1) for index in product(*((0, n - 1) for n in shape))], dtype=np.float64)
    return float(np.linalg.norm(corners @ (affine_a - affine_b)[:3].T, axis=1).max())


def same_space(shape_a: Sequence[int], affine_a: Affine, shape_b: Sequence[int], affine_b: Affine) -> bool:
    """Whether two grids are one: equal shapes, and no corner apart by more than 5 % of the smallest spacing.

    Exact equality would refuse good pairs: a file written through a qform quaternion, or by another
    program, has an affine that differs by float32 rounding, which grows with the distance from the origin.
    A twentieth of a voxel gives no voxel another label.
    """
    if tuple(shape_a) != tuple(shape_b):
        return False
    tolerance = 0.05 * min(*spacing(affine_a), *spacing(affine_b))
    return corner_shift(shape_a, affine_a, affine_b) <= tolerance


def require_same_space(
    name_a: str,
    shape_a: Sequence[int],
    affine_a: Affine,
    name_b: str,
    shape_b: Sequence[int],
    affine_b: Affine,
    advice: str | None = None,
) -> None:
    """Raise GeometryError, showing both grids, unless `same_space` holds. advice: what to do, as a sentence."""
    if same_space(shape_a, affine_a, shape_b, affine_b):
        return
    apart = ""
    if tuple(shape_a) == tuple(shape_b):
        apart = f", corners up to {corner_shift(shape_a, affine_a, affine_b):.3g} mm apart"
    raise GeometryError(
        f"{name_a} and {name_b} are not on the same grid{apart}: "
        f"{name_a} has {describe(shape_a, affine_a)}; {name_b} has {describe(shape_b, affine_b)}. "
        + (advice or f"Resample {name_b} to the grid of {name_a} first (a label map with nearest neighbour).")
    )


def nearest_labels(labels: NDArray[Any], affine: Affine, shape: Sequence[int], onto: Affine) -> NDArray[Any]:
    """A label map (I, J, K) on another grid: each voxel takes the label of the nearest one; 0 outside of it.

    affine: of `labels`. shape, onto: of the new grid.
    """
    step = np.linalg.inv(affine) @ onto
    i, j = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    moved = np.zeros(tuple(shape), labels.dtype)
    for k in range(shape[2]):
        # Halves round up, not to even: on a finer grid every other label would get one voxel more.
        at = [np.floor(row[0] * i + row[1] * j + row[2] * k + row[3] + 0.5 + 1e-6).astype(int) for row in step[:3]]
        inside = np.logical_and.reduce([(n >= 0) & (n < size) for n, size in zip(at, labels.shape, strict=True)])
        moved[..., k][inside] = labels[at[0][inside], at[1][inside], at[2][inside]]
    return moved


def is_part_of(shape: Sequence[int], affine: Affine, whole_shape: Sequence[int], whole: Affine) -> bool:
    """Whether a grid is a block of another one, its axes in any order and direction, up to 5 % of a voxel."""
    step = np.linalg.inv(whole) @ affine
    corners = np.array([(*index, 1) for index in product(*((0, n - 1) for n in shape))], dtype=np.float64)
    places = (corners @ step.T)[:, :3]
    unit = np.abs(step[:3, :3])
    return bool(
        np.abs(unit - np.rint(unit)).max() <= 0.05
        and (np.rint(unit).sum(axis=0) == 1).all()
        and np.abs(places - np.rint(places)).max() <= 0.05
        and (places > -0.5).all()
        and (places < np.array(whole_shape) - 0.5).all()
    )


def turn_onto(
    shape: Sequence[int], affine: Affine, onto_shape: Sequence[int], onto: Affine
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How the axes of one grid are those of another in another order or direction; None if the voxels are not the same.

    Returns: the axes in the order of the other grid, as `numpy.transpose` takes them, and those to flip after that.
    """
    if sorted(shape) != sorted(onto_shape) or not is_part_of(shape, affine, onto_shape, onto):
        return None
    step = np.rint(np.linalg.inv(onto) @ affine)[:3, :3].astype(int)
    order = tuple(int(axis) for axis in np.abs(step).argmax(axis=1))
    flips = tuple(axis for axis in range(3) if step[axis, order[axis]] < 0)
    return order, flips


@dataclass(frozen=True)
class SliceAxis:
    """The array axis along which a scan is cut into slices, and why it was chosen."""

    index: int
    """In the file's own array order: 0, 1 or 2."""
    name: str
    """axial, coronal or sagittal: the plane of the slices; the nearest one when oblique."""
    reason: str
    """Half a sentence for the report."""


def choose_slice_axis(affine: Affine, shape: Sequence[int], choice: SliceAxisChoice) -> SliceAxis:
    """Pick the slice axis of a scan.

    auto: the only axis of length 1; else the axis of the largest spacing when it is more than 1.05 times
    the next (2D networks were trained on the well-resolved plane); else the axis closest to
    superior-inferior.

    Args:
        shape: (I, J, K) voxels.
        choice: auto, an array axis (i, j, k), or the plane of the slices (axial, coronal, sagittal).
    Raises: UsageError for another choice.
    """
    planes = [_PLANE_ACROSS[code] for code in axcodes(affine)]
    sizes = spacing(affine)

    def axis(index: int, reason: str) -> SliceAxis:
        return SliceAxis(index, planes[index], reason)

    if choice in ("i", "j", "k"):
        return axis("ijk".index(choice), f"array axis {choice} was asked for")
    if choice in planes:
        return axis(planes.index(choice), f"{choice} slices were asked for")
    if choice != "auto":
        raise UsageError(f"`slice_axis` must be auto, i, j, k, axial, coronal or sagittal, got {outside(choice)!r}.")
    single = [index for index, n in enumerate(shape) if n == 1]
    if len(single) == 1:
        return axis(single[0], "the scan is a single slice")
    smaller, larger, largest = sorted(range(3), key=lambda index: sizes[index])
    if sizes[largest] > 1.05 * sizes[larger]:
        return axis(largest, f"largest spacing: {sizes[largest]:.4g} mm against {sizes[larger]:.4g} mm")
    return axis(
        planes.index("axial"),
        f"closest to superior-inferior; spacing singles out no axis ({sizes[smaller]:.4g} to {sizes[largest]:.4g} mm)",
    )


def turn_to(affine: Affine, codes: str) -> NDArray[np.float64]:
    """nibabel's orientation transform, (3, 2), from a scan's axes to those of axcodes such as "RAS".

    Raises: UsageError when the codes do not name each body axis once.
    """
    turn: NDArray[np.float64] = ornt_transform(io_orientation(affine), _orientation(codes))
    return turn


def _orientation(codes: str) -> NDArray[np.float64]:
    if sorted(codes.translate(str.maketrans("LPI", "RAS"))) != sorted("RAS"):
        raise UsageError(
            f"`orientation` must be native, or one letter of each pair R/L, A/P, S/I, as RAS, got {outside(codes)!r}."
        )
    ornt: NDArray[np.float64] = axcodes2ornt(codes)
    return ornt
