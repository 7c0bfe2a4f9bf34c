"""The classes that a model draws, and what the numbers of labels stand for.

Words. *map*: one number for each voxel. *labels*: the maps of a scan, (M, I, J, K), or of a batch, (B, M, *spatial).
Classes that exclude each other share one map: the number of the class at each voxel, 0 for background. Regions may
overlap, so each has a map of its own, 0 outside and 1 inside. *codes*: labels as a file holds them, (I, J, K): the one
map, or for regions the sum of 2 ** r over all regions r that the voxel is in.

Networks and the search know exclusive classes without the axis of maps: `to_network` and `from_network` lead there and
back. Nobody else needs to ask whether regions overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]


class _Array(Protocol):
    """A NumPy array or a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def any(self, axis: Any, /) -> Any: ...


Array = TypeVar("Array", bound=_Array)


@dataclass(frozen=True)
class Foreground:
    """A class that is not background: where the map `map` has the number `value`. index: its own among the names."""

    index: int
    name: str
    map: int
    value: int


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    names: of all classes, background first; of the regions alone, which have no common background, when they may
        overlap.
    """

    names: tuple[str, ...]
    overlapping: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def in_words(self) -> str:
        """For messages: how many there are, and of which kind."""
        return f"{len(self)} {'regions that may overlap' if self.overlapping else 'classes that exclude each other'}"

    @property
    def maps(self) -> int:
        """M, how many maps labels have."""
        return len(self.names) if self.overlapping else 1

    @property
    def values(self) -> int:
        """How many numbers a map may hold: 0 to this, exclusive."""
        return 2 if self.overlapping else len(self.names)

    @property
    def codes(self) -> int:
        """How many codes there are: 0 to this, exclusive."""
        return int(self.values**self.maps)

    @cached_property
    def foreground(self) -> tuple[Foreground, ...]:
        """Every class but the background, by number."""
        if self.overlapping:
            return tuple(Foreground(index, name, index, 1) for index, name in enumerate(self.names))
        return tuple(Foreground(index, name, 0, index) for index, name in enumerate(self.names) if index)

    def place(self, index: int) -> tuple[int, int]:
        """The map that a class is in, and its number there. index: its number among the names."""
        return (index, 1) if self.overlapping else (0, index)

    def is_background(self, index: int) -> bool:
        return self.place(index)[1] == 0

    def mask(self, labels: Labels, index: int) -> NDArray[np.bool_]:
        """Where a class is, (I, J, K)."""
        number, value = self.place(index)
        found: NDArray[np.bool_] = labels[number] == value
        return found

    def masks(self, labels: Labels) -> Iterator[NDArray[np.bool_]]:
        """Where each class is, background included, by number."""
        return (self.mask(labels, index) for index in range(len(self)))

    def hold(self, labels: Labels) -> bool:
        """Whether labels have a map for each of these, and no number that is none of them."""
        return len(labels) == self.maps and int(labels.max()) < self.values

    def decode(self, codes: Labels) -> Labels:
        """Labels (M, I, J, K) from codes (I, J, K), each below `codes`."""
        if not self.overlapping:
            alone: Labels = codes[np.newaxis]
            return alone
        return np.stack([(codes.astype(np.int64) >> region) & 1 for region in range(len(self))])

    def encode(self, labels: Labels) -> Labels:
        """Codes (I, J, K) of labels (M, I, J, K), as they are written into one file."""
        if not self.overlapping:
            alone: Labels = labels[0]
            return alone
        total = np.zeros(labels.shape[1:], np.int64)
        for index, region in enumerate(labels):
            total += region.astype(np.int64) << index
        return total

    def code_names(self) -> tuple[str, ...]:
        """What each code stands for, as a legend wants it; of regions "background", "a", "b", "a + b", ..."""
        if not self.overlapping:
            return self.names
        names = ["background"]
        for code in range(1, self.codes):
            names.append(" + ".join(name for index, name in enumerate(self.names) if code >> index & 1))
        return tuple(names)

    def swapped(self, labels: Labels, one: int, other: int) -> Labels:
        """Labels with two classes in each other's place."""
        changed: Labels = labels.copy()
        (map_one, value_one), (map_other, value_other) = self.place(one), self.place(other)
        if map_one != map_other:
            changed[map_one], changed[map_other] = labels[map_other], labels[map_one]
        else:
            changed[map_one][labels[map_one] == value_one] = value_other
            changed[map_one][labels[map_one] == value_other] = value_one
        return changed

    def from_network(self, drawn: Array) -> Array:
        """Labels (B, M, *spatial), a view of a batch as networks draw it: (B, *spatial), or (B, R, *spatial)."""
        labels: Array = drawn if self.overlapping else drawn[:, None]
        return labels

    def to_network(self, labels: Array) -> Array:
        """The way back of `from_network`, a view."""
        drawn: Array = labels if self.overlapping else labels[:, 0]
        return drawn


def in_any_map(masks: Array, axis: int = 0) -> Array:
    """Where at least one of bool maps along `axis` is true; without that axis."""
    if masks.shape[axis] == 1:  # As a rule; without a copy.
        alone: Array = masks[(slice(None),) * axis + (0,)]
        return alone
    found: Array = masks.any(axis)
    return found
