"""`mafl inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from mafl_cli.cli.application import EXIT_CODES, app
from mafl_cli.cli.console import Voice, reported, show_text
from mafl_cli.cli.flags import in_flags
from mafl_cli.cli.groups import Grouped, expanded
from mafl_cli.cli.options import Debug, Ensemble, Folds, Mirror, SizeLimit, Trust
from mafl_cli.cli.reading import files_between_commas
from mafl_cli.errors import UsageError
from mafl_cli.system import sizes
from mafl_cli.system.streams import put


@dataclass
class AskedReadings:
    """Whether a model sees what it was trained on."""

    scan: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--scan",
            metavar="SCAN[,SCAN...]",
            help="Scan that the model is to see, a file for each channel: try other orders of its axes and channels "
            "and other intensity scalings.",
        ),
    ] = None
    mask: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--mask", metavar="MASK", help="What the model should draw on --scan; finds more than without."),
    ] = None
    figure: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--figure", metavar="FILE", help="Picture of what the model draws on --scan, read in other ways."),
    ] = None

    def given(self) -> dict[str, Any]:
        """The group as options of the library."""
        scan = () if self.scan is None else files_between_commas(self.scan, "--scan")
        return {"scan": scan, "mask": self.mask}


@app.command(cls=Grouped, epilog=EXIT_CODES)
@expanded
def inspect(
    *,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="A model, a scan or a mask; several models with --ensemble.")
    ],
    ensemble: Ensemble = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write what is known about a model into the TOML file beside it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a TOML file that is there.")] = False,
    readings: AskedReadings,
    folds: Folds = None,
    mirror: Mirror = None,
    trust: Trust = False,
    size_limit: SizeLimit = None,
    debug: Debug = False,
) -> None:
    """Show what mafl sees in a model, a scan or a mask, and what it would assume."""
    voice = Voice(0, debug)
    with reported(voice), sizes.limited(size_limit):
        from mafl_cli.case import inspection
        from mafl_cli.system.records import to_json

        asked: dict[str, Any] = {"trust": trust, **readings.given()}
        if write:
            if len(files) > 1 or ensemble is not None:
                raise UsageError("--write is for one model: leave out the others and --ensemble.")
            show_text(f"wrote {inspection.write_card(files[0], overwrite=overwrite, **asked).name}")
            return
        asked |= {"ensemble": ensemble, "figure": readings.figure, "folds": folds, "mirror": mirror}
        facts = inspection.inspect(files, **asked)
        if as_json:
            put(to_json(facts))
        else:
            show_text(in_flags(inspection.format_facts(facts)))
