"""A targeted search that sees nothing of a model but the labels that it draws: no gradient, no logits.

It begins at a change that another model's attack has found, or at none. A trial changes a block around
a voxel that is not at its target yet: the change is made larger or smaller there, moved towards the mean intensity of
the class that is wanted, or gets a random stripe. What raises the score is kept; at the goal, what is shorter and still
there. This search is ours.

A query asks for a whole batch. Samples, slices or one volume, are judged each on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.field.preprocess import per_channel
from mafl_cli.search.asking import HALVINGS, Ask, Asking, LabelOnly, stripes_of
from mafl_cli.search.goals import Goal
from mafl_cli.search.limits import Limits
from mafl_cli.search.loop import StepRecord

_SCALES = (1.25, 1.5, 2.0, 3.0)
"""Multiples of a start that are tried first: what fools another model is often too short for this one."""
_PAINTS = (0.25, 0.5, 1.0)
"""Shares of the way to the intensity of the wanted class that are tried first."""
_SMALLEST = 4
"""Side of the smallest block, voxels."""


def aim(
    ask: Ask,
    clean: Tensor,
    labels: Tensor,
    target: Tensor,
    limits: Limits,
    goal: Goal,
    *,
    queries: int,
    start: Tensor | None = None,
    seed: int = 0,
    on_query: Callable[[StepRecord], None] | None = None,
) -> LabelOnly:
    """Make a model draw a target, see the head of this module.

    Args:
        clean, start: (B, C, *spatial), native units. labels, target: what the model draws there, and shall draw.
        queries: at most so many, at least 1. on_query: called after each.
    """
    search = Asking(ask, clean, limits, goal.judge, on_query, labels)
    trials = _Trials(search, target, seed)
    for delta, shorter in trials.all(start):
        kept = search.take(delta, shorter=shorter)
        trials.told(kept)
        if search.queries >= queries:
            break
    return search.done()


class _Trials:
    """What is tried next, as a change of all samples in model units, and whether it must be shorter."""

    def __init__(self, search: Asking, target: Tensor, seed: int) -> None:
        self.search, self.target = search, target
        self.generator = torch.Generator().manual_seed(seed)
        self.kept = torch.zeros(len(search.clean), dtype=torch.bool)
        self.paint = _paint(search, target)
        unit = per_channel(search.limits.unit, search.clean)
        spread = per_channel(search.limits.high - search.limits.low, search.clean) / unit
        # A fiftieth of the range: about what is needed to be noticed by a network.
        self.stride = (spread / 50).expand_as(search.clean)

    def told(self, kept: Tensor) -> None:
        """Which samples kept the last trial."""
        self.kept = kept

    def all(self, start: Tensor | None) -> Iterator[tuple[Tensor, bool]]:
        search = self.search
        if start is not None:
            begun = (start - search.clean) / per_channel(search.limits.unit, search.clean)
            for scale in (1.0, *_SCALES):
                yield begun * scale, False
        for share in _PAINTS:
            yield search.delta + share * self.paint, False
        low = torch.zeros(len(search.clean))
        halved = torch.zeros(len(search.clean), dtype=torch.long)
        while True:
            reached = search.verdict.reached.cpu()
            shrinking = reached & (halved < HALVINGS)
            delta = self._step(reached)
            middle = (1 + low) / 2
            if bool(shrinking.any()):
                scaled = search.delta * middle.to(search.delta).view(-1, *(1,) * (search.delta.ndim - 1))
                delta[shrinking] = scaled[shrinking]
            yield delta, bool(reached.all())
            if bool(shrinking.any()):
                kept = self.kept.cpu()
                # What is kept is the whole from now on, so the lower end moves with it.
                low = torch.where(shrinking, torch.where(kept, low / middle, middle), low)
                halved += shrinking.long()

    def _step(self, reached: Tensor) -> Tensor:
        """One block of each sample, changed in a random way."""
        search = self.search
        delta = search.delta.clone()
        wrong = search.labels != self.target
        wrong = wrong.any(1) if wrong.ndim == delta.ndim else wrong
        for row in range(len(delta)):
            done = bool(reached[row])
            places = torch.nonzero(delta[row].abs().sum(0) > 0 if done else wrong[row])
            if not len(places):
                continue
            window = self._window(places, delta.shape[2:]).to(delta)
            change = delta[row]
            kind = 0 if done else self._draw(4)
            if done:
                factor = (0.3, 0.6, 1.0)[self._draw(3)]
                delta[row] = change * (1 - factor * window)
            elif kind == 0:
                delta[row] = change * (1 + window * (0.5, 1.0, -0.5, -2.0)[self._draw(4)])
            elif kind == 1:
                delta[row] = change + window * self.paint[row] * (0.15, 0.3, 0.6, -0.3)[self._draw(4)]
            elif kind == 2:
                sign = 1.0 if self._draw(2) else -1.0
                delta[row] = change + window * sign * self.stride[row] * (1, 2, 4)[self._draw(3)]
            else:
                axis = 2 + self._draw(delta.ndim - 2)
                stripes = stripes_of(delta[row : row + 1], axis, self.generator)[0]
                delta[row] = change + window * stripes * self.stride[row] * (1, 2)[self._draw(2)]
        return delta

    def _window(self, places: Tensor, shape: torch.Size) -> Tensor:
        """Where the block is, from 0 at its border to 1 at its centre: (*spatial)."""
        centre = places[self._draw(len(places))].tolist()
        extent = int((places.amax(0) - places.amin(0)).max()) + 1
        largest = max(1, int(math.log2(max(2 * extent, 2 * _SMALLEST) / _SMALLEST)))
        side = _SMALLEST * 2 ** self._draw(largest + 1)
        window = torch.ones(())
        for axis, (middle, size) in enumerate(zip(centre, shape, strict=True)):
            far = (torch.arange(size) - middle).abs() / side
            line = torch.cos(far.clamp_max(1) * math.pi / 2) ** 2
            window = window * line.view(*(1,) * axis, -1, *(1,) * (len(shape) - axis - 1))
        return window

    def _draw(self, end: int) -> int:
        return int(torch.randint(0, end, (), generator=self.generator))


def _paint(search: Asking, target: Tensor) -> Tensor:
    """The way to the mean intensity of the wanted class where the class must change, model units; 0 elsewhere.

    Nobody knows what a class looks like that the clean prediction does not have.
    """
    clean, labels, limits = search.clean, search.labels, search.limits
    regions = target.ndim == clean.ndim
    maps = range(target.shape[1]) if regions else (0,)
    found = torch.zeros_like(clean)
    for number in maps:
        wanted, drawn = (each[:, number] if regions else each for each in (target, labels))
        must = wanted != drawn
        for value in torch.unique(wanted[must]).tolist():
            like = (drawn == value).unsqueeze(1).expand_as(clean) & ~limits.frozen
            where = (must & (wanted == value)).unsqueeze(1).expand_as(clean)
            for channel in range(clean.shape[1]):
                if bool(like[:, channel].any()):
                    mean = clean[:, channel][like[:, channel]].mean()
                    part = where[:, channel]
                    found[:, channel][part] = mean - clean[:, channel][part]
    found /= per_channel(limits.unit, clean)
    # A soft edge: a network answers to contrast at a hard one rather than to what is inside.
    blur = F.avg_pool2d if clean.ndim == 4 else F.avg_pool3d
    size = [3 if side >= 3 else 1 for side in clean.shape[2:]]
    return blur(found, size, stride=1, padding=[side // 2 for side in size])
