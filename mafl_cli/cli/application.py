"""The application itself: exit codes, `--version`, errors into one line, and `main`."""

from __future__ import annotations

from typing import Annotated

import typer

from mafl_cli import __version__
from mafl_cli.system.streams import prepared

EXIT_CODES = """
Exit codes: 0 done · 1 internal error, or the results could not be written · 2 usage (also: no such device, output
exists) · 3 bad input or geometry · 4 model unusable · 5 gate failed · 6 some cases failed · 130 interrupted (143 by
SIGTERM, 129 by SIGHUP).
"""

app = typer.Typer(
    name="mafl",
    help="Find the smallest change to a scan that makes a segmentation model draw the mask an attacker chose.",
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
