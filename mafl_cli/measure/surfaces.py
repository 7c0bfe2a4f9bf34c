"""How far apart the surfaces of two masks are: HD95 and normalised surface Dice, as MONAI defines and computes them.

A surface voxel that both masks have is 0 mm from the other surface, so distances are only looked for where the
surfaces differ, and only as far around as the nearest voxel is. The numbers are those of MONAI's functions on the whole
masks, to the last bit.

Words. *voxel edge*: a voxel of a mask with one of its six neighbours outside. *corner edge*: a place where eight
voxels meet that are not all inside or all outside; each carries a piece of the surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Codes = NDArray[np.uint8]

NSD_TOLERANCE_MM = 1.0

# Surface voxels in one search tree: a hundred bytes each.
_MOST_IN_TREE = 1_000_000
# Around the surfaces that differ, in the largest spacing; farther where that finds nothing.
_FIRST_REACH = 4.0


def surface_metrics(
    prediction: Mask, target: Mask, spacing: Sequence[float], *, flat: Sequence[bool] = (False, False, False)
) -> tuple[float, float]:
    """HD95 in mm and normalised surface Dice of two masks (I, J, K), neither of them empty.

    HD95 is the larger of the two directed 95th percentiles of the distances between voxel edges. NSD is the share of
    both surfaces, weighed by area, within the tolerance of the other (Nikolov et al. 2018).

    Args:
        prediction, target: no more of them than the smallest box around both is needed.
        spacing: three numbers, mm.
        flat: along which axes the whole masks have a single slice.
    """
    if np.array_equal(prediction, target):
        return 0.0, 1.0
    one, other, scale = _not_flat(prediction, target, spacing, flat)
    return _hd95(one, other, scale), _nsd(one, other, scale)


def hd95(
    prediction: Mask, target: Mask, spacing: Sequence[float], *, flat: Sequence[bool] = (False, False, False)
) -> float:
    """HD95 of `surface_metrics` alone, mm."""
    if np.array_equal(prediction, target):
        return 0.0
    return _hd95(*_not_flat(prediction, target, spacing, flat))


def _not_flat(
    prediction: Mask, target: Mask, spacing: Sequence[float], flat: Sequence[bool]
) -> tuple[Mask, Mask, NDArray[np.float64]]:
    """Masks and spacing without an axis along which there is a single slice."""
    mm = [float(size) for size in spacing]
    # In a single slice every voxel touches the outside of the volume: a boundary exists only in the plane.
    across = [axis for axis in range(3) if flat[axis]]
    if across:
        axis = max(across, key=lambda axis: mm[axis])
        prediction, target = prediction.squeeze(axis), target.squeeze(axis)
        del mm[axis]
    return prediction, target, np.array(mm)


def _hd95(prediction: Mask, target: Mask, mm: NDArray[np.float64]) -> float:
    one, other = _voxel_edges(prediction), _voxel_edges(target)
    return max(_directed(one, other, mm), _directed(other, one, mm))


def _directed(of: Mask, to: Mask, mm: NDArray[np.float64]) -> float:
    """The 95th percentile of the distances of voxel edges from those of the other mask, mm."""
    import torch

    total = int(np.count_nonzero(of))
    away = np.argwhere(of & ~to)
    near = total - len(away)
    # The place of the percentile among the sorted distances, in float32 as `torch.quantile` counts.
    place = torch.tensor(0.95) * (total - 1)
    low, high = int(place), int(place.ceil())
    if high < near:
        return 0.0
    distances = np.sort(_distances(away, to, mm).astype(np.float32))
    below, above = (torch.tensor(float(distances[n - near]) if n >= near else 0.0) for n in (low, high))
    return float(below.lerp(above, place - low))


def _nsd(prediction: Mask, target: Mask, mm: NDArray[np.float64]) -> float:
    import torch
    from monai.metrics.utils import get_code_to_measure_table

    areas = np.asarray(get_code_to_measure_table(mm.tolist())[0])
    codes = _corner_codes(prediction), _corner_codes(target)
    one, other = ((code != 0) & (code != len(areas) - 1) for code in codes)
    correct, complete = torch.zeros(()), torch.zeros(())
    for code, of, to in ((codes[1], other, one), (codes[0], one, other)):
        away = ~to[of]
        within = np.ones(len(away), np.bool_)
        # A little farther: rounding to float32 brings what is just outside back to the tolerance.
        distances = _distances(np.argwhere(of & ~to), to, mm, NSD_TOLERANCE_MM * (1 + 1e-6))
        within[away] = distances.astype(np.float32) <= NSD_TOLERANCE_MM
        # In the order and the type of MONAI's sums, so that no digit differs.
        pieces = torch.from_numpy(areas[code[of]])
        correct = correct + pieces[torch.from_numpy(within)].sum()
        complete = complete + pieces.sum()
    return float((correct / complete).float())


# --- surfaces -----------------------------------------------------------------------------------------------------


def _voxel_edges(mask: Mask) -> Mask:
    """Voxels with a neighbour outside, the border of the array included, in the mask with a margin of one voxel."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        line, inside = (np.moveaxis(array, axis, 0) for array in (mask, inner))
        inside[1:] &= line[:-1]
        inside[:-1] &= line[1:]
        inside[0] = inside[-1] = False
    return np.pad(mask & ~inner, 1)


