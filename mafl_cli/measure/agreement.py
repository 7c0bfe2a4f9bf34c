"""How near a prediction came to the target.

Words. *clean*: the prediction of the scan before the attack. *target*: the label map the attacker wants. *changed*:
where target and clean prediction differ. *hit*: a changed voxel that now has the target's class. *collateral*: another
voxel that lost it.

The attack judges itself on what it optimises; a reader needs numbers that know nothing of the search.
Everything returned is Python floats, ints and strings, never NaN or Infinity. A metric that can be undefined is a
`Value` (the reasons are named in the docstrings); one that cannot is a plain number.

Masks are label arrays (I, J, K) of class indices, 0 = background, in nibabel's order; spacing is mm along
i, j, k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.codes import Reason
from mafl_cli.measure.records import (
    Agreement,
    ClassAgreement,
    Component,
    Components,
    Counted,
    Distances,
    Reach,
    Removed,
    SurfaceDice,
    Voxels,
)
from mafl_cli.measure.surfaces import NSD_TOLERANCE_MM, surface_metrics
from mafl_cli.measure.value import defined, mean, ratio, undefined

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Box = tuple[slice, ...]

LARGEST_COMPONENTS = 20

# Voxels that are counted together.
_BLOCK = 1 << 20


def agreement(
    prediction: Labels,
    target: Labels,
    clean: Labels,
    *,
    class_names: Sequence[str],
    spacing: Sequence[float],
) -> Agreement:
    """Compare a prediction with the target.

    Args:
        prediction: (I, J, K); the clean prediction here tells how far away the target was.
        target, clean: (I, J, K), on the same grid.
        class_names: one for each class, background first; all labels are below its length.
        spacing: three numbers, mm.
    Returns:
        `target_iou`, `target_dice`: mean over the foreground classes that the target has;
            `target_has_no_foreground`.
        `accuracy`: share of all voxels equal to the target. Background dominates it.
        `foreground_accuracy`: the same where target or prediction is foreground; `no_foreground`.
        `changed_voxels`: how many voxels the target changes.
        `hit_rate`: share of these that are hits; `nothing_to_change`.
        `collateral`: share of the other voxels that left the target, with their `count`;
            `everything_changes`.
        `removed`: for each class that the target empties, 1 - voxels now / voxels in the clean prediction:
            1 is gone, 0 as before, negative grown.
        `per_class`: every foreground class, see `_class_agreement`.
        `per_component`: the changed region in pieces, see `_Pieces`.
        `distances`: which variant and which program the two surface metrics come from.
    """
    classes = len(class_names)
    joint = _joint_counts(target, prediction, classes)
    in_target, in_prediction, both = joint.sum(axis=1), joint.sum(axis=0), joint.diagonal()
    in_clean = _counts(clean, classes)

    pieces = _Pieces.of(prediction, target, clean)
    must, hits = int(pieces.voxels.sum()), int(pieces.hits.sum())
    wrong = target.size - int(both.sum())
    lost = wrong - (must - hits)

    places = [_places(labels, classes) for labels in (prediction, target)]
    per_class = [
        _class_agreement(
            index,
            class_names[index],
            prediction,
            target,
            [each[index - 1] for each in places],
            voxels=Voxels(
                clean=int(in_clean[index]),
                target=int(in_target[index]),
                prediction=int(in_prediction[index]),
            ),
            overlap=int(both[index]),
            spacing=spacing,
        )
        for index in range(1, classes)
    ]
    wanted = [entry for entry in per_class if entry.voxels.target]
    return Agreement(
        target_iou=mean([entry.iou.number for entry in wanted], Reason.TARGET_HAS_NO_FOREGROUND),
        target_dice=mean([entry.dice.number for entry in wanted], Reason.TARGET_HAS_NO_FOREGROUND),
        accuracy=int(both.sum()) / target.size,
        foreground_accuracy=ratio(int(both[1:].sum()), target.size - int(joint[0, 0]), Reason.NO_FOREGROUND),
        changed_voxels=must,
        hit_rate=ratio(hits, must, Reason.NOTHING_TO_CHANGE),
        collateral=_collateral(lost, target.size - must),
        removed=tuple(
            Removed(index=entry.index, name=entry.name, value=1 - entry.voxels.prediction / entry.voxels.clean)
            for entry in per_class
            if entry.voxels.clean and not entry.voxels.target
        ),
        per_class=tuple(per_class),
        per_component=pieces.largest(spacing),
        distances=_how_distances_are_measured(spacing),
    )


def _collateral(lost: int, unchanged: int) -> Counted:
    share = ratio(lost, unchanged, Reason.EVERYTHING_CHANGES)
    return Counted(share.value, share.reason, count=lost)


def agreement_of_masks(
    prediction: Labels,
    target: Labels,
    clean: Labels,
    *,
    names: Sequence[str],
    overlapping: bool,
    spacing: Sequence[float],
) -> Agreement:
    """`agreement` for classes, or `agreement_of_regions` for regions that may overlap."""
    if overlapping:
        return agreement_of_regions(prediction, target, clean, region_names=names, spacing=spacing)
    return agreement(prediction, target, clean, class_names=names, spacing=spacing)


def agreement_of_regions(
    prediction: Labels,
    target: Labels,
    clean: Labels,
    *,
    region_names: Sequence[str],
    spacing: Sequence[float],
) -> Agreement:
    """`agreement` for regions that may overlap: every region is a class of its own, every voxel counts once for each.

    Args:
        prediction, target, clean: (R, I, J, K), 0 or 1.
    """
    # Side by side in one label map, a plane apart, so that no piece reaches from one region into the next.
    axis = int(np.argmax([size > 1 for size in target.shape[1:]]))
    dtype = np.uint8 if len(region_names) < 256 else np.uint16

    def side_by_side(regions: Labels) -> Labels:
        pad = [(0, int(n == axis)) for n in range(3)]
        return np.concatenate(
            [np.pad(region.astype(dtype) * dtype(index + 1), pad) for index, region in enumerate(regions)], axis=axis
        )

    found = agreement(
        *(side_by_side(regions) for regions in (prediction, target, clean)),
        class_names=("none", *region_names),
        spacing=spacing,
    )
    # The planes between the regions are no voxels of the scan.
    return replace(
        found,
        accuracy=float(np.mean(prediction == target)),
        collateral=_collateral(found.collateral.count, target.size - found.changed_voxels),
        per_class=tuple(replace(entry, index=entry.index - 1) for entry in found.per_class),
        removed=tuple(replace(entry, index=entry.index - 1) for entry in found.removed),
    )


def reach(prediction: Labels, target: Labels, clean: Labels, *, classes: int, overlapping: bool) -> Reach:
    """The few numbers of `agreement` that cost no distances, for many predictions of one scan.

    Args:
        prediction, target, clean: (I, J, K), or (R, I, J, K), 0 or 1, for regions that overlap.
        classes: how many there are, background included, or regions.
    Returns: `target_iou` and `hit_rate`, as in `agreement`; `restored`, the share of the changed voxels that have
        the clean prediction's class again (`nothing_to_change`); `dice_with_clean`, mean Dice of prediction and
        clean prediction over the foreground classes that the latter has (`clean_has_no_foreground`).
    """
    must = hits = back = 0
    for now, wanted_here, before in zip(*map(_blocks, (prediction, target, clean)), strict=True):
        changed = wanted_here != before
        must += int(np.count_nonzero(changed))
        hits += int(np.count_nonzero((now == wanted_here) & changed))
        back += int(np.count_nonzero((now == before) & changed))
    wanted = [(both, a, b) for both, a, b in _overlaps(prediction, target, classes, overlapping) if b]
    kept = [(both, a, b) for both, a, b in _overlaps(prediction, clean, classes, overlapping) if b]
    return Reach(
        target_iou=mean([both / (a + b - both) for both, a, b in wanted], Reason.TARGET_HAS_NO_FOREGROUND),
        hit_rate=ratio(hits, must, Reason.NOTHING_TO_CHANGE),
        restored=ratio(back, must, Reason.NOTHING_TO_CHANGE),
        dice_with_clean=mean([2 * both / (a + b) for both, a, b in kept], Reason.CLEAN_HAS_NO_FOREGROUND),
    )


def _overlaps(one: Labels, other: Labels, classes: int, overlapping: bool) -> list[tuple[int, int, int]]:
    """For each foreground class or region: voxels that both have, that `one` has, that `other` has."""
    if overlapping:
        return [(int((a & b).sum()), int(a.sum()), int(b.sum())) for a, b in zip(one, other, strict=True)]
    joint = _joint_counts(one, other, classes)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    return [(int(joint[n, n]), int(rows[n]), int(columns[n])) for n in range(1, classes)]


# --- masks --------------------------------------------------------------------------------------------------


def _blocks(labels: Labels) -> Iterator[Labels]:
    """Some planes of the first axis at a time."""
    planes = max(1, _BLOCK // max(1, labels[0].size))
    for first in range(0, len(labels), planes):
        yield labels[first : first + planes]


def _counts(labels: Labels, classes: int) -> NDArray[np.int64]:
    """Voxels of each class."""
    return sum((np.bincount(part.ravel(), minlength=classes) for part in _blocks(labels)), np.zeros(classes, np.int64))


def _joint_counts(rows: Labels, columns: Labels, classes: int) -> NDArray[np.int64]:
    """(classes, classes): voxels that have class r in `rows` and class c in `columns`."""
    table = np.zeros(classes * classes, dtype=np.int64)
    for r, c in zip(_blocks(rows), _blocks(columns), strict=True):
        table += np.bincount((r.astype(np.int64) * classes + c).ravel(), minlength=classes * classes)
    return table.reshape(classes, classes)


def _places(labels: Labels, classes: int) -> list[Box | None]:
    """For each class but the background the smallest box around its voxels; None where there are none."""
    from scipy import ndimage

    return list(ndimage.find_objects(labels, max_label=classes - 1)) if classes > 1 else []


def _class_agreement(
    index: int,
    name: str,
    prediction: Labels,
    target: Labels,
    places: Sequence[Box | None],
    *,
    voxels: Voxels,
    overlap: int,
    spacing: Sequence[float],
) -> ClassAgreement:
    """One class against the target: `iou`, `dice`, `hd95_mm`, `nsd` and the `voxels` it has in each mask.

    A class that neither has leaves all four undefined (`both_empty`). One that only one of them has scores
    0, and has no distance (`one_empty`), so that whoever averages distances sees that one is missing.

    Args:
        places: where it is in both masks.
    """
    total = voxels.target + voxels.prediction
    one, other = places
    if not total:
        hd95 = nsd = undefined(Reason.BOTH_EMPTY)
    elif one is None or other is None:
        hd95, nsd = undefined(Reason.ONE_EMPTY), defined(0.0)
    else:
        box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
        drawn, wanted = (labels[box] == index for labels in (prediction, target))
        found = surface_metrics(drawn, wanted, spacing, flat=[size == 1 for size in target.shape])
        hd95, nsd = (defined(value) for value in found)
    return ClassAgreement(
        index=index,
        name=name,
        iou=ratio(overlap, total - overlap, Reason.BOTH_EMPTY),
        dice=ratio(2 * overlap, total, Reason.BOTH_EMPTY),
        hd95_mm=hd95,
        nsd=SurfaceDice(nsd.value, nsd.reason, tolerance_mm=NSD_TOLERANCE_MM),
        voxels=voxels,
    )


def _how_distances_are_measured(spacing: Sequence[float]) -> Distances:
    """Tools disagree by millimetres on the same masks, so the variant and the tool are named."""
    from importlib.metadata import version

    return Distances(
        tool=f"monai {version('monai')}",
        hd95="larger of the two directed 95th percentiles, between boundary voxels",
        nsd=f"area-weighted surface within {NSD_TOLERANCE_MM:g} mm",
        spacing_mm=tuple(float(mm) for mm in spacing),
    )


@dataclass(frozen=True, eq=False)
class _Pieces:
    """The changed region in connected pieces (corners touch): of each how many voxels it has, and how many hits."""

    voxels: NDArray[np.int64]
    hits: NDArray[np.int64]

    @staticmethod
    def of(prediction: Labels, target: Labels, clean: Labels) -> _Pieces:
        from scipy import ndimage

        changed = target != clean
        (box,) = ndimage.find_objects(changed.view(np.uint8), max_label=1)
        if box is None:
            return _Pieces(*np.zeros((2, 0), np.int64))
        pieces, count = ndimage.label(changed[box], structure=np.ones((3, 3, 3)))
        voxels, hits = np.zeros((2, count + 1), np.int64)
        for part, now, wanted in zip(*map(_blocks, (pieces, prediction[box], target[box])), strict=True):
            voxels += np.bincount(part.ravel(), minlength=count + 1)
            hits += np.bincount(part[now == wanted], minlength=count + 1)
        return _Pieces(voxels[1:], hits[1:])

    def largest(self, spacing: Sequence[float]) -> Components:
        """`count` of all pieces, and the `largest` ones, largest first: `voxels`, `volume_mm3`, `hit_rate`.

        A small lesion that was missed disappears in the hit rate of the whole.
        """
        volume = prod(float(mm) for mm in spacing)
        return Components(
            count=len(self.voxels),
            largest=tuple(
                Component(
                    voxels=int(self.voxels[n]),
                    volume_mm3=int(self.voxels[n]) * volume,
                    hit_rate=int(self.hits[n]) / int(self.voxels[n]),
                )
                for n in np.argsort(-self.voxels, kind="stable")[:LARGEST_COMPONENTS]
            ),
        )
