"""When a prediction counts as the target: the criterion of the search, one verdict per slice or volume.

Success is judged apart from the losses, on labels, by three numbers that must all be high enough:
*IoU* (mean over the foreground classes of the target), *hit rate* (share of the voxels that had to change and did)
and *removal* (how completely the classes that the target does not have are gone). IoU alone would call a small
lesion in a large organ done before anything happened, and says nothing about a target that empties a class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mafl_cli.config import AttackConfig

SLACK = 1e-6
"""For comparing scores: the smallest step a count of voxels can make in float32 is far above it."""


@dataclass(frozen=True)
class Verdict:
    """Per sample, (B,): the three numbers in (-inf, 1], their minimum `score`, and whether the goal is reached.

    A number that does not apply (no class in the target, nothing to change, nothing to remove) is 1.
    """

    iou: Tensor
    hit: Tensor
    removal: Tensor
    reached: Tensor

    @property
    def score(self) -> Tensor:
        return torch.minimum(torch.minimum(self.iou, self.hit), self.removal)


@dataclass(frozen=True)
class Goal:
    """Targets of a batch with what the clean prediction says, so that `judge` needs only labels.

    target, clean: (B, *spatial) class indices in [0, classes); with overlapping regions (B, R, *spatial), 0 or 1.
    """

    target: Tensor
    clean: Tensor
    classes: int
    iou: float
    hit: float
    overlapping: bool = False

    @staticmethod
    def of(target: Tensor, clean: Tensor, classes: int, config: AttackConfig, *, overlapping: bool = False) -> Goal:
        return Goal(target, clean, classes, config.goal_iou, config.goal_hit, overlapping)

    def __getitem__(self, rows: Tensor) -> Goal:
        return replace(self, target=self.target[rows], clean=self.clean[rows])

    def judge(self, labels: Tensor) -> Verdict:
        """labels: like target, the prediction to judge."""
        in_target, in_clean, in_labels = (self._voxels(x) for x in (self.target, self.clean, labels))
        right = self._voxels(torch.where(labels == self.target, labels, 0))
        wanted = in_target > 0
        union = in_target + in_labels - right
        iou = _mean(right / union.clamp_min(1), wanted)

        changed = (self.target != self.clean).flatten(1)
        must = changed.sum(dim=1)
        done = (changed & (labels == self.target).flatten(1)).sum(dim=1)
        hit = torch.where(must > 0, done / must.clamp_min(1), torch.ones_like(iou))

        unwanted = (in_labels * ~wanted).sum(dim=1)
        before = torch.maximum((in_clean * ~wanted).sum(dim=1), must).clamp_min(1)
        removal = 1 - unwanted / before
        reached = (iou >= self.iou - SLACK) & (hit >= self.hit - SLACK) & (removal >= self.hit - SLACK)
        return Verdict(iou, hit, removal, reached)

    def _voxels(self, labels: Tensor) -> Tensor:
        """Of each foreground class or region: (B, n). Integer sums, so the order of addition cannot matter."""
        if self.overlapping:
            return labels.flatten(2).sum(dim=2)
        flat = labels.flatten(1)
        zeros = torch.zeros(len(labels), self.classes, dtype=torch.int64, device=labels.device)
        return zeros.scatter_add_(1, flat, torch.ones_like(flat))[:, 1:]


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the classes that count; 1 where none does."""
    count = where.sum(dim=1)
    total = (values * where).sum(dim=1)
    return torch.where(count > 0, total / count.clamp_min(1), torch.ones_like(total))
