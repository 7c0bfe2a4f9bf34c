"""Whether an attack gives itself away: scores that a clinic could take of every scan, without knowing the attack.

*blur*: a mild blur moves the prediction. *entropy*, *margin*: the model is unsure of what it draws. Each was made to
catch attacks that do not know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from mafl_cli.case.subject import Subject
from mafl_cli.case.surviving import labels_after
from mafl_cli.classes import Labels, in_any_map
from mafl_cli.codes import Reason
from mafl_cli.field.samples import OfScan
from mafl_cli.field.transforms import Transform
from mafl_cli.judging.judges import Judge
from mafl_cli.measure import roc as curves
from mafl_cli.measure.value import defined, undefined
from mafl_cli.network import uncertainty
from mafl_cli.results.detection_report import Detection, Detector, Roc, Scores
from mafl_cli.results.evaluation_report import JudgedCase
from mafl_cli.results.recorded import Pair
from mafl_cli.scans.volume import Volume

DETECTORS: tuple[Detector, ...] = get_args(Detector)
# A mild blur, in voxels: predictions of clean scans hardly move, see docs/evaluate.md.
BLUR = Transform("blur", 0.5)
# With fewer clean samples one false alarm is more than 5 %.
_ENOUGH = 20

SCORES: Mapping[Detector, str] = {
    "blur": f"share of the drawn voxels that move under {BLUR.name}",
    "entropy": "entropy of the class probabilities, mean over what may be foreground",
    "margin": "1 - margin of the two highest class probabilities, mean over what may be foreground",
}
"""What each detector counts, in [0, 1]; higher is more suspicious."""

_Both = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Scores of all slices, or of the volume: of the clean and of the adversarial scan."""


def detection(pair: Pair, judge: Judge) -> tuple[Detection, ...]:
    """The scores of each detector for each slice that changed, or for the volume, in both scans of the pair."""
    subject, axis = judge.subject, judge.subject.slices.index
    blurred = tuple(
        _moved(subject, scans, labels)
        for scans, labels in ((pair.clean, judge.clean), (pair.adversarial, judge.adversarial))
    )
    clean, adversarial = (_unsure(subject, scans) for scans in (pair.clean, pair.adversarial))
    found: dict[Detector, _Both] = {
        "blur": (blurred[0], blurred[1]),
        "entropy": (clean[0], adversarial[0]),
        "margin": (clean[1], adversarial[1]),
    }
    differs = np.any([a.data != b.data for a, b in zip(pair.clean, pair.adversarial, strict=True)], axis=0)
    sliced = subject.layout.sliced
    changed = np.moveaxis(differs, axis, 0).reshape(differs.shape[axis] if sliced else 1, -1).any(axis=1)
    return tuple(_of_case(name, both, np.flatnonzero(changed), sliced=sliced) for name, both in found.items())


def _of_case(name: Detector, both: _Both, changed: NDArray[np.int64], *, sliced: bool) -> Detection:
    samples = tuple(
        Scores(slice=int(index) if sliced else None, clean=float(both[0][index]), adversarial=float(both[1][index]))
        for index in changed
    )
    return Detection(detector=name, auc=roc(name, [samples]).auc, samples=samples)


def _moved(subject: Subject, scans: Sequence[Volume], labels: Labels) -> NDArray[np.float64]:
    """Voxels drawn otherwise under a mild blur, as a share of those that are foreground before or after; 0 where
    nothing is."""
    axis = subject.slices.index
    blurred = labels_after(BLUR, scans, subject)
    masks = np.stack([in_any_map(blurred != labels), in_any_map((blurred > 0) | (labels > 0))])
    samples = masks.shape[axis + 1] if subject.layout.sliced else 1
    moved, drawn = (np.moveaxis(mask, axis, 0).reshape(samples, -1).sum(axis=1) for mask in masks)
    found: NDArray[np.float64] = moved / np.maximum(drawn, 1)
    return found


def _unsure(subject: Subject, scans: Sequence[Volume]) -> NDArray[np.float64]:
    """Entropy and closeness of what may be foreground: (2, slices or 1)."""
    data = [scan.data for scan in scans]
    samples = OfScan(data, subject.layout, subject.clean.device)
    totals = subject.totals(samples, subject.frozen(data), uncertainty.weighed)
    scores = uncertainty.scores(totals).cpu().numpy()
    # The batch may have the slices in another order: as a scan of one voxel a slice it is turned like any other.
    turned = subject.layout.from_batch(scores.reshape(*scores.shape, *(1,) * (subject.clean.ndim - 2)))
    found: NDArray[np.float64] = turned.reshape(2, -1)
    return found


def roc(name: Detector, cases: Sequence[Sequence[Scores]]) -> Roc:
    """How well the scores of a detector tell adversarial samples from their clean twins.

    Slices of one scan are alike: the interval counts each case as one sample of each kind, however many slices it has.
    It is there from 2 cases on; what is found with a single one says nothing of other scans.
    Args: cases: the samples of each case.
    """
    samples = [sample for case in cases for sample in case]
    count = sum(bool(case) for case in cases)
    if not samples:
        unknown = undefined(Reason.NO_CHANGED_SAMPLE)
        return Roc(
            detector=name, score=SCORES[name], cases=0, n=0, auc=unknown, ci95=None, tpr_at_5_percent_fpr=unknown,
            points=(),
        )  # fmt: skip
    points = curves.roc_points([sample.clean for sample in samples], [sample.adversarial for sample in samples])
    auc = curves.area(points)
    return Roc(
        detector=name,
        score=SCORES[name],
        cases=count,
        n=len(samples),
        auc=defined(auc),
        ci95=curves.area_interval(auc, count) if count > 1 else None,
        tpr_at_5_percent_fpr=(
            defined(max(true for false, true in points if false <= 0.05))
            if len(samples) >= _ENOUGH
            else undefined(Reason.FEW_SAMPLES)
        ),
        points=points,
    )


def over_all(cases: Sequence[JudgedCase]) -> tuple[Roc, ...]:
    """The ROC of each detector over all cases."""
    found = [each for case in cases for each in case.detection]
    return tuple(roc(name, [each.samples for each in found if each.detector == name]) for name in DETECTORS)
