"""Train the small brain-tissue model that ships with mafl, on two cores in about a quarter of an hour.

    pip install '.[demo]' && python tools/train_demo_model.py

One template is all it sees, so everything about its look is random: which tissue is how bright (made from the tissue
maps in half of the images, in the order of T1), gamma, a bias field, noise, resolution, shape (affine and elastic),
and what surrounds the brain (nothing, or a made-up skull and scalp). `--evaluate IMAGE REFERENCE` measures the model
on a scan it has never seen.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from atlas import CLASSES, DEMO, load
from monai.networks.nets import UNet
from scipy import ndimage
from torch import Tensor

SIZE = 144
BATCH = 12


def network() -> torch.nn.Module:
    """2-D U-Net with instance norm: (N, 1, H, W) -> (N, 3, H, W) logits, H and W multiples of 16, not both 16."""
    return UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=len(CLASSES),
        channels=(12, 24, 48, 96, 128),
        strides=(2, 2, 2, 2),
        num_res_units=1,
        norm="instance",
        act="relu",
    )


class Slices:
    """Random training slices made from the template: images in [0, 1] and labels.

    maps: (4, I, J, K): T1 in [0, 1], grey, white, and the distance in mm from the brain (0 inside).
    """

    def __init__(self, seed: int) -> None:
        atlas = load()
        brain = ndimage.binary_closing(atlas.t1 > 0, iterations=4)
        outside = ndimage.distance_transform_edt(~brain).astype(np.float32)
        self.maps = torch.from_numpy(np.stack([atlas.t1 / 255, atlas.grey, atlas.white, outside]))
        self.random = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.random)

    def chance(self, probability: float) -> Tensor:
        return (self.uniform(0, 1, BATCH) < probability).float().view(-1, 1, 1, 1)

    def smooth(self, cells: int, channels: int = 1) -> Tensor:
        """A smooth random field in [-1, 1] with so many cells along each side: (BATCH, channels, SIZE, SIZE)."""
        coarse = self.uniform(-1, 1, BATCH, channels, cells, cells)
        return F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=True).clamp(-1, 1)

    def cut(self) -> Tensor:
        """(BATCH, 4, SIZE, SIZE): slices in random planes, of 0.9 to 2.4 mm pixels, turned, scaled and warped."""
        parts = []
        warp = self.smooth(5, 2) * self.uniform(0, 9, BATCH, 1, 1, 1) + self.smooth(12, 2) * self.uniform(
            0, 2.5, BATCH, 1, 1, 1
        )
        for n in range(BATCH):
            axis = 2 if self.uniform(0, 1, 1) < 0.7 else int(self.uniform(0, 2, 1))
            depth = self.maps.shape[axis + 1]
            image = self.maps.select(axis + 1, int(self.uniform(0.03, 0.97, 1) * depth))
            height, width = image.shape[1:]
            pixel = float(torch.exp(self.uniform(math.log(0.9), math.log(2.4), 1)))
            angle = float(self.uniform(-0.35, 0.35, 1))
            stretch = self.uniform(0.88, 1.14, 2)
            flip = torch.where(self.uniform(0, 1, 2) < 0.5, -1.0, 1.0)
            turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            along = torch.arange(SIZE) - (SIZE - 1) / 2
            grid = torch.stack(torch.meshgrid(along, along, indexing="ij")) * pixel
            grid = torch.einsum("ab,bhw->ahw", turn, grid * (stretch * flip).view(2, 1, 1)) + warp[n]
            # A view wider than the head needs no shift; a narrow one looks at a part of it.
            room = torch.tensor([height, width]) / 2 - SIZE * pixel * 0.3
            grid = grid + (self.uniform(-1, 1, 2) * room.clamp_min(8)).view(2, 1, 1)
            normal = grid / (torch.tensor([height, width]).view(2, 1, 1) / 2)
            beyond = (normal.abs().amax(dim=0) > 1).float()
            sampled = F.grid_sample(
                image[None], normal.flip(0).permute(1, 2, 0)[None], align_corners=True, padding_mode="border"
            )[0]
            # Outside the template's box there is no tissue; the distance stays that of its edge.
            sampled[:3] *= 1 - beyond
            parts.append(sampled)
        return torch.stack(parts)

    def batch(self) -> tuple[Tensor, Tensor]:
        """(images (BATCH, 1, SIZE, SIZE) in [0, 1], labels (BATCH, SIZE, SIZE))."""
        t1, grey, white, outside = self.cut().split(1, dim=1)
        background = (1 - grey - white).clamp_min(0)
        labels = torch.cat([background, grey, white], dim=1).argmax(dim=1)

        def one(low: float, high: float) -> Tensor:
            return self.uniform(low, high, BATCH, 1, 1, 1)

        inside = (t1 > 0.02).float()
        # Brightness by tissue, in T1 order: fluid, grey, white.
        fluid, bright = one(0.03, 0.35), one(0.55, 1.0)
        middle = fluid + (bright - fluid) * one(0.4, 0.85)
        texture = 1 + one(0, 0.12) * self.smooth(24)
        painted = (background * fluid + grey * middle + white * bright) * texture * inside
        template = t1 ** one(0.6, 1.8) * bright
        image = torch.where(self.chance(0.5) > 0, painted, template)

        # Around it: fluid and bone (dark), scalp and fat (often the brightest), muscle and face, air.
        bone, scalp = one(2, 9), one(3, 12)
        dark = one(0.02, 0.3) * (1 + 0.4 * self.smooth(20))
        skin = one(0.3, 1.4) * (1 + 0.5 * self.smooth(10))
        rest = (self.smooth(7) + one(-0.6, 0.5)).clamp(0, 1) * one(0.2, 0.9) * (1 + 0.4 * self.smooth(30))
        wobble = 1 + 0.5 * self.smooth(8)
        shell = torch.where(outside * wobble < bone, dark, torch.where(outside * wobble < bone + scalp, skin, rest))
        far = (outside > bone + scalp + one(0, 60)).float()
        head = self.chance(0.6)
        image = image * (inside + (1 - inside) * (1 - head)) + (1 - inside) * head * shell.clamp_min(0) * (1 - far)

        image = image * torch.exp(one(0, 0.35) * self.smooth(4))
        image = self.blur(image)
        noise = torch.randn(image.shape, generator=self.random)
        air = torch.where(self.chance(0.5) > 0, torch.ones_like(image), (image > 0.01).float())
        image = (image + one(0, 0.05) * noise).clamp_min(0) * air
        return (image * one(0.55, 1.1)).clamp(0, 1), labels

    def blur(self, image: Tensor) -> Tensor:
        """Lower the resolution of some images: a mean over 2 x 2 pixels, or a light Gaussian."""
        coarse = F.interpolate(F.avg_pool2d(image, 2), size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).view(1, 1, 3, 3) / 16
        soft = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel)
        return torch.where(self.chance(0.2) > 0, coarse, torch.where(self.chance(0.4) > 0, soft, image))


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice over the two tissues."""
    probabilities = logits.softmax(dim=1)
    truth = F.one_hot(labels, len(CLASSES)).permute(0, 3, 1, 2).float()
    overlap = (probabilities * truth).sum(dim=(0, 2, 3))[1:]
    dice = (2 * overlap + 1) / ((probabilities + truth).sum(dim=(0, 2, 3))[1:] + 1)
    # Label smoothing keeps the logits from growing without end: a model that is sure of everything has no gradient.
    return F.cross_entropy(logits, labels, label_smoothing=0.02) + 1 - dice.mean()


