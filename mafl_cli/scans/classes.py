"""Classes of a label map, exclusive or overlapping: one mask for each, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def decoded(codes: NDArray[np.integer[Any]], regions: int) -> NDArray[np.int64]:
    """Bit codes (I, J, K) as (R, I, J, K), 0 or 1."""
    return np.stack([(codes.astype(np.int64) >> region) & 1 for region in range(regions)])


def coded(regions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """(R, I, J, K), 0 or 1, as bit codes (I, J, K)."""
    total = np.zeros(regions.shape[1:], np.int64)
    for index, region in enumerate(regions):
        total += region.astype(np.int64) << index
    return total


def code_names(region_names: Sequence[str]) -> tuple[str, ...]:
    """What each bit code stands for, as a legend wants it: "background", "a", "b", "a + b", ..."""
    names = ["background"]
    for code in range(1, 2 ** len(region_names)):
        names.append(" + ".join(name for index, name in enumerate(region_names) if code >> index & 1))
    return tuple(names)
