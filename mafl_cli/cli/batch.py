"""What `mafl attack` does with several scans: the list, and the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mafl_cli.cli.console import Voice, deliver, progress_of_cases, show_text
from mafl_cli.cli.flags import in_flags
from mafl_cli.errors import GateError, PartialError, UsageError
from mafl_cli.names import public_name

if TYPE_CHECKING:
    from mafl_cli.batch.batch import BatchRequest
    from mafl_cli.batch.local import Row
    from mafl_cli.listing.cases import CaseFiles


def show_cases(found: Sequence[CaseFiles], several: bool) -> None:
    if not several:
        raise UsageError("--list shows the cases of a batch: this is one scan.")
    for case in found:
        show_text(f"{case.case_id}\t{','.join(map(public_name, case.images))}\t{in_flags(case.problem or '')}".rstrip())


def attack_all(
    request: BatchRequest, json_file: str | None, voice: Voice, *, resume: bool, require_success: bool
) -> None:
    """Attack every case; what goes wrong with some of them is said, and ends in exit code 6."""
    from mafl_cli.batch import batch, tables

    index, count = request.part
    if not resume and any((request.out / case.case_id).exists() for case in request.cases[index::count]):
        raise UsageError(
            f"{public_name(request.out)}: already holds results, and --no-resume was given: choose another "
            "folder with -o."
        )
    if count > 1:
        voice.say(f"part {index} of {count}")
    done: list[str] = []
    with progress_of_cases(voice, "case") as bar:

        def ended(case_id: str, row: Row) -> None:
            done.append(case_id)
            what = "done" if row.error is None else f"failed: {row.error.message}"
            for line in row.said:
                voice.detail(f"{case_id}: {line}", case_id=case_id)
            facts = {"case_id": case_id, "status": row.status, "seconds": row.seconds}
            bar.write(lambda: voice.say(f"{case_id}: {what} ({row.seconds:.1f} s)", **facts))
            bar.show(len(done), None)

        whole = batch.run_batch(
            request,
            say=voice.say,
            on_jobs=lambda count: bar.show(0, count),
            on_row=ended,
        )
    deliver(whole, tables.format_run(whole), json_file, voice)
    counts = whole.aggregate
    if counts.failed:
        raise PartialError(f"{counts.failed} of {counts.cases} cases failed; failed.txt says why.")
    if require_success and counts.goal_reached < counts.cases:
        raise GateError(f"--require-success: the goal was reached in {counts.goal_reached} of {counts.cases} cases.")
