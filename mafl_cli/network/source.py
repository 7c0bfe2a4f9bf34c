"""What a model can be given as: a path, or a network in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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


Model = Path | Own
"""A file, a folder, `package.module:function` as a path, or a network in memory."""
