"""The numbers that gates, tables, aggregates, cards, the terminal and the page speak of: one table of them all.

A *quantity* is one number of a case. The table says what it means, where the typed reports have it, which way is better
for an attack, what values it can have, and how it is printed. A new row is known to gates and to the CSV of an
evaluation at once; what a card, a page and the table of a batch show is listed below it, by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from mafl_cli.codes import Reason, Sight
from mafl_cli.config import Detector
from mafl_cli.measure.records import MOST_COMPRESSED
from mafl_cli.measure.value import Value, defined, undefined
from mafl_cli.results.evaluation_report import Area, GroundTruth, JudgedCase, JudgedMetrics, SmallestAtGoal
from mafl_cli.results.quantity import Number, Quantity, Read
from mafl_cli.results.report import CaseRecord, Metrics

# --- where they are read ------------------------------------------------------------------------------------------


def _excess(case: CaseRecord) -> Number:
    optimum = case.attack.local_optimum
    return undefined(Reason.NO_ESTIMATE) if optimum is None else optimum.excess


def _metrics(pick: Callable[[Metrics | JudgedMetrics], Number]) -> Read:
    """What both reports measure."""
    return Read(lambda case: pick(case.metrics), lambda case: pick(case.metrics))


def _evaluated(pick: Callable[[JudgedCase], Number]) -> Read:
    return Read(None, pick)


def _searched(pick: Callable[[CaseRecord], Number]) -> Read:
    return Read(pick, None)


def _drop(case: JudgedCase) -> Value:
    kept = case.metrics.dice_with_clean
    return kept if kept.value is None else defined(1 - kept.value)


def _truth(pick: Callable[[GroundTruth], Value]) -> Read:
    return _evaluated(
        lambda case: undefined(Reason.NO_GROUND_TRUTH) if case.ground_truth is None else pick(case.ground_truth)
    )


def _curve(pick: Callable[[Area], Value]) -> Read:
    return _evaluated(lambda case: undefined(Reason.NO_CURVE) if case.curve is None else pick(case.curve.area))


def _highest(values: list[Value], otherwise: Reason) -> Value:
    """The highest of some values; undefined where one of them is, and, as `otherwise` says, where there are none."""
    missing = [value for value in values if value.value is None]
    if missing or not values:
        return missing[0] if missing else undefined(otherwise)
    return max(values, key=lambda value: value.number)


def _auc(name: Detector) -> Read:
    def pick(case: JudgedCase) -> Value:
        found = [each.auc for each in case.detection if each.detector == name]
        return found[0] if found else undefined(Reason.NO_DETECTORS)

    return _evaluated(pick)


def _at_goal(smallest: Callable[[SmallestAtGoal], Number | None], whole: Callable[[JudgedMetrics], Number]) -> Read:
    """A figure of the smallest change known to reach the goal: from the curve if there is one, else the file's own."""
    of_file = _whole_at_goal(whole).evaluation
    assert of_file is not None

    def pick(case: JudgedCase) -> Number:
        if case.curve is None or _is_unknown(case):
            return of_file(case)
        found = smallest(case.curve.smallest_at_goal)
        return undefined(case.curve.smallest_at_goal.reason or Reason.GOAL_NOT_REACHED) if found is None else found

    return _evaluated(pick)


def _whole_at_goal(whole: Callable[[JudgedMetrics], Number]) -> Read:
    """A figure of the file's own change, where that reaches the goal."""

    def pick(case: JudgedCase) -> Number:
        if _is_unknown(case):
            return undefined(Reason.NOT_KNOWN)
        return whole(case.metrics) if case.may_reach else undefined(Reason.GOAL_NOT_REACHED)

    return _evaluated(pick)


def _is_unknown(case: JudgedCase) -> bool:
    """Where the attack may have failed, or missed its goal with no limit on the change, nobody knows what it takes."""
    free = case.attack is not None and case.attack.eps_native is None
    return bool(case.doubts) or (free and not case.goal.reached)


