"""The command, run in forks of this process: PyTorch and all readers are loaded once, and what an input breaks is a
child. Each child has its own folders, limits, streams and temporary directory; see `Room`.
"""

from __future__ import annotations

import atexit
import io
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LAST_WORDS_S = 3.0
"""How long what a child started may live on after it."""


@dataclass(frozen=True)
class Limits:
    """cpu_s: of the child and what it starts, each. wall_s: until it is killed; on a busy machine much more than that.

    memory_bytes: of address space beyond what the parent has, so that no input can take the machine along.
    """

    cpu_s: int = 30
    wall_s: float = 300.0
    memory_bytes: int = 6 * 2**30


@dataclass(frozen=True)
class Streams:
    """What a child reads, and how the terminal that it would speak to encodes letters."""

    stdin: bytes = b""
    encoding: str = "utf-8"
    stdout: Path | None = None
    stderr: Path | None = None
    """Elsewhere than in the room."""


@dataclass(frozen=True)
class Room:
    """The folders of one child. place: its working directory; temporary: what TMPDIR says; both are judged later."""

    root: Path

    @property
    def place(self) -> Path:
        return self.root / "in"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def stdout(self) -> Path:
        return self.root / "stdout"

    @property
    def stderr(self) -> Path:
        return self.root / "stderr"

    def make(self) -> Room:
        self.place.mkdir(parents=True)
        self.temporary.mkdir()
        return self


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or the signal that killed it. peak_bytes: of it or what it waited for."""

    code: int | None
    signal: int | None
    late: bool
    cpu_s: float
    peak_bytes: int


class Child:
    """A process that does `work` in a room. Its exit code is what `work` returns, or asks for with SystemExit."""

    def __init__(
        self,
        room: Room,
        work: Callable[[], int | None],
        limits: Limits,
        *,
        prepare: Callable[[], Streams | None] = lambda: None,
    ) -> None:
        """prepare: done in the child first, without its streams and temporary directory; says which streams."""
        self.room = room
        self._limits = limits
        self._since = time.monotonic()
        self._late = False
        self.outlived = False
        """Whether something that it had started lived seconds longer than it."""
        with warnings.catch_warnings():
            # This process has one thread of its own; what libraries started is idle.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _live(room, work, limits, prepare)

    def poll(self) -> Ended | None:
        """How it ended; None while it runs. One that takes too long is killed."""
        if time.monotonic() - self._since > self._limits.wall_s:
            self._late = True
            self.kill(signal.SIGKILL)
        pid, status, used = os.wait4(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        # What it has started ends with it; of its own accord, if it was killed.
        patient = time.monotonic() + _LAST_WORDS_S
        while self._left() and time.monotonic() < patient:
            time.sleep(0.02)
        self.outlived = self._left()
        self.kill(signal.SIGKILL)
        code, by = (os.WEXITSTATUS(status), None) if os.WIFEXITED(status) else (None, os.WTERMSIG(status))
        late = self._late or by == signal.SIGXCPU
        return Ended(code, by, late, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)

    def wait(self) -> Ended:
        while (ended := self.poll()) is None:
            time.sleep(0.002)
        return ended

    def _left(self) -> bool:
        """Whether a process of the child's group lives."""
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def children(self) -> list[int]:
        """Processes that the child has started and not yet buried."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        with suppress(OSError):
            return [int(each) for each in listed.read_text().split()]
        return []

    def kill(self, number: int) -> None:
        """Send a signal to the child and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _live(
    room: Room,
    work: Callable[[], int | None],
    limits: Limits,
    prepare: Callable[[], Streams | None],
) -> None:
    """In the child: never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(room.place)
        _forget_the_end_of_the_parent()
        _limit(limits)
        _redirect(room, prepare() or Streams())
        os.environ["TMPDIR"] = str(room.temporary)
        tempfile.tempdir = None
        code = _code_of(work)
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _forget_the_end_of_the_parent() -> None:
    """What the parent will clean up when it ends, its temporary folders for instance, is not for its children."""
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]


def _code_of(work: Callable[[], int | None]) -> int:
    """As the interpreter ends a program."""
    try:
        return work() or 0
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return exc.code or 0
        print(exc.code, file=sys.stderr)
        return 1


def _redirect(room: Room, streams: Streams) -> None:
    given = room.root / "stdin"
    given.write_bytes(streams.stdin)
    for number, path, flags in (
        (0, given, os.O_RDONLY),
        (1, streams.stdout or room.stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, streams.stderr or room.stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding=streams.encoding)
    # As Python's own: what cannot be encoded is escaped on stderr.
    sys.stderr = io.TextIOWrapper(
        os.fdopen(2, "wb", closefd=False), encoding=streams.encoding, errors="backslashreplace", line_buffering=True
    )


def _limit(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 5))
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    most = pages * resource.getpagesize() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run_all(children: Iterator[Callable[[], Child]], jobs: int) -> Iterator[tuple[Child, Ended]]:
    """Start children, `jobs` at a time; each with how it ended, as they end."""
    running: list[Child] = []
    more = True
    while running or more:
        while more and len(running) < jobs:
            start = next(children, None)
            if start is None:
                more = False
            else:
                running.append(start())
        ended = [(child, how) for child in running if (how := child.poll()) is not None]
        for child, how in ended:
            running.remove(child)
            yield child, how
        if not ended:
            time.sleep(0.002)
