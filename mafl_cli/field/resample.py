"""Linear resampling between two regular grids: separable, differentiable, and able to work on a part of the volume.

Each axis has a table: output index j takes source[low[j]] and its successor with weights 1 - w[j] and w[j]. A part of
the output needs only a part of the input, which `cut` finds; a crop resampled that way equals the crop of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mafl_cli.config import Resampling

Box = tuple[slice, ...]

_SAME = 1e-3  # mm; MONAI's Spacing leaves an axis alone that is this near to the wanted spacing.


@dataclass(frozen=True)
class Axis:
    """One axis. low: (n,) int64, source indices; weight: (n,) float32, in [0, 1], of source low + 1; size: inputs."""

    low: Tensor
    weight: Tensor
    size: int

    @staticmethod
    def at(positions: Tensor, size: int) -> Axis:
        """Sampled at (n,) float64 source coordinates; outside the source its border value goes on."""
        inside = positions.clamp(0, size - 1)
        low = inside.floor().long()
        return Axis(low, (inside - low).float(), size)

    @cached_property
    def high(self) -> Tensor:
        """(n,), the other source index; the same where the first one is all."""
        return self.low + (self.weight > 0)

    @cached_property
    def is_identity(self) -> bool:
        """Whether the output is the input."""
        return len(self.low) == self.size and bool((self.low + self.weight == torch.arange(self.size)).all())

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """`low`, `high` and `weight` on a device, brought there once: on a GPU each trip waits for the step to end."""
        if device not in self._there:
            low, high, weight = (table.to(device) for table in (self.low, self.high, self.weight))
            self._there[device] = (low, high, weight)
        return self._there[device]

    @cached_property
    def _there(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor]]:
        return {}

    def needs(self, part: slice) -> slice:
        """The inputs that outputs `part` are made of."""
        return slice(int(self.low[part].min()), int(self.high[part].max()) + 1)

    def cut(self, part: slice, source: slice) -> Axis:
        """The table for outputs `part`, given inputs `source` alone."""
        return Axis(self.low[part] - source.start, self.weight[part], source.stop - source.start)


@dataclass(frozen=True)
class Resample:
    """Resampling of the last axes of a tensor, a table for each."""

    axes: tuple[Axis, ...]

    @staticmethod
    def identity(shape: Sequence[int]) -> Resample:
        """Every voxel as it is."""
        return Resample(tuple(Axis.at(torch.arange(size, dtype=torch.float64), size) for size in shape))

    @property
    def shape_in(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def shape_out(self) -> tuple[int, ...]:
        return tuple(len(axis.low) for axis in self.axes)

    def needs(self, box: Box) -> Box:
        """The part of the input that the outputs in `box` are made of."""
        return tuple(axis.needs(part) for axis, part in zip(self.axes, box, strict=True))

    def within(self, source: Box) -> Box:
        """The outputs that the inputs in `source` suffice for."""
        found = []
        for axis, given in zip(self.axes, source, strict=True):
            index = torch.nonzero((axis.low >= given.start) & (axis.high < given.stop)).flatten()
            found.append(slice(int(index.min()), int(index.max()) + 1))
        return tuple(found)

    def cut(self, box: Box, source: Box) -> Resample:
        """The resampling of the inputs in `source` alone to the outputs in `box`; `source` holds `needs(box)`."""
        return Resample(tuple(axis.cut(part, given) for axis, part, given in zip(self.axes, box, source, strict=True)))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., *shape_in) -> (..., *shape_out)."""
        for dim, axis in enumerate(self.axes, start=x.ndim - len(self.axes)):
            if axis.is_identity:
                continue
            at_low, at_high, weight = axis.on(x.device)
            low, high = x.index_select(dim, at_low), x.index_select(dim, at_high)
            x = low + (high - low) * weight.view(-1, *(1,) * (x.ndim - dim - 1))
        return x


@dataclass(frozen=True)
class Grids:
    """The scan's grid and the network's: from native voxels to where the network looks, and its logits back."""

    to_network: Resample
    from_network: Resample

    @staticmethod
    def same(shape: Sequence[int]) -> Grids:
        """The network looks at the native voxels."""
        return Grids(Resample.identity(shape), Resample.identity(shape))

    @staticmethod
    def at_spacing(shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float], kind: Resampling) -> Grids:
        """The network looks at a grid with another spacing, mm along each axis.

        corner: the centres of the first voxels coincide, as in MONAI's Spacing. edge: the outer edges coincide, as
        in nnU-Net's resize and PyTorch's interpolate; there the spacing that is reached is rounded to whole voxels.
        """
        to_network, from_network = [], []
        for size, old, new in zip(shape, spacing, wanted, strict=True):
            if kind == "corner" and abs(new - old) <= _SAME:
                new = old
            # In the order of operations of MONAI and of nnU-Net, so that half voxels are rounded as there.
            count = round((size - 1) * (old * (1 / new)) + 1) if kind == "corner" else max(1, round(old / new * size))
            ratio = new / old if kind == "corner" else size / count
            shift = 0.0 if kind == "corner" else 0.5
            out, source = (torch.arange(n, dtype=torch.float64) for n in (count, size))
            to_network.append(Axis.at((out + shift) * ratio - shift, size))
            from_network.append(Axis.at((source + shift) / ratio - shift, count))
        return Grids(Resample(tuple(to_network)), Resample(tuple(from_network)))
