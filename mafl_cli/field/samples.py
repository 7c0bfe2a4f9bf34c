"""Samples that go through a network a few at a time: a scan, or one of which some samples were changed.

A batch of all samples is (B, C, *spatial), native units: slices, or one volume. Whole scans are large, so nothing here
is copied before its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.network.prediction import majority


class Samples(Protocol):
    """What a batch is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some samples, (b, C, *spatial); a copy. rows: (b,), int64."""
        ...


@dataclass(frozen=True)
class Drawn:
    """What a model drew on samples, with these statistics frozen in. labels: see `problem.Seen.drawn`.

    draws: of a model that answers by chance, the labels of each draw; `labels` are what most of them have.
    """

    samples: Samples
    preprocessing: Preprocessing
    labels: Tensor
    draws: tuple[Tensor, ...] = ()

    @property
    def unsettled(self) -> int:
        """Voxels that most of the first half of the draws have otherwise than most of the second."""
        half = len(self.draws) // 2
        return int((majority(self.draws[:half]) != majority(self.draws[half:])).sum()) if half else 0


class OfScan:
    """The samples of a scan, (I, J, K) for each channel."""

    def __init__(self, data: Sequence[NDArray[np.float32]], layout: Layout, device: torch.device) -> None:
        self._channels = [layout.as_batch(channel[np.newaxis])[:, 0] for channel in data]
        self._device = device

    def __len__(self) -> int:
        return len(self._channels[0])

    def __getitem__(self, rows: Tensor) -> Tensor:
        chosen = rows.cpu().numpy()
        return torch.from_numpy(np.stack([channel[chosen] for channel in self._channels], axis=1)).to(self._device)


class Changed:
    """A batch of which some samples may change.

    rows: (n,), int64, which these are. values: (n, C, *spatial), as they are now; at first as they were.
    """

    def __init__(self, clean: Tensor, rows: Tensor) -> None:
        self._clean = clean
        self.rows = rows
        self.values = clean[rows]
        self._place = torch.full((len(clean),), -1, dtype=torch.int64, device=clean.device)
        self._place[rows] = torch.arange(len(rows), device=clean.device)

    def __len__(self) -> int:
        return len(self._clean)

    def __getitem__(self, rows: Tensor) -> Tensor:
        rows = rows.to(self._place.device)
        found, place = self._clean[rows], self._place[rows]
        found[place >= 0] = self.values[place[place >= 0]]
        return found

    def __setitem__(self, rows: Tensor, values: Tensor) -> None:
        """Take over new values of some of the samples that may change."""
        self.values[self._place[rows]] = values

    def one(self, row: int) -> Tensor:
        """A sample, (C, *spatial), not to be changed."""
        place = int(self._place[row])
        return self._clean[row] if place < 0 else self.values[place]

    def whole(self) -> Tensor:
        """All samples, (B, C, *spatial); a copy."""
        whole = self._clean.clone()
        whole[self.rows] = self.values
        return whole


def equal_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two float32 tensors hold the same bits: 0 and -0 are two numbers here."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def stacked(channels: Sequence[NDArray[Any]], layout: Layout) -> NDArray[Any]:
    """(I, J, K) for each channel -> batch; a new contiguous array."""
    first = layout.to_batch(channels[0][np.newaxis])
    if len(channels) == 1:
        return first
    batch = np.empty((len(first), len(channels), *first.shape[2:]), first.dtype)
    for index, channel in enumerate(channels):
        batch[:, index] = first[:, 0] if index == 0 else layout.to_batch(channel[np.newaxis])[:, 0]
    return batch
