"""The `mafl` command: options become a request, a library call does the work, its result lines and an exit code.

Nothing heavy is imported here, so that `--help` answers at once; each command imports what it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer
import typer.core

from mafl_cli import __version__
from mafl_cli.cli.console import (
    Voice,
    deliver,
    progress_of_cases,
    progress_of_steps,
    reported,
    show_text,
    tell_github,
    write_all,
)
from mafl_cli.cli.options import (
    BATCH,
    BUDGET,
    FILES,
    GATES,
    GOAL,
    METHOD,
    MODEL_INPUT,
    OUTPUT,
    TRIALS,
    Debug,
    DeviceOption,
    Grouped,
    IntensityOption,
    Json,
    LogFormat,
    MaybeBool,
    MaybeFloat,
    MaybeInt,
    MaybePath,
    MaybeStr,
    ModeOption,
    OrientationOption,
    OverlapOption,
    Overwrite,
    Quiet,
    RoiOption,
    SizeLimit,
    SliceAxisOption,
    SpacingOption,
    Verbose,
    between_commas,
    files_between_commas,
    model_at_hand,
    model_settings,
    models_at_hand,
    read_ball,
    read_images,
    read_label_map,
    read_part,
    read_settings,
    require_folders,
    require_no_input,
    under,
)
from mafl_cli.config import (
    PRESETS,
    AfterGoal,
    AttackConfig,
    Direction,
    GradientNorm,
    LowFrequency,
    MaskLoss,
    Norm,
    Precision,
    SaveAs,
    Step,
)
from mafl_cli.errors import GateError, PartialError, UsageError
from mafl_cli.names import public_name
from mafl_cli.show.display import WINDOWS
from mafl_cli.show.viewers import Viewer
from mafl_cli.system import sizes
from mafl_cli.system.streams import prepared, put

if TYPE_CHECKING:
    from mafl_cli.batch.dask_cluster import Cluster
    from mafl_cli.case.prepare import AttackRequest
    from mafl_cli.listing.cases import CaseFiles

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
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEFAULTS = AttackConfig()
_OF_METHOD = "[default: the method's]"


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
        under(
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
        bool, under(FILES, "--resample-target", help="Move masks to the image's grid, to the nearest voxel.")
    ] = False,
    label_map: Annotated[
        MaybeStr,
        under(FILES, metavar="OLD:NEW,...", help="Change labels of the target's files, as 255:1 or 1:2,2:0."),
    ] = None,
    series: Annotated[
        MaybeStr,
        under(FILES, metavar="N|UID", help="Which DICOM series, by its number in the list that is shown, or its UID."),
    ] = None,
    allow_gaps: Annotated[
        bool, under(FILES, "--allow-gaps", help="Take DICOM slices at uneven distances as if they were even.")
    ] = False,
    channels: Annotated[
        MaybeStr,
        under(
            FILES,
            metavar="FILES",
            help="Scans of all channels in the model's order, separated by commas; IMAGE comes first if it is not "
            "among them.",
        ),
    ] = None,
    attack_channels: Annotated[
        MaybeStr,
        under(
            FILES,
            metavar="NAMES",
            help="Channels that may change, by name or number (0, 1, ...), separated by commas. [default: all]",
        ),
    ] = None,
    guide: Annotated[
        MaybeStr,
        under(
            FILES,
            metavar="IMAGE",
            help="Scan on the image's grid that has what the target shows, a file for each channel; the feature term "
            "pulls towards it.",
        ),
    ] = None,
    model: Annotated[
        MaybePath,
        under(
            FILES,
            "--model",
            "-m",
            metavar="FILE",
            help="TorchScript model. It is a program: use only files you trust. "
            "[default: $MAFL_MODEL, else the brain-tissue model that comes with mafl]",
        ),
    ] = None,
    out: Annotated[Path, under(FILES, "--out", "-o", metavar="DIR", help="Folder for the results.")] = Path("mafl-out"),
    overwrite: Overwrite = False,
    size_limit: SizeLimit = None,
    dry_run: Annotated[
        bool,
        under(FILES, "--dry-run", help="Write the clean prediction and the target, say what would change, and stop."),
    ] = False,
    # --- goal
    goal_iou: Annotated[
        MaybeFloat,
        under(
            GOAL, help=f"IoU with the target, over its classes, that counts as reached. [default: {_DEFAULTS.goal_iou}]"
        ),
    ] = None,
    goal_hit: Annotated[
        MaybeFloat,
        under(GOAL, help=f"Share of the voxels to be changed that must change. [default: {_DEFAULTS.goal_hit}]"),
    ] = None,
    require_success: Annotated[
        bool, under(GOAL, "--require-success", help="Exit with 5 when the goal is not reached; the results are kept.")
    ] = False,
    aim: Annotated[
        MaybeFloat,
        under(
            GOAL,
            help="Score that is held while the change is made smaller. "
            "[default: 1, every voxel; the goal if that is below 0.99]",
        ),
    ] = None,
    after_goal: Annotated[
        Optional[AfterGoal],  # noqa: UP045
        under(
            GOAL,
            help="What the remaining steps are for: a smaller change, nothing, or more of the same, keeping the best. "
            f"{_OF_METHOD}",
        ),
    ] = None,
    # --- method
    method: Annotated[
        str,
        under(METHOD, metavar="NAME", help=f"Settings to start from: {', '.join(PRESETS)}."),
    ] = "mafl",
    steps: Annotated[
        MaybeInt, under(METHOD, help=f"Forward passes per slice or volume. [default: {_DEFAULTS.steps}]")
    ] = None,
    mask_loss: Annotated[
        Optional[MaskLoss],  # noqa: UP045
        under(METHOD, help=f"What the target asks of the logits. {_OF_METHOD}"),
    ] = None,
    kappa: Annotated[
        MaybeFloat,
        under(METHOD, help=f"Lead that wins a voxel, as a share of the clean prediction's; for margin. {_OF_METHOD}"),
    ] = None,
    adaptive_weights: Annotated[
        MaybeBool, under(METHOD, help=f"Weigh voxels that miss their class more and more; for margin. {_OF_METHOD}")
    ] = None,
    feature_weight: Annotated[
        MaybeFloat, under(METHOD, help=f"Weight of the feature cosine term; 0 is off. {_OF_METHOD}")
    ] = None,
    low_frequency: Annotated[
        Optional[LowFrequency],  # noqa: UP045
        under(METHOD, help=f"Pull the change's low frequencies towards 0, or allow none. {_OF_METHOD}"),
    ] = None,
    low_frequency_weight: Annotated[
        MaybeFloat, under(METHOD, help=f"Weight of the low-frequency penalty; 0 is off. {_OF_METHOD}")
    ] = None,
    low_frequency_levels: Annotated[
        MaybeInt, under(METHOD, help=f"Blocks of 2^N voxels are low frequency. {_OF_METHOD}")
    ] = None,
    l2_weight: Annotated[
        MaybeFloat, under(METHOD, help=f"Weight of the change's squared length; 0 is off. {_OF_METHOD}")
    ] = None,
    peak_weight: Annotated[
        MaybeFloat, under(METHOD, help=f"How much more the largest voxels count in that length. {_OF_METHOD}")
    ] = None,
    gradient_norm: Annotated[
        Optional[GradientNorm],  # noqa: UP045
        under(METHOD, help=f"What gradients are divided by before momentum. {_OF_METHOD}"),
    ] = None,
    momentum: Annotated[MaybeFloat, under(METHOD, help=f"Share of the last direction kept. {_OF_METHOD}")] = None,
    direction: Annotated[
        Optional[Direction],  # noqa: UP045
        under(METHOD, help=f"What becomes of the accumulated gradient: as it is, normalised, its sign. {_OF_METHOD}"),
    ] = None,
    step: Annotated[
        Optional[Step],  # noqa: UP045
        under(METHOD, help=f"How long a step is. {_OF_METHOD}"),
    ] = None,
    step_size: Annotated[
        MaybeFloat,
        under(
            METHOD,
            help="Length of a step, as a share of the scan's range. [default: the method's, else 2.5 eps / steps]",
        ),
    ] = None,
    tau: Annotated[
        MaybeFloat, under(METHOD, help=f"Steps of ASMA are tau + beta * IoU long, in --step-size's unit. {_OF_METHOD}")
    ] = None,
    beta: Annotated[MaybeFloat, under(METHOD, help=f"See --tau. {_OF_METHOD}")] = None,
    seed: Annotated[int, under(METHOD, help="Seed of PyTorch's generators and of a random start.")] = _DEFAULTS.seed,
    # --- budget
    eps: Annotated[
        MaybeFloat,
        under(BUDGET, "--eps", help=f"The change stays in a ball of this radius, model units. {_OF_METHOD}"),
    ] = None,
    eps_hu: Annotated[
        MaybeFloat, under(BUDGET, "--eps-hu", help="The same in the file's own units: HU for CT.")
    ] = None,
    eps_range: Annotated[
        MaybeFloat, under(BUDGET, "--eps-range", help="The same as a share of the scan's range.")
    ] = None,
    budget_eps: Annotated[
        MaybeFloat,
        under(BUDGET, help="The best result within this radius, model units: --eps with a goal of 1, then stop."),
    ] = None,
    norm: Annotated[
        Optional[Norm],  # noqa: UP045
        under(BUDGET, help=f"Of the ball: largest voxel, or L2 per slice or volume. {_OF_METHOD}"),
    ] = None,
    within: Annotated[
        MaybePath, under(BUDGET, metavar="MASK", help="Only voxels that this mask labels may change.")
    ] = None,
    body_only: Annotated[
        bool, under(BUDGET, "--body-only", help="Only voxels of the body may change, not the air around it.")
    ] = False,
    random_start: Annotated[MaybeBool, under(BUDGET, help=f"Begin at a random point of the ball. {_OF_METHOD}")] = None,
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
        under(
            MODEL_INPUT,
            help="Layers whose features are compared, NAME or NAME:WEIGHT, separated by commas; "
            "`mafl inspect` lists them.",
        ),
    ] = "auto",
    device: DeviceOption = "auto",
    precision: Annotated[
        Precision,
        under(MODEL_INPUT, help="Of the search: float32, or bf16 or fp16 autocast. The result is judged in float32."),
    ] = "float32",
    # --- batch
    list_cases: Annotated[bool, under(BATCH, "--list", help="Print the cases, one a line, and stop.")] = False,
    workers: Annotated[int, under(BATCH, "--workers", "-j", min=1, help="Cases at the same time; one GPU each.")] = 1,
    threads: Annotated[
        MaybeInt, under(BATCH, min=1, help="CPU threads of each worker. [default: the cores, shared out; dask: 1]")
    ] = None,
    engine: Annotated[
        Literal["local", "dask"], under(BATCH, help="Workers on this machine, or on a Dask cluster (mafl[dask]).")
    ] = "local",
    scheduler: Annotated[
        MaybeStr, under(BATCH, metavar="ADDRESS|FILE", help="Of Dask: tcp://HOST:PORT, or its scheduler file.")
    ] = None,
    slurm: Annotated[
        MaybePath,
        under(BATCH, metavar="TOML", help="Start --workers Dask workers by SLURM, as the table [slurm] says."),
    ] = None,
    case_timeout: Annotated[
        MaybeFloat, under(BATCH, "--case-timeout", metavar="SECONDS", help="A case that takes longer has failed.")
    ] = None,
    resume: Annotated[
        bool,
        under(
            BATCH, "--resume/--no-resume", help="Go on where an earlier run of the same settings stopped, or refuse."
        ),
    ] = True,
    retry_failed: Annotated[bool, under(BATCH, "--retry-failed", help="Try cases again that failed before.")] = False,
    num_parts: Annotated[
        MaybeInt,
        under(BATCH, min=1, help="Only every N-th case, for several machines. [default: those of a SLURM array]"),
    ] = None,
    part_id: Annotated[MaybeInt, under(BATCH, min=0, help="Which of the parts, from 0.")] = None,
    log_format: Annotated[
        LogFormat, under(BATCH, help="Of what is said on stderr: text, or a JSON object a line.")
    ] = "text",
    # --- output
    save_as: Annotated[
        Optional[SaveAs],  # noqa: UP045
        under(
            OUTPUT,
            help="float32 keeps every digit; source keeps the scan's own type and searches on its grid. "
            "[default: float32; for DICOM, source]",
        ),
    ] = None,
    redact: Annotated[
        bool,
        under(
            OUTPUT,
            "--redact",
            help="Hashes instead of the names of scans and masks; no text in headers, no patient or study in DICOM.",
        ),
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
    voice = Voice(-1 if quiet else int(verbose), debug, log_format == "json")
    with reported(voice), sizes.limited(size_limit):
        balls = {"--eps": eps, "--eps-hu": eps_hu, "--eps-range": eps_range, "--budget-eps": budget_eps}
        goals = {"--goal-iou": goal_iou, "--goal-hit": goal_hit, "--after-goal": after_goal}
        config = read_settings(
            method,
            read_ball(balls, norm, goals),
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
        seen_as = model_settings(mode, slice_axis, orientation, intensity, spacing, roi, overlap)
        require_folders({"--json": json_file})
        from mafl_cli.listing import cases, folders
        from mafl_cli.scans import recipes

        inputs = [Path(each) for each in (*(images or ()), model, within) if each is not None]
        require_no_input({"--json": json_file}, [path for path in inputs if not folders.is_folder(path)])

        # Channels, and a series, are those of one scan.
        several = channels is None and series is None and bool(images) and cases.is_batch(images or [])
        found = cases.find(images or [], target=target, stdin=sys.stdin) if several else []
        if list_cases:
            _list_cases(found, several)
            return
        if target is None and not any(case.targets for case in found):
            raise UsageError("no target: give --target, a mask or a recipe such as erase:1.")
        recipe = None if target is None else recipes.parse(target)
        masks = () if target is None or recipe else files_between_commas(target, "--target")
        from mafl_cli.case import pipeline, prepare
        from mafl_cli.results import report
        from mafl_cli.scans.masks import Masks

        request = prepare.AttackRequest(
            images=() if several else read_images(images or [], channels),
            # A folder of masks has been looked into: each case has its own.
            targets=() if several and any(mask.is_dir() for mask in masks) else masks,
            recipe=recipe,
            out=out,
            series=series,
            allow_gaps=allow_gaps,
            masks=Masks(resample_target, read_label_map(label_map)),
            within=within,
            body_only=body_only,
            redact=redact,
            guides=() if guide is None else files_between_commas(guide, "--guide"),
            model=_model(model, voice),
            **seen_as,
            save_as=save_as,
            device=device,
            precision=precision,
            attack_channels=None if attack_channels is None else between_commas(attack_channels, "--attack-channels"),
            tap=tap,
            overwrite=overwrite,
            size_limit=size_limit,
            config=config,
        )
        if several:
            if dry_run:
                raise UsageError("--dry-run is for one scan; --list shows the cases of a batch.")
            if case_timeout is not None and not 0 < case_timeout < float("inf"):
                raise UsageError("--case-timeout: must be more than 0 seconds.")
            part = read_part(num_parts, part_id)
            batch = _Batch(
                found, workers, threads, _cluster(engine, scheduler, slurm, workers, case_timeout), part, case_timeout,
                resume, retry_failed, require_success,
            )  # fmt: skip
            _attack_all(batch, request, json_file, voice)
            return
        if dry_run:
            shown = pipeline.show_target(request, say=voice.say, detail=voice.detail)
            deliver(shown, report.format_dry_run(shown), json_file, voice)
            return
        with progress_of_steps(voice) as show:
            done = pipeline.run_attack(request, say=voice.say, detail=voice.detail, on_progress=show)
        for part, seconds in done["cases"][0]["timing_s"].items():
            voice.detail(f"{part}: {seconds:.2f} s")
        deliver(done, report.format_summary(done), json_file, voice)
        if require_success and not done["cases"][0]["attack"]["goal_reached"]:
            raise GateError(f"--require-success: {done['cases'][0]['case_id']}: the goal was not reached.")


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
        show_text(f"{case.case_id}\t{','.join(map(public_name, case.images))}\t{case.problem or ''}".rstrip())


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
    from mafl_cli.batch.dask_cluster import Cluster

    return Cluster(scheduler=scheduler, slurm=slurm, workers=workers)


def _attack_all(options: _Batch, request: AttackRequest, json_file: str | None, voice: Voice) -> None:
    """Attack every case; what goes wrong with some of them is said, and ends in exit code 6."""
    from mafl_cli.batch import batch, tables
    from mafl_cli.listing.cases import redacted

    found = redacted(options.cases) if request.redact else options.cases
    mine = found[options.part[0] :: options.part[1]]
    if not options.resume and any((request.out / case.case_id).exists() for case in mine):
        raise UsageError(f"{request.out.name}: already holds results, and --no-resume was given.")
    if options.part[1] > 1:
        voice.say(f"part {options.part[0]} of {options.part[1]}")
    seen = {"done": 0}
    with progress_of_cases(voice, "case") as bar:

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
    deliver(whole, tables.format_run(whole), json_file, voice)
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
        under(
            FILES,
            metavar="SCAN|DIR",
            help="Instead of RUN: the clean scan (channels separated by commas), or a folder of them.",
        ),
    ] = None,
    adversarial: Annotated[
        MaybeStr, under(FILES, metavar="SCAN|DIR", help="The changed scan, or a folder; matched by name.")
    ] = None,
    target: Annotated[
        MaybeStr,
        under(FILES, "--target", "-t", metavar="MASK|DIR", help="What was to be drawn, or a folder; matched by name."),
    ] = None,
    ground_truth: Annotated[
        MaybePath,
        under(
            FILES,
            metavar="MASK|DIR|FILE",
            help="What is really there, on the scan's grid; or a folder of masks by the names of the cases; or the "
            "manifest or dataset.json that the batch was made from.",
        ),
    ] = None,
    model: Annotated[
        Optional[list[Path]],  # noqa: UP045
        under(
            FILES,
            "--model",
            "-m",
            metavar="FILE",
            help="TorchScript or .pt2 model that draws the predictions; the first judges, more are asked whether they "
            "are fooled too. It is a program: use only files you trust. [default: $MAFL_MODEL, else the model that "
            "comes with mafl; a RUN that attacked another one passes no gate without it]",
        ),
    ] = None,
    size_limit: SizeLimit = None,
    # --- trials
    transform: Annotated[
        Optional[list[str]],  # noqa: UP045
        under(
            TRIALS,
            metavar="KIND[:STRENGTH]",
            help="Judge again after: blur:VOXELS, median:VOXELS, resample:FACTOR, bits:N, jpeg:QUALITY, "
            "jpeg2000:RATIO, noise:SHARE, gamma:EXPONENT, crop:VOXELS, lowpass:SHARE; all; several usual strengths "
            "where none is given.",
        ),
    ] = None,
    detect: Annotated[
        bool, under(TRIALS, "--detect", help="Can a mild blur tell adversarial scans from clean ones?")
    ] = False,
    curve: Annotated[
        bool, under(TRIALS, "--curve", help="Target IoU of smaller multiples of the change, and the smallest at goal.")
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
        under(
            GATES,
            "--fail-if",
            metavar="EXPR",
            help='Exit with 5 if true, as "target_iou > 0.5" for the worst case, "mean(dice_drop) > 0.1", also median '
            "and p95. What is not known counts as true. docs/evaluate.md has the figures.",
        ),
    ] = None,
    gates_file: Annotated[
        MaybePath, under(GATES, "--gates", metavar="TOML", help='A table [gates] of lines: name = "EXPR".')
    ] = None,
    # --- output
    json_file: Json = None,
    junit_file: Annotated[MaybeStr, under(OUTPUT, "--junit", metavar="FILE", help="Gates as JUnit XML.")] = None,
    card_file: Annotated[
        MaybeStr, under(OUTPUT, "--card", metavar="FILE", help="Robustness card, Markdown; - is stdout.")
    ] = None,
    csv_file: Annotated[MaybeStr, under(OUTPUT, "--csv", metavar="FILE", help="A row for each case.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure runs, or any pairs of scans, again from their files, and judge the model by gates.

    In a GitHub job a summary of the verdict goes to the job's page, and failed gates are annotated.
    """
    voice = Voice(-1 if quiet else int(verbose), debug)
    with reported(voice), sizes.limited(size_limit):
        from mafl_cli.judging import gates, transforms
        from mafl_cli.results.read import read_object

        rules = [*map(gates.parse, fail_if or ()), *(gates.read(gates_file) if gates_file else ())]
        chosen = transforms.parse(transform or ())
        files = {"--json": json_file, "--junit": junit_file, "--card": card_file, "--csv": csv_file}
        require_folders(files)
        given = [file for file in files.values() if file is not None]
        if len({Path(file).resolve() for file in given}) < len(given):
            raise UsageError("--json, --junit, --card and --csv: two of them are the same file, or both are stdout.")
        read = [*(runs or ()), *(model or ()), *(path for path in (ground_truth, gates_file) if path)]
        named = {"--original": original, "--adversarial": adversarial, "--target": target}
        for option, scans in named.items():
            read += () if scans is None else files_between_commas(scans, option)
        # The scans of a pair may lie in a run, beside its report.
        read += [Path(file) for file in given if Path(file).is_file() and "run" in (read_object(Path(file)) or ())]
        require_no_input(files, read)
        seen_as = model_settings(mode, slice_axis, orientation, intensity, spacing, roi, overlap)
        from mafl_cli.case.subject import ModelRequest
        from mafl_cli.judging import evaluation, robustness_card
        from mafl_cli.judging.trials import Trials
        from mafl_cli.results.report import to_json

        at_hand = () if model or not runs else models_at_hand()
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
        with progress_of_cases(voice, "case") as bar:
            measured = evaluation.run_evaluation(request, say=voice.say, on_case=bar.show)
        for case in measured["cases"]:
            lines = (*case.get("differences", ()), case.get("untested"))
            for line in dict.fromkeys(line for line in lines if line is not None):
                voice.say(f"{case['case_id']}: {line}")
        write_all(
            {
                json_file: lambda: to_json(measured),
                junit_file: lambda: robustness_card.junit(measured),
                card_file: lambda: robustness_card.card(measured),
                csv_file: lambda: robustness_card.table(measured),
            }
        )
        if voice.level >= 0 and "-" not in files.values():
            show_text(robustness_card.terminal(measured))
        tell_github(robustness_card.summary(measured), robustness_card.alerts(measured), voice)
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
    size_limit: SizeLimit = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Show clean scan, adversarial scan, their difference and the contours: a figure, or a page with all slices.

    A figure has the slices that changed most, and below them the change by size and by spatial frequency, and the
    course of the search. A page has numbers with explanations, flicker, amplified differences and a table of cases.
    """
    voice = Voice(-1 if quiet else int(verbose), debug)
    with reported(voice), sizes.limited(size_limit):
        from mafl_cli.show import show as pictures
        from mafl_cli.show.show import view

        if open_in is not None:
            for run in runs:
                show_text(view(run, open_in, overwrite=overwrite))
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


@app.command(cls=Grouped, epilog=EXIT_CODES)
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model, a scan or a mask.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write what is known about a model into the TOML file beside it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a TOML file that is there.")] = False,
    size_limit: SizeLimit = None,
    debug: Debug = False,
) -> None:
    """Show what mafl sees in a model, a scan or a mask, and what it would assume."""
    voice = Voice(0, debug)
    with reported(voice), sizes.limited(size_limit):
        from mafl_cli.case import inspection
        from mafl_cli.results.report import to_json

        if write:
            show_text(f"wrote {inspection.write_card(file, overwrite=overwrite).name}")
            return
        facts = inspection.inspect(file)
        if as_json:
            put(to_json(facts))
        else:
            show_text(inspection.format_facts(facts))


def main() -> None:
    """Entry point of the console command."""
    with prepared():
        app()


def _require_passed(measured: Mapping[str, Any]) -> None:
    """Raise GateError for a failed gate, else PartialError for a failed case."""
    failed = [gate for gate in measured["gates"] if gate["status"] == "fail"]
    if failed:
        first = f"fail if {failed[0]['expression']}: {failed[0]['reason']}"
        raise GateError(f"{len(failed)} of {len(measured['gates'])} gates failed: {first}.")
    broken = [case["case_id"] for case in measured["cases"] if case["status"] != "ok"]
    if broken:
        raise PartialError(f"{len(broken)} of {len(measured['cases'])} cases could not be judged: {', '.join(broken)}.")


def _model(flag: Path | None, voice: Voice) -> Path:
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
