"""What a screen makes of a change: the map of where it would be seen."""

from __future__ import annotations

import numpy as np
import pytest

from mafl_cli.measure.observer import Screen
from mafl_cli.show.screen import visible_where

# 2 pixels per mm on the screen, half a metre away.
SCREEN = Screen(0.5)


def seen(cycles_per_degree: float) -> float:
    """What the map has, at most, of a wave of 20 grey levels on a plane of one value."""
    columns = np.arange(200)
    wave = 20 * np.cos(2 * np.pi * cycles_per_degree / SCREEN.pixels_per_degree * columns)
    flat = np.full((150, 200), 120, dtype=np.uint8)
    found = visible_where(flat, np.rint(flat + wave).astype(np.uint8), SCREEN)
    return float(found[30:120, 40:160].max())


def test_on_one_value_the_map_is_the_change_through_the_eye() -> None:
    # E of the filter: 1 at sqrt(1.3 / 0.08) = 4.03 cycles per degree, and by its formula elsewhere.
    assert seen(4.03) == pytest.approx(20, rel=0.03)
    assert seen(1) == pytest.approx(20 * (1 / 4.03) ** 1.3 * np.exp(0.04 * (4.03**2 - 1)), rel=0.05)
    assert seen(8) == pytest.approx(20 * (8 / 4.03) ** 1.3 * np.exp(-0.04 * (64 - 4.03**2)), rel=0.05)


def test_noise_and_texture_hide_a_change_and_only_where_they_are() -> None:
    rng = np.random.default_rng(0)
    clean = np.full((96, 96), 120.0)
    clean[:, 48:] += rng.normal(0, 12, (96, 48))
    change = np.zeros_like(clean)
    change[44:52, 20:28] = change[44:52, 70:78] = 10
    before, after = (np.rint(each).astype(np.uint8) for each in (clean, clean + change))
    found = visible_where(before, after, SCREEN)
    smooth, noisy = found[40:56, 16:32].max(), found[40:56, 66:82].max()
    assert smooth > 3
    assert noisy < smooth / 3
    # Far from both there is nothing to be seen.
    assert found[:20].max() < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (64, 64)])
def test_where_nothing_changes_the_map_is_empty(shape: tuple[int, int]) -> None:
    clean = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    np.testing.assert_array_equal(visible_where(clean, clean, SCREEN), 0)
