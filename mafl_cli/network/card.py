"""What a model expects of its input and gives as output: the *card*.

A TorchScript file says nothing about axes, intensities or class names. They come from, in this order: command-line
flags, a TOML file beside the model (`NAME.toml` for `NAME.ts`, else `model.toml`), and last an assumption, which is
spoken out loud and written into the report. No torch here, so that reading a card is instant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mafl_cli.config import Activation, Blend, Resampling, SliceAxisChoice, WindowsAs
from mafl_cli.errors import UsageError
from mafl_cli.names import outside
from mafl_cli.network.intensity import Intensity

Spacing = Sequence[float] | Literal["native"]
"""mm along the model's axes, or the scan's own, whatever a card says."""
WindowSize = Sequence[int] | Literal["none"]
"""Voxels of sliding windows, or no windows, whatever a card says."""


@dataclass(frozen=True)
class Interpolation:
    """How nnU-Net brings an array onto another grid.

    order: of the splines, 0, 1 or 3. across: order along the axis of thick slices, where that goes separately.
    separate: whether it does; None where either spacing is more than `threshold` times as large there as elsewhere.
    """

    order: int
    across: int = 0
    separate: bool | None = None
    threshold: float = 3.0

    def axis(self, current: Sequence[float], wanted: Sequence[float]) -> int | None:
        """The axis that goes separately, from a spacing to another one; None if all go together."""
        chosen = next((mm for mm in (current, wanted) if max(mm) / min(mm) > self.threshold), None)
        if self.separate is not None:
            chosen = current if self.separate else None
        if chosen is None:
            return None
        thick = [axis for axis, mm in enumerate(chosen) if max(chosen) / mm == 1]
        return thick[0] if len(thick) == 1 else None


@dataclass(frozen=True)
class Resize:
    """How a scan gets onto the network's grid, and its logits back, as nnU-Net resizes them: outer edges coincide."""

    image: Interpolation
    logits: Interpolation


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known about a model. None means: not stated, found out at load or assumed.

    orientation: axcodes ("RAS") the network was trained in, "native" for the file's own axis order, or the file's axes
        in the network's order ("kji").
    spacing: mm along the axes of the orientation (the last two for slices) that the network was trained at; the scan
        is resampled to it linearly, as `resample` says: corner as MONAI's Spacing, edge by the outer edges; with
        `resize` as nnU-Net itself does it.
    crop: whether the network sees the box around the voxels that are not 0 alone; the rest is background.
    divisor: sizes are zero-padded (after scaling) to multiples of this.
    roi, overlap, blend: the network sees windows of `roi` voxels, laid out and weighted as `windows` says: as MONAI's
        sliding_window_inference, or as nnU-Net's predictor.
    classes: names by index, background first; of regions that may overlap (sigmoid, several): all of them.
    """

    name: str | None = None
    dims: int | None = None
    channels: tuple[str, ...] | None = None
    orientation: str | None = None
    slice_axis: SliceAxisChoice = "auto"
    intensity: Intensity | None = None
    spacing: tuple[float, ...] | None = None
    resample: Resampling = "corner"
    resize: Resize | None = None
    crop: bool = False
    divisor: int | None = None
    roi: tuple[int, ...] | None = None
    overlap: float = 0.5
    blend: Blend = "gaussian"
    windows: WindowsAs = "monai"
    activation: Activation | None = None
    classes: tuple[str, ...] | None = None
    source: str | None = field(default=None, compare=False)
    """File name the card was read from."""
    said: tuple[str, ...] = field(default=(), compare=False)
    """What could not be read there."""

    def merged(self, *, spacing: Spacing | None = None, roi: WindowSize | None = None, **properties: Any) -> ModelCard:
        """The card with every property that was given (is not None) put in its place."""
        given = {name: value for name, value in properties.items() if value is not None}
        if spacing is not None:
            given["spacing"] = None if isinstance(spacing, str) else tuple(spacing)
        if roi is not None:
            given["roi"] = None if isinstance(roi, str) else tuple(roi)
        return replace(self, **given)

    def with_assumptions(self) -> tuple[ModelCard, tuple[str, ...]]:
        """Fill what is not stated; returns the full card and one sentence per assumption made."""
        said = list(self.said)
        card = self
        if card.orientation is None:
            said.append("orientation: not stated, the file's own axis order is used")
            card = replace(card, orientation="native")
        if card.intensity is None:
            said.append("intensity: not stated, voxel values go into the model as they are")
            card = replace(card, intensity=Intensity())
        return card, tuple(said)


def short(value: Any) -> str:
    """A value as it is shown, if it is not too long for that."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        shown = "..."
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def check_divisor(value: int) -> int:
    """The divisor, as it was given. Raises UsageError unless networks ask for such a size: 1 to 512 voxels."""
    if not 1 <= value <= _LARGEST_DIVISOR:
        raise UsageError(f"divisor must be from 1 to {_LARGEST_DIVISOR} voxels, got {short(value)}.")
    return value


