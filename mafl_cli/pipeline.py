"""One case from files to report: the only module that joins scans, model, attack and results.

The order matters: everything that can be wrong is checked before the search starts, and the numbers of the report
come last, from the files as they lie on the disk, read again and put through the whole pipeline once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli import metrics, report, results, volume
from mafl_cli.attack import Outcome, StepRecord, attack
from mafl_cli.card import ModelCard, find_card
from mafl_cli.config import AttackConfig, Intensity, Mode, SaveAs, SliceAxisChoice
from mafl_cli.errors import InputError, UsageError
from mafl_cli.geometry import Layout, SliceAxis, choose_slice_axis, require_same_space
from mafl_cli.goals import Goal, Verdict
from mafl_cli.limits import Limits
from mafl_cli.model import ModelInfo, Segmenter, load, pick_device
from mafl_cli.preprocess import Preprocessing
from mafl_cli.targets import Target, read_target
from mafl_cli.windows import Field, Whole, slices_per_batch

NOTE = "MAFL ADVERSARIAL - NOT FOR CLINICAL USE"
DEMO_MODEL = Path(__file__).parent / "demo" / "model.ts"

# Radiology's habit for CT: 12 bits less some air, the range SynthRAD and others measure PSNR with. HU.
_CT_RANGE = 4000.0

# How often statistics may be frozen anew at the changed scan before what is left is reported as it is.
_REFREEZES = 3


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """One case: paths and settings. `None` for a property of the model means: what its card says."""

    image: Path
    target: Path
    out: Path
    guide: Path | None = None
    model: Path = DEMO_MODEL
    mode: Mode = "auto"
    slice_axis: SliceAxisChoice | None = None
    save_as: SaveAs = "float32"
    device: str = "auto"
    orientation: str | None = None
    intensity: Intensity | None = None
    tap: str = "auto"
    overwrite: bool = False
    config: AttackConfig = field(default_factory=AttackConfig)


@dataclass(frozen=True)
class Progress:
    """done of total steps, and what the current step reached."""

    done: int
    total: int
    record: StepRecord


def run_attack(
    request: AttackRequest,
    *,
    say: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Attack one scan, write the result folder, and return the report (see `report.schema.json`).

    Args:
        say: receives one line for each thing a user should know (warnings, assumptions).
        on_progress: called after each step.
    Raises: the errors of `mafl_cli.errors`; then nothing is left behind.
    """
    clock = _Clock()
    device = pick_device(request.device)
    torch.manual_seed(request.config.seed)
    with results.staged(request.out, overwrite=request.overwrite) as stage:
        scan = volume.read_image(request.image)
        for warning in scan.warnings:
            say(warning)
        clock.lap("read")
        case = _prepare(request, scan, device, say)
        clock.lap("load")
        clean_labels = case.labels(case.field, case.clean)
        clock.lap("clean_prediction")
        found = _search(case, clean_labels, request.config, on_progress)
        clock.lap("attack")
        adversarial = case.to_volume(found.adversarial)
        volume.write_image(stage / results.ADVERSARIAL, scan, adversarial, save_as=request.save_as, note=NOTE)
        volume.write_labels(stage / results.PREDICTION_CLEAN, scan, case.to_labels(clean_labels))
        volume.write_labels(stage / results.TARGET, scan, case.target.labels)
        clock.lap("write")
        again = volume.read_image(stage / results.ADVERSARIAL)
        post_labels = case.labels(case.field_of(again.data[np.newaxis]), case.batch(again.data))
        volume.write_labels(stage / results.PREDICTION_ADVERSARIAL, scan, case.to_labels(post_labels))
        volume.write_float(stage / results.PERTURBATION, scan, again.data - scan.data, NOTE)
        body = _measure(case, request, found, clean_labels, again, post_labels)
        clock.lap("measure")
        whole = report.attack_report(
            config=request.config,
            model=case.info,
            device=device,
            case={
                "case_id": report.case_id(scan.name),
                "status": "ok",
                "error": None,
                **body,
                "timing_s": clock.laps,
                "files": [{"name": name, "sha256": results.sha256(stage / name)} for name in results.FILES[:-1]],
            },
            settings={
                "mode": case.mode,
                "slice_axis": request.slice_axis or case.card.slice_axis,
                "save_as": request.save_as,
                "device": request.device,
                "tap": request.tap,
                "guide": None if request.guide is None else request.guide.name,
            },
            started=clock.started,
        )
        results.write_text(stage / results.REPORT, report.to_json(whole))
    return whole


