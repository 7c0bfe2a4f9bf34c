"""From benchmark.json and survival.json to benchmark.md and benchmark.png, without running anything.

    python benchmarks/tables.py [--out docs]

Every sentence about a number is computed from it, so that a page never says more than its run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from math import exp, inf, log
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Pair = tuple[Row, Row]
Measure = Callable[[Sequence[Pair]], float | None]

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
CLOSE = 0.9
"""Score from which on ASMA counts as having come to the target: the change of a run that gave up is small."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    write(parser.parse_args().out)


def write(folder: Path) -> None:
    """benchmark.md and benchmark.png beside the benchmark.json of a folder, and the survival.json if there is one."""
    document = json.loads((folder / "benchmark.json").read_text())
    text, left = markdown(document), folder / "survival.json"
    if left.is_file():
        text += "\n" + survival(json.loads(left.read_text()))
    (folder / "benchmark.md").write_text(text)
    picture(document, folder / "benchmark.png")


def pictured(names: Sequence[str]) -> list[str]:
    """The problems for the picture: four chosen ones if they are there, else the first."""
    return [name for name in PICTURED if name in names] or list(names[:4])


# --- choosing rows ------------------------------------------------------------------------------------------


class Results:
    """The rows of a document, by case and method. What was not run, or failed, is missing."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.cases: list[str] = document["cases"]
        self.passes: list[int] = document["passes"]
        self.goal: float = document["goal"]
        self.rows: list[Row] = document["rows"]

    def find(self, **wanted: Any) -> list[Row]:
        return [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]

    def mafl(self, case: str, passes: int) -> Row | None:
        return next(iter(self.find(case=case, method="mafl", passes=passes, goal=None)), None)

    def asma(self, case: str, passes: int, rule: str) -> Row | None:
        """ASMA with the step size that serves it best: the highest score, then the smallest L2.

        With the rule "at goal", a score above the goal is worth no more than the goal.
        """
        top = self.goal if rule == "at goal" else inf

        def quality(row: Row) -> tuple[float, float]:
            return round(sum(min(score, top) for score in row["scores"]) / len(row["scores"]), 4), -row["l2"]

        return max(self.find(case=case, method="asma", passes=passes, rule=rule), key=quality, default=None)

    def pairs(self, passes: int, rule: str) -> list[Pair]:
        """mafl and the best ASMA, for every case that has both."""
        both = ((self.mafl(case, passes), self.asma(case, passes, rule)) for case in self.cases)
        return [(ours, theirs) for ours, theirs in both if ours and theirs]

    def outdone(self, case: str, passes: int) -> bool | None:
        """Whether any ASMA run, with any step size and rule, is at least as good in both score and L2."""
        ours = self.mafl(case, passes)
        theirs = self.find(case=case, method="asma", passes=passes)
        if ours is None or not theirs:
            return None
        return any(row["score"] >= ours["score"] and row["l2"] <= ours["l2"] for row in theirs)

    def matched(self) -> list[Pair]:
        """mafl at the score of PDGD, and PDGD."""
        both = (
            (self.find(case=case, method="mafl-as-pdgd"), self.find(case=case, method="pdgd")) for case in self.cases
        )
        return [(ours[0], theirs[0]) for ours, theirs in both if ours and theirs]


def compare(metric: str, ours: Row, theirs: Row) -> int:
    """1: ours is better, 0: they look alike, -1: ours is worse."""
    _, digits, more = METRICS[metric]
    a, b = (round(_value(row, metric), digits) for row in (ours, theirs))
    return (a > b) - (a < b) if more else (a < b) - (a > b)


def _value(row: Row, metric: str) -> float:
    """An image that is equal to the clean one has no PSNR: nothing can be better."""
    value = row[metric]
    return inf if value is None else float(value)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _geometric(values: Sequence[float]) -> float | None:
    return exp(sum(map(log, values)) / len(values)) if values and min(values) > 0 else None


def _ratios(pairs: Sequence[Pair], metric: str) -> list[float]:
    return [ours[metric] / theirs[metric] for ours, theirs in pairs if theirs[metric] > 0]


def _gains(pairs: Sequence[Pair]) -> list[float]:
    return [a["psnr"] - b["psnr"] for a, b in pairs if a["psnr"] is not None and b["psnr"] is not None]


def _close(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair[1]["score"] >= CLOSE]


def _share(yes: Sequence[bool]) -> float | None:
    return _mean([float(one) for one in yes])


# --- Markdown -----------------------------------------------------------------------------------------------


def markdown(document: dict[str, Any]) -> str:
    results = Results(document)
    sections = (_introduction(document), _headline(results), _goals(results), _details(results), _matched(results))
    return "\n\n".join([*sections, _methods(results)]) + "\n"


def _introduction(document: dict[str, Any]) -> str:
    machine = document["machine"]
    return f"""# Benchmark

