"""One case from files to report: the only module that joins scans, model, attack and results.

The order matters: everything that can be wrong is checked before the search starts, and the numbers of the report
come last, from the files as they lie on the disk, read again and put through the whole pipeline once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli import __version__
from mafl_cli.case import memory
from mafl_cli.case.prepare import AttackRequest, Case, prepare
from mafl_cli.case.subject import DEMO_MODEL, Labels, Say
from mafl_cli.config import NOTE, AttackConfig
from mafl_cli.errors import MaflError, UsageError
from mafl_cli.field.samples import Changed, Drawn, OfScan
from mafl_cli.field.windows import Scan
from mafl_cli.measure import perturbation
from mafl_cli.measure.agreement import agreement_of_masks
from mafl_cli.names import Redaction, public_name
from mafl_cli.network.segmenter import pick_device
from mafl_cli.results import folder as results
from mafl_cli.results import report
from mafl_cli.results.folder import (
    PREDICTION_ADVERSARIAL,
    PREDICTION_CLEAN,
    REPORT,
    SEGMENTATIONS,
    TARGET,
    TICKET,
    listed,
    staged,
    write_text,
)
from mafl_cli.scans import formats, volume
from mafl_cli.scans.masks import Source
from mafl_cli.search import traces
from mafl_cli.search.goals import Verdict
from mafl_cli.search.loop import Outcome, StepRecord, attack
from mafl_cli.system import sizes

__all__ = ["DEMO_MODEL", "AttackRequest", "Progress", "run_attack", "show_target"]

# How often statistics may be frozen anew at the changed scan before what is left is reported as it is.
_REFREEZES = 3
# Voxels that are compared together.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Progress:
    """done of total steps, and what the current step reached."""

    done: int
    total: int
    record: StepRecord


def run_attack(
    request: AttackRequest,
    *,
    say: Say = lambda line: None,
    detail: Say = lambda line: None,
    on_progress: Callable[[Progress], None] | None = None,
    ticket: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Attack one scan, write the result folder, and return the report (see `report.schema.json`).

    Args:
        say: receives one line for each thing a user should know (warnings, assumptions).
        detail: the same for what only the curious want to know.
        on_progress: called after each step.
        ticket: written beside the results, for a batch to know what they were made from; see `batch`.
    Raises: the errors of `mafl_cli.errors`; then nothing is left behind.
    """
    with sizes.limited(request.size_limit), _hidden(request, say, detail) as hide:
        return _run_attack(request, hide.say, hide.detail, on_progress, hide.names, ticket)


def _run_attack(
    request: AttackRequest,
    say: Say,
    detail: Say,
    on_progress: Callable[[Progress], None] | None,
    names: Callable[[str], str],
    ticket: Mapping[str, Any] | None,
) -> dict[str, Any]:
    clock = _Clock()
    _require_elsewhere(request)
    device = pick_device(request.device)
    if request.device == "auto":
        say(f"device: {device}")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(request.config.seed)
    with staged(request.out, overwrite=request.overwrite) as stage:
        case = prepare(request, device, say, clock.lap)
        clock.lap("lift")
        memory.give_back()
        detail(memory.plan(case))
        found = _search(case, request.config, on_progress)
        memory.give_back()
        clock.lap("attack")
        written = _Written(case, stage, request.config)
        written.masks(PREDICTION_CLEAN, case.to_labels(case.clean_labels))
        written.masks(TARGET, case.target.labels)
        written.scans(case.as_volume(found.adversarial.whole()))
        again = written.again()
        clock.lap("write")
        data = [each.data for each in again]
        there = OfScan(data, case.layout, case.clean.device)
        post = case.drawn(there, case.frozen(data), like=(found.drawn, case.clean_drawn)).labels
        written.masks(PREDICTION_ADVERSARIAL, case.to_labels(post), again[0])
        body = _measure(case, request.config, found, again, post)
        clock.lap("measure")
        whole = report.attack_report(
            config=request.config,
            model=case.info,
            device=device,
            case={
                "case_id": report.case_id(case.scan.name),
                "status": "ok",
                "error": None,
                **body,
                "timing_s": clock.laps,
                "memory": memory.used(device),
                "files": listed(stage),
            },
            settings={
                "mode": case.mode,
                "slice_axis": request.slice_axis or case.card.slice_axis,
                "save_as": case.save_as,
                "device": request.device,
                "precision": request.precision,
                "spacing": list(case.card.spacing) if case.card.spacing else None,
                "roi": list(case.tiling.roi) if case.tiling else None,
                "overlap": case.tiling.overlap if case.tiling else None,
                "blend": case.tiling.blend if case.tiling else None,
                "attack_channels": list(request.attack_channels) if request.attack_channels else None,
                "tap": request.tap,
                "guide": [public_name(path) for path in request.guides] or None,
                "allow_gaps": request.allow_gaps,
                "body_only": request.body_only,
                "resample_target": request.masks.resample,
                "label_map": {str(old): new for old, new in request.masks.label_map.items()} or None,
            },
            started=clock.started,
        )
        whole = report.renamed(whole, names)
        if ticket is not None:
            write_text(stage / TICKET, report.to_json(ticket))
        write_text(stage / REPORT, report.to_json(whole))
    return whole


