"""Every number against another program or a closed form; nothing that strict JSON would refuse."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import pywt
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import f1_score, jaccard_score

from mafl_cli.classes import Classes
from mafl_cli.errors import UsageError
from mafl_cli.measure import agreement, perturbation
from mafl_cli.system.records import plain

NAMES = ("background", "organ", "lesion")
SPACING = (0.7, 1.5, 3.0)


def boxes(shape: Any, *spans: Any) -> Any:
    """Labels with class n + 1 in the n-th box, ((i0, i1), (j0, j1), (k0, k1))."""
    labels = np.zeros(shape, dtype=np.int64)
    for n, span in enumerate(spans):
        labels[tuple(slice(*ends) for ends in span)] = n + 1
    return labels


def blobs(seed: int, shape: Any = (24, 21, 18), classes: int = 3) -> Any:
    """Smooth random labels, all classes present."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), 2.5) for _ in range(classes)]
    return np.argmax(fields, axis=0)


def agree(prediction: Any, target: Any, clean: Any = None, *, names: Any = NAMES, spacing: Any = SPACING) -> Any:
    clean = target if clean is None else clean
    return measured((prediction, target, clean), Classes(tuple(names)), spacing)


def measured(labels: Any, classes: Classes, spacing: Any = SPACING) -> Any:
    """labels: prediction, target and clean prediction; of exclusive classes the one map."""
    prediction, target, clean = (np.asarray(each).reshape(classes.maps, *each.shape[-3:]) for each in labels)
    return plain(agreement.agreement(prediction, target, clean, classes, spacing=spacing))


def measure(clean: Any, adversarial: Any, **changes: Any) -> Any:
    settings = {"unit": 1.0, "data_range": 100.0, "slice_axis": 2, "spacing": SPACING, **changes}
    return plain(perturbation.size(clean, adversarial, **settings))


# --- agreement with the target ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_simpleitk(seed: int) -> None:
    target, prediction = blobs(seed), blobs(seed + 100)
    overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(SimpleITK.GetImageFromArray(labels.astype(np.uint8)) for labels in (target, prediction)))
    result = agree(prediction, target)
    for entry in result["per_class"]:
        assert entry["iou"]["value"] == pytest.approx(overlap.GetJaccardCoefficient(entry["index"]), rel=1e-12)
        assert entry["dice"]["value"] == pytest.approx(overlap.GetDiceCoefficient(entry["index"]), rel=1e-12)
    for name in ("iou", "dice"):
        mean = np.mean([entry[name]["value"] for entry in result["per_class"]])
        assert result[f"target_{name}"]["value"] == pytest.approx(mean, rel=1e-12)


def test_rates_on_a_volume_counted_by_hand() -> None:
    clean = np.array([1, 1, 1, 0, 0, 0, 0, 2]).reshape(2, 2, 2)
    target = np.array([0, 0, 1, 1, 1, 0, 0, 0]).reshape(2, 2, 2)
    prediction = np.array([0, 1, 1, 1, 2, 1, 0, 2]).reshape(2, 2, 2)
    result = agree(prediction, target, clean)
    assert result["changed_voxels"] == 5
    assert result["hit_rate"] == {"value": 2 / 5}
    assert result["collateral"] == {"value": 1 / 3, "count": 1}
    assert result["accuracy"] == 4 / 8
    assert result["foreground_accuracy"] == {"value": 2 / 6}
    assert result["target_iou"] == {"value": 2 / 5}
    assert result["target_dice"] == {"value": 4 / 7}
    assert result["removed"] == [{"index": 2, "name": "lesion", "value": -1.0}]
    assert [entry["voxels"] for entry in result["per_class"]] == [
        {"clean": 3, "target": 3, "prediction": 4},
        {"clean": 1, "target": 0, "prediction": 2},
    ]


def test_a_perfect_attack() -> None:
    clean, target = blobs(0), blobs(1)
    result = agree(target, target, clean)
    assert result["target_iou"] == result["hit_rate"] == {"value": 1.0}
    assert result["collateral"] == {"value": 0.0, "count": 0}
    assert [entry["hd95_mm"]["value"] for entry in result["per_class"]] == [0.0, 0.0]
    assert [entry["nsd"]["value"] for entry in result["per_class"]] == [1.0, 1.0]


def test_the_clean_prediction_hits_nothing_and_damages_nothing() -> None:
    clean, target = blobs(0), blobs(1)
    result = agree(clean, target, clean)
    assert result["hit_rate"] == {"value": 0.0}
    assert result["collateral"]["count"] == 0
    assert {piece["hit_rate"] for piece in result["per_component"]["largest"]} == {0.0}


