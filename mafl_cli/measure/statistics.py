"""Mean, median, extremes, quantiles and a bootstrap interval of a list of numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mafl_cli.system.records import Count


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What `n` numbers are like together; None where there is none.

    ci95: confidence interval of the mean, percentile bootstrap over cases (Efron 1979), 2000 resamples with a fixed
    seed; None for fewer than 2 numbers.
    """

    n: Count
    mean: float | None
    median: float | None
    min: float | None
    p5: float | None
    p95: float | None
    max: float | None
    ci95: tuple[float, float] | None


def summary(values: Sequence[float | None]) -> Statistics:
    """Statistics of those that are defined."""
    known = sorted(float(value) for value in values if value is not None)
    if not known:
        return Statistics(n=0, mean=None, median=None, min=None, p5=None, p95=None, max=None, ci95=None)
    return Statistics(
        n=len(known),
        mean=statistics.fmean(known),
        median=statistics.median(known),
        min=known[0],
        p5=quantile(known, 0.05),
        p95=quantile(known, 0.95),
        max=known[-1],
        ci95=_bootstrap([float(value) for value in values if value is not None]),
    )


def _bootstrap(values: Sequence[float], resamples: int = 2000) -> tuple[float, float] | None:
    import numpy as np

    if len(values) < 2:
        return None
    drawn = np.random.default_rng(0).choice(np.asarray(values), (resamples, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def quantile(ordered: Sequence[float], share: float) -> float:
    """A quantile, linear between the two nearest numbers; beside an infinite one, the one further out."""
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    if low == high or not (math.isfinite(low) and math.isfinite(high)):
        return high if share > 0.5 else low
    return low + (high - low) * (place - math.floor(place))
