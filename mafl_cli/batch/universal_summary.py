"""What is said of one change for many scans: its report, and lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mafl_cli.batch import tables
from mafl_cli.batch.local import Row
from mafl_cli.errors import InputError
from mafl_cli.field.carry import Carry
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION, TOOL
from mafl_cli.results.report import Report
from mafl_cli.results.universal_report import Role, SharedChange, UniversalCase, UniversalReport, UniversalShare


def summed_up(
    roles: Mapping[str, Role],
    rows: Mapping[str, Row],
    ways: Mapping[str, Carry],
    reports: Mapping[str, Report],
    change: SharedChange,
) -> UniversalReport:
    """The report on all cases, by their names.

    rows: what became of each. ways, reports: of those that could be read, and of those that were written.
    Raises: InputError where none was written.
    """
    said = next(iter(reports.values()), None)
    if said is None:
        raise InputError("no case could be written: failed.txt says why.")
    _, model = tables.finished_row(said.case.case_id, said)
    assert model is not None
    cases = [_case(name, role, rows[name], ways.get(name), reports.get(name)) for name, role in roles.items()]
    held = [case for case in cases if case.role == "held_out"]
    return UniversalReport(
        schema_version=SCHEMA_VERSION,
        tool=TOOL,
        notice=NOTICE,
        command="attack-universal",
        model=model,
        change=change,
        cases=tuple(cases),
        made_on=_share([case for case in cases if case.role == "made_on"]),
        held_out=_share(held) if held else None,
    )


def _case(name: str, role: Role, row: Row, way: Carry | None, report: Report | None) -> UniversalCase:
    figures = {} if report is None else tables.figures(report.case)

    def share(quantity: str) -> float | None:
        value = figures.get(quantity)
        return None if value is None else float(value)

    return UniversalCase(
        case_id=name,
        role=role,
        error=row.error,
        outcome=None if report is None else report.case.attack.outcome,
        resampled=None if way is None else way.resampled,
        overlap=None if way is None else way.overlap,
        hit_rate=share("hit_rate"),
        target_iou=share("target_iou"),
        goal_reached=None if report is None else report.case.attack.goal_reached,
    )


def _share(cases: Sequence[UniversalCase]) -> UniversalShare:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return UniversalShare(
        cases=len(cases),
        failed=sum(case.error is not None for case in cases),
        goal_reached=sum(bool(case.goal_reached) for case in cases),
        hit_rate=mean([case.hit_rate for case in cases]),
        target_iou=mean([case.target_iou for case in cases]),
    )


def format_universal(whole: UniversalReport) -> str:
    """A few lines: the change, and what it does where it was made and where it was not."""
    change = whole.change
    units = {
        "model": "model units",
        "native": "native units",
        "range": "of the scan's range",
        "noise": "times the scan's noise",
    }[change.unit]
    changed = sum(case.error is None for case in whole.cases)
    lines = [
        f"one change for {changed} scan{'s' if changed != 1 else ''}, {change.norm} at most {change.eps:g} {units}"
    ]
    for name, found in (("made on", whole.made_on), ("held out", whole.held_out)):
        if found is None:
            lines.append("  held out      none: nothing is known of other scans")
            continue
        means = "  ".join(
            f"{what} {'-' if value is None else f'{value:.4f}'}"
            for what, value in (("hit rate", found.hit_rate), ("target IoU", found.target_iou))
        )
        done = found.cases - found.failed
        lines.append(f"  {name:<12}  {means}  goal reached in {found.goal_reached} of {done} scans")
    lines += [f"  failed: {case.error.message}" for case in whole.cases if case.error is not None]
    return "\n".join(lines)