def test_two_wrong_classes_never_score_like_the_right_one() -> None:
    """Multiplying labels as masks would give IoU 2 here, and 4 for equal class-2 masks."""
    shape, box = (8, 8, 8), ((2, 5), (2, 5), (2, 5))
    ones = boxes(shape, box)
    assert agree(2 * ones, ones)["target_iou"] == {"value": 0.0}
    assert agree(2 * ones, 2 * ones)["target_iou"] == {"value": 1.0}


BOX = boxes((9, 9, 9), ((2, 6), (2, 6), (2, 6)))
EMPTY = np.zeros_like(BOX)


@pytest.mark.parametrize(
    ("prediction", "target", "dice", "hd95", "nsd"),
    [
        pytest.param(EMPTY, EMPTY, (None, "both_empty"), (None, "both_empty"), (None, "both_empty"), id="both"),
        pytest.param(EMPTY, BOX, (0.0, None), (None, "one_empty"), (0.0, None), id="prediction"),
        pytest.param(BOX, EMPTY, (0.0, None), (None, "one_empty"), (0.0, None), id="target"),
        pytest.param(BOX, BOX, (1.0, None), (0.0, None), (1.0, None), id="none"),
    ],
)
def test_empty_masks(prediction: Any, target: Any, dice: Any, hd95: Any, nsd: Any) -> None:
    (entry,) = agree(prediction, target, names=("background", "organ"))["per_class"]
    for name, expected in {"dice": dice, "iou": dice, "hd95_mm": hd95, "nsd": nsd}.items():
        assert (entry[name]["value"], entry[name].get("reason")) == expected, name
    assert entry["nsd"]["tolerance_mm"] == 1.0


def test_reasons_of_the_summary() -> None:
    nothing = agree(EMPTY, EMPTY)
    assert nothing["target_iou"] == {"value": None, "reason": "target_has_no_foreground"}
    assert nothing["target_dice"] == {"value": None, "reason": "target_has_no_foreground"}
    assert nothing["foreground_accuracy"] == {"value": None, "reason": "no_foreground"}
    assert nothing["hit_rate"] == {"value": None, "reason": "nothing_to_change"}
    everything = agree(EMPTY, EMPTY + 1, EMPTY)
    assert everything["collateral"] == {"value": None, "reason": "everything_changes", "count": 0}


@pytest.mark.parametrize(
    ("left", "value"), [(0, 1.0), (16, 0.75), (64, 0.0)], ids=["gone", "three quarters", "all there"]
)
def test_removed_class(left: Any, value: Any) -> None:
    prediction = BOX.copy()
    prediction[tuple(index[left:] for index in np.nonzero(BOX))] = 0
    assert agree(prediction, EMPTY, BOX)["removed"] == [{"index": 1, "name": "organ", "value": value}]


def test_a_class_that_nobody_had_is_not_called_removed() -> None:
    assert agree(BOX, EMPTY, EMPTY)["removed"] == []


# --- surfaces -----------------------------------------------------------------------------------------------


def hd95_by_distance_transform(a: Any, b: Any, spacing: Any) -> Any:
    """Max of the two directed 95th percentiles between boundary voxels (6 neighbours), by scipy alone."""
    edges = [mask & ~ndimage.binary_erosion(np.pad(mask, 1))[(slice(1, -1),) * mask.ndim] for mask in (a, b)]
    ways = [(edges[0], edges[1]), (edges[1], edges[0])]
    return max(np.percentile(ndimage.distance_transform_edt(~to, sampling=spacing)[of], 95) for of, to in ways)


