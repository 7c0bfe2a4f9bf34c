"""One case from files to report: the only module that joins scans, model, attack and results.

The order matters: everything that can be wrong is checked before the search starts, and the numbers of the report
come last, from the files as they lie on the disk, read again and put through the whole pipeline once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch

from mafl_cli.case import memory
from mafl_cli.case.closed import ClosedSubject
from mafl_cli.case.facts import bounds_of, facts_of, target_of, voxels_of
from mafl_cli.case.hiding import hidden, require_elsewhere
from mafl_cli.case.label_only import found_by_labels
from mafl_cli.case.ladder import climbed
from mafl_cli.case.prepare import Case, prepare
from mafl_cli.case.problem import Say
from mafl_cli.case.remedies import Settled, settle
from mafl_cli.case.request import AttackRequest
from mafl_cli.case.searching import Found, Progress
from mafl_cli.case.trusting import checked
from mafl_cli.case.worst import searched
from mafl_cli.case.write import Written
from mafl_cli.names import public_name
from mafl_cli.network.device import caution, exactly, pick_device
from mafl_cli.network.reasons import enough_memory
from mafl_cli.network.source import Closed
from mafl_cli.results import assemble, report
from mafl_cli.results.batch_report import Ticket
from mafl_cli.results.envelope import SCHEMA_VERSION, TOOL
from mafl_cli.results.files import PREDICTION_ADVERSARIAL, PREDICTION_CLEAN, REPORT, TARGET, TICKET
from mafl_cli.results.folder import listed, staged, write_text
from mafl_cli.system import records, sizes


def run_attack(
    request: AttackRequest,
    *,
    say: Say = lambda line: None,
    detail: Say = lambda line: None,
    on_progress: Callable[[Progress], None] | None = None,
    ticket: Ticket | None = None,
) -> report.Report:
    """Attack one scan, write the result folder, and return the report.

    Args:
        say: receives one line for each thing a user should know (warnings, assumptions).
        detail: the same for what only the curious want to know.
        on_progress: called after each step.
        ticket: written beside the results, for a batch to know what they were made from; see `batch`.
    Raises: the errors of `mafl_cli.errors`; then nothing is left behind.
    """
    with sizes.limited(request.size_limit), hidden(request, say, detail) as hide:
        return _run_attack(request, hide.say, hide.detail, on_progress, hide.names, ticket)


def _run_attack(
    request: AttackRequest,
    say: Say,
    detail: Say,
    on_progress: Callable[[Progress], None] | None,
    names: Callable[[str], str],
    ticket: Ticket | None,
) -> report.Report:
    clock = _Clock()
    require_elsewhere(request)
    closed = isinstance(request.model, Closed)
    # Where a program runs is its own affair.
    device = pick_device("cpu" if closed else request.device)
    if request.device == "auto" and not closed:
        say(f"device: {device}")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(request.config.seed)
    with (
        staged(request.out, overwrite=request.overwrite) as stage,
        exactly(device),
        enough_memory(request.model.name, "this scan"),
    ):
        case = prepare(request, device, say, clock.lap)
        subject = case.subject
        if (warning := caution(device, request.precision, subject.info.dims)) is not None:
            say(warning)
        clock.lap("lift")
        memory.give_back()
        if isinstance(subject, ClosedSubject):
            settled = found_by_labels(case, subject, request.config, on_progress)
            clock.lap("attack")
        else:
            detail(memory.plan(case))
            found = searched(case, request.config, on_progress)
            clock.lap("attack")
            settled = settle(case, found, checked(case, found, request.config), request.config, say, on_progress)
            if request.ladder:
                settled = climbed(case, settled, request.config)
        memory.give_back()
        clock.lap("check")
        return _written(request, case, settled, stage, device, clock, names, ticket)


def write_found(
    request: AttackRequest,
    case: Case,
    found: Found,
    *,
    universal: Literal["made_on", "held_out"],
    say: Say,
    detail: Say,
    ticket: Ticket,
) -> report.Report:
    """Write the result folder of a change that was found on many scans, and return the report.

    No gradient was checked: that of one scan is not what was followed.

    Args:
        request, case: of this scan, from `prepare.prepare`. found: what the change makes of it.
        universal: whether this is one of the scans that the change was made on.
    Raises: as `run_attack`.
    """
    clock, device = _Clock(), case.subject.clean.device
    with (
        sizes.limited(request.size_limit),
        hidden(request, say, detail) as hide,
        staged(request.out, overwrite=request.overwrite) as stage,
        exactly(device),
        enough_memory(request.model.name, "this scan"),
    ):
        return _written(request, case, Settled(found, ()), stage, device, clock, hide.names, ticket, universal)


def _written(
    request: AttackRequest,
    case: Case,
    settled: Settled,
    stage: Path,
    device: torch.device,
    clock: _Clock,
    names: Callable[[str], str],
    ticket: Ticket | None,
    universal: Literal["made_on", "held_out"] | None = None,
) -> report.Report:
    """Write the files, read them again, measure what was read, and write the report beside them."""
    found, subject = settled.found, case.subject
    written = Written(case, stage, request.config)
    written.masks(PREDICTION_CLEAN, subject.to_labels(case.clean_labels))
    written.masks(TARGET, case.target.labels)
    written.scans(subject.as_volume(found.adversarial.whole()))
    again = written.again()
    clock.lap("write")
    post = subject.drawn_on_file([each.data for each in again], found.drawn, case.clean_drawn)
    written.masks(PREDICTION_ADVERSARIAL, subject.to_labels(post.labels), again[0])
    body = facts_of(case, request.config, settled, again, post)
    clock.lap("measure")
    whole = assemble.attack_report(
        config=request.config,
        model=found.info,
        device=device,
        case=replace(
            body,
            timing_s=clock.laps,
            memory=report.Memory(**memory.used(device)),
            files=tuple(report.File(**file) for file in listed(stage)),
        ),
        settings=_settings(request, case) | ({"universal": universal} if universal else {}),
        started=clock.started,
    )
    whole = assemble.renamed(whole, names)
    if ticket is not None:
        write_text(stage / TICKET, records.to_json(ticket))
    write_text(stage / REPORT, records.to_json(whole))
    return whole


def _settings(request: AttackRequest, case: Case) -> dict[str, Any]:
    """What the report says of the settings, those of the method apart."""
    subject = case.subject
    return {
        "mode": subject.mode,
        "slice_axis": request.slice_axis or subject.card.slice_axis,
        "save_as": case.save_as,
        "device": request.device,
        "precision": request.precision,
        "spacing": subject.card.spacing,
        "roi": subject.tiling.roi if subject.tiling else None,
        "overlap": subject.tiling.overlap if subject.tiling else None,
        "blend": subject.tiling.blend if subject.tiling else None,
        "folds": request.folds,
        "mirror": request.mirror,
        "attack_channels": request.attack_channels or None,
        "tap": request.tap,
        "guide": tuple(public_name(path) for path in request.guides) or None,
        "allow_gaps": request.allow_gaps,
        "body_only": request.body_only,
        "resample_target": request.masks.resample,
        "label_map": {str(old): new for old, new in request.masks.label_map.items()} or None,
        **({"start": tuple(map(public_name, request.starts))} if request.starts else {}),
        **({"ladder": True} if request.ladder else {}),
        **({"untargeted": True} if request.untargeted else {}),
    }


def show_target(
    request: AttackRequest, *, say: Say = lambda line: None, detail: Say = lambda line: None
) -> report.DryRun:
    """Make the target without attacking: write it and the clean prediction, and return what would be asked for.

    Raises: as `run_attack`.
    """
    with sizes.limited(request.size_limit), hidden(request, say, detail) as hide:
        return _show_target(request, hide.say, hide.detail, hide.names)


def _show_target(request: AttackRequest, say: Say, detail: Say, names: Callable[[str], str]) -> report.DryRun:
    require_elsewhere(request)
    device = pick_device("cpu" if isinstance(request.model, Closed) else request.device)
    advice = "a target alone never takes the place of an attack: choose another folder with `out`"
    with (
        staged(request.out, overwrite=False, advice=advice) as stage,
        exactly(device),
        enough_memory(request.model.name, "this scan"),
    ):
        case = prepare(request, device, say)
        subject = case.subject
        if subject.oracle is None:
            detail(memory.plan(case))
        clean = subject.to_labels(case.clean_labels)
        written = Written(case, stage, request.config)
        written.masks(PREDICTION_CLEAN, clean, seg=False)
        written.masks(TARGET, case.target.labels, seg=False)
        edited = case.edited
        return report.DryRun(
            schema_version=SCHEMA_VERSION,
            tool=TOOL,
            command="dry-run",
            case_id=names(assemble.case_id(subject.scan.name)),
            target=assemble.renamed_target(target_of(case), names),
            clean_voxels=voxels_of(case, clean),
            changed_voxels=int(case.edit().sum()),
            samples=report.DryRunSamples(
                kind="slices" if subject.layout.sliced else "volume",
                total=len(edited),
                attacked=int(edited.sum()),
            ),
            bounds=bounds_of(case, request.config),
        )


class _Clock:
    """Seconds spent in each part of a case."""

    def __init__(self) -> None:
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(self.laps.get(name, 0.0) + now - self._last, 3)
        self._last = now