@dataclass(frozen=True)
class _Case:
    """A scan, its target and its model, brought together on one grid. Batches are (B, C, *spatial), native units."""

    scan: volume.Volume
    target: Target
    segmenter: Segmenter
    info: ModelInfo
    card: ModelCard
    mode: Mode
    slices: SliceAxis
    layout: Layout
    preprocessing: Preprocessing
    clean: Tensor
    wanted: Tensor
    guide: Tensor | None
    limits: Limits

    @property
    def field(self) -> Field:
        return Whole(self.segmenter, self.preprocessing, self.info.divisor)

    def field_of(self, data: NDArray[np.float32]) -> Field:
        """The attacked function with the statistics of another scan (C, I, J, K) frozen in."""
        frozen = Preprocessing.freeze(self.preprocessing.intensity, data, self.clean.device)
        return Whole(self.segmenter, frozen, self.info.divisor)

    def batch(self, data: NDArray[np.float32]) -> Tensor:
        """(I, J, K) native -> batch."""
        return torch.from_numpy(self.layout.to_batch(data[np.newaxis])).to(self.clean.device)

    def to_volume(self, batch: Tensor) -> NDArray[np.float32]:
        """Batch -> (I, J, K) native."""
        array: NDArray[np.float32] = self.layout.from_batch(batch.cpu().numpy())[0]
        return array

    def to_labels(self, labels: Tensor) -> NDArray[np.int64]:
        """(B, *spatial) class indices -> (I, J, K)."""
        array: NDArray[np.int64] = self.layout.from_batch(labels.unsqueeze(1).cpu().numpy())[0]
        return array

    @property
    def group(self) -> int:
        """Samples that go through the network together."""
        return slices_per_batch(self.wanted[0].numel()) if self.layout.sliced else 1

    def labels(self, field: Field, batch: Tensor) -> Tensor:
        """Predicted class per voxel, (B, *spatial)."""
        parts = [field.predict(part).logits.argmax(dim=1) for part in _parts(batch, self.group)]
        return torch.cat(parts)


def _prepare(request: AttackRequest, scan: volume.Volume, device: torch.device, say: Callable[[str], None]) -> _Case:
    """Everything that can be wrong with image, model and target is found out here."""
    card = find_card(request.model).merged(orientation=request.orientation, intensity=request.intensity)
    dims = {"2d": 2, "3d": 3}.get(request.mode, card.dims)
    if card.dims not in (None, dims):
        raise UsageError(f"--mode {request.mode}: the model is {card.dims}-D.")
    if request.guide is not None and request.config.feature_weight == 0:
        raise UsageError(f"--guide needs a feature term, which {request.config.method} has not: give --feature-weight.")
    slice_choice = request.slice_axis or card.slice_axis
    slices = choose_slice_axis(scan.affine, scan.shape, slice_choice)

    def sizes(dims: int) -> tuple[Layout, tuple[int, ...]]:
        layout = Layout.for_volume(
            scan.affine,
            orientation=card.orientation or "native",
            slice_axis=slices.index if dims == 2 else None,
        )
        return layout, tuple(scan.shape[axis] for axis in layout.axes[3 - dims :])

    segmenter, info, card = load(
        request.model,
        device=device,
        card=replace(card, dims=dims),
        size=lambda dims: sizes(dims)[1],
        tap=request.tap,
    )
    for sentence in info.assumptions:
        say(f"assumed for {info.name}: {sentence}")
    if len(info.channels) != 1:
        raise InputError(
            f"{scan.name}: is one channel, the model takes {len(info.channels)} ({', '.join(info.channels)})."
        )
    target = read_target(request.target, scan, len(info.classes), info.classes)
    for warning in target.warnings:
        say(warning)
    layout = sizes(info.dims)[0]
    assert card.intensity is not None
    data = scan.data[np.newaxis]
    if card.intensity.kind == "none" and card.source is None and float(np.abs(data).max()) > 100:
        say(
            f"{scan.name}: values up to {float(np.abs(data).max()):.6g} go into the model unscaled; "
            "most networks expect scaled input: see --intensity."
        )
    try:
        preprocessing = Preprocessing.freeze(card.intensity, data, device)
    except InputError as exc:
        raise InputError(f"{scan.name}: {exc}") from exc
    clean = torch.from_numpy(layout.to_batch(data)).to(device)
    guide = None if request.guide is None else _guide(request.guide, scan, layout, preprocessing, say)
    wanted = torch.from_numpy(layout.to_batch(target.labels[np.newaxis])[:, 0]).to(device)
    return _Case(
        scan=scan,
        target=target,
        segmenter=segmenter,
        info=info,
        card=card,
        mode="2d" if info.dims == 2 else "3d",
        slices=slices,
        layout=layout,
        preprocessing=preprocessing,
        clean=clean,
        wanted=wanted,
        guide=guide,
        limits=_limits(scan, preprocessing, clean, request.save_as),
    )


