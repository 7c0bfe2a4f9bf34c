"""Disks that are full, or nearly: results, batches, tables and pictures on a small file system, streams on /dev/full.

The small file system is a tmpfs that only a child sees, in a name space of its own; where none can be made, this part
is left out and says so.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from fuzzing import stock
from fuzzing.drive import Fuzz
from fuzzing.forks import Child, Ended, Room, Streams
from fuzzing.interrupts import whole, workers_by_fork
from fuzzing.judge import Seen, last_line
from fuzzing.stock import Stock

_NEW_USER, _NEW_MOUNTS, _PRIVATE, _REMOUNT = 0x10000000, 0x00020000, 1 << 18 | 1 << 14, 32
_ENOUGH = 64 * 2**20
_LIBC = ctypes.CDLL(None, use_errno=True)

Scene = Callable[["Stage"], list[Seen]]


class Stage:
    """A small disk at `room.place`/disk, and commands that work on it. Lives in a child of its own."""

    def __init__(self, fuzz: Fuzz, room: Room, rng: Random) -> None:
        self.fuzz, self.room, self.rng = fuzz, room, rng
        self.disk = room.place / "disk"
        self.commands: list[Sequence[str]] = []
        self.ends: list[Ended] = []

    @property
    def stock(self) -> Stock:
        return self.fuzz.stock

    def run(self, *command: str, stdout: Path | None = None, stderr: Path | None = None) -> tuple[Ended, str]:
        """How it ended, and its last words."""
        room = Room(self.room.root / f"run{len(self.commands)}").make()
        self.commands.append(command)

        def work() -> int:
            os.chdir(self.room.place)
            workers_by_fork()
            return stock.run_command(command)

        ended = Child(room, work, self.fuzz.limits, prepare=lambda: Streams(stdout=stdout, stderr=stderr)).wait()
        self.ends.append(ended)
        self.room.stderr.write_bytes(room.stderr.read_bytes() if room.stderr.exists() else b"")
        return ended, last_line(room)

    def size(self, bytes_: int) -> None:
        """Make the disk so large, whatever is on it."""
        options = f"size={max(bytes_, 4096)}".encode()
        if _LIBC.mount(b"tmpfs", os.fsencode(self.disk), b"tmpfs", _REMOUNT, options):
            raise OSError(ctypes.get_errno(), "remount")

    def used(self) -> int:
        return sum(path.lstat().st_blocks * 512 for path in self.disk.rglob("*") if path.is_file()) + 4096


def disks(fuzz: Fuzz, count: int, until: float) -> None:
    """`count` scenes in turn, each with another amount of space."""
    if not _possible(fuzz):
        fuzz.say("disk: no small file system can be made here (root or user name spaces are needed); left out")
        return
    names = list(_SCENES)
    for number in range(count):
        if time.monotonic() > until:
            return
        name = names[number % len(names)]
        room = Room(fuzz.work / f"disk-{number}").make()

        def play(name: str = name, number: int = number, room: Room = room) -> int:
            stage = Stage(fuzz, room, Random(f"{fuzz.seed} disk {number}"))
            with _small_disk(stage.disk):
                seen = _SCENES[name](stage)
                said = (seen, stage.commands, stage.ends)
                (room.root / "played").write_bytes(pickle.dumps(said))
            return 0

        Child(room, play, fuzz.limits).wait()
        part = fuzz.part("disk")
        if not (room.root / "played").exists():
            fuzz.found("disk", Seen("not played", name), room.stderr.read_text(errors="replace")[-300:], room, (), name)
            continue
        seen, commands, ends = pickle.loads((room.root / "played").read_bytes())
        part.inputs += 1
        for each in ends:
            part.ran(each)
        for each in seen:
            fuzz.found("disk", each, last_line(room), room, commands[-1], name)
        shutil.rmtree(room.root, ignore_errors=True)


def _possible(fuzz: Fuzz) -> bool:
    room = Room(fuzz.work / "disk-try").make()

    def work() -> int:
        with _small_disk(room.place / "disk"):
            return 0

    ended = Child(room, work, fuzz.limits).wait()
    shutil.rmtree(room.root, ignore_errors=True)
    return ended.code == 0


@contextmanager
def _small_disk(place: Path) -> Iterator[None]:
    """Mount a tmpfs that nobody else sees."""
    if _LIBC.unshare(_NEW_MOUNTS) and _LIBC.unshare(_NEW_USER | _NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    _LIBC.mount(b"none", b"/", None, _PRIVATE, None)
    place.mkdir()
    if _LIBC.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={_ENOUGH}".encode()):
        raise OSError(ctypes.get_errno(), "mount")
    try:
        yield
    finally:
        _LIBC.umount2(os.fsencode(place), 2)


# --- scenes -------------------------------------------------------------------------------------------------------


def _refused(ended: Ended, message: str, allowed: Sequence[int] = (0, 1)) -> list[Seen]:
    """Done, or one sentence about the space."""
    if ended.code == 0:
        return []
    if ended.code not in allowed:
        return [Seen("exit code", f"{ended.code}: {message}")]
    if ended.code == 1 and "no space left" not in message:
        return [Seen("exit 1", message)]
    return []


def _nothing_half(stage: Stage) -> list[Seen]:
    hidden = list(stage.disk.rglob(".mafl-*"))
    return [Seen("left behind", str(hidden[0].relative_to(stage.disk)))] if hidden else []


def _attack(stage: Stage, *more: str) -> tuple[str, ...]:
    scan = str(stage.stock.root / stage.rng.choice(("int16.nii", "ct")))
    return (
        "attack",
        scan,
        "-t",
        "erase:1",
        "-m",
        str(stage.stock.root / "flat.ts"),
        "-o",
        "disk/out",
        "--steps",
        "1",
        "-q",
        *more,
    )


def _single(stage: Stage) -> list[Seen]:
    stage.size(stage.rng.choice((4096, stage.rng.randrange(4096, 60_000))))
    command = _attack(stage)
    ended, message = stage.run(*command)
    seen = _refused(ended, message) + _nothing_half(stage)
    if ended.code != 0 and any(stage.disk.iterdir()):
        seen.append(Seen("left behind", next(stage.disk.iterdir()).name))
    stage.size(_ENOUGH)
    if ended.code != 0 and (again := stage.run(*command))[0].code != 0:
        seen.append(Seen("not resumed", again[1]))
    return seen


def _replacing(stage: Stage) -> list[Seen]:
    shutil.copytree(stage.stock.root / "run", stage.disk / "out")
    before = whole(stage.disk / "out")
    stage.size(stage.used() + stage.rng.randrange(0, 40_000))
    command = _attack(stage, "--overwrite")
    ended, message = stage.run(*command)
    seen = _refused(ended, message) + _nothing_half(stage)
    if ended.code != 0 and whole(stage.disk / "out") != before:
        seen.append(Seen("lost", "the earlier report"))
    return seen


def _batch(stage: Stage) -> list[Seen]:
    (stage.room.place / "scans").mkdir()
    for number in range(3):
        stage.stock.copy("int16.nii", stage.room.place / "scans" / f"case{number}.nii")
    model = str(stage.stock.root / "flat.ts")
    command = (
        "attack",
        "scans",
        "-t",
        "erase:1",
        "-m",
        model,
        "-o",
        "disk/out",
        "--steps",
        "1",
        "-q",
        "--threads",
        "1",
    )
    stage.size(stage.rng.choice((4096, stage.rng.randrange(4096, 150_000))))
    ended, message = stage.run(*command)
    seen = _refused(ended, message, (0, 1, 6))
    done = _cases(stage)
    stage.size(_ENOUGH)
    ended, message = stage.run(*command)
    if ended.code != 0:
        seen.append(Seen("not resumed", f"exit {ended.code}: {message}"))
    now = _cases(stage)
    if any(report is not None and now.get(name) != report for name, report in done.items()):
        seen.append(Seen("lost", "a finished case"))
    if ended.code == 0 and (len(now) != 3 or None in now.values()):
        seen.append(Seen("not resumed", f"{len(now)} of 3 cases"))
    return seen + _nothing_half(stage)


def _cases(stage: Stage) -> dict[str, str | None]:
    """By its folder, the hash of a case's report; None if it is not whole."""
    return {path.name: whole(path) for path in stage.disk.glob("out/case*") if path.is_dir()}