_LARGEST_DIVISOR = 512
_LARGEST_WINDOW = 2**28
"""Voxels: about 645 along each of three axes."""


def check_spacing(numbers: Sequence[float]) -> tuple[float, ...]:
    """Spacing in mm, as it was given. Raises UsageError unless it is two or three numbers, a micrometre to a metre."""
    if len(numbers) not in (2, 3) or not all(0 < number < math.inf for number in numbers):
        raise UsageError(f"`spacing` must be two or three numbers above 0, in mm, got {_shown(numbers)}.")
    if not all(1e-3 <= number <= 1e3 for number in numbers):
        raise UsageError(f"`spacing` must be from 0.001 to 1000 mm, got {_shown(numbers)}.")
    return tuple(float(number) for number in numbers)


def check_roi(numbers: Sequence[float]) -> tuple[int, ...]:
    """The size of a window in voxels. Raises UsageError unless it is two or three whole numbers above 0."""
    if len(numbers) not in (2, 3) or not all(1 <= each < math.inf and each == int(each) for each in numbers):
        raise UsageError(f"`roi` must be two or three whole numbers of voxels, got {_shown(numbers)}.")
    if math.prod(numbers) > _LARGEST_WINDOW:
        raise UsageError(f"`roi` must have at most {_LARGEST_WINDOW} voxels in all, got {_shown(numbers)}.")
    return tuple(int(number) for number in numbers)


def check_overlap(value: float) -> float:
    """The overlap, a share of a window. Raises UsageError unless it is at least 0 and below 1."""
    if not 0 <= value < 1:
        raise UsageError(f"`overlap` must be at least 0 and below 1, got {value:g}.")
    return float(value)


def _shown(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers[:4]) + ("" if len(numbers) <= 4 else ",...")


def check_orientation(codes: str) -> str:
    """Return `codes` in upper case ("native" and the file's own axes, as "kji", in lower case).

    Raises: UsageError unless they name three axes.
    """
    if codes.lower() == "native" or sorted(codes.lower()) == ["i", "j", "k"]:
        return codes.lower()
    upper = codes.upper()
    if len(upper) == 3 and all(len(set(upper) & set(pair)) == 1 for pair in ("LR", "PA", "IS")):
        return upper
    raise UsageError(
        f"`orientation` must be three axis codes, such as RAS, the file's axes, such as kji, or native, got "
        f"{outside(short(codes))}."
    )


def read_taps(text: str) -> tuple[tuple[str, float], ...]:
    """Read NAME or NAME:WEIGHT, several separated by commas. Raises UsageError unless weights are numbers above 0."""
    found = []
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        try:
            value = float(weight or 1)
        except ValueError:
            value = 0.0
        if not name or not 0 < value < math.inf:
            raise UsageError(f"`tap` must be NAME or NAME:WEIGHT, several separated by commas, got {outside(text)!r}.")
        found.append((name, value))
    return tuple(found)
