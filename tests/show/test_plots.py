"""The plots under the pictures show what was measured, and say so where there is nothing to show."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from mafl_cli.results.report import Trace
from mafl_cli.show import plots
from mafl_cli.show.plots import Change, draw_histogram, draw_spectra, draw_trace

TRACE = Trace(
    step=(0, 1, 2),
    loss=(1.0, None, 0.2),
    score=(0.0, 0.5, 1.0),
    reached=(0.0, 0.5, 1.0),
    l2_model=(0.0, 4.0, 3.0),
)


def axes() -> Any:
    return Figure().add_axes((0, 0, 1, 1))


def words(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


def change(*, whole_numbers: bool = False) -> Change:
    """Of three slices one is changed by noise, one in a single voxel, and one not at all."""
    rng = np.random.default_rng(0)
    before = rng.normal(100, 30, (3, 20, 24)).astype(np.float32)
    noise = rng.normal(0, 4, (20, 24)).astype(np.float32)
    if whole_numbers:
        before, noise = np.rint(before), np.rint(noise)
    after = before.copy()
    after[0] += noise
    after[1, 3, 4] -= 64
    return Change.of(zip(before, after, strict=True), (1.0, 2.0))


@pytest.mark.parametrize("whole_numbers", [False, True])
def test_the_histogram_counts_every_changed_voxel_once_and_marks_the_largest(whole_numbers: bool) -> None:
    found = change(whole_numbers=whole_numbers)
    ax = axes()
    draw_histogram(ax, found, "HU")
    counts, edges, _ = ax.patches[0].get_data()
    assert counts[counts > 0.5].sum() == len(found.voxels)
    np.testing.assert_allclose(edges, -edges[::-1])
    assert ax.get_yscale() == "log"
    largest = [line for line in ax.lines if line.get_label() == "largest −64"]
    assert largest[0].get_xdata()[0] == pytest.approx(-64)
    assert sum(line.get_label().startswith("99 % within ±") for line in ax.lines) == 1
    assert ax.get_xlabel().startswith("HU; ")


@pytest.mark.parametrize("scale", [1e-12, 1e-5, 0.3, 1.0, 1e5, 1e9])
def test_numbers_of_any_size_stand_in_full_at_the_axis(scale: float) -> None:
    found = change()
    ax, course = axes(), axes()
    draw_histogram(ax, replace(found, voxels=found.voxels * np.float32(scale)), "native units")
    draw_trace(course, replace(TRACE, l2_model=(0.0, 4.0 * scale, 3.0 * scale)))
    for axis in (ax.xaxis, course.figure.axes[1].yaxis):
        axis.figure.canvas.draw()
        labels = [label.get_text() for label in axis.get_ticklabels()]
        assert axis.get_offset_text().get_text() == ""
        assert [float(label.replace("−", "-")) for label in labels] == pytest.approx(axis.get_majorticklocs(), rel=0.01)
        assert len(set(labels)) == len(labels) > 2
        assert "0" in labels


@pytest.mark.parametrize("largest", [1, 7, 30, 31, 64, 1000, 70_000])
def test_bins_of_whole_numbers_hold_equally_many_of_them(largest: int) -> None:
    values = np.array([-largest, 1, largest], np.float32)
    edges = plots._edges(values, float(largest))
    each = {int(np.floor(high) - np.floor(low)) for low, high in pairwise(edges)}
    assert len(each) == 1
    assert edges[0] < -largest
    assert edges[-1] > largest
    assert len(edges) <= 64


def test_spectra_are_of_the_changed_slices_and_end_at_nyquist() -> None:
    found = change()
    assert found.slices == 2
    ax = axes()
    draw_spectra(ax, found, "native units")
    assert [line.get_label() for line in ax.lines] == ["clean scan", "change"]
    assert ax.get_xlim() == pytest.approx((0, 0.25))
    assert all(line.get_xdata().max() <= 0.25 for line in ax.lines)
    assert "2 changed slices" in ax.get_xlabel()
    assert ax.get_ylabel() == "power, (native units)²"


def test_the_trace_has_its_length_on_a_second_axis() -> None:
    ax = axes()
    draw_trace(ax, TRACE)
    (right,) = [other for other in ax.figure.axes if other is not ax]
    np.testing.assert_array_equal(right.lines[0].get_ydata(), TRACE.l2_model)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), TRACE.score)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), TRACE.reached)


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        (None, "no trace in this report"),
        (Trace(step=(), loss=(), score=(), reached=(), l2_model=()), "nothing was attacked"),
    ],
)
def test_where_there_is_no_trace_the_plot_says_why(trace: Any, said: str) -> None:
    ax = axes()
    draw_trace(ax, trace)
    assert words(ax) == [said]


def test_nothing_changed_is_said() -> None:
    same = np.ones((4, 5))
    found = Change.of([(same, same)], (1.0, 1.0))
    for draw in (draw_histogram, draw_spectra):
        ax = axes()
        draw(ax, found, "HU")
        assert words(ax) == ["nothing changed"]


def test_a_single_pixel_is_drawn() -> None:
    found = Change.of([(np.ones((1, 1)), np.zeros((1, 1)))], (1.0, 1.0))
    ax = axes()
    draw_spectra(ax, found, "HU")
    assert words(ax) == ["too few pixels"]
    draw_histogram(axes(), found, "HU")
