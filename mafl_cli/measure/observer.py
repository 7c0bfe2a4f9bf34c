"""Who looks, and how well: an eye at a screen, and an observer that knows what to look for.

The observer is the non-prewhitening one with an eye filter (NPWE; Burgess, J. Opt. Soc. Am. A 11, 1994): it holds the
change, filtered by the eye, against what it sees. It knows the change and its place, which no reader does, and has no
noise of its own, so it sees much that readers do not. It compares changes, and says who is certain not to see one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import atan, degrees, erf, sqrt

import numpy as np
from numpy.typing import NDArray

from mafl_cli.measure.noise import Noise, frequencies

Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Screen:
    """How slices are looked at.

    pixel_mm: side of a pixel of the slice on the screen. distance_mm: from there to the eye.
    """

    pixel_mm: float
    distance_mm: float = 500.0

    @staticmethod
    def of(shape: tuple[int, ...]) -> Screen:
        """Slices (H, W) are enlarged until the longer side is `SHOWN` mm."""
        return Screen(SHOWN / max(shape))

    @property
    def pixels_per_degree(self) -> float:
        """Pixels of a slice in a degree of the field of view."""
        return 1 / degrees(atan(self.pixel_mm / self.distance_mm))


SHOWN = 250.0
"""The longer side of a slice on the screen, mm; it is seen from half a metre."""


def eye(shape: tuple[int, int], screen: Screen) -> Plane:
    """What the eye makes of the frequencies of `np.fft.fft2` of a plane (H, W): 1 where it sees best, 0 of a constant.

    E(f) = f^1.3 exp(-0.04 f²), f in cycles per degree (Burgess, 1994; as in the FDA's LCD_CT), over its largest value.
    """
    f = frequencies(shape) * screen.pixels_per_degree
    best = sqrt(1.3 / 0.08)
    found: Plane = (f / best) ** 1.3 * np.exp(-0.04 * (f**2 - best**2))
    return found


def detectability(change: Plane, noise: Noise, screen: Screen) -> float:
    """d′ of a change (H, W), native units, at least 0: how many standard deviations it moves the observer's answer.

    d′² = (Σ E²|Δ|²)² / Σ E⁴|Δ|² NPS, over the frequencies of the plane. It grows in proportion to the change.
    """
    power = np.abs(np.fft.fft2(change)) ** 2 / change.size
    filtered = eye(change.shape, screen) ** 2
    signal = float((filtered * power).sum())
    variance = float((filtered**2 * power * noise.spectrum(change.shape)).sum())
    return signal / sqrt(variance) if variance > 0 else 0.0


def percent_correct(d: float) -> float:
    """How often an observer with that d′ names the changed one of two images: Φ(d′ / √2), from 0.5 to 1."""
    return (1 + erf(d / 2)) / 2
