"""The trace of a search: groups joined by step number, thinned to a bounded length, fit for JSON."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from mafl_cli.search.loop import StepRecord
from mafl_cli.search.traces import POINTS, Group, joined
from mafl_cli.system.records import plain


def group(samples: int, *scores: float) -> Group:
    """Records whose score is given, with values that follow from it."""
    records = [StepRecord(step, float(score > 0.5), score, 10 * score, 1 - score) for step, score in enumerate(scores)]
    return Group(samples, records)


def test_groups_are_joined_by_step_and_what_is_finished_keeps_its_last_values() -> None:
    trace = plain(joined([group(3, 0.0, 0.4, 0.8), group(1, 0.2)]))
    assert trace["step"] == [0, 1, 2]
    assert trace["score"] == pytest.approx([(3 * score + 0.2) / 4 for score in (0.0, 0.4, 0.8)])
    assert trace["loss"] == pytest.approx([(3 * (1 - score) + 0.8) / 4 for score in (0.0, 0.4, 0.8)])
    assert trace["l2_model"] == pytest.approx([10 * score for score in trace["score"]])
    assert trace["reached"] == [0, 0, 0.75]


@pytest.mark.parametrize("steps", [1, 2, POINTS - 1, POINTS, POINTS + 1, 345, 2000])
def test_length_is_bounded_first_and_last_are_kept_and_no_step_comes_twice(steps: int) -> None:
    trace = plain(joined([group(2, *(step / steps for step in range(steps)))]))
    kept = trace["step"]
    assert {len(values) for values in trace.values()} == {min(steps, POINTS)}
    assert (kept[0], kept[-1]) == (0, steps - 1)
    gaps = {after - before for before, after in pairwise(kept)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)
    assert trace["score"] == pytest.approx([step / steps for step in kept], rel=1e-5)


def test_nothing_attacked_is_empty() -> None:
    assert plain(joined([])) == {"step": [], "loss": [], "score": [], "reached": [], "l2_model": []}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_what_is_not_finite_is_null(loss: float) -> None:
    trace = plain(joined([Group(1, [StepRecord(0, 0.0, 0.5, 0.0, loss)])]))
    assert json.loads(json.dumps(trace, allow_nan=False))["loss"] == [None]
