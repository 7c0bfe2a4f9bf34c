"""An evaluation for people, as Markdown, and for spreadsheets, as CSV.

Names come from files, and files come from anywhere: each form escapes them in its own way.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from mafl_cli.codes import Sight
from mafl_cli.config import LABEL_ONLY
from mafl_cli.measure.value import Value
from mafl_cli.names import cell, harmless, in_one_line
from mafl_cli.results.detection_report import Roc
from mafl_cli.results.envelope import NOTICE
from mafl_cli.results.evaluation_report import Evaluation, FailedCase, JudgedCase, JudgingModel
from mafl_cli.results.quantities import CARD, EVALUATED

# What it shows of each case.
_OF_CASE = ("target_iou", "hit_rate", "psnr_db")

# Rows about what became of classes.
_MOST_CONSEQUENCES = 20

_KNEW_MODEL, _KNEW_LABELS = "the model", "labels only"
_KNOWLEDGE = {
    _KNEW_MODEL: "White-box: the attacker knows the model. Somebody who only sees its output needs more, or a larger "
    "change.",
    _KNEW_LABELS: "Labels only: the attacker sees what the model draws, and may ask so often. Somebody who knows the "
    "model gets further, by a smaller change.",
}
"""What follows for others from what an attacker knew."""

_LIMITS = (
    "A goal that was not reached was not reached by this search within its steps; a longer search may reach it.",
    "The numbers are those of these scans and targets. They say nothing about other scanners, tasks or patients.",
    "Whether a change can be seen is read off JPEG 2000 compression that looks as different, on which readers of CT "
    "were tested. No reader was asked about these changes, and noise, edges and blobs look different.",
    "A robust model may still be wrong: these numbers say nothing about clinical performance.",
)

GIVEN = (
    "Predictions were given as mask files. Nothing is known about who or what drew them, nor whether on these scans."
)


def error_of(case: JudgedCase | FailedCase) -> str:
    return case.error.message if isinstance(case, FailedCase) else ""


# --- Markdown -----------------------------------------------------------------------------------------------------


def card(report: Evaluation) -> str:
    """The robustness card: what was judged, how, with what result, and what that does not say."""
    parts = [
        _head(report), _attacks(report), _gates(report), _results(report), _consequences(report), _trials(report),
        _cases(report), _models(report),
    ]  # fmt: skip
    knew = {_knew(case) for case in report.judged}
    said = [sentence for knowledge, sentence in _KNOWLEDGE.items() if knowledge in knew]
    limits = "\n".join(f"- {line}" for line in (*said, *_LIMITS))
    return "\n\n".join([*(part for part in parts if part), f"## Limits\n\n{limits}\n\n{NOTICE}"]) + "\n"


def summary(report: Evaluation) -> str:
    """The short form, for the page of a CI job."""
    parts = [_head(report), _attacks(report), _gates(report), _results(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: Evaluation) -> str:
    counts = report.aggregate
    models = _md(judged_name(report))
    verdict = ""
    if report.gates:
        unclear = sum(gate.status == "inconclusive" for gate in report.gates)
        mark = (
            "PASSED" if not report.failed_gates else "FAILED" if unclear < len(report.failed_gates) else "INCONCLUSIVE"
        )
        more = f", {unclear} of them inconclusive" if unclear else ""
        verdict = f"**{mark}**: {len(report.failed_gates)} of {len(report.gates)} gates failed{more}. "
    broken = f"; {counts.failed} could not be judged" if counts.failed else ""
    reached = f"The attack reached its goal in {counts.goal_reached} of {counts.ok} cases{broken}."
    tool = f"{report.tool.name} {report.tool.version}"
    return f"# Robustness of {models}\n\n{verdict}{reached} {_seen(report)}Measured from the files by {tool}."


def _seen(report: Evaluation) -> str:
    """In how many cases the change can be seen, as a sentence; nothing where no case was judged."""
    counts = Counter(case.metrics.visibility.verdict for case in report.judged)
    parts = ", ".join(f"{sight.sentence} in {counts[sight]}" for sight in Sight if counts[sight])
    return f"The change {parts} of {len(report.judged)} cases. " if parts else ""


def _attacks(report: Evaluation) -> str:
    """What was tried, what the checks of the attack say, and within which budget the numbers were found."""
    kinds: dict[tuple[str, ...], list[JudgedCase]] = {}
    for case in report.judged:
        kinds.setdefault(_tried(case), []).append(case)
    if not kinds:
        return ""
    rows = []
    for tried, cases in kinds.items():
        told = [case.attack.trust for case in cases if case.attack is not None and case.attack.trust is not None]
        shares = [each.explained for trust in told for each in trust.searches[:1] if each.explained is not None]
        explained = f"{100 * min(shares):.0f} %" if shares else "-"
        reached = sum(case.goal.reached for case in cases)
        reasons = dict.fromkeys(alarm.sentence for case in cases for alarm in case.doubts)
        doubtful = sum(bool(case.doubts) for case in cases)
        said = f"{doubtful} of {len(cases)} in doubt: {'; '.join(list(reasons)[:3])}" if doubtful else "no alarm"
        rows.append((*map(_md, tried), f"{reached} of {len(cases)}", explained, _md(said if told or doubtful else "-")))
    heads = (
        "attack", "attacker knew", "limit on the change", "steps", "goal reached", "gradient explains, at least",
        "checks",
    )  # fmt: skip
    unknown = any(case.attack is None for case in report.judged)
    note = "\n\nNothing is known about an attack without a report: it may have been weak." if unknown else ""
    return "## The attack\n\n" + _table(heads, rows) + note


def _tried(case: JudgedCase) -> tuple[str, ...]:
    """Method, what the attacker knew, budget and steps of a case, in words."""
    attack, knew = case.attack, _knew(case)
    if attack is None:
        return ("unknown",) * 4
    steps = f"at most {attack.steps} queries" if knew == _KNEW_LABELS else str(attack.steps)
    where = "; only some voxels or channels" if attack.confined else ""
    if attack.eps_native is None:
        return attack.method, knew, f"none{where}", steps
    radius = ", ".join(f"{each:.4g}" for each in attack.eps_native)
    norm = "each voxel" if attack.norm == "linf" else "length"
    return attack.method, knew, f"{norm} at most {radius} native units{where}", steps


def _knew(case: JudgedCase) -> str:
    """What the attacker knew of the model; empty where there is no report of the attack."""
    if case.attack is None:
        return ""
    return _KNEW_LABELS if case.attack.method == LABEL_ONLY else _KNEW_MODEL


def _gates(report: Evaluation) -> str:
    if not report.gates:
        return ""
    rows = [
        (gate.status, _md(gate.name), f"fails if {_md(gate.expression)}", _md(gate.reason)) for gate in report.gates
    ]
    return "## Gates\n\n" + _table(("", "gate", "rule", "why"), rows)


def _results(report: Evaluation) -> str:
    rows = []
    for name in CARD:
        found, quantity = report.aggregate.figures.get(name), EVALUATED[name]
        if found is None or not found.n:
            continue
        interval = "-" if found.ci95 is None else " to ".join(map(quantity.shown, found.ci95))
        numbers = map(quantity.shown, (found.mean, found.median, found.min, found.max))
        missing = f" ({found.undefined} undefined)" if found.undefined else ""
        rows.append((f"{quantity.meaning} (`{name}`)", quantity.unit, f"{found.n}{missing}", *numbers, interval))
    heads = ("figure", "unit", "cases", "mean", "median", "lowest", "highest", "95 % interval of the mean")
    return "## Results\n\n" + _table(heads, rows) if rows else ""


def _consequences(report: Evaluation) -> str:
    """What became of each class in the body: of most cases and classes the largest changes of volume."""
    changed = [
        (case.case_id, each) for case in report.judged for each in case.metrics.consequences.per_class if each.changed
    ]
    if not changed:
        return ""
    changed.sort(key=lambda entry: abs(entry[1].volume_change_ml), reverse=True)
    rows = [
        (
            _md(each.name), _md(case_id),
            *(f"{volume:.4g}" for volume in (each.volume_ml.clean, each.volume_ml.adversarial)),
            *(as_text(mm, ".1f") for mm in (each.diameter_mm.clean, each.diameter_mm.adversarial, each.hd95_mm)),
        )
        for case_id, each in changed[:_MOST_CONSEQUENCES]
    ]  # fmt: skip
    heads = (
        "class", "case", "volume clean, ml", "volume adversarial, ml", "diameter clean, mm", "diameter adversarial, mm",
        "HD95 between both, mm",
    )  # fmt: skip
    left = len(changed) - _MOST_CONSEQUENCES
    more = f"\n\n{left} more, with smaller changes of volume, are in the JSON." if left > 0 else ""
    return (
        "## What became of the body\n\nThe model's clean prediction, and what it draws on the adversarial scan. "
        "Diameter: longest line through the largest connected piece.\n\n" + _table(heads, rows) + more
    )


def _trials(report: Evaluation) -> str:
    parts = []
    if report.transfer:
        rows = [
            (_md(each.model), str(each.n), as_text(each.target_iou), as_text(each.hit_rate)) for each in report.transfer
        ]
        parts.append(
            "## Transfer\n\nWhat other models draw on the same files.\n\n"
            + _table(("model", "cases", "target IoU", "hit rate"), rows)
        )
    if report.survival:
        means = [
            (
                each.transform,
                str(each.n),
                *map(as_text, (each.target_iou, each.hit_rate, each.restored, each.clean_dice)),
            )
            for each in report.survival
        ]
        heads = ("transform", "cases", "target IoU", "hit rate", "restored", "Dice of clean scans")
        parts.append(
            "## Survival\n\nMeans after a transform of the scan. Restored: share of the attacked voxels that have "
            "their class back. Dice of clean scans: what the transform alone leaves of the clean prediction.\n\n"
            + _table(heads, means)
        )
    if report.detection:
        told: list[Sequence[object]] = [
            (
                each.detector, each.score, each.cases, each.n, as_text(each.auc), interval(each),
                as_text(each.tpr_at_5_percent_fpr),
            )
            for each in report.detection
        ]  # fmt: skip
        columns = ("detector", "score", "cases", "samples", "AUC", "95 % interval", "found at 5 % false alarms")
        parts.append(
            "## Detection\n\nDo scores that know nothing of the attack tell adversarial slices or volumes from their "
            "clean twins? AUC: area under the ROC curve, 0.5 for a coin. An attacker who knows a detector may go round "
            "it, by `evade` of mafl attack.\n\n" + _table(columns, told)
        )
    return "\n\n".join(parts)


def _cases(report: Evaluation) -> str:
    rows: list[Sequence[object]] = []
    for case in report.cases:
        if isinstance(case, FailedCase):
            rows.append((_md(case.case_id), "failed", "", "", "", _md(case.error.message)))
            continue
        ended = "" if case.goal.reached or case.outcome is None else case.outcome.sentence
        numbers = (EVALUATED[name].shown(EVALUATED[name].of_evaluation(case).value) for name in _OF_CASE)
        reached = "yes" if case.goal.reached else "no"
        doubt = f"in doubt: {case.doubts[0].sentence}" if case.doubts else ""
        remarks = "; ".join(filter(None, (*case.differences, doubt))) or ended
        rows.append((_md(case.case_id), reached, *numbers, _md(remarks)))
    heads = ("case", "goal reached", *(EVALUATED[name].title for name in _OF_CASE), "remarks")
    return "## Cases\n\n" + _table(heads, rows)


def _models(report: Evaluation) -> str:
    lines = []
    if is_given(report):
        return f"## Models\n\n{GIVEN}"
    if not report.models:
        return ""
    judges = judges_of(report)
    for model in report.models:
        role = "judge" if model in judges else "asked for transfer"
        lines.append(f"- {_md(model.name)} ({role}), SHA-256 `{model.sha256}`, draws {_md(', '.join(model.classes))}")
        lines += [f"  - assumed: {_md(each)}" for each in model.assumptions]
    return "## Models\n\n" + "\n".join(lines)


def judges_of(report: Evaluation) -> Sequence[JudgingModel]:
    """Whom the figures are about: the model that was given, or those that the runs attacked."""
    asked = {each.sha256 for each in report.transfer}
    return [each for each in report.models if each.sha256 not in asked] or report.models[:1]


def is_given(report: Evaluation) -> bool:
    """Whether predictions were given in the place of a model."""
    return any(case.given is not None for case in report.judged)


def judged_name(report: Evaluation) -> str:
    """What is judged, as a heading has it."""
    if is_given(report):
        return "an unknown model"
    return ", ".join(each.name for each in judges_of(report)) or "no model"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def interval(found: Roc) -> str:
    """The interval of an area in words, or that nothing is known of other scans."""
    return "unknown: one case" if found.ci95 is None else " to ".join(f"{end:.3f}" for end in found.ci95)


def as_text(value: Value, form: str = ".4f") -> str:
    return "-" if value.value is None else f"{value.value:{form}}"


# What GitHub and GitLab make links and mentions of, escaped or not.
_LINKED = re.compile(r"[@#]|://|www\.|(?:mailto|xmpp):|[!$%~&^]\d|\bGH-\d", re.IGNORECASE)
# In code nothing can be escaped.
_NOT_IN_CODE = str.maketrans({"|": "\N{BROKEN BAR}", "<": "\u2039", ">": "\u203a"})


def _md(text: str) -> str:
    """Plain text in Markdown, in a table too: no markup, no HTML, one line; as code if there are links in it."""
    plain = harmless(" ".join(in_one_line(text).split()))
    if _LINKED.search(plain):
        fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
        inner = plain.translate(_NOT_IN_CODE)
        return f"{fence} {inner} {fence}" if inner.startswith("`") or inner.endswith("`") else f"{fence}{inner}{fence}"
    safe = re.sub(r"([\\`*_{}\[\]|~!$])", r"\\\1", plain)
    # At the beginning these would make a list.
    safe = re.sub(r"^(\d*)([-+.)])", r"\1\\\2", safe)
    return safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- CSV ----------------------------------------------------------------------------------------------------------


def table(report: Evaluation) -> str:
    """CSV with one row for each case: its status and every figure, empty where undefined."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["case_id", "status", "error", *EVALUATED])
    for case in report.cases:
        values = ["" for _ in EVALUATED]
        if isinstance(case, JudgedCase):
            found = [quantity.of_evaluation(case).value for quantity in EVALUATED.values()]
            values = ["" if value is None else repr(float(value)) for value in found]
        writer.writerow([cell(case.case_id), case.status, cell(error_of(case)), *values])
    return stream.getvalue()
