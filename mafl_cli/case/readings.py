"""Does the network see what it was trained on? The same scan read in other ways, and what the network draws then.

A *reading* is how a scan becomes the input of a network: order and direction of its axes, the axis of slices,
scaling of intensities, order of channels. A wrong one seldom fails: the network draws something, and the attack on it
says nothing about the network. With a mask of what should be drawn each reading has an agreement, and the right one
stands out; a wrong direction of an axis along which a body looks the same may not matter, and then shows none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.subject import Subject, counted, grids_of
from mafl_cli.classes import Classes, Labels, in_any_map
from mafl_cli.config import SliceAxisChoice
from mafl_cli.errors import InputError, ModelError
from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.samples import stacked
from mafl_cli.network.card import ModelCard
from mafl_cli.network.intensity import Intensity
from mafl_cli.scans.geometry import axcodes

SCALINGS = (
    *("none", "minmax", "zscore", "zscore-nonzero", "percentile:0.5,99.5"),
    *("window:-160,240", "window:-57,164", "window:-1000,1000"),
)
"""Short forms of the intensity scalings that are tried; windows only where values may be HU."""
SLICES, EDGE, CHANNELS = 4, 96, 3
"""Slices that are looked at; voxels of a volume along each axis, at least; most channels whose order is tried."""
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
DIVISOR = 32
"""Sizes that nearly every network takes are multiples of this."""
DOUBTFUL, PLAUSIBLE = 0.3, 0.5
"""Agreement below which other readings are worth a try, and from which a reading is taken for right."""
BETTER, NEARLY = 2.0, 0.9
"""How many times the agreement of a reading another one must have to be better, and from which share of the best it is
nearly as good."""


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


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A reading, and what the network drew.

    agreement: mean Dice with the mask over the classes that it has, 0 to 1, in the part that was looked at; given: that
    of the reading that was asked for, in the same part. voxels: drawn as foreground there.
    """

    reading: Reading
    agreement: float
    given: float
    voxels: int

    @property
    def is_better(self) -> bool:
        """Whether it makes markedly more sense than the reading that was asked for."""
        return self.agreement >= PLAUSIBLE and self.agreement >= BETTER * self.given


@dataclass(frozen=True, kw_only=True)
class Readings:
    """The reading that was asked for, the others, best first, and the part of the scan that was looked at, in words."""

    given: Tried
    others: tuple[Tried, ...]
    part: str

    @property
    def better(self) -> Tried | None:
        """A reading that makes markedly more sense than the given one, if there is one."""
        better = [tried for tried in self.others if tried.is_better]
        if not better:
            return None
        # What changes least of those that are nearly as good: a flip that hardly matters is none to advise.
        enough = NEARLY * max(tried.agreement for tried in better)
        good = (tried for tried in better if tried.agreement >= enough)
        return min(good, key=lambda tried: (tried.reading.changes(self.given.reading), -tried.agreement))

    def facts(self, most: int = 12) -> dict[str, Any]:
        """JSON-ready, the best of the others alone."""
        better = self.better
        return {
            "part": self.part,
            "given": _facts(self.given),
            "others": [_facts(tried) for tried in self.others[:most]],
            "better": None if better is None else better.reading.options(self.given.reading),
        }


def _facts(tried: Tried) -> dict[str, Any]:
    reading = tried.reading
    return {
        "orientation": reading.orientation,
        "slice_axis": reading.slice_axis,
        "intensity": reading.intensity or "as the card says",
        "channels": [n + 1 for n in reading.order],
        "agreement": round(tried.agreement, 4),
        "given_there": round(tried.given, 4),
        "foreground_voxels": tried.voxels,
    }


def is_doubtful(drawn: Labels, wanted: Labels, classes: Classes) -> bool:
    """Whether a clean prediction has so little in common with a target that it should be asked why.

    A target that leaves out or moves what is there has little in common with it too; so this is but the reason to try
    other readings, and none of them agrees better then.
    """
    return bool(in_any_map(wanted > 0, axis=0).any()) and _agreement(drawn, wanted, classes) < DOUBTFUL


def try_readings(subject: Subject, drawn: Labels, wanted: Labels, *, thorough: bool) -> Readings:
    """Let the network draw a part of the scan, read in every way that is common.

    Args:
        drawn: labels (M, I, J, K) that it draws on all of the scan as it is read now.
        wanted: likewise, what it should draw, with some foreground.
        thorough: slices in all three planes, and volumes in all 48 orders and directions if need be.
    Raises: InputError where the mask has no foreground.
    """
    foreground = in_any_map(wanted > 0, axis=0)
    if not foreground.any():
        raise InputError("the mask labels nothing: give one that has what the model should draw.")
    parts = _Parts(subject, drawn, wanted, foreground)
    given = _given(subject)
    seen = {given: parts.tried(given)}

    def try_all(readings: Iterable[Reading]) -> None:
        for reading in readings:
            if reading in seen:
                continue
            try:
                seen[reading] = parts.tried(reading)
            except (InputError, ModelError):
                continue  # No such scaling of this scan is possible, or the network takes no such size.

    orders = permutations(given.order) if len(given.order) <= CHANNELS else [given.order]
    scalings = (None, *_scalings(subject))
    try_all(replace(given, order=order, intensity=text) for order, text in product(orders, scalings))
    best = max(seen.values(), key=lambda tried: tried.agreement).reading
    if subject.layout.sliced:
        try_all(_turned(subject, best, range(3) if thorough else [subject.slices.index]))
    else:
        # Volumes take their time: the orders of the axes, then the directions in the best of them.
        try_all(replace(best, orientation="".join(letters)) for letters in permutations(best.orientation))
        best = max(seen.values(), key=lambda tried: tried.agreement).reading
        try_all(replace(best, orientation=codes) for codes in _flipped(best.orientation))
        if thorough and max(tried.agreement for tried in seen.values()) < PLAUSIBLE:
            try_all(_turned(subject, best, [None]))
    others = sorted((tried for tried in seen.values() if tried.reading != given), key=lambda tried: -tried.agreement)
    return Readings(given=seen[given], others=tuple(others), part=parts.words)


