"""Multipliers of the voxels: where a larger change is still needed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """The margin by which the target class loses at each voxel: max over k != t of z_k, minus z_t.

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
