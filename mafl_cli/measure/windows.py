"""The grey values in which a scan is looked at: those of CT, as radiologists use them, and what fits any other scan."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.measure.presets import WINDOWS
from mafl_cli.measure.quantiles import percentiles
from mafl_cli.measure.records import Window

# In which every CT is read; the brain's would make noise of an abdomen.
_EVERY_CT = {"soft": "soft tissue", "lung": "lung", "bone": "bone"}


def windows_of(
    clean: NDArray[Any], adversarial: NDArray[Any], channel: str, outside: NDArray[np.bool_] | None
) -> tuple[Window, ...]:
    """The windows of a channel, at least one; what a reader would see in any of them can be seen.

    One of no width is given only for two scans that hold one and the same value.

    Args:
        clean, adversarial: (I, J, K), native units. channel: "CT" for HU.
        outside: likewise, voxels that hold no measurement; None for none.
    """
    if channel == "CT":
        return tuple(_of_ct(name) for name in _EVERY_CT)
    low, high = percentiles(clean, (1, 99), where=None if outside is None else ~outside)
    if low < high:
        return (Window(low=low, high=high, rule="1st to 99th percentile of what is measured"),)
    # Nearly all of the scan has one value: a viewer shows what else there is.
    low, high = float(clean.min()), float(clean.max())
    if low < high:
        return (Window(low=low, high=high, rule="lowest to highest value"),)
    low, high = min(low, float(adversarial.min())), max(high, float(adversarial.max()))
    return (Window(low=low, high=high, rule="lowest to highest value of both scans"),)


def _of_ct(name: str) -> Window:
    level, width = WINDOWS[name]
    rule = f"{_EVERY_CT[name]}, level {level:g} HU, width {width:g} HU"
    return Window(low=level - width / 2, high=level + width / 2, rule=rule)


def shown(plane: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """The grey levels of a plane (H, W) in a window, 0 to 255, not rounded."""
    found: NDArray[np.float64] = np.clip((plane - window.low) / (window.high - window.low), 0, 1) * 255
    return found
