"""Numbers that a CI job can hang on: the figures of an evaluation by name, their statistics, and rules that must hold.

A *gate* is a sentence like `target_iou > 0.5` that must not come true, for the worst case unless it says otherwise.
Gates fail closed: what was not measured, a case that could not be read and files that are not those of their report
count as failed, because nobody knows that they are good.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mafl_cli.errors import InputError, UsageError
from mafl_cli.names import one_line, public_name
from mafl_cli.system.documents import read_toml

Aggregate = Literal["worst", "mean", "median", "p95"]
Case = Mapping[str, Any]
Entry = Mapping[str, Any]


# --- figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A number of one case. pick: it, as `value` or None with a `reason`. span: the lowest and the highest value that
    it can have. beyond: what it is if the goal was not reached, for a figure that is about reaching it: infinite on
    the side of "no change was enough"."""

    meaning: str
    pick: Callable[[Case], Entry]
    form: str = ".4f"
    unit: str = ""
    beyond: float | None = None
    span: tuple[float, float] = (0.0, 1.0)

    @property
    def range(self) -> str:
        """The span in words: "0 to 1", "0 or more", "any number"."""
        low, high = self.span
        if math.isinf(low):
            return "any number"
        return f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"


_LENGTH = (0.0, math.inf)
_ANY = (-math.inf, math.inf)


def _post(*keys: str) -> Callable[[Case], Entry]:
    return lambda case: _at(case["metrics"]["post_write"], keys)


def _size(*keys: str) -> Callable[[Case], Entry]:
    return lambda case: _at(case["metrics"]["size"], keys)


def _at(entry: Any, keys: Sequence[str]) -> Entry:
    for key in keys:
        entry = entry[key]
    return entry if isinstance(entry, Mapping) else {"value": entry}


def _missing(reason: str) -> Entry:
    return {"value": None, "reason": reason}


def _truth(*keys: str) -> Callable[[Case], Entry]:
    return lambda case: (
        _missing("needs --ground-truth") if case["ground_truth"] is None else _at(case["ground_truth"], keys)
    )


def _curve(*keys: str) -> Callable[[Case], Entry]:
    return lambda case: _missing("needs --curve") if case["curve"] is None else _at(case["curve"], keys)


def _drop(case: Case) -> Entry:
    kept = case["metrics"]["dice_with_clean"]
    return kept if kept["value"] is None else {"value": 1 - kept["value"]}


def _highest(part: str, needs: str) -> Callable[[Case], Entry]:
    """Of several judges or transforms the one that the attack fools most: the threat that is left."""

    def pick(case: Case) -> Entry:
        if not case[part]:
            return _missing(f"needs {needs}")
        entries = [each["adversarial"]["target_iou"] for each in case[part]]
        undefined = [entry for entry in entries if entry["value"] is None]
        return undefined[0] if undefined else max(entries, key=lambda entry: float(entry["value"]))

    return pick


def _at_goal(key: str, *keys: str) -> Callable[[Case], Entry]:
    """Of the smallest change known that reaches the goal: on the curve if there is one, else the file's own."""

    def pick(case: Case) -> Entry:
        if case["curve"] is not None:
            smallest = case["curve"]["smallest_at_goal"]
            return _missing(smallest["reason"]) if smallest["value"] is None else _at(smallest, (key,))
        if not case["goal"]["reached"]:
            return _missing("goal_not_reached")
        return _at(case["metrics"]["size"], keys)

    return pick


def _worst_distance(case: Case) -> Entry:
    """HD95 of the class that is farthest off; a class that only one of prediction and target has is undefined."""
    entries = [each["hd95_mm"] for each in case["metrics"]["post_write"]["per_class"] if each["voxels"]["target"]]
    undefined = [entry for entry in entries if entry["value"] is None]
    if not entries or undefined:
        return undefined[0] if undefined else _missing("target_has_no_foreground")
    return max(entries, key=lambda entry: float(entry["value"]))


