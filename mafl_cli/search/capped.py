"""Steps to the smallest largest change of a voxel, Linf, instead of the shortest change.

The half-space that a step goes to, and how hard it pulls towards the clean scan, are those of `search.halpern`. What
differs is the geometry: the pull lowers a cap on the change of every voxel, and the step ends at the point of the
half-space, within the cap, that is nearest to where it began. By the half-space itself no change is below

    least = offset / ||normal||_1,

for the largest change of a voxel and the sum of the magnitudes are dual norms. A cap there leaves each voxel one value
alone, its sign times the cap, and the change is long; a little above it few voxels are at the cap. The half-space is
only what the slopes say, so there is more room while the goal has not been reached, and the more the longer that lasts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mafl_cli.search import steps
from mafl_cli.search.halpern import Halpern
from mafl_cli.search.moves import Now


class Capped(Halpern):
    """The iteration of `Halpern`, within a cap on the change of each voxel that falls from step to step."""

    # The cap over the least one with which the half-space can be reached: before the goal was reached, and after. With
    # 1.5 before it, hard targets are missed.
    ROOM, CLOSE = 2.0, 1.2
    # How much the cap rises in a step while a target is late.
    RISE = 1.05
    # How much of the pull towards a short change is left once the goal was reached: it keeps voxels small that may be.
    SHORT = 0.5
    # Rounds to find the voxels that are at the cap.
    ROUNDS = 8

    def step(self, now: Now) -> Tensor:
        """The next change, like `now.exact`; the loop brings it inside the limits."""
        delta, late = now.exact, now.is_late(self._config)
        normal, offset = self._averaged(now)
        relaxation = torch.where(late, self._careful(now, late), self._relaxed(now.progress))
        share = torch.where(late, 0.0, self._share(now))
        at = steps.dot(normal, delta)
        aim = at - relaxation * (offset + at).clamp_min(0)
        least = (-aim).clamp_min(0) / normal.abs().flatten(1).sum(dim=1).clamp_min(1e-30)
        largest = delta.abs().flatten(1).amax(dim=1)
        room = torch.where(now.ever, self.CLOSE, self.ROOM)
        cap = torch.maximum((1 - share) * largest, room * least)
        cap = torch.where(late, self.RISE * cap, cap)
        short = share * torch.where(now.ever, self.SHORT, 1.0)
        pulled = torch.addcmul(delta, steps.spread_out(-short, delta), self._pulled(now, normal))
        return nearest(pulled, normal, aim, cap, self.ROUNDS)


def nearest(start: Tensor, normal: Tensor, aim: Tensor, cap: Tensor, rounds: int) -> Tensor:
    """The change next to `start`, cut off at the cap, of those with normal · δ <= aim and no voxel above the cap.

    It is start - λ normal, cut off again, for the least λ >= 0 that will do. normal · δ is a convex function of λ, made
    of straight pieces, so that Newton's steps from 0 come to it from below, and end there.

    Args: start, normal: (b, C, *spatial). aim, cap: (b,). rounds: Newton's steps, at most.
    """
    high = steps.spread_out(cap, start)
    way = torch.zeros_like(aim)
    start = start.clamp(-high, high)
    found = start
    for _ in range(rounds):
        free = torch.where(normal > 0, found > -high, found < high)
        slope = steps.dot(normal * free, normal)
        left = steps.dot(normal, found) - aim
        way = way + torch.where(slope > 0, left.clamp_min(0) / slope.clamp_min(1e-30), 0.0)
        found = torch.addcmul(start, steps.spread_out(-way, start), normal).clamp_(-high, high)
    return found
