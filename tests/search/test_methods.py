"""The other rows of the table: each method against ten lines that know nothing of the engine, and its limits.

Bugs that public implementations of these attacks have, and the test that keeps each of them out:

- the result depends on the batch: test_a_sample_does_not_depend_on_its_batch
- IoU of several classes or of empty masks is not a share (and drives ASMA's step): test_goals, and
  test_empty_targets_and_targets_that_are_there_are_defined
- metrics of an iterate that was not clamped yet: test_the_judged_image_is_the_one_that_comes_back
- two forward passes a step: test_a_method_of_one_term_costs_one_forward_and_one_backward_a_step
- random numbers of the caller, gradients of the parameters: test_neither_the_callers_random_numbers_...
- zero gradient / zero norm, and NaN momentum for good: test_a_gradient_that_is_zero_for_a_while_...
- an L1 norm over some of the axes: test_steps.test_the_l1_norm_is_that_of_the_whole_sample
- a random start outside the ball: test_a_random_start_is_inside_the_ball_and_the_same_for_all
- loss and step negated twice, so that targeted steps go to and fro:
  test_with_small_steps_the_target_comes_nearer_in_every_one
- voxels at the border of the box that never move: test_voxels_at_the_border_of_the_box_are_not_stuck_there
- a guide that is the scan itself switches the attack off: test_a_guide_that_is_the_clean_scan_does_no_harm
- success that is not returned, work after it: test_after_the_goal_a_sample_leaves_or_goes_on
- rounding to the stored grid leaves the ball, or swallows small steps: test_no_projection_leaves_the_ball,
  test_steps_finer_than_the_stored_grid_add_up
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import Bare, Bright, Counted, box, field, flipped, labels, pasted, pooled, rng, rungs, scan
from torch import Tensor

from mafl_cli.codes import Outcome
from mafl_cli.config import PRESETS, AttackConfig, budget, preset
from mafl_cli.errors import UsageError
from mafl_cli.field.field import Field, Losses, Slopes
from mafl_cli.network.prediction import Prediction
from mafl_cli.search.goals import Goal
from mafl_cli.search.limits import Limits
from mafl_cli.search.loop import attack
from mafl_cli.search.lowfreq import low_pass

ONE_TERM = ("asma", "pgd", "mifgsm", "segpgd", "cospgd", "dag")
IN_A_BALL = ("pgd", "mifgsm", "segpgd", "cospgd")
PERFECT: dict[str, Any] = {"goal_iou": 1.0, "goal_hit": 1.0}


class Sure(Bare):
    """A network with logits `scale` times as large, so that steps of a published size get somewhere."""

    def __init__(self, bare: Bare, scale: float = 30.0) -> None:
        super().__init__(bare.module)
        self.scale = scale

    def __call__(self, x: Tensor) -> Prediction:
        prediction = super().__call__(x)
        return Prediction(self.scale * prediction.logits, prediction.features)


class Recorded:
    """A field that remembers the images whose slopes were asked for."""

    def __init__(self, inner: Field) -> None:
        self._inner = inner
        self.seen: list[Tensor] = []

    def predict(self, x: Tensor) -> Prediction:
        return self._inner.predict(x)

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        self.seen.append(x.clone())
        return self._inner.slopes(x, losses)


def iterates(
    network: Bare | Bright, clean: Tensor, target: Tensor, config: AttackConfig, limits: Limits
) -> list[Tensor]:
    recorded = Recorded(field(network))
    attack(recorded, clean, target, config, limits)
    return recorded.seen


def problem(batch: int = 2, scale: float = 30.0) -> tuple[Sure, Tensor, Tensor, Tensor]:
    network, clean, target, change = pasted(batch)
    return Sure(network, scale), clean, target, clean + change


def unmet(network: Bare | Bright, x: Tensor, target: Tensor) -> Tensor:
    return (labels(network, x) != target).flatten(1).sum(dim=1)


# --- against an independent reading of the paper ------------------------------------------------------------------


def gradient_of(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(score(x), x)[0]


def iou_of(drawn: Tensor, target: Tensor) -> float:
    """Mean over the foreground classes of the target, by sets."""
    return sum(
        float(((drawn == k) & (target == k)).sum() / ((drawn == k) | (target == k)).sum())
        for k in target.unique()
        if k
    ) / sum(1 for k in target.unique() if k)  # fmt: skip


def asma_by_hand(network: Bare, clean: Tensor, target: Tensor, tau: float, beta: float, steps: int) -> list[Tensor]:
    """ASMA for one sample: maximise the target's logits where they do not win yet, minus the squared length."""
    x, seen = clean, []
    for step in range(steps):
        seen.append(x)
        drawn = labels(network, x)

        def score(x: Tensor, drawn: Tensor = drawn) -> Tensor:
            z = network(x).logits
            wanted = sum(z[0, k][(target[0] == k) & (drawn[0] != k)].sum() for k in range(3))
            return wanted - ((x - clean) ** 2).sum()

        multiplier = tau + (beta * iou_of(drawn, target) if step else 0)
        x = (x + multiplier * gradient_of(score, x)).clamp(0, 1)
    return seen


