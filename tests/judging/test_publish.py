"""An evaluation as others read it: JUnit against a schema, Markdown through a parser, CSV, GitHub, the terminal."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import MODEL, case, curve, detected, failed, judged, survived, transferred, truth
from markdown_it import MarkdownIt

from mafl_cli.codes import Outcome, Sight
from mafl_cli.judging import ci, gates, robustness_card, terminal
from mafl_cli.names import harmless
from mafl_cli.results.evaluation_report import JudgedCase
from mafl_cli.results.quantities import EVALUATED
from mafl_cli.system import records

JUNIT = xmlschema.XMLSchema(Path(__file__).parents[1] / "support" / "junit.xsd")

HOSTILE = [
    "<script>alert(1)</script>", "]]>", "<![CDATA[x", "a & b &amp; c", "quote\" and 'quote", "two\nlines\r\n",
    "tab\there",
    "\x00\x07\x1b[31mred", "naïve 🧠 脳", "\u202eright to left\u200f", "\udcff\ud800", "\ufffe", "a|b|c",
    "`code`", "**bold**",
    "[link](http://x)", "![i](x)", "\\", "\\|", "~~a~~", "# head", "- item", "1. item", "$x$ $y$", "=1+1",
    "%0A::error::x",
    "a:b,c", "line\u2028separator\x85", "", "{{x}}", "| - |",
    "::error::x", " \u3000::set-output name=a::b", "##[error]x", "x##vso[task.complete]y", "####[group]",
    "##teamcity[x]",
    "section_start:1:x\r\x1b[0Kh", "\x1b]8;;http://e.example\x1b\\x\x1b]8;;\x07", "\x9b2J",
    "a\u202e\u2066\u200b\u200d\xad\ufeffb", "\U000e0041tag", "@octocat", "x (@org/team)", "https://e.example/?a=1",
    "WWW.e.example", "mailto:a", "a@e.example", "#1", "!2 $3", "GH-4", "`@a` | <b>", "``@", "@\\",
    "<img src=x onerror=y>", "[x](javascript:y)", "=cmd|' /C calc'!A0", "x;=1+1", "x; -1",
]  # fmt: skip

anything = st.text(st.characters(codec=None), max_size=12)


def plain(name: Any) -> Any:
    """A name as every form shows it: one line, nothing that moves or hides, nothing that a CI job obeys."""
    return harmless(re.sub("[\t-\r\x1c-\x1f\x85\u2028\u2029]", " ", name))


def rules(*texts: Any) -> Any:
    return [gates.parse(text) for text in texts]


def mixed(*more: Any) -> Any:
    """Cases that pass, fail, and cannot be judged."""
    return [case("good", target_iou=0.1), case("bad", target_iou=0.9, reached=False), failed(), *more]


def everything(case_id: str = "scan") -> Any:
    return case(
        case_id,
        ground_truth=truth(0.9, 0.4),
        transfer=[transferred(0.3)],
        survival=[survived(0.6), survived(None, "median:3")],
        detection=detected((0.1, 0.8), (0.2, 0.3)),
        curve=curve(),
    )


# --- JUnit --------------------------------------------------------------------------------------------------------


def read_junit(text: Any) -> Any:
    root = ElementTree.fromstring(text.encode())
    JUNIT.validate(root)
    return root


def problems(root: Any, kind: Any) -> Any:
    return {test.get("name"): test.find(kind).get("message") for test in root.iterfind(f".//testcase[{kind}]")}


def test_each_gate_and_case_is_a_test() -> None:
    root = read_junit(ci.junit(judged(mixed(), rules("target_iou > 0.5", "mean(hit_rate) > 0.5"))))
    tests = root.findall("testsuite/testcase")
    assert [test.get("name") for test in tests] == ["good", "bad", "broken", "mean(hit_rate) > 0.5"]
    assert [test.get("classname") for test in tests[:2]] == ["fail if target_iou > 0.5"] * 2
    assert problems(root, "failure").keys() == {"bad", "mean(hit_rate) > 0.5"}
    assert problems(root, "failure")["bad"] == "observed 0.9000"
    assert problems(root, "error") == {"broken": "broken.nii.gz: is not NIfTI."}
    for counted in (root, root[0]):
        assert [counted.get(key) for key in ("tests", "failures", "errors")] == ["4", "2", "1"]


def test_without_gates_each_case_is_a_test() -> None:
    root = read_junit(ci.junit(judged(mixed())))
    assert problems(root, "error").keys() == {"broken"}
    assert [root.get(key) for key in ("tests", "failures", "errors")] == ["3", "0", "1"]


def test_a_gate_that_passes_or_is_about_nothing_is_one_test() -> None:
    passing = read_junit(ci.junit(judged([case(target_iou=0.1)], rules("target_iou > 0.5"))))
    assert [passing.get(key) for key in ("tests", "failures", "errors")] == ["1", "0", "0"]
    nothing = read_junit(ci.junit(judged([], rules("target_iou > 0.5"), models=[])))
    assert problems(nothing, "failure") == {"target_iou > 0.5": "there is no case"}


def test_a_goal_that_was_not_reached_is_said_so() -> None:
    root = read_junit(ci.junit(judged([case(reached=False)], rules("linf_at_goal > 1"))))
    assert problems(root, "failure") == {"scan": "goal not reached"}


NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_junit_brings_any_name_through(name: Any) -> None:
    made = judged([case(name), failed(name, name)], rules("target_iou < 1"), models=[replace(MODEL, name=name)])
    root = read_junit(ci.junit(made))
    seen = NOT_XML.sub("\ufffd", plain(name))
    assert [test.get("name") for test in root.iter("testcase")] == [seen, seen]
    assert root.find(".//error").get("message") == seen
    named = plain(f"mafl {name or 'no model'}")
    assert root[0].get("name") == NOT_XML.sub("\ufffd", named)


@settings(max_examples=60)
@given(anything)
def test_junit_is_wellformed_for_any_text(name: Any) -> None:
    root = ElementTree.fromstring(ci.junit(judged([failed(name, name)])).encode())
    assert root.find(".//testcase").get("name") == NOT_XML.sub("\ufffd", plain(name))


# --- Markdown -----------------------------------------------------------------------------------------------------

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(inline: Any) -> Any:
    return "".join(
        token.content for token in inline.children or () if token.type in ("text", "text_special", "code_inline")
    )


def tables(markdown: Any) -> Any:
    """Every table as a list of rows of texts; and whatever is not a plain block fails."""
    found: list[Any] = []
    tokens = PARSER.parse(markdown)
    for before, token in itertools.pairwise(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif before.type in ("th_open", "td_open"):
            found[-1][-1].append(shown(token))
    return found


def kinds(markdown: Any) -> Any:
    tokens = PARSER.parse(markdown)
    return {token.type for token in tokens} | {inner.type for token in tokens for inner in token.children or ()}


def one_line(name: Any) -> Any:
    """A name as the card shows it: as code, in which three signs have others in their place, if it would be a link."""
    seen = harmless(" ".join(plain(name).split()))
    if re.search(r"[@#]|://|www\.|(mailto|xmpp):|[!$%~&^]\d|\bGH-\d", seen, re.IGNORECASE):
        seen = seen.translate(str.maketrans("|<>", "¦‹›"))
    return seen


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_name_breaks_the_card(name: Any) -> None:
    other = replace(MODEL, name=name, assumptions=(name,))
    made = judged([replace(everything(name), transfer=(transferred(0.3, name=name),)), failed(name, name)],
                  [*rules("target_iou < 1"), gates.parse("ssim >= 1", name)], models=[other])  # fmt: skip
    text = robustness_card.card(made)
    text.encode()
    assert "<" not in text
    seen = one_line(name)
    cells = {row[0] for table in tables(text) for row in table} | {table[-1][-1] for table in tables(text)}
    assert seen in cells
    rows = [row for table in tables(text) if table[0][0] == "case" for row in table[1:]]
    assert [row[0] for row in rows] == [seen, seen]
    assert rows[1][-1] == seen
    assert [row[1] for table in tables(text) if table[0][1] == "gate" for row in table[1:]] == [
        "target_iou < 1",
        seen or "ssim >= 1",
    ]
    plain = judged(
        [everything("scan"), failed()],
        rules("target_iou < 1", "ssim >= 1"),
        models=[replace(MODEL, assumptions=("x",))],
    )
    assert kinds(text) <= kinds(robustness_card.card(plain)) | {"text_special"}
    raw = [line for line in text.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) for line in raw]
    plain_raw = [line for line in robustness_card.card(plain).splitlines() if line.startswith("|")]
    assert columns == [line.count("|") for line in plain_raw]


@settings(max_examples=60)
@given(anything)
def test_a_case_of_any_name_is_one_row_of_its_table(name: Any) -> None:
    (table,) = (table for table in tables(robustness_card.card(judged([failed(name, name)]))) if table[0][0] == "case")
    assert [len(row) for row in table] == [6, 6]
    assert table[1] == [one_line(name), "failed", "", "", "", one_line(name)]


def test_the_card_says_what_was_judged_with_what_result() -> None:
    text = robustness_card.card(
        judged([everything("a"), everything("b"), failed()], rules("target_iou > 0.99", "ssim < 0"))
    )
    assert text.startswith("# Robustness of flat.ts\n\n**FAILED**: 2 of 2 gates failed. ")
    assert "The attack reached its goal in 2 of 2 cases; 1 could not be judged." in text
    headings = re.findall("^## (.*)$", text, re.MULTILINE)
    assert headings == [
        "The attack", "Gates", "Results", "What became of the body", "Transfer", "Survival", "Detection", "Cases",
        "Models", "Limits",
    ]  # fmt: skip
    organ = case().metrics.consequences.per_class[0]
    (table,) = (table for table in tables(text) if table[0][0] == "class")
    sizes = (organ.volume_ml.clean, organ.volume_ml.adversarial)
    lengths = (organ.diameter_mm.clean, organ.diameter_mm.adversarial, organ.hd95_mm)
    assert table[1] == ["organ", "a", *(f"{ml:.4g}" for ml in sizes), *(f"{mm.number:.1f}" for mm in lengths)]
    by_name = {table[0][0]: table for table in tables(text)}
    assert by_name["model"][1] == ["other.ts", "2", "0.3000", "0.3000"]
    assert by_name["transform"][1:] == [
        ["blur:1", "2", "0.6000", "0.6000", "0.6000", "0.9000"],
        ["median:3", "2", "-", "-", "-", "0.9000"],
    ]
    drop = next(row for row in by_name["figure"] if "dice_drop" in row[0])
    assert drop[1:] == ["", "2", "0.5000", "0.5000", "0.5000", "0.5000", "0.5000 to 0.5000"]
    assert [row[0] for row in by_name["detector"][1:]] == ["blur", "entropy", "margin"]
    assert {row[4] for row in by_name["detector"][1:]} == {"1.0000"}


def test_the_card_says_in_how_many_cases_the_change_can_be_seen_and_who_was_not_asked() -> None:
    def seen(name: str, sight: Sight) -> JudgedCase:
        measured = case(name)
        visibility = replace(measured.metrics.visibility, verdict=sight)
        return replace(measured, metrics=replace(measured.metrics, visibility=visibility))

    sights = [Sight.VISIBLE, Sight.CANNOT, Sight.VISIBLE]
    text = robustness_card.card(judged([*(seen(f"{n}", each) for n, each in enumerate(sights)), failed()]))
    assert " The change cannot be seen in 1, is visible in 2 of 3 cases. Measured from the files by " in text
    assert "No reader was asked about these changes" in text.split("## Limits")[1]
    assert "The change" not in robustness_card.summary(judged([failed()]))


def test_every_model_that_was_attacked_is_a_judge_and_those_asked_for_transfer_are_not() -> None:
    def model(letter: Any) -> Any:
        return replace(MODEL, name=f"{letter}.ts", sha256=letter * 64)

    made = judged([case("x"), case("y", transfer=[transferred(0.1, "c" * 64, "c.ts")])], models=[*map(model, "abc")])
    text = robustness_card.card(made)
    assert text.startswith("# Robustness of a.ts, b.ts\n")
    assert re.findall(r"^- (.\.ts) \((.*?)\)", text, re.MULTILINE) == [
        ("a.ts", "judge"), ("b.ts", "judge"), ("c.ts", "asked for transfer"),
    ]  # fmt: skip
    assert read_junit(ci.junit(made)).find("testsuite").get("name") == "mafl a.ts, b.ts"


def test_the_summary_is_the_beginning_of_the_card() -> None:
    made = judged(mixed(), rules("target_iou > 0.5"))
    assert robustness_card.card(made).startswith(robustness_card.summary(made).rstrip())
    assert "## Cases" not in robustness_card.summary(made)


def test_a_card_without_models_gates_or_numbers_has_no_empty_parts() -> None:
    text = robustness_card.card(judged([failed()], models=[]))
    assert re.findall("^#+ (.*)$", text, re.MULTILINE) == ["Robustness of no model", "Cases", "Limits"]
    assert "PASSED" not in text


def test_gates_that_pass_are_said_to_pass() -> None:
    assert "**PASSED**: 0 of 1 gates failed." in robustness_card.summary(judged([case()], rules("target_iou >= 1")))


def test_remarks_name_what_the_files_say_otherwise_or_why_the_goal_was_not_reached() -> None:
    cases = [
        case("a", files_intact=False, differences=["x is not the file", "y neither"]),
        case("b", reached=False, outcome=Outcome.STEP_LIMIT),
        case("c", outcome=Outcome.REACHED),
    ]
    (table,) = (table for table in tables(robustness_card.card(judged(cases))) if table[0][0] == "case")
    assert [row[-1] for row in table[1:]] == [
        "x is not the file; y neither",
        Outcome.STEP_LIMIT.sentence,
        "",
    ]


# --- CSV ----------------------------------------------------------------------------------------------------------


def rows_of(text: Any) -> Any:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_csv_has_a_row_for_each_case_and_a_column_for_each_figure() -> None:
    head, *rows = rows_of(robustness_card.table(judged(mixed())))
    assert head == ["case_id", "status", "error", *EVALUATED]
    assert [row[:3] for row in rows] == [
        ["good", "ok", ""], ["bad", "ok", ""], ["broken", "failed", "broken.nii.gz: is not NIfTI."],
    ]  # fmt: skip
    assert {len(row) for row in rows} == {len(head)}
    assert rows[2][3:] == [""] * len(EVALUATED)


def test_csv_keeps_every_digit_and_leaves_what_is_undefined_empty() -> None:
    value = 1 / 3
    head, first, second = rows_of(robustness_card.table(judged([case(target_iou=value), case("b", target_iou=None)])))
    column = head.index("target_iou")
    assert float(first[column]) == value
    assert second[column] == ""
    assert float(second[head.index("goal_reached")]) == 1


@pytest.mark.parametrize(
    "text",
    ["a;=1+1", "a;\u3000@x",
     "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", "＋1", "－1", "＠x", "\x00=1", "\u00a0=1"],
    ids=ascii,
)  # fmt: skip
def test_what_begins_like_a_formula_is_text_in_a_spreadsheet(text: Any) -> None:
    _, row = rows_of(robustness_card.table(judged([failed(text, text)])))
    for cell in (*row[0].split(";"), *row[2].split(";")):
        assert not cell.strip().startswith(tuple("=+-@＝＋－＠"))


@settings(max_examples=60)
@given(anything, anything)
def test_csv_has_one_line_for_each_case_whatever_its_name(name: Any, message: Any) -> None:
    text = robustness_card.table(judged([failed(name, message)]))
    text.encode()
    assert len(text.splitlines()) == 2
    _, row = rows_of(text)
    assert len(row) == 3 + len(EVALUATED)


@pytest.mark.parametrize("name", ["scan_0001", "a,b", 'a"b', "a  b", "脳", "it's", "'quoted'", "a=b", "12"])
def test_csv_leaves_harmless_names_as_they_are(name: Any) -> None:
    assert rows_of(robustness_card.table(judged([case(name)])))[1][0] == name


# --- GitHub -------------------------------------------------------------------------------------------------------


def read_command(line: Any) -> Any:
    """Title and message, as the runner of GitHub Actions takes a workflow command apart (its toolkit's escapes)."""
    found = re.fullmatch(r"::error title=([^:,\r\n]*)::([^\r\n]*)", line)
    title, message = found.groups()
    for code, sign in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        title = title.replace(code, sign)
        message = message.replace(code, sign) if sign not in ":," else message
    return title, message


def test_only_failed_gates_are_alerts() -> None:
    made = judged(mixed()[:2], rules("target_iou > 0.5", "target_iou > 0.95"))
    (line,) = ci.alerts(made)
    assert read_command(line) == ("target_iou > 0.5", "target_iou is 0.9000 (worst of 2 cases: bad)")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_an_alert_is_one_command_whatever_the_names(name: Any) -> None:
    made = judged([failed(name, name)], [gates.parse("ssim >= 1", name)])
    (line,) = ci.alerts(made)
    line.encode()
    seen = plain(f"cannot be measured, so it fails: {name}: {name}")
    assert read_command(line) == (plain(name) or "ssim >= 1", seen)


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_form_has_a_line_that_a_runner_obeys_or_signs_that_move_or_hide(name: Any) -> None:
    other = replace(MODEL, name=name, classes=(name,), assumptions=(name,))
    made = judged([replace(everything(name), transfer=(transferred(0.3, name=name),)), failed(name, name)],
                  [gates.parse("ssim >= 1", name)], models=[other])  # fmt: skip
    forms = (
        ci.junit,
        robustness_card.card,
        robustness_card.summary,
        robustness_card.table,
        terminal.terminal,
        records.to_json,
    )
    for form in forms:
        text = form(made) if form is not terminal.terminal else "\n".join(map(harmless, form(made).split("\n")))
        assert not re.search(r"^\s*::|##\w*\[", text, re.MULTILINE), form
        assert not set(map(unicodedata.category, text.replace("\n", ""))) & {"Cc", "Cf", "Cs", "Zl", "Zp"}, form
    assert json.loads(records.to_json(made)) == json.loads(json.dumps(records.plain(made)))


# --- the terminal -------------------------------------------------------------------------------------------------


def test_one_case_is_shown_in_full() -> None:
    text = terminal.terminal(judged([everything("one")], rules("target_iou > 0.1", "target_iou >= 1")))
    lines = text.splitlines()
    assert lines[0] == "one   (clean scan -> adversarial scan)"
    assert lines[2].split()[0] == "organ"
    assert any(line.startswith("  ground truth  Dice 0.9000 -> 0.4000, drop 0.5000") for line in lines)
    assert "the goal needs 0.500 of the change" in text
    assert "target IoU 0.8000, hit rate 0.8000" in text
    assert any(line.split()[:2] == ["blur", "1.0000"] for line in lines)
    assert "other.ts" in text
    assert any(line.split() == ["median:3", "-", "-", "-", "0.9000"] for line in lines)
    assert [line[:4] for line in lines[-2:]] == ["FAIL", "PASS"]


def test_a_curve_that_never_reaches_the_goal_says_so() -> None:
    text = terminal.terminal(judged([case(reached=False, curve=curve(at_goal=None))]))
    assert "no multiple of the change reaches the goal" in text


def test_several_cases_are_a_line_each_with_the_failed_ones_and_a_count() -> None:
    lines = terminal.terminal(judged(mixed())).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["case", "goal"], ["good", "reached"], ["bad", "no"], ["broken", "FAILED"], ["1", "of"],
        ["nothing", "is"],
    ]  # fmt: skip
    assert lines[3].endswith("broken.nii.gz: is not NIfTI.")
    assert lines[-2] == "1 of 2 cases reached the goal, 1 could not be judged"
    assert len({len(line) for line in lines[:3]}) == 1


def test_only_failed_cases_can_be_shown() -> None:
    lines = terminal.terminal(judged([failed("a"), failed("b")], models=[])).splitlines()
    assert lines[-1] == "0 of 0 cases reached the goal, 2 could not be judged"


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_name_adds_a_line_or_moves_the_cursor(name: Any) -> None:
    plain = terminal.terminal(judged([everything(), failed()], rules("ssim < 1")))
    text = terminal.terminal(
        judged(
            [replace(everything(name), transfer=(transferred(0.3, name=name),)), failed(name, name)], rules("ssim < 1")
        )
    )
    text.encode()
    assert len(text.splitlines()) == len(plain.splitlines())
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    one = terminal.terminal(judged([everything(name)]))
    assert len(one.splitlines()) == len(terminal.terminal(judged([everything()])).splitlines())
