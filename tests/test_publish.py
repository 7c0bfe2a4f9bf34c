"""The verdict in the forms that others read: whatever a case is called, no form breaks."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema
from hypothesis import given
from hypothesis import strategies as st
from test_gates import case, failed

from mafl_cli import publish
from mafl_cli.gates import FIGURES, judge, parse, statistics_of

XSD = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))
HOSTILE = [
    "<script>alert(1)</script>",
    "]]>",
    "a|b`c`\n| d |",
    "\x00\x1b[31m",
    "“quotes\"'&amp;",
    "‮txt",
    "=cmd|' /C calc'!A0",
    "\ud800",
]


def evaluation(cases: list[dict[str, Any]], *rules: str, model: str = "net.ts") -> dict[str, Any]:
    for each in cases:
        if each["status"] == "ok":
            each.setdefault("differences", [])
            each.setdefault("outcome", "The goal was reached.")
    return {
        "tool": {"name": "mafl", "version": "0"},
        "models": [{"name": model, "sha256": "0" * 64, "classes": ["background", model], "assumptions": [model]}],
        "trials": {"detector": None},
        "cases": cases,
        "aggregate": statistics_of(cases),
        "transfer": [],
        "survival": [],
        "detection": None,
        "gates": [judge(parse(rule), cases, untested=lambda each: None) for rule in rules],
    }  # fmt: skip


def junit_tests(text: str) -> list[ElementTree.Element]:
    XSD.validate(text)
    return list(ElementTree.fromstring(text).iter("testcase"))


# --- JUnit --------------------------------------------------------------------------------------------------------


def test_junit_has_a_test_for_each_gate_and_case_and_one_for_a_mean() -> None:
    report = evaluation([case("a", iou=0.2), case("b", iou=0.8)], "target_iou > 0.5", "mean(target_iou) > 0.9")
    text = publish.junit(report)
    assert [(each.get("classname"), each.get("name"), [child.tag for child in each]) for each in junit_tests(text)] == [
        ("fail if target_iou > 0.5", "a", []),
        ("fail if target_iou > 0.5", "b", ["failure"]),
        ("fail if mean(target_iou) > 0.9", "mean(target_iou) > 0.9", []),
    ]
    root = ElementTree.fromstring(text)
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "1", "0")
    assert root.find(".//failure").get("message") == "observed 0.8000"


def test_junit_tells_a_failed_gate_from_a_case_that_could_not_be_judged() -> None:
    tests = junit_tests(publish.junit(evaluation([case("a"), failed()], "target_iou > 0.95")))
    assert [[child.tag for child in each] for each in tests] == [[], ["error"]]
    assert tests[1][0].text == "broken: is damaged."
    without = junit_tests(publish.junit(evaluation([case("a"), failed()])))
    assert [[child.tag for child in each] for each in without] == [[], ["error"]]
    # No case is no success.
    nothing = junit_tests(publish.junit(evaluation([], "target_iou > 0.5")))
    assert [[child.tag for child in each] for each in nothing] == [["failure"]]


@pytest.mark.parametrize("name", HOSTILE)
def test_junit_survives_every_name(name: str) -> None:
    (test,) = junit_tests(publish.junit(evaluation([case(name)], "target_iou > 0.95", model=name)))
    assert "�" in test.get("name", "") or test.get("name") == " ".join(name.splitlines()) or test.get("name") == name


@given(st.text())
def test_junit_is_xml_for_any_text(name: str) -> None:
    publish_text = publish.junit(evaluation([case(name)], "target_iou > 0.5", model=name))
    ElementTree.fromstring(publish_text.encode())


# --- Markdown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_the_card(name: str) -> None:
    broken = failed(name)
    text = publish.card(evaluation([case(name), broken], "target_iou > 0.5", model=name))
    assert "<" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block


def test_the_summary_says_the_verdict_first() -> None:
    text = publish.summary(evaluation([case("a", iou=0.8), failed()], "target_iou > 0.5", "psnr_db < 10"))
    assert text.splitlines()[2].startswith(
        "**FAILED**: 2 of 2 gates failed. The attack reached its goal in 1 of 1 cases; 1 "
    )
    assert publish.summary(evaluation([case("a")], "psnr_db < 10")).splitlines()[2].startswith("**PASSED**: 0 of 1")


# --- the rest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE[:-1])
def test_the_table_reads_back_and_runs_no_formula(name: str) -> None:
    rows = list(csv.DictReader(io.StringIO(publish.table(evaluation([case(name, iou=0.25), failed(name)])))))
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert all(row["case_id"].lstrip("'") == name for row in rows)
    assert float(rows[0]["target_iou"]) == 0.25
    assert set(rows[0]) == {"case_id", "status", "error", *FIGURES}
    assert all(value[:1] not in tuple("=+-@\t\r") or _is_number(value) for row in rows for value in row.values())


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None


def test_github_gets_one_line_for_each_failed_gate() -> None:
    report = evaluation([case("a:b,c%\nd", iou=0.8)], "target_iou > 0.5", "psnr_db < 10")
    (line,) = publish.alerts(report)
    assert "\n" not in line
    assert line.startswith("::error title=target_iou > 0.5::target_iou is 0.8000 (a:b,c%25%0Ad")


def test_the_terminal_shows_one_case_in_full_and_several_in_a_line_each() -> None:
    several = publish.terminal(evaluation([case("a"), case("b", iou=None), failed()], "target_iou > 0.95"))
    lines = several.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["case", "a", "b", "broken"]
    assert "broken: is damaged." in lines[3]
    assert lines[-1].startswith("FAIL  fail if target_iou > 0.95: not known")
