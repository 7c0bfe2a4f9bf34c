"""Direction, momentum and the dynamic step-size calculator: pure functions on per-sample values.

Shapes: a perturbation and its gradients are (B, C, *spatial) in model units; lengths and steps are (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor


def length(x: Tensor) -> Tensor:
    """L2 length per sample: (B, ...) -> (B,)."""
    flat = x.flatten(1)
    # Scaled by the largest value first: squares of very small or large gradients leave float32's range.
    peak = _peak(x)
    norms: Tensor = peak * torch.linalg.vector_norm(flat / spread_out(peak, flat), dim=1)
    return norms


def _peak(x: Tensor) -> Tensor:
    """Largest magnitude per sample, 1 where all is zero: (B, ...) -> (B,), safe to divide by."""
    peak = x.flatten(1).abs().amax(dim=1)
    return torch.where(peak > 0, peak, torch.ones_like(peak))


def spread_out(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...) for arithmetic with a batch."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def finite(x: Tensor) -> Tensor:
    """x with 0 in the place of NaN and infinity: a voxel whose slope is not a number has no usable slope."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def unit(x: Tensor) -> Tensor:
    """x at length 1 per sample; a zero (or non-finite) gradient gives a zero direction, never NaN."""
    x = finite(x)
    peak = _peak(x)
    # Not `length`: the largest value is 1 now, so the length is at least 1 and needs no scaling again.
    x = x / spread_out(peak, x)
    return x / spread_out(torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1), x)


def whiten(gradient: Tensor, second_moment: Tensor, spread: float) -> Tensor:
    """Divide by the damped running root mean square: g / (rms + spread * max rms), per sample.

    Voxels with the steepest gradients would otherwise carry all of the change; evened out, Linf falls for a few
    percent of L2.
    """
    rms = second_moment.sqrt()
    damping = spread * rms.flatten(1).amax(dim=1)
    return gradient / (rms + spread_out(torch.where(damping > 0, damping, torch.ones_like(damping)), rms))


def distance(loss: Tensor, steepness: Tensor) -> Tensor:
    """How far the zero of a loss is by its slope, loss / |gradient| (Polyak's step); 0 where there is no slope.

    Args: loss, steepness: (B,).  Returns: (B,).

    It is the length of the step that would reach the target if the network were linear, in any unit and for logits
    of any scale.
    """
    return torch.where(steepness > 0, loss / steepness.clamp_min(1e-38), torch.zeros_like(loss))
