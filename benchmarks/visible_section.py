"""The section on visibility, from what `visible.py` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from results import Row, geometric, mean_of, number, percent, table

from mafl_cli.measure.records import MOST_COMPRESSED

_GOAL = 0.99


def visibility(document: dict[str, Any]) -> str:
    """The section on visibility, from what `visible.py` wrote."""
    other, parts = document["minimise"], []
    rows: list[Row] = document["rows"]
    for heading, whole in (("Slices", False), ("Volumes", True)):
        chosen = [row for row in rows if row["volume"] == whole]
        if chosen:
            parts.append(f"### {heading}: {other} in the place of L2\n\n{in_short(chosen, other)}")
            parts.append(_each(chosen, other))
    return "\n\n".join(
        [
            f"""## Visibility

What `--minimise {other}` buys, and what it costs, beside the default, with the same goal and as many passes. Each
slice or volume is looked at where it is most visible; [visibility.md](visibility.md) says what d' and the compression
equivalent are. A pair's numbers are those of the default, and of `--minimise {other}`.

Made by `{document["command"]}`
(torch {document["torch"]}, a CPU, one thread). The numbers are in `visibility.json`.""",
            *parts,
        ]
    )


def in_short(rows: Sequence[Row], other: str) -> str:
    """A table of what is so on average, and in how many slices or volumes."""
    pairs = [(row["l2"], row[other]) for row in rows]
    n = len(pairs)
    drops = [1 - two["d_prime"] / one["d_prime"] for one, two in pairs if one["d_prime"] and two["d_prime"] is not None]
    beyond = sum(one["equivalent"] == two["equivalent"] == MOST_COMPRESSED for one, two in pairs)
    lower = sum(two["equivalent"] < one["equivalent"] for one, two in pairs)
    higher = sum(two["equivalent"] > one["equivalent"] for one, two in pairs)
    least = sum(two["equivalent_haarpsi"] < one["equivalent_haarpsi"] for one, two in pairs)
    reached = [sum(pair[side]["score"] >= _GOAL for pair in pairs) for side in (0, 1)]

    def times(key: str, digits: int = 2) -> str:
        return f"× {number(geometric([two[key] / one[key] for one, two in pairs]), digits)}"

    seconds = [sum(pair[side]["seconds"] for pair in pairs) for side in (0, 1)]
    lines = [
        ["at the goal", f"{reached[1]} of {n}, with L2 {reached[0]}"],
        ["d' on average ≥ 30 % lower", _judged(mean_of(drops), 0.3)],
        ["d', median and least", f"{percent(median(drops))}, {percent(min(drops))} lower" if drops else "–"],
        ["compression equivalent lower in ≥ 90 %", _judged(lower / n, 0.9)],
        [
            "compression equivalent",
            f"lower in {lower} of {n}, beyond {MOST_COMPRESSED:g}:1 both times in {beyond}, higher in {higher}; "
            + times("equivalent"),
        ],
        ["the same by HaarPSI alone", f"lower in {least} of {n}; {times('equivalent_haarpsi')}"],
        ["L2, Linf", f"{times('l2')}, {times('linf')}"],
        ["time", f"× {seconds[1] / seconds[0]:.2f}"],
    ]
    return table([f"minimise {other}", "found"], lines)


def _judged(value: float | None, least: float) -> str:
    return "–" if value is None else f"{percent(value)} {'PASS' if value >= least else '**MISS**'}"


def _each(rows: Sequence[Row], other: str) -> str:
    lines = []
    for row in rows:
        one, two = row["l2"], row[other]
        lines.append(
            [
                row["case"] + ("" if row["volume"] else f", {row['slice']}"),
                *(f"{number(one[key], digits)} → {number(two[key], digits)}" for key, digits in _SHOWN.items()),
            ]
        )
    return table(["pair", "score", "L2", "d'", "equivalent", "by HaarPSI", "by d'"], lines)


_SHOWN = {"score": 4, "l2": 2, "d_prime": 1, "equivalent": 1, "equivalent_haarpsi": 1, "equivalent_d_prime": 1}
