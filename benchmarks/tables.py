"""From benchmark.json and the JSON files beside it to benchmark.md and benchmark.png, without running anything.

    python benchmarks/tables.py [--out docs]

Those are best_known.json, survival.json (`survival.py`) and visibility.json (`visible.py`).

Every sentence about a number is computed from it, so that a page never says more than its run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import known
from figure import picture
from results import (
    COMPARED,
    METRICS,
    RULES,
    Pair,
    Results,
    Row,
    compare,
    gains,
    geometric,
    lengths,
    mean_of,
    number,
    percent,
    share,
    table,
)
from sources import is_volume
from survived import survival
from visible_section import visibility

AT_GOAL = "mafl at the goal"
RIVALS = ("adv-lib PDGD", "adv-lib PDPGD", "adv-lib ALMA-prox", "pdgd")
ON_TIME = "t1_brainmask_128:eroded8mm"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    write(parser.parse_args().out)


def write(folder: Path) -> None:
    """benchmark.md and benchmark.png beside the JSON files of a folder."""
    document = json.loads((folder / "benchmark.json").read_text())
    text = markdown(document, known.read(folder), known.sources(folder))
    for name, section in (("survival.json", survival), ("visibility.json", visibility)):
        if (folder / name).is_file():
            text = f"{text.rstrip()}\n\n{section(json.loads((folder / name).read_text())).rstrip()}\n"
    (folder / "benchmark.md").write_text(text)
    picture(document, folder / "benchmark.png")


def markdown(document: dict[str, Any], best: known.Lengths, runs: dict[str, list[str]]) -> str:
    results = Results(document)
    sections = [
        _introduction(document),
        _goals(results, best),
        _shortest(results, best, runs),
        _estimates(results, best),
        *(_against_asma(results, method) for method in ("mafl", "mafl-paper")),
        _against_released(results, document),
        _details(results),
        _methods(results),
        _measured(document),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(document: dict[str, Any]) -> str:
    machine, command = document["machine"], document["command"]
    partly = "--methods" in command or "--cases" in command
    kept = "; what it does not name is of earlier runs of the same script" if partly else ""
    return f"""# Benchmark

How small a change does each attack need, within how many passes through the network? {len(document["cases"])} pairs of
a scan with a target, in 2-D and 3-D, and networks of different authors. What the words mean is at the end.

Made by `{command}`{kept}
(torch {machine["torch"]}, Python {machine["python"]}, {machine["processor"]} CPU, {machine["processes"]} \
processes of {machine["threads"]} thread). The numbers are in `benchmark.json`; `python benchmarks/tables.py` \
makes this page again.

![IoU against L2](benchmark.png)"""


# --- goals --------------------------------------------------------------------------------------------------


def _goals(results: Results, best: known.Lengths) -> str:
    """What we want to reach, and whether the numbers say so."""
    lines = []
    for passes, middle, worst in ((50, 1.15, 1.35), (150, 1.03, 1.10)):
        rows = [row for row in results.group(AT_GOAL, passes, results.cases) if row["case"] in best]
        ratios = [value for row in rows if (value := known.ratio(row, best, results.goal)) is not None]
        for what, limit, value in (
            ("median", middle, median(ratios) if ratios else None),
            ("largest", worst, max(ratios, default=None)),
        ):
            lines.append([f"L2 over the shortest known, {passes} passes: {what} ≤ {limit}", _at_most(value, limit, 3)])
        if rows:
            met = share([known.at_goal(min(row["scores"]), results.goal) for row in rows])
            text = f"pairs at the goal within {passes} passes ≥ 95 %"
            lines.append([text, _judged(met, (met or 0) >= 0.95, percent(met))])
    for passes, limit in ((50, 60), (150, 48)):
        row = results.one(ON_TIME, AT_GOAL, passes)
        if row:
            shown = f"{number(row['l2'], 1)} at IoU {number(row['iou'], 4)}"
            ok = row["l2"] <= limit and row["iou"] >= results.goal
            lines.append([f"{ON_TIME}, {passes} passes: L2 ≤ {limit} at IoU ≥ 0.99", _judged(row["l2"], ok, shown)])
    for method, limit in (("mafl", 0.95), ("mafl-paper", 0.8)):
        pairs = results.pairs(method, 150, RULES[0])
        least = min((_better(metric, pairs) for metric in METRICS), default=0) if pairs else None
        text = f"{method} better than the best ASMA in each of six metrics, 150 passes: pairs ≥ {percent(limit)}"
        lines.append([text, _judged(least, (least or 0) >= limit, f"{percent(least)} in the worst metric")])
    ratio = mean_of(lengths(results.pairs("mafl", 150, RULES[0]), "l2"))
    lines.append(["mean L2 ratio to the best ASMA, 150 passes ≤ 0.6", _at_most(ratio, 0.6, 3)])
    for method in RIVALS:
        runs = [passes for name, passes in _runs(results) if name == method]
        for passes in runs or [150]:
            ratio = mean_of(lengths(results.matched(method, passes), "l2"))
            lines.append([f"mean L2 ratio to {method} at its own score, {passes} passes ≤ 1", _at_most(ratio, 1.0, 3)])
    return f"## In short\n\n{table(['goal', 'found'], lines)}"


def _at_most(value: float | None, limit: float, digits: int) -> str:
    return _judged(value, value is not None and value <= limit, number(value, digits))


def _judged(value: float | None, reached: bool, shown: str) -> str:
    return "not run" if value is None else f"{shown} {'PASS' if reached else '**MISS**'}"


def _better(metric: str, pairs: Sequence[Pair]) -> float:
    return share([compare(metric, *pair) > 0 for pair in pairs]) or 0.0


# --- the shortest change known ------------------------------------------------------------------------------


def _shortest(results: Results, best: known.Lengths, runs: dict[str, list[str]]) -> str:
    cases = [case for case in results.cases if case in best]
    parts = [
        f"""## L2 over the shortest change known

