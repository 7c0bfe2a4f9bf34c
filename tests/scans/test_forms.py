"""A header can say in three ways where its voxels are: files that only differ in that are told apart from two grids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicoms import write_ct
from nibabel.quaternions import angle_axis2mat

from mafl_cli.errors import GeometryError
from mafl_cli.judging.pairs import of_files
from mafl_cli.scans.dicom.read import read_dicom
from mafl_cli.scans.forms import require_same_grid
from mafl_cli.scans.masks import Masks
from mafl_cli.scans.nifti import read_image

SHAPE = (6, 5, 4)
HERE = np.array([[1.0, 0, 0, -20], [0, 1, 0, 33], [0, 0, 2, -8], [0, 0, 0, 1]])
TURNED = HERE.copy()
TURNED[:3, :3] = angle_axis2mat(0.2, (0, 0, 1)) @ HERE[:3, :3]
FLIPPED = np.array([[-1.0, 0, 0, -15], [0, 1, 0, 33], [0, 0, 2, -8], [0, 0, 0, 1]])
ORIGIN = np.diag([1.0, 1, 2, 1])


def save(path: Path, sform: np.ndarray | None, qform: np.ndarray | None, dtype: str = "i2") -> Path:
    """None: a code of 0, and the fields as nibabel leaves them."""
    image = nib.Nifti1Image(np.arange(120, dtype=dtype).reshape(SHAPE) % 2, np.eye(4))
    image.header.set_zooms((1, 1, 2))
    image.set_sform(sform, 0 if sform is None else 1)
    image.set_qform(qform, 0 if qform is None else 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("scan", "mask", "said"),
    [
        (
            (HERE, TURNED),
            (TURNED, TURNED),
            "mask.nii lies where the qform of scan.nii would place it, up to 1.28 mm away from its sform, which mafl "
            "uses: if it was made on scan.nii, give mask.nii the geometry of scan.nii (as FSL's fslcpgeom does), or "
            "correct the sform if that is the wrong one. The voxels are the same then, and must not be resampled.",
        ),
        ((HERE, TURNED), (TURNED, None), "mask.nii lies where the qform of scan.nii would place it"),
        ((HERE, TURNED), (None, TURNED), "mask.nii lies where the qform of scan.nii would place it"),
        ((HERE, FLIPPED), (FLIPPED, FLIPPED), "mask.nii lies where the qform of scan.nii would place it"),
        (
            (HERE, HERE),
            (TURNED, HERE),
            "mask.nii lies on scan.nii by its qform, but up to 1.28 mm away by its sform, which mafl uses: if it was "
            "made on scan.nii, make both forms of its header agree (as FSL's fslorient does)",
        ),
        ((None, HERE), (TURNED, HERE), "mask.nii lies on scan.nii by its qform, but up to 1.28 mm away by its sform"),
        ((HERE, TURNED), (FLIPPED, TURNED), "mask.nii and scan.nii agree in the qform, but lie up to 5 mm away"),
        ((HERE, None), (ORIGIN, ORIGIN), "mask.nii lies where the qform (of code 0) of scan.nii would place it"),
        ((None, None), (ORIGIN, ORIGIN), "mask.nii lies where the qform (of code 0) of scan.nii would place it"),
        (
            (HERE, HERE),
            (None, None),
            "mask.nii has no orientation in its header (sform and qform codes are 0), so that it only seems to lie "
            "elsewhere than scan.nii: if mask.nii was made on scan.nii, give both the same geometry",
        ),
        ((None, None), (HERE, HERE), "scan.nii has no orientation in its header"),
    ],
    ids=[
        "qform of the scan", "sform alone", "qform alone", "flipped", "qform of the mask", "scan without sform",
        "qforms agree", "origin", "no codes, origin", "mask without codes", "scan without codes",
    ],
)  # fmt: skip
def test_a_mask_on_another_form_is_not_to_be_resampled(
    tmp_path: Path, scan: tuple[np.ndarray, ...], mask: tuple[np.ndarray, ...], said: str
) -> None:
    image = read_image(save(tmp_path / "scan.nii", scan[0], scan[1]))
    drawn = save(tmp_path / "mask.nii", mask[0], mask[1])
    # Neither is it moved for those who ask for it: it would only move away.
    for masks in (Masks(), Masks(resample=True), Masks(adjustable=False)):
        with pytest.raises(GeometryError) as caught:
            masks.read(drawn, image)
        assert str(caught.value).startswith(said)
        assert "Add `resample_target`" not in str(caught.value)
    with pytest.raises(GeometryError, match="must not be resampled"):
        require_same_grid(image, replace(read_image(drawn), name="other.nii"))


def test_two_grids_are_two_grids(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "scan.nii", HERE, HERE))
    for there in (TURNED, FLIPPED @ np.diag([1, 1, 1.5, 1])):
        mask = save(tmp_path / "mask.nii", there, there)
        with pytest.raises(GeometryError, match=r"are not on the same grid.*Add `resample_target`"):
            Masks().read(mask, image)
    # The sizes alone say nothing where both say more, and defaults of unused forms are alike in all files.
    mask = save(tmp_path / "mask.nii", TURNED, None)
    image = read_image(save(tmp_path / "scan.nii", HERE, None))
    with pytest.raises(GeometryError, match="are not on the same grid"):
        Masks().read(mask, image)
    assert Masks(resample=True).read(mask, image)[1].resampled


def test_the_same_voxels_in_another_order_are_still_taken(tmp_path: Path) -> None:
    centred = np.array([[1.0, 0, 0, -2.5], [0, 1, 0, -2], [0, 0, 2, -3], [0, 0, 0, 1]])
    image = read_image(save(tmp_path / "scan.nii", centred, centred))
    flipped = np.diag([-1.0, 1, 1, 1]) @ centred  # Also where the voxel sizes alone would place the scan.
    labels, source, _ = Masks().read(save(tmp_path / "mask.nii", flipped, flipped), image)
    assert source.resampled is None
    np.testing.assert_array_equal(labels, image.data[::-1])


def test_a_dicom_scan_and_a_mask_with_two_forms(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", np.arange(120, dtype="i2").reshape(SHAPE), HERE)
    scan = read_dicom(tmp_path / "ct")
    mask = save(tmp_path / "mask.nii", TURNED, scan.affine)
    with pytest.raises(GeometryError, match=r"^mask.nii lies on ct by its qform, but up to .* by its sform"):
        Masks().read(mask, scan)


def test_pairs_of_scans_are_told_too(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.nii", HERE, FLIPPED), save(tmp_path / "b.nii", FLIPPED, FLIPPED)]
    (source,) = of_files(str(files[0]), str(files[1]), str(files[0]))
    with pytest.raises(GeometryError, match=r"^b.nii lies where the qform of a.nii would place it"):
        source.read()


@pytest.mark.parametrize(("factor", "warned"), [(1.0000004, False), (1.004, True)])
@pytest.mark.parametrize("sform", [None, TURNED])
def test_a_quaternion_longer_than_1_by_rounding_is_scaled(
    tmp_path: Path, factor: float, warned: bool, sform: np.ndarray | None
) -> None:
    half_turn = np.array([[-1.0, 0, 0, 5], [0, 1, 0, 6], [0, 0, -2, 7], [0, 0, 0, 1]])
    path = save(tmp_path / "scan.nii", sform, half_turn)
    content = bytearray(path.read_bytes())
    content[260:264] = np.float32(factor).tobytes()  # quatern_c
    path.write_bytes(bytes(content))
    scan = read_image(path)
    if sform is None:
        np.testing.assert_allclose(scan.affine, half_turn, atol=1e-6)
    assert scan.forms is not None
    assert not any("corrupt" in note for note in scan.warnings)
    assert (
        "scan.nii: the quaternion of its qform is 1.004 long instead of 1; it is scaled to 1." in scan.warnings
    ) == warned
