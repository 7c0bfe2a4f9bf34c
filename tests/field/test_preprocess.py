"""Intensity scaling against MONAI, its gradient, padding, and what keeps the frozen statistics true."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensity, ScaleIntensity, ScaleIntensityRange, ScaleIntensityRangePercentiles
from torch import Tensor

from mafl_cli.errors import InputError
from mafl_cli.field.preprocess import Preprocessing, per_channel
from mafl_cli.network.intensity import Intensity

CPU = torch.device("cpu")


def ct(channels: int = 1, shape: tuple[int, ...] = (9, 8, 7)) -> np.ndarray:
    """HU-like integers with a share of exact zeros, as float32 (C, I, J, K)."""
    rng = np.random.default_rng(3)
    values = rng.integers(-1000, 1500, (channels, *shape)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = 0
    return values


def freeze(intensity: Intensity, scan: Any) -> Preprocessing:
    return Preprocessing.freeze(intensity, scan, CPU)


@pytest.mark.parametrize(
    ("intensity", "monai"),
    [
        (Intensity(), lambda x: x),
        (Intensity(kind="minmax"), ScaleIntensity(channel_wise=True)),
        (Intensity(kind="zscore"), NormalizeIntensity(channel_wise=True)),
        (Intensity(kind="zscore", region="nonzero"), NormalizeIntensity(nonzero=True, channel_wise=True)),
        (Intensity.parse("window:-57,164"), ScaleIntensityRange(-57, 164, 0, 1, clip=True)),
        (Intensity(kind="window", min=-100, max=300, to=(-1, 2)), ScaleIntensityRange(-100, 300, -1, 2)),
        (
            Intensity(kind="window", min=-100, max=300, to=(-1, 1), clip=(-1, 1)),
            ScaleIntensityRange(-100, 300, -1, 1, clip=True),
        ),
        (
            Intensity.parse("percentile:0.5,99.5"),
            ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True, channel_wise=True),
        ),
        (
            Intensity(kind="percentile", lower=5, upper=90, to=(-1, 2)),
            ScaleIntensityRangePercentiles(5, 90, -1, 2, channel_wise=True),
        ),
        (Intensity.parse("ct:-100,300,50.4,80.2"), lambda x: (np.clip(x, -100, 300) - 50.4) / 80.2),
    ],
    ids=[
        "none",
        "minmax",
        "zscore",
        "zscore nonzero",
        "window clipped",
        "window open",
        "window to -1..1",
        "percentile clipped",
        "percentile open",
        "ct of nnU-Net",
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_monai(intensity: Intensity, monai: Callable[[np.ndarray], np.ndarray], channels: int) -> None:
    scan = ct(channels)
    ours = freeze(intensity, scan)(torch.from_numpy(scan)[None])[0]
    np.testing.assert_allclose(ours, np.asarray(monai(scan.copy())), rtol=1e-5, atol=1e-6)


def test_clip_of_a_zscore() -> None:
    scan = ct()
    ours = freeze(Intensity(kind="zscore", clip=(-1.5, 1.0)), scan)(torch.from_numpy(scan)[None])[0]
    expected = np.clip((scan - scan.mean(dtype=np.float64)) / scan.std(dtype=np.float64), -1.5, 1.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_statistics_of_a_large_bright_scan_keep_their_digits() -> None:
    scan = (np.random.default_rng(0).normal(size=(1, 160, 160, 40)) + 30000).astype(np.float32)
    frozen = freeze(Intensity(kind="zscore"), scan)
    assert float(frozen.unit[0]) == pytest.approx(float(scan.std(dtype=np.float64)), rel=1e-6)


def test_slices_are_scaled_as_part_of_their_volume() -> None:
    scan = ct()
    frozen = freeze(Intensity(kind="minmax"), scan)
    slices = torch.from_numpy(np.moveaxis(scan, 3, 0))
    whole = frozen(torch.from_numpy(scan)[None])[0]
    assert torch.equal(frozen(slices), whole.movedim(3, 0))


def test_gradient_is_one_over_the_window_inside_and_zero_outside() -> None:
    x = torch.from_numpy(ct())[None].requires_grad_()
    frozen = freeze(Intensity.parse("window:-57,164"), ct())
    (gradient,) = torch.autograd.grad(frozen(x).sum(), x)
    inside = (x > -57) & (x < 164)
    assert inside.any()
    assert torch.equal(gradient != 0, (x >= -57) & (x <= 164))
    torch.testing.assert_close(gradient[inside], torch.full_like(gradient[inside], 1 / 221))


def test_gradient_is_one_over_the_spread_inside_the_clip_of_a_ct() -> None:
    x = torch.from_numpy(ct())[None].requires_grad_()
    (gradient,) = torch.autograd.grad(freeze(Intensity.parse("ct:-100,300,50,80"), ct())(x).sum(), x)
    inside = (x > -100) & (x < 300)
    torch.testing.assert_close(gradient[inside], torch.full_like(gradient[inside], 1 / 80))
    assert not gradient[(x < -100) | (x > 300)].any()


def test_the_window_is_what_every_channel_and_every_member_of_an_ensemble_is_clipped_to() -> None:
    narrow, wide = (Intensity(kind="ct", lower=low, upper=high, mean=50, std=80) for low, high in ((0, 90), (-20, 60)))
    plain = Intensity(kind="zscore")

    def window(intensity: Intensity, channels: int = 2) -> list[list[float]] | None:
        found = freeze(intensity, ct(channels)).window
        return None if found is None else [end.tolist() for end in found]

    assert window(narrow) == [[0, 0], [90, 90]]
    assert window(plain) is None
    assert window(Intensity(kind="each", each=(plain, narrow))) == [[-math.inf, 0], [math.inf, 90]]
    # What any of the members sees is seen.
    assert window(Intensity(kind="members", each=(narrow, wide))) == [[-20, -20], [90, 90]]
    assert window(Intensity(kind="members", each=(narrow, plain))) == [[-math.inf] * 2, [math.inf] * 2]


def test_zeros_have_no_gradient_where_they_are_background() -> None:
    x = torch.from_numpy(ct())[None].requires_grad_()
    (gradient,) = torch.autograd.grad(freeze(Intensity(kind="zscore", region="nonzero"), ct())(x).sum(), x)
    assert torch.equal(gradient != 0, x != 0)


def changed(scan: np.ndarray, frozen: Preprocessing, seed: int) -> np.ndarray:
    """The scan with every voxel that may change at a random place inside the data box."""
    x = torch.from_numpy(scan)[None]
    generator = torch.Generator().manual_seed(seed)
    low, high = per_channel(frozen.low, x), per_channel(frozen.high, x)
    moved = low + (high - low) * torch.rand(x.shape, generator=generator).clamp_min(1e-3)
    return torch.where(frozen.keep(x), x, moved)[0].numpy()


@pytest.mark.parametrize("channels", [1, 2])
def test_minmax_of_a_changed_scan_is_what_was_frozen(channels: int) -> None:
    scan = ct(channels)
    frozen = freeze(Intensity(kind="minmax"), scan)
    again = freeze(Intensity(kind="minmax"), changed(scan, frozen, 0))
    assert torch.equal(again.offset, frozen.offset)
    assert torch.equal(again.unit, frozen.unit)


def test_zeros_of_a_changed_scan_are_those_of_the_clean_one() -> None:
    scan = ct()
    frozen = freeze(Intensity(kind="zscore", region="nonzero"), scan)
    assert torch.equal(frozen.keep(torch.from_numpy(scan)), torch.from_numpy(scan == 0))
    assert ((changed(scan, frozen, 0) == 0) == (scan == 0)).all()


@pytest.mark.parametrize("text", ["none", "zscore", "window:-57,164", "percentile:1,99", "ct:-100,300,50,80"])
def test_other_scalings_freeze_no_voxel(text: str) -> None:
    scan = ct()
    kept: Tensor = freeze(Intensity.parse(text), scan).keep(torch.from_numpy(scan)[None])
    assert kept.shape == (1, *scan.shape)
    assert not kept.any()


def test_the_data_box_is_the_range_of_each_channel() -> None:
    scan = ct(3)
    frozen = freeze(Intensity(), scan)
    assert frozen.low.tolist() == scan.min(axis=(1, 2, 3)).tolist()
    assert frozen.high.tolist() == scan.max(axis=(1, 2, 3)).tolist()


@pytest.mark.parametrize(
    ("intensity", "scan", "reason"),
    [
        (Intensity(kind="minmax"), np.full((1, 4, 4, 4), 7.0), "same value"),
        (Intensity(kind="zscore"), np.full((1, 4, 4, 4), 7.0), "no spread"),
        (Intensity(kind="zscore", region="nonzero"), np.zeros((1, 4, 4, 4)), "no spread"),
        (Intensity(kind="zscore", region="nonzero"), np.eye(4).reshape(1, 4, 4, 1), "no spread"),
        (Intensity(kind="minmax"), np.stack([ct()[0], np.zeros((9, 8, 7))]), "same value"),
        (Intensity.parse("percentile:5,60"), np.where(np.arange(100) < 80, 0, 9.0).reshape(1, 5, 5, 4), "same value"),
    ],
    ids=[
        "minmax constant",
        "zscore constant",
        "all zero",
        "one value besides zero",
        "second channel constant",
        "both percentiles in the background",
    ],
)
def test_scans_without_spread_are_refused(intensity: Intensity, scan: np.ndarray, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        freeze(intensity, scan.astype(np.float32))


SHORT = ["none", "minmax", "zscore", "zscore-nonzero", "window:10,60", "percentile:1,99", "ct:5,70,20,30"]


@pytest.mark.parametrize("short", SHORT)
def test_another_scan_is_seen_as_by_its_own_preprocessing(short: str) -> None:
    here, there = (np.random.default_rng(seed).random((1, 6, 5, 4), np.float32) for seed in (0, 1))
    there = 70 * there + 3
    here[:, :2], there[:, 1:3] = 0, 0
    mine, other = (freeze(Intensity.parse(short), scan) for scan in (here, there))
    x = torch.from_numpy(there).movedim(-1, 0)
    torch.testing.assert_close(mine(mine.translate(x, other)), other(x), rtol=1e-4, atol=1e-5)
