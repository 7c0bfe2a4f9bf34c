"""What a network with batch normalisation remembers of its training, and how well what it sees now fits that.

Such a layer keeps the mean and the variance of each channel of what reached it in training (Ioffe and Szegedy, ICML
2015). In use nothing changes them, so a scan that is read as the training scans were gives much the same numbers; one
that is scaled in another way, or whose channels are in another order, gives others. Layers that normalise by what they
see themselves (instance, group and layer norm) remember nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_OPERATORS = {
    f"aten::{name}"
    for name in (
        *("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        *("_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm"),
    )
}
"""What a layer of batch norm becomes, on which device and in which file ever."""
_MIXTURES = 400
"""Shares of air that are tried."""
_LEAST, _MOST = 0.1, 1.0
"""Share of a training image that was not air: a body in a wide field of view, and a crop of it."""


@dataclass
class Layer:
    """A norm layer, and what has reached it. Vectors are (C,), float64, on the CPU.

    mean, variance: that it remembers. added: to a variance before it divides. count: values in each channel. total,
    squares: sums of the values and of their squares.
    """

    mean: Tensor
    variance: Tensor
    added: float
    count: int
    total: Tensor
    squares: Tensor


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, notes what reaches the layers that remember something, whatever a network was read from.

    with Watching() as watching:
        network(x)
    watching.layers
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By the place in memory of what they remember, which is held so that no other layer gets that place.
        self._layers: dict[int, tuple[Layer, Tensor]] = {}

    @property
    def layers(self) -> tuple[Layer, ...]:
        """In the order in which they were first reached."""
        return tuple(layer for layer, _ in self._layers.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.name in _OPERATORS:
            names = (each.name for each in func._schema.arguments)
            self._note({**dict(zip(names, args, strict=False)), **(kwargs or {})})
        return func(*args, **(kwargs or {}))

    def _note(self, given: Mapping[str, Any]) -> None:
        """Add what an operator of batch norm is given."""
        x, mean, variance = (given.get(name) for name in ("input", "running_mean", "running_var"))
        if x is None or mean is None or variance is None or given.get("training", False):
            return
        # As a layer is made: it has seen nothing.
        if not mean.any() and bool((variance == 1).all()):
            return
        if mean.data_ptr() not in self._layers:
            nothing = torch.zeros(len(mean), dtype=torch.float64)
            added = float(given.get("eps", given.get("epsilon", 0.0)))
            kept = (mean.cpu().double(), variance.cpu().double())
            self._layers[mean.data_ptr()] = Layer(*kept, added, 0, nothing, nothing.clone()), mean
        layer, _ = self._layers[mean.data_ptr()]
        axes = [axis for axis in range(x.ndim) if axis != 1]
        spread, middle = (each.cpu().double() for each in torch.var_mean(x.float(), axes, correction=0))
        count = x.numel() // x.shape[1]
        layer.count += count
        layer.total += count * middle
        layer.squares += count * (spread + middle**2)


def fit(seen: Sequence[Layer], air: Sequence[Layer], content: float) -> float | None:
    """How well what reached the norm layers fits what they remember: 0 (not at all) to 1; None where none remembers.

    exp(-J), where J is the Jeffreys divergence (the sum of both of Kullback and Leibler's) between two normal
    distributions, one with the remembered mean and variance, one with those of now; the mean over the channels of a
    layer, then over layers. Nobody knows how much air there was around the bodies of the training: its share is the one
    that fits best.

    Args:
        seen: what reached the layers on the scan. air: the same on an image of nothing but air.
        content: share of the scan that is not air, above 0 to 1.
    """
    if not seen:
        return None
    shares = _shares_of_air(content)[:, None]
    mean, squares = (
        (1 - shares) * here + shares * there for here, there in zip(_moments(seen), _moments(air), strict=True)
    )
    added = _each(seen, lambda layer: layer.added)
    kept, remembered = torch.cat([layer.mean for layer in seen]), torch.cat([layer.variance for layer in seen]) + added
    variance = (squares - mean**2).clamp_min(0) + added
    apart = (mean - kept) ** 2
    divergence = ((variance + apart) / remembered + (remembered + apart) / variance) / 2 - 1
    weight = _each(seen, lambda layer: 1 / (len(layer.mean) * len(seen)))
    return math.exp(-float((divergence * weight).sum(dim=1).min()))


def _each(layers: Sequence[Layer], number: Callable[[Layer], float]) -> Tensor:
    """A number of a layer for each of its channels, of all layers."""
    return torch.cat([torch.full_like(layer.mean, number(layer)) for layer in layers])


def _moments(layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """Mean and mean square of what reached each channel of all layers."""
    return (
        torch.cat([layer.total / layer.count for layer in layers]),
        torch.cat([layer.squares / layer.count for layer in layers]),
    )


def _shares_of_air(content: float) -> Tensor:
    """Shares of air in a mixture with the scan; below 0 some of the scan's own is taken out. 0 is among them."""
    least, most = min(1 - _MOST / content, 0.0), max(1 - _LEAST / content, 0.0)
    return torch.cat([torch.linspace(least, most, _MIXTURES), torch.zeros(1)]).double()
