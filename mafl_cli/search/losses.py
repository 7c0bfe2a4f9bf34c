"""The attack's losses: pure functions, tensors in, one number per sample out, smaller is closer to the target.

Logits are (B, K, *spatial) before softmax; targets are (B, *spatial) class indices in [0, K). Reductions are
per-sample means, so no value depends on the batch or on the size of the scan; the two exceptions are sums by their
authors' definition and say so.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.config import MaskLoss
from mafl_cli.network.prediction import drawn
from mafl_cli.search.moves import LowPass
from mafl_cli.search.pressure import Pressure, margins


def mask_loss(
    kind: MaskLoss,
    logits: Tensor,
    target: Tensor,
    *,
    pressure: Pressure | None,
    rows: Tensor,
    clean: Tensor,
    progress: float,
) -> Tensor:
    """The loss of that name, all with the same arguments: (B,).

    Args:
        pressure, rows: what each voxel counts in the margin loss, and which of its samples these are.
        clean: (B, *spatial), class indices of the clean prediction, for DAG.
        progress: share of the steps that are done, in [0, 1), for SegPGD.
    """
    if kind == "margin":
        assert pressure is not None
        return pressure.loss(rows, logits, target)
    if kind == "logit":
        return target_logit(logits, target)
    if kind == "dag":
        return clean_class_lead(logits, target, clean)
    if kind == "dice":
        return dice(logits, target)
    if kind == "js":
        return jensen_shannon(logits, target)
    if kind == "segpgd":
        return segpgd(logits, target, progress)
    if kind == "cospgd":
        return cospgd(logits, target)
    return cross_entropy(logits, target)


def size_gradient(delta: Tensor, peak_weight: float) -> Tensor:
    """Gradient of half the squared L2 length of a perturbation, with a penalty on its peaks.

    Each voxel's share is multiplied by (1 + p (δ / s)^2) / (1 + p), with s^2 the mean of δ^2 weighed by δ^2 itself:
    the size of the voxels that carry the change, in whatever unit. Linf falls for little L2.

    Args: delta: (B, C, *spatial). peak_weight: p, at least 0.
    """
    if peak_weight == 0:
        return delta.clone()
    square = delta**2
    flat = square.flatten(1)
    carried = torch.linalg.vector_norm(flat, dim=1) ** 2 / flat.sum(dim=1).clamp_min(1e-30)
    relative = square.div_(carried.clamp_min(1e-30).view(-1, *(1,) * (delta.ndim - 1)))
    return relative.mul_(peak_weight).add_(1).mul_(delta).div_(1 + peak_weight)


def low_frequency_gradient(delta: Tensor, slope: Tensor, low: LowPass) -> Tensor:
    """Gradient of half the squared L2 length of a perturbation's low-pass part, but 0 where nothing happens.

    Only where the model looks, or the scan is changed: no other voxel has a reason to move.

    Args: delta: (B, C, *spatial). slope: like delta, not 0 where the model looks. low: as `moves.LowPass`.
    """
    return low(delta).mul_(torch.logical_or(slope, delta))


def target_logit(logits: Tensor, target: Tensor) -> Tensor:
    """Minus the sum of the target's logit over the voxels that miss the target (ASMA, MICCAI 2019, eq. 2): (B,).

    A sum, as ASMA defines it: its step multiplies the raw gradient, which therefore must not shrink with the scan.
    """
    own = logits.gather(1, target.unsqueeze(1)).squeeze(1)
    return -(own * _unmet(logits, target)).flatten(1).sum(dim=1)


def clean_class_lead(logits: Tensor, target: Tensor, clean: Tensor) -> Tensor:
    """Sum over the voxels that miss the target of (logit of the clean class - logit of the target): (B,).

    DAG (Xie et al., ICCV 2017), a sum by definition. Where the target *is* the clean class but was lost on the way,
    DAG defines no rival; there it is the best other class.
    """
    index = target.unsqueeze(1)
    own = logits.gather(1, index).squeeze(1)
    of_clean = logits.gather(1, clean.unsqueeze(1)).squeeze(1)
    rival = torch.where(clean == target, margins(logits, target) + own, of_clean)
    return ((rival - own) * _unmet(logits, target)).flatten(1).sum(dim=1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy with the target over all voxels: (B,)."""
    return F.cross_entropy(logits, target, reduction="none").flatten(1).mean(dim=1)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice, mean over the classes that the target has, background included: (B,).

    Classes that the target does not have need no term: whatever they hold is missing from one that it has. So every
    denominator is above 0, for a target without foreground too, and no smoothing constant ties the loss to a size.
    """
    probability = logits.softmax(dim=1).flatten(2)
    wanted = _one_hot(logits, target).flatten(2)
    both, either = (probability * wanted).mean(dim=2), (probability + wanted).mean(dim=2)
    present = wanted.any(dim=2).to(logits.dtype)
    return 1 - (2 * both / either.clamp_min(1e-30) * present).sum(dim=1) / present.sum(dim=1)


def jensen_shannon(logits: Tensor, target: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence of the class probabilities and the target over all voxels: (B,), 0 to log 2.

    As in SEA (Croce et al., ECCV 2024). Unlike the cross-entropy it is bounded, so that voxels far from their target
    pull little, and those near the border most.
    """
    own = F.log_softmax(logits, dim=1).gather(1, target.unsqueeze(1)).squeeze(1)
    share = own.exp()
    middle = torch.log1p(share) - math.log(2)
    # Half of KL(p, m) + KL(t, m) with m half way between p and t, which is 1 at the target class.
    divergence = ((1 - share) * math.log(2) + share * (own - middle) - middle) / 2
    return divergence.flatten(1).mean(dim=1)


