"""A made-up CT with organs, and networks of nnU-Net's size that draw them: all made on the spot, from fixed seeds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

CLASSES = ("background", "liver", "left kidney", "right kidney", "spine")
# Centre and half axes of each organ as shares of the volume's edges, from -1 to 1, and its HU.
ORGANS = (
    ((-0.35, 0.05, 0.15), (0.32, 0.30, 0.35), 110),
    ((0.38, -0.15, -0.10), (0.09, 0.10, 0.22), 190),
    ((-0.38, -0.15, -0.35), (0.09, 0.10, 0.22), 190),
    ((0.0, -0.40, 0.0), (0.09, 0.10, 2.0), 600),
)
WINDOW, LEVEL, SPREAD = (-200.0, 400.0), 30.0, 120.0
CARD = f"""[input]
channels = ["CT"]
intensity = {{ kind = "ct", lower = {WINDOW[0]}, upper = {WINDOW[1]}, mean = {LEVEL}, std = {SPREAD} }}
CARD
[output]
activation = "softmax"
classes = [{", ".join(f'"{name}"' for name in CLASSES)}]
"""


def made_up(shape: Sequence[int], seed: int = 0) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A body of 40 HU with texture and noise in air, and organs in it: the CT, and what its voxels are."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape[:2]), indexing="ij")
    texture = np.kron(rng.standard_normal([n // 8 + 1 for n in shape[:2]]), np.ones((8, 8)))[: shape[0], : shape[1]]
    scan, labels = np.empty(shape, np.int16), np.zeros(shape, np.uint8)
    for k, z in enumerate(np.linspace(-1, 1, shape[2])):
        plane = np.where(
            (x / 0.8) ** 2 + (y / 0.62) ** 2 < 1 - 0.1 * z**2, 40 + 10 * np.roll(texture, 3 * k, 0), -1000.0
        )
        for index, (centre, half, hu) in enumerate(ORGANS, start=1):
            u, v, w = ((place - c) / h for place, c, h in zip((x, y, z), centre, half, strict=True))
            inside = u**2 + v**2 + w**2 < 1
            plane[inside], labels[..., k][inside] = hu, index
        noise = rng.standard_normal(plane.shape, np.float32)
        scan[..., k] = np.clip(np.rint(plane + 20 * noise), -1024, 3071)
    return scan, labels


def saved(path: Path, scan: NDArray[np.int16]) -> Path:
    """As NIfTI that is not compressed: how fast zlib is, is no question here. 0.8 x 0.8 x 1 mm."""
    affine = np.diag([-0.8 * 512 / scan.shape[0], -0.8 * 512 / scan.shape[1], 1.0, 1.0])
    nib.save(nib.Nifti1Image(scan, affine), path)
    return path


class UNet(nn.Module):
    """nnU-Net's plain network: two convolutions a stage, instance norm, leaky ReLU, strides down, transposed up."""

    def __init__(self, dims: int, features: Sequence[int], classes: int = len(CLASSES)) -> None:
        super().__init__()
        conv, up = (nn.Conv2d, nn.Conv3d)[dims - 2], (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2]
        norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2]

        def block(given: int, width: int, stride: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for before, step in ((given, stride), (width, 1)):
                parts += [conv(before, width, 3, step, 1), norm(width, affine=True), nn.LeakyReLU(0.01)]
            return nn.Sequential(*parts)

        pairs = list(itertools.pairwise(features))
        self.down = nn.ModuleList(
            [block(1, features[0], 1), *(block(upper, lower, 2) for upper, lower in pairs)]
        )  # fmt: skip
        self.rise = nn.ModuleList([up(lower, upper, 2, 2) for upper, lower in reversed(pairs)])
        self.up = nn.ModuleList([block(2 * upper, upper, 1) for upper, _ in reversed(pairs)])
        self.head = conv(features[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for skip, rise, block in zip(reversed(skips[:-1]), self.rise, self.up, strict=True):
            x = block(torch.cat([rise(x), skip], dim=1))
        return self.head(x)


@dataclass(frozen=True)
class Trained:
    """A network that draws the organs, as TorchScript with its card, and how it came to be."""

    path: Path
    network: nn.Module
    steps: int
    seconds: float
    accuracy: float

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())


def trained(
    path: Path,
    features: Sequence[int],
    window: Sequence[int],
    scan: NDArray[np.int16],
    labels: NDArray[np.uint8],
    device: torch.device,
    teaching: tuple[int, float],
    card: str,
) -> Trained:
    """A network taught on windows of the scan around its organs.

    teaching: steps, and seconds after which there are no more. card: what else its card says of the input.
    """
    steps, seconds = teaching
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    dims = len(window)
    network = UNet(dims, features).to(device)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    begin, right, done = time.perf_counter(), 0.0, 0
    while done < steps and time.perf_counter() - begin < seconds:
        x, y = _windows(rng, scan, labels, window, 2 if dims == 3 else 8)
        image, wanted = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(image)
        loss = F.cross_entropy(logits.float(), wanted, weight=torch.tensor([0.2, 1, 1, 1, 1], device=device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        right = float((logits.argmax(1) == wanted).float().mean())
        done += 1
    network = network.eval().requires_grad_(False).cpu()
    example = torch.zeros(1, 1, *(2 ** len(features),) * dims)
    torch.jit.trace(network, example, check_trace=False).save(str(path))
    path.with_suffix(".toml").write_text(CARD.replace("CARD", card, 1))
    return Trained(path, network, done, time.perf_counter() - begin, right)


def _windows(
    rng: np.random.Generator, scan: NDArray[np.int16], labels: NDArray[np.uint8], window: Sequence[int], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Windows around voxels of organs, as the network sees them: (count, 1, *window), and their classes."""
    images, classes = [], []
    for index in range(count):
        centre, half, _ = ORGANS[rng.integers(len(ORGANS))]
        edges = (*window, 1)[:3]
        middle = [
            (1 + c + rng.uniform(-1, 1) * min(h, 0.3)) / 2 * n for c, h, n in zip(centre, half, scan.shape, strict=True)
        ]
        start = [int(np.clip(m - e / 2, 0, n - e)) for m, e, n in zip(middle, edges, scan.shape, strict=True)]
        place = tuple(slice(first, first + edge) for first, edge in zip(start, edges, strict=True))
        shape = tuple(window)
        images.append((np.clip(scan[place].astype(np.float32), *WINDOW) - LEVEL) / SPREAD)
        classes.append(labels[place].astype(np.int64).reshape(shape))
        images[index] = images[index].reshape(1, *shape)
    return np.stack(images), np.stack(classes)
