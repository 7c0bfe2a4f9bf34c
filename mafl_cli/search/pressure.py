"""The margin loss: which voxels are not won yet, and how clearly they must be."""

from __future__ import annotations

import torch
from torch import Tensor

from mafl_cli.search import steps


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """The margin by which the target class loses at each voxel: max over k != t of z_k, minus z_t.

    Returns: (B, *spatial), logit units; negative where the model already draws the target.
    """
    index = target.unsqueeze(1)
    own = logits.gather(1, index).squeeze(1)
    other = logits.scatter(1, index, float("-inf")).amax(dim=1)
    return other - own


def margin_hinge(margin: Tensor, kappa: Tensor, weight: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Weighted mean over all voxels of what each lacks, margin + kappa, times its share in the mask.

    The share is 0 for a voxel that is won by kappa, 1 for one that is lost by it, and linear between; it carries no
    gradient. ASMA (Ozbulak et al., MICCAI 2019, eq. 2) sums the target logits over the voxels that still miss the
    target; that is the *adaptive mask*. Here a voxel leaves the mask gradually, and the margin takes the logit's place,
    which unlike it does not grow without end. The value is how much margin is missing: divided by its slope it is the
    way to the target, see `steps.distance`.

    Args:
        margin: (B, *spatial), logit units, see `margins`.
        kappa: (B, *spatial), logit units, at least 0: the lead that each voxel must have to count as won.
        weight: (B, *spatial), at least 0, or a number.
    Returns: the value, (B,), and what of it is the lead, the same mean of kappa alone, without gradient.
    """
    lacking = margin + kappa
    with torch.no_grad():
        share = (lacking / (2 * kappa).clamp_min(1e-20)).clamp_(0, 1).mul_(weight)
        lead = torch.linalg.vecdot(share.flatten(1), kappa.flatten(1)) / kappa[0].numel()
    return (lacking * share).flatten(1).mean(dim=1), lead


class Pressure:
    """How clearly each voxel must be won, and what it counts.

    The wanted lead, kappa, is a share of the clean prediction's mean lead, and falls to a tenth over the run, so that
    the search ends close to the border it first stayed clear of. It is at least half of what a step changes the margins
    of voxels near the border by: those won by a hair in one step are lost by it in the next. A voxel that has its class
    already need not become surer of it than it was.

    Voxels weigh the same until a target is late. From then on those that miss it count more with every step and those
    that are won by kappa less, as Lagrange multipliers would: PDGD (Matyasko and Chau, 2021) and ALMA (Rony et al.,
    CVPR 2023) keep one for each voxel.
    """

    def __init__(self, lead: Tensor, agree: Tensor, kappa: float) -> None:
        """lead: (B, *spatial), logit units, of the clean prediction. agree: bool, like lead, where it is the target.

        kappa: share of the mean lead.
        """
        self._most = torch.where(agree, lead, torch.inf)
        self._mean = lead.flatten(1).mean(dim=1)
        self._base = kappa * self._mean
        self._width = self._base.clone()
        self._jump = torch.zeros_like(self._mean)
        self._margin = torch.full_like(lead, torch.nan)
        self._weight: Tensor | None = None
        self._lead = torch.zeros_like(self._mean)

    def kappa(self, rows: Tensor) -> Tensor:
        """The lead that each voxel of some samples must have: (b, *spatial), logit units."""
        return torch.minimum(steps.taken(self._most, rows), steps.spread_out(self._width[rows], self._most))

    def loss(self, rows: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """The value of `margin_hinge` of some samples: (b,)."""
        margin = margins(logits, target)
        self._follow(rows, margin.detach())
        kappa, weight = self.kappa(rows), 1.0 if self._weight is None else steps.taken(self._weight, rows)
        loss, self._lead[rows] = margin_hinge(margin, kappa, weight)
        return loss

    def usual(self, rows: Tensor) -> Tensor:
        """The mean lead of the clean prediction: (b,), logit units, above 0."""
        return self._mean[rows].clamp_min(1e-20)

    def lead(self, rows: Tensor) -> Tensor:
        """What of the last loss is the lead that it asks for, and not the margins themselves: (b,)."""
        return self._lead[rows]

    def update(self, rows: Tensor, late: Tensor, progress: float) -> None:
        """Set the lead that the next step wants.

        Args:
            late: bool (b,), the samples whose target is overdue.
            progress: share of the steps that will be done by then, in [0, 1].
        """
        base = self._base[rows] * (1 - 0.9 * progress)
        self._width[rows] = torch.maximum(base, torch.minimum(0.5 * self._jump[rows], self._mean[rows]))
        if self._weight is None:
            if not bool(late.any()):
                return
            self._weight = torch.ones_like(self._margin)
        margin = steps.taken(self._margin, rows)
        factor = torch.where(margin > 0, 1.1, torch.where(margin < -self.kappa(rows), 0.9, 1.0))
        factor = torch.where(steps.spread_out(late, margin), factor, 1.0)
        self._weight[rows] = factor.mul_(steps.taken(self._weight, rows)).clamp_(1e-3, 1e3)

    def _follow(self, rows: Tensor, margin: Tensor) -> None:
        """Take in by how much the last step changed the margins of the voxels near the border, their geometric mean."""
        before = steps.taken(self._margin, rows)
        # As shares of the mean lead, so that the scale of the logits does not matter to the bit.
        scale = self._mean[rows].clamp_min(1e-38)
        jump = (margin - before).abs_().div_(steps.spread_out(scale, margin))
        near = (before.abs() < 2 * steps.spread_out(self._width[rows], margin)) | ((margin > 0) != (before > 0))
        # No number where there was no step before, or where the network gives none.
        near &= jump.isfinite()
        jump.clamp_min_(1e-6).log_().masked_fill_(~near, 0.0)
        count = near.flatten(1).sum(dim=1)
        mean = (jump.flatten(1).sum(dim=1) / count.clamp_min(1)).exp() * scale
        known = self._jump[rows]
        smooth = torch.where(known > 0, (known + mean) / 2, mean)
        self._jump[rows] = torch.where(count > 0, smooth, known)
        self._margin[rows] = margin
