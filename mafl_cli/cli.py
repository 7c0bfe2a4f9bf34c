"""The `mafl` command: options become a request, a library call does the work, its result lines and an exit code.

Nothing heavy is imported here, so that `--help` answers at once; each command imports what it needs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer
import typer.core

from mafl_cli import __version__
from mafl_cli.config import (
    PRESETS,
    AfterGoal,
    AttackConfig,
    Direction,
    GradientNorm,
    LowFrequency,
    MaskLoss,
    Mode,
    Norm,
    Precision,
    SaveAs,
    SliceAxisChoice,
    Step,
    budget,
    preset,
)
from mafl_cli.display import WINDOWS
from mafl_cli.errors import GateError, MaflError, PartialError, UsageError
from mafl_cli.viewers import Viewer

if TYPE_CHECKING:
    from mafl_cli.case import AttackRequest
    from mafl_cli.cases import CaseFiles
    from mafl_cli.cluster import Cluster

EXIT_CODES = """
Exit codes: 0 done · 1 internal error, or the results could not be written · 2 usage (also: no such device, output
exists) · 3 bad input or geometry · 4 model unusable · 5 gate failed · 6 some cases failed · 130 interrupted.
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
_OF_METHOD = "[default: the method's]"

# Headings of --help, in their order.
FILES, GOAL, METHOD, BUDGET, MODEL_INPUT, OUTPUT = "Files", "Goal", "Method", "Budget", "Model input", "Output"
TRIALS, GATES, BATCH = "Trials", "Gates", "Batch"

LogFormat = Literal["text", "json"]

# typer reads annotations at run time, also on Python 3.10.
MaybeInt = Optional[int]  # noqa: UP045
MaybeFloat = Optional[float]  # noqa: UP045
MaybeBool = Optional[bool]  # noqa: UP045
MaybeStr = Optional[str]  # noqa: UP045
MaybePath = Optional[Path]  # noqa: UP045


