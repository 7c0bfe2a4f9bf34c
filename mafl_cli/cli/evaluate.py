"""`mafl evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from mafl_cli.cli.application import EXIT_CODES, app, model_or_default
from mafl_cli.cli.console import Voice, progress_of_cases, reported, show_text, tell_github, write_all
from mafl_cli.cli.options import (
    FILES,
    GATES,
    OUTPUT,
    TRIALS,
    Debug,
    DeviceOption,
    Grouped,
    IntensityOption,
    Json,
    MaybePath,
    MaybeStr,
    ModeOption,
    OrientationOption,
    OverlapOption,
    Quiet,
    RoiOption,
    SizeLimit,
    SliceAxisOption,
    SpacingOption,
    Verbose,
    files_between_commas,
    model_settings,
    models_at_hand,
    require_folders,
    require_no_input,
    under,
)
from mafl_cli.errors import GateError, PartialError, UsageError
from mafl_cli.system import sizes


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
        from mafl_cli.case.request import ModelRequest
        from mafl_cli.judging import ci, evaluation, robustness_card, terminal
        from mafl_cli.judging.trials import Trials
        from mafl_cli.results.report import to_json

        at_hand = () if model or not runs else models_at_hand()
        judges = [model_or_default(None, voice)] if not model and not runs else model or []
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
                junit_file: lambda: ci.junit(measured),
                card_file: lambda: robustness_card.card(measured),
                csv_file: lambda: robustness_card.table(measured),
            }
        )
        if voice.level >= 0 and "-" not in files.values():
            show_text(terminal.terminal(measured))
        tell_github(robustness_card.summary(measured), ci.alerts(measured), voice)
        _require_passed(measured)


def _require_passed(measured: Mapping[str, Any]) -> None:
    """Raise GateError for a failed gate, else PartialError for a failed case."""
    failed = [gate for gate in measured["gates"] if gate["status"] == "fail"]
    if failed:
        first = f"fail if {failed[0]['expression']}: {failed[0]['reason']}"
        raise GateError(f"{len(failed)} of {len(measured['gates'])} gates failed: {first}.")
    broken = [case["case_id"] for case in measured["cases"] if case["status"] != "ok"]
    if broken:
        raise PartialError(f"{len(broken)} of {len(measured['cases'])} cases could not be judged: {', '.join(broken)}.")
