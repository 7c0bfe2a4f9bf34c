"""What every way of showing a scan shares: the colours of classes, and the grey values that are shown."""

from __future__ import annotations

import colorsys
import math

from mafl_cli.errors import UsageError
from mafl_cli.measure.presets import WINDOWS
from mafl_cli.names import outside

# Okabe and Ito's palette (Color Universal Design, 2008) without its black and its dark blue, which drown in grey.
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00")

MAX_MB: float = 20
"""Largest size of a page, unless a user says otherwise: it goes through mail gateways, and most stop larger ones."""

PAIRS = 100
"""Pairs of a reader study, unless a user says otherwise: where none of 50 changed pairs is recognised, the true share
is at most 7 %, and at six seconds a pair it takes a reader ten minutes."""


def class_colour(label: int) -> str:
    """The colour "#RRGGBB" of a class, 1 and up: the palette's, and then hues that no earlier class has.

    Steps of the golden ratio around the circle of hues never come back to one, and keep neighbours far apart.
    """
    if label <= len(CLASS_COLOURS):
        return CLASS_COLOURS[label - 1]
    hue = label * (math.sqrt(5) - 1) / 2 % 1
    rgb = colorsys.hsv_to_rgb(hue, (0.85, 0.55)[label % 2], (0.95, 0.75)[label // 2 % 2])
    return "#" + "".join(f"{round(255 * part):02X}" for part in rgb)


def parse_window(text: str, *, hounsfield: bool) -> tuple[float, float]:
    """The values shown black and white: of a preset's name, or of "LOW,HIGH" in native units.

    hounsfield: the scan is in HU; presets have no meaning elsewhere.
    Raises: UsageError for a preset without HU, and for anything else that is not a window.
    """
    if text in WINDOWS:
        if not hounsfield:
            raise UsageError(f"`window` {text} is for CT, in HU: give LOW,HIGH in the scan's own units.")
        level, width = WINDOWS[text]
        return level - width / 2, level + width / 2
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"`window` must be LOW,HIGH with LOW below HIGH, or one of {', '.join(WINDOWS)}, got {outside(text)!r}."
        )
    return low, high