A pair's ratio is the geometric mean over its slices. Median and largest are over the pairs whose slices are all at the
goal ({results.goal:g}). ξ counts all slices: 1 for the shortest known each time, 0 for twice as much or a missed goal.
`{AT_GOAL}` is mafl with `--aim {results.goal:g}`; by default it aims at every voxel. ASMA has the best of its step
sizes for each pair."""
    ]
    for heading, some in (
        ("Slices", [case for case in cases if not is_volume(case)]),
        ("Volumes", [case for case in cases if is_volume(case)]),
    ):
        lines = [
            _closeness(method, passes, rows, best, results.goal)
            for method, passes in _runs(results)
            if (rows := results.group(method, passes, some))
        ]
        if lines:
            head = ["method", "passes", "pairs", "at the goal", "score", "median", "largest", "ξ", "within 5 %"]
            parts.append(f"### {heading}\n\n{table([*head, 'Linf', 'PSNR dB'], lines)}")
    budgets = [passes for passes in results.passes if results.find(method=AT_GOAL, passes=passes)]
    head = ["pair", "shortest known", *(str(passes) for passes in budgets), "passes to within 5 %", "shortest is from"]
    lines = [_approach(results, case, budgets, best, runs) for case in cases if results.find(case=case, method=AT_GOAL)]
    parts.append(f"### {AT_GOAL}, pair by pair\n\nA score stands where the goal was missed.\n\n{table(head, lines)}")
    return "\n\n".join(parts)


EXCESSES = (0.02, 0.05, 0.1, 0.2)
COSINES = (0.99, 0.98, 0.95, 0.9)
"""Edges of the histograms of the search's own estimate."""


def _estimates(results: Results, best: known.Lengths) -> str:
    """The excess that the search states, over all slices and volumes, beside what is known of the shortest change."""
    excesses, cosines, beside = [], [], []
    for passes in results.passes:
        rows = [row for row in results.group(AT_GOAL, passes, results.cases) if "excess" in row]
        pairs = [pair for row in rows for pair in zip(row["excess"], row["kkt_cosine"], strict=True)]
        if not pairs:
            continue
        stated = [excess for excess, _ in pairs if excess is not None]
        excesses.append([str(passes), *_histogram(stated, EXCESSES, len(pairs), up=True)])
        cosines.append(
            [str(passes), *_histogram([c for _, c in pairs if c is not None], COSINES, len(pairs), up=False)]
        )
        errors = [
            excess - (ratio - 1)
            for row in rows
            if row["case"] in best
            for excess, ratio in zip(row["excess"], known.ratios(row, best, results.goal), strict=True)
            if excess is not None and ratio is not None
        ]
        if errors:
            within = sum(abs(error) <= 0.05 for error in errors)
            cells = (100 * median(errors), 100 * min(errors), 100 * max(errors))
            beside.append([str(passes), str(len(errors)), *(number(cell, 1, sign=True) for cell in cells), str(within)])
    if not excesses:
        return ""
    less = [f"≤ {100 * edge:g} %" for edge in EXCESSES]
    more = [f"≥ {edge:g}" for edge in COSINES]
    head = ["passes", "compared", "median", "least", "most", "within 5 points"]
    return f"""## How far from the best, by its own estimate

What `{AT_GOAL}` says of each slice and volume: the excess of its change over the local optimum, and the KKT cosine
([method.md](method.md)). None: no estimate, which is so where the bound is longer than the change, or nothing was
found.

{table(["excess, passes", *less, "above", "none"], excesses)}

{table(["KKT cosine, passes", *more, "below", "none"], cosines)}

The stated excess minus what is known, L2 over the shortest change known minus 1, in percentage points, where the goal
is reached. The shortest known may lie elsewhere, and need not be a minimum.

{table(head, beside)}"""


