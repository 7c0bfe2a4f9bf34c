"""The command in the test's own process, and a small case for it: a network that calls what is bright class 1."""

from __future__ import annotations

import numpy as np
import torch
from typer.testing import CliRunner, Result

from mafl_cli.cli.application import app


def mafl(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Threshold(torch.nn.Module):
    """Bright (above 0.5, after a light blur) is class 1."""

    def __init__(self, dims: int, channels: int = 1) -> None:
        super().__init__()
        conv = torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d
        self.blur = conv(channels, 1, 3, padding=1, bias=False)
        self.head = conv(1, 2, 1)
        with torch.no_grad():
            self.blur.weight.fill_(0.4 / 3**dims)
            centre = (slice(None), slice(None)) + (1,) * dims
            self.blur.weight[centre] += 0.6
            self.head.weight[:] = torch.tensor([-4.0, 4.0]).view(2, 1, *(1,) * dims)
            self.head.bias[:] = torch.tensor([2.0, -2.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blur(x))


def scan_array(shape: tuple[int, int, int] = (24, 20, 6)) -> np.ndarray:
    """A bright ball on a dark, textured ground, in [0, 1]."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    ball = np.exp(-3 * (grid**2).sum(axis=0))
    return (0.9 * ball + 0.1 * np.random.default_rng(0).random(shape)).astype(np.float32)


class Blobs(torch.nn.Module):
    """Two channels in; `count` channels out, each a weighing of both channels, smoothed, against a border."""

    def __init__(self, dims: int, weights: list[list[float]], borders: list[float]) -> None:
        super().__init__()
        conv = (torch.nn.Conv2d, torch.nn.Conv3d)[dims - 2]
        self.net = conv(len(weights[0]), len(weights), 3, padding=1)
        with torch.no_grad():
            self.net.weight.fill_(0)
            self.net.weight += 8 * 0.3 / 3**dims * torch.tensor(weights).view(len(weights), -1, *(1,) * dims)
            centre = (slice(None), slice(None)) + (1,) * dims
            self.net.weight[centre] += 8 * 0.7 * torch.tensor(weights)
            self.net.bias[:] = -8 * torch.tensor(borders)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)
