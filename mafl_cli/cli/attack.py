"""`mafl attack`: options become a request, a library call does the work, its result lines and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer
import typer.core

from mafl_cli.cli.application import EXIT_CODES, app, model_or_default
from mafl_cli.cli.batch import BatchOptions, attack_all, dask_for, show_cases
from mafl_cli.cli.console import Voice, deliver, progress_of_steps, reported
from mafl_cli.cli.options import (
    BATCH,
    BUDGET,
    FILES,
    GOAL,
    METHOD,
    MODEL_INPUT,
    OUTPUT,
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
    model_settings,
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
from mafl_cli.errors import GateError, UsageError
from mafl_cli.system import sizes

_DEFAULTS = AttackConfig()
_OF_METHOD = "[default: the method's]"


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
            show_cases(found, several)
            return
        if target is None and not any(case.targets for case in found):
            raise UsageError("no target: give --target, a mask or a recipe such as erase:1.")
        recipe = None if target is None else recipes.parse(target)
        masks = () if target is None or recipe else files_between_commas(target, "--target")
        from mafl_cli.case import pipeline
        from mafl_cli.case.request import AttackRequest
        from mafl_cli.results import text
        from mafl_cli.scans.masks import Masks

        request = AttackRequest(
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
            model=model_or_default(model, voice),
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
            batch = BatchOptions(
                found, workers, threads, dask_for(engine, scheduler, slurm, workers, case_timeout), part, case_timeout,
                resume, retry_failed, require_success,
            )  # fmt: skip
            attack_all(batch, request, json_file, voice)
            return
        if dry_run:
            shown = pipeline.show_target(request, say=voice.say, detail=voice.detail)
            deliver(shown, text.format_dry_run(shown), json_file, voice)
            return
        with progress_of_steps(voice) as show:
            done = pipeline.run_attack(request, say=voice.say, detail=voice.detail, on_progress=show)
        for part, seconds in done["cases"][0]["timing_s"].items():
            voice.detail(f"{part}: {seconds:.2f} s")
        deliver(done, text.format_summary(done), json_file, voice)
        if require_success and not done["cases"][0]["attack"]["goal_reached"]:
            raise GateError(f"--require-success: {done['cases'][0]['case_id']}: the goal was not reached.")