class _Parts:
    """The part of a scan that is looked at: some slices along each axis, or a box."""

    def __init__(self, subject: Subject, given: Labels, wanted: Labels, foreground: NDArray[np.bool_]) -> None:
        self._subject, self._given, self._wanted = subject, given, wanted
        self._box = (slice(None),) * 3 if subject.layout.sliced else _box(subject, foreground)
        self._counts = [foreground.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        shape = foreground[self._box].shape
        self.words = (
            f"{counted(min(SLICES, shape[subject.slices.index]), 'slice')} along an axis"
            if subject.layout.sliced
            else f"{' x '.join(map(str, shape))} voxels"
        )

    def tried(self, reading: Reading) -> Tried:
        """Raises InputError where a scaling is impossible."""
        subject = self._subject
        box = self._box
        if reading.slice_axis is not None:
            axis = "ijk".index(reading.slice_axis)
            rows = np.sort(np.argsort(-self._counts[axis], kind="stable")[:SLICES])
            box = tuple(rows if n == axis else slice(None) for n in range(3))  # type: ignore[assignment]
        else:
            axis = None
        layout = Layout.for_volume(subject.scan.affine, orientation=reading.orientation, slice_axis=axis)
        whole = [subject.scans[n].data for n in reading.order]
        data = [np.ascontiguousarray(channel[box]) for channel in whole]
        intensity = subject.card.intensity if reading.intensity is None else Intensity.parse(reading.intensity)
        assert intensity is not None
        # Statistics are those of all of the scan, as for the attack.
        preprocessing = Preprocessing.freeze(intensity, whole, subject.clean.device)
        batch = stacked(data, layout)
        shape = batch.shape[2:]
        there = replace(
            subject,
            layout=layout,
            preprocessing=preprocessing,
            grids=grids_of(subject.card, layout, subject.scan, shape),
            clean=torch.from_numpy(batch).to(subject.clean.device),
        )
        drawn = there.to_labels(_drawn(there))
        here = (slice(None), *box)
        wanted, given = self._wanted[here], self._given[here]
        return Tried(
            reading=reading,
            agreement=_agreement(drawn, wanted, subject.info.classes),
            given=_agreement(given, wanted, subject.info.classes),
            voxels=int(in_any_map(drawn > 0, axis=0).sum()),
        )


def _drawn(there: Subject) -> Tensor:
    """Labels of the batch. A part of another shape may need zeros around it that the scan did not need."""
    try:
        return there.drawn(there.clean, there.preprocessing).labels
    except ModelError:
        padded = replace(there, info=replace(there.info, divisor=DIVISOR))
        return padded.drawn(padded.clean, padded.preprocessing).labels


def _given(subject: Subject) -> Reading:
    codes = subject.card.orientation or "native"
    return Reading(
        orientation=axcodes(subject.scan.affine) if codes == "native" else codes,
        slice_axis="ijk"[subject.slices.index] if subject.layout.sliced else None,
        intensity=None,
        order=tuple(range(len(subject.scans))),
    )


def _flipped(letters: str) -> Iterator[str]:
    """The axes of axcodes in every direction: eight."""
    for pairs in product(*((letter, _OPPOSITE[letter]) for letter in letters)):
        yield "".join(pairs)


def _turned(subject: Subject, given: Reading, axes: Iterable[int | None]) -> Iterator[Reading]:
    """The same with its axes in every order and direction, cut into slices along each of the axes; None for volumes."""
    own = axcodes(subject.scan.affine)
    for axis, letters in product(axes, permutations(own)):
        for codes in _flipped("".join(letters)):
            # The direction of the slice axis, and its place, mean nothing to slices.
            if axis is None or codes[axis] == own[axis]:
                yield replace(given, orientation=codes, slice_axis=None if axis is None else "ijk"[axis])


def _scalings(subject: Subject) -> list[str]:
    if subject.card.intensity is not None and subject.card.intensity.kind == "members":
        return []  # Each of an ensemble has its own.
    lowest = min(float(scan.data.min()) for scan in subject.scans)
    return [text for text in SCALINGS if lowest < -300 or not text.startswith("window")]


def _box(subject: Subject, foreground: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The box of what is wanted, as large as a window at least."""
    edges = (EDGE,) * 3
    if subject.tiling is not None:
        edges = tuple(max(EDGE, max(subject.tiling.roi)) for _ in range(3))  # type: ignore[assignment]
    found = []
    for axis, least in enumerate(edges):
        places = np.flatnonzero(foreground.any(axis=tuple({0, 1, 2} - {axis})))
        size, middle = foreground.shape[axis], int(places[0] + places[-1] + 1) // 2
        length = min(size, max(least, int(places[-1] - places[0]) + 1))
        low = min(max(middle - length // 2, 0), size - length)
        found.append(slice(low, low + length))
    return found[0], found[1], found[2]


def _agreement(drawn: Labels, wanted: Labels, classes: Classes) -> float:
    """Mean Dice over the foreground classes that are wanted."""
    found = []
    for each in classes.foreground:
        one, other = drawn[each.map] == each.value, wanted[each.map] == each.value
        size = int(other.sum())
        if size:
            found.append(2 * int((one & other).sum()) / (int(one.sum()) + size))
    return float(np.mean(found)) if found else 0.0
