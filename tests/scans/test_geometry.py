"""One scan, stored in 48 ways, must be one scan; the grid test must forgive rounding and nothing else."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, inv_ornt_aff
from nibabel.quaternions import angle_axis2mat

from mafl_cli.errors import GeometryError, UsageError
from mafl_cli.field.layout import Layout
from mafl_cli.scans import geometry
from mafl_cli.scans.geometry import choose_slice_axis

ORIENTATIONS = [
    np.column_stack([axes, signs]) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)
]
SHAPE = (5, 4, 3)


def affine_of(spacing: Any = (1.0, 1.0, 1.0), rotation: Any = None, origin: Any = (-7.0, 11.0, 3.0)) -> Any:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def stored_as(orientation: Any, scan: Any, affine: Any) -> Any:
    """The same scan (C, I, J, K) with its array axes permuted and flipped, through nibabel."""
    turned = np.stack([apply_orientation(channel, orientation) for channel in scan])
    return turned, affine @ inv_ornt_aff(orientation, scan.shape[1:])


def scan_of(shape: Any = SHAPE, channels: int = 2, dtype: Any = np.float32) -> Any:
    return np.arange(channels * np.prod(shape)).reshape(channels, *shape).astype(dtype)


@pytest.mark.parametrize("sliced", [False, True], ids=["3d", "2d"])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 0.7, 3)], ids=["isotropic", "thick-slices"])
@pytest.mark.parametrize("angle", [0.0, 0.3], ids=["straight", "oblique"])
def test_all_48_ways_of_storing_a_scan_give_one_batch(sliced: Any, spacing: Any, angle: Any) -> None:
    scan, affine = scan_of(), affine_of(spacing, angle_axis2mat(angle, (1, 2, 3)))
    batches, spacings, names = [], [], []
    for orientation in ORIENTATIONS:
        array, turned = stored_as(orientation, scan, affine)
        axis = choose_slice_axis(turned, array.shape[1:], "auto")
        layout = Layout.for_volume(turned, orientation="RAS", slice_axis=axis.index if sliced else None)
        batches.append(layout.to_batch(array))
        spacings.append(layout.batch_spacing(turned))
        names.append(axis.name)
        np.testing.assert_array_equal(layout.from_batch(batches[-1]), array)
    assert set(names) == {"axial"}
    for batch, mm in zip(batches, spacings, strict=True):
        np.testing.assert_array_equal(batch, batches[0])
        np.testing.assert_allclose(mm, spacing[:2] if sliced else spacing)
    expected = scan.transpose(3, 0, 1, 2) if sliced else scan[None]
    np.testing.assert_array_equal(batches[0], expected)


@pytest.mark.parametrize("orientation", ["LPS", "PIR", "SAL"])
def test_a_model_orientation_agrees_with_nibabel(orientation: Any) -> None:
    scan, affine = scan_of(channels=1), affine_of((1, 2, 3))
    image = nib.Nifti1Image(scan[0], affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
    )
    expected = image.as_reoriented(turn)
    layout = Layout.for_volume(affine, orientation=orientation, slice_axis=None)
    np.testing.assert_array_equal(layout.to_batch(scan)[0, 0], np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(layout.batch_spacing(affine), expected.header.get_zooms())
    assert "".join(nib.aff2axcodes(expected.affine)) == orientation


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    ornt=st.sampled_from(ORIENTATIONS),
    wanted=st.sampled_from(["native", "RAS", "LPS", "SAR"]),
    slice_axis=st.sampled_from([None, 0, 1, 2]),
    dtype=st.sampled_from([np.uint8, ">i2", np.int64, np.float32, np.float64, bool]),
)
def test_the_way_back_undoes_the_way_there(shape: Any, ornt: Any, wanted: Any, slice_axis: Any, dtype: Any) -> None:
    array, affine = stored_as(ornt, scan_of(shape, dtype=dtype), affine_of((1, 2, 3)))
    layout = Layout.for_volume(affine, orientation=wanted, slice_axis=slice_axis)
    batch = layout.to_batch(array)
    back = layout.from_batch(batch)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == batch.dtype == array.dtype
    assert back.flags.c_contiguous
    assert batch.flags.c_contiguous
    assert len(layout.batch_spacing(affine)) == batch.ndim - 2
    if slice_axis is not None:
        assert batch.shape[:2] == (array.shape[1 + slice_axis], array.shape[0])


def test_in_plane_axes_keep_their_order_when_the_slice_axis_moves() -> None:
    scan = scan_of(channels=1)
    batch = Layout.for_volume(affine_of(), orientation="native", slice_axis=1).to_batch(scan)
    np.testing.assert_array_equal(batch[2, 0], scan[0, :, 2, :])


def test_a_batch_never_shares_memory_with_the_scan() -> None:
    scan = scan_of()
    layout = Layout.for_volume(affine_of(), orientation="native", slice_axis=None)
    batch = layout.to_batch(scan)
    assert not np.shares_memory(scan, batch)
    assert not np.shares_memory(batch, layout.from_batch(batch))


@pytest.mark.parametrize("codes", ["", "RA", "RRS", "RLS", "ras", "RASS", "XYZ"])
def test_an_orientation_must_name_each_body_axis_once(codes: Any) -> None:
    with pytest.raises(UsageError, match=r"`orientation` must be native"):
        Layout.for_volume(affine_of(), orientation=codes, slice_axis=None)


@pytest.mark.parametrize(
    ("spacing", "shape", "choice", "index", "name", "reason"),
    [
        ((1, 1, 1), (9, 9, 9), "auto", 2, "axial", "superior-inferior"),
        ((0.5, 0.5, 5), (9, 9, 9), "auto", 2, "axial", "5 mm against 0.5 mm"),
        ((1, 4, 1), (9, 9, 9), "auto", 1, "coronal", "largest spacing"),
        ((4, 1, 1), (9, 9, 9), "auto", 0, "sagittal", "largest spacing"),
        ((1, 1.05, 1), (9, 9, 9), "auto", 2, "axial", "superior-inferior"),
        ((1, 1.06, 1), (9, 9, 9), "auto", 1, "coronal", "largest spacing"),
        ((4, 4, 1), (9, 9, 9), "auto", 2, "axial", "superior-inferior"),
        ((2, 2, 1), (9, 9, 1), "auto", 2, "axial", "single slice"),
        ((1, 1, 5), (1, 9, 9), "auto", 0, "sagittal", "single slice"),
        ((1, 1, 1), (9, 9, 9), "i", 0, "sagittal", "asked"),
        ((1, 1, 1), (9, 9, 9), "j", 1, "coronal", "asked"),
        ((9, 1, 1), (9, 9, 9), "k", 2, "axial", "asked"),
        ((1, 1, 9), (9, 9, 9), "coronal", 1, "coronal", "asked"),
        ((1, 1, 9), (9, 9, 9), "sagittal", 0, "sagittal", "asked"),
    ],
)
def test_slice_axis_of_a_ras_scan(spacing: Any, shape: Any, choice: Any, index: Any, name: Any, reason: Any) -> None:
    axis = choose_slice_axis(affine_of(spacing), shape, choice)
    assert (axis.index, axis.name) == (index, name)
    assert reason in axis.reason


@pytest.mark.parametrize("choice", ["axial", "coronal", "sagittal"])
def test_a_plane_is_found_through_the_affine_not_the_array_order(choice: Any) -> None:
    normal = {"sagittal": 0, "coronal": 1, "axial": 2}[choice]
    for orientation in ORIENTATIONS:
        array, affine = stored_as(orientation, scan_of(), affine_of())
        axis = choose_slice_axis(affine, array.shape[1:], choice)
        assert axis.name == choice
        assert abs(affine[normal, axis.index]) == 1


def test_an_unknown_slice_axis_is_refused() -> None:
    with pytest.raises(UsageError, match="`slice_axis` must be auto, i, j"):
        choose_slice_axis(affine_of(), SHAPE, "z")  # type: ignore[arg-type]


def test_spacing_axcodes_and_description_of_an_oblique_left_handed_scan() -> None:
    affine = affine_of((0.5, -0.75, 3), angle_axis2mat(0.2, (0, 0, 1)))
    np.testing.assert_allclose(geometry.spacing(affine), (0.5, 0.75, 3))
    assert geometry.axcodes(affine) == "RPS"
    assert (
        geometry.describe((5, 4, 3), affine)
        == "5 x 4 x 3 voxels of 0.5 x 0.75 x 3 mm, RPS, first voxel at (-7, 11, 3) mm"
    )


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    angle=st.floats(-0.01, 0.01),
    shift=st.tuples(*[st.floats(-0.05, 0.05)] * 3),
)
def test_corner_shift_bounds_every_voxel(shape: Any, angle: Any, shift: Any) -> None:
    before = affine_of((1, 1, 2))
    after = affine_of((1, 1, 2), angle_axis2mat(angle, (1, 1, 0)), np.add((-7.0, 11.0, 3.0), shift))
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    moved = np.linalg.norm(apply_affine(before, voxels) - apply_affine(after, voxels), axis=-1).max()
    assert geometry.corner_shift(shape, before, after) == pytest.approx(moved, abs=1e-9)


@pytest.mark.parametrize(
    ("shift", "same"), [(0.0, True), (0.024, True), (0.026, False), (-0.026, False), (50.0, False)]
)
def test_same_space_tolerates_a_twentieth_of_the_smallest_spacing(shift: Any, same: Any) -> None:
    affine = affine_of((0.5, 0.5, 5))
    moved = affine_of((0.5, 0.5, 5), origin=(-7.0, 11.0 + shift, 3.0))
    assert geometry.same_space(SHAPE, affine, SHAPE, moved) is same


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7])
def test_same_space_forgives_a_quaternion_round_trip_but_no_flip(orientation: Any) -> None:
    array, affine = stored_as(orientation, scan_of((240, 230, 150), 1, np.uint8), affine_of((0.9, 0.9, 1.2)))
    oblique = np.eye(4)
    oblique[:3, :3] = angle_axis2mat(0.4, (3, 1, 2))
    affine = oblique @ affine
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape[1:])
    header.set_qform(affine, code=1)
    through_qform = header.get_qform()
    assert not np.array_equal(through_qform, affine)
    assert geometry.same_space(array.shape[1:], affine, array.shape[1:], through_qform)
    flipped = affine @ np.diag([-1, 1, 1, 1])
    assert not geometry.same_space(array.shape[1:], affine, array.shape[1:], flipped)


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((5, 4, 2), affine_of(), r"^scan.nii and mask.nii are not on the same grid: scan.nii has 5 x 4 x 3 "),
        (SHAPE, affine_of((1, 1, 2)), r"corners up to 2 mm apart: .*mask.nii has .* of 1 x 1 x 2 mm"),
        (SHAPE, np.diag([-1.0, 1, 1, 1]), r"mask.nii has .* LAS.* Resample mask.nii to the grid of scan.nii"),
    ],
    ids=["shape", "spacing", "flip"],
)
def test_different_grids_are_both_shown(shape: Any, affine: Any, message: Any) -> None:
    with pytest.raises(GeometryError, match=message):
        geometry.require_same_space("scan.nii", SHAPE, affine_of(), "mask.nii", shape, affine)


def test_equal_grids_pass() -> None:
    geometry.require_same_space("a.nii", SHAPE, affine_of(), "b.nii", SHAPE, affine_of())
