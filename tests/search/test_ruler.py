"""What the size of a change is counted in: coordinates and their adjoint, and a search that is less visible."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from masked import Wrapped
from scipy import ndimage
from seen import visibility
from torch import Tensor

import mafl_cli as mafl
from mafl_cli.errors import UsageError
from mafl_cli.measure.observer import Screen, eye
from mafl_cli.search.ruler import Plain, Visible
from mafl_cli.search.steps import dot, length


def of(size: tuple[int, ...], plane: tuple[int, int], noise: tuple[float, ...] = (0.5, 2.0)) -> Visible:
    rows, columns = (size[axis] for axis in plane)
    return Visible(
        torch.from_numpy(eye((rows, columns), Screen(0.5))[:, : columns // 2 + 1]), torch.tensor(noise).double(), plane
    )


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "plane"),
    [((3, 2, 24, 31), (2, 3)), ((1, 2, 12, 9, 16), (3, 4)), ((1, 2, 12, 9, 16), (2, 4)), ((1, 2, 12, 9, 16), (2, 3))],
    ids=["slices", "a volume", "coronal", "last axis"],
)
def test_the_way_there_and_back_is_linear_and_its_own_adjoint(size: tuple[int, ...], plane: tuple[int, int]) -> None:
    ruler, change, other = of(size, plane), noise(*size), noise(*size, seed=1)
    there = ruler.coordinates(change)
    torch.testing.assert_close(ruler.change(there), change)
    torch.testing.assert_close(ruler.coordinates(change + 2 * other), there + 2 * ruler.coordinates(other))
    # A slope by the change, and one by coordinates, promise the same of the same step.
    torch.testing.assert_close(dot(ruler.slope(other), there), dot(other, change))
    torch.testing.assert_close(ruler.size(there, length(change)), length(there))


def test_a_volume_is_measured_as_its_slices_are() -> None:
    volume = noise(1, 2, 20, 27, 4)
    # The sum of the class, by another transform: over all frequencies, and slice by slice.
    seen = np.maximum(eye((20, 27), Screen(0.5)), Visible.FAINTEST)
    power = np.abs(np.fft.fft2(volume[0].numpy(), axes=(1, 2))) ** 2 / (20 * 27)
    known = np.sqrt((seen[None, :, :, None] * power / np.array([0.5, 2.0])[:, None, None, None] ** 2).sum())
    whole = of((1, 2, 20, 27, 4), (2, 3)).coordinates(volume)
    assert float(length(whole)) == pytest.approx(known)
    slices = volume[0].permute(3, 0, 1, 2)
    torch.testing.assert_close(of((4, 2, 20, 27), (2, 3)).coordinates(slices), whole[0].permute(3, 0, 1, 2))


def test_what_the_eye_sees_best_counts_most_and_noise_hides() -> None:
    size, plane = (1, 2, 32, 32), (2, 3)
    ruler, column = of(size, plane), torch.arange(32).double()

    def wave(cycles: int, channel: int) -> float:
        change = torch.zeros(size, dtype=torch.float64)
        change[0, channel] = torch.cos(2 * torch.pi * cycles * column / 32)[None]
        return float(length(ruler.coordinates(change)) / length(change))

    # 17.5 pixels per degree: 7 cycles in 32 pixels are 3.8 cycles per degree, where the eye sees best.
    seen = [wave(cycles, 0) for cycles in range(16)]
    assert seen.index(max(seen)) == 7
    assert seen[7] == pytest.approx(1 / 0.5, rel=0.01)
    assert seen[0] == pytest.approx(max(seen) * Visible.FAINTEST**0.5, rel=0.02)
    assert wave(7, 1) == pytest.approx(wave(7, 0) / 4)


def test_model_units_are_left_as_they_are() -> None:
    change = noise(2, 1, 5, 5)
    assert Plain().coordinates(change) is change
    assert Plain().change(change) is change
    assert Plain().slope(change) is change


def _image() -> Tensor:
    rng = np.random.default_rng(4)
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, (96, 96)), 5)
    scan = 0.5 + 0.25 * smooth / smooth.std() + rng.normal(0, 0.02, smooth.shape)
    return torch.from_numpy(np.clip(scan, 0, 1)).float()[None, None]


def _attacked(**options: Any) -> tuple[Any, Any]:
    image, network = _image(), Wrapped()
    with torch.no_grad():
        target = torch.roll(network(image).argmax(1), 3, -1)
    found = mafl.attack(network, image, target, steps=60, **options)
    return found, visibility(image[0, 0, :, :, None].numpy(), found.adversarial[0, 0, :, :, None].numpy())


def test_an_attack_that_minimises_visibility_reaches_its_goal_and_is_less_visible() -> None:
    (plain, shown), (hidden, seen) = _attacked(), _attacked(minimise="visibility")
    assert bool(plain.success.all())
    assert bool(hidden.success.all())
    assert seen.d_prime.number < shown.d_prime.number
    assert float(hidden.sizes.l2) > float(plain.sizes.l2)
    # An excess is about L2.
    assert torch.isnan(hidden.excess).all()
    assert not torch.isnan(plain.excess).any()


def test_the_limits_hold_whatever_is_minimised() -> None:
    found, _ = _attacked(minimise="visibility", eps=0.05)
    assert float(found.sizes.linf) <= 0.05 + 1e-6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "pgd", "eps": 0.1}, "`minimise` visibility needs `step` dynamic"),
        ({"low_frequency_weight": 0.2}, "no `low_frequency_weight`"),
        ({"method": "worst"}, "`method` worst compares lengths"),
    ],
)
def test_what_does_not_go_with_visibility_is_said(options: dict[str, Any], reason: str) -> None:
    name = options.pop("method", "mafl")
    with pytest.raises(UsageError, match=reason):
        mafl.preset(name, minimise="visibility", **options)
