"""How the power of pictures is spread over spatial frequencies, averaged over all directions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Power by frequency, in rings around frequency 0, the first of which holds the mean.

    frequency: (F,), cycles/mm, the mean of each ring, out to the corners of the frequency plane.
    power: (F,), the mean squared coefficient of each ring, square of the pictures' unit.
    count: (F,), coefficients in each ring; `power` times `count` adds up to the pictures' mean sum of squares.
    nyquist: cycles/mm of the coarser axis: from there on a ring lacks directions.
    """

    frequency: NDArray[np.float64]
    power: NDArray[np.float64]
    count: NDArray[np.int64]
    nyquist: float


def radial_spectrum(pictures: Iterable[NDArray[np.floating]], spacing: tuple[float, float]) -> Spectrum:
    """The mean over pictures of their radially averaged power spectrum.

    By the orthonormal cosine transform, which sees each picture mirrored at its borders: a Fourier transform repeats
    it instead, and shows the jump from one border to the other as high frequencies that no picture has.

    Args:
        pictures: at least one, each (rows, columns), all of one shape.
        spacing: mm from row to row and from column to column.
    """
    total, pictures_seen = None, 0
    for picture in pictures:
        square = dctn(picture.astype(np.float64), norm="ortho") ** 2
        total = square if total is None else total + square
        pictures_seen += 1
    if total is None:
        raise ValueError("no pictures, no spectrum")
    axes = [np.arange(n) / (2 * n * mm) for n, mm in zip(total.shape, spacing, strict=True)]
    radius = np.hypot(axes[0][:, None], axes[1][None])
    # No ring is narrower than the coarser of the two frequency steps, or it might hold nothing.
    width = max((float(axis[1]) for axis in axes if len(axis) > 1), default=1.0)
    ring = np.rint(radius / width).astype(np.int64).ravel()
    count = np.bincount(ring)
    held = count > 0
    count = count[held]
    return Spectrum(
        frequency=np.bincount(ring, radius.ravel())[held] / count,
        power=np.bincount(ring, total.ravel())[held] / count / pictures_seen,
        count=count,
        nyquist=min((1 / (2 * mm) for n, mm in zip(total.shape, spacing, strict=True) if n > 1), default=0.0),
    )
