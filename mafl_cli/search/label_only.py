"""An untargeted search that sees nothing of a model but the labels that it draws: no gradient, no logits.

DLA (query-efficient decision-based attacks on semantic segmentation, arXiv 2402.01220).
The change is +eps or -eps everywhere, at first in stripes: its sign is constant along an axis. A fifth of the queries
tries random stripes, along one axis and another in turn; then the sign is turned round in halves, quarters, ... of the
part around what the model draws, and a turn is kept where the overlap with the clean prediction falls. Ours: the first
tries bring what the model draws and what is around it nearer to each other, farther apart, and all of it up or down;
blocks are those of that part alone; and at the goal the change is made shorter by bisection.

A query asks for a whole batch. Samples, slices or one volume, are judged each on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, pairwise, product
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.search.asking import Ask, Asking, LabelOnly, stripes_of
from mafl_cli.search.goals import Verdict
from mafl_cli.search.limits import Limits
from mafl_cli.search.loop import StepRecord

Box = tuple[slice, ...]

_RANDOM_SHARE, _ENOUGH = 5, 50
"""One of so many queries is a random try, as in the paper; of no more than its tables have."""
_BORDER = 2
"""Voxels by which the border between what is drawn and what is around it is moved outwards and inwards."""
_MARGIN = 16
"""Voxels around what the model draws that belong to the part whose signs are turned: networks see about so far."""


@dataclass(frozen=True)
class Spoilt:
    """How far the labels of samples are from the clean prediction: the goal of an untargeted attack.

    clean: (B, *spatial) or (B, R, *spatial). classes: how many there are; 2 for regions. dice: what a sample's Dice
    must have fallen to, mean over the foreground classes that its clean prediction has.
    """

    clean: Tensor
    classes: int
    dice: float
    overlapping: bool = False

    def dice_of(self, labels: Tensor, *, together: bool = False) -> Tensor:
        """(B,), in [0, 1]; together: (1,), all samples as one. 1 where neither has foreground, 0 where only one has."""
        labels = labels.reshape(self.clean.shape)
        values = (1,) if self.overlapping else range(1, self.classes)
        sums = []
        for value in values:
            was, now = self.clean == value, labels == value
            parts = torch.stack([was & now, was, now]).flatten(3 if self.overlapping else 2).sum(-1).double()
            sums.append(parts if self.overlapping else parts[..., None])
        both, was, now = torch.cat(sums, dim=-1)
        if together:
            both, was, now = (each.sum(0, keepdim=True) for each in (both, was, now))
        has = was > 0
        dice = torch.where(has, 2 * both / (was + now).clamp_min(1), 0.0)
        empty = (now.sum(-1) == 0).double()
        return torch.where(has.any(-1), dice.sum(-1) / has.sum(-1).clamp_min(1), empty)

    def judge(self, labels: Tensor) -> Verdict:
        """The score is 1 - Dice, as a hit rate."""
        return self._verdict(self.dice_of(labels))

    def judge_together(self, labels: Tensor) -> tuple[Verdict, Verdict]:
        """What `judge` says, and what it would say of all samples as one."""
        return self.judge(labels), self._verdict(self.dice_of(labels, together=True))

    def _verdict(self, dice: Tensor) -> Verdict:
        one = torch.ones_like(dice)
        return Verdict(one, 1 - dice, one, dice <= self.dice)


def spoil(
    ask: Ask,
    clean: Tensor,
    labels: Tensor,
    limits: Limits,
    goal: Spoilt,
    *,
    queries: int,
    seed: int = 0,
    stop: bool = True,
    on_query: Callable[[StepRecord], None] | None = None,
) -> LabelOnly:
    """Make a model draw something else than on the clean samples, see the head of this module.

    Args:
        clean: (B, C, *spatial), native units. labels: what the model draws there.
        limits: with a ball, in which the change is as large as it can be.
        queries: at most so many, at least 1. stop: at the goal of all samples; else all are used.
        on_query: called after each.
    """
    assert limits.ball is not None
    search = Asking(ask, clean, limits, goal.judge, on_query, labels)
    radius = (limits.ball.radius / limits.unit).view(1, -1, *(1,) * (clean.ndim - 2))
    generator = torch.Generator().manual_seed(seed)
    if bool(search.verdict.reached.all()) and stop:
        return search.done()
    signs = torch.zeros_like(clean)
    tries = max(2, min(queries, _ENOUGH) // _RANDOM_SHARE)
    part = _around(goal.clean > 0, clean)
    trials = _trials(signs, _first(clean, goal.clean), part, tries, generator)
    for trial in trials:
        better = search.take(trial * radius)
        signs[better] = trial[better]
        if search.queries >= queries or (stop and bool(search.verdict.reached.all())):
            break
    if stop:
        search.shorten(queries)
    return search.done()


def _trials(
    signs: Tensor, first: Sequence[Tensor], part: Box, tries: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Signs to try, (B, C, *spatial); `signs` holds the best so far. first: what is tried first. part: where signs are
    turned round."""
    axes = cycle(range(2, signs.ndim))
    for number in range(tries):
        yield first[number] if number < len(first) else stripes_of(signs, next(axes), generator)
    for level in count(1):
        blocks = _blocks(part, level)
        if not blocks:  # Every voxel has been turned: begin anew, with stripes in the place of turns.
            yield stripes_of(signs, next(axes), generator)
            continue
        for block in blocks:
            where: tuple[EllipsisType | slice, ...] = (..., *block)
            turned = signs.clone()
            turned[where] *= -1
            yield turned


