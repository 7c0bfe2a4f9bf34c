"""What `mafl attack` does with several scans: the list, the cluster, and the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mafl_cli.cli.console import Voice, deliver, progress_of_cases, show_text
from mafl_cli.errors import GateError, PartialError, UsageError
from mafl_cli.names import public_name

if TYPE_CHECKING:
    from mafl_cli.batch.dask_cluster import Cluster
    from mafl_cli.case.request import AttackRequest
    from mafl_cli.listing.cases import CaseFiles


@dataclass(frozen=True)
class BatchOptions:
    """The options of a batch."""

    cases: Sequence[CaseFiles]
    workers: int
    threads: int | None
    cluster: Cluster | None
    part: tuple[int, int]
    timeout: float | None
    resume: bool
    retry_failed: bool
    require_success: bool


def show_cases(found: Sequence[CaseFiles], several: bool) -> None:
    if not several:
        raise UsageError("--list shows the cases of a batch; this is one scan.")
    for case in found:
        show_text(f"{case.case_id}\t{','.join(map(public_name, case.images))}\t{case.problem or ''}".rstrip())


def dask_for(
    engine: str, scheduler: str | None, slurm: Path | None, workers: int, timeout: float | None
) -> Cluster | None:
    """The Dask cluster that was asked for."""
    if engine == "local":
        if scheduler is not None or slurm is not None:
            raise UsageError("--scheduler and --slurm are for --engine dask.")
        return None
    if timeout is not None:
        raise UsageError("--case-timeout is for --engine local; give your scheduler a limit of its own.")
    if (scheduler is None) == (slurm is None):
        raise UsageError(
            "--engine dask needs either --scheduler (an address or a scheduler file) or --slurm FILE.toml."
        )
    from mafl_cli.batch.dask_cluster import Cluster

    return Cluster(scheduler=scheduler, slurm=slurm, workers=workers)


def attack_all(options: BatchOptions, request: AttackRequest, json_file: str | None, voice: Voice) -> None:
    """Attack every case; what goes wrong with some of them is said, and ends in exit code 6."""
    from mafl_cli.batch import batch, tables
    from mafl_cli.listing.cases import redacted

    found = redacted(options.cases) if request.redact else options.cases
    mine = found[options.part[0] :: options.part[1]]
    if not options.resume and any((request.out / case.case_id).exists() for case in mine):
        raise UsageError(f"{request.out.name}: already holds results, and --no-resume was given.")
    if options.part[1] > 1:
        voice.say(f"part {options.part[0]} of {options.part[1]}")
    seen = {"done": 0}
    with progress_of_cases(voice, "case") as bar:

        def ended(case_id: str, row: Mapping[str, Any]) -> None:
            seen["done"] += 1
            what = "done" if row["status"] == "ok" else f"failed: {row['error']['message']}"
            for line in row["said"]:
                voice.detail(f"{case_id}: {line}", case_id=case_id)
            facts = {"case_id": case_id, "status": row["status"], "seconds": row["seconds"]}
            bar.write(lambda: voice.say(f"{case_id}: {what} ({row['seconds']:.1f} s)", **facts))
            bar.show(seen["done"], None)

        whole = batch.run_batch(
            batch.BatchRequest(
                cases=tuple(found),
                attack=request,
                out=request.out,
                workers=options.workers,
                threads=options.threads,
                cluster=options.cluster,
                part=options.part,
                case_timeout=options.timeout,
                retry_failed=options.retry_failed,
                overwrite=request.overwrite,
            ),
            say=voice.say,
            on_jobs=lambda count: bar.show(0, count),
            on_row=ended,
        )
    deliver(whole, tables.format_run(whole), json_file, voice)
    counts = whole["aggregate"]
    if counts["failed"]:
        raise PartialError(f"{counts['failed']} of {counts['cases']} cases failed; failed.txt says why.")
    if options.require_success and counts["goal_reached"] < counts["cases"]:
        raise GateError(
            f"--require-success: the goal was reached in {counts['goal_reached']} of {counts['cases']} cases."
        )
