"""What is tried with a pair of scans beyond measuring it as it lies there.

*Survival*: what is left of the attack after what happens to scans on their way. *Curve*: how much of the change is
needed. Whether it gives itself away: `judging.detectors`. The same files give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mafl_cli.case.surviving import Aimed, labels_after, left_after
from mafl_cli.codes import Reason
from mafl_cli.config import DETECTORS
from mafl_cli.field.transforms import Transform
from mafl_cli.judging.judges import Comparison, Judge
from mafl_cli.measure.records import Size, Survival
from mafl_cli.measure.value import Value, defined, undefined
from mafl_cli.results.evaluation_report import (
    Area,
    Curve,
    Point,
    SmallestAtGoal,
    TrialsAsked,
)
from mafl_cli.results.recorded import Pair

# Where the curve is read: the largest voxel's change as a share of the data range.
CURVE_BUDGETS = (
    0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0,
)  # fmt: skip
# The area under it ends there: a larger change of a voxel is plain to see.
CURVE_END = 0.1
# The smallest change that reaches the goal is found to this share of the whole one: 2 ** -7.
_HALVINGS = 7


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What is done beyond measuring the files as they are."""

    transforms: tuple[Transform, ...] = ()
    detect: bool = False
    curve: bool = False

    @property
    def any(self) -> bool:
        return bool(self.transforms) or self.detect or self.curve

    def asked(self) -> TrialsAsked:
        """What was asked, as the report has it."""
        return TrialsAsked(
            transforms=tuple(each.name for each in self.transforms),
            detectors=DETECTORS if self.detect else (),
            curve_budgets=CURVE_BUDGETS if self.curve else None,
            curve_end=CURVE_END if self.curve else None,
        )


# --- what is left of it -------------------------------------------------------------------------------------------


def survival(pair: Pair, compared: Comparison, judge: Judge, transform: Transform) -> Survival:
    """The predictions after a transform: of the adversarial scan, and of the clean one, which pays for a defence."""
    clean, adversarial = (labels_after(transform, scans, judge.subject) for scans in (pair.clean, pair.adversarial))
    aimed = Aimed(compared.target, compared.clean, compared.classes)
    return left_after(transform, clean, adversarial, aimed, compared.goal)


# --- how much of it is needed -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Size:
    """How large a multiple of a change is. share: largest change of a voxel as a share of the data range."""

    share: float
    linf_native: float
    l2_model: float
    psnr_db: Value

    @staticmethod
    def of(size: Size, share: float, scale: float) -> _Size:
        """Lengths are in proportion, decibels fall with the logarithm."""
        psnr = undefined(Reason.IDENTICAL) if scale == 0 else Value(size.psnr_db.value, size.psnr_db.reason)
        if psnr.value is not None:
            psnr = defined(psnr.value - 20 * math.log10(scale))
        return _Size(share * scale, size.linf.native * scale, size.l2.model * scale, psnr)


def curve(pair: Pair, compared: Comparison, judge: Judge) -> Curve:
    """What smaller multiples of the same change do, from none to all of it.

    An attack made for a smaller budget does better than a shrunk one: the curve is a lower bound of what a budget
    allows. Multiples are float32 in memory; integer files would round them.
    """
    ranges = [each.data_range.value for each in compared.size_per_channel]
    largest = [each.linf.native for each in compared.size_per_channel]
    share = max((a / b for a, b in zip(largest, ranges, strict=True) if b), default=0.0)

    def at(scale: float) -> tuple[Point, bool]:
        scans = [
            before.data + np.float32(scale) * (after.data - before.data)
            for before, after in zip(pair.clean, pair.adversarial, strict=True)
        ]
        labels = judge.adversarial if scale == 1 else judge.clean if scale == 0 else judge.subject.predict(scans)
        found = compared.quick_agreement(labels)
        size = _Size.of(compared.size, share, scale)
        point = Point(
            scale=scale,
            linf_share=size.share,
            linf_native=size.linf_native,
            l2_model=size.l2_model,
            psnr_db=size.psnr_db,
            target_iou=found.target_iou,
            hit_rate=found.hit_rate,
        )
        return point, compared.reached(labels)

    scales = [0.0, *(budget / share for budget in CURVE_BUDGETS if budget < share), 1.0] if share else [0.0]
    tried = [at(scale) for scale in scales]
    points = tuple(point for point, _ in tried)
    reaching = [point.scale for point, reached in tried if reached]
    smallest = SmallestAtGoal(None, Reason.GOAL_NOT_REACHED)
    if reaching:
        high = reaching[0]
        low = max((point.scale for point in points if point.scale < high), default=high)
        for _ in range(_HALVINGS if low < high else 0):
            middle = (low + high) / 2
            low, high = (low, middle) if at(middle)[1] else (middle, high)
        size = _Size.of(compared.size, share, high)
        smallest = SmallestAtGoal(
            high,
            linf_share=size.share,
            linf_native=size.linf_native,
            l2_model=size.l2_model,
            psnr_db=size.psnr_db,
        )
    return Curve(points=points, smallest_at_goal=smallest, area=areas(points), runs=1)


def areas(points: Iterable[Point]) -> Area:
    """The areas, see `area`, under what several runs of one scan and target show together."""
    ordered = sorted(points, key=lambda point: point.linf_share)
    return Area(
        target_iou=area([(point.linf_share, point.target_iou.value) for point in ordered]),
        hit_rate=area([(point.linf_share, point.hit_rate.value) for point in ordered]),
    )


def smallest_of(curves: Sequence[Curve]) -> SmallestAtGoal:
    """The change at the goal, from several runs, whose largest voxel changes least; the shortest where these are
    equal."""
    at_goal = [curve.smallest_at_goal for curve in curves if curve.smallest_at_goal.value is not None]
    return min(at_goal, key=lambda each: each.extent, default=curves[0].smallest_at_goal)


def area(points: Sequence[tuple[float, float | None]]) -> Value:
    """Mean score over all budgets from 0 to `CURVE_END`, in [0, 1].

    A budget allows every smaller change too, so what counts at a budget is the best score up to it: a staircase.
    Args:
        points: (change, score), the change as a share of the data range, in rising order.
    """
    if any(score is None for _, score in points):
        return undefined(Reason.SCORE_UNDEFINED)
    end, total, best, position = CURVE_END, 0.0, 0.0, 0.0
    for change, score in points:
        if change > end:
            break
        total += best * (change - position)
        best, position = max(best, float(score or 0)), change
    return defined((total + best * (end - position)) / end)
