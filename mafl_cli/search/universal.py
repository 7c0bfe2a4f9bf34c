"""One change for many scans: found on some of them together, so that each draws its target.

A universal perturbation (Moosavi-Dezfooli et al., CVPR 2017) by stochastic gradient steps on the sum of the losses of a
few scans at a time (Shafahi et al., AAAI 2020); here with a target for each scan, and any mask loss and step in a ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mafl_cli.config import AttackConfig
from mafl_cli.errors import UsageError
from mafl_cli.field.carry import Carry
from mafl_cli.field.field import Field
from mafl_cli.field.preprocess import per_channel
from mafl_cli.search import steps
from mafl_cli.search.descent import Descent
from mafl_cli.search.goals import Goal, Verdict
from mafl_cli.search.limits import Ball, Limits
from mafl_cli.search.loop import StepRecord
from mafl_cli.search.lowfreq import low_pass
from mafl_cli.search.moves import Now
from mafl_cli.search.terms import Terms, without_low_frequency

TOGETHER = 4
"""Scans whose losses are added up for one step of the change."""
_JUDGED = 5
"""How often all scans are asked about the change as it is; the best of these is kept."""


@dataclass
class Piece:
    """Some samples of one scan, and the way of the shared change to them.

    field: the attacked function, with the statistics of the scan as it was last changed. clean: (b, C, *spatial),
    native units. limits: of these samples, with the ball. scale: (C,), native units per unit of the shared change.
    """

    field: Field
    clean: Tensor
    limits: Limits
    terms: Terms
    goal: Goal
    carry: Carry
    rows: Tensor
    scale: Tensor

    @staticmethod
    def of(
        field: Field, clean: Tensor, target: Tensor, limits: Limits, config: AttackConfig, carry: Carry, rows: Tensor
    ) -> Piece:
        """The samples `rows` of a scan. clean, target: of these samples, as `search.loop.attack` has them.

        limits: of the same samples, without the ball.
        """
        before = replace(field.predict(clean), features=())
        terms = Terms.of(config, field, before, target, None, overlapping=target.ndim == clean.ndim)
        goal = terms.goal(before.logits.shape[1])
        scale = limits.ruler(config)
        return Piece(field, clean, limits.within(config), terms, goal, carry, rows, scale)

    def changed(self, delta: Tensor) -> Tensor:
        """The samples with the shared change (C, I, J, K), as they would be written: native units."""
        share = per_channel(self.scale / self.limits.unit, self.clean)
        own = torch.arange(len(self.clean), device=self.clean.device)
        return self.limits.project(self.clean, self.carry(delta, self.rows) * share, own)

    def slope(self, delta: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and its slope by the shared change, (C, I, J, K). progress: in [0, 1)."""
        own = torch.arange(len(self.clean), device=self.clean.device)
        slopes = self.field.slopes(
            self.changed(delta), self.terms.losses(own, progress=progress, gain=None, apart=False)
        )
        # Rounding and the ends of the box are straight-through, as in the search of one scan.
        free = per_channel(self.scale, self.clean) * ~self.limits.frozen
        return slopes.values[0].sum(), self.carry.back(steps.finite(slopes.gradients[0]) * free, self.rows)

    def verdict(self, delta: Tensor) -> Verdict:
        """What the samples draw with the shared change."""
        return self.goal.judge_prediction(self.field.predict(self.changed(delta)))


@dataclass(frozen=True)
class Universal:
    """What was found. delta: (C, I, J, K), in the unit of `eps`. score: mean over the scans, see `goals.Verdict`.

    passes: forward and backward passes of each scan's samples, one entry per scan.
    """

    delta: Tensor
    score: float
    passes: tuple[tuple[int, int], ...]


def require_possible(config: AttackConfig) -> None:
    """Raise UsageError for settings that a change for many scans cannot have."""
    if config.eps is None:
        raise UsageError("`universal` needs a limit, which one change for many scans shares: give `eps`.")
    if config.step not in ("constant", "cosine") or config.step_size is not None:
        raise UsageError(
            f"`universal` takes the steps of a ball, which `method` {config.method} does not: choose mifgsm, pgd, "
            "segpgd or cospgd, without `step_size`."
        )
    if config.feature_weight > 0:
        raise UsageError("`universal` does not have a feature term: set `feature_weight` to 0.")


