"""The verdict on a prediction against counting by hand, in NumPy, per sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import MeanIoU
from torch import Tensor

from mafl_cli.search.goals import Goal


def labels(*rows: list[int]) -> Tensor:
    """One sample per row, as a (B, 1, N) image."""
    return torch.tensor(rows).unsqueeze(1)


def goal(target: Tensor, clean: Tensor, classes: int, iou: float = 0.99, hit: float = 0.99) -> Goal:
    return Goal.of(target, clean, classes, iou=iou, hit=hit)


def random_labels(*shape: int, classes: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, classes, shape))


def iou_by_sets(labels: np.ndarray, target: np.ndarray) -> float:
    """Mean IoU over the foreground classes of the target, from sets of positions; 1 without any."""
    found = []
    for k in set(target.ravel().tolist()) - {0}:
        here, wanted = (set(map(tuple, np.argwhere(x == k))) for x in (labels, target))
        found.append(len(here & wanted) / len(here | wanted))
    return float(np.mean(found)) if found else 1.0


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 2)], ids=["2d", "3d"])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_iou_equals_counting_sets(classes: int, shape: tuple[int, ...]) -> None:
    target, clean, found = (random_labels(20, *shape, classes=classes, seed=seed) for seed in range(3))
    verdict = goal(target, clean, classes).judge(found)
    expected = [iou_by_sets(f, t) for f, t in zip(found.numpy(), target.numpy(), strict=True)]
    np.testing.assert_allclose(verdict.iou, expected, rtol=1e-6)


def test_iou_equals_monai() -> None:
    target, found = random_labels(6, 9, 8, classes=4, seed=1), random_labels(6, 9, 8, classes=4, seed=2)
    onehot = [torch.nn.functional.one_hot(x, 4).movedim(-1, 1) for x in (found, target)]
    expected = MeanIoU(include_background=False, reduction="mean_channel")(*onehot).mean(dim=1)
    torch.testing.assert_close(goal(target, found, 4).judge(found).iou, expected)


@pytest.mark.parametrize(
    ("clean", "target", "found", "iou", "hit", "removal"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], 1, 1, 1),
        ([1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], 1 / 3, 0, 1),
        ([1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0], 2 / 3, 1 / 2, 1),
        ([1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], 1, 0, 0),
        ([1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], 1, 1 / 2, 1 / 2),
        ([1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], 1, 1, 1 / 2),
        ([1, 1, 2, 0], [1, 1, 1, 0], [1, 1, 2, 0], 2 / 3, 0, 0),
        ([1, 1, 2, 0], [1, 1, 1, 0], [1, 1, 1, 2], 1, 1, 0),
        ([1, 1, 2, 2], [2, 2, 1, 1], [2, 2, 1, 2], (1 / 2 + 2 / 3) / 2, 3 / 4, 1),
        ([0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], 1, 1, -2),
        ([1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], 3 / 4, 0, 1),
    ],
    ids=[
        "identical",
        "nothing moved yet",
        "half of the change",
        "removal, not begun",
        "removal, half",
        "removal, but elsewhere new",
        "a class must go, still there",
        "a class must go, is elsewhere",
        "swap",
        "empty target and prediction, new voxels",
        "one background voxel",
    ],
)
def test_verdict_by_hand(
    clean: list[int], target: list[int], found: list[int], iou: float, hit: float, removal: float
) -> None:
    verdict = goal(labels(target), labels(clean), 3).judge(labels(found))
    numbers = [float(x) for x in (verdict.iou, verdict.hit, verdict.removal, verdict.score)]
    assert numbers == pytest.approx([iou, hit, removal, min(iou, hit, removal)], abs=1e-6)
    assert bool(verdict.reached) == (min(iou, hit, removal) >= 0.99)


def test_a_small_change_in_a_large_organ_is_not_done_before_it_began() -> None:
    clean = torch.ones(1, 100, 100, dtype=torch.int64)
    target = clean.clone()
    target[0, :5, :5] = 0
    verdict = goal(target, clean, 2).judge(clean)
    assert float(verdict.iou) > 0.99
    assert not verdict.reached


def test_the_goal_is_met_at_exactly_its_number() -> None:
    target, clean = labels([1] * 4 + [0] * 96), labels([0] * 100)
    found = labels([1] * 3 + [0] * 97)
    assert goal(target, clean, 2, iou=0.75, hit=0.75).judge(found).reached
    assert not goal(target, clean, 2, iou=0.76, hit=0.75).judge(found).reached
    assert not goal(target, clean, 2, iou=0.75, hit=0.76).judge(found).reached


IMAGES = hnp.arrays(np.int64, (2, 3, 4), elements=st.integers(0, 3))


@settings(max_examples=60, derandomize=True)
@given(target=IMAGES, clean=IMAGES)
def test_the_target_itself_is_always_perfect(target: np.ndarray, clean: np.ndarray) -> None:
    verdict = goal(torch.from_numpy(target), torch.from_numpy(clean), 4, iou=1, hit=1).judge(torch.from_numpy(target))
    for number in (verdict.iou, verdict.hit, verdict.removal, verdict.score):
        assert number.tolist() == [1.0, 1.0]
    assert verdict.reached.all()


@settings(max_examples=60, derandomize=True)
@given(target=IMAGES, clean=IMAGES, found=IMAGES)
def test_numbers_are_defined_and_only_the_target_is_perfect(
    target: np.ndarray, clean: np.ndarray, found: np.ndarray
) -> None:
    target_, clean_, found_ = map(torch.from_numpy, (target, clean, found))
    verdict = goal(target_, clean_, 4, iou=1, hit=1).judge(found_)
    assert ((verdict.iou >= 0) & (verdict.iou <= 1)).all()
    assert ((verdict.hit >= 0) & (verdict.hit <= 1)).all()
    assert (torch.isfinite(verdict.removal) & (verdict.removal <= 1)).all()
    assert torch.equal(verdict.reached, (found_ == target_).flatten(1).all(dim=1))


@settings(max_examples=60, derandomize=True)
@given(target=IMAGES, clean=IMAGES, found=IMAGES, goals=st.lists(st.floats(1e-6, 1), min_size=2, max_size=2))
def test_what_meets_a_goal_meets_every_lower_one(
    target: np.ndarray, clean: np.ndarray, found: np.ndarray, goals: list[float]
) -> None:
    low, high = sorted(goals)
    target_, clean_, found_ = map(torch.from_numpy, (target, clean, found))
    below = goal(target_, clean_, 4, iou=low, hit=low).judge(found_).reached
    above = goal(target_, clean_, 4, iou=high, hit=high).judge(found_).reached
    assert (below | ~above).all()


@settings(max_examples=30, derandomize=True)
@given(target=IMAGES, clean=IMAGES, found=IMAGES)
def test_samples_do_not_see_each_other(target: np.ndarray, clean: np.ndarray, found: np.ndarray) -> None:
    target_, clean_, found_ = map(torch.from_numpy, (target, clean, found))
    both = goal(target_, clean_, 4)
    rows = torch.tensor([1])
    together, alone = both.judge(found_), both[rows].judge(found_[rows])
    for name in ("iou", "hit", "removal", "reached"):
        assert torch.equal(getattr(together, name)[rows], getattr(alone, name))
