"""Which slices a figure shows, and how closely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from mafl_cli.scans.body import Air
from mafl_cli.scans.geometry import Affine
from mafl_cli.show.screen import grey_levels
from mafl_cli.show.slices import NEGATIVE, PLANES, POSITIVE, box_around, oriented_slice, position

# Share of the energy of the most changed slice: below it a slice is shown only if nothing else is left.
_WORTH_SHOWING = 0.1
# Shares of the box around the body: the part with the outlines is enlarged if it is smaller than the first,
# and never more than to the second.
_ZOOM_BELOW, _ZOOM_MOST = 0.65, 0.3


@dataclass(frozen=True, eq=False)
class Slice:
    """The pictures (rows, columns) of one slice, and where it is."""

    index: int
    label: str
    clean: NDArray[Any]
    adversarial: NDArray[Any]
    before: NDArray[Any]
    after: NDArray[Any]
    target: NDArray[Any]
    difference: NDArray[np.float64]
    letters: tuple[str, str, str, str]
    aspect: float
    plane: str

    @staticmethod
    def cut(volumes: Sequence[NDArray[Any]], affine: Affine, slice_axis: int, index: int) -> Slice:
        pictures = [oriented_slice(volume, affine, slice_axis, index) for volume in volumes]
        clean, adversarial, before, after, target = (picture for picture, _, _ in pictures)
        _, letters, aspect = pictures[0]
        body_axis = int(io_orientation(affine)[slice_axis, 0])
        mm = position(volumes[0].shape, affine, slice_axis, index)
        side = POSITIVE[body_axis] if mm >= 0 else NEGATIVE[body_axis]
        return Slice(
            index=index,
            label=f"{side} {abs(mm):.1f} mm\n{'ijk'[slice_axis]} = {index}",
            clean=clean,
            adversarial=adversarial,
            before=before,
            after=after,
            target=target,
            difference=adversarial.astype(np.float64) - clean,
            letters=letters,
            aspect=aspect,
            plane=PLANES[body_axis],
        )


def change_per_slice(clean: NDArray[Any], adversarial: NDArray[Any], slice_axis: int) -> NDArray[np.float64]:
    """Sum of squared differences of each slice, without a copy of the volumes."""
    pairs = zip(np.moveaxis(clean, slice_axis, 0), np.moveaxis(adversarial, slice_axis, 0), strict=True)
    return np.array([float(np.square(y.astype(np.float64) - x).sum()) for x, y in pairs])


def count_per_slice(mask: NDArray[np.bool_], slice_axis: int) -> NDArray[np.float64]:
    return np.array([float(np.count_nonzero(part)) for part in np.moveaxis(mask, slice_axis, 0)])


def choose(change: NDArray[np.float64], otherwise: Sequence[NDArray[np.float64]], rows: int) -> list[int]:
    """Up to `rows` slices of large `change`, not all of them neighbours where that can be helped.

    Args:
        change: (slices,), not negative. Where nothing changed, the first of `otherwise` that is not all zero
            takes its place; when there is none, the middle slice is shown.
    """
    weight = next((w for w in (change, *otherwise) if w.any()), None)
    if weight is None:
        return [len(change) // 2]
    ranked = [int(index) for index in np.argsort(-weight, kind="stable") if weight[index] > 0]
    worth = [index for index in ranked if weight[index] >= _WORTH_SHOWING * weight[ranked[0]]]
    gap = (max(worth) - min(worth)) // max(rows, 1)
    chosen: list[int] = []
    for candidates, apart in ((worth, gap), (worth, gap // 2), (worth, gap // 4), (worth, 1), (ranked, 1)):
        for index in candidates:
            if len(chosen) < rows and all(abs(index - other) >= max(apart, 1) for other in chosen):
                chosen.append(index)
    return chosen


@dataclass(frozen=True)
class Look:
    """What all rows share. Boxes are (rows, columns) of the pictures."""

    window: tuple[float, float]
    colour_limit: float
    """The difference at the ends of the colour bar, native units."""
    largest: float
    grey_levels: int
    """The largest displayed change of a pixel in the window, of 255."""
    box: tuple[slice, slice]
    """The body and all that is drawn on it."""
    zoom: tuple[slice, slice]
    """The part of the box where the masks differ; the box itself when that is most of it."""
    unit: str

    @staticmethod
    def of(slices: Sequence[Slice], window: tuple[float, float] | None, unit: str) -> Look:
        scans = np.stack([item.clean for item in slices]).astype(np.float64)
        change = np.abs(np.stack([item.difference for item in slices]))
        body = _body(scans)
        low, high = window or (float(value) for value in np.percentile(scans[body], (1, 99)))
        if not low < high:
            low, high = low - 1, high + 1
        largest = float(change.max())
        colour_limit = float(np.percentile(change[change > 0], 99.5)) if largest else 0.0
        drawn, disputed = np.zeros((2, *scans.shape[1:]), dtype=np.bool_)
        for item in slices:
            drawn |= (item.before != 0) | (item.after != 0) | (item.target != 0)
            disputed |= (item.before != item.target) | (item.after != item.target)
        if largest:
            drawn |= (change > 0.5 * colour_limit).any(axis=0)
        box = box_around(body.any(axis=0) | drawn)
        shown = [[grey_levels(each, (low, high)).astype(int) for each in (s.clean, s.adversarial)] for s in slices]
        levels = max(int(np.abs(after - before).max()) for before, after in shown)
        return Look((low, high), colour_limit, largest, levels, box, _zoom(box, box_around(disputed)), unit)

    @property
    def zoomed(self) -> bool:
        return self.zoom != self.box

    def ratio(self, aspect: float) -> float:
        """Height over width of the cut-out, in mm."""
        down, across = (span.stop - span.start for span in self.box)
        return float(aspect * down / across)


def _body(scans: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where pictures (slices, rows, columns) show the body; all True where it cannot be told from what is around it."""
    air = Air.around(scans)
    body = None if air is None else air.body(scans)
    return body if body is not None and body.any() else np.ones(scans.shape, dtype=np.bool_)


def _zoom(box: tuple[slice, slice], inner: tuple[slice, slice]) -> tuple[slice, slice]:
    """A part of `box` with the same proportions that holds `inner`; `box` if it would not be much smaller."""
    lengths = [span.stop - span.start for span in box]
    share = max((span.stop - span.start) / n for span, n in zip(inner, lengths, strict=True))
    if share > _ZOOM_BELOW:
        return box
    share = max(share, _ZOOM_MOST)
    down, across = (
        _centred(span, around, round(share * n)) for span, around, n in zip(box, inner, lengths, strict=True)
    )
    return down, across


def _centred(outer: slice, around: slice, length: int) -> slice:
    start = (around.start + around.stop - length) // 2
    start = min(max(start, outer.start), outer.stop - length)
    return slice(start, start + length)
