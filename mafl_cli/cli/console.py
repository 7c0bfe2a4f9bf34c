"""How commands speak and end: words on stderr, data on stdout, one line and the right exit code for what goes wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import typer

from mafl_cli.cli.flags import in_flags
from mafl_cli.errors import Interrupted, MaflError, disk_full, is_disk_full, place_of
from mafl_cli.names import escaped, harmless
from mafl_cli.system import interrupts, quiet, streams


@dataclass(frozen=True)
class Voice:
    """Words go to stderr, so that stdout stays data. level: -1 quiet, 0 normal, 1 verbose. as_json: not as text."""

    level: int
    debug: bool
    as_json: bool = False

    def say(self, line: str, **facts: Any) -> None:
        """What a user should know. facts: for those who read objects."""
        if self.level >= 0:
            self._put("info", line, facts)

    def detail(self, line: str, **facts: Any) -> None:
        """What only the curious want to know."""
        if self.level >= 1:
            self._put("detail", line, facts)

    def fail(self, line: str) -> None:
        """The last words of a command."""
        self._put("error", line if self.as_json else f"mafl: {line}", {})

    def _put(self, level: str, line: str, facts: Mapping[str, Any]) -> None:
        line = in_flags(line)
        if self.as_json:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            line = escaped(json.dumps({"time": now, "level": level, "message": line, **facts}, ensure_ascii=False))
        else:
            line = _plain(line)
        print(line, file=sys.stderr, flush=True)


@contextmanager
def reported(voice: Voice) -> Iterator[None]:
    """One line on stderr and the documented exit code for every way a command can end; only mafl speaks meanwhile."""
    try:
        with interrupts.as_exceptions() as came, nullcontext() if voice.debug else quiet.libraries():
            try:
                yield
            except Exception as exc:
                if came and not isinstance(exc, (Interrupted, typer.Exit, typer.Abort)):
                    raise came[0] from None
                raise
    except (typer.Exit, typer.Abort):
        raise
    except MaflError as exc:
        if voice.debug:
            raise
        voice.fail(str(exc))
        raise typer.Exit(exc.exit_code) from None
    except KeyboardInterrupt as exc:
        voice.fail("interrupted; nothing was kept.")
        # CPython notes an interrupt that leaves an exec() of a string, as libraries use while they are imported, and
        # then exits as if nobody had caught it. The next exec() forgets that.
        exec("")
        raise typer.Exit(interrupts.exit_code(exc)) from None
    except BrokenPipeError:
        # The reader of a pipe (head, jq) has left; Python would complain again while closing stdout.
        streams.discard(sys.stdout)
        raise typer.Exit(1) from None
    except Exception as exc:
        if voice.debug:
            raise
        # Not its message: that may quote a header or a path, and logs are passed on.
        if is_disk_full(exc):
            voice.fail(str(disk_full("the results or temporary files")))
            raise typer.Exit(1) from None
        voice.fail(f"internal error ({type(exc).__name__}{place_of(exc)}); run again with --debug.")
        raise typer.Exit(1) from None


@contextmanager
def progress_of_steps(voice: Voice) -> Iterator[Callable[[Any], None] | None]:
    """A tqdm bar on a terminal, nothing elsewhere."""
    if voice.level < 0:
        yield None
        return
    from tqdm import tqdm

    # disable=None: tqdm looks whether stderr is a terminal, so that logs of batch systems stay short.
    with tqdm(disable=None, unit="step", leave=False, file=sys.stderr) as bar:

        def show(progress: Any) -> None:
            bar.total = progress.total
            bar.n = progress.done
            bar.set_postfix_str(
                f"at goal {progress.record.reached:.0%}, score {progress.record.score:.3f}", refresh=False
            )
            bar.refresh()

        yield show


class Bar:
    """A tqdm bar that lines can be said beside; on no terminal only the lines are."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def show(self, done: int, total: int | None) -> None:
        """Update the bar; a total of None keeps the total."""
        if self._bar is not None:
            self._bar.total = self._bar.total if total is None else total
            self._bar.n = done
            self._bar.refresh()

    def write(self, say: Callable[[], None]) -> None:
        """Let a line be said above the bar."""
        if self._bar is None or self._bar.disable:
            say()
            return
        with self._bar.external_write_mode(file=sys.stderr):
            say()


@contextmanager
def progress_of_cases(voice: Voice, unit: str) -> Iterator[Bar]:
    """A tqdm bar over cases; none where nobody is to be told, or where lines are objects."""
    if voice.level < 0 or voice.as_json:
        yield Bar(None)
        return
    from tqdm import tqdm

    with tqdm(disable=None, unit=unit, leave=False, file=sys.stderr) as bar:
        yield Bar(bar)


def show_text(text: str) -> None:
    """Lines on stdout. Like those on stderr they quote names from files: nothing in them moves a cursor, hides, or is
    a command to the runner of a CI job."""
    streams.put(f"{_plain(text)}\n")


def _plain(text: str) -> str:
    return "\n".join("\t".join(map(harmless, line.split("\t"))) for line in text.split("\n"))


def deliver(report: object, summary: str, json_file: str | None, voice: Voice) -> None:
    """The summary, or with `--json -` the JSON, on stdout; with `--json FILE` the JSON there."""
    from mafl_cli.system.records import to_json

    if json_file == "-":
        streams.put(to_json(report))
        return
    if json_file is not None:
        from mafl_cli.results.folder import write_text

        write_text(Path(json_file), to_json(report))
    if voice.level >= 0:
        show_text(in_flags(summary))


def write_all(texts: Mapping[str | None, Callable[[], str]]) -> None:
    """Write each text to its file, - being stdout; None is not asked for."""
    from mafl_cli.results.folder import write_text

    for file, text in texts.items():
        if file == "-":
            streams.put(text())
        elif file is not None:
            write_text(Path(file), text())


def tell_github(summary: str, alerts: list[str], voice: Voice) -> None:
    """In a job of GitHub Actions: append the summary to the job's page, and annotate what failed."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        try:
            with Path(page).open("a", encoding="utf-8", errors=streams.ESCAPED) as file:
                file.write(summary + "\n")
        except OSError:
            voice.say("$GITHUB_STEP_SUMMARY: cannot be written to; the verdict is not on the job's page.")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # GitHub reads them from stderr too, and stdout may be JSON.
        for line in alerts:
            print(in_flags(line), file=sys.stderr)
