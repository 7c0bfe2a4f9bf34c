"""What is tried beyond measuring: areas under budgets by hand, runs put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import curve

from mafl_cli.codes import Reason
from mafl_cli.judging.trials import CURVE_END, area, areas, smallest_of
from mafl_cli.measure.value import undefined
from mafl_cli.results.evaluation_report import Area, Curve, SmallestAtGoal


def joined(curves: Sequence[Curve]) -> tuple[Area, SmallestAtGoal]:
    """What runs show together, as reports of several have it."""
    return areas(point for each in curves for point in each.points), smallest_of(curves)


# --- how much of it is needed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "value"),
    [
        ([], 0),
        ([(0, 0)], 0),
        ([(0, 1)], 1),
        ([(0, 0), (0.05, 1)], 0.5),
        ([(0, 0), (0.02, 0.5), (0.06, 1)], (0.04 * 0.5 + 0.04) / 0.1),
        ([(0, 0.2), (0.05, 1), (0.07, 0.1)], 0.1 + 0.5),
        ([(0, 0), (0.1, 1)], 0),
        ([(0, 0.25), (0.2, 1)], 0.25),
        ([(0, 0), (0.05, 0.3), (0.05, 0.9), (0.05, 0.1)], 0.45),
    ],
    ids=["nothing", "no change", "at once", "one step", "two steps", "never falls", "too late", "beyond", "a tie"],
)
def test_area_is_that_of_the_best_score_so_far(points: Any, value: Any) -> None:
    assert area(points).value == pytest.approx(value)


def test_area_with_a_score_that_is_unknown_is_unknown() -> None:
    assert area([(0, 0.0), (0.01, None)]) == undefined(Reason.SCORE_UNDEFINED)


runs = st.lists(
    st.builds(
        lambda points, at_goal: curve(sorted(points), at_goal),
        st.lists(st.tuples(st.floats(0, 2 * CURVE_END), st.floats(0, 1)), min_size=1, max_size=4),
        st.none() | st.sampled_from([0.25, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(runs.flatmap(lambda made: st.tuples(st.just(made), st.permutations(made))))
def test_runs_put_together_do_not_depend_on_their_order(both: Any) -> None:
    one, other = both
    assert joined(one) == joined(other)


@settings(max_examples=60)
@given(runs)
def test_more_runs_never_show_less(made: Any) -> None:
    before, after = joined(made[:-1] or made), joined(made)
    for key in ("target_iou", "hit_rate"):
        one, other = (getattr(areas, key).number for areas, _ in (before, after))
        assert 0 <= one <= other + 1e-12 <= 1 + 2e-12
    first, second = before[1], after[1]
    if first.value is not None:
        assert second.linf_share <= first.linf_share


def test_the_smallest_change_of_several_runs_is_that_of_the_smallest_voxel() -> None:
    large, small, none = curve(((0.0, 0.0), (0.1, 1.0))), curve(((0.0, 0.0), (0.04, 1.0))), curve(at_goal=None)
    assert smallest_of([none, large, small]) == small.smallest_at_goal
    assert smallest_of([none]) == SmallestAtGoal(None, Reason.GOAL_NOT_REACHED)
    assert joined([large, small])[0].target_iou.value == pytest.approx(0.6)


def test_of_two_runs_with_the_same_largest_voxel_the_shorter_change_is_the_smaller() -> None:
    long, short = curve(), curve()
    whole = short.smallest_at_goal
    short = replace(short, smallest_at_goal=replace(whole, l2_model=whole.l2_model / 2))
    for both in ([long, short], [short, long]):
        assert smallest_of(both) == short.smallest_at_goal
