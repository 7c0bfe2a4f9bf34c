"""The dynamic step-size calculator: the way to the target by the loss's slope, minus a pull back to the clean scan.

The smallest change that draws the target is the point closest to the clean scan at which every voxel is won. Near an
iterate the loss says which points these are, as far as it is linear: a half-space, its *cut*. One step

    δ  <-  δ - r (way to the averaged cut) - α (the part of the pull that lies along the cut's border)

is Polyak's projection on the cut (1969) together with Halpern's pull towards a fixed point (1967), here the clean scan,
with α falling as 1 / t: without it such steps end somewhere on the border, with it next to the clean scan. Every length
is a distance that the slopes suggest, so neither the number of voxels, nor the unit, nor the scale of logits matters;
where the loss has no slope, nothing moves.

Shapes: changes and gradients are (b, C, *spatial), model units, of the samples still attacked; all else is (b,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mafl_cli.config import AttackConfig
from mafl_cli.search import losses, steps
from mafl_cli.search.goals import SLACK
from mafl_cli.search.moves import LowPass, Now, allowed_to_miss


class Halpern:
    """State of the iteration for a batch: the averaged cut {δ: normal · δ + offset <= 0}, and how hard it is pulled."""

    # First relaxation of the projection and last; most that is pulled in one step.
    FIRST, LAST, MOST = 1.0, 0.3, 0.5
    # Shares of the run: cuts are averaged in full from, a target has to be on its way from, and be drawn at.
    AVERAGED, BEGUN, DUE = 0.3, 0.2, 0.65
    # Limits of the pull's factor.
    WEAK, STRONG = 0.02, 5.0
    # Relaxation for a target that is late: most and least.
    LATE_MOST, LATE_LEAST = 0.7, 0.05

    def __init__(self, config: AttackConfig, like: Tensor, low: LowPass) -> None:
        """like: (B, C, *spatial), the clean images."""
        self._config, self._low = config, low
        self._normal = torch.zeros_like(like)
        self._offset = torch.zeros(len(like), device=like.device)
        self._pull = torch.ones_like(self._offset)
        self._first = torch.ones_like(self._offset)
        self._short = torch.ones_like(self._offset)
        self._care = torch.full_like(self._offset, self.LATE_MOST)

    def step(self, now: Now) -> Tensor:
        """The next change, like `now.exact`; the loop brings it inside the limits."""
        delta, late = now.exact, now.is_late(self._config)
        normal, offset = self._averaged(now)
        size = steps.dot(normal, normal).clamp_min(1e-30)
        relaxation = torch.where(late, self._careful(now, late), self._relaxed(now.progress))
        way = (offset + steps.dot(normal, delta)).clamp_min(0) * relaxation
        pull, share = self._pulled(now, normal), torch.where(late, 0.0, self._share(now))
        # Along the border of the cut, a pull gives up nothing of what was won.
        way = (way - share * steps.dot(normal, pull)) / size
        return delta.addcmul(steps.spread_out(-share, delta), pull).addcmul_(steps.spread_out(-way, delta), normal)

    def _relaxed(self, progress: float) -> float:
        """What share of the way is gone in a step."""
        return self.LAST + (self.FIRST - self.LAST) * (1 + math.cos(math.pi * progress)) / 2

    def _careful(self, now: Now, late: Tensor) -> Tensor:
        """The same for a late target: less after each step that lost more than it won. (b,)"""
        short = 1 - now.verdict.score
        care = self._care[now.rows] * torch.where(short > self._short[now.rows], 0.85, 1.02)
        care = torch.where(late, care, self.LATE_MOST).clamp(self.LATE_LEAST, self.LATE_MOST)
        self._care[now.rows], self._short[now.rows] = care, short
        return care

    def _averaged(self, now: Now) -> tuple[Tensor, Tensor]:
        """The cuts so far, averaged with that of this step, whose normal has length 1."""
        gradient, steepness = now.gradient, steps.length(now.gradient)
        gradient.mul_(steps.spread_out(torch.where(steepness > 0, 1 / steepness.clamp_min(1e-38), 0.0), gradient))
        here = steps.distance(now.loss, steepness) - steps.dot(gradient, now.exact)
        # The first cuts are far from the border, and mislead the longer the more they count.
        kept = self._config.momentum * min(1.0, now.progress / self.AVERAGED)
        normal = self._normal[now.rows].mul_(kept).add_(gradient, alpha=1 - kept)
        offset = kept * self._offset[now.rows] + (1 - kept) * here
        self._normal[now.rows], self._offset[now.rows] = normal, offset
        return normal, offset

    def _pulled(self, now: Now, normal: Tensor) -> Tensor:
        """What is pulled at: the change with its peaks counting more, and its low-pass part."""
        pull = losses.size_gradient(now.exact, self._config.peak_weight)
        if self._config.low_frequency_weight > 0:
            pull.add_(
                losses.low_frequency_gradient(now.exact, normal, self._low).mul_(self._config.low_frequency_weight)
            )
        return pull

    def _share(self, now: Now) -> Tensor:
        """How much of the pull is followed: less while the target is behind its time, more once it is drawn."""
        short, progress = 1 - now.verdict.score, now.progress
        first = short if now.step == 0 else self._first[now.rows]
        if progress <= self.BEGUN:
            first = torch.minimum(short, (first + short) / 2)
            self._first[now.rows] = first
        first = first.clamp_min(1e-6)
        # What may be missing falls geometrically from what was missing at first.
        done = min(max((progress - self.BEGUN) / (self.DUE - self.BEGUN), 0.0), 1.0)
        behind = (short > first * (allowed_to_miss(self._config) / first) ** done) & (progress > self.BEGUN)
        drawn = now.verdict.reached & (now.verdict.score >= self._config.aimed - SLACK)
        pull = self._pull[now.rows]
        searching = torch.where(behind, 0.85 * pull, (1.05 * pull).clamp_max(1))
        pull = torch.where(
            now.ever, torch.where(drawn, 1.4 * pull.clamp_min(0.3), 0.8 * pull), searching.clamp_min(0.1)
        ).clamp(self.WEAK, self.STRONG)
        self._pull[now.rows] = pull
        return self._config.l2_weight * (2 * pull / (now.step + 2)).clamp_max(self.MOST)
