"""How near a prediction came to the target, and how large the change was that brought it there.

Words. *clean*: what belongs to the scan before the attack (its prediction, or its voxels). *target*: the
label map the attacker wants. *changed*: where target and clean prediction differ. *hit*: a changed voxel
that now has the target's class. *collateral*: another voxel that lost it. *native*: the scan's own units
(HU, ...); *model*: the units the network sees. *slice axis*: the array axis along which slices are counted.

The attack judges itself on what it optimises; a reader needs numbers that know nothing of the search.
Everything returned is ready for strict JSON: Python floats, ints and strings, never NaN or Infinity. A
metric that can be undefined is a dict whose `value` is a float, or None with a `reason` beside it (both are
named in the docstrings); one that cannot is a plain number.

Masks are label arrays (I, J, K) of class indices, 0 = background, in nibabel's order; spacing is mm along
i, j, k.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log10, prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.errors import UsageError

if TYPE_CHECKING:
    from mafl_cli.volume import Volume

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

NSD_TOLERANCE_MM = 1.0
LARGEST_COMPONENTS = 20

# Radiology's habit for CT: 12 bits less some air, the range SynthRAD and others measure PSNR with. HU.
CT_RANGE = 4000.0

# Wang et al., IEEE TIP 13(4), 2004: Gaussian window, 11 wide, sigma 1.5.
SSIM_SIGMA = 1.5
SSIM_WINDOW = 11


def agreement(
    prediction: Labels,
    target: Labels,
    clean: Labels,
    *,
    class_names: Sequence[str],
    spacing: Sequence[float],
) -> dict[str, Any]:
    """Compare a prediction with the target.

    Args:
        prediction: (I, J, K); the clean prediction here tells how far away the target was.
        target, clean: (I, J, K), on the same grid.
        class_names: one for each class, background first; all labels are below its length.
        spacing: three numbers, mm.
    Returns: a dict of
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
        `per_component`: the changed region in pieces, see `_components`.
        `distances`: which variant and which program the two surface metrics come from.
    """
    classes = len(class_names)
    joint = _joint_counts(target, prediction, classes)
    in_target, in_prediction, both = joint.sum(axis=1), joint.sum(axis=0), joint.diagonal()
    in_clean = _joint_counts(clean, clean, classes).diagonal()

    right = prediction == target
    changed = target != clean
    must = int(np.count_nonzero(changed))
    hits = int(np.count_nonzero(right & changed))
    lost = int(np.count_nonzero(~(right | changed)))

    per_class = [
        _class_agreement(
            index,
            class_names[index],
            prediction == index,
            target == index,
            voxels={
                "clean": int(in_clean[index]),
                "target": int(in_target[index]),
                "prediction": int(in_prediction[index]),
            },
            overlap=int(both[index]),
            spacing=spacing,
        )
        for index in range(1, classes)
    ]
    wanted = [entry for entry in per_class if entry["voxels"]["target"]]
    return {
        "target_iou": _mean([entry["iou"]["value"] for entry in wanted], "target_has_no_foreground"),
        "target_dice": _mean([entry["dice"]["value"] for entry in wanted], "target_has_no_foreground"),
        "accuracy": int(both.sum()) / target.size,
        "foreground_accuracy": _ratio(int(both[1:].sum()), target.size - int(joint[0, 0]), "no_foreground"),
        "changed_voxels": must,
        "hit_rate": _ratio(hits, must, "nothing_to_change"),
        "collateral": {**_ratio(lost, target.size - must, "everything_changes"), "count": lost},
        "removed": [
            {
                "index": entry["index"],
                "name": entry["name"],
                "value": 1 - entry["voxels"]["prediction"] / entry["voxels"]["clean"],
            }
            for entry in per_class
            if entry["voxels"]["clean"] and not entry["voxels"]["target"]
        ],
        "per_class": per_class,
        "per_component": _components(changed, right, spacing),
        "distances": _how_distances_are_measured(spacing),
    }


def agreement_of_masks(
    prediction: Labels,
    target: Labels,
    clean: Labels,
    *,
    names: Sequence[str],
    overlapping: bool,
    spacing: Sequence[float],
) -> dict[str, Any]:
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
) -> dict[str, Any]:
    """`agreement` for regions that may overlap: every region is a class of its own, every voxel counts once for each.

    Args:
        prediction, target, clean: (R, I, J, K), 0 or 1.
    """
    # Side by side in one label map, a plane apart, so that no piece reaches from one region into the next.
    axis = int(np.argmax([size > 1 for size in target.shape[1:]]))

    def side_by_side(regions: Labels) -> Labels:
        pad = [(0, int(n == axis)) for n in range(3)]
        return np.concatenate(
            [np.pad(region.astype(np.int64) * (index + 1), pad) for index, region in enumerate(regions)], axis=axis
        )

    found = agreement(
        *(side_by_side(regions) for regions in (prediction, target, clean)),
        class_names=("none", *region_names),
        spacing=spacing,
    )
    # The planes between the regions are no voxels of the scan.
    unchanged = target.size - found["changed_voxels"]
    lost = found["collateral"]["count"]
    found["accuracy"] = float(np.mean(prediction == target))
    found["collateral"] = {**_ratio(lost, unchanged, "everything_changes"), "count": lost}
    for entry in (*found["per_class"], *found["removed"]):
        entry["index"] -= 1
    return found


def reach(
    prediction: Labels, target: Labels, clean: Labels, *, classes: int, overlapping: bool
) -> dict[str, dict[str, Any]]:
    """The few numbers of `agreement` that cost no distances, for many predictions of one scan.

    Args:
        prediction, target, clean: (I, J, K), or (R, I, J, K), 0 or 1, for regions that overlap.
        classes: how many there are, background included, or regions.
    Returns: `target_iou` and `hit_rate`, as in `agreement`; `restored`, the share of the changed voxels that have
        the clean prediction's class again (`nothing_to_change`); `dice_with_clean`, mean Dice of prediction and
        clean prediction over the foreground classes that the latter has (`clean_has_no_foreground`).
    """
    changed = target != clean
    must = int(np.count_nonzero(changed))
    hits = int(np.count_nonzero((prediction == target) & changed))
    back = int(np.count_nonzero((prediction == clean) & changed))
    wanted = [(both, a, b) for both, a, b in _overlaps(prediction, target, classes, overlapping) if b]
    kept = [(both, a, b) for both, a, b in _overlaps(prediction, clean, classes, overlapping) if b]
    return {
        "target_iou": _mean([both / (a + b - both) for both, a, b in wanted], "target_has_no_foreground"),
        "hit_rate": _ratio(hits, must, "nothing_to_change"),
        "restored": _ratio(back, must, "nothing_to_change"),
        "dice_with_clean": _mean([2 * both / (a + b) for both, a, b in kept], "clean_has_no_foreground"),
    }


def _overlaps(one: Labels, other: Labels, classes: int, overlapping: bool) -> list[tuple[int, int, int]]:
    """For each foreground class or region: voxels that both have, that `one` has, that `other` has."""
    if overlapping:
        return [(int((a & b).sum()), int(a.sum()), int(b.sum())) for a, b in zip(one, other, strict=True)]
    joint = _joint_counts(one, other, classes)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    return [(int(joint[n, n]), int(rows[n]), int(columns[n])) for n in range(1, classes)]


def size_of_channels(
    clean: Sequence[Volume],
    adversarial: Sequence[Volume],
    *,
    units: Sequence[float],
    channels: Sequence[str],
    slice_axis: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`size` over all channels and of each. channels: their names; "CT" has a fixed data range."""
    sizes = [
        size(
            before.data,
            after.data,
            unit=unit,
            data_range=CT_RANGE if channel == "CT" else None,
            slice_axis=slice_axis,
            spacing=before.spacing,
            padding=before.padding,
        )
        for before, after, unit, channel in zip(clean, adversarial, units, channels, strict=True)
    ]
    return over_channels(sizes), sizes


