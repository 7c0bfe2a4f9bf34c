"""The way from a scan's axes to the axes and batch of a network, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.scans.geometry import Affine, spacing, turn_to


@dataclass(frozen=True)
class Layout:
    """An exact way back and forth between a scan (C, I, J, K) and a model batch: a permutation and flips.

    3D: batch (1, C, a, b, c). 2D: batch (S, C, h, w), one entry per slice. Channels pass through, so logits
    of any number of classes come back the same way.
    """

    axes: tuple[int, int, int]
    """File axis that becomes the n-th axis of the turned scan; the slice axis comes first in 2D."""
    flipped: tuple[bool, bool, bool]
    """Whether the n-th axis of the turned scan runs against the file's."""
    sliced: bool
    """2D."""

    @staticmethod
    def for_volume(affine: Affine, *, orientation: str, slice_axis: int | None) -> Layout:
        """The layout of one scan.

        Args:
            orientation: axcodes the model was trained in ("RAS", "LPS", ...), "native" for the file's own, or the
                file's axes in the model's order ("kji").
            slice_axis: None for 3D; for 2D the axis (0, 1, 2) in the FILE's array order. It moves to the
                front after the scan is turned; the two other axes keep their order.
        Raises: UsageError when the orientation does not name each body axis once.
        """
        axes, flipped = [0, 1, 2], [False] * 3
        if sorted(orientation) == ["i", "j", "k"]:
            axes = ["ijk".index(letter) for letter in orientation]
        elif orientation != "native":
            turn = turn_to(affine, orientation)
            for file_axis, (new_axis, direction) in enumerate(turn):
                axes[int(new_axis)] = file_axis
                flipped[int(new_axis)] = direction < 0
        order = sorted(range(3), key=lambda n: axes[n] != slice_axis)
        i, j, k = order
        return Layout(
            axes=(axes[i], axes[j], axes[k]),
            flipped=(flipped[i], flipped[j], flipped[k]),
            sliced=slice_axis is not None,
        )

    def to_batch(self, array: NDArray[Any]) -> NDArray[Any]:
        """(C, I, J, K), any dtype -> (1, C, a, b, c) or (S, C, h, w); a new contiguous array."""
        turned = self.as_batch(array)
        # A copy even where a view would do: who changes a batch in place must not change the scan.
        batch = np.empty(turned.shape, turned.dtype)
        # Line by line: a scan has its axes in another order as a rule, and so each part stays in the cache.
        for line in range(turned.shape[2]):
            batch[:, :, line] = turned[:, :, line]
        return batch

    def from_batch(self, batch: NDArray[Any]) -> NDArray[Any]:
        """(1, C, a, b, c) or (S, C, h, w), any dtype -> (C, I, J, K); a new contiguous array."""
        return np.array(self.as_scan(batch), order="C")

    def as_batch(self, array: NDArray[Any]) -> NDArray[Any]:
        """`to_batch` as a view of the array."""
        turned = np.flip(array.transpose(0, *(axis + 1 for axis in self.axes)), self._against)
        batch: NDArray[Any] = turned.swapaxes(0, 1) if self.sliced else turned[np.newaxis]
        return batch

    def as_scan(self, batch: NDArray[Any]) -> NDArray[Any]:
        """`from_batch` as a view of the batch."""
        turned = np.flip(batch.swapaxes(0, 1) if self.sliced else batch[0], self._against)
        scan: NDArray[Any] = turned.transpose(0, *(self.axes.index(axis) + 1 for axis in range(3)))
        return scan

    def batch_spacing(self, affine: Affine) -> tuple[float, ...]:
        """Spacing in mm along the batch's spatial axes: two numbers in 2D, three in 3D."""
        sizes = spacing(affine)
        return tuple(sizes[axis] for axis in self.axes[1 if self.sliced else 0 :])

    @property
    def _against(self) -> tuple[int, ...]:
        return tuple(n + 1 for n, flip in enumerate(self.flipped) if flip)
