"""Several models as one attacked function: the mean of their logits, or of their probabilities.

Models of different kinds may be joined, and such that scale intensities in different ways: then the input has the
channels of the scan once for each of them. What they share is the grid: axes, spacing, windows and classes.

With gradients on, no pass keeps its intermediate values: the backward pass of the mean makes them again, model by
model, so that one model at a time is in memory. That changes no digit of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mafl_cli.config import EnsembleRule
from mafl_cli.network.lifting import Output
from mafl_cli.network.model_file import ModelFile
from mafl_cli.network.original import logits_of
from mafl_cli.network.prediction import Prediction
from mafl_cli.network.segmenter import GradientFrom, Segmenter
from mafl_cli.network.straight import Cure, Plan


def mean_of(answers: Iterator[Tensor], ensemble: EnsembleRule) -> Tensor:
    """Logits, (B, K, *spatial) or (B, 2, R, *spatial), of the members -> of their mean, in the order they come.

    mean: of the logits, as nnU-Net joins its folds. mean-probabilities: of the softmax or sigmoid, as nnU-Net joins
    configurations and MONAI its members; these are its logarithms.
    """
    total, count = None, 0
    for logits in answers:
        one = logits if ensemble == "mean" else torch.log_softmax(logits, dim=1)
        together = torch.add if ensemble == "mean" else torch.logaddexp
        total, count = one if total is None else together(total, one), count + 1
    assert total is not None
    return total / count if ensemble == "mean" else total - math.log(count)


@dataclass(frozen=True)
class _Shares:
    """Which channels of the joint input each member gets. count: of channels of one. own: whether each has its own."""

    count: int
    own: bool

    def of(self, x: Tensor, number: int) -> Tensor:
        """The input of a member, (B, C, *spatial)."""
        return x[:, number * self.count : (number + 1) * self.count] if self.own else x


class _Mean(nn.Module):
    """The members' files as one: (B, C, *spatial) -> raw logits (B, n, *spatial), as `logits_of` takes them."""

    def __init__(self, members: Sequence[Segmenter], shares: _Shares, ensemble: EnsembleRule, *, single: bool) -> None:
        super().__init__()
        self._members = tuple(members)
        self._shares, self._ensemble, self._single = shares, ensemble, single

    def forward(self, x: Tensor) -> Tensor:
        return self.raw(x, lambda member: member.original)

    def raw(self, x: Tensor, by: Callable[[Segmenter], Callable[[Tensor], Prediction]]) -> Tensor:
        """by: what answers for a member."""
        answers = (
            _kept_small(by(member), member, self._shares.of(x, number)) for number, member in enumerate(self._members)
        )
        logits = mean_of(answers, self._ensemble)
        # Regions, and a single channel, come in pairs here, of which the difference is the logit.
        if logits.ndim == x.ndim + 1:
            return logits[:, 1] - logits[:, 0]
        return logits[:, 1:] - logits[:, :1] if self._single else logits


def _kept_small(answer: Callable[[Tensor], Prediction], member: Segmenter, x: Tensor) -> Tensor:
    """A member's logits; for a gradient nothing is kept but its input."""

    def logits(x: Tensor) -> Tensor:
        found = answer(x).logits
        # Behind a softmax logits are known but for a number that all classes of a voxel share; a graph has another one.
        return torch.log_softmax(found, dim=1) if member.original.gives == "softmax" else found

    if not (torch.is_grad_enabled() and x.requires_grad) or member.members_in_turn:
        return logits(x)
    found: Tensor = checkpoint(logits, x, use_reentrant=False)
    return found


# --- the segmenter ------------------------------------------------------------------------------------------------


