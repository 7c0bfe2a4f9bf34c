"""Rules that a CI job can hang on: they name a figure of an evaluation (see `results.quantities`) and a bound for it.

A *gate* is a sentence like `target_iou > 0.5` that must not come true, for the worst case unless it says otherwise.
Gates fail closed: what was not measured, a case that could not be read and files that are not those of their report
count as failed, because nobody knows that they are good. Where the attack may have failed, rather than the model held,
a gate that the case does not break is *inconclusive*, which is a failure too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from mafl_cli.codes import Reason, Untested
from mafl_cli.errors import InputError, UsageError
from mafl_cli.measure.statistics import quantile
from mafl_cli.measure.value import Value
from mafl_cli.names import outside, public_name
from mafl_cli.results.evaluation_report import FailedCase, JudgedCase
from mafl_cli.results.gate_report import GateCase, GateResult, Operator, Over
from mafl_cli.results.quantities import EVALUATED
from mafl_cli.system.documents import read_toml

_EXPRESSION = re.compile(
    r"\s*(?:(?P<aggregate>[a-z0-9]+)\s*\(\s*(?P<inner>[a-z0-9_]+)\s*\)|(?P<figure>[a-z0-9_]+))"
    r"\s*(?P<operator>>=|<=|>|<)\s*(?P<threshold>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*",
    re.IGNORECASE,
)

Status = Literal["pass", "fail", "inconclusive"]
CaseStatus = Literal["pass", "fail", "inconclusive", "error"]

# The attack did nothing that a model could have withstood.
_NOTHING_TRIED = frozenset({Untested.NO_GRADIENT, Untested.UNCHANGED, Untested.ROUNDING})
# Characters of an expression or a name that a message repeats.
_MOST_SHOWN = 80

_HOLDS: dict[Operator, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


@dataclass(frozen=True)
class Gate:
    """A rule that fails when `aggregate(figure) operator threshold` is true.

    aggregate: "worst" is the case nearest to failing, "p95" leaves the worst 5 % of the cases aside.
    """

    name: str
    figure: str
    operator: Operator
    threshold: float
    aggregate: Over = "worst"

    @property
    def expression(self) -> str:
        """The rule as a user would write it, always in the same way."""
        figure = self.figure if self.aggregate == "worst" else f"{self.aggregate}({self.figure})"
        return f"{figure} {self.operator} {repr(self.threshold).removesuffix('.0')}"


def parse(text: str, name: str | None = None) -> Gate:
    """ "target_iou > 0.5", "mean(dice_drop) >= 0.1".

    Raises UsageError for anything else, and for a rule that every value of its figure, or none, would break.
    """
    try:
        gate = _parsed(text)
    except UsageError as exc:
        raise UsageError(f"`fail_if` {exc}") from None
    return replace(gate, name=name) if name else gate


def _parsed(text: str) -> Gate:
    """A gate called as its rule. Raises UsageError with the rule as its subject."""
    found = _EXPRESSION.fullmatch(text)
    said = repr(outside(text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."))
    if found is None:
        raise UsageError(
            f"{said} is not understood: write FIGURE > NUMBER (or <, >=, <=), "
            f"FIGURE alone or in {', '.join(f'{each}(...)' for each in get_args(Over))}."
        )
    figure, aggregate = found["inner"] or found["figure"], found["aggregate"] or "worst"
    if figure not in EVALUATED:
        raise UsageError(f"{said}: the figure {figure[:_MOST_SHOWN]!r} does not exist: use {', '.join(EVALUATED)}.")
    if aggregate not in get_args(Over):
        raise UsageError(f"{said}: {aggregate[:_MOST_SHOWN]!r} must be one of {', '.join(get_args(Over))}.")
    gate = Gate("", figure, found["operator"], float(found["threshold"]), aggregate)  # type: ignore[arg-type]
    if not math.isfinite(gate.threshold):
        raise UsageError(f"{said}: the number is too large.")
    outcomes = _outcomes(gate)
    if len(outcomes) == 1:
        how = "always fails" if outcomes == {True} else "can never fail"
        raise UsageError(f"{said} {how}: {figure} is {EVALUATED[figure].range}; choose a number that it can cross.")
    return replace(gate, name=gate.expression)


def _outcomes(gate: Gate) -> set[bool]:
    """What a rule can say of its figure, whatever is measured: True where it is broken."""
    holds = _HOLDS[gate.operator]
    # Between its ends a figure can have every value; beside the threshold the answer changes.
    return {holds(value, gate.threshold) for value in EVALUATED[gate.figure].span}


def read(path: Path) -> tuple[Gate, ...]:
    """The table [gates] of a TOML file: name = "expression". Raises InputError, naming what is wrong."""
    name = public_name(path)
    table = read_toml(path)
    gates = table.get("gates")
    if not isinstance(gates, dict) or not gates or set(table) != {"gates"}:
        raise InputError(f'{name}: must hold one table, [gates], with lines like: fooled = "target_iou > 0.5".')
    for key, text in gates.items():
        if not isinstance(text, str):
            key = outside(key)[:_MOST_SHOWN]
            raise InputError(f'{name}: {key} must be an expression in quotes, like "target_iou > 0.5".')
    return tuple(_listed(name, key, text) for key, text in gates.items())


def _listed(file: str, key: str, text: str) -> Gate:
    """A gate of a file under the name that it has there."""
    try:
        gate = _parsed(text)
    except UsageError as exc:
        raise InputError(f"{file}: {outside(key)[:_MOST_SHOWN]} = {exc}") from exc
    return replace(gate, name=key) if key else gate


def judge(gate: Gate, cases: Sequence[JudgedCase | FailedCase]) -> GateResult:
    """Whether a gate holds. On a case that is untested none does; on one that is in doubt none passes."""
    judged = tuple(_judge_case(gate, case) for case in cases)
    observed, reason, status = _verdict(gate, judged)
    return GateResult(
        name=gate.name,
        expression=gate.expression,
        figure=gate.figure,
        aggregate=gate.aggregate,
        operator=gate.operator,
        threshold=gate.threshold,
        observed=observed,
        status=status,
        reason=reason,
        cases=judged,
    )


def _verdict(gate: Gate, cases: Sequence[GateCase]) -> tuple[float | None, str, Status]:
    """What was observed, in words too, and what becomes of the gate."""
    if not cases:
        return None, "there is no case", "fail"
    doubtful = [case for case in cases if case.status == "inconclusive"]
    unknown = [case for case in cases if case.problem is not None and case.status != "inconclusive"]
    if unknown:
        return None, f"cannot be measured, so it fails: {_problems([*unknown, *doubtful])}", "fail"
    beyond = EVALUATED[gate.figure].beyond
    known = [case for case in cases if case.value is not None or case.status != "inconclusive"]
    values = [value for case in known if (value := beyond if case.value is None else case.value) is not None]
    observed = _aggregated(gate, sorted(values)) if values else math.nan
    trips = not math.isnan(observed) and _HOLDS[gate.operator](observed, gate.threshold)
    # What was reached was reached: an attack that is in doubt can only have shown too little.
    if doubtful and not (trips and gate.aggregate == "worst"):
        return None, f"inconclusive, so it fails: {_problems(doubtful)}", "inconclusive"
    holds = not math.isnan(observed) and not trips
    return observed if math.isfinite(observed) else None, _reason(gate, observed, known), "pass" if holds else "fail"


def _problems(cases: Sequence[GateCase]) -> str:
    more = f" (and {len(cases) - 1} more)" if len(cases) > 1 else ""
    return f"{cases[0].case_id}: {cases[0].problem}{more}"


def _judge_case(gate: Gate, case: JudgedCase | FailedCase) -> GateCase:
    if isinstance(case, FailedCase):
        return GateCase(case_id=case.case_id, value=None, status="error", problem=case.error.message)
    quantity = EVALUATED[gate.figure]
    found = quantity.of_evaluation(case)
    value, problem = (
        _worst_by_chance(gate, case, found.value),
        None if case.untested is None else case.untested.sentence,
    )
    unreached = quantity.at_goal and found.reason is Reason.GOAL_NOT_REACHED
    if value is not None and not math.isfinite(value):
        value, problem = None, problem or f"{gate.figure} is not a number"
    doubt = _doubt(case, found)
    if problem is None and found.reason is not None and not unreached and doubt is None:
        problem = f"{gate.figure} is undefined: {found.reason.sentence}"
    known = quantity.beyond if value is None and unreached else value
    trips = known is not None and _HOLDS[gate.operator](known, gate.threshold)
    status: CaseStatus = "fail" if problem is not None or trips else "pass"
    if case.untested is not None and case.untested.code in _NOTHING_TRIED:
        status, problem = "inconclusive", case.untested.sentence
        value = None
    elif status == "pass" and doubt is not None:
        status, problem = "inconclusive", doubt
    return GateCase(case_id=case.case_id, value=value, status=status, problem=problem)


def _worst_by_chance(gate: Gate, case: JudgedCase, value: float | None) -> float | None:
    """A value, or of a model that answers by chance the end of its interval that is nearer to breaking the rule: none
    is passed by the luck of some draws."""
    draws = case.metrics.draws
    interval = None if draws is None else draws.figures.get(gate.figure)
    if value is None or interval is None:
        return value
    return max(value, interval.high) if gate.operator.startswith(">") else min(value, interval.low)


def _doubt(case: JudgedCase, found: Value) -> str | None:
    """Why a figure that breaks no rule shows nothing, as a sentence; None if it does."""
    if case.doubts:
        return case.doubts[0].sentence
    return found.reason.sentence if found.reason is Reason.NOT_KNOWN else None


def _aggregated(gate: Gate, ordered: Sequence[float]) -> float:
    """NaN where cases that never reached the goal leave a mean or a middle unknown."""
    upwards = gate.operator.startswith(">")
    if gate.aggregate == "worst":
        return ordered[-1] if upwards else ordered[0]
    if gate.aggregate == "p95":
        return quantile(ordered, 0.95 if upwards else 0.05)
    between = ordered if gate.aggregate == "mean" else _middle(ordered)
    if len(set(between)) > 1 and not all(map(math.isfinite, between)):
        return math.nan
    return between[0] if len(set(between)) == 1 else math.fsum(between) / len(between)


def _middle(ordered: Sequence[float]) -> Sequence[float]:
    return ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]


def _reason(gate: Gate, observed: float, cases: Sequence[GateCase]) -> str:
    unreached = sum(case.value is None for case in cases)
    if math.isnan(observed):
        return f"the {gate.aggregate} is undefined, so it fails: {unreached} cases did not reach the goal"
    where = cases[0].case_id if len(cases) == 1 else f"{gate.aggregate} of {len(cases)} cases"
    if gate.aggregate == "worst" and len(cases) > 1:
        at = None if math.isinf(observed) else observed
        names = [case.case_id for case in cases if case.value == at]
        where += f": {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if math.isinf(observed):
        return f"no change that was tried reaches the goal ({where})"
    more = f"; the goal was not reached in {unreached} of {len(cases)}" if unreached else ""
    return f"{gate.figure} is {EVALUATED[gate.figure].with_unit(observed)} ({where}{more})"
