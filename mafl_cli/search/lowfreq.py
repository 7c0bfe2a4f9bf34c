"""The low-frequency part of a perturbation, by the Haar wavelet.

*Low-pass* here is what SSAH (Luo et al., CVPR 2022) calls phi: transform, keep the coarsest (LL) band, transform back.
For the Haar wavelet this equals the block mean copied back over its block: one level LL = (a + b + c + d) / 2 and the
inverse spreads LL / 2 over the four, so no wavelet library is needed and any rank and device will do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def low_pass(x: Tensor, levels: int = 1, spacing: Sequence[float] | None = None) -> Tensor:
    """Haar low-pass of every channel, over the spatial axes that are sampled finely enough.

    Args:
        x: (B, C, *spatial), two or three spatial axes, any unit. Odd sizes are padded by repeating the edge.
        levels: depth of the transform; blocks are 2 ** levels wide.
        spacing: mm along the spatial axes. An axis with more than twice the finest spacing is left out: neighbours
            across thick slices are not neighbours. None: all axes alike.
    Returns: a tensor like x. Equal to PyWavelets' idwtn(LL only) of the padded input; a projection for even sizes.
    """
    finest = 0.0 if spacing is None else min(spacing)
    blocks = [2**levels if spacing is None or mm <= 2 * finest else 1 for mm in spacing or (1.0,) * (x.ndim - 2)]
    sizes = x.shape[2:]
    pad = [amount for size, block in zip(sizes[::-1], blocks[::-1], strict=True) for amount in (0, -size % block)]
    padded = F.pad(x, pad, mode="replicate") if any(pad) else x
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    up = F.interpolate(pool(padded, blocks), scale_factor=[float(block) for block in blocks], mode="nearest")
    inside: tuple[slice, ...] = (slice(None), slice(None), *(slice(size) for size in sizes))
    return up[inside]


def low_frequency_energy(delta: Tensor) -> Tensor:
    """Mean square of the low-pass part: (B, C, *spatial) -> (B,), in squared units of delta.

    SSAH's constraint compares phi(x') with phi(x); phi is linear, so that is phi(delta). A mean, not a sum, so
    that the value does not depend on the size of the scan.
    """
    return torch.mean(low_pass(delta) ** 2, dim=tuple(range(1, delta.ndim)))
