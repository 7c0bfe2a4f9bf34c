"""One case from files to report: the only module that joins scans, model, attack and results.

The order matters: everything that can be wrong is checked before the search starts, and the numbers of the report
come last, from the files as they lie on the disk, read again and put through the whole pipeline once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli import metrics, report, results, volume
from mafl_cli.attack import Outcome, StepRecord, attack
from mafl_cli.case import DEMO_MODEL, AttackRequest, Case, Say, prepare
from mafl_cli.config import AttackConfig, SaveAs
from mafl_cli.model import pick_device
from mafl_cli.windows import Scan

__all__ = ["DEMO_MODEL", "AttackRequest", "Progress", "run_attack"]

NOTE = "MAFL ADVERSARIAL - NOT FOR CLINICAL USE"

# Radiology's habit for CT: 12 bits less some air, the range SynthRAD and others measure PSNR with. HU.
_CT_RANGE = 4000.0

# How often statistics may be frozen anew at the changed scan before what is left is reported as it is.
_REFREEZES = 3


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
) -> dict[str, Any]:
    """Attack one scan, write the result folder, and return the report (see `report.schema.json`).

    Args:
        say: receives one line for each thing a user should know (warnings, assumptions).
        detail: the same for what only the curious want to know.
        on_progress: called after each step.
    Raises: the errors of `mafl_cli.errors`; then nothing is left behind.
    """
    clock = _Clock()
    device = pick_device(request.device)
    if request.device == "auto":
        say(f"device: {device}")
    torch.manual_seed(request.config.seed)
    channels = len(request.images)
    names = results.files(channels)
    with results.staged(request.out, names, overwrite=request.overwrite) as stage:
        case = prepare(request, device, say)
        detail(_memory_plan(case))
        clock.lap("load")
        clean_labels = case.labels(case.field(), case.clean)
        clock.lap("clean_prediction")
        found = _search(case, clean_labels, request.config, on_progress)
        clock.lap("attack")
        adversarial = case.to_volume(found.adversarial)
        for name, scan, data in zip(results.adversarial(channels), case.scans, adversarial, strict=True):
            volume.write_image(stage / name, scan, data, save_as=request.save_as, note=NOTE)
        volume.write_labels(stage / results.PREDICTION_CLEAN, case.scan, case.to_file(case.to_labels(clean_labels)))
        volume.write_labels(stage / results.TARGET, case.scan, case.to_file(case.target.labels))
        clock.lap("write")
        again = [volume.read_image(stage / name) for name in results.adversarial(channels)]
        data = np.stack([each.data for each in again])
        post_labels = case.labels(case.field(data), case.batch(data))
        volume.write_labels(
            stage / results.PREDICTION_ADVERSARIAL, case.scan, case.to_file(case.to_labels(post_labels))
        )
        for name, scan, after in zip(results.perturbation(channels), case.scans, again, strict=True):
            volume.write_float(stage / name, scan, after.data - scan.data, NOTE)
        body = _measure(case, request, found, clean_labels, again, post_labels)
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
                "files": [{"name": name, "sha256": results.sha256(stage / name)} for name in names[:-1]],
            },
            settings={
                "mode": case.mode,
                "slice_axis": request.slice_axis or case.card.slice_axis,
                "save_as": request.save_as,
                "device": request.device,
                "precision": request.precision,
                "spacing": list(case.card.spacing) if case.card.spacing else None,
                "roi": list(case.tiling.roi) if case.tiling else None,
                "overlap": case.tiling.overlap if case.tiling else None,
                "blend": case.tiling.blend if case.tiling else None,
                "attack_channels": list(request.attack_channels) if request.attack_channels else None,
                "tap": request.tap,
                "guide": [path.name for path in request.guides] or None,
            },
            started=clock.started,
        )
        results.write_text(stage / results.REPORT, report.to_json(whole))
    return whole


def _memory_plan(case: Case) -> str:
    """What one batch of the search keeps for its backward pass, and what the volumes take."""
    shape = case.tiling.roi if case.tiling else tuple(n + -n % case.info.divisor for n in case.grids.there.shape_out)
    example = torch.zeros(1, len(case.info.channels), *shape, device=case.clean.device)
    each = case.segmenter.activation_bytes(example) / 2**30
    what = "window" if case.tiling else "slice" if case.layout.sliced else "volume"
    volumes = case.clean.numel() * case.clean.element_size() / 2**30
    return f"memory: up to {each:.2f} GiB for each {what} of {' x '.join(map(str, shape))}; scan {volumes:.2f} GiB"


# --- the search ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What the search brought, in memory. outcomes has one entry per sample, None where none was attacked."""

    adversarial: Tensor
    labels: Tensor
    outcomes: tuple[Outcome | None, ...]
    constant: int
    forward: int
    backward: int


