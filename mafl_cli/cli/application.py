"""The application itself: exit codes, `--version`, errors into one line, and `main`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mafl_cli import __version__
from mafl_cli.cli.console import Voice
from mafl_cli.cli.reading import model_at_hand
from mafl_cli.system.streams import prepared

EXIT_CODES = """
Exit codes: 0 done · 1 internal error, or the results could not be written · 2 usage (also: no such device, output
exists) · 3 bad input or geometry · 4 model unusable · 5 gate failed · 6 some cases failed · 130 interrupted (143 by
SIGTERM, 129 by SIGHUP).
"""

app = typer.Typer(
    name="mafl",
    help="How small a change to a scan makes a segmentation model draw the mask an attacker chose?",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mafl {__version__}")
        raise typer.Exit


@app.callback()
def _mafl(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console command."""
    with prepared():
        app()


def model_or_default(flag: Path | None, voice: Voice) -> Path:
    """The model to use: the flag, else $MAFL_MODEL, else the one that comes with mafl."""
    if flag is not None:
        return flag
    found = model_at_hand()
    voice.say(
        f"model: {found.name} (from $MAFL_MODEL)"
        if os.environ.get("MAFL_MODEL")
        else "model: the small brain-tissue model that comes with mafl (no --model given)"
    )
    return found