def _merged(stage: Stage) -> list[Seen]:
    shutil.copytree(stage.stock.root / "batch", stage.room.place / "part")
    stage.size(stage.rng.choice((4096, stage.rng.randrange(4096, 90_000))))
    ended, message = stage.run("merge", "part", "-o", "disk/joined", "-q")
    seen = _refused(ended, message) + _nothing_half(stage)
    stage.size(_ENOUGH)
    if ended.code != 0 and (again := stage.run("merge", "part", "-o", "disk/joined", "-q"))[0].code != 0:
        seen.append(Seen("not resumed", again[1]))
    return seen


def _documents(stage: Stage) -> list[Seen]:
    """Tables, pages and pictures; what was there before stays."""
    run = str(stage.stock.root / "run")
    option, name = stage.rng.choice(
        (
            ("--json", "e.json"),
            ("--card", "c.md"),
            ("--csv", "c.csv"),
            ("--junit", "j.xml"),
            ("-o", "p.html"),
            ("-o", "p.png"),
            ("-o", "p.pdf"),
            ("-o", "p.svg"),
        )
    )
    old = stage.disk / name
    kept = option != "-o"
    if kept:
        old.write_bytes(b"{}")
    stage.size(stage.used() + stage.rng.choice((0, 4096, 16384)))
    command = (
        ("visualize", run, option, f"disk/{name}") if not kept else ("evaluate", run, option, f"disk/{name}", "-q")
    )
    ended, message = stage.run(*command)
    seen = _refused(ended, message) + _nothing_half(stage)
    if ended.code != 0 and kept and old.read_bytes() != b"{}":
        seen.append(Seen("lost", name))
    if ended.code != 0 and not kept and old.exists():
        seen.append(Seen("left behind", name))
    return seen


