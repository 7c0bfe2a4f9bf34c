"""What became of the rules that an evaluation was held to, as its report has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Over = Literal["worst", "mean", "median", "p95"]
Operator = Literal[">", ">=", "<", "<="]


@dataclass(frozen=True, kw_only=True)
class GateCase:
    """One case under a rule. value: null also where the goal was not reached. problem: why it is not known."""

    case_id: str
    value: float | None
    status: Literal["pass", "fail", "inconclusive", "error"]
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """A rule that fails when it comes true, or when it is not known whether it does."""

    name: str
    expression: str
    figure: str
    aggregate: Over
    operator: Operator
    threshold: float
    observed: float | None
    """null where it is not known, or beyond every change that was tried."""
    status: Literal["pass", "fail", "inconclusive"]
    """inconclusive fails too: the attack may have failed, rather than the model held."""
    reason: str
    cases: tuple[GateCase, ...]
