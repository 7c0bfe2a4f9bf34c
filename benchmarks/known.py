"""The shortest change known for each slice or volume that reaches the goal, and what methods need beside it.

best_known.json keeps it over all runs of the benchmark, so that a later, longer run can only make it shorter. A value
is a length alone: it comes from the run that is named beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Lengths = dict[str, list[float]]

MOST = 2.0
"""Lengths over the shortest known from which on a change counts like none, in `optimality`."""
NEAR = 1.05
FILE = "best_known.json"


def read(folder: Path) -> Lengths:
    """Model units, by problem, for each sample."""
    entries = _entries(folder)
    return {name: [entry["l2"] for entry in entries[name]] for name in entries}


def sources(folder: Path) -> dict[str, list[str]]:
    """Which runs they come from."""
    entries = _entries(folder)
    return {name: [entry["run"] for entry in entries[name]] for name in entries}


def improve(folder: Path, rows: Sequence[Row], goal: float) -> None:
    """Take over what the rows have that is shorter and at the goal."""
    entries = _entries(folder)
    for row in rows:
        if row.get("goal") is not None or row["method"].startswith("mafl as"):
            continue
        run = f"{row['method']}, {row['passes']} passes"
        best = entries.setdefault(row["case"], [{"l2": None, "run": ""} for _ in row["l2s"]])
        for entry, length, score in zip(best, row["l2s"], row["scores"], strict=True):
            if at_goal(score, goal) and length > 0 and (entry["l2"] is None or length < entry["l2"]):
                entry.update(l2=length, run=run)
    whole = {name: best for name, best in entries.items() if all(entry["l2"] is not None for entry in best)}
    lines = ",\n ".join(f"{json.dumps(name)}: {json.dumps(best)}" for name, best in whole.items())
    (folder / FILE).write_text(f"{{\n {lines}\n}}\n")


def ratios(row: Row, best: Lengths, goal: float) -> list[float | None]:
    """L2 over the shortest known of each sample; None for one that is not at the goal."""
    return [
        length / shortest if at_goal(score, goal) else None
        for length, shortest, score in zip(row["l2s"], best[row["case"]], row["scores"], strict=True)
    ]


def ratio(row: Row, best: Lengths, goal: float) -> float | None:
    """The geometric mean over the samples of a pair; None where one of them is not at the goal."""
    each = ratios(row, best, goal)
    given = [value for value in each if value is not None]
    return exp(sum(map(log, given)) / len(given)) if len(given) == len(each) else None


def optimality(rows: Sequence[Row], best: Lengths, goal: float) -> float:
    """AttackBench's local optimality (Cinà et al., 2024) over the samples of all rows, from 0 to 1.

    There: 1 - (A - A_best) / (A_0 d_max - A_best), A the area under the share of samples that hold out against the size
    of the change, A_0 that share without any. Samples of different scans and models are no population with one scale:
    lengths are those over the shortest known of the sample, so A_best = 1, with d_max = 2 and A_0 = 1. A sample that
    is not at the goal holds out up to d_max.
    """
    each = [value for row in rows for value in ratios(row, best, goal)]
    area = sum(MOST if value is None else min(value, MOST) for value in each) / len(each)
    return 1 - (area - 1) / (MOST - 1)


def at_goal(score: float, goal: float) -> bool:
    return score >= goal - 1e-6


def _entries(folder: Path) -> dict[str, list[dict[str, Any]]]:
    path = folder / FILE
    return json.loads(path.read_text()) if path.is_file() else {}