def _histogram(values: Sequence[float], edges: Sequence[float], count: int, *, up: bool) -> list[str]:
    """How many values fall between the edges, beyond the last one, and how many of `count` are missing."""
    rank = [sum(value > edge if up else value < edge for edge in edges) for value in values]
    return [*(str(rank.count(place)) for place in range(len(edges) + 1)), str(count - len(values))]


def _runs(results: Results) -> list[tuple[str, int]]:
    """Methods with their passes, mafl first, as they are in the plan."""
    order = dict.fromkeys([AT_GOAL, "mafl", "mafl-paper", "asma", *(row["method"] for row in results.rows)])
    counts = {
        method: sorted({row["passes"] for row in results.find(method=method) if row.get("goal") is None})
        for method in order
        if not method.startswith("mafl as")
    }
    return [(method, passes) for method, some in counts.items() for passes in some]


def _closeness(method: str, passes: int, rows: Sequence[Row], best: known.Lengths, goal: float) -> list[str]:
    ratios = [value for row in rows if (value := known.ratio(row, best, goal)) is not None]
    reached = sum(known.at_goal(score, goal) for row in rows for score in row["scores"])
    near = sum(value <= known.NEAR for value in ratios)
    return [
        method,
        str(passes),
        str(len(rows)),
        f"{reached} / {sum(row['samples'] for row in rows)}",
        number(mean_of([row["score"] for row in rows]), 4),
        number(median(ratios) if ratios else None, 3),
        number(max(ratios, default=None), 3),
        number(known.optimality(rows, best, goal), 3),
        f"{near} / {len(rows)}",
        number(mean_of([row["linf"] for row in rows]), 3),
        number(mean_of([row["psnr"] for row in rows if row["psnr"] is not None]), 2),
    ]


def _approach(
    results: Results, case: str, budgets: Sequence[int], best: known.Lengths, runs: dict[str, list[str]]
) -> list[str]:
    """One pair: its ratio at each count of passes, and the first that comes close."""
    cells, first = [], "–"
    for passes in budgets:
        row = results.one(case, AT_GOAL, passes)
        ratio = known.ratio(row, best, results.goal) if row else None
        if ratio is not None and ratio <= known.NEAR and first == "–":
            first = str(passes)
        missed = f"({number(min(row['scores']), 4)})" if row else ""
        cells.append(missed if ratio is None else number(ratio, 3))
    shortest = ", ".join(number(length, 3) for length in best[case])
    return [case, shortest, *cells, first, "; ".join(dict.fromkeys(runs[case]))]


# --- other people's attacks ---------------------------------------------------------------------------------


def _against_asma(results: Results, method: str) -> str:
    parts = []
    for passes in COMPARED:
        pairs = results.pairs(method, passes, RULES[0])
        if pairs:
            parts.append(f"### {passes} passes ({len(pairs)} pairs)\n\n{_comparison(method, pairs)}")
            parts.append(_relations(results, method, passes))
    return "\n\n".join([f"## {method} against the best ASMA", *parts]) if parts else ""


def _comparison(method: str, pairs: Sequence[Pair]) -> str:
    def line(metric: str) -> list[str]:
        heading, digits, _ = METRICS[metric]
        means = (mean_of([row[metric] for row in side if row[metric] is not None]) for side in zip(*pairs, strict=True))
        found = [compare(metric, *pair) for pair in pairs]
        counts = [str(found.count(value)) for value in (1, 0, -1)]
        return [heading, *(number(mean, digits) for mean in means), *counts, percent(_better(metric, pairs))]

    return table(["mean", method, "ASMA", "better", "tie", "worse", "better in"], map(line, METRICS))


