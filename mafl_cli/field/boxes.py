"""Boxes of voxels: starts and sizes along the spatial axes, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from mafl_cli.field.resample import Box

Start = tuple[int, ...]


def on_last_axes(place: Sequence[slice]) -> Any:
    """Index of a place on the last axes of a tensor, whatever comes before them."""
    return (..., *place)


def then(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: second(first(x))


def everything(shape: Sequence[int]) -> Box:
    return tuple(slice(0, size) for size in shape)


def hull(one: Box, other: Box) -> Box:
    """The smallest box that holds both."""
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def minus(start: Start, corner: Start) -> Start:
    return tuple(first - origin for first, origin in zip(start, corner, strict=True))


def shifted(place: Box, origin: Sequence[int]) -> Box:
    """The same place, counted from `origin`."""
    return tuple(slice(part.start - first, part.stop - first) for part, first in zip(place, origin, strict=True))


def do_overlap(one: Box, other: Box) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def in_common(place: Box, box: Box) -> tuple[Box, Box]:
    """What a place has in common with a box, counted from the box and from the place; empty where they are apart."""
    both = [
        (max(a.start, b.start), max(min(a.stop, b.stop), max(a.start, b.start)))
        for a, b in zip(place, box, strict=True)
    ]
    here = tuple(slice(low - part.start, high - part.start) for (low, high), part in zip(both, box, strict=True))
    mine = tuple(slice(low - part.start, high - part.start) for (low, high), part in zip(both, place, strict=True))
    return here, mine
