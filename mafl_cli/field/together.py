"""Several functions of one scan as one, which draws the target when each of them does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mafl_cli.field.field import Field, Losses, Slopes
from mafl_cli.network.prediction import Prediction


class Together:
    """Functions of the same scan: losses and slopes are their means, and none may miss the goal.

    One more may help: its loss and slope count like the others', and its goal is not asked for.
    The first stands for all where one answer is asked for. What each says is in `Prediction.views`, and losses are told
    whose prediction they get by its `number`. Features are left out. A pass is one through each of them.
    """

    def __init__(self, fields: Sequence[Field], helper: Field | None = None) -> None:
        self._fields = (*fields, *(() if helper is None else (helper,)))
        self._judged = len(fields)

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        return self._joined([field.predict(x) for field in self._fields])

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """For each function one forward pass, and one backward pass for each of the losses."""
        found = [field.slopes(x, _numbered(losses, number)) for number, field in enumerate(self._fields)]
        return Slopes(
            self._joined([each.prediction for each in found]),
            [torch.stack(values).mean(dim=0) for values in zip(*(each.values for each in found), strict=True)],
            [torch.stack(parts).mean(dim=0) for parts in zip(*(each.gradients for each in found), strict=True)],
            found[0].pull,
        )

    def _joined(self, found: Sequence[Prediction]) -> Prediction:
        views = tuple(
            replace(each, features=(), number=number, judged=number < self._judged) for number, each in enumerate(found)
        )
        return replace(views[0], views=views)


def _numbered(losses: Losses, number: int) -> Losses:
    return lambda prediction: losses(replace(prediction, features=(), number=number))
