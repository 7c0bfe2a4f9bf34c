"""Distances of surfaces that look only where masks differ are those of MONAI on the whole masks, digit for digit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from mafl_cli.measure import surfaces
from mafl_cli.measure.surfaces import surface_metrics


def of_monai(prediction: Any, target: Any, spacing: Any) -> Any:
    one, other = (torch.from_numpy(mask)[None, None] for mask in (prediction, target))
    how = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        hd95 = compute_hausdorff_distance(one, other, percentile=95, **how)
        nsd = compute_surface_dice(one, other, [1.0], use_subvoxels=True, **how)
    return float(hd95), float(nsd)


def blob(rng: Any, shape: Any, smooth: float = 1.5) -> Any:
    return ndimage.gaussian_filter(rng.standard_normal(shape), smooth) > 0.02


def one_voxel(shape: Any, *index: Any) -> Any:
    mask = np.zeros(shape, bool)
    mask[index] = True
    return mask


def pair(kind: Any, rng: Any, shape: Any) -> Any:
    """(prediction, target), both with voxels as a rule."""
    if kind == "noise":
        return rng.random(shape) < rng.random(), rng.random(shape) < rng.random()
    if kind == "shifted":
        mask = blob(rng, shape)
        return mask, np.roll(mask, int(rng.integers(-3, 4)), int(rng.integers(3)))
    if kind == "a few voxels":
        mask = blob(rng, shape)
        return mask, mask ^ (rng.random(shape) < 0.02)
    if kind == "opposite corners":
        return one_voxel(shape, 0, 0, 0), one_voxel(shape, -1, -1, -1)
    if kind == "full":
        return np.ones(shape, bool), rng.random(shape) < 0.1
    mask = blob(rng, shape)
    return mask, mask.copy()


KINDS = ("noise", "shifted", "a few voxels", "opposite corners", "full", "the same")
spacings = st.tuples(*[st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0, 1.5, 3.0, 5.0])] * 3)


@settings(max_examples=80)
@given(
    st.sampled_from(KINDS),
    st.tuples(*[st.integers(2, 14)] * 3),
    spacings,
    st.integers(0, 2**32 - 1),
    st.sampled_from([3, 40, 10**6]),
    st.sampled_from([0.5, 4.0]),
)
def test_distances_are_those_of_monai(
    kind: Any, shape: Any, spacing: Any, seed: int, in_tree: Any, first_reach: Any
) -> None:
    """However many voxels are searched together, and however far around at first."""
    prediction, target = pair(kind, np.random.default_rng(seed), shape)
    if not (prediction.any() and target.any()):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surfaces, "_MOST_IN_TREE", in_tree)
        patch.setattr(surfaces, "_FIRST_REACH", first_reach)
        assert surface_metrics(prediction, target, spacing) == of_monai(prediction, target, spacing)


@pytest.mark.parametrize("axis", range(3))
def test_of_a_single_slice_they_are_those_in_its_plane(axis: Any) -> None:
    rng = np.random.default_rng(axis)
    prediction, target = blob(rng, (20, 17)), blob(rng, (20, 17))
    spacing = [0.7, 1.5]
    expected = of_monai(prediction, target, spacing)
    spacing.insert(axis, 3.0)
    flat = [n == axis for n in range(3)]
    both = [np.expand_dims(mask, axis) for mask in (prediction, target)]
    assert surface_metrics(both[0], both[1], spacing, flat=flat) == expected


def test_a_box_around_both_masks_is_enough() -> None:
    rng = np.random.default_rng(0)
    prediction, target = blob(rng, (9, 8, 7)), blob(rng, (9, 8, 7))
    around: Any = [np.pad(mask, ((4, 0), (0, 5), (2, 3))) for mask in (prediction, target)]
    assert surface_metrics(prediction, target, (1.0, 2.0, 0.7)) == of_monai(around[0], around[1], (1.0, 2.0, 0.7))


def test_a_small_difference_is_not_paid_for_with_the_whole_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is searched are the few voxels that differ, among those around them."""
    searched = []
    search = surfaces._search

    def counted(points: Any, rows: Any, surface: Any, *others: Any) -> Any:
        searched.append(len(rows))
        return search(points, rows, surface, *others)

    monkeypatch.setattr(surfaces, "_search", counted)
    target = blob(np.random.default_rng(0), (60, 60, 60), 4)
    prediction = target.copy()
    prediction[28:31, 28:31, 28:31] ^= True
    surface_metrics(prediction, target, (1, 1, 1))
    assert searched
    assert sum(searched) < 400 < np.count_nonzero(surfaces._voxel_edges(target))


@pytest.mark.parametrize("kind", KINDS)
def test_the_percentile_is_that_of_torch(kind: Any) -> None:
    """The zeros of voxels that both surfaces have count in it, though nobody looked at them."""
    prediction, target = pair(kind, np.random.default_rng(3), (15, 14, 13))
    one, other = surfaces._voxel_edges(prediction), surfaces._voxel_edges(target)
    mm = np.array([0.7, 1.0, 2.5])
    distances = ndimage.distance_transform_edt(~other, sampling=mm)[one].astype(np.float32)
    expected = float(torch.quantile(torch.from_numpy(distances), 0.95))
    assert surfaces._directed(one, other, mm) == pytest.approx(expected, rel=1e-6)
