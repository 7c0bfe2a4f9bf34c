"""How windows are laid over a grid: size, overlap and blending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mafl_cli.config import Blend


@dataclass(frozen=True)
class Tiling:
    """How windows cover a volume: MONAI's sliding_window_inference, with its sigma of 1/8 of the window."""

    roi: tuple[int, ...]
    overlap: float = 0.5
    blend: Blend = "gaussian"

    def starts(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """First voxel of each window in a volume at least as large as the window."""
        from monai.data.utils import dense_patch_slices

        steps = [
            edge if edge == size else max(int(edge * (1 - self.overlap)), 1)
            for edge, size in zip(self.roi, shape, strict=True)
        ]
        places = dense_patch_slices(shape, self.roi, steps)
        return [tuple(int(part.start) for part in place) for place in places]

    def weights(self, device: torch.device) -> Tensor:
        """(*roi), what each voxel of a window counts."""
        from monai.data.utils import compute_importance_map

        return torch.as_tensor(compute_importance_map(self.roi, self.blend, sigma_scale=0.125, device=device))

    def padding(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Zeros before and after each axis that is shorter than the window."""
        missing = [max(edge - size, 0) for edge, size in zip(self.roi, shape, strict=True)]
        return [(amount // 2, amount - amount // 2) for amount in missing]
