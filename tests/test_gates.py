"""The rules a CI job hangs on: what passes, what fails, and that nobody passes by not being measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mafl_cli.errors import InputError, UsageError
from mafl_cli.gates import FIGURES, judge, parse, read, statistics_of, summary_of


def case(name: str = "a", **changes: Any) -> dict[str, Any]:
    """A case with the few numbers that the tests ask for."""
    iou, psnr, reached = changes.get("iou", 0.9), changes.get("psnr", 40.0), changes.get("reached", True)
    value = {"value": iou} if iou is not None else {"value": None, "reason": "target_has_no_foreground"}
    both = {"native": 2.0, "model": 0.5}
    return {
        "case_id": name, "status": "ok", "error": None,
        "goal": {"reached": reached},
        "metrics": {
            "post_write": {
                "target_iou": value, "target_dice": value, "hit_rate": value, "collateral": {"value": 0.0, "count": 0},
                "per_class": [{"voxels": {"target": 3}, "hd95_mm": {"value": None, "reason": "one_empty"}}],
            },
            "dice_with_clean": {"value": 0.7},
            "size": {
                "l0": {"count": 1, "fraction": 0.1}, "l2": both, "linf": both, "psnr_db": {"value": psnr},
                "ssim": {"mean": {"value": 0.9}, "worst": {"value": 0.8}}, "low_frequency_share": {"value": 0.3},
            },
        },
        "ground_truth": None, "curve": None, "transfer": [], "survival": [],
    }  # fmt: skip


def failed(name: str = "broken") -> dict[str, Any]:
    return {"case_id": name, "status": "failed", "error": {"type": "InputError", "message": f"{name}: is damaged."}}


def verdict(text: str, *cases: dict[str, Any], untested: str | None = None) -> dict[str, Any]:
    return judge(parse(text), cases, untested=lambda each: untested)


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        ("target_iou > 0.5", "fail"), ("target_iou > 0.9", "pass"), ("target_iou >= 0.9", "fail"),
        ("target_iou < 0.5", "pass"), ("target_iou < 0.95", "fail"), ("target_iou <= 0.9", "fail"),
        ("psnr_db < 50", "fail"), ("psnr_db > 50", "pass"), ("prediction_drop > 0.2", "fail"),
        ("goal_reached >= 1", "fail"), ("ssim_worst < .85", "fail"), ("linf_native > 1e1", "pass"),
    ],
)  # fmt: skip
def test_a_gate_fails_when_its_rule_comes_true(rule: str, status: str) -> None:
    assert verdict(rule, case())["status"] == status


def test_the_worst_case_is_the_one_nearest_to_failing() -> None:
    cases = [case("low", iou=0.1), case("high", iou=0.9)]
    above, below = verdict("target_iou > 0.5", *cases), verdict("target_iou < 0.05", *cases)
    assert (above["observed"], above["status"]) == (0.9, "fail")
    assert "worst of 2 cases, high" in above["reason"]
    assert (below["observed"], below["status"]) == (0.1, "pass")
    assert [each["status"] for each in above["cases"]] == ["pass", "fail"]


def test_other_aggregates_look_at_all_cases() -> None:
    cases = [case(str(n), iou=n / 20) for n in range(21)]
    assert verdict("mean(target_iou) > 0.49", *cases)["observed"] == pytest.approx(0.5)
    assert verdict("median(target_iou) > 0.6", *cases)["status"] == "pass"
    assert verdict("p95(target_iou) > 0.94", *cases)["observed"] == pytest.approx(0.95)
    assert verdict("p95(target_iou) < 0.06", *cases)["observed"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("rule", "cases", "reason"),
    [
        ("target_iou > 0.5", [], "there is no case"),
        ("target_iou > 0.5", [case(iou=0.1), failed()], "broken: broken: is damaged"),
        ("target_iou > 0.5", [case(iou=None)], "target_iou is undefined: target has no foreground"),
        ("mean(target_iou) > 0.5", [case(iou=0.1), case(iou=None)], "is undefined"),
        ("dice_drop > 0.1", [case()], "needs --ground-truth"),
        ("curve_area > 0.9", [case()], "needs --curve"),
        ("transfer_target_iou > 0.9", [case()], "needs a second --model"),
        ("survival_target_iou > 0.9", [case()], "needs --transform"),
        ("target_hd95 > 1000", [case()], "one empty"),
    ],
)  # fmt: skip
def test_what_is_not_known_fails(rule: str, cases: list[dict[str, Any]], reason: str) -> None:
    found = verdict(rule, *cases)
    assert (found["status"], found["observed"]) == ("fail", None)
    assert reason in found["reason"]


def test_a_case_that_proves_nothing_fails() -> None:
    found = verdict("target_iou > 0.99", case(), untested="its files were changed")
    assert found["status"] == "fail"
    assert "its files were changed" in found["reason"]


@pytest.mark.parametrize(
    ("rule", "reached", "status"),
    [
        # A goal that no change reached: no change was faint enough, or small enough.
        ("psnr_at_goal > 50", [False], "pass"), ("psnr_at_goal < 50", [False], "fail"),
        ("linf_at_goal < 5", [False], "pass"), ("linf_at_goal > 5", [False], "fail"),
        ("psnr_at_goal > 39", [False, True], "fail"), ("psnr_at_goal > 50", [False, True], "pass"),
        ("mean(psnr_at_goal) > 50", [False, True], "fail"), ("mean(psnr_at_goal) > 50", [False, False], "pass"),
        ("median(psnr_at_goal) > 50", [False, True], "fail"),
        ("median(psnr_at_goal) > 39", [False, True, True], "fail"),
    ],
)  # fmt: skip
def test_a_goal_that_was_not_reached_is_beyond_every_change(rule: str, reached: list[bool], status: str) -> None:
    found = verdict(rule, *(case(str(n), reached=each) for n, each in enumerate(reached)))
    assert found["status"] == status
    assert found["observed"] is None or math.isfinite(found["observed"])


@given(
    st.sampled_from(sorted(FIGURES)),
    st.sampled_from([">", ">=", "<", "<="]),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.sampled_from(["worst", "mean", "median", "p95"]),
)
def test_an_expression_says_what_it_was_made_from(figure: str, operator: str, threshold: float, how: str) -> None:
    gate = parse(f" {how}( {figure} ){operator} {threshold!r} ")
    assert (gate.figure, gate.operator, gate.threshold, gate.aggregate) == (figure, operator, threshold, how)
    again = parse(gate.expression)
    assert (again.figure, again.operator, again.aggregate) == (figure, operator, how)
    assert again.threshold == pytest.approx(threshold, rel=1e-5)


@pytest.mark.parametrize(
    "text",
    ["", "target_iou", "target_iou > ", "> 0.5", "target_iou > nan", "target_iou > inf", "target_iou > 5 HU",
     "target_iou == 0.5", "target_iou => 0.5", "best(target_iou) > 0.5", "mean target_iou > 0.5", "iou > 0.5",
     "target_iou > 0.5 or psnr_db > 3", "mean(target_iou > 0.5", "target_iou > 0,5"],
)  # fmt: skip
def test_what_is_no_rule_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--fail-if .*\.$"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "a = 1", "[gates]", "[gates]\na = 1", "[gates]\na = 'x > 1'", "[gates", "[gates]\na='psnr_db>1'\n[b]\n"],
)
def test_a_file_that_is_no_table_of_rules_is_bad_input(tmp_path: Path, text: str) -> None:
    (tmp_path / "gates.toml").write_text(text)
    with pytest.raises(InputError, match=r"^gates\.toml: "):
        read(tmp_path / "gates.toml")


def test_statistics_are_those_of_numpy_and_the_interval_that_of_scipy() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 40)
    found = summary_of([*values.tolist(), None])
    assert found["n"] == 40
    assert found["mean"] == pytest.approx(values.mean())
    assert found["median"] == pytest.approx(np.median(values))
    assert [found["p5"], found["p95"]] == pytest.approx(np.percentile(values, (5, 95)))
    assert [found["min"], found["max"]] == [values.min(), values.max()]
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert found["ci95"] == pytest.approx(list(theirs), abs=0.005)
    assert found == summary_of([*values.tolist(), None])


def test_undefined_figures_are_counted_and_unasked_ones_left_out() -> None:
    found = statistics_of([case(iou=0.2), case(iou=None), failed()])
    assert (found["cases"], found["ok"], found["failed"], found["goal_reached"]) == (3, 2, 1, 2)
    iou = found["figures"]["target_iou"]
    assert (iou["n"], iou["undefined"], iou["reasons"], iou["ci95"]) == (1, 1, ["target_has_no_foreground"], None)
    assert "dice_drop" not in found["figures"]
    assert found["figures"]["target_hd95"]["mean"] is None