def search(
    scans: Sequence[Sequence[Piece]],
    shape: tuple[int, ...],
    config: AttackConfig,
    *,
    spacing: tuple[float, ...] | None = None,
    renew: Callable[[Tensor], None] = lambda delta: None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> Universal:
    """Find one change, in the ball of `config`, with which the scans draw their targets.

    Each of the steps takes all scans once, a few at a time, in an order that the seed draws; the change moves after
    every few. So `config.steps` counts forward passes of each scan, as everywhere.

    Args:
        scans: the pieces of each, at least one scan. shape: (C, I, J, K) of the change.
        spacing: mm along the grid, see `search.lowfreq.low_pass`.
        renew: told the change before the scans are judged, to bring the statistics of each up to date.
        on_step: called after each step.
    Raises: UsageError as `require_possible`.
    """
    require_possible(config)
    assert config.eps is not None
    device = scans[0][0].clean.device
    delta = torch.zeros(1, *shape, device=device)
    radius = torch.full((shape[0],), config.eps, device=device)
    ones = torch.ones_like(radius)
    limits = Limits(-radius, radius, ones, torch.zeros_like(delta, dtype=torch.bool), ball=Ball(radius, config.norm))
    assert limits.ball is not None
    few = min(TOGETHER, len(scans))
    moves = math.ceil(len(scans) / few)
    whole = config.steps * moves
    low = partial(low_pass, levels=config.low_frequency_levels, spacing=spacing)
    rule = Descent(replace(config, steps=whole), limits, delta, low)
    if config.random_start:
        delta = without_low_frequency(limits.ball.draw(delta, config.seed), config, low)
    order = torch.Generator().manual_seed(config.seed)
    passes = [[0, 0] for _ in scans]
    verdict = _nothing(device)
    best, best_score = delta.clone(), -math.inf
    for step in range(config.steps):
        turn = torch.randperm(len(scans), generator=order).tolist()
        total = torch.zeros((), device=device)
        for move in range(moves):
            now_at = step * moves + move
            gradient = torch.zeros_like(delta)
            for number in turn[move * few : (move + 1) * few]:
                for piece in scans[number]:
                    loss, slope = piece.slope(delta[0], now_at / whole)
                    gradient[0] += slope
                    total += loss.to(total)
                    passes[number] = [count + len(piece.rows) for count in passes[number]]
            delta = _moved(delta, gradient, rule, now_at, whole, total, verdict, config)
            delta = limits.ball.clip(without_low_frequency(delta, config, low))
        if (step + 1) * _JUDGED // config.steps > step * _JUDGED // config.steps:
            renew(delta[0])
            verdict = _judged(scans, delta[0], passes)
            # Of two that are as good, the later one has the larger lead.
            if float(verdict.score.mean()) >= best_score:
                best, best_score = delta.clone(), float(verdict.score.mean())
            if config.after_goal == "stop" and bool(verdict.reached.all()):
                break
        if on_step is not None:
            means = (verdict.reached.float().mean(), verdict.score.mean(), steps.length(delta)[0], total / len(scans))
            on_step(StepRecord(step, *(float(mean) for mean in means)))
    return Universal(best[0], best_score, tuple((forward, backward) for forward, backward in passes))


def _nothing(device: torch.device) -> Verdict:
    """Before anything was judged."""
    zero = torch.zeros(1, device=device)
    return Verdict(zero, zero, zero, zero > 0)


def _moved(
    delta: Tensor,
    gradient: Tensor,
    rule: Descent,
    now_at: int,
    whole: int,
    loss: Tensor,
    verdict: Verdict,
    config: AttackConfig,
) -> Tensor:
    """The change after a step."""
    only = torch.zeros(1, dtype=torch.int64, device=delta.device)
    size = steps.length(delta)
    ever = torch.zeros(1, dtype=torch.bool, device=delta.device)
    return rule.step(Now(only, now_at, whole, delta, size, delta.clone(), loss[None], gradient, verdict, ever))


def _judged(scans: Sequence[Sequence[Piece]], delta: Tensor, passes: list[list[int]]) -> Verdict:
    """The verdict of each scan, the mean over its samples; the goal is that of all of them."""
    found: list[Verdict] = []
    for number, pieces in enumerate(scans):
        parts = [piece.verdict(delta) for piece in pieces]
        passes[number][0] += sum(len(piece.rows) for piece in pieces)
        iou, hit, removal = (
            torch.cat([getattr(part, name) for part in parts]).mean() for name in ("iou", "hit", "removal")
        )
        found.append(Verdict(iou, hit, removal, torch.cat([part.reached for part in parts]).all()))
    iou, hit, removal, reached = (
        torch.stack([getattr(each, name) for each in found]) for name in ("iou", "hit", "removal", "reached")
    )
    return Verdict(iou, hit, removal, reached)
