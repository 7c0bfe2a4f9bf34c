"""What an nnU-Net v2 results folder says of its network: `plans.json` and `dataset.json` as a model card.

    Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres/
        plans.json  dataset.json  fold_0/checkpoint_final.pth  fold_1/...

nnU-Net's source is the specification (2.8.1): its readers give the arrays' axes from the last of the file to the first,
`transpose_forward` puts them in the network's order, and everything in the plans counts axes in that order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mafl_cli.errors import InputError, ModelError, UsageError
from mafl_cli.names import as_keys, outside
from mafl_cli.network.card import Interpolation, ModelCard, Resize, check_roi, check_spacing
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.opening import Opening
from mafl_cli.system.documents import read_json

PLANS, DATA_SET, CHECKPOINT = "plans.json", "dataset.json", "checkpoint_final.pth"
_READERS = {
    "SimpleITKIO": "kji",
    "NibabelIO": "kji",
    "SimpleITKIOWithReorient": "SAR",
    "NibabelIOWithReorient": "SAR",
}
"""Axes of the arrays that a reader of nnU-Net gives: the file's own, or those of a scan turned to RAS, last first."""


def is_results_folder(path: Path) -> bool:
    """Whether a path is a folder with plans and a data set, as nnU-Net's training leaves it."""
    return path.is_dir() and (path / PLANS).is_file() and (path / DATA_SET).is_file()


def files_of(folder: Path, opening: Opening) -> tuple[Path, ...]:
    """The files that the network is made from. Raises ModelError for folds that are not there."""
    checkpoints = (folder / f"fold_{fold}" / CHECKPOINT for fold in folds_of(folder, opening))
    return (folder / PLANS, folder / DATA_SET, *checkpoints)


def folds_of(folder: Path, opening: Opening) -> tuple[str, ...]:
    """The folds that were asked for, in their order; all that are there if none were.

    "all" is the network that was trained on all cases, where no other is there; nnU-Net leaves it out elsewhere too.
    Raises: ModelError where there are none, or not those.
    """
    there = sorted(path.name.removeprefix("fold_") for path in folder.glob("fold_*") if (path / CHECKPOINT).is_file())
    numbers = tuple(sorted((fold for fold in there if fold.isdecimal()), key=int))
    name = outside(folder.name)
    if not there:
        raise ModelError(f"{name}: has no fold_*/{CHECKPOINT}: copy the folders of its folds, or end the training.")
    if opening.folds in (None, ("all",)):
        return numbers or tuple(there)
    assert opening.folds is not None
    for fold in opening.folds:
        if fold not in there:
            raise ModelError(
                f"{name}: `folds` must be among {', '.join(there)}, which have a {CHECKPOINT}, got {outside(fold)}."
            )
    return opening.folds


@dataclass(frozen=True)
class Plans:
    """A results folder as it describes itself.

    configuration: its entry in the plans, what it inherits included. heads: channels of the network's output.
    """

    card: ModelCard
    configuration: Mapping[str, Any]
    configuration_name: str
    channels: int
    heads: int

    @property
    def flat(self) -> bool:
        """Whether the network takes slices."""
        return len(self.configuration["patch_size"]) == 2


def read_plans(folder: Path) -> Plans:
    """The card of a results folder, and what its network is built from.

    Raises: ModelError naming what the folder lacks, or asks for that cannot be attacked.
    """
    name = outside(folder.name)
    plans, data_set = (_table(folder / file, name) for file in (PLANS, DATA_SET))
    try:
        return _plans(plans, data_set, folder.name, name)
    except UsageError as exc:
        raise ModelError(f"{name}: in its {PLANS}, {as_keys(str(exc))}") from exc
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
        what = f"lacks {outside(exc.args[0])}" if isinstance(exc, KeyError) and exc.args else "cannot be understood"
        raise ModelError(f"{name}: {PLANS} or {DATA_SET} {what}: copy the folder anew.") from exc


def _table(path: Path, name: str) -> dict[str, Any]:
    try:
        found = read_json(path)
    except InputError as exc:
        raise ModelError(f"{name}: {exc}") from exc
    if not isinstance(found, dict):
        raise ModelError(f"{name}: {path.name} is not an object: copy the folder anew.")
    return found


