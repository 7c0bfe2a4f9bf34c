"""Percentiles of whole scans without a sorted copy of them: exact, from histograms of the bits of float32 values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Voxels looked at together.
_BLOCK = 1 << 20
_BINS = 1 << 16


def percentiles(
    values: NDArray[Any],
    ranks: Sequence[float],
    *,
    where: NDArray[np.bool_] | None = None,
    precision: type[np.floating[Any]] = np.float32,
) -> list[float]:
    """What `np.percentile` says of an array, to the last bit, at the memory of a small part of it.

    Args:
        values: any shape, finite; other types than float32 are left to NumPy.
        ranks: in [0, 100].
        where: like values, the voxels that count, at least one; None for all.
        precision: the type of the array that `np.percentile` would get: it subtracts neighbours in that type.
    """
    if values.dtype != np.float32:
        chosen = values if where is None else values[where]
        return [float(value) for value in np.percentile(chosen, ranks)]
    count = values.size if where is None else int(np.count_nonzero(where))
    places = [(count - 1) * (rank / 100) for rank in ranks]
    wanted = sorted({neighbour for place in places for neighbour in (int(place), min(int(place) + 1, count - 1))})
    found = dict(zip(wanted, _in_order(values, where, wanted), strict=True))

    def between(place: float) -> float:
        low, high = (found[n].astype(precision) for n in (int(place), min(int(place) + 1, count - 1)))
        # As NumPy does it, from the nearer end, so that no digit differs.
        step, share = high - low, np.float64(place - int(place))
        return float(high - step * (1 - share) if share >= 0.5 else low + step * share)

    return [between(place) for place in places]


def _in_order(values: NDArray[Any], where: NDArray[np.bool_] | None, places: Sequence[int]) -> list[np.float32]:
    """The values at these places of the sorted array; places in rising order."""
    coarse = np.zeros(_BINS, np.int64)
    for keys in _keys(values, where):
        coarse += np.bincount(keys >> 16, minlength=_BINS)
    until = np.cumsum(coarse)
    bins = np.searchsorted(until, places, side="right")
    fine = {int(each): np.zeros(_BINS, np.int64) for each in bins}
    for keys in _keys(values, where):
        high = keys >> 16
        for each, counts in fine.items():
            counts += np.bincount(keys[high == each] & 0xFFFF, minlength=_BINS)
    found = []
    for place, each in zip(places, bins.tolist(), strict=True):
        rest = place - int(until[each] - coarse[each])
        low = int(np.searchsorted(np.cumsum(fine[each]), rest, side="right"))
        found.append(_value(each << 16 | low))
    return found


def _keys(values: NDArray[Any], where: NDArray[np.bool_] | None) -> Iterator[NDArray[np.uint32]]:
    """The bits of the values as whole numbers that rise with them, some planes at a time."""
    planes = max(1, _BLOCK // max(1, values[0].size)) if values.ndim > 1 else _BLOCK
    for first in range(0, len(values), planes):
        part = values[first : first + planes]
        part = part.ravel() if where is None else part[where[first : first + planes]]
        bits = np.ascontiguousarray(part).view(np.int32)
        # Negative floats have the sign bit and a magnitude that rises downwards.
        flipped = bits >> 31
        flipped |= np.int32(-(2**31))
        flipped ^= bits
        yield flipped.view(np.uint32)


def _value(key: int) -> np.float32:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    value: np.float32 = np.array([bits], np.uint32).view(np.float32)[0]
    return value
