"""The mean of a function over noise: its value, and a slope that fast waves no longer spoil."""

from __future__ import annotations

import torch
from problems import Bare, Bright, field, scan
from torch import Tensor, nn

from mafl_cli.field.field import Field, Slopes
from mafl_cli.field.smoothed import Smoothed
from mafl_cli.network.prediction import Prediction


class Wavy(nn.Module):
    """Bright voxels are class 1; a wave too small to be seen has twice the slope of the rest."""

    def forward(self, x: Tensor) -> Tensor:
        z = x - 0.5 + 2e-3 * torch.sin(1000 * x)
        return torch.cat([-z, z], dim=1)


def towards_one(prediction: Prediction) -> list[Tensor]:
    return [prediction.logits[:, 1].flatten(1).sum(dim=1)]


def slopes(function: Field, x: Tensor) -> Slopes:
    return function.slopes(x, towards_one)


def test_a_waves_slope_is_gone_from_the_mean() -> None:
    x = scan(3, 24, 24)
    wavy = field(Bare(Wavy()))
    own = slopes(wavy, x).gradients[0]
    smooth = slopes(Smoothed(wavy, torch.ones(1)), x).gradients[0]
    assert float((own > 0).float().mean()) < 0.7
    assert float((smooth > 0).float().mean()) > 0.9


def test_of_a_straight_function_the_mean_is_the_function() -> None:
    """Its slopes are the same everywhere, and its values differ by the mean of the noise."""
    x = scan(2, 12, 12)
    bright = field(Bright())
    own, smooth = slopes(bright, x), slopes(Smoothed(bright, torch.ones(1)), x)
    torch.testing.assert_close(smooth.gradients[0], own.gradients[0])
    apart = (smooth.prediction.logits - own.prediction.logits).std()
    assert 0 < float(apart) < Smoothed.NOISE


def test_the_noise_follows_the_units_of_the_scan_and_the_seed() -> None:
    x = scan(1, 12, 12)
    bright = field(Bright())
    fine, coarse = (
        Smoothed(bright, torch.full((1,), unit)).predict(x).logits - bright.predict(x).logits for unit in (1.0, 10.0)
    )
    torch.testing.assert_close(coarse, 10 * fine, rtol=1e-3, atol=1e-5)
