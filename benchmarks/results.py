"""What the benchmark found, and the arithmetic of its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, inf, log
from typing import Any

Row = dict[str, Any]
Pair = tuple[Row, Row]

# name: (heading, digits, whether more is better). Two values that look alike with these digits are a tie.
METRICS = {
    "iou": ("IoU", 4, True),
    "accuracy": ("accuracy", 5, True),
    "l2": ("L2", 3, False),
    "linf": ("Linf", 3, False),
    "psnr": ("PSNR dB", 2, True),
    "ssim": ("SSIM", 4, True),
}
RULES = ("best IoU", "at goal")
PICTURED = (
    "sample:swap",
    "flair2d_pat0001/slab12:shifted20",
    "brats2d_pat0002/slab12:dilated",
    "brats3d_pat0003/crop96:shifted20",
)
COMPARED = (50, 150)
"""Passes at which methods are compared."""


def pictured(names: Sequence[str]) -> list[str]:
    """The problems for the picture: four chosen ones if they are there, else the first."""
    return [name for name in PICTURED if name in names] or list(names[:4])


class Results:
    """The rows of a document, by case and method. What was not run, or failed, is missing."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.cases: list[str] = document["cases"]
        self.passes: list[int] = document["passes"]
        self.goal: float = document["goal"]
        self.rows: list[Row] = document["rows"]

    def find(self, **wanted: Any) -> list[Row]:
        return [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]

    def one(self, case: str, method: str, passes: int) -> Row | None:
        return next(iter(self.find(case=case, method=method, passes=passes, goal=None)), None)

    def asma(self, case: str, passes: int, rule: str) -> Row | None:
        """ASMA with the step size that serves it best: the highest score, then the smallest L2.

        With the rule "at goal", a score above the goal is worth no more than the goal.
        """
        top = self.goal if rule == "at goal" else inf

        def quality(row: Row) -> tuple[float, float]:
            return round(sum(min(score, top) for score in row["scores"]) / len(row["scores"]), 4), -row["l2"]

        return max(self.find(case=case, method="asma", passes=passes, rule=rule), key=quality, default=None)

    def pairs(self, method: str, passes: int, rule: str) -> list[Pair]:
        """A method and the best ASMA, for every case that has both."""
        both = ((self.one(case, method, passes), self.asma(case, passes, rule)) for case in self.cases)
        return [(ours, theirs) for ours, theirs in both if ours and theirs]

    def outdone(self, case: str, passes: int) -> bool | None:
        """Whether any ASMA run, with any step size and rule, is at least as good in both score and L2."""
        ours = self.one(case, "mafl", passes)
        theirs = self.find(case=case, method="asma", passes=passes)
        if ours is None or not theirs:
            return None
        return any(row["score"] >= ours["score"] and row["l2"] <= ours["l2"] for row in theirs)

    def matched(self, method: str, passes: int) -> list[Pair]:
        """mafl at the score of a peer, and the peer, with as many passes."""
        both = (
            (self.find(case=case, method=f"mafl as {method}", passes=passes), self.one(case, method, passes))
            for case in self.cases
        )
        return [(ours[0], theirs) for ours, theirs in both if ours and theirs]

    def group(self, method: str, passes: int, cases: Iterable[str]) -> list[Row]:
        """The rows of a method, of ASMA the best ones at the goal."""
        rows = (
            self.asma(case, passes, "at goal") if method == "asma" else self.one(case, method, passes) for case in cases
        )
        return [row for row in rows if row]


def compare(metric: str, ours: Row, theirs: Row) -> int:
    """1: ours is better, 0: they look alike, -1: ours is worse."""
    _, digits, more = METRICS[metric]
    a, b = (round(_value(row, metric), digits) for row in (ours, theirs))
    return (a > b) - (a < b) if more else (a < b) - (a > b)


def _value(row: Row, metric: str) -> float:
    """An image that is equal to the clean one has no PSNR: nothing can be better."""
    value = row[metric]
    return inf if value is None else float(value)


def mean_of(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def geometric(values: Sequence[float]) -> float | None:
    return exp(sum(map(log, values)) / len(values)) if values and min(values) > 0 else None


def share(yes: Sequence[bool]) -> float | None:
    return mean_of([float(one) for one in yes])


def lengths(pairs: Sequence[Pair], metric: str) -> list[float]:
    """Ours over theirs."""
    return [ours[metric] / theirs[metric] for ours, theirs in pairs if theirs[metric] > 0]


def gains(pairs: Sequence[Pair]) -> list[float]:
    return [a["psnr"] - b["psnr"] for a, b in pairs if a["psnr"] is not None and b["psnr"] is not None]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [list(head), ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
