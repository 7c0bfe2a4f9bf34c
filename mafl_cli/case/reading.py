"""A *reading*: one way in which a scan becomes the input of a network; and which ways are common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import cast

from mafl_cli.case.subject import Subject
from mafl_cli.config import SliceAxisChoice
from mafl_cli.network.card import ModelCard
from mafl_cli.network.intensity import Intensity
from mafl_cli.scans.geometry import axcodes

SCALINGS = (
    *("none", "minmax", "zscore", "zscore-nonzero", "percentile:0.5,99.5"),
    *("window:-160,240", "window:-57,164", "window:-1000,1000"),
)
"""Short forms of the intensity scalings that are tried; windows only where values may be HU."""
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a scan is given to a network.

    orientation: axcodes. slice_axis: of the file, i, j or k; None for volumes. intensity: the short form, or None for
    what the card says. order: which channel of the scan is the n-th of the network.
    """

    orientation: str
    slice_axis: str | None
    intensity: str | None
    order: tuple[int, ...]

    def changes(self, given: Reading) -> int:
        """How much of another reading is not as in this one: letters, slice axis, intensity and channels."""
        letters = sum(one != other for one, other in zip(self.orientation, given.orientation, strict=True))
        others = (self.slice_axis != given.slice_axis, self.intensity != given.intensity, self.order != given.order)
        return letters + sum(others)

    def on(self, card: ModelCard) -> ModelCard:
        """A card that says so; the order of channels is that of the files, which no card has."""
        intensity = card.intensity if self.intensity is None else Intensity.parse(self.intensity)
        plane = card.slice_axis if self.slice_axis is None else cast(SliceAxisChoice, self.slice_axis)
        return replace(card, orientation=self.orientation, intensity=intensity, slice_axis=plane)

    def options(self, given: Reading) -> str:
        """The options that turn another reading into this one, as words for a message."""
        found = []
        if self.orientation != given.orientation:
            found.append(f"`orientation` {self.orientation}")
        if self.slice_axis != given.slice_axis:
            found.append(f"`slice_axis` {self.slice_axis}")
        if self.intensity != given.intensity:
            found.append(f"`intensity` {self.intensity}")
        if self.order != given.order:
            found.append(f"the channels in the order {', '.join(str(n + 1) for n in self.order)}")
        return " and ".join(found) or "as it is"


def given_reading(subject: Subject) -> Reading:
    """How the scan is read now."""
    codes = subject.card.orientation or "native"
    return Reading(
        orientation=axcodes(subject.scan.affine) if codes == "native" else codes,
        slice_axis="ijk"[subject.slices.index] if subject.layout.sliced else None,
        intensity=None,
        order=tuple(range(len(subject.scans))),
    )


def flipped(letters: str) -> Iterator[str]:
    """The axes of axcodes in every direction: eight."""
    for pairs in product(*((letter, _OPPOSITE[letter]) for letter in letters)):
        yield "".join(pairs)


def turned(subject: Subject, given: Reading, axes: Iterable[int | None]) -> Iterator[Reading]:
    """The same with its axes in every order and direction, cut into slices along each of the axes; None for volumes."""
    own = axcodes(subject.scan.affine)
    for axis, letters in product(axes, permutations(own)):
        for codes in flipped("".join(letters)):
            # The direction of the slice axis, and its place, mean nothing to slices.
            if axis is None or codes[axis] == own[axis]:
                yield replace(given, orientation=codes, slice_axis=None if axis is None else "ijk"[axis])


def scalings(subject: Subject) -> list[str]:
    """Short forms of the scalings that are worth a try for these scans."""
    if subject.card.intensity is not None and subject.card.intensity.kind == "members":
        return []  # Each of an ensemble has its own.
    lowest = min(float(scan.data.min()) for scan in subject.scans)
    return [text for text in SCALINGS if lowest < -300 or not text.startswith("window")]