def test_asma_is_what_its_paper_says() -> None:
    network, clean, target, _ = problem(3, scale=3.0)
    config = preset("asma", steps=8, tau=2e-3, beta=3e-2, **PERFECT)
    seen = iterates(network, clean, target, config, box(clean))
    assert (seen[-1] != clean).any()
    assert len(seen) == 8
    for row in range(3):
        one = slice(row, row + 1)
        by_hand = asma_by_hand(network, clean[one], target[one], 2e-3, 3e-2, 8)
        for found, expected in zip(seen, by_hand, strict=True):
            torch.testing.assert_close(found[one], expected, rtol=1e-5, atol=1e-6)


def cross_entropy_of(network: Bare, target: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.cross_entropy(network(x).logits, target)


def test_pgd_is_what_its_paper_says() -> None:
    network, clean, target, _ = problem()
    eps, steps = 0.05, 6
    config = preset("pgd", steps=steps, eps=eps, random_start=False, **PERFECT)
    x = clean
    for found in iterates(network, clean, target, config, box(clean)):
        torch.testing.assert_close(found, x)
        x = x - 2.5 * eps / steps * gradient_of(cross_entropy_of(network, target), x).sign()
        x = torch.minimum(torch.maximum(x, clean - eps), clean + eps).clamp(0, 1)
    assert (x != clean).any()


def test_mi_fgsm_is_what_its_paper_says() -> None:
    network, clean, target, _ = problem()
    eps, size = 0.05, 0.01
    config = preset("mifgsm", steps=6, eps=eps, step_size=size, momentum=0.9, **PERFECT)
    x, g = clean, torch.zeros_like(clean)
    for found in iterates(network, clean, target, config, box(clean)):
        torch.testing.assert_close(found, x)
        slope = gradient_of(cross_entropy_of(network, target), x)
        g = 0.9 * g + slope / slope.abs().sum(dim=(1, 2, 3), keepdim=True)
        x = torch.minimum(torch.maximum(x - size * g.sign(), clean - eps), clean + eps).clamp(0, 1)
    assert (x != clean).any()


def test_dag_is_what_its_paper_says() -> None:
    network, clean, target, _ = problem()
    before = labels(network, clean)
    x = clean
    for found in iterates(network, clean, target, preset("dag", steps=6, **PERFECT), box(clean)):
        torch.testing.assert_close(found, x)
        active = (labels(network, x) != target) & (before != target)

        def score(x: Tensor, active: Tensor = active) -> Tensor:
            z = network(x).logits
            lead = z.gather(1, before[:, None]) - z.gather(1, target[:, None])
            return (lead[:, 0] * active).sum()

        slope = gradient_of(score, x)
        x = (x - 0.003 * slope / slope.abs().amax(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)


# --- what holds for every method ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_comes_closer_to_the_target_inside_its_limits(name: str) -> None:
    network, clean, target, _ = problem()
    config = preset(name, steps=40)
    found = attack(field(network), clean, target, config, box(clean))
    assert (unmet(network, found.adversarial, target) < unmet(network, clean, target)).all()
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    if name in IN_A_BALL:
        assert (found.adversarial - clean).abs().max() <= 8 / 255 + 1e-6


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_works_on_volumes(name: str) -> None:
    network, clean, target, change = pasted(1, dims=3)
    sure = Sure(network)
    guide = clean + change if preset(name).feature_weight else None
    found = attack(field(sure), clean, target, preset(name, steps=20), box(clean), guide=guide)
    assert (unmet(sure, found.adversarial, target) < unmet(sure, clean, target)).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    network, clean, target, _ = problem(4)
    config = preset(name, steps=10, **PERFECT)
    together = attack(field(network), clean, target, config, box(clean))
    for row in (0, 3):
        one = slice(row, row + 1)
        alone = attack(field(network), clean[one], target[one], config, box(clean[one]))
        torch.testing.assert_close(alone.adversarial, together.adversarial[one], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_the_judged_image_is_the_one_that_comes_back(name: str) -> None:
    network, clean, target, _ = problem()
    config = preset(name, steps=12)
    # A narrow box, so that most steps end at its border.
    found = attack(field(network), clean, target, config, box(clean, 0.3, 0.7))
    goal = Goal.of(target, labels(network, clean), 3, iou=config.goal_iou, hit=config.goal_hit)
    assert torch.equal(goal.judge(labels(network, found.adversarial)).score, found.verdict.score)
    torch.testing.assert_close(found.l2, (found.adversarial - clean).flatten(1).norm(dim=1))


@pytest.mark.parametrize("name", ONE_TERM)
def test_a_method_of_one_term_costs_one_forward_and_one_backward_a_step(name: str) -> None:
    network, clean, target, _ = problem()
    counted = Counted(field(network))
    found = attack(counted, clean, target, preset(name, steps=7, **PERFECT), box(clean, 0.2, 0.8))
    assert (found.forward, found.backward) == (counted.forward, counted.backward) == (2 + 2 * 7, 2 * 7)


@pytest.mark.parametrize("name", PRESETS)
def test_empty_targets_and_targets_that_are_there_are_defined(name: str) -> None:
    clean = scan(3, 9, 8)
    target = torch.zeros(3, 9, 8, dtype=torch.int64)
    target[1] = labels(Bright(), clean)[1]
    clean[2] = 0.25
    found = attack(field(Bright(scale=50.0)), clean, target, preset(name, steps=30), box(clean))
    assert found.outcomes[1:] == (Outcome.ALREADY, Outcome.ALREADY)
    assert torch.equal(found.adversarial[1:], clean[1:])
    assert labels(Bright(), found.adversarial)[0].sum() < labels(Bright(), clean)[0].sum()
    assert torch.isfinite(found.verdict.score).all()


@pytest.mark.parametrize("name", PRESETS)
def test_neither_the_callers_random_numbers_nor_the_parameters_are_touched(name: str) -> None:
    network, clean, target, _ = problem()
    network.module.requires_grad_(True)
    state = torch.get_rng_state()
    attack(field(network), clean, target, preset(name, steps=4), box(clean))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.module.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_voxels_at_the_border_of_the_box_are_not_stuck_there(name: str) -> None:
    clean = (scan(2, 8, 8) > 0.5).float()
    target = flipped(clean)
    # The feature term alone may pull a voxel out of the box.
    config = preset(name, steps=40, eps=0.9, eps_unit="model", random_start=False, feature_weight=0)
    last = iterates(Bright(scale=50.0), clean, target, config, box(clean))[-1]
    wrong = labels(Bright(), clean) != target
    assert (last != clean)[:, 0][wrong].all()


@pytest.mark.parametrize("name", ["pgd", "mifgsm", "segpgd", "cospgd", "asma", "dag"])
def test_with_small_steps_the_target_comes_nearer_in_every_one(name: str) -> None:
    network, clean, target, _ = problem(1)
    small = {"asma": {"tau": 1e-5, "beta": 0.0}}.get(name, {"step_size": 2e-4})
    seen = iterates(network, clean, target, preset(name, steps=12, **PERFECT, **small), box(clean, -1, 2))
    lead = [
        float((F.cross_entropy(network(x).logits, target, reduction="none") * (labels(network, clean) != target)).sum())
        for x in seen
    ]
    assert all(later < earlier for earlier, later in pairwise(lead))


@pytest.mark.parametrize("name", ["mafl", "mafl-paper", "mifgsm"])
def test_a_gradient_that_is_zero_for_a_while_leaves_the_momentum_sound(name: str) -> None:
    class Blinking(Recorded):
        def slopes(self, x: Tensor, losses: Losses) -> Slopes:
            slopes = super().slopes(x, losses)
            blind = len(self.seen) == 3
            return replace(slopes, gradients=[0 * g if blind else g for g in slopes.gradients])

    network, clean, target, _ = problem()
    blinking = Blinking(field(network))
    attack(blinking, clean, target, preset(name, steps=8, scale_search=0, **PERFECT), box(clean, -1, 2))
    assert torch.isfinite(torch.stack(blinking.seen[:6])).all()
    assert all((earlier != later).flatten(1).any(dim=1).all() for earlier, later in pairwise(blinking.seen[3:6]))


# --- goals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["bright", "unet"])
def test_a_lower_goal_is_reached_with_no_longer_a_change(which: str) -> None:
    if which == "bright":
        network: Any = Bright()
        clean = scan(2, 12, 12)
        target = flipped(clean)
    else:
        network, clean, target, _ = problem()
    goals = (0.9, 0.95, 0.99, 1.0)
    found = [
        attack(field(network), clean, target, AttackConfig(goal_iou=g, goal_hit=g, steps=80), box(clean)) for g in goals
    ]
    for lower, higher in pairwise(found):
        assert (lower.l2 <= 1.02 * higher.l2).all()
    for goal, each in zip(goals, found, strict=True):
        assert (each.verdict.iou >= goal - 1e-6).all()


@pytest.mark.parametrize("name", PRESETS)
def test_after_the_goal_a_sample_leaves_or_goes_on(name: str) -> None:
    network, clean, target, _ = problem(3)
    easy = {"goal_iou": 0.02, "goal_hit": 0.02, "steps": 16, "scale_search": 0}
    stops = attack(field(network), clean, target, preset(name, **easy, after_goal="stop"), box(clean))
    goes_on = attack(field(network), clean, target, preset(name, **easy, after_goal="continue"), box(clean))
    assert goes_on.forward == 3 + 3 * 16
    assert stops.forward < goes_on.forward
    # Of two changes about as long, the one that draws more of the target is better.
    assert ((goes_on.l2 <= stops.l2) | (goes_on.verdict.score > stops.verdict.score)).all()
    assert stops.verdict.reached.all() == goes_on.verdict.reached.all()


# --- the ball -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["mafl", "asma"])
def test_a_budget_gives_the_best_score_within_it_and_a_larger_one_a_better(name: str, norm: Any) -> None:
    network, clean, target, _ = problem()
    radii = {"linf": (0.02, 0.05, 0.5), "l2": (0.1, 0.3, 3.0)}[norm]
    found = [
        attack(field(network), clean, target, preset(name, steps=60, **budget(eps, norm)), box(clean)) for eps in radii
    ]
    for eps, result in zip(radii, found, strict=True):
        change = (result.adversarial - clean).flatten(1)
        size = change.abs().amax(dim=1) if norm == "linf" else change.norm(dim=1)
        assert (size <= eps * (1 + 1e-5)).all()
    for smaller, larger in pairwise(found):
        assert (larger.verdict.score >= smaller.verdict.score).all()
    assert (found[-1].verdict.score > found[0].verdict.score).all()
    if name == "mafl":
        assert found[-1].verdict.score.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["mafl", "pgd"])
def test_the_radius_means_the_same_in_every_unit(name: str) -> None:
    # 100 HU per model unit, a scan that fills half of its box, and noise of 8 HU:
    # 4 HU = 0.04 model units = 0.02 of the range = half the noise.
    clean = 100 * scan(2, 10, 10)
    target = flipped(clean / 100)
    limits = replace(box(clean, 0, 200, unit=torch.tensor([100.0])), noise=torch.tensor([8.0]))
    radii = {"native": 4.0, "model": 0.04, "range": 0.02, "noise": 0.5}
    by_unit = [
        attack(
            field(Bright(scale=50.0), 100.0), clean, target, preset(name, steps=12, eps=eps, eps_unit=unit), limits
        ).adversarial
        for unit, eps in radii.items()
    ]
    assert (by_unit[0] - clean).abs().max() <= 4 * (1 + 1e-5)
    assert (by_unit[0] - clean).abs().max() > 3.9
    for other in by_unit[1:]:
        torch.testing.assert_close(other, by_unit[0], rtol=0, atol=1e-3)


def test_a_radius_in_units_of_noise_needs_the_noise() -> None:
    clean = torch.full((1, 1, 2, 2), 50.0)
    config = AttackConfig(eps=1.5, eps_unit="noise")
    with pytest.raises(UsageError, match="needs the noise of the image"):
        box(clean, 0, 100).within(config)
    ball = replace(box(clean, 0, 100), noise=torch.tensor([4.0])).within(config).ball
    assert ball is not None
    assert ball.radius.tolist() == [6.0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("spacing", [None, 1.0, 0.7], ids=["float", "integers", "slope 0.7"])
def test_no_projection_leaves_the_ball(norm: Any, spacing: float | None) -> None:
    clean = torch.round(100 * scan(3, 8, 8))
    grid = None if spacing is None else rungs(spacing)
    config = AttackConfig(eps=2.5, eps_unit="native", norm=norm)
    limits = box(clean, -7, 107, unit=torch.tensor([10.0]), grid=grid).within(config)
    delta = 0.3 * torch.randn(clean.shape, generator=rng(3))
    moved = limits.project(clean, delta, torch.arange(3)) - clean
    size = moved.abs().amax() if norm == "linf" else moved.flatten(1).norm(dim=1).amax()
    assert 0 < size <= 2.5 * (1 + 1e-5)
    if spacing is not None:
        torch.testing.assert_close(moved / spacing, (moved / spacing).round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_clean_voxel_outside_the_box_stays_rather_than_jump_out_of_the_ball(norm: Any) -> None:
    clean = torch.tensor([0.0, 50.0, 99.0, 200.0]).view(1, 1, 1, 4)
    limits = box(clean, 20, 100).within(AttackConfig(eps=4.0, norm=norm))
    moved = limits.project(clean, torch.full_like(clean, 3.0 if norm == "linf" else 1.0), torch.tensor([0])) - clean
    assert moved.flatten().tolist() == ([0, 3, 1, 0] if norm == "linf" else [0, 1, 1, 0])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_ball_that_holds_no_stored_value_is_refused(norm: Any) -> None:
    clean = torch.full((1, 1, 2, 2), 50.0)
    limits = box(clean, 0, 100, grid=rungs(1.0))
    assert limits.within(AttackConfig(eps=1.0, norm=norm)).ball is not None
    with pytest.raises(UsageError, match="less than the step of 1 between the values"):
        limits.within(AttackConfig(eps=0.9, norm=norm))


def test_whole_steps_fill_the_ball() -> None:
    clean = torch.full((1, 1, 2, 2), 50.0)
    limits = box(clean, 0, 100, grid=rungs(0.1)).within(AttackConfig(eps=0.3, eps_unit="native"))
    moved = limits.project(clean, torch.full_like(clean, 9.0), torch.tensor([0])) - clean
    torch.testing.assert_close(moved, torch.full_like(clean, 0.3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_start_is_inside_the_ball_and_the_same_for_all(norm: Any) -> None:
    network, clean, target, _ = problem(3)
    config = preset("pgd", steps=2, eps=0.05, eps_unit="model", norm=norm, direction={"linf": "sign", "l2": "l2"}[norm])
    start, _ = iterates(network, clean + 1, target, config, box(clean, 0, 3))
    noise = start - clean - 1
    size = noise.abs().flatten(1).amax(dim=1) if norm == "linf" else noise.flatten(1).norm(dim=1)
    assert (size > 0.04).all()
    assert (size <= 0.05 * (1 + 1e-4)).all()
    torch.testing.assert_close(noise[1:], noise[:1].expand(2, -1, -1, -1), atol=1e-6, rtol=0)
    other, _ = iterates(network, clean + 1, target, replace(config, seed=1), box(clean, 0, 3))
    assert not torch.allclose(other, start)


def test_steps_finer_than_the_stored_grid_add_up() -> None:
    clean = torch.round(100 * scan(2, 8, 8))
    target = flipped(clean / 100)
    limits = box(clean, 0, 100, unit=torch.tensor([100.0]), grid=rungs(1.0))
    config = preset("pgd", steps=40, eps=4.0, eps_unit="native", random_start=False)
    recorded = Recorded(field(Bright(scale=50.0), 100.0))
    attack(recorded, clean, target, config, limits)
    # A quarter of a grey level a step, up to four of them.
    sizes = [float((x - clean).abs().max()) for x in recorded.seen]
    assert sizes[:20:2] == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4]


# --- low frequencies and the guide --------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("shape", [(16, 16), (9, 7), (4, 6, 5)], ids=["even", "odd", "3d"])
def test_the_hard_constraint_leaves_no_low_frequency(shape: tuple[int, ...], levels: int) -> None:
    clean = scan(2, *shape)
    target = flipped(clean)
    config = preset("mafl", steps=20, low_frequency="hard", low_frequency_levels=levels)
    # A box that is never touched.
    recorded = Recorded(field(Bright()))
    attack(recorded, clean, target, config, box(clean, -9, 9))
    moved = [x - clean[: len(x)] for x in recorded.seen[1:3]]
    assert all(x.abs().amax() > 1e-3 for x in moved)
    assert all(low_pass(x, levels).abs().amax() < 1e-6 for x in moved)


def test_deeper_levels_penalise_coarser_blocks_only() -> None:
    network, clean, target, _ = problem()
    share = []
    for levels in (1, 3):
        config = preset("mafl", steps=30, low_frequency_weight=1.0, low_frequency_levels=levels)
        change = attack(field(network), clean, target, config, box(clean)).adversarial - clean
        share.append([float(low_pass(change, n).norm() / change.norm()) for n in (1, 3)])
    assert share[0][0] < share[1][0]


def test_a_guide_costs_one_forward_and_changes_the_way() -> None:
    network, clean, target, source = problem()
    config = preset("ssah", steps=80, step_size=0.05)
    counted = Counted(field(network))
    guided = attack(counted, clean, target, config, box(clean), guide=source)
    alone = attack(field(network), clean, target, config, box(clean))
    assert guided.forward == counted.forward == alone.forward + 2
    assert guided.verdict.reached.all()
    assert not torch.equal(guided.adversarial, alone.adversarial)


@pytest.mark.parametrize("name", ["mafl", "ssah"])
def test_a_guide_that_is_the_clean_scan_does_no_harm(name: str) -> None:
    network, clean, target, _ = problem()
    found = attack(field(network), clean, target, preset(name, steps=150), box(clean), guide=clean)
    # Switched off, no voxel would follow.
    assert (found.verdict.hit > 0.9).all()


def test_a_guide_pulls_features_towards_itself() -> None:
    clean, source = scan(1, 8, 8), scan(1, 8, 8, seed=9)
    target = labels(Bright(), source)
    config = preset("ssah", feature_weight=100.0, steps=12, **PERFECT)
    guided = attack(field(Bright()), clean, target, config, box(clean), guide=source).adversarial

    def likeness(x: Tensor) -> float:
        return float(F.cosine_similarity(pooled(x)[0].features, pooled(source)[0].features, dim=1).mean())

    assert likeness(guided) > likeness(clean)


def test_a_guide_without_a_feature_term_is_refused() -> None:
    network, clean, target, source = problem()
    with pytest.raises(UsageError, match="a guide needs a feature term"):
        attack(field(network), clean, target, preset("pgd"), box(clean), guide=source)
