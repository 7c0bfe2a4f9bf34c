"""The attack: search the smallest change that makes a model draw the target.

MAFL-Attack (Sun et al., J. Med. Imaging 12(4):044501, 2025) in our reconstruction: only its abstract is public. It
names a feature-cosine-similarity loss, a low-frequency constraint, momentum and a dynamic step-size calculator. The
mask loss is a margin version of ASMA's adaptive mask (Ozbulak et al., MICCAI 2019). The search first reaches the goal,
then spends the rest of its passes on making the change smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from mafl_cli import losses, steps
from mafl_cli.config import AttackConfig
from mafl_cli.goals import Goal, Verdict
from mafl_cli.lowfreq import low_pass
from mafl_cli.model import Prediction
from mafl_cli.preprocess import per_channel
from mafl_cli.windows import Field, Losses


class Outcome(Enum):
    """How the search ended for one slice or volume, as a sentence with the next step to try."""

    ALREADY = "The clean prediction already meets the goal; nothing was changed."
    REACHED = "The goal was reached."
    STEP_LIMIT = "The goal was not reached; the closest result was kept. More --steps or a lower --goal-iou may help."
    NO_GRADIENT = "The model gives no gradient towards the target here; nothing was changed."


@dataclass(frozen=True)
class Limits:
    """Where the adversarial image may lie. All in native units.

    low, high: (C,), the data box.
    step: (C,) spacing of the values a file of integers can hold, or None for floating-point output.
    frozen: bool (B, C, *spatial), voxels that must not change.
    unit: (C,) native units per model unit.
    nonzero: a voxel that is not 0 must not become 0 (there, 0 means background).
    """

    low: Tensor
    high: Tensor
    unit: Tensor
    frozen: Tensor
    step: Tensor | None = None
    nonzero: bool = False

    def project(self, clean: Tensor, delta: Tensor, rows: Tensor) -> Tensor:
        """The allowed image next to clean + delta. clean: (B, C, *spatial) native; delta: likewise, model units."""
        moved = delta * per_channel(self.unit, delta)
        if self.step is not None:
            # Rounding the change, not the value: an unchanged voxel stays exactly what it was.
            step = per_channel(self.step, delta)
            moved = torch.round(moved / step) * step
        x = torch.clamp(clean + moved, per_channel(self.low, clean), per_channel(self.high, clean))
        keep = self.frozen[rows] | (moved == 0)
        if self.nonzero:
            keep |= x == 0
        return torch.where(keep, clean, x)


@dataclass(frozen=True)
class StepRecord:
    """What a progress display may show after each step: share of the batch at its goal, mean score and length."""

    step: int
    reached: float
    score: float
    l2: float


@dataclass(frozen=True)
class AttackResult:
    """Per sample: the best image found (B, C, *spatial, native), how it was judged, and why the search ended.

    forward, backward: passes through the network, counted per sample.
    """

    adversarial: Tensor
    verdict: Verdict
    outcomes: tuple[Outcome, ...]
    l2: Tensor
    forward: int
    backward: int


def attack(
    field: Field,
    clean: Tensor,
    target: Tensor,
    config: AttackConfig,
    limits: Limits,
    *,
    start: Tensor | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> AttackResult:
    """Find, for each sample, the smallest change within `limits` after which `field` draws `target`.

    Samples never influence each other. Every iterate is judged as it would be written (inside the box, on the
    stored grid), and the best one is returned: the smallest that reaches the goal, else the one closest to it.

    Args:
        clean: (B, C, *spatial), native units.
        target: (B, *spatial), class indices in [0, K).
        start: perturbation to begin from, like clean, model units; zero if None.
        on_step: called after each step, for progress displays.
    """
    before = field.predict(clean)
    before_labels = before.logits.argmax(dim=1)
    goal = Goal.of(target, before_labels, before.logits.shape[1], config)
    lead = -losses.margins(before.logits, before_labels)
    kappa = (config.kappa * lead.flatten(1).mean(dim=1)).view(-1, *(1,) * (lead.ndim - 1))
    # A voxel that has its class already need not become surer of it than it was.
    kappa = torch.where(before_labels == target, torch.minimum(lead, kappa), kappa)
    native = per_channel(limits.unit, clean)

    delta = torch.zeros_like(clean) if start is None else start.clone()
    velocity, second_moment = torch.zeros_like(clean), torch.zeros_like(clean)
    best = _Best.at(clean, goal.judge(before_labels))
    ever_reached = best.reached.clone()
    longest = torch.full((len(clean),), math.inf, device=clean.device)
    stuck = torch.zeros_like(ever_reached)
    rows = torch.nonzero(~best.reached).flatten()
    forward, backward = len(clean), 0
    scale_search = min(config.scale_search, config.steps // 4)
    budget = config.steps - scale_search

    for step in range(budget):
        if not len(rows):
            break
        # 1. The iterate as it would be written, its prediction, and the gradients of the losses.
        x = limits.project(clean[rows], delta[rows], rows)
        here = (x - clean[rows]) / native
        searching = ~ever_reached[rows]
        with_features = config.feature_weight > 0 and bool(searching.any())
        reference = before.features[rows] if with_features else None
        slopes = field.slopes(x, _losses(goal[rows], kappa[rows], reference))
        forward, backward = forward + len(rows), backward + len(rows) * len(slopes.gradients)

        # 2. Judge it and keep the best.
        labels = slopes.prediction.logits.argmax(dim=1)
        verdict = goal[rows].judge(labels)
        size = steps.length(here)
        best.update(rows, x, verdict, size)
        ever_reached[rows] |= verdict.reached

        # 3. Direction: each term at length 1, evened out by its second moment, with momentum.
        mask_gradient = steps.finite(slopes.gradients[0]) * native
        steepness = steps.length(mask_gradient)
        direction = steps.unit(mask_gradient)
        if with_features:
            # At the clean image the similarity is at its top: its gradient there is rounding noise. Near the goal
            # the mask term alone knows what is missing, so the weight falls with the voxels still unmet.
            weight = config.feature_weight * goal[rows].unmet(labels) * (searching & (size > 0))
            direction += steps.unit(slopes.gradients[1] * native) * steps.spread_out(weight, here)
        if config.low_frequency_weight > 0:
            weight = config.low_frequency_weight / torch.where(size > 0, size, torch.ones_like(size))
            # Only where the model looks: no other voxel has a reason to change.
            seen = (mask_gradient != 0) | (here != 0)
            direction += low_pass(here) * seen * steps.spread_out(weight, here)
        second_moment[rows] = 0.9 * second_moment[rows] + 0.1 * direction**2
        direction = steps.unit(steps.whiten(direction, second_moment[rows], config.spread))
        velocity[rows] = config.momentum * velocity[rows] + direction

        # 4. Dynamic step. Short of the goal: the linear estimate of the distance, growing with time for samples that
        # have not been there yet. At the goal: a short way along a sphere that shrinks.
        distance = steps.distance(slopes.values[0], steepness)
        if step == 0 and start is None:
            longest[rows] = config.first_step * distance
        toward = distance * torch.where(ever_reached[rows], 1.0, 1 + 2 * step / budget)
        cosine = 0.5 * (1 + math.cos(math.pi * step / budget))
        radius = size * (1 - config.radius_rate * max(cosine, 0.1))
        along = config.along * radius * max(cosine, 0.02)
        move = torch.where(verdict.reached, along, torch.minimum(toward, longest[rows]))
        moved = here - steps.unit(velocity[rows]) * steps.spread_out(move, here)
        onto = torch.where(verdict.reached, radius / steps.length(moved).clamp_min(1e-30), torch.ones_like(radius))
        delta[rows] = moved * steps.spread_out(onto, moved)

        # 5. Samples that cannot move, or no longer get smaller, leave the batch. The first half is too early to tell:
        # with long steps the goal is lost and won back for a while.
        stuck[rows] |= (steepness == 0) & ~verdict.reached & (size == 0)
        if on_step is not None:
            share = float(best.reached.float().mean())
            on_step(StepRecord(step, share, float(best.verdict().score.mean()), float(best.l2.mean())))
        rows = rows[~stuck[rows] & ((best.since[rows] < config.patience) | (step < budget // 2))]

    forward += _search_scale(field, clean, goal, limits, scale_search, best)
    outcomes = tuple(
        Outcome.ALREADY if reached and l2 == 0
        else Outcome.REACHED if reached
        else Outcome.NO_GRADIENT if none
        else Outcome.STEP_LIMIT
        for reached, l2, none in zip(best.reached.tolist(), best.l2.tolist(), stuck.tolist(), strict=True)
    )  # fmt: skip
    return AttackResult(best.x, best.verdict(), outcomes, best.l2, forward, backward)


def _losses(goal: Goal, kappa: Tensor, reference: Tensor | None) -> Losses:
    """The mask term, and the feature term on the voxels that miss the target if there are reference features."""

    def terms(prediction: Prediction) -> list[Tensor]:
        mask = losses.mask_loss(prediction.logits, goal.target, kappa)
        if reference is None:
            return [mask]
        unmet = prediction.logits.detach().argmax(dim=1) != goal.target
        return [mask, losses.feature_cosine(prediction.features, reference, unmet.to(mask.dtype))]

    return terms


@dataclass
class _Best:
    """The best iterate of each sample so far, and how many steps ago it last got clearly better."""

    x: Tensor
    iou: Tensor
    hit: Tensor
    removal: Tensor
    reached: Tensor
    l2: Tensor
    since: Tensor

    @staticmethod
    def at(clean: Tensor, verdict: Verdict) -> _Best:
        zeros = torch.zeros(len(clean), device=clean.device)
        return _Best(clean.clone(), verdict.iou, verdict.hit, verdict.removal, verdict.reached, zeros, zeros.long())

    def verdict(self) -> Verdict:
        return Verdict(self.iou, self.hit, self.removal, self.reached)

    def update(self, rows: Tensor, x: Tensor, verdict: Verdict, l2: Tensor) -> None:
        """Take over what is better: reached before not reached, then shorter, else closer to the goal."""
        was = Verdict(self.iou[rows], self.hit[rows], self.removal[rows], self.reached[rows])
        shorter = l2 < self.l2[rows]
        closer = (verdict.score > was.score) | ((verdict.score == was.score) & shorter)
        better = torch.where(was.reached, verdict.reached & shorter, verdict.reached | closer)
        clearly = better & (~was.reached | (l2 < 0.995 * self.l2[rows]))
        # Patience counts only once the goal is reached: before that every step is worth taking.
        self.since[rows] = torch.where(clearly | ~(was.reached | verdict.reached), 0, self.since[rows] + 1)
        taken = rows[better]
        self.x[taken], self.l2[taken] = x[better], l2[better]
        self.iou[taken], self.hit[taken] = verdict.iou[better], verdict.hit[better]
        self.removal[taken], self.reached[taken] = verdict.removal[better], verdict.reached[better]


def _search_scale(field: Field, clean: Tensor, goal: Goal, limits: Limits, passes: int, best: _Best) -> int:
    """Bisect the scale of each best perturbation between nothing and itself; returns the forward passes used."""
    rows = torch.nonzero(best.reached & (best.l2 > 0)).flatten()
    if not len(rows) or not passes:
        return 0
    origin = clean[rows]
    found = (best.x[rows] - origin) / per_channel(limits.unit, clean)
    # The overshoot is small as a rule, so the first probe is close to the whole.
    low, probe = torch.zeros_like(best.l2[rows]), torch.full_like(best.l2[rows], 0.97)
    high = torch.ones_like(low)
    for _ in range(passes):
        x = limits.project(origin, found * steps.spread_out(probe, found), rows)
        verdict = goal[rows].judge(field.predict(x).logits.argmax(dim=1))
        best.update(rows, x, verdict, steps.length((x - origin) / per_channel(limits.unit, clean)))
        high = torch.where(verdict.reached, probe, high)
        low = torch.where(verdict.reached, low, probe)
        probe = (low + high) / 2
    return passes * len(rows)
