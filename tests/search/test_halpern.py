"""The dynamic step: by hand, towards a known optimum, and what it must not depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import standing
from torch import Tensor

from mafl_cli.config import AttackConfig
from mafl_cli.search.halpern import Halpern
from mafl_cli.search.steps import dot

PLAIN = AttackConfig(low_frequency_weight=0, peak_weight=0, feature_weight=0)


def none(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(start: Tensor, normal: Tensor, level: float, steps: int, *, scale: float = 1.0, unit: float = 1.0) -> Tensor:
    """The change after some steps with the loss scale * (level - normal · δ)+, which is drawn where it is 0.

    unit: model units per unit of `start`, `normal` and the answer.
    """
    delta, rule = unit * start.clone(), Halpern(PLAIN, start, none)
    ever = torch.zeros(1, dtype=torch.bool)
    for step in range(steps):
        lacking = (level - dot(normal, delta / unit)).clamp_min(0)
        gradient = -scale / unit * normal * (lacking > 0).view(-1, *(1,) * (normal.ndim - 1))
        score = (lacking <= 0.01 * level).float()
        ever |= score == 1
        now = standing(delta, gradient, step=step, budget=steps, score=score, loss=scale * lacking, ever=ever)
        delta = rule.step(now)
    return delta / unit


def test_the_first_step_ends_where_the_slope_says_the_target_is() -> None:
    normal = noise(1, 1, 5, 4)
    found = run(torch.zeros_like(normal), normal, 3.0, 1)
    torch.testing.assert_close(found, 3 * normal / dot(normal, normal))


@pytest.mark.parametrize("shape", [(1, 1, 7, 5), (1, 2, 5, 4, 6)], ids=["2d", "3d"])
def test_it_ends_at_the_closest_point_wherever_it_begins(shape: tuple[int, ...]) -> None:
    normal = noise(*shape)
    best = 3 * normal / dot(normal, normal)
    for start in (torch.zeros(shape), 5 * best.norm() * noise(*shape, seed=1) / noise(*shape, seed=1).norm()):
        found = run(start, normal, 3.0, 400)
        assert float((found - best).norm() / best.norm()) < 0.05


@pytest.mark.parametrize(("scale", "unit"), [(2.0**30, 1.0), (2.0**-30, 1.0), (1.0, 2.0**20), (2.0**9, 2.0**-20)])
def test_neither_the_scale_of_logits_nor_the_unit_matters(scale: float, unit: float) -> None:
    normal, start = noise(1, 1, 5, 4), noise(1, 1, 5, 4, seed=1)
    expected = run(start, normal, 3.0, 20)
    torch.testing.assert_close(run(start, normal, 3.0, 20, scale=scale, unit=unit), expected, rtol=1e-5, atol=1e-6)


def test_the_number_of_voxels_does_not_matter() -> None:
    """Four times the scan has four times the voxels, each of which does the same."""
    normal, start = noise(1, 1, 5, 4), noise(1, 1, 5, 4, seed=1)
    once = run(start, normal, 3.0, 20)
    # The loss is a mean over voxels.
    larger = run(start.repeat(1, 1, 2, 2), normal.repeat(1, 1, 2, 2) / 4, 3.0, 20)
    torch.testing.assert_close(larger, once.repeat(1, 1, 2, 2), rtol=1e-4, atol=1e-5)


def test_voxels_without_influence_never_move() -> None:
    normal = noise(1, 1, 5, 4)
    normal[..., 2] = 0
    assert not run(torch.zeros_like(normal), normal, 3.0, 30)[..., 2].any()


def test_without_a_slope_a_sample_stays_where_it_is() -> None:
    clean = torch.zeros(2, 1, 3, 3)
    gradient = torch.zeros_like(clean)
    gradient[1] = 1
    found = Halpern(PLAIN, clean, none).step(standing(clean, gradient, loss=torch.ones(2)))
    assert not found[0].any()
    assert found[1].all()
    assert torch.isfinite(found).all()


def test_what_is_pulled_back_gives_nothing_up() -> None:
    """The pull goes along the border of the cut: a step without a way to go keeps the loss."""
    normal, delta = noise(1, 1, 5, 4), noise(1, 1, 5, 4, seed=1)
    delta *= dot(normal, delta).sign()
    now = standing(delta.clone(), -normal, loss=torch.zeros(1))
    found = Halpern(PLAIN, delta, none).step(now)
    torch.testing.assert_close(dot(normal, found), dot(normal, delta), rtol=1e-4, atol=1e-4)
    assert found.norm() < delta.norm()


def test_a_target_that_is_late_is_all_that_matters() -> None:
    config = replace(PLAIN, goal_iou=0.99, aim=0.99)
    normal, delta = noise(1, 1, 5, 4), noise(1, 1, 5, 4, seed=1)
    found = []
    for step in (16, 17):
        now = standing(delta.clone(), -normal, step=step, budget=40, score=torch.tensor([0.9]), loss=torch.zeros(1))
        assert bool(now.is_late(config)) == (step == 17)
        found.append(Halpern(config, delta, none).step(now))
    assert found[0].norm() < delta.norm()
    torch.testing.assert_close(found[1], delta)
    drawn = standing(delta, -normal, step=17, budget=40, score=torch.tensor([0.9]), ever=torch.tensor([True]))
    assert not drawn.is_late(config)


def test_samples_do_not_influence_each_other() -> None:
    normal, delta = noise(3, 1, 5, 4), noise(3, 1, 5, 4, seed=1)
    loss, score = torch.tensor([0.5, 1.0, 0.0]), torch.tensor([0.1, 0.7, 1.0])
    together = Halpern(PLAIN, delta, none)
    alone = Halpern(PLAIN, delta[1:2], none)
    for step in (0, 1, 2):
        every = standing(delta.clone(), -normal, step=step, score=score, loss=loss)
        one = standing(delta[1:2].clone(), -normal[1:2], step=step, score=score[1:2], loss=loss[1:2])
        assert torch.equal(together.step(every)[1:2], alone.step(one))
