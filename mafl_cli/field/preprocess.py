"""From native voxels to what the network sees, differentiable, with the clean scan's statistics frozen.

The perturbation lives in native units on the file's own grid, so this map is inside the attacked function and
nothing has to be inverted afterwards: a voxel outside the window gets no gradient and stays bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mafl_cli.errors import InputError
from mafl_cli.measure.quantiles import percentiles
from mafl_cli.network.intensity import Intensity


@dataclass(frozen=True)
class Preprocessing:
    """Intensity map with frozen statistics.

    offset, unit: (C,), y = (x - offset) / unit + start; `unit` is native units per model unit.
    low, high: (C,), native: the range of the clean scan, the data box of the attack.
    """

    intensity: Intensity
    offset: Tensor
    unit: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def freeze(intensity: Intensity, scan: Sequence[np.ndarray[Any, Any]], device: torch.device) -> Preprocessing:
        """Take the statistics of `scan`, (I, J, K) native units for each channel, whole volume per channel.

        Raises InputError if a channel has no spread to scale by.
        """
        offsets, units = [], []
        for channel in scan:
            offset, unit = _scaling(intensity, channel)
            offsets.append(offset)
            units.append(unit)

        def vector(values: object) -> Tensor:
            return torch.as_tensor(np.asarray(values, dtype=np.float32), device=device)

        return Preprocessing(
            intensity,
            offset=vector(offsets),
            unit=vector(units),
            low=vector([channel.min() for channel in scan]),
            high=vector([channel.max() for channel in scan]),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) native -> the same voxels in model units."""
        if self.intensity.kind == "ct":
            x = x.clamp(self.intensity.lower, self.intensity.upper)
        y = (x - per_channel(self.offset, x)) / per_channel(self.unit, x)
        if self.intensity.kind in ("window", "percentile"):
            y = y + self.intensity.to[0]
        if self.nonzero_only:
            # `x != 0` on the voxels at hand, not a stored mask: `keep` makes sure that no voxel changes sides.
            y = y * (x != 0)
        if self.intensity.clip is not None:
            y = y.clamp(*self.intensity.clip)
        return y

    def is_as(self, other: Preprocessing) -> bool:
        """Whether another one makes the same of every voxel."""
        return (
            self.intensity == other.intensity
            and torch.equal(self.offset, other.offset)
            and torch.equal(self.unit, other.unit)
        )

    def translate(self, x: Tensor, source: Preprocessing) -> Tensor:
        """Another scan in the native units of this one: both preprocessings make the same of what they are given.

        Scanner units mean something else in every MR scan; what the network sees of it is what they have in common.
        Args: x: (B, C, *spatial), native units of `source`.  Returns: likewise, native units of this scan.
        """
        in_model_units = (x - per_channel(source.offset, x)) / per_channel(source.unit, x)
        translated = in_model_units * per_channel(self.unit, x) + per_channel(self.offset, x)
        return torch.where(x == 0, x, translated) if self.nonzero_only else translated

    @property
    def nonzero_only(self) -> bool:
        """Whether exact zeros are background by definition (and must stay exact zeros, and nothing else may)."""
        return self.intensity.kind == "zscore" and self.intensity.region == "nonzero"

    def keep(self, x: Tensor) -> Tensor:
        """Voxels of the clean batch that must not change, or the frozen statistics would no longer be the file's.

        Args: x: (B, C, *spatial), clean, native.  Returns: bool, like x.
        """
        if self.nonzero_only:
            return x == 0
        if self.intensity.kind == "minmax":
            return (x == per_channel(self.low, x)) | (x == per_channel(self.high, x))
        return torch.zeros_like(x, dtype=torch.bool)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...) for arithmetic with a (B, C, *spatial) batch."""
    return values.view(1, -1, *(1,) * (like.ndim - 2))


def _scaling(intensity: Intensity, channel: np.ndarray[Any, Any]) -> tuple[float, float]:
    """(offset, unit) of one channel, (I, J, K) native units."""
    if intensity.kind == "window":
        to_low, to_high = intensity.to
        return intensity.min, (intensity.max - intensity.min) / (to_high - to_low)
    if intensity.kind == "ct":
        return intensity.mean, intensity.std
    if intensity.kind == "percentile":
        low, high = percentiles(channel, (intensity.lower, intensity.upper))
        if low == high:
            raise InputError("percentile scaling is impossible: both percentiles have the same value.")
        to_low, to_high = intensity.to
        return low, (high - low) / (to_high - to_low)
    if intensity.kind == "minmax":
        low, high = float(channel.min()), float(channel.max())
        if low == high:
            raise InputError("min-max scaling is impossible: all voxels have the same value.")
        return low, high - low
    if intensity.kind == "zscore":
        # In one order, however the array lies in memory: the last digits of a sum depend on it.
        values = channel[channel != 0] if intensity.region == "nonzero" else np.ascontiguousarray(channel)
        # float64: a float32 sum over 10^8 voxels would lose the digits the third decimal of a z-score needs.
        spread = float(values.std(dtype=np.float64)) if values.size else 0.0
        if spread == 0:
            raise InputError("z-scoring is impossible: the voxels it would use have no spread.")
        return float(values.mean(dtype=np.float64)), spread
    return 0.0, 1.0