class Grouped(typer.core.TyperCommand):
    """A command whose options stand under headings in plain text; rich's panels would cost an import and a frame."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each heading, in the order of the options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                other = "Arguments" if parameter.param_type_name == "argument" else "Other"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or other, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


@dataclass(frozen=True)
class _Voice:
    """Words go to stderr, so that stdout stays data. level: -1 quiet, 0 normal, 1 verbose. as_json: not as text."""

    level: int
    debug: bool
    as_json: bool = False

    def say(self, line: str, **facts: Any) -> None:
        if self.level >= 0:
            self._put("info", line, facts)

    def detail(self, line: str, **facts: Any) -> None:
        if self.level >= 1:
            self._put("detail", line, facts)

    def fail(self, line: str) -> None:
        self._put("error", line if self.as_json else f"mafl: {line}", {})

    def _put(self, level: str, line: str, facts: Mapping[str, Any]) -> None:
        if self.as_json:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            line = json.dumps({"time": now, "level": level, "message": line, **facts}, ensure_ascii=False)
        print(line, file=sys.stderr, flush=True)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.", rich_help_panel=OUTPUT)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel=OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=OUTPUT)]
Json = Annotated[
    MaybeStr,
    typer.Option("--json", metavar="FILE", help="Also write the report there; - is stdout.", rich_help_panel=OUTPUT),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that are there already.", rich_help_panel=FILES)
]


def _under(heading: str, *names: str, **settings: Any) -> Any:
    """An option under a heading."""
    return typer.Option(*names, rich_help_panel=heading, **settings)


# What a model is told of scans, by every command that asks one.
ModeOption = Annotated[Mode, _under(MODEL_INPUT, help="Slice by slice or as a volume; auto asks the model.")]
SliceAxisOption = Annotated[
    Optional[SliceAxisChoice],  # noqa: UP045
    _under(
        MODEL_INPUT,
        "--slice-axis",
        help="Where 2-D slices are cut. auto: across the largest spacing, else axial. "
        "[default: the model card's, else auto]",
    ),
]
OrientationOption = Annotated[
    MaybeStr,
    _under(
        MODEL_INPUT, metavar="CODES", help="Axes the model expects, as RAS; native: the file's own. [default: card]"
    ),
]
IntensityOption = Annotated[
    MaybeStr,
    _under(
        MODEL_INPUT,
        metavar="KIND",
        help="Scaling the model expects: none, minmax, zscore, zscore-nonzero, window:MIN,MAX, "
        "percentile:LOWER,UPPER, ct:LOWER,UPPER,MEAN,STD. [default: card]",
    ),
]
SpacingOption = Annotated[
    MaybeStr,
    _under(
        MODEL_INPUT,
        metavar="MM",
        help="Spacing the model was trained at, along its axes, as 1.5,1.5,2; native: the scan's. [default: card]",
    ),
]
RoiOption = Annotated[
    MaybeStr,
    _under(
        MODEL_INPUT,
        metavar="VOXELS",
        help="Sliding windows of this size, as 96,96,96; none: in one piece. [default: card, else none]",
    ),
]
OverlapOption = Annotated[
    MaybeFloat, _under(MODEL_INPUT, help="Of the windows, as a share of their size. [default: card, else 0.5]")
]
DeviceOption = Annotated[str, _under(MODEL_INPUT, "--device", "-d", help="auto, cpu, cuda or cuda:N.")]


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


@app.command(cls=Grouped, epilog=EXIT_CODES)
def attack(
    images: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="IMAGE",
            help="Scan to change: .nii or .nii.gz, or DICOM (a folder, a .zip, a file). Of CASE_0000.nii.gz the other "
            "channels are found by their numbers. A batch: several of these, a quoted pattern, a folder of scans, a "
            "data set (nnU-Net, Decathlon, BIDS), or a manifest (.csv, .tsv, .jsonl; - is stdin).",
        ),
    ] = None,
    # --- files
    target: Annotated[
        MaybeStr,
        _under(
            FILES,
            "--target",
            "-t",
            metavar="MASK|DIR|RECIPE",
            help="What is to be drawn. A label map (NIfTI or DICOM SEG); for regions that may overlap one mask each, "
            "separated by commas, or one bit-coded mask (1, 2, 4, ... added up). Or a recipe that changes the clean "
            "prediction: erase:CLASS, shift:CLASS:X,Y,Zmm, dilate:CLASS:Rmm, erode:CLASS:Rmm, swap:CLASS,CLASS, "
            "copy:MASK, each with :sphere@X,Y,Z,R to limit it. In a batch also a folder of masks by the names of the "
            "cases; a manifest may have its own.",
        ),
    ] = None,
    resample_target: Annotated[
        bool, _under(FILES, "--resample-target", help="Move masks to the image's grid, to the nearest voxel.")
    ] = False,
    label_map: Annotated[
        MaybeStr,
        _under(FILES, metavar="OLD:NEW,...", help="Change labels of the target's files, as 255:1 or 1:2,2:0."),
    ] = None,
    series: Annotated[
        MaybeStr,
        _under(FILES, metavar="N|UID", help="Which DICOM series, by its number in the list that is shown, or its UID."),
    ] = None,
    allow_gaps: Annotated[
        bool, _under(FILES, "--allow-gaps", help="Take DICOM slices at uneven distances as if they were even.")
    ] = False,
    channels: Annotated[
        MaybeStr,
        _under(
            FILES,
            metavar="FILES",
            help="Scans of all channels in the model's order, separated by commas; IMAGE comes first if it is not "
            "among them.",
        ),
    ] = None,
    attack_channels: Annotated[
        MaybeStr,
        _under(
            FILES,
            metavar="NAMES",
            help="Channels that may change, by name or number (0, 1, ...), separated by commas. [default: all]",
        ),
    ] = None,
    guide: Annotated[
        MaybeStr,
        _under(
            FILES,
            metavar="IMAGE",
            help="Scan on the image's grid that has what the target shows, a file for each channel; the feature term "
            "pulls towards it.",
        ),
    ] = None,
    model: Annotated[
        MaybePath,
        _under(
            FILES,
            "--model",
            "-m",
            metavar="FILE",
            help="TorchScript model. It is a program: use only files you trust. "
            "[default: $MAFL_MODEL, else the brain-tissue model that comes with mafl]",
        ),
    ] = None,
    out: Annotated[Path, _under(FILES, "--out", "-o", metavar="DIR", help="Folder for the results.")] = Path(
        "mafl-out"
    ),
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool,
        _under(FILES, "--dry-run", help="Write the clean prediction and the target, say what would change, and stop."),
    ] = False,
    # --- goal
    goal_iou: Annotated[
        MaybeFloat,
        _under(
            GOAL, help=f"IoU with the target, over its classes, that counts as reached. [default: {_DEFAULTS.goal_iou}]"
        ),
    ] = None,
    goal_hit: Annotated[
        MaybeFloat,
        _under(GOAL, help=f"Share of the voxels to be changed that must change. [default: {_DEFAULTS.goal_hit}]"),
    ] = None,
    require_success: Annotated[
        bool, _under(GOAL, "--require-success", help="Exit with 5 when the goal is not reached; the results are kept.")
    ] = False,
    aim: Annotated[
        MaybeFloat,
        _under(
            GOAL,
            help="Score that is held while the change is made smaller. "
            "[default: 1, every voxel; the goal if that is below 0.99]",
        ),
    ] = None,
    after_goal: Annotated[
        Optional[AfterGoal],  # noqa: UP045
        _under(
            GOAL,
            help="What the remaining steps are for: a smaller change, nothing, or more of the same, keeping the best. "
            f"{_OF_METHOD}",
        ),
    ] = None,
    # --- method
    method: Annotated[
        str,
        _under(METHOD, metavar="NAME", help=f"Settings to start from: {', '.join(PRESETS)}."),
    ] = "mafl",
    steps: Annotated[
        MaybeInt, _under(METHOD, help=f"Forward passes per slice or volume. [default: {_DEFAULTS.steps}]")
    ] = None,
    mask_loss: Annotated[
        Optional[MaskLoss],  # noqa: UP045
        _under(METHOD, help=f"What the target asks of the logits. {_OF_METHOD}"),
    ] = None,
    kappa: Annotated[
        MaybeFloat,
        _under(METHOD, help=f"Lead that wins a voxel, as a share of the clean prediction's; for margin. {_OF_METHOD}"),
    ] = None,
    adaptive_weights: Annotated[
        MaybeBool, _under(METHOD, help=f"Weigh voxels that miss their class more and more; for margin. {_OF_METHOD}")
    ] = None,
    feature_weight: Annotated[
        MaybeFloat, _under(METHOD, help=f"Weight of the feature cosine term; 0 is off. {_OF_METHOD}")
    ] = None,
    low_frequency: Annotated[
        Optional[LowFrequency],  # noqa: UP045
        _under(METHOD, help=f"Pull the change's low frequencies towards 0, or allow none. {_OF_METHOD}"),
    ] = None,
    low_frequency_weight: Annotated[
        MaybeFloat, _under(METHOD, help=f"Weight of the low-frequency penalty; 0 is off. {_OF_METHOD}")
    ] = None,
    low_frequency_levels: Annotated[
        MaybeInt, _under(METHOD, help=f"Blocks of 2^N voxels are low frequency. {_OF_METHOD}")
    ] = None,
    l2_weight: Annotated[
        MaybeFloat, _under(METHOD, help=f"Weight of the change's squared length; 0 is off. {_OF_METHOD}")
    ] = None,
    peak_weight: Annotated[
        MaybeFloat, _under(METHOD, help=f"How much more the largest voxels count in that length. {_OF_METHOD}")
    ] = None,
    gradient_norm: Annotated[
        Optional[GradientNorm],  # noqa: UP045
        _under(METHOD, help=f"What gradients are divided by before momentum. {_OF_METHOD}"),
    ] = None,
    momentum: Annotated[MaybeFloat, _under(METHOD, help=f"Share of the last direction kept. {_OF_METHOD}")] = None,
    direction: Annotated[
        Optional[Direction],  # noqa: UP045
        _under(METHOD, help=f"What becomes of the accumulated gradient: as it is, normalised, its sign. {_OF_METHOD}"),
    ] = None,
    step: Annotated[
        Optional[Step],  # noqa: UP045
        _under(METHOD, help=f"How long a step is. {_OF_METHOD}"),
    ] = None,
    step_size: Annotated[
        MaybeFloat,
        _under(
            METHOD,
            help="Length of a step, as a share of the scan's range. [default: the method's, else 2.5 eps / steps]",
        ),
    ] = None,
    tau: Annotated[
        MaybeFloat, _under(METHOD, help=f"Steps of ASMA are tau + beta * IoU long, in --step-size's unit. {_OF_METHOD}")
    ] = None,
    beta: Annotated[MaybeFloat, _under(METHOD, help=f"See --tau. {_OF_METHOD}")] = None,
    seed: Annotated[int, _under(METHOD, help="Seed of PyTorch's generators and of a random start.")] = _DEFAULTS.seed,
    # --- budget
    eps: Annotated[
        MaybeFloat,
        _under(BUDGET, "--eps", help=f"The change stays in a ball of this radius, model units. {_OF_METHOD}"),
    ] = None,
    eps_hu: Annotated[
        MaybeFloat, _under(BUDGET, "--eps-hu", help="The same in the file's own units: HU for CT.")
    ] = None,
    eps_range: Annotated[
        MaybeFloat, _under(BUDGET, "--eps-range", help="The same as a share of the scan's range.")
    ] = None,
    budget_eps: Annotated[
        MaybeFloat,
        _under(BUDGET, help="The best result within this radius, model units: --eps with a goal of 1, then stop."),
    ] = None,
    norm: Annotated[
        Optional[Norm],  # noqa: UP045
        _under(BUDGET, help=f"Of the ball: largest voxel, or L2 per slice or volume. {_OF_METHOD}"),
    ] = None,
    within: Annotated[
        MaybePath, _under(BUDGET, metavar="MASK", help="Only voxels that this mask labels may change.")
    ] = None,
    body_only: Annotated[
        bool, _under(BUDGET, "--body-only", help="Only voxels of the body may change, not the air around it.")
    ] = False,
    random_start: Annotated[
        MaybeBool, _under(BUDGET, help=f"Begin at a random point of the ball. {_OF_METHOD}")
    ] = None,
    # --- model input
    mode: ModeOption = "auto",
    slice_axis: SliceAxisOption = None,
    orientation: OrientationOption = None,
    intensity: IntensityOption = None,
    spacing: SpacingOption = None,
    roi: RoiOption = None,
    overlap: OverlapOption = None,
    tap: Annotated[
        str,
        _under(
            MODEL_INPUT,
            help="Layers whose features are compared, NAME or NAME:WEIGHT, separated by commas; "
            "`mafl inspect` lists them.",
        ),
    ] = "auto",
    device: DeviceOption = "auto",
    precision: Annotated[
        Precision,
        _under(MODEL_INPUT, help="Of the search: float32, or bf16 or fp16 autocast. The result is judged in float32."),
    ] = "float32",
    # --- batch
    list_cases: Annotated[bool, _under(BATCH, "--list", help="Print the cases, one a line, and stop.")] = False,
    workers: Annotated[int, _under(BATCH, "--workers", "-j", min=1, help="Cases at the same time; one GPU each.")] = 1,
    threads: Annotated[
        MaybeInt, _under(BATCH, min=1, help="CPU threads of each worker. [default: the cores, shared out; dask: 1]")
    ] = None,
    engine: Annotated[
        Literal["local", "dask"], _under(BATCH, help="Workers on this machine, or on a Dask cluster (mafl[dask]).")
    ] = "local",
    scheduler: Annotated[
        MaybeStr, _under(BATCH, metavar="ADDRESS|FILE", help="Of Dask: tcp://HOST:PORT, or its scheduler file.")
    ] = None,
    slurm: Annotated[
        MaybePath,
        _under(BATCH, metavar="TOML", help="Start --workers Dask workers by SLURM, as the table [slurm] says."),
    ] = None,
    case_timeout: Annotated[
        MaybeFloat, _under(BATCH, "--case-timeout", metavar="SECONDS", help="A case that takes longer has failed.")
    ] = None,
    resume: Annotated[
        bool,
        _under(
            BATCH, "--resume/--no-resume", help="Go on where an earlier run of the same settings stopped, or refuse."
        ),
    ] = True,
    retry_failed: Annotated[bool, _under(BATCH, "--retry-failed", help="Try cases again that failed before.")] = False,
    num_parts: Annotated[
        MaybeInt,
        _under(BATCH, min=1, help="Only every N-th case, for several machines. [default: those of a SLURM array]"),
    ] = None,
    part_id: Annotated[MaybeInt, _under(BATCH, min=0, help="Which of the parts, from 0.")] = None,
    log_format: Annotated[
        LogFormat, _under(BATCH, help="Of what is said on stderr: text, or a JSON object a line.")
    ] = "text",
    # --- output
    save_as: Annotated[
        Optional[SaveAs],  # noqa: UP045
        _under(
            OUTPUT,
            help="float32 keeps every digit; source keeps the scan's own type and searches on its grid. "
            "[default: float32; for DICOM, source]",
        ),
    ] = None,
    redact: Annotated[
        bool,
        _under(OUTPUT, "--redact", help="Hashes instead of the names of scans and masks, and no free text in headers."),
    ] = False,
    json_file: Json = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Change IMAGE as little as possible so that the model draws the target mask.

    Writes adversarial.nii.gz (or the folder adversarial/, a derived DICOM series) and perturbation.nii.gz, numbered
    when there are several channels; prediction_clean.nii.gz, prediction_adversarial.nii.gz and target.nii.gz (for DICOM
    also as SEG); and report.json. Every number is measured on the written file, read again.
    """
    voice = _Voice(-1 if quiet else int(verbose), debug, log_format == "json")
    with _reported(voice):
        balls = {"--eps": eps, "--eps-hu": eps_hu, "--eps-range": eps_range, "--budget-eps": budget_eps}
        goals = {"--goal-iou": goal_iou, "--goal-hit": goal_hit, "--after-goal": after_goal}
        config = _settings(
            method,
            _ball(balls, norm, goals),
            steps=steps,
            goal_iou=goal_iou,
            goal_hit=goal_hit,
            aim=aim,
            after_goal=after_goal,
            mask_loss=mask_loss,
            kappa=kappa,
            adaptive_weights=adaptive_weights,
            feature_weight=feature_weight,
            low_frequency=low_frequency,
            low_frequency_weight=low_frequency_weight,
            low_frequency_levels=low_frequency_levels,
            l2_weight=l2_weight,
            peak_weight=peak_weight,
            gradient_norm=gradient_norm,
            momentum=momentum,
            direction=direction,
            step=step,
            step_size=step_size,
            tau=tau,
            beta=beta,
            norm=norm,
            random_start=random_start,
            seed=seed,
        )
        seen_as = _seen_as(mode, slice_axis, orientation, intensity, spacing, roi, overlap)
        _require_folders({"--json": json_file})
        from mafl_cli import cases, recipes

        # Channels, and a series, are those of one scan.
        several = channels is None and series is None and bool(images) and cases.is_batch(images or [])
        found = cases.find(images or [], target=target, stdin=sys.stdin) if several else []
        if list_cases:
            _list_cases(found, several)
            return
        if target is None and not any(case.targets for case in found):
            raise UsageError("no target: give --target, a mask or a recipe such as erase:1.")
        recipe = None if target is None else recipes.parse(target)
        masks = () if target is None or recipe else tuple(map(Path, _listed(target, "--target")))
        from mafl_cli import pipeline, report
        from mafl_cli.targets import Masks

        request = pipeline.AttackRequest(
            images=() if several else _images(images or [], channels),
            # A folder of masks has been looked into: each case has its own.
            targets=() if several and any(mask.is_dir() for mask in masks) else masks,
            recipe=recipe,
            out=out,
            series=series,
            allow_gaps=allow_gaps,
            masks=Masks(resample_target, _label_map(label_map)),
            within=within,
            body_only=body_only,
            redact=redact,
            guides=() if guide is None else tuple(map(Path, _listed(guide, "--guide"))),
            model=_model(model, voice),
            **seen_as,
            save_as=save_as,
            device=device,
            precision=precision,
            attack_channels=None if attack_channels is None else _listed(attack_channels, "--attack-channels"),
            tap=tap,
            overwrite=overwrite,
            config=config,
        )
        if several:
            if dry_run:
                raise UsageError("--dry-run is for one scan; --list shows the cases of a batch.")
            part = _part(num_parts, part_id)
            batch = _Batch(
                found, workers, threads, _cluster(engine, scheduler, slurm, workers, case_timeout), part, case_timeout,
                resume, retry_failed, require_success,
            )  # fmt: skip
            _attack_all(batch, request, json_file, voice)
            return
        if dry_run:
            shown = pipeline.show_target(request, say=voice.say, detail=voice.detail)
            _deliver(shown, report.format_dry_run(shown), json_file, voice)
            return
        with _progress(voice) as show:
            done = pipeline.run_attack(request, say=voice.say, detail=voice.detail, on_progress=show)
        for part, seconds in done["cases"][0]["timing_s"].items():
            voice.detail(f"{part}: {seconds:.2f} s")
        _deliver(done, report.format_summary(done), json_file, voice)
        if require_success and not done["cases"][0]["attack"]["goal_reached"]:
            raise GateError(f"--require-success: {done['cases'][0]['case_id']}: the goal was not reached.")


