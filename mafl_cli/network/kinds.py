"""What kinds of models there are: each says which are its own, what they state about themselves, and how they are read.

A new kind is an entry in `KINDS`. No torch here, so that a card is read at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mafl_cli.errors import ModelError, UsageError
from mafl_cli.names import is_there, outside, sha256
from mafl_cli.network.bundle import read_bundle
from mafl_cli.network.opening import PLAIN, Opening
from mafl_cli.network.source import Closed, Joined, Model, Own

if TYPE_CHECKING:
    import torch

    from mafl_cli.network.model_file import ModelFile


@dataclass(frozen=True)
class Stated:
    """What a model says of itself.

    values: fields of a `ModelCard`. said: a sentence for each thing that could not be read, or was concluded. source:
    where that stands, for people; None where nobody stated it. card: all that is known, as its caller gave it, in place
    of what may be found elsewhere.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    source: str | None = None
    card: object = None


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    claims: whether a model is of this kind, by a look at it. read: load it; the last argument is what the user says
    about that. states: what it says of itself, likewise. files: all that it consists of, likewise, if that is files.
    cards: the TOML files that may be about it, the first first. digest: of what does not consist of files.
    in_folds: whether it has folds and mirrored inputs, among which a user may choose.
    """

    claims: Callable[[Model], bool]
    read: Callable[[Any, torch.device, Opening], ModelFile]
    states: Callable[[Any, Opening], Stated]
    files: Callable[[Any, Opening], tuple[Path, ...]] = lambda model, opening: (model,)
    cards: Callable[[Any], tuple[Path, ...]] = lambda model: (model.with_suffix(".toml"), model.parent / "model.toml")
    digest: Callable[[Any, Opening], str] | None = None
    in_folds: bool = False


def kind_of(model: Model) -> Kind:
    """The first kind that says that a model is its own; a file of PyTorch's if none does."""
    return next((kind for kind in KINDS if kind.claims(model)), _ARCHIVE)


def is_known(model: Model) -> bool:
    """Whether one of the kinds beside PyTorch's files says that this is its own."""
    return any(kind.claims(model) for kind in KINDS)


def read_model(model: Model, device: torch.device, opening: Opening = PLAIN) -> ModelFile:
    """Load a model of any kind.

    Raises: ModelError saying what it is, or why it cannot be loaded; UsageError if it needs `trust`, or a
        package that is not installed, or for `folds` or `mirror` of a model that has none.
    """
    kind = kind_of(model)
    for option, chosen in (("folds", opening.folds), ("mirror", opening.mirror)):
        if chosen is not None and not kind.in_folds:
            raise UsageError(f"`{option}` is for nnU-Net results folders, and {outside(model.name)} is not one.")
    return kind.read(model, device, opening)


def digest(model: Model, opening: Opening = PLAIN) -> str:
    """SHA-256 of all that a model consists of; empty where it cannot be read: the loader says why."""
    kind = kind_of(model)
    try:
        return sha256(*kind.files(model, opening)) if kind.digest is None else kind.digest(model, opening)
    except (OSError, ModelError, UsageError):
        return ""


def changes(model: Model, opening: Opening = PLAIN) -> tuple[object, ...] | None:
    """What is another where a model was changed since; None where that cannot be seen."""
    try:
        stats = [(path, path.stat()) for path in kind_of(model).files(model, opening)]
    except (OSError, ModelError):
        return None
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)


# --- the kinds ----------------------------------------------------------------------------------------------------


def _no_files(model: Model, opening: Opening = PLAIN) -> tuple[Path, ...]:
    return ()


_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def _is_function(model: Model) -> bool:
    return isinstance(model, Path) and _FUNCTION.fullmatch(str(model)) is not None and not is_there(model)


def _own(model: Path | Own, opening: Opening) -> Own:
    from mafl_cli.network.function import made_by

    return made_by(model, opening.trust) if isinstance(model, Path) else model


def _read_own(model: Path | Own, device: torch.device, opening: Opening) -> ModelFile:
    from mafl_cli.network.function import read_own

    return read_own(_own(model, opening), device)


def _own_states(model: Path | Own, opening: Opening) -> Stated:
    card = _own(model, opening).card
    return Stated() if card is None else Stated(card=card)


def _own_digest(model: Path | Own, opening: Opening) -> str:
    from mafl_cli.network.function import digest_of

    return digest_of(_own(model, opening))


def _read_archive(model: Path, device: torch.device, opening: Opening) -> ModelFile:
    from mafl_cli.network.model_file import read_archive

    return read_archive(model, device)


def _archive_states(model: Path, opening: Opening) -> Stated:
    values, said = read_bundle(model)
    return Stated(values, said, "its bundle") if values else Stated()


def _read_onnx(model: Path, device: torch.device, opening: Opening) -> ModelFile:
    from mafl_cli.network.onnx_file import read_onnx

    return read_onnx(model, device)


def _onnx_states(model: Path, opening: Opening) -> Stated:
    from mafl_cli.network.onnx_file import fixed_size

    if not model.is_file() or (size := fixed_size(model)) is None:
        return Stated()
    shown = " x ".join(map(str, size))
    return Stated({"roi": size}, (f"roi: {outside(model.name)} was exported for {shown} voxels alone: its window",))


