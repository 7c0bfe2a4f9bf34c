"""What can go wrong, grouped by what the caller would do about it: one class per exit code.

Every message is one sentence a user can act on: which file (its name, never its folder), what is wrong, what to do.
"""

from __future__ import annotations

import errno
from pathlib import Path


class MaflError(Exception):
    """Root of all errors that are reported as one line. Exit code 1: the run could not be finished."""

    exit_code = 1


class UsageError(MaflError):
    """The request itself cannot be met: options that exclude each other, no such device, output exists."""

    exit_code = 2


class InputError(MaflError):
    """An image, a mask or a run folder cannot be used."""

    exit_code = 3


class GeometryError(InputError):
    """Two volumes that must lie on the same grid do not."""


class ModelError(MaflError):
    """The model file cannot be attacked."""

    exit_code = 4


class OutputError(MaflError):
    """The results could not be written: disk full, folder gone. Nothing partial is left behind."""


class DiskFullError(OutputError):
    """No space is left on the disk, or none that this user may take: nobody's input is to blame."""


class GateError(MaflError):
    """The results are there, and do not pass what was asked of them."""

    exit_code = 5


class PartialError(MaflError):
    """Some cases of several could not be done; the others are."""

    exit_code = 6


class Interrupted(MaflError):
    """The user, or the system, stopped it; what was finished is there. exit_code: 128 and the signal's number."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_disk_full(exc: BaseException | None) -> bool:
    """Whether this came of a full disk: libraries raise errors of their own from the system's."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen.add(id(exc))
        exc = exc.__cause__ or exc.__context__
    return False


def reason_of(exc: OSError) -> str:
    """The system's own words for what it refuses."""
    return exc.strerror or "the system gives no reason"


def cannot_be_read(name: str, exc: OSError) -> InputError:
    """One sentence on a file or folder that the system refuses to read."""
    return InputError(f"{name}: cannot be read ({reason_of(exc)}).")


def cannot_be_written(name: str, exc: OSError) -> OutputError:
    """One sentence on a file that the system refuses to write."""
    if is_disk_full(exc):
        return disk_full(name)
    return OutputError(f"{name}: cannot be written ({reason_of(exc)}).")


def disk_full(name: str) -> DiskFullError:
    """The error for a full disk. name: what could not be written."""
    return DiskFullError(f"{name}: no space left on the disk; make room, and give the command again.")


def place_of(exc: Exception) -> str:
    """Where an exception came from: " in FILE, line N" of the innermost frame, without folders."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}"