@pytest.mark.parametrize("seed", range(4))
def test_hd95_equals_scipy_on_the_whole_volume(seed: int) -> None:
    """The crop to the union box must not change anything, at the faces of the volume least of all."""
    target, prediction = blobs(seed), blobs(seed + 50)
    for entry in agree(prediction, target)["per_class"]:
        expected = hd95_by_distance_transform(prediction == entry["index"], target == entry["index"], SPACING)
        assert entry["hd95_mm"]["value"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_distances_are_in_millimetres_of_their_own_axis(axis: Any) -> None:
    """Two plates, one voxel thick, four voxels apart."""
    near, far = np.zeros((2, 12, 12, 12), dtype=np.int64)
    near.swapaxes(0, axis)[3] = far.swapaxes(0, axis)[7] = 1
    (entry,) = agree(near, far, names=("background", "plate"))["per_class"]
    assert entry["hd95_mm"]["value"] == pytest.approx(4 * SPACING[axis], rel=1e-6)
    assert entry["nsd"]["value"] == 0.0


def test_surface_dice_of_a_shift_below_and_above_the_tolerance() -> None:
    here, there = boxes((30, 30, 30), ((5, 20),) * 3), boxes((30, 30, 30), ((6, 21), (5, 20), (5, 20)))
    values = [
        agree(here, there, names=("background", "box"), spacing=(mm, mm, mm))["per_class"][0]["nsd"]["value"]
        for mm in (0.9, 1.1)
    ]
    assert values[0] == 1.0
    # Two faces of six have moved by more than the tolerance.
    assert values[1] == pytest.approx(4 / 6, abs=0.05)


@pytest.mark.parametrize("axis", range(3))
def test_a_single_slice_is_measured_in_its_plane(axis: Any) -> None:
    """In 3-D every voxel of a flat mask is boundary, and a far-away border hides among near inner voxels."""
    shape2d = (40, 40)
    one, other = (boxes((*shape2d, 1), (*span, (0, 1)))[..., 0] for span in (((5, 30), (5, 30)), ((5, 34), (5, 30))))
    mm = [0.7, 1.5]
    flat = [np.expand_dims(labels, axis) for labels in (one, other)]
    spacing = [*mm[:axis], 9.0, *mm[axis:]]
    (entry,) = agree(*flat, names=("background", "organ"), spacing=spacing)["per_class"]
    expected = hd95_by_distance_transform(one > 0, other > 0, mm)
    assert entry["hd95_mm"]["value"] == pytest.approx(expected, rel=1e-5)
    assert 0 < entry["nsd"]["value"] < 1


def test_variant_tool_and_spacing_stand_beside_the_distances() -> None:
    described = agree(BOX, BOX)["distances"]
    assert described["tool"].startswith("monai ")
    assert described["spacing_mm"] == list(SPACING)
    assert {"hd95", "nsd"} <= described.keys()


# --- pieces of the changed region ---------------------------------------------------------------------------


def test_components_have_their_own_hit_rate_largest_first() -> None:
    shape = (20, 20, 20)
    small, large = ((1, 3), (1, 3), (1, 3)), ((8, 12), (8, 12), (8, 12))
    target = (boxes(shape, small) > 0).astype(int) | (boxes(shape, large) > 0)
    prediction = boxes(shape, large)
    pieces = agree(prediction, target, np.zeros(shape, int), spacing=(1.0, 2.0, 0.5))["per_component"]
    assert pieces == {
        "count": 2,
        "largest": [
            {"voxels": 64, "volume_mm3": 64.0, "hit_rate": 1.0},
            {"voxels": 8, "volume_mm3": 8.0, "hit_rate": 0.0},
        ],
    }


def test_voxels_that_touch_at_a_corner_are_one_component() -> None:
    target = np.zeros((4, 4, 4), int)
    target[1, 1, 1] = target[2, 2, 2] = 1
    assert agree(target, target, np.zeros_like(target))["per_component"]["count"] == 1


def test_no_more_than_twenty_components_are_listed_and_all_are_counted() -> None:
    target = np.zeros((9, 9, 9), int)
    target[::2, ::2, ::2] = 1
    pieces = agree(target, target, np.zeros_like(target))["per_component"]
    assert pieces["count"] == 125
    assert len(pieces["largest"]) == 20


# --- properties ---------------------------------------------------------------------------------------------

small_shapes = st.tuples(*[st.integers(1, 5)] * 3)
label_triples = small_shapes.flatmap(
    lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 2))] * 3)
)


@given(label_triples)
def test_agreement_is_strict_json_for_any_labels(labels: Any) -> None:
    json.dumps(agree(*labels), allow_nan=False)


@given(label_triples, st.permutations(range(3)))
def test_agreement_does_not_depend_on_how_the_axes_are_stored(labels: Any, order: Any) -> None:
    def plain(result: Any) -> Any:
        return {name: value for name, value in result.items() if name not in ("distances", "per_component")}

    turned = [array.transpose(order) for array in labels]
    spacing = [SPACING[axis] for axis in order]
    assert plain(agree(*turned, spacing=spacing)) == approximately(plain(agree(*labels)), 1e-5)


