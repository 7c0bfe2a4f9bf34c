"""`mafl status` and `mafl merge`: the runs of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mafl_cli.cli.application import EXIT_CODES, app
from mafl_cli.cli.console import Voice, deliver, reported
from mafl_cli.cli.groups import Grouped
from mafl_cli.cli.options import Debug, Json, Quiet


@app.command(cls=Grouped, epilog=EXIT_CODES)
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a batch.")],
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say how far a batch is, while it runs or afterwards."""
    voice = Voice(-1 if quiet else 0, debug)
    with reported(voice):
        from mafl_cli.batch import tables

        found = tables.status(run)
        deliver(found, tables.format_status(found), json_file, voice)


@app.command(cls=Grouped, epilog=EXIT_CODES)
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of parts of one batch.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="New folder for all of them.")],
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Join the parts of a batch that were run into different folders."""
    voice = Voice(-1 if quiet else 0, debug)
    with reported(voice):
        from mafl_cli.batch.tables import format_run
        from mafl_cli.batch.tables import merge as joined

        whole = joined(runs, out)
        deliver(whole, format_run(whole), json_file, voice)
