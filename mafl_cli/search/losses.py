"""The attack's losses: pure functions, tensors in, one number per sample out, smaller is closer to the target.

Logits are (B, K, *spatial) before softmax; targets are (B, *spatial) class indices in [0, K). Reductions are
per-sample means, so no value depends on the batch or on the size of the scan; the two exceptions are sums by their
authors' definition and say so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.config import MaskLoss


def mask_loss(
    kind: MaskLoss,
    logits: Tensor,
    target: Tensor,
    *,
    pressure: Pressure,
    rows: Tensor,
    clean: Tensor,
    progress: float,
) -> Tensor:
    """The loss of that name, all with the same arguments: (B,).

    Args:
        pressure, rows: what each voxel counts in the margin, and which of its samples these are.
        clean: (B, *spatial), class indices of the clean prediction, for DAG.
        progress: share of the steps that are done, in [0, 1), for SegPGD.
    """
    if kind == "margin":
        return pressure.loss(rows, logits, target)
    if kind == "logit":
        return target_logit(logits, target)
    if kind == "dag":
        return clean_class_lead(logits, target, clean)
    if kind == "dice":
        return dice(logits, target)
    if kind == "segpgd":
        return segpgd(logits, target, progress)
    if kind == "cospgd":
        return cospgd(logits, target)
    return cross_entropy(logits, target)


def drawn(logits: Tensor, dim: int = 1, *, compact: bool = False) -> Tensor:
    """The class with the highest logit: (B, K, *spatial) -> (B, *spatial), the first of equals.

    What `argmax` gives, which takes thirty times as long on a CPU along an axis that is not the last.

    compact: in the smallest type that holds the classes, for labels that are kept, and not as an index.
    """
    top, *others = logits.detach().unbind(dim)
    labels = torch.zeros(top.shape, dtype=torch.int16, device=top.device)
    for index, other in enumerate(others, start=1):
        labels = torch.maximum(labels, (other > top).to(torch.int16).mul_(index))
        top = torch.maximum(top, other)
    return labels.to(kept_type(logits.shape[dim])) if compact else labels.long()


def kept_type(classes: int) -> torch.dtype:
    """Of labels in [0, classes) that are kept for whole scans."""
    return torch.uint8 if classes <= 256 else torch.int16


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """By how much the target class loses at each voxel: max over k != t of z_k, minus z_t.

    Returns: (B, *spatial), logit units; negative where the model already draws the target.
    """
    index = target.unsqueeze(1)
    own = logits.gather(1, index).squeeze(1)
    other = logits.scatter(1, index, float("-inf")).amax(dim=1)
    return other - own


def margin_hinge(margin: Tensor, kappa: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over all voxels of a smooth hinge of the margin.

    With h = max(margin + kappa, 0): h^2 / 4 kappa while h < 2 kappa, and h - kappa beyond. ASMA (Ozbulak et al.,
    MICCAI 2019, eq. 2) sums the target logits over the voxels that still miss the target; that is the *adaptive
    mask*. Here a voxel leaves the mask once it is won by kappa, gradually, and the margin takes the logit's place,
    which unlike it does not grow without end.

    Args:
        margin: (B, *spatial), logit units, see `margins`.
        kappa: (B, *spatial), logit units, at least 0: the lead that each voxel must have to count as won.
        weight: (B, *spatial), at least 0, see `Pressure`.
    Returns: (B,).
    """
    short = F.relu(margin + kappa)
    # The same in one piece, which is faster than a choice at each voxel. Where kappa is 0, so is the curved part.
    curved = torch.minimum(short, 2 * kappa)
    smooth = curved**2 / (4 * kappa.clamp_min(1e-20)) + (short - curved)
    return (smooth * weight).flatten(1).mean(dim=1)


class Pressure:
    """What each voxel counts in the margin loss: Lagrange multipliers of "this voxel has its class".

    A voxel that misses its class counts more with every step, one that is won by kappa less, so that the few hard
    voxels get their class without the many easy ones being pushed further than they need. All weights of a sample
    rise together while it is short of its aim, the faster the more is missing, and fall together while it is there:
    then the change shrinks. Penalty methods raise one weight for all voxels; PDGD (Matyasko and Chau, 2021) and ALMA
    (Rony et al., CVPR 2023) keep one for each.

    kappa: (B, *spatial), logit units; falls to a tenth over the run, so that the search ends close to the border it
        first stayed clear of. weight: (B, *spatial), 1 at first.
    Without `adaptive` both stay as they are.
    """

    def __init__(self, kappa: Tensor, steps: int, *, adaptive: bool) -> None:
        self._first_kappa = self.kappa = kappa
        self.weight = torch.ones_like(kappa)
        self._adaptive = adaptive
        # Chosen for 150 steps; in fewer steps each one must do more.
        self._pace = 150 / steps
        self._margin = torch.empty(0)

    def loss(self, rows: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """`margin_hinge` of some samples, whose margins `update` takes in: (b,)."""
        margin = margins(logits, target)
        self._margin = margin.detach()
        return margin_hinge(margin, self.kappa[rows], self.weight[rows])

    def update(self, rows: Tensor, short: Tensor, progress: float) -> None:
        """Take in the prediction that `loss` was last asked about.

        Args:
            short: (b,), by how much the samples' score misses the aim.
            progress: share of the steps that are done, in [0, 1].
        """
        if not self._adaptive:
            return
        self.kappa = self._first_kappa * (1 - 0.9 * progress)
        margin, pace = self._margin, self._pace
        voxel = torch.where(margin > 0, 1.06**pace, torch.where(margin < -self.kappa[rows], 0.95**pace, 1.0))
        urgency = (short / 0.1).clamp(0.05, 1)
        sample = torch.where(short > 1e-6, 1.08**urgency, torch.full_like(urgency, 0.93)) ** pace
        weight = self.weight[rows].mul_(voxel).mul_(sample.view(-1, *(1,) * (margin.ndim - 1)))
        self.weight[rows] = weight.clamp_(1e-3, 1e5)


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
