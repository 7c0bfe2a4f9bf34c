"""Directions and lengths, at ordinary and at extreme values."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mafl_cli.config import AttackConfig, Direction, GradientNorm
from mafl_cli.search import steps


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-6, 1.0, 1e6, 1e30], ids=str)
@pytest.mark.parametrize("shape", [(3, 1, 5, 4), (2, 2, 3, 4, 5)], ids=["2d", "3d"])
def test_unit_has_length_one_at_any_scale(shape: tuple[int, ...], scale: float) -> None:
    x = noise(*shape)
    found = steps.unit(scale * x)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(len(x)))
    if scale > 1e-38:  # subnormal numbers carry few digits
        torch.testing.assert_close(found, x / x.flatten(1).norm(dim=1).view(-1, *(1,) * (x.ndim - 1)))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30], ids=str)
def test_length_is_the_l2_norm_at_any_scale(scale: float) -> None:
    x = noise(3, 2, 5, 4)
    expected = (x.double() * scale).flatten(1).norm(dim=1)
    torch.testing.assert_close(steps.length(scale * x).double(), expected, rtol=1e-6, atol=0)


def test_a_zero_gradient_gives_a_zero_direction() -> None:
    x = torch.stack([torch.zeros(1, 4, 4), noise(1, 4, 4)])
    found = steps.unit(x)
    assert not found[0].any()
    assert torch.equal(found[1:], steps.unit(x[1:]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_values_that_are_not_finite_are_left_out(bad: float) -> None:
    x = noise(2, 1, 4, 4)
    x[0, 0, 1, 1] = bad
    clean = x.clone()
    clean[0, 0, 1, 1] = 0
    assert torch.equal(steps.unit(x), steps.unit(clean))
    assert not steps.unit(torch.full((1, 1, 3, 3), bad)).any()


@settings(max_examples=50, derandomize=True)
@given(st.lists(st.floats(width=32, allow_subnormal=True), min_size=1, max_size=12))
def test_unit_is_always_finite_and_never_longer_than_one(values: list[float]) -> None:
    found = steps.unit(torch.tensor(values).view(1, 1, 1, -1))
    assert torch.isfinite(found).all()
    assert float(found.double().norm()) <= 1 + 1e-6


def test_spread_out_lines_values_up_with_samples() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    x = noise(3, 2, 4, 5, 6)
    scaled = x * steps.spread_out(values, x)
    assert torch.equal(scaled[2], 3 * x[2])


def test_the_distance_is_loss_over_slope_and_zero_where_there_is_no_slope() -> None:
    found = steps.distance(torch.tensor([2.0, 3.0, 1.0]), torch.tensor([4.0, 0.0, 1e-20]))
    assert torch.equal(found, torch.tensor([0.5, 0.0, 1e20]))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30], ids=str)
@pytest.mark.parametrize("shape", [(3, 1, 5, 4), (2, 2, 3, 4, 5)], ids=["2d", "3d"])
def test_the_l1_norm_is_that_of_the_whole_sample(shape: tuple[int, ...], scale: float) -> None:
    x = noise(*shape)
    found = steps.l1_unit(scale * x)
    torch.testing.assert_close(found.flatten(1).abs().sum(dim=1), torch.ones(len(x)))
    torch.testing.assert_close(found, x / x.flatten(1).abs().sum(dim=1).view(-1, *(1,) * (x.ndim - 1)))


@pytest.mark.parametrize("kind", get_args(GradientNorm))
def test_a_zero_or_broken_gradient_is_zero_in_every_norm(kind: GradientNorm) -> None:
    x = noise(3, 1, 4, 4)
    x[0], x[1, 0, 2, 2] = 0, float("nan")
    scaling = steps.Scaling(AttackConfig(gradient_norm=kind), x)
    rows = torch.arange(3)
    scaling.first(rows, torch.ones(3), steps.finite(x))
    found = scaling.of_gradient(rows, x)
    assert not found[0].any()
    assert torch.isfinite(found).all()
    assert found[1, 0, 2, 2] == 0
    assert torch.equal(found[2:], scaling.of_gradient(rows[2:], x[2:]))


@pytest.mark.parametrize("scale", [1.0, 2.0**30, 2.0**-30], ids=str)
def test_the_first_gradient_becomes_the_way_to_the_target_and_gives_its_measure_to_the_others(scale: float) -> None:
    x, rows = noise(2, 1, 4, 4), torch.arange(2)
    scaling = steps.Scaling(AttackConfig(), x)
    scaling.first(rows, scale * torch.tensor([3.0, 0.5]), scale * x)
    way = torch.tensor([3.0, 0.5]) / x.flatten(1).norm(dim=1)
    first = scaling.of_gradient(rows, scale * x)
    torch.testing.assert_close(first.flatten(1).norm(dim=1), way)
    torch.testing.assert_close(scaling.reach, first.flatten(1).abs().amax(dim=1))
    torch.testing.assert_close(scaling.of_gradient(rows, 5 * scale * x), 5 * first)


def test_rms_is_the_direction_of_adam_but_for_its_damping() -> None:
    gradients = torch.randn(6, 1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    scaling, rows = steps.Scaling(AttackConfig(gradient_norm="none"), gradients[0]), torch.arange(1)
    x = torch.zeros_like(gradients[0], requires_grad=True)
    adam = torch.optim.Adam([x], lr=1.0, betas=(0.9, 0.99), eps=0.0)
    second = torch.zeros_like(gradients[0])
    for step, gradient in enumerate(gradients):
        before, x.grad = x.detach().clone(), gradient.clone()
        adam.step()
        second = 0.99 * second + 0.01 * gradient**2
        rms = (second / (1 - 0.99 ** (step + 1))).sqrt()
        found = scaling.with_momentum(rows, gradient, step)
        torch.testing.assert_close(found * (1 + 0.01 * rms.max() / rms), before - x.detach(), rtol=1e-4, atol=1e-5)


def test_voxels_without_influence_stay_put() -> None:
    gradient = torch.tensor([1.0, 1e-9, 0.0]).view(1, 1, 1, 3)
    scaling = steps.Scaling(AttackConfig(gradient_norm="none"), gradient)
    found = scaling.with_momentum(torch.arange(1), gradient, 0).flatten()
    assert found[0] > 0.98
    assert found[1] < 1e-6
    assert found[2] == 0


def test_directions_by_hand() -> None:
    velocity = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]])
    expected = {"raw": [3, -4, 0], "l2": [0.6, -0.8, 0], "linf": [0.75, -1, 0], "sign": [1, -1, 0]}
    for kind in set(get_args(Direction)) - {"rms"}:
        found = steps.along(kind, velocity)
        torch.testing.assert_close(found, torch.tensor([expected[kind], [0, 0, 0]]).float())


def now(step: int, direction: torch.Tensor, reach: float = 1e9) -> steps.Now:
    return steps.Now(
        step=step, budget=4, exact=torch.ones(2, 1, 1, 3), direction=direction.expand(2, 1, 1, 3),
        reach=torch.full((2,), reach), iou=torch.tensor([0.0, 0.5]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "step", "lengths"),
    [
        ({"step": "constant", "step_size": 0.1}, 0, (0.2, 0.2)),
        ({"step": "constant", "step_size": 0.1}, 3, (0.2, 0.2)),
        ({"step": "cosine", "step_size": 0.1}, 0, (0.2, 0.2)),
        ({"step": "cosine", "step_size": 0.1}, 2, (0.1, 0.1)),
        # ASMA takes tau alone in its first step, when nothing was judged yet.
        ({"step": "asma", "step_size": None, "tau": 0.1, "beta": 0.2}, 0, (0.2, 0.2)),
        ({"step": "asma", "step_size": None, "tau": 0.1, "beta": 0.2}, 1, (0.2, 0.4)),
    ],
)
def test_scheduled_steps_by_hand(settings: dict[str, object], step: int, lengths: tuple[float, float]) -> None:
    config = AttackConfig(direction="linf", after_goal="stop", **settings)  # type: ignore[arg-type]
    rule = steps.Rule(config, config.step_size or 0, torch.full((1, 1, 1, 1), 2.0))
    moved = rule(now(step, torch.tensor([0.75, -1.0, 0.0]))) - 1
    torch.testing.assert_close(moved[:, 0, 0], torch.tensor([[-0.75 * n, n, 0] for n in lengths]))


@pytest.mark.parametrize(
    ("steps_of_run", "step", "reach", "length"),
    [
        (150, 0, 1e9, 0.1 * 2 * 1.02),
        (150, 2, 1e9, 0.1 * 2 * 0.52),
        (600, 0, 1e9, 0.1 * 2 * 0.25**0.6 * 1.02),
        (150, 0, 0.4, 0.25 * 0.4 * 1.02),
        # So few steps that a quarter of the way each does not lead there.
        (4, 0, 0.1, 0.75 * 0.1 * 1.02),
    ],
)
def test_the_dynamic_step_by_hand(steps_of_run: int, step: int, reach: float, length: float) -> None:
    rule = steps.Rule(AttackConfig(steps=steps_of_run, step_size=0.1), 0.1, torch.full((1, 1, 1, 1), 2.0))
    moved = rule(now(step, torch.tensor([1.0, -0.5, 0.0]), reach)) - 1
    torch.testing.assert_close(moved[0, 0, 0], torch.tensor([-length, 0.5 * length, 0.0]))