def _search(
    case: Case,
    clean_labels: Tensor,
    config: AttackConfig,
    on_progress: Callable[[Progress], None] | None,
) -> _Found:
    """Attack every slice (or the volume) whose prediction is not the target yet, a few at a time.

    Statistics that are recomputed from the changed file (z-scores) drift a little from the frozen ones, and a few
    voxels with them; so does a search in lower precision. Samples that lose their goal by this are attacked again,
    in float32 and with the statistics frozen at the changed scan.
    """
    flat = case.clean.flatten(1)
    constant = (flat == flat[:, :1]).all(dim=1)
    differs = case.differs(clean_labels).flatten(1).any(dim=1)
    todo = torch.nonzero(differs & ~constant).flatten()
    adversarial = case.clean.clone()
    outcomes: list[Outcome | None] = [None] * len(case.clean)
    passes = [0, 0]
    field = case.field(exact=False)
    labels = clean_labels
    for _ in range(_REFREEZES):

        def work(rows: Tensor, share: float, field: Scan = field, todo: Tensor = todo) -> None:
            part = _Part.of(case, field, rows, clean_labels)
            result = attack(
                part.field,
                part.clean,
                part.wanted,
                config,
                part.limits,
                guide=part.guide,
                spacing=case.layout.batch_spacing(case.scan.affine),
                on_step=_relay(on_progress, share, len(rows) / len(todo), config.steps),
            )
            adversarial[rows] = part.pasted(result.adversarial)
            passes[0], passes[1] = passes[0] + result.forward, passes[1] + result.backward
            for row, outcome in zip(rows.tolist(), result.outcomes, strict=True):
                outcomes[row] = outcome

        case.groups(todo, work)
        field = case.field(case.to_volume(adversarial))
        labels = case.labels(field, adversarial)
        held = case.goal(clean_labels, config).judge(labels).reached
        lost = [row for row, outcome in enumerate(outcomes) if outcome is Outcome.REACHED and not held[row]]
        if not lost:
            break
        todo = torch.tensor(lost, device=case.clean.device)
    return _Found(adversarial, labels, tuple(outcomes), int((differs & constant).sum()), passes[0], passes[1])


@dataclass(frozen=True)
class _Part:
    """Some samples, cut to the part that the edit can reach; see `windows.Focus`."""

    field: Any
    clean: Tensor
    wanted: Tensor
    guide: Tensor | None
    limits: Any
    whole: Tensor
    box: Any

    @staticmethod
    def of(case: Case, field: Scan, rows: Tensor, clean_labels: Tensor) -> _Part:
        whole = case.clean[rows]
        edit = case.differs(clean_labels)[rows]
        focus = field.focus(whole, edit)
        box: Any = (..., *focus.box)
        frozen = case.limits.frozen[rows][box]
        if focus.frozen is not None:
            frozen = frozen | focus.frozen.unsqueeze(1)
        return _Part(
            field=focus.field,
            clean=whole[box],
            wanted=case.wanted[rows][box],
            guide=None if case.guide is None else case.guide[rows][box],
            limits=replace(case.limits, frozen=frozen),
            whole=whole,
            box=box,
        )

    def pasted(self, part: Tensor) -> Tensor:
        """The whole samples with the part in its place."""
        whole = self.whole.clone()
        whole[self.box] = part
        return whole


def _relay(
    on_progress: Callable[[Progress], None] | None, before: float, share: float, steps: int
) -> Callable[[StepRecord], None] | None:
    """before: share of the work that is done already; share: of this part."""
    if on_progress is None:
        return None
    total = max(round(steps / share), 1)
    return lambda record: on_progress(Progress(round(before * total) + record.step + 1, total, record))


# --- measuring ----------------------------------------------------------------------------------------------------


