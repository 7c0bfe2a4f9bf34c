"""The ruler of a search that is to find what cannot be seen: the eye, and the noise of the scan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mafl_cli.case.problem import Problem
from mafl_cli.config import AttackConfig
from mafl_cli.measure.observer import Screen, eye
from mafl_cli.search.ruler import Largest, Plain, Ruler, Visible


class Rulers:
    """Makes the ruler of each part of a case, whose noise is measured once."""

    def __init__(self, case: Problem, config: AttackConfig) -> None:
        self._plane = case.plane
        self._screen = Screen.of(tuple(case.seen.clean.shape[axis] for axis in case.plane))
        self._linf = config.minimise == "linf"
        self._noise: Tensor | None = None
        if config.minimise == "visibility":
            unit = case.limits.unit
            found = [None if each is None else each.sigma for each in case.noise()]
            # Channels without noise that can be measured: all count alike, in model units.
            shares = [1.0 if None in found else float(sigma or 1.0) for sigma in found]
            self._noise = torch.tensor(shares, device=unit.device) / (1.0 if None in found else unit)

    def of(self, clean: Tensor) -> Ruler:
        """For samples (b, C, *spatial), cut to the part that is attacked."""
        if self._noise is None:
            return Largest() if self._linf else Plain()
        rows, columns = (clean.shape[axis] for axis in self._plane)
        half = np.ascontiguousarray(eye((rows, columns), self._screen)[:, : columns // 2 + 1])
        return Visible(torch.from_numpy(half).to(clean), self._noise.to(clean), self._plane)