def approximately(tree: Any, rel: float = 1e-9) -> Any:
    """Equal up to the order of summation."""
    if isinstance(tree, dict):
        return {name: approximately(value, rel) for name, value in tree.items()}
    if isinstance(tree, list):
        return [approximately(value, rel) for value in tree]
    return pytest.approx(tree, rel=rel) if isinstance(tree, float) else tree


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_label_dtype_does_not_matter(dtype: Any) -> None:
    labels = [blobs(seed) for seed in range(3)]
    assert agree(*(array.astype(dtype) for array in labels)) == agree(*labels)


# --- size of the change -------------------------------------------------------------------------------------


def scans(shape: Any = (17, 20, 6), seed: int = 0, scale: float = 40.0, noise: float = 3.0) -> Any:
    """A smooth scan and the same with noise on all slices but the first, float32."""
    rng = np.random.default_rng(seed)
    clean = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) * scale * 10 - 100
    delta = rng.standard_normal(shape) * noise
    delta[:, :, 0] = 0
    return clean.astype(np.float32), (clean + delta).astype(np.float32)


def test_norms_of_a_change_known_by_hand() -> None:
    clean = np.zeros((4, 5, 6), np.float32)
    adversarial = clean.copy()
    adversarial[0, 0, 0], adversarial[1, 2, 3] = 3, -4
    result = measure(clean, adversarial, unit=2.0)
    assert result["l0"] == {"count": 2, "fraction": 2 / 120}
    assert result["l2"] == {"native": 5.0, "model": 2.5}
    assert result["linf"] == {"native": 4.0, "model": 2.0}
    assert result["mean_abs"] == {"native": 7 / 120, "model": 3.5 / 120}
    assert result["volume_mm3"] == pytest.approx(2 * np.prod(SPACING))
    assert (result["slices"], result["changed_slices"]) == (6, 2)


@pytest.mark.parametrize("data_range", [100.0, 4000.0])
def test_psnr_equals_scikit_image(data_range: Any) -> None:
    clean, adversarial = scans()
    result = measure(clean, adversarial, data_range=data_range)
    both = clean.astype(float), adversarial.astype(float)
    changed = [array[:, :, 1:] for array in both]
    for name, region, pair in (
        ("psnr_db", "volume", both),
        ("psnr_changed_slices_db", "changed_slices", changed),
    ):
        expected = peak_signal_noise_ratio(*pair, data_range=data_range)
        assert result[name] == {
            "value": pytest.approx(expected, abs=1e-9),
            "data_range": data_range,
            "region": region,
        }