def _seen_as(
    mode: Mode,
    slice_axis: SliceAxisChoice | None,
    orientation: str | None,
    intensity: str | None,
    spacing: str | None,
    roi: str | None,
    overlap: float | None,
) -> dict[str, Any]:
    """What the options say of how a model sees scans, as settings of a `ModelRequest`."""
    from mafl_cli.card import check_orientation, check_overlap, check_roi, check_spacing
    from mafl_cli.config import Intensity

    mm = None if spacing is None else (0.0,) if spacing == "native" else check_spacing(_numbers(spacing, "--spacing"))
    return {
        "mode": mode,
        "slice_axis": slice_axis,
        "spacing": mm,
        "roi": None if roi is None else (0,) if roi == "none" else check_roi(_numbers(roi, "--roi")),
        "intensity": None if intensity is None else Intensity.parse(intensity),
        "orientation": None if orientation is None else check_orientation(orientation),
        "overlap": None if overlap is None else check_overlap(overlap),
    }


def _require_folders(files: Mapping[str, str | None]) -> None:
    """Before anything is computed: the folders that files will be written to must be there."""
    for option, file in files.items():
        if file not in (None, "-") and not Path(str(file)).parent.is_dir():
            raise UsageError(f"{option}: the folder of this file does not exist.")


def _require_no_input(files: Mapping[str, str | None], read: Sequence[Path]) -> None:
    """A verdict must not take the place of what it is about: an input, or a file of a run or of a folder of cases."""
    inputs = {path.resolve() for path in read}
    for option, file in files.items():
        if file in (None, "-"):
            continue
        place = Path(str(file)).resolve()
        kept = place.name in ("report.json", "cases.csv") or place.name.endswith((".nii", ".nii.gz", ".dcm"))
        if place in inputs or (kept and place.exists() and inputs & set(place.parents)):
            raise UsageError(f"{option} {place.name}: is one of the files that are judged; choose another name.")


