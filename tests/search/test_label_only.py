"""Searches by labels alone: what they count, that they only ever get better, and that they get somewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.search.asking import stripes_of
from mafl_cli.search.goals import Goal
from mafl_cli.search.label_only import Spoilt, _blocks, spoil
from mafl_cli.search.label_targeted import aim
from mafl_cli.search.limits import Ball, Limits


def scan(dims: int = 2, seed: int = 0) -> Tensor:
    """Two samples with a bright ball of one radius each, (2, 1, *spatial), in [0, 1]."""
    side = 32 if dims == 2 else 14
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, side)] * dims, indexing="ij"))
    far = (grid**2).sum(0).sqrt()
    noise = 0.02 * torch.rand((2, 1, *far.shape), generator=torch.Generator().manual_seed(seed))
    return 0.4 + 0.2 * torch.stack([far < 0.5, far < 0.7]).unsqueeze(1).float() + noise


def bright(x: Tensor) -> Tensor:
    """Class 1 where the mean over 3 voxels is above a half."""
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return (pool(x, 3, 1, 1, count_include_pad=False)[:, 0] > 0.5).long()


def limits(x: Tensor, eps: float | None) -> Limits:
    ball = None if eps is None else Ball(torch.tensor([eps]), "linf")
    one = torch.ones(1)
    return Limits(low=0 * one, high=one, unit=one, frozen=torch.zeros_like(x, dtype=torch.bool), ball=ball)


def test_dice_with_the_clean_prediction_is_that_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    clean, labels = (torch.from_numpy(rng.integers(0, 3, (2, 9, 7))) for _ in range(2))
    found = Spoilt(clean, 3, 0.5).dice_of(labels)
    for row in range(2):
        a, b = clean[row].numpy(), labels[row].numpy()
        each = [2 * np.sum((a == c) & (b == c)) / (np.sum(a == c) + np.sum(b == c)) for c in (1, 2)]
        assert float(found[row]) == pytest.approx(np.mean(each))


def test_what_is_empty_is_alike_and_what_appears_is_not() -> None:
    empty, full = torch.zeros(1, 4, 4, dtype=torch.long), torch.ones(1, 4, 4, dtype=torch.long)
    goal = Spoilt(empty, 2, 0.5)
    assert goal.dice_of(empty).tolist() == [1.0]
    assert goal.dice_of(full).tolist() == [0.0]
    assert Spoilt(full, 2, 0.5).judge(empty).reached.tolist() == [True]


def test_samples_together_are_one_mask() -> None:
    clean = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 0, 0]]])
    labels = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    each, together = Spoilt(clean, 2, 0.5).judge_together(labels)
    assert each.hit.tolist() == [0.0, 1.0]
    assert together.hit.tolist() == pytest.approx([1 - 2 * 2 / (3 + 2)])


@pytest.mark.parametrize("level", [1, 2, 5])
def test_blocks_are_the_whole_part_and_do_not_overlap(level: int) -> None:
    part = (slice(3, 20), slice(0, 9), slice(1, 12))
    count = torch.zeros(22, 12, 14, dtype=torch.int)
    blocks = _blocks(part, level)
    assert len(blocks) == 2**level
    for block in blocks:
        count[block] += 1
    assert bool((count[part] == 1).all())
    assert int(count.sum()) == 17 * 9 * 11
    assert _blocks((slice(0, 2), slice(0, 2)), 3) == []


def teststripes_of_vary_along_one_axis_alone() -> None:
    signs = stripes_of(torch.zeros(2, 3, 8, 9), 3, torch.Generator().manual_seed(0))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert bool((signs == signs[:, :, :1]).all())
    assert not torch.equal(signs[0], signs[1])


@pytest.mark.parametrize("dims", [2, 3])
def test_an_untargeted_search_halves_the_overlap_within_its_ball_and_stops(dims: int) -> None:
    x = scan(dims)
    x = x if dims == 2 else x[:1]
    labels, asked = bright(x), []

    def ask(changed: Tensor) -> Tensor:
        asked.append(changed)
        return bright(changed)

    found = spoil(ask, x, labels, limits(x, 0.12), Spoilt(labels, 2, 0.5), queries=40)
    assert bool(found.verdict.reached.all())
    assert len(asked) == len(found.records) - 1 < 40
    assert all(float((each - x).abs().max()) <= 0.12 + 1e-6 for each in asked)
    assert bool((Spoilt(labels, 2, 0.5).dice_of(bright(found.adversarial)) <= 0.5).all())
    # At the goal the change is made shorter.
    assert float((found.adversarial - x).abs().max()) < 0.12


def test_more_queries_are_never_worse_and_begin_alike() -> None:
    x = scan()
    labels = bright(x)
    few, many = (
        spoil(bright, x, labels, limits(x, 0.04), Spoilt(labels, 2, 0.5), queries=n, stop=False).records
        for n in (10, 40)
    )
    assert (len(few), len(many)) == (11, 41)
    scores = [record.score for record in many]
    assert scores == sorted(scores)
    assert scores[-1] > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_a_targeted_search_reaches_the_target_and_then_shortens_the_change(dims: int) -> None:
    x = scan(dims)
    labels = bright(x)
    target = torch.roll(labels, 2, dims=1)
    goal = Goal.of(target, labels, 2, iou=0.8, hit=0.8)
    found = aim(bright, x, labels, target, limits(x, None), goal, queries=120)
    assert bool(found.verdict.reached.all())
    assert goal.judge(bright(found.adversarial)).reached.all()
    first = next(record for record in found.records if record.reached == 1)
    assert found.records[-1].l2 < first.l2


def test_a_start_that_is_at_the_goal_costs_one_query_and_is_shortened() -> None:
    x = scan()
    labels = bright(x)
    target = torch.zeros_like(labels)
    goal = Goal.of(target, labels, 2, iou=0.99, hit=0.99)
    start = x - 0.3 * (labels > 0).unsqueeze(1)
    found = aim(bright, x, labels, target, limits(x, None), goal, queries=30, start=start)
    assert [record.reached for record in found.records[:2]] == [0.0, 1.0]
    assert found.records[-1].reached == 1.0
    assert found.records[-1].l2 < 0.8 * found.records[1].l2


def test_samples_do_not_influence_each_other_where_the_target_is_reached() -> None:
    """What is kept of one is decided by its own labels."""
    x = scan()
    labels = bright(x)
    goal = Spoilt(labels, 2, 0.5)
    found = spoil(bright, x, labels, limits(x, 0.04), goal, queries=20, stop=False)
    for row in range(2):
        assert float(goal.judge(bright(found.adversarial)).score[row]) == pytest.approx(float(found.verdict.score[row]))
