"""Small networks for two tasks, and scans that none of them saw: what the measurements of transfer attack.

    python benchmarks/travel_made.py --data DIR --cache DIR

    mr    tumour on FLAIR, three patients with their true labels; 2 mm, each slice with its own z-score
    ct    liver, spleen, kidneys, colon and bones on CT, one patient with its labels; 3 mm, one window

Slices come in tens: on MR three teach the networks of fold A, two nobody, three those of fold B, two nobody; on CT, of
which there is less, four, one, four and one. So surrogates and victims of another fold share no slice, but patients;
and slices that nobody saw lie 1 or 2 slices away from some that a network did. This measures transfer between networks,
not whether a network is fit for another patient.

Each network goes as TorchScript with its card into `CACHE/TASK/NAME/`; `networks.json` says what it is and how well it
draws the slices that nobody saw. `CACHE/TASK/scans` holds these slices with their labels, `problems.json` lists scans
with masks that no network would draw: one structure moved, enlarged, removed or with a hole in what two of three say,
the true labels and the networks `unet-a` and `unet-b`. From the true labels alone, much of what a target changes would
be the errors of the network. The roles:

    surrogate       what an attack may ask
    fold            a victim: architecture of a surrogate, other slices, other seed
    architecture    a victim of an architecture that no surrogate has, same slices
    both            a victim of an architecture that no surrogate has, other slices

What is there already stays. `travel_made.json` beside this file holds the hashes of the files that the figures in
`docs/transfer.md` come from; training elsewhere gives other bytes, for PyTorch does not round alike on all processors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import AttentionUnet, SwinUNETR, UNet
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

HASHES = Path(__file__).with_suffix(".json")
_BATCHES = {"meshnet": 4, "attention": 4, "swin": 4}
"""Slices in a step, where 8 would take more than some minutes. So few do not show all classes: what is absent must not
count in the loss, or classes that are rare would never be drawn."""
_LIT = 300.0
"""Files of scans that come as z-scores hold 300 + 100 z inside the brain, 0 outside: a scanner's are positive."""


@dataclass(frozen=True)
class Slices:
    """Slices of one patient. images: (N, H, W), native units; labels: (N, H, W); affines: one for each slice."""

    patient: str
    numbers: list[int]
    images: NDArray[np.float32]
    labels: NDArray[np.uint8]
    affines: list[NDArray[np.float64]]
    folds: str
    """Who is taught by each ten slices; h: nobody."""

    def fold(self, fold: str) -> list[int]:
        """The indices of the slices that this fold is taught, or nobody (`h`)."""
        return [index for index, number in enumerate(self.numbers) if self.folds[number % len(self.folds)] == fold]


@dataclass(frozen=True)
class Task:
    """What is to be learned. scaled: (N, H, W) native units -> the same in model units, as the card says it."""

    name: str
    classes: tuple[str, ...]
    channel: str
    intensity: str
    read: Callable[[Path], list[Slices]]
    scaled: Callable[[Tensor], Tensor]
    large: tuple[int, ...]
    """The classes of which at least 0.8 Dice is asked."""
    steps: int


@dataclass(frozen=True)
class Network:
    """One training."""

    name: str
    architecture: str
    fold: str
    seed: int
    role: str


NETWORKS = (
    Network("unet-a", "unet", "A", 1, "surrogate"),
    Network("unet-b", "unet", "B", 2, "fold"),
    Network("attention-a", "attention", "A", 3, "architecture"),
    Network("resunet-a", "resunet", "A", 4, "surrogate"),
    Network("meshnet-a", "meshnet", "A", 5, "surrogate"),
    Network("attention-b", "attention", "B", 6, "both"),
    Network("unet-a2", "unet", "A", 7, "surrogate"),
    Network("swin-b", "swin", "B", 8, "both"),
)
_DIVISOR = {"swin": 32, "meshnet": 1}
_RATES = {"swin": 1.5e-3}
"""Learning rates other than 4e-3."""


def _meshnet(classes: int) -> nn.Module:
    """Dilated convolutions without a coarser level (Fedorov et al., IJCNN 2017, arXiv:1612.00940), in 2-D."""
    layers: list[nn.Module] = []
    wide = 1
    for dilation in (1, 1, 2, 4, 8, 4, 2, 1):
        layers += [nn.Conv2d(wide, 16, 3, padding=dilation, dilation=dilation), nn.BatchNorm2d(16), nn.ReLU()]
        wide = 16
    return nn.Sequential(*layers, nn.Conv2d(wide, classes, 1))