Made by `{document["command"]}`
(torch {machine["torch"]}, Python {machine["python"]}, {machine["processor"]} CPU, {machine["processes"]} \
processes of {machine["threads"]} thread). The numbers are in `benchmark.json`; `python benchmarks/tables.py` \
makes this page again.

**Problems.** {len(document["cases"])} pairs of a scan with a model and a target: two or three slices of a 2-D \
case, a cube of a 3-D one (`benchmarks/cases.py`). The scans other than the sample are not part of the \
repository.

**Passes.** One forward and one backward pass through the network for each slice or volume; the forward passes of \
mafl's scale search count as one each, and its feature term takes a second backward pass until the goal is reached. \
The passes that were really used are in the last table.

**ASMA** is written anew in `benchmarks/peers.py`: per sample, inside the range of the scan, β = 10 τ. For every \
pair and budget the best of {_taus(document)} step sizes is taken, the one with the highest score, then with the \
smallest L2: nobody could choose better without knowing the result. Two rules say which image of a run counts: \
*best IoU*, the one with the highest score, and *at goal*, the smallest that reaches mafl's own goal \
({document["goal"]:g}), else the one with the highest score.

**Metrics.** Over all slices of a pair together, in model units. Score: the lowest of IoU, hit rate (share of \
the voxels that had to change and did) and removal of what must vanish, as in the goal of mafl. IoU is the hit \
rate where the target has no foreground. PSNR and SSIM: mean over channels, SSIM also over slices; range p99.9 − \
p0.1. A tie is a difference that the printed digits do not show.

