"""How far a change is above the local optimum, to first order: its excess.

The search looks for the shortest change δ after which no voxel's margin m_i (`pressure.margins`) is above 0. The
shortest one near it is a weighted sum of the margins' slopes, δ = -Σ λ_i ∇m_i, with weights λ_i >= 0 that are 0 where a
margin is below 0 (the conditions of Karush, 1939, and of Kuhn and Tucker, 1951). Whatever the weights are, a change at
the goal has Σ λ_i m_i <= 0. To first order at an iterate δ_t that is the half-space

    normal · δ + offset <= 0,   normal = Σ λ_i ∇m_i(δ_t),   offset = Σ λ_i m_i(δ_t) - normal · δ_t,

and no change in it is shorter than offset / |normal|, the way to it from the clean scan (Polyak, 1969). The excess of a
change is what it is longer than that by, as a share: |δ| |normal| / offset - 1. Where margins are linear in the change,
no more than that can be gained; elsewhere it is an estimate. With a box, the shortest change in it and in the
half-space takes the place of the way. The KKT cosine is that of this change and the one found.

The margin loss weighs voxels by their share in its mask. In one step that is close to all or nothing for each voxel;
averaged over the last steps it comes close to the weights of the optimum. The loss asks for a lead, m_i <= -κ_i, which
makes its own half-space (`search.halpern`) smaller than the goal is, so it is taken out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mafl_cli.codes import Reason
from mafl_cli.field.preprocess import per_channel
from mafl_cli.measure.records import LocalOptimum
from mafl_cli.measure.value import Value, defined, undefined
from mafl_cli.search import steps
from mafl_cli.search.best import Best
from mafl_cli.search.limits import Limits


class Certificate:
    """For each sample of a batch, the averaged half-space of the last steps."""

    # Half-spaces are averaged over so many steps, or so much of the run if that is more. Over fewer, and the weights
    # are too coarse: the excess is too large. Over more, and slopes from far away count: it is too small where margins
    # are bent.
    STEPS, SHARE = 10, 0.2
    # Rounds to find the voxels at an end of the box, each of which finds more of them.
    ROUNDS = 6

    def __init__(self, clean: Tensor, limits: Limits, budget: int) -> None:
        """clean: (B, C, *spatial), native. budget: steps of the search."""
        self._clean, self._limits, self._span = clean, limits, max(self.STEPS, self.SHARE * budget)
        self._normal = torch.zeros_like(clean)
        self._offset = torch.zeros(len(clean), device=clean.device)
        self._at_goal = torch.zeros_like(self._offset)

    def update(self, rows: Tensor, here: Tensor, gradient: Tensor, margin: Tensor, reached: Tensor) -> None:
        """Take in the half-space of a step. Those from before the goal was reached count no more once it is: their
        slopes are of other changes.

        Args:
            rows: (b,) indices into the batch.
            here, gradient: (b, C, *spatial), the change that was judged, model units; the slope there, 0 where frozen.
            margin: (b,), the weighted margins, the loss without the lead that it asks for.
            reached: bool (b,), whether the goal has been reached, now or before.
        """
        before = self._at_goal[rows]
        steepness = steps.length(gradient)
        kept = torch.where(steepness > 0, (before / (before + 1)).clamp_max(1 - 1 / self._span), 1.0)
        # Weights are free up to a factor. With slopes at length 1, no step counts more for being steep.
        share = torch.where(steepness > 0, (1 - kept) / steepness.clamp_min(1e-38), 0.0)
        normal = steps.taken(self._normal, rows).mul_(steps.spread_out(kept, here))
        normal.addcmul_(steps.spread_out(share, here), gradient)
        if normal is not self._normal:
            self._normal[rows] = normal
        self._offset[rows] = kept * self._offset[rows] + share * (margin - steps.dot(gradient, here))
        self._at_goal[rows] += reached

    def settled(self, best: Best, rows: Tensor, until: float) -> Tensor:
        """Which samples are at their goal with an excess of `until` or less: bool (b,)."""
        # Fewer half-spaces say little.
        known = self._at_goal[rows] >= self._span
        return known & (_excess(best, rows, steps.length(self._nearest(rows))) <= until)

    def estimate(self, best: Best) -> Estimate:
        """What is known of each best change."""
        rows = torch.arange(len(best.l2), device=best.l2.device)
        nearest = self._nearest(rows)
        bound = steps.length(nearest)
        excess = _excess(best, rows, bound)
        change = (best.x - self._clean).div_(per_channel(self._limits.unit, self._clean))
        cosine = (steps.dot(nearest, change) / (bound * best.l2).clamp_min(1e-38)).clamp(-1, 1)
        return Estimate(best.l2, excess, torch.where(excess.isfinite(), cosine, torch.nan))

    def _nearest(self, rows: Tensor) -> Tensor:
        """The shortest change inside box and half-space, (b, C, *spatial), model units; all 0 where none has to be.

        It is -μ normal, cut off at the ends of the box, for the μ that brings it to the border of the half-space: by
        Newton's method, which comes from below and never goes too far.
        """
        clean, normal, unit = steps.taken(self._clean, rows), steps.taken(self._normal, rows), self._limits.unit
        low, high = (
            ((end - clean) / per_channel(unit, clean)).clamp(*side)
            for end, side in zip(self._limits.ends(clean), ((None, 0), (0, None)), strict=True)
        )
        factor = torch.zeros_like(self._offset[rows])
        for _ in range(self.ROUNDS):
            way = -steps.spread_out(factor, normal) * normal
            free = normal * torch.where(normal > 0, way > low, way < high)
            missing, size = self._offset[rows] + steps.dot(normal, way.clamp(low, high)), steps.dot(free, free)
            factor += torch.where(size > 0, missing.clamp_min(0) / size.clamp_min(1e-30), 0.0)
        return (-steps.spread_out(factor, normal) * normal).clamp_(low, high)


def _excess(best: Best, rows: Tensor, bound: Tensor) -> Tensor:
    """How much longer the best changes are than `bound`, (b,), as a share of it; NaN where that says nothing."""
    # A change that is clearly shorter than the bound shows that margins are not linear between here and there.
    known = best.reached[rows] & (best.l2[rows] > 0) & (bound > 0) & (best.l2[rows] > 0.999 * bound)
    return torch.where(known, (best.l2[rows] / bound.clamp_min(1e-38) - 1).clamp_min(0), torch.nan)


@dataclass(frozen=True)
class Estimate:
    """The length of each sample's change in model units, its excess, at least 0, and its KKT cosine, in [-1, 1]: (B,).

    Excess and cosine are NaN where there is no estimate.
    """

    l2: Tensor
    excess: Tensor
    kkt_cosine: Tensor

    @staticmethod
    def none(like: Tensor) -> Estimate:
        """No estimate for any of a batch, (B, ...)."""
        return Estimate(*(torch.full((len(like),), torch.nan, device=like.device) for _ in range(3)))

    def __setitem__(self, rows: Tensor, found: Estimate) -> None:
        for mine, other in ((self.l2, found.l2), (self.excess, found.excess), (self.kkt_cosine, found.kkt_cosine)):
            mine[rows] = other

    def joined(self, otherwise: Reason) -> LocalOptimum:
        """The estimate of all samples as one change; `otherwise` says why there is none where no sample has one."""
        known = self.excess.isfinite()
        l2, excess, cosine = (each[known].double() for each in (self.l2, self.excess, self.kkt_cosine))
        length = float(l2.norm())

        def value(number: float) -> Value:
            return defined(number) if len(l2) else undefined(otherwise)

        return LocalOptimum(
            excess=value(length / max(float((l2 / (1 + excess)).norm()), 1e-300) - 1),
            # Each sample has its own weights, so each slope may be as long as suits its change.
            kkt_cosine=value(float((l2 * cosine.clamp_min(0)).norm()) / max(length, 1e-300)),
            excess_per_sample={
                str(sample): excess for sample, excess in enumerate(self.excess.tolist()) if math.isfinite(excess)
            },
        )
