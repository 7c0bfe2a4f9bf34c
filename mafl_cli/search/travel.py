"""A change for networks that nobody has: as long as it may be, and as little as possible of any one network.

The shortest change that fools a network leans on what is its own, and other networks do not see it. So the search
starts again and spends a given length on cross-entropy with the target, which asks for more than the border of the
decision. Each step sees the scan at another scale and place, for networks of segmentation tell copies by their scale
(Gu et al., 2021), and follows its slope without the finest of it, which is a network's own (Dong et al., CVPR 2019).
Slopes of several surrogates have length 1 before they are added. The way of the features, which the *intermediate level
attack* follows (Huang et al., ICCV 2019), gave nothing beside this: docs/transfer.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.field.field import Field
from mafl_cli.field.preprocess import per_channel
from mafl_cli.field.through import Change, Through
from mafl_cli.network.prediction import Prediction
from mafl_cli.search import steps
from mafl_cli.search.limits import Limits
from mafl_cli.search.pressure import margins

SCALE, SHIFT = 0.1, 0.05
"""How far scale and place vary: the scale by this factor, the place by this share of half the scan."""
LEAD = 6.0
"""The mean lead that logits of the clean prediction are brought to: cross-entropy of a surer network says less."""
BLUR = 0.7
"""Sigma of the Gaussian that slopes are smoothed by, voxels."""
MOMENTUM, PACE = 0.8, 3.0
"""Share of the direction that is kept; and how many times the length all steps could go."""


@dataclass(frozen=True)
class Travelled:
    """adversarial: (B, C, *spatial), native. forward, backward: passes through single networks, counted per sample."""

    adversarial: Tensor
    forward: int
    backward: int


def travel(
    fields: Sequence[Field], clean: Tensor, target: Tensor, limits: Limits, length: Tensor, *, budget: int, seed: int
) -> Travelled:
    """Spend a length on a change that the surrogates' answers ask for.

    Args:
        fields: the surrogates. clean: (B, C, *spatial), native units.
        target: (B, *spatial), or (B, R, *spatial) for regions that may overlap.
        length: (B,), L2 in model units. budget: steps.
    """
    native = per_channel(limits.unit, clean)
    free, rows = native * ~limits.frozen, torch.arange(len(clean), device=clean.device)
    surrogates = _surrogates(fields, clean, target)
    chance = torch.Generator().manual_seed(seed)
    delta, velocity = torch.zeros_like(clean), torch.zeros_like(clean)
    for step in range(budget):
        x = limits.project(clean, delta, rows)
        direction = torch.zeros_like(clean)
        for surrogate in surrogates:
            found = Through(surrogate.field, *_zoomed(clean, chance)).slopes(x, surrogate.losses)
            direction += steps.unit(found.gradients[0] * free)
        velocity = MOMENTUM * velocity + steps.unit(_smoothed(direction))
        pace = PACE / budget * (1 + math.cos(math.pi * step / budget)) * length
        delta = (x - clean) / native - steps.spread_out(pace, delta) * steps.unit(velocity * ~limits.frozen)
        size = steps.length(delta)
        delta *= steps.spread_out((length / size.clamp_min(1e-30)).clamp_max(1), delta)
    passes = len(clean) * len(fields)
    return Travelled(limits.project(clean, delta, rows), passes * (budget + 1), passes * budget)


@dataclass(frozen=True)
class _Surrogate:
    """A function, what it is to draw, like its labels, and what its logits are divided by, (B,)."""

    field: Field
    target: Tensor
    scale: Tensor

    def losses(self, prediction: Prediction) -> list[Tensor]:
        """Cross-entropy, mean over the voxels: (B,)."""
        logits = prediction.logits / steps.spread_out(self.scale, prediction.logits)
        return [F.cross_entropy(logits, self.target, reduction="none").flatten(1).mean(dim=1)]


def _surrogates(fields: Sequence[Field], clean: Tensor, target: Tensor) -> list[_Surrogate]:
    before = [field.predict(clean) for field in fields]
    edit = before[0].labels != target
    return [
        _Surrogate(
            field,
            # What a surrogate draws otherwise elsewhere is not what the change is to mend.
            torch.where(edit, target, drawn.labels),
            (-margins(drawn.logits, drawn.labels)).flatten(1).mean(dim=1).clamp_min(1e-20) / LEAD,
        )
        for field, drawn in zip(fields, before, strict=True)
    ]


def _smoothed(x: Tensor) -> Tensor:
    """(B, C, *spatial) after a Gaussian along each spatial axis, mirrored at the border."""
    if BLUR == 0:
        return x
    radius = math.ceil(3 * BLUR)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=x.device) / BLUR) ** 2).to(x)
    weights = (weights / weights.sum()).view(1, 1, -1)
    for axis in range(2, x.ndim):
        if x.shape[axis] > radius:
            lines = x.movedim(axis, -1)
            flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="reflect")
            x = F.conv1d(flat, weights).view(lines.shape).movedim(-1, axis)
    return x


def _zoomed(like: Tensor, chance: torch.Generator) -> tuple[Change, Change]:
    """A random scale and shift of (B, C, *spatial), the edge repeated, and the way back."""
    dims = like.ndim - 2
    scale = 1 + SCALE * float(2 * torch.rand((), generator=chance) - 1)
    shift = SHIFT * (2 * torch.rand(dims, generator=chance) - 1)
    turn = torch.eye(dims)
    there = torch.cat([turn / scale, shift.unsqueeze(1)], dim=1)
    back = torch.cat([turn * scale, -scale * shift.unsqueeze(1)], dim=1)

    def warped(x: Tensor, matrix: Tensor) -> Tensor:
        # Regions that may overlap have one axis more, which goes with the channels.
        flat = x.flatten(1, x.ndim - dims - 1)
        grid = F.affine_grid(matrix.to(x).expand(len(x), dims, dims + 1), list(flat.shape), align_corners=False)
        return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(x.shape)

    return lambda x: warped(x, there), lambda logits: warped(logits, back)