def _first(clean: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The signs that are tried first, (B, C, *spatial) each."""
    inside = _inside(labels, clean)
    contrast = _contrast(clean, inside)
    outwards, inwards = (_contrast(clean, _grown(inside, by)) for by in (_BORDER, -_BORDER))
    one = torch.ones_like(clean)
    return contrast, outwards, inwards, -contrast, one, -one


def _inside(labels: Tensor, clean: Tensor) -> Tensor:
    """Where any class is drawn, bool (B, 1, *spatial)."""
    drawn = labels > 0
    return (drawn if drawn.ndim == clean.ndim else drawn.unsqueeze(1)).any(1, keepdim=True)


def _grown(inside: Tensor, by: int) -> Tensor:
    """A mask with so many voxels more on each side, or less."""
    pool = F.max_pool2d if inside.ndim == 4 else F.max_pool3d
    if by < 0:
        return ~_grown(~inside, -by)
    return pool(inside.float(), 2 * by + 1, 1, by) > 0


def _contrast(clean: Tensor, inside: Tensor) -> Tensor:
    """Signs that bring a mask and what is around it nearer to each other: (B, C, *spatial), 1 or -1."""
    around = _grown(inside, _MARGIN) & ~inside

    def mean(where: Tensor) -> Tensor:
        # 0 is as a rule what lies outside the body, or was cut off.
        there = where & (clean != 0)
        return (clean * there).flatten(2).sum(-1) / there.flatten(2).sum(-1).clamp_min(1)

    up = torch.where(mean(inside) < mean(around), 1.0, -1.0).to(clean).view(*clean.shape[:2], *(1,) * (clean.ndim - 2))
    return torch.where(inside, up, -up)


def _around(where: Tensor, clean: Tensor) -> Box:
    """The part of the spatial axes that holds what is true in any sample, and a margin; all if nothing is."""
    spatial = clean.ndim - 2
    flat = where.flatten(0, where.ndim - spatial - 1).any(0)
    box = []
    for axis in range(spatial):
        others = [other for other in range(spatial) if other != axis]
        there = torch.nonzero(flat.amax(dim=others) if others else flat).flatten()
        size = flat.shape[axis]
        first, last = (0, size) if not len(there) else (int(there[0]) - _MARGIN, int(there[-1]) + 1 + _MARGIN)
        box.append(slice(max(0, first), min(size, last)))
    return tuple(box)


def _blocks(part: Box, level: int) -> list[Box]:
    """The part halved `level` times, each time along the side that is longest by then; none where no voxel is left."""
    parts = [1] * len(part)
    sides = [each.stop - each.start for each in part]
    for _ in range(level):
        longest = max(range(len(part)), key=lambda axis: sides[axis] / parts[axis])
        parts[longest] *= 2
        if parts[longest] > sides[longest]:
            return []
    cuts = []
    for each, side, number in zip(part, sides, parts, strict=True):
        ends = [each.start + side * n // number for n in range(number + 1)]
        cuts.append([slice(a, b) for a, b in pairwise(ends)])
    return list(product(*cuts))
