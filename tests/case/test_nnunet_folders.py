"""What mafl draws with a results folder is what nnU-Net's own predictor draws, whatever the plans say."""

from __future__ import annotations

import contextlib
import io
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import mafl
from nnunet_folders import ARCHITECTURE, configuration, write_checkpoint, write_folder

from mafl_cli.case.request import ModelRequest
from mafl_cli.case.subject import prepare_subject, read_channels
from mafl_cli.network.source import Joined

CPU = torch.device("cpu")
FLAT = deepcopy(ARCHITECTURE)
FLAT["arch_kwargs"] |= {
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "kernel_sizes": [[3, 3], [3, 3]],
    "strides": [[1, 1], [2, 2]],
}
TWO = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "whole": [1, 2], "core": [2, 3], "rim": 3},
    "regions_class_order": [1, 2, 3],
}
SCHEMES = {"normalization_schemes": ["CTNormalization", "RescaleTo01Normalization"], "use_mask_for_norm": [False] * 2}
KINDS: dict[str, dict[str, Any]] = {
    "thick slices": {},
    "slices": {
        "name": "nnUNetTrainer__nnUNetPlans__2d",
        "chosen": configuration(patch_size=[16, 16], spacing=[1.3, 0.8], architecture=FLAT),
        "mirrored": (0, 1),
    },
    "regions": {"chosen": configuration(spacing=[1.1, 1.2, 1.0], **SCHEMES), "data_set": TWO, "mirrored": None},
    "other axes": {
        "plans": {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]},
        "chosen": configuration(use_mask_for_norm=[False]),
        "affine": np.array([[0, 0, 2.2, 0], [-1.0, 0, 0, 0], [0, 1.2, 0, 0], [0, 0, 0, 1.0]]),
    },
    "turned to RAS": {
        "plans": {"image_reader_writer": "NibabelIOWithReorient"},
        "affine": np.array([[0, 0, 2.2, 0], [-1.0, 0, 0, 0], [0, 1.2, 0, 0], [0, 0, 0, 1.0]]),
    },
}


