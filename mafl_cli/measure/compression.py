"""Slices as they come back from lossy compression."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

Slices = NDArray[np.float64]


def jpeg2000(slices: Slices, ratio: float, low: float, high: float) -> Slices:
    """Slices (N, H, W) through JPEG 2000, irreversible, as archives compress: 16 / ratio bits a pixel.

    low, high: the values that the 16 bits go from and to; what lies outside is cut off.
    """
    grey = np.rint(np.clip((slices - low) / max(high - low, 1e-30), 0, 1) * 65535).astype(np.uint16)
    again = [
        through(each, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True) for each in grey
    ]
    return np.stack(again) / 65535 * (high - low) + low


def through(grey: NDArray[np.uint8] | NDArray[np.uint16], form: str, **options: object) -> Slices:
    """A picture (H, W), written in one of Pillow's formats and read again."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, form, **options)
    return np.asarray(Image.open(stream), np.float64)
