"""The attack: search a small change that makes a model draw the target.

One loop, and every attack is a row of settings for it (`mafl_cli.config.PRESETS`): a mask loss, what is added to its
slope, and the rule of the step.

The default is MAFL-Attack (Sun et al., J. Med. Imaging 12(4):044501, 2025) in our reconstruction: only its abstract is
public. It names a feature-cosine-similarity loss, a low-frequency constraint, momentum and a dynamic step-size
calculator. The mask loss is a margin version of ASMA's adaptive mask (Ozbulak et al., MICCAI 2019); its steps are those
of `search.halpern`. The other methods descend (`search.descent`):

    J(δ) = mask loss + λ_f · feature loss + λ_lf · ½ ||low-pass of δ||² + λ_2 · ½ ||δ||²
    g    = gradient of J, scaled per sample;  v = μ v + g
    δ    = project(δ - step size · direction of v)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mafl_cli.codes import Outcome
from mafl_cli.config import AttackConfig
from mafl_cli.field.field import Field
from mafl_cli.field.preprocess import per_channel
from mafl_cli.search import steps
from mafl_cli.search.best import Best, finished, search_scale
from mafl_cli.search.capped import Capped
from mafl_cli.search.certificate import Certificate, Estimate
from mafl_cli.search.descent import Descent
from mafl_cli.search.goals import Verdict
from mafl_cli.search.halpern import Halpern
from mafl_cli.search.limits import Limits
from mafl_cli.search.lowfreq import low_pass
from mafl_cli.search.moves import LowPass, Now
from mafl_cli.search.promises import Falls, Promises
from mafl_cli.search.ruler import Largest, Plain, Ruler
from mafl_cli.search.terms import FeatureGains, Terms, without_low_frequency


@dataclass(frozen=True)
class StepRecord:
    """Where a batch is after a step, means over its samples.

    reached, score, l2: share at the goal, score and length (model units) of the best iterates so far.
    loss: of the iterates of this step, as it was differentiated (the mask loss, with the feature term where that is on;
        not the terms of the change alone). A sample that has left the batch counts with its last one, or with 0
        if it was at its goal from the start.
    """

    step: int
    reached: float
    score: float
    l2: float
    loss: float


@dataclass(frozen=True)
class AttackResult:
    """Per sample: the best image found (B, C, *spatial, native), how it was judged, and why the search ended.

    last: like adversarial, where the search stood at its end. falls: what its gradients promised, and what came.
    l2: length of the change, model units. estimate: how far that is above the local optimum. forward, backward: passes
    through the network, counted per sample.
    """

    adversarial: Tensor
    last: Tensor
    falls: Falls
    verdict: Verdict
    outcomes: tuple[Outcome, ...]
    l2: Tensor
    estimate: Estimate
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
    surrogate: Field | None = None,
    start: Tensor | None = None,
    begun: int = 0,
    ruler: Ruler | None = None,
    spacing: Sequence[float] | None = None,
    watch: Tensor | None = None,
    totals: Tensor | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> AttackResult:
    """Find, for each sample, a small change within `limits` after which `field` draws `target`.

    Samples never influence each other. Every iterate is judged as it would be written (inside the box and the ball,
    on the stored grid), and the best one is returned: the smallest that reaches the goal, else the one closest to it.

    Args:
        clean: (B, C, *spatial), native units.
        target: (B, *spatial), class indices in [0, K); (B, R, *spatial), 0 or 1, for regions that may overlap.
        guide: scans that have what the target shows, like clean; the feature term then pulls towards their features.
        surrogate: a function whose slopes are followed in the place of those of `field`, which still judges; one more
            forward pass a step.
        start: the change to begin at, like clean, in model units; None for none. begun: steps that count as taken on
            the way there: rules that grow finer with time would take it for a first guess, and throw it away.
        ruler: what the size of a change is counted in, None for L2 in model units. The step rule, and the length of the
            best change, are in its coordinates.
        spacing: mm along the spatial axes, see `search.lowfreq.low_pass`.
        watch: bool (B,), the samples whose gradients are compared with what came of them; None for none.
        totals: of whole samples, where `field` draws but a part of them, what detectors compare with; see
            `search.evasion`.
        on_step: called after each step, for progress displays and traces.
    Raises: UsageError for a guide without a feature term.
    """
    limits = limits.within(config)
    native = per_channel(limits.unit, clean)
    free = native * ~limits.frozen
    followed = field if surrogate is None else surrogate
    before = followed.predict(clean)
    overlapping = target.ndim == clean.ndim
    terms = Terms.of(config, followed, before, target, guide, overlapping=overlapping, totals=totals)
    goal = terms.goal(before.logits.shape[1])

    low = partial(low_pass, levels=config.low_frequency_levels, spacing=spacing)
    ruler = ruler or (Largest() if config.minimise == "linf" else Plain())
    delta = ruler.coordinates(_begin(clean, limits, config, low) if start is None else start.clone())
    rule = _rule(config, limits, clean, low)
    seen = before if surrogate is None else field.predict(clean)
    best = Best.at(clean, goal.judge_prediction(seen), config.aimed, bounded=config.eps is not None)
    ever_reached = best.reached.clone()
    loss = torch.zeros(len(clean), device=clean.device)
    stuck = torch.zeros_like(ever_reached)
    rows = torch.nonzero(~best.reached).flatten()
    forward, backward = len(clean) * (1 if guide is None else 2), 0
    scale_search = min(config.scale_search, config.steps // 4)
    budget = config.steps - scale_search
    promises = Promises(torch.zeros_like(stuck) if watch is None else watch)
    gains = FeatureGains(config.feature_weight if before.features else 0.0, config, budget, like=loss)
    # Half-spaces of means over draws say nothing of the lead that single draws need.
    certified = config.certified and not before.draws and not before.views
    certificate = Certificate(clean, limits, budget) if certified else None

    for step in range(budget):
        if not len(rows):
            break
        # 1. The iterate as it would be written, its prediction, and the gradients of the losses.
        origin = steps.taken(clean, rows)
        x = limits.project(origin, ruler.change(steps.taken(delta, rows)), rows)
        moved = (x - origin).div_(native)
        gain = gains.at(step, rows, ~ever_reached[rows])
        compare = gain is not None and gains.compare(step)
        now_at, whole = begun + step, begun + budget
        slopes = followed.slopes(x, terms.losses(rows, progress=now_at / whole, gain=gain, apart=compare))
        loss[rows] = slopes.values[0].to(loss)
        promises.settle(rows, moved, slopes.prediction.logits)
        forward += len(rows) * (1 if surrogate is None else 2)
        backward += len(rows) * len(slopes.gradients)

        # 2. Judge it, and keep the best.
        seen = slopes.prediction if surrogate is None else field.predict(x)
        verdict = terms.judge(goal, rows, seen)
        here, l2 = ruler.coordinates(moved), steps.length(moved)
        size = ruler.size(here, l2)
        best.update(rows, x, verdict, size, l2)
        ever_reached[rows] |= verdict.reached

        # 3. The slope of all terms, and the step. Rounding is straight-through: a step may be finer than the grid.
        gradient = steps.finite(slopes.gradients[0]).mul_(steps.taken(free, rows))
        if gain is None:  # The feature term has a slope, and no value.
            promises.note(rows, moved, gradient, slopes)
        stuck[rows] |= ~gradient.flatten(1).any(dim=1) & ~verdict.reached & (size == 0)
        if compare:
            gains.measure(rows, gradient, steps.finite(slopes.gradients[1]) * native)
        if certificate is not None:
            certificate.update(rows, moved, gradient, loss[rows] - terms.lead(rows), ever_reached[rows])
        exact = _exact(limits, ruler, origin, steps.taken(delta, rows), rows, native, here)
        if config.step == "dynamic":
            gradient.masked_fill_(limits.blocks(x, origin, gradient), 0.0)
        gradient = ruler.slope(gradient)
        now = Now(rows, now_at, whole, here, size, exact, loss[rows], gradient, verdict, ever_reached[rows])
        delta[rows] = without_low_frequency(rule.step(now), config, low)
        terms.press(now)

        # 4. Samples that cannot move, or are finished, leave the batch.
        if on_step is not None:
            on_step(_record(step, best, loss))
        done = stuck[rows] | finished(best, rows, config, late=step >= budget // 2)
        if certificate is not None and config.until is not None:
            done |= certificate.settled(best, rows, config.until)
        rows = rows[~done]
        # Scans are large: nothing of this step must wait in memory while the next one runs the network.
        del origin, x, moved, here, slopes, seen, gradient, exact, now

    forward += search_scale(field, clean, partial(terms.judge, goal), limits, scale_search, best, ruler)
    last = limits.project(clean, ruler.change(delta), torch.arange(len(clean), device=clean.device))
    estimate = Estimate.none(clean) if certificate is None else certificate.estimate(best)
    return AttackResult(
        best.x, last, promises.falls, best.verdict(), _outcomes(best, stuck), best.l2, estimate, forward, backward
    )


def _rule(config: AttackConfig, limits: Limits, clean: Tensor, low: LowPass) -> Halpern | Descent:
    """The rule of the step."""
    if config.step != "dynamic":
        return Descent(config, limits, clean, low)
    return (Capped if config.minimise == "linf" else Halpern)(config, clean, low)


def _outcomes(best: Best, stuck: Tensor) -> tuple[Outcome, ...]:
    """Why the search ended for each sample. stuck: (B,), no gradient moved it from where it began."""
    return tuple(
        Outcome.ALREADY if reached and l2 == 0
        else Outcome.REACHED if reached
        else Outcome.NO_GRADIENT if none
        else Outcome.STEP_LIMIT
        for reached, l2, none in zip(best.reached.tolist(), best.l2.tolist(), stuck.tolist(), strict=True)
    )  # fmt: skip


def _exact(
    limits: Limits, ruler: Ruler, origin: Tensor, delta: Tensor, rows: Tensor, native: Tensor, here: Tensor
) -> Tensor:
    """The change before it is rounded to the stored grid, like `here`, which is after that."""
    if limits.grid is None:
        return here
    exact = (limits.unrounded(origin, ruler.change(delta), rows) - origin).div_(native)
    return ruler.coordinates(exact)


def _begin(clean: Tensor, limits: Limits, config: AttackConfig, low: LowPass) -> Tensor:
    """The first perturbation, model units: none, or a random one inside the ball."""
    if not config.random_start or limits.ball is None:
        return torch.zeros_like(clean)
    drawn = limits.ball.draw(clean, config.seed) / per_channel(limits.unit, clean)
    return without_low_frequency(drawn, config, low)


def _record(step: int, best: Best, loss: Tensor) -> StepRecord:
    """loss: (B,). The four means reach the host together: on a GPU each trip there waits for the step to end."""
    means = (best.reached.float().mean(), best.verdict().score.mean(), best.l2.mean(), loss.mean())
    return StepRecord(step, *torch.stack(means).tolist())
