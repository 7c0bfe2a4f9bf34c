"""What a number of a case is: where the reports have it, which way is better, and how it is printed.

The table of all of them is `results.quantities`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mafl_cli.codes import Reason
from mafl_cli.measure.value import Value, defined, undefined
from mafl_cli.results.evaluation_report import JudgedCase
from mafl_cli.results.report import CaseRecord

Number = Value | float
"""As a report has it."""

NumberFormat = Literal[".4f", ".5f", ".2f", ".4g", ".0f"]
"""How a number is printed, as Python's `format` has it; the page knows these."""


class Read(NamedTuple):
    """How a number is read from a case; None where that report does not have it."""

    attack: Callable[[CaseRecord], Number] | None
    evaluation: Callable[[JudgedCase], Number] | None


@dataclass(frozen=True)
class Quantity:
    """A number of one case.

    title: its name in a table; `(unit)` is said beside it. better: which way serves the attacker; None where neither
    does. span: the lowest and the highest value that it can have. at_goal: it is about the change that reaches the
    goal, so that it lies beyond every value where none does.
    """

    title: str
    meaning: str
    read: Read
    better: Literal["higher", "lower"] | None = "higher"
    form: NumberFormat = ".4f"
    unit: str = ""
    span: tuple[float, float] = (0.0, 1.0)
    at_goal: bool = False

    def of_attack(self, case: CaseRecord) -> Number:
        """Raises ValueError where the report of an attack does not have it."""
        if self.read.attack is None:
            raise ValueError(f"{self.title} is not in the report of an attack")
        return self.read.attack(case)

    def of_evaluation(self, case: JudgedCase) -> Value:
        """Raises ValueError where the report of an evaluation does not have it."""
        if self.read.evaluation is None:
            raise ValueError(f"{self.title} is not in the report of an evaluation")
        if self.unit == "model units" and not case.knows_units:
            return undefined(Reason.NO_MODEL)
        found = self.read.evaluation(case)
        return found if isinstance(found, Value) else defined(found)

    @property
    def beyond(self) -> float | None:
        """What it is where no change reaches the goal, for a quantity that is about reaching it: the worst there is."""
        return None if not self.at_goal else -math.inf if self.better == "higher" else math.inf

    @property
    def range(self) -> str:
        """The span in words: "0 to 1", "0 or more", "any number"."""
        low, high = self.span
        if math.isinf(low):
            return "any number"
        return f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"

    @property
    def place(self) -> str | None:
        """Where a case in the report of an attack has it, as "metrics.post_write.target_iou".

        None for what is computed, and for what is not there.
        """
        case: Any = _FieldPath()
        found: Any = None if self.read.attack is None else self.read.attack(case)
        return ".".join(found.names) if isinstance(found, _FieldPath) else None

    def shown(self, value: float | None) -> str:
        """A value as tables have it; "-" where it is undefined. A mean of counts keeps what is not whole of it."""
        if value is None:
            return "-"
        form = ".2f" if self.form == ".0f" and math.isfinite(value) and value != round(value) else self.form
        return f"{value:{form}}"

    def with_unit(self, value: float) -> str:
        """A value as sentences have it."""
        return f"{self.shown(value)}{' ' + self.unit if self.unit else ''}"


class _FieldPath:
    """Stands for a record, and notes which of its fields is asked for."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __getattr__(self, name: str) -> _FieldPath:
        return _FieldPath(*self.names, name)

    def __iter__(self) -> Iterator[_FieldPath]:
        return iter(())


def value_of(number: Number) -> float | None:
    """A number as a table has it: None where it is undefined."""
    return number.value if isinstance(number, Value) else number
