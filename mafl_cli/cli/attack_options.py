"""The options of `mafl attack`, in groups. Those of the method's settings come from `AttackConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from mafl_cli.cli.groups import BUDGET, FILES, GOAL, METHOD, MODEL_INPUT, OUTPUT, of_settings, under
from mafl_cli.cli.options import (
    ClassNames,
    CommandTimeout,
    Ensemble,
    Json,
    MaybeFloat,
    MaybePath,
    MaybeStr,
    ModelCommand,
    Overwrite,
    SizeLimit,
    Trust,
)
from mafl_cli.cli.reading import between_commas, files_between_commas, read_ball, read_label_map
from mafl_cli.config import PRESETS, Precision, SaveAs

Images = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="IMAGE",
        help="Scan to change: .nii or .nii.gz, or DICOM (a folder, a .zip, a file). For CASE_0000.nii.gz the other "
        "channels (CASE_0001, ...) are found automatically. A batch: several of these, a quoted pattern, a folder of "
        "scans, a data set (nnU-Net, Decathlon, BIDS), or a manifest (.csv, .tsv, .jsonl; - is stdin).",
    ),
]


@dataclass
class AttackFiles:
    """What is attacked, what is to be drawn, and where the results go."""

    target: Annotated[
        MaybeStr,
        under(
            FILES,
            "--target",
            "-t",
            metavar="MASK|DIR|RECIPE",
            help="Mask that the model shall draw. A label map (NIfTI or DICOM SEG); for regions that may overlap "
            "one mask "
            "each, separated by commas, or one bit-coded mask (1, 2, 4, ... added up). Or a recipe that changes the "
            "clean prediction: erase:CLASS, shift:CLASS:X,Y,Zmm, dilate:CLASS:Rmm, erode:CLASS:Rmm, swap:CLASS,CLASS, "
            "copy:MASK, each with :sphere@X,Y,Z,R to limit it. In a batch also a folder of masks by the names of the "
            "cases; a manifest may have its own.",
        ),
    ] = None
    model: Annotated[
        Optional[list[Path]],  # noqa: UP045
        under(
            FILES,
            "--model",
            "-m",
            metavar="MODEL",
            help="Model of any kind: TorchScript, .pt2, ONNX, a MONAI bundle, an nnU-Net folder, a function; several "
            "with --ensemble. It is a program: use only files you trust. "
            "[default: $MAFL_MODEL, else the brain-tissue model that comes with mafl]",
        ),
    ] = None
    model_command: ModelCommand = None
    command_timeout: CommandTimeout = None
    classes: ClassNames = None
    ensemble: Ensemble = None
    trust: Trust = False
    out: Annotated[Path, under(FILES, "--out", "-o", metavar="DIR", help="Folder for the results.")] = Path("mafl-out")
    overwrite: Overwrite = False
    size_limit: SizeLimit = None
    dry_run: Annotated[
        bool,
        under(FILES, "--dry-run", help="Write the clean prediction and the target, print what would change, and stop."),
    ] = False
    channels: Annotated[
        MaybeStr,
        under(
            FILES,
            metavar="FILES",
            help="Scans of all channels in the model's order, separated by commas; IMAGE comes first if it is not "
            "among them.",
        ),
    ] = None
    attack_channels: Annotated[
        MaybeStr,
        under(
            FILES,
            metavar="NAMES",
            help="Channels that may change, by name or number (0, 1, ...), separated by commas. [default: all]",
            rare=True,
        ),
    ] = None
    guides: Annotated[
        MaybeStr,
        under(
            FILES,
            "--guide",
            metavar="IMAGE",
            help="Scan on the image's grid in which the target is really there, a file for each channel; the "
            "feature term "
            "pulls towards it.",
            rare=True,
        ),
    ] = None
    starts: Annotated[
        MaybeStr,
        under(
            FILES,
            "--start",
            metavar="FILE",
            help="Earlier adversarial scan or perturbation, a file for each channel, that one search of --method worst "
            "begins at, or that with --model-command, as another model's attack found it.",
            rare=True,
        ),
    ] = None
    resample_target: Annotated[
        bool,
        under(FILES, "--resample-target", help="Move masks to the image's grid, to the nearest voxel.", rare=True),
    ] = False
    label_map: Annotated[
        MaybeStr,
        under(
            FILES, metavar="OLD:NEW,...", help="Change labels of the target's files, as 255:1 or 1:2,2:0.", rare=True
        ),
    ] = None
    series: Annotated[
        MaybeStr,
        under(
            FILES,
            metavar="N|UID",
            help="DICOM series to read, by its number in the list that mafl prints, or by its UID.",
            rare=True,
        ),
    ] = None
    strict: Annotated[
        bool,
        under(
            MODEL_INPUT,
            "--strict",
            help="Refuse a scan of which the model makes far more when it is read another way; else that is only said.",
            rare=True,
        ),
    ] = False
    allow_gaps: Annotated[
        bool,
        under(
            FILES,
            "--allow-gaps",
            help="Read DICOM slices with uneven distances as if they were evenly spaced.",
            rare=True,
        ),
    ] = False

    def given(self) -> dict[str, Any]:
        """The group as options of the library."""
        names = self.attack_channels
        return {
            "out": self.out,
            "overwrite": self.overwrite,
            "size_limit": self.size_limit,
            "trust": self.trust,
            "model_command": self.model_command,
            "command_timeout": self.command_timeout,
            "classes": None if self.classes is None else between_commas(self.classes, "--classes"),
            "ensemble": self.ensemble,
            "label_map": read_label_map(self.label_map),
            "guides": () if self.guides is None else files_between_commas(self.guides, "--guide"),
            "starts": () if self.starts is None else files_between_commas(self.starts, "--start"),
            "attack_channels": None if names is None else between_commas(names, "--attack-channels"),
            "resample_target": self.resample_target,
            "series": self.series,
            "strict": self.strict,
            "allow_gaps": self.allow_gaps,
        }


Settings: Any = of_settings("Settings")


@dataclass
class Method:
    """The method, and what is asked of it beside its settings."""

    method: Annotated[str, under(METHOD, metavar="NAME", help=f"Settings to start from: {', '.join(PRESETS)}.")] = (
        "mafl"
    )
    ladder: Annotated[
        bool,
        under(
            METHOD,
            "--ladder",
            help="Try on at most four slices, or the volume, whether more steps and larger changes reach more; where "
            "they do not, the attack is in doubt.",
        ),
    ] = False
    queries: Annotated[
        Optional[int],  # noqa: UP045
        under(
            METHOD,
            "--queries",
            help="With --model-command: how often it may be asked, the clean scan included. [default: 200]",
            rare=True,
        ),
    ] = None
    untargeted: Annotated[
        bool,
        under(
            GOAL,
            "--untargeted",
            help="With --model-command, instead of --target: make it draw anything else, to a Dice of 0.5 with its "
            "clean prediction.",
            rare=True,
        ),
    ] = False
    require_success: Annotated[
        bool, under(GOAL, "--require-success", help="Exit with 5 when the goal is not reached; the results are kept.")
    ] = False


@dataclass
class Budget:
    """How far the change may go, and where."""

    eps: Annotated[
        MaybeFloat,
        under(
            BUDGET,
            "--eps",
            help="Largest size of the change, in model units, measured by --norm. [default: the method's]",
        ),
    ] = None
    eps_hu: Annotated[MaybeFloat, under(BUDGET, "--eps-hu", help="--eps in the file's own units: HU for CT.")] = None
    eps_range: Annotated[
        MaybeFloat, under(BUDGET, "--eps-range", help="--eps as a share of the scan's range, 0 to 1.", rare=True)
    ] = None
    eps_noise: Annotated[
        MaybeFloat,
        under(
            BUDGET,
            "--eps-noise",
            help="--eps in standard deviations of the scan's own noise, which is estimated channel by channel.",
            rare=True,
        ),
    ] = None
    budget_eps: Annotated[
        MaybeFloat,
        under(
            BUDGET, help="Find the best result within this radius, in model units: --eps with a goal of 1, then stop."
        ),
    ] = None
    within: Annotated[
        MaybePath,
        under(BUDGET, metavar="MASK", help="Mask of the voxels that may change: those with labels above 0.", rare=True),
    ] = None
    body_only: Annotated[
        bool, under(BUDGET, "--body-only", help="Change only voxels of the body, not the air around it.")
    ] = False

    def where(self) -> dict[str, Any]:
        """The voxels that may change, as options of the library."""
        return {"within": self.within, "body_only": self.body_only}

    def ball(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The ball that was asked for, as settings. settings: the other options of the method that were given."""
        radii = {
            "--eps": self.eps,
            "--eps-hu": self.eps_hu,
            "--eps-range": self.eps_range,
            "--eps-noise": self.eps_noise,
        }
        goals = {f"--{name.replace('_', '-')}": settings.get(name) for name in ("goal_iou", "goal_hit", "after_goal")}
        return read_ball({**radii, "--budget-eps": self.budget_eps}, settings.get("norm"), goals)


