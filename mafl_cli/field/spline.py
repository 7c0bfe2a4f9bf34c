"""Resampling as nnU-Net does it: cubic splines between the outer edges, thick slices apart, in the range of the scan.

nnU-Net resizes with scikit-image, which calls SciPy's splines axis by axis. A spline has no table of two neighbours:
each output depends on a dozen inputs, so an axis is a matrix here, taken from SciPy itself. What remains of the weights
far away is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mafl_cli.field.crop import PlaneRange
from mafl_cli.field.resample import Axis, Box, Grids, Resample
from mafl_cli.network.card import Interpolation, Resize

_LEAST = 1e-7
"""Weights below this share of a voxel's value are left out: what float32 cannot tell."""


@dataclass(frozen=True)
class Spline:
    """One axis. matrix: (outputs, inputs) float32."""

    matrix: Tensor

    @staticmethod
    def cubic(size: int, count: int) -> Spline:
        """`size` voxels resized to `count` by cubic splines, the outer edges on one another."""
        unit = np.eye(size)
        lines = [
            ndimage.zoom(unit[voxel], count / size, order=3, mode="nearest", grid_mode=True) for voxel in range(size)
        ]
        matrix = np.stack(lines, axis=1)
        matrix[np.abs(matrix) < _LEAST] = 0
        return Spline(torch.from_numpy(matrix.astype(np.float32)))

    @property
    def size(self) -> int:
        """Inputs."""
        return self.matrix.shape[1]

    @property
    def count(self) -> int:
        """Outputs."""
        return self.matrix.shape[0]

    is_identity = False

    def needs(self, part: slice) -> slice:
        """The inputs that outputs `part` are made of."""
        index = torch.nonzero((self.matrix[part] != 0).any(dim=0)).flatten()
        return slice(int(index.min()), int(index.max()) + 1)

    def cut(self, part: slice, source: slice) -> Spline:
        """The matrix for outputs `part`, given inputs `source` alone."""
        return Spline(self.matrix[part, source])

    def apply(self, x: Tensor, dim: int) -> Tensor:
        """(..., inputs, ...) -> (..., outputs, ...) along an axis."""
        if x.device not in self._there:
            self._there[x.device] = self.matrix.to(x.device)
        return (x.movedim(dim, -1) @ self._there[x.device].to(x.dtype).T).movedim(-1, dim)

    def touched(self, x: Tensor, dim: int) -> Tensor:
        """Which outputs depend on inputs that are above 0, as numbers above 0."""
        reach = Spline((self.matrix != 0).float())
        return reach.apply(x, dim)

    @cached_property
    def _there(self) -> dict[torch.device, Tensor]:
        return {}


@dataclass(frozen=True)
class Clip:
    """Splines overshoot: nnU-Net clips what they give to the range of what they got, for each channel.

    axis: the one along which each plane has its own range, and which goes after the others; None for the whole array.
    low, high: (C, planes), or (C, 1); of the clean scan, frozen as its statistics are. None where these follow the scan
    at hand: then so does its range.
    """

    axis: int | None
    low: Tensor | None = None
    high: Tensor | None = None

    def __call__(self, x: Tensor, source: Tensor) -> Tensor:
        """x: (B, C, a, b, c), made from `source`."""
        if self.low is None or self.high is None:
            axes = [2 + axis for axis in range(3) if axis != self.axis]
            return torch.minimum(torch.maximum(x, source.amin(axes, True)), source.amax(axes, True))
        shape = [1, len(self.low), 1, 1, 1]
        if self.axis is not None:
            shape[2 + self.axis] = self.low.shape[1]
        return torch.minimum(torch.maximum(x, self.low.view(shape)), self.high.view(shape))

    def cut(self, source: Box) -> Clip:
        """For a part of the input."""
        if self.axis is None or self.low is None or self.high is None:
            return self
        return Clip(self.axis, self.low[:, source[self.axis]], self.high[:, source[self.axis]])


def nnunet_grids(
    shape: Sequence[int],
    spacing: Sequence[float],
    wanted: Sequence[float],
    resize: Resize,
    ranges: Sequence[PlaneRange] | None = None,
) -> Grids:
    """The grid that nnU-Net resizes a volume to, and the way of its logits back.

    Args:
        shape, spacing: of the volume, along the network's axes; mm. wanted: mm, three or, for slices, the last two.
        ranges: of the normalised scan, along each axis, to which splines are clipped; None for those of what comes.
    """
    wanted = [*spacing[: len(spacing) - len(wanted)], *wanted]
    # In nnU-Net's order of operations, so that half voxels are rounded as there.
    count = [round(old / new * size) for old, new, size in zip(spacing, wanted, shape, strict=True)]
    count = [max(each, 1) for each in count]
    there = _axes(shape, count, resize.image, resize.image.axis(spacing, wanted))
    back = _axes(count, shape, resize.logits, resize.logits.axis(wanted, spacing))
    clip, separate = None, resize.image.axis(spacing, wanted)
    if any(isinstance(axis, Spline) for axis in there):
        clip = Clip(separate)
        if ranges is not None:
            low, high = ranges[separate or 0]
            if separate is None:
                low, high = low.amin(dim=1, keepdim=True), high.amax(dim=1, keepdim=True)
            clip = Clip(separate, low, high)
    return Grids(Resample(there, clip, _plain(shape, count)), Resample(back))


def _axes(
    shape: Sequence[int], count: Sequence[int], how: Interpolation, separate: int | None
) -> tuple[Axis | Spline, ...]:
    return tuple(
        _axis(size, new, how.across if axis == separate else how.order)
        for axis, (size, new) in enumerate(zip(shape, count, strict=True))
    )


def _axis(size: int, count: int, order: int) -> Axis | Spline:
    if size == count:
        return Axis.at(torch.arange(size, dtype=torch.float64), size)
    if order == 3:
        return Spline.cubic(size, count)
    at = (torch.arange(count, dtype=torch.float64) + 0.5) * (size / count) - 0.5
    # Order 0 takes the nearest voxel, the later one of two that are as near.
    return Axis.at((at + 0.5).floor() if order == 0 else at, size)


def _plain(shape: Sequence[int], count: Sequence[int]) -> tuple[Axis, ...]:
    """Linear tables for the same two grids."""
    tables = (_axis(size, new, 1) for size, new in zip(shape, count, strict=True))
    return tuple(table for table in tables if isinstance(table, Axis))
