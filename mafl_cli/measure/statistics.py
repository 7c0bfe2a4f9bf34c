"""Mean, median, extremes, quantiles and a bootstrap interval of a list of numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def summary_of(values: Sequence[float | None]) -> dict[str, Any]:
    """Statistics of those that are defined, with their number `n`; see `statistics_of`."""
    known = [float(value) for value in values if value is not None]
    return {"n": len(known), **summary(known)}


def summary(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return dict.fromkeys(("mean", "median", "min", "p5", "p95", "max", "ci95"))
    ordered = sorted(values)
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "min": ordered[0],
        "p5": quantile(ordered, 0.05),
        "p95": quantile(ordered, 0.95),
        "max": ordered[-1],
        "ci95": _bootstrap(values),
    }


def _bootstrap(values: Sequence[float], resamples: int = 2000) -> list[float] | None:
    import numpy as np

    if len(values) < 2:
        return None
    drawn = np.random.default_rng(0).choice(np.asarray(values), (resamples, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return [float(low), float(high)]


def quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest cases, linear; beside an infinite one, the one further out."""
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    if low == high or not (math.isfinite(low) and math.isfinite(high)):
        return high if share > 0.5 else low
    return low + (high - low) * (place - math.floor(place))
