"""The excess: how far a change is above the local optimum, on problems whose optimum is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import Bare, Bright, Nearest, box, field, flipped, labels, rungs, scan
from scipy.optimize import nnls
from torch import Tensor, nn

from mafl_cli.codes import Reason
from mafl_cli.config import AttackConfig, preset
from mafl_cli.errors import UsageError
from mafl_cli.search.certificate import Estimate
from mafl_cli.search.limits import Limits
from mafl_cli.search.loop import AttackResult, attack

EVERY_VOXEL = AttackConfig(goal_iou=1, goal_hit=1, steps=100)
PLAIN = replace(EVERY_VOXEL, peak_weight=0, low_frequency_weight=0)


class Linear(nn.Module):
    """One convolution with random weights; two classes may have their margin bent, which moves no border."""

    def __init__(self, channels: int, classes: int, width: int, *, bent: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution = nn.Conv2d(channels, classes, width, padding=width // 2)
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.convolution(x)
        return torch.tanh(3 * (z - z.flip(1))) if self.bent else z


def problem(network: Linear, channels: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """Smooth scans, and what the network draws once a part of each has changed."""
    draw = torch.Generator().manual_seed(4)
    clean, other = (
        nn.functional.avg_pool2d(torch.randn(2, channels, size + 4, size + 4, generator=draw), 5, 1) for _ in range(2)
    )
    source = clean.clone()
    source[..., 3:9, 3:9] += other[..., 3:9, 3:9]
    return clean, labels(Bare(network), source)


def shortest(network: Linear, clean: Tensor, target: Tensor) -> Tensor:
    """Length of the shortest change that makes every margin 0 or less, by least distance programming (Lawson and
    Hanson, 1974): (B,)."""
    pixels, convolution = target[0].numel(), network.convolution
    slopes = torch.func.jacrev(lambda x: convolution(x[None])[0])(torch.zeros_like(clean[0]))
    matrix = slopes.reshape(-1, pixels, clean[0].numel()).detach()
    found = []
    for logits, wanted in zip(convolution(clean).detach().flatten(2), target.flatten(1), strict=True):
        own, pixel = torch.arange(len(logits)).unsqueeze(1) == wanted, torch.arange(pixels)
        rows = (matrix - matrix[wanted, pixel])[~own].double().numpy()
        margins = (logits - logits[wanted, pixel])[~own].double().numpy()
        system = np.vstack([-rows.T, margins])
        weights, _ = nnls(system, np.eye(len(system))[-1], maxiter=30 * system.shape[1])
        rest = system @ weights - np.eye(len(system))[-1]
        found.append(float(np.linalg.norm(rest[:-1] / rest[-1])))
    return torch.tensor(found)


def wide(clean: Tensor, **others: Any) -> Limits:
    return box(clean, -50, 50, **others)


def excess(found: AttackResult) -> Tensor:
    return found.estimate.excess


# --- known optimum ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [50, 100, 300])
@pytest.mark.parametrize(("channels", "classes", "width"), [(1, 2, 7), (2, 3, 3), (2, 4, 5)])
def test_for_a_linear_network_the_excess_is_no_less_than_it_is_and_hardly_more(
    channels: int, classes: int, width: int, steps: int
) -> None:
    network = Linear(channels, classes, width)
    clean, target = problem(network, channels)
    found = attack(field(Bare(network)), clean, target, replace(EVERY_VOXEL, steps=steps), wide(clean))
    assert found.verdict.reached.all()
    true = found.l2 / shortest(network, clean, target) - 1
    assert (excess(found) >= true - 0.001).all()
    assert (excess(found) <= true + 0.025).all()


@pytest.mark.parametrize("width", [5, 7])
def test_for_bent_margins_the_excess_is_close(width: int) -> None:
    network = Linear(1, 2, width, bent=True)
    clean, target = problem(network, 1)
    found = attack(field(Bare(network)), clean, target, EVERY_VOXEL, wide(clean))
    true = found.l2 / shortest(network, clean, target) - 1
    torch.testing.assert_close(excess(found), true, rtol=0, atol=0.03)


def test_several_classes_with_levels_of_their_own() -> None:
    network, clean = Nearest([0.2, 0.5, 0.8]), scan(3, 12, 12)
    target = labels(network, clean)
    target[:, 2:9, 3:8] = torch.tensor([0, 2, 1])[target[:, 2:9, 3:8]]
    found = attack(field(network), clean, target, EVERY_VOXEL, box(clean))
    optimum = ((clean[:, 0] - 0.65) * (labels(network, clean) != target)).flatten(1).norm(dim=1)
    torch.testing.assert_close(excess(found), found.l2 / optimum - 1, rtol=0, atol=0.03)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("unit", [0.1, 1.0, 1000.0])
def test_neither_the_scale_of_logits_nor_the_unit_matters(scale: float, unit: float) -> None:
    clean = scan(2, 9, 9)
    target = flipped(clean)
    limits = box(unit * clean, 0, unit, unit=torch.full((1,), unit))
    found = attack(field(Bright(scale=scale), unit), unit * clean, target, EVERY_VOXEL, limits)
    true = found.l2 / Bright().distance(clean, target) - 1
    torch.testing.assert_close(excess(found), true, rtol=0, atol=0.01)


def test_the_price_of_peaks_and_of_a_lead_is_in_the_excess() -> None:
    network = Linear(2, 3, 3)
    clean, target = problem(network, 2)
    optimum = shortest(network, clean, target)
    plain, *dearer = (
        attack(field(Bare(network)), clean, target, config, wide(clean))
        for config in (PLAIN, replace(PLAIN, peak_weight=3), replace(PLAIN, kappa=0.3))
    )
    for found in (plain, *dearer):
        torch.testing.assert_close(excess(found), found.l2 / optimum - 1, rtol=0, atol=0.04)
    assert all((excess(found) > excess(plain)).all() for found in dearer)


# --- limits -------------------------------------------------------------------------------------------------------


class Summed(nn.Module):
    """Class 1 everywhere once the weighted sum of all voxels is above 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        weights = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(6))
        self.weights = nn.Parameter(0.2 + weights)

    def forward(self, x: Tensor) -> Tensor:
        total = (self.weights * x).sum(dim=(1, 2, 3), keepdim=True).expand(-1, 1, *x.shape[2:])
        return torch.cat([-total, total], dim=1)

    def shortest(self, clean: Tensor, most: Tensor) -> float:
        """Length of the shortest change that brings the sum to 0, no voxel above `most`: min(λ w, most - clean)."""
        low, high = 0.0, 1e4
        for _ in range(100):
            middle = (low + high) / 2
            moved = torch.minimum(middle * self.weights, most - clean)
            low, high = (middle, high) if float((self.weights * (clean + moved)).sum()) < 0 else (low, middle)
        return float(moved.norm())


