"""The noise of a scan, and who sees a change in it: closed forms, and an independent implementation."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from math import exp, pi, sqrt
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from mafl_cli.measure.haarpsi import haarpsi
from mafl_cli.measure.noise import Noise, frequencies, noise_of
from mafl_cli.measure.observer import Screen, eye, percent_correct
from mafl_cli.measure.observer import detectability as _detectability

SAMPLE = Path(__file__).parents[2] / "sample_data" / "brain_t1.nii.gz"
SHAPE = (192, 192)
RNG = np.random.default_rng(5)


SCREEN = Screen(0.5)


def detectability(change: Any, noise: Noise) -> float:
    return _detectability(change, noise, SCREEN)


def white(sigma: float) -> Noise:
    return Noise(sigma, (sigma**2,) * 24)


def anatomy(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A scan without noise: organs with edges, and a slope."""
    y, x, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return 300 + 200 * (x**2 + y**2 < 0.6) + 150 * (abs(x) + abs(y) < 0.3) + 40 * x + 10 * z


@pytest.mark.parametrize("sigma", [0.5, 7.0, 40.0])
def test_white_noise_is_found_beside_anatomy(sigma: float) -> None:
    scan = anatomy((*SHAPE, 6)) + RNG.normal(0, sigma, (*SHAPE, 6))
    noise = noise_of(scan, 2)
    assert noise is not None
    assert noise.sigma == pytest.approx(sigma, rel=0.08)
    assert noise.spectrum(SHAPE) == pytest.approx(sigma**2, rel=0.25)


def test_the_spectrum_of_smooth_noise_is_that_of_the_filter() -> None:
    blur = 1.2
    scan = ndimage.gaussian_filter(RNG.normal(0, 10, (256, 256, 12)), (blur, blur, 0))
    noise = noise_of(scan, 2)
    assert noise is not None
    f = frequencies((64, 64))
    known = 100 * np.exp(-2 * (2 * pi * f * blur) ** 2 / 2)
    middle = (f > 0.08) & (f < 0.2)
    ratio = noise.spectrum((64, 64))[middle] / known[middle]
    assert float(np.median(ratio)) == pytest.approx(1, abs=0.15)
    # Beyond the filter next to nothing is left.
    assert noise.spectrum((64, 64))[f > 0.45].max() < 0.01 * known.max()


def test_rician_noise_is_that_of_its_two_channels() -> None:
    real, imaginary = RNG.normal(0, 20, (2, *SHAPE, 4))
    tissue = noise_of(np.hypot(300 + real, imaginary), 2)
    air = noise_of(np.hypot(real, imaginary), 2)
    assert tissue is not None
    assert tissue.sigma == pytest.approx(20, rel=0.08)
    assert air is not None
    assert air.sigma == pytest.approx(20, rel=0.08)


@pytest.mark.parametrize("kind", ["white", "smooth"])
@pytest.mark.parametrize("share", [0.03, 0.06, 0.12])
def test_the_noise_of_a_brain_is_not_its_anatomy(share: float, kind: str) -> None:
    # The sample scan is the mean of many heads: next to no noise, and anatomy that no patch of it is free of.
    brain = np.asarray(nib.load(SAMPLE).dataobj, np.float64)
    own, sigma = noise_of(brain, 2, brain == brain.min()), share * float(np.ptp(brain))
    added = np.random.default_rng(6).normal(0, 1, brain.shape)
    if kind == "smooth":
        added = ndimage.gaussian_filter(added, (0.6, 0.6, 0))
    noise = noise_of(brain + added * sigma / added.std(), 2)
    assert own is not None
    assert own.sigma < 0.015 * float(np.ptp(brain))
    assert noise is not None
    assert 0.65 * sigma < noise.sigma < 1.4 * sigma


