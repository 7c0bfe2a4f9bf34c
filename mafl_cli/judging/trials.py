"""What is tried with a pair of scans beyond measuring it as it lies there.

*Survival*: what is left of the attack after what happens to scans on their way. *Detection*: whether it gives itself
away. *Curve*: how much of the change is needed. The same files give
the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.case.subject import Subject
from mafl_cli.codes import Reason
from mafl_cli.judging.judges import Comparison, Judge, Labels
from mafl_cli.judging.transforms import Transform
from mafl_cli.results.recorded import Pair
from mafl_cli.scans.volume import Volume

# Where the curve is read: the largest voxel's change as a share of the data range.
CURVE_BUDGETS = (
    0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0,
)  # fmt: skip
# The area under it ends there: a larger change of a voxel is plain to see.
CURVE_END = 0.1
# The smallest change that reaches the goal is found to this share of the whole one: 2 ** -7.
_HALVINGS = 7
# A mild blur, in voxels: predictions of clean scans hardly move, see docs/evaluate.md.
DETECTOR = Transform("blur", 0.5)


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What is done beyond measuring the files as they are."""

    transforms: tuple[Transform, ...] = ()
    detect: bool = False
    curve: bool = False

    @property
    def any(self) -> bool:
        return bool(self.transforms) or self.detect or self.curve


# --- what is left of it -------------------------------------------------------------------------------------------


def survival(pair: Pair, compared: Comparison, judge: Judge, transform: Transform) -> dict[str, Any]:
    """The predictions after a transform: of the adversarial scan, and of the clean one, which pays for a defence."""
    clean, adversarial = (_after(transform, scans, judge.subject) for scans in (pair.clean, pair.adversarial))
    after, before = compared.reach(adversarial), compared.reach(clean)
    return {
        "transform": transform.name,
        "adversarial": {key: after[key] for key in ("target_iou", "hit_rate", "restored")},
        "clean": {key: before[key] for key in ("target_iou", "dice_with_clean")},
    }


def _after(transform: Transform, scans: Sequence[Volume], subject: Subject) -> Labels:
    """What the model draws on the changed scans, on the grid of the scans as they were."""
    axis = subject.slices.index
    changed = []
    for scan in scans:
        data = transform(scan.data, axis)
        if subject.preprocessing.nonzero_only:
            # Zero is no measurement for this model: it stays what it was, wherever the transform has put it.
            outside = scan.data == 0 if transform.kind != "crop" else transform(scan.data, axis) == 0
            data[outside] = 0
        if scan.padding is not None and transform.kind != "crop":
            data[scan.padding] = scan.data[scan.padding]
        changed.append(data)
    return transform.back(subject.predict(changed), axis)


# --- does it give itself away -------------------------------------------------------------------------------------


def detection(pair: Pair, judge: Judge) -> dict[str, Any]:
    """How much of what the model draws moves under a mild blur, on the scans of the pair.

    One score for each slice that changed, or for the volume: voxels drawn otherwise, as a share of those that are
    foreground before or after; 0 where nothing is.
    """
    subject, axis = judge.subject, judge.subject.slices.index
    sliced = subject.layout.sliced
    scores = {}
    for name, scans, labels in (
        ("clean", pair.clean, judge.clean),
        ("adversarial", pair.adversarial, judge.adversarial),
    ):
        blurred = _after(DETECTOR, scans, subject)
        masks: NDArray[np.bool_] = np.stack([blurred != labels, (blurred > 0) | (labels > 0)])
        if subject.info.overlapping:
            masks = np.asarray(masks.any(axis=1))
        samples = masks.shape[axis + 1] if sliced else 1
        counts = [np.moveaxis(mask, axis, 0).reshape(samples, -1).sum(axis=1) for mask in masks]
        scores[name] = counts[0] / np.maximum(counts[1], 1)
    differs = np.any([a.data != b.data for a, b in zip(pair.clean, pair.adversarial, strict=True)], axis=0)
    changed = np.moveaxis(differs, axis, 0).reshape(samples, -1).any(axis=1)
    return {
        "detector": f"share of the drawn voxels that move under {DETECTOR.name}",
        "samples": [
            {
                "slice": int(index) if sliced else None,
                "clean": float(scores["clean"][index]),
                "adversarial": float(scores["adversarial"][index]),
            }
            for index in np.flatnonzero(changed)
        ],
    }


