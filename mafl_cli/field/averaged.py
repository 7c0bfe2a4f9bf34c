"""The attacked function of a network that answers by chance: what is expected of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from mafl_cli.field.field import Field, Losses, Slopes
from mafl_cli.network import chance
from mafl_cli.network.prediction import Patch, Prediction, drawn


class Averaged:
    """The mean of a function over draws, others each time: losses and slopes are means of those of single draws.

    That is *expectation over transformation* (Athalye et al., ICML 2018). A mean of losses, unlike the loss of mean
    logits, knows what every draw lacks. Each pass is one for every draw.
    """

    def __init__(
        self, field: Field, device: torch.device, seed: tuple[int, ...], draws: int = chance.DRAWS_A_STEP
    ) -> None:
        self._field, self._device, self._seed = field, device, seed
        self._draws, self._calls = draws, 0

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        found, self._calls = [], self._calls + 1
        for number in range(self._draws):
            with self._draw(number):
                found.append(self._field.predict(x))
        return _mean(found)

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """One forward pass for each draw, and one backward pass for each of the losses."""
        found, self._calls = [], self._calls + 1
        for number in range(self._draws):
            with self._draw(number):
                found.append(self._field.slopes(x, losses))
        return Slopes(
            _mean([each.prediction for each in found]),
            [torch.stack(values).mean(dim=0) for values in zip(*(each.values for each in found), strict=True)],
            [_sum(gradients).div_(len(found)) for gradients in zip(*(each.gradients for each in found), strict=True)],
            _sum([each.pull for each in found]).div_(len(found)),
        )

    def _draw(self, number: int) -> AbstractContextManager[None]:
        """A fresh one, by which no scan is judged."""
        return chance.drawing(1, *self._seed, self._calls, number, device=self._device)


class OneDraw:
    """A function in one draw: with the same noise for every change of a scan, it is like that of any other network."""

    def __init__(self, field: Field, device: torch.device, seed: int) -> None:
        self._field, self._device, self._seed = field, device, seed

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        with chance.drawing(2, self._seed, device=self._device):
            return self._field.predict(x)

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """One forward pass, and one backward pass for each of the losses."""
        with chance.drawing(2, self._seed, device=self._device):
            return self._field.slopes(x, losses)


def _sum(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _mean(found: list[Prediction]) -> Prediction:
    def patch(patches: tuple[Patch, ...]) -> Patch:
        return replace(patches[0], features=_sum([each.features for each in patches]).div_(len(patches)))

    return Prediction(
        _sum([each.logits for each in found]).div_(len(found)),
        tuple(patch(patches) for patches in zip(*(each.features for each in found), strict=True)),
        tuple(drawn(each.logits) for each in found),
    )
