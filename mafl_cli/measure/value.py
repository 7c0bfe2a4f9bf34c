"""Numbers of a report that may be undefined: a dict whose `value` is a float, or None with a `reason` beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mafl_cli.codes import Reason


def defined(value: float) -> dict[str, Any]:
    return {"value": float(value)}


def undefined(reason: Reason) -> dict[str, Any]:
    return {"value": None, "reason": reason}


def ratio(part: float, whole: float, otherwise: Reason) -> dict[str, Any]:
    """part / whole, undefined for the reason `otherwise` where the whole is nothing."""
    return defined(part / whole) if whole else undefined(otherwise)


def mean(values: Sequence[float], otherwise: Reason) -> dict[str, Any]:
    return ratio(sum(values), len(values), otherwise)
