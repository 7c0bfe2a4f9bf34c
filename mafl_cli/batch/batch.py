"""Many cases: a run is a folder of results of single cases.

A case is done when its report lies there, which is written last, and its ticket says that it was made from the files,
the model and the settings of today. So whatever ends a run loses the cases in flight and nothing else, and the same
command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from mafl_cli.batch import dask_cluster, local, tables
from mafl_cli.batch.dask_cluster import Cluster
from mafl_cli.batch.local import Job, Row
from mafl_cli.case.problem import Say
from mafl_cli.case.request import AttackRequest
from mafl_cli.config import config_hash
from mafl_cli.errors import DiskFullError, InputError, Interrupted, MaflError, UsageError
from mafl_cli.listing.cases import CaseFiles
from mafl_cli.names import digest, public_name, sha256
from mafl_cli.network import kinds
from mafl_cli.network.card_file import find_card
from mafl_cli.results import read
from mafl_cli.results.batch_report import Batch, CaseList, FailedAttack, Ticket
from mafl_cli.results.files import FAILED, REPORT, RUN, TARGET, TICKET
from mafl_cli.results.folder import check_writable, write_text, written_to
from mafl_cli.results.report import CaseRecord
from mafl_cli.system import interrupts, locks, staging
from mafl_cli.system.records import to_json

# What an attack request has that changes no result, or that is hashed by its contents.
_NOT_HASHED = frozenset(
    (
        *("images", "volumes", "out", "targets", "guides", "starts", "within", "model", "trust", "device"),
        *("overwrite", "size_limit", "recipe", "config"),
    )
)


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """What is asked of a batch.

    attack: what all cases share; images, targets and out are put in for each. part: (index, count) of the cases.

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
) -> Batch:
    """Attack all cases of this part that are not done yet; returns what `batch.tables.aggregate` says then.

    on_jobs: called with the number of cases that are left to do. on_row: with the row (see `batch.local.run`) of each.
    Raises: UsageError if another run is at this part of the folder, or the folder is of other settings; Interrupted,
        or DiskFullError, after everything that is known has been written, as far as it can be: cases that were not
        finished are as if they had not been begun.
    """
    settings = request_hash(request.attack)
    if request.cluster is not None:
        dask_cluster.check(request.cluster)
    try:
        with part_held(request.out, request.part):
            claim(request.out, settings, request.cases, overwrite=request.overwrite)
            mine = request.cases[request.part[0] :: request.part[1]]
            jobs: list[Job] = []
            rows: dict[str, tables.KnownRow] = {}
            try:
                known = _plan(request, mine, settings, jobs, rows, on_row)
                on_jobs(len(jobs))
                if known:
                    say(f"{known} of {len(mine)} cases were done before")
                _attack(request, jobs, on_row)
            except UsageError:  # Nothing has begun.
                raise
            except BaseException:
                _sweep(request.out, mine)
                with suppress(MaflError):  # What ended the run is what the user must know.
                    tables.aggregate(request.out, rows)
                raise
            _sweep(request.out, mine)
            return tables.aggregate(request.out, rows)
    except KeyboardInterrupt as exc:
        said = "interrupted; what is finished is kept, and the same command goes on from there."
        raise Interrupted(said, interrupts.exit_code(exc)) from exc


def _attack(request: BatchRequest, jobs: Sequence[Job], on_row: Callable[[str, Row], None]) -> None:
    def done(job: Job, row: Row) -> None:
        if row.error is not None and row.error.type == DiskFullError.__name__:
            raise DiskFullError(
                f"{public_name(request.out)}: no space left on the disk; make room: what is finished is kept, and the "
                "same command goes on from there."
            )
        settle(request.out / job.case_id, job, row)
        on_row(job.case_id, row)

    if request.cluster is not None:
        dask_cluster.run(jobs, cluster=request.cluster, out=request.out, threads=request.threads, on_row=done)
    else:
        local.run(jobs, workers=request.workers, threads=request.threads, timeout=request.case_timeout, on_row=done)


