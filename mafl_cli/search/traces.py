"""The trace of a search: how loss, score and length went from step to step, as the report keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mafl_cli.results.report import Trace

if TYPE_CHECKING:
    from mafl_cli.search.loop import StepRecord

POINTS = 200


@dataclass(frozen=True)
class Group:
    """Slices (or the volume) that were attacked together, and the record of each of their steps, at least one."""

    samples: int
    records: Sequence[StepRecord]


def joined(groups: Sequence[Group], *, points: int = POINTS) -> Trace:
    """One trace of groups that were attacked one after the other, as if they had been attacked at once.

    Steps are joined by their number: a point is the mean over all samples of what each had reached after that many
    steps. What is finished keeps its last values, so every point speaks of the same samples.

    Args:
        points: at most so many steps are kept, at least 2: evenly spread, the first and the last among them.
    Returns: empty lists if there are no groups.
    """
    count = max((len(group.records) for group in groups), default=0)
    kept = list(range(count))
    if count > points:
        kept = [round(n * (count - 1) / (points - 1)) for n in range(points)]
    samples = sum(group.samples for group in groups)

    def mean(name: str, step: int) -> float | None:
        values = (group.samples * getattr(group.records[min(step, len(group.records) - 1)], name) for group in groups)
        return _short(sum(values) / samples)

    return Trace(
        step=tuple(kept),
        loss=tuple(mean("loss", step) for step in kept),
        score=tuple(mean("score", step) for step in kept),
        # A share of samples is always finite.
        reached=tuple(mean("reached", step) or 0.0 for step in kept),
        l2_model=tuple(mean("l2", step) for step in kept),
    )


def _short(value: float) -> float | None:
    """Six significant digits: a trace is for the eye. None for what JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
