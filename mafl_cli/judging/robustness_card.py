"""An evaluation in the forms that others read: JUnit XML for CI, Markdown for people, CSV for tables, lines for GitHub.

Names come from files, and files come from anywhere: each form escapes them in its own way.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from mafl_cli.judging.gates import FIGURES, shown
from mafl_cli.judging.trials import CURVE_END
from mafl_cli.names import harmless, one_line
from mafl_cli.results.report import NOTICE, format_size, number

Report = Mapping[str, Any]

# What a card shows of the statistics, in this order; the JSON has all.
_CARD = (
    "target_iou", "hit_rate", "collateral", "prediction_drop", "dice_clean", "dice_adversarial", "dice_drop",
    "linf_native", "linf_model", "l2_model", "psnr_db", "ssim", "ssim_worst", "low_frequency_share",
    "psnr_at_goal", "linf_at_goal", "l2_at_goal", "curve_area", "curve_hit_area",
    "transfer_target_iou", "survival_target_iou",
)  # fmt: skip

_LIMITS = (
    "White-box: the attacker knows the model. Somebody who only sees its output needs more, or a larger change.",
    "A goal that was not reached was not reached by this search within its steps; it is no proof that none exists.",
    "The numbers are those of these scans and targets. They say nothing about other scanners, tasks or patients.",
    "A robust model may still be wrong: this is no evidence of clinical performance.",
)


# Between words; a line has spaces there.
_BREAKS = re.compile("[\t-\r\x1c-\x1f\x85\u2028\u2029]")


def _line(text: object) -> str:
    """Text of one line, as a terminal and everybody else can take it; see `names.one_line`."""
    return one_line(_BREAKS.sub(" ", str(text)))


# --- JUnit --------------------------------------------------------------------------------------------------------

# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """One test for each gate and case (gates on a mean or the like: one test); without gates one for each case."""
    suites = ElementTree.Element("testsuites", name="mafl")
    model = ", ".join(str(each["name"]) for each in _judges(report)) or "no model"
    suite = ElementTree.SubElement(suites, "testsuite", name=_xml(f"mafl {model}"), time="0")
    for gate in report["gates"]:
        for name, status, reason in _tests(gate):
            _add_test(suite, f"fail if {gate['expression']}", name, status, reason)
    if not report["gates"]:
        for case in report["cases"]:
            _add_test(suite, "evaluate", case["case_id"], "pass" if case["status"] == "ok" else "error", _error(case))
    for element in (suite, suites):
        element.set("tests", str(len(suite)))
        for kind in ("failure", "error"):
            element.set(f"{kind}s", str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("skipped", "0")
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _tests(gate: Report) -> Iterable[tuple[str, str, str]]:
    """(name, status, reason) of each test that a gate is."""
    if gate["aggregate"] != "worst" or not gate["cases"]:
        yield gate["name"], gate["status"], gate["reason"]
        return
    figure = FIGURES[gate["figure"]]
    for each in gate["cases"]:
        value = "goal not reached" if each["value"] is None else f"observed {shown(figure, each['value'])}"
        yield each["case_id"], each["status"], value if each["problem"] is None else each["problem"]


def _add_test(suite: ElementTree.Element, classname: str, name: str, status: str, reason: str) -> None:
    test = ElementTree.SubElement(suite, "testcase", classname=_xml(classname), name=_xml(name), time="0")
    if status != "pass":
        kind = "failure" if status == "fail" else "error"
        problem = ElementTree.SubElement(test, kind, message=_xml(reason), type="gate" if status == "fail" else "case")
        problem.text = _xml(reason)


def _error(case: Report) -> str:
    return "" if case["status"] == "ok" else str(case["error"]["message"])


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", harmless(_line(text)))


# --- Markdown -----------------------------------------------------------------------------------------------------


def card(report: Report) -> str:
    """The robustness card: what was judged, how, with what result, and what that does not say."""
    parts = [_head(report), _gates(report), _results(report), _trials(report), _cases(report), _models(report)]
    limits = "\n".join(f"- {line}" for line in _LIMITS)
    return "\n\n".join([*(part for part in parts if part), f"## Limits\n\n{limits}\n\n{NOTICE}"]) + "\n"


def summary(report: Report) -> str:
    """The short form, for the page of a CI job."""
    parts = [_head(report), _gates(report), _results(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: Report) -> str:
    counts = report["aggregate"]
    models = ", ".join(_md(each["name"]) for each in _judges(report)) or "no model"
    failed = [gate for gate in report["gates"] if gate["status"] == "fail"]
    verdict = ""
    if report["gates"]:
        mark = "FAILED" if failed else "PASSED"
        verdict = f"**{mark}**: {len(failed)} of {len(report['gates'])} gates failed. "
    broken = f"; {counts['failed']} could not be judged" if counts["failed"] else ""
    reached = f"The attack reached its goal in {counts['goal_reached']} of {counts['ok']} cases{broken}."
    tool = f"{report['tool']['name']} {report['tool']['version']}"
    return f"# Robustness of {models}\n\n{verdict}{reached} Measured from the files by {tool}."


def _gates(report: Report) -> str:
    if not report["gates"]:
        return ""
    rows = [
        (gate["status"], _md(gate["name"]), f"fails if {_md(gate['expression'])}", _md(gate["reason"]))
        for gate in report["gates"]
    ]
    return "## Gates\n\n" + _table(("", "gate", "rule", "why"), rows)


def _results(report: Report) -> str:
    figures = report["aggregate"]["figures"]
    rows = []
    for name in _CARD:
        if name not in figures or not figures[name]["n"]:
            continue
        found, figure = figures[name], FIGURES[name]
        interval = "-" if found["ci95"] is None else " to ".join(f"{value:{figure.form}}" for value in found["ci95"])
        numbers = [f"{found[key]:{figure.form}}" for key in ("mean", "median", "min", "max")]
        missing = f" ({found['undefined']} undefined)" if found["undefined"] else ""
        rows.append((f"{figure.meaning} (`{name}`)", figure.unit, f"{found['n']}{missing}", *numbers, interval))
    heads = ("figure", "unit", "cases", "mean", "median", "lowest", "highest", "95 % interval of the mean")
    return "## Results\n\n" + _table(heads, rows) if rows else ""


def _trials(report: Report) -> str:
    parts = []
    if report["transfer"]:
        rows = [
            (_md(each["model"]), each["n"], *(_value(each[key]) for key in ("target_iou", "hit_rate")))
            for each in report["transfer"]
        ]
        parts.append(
            "## Transfer\n\nWhat other models draw on the same files.\n\n"
            + _table(("model", "cases", "target IoU", "hit rate"), rows)
        )
    if report["survival"]:
        keys = ("target_iou", "hit_rate", "restored", "clean_dice")
        rows = [(each["transform"], each["n"], *(_value(each[key]) for key in keys)) for each in report["survival"]]
        heads = ("transform", "cases", "target IoU", "hit rate", "restored", "Dice of clean scans")
        parts.append(
            "## Survival\n\nMeans after a transform of the scan. Restored: share of the attacked voxels that have "
            "their class back. Dice of clean scans: what the transform alone leaves of the clean prediction.\n\n"
            + _table(heads, rows)
        )
    if report["detection"] is not None:
        found = report["detection"]
        parts.append(
            f"## Detection\n\nScore: share of the drawn voxels that move under {report['trials']['detector']}. "
            f"Area under the ROC curve {_value(found['auc'])}, {_value(found['tpr_at_5_percent_fpr'])} found at 5 % "
            f"false alarms, over {found['n']} adversarial slices or volumes and their clean twins."
        )
    return "\n\n".join(parts)


def _cases(report: Report) -> str:
    rows = []
    for case in report["cases"]:
        if case["status"] != "ok":
            rows.append((_md(case["case_id"]), "failed", "", "", "", _md(case["error"]["message"])))
            continue
        post, size = case["metrics"]["post_write"], case["metrics"]["size"]
        said = "; ".join(case["differences"]) or ("" if case["goal"]["reached"] else case["outcome"] or "")
        rows.append(
            (
                _md(case["case_id"]),
                "yes" if case["goal"]["reached"] else "no",
                _value(post["target_iou"]),
                _value(post["hit_rate"]),
                _value(size["psnr_db"], ".2f"),
                _md(said),
            )
        )
    heads = ("case", "goal reached", "target IoU", "hit rate", "PSNR dB", "remarks")
    return "## Cases\n\n" + _table(heads, rows)


def _models(report: Report) -> str:
    lines = []
    if not report["models"]:
        return ""
    judges = _judges(report)
    for model in report["models"]:
        role = "judge" if model in judges else "asked for transfer"
        lines.append(
            f"- {_md(model['name'])} ({role}), SHA-256 `{model['sha256']}`, draws {_md(', '.join(model['classes']))}"
        )
        lines += [f"  - assumed: {_md(each)}" for each in model["assumptions"]]
    return "## Models\n\n" + "\n".join(lines)


def _judges(report: Report) -> list[Report]:
    """Whom the figures are about: the model that was given, or those that the runs attacked."""
    asked = {each["sha256"] for each in report["transfer"]}
    return [each for each in report["models"] if each["sha256"] not in asked] or report["models"][:1]


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _value(entry: Report, form: str = ".4f") -> str:
    return "-" if entry["value"] is None else f"{entry['value']:{form}}"


# What GitHub and GitLab make links and mentions of, escaped or not.
_LINKED = re.compile(r"[@#]|://|www\.|(?:mailto|xmpp):|[!$%~&^]\d|\bGH-\d", re.IGNORECASE)
# In code nothing can be escaped.
_NOT_IN_CODE = str.maketrans({"|": "\N{BROKEN BAR}", "<": "\u2039", ">": "\u203a"})


def _md(text: str) -> str:
    """Plain text in Markdown, in a table too: no markup, no HTML, one line; as code if there are links in it."""
    plain = harmless(" ".join(_line(text).split()))
    if _LINKED.search(plain):
        fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
        inner = plain.translate(_NOT_IN_CODE)
        return f"{fence} {inner} {fence}" if inner.startswith("`") or inner.endswith("`") else f"{fence}{inner}{fence}"
    safe = re.sub(r"([\\`*_{}\[\]|~!$])", r"\\\1", plain)
    # At the beginning these would make a list.
    safe = re.sub(r"^(\d*)([-+.)])", r"\1\\\2", safe)
    return safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- the rest -----------------------------------------------------------------------------------------------------


# These signs in both widths, at the beginning of a cell, or behind what separates cells in many countries.
_FORMULA = re.compile("(^|;)(?=\\s*[=+@\\-\uff1d\uff0b\uff20\uff0d])")


def table(report: Report) -> str:
    """CSV with one row for each case: its status and every figure, empty where undefined."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["case_id", "status", "error", *FIGURES])
    for case in report["cases"]:
        values = ["" for _ in FIGURES]
        if case["status"] == "ok":
            found = [figure.pick(case)["value"] for figure in FIGURES.values()]
            values = ["" if value is None else repr(float(value)) for value in found]
        writer.writerow([cell(case["case_id"]), case["status"], cell(_error(case)), *values])
    return stream.getvalue()


