"""What a screen makes of a slice and of a change: grey levels in a window, and where a reader would look first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.measure.observer import Screen, eye

WHITE = 255
"""The brightest grey level of a screen; black is 0."""
# What is finer than this, sigma of a Gaussian in pixels, is grain to a reader: a spot is seen, a single pixel is not.
_SPOT = 1.5
# The neighbourhood whose noise and texture hide a change, sigma of a Gaussian in pixels, as in `measure.noise`; and the
# least border around a picture that is filtered.
_AROUND, _BORDER = 4.0, 8
LOST, PLAIN = 1.0, 3.0
"""Values of `visible_where`: up to the first the map shows nothing, from the second its strongest colour."""


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


def visible_where(clean: NDArray[np.uint8], adversarial: NDArray[np.uint8], screen: Screen) -> NDArray[np.float64]:
    """Where a reader would see the change of a plane: the displayed change over the noise and texture around it.

    Both go through the eye filter (`measure.observer.eye`). The noise and texture are what the clean picture has of
    them in spots of `_AROUND` pixels, root of the mean square, and at least one grey level.

    Args: clean, adversarial: (H, W), grey levels. screen: how large the plane is seen.
    Returns: (H, W), at least 0: below 1 the change is lost in what is there anyway.
    """
    from scipy import ndimage

    change, picture = (_through_the_eye(each, screen) for each in (adversarial.astype(np.float64) - clean, clean))
    square = ndimage.gaussian_filter(picture**2, _AROUND, mode="nearest")
    found: NDArray[np.float64] = np.abs(change) / np.sqrt(square + 1)
    return found


def _through_the_eye(picture: NDArray[Any], screen: Screen) -> NDArray[np.float64]:
    """A picture (H, W) as the eye filters it. Beyond the border is what lies at it."""
    high, wide = picture.shape
    # Powers of two, as the page has them, whose own Fourier transform takes no other sizes.
    whole = tuple(1 << (size + 2 * _BORDER - 1).bit_length() for size in (high, wide))
    up, left = (whole[0] - high) // 2, (whole[1] - wide) // 2
    ends = ((up, whole[0] - high - up), (left, whole[1] - wide - left))
    padded = np.pad(picture.astype(np.float64), ends, mode="edge")
    seen = np.fft.ifft2(np.fft.fft2(padded) * eye((whole[0], whole[1]), screen)).real
    found: NDArray[np.float64] = seen[up : up + high, left : left + wide]
    return found
