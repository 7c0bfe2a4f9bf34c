"""Does the network see what it was trained on? The same scan read in other ways, and what the network draws then.

A *reading* is how a scan becomes the input of a network: order and direction of its axes, the axis of slices,
scaling of intensities, order of channels. A wrong one seldom fails: the network draws something, and the attack on it
says nothing about the network. With a mask of what should be drawn each reading has an agreement, and the right one
stands out; a wrong direction of an axis along which a body looks the same may not matter, and then shows none. Without
a mask a reading has a plausibility, see `plausible`, which finds less; and what it draws must be another thing, for a
reading that changes nothing is none to advise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.plausible import Plausible, plausible
from mafl_cli.case.reading import Reading, flipped, given_reading, scalings, turned
from mafl_cli.case.subject import Subject, counted, grids_of
from mafl_cli.classes import Classes, Labels, in_any_map
from mafl_cli.errors import InputError, ModelError
from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.samples import stacked
from mafl_cli.network.intensity import Intensity

SLICES, EDGE, CHANNELS = 4, 96, 3
"""Slices that are looked at; voxels of a volume along each axis, at least; most channels whose order is tried."""
_PICTURE = 32
"""Voxels along each side of a slice from which it is a picture, and not a strip of one."""
_SHOWN = 0.15
"""Share of the brightest from which a voxel is not air."""
_LEAST_BODY = 0.05
"""Share of the part that is a body, at least: where hardly any is seen, the estimate is too rough to take air out."""
_WAYS = 3
"""Other axes, the best of them, with which all scalings and orders of channels are tried too."""
DIVISOR = 32
"""Sizes that nearly every network takes are multiples of this."""
Measure = Literal["agreement", "plausibility"]
"""What readings are compared by: with a mask, and without."""
DOUBTFUL: dict[Measure, float] = {"agreement": 0.5, "plausibility": 0.6}
"""Score below which other readings are worth a try."""
RIGHT: dict[Measure, float] = {"agreement": 0.5, "plausibility": 0.7}
"""Score from which a reading is taken for right."""
BETTER: dict[Measure, float] = {"agreement": 2.0, "plausibility": 1.5}
"""How many times the score of a reading another one must have to be better."""
NEARLY = 0.9
"""From which share of the best score another one is nearly as good."""
ALIKE = 0.8
"""Dice with what is drawn now from which a reading without a mask changes nothing."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What a network gets, and what it draws: image (H, W), model units; labels (H, W), 0 for background."""

    image: NDArray[np.float32]
    labels: NDArray[np.integer[Any]]

    @staticmethod
    def of(batch: Tensor, labels: Tensor) -> Picture:
        """The slice with most foreground of the first channel of a batch, (B, *spatial), and its labels."""
        maps = labels.amax(dim=1)
        images, drawn = (each.reshape(-1, *each.shape[-2:]).cpu() for each in (batch, maps))
        fullest = int((drawn > 0).flatten(1).sum(dim=1).argmax())
        empty = not bool(drawn[fullest].any())
        place = len(images) // 2 if empty else fullest
        return Picture(images[place].float().numpy(), drawn[place].numpy())


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A reading, and what the network drew.

    score: with a mask the mean Dice with it over the classes that it has, 0 to 1, in the part that was looked at; else
    the plausibility. given: that of the reading that was asked for, in the same part. alike: mean Dice with what that
    one draws there. nothing: whether it draws next to nothing. voxels: drawn as foreground there. picture: of a figure.
    fit: without a mask how well what reaches the norm layers fits what they remember, 0 to 1; None where none does.
    """

    reading: Reading
    measure: Measure
    score: float
    given: float
    alike: float
    nothing: bool
    voxels: int
    picture: Picture
    fit: float | None = None

    @property
    def is_better(self) -> bool:
        """Whether it makes markedly more sense than the reading that was asked for."""
        changes = self.measure == "agreement" or (self.alike < ALIKE and not self.nothing)
        return changes and self.score >= RIGHT[self.measure] and self.score >= BETTER[self.measure] * self.given


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
        enough = NEARLY * max(tried.score for tried in better)
        good = (tried for tried in better if tried.score >= enough)
        return min(good, key=lambda tried: (tried.reading.changes(self.given.reading), -tried.score))

    @property
    def said(self) -> str:
        """What came of it, in words."""
        better = self.better
        if better is None:
            return "no reading makes markedly more sense than the one it has"
        return f"more sense with {better.reading.options(self.given.reading)}".replace("`", "")

    def facts(self, most: int = 12) -> dict[str, Any]:
        """JSON-ready, the best of the others alone."""
        better = self.better
        return {
            "part": self.part,
            "given": _facts(self.given),
            "others": [_facts(tried) for tried in self.others[:most]],
            "better": None if better is None else better.reading.options(self.given.reading),
        }


def _rank(tried: Tried) -> tuple[bool, float]:
    """Drawing nothing may be right, but speaks for no reading."""
    return not tried.nothing, tried.score


def _facts(tried: Tried) -> dict[str, Any]:
    reading = tried.reading
    return {
        "orientation": reading.orientation,
        "slice_axis": reading.slice_axis,
        "intensity": reading.intensity or "as the card says",
        "channels": [n + 1 for n in reading.order],
        tried.measure: round(tried.score, 4),
        **({} if tried.measure == "agreement" else {"fit": None if tried.fit is None else round(tried.fit, 4)}),
        "given_there": round(tried.given, 4),
        "alike": round(tried.alike, 4),
        "foreground_voxels": tried.voxels,
    }


def is_doubtful(drawn: Labels, wanted: Labels, classes: Classes) -> bool:
    """Whether a clean prediction has so little in common with a target that it should be asked why.

    A target that leaves out or moves what is there has little in common with it too; so this is but the reason to try
    other readings, and none of them agrees better then.
    """
    return bool(in_any_map(wanted > 0, axis=0).any()) and agreement(drawn, wanted, classes) < DOUBTFUL["agreement"]


def looks_doubtful(subject: Subject, drawn: Labels) -> bool:
    """Whether a clean prediction is so unsure, unsteady or far from the training that others are worth a try.

    drawn: labels (M, I, J, K) on all of the scan.
    """
    tried = _Parts(subject, drawn, None).tried(given_reading(subject))
    return tried.score < DOUBTFUL["plausibility"]


def try_readings(subject: Subject, drawn: Labels, wanted: Labels | None, *, thorough: bool) -> Readings:
    """Let the network draw a part of the scan, read in every way that is common.

    Args:
        drawn: labels (M, I, J, K) that it draws on all of the scan as it is read now.
        wanted: likewise, what it should draw, with some foreground; None where nobody knows.
        thorough: volumes in all 48 orders and directions if need be.
    Raises: InputError where the mask has no foreground.
    """
    if wanted is not None and not (wanted > 0).any():
        raise InputError("the mask labels nothing: give one that has what the model should draw.")
    parts = _Parts(subject, drawn, wanted)
    given = given_reading(subject)
    seen = {given: parts.tried(given)}
    parts.own = seen[given].score

    def try_all(readings: Iterable[Reading]) -> None:
        for reading in readings:
            if reading in seen:
                continue
            try:
                seen[reading] = parts.tried(reading)
            except (InputError, ModelError):
                continue  # No such scaling of this scan is possible, or the network takes no such size.

    def best() -> Reading:
        return max(seen.values(), key=_rank).reading

    orders = permutations(given.order) if len(given.order) <= CHANNELS else [given.order]
    ways = list(product(orders, (None, *scalings(subject))))
    try_all(replace(given, order=order, intensity=text) for order, text in ways)
    if subject.layout.sliced:
        try_all(turned(subject, best(), _planes(subject)))
    else:
        # Volumes take their time: the orders of the axes, then the directions in the best of them.
        try_all(replace(best(), orientation="".join(letters)) for letters in permutations(best().orientation))
        try_all(replace(best(), orientation=codes) for codes in flipped(best().orientation))
        if thorough and max(tried.score for tried in seen.values()) < RIGHT[parts.measure]:
            try_all(turned(subject, best(), [None]))
    axes = (given.orientation, given.slice_axis)
    others = [tried for tried in seen.values() if (tried.reading.orientation, tried.reading.slice_axis) != axes]
    # What fits a scan best that is read the wrong way need not be what fits it the right way.
    for there in sorted(others, key=_rank, reverse=True)[:_WAYS]:
        try_all(replace(there.reading, order=order, intensity=text) for order, text in ways)
    ranked = sorted((tried for tried in seen.values() if tried.reading != given), key=_rank, reverse=True)
    return Readings(given=replace(seen[given], given=seen[given].score), others=tuple(ranked), part=parts.words)


class _Parts:
    """The part of a scan that is looked at: some slices along each axis, or a box.

    own: without a mask, the score of the reading that was asked for.
    """

    def __init__(self, subject: Subject, given: Labels, wanted: Labels | None) -> None:
        self._subject, self._given, self._wanted = subject, given, wanted
        self.measure: Measure = "plausibility" if wanted is None else "agreement"
        self.own = 0.0
        # Where something should be drawn, and where something is; without a mask where something is, and where the
        # scan shows something.
        drawn = in_any_map(given > 0, axis=0)
        self._seen = [drawn, self._body] if wanted is None else [in_any_map(wanted > 0, axis=0), drawn]
        self._box = (slice(None),) * 3 if subject.layout.sliced else self._around()
        shape = drawn[self._box].shape
        slices = SLICES * len(self._seen)
        self.words = (
            f"up to {counted(min(slices, shape[subject.slices.index]), 'slice')} along an axis"
            if subject.layout.sliced
            else f"{' x '.join(map(str, shape))} voxels"
        )

    @cached_property
    def _air(self) -> list[float]:
        """What is around the body in each channel, native units. Only plausibility asks for it, and for the body."""
        return [float(np.median(_faces(scan.data))) for scan in self._subject.scans]

    @cached_property
    def _body(self) -> NDArray[np.bool_]:
        return _content(self._subject)

    def _around(self) -> tuple[slice, slice, slice]:
        """The box of the mask; without one, a box of the least size around the middle of what is seen."""
        seen = next((each for each in self._seen if each.any()), np.ones_like(self._seen[0]))
        if self._wanted is None:
            middle = np.zeros_like(seen)
            middle[tuple(int(np.median(places)) for places in np.nonzero(seen))] = True
            seen = middle
        return _box(self._subject, seen)

    def _rows(self, axis: int) -> NDArray[np.intp]:
        """Slices along an axis: those with most of what is seen first, and some among the rest of what is seen.

        Where nothing is seen first, as many more among the rest.
        """
        others = tuple({0, 1, 2} - {axis})
        counts = [each.sum(axis=others) for each in self._seen]
        some = SLICES if counts[0].any() else 2 * SLICES
        rows = np.argsort(-counts[0], kind="stable")[: 2 * SLICES - some]
        rest = np.flatnonzero(counts[1] > 0.3 * counts[1].max())
        spread = np.linspace(0, max(len(rest) - 1, 0), some + 2).round().astype(int)[1:-1]
        return np.unique(np.concatenate([rows, rest[spread]]) if len(rest) else np.arange(min(some, len(counts[0]))))

    def tried(self, reading: Reading) -> Tried:
        """Raises InputError where a scaling is impossible."""
        subject = self._subject
        box: Any = self._box
        axis = None if reading.slice_axis is None else "ijk".index(reading.slice_axis)
        if axis is not None:
            box = tuple(self._rows(axis) if n == axis else slice(None) for n in range(3))
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
        here = (slice(None), *box)
        classes, before = subject.info.classes, self._given[here]
        fit, nothing = None, False
        if self._wanted is None:
            found = _where_it_fits(there, lambda part: self._plausible(part, reading, box))
            labels, fit, nothing = found.labels, found.fit, found.nothing
            drawn, score, given = there.to_labels(labels), found.plausibility, self.own
        else:
            labels = _where_it_fits(there, _drawn)
            drawn, wanted = there.to_labels(labels), self._wanted[here]
            score, given = agreement(drawn, wanted, classes), agreement(before, wanted, classes)
        return Tried(
            reading=reading,
            measure=self.measure,
            score=score,
            given=given,
            alike=agreement(drawn, before, classes),
            nothing=nothing,
            voxels=int(in_any_map(drawn > 0, axis=0).sum()),
            picture=Picture.of(preprocessing(there.clean)[:, 0], labels),
            fit=fit,
        )

    def _plausible(self, part: Subject, reading: Reading, box: Any) -> Plausible:
        levels = torch.tensor([self._air[n] for n in reading.order]).to(part.clean)
        air = levels.view(1, -1, *[1] * (part.clean.ndim - 2)).expand(part.clean[:1].shape).contiguous()
        return plausible(part, air, max(float(self._body[box].mean()), _LEAST_BODY))


R = TypeVar("R")


def _drawn(there: Subject) -> Tensor:
    return there.drawn(there.clean, there.preprocessing).labels


def _planes(subject: Subject) -> list[int]:
    """Axes across which a scan may be cut into slices: its own, and those across which slices are pictures."""
    shape, own = subject.scan.shape, subject.slices.index
    return [axis for axis in range(3) if axis == own or min(shape[:axis] + shape[axis + 1 :]) >= _PICTURE]


def _where_it_fits(there: Subject, ask: Callable[[Subject], R]) -> R:
    """What is asked of the part. A part of another shape may need zeros around it that the scan did not need."""
    try:
        return ask(there)
    except ModelError:
        return ask(replace(there, info=replace(there.info, divisor=DIVISOR)))


def _faces(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """The voxels of the six faces of a volume: what is around a body, mostly."""
    return np.concatenate([np.take(data, [0, -1], axis=axis).ravel() for axis in range(3)])


def _content(subject: Subject) -> NDArray[np.bool_]:
    """Where a scan is not as at its faces: a body, roughly."""
    data = subject.scan.data
    apart = np.abs(data - np.median(_faces(data)))
    found: NDArray[np.bool_] = apart > _SHOWN * np.percentile(apart, 99)
    return found


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


def agreement(drawn: Labels, wanted: Labels, classes: Classes) -> float:
    """Mean Dice over the foreground classes that are wanted."""
    found = []
    for each in classes.foreground:
        one, other = drawn[each.map] == each.value, wanted[each.map] == each.value
        size = int(other.sum())
        if size:
            found.append(2 * int((one & other).sum()) / (int(one.sum()) + size))
    return float(np.mean(found)) if found else 0.0
