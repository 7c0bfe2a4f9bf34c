"""How unsure a network is of what it may draw, from its own probabilities.

Maag and Fischer (arXiv 2305.12825) tell adversarial images of segmentation networks by the entropy and the margin of
their probabilities, averaged over the image. Most of a medical scan is background of which a network is certain, so
here each voxel counts by its probability of being foreground.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the class probabilities as a share of the most that there can be, log K; differentiable.

    logits: (B, K, *rest) before softmax, as in `prediction.Prediction`: overlapping regions are part of the rest.
    Returns: (B, *rest), in [0, 1]: 0 where one class is certain, 1 where all are alike.
    """
    chances = torch.log_softmax(logits, dim=1)
    return -(chances.exp() * chances).sum(dim=1) / math.log(logits.shape[1])


def closeness(logits: Tensor) -> Tensor:
    """1 minus the margin of the probabilities, the highest minus the second highest; differentiable.

    logits, and what is returned: as for `entropy`; 0 where one class is certain, 1 where two lead together.
    """
    first, second = logits.softmax(dim=1).topk(2, dim=1).values.unbind(1)
    return 1 - (first - second)


def foreground(logits: Tensor) -> Tensor:
    """The probability of every class but the first, background: (B, K, *rest) -> (B, *rest), in [0, 1]."""
    return logits.softmax(dim=1)[:, 1:].sum(dim=1)


def weighed(logits: Tensor) -> Tensor:
    """Entropy and closeness, each times the probability of foreground, and that probability: (B, 3, *rest).

    Sums over all voxels of a scan make its scores, see `scores`.
    """
    share = foreground(logits)
    return torch.stack([entropy(logits) * share, closeness(logits) * share, share], dim=1)


def scores(totals: Tensor) -> Tensor:
    """Mean entropy and mean closeness of what may be foreground: (B, 3) -> (B, 2), in [0, 1].

    totals: sums of `weighed`. A scan in which nothing may be foreground, not even in float32, has 0.
    """
    parts, share = totals[:, :2], totals[:, 2:]
    return torch.where(share > 0, parts / torch.where(share > 0, share, torch.ones_like(share)), 0.0)
