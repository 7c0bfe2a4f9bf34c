"""A batch of samples, the model that sees it, and what it is to draw: all that a search asks of scans or arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.classes import Classes, in_any_map
from mafl_cli.config import AttackConfig
from mafl_cli.errors import InputError, UsageError
from mafl_cli.field.averaged import Averaged
from mafl_cli.field.batches import fewer, slices_per_batch
from mafl_cli.field.crop import CroppedScan
from mafl_cli.field.field import Field, Reading, ScanField
from mafl_cli.field.field import Say as Say
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Grids
from mafl_cli.field.samples import Drawn, Samples, equal_bits
from mafl_cli.field.smoothed import Smoothed
from mafl_cli.field.tiling import Tiling
from mafl_cli.field.whole import Whole
from mafl_cli.field.windows import Windows
from mafl_cli.measure.noise import Noise
from mafl_cli.names import outside
from mafl_cli.network import chance
from mafl_cli.network.load import ModelInfo
from mafl_cli.network.prediction import Network, Prediction, majority
from mafl_cli.network.reasons import REFUSALS
from mafl_cli.network.segmenter import Segmenter
from mafl_cli.search.goals import Goal
from mafl_cli.search.label_only import Spoilt
from mafl_cli.search.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A batch and the model that sees it. Batches are (B, C, *spatial), native units.

    clean: slices, or volumes; its numbers never change.
    """

    segmenter: Segmenter
    info: ModelInfo
    preprocessing: Preprocessing
    grids: Grids
    tiling: Tiling | None
    clean: Tensor
    say: Say

    @property
    def sliced(self) -> bool:
        """Whether the samples are slices."""
        return self.clean.ndim == 4

    def frozen(self, data: Sequence[NDArray[np.float32]]) -> Preprocessing:
        """The preprocessing with the statistics of another scan, (I, J, K) for each channel."""
        return self.preprocessing.again(data)

    def grids_for(self, preprocessing: Preprocessing) -> Grids:
        """The grids for a scan with these statistics: the clean scan's, unless they depend on the crop."""
        return self.grids

    def field(self, preprocessing: Preprocessing | None = None, *, exact: bool = True) -> ScanField:
        """The attacked function, with the statistics of the clean scan, or others, frozen in.

        exact: in float32, whatever the precision of the search.
        """
        preprocessing = preprocessing or self.preprocessing
        return self._field(self.segmenter.exact if exact else self.segmenter, preprocessing)

    def _field(self, network: Network, preprocessing: Preprocessing) -> ScanField:
        grids, crop = self.grids_for(preprocessing), preprocessing.crop
        field: ScanField = (
            Whole(network, preprocessing, self.info.divisor, grids)
            if self.tiling is None
            else Windows(network, preprocessing, self.tiling, grids, batch=self.windows_together, say=self.say)
        )
        if crop is None:
            return field
        return CroppedScan(field, crop.box, self.clean.shape[2:], moves=preprocessing.moves)

    def surrogate_fields(self) -> list[ScanField]:
        """The function of each network that the model is made of, in float32, on the same grid."""
        networks, own = self.segmenter.surrogates, self.preprocessing.intensity.kind == "members"
        scaled = self.preprocessing.each if own else (self.preprocessing,) * len(networks)
        return [self._field(network, each) for network, each in zip(networks, scaled, strict=True)]

    @property
    def by_chance(self) -> bool:
        """Whether the model answers differently each time."""
        return self.segmenter.by_chance

    @property
    def together(self) -> int:
        """How many samples go through the search together, if the memory is enough."""
        return slices_per_batch(self.clean[0, 0].numel()) if self.sliced else 1

    @property
    def windows_together(self) -> int:
        """How many windows go through the network together, if there are windows and the memory is enough."""
        assert self.tiling is not None
        if self.by_chance:
            return 1  # Each has noise of its own.
        return max(1, 2**20 // int(np.prod(self.tiling.roi))) if self.clean.device.type == "cpu" else 4

    def groups(self, rows: Tensor, work: Callable[[Tensor, float], None], together: int | None = None) -> None:
        """Call `work` for a few samples at a time, with the share of them done before; fewer when memory is short.

        together: how many at once, None for as many as go through the search.
        """
        size, done = together or self.together, 0
        while done < len(rows):
            try:
                work(rows[done : done + size], done / len(rows))
            except REFUSALS as exc:
                size = fewer(size, exc, self.say, self.info.name, "slice" if self.sliced else "scan")
            else:
                done += size

    def drawn(self, samples: Samples, preprocessing: Preprocessing, *, like: Sequence[Drawn] = ()) -> Drawn:
        """What the model file draws: labels (B, M, *spatial), see `mafl_cli.classes`.

        like: what it drew before. Samples that are bit for bit those of such a batch, together with all that went
            through the network beside them and with the same statistics, get the same answer, and need not ask again.
        """
        if self.by_chance:
            return self._drawn_by_chance(samples, preprocessing)
        field = self._field(self.segmenter.original, preprocessing)
        known = [each for each in like if each.preprocessing.is_as(preprocessing)]
        parts: list[Tensor] = []

        def work(rows: Tensor, _: float) -> None:
            x = samples[rows]
            same = next((each for each in known if equal_bits(each.samples[rows], x)), None)
            parts.append(self.info.classes.from_network(field.labels(x)) if same is None else same.labels[rows])

        self.groups(torch.arange(len(samples)), work)
        return Drawn(samples, preprocessing, torch.cat(parts))

    def totals(self, samples: Samples, preprocessing: Preprocessing, reading: Reading) -> Tensor:
        """Sums over all voxels of what a reading (B, n, *rest) makes of the model file's logits: (B, n), float64.

        Where a model answers by chance, the mean over its draws.
        """
        field = self._field(self.segmenter.original, preprocessing)
        draws = chance.DRAWS_JUDGED if self.by_chance else 1
        parts: list[Tensor] = []

        def work(rows: Tensor, _: float) -> None:
            x, sums = samples[rows], []
            for number in range(draws):
                with chance.drawing(3, number, int(rows[0]), device=self.clean.device):
                    sums.append(field.read(x, reading).flatten(2).sum(dim=2, dtype=torch.float64))
            parts.append(torch.stack(sums).mean(dim=0))

        self.groups(torch.arange(len(samples)), work, together=1 if self.by_chance else None)
        return torch.cat(parts)

    def asked(self, x: Tensor) -> Prediction:
        """What the model file says of a batch, (B, C, *spatial), with the statistics of the clean scan."""
        return self._field(self.segmenter.original, self.preprocessing).predict(x)

    def _drawn_by_chance(self, samples: Samples, preprocessing: Preprocessing) -> Drawn:
        """Draws that are the same for every change of a scan, but not from slice to slice."""
        field = self._field(self.segmenter.original, preprocessing)
        parts: list[list[Tensor]] = [[] for _ in range(chance.DRAWS_JUDGED)]

        def work(rows: Tensor, _: float) -> None:
            x = samples[rows]
            for number, part in enumerate(parts):
                with chance.drawing(3, number, int(rows[0]), device=self.clean.device):
                    part.append(self.info.classes.from_network(field.labels(x)))

        self.groups(torch.arange(len(samples)), work, together=1)
        draws = tuple(torch.cat(part) for part in parts)
        return Drawn(samples, preprocessing, majority(draws), draws)


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """A batch with a target, and the limits that the attack has.

    wanted: the target as labels (B, M, *spatial), see `mafl_cli.classes`. clean_labels: the prediction of the clean
    batch, likewise.
    clean_draws: of a model that answers by chance, the predictions of each draw; else none.
    guide: what has what the target shows, like clean; None for none.
    start: what a search may begin at, like clean; None for none.
    confined: whether only some voxels or channels may change, because somebody wants it so.
    """

    wanted: Tensor
    clean_labels: Tensor
    guide: Tensor | None
    start: Tensor | None = None
    limits: Limits
    confined: bool
    clean_draws: tuple[Tensor, ...] = ()

    @property
    @abstractmethod
    def seen(self) -> Seen:
        """The clean batch, and the model that sees it."""

    @property
    @abstractmethod
    def batch_spacing(self) -> tuple[float, ...] | None:
        """mm between voxels along the spatial axes of the batch; None where nobody knows."""

    @property
    @abstractmethod
    def plane(self) -> tuple[int, int]:
        """The axes of the batch along which slices are shown."""

    @abstractmethod
    def noise(self) -> tuple[Noise | None, ...]:
        """The noise of each channel of the clean scan, native units; None where there is none to measure."""

    @abstractmethod
    def refrozen(self, batch: Tensor) -> Preprocessing:
        """The preprocessing with the statistics of a changed batch."""

    def limits_for(self, config: AttackConfig, names: Sequence[str]) -> Limits:
        """The limits, with the noise of each channel where `eps` is counted in it. names: of the channels or files.

        Raises: InputError for a channel in which no noise can be measured.
        """
        if config.eps is None or config.eps_unit != "noise":
            return self.limits
        sigmas = []
        for name, noise in zip(names, self.noise(), strict=True):
            if noise is None:
                raise InputError(
                    f"{name}: no noise can be measured, for nothing varies from voxel to voxel or the slices are too "
                    "small: give `eps` in another unit."
                )
            sigmas.append(noise.sigma)
        return replace(self.limits, noise=torch.tensor(sigmas).to(self.limits.unit))

    def is_limited(self, config: AttackConfig) -> bool:
        """Whether anything bounds the change, or where it may be, or asks more of it than the target."""
        asked = (config.eps, config.survive, config.evade, config.transfer)
        return any(each is not None for each in asked) or self.confined

    def goal(self, config: AttackConfig) -> Goal | Spoilt:
        """What counts as reached."""
        return goal_of(self.seen.info.classes, self.wanted, self.clean_labels, iou=config.goal_iou, hit=config.goal_hit)

    def expected(self, field: Field, *seed: int) -> Field:
        """A function, or what is expected of it where the model answers by chance. seed: of its draws."""
        if not self.seen.by_chance or isinstance(field, Smoothed):  # Which sees each of its copies with other noise.
            return field
        return Averaged(field, self.seen.clean.device, seed)

    @property
    def clean_drawn(self) -> Drawn:
        """The clean prediction, and what it was made from."""
        return Drawn(self.seen.clean, self.seen.preprocessing, self.clean_labels, self.clean_draws)

    def edit(self, rows: Tensor | None = None) -> Tensor:
        """Where the clean prediction is not the target, of some samples or all: bool (B, *spatial)."""
        clean, wanted = (each if rows is None else each[rows] for each in (self.clean_labels, self.wanted))
        return in_any_map(clean != wanted, axis=1)

    @property
    def edited(self) -> Tensor:
        """Which samples the target changes: bool (B,)."""
        return self.edit().flatten(1).any(dim=1)


def limits_of(preprocessing: Preprocessing, clean: Tensor) -> Limits:
    """What a clean batch (B, C, *spatial) allows on its own: each channel stays in its range, on its side of zero."""
    low = preprocessing.low.clone()
    if preprocessing.nonzero_only:
        for channel, values in enumerate(clean.unbind(1)):
            if not bool((values < 0).any()):
                # Zero is background by definition there; the darkest tissue is the floor.
                low[channel] = values[values > 0].min()
    return Limits(
        low=low,
        high=preprocessing.high.clone(),
        unit=preprocessing.unit,
        frozen=preprocessing.keep(clean),
        nonzero=preprocessing.nonzero_only,
        window=preprocessing.window,
    )


def kept_channels(attacked: Sequence[str] | None, channels: Sequence[str], clean: Tensor) -> Tensor:
    """Bool (1, C, 1, ...): channels that must not change.

    attacked: names or numbers of those that may; all if None. channels: the names of the model's channels, in order.
    Raises: UsageError for a channel that the model does not have.
    """
    keep = torch.zeros(len(channels), dtype=torch.bool, device=clean.device)
    if attacked is not None:
        numbers = {name: index for index, name in enumerate(channels)}
        numbers |= {str(index): index for index in range(len(channels))}
        for name in attacked:
            if name not in numbers:
                raise UsageError(
                    f"`attack_channels`: the model has no channel {outside(name)!r}; it has {', '.join(channels)}."
                )
        if not attacked:
            raise UsageError("`attack_channels` must name at least one channel: leave it out to attack all.")
        keep[:] = True
        keep[[numbers[name] for name in attacked]] = False
    return keep.view(1, -1, *(1,) * (clean.ndim - 2))


SPOILT = 0.5
"""Dice with the clean prediction at which an untargeted attack has reached its goal: the mask is half another one."""


def spoilt(classes: Classes, clean: Tensor) -> Spoilt:
    """What counts as reached by an untargeted attack. clean: labels (B, M, *spatial)."""
    return Spoilt(classes.to_network(clean), classes.values, SPOILT, classes.overlapping)


def goal_of(classes: Classes, wanted: Tensor, clean: Tensor, *, iou: float, hit: float) -> Goal:
    """What counts as reached, for labels (B, M, *spatial): the target, and the clean prediction."""
    target, before = (classes.to_network(labels) for labels in (wanted, clean))
    return Goal.of(target, before, len(classes), iou=iou, hit=hit, overlapping=classes.overlapping)