def _plans(plans: Mapping[str, Any], data_set: Mapping[str, Any], folder: str, name: str) -> Plans:
    chosen = _configuration_name(plans, folder, name)
    configuration = _inherited(plans["configurations"], chosen, ())
    _require_supported(plans, configuration, name)
    channels = _channels(data_set)
    classes, overlapping = _classes(data_set["labels"], name)
    patch = check_roi(configuration["patch_size"])
    image, logits = (_interpolation(configuration, f"resampling_fn_{what}", name) for what in ("data", "probabilities"))
    forward = [int(axis) for axis in plans["transpose_forward"]]
    if sorted(forward) != [0, 1, 2]:
        raise ValueError("transpose_forward")
    axes = _READERS[plans.get("image_reader_writer", "SimpleITKIO")]
    heads = len(classes)
    card = ModelCard(
        name=f"{plans['dataset_name']} {chosen}",
        dims=3,
        channels=channels,
        orientation="".join(axes[axis] for axis in forward),
        intensity=_intensity(plans, configuration, len(channels)),
        spacing=None if image is None or logits is None else check_spacing(configuration["spacing"]),
        resize=None if image is None or logits is None else Resize(image, logits),
        divisor=1,
        # A network of slices goes through the volume slice by slice: windows that are one voxel thick.
        roi=patch if len(patch) == 3 else (1, *patch),
        overlap=0.5,
        windows="nnunet",
        crop=True,
        activation="sigmoid" if overlapping else "softmax",
        # One region alone is one probability of two classes.
        classes=("background", *classes) if overlapping and heads == 1 else classes,
        source=PLANS,
    )
    return Plans(card, configuration, chosen, len(channels), heads)


def _configuration_name(plans: Mapping[str, Any], folder: str, name: str) -> str:
    """Which of the configurations the folder holds: its name says it, as nnU-Net writes it."""
    there = [str(each) for each in plans["configurations"]]
    last = folder.rpartition("__")[2]
    if last in there:
        return last
    if len(there) == 1:
        return there[0]
    raise ModelError(
        f"{name}: must be named Trainer__Plans__Configuration, and end in one of its configurations "
        f"({', '.join(map(outside, there))}): rename the folder as nnU-Net did."
    )


