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
    peak = flat.abs().amax(dim=1)
    peak = torch.where(peak > 0, peak, torch.ones_like(peak))
    norms: Tensor = peak * torch.linalg.vector_norm(flat / spread_out(peak, flat), dim=1)
    return norms


def spread_out(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...) for arithmetic with a batch."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def unit(x: Tensor) -> Tensor:
    """x at length 1 per sample; a zero (or non-finite) gradient gives a zero direction, never NaN."""
    x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    # The largest value becomes 1, so the length is at least 1 and the second division is safe.
    peak = x.flatten(1).abs().amax(dim=1)
    x = x / spread_out(torch.where(peak > 0, peak, torch.ones_like(peak)), x)
    return x / spread_out(length(x).clamp_min(1), x)


def whiten(gradient: Tensor, second_moment: Tensor, spread: float) -> Tensor:
    """Divide by the damped running root mean square: g / (rms + spread * max rms), per sample.

    Voxels with the steepest gradients would otherwise carry all of the change; evened out, Linf falls for a few
    percent of L2.
    """
    rms = second_moment.sqrt()
    damping = spread * rms.flatten(1).amax(dim=1)
    return gradient / (rms + spread_out(torch.where(damping > 0, damping, torch.ones_like(damping)), rms))


def radius(current: Tensor, reached: Tensor, rate: float) -> Tensor:
    """Norm controller: shrink by `rate` where the goal holds, grow by it where it does not.

    Decoupled direction and norm (Rony et al., CVPR 2019), with the goal on the mask as the criterion.
    Args: current: (B,) length now. reached: (B,) bool.  Returns: (B,).
    """
    return current * torch.where(reached, 1 - rate, 1 + rate)
