"""The pictures on the page: all slices of a case as small planes of whole numbers, in the radiological convention.

Words. *plane*: one slice turned for the eye (see `slices`) and cut to the body. *code*: the whole number a value is
stored as, value = offset + code * step. *asked for*: where the target differs from the clean prediction. *place*:
number of a slice, counted along the body.

Each slice is one zlib stream, Base64, of five planes: clean, adversarial - clean, clean prediction, adversarial
prediction - clean prediction, target - clean prediction. A plane is stored as 16-bit codes less their left neighbour,
row by row, modulo 65536; first all low bytes, then all high bytes. Codes rather than grey values let the page show any
window and say what a voxel holds.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from mafl_cli.measure.observer import Screen
from mafl_cli.scans.body import Air
from mafl_cli.scans.geometry import Affine
from mafl_cli.show.display import class_colour
from mafl_cli.show.screen import grey_levels, largest_spot
from mafl_cli.show.slices import NEGATIVE, PLANES, POSITIVE, box_around, oriented_slice, position

# Non-integer values get so many steps over the window, or 65535 over all values where that is coarser.
_STEPS = 4095
# Share of the range: values this near to whole numbers are stored as these. A clean scan found as the difference of two
# float32 files is off by the last digit.
_WHOLE = 1e-4
# Unchanged slices kept on each side of one that changed or was asked to, when space is short.
_NEIGHBOURS = 3


@dataclass(frozen=True, kw_only=True)
class PageVolumes:
    """The arrays of one case, (I, J, K) each: scans in native units, masks as labels."""

    clean: NDArray[Any]
    adversarial: NDArray[Any]
    prediction_clean: NDArray[Any]
    prediction_adversarial: NDArray[Any]
    target: NDArray[Any]
    affine: Affine
    slice_axis: int
    unit: str
    """"HU" or "native units"."""
    channel: str | None = None
    """Named on the page where a scan has several."""


@dataclass(frozen=True, kw_only=True)
class ViewerFacts:
    """All but the planes of a case, for the script; lists of slices are by place. Values are native."""

    rows: int
    columns: int
    aspect: float
    letters: tuple[str, ...]
    plane: str
    axis: str
    unit: str
    channel: str | None
    window: tuple[float, float]
    range: tuple[float, float]
    reach: float
    largest: float
    offset: float
    step: float
    difference_step: float
    labels: Sequence[int]
    colours: Sequence[str]
    index: Sequence[int]
    position: Sequence[str]
    change: Sequence[float]
    asked: Sequence[int]
    missed: Sequence[int]
    pixels_per_degree: float
    """Pixels of a slice, at full resolution, in a degree of the field of view; see `measure.observer.Screen`."""
    seen: Sequence[float]
    """The largest displayed change of each slice in `window`, grey levels over a spot; see `screen.largest_spot`."""
    start: int
    halved: bool = False
    """The scans are at half their resolution."""
    reduced: str = ""
    """What is left out, or at half its resolution, in words."""


class PlaneStack:
    """The slices of one case from foot to head, back to front or left to right, however they are stored."""

    def __init__(self, volumes: PageVolumes, window: tuple[float, float] | None) -> None:
        self._volumes = volumes
        shape, axis = volumes.clean.shape, volumes.slice_axis
        mm = [position(shape, volumes.affine, axis, index) for index in range(shape[axis])]
        self.order = sorted(range(shape[axis]), key=lambda index: mm[index])
        self._mm = [mm[index] for index in self.order]
        # Percentiles need no more than some slices from all over the scan.
        sample = np.stack([self._plane("clean", place) for place in range(0, len(mm), max(1, len(mm) // 24))])
        self._air = Air.around(sample)
        body = sample[self._inside(sample)]
        low, high = window or (float(value) for value in np.percentile(body if body.size else sample, (1, 99)))
        self.window = (low, high) if low < high else (low - 1, high + 1)
        self._survey()

    def _plane(self, name: str, place: int) -> NDArray[Any]:
        """One picture (rows, columns) of a volume; contiguous, so that sums do not depend on the storage."""
        volume, axis = getattr(self._volumes, name), self._volumes.slice_axis
        picture, _, _ = oriented_slice(volume, self._volumes.affine, axis, self.order[place])
        return np.ascontiguousarray(picture, dtype=np.float64 if name in ("clean", "adversarial") else np.int64)

    def _planes(self, place: int) -> tuple[NDArray[Any], ...]:
        names = ("clean", "adversarial", "prediction_clean", "prediction_adversarial", "target")
        return tuple(self._plane(name, place) for name in names)

    def _inside(self, picture: NDArray[Any]) -> NDArray[np.bool_]:
        return np.ones(picture.shape, np.bool_) if self._air is None else self._air.body(picture)

    def _survey(self) -> None:
        """Go once through all slices: the box around the body and all masks, ranges, and what each slice holds."""
        self.change: list[float] = []
        self.asked: list[int] = []
        self.missed: list[int] = []
        self.seen: list[float] = []
        labels: dict[int, list[int]] = {}
        keep = np.zeros(self._plane("clean", 0).shape, np.bool_)
        lowest, highest, largest = np.inf, -np.inf, 0.0
        rest, difference_rest = 0.0, 0.0
        changed: list[NDArray[np.float64]] = []
        for place in range(len(self.order)):
            clean, adversarial, before, after, target = self._planes(place)
            delta = adversarial - clean
            size = np.abs(delta)
            lowest, highest, largest = min(lowest, clean.min()), max(highest, clean.max()), max(largest, size.max())
            rest = max(rest, np.abs(clean - np.rint(clean)).max())
            difference_rest = max(difference_rest, np.abs(delta - np.rint(delta)).max())
            changed.append(size[size > 0][:: max(1, size.size // 20_000)])
            self.change.append(float(np.sqrt(np.square(delta).sum())))
            self.asked.append(int(np.count_nonzero(target != before)))
            self.missed.append(int(np.count_nonzero(target != after)))
            shown = (grey_levels(each, self.window) for each in (clean, adversarial))
            self.seen.append(largest_spot(*shown).levels if size.any() else 0.0)
            disputed = (before != after) | (before != target)
            for mask in (before, after, target):
                for label, count in zip(*np.unique(mask, return_counts=True), strict=True):
                    weight = labels.setdefault(int(label), [0, 0])
                    weight[0] += int(np.count_nonzero(disputed & (mask == label)))
                    weight[1] += int(count)
            keep |= self._inside(clean) | (before != 0) | (after != 0) | (target != 0) | (size > 0)
        self._box = box_around(keep)
        self._range, self._largest = (float(lowest), float(highest)), float(largest)
        low, high = self.window
        span = float(highest - lowest)
        whole = rest <= _WHOLE * span and span <= 65535
        self._offset = float(np.rint(lowest)) if whole else float(lowest)
        self._step = 1.0 if whole else max(span / 65535, min(high - low, span) / _STEPS) or 1.0
        whole = difference_rest <= _WHOLE * largest and largest < 32768
        self._difference_step = 1.0 if whole else self._largest / _STEPS
        values = np.concatenate(changed)
        self._colour_limit = float(np.percentile(values, 99.5)) if values.size else 0.0
        # First those whose three masks disagree most, then the largest.
        self._labels = sorted((label for label in labels if label), key=lambda label: labels[label], reverse=True)

    def near(self) -> list[int]:
        """Slices that changed, were asked to, or missed the target, with their neighbours; some slice at least."""
        busy = [p for p in range(len(self.order)) if self.change[p] or self.asked[p] or self.missed[p]]
        busy = busy or [len(self.order) // 2]
        around = {p + shift for p in busy for shift in range(-_NEIGHBOURS, _NEIGHBOURS + 1)}
        return sorted(p for p in around if 0 <= p < len(self.order))

    def viewer(self) -> ViewerFacts:
        """What the script of a page gets of the whole stack."""
        volumes = self._volumes
        axis = volumes.slice_axis
        _, letters, aspect = oriented_slice(volumes.clean, volumes.affine, axis, 0)
        body_axis = int(io_orientation(volumes.affine)[axis, 0])
        sides = (POSITIVE[body_axis], NEGATIVE[body_axis])
        down, across = self._box
        weight: Sequence[float] | None = next(
            (w for w in (self.seen, self.change, self.asked, self.missed) if any(w)), None
        )
        return ViewerFacts(
            rows=down.stop - down.start,
            columns=across.stop - across.start,
            aspect=round(aspect, 6),
            letters=tuple(letters),
            plane=PLANES[body_axis],
            axis="ijk"[axis],
            unit=volumes.unit,
            channel=volumes.channel,
            window=(_rounded(self.window[0]), _rounded(self.window[1])),
            range=(_rounded(self._range[0]), _rounded(self._range[1])),
            reach=_rounded(self._colour_limit),
            largest=_rounded(self._largest),
            offset=self._offset,
            step=self._step,
            difference_step=self._difference_step,
            labels=self._labels,
            colours=[class_colour(label) for label in self._labels],
            index=self.order,
            position=[f"{sides[round(mm, 1) < 0]} {abs(mm):.1f} mm" for mm in self._mm],
            change=[_rounded(value) for value in self.change],
            asked=self.asked,
            missed=self.missed,
            pixels_per_degree=_rounded(Screen.of(self._plane("clean", 0).shape).pixels_per_degree),
            seen=[_rounded(value) for value in self.seen],
            start=int(np.argmax(weight)) if weight else len(self.order) // 2,
        )

    def encoded(self, place: int, halved: bool) -> str:
        """One slice, see the module. Halved: both scans as means of 2 x 2 pixels, the masks as they are."""
        clean, adversarial, before, after, target = (plane[self._box] for plane in self._planes(place))
        if halved:
            clean, adversarial = _half(clean), _half(adversarial)
        difference = adversarial - clean
        codes = (
            np.rint((clean - self._offset) / self._step).astype(np.int64),
            np.rint(difference / self._difference_step).astype(np.int64),
            before,
            after - before,
            target - before,
        )
        return base64.b64encode(zlib.compress(b"".join(map(_packed, codes)), 6)).decode("ascii")


def _packed(codes: NDArray[np.int64]) -> bytes:
    """A plane (rows, columns) of whole numbers modulo 65536 as in the module's description."""
    steps = np.diff(codes, axis=1, prepend=0) & 0xFFFF
    return bytes((steps & 0xFF).astype(np.uint8).tobytes() + (steps >> 8).astype(np.uint8).tobytes())


def _half(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of 2 x 2 pixels; odd sizes repeat their edge."""
    padded = np.pad(picture, [(0, n % 2) for n in picture.shape], mode="edge")
    rows, columns = (ceil(n / 2) for n in picture.shape)
    return np.asarray(padded.reshape(rows, 2, columns, 2).mean(axis=(1, 3)))


def _rounded(value: float) -> float:
    """Six significant digits: what summing in another order changes is not there."""
    return float(f"{value:.6g}")
