"""The table of quantities that gates, tables and cards share: where a report has each, and which way is worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mafl_cli.codes import NOT_ASKED, Reason
from mafl_cli.measure.statistics import summary

Case = Mapping[str, Any]
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A number of one case. pick: it, as `value` or None with a `reason`. span: the lowest and the highest value that
    it can have. beyond: what it is if the goal was not reached, for a figure that is about reaching it: infinite on
    the side of "no change was enough"."""

    meaning: str
    pick: Callable[[Case], Entry]
    form: str = ".4f"
    unit: str = ""
    beyond: float | None = None
    span: tuple[float, float] = (0.0, 1.0)

    @property
    def range(self) -> str:
        """The span in words: "0 to 1", "0 or more", "any number"."""
        low, high = self.span
        if math.isinf(low):
            return "any number"
        return f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"


_LENGTH = (0.0, math.inf)
_ANY = (-math.inf, math.inf)


def _post(*keys: str) -> Callable[[Case], Entry]:
    return lambda case: _at(case["metrics"]["post_write"], keys)


def _size(*keys: str) -> Callable[[Case], Entry]:
    return lambda case: _at(case["metrics"]["size"], keys)


def _at(entry: Any, keys: Sequence[str]) -> Entry:
    for key in keys:
        entry = entry[key]
    return entry if isinstance(entry, Mapping) else {"value": entry}


def _missing(reason: Reason) -> Entry:
    return {"value": None, "reason": reason}


def _truth(*keys: str) -> Callable[[Case], Entry]:
    return lambda case: (
        _missing(Reason.NO_GROUND_TRUTH) if case["ground_truth"] is None else _at(case["ground_truth"], keys)
    )


def _curve(*keys: str) -> Callable[[Case], Entry]:
    return lambda case: _missing(Reason.NO_CURVE) if case["curve"] is None else _at(case["curve"], keys)


def _drop(case: Case) -> Entry:
    kept = case["metrics"]["dice_with_clean"]
    return kept if kept["value"] is None else {"value": 1 - kept["value"]}


def _highest(part: str, otherwise: Reason) -> Callable[[Case], Entry]:
    """Of several judges or transforms the one that the attack fools most: the threat that is left."""

    def pick(case: Case) -> Entry:
        if not case[part]:
            return _missing(otherwise)
        entries = [each["adversarial"]["target_iou"] for each in case[part]]
        undefined = [entry for entry in entries if entry["value"] is None]
        return undefined[0] if undefined else max(entries, key=lambda entry: float(entry["value"]))

    return pick


def _at_goal(key: str, *keys: str) -> Callable[[Case], Entry]:
    """Of the smallest change known that reaches the goal: on the curve if there is one, else the file's own."""

    def pick(case: Case) -> Entry:
        if case["curve"] is not None:
            smallest = case["curve"]["smallest_at_goal"]
            return _missing(smallest["reason"]) if smallest["value"] is None else _at(smallest, (key,))
        if not case["goal"]["reached"]:
            return _missing(Reason.GOAL_NOT_REACHED)
        return _at(case["metrics"]["size"], keys)

    return pick


def _worst_distance(case: Case) -> Entry:
    """HD95 of the class that is farthest off; a class that only one of prediction and target has is undefined."""
    entries = [each["hd95_mm"] for each in case["metrics"]["post_write"]["per_class"] if each["voxels"]["target"]]
    undefined = [entry for entry in entries if entry["value"] is None]
    if not entries or undefined:
        return undefined[0] if undefined else _missing(Reason.TARGET_HAS_NO_FOREGROUND)
    return max(entries, key=lambda entry: float(entry["value"]))


