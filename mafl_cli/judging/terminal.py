"""An evaluation as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mafl_cli.judging.robustness_card import GIVEN, as_text, interval, is_given
from mafl_cli.judging.trials import CURVE_END
from mafl_cli.measure.records import ClassAgreement
from mafl_cli.names import in_one_line
from mafl_cli.results.evaluation_report import Curve, Evaluation, FailedCase, JudgedCase
from mafl_cli.results.quantities import EVALUATED
from mafl_cli.results.text import format_consequences, format_draws, format_size, number, said_of, visible

# What is shown of each of several cases.
_OF_CASE = ("target_iou", "hit_rate", "linf_native", "psnr_db")


def terminal(report: Evaluation) -> str:
    """What a person wants to see at once: one case in full, several in a line each; trials; gates and why."""
    alone = report.cases[0] if len(report.cases) == 1 else None
    blocks = [_one_case(alone) if isinstance(alone, JudgedCase) else _many_cases(report)]
    blocks += [_plain(rows) for rows in _trial_rows(report) if len(rows) > 1]
    gates = [in_one_line(f"{gate.status.upper()}  fail if {gate.expression}: {gate.reason}") for gate in report.gates]
    if is_given(report):
        blocks.append(GIVEN)
    return "\n\n".join([*blocks, *(["\n".join(gates)] if gates else [])])


def _one_case(case: JudgedCase) -> str:
    """One line per class, then the size of the change."""
    post, clean = case.metrics.post_write, case.metrics.clean
    lines = [
        f"{in_one_line(case.case_id)}   (clean scan -> adversarial scan)",
        f"  {'class':<20} {'IoU':>19} {'Dice':>19} {'HD95 mm':>19} {'voxels of target':>17}",
        *(_class_line(before, after) for before, after in zip(clean.per_class, post.per_class, strict=True)),
        f"  target IoU {number(post.target_iou)}, hit rate {number(post.hit_rate)}"
        f" of {post.changed_voxels} voxels, collateral {post.collateral.count} voxels",
        *(f"  class {gone.name!r} removed: {gone.value:.4f}" for gone in post.removed),
        *format_consequences(case.metrics.consequences),
        *format_draws(case.metrics.draws),
        *format_size(case.metrics.size, model_units=case.knows_units),
        f"  visibility    {visible(case.metrics.visibility)}",
    ]
    lines.append(f"  attack {_said_of(case)}")
    truth = case.ground_truth
    if truth is not None:
        before, after, drop = map(number, (truth.clean.dice, truth.adversarial.dice, truth.dice_drop))
        lines.append(f"  ground truth  Dice {before} -> {after}, drop {drop}")
    if case.curve is not None:
        lines += _curve_lines(case.curve)
    return "\n".join(lines)


def _said_of(case: JudgedCase) -> str:
    """Whether the attack can be believed."""
    if case.doubts:
        return f"in doubt: {in_one_line(case.doubts[0].sentence)}"
    if case.attack is None:
        return "nothing is known about it: there is no report of it"
    if case.attack.trust is None:
        return f"it saw nothing but labels, and asked for at most {case.attack.steps} of them"
    said = said_of(case.attack.trust).removesuffix(".")
    return f"{said[0].lower()}{said[1:]}"


def _class_line(before: ClassAgreement, after: ClassAgreement) -> str:
    values = ((before.iou, after.iou), (before.dice, after.dice), (before.hd95_mm, after.hd95_mm))
    pairs = (f"{as_text(was):>8} -> {as_text(now):>7}" for was, now in values)
    return f"  {in_one_line(after.name)[:20]:<20} {' '.join(pairs)} {after.voxels.target:>17}"


def _curve_lines(curve: Curve) -> list[str]:
    rows = [("share of range", "Linf native", "PSNR dB", "target IoU", "hit rate")]
    for point in curve.points:
        values = (as_text(point.psnr_db, ".2f"), as_text(point.target_iou), as_text(point.hit_rate))
        rows.append((f"{point.linf_share:.2%}", f"{point.linf_native:.4g}", *values))
    smallest = curve.smallest_at_goal
    said = "no multiple of the change reaches the goal"
    if smallest.psnr_db is not None:
        said = (
            f"the goal needs {smallest.value:.3f} of the change: Linf {smallest.linf_native:.4g} native units "
            f"({smallest.linf_share:.2%} of the range), PSNR {number(smallest.psnr_db, '.2f', ' dB')}"
        )
    iou, hit = number(curve.area.target_iou), number(curve.area.hit_rate)
    return [
        _plain(rows, "  "),
        f"  {said}",
        f"  area under the curve, budgets of 0 to {CURVE_END:.0%} of the range: target IoU {iou}, hit rate {hit}",
    ]


def _many_cases(report: Evaluation) -> str:
    quantities = [EVALUATED[name] for name in _OF_CASE]
    rows: list[Sequence[object]] = [("case", "goal", *(quantity.title for quantity in quantities))]
    for case in report.cases:
        if isinstance(case, FailedCase):
            rows.append((case.case_id, "FAILED", case.error.message))
            continue
        reached = "reached" if case.goal.reached else "no"
        values = (quantity.shown(quantity.of_evaluation(case).value) for quantity in quantities)
        rows.append((case.case_id, reached, *values))
    counts = report.aggregate
    return f"{_plain(rows)}\n{counts.goal_reached} of {counts.ok} cases reached the goal" + (
        (f", {counts.failed} could not be judged" if counts.failed else "")
        + (f"\n{counts.doubtful} of {counts.ok} attacks are in doubt" if counts.doubtful else "")
        + ("\nnothing is known about attacks without a report" if any(c.attack is None for c in report.judged) else "")
    )


def _trial_rows(report: Evaluation) -> Iterable[Sequence[Sequence[object]]]:
    yield [("other model", "target IoU", "hit rate")] + [
        (each.model, as_text(each.target_iou), as_text(each.hit_rate)) for each in report.transfer
    ]
    yield [("transform", "target IoU", "hit rate", "restored", "Dice of clean scans")] + [
        (each.transform, *map(as_text, (each.target_iou, each.hit_rate, each.restored, each.clean_dice)))
        for each in report.survival
    ]
    yield [("detector", "AUC", "95 % interval", "found at 5 % false alarms", "samples", "cases")] + [
        (each.detector, as_text(each.auc), interval(each), as_text(each.tpr_at_5_percent_fpr), each.n, each.cases)
        for each in report.detection
    ]


def _plain(rows: Sequence[Sequence[object]], indent: str = "") -> str:
    """Columns, the first to the left, the others to the right; a last cell that stands alone is never cut."""
    lines = [[in_one_line(cell) for cell in row] for row in rows]
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