def show_target(
    request: AttackRequest, *, say: Say = lambda line: None, detail: Say = lambda line: None
) -> dict[str, Any]:
    """Make the target without attacking: write it and the clean prediction, and return what would be asked for.

    Returns: see `results.report.dry_run`.
    Raises: as `run_attack`.
    """
    with sizes.limited(request.size_limit), _hidden(request, say, detail) as hide:
        return _show_target(request, hide.say, hide.detail, hide.names)


def _show_target(request: AttackRequest, say: Say, detail: Say, names: Callable[[str], str]) -> dict[str, Any]:
    _require_elsewhere(request)
    device = pick_device(request.device)
    advice = "--dry-run never replaces those of an attack: choose another folder with -o"
    with staged(request.out, overwrite=False, advice=advice) as stage:
        case = prepare(request, device, say)
        detail(memory.plan(case))
        clean = case.to_labels(case.clean_labels)
        written = _Written(case, stage, request.config)
        written.masks(PREDICTION_CLEAN, clean, seg=False)
        written.masks(TARGET, case.target.labels, seg=False)
        edit = case.edit()
        return report.dry_run(
            case_id=names(report.case_id(case.scan.name)),
            target=report.renamed_target(_target(case), names),
            clean=_voxels(case, clean),
            changed_voxels=int(edit.sum()),
            samples=("slices" if case.layout.sliced else "volume", len(edit), int(edit.flatten(1).any(dim=1).sum())),
            bounds=_bounds(case, request.config),
        )


@dataclass(frozen=True)
class _Hide:
    """What replaces names, and the voices that do."""

    names: Callable[[str], str]
    say: Say
    detail: Say


@contextmanager
def _hidden(request: AttackRequest, say: Say, detail: Say) -> Iterator[_Hide]:
    """With `redact`, keep the names of the case's files out of every line, and of errors."""
    if not request.redact:
        yield _Hide(lambda text: text, say, detail)
        return
    names = Redaction(_inputs(request), request.out)
    try:
        yield _Hide(names, lambda line: say(names(line)), lambda line: detail(names(line)))
    except MaflError as exc:
        raise type(exc)(names(str(exc))) from None


def _require_elsewhere(request: AttackRequest) -> None:
    """Raise UsageError if results would land among the DICOM files of the source, or take an input's place."""
    out, shown = request.out.resolve(), public_name(request.out)
    for image in request.images:
        folder = formats.folder_of(image)
        if folder is None:
            continue
        if out == folder or (folder in out.parents and formats.is_whole_folder(image)):
            raise UsageError(f"-o {shown}: lies in the scan's own folder; choose another place.")
    earlier = {path.resolve() for path in results.there(out)} if out.is_dir() else set()
    for path in _inputs(request):
        place = path.resolve()
        if earlier & {place, *place.parents}:
            raise UsageError(f"-o {shown}: holds {public_name(path)}, which is an input; choose another place.")


def _inputs(request: AttackRequest) -> list[Path]:
    """Every file or folder of the case that is read."""
    mask = request.recipe.mask if request.recipe is not None else None
    paths = (*request.images, *request.targets, *request.guides, request.within, mask)
    return [path for path in paths if path is not None]


