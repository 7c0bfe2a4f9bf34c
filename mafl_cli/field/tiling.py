"""How windows are laid over a grid: size, overlap and blending."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from mafl_cli.config import Blend, WindowsAs


@dataclass(frozen=True)
class Tiling:
    """How windows cover a volume: as MONAI's sliding_window_inference, or nnU-Net's predictor; both with a sigma of 1/8
    of the window.
    """

    roi: tuple[int, ...]
    overlap: float = 0.5
    blend: Blend = "gaussian"
    windows: WindowsAs = "monai"

    def starts(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """First voxel of each window in a volume at least as large as the window."""
        if self.windows == "nnunet":
            return list(product(*(self._even(edge, size) for edge, size in zip(self.roi, shape, strict=True))))
        from monai.data.utils import dense_patch_slices

        steps = [
            edge if edge == size else max(int(edge * (1 - self.overlap)), 1)
            for edge, size in zip(self.roi, shape, strict=True)
        ]
        places = dense_patch_slices(shape, self.roi, steps)
        return [tuple(int(part.start) for part in place) for place in places]

    def weights(self, device: torch.device) -> Tensor:
        """(*roi), what each voxel of a window counts."""
        if self.windows == "nnunet":
            return self._halves().to(device)
        from monai.data.utils import compute_importance_map

        return torch.as_tensor(compute_importance_map(self.roi, self.blend, sigma_scale=0.125, device=device))

    def near(self, edit: Tensor, seen: Sequence[int]) -> Tensor:
        """Voxels within a quarter of a window of an edit along each axis: bool (B, *spatial), like it.

        seen: the shape of the network's grid, on which windows have their size.
        """
        near = edit
        for axis, (edge, native, inner) in enumerate(zip(self.roi, edit.shape[1:], seen, strict=True), start=1):
            # At least to the next voxel that the network sees.
            # A window of one plane sees no other.
            reach = math.ceil(max(edge / 4, 1) * native / inner) if edge > 1 or native != inner else 0
            line = near.movedim(axis, -1)
            grown = F.max_pool1d(line.flatten(0, -2)[:, None].float(), 2 * reach + 1, stride=1, padding=reach)
            near = grown.view(line.shape).movedim(-1, axis) > 0
        return near

    def _even(self, edge: int, size: int) -> list[int]:
        """Starts along an axis: as few as overlap so much, and as far from one another as that leaves."""
        if edge == 1:
            return list(range(size))  # Slices, which overlap no other.
        count = math.ceil((size - edge) / (edge * (1 - self.overlap))) + 1
        step = (size - edge) / (count - 1) if count > 1 else 0.0
        return [int(np.round(step * number)) for number in range(count)]

    def _halves(self) -> Tensor:
        """The weights of nnU-Net: a filtered point, times 10, in half precision, and nowhere 0."""
        if self.blend == "constant":
            return torch.ones(self.roi)
        point = np.zeros(self.roi)
        point[tuple(edge // 2 for edge in self.roi)] = 1
        spread = ndimage.gaussian_filter(point, [edge / 8 for edge in self.roi], mode="constant")
        found = torch.from_numpy(spread / (spread.max() / 10)).half().float()
        found[found == 0] = found[found > 0].min()
        return found

    def padding(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Zeros before and after each axis that is shorter than the window."""
        missing = [max(edge - size, 0) for edge, size in zip(self.roi, shape, strict=True)]
        return [(amount // 2, amount - amount // 2) for amount in missing]
