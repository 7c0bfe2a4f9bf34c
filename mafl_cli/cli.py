"""The `mafl` command: options become a request, a library call does the work, its result lines and an exit code.

Nothing heavy is imported here, so that `--help` answers at once; each command imports what it needs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from mafl_cli import __version__
from mafl_cli.config import AttackConfig, Mode, SaveAs, SliceAxisChoice
from mafl_cli.errors import MaflError

EXIT_CODES = """
Exit codes: 0 done · 1 internal error, or the results could not be written · 2 usage (also: no such device, output
exists) · 3 bad input or geometry · 4 model unusable · 130 interrupted.
"""

app = typer.Typer(
    name="mafl",
    help="How small a change to a scan makes a segmentation model draw the mask an attacker chose?",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEFAULTS = AttackConfig()


@dataclass(frozen=True)
class _Voice:
    """Words go to stderr, so that stdout stays data. level: -1 quiet, 0 normal, 1 verbose."""

    level: int
    debug: bool

    def say(self, line: str) -> None:
        if self.level >= 0:
            print(line, file=sys.stderr)

    def detail(self, line: str) -> None:
        if self.level >= 1:
            print(line, file=sys.stderr)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Json = Annotated[
    Optional[str],  # noqa: UP045  (typer reads annotations at run time, also on Python 3.10)
    typer.Option("--json", metavar="FILE", help="Also write the report there; - is stdout."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are there already.")]


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


@app.command(epilog=EXIT_CODES)
def attack(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Scan to change: .nii or .nii.gz.")],
    target: Annotated[
        Path,
        typer.Option("--target", "-t", metavar="MASK", help="Label map, on the image's grid, to be drawn."),
    ],
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--model",
            "-m",
            metavar="FILE",
            help="TorchScript model. It is a program: use only files you trust. "
            "[default: $MAFL_MODEL, else the brain-tissue model that comes with mafl]",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")] = Path("mafl-out"),
    mode: Annotated[Mode, typer.Option(help="Slice by slice or as a volume; auto asks the model.")] = "auto",
    slice_axis: Annotated[
        Optional[SliceAxisChoice],  # noqa: UP045
        typer.Option(
            "--slice-axis",
            help="Where 2-D slices are cut. auto: across the largest spacing, else axial. "
            "[default: the model card's, else auto]",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Forward passes per slice or volume.")] = _DEFAULTS.steps,
    goal_iou: Annotated[
        float, typer.Option(help="IoU with the target that counts as reached, over its classes.")
    ] = _DEFAULTS.goal_iou,
    goal_hit: Annotated[
        float, typer.Option(help="Share of the voxels to be changed that must change.")
    ] = _DEFAULTS.goal_hit,
    device: Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda or cuda:N.")] = "auto",
    save_as: Annotated[
        SaveAs,
        typer.Option(help="float32 keeps every digit; source keeps the scan's own type and searches on its grid."),
    ] = "float32",
    orientation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="CODES", help="Axes the model expects, as RAS; native: the file's own. [default: card]"),
    ] = None,
    intensity: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="KIND",
            help="Scaling the model expects: none, minmax, zscore, zscore-nonzero, window:MIN,MAX. [default: card]",
        ),
    ] = None,
    tap: Annotated[str, typer.Option(help="Layer whose features are compared; `mafl inspect` lists them.")] = "auto",
    feature_weight: Annotated[
        float, typer.Option(help="Weight of the feature cosine term; 0 is off.")
    ] = _DEFAULTS.feature_weight,
    low_frequency_weight: Annotated[
        float, typer.Option(help="Weight of the low-frequency term; 0 is off.")
    ] = _DEFAULTS.low_frequency_weight,
    momentum: Annotated[float, typer.Option(help="Share of the last direction kept.")] = _DEFAULTS.momentum,
    seed: Annotated[int, typer.Option(help="Seed of PyTorch's generators.")] = _DEFAULTS.seed,
    overwrite: Overwrite = False,
    json_file: Json = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Change IMAGE as little as possible so that the model draws the target mask.

    Writes adversarial.nii.gz, perturbation.nii.gz, prediction_clean.nii.gz, prediction_adversarial.nii.gz,
    target.nii.gz and report.json. Every number is measured on the written file, read again.
    """
    voice = _Voice(-1 if quiet else int(verbose), debug)
    with _reported(voice):
        config = AttackConfig(
            steps=steps,
            goal_iou=goal_iou,
            goal_hit=goal_hit,
            feature_weight=feature_weight,
            low_frequency_weight=low_frequency_weight,
            momentum=momentum,
            seed=seed,
        )
        from mafl_cli.card import check_orientation
        from mafl_cli.config import Intensity

        scaling = None if intensity is None else Intensity.parse(intensity)
        codes = None if orientation is None else check_orientation(orientation)
        from mafl_cli import pipeline, report

        request = pipeline.AttackRequest(
            image=image,
            target=target,
            out=out,
            model=_model(model, voice),
            mode=mode,
            slice_axis=slice_axis,
            save_as=save_as,
            device=device,
            orientation=codes,
            intensity=scaling,
            tap=tap,
            overwrite=overwrite,
            config=config,
        )
        with _progress(voice) as show:
            done = pipeline.run_attack(request, say=voice.say, on_progress=show)
        for part, seconds in done["cases"][0]["timing_s"].items():
            voice.detail(f"{part}: {seconds:.2f} s")
        _deliver(done, report.format_summary(done), json_file, voice)


