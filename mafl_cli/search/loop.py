"""The attack: search a small change that makes a model draw the target.

One engine, and every attack is a row of settings for it (`mafl_cli.config.PRESETS`):

    J(δ) = mask loss + λ_f · feature loss + λ_lf · ½ ||low-pass of δ||² + λ_2 · ½ ||δ||²
    g    = gradient of J, scaled per sample;  v = μ v + g
    δ    = project(δ - step size · direction of v)

The default is MAFL-Attack (Sun et al., J. Med. Imaging 12(4):044501, 2025) in our reconstruction: only its abstract is
public. It names a feature-cosine-similarity loss, a low-frequency constraint, momentum and a dynamic step-size
calculator. The mask loss is a margin version of ASMA's adaptive mask (Ozbulak et al., MICCAI 2019) with a multiplier
for each voxel: the change grows until the target is drawn, and then shrinks as far as the hardest voxels let it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import torch
from torch import Tensor

from mafl_cli.config import AttackConfig
from mafl_cli.errors import UsageError
from mafl_cli.field.preprocess import per_channel
from mafl_cli.field.windows import Field, Losses
from mafl_cli.network.segmenter import Patch, Prediction
from mafl_cli.search import losses, steps
from mafl_cli.search.goals import SLACK, Goal, Verdict
from mafl_cli.search.limits import Limits
from mafl_cli.search.lowfreq import low_pass

LowPass = Callable[[Tensor], Tensor]


class Outcome(Enum):
    """How the search ended for one slice or volume, as a sentence with the next step to try."""

    ALREADY = "The clean prediction already meets the goal; nothing was changed."
    REACHED = "The goal was reached."
    STEP_LIMIT = "The goal was not reached; the closest result was kept. More --steps or a lower --goal-iou may help."
    NO_GRADIENT = "The model gives no gradient towards the target here; nothing was changed."


@dataclass(frozen=True)
class StepRecord:
    """Where a batch is after a step, means over its samples.

    reached, score, l2: share at the goal, score and length (model units) of the best iterates so far.
    loss: of the iterates of this step, as it was differentiated (the mask loss, with the feature term where that is on;
        not the terms of the change alone). Of a sample that has left the batch the last one; 0 if it never was in it,
        being at its goal from the start.
    """

    step: int
    reached: float
    score: float
    l2: float
    loss: float


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
    guide: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> AttackResult:
    """Find, for each sample, a small change within `limits` after which `field` draws `target`.

    Samples never influence each other. Every iterate is judged as it would be written (inside the box and the ball,
    on the stored grid), and the best one is returned: the smallest that reaches the goal, else the one closest to it.

    Args:
        clean: (B, C, *spatial), native units.
        target: (B, *spatial), class indices in [0, K); (B, R, *spatial), 0 or 1, for regions that may overlap.
        guide: scans that have what the target shows, like clean; the feature term then pulls towards their features.
        spacing: mm along the spatial axes, see `search.lowfreq.low_pass`.
        on_step: called after each step, for progress displays and traces.
    Raises: UsageError for a guide without a feature term.
    """
    limits = limits.within(config)
    native = per_channel(limits.unit, clean)
    free = native * ~limits.frozen
    before = field.predict(clean)
    overlapping = target.ndim == clean.ndim
    terms = _Terms.of(config, field, before, target, guide, overlapping=overlapping)
    classes, aims = before.logits.shape[1], {"iou": config.goal_iou, "hit": config.goal_hit}
    goal = Goal.of(target, terms.clean, classes, **aims, overlapping=overlapping)

    low = partial(low_pass, levels=config.low_frequency_levels, spacing=spacing)
    delta = _begin(clean, limits, config, low)
    rule, scaling = _rule(config, limits, clean), steps.Scaling(config, clean)
    best = _Best.at(clean, goal.judge(terms.clean), config.aimed, bounded=config.eps is not None)
    ever_reached = best.reached.clone()
    feature_gain = torch.zeros(len(clean), device=clean.device)
    loss = torch.zeros_like(feature_gain)
    stuck = torch.zeros_like(ever_reached)
    rows = torch.nonzero(~best.reached).flatten()
    forward, backward = len(clean) * (1 if guide is None else 2), 0
    scale_search = min(config.scale_search, config.steps // 4)
    budget = config.steps - scale_search
    compare_at = 1 + budget // 20

    for step in range(budget):
        if not len(rows):
            break
        # 1. The iterate as it would be written, its prediction, and the gradients of the losses.
        origin = steps.those(clean, rows)
        x = limits.project(origin, steps.those(delta, rows), rows)
        here = (x - origin).div_(native)
        searching = ~ever_reached[rows]
        # One backward pass is enough for both terms once their gradients have been compared. Not close to the clean
        # image: there the similarity to it is at its top, and its gradient next to nothing.
        compare = config.feature_weight > 0 and step == compare_at
        wanted = config.feature_weight > 0 and step >= compare_at and bool(searching.any())
        gain = feature_gain[rows] * searching if wanted else None
        slopes = field.slopes(x, terms.losses(rows, progress=step / budget, gain=gain, apart=compare))
        loss[rows] = slopes.values[0].to(loss)
        forward, backward = forward + len(rows), backward + len(rows) * len(slopes.gradients)

        # 2. Judge it, keep the best, and press harder where the target is missed.
        labels = losses.drawn(slopes.prediction.logits)
        verdict = goal[rows].judge(labels)
        size = steps.length(here)
        best.update(rows, x, verdict, size)
        ever_reached[rows] |= verdict.reached
        # Who has not been at the goal by half time is pressed as hard as can be.
        overdue = ~ever_reached[rows] & (step >= budget // 2)
        short = torch.where(overdue, 1.0, config.aimed - verdict.score)
        if config.mask_loss == "margin":
            terms.pressure.update(rows, short, (step + 1) / budget)

        # 3. Direction: the terms' gradients weighed and added, with momentum.
        mask_gradient = steps.finite(slopes.gradients[0]).mul_(steps.those(free, rows))
        if step == 0:
            scaling.first(rows, slopes.values[0], mask_gradient)
        if compare:
            other = steps.length(steps.finite(slopes.gradients[1]) * native)
            feature_gain[rows] = config.feature_weight * steps.distance(steps.length(mask_gradient), other)
        direction = scaling.of_gradient(rows, mask_gradient)
        direction = _pulled_back(direction, here, size, mask_gradient, config, limits, low)
        direction = scaling.with_momentum(rows, direction, step)

        # 4. The step. Rounding is straight-through: a step may be finer than the stored grid.
        exact = here
        if limits.grid is not None:
            exact = (limits.unrounded(origin, steps.those(delta, rows), rows) - origin).div_(native)
        now = steps.Now(step, budget, exact, direction, scaling.reach[rows], verdict.iou)
        delta[rows] = _without_low_frequency(rule(now), config, low)

        # 5. Samples that cannot move, or are finished, leave the batch.
        stuck[rows] |= ~mask_gradient.flatten(1).any(dim=1) & ~verdict.reached & (size == 0)
        if on_step is not None:
            on_step(_record(step, best, loss))
        rows = rows[~stuck[rows] & ~_finished(best, rows, config, late=step >= budget // 2)]
        # Scans are large: nothing of this step must wait in memory while the next one runs the network.
        del origin, x, here, slopes, labels, mask_gradient, direction, exact, now

    forward += _search_scale(field, clean, goal, limits, scale_search, best)
    outcomes = tuple(
        Outcome.ALREADY if reached and l2 == 0
        else Outcome.REACHED if reached
        else Outcome.NO_GRADIENT if none
        else Outcome.STEP_LIMIT
        for reached, l2, none in zip(best.reached.tolist(), best.l2.tolist(), stuck.tolist(), strict=True)
    )  # fmt: skip
    return AttackResult(best.x, best.verdict(), outcomes, best.l2, forward, backward)


# --- parts of the loop --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Terms:
    """The losses that need a gradient, with everything they compare with.

    target, clean: (B, *spatial), class indices. must: (B,), voxels where they differ.
    pressure: what each voxel counts in the margin loss.
    features, guide: of the clean scan and of a scan that has the target.
    """

    config: AttackConfig
    target: Tensor
    clean: Tensor
    must: Tensor
    pressure: losses.Pressure
    features: tuple[Patch, ...]
    guide: tuple[Patch, ...] | None
    overlapping: bool

    @staticmethod
    def of(
        config: AttackConfig,
        field: Field,
        before: Prediction,
        target: Tensor,
        guide: Tensor | None,
        *,
        overlapping: bool,
    ) -> _Terms:
        if guide is not None and config.feature_weight == 0:
            raise UsageError("a guide needs a feature term: give feature_weight a value above 0.")
        clean = losses.drawn(before.logits)
        lead = -losses.margins(before.logits, clean)
        kappa = (config.kappa * lead.flatten(1).mean(dim=1)).view(-1, *(1,) * (lead.ndim - 1))
        # A voxel that has its class already need not become surer of it than it was.
        kappa = torch.where(clean == target, torch.minimum(lead, kappa), kappa)
        features = None if guide is None else field.predict(guide).features
        pressure = losses.Pressure(kappa, config.steps, adaptive=config.adaptive_weights)
        must = (clean != target).flatten(1).sum(dim=1)
        return _Terms(config, target, clean, must, pressure, before.features, features, overlapping)

    def losses(self, rows: Tensor, *, progress: float, gain: Tensor | None, apart: bool) -> Losses:
        """The mask term, with `gain` (b,) times the feature term on the voxels that miss the target; or both apart."""

        def terms(prediction: Prediction) -> list[Tensor]:
            logits, target = prediction.logits, steps.those(self.target, rows)
            mask = losses.mask_loss(
                self.config.mask_loss, logits, target,
                pressure=self.pressure, rows=rows, clean=steps.those(self.clean, rows), progress=progress,
            )  # fmt: skip
            if gain is None:
                return [mask]
            unmet = (losses.drawn(logits) != target).to(mask.dtype)
            feature = self._feature(prediction.features, rows, unmet)
            if apart:
                return [mask, feature]
            # Near the goal the mask term alone knows what is missing: the other fades with the voxels still unmet.
            return [mask + gain * self._missing(rows, unmet) * feature]

        return terms

    def _feature(self, patches: tuple[Patch, ...], rows: Tensor, unmet: Tensor) -> Tensor:
        """The feature term, (B,), over all taps and windows: each counts by its weight and the voxels it misses."""
        if self.overlapping:
            unmet = unmet.amax(dim=1)
        total, mass = torch.zeros(len(rows), device=rows.device), torch.zeros(len(rows), device=rows.device)
        for index, (patch, clean) in enumerate(zip(patches, self.features, strict=True)):
            seen, reference = patch.see(unmet), steps.those(clean.features, rows)
            if self.guide is None:
                value = losses.feature_cosine(patch.features, reference, seen)
            else:
                value = losses.feature_guide(patch.features, reference, self.guide[index].features[rows], seen)
            share = patch.weight * seen.flatten(1).mean(dim=1)
            total, mass = total + share * value, mass + share
        return total / torch.where(mass > 0, mass, torch.ones_like(mass))

    def _missing(self, rows: Tensor, unmet: Tensor) -> Tensor:
        """Voxels that miss the target as a share of those that had to change, at most 1: (b,)."""
        return (unmet.flatten(1).sum(dim=1) / self.must[rows].clamp_min(1)).clamp_max(1)


def _begin(clean: Tensor, limits: Limits, config: AttackConfig, low: LowPass) -> Tensor:
    """The first perturbation, model units: none, or a random one inside the ball."""
    if not config.random_start or limits.ball is None:
        return torch.zeros_like(clean)
    drawn = limits.ball.draw(clean, config.seed) / per_channel(limits.unit, clean)
    return _without_low_frequency(drawn, config, low)


def _rule(config: AttackConfig, limits: Limits, clean: Tensor) -> steps.Rule:
    """The step's length over time, in model units."""
    size, scale = config.step_size or 0.0, _span(limits, clean)
    if config.direction == "raw":
        # Published for images in [0, 1]: gradient and step are both taken in shares of the range.
        scale = scale**2
    if config.step in ("constant", "cosine") and config.step_size is None:
        assert limits.ball is not None
        size, scale = 2.5 / config.steps, per_channel(limits.ball.radius / limits.unit, clean)
    return steps.Rule(config, size, scale)