@dataclass
class Network:
    """How the network runs."""

    tap: Annotated[
        str,
        under(
            MODEL_INPUT,
            help="Layers whose features are compared, NAME or NAME:WEIGHT, separated by commas; "
            "`mafl inspect` lists them.",
            rare=True,
        ),
    ] = "auto"
    precision: Annotated[
        Precision,
        under(
            MODEL_INPUT,
            help="Numerical precision during the search: float32, or bf16 or fp16 autocast. The result is judged in "
            "float32.",
            rare=True,
        ),
    ] = "float32"

    def given(self) -> dict[str, Any]:
        """The group as options of the library."""
        return asdict(self)


@dataclass
class AttackOutput:
    """What the results look like."""

    save_as: Annotated[
        Optional[SaveAs],  # noqa: UP045
        under(
            OUTPUT,
            help="float32 keeps every digit; source keeps the scan's own type and searches on its grid. "
            "[default: float32; for DICOM, source]",
        ),
    ] = None
    redact: Annotated[
        bool,
        under(
            OUTPUT,
            "--redact",
            help="Write hashes instead of names of scans and masks, and no text, patient or study in headers.",
        ),
    ] = False
    json_file: Json = None

    def given(self) -> dict[str, Any]:
        """The group as options of the library."""
        return {"save_as": self.save_as, "redact": self.redact}
