"""Standard output and standard error, of any encoding, full, closed or left by who listened.

Nothing that is said can end a command: a character that the terminal does not know is escaped, as JSON does it, so that
JSON stays JSON; what cannot be written to standard error is lost. Standard output is data, so its loss is an error.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mafl_cli.errors import OutputError, is_disk_full, reason_of

# How a text is encoded that may hold what its encoding has not: `errors=` of streams and files.
ESCAPED = "mafl.escaped"


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n : n + 2].hex()}" for n in range(0, len(units), 2)), error.end


codecs.register_error(ESCAPED, _escape)


def put(text: str) -> None:
    """Write data to standard output at once.

    Raises: BrokenPipeError when nobody reads it any more; OutputError when it cannot be written for another reason.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise _not_written(exc) from exc


def _not_written(exc: OSError) -> OutputError:
    why = "no space left on the disk" if is_disk_full(exc) else reason_of(exc)
    return OutputError(f"standard output: cannot be written to ({why}); what was written to files is there.")


def discard(stream: Any) -> None:
    """Send to nowhere what a standard stream still holds and will be given: it would fail again, even at the end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def prepared() -> Iterator[None]:
    """The streams made ready for a command; it ends with exit code 1 if what it gave to standard output is lost."""
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)
    if os.name != "nt":  # Consoles of Windows are no files.
        sys.stderr = _words(sys.stderr)
    try:
        yield
        ending: SystemExit | None = None
    except SystemExit as exc:
        ending = exc
    except OSError as exc:
        ending = SystemExit(_lost(exc))
    try:
        sys.stdout.flush()
    except OSError as exc:
        code = _lost(exc)
        ending = ending if ending is not None and ending.code else SystemExit(code)
    if ending is not None:
        raise ending


def _lost(exc: OSError) -> int:
    if not isinstance(exc, BrokenPipeError):
        print(f"mafl: {_not_written(exc)}", file=sys.stderr)
    discard(sys.stdout)
    return 1


def _open_closed() -> None:
    """Whatever was closed goes nowhere: the next file to be opened would take its number, and get what is said."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                nowhere = os.open(os.devnull, os.O_RDWR)
                if nowhere != number:
                    os.dup2(nowhere, number)
                    os.close(nowhere)
                os.set_inheritable(number, True)
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115


class _Unfailing(io.FileIO):
    """A file that takes all that is written to it, whatever becomes of it."""

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError:
            discard(self)
            return len(data)


def _words(stream: Any) -> Any:
    """Standard error that never fails."""
    try:
        raw = _Unfailing(stream.fileno(), "wb", closefd=False)
    except (OSError, ValueError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors=ESCAPED, line_buffering=True, write_through=True
    )