FIGURES: dict[str, Figure] = {
    "target_iou": Figure("IoU of the adversarial prediction with the target", _post("target_iou")),
    "target_dice": Figure("Dice of the adversarial prediction with the target", _post("target_dice")),
    "hit_rate": Figure("share of the voxels that had to change and did", _post("hit_rate")),
    "collateral": Figure("share of the other voxels that changed class all the same", _post("collateral")),
    "target_hd95": Figure(
        "HD95 between prediction and target, of the worst class", _worst_distance, ".2f", "mm", span=_LENGTH
    ),
    "goal_reached": Figure("1 where the attack reached its goal, else 0", lambda case: _at(case, ("goal", "reached"))),
    "prediction_drop": Figure("1 - Dice of adversarial and clean prediction", _drop),
    "dice_clean": Figure("Dice of the clean prediction with the ground truth", _truth("clean", "dice")),
    "dice_adversarial": Figure(
        "Dice of the adversarial prediction with the ground truth", _truth("adversarial", "dice")
    ),
    "dice_drop": Figure(
        "Dice with the ground truth that the attack takes away", _truth("dice_drop"), span=(-1.0, 1.0)
    ),
    "l0_fraction": Figure("share of the voxels that differ", _size("l0", "fraction")),
    "l2_model": Figure("length of the change", _size("l2", "model"), ".4g", "model units", span=_LENGTH),
    "l2_native": Figure("length of the change", _size("l2", "native"), ".4g", "native units", span=_LENGTH),
    "linf_model": Figure("largest change of a voxel", _size("linf", "model"), ".4g", "model units", span=_LENGTH),
    "linf_native": Figure("largest change of a voxel", _size("linf", "native"), ".4g", "native units", span=_LENGTH),
    "psnr_db": Figure("peak signal-to-noise ratio of the change", _size("psnr_db"), ".2f", "dB", span=_ANY),
    "ssim": Figure("structural similarity, mean over slices", _size("ssim", "mean"), ".5f", span=(-1.0, 1.0)),
    "ssim_worst": Figure(
        "structural similarity of the slice that changed most visibly", _size("ssim", "worst"), ".5f", span=(-1.0, 1.0)
    ),
    "low_frequency_share": Figure("share of the change's energy in 2 x 2 block means", _size("low_frequency_share")),
    "psnr_at_goal": Figure(
        "PSNR of the smallest change that reaches the goal",
        _at_goal("psnr_db", "psnr_db"), ".2f", "dB", -math.inf, _ANY,
    ),
    "linf_at_goal": Figure(
        "largest voxel of the smallest change that reaches the goal",
        _at_goal("linf_native", "linf", "native"), ".4g", "native units", math.inf, _LENGTH,
    ),
    "l2_at_goal": Figure(
        "length of the smallest change that reaches the goal",
        _at_goal("l2_model", "l2", "model"), ".4g", "model units", math.inf, _LENGTH,
    ),
    "curve_area": Figure("mean target IoU over budgets from 0 to 10 % of the data range", _curve("area", "target_iou")),
    "curve_hit_area": Figure("mean hit rate over the same budgets", _curve("area", "hit_rate")),
    "transfer_target_iou": Figure(
        "target IoU of the other model that is fooled most", _highest("transfer", "a second --model")
    ),
    "survival_target_iou": Figure(
        "target IoU after the transform that the attack survives best", _highest("survival", "--transform")
    ),
}  # fmt: skip
"""Everything that gates and statistics know, by the name that reports use."""


def statistics_of(cases: Sequence[Case]) -> dict[str, Any]:
    """Counts of cases, and of each figure that was asked for its statistics over the cases that have it.

    ci95: of the mean, percentile bootstrap over cases (Efron 1979), 2000 resamples with a fixed seed; None for fewer
    than 2 cases.
    """
    done = [case for case in cases if case["status"] == "ok"]
    figures = {}
    for name, figure in FIGURES.items():
        entries = [figure.pick(case) for case in done]
        values = [float(entry["value"]) for entry in entries if entry["value"] is not None]
        reasons = sorted({str(entry["reason"]) for entry in entries if entry["value"] is None})
        if not values and all(reason.startswith("needs ") for reason in reasons):
            continue
        figures[name] = {"n": len(values), "undefined": len(entries) - len(values), "reasons": reasons}
        figures[name] |= _summary(values)
    return {
        "cases": len(cases),
        "ok": len(done),
        "failed": len(cases) - len(done),
        "goal_reached": sum(case["goal"]["reached"] for case in done),
        "figures": figures,
    }


