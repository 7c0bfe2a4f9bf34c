"""The box of a scan that holds all of its voxels that are not 0, and the attacked function of what lies in it.

nnU-Net cuts this box out, takes statistics in it, and draws background around it. Which box it is is a statistic as the
others are: that of the clean scan, as long as the search goes on, for which zeros around it stay zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mafl_cli.errors import InputError
from mafl_cli.field.boxes import everything, hull, on_last_axes, shifted, then
from mafl_cli.field.field import Field, Focus, Losses, Reading, ScanField, Slopes
from mafl_cli.field.resample import Box
from mafl_cli.network.prediction import Prediction

PlaneRange = tuple[Tensor, Tensor]
"""Smallest and largest value of the planes along an axis, each (C, planes)."""
_SURE = 20.0
"""Logit of what is background for certain: a probability that float32 does not tell from 1."""


@dataclass(frozen=True)
class Crop:
    """The box around all voxels that are not 0 in some channel.

    box: of the batch's spatial axes. filled: bool (1, 1, *box), those voxels with the holes between them. ranges: of
    the normalised voxels in the box, along each axis.
    """

    box: Box
    filled: Tensor
    ranges: tuple[PlaneRange, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in self.box)

    @staticmethod
    def of(channels: Sequence[NDArray[Any]], device: torch.device) -> Crop:
        """The crop of a scan, (a, b, c) along the batch's axes for each channel. Raises InputError if all are 0."""
        there = np.zeros(channels[0].shape, dtype=bool)
        for channel in channels:
            there |= channel != 0
        if not there.any():
            raise InputError("all voxels are 0, so nothing is left of it after the crop that the model asks for.")
        box = []
        for axis in range(there.ndim):
            index = np.flatnonzero(there.any(axis=tuple(other for other in range(there.ndim) if other != axis)))
            box.append(slice(int(index[0]), int(index[-1]) + 1))
        inside = there[tuple(box)]
        if not inside.all():
            inside = ndimage.binary_fill_holes(inside)
        return Crop(tuple(box), torch.from_numpy(np.ascontiguousarray(inside))[None, None].to(device))

    def is_as(self, other: Crop | None) -> bool:
        """Whether another one is the same."""
        return other is not None and self.box == other.box and torch.equal(self.filled, other.filled)

    def outside(self, shape: Sequence[int]) -> Tensor:
        """Bool (1, 1, *shape): the zeros around, which must stay zeros."""
        found = torch.ones((1, 1, *shape), dtype=torch.bool, device=self.filled.device)
        found[on_last_axes(self.box)] = ~self.filled
        return found


class Cropped:
    """The attacked function of a box, for the scan around it: background outside, without any gradient.

    inner: takes and draws the box. shape: of the scan.
    """

    def __init__(self, inner: Field, box: Box, shape: Sequence[int]) -> None:
        self._inner = inner
        self._box = box
        self._shape = tuple(shape)

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        with torch.no_grad():
            return self._around(self._inner.predict(self._cut(x)))

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """As of the inner function; no voxel outside of the box has a slope."""
        inner = self._inner.slopes(self._cut(x), lambda prediction: losses(self._around(prediction)))
        return Slopes(
            self._around(inner.prediction),
            inner.values,
            [self._padded(gradient) for gradient in inner.gradients],
            self._padded(inner.pull),
        )

    def _cut(self, x: Tensor) -> Tensor:
        return x[on_last_axes(self._box)]

    def _padded(self, inner: Tensor) -> Tensor:
        found = inner.new_zeros(*inner.shape[: -len(self._shape)], *self._shape)
        found[on_last_axes(self._box)] = inner
        return found

    def _around(self, prediction: Prediction) -> Prediction:
        logits = prediction.logits
        found = logits.new_full((*logits.shape[: -len(self._shape)], *self._shape), -_SURE)
        found[:, 0] = _SURE
        found[on_last_axes(self._box)] = logits
        return Prediction(found, tuple(replace(patch, see=then(self._cut, patch.see)) for patch in prediction.features))


class CroppedScan(Cropped):
    """The same of whole scans.

    moves: whether every voxel of the box has a part in what all of it looks like: then no window stays as it is.
    """

    def __init__(self, inner: ScanField, box: Box, shape: Sequence[int], *, moves: bool = False) -> None:
        super().__init__(inner, box, shape)
        self._scan = inner
        self._moves = moves

    def labels(self, x: Tensor) -> Tensor:
        """Predicted classes, (B, *spatial), or (B, R, *spatial) for overlapping regions."""
        return self._padded(self._scan.labels(self._cut(x)))

    def read(self, x: Tensor, reading: Reading) -> Tensor:
        """What a reading makes of the logits of each voxel, without gradient; 0 outside of the box."""
        return self._padded(self._scan.read(self._cut(x), reading))

    def focus(self, clean: Tensor, edit: Tensor) -> Focus:
        """That of the box, and around it what is to be drawn outside and cannot be."""
        if self._moves or not bool(self._cut(edit).any()):
            return Focus(self, everything(self._shape), None)
        focus = self._scan.focus(self._cut(clean), self._cut(edit))
        box = shifted(focus.box, [-part.start for part in self._box])
        every = torch.nonzero(edit.any(dim=0))
        low, high = every.amin(dim=0).tolist(), every.amax(dim=0).tolist()
        whole = hull(box, tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True)))
        if whole == box:
            return Focus(focus.field, box, focus.frozen)
        place = shifted(box, [part.start for part in whole])
        shape = [part.stop - part.start for part in whole]
        frozen = focus.frozen
        if frozen is not None:
            around = torch.ones((*frozen.shape[: -len(shape)], *shape), dtype=torch.bool, device=frozen.device)
            around[on_last_axes(place)] = frozen
            frozen = around
        return Focus(Cropped(focus.field, place, shape), whole, frozen)

    def inputs(self, x: Tensor, edit: Tensor, most: int) -> Iterator[Tensor]:
        """What the network gets of the box, piece by piece."""
        yield from self._scan.inputs(self._cut(x), self._cut(edit), most)