def _worst_distance(metrics: Metrics | JudgedMetrics) -> Value:
    """HD95 of the class that is farthest off; a class that only one of prediction and target has is undefined."""
    values = [each.hd95_mm for each in metrics.post_write.per_class if each.voxels.target]
    return _highest(values, Reason.TARGET_HAS_NO_FOREGROUND)


def _volume_change(metrics: Metrics | JudgedMetrics) -> float:
    """What the class gained or lost that gained or lost most, ml."""
    return max((abs(each.volume_change_ml) for each in metrics.consequences.per_class), default=0.0)


def _moved(metrics: Metrics | JudgedMetrics) -> Value:
    """HD95 between both predictions, of the class that is farthest off."""
    values = [each.hd95_mm for each in metrics.consequences.per_class if each.hd95_mm.reason is not Reason.BOTH_EMPTY]
    return _highest(values, Reason.NO_FOREGROUND)


# --- the table ----------------------------------------------------------------------------------------------------

_LENGTH = (0.0, math.inf)
_ANY = (-math.inf, math.inf)
_SIGNED = (-1.0, 1.0)

QUANTITIES: Mapping[str, Quantity] = {
    "target_iou": Quantity(
        "target IoU", "IoU of the adversarial prediction with the target", _metrics(lambda m: m.post_write.target_iou)
    ),
    "target_iou_clean": Quantity(
        "target IoU, clean", "IoU of the clean prediction with the target", _metrics(lambda m: m.clean.target_iou), None
    ),
    "target_dice": Quantity(
        "target Dice", "Dice of the adversarial prediction with the target",
        _metrics(lambda m: m.post_write.target_dice),
    ),
    "hit_rate": Quantity(
        "hit rate", "share of the voxels that had to change and did", _metrics(lambda m: m.post_write.hit_rate)
    ),
    "collateral": Quantity(
        "collateral", "share of the other voxels that changed class all the same",
        _metrics(lambda m: m.post_write.collateral), "lower",
    ),
    "collateral_voxels": Quantity(
        "collateral, voxels", "other voxels that changed class all the same",
        _metrics(lambda m: m.post_write.collateral.count), "lower", ".0f", "voxels", _LENGTH,
    ),
    "target_hd95": Quantity(
        "target HD95, mm", "HD95 between prediction and target, of the worst class", _metrics(_worst_distance),
        "lower", ".2f", "mm", _LENGTH,
    ),
    "goal_reached": Quantity(
        "goal reached", "1 where the attack reached its goal, else 0",
        Read(lambda case: case.attack.goal_reached, lambda case: case.goal.reached),
    ),
    "prediction_drop": Quantity(
        "prediction drop", "1 - Dice of adversarial and clean prediction", _evaluated(_drop)
    ),
    "redrawn_volume": Quantity(
        "redrawn, ml", "volume in which clean and adversarial prediction differ",
        _metrics(lambda m: m.consequences.redrawn.volume_ml), form=".4g", unit="ml", span=_LENGTH,
    ),
    "volume_change": Quantity(
        "volume change, ml", "volume that the prediction gains or loses by the attack, of the class with most of it",
        _metrics(_volume_change), form=".4g", unit="ml", span=_LENGTH,
    ),
    "prediction_hd95": Quantity(
        "prediction HD95, mm", "HD95 between clean and adversarial prediction, of the worst class",
        _metrics(_moved), form=".2f", unit="mm", span=_LENGTH,
    ),
    "dice_clean": Quantity(
        "Dice, clean", "Dice of the clean prediction with the ground truth", _truth(lambda t: t.clean.dice), None
    ),
    "dice_adversarial": Quantity(
        "Dice, adversarial", "Dice of the adversarial prediction with the ground truth",
        _truth(lambda t: t.adversarial.dice), "lower",
    ),
    "dice_drop": Quantity(
        "Dice drop", "Dice with the ground truth that the attack takes away", _truth(lambda t: t.dice_drop),
        span=_SIGNED,
    ),
    "l0_fraction": Quantity(
        "L0, share", "share of the voxels that differ", _metrics(lambda m: m.size.l0.fraction), "lower"
    ),
    "l2_model": Quantity(
        "L2, model", "length of the change", _metrics(lambda m: m.size.l2.model),
        "lower", ".4g", "model units", _LENGTH,
    ),
    "l2_native": Quantity(
        "L2, native", "length of the change", _metrics(lambda m: m.size.l2.native),
        "lower", ".4g", "native units", _LENGTH,
    ),
    "linf_model": Quantity(
        "Linf, model", "largest change of a voxel", _metrics(lambda m: m.size.linf.model),
        "lower", ".4g", "model units", _LENGTH,
    ),
    "linf_native": Quantity(
        "Linf, native", "largest change of a voxel", _metrics(lambda m: m.size.linf.native),
        "lower", ".4g", "native units", _LENGTH,
    ),
    "psnr_db": Quantity(
        "PSNR, dB", "peak signal-to-noise ratio of the change", _metrics(lambda m: m.size.psnr_db),
        "higher", ".2f", "dB", _ANY,
    ),
    "ssim": Quantity(
        "SSIM, mean", "structural similarity, mean over slices", _metrics(lambda m: m.size.ssim.mean),
        "higher", ".5f", span=_SIGNED,
    ),
    "ssim_worst": Quantity(
        "SSIM, worst", "structural similarity of the slice that changed most visibly",
        _metrics(lambda m: m.size.ssim.worst), "higher", ".5f", span=_SIGNED,
    ),
    "low_frequency_share": Quantity(
        "low-frequency share", "share of the change's energy in 2 x 2 block means",
        _metrics(lambda m: m.size.low_frequency_share), None,
    ),
    "visibility": Quantity(
        "visibility", "0 where the change cannot be seen, 1 at the limit, 2 where it is visible",
        _evaluated(lambda case: float(list(Sight).index(case.metrics.visibility.verdict))),
        "lower", ".0f", span=(0.0, 2.0),
    ),
    "compression_equivalent": Quantity(
        "compression equivalent", "JPEG 2000 ratio that makes the slice look as different as the change does",
        _metrics(lambda m: m.visibility.compression_equivalent), "lower", ".2f", span=(1.0, MOST_COMPRESSED),
    ),
    "percent_correct": Quantity(
        "percent correct", "how often an observer who knows the change names the changed one of two images",
        _metrics(lambda m: m.visibility.percent_correct), "lower", span=(0.5, 1.0),
    ),
    "pc_at_goal": Quantity(
        "percent correct at goal", "the same, of a change that reaches the goal",
        _whole_at_goal(lambda m: m.visibility.percent_correct), "lower", span=(0.5, 1.0), at_goal=True,
    ),
    "psnr_at_goal": Quantity(
        "PSNR at goal, dB", "PSNR of the smallest change that reaches the goal",
        _at_goal(lambda s: s.psnr_db, lambda m: m.size.psnr_db), "higher", ".2f", "dB", _ANY, at_goal=True,
    ),
    "linf_at_goal": Quantity(
        "Linf at goal, native", "largest voxel of the smallest change that reaches the goal",
        _at_goal(lambda s: s.linf_native, lambda m: m.size.linf.native),
        "lower", ".4g", "native units", _LENGTH, at_goal=True,
    ),
    "l2_at_goal": Quantity(
        "L2 at goal, model", "length of the smallest change that reaches the goal",
        _at_goal(lambda s: s.l2_model, lambda m: m.size.l2.model),
        "lower", ".4g", "model units", _LENGTH, at_goal=True,
    ),
    "curve_area": Quantity(
        "area, target IoU", "mean target IoU over budgets from 0 to 10 % of the data range",
        _curve(lambda area: area.target_iou),
    ),
    "curve_hit_area": Quantity(
        "area, hit rate", "mean hit rate over the same budgets", _curve(lambda area: area.hit_rate)
    ),
    "transfer_target_iou": Quantity(
        "target IoU, transfer", "target IoU of the other model that is fooled most",
        _evaluated(lambda case: _highest([each.adversarial.target_iou for each in case.transfer],
                                         Reason.NO_OTHER_MODEL)),
    ),
    "survival_target_iou": Quantity(
        "target IoU, survival", "target IoU after the transform that the attack survives best",
        _evaluated(lambda case: _highest([each.adversarial.target_iou for each in case.survival],
                                         Reason.NO_TRANSFORM)),
    ),
    "blur_auc": Quantity(
        "AUC, blur", "how often a mild blur moves the prediction of an adversarial slice more than of a clean one",
        _auc("blur"), "lower",
    ),
    "entropy_auc": Quantity(
        "AUC, entropy", "how often an adversarial slice has probabilities of more entropy than a clean one",
        _auc("entropy"), "lower",
    ),
    "margin_auc": Quantity(
        "AUC, margin", "how often an adversarial slice has probabilities of less margin than a clean one",
        _auc("margin"), "lower",
    ),
    "excess": Quantity(
        "excess", "estimated share by which the change is longer than the local optimum", _searched(_excess),
        "lower", span=_LENGTH,
    ),
    "forward": Quantity(
        "forward", "forward passes of the search", _searched(lambda case: case.attack.passes.forward),
        "lower", ".0f", "passes", _LENGTH,
    ),
    "backward": Quantity(
        "backward", "backward passes of the search", _searched(lambda case: case.attack.passes.backward),
        "lower", ".0f", "passes", _LENGTH,
    ),
}  # fmt: skip
"""By the names that reports and gates use."""

