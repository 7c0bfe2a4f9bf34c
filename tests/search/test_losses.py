"""The losses by hand, by finite differences, and by what they must not depend on."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from mafl_cli.config import MaskLoss
from mafl_cli.network import prediction
from mafl_cli.search import pressure as losses
from mafl_cli.search.losses import feature_cosine, feature_guide, mask_loss, size_gradient
from mafl_cli.search.pressure import Pressure, margins

SIZES = {"2d": (3, 4), "3d": (2, 3, 2)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, classes: int, seed: int = 5) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def margin_hinge(logits: Tensor, target: Tensor, kappa: Tensor, weight: Tensor | None = None) -> Tensor:
    return losses.margin_hinge(margins(logits, target), kappa, torch.ones_like(kappa) if weight is None else weight)[0]


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
        ((0, 0), (1.0, 1.0), 5.0),
        ((0, 0), (4.0, 4.0), (7 * 7 / 8 + 9) / 2),
        ((1, 2), (3.0, 3.0), 1 / 12),
        ((1, 2), (2.0, 7.0), 4 / 28),
    ],
    ids=[
        "both lose",
        "both win",
        "both lose by far",
        "one is not lost by kappa",
        "one by too little",
        "kappa per voxel",
    ],
)
def test_mask_loss_by_hand(target: tuple[int, int], kappa: tuple[float, float], expected: float) -> None:
    loss = margin_hinge(LOGITS, torch.tensor([[target]]), torch.tensor([[kappa]]))
    assert loss.tolist() == pytest.approx([expected])


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("spatial", SIZES.values(), ids=SIZES)
def test_the_gradient_is_that_of_a_hinge_rounded_off_within_kappa(spatial: tuple[int, ...], classes: int) -> None:
    target, kappa = labels(2, *spatial, classes=classes), noise(2, *spatial, seed=3).abs()
    logits = noise(2, classes, *spatial).requires_grad_()
    weight = noise(2, *spatial, seed=4).abs()
    short = (margins(logits, target) + kappa).clamp_min(0)
    hinge = torch.where(short < 2 * kappa, short**2 / (4 * kappa), short - kappa)
    (expected,) = torch.autograd.grad((hinge * weight).flatten(1).mean(dim=1).sum(), logits)
    (found,) = torch.autograd.grad(margin_hinge(logits, target, kappa, weight).sum(), logits)
    torch.testing.assert_close(found, expected)
    # Where kappa is 0 there is nothing to round off.
    assert torch.autograd.gradcheck(lambda z: margin_hinge(z, target, 0 * kappa), logits)


def test_the_hinge_is_smooth_where_its_pieces_meet_and_counts_by_weight() -> None:
    kappa = torch.full((1, 1, 4), 0.5, dtype=torch.float64)
    target = torch.zeros(1, 1, 4, dtype=torch.int64)
    # Margins just before and after -kappa, where it begins, and kappa, where it becomes straight.
    margin = torch.tensor([-0.5 - 1e-6, -0.5 + 1e-6, 0.5 - 1e-6, 0.5 + 1e-6], dtype=torch.float64).view(1, 1, 1, 4)
    logits = torch.cat([0 * margin, margin], dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(margin_hinge(logits, target, kappa).sum(), logits)
    torch.testing.assert_close(4 * gradient[0, 1, 0], torch.tensor([0.0, 0, 1, 1]).double(), atol=1e-5, rtol=0)
    weight = torch.tensor([[[0.0, 0.0, 3.0, 0.0]]], dtype=torch.float64)
    assert float(margin_hinge(logits.detach(), target, kappa, weight)) == pytest.approx(3 / 4 * 1.0, abs=1e-5)


@pytest.mark.parametrize("classes", [2, 5])
def test_won_voxels_have_no_gradient_and_lost_ones_pull_two_classes(classes: int) -> None:
    target, kappa = labels(2, 6, 7, classes=classes), torch.full((2, 6, 7), 0.2, dtype=torch.float64)
    logits = noise(2, classes, 6, 7).requires_grad_()
    (gradient,) = torch.autograd.grad(margin_hinge(logits, target, kappa).sum(), logits)
    won = margins(logits, target) < -kappa
    assert won.any()
    assert not won.all()
    pulled = (gradient != 0).sum(dim=1)
    assert (pulled == torch.where(won, 0, 2)).all()
    own = gradient.gather(1, target.unsqueeze(1)).squeeze(1)
    slope = ((margins(logits, target) + kappa) / (2 * kappa)).clamp(0, 1)
    torch.testing.assert_close(own, -slope / 42)


def test_mask_loss_scales_with_the_logits() -> None:
    logits, target, kappa = noise(2, 3, 4, 5), labels(2, 4, 5, classes=3), noise(2, 4, 5, seed=1).abs()
    torch.testing.assert_close(margin_hinge(10 * logits, target, 10 * kappa), 10 * margin_hinge(logits, target, kappa))
    torch.testing.assert_close(margin_hinge(logits + 7, target, kappa), margin_hinge(logits, target, kappa))


@pytest.mark.parametrize("repeats", [(2, 3), (2, 1, 3)], ids=["2d", "3d"])
def test_mask_loss_does_not_depend_on_the_size_of_the_scan(repeats: tuple[int, ...]) -> None:
    spatial = (3,) * len(repeats)
    logits, target, kappa = noise(1, 3, *spatial), labels(1, *spatial, classes=3), noise(1, *spatial, seed=1).abs()
    tiled = margin_hinge(logits.repeat(1, 1, *repeats), target.repeat(1, *repeats), kappa.repeat(1, *repeats))
    torch.testing.assert_close(tiled, margin_hinge(logits, target, kappa))


def test_samples_do_not_see_each_other() -> None:
    target, kappa = labels(4, 5, 6, classes=3), noise(4, 5, 6, seed=1).abs()
    logits, reference, weight = noise(4, 3, 5, 6), noise(4, 3, 5, 6, seed=2), noise(4, 5, 6, seed=4).abs()

    def both(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        z = logits[rows].clone().requires_grad_()
        values = margin_hinge(z, target[rows], kappa[rows]), feature_cosine(z, reference[rows], weight[rows])
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


# --- the losses of other attacks ----------------------------------------------------------------------------------

KINDS: tuple[MaskLoss, ...] = get_args(MaskLoss)
SUMS = ("logit", "dag")


def loss_of(
    kind: MaskLoss, logits: Tensor, target: Tensor, progress: float = 0.5, clean: Tensor | None = None
) -> Tensor:
    pressure = Pressure(torch.ones(target.shape, dtype=logits.dtype), target < 0, 0.1)
    clean = torch.zeros_like(target) if clean is None else clean
    rows = torch.arange(len(target))
    return mask_loss(kind, logits, target, pressure=pressure, rows=rows, clean=clean, progress=progress)


# Softmax of log p is p: voxel 0 has (.1, .6, .3), voxel 1 has (.5, .25, .25).
PROBABILITIES = torch.tensor([[0.1, 0.5], [0.6, 0.25], [0.3, 0.25]], dtype=torch.float64).view(1, 3, 1, 2)
LN = {p: float(torch.log(torch.tensor(p, dtype=torch.float64))) for p in (0.1, 0.25, 0.3, 0.5, 0.6)}


@pytest.mark.parametrize(
    ("kind", "target", "progress", "expected"),
    [
        # Voxel 0 has its target, voxel 1 has not.
        ("logit", (1, 2), 0.0, -LN[0.25]),
        ("ce", (1, 2), 0.0, -(LN[0.6] + LN[0.25]) / 2),
        ("segpgd", (1, 2), 0.0, -LN[0.25] / 2),
        ("segpgd", (1, 2), 0.5, -(0.25 * LN[0.6] + 0.75 * LN[0.25]) / 2),
        ("cospgd", (1, 1), 0.0, -(LN[0.6] * (1 - 0.6 / 0.46**0.5) + LN[0.25] * (1 - 0.25 / 0.375**0.5)) / 2),
        # By its definition, with the mixtures (.05, .8, .15) and (.25, .125, .625).
        (
            "js",
            (1, 2),
            0.0,
            (0.4 * math.log(2) + 0.6 * math.log(0.6 / 0.8) - math.log(0.8)) / 4
            + (0.75 * math.log(2) + 0.25 * math.log(0.25 / 0.625) - math.log(0.625)) / 4,
        ),
        # Class 1 and class 2 are wanted once each: 2 * .6 / (.85 + 1) and 2 * .25 / (.55 + 1).
        ("dice", (1, 2), 0.0, 1 - (1.2 / 1.85 + 0.5 / 1.55) / 2),
        # All background: 2 * .6 / (.6 + 2).
        ("dice", (0, 0), 0.0, 1 - 1.2 / 2.6),
        # Against the clean class, which here is class 0: not the best other one.
        ("dag", (2, 2), 0.0, LN[0.1] - LN[0.3] + LN[0.5] - LN[0.25]),
        # Lost on the way (voxel 0 was and shall be class 0): against the best other.
        ("dag", (0, 0), 0.0, LN[0.6] - LN[0.1]),
        ("logit", (1, 0), 0.0, 0.0),
        ("dag", (1, 0), 0.0, 0.0),
    ],
)
def test_losses_by_hand(kind: MaskLoss, target: tuple[int, int], progress: float, expected: float) -> None:
    found = loss_of(kind, PROBABILITIES.log(), torch.tensor([[target]]), progress)
    assert found.tolist() == pytest.approx([expected])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("spatial", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_have_the_right_gradient(kind: MaskLoss, spatial: tuple[int, ...], classes: int) -> None:
    logits, target = noise(2, classes, *spatial).requires_grad_(), labels(2, *spatial, classes=classes)
    clean = labels(2, *spatial, classes=classes, seed=6)
    if kind == "cospgd":  # finite differences know nothing of detached weights: hold them where they are
        probability = logits.detach().softmax(dim=1)
        weight = 1 - probability.gather(1, target[:, None]) / probability.norm(dim=1, keepdim=True)
        (expected,) = torch.autograd.grad(
            (weight[:, 0] * torch.nn.functional.cross_entropy(logits, target, reduction="none")).mean(), logits
        )
        (found,) = torch.autograd.grad(loss_of(kind, logits, target).mean(), logits)
        torch.testing.assert_close(found, expected)
    else:
        assert torch.autograd.gradcheck(lambda z: loss_of(kind, z, target, clean=clean), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_depend_on_neither_company_nor_size_and_sums_grow_with_it(kind: MaskLoss) -> None:
    logits, target = noise(3, 3, 4, 5), labels(3, 4, 5, classes=3)
    together = loss_of(kind, logits, target)
    assert torch.equal(loss_of(kind, logits[1:2], target[1:2]), together[1:2])
    tiled = loss_of(kind, logits.repeat(1, 1, 2, 3), target.repeat(1, 2, 3))
    torch.testing.assert_close(tiled, together * (6 if kind in SUMS else 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_losses_are_finite_for_sure_and_unsure_networks_and_any_target(kind: MaskLoss, scale: float) -> None:
    logits = (scale * noise(3, 3, 4, 5)).float().requires_grad_()
    target = labels(3, 4, 5, classes=3)
    target[0], target[1] = 0, logits[1].argmax(dim=0)
    value = loss_of(kind, logits, target)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SUMS])
def test_losses_fall_to_zero_as_the_target_is_drawn(kind: MaskLoss) -> None:
    target = labels(1, 4, 5, classes=3)
    one_hot = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    values = [float(loss_of(kind, noise(1, 3, 4, 5) + lead * one_hot, target)) for lead in (0.0, 1.0, 10.0)]
    assert values[0] > values[1] > values[2]
    assert values[2] == pytest.approx(0, abs=1e-2)


def vectors(*angles: float) -> Tensor:
    """Two features a position, by their angle in degrees: (1, 2, 1, n)."""
    angle = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()]).view(1, 2, 1, -1)


def test_feature_guide_by_hand() -> None:
    # Cosines with the clean scan (0 degrees) and the guide (90): .5 and .866 at 60, 1 and 0 at 0 degrees.
    far = 3**0.5 / 2
    everywhere = torch.ones(1, 1, 1, dtype=torch.float64)
    values = [float(feature_guide(vectors(x), vectors(0), vectors(90), everywhere)) for x in (0.0, 60.0, 120.0)]
    assert values == pytest.approx([0.8, max(0.3 * 0.5 - (1.2 - far) * far, 0), 0.0])
    assert float(feature_guide(vectors(0), vectors(0), vectors(180), everywhere)) == pytest.approx(0.8 + 2.2)


def test_feature_guide_averages_positions_by_weight() -> None:
    features, reference, guide = vectors(0, 180), vectors(0, 0), vectors(90, 90)
    weight = torch.tensor([[[3.0, 1.0]]], dtype=torch.float64)
    assert float(feature_guide(features, reference, guide, weight)) == pytest.approx(0.75 * 0.8)
    assert float(feature_guide(features, reference, guide, 0 * weight)) == 0


def test_feature_guide_pulls_towards_the_guide_with_detached_weights() -> None:
    features = vectors(30).requires_grad_()
    weight = torch.ones(1, 1, 1, dtype=torch.float64)
    value = feature_guide(features, vectors(0), vectors(90), weight)
    (gradient,) = torch.autograd.grad(value.sum(), features)
    push, pull = (3**0.5 / 2) - 0.2, 1.2 - 0.5
    # The cosines' slopes along the circle at 30 degrees: -sin 30 and +sin 60.
    tangent = vectors(120).flatten()
    assert float(gradient.flatten() @ tangent) == pytest.approx(-push * 0.5 - pull * 3**0.5 / 2)


def test_feature_guide_has_nothing_to_say_where_the_guide_is_the_clean_scan() -> None:
    weight = torch.ones(1, 1, 1, dtype=torch.float64)
    for degrees, alive in ((20.0, True), (44.0, True), (46.0, False), (89.0, False), (120.0, True)):
        features = vectors(degrees).requires_grad_()
        (gradient,) = torch.autograd.grad(feature_guide(features, vectors(0), vectors(0), weight).sum(), features)
        assert bool(gradient.abs().max() > 1e-9) == alive
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("spatial", SIZES.values(), ids=SIZES)
def test_feature_guide_with_its_weights_held_has_the_right_gradient(spatial: tuple[int, ...]) -> None:
    reference, guide = noise(2, 3, *spatial, seed=1), noise(2, 3, *spatial, seed=4)
    weight = noise(2, *(2 * n for n in spatial), seed=2).abs()
    features = noise(2, 3, *spatial).requires_grad_()

    # A copy: gradcheck moves its input in place.
    at = features.detach().clone()
    near, far = (torch.nn.functional.cosine_similarity(at, other, dim=1) for other in (reference, guide))

    def held(f: Tensor) -> Tensor:
        coarse = torch.nn.functional.interpolate(weight.unsqueeze(1), size=spatial, mode="area")[:, 0]
        cos_p, cos_n = (torch.nn.functional.cosine_similarity(f, other, dim=1) for other in (reference, guide))
        value = torch.relu((near - 0.2).clamp_min(0) * cos_p - (1.2 - far).clamp_min(0) * cos_n)
        return (value * coarse).flatten(1).sum(dim=1) / coarse.flatten(1).sum(dim=1)

    assert torch.autograd.gradcheck(held, features)
    (found,) = torch.autograd.grad(feature_guide(features, reference, guide, weight).sum(), features)
    (expected,) = torch.autograd.grad(held(features).sum(), features)
    torch.testing.assert_close(found, expected)


# --- how clearly voxels must be won, and what they count -----------------------------------------------------------

EVERYONE = torch.arange(2)
NOBODY, ALL = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)


def pressed(
    *margins_in_time: list[float], late: Tensor = NOBODY, agree: bool = False, progress: float = 0.0
) -> Pressure:
    """Two equal samples with clean leads of 1 and kappa a tenth of them, after predictions with these margins."""
    shape = (2, 1, len(margins_in_time[0]))
    pressure = Pressure(torch.ones(shape), torch.full(shape, agree), 0.1)
    for margin in margins_in_time:
        press(pressure, EVERYONE, margin, late, progress)
    return pressure


def press(pressure: Pressure, rows: Tensor, margin: list[float], late: Tensor, progress: float = 0.0) -> Tensor:
    """Take in a prediction with these margins; what each voxel counts in the loss of it, (b, 1, voxels)."""
    values = torch.tensor(margin).view(1, 1, 1, -1).expand(len(rows), 1, 1, -1)
    logits = torch.cat([0 * values, values], dim=1).requires_grad_()
    loss = pressure.loss(rows, logits, torch.zeros(len(rows), 1, len(margin), dtype=torch.int64))
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    pressure.update(rows, late, progress)
    return len(margin) * slope[:, 1]


def test_the_wanted_lead_falls_to_a_tenth_of_its_share_of_the_clean_lead() -> None:
    for progress, expected in ((0.0, 0.1), (0.5, 0.055), (1.0, 0.01)):
        kappa = pressed([-5.0], progress=progress).kappa(EVERYONE)
        torch.testing.assert_close(kappa, torch.full((2, 1, 1), expected))


def test_the_wanted_lead_is_no_less_than_half_of_what_a_step_changes() -> None:
    # Geometric mean of 0.4 and 0.9; the third voxel is far from the border, before and after.
    moved = pressed([-0.1, 0.1, -7.0], [0.3, -0.8, -3.0])
    torch.testing.assert_close(moved.kappa(EVERYONE), torch.full((2, 1, 3), 0.3))
    press(moved, EVERYONE, [0.3, -0.8, -3.0], NOBODY)
    # Half forgotten, for nothing moved since but for what counts as nothing: a millionth of the lead.
    assert float(moved.kappa(EVERYONE).max()) == pytest.approx(0.15, rel=1e-3)
    most = pressed([0.0, 0.0], [50.0, -50.0])
    torch.testing.assert_close(most.kappa(EVERYONE), torch.ones(2, 1, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_margin_that_is_no_number_for_once_leaves_the_wanted_lead_as_it_is(bad: float) -> None:
    pressure = pressed([-0.1, 0.1], [0.3, bad], [0.3, 0.1])
    assert torch.isfinite(pressure.kappa(EVERYONE)).all()
    assert float(pressure.kappa(EVERYONE).max()) < 1


def test_a_voxel_that_agrees_already_need_not_become_surer() -> None:
    shape = (2, 1, 2)
    lead = torch.tensor([0.04, 1.96]).expand(shape)
    pressure = Pressure(lead, torch.ones(shape, dtype=torch.bool), 0.1)
    torch.testing.assert_close(pressure.kappa(EVERYONE), torch.tensor([0.04, 0.1]).expand(shape))


def test_only_late_samples_weigh_their_voxels() -> None:
    margin = [1.0, -0.05, -2.0, 0.05]
    one = pressed(margin, late=torch.tensor([False, True]))
    none, weighed = press(one, EVERYONE, margin, NOBODY)
    torch.testing.assert_close(none, torch.tensor([[1.0, 0.25, 0.0, 0.75]]))
    torch.testing.assert_close(weighed, torch.tensor([[1.1, 0.25, 0.0, 1.1 * 0.75]]))


def test_weights_stay_in_bounds() -> None:
    pressure = pressed(*[[1.0, -2.0]] * 200, late=ALL)
    high, _ = press(pressure, EVERYONE, [1.0, 1.0], NOBODY)[0, 0]
    assert float(high) == pytest.approx(1e3)
    # The margin of the second has jumped: it is lost by kappa now, and counts in full but for its weight.
    assert float(press(pressure, EVERYONE, [3.0, 3.0], NOBODY)[0, 0, 1]) == pytest.approx(1e-3)


def test_a_sample_is_pressed_for_itself_alone() -> None:
    pressure = pressed([1.0, -0.2], late=ALL)
    before = pressure.kappa(EVERYONE)
    press(pressure, torch.tensor([1]), [0.1, 0.7], ALL[:1])
    assert torch.equal(pressure.kappa(EVERYONE)[0], before[0])
    assert not torch.equal(pressure.kappa(EVERYONE)[1], before[1])


def test_the_scale_of_the_logits_scales_the_wanted_lead_to_the_bit() -> None:
    leads = []
    for scale in (1.0, 2.0**30, 2.0**-30):
        pressure = Pressure(scale * torch.ones(2, 1, 2), torch.zeros(2, 1, 2, dtype=torch.bool), 0.1)
        for margin in ([-0.1, 0.1], [0.3, -0.8]):
            press(pressure, EVERYONE, [scale * m for m in margin], NOBODY)
        leads.append(pressure.kappa(EVERYONE) / scale)
    assert torch.equal(leads[0], leads[1])
    assert torch.equal(leads[0], leads[2])


@pytest.mark.parametrize("spatial", SIZES.values(), ids=SIZES)
def test_the_length_costs_its_peaks_more_in_any_unit(spatial: tuple[int, ...]) -> None:
    delta = noise(2, 1, *spatial)
    assert torch.equal(size_gradient(delta, 0.0), delta)
    found = size_gradient(delta, 0.5)
    torch.testing.assert_close(size_gradient(1000 * delta, 0.5), 1000 * found)
    torch.testing.assert_close(size_gradient(delta[:1], 0.5), found[:1])
    ratio = (found / delta).flatten(1)
    order = delta.abs().flatten(1).argsort(dim=1)
    assert (ratio.gather(1, order).diff(dim=1) >= 0).all()
    # A change of one size has no peaks.
    torch.testing.assert_close(size_gradient(delta.sign(), 0.5), delta.sign())
    assert not size_gradient(0 * delta, 0.5).any()


def test_what_is_drawn_is_the_first_of_the_highest() -> None:
    logits = noise(3, 4, 5, 6)
    logits[:, :, 0] = 1.0
    logits[:, 2:, 1] = 7.0
    assert torch.equal(prediction.drawn(logits), logits.argmax(dim=1))
    assert torch.equal(prediction.drawn(logits[0], dim=0), logits[0].argmax(dim=0))
    assert not (prediction.drawn(logits)[:, 0] != 0).any()
    assert (prediction.drawn(logits)[:, 1] == 2).all()
