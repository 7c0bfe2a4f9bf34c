"""Directions and lengths, at ordinary and at extreme values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mafl_cli import steps


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


@settings(max_examples=50, deadline=None, derandomize=True)
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


def test_whiten_by_hand() -> None:
    gradient = torch.tensor([[4.0, 1.0], [0.0, 2.0]])
    # Root mean squares (4, 1) and (0, 2); half of the largest is added: (6, 3) and (1, 3).
    found = steps.whiten(gradient, torch.tensor([[16.0, 1.0], [0.0, 4.0]]), 0.5)
    torch.testing.assert_close(found, torch.tensor([[4 / 6, 1 / 3], [0.0, 2 / 3]]))


def test_whiten_of_nothing_is_nothing() -> None:
    zeros = torch.zeros(2, 1, 3, 3)
    assert torch.equal(steps.whiten(zeros, zeros, 0.3), zeros)


def test_heavy_damping_keeps_the_direction_and_light_damping_evens_it_out() -> None:
    x = noise(1, 1, 8, 8)
    torch.testing.assert_close(steps.unit(steps.whiten(x, x**2, 1e6)), steps.unit(x))
    torch.testing.assert_close(steps.whiten(x, x**2, 1e-6), x.sign(), atol=1e-3, rtol=0)


def test_the_distance_is_loss_over_slope_and_zero_where_there_is_no_slope() -> None:
    found = steps.distance(torch.tensor([2.0, 3.0, 1.0]), torch.tensor([4.0, 0.0, 1e-20]))
    assert torch.equal(found, torch.tensor([0.5, 0.0, 1e20]))