def cell(text: str) -> str:
    """One line that no spreadsheet runs: what begins like a formula, in full width too, is quoted as they do."""
    return _FORMULA.sub(r"\1'", harmless(_line(text)))


def alerts(report: Report) -> list[str]:
    """A line for each failed gate that GitHub shows at the job: `::error title=...::...`."""
    return [
        f"::error title={_command(gate['name'], ':,')}::{_command(gate['reason'])}"
        for gate in report["gates"]
        if gate["status"] == "fail"
    ]


def _command(text: str, more: str = "") -> str:
    text = harmless(_line(text))
    for sign in "%" + more:
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


# --- the terminal -------------------------------------------------------------------------------------------------


def terminal(report: Report) -> str:
    """What a person wants to see at once: one case in full, several in a line each; trials; gates and why."""
    cases = report["cases"]
    alone = len(cases) == 1 and cases[0]["status"] == "ok"
    blocks = [_one_case(cases[0]) if alone else _many_cases(report)]
    blocks += [_plain(rows) for rows in _trial_rows(report) if len(rows) > 1]
    if report["detection"] is not None:
        found = report["detection"]
        blocks.append(f"detection: area under the ROC curve {number(found['auc'])}, {found['n']} samples of each kind")
    gates = [
        _line(f"{gate['status'].upper()}  fail if {gate['expression']}: {gate['reason']}") for gate in report["gates"]
    ]
    return "\n\n".join([*blocks, *(["\n".join(gates)] if gates else [])])


