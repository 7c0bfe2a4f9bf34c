"""Scans and model brought together on one grid, and what the model makes of them: for the attack and for its judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.oracle import Oracle
from mafl_cli.case.problem import Say, Seen
from mafl_cli.case.request import ModelRequest
from mafl_cli.classes import Labels
from mafl_cli.config import Mode
from mafl_cli.errors import InputError, UsageError
from mafl_cli.field.crop import Crop
from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Grids
from mafl_cli.field.samples import Drawn, OfScan, stacked
from mafl_cli.field.spline import nnunet_grids
from mafl_cli.field.tiling import Tiling
from mafl_cli.network.card import ModelCard
from mafl_cli.network.card_file import find_card
from mafl_cli.network.loaded import LoadedModels
from mafl_cli.scans.formats import read_scan
from mafl_cli.scans.forms import require_same_grid
from mafl_cli.scans.geometry import SliceAxis, axcodes, choose_slice_axis
from mafl_cli.scans.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Subject(Seen):
    """Scans and model on one grid, and what the model makes of them.

    scans: their `data` lie in the memory of the batch, and in its order. oracle: who answers in the place of a network;
    None where there is one.
    """

    scans: tuple[Volume, ...]
    card: ModelCard
    slices: SliceAxis
    layout: Layout
    oracle: Oracle | None = None

    @property
    def scan(self) -> Volume:
        """The first channel: it stands for the grid of all."""
        return self.scans[0]

    @property
    def mode(self) -> Mode:
        return "2d" if self.layout.sliced else "3d"

    def as_volume(self, batch: Tensor) -> NDArray[np.float32]:
        """Batch -> (C, I, J, K) native, on a CPU in the same memory."""
        array: NDArray[np.float32] = self.layout.as_scan(batch.cpu().numpy())
        return array

    def to_labels(self, labels: Tensor) -> Labels:
        """Labels of the batch, (B, M, *spatial) -> of the scan, (M, I, J, K)."""
        array: Labels = self.layout.from_batch(labels.cpu().numpy())
        return array

    def grids_for(self, preprocessing: Preprocessing) -> Grids:
        """The grids for a scan with these statistics."""
        crop = preprocessing.crop
        if crop is None or (self.preprocessing.crop is not None and crop is self.preprocessing.crop):
            return self.grids
        return grids_of(self.card, self.layout, self.scan, crop.shape, None if preprocessing.moves else crop)

    def drawn_on_file(self, data: Sequence[NDArray[np.float32]], found: Drawn, clean: Drawn) -> Drawn:
        """What the model draws on a scan as it was written. found, clean: what it drew before, see `drawn`."""
        samples = OfScan(data, self.layout, self.clean.device)
        return self.drawn(samples, self.frozen(data), like=(found, clean))

    def predict(self, data: Sequence[NDArray[np.float32]]) -> Labels:
        """Labels (M, I, J, K) that the model draws on a scan, (I, J, K) for each channel, native."""
        return self.to_labels(self.drawn_on(data).labels)

    def drawn_on(self, data: Sequence[NDArray[np.float32]]) -> Drawn:
        """The same for the batch, with each draw of a model that answers by chance."""
        return self.drawn(OfScan(data, self.layout, self.clean.device), self.frozen(data))


_LOADED = LoadedModels()
"""Those of this process: the cases of a batch have one model, and a pair has its judges."""


def prepare_subject(scans: Sequence[Volume], request: ModelRequest, device: torch.device, say: Say) -> Subject:
    """Load the model for these scans, one for each of its channels, all on one grid.

    Raises: ModelError if the model is unusable; InputError if the scans are not what it takes; UsageError for settings
        that cannot be those of this model.
    """
    scan = scans[0]
    card = find_card(
        request.model,
        request.opening,
        orientation=request.orientation,
        intensity=request.intensity,
        spacing=request.spacing,
        roi=request.roi,
        overlap=request.overlap,
    )
    dims = {"2d": 2, "3d": 3}.get(request.mode, card.dims)
    if card.dims not in (None, dims):
        raise UsageError(f"`mode` {request.mode} cannot be used: the model is {card.dims}-D.")
    slices = choose_slice_axis(scan.affine, scan.shape, request.slice_axis or card.slice_axis)

    stated = card.orientation

    def orientation(dims: int) -> str:
        """Slices of DICOM are rows x columns, as every reader of DICOM hands them out."""
        codes = axcodes(scan.affine)
        rows_first = dims == 2 and scan.format == "dicom" and slices.index == 2
        return stated or (codes[1] + codes[0] + codes[2] if rows_first else "native")

    def laid_out(dims: int) -> tuple[Layout, Grids, Tiling | None]:
        layout = Layout.for_volume(
            scan.affine, orientation=orientation(dims), slice_axis=slices.index if dims == 2 else None
        )
        shape = tuple(scan.shape[axis] for axis in layout.axes[3 - dims :])
        return layout, grids_of(card, layout, scan, shape), _tiling(card, dims)

    def size(dims: int) -> tuple[int, ...]:
        _, grids, tiling = laid_out(dims)
        return grids.to_network.shape_out if tiling is None else tiling.roi

    segmenter, info, card = _LOADED.get(
        request.model,
        device=device,
        card=replace(card, dims=dims),
        size=size,
        tap=request.tap,
        precision=request.precision,
        opening=request.opening,
    )
    card = replace(card, orientation=orientation(info.dims))
    if stated is None and card.orientation != "native":
        turned = f"orientation: not stated, rows x columns of the DICOM slices are used ({card.orientation})"
        assumed = (turned if each.startswith("orientation:") else each for each in info.assumptions)
        info = replace(info, assumptions=tuple(assumed))
    for sentence in info.assumptions:
        say(f"assumed for {info.name}: {sentence}")
    if len(info.channels) != len(scans):
        raise InputError(
            f"{scan.name}: {counted(len(scans), 'channel')} given, the model takes {len(info.channels)} "
            f"({', '.join(info.channels)}): give the files of all channels in this order, separated by commas."
        )
    layout, grids, tiling = laid_out(info.dims)
    assert card.intensity is not None
    try:
        preprocessing = Preprocessing.freeze(
            card.intensity, [each.data for each in scans], device, turn=layout.as_batch if card.crop else None
        )
    except InputError as exc:
        raise InputError(f"{scan.name}: {exc}") from exc
    if preprocessing.crop is not None:
        crop = preprocessing.crop
        grids = grids_of(card, layout, scan, crop.shape, None if preprocessing.moves else crop)
    largest = float(torch.maximum(preprocessing.low.abs(), preprocessing.high.abs()).max())
    if card.intensity.kind == "none" and card.source is None and largest > 100:
        say(
            f"{scan.name}: values up to {largest:.6g} go into the model unscaled; "
            "most networks expect scaled input: see `intensity`."
        )
    batch = stacked([each.data for each in scans], layout)
    return Subject(
        # The same numbers once in memory, and not once more in another order.
        scans=tuple(replace(each, data=data) for each, data in zip(scans, layout.as_scan(batch), strict=True)),
        segmenter=segmenter,
        info=info,
        card=card,
        slices=slices,
        layout=layout,
        preprocessing=preprocessing,
        grids=grids,
        tiling=tiling,
        clean=torch.from_numpy(batch).to(device),
        say=say,
    )


def read_channels(
    given: Sequence[Path | Volume], say: Say, *, series: str | None = None, allow_gaps: bool = False
) -> tuple[Volume, ...]:
    """One scan for each channel; their warnings are said. Raises GeometryError if they are not on one grid."""
    found: list[Volume] = []
    for each in given:
        read = each if isinstance(each, Volume) else read_scan(each, series=series, allow_gaps=allow_gaps)
        found.append(read)
        for warning in found[-1].warnings:
            say(warning)
        first, last = found[0], found[-1]
        require_same_grid(first, last)
    return tuple(found)


def grids_of(card: ModelCard, layout: Layout, scan: Volume, shape: tuple[int, ...], crop: Crop | None = None) -> Grids:
    """The scan's grid along the batch's axes, and the network's at the spacing it was trained with.

    shape: of the scan, or of its crop.
    """
    if card.spacing is None:
        return Grids.same(shape)
    if len(card.spacing) not in (len(shape), 3) and card.resize is None:
        raise UsageError(f"`spacing` must be {len(shape)} numbers for this model, got {len(card.spacing)}.")
    if card.resize is not None:
        ranges = None if crop is None else crop.ranges
        return nnunet_grids(shape, layout.batch_spacing(scan.affine), card.spacing, card.resize, ranges)
    return Grids.at_spacing(shape, layout.batch_spacing(scan.affine), card.spacing[-len(shape) :], card.resample)


def _tiling(card: ModelCard, dims: int) -> Tiling | None:
    if card.roi is None:
        return None
    if len(card.roi) != dims:
        raise UsageError(f"`roi` must be {dims} numbers for this model, got {len(card.roi)}.")
    return Tiling(card.roi, card.overlap, card.blend, card.windows)


def counted(count: int, what: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count} {what}{'' if count == 1 else 's'}"
