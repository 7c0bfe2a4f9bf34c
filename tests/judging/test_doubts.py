"""Gates that know doubt: where the attack may have failed, rather than the model held, no gate passes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import mafl
from evaluations import require_fits
from judged import case, curve, judged
from masked import HONEST, MASKED, scan

from mafl_cli.batch import tables
from mafl_cli.codes import Alarm, Belief, Reason, Untested
from mafl_cli.judging import ci, doubts, gates, robustness_card, terminal
from mafl_cli.results.evaluation_report import AttackTold, JudgedCase, ProvesNothing
from mafl_cli.results.quantities import EVALUATED
from mafl_cli.results.read import read_report
from mafl_cli.results.trust_report import AlarmRecord, Trust

AT_GOAL = ("psnr_at_goal", "l2_at_goal", "linf_at_goal")
SLOPE = AlarmRecord(code=Alarm.SLOPE, sentence="the gradient explains 12 % of how this model answers")
CLEAN = Trust(verdict=Belief.CLEAN, found_by="exact", searches=(), checks=(), alarms=())


def told(eps: float | None = None, *, trust: Trust | None = CLEAN, **changes: Any) -> AttackTold:
    attack = AttackTold(
        method="mafl", steps=100, norm=None if eps is None else "linf", eps_native=None if eps is None else (eps,),
        confined=False, trust=trust,
    )  # fmt: skip
    return replace(attack, **changes)


def doubtful(case_id: str = "scan", **changes: Any) -> JudgedCase:
    return case(case_id, attack=told(), doubts=(SLOPE,), **changes)


def gate(expression: str, *cases: JudgedCase) -> Any:
    return gates.judge(gates.parse(expression), cases)


def test_a_doubtful_case_passes_no_gate() -> None:
    found = gate("target_iou > 0.5", doubtful(target_iou=0.1, reached=False))

    assert found.status == "inconclusive"
    assert found.reason == "inconclusive, so it fails: scan: the gradient explains 12 % of how this model answers"
    assert [each.status for each in found.cases] == ["inconclusive"]


def test_what_a_doubtful_attack_reached_it_reached() -> None:
    found = gate("target_iou > 0.5", doubtful("a", target_iou=0.9), doubtful("b", target_iou=0.1))

    assert found.status == "fail"
    assert "target_iou is 0.9000" in found.reason


@pytest.mark.parametrize("over", ["mean", "median", "p95"])
def test_no_statistic_over_a_doubtful_case_passes(over: str) -> None:
    cases = (case("a", target_iou=0.1), doubtful("b", target_iou=0.1))

    assert gate(f"{over}(target_iou) > 0.5", *cases).status == "inconclusive"


@pytest.mark.parametrize("figure", AT_GOAL)
@pytest.mark.parametrize("reached", [True, False])
def test_how_large_a_change_the_goal_takes_is_not_known_after_a_doubtful_attack(figure: str, reached: bool) -> None:
    for judged_with in (None, curve()):
        found = EVALUATED[figure].of_evaluation(doubtful(reached=reached, curve=judged_with))
        assert found.reason is Reason.NOT_KNOWN
    assert gate(f"{figure} > 1e9", doubtful(reached=reached)).status == "inconclusive"


@pytest.mark.parametrize("figure", AT_GOAL)
def test_a_goal_that_is_missed_without_a_limit_says_nothing_of_its_size(figure: str) -> None:
    free, within_budget = (case(attack=told(eps), reached=False) for eps in (None, 0.1))

    assert EVALUATED[figure].of_evaluation(free).reason is Reason.NOT_KNOWN
    assert EVALUATED[figure].of_evaluation(within_budget).reason is Reason.GOAL_NOT_REACHED
    sign = ">" if figure == "psnr_at_goal" else "<"
    assert gate(f"{figure} {sign} 28", free).status == "inconclusive"
    assert gate(f"{figure} {sign} 28", within_budget).status == "pass"


@pytest.mark.parametrize("code", [Untested.NO_GRADIENT, Untested.UNCHANGED, Untested.ROUNDING])
def test_an_attack_that_did_nothing_is_inconclusive(code: Untested) -> None:
    found = gate("hit_rate > 0.5", case(untested=ProvesNothing(code=code, sentence=code.sentence), hit_rate=0.9))

    assert found.status == "inconclusive"
    assert code.sentence in found.reason


def test_doubts_follow_from_what_the_report_says() -> None:
    def codes(attack: AttackTold, *, reached: bool) -> list[Alarm]:
        return [alarm.code for alarm in doubts.of_attack(attack, reached=reached)]

    alarmed = replace(CLEAN, verdict=Belief.ALARM, alarms=(SLOPE,))
    assert codes(told(), reached=True) == []
    assert codes(told(), reached=False) == [Alarm.NO_LIMIT]
    assert codes(told(confined=True), reached=False) == []
    assert codes(told(0.1), reached=False) == []
    assert codes(told(trust=alarmed), reached=False) == [Alarm.SLOPE, Alarm.NO_LIMIT]
    assert codes(told(0.1, trust=alarmed), reached=True) == [Alarm.SLOPE]
    assert codes(told(trust=None), reached=True) == [Alarm.NOT_CHECKED]
    assert codes(told(trust=replace(alarmed, verdict=Belief.ANSWERED, alarms=())), reached=True) == []


@pytest.mark.parametrize(
    ("larger", "doubted"),
    [
        (told(0.2), True),
        (told(None), True),
        (told(0.2, steps=50), False),
        (told(0.2, method="pgd"), False),
        (told(0.2, confined=True), False),
        (told(0.05), False),
    ],
)
def test_a_larger_budget_that_does_worse_is_a_doubt(larger: AttackTold, doubted: bool) -> None:
    cases = [
        case("small", attack=told(0.1), reached=False, target_iou=0.8),
        case("large", attack=larger, reached=False, target_iou=0.6),
    ]

    found: Any = doubts.with_budgets(cases, [[0, 1]])

    assert [bool(each.doubts) for each in found] == [False, doubted]
    if doubted:
        assert found[1].doubts[0].code is Alarm.MORE_BUDGET
        assert found[1].doubts[0].sentence.endswith("(small)")
    assert not any(each.doubts for each in doubts.with_budgets(cases, [[0], [1]]))  # type: ignore[union-attr]


def test_every_form_says_inconclusive_and_why() -> None:
    report = judged([doubtful("a", target_iou=0.1), case("b", target_iou=0.1)], [gates.parse("target_iou > 0.5")])

    assert report.failed_gates
    assert report.aggregate.doubtful == 1
    text, card, xml = terminal.terminal(report), robustness_card.card(report), ci.junit(report)
    assert "INCONCLUSIVE  fail if target_iou > 0.5: inconclusive, so it fails: a: the gradient explains 12 %" in text
    assert "1 of 2 attacks are in doubt" in text
    assert "nothing is known about attacks without a report" in text
    assert "**INCONCLUSIVE**: 1 of 1 gates failed, 1 of them inconclusive." in card
    assert card.index("## The attack") < card.index("## Gates")
    assert "1 of 1 in doubt: the gradient explains 12 % of how this model answers" in card
    assert "Nothing is known about an attack without a report" in card
    failure = ElementTree.fromstring(xml.encode()).find(".//failure")
    assert failure is not None
    assert failure.attrib["type"] == "inconclusive"
    assert failure.attrib["message"].startswith("inconclusive: the gradient explains 12 %")
    assert "inconclusive, so it fails" in ci.alerts(report)[0]


def test_the_card_opens_with_what_was_tried_and_within_which_budget() -> None:
    cases = [case("a", attack=told(12.5)), case("b", attack=told(12.5, confined=True)), case("c", attack=told())]

    card = robustness_card.card(judged(cases))

    assert "each voxel at most 12.5 native units |" in card
    assert "each voxel at most 12.5 native units; only some voxels or channels |" in card
    assert "| mafl | the model | none | 100 | 1 of 1 |" in card


@pytest.mark.parametrize(
    ("methods", "columns", "said"),
    [
        (["mafl"], ["the model | none | 100"], [True, False]),
        (["label-only"], ["labels only | none | at most 100 queries"], [False, True]),
        (["mafl", "label-only"], ["the model | none | 100", "labels only | none | at most 100 queries"], [True, True]),
        ([None], ["unknown | unknown | unknown"], [False, False]),
    ],
)
def test_the_card_says_what_the_attacker_knew(methods: list[str | None], columns: list[str], said: list[bool]) -> None:
    attacks = [None if method is None else replace(told(), method=method) for method in methods]

    card = robustness_card.card(judged([case(f"{n}", attack=attack) for n, attack in enumerate(attacks)]))

    assert all(f"| {column} | 1 of 1 |" in card for column in columns)
    assert ["White-box: the attacker knows the model." in card, "Labels only: the attacker sees" in card] == said


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (told(method="label-only", trust=None), "it saw nothing but labels, and asked for at most 100 of them"),
        (None, "nothing is known about it: there is no report of it"),
    ],
)
def test_the_terminal_says_what_an_attack_without_checks_was(attack: AttackTold | None, said: str) -> None:
    assert f"  attack {said}" in terminal.terminal(judged([case("a", attack=attack)]))


# --- from the attack to the gate ----------------------------------------------------------------------------------


def run(work: Path, net: torch.nn.Module, name: str, *options: object) -> Path:
    """Attack a small scan with a network; returns the result folder."""
    image = scan()
    with torch.no_grad():
        mask = torch.roll(net(image).argmax(1), 4, -1)
    for file, array in (("scan", image[0, 0, ..., None].numpy()), ("mask", mask[0, ..., None].byte().numpy())):
        nib.save(nib.Nifti1Image(array, np.eye(4)), work / f"{name}-{file}.nii.gz")
    torch.jit.trace(net, image).save(str(work / f"{name}.ts"))
    done = mafl(
        "attack", work / f"{name}-scan.nii.gz", "-t", work / f"{name}-mask.nii.gz", "-m", work / f"{name}.ts",
        "-o", work / name, "--device", "cpu", "--mode", "2d", "--slice-axis", "k", "--intensity", "none", *options,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert ("doubtful" in done.stdout) == (name == "masked")
    return work / name


def test_a_model_that_misleads_passes_no_gate_and_an_honest_one_does(tmp_path: Path) -> None:
    # Within a budget that is too small for the goal, so that nothing but the checks tells the two apart.
    rules = ("--fail-if", "target_iou > 0.99", "--fail-if", "psnr_at_goal > 28")
    nets = {"honest": HONEST["blur"](), "masked": MASKED["waves finer than a step"]()}
    found = {}
    for name, net in nets.items():
        folder = run(tmp_path, net.eval(), name, "--steps", 20, "--eps", 0.01)
        found[name] = mafl("evaluate", folder, "-m", tmp_path / f"{name}.ts", *rules, "--json", tmp_path / "said.json")
        said = json.loads((tmp_path / "said.json").read_text())
        require_fits(said)
        trust = said["cases"][0]["attack"]["trust"]
        assert trust["verdict"] == ("alarm" if name == "masked" else "clean")
        row, _ = tables.finished_row(name, read_report(folder))
        assert row.trust == trust["verdict"]
        assert bool(row.alarms) == (name == "masked")
        assert [gate["status"] for gate in said["gates"]] == ["inconclusive" if name == "masked" else "pass"] * 2

    assert found["honest"].exit_code == 0, found["honest"].stderr
    assert found["masked"].exit_code == 5
    assert "inconclusive" in found["masked"].stderr
    assert "of how this model answers" in found["honest"].stdout
