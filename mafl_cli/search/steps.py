"""Norms, directions and the steps that follow them.

Shapes: a perturbation and its gradients are (B, C, *spatial) in model units; lengths and steps are (B,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mafl_cli.config import AttackConfig, Direction

# --- norms and directions -----------------------------------------------------------------------------------------


def length(x: Tensor) -> Tensor:
    """L2 length per sample: (B, ...) -> (B,)."""
    # Summed in double precision: squares of very small or large gradients leave float32's range.
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)
    return norms.to(x.dtype)


def peak(x: Tensor) -> Tensor:
    """Largest magnitude per sample, 1 where all is zero: (B, ...) -> (B,), safe to divide by."""
    peak = x.flatten(1).abs().amax(dim=1)
    return torch.where(peak > 0, peak, torch.ones_like(peak))


def spread_out(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...) for arithmetic with a batch."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def taken(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], only to be read: as long as no sample has left the batch it is x itself, and nothing is copied."""
    return x if len(rows) == len(x) else x[rows]


def finite(x: Tensor) -> Tensor:
    """x with 0 in the place of NaN and infinity: a voxel whose slope is not a number has no usable slope."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def unit(x: Tensor) -> Tensor:
    """x at length 1 per sample; a zero (or non-finite) gradient gives a zero direction, never NaN."""
    x = finite(x)
    # Not `length`: the largest value is 1 now, so the length is at least 1 and needs no scaling again.
    x = x / spread_out(peak(x), x)
    return x / spread_out(torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1), x)


def l1_unit(x: Tensor) -> Tensor:
    """x at L1 norm 1 per sample; zero stays zero, and what is not finite becomes zero."""
    x = finite(x)
    # By the largest value first: the sum of very large gradients leaves float32's range.
    x = x / spread_out(peak(x), x)
    return x / spread_out(x.flatten(1).abs().sum(dim=1).clamp_min(1), x)


def distance(loss: Tensor, steepness: Tensor) -> Tensor:
    """How far the zero of a loss is by its slope, loss / |gradient| (Polyak's step); 0 where there is no slope.

    Args: loss, steepness: (B,).  Returns: (B,).

    It is the length of the step that would reach the target if the network were linear, in any unit and for logits
    of any scale.
    """
    return torch.where(steepness > 0, loss / steepness.clamp_min(1e-38), torch.zeros_like(loss))


# --- from gradients to a direction --------------------------------------------------------------------------------


class Scaling:
    """Brings gradients to a common scale, and accumulates them.

    The state holds every sample of the batch; the methods take those that are still being attacked, by their rows.
    """

    def __init__(self, config: AttackConfig, like: Tensor) -> None:
        self._config = config
        # A memory of ten steps (momentum 0.9) is right for 150 steps; in fewer it must forget sooner, or it carries
        # the search far past the target.
        short = max(1.0, 150 / config.steps) if config.direction == "rms" else 1.0
        self._momentum = max(0.0, 1 - (1 - config.momentum) * short)
        self._factor = torch.ones(len(like), device=like.device)
        self._velocity = torch.zeros_like(like)
        self._second_moment = torch.zeros_like(like) if config.direction == "rms" else None
        self.reach = torch.full((len(like),), math.inf, device=like.device)

    def first(self, rows: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Take the measure of the first gradient, (b, C, *spatial), and loss, (b,).

        From now on `distance` gradients are divided by what makes the first one as long as the way to the target that
        it suggests; `reach` is the largest change of a voxel on that way.
        """
        way = distance(loss, length(gradient))
        self._factor[rows] = distance(way, length(gradient))
        self.reach[rows] = self._factor[rows] * peak(gradient) * (length(gradient) > 0)

    def of_gradient(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """The gradient as the settings want it: as it is, at norm 1, or by the measure of the first one."""
        kind = self._config.gradient_norm
        if kind == "distance":
            return finite(gradient * spread_out(self._factor[rows], gradient))
        return {"none": finite, "l1": l1_unit, "l2": unit}[kind](gradient)

    def with_momentum(self, rows: Tensor, direction: Tensor, step: int) -> Tensor:
        """Accumulate a direction; returns what the step multiplies."""
        momentum = self._momentum
        if self._config.gradient_norm in ("l1", "l2"):
            # Terms were added to a gradient of norm 1; the sum is brought back to it.
            direction = self.of_gradient(rows, direction)
        # In place where it can be: on a volume, memory is what these lines wait for. Indexing by rows copies.
        velocity = self._velocity[rows].mul_(momentum).add_(direction)
        self._velocity[rows] = velocity
        if self._second_moment is None:
            return along(self._config.direction, velocity)
        # Adam (Kingma and Ba, ICLR 2015), with a damping that keeps voxels without influence from moving as fast as
        # those that matter.
        second = self._second_moment[rows].mul_(0.99).addcmul_(direction, direction, value=0.01)
        self._second_moment[rows] = second
        mean = velocity.mul_((1 - momentum) / (1 - momentum ** (step + 1)))
        rms = second.div_(1 - 0.99 ** (step + 1)).sqrt_()
        return mean.div_(rms.add_(0.01 * spread_out(peak(rms), rms)))


def along(kind: Direction, velocity: Tensor) -> Tensor:
    """The velocity itself (raw), at L2 or Linf norm 1 per sample, or its sign."""
    if kind == "sign":
        return velocity.sign()
    if kind == "linf":
        return velocity / spread_out(peak(velocity), velocity)
    return unit(velocity) if kind == "l2" else velocity


# --- from a direction to a step -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Now:
    """What a step depends on, for the b samples that are still being attacked.

    step of budget: how far the run is.
    exact: (b, C, *spatial), the iterate that was judged, model units, before rounding to the stored grid.
    direction: like exact, what the loss falls against.
    reach: (b,), model units, see `Scaling.first`. iou: (b,), with the target.
    """

    step: int
    budget: int
    exact: Tensor
    direction: Tensor
    reach: Tensor
    iou: Tensor


class Rule:
    """The dynamic step-size calculator, and the fixed schedules of other methods.

    scale: (1, C, 1, ...), model units: how long a step of 1 is.
    """

    def __init__(self, config: AttackConfig, size: float, scale: Tensor) -> None:
        self._config = config
        self._size = size
        self._scale = scale

    def __call__(self, now: Now) -> Tensor:
        """The next perturbation, like `now.exact`; the loop brings it inside the limits."""
        cosine = 0.5 * (1 + math.cos(math.pi * now.step / now.budget))
        kind = self._config.step
        if kind == "dynamic":
            # Shorter steps when there are more of them, and never far beyond what the first gradient suggests.
            size = self._size * (150 / self._config.steps) ** 0.6 * self._scale
            bound = max(0.25, 3 / self._config.steps) * now.reach
            size = torch.minimum(size, spread_out(bound, now.exact)) * (cosine + 0.02)
        elif kind == "asma":
            gain = self._config.beta * now.iou if now.step else torch.zeros_like(now.iou)
            size = spread_out(self._config.tau + gain, now.exact) * self._scale
        else:
            size = self._size * (cosine if kind == "cosine" else 1.0) * self._scale
        return now.exact - size * now.direction
