"""Whether a change can be seen: compression that is its own equivalent, order, and scans that have little to see."""

from __future__ import annotations

from functools import cache, partial
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from seen import visibility

from mafl_cli.codes import Reason, Sight
from mafl_cli.measure.compression import jpeg2000
from mafl_cli.measure.noise import noise_of
from mafl_cli.measure.visibility import RATIOS, equivalent, sight

Scan = NDArray[Any]
SHAPE = (112, 128)


@cache
def head(texture: float = 60.0) -> Scan:
    """A scan (112, 128, 1) with organs, smooth texture and noise, 0 to about 3000."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j]
    tissue = 900 * (x**2 + y**2 < 0.8) + 600 * (abs(x) + abs(y) < 0.5) + 500 * (x**2 + (y - 0.2) ** 2 < 0.02)
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 2) / 0.14
    return (1000 + tissue + texture * smooth * (tissue > 0) + rng.normal(0, 25, SHAPE))[:, :, None].astype(np.float32)


def blob(height: float, width: float = 3.0) -> Scan:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return (height * np.exp(-((y - 50) ** 2 + (x - 70) ** 2) / (2 * width**2)))[:, :, None]


@pytest.mark.parametrize("ratio", [2.0, 5.0, 10.0, 50.0])
def test_compression_is_its_own_equivalent(ratio: float) -> None:
    scan = head()
    packed = jpeg2000(np.moveaxis(scan, 2, 0).astype(np.float64), ratio, float(scan.min()), float(scan.max()))
    found = visibility(scan, np.moveaxis(packed, 0, 2))
    # Float32 is what a file holds; the change of the pictures is that of the codec all the same.
    assert found.compression_equivalent.number == pytest.approx(ratio, rel=0.02)
    assert found.compression_equivalent_haarpsi.number == pytest.approx(ratio, rel=0.02)
    assert found.compression_equivalent_d_prime.number == pytest.approx(ratio, rel=0.02)


def test_the_verdict_is_that_of_readers_of_compressed_scans() -> None:
    assert [sight(ratio) for ratio in (1, 5, 5.01, 9.99, 10, 100)] == [
        Sight.CANNOT, Sight.CANNOT, Sight.LIMIT, Sight.LIMIT, Sight.VISIBLE, Sight.VISIBLE,
    ]  # fmt: skip


def test_between_two_ratios_the_equivalent_lies_between_them() -> None:
    unlike = [0.1 * n for n in range(1, len(RATIOS) + 1)]
    assert equivalent(0, unlike) == 1
    assert equivalent(0.3, unlike) == pytest.approx(5)
    assert equivalent(0.35, unlike) == pytest.approx(sqrt(5 * 7))
    assert equivalent(9, unlike) == RATIOS[-1]
    # One that changes nothing: what differs is more than any compression of it, and what does not is like none.
    assert equivalent(1e-3, [0.0] * len(RATIOS)) == RATIOS[-1]
    assert equivalent(1e-15, [0.0] * len(RATIOS)) == 1
    # A codec that is no worse at a larger ratio: the larger one looks as different.
    assert equivalent(0.1, [0.1, 0.1, 0.05, *unlike[3:]]) == pytest.approx(5)


def _all(found: Any) -> list[float]:
    values = (
        found.compression_equivalent, found.compression_equivalent_haarpsi, found.compression_equivalent_d_prime,
        found.d_prime, found.percent_correct, found.largest_over_noise,
    )  # fmt: skip
    more = [found.grey_levels.largest, found.grey_levels.share_above_1, -found.haarpsi.number]
    return [*(each.number for each in values), *more, -found.psnr_patch_db.number]


# --- scans as scanners store them ---------------------------------------------------------------------------------

BODY = np.hypot(*(np.mgrid[:128, :96] - np.array([64, 48])[:, None, None])) < 44


@cache
def stored(kind: str, slices: int = 3) -> Scan:
    """A body of one tissue in 12 bits (128, 96, slices): a CT with noise of 15 HU, or an MR magnitude image of 20."""
    rng, size = np.random.default_rng(8), (*BODY.shape, slices)
    if kind == "CT":
        scan = np.where(BODY[:, :, None], 50 + rng.normal(0, 15, size), -1000 + rng.normal(0, 5, size))
        return np.clip(np.rint(scan), -1024, 3071).astype(np.int16)
    real, imaginary = rng.normal(0, 20, (2, *size))
    return np.clip(np.rint(np.hypot(700 * BODY[:, :, None] + real, imaginary)), 0, 4095).astype(np.int16)


def closed_form(height: float, width: float, sigma: float, shape: tuple[int, ...]) -> float:
    """d′ of a Gaussian blob in white noise: the sums of Burgess (1994), as integrals over rings of frequencies."""
    # A slice is 250 mm long on the screen, half a metre away; the eye sees best where the slope of E is 0.
    pixels_per_degree, best = 1 / np.degrees(np.arctan(250 / max(shape) / 500)), sqrt(1.3 / 0.08)
    f = np.linspace(0, 0.5, 20_001)
    sight_ = (f * pixels_per_degree / best) ** 1.3 * np.exp(-0.04 * ((f * pixels_per_degree) ** 2 - best**2))
    power = (2 * np.pi * width**2 * height) ** 2 * np.exp(-((2 * np.pi * f * width) ** 2))
    signal = np.trapezoid(sight_**2 * power * 2 * np.pi * f, f)
    return float(signal / sqrt(np.trapezoid(sight_**4 * power * sigma**2 * 2 * np.pi * f, f)))


@pytest.mark.parametrize(("kind", "sigma"), [("CT", 15.0), ("MR", 20.0)])
@pytest.mark.parametrize("slices", [1, 3])
def test_a_blob_in_a_scan_of_12_bits_has_the_detectability_of_its_integral(
    kind: str, sigma: float, slices: int
) -> None:
    scan, (y, x) = stored(kind, slices), np.mgrid[:128, :96]
    change = np.zeros(scan.shape)
    change[:, :, slices // 2] = 3 * sigma * np.exp(-((y - 60) ** 2 + (x - 48) ** 2) / (2 * 2.5**2))
    found = visibility(scan, scan + change, channel=kind)
    assert found.slice == slices // 2
    assert found.noise_sigma_native.number == pytest.approx(sigma, rel=0.08)
    assert found.largest_over_noise.number == pytest.approx(3, rel=0.15)
    assert found.d_prime.number == pytest.approx(closed_form(3 * sigma, 2.5, sigma, BODY.shape), rel=0.1)


@pytest.mark.parametrize("kind", ["CT", "MR"])
def test_how_a_scan_is_stored_makes_no_difference(kind: str) -> None:
    scan = stored(kind)
    after = scan + 40 * np.random.default_rng(9).normal(0, 1, scan.shape) * BODY[:, :, None]
    first = visibility(scan, after, channel=kind)
    again = visibility(np.moveaxis(scan, 2, 0), np.moveaxis(after, 2, 0), channel=kind, axis=0)
    assert _all(again) == pytest.approx(_all(first))


@settings(max_examples=6, deadline=None)
@given(height=st.floats(5, 400), width=st.floats(0.5, 8), kind=st.sampled_from(["CT", "MR"]), seed=st.integers(0, 99))
def test_twice_the_change_of_a_scan_of_12_bits_is_never_less_visible(
    height: float, width: float, kind: str, seed: int
) -> None:
    scan, (y, x) = stored(kind, 1), np.mgrid[:128, :96]
    blob_ = height * np.exp(-((y - 60) ** 2 + (x - 48) ** 2) / (2 * width**2))
    change = (blob_ + np.random.default_rng(seed).normal(0, 3, BODY.shape))[:, :, None]
    once, twice = (_all(visibility(scan, scan + factor * change, channel=kind)) for factor in (1, 2))
    assert all(more >= less - 1e-4 for less, more in zip(once, twice, strict=True)), (once, twice)


@settings(max_examples=12, deadline=None)
@given(height=st.floats(1, 800), width=st.floats(0.5, 8), noise=st.floats(0, 60), seed=st.integers(0, 99))
def test_twice_the_change_is_never_less_visible(height: float, width: float, noise: float, seed: int) -> None:
    change = blob(height, width) + np.random.default_rng(seed).normal(0, noise + 0.1, (*SHAPE, 1))
    once, twice = (_all(visibility(head(), head() + factor * change)) for factor in (1, 2))
    assert all(more >= less - 1e-4 for less, more in zip(once, twice, strict=True)), (once, twice)


def test_noise_like_that_of_the_scan_is_harder_to_see_than_a_blob_of_its_length() -> None:
    scan, change = head(texture=0.0), blob(300.0, 1.0)
    own = noise_of(scan, 2)
    assert own is not None
    noise = np.random.default_rng(3).normal(0, 1, SHAPE)
    noise = np.fft.ifft2(np.fft.fft2(noise) * np.sqrt(own.spectrum(SHAPE))).real[:, :, None]
    noise *= sqrt((change**2).sum() / (noise**2).sum())
    hidden, plain = visibility(scan, scan + noise), visibility(scan, scan + change)
    assert hidden.d_prime.number < plain.d_prime.number
    assert hidden.largest_over_noise.number < plain.largest_over_noise.number
    assert hidden.compression_equivalent.number < plain.compression_equivalent.number


def test_background_does_not_flatter() -> None:
    scan, change = head(), blob(150.0)
    wide = np.pad(scan, ((0, 0), (0, 128), (0, 0)), mode="symmetric")
    small, large = visibility(scan, scan + change), visibility(wide, wide + np.pad(change, ((0, 0), (0, 128), (0, 0))))
    assert large.d_prime.number == pytest.approx(small.d_prime.number, rel=0.1)
    assert large.haarpsi.number == pytest.approx(small.haarpsi.number, abs=0.02)
    assert large.psnr_patch_db.number == pytest.approx(small.psnr_patch_db.number, abs=0.3)
    assert large.ssim_patch.number == pytest.approx(small.ssim_patch.number, abs=0.003)


def test_the_similarity_in_the_patch_is_that_of_the_part_of_the_map() -> None:
    scan, change = head(), blob(150.0)
    found = visibility(scan, scan + change)
    assert found.patch is not None
    rows, columns = (
        slice(max(first, 5), min(first + 64, size - 5)) for first, size in zip(found.patch, SHAPE, strict=True)
    )
    x, y = (np.asarray(each[:, :, 0], np.float32).astype(float) for each in (scan, scan + change))
    span = float(np.subtract(*np.percentile(scan, (99.9, 0.1))))
    # Wang et al., IEEE Trans. Image Process. 13, 2004: eq. 13, with its window and constants.
    mean = partial(ndimage.gaussian_filter, sigma=1.5, truncate=3.5)
    (mx, my), (c1, c2) = (mean(x), mean(y)), ((0.01 * span) ** 2, (0.03 * span) ** 2)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    map_ = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    assert found.ssim_patch.number == pytest.approx(map_[rows, columns].mean(), abs=1e-6)


def test_the_slice_and_the_place_are_where_it_is_seen() -> None:
    scan = np.repeat(head(), 4, axis=2)
    change = np.zeros_like(scan)
    change[:, :, 2:3] = blob(300.0)
    change[20:60, 20:60, 1] = 0.5
    found = visibility(scan, scan + change)
    assert found.slice == 2
    assert found.patch is not None
    assert found.patch[0] <= 50 < found.patch[0] + 64
    assert found.patch[1] <= 70 < found.patch[1] + 64
    turned = visibility(np.moveaxis(scan, 2, 0), np.moveaxis(scan + change, 2, 0), axis=0)
    assert turned.slice == 2
    assert turned.d_prime.number == pytest.approx(found.d_prime.number)


def circle(inside: float, around: float) -> Scan:
    """A scan (112, 128, 1) without noise: a round organ."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.where((y - 50) ** 2 + (x - 60) ** 2 < 900, inside, around)[:, :, None]


