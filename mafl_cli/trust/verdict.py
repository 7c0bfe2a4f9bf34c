"""What the numbers of the checks mean: which of them no honest model gives, and what is said then.

The limits were set on models whose gradients are true, and on wrapped ones whose are not; see docs/evaluate.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mafl_cli.codes import Alarm, Belief
from mafl_cli.results.trust_report import (
    AlarmRecord,
    Check,
    CheckName,
    CheckPasses,
    GradientName,
    Ladder,
    SearchRecord,
    Trust,
)
from mafl_cli.trust.ladder import broken_rungs
from mafl_cli.trust.measured import Measured

Limits = tuple[float | None, float | None]

# Lowest and highest that is believed. White directions are short in every smooth pattern that a network looks for, so
# that honest models answer nearly linearly; smooth ones move them farther.
_LIMITS: dict[CheckName, Limits] = {
    "slope": (0.9, None),
    "slope_smooth": (0.6, None),
    "along": (0.3, 3.0),
    "dead": (None, 0.1),
    "border": (0.65, None),
    "loop": (0.2, 3.0),
    "no_limit": (1.0, None),
    "dust": (1e-6, None),
}
_PLACES = ("clean", "changed")
_FEW = 4
"""Steps that must be compared before the search itself says something."""
_STRAIGHT = 0.98
"""A slope from which on a model that moved less than promised was asked too much at once: its gradient is true, and the
steps of the search are long."""


def judged(
    clean: Sequence[Measured],
    ended: Sequence[Measured],
    falls: Sequence[tuple[Tensor, Tensor]],
    samples: Sequence[int],
    *,
    gradient: GradientName,
    goal_reached: bool,
) -> SearchRecord:
    """The record of one search.

    Args:
        clean, ended: what was measured at the clean samples, and where their search ended. falls: of each sample, what
            the gradients promised from step to step, and what came, (steps,); NaN where nobody looked.
        samples: which were looked at. goal_reached: by all of them.
    """
    checks = [
        _check("slope", None, _cosine([*_numbers(clean, smooth=False), *_numbers(ended, smooth=False)])),
        _check("slope_smooth", None, _cosine([*_numbers(clean, smooth=True), *_numbers(ended, smooth=True)])),
        _check("along", "clean", max(_along(clean), key=_apart, default=None)),
        *(
            _check("dead", place, float(torch.cat([each.still for each in found]).mean()))
            for place, found in zip(_PLACES, (clean, ended), strict=True)
        ),
        _check("border", "changed", _mean([each.border for each in ended])),
    ]
    slope = checks[0].value
    low, high = _LIMITS["loop"]
    limits = (None if slope is not None and slope >= _STRAIGHT else low, high)
    checks.append(_check("loop", None, max(_loops(falls), key=_apart, default=None), limits))
    alarmed = [check for check in checks if check.alarm]
    slopes = [check.value for check in checks[:2] if check.value is not None and (check is checks[0] or check.alarm)]
    explained = min((max(value, 0.0) ** 2 for value in slopes), default=None)
    all_measured = (*clean, *ended)
    return SearchRecord(
        gradient=gradient,
        goal_reached=goal_reached,
        explained=explained,
        checks=tuple(checks),
        alarms=tuple(_alarms(alarmed, explained)),
        samples=tuple(samples),
        passes=CheckPasses(
            forward=sum(each.forward for each in all_measured), backward=sum(each.backward for each in all_measured)
        ),
    )


def concluded(
    searches: Sequence[SearchRecord],
    found_by: int = 0,
    *,
    goal_reached: bool,
    limited: bool,
    linf_share: float,
    ladder: Ladder | None = None,
) -> Trust:
    """What all searches together are worth.

    An alarm about a gradient is answered when another search has reached the goal: what it found is judged on the
    unchanged model.

    Args:
        searches: in the order in which they were made; none where nothing was to be changed. found_by: whose the result
            is. goal_reached: by the result, as it was written.
        limited: whether anything bounds the change, or where it may be.
        linf_share: largest change of a voxel as a share of the scan's range. ladder: None where nobody climbed it.
    """
    if not searches:
        return Trust(verdict=Belief.UNCHECKED, found_by="exact", searches=(), checks=(), alarms=())
    checks = [_check("dust", None, linf_share)]
    if not limited:
        checks.append(_check("no_limit", None, float(goal_reached)))
    doubted = searches[0].alarms
    answered = bool(doubted) and any(each.goal_reached for each in searches[1:])
    alarms = (
        *(() if answered else doubted),
        *_alarms([check for check in checks if check.alarm], None),
        *broken_rungs(ladder),
    )
    verdict = Belief.ALARM if alarms else Belief.ANSWERED if answered else Belief.CLEAN
    return Trust(
        verdict=verdict,
        found_by=searches[found_by].gradient,
        searches=tuple(searches),
        checks=tuple(checks),
        alarms=alarms,
        ladder=ladder,
    )


def _numbers(measured: Sequence[Measured], *, smooth: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """What was promised of each sample, and what came, for one kind of direction: flat, for both halves."""
    for each in measured:
        part = slice(each.ways.white, None) if smooth else slice(each.ways.white)
        for promised, came in zip(each.promised[..., part], each.came[..., part], strict=True):
            yield promised.flatten().double(), came.flatten().double()


def _cosine(numbers: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Between promises and what came, over all samples and places, each counting the same.

    None where nothing was promised and nothing came.
    """
    product = of_promised = of_came = 0.0
    for promised, came in numbers:
        size = max(float(promised.norm()), float(came.norm()))
        if size > 0:
            promised, came = promised / size, came / size
            product += float(promised @ came)
            of_promised, of_came = of_promised + float(promised @ promised), of_came + float(came @ came)
    if of_promised + of_came == 0:
        return None
    return product / math.sqrt(of_promised * of_came) if of_promised * of_came > 0 else 0.0