@pytest.mark.parametrize("frozen", [False, True], ids=["all may change", "some frozen"])
@pytest.mark.parametrize("most", [0.25, 0.15], ids=["held here and there", "held more often"])
def test_what_the_limits_hold_counts_as_it_stands(most: float, frozen: bool) -> None:
    network, clean = Summed(8), -0.5 * scan(1, 8, 8)
    kept = torch.zeros_like(clean, dtype=torch.bool)
    kept[..., 6:] = frozen
    limits = box(clean, -50, most, frozen=kept)
    target = torch.ones(1, 8, 8, dtype=torch.int64)
    found = attack(field(Bare(network)), clean, target, PLAIN, limits)
    assert found.verdict.reached.all()
    optimum = network.shortest(clean, torch.where(kept, clean, limits.high))
    assert float(excess(found)[0]) == pytest.approx(float(found.l2[0]) / optimum - 1, abs=1e-3)


def test_rounding_to_the_stored_grid_is_in_the_excess() -> None:
    clean = scan(2, 9, 9).mul(100).round()
    target = flipped(clean / 100)
    unit = torch.full((1,), 100.0)
    fine = attack(field(Bright(), 100), clean, target, EVERY_VOXEL, box(clean, 0, 100, unit=unit))
    coarse = attack(field(Bright(), 100), clean, target, EVERY_VOXEL, box(clean, 0, 100, unit=unit, grid=rungs(5.0)))
    optimum = Bright().distance(clean / 100, target)
    assert (coarse.l2 > fine.l2).all()
    for found in (fine, coarse):
        torch.testing.assert_close(excess(found), found.l2 / optimum - 1, rtol=0, atol=0.04)


