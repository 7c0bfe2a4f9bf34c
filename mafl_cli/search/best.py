"""The best iterate of each sample so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mafl_cli.config import AttackConfig
from mafl_cli.field.field import Field
from mafl_cli.field.preprocess import per_channel
from mafl_cli.network.prediction import Prediction
from mafl_cli.search import steps
from mafl_cli.search.goals import SLACK, Verdict
from mafl_cli.search.limits import Limits
from mafl_cli.search.ruler import Ruler


def finished(best: Best, rows: Tensor, config: AttackConfig, *, late: bool) -> Tensor:
    """Which samples need no further step, bool (b,).

    late: the second half of the steps. Earlier it is too early to tell whether a change still shrinks: with long
    steps the target is lost and won back for a while.
    """
    if config.after_goal == "stop":
        return best.reached[rows]
    worn_out = best.since[rows] >= config.patience
    return worn_out & (late and config.after_goal == "shrink")


@dataclass
class Best:
    """The best iterate of each sample so far, and how many steps ago it last got clearly better.

    Among iterates at the goal, one percent of the target more is worth 20 percent of length up to `aim`, and 0.2
    percent beyond it. mark: that cost when it last got clearly better, so that small gains add up to a clear one.
    size: of the change in the coordinates of the ruler, which is what counts; l2: in model units.
    bounded: within a ball a change that moves the prediction nowhere is kept rather than none, for it shows that
    something was tried.
    """

    x: Tensor
    iou: Tensor
    hit: Tensor
    removal: Tensor
    reached: Tensor
    l2: Tensor
    size: Tensor
    cost: Tensor
    mark: Tensor
    since: Tensor
    aim: float
    bounded: bool

    @staticmethod
    def at(clean: Tensor, verdict: Verdict, aim: float, *, bounded: bool) -> Best:
        none = torch.zeros(len(clean), device=clean.device)
        parts = (verdict.iou, verdict.hit, verdict.removal, verdict.reached)
        sizes = (none, none.clone(), none.clone(), none.clone())
        return Best(clean.clone(), *parts, *sizes, torch.zeros_like(none).long(), aim, bounded)

    def verdict(self) -> Verdict:
        return Verdict(self.iou, self.hit, self.removal, self.reached)

    def update(self, rows: Tensor, x: Tensor, verdict: Verdict, size: Tensor, l2: Tensor) -> None:
        """Take over what is better: reached before not reached, then cheaper, else closer to the goal."""
        was = Verdict(self.iou[rows], self.hit[rows], self.removal[rows], self.reached[rows])
        short, before = self.aim - verdict.score, self.size[rows]
        cost = size * (1 + torch.where(short > 0, 20 * short, 0.2 * short))
        cheaper = cost < self.cost[rows]
        smaller = (size < before) if not self.bounded else (size > 0) & ((size < before) | (before == 0))
        closer = (verdict.score > was.score) | ((verdict.score == was.score) & smaller)
        better = torch.where(was.reached, verdict.reached & cheaper, verdict.reached | closer)
        clearly = better & (~was.reached | (cost < 0.995 * self.mark[rows]))
        self.mark[rows] = torch.where(clearly, cost, self.mark[rows])
        # Patience counts only once the goal is reached: before that every step is worth taking.
        self.since[rows] = torch.where(clearly | ~(was.reached | verdict.reached), 0, self.since[rows] + 1)
        # On a GPU each use of a mask as an index waits for the step to end, and a use of numbers does not.
        won = torch.nonzero(better).flatten()
        taken = rows[won]
        self.x[taken], self.cost[taken] = x[won], cost[won]
        self.size[taken], self.l2[taken] = size[won], l2[won]
        self.iou[taken], self.hit[taken] = verdict.iou[won], verdict.hit[won]
        self.removal[taken], self.reached[taken] = verdict.removal[won], verdict.reached[won]


def search_scale(
    field: Field,
    clean: Tensor,
    judge: Callable[[Tensor, Prediction], Verdict],
    limits: Limits,
    passes: int,
    best: Best,
    ruler: Ruler,
) -> int:
    """Bisect the scale of each best perturbation between nothing and itself; returns the forward passes used.

    A scale will do that draws no less of the target, or meets the aim. judge: of some samples, by their numbers.
    """
    rows = torch.nonzero(best.reached & (best.l2 > 0)).flatten()
    if not len(rows) or not passes:
        return 0
    origin = clean[rows]
    found = (best.x[rows] - origin) / per_channel(limits.unit, clean)
    enough = best.verdict().score[rows].clamp_max(best.aim) - SLACK
    # The overshoot is small as a rule, so the first probe is close to the whole.
    low, probe = torch.zeros_like(best.l2[rows]), torch.full_like(best.l2[rows], 0.97)
    high = torch.ones_like(low)
    for _ in range(passes):
        x = limits.project(origin, found * steps.spread_out(probe, found), rows)
        verdict = judge(rows, field.predict(x))
        moved = (x - origin) / per_channel(limits.unit, clean)
        l2 = steps.length(moved)
        best.update(rows, x, verdict, ruler.size(ruler.coordinates(moved), l2), l2)
        holds = verdict.reached & (verdict.score >= enough)
        high = torch.where(holds, probe, high)
        low = torch.where(holds, low, probe)
        probe = (low + high) / 2
    return passes * len(rows)
