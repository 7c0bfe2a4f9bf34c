"""What the gradients of a search promised from step to step, and what came.

The slope of the loss in the logits says what a change of the logits is worth; the gradient says what the network was to
make of a change of the scan. Both are known at every step, so that the comparison costs no pass through the network,
and it is made where the search really was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mafl_cli.field.field import Slopes
from mafl_cli.search import steps


@dataclass(frozen=True)
class Falls:
    """By how much a loss was to fall from each step to the next, and by how much it fell: (steps, B) each.

    NaN where a sample was not there, or nobody watched it.
    """

    promised: Tensor
    came: Tensor


@dataclass(frozen=True)
class _Noted:
    """What a step promised of the next, for some rows of the batch: gradient in the scan and slope in the logits, with
    what each of them says of where it was taken."""

    rows: Tensor
    gradient: Tensor
    pull: Tensor
    in_scan: Tensor
    in_logits: Tensor


class Promises:
    """Falls of the loss from one step to the next, for the samples of a batch that are watched."""

    def __init__(self, watched: Tensor) -> None:
        """watched: bool (B,). The others are not looked at, and take no memory."""
        self._watched = watched
        self._noted: _Noted | None = None
        self._falls: list[tuple[Tensor, Tensor]] = []

    @property
    def falls(self) -> Falls:
        """All that was compared."""
        none = torch.zeros(0, len(self._watched), device=self._watched.device)
        if not self._falls:
            return Falls(none, none)
        return Falls(*(torch.stack(each) for each in zip(*self._falls, strict=True)))

    def settle(self, rows: Tensor, here: Tensor, logits: Tensor) -> None:
        """Compare where samples are now, as in `note`, with what was noted of them, and forget that."""
        noted, self._noted = self._noted, None
        if noted is None:
            return
        # Samples leave, and none comes: those that are here still were noted in the same order.
        old, new = torch.isin(noted.rows, rows), torch.isin(rows, noted.rows)
        promised, came = (torch.full(self._watched.shape, torch.nan, device=here.device) for _ in range(2))
        promised[noted.rows[old]] = noted.in_scan[old] - steps.dot(noted.gradient[old], here[new])
        came[noted.rows[old]] = noted.in_logits[old] - steps.dot(noted.pull[old], logits[new])
        self._falls.append((promised, came))

    def note(self, rows: Tensor, here: Tensor, gradient: Tensor, slopes: Slopes) -> None:
        """Keep what the gradients promise of the next step.

        Args:
            rows: (b,) indices into the batch. here: (b, C, *spatial), the change, in the units of the gradient.
            gradient: likewise, of the first loss; it may be overwritten afterwards. slopes: of this step.
        """
        mine = self._watched[rows]
        if not bool(mine.any()):
            return
        gradient, pull = gradient[mine], slopes.pull[mine]
        logits = slopes.prediction.logits[mine]
        self._noted = _Noted(rows[mine], gradient, pull, steps.dot(gradient, here[mine]), steps.dot(pull, logits))
