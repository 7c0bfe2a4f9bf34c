"""Entropy, margin and their means against closed forms and against scipy, and their slopes against finite numbers."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import Tensor

from mafl_cli.network.uncertainty import closeness, entropy, foreground, scores, weighed


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_what_is_alike_has_all_of_it_and_what_is_certain_has_none(classes: int) -> None:
    alike, certain = torch.zeros(1, classes, 2), torch.zeros(1, classes, 2)
    certain[:, classes - 1] = 200
    for measure in (entropy, closeness):
        torch.testing.assert_close(measure(alike), torch.ones(1, 2))
        assert not measure(certain).any()
    torch.testing.assert_close(foreground(alike), torch.full((1, 2), 1 - 1 / classes))


def test_they_are_what_scipy_and_a_sort_make_of_the_probabilities() -> None:
    x = logits(2, 4, 3, 5)
    chances = x.double().softmax(dim=1).numpy()
    torch.testing.assert_close(
        entropy(x), torch.from_numpy(scipy_entropy(chances, base=4, axis=1)), check_dtype=False, rtol=0, atol=1e-6
    )
    ordered = chances.copy()
    ordered.sort(axis=1)
    margin = torch.from_numpy(ordered[:, -1] - ordered[:, -2])
    torch.testing.assert_close(1 - closeness(x), margin, check_dtype=False, rtol=0, atol=1e-6)


def test_of_two_classes_the_margin_is_that_of_the_sigmoid() -> None:
    x = logits(1, 1, 6, seed=1)
    both = torch.stack([-x / 2, x / 2], dim=1)
    torch.testing.assert_close(closeness(both), 1 - (2 * torch.sigmoid(x) - 1).abs())
    torch.testing.assert_close(foreground(both), torch.sigmoid(x))


def test_the_order_of_voxels_and_of_foreground_classes_does_not_matter() -> None:
    x = logits(2, 4, 60)
    totals = weighed(x).flatten(2).sum(dim=2)
    moved = weighed(x[:, [0, 3, 1, 2]][:, :, torch.randperm(60)]).flatten(2).sum(dim=2)
    torch.testing.assert_close(scores(moved), scores(totals))
    # A number that all classes of a voxel share is no information.
    torch.testing.assert_close(scores(weighed(x + logits(2, 1, 60)).flatten(2).sum(dim=2)), scores(totals))


def test_background_of_which_a_network_is_certain_does_not_count() -> None:
    x = logits(1, 3, 20)
    background = torch.zeros(1, 3, 4000)
    background[:, 0] = 60
    small, large = (scores(weighed(part).flatten(2).sum(dim=2)) for part in (x, torch.cat([x, background], dim=2)))
    torch.testing.assert_close(small, large)


def test_where_nothing_can_be_foreground_the_scores_are_0() -> None:
    nothing = torch.zeros(1, 2, 5)
    nothing[:, 0] = 1e4
    assert scores(weighed(nothing).flatten(2).sum(dim=2)).tolist() == [[0.0, 0.0]]


def test_the_slope_is_finite_where_probabilities_are_0() -> None:
    x = torch.tensor([[[500.0, 0.0], [-500.0, 0.5], [0.0, -700.0]]], requires_grad=True)
    (slope,) = torch.autograd.grad((entropy(x) + closeness(x)).sum(), x)
    assert bool(slope.isfinite().all())


def test_the_slope_is_that_of_finite_numbers() -> None:
    x = logits(1, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: (entropy(z), closeness(z), foreground(z)), x)
