"""The problems that the benchmarks solve: cut-outs of scans with a target and a model.

Always: the sample scan with the model that comes with mafl. With a folder of development scans (`models/*.ts` and
`cases/*`), those of `sources.py`. Two slices of each 2-D case and a box of each 3-D one, so that many passes with many
methods stay affordable on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sources import SOURCES, model_file
from torch import Tensor

from mafl_cli.case.request import DEMO_MODEL
from mafl_cli.field.field import Field
from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Grids
from mafl_cli.field.tiling import Tiling
from mafl_cli.field.whole import Whole
from mafl_cli.field.windows import Windows
from mafl_cli.network.card import ModelCard
from mafl_cli.network.card_file import find_card
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.load import load
from mafl_cli.network.segmenter import Segmenter
from mafl_cli.search.limits import Limits

CPU = torch.device("cpu")
SAMPLES = Path(__file__).resolve().parent.parent / "sample_data"


@dataclass(frozen=True)
class Case:
    """One problem. clean: (B, C, *spatial), native units; target: (B, *spatial), class indices.

    `field` is `segmenter` behind `preprocessing`.
    """

    name: str
    field: Field
    segmenter: Segmenter
    preprocessing: Preprocessing
    clean: Tensor
    target: Tensor
    limits: Limits

    def __getitem__(self, row: slice) -> Case:
        """Some of the samples, as a case of their own."""
        limits = replace(self.limits, frozen=self.limits.frozen[row])
        return replace(self, clean=self.clean[row], target=self.target[row], limits=limits)


def load_case(name: str, data: Path | None) -> Case:
    folder, _, target = name.partition(":")
    if folder == "sample":
        return _sample(target)
    if data is None:
        raise SystemExit(f"{name} needs --data.")
    return _shared(name, data)


def whole_slices(name: str, data: Path, rows: list[int]) -> Case:
    """Slices of a 2-D case that are not cut out."""
    image, wanted, _ = _read(name, data)
    clean, labels = (np.ascontiguousarray(np.moveaxis(part, -1, 0)[rows]) for part in (image, wanted))
    return _development(name, data, clean, labels)


def _sample(target: str) -> Case:
    scan = nib.load(SAMPLES / "brain_t1.nii.gz")
    image = np.asarray(scan.dataobj, dtype=np.float32)[None]
    wanted = np.asarray(nib.load(SAMPLES / f"target_{target}.nii.gz").dataobj).astype(np.int64)[None]
    layout = Layout.for_volume(scan.affine, orientation="RAS", slice_axis=2)
    clean, labels = (torch.from_numpy(layout.to_batch(part)) for part in (image, wanted))
    card = find_card(DEMO_MODEL)
    segmenter, card = _model(DEMO_MODEL, card, tuple(clean.shape[2:]))
    preprocessing = Preprocessing.freeze(card.intensity or Intensity(), list(image), CPU)
    field = Whole(segmenter, preprocessing, card.divisor or 1)
    drawn = torch.cat([field.predict(part).logits.argmax(dim=1) for part in clean.split(8)])
    differs = (drawn != labels[:, 0]).flatten(1).sum(dim=1)
    rows = torch.nonzero(differs > 0).flatten()[2::5]
    return _case(f"sample:{target}", segmenter, field, preprocessing, clean[rows], labels[rows, 0])


def _shared(name: str, data: Path) -> Case:
    source = SOURCES[name.partition(":")[0]]
    if source.grid is not None:
        return _regridded(name, source.grid, data)
    image, wanted, drawn = _read(name, data)
    if source.cut is None:
        # The middle of the slab's two halves; the smallest box, in steps of 16, around what is drawn or wanted.
        image, wanted, drawn = (np.moveaxis(part, -1, 0)[[3, 8]] for part in (image, wanted, drawn))
        plane = _around((wanted > 0) | (drawn > 0), 16, 16)[1:]
        around = (slice(None), slice(None), *plane)
        return _development(name, data, image[around], wanted[around[1:]])
    # A box centred where the target differs.
    centre = ndimage.center_of_mass(wanted != drawn)
    box = tuple(
        slice(first, first + edge)
        for middle, size, edge in zip(centre, wanted.shape, source.cut, strict=True)
        for first in [min(max(round(middle) - edge // 2, 0), size - edge)]
    )
    around = (slice(None), *box)
    case = _development(name, data, image[around][None], wanted[box][None])
    # A network that sees a cut-out only draws other things near its faces; the edit alone is what is wanted.
    now = case.field.predict(case.clean).logits.argmax(dim=1)
    edited = torch.from_numpy((wanted != drawn)[box][None].copy())
    return replace(case, target=torch.where(edited, case.target, now))


def _regridded(name: str, edge: int, data: Path) -> Case:
    """The drawn organ with a margin on a cube of `edge` voxels; wanted: what the network draws, with a hole of 16 mm.

    The hole is where what is drawn is thickest. Voxels are taken as they are, from the nearest one, as deepbet does.
    """
    image, _, drawn = _read(name, data)
    numbered, _ = ndimage.label(drawn > 0)
    largest = int(np.bincount(numbered.ravel())[1:].argmax()) + 1
    organ = ndimage.find_objects(numbered)[largest - 1]
    margins = [round(0.1 * (part.stop - part.start)) for part in organ]
    box = [
        slice(max(part.start - margin, 0), min(part.stop + margin, size))
        for part, margin, size in zip(organ, margins, drawn.shape, strict=True)
    ]
    around = (slice(None), *box)
    cut = torch.from_numpy(image[around])[None]
    scan = torch.nn.functional.interpolate(cut, (edge,) * 3, mode="nearest-exact").numpy()
    case = _development(name, data, scan, np.zeros((1, *scan.shape[2:]), dtype=np.int64))
    now = case.field.predict(case.clean).logits.argmax(dim=1)
    spacing = [2.0 * (part.stop - part.start) / edge for part in box]
    depth = ndimage.distance_transform_edt(now[0].numpy() > 0, sampling=spacing)
    middle = np.unravel_index(depth.argmax(), depth.shape)
    away = np.ones(depth.shape, dtype=bool)
    away[middle] = False
    hole = torch.from_numpy(ndimage.distance_transform_edt(away, sampling=spacing) <= 8.0)[None]
    return replace(case, target=torch.where(hole, 0, now))


def _read(name: str, data: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A development case: scan (C, I, J, K) float32, target and clean prediction (I, J, K)."""
    title, _, target = name.partition(":")
    source = SOURCES[title]

    def volume(file: str) -> NDArray[Any]:
        scan = nib.load(data / "cases" / source.folder / f"{file}.nii.gz")
        return np.ascontiguousarray((nib.as_closest_canonical(scan) if source.intensity else scan).dataobj)

    image = np.stack([volume(file).astype(np.float32) for file in source.images])
    return image, volume(f"target_{target}").astype(np.int64), volume("clean_pred").astype(np.int64)


