"""Cases and reports of evaluations as `mafl evaluate` makes them, measured on small arrays. No test in here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from mafl_cli import __version__
from mafl_cli.judging import evaluation, gates, quantities, trials
from mafl_cli.judging.gates import Gate
from mafl_cli.measure import agreement, perturbation
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION, Environment
from mafl_cli.system.records import plain

SHAPE = (14, 12, 3)
NAMES = ("background", "organ")
MODEL = {"name": "flat.ts", "sha256": "a" * 64, "classes": list(NAMES), "overlapping": False, "assumptions": []}


@lru_cache(maxsize=1)
def _measured() -> dict[str, Any]:
    """The metrics of one pair of scans."""
    clean = np.zeros(SHAPE, np.int64)
    clean[3:8, 3:8, 1:] = 1
    target, adversarial = np.roll(clean, 2, axis=0), np.roll(clean, 1, axis=0)
    scan = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    change = np.where(clean != target, np.float32(0.01), np.float32(0))
    how = {"class_names": NAMES, "spacing": (1, 1, 2)}
    size = plain(perturbation.size(scan, scan + change, unit=2.0, data_range=None, slice_axis=2, spacing=(1, 1, 2)))
    return {
        "clean": plain(agreement.agreement(clean, target, clean, **how)),
        "post_write": plain(agreement.agreement(adversarial, target, clean, **how)),
        "dice_with_clean": plain(
            agreement.reach(adversarial, target, clean, classes=2, overlapping=False).dice_with_clean
        ),
        "size": size,
        "size_per_channel": [size],
    }


def value(number: float | None, reason: str = "score_undefined") -> dict[str, Any]:
    return {"value": None, "reason": reason} if number is None else {"value": number}


def case(case_id: str = "scan", *, reached: bool = True, **changes: Any) -> dict[str, Any]:
    """A case that was measured. changes: of its entries, or of the figures that are measurements by their names."""
    metrics_of = copy.deepcopy(_measured())
    for name in ("target_iou", "target_dice", "hit_rate"):
        if name in changes:
            metrics_of["post_write"][name] = value(changes.pop(name))
    if "psnr_db" in changes:
        metrics_of["size"]["psnr_db"] = value(changes.pop("psnr_db"))
    if "linf_native" in changes:
        metrics_of["size"]["linf"]["native"] = changes.pop("linf_native")
    made = {
        "case_id": case_id,
        "status": "ok",
        "error": None,
        "predictions": "recomputed",
        "outcome": None,
        "files_intact": None,
        "differences": [],
        "untested": None,
        "goal": {"iou": 0.99, "hit": 0.99, "reached": reached},
        "metrics": metrics_of,
        "ground_truth": None,
        "transfer": [],
        "survival": [],
        "detection": None,
        "curve": None,
    }
    assert set(changes) <= set(made)
    return made | changes


def failed(case_id: str = "broken", message: str = "broken.nii.gz: is not NIfTI.") -> dict[str, Any]:
    return {"case_id": case_id, "status": "failed", "error": {"type": "InputError", "message": message}}


def truth(clean: float | None, adversarial: float | None) -> dict[str, Any]:
    def one(dice: float | None) -> dict[str, Any]:
        return {"dice": value(dice), "iou": value(dice), "per_class": []}

    drop = None if clean is None or adversarial is None else clean - adversarial
    return {"clean": one(clean), "adversarial": one(adversarial), "dice_drop": value(drop)}


def transferred(target_iou: float | None, sha256: str = "b" * 64, name: str = "other.ts") -> dict[str, Any]:
    def reach(number: float | None) -> dict[str, Any]:
        return {key: value(number) for key in ("target_iou", "hit_rate", "restored", "dice_with_clean")}

    return {"model": name, "sha256": sha256, "clean": reach(0.1), "adversarial": reach(target_iou)}


def survived(target_iou: float | None, transform: str = "blur:1") -> dict[str, Any]:
    return {
        "transform": transform,
        "adversarial": {key: value(target_iou) for key in ("target_iou", "hit_rate", "restored")},
        "clean": {key: value(0.9) for key in ("target_iou", "dice_with_clean")},
    }


def curve(points: Sequence[tuple[float, float]] = ((0.0, 0.0), (0.02, 1.0)), at_goal: float | None = 0.5) -> Any:
    """points: (share of the range, target IoU); at_goal: the multiple that reaches the goal."""
    made = [
        {
            "scale": share / max(points[-1][0], 1e-9),
            "linf_share": share,
            "linf_native": 10 * share,
            "l2_model": 100 * share,
            "psnr_db": value(None, "identical") if share == 0 else value(40.0),
            "target_iou": value(score),
            "hit_rate": value(score),
        }
        for share, score in points
    ]
    smallest: dict[str, Any] = {"value": None, "reason": "goal_not_reached"}
    if at_goal is not None:
        share = at_goal * points[-1][0]
        smallest = {"value": at_goal, "linf_share": share, "linf_native": 10 * share, "l2_model": 100 * share}
        smallest["psnr_db"] = value(46.0)
    one = {"points": made, "smallest_at_goal": smallest}
    return one | trials.joined([one]) | {"runs": 1}


def detected(*scores: tuple[float, float]) -> dict[str, Any]:
    """scores: (clean, adversarial) of each slice."""
    samples = [{"slice": n, "clean": clean, "adversarial": other} for n, (clean, other) in enumerate(scores)]
    return {"detector": "share of the drawn voxels that move under blur:0.5", "samples": samples}


def judged(
    cases: Sequence[dict[str, Any]], rules: Sequence[Gate] = (), *, models: Sequence[dict[str, Any]] = (MODEL,)
) -> dict[str, Any]:
    """The report on some cases: everything over all of them is what the command would say."""
    done = [each for each in cases if each["status"] == "ok"]
    detect = bool(done) and all(each["detection"] is not None for each in done)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "mafl", "version": __version__},
        "notice": NOTICE,
        "command": "evaluate",
        "environment": plain(Environment.here(torch.device("cpu"))),
        "models": list(models),
        "trials": {
            "transforms": [],
            "detector": trials.DETECTOR.name if detect else None,
            "curve_budgets": None,
            "curve_end": None,
        },
        "cases": list(cases),
        "aggregate": quantities.statistics_of(cases),
        "transfer": evaluation._transfer(cases),
        "survival": evaluation._survival(cases),
        "detection": trials.roc(evaluation._samples(cases)) if detect else None,
        "gates": [gates.judge(gate, cases) for gate in rules],
    }
