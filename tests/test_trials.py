"""The arithmetic of detection and curves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mafl_cli.trials import CURVE_END, area, joined, roc

SCORES = st.lists(
    st.tuples(st.floats(0, 1).map(lambda x: round(x, 1)), st.floats(0, 1).map(lambda x: round(x, 1))),
    min_size=1,
    max_size=30,
)


@given(SCORES)
def test_the_area_under_the_roc_is_that_of_scikit_learn_ties_included(pairs: list[tuple[float, float]]) -> None:
    found = roc([{"clean": clean, "adversarial": adversarial} for clean, adversarial in pairs])
    truth = [0] * len(pairs) + [1] * len(pairs)
    scores = [clean for clean, _ in pairs] + [adversarial for _, adversarial in pairs]
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    assert (found["points"][0], found["points"][-1], found["n"]) == ([0, 0], [1, 1], len(pairs))


def test_a_perfect_detector_finds_all_without_false_alarms() -> None:
    found = roc([{"clean": 0.1, "adversarial": 0.9}, {"clean": 0.2, "adversarial": 0.8}])
    assert (found["auc"]["value"], found["tpr_at_5_percent_fpr"]["value"]) == (1, 1)


def test_without_samples_there_is_no_curve() -> None:
    assert roc([])["auc"] == {"value": None, "reason": "no_changed_sample"}


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.0, 0.3)], 0.3),
        ([(0.0, 0.0), (CURVE_END / 2, 1.0)], 0.5),
        # A larger budget allows what a smaller one does, so a fall does not count.
        ([(0.0, 0.2), (CURVE_END / 4, 1.0), (CURVE_END / 2, 0.1)], 0.2 / 4 + 3 / 4),
        # What needs more than the largest budget counts nothing.
        ([(0.0, 0.0), (2 * CURVE_END, 1.0)], 0.0),
    ],
)
def test_the_area_under_a_staircase(points: list[tuple[float, float]], expected: float) -> None:
    assert area(points)["value"] == pytest.approx(expected)


def test_an_undefined_score_leaves_the_area_undefined() -> None:
    assert area([(0.0, None)]) == {"value": None, "reason": "score_undefined"}


def _curve(scores: list[float], largest: float) -> dict:
    shares = np.linspace(0, largest, len(scores))
    points = [
        {"linf_share": float(share), "target_iou": {"value": score}, "hit_rate": {"value": score}}
        for share, score in zip(shares, scores, strict=True)
    ]
    reached = (
        {"value": 1.0, "linf_share": largest} if scores[-1] > 0.9 else {"value": None, "reason": "goal_not_reached"}
    )
    return {"points": points, "smallest_at_goal": reached}


CURVES = st.builds(_curve, st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0.001, 0.3))


@given(st.lists(CURVES, min_size=1, max_size=4))
def test_more_runs_of_a_scan_never_lower_its_curve_and_their_order_is_no_matter(curves: list[dict]) -> None:
    together = joined(curves)
    assert together == joined(curves[::-1]) or together["smallest_at_goal"]["value"] is None
    alone = max(joined([each])["area"]["target_iou"]["value"] for each in curves)
    assert together["area"]["target_iou"]["value"] >= alone - 1e-12
    known = [each["smallest_at_goal"]["linf_share"] for each in curves if each["smallest_at_goal"]["value"]]
    assert together["smallest_at_goal"].get("linf_share") == (min(known) if known else None)
