"""What a model can be given as: a path, a network in memory, or several of them as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True)
class Command:
    """A program that draws, see `network.command`: a scan goes in as a file, a mask comes out as one.

    arguments: the program and its arguments. name: what messages and reports call it. timeout: seconds of a run.
    """

    arguments: tuple[str, ...]
    name: str
    timeout: float


@dataclass(frozen=True, eq=False)
class Drawer:
    """A function of the caller's own in the place of a program.

    function: a scan, float32 (I, J, K) for each channel in native units -> its mask, whole numbers (I, J, K); for
    regions that may overlap codes, see `mafl_cli.classes`. name: what messages and reports call it.
    """

    function: Callable[[Sequence[NDArray[np.float32]]], NDArray[Any]]
    name: str


Closed = Command | Drawer
"""A model of which nothing is seen but the labels that it draws."""

Model = Path | Own | Joined | Command | Drawer
"""A file, a folder, `package.module:function` as a path, a network in memory, an ensemble of them, or a closed one."""
