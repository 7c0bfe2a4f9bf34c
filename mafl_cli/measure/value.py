"""A number that may be undefined: a float, or None with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mafl_cli.codes import Reason
from mafl_cli.system.records import OPTIONAL


@dataclass(frozen=True)
class Value:
    """A number, or None with the reason why it is undefined. Raises ValueError where it has both or neither."""

    value: float | None
    reason: Reason | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if (self.value is None) == (self.reason is None):
            raise ValueError("value must be a number, or null with a reason")

    @property
    def number(self) -> float:
        """Raises ValueError where it is undefined."""
        if self.value is None:
            raise ValueError(f"undefined: {self.reason}")
        return self.value


def defined(value: float) -> Value:
    return Value(float(value))


def undefined(reason: Reason) -> Value:
    return Value(None, reason)


def ratio(part: float, whole: float, otherwise: Reason) -> Value:
    """part / whole, undefined for the reason `otherwise` where the whole is nothing."""
    return defined(part / whole) if whole else undefined(otherwise)


def mean(values: Sequence[float], otherwise: Reason) -> Value:
    return ratio(sum(values), len(values), otherwise)