@dataclass(frozen=True)
class _Written:
    """The files of a case, in the format the scan came in."""

    case: Case
    stage: Path
    config: AttackConfig

    @property
    def _names(self) -> tuple[str, ...]:
        return results.adversarial([scan.format for scan in self.case.scans])

    def scans(self, adversarial: NDArray[np.float32]) -> None:
        """Write the changed channels (C, I, J, K)."""
        case = self.case
        for name, scan, data in zip(self._names, case.scans, adversarial, strict=True):
            formats.write_scan(self.stage / name, scan, data, save_as=case.save_as, note=NOTE, derivation=self._how())

    def again(self) -> list[volume.Volume]:
        """The changed channels read again from their files; what changed is written."""
        again = [formats.read_written(self.stage / name) for name in self._names]
        for name, scan, after in zip(results.perturbation(len(again)), self.case.scans, again, strict=True):
            volume.write_difference(self.stage / name, scan, after.data, NOTE)
        return again

    def masks(self, name: str, labels: Labels, drawn_on: volume.Volume | None = None, *, seg: bool = True) -> None:
        """Write a mask as NIfTI and, for a scan from DICOM, as SEG referring to `drawn_on` (the clean scan if None)."""
        case = self.case
        volume.write_labels(self.stage / name, case.scan, case.to_file(labels))
        if not seg or case.scan.format != "dicom":
            return
        classes = list(case.info.classes if case.info.overlapping else case.info.classes[1:])
        each = labels > 0 if case.info.overlapping else np.stack([labels == n for n in range(1, len(classes) + 1)])
        problem = formats.write_masks(
            self.stage / SEGMENTATIONS[name],
            drawn_on or case.scan,
            each,
            classes,
            description=f"MAFL {name.removesuffix('.nii.gz').replace('_', ' ').upper()} - NOT FOR CLINICAL USE",
        )
        if problem:
            case.say(f"{SEGMENTATIONS[name]}: not written: {problem}; {name} has the mask.")

    def _how(self) -> str:
        """For a derived image's Derivation Description."""
        bound = (
            "" if self.config.eps is None else f", eps {self.config.eps:g} ({self.config.eps_unit}, {self.config.norm})"
        )
        return f"{NOTE}. Adversarial perturbation by mafl {__version__}, method {self.config.method}{bound}."


