"""Pictures of one attack, as a radiologist would want to see them: scans, difference, predictions, and three plots.

Words. *picture*: one slice turned for the eye, see `slices`. *window*: the native values shown as black and white.

Arrays in, a file out; Matplotlib's global state (pyplot, style files) is neither used nor changed, and the same input
gives the same bytes.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.errors import UsageError, cannot_be_written
from mafl_cli.measure.observer import Screen
from mafl_cli.names import public_name
from mafl_cli.results.report import Trace
from mafl_cli.scans.geometry import Affine, spacing
from mafl_cli.show import plots
from mafl_cli.show.choice import Look, Slice, change_per_slice, choose, count_per_slice
from mafl_cli.show.display import CLASS_COLOURS
from mafl_cli.show.plots import number, short_numbers
from mafl_cli.show.screen import LOST, PLAIN, Spot, grey_levels, largest_spot, visible_where
from mafl_cli.show.sheet import Sheet
from mafl_cli.show.slices import in_plane, oriented_slice, position

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")


def panel(
    *,
    clean: NDArray[Any],
    adversarial: NDArray[Any],
    prediction_clean: NDArray[Any],
    prediction_adversarial: NDArray[Any],
    target: NDArray[Any],
    affine: Affine,
    slice_axis: int,
    unit: str,
    class_names: Sequence[str],
    title: str,
    path: Path,
    rows: int = 3,
    window: tuple[float, float] | None = None,
    trace: Trace | None = None,
) -> list[int]:
    """Draw the slices that changed most, one a row, and what was changed and how it was found; write the picture.

    Columns: clean scan, adversarial scan, their difference, where that would be seen (`screen.visible_where`), and the
    prediction on each of the two with the target.
    A target is a wide pale band and a prediction a thin line, both in the colour of the class: a line inside its
    band is the attacker's success, a band without a line is target that was missed.

    Args:
        clean, adversarial: (I, J, K), native units.
        prediction_clean, prediction_adversarial, target: (I, J, K), class indices, 0 = background.
        slice_axis: array axis across the slices, 0, 1 or 2.
        unit: "HU" or "native units".
        class_names: one for each class, background first.
        title: without anything that names the patient.
        path: .png, .pdf or .svg.
        rows: at most so many slices, at least 1.
        window: native values shown black and white; None: 1st to 99th percentile of the body in the clean slices.
        trace: how the search went, see `search.traces.joined`; None where that is not known.
    Returns: the indices of the slices shown, in the order of the rows: from head, front or right.
    Raises: UsageError for another suffix; OutputError when the file cannot be written.
    """
    from matplotlib import style

    check_format(path)
    shown = choose(
        change_per_slice(clean, adversarial, slice_axis),
        [count_per_slice(target != prediction_clean, slice_axis), count_per_slice(target > 0, slice_axis)],
        rows,
    )
    order = sorted(range(clean.shape[slice_axis]), key=lambda n: -position(clean.shape, affine, slice_axis, n))
    slices = [
        Slice.cut((clean, adversarial, prediction_clean, prediction_adversarial, target), affine, slice_axis, index)
        for index in order
        if index in shown
    ]
    across, down = (spacing(affine)[axis] for axis in in_plane(affine, slice_axis))
    # In the order and the orientation of the pictures, so that sums do not depend on how the scan is stored.
    pairs = (
        (oriented_slice(clean, affine, slice_axis, n)[0], oriented_slice(adversarial, affine, slice_axis, n)[0])
        for n in order
    )
    change = plots.Change.of(pairs, (down, across))
    look = Look.of(slices, window, unit)
    # The defaults, whatever style the user's own Matplotlib is set to.
    with style.context(["default", {"svg.hashsalt": "mafl"}]):
        save(_draw(slices, look, change, trace, class_names, title), path)
    return [item.index for item in slices]


def check_format(path: Path) -> None:
    """Raise UsageError for a file name without the suffix of a picture."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{public_name(path)}: a figure must be one of {', '.join(FORMATS)}: choose another suffix.")


# Outlines: width in points, opacity. They run this far up the step from 0 outside to 1 inside a mask: at one half,
# those of two classes that touch would lie on one another and mix their colours.
_BAND, _LINE = (4.0, 0.45), (1.2, 1.0)
_INSIDE = 0.8
# Colours of the map of visibility, from what is just seen to what is plain, and how much of the scan's light is below.
_SEEN = ("#FFD400", "#FF8C00", "#E00000")
_DARKENED = 0.6
_RING: dict[str, Any] = {
    "marker": "o", "markersize": 22, "markerfacecolor": "none", "markeredgecolor": "#FFD400", "markeredgewidth": 1.6,
    "linestyle": "none",
}  # fmt: skip