def _listed(text: str, option: str) -> tuple[str, ...]:
    """What stands between commas. Raises UsageError where nothing does."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise UsageError(f"{option}: there is nothing before or after a comma.")
    return parts


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in _listed(text, option)]
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a list of numbers, separated by commas.") from None


def _label_map(text: str | None) -> dict[int, int]:
    """ "255:1,2:0" -> {255: 1, 2: 0}."""
    found: dict[int, int] = {}
    for part in _listed(text, "--label-map") if text is not None else ():
        old, _, new = part.partition(":")
        if not (old.isdecimal() and new.isdecimal()) or int(old) in found:
            raise UsageError(f"--label-map {text!r} is not a list of OLD:NEW, whole numbers, each OLD once.")
        found[int(old)] = int(new)
    return found


def _images(given: list[str], channels: str | None) -> tuple[Path, ...]:
    """The files of all channels: those listed, or the numbered siblings of IMAGE, or IMAGE alone."""
    listed = () if channels is None else tuple(map(Path, _listed(channels, "--channels")))
    if len(given) > 1:
        raise UsageError("--channels are those of one scan; several IMAGEs are a batch, with numbered channels.")
    if not given:
        if not listed:
            raise UsageError("no scan: give IMAGE, or the files of all channels with --channels.")
        return listed
    image = Path(given[0])
    if listed:
        return listed if image in listed else (image, *listed)
    first = re.fullmatch(r"(.+)_0000(\.nii(?:\.gz)?)", image.name)
    if first is None:
        return (image,)
    found = [image]
    while (following := image.with_name(f"{first[1]}_{len(found):04d}{first[2]}")).exists():
        found.append(following)
    return tuple(found)


@dataclass(frozen=True)
class _Batch:
    """The options of a batch."""

    cases: Sequence[CaseFiles]
    workers: int
    threads: int | None
    cluster: Cluster | None
    part: tuple[int, int]
    timeout: float | None
    resume: bool
    retry_failed: bool
    require_success: bool


def _list_cases(found: Sequence[CaseFiles], several: bool) -> None:
    if not several:
        raise UsageError("--list shows the cases of a batch; this is one scan.")
    for case in found:
        print(f"{case.case_id}\t{','.join(path.name for path in case.images)}\t{case.problem or ''}".rstrip())


def _part(count: int | None, index: int | None) -> tuple[int, int]:
    """(index, count): the options, else what SLURM says of an array, else all."""
    if (count is None) != (index is None):
        raise UsageError("--num-parts and --part-id go together.")
    if count is None or index is None:
        task = {key: os.environ.get(f"SLURM_ARRAY_TASK_{key}", "") for key in ("ID", "MIN", "MAX", "STEP")}
        if not all(value.isdecimal() for value in task.values()):
            return 0, 1
        number, low, high, step = (int(task[key]) for key in ("ID", "MIN", "MAX", "STEP"))
        index, count = (number - low) // max(step, 1), (high - low) // max(step, 1) + 1
    if index >= count:
        raise UsageError(f"--part-id {index}: the {count} parts are 0 to {count - 1}.")
    return index, count


def _cluster(
    engine: str, scheduler: str | None, slurm: Path | None, workers: int, timeout: float | None
) -> Cluster | None:
    """The Dask cluster that was asked for."""
    if engine == "local":
        if scheduler is not None or slurm is not None:
            raise UsageError("--scheduler and --slurm are for --engine dask.")
        return None
    if timeout is not None:
        raise UsageError("--case-timeout is for --engine local; give your scheduler a limit of its own.")
    if (scheduler is None) == (slurm is None):
        raise UsageError(
            "--engine dask needs either --scheduler (an address or a scheduler file) or --slurm FILE.toml."
        )
    from mafl_cli.cluster import Cluster

    return Cluster(scheduler=scheduler, slurm=slurm, workers=workers)


def _attack_all(options: _Batch, request: AttackRequest, json_file: str | None, voice: _Voice) -> None:
    """Attack every case; what goes wrong with some of them is said, and ends in exit code 6."""
    from mafl_cli import batch
    from mafl_cli.names import token

    found = options.cases
    if request.redact:
        found = [replace(case, case_id=token(case.images[0])) if case.images else case for case in found]
    if not options.resume and (request.out / "report.json").exists():
        raise UsageError(f"{request.out.name}: already holds results, and --no-resume was given.")
    if options.part[1] > 1:
        voice.say(f"part {options.part[0]} of {options.part[1]}")
    seen = {"done": 0}
    with _bar(voice, "case") as bar:

        def ended(case_id: str, row: Mapping[str, Any]) -> None:
            seen["done"] += 1
            what = "done" if row["status"] == "ok" else f"failed: {row['error']['message']}"
            for line in row["said"]:
                voice.detail(f"{case_id}: {line}", case_id=case_id)
            facts = {"case_id": case_id, "status": row["status"], "seconds": row["seconds"]}
            bar.write(lambda: voice.say(f"{case_id}: {what} ({row['seconds']:.1f} s)", **facts))
            bar.show(seen["done"], None)

        whole = batch.run_batch(
            batch.BatchRequest(
                cases=tuple(found),
                attack=request,
                out=request.out,
                workers=options.workers,
                threads=options.threads,
                cluster=options.cluster,
                part=options.part,
                case_timeout=options.timeout,
                retry_failed=options.retry_failed,
                overwrite=request.overwrite,
            ),
            say=voice.say,
            on_jobs=lambda count: bar.show(0, count),
            on_row=ended,
        )
    _deliver(whole, batch.format_batch(whole), json_file, voice)
    counts = whole["aggregate"]
    if counts["failed"]:
        raise PartialError(f"{counts['failed']} of {counts['cases']} cases failed; failed.txt says why.")
    if options.require_success and counts["goal_reached"] < counts["cases"]:
        raise GateError(
            f"--require-success: the goal was reached in {counts['goal_reached']} of {counts['cases']} cases."
        )


@app.command(cls=Grouped, epilog=EXIT_CODES)
def evaluate(
    runs: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(metavar="RUN", help="Result folders of `mafl attack`, or folders that hold some."),
    ] = None,
    # --- files
    original: Annotated[
        MaybeStr,
        _under(
            FILES,
            metavar="SCAN|DIR",
            help="Instead of RUN: the clean scan (channels separated by commas), or a folder of them.",
        ),
    ] = None,
    adversarial: Annotated[
        MaybeStr, _under(FILES, metavar="SCAN|DIR", help="The changed scan, or a folder; matched by name.")
    ] = None,
    target: Annotated[
        MaybeStr,
        _under(FILES, "--target", "-t", metavar="MASK|DIR", help="What was to be drawn, or a folder; matched by name."),
    ] = None,
    ground_truth: Annotated[
        MaybePath,
        _under(
            FILES,
            metavar="MASK|DIR|FILE",
            help="What is really there, on the scan's grid; or a folder of masks by the names of the cases; or the "
            "manifest or dataset.json that the batch was made from.",
        ),
    ] = None,
    model: Annotated[
        Optional[list[Path]],  # noqa: UP045
        _under(
            FILES,
            "--model",
            "-m",
            metavar="FILE",
            help="TorchScript or .pt2 model that draws the predictions; the first judges, more are asked whether they "
            "are fooled too. It is a program: use only files you trust. [default: $MAFL_MODEL, else the model that "
            "comes with mafl; for a RUN that attacked another one, the predictions in the folder]",
        ),
    ] = None,
    # --- trials
    transform: Annotated[
        Optional[list[str]],  # noqa: UP045
        _under(
            TRIALS,
            metavar="KIND[:STRENGTH]",
            help="Judge again after: blur:VOXELS, median:VOXELS, resample:FACTOR, bits:N, jpeg:QUALITY, "
            "jpeg2000:RATIO, noise:SHARE, gamma:EXPONENT, crop:VOXELS, lowpass:SHARE; all; several usual strengths "
            "where none is given.",
        ),
    ] = None,
    detect: Annotated[
        bool, _under(TRIALS, "--detect", help="Can a mild blur tell adversarial scans from clean ones?")
    ] = False,
    curve: Annotated[
        bool, _under(TRIALS, "--curve", help="Target IoU of smaller multiples of the change, and the smallest at goal.")
    ] = False,
    # --- model input
    mode: ModeOption = "auto",
    slice_axis: SliceAxisOption = None,
    orientation: OrientationOption = None,
    intensity: IntensityOption = None,
    spacing: SpacingOption = None,
    roi: RoiOption = None,
    overlap: OverlapOption = None,
    device: DeviceOption = "auto",
    # --- gates
    fail_if: Annotated[
        Optional[list[str]],  # noqa: UP045
        _under(
            GATES,
            "--fail-if",
            metavar="EXPR",
            help='Exit with 5 if true, as "target_iou > 0.5" for the worst case, "mean(dice_drop) > 0.1", also median '
            "and p95. What is not known counts as true. docs/evaluate.md has the figures.",
        ),
    ] = None,
    gates_file: Annotated[
        MaybePath, _under(GATES, "--gates", metavar="TOML", help='A table [gates] of lines: name = "EXPR".')
    ] = None,
    # --- output
    json_file: Json = None,
    junit_file: Annotated[MaybeStr, _under(OUTPUT, "--junit", metavar="FILE", help="Gates as JUnit XML.")] = None,
    card_file: Annotated[
        MaybeStr, _under(OUTPUT, "--card", metavar="FILE", help="Robustness card, Markdown; - is stdout.")
    ] = None,
    csv_file: Annotated[MaybeStr, _under(OUTPUT, "--csv", metavar="FILE", help="A row for each case.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure runs, or any pairs of scans, again from their files, and judge the model by gates.

    In a GitHub job a summary of the verdict goes to the job's page, and failed gates are annotated.
    """
    voice = _Voice(-1 if quiet else int(verbose), debug)
    with _reported(voice):
        from mafl_cli import gates, transforms

        rules = [*map(gates.parse, fail_if or ()), *(gates.read(gates_file) if gates_file else ())]
        chosen = transforms.parse(transform or ())
        files = {"--json": json_file, "--junit": junit_file, "--card": card_file, "--csv": csv_file}
        _require_folders(files)
        given = [file for file in files.values() if file is not None]
        if len({Path(file).resolve() for file in given}) < len(given):
            raise UsageError("--json, --junit, --card and --csv: two of them are the same file, or both are stdout.")
        read = [*(runs or ()), *(model or ()), *(path for path in (ground_truth, gates_file) if path)]
        for scans in (original, adversarial, target):
            read += [Path(part) for part in (scans or "").split(",") if part]
        _require_no_input(files, read)
        seen_as = _seen_as(mode, slice_axis, orientation, intensity, spacing, roi, overlap)
        from mafl_cli import evaluation, publish
        from mafl_cli.report import to_json
        from mafl_cli.subject import ModelRequest
        from mafl_cli.trials import Trials

        at_hand = [] if model or not runs else [_at_hand()]
        judges = [_model(None, voice)] if not model and not runs else model or []
        request = evaluation.EvaluateRequest(
            runs=tuple(runs or ()),
            original=original,
            adversarial=adversarial,
            target=target,
            models=tuple(ModelRequest(model=each, **seen_as) for each in judges),
            at_hand=tuple(ModelRequest(model=each, **seen_as) for each in at_hand),
            device=device,
            ground_truth=ground_truth,
            trials=Trials(transforms=chosen, detect=detect, curve=curve),
            gates=tuple(rules),
        )
        with _bar(voice, "case") as bar:
            measured = evaluation.run_evaluation(request, say=voice.say, on_case=bar.show)
        for case in measured["cases"]:
            for line in case.get("differences", ()):
                voice.say(f"{case['case_id']}: {line}")
        _publish(
            {
                json_file: lambda: to_json(measured),
                junit_file: lambda: publish.junit(measured),
                card_file: lambda: publish.card(measured),
                csv_file: lambda: publish.table(measured),
            }
        )
        if voice.level >= 0 and "-" not in files.values():
            print(publish.terminal(measured))
        _tell_github(publish.summary(measured), publish.alerts(measured), voice)
        _require_passed(measured)


