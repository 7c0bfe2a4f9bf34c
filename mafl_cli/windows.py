"""How a batch reaches the network: the one gradient interface the attack loop knows.

Here every sample goes through in one piece: slices as a batch, or a whole volume as a batch of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mafl_cli.model import Prediction, Segmenter
from mafl_cli.preprocess import Preprocessing

Losses = Callable[[Prediction], Sequence[Tensor]]


@dataclass(frozen=True)
class Slopes:
    """A prediction with the (B,) value of each loss and its gradient with respect to the input, like the input."""

    prediction: Prediction
    values: list[Tensor]
    gradients: list[Tensor]


class Field(Protocol):
    """The attacked function: native voxels in, logits on the same grid out."""

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        ...

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """One forward pass, and one backward pass for each of the losses."""
        ...


class Whole:
    """Every sample in one piece through preprocessing and network."""

    def __init__(self, segmenter: Segmenter, preprocessing: Preprocessing) -> None:
        self._segmenter = segmenter
        self._preprocessing = preprocessing

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        with torch.no_grad():
            return self._forward(x)

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """One forward pass, and one backward pass for each of the losses."""
        x = x.detach().requires_grad_()
        prediction = self._forward(x)
        values = list(losses(prediction))
        gradients = [torch.autograd.grad(value.sum(), x, retain_graph=value is not values[-1])[0] for value in values]
        return Slopes(
            Prediction(prediction.logits.detach(), prediction.features.detach()),
            [value.detach() for value in values],
            gradients,
        )

    def _forward(self, x: Tensor) -> Prediction:
        prediction = self._segmenter(self._preprocessing(x))
        inside: tuple[slice, ...] = (slice(None), slice(None), *(slice(size) for size in x.shape[2:]))
        return Prediction(prediction.logits[inside], prediction.features)


def slices_per_batch(voxels: int) -> int:
    """How many slices of `voxels` pixels to attack together: about a million pixels, 1 to 16 slices."""
    return max(1, min(16, 2**20 // voxels))