def test_a_background_of_any_value_and_air_do_not_count() -> None:
    y, x = np.mgrid[-1:1:192j, -1:1:192j]
    body = (x**2 + y**2 < 0.7)[:, :, None]
    scaled = np.where(body, RNG.normal(0, 1, (*SHAPE, 4)), 0.0)
    found = noise_of(scaled, 2)
    assert found is not None
    assert found.sigma == pytest.approx(1, rel=0.08)
    ct = np.where(body, 50 + RNG.normal(0, 15, (*SHAPE, 4)), -1000 + RNG.normal(0, 4, (*SHAPE, 4)))
    found = noise_of(ct, 2)
    assert found is not None
    assert found.sigma == pytest.approx(15, rel=0.08)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_lie_along_any_axis(axis: int) -> None:
    scan = RNG.normal(100, 3, (*SHAPE, 5))
    assert noise_of(np.moveaxis(scan, 2, axis), axis) == noise_of(scan, 2)


def test_what_was_not_measured_does_not_count() -> None:
    scan = RNG.normal(100, 3, (*SHAPE, 4))
    outside = np.zeros(scan.shape, bool)
    outside[:90] = True
    scan[outside] = 0
    noise = noise_of(scan, 2, outside)
    assert noise is not None
    assert noise.sigma == pytest.approx(3, rel=0.08)


@pytest.mark.parametrize(
    "scan", [np.zeros((64, 64, 3)), np.full((64, 64, 1), 7.0), RNG.normal(0, 1, (10, 64, 3)), np.ones((1, 1, 1))],
    ids=["empty", "constant", "narrow", "a voxel"],
)  # fmt: skip
def test_a_scan_without_noise_has_none(scan: Any) -> None:
    assert noise_of(scan, 2) is None


def test_integers_and_one_slice_have_noise() -> None:
    scan = np.rint(anatomy((*SHAPE, 1)) + RNG.normal(0, 4, (*SHAPE, 1))).astype(np.int16)
    noise = noise_of(scan, 2)
    assert noise is not None
    assert noise.sigma == pytest.approx(4, rel=0.1)


def test_noise_nearby_is_at_least_that_of_the_scan_and_more_at_texture() -> None:
    plane = RNG.normal(0, 2, SHAPE)
    plane[:, 96:] += RNG.normal(0, 10, (192, 96))
    near = white(2.0).near(plane)
    assert near.min() >= 2
    assert float(np.median(near[:, :80])) == pytest.approx(2, rel=0.1)
    assert float(np.median(near[:, 112:])) == pytest.approx(sqrt(104), rel=0.1)


def test_the_eye_sees_best_at_four_cycles_a_degree() -> None:
    sensitivity, f = eye(SHAPE, SCREEN), frequencies(SHAPE) * SCREEN.pixels_per_degree
    assert sensitivity[0, 0] == 0
    assert sensitivity.max() == pytest.approx(1, abs=1e-3)
    best = sqrt(1.3 / 0.08)
    assert (sensitivity[f < 0.9 * best] < 0.999).all()
    assert (sensitivity[f > 1.1 * best] < 0.999).all()
    assert sensitivity[(f > 0.95) & (f < 1.05)] == pytest.approx(exp(-0.04 + 0.65) / best**1.3, rel=0.1)


def test_a_slice_fills_the_screen() -> None:
    # A quarter of a metre, half a metre away: 28 degrees, a little more in the middle.
    assert Screen.of((512, 400)).pixels_per_degree == pytest.approx(512 / 250 * 500 * pi / 180, rel=1e-3)
    assert Screen.of((64, 128)).pixel_mm == 250 / 128


def test_a_wave_in_white_noise_has_the_detectability_of_its_energy() -> None:
    # The eye weighs all of a single frequency alike, which changes nothing: d'^2 = energy / sigma^2.
    wave = 0.3 * np.sin(2 * pi * 16 * np.arange(192) / 192)[None] * np.ones((192, 1))
    assert detectability(wave, white(4.0)) == pytest.approx(sqrt((wave**2).sum()) / 4, rel=1e-9)