def over_channels(sizes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One `size` for several channels: L2 over all of them, the largest Linf, PSNR and SSIM as means over channels.

    Native values add up different units where the channels have them; model units are the ones to read.
    """
    if len(sizes) == 1:
        return sizes[0]

    def both(of: Any) -> dict[str, float]:
        return {unit: of(unit) for unit in ("native", "model")}

    def mean(*keys: str) -> dict[str, Any]:
        found = sizes
        for key in keys:
            found = [entry[key] for entry in found]
        values = [entry["value"] for entry in found if entry["value"] is not None]
        return _mean(values, "" if values else str(found[0]["reason"]))

    energies = [entry["l2"]["model"] ** 2 for entry in sizes]
    low = sum(
        energy * entry["low_frequency_share"]["value"] for energy, entry in zip(energies, sizes, strict=True) if energy
    )
    worst = min(
        (entry["ssim"]["worst"] for entry in sizes),
        key=lambda entry: inf if entry["value"] is None else entry["value"],
    )
    return {
        **sizes[0],
        "l0": {
            "count": sum(entry["l0"]["count"] for entry in sizes),
            "fraction": sum(entry["l0"]["fraction"] for entry in sizes) / len(sizes),
        },
        "l2": both(lambda unit: sqrt(sum(entry["l2"][unit] ** 2 for entry in sizes))),
        "linf": both(lambda unit: max(entry["linf"][unit] for entry in sizes)),
        "mean_abs": both(lambda unit: sum(entry["mean_abs"][unit] for entry in sizes) / len(sizes)),
        "volume_mm3": max(entry["volume_mm3"] for entry in sizes),
        "changed_slices": max(entry["changed_slices"] for entry in sizes),
        "data_range": {
            "value": max(entry["data_range"]["value"] for entry in sizes),
            "rule": "the largest; each channel is measured with its own",
        },
        "psnr_db": {**sizes[0]["psnr_db"], **mean("psnr_db")},
        "psnr_changed_slices_db": {**sizes[0]["psnr_changed_slices_db"], **mean("psnr_changed_slices_db")},
        "ssim": {
            **sizes[0]["ssim"],
            "mean": mean("ssim", "mean"),
            "mean_changed_slices": mean("ssim", "mean_changed_slices"),
            "worst": worst,
        },
        "low_frequency_share": _ratio(low, sum(energies), "identical"),
    }


def size(
    clean: NDArray[Any],
    adversarial: NDArray[Any],
    *,
    unit: float,
    data_range: float | None,
    slice_axis: int,
    spacing: Sequence[float],
    padding: Mask | None = None,
) -> dict[str, Any]:
    """Measure a perturbation, adversarial - clean.

    Args:
        clean, adversarial: (I, J, K), finite, native units, any real dtype.
        unit: native units in one model unit, above 0.
        data_range: native; what PSNR and SSIM are relative to. None: `default_data_range(clean)`.
        slice_axis: 0, 1 or 2.
        spacing: three numbers, mm.
        padding: (I, J, K), voxels outside the scanned field, which never change: no part of any mean or range.
    Returns: a dict of
        `l0`: voxels that differ, `count` and `fraction`.
        `l2`, `linf`, `mean_abs`: root of the sum of squares, largest magnitude, mean magnitude over all
            voxels; each in `native` and `model` units.
        `volume_mm3`: of the voxels that differ.
        `slices`, `changed_slices`: how many there are, and how many hold a voxel that differs.
        `data_range`: `value` and the `rule` it came from.
        `psnr_db`, `psnr_changed_slices_db`: 10 log10(range^2 / mean square); `identical`, `constant_image`.
        `ssim`: slice by slice, see `_ssim_summary`.
        `low_frequency_share`: share of the perturbation's energy that one Haar level keeps in its low-pass
            band, in the plane of the slices: 2 x 2 block means, odd sizes padded by repeating the edge;
            `identical`.
    Raises: UsageError when the data range is not a number above 0.
    """
    measured = np.ones(clean.shape, bool) if padding is None else ~padding
    chosen = default_data_range(clean[measured]) if data_range is None else _given(data_range)
    span = chosen["value"]

    before, after, inside = (np.moveaxis(array, slice_axis, 0) for array in (clean, adversarial, measured))
    voxels = int(np.count_nonzero(measured))
    no_ssim = _why_no_ssim(before.shape[1:], span)
    count, squares, magnitudes, largest, low = 0, 0.0, 0.0, 0.0, 0.0
    changed: list[int] = []
    similarity: list[float] = []
    for index, (x, y) in enumerate(zip(before, after, strict=True)):
        # A slice at a time: float64 sums, but never a float64 copy of the scan.
        x, y = x.astype(np.float64), y.astype(np.float64)
        delta = y - x
        differs = int(np.count_nonzero(delta))
        if not differs:
            continue
        changed.append(index)
        count += differs
        squares += float(np.vdot(delta, delta))
        magnitudes += float(np.abs(delta).sum())
        largest = max(largest, float(np.abs(delta).max()))
        low += _low_pass_energy(delta)
        if not no_ssim:
            similarity.append(_ssim(x, y, span, inside[index]))

    def both_units(native: float) -> dict[str, float]:
        return {"native": native, "model": native / unit}

    return {
        "l0": {"count": count, "fraction": count / voxels},
        "l2": both_units(sqrt(squares)),
        "linf": both_units(largest),
        "mean_abs": both_units(magnitudes / voxels),
        "volume_mm3": count * prod(float(mm) for mm in spacing),
        "slices": len(before),
        "changed_slices": len(changed),
        "data_range": chosen,
        "psnr_db": _psnr(squares, voxels, span, "volume"),
        "psnr_changed_slices_db": _psnr(squares, int(np.count_nonzero(inside[changed])), span, "changed_slices"),
        "ssim": _ssim_summary(similarity, changed, len(before), span, no_ssim),
        "low_frequency_share": _ratio(low, squares, "identical"),
    }


def default_data_range(clean: NDArray[Any]) -> dict[str, Any]:
    """The span of a scan's values for PSNR and SSIM when nothing better is known: p99.9 - p0.1.

    A few hot voxels (vessels, metal) would otherwise set the scale. A scan with so little in it that both
    percentiles are equal gets max - min; a constant one 0, and has neither PSNR nor SSIM.

    Args:
        clean: any shape, native units.
    Returns: `value`, native units, and the `rule` in words.
    """
    low, high = np.percentile(clean, (0.1, 99.9))
    if high > low:
        return {"value": float(high - low), "rule": "p99.9 - p0.1 of the clean scan"}
    return {"value": float(clean.max()) - float(clean.min()), "rule": "max - min of the clean scan"}


def _given(data_range: float) -> dict[str, Any]:
    if not 0 < data_range < inf:
        raise UsageError(f"the data range {data_range:g} is not a number above 0: give the span of the values.")
    return {"value": float(data_range), "rule": "given"}


# --- what may be undefined ----------------------------------------------------------------------------------


def _defined(value: float) -> dict[str, Any]:
    return {"value": float(value)}


def _undefined(reason: str) -> dict[str, Any]:
    return {"value": None, "reason": reason}


def _ratio(part: float, whole: float, otherwise: str) -> dict[str, Any]:
    return _defined(part / whole) if whole else _undefined(otherwise)


def _mean(values: Sequence[float], otherwise: str) -> dict[str, Any]:
    return _ratio(sum(values), len(values), otherwise)


# --- masks --------------------------------------------------------------------------------------------------


def _joint_counts(rows: Labels, columns: Labels, classes: int) -> NDArray[np.int64]:
    """(classes, classes): voxels that have class r in `rows` and class c in `columns`."""
    table = np.zeros(classes * classes, dtype=np.int64)
    for r, c in zip(rows, columns, strict=True):
        table += np.bincount((r.astype(np.int64) * classes + c).ravel(), minlength=classes * classes)
    return table.reshape(classes, classes)


def _class_agreement(
    index: int,
    name: str,
    prediction: Mask,
    target: Mask,
    *,
    voxels: dict[str, int],
    overlap: int,
    spacing: Sequence[float],
) -> dict[str, Any]:
    """One class against the target: `iou`, `dice`, `hd95_mm`, `nsd` and the `voxels` it has in each mask.

    A class that neither has leaves all four undefined (`both_empty`). One that only one of them has scores
    0, and has no distance (`one_empty`), so that whoever averages distances sees that one is missing.
    """
    total = voxels["target"] + voxels["prediction"]
    if not total:
        hd95 = nsd = _undefined("both_empty")
    elif not (voxels["target"] and voxels["prediction"]):
        hd95, nsd = _undefined("one_empty"), _defined(0.0)
    else:
        hd95, nsd = (_defined(value) for value in _surface_metrics(prediction, target, spacing))
    return {
        "index": index,
        "name": name,
        "iou": _ratio(overlap, total - overlap, "both_empty"),
        "dice": _ratio(2 * overlap, total, "both_empty"),
        "hd95_mm": hd95,
        "nsd": {**nsd, "tolerance_mm": NSD_TOLERANCE_MM},
        "voxels": voxels,
    }


def _surface_metrics(prediction: Mask, target: Mask, spacing: Sequence[float]) -> tuple[float, float]:
    """HD95 in mm and normalised surface Dice of two masks (I, J, K), neither of them empty.

    HD95 is the larger of the two directed 95th percentiles of the distances between boundary voxels. NSD is
    the share of both surfaces, weighed by area, within the tolerance of the other (Nikolov et al. 2018).
    """
    import warnings

    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    box = _bounding_box(prediction | target)
    a, b, mm = prediction[box], target[box], [float(size) for size in spacing]
    # In a single slice every voxel touches the outside of the volume: a boundary exists only in the plane.
    flat = [axis for axis in range(3) if prediction.shape[axis] == 1]
    if flat:
        axis = max(flat, key=lambda axis: mm[axis])
        a, b = a.squeeze(axis), b.squeeze(axis)
        del mm[axis]
    one, other = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (a, b))
    with warnings.catch_warnings():
        # MONAI 1.5 and 1.6 call their own functions with an argument that they have deprecated.
        warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
        hd95 = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=mm)
        nsd = compute_surface_dice(
            one, other, [NSD_TOLERANCE_MM], include_background=True, spacing=mm, use_subvoxels=True
        )
    return float(hd95), float(nsd)


def _how_distances_are_measured(spacing: Sequence[float]) -> dict[str, Any]:
    """Tools disagree by millimetres on the same masks, so the variant and the tool are named."""
    from importlib.metadata import version

    return {
        "tool": f"monai {version('monai')}",
        "hd95": "larger of the two directed 95th percentiles, between boundary voxels",
        "nsd": f"area-weighted surface within {NSD_TOLERANCE_MM:g} mm",
        "spacing_mm": [float(mm) for mm in spacing],
    }


def _components(changed: Mask, right: Mask, spacing: Sequence[float]) -> dict[str, Any]:
    """The changed region in connected pieces (corners touch), each with its own hit rate.

    Returns: `count` of all pieces, and the `largest` ones, largest first: `voxels`, `volume_mm3`, `hit_rate`.
        A small lesion that was missed disappears in the hit rate of the whole.
    """
    from scipy import ndimage

    if not changed.any():
        return {"count": 0, "largest": []}
    box = _bounding_box(changed)
    pieces, count = ndimage.label(changed[box], structure=np.ones((3, 3, 3)))
    voxels = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    hits = np.bincount(pieces[right[box]], minlength=count + 1)[1:]
    volume = prod(float(mm) for mm in spacing)
    return {
        "count": int(count),
        "largest": [
            {
                "voxels": int(voxels[n]),
                "volume_mm3": int(voxels[n]) * volume,
                "hit_rate": int(hits[n]) / int(voxels[n]),
            }
            for n in np.argsort(-voxels, kind="stable")[:LARGEST_COMPONENTS]
        ],
    }


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box around the True voxels of a mask that has some."""
    spans = []
    for axis in range(mask.ndim):
        (inside,) = np.nonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        spans.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(spans)


# --- size of a perturbation ---------------------------------------------------------------------------------


def _psnr(squares: float, voxels: int, data_range: float, region: str) -> dict[str, Any]:
    """Peak signal-to-noise ratio in dB from a sum of squared differences over a region of so many voxels."""
    if not squares:
        entry = _undefined("identical")
    elif not data_range:
        entry = _undefined("constant_image")
    else:
        entry = _defined(20 * log10(data_range) - 10 * log10(squares / voxels))
    return {**entry, "data_range": data_range, "region": region}


def _why_no_ssim(slice_shape: Sequence[int], data_range: float) -> str | None:
    if min(slice_shape) < SSIM_WINDOW:
        return "slice_smaller_than_window"
    return None if data_range else "constant_image"


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64], data_range: float, measured: Mask) -> float:
    """Structural similarity of two slices (H, W), in [-1, 1].

    The mean of the map leaves out a border of 5 pixels, where the window would leave the slice, and what is padding.
    """
    from skimage.metrics import structural_similarity

    mean, similarity = structural_similarity(
        x, y, data_range=data_range, gaussian_weights=True, sigma=SSIM_SIGMA, use_sample_covariance=False, full=True
    )
    border = (SSIM_WINDOW - 1) // 2
    kept = measured[border:-border, border:-border]
    if kept.all() or not kept.any():
        return float(mean)
    return float(similarity[border:-border, border:-border][kept].mean())


