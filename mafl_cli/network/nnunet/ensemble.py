"""Several networks, and mirrored copies of their input, as one function: the mean of their logits, as nnU-Net takes it.

With gradients on, no pass keeps its intermediate values: the backward pass of the mean makes them again, network by
network and mirror by mirror, so that one pass at a time is in memory. That changes no digit of the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Ensemble(nn.Module):
    """(B, C, *spatial) -> (B, K, *spatial), the mean over all networks and mirrorings.

    mirrored: spatial axes along which the input may be mirrored; every combination of them is a pass, and so is none.
    flat: whether the networks take slices: then the first spatial axis has one voxel, which they do not see.
    """

    def __init__(self, networks: Sequence[nn.Module], mirrored: Sequence[int], *, flat: bool) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.flips = [axes for count in range(len(mirrored) + 1) for axes in combinations(mirrored, count)]
        self._flat = flat

    @property
    def passes(self) -> int:
        """How many passes make one answer."""
        return len(self.networks) * len(self.flips)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(2) if self._flat else x
        mean = _mean(_mean(self._pass(network, x, axes) for axes in self.flips) for network in self.networks)
        return mean.unsqueeze(2) if self._flat else mean

    def _pass(self, network: nn.Module, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        if self.passes == 1 or not (torch.is_grad_enabled() and x.requires_grad):
            return _mirrored(network, x, axes)
        found: Tensor = checkpoint(_mirrored, network, x, axes, use_reentrant=False)
        return found


def _mean(answers: Iterator[Tensor]) -> Tensor:
    """In nnU-Net's order, the sum divided last; of one answer, that answer."""
    total, count = next(answers), 1
    for answer in answers:
        total, count = total + answer, count + 1
    return total / count if count > 1 else total


def _mirrored(network: nn.Module, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """What a network says of a mirrored input, mirrored back. axes: spatial ones."""
    if not axes:
        found: Tensor = network(x)
        return found
    dims = [axis + 2 for axis in axes]
    return torch.flip(network(torch.flip(x, dims)), dims)