def _onnx_files(model: Path, opening: Opening) -> tuple[Path, ...]:
    from mafl_cli.network.onnx_file import files_of

    return files_of(model)


def _is_nnunet(model: Model) -> bool:
    from mafl_cli.network.nnunet.plans import is_results_folder

    return isinstance(model, Path) and is_results_folder(model)


def _read_nnunet(model: Path, device: torch.device, opening: Opening) -> ModelFile:
    from mafl_cli.network.nnunet.folder import read_folder

    return read_folder(model, device, opening)


def _nnunet_states(model: Path, opening: Opening) -> Stated:
    from mafl_cli.network.nnunet.plans import PLANS, read_plans

    card = read_plans(model).card
    values = {each.name: getattr(card, each.name) for each in fields(card) if each.compare}
    return Stated({key: value for key, value in values.items() if value is not None}, source=f"its {PLANS}")


def _nnunet_files(model: Path, opening: Opening) -> tuple[Path, ...]:
    from mafl_cli.network.nnunet.plans import files_of

    return files_of(model, opening)


def _is_bundle(model: Model) -> bool:
    from mafl_cli.network.bundle_folder import is_bundle

    return isinstance(model, Path) and is_bundle(model)


def _read_bundle(model: Path, device: torch.device, opening: Opening) -> ModelFile:
    from mafl_cli.network.bundle_folder import files_of, network_of
    from mafl_cli.network.function import of_module

    return of_module(
        network_of(model, opening.trust), outside(model.name), "monai.bundle", sha256(*files_of(model)), device
    )


def _bundle_states(model: Path, opening: Opening) -> Stated:
    from mafl_cli.network.bundle_folder import states

    values, said = states(model, opening.trust)
    return Stated(values, said, "its bundle")


def _bundle_files(model: Path, opening: Opening) -> tuple[Path, ...]:
    from mafl_cli.network.bundle_folder import files_of

    return files_of(model)


def _bundle_cards(model: Path) -> tuple[Path, ...]:
    beside = model.parent / f"{model.name.removesuffix('.zip')}.toml"
    return (beside, model / "model.toml") if model.is_dir() else (beside,)


def openings(model: Joined, opening: Opening) -> tuple[Opening, ...]:
    """How each member is to be opened: `folds` and `mirror` are said of those that have them.

    Raises: UsageError where none has.
    """
    folded = [kind_of(member).in_folds for member in model.models]
    plain = opening if not any(folded) else replace(opening, folds=None, mirror=None)
    return tuple(opening if has else plain for has in folded)


def _read_joined(model: Joined, device: torch.device, opening: Opening) -> ModelFile:
    from mafl_cli.network.model_file import Part, joined_file

    parts = tuple(
        Part(read_model(member, device, how), member, how)
        for member, how in zip(model.models, openings(model, opening), strict=True)
    )
    return joined_file(parts, model.ensemble, _joined_digest(model, opening))


def _joined_states(model: Joined, opening: Opening) -> Stated:
    return Stated()  # Its members do, see `card_file`.


def _joined_files(model: Joined, opening: Opening) -> tuple[Path, ...]:
    both = zip(model.models, openings(model, opening), strict=True)
    return tuple(file for member, how in both for file in kind_of(member).files(member, how))


def _joined_digest(model: Joined, opening: Opening) -> str:
    """Whatever the order of the members. Empty where one of them cannot be read."""
    found = [digest(member, how) for member, how in zip(model.models, openings(model, opening), strict=True)]
    text = "\n".join((model.ensemble, *sorted(found)))
    return hashlib.sha256(text.encode()).hexdigest() if all(found) else ""


def _is_closed(model: Model) -> bool:
    return isinstance(model, Closed)


def _read_closed(model: Closed, device: torch.device, opening: Opening) -> ModelFile:
    raise ModelError(f"{outside(model.name)}: only draws: it has no gradient, and cannot be used where one is needed.")


def _closed_states(model: Closed, opening: Opening) -> Stated:
    return Stated()


def _closed_digest(model: Closed, opening: Opening) -> str:
    """What it consists of nobody knows: the hash of nothing."""
    return hashlib.sha256(b"").hexdigest()


def _is_joined(model: Model) -> bool:
    return isinstance(model, Joined)


def _is_onnx(model: Model) -> bool:
    return isinstance(model, Path) and model.suffix.lower() == ".onnx"


def _is_own(model: Model) -> bool:
    return isinstance(model, Own) or _is_function(model)


_ARCHIVE = Kind(lambda model: True, _read_archive, _archive_states)
KINDS: tuple[Kind, ...] = (
    Kind(_is_closed, _read_closed, _closed_states, files=_no_files, cards=_no_files, digest=_closed_digest),
    Kind(
        _is_joined,
        _read_joined,
        _joined_states,
        files=_joined_files,
        cards=_no_files,
        digest=_joined_digest,
        in_folds=True,
    ),
    Kind(_is_own, _read_own, _own_states, files=_no_files, cards=_no_files, digest=_own_digest),
    Kind(_is_onnx, _read_onnx, _onnx_states, files=_onnx_files),
    Kind(_is_bundle, _read_bundle, _bundle_states, files=_bundle_files, cards=_bundle_cards),
    Kind(_is_nnunet, _read_nnunet, _nnunet_states, files=_nnunet_files, in_folds=True),
)
