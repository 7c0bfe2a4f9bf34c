"""What a model expects of its input and gives as output: the *card*.

A TorchScript file says nothing about axes, intensities or class names. They come from, in this order: command-line
flags, a TOML file beside the model (`NAME.toml` for `NAME.ts`, else `model.toml`), and last an assumption, which is
spoken out loud and written into the report. No torch here, so that reading a card is instant.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from mafl_cli.config import Activation, Intensity, IntensityKind, SliceAxisChoice
from mafl_cli.errors import ModelError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known about a model. None means: not stated, found out at load or assumed.

    orientation: axcodes ("RAS") the network was trained in, or "native" for the file's own axis order.
    divisor: sizes are zero-padded (after scaling) to multiples of this.
    classes: names by index, background first.
    """

    name: str | None = None
    dims: int | None = None
    channels: tuple[str, ...] | None = None
    orientation: str | None = None
    slice_axis: SliceAxisChoice = "auto"
    intensity: Intensity | None = None
    divisor: int | None = None
    activation: Activation | None = None
    classes: tuple[str, ...] | None = None
    source: str | None = field(default=None, compare=False)
    """File name the card was read from."""

    def merged(self, **flags: Any) -> ModelCard:
        """The card with every flag that was given (is not None) put in its place."""
        return replace(self, **{name: value for name, value in flags.items() if value is not None})

    def with_assumptions(self) -> tuple[ModelCard, tuple[str, ...]]:
        """Fill what is not stated; returns the full card and one sentence per assumption made."""
        said: list[str] = []
        card = self
        if card.orientation is None:
            said.append("orientation: not stated, the file's own axis order is used")
            card = replace(card, orientation="native")
        if card.intensity is None:
            said.append("intensity: not stated, voxel values go into the model as they are")
            card = replace(card, intensity=Intensity())
        return card, tuple(said)


def find_card(model: Path) -> ModelCard:
    """The card beside `model`, or an empty one. Raises ModelError if there is one that cannot be used."""
    for path in (model.with_suffix(".toml"), model.parent / "model.toml"):
        if path.is_file():
            return read_card(path)
    return ModelCard()


def read_card(path: Path) -> ModelCard:
    """Read a model TOML. Raises ModelError naming the file and the key that is wrong."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return replace(_parse(table), source=path.name)
    except OSError as exc:
        raise ModelError(f"{path.name}: cannot be read ({exc.strerror}).") from exc
    except UnicodeDecodeError as exc:
        raise ModelError(f"{path.name}: is not UTF-8 text.") from exc
    except (tomllib.TOMLDecodeError, UsageError) as exc:
        raise ModelError(f"{path.name}: {exc}") from exc


def _parse(table: Mapping[str, Any]) -> ModelCard:
    takes = _section(table, "input")
    gives = _section(table, "output")
    _only(table, ("name", "input", "output"), "the top level")
    _only(takes, ("dims", "channels", "orientation", "slice_axis", "intensity", "divisor"), "[input]")
    _only(gives, ("activation", "classes"), "[output]")
    return ModelCard(
        name=_typed(table, "name", str),
        dims=_choice(takes, "dims", (2, 3)),
        channels=_names(takes, "channels"),
        orientation=_orientation(takes),
        slice_axis=_choice(takes, "slice_axis", get_args(SliceAxisChoice)) or "auto",
        intensity=_intensity(takes),
        divisor=_positive(takes, "divisor"),
        activation=_choice(gives, "activation", get_args(Activation)),
        classes=_names(gives, "classes"),
    )


def _section(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = table.get(name, {})
    if not isinstance(section, dict):
        raise UsageError(f"[{name}] must be a table.")
    return section


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    # A misspelt key that is silently ignored would change the result without a word.
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UsageError(f"unknown key {unknown[0]!r} in {where}; known: {', '.join(known)}.")


def _typed(table: Mapping[str, Any], key: str, kind: type) -> Any:
    value = table.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise UsageError(f"{key} = {value!r} must be a {kind.__name__}.")
    return value


def _choice(table: Mapping[str, Any], key: str, choices: tuple[Any, ...]) -> Any:
    value = table.get(key)
    # The type counts too: 2.0 equals 2 and is no number of dimensions.
    if value is not None and not any(value == choice and type(value) is type(choice) for choice in choices):
        raise UsageError(f"{key} = {value!r} is not one of: {', '.join(map(str, choices))}.")
    return value


def _positive(table: Mapping[str, Any], key: str) -> int | None:
    value: int | None = _typed(table, key, int)
    if value is not None and value < 1:
        raise UsageError(f"{key} = {value} must be at least 1.")
    return value


def _names(table: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    value = table.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{key} must be a list of names.")
    return tuple(value)


def check_orientation(codes: str) -> str:
    """Return `codes` in upper case ("native" as it is). Raises UsageError unless they name three axes."""
    if codes.lower() == "native":
        return "native"
    upper = codes.upper()
    if len(upper) == 3 and all(len(set(upper) & set(pair)) == 1 for pair in ("LR", "PA", "IS")):
        return upper
    raise UsageError(f"orientation {codes!r} is not three axis codes such as RAS or LPS, nor native.")


def _orientation(table: Mapping[str, Any]) -> str | None:
    codes: str | None = _typed(table, "orientation", str)
    return None if codes is None else check_orientation(codes)


_INTENSITY_KEYS = {"none": (), "minmax": (), "zscore": ("region",), "window": ("min", "max", "to")}


def _intensity(table: Mapping[str, Any]) -> Intensity | None:
    value = table.get("intensity")
    if value is None:
        return None
    if isinstance(value, str):
        return Intensity.parse(value)
    if not isinstance(value, dict) or "kind" not in value:
        raise UsageError('intensity must be a table with a kind, for example { kind = "minmax" }.')
    kind = _choice(value, "kind", get_args(IntensityKind))
    _only(value, ("kind", *_INTENSITY_KEYS[kind], "clip"), f"an intensity of kind {kind!r}")
    settings: dict[str, Any] = {"kind": kind, "region": value.get("region", Intensity.region)}
    if kind == "window":
        if not {"min", "max"} <= set(value):
            raise UsageError("an intensity of kind 'window' needs min and max.")
        settings |= {key: _number(value[key], key) for key in ("min", "max")}
        settings["to"] = _pair(value.get("to", list(Intensity.to)), "to")
    clip = value.get("clip", kind == "window")
    if clip is True and kind == "window":
        settings["clip"] = settings["to"]
    elif clip is not False:
        settings["clip"] = _pair(clip, "clip")
    return Intensity(**settings)


def _pair(value: Any, key: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise UsageError(f"intensity {key} must be two numbers.")
    return _number(value[0], key), _number(value[1], key)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"intensity {key} = {value!r} must be a number.")
    return float(value)