def _relations(results: Results, method: str, passes: int) -> str:
    """How much smaller the change is, by both rules for ASMA's image."""
    lines = []
    for rule in RULES:
        pairs = results.pairs(method, passes, rule)
        l2, linf = lengths(pairs, "l2"), lengths(pairs, "linf")
        scores = (mean_of([row["score"] for row in side]) for side in zip(*pairs, strict=True))
        sizes = (number(mean(values), 3) for values in (l2, linf) for mean in (mean_of, geometric))
        gain = number(mean_of(gains(pairs)), 2, sign=True)
        lines.append([rule, *sizes, gain, *(number(score, 4) for score in scores)])
    taus = {row["tau"] for row in results.rows if row["method"] == "asma"}
    edge = sum(theirs["tau"] in (min(taus), max(taus)) for _, theirs in results.pairs(method, passes, RULES[0]))
    head = [f"{method} / ASMA, its image by", "L2", "geometric", "Linf", "geometric", "PSNR dB", "score", "of ASMA"]
    text = f"{table(head, lines)}\n\nThe step size chosen for ASMA is the smallest or largest one in {edge} pairs."
    if method == "mafl":
        outdone = [found for case in results.cases if (found := results.outdone(case, passes)) is not None]
        text += f" In {outdone.count(False)} of {len(outdone)} pairs no ASMA run has both a score and an L2 as good."
    return text


def _against_released(results: Results, document: dict[str, Any]) -> str:
    """Peers that look for the shortest change, each with mafl at the score that it reached."""
    parts = []
    for method, passes in _runs(results):
        pairs = results.matched(method, passes)
        if method not in RIVALS or not pairs:
            continue
        lines = [
            [
                theirs["case"],
                *(number(row["score"], 4) for row in (theirs, ours)),
                *(number(row[metric], 3) for metric in ("l2", "linf") for row in (theirs, ours)),
                number(ours["l2"] / theirs["l2"] if theirs["l2"] else None, 3),
            ]
            for ours, theirs in pairs
        ]
        ratios = lengths(pairs, "l2")
        head = ["pair", f"score {method}", "mafl", "L2", "mafl", "Linf", "mafl", "L2 ratio"]
        parts.append(
            f"### {method}, {passes} passes each\n\n{table(head, lines)}\n\n"
            f"Mean L2 ratio {number(mean_of(ratios), 3)} (geometric {number(geometric(ratios), 3)}), "
            f"Linf {number(mean_of(lengths(pairs, 'linf')), 3)}; L2 not larger in "
            f"{sum(ratio <= 1 for ratio in ratios)} of {len(ratios)} pairs."
        )
    library = document.get("adv-lib")
    how = (
        f"adv-lib {library} is run as its authors release it; `benchmarks/released.py` says what is put around it. "
        "`pdgd` is our own PDGD (`peers.py`), judged by mafl's goal." if library
        else "adv-lib was not installed (`pip install --no-deps adv-lib`)."
    )  # fmt: skip
    text = f"""## At the score of attacks that look for the shortest change

Each attack keeps the smallest image at its goal, else the one closest to it. mafl is then given the score of that
image as its goal, slice by slice, and as many passes. {how} ALMA-prox minimises Linf, the others L2. DDN and FMN of
adv-lib take one label for an image and do not run on masks."""
    return "\n\n".join([text, *parts])


def _details(results: Results) -> str:
    parts = ["## Pair by pair\n\nmafl / the best ASMA by the rule *best IoU*."]
    for passes in COMPARED:
        pairs = results.pairs("mafl", passes, RULES[0])
        if pairs:
            head = ["pair", "score", *(heading for heading, *_ in METRICS.values()), "τ"]
            parts.append(f"### {passes} passes\n\n{table(head, (_detail(*pair) for pair in pairs))}")
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _detail(ours: Row, theirs: Row) -> list[str]:
    digits = {"score": 4, **{metric: count for metric, (_, count, _) in METRICS.items()}}
    cells = (" / ".join(number(row[key], count) for row in (ours, theirs)) for key, count in digits.items())
    return [ours["case"], *cells, f"{theirs['tau']:g}"]


