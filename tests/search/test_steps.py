"""Directions and lengths, at ordinary and at extreme values."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mafl_cli.config import Direction
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


def test_directions_by_hand() -> None:
    velocity = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]])
    expected = {"raw": [3, -4, 0], "l2": [0.6, -0.8, 0], "linf": [0.75, -1, 0], "sign": [1, -1, 0]}
    for kind in get_args(Direction):
        found = steps.along(kind, velocity)
        torch.testing.assert_close(found, torch.tensor([expected[kind], [0, 0, 0]]).float())