def _span(limits: Limits, like: Tensor) -> Tensor:
    """The scan's range, channel by channel, model units: (1, C, 1, ...)."""
    return per_channel((limits.high - limits.low) / limits.unit, like)


def _pulled_back(
    direction: Tensor,
    here: Tensor,
    size: Tensor,
    mask_gradient: Tensor,
    config: AttackConfig,
    limits: Limits,
    low: LowPass,
) -> Tensor:
    """The direction with the terms that depend on the perturbation alone, added in place: its low-pass part and length.

    Gradients of halved squares, δ; or with normalised gradients δ at norm 1.
    """
    pulls: list[Tensor] = []
    if config.low_frequency == "penalty" and config.low_frequency_weight > 0:
        # Only where the model looks, or the scan is changed: no other voxel has a reason to move.
        pulls.append(low(here).mul_(config.low_frequency_weight).mul_(torch.logical_or(mask_gradient, here)))
    if config.l2_weight > 0:
        pulls.append(losses.size_gradient(here, config.peak_weight).mul_(config.l2_weight))
    for pull in pulls:
        if config.gradient_norm == "none":
            pull.div_(_span(limits, here) ** 2)
        elif config.gradient_norm != "distance":
            length = size if config.gradient_norm == "l2" else here.flatten(1).abs().sum(dim=1)
            pull.div_(steps.spread_out(torch.where(length > 0, length, torch.ones_like(length)), here))
        direction.add_(pull)
    return direction


