"""An attacked function whose slope is that of its mean over small noise."""

from __future__ import annotations

import torch
from torch import Tensor

from mafl_cli.field.field import Field, Losses, Slopes
from mafl_cli.field.preprocess import per_channel
from mafl_cli.network.prediction import Prediction


class Smoothed:
    """The mean of a function's logits over copies of its input with noise.

    Fast waves and small stairs, whose own slope says nothing about what a change does, are gone from the mean
    (randomised smoothing; Athalye et al., ICML 2018, call following its slope *expectation over transformation*). Each
    slope costs a forward pass and a forward and backward pass for each copy. It gives no features.
    """

    COPIES = 6
    NOISE = 0.01
    """Standard deviation of the noise, of the range in which each channel may change."""

    def __init__(self, field: Field, unit: Tensor, seed: int = 0) -> None:
        """unit: (C,), native units that the range of each channel is wide."""
        self._field, self._unit = field, unit
        self._generator = torch.Generator().manual_seed(seed)

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        return self._mean(self._copies(x))

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """The slopes of the losses of the mean, each the mean of the slopes at the copies."""
        copies = self._copies(x)
        logits = self._mean(copies).logits.requires_grad_()
        values = list(losses(Prediction(logits, ())))
        pulls = [torch.autograd.grad(value.sum(), logits, retain_graph=value is not values[-1])[0] for value in values]

        def along(prediction: Prediction) -> list[Tensor]:
            return [(prediction.logits * pull).flatten(1).sum(dim=1) for pull in pulls]

        found = [self._field.slopes(copy, along).gradients for copy in copies]
        gradients = [torch.stack(parts).mean(dim=0) for parts in zip(*found, strict=True)]
        return Slopes(Prediction(logits.detach(), ()), [value.detach() for value in values], gradients, pulls[0])

    def _copies(self, x: Tensor) -> list[Tensor]:
        size = self.NOISE * per_channel(self._unit, x)
        return [
            x + size * torch.randn(x.shape, generator=self._generator, dtype=x.dtype).to(x.device)
            for _ in range(self.COPIES)
        ]

    def _mean(self, copies: list[Tensor]) -> Prediction:
        logits = self._field.predict(copies[0]).logits.clone()
        for copy in copies[1:]:
            logits += self._field.predict(copy).logits
        return Prediction(logits / len(copies), ())
