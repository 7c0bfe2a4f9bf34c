"""`mafl visualize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mafl_cli.cli.application import EXIT_CODES, app
from mafl_cli.cli.console import reported, show_text
from mafl_cli.cli.groups import Grouped, expanded
from mafl_cli.cli.options import MaybePath, MaybeStr, Overwrite, SizeLimit, Words
from mafl_cli.errors import UsageError
from mafl_cli.measure.presets import WINDOWS
from mafl_cli.show.display import MAX_MB, PAIRS
from mafl_cli.show.viewers import Viewer
from mafl_cli.system import sizes


@app.command(cls=Grouped, epilog=EXIT_CODES)
@expanded
def visualize(
    *,
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Result folder of `mafl attack`; for a page several, or a folder of them."),
    ],
    out: Annotated[
        MaybePath,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="A figure of one run: .png, .pdf or .svg. A page to look through: .html, one file that needs no "
            "network. [default: figure.png in the run; page.html for several]",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=20, help="Number of slices in a figure.")] = 3,
    max_mb: Annotated[
        float,
        typer.Option("--max-mb", min=0.1, help="Largest size of a page, in MB; the page lists what was left out."),
    ] = MAX_MB,
    window: Annotated[
        MaybeStr,
        typer.Option(
            "--window",
            metavar="LOW,HIGH|NAME",
            help="Grey values shown black and white, in the scan's own units; for CT also "
            f"{', '.join(f'{name} ({level:g}/{width:g})' for name, (level, width) in WINDOWS.items())}: level/width "
            "in HU. [default: 1st to 99th percentile of the body]",
        ),
    ] = None,
    open_in: Annotated[
        Optional[Viewer],  # noqa: UP045
        typer.Option(
            "--open",
            help="Print the command line that opens the adversarial scan and its prediction there, and write the "
            "labels' names and colours for it into RUN; a figure is drawn only with -o.",
        ),
    ] = None,
    reader_study: Annotated[
        MaybePath,
        typer.Option(
            "--reader-study",
            metavar="FILE",
            help="Write a page, .html, on which people try to tell changed slices from clean ones, and beside it its "
            "key, .key.json, which readers must not have. `mafl evaluate --reader-study` judges their answers.",
        ),
    ] = None,
    pairs: Annotated[
        int,
        typer.Option(
            min=2, max=1000, help="Pairs of a reader study at most; half of them show the same picture twice."
        ),
    ] = PAIRS,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Order of a reader study.")] = 0,
    overwrite: Overwrite = False,
    size_limit: SizeLimit = None,
    words: Words,
) -> None:
    """Show clean scan, adversarial scan, their difference and the contours: a figure, or a page with all slices.

    A figure has the slices that changed most, and below them the change by size and by spatial frequency, and the
    course of the search. A page has numbers with explanations, flicker, amplified differences and a table of cases.
    """
    voice = words.voice()
    with reported(voice), sizes.limited(size_limit):
        from mafl_cli.show import show

        if reader_study is not None:
            if out is not None or open_in is not None:
                raise UsageError("--reader-study, --out and --open exclude each other.")
            voice.say(
                show.reader_study(
                    runs, reader_study, pairs=pairs, seed=seed, window=window, max_mb=max_mb, overwrite=overwrite
                )
            )
            return
        if open_in is not None:
            for run in runs:
                show_text(show.view(run, open_in, overwrite=overwrite))
            if out is None:
                return
        voice.say(show.show(runs, out, rows=rows, window=window, max_mb=max_mb, overwrite=overwrite))
