"""`mafl status` and `mafl merge`: the runs of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from mafl_cli.cli.application import EXIT_CODES, app
from mafl_cli.cli.console import Voice, deliver, reported
from mafl_cli.cli.groups import Grouped, expanded
from mafl_cli.cli.options import Debug, Json, Quiet


@dataclass
class RunsOutput:
    """Where the answer goes, and how much is said beside it."""

    json_file: Json = None
    quiet: Quiet = False
    debug: Debug = False

    def voice(self) -> Voice:
        """The voice that speaks so."""
        return Voice(-1 if self.quiet else 0, self.debug)


@app.command(cls=Grouped, epilog=EXIT_CODES)
@expanded
def status(
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a batch.")],
    output: RunsOutput,
) -> None:
    """Say how far a batch is, while it runs or afterwards."""
    voice = output.voice()
    with reported(voice):
        from mafl_cli.batch import tables

        found = tables.status(run)
        deliver(found, tables.format_status(found), output.json_file, voice)


@app.command(cls=Grouped, epilog=EXIT_CODES)
@expanded
def merge(
    *,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of parts of one batch.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="New folder for all of them.")],
    output: RunsOutput,
) -> None:
    """Join the parts of a batch that were run into different folders."""
    voice = output.voice()
    with reported(voice):
        from mafl_cli.batch.tables import format_run
        from mafl_cli.batch.tables import merge as joined

        whole = joined(runs, out)
        deliver(whole, format_run(whole), output.json_file, voice)