@app.command(cls=Grouped, epilog=EXIT_CODES)
def visualize(
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
    rows: Annotated[int, typer.Option(min=1, max=20, help="Slices of a figure.")] = 3,
    max_mb: Annotated[
        float, typer.Option("--max-mb", min=0.1, help="Size of a page at most; what is left out for it is said.")
    ] = 20,
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
            "labels' names and colours for it into RUN; no figure without -o.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Show clean scan, adversarial scan, their difference and the contours: a figure, or a page with all slices.

    A figure has the slices that changed most, and below them the change by size and by spatial frequency, and the
    course of the search. A page has numbers with explanations, flicker, amplified differences and a table of cases.
    """
    voice = _Voice(-1 if quiet else int(verbose), debug)
    with _reported(voice):
        from mafl_cli import pictures

        if open_in is not None:
            for run in runs:
                print(pictures.view(run, open_in, overwrite=overwrite))
            if out is None:
                return
        voice.say(pictures.show(runs, out, rows=rows, window=window, max_mb=max_mb, overwrite=overwrite))


@app.command(cls=Grouped, epilog=EXIT_CODES)
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a batch.")],
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say how far a batch is, while it runs or afterwards."""
    voice = _Voice(-1 if quiet else 0, debug)
    with _reported(voice):
        from mafl_cli import batch

        found = batch.status(run)
        _deliver(found, batch.format_status(found), json_file, voice)


@app.command(cls=Grouped, epilog=EXIT_CODES)
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of parts of one batch.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="New folder for all of them.")],
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Join the parts of a batch that were run into different folders."""
    voice = _Voice(-1 if quiet else 0, debug)
    with _reported(voice):
        from mafl_cli import batch

        whole = batch.merge(runs, out)
        _deliver(whole, batch.format_batch(whole), json_file, voice)


@app.command(cls=Grouped, epilog=EXIT_CODES)
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model, a scan or a mask.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write what is known about a model into the TOML file beside it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a TOML file that is there.")] = False,
    debug: Debug = False,
) -> None:
    """Show what mafl sees in a model, a scan or a mask, and what it would assume."""
    voice = _Voice(0, debug)
    with _reported(voice):
        from mafl_cli import inspection

        if write:
            print(f"wrote {inspection.write_card(file, overwrite=overwrite).name}")
            return
        facts = inspection.inspect(file)
        if as_json:
            print(json.dumps(facts, indent=1, allow_nan=False))
        else:
            print(inspection.format_facts(facts))


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
        voice.fail(str(exc))
        raise typer.Exit(exc.exit_code) from None
    except KeyboardInterrupt:
        voice.fail("interrupted; nothing was kept.")
        # CPython notes an interrupt that leaves an exec() of a string, as libraries use while they are imported, and
        # then exits as if nobody had caught it. The next exec() forgets that.
        exec("")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of a pipe (head, jq) has left; Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Exception as exc:
        if voice.debug:
            raise
        # Not its message: that may quote a header or a path, and logs are passed on.
        voice.fail(f"internal error ({type(exc).__name__}{_place(exc)}); run again with --debug.")
        raise typer.Exit(1) from None


def _place(exc: Exception) -> str:
    """Where an exception came from: " in FILE, line N" of the innermost frame, without folders."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}"


