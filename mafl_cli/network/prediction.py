"""What a network says about each voxel, and the labels drawn from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Patch:
    """Features at one tap.

    features: (B, F, *coarse). weight: the tap's, among several. see: brings a map on the logits' grid, (B, *spatial),
    onto the part of it that the features were made from, at any resolution.
    """

    features: Tensor
    weight: float = 1.0
    see: Callable[[Tensor], Tensor] = _as_it_is


@dataclass(frozen=True)
class Prediction:
    """What a network says of a batch, on the input's grid.

    logits: before softmax; (B, K, *spatial) with K >= 2 exclusive classes, or (B, 2, R, *spatial) for R regions that
    may overlap, each a problem of two classes. features: of each tap, or of each window and tap.
    draws: of a network that answers by chance, the labels of each draw; logits and features are their mean.
    views: of several functions that are attacked together, what each says; all else is that of the first. number: whose
    prediction it is among them. judged: whether the goal is asked of it.
    """

    logits: Tensor
    features: tuple[Patch, ...]
    draws: tuple[Tensor, ...] = ()
    views: tuple[Prediction, ...] = ()
    number: int = 0
    judged: bool = True

    def detach(self) -> Prediction:
        """The same numbers without their history."""
        return replace(
            self,
            logits=self.logits.detach(),
            features=tuple(replace(patch, features=patch.features.detach()) for patch in self.features),
        )

    @property
    def labels(self) -> Tensor:
        """The class of each voxel, (B, *spatial), or (B, R, *spatial): of several draws, what most of them have."""
        return majority(self.draws) if self.draws else drawn(self.logits)


class Network(Protocol):
    """A network as a function of (B, C, *spatial) in model units. name: what messages call it."""

    @property
    def device(self) -> torch.device: ...

    @property
    def name(self) -> str: ...

    def __call__(self, x: Tensor) -> Prediction: ...


def drawn(logits: Tensor, dim: int = 1, *, compact: bool = False) -> Tensor:
    """The class with the highest logit: (B, K, *spatial) -> (B, *spatial), the first of equals.

    What `argmax` gives, which takes thirty times as long on a CPU along an axis that is not the last.

    compact: in the smallest type that holds the classes, for labels that are kept, and not as an index.
    """
    top, *others = logits.detach().unbind(dim)
    labels = torch.zeros(top.shape, dtype=torch.int16, device=top.device)
    for index, other in enumerate(others, start=1):
        labels = torch.maximum(labels, (other > top).to(torch.int16).mul_(index))
        top = torch.maximum(top, other)
    return labels.to(kept_type(logits.shape[dim])) if compact else labels.long()


def majority(draws: Sequence[Tensor]) -> Tensor:
    """What most of some label maps have at each voxel, the lowest of equals."""
    most = torch.zeros_like(draws[0], dtype=torch.int16)
    votes, found = torch.full_like(most, -1), torch.zeros_like(draws[0])
    for label in range(int(max(labels.max() for labels in draws)) + 1):
        most.zero_()
        for labels in draws:
            most += labels == label
        found = torch.where(most > votes, label, found)
        votes = torch.maximum(votes, most)
    return found.to(draws[0].dtype)


def kept_type(classes: int) -> torch.dtype:
    """The type in which labels in [0, classes) of whole scans are kept."""
    return torch.uint8 if classes <= 256 else torch.int16
