"""What a model can be given as: a path, a network in memory, or several of them as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mafl_cli.config import EnsembleRule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Own:
    """A network of the caller's own.

    name: what messages and reports call it. card: as `card_file.card_of` takes it, None where nothing is known.
    """

    module: torch.nn.Module
    name: str
    card: object = None


@dataclass(frozen=True)
class Joined:
    """Several models as one function: an ensemble.

    models: two or more, of any kind. ensemble: how their answers become one, see `network.joined`.
    """

    models: tuple[Path | Own, ...]
    ensemble: EnsembleRule = "mean"

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        return " + ".join(model.name for model in self.models)


Model = Path | Own | Joined
"""A file, a folder, `package.module:function` as a path, a network in memory, or an ensemble of them."""