def train(minutes: float, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    net, slices = network(), Slices(seed)
    weights = sum(p.numel() for p in net.parameters())
    print(f"{weights} weights", flush=True)
    steps = int(minutes * 60 / STEP_SECONDS)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    started, running = time.time(), 0.0
    for step in range(1, steps + 1):
        images, labels = slices.batch()
        optimiser.zero_grad()
        value = loss(net(images), labels)
        value.backward()
        optimiser.step()
        schedule.step()
        running = value.item() if step == 1 else 0.98 * running + 0.02 * value.item()
        if step % 100 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {running:.4f}  {time.time() - started:.0f} s", flush=True)
    return net.eval()


# A training step took this long on the two cores it was written on; the number of steps follows from the minutes,
# so that a slower machine trains for longer, not less.
STEP_SECONDS = 0.25


def evaluate(image: Path, reference: Path, order: str) -> None:
    """Print the Dice of the shipped model's axial slices with a reference label map, whose classes `order` lists."""
    from mafl_cli.field.layout import Layout
    from mafl_cli.field.preprocess import Preprocessing
    from mafl_cli.field.whole import Whole
    from mafl_cli.network.load import load as load_model
    from mafl_cli.scans.geometry import choose_slice_axis

    scan, labels = nib.load(image), nib.load(reference)
    axis = choose_slice_axis(scan.affine, scan.shape, "axial").index
    layout = Layout.for_volume(scan.affine, orientation="RAS", slice_axis=axis)
    data = scan.get_fdata(dtype=np.float32)[None]
    batch = torch.from_numpy(layout.to_batch(data))
    segmenter, info, card = load_model(
        DEMO / "model.ts", device=torch.device("cpu"), size=lambda dims: tuple(batch.shape[2:])
    )
    field = Whole(segmenter, Preprocessing.freeze(card.intensity, data, torch.device("cpu")), info.divisor)
    predicted = torch.cat([field.predict(part).logits.argmax(dim=1) for part in batch.split(8)])
    found = layout.from_batch(predicted[:, None].numpy())[0]
    truth = np.asarray(labels.dataobj)
    for index, name in enumerate(CLASSES):
        wanted, given = truth == int(order.split(",")[index]), found == index
        dice = 2 * (wanted & given).sum() / (wanted.sum() + given.sum())
        print(f"{name}: Dice {dice:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12, help="length of training, in steps of two slow cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", nargs=2, type=Path, metavar=("IMAGE", "REFERENCE"))
    parser.add_argument("--order", default="0,1,2", help="labels of background, grey and white matter in REFERENCE")
    options = parser.parse_args()
    if options.evaluate:
        evaluate(*options.evaluate, options.order)
        return
    net = train(options.minutes, options.seed)
    scripted = torch.jit.script(net)
    scripted.save(DEMO / "model.ts")
    print(f"{DEMO / 'model.ts'}: {(DEMO / 'model.ts').stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
