"""What the report says of a case: its scans, its target, its bounds, and what was measured on the written files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.prepare import Case
from mafl_cli.case.searching import Found
from mafl_cli.case.subject import Labels
from mafl_cli.codes import Outcome
from mafl_cli.config import AttackConfig
from mafl_cli.measure import perturbation
from mafl_cli.measure.agreement import agreement_of_masks
from mafl_cli.scans import volume
from mafl_cli.scans.masks import Source
from mafl_cli.search.goals import Verdict

# Voxels that are compared together.
_BLOCK = 1 << 22


def facts_of(
    case: Case,
    config: AttackConfig,
    found: Found,
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
        "target": target_of(case),
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
        "bounds": bounds_of(case, config),
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


def voxels_of(case: Case, labels: Labels) -> dict[str, int]:
    """Voxels of each class, or region."""
    names = case.info.classes
    masks = labels if case.info.overlapping else (labels == index for index in range(len(names)))
    return {name: int(mask.sum()) for name, mask in zip(names, masks, strict=True)}


def target_of(case: Case) -> dict[str, Any]:
    target = case.target
    return {
        "recipe": target.recipe,
        "files": [_source(file) for file in target.files],
        "voxels": voxels_of(case, target.labels),
    }


def _source(file: Source) -> dict[str, Any]:
    counts = None
    if file.resampled is not None:
        counts = {str(label): {"before": old, "after": new} for label, (old, new) in file.resampled.items()}
    return {"name": file.name, "sha256": file.sha256, "resampled": counts}


def bounds_of(case: Case, config: AttackConfig) -> dict[str, Any]:
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


def _overall(together: Verdict, found: Found) -> Outcome:
    """What became of the whole scan. together: its verdict as one sample, on the prediction of the written file."""
    if bool(together.reached[0]):
        return Outcome.REACHED if found.forward else Outcome.ALREADY
    tried = [outcome for outcome in found.outcomes if outcome is not None]
    if all(outcome is Outcome.NO_GRADIENT for outcome in tried):
        return Outcome.NO_GRADIENT
    return Outcome.STEP_LIMIT


def _quantisation(case: Case, found: Found, again: list[volume.Volume]) -> list[dict[str, Any]]:
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
    case: Case, found: Found, channel: int, after: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """A channel as it was, as it was found, and as it was read again, some planes at a time."""
    for row, now in enumerate(case.layout.as_batch(after[np.newaxis])[:, 0]):
        was, held = (each[channel].cpu().numpy() for each in (case.clean[row], found.adversarial.one(row)))
        planes = max(1, _BLOCK // max(1, now[0].size))
        for first in range(0, len(now), planes):
            part = slice(first, first + planes)
            yield was[part], held[part], now[part]
