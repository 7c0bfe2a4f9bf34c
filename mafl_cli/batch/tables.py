"""The folder of a batch: its tables, how far it is, and several of them joined.

All that is said of a run is read from the results of its cases, each time anew.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mafl_cli.errors import InputError, UsageError
from mafl_cli.measure.statistics import summary
from mafl_cli.names import cell, one_line, public_name
from mafl_cli.results import read
from mafl_cli.results.batch_report import Batch, BatchAggregate, BatchCase, BatchModel, CaseList, Status
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION, TOOL, Failure
from mafl_cli.results.files import FAILED, REPORT, RUN
from mafl_cli.results.folder import staged, write_text, written_to
from mafl_cli.results.quantities import HEADLINES, QUANTITIES, TABLE
from mafl_cli.results.quantity import value_of
from mafl_cli.results.report import CaseRecord, Report
from mafl_cli.system import locks
from mafl_cli.system.records import to_json

CASES = "cases.csv"
FAILURES = "failed.txt"

_Row = tuple[BatchCase, BatchModel | None]
"""What a run says of a case, and the model that was attacked if it is done."""

Mark = tuple[int, int, int]
"""Size, time and number on the disk of a file."""


@dataclass(frozen=True)
class KnownRow:
    """The row of a finished case, and which report it was made of: no other is read for the tables while that one lies
    there."""

    row: _Row
    report: Mark


def report_mark(folder: Path) -> Mark | None:
    """Tells the report of a case from others that lie there before or after it; None where there is none."""
    try:
        stat = (folder / REPORT).stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _known(run: Path) -> CaseList:
    known = read.read_run(run)
    if known is None:
        raise InputError(
            f"{public_name(run)}: is not the folder of a batch: give the folder that an attack on several scans wrote."
        )
    return known


def aggregate(out: Path, rows: Mapping[str, KnownRow] | None = None) -> Batch:
    """Read every case's report, and write report.json, cases.csv and failed.txt of the run; returns the first.

    rows: of cases whose reports were read before, by their names; these are read again only where they have changed.

    Nothing in the files depends on the order, the number of workers, or how often the run was interrupted.
    Raises InputError for a folder that is not a batch, or has reports of another version of the schema.
    """
    known, before = _known(out), rows or {}
    # Parts that end together: the tables of the last one must be the last.
    with written_to(out), locks.held((out / RUN).with_name("tables.lock"), wait=True):
        return _write_tables(out, known, [_row(out, case_id, before.get(case_id)) for case_id in known.cases])


def _write_tables(out: Path, known: CaseList, said: Sequence[_Row]) -> Batch:
    """said: of each known case, in order."""
    rows = [row for row, _ in said]
    models = {model.sha256: model for _, model in said if model is not None}
    figures = [row.figures for row in rows if row.figures is not None]
    counts = {status: sum(row.status == status for row in rows) for status in ("ok", "failed", "pending")}
    whole = Batch(
        schema_version=SCHEMA_VERSION,
        tool=TOOL,
        notice=NOTICE,
        command="attack-batch",
        settings_hash=known.settings,
        models=tuple(models.values()),
        cases=tuple(rows),
        aggregate=BatchAggregate(
            **counts,
            cases=len(rows),
            goal_reached=sum(bool(each["goal_reached"]) for each in figures),
            doubtful=sum(bool(row.alarms) for row in rows),
            figures={name: summary([each[name] for each in figures]) for name in TABLE if name != "goal_reached"},
        ),
    )
    write_text(out / REPORT, to_json(whole))
    write_text(out / CASES, _table(rows))
    failures = [f"{row.case_id}\t{one_line(row.error.message)}\n" for row in rows if row.error is not None]
    write_text(out / FAILURES, "".join(failures))
    return whole


def _row(out: Path, case_id: str, before: KnownRow | None = None) -> _Row:
    folder = out / case_id
    error = read.read_failure(folder)
    if error is None and before is not None and before.report == report_mark(folder):
        return before.row
    said = None if error is not None else read.finished(folder)
    if said is None:
        return _without_results(case_id, error), None
    return finished_row(case_id, said)


def finished_row(case_id: str, said: Report) -> _Row:
    """What a run says of a case that is done. said: its report."""
    model = BatchModel(
        name=said.model.name, sha256=said.model.sha256, classes=said.model.classes, members=said.model.named_members
    )
    attack = said.case.attack
    row = BatchCase(
        case_id=case_id,
        status="ok",
        error=None,
        outcome=attack.outcome,
        trust=None if attack.trust is None else attack.trust.verdict,
        alarms=() if attack.trust is None else tuple(alarm.code for alarm in attack.trust.alarms),
        figures=figures(said.case),
    )
    return row, model


def _without_results(case_id: str, error: Failure | None = None) -> BatchCase:
    """A case that failed, or was not run yet."""
    status: Literal["pending", "failed"] = "pending" if error is None else "failed"
    return BatchCase(case_id=case_id, status=status, error=error, outcome=None, trust=None, alarms=(), figures=None)


def figures(case: CaseRecord) -> dict[str, bool | float | None]:
    """What the table has of a case, by the names of `TABLE`."""
    return {name: value_of(QUANTITIES[name].of_attack(case)) for name in TABLE}


def _table(rows: Sequence[BatchCase]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["case_id", "status", "error", *TABLE])
    for row in rows:
        found = row.figures or dict.fromkeys(TABLE)
        values = ["" if value is None else repr(float(value)) for value in found.values()]
        error = "" if row.error is None else row.error.message
        writer.writerow([cell(row.case_id), row.status, cell(error), *values])
    return stream.getvalue()


def format_run(whole: Batch) -> str:
    """A few lines on a run: counts, means, and what failed and why."""
    counts = whole.aggregate
    lines = [
        f"{counts.ok} of {counts.cases} cases done, {counts.failed} failed, {counts.pending} not run yet; "
        f"the goal was reached in {counts.goal_reached}"
    ]
    for name in HEADLINES:
        found = counts.figures[name]
        if found.n:
            lines.append(f"  {name:<12} mean {found.mean:.5g}, lowest {found.min:.5g}, highest {found.max:.5g}")
    if counts.doubtful:
        why = ", ".join(dict.fromkeys(alarm.value for row in whole.cases for alarm in row.alarms))
        lines.append(f"  {counts.doubtful} attacks are in doubt ({why}): the reports of these cases say why")
    lines += [f"  failed: {row.error.message}" for row in whole.cases if row.error is not None]
    return "\n".join(lines)


def status(out: Path) -> Status:
    """How far a run is, finished or not, from its files.

    Raises InputError for a folder that is not a batch, or has reports of another version of the schema.
    """
    known = _known(out)
    at_work = not all(locks.is_free(path) for path in (out / RUN).parent.glob("part-*.lock"))
    ok, failed, running, passes, memory = 0, 0, 0, 0, 0
    seconds: dict[str, float] = {}
    for case_id in known.cases:
        folder = out / case_id
        if (folder / FAILED).is_file():
            failed += 1
        elif (said := read.finished(folder)) is not None:
            ok += 1
            for part, value in said.case.timing_s.items():
                seconds[part] = seconds.get(part, 0.0) + value
            passes += said.case.attack.passes.forward + said.case.attack.passes.backward
            memory = max(memory, said.case.memory.peak_resident_bytes or 0)
        else:
            running += at_work and any(folder.glob(".mafl-*"))
    done = max(ok, 1)
    return Status(
        command="status",
        cases=len(known.cases),
        ok=ok,
        failed=failed,
        running=running,
        pending=len(known.cases) - ok - failed - running,
        mean_seconds={part: round(value / done, 3) for part, value in seconds.items()},
        mean_passes=passes / done,
        peak_resident_bytes=memory,
    )


def format_status(found: Status) -> str:
    """One line of counts, one of what a case takes."""
    lines = [
        f"{found.cases} cases: {found.ok} ok, {found.failed} failed, {found.running} running, {found.pending} pending"
    ]
    if found.ok:
        parts = ", ".join(f"{part} {value:.2f} s" for part, value in found.mean_seconds.items())
        lines.append(f"  a case: {parts}; {found.mean_passes:.0f} passes")
        lines.append(f"  peak memory of a process: {found.peak_resident_bytes / 2**30:.2f} GiB")
    return "\n".join(lines)


def merge(runs: Sequence[Path], out: Path) -> Batch:
    """Join the results of several runs of the same settings in a new folder; returns its aggregate.

    Files are linked where the file system can, copied elsewhere. After any error the new folder is as it was before.
    Raises: InputError as `aggregate`; UsageError when settings differ, a case is done in two of them, or
        the folder holds something already; DiskFullError.
    """
    known = [_known(run) for run in runs]
    if len({each.settings for each in known}) > 1:
        raise UsageError("the runs have different settings or models, so they are not parts of one batch.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{public_name(out)}: is not empty: choose a new folder with `out`.")
    ids = list(dict.fromkeys(case_id for each in known for case_id in each.cases))
    said: list[_Row] = []
    where: dict[str, Path] = {}
    for case_id in ids:
        found = [(run, row) for run in runs if (row := _row(run, case_id))[0].status != "pending"]
        if len(found) > 1:
            raise UsageError(f"{case_id}: is done in {len(found)} of the runs, so they are not parts of one batch.")
        where.update((case_id, run) for run, _ in found)
        said += [row for _, row in found] or [(_without_results(case_id), None)]
    with staged(out, overwrite=False) as stage:
        for case_id, run in where.items():
            _link_all(run / case_id, stage / case_id)
        whole = CaseList(settings=known[0].settings, cases=tuple(ids))
        (stage / RUN).parent.mkdir()
        write_text(stage / RUN, to_json(whole))
        return _write_tables(stage, whole, said)


def _link_all(source: Path, target: Path) -> None:
    for place, folders, files in os.walk(source):
        inside = target / Path(place).relative_to(source)
        inside.mkdir()
        # Another process may be at work there.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            try:
                os.link(Path(place) / name, inside / name)
            except OSError:
                shutil.copy2(Path(place) / name, inside / name)
