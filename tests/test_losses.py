"""The losses by hand, by finite differences, and by what they must not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mafl_cli.losses import feature_cosine, margins, mask_loss

SIZES = {"2d": (3, 4), "3d": (2, 3, 2)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, classes: int, seed: int = 5) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


# Two voxels, three classes: z = (1, 4, 2) and (0, -1, 5).
LOGITS = torch.tensor([[1.0, 0.0], [4.0, -1.0], [2.0, 5.0]]).view(1, 3, 1, 2)


@pytest.mark.parametrize(
    ("target", "expected"),
    [((0, 0), (3.0, 5.0)), ((1, 2), (-2.0, -5.0)), ((2, 1), (2.0, 6.0))],
    ids=["both lose", "both win", "others"],
)
def test_margins_by_hand(target: tuple[int, int], expected: tuple[float, float]) -> None:
    assert margins(LOGITS, torch.tensor([[target]])).flatten().tolist() == list(expected)


@pytest.mark.parametrize(
    ("target", "kappa", "expected"),
    [
        ((0, 0), (0.0, 0.0), 4.0),
        ((1, 2), (0.0, 0.0), 0.0),
        ((1, 2), (3.0, 3.0), 0.5),
        ((1, 2), (2.0, 7.0), 1.0),
        ((1, 1), (0.0, -9.0), 0.0),
    ],
    ids=["both lose", "both win", "one by too little", "kappa per voxel", "kappa below the margin"],
)
def test_mask_loss_by_hand(target: tuple[int, int], kappa: tuple[float, float], expected: float) -> None:
    loss = mask_loss(LOGITS, torch.tensor([[target]]), torch.tensor([[kappa]]))
    assert loss.tolist() == [expected]


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("spatial", SIZES.values(), ids=SIZES)
def test_mask_loss_has_the_right_gradient(spatial: tuple[int, ...], classes: int) -> None:
    target, kappa = labels(2, *spatial, classes=classes), noise(2, *spatial, seed=3).abs()
    logits = noise(2, classes, *spatial).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: mask_loss(z, target, kappa), logits)


@pytest.mark.parametrize("classes", [2, 5])
def test_won_voxels_have_no_gradient_and_lost_ones_pull_two_classes(classes: int) -> None:
    target, kappa = labels(2, 6, 7, classes=classes), torch.full((2, 6, 7), 0.2, dtype=torch.float64)
    logits = noise(2, classes, 6, 7).requires_grad_()
    (gradient,) = torch.autograd.grad(mask_loss(logits, target, kappa).sum(), logits)
    won = margins(logits, target) < -kappa
    assert won.any()
    assert not won.all()
    pulled = (gradient != 0).sum(dim=1)
    assert (pulled == torch.where(won, 0, 2)).all()
    own = gradient.gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(own, torch.where(won, 0.0, -1 / 42).double())


def test_mask_loss_scales_with_the_logits() -> None:
    logits, target, kappa = noise(2, 3, 4, 5), labels(2, 4, 5, classes=3), noise(2, 4, 5, seed=1).abs()
    torch.testing.assert_close(mask_loss(10 * logits, target, 10 * kappa), 10 * mask_loss(logits, target, kappa))
    torch.testing.assert_close(mask_loss(logits + 7, target, kappa), mask_loss(logits, target, kappa))


@pytest.mark.parametrize("repeats", [(2, 3), (2, 1, 3)], ids=["2d", "3d"])
def test_mask_loss_does_not_depend_on_the_size_of_the_scan(repeats: tuple[int, ...]) -> None:
    spatial = (3,) * len(repeats)
    logits, target, kappa = noise(1, 3, *spatial), labels(1, *spatial, classes=3), noise(1, *spatial, seed=1).abs()
    tiled = mask_loss(logits.repeat(1, 1, *repeats), target.repeat(1, *repeats), kappa.repeat(1, *repeats))
    torch.testing.assert_close(tiled, mask_loss(logits, target, kappa))


def test_samples_do_not_see_each_other() -> None:
    target, kappa = labels(4, 5, 6, classes=3), noise(4, 5, 6, seed=1).abs()
    logits, reference, weight = noise(4, 3, 5, 6), noise(4, 3, 5, 6, seed=2), noise(4, 5, 6, seed=4).abs()

    def both(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        z = logits[rows].clone().requires_grad_()
        values = mask_loss(z, target[rows], kappa[rows]), feature_cosine(z, reference[rows], weight[rows])
        (gradient,) = torch.autograd.grad((values[0] + values[1]).sum(), z)
        return values[0].detach(), values[1].detach(), gradient

    for all_rows, one_row in zip(both(slice(0, 4)), both(slice(2, 3)), strict=True):
        assert torch.equal(all_rows[2:3], one_row)


def test_feature_cosine_by_hand() -> None:
    features = torch.tensor([[3.0, 1.0], [4.0, 0.0]]).view(1, 2, 1, 2)
    reference = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)
    weights = torch.tensor([[[[1.0, 1.0]]], [[[1.0, 0.0]]], [[[0.0, 1.0]]], [[[3.0, 1.0]]]])
    values = [float(feature_cosine(features, reference, weight)) for weight in weights]
    assert values == pytest.approx([0.5, 1.0, 0.0, 0.75])
    assert float(feature_cosine(-features, reference, weights[1])) == pytest.approx(-1.0)


def test_feature_cosine_averages_the_weight_down_to_the_tap() -> None:
    features, reference = noise(1, 4, 2, 2), noise(1, 4, 2, 2, seed=1)
    fine = noise(1, 6, 10, seed=2).abs()
    coarse = fine.view(1, 2, 3, 2, 5).mean(dim=(2, 4))
    expected = feature_cosine(features, reference, coarse)
    torch.testing.assert_close(feature_cosine(features, reference, fine), expected)


@pytest.mark.parametrize("spatial", SIZES.values(), ids=SIZES)
def test_feature_cosine_has_the_right_gradient(spatial: tuple[int, ...]) -> None:
    reference = noise(2, 3, *spatial, seed=1)
    weight = noise(2, *(2 * n + 1 for n in spatial), seed=2).abs()
    features = noise(2, 3, *spatial).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: feature_cosine(f, reference, weight), features)


def test_feature_cosine_does_not_depend_on_the_scale_of_features_or_weights() -> None:
    features, reference, weight = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1), noise(2, 8, 8, seed=2).abs()
    expected = feature_cosine(features, reference, weight)
    torch.testing.assert_close(feature_cosine(100 * features, reference, weight), expected)
    torch.testing.assert_close(feature_cosine(features, reference, 100 * weight), expected)


@pytest.mark.parametrize(
    ("features", "reference", "weight"),
    [
        (torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4), torch.zeros(1, 8, 8)),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.ones(1, 8, 8)),
        (torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.ones(1, 8, 8)),
    ],
    ids=["no weight", "dead features", "dead reference"],
)
def test_where_there_is_nothing_to_compare_there_is_no_gradient(
    features: Tensor, reference: Tensor, weight: Tensor
) -> None:
    features = features.clone().requires_grad_()
    value = feature_cosine(features, reference, weight)
    (gradient,) = torch.autograd.grad(value.sum(), features)
    assert value.tolist() == [0.0]
    assert not gradient.any()


def test_features_that_die_against_a_live_reference_stay_finite() -> None:
    features = torch.zeros(1, 3, 4, 4, requires_grad=True)
    value = feature_cosine(features, torch.ones(1, 3, 4, 4), torch.ones(1, 8, 8))
    (gradient,) = torch.autograd.grad(value.sum(), features)
    assert value.tolist() == [0.0]
    assert torch.isfinite(gradient).all()
