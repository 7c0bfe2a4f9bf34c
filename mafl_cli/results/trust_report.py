"""Whether an attack can be believed, as reports hold it: what was checked, what was found, and what that means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mafl_cli.codes import Alarm, Belief
from mafl_cli.config import EpsUnit, Norm
from mafl_cli.system.records import OPTIONAL, AtMostOne, Count, Length, Share

CheckName = Literal["slope", "slope_smooth", "along", "dead", "border", "loop", "no_limit", "dust"]
GradientName = Literal["exact", "straight_through", "smoothed"]
"""The network's own; with a slope where rounding and the like have none; averaged over small changes."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number that must lie in a range, or the attack is in doubt; see docs/evaluate.md."""

    name: CheckName
    place: Literal["clean", "changed"] | None
    """At the clean scan, or where the search ended; null for what is about the whole run."""
    value: float | None
    """null where it cannot be measured: nothing was promised, or nothing is there."""
    low: float | None
    high: float | None
    alarm: bool


@dataclass(frozen=True, kw_only=True)
class AlarmRecord:
    """A reason to doubt the attack."""

    code: Alarm
    sentence: str


@dataclass(frozen=True, kw_only=True)
class CheckPasses:
    """Through the network for the checks, counted per slice or volume."""

    forward: Count
    backward: Count


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """One search, by the gradient that it followed, and what the checks say of it.

    explained: share of how the model answers to small changes that its gradient explains; null where nothing was asked.
    """

    gradient: GradientName
    goal_reached: bool
    explained: Share | None
    checks: tuple[Check, ...]
    alarms: tuple[AlarmRecord, ...]
    samples: tuple[Count, ...]
    """Slices that were looked at, by their place in the batch of all; [0] for a volume."""
    passes: CheckPasses


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A short search: more of something than the rung of the same kind before it, and never to reach less."""

    more: Literal["steps", "change", "no_limit"]
    """What there is more of: steps, the size that the change may have, or that size without a limit."""
    steps: Count
    eps: Length | None
    """Largest size of the change, as `eps_unit` and `norm` of the rung say; null where nothing limits it."""
    eps_unit: EpsUnit | None
    norm: Norm | None
    score: tuple[AtMostOne, ...]
    """For each sample of the ladder: the least of IoU, hit rate and removal."""
    reached: Count
    """Samples at the goal."""
    l2_model: tuple[Length, ...]
    """Length of the change of each sample, model units."""
    broken: bool


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Whether more steps and larger changes reach more, tried on some samples."""

    samples: tuple[Count, ...]
    rungs: tuple[Rung, ...]


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whether the attack can be believed. A run whose verdict is "alarm" proves nothing about the model."""

    verdict: Belief
    found_by: GradientName
    """Whose gradient found the result."""
    searches: tuple[SearchRecord, ...]
    """In the order in which they were made."""
    checks: tuple[Check, ...]
    """About the result as it was written."""
    alarms: tuple[AlarmRecord, ...]
    """Those that nothing answers."""
    ladder: Ladder | None = field(default=None, metadata=OPTIONAL)
    """With `ladder` alone."""
