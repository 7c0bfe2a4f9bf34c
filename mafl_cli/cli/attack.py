"""`mafl attack`: options become a request, a library call does the work, its result lines and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mafl_cli.cli.application import EXIT_CODES, app
from mafl_cli.cli.attack_options import (
    AttackFiles,
    AttackOutput,
    Budget,
    Images,
    Method,
    Network,
    Settings,
)
from mafl_cli.cli.batch import attack_all, show_cases
from mafl_cli.cli.batch_options import BatchOptions
from mafl_cli.cli.console import Voice, deliver, progress_of_steps, reported
from mafl_cli.cli.groups import Grouped, HelpAll, expanded, given
from mafl_cli.cli.options import ViewOptions, Words
from mafl_cli.cli.reading import (
    model_or_default,
    read_images,
    read_settings,
    read_target,
    require_folders,
    require_no_input,
    require_view,
)
from mafl_cli.cli.universal import attack_together, method_of, read_holdout
from mafl_cli.errors import GateError, UsageError
from mafl_cli.system import sizes

if TYPE_CHECKING:
    from mafl_cli.scans.recipes import Recipe

    Scan = Sequence[Path]
    TargetGiven = Recipe | Sequence[Path] | None


@app.command(cls=Grouped, epilog=EXIT_CODES)
@expanded
def attack(
    *,
    images: Images = None,
    files: AttackFiles,
    method: Method,
    settings: Settings,
    budget: Budget,
    view: ViewOptions,
    network: Network,
    batch: BatchOptions,
    output: AttackOutput,
    words: Words,
    help_all: HelpAll,
) -> None:
    """Change IMAGE as little as possible so that the model draws the target mask.

    Writes adversarial.nii.gz (or the folder adversarial/, a derived DICOM series) and perturbation.nii.gz, numbered
    when there are several channels; prediction_clean.nii.gz, prediction_adversarial.nii.gz and target.nii.gz (for DICOM
    also as SEG); and report.json. Every number is measured on the written file, read again.
    """
    voice = words.voice(as_json=batch.log_format == "json")
    with reported(voice), sizes.limited(files.size_limit):
        chosen = given(settings)
        ball = budget.ball(chosen)
        name, chosen = method_of(method.method, chosen, ball) if batch.universal else (method.method, chosen)
        if batch.universal and not ball:
            raise UsageError("--universal needs a limit: give --eps, --eps-hu, --eps-range or --budget-eps.")
        seen_as = view.given() | network.given()
        require_view(seen_as)
        scans = list(images or ())
        require_folders({"--json": output.json_file})
        from mafl_cli.listing import cases, folders

        read = [Path(each) for each in (*scans, *(files.model or ()), budget.within) if each is not None]
        require_no_input({"--json": output.json_file}, [path for path in read if not folders.is_folder(path)])

        # Channels, and a series, are those of one scan.
        several = files.channels is None and files.series is None and bool(scans) and cases.is_batch(scans)
        found = cases.find(scans, target=files.target, stdin=sys.stdin) if several else []
        batch.require_together(several)
        if batch.list_cases:
            show_cases(found, several)
            return
        if files.target is None and not method.untargeted and not any(case.targets for case in found):
            raise UsageError("no target: give --target, a mask or a recipe such as erase:1.")
        target = read_target(files.target, keep_folders=not several)
        scan = () if several else read_images(scans, files.channels)
        asked = {**seen_as, **budget.where(), **files.given(), **output.given(), "ladder": method.ladder}
        asked |= {"queries": method.queries, "untargeted": method.untargeted}
        if files.model_command is not None:
            if several:
                raise UsageError("--model-command is for one scan: give the scans of a batch one after the other.")
            # What a search by labels has for settings, the library knows.
            asked |= {"method": method.method, **chosen, **ball, **({"model": files.model} if files.model else {})}
        else:
            config = read_settings(name, ball, chosen)
            asked |= {"config": config, "model": files.model or model_or_default(voice)}
        if not several:
            if files.dry_run:
                _show_target(scan, target, asked, output.json_file, voice)
            else:
                _attack_one(scan, target, asked, output.json_file, voice, method.require_success)
            return
        if files.dry_run:
            raise UsageError("--dry-run is for one scan: --list shows the cases of a batch.")
        from mafl_cli import api

        if batch.universal:
            shared = api.attack_request((), target, **asked)
            holdout, required = read_holdout(batch.holdout), method.require_success
            attack_together(found, shared, holdout, output.json_file, voice, require_success=required)
            return
        asked_of_all = batch.request(found, api.attack_request((), target, **asked))
        attack_all(asked_of_all, output.json_file, voice, resume=batch.resume, require_success=method.require_success)


def _show_target(scan: Scan, target: TargetGiven, asked: dict[str, Any], json_file: str | None, voice: Voice) -> None:
    """`--dry-run`."""
    from mafl_cli import api
    from mafl_cli.results import text

    shown = api.show_target(api.attack_request(scan, target, **asked), say=voice.say, detail=voice.detail)
    deliver(shown, text.format_dry_run(shown), json_file, voice)


def _attack_one(
    scan: Scan, target: TargetGiven, asked: dict[str, Any], json_file: str | None, voice: Voice, required: bool
) -> None:
    """Attack one scan, say what came of it, and end with exit code 5 if a goal that was required is missed."""
    from mafl_cli import api
    from mafl_cli.results import text

    with progress_of_steps(voice) as show:
        done = api.attack_scan(scan, target, say=voice.say, detail=voice.detail, on_progress=show, **asked)
    for part, seconds in done.case.timing_s.items():
        voice.detail(f"{part}: {seconds:.2f} s")
    deliver(done, text.format_summary(done), json_file, voice)
    if required and not done.case.attack.goal_reached:
        raise GateError(f"--require-success: {done.case.case_id}: the goal was not reached.")