@pytest.mark.parametrize("axis", range(3))
def test_ssim_is_that_of_the_slices(axis: Any) -> None:
    clean, adversarial = scans((17, 20, 14))
    adversarial = adversarial.copy()
    adversarial.swapaxes(0, axis)[4] += np.random.default_rng(5).standard_normal(1) * 30
    adversarial.swapaxes(0, axis)[4, 3:9, 3:9] *= -1
    result = measure(clean, adversarial, slice_axis=axis)["ssim"]
    pairs = zip(np.moveaxis(clean, axis, 0), np.moveaxis(adversarial, axis, 0), strict=True)
    expected = [ssim_by_formula(x.astype(float), y.astype(float), 100.0) for x, y in pairs]
    changed = [value for value in expected if value < 1]
    assert result["mean"]["value"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert result["mean_changed_slices"]["value"] == pytest.approx(np.mean(changed), abs=1e-9)
    assert result["worst"] == {"value": pytest.approx(min(expected), abs=1e-9), "slice": 4}
    assert result["data_range"] == 100.0


def ssim_by_formula(x: Any, y: Any, data_range: Any) -> Any:
    """Wang et al. 2004, equation 13, with a Gaussian of sigma 1.5 cut at 5 pixels; inner pixels only."""

    def blur(image: Any) -> Any:
        return ndimage.gaussian_filter(image, 1.5, radius=5)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    ssim = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return ssim[5:-5, 5:-5].mean()


def test_unchanged_slices_count_as_one() -> None:
    clean, adversarial = scans((17, 20, 6))
    result = measure(clean, adversarial)["ssim"]
    changed = [
        structural_similarity(
            clean[:, :, k].astype(float),
            adversarial[:, :, k].astype(float),
            data_range=100.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for k in range(1, 6)
    ]
    assert result["mean"]["value"] == pytest.approx((1 + sum(changed)) / 6, abs=1e-12)


def test_identical_scans() -> None:
    clean, _ = scans()
    result = measure(clean, clean.copy())
    for name in ("psnr_db", "psnr_changed_slices_db", "low_frequency_share"):
        assert (result[name]["value"], result[name]["reason"]) == (None, "identical")
    assert result["ssim"]["mean"] == {"value": 1.0}
    assert result["ssim"]["worst"] == {"value": None, "reason": "identical", "slice": None}
    assert result["l2"] == {"native": 0.0, "model": 0.0}


@pytest.mark.parametrize("shape", [(10, 30, 4), (30, 1, 4)])
def test_slices_smaller_than_the_window_have_no_ssim(shape: Any) -> None:
    clean, adversarial = scans(shape)
    result = measure(clean, adversarial)
    nothing = {"value": None, "reason": "slice_smaller_than_window"}
    assert result["ssim"]["mean"] == result["ssim"]["mean_changed_slices"] == nothing
    assert result["ssim"]["worst"] == {**nothing, "slice": None}
    assert result["psnr_db"]["value"] > 0


def test_a_constant_scan_has_no_range() -> None:
    clean = np.full((12, 12, 3), 7.0, np.float32)
    result = measure(clean, clean + 1, data_range=None)
    assert result["psnr_db"]["reason"] == result["ssim"]["mean"]["reason"] == "constant_image"
    assert result["data_range"]["value"] == 0.0


@pytest.mark.parametrize("data_range", [0.0, -1.0, float("nan"), float("inf")])
def test_a_useless_data_range_is_refused(data_range: Any) -> None:
    with pytest.raises(UsageError, match="data range"):
        measure(*scans(), data_range=data_range)


def test_default_range_forgets_a_few_hot_voxels() -> None:
    clean = np.linspace(0, 1000, 100_000).reshape(100, 100, 10)
    clean[0, 0, :5] = 30_000
    found = plain(perturbation.default_data_range(clean))
    assert found["value"] == pytest.approx(998, abs=0.1)
    assert "p99.9" in found["rule"]


def test_default_range_of_a_nearly_empty_scan() -> None:
    clean = np.zeros((30, 30, 30), np.float32)
    clean[3, 3, 3] = 12
    assert plain(perturbation.default_data_range(clean)) == {"value": 12.0, "rule": "max - min of the clean scan"}


def test_no_data_range_means_the_default_and_says_so() -> None:
    clean, adversarial = scans()
    default = plain(perturbation.default_data_range(clean))
    result = measure(clean, adversarial, data_range=None)
    assert result["data_range"] == default
    assert result == {**measure(clean, adversarial, data_range=default["value"]), "data_range": default}


# --- only what changed is looked at -------------------------------------------------------------------------


def slowly(clean: Any, adversarial: Any, *, slice_axis: Any, padding: Any, data_range: Any) -> Any:
    """The same numbers from whole slices, none left out."""
    measured = np.ones(clean.shape, bool) if padding is None else ~padding
    delta = adversarial.astype(np.float64) - clean
    sliced = [np.moveaxis(array, slice_axis, 0) for array in (clean, adversarial, measured)]
    changed, similar, low = [], [], 0.0
    for index, (x, y, inside) in enumerate(zip(*sliced, strict=True)):
        x, y = x.astype(np.float64), y.astype(np.float64)
        if np.array_equal(x, y):
            continue
        changed.append(index)
        padded = np.pad(y - x, [(0, n % 2) for n in x.shape], mode="edge")
        means = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).mean(axis=(1, 3))
        low += (means.repeat(2, axis=0).repeat(2, axis=1)[: x.shape[0], : x.shape[1]] ** 2).sum()
        if min(x.shape) < 11:
            continue
        _, values = structural_similarity(
            x, y, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        values, kept = values[5:-5, 5:-5], inside[5:-5, 5:-5]
        similar.append(values[kept].mean() if kept.any() else values.mean())
    squares, voxels = (delta**2).sum(), np.count_nonzero(measured)
    of_changed = np.count_nonzero(sliced[2][changed])
    return {
        "count": np.count_nonzero(delta),
        "changed": len(changed),
        "l2": np.sqrt(squares),
        "linf": np.abs(delta).max(),
        "mean_abs": np.abs(delta).sum() / voxels,
        "psnr": 10 * np.log10(data_range**2 / (squares / voxels)) if squares else None,
        "psnr_changed": 10 * np.log10(data_range**2 / (squares / of_changed)) if squares and of_changed else None,
        "ssim": (sum(similar) + clean.shape[slice_axis] - len(similar)) / clean.shape[slice_axis],
        "worst": min(similar, default=None),
        "worst_slice": changed[int(np.argmin(similar))] if similar else None,
        "low": low / squares if squares else None,
    }


@settings(max_examples=80)
@given(
    st.tuples(*[st.integers(2, 34)] * 2, st.integers(1, 4)),
    st.permutations(range(3)),
    st.sampled_from(["one voxel", "box", "two corners", "everything", "nothing"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_where_nothing_changed_nothing_is_missed(
    shape: Any, order: Any, kind: Any, with_padding: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    clean = rng.normal(0, 100, shape).astype(np.float32)
    padding = rng.random(shape) < 0.3 if with_padding else None
    adversarial = clean.copy()
    index = tuple(int(rng.integers(n)) for n in shape)
    if kind == "one voxel":
        adversarial[index] += 7
    elif kind == "box":
        part = tuple(slice(n, n + 5) for n in index)
        adversarial[part] += rng.normal(0, 9, adversarial[part].shape).astype(np.float32)
    elif kind == "two corners":
        adversarial[0, 0, 0] += 5
        adversarial[-1, -1, -1] -= 5
    elif kind == "everything":
        adversarial += rng.normal(0, 9, shape).astype(np.float32)
    if padding is not None:
        padding[index] = False
        adversarial[padding] = clean[padding]
    clean, adversarial, padding = (
        None if array is None else np.ascontiguousarray(array.transpose(order))
        for array in (clean, adversarial, padding)
    )
    axis = order.index(2)
    found = measure(clean, adversarial, slice_axis=axis, padding=padding)
    slow = slowly(clean, adversarial, slice_axis=axis, padding=padding, data_range=100.0)
    ssim = found["ssim"]
    for value, expected in (
        (found["l0"]["count"], slow["count"]),
        (found["changed_slices"], slow["changed"]),
        (found["l2"]["native"], slow["l2"]),
        (found["linf"]["native"], slow["linf"]),
        (found["mean_abs"]["native"], slow["mean_abs"]),
        (found["psnr_db"]["value"], slow["psnr"]),
        (found["psnr_changed_slices_db"]["value"], slow["psnr_changed"]),
        (found["low_frequency_share"]["value"], slow["low"]),
        (ssim["worst"]["value"], slow["worst"]),
    ):
        assert value == (None if expected is None else pytest.approx(expected, rel=1e-11, abs=1e-12))
    if min(np.delete(clean.shape, axis)) >= 11:
        assert ssim["mean"]["value"] == pytest.approx(slow["ssim"], rel=1e-12)
        assert ssim["worst"]["slice"] == slow["worst_slice"]


# --- low frequencies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(16, 12, 5), (15, 12, 5), (15, 13, 4), (11, 1, 3)], ids=["even", "odd", "both odd", "a line"]
)
@pytest.mark.parametrize("axis", range(3))
def test_low_frequency_share_equals_pywavelets(shape: Any, axis: Any) -> None:
    rng = np.random.default_rng(1)
    delta = np.moveaxis(rng.standard_normal(shape), 2, axis)
    kept = 0.0
    for image in np.moveaxis(delta, axis, 0):
        padded = np.pad(image, [(0, n % 2) for n in image.shape], mode="edge")
        low, _ = pywt.dwt2(padded, "haar")
        kept += (pywt.idwt2((low, (None,) * 3), "haar")[tuple(slice(n) for n in image.shape)] ** 2).sum()
    found = measure(np.zeros_like(delta), delta, slice_axis=axis)["low_frequency_share"]["value"]
    assert found == pytest.approx(kept / (delta**2).sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("pattern", "share"), [(1, 1.0), ((-1) ** np.arange(12), 0.0)], ids=["constant", "checkerboard"]
)
def test_low_frequency_share_of_the_extremes(pattern: Any, share: Any) -> None:
    delta = np.ones((12, 12, 2)) * np.reshape(pattern, (-1, 1, 1)) * np.reshape(pattern, (1, -1, 1))
    assert measure(np.zeros_like(delta), delta)["low_frequency_share"]["value"] == share


# --- many predictions of one scan ---------------------------------------------------------------------------


def reached_by(prediction: Any, target: Any, clean: Any, count: int, *, overlapping: bool = False) -> Any:
    classes = Classes(tuple(str(n) for n in range(count)), overlapping)
    prediction, target, clean = (each.reshape(classes.maps, *each.shape[-3:]) for each in (prediction, target, clean))
    return plain(agreement.quick_agreement(prediction, target, clean, classes))


class_maps = st.tuples(st.integers(1, 3), st.integers(2, 4)).flatmap(
    lambda sizes: st.tuples(
        st.just(sizes[1]), *[arrays(np.int64, (3, 4, sizes[0]), elements=st.integers(0, sizes[1] - 1))] * 3
    )
)
region_maps = st.integers(1, 3).flatmap(
    lambda regions: st.tuples(st.just(regions), *[arrays(np.int64, (regions, 3, 4, 2), elements=st.integers(0, 1))] * 3)
)


@settings(max_examples=40)
@given(class_maps.map(lambda made: (*made, False)) | region_maps.map(lambda made: (*made, True)))
def test_reach_equals_agreement(made: Any) -> None:
    classes, prediction, target, clean, overlapping = made
    kinds = Classes(tuple(str(n) for n in range(classes)), overlapping)
    found = reached_by(prediction, target, clean, classes, overlapping=overlapping)
    whole = measured((prediction, target, clean), kinds)
    kept = measured((prediction, clean, clean), kinds)["target_dice"]
    assert found["target_iou"] == approximately(whole["target_iou"])
    assert found["hit_rate"] == approximately(whole["hit_rate"])
    assert found["dice_with_clean"]["value"] == approximately(kept["value"])
    back = measured((prediction, clean, target), kinds)["hit_rate"]
    assert found["restored"] == approximately(back)
    json.dumps(found, allow_nan=False)


def test_reach_of_a_volume_counted_by_hand() -> None:
    clean = np.array([1, 1, 1, 0, 0, 0, 0, 2]).reshape(2, 2, 2)
    target = np.array([0, 0, 1, 1, 1, 0, 0, 0]).reshape(2, 2, 2)
    prediction = np.array([0, 1, 1, 1, 2, 1, 0, 2]).reshape(2, 2, 2)
    assert reached_by(prediction, target, clean, 3) == {
        "target_iou": {"value": 2 / 5},
        "hit_rate": {"value": 2 / 5},
        "restored": {"value": 2 / 5},
        "dice_with_clean": {"value": (4 / 7 + 2 / 3) / 2},
    }


def test_reach_of_overlapping_regions_counts_a_voxel_once_for_each() -> None:
    clean, target, prediction = (
        np.array(regions).reshape(2, 4, 1, 1)
        for regions in ([[1, 1, 0, 0], [1, 0, 0, 0]], [[1, 1, 1, 1], [0, 0, 0, 0]], [[1, 1, 1, 0], [1, 1, 0, 0]])
    )
    assert reached_by(prediction, target, clean, 2, overlapping=True) == {
        "target_iou": {"value": 3 / 4},
        "hit_rate": {"value": 1 / 3},
        "restored": {"value": 2 / 3},
        "dice_with_clean": {"value": (4 / 5 + 2 / 3) / 2},
    }


def test_reach_says_why_it_knows_nothing() -> None:
    nothing = {"value": None, "reason": "nothing_to_change"}
    assert reached_by(EMPTY, EMPTY, EMPTY, 2) == {
        "target_iou": {"value": None, "reason": "target_has_no_foreground"},
        "hit_rate": nothing,
        "restored": nothing,
        "dice_with_clean": {"value": None, "reason": "clean_has_no_foreground"},
    }


# --- properties of size -------------------------------------------------------------------------------------

values = st.floats(-1e4, 1e4, width=32)
image_pairs = st.tuples(st.integers(1, 13), st.integers(1, 13), st.integers(1, 3)).flatmap(
    lambda shape: st.tuples(*[arrays(np.float32, shape, elements=values)] * 2)
)


@given(image_pairs, st.integers(0, 2), st.none() | st.floats(1e-3, 1e4))
def test_size_is_strict_json_for_any_scan(pair: Any, axis: Any, data_range: Any) -> None:
    result = measure(*pair, slice_axis=axis, data_range=data_range)
    json.dumps(result, allow_nan=False)
    share = result["low_frequency_share"]["value"]
    assert share is None or -1e-9 <= share <= 1 + 1e-9


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_size_does_not_depend_on_how_the_axes_are_stored(order: Any) -> None:
    clean, adversarial = scans()
    turned = measure(
        clean.transpose(order),
        adversarial.transpose(order),
        slice_axis=order.index(2),
        spacing=[SPACING[axis] for axis in order],
    )
    assert turned == approximately(measure(clean, adversarial))


def test_integer_scans_are_not_subtracted_as_integers() -> None:
    """In uint8, 0 - 1 is 255."""
    clean = np.full((12, 12, 2), 1, np.uint8)
    assert measure(clean, clean - 1)["linf"]["native"] == 1.0


def test_padding_is_no_part_of_any_mean_or_range() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(24, 20, 5)).astype(np.float32)
    after = clean.copy()
    after[4:9, 3:12, 1:3] += 0.1
    how: Any = {"unit": 2.0, "data_range": None, "slice_axis": 2, "spacing": (1, 1, 2)}
    alone = plain(perturbation.size(clean, after, **how))
    wide, changed = (np.concatenate([np.full((9, 20, 5), -2000, np.float32), array]) for array in (clean, after))
    padding = wide == -2000
    found = plain(perturbation.size(wide, changed, padding=padding, **how))
    for name in ("l0", "l2", "linf", "mean_abs", "data_range", "psnr_db", "psnr_changed_slices_db", "volume_mm3"):
        assert found[name] == pytest.approx(alone[name]), name
    ignored = plain(perturbation.size(wide, changed, **how))
    assert ignored["psnr_db"]["value"] > found["psnr_db"]["value"] + 20
    assert found["ssim"]["worst"]["value"] < ignored["ssim"]["worst"]["value"]


# --- other programs, on masks of every kind ------------------------------------------------------------------


def _masks(kind: Any) -> Any:
    """(prediction, target) of one class, (16, 14, 12)."""
    empty, full = np.zeros((16, 14, 12), int), np.ones((16, 14, 12), int)
    dot, blob, other = empty.copy(), blobs(3, empty.shape, 2), blobs(4, empty.shape, 2)
    dot[7, 6, 5] = 1
    return {
        "random": (blob, other),
        "the same": (blob, blob),
        "one voxel": (dot, np.roll(dot, 3, axis=2)),
        "voxel and blob": (dot, blob),
        "full": (full, blob),
        "both full": (full, full),
        "nothing drawn": (empty, blob),
        "nothing wanted": (blob, empty),
        "both empty": (empty, empty),
    }[kind]


KINDS = (
    "random", "the same", "one voxel", "voxel and blob", "full", "both full", "nothing drawn", "nothing wanted",
    "both empty",
)  # fmt: skip
SPACINGS = ((1.0, 1.0, 1.0), (0.5, 0.5, 5.0), (2.0, 0.7, 1.3))


@pytest.mark.parametrize("kind", KINDS)
def test_overlap_equals_scikit_learn(kind: Any) -> None:
    prediction, target = _masks(kind)
    (entry,) = agree(prediction, target, names=("background", "organ"))["per_class"]
    pairs = {"iou": jaccard_score, "dice": f1_score}
    for name, theirs in pairs.items():
        if kind == "both empty":
            assert entry[name] == {"value": None, "reason": "both_empty"}
        else:
            assert entry[name]["value"] == pytest.approx(theirs(target.ravel(), prediction.ravel()))


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:UserWarning")
@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_distances_equal_monai_on_the_whole_volume(kind: Any, spacing: Any) -> None:
    prediction, target = _masks(kind)
    (entry,) = agree(prediction, target, names=("background", "organ"), spacing=spacing)["per_class"]
    if kind in ("nothing drawn", "nothing wanted", "both empty"):
        both = kind == "both empty"
        assert entry["hd95_mm"] == {"value": None, "reason": "both_empty" if both else "one_empty"}
        assert entry["nsd"]["value"] == (None if both else 0.0)
        return
    one, other = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, target))
    hd95 = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(one, other, [1.0], include_background=True, spacing=spacing, use_subvoxels=True)
    assert entry["hd95_mm"]["value"] == pytest.approx(float(hd95))
    assert entry["nsd"]["value"] == pytest.approx(float(nsd))


@given(label_triples)
def test_the_short_form_says_what_the_long_one_does(labels: Any) -> None:
    prediction, target, clean = (each.astype(int) for each in labels)
    short = reached_by(prediction, target, clean, 3)
    long = agree(prediction, target, clean)
    assert short["target_iou"] == long["target_iou"]
    assert short["hit_rate"] == long["hit_rate"]
    kept = agree(prediction, clean)["target_dice"]
    assert short["dice_with_clean"]["value"] == kept["value"]


@given(small_shapes.flatmap(lambda shape: st.tuples(*[arrays(np.uint8, (2, *shape), elements=st.integers(0, 1))] * 3)))
def test_the_short_form_of_regions_too(regions: Any) -> None:
    prediction, target, clean = (each.astype(int) for each in regions)
    short = reached_by(prediction, target, clean, 2, overlapping=True)
    long = measured((prediction, target, clean), Classes(("a", "b"), overlapping=True))
    for key in ("target_iou", "hit_rate"):
        assert short[key]["value"] == long[key]["value"]