def _settings(method: str, ball: dict[str, Any], **options: Any) -> AttackConfig:
    """The method's settings with what was given on the command line in their place."""
    config = preset(method, **{name: value for name, value in options.items() if value is not None}, **ball)
    if options["norm"] is not None and config.eps is None:
        raise UsageError("--norm is that of a ball: give --eps, --eps-hu, --eps-range or --budget-eps too.")
    return config


def _ball(radii: dict[str, float | None], norm: Norm | None, goals: Mapping[str, object]) -> dict[str, Any]:
    """The ball that was asked for, as settings. Arguments: the options by their names; None is not given."""
    given = [(option, radius) for option, radius in radii.items() if radius is not None]
    if not given:
        return {}
    if len(given) > 1:
        raise UsageError(f"{' and '.join(option for option, _ in given)} exclude each other.")
    ((option, radius),) = given
    if option != "--budget-eps":
        return {"eps": radius, "eps_unit": {"--eps": "model", "--eps-hu": "native", "--eps-range": "range"}[option]}
    for goal, value in goals.items():
        if value is not None:
            raise UsageError(
                f"--budget-eps asks for the best result within a ball, so {goal} has no meaning beside it."
            )
    return budget(radius, norm or "linf")


def _publish(texts: Mapping[str | None, Callable[[], str]]) -> None:
    """Write each text to its file, - being stdout; None is not asked for."""
    from mafl_cli.results import write_text

    for file, text in texts.items():
        if file == "-":
            sys.stdout.write(text())
            sys.stdout.flush()
        elif file is not None:
            write_text(Path(file), text())


