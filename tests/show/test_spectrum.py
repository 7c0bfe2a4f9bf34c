"""Spectra whose answer is known: a wave has one frequency, noise has all of them alike, and no power gets lost."""

from __future__ import annotations

import numpy as np
import pytest

from mafl_cli.show.spectrum import radial_spectrum


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.3)])
@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2])
@pytest.mark.parametrize("frequency", [0.05, 0.2, 0.35])
def test_a_wave_peaks_at_its_frequency(frequency: float, angle: float, spacing: tuple[float, float]) -> None:
    shape = (96, 128)
    y, x = np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)), indexing="ij")
    wave = np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y) + 0.3)
    found = radial_spectrum([wave], spacing)
    step = max(1 / (2 * n * mm) for n, mm in zip(shape, spacing, strict=True))
    assert found.frequency[(found.power * found.count).argmax()] == pytest.approx(frequency, abs=1.5 * step)


def test_white_noise_is_flat_at_its_variance() -> None:
    rng = np.random.default_rng(0)
    found = radial_spectrum((3 * rng.standard_normal((64, 80)) for _ in range(50)), (1.0, 2.0))
    many = found.count >= 20
    assert many.sum() > 50
    np.testing.assert_allclose(found.power[many], 9, rtol=0.15)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (8, 8), (31, 64)])
def test_the_power_of_all_rings_is_that_of_the_pictures(shape: tuple[int, int]) -> None:
    pictures = list(np.random.default_rng(1).random((3, *shape)).astype(np.float32))
    found = radial_spectrum(pictures, (0.5, 3.0))
    whole = np.mean([(picture.astype(float) ** 2).sum() for picture in pictures])
    assert (found.power * found.count).sum() == pytest.approx(whole)
    assert found.count.sum() == np.prod(shape)
    assert (np.diff(found.frequency) > 0).all()


def test_frequencies_are_in_cycles_per_mm_and_nyquist_is_that_of_the_coarser_axis() -> None:
    found = radial_spectrum([np.eye(40)], (0.5, 2.0))
    assert found.nyquist == pytest.approx(0.25)
    corner = np.hypot(39 / 40 / (2 * 0.5), 39 / 40 / (2 * 2.0))
    assert found.frequency[-1] == pytest.approx(corner, rel=0.02)


def test_a_picture_and_its_mirror_images_have_the_same_spectrum() -> None:
    picture = np.random.default_rng(2).random((12, 20))
    for other, spacing in ((picture[::-1, ::-1], (1.0, 2.0)), (picture.T, (2.0, 1.0))):
        np.testing.assert_allclose(
            radial_spectrum([other], spacing).power, radial_spectrum([picture], (1.0, 2.0)).power, rtol=1e-9
        )


def test_a_slope_has_no_high_frequencies() -> None:
    """Its two borders differ: a Fourier transform would show the jump between them."""
    found = radial_spectrum([np.tile(np.linspace(0, 1, 64), (64, 1))], (1.0, 1.0))
    high = found.frequency > found.nyquist / 2
    assert (found.power * found.count)[high].sum() < 1e-5 * (found.power * found.count)[1:].sum()


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        radial_spectrum([], (1.0, 1.0))
