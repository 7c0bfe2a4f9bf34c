"""What the members of an ensemble must have in common: the card of the one function that they are. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mafl_cli.classes import Classes
from mafl_cli.errors import ModelError
from mafl_cli.names import outside
from mafl_cli.network.card import ModelCard
from mafl_cli.network.intensity import Intensity

if TYPE_CHECKING:
    from mafl_cli.network.load import ModelInfo

_VIEW = (
    *("dims", "channels", "orientation", "slice_axis", "spacing", "resample", "resize", "crop"),
    *("roi", "overlap", "blend", "windows", "classes"),
)
"""What members must have in common: all that says which voxels a network sees, and what its answers stand for."""
_MAY_BE_UNSTATED = ("dims", "channels", "slice_axis", "classes")
"""Found out by trying, or mere names, or the scan's: what one card says holds for all."""


def joined_card(named: Sequence[tuple[str, ModelCard]]) -> ModelCard:
    """What the cards of all members say of the one function that they are; intensities may differ.

    named: each member's name in messages, and its card. Raises: ModelError naming two members, and what differs.
    """
    found: dict[str, Any] = {}
    for key in _VIEW:
        said = [(name, getattr(card, key)) for name, card in named]
        if key in _MAY_BE_UNSTATED:
            said = [(name, value) for name, value in said if value not in (None, "auto")] or said[:1]
        if _needless(key, found):
            said = said[:1]
        (first, value), *others = said
        for name, other in others:
            if other != value:
                raise cannot_join(first, name, key, value, other)
        found[key] = value
    scalings = [card.intensity or Intensity() for _, card in named]
    unstated = all(card.intensity is None for _, card in named)
    one = None if unstated else scalings[0]
    sources = [f"{name}: {card.source}" for name, card in named if card.source is not None]
    return ModelCard(
        **found,
        intensity=one if len(set(scalings)) == 1 else Intensity(kind="members", each=tuple(scalings)),
        source=", ".join(sources) or None,
        said=tuple(f"{name}: {sentence}" for name, card in named for sentence in card.said),
    )


def _needless(key: str, found: Mapping[str, Any]) -> bool:
    """Whether a property means nothing beside those that were found in common."""
    return (key in ("overlap", "blend", "windows") and found["roi"] is None) or (
        key == "resample" and found["spacing"] is None
    )


def cannot_join(one: str, other: str, what: str, value: object, another: object) -> ModelError:
    """Why two models are not one function."""
    return ModelError(
        f"{one} and {other} cannot be joined: {what} must be the same, got {_shown(value)} and {_shown(another)}: "
        "correct their TOML files, or evaluate them one by one."
    )


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "nothing stated", True: "yes", False: "no"}[value]
    return outside(" x ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def require_joinable(infos: Sequence[ModelInfo], stated: Sequence[bool]) -> Classes:
    """The classes that all members draw, after they were tried out.

    stated: whether each member's card names its classes. Raises: ModelError naming two members, and what differs.
    """
    first = infos[0]
    for info in infos[1:]:
        for what, one, other in (
            ("the number of spatial axes", first.dims, info.dims),
            ("the number of channels", len(first.channels), len(info.channels)),
            ("overlapping regions", first.classes.overlapping, info.classes.overlapping),
            ("the number of classes", len(first.classes), len(info.classes)),
        ):
            if one != other:
                raise cannot_join(first.name, info.name, what, one, other)
    return next((info.classes for info, named in zip(infos, stated, strict=True) if named), first.classes)
