"""What searches by labels alone share: what was asked, and the best of each sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mafl_cli.field.preprocess import per_channel
from mafl_cli.search import steps
from mafl_cli.search.goals import Verdict
from mafl_cli.search.limits import Limits
from mafl_cli.search.loop import StepRecord

Ask = Callable[[Tensor], Tensor]
"""(B, C, *spatial), native units -> labels: (B, *spatial), or (B, R, *spatial) for regions that may overlap."""

HALVINGS = 6
"""Queries for the shortest multiple of a change that reaches the goal."""
_LEAD = 1e-3
"""Weight of IoU, hit rate and removal together beside the least of them, among trials that it does not tell apart."""


@dataclass(frozen=True)
class LabelOnly:
    """What a search found: samples (B, C, *spatial), native, their labels, verdict and length (B,), model units.

    records: of the clean samples, and after each query, means over the samples: score and length of the best so far.
    """

    adversarial: Tensor
    labels: Tensor
    verdict: Verdict
    l2: Tensor
    records: tuple[StepRecord, ...]


class Asking:
    """The best of each sample, and what was asked."""

    def __init__(
        self,
        ask: Ask,
        clean: Tensor,
        limits: Limits,
        judge: Callable[[Tensor], Verdict],
        on_query: Callable[[StepRecord], None] | None,
        labels: Tensor,
    ) -> None:
        self.ask, self.clean, self.limits, self._judge, self._on_query = ask, clean, limits, judge, on_query
        self.rows = torch.arange(len(clean), device=clean.device)
        self.delta, self.x, self.labels = torch.zeros_like(clean), clean.clone(), labels.clone()
        self.verdict = judge(labels)
        self.l2 = torch.zeros(len(clean), device=clean.device)
        self.records: list[StepRecord] = []
        self._record()

    @property
    def queries(self) -> int:
        """How many were asked; that of the clean samples is the caller's."""
        return len(self.records) - 1

    def take(self, delta: Tensor, *, shorter: bool = False) -> Tensor:
        """Ask for clean + delta, model units, and keep it where it is better.

        shorter: only where the goal is reached by a shorter change; else where the score rises, or is the same by a
        shorter change.
        Returns: bool (B,), which samples kept it.
        """
        x = self.limits.project(self.clean, delta, self.rows)
        moved = (x - self.clean) / per_channel(self.limits.unit, x)
        l2 = steps.length(moved)
        labels = self.ask(x)
        verdict = self._judge(labels)
        was, now = _rank(self.verdict), _rank(verdict)
        better = (verdict.reached & (l2 < self.l2)) if shorter else (now > was) | ((now == was) & (l2 < self.l2))
        better &= verdict.reached | ~self.verdict.reached
        for mine, new in ((self.delta, moved), (self.x, x), (self.labels, labels), (self.l2, l2)):
            mine[better] = new[better].to(mine)
        self.verdict = Verdict(
            *(
                torch.where(better, new, old)
                for new, old in (
                    (verdict.iou, self.verdict.iou), (verdict.hit, self.verdict.hit),
                    (verdict.removal, self.verdict.removal), (verdict.reached, self.verdict.reached),
                )
            )
        )  # fmt: skip
        self._record()
        return better

    def shorten(self, queries: int) -> None:
        """Find the shortest multiple of each change that still reaches the goal, by bisection."""
        whole, low = self.delta.clone(), torch.zeros_like(self.l2)
        high = torch.ones_like(low)
        for _ in range(min(HALVINGS, queries - self.queries) if bool(self.verdict.reached.any()) else 0):
            middle = (low + high) / 2
            kept = self.take(whole * steps.spread_out(middle, whole), shorter=True)
            low, high = torch.where(kept, low, middle), torch.where(kept, middle, high)

    def _record(self) -> None:
        reached, score, l2 = (
            float(each.double().mean()) for each in (self.verdict.reached, self.verdict.score, self.l2)
        )
        self.records.append(StepRecord(len(self.records), reached, score, l2, math.nan))
        if self._on_query is not None and self.queries:
            self._on_query(self.records[-1])

    def done(self) -> LabelOnly:
        return LabelOnly(self.x, self.labels, self.verdict, self.l2, tuple(self.records))


def _rank(verdict: Verdict) -> Tensor:
    return verdict.score + _LEAD * (verdict.iou + verdict.hit + verdict.removal) / 3


def stripes_of(like: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """Random signs that vary along one axis alone, other ones for each sample and channel."""
    shape = [1] * like.ndim
    shape[0], shape[1], shape[axis] = like.shape[0], like.shape[1], like.shape[axis]
    drawn = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return drawn.to(like).expand_as(like).clone()
