"""What a step of the search starts from, whichever rule takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mafl_cli.config import AttackConfig
from mafl_cli.search.goals import Verdict

LowPass = Callable[[Tensor], Tensor]
"""The low-pass part of a change, see `search.lowfreq.low_pass`."""


@dataclass(frozen=True)
class Now:
    """Where the b samples that are still attacked stand.

    rows: (b,) indices into the batch. step of budget: how far the run is.
    here: (b, C, *spatial), the change that was judged, model units; size: its length, (b,).
    exact: like here, before it was rounded to the stored grid. Steps start from it, and may overwrite it.
    loss, gradient: (b,) and like here; of the mask loss, the gradient with the other terms' and 0 at frozen voxels.
        Steps may overwrite the gradient.
    verdict: of the prediction. ever: bool (b,), whether the goal has been reached, now or before.
    """

    rows: Tensor
    step: int
    budget: int
    here: Tensor
    size: Tensor
    exact: Tensor
    loss: Tensor
    gradient: Tensor
    verdict: Verdict
    ever: Tensor

    @property
    def progress(self) -> float:
        """Share of the steps that are done, in [0, 1)."""
        return self.step / self.budget

    def is_late(self, config: AttackConfig) -> Tensor:
        """Who has never been at the goal though two fifths of the steps are taken, nor is about to be: bool (b,)."""
        return ~self.ever & (1 - self.verdict.score > 0.3 * allowed_to_miss(config)) & (self.progress > 0.4)


def allowed_to_miss(config: AttackConfig) -> float:
    """Somewhat less of the score than may be missing at the end."""
    return 0.8 * max(1 - config.aimed, 0.01)