def _measure(
    case: Case,
    request: AttackRequest,
    found: _Found,
    clean_labels: Tensor,
    again: list[volume.Volume],
    post_labels: Tensor,
) -> dict[str, Any]:
    """Everything the report says about the case, from the file that was written (`again`) and its prediction."""
    scan, target, names = case.scan, case.target, case.info.classes
    clean, post = case.to_labels(clean_labels), case.to_labels(post_labels)
    per_sample = case.goal(clean_labels, request.config).judge(post_labels)
    attacked = torch.tensor([outcome is not None for outcome in found.outcomes])
    reached = int((per_sample.reached.cpu() & attacked).sum())
    outcome = _overall(case, request.config, clean, post, found)
    units = [float(unit) for unit in case.preprocessing.unit]

    def agreement(labels: NDArray[np.int64]) -> dict[str, Any]:
        if case.info.overlapping:
            return metrics.agreement_of_regions(labels, target.labels, clean, region_names=names, spacing=scan.spacing)
        return metrics.agreement(labels, target.labels, clean, class_names=names, spacing=scan.spacing)

    sizes = [
        metrics.size(
            before.data,
            after.data,
            unit=unit,
            data_range=_CT_RANGE if channel == "CT" else None,
            slice_axis=case.slices.index,
            spacing=scan.spacing,
        )
        for before, after, unit, channel in zip(case.scans, again, units, case.info.channels, strict=True)
    ]
    in_memory = agreement(case.to_labels(found.labels))
    regions = target.labels if case.info.overlapping else [target.labels == index for index in range(len(names))]
    return {
        "inputs": [
            {
                "channel": channel,
                "name": each.name,
                "sha256": each.sha256,
                "shape": list(each.shape),
                "spacing_mm": list(each.spacing),
                "axcodes": each.axcodes,
                "dtype": each.dtype.name,
                "warnings": list(each.warnings),
            }
            for channel, each in zip(case.info.channels, case.scans, strict=True)
        ],
        "target": {
            "files": [{"name": name, "sha256": digest} for name, digest in target.files],
            "voxels": {name: int(mask.sum()) for name, mask in zip(names, regions, strict=True)},
        },
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
        },
        "metrics": {
            "clean": agreement(clean),
            "in_memory": {key: in_memory[key] for key in ("target_iou", "hit_rate", "accuracy")},
            "post_write": agreement(post),
            "size": metrics.over_channels(sizes),
            "size_per_channel": sizes,
        },
        "quantisation": _quantisation(case, request.save_as, found, again),
    }


def _overall(
    case: Case, config: AttackConfig, clean: NDArray[np.int64], post: NDArray[np.int64], found: _Found
) -> Outcome:
    """The verdict on the whole scan, judged as one sample on the prediction of the written file."""
    target, before, after = (torch.from_numpy(x)[None] for x in (case.target.labels, clean, post))
    goal = replace(case.goal(before, config), target=target, clean=before)
    if bool(goal.judge(after).reached[0]):
        return Outcome.REACHED if found.forward else Outcome.ALREADY
    tried = [outcome for outcome in found.outcomes if outcome is not None]
    if all(outcome is Outcome.NO_GRADIENT for outcome in tried):
        return Outcome.NO_GRADIENT
    return Outcome.STEP_LIMIT


def _quantisation(case: Case, save_as: SaveAs, found: _Found, again: list[volume.Volume]) -> list[dict[str, Any]]:
    """What storing did to the change of each channel: type and step, and how far the file is from the memory."""
    entries = []
    memory = case.to_volume(found.adversarial)
    for index, (scan, after) in enumerate(zip(case.scans, again, strict=True)):
        grid = volume.stored_grid(scan, save_as)
        moved = after.data != scan.data
        low, high = float(case.limits.low[index]), float(case.limits.high[index])
        edge = moved & ((after.data <= low) | (after.data >= high))
        entries.append(
            {
                "save_as": save_as,
                "dtype": after.dtype.name,
                "step_native": None if grid is None else grid.step,
                "fraction_changed": float(moved.mean()),
                "fraction_clipped": float(edge.sum() / max(int(moved.sum()), 1)),
                "max_difference_from_memory_native": float(np.abs(after.data - memory[index]).max()),
            }
        )
    return entries


class _Clock:
    """Seconds spent in each part of a case."""

    def __init__(self) -> None:
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
