"""What mafl sees in a file: a model, a scan or a mask."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mafl_cli.case.request import model_of
from mafl_cli.config import EnsembleRule
from mafl_cli.errors import InputError, UsageError
from mafl_cli.names import public_name
from mafl_cli.network import kinds
from mafl_cli.network.opening import Opening, read_folds
from mafl_cli.network.source import Model
from mafl_cli.results import folder
from mafl_cli.scans import formats, nifti

if TYPE_CHECKING:
    from mafl_cli.case.readings import Readings

_MODEL_SUFFIXES = (
    *(".ts", ".pt", ".pth", ".torchscript", ".pt2", ".jit"),
    # No model that can be attacked, and more than "no scan" can be said of them.
    *(".ckpt", ".safetensors", ".h5", ".hdf5", ".keras", ".tflite"),
)


_ROWS = 6
"""Readings in a figure."""


def inspect(
    file: str | Path | Sequence[str | Path],
    *,
    ensemble: EnsembleRule | None = None,
    folds: str | Sequence[str] | None = None,
    mirror: bool | None = None,
    trust: bool = False,
    scan: Sequence[str | Path] = (),
    mask: str | Path | None = None,
    figure: str | Path | None = None,
) -> dict[str, Any]:
    """Facts about a model, a scan or a mask, JSON-ready: what `mafl inspect` shows.

        facts = mafl.inspect("model.ts")
        facts["kind"], facts["dims"], facts["classes"]

    ensemble: of several models, how their answers become one: mean or mean-probabilities.
    folds, mirror, trust: of a model, see `network.opening.Opening`.
    scan, mask: a scan that a model is to see, a file for each channel, and what it should draw on it, if anybody knows:
    adds `readings`, what it draws with other axes, scalings and channels, see `mafl_cli.case.readings`. figure: a
    picture of them is written there, PNG, PDF or SVG.
    Raises: InputError or ModelError if it is none of them; UsageError for a mask or a figure without a scan.
    """
    opening = Opening(folds=None if folds is None else read_folds(folds), mirror=mirror, trust=trust)
    several = file if isinstance(file, (list, tuple)) else (file,)
    if len(several) > 1 or ensemble is not None:
        if scan or mask is not None or figure is not None:
            raise UsageError("`scan` cannot be used for an ensemble: inspect its models one by one.")
        return {"kind": "model", **_inspect_model(model_of(several, ensemble), opening)}
    file = Path(several[0])
    if scan or mask is not None or figure is not None:
        if figure is not None:
            from mafl_cli.show.figure import check_format

            check_format(Path(figure))
        found = tried_readings(file, [Path(each) for each in scan], mask, trust=trust)
        if figure is not None:
            _draw_readings(found, public_name(file), Path(figure))
        return {"kind": "model", **_inspect_model(file, opening), "readings": found.facts()}
    if kinds.is_known(file):
        return {"kind": "model", **_inspect_model(file, opening)}
    if not file.exists():
        raise InputError(f"{public_name(file)}: does not exist: check the path.")
    zipped = file.is_file() and file.suffix.lower() != ".zip" and zipfile.is_zipfile(file)
    if file.suffix.lower() in _MODEL_SUFFIXES or zipped:
        return {"kind": "model", **_inspect_model(file, opening)}
    if formats.is_dicom(file):
        return {"kind": "image", **formats.describe_dicom(file)}
    return {"kind": "image", **nifti.describe_image(file)}


def tried_readings(model: Path, scan: Sequence[Path], mask: str | Path | None, *, trust: bool = False) -> Readings:
    """What a model draws on a scan that is read in other ways. mask: what it should draw, if anybody knows.

    Raises: UsageError without a scan.
    """
    import torch

    from mafl_cli.case.readings import try_readings
    from mafl_cli.case.request import ModelRequest
    from mafl_cli.case.subject import prepare_subject, read_channels
    from mafl_cli.scans.masks import Masks, read_masks

    if not scan:
        raise UsageError("`scan` is needed for `mask` and `figure`: the scan that the model is to see.")

    def say(sentence: str) -> None:
        """What is assumed is among the facts."""

    if kinds.kind_of(model).in_folds:
        raise UsageError("`scan` cannot be used: the plans of an nnU-Net results folder say how it sees scans.")
    scans = read_channels(scan, say)
    subject = prepare_subject(scans, ModelRequest(model=model, trust=trust), torch.device("cpu"), say)
    masks = Masks(adjustable=False)
    wanted = None if mask is None else read_masks([Path(mask)], scans[0], subject.info.classes, masks).labels
    drawn = subject.to_labels(subject.drawn(subject.clean, subject.preprocessing).labels)
    return try_readings(subject, drawn, wanted, thorough=True)


def _draw_readings(found: Readings, model: str, path: Path) -> None:
    """The reading that was asked for, and the best of the others, one for each score that is shown."""
    from mafl_cli.show.readings import Row, draw_readings

    rows = []
    advised = () if found.better is None else (found.better,)
    others = (tried for tried in found.others if tried not in advised)
    for tried in (found.given, *advised, *others):
        score = f"{tried.measure} {tried.score:.2f}"
        name = "as it is" if tried is found.given else tried.reading.options(found.given.reading)
        rows.append(Row(tried.picture.image, tried.picture.labels, name.replace("`", ""), score))
    draw_readings(rows[:_ROWS], f"{model}: {found.said}", path)


def write_card(
    model: Path, *, overwrite: bool, trust: bool = False, scan: Sequence[Path] = (), mask: Path | None = None
) -> Path:
    """Write what is known about a model, found out by trying included, as the TOML beside it; returns its path.

    scan, mask: see `inspect`; where another reading makes markedly more sense, the TOML has that one.
    Raises ModelError if the model is unusable, UsageError if the file is there already.
    """
    import torch

    from mafl_cli.network.card_file import find_card, to_toml
    from mafl_cli.network.load import load

    kind = kinds.kind_of(model)
    if kind.in_folds:
        raise UsageError(f"{public_name(model)}: says all that mafl must know about it itself: leave out `write`.")
    cards = kind.cards(model)
    if not cards:
        raise UsageError(f"{public_name(model)}: is a function, which gives its own card: return it with the network.")
    path = cards[0]
    if path.exists() and not overwrite:
        raise UsageError(f"{public_name(path)}: is there already: add `overwrite` to replace it.")
    stated = find_card(model, Opening(trust=trust))
    better = tried_readings(model, scan, mask, trust=trust).better if scan or mask else None
    roi = stated.roi
    size = None if roi is None else lambda _: roi
    _, info, found = load(model, device=torch.device("cpu"), size=size, opening=Opening(trust=trust))
    # Orientation and intensity nobody can find out: an assumption must not become a statement.
    card = replace(
        found, orientation=stated.orientation, intensity=stated.intensity, channels=stated.channels or info.channels
    )
    folder.write_text(path, to_toml(card if better is None else better.reading.on(card)))
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


def _inspect_model(file: Model, opening: Opening) -> dict[str, Any]:
    import torch

    from mafl_cli.network.card_file import find_card
    from mafl_cli.network.load import load, taps

    roi = find_card(file, opening).roi
    size = None if roi is None else lambda _: roi
    segmenter, info, _ = load(file, device=torch.device("cpu"), size=size, opening=opening)
    layers = [
        {"tap": name + (" *" if name in {tap.name for tap in info.taps} else ""), "shape": list(shape)}
        for name, shape in taps(segmenter)
    ]
    return {**info.facts(), "input_tried": list(segmenter.tried), "taps": layers}
