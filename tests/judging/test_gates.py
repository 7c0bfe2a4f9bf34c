"""Figures by name, their statistics against NumPy and SciPy, and gates: what trips them, and that doubt does too."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import require_fits
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import case, curve, detected, failed, judged, survived, transferred, truth
from scipy.stats import bootstrap

from mafl_cli.codes import Outcome, Reason, Untested
from mafl_cli.errors import InputError, UsageError
from mafl_cli.judging import gates, totals
from mafl_cli.judging.gates import Gate
from mafl_cli.measure.value import Value, defined, undefined
from mafl_cli.results.evaluation_report import JudgedAggregate, ProvesNothing
from mafl_cli.results.quantities import EVALUATED
from mafl_cli.system import records


def judge(expression: Any, *cases: Any) -> Any:
    return gates.judge(gates.parse(expression), cases)


def ious(*values: Any) -> Any:
    return [case(f"case{n}", target_iou=value) for n, value in enumerate(values)]


# --- figures ------------------------------------------------------------------------------------------------------


def test_every_figure_is_known_where_everything_was_asked_for() -> None:
    everything = case(
        ground_truth=truth(0.9, 0.4),
        transfer=[transferred(0.3)],
        survival=[survived(0.6)],
        detection=detected((0.1, 0.8), (0.2, 0.3)),
        curve=curve(),
    )
    found = {name: figure.of_evaluation(everything) for name, figure in EVALUATED.items()}
    # The slices of the test are too small for their noise to be known.
    assert {name: entry.reason for name, entry in found.items() if entry.value is None} == dict.fromkeys(
        ("percent_correct", "pc_at_goal"), Reason.NO_NOISE
    )
    assert found["goal_reached"].value == 1
    assert found["dice_drop"].value == pytest.approx(0.5)
    assert found["transfer_target_iou"].value == 0.3
    assert found["survival_target_iou"].value == 0.6
    assert found["psnr_at_goal"].value == 46
    assert found["linf_at_goal"].value == pytest.approx(0.1)
    assert found["curve_area"].value == pytest.approx(0.8)
    assert found["blur_auc"].value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        ("dice_clean", "no_ground_truth"),
        ("dice_drop", "no_ground_truth"),
        ("curve_area", "no_curve"),
        ("transfer_target_iou", "no_other_model"),
        ("survival_target_iou", "no_transform"),
    ],
)
def test_a_figure_that_was_not_measured_says_what_it_needs(figure: Any, reason: Any) -> None:
    assert EVALUATED[figure].of_evaluation(case()) == undefined(Reason(reason))
    assert Reason(reason).sentence.startswith("needs ")


def test_of_several_models_or_transforms_the_one_that_is_fooled_most_counts() -> None:
    both = case(
        transfer=[transferred(0.2), transferred(0.7, "c" * 64)], survival=[survived(0.9), survived(0.1, "median:3")]
    )
    assert EVALUATED["transfer_target_iou"].of_evaluation(both).value == 0.7
    assert EVALUATED["survival_target_iou"].of_evaluation(both).value == 0.9


def test_one_undefined_of_several_leaves_the_highest_undefined() -> None:
    found = EVALUATED["survival_target_iou"].of_evaluation(case(survival=[survived(0.9), survived(None, "median:3")]))
    assert found == undefined(Reason.SCORE_UNDEFINED)


def test_figures_at_the_goal_are_those_of_the_file_without_a_curve() -> None:
    assert EVALUATED["psnr_at_goal"].of_evaluation(case(psnr_db=51.0)).value == 51
    assert EVALUATED["linf_at_goal"].of_evaluation(case(linf_native=3.0)).value == 3
    assert EVALUATED["psnr_at_goal"].of_evaluation(case(psnr_db=51.0, reached=False)).reason == "goal_not_reached"
    assert EVALUATED["psnr_at_goal"].of_evaluation(case(curve=curve(at_goal=None))).reason == "goal_not_reached"


def test_the_distance_is_that_of_the_farthest_class_and_unknown_where_a_class_is_missing() -> None:
    def worst(*organs: tuple[Value, int]) -> Value:
        """organs: the distance of each, and how many voxels of it the target has."""
        one = case()
        organ = one.metrics.post_write.per_class[0]
        classes = tuple(
            replace(organ, hd95_mm=distance, voxels=replace(organ.voxels, target=voxels)) for distance, voxels in organs
        )
        post = replace(one.metrics.post_write, per_class=classes)
        return EVALUATED["target_hd95"].of_evaluation(replace(one, metrics=replace(one.metrics, post_write=post)))

    missing = undefined(Reason.ONE_EMPTY)
    assert worst((defined(2), 5), (defined(9), 5), (missing, 0)) == defined(9)
    assert worst((missing, 5), (defined(9), 5), (missing, 0)) == missing
    assert worst() == undefined(Reason.TARGET_HAS_NO_FOREGROUND)


# --- statistics ---------------------------------------------------------------------------------------------------

shares = st.floats(0, 1)
thresholds = st.floats(0, 1, exclude_min=True, exclude_max=True)


@settings(max_examples=60)
@given(st.lists(shares, min_size=1, max_size=12))
def test_statistics_equal_numpy(values: Any) -> None:
    found = totals.aggregate(ious(*values)).figures["target_iou"]
    assert found.n == len(values)
    assert (found.min, found.max) == (min(values), max(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.median == pytest.approx(np.median(values))
    for share in (5, 95):
        assert getattr(found, f"p{share}") == pytest.approx(np.percentile(values, share))


def test_interval_of_the_mean_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).beta(2, 5, 30)
    low, high = totals.aggregate(ious(*values)).figures["target_iou"].ci95
    expected = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.1 * (expected.high - expected.low))


def test_statistics_do_not_change_from_call_to_call() -> None:
    cases = ious(0.1, 0.5, 0.7)
    assert totals.aggregate(cases) == totals.aggregate(cases)


def test_one_case_has_no_interval_and_none_has_no_statistics() -> None:
    assert totals.aggregate(ious(0.5)).figures["target_iou"].ci95 is None
    assert totals.aggregate([]) == JudgedAggregate(cases=0, ok=0, failed=0, goal_reached=0, doubtful=0, figures={})


def test_statistics_count_failures_and_what_is_undefined_and_leave_out_what_nobody_asked_for() -> None:
    found = totals.aggregate([*ious(0.5, None), case("third", reached=False, target_iou=0.1), failed()])
    assert (found.cases, found.ok, found.failed, found.goal_reached) == (4, 3, 1, 2)
    iou = found.figures["target_iou"]
    assert (iou.n, iou.undefined, iou.reasons, iou.mean) == (2, 1, (Reason.SCORE_UNDEFINED,), 0.3)
    assert "curve_area" not in found.figures
    assert "dice_drop" not in found.figures
    at_goal = found.figures["psnr_at_goal"]
    assert (at_goal.n, at_goal.reasons) == (2, (Reason.GOAL_NOT_REACHED,))


def test_a_figure_that_is_undefined_everywhere_is_there_without_numbers() -> None:
    found = totals.aggregate(ious(None, None)).figures["target_iou"]
    assert (found.n, found.undefined, found.mean, found.ci95) == (0, 2, None, None)


# --- what trips a gate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "below", "equal", "above"),
    [(">", "pass", "pass", "fail"), (">=", "pass", "fail", "fail"), ("<", "fail", "pass", "pass"),
     ("<=", "fail", "fail", "pass")],
)  # fmt: skip
@pytest.mark.parametrize("aggregate", ["{}", "worst({})", "mean({})", "median({})", "p95({})"])
def test_each_operator_on_either_side_of_its_threshold(
    aggregate: Any, operator: Any, below: Any, equal: Any, above: Any
) -> None:
    rule = f"{aggregate.format('target_iou')} {operator} 0.5"
    for value, status in ((0.25, below), (0.5, equal), (0.75, above)):
        result = judge(rule, *ious(value, value))
        assert (result.status, result.observed) == (status, value)


def test_the_worst_case_is_the_one_nearest_to_failing() -> None:
    cases = ious(0.2, 0.6, 0.4)
    upper, lower = judge("target_iou > 0.5", *cases), judge("target_iou < 0.1", *cases)
    assert (upper.status, upper.observed) == ("fail", 0.6)
    assert "case1" in upper.reason
    assert [each.status for each in upper.cases] == ["pass", "fail", "pass"]
    assert (lower.status, lower.observed) == ("pass", 0.2)
    assert "case0" in lower.reason


@settings(max_examples=60)
@given(st.lists(shares, min_size=1, max_size=9), thresholds)
def test_aggregates_observe_what_numpy_says(values: Any, threshold: Any) -> None:
    cases = ious(*values)
    expected = {"mean": np.mean(values), "median": np.median(values), "p95": np.percentile(values, 95)}
    for aggregate, number in expected.items():
        assert judge(f"{aggregate}(target_iou) > {threshold!r}", *cases).observed == pytest.approx(number)
    low = judge(f"p95(target_iou) < {threshold!r}", *cases).observed
    assert low == pytest.approx(np.percentile(values, 5))


@settings(max_examples=60)
@given(st.lists(shares, min_size=1, max_size=6), thresholds, st.sampled_from([">", ">=", "<", "<="]))
def test_a_gate_on_the_worst_case_fails_exactly_if_one_of_its_cases_does(
    values: Any, threshold: Any, operator: Any
) -> None:
    result = judge(f"target_iou {operator} {threshold!r}", *ious(*values))
    assert (result.status == "fail") == any(each.status == "fail" for each in result.cases)


def test_a_gate_on_yes_or_no_counts_cases() -> None:
    cases = [case("a"), case("b", reached=False), case("c", reached=False), case("d", reached=False)]
    assert judge("mean(goal_reached) > 0.25", *cases).status == "pass"
    assert judge("goal_reached > 0", *cases).status == "fail"


# --- what is not known fails --------------------------------------------------------------------------------------

EVERY = [
    f"{aggregate}({{}}) {operator} {threshold}"
    for aggregate in ("worst", "mean", "median", "p95")
    for operator, threshold in ((">", 0.999), ("<", 0.001))
]


@pytest.mark.parametrize("rule", EVERY)
@pytest.mark.parametrize(
    ("figure", "cases", "why"),
    [
        pytest.param("target_iou", [], "there is no case", id="no case"),
        pytest.param("target_iou", [failed("b", "b: gone.")], "b: b: gone.", id="failed"),
        pytest.param("target_iou", [case(), failed("b", "gone")], "b: gone", id="one failed"),
        pytest.param(
            "target_iou", [*ious(0.2, None)], "case1: target_iou is undefined: the score is undefined", id="undefined"
        ),
        pytest.param("curve_area", [case()], "scan: curve_area is undefined: needs the curve", id="not measured"),
        pytest.param("target_iou", [*ious(math.nan, 0.1)], "case0: target_iou is not a number", id="NaN first"),
        pytest.param("target_iou", [*ious(0.1, math.nan)], "case1: target_iou is not a number", id="NaN last"),
        pytest.param(
            "psnr_at_goal", [case(psnr_db=None)], "psnr_at_goal is undefined: the score is undefined", id="at goal"
        ),
    ],
)
def test_what_is_not_known_fails_whatever_the_rule(rule: Any, figure: Any, cases: Any, why: Any) -> None:
    result = judge(rule.format(figure), *cases)
    assert result.status == "fail"
    assert result.observed is None
    assert why in result.reason
    records.to_json(result)


@pytest.mark.parametrize("rule", EVERY)
def test_a_case_that_proves_nothing_fails(rule: Any) -> None:
    first, second = ious(0.1, 0.2)
    second = replace(second, untested=ProvesNothing(code=Untested.FILE_CHANGED, sentence="x changed"))
    result = judge(rule.format("target_iou"), first, second)
    assert result.status == "fail"
    assert "case1: x changed" in result.reason


def test_files_that_are_not_those_of_the_report_and_an_attack_without_gradient_prove_nothing() -> None:
    said = "target.nii.gz is not the file the report describes"
    changed = case("a", untested=ProvesNothing(code=Untested.FILE_CHANGED, sentence=said))
    said = Untested.NO_GRADIENT.sentence
    blind = case("b", reached=False, untested=ProvesNothing(code=Untested.NO_GRADIENT, sentence=said))
    whole = case("c", files_intact=True, outcome=Outcome.REACHED)
    (gate,) = judged([changed, blind, whole], [gates.parse("target_iou >= 1")]).gates
    assert [each.status for each in gate.cases] == ["fail", "inconclusive", "pass"]
    assert gate.reason == (
        "cannot be measured, so it fails: a: target.nii.gz is not the file the report describes (and 1 more)"
    )
    assert "no gradient" in gate.cases[1].problem


# --- a goal that was not reached lies beyond every change ---------------------------------------------------------

REACHED, NOT = case("a", psnr_db=45.0, linf_native=3.0), case("b", psnr_db=50.0, reached=False)


@pytest.mark.parametrize(
    ("rule", "status"),
    [("psnr_at_goal > 40", "pass"), ("psnr_at_goal < 40", "fail"), ("linf_at_goal < 1", "pass"),
     ("linf_at_goal > 1", "fail"), ("l2_at_goal < 1", "pass"), ("mean(psnr_at_goal) > 40", "pass"),
     ("median(psnr_at_goal) > 40", "pass"), ("p95(psnr_at_goal) > 40", "pass"), ("p95(psnr_at_goal) < 40", "fail")],
)  # fmt: skip
def test_no_change_at_all_reached_the_goal(rule: Any, status: Any) -> None:
    for cases in ([NOT], [NOT, NOT]):
        result = judge(rule, *cases)
        assert (result.status, result.observed) == (status, None)
        assert "no change that was tried reaches the goal" in result.reason


@pytest.mark.parametrize(
    ("rule", "status", "observed"),
    [("psnr_at_goal > 44", "fail", 45), ("psnr_at_goal > 46", "pass", 45), ("psnr_at_goal < 1", "fail", None),
     ("linf_at_goal < 3.5", "fail", 3), ("linf_at_goal < 2", "pass", 3), ("linf_at_goal > 1e9", "fail", None),
     ("p95(psnr_at_goal) > 46", "pass", 45), ("p95(psnr_at_goal) > 44", "fail", 45)],
)  # fmt: skip
def test_of_several_the_one_that_was_reached_is_the_threat(rule: Any, status: Any, observed: Any) -> None:
    result = judge(rule, REACHED, NOT)
    assert (result.status, result.observed) == (status, observed)


@pytest.mark.parametrize("aggregate", ["mean", "median"])
@pytest.mark.parametrize("rule", ["> 1000", "< -1000"])
def test_a_mean_over_goals_not_reached_is_not_known_and_fails(aggregate: Any, rule: Any) -> None:
    result = judge(f"{aggregate}(psnr_at_goal) {rule}", REACHED, NOT)
    assert (result.status, result.observed) == ("fail", None)
    assert result.reason.startswith(f"the {aggregate} is undefined, so it fails")


def test_a_median_beside_a_goal_not_reached_is_known() -> None:
    result = judge("median(psnr_at_goal) > 44.5", REACHED, REACHED, NOT)
    assert (result.status, result.observed) == ("fail", 45)
    assert "not reached in 1 of 3" in result.reason


def test_the_case_that_no_change_fools_is_named() -> None:
    result = judge("linf_at_goal > 5", REACHED, NOT)
    assert result.reason == "no change that was tried reaches the goal (worst of 2 cases: b)"


def test_of_many_worst_cases_only_some_are_named() -> None:
    assert "worst of 5 cases: case0, case1, case2 and 2 more" in judge("ssim >= 1", *ious(*5 * [0.5])).reason


# --- expressions --------------------------------------------------------------------------------------------------

gates_of_any_kind = st.builds(
    Gate,
    st.just("x"),
    st.sampled_from(sorted(EVALUATED)),
    st.sampled_from([">", ">=", "<", "<="]),
    st.floats(-1e300, 1e300),
    st.sampled_from(["worst", "mean", "median", "p95"]),
)


def decided(gate: Any) -> Any:
    """Whether the rule says the same of every value that its figure can have."""
    low, high = (min(max(end, -1e301), 1e301) for end in EVALUATED[gate.figure].span)
    between = min(max(gate.threshold, low), high)
    tried = {low, high, between, math.nextafter(between, low), math.nextafter(between, high)}
    return len({gates._HOLDS[gate.operator](value, gate.threshold) for value in tried}) == 1


@settings(max_examples=60)
@given(gates_of_any_kind)
def test_an_expression_reads_back_as_the_same_gate_or_is_refused_where_it_is_decided_before(gate: Any) -> None:
    if decided(gate):
        with pytest.raises(UsageError, match=r"can never fail|always fails"):
            gates.parse(gate.expression)
    else:
        assert gates.parse(gate.expression, "x") == gate


@pytest.mark.parametrize(
    ("rule", "why"),
    [("hit_rate > 50", "can never fail: hit_rate is 0 to 1"), ("mean(target_iou) > 1", "can never fail"),
     ("hit_rate >= 0", "always fails: hit_rate is 0 to 1"), ("p95(collateral) <= 1", "always fails"),
     ("ssim > 1", "can never fail: ssim is -1 to 1"), ("dice_drop < -1", "can never fail"),
     ("linf_native < 0", "can never fail: linf_native is 0 or more"), ("l2_at_goal >= 0", "always fails"),
     ("target_hd95 < -3", "can never fail"), ("goal_reached > 1", "can never fail")],
)  # fmt: skip
def test_a_rule_that_nothing_can_break_or_everything_breaks_is_refused_with_the_range(
    rule: Any, why: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(f"`fail_if` {rule!r} {why}")):
        gates.parse(rule)
    (tmp_path / "gates.toml").write_text(f'[gates]\nx = "{rule}"\n')
    with pytest.raises(InputError, match=r"^gates\.toml: .*" + re.escape(why)):
        gates.read(tmp_path / "gates.toml")


@pytest.mark.parametrize(
    "rule",
    ["hit_rate >= 1", "hit_rate > 0", "hit_rate < 1", "hit_rate <= 0", "psnr_db > 1000", "psnr_at_goal < -5",
     "linf_native > 1000000", "linf_native <= 0", "ssim < 0", "dice_drop < 0"],
)  # fmt: skip
def test_a_rule_that_can_come_true_or_not_is_taken(rule: Any) -> None:
    assert gates.parse(rule).expression == rule


@pytest.mark.parametrize(
    ("text", "expression"),
    [("target_iou>0.5", "target_iou > 0.5"), (" worst( hit_rate )< +1 ", "hit_rate < 1"),
     ("mean(psnr_db)<4e1", "mean(psnr_db) < 40"), ("p95(ssim) < .5", "p95(ssim) < 0.5"), ("ssim<1.", "ssim < 1"),
     ("psnr_db >= -0.25", "psnr_db >= -0.25")],
)  # fmt: skip
def test_an_expression_is_written_in_one_way(text: Any, expression: Any) -> None:
    gate = gates.parse(text)
    assert gate.expression == gate.name == expression


@pytest.mark.parametrize(
    "text",
    ["", "target_iou", "> 0.5", "target_iou 0.5", "target_iou == 0.5", "target_iou => 0.5", "target_iou != 0.5",
     "target_iou > nan", "target_iou > inf", "target_iou > -inf", "target_iou > 1e999", "psnr_db < 40dB",
     "psnr_db < 40 dB", "target_iou > 50%", "target_iou > 0,5", "0.5 < target_iou", "mean(target_iou > 0.5",
     "mean target_iou > 0.5", "mean(mean(target_iou)) > 0.5", "target_iou > 0.5 and hit_rate > 0.5", "target_iou > 0x1",
     "target_iou > 1_0"],
)  # fmt: skip
def test_what_is_no_expression_is_refused_in_a_sentence(text: Any) -> None:
    with pytest.raises(UsageError) as caught:
        gates.parse(text)
    message = str(caught.value)
    assert repr(text) in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "word"),
    [("target_iuo > 0.5", "'target_iuo'"), ("mean(nothing) > 0.5", "'nothing'"), ("max(target_iou) > 0.5", "'max'"),
     ("p5(target_iou) > 0.5", "'p5'")],
)  # fmt: skip
def test_a_figure_or_aggregate_that_does_not_exist_is_named_beside_those_that_do(text: Any, word: Any) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        gates.parse(text)
    assert ("target_dice" in str(caught.value)) == ("does not exist" in str(caught.value))


# --- files of gates -----------------------------------------------------------------------------------------------


def test_a_file_of_gates_keeps_names_and_order(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    file.write_text('[gates]\nfooled = "target_iou > 0.5"\n"by much" = "mean(dice_drop) >= 0.1"\n')
    assert [(gate.name, gate.expression) for gate in gates.read(file)] == [
        ("fooled", "target_iou > 0.5"),
        ("by much", "mean(dice_drop) >= 0.1"),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "one table"),
        ("[gates]", "one table"),
        ("gates = 3", "one table"),
        ('fooled = "target_iou > 0.5"', "one table"),
        ('[gates]\na = "target_iou > 1"\n[more]\n', "one table"),
        ("[gates]\na = 0.5", "a must be an expression"),
        ("[gates.a]\nb = 1", "a must be an expression"),
        ('[gates]\na = "nothing > 1"', "figure 'nothing' does not exist"),
        ('[gates]\na = "ssim > 1"\na = "ssim > 1"', "is not TOML"),
        ("[gates", "is not TOML"),
        ("[gates]\na = " + 2000 * "[", "nested too deeply"),
        ("[gates]\na = " + 1500 * "{x=", "nested too deeply"),
        ("[gates]\na = " + 5000 * "9", "too many digits"),
        ("[gates]\na = " + 400 * "9", "a must be an expression"),
        ("[gates]\na = nan", "a must be an expression"),
        ('[gates]\na = ["ssim > 0.5"]', "a must be an expression"),
        ('[gates]\na = "ssim > ' + 5000 * "9" + '"', "the number is too large"),
        ('[gates]\na = "' + 5000 * "x" + '"', r"xx\.\.\.' is not understood"),
        ('[gates]\na = "' + 5000 * "x" + ' > 1"', "does not exist: use target_iou"),
        ('[gates]\n"\\u001b[2J\\n::error::x" = 1', "must be an expression"),
        ("\udcff", "is not TOML"),
    ],
)
def test_a_file_that_holds_no_gates_is_refused(tmp_path: Path, text: Any, why: Any) -> None:
    file = tmp_path / "gates.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=rf"^gates\.toml: .*{why}") as caught:
        gates.read(file)
    assert len(str(caught.value)) < 900
    assert not re.search("[\x00-\x1f\x7f-\x9f]", str(caught.value))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_a_file_of_gates_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(
    tmp_path: Path, encoding: Any
) -> None:
    (tmp_path / "gates.toml").write_bytes('[gates]\r\nfooled = "hit_rate > 0.5"\r\n'.encode(encoding))
    assert [gate.expression for gate in gates.read(tmp_path / "gates.toml")] == ["hit_rate > 0.5"]


def test_a_file_of_gates_in_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gates.toml").write_bytes('[gates]\nfooled = "hit_rate > 0.5"\n'.encode("utf-16"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        gates.read(tmp_path / "gates.toml")


def test_a_file_of_gates_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            gates.read(path)


# --- the report ---------------------------------------------------------------------------------------------------


def test_verdicts_and_statistics_fit_the_schema() -> None:
    rules = [gates.parse(rule) for rule in ("target_iou > 0.5", "mean(psnr_at_goal) > 40", "curve_area > 0.2")]
    everything = case("a", ground_truth=truth(0.9, 0.4), transfer=[transferred(0.3)], survival=[survived(None)])
    made = judged([everything, case("b", reached=False, curve=curve()), failed()], rules)
    require_fits(records.plain(made))
