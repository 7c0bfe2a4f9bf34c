"""Cases and reports of evaluations as `mafl evaluate` makes them, measured on small arrays. No test in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from seen import visibility

from mafl_cli.classes import Classes
from mafl_cli.codes import Reason
from mafl_cli.config import DETECTORS
from mafl_cli.judging import detectors, gates, totals, trials
from mafl_cli.judging.gates import Gate
from mafl_cli.measure import agreement, perturbation
from mafl_cli.measure.consequences import consequences
from mafl_cli.measure.records import AttackLeft, CleanLeft, Reach, Survival
from mafl_cli.measure.value import Value
from mafl_cli.results.detection_report import Detection, Scores
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION, TOOL, Environment, Failure
from mafl_cli.results.evaluation_report import (
    Curve,
    Evaluation,
    FailedCase,
    GoalRecord,
    GroundTruth,
    JudgedCase,
    JudgedMetrics,
    JudgingModel,
    Point,
    SmallestAtGoal,
    Transfer,
    TrialsAsked,
    WithTruth,
)

SHAPE = (14, 12, 3)
NAMES = ("background", "organ")
MODEL = JudgingModel(name="flat.ts", sha256="a" * 64, classes=NAMES, overlapping=False, assumptions=())


@lru_cache(maxsize=1)
def _measured() -> JudgedMetrics:
    """The metrics of one pair of scans."""
    clean = np.zeros(SHAPE, np.int64)
    clean[3:8, 3:8, 1:] = 1
    target, adversarial = np.roll(clean, 2, axis=0), np.roll(clean, 1, axis=0)
    scan = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    change = np.where(clean != target, np.float32(0.01), np.float32(0))
    classes, mm = Classes(NAMES), (1, 1, 2)
    clean, target, adversarial = (each[np.newaxis] for each in (clean, target, adversarial))
    size = perturbation.size(scan, scan + change, unit=2.0, data_range=None, slice_axis=2, spacing=(1, 1, 2))
    return JudgedMetrics(
        clean=agreement.agreement(clean, target, clean, classes, spacing=mm),
        post_write=agreement.agreement(adversarial, target, clean, classes, spacing=mm),
        consequences=consequences(clean, adversarial, classes, spacing=mm),
        dice_with_clean=agreement.quick_agreement(adversarial, target, clean, classes).dice_with_clean,
        size=size,
        size_per_channel=(size,),
        visibility=visibility(scan, scan + change),
    )


def value(number: float | None, reason: Reason = Reason.SCORE_UNDEFINED) -> Value:
    return Value(None, reason) if number is None else Value(number)


def case(case_id: str = "scan", *, reached: bool = True, **changes: Any) -> JudgedCase:
    """A case that was measured. changes: of its entries, or of the figures that are measurements by their names."""
    metrics = _measured()
    post: Any = {
        name: value(changes.pop(name)) for name in ("target_iou", "target_dice", "hit_rate") if name in changes
    }
    size = metrics.size
    if "psnr_db" in changes:
        found = value(changes.pop("psnr_db"))
        size = replace(size, psnr_db=replace(size.psnr_db, value=found.value, reason=found.reason))
    if "linf_native" in changes:
        size = replace(size, linf=replace(size.linf, native=changes.pop("linf_native")))
    made = JudgedCase(
        case_id=case_id,
        status="ok",
        error=None,
        predictions="recomputed",
        outcome=None,
        files_intact=None,
        differences=(),
        untested=None,
        attack=None,
        doubts=(),
        goal=GoalRecord(iou=0.99, hit=0.99, reached=reached),
        metrics=replace(metrics, post_write=replace(metrics.post_write, **post), size=size),
        ground_truth=None,
        transfer=(),
        survival=(),
        detection=(),
        curve=None,
    )
    frozen: Any = {name: tuple(new) if isinstance(new, list) else new for name, new in changes.items()}
    return replace(made, **frozen)


def failed(case_id: str = "broken", message: str = "broken.nii.gz: is not NIfTI.") -> FailedCase:
    return FailedCase(case_id=case_id, status="failed", error=Failure(type="InputError", message=message))


def truth(clean: float | None, adversarial: float | None) -> GroundTruth:
    def one(dice: float | None) -> WithTruth:
        return WithTruth(dice=value(dice), iou=value(dice), per_class=())

    drop = None if clean is None or adversarial is None else clean - adversarial
    return GroundTruth(clean=one(clean), adversarial=one(adversarial), dice_drop=value(drop))


def transferred(target_iou: float | None, sha256: str = "b" * 64, name: str = "other.ts") -> Transfer:
    def reach(number: float | None) -> Reach:
        found = value(number)
        return Reach(target_iou=found, hit_rate=found, restored=found, dice_with_clean=found)

    return Transfer(model=name, sha256=sha256, clean=reach(0.1), adversarial=reach(target_iou))


def survived(target_iou: float | None, transform: str = "blur:1") -> Survival:
    left = value(target_iou)
    return Survival(
        transform=transform,
        goal_reached=False,
        adversarial=AttackLeft(target_iou=left, hit_rate=left, restored=left),
        clean=CleanLeft(target_iou=value(0.9), dice_with_clean=value(0.9)),
    )


def curve(points: Sequence[tuple[float, float]] = ((0.0, 0.0), (0.02, 1.0)), at_goal: float | None = 0.5) -> Curve:
    """points: (share of the range, target IoU); at_goal: the multiple that reaches the goal."""
    made = tuple(
        Point(
            scale=share / max(points[-1][0], 1e-9),
            linf_share=share,
            linf_native=10 * share,
            l2_model=100 * share,
            psnr_db=value(None, Reason.IDENTICAL) if share == 0 else value(40.0),
            target_iou=value(score),
            hit_rate=value(score),
        )
        for share, score in points
    )
    smallest = SmallestAtGoal(None, Reason.GOAL_NOT_REACHED)
    if at_goal is not None:
        share = at_goal * points[-1][0]
        smallest = SmallestAtGoal(
            at_goal, linf_share=share, linf_native=10 * share, l2_model=100 * share, psnr_db=value(46.0)
        )
    return Curve(points=made, smallest_at_goal=smallest, area=trials.areas(made), runs=1)


def detected(*scores: tuple[float, float]) -> tuple[Detection, ...]:
    """scores: (clean, adversarial) of each slice, the same by each detector."""
    samples = tuple(Scores(slice=n, clean=clean, adversarial=other) for n, (clean, other) in enumerate(scores))
    return tuple(
        Detection(detector=name, auc=detectors.roc(name, [samples]).auc, samples=samples) for name in DETECTORS
    )


def judged(
    cases: Sequence[JudgedCase | FailedCase], rules: Sequence[Gate] = (), *, models: Sequence[JudgingModel] = (MODEL,)
) -> Evaluation:
    """The report on some cases: everything over all of them is what the command would say."""
    done = totals.judged(cases)
    detect = bool(done) and all(each.detection for each in done)
    return Evaluation(
        schema_version=SCHEMA_VERSION,
        tool=TOOL,
        notice=NOTICE,
        command="evaluate",
        environment=Environment.here(torch.device("cpu")),
        models=tuple(models),
        trials=TrialsAsked(transforms=(), detectors=DETECTORS if detect else (), curve_budgets=None, curve_end=None),
        cases=tuple(cases),
        aggregate=totals.aggregate(cases),
        transfer=totals.transfer(cases),
        survival=totals.survival(cases),
        detection=detectors.over_all(done) if detect else (),
        gates=tuple(gates.judge(gate, cases) for gate in rules),
    )
