"""The folder of a batch: its tables, how far it is, and several of them joined.

All that is said of a run is read from the results of its cases, each time anew.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mafl_cli import __version__
from mafl_cli.errors import InputError, UsageError
from mafl_cli.measure.statistics import summary
from mafl_cli.names import cell, one_line, public_name
from mafl_cli.results import read
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION
from mafl_cli.results.files import FAILED, REPORT, RUN
from mafl_cli.results.folder import staged, write_text, written_to
from mafl_cli.system import locks
from mafl_cli.system.records import plain, to_json

TABLE = "cases.csv"
FAILURES = "failed.txt"

# What the table and the statistics have of each case.
_FIGURES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "goal_reached": lambda case: case["attack"]["goal_reached"],
    "target_iou_clean": lambda case: case["metrics"]["clean"]["target_iou"]["value"],
    "target_iou": lambda case: case["metrics"]["post_write"]["target_iou"]["value"],
    "hit_rate": lambda case: case["metrics"]["post_write"]["hit_rate"]["value"],
    "collateral": lambda case: case["metrics"]["post_write"]["collateral"]["value"],
    "l2_model": lambda case: case["metrics"]["size"]["l2"]["model"],
    "l2_native": lambda case: case["metrics"]["size"]["l2"]["native"],
    "linf_model": lambda case: case["metrics"]["size"]["linf"]["model"],
    "linf_native": lambda case: case["metrics"]["size"]["linf"]["native"],
    "psnr_db": lambda case: case["metrics"]["size"]["psnr_db"]["value"],
    "ssim": lambda case: case["metrics"]["size"]["ssim"]["mean"]["value"],
    "ssim_worst": lambda case: case["metrics"]["size"]["ssim"]["worst"]["value"],
    "low_frequency_share": lambda case: case["metrics"]["size"]["low_frequency_share"]["value"],
    "forward": lambda case: case["attack"]["passes"]["forward"],
    "backward": lambda case: case["attack"]["passes"]["backward"],
}


def _known(run: Path) -> dict[str, Any]:
    known = read.read_run(run)
    if known is None:
        raise InputError(f"{public_name(run)}: is not the folder of a batch; give the -o folder of `mafl attack`.")
    return known


def aggregate(out: Path) -> dict[str, Any]:
    """Read every case's report, and write report.json, cases.csv and failed.txt of the run; returns the first.

    Nothing in them depends on the order, the number of workers, or how often the run was interrupted.
    Raises InputError for a folder that is no batch.
    """
    known = _known(out)
    # Parts that end together: the tables of the last one must be the last.
    with written_to(out), locks.held((out / RUN).with_name("tables.lock"), wait=True):
        return _write_tables(out, known)


def _write_tables(out: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    rows, models = [], {}
    for case_id in known["cases"]:
        row = _row(out, case_id)
        said = row.pop("model", None)
        if said is not None:
            models[said["sha256"]] = said
        rows.append(row)
    finished = [row for row in rows if row["status"] == "ok"]
    whole = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "mafl", "version": __version__},
        "notice": NOTICE,
        "command": "attack-batch",
        "settings_hash": known["settings"],
        "models": list(models.values()),
        "cases": rows,
        "aggregate": {
            **{status: sum(row["status"] == status for row in rows) for status in ("ok", "failed", "pending")},
            "cases": len(rows),
            "goal_reached": sum(bool(row["figures"]["goal_reached"]) for row in finished),
            "figures": {
                name: plain(summary([row["figures"][name] for row in finished]))
                for name in _FIGURES
                if name != "goal_reached"
            },
        },
    }
    write_text(out / REPORT, to_json(whole))
    write_text(out / TABLE, _table(rows))
    failures = [f"{row['case_id']}\t{one_line(row['error']['message'])}\n" for row in rows if row["status"] == "failed"]
    write_text(out / FAILURES, "".join(failures))
    return whole


def _row(out: Path, case_id: str) -> dict[str, Any]:
    """What the run says of a case: status "ok", "failed" or "pending"."""
    folder = out / case_id
    error = read.read_failure(folder)
    said = None if error is not None else finished(folder)
    if said is not None:
        case = said["cases"][0]
        return {
            "case_id": case_id,
            "status": "ok",
            "error": None,
            "outcome": case["attack"]["outcome"],
            "figures": _figures(case),
            "model": {key: said["model"][key] for key in ("name", "sha256", "classes")},
        }
    status = "pending" if error is None else "failed"
    return {"case_id": case_id, "status": status, "error": error, "outcome": None, "figures": None}


def finished(folder: Path) -> dict[str, Any] | None:
    """The report of a case; None if there is none, or none that is whole: then it is as if it had not been run.

    Only what tables and resuming read of it is looked at: there may be ten thousand.
    """
    said = read.read_object(folder / REPORT)
    try:
        return said if said is not None and _is_whole(said) else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _is_whole(said: Mapping[str, Any]) -> bool:
    (case,) = said["cases"]
    seconds, *costs = _costs(case)
    numbers = [*_figures(case).values(), *seconds.values(), *costs]
    files = (*case["inputs"], *case["target"]["files"], *case["files"])
    texts = [case["attack"]["outcome"], said["model"]["name"], *said["model"]["classes"]]
    texts += [each["sha256"] for each in (said["model"], *files)]
    return (
        all(value is None or isinstance(value, (int, float)) for value in numbers)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(file["name"], str) and file["name"] for file in case["files"])
    )


def _figures(case: Mapping[str, Any]) -> dict[str, Any]:
    return {name: pick(case) for name, pick in _FIGURES.items()}


def _costs(case: Mapping[str, Any]) -> tuple[dict[str, float], int, int]:
    """Seconds of each part, passes, and peak memory in bytes."""
    passes = case["attack"]["passes"]
    seconds = {part: float(value) for part, value in case["timing_s"].items()}
    return seconds, passes["forward"] + passes["backward"], case["memory"]["peak_resident_bytes"] or 0


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["case_id", "status", "error", *_FIGURES])
    for row in rows:
        figures = row["figures"] or dict.fromkeys(_FIGURES)
        values = ["" if value is None else repr(float(value)) for value in figures.values()]
        error = row["error"]["message"] if row["error"] else ""
        writer.writerow([cell(row["case_id"]), row["status"], cell(error), *values])
    return stream.getvalue()


def format_run(whole: Mapping[str, Any]) -> str:
    """A few lines on a run: counts, means, and what failed and why."""
    counts = whole["aggregate"]
    lines = [
        f"{counts['ok']} of {counts['cases']} cases done, {counts['failed']} failed, {counts['pending']} not run yet; "
        f"the goal was reached in {counts['goal_reached']}"
    ]
    for name in ("target_iou", "hit_rate", "l2_model", "linf_model", "psnr_db", "ssim"):
        found = counts["figures"][name]
        if found["n"]:
            lines.append(
                f"  {name:<12} mean {found['mean']:.5g}, lowest {found['min']:.5g}, highest {found['max']:.5g}"
            )
    lines += [f"  failed: {row['error']['message']}" for row in whole["cases"] if row["status"] == "failed"]
    return "\n".join(lines)


def status(out: Path) -> dict[str, Any]:
    """How far a run is, finished or not, from its files.

    Returns: counts of cases "ok", "failed", "running" (a worker is at them) and "pending"; mean seconds of each part of
        a case, passes, and the largest peak memory, over the finished ones.
    Raises InputError for a folder that is no batch.
    """
    known = _known(out)
    at_work = not all(locks.is_free(path) for path in (out / RUN).parent.glob("part-*.lock"))
    counts = dict.fromkeys(("ok", "failed", "running", "pending"), 0)
    seconds: dict[str, float] = {}
    passes, memory = 0, 0
    for case_id in known["cases"]:
        folder = out / case_id
        if (folder / FAILED).is_file():
            counts["failed"] += 1
        elif (said := finished(folder)) is not None:
            counts["ok"] += 1
            took, passed, peak = _costs(said["cases"][0])
            for part, value in took.items():
                seconds[part] = seconds.get(part, 0.0) + value
            passes += passed
            memory = max(memory, peak)
        else:
            counts["running" if at_work and any(folder.glob(".mafl-*")) else "pending"] += 1
    done = max(counts["ok"], 1)
    return {
        "command": "status",
        "cases": len(known["cases"]),
        **counts,
        "mean_seconds": {part: round(value / done, 3) for part, value in seconds.items()},
        "mean_passes": passes / done,
        "peak_resident_bytes": memory,
    }


def format_status(found: Mapping[str, Any]) -> str:
    """One line of counts, one of what a case takes."""
    counts = ", ".join(f"{found[key]} {key}" for key in ("ok", "failed", "running", "pending"))
    lines = [f"{found['cases']} cases: {counts}"]
    if found["ok"]:
        parts = ", ".join(f"{part} {value:.2f} s" for part, value in found["mean_seconds"].items())
        lines.append(f"  a case: {parts}; {found['mean_passes']:.0f} passes")
        lines.append(f"  peak memory of a process: {found['peak_resident_bytes'] / 2**30:.2f} GiB")
    return "\n".join(lines)


def merge(runs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Join the results of several runs of the same settings in a new folder; returns its aggregate.

    Files are linked where the file system can, copied elsewhere. After any error the new folder is as it was before.
    Raises: InputError for a folder that is no batch; UsageError when settings differ, a case is done in two of them, or
        the folder holds something already; DiskFullError.
    """
    known = [_known(run) for run in runs]
    if len({each["settings"] for each in known}) > 1:
        raise UsageError("the runs have different settings or models: they are not parts of one.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{public_name(out)}: is not empty; choose a new folder with -o.")
    ids = list(dict.fromkeys(case_id for each in known for case_id in each["cases"]))
    there = {case_id: [run for run in runs if _row(run, case_id)["status"] != "pending"] for case_id in ids}
    twice = [case_id for case_id, where in there.items() if len(where) > 1]
    if twice:
        raise UsageError(f"{twice[0]}: is in {len(there[twice[0]])} of the runs; they are not parts of one.")
    with staged(out, overwrite=False) as stage:
        for case_id, where in there.items():
            for run in where:
                _link_all(run / case_id, stage / case_id)
        whole = {"settings": known[0]["settings"], "cases": ids}
        (stage / RUN).parent.mkdir()
        write_text(stage / RUN, to_json(whole))
        return _write_tables(stage, whole)


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
