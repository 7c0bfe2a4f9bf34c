"""ROC curves against pairs counted by hand and scikit-learn; intervals against a scan of all areas, and coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from mafl_cli.measure.roc import area, area_interval, roc_points

# Few values, so that there are ties.
scores = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.9, 1.0]) | st.floats(0, 1), min_size=1, max_size=30)


@settings(max_examples=60)
@given(scores, scores)
def test_the_area_is_the_share_of_pairs_in_order_and_a_tie_is_half(negative: Any, positive: Any) -> None:
    ranked = [(high > low) + (high == low) / 2 for low in negative for high in positive]
    assert area(roc_points(negative, positive)) == pytest.approx(sum(ranked) / len(ranked))


@settings(max_examples=60)
@given(scores, scores)
def test_the_curve_is_that_of_scikit_learn(negative: Any, positive: Any) -> None:
    truth, score = [0] * len(negative) + [1] * len(positive), [*negative, *positive]
    points = roc_points(negative, positive)
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    assert list(points) == [pytest.approx(tuple(point)) for point in zip(false, true, strict=True)]
    assert area(points) == pytest.approx(roc_auc_score(truth, score))
    assert (points[0], points[-1]) == ((0, 0), (1, 1))
    assert list(points) == sorted(points)


@settings(max_examples=40)
@given(scores, scores, st.randoms(use_true_random=False))
def test_the_order_of_the_scores_and_their_scale_do_not_matter(negative: Any, positive: Any, random: Any) -> None:
    points = roc_points(negative, positive)
    one, other = [sorted(each, key=lambda _: random.random()) for each in (negative, positive)]
    assert roc_points(one, other) == points
    # Powers of two, which are exact.
    assert roc_points([8 * each for each in one], [8 * each for each in other]) == points
    assert area(points) + area(roc_points(positive, negative)) == pytest.approx(1)


@pytest.mark.parametrize("found", [0.0, 0.12, 0.5, 0.83, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_the_interval_holds_every_area_from_which_the_one_found_is_not_far(found: float, count: int) -> None:
    areas = np.linspace(0, 1, 200_001)
    # Hanley and McNeil's variance, with both kinds of samples in the place of each other's count and averaged.
    first, second = areas / (2 - areas), 2 * areas**2 / (1 + areas)
    variance = (areas * (1 - areas) + (count - 1) * (first + second - 2 * areas**2)) / count**2
    near = areas[np.abs(found - areas) <= 1.959964 * np.sqrt(np.maximum(variance, 0))]
    low, high = area_interval(found, count)
    assert low == pytest.approx(near.min(), abs=1e-5)
    assert high == pytest.approx(near.max(), abs=1e-5)
    assert low <= found <= high


def test_more_cases_make_it_narrower_and_none_makes_it_a_point() -> None:
    widths = [high - low for low, high in (area_interval(1.0, count) for count in (1, 2, 5, 20, 100))]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] > 0.01
    low, high = area_interval(0.8, 10)
    assert area_interval(0.2, 10) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.0])
def test_it_holds_the_true_area_as_often_as_it_says(distance: float) -> None:
    random, count = np.random.default_rng(0), 12
    truth = 0.5 * (1 + math.erf(distance / 2))
    held = 0
    for _ in range(300):
        low, high = random.normal(size=count), random.normal(distance, size=count)
        ends = area_interval(area(roc_points(low.tolist(), high.tolist())), count)
        held += ends[0] <= truth <= ends[1]
    # 95 % of 300, and three standard errors.
    assert held / 300 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 300)


@pytest.mark.parametrize(("found", "count"), [(-0.1, 5), (1.1, 5), (math.nan, 5), (0.5, 0)])
def test_what_is_not_an_area_is_refused(found: float, count: int) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        area_interval(found, count)
