"""The search on problems whose answer is known, and what it must never do on any."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from problems import (
    Bright,
    Counted,
    Indifferent,
    Nearest,
    Rooted,
    box,
    field,
    flipped,
    labels,
    pasted,
    rungs,
    scan,
)
from torch import Tensor

from mafl_cli.codes import Outcome
from mafl_cli.config import AttackConfig
from mafl_cli.network.prediction import Prediction
from mafl_cli.search import losses
from mafl_cli.search.goals import Goal
from mafl_cli.search.limits import Limits
from mafl_cli.search.loop import AttackResult, StepRecord, attack

EVERY_VOXEL = AttackConfig(goal_iou=1, goal_hit=1)
QUICK = AttackConfig(goal_iou=1, goal_hit=1, steps=40)

SHAPES = {"2d": (1, 16, 16), "2d odd batch": (7, 9, 11), "3d": (1, 6, 8, 4), "3d odd batch": (7, 5, 7, 3)}


def same_bits(one: AttackResult, other: AttackResult, rows: slice = slice(None)) -> bool:
    return torch.equal(one.adversarial[rows], other.adversarial) and one.outcomes[rows] == other.outcomes


# --- known optimum ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [0, 1, -1], ids=["both ways", "brighter", "darker"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_change_is_close_to_the_smallest_there_is(shape: tuple[int, ...], sign: int) -> None:
    network, clean = Bright(), scan(*shape)
    target = flipped(clean, sign=sign)
    found = attack(field(network), clean, target, EVERY_VOXEL, box(clean))
    assert set(found.outcomes) == {Outcome.REACHED}
    assert torch.equal(labels(network, found.adversarial), target)
    torch.testing.assert_close(found.l2, (found.adversarial - clean).flatten(1).norm(dim=1))
    assert (found.l2 <= 1.05 * network.distance(clean, target)).all()


@pytest.mark.parametrize("share", [0.004, 0.05, 0.9], ids=["one voxel", "few", "nearly all"])
def test_targets_of_any_size(share: float) -> None:
    network, clean = Bright(), scan(3, 16, 16)
    target = flipped(clean, share)
    target[:, 3, 3] = 1 - (clean[:, 0, 3, 3] > 0.5).long()
    found = attack(field(network), clean, target, EVERY_VOXEL, box(clean))
    assert torch.equal(labels(network, found.adversarial), target)
    assert (found.l2 <= 1.1 * network.distance(clean, target)).all()


def test_a_target_may_be_empty() -> None:
    network, clean = Bright(), scan(2, 9, 8)
    target = torch.zeros(2, 9, 8, dtype=torch.int64)
    found = attack(field(network), clean, target, EVERY_VOXEL, box(clean))
    assert set(found.outcomes) == {Outcome.REACHED}
    assert not labels(network, found.adversarial).any()
    assert found.verdict.score.tolist() == [1.0, 1.0]
    assert (found.l2 <= 1.1 * network.distance(clean, target)).all()


def test_several_classes_swap() -> None:
    network, clean = Nearest([0.2, 0.5, 0.8]), scan(3, 12, 12)
    target = labels(network, clean)
    target[:, 2:9, 3:8] = torch.tensor([0, 2, 1])[target[:, 2:9, 3:8]]
    found = attack(field(network), clean, target, EVERY_VOXEL, box(clean))
    assert torch.equal(labels(network, found.adversarial), target)
    # A voxel of class 1 or 2 has to go just beyond 0.65.
    optimum = ((clean[:, 0] - 0.65) * (labels(network, clean) != target)).flatten(1).norm(dim=1)
    assert (found.l2 <= 1.1 * optimum).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_convolutional_network_draws_the_target(dims: int) -> None:
    network, clean, target, known = pasted(2, dims)
    config = AttackConfig(steps=60)
    found = attack(field(network), clean, target, config, box(clean))
    assert set(found.outcomes) == {Outcome.REACHED}
    again = Goal.of(target, labels(network, clean), 3, iou=config.goal_iou, hit=config.goal_hit).judge(
        labels(network, found.adversarial)
    )
    assert again.reached.all()
    assert torch.equal(again.iou, found.verdict.iou)
    assert torch.equal(again.hit, found.verdict.hit)
    assert (found.l2 < 0.5 * known.flatten(1).norm(dim=1)).all()


def test_only_the_feature_term_reaches_voxels_that_need_not_change() -> None:
    network, clean = Bright(), scan(3, 10, 10)
    target = flipped(clean)
    found = attack(field(network), clean, target, replace(EVERY_VOXEL, feature_weight=0), box(clean))
    assert torch.equal(found.adversarial[:, 0] != clean[:, 0], labels(network, clean) != target)


# --- independence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 2, 4])
def test_a_sample_does_not_depend_on_its_company(row: int) -> None:
    # Samples of every kind: hard, easy, already there, impossible within the steps.
    clean = scan(5, 10, 9)
    target = torch.cat([flipped(clean[:1], 0.9), flipped(clean[1:3], 0.02), flipped(clean[3:4], 0), flipped(clean[4:])])
    network, rows = field(Bright()), slice(row, row + 1)
    together = attack(network, clean, target, QUICK, box(clean))
    alone = attack(network, clean[rows], target[rows], QUICK, box(clean[rows]))
    assert same_bits(together, alone, rows)


def test_a_sample_does_not_depend_on_its_company_in_a_convolutional_network() -> None:
    network, clean, target, _ = pasted()
    config = AttackConfig(steps=12)
    together = attack(field(network), clean, target, config, box(clean))
    alone = attack(field(network), clean[1:2], target[1:2], config, box(clean[1:2]))
    torch.testing.assert_close(together.adversarial[1:2], alone.adversarial, rtol=1e-4, atol=1e-4)


def test_two_runs_are_bit_equal() -> None:
    network, clean, target, _ = pasted()
    config = AttackConfig(steps=20)
    one, other = (attack(field(network), clean, target, config, box(clean)) for _ in range(2))
    assert same_bits(one, other)
    assert (one.forward, one.backward) == (other.forward, other.backward)


@pytest.mark.parametrize("scale", [2.0**-40, 16.0, 2.0**40])
def test_the_scale_of_the_logits_does_not_matter(scale: float) -> None:
    clean = scan(3, 10, 10)
    target = flipped(clean)
    one, other = (attack(field(Bright(scale=s)), clean, target, QUICK, box(clean)) for s in (1.0, scale))
    assert same_bits(one, other)


@pytest.mark.parametrize("scale", [10.0, 0.3])
def test_other_scales_differ_by_rounding_only(scale: float) -> None:
    clean = scan(3, 10, 10)
    target = flipped(clean)
    # Few steps, for a voxel on the hinge of the loss makes much of a little rounding.
    config = replace(QUICK, steps=3)
    one, other = (attack(field(Bright(scale=s)), clean, target, config, box(clean)) for s in (1.0, scale))
    torch.testing.assert_close(other.adversarial, one.adversarial, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("unit", "tolerance"), [(64.0, 0.0), (50.0, 1e-6)])
def test_the_unit_of_the_file_does_not_matter(unit: float, tolerance: float) -> None:
    clean = scan(3, 10, 10)
    target = flipped(clean)
    config = QUICK if tolerance == 0 else replace(QUICK, steps=3)
    one = attack(field(Bright()), clean, target, config, box(clean))
    native = box(clean * unit, 0, unit, unit=torch.tensor([unit]))
    other = attack(field(Bright(), unit), clean * unit, target, config, native)
    torch.testing.assert_close(other.adversarial / unit, one.adversarial, rtol=0, atol=tolerance)
    torch.testing.assert_close(other.l2, one.l2, rtol=0, atol=tolerance)


# --- limits -------------------------------------------------------------------------------------------------------


def test_the_data_box_is_kept() -> None:
    clean = 0.1 + 0.45 * scan(2, 10, 10)
    target = torch.ones(2, 10, 10, dtype=torch.int64)
    found = attack(field(Bright()), clean, target, QUICK, box(clean, 0.2, 0.52))
    moved = found.adversarial != clean
    assert set(found.outcomes) == {Outcome.REACHED}
    assert found.adversarial[moved].min() >= 0.2
    assert found.adversarial[moved].max() <= torch.tensor(0.52)


def test_a_goal_outside_the_box_is_not_reached_and_the_closest_is_kept() -> None:
    clean = scan(2, 10, 10)
    target = flipped(clean)
    # The upper half cannot get brighter than it is: only voxels that must get darker can follow.
    found = attack(field(Bright()), clean, target, QUICK, box(clean, 0, 0.49))
    assert set(found.outcomes) == {Outcome.STEP_LIMIT}
    assert (found.verdict.hit > 0.3).all()
    assert not found.verdict.reached.any()
    goal = Goal.of(target, (clean[:, 0] > 0.5).long(), 2, iou=1, hit=1)
    assert torch.equal(goal.judge((found.adversarial[:, 0] > 0.5).long()).score, found.verdict.score)


def test_frozen_voxels_stay_and_the_others_do_the_work() -> None:
    network, clean = Bright(), scan(2, 10, 10)
    frozen = torch.zeros_like(clean, dtype=torch.bool)
    frozen[:, :, :5] = True
    target = flipped(clean)
    found = attack(field(network), clean, target, EVERY_VOXEL, box(clean, frozen=frozen))
    assert torch.equal(found.adversarial[frozen], clean[frozen])
    wanted = torch.where(frozen[:, 0], labels(network, clean), target)
    assert set(found.outcomes) == {Outcome.STEP_LIMIT}
    assert torch.equal(labels(network, found.adversarial), wanted)


@pytest.mark.parametrize("step", [1.0, 2.0], ids=["fine", "coarse"])
def test_the_stored_grid_is_kept(step: float) -> None:
    network, unit = Bright(border=0.505), 100.0
    clean = torch.round(unit * scan(3, 10, 10) / step) * step
    target = (clean[:, 0] > 50.5).long()
    target[:, 2:8, 3:7] = 1 - target[:, 2:8, 3:7]
    limits = box(clean, 0, unit, unit=torch.tensor([unit]), grid=rungs(step))
    found = attack(field(network, unit), clean, target, EVERY_VOXEL, limits)
    steps = (found.adversarial - clean) / step
    assert torch.equal(steps, steps.round())
    assert steps.any()
    assert set(found.outcomes) == {Outcome.REACHED}
    # The smallest change on the grid: each voxel to the first value beyond the border.
    beyond = {1.0: (50, 51), 2.0: (50, 52)}[step]
    nearest = torch.where(target.bool(), float(beyond[1]), float(beyond[0])).unsqueeze(1)
    optimum = ((clean - nearest) * (target != (clean[:, 0] > 50.5)).unsqueeze(1)).flatten(1).norm(dim=1) / unit
    assert (found.l2 <= 1.1 * optimum).all()


def test_background_zeros_stay_zero_and_nothing_else_becomes_zero() -> None:
    clean = scan(2, 10, 10) - 0.5
    clean[:, :, :3] = 0
    limits = box(clean, -1, 1, frozen=clean == 0, nonzero=True, grid=rungs(0.125))
    target = (clean[:, 0] > 0).long()
    target[:, 3:] = 1 - target[:, 3:]
    found = attack(field(Bright(border=0.0)), clean, target, QUICK, limits)
    assert (found.adversarial != clean).any()
    assert torch.equal(found.adversarial == 0, clean == 0)


def test_projection_by_hand() -> None:
    clean = torch.tensor([10.0, 10.0, 10.0, 99.0, 150.0, 0.0, 4.0]).view(1, 1, 1, 7)
    delta = torch.tensor([0.3, 0.04, 1.0, 1.0, 0.0, 1.0, -0.4]).view(1, 1, 1, 7)
    frozen = torch.zeros_like(clean, dtype=torch.bool)
    frozen[..., 2] = True
    limits = Limits(low=torch.tensor([0.0]), high=torch.tensor([100.0]), unit=torch.tensor([10.0]), frozen=frozen)
    rows = torch.tensor([0])
    exact = limits.project(clean, delta, rows).flatten()
    torch.testing.assert_close(exact, torch.tensor([13.0, 10.4, 10.0, 100.0, 150.0, 10.0, 0.0]))
    stored = replace(limits, grid=rungs(2.0), nonzero=True).project(clean, delta, rows).flatten()
    # Whole steps from the clean value: above 99 the next one, 101, is outside the box.
    assert stored.tolist() == [14.0, 10.0, 10.0, 99.0, 150.0, 10.0, 4.0]


def test_no_voxel_goes_out_of_sight() -> None:
    clean = torch.tensor([-80.0, -80.0, -80.0, 0.0, 50.0, 50.0, 90.0, 90.0]).view(1, 1, 1, 8)
    delta = torch.tensor([-9.0, 3.0, 99.0, -9.0, -9.0, 9.0, 5.0, -1.0]).view(1, 1, 1, 8)
    seen = (torch.tensor([0.0]), torch.tensor([60.0]))
    limits = box(clean, -100, 100, unit=torch.tensor([10.0]), window=seen)
    rows = torch.tensor([0])

    x = limits.project(clean, delta, rows)
    assert x.flatten().tolist() == [-80.0, -50.0, 60.0, 0.0, 0.0, 60.0, 90.0, 80.0]
    # What the model sees is the same as without: only what it does not see is taken back.
    without = replace(limits, window=None).project(clean, delta, rows)
    assert torch.equal(x.clamp(0, 60), without.clamp(0, 60))
    assert ((x - clean).abs() <= (without - clean).abs()).all()
    # A step further out would do nothing there.
    outwards = torch.where(x <= 0, 1.0, -1.0)
    assert limits.blocks(x, clean, outwards).flatten().tolist() == [True, False, True, True, True, True, True, False]
    assert not limits.blocks(x, clean, -outwards)[..., 1:].any()


# --- what it must survive -----------------------------------------------------------------------------------------


def test_samples_at_their_goal_are_left_alone() -> None:
    network, clean = Bright(), scan(3, 8, 8)
    target = labels(network, clean)
    target[1] = 1 - target[1]
    found = attack(field(network), clean, target, QUICK, box(clean))
    assert found.outcomes == (Outcome.ALREADY, Outcome.REACHED, Outcome.ALREADY)
    assert torch.equal(found.adversarial[::2], clean[::2])
    assert found.l2[::2].tolist() == [0.0, 0.0]


def test_a_network_without_gradient_is_reported() -> None:
    clean = scan(2, 8, 8)
    found = attack(field(Indifferent()), clean, torch.ones(2, 8, 8, dtype=torch.int64), QUICK, box(clean))
    assert set(found.outcomes) == {Outcome.NO_GRADIENT}
    assert torch.equal(found.adversarial, clean)
    assert torch.isfinite(found.verdict.score).all()
    assert found.backward <= 2 * len(clean)


def test_a_voxel_without_gradient_never_changes() -> None:
    class HalfBlind(Bright):
        def __call__(self, x: Tensor) -> Prediction:
            seen = torch.cat([x[:, :, :4], x[:, :, 4:].detach()], dim=2)
            return super().__call__(seen)

    clean = scan(2, 8, 8)
    found = attack(field(HalfBlind()), clean, flipped(clean), QUICK, box(clean))
    assert torch.equal(found.adversarial[:, :, 4:], clean[:, :, 4:])
    assert (found.adversarial[:, :, :4] != clean[:, :, :4]).any()


@pytest.mark.parametrize("erase", [False, True])
def test_an_infinite_slope_at_some_voxels_spoils_nothing(erase: bool) -> None:
    clean = scan(2, 8, 8)
    clean[:, :, 0] = 0
    target = torch.zeros(2, 8, 8, dtype=torch.int64) if erase else flipped(clean)
    target[:, 0] = 0
    found = attack(field(Rooted()), clean, target, QUICK, box(clean))
    assert torch.isfinite(found.adversarial).all()
    assert set(found.outcomes) == {Outcome.REACHED}
    assert torch.equal((found.adversarial[:, 0] > 0.5).long(), target)


def test_a_sample_without_a_prediction_is_left_alone_and_spoils_no_other() -> None:
    class Refusing(Bright):
        def __call__(self, x: Tensor) -> Prediction:
            nan = torch.where((x > 0).any(dim=3, keepdim=True).any(dim=2, keepdim=True), 0.0, float("nan"))
            prediction = super().__call__(x)
            return Prediction(prediction.logits + nan, prediction.features)

    clean = scan(2, 8, 8)
    target = flipped(clean)
    clean[0], target[0] = 0, 1
    found = attack(field(Refusing()), clean, target, QUICK, box(clean))
    assert found.outcomes == (Outcome.NO_GRADIENT, Outcome.REACHED)
    assert torch.equal(found.adversarial[0], clean[0])
    assert torch.equal((found.adversarial[1, 0] > 0.5).long(), target[1])


def test_constant_images_are_defined() -> None:
    clean = torch.full((2, 1, 8, 8), 0.25)
    target = torch.zeros(2, 8, 8, dtype=torch.int64)
    target[:, 2:5, 2:5] = 1
    found = attack(field(Bright()), clean, target, EVERY_VOXEL, box(clean))
    assert set(found.outcomes) == {Outcome.REACHED}
    assert (found.l2 <= 1.1 * 0.25 * 3).all()


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 8])
def test_very_small_budgets_are_used(steps: int) -> None:
    clean = scan(3, 8, 8)
    target = flipped(clean)
    counted = Counted(field(Bright()))
    found = attack(counted, clean, target, replace(QUICK, steps=steps), box(clean))
    # One more for the clean prediction, from which the first step can only learn where to go.
    assert counted.forward == found.forward <= (steps + 1) * len(clean)
    assert (found.adversarial != clean).flatten(1).any(dim=1).all() == (steps > 1)


def test_the_callers_tensors_are_not_touched() -> None:
    network, clean, target, _ = pasted()
    limits = box(clean)
    before = [x.clone() for x in (clean, target, limits.low, limits.high, limits.frozen)]
    attack(field(network), clean, target, replace(QUICK, steps=10), limits)
    for was, now in zip(before, (clean, target, limits.low, limits.high, limits.frozen), strict=True):
        assert torch.equal(was, now)
    assert not clean.requires_grad


# --- accounting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature_weight", [0.0, 0.3])
def test_passes_are_counted_and_within_the_budget(feature_weight: float) -> None:
    clean = scan(4, 10, 10)
    target = flipped(clean)
    target[2] = (clean[2, 0] > 0.5).long()
    config = replace(QUICK, feature_weight=feature_weight)
    counted = Counted(field(Bright()))
    found = attack(counted, clean, target, config, box(clean))
    assert (found.forward, found.backward) == (counted.forward, counted.backward)
    # One pass for the clean prediction, and none more for the sample that is there already.
    assert found.forward <= len(clean) + 3 * config.steps
    # The gradients of two terms are compared once.
    assert found.backward <= 3 * (config.steps + (1 if feature_weight else 0))


def test_every_step_is_told() -> None:
    clean = scan(2, 10, 10)
    told: list[StepRecord] = []
    found = attack(field(Bright()), clean, flipped(clean), QUICK, box(clean), on_step=told.append)
    assert [record.step for record in told] == list(range(len(told)))
    assert told[-1].reached == 1
    assert all(0 <= record.reached <= 1 for record in told)
    assert found.l2.mean() <= told[-1].l2 + 1e-6


def test_the_loss_that_is_told_is_the_mask_loss_of_each_iterate() -> None:
    """At step 0 that of the clean scan; a sample that is at its goal from the start counts 0."""
    clean = scan(3, 6, 6)
    target = flipped(clean)
    target[1] = (clean[1, 0] > 0.5).long()
    config = AttackConfig(
        goal_iou=1, goal_hit=1, steps=20, mask_loss="ce", after_goal="stop", feature_weight=0, adaptive_weights=False
    )
    told: list[StepRecord] = []
    attack(field(Bright()), clean, target, config, box(clean), on_step=told.append)
    each = losses.cross_entropy(Bright()(clean).logits, target)
    assert told[0].loss == pytest.approx(float((each[0] + each[2]) / 3), rel=1e-5)
    assert told[-1].loss < told[0].loss


def test_a_lower_goal_is_reached_with_no_longer_a_change() -> None:
    clean = scan(4, 12, 12)
    target = flipped(clean)
    goals = (0.5, 0.7, 0.9, 0.99, 1.0)
    found = [attack(field(Bright()), clean, target, AttackConfig(goal_iou=g, goal_hit=g), box(clean)) for g in goals]
    for goal, result in zip(goals, found, strict=True):
        assert set(result.outcomes) == {Outcome.REACHED}
        assert (result.verdict.iou >= goal - 1e-6).all()
    for lower, higher in pairwise(found):
        assert (lower.l2 <= 1.02 * higher.l2).all()


def test_more_steps_are_used_and_never_cost() -> None:
    clean = scan(7, 9, 11)
    target = flipped(clean, 0.9)
    optimum = Bright().distance(clean, target)
    few, many, most = (
        attack(field(Bright()), clean, target, replace(EVERY_VOXEL, steps=steps), box(clean)).l2 / optimum
        for steps in (30, 150, 600)
    )
    assert many.mean() < few.mean()
    assert (torch.cat([many, most]) <= 1.1).all()


@pytest.mark.parametrize(("change", "expected"), [(5.0, 10.7), (-5.0, 8.6), (0.2, 10.0)])
def test_the_box_ends_at_a_value_that_can_be_stored(change: float, expected: float) -> None:
    clean = torch.full((1, 1, 2, 2), 10.0)
    limits = box(clean, 8.0, 11.0, grid=rungs(0.7))
    found = limits.project(clean, torch.full_like(clean, change), torch.tensor([0]))
    torch.testing.assert_close(found, torch.full_like(clean, expected))


# --- another function's slopes ------------------------------------------------------------------------------------


class Stairs(Bright):
    """Bright(), of an image that is rounded: the slope is 0 everywhere."""

    def __call__(self, x: Tensor) -> Prediction:
        rounded = torch.round(16 * x) / 16
        return super().__call__(rounded + 0 * x)


def test_a_surrogates_slopes_are_followed_and_the_function_itself_judges() -> None:
    clean = scan(2, 12, 12)
    stairs, bright = field(Stairs()), field(Bright())
    target = (stairs.predict(clean).logits.argmax(dim=1) ^ (scan(2, 12, 12, seed=4)[:, 0] < 0.2).long()).long()
    alone = attack(stairs, clean, target, QUICK, box(clean))
    assert set(alone.outcomes) == {Outcome.NO_GRADIENT}
    found = attack(stairs, clean, target, QUICK, box(clean), surrogate=bright)
    drawn = stairs.predict(found.adversarial).logits.argmax(dim=1)
    agrees = (drawn == target).flatten(1).float().mean(dim=1)
    # Its border lies half a step away from that of the surrogate, which leaves voxels between them.
    assert (agrees > 0.9).all()
    torch.testing.assert_close(found.verdict.reached, (drawn == target).flatten(1).all(dim=1))
    assert found.forward > alone.forward
