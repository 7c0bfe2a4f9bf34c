"""Whether a change of arrays can be seen. No test in here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.measure.records import Visibility
from mafl_cli.measure.visibility import visibility_of


class Scan:
    """A volume (I, J, K) of which nothing but its voxels matters."""

    def __init__(self, data: NDArray[Any]) -> None:
        self.data = np.asarray(data, np.float32)
        self.axcodes = ("R", "A", "S")


def visibility(clean: NDArray[Any], adversarial: NDArray[Any], *, channel: str = "image", axis: int = 2) -> Visibility:
    """Of one channel, slices along `axis`, with nothing outside."""
    scans: Any = [Scan(clean)], [Scan(adversarial)]
    return visibility_of(*scans, channels=[channel], slice_axis=axis, outside=[None])
