"""Models that are nothing but a program: a scan goes in as a file, a mask comes out as one.

The program is started without a shell, in a folder of its own, with the user's environment as it is, and ended with all
that it has started when it takes too long or the user stops the run. Nothing of it is trusted but the mask.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from mafl_cli.errors import ModelError, UsageError
from mafl_cli.names import outside, public_name
from mafl_cli.network.source import Command

TIMEOUT_S = 600.0
"""A program that takes longer for one scan is taken for one that hangs, unless the user says otherwise."""
_INPUT, _OUTPUT, _FOLDER = "{input}", "{output}", "{folder}"
_LONGEST_SAID = 200
"""Characters of a program's last line that a message repeats."""
_GRACE_S = 2.0
"""A program that is to end has so long to put things right."""
# A path, on any system; its last part says enough.
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/'\":,;()]+)+[\\/]?")


def parsed(text: str, timeout: float = TIMEOUT_S) -> Command:
    """A command line as a model.

    Args:
        text: a program and its arguments, split as a shell would; {input}, {output} and {folder} stand for the scan,
            the mask that is to be written, and the folder where both are. An argument with {input} is repeated for
            each channel.
        timeout: seconds that one run may take.
    Raises: UsageError for what is not a command line, and for a program that is not there.
    """
    try:
        arguments = tuple(shlex.split(text))
    except ValueError as exc:
        raise UsageError(f"`model_command` has a quote that is not closed, or ends in a backslash ({exc}).") from exc
    if not arguments:
        raise UsageError("`model_command` is empty: give a program and its arguments, with {input} and {output}.")
    rest = " ".join(arguments[1:])
    if _FOLDER not in rest and not (_INPUT in rest and _OUTPUT in rest):
        raise UsageError(
            "`model_command` must say where the program finds the scan and writes its mask: put {input} and {output} "
            "among its arguments."
        )
    if not 0 < timeout <= 1e6:
        raise UsageError(f"`command_timeout` must be above 0 and at most 1000000 seconds, got {timeout:g}.")
    program = shutil.which(arguments[0])
    if program is None:
        raise UsageError(
            f"`model_command`: {public_name(Path(arguments[0]))} is not a program that can be started: check its name, "
            "or give its path."
        )
    # Programs run elsewhere: what was found from here must be found from there.
    return Command((str(Path(program).absolute()), *arguments[1:]), public_name(Path(arguments[0])), timeout)


def run(command: Command, inputs: Sequence[Path], output: Path, folder: Path) -> None:
    """Let a program draw.

    Args:
        inputs: the scan, a file for each channel. output: the mask that it shall write. folder: where all of these
            are, and where it runs.
    Raises: ModelError where it fails, takes too long or writes nothing.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                _filled(command, inputs, output, folder),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as exc:
            raise ModelError(f"{command.name}: cannot be started ({exc.strerror or type(exc).__name__}).") from exc
        try:
            code = process.wait(command.timeout)
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"{command.name}: did not end within {command.timeout:g} s, and was stopped: allow more with "
                "`command_timeout`."
            ) from None
        finally:
            _end(process)
        said = _last_line(errors)
    if code:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by {_signal(-code)}"
        raise ModelError(f"{command.name}: {how}" + (f"; it said last: {said}" if said else ", and said nothing."))
    if output.is_symlink() or not output.is_file():
        raise ModelError(
            f"{command.name}: ended well, but did not write a mask to {_OUTPUT}"
            + (f"; it said last: {said}" if said else ".")
        )


def _filled(command: Command, inputs: Sequence[Path], output: Path, folder: Path) -> list[str]:
    """The arguments with files in the place of their names."""
    found = []
    for argument in command.arguments:
        plain = argument.replace(_OUTPUT, str(output)).replace(_FOLDER, str(folder))
        found += [plain.replace(_INPUT, str(each)) for each in inputs] if _INPUT in argument else [plain]
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it has started, politely at first. What has ended already is left alone."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    # Its group outlives it where it has left something behind.
    _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(errors: IO[bytes]) -> str:
    """What the program said last, without folders."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - 8192))
    lines = [line.strip() for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines:
        return ""
    said = _PATH.sub(lambda path: re.split(r"[\\/]", path[0].rstrip("\\/"))[-1], lines[-1])
    return outside(said if len(said) <= _LONGEST_SAID else f"{said[:_LONGEST_SAID]}...")
