"""When a prediction counts as the target: the criterion of the search, one verdict per slice or volume.

Success is judged apart from the losses, on labels, by three numbers that must all be high enough:
*IoU* (mean over the foreground classes of the target), *hit rate* (share of the voxels that had to change and did)
and *removal* (how completely the classes that the target does not have are gone). IoU alone would call a small
lesion in a large organ done before anything happened, and says nothing about a target that empties a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mafl_cli.network.prediction import Prediction, majority

# Voxels that are counted together.
_BLOCK = 1 << 20
_CLEARLY = 0.7
"""Share of the draws of a step that clearly most are: 3 of 4."""
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

    Classes that exclude each other are one map, overlapping regions one each with the classes 0 and 1: G maps of K
    classes, n foreground classes in all.

    code: (B, G, voxels), (2 target + changed) K with changed = 1 where the clean prediction is not the target: with the
        label added, a number for everything that can be asked of a voxel, so that one count answers it all. In the
        smallest type that holds it.
    others: where several functions are attacked together, the goals of all but the first.
    in_target, in_clean: (B, n), voxels of each foreground class. must: (B,), voxels that have to change.
    """

    code: Tensor
    in_target: Tensor
    in_clean: Tensor
    must: Tensor
    classes: int
    iou: float
    hit: float
    others: tuple[Goal, ...] = ()

    @staticmethod
    def of(target: Tensor, clean: Tensor, classes: int, *, iou: float, hit: float, overlapping: bool = False) -> Goal:
        """The goal of these targets.

        target, clean: (B, *spatial), class indices in [0, classes); with overlapping regions (B, R, *spatial), 0 or 1.
        iou, hit: what a prediction must have, see `Verdict`; the second is asked of the removal too.
        """
        if overlapping:
            classes = 2
        maps = [x.flatten(2) if overlapping else x.flatten(1).unsqueeze(1) for x in (target, clean)]
        before = _counts(maps[1], classes)[..., 1:].flatten(1)
        changed = (target != clean).view_as(maps[0])
        kind = torch.uint8 if 2 * classes**2 <= 256 else torch.int32
        code = maps[0].to(kind).mul(2).add_(changed).mul_(classes)
        # Counted in parts: a sum would make int64 of the whole scan.
        counts = _counts(code, 2 * classes**2).view(*code.shape[:2], classes, 2, classes)[..., 0]
        wanted = counts.sum(dim=3)[..., 1:].flatten(1)
        return Goal(code, wanted, before, counts[..., 1].sum(dim=(1, 2)), classes, iou, hit)

    def __getitem__(self, rows: Tensor) -> Goal:
        if len(rows) == len(self.must):
            return self
        return replace(
            self, code=self.code[rows], in_target=self.in_target[rows], in_clean=self.in_clean[rows],
            must=self.must[rows], others=tuple(other[rows] for other in self.others),
        )  # fmt: skip

    def judge(self, labels: Tensor) -> Verdict:
        """Judge a prediction. labels: like the target."""
        return self._verdict(self._tally(labels))

    def judge_prediction(self, prediction: Prediction) -> Verdict:
        """Judge what a search has seen. Where a network answers by chance, a voxel is at its target only if clearly
        most of the draws are, so that no luck of a few draws counts. Where there are several functions, the worst
        counts."""
        if prediction.views:
            goals = (replace(self, others=()), *self.others)
            views = zip(goals, prediction.views, strict=True)
            return _worst([goal.judge_prediction(view) for goal, view in views if view.judged])
        if not prediction.draws:
            return self.judge(prediction.labels)
        target = (self.code // (2 * self.classes)).view_as(prediction.draws[0])
        others = [torch.where(labels == target, -1, labels) for labels in prediction.draws]
        votes = torch.stack([other < 0 for other in others]).sum(dim=0)
        rest = majority([other.clamp_min(0) for other in others])
        rest = torch.where(rest == target, (target + 1) % self.classes, rest)
        return self.judge(torch.where(votes >= _CLEARLY * len(others), target, rest))

    def judge_together(self, labels: Tensor) -> tuple[Verdict, Verdict]:
        """What `judge` says, and what it would say of all samples as one."""
        tally = self._tally(labels)
        in_target, in_clean, must = (
            each.sum(dim=0, keepdim=True) for each in (self.in_target, self.in_clean, self.must)
        )
        whole = replace(self, in_target=in_target, in_clean=in_clean, must=must)
        return self._verdict(tally), whole._verdict(tally.sum(dim=0, keepdim=True))

    def _tally(self, labels: Tensor) -> Tensor:
        """Voxels by target, whether they had to change, and label: (B, G, K, 2, K)."""
        classes = self.classes
        counts = _counts(self.code, 2 * classes**2, labels.view_as(self.code))
        return counts.view(*counts.shape[:2], classes, 2, classes)

    def _verdict(self, counts: Tensor) -> Verdict:
        right = counts.diagonal(dim1=2, dim2=4)
        in_labels = counts.sum(dim=(2, 3))[..., 1:].flatten(1)
        wanted = self.in_target > 0
        met = right.sum(dim=2)[..., 1:].flatten(1)
        iou = _mean(met / (self.in_target + in_labels - met).clamp_min(1), wanted)

        done = right[:, :, 1].sum(dim=(1, 2))
        hit = torch.where(self.must > 0, done / self.must.clamp_min(1), torch.ones_like(iou))

        unwanted = (in_labels * ~wanted).sum(dim=1)
        before = torch.maximum((self.in_clean * ~wanted).sum(dim=1), self.must).clamp_min(1)
        removal = 1 - unwanted / before
        reached = (iou >= self.iou - SLACK) & (hit >= self.hit - SLACK) & (removal >= self.hit - SLACK)
        return Verdict(iou, hit, removal, reached)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    """What all have: the least of each number, and the goal where each reaches it."""

    def least(numbers: list[Tensor]) -> Tensor:
        return torch.stack(numbers).amin(dim=0)

    return Verdict(
        least([each.iou for each in verdicts]),
        least([each.hit for each in verdicts]),
        least([each.removal for each in verdicts]),
        torch.stack([each.reached for each in verdicts]).all(dim=0),
    )


def _counts(numbers: Tensor, classes: int, more: Tensor | None = None) -> Tensor:
    """How often each number in [0, classes) occurs: (B, G, voxels) -> (B, G, classes). Whole numbers, so the
    order of addition cannot matter. more: added to the numbers."""
    found = torch.zeros(*numbers.shape[:2], classes, dtype=torch.int64, device=numbers.device)
    # As int64, which an index must be, a scan of labels would be eight times as large.
    samples = max(1, _BLOCK // max(1, numbers[0].numel())) if len(numbers) else 1
    for first in range(0, len(numbers), samples):
        some = slice(first, first + samples)
        for begin in range(0, numbers.shape[2], _BLOCK):
            index = numbers[some, :, begin : begin + _BLOCK].long()
            if more is not None:
                index += more[some, :, begin : begin + _BLOCK]
            found[some].scatter_add_(2, index, found.new_ones(()).expand_as(index))
    return found


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the classes that count; 1 where none does."""
    count = where.sum(dim=1)
    total = (values * where).sum(dim=1)
    return torch.where(count > 0, total / count.clamp_min(1), torch.ones_like(total))
