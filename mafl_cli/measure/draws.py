"""What single answers of a network have that answers differently each time: means over draws, with their intervals.

Intervals hold the true mean with a confidence of 95 %: Student's t for measures, Wilson's (1927) for shares of draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mafl_cli.measure.records import Draws, Interval, Unsettled
from mafl_cli.measure.value import Value

_NORMAL = 1.959964
"""97.5 % quantile of the normal distribution."""


def draws_of(
    figures: Sequence[Mapping[str, Value]],
    spans: Mapping[str, tuple[float, float]],
    at_goal: Sequence[bool],
    *,
    reached: bool,
    unsettled: Unsettled,
) -> Draws:
    """All draws together.

    Args:
        figures: of each draw, by the names that gates use; those that are undefined in a draw are left out. spans: the
            lowest and the highest value that each can have. at_goal: whether each draw reaches the goal. reached:
            whether what most draws have does.
    """
    found = {}
    for name, span in spans.items():
        values = [one[name].value for one in figures if name in one]
        known = [value for value in values if value is not None]
        if known and len(known) == len(figures):
            found[name] = mean_of(known, span)
    found["goal_reached"] = Interval(mean=float(reached), low=float(reached), high=float(reached or any(at_goal)))
    return Draws(count=len(figures), at_goal=share_of(sum(at_goal), len(at_goal)), figures=found, unsettled=unsettled)


def mean_of(values: Sequence[float], span: tuple[float, float]) -> Interval:
    """The mean of at least one number, and Student's interval inside the span."""
    from scipy.special import stdtrit

    n = len(values)
    mean = math.fsum(values) / n
    half = 0.0
    if n > 1:
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        half = float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return Interval(mean=mean, low=max(mean - half, span[0]), high=min(mean + half, span[1]))


def share_of(hits: int, n: int) -> Interval:
    """`hits` of `n` as a share, and Wilson's interval."""
    share, square = hits / n, _NORMAL**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = _NORMAL * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return Interval(mean=share, low=max(min(middle - half, share), 0.0), high=min(max(middle + half, share), 1.0))