# --- the search ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What the search brought, in memory. outcomes has one entry per sample, None where none was attacked.

    drawn: the prediction of the adversarial samples. trace: see `search.traces.joined`.
    """

    adversarial: Changed
    drawn: Drawn
    outcomes: tuple[Outcome | None, ...]
    constant: int
    forward: int
    backward: int
    trace: traces.Trace


def _search(
    case: Case,
    config: AttackConfig,
    on_progress: Callable[[Progress], None] | None,
) -> _Found:
    """Attack every slice (or the volume) whose prediction is not the target yet, a few at a time.

    Statistics that are recomputed from the changed file (z-scores) drift a little from the frozen ones, and a few
    voxels with them; so does a search in lower precision. Samples that lose their goal by this are attacked again,
    in float32 and with the statistics frozen at the changed scan. The trace is that of the first round: later ones
    begin anew with the few samples that are left, and are no continuation of it.
    """
    flat = case.clean.flatten(1)
    constant = (flat == flat[:, :1]).all(dim=1)
    differs = case.edit().flatten(1).any(dim=1)
    todo = torch.nonzero(differs & ~constant).flatten()
    adversarial = Changed(case.clean, todo)
    outcomes: list[Outcome | None] = [None] * len(case.clean)
    passes = [0, 0]
    field = case.field(exact=False)
    drawn = case.clean_drawn
    rounds: list[list[traces.Group]] = []
    for _ in range(_REFREEZES):
        groups: list[traces.Group] = []
        rounds.append(groups)

        def work(
            rows: Tensor, share: float, field: Scan = field, todo: Tensor = todo, groups: list[traces.Group] = groups
        ) -> None:
            part = _Part.of(case, field, rows)
            records: list[StepRecord] = []
            result = attack(
                part.field,
                part.clean,
                part.wanted,
                config,
                part.limits,
                guide=part.guide,
                spacing=case.layout.batch_spacing(case.scan.affine),
                on_step=_relay(records, on_progress, share, len(rows) / len(todo), config.steps),
            )
            if not records:  # All were at their goal from the start.
                score = float(result.verdict.score.mean())
                records = [StepRecord(0, float(result.verdict.reached.float().mean()), score, 0.0, 0.0)]
            # Not before the search is done: one that runs out of memory is repeated with fewer samples.
            groups.append(traces.Group(len(rows), records))
            adversarial[rows] = part.pasted(result.adversarial)
            passes[0], passes[1] = passes[0] + result.forward, passes[1] + result.backward
            for row, outcome in zip(rows.tolist(), result.outcomes, strict=True):
                outcomes[row] = outcome

        case.groups(todo, work)
        statistics = case.frozen(list(case.as_volume(adversarial.whole())))
        field = case.field(statistics)
        drawn = case.drawn(adversarial, statistics, like=[case.clean_drawn])
        held = case.goal(config).judge(drawn.labels).reached
        lost = [row for row, outcome in enumerate(outcomes) if outcome is Outcome.REACHED and not held[row]]
        if not lost:
            break
        todo = torch.tensor(lost, device=case.clean.device)
    return _Found(
        adversarial=adversarial,
        drawn=drawn,
        outcomes=tuple(outcomes),
        constant=int((differs & constant).sum()),
        forward=passes[0],
        backward=passes[1],
        trace=traces.joined(rounds[0]),
    )


@dataclass(frozen=True)
class _Part:
    """Some samples, cut to the part that the edit can reach; see `field.windows.Focus`."""

    field: Any
    clean: Tensor
    wanted: Tensor
    guide: Tensor | None
    limits: Any
    whole: Tensor
    box: Any

    @staticmethod
    def of(case: Case, field: Scan, rows: Tensor) -> _Part:
        whole = case.clean[rows]
        edit = case.edit(rows)
        focus = field.focus(whole, edit)
        box: Any = (..., *focus.box)
        limits = case.limits.part(rows, focus.box)
        if focus.frozen is not None:
            limits = replace(limits, frozen=limits.frozen | focus.frozen.unsqueeze(1))
        return _Part(
            field=focus.field,
            clean=whole[box],
            wanted=case.wanted[rows][box].long(),
            guide=None if case.guide is None else case.guide[rows][box],
            limits=limits,
            whole=whole,
            box=box,
        )

    def pasted(self, part: Tensor) -> Tensor:
        """The whole samples with the part in its place."""
        whole = self.whole.clone()
        whole[self.box] = part
        return whole


def _relay(
    records: list[StepRecord],
    on_progress: Callable[[Progress], None] | None,
    before: float,
    share: float,
    steps: int,
) -> Callable[[StepRecord], None]:
    """Keep what each step reached, and pass it on. before: share of the work that is done already; share: of this."""
    total = max(round(steps / share), 1)

    def on_step(record: StepRecord) -> None:
        records.append(record)
        if on_progress is not None:
            on_progress(Progress(round(before * total) + record.step + 1, total, record))

    return on_step


# --- measuring ----------------------------------------------------------------------------------------------------


def _measure(
    case: Case,
    config: AttackConfig,
    found: _Found,
    again: list[volume.Volume],
    post_labels: Tensor,
) -> dict[str, Any]:
    """Everything the report says about the case, from the file that was written (`again`) and its prediction."""
    scan, target, names = case.scan, case.target, case.info.classes
    clean, post = case.to_labels(case.clean_labels), case.to_labels(post_labels)
    per_sample, together = case.goal(config).judge_together(post_labels)
    attacked = torch.tensor([outcome is not None for outcome in found.outcomes])
    reached = int((per_sample.reached.cpu() & attacked).sum())
    outcome = _overall(together, found)
    units = [float(unit) for unit in case.preprocessing.unit]

    def agreement(labels: Labels) -> dict[str, Any]:
        return agreement_of_masks(
            labels, target.labels, clean, names=names, overlapping=case.info.overlapping, spacing=scan.spacing
        )

    size, sizes = perturbation.size_of_channels(
        case.scans, again, units=units, channels=case.info.channels, slice_axis=case.slices.index
    )
    after = agreement(post)
    # As a rule the file holds what was in memory, and the distances take long.
    same = torch.equal(found.drawn.labels, post_labels)
    in_memory = after if same else agreement(case.to_labels(found.drawn.labels))
    return {
        "inputs": [
            {
                "channel": channel,
                "name": each.name,
                "format": each.format,
                "sha256": each.sha256,
                "shape": list(each.shape),
                "spacing_mm": list(each.spacing),
                "axcodes": each.axcodes,
                "dtype": each.dtype.name,
                "warnings": list(each.warnings),
            }
            for channel, each in zip(case.info.channels, case.scans, strict=True)
        ],
        "target": _target(case),
        "space": {
            "mode": case.mode,
            "slice_axis": {
                "index": case.slices.index,
                "name": case.slices.name,
                "reason": case.slices.reason,
            },
            "network_shape": list(case.grids.there.shape_out),
            "native_units_per_model_unit": units,
            "data_box_native": [
                [float(low), float(high)] for low, high in zip(case.limits.low, case.limits.high, strict=True)
            ],
        },
        "bounds": _bounds(case, config),
        "attack": {
            "outcome": outcome.value,
            "goal_reached": outcome in (Outcome.REACHED, Outcome.ALREADY),
            "samples": {
                "kind": "slices" if case.layout.sliced else "volume",
                "total": len(case.clean),
                "attacked": int(attacked.sum()),
                "reached": reached,
                "not_reached": int(attacked.sum()) - reached,
                "skipped_constant": found.constant,
            },
            "passes": {"forward": found.forward, "backward": found.backward},
            "trace": found.trace,
        },
        "metrics": {
            "clean": agreement(clean),
            "in_memory": {key: in_memory[key] for key in ("target_iou", "hit_rate", "accuracy")},
            "post_write": after,
            "size": size,
            "size_per_channel": sizes,
        },
        "quantisation": _quantisation(case, found, again),
    }


def _voxels(case: Case, labels: Labels) -> dict[str, int]:
    """Voxels of each class, or region."""
    names = case.info.classes
    masks = labels if case.info.overlapping else (labels == index for index in range(len(names)))
    return {name: int(mask.sum()) for name, mask in zip(names, masks, strict=True)}


def _target(case: Case) -> dict[str, Any]:
    target = case.target
    return {
        "recipe": target.recipe,
        "files": [_source(file) for file in target.files],
        "voxels": _voxels(case, target.labels),
    }


def _source(file: Source) -> dict[str, Any]:
    counts = None
    if file.resampled is not None:
        counts = {str(label): {"before": old, "after": new} for label, (old, new) in file.resampled.items()}
    return {"name": file.name, "sha256": file.sha256, "resampled": counts}


def _bounds(case: Case, config: AttackConfig) -> dict[str, Any]:
    """How far the change may go and where, per channel in both units; null where nothing limits it."""
    ball, bounds = case.limits.within(config).ball, case.bounds
    radius = None if ball is None else [float(each) for each in ball.radius]
    measured = True if case.scan.padding is None else ~case.scan.padding
    return {
        "eps_native": radius,
        "eps_model": None if ball is None else [float(each) for each in ball.radius / case.limits.unit],
        "norm": None if ball is None else ball.norm,
        "within": None if bounds.within is None else _source(bounds.within),
        "body_voxels": bounds.body_voxels,
        "allowed_voxels": None if bounds.allowed is None else int(np.count_nonzero(bounds.allowed & measured)),
        "padding_voxels": [0 if scan.padding is None else int(scan.padding.sum()) for scan in case.scans],
    }


def _overall(together: Verdict, found: _Found) -> Outcome:
    """What became of the whole scan. together: its verdict as one sample, on the prediction of the written file."""
    if bool(together.reached[0]):
        return Outcome.REACHED if found.forward else Outcome.ALREADY
    tried = [outcome for outcome in found.outcomes if outcome is not None]
    if all(outcome is Outcome.NO_GRADIENT for outcome in tried):
        return Outcome.NO_GRADIENT
    return Outcome.STEP_LIMIT


def _quantisation(case: Case, found: _Found, again: list[volume.Volume]) -> list[dict[str, Any]]:
    """What storing did to the change of each channel: type and step, and how far the file is from the memory."""
    entries = []
    for index, (scan, after) in enumerate(zip(case.scans, again, strict=True)):
        grid = volume.stored_grid(scan, case.save_as)
        low, high = float(case.limits.low[index]), float(case.limits.high[index])
        changed, clipped, largest = 0, 0, 0.0
        for was, before, now in _parts(case, found, index, after.data):
            moved = now != was
            changed += int(np.count_nonzero(moved))
            clipped += int(np.count_nonzero(moved & ((now <= low) | (now >= high))))
            largest = max(largest, float(np.abs(now - before).max()))
        entries.append(
            {
                "save_as": case.save_as,
                "dtype": after.dtype.name,
                "step_native": None if grid is None else float(grid.step.max()),
                "fraction_changed": changed / after.data.size,
                "fraction_clipped": clipped / max(changed, 1),
                "max_difference_from_memory_native": largest,
            }
        )
    return entries


def _parts(
    case: Case, found: _Found, channel: int, after: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """A channel as it was, as it was found, and as it was read again, some planes at a time."""
    for row, now in enumerate(case.layout.as_batch(after[np.newaxis])[:, 0]):
        was, held = (each[channel].cpu().numpy() for each in (case.clean[row], found.adversarial.one(row)))
        planes = max(1, _BLOCK // max(1, now[0].size))
        for first in range(0, len(now), planes):
            part = slice(first, first + planes)
            yield was[part], held[part], now[part]


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
