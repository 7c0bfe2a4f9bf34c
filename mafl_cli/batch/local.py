"""Jobs on this machine, each worker a process of its own: what kills one job kills no other, and not the run.

Workers are spawned, load the model once, and take one job after the other. A job that raises is a failed row; so is
one whose process dies (a codec crashes, memory runs out) or takes too long; then its worker is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from mafl_cli.case.request import AttackRequest
from mafl_cli.errors import DiskFullError, MaflError, disk_full, is_disk_full, place_of
from mafl_cli.results.batch_report import Ticket
from mafl_cli.results.envelope import Failure
from mafl_cli.system import interrupts
from mafl_cli.system.quiet import libraries


@dataclass(frozen=True)
class Row:
    """What became of a job. said: lines for the user."""

    status: Literal["ok", "failed"]
    error: Failure | None
    said: tuple[str, ...]
    seconds: float

    @staticmethod
    def failed(kind: str, message: str, *, said: Sequence[str] = (), seconds: float = 0.0) -> Row:
        """kind: name of the error's class."""
        return Row("failed", Failure(type=kind, message=message), tuple(said), round(seconds, 3))


@dataclass(frozen=True)
class Job:
    """One case. ticket: see `results.files.TICKET`. read_ahead: files of the job that is likely next."""

    case_id: str
    request: AttackRequest
    ticket: Ticket
    read_ahead: tuple[Path, ...] = ()


def run(
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int | None,
    timeout: float | None,
    on_row: Callable[[Job, Row], None],
) -> None:
    """Do all jobs, `workers` at a time.

    threads: of each worker; None shares the cores out. timeout: seconds that a job may take, None for any.
    on_row: called in this process, once for each job.
    Raises: MaflError when a worker cannot even start. After any error, an interrupt included, no worker is left.
    """
    context = multiprocessing.get_context("spawn")
    each = threads or max(1, (os.cpu_count() or 1) // workers)
    waiting = deque(jobs)
    crew: list[_Worker] = []
    try:
        for number in range(min(workers, len(jobs))):
            crew.append(_Worker.hire(context, number, each))
        while any(worker.busy for worker in crew) or waiting:
            _step(context, crew, waiting, each, timeout, on_row)
    finally:
        for worker in crew:
            worker.dismiss()


def attack_one(job: Job) -> Row:
    """Attack one case; whatever goes wrong is in the row."""
    from mafl_cli.case.pipeline import run_attack

    def attack(say: Callable[[str], None]) -> None:
        with libraries():
            run_attack(job.request, say=say, ticket=job.ticket)

    return guarded(job.case_id, attack)


def guarded(case_id: str, work: Callable[[Callable[[str], None]], None]) -> Row:
    """Do what is to be done for a case; whatever goes wrong is in the row.

    work: receives what takes lines for the user.
    """
    said: list[str] = []
    started = time.perf_counter()

    def failed(kind: str, message: str) -> Row:
        return Row.failed(kind, message, said=said, seconds=time.perf_counter() - started)

    try:
        work(said.append)
    except MaflError as exc:
        return failed(type(exc).__name__, str(exc))
    except MemoryError:
        return failed("MemoryError", f"{case_id}: the memory of this machine is too small for it.")
    except Exception as exc:
        if is_disk_full(exc):
            return failed(DiskFullError.__name__, str(disk_full(case_id)))
        # Not its message: that may quote a header or a path, and logs are passed on.
        return failed(type(exc).__name__, f"{case_id}: internal error ({type(exc).__name__}{place_of(exc)}).")
    return Row("ok", None, tuple(said), round(time.perf_counter() - started, 3))


# --- the parent's side --------------------------------------------------------------------------------------------


_MOST_TRIES = 3
"""New workers for one that ended before it had begun: one may be killed, but not each."""


@dataclass
class _Worker:
    number: int
    process: Any
    pipe: Connection
    tries: int
    """How many before it, in a row, ended before they had begun."""
    ready: bool = False
    job: Job | None = None
    since: float = field(default=0.0)

    @property
    def busy(self) -> bool:
        return self.job is not None

    @staticmethod
    def hire(context: Any, number: int, threads: int, tries: int = 0) -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, number, threads), daemon=True)
        if os.name == "posix":
            # It would unblock interrupts when it starts, which the first process would make it do.
            resource_tracker.ensure_running()
        # A terminal interrupts all processes; one that is started here leaves that to this one, from the beginning.
        with interrupts.put_off():
            process.start()
        theirs.close()
        return _Worker(number, process, ours, tries)

    def dismiss(self) -> None:
        """End the process, whatever it does."""
        if self.process.is_alive() and self.ready and not self.busy:
            with suppress(OSError):
                self.pipe.send(None)
            self.process.join(2)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def _step(
    context: Any,
    crew: list[_Worker],
    waiting: deque[Job],
    threads: int,
    timeout: float | None,
    on_row: Callable[[Job, Row], None],
) -> None:
    """Hand out jobs, then wait until a worker says something, dies, or is late."""
    for place, worker in enumerate(crew):
        if not worker.busy and not worker.process.is_alive():
            # Between two jobs, and before the first, nothing is lost with it.
            worker.dismiss()
            crew[place] = _Worker.hire(context, worker.number, threads, 0 if worker.ready else worker.tries + 1)
        elif worker.ready and not worker.busy and waiting:
            following = waiting.popleft()
            ahead = waiting[0].request.images if waiting else ()
            worker.job, worker.since = following, time.monotonic()
            with suppress(OSError):  # One that ends at this moment is heard of below.
                worker.pipe.send(replace(following, read_ahead=ahead))
    left = [worker.since + timeout - time.monotonic() for worker in crew if worker.busy] if timeout else []
    woken = wait([each for worker in crew for each in (worker.pipe, worker.process.sentinel)], min(left, default=None))
    for place, worker in enumerate(crew):
        late = timeout is not None and worker.busy and time.monotonic() - worker.since >= timeout
        row = None
        if worker.pipe in woken or worker.process.sentinel in woken:
            row = _heard(worker)
            if row is None:
                continue
        elif late:
            message = f"took longer than {timeout:g} s (`case_timeout`)"
            row = _ended(worker, "TimeoutError", message)
        else:
            continue
        job, worker.job = worker.job, None
        if not worker.process.is_alive() or late:
            worker.dismiss()
            crew[place] = _Worker.hire(context, worker.number, threads)
        if job is not None:
            on_row(job, row)


