"""The picture of the benchmark: IoU against L2 on some of the problems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import COMPARED, Results, Row, pictured


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
    budgets = [row for passes in results.passes if (row := results.one(name, "mafl at the goal", passes))]
    middle = COMPARED[-1]
    goals = sorted(results.find(case=name, method="mafl", passes=middle), key=lambda row: row["l2"])
    # Runs of ASMA that hardly left the clean scan would take most of the panel.
    least = min((row["l2"] for row in goals), default=0) / 10
    for passes, grey in zip(COMPARED, ("#BBBBBB", "#666666"), strict=True):
        rows = results.find(case=name, method="asma", passes=passes, rule="best IoU")
        rows = sorted((row for row in rows if row["l2"] > least), key=lambda row: row["tau"])
        panel.plot(
            *_points(rows), "o-", color=grey, markersize=4, linewidth=1, label=f"ASMA, {passes} passes, τ varied"
        )
    label = f"mafl, {middle} passes, goal varied"
    panel.plot(*_points(goals), "s--", color="#56B4E9", markersize=5, label=label)
    panel.plot(*_points(budgets), "D-", color="#D55E00", markersize=6, label="mafl at the goal, passes as written")
    # Many passes end close together: each label stands somewhere else.
    for row, place in zip(budgets, ((8, 4), (8, -12), (-24, -13), (-26, 6)), strict=False):
        at = (row["l2"], row["iou"])
        panel.annotate(row["passes"], at, place, textcoords="offset points", fontsize=8, color="#D55E00")


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row["l2"] for row in rows], [row["iou"] for row in rows]