def build(architecture: str, classes: int) -> nn.Module:
    """An untrained network: (N, 1, H, W) -> (N, classes, H, W) logits."""
    plain: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": classes}
    levels: dict[str, Any] = {"channels": (16, 32, 64, 96), "strides": (2, 2, 2)}
    found: nn.Module
    if architecture == "unet":
        found = UNet(**plain, **levels, num_res_units=0, norm="INSTANCE")
    elif architecture == "resunet":
        found = UNet(**plain, **levels, num_res_units=2, norm="BATCH")
    elif architecture == "attention":
        found = AttentionUnet(**plain, **levels)
    elif architecture == "swin":
        found = SwinUNETR(**plain, feature_size=12, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4), window_size=4)
    else:
        found = _meshnet(classes)
    return found


def _mean(volume: NDArray[Any]) -> NDArray[np.float64]:
    """(2i, 2j, 2k) -> (i, j, k): the means of blocks of 2 x 2 x 2 voxels."""
    i, j, k = (size // 2 for size in volume.shape)
    blocks = volume[: 2 * i, : 2 * j, : 2 * k].astype(np.float64).reshape(i, 2, j, 2, k, 2)
    return np.asarray(blocks.mean((1, 3, 5)))


def _planes(affine: NDArray[np.float64], first: tuple[int, int], numbers: list[int]) -> list[NDArray[np.float64]]:
    """The affines of axial slices of a grid, cut out from the voxel `first` on."""
    planes = []
    for number in numbers:
        plane = affine.copy()
        plane[:, 3] = affine @ np.array([*first, number, 1.0])
        planes.append(plane)
    return planes


def _tumours(data: Path) -> list[Slices]:
    patients = (("flair2d_pat0001", "image"), ("brats2d_pat0002", "image_flair"), ("brats3d_pat0003", "image_flair"))
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    coarse[:3, 3] = 0.5
    """To the voxels of 1 mm from those of 2 mm, whose centres lie between theirs."""
    slices = []
    for folder, image in patients:
        files = {name: nib.load(data / "cases" / folder / f"{name}.nii.gz") for name in (image, "brainmask", "gt")}
        values, brain, truth = (np.asarray(file.dataobj) for file in files.values())
        inside = _mean(brain) > 0.5
        native = np.where(inside, np.maximum(_LIT + 100 * _mean(values * (brain > 0)), 1.0), 0.0)
        wanted = (_mean(truth > 0) >= 0.5) & inside
        cut = (slice(20, 100), slice(18, 114))
        native, wanted, inside = native[cut], wanted[cut], inside[cut]
        numbers = [k for k in range(native.shape[2]) if inside[..., k].sum() > 500]
        affine = files[image].affine @ coarse
        images, labels = (np.moveaxis(part[..., numbers], -1, 0) for part in (native, wanted))
        affines = _planes(affine, (20, 18), numbers)
        patient = folder.rsplit("_", 1)[1]
        slices.append(
            Slices(patient, numbers, images.astype(np.float32), labels.astype(np.uint8), affines, "AAAhhBBBhh")
        )
    return slices


def _organs(data: Path) -> list[Slices]:
    scan, truth = (nib.load(data / "ct" / f"{name}.nii.gz") for name in ("ct", "labels"))
    numbers = list(range(scan.shape[2]))
    images, labels = (np.moveaxis(np.asarray(file.dataobj), -1, 0) for file in (scan, truth))
    affines = _planes(scan.affine, (0, 0), numbers)
    return [Slices("ct", numbers, images.astype(np.float32), labels.astype(np.uint8), affines, "AAAAhBBBBh")]


def _zscore(images: Tensor) -> Tensor:
    scaled = torch.zeros_like(images)
    for image, out in zip(images, scaled, strict=True):
        inside = image != 0
        out[inside] = ((image[inside] - image[inside].mean()) / image[inside].std(correction=0)).clip(-5, 8)
    return scaled


def _window(images: Tensor) -> Tensor:
    return ((images + 160) / 400).clip(0, 1)


TASKS = (
    Task(
        "mr", ("background", "tumour"), "FLAIR", '{ kind = "zscore", region = "nonzero", clip = [-5, 8] }',
        _tumours, _zscore, (1,), 300,
    ),
    Task(
        "ct", ("background", "liver", "spleen", "kidneys", "colon", "bones"), "CT",
        '{ kind = "window", min = -160, max = 240, to = [0, 1] }', _organs, _window, (1, 2, 3, 5), 450,
    ),
)  # fmt: skip


def padded(images: Tensor, divisor: int) -> Tensor:
    """Zeros after each axis of (..., H, W), up to a multiple of `divisor`, as a card's `divisor` has it."""
    h, w = (-size % divisor for size in images.shape[-2:])
    return F.pad(images, (0, w, 0, h))


def _moved(images: Tensor, labels: Tensor, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    """(N, 1, H, W) and (N, H, W), each turned by up to 10 degrees, scaled by 10 %, shifted by 6 %, in other greys."""
    count = len(images)
    turn, size, shift, bend, lift = (torch.rand(count, n, generator=dice) * 2 - 1 for n in (1, 1, 2, 1, 1))
    angle, size = turn[:, 0] * 0.17, 1 + 0.1 * size[:, 0]
    rows, columns = images.shape[-2:]
    theta = torch.stack(
        [
            torch.stack([size * angle.cos(), -size * angle.sin() * rows / columns, 0.12 * shift[:, 0]], 1),
            torch.stack([size * angle.sin() * columns / rows, size * angle.cos(), 0.12 * shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    maps = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0].long()
    return moved * (1 + 0.1 * bend[:, :, None, None]) + 0.05 * lift[:, :, None, None] * (moved != 0), maps


def _loss(logits: Tensor, labels: Tensor, *, present: bool, weights: Tensor | None) -> Tensor:
    """Cross-entropy and 1 - Dice over the batch, mean over the classes (as nnU-Net weighs them).

    present: leave out classes that no slice of the batch shows. weights: of the classes in the cross-entropy.
    """
    shares = logits.softmax(1)
    wanted = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).float()
    both = (shares * wanted).sum((0, 2, 3))
    dice = (2 * both + 1) / (shares.sum((0, 2, 3)) + wanted.sum((0, 2, 3)) + 1)
    counted = wanted.sum((0, 2, 3)) > 0 if present else torch.ones_like(dice, dtype=torch.bool)
    counted[0] = not counted[1:].any()
    return F.cross_entropy(logits, labels, weight=weights) + 1 - dice[counted].mean()


def train(network: Network, task: Task, slices: list[Slices]) -> nn.Module:
    """A trained network in evaluation mode."""
    torch.manual_seed(network.seed)
    dice = torch.Generator().manual_seed(network.seed)
    divisor = _DIVISOR.get(network.architecture, 16)
    images, labels = _taught(task, slices, network.fold, divisor)
    module = build(network.architecture, len(task.classes))
    rate = _RATES.get(network.architecture, 4e-3)
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=1e-4)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=task.steps, pct_start=0.15)
    module.train()
    small = network.architecture in _BATCHES
    # Rare organs by the root of how rare they are: else gates and dilated convolutions never draw spleen and kidneys.
    shares = torch.bincount(labels.flatten(), minlength=len(task.classes)) / labels.numel()
    weights = shares.rsqrt() / shares.rsqrt().mean() if small and len(shares) > 2 else None
    for _ in range(task.steps):
        rows = torch.randint(len(images), (_BATCHES.get(network.architecture, 8),), generator=dice)
        batch, maps = _moved(images[rows], labels[rows], dice)
        optimiser.zero_grad()
        _loss(module(batch), maps, present=small, weights=weights).backward()
        optimiser.step()
        pace.step()
    return module.eval()


def _taught(task: Task, slices: list[Slices], fold: str, divisor: int) -> tuple[Tensor, Tensor]:
    """Inputs (N, 1, H, W), model units, and labels (N, H, W) of a fold; slices with foreground twice."""
    images, labels = [], []
    for patient in slices:
        rows = patient.fold(fold)
        rows += [row for row in rows if patient.labels[row].any()]
        images.append(padded(task.scaled(torch.from_numpy(patient.images[rows])), divisor))
        labels.append(padded(torch.from_numpy(patient.labels[rows]).long(), divisor))
    return torch.cat(images)[:, None], torch.cat(labels)


@torch.inference_mode()
def dice(module: Any, task: Task, slices: list[Slices], divisor: int) -> dict[str, float]:
    """Dice of each class over all voxels of the slices that nobody saw."""
    both, sizes = np.zeros(len(task.classes)), np.zeros(len(task.classes))
    images, labels = _held_out(task, slices, divisor)
    for image, wanted in zip(images, labels, strict=True):
        drawn = module(image[None]).argmax(1)[0]
        for index in range(len(task.classes)):
            both[index] += float(((drawn == index) & (wanted == index)).sum())
            sizes[index] += float((drawn == index).sum() + (wanted == index).sum())
    return {name: round(2 * both[i] / sizes[i], 4) for i, name in enumerate(task.classes) if i}


def _held_out(task: Task, slices: list[Slices], divisor: int) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for patient in slices:
        rows = patient.fold("h")
        images.append(padded(task.scaled(torch.from_numpy(patient.images[rows])), divisor))
        labels.append(padded(torch.from_numpy(patient.labels[rows]).long(), divisor))
    return torch.cat(images)[:, None], torch.cat(labels)


def save(module: nn.Module, network: Network, task: Task, folder: Path, shape: tuple[int, ...]) -> Path:
    """`model.ts` and `model.toml` in `folder`. shape: (H, W) of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    divisor = _DIVISOR.get(network.architecture, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; sizes become constants, which the card states
        traced = torch.jit.trace(module, padded(torch.zeros(1, 1, *shape), divisor), check_trace=False)
        torch.jit.save(traced, folder / "model.ts")
    names = ", ".join(f'"{name}"' for name in task.classes)
    card = f"""name = "{task.name} {network.name}"

[input]
dims = 2
channels = ["{task.channel}"]
orientation = "native"
slice_axis = "k"
intensity = {task.intensity}
spacing = "native"
divisor = {divisor}

[output]
activation = "softmax"
classes = [{names}]
"""
    (folder / "model.toml").write_text(card, encoding="utf-8")
    return folder / "model.ts"


def write_scans(slices: list[Slices], folder: Path) -> list[Path]:
    """A NIfTI file for each slice that nobody saw and that shows something, with its labels beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for patient in slices:
        for row in patient.fold("h"):
            if not patient.labels[row].any():
                continue
            name = f"{patient.patient}_k{patient.numbers[row]:03d}"
            files.append(_nifti(folder / f"{name}.nii.gz", patient.images[row], patient.affines[row]))
            _nifti(folder.parent / "labels" / f"{name}.nii.gz", patient.labels[row], patient.affines[row])
    return files


def _nifti(path: Path, plane: NDArray[Any], affine: NDArray[np.float64]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ascontiguousarray(plane[..., None]), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


def _shifted(mask: NDArray[np.bool_], rows: int, columns: int) -> NDArray[np.bool_]:
    return np.asarray(ndimage.shift(mask.astype(np.uint8), (rows, columns), order=0) > 0)


def targets(labels: NDArray[np.uint8], spacing: float, index: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Masks with the class `index` elsewhere, larger, gone, or with a hole; those that change 12 pixels at least."""
    mask = labels == index
    without = np.where(mask, 0, labels).astype(np.uint8)
    far = max(round(12 / spacing), 1)
    moved = _shifted(mask, far, -far)
    grown = ndimage.binary_dilation(mask, iterations=max(round(6 / spacing), 1))
    depth = ndimage.distance_transform_edt(mask) * spacing
    centre = np.unravel_index(int(depth.argmax()), depth.shape)
    away = np.hypot(*(axis - at for axis, at in zip(np.indices(mask.shape), centre, strict=True))) * spacing
    hole = mask & (away <= min(0.8 * float(depth.max()), 18.0))
    drawn = {
        "moved": np.where(moved, index, without),
        "enlarged": np.where(grown & (labels == 0), index, labels),
        "removed": without,
        "hole": np.where(hole, 0, labels),
    }
    for name, target in drawn.items():
        if (target != labels).sum() >= 12:
            yield name, target.astype(np.uint8)


def voted(truth: NDArray[np.uint8], drawn: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """What two of three say at each pixel: the true labels and two networks; the truth where all differ."""
    one, other = drawn
    return np.where(one == other, one, truth)


@torch.inference_mode()
def _drawn(task: Task, slices: Slices, row: int, network: str, cache: Path) -> NDArray[np.uint8]:
    image = torch.from_numpy(slices.images[[row]])
    module: Any = torch.jit.load(cache / task.name / network / "model.ts")
    labels = module(padded(task.scaled(image), 16)[:, None]).argmax(1)[0]
    drawn: NDArray[np.uint8] = labels[: image.shape[1], : image.shape[2]].numpy().astype(np.uint8)
    return drawn


def write_problems(task: Task, slices: list[Slices], cache: Path) -> list[dict[str, Any]]:
    """Two targets for each of some scans: those that show most of a class, spread over patients and classes."""
    kinds = (("moved", "removed"), ("enlarged", "hole"))
    chosen = []
    for patient in slices:
        rows = patient.fold("h")
        for index in task.large:
            sizes = {row: int((patient.labels[row] == index).sum()) for row in rows}
            ranked = sorted(rows, key=lambda row: -sizes[row])
            apart = [ranked[0], *[row for row in ranked if abs(row - ranked[0]) > 2][:1]]
            chosen += [(patient, row, index) for row in apart if sizes[row] > 30]
    problems = []
    for number, (patient, row, index) in enumerate(chosen):
        base = voted(patient.labels[row], [_drawn(task, patient, row, name, cache) for name in ("unet-a", "unet-b")])
        drawn = dict(targets(base, abs(float(patient.affines[row][0, 0])), index))
        scan = f"{patient.patient}_k{patient.numbers[row]:03d}"
        for kind in kinds[number % 2]:
            if kind not in drawn:
                continue
            name = f"{scan}_{task.classes[index]}_{kind}"
            _nifti(cache / task.name / "targets" / f"{name}.nii.gz", drawn[kind], patient.affines[row])
            problems.append(
                {
                    "name": name, "task": task.name, "scan": f"{task.name}/scans/{scan}.nii.gz",
                    "target": f"{task.name}/targets/{name}.nii.gz", "labels": f"{task.name}/labels/{scan}.nii.gz",
                    "class": index, "kind": kind, "pixels": int((drawn[kind] != base).sum()),
                }
            )  # fmt: skip
    return problems


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make(task: Task, network: Network, slices: list[Slices], cache: Path) -> dict[str, Any]:
    """Train, save, and what `networks.json` says of it. A network that is there already is not trained again."""
    folder = cache / task.name / network.name
    said = folder / "network.json"
    if said.is_file():
        return dict(json.loads(said.read_text(encoding="utf-8")))
    began = time.process_time()
    module = train(network, task, slices)
    path = save(module, network, task, folder, slices[0].images.shape[1:])
    divisor = _DIVISOR.get(network.architecture, 16)
    saved: Any = torch.jit.load(path)
    scores = dice(saved, task, slices, divisor)
    entry = {
        "name": network.name, "task": task.name, "file": f"{task.name}/{network.name}/model.ts",
        "architecture": network.architecture, "fold": network.fold, "seed": network.seed, "role": network.role,
        "dice": scores, "good": all(scores[task.classes[index]] >= 0.8 for index in task.large),
        "cpu_seconds": round(time.process_time() - began), "sha256": _sha256(path),
    }  # fmt: skip
    said.write_text(json.dumps(entry, indent=1), encoding="utf-8")
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of development scans")
    parser.add_argument("--cache", type=Path, required=True, help="where networks and scans go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cache: Path = arguments.cache
    read = {task.name: task.read(arguments.data) for task in TASKS}
    scans: dict[str, str] = {}
    for task in TASKS:
        files = write_scans(read[task.name], cache / task.name / "scans")
        scans |= {file.relative_to(cache).as_posix(): _sha256(file) for file in files}
    entries: list[dict[str, Any]] = []
    for network in NETWORKS:
        for task in TASKS:
            entries.append(make(task, network, read[task.name], cache))
            print(json.dumps(entries[-1]), flush=True)
            (cache / "networks.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
        if network.name == "unet-b":
            problems = [problem for task in TASKS for problem in write_problems(task, read[task.name], cache)]
            (cache / "problems.json").write_text(json.dumps(problems, indent=1), encoding="utf-8")
    kept = [{key: entry[key] for key in ("task", "name", "role", "dice", "sha256")} for entry in entries]
    targets_ = {problem["target"]: _sha256(cache / problem["target"]) for problem in problems}
    HASHES.write_text(json.dumps({"networks": kept, "scans": scans, "targets": targets_}, indent=1) + "\n")


if __name__ == "__main__":
    main()
