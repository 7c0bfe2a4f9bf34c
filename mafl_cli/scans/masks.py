"""The target: the mask that the attacker wants the model to draw, on the grid of the image.

A target is a label map with the model's own class numbers: from mask files, NIfTI or DICOM SEG, or made by a recipe
(`mafl_cli.scans.recipes`) from the model's own clean prediction. A file on another grid is only moved when the user
says so: it changes which voxels are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mafl_cli.classes import Classes, Labels
from mafl_cli.errors import GeometryError, InputError, UsageError
from mafl_cli.names import is_there, public_name
from mafl_cli.scans import forms, geometry
from mafl_cli.scans.formats import read_mask
from mafl_cli.scans.volume import LabelMap, Volume


@dataclass(frozen=True, eq=False)
class Target:
    """The mask to reach."""

    labels: Labels
    """(M, I, J, K); all 0 asks for an empty prediction."""
    files: tuple[MaskFile, ...]
    warnings: tuple[str, ...] = ()
    recipe: str | None = None


@dataclass(frozen=True)
class MaskFile:
    """A file that a target, or the voxels that may change, came from.

    resampled: voxels of each label on the file's own grid and on the image's, if these differ.
    """

    name: str
    sha256: str
    resampled: Mapping[int, tuple[int, int]] | None = None


@dataclass(frozen=True)
class Masks:
    """How mask files are read. resample: move them to the image's grid. label_map: old label -> new label.

    adjustable: whether the user has options for these two, which messages may advise.
    """

    resample: bool = False
    label_map: Mapping[int, int] = field(default_factory=dict)
    adjustable: bool = True

    def read(
        self, path: Path, like: Volume, *, coded: bool = False
    ) -> tuple[NDArray[np.int64], MaskFile, tuple[str, ...]]:
        """Labels (I, J, K) on the grid of `like`, where they came from, and what the user should know.

        coded: bit codes are wanted, so the segments of a SEG may overlap.
        Raises: GeometryError when the grids differ and may not; InputError when the file is not a label map, or no
            label lies inside the image; UsageError for a `label_map` of labels that are not there.
        """
        mask = read_mask(path, like, coded=coded)
        mask, notes = self._renamed(mask)
        if geometry.same_space(like.shape, like.affine, mask.labels.shape, mask.affine):
            return mask.labels, MaskFile(mask.name, mask.sha256), (*mask.warnings, *notes)
        forms.require_same_forms(like, mask, coded=True)
        whole = mask.labels.size == like.data.size
        if whole and geometry.is_part_of(mask.labels.shape, mask.affine, like.shape, like.affine):
            # The same voxels in another order, as converters leave them.
            labels = geometry.nearest_labels(mask.labels, mask.affine, like.shape, like.affine)
            return labels, MaskFile(mask.name, mask.sha256), (*mask.warnings, *notes)
        if not self.resample:
            advice = f"Add `resample_target` to move {mask.name} to the grid of {like.name} (nearest neighbour)."
            forms.require_same_grid(like, mask, advice if self.adjustable else None)
        forms.require_same_forms(like, mask)
        return self._resampled(mask, like, notes)

    def _renamed(self, mask: LabelMap) -> tuple[LabelMap, tuple[str, ...]]:
        if not self.label_map:
            return mask, ()
        there = {int(label) for label in np.unique(mask.labels)}
        missing = sorted(set(self.label_map) - there)
        if missing:
            raise UsageError(
                f"`label_map`: {mask.name} does not have label {', '.join(map(str, missing))}; "
                f"it has {', '.join(map(str, sorted(there)))}."
            )
        labels = mask.labels.copy()
        for old, new in self.label_map.items():
            labels[mask.labels == old] = new
        changes = ", ".join(f"{old} to {new}" for old, new in self.label_map.items())
        return replace(mask, labels=labels), (f"{mask.name}: labels changed: {changes}",)

    def _resampled(
        self, mask: LabelMap, like: Volume, notes: tuple[str, ...]
    ) -> tuple[NDArray[np.int64], MaskFile, tuple[str, ...]]:
        labels = geometry.nearest_labels(mask.labels, mask.affine, like.shape, like.affine)
        before, after = _counts(mask.labels), _counts(labels)
        if before and not after:
            raise GeometryError(f"{mask.name}: no labelled voxel lies inside {like.name}; is it of another scan?")
        counts = {label: (before[label], after.get(label, 0)) for label in before}
        shown = ", ".join(f"label {label} {old} -> {new}" for label, (old, new) in counts.items())
        lost = [str(label) for label, (_, new) in counts.items() if new == 0]
        gone = f"; label {', '.join(lost)} is lost" if lost else ""
        note = f"{mask.name}: moved to the grid of {like.name}; voxels: {shown or 'none labelled'}{gone}"
        return labels, MaskFile(mask.name, mask.sha256, counts), (*mask.warnings, *notes, note)


def _counts(labels: NDArray[np.int64]) -> dict[int, int]:
    """Voxels of each label above 0."""
    found, counts = np.unique(labels[labels > 0], return_counts=True)
    return {int(label): int(count) for label, count in zip(found, counts, strict=True)}


def read_masks(paths: Sequence[Path], like: Volume, classes: Classes, masks: Masks) -> Target:
    """Read mask files as the target for one image and one model.

    Args:
        paths: one file with the numbers of classes that exclude each other. For regions that may overlap either one
            file for each, in the model's order, everything that is not 0 being inside; or one file of codes, see
            `mafl_cli.classes`: 5 is regions 0 and 2. In a SEG, segment r + 1 is region r.
        like: the image.
    Raises: as `Masks.read`; UsageError for another number of files; InputError for what the model cannot draw.
    """
    return (_read_regions if classes.overlapping else _read_classes)(paths, like, classes, masks)


def _read_classes(paths: Sequence[Path], like: Volume, classes: Classes, masks: Masks) -> Target:
    if len(paths) > 1:
        gone = [public_name(path) for path in paths if not is_there(path)]
        if gone:
            raise InputError(f"`target` {','.join(gone)} does not exist: check the path.")
        raise UsageError(f"`target` must be one mask, for the model's classes exclude each other, got {len(paths)}.")
    labels, source, notes = masks.read(paths[0], like)
    _require_known(source.name, labels, classes.names, masks)
    return Target(classes.decode(labels), (source,), notes)


def _read_regions(paths: Sequence[Path], like: Volume, classes: Classes, masks: Masks) -> Target:
    count = len(classes)
    if len(paths) not in (1, count):
        names = ", ".join(classes.names)
        raise UsageError(
            f"`target` must be {count} masks, one for each region ({names}), or one bit-coded mask, got {len(paths)}."
        )
    found = [masks.read(path, like, coded=True) for path in paths]
    files, warnings = tuple(source for _, source, _ in found), [note for _, _, notes in found for note in notes]
    if len(paths) == 1 and count > 1:
        codes, name = found[0][0], files[0].name
        if codes.max() >= classes.codes:
            raise InputError(
                f"{name}: has the code {codes.max()}, but codes of {count} regions reach {classes.codes - 1} at most: "
                "region r adds 2 to the power of r to a voxel (1, 2, 4, ...)."
            )
        labels = classes.decode(codes)
        voxels = ", ".join(f"{name} {int(part.sum())}" for name, part in zip(classes.names, labels, strict=True))
        warnings.append(f"{name}: read as bit codes; voxels in {voxels}")
    else:
        labels = np.stack([(each > 0).astype(np.int64) for each, _, _ in found])
    return Target(labels, files, tuple(warnings))


def _require_known(name: str, labels: NDArray[np.int64], class_names: Sequence[str], masks: Masks) -> None:
    found, counts = np.unique(labels, return_counts=True)
    unknown = [(int(label), int(n)) for label, n in zip(found, counts, strict=True) if label >= len(class_names)]
    if not unknown:
        return
    shown = ", ".join(f"{label} ({n} voxels)" for label, n in unknown[:8])
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    classes = ", ".join(f"{n} {class_name}" for n, class_name in enumerate(class_names))
    advice = "give a mask with the model's class numbers"
    if masks.adjustable:
        advice += ", or map labels with `label_map`"
    if masks.adjustable and [label for label, _ in unknown] == [255] and len(found) <= 2:
        advice = "a 0/255 mask needs `label_map` 255:1, or another class number than 1"
    raise InputError(f"{name}: the model cannot draw label {shown}{more}; its classes are {classes}: {advice}.")