def _guide(
    path: Path, scan: volume.Volume, layout: Layout, preprocessing: Preprocessing, say: Callable[[str], None]
) -> Tensor:
    """A scan that has what the target shows, as a batch in the native units of the attacked one.

    Raises: GeometryError when it lies on another grid; InputError when it cannot be read or scaled.
    """
    guide = volume.read_image(path)
    for warning in guide.warnings:
        say(warning)
    require_same_space(scan.name, scan.shape, scan.affine, guide.name, guide.shape, guide.affine)
    data = guide.data[np.newaxis]
    device = preprocessing.unit.device
    try:
        own = Preprocessing.freeze(preprocessing.intensity, data, device)
    except InputError as exc:
        raise InputError(f"{guide.name}: {exc}") from exc
    return preprocessing.translate(torch.from_numpy(layout.to_batch(data)).to(device), own)


def _limits(scan: volume.Volume, preprocessing: Preprocessing, clean: Tensor, save_as: SaveAs) -> Limits:
    grid = volume.stored_grid(scan, save_as)
    low, high = preprocessing.low, preprocessing.high
    if grid is not None:
        low, high = low.clamp_min(grid.low), high.clamp_max(grid.high)
    if preprocessing.nonzero_only and not bool((clean < 0).any()):
        # Zero is background by definition there; the darkest tissue is the floor.
        low = torch.full_like(low, float(clean[clean > 0].min()))
    return Limits(
        low=low,
        high=high,
        unit=preprocessing.unit,
        frozen=preprocessing.keep(clean),
        step=None if grid is None else torch.full_like(low, grid.step),
        nonzero=preprocessing.nonzero_only,
    )


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
    case: _Case,
    clean_labels: Tensor,
    config: AttackConfig,
    on_progress: Callable[[Progress], None] | None,
) -> _Found:
    """Attack every slice (or the volume) whose prediction is not the target yet, a few at a time.

    Statistics that are recomputed from the changed file (z-scores) drift a little from the frozen ones, and a few
    voxels with them. Samples that lose their goal by this are attacked again, with the statistics frozen at the
    changed scan.
    """
    flat = case.clean.flatten(1)
    constant = (flat == flat[:, :1]).all(dim=1)
    differs = (clean_labels != case.wanted).flatten(1).any(dim=1)
    todo = torch.nonzero(differs & ~constant).flatten()
    adversarial = case.clean.clone()
    outcomes: list[Outcome | None] = [None] * len(case.clean)
    forward = backward = 0
    field = case.field
    labels = clean_labels
    for _ in range(_REFREEZES):
        groups = _parts(todo, case.group)
        for count, rows in enumerate(groups):
            result = attack(
                field,
                case.clean[rows],
                case.wanted[rows],
                config,
                replace(case.limits, frozen=case.limits.frozen[rows]),
                guide=None if case.guide is None else case.guide[rows],
                on_step=_relay(on_progress, count, len(groups), config.steps),
            )
            adversarial[rows] = result.adversarial
            forward, backward = forward + result.forward, backward + result.backward
            for row, outcome in zip(rows.tolist(), result.outcomes, strict=True):
                outcomes[row] = outcome
        field = case.field_of(case.to_volume(adversarial)[np.newaxis])
        labels = case.labels(field, adversarial)
        held = _judge(case, clean_labels, labels, config).reached
        lost = [row for row, outcome in enumerate(outcomes) if outcome is Outcome.REACHED and not held[row]]
        if not lost:
            break
        todo = torch.tensor(lost, device=case.clean.device)
    return _Found(adversarial, labels, tuple(outcomes), int((differs & constant).sum()), forward, backward)