def test_a_blob_in_white_noise_has_the_detectability_of_its_integral() -> None:
    width, height, sigma = 6.0, 3.0, 7.0
    y, x = np.mgrid[:192, :192] - 96
    blob = height * np.exp(-(x**2 + y**2) / (2 * width**2))
    # The spectrum of a Gaussian is one; the sums become integrals over f in cycles per pixel, in rings 2 pi f df.
    best, scale = sqrt(1.3 / 0.08), SCREEN.pixels_per_degree
    f = np.linspace(0, 0.5, 200_001)
    weight = (f * scale / best) ** 1.3 * np.exp(-0.04 * ((f * scale) ** 2 - best**2))
    power = (2 * pi * width**2 * height) ** 2 * np.exp(-((2 * pi * f * width) ** 2))
    signal = np.trapezoid(weight**2 * power * 2 * pi * f, f)
    variance = np.trapezoid(weight**4 * power * sigma**2 * 2 * pi * f, f)
    assert detectability(blob, white(sigma)) == pytest.approx(signal / sqrt(variance), rel=1e-3)


@given(st.floats(0.01, 100))
def test_detectability_grows_with_the_change_and_falls_with_the_noise(factor: float) -> None:
    change = np.random.default_rng(1).normal(0, 1, (24, 24))
    d = detectability(change, white(2.0))
    assert detectability(factor * change, white(2.0)) == pytest.approx(factor * d)
    assert detectability(change, white(2.0 * factor)) == pytest.approx(d / factor)


def test_two_images_that_are_alike_are_a_guess() -> None:
    assert percent_correct(0) == 0.5
    assert percent_correct(sqrt(2) * 1.0) == pytest.approx(0.8413, abs=1e-4)
    assert percent_correct(20) == 1


def test_images_that_are_alike_have_an_index_of_1() -> None:
    image = np.clip(anatomy((96, 90, 1))[:, :, 0] / 3, 0, 255)
    assert haarpsi(image, image) == pytest.approx(1)
    assert haarpsi(np.zeros((40, 40)), np.zeros((40, 40))) == 1
    values = [haarpsi(image, image + level * RNG.normal(0, 1, image.shape)) for level in (1, 4, 16)]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize(("level", "known"), [(2.0, 0.9998302007995846), (20.0, 0.9865062812741344)])
def test_the_index_is_what_another_implementation_said_of_a_picture(level: float, known: float) -> None:
    # piq.haarpsi(..., data_range=255, c=5, alpha=4.9) of piq 0.8.0, float64.
    y, x = np.mgrid[:40, :48]
    image = 120 + 60 * np.sin(x / 5) * np.cos(y / 7) + 40 * ((x - 20) ** 2 + (y - 18) ** 2 < 100)
    wavy = np.clip(image + level * np.sin(3 * x + y * y / 9), 0, 255)
    assert haarpsi(image, wavy) == pytest.approx(known, abs=1e-9)


@pytest.mark.parametrize("level", [2.0, 10.0, 40.0])
@pytest.mark.parametrize("shape", [(128, 128), (101, 96)])
def test_the_index_is_that_of_another_implementation(shape: tuple[int, int], level: float) -> None:
    other = _piq()
    image = np.clip(anatomy((*shape, 1))[:, :, 0] / 3 + RNG.normal(0, 5, shape), 0, 255)
    noisy = np.clip(image + RNG.normal(0, level, shape), 0, 255)
    ours, theirs = (torch.from_numpy(each)[None, None] for each in (image, noisy))
    found = float(other.haarpsi(ours, theirs, data_range=255.0, c=5.0, alpha=4.9))
    assert haarpsi(image, noisy) == pytest.approx(found, abs=1e-9)


def _piq() -> Any:
    """The module of piq that has the index; the package as a whole needs torchvision, which the index does not."""
    spec = PathFinder.find_spec("piq")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("piq is not installed: pip install --no-deps piq")
    if "piq" not in sys.modules:
        shell = ModuleType("piq")
        shell.__path__ = list(spec.submodule_search_locations)
        sys.modules["piq"] = shell
    return importlib.import_module("piq.haarpsi")
