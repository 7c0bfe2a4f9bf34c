"""Each transform against another implementation or a known answer, and what holds for all of them on any scan."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy import ndimage
from skimage.filters import gaussian

from mafl_cli.errors import UsageError
from mafl_cli.field.transforms import KINDS, Transform, parse

ALL = parse(["all"])
STILL = [each for each in ALL if each.kind != "crop"]


def name_of(value: Any) -> Any:
    return value.name if isinstance(value, Transform) else None


def scan(shape: Any = (32, 28, 4), seed: int = 0) -> Any:
    """Smooth, with some texture, around -100 to 1000."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    ball = np.exp(-3 * (grid**2).sum(axis=0))
    return (1000 * ball + 40 * np.random.default_rng(seed).random(shape) - 100).astype(np.float32)


def slices(changed: Any, axis: int = 2) -> Any:
    return np.moveaxis(changed, axis, 0)


def apply(text: Any, data: Any, axis: int = 2) -> Any:
    (transform,) = parse([text])
    return transform(data, axis)


# --- all of them, on any scan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("transform", ALL, ids=name_of)
def test_slices_are_those_of_the_slice_axis(transform: Any, axis: Any) -> None:
    data = scan((20, 17, 9))
    expected = transform(np.ascontiguousarray(np.moveaxis(data, axis, 0)), 0)
    changed = transform(data, axis)
    assert np.array_equal(slices(changed, axis), expected)
    assert (changed.shape, changed.dtype, changed.flags.c_contiguous) == (data.shape, np.float32, True)


@pytest.mark.parametrize("transform", ALL, ids=name_of)
def test_slices_know_nothing_of_each_other_but_the_range(transform: Any) -> None:
    data = scan()
    other = data.copy()
    other[..., 0] = data[::-1, ::-1, 0]
    assert np.array_equal(transform(data, 2)[..., 1:], transform(other, 2)[..., 1:])


@pytest.mark.parametrize("transform", ALL, ids=name_of)
def test_the_scan_that_was_given_is_left_as_it_was(transform: Any) -> None:
    data = scan()
    transform(data, 2)
    assert np.array_equal(data, scan())


@pytest.mark.parametrize("transform", ALL, ids=name_of)
@pytest.mark.parametrize("value", [0.0, -1000.0, 3e30, 1e-30])
def test_a_constant_scan_stays_as_it_is(transform: Any, value: Any) -> None:
    data = np.full((9, 8, 2), value, np.float32)
    assert np.array_equal(transform(data, 2), data)


@pytest.mark.parametrize("transform", STILL, ids=name_of)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 7, 3), (7, 1, 3), (2, 2, 2), (3, 5, 1), (17, 23, 1), (1, 64, 1)], ids=str
)
def test_thin_tiny_and_odd_slices_survive(transform: Any, shape: Any) -> None:
    data = scan(shape)
    for axis in range(3):
        changed = transform(data, axis)
        assert changed.shape == shape
        assert np.isfinite(changed).all()


scans = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-(2.0**100), 2.0**100, width=32))
)


@settings(max_examples=30)
@given(scans, st.integers(0, 2))
def test_no_scan_leaves_its_own_range(data: Any, axis: Any) -> None:
    for transform in STILL:
        changed = transform(data, axis)
        assert data.min() <= changed.min(), transform
        assert changed.max() <= data.max(), transform


@pytest.mark.parametrize("transform", ALL, ids=name_of)
def test_a_stronger_scale_of_units_changes_nothing_else(transform: Any) -> None:
    """HU or a thousandth of them: the same picture."""
    data = scan()
    np.testing.assert_allclose(transform(data / 1000, 2) * 1000, transform(data, 2), atol=0.05)


