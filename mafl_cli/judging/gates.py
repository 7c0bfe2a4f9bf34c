"""Rules that a CI job can hang on: they name a figure of an evaluation (see `quantities`) and a bound for it.

A *gate* is a sentence like `target_iou > 0.5` that must not come true, for the worst case unless it says otherwise.
Gates fail closed: what was not measured, a case that could not be read and files that are not those of their report
count as failed, because nobody knows that they are good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mafl_cli.codes import Reason
from mafl_cli.errors import InputError, UsageError
from mafl_cli.judging.quantities import FIGURES, Case, Figure, shown
from mafl_cli.measure.statistics import quantile
from mafl_cli.names import one_line, public_name
from mafl_cli.system.documents import read_toml

Aggregate = Literal["worst", "mean", "median", "p95"]


_EXPRESSION = re.compile(
    r"\s*(?:(?P<aggregate>[a-z0-9]+)\s*\(\s*(?P<inner>[a-z0-9_]+)\s*\)|(?P<figure>[a-z0-9_]+))"
    r"\s*(?P<operator>>=|<=|>|<)\s*(?P<threshold>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*",
    re.IGNORECASE,
)

# Characters of an expression or a name that a message repeats.
_MOST_SHOWN = 80

_HOLDS: dict[str, Callable[[float, float], bool]] = {
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
    operator: str
    threshold: float
    aggregate: Aggregate = "worst"

    @property
    def expression(self) -> str:
        """As the user would write it, in one way."""
        figure = self.figure if self.aggregate == "worst" else f"{self.aggregate}({self.figure})"
        return f"{figure} {self.operator} {repr(self.threshold).removesuffix('.0')}"


def parse(text: str, name: str | None = None) -> Gate:
    """ "target_iou > 0.5", "mean(dice_drop) >= 0.1".

    Raises UsageError for anything else, and for a rule that every value of its figure, or none, would break.
    """
    found = _EXPRESSION.fullmatch(text)
    said = repr(text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "...")
    if found is None:
        raise UsageError(
            f"--fail-if {said} is not understood: write FIGURE > NUMBER (or <, >=, <=), "
            f"FIGURE alone or in {', '.join(f'{each}(...)' for each in get_args(Aggregate))}."
        )
    figure, aggregate = found["inner"] or found["figure"], found["aggregate"] or "worst"
    if figure not in FIGURES:
        raise UsageError(f"--fail-if {said}: there is no figure {figure[:_MOST_SHOWN]!r}; use {', '.join(FIGURES)}.")
    if aggregate not in get_args(Aggregate):
        raise UsageError(f"--fail-if {said}: {aggregate[:_MOST_SHOWN]!r} is none of {', '.join(get_args(Aggregate))}.")
    gate = Gate("", figure, found["operator"], float(found["threshold"]), aggregate)  # type: ignore[arg-type]
    if not math.isfinite(gate.threshold):
        raise UsageError(f"--fail-if {said}: the number is too large.")
    outcomes = _outcomes(gate)
    if len(outcomes) == 1:
        how = "always fails" if outcomes == {True} else "can never fail"
        raise UsageError(
            f"--fail-if {said} {how}: {figure} is {FIGURES[figure].range}; choose a number that it can cross."
        )
    return Gate(name or gate.expression, gate.figure, gate.operator, gate.threshold, gate.aggregate)


def _outcomes(gate: Gate) -> set[bool]:
    """What a rule can say of its figure, whatever is measured: True where it is broken."""
    holds = _HOLDS[gate.operator]
    # Between its ends a figure can have every value; beside the threshold the answer changes.
    return {holds(value, gate.threshold) for value in FIGURES[gate.figure].span}


def read(path: Path) -> tuple[Gate, ...]:
    """The table [gates] of a TOML file: name = "expression". Raises InputError, naming what is wrong."""
    name = public_name(path)
    table = read_toml(path)
    gates = table.get("gates")
    if not isinstance(gates, dict) or not gates or set(table) != {"gates"}:
        raise InputError(f'{name}: must hold one table, [gates], with lines like: fooled = "target_iou > 0.5".')
    for key, text in gates.items():
        if not isinstance(text, str):
            key = one_line(key)[:_MOST_SHOWN]
            raise InputError(f'{name}: {key} must be an expression in quotes, like "target_iou > 0.5".')
    try:
        return tuple(parse(text, key) for key, text in gates.items())
    except UsageError as exc:
        raise InputError(f"{name}: {exc}") from exc


def judge(gate: Gate, cases: Sequence[Case]) -> dict[str, Any]:
    """Whether a gate holds; see `gates` in `evaluation.schema.json`. On a case that is untested none does."""
    result: dict[str, Any] = {
        "name": gate.name,
        "expression": gate.expression,
        "figure": gate.figure,
        "aggregate": gate.aggregate,
        "operator": gate.operator,
        "threshold": gate.threshold,
        "observed": None,
        "status": "fail",
        "reason": None,
        "cases": [_per_case(gate, case) for case in cases],
    }
    unknown = [each for each in result["cases"] if each["problem"] is not None]
    if not cases:
        return {**result, "reason": "there is no case"}
    if unknown:
        return {**result, "reason": _first("not known, so it fails", unknown, "problem")}
    figure = FIGURES[gate.figure]
    values = [
        figure.beyond if each["value"] is None and figure.beyond is not None else each["value"]
        for each in result["cases"]
    ]
    observed = _aggregated(gate, sorted(values))
    result["observed"] = observed if math.isfinite(observed) else None
    result["status"] = "fail" if math.isnan(observed) or _HOLDS[gate.operator](observed, gate.threshold) else "pass"
    return {**result, "reason": _reason(gate, figure, observed, result["cases"])}


def _per_case(gate: Gate, case: Case) -> dict[str, Any]:
    """value: None also where the goal was not reached, which is an answer; problem: why there is none."""
    if case["status"] != "ok":
        return {"case_id": case["case_id"], "value": None, "status": "error", "problem": case["error"]["message"]}
    figure = FIGURES[gate.figure]
    entry = figure.pick(case)
    value = None if entry["value"] is None else float(entry["value"])
    problem = None if case["untested"] is None else case["untested"]["sentence"]
    unreached = figure.beyond is not None and entry.get("reason") == Reason.GOAL_NOT_REACHED
    if value is not None and not math.isfinite(value):
        value, problem = None, problem or f"{gate.figure} is not a number"
    if problem is None and value is None and not unreached:
        problem = f"{gate.figure} is undefined: {Reason(entry['reason']).sentence}"
    known = figure.beyond if value is None else value
    trips = problem is not None or (known is not None and _HOLDS[gate.operator](known, gate.threshold))
    return {"case_id": case["case_id"], "value": value, "status": "fail" if trips else "pass", "problem": problem}


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


def _reason(gate: Gate, figure: Figure, observed: float, cases: Sequence[Mapping[str, Any]]) -> str:
    unreached = sum(each["value"] is None for each in cases)
    if math.isnan(observed):
        return f"not known, so it fails: no {gate.aggregate}, for the goal was not reached in {unreached} cases"
    where = cases[0]["case_id"] if len(cases) == 1 else f"{gate.aggregate} of {len(cases)} cases"
    if gate.aggregate == "worst" and len(cases) > 1:
        at = None if math.isinf(observed) else observed
        names = [str(each["case_id"]) for each in cases if each["value"] == at]
        where += f": {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if math.isinf(observed):
        return f"no change that was tried reaches the goal ({where})"
    more = f"; the goal was not reached in {unreached} of {len(cases)}" if unreached else ""
    return f"{gate.figure} is {shown(figure, observed)} ({where}{more})"


def _first(what: str, entries: Sequence[Mapping[str, Any]], key: str) -> str:
    more = f" (and {len(entries) - 1} more)" if len(entries) > 1 else ""
    return f"{what}: {entries[0]['case_id']}: {entries[0][key]}{more}"
