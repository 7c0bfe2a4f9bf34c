"""What can be done with what is there already: measure a finished run again, draw it, look into a file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from mafl_cli import results, scans, targets, viewers, volume
from mafl_cli.errors import InputError, UsageError
from mafl_cli.geometry import require_same_space
from mafl_cli.names import public_name

_MODEL_SUFFIXES = (".ts", ".pt", ".pth", ".torchscript", ".pt2", ".onnx", ".ckpt", ".jit")


def draw(run: Path, path: Path, *, rows: int, overwrite: bool, window: str | None = None) -> list[int]:
    """Draw the run as one figure (PNG, PDF or SVG by suffix); returns the slices shown.

    window: of the grey values, see `display.parse_window`; None: what the body of the clean scan needs.

    Raises InputError for a run that cannot be read, UsageError if the file is there or has another suffix, or for a
    window that does not fit the scan.
    """
    from mafl_cli import display, figures

    figures.check_format(path)
    if path.exists() and not overwrite:
        raise UsageError(f"{public_name(path)}: is there already; choose another name with -o or add --overwrite.")
    said = results.read_report(run)
    case = said["cases"][0]
    most = _most_changed(case)
    channel = case["inputs"][most]["channel"]
    values = None if window is None else display.parse_window(window, hounsfield=channel == "CT")
    channels = _volumes(run, case["inputs"])
    clean, adversarial = channels[most]
    labels = _label_maps(run, adversarial)
    shown: list[int] = []

    def paint(temporary: Path) -> None:
        shown[:] = figures.panel(
            clean=clean,
            adversarial=adversarial.data,
            prediction_clean=labels[results.PREDICTION_CLEAN],
            prediction_adversarial=labels[results.PREDICTION_ADVERSARIAL],
            target=labels[results.TARGET],
            affine=adversarial.affine,
            slice_axis=case["space"]["slice_axis"]["index"],
            unit="HU" if channel == "CT" else "native units",
            class_names=_label_names(said),
            title=_title(case) + (f" · {channel}" if len(channels) > 1 else ""),
            path=temporary,
            rows=rows,
            window=values,
            trace=case["attack"].get("trace"),
        )

    results.write_through(path, paint)
    return shown


def view(run: Path, viewer: viewers.Viewer, *, overwrite: bool) -> str:
    """Write the file that names and colours the run's labels for a viewer; returns the line that opens the run there.

    That line shows the scan that changed most with the prediction on it. Its paths are absolute: it is for any shell.

    Raises InputError for a run that cannot be read, UsageError if another file has the place of the labels.
    """
    said = results.read_report(run)
    case = said["cases"][0]
    scan = run / results.adversarial([each["format"] for each in case["inputs"]])[_most_changed(case)]
    mask, path = run / results.PREDICTION_ADVERSARIAL, run / viewers.LABEL_FILES[viewer]
    for needed in (scan, mask):
        if not needed.exists():
            raise InputError(f"{public_name(run)}: {needed.name} is missing; the run is not complete.")
    text = viewers.label_file(viewer, _named_labels(run, said))
    if not path.exists() or path.read_bytes() != text.encode():
        # A user may have chosen other colours.
        if path.exists() and not overwrite:
            raise UsageError(f"{path.name}: is there already and says something else; add --overwrite to replace it.")
        results.write_text(path, text)
    return viewers.command(viewer, scan.resolve(), mask.resolve(), path.resolve())


def _named_labels(run: Path, said: Mapping[str, Any]) -> dict[int, str]:
    """Names of the labels above 0: of every class, but of bit codes only those that occur, for they are many."""
    names = dict(enumerate(_label_names(said)))
    if said["model"]["overlapping"]:
        masks = (results.PREDICTION_CLEAN, results.PREDICTION_ADVERSARIAL, results.TARGET)
        used = {int(code) for name in masks for code in np.unique(volume.read_labels(run / name).labels)}
        names = {code: names[code] for code in sorted(used)}
    names.pop(0, None)
    return names


def _most_changed(case: Mapping[str, Any]) -> int:
    """The channel whose change is the longest, in model units."""
    sizes = case["metrics"]["size_per_channel"]
    return max(range(len(sizes)), key=lambda n: float(sizes[n]["l2"]["model"]))


def _label_names(said: Mapping[str, Any]) -> Sequence[str]:
    """What each number in the run's masks stands for: the classes, or what regions its bit code has."""
    names: Sequence[str] = said["model"]["classes"]
    return targets.code_names(names) if said["model"]["overlapping"] else names


