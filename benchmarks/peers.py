"""Other people's attacks, each in a few lines of its own, to measure ours against.

Only the attacked function (`Field`) and the criterion (`Goal`) are shared with the engine; losses, steps, projection
and bookkeeping are written again here, so that a mistake of the engine cannot hide in its own yardstick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from cases import Case
from torch import Tensor

from mafl_cli.config import preset
from mafl_cli.network.prediction import Prediction
from mafl_cli.search.goals import Goal, Verdict

Rule = Literal["best IoU", "at goal"]

TAUS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
"""ASMA's step sizes to choose from, small ones for steep networks and large ones for flat ones. beta is ten times as
much, as published."""
PUBLISHED = {"tau": 1e-7, "beta": 1e-6}
PUBLISHED_PASSES = 2501
DUAL_LIMITS = (math.log(1e-6), math.log(1e6))
"""Of PDGD's dual variables."""


@dataclass
class Best:
    """The best image of each sample so far, (B, C, *spatial), by one of two rules.

    best IoU: the highest score, then the smallest L2. at goal: the smallest L2 among those that reach the goal; while
    there is none, as above.
    """

    rule: Rule
    x: Tensor
    keys: list[tuple[float, ...]]

    @staticmethod
    def of(rule: Rule, clean: Tensor) -> Best:
        return Best(rule, clean.clone(), [(-1.0,)] * len(clean))

    def update(self, x: Tensor, verdict: Verdict, l2: Tensor) -> None:
        found = zip(verdict.score.tolist(), verdict.reached.tolist(), l2.tolist(), strict=True)
        for row, (score, reached, length) in enumerate(found):
            done = reached and self.rule == "at goal"
            key = (1.0, -length) if done else (0.0, score, -length)
            if key > self.keys[row]:
                self.keys[row] = key
                self.x[row] = x[row]


def asma(case: Case, tau: float, beta: float, marks: Sequence[int]) -> dict[tuple[int, Rule], Tensor]:
    """Adaptive segmentation mask attack (Ozbulak et al., MICCAI 2019), correct and per sample.

    Climbs sum of the target's logit over the voxels that miss it, minus |delta|^2, by tau + beta * IoU of the iterate
    before, inside the data box. Published for images in [0, 1]: delta is here a share of the range of the data. With
    no foreground in the target, where IoU is not defined, the hit rate takes its place. Returns the best images after
    each of `marks` forward and backward passes.
    """
    goal, unit = goal_of(case), _span(case)
    best = [Best.of(rule, case.clean) for rule in get_args(Rule)]
    x, found = case.clean, {}
    for done in range(1, max(marks) + 1):
        slopes = case.field.slopes(x, lambda prediction: [_unmet_logits(prediction, case.target)])
        verdict = goal.judge(slopes.prediction.logits.argmax(dim=1))
        delta = (x - case.clean) / unit
        for each in best:
            each.update(x, verdict, delta.flatten(1).norm(dim=1))
            if done in marks:
                found[done, each.rule] = each.x.clone()
        overlap = torch.where((case.target > 0).flatten(1).any(dim=1), verdict.iou, verdict.hit)
        step = tau + beta * overlap * (done > 1)
        uphill = slopes.gradients[0] * unit - 2 * delta
        x = _inside(case, case.clean + (delta + _samples(step, delta) * uphill) * unit)
    return found


def pdgd(case: Case, passes: int) -> Tensor:
    """Primal-dual gradient descent with a multiplier for each voxel (Matyasko and Chau, arXiv 2106.01538), L2.

    Adam descends (1 - sum of lambda) * |delta| + sum of lambda * softplus(margin), its rate falling from 0.1 to 0.001
    of the range of the data; lambda is the running mean (0.9) of a softmax with one more, constant, entry over dual
    variables, which rise or fall by 0.1 to 0.01 where a voxel misses or has its class. Published for images in
    [0, 1]: delta is here a share of the range of the data. Its criterion is a share of the voxels, which an edit of a
    few voxels meets before it began: ours, at 0.99, decides instead. Returns the best image found.
    """
    goal, span = goal_of(case), _span(case)
    delta = torch.zeros_like(case.clean, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=0.1)
    fall = torch.optim.lr_scheduler.ExponentialLR(adam, 0.01 ** (1 / passes))
    voxels = case.target[0].numel()
    dual = torch.full((len(case.target), voxels), -math.log(voxels), dtype=torch.float64)
    share, best = _softmax_plus_one(dual), Best.of("at goal", case.clean)
    for done in range(passes):

        def weighed(prediction: Prediction, share: Tensor = share) -> list[Tensor]:
            return [(share * F.softplus(_margins(prediction.logits, case.target))).sum(dim=1)]

        x = _inside(case, case.clean + delta.detach() * span)
        slopes = case.field.slopes(x, weighed)
        moved = (x - case.clean) / span
        length = moved.flatten(1).norm(dim=1)
        best.update(x, goal.judge(slopes.prediction.logits.argmax(dim=1)), length)
        shorter = moved / _samples(length, moved).clamp_min(1e-12) * _samples(1 - share.sum(dim=1), moved)
        delta.grad = slopes.gradients[0] * span + shorter.to(moved.dtype)
        adam.step()
        fall.step()
        with torch.no_grad():
            delta.copy_((_inside(case, case.clean + delta * span) - case.clean) / span)
        rate = 0.1 * (1 - 0.9 * done / passes)
        dual = (dual + rate * _margins(slopes.prediction.logits, case.target).sign()).clamp(*DUAL_LIMITS)
        share = 0.9 * share + 0.1 * _softmax_plus_one(dual)
    return best.x


def goal_of(case: Case) -> Goal:
    """The default goal of mafl, by which every method is judged."""
    before, config = case.field.predict(case.clean).logits, preset("mafl")
    return Goal.of(case.target, before.argmax(dim=1), before.shape[1], iou=config.goal_iou, hit=config.goal_hit)


def _span(case: Case) -> Tensor:
    """The range of the data, native units, by which published settings for images in [0, 1] are translated."""
    shares = (case.limits.high - case.limits.low) / case.limits.unit
    return _channels(case.limits.unit * shares.max(), case.clean)


def _unmet_logits(prediction: Prediction, target: Tensor) -> Tensor:
    """Sum of the target's logit over the voxels of another class: (B,)."""
    unmet = prediction.logits.detach().argmax(dim=1) != target
    return (prediction.logits.gather(1, target[:, None])[:, 0] * unmet).flatten(1).sum(dim=1)


def _margins(logits: Tensor, target: Tensor) -> Tensor:
    """Best other logit minus the target's: (B, K, *spatial) -> (B, voxels)."""
    own = F.one_hot(target, logits.shape[1]).movedim(-1, 1).bool()
    other = logits.masked_fill(own, -torch.inf).amax(dim=1)
    return (other - logits.gather(1, target[:, None])[:, 0]).flatten(1)


def _softmax_plus_one(x: Tensor) -> Tensor:
    """Softmax with one more entry, 0, that is left out again: the shares add up to less than 1."""
    return F.pad(x, (1, 0)).softmax(dim=1)[:, 1:]


def _inside(case: Case, x: Tensor) -> Tensor:
    """x in the data box, with the voxels that must not change as they were."""
    low, high = (_channels(bound, x) for bound in (case.limits.low, case.limits.high))
    return torch.where(case.limits.frozen, case.clean, torch.minimum(torch.maximum(x, low), high)).detach()


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (like.ndim - 2))


def _samples(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))