def segpgd(logits: Tensor, target: Tensor, progress: float) -> Tensor:
    """Cross-entropy, first on the voxels that miss the target, towards the end on all alike: (B,).

    SegPGD (Gu et al., ECCV 2022): (1 - λ) on one kind of voxel and λ on the other with λ = t / 2T. A targeted attack
    swaps the two kinds: what has its target already is what need not be worked on.
    """
    share = progress / 2
    weight = torch.where(_unmet(logits, target), 1 - share, share)
    return (weight * F.cross_entropy(logits, target, reduction="none")).flatten(1).mean(dim=1)


def cospgd(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, each voxel weighted by 1 - cosine of its class probabilities and its target: (B,).

    CosPGD (Agnihotri et al., ICML 2024), targeted form. The weights carry no gradient.
    """
    probability = logits.detach().softmax(dim=1)
    own = probability.gather(1, target.unsqueeze(1)).squeeze(1)
    weight: Tensor = 1 - own / torch.linalg.vector_norm(probability, dim=1)
    return (weight * F.cross_entropy(logits, target, reduction="none")).flatten(1).mean(dim=1)


def feature_cosine(features: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """Cosine similarity between two feature maps, position by position, averaged with `weight`.

    SSAH compares globally pooled features; a mask attack needs to know *where*, so positions are kept.

    Args:
        features, reference: (B, F, *coarse).
        weight: (B, *spatial), at least 0, at the image's resolution; averaged down to the tap's. Positions of
            weight 0 do not count; a sample whose weights are all 0 has similarity 0 and no gradient.
    Returns: (B,), in [-1, 1].
    """
    # 1e-8 keeps the gradient defined where a position's features are all zero (dead ReLUs).
    cosine = F.cosine_similarity(features, reference, dim=1, eps=1e-8)
    return _average_at(cosine, weight)


def feature_guide(features: Tensor, reference: Tensor, guide: Tensor, weight: Tensor, gap: float = 0.2) -> Tensor:
    """Away from the clean scan's features and towards those of a scan that has the target, averaged with `weight`.

    SSAH (Luo et al., CVPR 2022): [w_p cos(f, reference) - w_n cos(f, guide)]_+ with the adaptive weights
    w_p = [cos_p - gap]_+ and w_n = [1 + gap - cos_n]_+, which carry no gradient: what is close already pulls little.
    SSAH takes it once, on pooled features; here position by position, as `feature_cosine`.

    A position where guide and clean scan agree has little to say: there the value and its gradient are 0 as soon as
    both cosines are between 0 and (1 + 2 gap) / 2 = 0.7.

    Args:
        features, reference, guide: (B, F, *coarse).
        weight: as for `feature_cosine`.
    Returns: (B,), in [0, 3].
    """
    near = F.cosine_similarity(features, reference, dim=1, eps=1e-8)
    far = F.cosine_similarity(features, guide, dim=1, eps=1e-8)
    push, pull = F.relu(near.detach() - gap), F.relu(1 + gap - far.detach())
    return _average_at(F.relu(push * near - pull * far), weight)


def _average_at(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of (B, *coarse) values with (B, *spatial) weights averaged down to them; 0 where all weights are: (B,)."""
    coarse = F.interpolate(weight.unsqueeze(1), size=values.shape[1:], mode="area").flatten(1)
    total = coarse.sum(dim=1)
    return (values.flatten(1) * coarse).sum(dim=1) / torch.where(total > 0, total, torch.ones_like(total))


def _unmet(logits: Tensor, target: Tensor) -> Tensor:
    """Voxels that miss the target, bool (B, *spatial): ASMA's adaptive mask."""
    return drawn(logits) != target


def _one_hot(logits: Tensor, target: Tensor) -> Tensor:
    """bool, like logits."""
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *(1,) * (target.ndim - 1))
    return target.unsqueeze(1) == classes