def _inherited(there: Mapping[str, Any], chosen: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """A configuration with what it inherits from others."""
    if chosen in seen:
        raise ValueError("inherits_from goes round in a circle")
    own = dict(there[chosen])
    parent = own.pop("inherits_from", None)
    return own if parent is None else {**_inherited(there, str(parent), (*seen, chosen)), **own}


def _require_supported(plans: Mapping[str, Any], configuration: Mapping[str, Any], name: str) -> None:
    """Raise ModelError for what the attacked function does not do."""
    stage = configuration.get("previous_stage")
    if stage:
        raise ModelError(
            f"{name}: is the second stage of a cascade, whose input holds what {outside(str(stage))} has drawn: "
            "attack a configuration that works alone, such as 3d_fullres or 3d_lowres."
        )
    for key, table, known in (
        ("image_reader_writer", plans, tuple(_READERS)),
        ("label_manager", plans, ("LabelManager",)),
        ("preprocessor_name", configuration, ("DefaultPreprocessor",)),
    ):
        found = table.get(key, known[0])
        if found not in known:
            raise ModelError(
                f"{name}: its {key} must be {' or '.join(known)}, got {outside(str(found))}, which mafl does not "
                "rebuild: export its network instead (docs/export.md)."
            )


def _channels(data_set: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the input channels, in the order of the files' numbers (_0000, _0001, ...)."""
    names = data_set["channel_names"] if "channel_names" in data_set else data_set["modality"]
    return tuple(str(names[number]) for number in sorted(names, key=int))


def _classes(labels: Mapping[str, Any], name: str) -> tuple[tuple[str, ...], bool]:
    """Names of what the network draws, by channel, and whether these are regions that may overlap.

    A label "ignore" marks what was not annotated; networks do not draw it.
    """
    drawn = {key: value for key, value in labels.items() if key != "ignore"}
    if any(isinstance(value, list) and len(value) > 1 for value in drawn.values()):
        regions = [key for key, value in drawn.items() if set(_numbers(value)) != {0}]
        return tuple(map(str, regions)), True
    by_number = {_numbers(value)[0]: str(key) for key, value in drawn.items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise ModelError(f"{name}: its labels must be numbered from 0 without gaps, got {sorted(by_number)}.")
    return tuple(by_number[number] for number in sorted(by_number)), False


def _numbers(value: Any) -> list[int]:
    return [int(each) for each in value] if isinstance(value, (list, tuple)) else [int(value)]


# --- intensities --------------------------------------------------------------------------------------------------


def _intensity(plans: Mapping[str, Any], configuration: Mapping[str, Any], channels: int) -> Intensity:
    """The normalisation of all channels; of each on its own where they differ."""
    key = "foreground_intensity_properties_per_channel"
    known = plans[key] if key in plans else plans.get("foreground_intensity_properties_by_modality", {})
    schemes, masked = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    found = tuple(
        _normalisation(schemes[channel], bool(masked[channel]), known.get(str(channel), {}))
        for channel in range(channels)
    )
    return found[0] if len(set(found)) == 1 else Intensity(kind="each", each=found)


def _normalisation(scheme: str, masked: bool, known: Mapping[str, float]) -> Intensity:
    if scheme == "CTNormalization":
        lower, upper = float(known["percentile_00_5"]), float(known["percentile_99_5"])
        std = max(float(known["std"]), 1e-8)
        return Intensity(kind="ct", lower=lower, upper=upper, mean=float(known["mean"]), std=std)
    if scheme == "ZScoreNormalization":
        return Intensity(kind="zscore", region="filled" if masked else "crop")
    if scheme in ("RescaleTo01Normalization", "RescaleTo01"):
        return Intensity(kind="minmax", region="crop")
    if scheme == "RGBTo01Normalization":
        return Intensity(kind="window", min=0.0, max=255.0)
    if scheme in ("NoNormalization", "NoNorm"):
        return Intensity()
    raise UsageError(f"normalization_schemes: mafl does not rebuild {outside(str(scheme))}: {_EXPORT}.")


# --- resampling ---------------------------------------------------------------------------------------------------

_EXPORT = "export its network instead (docs/export.md)"


def _interpolation(configuration: Mapping[str, Any], key: str, name: str) -> Interpolation | None:
    """How a resampling function of nnU-Net interpolates; None for the one that leaves arrays as they are.

    key: resampling_fn_data or resampling_fn_probabilities.
    """
    function = configuration.get(key, "resample_data_or_seg_to_shape")
    given = dict(configuration.get(f"{key}_kwargs") or {})
    order = 3 if key == "resampling_fn_data" else 1
    if function == "no_resampling_hack":
        return None
    if function == "resample_data_or_seg_to_shape":
        found = Interpolation(
            order=int(given.pop("order", 3)),
            across=int(given.pop("order_z", 0)),
            separate=given.pop("force_separate_z", False),
            threshold=float(given.pop("separate_z_anisotropy_threshold", 3)),
        )
        fits = found.order in ((0, 1, 3) if order == 3 else (0, 1)) and found.across in (0, 1)
    elif function == "resample_torch_fornnunet":
        found = Interpolation(
            order=1,
            across=0,
            separate=given.pop("force_separate_z", None),
            threshold=float(given.pop("separate_z_anisotropy_threshold", 3)),
        )
        fits = given.pop("mode", "linear") == "linear" and given.pop("aniso_axis_mode", "") in ("", "nearest-exact")
    else:
        raise ModelError(f"{name}: {key} {outside(str(function))} is not one that mafl rebuilds: {_EXPORT}.")
    for ignored in ("is_seg", "num_threads", "device", "memefficient_seg_resampling"):
        given.pop(ignored, None)
    if not fits or given or found.separate not in (None, True, False) or not math.isfinite(found.threshold):
        raise ModelError(f"{name}: {key} has settings that mafl does not rebuild: {_EXPORT}.")
    return found
