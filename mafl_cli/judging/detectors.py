"""Whether an attack gives itself away: how well detectors tell it from clean scans.

*blur*: a mild blur moves the prediction. *entropy*, *margin*: the model is unsure of what it draws. Each was made to
catch attacks that do not know it; `evade` of mafl attack knows it. The scores: `case.detecting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mafl_cli.case.detecting import samples_of, scores_of
from mafl_cli.codes import Reason
from mafl_cli.config import DETECTORS, Detector
from mafl_cli.field.transforms import BLUR
from mafl_cli.judging.judges import Judge
from mafl_cli.measure import roc as curves
from mafl_cli.measure.value import defined, undefined
from mafl_cli.results.detection_report import Detection, Roc, Scores
from mafl_cli.results.evaluation_report import JudgedCase
from mafl_cli.results.recorded import Pair

# With fewer clean samples one false alarm is more than 5 %.
_ENOUGH = 20

SCORES: Mapping[Detector, str] = {
    "blur": f"share of the drawn voxels that move under {BLUR.name}",
    "entropy": "entropy of the class probabilities, mean over what may be foreground",
    "margin": "1 - margin of the two highest class probabilities, mean over what may be foreground",
}
"""What each detector counts, in [0, 1]; higher is more suspicious."""


def detection(pair: Pair, judge: Judge) -> tuple[Detection, ...]:
    """The scores of each detector for each slice that changed, or for the volume, in both scans of the pair."""
    subject = judge.subject
    both = (
        scores_of(subject, pair.clean, judge.clean), scores_of(subject, pair.adversarial, judge.adversarial)
    )  # fmt: skip
    return tuple(
        Detection(detector=name, auc=roc(name, [samples]).auc, samples=samples)
        for name, samples in samples_of(subject, pair.clean, pair.adversarial, both).items()
    )


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