# --- where there is none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "asma"}, {"method": "ssah"}, {"method": "pgd"}, {"eps": 0.6}, {"mask_loss": "ce"},
        {"low_frequency": "hard"},
    ],
)  # fmt: skip
def test_a_search_that_estimates_nothing_says_so(settings: dict[str, Any]) -> None:
    settings = dict(settings)
    config = preset(settings.pop("method", "mafl"), **settings, steps=30)
    clean = scan(2, 8, 8)
    found = attack(field(Bright()), clean, flipped(clean), config, box(clean))
    assert excess(found).isnan().all()
    assert found.estimate.kkt_cosine.isnan().all()
    with pytest.raises(UsageError, match="`until` needs an estimate of the excess"):
        replace(config, until=0.02)


def test_neither_a_target_that_is_missed_nor_one_that_is_met_has_an_excess() -> None:
    clean = scan(3, 8, 8)
    target = flipped(clean)
    target[1] = labels(Bright(), clean)[1]
    found = attack(field(Bright()), clean, target, replace(EVERY_VOXEL, steps=1), box(clean))
    assert excess(found).isnan().all()
    found = attack(field(Bright()), clean, target, EVERY_VOXEL, box(clean))
    assert excess(found).isnan().tolist() == [False, True, False]
    assert (found.estimate.kkt_cosine[::2] > 0.95).all()


# --- all samples, and leaving early -------------------------------------------------------------------------------


def test_samples_are_joined_as_one_change() -> None:
    nan = float("nan")
    estimate = Estimate(torch.tensor([3.3, 4.4, 9]), torch.tensor([0.1, 0.1, nan]), torch.tensor([0.9, 0.9, nan]))
    joined = estimate.joined(Reason.NO_ESTIMATE)
    assert joined.excess.number == pytest.approx(0.1)
    assert joined.kkt_cosine.number == pytest.approx(0.9)
    assert joined.excess_per_sample == pytest.approx({"0": 0.1, "1": 0.1})
    assert Estimate.none(torch.zeros(2, 1)).joined(Reason.GOAL_NOT_REACHED).excess.reason is Reason.GOAL_NOT_REACHED


@pytest.mark.parametrize("until", [0.03, 0.1])
def test_samples_leave_once_their_excess_is_small_enough(until: float) -> None:
    clean = scan(3, 12, 12)
    target = torch.cat([flipped(clean[:2]), flipped(clean[2:], 0.02)])
    whole = attack(field(Bright()), clean, target, EVERY_VOXEL, box(clean))
    found = attack(field(Bright()), clean, target, replace(EVERY_VOXEL, until=until), box(clean))
    assert found.verdict.reached.all()
    assert (excess(found) <= until).all()
    assert found.backward < whole.backward
    assert (found.l2 / Bright().distance(clean, target) - 1 <= until + 0.01).all()


def test_nothing_leaves_before_its_goal() -> None:
    clean = scan(2, 12, 12)
    target = flipped(clean)
    steps: list[float] = []
    config = replace(EVERY_VOXEL, until=1e6)
    found = attack(
        field(Bright()), clean, target, config, box(clean), on_step=lambda record: steps.append(record.reached)
    )
    assert found.verdict.reached.all()
    assert steps[-2] == 1.0
    hard = attack(field(Bright()), clean, target, replace(config, steps=2), box(clean))
    assert hard.backward == 2 * len(clean)


def test_an_excess_that_is_never_met_changes_nothing() -> None:
    clean = scan(2, 12, 12)
    target = flipped(clean)
    one, other = (
        attack(field(Bright()), clean, target, replace(EVERY_VOXEL, until=until), box(clean)) for until in (None, 1e-6)
    )
    assert torch.equal(one.adversarial, other.adversarial)
    assert one.backward == other.backward