![IoU against L2](benchmark.png)"""


def _taus(document: dict[str, Any]) -> str:
    taus = sorted({row["tau"] for row in document["rows"] if row["method"] == "asma"})
    return f"{len(taus)} (τ {', '.join(f'{tau:g}' for tau in taus)})"


def _headline(results: Results) -> str:
    parts = ["## mafl against the best ASMA"]
    for passes in results.passes[1:]:
        for rule in RULES:
            pairs = results.pairs(passes, rule)
            if pairs:
                parts.append(f"### {passes} passes, ASMA's image: {rule} ({len(pairs)} pairs)")
                parts.append(_comparison(pairs))
                parts.append(_relations(pairs, rule, results))
    return "\n\n".join(parts)


def _comparison(pairs: Sequence[Pair]) -> str:
    def line(metric: str) -> list[str]:
        heading, digits, _ = METRICS[metric]
        means = (_mean([row[metric] for row in side if row[metric] is not None]) for side in zip(*pairs, strict=True))
        results = [compare(metric, *pair) for pair in pairs]
        counts = [str(results.count(value)) for value in (1, 0, -1)]
        return [heading, *(_number(mean, digits) for mean in means), *counts, *_percents(results)]

    head = ["mean", "mafl", "ASMA", "mafl better", "tie", "worse", "better", "better or equal"]
    return _table(head, map(line, METRICS))


def _percents(results: Sequence[int]) -> list[str]:
    return [_percent(_share([result > 0 for result in results])), _percent(_share([result >= 0 for result in results]))]


def _relations(pairs: Sequence[Pair], rule: str, results: Results) -> str:
    close = _close(pairs)
    lines = []
    for what, some in (("all pairs", pairs), (f"pairs where the score of ASMA is at least {CLOSE}", close)):
        l2, linf = _ratios(some, "l2"), _ratios(some, "linf")
        lines.append(
            [
                f"{what} ({len(some)})",
                *(_number(mean(values), 3) for values in (l2, linf) for mean in (_mean, _geometric)),
                _number(_mean(_gains(some)), 2, sign=True),
                *(
                    _number(_mean([row["score"] for row in side]), 4)
                    for side in (list(zip(*some, strict=True)) or [(), ()])
                ),
            ]
        )
    taus = {row["tau"] for row in results.rows if row["method"] == "asma"}
    edge = sum(pair[1]["tau"] in (min(taus), max(taus)) for pair in pairs)
    head = ["mafl / ASMA", "L2", "geometric", "Linf", "geometric", "PSNR dB", "score mafl", "score ASMA"]
    return f"{_table(head, lines)}\n\nThe step size chosen for ASMA is the smallest or largest one in {edge} pairs."


def _goals(results: Results) -> str:
    """What we want to reach, and whether the numbers say so."""
    columns = [(passes, rule) for passes in results.passes[1:] for rule in RULES if results.pairs(passes, rule)]
    first = results.passes[0]
    early = [row for case in results.cases if (row := results.mafl(case, first))]
    matched = results.matched()
    sizes: list[tuple[str, Measure, Callable[[float], bool], int | str]] = [
        ("mean L2 ratio ≤ 0.65", lambda pairs: _mean(_ratios(pairs, "l2")), lambda value: value <= 0.65, 3),
        ("mean Linf ratio ≤ 0.55", lambda pairs: _mean(_ratios(pairs, "linf")), lambda value: value <= 0.55, 3),
        ("mean PSNR gain ≥ 3 dB", lambda pairs: _mean(_gains(pairs)), lambda value: value >= 3, 2),
    ]
    goals = [
        *sizes,
        *((f"{name}, where ASMA's score ≥ {CLOSE}", _of_close(value), ok, digits) for name, value, ok, digits in sizes),
    ]
    for metric, (heading, _, _) in METRICS.items():
        goals.append((f"{heading} better or equal in ≥ 90 % of pairs", _not_worse(metric), lambda x: x >= 0.9, "%"))
    lines = [
        [name, *(_judged(value(results.pairs(*column)), reached, digits) for column in columns)]
        for name, value, reached, digits in goals
    ]
    mean = _share([row["score"] >= 0.97 for row in early])
    worst = _share([min(row["scores"]) >= 0.97 for row in early])
    others = [
        [f"score ≥ 0.97 within {first} passes in ≥ 90 % of pairs", _judged(mean, lambda value: value >= 0.9, "%")],
        ["the same for every slice of the pair", _judged(worst, lambda value: value >= 0.9, "%")],
        *(
            [
                f"pairs in which no ASMA run of {passes} passes has score and L2 at least as good",
                _undefeated(results, passes),
            ]
            for passes in results.passes
        ),
        [
            "mean L2 ratio to PDGD at its own score ≤ 1",
            _judged(_mean(_ratios(matched, "l2")), lambda value: value <= 1, 3),
        ],
    ]
    head = ["against the best ASMA", *(f"{passes}, {rule}" for passes, rule in columns)]
    return f"## Goals\n\n{_table(head, lines)}\n\n{_table(['other', ''], others)}"


def _undefeated(results: Results, passes: int) -> str:
    outdone = [found for case in results.cases if (found := results.outdone(case, passes)) is not None]
    return f"{outdone.count(False)} / {len(outdone)}"


def _of_close(measure: Measure) -> Measure:
    return lambda pairs: measure(_close(pairs))


def _not_worse(metric: str) -> Measure:
    return lambda pairs: _share([compare(metric, *pair) >= 0 for pair in pairs])


def _judged(value: float | None, reached: Callable[[float], bool], digits: int | str) -> str:
    if value is None:
        return "not run"
    shown = _percent(value) if digits == "%" else _number(value, int(digits))
    return f"{shown} {'PASS' if reached(value) else '**MISS**'}"


def _details(results: Results) -> str:
    parts = ["## Pair by pair\n\nmafl / the best ASMA by the rule *best IoU*."]
    for passes in results.passes[1:]:
        pairs = results.pairs(passes, RULES[0])
        if pairs:
            head = ["pair", "score", *(heading for heading, *_ in METRICS.values()), "τ"]
            parts.append(f"### {passes} passes\n\n{_table(head, (_detail(*pair) for pair in pairs))}")
    return "\n\n".join(parts)


def _detail(ours: Row, theirs: Row) -> list[str]:
    digits = {"score": 4, **{metric: count for metric, (_, count, _) in METRICS.items()}}
    cells = (" / ".join(_number(row[key], count) for row in (ours, theirs)) for key, count in digits.items())
    return [ours["case"], *cells, f"{theirs['tau']:g}"]


def _matched(results: Results) -> str:
    pairs = results.matched()
    if not pairs:
        return "## mafl against PDGD\n\nNot run."
    lines = [
        [
            theirs["case"],
            *(_number(row["score"], 4) for row in (theirs, ours)),
            *(_number(row[metric], 3) for metric in ("l2", "linf") for row in (theirs, ours)),
            _number(ours["l2"] / theirs["l2"] if theirs["l2"] else None, 3),
        ]
        for ours, theirs in pairs
    ]
    ratios = _ratios(pairs, "l2")
    fewer = sum(ratio <= 1 for ratio in ratios)
    means = f"Mean L2 ratio {_number(_mean(ratios), 3)} (geometric {_number(_geometric(ratios), 3)})"
    summary = f"{means}, not larger in {fewer} of {len(ratios)} pairs."
    head = ["pair", "score PDGD", "mafl", "L2 PDGD", "mafl", "Linf PDGD", "mafl", "L2 ratio"]
    return f"""## mafl against PDGD