def _parts(x: Tensor, size: int) -> list[Tensor]:
    return [x[first : first + size] for first in range(0, len(x), size)]


def _relay(
    on_progress: Callable[[Progress], None] | None, group: int, groups: int, steps: int
) -> Callable[[StepRecord], None] | None:
    if on_progress is None:
        return None
    return lambda record: on_progress(Progress(group * steps + record.step + 1, groups * steps, record))


def _judge(case: _Case, clean: Tensor, labels: Tensor, config: AttackConfig) -> Verdict:
    return Goal.of(case.wanted, clean, len(case.info.classes), config).judge(labels)


# --- measuring ----------------------------------------------------------------------------------------------------


def _measure(
    case: _Case,
    request: AttackRequest,
    found: _Found,
    clean_labels: Tensor,
    again: volume.Volume,
    post_labels: Tensor,
) -> dict[str, Any]:
    """Everything the report says about the case, from the file that was written (`again`) and its prediction."""
    scan, target = case.scan, case.target
    clean, post = case.to_labels(clean_labels), case.to_labels(post_labels)
    per_sample = _judge(case, clean_labels, post_labels, request.config)
    attacked = torch.tensor([outcome is not None for outcome in found.outcomes])
    reached = int((per_sample.reached.cpu() & attacked).sum())
    outcome = _overall(case, request.config, clean, post, found)
    unit = float(case.preprocessing.unit[0])

    def agreement(labels: NDArray[np.int64]) -> dict[str, Any]:
        return metrics.agreement(labels, target.labels, clean, class_names=case.info.classes, spacing=scan.spacing)

    in_memory = agreement(case.to_labels(found.labels))
    return {
        "input": {
            "name": scan.name,
            "sha256": scan.sha256,
            "shape": list(scan.shape),
            "spacing_mm": list(scan.spacing),
            "axcodes": scan.axcodes,
            "dtype": scan.dtype.name,
            "warnings": list(scan.warnings),
        },
        "target": {
            "name": target.name,
            "sha256": target.sha256,
            "voxels": {name: int((target.labels == index).sum()) for index, name in enumerate(case.info.classes)},
        },
        "space": {
            "mode": case.mode,
            "slice_axis": {
                "index": case.slices.index,
                "name": case.slices.name,
                "reason": case.slices.reason,
            },
            "native_units_per_model_unit": unit,
            "data_box_native": [float(case.limits.low[0]), float(case.limits.high[0])],
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
            "size": metrics.size(
                scan.data,
                again.data,
                unit=unit,
                data_range=_CT_RANGE if case.info.channels == ("CT",) else None,
                slice_axis=case.slices.index,
                spacing=scan.spacing,
            ),
        },
        "quantisation": _quantisation(case, request.save_as, found, again),
    }


def _overall(
    case: _Case, config: AttackConfig, clean: NDArray[np.int64], post: NDArray[np.int64], found: _Found
) -> Outcome:
    """The verdict on the whole scan, judged as one sample on the prediction of the written file."""
    target, before, after = (torch.from_numpy(x)[None] for x in (case.target.labels, clean, post))
    if bool(Goal.of(target, before, len(case.info.classes), config).judge(after).reached[0]):
        return Outcome.REACHED if found.forward else Outcome.ALREADY
    tried = [outcome for outcome in found.outcomes if outcome is not None]
    if all(outcome is Outcome.NO_GRADIENT for outcome in tried):
        return Outcome.NO_GRADIENT
    return Outcome.STEP_LIMIT


def _quantisation(case: _Case, save_as: SaveAs, found: _Found, again: volume.Volume) -> dict[str, Any]:
    """What storing did to the change: the file's type and step, and how far the file is from the memory."""
    grid = volume.stored_grid(case.scan, save_as)
    memory = case.to_volume(found.adversarial)
    moved = again.data != case.scan.data
    low, high = float(case.limits.low[0]), float(case.limits.high[0])
    edge = moved & ((again.data <= low) | (again.data >= high))
    return {
        "save_as": save_as,
        "dtype": again.dtype.name,
        "step_native": None if grid is None else grid.step,
        "fraction_changed": float(moved.mean()),
        "fraction_clipped": float(edge.sum() / max(int(moved.sum()), 1)),
        "max_difference_from_memory_native": float(np.abs(again.data - memory).max()),
    }


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