EVALUATED: Mapping[str, Quantity] = {
    name: quantity for name, quantity in QUANTITIES.items() if quantity.read.evaluation is not None
}
"""What gates, and statistics of an evaluation, know."""

OF_DRAWS = (
    "target_iou", "target_iou_clean", "target_dice", "hit_rate", "collateral", "collateral_voxels", "prediction_drop",
    "dice_clean", "dice_adversarial", "dice_drop",
)  # fmt: skip
"""What is measured of each draw of a model that answers differently each time."""

# What is shown where, in this order.
HEADLINES = ("target_iou", "hit_rate", "l2_model", "linf_model", "psnr_db", "ssim")
"""The aggregate of a report, and the few lines on a batch."""
TABLE = (
    "goal_reached", "target_iou_clean", "target_iou", "hit_rate", "collateral", "l2_model", "l2_native", "linf_model",
    "linf_native", "psnr_db", "ssim", "ssim_worst", "low_frequency_share", "compression_equivalent", "excess",
    "forward", "backward",
)  # fmt: skip
"""The table and the statistics of a batch."""
CARD = (
    "target_iou", "hit_rate", "collateral", "prediction_drop", "redrawn_volume", "volume_change", "prediction_hd95",
    "dice_clean", "dice_adversarial", "dice_drop", "linf_native", "linf_model", "l2_model", "psnr_db", "ssim",
    "ssim_worst", "low_frequency_share", "visibility", "compression_equivalent", "percent_correct", "pc_at_goal",
    "psnr_at_goal", "linf_at_goal", "l2_at_goal", "curve_area", "curve_hit_area", "transfer_target_iou",
    "survival_target_iou", "blur_auc", "entropy_auc", "margin_auc",
)  # fmt: skip
"""The statistics on a robustness card."""
PAGE = ("target_iou", "hit_rate", "collateral_voxels", "l2_model", "linf_model", "psnr_db", "ssim_worst")
"""The table of cases on a page."""
