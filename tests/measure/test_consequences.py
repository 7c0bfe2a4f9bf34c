"""What became of each class in the body: closed forms, and the longest line through a surface found by scikit-image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import pdist
from skimage.measure import marching_cubes

from mafl_cli.classes import Classes
from mafl_cli.codes import Reason
from mafl_cli.measure.consequences import consequences, diameter
from mafl_cli.measure.surfaces import surface_metrics

ORGANS = Classes(("background", "liver", "spleen"))


def grid(*shape: int) -> Any:
    return np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))


def ball(size: int, radius: float, mm: float = 1.0) -> Any:
    return (grid(size, size, size) ** 2).sum(axis=0) * mm**2 <= radius**2


def of_mesh(mask: Any, mm: Any) -> float:
    """The longest distance between two points of the surface, as PyRadiomics measures it."""
    vertices, *_ = marching_cubes(np.pad(mask, 1).astype(np.uint8), 0.5, spacing=tuple(mm))
    return float(pdist(vertices).max())


def test_closed_forms() -> None:
    mm = (1.0, 2.0, 3.0)
    for shape, found in (((1, 1, 1), 3.0), ((9, 1, 1), 9.0), ((4, 1, 1), np.sqrt(3**2 + 3**2)), ((1, 1, 4), 12.0)):
        assert diameter(np.ones(shape, bool), mm) == pytest.approx(found)
    # From the middle of a face at one end of the diagonal to that at the other.
    assert diameter(np.ones((3, 3, 1), bool), (1, 1, 1)) == pytest.approx(np.sqrt(2**2 + 3**2))
    assert diameter(ball(41, 15.2), (1, 1, 1)) == pytest.approx(31, abs=0.5)


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.floats(0.4, 3)] * 3))
@settings(max_examples=20)
def test_the_diameter_is_that_of_the_mesh(seed: int, mm: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, 3))
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 1.0)
    mask = noise >= np.quantile(noise, 0.6)
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    counts = np.bincount(pieces.ravel())[1:]
    known = max(of_mesh(pieces == n + 1, mm) for n in np.flatnonzero(counts == counts.max()))
    assert diameter(mask, mm) == pytest.approx(known, rel=1e-5)


def test_only_the_largest_piece_counts_and_of_equal_ones_the_longest() -> None:
    mask = np.zeros((40, 10, 10), bool)
    mask[2:8, 2:8, 2:8] = True
    alone = diameter(mask, (1, 1, 1))
    mask[30, 5, 5] = True
    assert diameter(mask, (1, 1, 1)) == alone
    two = np.zeros((20, 3, 9), bool)
    two[0:4, 0, 0] = two[10, 0, 0:4] = True
    assert diameter(two, (1, 1, 5)) == diameter(two[::-1], (1, 1, 5)) == pytest.approx(20)


def test_in_one_slice_its_thickness_does_not_count() -> None:
    mask = np.ones((3, 1, 1), bool)
    assert diameter(mask, (1, 1, 50), flat=(False, False, True)) == pytest.approx(3)


def test_classes_are_measured_before_and_after() -> None:
    clean, adversarial = np.zeros((2, 1, 24, 24, 24), np.int64)
    clean[0, 4:14, 4:14, 4:14] = 1
    adversarial[0, 4:14, 4:14, 4:16] = 1
    adversarial[0, 18:20, 18:20, 18:20] = 2
    mm = (1.0, 1.0, 2.0)
    liver, spleen = consequences(clean, adversarial, ORGANS, spacing=mm).per_class
    assert (liver.index, liver.name, spleen.name) == (1, "liver", "spleen")
    assert (liver.volume_ml.clean, liver.volume_ml.adversarial) == pytest.approx((2.0, 2.4))
    assert liver.volume_change_ml == pytest.approx(0.4)
    assert liver.diameter_mm.clean.number == pytest.approx(of_mesh(clean[0] == 1, mm))
    assert liver.diameter_mm.adversarial.number == pytest.approx(of_mesh(adversarial[0] == 1, mm))
    assert liver.hd95_mm.number == surface_metrics(clean[0] == 1, adversarial[0] == 1, mm)[0] == 4.0
    assert spleen.volume_ml.clean == 0
    assert spleen.diameter_mm.clean.reason is Reason.NOT_DRAWN
    assert spleen.hd95_mm.reason is Reason.ONE_EMPTY
    assert liver.changed
    assert spleen.changed


def test_what_did_not_change_says_so() -> None:
    labels = np.zeros((1, 8, 8, 8), np.int64)
    labels[0, 2:5, 2:5, 2:5] = 1
    found = consequences(labels, labels, ORGANS, spacing=(1, 1, 1))
    assert (found.redrawn.volume_ml, found.redrawn.pieces) == (0, 0)
    assert found.redrawn.diameter_mm.reason is Reason.IDENTICAL_PREDICTIONS
    liver, spleen = found.per_class
    assert liver.hd95_mm.number == 0
    assert liver.diameter_mm.clean == liver.diameter_mm.adversarial
    assert spleen.hd95_mm.reason is Reason.BOTH_EMPTY
    assert spleen.diameter_mm.clean.reason is spleen.diameter_mm.adversarial.reason is Reason.NOT_DRAWN
    assert not liver.changed
    assert not spleen.changed


def test_overlapping_regions_have_a_volume_each() -> None:
    labels = np.zeros((2, 6, 6, 6), np.int64)
    labels[0, 1:5, 1:5, 1:5] = labels[1, 2:4, 2:4, 2:4] = 1
    regions = Classes(("whole", "core"), overlapping=True)
    whole, core = consequences(labels, labels, regions, spacing=(10, 10, 10)).per_class
    assert (whole.volume_ml.clean, core.volume_ml.clean) == (64, 8)


def test_the_region_of_doubt_is_where_both_differ() -> None:
    clean = np.zeros((1, 30, 12, 12), np.int64)
    clean[0, :12] = 1
    adversarial = clean.copy()
    adversarial[0, 2:6, 2:4, 2:4] = 0
    adversarial[0, 20, 5, 5] = 2
    redrawn = consequences(clean, adversarial, ORGANS, spacing=(2, 1, 1)).redrawn
    assert redrawn.volume_ml == pytest.approx(0.034)
    assert redrawn.pieces == 2
    assert redrawn.diameter_mm.number == pytest.approx(of_mesh(clean[0, 2:6, 2:4, 2:4] == 1, (2, 1, 1)))
    # A hole does not move most of a surface: HD95 alone would say that nothing happened.
    adversarial[0, 20, 5, 5] = 0
    assert consequences(clean, adversarial, ORGANS, spacing=(2, 1, 1)).per_class[0].volume_change_ml < 0
