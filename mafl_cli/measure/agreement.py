"""How near a prediction came to the target.

Words. *clean*: the prediction of the scan before the attack. *target*: the label map the attacker wants. *changed*:
where target and clean prediction differ. *hit*: a changed voxel that now has the target's class. *collateral*: another
voxel that lost it.

The attack judges itself on what it optimises; a reader needs numbers that know nothing of the search.
Everything returned is Python floats, ints and strings, never NaN or Infinity. A metric that can be undefined is a
`Value` (the reasons are named in the docstrings); one that cannot is a plain number.

Labels are (M, I, J, K), see `mafl_cli.classes`, in nibabel's order; spacing is mm along i, j, k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.classes import Classes, Foreground, Labels
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
from mafl_cli.measure.value import Value, defined, mean, ratio, undefined

Map = NDArray[np.integer[Any]]
Box = tuple[slice, ...]

LARGEST_COMPONENTS = 20

# Voxels that are counted together.
_BLOCK = 1 << 20


def agreement(
    prediction: Labels, target: Labels, clean: Labels, classes: Classes, *, spacing: Sequence[float]
) -> Agreement:
    """Compare a prediction with the target. Where regions may overlap, every voxel counts once for each.

    Args:
        prediction: (M, I, J, K); the clean prediction here tells how far away the target was.
        target, clean: likewise, on the same grid.
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
    values = classes.values
    joint = [_joint_counts(*maps, values) for maps in zip(target, prediction, strict=True)]
    in_clean = [_counts(each, values) for each in clean]
    same = sum(int(table.trace()) for table in joint)
    same_foreground = sum(int(table.diagonal()[1:].sum()) for table in joint)
    either_foreground = target.size - sum(int(table[0, 0]) for table in joint)

    pieces = _Pieces.of(prediction, target, clean)
    must, hits = int(pieces.voxels.sum()), int(pieces.hits.sum())
    lost = target.size - same - (must - hits)

    places = [[_places(each, values) for each in labels] for labels in (prediction, target)]
    per_class = [
        _class_agreement(
            each,
            prediction[each.map],
            target[each.map],
            [found[each.map][each.value - 1] for found in places],
            voxels=Voxels(
                clean=int(in_clean[each.map][each.value]),
                target=int(joint[each.map][each.value].sum()),
                prediction=int(joint[each.map][:, each.value].sum()),
            ),
            overlap=int(joint[each.map][each.value, each.value]),
            spacing=spacing,
        )
        for each in classes.foreground
    ]
    wanted = [entry for entry in per_class if entry.voxels.target]
    return Agreement(
        target_iou=mean([entry.iou.number for entry in wanted], Reason.TARGET_HAS_NO_FOREGROUND),
        target_dice=mean([entry.dice.number for entry in wanted], Reason.TARGET_HAS_NO_FOREGROUND),
        accuracy=same / target.size,
        foreground_accuracy=ratio(same_foreground, either_foreground, Reason.NO_FOREGROUND),
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


def quick_agreement(prediction: Labels, target: Labels, clean: Labels, classes: Classes) -> Reach:
    """The few numbers of `agreement` that cost no distances, for many predictions of one scan.

    Args:
        prediction, target, clean: (M, I, J, K).
    Returns: `target_iou` and `hit_rate`, as in `agreement`; `restored`, the share of the changed voxels that have
        the clean prediction's class again (`nothing_to_change`); `dice_with_clean`, mean Dice of prediction and
        clean prediction over the foreground classes that the latter has (`clean_has_no_foreground`).
    """
    must = hits = back = 0
    for now, wanted_here, before in zip(*map(_blocks_of_all, (prediction, target, clean)), strict=True):
        changed = wanted_here != before
        must += int(np.count_nonzero(changed))
        hits += int(np.count_nonzero((now == wanted_here) & changed))
        back += int(np.count_nonzero((now == before) & changed))
    wanted = [(both, a, b) for both, a, b in _overlaps(prediction, target, classes) if b]
    kept = [(both, a, b) for both, a, b in _overlaps(prediction, clean, classes) if b]
    return Reach(
        target_iou=mean([both / (a + b - both) for both, a, b in wanted], Reason.TARGET_HAS_NO_FOREGROUND),
        hit_rate=ratio(hits, must, Reason.NOTHING_TO_CHANGE),
        restored=ratio(back, must, Reason.NOTHING_TO_CHANGE),
        dice_with_clean=mean([2 * both / (a + b) for both, a, b in kept], Reason.CLEAN_HAS_NO_FOREGROUND),
    )


def of_draw(prediction: Labels, target: Labels, clean: Labels, classes: Classes) -> dict[str, Value]:
    """What is measured of each draw of a network that answers by chance, by the names that gates use.

    Args: as in `quick_agreement`; clean is what most draws of the clean scan have.
    """
    reach = quick_agreement(prediction, target, clean, classes)
    wanted = [(both, a + b) for both, a, b in _overlaps(prediction, target, classes) if b]
    lost = unchanged = 0
    for now, wanted_here, before in zip(*map(_blocks_of_all, (prediction, target, clean)), strict=True):
        kept = wanted_here == before
        unchanged += int(np.count_nonzero(kept))
        lost += int(np.count_nonzero((now != wanted_here) & kept))
    drop = reach.dice_with_clean
    return {
        "target_iou": reach.target_iou,
        "target_dice": mean([2 * both / total for both, total in wanted], Reason.TARGET_HAS_NO_FOREGROUND),
        "hit_rate": reach.hit_rate,
        "collateral": _collateral(lost, unchanged),
        "collateral_voxels": defined(lost),
        "prediction_drop": drop if drop.value is None else defined(1 - drop.value),
    }


def _overlaps(one: Labels, other: Labels, classes: Classes) -> list[tuple[int, int, int]]:
    """For each foreground class: voxels that both have, that `one` has, that `other` has."""
    tables = [_joint_counts(*maps, classes.values) for maps in zip(one, other, strict=True)]
    return [
        (int(table[each.value, each.value]), int(table[each.value].sum()), int(table[:, each.value].sum()))
        for each in classes.foreground
        for table in (tables[each.map],)
    ]


# --- masks --------------------------------------------------------------------------------------------------


def _blocks(voxels: Map) -> Iterator[Map]:
    """Some planes of the first axis at a time."""
    planes = max(1, _BLOCK // max(1, voxels[0].size))
    for first in range(0, len(voxels), planes):
        yield voxels[first : first + planes]


def _blocks_of_all(labels: Labels) -> Iterator[Map]:
    """Some planes at a time, map after map."""
    return (block for each in labels for block in _blocks(each))


def _counts(voxels: Map, values: int) -> NDArray[np.int64]:
    """Voxels of each number in [0, values)."""
    return sum((np.bincount(part.ravel(), minlength=values) for part in _blocks(voxels)), np.zeros(values, np.int64))


def _joint_counts(rows: Map, columns: Map, values: int) -> NDArray[np.int64]:
    """(values, values): voxels that have the number r in `rows` and c in `columns`."""
    table = np.zeros(values * values, dtype=np.int64)
    for r, c in zip(_blocks(rows), _blocks(columns), strict=True):
        table += np.bincount((r.astype(np.int64) * values + c).ravel(), minlength=values * values)
    return table.reshape(values, values)


def _places(voxels: Map, values: int) -> list[Box | None]:
    """For each number above 0 the smallest box around its voxels; None where there are none."""
    from scipy import ndimage

    return list(ndimage.find_objects(voxels, max_label=values - 1)) if values > 1 else []


def _class_agreement(
    wanted: Foreground,
    prediction: Map,
    target: Map,
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
        prediction, target: (I, J, K), the map that it is in.
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
        masks = [each[box] == wanted.value for each in (prediction, target)]
        found = surface_metrics(masks[0], masks[1], spacing, flat=[size == 1 for size in target.shape])
        hd95, nsd = (defined(value) for value in found)
    return ClassAgreement(
        index=wanted.index,
        name=wanted.name,
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
        """Voxels and hits of each piece of all maps; a piece lies in one of them."""
        counts = [_count_pieces(*maps) for maps in zip(prediction, target, clean, strict=True)]
        return _Pieces(*(np.concatenate(each) for each in zip(*counts, strict=True)))

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


def _count_pieces(prediction: Map, target: Map, clean: Map) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Voxels and hits of each piece of one map."""
    from scipy import ndimage

    changed = target != clean
    (box,) = ndimage.find_objects(changed.view(np.uint8), max_label=1)
    if box is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pieces, count = ndimage.label(changed[box], structure=np.ones((3, 3, 3)))
    voxels, hits = np.zeros((2, count + 1), np.int64)
    for part, now, wanted in zip(*map(_blocks, (pieces, prediction[box], target[box])), strict=True):
        voxels += np.bincount(part.ravel(), minlength=count + 1)
        hits += np.bincount(part[now == wanted], minlength=count + 1)
    return voxels[1:], hits[1:]
