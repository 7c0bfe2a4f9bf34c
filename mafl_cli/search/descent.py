"""Steps of other methods: along an accumulated gradient, as long as a schedule says."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mafl_cli.config import AttackConfig
from mafl_cli.field.preprocess import per_channel
from mafl_cli.search import losses, steps
from mafl_cli.search.limits import Limits
from mafl_cli.search.moves import LowPass, Now


class Descent:
    """Gradient descent with momentum: v = momentum v + g, and a step along the direction of v.

    The velocity is that of every sample of the batch; calls are about those that are still being attacked.
    """

    def __init__(self, config: AttackConfig, limits: Limits, like: Tensor, low: LowPass) -> None:
        """like: (B, C, *spatial), the clean images."""
        self._config, self._low = config, low
        self._velocity = torch.zeros_like(like)
        # The scan's range, and how long a step of 1 is: (1, C, 1, ...), model units.
        self._span = per_channel((limits.high - limits.low) / limits.unit, like)
        # Published for images in [0, 1]: a raw gradient and its step are both taken in shares of the range.
        self._scale = self._span**2 if config.direction == "raw" else self._span
        self._size = config.step_size or 0.0
        if config.step in ("constant", "cosine") and config.step_size is None:
            assert limits.ball is not None
            self._size, self._scale = 2.5 / config.steps, per_channel(limits.ball.radius / limits.unit, like)

    def step(self, now: Now) -> Tensor:
        """The next change, like `now.exact`; the loop brings it inside the limits."""
        direction = self._pulled_back(self.of_gradient(now.gradient), now)
        if self._config.gradient_norm in ("l1", "l2"):
            # Terms were added to a gradient of norm 1; the sum is brought back to it.
            direction = self.of_gradient(direction)
        # In place where it can be: on a volume, memory is what these lines wait for. Indexing by rows copies.
        velocity = self._velocity[now.rows].mul_(self._config.momentum).add_(direction)
        self._velocity[now.rows] = velocity
        return now.exact - self._length(now) * steps.along(self._config.direction, velocity)

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient as the settings want it: as it is, or at norm 1."""
        return {"none": steps.finite, "l1": steps.l1_unit, "l2": steps.unit}[self._config.gradient_norm](gradient)

    def _length(self, now: Now) -> Tensor | float:
        """What the direction is multiplied by."""
        if self._config.step == "asma":
            gain = self._config.beta * now.verdict.iou if now.step else torch.zeros_like(now.verdict.iou)
            return steps.spread_out(self._config.tau + gain, now.exact) * self._scale
        falling = 0.5 * (1 + math.cos(math.pi * now.progress)) if self._config.step == "cosine" else 1.0
        return self._size * falling * self._scale

    def _pulled_back(self, direction: Tensor, now: Now) -> Tensor:
        """The direction with the terms that depend on the change alone, added in place: its low-pass part and length.

        Gradients of halved squares, δ; or with normalised gradients δ at norm 1.
        """
        config, here, pulls = self._config, now.here, list[Tensor]()
        if config.low_frequency_weight > 0:
            low = losses.low_frequency_gradient(here, now.gradient, self._low)
            pulls.append(low.mul_(config.low_frequency_weight))
        if config.l2_weight > 0:
            pulls.append(losses.size_gradient(here, config.peak_weight).mul_(config.l2_weight))
        for pull in pulls:
            if config.gradient_norm == "none":
                pull.div_(self._span**2)
            else:
                length = now.size if config.gradient_norm == "l2" else here.flatten(1).abs().sum(dim=1)
                pull.div_(steps.spread_out(torch.where(length > 0, length, torch.ones_like(length)), here))
            direction.add_(pull)
        return direction
