"""From native voxels to what the network sees, differentiable, with the clean scan's statistics frozen.

Those of nnU-Net's crop follow the scan instead, see `Preprocessing.moves`.

The perturbation lives in native units on the file's own grid, so this map is inside the attacked function and
nothing has to be inverted afterwards: a voxel outside the window gets no gradient and stays bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mafl_cli.errors import InputError
from mafl_cli.field.boxes import on_last_axes
from mafl_cli.field.crop import Crop
from mafl_cli.field.resample import Box
from mafl_cli.measure.quantiles import percentiles
from mafl_cli.network.intensity import Intensity

Turn = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Preprocessing:
    """Intensity map with frozen statistics.

    offset, unit: (C,), y = (x - offset) / unit + start; `unit` is native units per model unit.
    low, high: (C,), native: the range of the clean scan, the data box of the attack.
    crop: the box that the network sees, to whose voxels all this applies; None for the whole scan.
    each: that of every channel alone, where they are scaled in different ways; or that of every member of an ensemble,
        of which the first gives offset and unit.
    turn: (1, I, J, K) -> (1, 1, a, b, c), a scan's axes to the batch's; for the crop.
    """

    intensity: Intensity
    offset: Tensor
    unit: Tensor
    low: Tensor
    high: Tensor
    crop: Crop | None = None
    each: tuple[Preprocessing, ...] = ()
    turn: Turn | None = None

    @staticmethod
    def freeze(
        intensity: Intensity,
        scan: Sequence[np.ndarray[Any, Any]],
        device: torch.device,
        *,
        turn: Turn | None = None,
    ) -> Preprocessing:
        """Take the statistics of `scan`, (I, J, K) native units for each channel, whole volume per channel.

        turn: of a network that sees the crop alone; None for one that sees the whole scan.
        Raises InputError if a channel has no spread to scale by.
        """
        if turn is None:
            return Preprocessing._of(intensity, scan, device)
        turned = [turn(channel[np.newaxis])[0, 0] for channel in scan]
        crop = Crop.of(turned, device)
        cut = [channel[crop.box] for channel in turned]
        there = replace(Preprocessing._of(intensity, cut, device, crop), turn=turn)
        normal = there(torch.from_numpy(np.stack(cut)[np.newaxis].astype(np.float32)).to(device))[0]
        lines = (normal.movedim(axis, 1).flatten(2) for axis in range(1, normal.ndim))
        ranges = tuple((line.amin(dim=-1), line.amax(dim=-1)) for line in lines)
        return replace(there, crop=replace(crop, ranges=ranges))

    def again(self, scan: Sequence[np.ndarray[Any, Any]]) -> Preprocessing:
        """The same with the statistics of another scan. Raises: as `freeze`."""
        return Preprocessing.freeze(self.intensity, scan, self.unit.device, turn=self.turn)

    @staticmethod
    def _of(
        intensity: Intensity, scan: Sequence[np.ndarray[Any, Any]], device: torch.device, crop: Crop | None = None
    ) -> Preprocessing:
        """From all voxels of `scan`, which is the crop where there is one."""
        if intensity.kind == "members":
            members = tuple(Preprocessing._of(one, scan, device, crop) for one in intensity.each)
            return replace(members[0], intensity=intensity, each=members)
        if intensity.kind == "each":
            each = tuple(
                Preprocessing._of(intensity.of_channel(number), [channel], device, crop)
                for number, channel in enumerate(scan)
            )
            return Preprocessing(
                intensity,
                offset=torch.cat([one.offset for one in each]),
                unit=torch.cat([one.unit for one in each]),
                low=torch.cat([one.low for one in each]),
                high=torch.cat([one.high for one in each]),
                crop=crop,
                each=each,
            )
        offsets, units = [], []
        inside = None if crop is None or intensity.region != "filled" else crop.filled[0, 0].cpu().numpy()
        for channel in scan:
            offset, unit = _scaling(intensity, channel if inside is None else channel[inside])
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
            crop=crop,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) native -> the same voxels in model units; those of the crop where there is one.

        Where members of an ensemble scale differently, (B, M * C, *spatial).
        """
        if self.intensity.kind == "members":
            return torch.cat([one(x) for one in self.each], dim=1)
        if self.each:
            return torch.cat([one(x[:, number : number + 1]) for number, one in enumerate(self.each)], dim=1)
        if self.intensity.kind == "ct":
            x = x.clamp(self.intensity.lower, self.intensity.upper)
        offset, unit = self._moving(x) if self.moves else (per_channel(self.offset, x), per_channel(self.unit, x))
        y = (x - offset) / unit
        if self.intensity.kind in ("window", "percentile"):
            y = y + self.intensity.to[0]
        if self.intensity.region == "filled" and self.crop is not None:
            y = y * self.crop.filled
        elif self.nonzero_only:
            # `x != 0` on the voxels at hand, not a stored mask: `keep` makes sure that no voxel changes sides.
            y = y * (x != 0)
        if self.intensity.clip is not None:
            y = y.clamp(*self.intensity.clip)
        return y

    @property
    def moves(self) -> bool:
        """Whether statistics follow the scan at hand, and gradients go through them: z-scores of the crop.

        A crop holds few voxels beside an organ, whose change then changes the scaling of all others: a search with the
        clean scan's mean and deviation would end at a scan that looks otherwise with its own.
        """
        return self.crop is not None and any(one.kind == "zscore" for one in self.intensity.plain)

    @property
    def window(self) -> tuple[Tensor, Tensor] | None:
        """Native values, (C,) each, beyond which the network sees no difference; None where it sees all.

        It is told for CT normalization alone, which clips native values: there the ends are exact.
        """
        if self.intensity.kind == "ct":
            return torch.full_like(self.unit, self.intensity.lower), torch.full_like(self.unit, self.intensity.upper)
        if all(one.window is None for one in self.each):
            return None
        far = [torch.full_like(one.unit, torch.inf) for one in self.each]
        windows = [one.window or (-end, end) for one, end in zip(self.each, far, strict=True)]
        low, high = ([window[side] for window in windows] for side in range(2))
        if self.intensity.kind == "members":  # What any of them sees is seen.
            return torch.stack(low).amin(dim=0), torch.stack(high).amax(dim=0)
        return torch.cat(low), torch.cat(high)

    def _moving(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the crops `x`, (B, C, 1, ...), as `_scaling` takes them."""
        assert self.crop is not None
        axes = tuple(range(2, x.ndim))
        inside = self.crop.filled if self.intensity.region == "filled" else torch.ones_like(self.crop.filled)
        count, values = inside.sum(), x.double()
        mean = (values * inside).sum(dim=axes, keepdim=True) / count
        spread = (((values - mean) ** 2 * inside).sum(dim=axes, keepdim=True) / count).sqrt()
        return mean.to(x.dtype), spread.to(x.dtype)

    def cut(self, box: Box) -> Preprocessing:
        """For the voxels in a box of the crop alone."""
        if self.crop is None:
            return self
        crop = replace(self.crop, filled=self.crop.filled[on_last_axes(box)])
        return replace(self, crop=crop, each=tuple(one.cut(box) for one in self.each))

    def is_as(self, other: Preprocessing) -> bool:
        """Whether another one makes the same of every voxel."""
        return (
            self.intensity == other.intensity
            and torch.equal(self.offset, other.offset)
            and torch.equal(self.unit, other.unit)
            and (other.crop is None if self.crop is None else self.crop.is_as(other.crop))
            and all(one.is_as(another) for one, another in zip(self.each, other.each, strict=True))
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
        return any(one.kind == "zscore" and one.region in ("nonzero", "filled") for one in self.intensity.plain)

    def keep(self, x: Tensor) -> Tensor:
        """Voxels of the clean batch that must not change, or the frozen statistics would no longer be the file's.

        Args: x: (B, C, *spatial), clean, native, the whole scan.  Returns: bool, like x.
        """
        if self.intensity.kind == "members":
            return torch.stack([one.keep(x) for one in self.each]).any(dim=0)
        if self.crop is not None:
            # Its holes may change: they are filled either way.
            return self._keep_values(x) | self.crop.outside(x.shape[2:])
        return x == 0 if self.nonzero_only else self._keep_values(x)

    def _keep_values(self, x: Tensor) -> Tensor:
        if self.each:
            return torch.cat([one._keep_values(x[:, n : n + 1]) for n, one in enumerate(self.each)], dim=1)
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
