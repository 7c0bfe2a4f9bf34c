"""What happens to scans on their way: each against an answer known in advance, or another program."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import filters

from mafl_cli.errors import UsageError
from mafl_cli.transforms import KINDS, Transform, parse

ALL = parse(["all"])


def scan(shape: tuple[int, int, int] = (31, 26, 4), seed: int = 0) -> np.ndarray:
    """Smooth, with some texture, in HU."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = np.random.default_rng(seed).normal(0, 20, shape)
    return (800 * np.exp(-3 * (grid**2).sum(axis=0)) - 400 + noise).astype(np.float32)


@pytest.mark.parametrize("transform", ALL, ids=lambda each: each.name)
def test_shape_type_and_range_stay_and_the_slice_axis_is_only_where_slices_are(transform: Transform) -> None:
    data = scan()
    changed = transform(data, 2)
    assert (changed.shape, changed.dtype) == (data.shape, np.float32)
    assert data.min() <= changed.min() <= changed.max() <= data.max()
    assert not np.array_equal(changed, data)
    turned = transform(np.ascontiguousarray(np.moveaxis(data, 2, 0)), 0)
    np.testing.assert_array_equal(np.moveaxis(turned, 0, 2), changed)
    np.testing.assert_array_equal(transform(data, 2), changed)


@pytest.mark.parametrize("transform", ALL, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "data", [np.full((9, 7, 2), 5, np.float32), scan((6, 5, 1)), scan((5, 8, 3))], ids=["flat", "thin", "odd"]
)
def test_flat_thin_and_odd_scans_come_through(transform: Transform, data: np.ndarray) -> None:
    changed = transform(data, 2)
    assert np.isfinite(changed).all()
    if data.min() == data.max():
        np.testing.assert_array_equal(changed, data)


def test_blur_is_a_gaussian_in_each_slice() -> None:
    data = scan()
    theirs = np.stack(
        [filters.gaussian(each, 1.5, mode="nearest", preserve_range=True) for each in data.transpose(2, 0, 1)], 2
    )
    np.testing.assert_allclose(Transform("blur", 1.5)(data, 2), theirs, rtol=1e-4, atol=0.05)


def test_median_is_the_middle_of_the_window() -> None:
    data = scan()
    assert Transform("median", 3)(data, 2)[7, 9, 1] == np.median(data[6:9, 8:11, 1])


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bits_leave_so_many_levels_and_no_larger_error_than_half_a_step(bits: int) -> None:
    data = scan()
    changed = Transform("bits", bits)(data, 2)
    assert len(np.unique(changed)) <= 2**bits
    step = (data.max() - data.min()) / (2**bits - 1)
    assert np.abs(changed - data).max() <= step / 2 * 1.001


@pytest.mark.parametrize(("kind", "fine", "coarse"), [("jpeg", 95, 20), ("jpeg2000", 4, 40)])
def test_compression_loses_more_the_stronger_it_is(kind: str, fine: float, coarse: float) -> None:
    data = scan((64, 64, 2))
    errors = [float(np.abs(Transform(kind, strength)(data, 2) - data).mean()) for strength in (fine, coarse)]
    assert errors[0] < 0.6 * errors[1]


def test_noise_has_its_size_and_leaves_a_blanked_background() -> None:
    data = np.zeros((80, 80, 4), np.float32)
    data[20:60, 20:60] = 500 + scan((40, 40, 4)) / 10
    changed = Transform("noise", 0.02)(data, 2)
    assert not changed[data == 0].any()
    low, high = np.percentile(data, (0.1, 99.9))
    inside = (data > 0) & (changed > data.min()) & (changed < data.max())
    assert np.std((changed - data)[inside]) == pytest.approx(0.02 * (high - low), rel=0.15)


def test_gamma_bends_and_its_inverse_bends_back() -> None:
    data = scan()
    bent = Transform("gamma", 0.8)(data, 2)
    assert (bent >= data - 1e-3).all()
    np.testing.assert_allclose(Transform("gamma", 1.25)(bent, 2), data, atol=0.01)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_what_is_predicted_on_a_moved_scan_comes_back_to_its_place(slice_axis: int) -> None:
    data = scan((14, 12, 13))
    crop = Transform("crop", 3)
    labels = (crop(data, slice_axis) > 0).astype(np.int64)
    back = crop.back(labels, slice_axis)
    inner = tuple(slice(None) if axis == slice_axis else slice(3, None) for axis in range(3))
    np.testing.assert_array_equal(back[inner], (data > 0)[inner])
    regions = crop.back(np.stack([labels, 1 - labels]), slice_axis)
    np.testing.assert_array_equal(regions[0], back)
    assert not regions[:, ~_inside(data.shape, slice_axis)].any()


def _inside(shape: tuple[int, ...], slice_axis: int) -> np.ndarray:
    inside = np.zeros(shape, bool)
    inside[tuple(slice(None) if axis == slice_axis else slice(3, None) for axis in range(3))] = True
    return inside


@pytest.mark.parametrize(("cycles", "kept"), [(4, True), (24, False)])
def test_low_pass_keeps_slow_waves_and_takes_fast_ones_away(cycles: int, kept: bool) -> None:
    """64 voxels have 32 cycles at Nyquist; a third of it are 10.7."""
    wave = np.cos(np.pi * cycles * 2 * (np.arange(64) + 0.5) / 64).astype(np.float32)
    data = np.broadcast_to(wave[:, None, None], (64, 64, 1)).copy()
    changed = Transform("lowpass", 1 / 3)(data, 2)
    assert np.abs(changed - (data if kept else 0)).max() < 0.05


def test_resampling_keeps_what_is_slow() -> None:
    data = np.broadcast_to(np.linspace(0, 100, 60, dtype=np.float32)[:, None, None], (60, 50, 2)).copy()
    changed = Transform("resample", 2)(data, 2)
    np.testing.assert_allclose(changed[4:-4], data[4:-4], atol=0.2)


def test_names_are_read_in_order_and_once() -> None:
    assert [each.name for each in parse(["jpeg:75", "blur", "blur:1.0", "jpeg:75"])] == [
        "jpeg:75", "blur:0.5", "blur:1", "blur:2",
    ]  # fmt: skip
    assert {each.kind for each in ALL} == set(KINDS)
    assert parse([]) == ()


@pytest.mark.parametrize(
    "text",
    ["", "jpg", "jpeg:", "jpeg:0", "jpeg:101", "jpeg:7.5", "blur:nan", "blur:-1", "all:3", "lowpass:2", "crop:x"],
)
def test_what_is_no_transform_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--transform .*\.$"):
        parse([text])


def test_a_crop_of_the_whole_slice_is_refused() -> None:
    with pytest.raises(UsageError, match="have 9 x 7 voxels"):
        Transform("crop", 7)(np.zeros((9, 7, 2), np.float32), 2)