def _heard(worker: _Worker) -> Row | None:
    """The row of the worker's job; None when it only said that it is ready, or ended while it had nothing to do."""
    try:
        # A process that has ended may have left its last words in the pipe.
        said = worker.pipe.recv() if worker.pipe.poll() else None
    except (EOFError, OSError):
        said = None
    if said == "ready":
        worker.ready = True
        return None
    if said is not None:
        row: Row = said
        return row
    worker.process.join()
    if not worker.ready and worker.tries >= _MOST_TRIES:
        raise MaflError(f"a worker process ended before it had begun ({_cause(worker.process.exitcode)}).")
    if not worker.busy:
        return None
    return _ended(worker, "Crashed", f"its process ended ({_cause(worker.process.exitcode)})")


def _ended(worker: _Worker, kind: str, message: str) -> Row:
    assert worker.job is not None
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    return Row.failed(kind, f"{worker.job.case_id}: {message}.", seconds=time.monotonic() - worker.since)


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


# --- the worker's side --------------------------------------------------------------------------------------------


def _serve(pipe: Connection, number: int, threads: int) -> None:
    """Do jobs until None comes, or nobody is there any more."""
    # The parent hears of an interrupt and ends its workers.
    interrupts.ignore()
    threading.Thread(target=_watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    with suppress(EOFError, OSError):  # Nobody is there any more.
        pipe.send("ready")
        while (given := pipe.recv()) is not None:
            threading.Thread(target=_read_ahead, args=(given.read_ahead,), daemon=True).start()
            pipe.send(attack_one(replace(given, request=_placed(given.request, number))))


def _placed(request: AttackRequest, number: int) -> AttackRequest:
    """With several GPUs, each worker has its own."""
    import torch

    if request.device in ("auto", "cuda", "gpu") and torch.cuda.device_count() > 1:
        return replace(request, device=f"cuda:{number % torch.cuda.device_count()}")
    return request


def _watch() -> None:
    """End with the parent, however it ends: nobody would take the results, and another run may be at the same case."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # At once, and where the parent has ended before this process had begun, too.
    parent.join()
    os._exit(1)


def _read_ahead(paths: Sequence[Path]) -> None:
    """Bring the next case into the system's cache while this one is attacked; slow shares are read meanwhile."""
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            with suppress(OSError), file.open("rb") as stream:
                while stream.read(1 << 20):
                    pass