def inspect(file: Path) -> dict[str, Any]:
    """Facts about a model, a scan or a mask, JSON-ready. Raises InputError or ModelError if it is none of them."""
    if not file.exists():
        raise InputError(f"{public_name(file)}: no such file.")
    zipped = file.is_file() and file.suffix.lower() != ".zip" and zipfile.is_zipfile(file)
    if file.suffix.lower() in _MODEL_SUFFIXES or zipped:
        return {"kind": "model", **_inspect_model(file)}
    if scans.is_dicom(file):
        return {"kind": "image", **scans.describe_dicom(file)}
    return {"kind": "image", **volume.describe_image(file)}


def write_card(model: Path, *, overwrite: bool) -> Path:
    """Write what is known about a model, found out by trying included, as the TOML beside it; returns its path.

    Raises ModelError if the model is unusable, UsageError if the file is there already.
    """
    import torch

    from mafl_cli.card import find_card, to_toml
    from mafl_cli.model import load

    path = model.with_suffix(".toml")
    if path.exists() and not overwrite:
        raise UsageError(f"{public_name(path)}: is there already; add --overwrite.")
    stated = find_card(model)
    _, info, found = load(model, device=torch.device("cpu"), size=lambda dims: stated.roi or (64,) * dims)
    # Orientation and intensity nobody can find out: an assumption must not become a statement.
    card = replace(
        found, orientation=stated.orientation, intensity=stated.intensity, channels=stated.channels or info.channels
    )
    results.write_text(path, to_toml(card))
    return path


def format_facts(facts: Mapping[str, Any], indent: str = "") -> str:
    """Facts as aligned `key  value` lines; tables inside are indented."""
    width = max(len(str(key)) for key in facts)
    lines = []
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}", format_facts(value, indent + "  ")]
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], (str, Mapping)):
            lines.append(f"{indent}{key}")
            lines += [f"{indent}  {_plain(entry)}" for entry in value]
        else:
            lines.append(f"{indent}{key:<{width}}  {_plain(value)}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping) and len(value) > 2:
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, Mapping):
        return "  ".join(_plain(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return " x ".join(_plain(entry) for entry in value) if value else "-"
    return str(value)


def _inspect_model(file: Path) -> dict[str, Any]:
    import torch

    from mafl_cli.card import find_card
    from mafl_cli.model import load, taps

    roi = find_card(file).roi
    segmenter, info, _ = load(file, device=torch.device("cpu"), size=lambda dims: roi or (64,) * dims)
    size = tuple(n + -n % info.divisor for n in roi or (64,) * info.dims)
    layers = [
        {"tap": name + (" *" if name in {tap.name for tap in info.taps} else ""), "shape": list(shape)}
        for name, shape in taps(segmenter, (1, len(info.channels), *size))
    ]
    facts = asdict(info) | {"intensity": info.intensity.facts()}
    return {**facts, "input_tried": [1, len(info.channels), *size], "taps": layers}


def _volumes(run: Path, inputs: Sequence[Mapping[str, Any]]) -> list[tuple[np.ndarray[Any, Any], volume.Volume]]:
    """For each channel: clean (I, J, K) float32 native, and the adversarial scan."""
    found = []
    names = results.adversarial([each["format"] for each in inputs])
    for name, change in zip(names, results.perturbation(len(names)), strict=True):
        adversarial = scans.read_scan(run / name, allow_gaps=True)
        perturbation = volume.read_float(run / change)
        require_same_space(name, adversarial.shape, adversarial.affine, change, perturbation.shape, perturbation.affine)
        found.append((adversarial.data - perturbation.data, adversarial))
    return found


def _label_maps(run: Path, like: volume.Volume) -> dict[str, np.ndarray[Any, Any]]:
    """Target and predictions by file name, on the grid of the scan."""
    found = {}
    for name in (results.PREDICTION_CLEAN, results.PREDICTION_ADVERSARIAL, results.TARGET):
        mask = volume.read_labels(run / name)
        require_same_space(like.name, like.shape, like.affine, name, mask.labels.shape, mask.affine)
        found[name] = mask.labels
    return found


def _title(case: Mapping[str, Any]) -> str:
    iou = case["metrics"]["post_write"]["target_iou"]["value"]
    psnr = case["metrics"]["size"]["psnr_db"]["value"]
    parts = [case["case_id"]]
    parts.append("target is empty" if iou is None else f"target IoU {iou:.3f}")
    if psnr is not None:
        parts.append(f"PSNR {psnr:.1f} dB")
    return " · ".join(parts)
