"""Options that several commands share, each written once. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from mafl_cli.cli.console import Voice
from mafl_cli.cli.groups import FILES, MODEL_INPUT, OUTPUT, given, under
from mafl_cli.cli.reading import numbers
from mafl_cli.config import EnsembleRule, Mode, SliceAxisChoice
from mafl_cli.system import sizes

LogFormat = Literal["text", "json"]

# typer reads annotations at run time, also on Python 3.10.
MaybeInt = Optional[int]  # noqa: UP045
MaybeFloat = Optional[float]  # noqa: UP045
MaybeStr = Optional[str]  # noqa: UP045
MaybePath = Optional[Path]  # noqa: UP045

Quiet = Annotated[bool, under(OUTPUT, "--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[bool, under(OUTPUT, "--verbose", "-v", help="Print more.")]
Debug = Annotated[bool, under(OUTPUT, "--debug", help="Show tracebacks.")]
Json = Annotated[MaybeStr, under(OUTPUT, "--json", metavar="FILE", help="Also write the report there; - is stdout.")]
Overwrite = Annotated[bool, under(FILES, "--overwrite", help="Replace results that are there already.")]
SizeLimit = Annotated[
    MaybeFloat,
    under(
        FILES,
        "--size-limit",
        metavar="GIB",
        envvar="MAFL_SIZE_LIMIT",
        help="Largest scan, mask or archive, as it would be in memory; larger files are refused before they are "
        f"unpacked. [default: {sizes.DEFAULT_GIB:g}]",
    ),
]


Trust = Annotated[
    bool,
    under(
        FILES,
        "--trust",
        help="Let Python code that comes with the model run: a function, or the expressions of a MONAI bundle.",
    ),
]


Ensemble = Annotated[
    Optional[EnsembleRule],  # noqa: UP045
    under(
        FILES,
        "--ensemble",
        help="Several models are one: the mean of their logits (mean), or of their probabilities "
        "(mean-probabilities). They see the same grid and draw the same classes; intensities may differ.",
    ),
]
Folds = Annotated[
    MaybeStr,
    under(
        MODEL_INPUT,
        "--folds",
        metavar="FOLDS",
        help="Folds of an nnU-Net folder whose mean is the model, as 0,2, or all. [default: all that are there]",
        rare=True,
    ),
]
Mirror = Annotated[
    Optional[bool],  # noqa: UP045
    under(
        MODEL_INPUT,
        "--mirror/--no-mirror",
        help="Average an nnU-Net model over mirrored inputs. [default: as it was trained]",
        rare=True,
    ),
]


@dataclass
class Words:
    """How much a command says."""

    quiet: Quiet = False
    verbose: Verbose = False
    debug: Debug = False

    def voice(self, *, as_json: bool = False) -> Voice:
        """The voice that speaks so."""
        return Voice(-1 if self.quiet else int(self.verbose), self.debug, as_json)


ModelCommand = Annotated[
    Optional[str],  # noqa: UP045
    under(
        FILES,
        "--model-command",
        metavar="COMMAND",
        help="Instead of --model: a program that draws, started without a shell, as 'program {input} {output}': "
        "{input} is the scan as NIfTI, {output} the mask that it writes, {folder} where both are.",
        rare=True,
    ),
]
CommandTimeout = Annotated[
    Optional[float],  # noqa: UP045
    under(
        FILES,
        "--command-timeout",
        metavar="S",
        help="Seconds that one run of --model-command may take. [default: 600]",
        rare=True,
    ),
]
ClassNames = Annotated[
    Optional[str],  # noqa: UP045
    under(
        FILES,
        "--classes",
        metavar="NAMES",
        help="Names of the classes that a model without a file draws, by number, as background,liver,spleen. [default: "
        "as many as it draws on the clean scan]",
        rare=True,
    ),
]


@dataclass
class ViewOptions:
    """How a model sees scans, asked by every command that runs one."""

    mode: Annotated[Mode, under(MODEL_INPUT, help="Slice by slice or as a volume; auto asks the model.", rare=True)] = (
        "auto"
    )
    slice_axis: Annotated[
        Optional[SliceAxisChoice],  # noqa: UP045
        under(
            MODEL_INPUT,
            "--slice-axis",
            help="Axis along which 2-D slices are cut. auto: the one with the largest spacing, else axial. "
            "[default: the model card's, else auto]",
            rare=True,
        ),
    ] = None
    orientation: Annotated[
        MaybeStr,
        under(
            MODEL_INPUT,
            metavar="CODES",
            help="Axes the model expects, as RAS; native: the file's own. [default: card]",
            rare=True,
        ),
    ] = None
    intensity: Annotated[
        MaybeStr,
        under(
            MODEL_INPUT,
            metavar="KIND",
            help="Scaling the model expects: none, minmax, zscore, zscore-nonzero, window:MIN,MAX, "
            "percentile:LOWER,UPPER, ct:LOWER,UPPER,MEAN,STD. [default: card]",
        ),
    ] = None
    spacing: Annotated[
        MaybeStr,
        under(
            MODEL_INPUT,
            metavar="MM",
            help="Spacing the model was trained at, along its axes, as 1.5,1.5,2; native: the scan's. [default: card]",
            rare=True,
        ),
    ] = None
    roi: Annotated[
        MaybeStr,
        under(
            MODEL_INPUT,
            metavar="VOXELS",
            help="Sliding windows of this size, as 96,96,96; none: in one piece. [default: card, else none]",
        ),
    ] = None
    overlap: Annotated[
        MaybeFloat,
        under(
            MODEL_INPUT,
            help="Overlap of neighbouring windows, as a share of their size, 0 to 1. [default: card, else 0.5]",
            rare=True,
        ),
    ] = None
    folds: Folds = None
    mirror: Mirror = None
    device: Annotated[
        str, under(MODEL_INPUT, "--device", "-d", help="Device that runs the model: auto, cpu, cuda or cuda:N.")
    ] = "auto"

    def given(self) -> dict[str, Any]:
        """The view as options of the library, without what was not given."""
        found = given(self)
        for name, word in (("spacing", "native"), ("roi", "none")):
            if found.get(name, word) != word:
                found[name] = numbers(found[name], f"--{name}")
        return found
