"""Models and attacked functions whose answers are known in advance. No test in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mafl_cli.field.field import Field, Losses, Slopes
from mafl_cli.field.whole import Whole
from mafl_cli.network.prediction import Patch, Prediction
from mafl_cli.search.goals import Verdict
from mafl_cli.search.limits import Grid, Limits
from mafl_cli.search.moves import Now


def pooled(x: Tensor) -> tuple[Patch, ...]:
    """Features for models that have no layer of their own: (B, 1, *spatial) -> (B, 2, *half)."""
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    both = torch.cat([x, 1 - x], dim=1)
    return (Patch(pool(both, 2, ceil_mode=True)),)


class Bright:
    """Voxels above `border` (model units) are class 1: each voxel decides for itself, so the optimum is known."""

    def __init__(self, border: float = 0.5, scale: float = 1.0) -> None:
        self.border, self.scale = border, scale

    def __call__(self, x: Tensor) -> Prediction:
        z = self.scale * (x[:, :1] - self.border)
        return Prediction(torch.cat([-z, z], dim=1), pooled(x))

    def distance(self, x: Tensor, target: Tensor) -> Tensor:
        """L2 length per sample of the smallest change that makes the prediction `target`: (B,)."""
        wrong = (x[:, 0] > self.border) != (target == 1)
        return ((x[:, 0] - self.border) * wrong).flatten(1).norm(dim=1)


class Nearest:
    """Class k where the voxel is nearest to the k-th of several grey levels."""

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = torch.tensor(levels)

    def __call__(self, x: Tensor) -> Prediction:
        levels = self.levels.view(1, -1, *(1,) * (x.ndim - 2))
        return Prediction(-((x - levels) ** 2), pooled(x))


class Indifferent:
    """The logits do not depend on the image, although the graph says so: class 0 everywhere."""

    def __call__(self, x: Tensor) -> Prediction:
        return Prediction(torch.cat([0 * x + 1, 0 * x], dim=1), pooled(x))


class Rooted(Bright):
    """Like Bright, with 0 times the root of the image's first row added: where that is 0, its gradient is NaN."""

    def __call__(self, x: Tensor) -> Prediction:
        prediction = super().__call__(x)
        nothing = torch.cat([0 * torch.sqrt(x[:, :, :1]), torch.zeros_like(x[:, :, 1:])], dim=2)
        return Prediction(prediction.logits + nothing, prediction.features)


class Unit:
    """The preprocessing of scans whose model unit is `unit` native units."""

    def __init__(self, unit: float = 1.0) -> None:
        self.unit = unit

    def __call__(self, x: Tensor) -> Tensor:
        return x / self.unit

    def cut(self, box: tuple[slice, ...]) -> Unit:
        return self


class Counted:
    """A field that counts the samples that passed through it, forward and backward."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self.forward = self.backward = 0

    def predict(self, x: Tensor) -> Prediction:
        self.forward += len(x)
        return self._field.predict(x)

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        slopes = self._field.slopes(x, losses)
        self.forward += len(x)
        self.backward += len(x) * len(slopes.gradients)
        return slopes


def rungs(step: float) -> Grid:
    """The grid of one channel of integers."""
    step_, far = torch.full((1, 1, 1, 1), step), torch.full((1, 1, 1, 1), float("inf"))
    return Grid(step_, -far, far)


def box(clean: Tensor, low: float = 0.0, high: float = 1.0, **others: Any) -> Limits:
    """Limits without frozen voxels or grid, `low` to `high` in native units."""
    channels = clean.shape[1]
    settings = {"unit": torch.ones(channels), "frozen": torch.zeros_like(clean, dtype=torch.bool)} | others
    return Limits(low=torch.full((channels,), low), high=torch.full((channels,), high), **settings)


def standing(
    delta: Tensor, gradient: Tensor, *, step: int = 0, budget: int = 40, score: Tensor | None = None,
    loss: Tensor | None = None, ever: Tensor | None = None,
) -> Now:  # fmt: skip
    """Where a search stands, all of its samples. Without a score nothing is drawn."""
    b = len(delta)
    score = torch.zeros(b) if score is None else score
    verdict = Verdict(score, score, score, score == 1)
    return Now(
        torch.arange(b), step, budget, delta.clone(), delta.flatten(1).norm(dim=1), delta,
        torch.ones(b) if loss is None else loss, gradient, verdict, verdict.reached if ever is None else ever,
    )  # fmt: skip


class SmallUNet(nn.Module):
    """Two levels, a skip connection, batch or instance norm, random weights that depend only on `seed`."""

    def __init__(self, dims: int = 2, channels: int = 1, classes: int = 2, norm: str = "batch", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        up = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
        batch = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        instance = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d

        def normed(width: int) -> nn.Module:
            layer = batch(width) if norm == "batch" else instance(width, affine=True)
            if norm == "batch":
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 2)
            return layer

        self.first = nn.Sequential(conv(channels, 4, 3, padding=1), normed(4), nn.ReLU())
        self.deep = nn.Sequential(conv(4, 8, 3, stride=2, padding=1), normed(8), nn.LeakyReLU(0.1))
        self.up = up(8, 4, 2, stride=2)
        self.head = conv(8, classes, 1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.first(x)
        return self.head(torch.cat([shallow, self.up(self.deep(shallow))], dim=1))


class Bare:
    """A module as the attacked network, without a model file: logits, and the pooled image for features."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.requires_grad_(False)

    def __call__(self, x: Tensor) -> Prediction:
        return Prediction(self.module(x), pooled(x))


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scan(batch: int, *spatial: int, seed: int = 0) -> Tensor:
    """Random grey values in [0, 1): (B, 1, *spatial)."""
    return torch.rand((batch, 1, *spatial), generator=rng(seed))


def flipped(clean: Tensor, share: float = 0.3, seed: int = 1, sign: int = 0) -> Tensor:
    """A target for Bright(): its prediction with a random share of the voxels flipped (sign: 1 up, -1 down)."""
    now = clean[:, 0] > 0.5
    flip = torch.rand(now.shape, generator=rng(seed)) < share
    if sign:
        flip &= now != (sign > 0)
    return (now ^ flip).long()


def field(network: Bright | Nearest | Indifferent | Bare, unit: float = 1.0) -> Field:
    return Whole(network, Unit(unit))  # type: ignore[arg-type]


def labels(network: Bright | Nearest | Bare, x: Tensor) -> Tensor:
    return network(x).logits.argmax(dim=1)


def pasted(batch: int = 4, dims: int = 2) -> tuple[Bare, Tensor, Tensor, Tensor]:
    """A small convolutional network, scans, what it draws once part of each scan is another's, and that change."""
    network = Bare(SmallUNet(dims, 1, 3, "batch", seed={2: 6, 3: 7}[dims]))
    clean, other = scan(batch, *(16,) * dims, seed=5), scan(batch, *(16,) * dims, seed=6)
    corner = (slice(None), slice(None), *(slice(2, 9),) * dims)
    source = clean.clone()
    source[corner] = other[corner]
    return network, clean, labels(network, source), source - clean
