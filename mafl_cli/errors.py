"""What can go wrong, grouped by what the caller would do about it: one class per exit code.

Every message is one sentence a user can act on: which file (its name, never its folder), what is wrong, what to do.
"""

from __future__ import annotations

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


class GateError(MaflError):
    """The results are there, and do not pass what was asked of them."""

    exit_code = 5


class PartialError(MaflError):
    """Some cases of several could not be done; the others are."""

    exit_code = 6


class Interrupted(MaflError):
    """The user stopped a batch; what was finished is there."""

    exit_code = 130


def place_of(exc: Exception) -> str:
    """Where an exception came from: " in FILE, line N" of the innermost frame, without folders."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}"