def _mean(values: Sequence[Tensor]) -> float | None:
    """Over all samples that have one; None if none has."""
    known = torch.cat(list(values))
    known = known[~known.isnan()]
    return float(known.mean()) if len(known) else None


def _along(measured: Sequence[Measured]) -> Iterator[float]:
    """How far each sample falls along its gradient, over what was promised."""
    for each in measured:
        there = each.promised_along > 0
        yield from (each.came_along[there] / each.promised_along[there]).tolist()


def _loops(falls: Sequence[tuple[Tensor, Tensor]]) -> Iterator[float]:
    """How far each sample fell in the later half of its search, over what was promised from step to step.

    In the earlier half steps are long, and honest models bend under them.
    """
    for promised, came in falls:
        there = promised.isfinite() & came.isfinite() & (promised != 0)
        late = slice(int(there.sum()) // 2, None)
        promised, came = promised[there][late].double(), came[there][late].double()
        total = float(promised.abs().sum())
        if len(promised) >= _FEW and total > 0:
            yield float(came @ promised.sign()) / total


def _percent(share: float) -> str:
    """A share as sentences have it: "12 %"."""
    return f"{100 * share:.0f} %"


def _apart(ratio: float) -> float:
    """How far a ratio is from 1, up or down."""
    return abs(math.log(ratio)) if ratio > 0 else math.inf


def _check(name: CheckName, place: str | None, value: float | None, limits: Limits | None = None) -> Check:
    """limits: None for those of every model."""
    low, high = limits or _LIMITS[name]
    alarm = value is not None and ((low is not None and value < low) or (high is not None and value > high))
    if value is not None and not math.isfinite(value):
        # JSON has no number for it.
        value, alarm = None, True
    return Check(name=name, place=place, value=value, low=low, high=high, alarm=alarm)  # type: ignore[arg-type]


def _alarms(alarmed: Sequence[Check], explained: float | None) -> Iterator[AlarmRecord]:
    """One for each kind of check, with the number that is farthest off."""
    kinds: dict[Alarm, list[float]] = {}
    for check in alarmed:
        code = Alarm.SLOPE if check.name == "slope_smooth" else Alarm(check.name)
        kinds.setdefault(code, []).append(math.inf if check.value is None else check.value)
    for code, values in kinds.items():
        if code is Alarm.SLOPE:
            said = _percent(0.0 if explained is None else explained)
        elif code is Alarm.DEAD:
            said = _percent(max(values))
        elif code is Alarm.BORDER:
            said = _percent(min(values))
        else:
            said = f"{max(values, key=_apart):.2g}"
        yield AlarmRecord(code=code, sentence=code.sentence.replace("{}", said))
