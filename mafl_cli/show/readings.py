"""The figure of `mafl inspect`: what a model gets and draws when a scan is read in several ways, a row for each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.show.display import class_colour
from mafl_cli.show.figure import check_format, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HIGH, _WIDE, _WORDS, _HEAD = 2.3, 2.6, 3.4, 0.75
"""Inches: a picture, the words beside it, the title."""


@dataclass(frozen=True, eq=False)
class Row:
    """A reading in a figure.

    image: (H, W), model units, as the network gets it. labels: (H, W), what it draws there, 0 for background. name: how
    the scan is read. score: in words.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.integer[Any]]
    name: str
    score: str


def draw_readings(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the figure.

    Raises: UsageError for a suffix that is none of a picture; OutputError if it cannot be written.
    """
    from matplotlib import style

    check_format(path)
    with style.context(["default", {"svg.hashsalt": "mafl"}]):
        save(_drawn(rows, title), path)


def _drawn(rows: Sequence[Row], title: str) -> Figure:
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    wide, high = _WORDS + 2 * _WIDE, _HEAD + len(rows) * _HIGH
    figure = Figure(figsize=(wide, high), dpi=120, facecolor="white")
    figure.text(0.02, 1 - 0.12 / high, "\n".join(textwrap.wrap(title, 90)), size=11, weight="bold", va="top")
    for column, name in enumerate(("what the network gets", "what it draws")):
        middle = (_WORDS + (column + 0.5) * _WIDE) / wide
        figure.text(middle, 1 - (_HEAD - 0.06) / high, name, size=10, ha="center", va="bottom")
    for number, row in enumerate(rows):
        low = high - _HEAD - (number + 1) * _HIGH
        words = "\n".join([*textwrap.wrap(row.name, 38), row.score])
        figure.text(0.02, (low + _HIGH / 2) / high, words, size=10, va="center", linespacing=1.4)
        dark, bright = np.percentile(row.image, (1, 99.5))
        for column in range(2):
            place = ((_WORDS + column * _WIDE) / wide, (low + 0.05) / high, (_WIDE - 0.1) / wide, (_HIGH - 0.1) / high)
            axes = figure.add_axes(place)
            axes.set_axis_off()
            axes.imshow(row.image, cmap="gray", vmin=dark, vmax=max(bright, dark + 1e-6))
            if column and row.labels.any():
                colours = ListedColormap([class_colour(label) for label in range(1, int(row.labels.max()) + 1)])
                shown = np.ma.masked_equal(row.labels, 0)
                axes.imshow(shown, cmap=colours, vmin=0.5, vmax=colours.N + 0.5, alpha=0.5, interpolation="nearest")
    return figure
