"""The paper of a figure: where pictures, words and plots stand on it, in inches from the left and from the top."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 120

_WIDTH, _LOWEST, _HIGHEST = 2.9, 1.2, 4.4
_GAP = 0.08
_LEFT, _RIGHT = 1.15, 0.12
_TITLE_LINE = 0.26
_HEAD = 0.66
_COLOUR_BAR = 0.62
_LEGEND_LINE = 0.28
# The plots: space above for name and legend, height, space below for the axis, between them, and right of the last.
_PLOT_HEAD, _PLOT, _PLOT_FOOT, _PLOT_GAP, _PLOT_RIGHT = 0.8, 1.9, 0.62, 1.0, 0.75
_FOOT = 0.42

_COLUMNS, _PLOTS = 6, 3


class Sheet:
    """An empty figure with its title: rows of six pictures, below them two colour bars, a legend and three plots."""

    def __init__(self, rows: int, ratio: float, title: str, labels: Sequence[str]) -> None:
        """ratio: height over width of a picture. labels: of the legend."""
        from matplotlib.figure import Figure

        self._high = float(np.clip(_WIDTH * ratio, _LOWEST, _HIGHEST))
        self._width = _LEFT + _COLUMNS * _WIDTH + (_COLUMNS - 1) * _GAP + _RIGHT
        self.legend_columns = max(1, int((self._width - _LEFT) / (0.7 + 0.09 * max(map(len, labels)))))
        lines = textwrap.wrap(title, int(self._width * 8)) or [""]
        self._top = 0.12 + _TITLE_LINE * len(lines) + _HEAD
        self._end = self._top + rows * (self._high + _GAP)
        self._strip = self._end + _COLOUR_BAR + _LEGEND_LINE * -(-len(labels) // self.legend_columns) + _PLOT_HEAD
        self._total = self._strip + _PLOT + _PLOT_FOOT + _FOOT
        self._lefts = [_LEFT + n * (_WIDTH + _GAP) for n in range(_COLUMNS)]
        self._wide = (self._width - _LEFT - _RIGHT - _PLOT_RIGHT - 2 * _PLOT_GAP) / _PLOTS
        self.figure = Figure(figsize=(self._width, self._total), dpi=DPI, facecolor="white")
        self._text(_LEFT, 0.12, "\n".join(lines), size=14, weight="bold", va="top")

    def head(self, column: int, name: str, detail: str) -> None:
        """What a column shows, above its first picture."""
        middle = self._lefts[column] + _WIDTH / 2
        self._text(middle, self._top - 0.36, name, size=13, ha="center", va="bottom")
        self._text(middle, self._top - 0.12, detail, size=10, ha="center", va="bottom", color="0.3")

    def pictures(self, row: int, label: str) -> list[Axes]:
        """The places of a row, with its label beside it."""
        upper = self._top + row * (self._high + _GAP)
        self._text(_LEFT - 0.1, upper + self._high / 2, label, size=11, ha="right", va="center", linespacing=1.5)
        return [self._axes(left, upper, _WIDTH, self._high) for left in self._lefts]

    def colour_bars(self, unit: str, words: str) -> tuple[Axes, Axes]:
        """The places of the bars below the third and the fourth column, with what they count beside them."""
        first, second = (
            self._axes(self._lefts[column] + 0.15, self._end + 0.06, _WIDTH - 0.3, 0.12) for column in (2, 3)
        )
        self._text(self._lefts[2] - 0.05, self._end + 0.12, unit, size=10, ha="right", va="center")
        self._text(self._lefts[4] + 0.05, self._end + 0.12, words, size=10, va="center")
        return first, second

    @property
    def legend_corner(self) -> tuple[float, float]:
        """Upper left, as shares of the figure from below."""
        return _LEFT / self._width, 1 - (self._end + _COLOUR_BAR) / self._total

    def plots(self, names: Sequence[str]) -> list[Axes]:
        """The places of the plots, with their names above them."""
        places = [_LEFT + n * (self._wide + _PLOT_GAP) for n in range(_PLOTS)]
        axes = [self._axes(left, self._strip, self._wide, _PLOT) for left in places]
        for left, name in zip(places, names, strict=True):
            self._text(left + self._wide / 2, self._strip - 0.32, name, size=13, ha="center", va="bottom")
        return axes

    def foot(self, words: str) -> None:
        self._text(_LEFT, self._total - 0.12, words, size=10, va="bottom", color="0.3")

    def _text(self, x: float, y: float, words: str, **style: Any) -> None:
        """What users write is never read as TeX."""
        self.figure.text(x / self._width, 1 - y / self._total, words, parse_math=False, **style)

    def _axes(self, x: float, y: float, across: float, down: float) -> Axes:
        place = (x / self._width, 1 - (y + down) / self._total, across / self._width, down / self._total)
        return self.figure.add_axes(place)
