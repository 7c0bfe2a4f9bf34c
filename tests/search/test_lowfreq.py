"""The Haar low-pass against PyWavelets."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch

from mafl_cli.search.lowfreq import low_frequency_energy, low_pass


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pywavelets(x: np.ndarray, levels: int) -> np.ndarray:
    """Transform, drop every detail band, transform back: one channel, even sizes."""
    coarse, *details = pywt.wavedecn(x, "haar", mode="periodization", level=levels)
    nothing = [{band: np.zeros_like(values) for band, values in level.items()} for level in details]
    return pywt.waverecn([coarse, *nothing], "haar", mode="periodization")


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("spatial", [(16, 24), (8, 16, 24)], ids=["2d", "3d"])
def test_equals_pywavelets(spatial: tuple[int, ...], levels: int) -> None:
    x = noise(2, 3, *spatial)
    ours = low_pass(x, levels)
    for sample, channel in np.ndindex(2, 3):
        np.testing.assert_allclose(ours[sample, channel], pywavelets(x[sample, channel].numpy(), levels), atol=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("spatial", [(9, 14), (1, 5), (7, 9, 10), (3, 1, 8)], ids=str)
def test_odd_sizes_equal_pywavelets_of_the_edge_padded_array(spatial: tuple[int, ...], levels: int) -> None:
    x = noise(1, 1, *spatial)
    padded = np.pad(x[0, 0].numpy(), [(0, -n % 2**levels) for n in spatial], mode="edge")
    expected = pywavelets(padded, levels)[tuple(slice(n) for n in spatial)]
    np.testing.assert_allclose(low_pass(x, levels)[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize("spatial", [(16, 8), (8, 8, 16)], ids=["2d", "3d"])
def test_is_an_orthogonal_projection(spatial: tuple[int, ...]) -> None:
    x, y = noise(1, 1, *spatial), noise(2, 1, *spatial)[1:]
    torch.testing.assert_close(low_pass(low_pass(x)), low_pass(x))
    torch.testing.assert_close((low_pass(x) * y).sum(), (x * low_pass(y)).sum())
    torch.testing.assert_close((low_pass(x) * (x - low_pass(x))).sum(), torch.zeros((), dtype=torch.float64))


def test_energy_splits_by_hand() -> None:
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).view(1, 1, 8, 8)
    flat = torch.full((1, 1, 8, 8), 3.0)
    both = torch.cat([checkerboard, flat, checkerboard + flat])
    assert low_frequency_energy(both).tolist() == [0.0, 9.0, 9.0]


@pytest.mark.parametrize("repeats", [(2, 3), (2, 2, 3)], ids=["2d", "3d"])
def test_energy_does_not_depend_on_the_size_of_the_scan(repeats: tuple[int, ...]) -> None:
    x = noise(2, 2, *(6,) * len(repeats))
    torch.testing.assert_close(low_frequency_energy(x.repeat(1, 1, *repeats)), low_frequency_energy(x))


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5)], ids=["2d", "3d"])
def test_energy_has_the_right_gradient(spatial: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(low_frequency_energy, noise(2, 2, *spatial).requires_grad_())


@pytest.mark.parametrize(
    ("spacing", "axes"), [((1, 1, 2), (2, 3, 4)), ((1, 1, 2.1), (2, 3)), ((5, 1, 1.5), (3, 4)), ((3, 3, 3), (2, 3, 4))]
)
def test_thick_slices_are_no_neighbours(spacing: tuple[float, ...], axes: tuple[int, ...]) -> None:
    x = noise(1, 2, 6, 8, 4)
    expected = x
    for axis in axes:
        pairs = expected.unfold(axis, 2, 2).mean(dim=-1)
        expected = pairs.repeat_interleave(2, dim=axis)
    torch.testing.assert_close(low_pass(x, spacing=spacing), expected)
