"""The attacked function of a network that sees the whole grid at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.field.boxes import everything, on_last_axes, then
from mafl_cli.field.field import Focus, Losses, Reading, Slopes
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Grids
from mafl_cli.network.prediction import Network, Prediction, drawn


class Whole:
    """Every sample in one piece, zero-padded at the far end to multiples of the divisor.

    grids: native grid and the network's; None where they are the same.
    """

    def __init__(
        self, segmenter: Network, preprocessing: Preprocessing, divisor: int = 1, grids: Grids | None = None
    ) -> None:
        self._segmenter = segmenter
        self._preprocessing = preprocessing
        self._divisor = divisor
        self._grids = grids

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        with torch.no_grad():
            return self._forward(x)

    def labels(self, x: Tensor) -> Tensor:
        """Predicted classes, (B, *spatial), or (B, R, *spatial) for overlapping regions; see
        `network.prediction.kept_type`.
        """
        return drawn(self.predict(x).logits, compact=True)

    def read(self, x: Tensor, reading: Reading) -> Tensor:
        """What a reading makes of the logits of each voxel, without gradient."""
        return reading(self.predict(x).logits)

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """One forward pass, and one backward pass for each of the losses."""
        x = x.detach().requires_grad_()
        prediction = self._forward(x)
        values = list(losses(prediction))
        gradients, pull = [], torch.empty(0)
        for number, value in enumerate(values):
            of = [x] if number else [x, prediction.logits]
            gradient, *rest = torch.autograd.grad(value.sum(), of, retain_graph=value is not values[-1])
            gradients.append(gradient)
            pull = rest[0] if rest else pull
        return Slopes(prediction.detach(), [value.detach() for value in values], gradients, pull)

    def focus(self, clean: Tensor, edit: Tensor) -> Focus:
        """All of it: nothing is left out."""
        return Focus(self, everything(clean.shape[2:]), None)

    def inputs(self, x: Tensor, edit: Tensor, most: int) -> Iterator[Tensor]:
        """What the network gets of one sample: it has but one piece."""
        with torch.no_grad():
            yield self._ready(x)

    def _see(self, native: Tensor, dims: int) -> Tensor:
        """A map on the native grid as the network gets it: resampled and padded."""
        return self._padded(native if self._grids is None else self._grids.to_network.seen(native), dims)

    def _ready(self, x: Tensor) -> Tensor:
        """A batch of scans as the network gets them."""
        normal = self._preprocessing(x)
        return self._padded(normal if self._grids is None else self._grids.to_network(normal), x.ndim - 2)

    def _padded(self, found: Tensor, dims: int) -> Tensor:
        pad = [amount for size in reversed(found.shape[-dims:]) for amount in (0, -size % self._divisor)]
        return F.pad(found, pad) if any(pad) else found

    def _forward(self, x: Tensor) -> Prediction:
        dims = x.ndim - 2
        prediction = self._segmenter(self._ready(x))
        inner = x.shape[2:] if self._grids is None else self._grids.to_network.shape_out
        logits = prediction.logits[on_last_axes(everything(inner))]
        return Prediction(
            logits if self._grids is None else self._grids.from_network(logits),
            tuple(
                replace(patch, see=then(lambda native: self._see(native, dims), patch.see))
                for patch in prediction.features
            ),
        )