# --- one by one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 1, 2.5])
def test_blur_is_scikit_images(sigma: Any) -> None:
    data = scan()
    expected = [gaussian(each, sigma, mode="nearest", preserve_range=True) for each in slices(data).astype(float)]
    np.testing.assert_allclose(slices(apply(f"blur:{sigma}", data)), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("size", [3, 5])
def test_median_is_that_of_every_window(size: Any) -> None:
    data = scan((11, 9, 2))
    for before, after in zip(slices(data), slices(apply(f"median:{size}", data)), strict=True):
        windows = sliding_window_view(np.pad(before, size // 2, mode="edge"), (size, size))
        assert np.array_equal(after, np.median(windows, axis=(2, 3)))


@pytest.mark.parametrize("factor", [1.5, 2, 4])
def test_resampling_keeps_what_is_slow_and_loses_what_is_fast(factor: Any) -> None:
    i = np.arange(64)
    for period, kept in ((64, 0.8), (2.2, 0.12)):
        wave = np.broadcast_to(np.sin(2 * np.pi * i / period)[:, None, None], (64, 48, 2)).astype(np.float32)
        changed = apply(f"resample:{factor}", wave)
        share = float((changed * wave).sum() / (wave * wave).sum())
        assert share > kept if period > 10 else abs(share) < kept


def test_resampling_does_not_move_the_picture() -> None:
    data = scan((33, 26, 2))
    for axis in (0, 1):
        flipped = np.flip(apply("resample:2", np.flip(data, axis).copy()), axis)
        np.testing.assert_allclose(apply("resample:2", data), flipped, rtol=1e-4, atol=0.01)


@pytest.mark.parametrize("bits", [1, 2, 6, 8])
def test_bits_leave_that_many_values_and_an_error_of_half_a_step(bits: Any) -> None:
    data = scan((40, 40, 6))
    changed = apply(f"bits:{bits}", data)
    step = np.ptp(data.astype(float)) / (2**bits - 1)
    assert len(np.unique(changed)) <= 2**bits
    assert 0.4 * step < np.abs(changed.astype(float) - data).max() <= 0.5 * step * (1 + 1e-4)
    assert (changed.min(), changed.max()) == (data.min(), data.max())
    assert np.array_equal(apply(f"bits:{bits}", changed), changed)


def rms(one: Any, other: Any) -> Any:
    return float(np.sqrt(np.mean((one.astype(float) - other) ** 2)))


def test_jpeg_is_pillows_of_the_range_in_8_bits() -> None:
    data = scan()
    low, high = np.percentile(data.astype(float), (0.1, 99.9))
    for before, after in zip(slices(data), slices(apply("jpeg:50", data)), strict=True):
        stream = io.BytesIO()
        Image.fromarray(np.round(255 * np.clip((before - low) / (high - low), 0, 1)).astype(np.uint8)).save(
            stream, "jpeg", quality=50
        )
        expected = np.asarray(Image.open(stream), float) / 255 * (high - low) + low
        np.testing.assert_allclose(after, expected.clip(data.min(), data.max()), atol=1e-3)


def test_compression_errs_less_the_less_it_compresses() -> None:
    data = scan((64, 64, 2))
    for texts in (("jpeg:10", "jpeg:50", "jpeg:90", "jpeg:100"), ("jpeg2000:100", "jpeg2000:20", "jpeg2000:4")):
        errors = [rms(apply(text, data), data) for text in texts]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 2 * errors[-1]


def test_jpeg2000_of_16_bits_is_finer_than_8_bits_can_be() -> None:
    data = ndimage.gaussian_filter(scan((64, 64, 2)), (2, 2, 0))
    step = np.ptp(data.astype(float)) / 255
    assert rms(apply("jpeg2000:2", data), data) < 0.1 * step / np.sqrt(12)
    assert rms(apply("jpeg:100", data), data) > 0.5 * step / np.sqrt(12)


@pytest.mark.parametrize("share", [0.01, 0.03])
def test_noise_has_its_sigma_and_is_the_same_every_time(share: Any) -> None:
    data = scan((64, 64, 8))
    changed = apply(f"noise:{share}", data)
    low, high = np.percentile(data.astype(float), (0.1, 99.9))
    middle = np.abs(data - (low + high) / 2) < 0.3 * (high - low)
    noise = (changed - data)[middle]
    assert noise.std() == pytest.approx(share * (high - low), rel=0.05)
    assert abs(noise.mean()) < 0.05 * noise.std()
    assert np.array_equal(apply(f"noise:{share}", data), changed)


def test_a_background_that_was_blanked_has_no_noise() -> None:
    data = scan((32, 32, 4))
    data[:8] = -1024
    changed = apply("noise:0.03", data)
    assert (changed[:8] == -1024).all()
    assert (changed[8:] != data[8:]).mean() > 0.99
    data[:8] = scan((32, 32, 4))[:8]
    data[0, 0, 0] = -1024
    assert (apply("noise:0.03", data)[:8] != data[:8]).mean() > 0.9


@pytest.mark.parametrize("gamma", [0.5, 0.8, 1.25, 2])
def test_gamma_keeps_the_ends_and_the_order_and_is_undone_by_its_inverse(gamma: Any) -> None:
    data = scan()
    changed = apply(f"gamma:{gamma}", data)
    assert (changed.min(), changed.max()) == (data.min(), data.max())
    order = np.argsort(data, axis=None)
    assert (np.diff(changed.ravel()[order]) >= 0).all()
    assert np.sign(np.mean(changed - data)) == np.sign(1 - gamma)
    np.testing.assert_allclose(apply(f"gamma:{1 / gamma}", changed), data, atol=0.2)
    half = np.linspace(0, 1, 3, dtype=np.float32).reshape(3, 1, 1)
    assert apply(f"gamma:{gamma}", half)[1] == pytest.approx(0.5**gamma)


def test_lowpass_keeps_waves_below_its_cutoff_and_takes_those_above() -> None:
    """Cosines that a mirror continues smoothly: the only change is the gain."""
    n = 64
    for half_waves in (4, 8, 16, 24, 40, 60):
        wave = np.cos(np.pi * half_waves * (np.arange(n) + 0.5) / n)
        data = np.broadcast_to(wave[:, None, None], (n, 20, 2)).astype(np.float32)
        share = half_waves / n
        gain = float((apply("lowpass:0.25", data) * data).sum() / (data * data).sum())
        assert gain == pytest.approx(1 / np.sqrt(1 + (share / 0.25) ** 8), abs=1e-3)


def test_lowpass_is_a_gain_on_cosine_coefficients() -> None:
    """Of a mirrored picture the discrete cosine transform is the Fourier transform."""
    data = scan((21, 30, 3))
    share = np.hypot(np.arange(21)[:, None] / 21, np.arange(30)[None] / 30)
    gain = 1 / np.sqrt(1 + (share / 0.5) ** 8)
    expected = [scipy.fft.idctn(scipy.fft.dctn(each) * gain) for each in slices(data).astype(float)]
    np.testing.assert_allclose(slices(apply("lowpass:0.5", data)), np.clip(expected, data.min(), data.max()), atol=1e-2)


# --- cutting off and back -----------------------------------------------------------------------------------------


def test_crop_moves_everything_and_repeats_the_edge() -> None:
    data = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    assert apply("crop:1", data)[..., 0].tolist() == [[5, 6, 7, 7], [9, 10, 11, 11], [9, 10, 11, 11]]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("leading", [(), (2,)], ids=["classes", "regions"])
def test_a_prediction_on_the_cropped_scan_comes_back_to_its_place(axis: Any, n: Any, leading: Any) -> None:
    data = scan((12, 10, 8))
    (crop,) = parse([f"crop:{n}"])
    labels = np.broadcast_to((crop(data, axis) > 300).astype(np.int64), (*leading, *data.shape)).copy()
    before = labels.copy()
    expected = np.broadcast_to(data > 300, labels.shape).copy()
    for other in {0, 1, 2} - {axis}:
        np.moveaxis(expected, other - 3, 0)[:n] = 0
    assert np.array_equal(crop.back(labels, axis), expected)
    assert np.array_equal(labels, before)


def test_other_predictions_are_where_they_belong() -> None:
    labels = (scan() > 300).astype(np.int64)
    assert all(each.back(labels, 2) is labels for each in STILL)


@pytest.mark.parametrize("shape", [(4, 20, 3), (20, 4, 3)])
def test_more_than_a_slice_cannot_be_cut_off(shape: Any) -> None:
    assert apply("crop:3", scan(shape)).shape == shape
    with pytest.raises(UsageError, match=f"crop:4 leaves nothing of slices of {shape[0]} x {shape[1]} voxels"):
        apply("crop:4", scan(shape))


# --- what a user writes -------------------------------------------------------------------------------------------


def names(*texts: Any) -> Any:
    return [each.name for each in parse(texts)]


def test_transforms_come_once_in_the_order_they_were_asked_for() -> None:
    assert names("jpeg:75", "blur:1.0", "blur", "jpeg:75", "blur:1") == ["jpeg:75", "blur:1", "blur:0.5", "blur:2"]
    assert names() == []


def test_all_stands_for_the_usual_strengths_of_every_kind() -> None:
    assert names("all") == [f"{kind}:{strength:g}" for kind, each in KINDS.items() for strength in each.usual]
    assert names("crop:9", "all")[0] == "crop:9"
    assert names(*names("all")) == names("all")


@settings(max_examples=60)
@given(st.sampled_from(sorted(KINDS)), st.floats(0, 1))
def test_a_name_reads_back_as_the_same_transform(kind: Any, place: Any) -> None:
    low, high = KINDS[kind].low, KINDS[kind].high
    strength = low + place * (high - low)
    transform = Transform(kind, float(round(strength)) if KINDS[kind].whole else min(strength, high))
    assert parse([transform.name]) == (transform,)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_strengths_from_the_lowest_to_the_highest_are_taken(kind: Any) -> None:
    low, high = KINDS[kind].low, KINDS[kind].high
    assert [each.strength for each in parse([f"{kind}:{low}", f"{kind}:{high}"])] == [low, high]
    for wrong in (low - 0.001, -1, 0, high * 1.001, 1e9, "nan", "inf", "-inf", "", "x", "1:2", "1,2"):
        with pytest.raises(UsageError, match=f"^`transforms` '{kind}:.* must be .* from {low:g} to {high:g}\\.$"):
            parse([f"{kind}:{wrong}"])


@pytest.mark.parametrize("text", [f"{kind}:{each.low + 1.5}" for kind, each in KINDS.items() if each.whole])
def test_strengths_that_count_are_whole(text: Any) -> None:
    with pytest.raises(UsageError, match="a whole number from"):
        parse([text])


@pytest.mark.parametrize("text", ["", ":", "sharpen", "sharpen:1", "Blur:1", " blur:1", ":1"])
def test_a_transform_that_does_not_exist_is_named_beside_those_that_do(text: Any) -> None:
    with pytest.raises(UsageError, match="use all, blur, median") as caught:
        parse([text])
    assert repr(text) in str(caught.value)


def test_all_has_no_strength() -> None:
    with pytest.raises(UsageError, match=r"^`transforms` 'all:3': all takes no strength\.$"):
        parse(["all:3"])


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("blur:0.5", "blur:1"), ("median:3", "median:5"), ("resample:1.5", "resample:2"), ("bits:8", "bits:7"),
        ("jpeg:90", "jpeg:80"), ("jpeg:10", "jpeg:1"), ("jpeg2000:10", "jpeg2000:20"), ("noise:0.01", "noise:0.02"),
        ("gamma:0.8", "gamma:1.25"), ("crop:1", "crop:2"), ("lowpass:0.5", "lowpass:0.25"), ("noise:0.9", "noise:1"),
    ],
)  # fmt: skip
def test_the_next_strength_does_twice_as_much_or_the_opposite_within_what_the_kind_takes(
    name: str, further: str
) -> None:
    (transform,) = parse([name])
    assert transform.further.name == further
    assert parse([further]) == (transform.further,)
