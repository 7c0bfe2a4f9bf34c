"""A target is a label map of the model's classes on the image's grid, or an error that says why not."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from mafl_cli.errors import GeometryError, InputError
from mafl_cli.targets import read_target
from mafl_cli.volume import read_image

SHAPE = (6, 5, 4)
AFFINE = np.diag([0.9, 0.8, 2.5, 1.0])
MASK = np.arange(120).reshape(SHAPE) % 3
NAMES = ("background", "liver", "tumour")


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def image(tmp_path):
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
def test_reads_labels_on_the_images_grid(tmp_path, image, array):
    target = read_target(save(tmp_path / "mask.nii.gz", array), image, 3, NAMES)
    np.testing.assert_array_equal(target.labels, array.reshape(SHAPE))
    assert target.labels.dtype == np.int64
    ((name, digest),) = target.files
    assert name == "mask.nii.gz"
    assert len(digest) == 64
    assert target.warnings == ()


def test_header_rounding_is_no_other_grid(tmp_path, image):
    moved = AFFINE.copy()
    moved[:3, 3] = 1e-3
    target = read_target(save(tmp_path / "mask.nii", MASK.astype(np.uint8), moved), image, 3, NAMES)
    np.testing.assert_array_equal(target.labels, MASK)


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (MASK[:, :, :3], AFFINE, r"has 6 x 5 x 4 voxels .* mask.nii has 6 x 5 x 3 voxels"),
        (MASK, np.diag([0.9, 0.8, 3, 1]), r"2.5 mm, RAS.* 0.9 x 0.8 x 3 mm, RAS"),
        (MASK, np.diag([-0.9, 0.8, 2.5, 1]), r"RAS, .* LAS, .* Resample mask.nii to the grid of scan.nii.gz"),
    ],
    ids=["shape", "spacing", "flip"],
)
def test_another_grid_is_refused(tmp_path, image, array, affine, message):
    path = save(tmp_path / "mask.nii", array.astype(np.uint8), affine)
    with pytest.raises(GeometryError, match=message):
        read_target(path, image, 3, NAMES)


@pytest.mark.parametrize(
    ("array", "num_classes", "names", "message"),
    [
        (
            MASK,
            2,
            ("background", "lesion"),
            r"label 2 \(40 voxels\); its classes are 0 background, 1 lesion: give",
        ),
        (MASK * 2, 3, NAMES, r"label 4 \(40 voxels\)"),
        (MASK * 100, 3, (), r"label 100 \(40 voxels\), 200 \(40 voxels\); its classes are 0 to 2"),
        (
            (MASK == 1) * 255,
            2,
            ("a", "b"),
            r"label 255 \(40 voxels\).* a 0/255 mask must .* replace 255 by 1",
        ),
        (np.arange(120).reshape(SHAPE), 3, NAMES, r"10 \(1 voxels\) and 109 more; its classes"),
    ],
    ids=["one", "gap", "no-names", "0-255", "many"],
)
def test_labels_the_model_cannot_draw_are_listed(tmp_path, image, array, num_classes, names, message):
    path = save(tmp_path / "mask.nii", array.astype(np.uint8))
    with pytest.raises(InputError, match=message):
        read_target(path, image, num_classes, names)


def test_probabilities_are_no_target(tmp_path, image):
    path = save(tmp_path / "mask.nii", (MASK / 2).astype(np.float32))
    with pytest.raises(InputError, match="40 of 120 voxels are not whole numbers"):
        read_target(path, image, 3, NAMES)


def test_warnings_about_the_mask_are_passed_on(tmp_path, image):
    mask = nib.Nifti1Image(MASK.astype(np.uint8), AFFINE)
    qform = AFFINE.copy()
    qform[0, 3] = 40
    mask.set_qform(qform, 1)
    nib.save(mask, tmp_path / "mask.nii")
    target = read_target(tmp_path / "mask.nii", image, 3, NAMES)
    assert target.warnings[0].startswith("mask.nii: sform and qform disagree by up to 40 mm")