def _development(name: str, data: Path, clean: NDArray[Any], target: NDArray[Any]) -> Case:
    """clean: (B, C, *spatial), as the networks of the development scans expect it; target: (B, *spatial)."""
    source = SOURCES[name.partition(":")[0]]
    path = model_file(source, data)
    if path is None:
        raise SystemExit(f"{name} needs {source.model}.")
    seen = clean.shape[2:] if source.window is None else (source.window,) * 3
    segmenter, card = _model(path, None, seen)
    channels = np.moveaxis(clean, 1, 0).reshape(clean.shape[1], *target.shape[-3:])
    intensity = Intensity() if source.intensity is None else Intensity.parse(source.intensity)
    preprocessing = Preprocessing.freeze(intensity, list(channels), CPU)
    field: Field
    if source.window is None:
        field = Whole(segmenter, preprocessing, card.divisor or 1)
    else:
        field = Windows(segmenter, preprocessing, Tiling(seen), Grids.same(clean.shape[2:]))
    return _case(name, segmenter, field, preprocessing, *(torch.from_numpy(part.copy()) for part in (clean, target)))


def _around(mask: NDArray[np.bool_], margin: int, step: int) -> tuple[slice, ...]:
    spans = []
    for axis, size in enumerate(mask.shape):
        (inside,) = np.nonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        low, high = max(int(inside[0]) - margin, 0), min(int(inside[-1]) + 1 + margin, size)
        low = max(min(low, size - -(-(high - low) // step) * step), 0)
        spans.append(slice(low, low + -(-(high - low) // step) * step))
    return tuple(spans)


@cache
def _model(path: Path, card: ModelCard | None, size: tuple[int, ...]) -> tuple[Segmenter, ModelCard]:
    segmenter, _, card = load(path, device=CPU, card=card, size=lambda dims: size)
    return segmenter, card


def _case(
    name: str, segmenter: Segmenter, field: Field, preprocessing: Preprocessing, clean: Tensor, target: Tensor
) -> Case:
    limits = Limits(
        low=preprocessing.low,
        high=preprocessing.high,
        unit=preprocessing.unit,
        frozen=preprocessing.keep(clean),
    )
    return Case(name, field, segmenter, preprocessing, clean, target, limits)