def _corner_codes(mask: Mask) -> Codes:
    """Which of the voxels that meet at each corner are inside, as bits; the corners at the border of the array too.

    The first voxel along all axes has the highest bit, the last one the lowest, the last axis changes fastest.
    """
    code: Codes = np.pad(mask, 1).view(np.uint8)
    bits = 1
    for axis in reversed(range(mask.ndim)):
        line = np.moveaxis(code, axis, 0)
        code = np.moveaxis(((line[:-1] << bits) | line[1:]).astype(np.uint8), 0, axis)
        bits *= 2
    return np.ascontiguousarray(code)


# --- distances ----------------------------------------------------------------------------------------------------


def _distances(
    points: NDArray[np.intp], surface: Mask, mm: NDArray[np.float64], at_most: float = inf
) -> NDArray[np.float64]:
    """How far points (n, axes), indices, are from the nearest voxel of a surface that is not empty, mm: (n,).

    at_most: what is farther is inf.
    """
    found = np.full(len(points), inf)
    left, reach = np.arange(len(points)), min(_FIRST_REACH * float(mm.max()), at_most)
    while len(left):
        whole = _search(points, left, surface, mm, reach, found)
        left = left[found[left] > reach]
        if reach >= at_most:
            found[left] = inf
            break
        if whole:
            break
        reach = min(2 * reach, at_most)
    return found


def _search(
    points: NDArray[np.intp],
    rows: NDArray[np.intp],
    surface: Mask,
    mm: NDArray[np.float64],
    reach: float,
    found: NDArray[np.float64],
) -> bool:
    """Distances of some points to the surface around them, which are right up to `reach`; whether all was around."""
    from scipy.spatial import KDTree

    chosen = points[rows]
    first, last = chosen.min(axis=0), chosen.max(axis=0)
    # No more than the surface reaches: an index past any integer would be no index.
    margin = np.minimum(np.ceil(reach / mm), max(surface.shape)).astype(np.intp)
    low, high = np.maximum(first - margin, 0), np.minimum(last + margin + 1, surface.shape)
    box: Any = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    extent = (last - first) * mm
    axis = int(extent.argmax())
    if extent[axis] > reach and np.count_nonzero(surface[box]) > _MOST_IN_TREE:
        upper = chosen[:, axis] > (first[axis] + last[axis]) // 2
        parts = [_search(points, rows[part], surface, mm, reach, found) for part in (~upper, upper)]
        return all(parts)
    there = np.argwhere(surface[box])
    if len(there):
        # In the coordinates of the whole array: the same sums, so that no digit depends on the box.
        tree = KDTree((there + low) * mm, leafsize=32)
        found[rows] = tree.query(chosen * mm)[0]
    return bool((low == 0).all() and (high == surface.shape).all())