@pytest.mark.parametrize(
    ("organ", "low", "high"),
    [(40.0, -160, 240), (-850.0, -1350, 150), (900.0, -500, 1300)],
    ids=["soft", "lung", "bone"],
)
def test_a_ct_is_seen_in_the_window_that_shows_the_change(organ: float, low: float, high: float) -> None:
    scan = circle(organ, 40.0)
    found = visibility(scan, scan + blob(150.0), channel="CT")
    # No noise: nothing but the picture tells, so in another window it could not be seen.
    assert found.verdict is Sight.VISIBLE
    assert found.d_prime.reason is Reason.NO_NOISE
    assert (found.window.low, found.window.high) == (low, high)
    assert found.grey_levels.largest == pytest.approx(150 / (high - low) * 255, rel=0.01)


def test_what_no_window_shows_is_not_seen() -> None:
    # Contrast medium or metal, white in each window before and after; the picture is as alike as its compression.
    scan = np.full((*SHAPE, 1), 2500.0)
    found = visibility(scan, scan + blob(200.0), channel="CT")
    assert found.verdict is Sight.CANNOT
    assert found.compression_equivalent.number == 1
    assert found.haarpsi.number == pytest.approx(1)


def test_where_nothing_was_changed_it_is_said_why() -> None:
    for scan in (head(), np.full((64, 64, 2), 7.0)):
        found = visibility(scan, scan)
        assert found.verdict is Sight.CANNOT
        assert found.compression_equivalent.reason is Reason.IDENTICAL
        assert found.slice is None


