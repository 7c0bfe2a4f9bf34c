"""What the size of a change is counted in: model units, or what an eye sees of it.

The step rule (`search.halpern`) knows lengths and inner products of changes and slopes, and nothing else. A ruler gives
it coordinates in which the length is what is to be small. The way there and back is linear, so slopes follow it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mafl_cli.search import steps


class Ruler(Protocol):
    """Coordinates of changes. All tensors are (b, C, *spatial)."""

    def coordinates(self, change: Tensor) -> Tensor:
        """Those of a change in model units."""

    def change(self, coordinates: Tensor) -> Tensor:
        """The other way round."""

    def slope(self, gradient: Tensor) -> Tensor:
        """The gradient with respect to coordinates, from that with respect to the change."""

    def size(self, coordinates: Tensor, l2: Tensor) -> Tensor:
        """How large a change is, given its coordinates: (b,). l2: its length in model units, likewise."""


class Plain:
    """Model units: the length is L2."""

    def coordinates(self, change: Tensor) -> Tensor:
        """The change itself."""
        return change

    def change(self, coordinates: Tensor) -> Tensor:
        """The coordinates themselves."""
        return coordinates

    def slope(self, gradient: Tensor) -> Tensor:
        """The gradient itself."""
        return gradient

    def size(self, coordinates: Tensor, l2: Tensor) -> Tensor:
        """L2."""
        return l2


class Largest(Plain):
    """Model units: the size is that of the largest voxel, Linf."""

    def size(self, coordinates: Tensor, l2: Tensor) -> Tensor:
        """Linf."""
        return coordinates.abs().flatten(1).amax(dim=1)


class Visible:
    """What an eye sees of a change: root of Σ E |Δ|² / σ², over the frequencies of each slice.

    E is how sensitive the eye is to a frequency (`measure.observer.eye`), at least `FAINTEST`; σ a channel's noise.
    With E² steps go far along frequencies that are hardly seen, the search is slower, and ends at changes that are more
    visible; so do weights by the noise power spectrum, and by what hides voxel by voxel (docs/visibility.md).
    """

    FAINTEST = 0.15

    def __init__(self, sensitivity: Tensor, noise: Tensor, plane: tuple[int, int]) -> None:
        """sensitivity: (H, W // 2 + 1), E at the frequencies of `torch.fft.rfft2` of a slice (H, W). noise: (C,), σ in
        model units, above 0. plane: the two axes of the tensors along which slices are shown, the first one first."""
        self._plane = plane
        # (C, H, W // 2 + 1)
        self._gain = noise.view(-1, 1, 1) / sensitivity.clamp_min(self.FAINTEST).sqrt()

    def coordinates(self, change: Tensor) -> Tensor:
        """Those of a change in model units."""
        return self._filtered(change, 1 / self._gain)

    def change(self, coordinates: Tensor) -> Tensor:
        """The other way round."""
        return self._filtered(coordinates, self._gain)

    def slope(self, gradient: Tensor) -> Tensor:
        """The same filter: it is its own adjoint."""
        return self._filtered(gradient, self._gain)

    def size(self, coordinates: Tensor, l2: Tensor) -> Tensor:
        """The length of the coordinates."""
        return steps.length(coordinates)

    def _filtered(self, x: Tensor, by: Tensor) -> Tensor:
        spectrum, shape = torch.fft.rfft2(x, dim=self._plane), [1] * x.ndim
        for axis, size in zip((1, *self._plane), by.shape, strict=True):
            shape[axis] = size
        sizes = [x.shape[axis] for axis in self._plane]
        filtered: Tensor = torch.fft.irfft2(spectrum.mul_(by.view(shape)), s=sizes, dim=self._plane)
        return filtered
