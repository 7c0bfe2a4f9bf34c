"""Shares of answers, with exact intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from mafl_cli.system.records import Count, Share


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """How many of some answers are of a kind.

    low, high: exact 95 % interval of the true share (Clopper and Pearson, Biometrika 26, 1934), where the answers do
    not depend on each other.
    """

    count: Count
    of: Annotated[int, Ge(1)]
    share: Share
    low: Share
    high: Share


def proportion(count: int, of: int) -> Proportion:
    """`count` of `of` answers, 0 <= count <= of, of >= 1.

        >>> found = proportion(0, 100)
        >>> round(found.high, 3)
        0.036

    The bounds are quantiles of beta distributions: low that of B(k, n - k + 1) at 2.5 %, high that of B(k + 1, n - k)
    at 97.5 %; 0 where k is 0, and 1 where k is n. Raises ValueError for a count that is not between 0 and `of`.
    """
    from scipy.special import betaincinv

    if not 0 <= count <= of or of < 1:
        raise ValueError(f"count must be 0 to {of} of at least one, got {count}")
    low = float(betaincinv(count, of - count + 1, 0.025)) if count else 0.0
    high = float(betaincinv(count + 1, of - count, 0.975)) if count < of else 1.0
    return Proportion(count=count, of=of, share=count / of, low=low, high=high)
