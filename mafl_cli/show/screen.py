"""What a screen makes of a slice and of a change: grey levels in a window, and where a reader would look first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WHITE = 255
"""The brightest grey level of a screen; black is 0."""
# What is finer than this, sigma of a Gaussian in pixels, is grain to a reader: a spot is seen, a single pixel is not.
_SPOT = 1.5


def grey_levels(plane: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """A plane (H, W), native units, in the grey levels that a screen of 256 has, rounded, (H, W).

    window: the native values shown black and white.
    """
    low, high = window
    return np.rint(np.clip((plane.astype(np.float64) - low) / (high - low), 0, 1) * WHITE).astype(np.uint8)


@dataclass(frozen=True)
class Spot:
    """Where a reader would look first: a pixel of a plane, and the displayed change around it, 0 to 255 grey levels."""

    row: int
    column: int
    levels: float


def largest_spot(clean: NDArray[np.uint8], adversarial: NDArray[np.uint8]) -> Spot:
    """The largest displayed change of two planes (H, W) of grey levels, averaged over small spots.

    Its `levels` are 0 where the screen shows no difference; then the place says nothing.
    """
    from scipy import ndimage

    change = adversarial.astype(np.float64) - clean
    blurred = np.abs(ndimage.gaussian_filter(change, _SPOT, mode="nearest"))
    row, column = np.unravel_index(int(blurred.argmax()), blurred.shape)
    return Spot(int(row), int(column), float(blurred[row, column]))
