"""Kills at any moment: of a batch, of one of its workers, of a single `--overwrite`; then the same command again.

Nothing that was finished may be lost or made again, no file may be half, and the next start takes away what the killed
one has left. A moment is a point in time, or the n-th change of the file system below the results.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import stock
from fuzzing.drive import Fuzz
from fuzzing.forks import Child, Ended, Room
from fuzzing.judge import Seen, last_line
from fuzzing.stock import Stock

_CASES = 4
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_CHANGES = (
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)


@dataclass(frozen=True)
class Moment:
    """When a process is to end. after: seconds, or else change: the n-th change of a file below the results."""

    signal: int
    after: float | None
    change: int
    of_worker: bool


def kills(fuzz: Fuzz, count: int, until: float) -> None:
    """`count` kills, a third each of a batch, of a worker, and of a single run that replaces another."""
    seconds, changes = dict[str, float](), dict[str, int]()
    for number in range(count):
        if time.monotonic() > until:
            return
        rng = Random(f"{fuzz.seed} kill {number}")
        kind = ("batch", "worker", "overwrite")[number % 3]
        if kind not in seconds:
            seconds[kind], changes[kind] = _undisturbed(fuzz, kind)
        by_time = rng.random() < 0.4
        moment = Moment(
            signal.SIGKILL if kind == "worker" and rng.random() < 0.7 else rng.choice(_SIGNALS),
            rng.uniform(0, seconds[kind]) if by_time else None,
            rng.randint(1, changes[kind]),
            kind == "worker",
        )
        room = Room(fuzz.work / f"kill-{number}").make()
        seen, command, message = (_overwrite if kind == "overwrite" else _batch)(fuzz, room, moment)
        for each in seen:
            when = f"{moment.after:.2f} s" if by_time else f"change {moment.change}"
            fuzz.found(f"kill {kind}", each, message, room, command, f"{signal.Signals(moment.signal).name} at {when}")
        shutil.rmtree(room.root, ignore_errors=True)


# --- the command --------------------------------------------------------------------------------------------------


def _place(room: Room, good: Stock, kind: str) -> tuple[str, ...]:
    """Lay out the inputs; the command."""
    model = str(good.root / "flat.ts")
    if kind == "overwrite":
        shutil.copytree(good.root / "run", room.place / "out")
        scan = str(good.root / "int16.nii")
        return ("attack", scan, "-t", "shift:1:0,2,0mm", "-m", model, "-o", "out", "--steps", "2", "--overwrite", "-q")
    (room.place / "scans").mkdir()
    for number in range(_CASES):
        good.copy("int16.nii" if number % 2 else "float32.nii", room.place / "scans" / f"case{number}.nii")
    workers = ("--workers", "2", "--threads", "1")
    return ("attack", "scans", "-t", "erase:1", "-m", model, "-o", "out", "--steps", "1", "-q", *workers)


def _run(
    fuzz: Fuzz, room: Room, command: Sequence[str], moment: Moment | None, count_to: Path | None = None
) -> tuple[Child, Ended]:
    def work() -> int:
        workers_by_fork()
        _watch_changes(room, moment, count_to)
        return stock.run_command(command)

    child = Child(room, work, replace(fuzz.limits, wall_s=600.0))
    if moment is not None and moment.after is not None:
        time.sleep(moment.after)
        if moment.of_worker:
            for pid in child.children()[-1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, moment.signal)
        else:
            with suppress(ProcessLookupError):
                os.kill(child.pid, moment.signal)
    return child, child.wait()


def workers_by_fork() -> None:
    """Workers are spawned, which takes seconds of imports each; here they are forks with everything loaded."""
    real = multiprocessing.get_context

    def forking(method: str | None = None) -> Any:
        return real("fork" if method == "spawn" else method)

    multiprocessing.get_context = forking


def _watch_changes(room: Room, moment: Moment | None, count_to: Path | None) -> None:
    """Count changes below the room's place; at the moment's, end this process. Only one process is ended."""
    first, counted, busy = os.getpid(), [0], [False]
    place, taken = str(room.place), str(room.root / "taken")

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if busy[0] or event not in _CHANGES or (event == "open" and not _writes(arguments)):
            return
        # The interpreter calls this for every change; what it does itself must not be counted.
        busy[0] = True
        try:
            if not any(_below(each, place) for each in arguments[:2]):
                return
            mine = moment is None or (os.getpid() != first) == moment.of_worker
            counted[0] += mine
            if count_to is not None:
                with open(count_to, "a") as file:  # noqa: PTH123
                    file.write(f"{os.getpid()}\n")
            if moment is not None and moment.after is None and mine and counted[0] == moment.change:
                with suppress(FileExistsError):
                    os.close(os.open(taken, os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), moment.signal)
        finally:
            busy[0] = False

    sys.addaudithook(heard)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _below(path: Any, place: str) -> bool:
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    return isinstance(path, str) and (not path.startswith("/") or path.startswith(place))


def _undisturbed(fuzz: Fuzz, kind: str) -> tuple[float, int]:
    """Seconds that the command takes, and how many changes the process that will be killed makes."""
    room = Room(fuzz.work / f"kill-{kind}").make()
    command, log = _place(room, fuzz.stock, kind), room.root / "changes"
    started = time.monotonic()
    child, ended = _run(fuzz, room, command, None, log)
    if ended.code != 0:
        raise RuntimeError(f"the command that is to be killed fails by itself: {room.stderr.read_text()[-500:]}")
    took = time.monotonic() - started
    pids = log.read_text().split()
    own = [pid for pid in pids if (int(pid) != child.pid) == (kind == "worker")]
    shutil.rmtree(room.root, ignore_errors=True)
    return took, max(1, len(own) // (2 if kind == "worker" else 1))


# --- what must hold -----------------------------------------------------------------------------------------------


def whole(run: Path) -> str | None:
    """The hash of the report of a run whose files are all there and as the report says; None otherwise."""
    try:
        raw = (run / "report.json").read_bytes()
        files = json.loads(raw)["cases"][0]["files"]
        if all(hashlib.sha256((run / each["name"]).read_bytes()).hexdigest() == each["sha256"] for each in files):
            return hashlib.sha256(raw).hexdigest()
    except (OSError, ValueError, KeyError):
        pass
    return None


def _leftovers(room: Room) -> list[Seen]:
    hidden = [path for folder in (room.place, room.temporary) for path in folder.rglob(".mafl-*")]
    return [Seen("left behind", str(hidden[0].relative_to(room.root)))] if hidden else []


def _end(room: Room, child: Child, ended: Ended, moment: Moment) -> list[Seen]:
    """The killed one may not complain in tracebacks, nor leave processes behind."""
    seen = []
    # One that is killed at its very start has said nothing anywhere.
    said = room.stderr.read_text(errors="replace") if room.stderr.exists() else ""
    if "Traceback" in said:
        seen.append(Seen("traceback", said.rstrip().rpartition("\n")[2]))
    if child.outlived:
        seen.append(Seen("process left"))
    if ended.code == 1:
        seen.append(Seen("exit 1", last_line(room)))
    elif not moment.of_worker and ended.code not in (None, 0, 128 + moment.signal):
        seen.append(Seen("exit code", f"{ended.code}: {last_line(room)}"))
    if not moment.of_worker and moment.signal != signal.SIGKILL and (left := list(room.temporary.iterdir())):
        seen.append(Seen("left in temporary", left[0].name))
    for path in room.temporary.iterdir():
        shutil.rmtree(path, ignore_errors=True)
    return seen


Found = tuple[list[Seen], Sequence[str], str]


def _batch(fuzz: Fuzz, room: Room, moment: Moment) -> Found:
    command = _place(room, fuzz.stock, "batch")
    child, ended = _run(fuzz, room, command, moment)
    part = fuzz.part("kill worker" if moment.of_worker else "kill batch")
    _count(part, ended, room, moment)
    seen, message = _end(room, child, ended, moment), last_line(room)
    done = _finished(room)
    again = (*command, "--retry-failed") if moment.of_worker else command
    child, ended = _run(fuzz, room, again, None)
    part.peak_bytes = max(part.peak_bytes, ended.peak_bytes)
    if ended.code != 0:
        seen.append(Seen("not resumed", f"exit {ended.code}: {last_line(room)}"))
    now = _finished(room)
    lost = [name for name, report in done.items() if now.get(name) != report]
    if lost:
        seen.append(Seen("lost", f"{len(lost)} finished cases, {lost[0]} among them"))
    if ended.code == 0 and len(now) != _CASES:
        seen.append(Seen("not resumed", f"{len(now)} of {_CASES} cases are whole"))
    return [*seen, *_leftovers(room)], command, message or last_line(room)


def _finished(room: Room) -> dict[str, str]:
    return {path.name: found for path in sorted(room.place.glob("out/case*")) if (found := whole(path)) is not None}


def _overwrite(fuzz: Fuzz, room: Room, moment: Moment) -> Found:
    command = _place(room, fuzz.stock, "overwrite")
    child, ended = _run(fuzz, room, command, moment)
    part = fuzz.part("kill overwrite")
    _count(part, ended, room, moment)
    seen, message = _end(room, child, ended, moment), last_line(room)
    if whole(room.place / "out") is None and not _readable(fuzz, room):
        seen.append(Seen("lost", "neither the old nor the new report is whole"))
    child, ended = _run(fuzz, room, command, None)
    part.peak_bytes = max(part.peak_bytes, ended.peak_bytes)
    if ended.code != 0 or whole(room.place / "out") is None:
        seen.append(Seen("not resumed", f"exit {ended.code}: {last_line(room)}"))
    return [*seen, *_leftovers(room)], command, message or last_line(room)


def _readable(fuzz: Fuzz, room: Room) -> bool:
    """Whether the next command that reads the run finds one of the two, whole."""
    _, ended = _run(fuzz, room, ("evaluate", "out", "-q"), None)
    return ended.code == 0 and whole(room.place / "out") is not None


def _count(part: Any, ended: Ended, room: Room, moment: Moment) -> None:
    killed = moment.after is not None or (room.root / "taken").exists()
    part.kills += killed
    part.count(ended)