@pytest.mark.parametrize(
    ("scan", "window"),
    [(np.full((*SHAPE, 1), 7.0), (7, 157)), (np.pad(np.full((4, 4, 1), 900.0), ((9, 99), (9, 115), (0, 0))), (0, 900))],
    ids=["constant", "next to nothing in it"],
)
def test_a_change_of_a_scan_that_shows_nothing_is_visible(scan: Scan, window: tuple[float, float]) -> None:
    found = visibility(scan, scan + blob(150.0))
    assert found.verdict is Sight.VISIBLE
    assert (found.window.low, found.window.high) == pytest.approx(window)
    assert found.grey_levels.largest == pytest.approx(150 / (window[1] - window[0]) * 255, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 3), (9, 200, 2), (16, 16, 1)], ids=str)
def test_slices_of_any_shape_are_looked_at(shape: tuple[int, ...]) -> None:
    scan = np.random.default_rng(0).normal(500, 50, shape).astype(np.float32)
    found = visibility(scan, scan + 30 * np.random.default_rng(1).normal(0, 1, shape))
    assert 1 <= found.compression_equivalent.number <= 100
    assert (found.d_prime.value is None) == (min(shape[:2]) < 16)
    assert (found.ssim_patch.reason is Reason.SMALL_SLICES) == (min(shape[:2]) < 11)


def test_a_scan_without_noise_is_judged_by_its_picture_alone() -> None:
    scan = circle(800.0, 0.0)
    found = visibility(scan, scan + blob(100.0))
    assert found.d_prime.reason is Reason.NO_NOISE
    assert found.compression_equivalent.number == found.compression_equivalent_haarpsi.number
