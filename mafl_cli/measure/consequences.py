"""What the changed prediction means for the body: volume, diameter and place of each class, before and after.

Words. *largest component*: the connected piece with most voxels (corners touch). *diameter*: the longest straight line
between two points of its surface, which passes through the middles of the outer faces of its voxels, as the maximum 3-D
diameter of PyRadiomics does (van Griethuysen et al., Cancer Res. 77, 2017). One voxel has the length of its longest
side; in a scan of one slice the thickness of the slice does not count.

Labels are (M, I, J, K), see `mafl_cli.classes`; spacing is mm along i, j, k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.classes import Classes, Labels
from mafl_cli.codes import Reason
from mafl_cli.measure.records import ClassConsequence, Consequences, Diameters, Redrawn, Volumes
from mafl_cli.measure.surfaces import hd95
from mafl_cli.measure.value import Value, defined, undefined

Mask = NDArray[np.bool_]
Box = tuple[slice, ...]

# Pieces of equal size that are all measured, and the longest counts: which of them comes first says nothing.
_ALIKE = 20
# Rows of a table of distances.
_ROWS = 512


def consequences(clean: Labels, adversarial: Labels, classes: Classes, *, spacing: Sequence[float]) -> Consequences:
    """The clean prediction beside that of the adversarial scan.

    Args:
        clean, adversarial: (M, I, J, K), on one grid. spacing: three numbers, mm.
    Returns:
        `redrawn`: the region where they differ, its diameter undefined where it is empty (`identical_predictions`).
        `per_class`: of each foreground class volumes in ml; diameters in mm, undefined where the class is not drawn
            (`not_drawn`); HD95 in mm between both, undefined where one of them or neither has the class (`one_empty`,
            `both_empty`).
    """
    return Consequences(
        redrawn=_redrawn(clean, adversarial, spacing), per_class=tuple(_per_class(clean, adversarial, classes, spacing))
    )


def _redrawn(clean: Labels, adversarial: Labels, spacing: Sequence[float]) -> Redrawn:
    from scipy import ndimage

    other = (clean != adversarial).any(axis=0)
    (box,) = ndimage.find_objects(other.view(np.uint8), max_label=1)
    if box is None:
        return Redrawn(volume_ml=0.0, pieces=0, diameter_mm=undefined(Reason.IDENTICAL_PREDICTIONS))
    _, pieces = ndimage.label(other[box], structure=np.ones((3, 3, 3)))
    return Redrawn(
        volume_ml=_ml(other[box], spacing),
        pieces=pieces,
        diameter_mm=defined(diameter(other[box], spacing, flat=[size == 1 for size in other.shape])),
    )


def _ml(mask: Mask | None, spacing: Sequence[float]) -> float:
    return 0.0 if mask is None else int(np.count_nonzero(mask)) * prod(map(float, spacing)) / 1000


def _per_class(
    clean: Labels, adversarial: Labels, classes: Classes, spacing: Sequence[float]
) -> Iterator[ClassConsequence]:
    from scipy import ndimage

    mm = [float(size) for size in spacing]
    places = [
        [ndimage.find_objects(each, max_label=max(classes.values - 1, 1)) for each in labels]
        for labels in (clean, adversarial)
    ]
    flat = [size == 1 for size in clean.shape[1:]]
    for each in classes.foreground:
        boxes = [of[each.map][each.value - 1] for of in places]
        before, after = (
            None if box is None else labels[each.map][box] == each.value
            for labels, box in zip((clean, adversarial), boxes, strict=True)
        )
        first = _diameter(before, mm, flat)
        same = boxes[0] == boxes[1] and before is not None and after is not None and np.array_equal(before, after)
        yield ClassConsequence(
            index=each.index,
            name=each.name,
            volume_ml=Volumes(clean=_ml(before, mm), adversarial=_ml(after, mm)),
            diameter_mm=Diameters(clean=first, adversarial=first if same else _diameter(after, mm, flat)),
            hd95_mm=_between(clean[each.map], adversarial[each.map], each.value, boxes, mm, flat),
        )


def _between(
    clean: NDArray[Any],
    adversarial: NDArray[Any],
    value: int,
    boxes: Sequence[Box | None],
    mm: Sequence[float],
    flat: Sequence[bool],
) -> Value:
    """HD95 of a class in two maps (I, J, K). boxes: around it in each; None where it is not there."""
    one, other = boxes
    if one is None or other is None:
        return undefined(Reason.BOTH_EMPTY if one is None and other is None else Reason.ONE_EMPTY)
    box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return defined(hd95(clean[box] == value, adversarial[box] == value, mm, flat=flat))


def _diameter(mask: Mask | None, mm: Sequence[float], flat: Sequence[bool]) -> Value:
    return undefined(Reason.NOT_DRAWN) if mask is None else defined(diameter(mask, mm, flat=flat))


def diameter(mask: Mask, spacing: Sequence[float], *, flat: Sequence[bool] = (False, False, False)) -> float:
    """The diameter of the largest component of a mask (I, J, K) that is not empty, mm.

        >>> diameter(np.ones((1, 1, 4), bool), (1.0, 1.0, 2.5))
        10.0

    flat: along which axes the whole scan has a single slice.
    """
    from scipy import ndimage

    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    counts = np.bincount(pieces.ravel())
    counts[0] = 0
    largest = np.flatnonzero(counts == counts.max())[:_ALIKE]
    boxes = ndimage.find_objects(pieces)
    scale = np.array([0.0 if thin and not all(flat) else float(mm) for mm, thin in zip(spacing, flat, strict=True)])
    return max(_extent(pieces[boxes[n - 1]] == n, scale) for n in largest)


def _extent(piece: Mask, mm: NDArray[np.float64]) -> float:
    """The longest line between the middles of two faces of a piece, mm.

    Two voxels whose centres are d apart have faces that are |d|² + 2 |d_k| s_k + s_k² apart, squared, along axis k,
    with s_k its spacing; the best axis counts.
    """
    corners = _corners(piece) * mm
    longest = 0.0
    for first in range(0, len(corners), _ROWS):
        apart = np.abs(corners[first : first + _ROWS, None] - corners[None])
        square = (apart**2).sum(axis=2)
        longest = max(longest, *(float((square + 2 * apart[..., k] * mm[k]).max()) + mm[k] ** 2 for k in range(3)))
    return sqrt(longest)


def _corners(piece: Mask) -> NDArray[np.intp]:
    """Voxels of a piece among which are the two ends of its longest line, (n, 3), as indices."""
    from scipy.spatial import ConvexHull, QhullError

    ends = piece.copy()
    for axis in range(3):
        # Only the first and the last voxel of a line can be a corner of the hull.
        line = np.moveaxis(piece, axis, 0)
        before, after = (np.cumsum(part, axis=0) for part in (line, line[::-1]))
        np.moveaxis(ends, axis, 0)[...] &= (before == 1) | (after[::-1] == 1)
    points = np.argwhere(ends)
    try:
        found: NDArray[np.intp] = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):  # A voxel, a line or a plane has no hull in 3-D, and few ends.
        return points
    return found
