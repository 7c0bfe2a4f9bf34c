"""The protocol of an attacked function: what the search and the case ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mafl_cli.field.resample import Box
from mafl_cli.network.prediction import Prediction

Losses = Callable[[Prediction], Sequence[Tensor]]
Say = Callable[[str], None]
Reading = Callable[[Tensor], Tensor]
"""Logits (B, K, *rest) to something of each voxel, (B, *rest) or with more axes before the rest; 0 where class 0 is
certain."""


@dataclass(frozen=True)
class Slopes:
    """A prediction with the (B,) value of each loss and its gradient with respect to the input, like the input.

    pull: gradient of the first loss with respect to the logits, like them.
    """

    prediction: Prediction
    values: list[Tensor]
    gradients: list[Tensor]
    pull: Tensor


@dataclass(frozen=True)
class Focus:
    """The attacked function where the edit is.

    box: the part of the scan, native voxels, that `field` takes and draws. frozen: bool (*box), voxels that must not
    change, or None: all may.
    """

    field: Field
    box: Box
    frozen: Tensor | None


class Field(Protocol):
    """The attacked function: native voxels in, logits on the same grid out."""

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        ...

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """One forward pass, and one backward pass for each of the losses."""
        ...


class ScanField(Field, Protocol):
    """The attacked function for whole scans or slices, which knows a cheaper one for the part around an edit."""

    def labels(self, x: Tensor) -> Tensor:
        """Predicted classes of (B, C, *spatial): (B, *spatial), or (B, R, *spatial) for overlapping regions.

        In the smallest type that holds them: they are kept for whole scans.
        """
        ...

    def read(self, x: Tensor, reading: Reading) -> Tensor:
        """What a reading makes of the logits of (B, C, *spatial), without gradient. It has to work voxel by voxel."""
        ...

    def focus(self, clean: Tensor, edit: Tensor) -> Focus:
        """The function around an edit, bool (B, *spatial), of scans that stay clean everywhere else."""
        ...

    def inputs(self, x: Tensor, edit: Tensor, most: int) -> Iterator[Tensor]:
        """What the network gets of one scan (1, C, *spatial), piece by piece, each (1, C, *).

        edit: bool (1, *spatial). Pieces that draw none of it are left out; the `most` that draw most of it come first.
        """
        ...