@app.command(epilog=EXIT_CODES)
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Result folder of `mafl attack`.")],
    json_file: Json = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure a finished run again from its files, and say whether they still are what the report describes."""
    voice = _Voice(-1 if quiet else int(verbose), debug)
    with _reported(voice):
        from mafl_cli import report, runs

        measured = runs.evaluate(run)
        for line in measured["differences"]:
            voice.say(f"{run.name}: {line}")
        _deliver(measured, report.format_evaluation(measured), json_file, voice)


@app.command(epilog=EXIT_CODES)
def visualize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Result folder of `mafl attack`.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", metavar="FILE", help="PNG, PDF or SVG. [default: RUN/figure.png]"),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=20, help="Slices to show.")] = 3,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Draw clean scan, adversarial scan, their difference and the contours, on the slices that changed most."""
    voice = _Voice(-1 if quiet else int(verbose), debug)
    with _reported(voice):
        from mafl_cli import runs

        path = run / "figure.png" if out is None else out
        shown = runs.draw(run, path, rows=rows, overwrite=overwrite)
        voice.say(f"{path.name}: slices {', '.join(map(str, shown))}")


@app.command(epilog=EXIT_CODES)
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model, a scan or a mask.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    debug: Debug = False,
) -> None:
    """Show what mafl sees in a model, a scan or a mask, and what it would assume."""
    voice = _Voice(0, debug)
    with _reported(voice):
        from mafl_cli import runs

        facts = runs.inspect(file)
        if as_json:
            print(json.dumps(facts, indent=1, allow_nan=False))
        else:
            print(runs.format_facts(facts))


def main() -> None:
    """Entry point of the console command."""
    app()


# --- shared by the commands ---------------------------------------------------------------------------------------


@contextmanager
def _reported(voice: _Voice) -> Iterator[None]:
    """One line on stderr and the documented exit code for every way a command can end."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except MaflError as exc:
        if voice.debug:
            raise
        print(f"mafl: {exc}", file=sys.stderr)
        raise typer.Exit(exc.exit_code) from None
    except KeyboardInterrupt:
        print("mafl: interrupted; nothing was kept.", file=sys.stderr)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of a pipe (head, jq) has left; Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Exception as exc:
        if voice.debug:
            raise
        kind = type(exc).__name__
        print(f"mafl: internal error ({kind}: {_first_line(exc)}); run again with --debug.", file=sys.stderr)
        raise typer.Exit(1) from None


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).splitlines()), "")[:200]


def _model(flag: Path | None, voice: _Voice) -> Path:
    """The model to use: the flag, else $MAFL_MODEL, else the one that comes with mafl."""
    if flag is not None:
        return flag
    from_environment = os.environ.get("MAFL_MODEL")
    if from_environment:
        voice.say(f"model: {Path(from_environment).name} (from $MAFL_MODEL)")
        return Path(from_environment)
    from mafl_cli.pipeline import DEMO_MODEL

    voice.say("model: the small brain-tissue model that comes with mafl (no --model given)")
    return DEMO_MODEL


@contextmanager
def _progress(voice: _Voice) -> Iterator[Callable[[Any], None] | None]:
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


def _deliver(report: dict[str, Any], summary: str, json_file: str | None, voice: _Voice) -> None:
    """The summary, or with `--json -` the JSON, on stdout; with `--json FILE` the JSON there."""
    from mafl_cli.report import to_json

    if json_file == "-":
        sys.stdout.write(to_json(report))
        sys.stdout.flush()
        return
    if json_file is not None:
        from mafl_cli.results import write_text

        write_text(Path(json_file), to_json(report))
    if voice.level >= 0:
        print(summary)