def _one_case(case: Report) -> str:
    """One line per class, then the size of the change."""
    post, clean, size = (case["metrics"][key] for key in ("post_write", "clean", "size"))
    lines = [
        f"{_line(case['case_id'])}   (clean scan -> adversarial scan)",
        f"  {'class':<20} {'IoU':>19} {'Dice':>19} {'HD95 mm':>19} {'voxels of target':>17}",
    ]
    for before, after in zip(clean["per_class"], post["per_class"], strict=True):
        pairs = (f"{_value(before[key]):>8} -> {_value(after[key]):>7}" for key in ("iou", "dice", "hd95_mm"))
        lines.append(f"  {_line(after['name'])[:20]:<20} {' '.join(pairs)} {after['voxels']['target']:>17}")
    lines += [
        f"  target IoU {number(post['target_iou'])}, hit rate {number(post['hit_rate'])}"
        f" of {post['changed_voxels']} voxels, collateral {post['collateral']['count']} voxels",
        *(f"  class {gone['name']!r} removed: {gone['value']:.4f}" for gone in post["removed"]),
        *format_size(size),
    ]
    truth, curve = case["ground_truth"], case["curve"]
    if truth is not None:
        before, after, drop = truth["clean"]["dice"], truth["adversarial"]["dice"], truth["dice_drop"]
        lines.append(f"  ground truth  Dice {number(before)} -> {number(after)}, drop {number(drop)}")
    if curve is not None:
        lines += _curve_lines(curve)
    return "\n".join(lines)


