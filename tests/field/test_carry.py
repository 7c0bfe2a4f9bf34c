"""The way of a change from a shared grid to the scans: the voxels themselves, or between them by the affines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mafl_cli.field.carry import Carry
from mafl_cli.field.layout import Layout

CPU = torch.device("cpu")
SHAPE = (6, 5, 4)
AFFINE = np.array([[2.0, 0, 0, -5], [0, 2, 0, 3], [0, 0, 3, 7], [0, 0, 0, 1]])


def layout(affine: np.ndarray, dims: int) -> Layout:
    return Layout.for_volume(affine, orientation="native", slice_axis=2 if dims == 2 else None)


def carry(shape: tuple[int, int, int], affine: np.ndarray, dims: int) -> tuple[Carry, Layout]:
    own = layout(affine, dims)
    return Carry.of(SHAPE, AFFINE, shape, affine, own, CPU), own


def moved(*mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += mm
    return affine


def whole(own: Layout, found: torch.Tensor) -> np.ndarray:
    return own.as_scan(found.numpy())


@pytest.mark.parametrize("dims", [2, 3])
def test_on_the_same_grid_every_voxel_takes_its_own_value(dims: int) -> None:
    way, own = carry(SHAPE, AFFINE, dims)
    delta = torch.randn(2, *SHAPE)
    rows = torch.arange(4 if dims == 2 else 1)
    assert not way.resampled
    assert way.overlap == 1
    assert np.array_equal(whole(own, way(delta, rows)), delta.numpy())


@pytest.mark.parametrize("dims", [2, 3])
def test_axes_in_another_order_and_direction_are_the_same_grid(dims: int) -> None:
    turned = AFFINE @ np.array([[0, 0, 1.0, 0], [-1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 0, 1]])
    way, own = carry((5, 4, 6), turned, dims)
    delta = torch.randn(1, *SHAPE)
    rows = torch.arange(6 if dims == 2 else 1)
    wanted = np.flip(delta.numpy().transpose(0, 2, 3, 1), 1)
    assert not way.resampled
    assert np.array_equal(whole(own, way(delta, rows)), wanted)


@pytest.mark.parametrize("dims", [2, 3])
def test_between_voxels_a_ramp_stays_a_ramp_and_outside_nothing_changes(dims: int) -> None:
    affine = moved(0.8, 0.5, -1.0)
    way, own = carry((7, 5, 4), affine, dims)
    index = np.indices(SHAPE)
    delta = torch.from_numpy((index[0] + 10.0 * index[1] + 100 * index[2])[np.newaxis]).float()
    found = whole(own, way(delta, torch.arange(4 if dims == 2 else 1)))[0]
    i, j, k = np.indices((7, 5, 4))
    places = np.stack([i + 0.4, j + 0.25, k - 1 / 3])
    inner = ((places >= 0) & (places <= np.array(SHAPE).reshape(3, 1, 1, 1) - 1)).all(axis=0)
    ramp = places[0] + 10 * places[1] + 100 * places[2]
    assert way.resampled
    assert np.allclose(found[inner], ramp[inner], atol=1e-3)
    assert not found[6].any()
    assert way.overlap == pytest.approx(6 / 7)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("affine", [AFFINE, moved(0.7, -0.4, 1.1)])
def test_slopes_come_back_by_the_same_weights(affine: np.ndarray, dims: int) -> None:
    way, _ = carry(SHAPE, affine, dims)
    rows = torch.tensor([1, 3]) if dims == 2 else torch.tensor([0])
    delta = torch.randn(2, *SHAPE)
    there = way(delta, rows)
    slopes = torch.randn_like(there)
    assert torch.allclose((there * slopes).sum(), (delta * way.back(slopes, rows)).sum(), atol=1e-4)


def test_a_slice_takes_what_lies_within_half_a_slice_of_it() -> None:
    def of(mm: float) -> Carry:
        affine = moved(0, 0, mm)
        return Carry.of((6, 5, 1), AFFINE, (6, 5, 1), affine, layout(affine, 2), CPU)

    delta, row = torch.randn(1, 6, 5, 1), torch.tensor([0])
    assert torch.allclose(of(1.2)(delta, row)[0, 0], delta[0, ..., 0], atol=1e-5)
    assert of(3.0).overlap == 0
    assert not of(3.0)(delta, row).any()
