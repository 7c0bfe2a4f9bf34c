"""Many cases: a run is a folder of results of single cases, and all that is said of it is read from them.

A case is done when its report lies there, which is written last, and its ticket says that it was made from the files,
the model and the settings of today. So whatever ends a run loses the cases in flight and nothing else, and the same
command goes on where it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mafl_cli import __version__, cluster, engine, report, results
from mafl_cli.card import find_card
from mafl_cli.case import AttackRequest
from mafl_cli.cases import CaseFiles
from mafl_cli.cluster import Cluster
from mafl_cli.config import config_hash
from mafl_cli.engine import Job, Row
from mafl_cli.errors import InputError, Interrupted, UsageError
from mafl_cli.gates import summary_of
from mafl_cli.names import digest, public_name
from mafl_cli.publish import cell
from mafl_cli.subject import Say

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


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """attack: what all cases share; images, targets and out are put in for each. part: (index, count) of the cases.

    threads: of each worker; None shares the cores out. cluster: where the workers are, None for this machine.
    case_timeout: seconds, on this machine only.
    """

    cases: tuple[CaseFiles, ...]
    attack: AttackRequest
    out: Path
    workers: int = 1
    threads: int | None = None
    cluster: Cluster | None = None
    part: tuple[int, int] = (0, 1)
    case_timeout: float | None = None
    retry_failed: bool = False
    overwrite: bool = False


def run_batch(
    request: BatchRequest,
    *,
    say: Say,
    on_jobs: Callable[[int], None] = lambda count: None,
    on_row: Callable[[str, Row], None] = lambda case_id, row: None,
) -> dict[str, Any]:
    """Attack all cases of this part that are not done yet; returns what `aggregate` says then.

    on_jobs: called with the number of cases that are left to do. on_row: with the row (see `engine.run`) of each.
    Raises: UsageError if another run is at this part of the folder, or the folder is of other settings; Interrupted,
        after everything that is known has been written.
    """
    settings = request_hash(request.attack)
    with _locked(request.out, request.part), _kept(request, settings):
        mine = request.cases[request.part[0] :: request.part[1]]
        jobs, known = _plan(request, mine, settings, on_row)
        on_jobs(len(jobs))
        if known:
            say(f"{known} of {len(mine)} cases were done before")

        def done(job: Job, row: Row) -> None:
            _settle(request.out / job.case_id, job, row)
            on_row(job.case_id, row)

        try:
            if request.cluster is not None:
                cluster.run(jobs, cluster=request.cluster, out=request.out, threads=request.threads, on_row=done)
            else:
                engine.run(
                    jobs, workers=request.workers, threads=request.threads, timeout=request.case_timeout, on_row=done
                )
        except KeyboardInterrupt as exc:
            raise Interrupted(
                "interrupted; what is finished is kept, and the same command goes on from there."
            ) from exc
        finally:
            for job in jobs:
                _sweep(request.out / job.case_id)
            whole = aggregate(request.out)
    return whole


def request_hash(attack: AttackRequest) -> str:
    """Of everything that is the same for all cases and may change results; not of where things lie, nor the device."""
    plain = {
        key: value
        for key, value in vars(attack).items()
        if key
        not in ("images", "out", "targets", "guides", "within", "model", "device", "overwrite", "recipe", "config")
    }
    mask = attack.recipe.mask if attack.recipe else None
    shared = (*attack.targets, *attack.guides, *(path for path in (attack.within, mask) if path is not None))
    # Of their contents: touched or copied, they are the same.
    files = [digest(path) for path in shared]
    chosen = {key: asdict(value) if hasattr(value, "__dataclass_fields__") else value for key, value in plain.items()}
    recipe = attack.recipe.text if attack.recipe else None
    try:
        model = results.sha256(attack.model)
    except OSError:
        model = ""  # The loader says what is wrong.
    card = find_card(attack.model)
    return config_hash(attack.config, asdict(card), json.loads(json.dumps(chosen, default=str)), recipe, files, model)


# --- which cases --------------------------------------------------------------------------------------------------


def _plan(
    request: BatchRequest, cases: Sequence[CaseFiles], settings: str, on_row: Callable[[str, Row], None]
) -> tuple[list[Job], int]:
    """The jobs that are left, and how many cases need none."""
    jobs, known = [], 0
    for case in cases:
        folder = request.out / case.case_id
        if folder.exists() and not folder.is_dir():
            raise UsageError(
                f"{public_name(request.out)}: a file lies where the results of {case.case_id} belong; move it, or "
                "choose another folder with -o."
            )
        ticket = {"request": settings, "files": [fingerprint(path) for path in _files(case)]}
        if case.problem is not None:
            row = {
                "status": "failed",
                "error": {"type": "InputError", "message": case.problem},
                "said": [],
                "seconds": 0,
            }
            _settle(folder, Job(case.case_id, request.attack, ticket), row)
            on_row(case.case_id, row)
        elif _is_done(folder, ticket, case):
            # A run that was killed between the two may have left word of an earlier failure.
            (folder / results.FAILED).unlink(missing_ok=True)
            known += 1
        elif not request.retry_failed and _has_failed(folder, ticket):
            known += 1
        else:
            _sweep(folder)
            attack = replace(
                request.attack,
                images=case.images,
                targets=case.targets or request.attack.targets,
                recipe=None if case.targets else request.attack.recipe,
                guides=case.guides or request.attack.guides,
                out=folder,
                overwrite=True,
            )
            jobs.append(Job(case.case_id, attack, ticket))
    return jobs, known


def _files(case: CaseFiles) -> tuple[Path, ...]:
    return (*case.images, *case.targets, *case.guides)


def fingerprint(path: Path) -> str:
    """Of size, time and number on the disk of a file, or of all files below a folder, without reading them.

    Not of size and time alone: what comes out of one archive often has both in common. Empty if there is nothing.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    try:
        stats = [file.stat() for file in files]
    except OSError:
        return ""
    said = repr([(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats])
    return hashlib.sha256(said.encode()).hexdigest()


def _is_done(folder: Path, ticket: Mapping[str, Any], case: CaseFiles) -> bool:
    found = results.read_object(folder / results.TICKET)
    said = _finished(folder)
    if found is None or said is None or found.get("request") != ticket["request"]:
        return False
    entry = said["cases"][0]
    # Of a series its folder: a data set may have a million slices.
    if not all((folder / PurePosixPath(file["name"]).parts[0]).exists() for file in entry["files"]):
        return False
    if found.get("files") == ticket["files"]:
        return True
    # Copied or touched: the same bytes are the same files.
    recorded = [each["sha256"] for each in (*entry["inputs"], *(entry["target"]["files"] if case.targets else ()))]
    now = [results.sha256(path) if path.is_file() else "" for path in (*case.images, *case.targets)]
    return len(found.get("files", ())) == len(ticket["files"]) and not case.guides and recorded == now


def _has_failed(folder: Path, ticket: Mapping[str, Any]) -> bool:
    found = results.read_object(folder / results.FAILED)
    return found is not None and found.get("ticket") == ticket


def _settle(folder: Path, job: Job, row: Row) -> None:
    """Leave word of a failure; of a success the results themselves are word enough."""
    if row["status"] == "ok":
        (folder / results.FAILED).unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    said = {"case_id": job.case_id, "error": row["error"], "ticket": job.ticket}
    # What an earlier run has left is not the result of this one.
    (folder / results.REPORT).unlink(missing_ok=True)
    results.write_text(folder / results.FAILED, report.to_json(said))


def _sweep(folder: Path) -> None:
    """Take away what a killed worker has left half made."""
    for path in folder.glob(".mafl-*"):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


# --- the folder ---------------------------------------------------------------------------------------------------


@contextmanager
def _locked(out: Path, part: tuple[int, int]) -> Iterator[None]:
    """Hold this part of the folder; the system lets go of it when the process ends, however it ends."""
    results.check_writable(out, overwrite=True)
    own = (out / results.RUN).parent
    own.mkdir(exist_ok=True)
    parts = own / f"parts-of-{part[1]}.lock"
    with parts.open("a+") as all_parts, (own / f"part-{part[0]}-of-{part[1]}.lock").open("a+") as this_part:
        _hold(this_part, out)
        _hold(all_parts, out, shared=True)
        # Of another number of parts, some have the same cases.
        for path in own.glob("parts-of-*.lock"):
            if path != parts:
                with path.open("a+") as others:
                    _hold(others, out)
        yield


def _hold(file: IO[str], out: Path, *, shared: bool = False) -> None:
    """Lock a file until it is closed. Raises UsageError if another process has it."""
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise UsageError(
            f"{public_name(out)}: another mafl works on it now; wait for it, or choose another part."
        ) from exc
    except (ImportError, OSError):  # Windows has no such lock, nor have some file systems of clusters.
        pass


@contextmanager
def _kept(request: BatchRequest, settings: str) -> Iterator[None]:
    """Write down what the run is about, and see that an earlier one in this folder was about the same."""
    out, path = request.out, request.out / results.RUN
    if (out / results.TARGET).exists():
        raise UsageError(f"{public_name(out)}: holds the results of one case; choose another folder with -o.")
    before = results.read_run(out)
    if before is not None and before["settings"] != settings and not request.overwrite:
        raise UsageError(
            f"{public_name(out)}: holds results of other settings or another model; choose another folder with -o, "
            "or add --overwrite to make them again."
        )
    ids = [case.case_id for case in request.cases]
    known = [] if before is None else [each for each in before["cases"] if each not in set(ids)]
    results.write_text(path, report.to_json({"settings": settings, "cases": [*known, *ids]}))
    yield


# --- what is said of a run ----------------------------------------------------------------------------------------


def aggregate(out: Path) -> dict[str, Any]:
    """Read every case's report, and write report.json, cases.csv and failed.txt of the run; returns the first.

    Nothing in them depends on the order, the number of workers, or how often the run was interrupted.
    Raises InputError for a folder that is no batch.
    """
    known = results.read_run(out)
    if known is None:
        raise InputError(f"{public_name(out)}: is not the folder of a batch; give the -o folder of `mafl attack`.")
    rows, models = [], {}
    for case_id in known["cases"]:
        row = _row(out, case_id)
        said = row.pop("model", None)
        if said is not None:
            models[said["sha256"]] = said
        rows.append(row)
    finished = [row for row in rows if row["status"] == "ok"]
    whole = {
        "schema_version": report.SCHEMA_VERSION,
        "tool": {"name": "mafl", "version": __version__},
        "notice": report.NOTICE,
        "command": "attack-batch",
        "settings_hash": known["settings"],
        "models": list(models.values()),
        "cases": rows,
        "aggregate": {
            **{status: sum(row["status"] == status for row in rows) for status in ("ok", "failed", "pending")},
            "cases": len(rows),
            "goal_reached": sum(bool(row["figures"]["goal_reached"]) for row in finished),
            "figures": {
                name: summary_of([row["figures"][name] for row in finished])
                for name in _FIGURES
                if name != "goal_reached"
            },
        },
    }
    results.write_text(out / results.REPORT, report.to_json(whole))
    results.write_text(out / TABLE, _table(rows))
    failures = [f"{row['case_id']}\t{row['error']['message']}\n" for row in rows if row["status"] == "failed"]
    results.write_text(out / FAILURES, "".join(failures))
    return whole


def _row(out: Path, case_id: str) -> dict[str, Any]:
    """What the run says of a case: status "ok", "failed" or "pending"."""
    folder = out / case_id
    failure = results.read_object(folder / results.FAILED)
    said = None if failure is not None else _finished(folder)
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
    error = None if failure is None else failure["error"]
    status = "pending" if failure is None else "failed"
    return {"case_id": case_id, "status": status, "error": error, "outcome": None, "figures": None}


def _finished(folder: Path) -> dict[str, Any] | None:
    """The report of a case; None if there is none, or none that is whole: then it is as if it had not been run."""
    try:
        said = results.read_report(folder)
        case = said["cases"][0]
        _figures(case), _costs(case)
    except (InputError, KeyError, TypeError, ValueError):
        return None
    return said


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


def format_batch(whole: Mapping[str, Any]) -> str:
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


# --- other views --------------------------------------------------------------------------------------------------


def status(out: Path) -> dict[str, Any]:
    """How far a run is, finished or not, from its files.

    Returns: counts of cases "ok", "failed", "running" (a worker is at them) and "pending"; mean seconds of each part of
        a case, passes, and the largest peak memory, over the finished ones.
    Raises InputError for a folder that is no batch.
    """
    known = results.read_run(out)
    if known is None:
        raise InputError(f"{public_name(out)}: is not the folder of a batch; give the -o folder of `mafl attack`.")
    counts = dict.fromkeys(("ok", "failed", "running", "pending"), 0)
    seconds: dict[str, float] = {}
    passes, memory = 0, 0
    for case_id in known["cases"]:
        folder = out / case_id
        if (folder / results.FAILED).is_file():
            counts["failed"] += 1
        elif (said := _finished(folder)) is not None:
            counts["ok"] += 1
            took, passed, peak = _costs(said["cases"][0])
            for part, value in took.items():
                seconds[part] = seconds.get(part, 0.0) + value
            passes += passed
            memory = max(memory, peak)
        else:
            counts["running" if any(folder.glob(".mafl-*")) else "pending"] += 1
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

    Files are linked where the file system can, copied elsewhere.
    Raises: InputError for a folder that is no batch; UsageError when settings differ, a case is done in two of them, or
        the folder holds something already.
    """
    known = []
    for run in runs:
        found = results.read_run(run)
        if found is None:
            raise InputError(f"{public_name(run)}: is not the folder of a batch; give the -o folder of `mafl attack`.")
        known.append(found)
    if len({each["settings"] for each in known}) > 1:
        raise UsageError("the runs have different settings or models: they are not parts of one.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{public_name(out)}: is not empty; choose a new folder with -o.")
    ids = list(dict.fromkeys(case_id for each in known for case_id in each["cases"]))
    there = {case_id: [run for run in runs if _row(run, case_id)["status"] != "pending"] for case_id in ids}
    twice = [case_id for case_id, where in there.items() if len(where) > 1]
    if twice:
        raise UsageError(f"{twice[0]}: is in {len(there[twice[0]])} of the runs; they are not parts of one.")
    results.check_writable(out, overwrite=False)
    for case_id, where in there.items():
        for run in where:
            shutil.copytree(run / case_id, out / case_id, copy_function=_link)
    (out / results.RUN).parent.mkdir()
    results.write_text(out / results.RUN, report.to_json({"settings": known[0]["settings"], "cases": ids}))
    return aggregate(out)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