def _ssim_summary(
    values: Sequence[float], changed: Sequence[int], slices: int, data_range: float, no_ssim: str | None
) -> dict[str, Any]:
    """SSIM over slices: `mean`, `mean_changed_slices`, and the `worst` with its `slice`, as a mean hides one.

    Undefined: `slice_smaller_than_window`, `constant_image`; the last two also `identical`.

    Args:
        values: one for each changed slice; the others are exactly 1 and were not computed.
        changed: indices of the changed slices along the slice axis.
        no_ssim: why it is not defined for this scan, if so.
    """
    if values:
        lowest = int(np.argmin(values))
        of_changed = _defined(sum(values) / len(values))
        worst = {**_defined(values[lowest]), "slice": changed[lowest]}
    else:
        of_changed = _undefined(no_ssim or "identical")
        worst = {**of_changed, "slice": None}
    return {
        "mean": _undefined(no_ssim) if no_ssim else _defined((sum(values) + slices - len(values)) / slices),
        "mean_changed_slices": of_changed,
        "worst": worst,
        "data_range": data_range,
        "window": f"gaussian, sigma {SSIM_SIGMA}, {SSIM_WINDOW} x {SSIM_WINDOW}",
    }


def _low_pass_energy(delta: NDArray[np.float64]) -> float:
    """Sum of squares of a slice (H, W) after one Haar low-pass: each 2 x 2 block replaced by its mean."""
    height, width = delta.shape
    padded = np.pad(delta, ((0, height % 2), (0, width % 2)), mode="edge")
    means = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).mean(axis=(1, 3))
    spread = means.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return float(np.vdot(spread, spread))
