"""Both predictions of a case against the true classes: what the model was worth, and what the attack takes away."""

from __future__ import annotations

from pathlib import Path

from mafl_cli.case.problem import Say
from mafl_cli.classes import Labels
from mafl_cli.codes import Reason
from mafl_cli.judging.judges import Comparison
from mafl_cli.judging.pairs import mask_of
from mafl_cli.measure.value import Value, defined, undefined
from mafl_cli.results.evaluation_report import GroundTruth, WithTruth
from mafl_cli.results.recorded import Pair
from mafl_cli.scans.masks import Masks, read_masks


def true_labels(pair: Pair, compared: Comparison, given: Path, say: Say) -> Labels:
    """The true classes of a case, from a mask, or from a folder of them.

    Raises: as `judging.pairs.mask_of` and `scans.masks.read_masks`.
    """
    path = mask_of(given, pair.case_id)
    mask = read_masks((path,), pair.clean[0], compared.classes, Masks(adjustable=False))
    for warning in mask.warnings:
        say(warning)
    return mask.labels


def against_truth(compared: Comparison, truth: Labels) -> GroundTruth:
    """Dice and IoU of both predictions with the true classes, and the drop."""

    def with_truth(labels: Labels) -> WithTruth:
        found = compared.agreement(labels, truth)
        return WithTruth(dice=_of_truth(found.target_dice), iou=_of_truth(found.target_iou), per_class=found.per_class)

    clean, adversarial = with_truth(compared.clean), with_truth(compared.adversarial)
    drop = clean.dice
    if clean.dice.value is not None:
        drop = defined(clean.dice.number - adversarial.dice.number)
    return GroundTruth(clean=clean, adversarial=adversarial, dice_drop=drop)


def _of_truth(value: Value) -> Value:
    """The mask that was compared with is the ground truth, not a target."""
    return undefined(Reason.TRUTH_HAS_NO_FOREGROUND) if value.value is None else value