def _curve_lines(curve: Report) -> list[str]:
    rows = [("share of range", "Linf native", "PSNR dB", "target IoU", "hit rate")]
    for each in curve["points"]:
        values = (_value(each["psnr_db"], ".2f"), _value(each["target_iou"]), _value(each["hit_rate"]))
        rows.append((f"{each['linf_share']:.2%}", f"{each['linf_native']:.4g}", *values))
    smallest = curve["smallest_at_goal"]
    said = "no multiple of the change reaches the goal"
    if smallest["value"] is not None:
        said = (
            f"the goal needs {smallest['value']:.3f} of the change: Linf {smallest['linf_native']:.4g} native units "
            f"({smallest['linf_share']:.2%} of the range), PSNR {number(smallest['psnr_db'], '.2f', ' dB')}"
        )
    iou, hit = (number(curve["area"][key]) for key in ("target_iou", "hit_rate"))
    return [
        _plain(rows, "  "),
        f"  {said}",
        f"  area under the curve, budgets of 0 to {CURVE_END:.0%} of the range: target IoU {iou}, hit rate {hit}",
    ]


def _many_cases(report: Report) -> str:
    rows: list[Sequence[object]] = [("case", "goal", "target IoU", "hit rate", "Linf native", "PSNR dB")]
    for case in report["cases"]:
        if case["status"] != "ok":
            rows.append((case["case_id"], "FAILED", case["error"]["message"]))
            continue
        post, size = case["metrics"]["post_write"], case["metrics"]["size"]
        reached = "reached" if case["goal"]["reached"] else "no"
        values = (_value(post["target_iou"]), _value(post["hit_rate"]), f"{size['linf']['native']:.4g}")
        rows.append((case["case_id"], reached, *values, _value(size["psnr_db"], ".2f")))
    counts = report["aggregate"]
    return f"{_plain(rows)}\n{counts['goal_reached']} of {counts['ok']} cases reached the goal" + (
        f", {counts['failed']} could not be judged" if counts["failed"] else ""
    )


def _trial_rows(report: Report) -> Iterable[Sequence[Sequence[object]]]:
    keys = ("target_iou", "hit_rate")
    yield [("other model", "target IoU", "hit rate")] + [
        (each["model"], *(_value(each[key]) for key in keys)) for each in report["transfer"]
    ]
    more = (*keys, "restored", "clean_dice")
    yield [("transform", "target IoU", "hit rate", "restored", "Dice of clean scans")] + [
        (each["transform"], *(_value(each[key]) for key in more)) for each in report["survival"]
    ]


def _plain(rows: Sequence[Sequence[object]], indent: str = "") -> str:
    """Columns, the first to the left, the others to the right; a last cell that stands alone is never cut."""
    lines = [[_line(cell) for cell in row] for row in rows]
    columns = max(map(len, lines))
    full = [line for line in lines if len(line) == columns]
    widths = [max(len(line[n]) for line in full) for n in range(columns)]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(
        indent
        + "  ".join(
            f"{cell:>{width}}" if n else f"{cell:<{width}}"
            for n, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        for line in lines
    )