def _tell_github(summary: str, alerts: list[str], voice: _Voice) -> None:
    """In a job of GitHub Actions: append the summary to the job's page, and annotate what failed."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        try:
            with Path(page).open("a", encoding="utf-8") as file:
                file.write(summary + "\n")
        except OSError:
            voice.say("$GITHUB_STEP_SUMMARY: cannot be written to; the verdict is not on the job's page.")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # GitHub reads them from stderr too, and stdout may be JSON.
        for line in alerts:
            print(line, file=sys.stderr)


def _require_passed(measured: Mapping[str, Any]) -> None:
    """Raise GateError for a failed gate, else PartialError for a failed case."""
    failed = [gate for gate in measured["gates"] if gate["status"] == "fail"]
    if failed:
        first = f"fail if {failed[0]['expression']}: {failed[0]['reason']}"
        raise GateError(f"{len(failed)} of {len(measured['gates'])} gates failed: {first}.")
    broken = [case["case_id"] for case in measured["cases"] if case["status"] != "ok"]
    if broken:
        raise PartialError(f"{len(broken)} of {len(measured['cases'])} cases could not be judged: {', '.join(broken)}.")


def _at_hand() -> Path:
    """The model that is used when none is named."""
    from mafl_cli.subject import DEMO_MODEL

    return Path(os.environ.get("MAFL_MODEL") or DEMO_MODEL)


def _model(flag: Path | None, voice: _Voice) -> Path:
    """The model to use: the flag, else $MAFL_MODEL, else the one that comes with mafl."""
    if flag is not None:
        return flag
    found = _at_hand()
    voice.say(
        f"model: {found.name} (from $MAFL_MODEL)"
        if os.environ.get("MAFL_MODEL")
        else "model: the small brain-tissue model that comes with mafl (no --model given)"
    )
    return found


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


class _Bar:
    """A tqdm bar that lines can be said beside; on no terminal only the lines are."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def show(self, done: int, total: int | None) -> None:
        if self._bar is not None:
            self._bar.total = self._bar.total if total is None else total
            self._bar.n = done
            self._bar.refresh()

    def write(self, say: Callable[[], None]) -> None:
        if self._bar is None or self._bar.disable:
            say()
            return
        with self._bar.external_write_mode(file=sys.stderr):
            say()


@contextmanager
def _bar(voice: _Voice, unit: str) -> Iterator[_Bar]:
    if voice.level < 0 or voice.as_json:
        yield _Bar(None)
        return
    from tqdm import tqdm

    with tqdm(disable=None, unit=unit, leave=False, file=sys.stderr) as bar:
        yield _Bar(bar)


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
