"""Model cards as TOML: found beside a model, read, checked and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from mafl_cli.config import Activation, Blend, Resampling, SliceAxisChoice
from mafl_cli.errors import InputError, ModelError, UsageError
from mafl_cli.names import as_keys, outside
from mafl_cli.network.card import (
    ModelCard,
    check_divisor,
    check_orientation,
    check_overlap,
    check_roi,
    check_spacing,
    short,
)
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.kinds import kind_of, openings
from mafl_cli.network.members import joined_card
from mafl_cli.network.opening import PLAIN, Opening
from mafl_cli.network.source import Joined, Model
from mafl_cli.system.documents import read_toml


def find_card(model: Model, opening: Opening = PLAIN, **given: Any) -> ModelCard:
    """The card beside `model`, its gaps filled from what the model says of itself.

    given: what the user says instead, see `ModelCard.merged`; of an ensemble it holds for all members.
    Raises: ModelError if there is a card that cannot be used, or if the members of an ensemble cannot be joined.
    """
    if isinstance(model, Joined):
        both = zip(model.models, openings(model, opening), strict=True)
        return joined_card([(outside(each.name), find_card(each, how, **given)) for each, how in both])
    return _found(model, opening).merged(**given)


def _found(model: Model, opening: Opening) -> ModelCard:
    kind = kind_of(model)
    beside = [path for path in kind.cards(model) if path.is_file()]
    card = read_card(beside[0]) if beside else ModelCard()
    stated = kind.states(model, opening)
    if stated.card is not None:
        return card_of(stated.card, outside(model.name))
    if not stated.values:
        return card
    gaps = {key: value for key, value in stated.values.items() if getattr(card, key) == getattr(ModelCard, key, None)}
    try:
        gaps |= {key: check(gaps[key]) for key, check in _CHECKS.items() if key in gaps}
    except UsageError as exc:
        raise ModelError(
            f"{outside(model.name)}: in {stated.source or 'it'}, {as_keys(str(exc)).rstrip('.')}: state it in a TOML "
            "file beside the model."
        ) from exc
    sources = [source for source in (card.source, stated.source) if source is not None]
    return replace(card, **gaps, source=", then ".join(sources) or None, said=stated.said)


def card_of(card: object, name: str) -> ModelCard:
    """A card as a caller gives it: a `ModelCard`, the tables of a model TOML, or the path of one.

    name: of its model. Raises: ModelError for one that cannot be used, naming the key.
    """
    where = f"the card of {name}"
    if isinstance(card, ModelCard):
        return replace(card, source=card.source or where)
    if isinstance(card, (str, Path)):
        return read_card(Path(card))
    if isinstance(card, Mapping):
        return card_of_tables(card, where)
    raise ModelError(f"{name}: its card must be a ModelCard, a dict or a path, got {outside(type(card).__name__)}.")


def read_card(path: Path) -> ModelCard:
    """Read a model TOML. Raises ModelError naming the file and the key that is wrong."""
    try:
        tables = read_toml(path)
    except InputError as exc:
        raise ModelError(str(exc)) from exc
    return replace(card_of_tables(tables, outside(path.name)), source=path.name)


def card_of_tables(tables: Mapping[str, Any], where: str) -> ModelCard:
    """A card from what a model TOML holds. where: what messages call it. Raises ModelError naming the wrong key."""
    try:
        return replace(_parse(tables), source=where)
    except UsageError as exc:
        raise ModelError(f"{where}: {as_keys(str(exc))}") from exc


_INPUT = (
    "dims", "channels", "orientation", "slice_axis", "intensity", "spacing", "resample", "divisor",
    "roi", "overlap", "blend",
)  # fmt: skip


def to_toml(card: ModelCard) -> str:
    """The card as a TOML file that `read_card` reads back to the same card; what is not known stands as a comment."""

    def line(key: str, value: object, meaning: str, example: str) -> str:
        stated = f"{key} = {_toml(value)}" if value is not None else f"# {key} = {example}"
        return f"{stated:<48}# {meaning}"

    window = card.roi is not None
    intensity = None if card.intensity is None else card.intensity.facts()
    if intensity and intensity["kind"] == "window":
        intensity.setdefault("clip", False)
    lines = [
        "# What mafl must know about this model. What stands behind a # is not known: correct it, and take the # away.",
        line("name", card.name, "for reports", '"my model"'),
        "",
        "[input]",
        line("dims", card.dims, "2: slice by slice; 3: the whole volume", "3"),
        line("channels", card.channels, 'in this order; "CT" means HU', '["CT"]'),
        line("orientation", card.orientation, 'axes of the training data, or "native"', '"RAS"'),
        line("slice_axis", card.slice_axis, "2-D only", '"auto"'),
        line("intensity", intensity, "see docs/model-card.md", '{ kind = "zscore", region = "nonzero" }'),
        line("spacing", card.spacing, "mm along these axes; none is the scan's own", "[1.5, 1.5, 2.0]"),
        line("resample", card.resample, "corner as MONAI, edge as nnU-Net", '"corner"'),
        line("divisor", card.divisor, "sizes are padded to multiples of this", "16"),
        line("roi", card.roi, "sliding windows of this size; none is in one piece", "[96, 96, 96]"),
        line("overlap", card.overlap if window else None, "of the windows", "0.5"),
        line("blend", card.blend if window else None, "gaussian or constant", '"gaussian"'),
        "",
        "[output]",
        line("activation", card.activation, "softmax, or sigmoid for one channel or overlapping regions", '"softmax"'),
        line(
            "classes", card.classes, "by number, background first; regions that may overlap: all of them", '["a", "b"]'
        ),
    ]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A value of a card as TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's strings and numbers are TOML's too.
    return json.dumps(value, ensure_ascii=False)


def _parse(table: Mapping[str, Any]) -> ModelCard:
    takes = _section(table, "input")
    gives = _section(table, "output")
    _only(table, ("name", "input", "output"), "the top level")
    _only(takes, _INPUT, "[input]")
    _only(gives, ("activation", "classes"), "[output]")
    return ModelCard(
        name=_typed(table, "name", str),
        dims=_choice(takes, "dims", (2, 3)),
        channels=_names(takes, "channels"),
        orientation=_orientation(takes),
        slice_axis=_choice(takes, "slice_axis", get_args(SliceAxisChoice)) or "auto",
        intensity=_intensity(takes),
        spacing=_spacing(takes),
        resample=_choice(takes, "resample", get_args(Resampling)) or "corner",
        divisor=_divisor(takes),
        roi=_roi(takes),
        overlap=_overlap(takes),
        blend=_choice(takes, "blend", get_args(Blend)) or "gaussian",
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
        raise UsageError(f"{key} must be {_KINDS[kind]}, got {short(value)}.")
    return value


def _choice(table: Mapping[str, Any], key: str, choices: tuple[Any, ...]) -> Any:
    value = table.get(key)
    # The type counts too: 2.0 equals 2 and is no number of dimensions.
    if value is not None and not any(value == choice and type(value) is type(choice) for choice in choices):
        raise UsageError(f"{key} must be one of {', '.join(map(str, choices))}, got {short(value)}.")
    return value


_KINDS: dict[type, str] = {str: "a text", int: "a whole number"}


def _divisor(table: Mapping[str, Any]) -> int | None:
    value: int | None = _typed(table, "divisor", int)
    return None if value is None else check_divisor(value)


def _numbers(table: Mapping[str, Any], key: str) -> list[float] | None:
    value = table.get(key)
    if value is None:
        return None
    if not isinstance(value, list):
        raise UsageError(f"{key} must be a list of numbers.")
    return [_number(entry, key) for entry in value]


def _spacing(table: Mapping[str, Any]) -> tuple[float, ...] | None:
    if table.get("spacing") == "native":
        return None
    numbers = _numbers(table, "spacing")
    return None if numbers is None else check_spacing(numbers)


def _roi(table: Mapping[str, Any]) -> tuple[int, ...] | None:
    numbers = _numbers(table, "roi")
    return None if numbers is None else check_roi(numbers)


def _overlap(table: Mapping[str, Any]) -> float:
    return check_overlap(_number(table.get("overlap", 0.5), "overlap"))


_MOST_NAMES = 1000


def _names(table: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    value = table.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{key} must be a list of names.")
    if len(value) > _MOST_NAMES:
        raise UsageError(f"{key} must be at most {_MOST_NAMES} names, got {len(value)}.")
    return tuple(value)


def _orientation(table: Mapping[str, Any]) -> str | None:
    codes: str | None = _typed(table, "orientation", str)
    return None if codes is None else check_orientation(codes)


_INTENSITY_KEYS = {
    "none": (), "minmax": (), "zscore": ("region",), "window": ("min", "max", "to"),
    "percentile": ("lower", "upper", "to"), "ct": ("lower", "upper", "mean", "std"),
}  # fmt: skip
_NEEDED = {"window": ("min", "max"), "percentile": ("lower", "upper"), "ct": ("lower", "upper", "mean", "std")}
_REGIONS = ("all", "nonzero")
"""Where a card of somebody's own may have statistics taken; the crop is nnU-Net's."""


def _intensity(table: Mapping[str, Any]) -> Intensity | None:
    value = table.get("intensity")
    if value is None:
        return None
    if isinstance(value, str):
        return Intensity.parse(value)
    if not isinstance(value, dict) or "kind" not in value:
        raise UsageError('intensity must be a table with a kind, for example { kind = "minmax" }.')
    kind = _choice(value, "kind", tuple(_INTENSITY_KEYS))
    _only(value, ("kind", *_INTENSITY_KEYS[kind], "clip"), f"an intensity of kind {kind!r}")
    region = value.get("region", Intensity.region)
    if region not in _REGIONS:
        raise UsageError(f"`intensity` region must be one of {', '.join(_REGIONS)}, got {outside(str(region))!r}.")
    settings: dict[str, Any] = {"kind": kind, "region": region}
    needed = _NEEDED.get(kind, ())
    if not set(needed) <= set(value):
        raise UsageError(f"an intensity of kind {kind!r} needs {' and '.join(needed)}.")
    settings |= {key: _number(value[key], f"intensity {key}") for key in needed}
    if "to" in _INTENSITY_KEYS[kind]:
        settings["to"] = _pair(value.get("to", list(Intensity.to)), "intensity to")
    clip = value.get("clip", kind == "window")
    if clip is True and "to" in _INTENSITY_KEYS[kind]:
        settings["clip"] = settings["to"]
    elif clip is not False:
        settings["clip"] = _pair(clip, "intensity clip")
    return Intensity(**settings)


def _pair(value: Any, key: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise UsageError(f"{key} must be two numbers.")
    return _number(value[0], key), _number(value[1], key)


def _number(value: Any, key: str) -> float:
    # Far more than any scanner gives, and far from where float32 overflows.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_NUMBER:
        raise UsageError(f"{key} must be a number from -1e15 to 1e15, got {short(value)}.")
    return float(value)


_LARGEST_NUMBER = 10**15

_CHECKS: dict[str, Callable[[Any], Any]] = {
    "orientation": check_orientation,
    "spacing": check_spacing,
    "divisor": check_divisor,
    "roi": check_roi,
    "overlap": check_overlap,
}
