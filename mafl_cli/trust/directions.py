"""Small changes of a scan in random directions, and how small they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A step as a share of the range that the network sees: far below what an attack changes, far above rounding.
STEP = 0.003

ALONG = 0.3
"""How much of that step is gone along the gradient: there it takes the model much farther than any other way."""
# Voxels between the nodes of a smooth direction.
_COARSE = 8
# Values beyond these quantiles are outliers, not the range that a network sees.
_OUTER = (0.005, 0.995)
# Values that quantiles are taken of, at the most: torch takes no more than 2 ** 24.
_MOST = 1 << 20


def step_sizes(x: Tensor, gradient: Tensor) -> Tensor:
    """How far a voxel moves in a step: (n, C, 1, ...), native units.

    The range is that of the voxels at which the model has a slope: a network that looks through a window of 400 HU
    does not see the thousands of HU around it. Where it has none, the range of all voxels.

    Args: x: (n, C, *spatial), native units. gradient: likewise, not 0 where the model looks.
    """
    sizes = torch.zeros(x.shape[:2], device=x.device)
    for place, (values, slopes) in enumerate(zip(x.flatten(0, 1), gradient.flatten(0, 1), strict=True)):
        seen = values[slopes != 0]
        span = _span(seen) if len(seen) else 0.0
        sizes.view(-1)[place] = STEP * (span or _span(values.flatten()))
    return sizes.view(*x.shape[:2], *(1,) * (x.ndim - 2))


def white(like: Tensor, seed: int) -> Tensor:
    """Noise, each voxel for itself, mean square 1: like (n, C, *spatial), the same for every row."""
    return _noise(like.shape[1:], seed).to(like).expand_as(like)


def smooth(like: Tensor, seed: int) -> Tensor:
    """Noise that changes slowly from voxel to voxel, mean square 1: like (n, C, *spatial), the same for every row."""
    sizes = like.shape[2:]
    nodes = _noise((like.shape[1], *(max(2, -(-size // _COARSE) + 1) for size in sizes)), seed)
    mode = "bilinear" if len(sizes) == 2 else "trilinear"
    found = F.interpolate(nodes[None], size=tuple(sizes), mode=mode, align_corners=True)
    return (found / found.square().mean().sqrt().clamp_min(1e-12)).to(like).expand_as(like)


def _noise(shape: tuple[int, ...] | torch.Size, seed: int) -> Tensor:
    """From a generator of its own on the CPU, so that neither the caller's random numbers nor the device matter."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _span(values: Tensor) -> float:
    some = values[:: max(1, len(values) // _MOST)]
    low, high = torch.quantile(some.float(), torch.tensor(_OUTER, device=some.device)).tolist()
    return float(high - low) or float(some.max() - some.min())
