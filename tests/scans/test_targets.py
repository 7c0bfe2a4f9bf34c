"""A target is a label map of the model's classes on the image's grid, or an error that says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from mafl_cli.classes import Classes
from mafl_cli.errors import GeometryError, InputError, UsageError
from mafl_cli.scans.geometry import nearest_labels
from mafl_cli.scans.masks import Masks, read_masks
from mafl_cli.scans.nifti import read_image

SHAPE = (6, 5, 4)
AFFINE = np.diag([0.9, 0.8, 2.5, 1.0])
MASK = np.arange(120).reshape(SHAPE) % 3
NAMES = ("background", "liver", "tumour")


def save(path: Any, array: Any, affine: Any = AFFINE) -> Any:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def read(path: Any, image: Any, *, names: Any = NAMES, **how: Any) -> Any:
    return read_masks([path], image, Classes(tuple(names)), Masks(**how))


@pytest.fixture
def image(tmp_path: Path) -> Any:
    return read_image(save(tmp_path / "scan.nii.gz", np.arange(120, dtype=np.int16).reshape(SHAPE)))


@pytest.mark.parametrize(
    "array",
    [
        MASK.astype(np.uint8),
        MASK.astype(np.float32),
        MASK[..., None].astype(np.int16),
        np.zeros(SHAPE, np.uint8),
    ],
    ids=["uint8", "float32", "trailing-singleton", "nothing-left"],
)
def test_reads_labels_on_the_images_grid(tmp_path: Path, image: Any, array: Any) -> None:
    target = read(save(tmp_path / "mask.nii.gz", array), image)
    np.testing.assert_array_equal(target.labels[0], array.reshape(SHAPE))
    assert target.labels.dtype == np.int64
    (file,) = target.files
    assert file.name == "mask.nii.gz"
    assert len(file.sha256) == 64
    assert file.resampled is None
    assert target.warnings == ()


def test_header_rounding_is_no_other_grid(tmp_path: Path, image: Any) -> None:
    moved = AFFINE.copy()
    moved[:3, 3] = 1e-3
    target = read(save(tmp_path / "mask.nii", MASK.astype(np.uint8), moved), image)
    np.testing.assert_array_equal(target.labels[0], MASK)


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (MASK[:, :, :3], AFFINE, r"has 6 x 5 x 4 voxels .* mask.nii has 6 x 5 x 3 voxels"),
        (MASK, np.diag([0.9, 0.8, 3, 1]), r"2.5 mm, RAS.* 0.9 x 0.8 x 3 mm, RAS"),
        (
            MASK,
            np.diag([-0.9, 0.8, 2.5, 1]),
            r"RAS, .* LAS, .* Add `resample_target` to move mask.nii to",
        ),
    ],
    ids=["shape", "spacing", "flip"],
)
def test_another_grid_is_refused(tmp_path: Path, image: Any, array: Any, affine: Any, message: Any) -> None:
    path = save(tmp_path / "mask.nii", array.astype(np.uint8), affine)
    with pytest.raises(GeometryError, match=message):
        read(path, image)


@pytest.mark.parametrize(
    ("array", "names", "message"),
    [
        (MASK, ("background", "lesion"), r"label 2 \(40 voxels\); its classes are 0 background, 1 lesion: give"),
        (MASK * 2, NAMES, r"label 4 \(40 voxels\)"),
        ((MASK == 1) * 255, ("a", "b"), r"label 255 \(40 voxels\).* a 0/255 mask needs `label_map` 255:1"),
        (np.arange(120).reshape(SHAPE), NAMES, r"10 \(1 voxels\) and 109 more; its classes"),
    ],
    ids=["one", "gap", "0-255", "many"],
)
def test_labels_the_model_cannot_draw_are_listed(
    tmp_path: Path, image: Any, array: Any, names: Any, message: Any
) -> None:
    path = save(tmp_path / "mask.nii", array.astype(np.uint8))
    with pytest.raises(InputError, match=message):
        read(path, image, names=names)


def test_probabilities_are_no_target(tmp_path: Path, image: Any) -> None:
    path = save(tmp_path / "mask.nii", (MASK / 2).astype(np.float32))
    with pytest.raises(InputError, match="40 of 120 voxels are not whole numbers"):
        read(path, image)


def test_warnings_about_the_mask_are_passed_on(tmp_path: Path, image: Any) -> None:
    mask = nib.Nifti1Image(MASK.astype(np.uint8), AFFINE)
    qform = AFFINE.copy()
    qform[0, 3] = 40
    mask.set_qform(qform, 1)
    nib.save(mask, tmp_path / "mask.nii")
    target = read(tmp_path / "mask.nii", image)
    assert target.warnings[0].startswith("mask.nii: sform and qform disagree by up to 40 mm")


def test_a_mask_on_another_grid_is_moved_when_asked_to(tmp_path: Path, image: Any) -> None:
    coarse = np.zeros((3, 5, 4), np.uint8)
    coarse[1, 2, 1], coarse[0, 0, 0] = 1, 2
    affine = AFFINE.copy()
    affine[0, 0], affine[0, 3] = 1.8, 0.45  # Two voxels of the image in one, their centres at its quarters.
    target = read(save(tmp_path / "mask.nii", coarse, affine), image, resample=True)
    expected = np.repeat(coarse, 2, axis=0)
    np.testing.assert_array_equal(target.labels[0], expected)
    assert dict(target.files[0].resampled) == {1: (1, 2), 2: (1, 2)}
    assert target.warnings == ("mask.nii: moved to the grid of scan.nii.gz; voxels: label 1 1 -> 2, label 2 1 -> 2",)


@given(seed=st.integers(0, 10**6))
def test_moving_labels_is_what_simpleitk_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (7, 6, 5))
    here, there = (oblique(rng) for _ in range(2))
    expected = by_simpleitk(labels, here, (6, 7, 8), there)
    found = nearest_labels(labels, here, (6, 7, 8), there)
    # Places half-way between two voxels, or on the rim, may fall either way.
    assert (found != expected).mean() < 0.02


def oblique(rng: Any) -> Any:
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn * rng.uniform(0.5, 2, 3)
    affine[:3, 3] = -affine[:3, :3] @ [3, 3, 3]
    return affine


def by_simpleitk(labels: Any, affine: Any, shape: Any, onto: Any) -> Any:
    def image_at(array: Any, affine: Any) -> Any:
        lps = np.diag([-1, -1, 1, 1]) @ affine
        sizes = np.linalg.norm(lps[:3, :3], axis=0)
        image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0).astype(np.int32))
        image.SetSpacing(sizes.tolist())
        image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        return image

    reference = image_at(np.zeros(shape), onto)
    moved = SimpleITK.Resample(
        image_at(labels, affine), reference, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0
    )
    return SimpleITK.GetArrayFromImage(moved).transpose(2, 1, 0)


def test_labels_that_get_lost_are_named(tmp_path: Path, image: Any) -> None:
    fine = np.zeros((60, 5, 4), np.uint8)
    fine[1, 0, 0], fine[20:30] = 2, 1
    affine = AFFINE.copy()
    affine[0, 0] = 0.09
    target = read(save(tmp_path / "mask.nii", fine, affine), image, resample=True)
    assert target.files[0].resampled[2] == (1, 0)
    assert "label 2 is lost" in target.warnings[0]


def test_a_mask_of_another_place_is_refused(tmp_path: Path, image: Any) -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 500
    with pytest.raises(GeometryError, match=r"no labelled voxel lies inside scan.nii.gz"):
        read(save(tmp_path / "mask.nii", MASK.astype(np.uint8), moved), image, resample=True)


def test_labels_can_be_renamed(tmp_path: Path, image: Any) -> None:
    path = save(tmp_path / "mask.nii", ((MASK == 1) * 255).astype(np.uint8))
    target = read(path, image, label_map={255: 1})
    np.testing.assert_array_equal(target.labels[0], MASK == 1)
    swapped = read(save(tmp_path / "both.nii", MASK.astype(np.uint8)), image, label_map={1: 2, 2: 1})
    np.testing.assert_array_equal(swapped.labels[0], np.array([0, 2, 1])[MASK])
    with pytest.raises(UsageError, match=r"`label_map`: mask.nii does not have label 7; it has 0, 255"):
        read(path, image, label_map={7: 1})


def test_regions_are_read_the_same_way(tmp_path: Path, image: Any) -> None:
    moved = AFFINE.copy()
    moved[0, 0], moved[0, 3] = -0.9, 0.9 * 5
    path = save(tmp_path / "mask.nii", np.flip(MASK, 0).astype(np.uint8), moved)
    target = read_masks([path], image, Classes(("a", "b"), overlapping=True), Masks(resample=True))
    np.testing.assert_array_equal(target.labels, np.stack([MASK & 1, MASK >> 1]))


def test_the_same_voxels_in_another_order_are_no_other_grid(tmp_path: Path, image: Any) -> None:
    turn = np.array([[2, -1], [0, 1], [1, -1]], dtype=float)
    path = save(
        tmp_path / "mask.nii", apply_orientation(MASK, turn).astype(np.uint8), AFFINE @ inv_ornt_aff(turn, SHAPE)
    )
    target = read(path, image)
    np.testing.assert_array_equal(target.labels[0], MASK)
    assert target.files[0].resampled is None