{pairs[0][1]["passes"]} passes each. PDGD has a multiplier for each voxel and was made for the smallest L2 at a \
share of the voxels; here it keeps the smallest image at mafl's goal, else the one with the highest score. mafl \
is then given that score, slice by slice, as its goal.

{_table(head, lines)}

{summary}"""


def _methods(results: Results) -> str:
    """Every method on the pairs that all of them have."""
    passes = results.passes[len(results.passes) // 2]
    groups: dict[str, list[Row]] = {
        "mafl": [row for case in results.cases if (row := results.mafl(case, passes))],
        "best ASMA, best IoU": [row for _, row in results.pairs(passes, "best IoU")],
        "best ASMA, at goal": [row for _, row in results.pairs(passes, "at goal")],
    }
    others = dict.fromkeys(row["method"] for row in results.rows)
    for method in others:
        if method not in ("mafl", "asma", "asma-published", "mafl-as-pdgd"):
            rows = results.find(method=method)
            groups[f"{method}, {rows[0]['passes']} passes" if rows[0]["passes"] != passes else method] = rows
    published = results.find(method="asma-published", rule="best IoU")
    if published:
        groups[f"ASMA as published, {published[0]['passes']} passes"] = published
    head = ["method", "pairs", "score", *(heading for heading, *_ in METRICS.values())]
    head += ["hit rate", "low frequency", "at the goal", "forward", "backward", "seconds"]
    lines = (_summary(name, rows) for name, rows in groups.items() if rows)
    return f"""## All methods, {passes} passes

