"""How well a score tells two kinds of samples apart: the ROC curve, the area under it, and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959964
"""97.5th percentile of the normal distribution."""


def roc_points(negative: Sequence[float], positive: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """The ROC curve: (false positive rate, true positive rate) for every border, from (0, 0) to (1, 1).

    negative, positive: scores of each kind, at least one; a sample at a border or above counts as positive.
    """
    low, high = np.asarray(negative, dtype=float), np.asarray(positive, dtype=float)
    borders = np.unique(np.concatenate([low, high]))[::-1]
    found = [(0.0, 0.0), *((float((low >= border).mean()), float((high >= border).mean())) for border in borders)]
    return tuple(found)


def area(points: Sequence[tuple[float, float]]) -> float:
    """The area under a ROC curve: the chance that a positive sample scores above a negative one, ties half.

        >>> area(roc_points([0, 1], [1, 2]))
        0.875

    Hanley and McNeil, Radiology 143, 1982.
    """
    false, true = np.array(points).T
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))


def area_interval(found: float, count: int) -> tuple[float, float]:
    """95 % interval of an area that was found with `count` samples of each kind, none of which depend on each other.

    Newcombe, Statistics in Medicine 25, 2006, part 2, method 5: the areas θ that lie within 1.96 of their own standard
    errors from the one that was found, after Hanley and McNeil. Unlike DeLong's interval, and unlike a bootstrap, it
    has a width where every sample was told.

        >>> [round(end, 2) for end in area_interval(1.0, 10)]
        [0.76, 1.0]

    Raises ValueError for an area that is not between 0 and 1, and for no sample.
    """
    if not 0 <= found <= 1 or count < 1:
        raise ValueError(f"area must be 0 to 1 of at least one sample, got {found} of {count}")
    return _lower(found, count), 1 - _lower(1 - found, count)


def _lower(found: float, count: int) -> float:
    low, high = 0.0, found
    for _ in range(60):
        middle = (low + high) / 2
        far = found - middle > _Z * _error(middle, count)
        low, high = (middle, high) if far else (low, middle)
    return low


def _error(area: float, count: int) -> float:
    """Standard error of an area: of scores that fall off exponentially, the same seen from either end."""
    spread = 1 + (count - 1) * ((1 - area) / (2 - area) + area / (1 + area))
    return math.sqrt(area * (1 - area) * spread) / count