def _without_low_frequency(delta: Tensor, config: AttackConfig, low: LowPass) -> Tensor:
    return delta - low(delta) if config.low_frequency == "hard" else delta


def _finished(best: _Best, rows: Tensor, config: AttackConfig, *, late: bool) -> Tensor:
    """Which samples need no further step, bool (b,).

    late: the second half of the steps. Earlier it is too early to tell whether a change still shrinks: with long
    steps the target is lost and won back for a while.
    """
    if config.after_goal == "stop":
        return best.reached[rows]
    worn_out = best.since[rows] >= config.patience
    return worn_out & (late and config.after_goal == "shrink")


@dataclass
class _Best:
    """The best iterate of each sample so far, and how many steps ago it last got clearly better.

    Among iterates at the goal, one percent of the target more is worth 20 percent of length up to `aim`, and 0.2
    percent beyond it. bounded: within a ball a change that moves the prediction nowhere is kept rather than none, for
    it shows that something was tried.
    """

    x: Tensor
    iou: Tensor
    hit: Tensor
    removal: Tensor
    reached: Tensor
    l2: Tensor
    cost: Tensor
    since: Tensor
    aim: float
    bounded: bool

    @staticmethod
    def at(clean: Tensor, verdict: Verdict, aim: float, *, bounded: bool) -> _Best:
        none = torch.zeros(len(clean), device=clean.device)
        parts = (verdict.iou, verdict.hit, verdict.removal, verdict.reached)
        return _Best(clean.clone(), *parts, none, torch.zeros_like(none), torch.zeros_like(none).long(), aim, bounded)

    def verdict(self) -> Verdict:
        return Verdict(self.iou, self.hit, self.removal, self.reached)

    def update(self, rows: Tensor, x: Tensor, verdict: Verdict, l2: Tensor) -> None:
        """Take over what is better: reached before not reached, then cheaper, else closer to the goal."""
        was = Verdict(self.iou[rows], self.hit[rows], self.removal[rows], self.reached[rows])
        short = self.aim - verdict.score
        cost = l2 * (1 + torch.where(short > 0, 20 * short, 0.2 * short))
        cheaper = cost < self.cost[rows]
        smaller = (l2 < self.l2[rows]) if not self.bounded else (l2 > 0) & ((l2 < self.l2[rows]) | (self.l2[rows] == 0))
        closer = (verdict.score > was.score) | ((verdict.score == was.score) & smaller)
        better = torch.where(was.reached, verdict.reached & cheaper, verdict.reached | closer)
        clearly = better & (~was.reached | (cost < 0.995 * self.cost[rows]))
        # Patience counts only once the goal is reached: before that every step is worth taking.
        self.since[rows] = torch.where(clearly | ~(was.reached | verdict.reached), 0, self.since[rows] + 1)
        taken = rows[better]
        self.x[taken], self.l2[taken], self.cost[taken] = x[better], l2[better], cost[better]
        self.iou[taken], self.hit[taken] = verdict.iou[better], verdict.hit[better]
        self.removal[taken], self.reached[taken] = verdict.removal[better], verdict.reached[better]


def _record(step: int, best: _Best, loss: Tensor) -> StepRecord:
    """loss: (B,). The four means reach the host together: on a GPU each trip there waits for the step to end."""
    means = (best.reached.float().mean(), best.verdict().score.mean(), best.l2.mean(), loss.mean())
    return StepRecord(step, *torch.stack(means).tolist())


def _search_scale(field: Field, clean: Tensor, goal: Goal, limits: Limits, passes: int, best: _Best) -> int:
    """Bisect the scale of each best perturbation between nothing and itself; returns the forward passes used.

    A scale will do that draws no less of the target, or meets the aim.
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
        verdict = goal[rows].judge(losses.drawn(field.predict(x).logits))
        best.update(rows, x, verdict, steps.length((x - origin) / per_channel(limits.unit, clean)))
        holds = verdict.reached & (verdict.score >= enough)
        high = torch.where(holds, probe, high)
        low = torch.where(holds, low, probe)
        probe = (low + high) / 2
    return passes * len(rows)