Means over the pairs. The presets with an ε-ball have it at their own default size. Low frequency: share of the \
energy of the change in its Haar low-pass band. At the goal: slices or volumes. Passes and seconds: for each of \
them.

{_table(head, lines)}"""


def _summary(name: str, rows: Sequence[Row]) -> list[str]:
    samples = sum(row["samples"] for row in rows)
    return [
        name,
        str(len(rows)),
        _number(_mean([row["score"] for row in rows]), 4),
        *(
            _number(_mean([row[metric] for row in rows if row[metric] is not None]), digits)
            for metric, (_, digits, _) in METRICS.items()
        ),
        _number(_mean([row["hit"] for row in rows if row["hit"] is not None]), 4),
        _number(_mean([row["low_frequency"] for row in rows]), 3),
        f"{sum(row['reached'] for row in rows)} / {samples}",
        *(_number(sum(row[what] for row in rows) / samples, 1) for what in ("forward", "backward", "seconds")),
    ]


# --- what is left of an attack --------------------------------------------------------------------------------


def survival(document: dict[str, Any]) -> str:
    """The section on transfer, survival and detection, from what `survival.py` wrote."""
    rows: list[Row] = document["rows"]
    variants, cases = (list(dict.fromkeys(row[key] for row in rows)) for key in ("variant", "case"))
    by = {(row["case"], row["variant"]): row for row in rows}
    baseline = variants[0]

    def mean(variant: str, pick: Callable[[Row], float | None]) -> float | None:
        values = [pick(by[case, variant]) for case in cases if (case, variant) in by]
        return _mean([value for value in values if value is not None])

    def ratio(variant: str, key: str) -> float | None:
        whole = [case for case in cases if (case, variant) in by and (case, baseline) in by]
        return _geometric([by[case, variant][key] / by[case, baseline][key] for case in whole])

    def left(variant: str, key: str, name: str) -> float | None:
        return mean(variant, lambda row: next(e for e in row["survival"] if e["transform"] == name)[key]["value"])

    names = [entry["transform"] for entry in rows[0]["survival"]]

    def over_all(variant: str) -> float:
        return sum(left(variant, "hit_rate", name) or 0.0 for name in names) / len(names)

    size = [
        [
            variant,
            _number(mean(variant, lambda row: row["hit_rate"]), 4),
            f"{sum(by[case, variant]['goal_reached'] for case in cases)} of {len(cases)}",
            _number(ratio(variant, "l2"), 2),
            _number(mean(variant, lambda row: row["psnr_db"]), 2),
            _number(mean(variant, lambda row: row["low_frequency_share"]), 3),
            _number(over_all(variant), 3),
            _number(mean(variant, lambda row: row["auc"]), 3),
        ]
        for variant in variants
    ]
    kept = [
        [
            name,
            *(_number(left(variant, "hit_rate", name), 3) for variant in variants),
            _number(left(variants[1], "restored", name), 3),
            _number(left(baseline, "clean_dice", name), 3),
        ]
        for name in names
    ]
    asked = [case for case in cases if by[case, baseline]["transfer"]]
    moved = [
        [
            f"{case} → {by[case, baseline]['transfer'][0]['model']}",
            *(_number(by[case, variant]["transfer"][0]["adversarial"]["hit_rate"]["value"], 3) for variant in variants),
        ]
        for case in asked
    ]
    return "\n\n".join(
        [
            "## What is left of an attack",
            f"Made by `python benchmarks/survival.py --data DATA --steps {document['steps']}` (torch "
            f"{document['torch']}; {len(cases)} pairs: {', '.join(cases)}) and `mafl evaluate`. Each pair is attacked "
            "without the low-frequency term, with the default penalty, with a stronger one, and under the hard one.",
            _table(
                ("low frequency", "hit rate", "at the goal", "L2, × off", "PSNR dB", "low-frequency share",
                 "hit rate after transforms", "AUC of the detector"),
                size,
            ),
            _worth(
                variants, over_all, lambda variant: left(variant, "hit_rate", "blur:1") or 0.0,
                lambda variant: ratio(variant, "l2"),
            ),
            "Hit rate after a transform, mean over the pairs. Restored: share of the attacked voxels that have their "
            f"class back ({variants[1]}). Dice of clean scans: with the prediction before the transform.",
            _table(("transform", *variants, "restored", "Dice of clean scans"), kept),
            "Hit rate in a model that was not attacked: of the voxels where its own clean prediction is not the "
            "target.",
            _table(("pair → other model", *variants), moved),
        ]
    ) + "\n"  # fmt: skip


def _worth(
    variants: Sequence[str],
    left: Callable[[str], float],
    blurred: Callable[[str], float],
    length: Callable[[str], float | None],
) -> str:
    """Two sentences on what the low-frequency constraint buys or costs."""
    off, default, _, hard = variants
    more = "more" if left(default) > left(off) else "less"
    first = (
        f"The default penalty costs × {_number(length(default), 2)} in L2 and leaves {more} of the attack after the "
        f"transforms (mean hit rate {left(default):.3f} against {left(off):.3f} without it)."
    )
    second = (
        f"Allowing no low frequencies at all costs × {_number(length(hard), 2)} in L2, and {left(hard):.3f} is left"
    )
    if blurred(hard) < blurred(off):
        second += f": smoothing takes it away first (after blur:1 {blurred(hard):.3f} against {blurred(off):.3f})"
    return f"{first} {second}."


def _table(head: Sequence[str], lines: Iterator[list[str]] | Sequence[list[str]]) -> str:
    rows = [list(head), ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None, digits: int, *, sign: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


# --- picture ------------------------------------------------------------------------------------------------


def picture(document: dict[str, Any], path: Path) -> None:
    """IoU against L2, a panel for each of the pictured problems: left and up is better."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    results = Results(document)
    names = pictured(results.cases)
    columns = min(2, len(names))
    figure = Figure(figsize=(5.2 * columns, 3.8 * -(-len(names) // columns) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flatten()
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, names, strict=False):
        _panel(panel, results, name)
        panel.set_title(name, fontsize=10)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel("L2 of the change, model units")
        panel.set_ylabel("IoU with the target")
        panel.grid(alpha=0.3)
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9, frameon=False
    )
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _panel(panel: Any, results: Results, name: str) -> None:
    """ASMA's step sizes as grey lines, a budget each; mafl's budgets and goals in colour."""
    budgets = [row for passes in results.passes if (row := results.mafl(name, passes))]
    middle = results.passes[len(results.passes) // 2]
    goals = sorted(results.find(case=name, method="mafl", passes=middle), key=lambda row: row["l2"])
    # Runs of ASMA that hardly left the clean scan would take most of the panel.
    least = min((row["l2"] for row in goals), default=0) / 10
    for passes, grey in zip(results.passes, ("#BBBBBB", "#888888", "#444444"), strict=False):
        rows = results.find(case=name, method="asma", passes=passes, rule="best IoU")
        rows = sorted((row for row in rows if row["l2"] > least), key=lambda row: row["tau"])
        panel.plot(
            *_points(rows), "o-", color=grey, markersize=4, linewidth=1, label=f"ASMA, {passes} passes, τ varied"
        )
    label = f"mafl, {middle} passes, goal varied"
    panel.plot(*_points(goals), "s--", color="#56B4E9", markersize=5, label=label)
    panel.plot(*_points(budgets), "D-", color="#D55E00", markersize=6, label="mafl, passes as written")
    # Many passes end close together: each label stands somewhere else.
    for row, place in zip(budgets, ((8, 4), (6, -13), (-24, -13)), strict=False):
        at = (row["l2"], row["iou"])
        panel.annotate(row["passes"], at, place, textcoords="offset points", fontsize=8, color="#D55E00")


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row["l2"] for row in rows], [row["iou"] for row in rows]


if __name__ == "__main__":
    main()
