"""The problems that the benchmarks solve: cut-outs of scans with a target and a model.

Always: the sample scan with the model that comes with mafl. With a folder of development scans (`models/*.ts` and
`cases/*`), more of them. Two slices of each 2-D case and a cube of each 3-D one, so that hundreds of passes with many
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
from torch import Tensor

from mafl_cli.case.request import DEMO_MODEL
from mafl_cli.field.field import Field
from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.whole import Whole
from mafl_cli.network.card import ModelCard
from mafl_cli.network.card_file import find_card
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.load import load
from mafl_cli.network.segmenter import Segmenter
from mafl_cli.search.limits import Limits

CPU = torch.device("cpu")
SAMPLES = Path(__file__).resolve().parent.parent / "sample_data"
PLANAR = ("removed", "eroded", "dilated", "shifted20", "otherpatient", "box")
# case folder: (model, images, targets, cube of a 3-D case: edge, or None for slices)
SHARED: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], int | None]] = {
    "flair2d_pat0001/slab12": ("flair_unet2d.ts", ("image",), PLANAR, None),
    "brats2d_pat0002/slab12": ("brats_unet2d.ts", ("image_flair", "image_t1c"), PLANAR, None),
    "brats3d_pat0003/crop96": (
        "brats_unet3d.ts",
        ("image_flair", "image_t1c"),
        ("removed", "shifted20"),
        64,
    ),
    "t1_gwm_headbox": (
        "t1_gwm_meshnet3d.ts",
        ("image_norm",),
        ("hole_sphere",),
        40,
    ),
    "t1_brainmask_128": (
        "deepbet_bbox.pt",
        ("image",),
        ("eroded8mm", "hole16mm"),
        128,
    ),
}
SCALED = {"t1_brainmask_128": Intensity.parse("percentile:0.5,99.5")}
"""What a network expects of intensities, where the scan is not stored that way; such scans are turned to RAS."""


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


def all_names(data: Path | None) -> list[str]:
    """Every case that can be loaded, as folder:target."""
    names = ["sample:hole", "sample:swap"]
    if data is not None:
        names += [f"{folder}:{target}" for folder, (_, _, targets, _) in SHARED.items() for target in targets]
    return names


def is_volume(name: str) -> bool:
    """Whether the problem is a cube for a 3-D network."""
    folder = name.partition(":")[0]
    return folder in SHARED and SHARED[folder][3] is not None


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
    edge = SHARED[name.partition(":")[0]][3]
    image, wanted, drawn = _read(name, data)
    if edge is None:
        # The middle of the slab's two halves; the smallest box, in steps of 16, around what is drawn or wanted.
        image, wanted, drawn = (np.moveaxis(part, -1, 0)[[3, 8]] for part in (image, wanted, drawn))
        plane = _around((wanted > 0) | (drawn > 0), 16, 16)[1:]
        around = (slice(None), slice(None), *plane)
        return _development(name, data, image[around], wanted[around[1:]])
    # A cube centred where the target differs.
    centre = ndimage.center_of_mass(wanted != drawn)
    box = tuple(
        slice(first, first + edge)
        for middle, size in zip(centre, wanted.shape, strict=True)
        for first in [min(max(round(middle) - edge // 2, 0), size - edge)]
    )
    around = (slice(None), *box)
    case = _development(name, data, image[around][None], wanted[box][None])
    # A network that sees a cut-out only draws other things near its faces; the edit alone is what is wanted.
    now = case.field.predict(case.clean).logits.argmax(dim=1)
    edited = torch.from_numpy((wanted != drawn)[box][None].copy())
    return replace(case, target=torch.where(edited, case.target, now))


def _read(name: str, data: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A development case: scan (C, I, J, K) float32, target and clean prediction (I, J, K)."""
    folder, _, target = name.partition(":")

    def volume(file: str) -> NDArray[Any]:
        scan = nib.load(data / "cases" / folder / f"{file}.nii.gz")
        return np.ascontiguousarray((nib.as_closest_canonical(scan) if folder in SCALED else scan).dataobj)

    image = np.stack([volume(file).astype(np.float32) for file in SHARED[folder][1]])
    return image, volume(f"target_{target}").astype(np.int64), volume("clean_pred").astype(np.int64)


def _development(name: str, data: Path, clean: NDArray[Any], target: NDArray[Any]) -> Case:
    """clean: (B, C, *spatial), as the networks of the development scans expect it; target: (B, *spatial)."""
    segmenter, card = _model(data / "models" / SHARED[name.partition(":")[0]][0], None, clean.shape[2:])
    channels = np.moveaxis(clean, 1, 0).reshape(clean.shape[1], *target.shape[-3:])
    preprocessing = Preprocessing.freeze(SCALED.get(name.partition(":")[0], Intensity()), list(channels), CPU)
    field = Whole(segmenter, preprocessing, card.divisor or 1)
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