class JoinedSegmenter(Segmenter):
    """An ensemble as a `Segmenter`. Each member is differentiated as it would be alone; there are no features."""

    def __init__(
        self,
        file: ModelFile,
        name: str,
        members: Sequence[Segmenter],
        device: torch.device,
        *,
        tried: tuple[int, ...],
        own: bool,
        single: bool,
        overlapping: bool,
    ) -> None:
        """tried: the shape, (1, C, *spatial), of one member's input. own: whether each member has its own channels.
        single: whether the members give one channel each.
        """
        assert file.ensemble is not None
        self._mean = _Mean(members, _Shares(tried[1], own), file.ensemble, single=single)
        self._members = tuple(members)
        output = Output(leaf=0, bounded=False, overlapping=overlapping)
        super().__init__(replace(file, module=self._mean, frozen=self._mean), name, output, device)
        if any(member.exact is not member for member in members):
            self.exact = JoinedSegmenter(
                file,
                name,
                [member.exact for member in members],
                device,
                tried=tried,
                own=own,
                single=single,
                overlapping=overlapping,
            )
            self.original = self.exact.original
        self.tried = (1, tried[1] * (len(members) if own else 1), *tried[2:])
        if any(member.by_chance for member in members):
            self.take_chance(for_good=True)
        self.original.has_random = any(member.original.has_random for member in members)

    @property
    def surrogates(self) -> tuple[Segmenter, ...]:
        """Those of all members, in order."""
        return tuple(surrogate for member in self._members for surrogate in member.surrogates)

    @property
    def gradient_from(self) -> GradientFrom:  # type: ignore[override]
        """The graph if that of any member is differentiated: then graphs and files are compared on every scan."""
        return "graph" if any(member.gradient_from == "graph" for member in self._members) else "file"

    def __call__(self, x: Tensor) -> Prediction:
        """Raises ModelError if a member refuses the size of `x`."""
        raw = self._mean.raw(x, lambda member: member)
        return Prediction(logits_of(raw, "logits", overlapping=self.original.output.overlapping), ())

    def as_given(self, ready: Tensor) -> Tensor:
        """What the members' graphs give in place of their files, without gradient: (B, n, *spatial)."""
        with torch.no_grad():
            return self._mean.raw(ready, lambda member: member)

    def members_of(self, ready: Tensor) -> list[tuple[Segmenter, Tensor]]:
        """The members whose graphs are differentiated, each with what it gets of an input."""
        return [
            (member, member.original.enlarged(self._mean._shares.of(ready, number)))
            for number, member in enumerate(self._members)
            if member.gradient_from == "graph"
        ]

    def straightened(self, x: Tensor) -> tuple[Segmenter, Plan]:
        """The same with slopes that say where to go, for the members whose graphs are differentiated."""
        members = list(self._members)
        cures: dict[str, tuple[Cure, float]] = {}
        operators: list[str] = []
        for number, member in enumerate(self._members):
            if member.gradient_from == "graph":
                members[number], plan = member.straightened(self._mean._shares.of(x, number))
                cures |= {f"{number}:{node}": cure for node, cure in plan.cures.items()}
                operators += plan.operators
        twin = copy(self)
        twin.exact, twin._members = twin, tuple(members)
        twin._mean = _Mean(members, self._mean._shares, self._mean._ensemble, single=self._mean._single)
        return twin, Plan(cures, tuple(operators))

    def take_chance(self, *, for_good: bool = False) -> None:
        """From now on it is known to answer differently each time. for_good: for every scan; else until `renew`."""
        super().take_chance(for_good=for_good)
        for member in self._members:
            member.take_chance(for_good=for_good)

    def take_file(self, *, for_good: bool = False) -> None:
        """From now on the files of all members are differentiated."""
        for member in self._members:
            member.take_file(for_good=for_good)

    def renew(self) -> None:
        """Be as it was after loading, and all members too."""
        self.original.by_chance = self._chance_for_good
        for member in self._members:
            member.renew()

    def activation_bytes(self, x: Tensor) -> int:
        """Bytes of the member that keeps most: one at a time is in memory."""
        return max(
            member.activation_bytes(self._mean._shares.of(x, number)) for number, member in enumerate(self._members)
        )
