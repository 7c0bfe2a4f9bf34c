"""The attack's losses: pure functions, tensors in, one number per sample out, smaller is closer to the target.

Logits are (B, K, *spatial) before softmax; targets are (B, *spatial) class indices in [0, K). All reductions are
per-sample means, so no value depends on the batch or on the size of the scan.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """By how much the target class loses at each voxel: max over k != t of z_k, minus z_t.

    Returns: (B, *spatial), logit units; negative where the model already draws the target.
    """
    index = target.unsqueeze(1)
    own = logits.gather(1, index).squeeze(1)
    other = logits.scatter(1, index, float("-inf")).amax(dim=1)
    return other - own


def mask_loss(logits: Tensor, target: Tensor, kappa: Tensor) -> Tensor:
    """Mean hinge of the margin over all voxels: mean of max(margin + kappa, 0).

    ASMA (Ozbulak et al., MICCAI 2019, eq. 2) sums the target logits over the voxels that still miss the target;
    that is the *adaptive mask*. Here a voxel leaves the mask once it is won by kappa, and the margin takes the
    logit's place, which unlike it does not grow without end.

    Args:
        kappa: (B, *spatial), logit units: the lead that each voxel must have to count as won.
    Returns: (B,).
    """
    return F.relu(margins(logits, target) + kappa).flatten(1).mean(dim=1)


def feature_cosine(features: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """Cosine similarity between two feature maps, position by position, averaged with `weight`.

    SSAH compares globally pooled features; a mask attack needs to know *where*, so positions are kept.

    Args:
        features, reference: (B, F, *coarse).
        weight: (B, *spatial), at least 0, at the image's resolution; averaged down to the tap's. Positions of
            weight 0 do not count; a sample whose weights are all 0 has similarity 0 and no gradient.
    Returns: (B,), in [-1, 1].
    """
    coarse = F.interpolate(weight.unsqueeze(1), size=features.shape[2:], mode="area").flatten(1)
    # 1e-8 keeps the gradient defined where a position's features are all zero (dead ReLUs).
    cosine = F.cosine_similarity(features, reference, dim=1, eps=1e-8).flatten(1)
    total = coarse.sum(dim=1)
    return (cosine * coarse).sum(dim=1) / torch.where(total > 0, total, torch.ones_like(total))