FIGURES: dict[str, Figure] = {
    "target_iou": Figure("IoU of the adversarial prediction with the target", _post("target_iou")),
    "target_dice": Figure("Dice of the adversarial prediction with the target", _post("target_dice")),
    "hit_rate": Figure("share of the voxels that had to change and did", _post("hit_rate")),
    "collateral": Figure("share of the other voxels that changed class all the same", _post("collateral")),
    "target_hd95": Figure(
        "HD95 between prediction and target, of the worst class", _worst_distance, ".2f", "mm", span=_LENGTH
    ),
    "goal_reached": Figure("1 where the attack reached its goal, else 0", lambda case: _at(case, ("goal", "reached"))),
    "prediction_drop": Figure("1 - Dice of adversarial and clean prediction", _drop),
    "dice_clean": Figure("Dice of the clean prediction with the ground truth", _truth("clean", "dice")),
    "dice_adversarial": Figure(
        "Dice of the adversarial prediction with the ground truth", _truth("adversarial", "dice")
    ),
    "dice_drop": Figure(
        "Dice with the ground truth that the attack takes away", _truth("dice_drop"), span=(-1.0, 1.0)
    ),
    "l0_fraction": Figure("share of the voxels that differ", _size("l0", "fraction")),
    "l2_model": Figure("length of the change", _size("l2", "model"), ".4g", "model units", span=_LENGTH),
    "l2_native": Figure("length of the change", _size("l2", "native"), ".4g", "native units", span=_LENGTH),
    "linf_model": Figure("largest change of a voxel", _size("linf", "model"), ".4g", "model units", span=_LENGTH),
    "linf_native": Figure("largest change of a voxel", _size("linf", "native"), ".4g", "native units", span=_LENGTH),
    "psnr_db": Figure("peak signal-to-noise ratio of the change", _size("psnr_db"), ".2f", "dB", span=_ANY),
    "ssim": Figure("structural similarity, mean over slices", _size("ssim", "mean"), ".5f", span=(-1.0, 1.0)),
    "ssim_worst": Figure(
        "structural similarity of the slice that changed most visibly", _size("ssim", "worst"), ".5f", span=(-1.0, 1.0)
    ),
    "low_frequency_share": Figure("share of the change's energy in 2 x 2 block means", _size("low_frequency_share")),
    "psnr_at_goal": Figure(
        "PSNR of the smallest change that reaches the goal",
        _at_goal("psnr_db", "psnr_db"), ".2f", "dB", -math.inf, _ANY,
    ),
    "linf_at_goal": Figure(
        "largest voxel of the smallest change that reaches the goal",
        _at_goal("linf_native", "linf", "native"), ".4g", "native units", math.inf, _LENGTH,
    ),
    "l2_at_goal": Figure(
        "length of the smallest change that reaches the goal",
        _at_goal("l2_model", "l2", "model"), ".4g", "model units", math.inf, _LENGTH,
    ),
    "curve_area": Figure("mean target IoU over budgets from 0 to 10 % of the data range", _curve("area", "target_iou")),
    "curve_hit_area": Figure("mean hit rate over the same budgets", _curve("area", "hit_rate")),
    "transfer_target_iou": Figure(
        "target IoU of the other model that is fooled most", _highest("transfer", Reason.NO_OTHER_MODEL)
    ),
    "survival_target_iou": Figure(
        "target IoU after the transform that the attack survives best", _highest("survival", Reason.NO_TRANSFORM)
    ),
}  # fmt: skip
"""Everything that gates and statistics know, by the name that reports use."""


def statistics_of(cases: Sequence[Case]) -> dict[str, Any]:
    """Counts of cases, and of each figure that was asked for its statistics over the cases that have it.

    ci95: of the mean, percentile bootstrap over cases (Efron 1979), 2000 resamples with a fixed seed; None for fewer
    than 2 cases.
    """
    done = [case for case in cases if case["status"] == "ok"]
    figures = {}
    for name, figure in FIGURES.items():
        entries = [figure.pick(case) for case in done]
        values = [float(entry["value"]) for entry in entries if entry["value"] is not None]
        reasons = sorted({Reason(entry["reason"]).value for entry in entries if entry["value"] is None})
        if not values and NOT_ASKED.issuperset(reasons):
            continue
        figures[name] = {"n": len(values), "undefined": len(entries) - len(values), "reasons": reasons}
        figures[name] |= summary(values)
    return {
        "cases": len(cases),
        "ok": len(done),
        "failed": len(cases) - len(done),
        "goal_reached": sum(case["goal"]["reached"] for case in done),
        "figures": figures,
    }


def shown(figure: Figure, value: float) -> str:
    """A value of a figure as people read it, with its unit."""
    return f"{value:{figure.form}}{' ' + figure.unit if figure.unit else ''}"
