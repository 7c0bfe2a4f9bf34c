"""What kinds of models there are: each says which are its own, what they state about themselves, and how they are read.

A new kind is an entry in `KINDS`. No torch here, so that a card is read at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mafl_cli.errors import ModelError, UsageError
from mafl_cli.names import outside, sha256
from mafl_cli.network.bundle import read_bundle
from mafl_cli.network.opening import PLAIN, Opening

if TYPE_CHECKING:
    import torch

    from mafl_cli.network.model_file import ModelFile


@dataclass(frozen=True)
class Stated:
    """What a model says of itself.

    values: fields of a `ModelCard`. said: a sentence for each thing that could not be read, or was concluded. source:
    where that stands, for people; None where nobody stated it.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    source: str | None = None


Read = Callable[[Path, "torch.device", Opening], "ModelFile"]


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    claims: whether a model is of this kind, by a look at it. read: load it; the last argument is what the user says
    about that. states: what it says of itself, likewise. files: all that it consists of, likewise.
    in_folds: whether it has folds and mirrored inputs, among which a user may choose.
    """

    claims: Callable[[Path], bool]
    read: Read
    states: Callable[[Path, Opening], Stated]
    files: Callable[[Path, Opening], tuple[Path, ...]]
    in_folds: bool = False


def kind_of(model: Path) -> Kind:
    """The first kind that says that a model is its own; a file of PyTorch's if none does."""
    return next((kind for kind in KINDS if kind.claims(model)), _ARCHIVE)


def is_known(model: Path) -> bool:
    """Whether one of the kinds beside PyTorch's files says that this is its own."""
    return any(kind.claims(model) for kind in KINDS)


def read_model(model: Path, device: torch.device, opening: Opening = PLAIN) -> ModelFile:
    """Load a model of any kind.

    Raises: ModelError saying what it is, or why it cannot be loaded; UsageError if it needs `trust`, or a
        package that is not installed, or for `folds` or `mirror` of a model that has none.
    """
    kind = kind_of(model)
    for option, chosen in (("folds", opening.folds), ("mirror", opening.mirror)):
        if chosen is not None and not kind.in_folds:
            raise UsageError(f"`{option}` is for nnU-Net results folders, and {outside(model.name)} is not one.")
    return kind.read(model, device, opening)


def digest(model: Path, opening: Opening = PLAIN) -> str:
    """SHA-256 of all that a model consists of; empty where it cannot be read: the loader says why."""
    try:
        return sha256(*kind_of(model).files(model, opening))
    except (OSError, ModelError):
        return ""


def changes(model: Path, opening: Opening = PLAIN) -> tuple[object, ...] | None:
    """What is another where a model was changed since; None where that cannot be seen."""
    try:
        stats = [(path, path.stat()) for path in kind_of(model).files(model, opening)]
    except (OSError, ModelError):
        return None
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)


# --- the kinds ----------------------------------------------------------------------------------------------------


def _one_file(model: Path, opening: Opening) -> tuple[Path, ...]:
    return (model,)


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


def _is_nnunet(model: Path) -> bool:
    from mafl_cli.network.nnunet.plans import is_results_folder

    return is_results_folder(model)


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


_ARCHIVE = Kind(lambda model: True, _read_archive, _archive_states, _one_file)
KINDS: tuple[Kind, ...] = (
    Kind(lambda model: model.suffix.lower() == ".onnx", _read_onnx, _onnx_states, _onnx_files),
    Kind(_is_nnunet, _read_nnunet, _nnunet_states, _nnunet_files, in_folds=True),
)  # fmt: skip
