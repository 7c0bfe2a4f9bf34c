"""Linear resampling between two regular grids: separable, differentiable, and able to work on a part of the volume.

Each axis has a table: output index j takes source[low[j]] and its successor with weights 1 - w[j] and w[j]. A part of
the output needs only a part of the input, which `cut` finds; a crop resampled that way equals the crop of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

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

    @property
    def count(self) -> int:
        """Outputs."""
        return len(self.low)

    def apply(self, x: Tensor, dim: int) -> Tensor:
        """(..., inputs, ...) -> (..., outputs, ...) along an axis, counted from the first."""
        at_low, at_high, weight = self.on(x.device)
        low, high = x.index_select(dim, at_low), x.index_select(dim, at_high)
        return low + (high - low) * weight.view(-1, *(1,) * (x.ndim - dim - 1))

    def touched(self, x: Tensor, dim: int) -> Tensor:
        """Which outputs depend on inputs that are above 0, as numbers above 0."""
        return self.apply(x, dim)

    def cut(self, part: slice, source: slice) -> Axis:
        """The table for outputs `part`, given inputs `source` alone."""
        return Axis(self.low[part] - source.start, self.weight[part], source.stop - source.start)


class Table(Protocol):
    """One axis of a resampling, whatever its outputs are made of. size: inputs. count: outputs."""

    @property
    def size(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def is_identity(self) -> bool: ...

    def needs(self, part: slice) -> slice: ...

    def cut(self, part: slice, source: slice) -> Table: ...

    def apply(self, x: Tensor, dim: int) -> Tensor: ...

    def touched(self, x: Tensor, dim: int) -> Tensor: ...


class Bounds(Protocol):
    """What keeps the values of a resampled scan in bounds; see `spline.Clip`.

    axis: the one that is resampled after that; None where it comes last.
    """

    @property
    def axis(self) -> int | None: ...

    def __call__(self, x: Tensor, source: Tensor) -> Tensor: ...

    def cut(self, source: Box) -> Bounds: ...


@dataclass(frozen=True)
class Resample:
    """Resampling of the last axes of a tensor, a table for each.

    bounds: of its values, for scans alone. plain: linear tables for the same grids, for what is not a scan; None where
    `axes` are linear themselves.
    """

    axes: tuple[Table, ...]
    bounds: Bounds | None = None
    plain: tuple[Axis, ...] | None = None

    @staticmethod
    def identity(shape: Sequence[int]) -> Resample:
        """Every voxel as it is."""
        return Resample(tuple(Axis.at(torch.arange(size, dtype=torch.float64), size) for size in shape))

    @property
    def shape_in(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def shape_out(self) -> tuple[int, ...]:
        return tuple(axis.count for axis in self.axes)

    def needs(self, box: Box) -> Box:
        """The part of the input that the outputs in `box` are made of."""
        return tuple(axis.needs(part) for axis, part in zip(self.axes, box, strict=True))

    def within(self, source: Box) -> Box:
        """The outputs that the inputs in `source` suffice for."""
        found = []
        for axis, given in zip(self.tables, source, strict=True):
            index = torch.nonzero((axis.low >= given.start) & (axis.high < given.stop)).flatten()
            found.append(slice(int(index.min()), int(index.max()) + 1))
        return tuple(found)

    def cut(self, box: Box, source: Box) -> Resample:
        """The resampling of the inputs in `source` alone to the outputs in `box`; `source` holds `needs(box)`."""
        parts = tuple(zip(box, source, strict=True))
        return Resample(
            tuple(axis.cut(*part) for axis, part in zip(self.axes, parts, strict=True)),
            None if self.bounds is None else self.bounds.cut(source),
            None
            if self.plain is None
            else tuple(axis.cut(*part) for axis, part in zip(self.plain, parts, strict=True)),
        )

    @property
    def tables(self) -> tuple[Axis, ...]:
        """Its axes, where all of them are tables of two neighbours, as those of logits are."""
        return tuple(axis for axis in self.axes if isinstance(axis, Axis))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., *shape_in) -> (..., *shape_out); (B, C, *shape_in) of scans where they have bounds."""
        first, source = x.ndim - len(self.axes), x
        last = None if self.bounds is None else self.bounds.axis
        for index, axis in enumerate(self.axes):
            if index != last and not axis.is_identity:
                x = axis.apply(x, first + index)
        if self.bounds is not None:
            x = self.bounds(x, source)
            if last is not None and not self.axes[last].is_identity:
                x = self.axes[last].apply(x, first + last)
        return x

    def seen(self, x: Tensor) -> Tensor:
        """A map (..., *shape_in) that is not a scan: linear, in no bounds."""
        return self(x) if self.plain is None else Resample(self.plain)(x)

    def touched(self, x: Tensor) -> Tensor:
        """Which outputs depend on inputs above 0, as numbers above 0: (..., *shape_in) -> (..., *shape_out)."""
        for dim, axis in enumerate(self.axes, start=x.ndim - len(self.axes)):
            x = x if axis.is_identity else axis.touched(x, dim)
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
