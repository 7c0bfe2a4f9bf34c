"""Small plots under the pictures of a run: its change by size and by spatial frequency, and how the search went.

Each draws into axes it is given. Red is the change everywhere, grey the scan or the score.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.results.report import Trace
from mafl_cli.show.spectrum import Spectrum, radial_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

TITLES = ("change by voxel", "power spectrum in the slices", "course of the search")

_CHANGE, _SCAN = "#B2182B", "0.25"
_BINS = 61
# Share of the largest power: what lies lower is rounding, and would only press the curves flat.
_FAINTEST = 1e-10


@dataclass(frozen=True, eq=False)
class Change:
    """What a run changed.

    voxels: (n,), the change of every voxel that changed, native units. total: voxels of the scan.
    scan, change: spectra over the slices that changed; None if none did. slices: how many these are.
    """

    voxels: NDArray[np.float32]
    total: int
    scan: Spectrum | None
    change: Spectrum | None
    slices: int

    @staticmethod
    def of(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]], spacing: tuple[float, float]) -> Change:
        """What a run changed. pairs: each slice before and after, (rows, columns). spacing: mm from row to row, from
        column to column."""
        changed: list[tuple[NDArray[Any], NDArray[np.float32]]] = []
        total = 0
        for before, after in pairs:
            difference = np.subtract(after, before, dtype=np.float32)
            total += difference.size
            if difference.any():
                changed.append((before, difference))
        if not changed:
            return Change(np.zeros(0, np.float32), total, None, None, 0)
        return Change(
            voxels=np.concatenate([difference[difference != 0] for _, difference in changed]),
            total=total,
            scan=radial_spectrum((before for before, _ in changed), spacing),
            change=radial_spectrum((difference for _, difference in changed), spacing),
            slices=len(changed),
        )


def draw_histogram(ax: Axes, change: Change, unit: str) -> None:
    """How many voxels changed by how much, with the largest change and the bound that 99 % of them keep."""
    if not len(change.voxels):
        _say(ax, "nothing changed")
        return
    size = np.abs(change.voxels)
    largest, most = float(change.voxels[size.argmax()]), float(np.percentile(size, 99))
    counts, edges = np.histogram(change.voxels, bins=_edges(change.voxels, abs(largest)))
    # Logarithms have no place for 0: half a voxel is the floor.
    ax.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, color=_CHANGE, alpha=0.75)
    ax.axvline(-most, color="0.1", linewidth=1.2, linestyle=(0, (4, 2)))
    ax.axvline(most, color="0.1", linewidth=1.2, linestyle=(0, (4, 2)), label=f"99 % within ±{number(most)}")
    ax.axvline(largest, color="0.1", linewidth=1.2, linestyle=(0, (1, 2)), label=f"largest {number(largest)}")
    _log(ax, 0.5, float(counts.max()))
    _words(ax, f"{unit}; {len(size)} voxels changed, {100 * len(size) / change.total:.2g} % of all", "voxels")


def draw_spectra(ax: Axes, change: Change, unit: str) -> None:
    """The power of the change and of the clean scan by spatial frequency, up to the Nyquist frequency."""
    if change.scan is None or change.change is None:
        _say(ax, "nothing changed")
        return
    powers = []
    for spectrum, colour, name in ((change.scan, _SCAN, "clean scan"), (change.change, _CHANGE, "change")):
        # Ring 0 is little more than the mean. A line through what is 0 would leave the axes.
        shown = (spectrum.frequency <= spectrum.nyquist) & (spectrum.power > 0)
        shown[0] = False
        ax.plot(spectrum.frequency[shown], spectrum.power[shown], color=colour, linewidth=1.6, label=name)
        powers += spectrum.power[shown].tolist()
    if not powers:
        _say(ax, "too few pixels")
        return
    _log(ax, max(min(powers), _FAINTEST * max(powers)), max(powers))
    ax.set_xlim(0, change.scan.nyquist)
    slices = f"{change.slices} changed slice{'' if change.slices == 1 else 's'}"
    _words(ax, f"cycles/mm, up to Nyquist; mean of {slices}", f"power, ({unit})²" if " " in unit else f"power, {unit}²")


def draw_trace(ax: Axes, trace: Trace | None) -> None:
    """Score and share at the goal by step, and on an axis of its own the length of the change.

    trace: `attack.trace` of the report; None for a report that has none.
    """
    if not trace or not trace.step:
        _say(ax, "no trace in this report" if trace is None else "nothing was attacked")
        return
    steps, score, reached, length = (
        np.array(values, dtype=np.float64) for values in (trace.step, trace.score, trace.reached, trace.l2_model)
    )
    right = ax.twinx()
    right.plot(steps, length, color=_CHANGE, linewidth=1.6)
    right.set_ylim(bottom=0)
    short_numbers(right.yaxis)
    right.set_ylabel("L2, model units", color=_CHANGE, size=10)
    _plain(right)
    ax.plot(steps, score, color="0.1", linewidth=1.6, label="score")
    ax.plot(steps, reached, color="0.5", linewidth=1.6, linestyle=(0, (4, 2)), label="share at goal")
    ax.plot([], [], color=_CHANGE, linewidth=1.6, label="L2 of the change (right)")
    ax.set_ylim(-0.03, 1.03)
    ax.margins(x=0.01)
    # Before the other axes' curve, which would hide the score's.
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    _words(ax, "step; best so far, mean of the samples", "")
    short_numbers(ax.xaxis, whole=True)


def number(value: float) -> str:
    """A number as text, with at least three significant digits and a real minus sign."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−")