def request_hash(attack: AttackRequest) -> str:
    """A hash of everything that all cases share and that may change results; neither the places of files nor the
    device."""
    plain = {key: value for key, value in vars(attack).items() if key not in _NOT_HASHED}
    mask = attack.recipe.mask if attack.recipe else None
    files_of_all = (*attack.targets, *attack.guides, *attack.starts)
    shared = (*files_of_all, *(path for path in (attack.within, mask) if path is not None))
    # Hashes of their contents: touched or copied, they are the same.
    files = [digest(path) for path in shared]
    chosen = {key: asdict(value) if hasattr(value, "__dataclass_fields__") else value for key, value in plain.items()}
    recipe = attack.recipe.text if attack.recipe else None
    card, model = find_card(attack.model, attack.opening), kinds.digest(attack.model, attack.opening)
    return config_hash(attack.config, asdict(card), json.loads(json.dumps(chosen, default=str)), recipe, files, model)


# --- which cases --------------------------------------------------------------------------------------------------


def _plan(
    request: BatchRequest,
    cases: Sequence[CaseFiles],
    settings: str,
    jobs: list[Job],
    rows: dict[str, tables.KnownRow],
    on_row: Callable[[str, Row], None],
) -> int:
    """Put the jobs that are left into `jobs`, and what is read of done cases into `rows`; returns how many cases need
    no job."""
    known = 0
    for case in cases:
        folder = request.out / case.case_id
        staging.recover(folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError(
                f"{public_name(request.out)}: a file lies where the results of {case.case_id} belong: move it, or "
                "choose another folder with `out`."
            )
        ticket = Ticket(request=settings, files=tuple(fingerprint(path) for path in files_of(case)))
        if case.problem is not None:
            row = Row.failed(InputError.__name__, case.problem)
            settle(folder, Job(case.case_id, request.attack, ticket), row)
            on_row(case.case_id, row)
        elif (row_before := _row_if_done(folder, ticket, case, overwrite=request.overwrite)) is not None:
            # A run that was killed between the two may have left word of an earlier failure.
            (folder / FAILED).unlink(missing_ok=True)
            rows[case.case_id] = row_before
            known += 1
        elif not request.retry_failed and _has_failed(folder, ticket):
            known += 1
        else:
            jobs.append(Job(case.case_id, request_of(case, request.attack, folder), ticket))
    return known


def request_of(case: CaseFiles, attack: AttackRequest, folder: Path) -> AttackRequest:
    """What is asked of one case. attack: what all share. folder: for its results."""
    return replace(
        attack,
        images=case.images,
        targets=case.targets or attack.targets,
        recipe=None if case.targets else attack.recipe,
        guides=case.guides or attack.guides,
        out=folder,
        overwrite=True,
    )


def files_of(case: CaseFiles) -> tuple[Path, ...]:
    """Every file of a case."""
    return (*case.images, *case.targets, *case.guides)


def fingerprint(path: Path) -> str:
    """A hash of size, time and number on the disk of a file, or of all files below a folder, without reading them.

    Size and time alone would not do: files out of one archive often have both in common. Empty if there is nothing.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    try:
        stats = [file.stat() for file in files]
    except OSError:
        return ""
    said = repr([(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats])
    return hashlib.sha256(said.encode()).hexdigest()


def _row_if_done(folder: Path, ticket: Ticket, case: CaseFiles, *, overwrite: bool = False) -> tables.KnownRow | None:
    """The row of a case whose results are those of today; None if they are not, or there are none.

    Only this is kept of its report: a batch may have ten thousand.
    Raises UsageError for results of another version, unless `overwrite`.
    """
    before = read.read_record(Ticket, folder / TICKET)
    if before is None or before.request != ticket.request:
        return None
    mark = tables.report_mark(folder)
    try:
        said = read.finished(folder)
    except read.OtherVersion as exc:
        if overwrite:
            return None
        raise UsageError(f"{exc.problem}: choose another folder, or overwrite the results.") from exc
    if said is None or mark is None or not _are_of_today(folder, said.case, before, ticket, case):
        return None
    return tables.KnownRow(tables.finished_row(case.case_id, said), mark)


def _are_of_today(folder: Path, found: CaseRecord, before: Ticket, ticket: Ticket, case: CaseFiles) -> bool:
    """Whether the files that a report names lie there, and were made of the inputs of today. before: their ticket."""
    # For a series its folder alone: a data set may have a million slices.
    if not all((folder / PurePosixPath(file.name).parts[0]).exists() for file in found.files):
        return False
    if before.files == ticket.files:
        return True
    # Copied or touched: the same bytes are the same files.
    recorded = [each.sha256 for each in found.inputs]
    recorded += [each.sha256 for each in found.target.files] if case.targets else []
    now = [sha256(path) if path.is_file() else "" for path in (*case.images, *case.targets)]
    return len(before.files) == len(ticket.files) and not case.guides and recorded == now


def _has_failed(folder: Path, ticket: Ticket) -> bool:
    found = read.read_record(FailedAttack, folder / FAILED)
    return found is not None and found.ticket == ticket


def settle(folder: Path, job: Job, row: Row) -> None:
    """Write down a failure; a success needs no word beside its results."""
    if row.error is None:
        (folder / FAILED).unlink(missing_ok=True)
        return
    said = FailedAttack(case_id=job.case_id, error=row.error, ticket=job.ticket)
    with written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FAILED, to_json(said))
        # What an earlier run has left is not the result of this one.
        (folder / REPORT).unlink(missing_ok=True)


def _sweep(out: Path, cases: Sequence[CaseFiles]) -> None:
    """Take away what killed workers, and an interrupt of this process, have left half made."""
    staging.recover(out)
    for case in cases:
        folder = out / case.case_id
        staging.recover(folder)
        with suppress(OSError):
            folder.rmdir()


# --- the folder ---------------------------------------------------------------------------------------------------


@contextmanager
def part_held(out: Path, part: tuple[int, int]) -> Iterator[None]:
    """Hold this part of the folder. Raises UsageError if another process has it, or parts of another number."""
    check_writable(out, overwrite=True)
    own = (out / RUN).parent
    index, count = part
    parts = own / f"parts-of-{count}.lock"
    with ExitStack() as stack:
        try:
            with written_to(out):
                own.mkdir(exist_ok=True)
                stack.enter_context(locks.held(own / f"part-{index}-of-{count}.lock"))
                stack.enter_context(locks.held(parts, shared=True))
                # Parts of another number have some of the same cases.
                for path in own.glob("parts-of-*.lock"):
                    if path != parts:
                        with locks.held(path):
                            pass
        except BlockingIOError as exc:
            raise UsageError(
                f"{public_name(out)}: another mafl process is using it: wait, or choose another part or folder."
            ) from exc
        yield


def claim(out: Path, settings: str, cases: Sequence[CaseFiles], *, overwrite: bool) -> None:
    """Write down what the run is about; raises UsageError if an earlier one in this folder was about something else."""
    path = out / RUN
    if (out / TARGET).exists():
        raise UsageError(f"{public_name(out)}: holds the results of one case: choose another folder with `out`.")
    before = read.read_run(out)
    if before is not None and before.settings != settings and not overwrite:
        raise UsageError(
            f"{public_name(out)}: holds results of other settings or another model: choose another folder with `out`, "
            "or add `overwrite` to make them again."
        )
    ids = [case.case_id for case in cases]
    known = [] if before is None else [each for each in before.cases if each not in set(ids)]
    write_text(path, to_json(CaseList(settings=settings, cases=(*known, *ids))))
