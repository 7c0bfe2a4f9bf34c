"""Norms and directions.

Shapes: a perturbation and its gradients are (B, C, *spatial) in model units; lengths are (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mafl_cli.config import Direction


def length(x: Tensor) -> Tensor:
    """L2 length per sample: (B, ...) -> (B,)."""
    # Summed in double precision: squares of very small or large gradients leave float32's range.
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)
    return norms.to(x.dtype)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample: (B, ...), (B, ...) -> (B,)."""
    found: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return found


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


def along(kind: Direction, velocity: Tensor) -> Tensor:
    """The velocity itself (raw), at L2 or Linf norm 1 per sample, or its sign."""
    if kind == "sign":
        return velocity.sign()
    if kind == "linf":
        return velocity / spread_out(peak(velocity), velocity)
    return unit(velocity) if kind == "l2" else velocity