def _draw(
    slices: Sequence[Slice],
    look: Look,
    change: plots.Change,
    trace: Trace | None,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    colours, left_out = _colours(slices)
    legend = _legend_entries(colours, left_out, class_names)
    sheet = Sheet(len(slices), look.ratio(slices[0].aspect), title, [label for _, label in legend])
    for column, (name, detail) in enumerate(_heads(look)):
        sheet.head(column, name, detail)
    for row, item in enumerate(slices):
        images = _draw_row(sheet.pictures(row, item.label), item, look, colours)

    bars = sheet.colour_bars(look.unit, "× the noise and texture around it")
    ends: tuple[Any, Any] = "both" if look.colour_limit < look.largest else "neither", "max"
    for bar, image, end in zip(bars, images, ends, strict=True):
        sheet.figure.colorbar(image, cax=bar, orientation="horizontal", extend=end)
        short_numbers(bar.xaxis, most=4)
        bar.tick_params(labelsize=10)
    _draw_legend(sheet, legend)
    by_size, by_frequency, by_step = sheet.plots(plots.TITLES)
    plots.draw_histogram(by_size, change, look.unit)
    plots.draw_spectra(by_frequency, change, look.unit)
    plots.draw_trace(by_step, trace)
    sheet.foot(_footer(slices[0].plane))
    return sheet.figure


def _draw_row(places: Sequence[Axes], item: Slice, look: Look, colours: dict[int, str]) -> tuple[Any, Any]:
    """The six pictures of a slice; returns what the colour bars explain."""
    from matplotlib.patches import Rectangle

    clean, adversarial, difference, seen, before, after = places
    _draw_scan(clean, item.clean, item, look, look.box)
    _draw_scan(adversarial, item.adversarial, item, look, look.box)
    image = _draw_difference(difference, item, look)
    shown = [grey_levels(each, look.window) for each in (item.clean, item.adversarial)]
    veil = _draw_seen(seen, shown[0], shown[1], item, look)
    spot = largest_spot(*shown)
    if spot.levels:
        for ax in (clean, adversarial, difference, seen):
            _ring(ax, spot)
    for ax, scan, prediction in ((before, item.clean, item.before), (after, item.adversarial, item.after)):
        _draw_scan(ax, scan, item, look, look.zoom)
        for index, colour in colours.items():
            _outline(ax, item.target == index, colour, *_BAND)
        for index, colour in colours.items():
            _outline(ax, prediction == index, colour, *_LINE)
    if look.zoomed:
        down, across = look.zoom
        clean.add_patch(
            Rectangle(
                (across.start - 0.5, down.start - 0.5),
                across.stop - across.start,
                down.stop - down.start,
                fill=False,
                edgecolor="white",
                linestyle=(0, (4, 3)),
            )
        )
    return image, veil


def _ring(ax: Axes, spot: Spot) -> None:
    """Where a reader would look first."""
    from matplotlib.patheffects import withStroke

    (mark,) = ax.plot(spot.column, spot.row, **_RING)
    mark.set_path_effects([withStroke(linewidth=3, foreground="black")])


def _draw_legend(sheet: Sheet, legend: Sequence[tuple[Any, str]]) -> None:
    # Matplotlib fills a legend column by column; people read it row by row.
    by_row = [entry for column in range(sheet.legend_columns) for entry in legend[column :: sheet.legend_columns]]
    handles, labels = zip(*by_row, strict=True)
    box = sheet.figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=sheet.legend_corner,
        ncols=sheet.legend_columns,
        fontsize=11,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
    )
    for entry in box.get_texts():
        entry.set_parse_math(False)


def _heads(look: Look) -> tuple[tuple[str, str], ...]:
    """Name and detail of each column."""
    low, high = (number(value) for value in look.window)
    enlarged = ", enlarged" if look.zoomed else ""
    return (
        ("clean scan", f"window {low} to {high} {look.unit}"),
        ("adversarial scan", "same window"),
        ("adversarial − clean", _range_in_words(look)),
        ("where it would be seen", "to an eye, in the same window"),
        ("clean prediction", f"over the clean scan{enlarged}"),
        ("adversarial prediction", f"over the adversarial scan{enlarged}"),
    )


