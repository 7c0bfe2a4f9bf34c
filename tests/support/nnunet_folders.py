"""Results folders of nnU-Net as its training leaves them, with random weights: made by hand, without nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ARCHITECTURE: dict[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
"""What nnU-Net writes for a small 3-D U-Net."""
RESAMPLING: dict[str, Any] = {
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}


def configuration(**changes: Any) -> dict[str, Any]:
    """A 3d_fullres entry of plans.json."""
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [8, 16, 16],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [True],
        **RESAMPLING,
        "architecture": ARCHITECTURE,
    } | changes


def write_folder(
    root: Path,
    *,
    name: str = "nnUNetTrainer__nnUNetPlans__3d_fullres",
    configurations: dict[str, Any] | None = None,
    plans: dict[str, Any] | None = None,
    data_set: dict[str, Any] | None = None,
    folds: Sequence[str] = ("0",),
) -> Path:
    """A results folder below `root`; plans, data_set: entries that are another. Its checkpoints hold no weights."""
    folder = root / "Dataset001_Made" / name
    said = {
        "dataset_name": "Dataset001_Made",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": configurations or {"3d_fullres": configuration()},
        "foreground_intensity_properties_per_channel": {
            channel: {"mean": 40.0, "std": 20.0, "percentile_00_5": -60.0, "percentile_99_5": 150.0}
            for channel in ("0", "1")
        },
    }
    known = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "file_ending": ".nii.gz",
    }
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(said | (plans or {})))
    (folder / "dataset.json").write_text(json.dumps(known | (data_set or {})))
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        (folder / f"fold_{fold}" / "checkpoint_final.pth").write_text(fold)
    return folder


def write_checkpoint(
    path: Path, network: nn.Module, *, mirrored: Sequence[int] | None = (0, 1, 2), **changes: Any
) -> None:
    """What nnU-Net's trainer saves, its log with numbers of NumPy included."""
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "ema": [np.float32(0.25)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None if mirrored is None else tuple(mirrored),
    }
    torch.save(checkpoint | changes, path)
