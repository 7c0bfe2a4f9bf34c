"""The way of a change from a grid that several scans share to the batch of one of them, and of slopes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.field.layout import Layout

# Scans whose voxels lie this close to those of the grid, in voxels, are on it.
_SAME = 0.05


@dataclass(frozen=True)
class Carry:
    """Takes a change on the shared grid to the samples of one scan: linear between voxels, 0 outside the grid.

    shape: (I, J, K) of the shared grid. places: (B, *spatial, 3), where the voxels of the scan's batch lie, in voxels
    of the shared grid. numbers: (B, *spatial), int64, for a scan on the shared grid: the voxels themselves; else None.
    inside: bool (B, *spatial), which voxels the grid covers.
    """

    shape: tuple[int, int, int]
    places: Tensor
    numbers: Tensor | None
    inside: Tensor

    @staticmethod
    def of(
        shape: Sequence[int],
        affine: NDArray[np.float64],
        own_shape: Sequence[int],
        own_affine: NDArray[np.float64],
        layout: Layout,
        device: torch.device,
    ) -> Carry:
        """The way for one scan.

        Args:
            shape, affine: of the shared grid. own_shape, own_affine, layout: of the scan, (I, J, K) and voxel to mm.
        """
        i, j, k = shape
        step = np.linalg.inv(affine) @ own_affine
        index = np.indices(tuple(own_shape), dtype=np.float64)
        flat = np.tensordot(step[:3, :3], index, axes=1) + step[:3, 3].reshape(3, 1, 1, 1)
        nearest = np.rint(flat)
        sizes = np.array([i, j, k]).reshape(3, 1, 1, 1)
        inside = np.logical_and.reduce((nearest >= 0) & (nearest < sizes))
        numbers = None
        if bool(inside.all()) and np.abs(flat - nearest).max() <= _SAME:
            order = np.ravel_multi_index(tuple(nearest.astype(np.int64)), (i, j, k))
            numbers = torch.from_numpy(layout.to_batch(order[np.newaxis])[:, 0]).to(device)
        places = torch.from_numpy(layout.to_batch(flat.astype(np.float32))).movedim(1, -1).contiguous()
        covered = torch.from_numpy(layout.to_batch(inside[np.newaxis])[:, 0]).to(device)
        return Carry((i, j, k), places.to(device), numbers, covered)

    @property
    def resampled(self) -> bool:
        """Whether the voxels of the scan lie between those of the shared grid."""
        return self.numbers is None

    @property
    def overlap(self) -> float:
        """Share of the scan's voxels that the shared grid covers, 0 to 1."""
        return float(self.inside.float().mean())

    def __call__(self, delta: Tensor, rows: Tensor) -> Tensor:
        """The change of some samples. delta: (C, I, J, K).  rows: (b,).  Returns: (b, C, *spatial)."""
        if self.numbers is not None:
            return delta.flatten(1)[:, self.numbers[rows]].movedim(0, 1)
        places, covered = self.places[rows], self.inside[rows]
        sliced = places.ndim == 4
        sizes = torch.tensor(self.shape, device=places.device)
        # -1 and 1 are the centres of the outermost voxels; an axis of one voxel has only one place.
        shares = torch.where(sizes > 1, 2 * places / (sizes - 1).clamp_min(1) - 1, torch.zeros_like(places)).flip(-1)
        moved = [
            F.grid_sample(delta[None], each[None], padding_mode="border", align_corners=True)[0]
            for each in ([shares] if sliced else shares)
        ]
        whole = moved[0].movedim(0, 1) if sliced else torch.stack(moved)
        return whole * covered.unsqueeze(1)

    def back(self, slopes: Tensor, rows: Tensor) -> Tensor:
        """The slope of a sum over the batch as one of the shared change, (C, I, J, K). slopes: (b, C, *spatial)."""
        probe = torch.zeros(slopes.shape[1], *self.shape, device=slopes.device, requires_grad=True)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self(probe, rows), probe, slopes)
        return found