def summary_of(values: Sequence[float | None]) -> dict[str, Any]:
    """Statistics of those that are defined, with their number `n`; see `statistics_of`."""
    known = [float(value) for value in values if value is not None]
    return {"n": len(known), **_summary(known)}


def _summary(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return dict.fromkeys(("mean", "median", "min", "p5", "p95", "max", "ci95"))
    ordered = sorted(values)
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "min": ordered[0],
        "p5": _quantile(ordered, 0.05),
        "p95": _quantile(ordered, 0.95),
        "max": ordered[-1],
        "ci95": _bootstrap(values),
    }


def _bootstrap(values: Sequence[float], resamples: int = 2000) -> list[float] | None:
    import numpy as np

    if len(values) < 2:
        return None
    drawn = np.random.default_rng(0).choice(np.asarray(values), (resamples, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return [float(low), float(high)]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest cases, linear; beside an infinite one, the one further out."""
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    if low == high or not (math.isfinite(low) and math.isfinite(high)):
        return high if share > 0.5 else low
    return low + (high - low) * (place - math.floor(place))


# --- gates --------------------------------------------------------------------------------------------------------

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


def judge(gate: Gate, cases: Sequence[Case], *, untested: Callable[[Case], str | None]) -> dict[str, Any]:
    """Whether a gate holds; see `gates` in `evaluation.schema.json`.

    untested: why a case that was measured proves nothing all the same (its files were changed since, ...).
    """
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
        "cases": [_per_case(gate, case, untested) for case in cases],
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


def _per_case(gate: Gate, case: Case, untested: Callable[[Case], str | None]) -> dict[str, Any]:
    """value: None also where the goal was not reached, which is an answer; problem: why there is none."""
    if case["status"] != "ok":
        return {"case_id": case["case_id"], "value": None, "status": "error", "problem": case["error"]["message"]}
    figure = FIGURES[gate.figure]
    entry = figure.pick(case)
    value = None if entry["value"] is None else float(entry["value"])
    problem = untested(case)
    unreached = figure.beyond is not None and entry.get("reason") == "goal_not_reached"
    if value is not None and not math.isfinite(value):
        value, problem = None, problem or f"{gate.figure} is not a number"
    if problem is None and value is None and not unreached:
        problem = f"{gate.figure} is undefined: {str(entry['reason']).replace('_', ' ')}"
    known = figure.beyond if value is None else value
    trips = problem is not None or (known is not None and _HOLDS[gate.operator](known, gate.threshold))
    return {"case_id": case["case_id"], "value": value, "status": "fail" if trips else "pass", "problem": problem}


def _aggregated(gate: Gate, ordered: Sequence[float]) -> float:
    """NaN where cases that never reached the goal leave a mean or a middle unknown."""
    upwards = gate.operator.startswith(">")
    if gate.aggregate == "worst":
        return ordered[-1] if upwards else ordered[0]
    if gate.aggregate == "p95":
        return _quantile(ordered, 0.95 if upwards else 0.05)
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


def shown(figure: Figure, value: float) -> str:
    """A value of a figure as people read it, with its unit."""
    return f"{value:{figure.form}}{' ' + figure.unit if figure.unit else ''}"


def _first(what: str, entries: Sequence[Mapping[str, Any]], key: str) -> str:
    more = f" (and {len(entries) - 1} more)" if len(entries) > 1 else ""
    return f"{what}: {entries[0]['case_id']}: {entries[0][key]}{more}"