def write_scan(root: Path, channels: int, affine: Any) -> list[Path]:
    """Noise with an air of zeros around it, and a hole."""
    rng = np.random.default_rng(0)
    paths = []
    for channel in range(channels):
        image = np.zeros((25, 22, 12), np.float32)
        image[2:23, 3:20, 1:11] = rng.uniform(20, 300, (21, 17, 10))
        image[10, 10, 5] = 0
        paths.append(root / f"case_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(image, np.diag([-1.0, -1.2, 3.4, 1]) if affine is None else affine), paths[-1])
    return paths


def made(tmp_path: Path, kind: str) -> tuple[Path, list[Path]]:
    """A results folder of two folds, random weights, and a scan for it: a file for each channel."""
    tools = pytest.importorskip("nnunetv2.utilities.get_network_from_plans")
    said = KINDS[kind]
    chosen, data_set = said.get("chosen", configuration()), said.get("data_set", {})
    name = said.get("name", "nnUNetTrainer__nnUNetPlans__3d_fullres")
    last = name.rpartition("__")[2]
    folder = write_folder(
        tmp_path, name=name, configurations={last: chosen}, plans=said.get("plans"), data_set=data_set, folds=("0", "1")
    )
    architecture, channels = chosen["architecture"], len(data_set.get("channel_names", "1"))
    for fold in range(2):
        torch.manual_seed(fold)
        arguments = (architecture[key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import"))
        network = tools.get_network_from_plans(*arguments, channels, 3, deep_supervision=True)
        mirrored = said.get("mirrored", (0, 2))
        configured = {"configuration": last}
        write_checkpoint(folder / f"fold_{fold}/checkpoint_final.pth", network, mirrored=mirrored, init_args=configured)
    return folder, write_scan(tmp_path, channels, said.get("affine"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_nnunet(tmp_path: Path, kind: str) -> None:
    folder, paths = made(tmp_path, kind)
    data_set = KINDS[kind].get("data_set", {})
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    def say(line: str) -> None:
        """What is assumed is not asked here."""

    subject = prepare_subject(read_channels(paths, say), ModelRequest(model=folder), CPU, say)
    mine = subject.predict([scan.data for scan in subject.scans])
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), use_folds=None)
        reader = predictor.plans_manager.image_reader_writer_class()
        image, properties = reader.read_images([str(path) for path in paths])
        drawn = predictor.predict_single_npy_array(image, properties, None, None, False)
        reader.write_seg(drawn, str(tmp_path / "drawn.nii.gz"), properties)
    stored: Any = nib.load(tmp_path / "drawn.nii.gz")
    theirs = np.asarray(stored.dataobj)

    labels = np.zeros(theirs.shape, int)
    for region, label in zip(mine, data_set.get("regions_class_order", [0]), strict=True):
        labels = np.where(region > 0, label, labels) if data_set else region.astype(int)
    # Random networks have ties nearly everywhere, which nnU-Net's half precision decides in its own way.
    assert (labels == theirs).mean() > 0.995
    assert len(np.unique(theirs)) > 1


@pytest.mark.filterwarnings("ignore")
def test_two_folders_are_one_function_with_a_scaling_for_each(tmp_path: Path) -> None:
    tools = pytest.importorskip("nnunetv2.utilities.get_network_from_plans")
    folders = []
    for number, filled in enumerate((False, True)):
        chosen = configuration(use_mask_for_norm=[filled])
        folders.append(write_folder(tmp_path / str(number), configurations={"3d_fullres": chosen}))
        torch.manual_seed(number)
        arguments = (ARCHITECTURE[key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import"))
        network = tools.get_network_from_plans(*arguments, 1, 3, deep_supervision=True)
        trained = {"configuration": "3d_fullres"}
        path = folders[-1] / "fold_0/checkpoint_final.pth"
        write_checkpoint(path, network, mirrored=(2,), init_args=trained)

    def say(line: str) -> None:
        """What is assumed is not asked here."""

    scans = read_channels(write_scan(tmp_path, 1, None), say)
    joined = prepare_subject(scans, ModelRequest(model=Joined(tuple(folders))), CPU, say)
    alone = [prepare_subject(scans, ModelRequest(model=folder), CPU, say) for folder in folders]
    assert joined.preprocessing.moves
    clean = joined.clean
    together, *each = (one.field().slopes(clean, lambda p: [(p.logits**2).sum()]) for one in (joined, *alone))
    mean = torch.stack([one.prediction.logits for one in each]).mean(dim=0)
    assert torch.allclose(together.prediction.logits, mean, atol=1e-4)
    # The slope of the mean's square is that of both, each along the mean.
    along = [one.field().slopes(clean, lambda p: [(p.logits * mean).sum()]).gradients[0] for one in alone]
    both = torch.stack(along).sum(dim=0)
    assert torch.allclose(together.gradients[0], both, atol=1e-5 * float(both.abs().max()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["slices", "regions"])
def test_a_run_can_be_evaluated_and_shown(tmp_path: Path, kind: str) -> None:
    folder, paths = made(tmp_path, kind)
    run = tmp_path / "run"
    options = ("--model", folder, "--folds", 0, "--no-mirror", "--quiet")

    attacked = mafl("attack", paths[0], "--target", "erase:1", "--steps", 2, "--out", run, *options)
    evaluated = mafl("evaluate", run, *options, "--json", "-")
    shown = mafl("visualize", run, "--out", tmp_path / "figure.png", "--quiet")

    assert [(each.exit_code, each.stderr) for each in (attacked, evaluated, shown)] == [(0, "")] * 3
    judged = json.loads(evaluated.stdout)["cases"][0]
    assert (judged["predictions"], judged["differences"]) == ("recomputed", [])
