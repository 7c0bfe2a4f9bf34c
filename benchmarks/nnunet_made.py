"""Three small nnU-Net v2 trainings on scans that are made here: what `nnunet.py` attacks.

    2d        CT in HU, thick slices, three classes, a plain U-Net on slices
    3d        MR with a background of zeros, spacing 1 x 1 x 4 mm that differs from case to case, so that nnU-Net
              resamples in the plane and across it separately; three classes
    regions   two MR channels with a background of zeros, two regions that overlap, a residual encoder

nnU-Net itself plans, preprocesses and trains (`pip install nnunetv2`); only the number of its steps and of its features
is small, and Adam takes the steps. Two folds of each, a few minutes on two cores.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FOLDS = (0, 1)
_CASES, _RATE = 10, 2e-3


@dataclass(frozen=True)
class Made:
    """A data set and how nnU-Net is to train on it.

    zero: whether what lies outside the body is exactly 0. attacks: targets and steps.
    """

    number: int
    name: str
    configuration: str
    channels: tuple[str, ...]
    labels: dict[str, Any]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    zero: bool
    attacks: tuple[tuple[str, int], ...] = (("erase:2", 100), ("erase:1", 100))
    planner: str = "ExperimentPlanner"
    plans: str = "nnUNetPlans"

    @property
    def data_set(self) -> str:
        return f"Dataset{self.number:03d}_{self.name}"

    def folder(self, cache: Path) -> Path:
        """The results folder, as `--model` takes it."""
        return cache / "results" / self.data_set / f"nnUNetTrainer__{self.plans}__{self.configuration}"

    def scans(self, cache: Path) -> tuple[Path, ...]:
        """The scan that no fold was trained on, a file for each channel."""
        folder = cache / "raw" / self.data_set / "imagesTs"
        return tuple(folder / f"case_{index:04d}.nii.gz" for index in range(len(self.channels)))


_CLASSES = {"background": 0, "organ": 1, "lesion": 2}
MADE = {
    "2d": Made(
        901, "MadeCT", "2d", ("CT",), _CLASSES, (1.2, 1.2, 4.0), (72, 64, 14), zero=False,
        attacks=(("erase:2", 100), ("erase:1", 100), ("erase:1", 200)),
    ),
    "3d": Made(
        902, "MadeMR", "3d_fullres", ("T1",), _CLASSES, (1.0, 1.0, 4.0), (64, 72, 16), zero=True,
        attacks=(("erase:2", 100), ("erase:1", 100), ("erase:1", 300)),
    ),
    "regions": Made(
        903, "MadeRegions", "3d_fullres", ("FLAIR", "T1"),
        {"background": 0, "whole": [1, 2], "core": 2}, (1.4, 1.3, 1.5), (48, 52, 44), zero=True,
        attacks=(("erase:core", 100), ("erase:whole", 100)),
        planner="nnUNetPlannerResEncM", plans="nnUNetResEncUNetMPlans",
    ),
}  # fmt: skip


def prepare(cache: Path) -> None:
    """Tell nnU-Net its folders; before it is imported."""
    for name in ("raw", "preprocessed", "results"):
        (cache / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(cache / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}


def train(made: Made, cache: Path, *, epochs: int, steps: int) -> None:
    """Make the scans, and let nnU-Net plan, preprocess and train; what is there already stays.

    prepare: must have been called before.
    """
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.run.run_training import get_trainer_from_args
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    if all((made.folder(cache) / f"fold_{fold}" / "checkpoint_final.pth").is_file() for fold in FOLDS):
        return
    _make(made, cache / "raw" / made.data_set)
    extract_fingerprints([made.number], num_processes=1)
    plan_experiments([made.number], made.planner, gpu_memory_target_in_gb=1.0, overwrite_plans_name=made.plans)
    plans = cache / "preprocessed" / made.data_set / f"{made.plans}.json"
    _shrink(plans, made.configuration)
    preprocess([made.number], made.plans, (made.configuration,), num_processes=(1,))
    for fold in FOLDS:
        torch.manual_seed(fold)
        np.random.seed(fold)
        trainer = get_trainer_from_args(
            str(made.number), made.configuration, fold, "nnUNetTrainer", made.plans, device=torch.device("cpu")
        )
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, steps, 2
        trainer.initialize()
        # The trainer's own momentum of 0.99 needs some thousand steps to find a lesion; these are hundreds.
        trainer.optimizer = torch.optim.AdamW(trainer.network.parameters(), lr=_RATE, weight_decay=trainer.weight_decay)
        trainer.lr_scheduler = PolyLRScheduler(trainer.optimizer, _RATE, epochs)
        trainer.run_training()


def _shrink(plans: Path, configuration: str) -> None:
    """An eighth of the features, and batches of two."""
    said = json.loads(plans.read_text())
    chosen = said["configurations"][configuration]
    chosen["batch_size"] = 12 if configuration == "2d" else 2
    arguments = chosen["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [max(features // 4, 8) for features in arguments["features_per_stage"]]
    if "n_blocks_per_stage" in arguments:
        arguments["n_blocks_per_stage"] = [min(blocks, 2) for blocks in arguments["n_blocks_per_stage"]]
    plans.write_text(json.dumps(said))


def _make(made: Made, folder: Path) -> None:
    """Write a data set as nnU-Net wants it."""
    rng = np.random.default_rng(made.number)
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(_CASES + 1):
        images, labels, affine = _case(made, rng)
        last = number == _CASES
        case, part = ("case", "Ts") if last else (f"train{number:02d}", "Tr")
        for index, image in enumerate(images):
            _save(image, affine, folder / f"images{part}" / f"{case}_{index:04d}.nii.gz")
        _save(labels, affine, folder / f"labels{part}" / f"{case}.nii.gz")
    said: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(made.channels)},
        "labels": made.labels,
        "numTraining": _CASES,
        "file_ending": ".nii.gz",
    }
    if any(isinstance(value, list) for value in made.labels.values()):
        said["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(said))


def _save(array: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


def _case(made: Made, rng: np.random.Generator) -> tuple[list[NDArray[Any]], NDArray[np.uint8], NDArray[np.float64]]:
    """A body with an organ and a lesion in it: images of each channel, labels, affine."""
    shape = np.array([int(size * rng.uniform(0.9, 1.1)) for size in made.shape])
    spacing = np.array(made.spacing) * rng.uniform(0.85, 1.15, 3)
    at = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1) * spacing
    middle, extent = (shape - 1) * spacing / 2, shape * spacing

    def ball(centre: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (((at - centre) / radius) ** 2).sum(axis=-1) <= 1
        return inside

    body = ball(middle, extent * 0.44)
    organ = ball(middle + extent * rng.uniform(-0.08, 0.08, 3), extent * rng.uniform(0.2, 0.26, 3))
    lesion = ball(middle + extent * rng.uniform(-0.08, 0.08, 3), extent * rng.uniform(0.08, 0.11, 3)) & organ
    labels = np.where(lesion, 2, organ).astype(np.uint8)
    images = []
    for channel in range(len(made.channels)):
        tissue = np.array([40.0, 130.0, 200.0] if not made.zero else [300.0, 500.0, 800.0 - 500 * channel])
        image = tissue[labels]
        noise = rng.normal(size=shape) + ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 4
        image = ndimage.gaussian_filter(image, 0.5) + noise * (12 if not made.zero else 30)
        if made.zero:
            image = np.where(body, np.maximum(image * rng.uniform(0.8, 1.2), 1), 0)
        else:
            image = np.where(body, image, -1000 + 8 * rng.normal(size=shape))
        images.append(np.round(image).astype(np.int16))
    return images, labels, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
