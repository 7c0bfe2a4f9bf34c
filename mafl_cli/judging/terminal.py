"""An evaluation as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mafl_cli.judging.robustness_card import Report, as_text
from mafl_cli.judging.trials import CURVE_END
from mafl_cli.measure.records import Size
from mafl_cli.measure.value import Value
from mafl_cli.names import in_one_line
from mafl_cli.results import text
from mafl_cli.system import records


def number(entry: Report, form: str = ".4f", unit: str = "") -> str:
    return text.number(
        records.read(Value, {key: entry[key] for key in ("value", "reason") if key in entry}, ""), form, unit
    )


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
        in_one_line(f"{gate['status'].upper()}  fail if {gate['expression']}: {gate['reason']}")
        for gate in report["gates"]
    ]
    return "\n\n".join([*blocks, *(["\n".join(gates)] if gates else [])])


def _one_case(case: Report) -> str:
    """One line per class, then the size of the change."""
    post, clean, size = (case["metrics"][key] for key in ("post_write", "clean", "size"))
    lines = [
        f"{in_one_line(case['case_id'])}   (clean scan -> adversarial scan)",
        f"  {'class':<20} {'IoU':>19} {'Dice':>19} {'HD95 mm':>19} {'voxels of target':>17}",
    ]
    for before, after in zip(clean["per_class"], post["per_class"], strict=True):
        pairs = (f"{as_text(before[key]):>8} -> {as_text(after[key]):>7}" for key in ("iou", "dice", "hd95_mm"))
        lines.append(f"  {in_one_line(after['name'])[:20]:<20} {' '.join(pairs)} {after['voxels']['target']:>17}")
    lines += [
        f"  target IoU {number(post['target_iou'])}, hit rate {number(post['hit_rate'])}"
        f" of {post['changed_voxels']} voxels, collateral {post['collateral']['count']} voxels",
        *(f"  class {gone['name']!r} removed: {gone['value']:.4f}" for gone in post["removed"]),
        *text.format_size(records.read(Size, size, "size")),
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
        values = (as_text(each["psnr_db"], ".2f"), as_text(each["target_iou"]), as_text(each["hit_rate"]))
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
        values = (as_text(post["target_iou"]), as_text(post["hit_rate"]), f"{size['linf']['native']:.4g}")
        rows.append((case["case_id"], reached, *values, as_text(size["psnr_db"], ".2f")))
    counts = report["aggregate"]
    return f"{_plain(rows)}\n{counts['goal_reached']} of {counts['ok']} cases reached the goal" + (
        f", {counts['failed']} could not be judged" if counts["failed"] else ""
    )


def _trial_rows(report: Report) -> Iterable[Sequence[Sequence[object]]]:
    keys = ("target_iou", "hit_rate")
    yield [("other model", "target IoU", "hit rate")] + [
        (each["model"], *(as_text(each[key]) for key in keys)) for each in report["transfer"]
    ]
    more = (*keys, "restored", "clean_dice")
    yield [("transform", "target IoU", "hit rate", "restored", "Dice of clean scans")] + [
        (each["transform"], *(as_text(each[key]) for key in more)) for each in report["survival"]
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