def _streams(stage: Stage) -> list[Seen]:
    """Nobody can be told, and still nothing breaks: the results of an attack are there."""
    full, run = Path("/dev/full"), str(stage.stock.root / "run")
    command = stage.rng.choice(
        (
            ("inspect", str(stage.stock.root / "int16.nii")),
            ("evaluate", run),
            ("evaluate", run, "--json", "-"),
            ("--help",),
            ("evaluate", run, "--card", "-"),
            ("status", str(stage.stock.root / "batch")),
            ("inspect", "gone.nii"),
            ("attack", run, "--list"),
            tuple(each for each in _attack(stage) if each != "-q"),
            (*_attack(stage), "-v"),
        )
    )
    out, err = stage.rng.choice(((full, None), (None, full), (full, full)))
    ended, message = stage.run(*command, stdout=out, stderr=err)
    seen = []
    if ended.signal is not None or ended.code not in (0, 1, 2, 3):
        seen.append(Seen("exit code", f"{ended}"))
    said = (stage.room.stderr.read_text(errors="replace") if err is None else "") or ""
    if "Traceback" in said or "Exception ignored" in said:
        seen.append(Seen("traceback", message))
    if command[0] == "attack" and "-o" in command and whole(stage.disk / "out") is None:
        seen.append(Seen("lost", "the results of a finished attack"))
    return seen + _nothing_half(stage)


_SCENES: dict[str, Scene] = {
    "single": _single,
    "replacing": _replacing,
    "batch": _batch,
    "merge": _merged,
    "documents": _documents,
    "streams": _streams,
}
