"""Networks whose gradient does not say how they answer, and honest ones that look like them. No test in here.

All are built around one small network. What a wrapper does to the scan is too fine to matter, unless its name says so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Edges(nn.Module):
    """What is brighter than 0.5 after a blur, bent by a hidden layer: (B, 1, H, W) in [0, 1] -> (B, 2, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.border = nn.Parameter(torch.tensor([2.4, -2.4]).view(1, 2, 1, 1))
        generator = torch.Generator().manual_seed(3)
        self.first, self.last = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.Conv2d(6, 2, 3, padding=1, bias=False)
        with torch.no_grad():
            for layer, size in ((self.first, 0.15), (self.last, 0.06)):
                layer.weight.copy_(size * torch.randn(layer.weight.shape, generator=generator))
            self.first.weight += 1 / 9
            self.last.weight[1] += 0.1
            self.last.weight[0] -= 0.1

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(F.gelu(2 * self.first(x)))
        return logits + self.border


class Wrapped(nn.Module):
    """A network behind a front end and before a back end."""

    def __init__(
        self, front: Callable[[Tensor], Tensor] | None = None, back: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.net, self.front, self.back = Edges().eval(), front, back

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x if self.front is None else self.front(x))
        return logits if self.back is None else self.back(logits)


def rounded(x: Tensor, levels: int) -> Tensor:
    return torch.round(x * levels) / levels


def rest(x: Tensor) -> Tensor:
    """What fine rounding takes away: next to nothing, with a slope of 1."""
    return x - rounded(x, 4096)


def _tiles(x: Tensor) -> Tensor:
    rows, columns = torch.arange(x.shape[2]) // 4, torch.arange(x.shape[3]) // 4
    return ((rows[:, None] + columns) % 2).to(x)


def _stairs(x: Tensor, steep: float) -> Tensor:
    whole = torch.floor(16 * x)
    return (whole + torch.sigmoid(steep * (16 * x - whole - 0.5))) / 16


def _hashed(x: Tensor) -> Tensor:
    noise = torch.sin(12.9898e6 * x) * 43758.5453
    return x + 1e-3 * (noise - torch.floor(noise) - 0.5)


def _onehot(logits: Tensor) -> Tensor:
    return (logits >= logits.amax(dim=1, keepdim=True)).to(logits) + 1e-3 * torch.tanh(logits / 10)


def _blurred(x: Tensor, side: int = 3) -> Tensor:
    return F.avg_pool2d(F.pad(x, (side // 2,) * 4, mode="replicate"), side, 1)


def _bilateral(x: Tensor) -> Tensor:
    total, weights = x, torch.ones_like(x)
    for shift in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        other = torch.roll(x, shift, (2, 3))
        weight = torch.exp(-((x - other) ** 2) / 0.02)
        total, weights = total + weight * other, weights + weight
    return total / weights


def _normed(x: Tensor) -> Tensor:
    return 0.5 + 0.25 * F.instance_norm(x)


MASKED: dict[str, Callable[[], nn.Module]] = {
    "8 levels, and a leak": lambda: Wrapped(lambda x: rounded(x, 8) + 0.02 * x),
    "8 levels, and a decoy": lambda: Wrapped(lambda x: rounded(x, 8) + 0.02 * torch.roll(rest(x), (7, 5), (2, 3))),
    "waves finer than a step": lambda: Wrapped(lambda x: x + 5e-4 * torch.sin(4e4 * x)),
    "waves that are steep": lambda: Wrapped(lambda x: x + 5e-4 * torch.sin(4e5 * x)),
    "hash noise": lambda: Wrapped(_hashed),
    "wrong sign": lambda: Wrapped(lambda x: x - 2 * rest(x)),
    "wrong sign in tiles": lambda: Wrapped(lambda x: x - 2 * rest(x) * _tiles(x)),
    "no slope in tiles": lambda: Wrapped(lambda x: x - rest(x) * _tiles(x)),
    "a slope of elsewhere": lambda: Wrapped(lambda x: x - rest(x) + torch.roll(rest(x), (9, 6), (2, 3))),
    "a slope too small": lambda: Wrapped(lambda x: x - 0.99 * rest(x)),
    "a slope too large": lambda: Wrapped(lambda x: x + 20 * rest(x)),
    "steep stairs": lambda: Wrapped(lambda x: _stairs(x, 200.0)),
    "saturated": lambda: Wrapped(back=lambda z: torch.tanh(30 * z)),
    "clamped": lambda: Wrapped(back=lambda z: z.clamp(-0.1, 0.1)),
    "one-hot, and a leak": lambda: Wrapped(back=_onehot),
    "flat where classes meet": lambda: Wrapped(back=lambda z: z**3),
}
"""Each is attacked in vain, or needlessly far."""

HONEST: dict[str, Callable[[], nn.Module]] = {
    "as it is": lambda: Wrapped(),
    "blur": lambda: Wrapped(_blurred),
    "bilateral": lambda: Wrapped(_bilateral),
    "clip": lambda: Wrapped(lambda x: x.clamp(-1, 2)),
    "window": lambda: Wrapped(lambda x: x.clamp(0.05, 0.9)),
    "large logits": lambda: Wrapped(back=lambda z: 1e4 * z),
    "small logits": lambda: Wrapped(back=lambda z: 1e-6 * z),
    "probabilities": lambda: Wrapped(back=lambda z: z.softmax(dim=1)),
    "instance norm": lambda: Wrapped(_normed),
    "half resolution": lambda: Wrapped(lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear")),
    "soft stairs": lambda: Wrapped(lambda x: x - 0.5 * torch.sin(16 * torch.pi * 2 * x) / (16 * torch.pi * 2)),
}


def scan(size: int = 32) -> Tensor:
    """A bright ball on a dark, textured ground: (1, 1, size, size), in [0, 1]."""
    grid = torch.linspace(-1, 1, size)
    ball = torch.exp(-3 * (grid[:, None] ** 2 + grid**2))
    texture = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    return (0.9 * ball + 0.1 * texture)[None, None]
