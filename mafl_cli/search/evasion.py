"""What a detector may say of a change that it is not to find: no more than of the clean sample.

The detectors of `network.uncertainty` have a slope: what each says above the clean sample is a term of the loss. The
blur has none here: the function is attacked together with itself behind the blur, and what moves is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mafl_cli.network import uncertainty
from mafl_cli.network.prediction import Prediction
from mafl_cli.search import steps
from mafl_cli.search.goals import Verdict

_UNSURE = ("entropy", "margin")
# Aimed at below the clean score, as a share of it: what is written is rounded, and the file itself judges it.
_BELOW = 0.02
# What the term counts beside the mask loss, at first, at least and at most: a voxel in doubt has a slope of up to 0.5
# in logit units there, and one that misses its target of 1 in the mask loss.
_FIRST, _LEAST, _MOST = 2.0, 0.5, 100.0


class Evasion:
    """The scores of clean samples, the most that changed ones may have, and how much that counts in the loss.

    names: of the detectors; "blur" needs predictions of two functions, the second behind the blur.
    """

    def __init__(self, names: Sequence[str], before: Prediction, whole: Tensor | None, *, overlapping: bool) -> None:
        """before: of the clean samples. whole: (B, 3), sums of `uncertainty.weighed` over all of each clean sample,
        where the function draws but a part of it; None where it draws all.
        """
        self._asked = [name in names for name in _UNSURE]
        self._blur = "blur" in names
        inside = _totals(before.logits)
        # What lies outside of the part stays as it is.
        self._around = torch.zeros_like(inside) if whole is None else (whole.to(inside) - inside).clamp_min(0)
        self._limit = uncertainty.scores(inside + self._around)
        self._overlapping = overlapping
        self._moves = self._moved(before) if self._blur else torch.zeros_like(inside[:, 0])
        self._weight = torch.full_like(self._moves, _FIRST, dtype=torch.float32)
        self._over = torch.zeros_like(self._weight, dtype=torch.bool)

    def term(self, rows: Tensor, logits: Tensor) -> Tensor:
        """What the scores are above their aim, as means over voxels of what is in doubt too much: (b,).

        The slope of the term is that of the scores where they are too high, and 0 elsewhere.
        """
        parts = uncertainty.weighed(logits).flatten(2)
        totals = parts.sum(dim=2) + steps.taken(self._around, rows).to(parts)
        aim = steps.taken(self._limit, rows).to(parts) * (1 - _BELOW)
        asked = torch.tensor(self._asked, device=parts.device)
        above = (totals[:, :2] - aim * totals[:, 2:]).clamp_min(0) * asked
        self._over[rows] = (above.detach() > 0).any(dim=1)
        found: Tensor = steps.taken(self._weight, rows) * above.sum(dim=1) / parts.shape[2]
        return found

    def press(self, rows: Tensor) -> None:
        """Let it count more where the last scores were too high, and less where not."""
        factor = torch.where(self._over[rows], 1.1, 0.97)
        self._weight[rows] = (self._weight[rows] * factor).clamp(_LEAST, _MOST)

    def judged(self, verdict: Verdict, rows: Tensor, prediction: Prediction) -> Verdict:
        """A verdict that reaches the goal only where no score is above that of the clean sample.

        The score of the verdict is at most 1 less what the highest is above it; the removal stands for that.
        """
        excess = self.excess(rows, prediction)
        return replace(
            verdict, removal=torch.minimum(verdict.removal, 1 - excess), reached=verdict.reached & (excess <= 0)
        )

    def excess(self, rows: Tensor, prediction: Prediction) -> Tensor:
        """How far the highest score is above that of the clean sample, in [0, 1]; 0 where none is: (b,)."""
        first = prediction.views[0] if prediction.views else prediction
        totals = _totals(first.logits) + steps.taken(self._around, rows)
        # What is not a number is above everything.
        scores = torch.where(totals.isnan().any(dim=1, keepdim=True), 1.0, uncertainty.scores(totals))
        above = (scores - steps.taken(self._limit, rows))[:, self._asked]
        parts = [above.amax(dim=1)] if any(self._asked) else []
        if self._blur:
            parts.append(self._moved(prediction) - steps.taken(self._moves, rows))
        return torch.stack(parts).amax(dim=0).clamp_min(0).float()

    def _moved(self, prediction: Prediction) -> Tensor:
        first, second = (view.labels for view in prediction.views[:2])
        return moved(first, second) if self._overlapping else moved(first.unsqueeze(1), second.unsqueeze(1))


def moved(first: Tensor, second: Tensor) -> Tensor:
    """Voxels that are drawn otherwise in the second labels, (B, M, *spatial), as a share of those that are foreground
    in either; 0 where none is: (B,), float64."""
    masks = (first != second, (first > 0) | (second > 0))
    changed, drawn = (mask.any(dim=1).flatten(1).sum(dim=1).double() for mask in masks)
    return changed / drawn.clamp_min(1)


def _totals(logits: Tensor) -> Tensor:
    """Sums over all voxels, (B, 3) float64."""
    return uncertainty.weighed(logits).flatten(2).sum(dim=2, dtype=torch.float64)