def _legend_entries(colours: dict[int, str], left_out: int, class_names: Sequence[str]) -> list[tuple[Any, str]]:
    """What the lines mean, then the classes."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[tuple[Any, str]] = [
        (Line2D([], [], color="0.2", linewidth=width, alpha=alpha), name)
        for name, (width, alpha) in (("target", _BAND), ("prediction", _LINE))
    ]
    entries.append((Line2D([], [], **{**_RING, "markersize": 10}), "largest visible change"))
    for index, colour in colours.items():
        name = textwrap.shorten(class_names[index], 26, placeholder="…")
        entries.append((Patch(color=colour), f"{index} {name}"))
    if left_out:
        entries.append((Patch(color="none"), f"{left_out} more not drawn"))
    return entries


def _footer(plane: str) -> str:
    side = "anterior is on the left" if plane == "sagittal" else "the patient's right is on the left"
    return (
        f"{plane.capitalize()} slices, radiological convention: {side} of each picture. "
        "Adversarial data made to deceive a model; not for clinical use."
    )


def _draw_scan(ax: Axes, picture: NDArray[Any], item: Slice, look: Look, box: tuple[slice, slice]) -> None:
    low, high = look.window
    ax.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    _frame(ax, item, box, ink="white", halo="black")


def _draw_difference(ax: Axes, item: Slice, look: Look) -> Any:
    limit = look.colour_limit or 1.0
    image = ax.imshow(item.difference, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    _frame(ax, item, look.box, ink="black", halo="white")
    return image


def _draw_seen(ax: Axes, clean: NDArray[np.uint8], adversarial: NDArray[np.uint8], item: Slice, look: Look) -> Any:
    """The map of visibility over the clean scan, which is darkened so that colours stand out."""
    from matplotlib.colors import LinearSegmentedColormap

    seen = visible_where(clean, adversarial, Screen.of(clean.shape))
    colours = LinearSegmentedColormap.from_list("seen", _SEEN).with_extremes(under=(0, 0, 0, 0))
    ax.imshow(np.repeat(np.uint8(clean * _DARKENED)[..., np.newaxis], 3, axis=2), interpolation="nearest")
    veil = ax.imshow(seen, cmap=colours, vmin=LOST, vmax=PLAIN, interpolation="nearest")
    _frame(ax, item, look.box, ink="white", halo="black")
    return veil


def _frame(ax: Axes, item: Slice, box: tuple[slice, slice], *, ink: str, halo: str) -> None:
    """Show the box only, without ticks, with the letters of the body sides at the four borders."""
    from matplotlib.patheffects import withStroke

    down, across = ((span.stop - span.start, (span.start + span.stop - 1) / 2) for span in box)
    # A place of other proportions than the box shows more around it: the borders, and their letters, stay put.
    wanted = ax.bbox.height / ax.bbox.width / item.aspect
    high, wide = max(down[0], wanted * across[0]), max(across[0], down[0] / wanted)
    ax.set_xlim(across[1] - wide / 2, across[1] + wide / 2)
    ax.set_ylim(down[1] + high / 2, down[1] - high / 2)
    ax.set_aspect("auto")
    ax.set_facecolor("0.88")
    ax.set_xticks([])
    ax.set_yticks([])
    for edge in ax.spines.values():
        edge.set_color("0.6")
    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"),
    )
    for letter, (x, y, ha, va) in zip(item.letters, places, strict=True):
        ax.text(
            x,
            y,
            letter,
            transform=ax.transAxes,
            ha=ha,
            va=va,
            size=11,
            weight="bold",
            color=ink,
            path_effects=[withStroke(linewidth=2, foreground=halo)],
        )


def _outline(ax: Axes, mask: NDArray[np.bool_], colour: str, width: float, alpha: float) -> None:
    """The border of a mask (rows, columns), just inside; closed also where it touches the edge of the picture."""
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(np.float64)
    rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
    ax.contour(columns, rows, padded, levels=[_INSIDE], colors=colour, linewidths=width, alpha=alpha)


def _colours(slices: Sequence[Slice]) -> tuple[dict[int, str], int]:
    """A colour for each foreground class to draw, and how many present ones are left out.

    No two classes share a colour, so there are at most as many as the palette has: first those whose three
    masks disagree most, then the largest. The palette's own classes keep their colours, others take what is left.
    """
    masks = np.stack([[item.before, item.after, item.target] for item in slices], axis=1)
    present = [int(label) for label in np.unique(masks) if label != 0]

    def weight(label: int) -> tuple[int, int]:
        of_class = masks == label
        everywhere, somewhere = of_class.all(axis=0), of_class.any(axis=0)
        return int(np.count_nonzero(somewhere & ~everywhere)), int(np.count_nonzero(somewhere))

    drawn = sorted(sorted(present, key=weight, reverse=True)[: len(CLASS_COLOURS)])
    own = dict(enumerate(CLASS_COLOURS, start=1))
    left = iter([colour for label, colour in own.items() if label not in drawn])
    return {label: own[label] if label in own else next(left) for label in drawn}, len(present) - len(drawn)


def _range_in_words(look: Look) -> str:
    if not look.largest:
        return "identical in these slices"
    largest = f"{number(look.largest)}, {look.grey_levels} grey levels"
    if look.colour_limit < look.largest:
        return f"colours to ±{number(look.colour_limit)}, largest {largest}"
    return f"up to ±{largest}"


def save(figure: Figure, path: Path) -> None:
    """Write a figure, the same bytes for the same picture. Raises: OutputError if it cannot be written."""
    # Dates and program names would make equal pictures differ.
    metadata: dict[str, dict[str, None]] = {
        ".png": {"Software": None},
        ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
        ".svg": {"Date": None, "Creator": None},
    }
    suffix = path.suffix.lower()
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        # A class named in a script that the bundled font lacks still has its number.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(drawn, format=suffix[1:], metadata=metadata[suffix])
    try:
        # At once: what draws says many things of a disk that is full, few of them that it is.
        path.write_bytes(drawn.getvalue())
    except OSError as exc:
        raise cannot_be_written(path.name, exc) from exc