def short_numbers(axis: Axis, most: int = 5, *, whole: bool = False) -> None:
    """Label at most so many steps, each in full: a power of ten beside the axis would lie on other words.

    whole: at whole numbers.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=whole))

    def label(value: float, place: int | None) -> str:
        low, high = axis.get_view_interval()
        if abs(value) < 1e-6 * (high - low):  # What sums of steps leave of 0.
            return "0"
        text = number(value) if abs(value) < 1e5 else f"{value:.3g}"
        return text.replace("e+0", "e").replace("e−0", "e−").replace("-", "−")

    axis.set_major_formatter(FuncFormatter(label))


def _edges(voxels: NDArray[np.float32], largest: float) -> NDArray[np.floating[Any]]:
    """Borders of the histogram's bins, the same on both sides of 0.

    Whole numbers need bins of an odd whole width around whole numbers, or some bins would hold more of them.
    """
    if np.array_equal(voxels, np.rint(voxels)):
        width = int(np.ceil((2 * largest + 1) / _BINS)) // 2 * 2 + 1
        half = int(np.ceil((largest + 0.5) / width - 0.5))
        return (np.arange(-half, half + 2) - 0.5) * width
    return np.linspace(-largest, largest, _BINS + 1)


def _log(ax: Axes, low: float, high: float) -> None:
    """A logarithmic vertical axis from one power of ten to another, so that at least two have a label."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale("log")
    bottom, top = np.floor(np.log10(low)), np.ceil(np.log10(high))
    ax.set_ylim(low if low == 0.5 else 10.0**bottom, 10.0 ** max(top, bottom + 1))
    ax.yaxis.set_major_locator(LogLocator(numticks=6))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _words(ax: Axes, below: str, left: str) -> None:
    ax.set_xlabel(below, size=10)
    ax.set_ylabel(left, size=10)
    short_numbers(ax.xaxis)
    _plain(ax)
    ax.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        fontsize=10,
        frameon=False,
        borderpad=0,
        borderaxespad=0.5,
        handlelength=1.6,
        columnspacing=1.4,
    )


def _plain(ax: Axes) -> None:
    ax.tick_params(labelsize=10, color="0.6")
    # Clear of the lowest label of the other axis.
    ax.tick_params(axis="x", pad=6)
    for edge in ax.spines.values():
        edge.set_color("0.6")


def _say(ax: Axes, words: str) -> None:
    """Empty axes, with the reason."""
    ax.set_xticks([])
    ax.set_yticks([])
    _plain(ax)
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", size=11, color="0.3")