def _methods(results: Results) -> str:
    """Every method on the slices."""
    cases = [case for case in results.cases if not is_volume(case)]
    groups = {
        f"{method}, {passes}": rows
        for method, passes in _runs(results)
        if passes in COMPARED and (rows := results.group(method, passes, cases))
    }
    head = ["method, passes", "pairs", "score", *(heading for heading, *_ in METRICS.values())]
    head += ["hit rate", "low frequency", "at the goal", "forward", "backward", "seconds"]
    lines: Iterator[list[str]] = (_summary(name, rows) for name, rows in groups.items())
    return f"""## All methods on the slices

Means over the pairs. The presets with an ε-ball have it at their own default size. Low frequency: share of the \
energy of the change in its Haar low-pass band. At the goal: slices. Passes and seconds: for each of them.

{table(head, lines)}"""


def _summary(name: str, rows: Sequence[Row]) -> list[str]:
    samples = sum(row["samples"] for row in rows)

    def each(what: str) -> float:
        total: float = sum(row[what] for row in rows)
        return total / samples

    return [
        name,
        str(len(rows)),
        number(mean_of([row["score"] for row in rows]), 4),
        *(
            number(mean_of([row[metric] for row in rows if row[metric] is not None]), digits)
            for metric, (_, digits, _) in METRICS.items()
        ),
        number(mean_of([row["hit"] for row in rows if row["hit"] is not None]), 4),
        number(mean_of([row["low_frequency"] for row in rows]), 3),
        f"{sum(row['reached'] for row in rows)} / {samples}",
        *(number(each(what), 1) for what in ("forward", "backward", "seconds")),
    ]


def _measured(document: dict[str, Any]) -> str:
    taus = sorted({row["tau"] for row in document["rows"] if row["method"] == "asma"})
    skipped = "; ".join(f"{what}: `{how}`" for what, how in document.get("skipped", {}).items())
    return f"""## How it is measured

**Problems.** Two or three slices of a 2-D case, a box of a 3-D one (`benchmarks/sources.py`, `cases.py`). Most networks
see the box at once; that of `brats3d_windows` sees it through windows of 64 voxels, which overlap by half. In
`t1_gwm_headbox:swap_sphere` two classes change places. `t1_brainmask_128` and `deepbet_mask` are the two networks that
the package deepbet (MIT) publishes. The scans other than the sample are not part of the repository.\
{f" Not run here: {skipped}." if skipped else ""}

**Passes.** One forward and one backward pass through the network for each slice or volume; the forward passes of
mafl's scale search count as one each, and its feature term takes a second backward pass once. What was really used is
in the table of all methods. `benchmarks/planned.py` says what is run for how long: volumes get fewer passes and
methods, for a pass costs as much as through ten to a hundred slices.

**The shortest change known** of a slice or volume is the smallest L2 at the goal over all runs of this benchmark, and
over longer ones and earlier searches (`best_known.json`). It is not a proven minimum: what is better than all known
becomes the shortest known.

**ξ** is AttackBench's local optimality (Cinà et al., 2024), 1 − (A − A*) / (A₀ d − A*). A is the area under the share
of slices and volumes that hold out against a change of a given size, A* that of the shortest changes known, A₀ the
share that holds out without any. Sizes are taken over the shortest known of each, for different scans share no scale.
So A* = 1 and A₀ = 1; d = {known.MOST:g}; one that misses the goal holds out up to d.

**ASMA** is written anew in `benchmarks/peers.py`: per sample, inside the range of the scan, β = 10 τ. For every pair
and budget the best of {len(taus)} step sizes (τ {", ".join(f"{tau:g}" for tau in taus)}) is taken: the one with the
highest score, then with the smallest L2. Nobody could choose better without knowing the result. Two rules say which
image of a run counts: *best IoU*, the one with the highest score, and *at goal*, the smallest that reaches mafl's own
goal ({document["goal"]:g}), else the one with the highest score.

**Metrics.** Over all slices of a pair together, in model units. Score: the lowest of IoU, hit rate (share of \
the voxels that had to change and did) and removal of what must vanish, as in the goal of mafl. IoU is the hit \
rate where the target has no foreground. PSNR and SSIM: mean over channels, SSIM also over slices; range p99.9 − \
p0.1. A tie is a difference that the printed digits do not show."""


if __name__ == "__main__":
    main()