def roc(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How well the scores of `detection` tell adversarial samples from their clean twins.

    Returns: `n` of each kind; `auc`, the chance that an adversarial sample scores above a clean one, ties half
        (Hanley and McNeil 1982); `points` of the ROC curve, [false positive rate, true positive rate], from (0, 0) to
        (1, 1); `tpr_at_5_percent_fpr`. Undefined without samples: `no_changed_sample`.
    """
    clean = np.array([sample["clean"] for sample in samples])
    adversarial = np.array([sample["adversarial"] for sample in samples])
    if not len(samples):
        undefined = {"value": None, "reason": Reason.NO_CHANGED_SAMPLE}
        return {"n": 0, "auc": undefined, "tpr_at_5_percent_fpr": undefined, "points": []}
    borders = np.unique(np.concatenate([clean, adversarial]))[::-1]
    points = [(0.0, 0.0), *(((clean >= border).mean(), (adversarial >= border).mean()) for border in borders)]
    false, true = np.array(points).T
    auc = float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))
    return {
        "n": len(samples),
        "auc": {"value": auc},
        "tpr_at_5_percent_fpr": {"value": float(true[false <= 0.05].max())},
        "points": [[float(a), float(b)] for a, b in zip(false, true, strict=True)],
    }


# --- how much of it is needed -------------------------------------------------------------------------------------


def curve(pair: Pair, compared: Comparison, judge: Judge) -> dict[str, Any]:
    """What smaller multiples of the same change do, from none to all of it.

    An attack made for a smaller budget does better than a shrunk one: the curve is a lower bound of what a budget
    allows. Multiples are float32 in memory; integer files would round them.
    """
    ranges = [each["data_range"]["value"] for each in compared.size["size_per_channel"]]
    largest = [each["linf"]["native"] for each in compared.size["size_per_channel"]]
    share = max((a / b for a, b in zip(largest, ranges, strict=True) if b), default=0.0)

    def at(scale: float) -> tuple[dict[str, Any], bool]:
        scans = [
            before.data + np.float32(scale) * (after.data - before.data)
            for before, after in zip(pair.clean, pair.adversarial, strict=True)
        ]
        labels = judge.adversarial if scale == 1 else judge.clean if scale == 0 else judge.subject.predict(scans)
        found = compared.reach(labels)
        reached = compared.reached(labels)
        return {
            "scale": scale,
            **_change(compared.size["size"], share, scale),
            "target_iou": found["target_iou"],
            "hit_rate": found["hit_rate"],
        }, reached

    scales = [0.0, *(budget / share for budget in CURVE_BUDGETS if budget < share), 1.0] if share else [0.0]
    tried = [at(scale) for scale in scales]
    reaching = [point["scale"] for point, reached in tried if reached]
    smallest: dict[str, Any]
    if not reaching:
        smallest = {"value": None, "reason": Reason.GOAL_NOT_REACHED}
    else:
        high = reaching[0]
        low = max((point["scale"] for point, _ in tried if point["scale"] < high), default=high)
        for _ in range(_HALVINGS if low < high else 0):
            middle = (low + high) / 2
            low, high = (low, middle) if at(middle)[1] else (middle, high)
        smallest = {"value": high, **_change(compared.size["size"], share, high)}
    return {"points": [point for point, _ in tried], "smallest_at_goal": smallest}


def joined(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several runs of one scan and target show together: as much as the best of them at each budget.

    curves: as `curve` gives them. Returns: `area` for the target IoU and the hit rate, see `area`; `smallest_at_goal`,
        the one whose largest voxel changes least, of equal ones the shortest.
    """
    points = sorted(
        (point for each in curves for point in each["points"]), key=lambda point: float(point["linf_share"])
    )
    at_goal = [each["smallest_at_goal"] for each in curves if each["smallest_at_goal"]["value"] is not None]
    return {
        "area": {key: area([(p["linf_share"], p[key]["value"]) for p in points]) for key in ("target_iou", "hit_rate")},
        "smallest_at_goal": min(
            at_goal,
            key=lambda each: (float(each["linf_share"]), float(each["l2_model"]), float(each["value"])),
            default=curves[0]["smallest_at_goal"],
        ),
    }


def _change(size: Mapping[str, Any], share: float, scale: float) -> dict[str, Any]:
    """The size of a multiple of the change: lengths are in proportion, decibels fall with the logarithm."""
    psnr = size["psnr_db"]["value"]
    known = psnr is not None and scale > 0
    return {
        "linf_share": share * scale,
        "linf_native": size["linf"]["native"] * scale,
        "l2_model": size["l2"]["model"] * scale,
        "psnr_db": {"value": psnr - 20 * math.log10(scale)}
        if known
        else {
            "value": None,
            "reason": Reason.IDENTICAL if scale == 0 else size["psnr_db"].get("reason", Reason.IDENTICAL),
        },
    }


def area(points: Sequence[tuple[float, float | None]]) -> dict[str, Any]:
    """Mean score over all budgets from 0 to `CURVE_END`, in [0, 1].

    A budget allows every smaller change too, so what counts at a budget is the best score up to it: a staircase.
    Args:
        points: (change, score), the change as a share of the data range, in rising order.
    """
    if any(score is None for _, score in points):
        return {"value": None, "reason": Reason.SCORE_UNDEFINED}
    end, total, best, position = CURVE_END, 0.0, 0.0, 0.0
    for change, score in points:
        if change > end:
            break
        total += best * (change - position)
        best, position = max(best, float(score or 0)), change
    return {"value": (total + best * (end - position)) / end}
