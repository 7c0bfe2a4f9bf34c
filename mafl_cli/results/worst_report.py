"""The worst case of several searches, as reports hold it: who searched how long, and who found what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Len

from mafl_cli.results.trust_report import GradientName
from mafl_cli.system.records import Count, Length

SearchName = Literal["margin", "start", "noise", "guided", "dice", "js", "ce", "onward"] | GradientName
"""What led a search, see docs/method.md; or the gradient of one that was made because the network's are in doubt."""


@dataclass(frozen=True, kw_only=True)
class SearchTold:
    """One of the searches. What it kept is what nobody else had smaller."""

    name: SearchName
    steps: Count
    """Its share: forward passes for each slice or volume, at most."""
    forward: Count
    """Passes through the network, counted per slice or volume."""
    backward: Count
    attacked: Count
    """Slices or volumes."""
    reached: Count
    kept: Count
    """Slices or volumes whose result it found."""


@dataclass(frozen=True, kw_only=True)
class SampleTold:
    """Who found the result of one slice or volume."""

    sample: Count
    """Its place in the batch of all slices; 0 for a volume."""
    found_by: SearchName
    began_at: SearchName | None
    """With "onward": whose change it began at; null for the best so far."""
    reached: bool
    l2_model: Length
    """Length of its change, model units."""
    l2_model_first: Length | None
    """What the first search alone found; null where that misses the goal."""


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """Several searches, and for each slice or volume the smallest change at the goal, or else the closest to it."""

    searches: Annotated[tuple[SearchTold, ...], Len(1)]
    """In the order in which they were made."""
    samples: tuple[SampleTold, ...]
    """Those that were attacked."""
