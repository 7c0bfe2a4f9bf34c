"""DICOM SEG in: one rule for what is inside, wherever the mask is read; and why one is not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from dicoms import AFFINE, PIXELS, labels, rewrite, shorten, turned, write_ct, write_enhanced
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from mafl_cli.case.inspection import inspect
from mafl_cli.classes import Classes
from mafl_cli.errors import InputError
from mafl_cli.scans.dicom import seg
from mafl_cli.scans.dicom.read import read_dicom
from mafl_cli.scans.formats import read_scan
from mafl_cli.scans.masks import Masks, read_masks


@pytest.fixture
def scan(tmp_path: Path) -> Any:
    write_ct(tmp_path / "ct", PIXELS, AFFINE)
    return read_dicom(tmp_path / "ct")


def made(scan: Any, pixels: Any, kind: Any, segments: int = 2, **changes: Any) -> Any:
    """A SEG by highdicom. pixels: (I, J, K) labels, or (R, I, J, K)."""
    order = np.moveaxis(pixels, (0, 1, 2, 3), (3, 2, 1, 0)) if pixels.ndim == 4 else pixels.transpose(2, 1, 0)
    described = [
        highdicom.seg.SegmentDescription(n, f"s{n}", codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
        for n in range(1, segments + 1)
    ]
    return highdicom.seg.Segmentation(
        [seg._source(dataset) for dataset in scan.datasets], np.ascontiguousarray(order), kind, described,
        generate_uid(), 1, generate_uid(), 1, "m", "m", "1", "1", **changes,
    )  # fmt: skip


def fractional(scan: Any, levels: Any, **changes: Any) -> Any:
    """levels: (R, I, J, K), in units of Maximum Fractional Value, which is 100."""
    return made(scan, levels.astype(np.float32) / 100, "FRACTIONAL", len(levels), max_fractional_value=100, **changes)


def everywhere(path: Any, scan: Any) -> Any:
    """The labels of a mask on the scan's grid, read in every way: as a target, and as a mask on a grid of its own."""
    on_scan, _, _ = Masks().read(path, scan)
    own = seg.read_seg(path)
    counts = {int(n): int(count) for n, count in zip(*np.unique(own.labels, return_counts=True), strict=True)}
    assert inspect(path)["labels"] == counts
    # Frames on no slice of the scan: the same mask, moved.
    moved = scan.affine.copy()
    moved[2, 3] += 0.4
    again, _, _ = Masks(resample=True).read(path, type(scan)(**{**vars(scan), "affine": moved}))
    np.testing.assert_array_equal(again, on_scan)
    assert {n: c for n, c in counts.items() if n} == {
        int(n): int(c) for n, c in zip(*np.unique(on_scan[on_scan > 0], return_counts=True), strict=True)
    }
    return on_scan


@pytest.mark.parametrize("kind", ["PROBABILITY", "OCCUPANCY"])
def test_a_fraction_of_one_half_is_inside_wherever_it_is_read(scan: Any, tmp_path: Path, kind: Any) -> None:
    levels = np.zeros((1, *scan.shape))
    levels[0, 1:6, 3, 3] = [1, 49, 50, 51, 100]
    fractional(scan, levels, fractional_type=kind).save_as(tmp_path / "mask.dcm")
    found = everywhere(tmp_path / "mask.dcm", scan)
    assert found[1:6, 3, 3].tolist() == [0, 0, 1, 1, 1]
    assert found.sum() == 3
    assert seg.read_seg(tmp_path / "mask.dcm").warnings == (
        "mask.dcm: holds fractions; a voxel is inside a segment at one half and above.",
    )
    facts = inspect(tmp_path / "mask.dcm")
    assert (facts["segmentation"], facts["inside_from"]) == (f"fractional, {kind.lower()}", 0.5)
    # An odd maximum has no half: 128 of 255 is inside, 127 is not.
    odd = pydicom.dcmread(tmp_path / "mask.dcm")
    odd.MaximumFractionalValue = 101
    odd.save_as(tmp_path / "odd.dcm")
    assert everywhere(tmp_path / "odd.dcm", scan)[1:6, 3, 3].tolist() == [0, 0, 0, 1, 1]


def test_what_is_half_one_segment_and_half_another_is_no_overlap(scan: Any, tmp_path: Path) -> None:
    levels = np.zeros((2, *scan.shape))
    levels[0, 2, 3, 3], levels[1, 2, 3, 3] = 50, 50
    levels[0, 3, 3, 3], levels[1, 3, 3, 3] = 40, 60
    fractional(scan, levels).save_as(tmp_path / "mask.dcm")
    assert everywhere(tmp_path / "mask.dcm", scan)[2:4, 3, 3].tolist() == [1, 2]
    target = read_masks([tmp_path / "mask.dcm"], scan, Classes(("a", "b"), overlapping=True), Masks())
    assert target.labels[:, 2:4, 3, 3].tolist() == [[1, 0], [1, 1]]
    levels[0, 2, 3, 3] = 51
    fractional(scan, levels).save_as(tmp_path / "overlap.dcm")
    with pytest.raises(InputError, match="its segments overlap"):
        seg.read_seg(tmp_path / "overlap.dcm")


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_masks_have_the_labels_and_places_that_highdicom_gives_them(scan: Any, tmp_path: Path, kind: Any) -> None:
    made(scan, labels().astype(np.uint8), kind).save_as(tmp_path / "mask.dcm")
    found = seg.read_seg(tmp_path / "mask.dcm")
    whole = highdicom.seg.segread(tmp_path / "mask.dcm").get_volume(combine_segments=True, relabel=False)
    step = np.linalg.inv(found.affine) @ np.diag([-1, -1, 1, 1]) @ whole.affine
    for index, label in np.ndenumerate(whole.array):
        i, j, k = np.rint(step @ [*index, 1]).astype(int)[:3]
        assert found.labels[i, j, k] == label
    assert found.labels.size == whole.array.size
    np.testing.assert_array_equal(everywhere(tmp_path / "mask.dcm", scan), labels())


@pytest.mark.parametrize("described", [False, True])
def test_pixel_padding_of_a_label_map_is_background(scan: Any, tmp_path: Path, described: Any) -> None:
    file = made(scan, labels().astype(np.uint8), "LABELMAP")
    pixels = file.pixel_array.copy()
    pixels[pixels == 0] = 255
    file.PixelData, file.PixelPaddingValue = pixels.astype(np.uint8).tobytes(), 255
    for item in file.SegmentSequence:
        if described and item.SegmentNumber == 0:
            item.SegmentNumber = 255
    file.save_as(tmp_path / "mask.dcm")
    np.testing.assert_array_equal(everywhere(tmp_path / "mask.dcm", scan), labels())
    assert inspect(tmp_path / "mask.dcm")["padding_value"] == 255


def test_a_mask_of_another_frame_of_reference_is_told(scan: Any, tmp_path: Path) -> None:
    file = made(scan, labels().astype(np.uint8), "BINARY")
    file.save_as(tmp_path / "mask.dcm")
    assert Masks().read(tmp_path / "mask.dcm", scan)[2] == ()
    file.FrameOfReferenceUID = generate_uid()
    file.save_as(tmp_path / "mask.dcm")
    found, _, notes = Masks().read(tmp_path / "mask.dcm", scan)
    np.testing.assert_array_equal(found, labels())
    (note,) = notes
    assert note.startswith("mask.dcm: has another frame of reference than ct: ")
    assert "1.2." not in note
    # Of a NIfTI scan nobody knows the frame of reference.
    import nibabel as nib

    nib.save(nib.Nifti1Image(PIXELS, AFFINE), tmp_path / "scan.nii.gz")
    assert Masks().read(tmp_path / "mask.dcm", read_scan(tmp_path / "scan.nii.gz"))[2] == ()


@pytest.mark.parametrize("change", ["no sources", "sources twice", "no spacing", "gaps"])
def test_what_a_mask_leaves_out_is_not_needed(scan: Any, tmp_path: Path, change: Any) -> None:
    drawn = labels()
    drawn[..., [0, 6]] = 0
    if change == "gaps":
        drawn[..., 3] = drawn[..., 5] = 0
        drawn[0, 0, 6] = 1  # Frames on slices 2, 4, 6: the header must say that they are not neighbours.
    file = made(scan, drawn.astype(np.uint8), "BINARY")
    series = file.ReferencedSeriesSequence[0]
    if change == "no sources":
        del file.ReferencedSeriesSequence
        for item in file.PerFrameFunctionalGroupsSequence:
            del item.DerivationImageSequence
    elif change == "sources twice":
        series.ReferencedInstanceSequence = [*series.ReferencedInstanceSequence, *series.ReferencedInstanceSequence]
    elif change == "no spacing":
        del file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    file.save_as(tmp_path / "mask.dcm")
    np.testing.assert_array_equal(everywhere(tmp_path / "mask.dcm", scan), drawn)


def test_frames_on_no_grid_are_refused(scan: Any, tmp_path: Path) -> None:
    file = made(scan, labels().astype(np.uint8), "BINARY")
    place = file.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    x, y, z = place.ImagePositionPatient
    place.ImagePositionPatient = [x, y, z + 0.6]
    file.save_as(tmp_path / "mask.dcm")
    with pytest.raises(InputError, match="its frames lie at uneven distances"):
        seg.read_seg(tmp_path / "mask.dcm")
    place.ImagePositionPatient = [x + 0.3, y, z]
    file.save_as(tmp_path / "mask.dcm")
    with pytest.raises(InputError, match="its frames lie on no common grid"):
        seg.read_seg(tmp_path / "mask.dcm")
    place.ImagePositionPatient = [x, y, 1e9]
    file.save_as(tmp_path / "mask.dcm")
    with pytest.raises(InputError, match=r"mask.dcm: declares .* raise `size_limit`|uneven"):
        seg.read_seg(tmp_path / "mask.dcm")


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("by", ["the same text", "all digits"])
def test_masks_lie_on_scans_whose_directions_have_few_digits(tmp_path: Path, digits: Any, by: Any) -> None:
    affine = turned(5)
    write_ct(tmp_path / "ct", PIXELS, affine)
    rewrite(tmp_path / "ct", shorten(digits))
    scan = read_dicom(tmp_path / "ct")
    masks = np.stack([labels() == 1, labels() == 2])
    assert seg.write_seg(tmp_path / "mask.dcm", scan, masks, ["a", "b"], description="x") is None
    if by == "all digits":
        file = pydicom.dcmread(tmp_path / "mask.dcm")
        axes = np.diag([-1, -1, 1]) @ (affine[:3, :2] / [0.8, 1.3])
        turn = file.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        turn.ImageOrientationPatient = [f"{v:.9f}" for v in axes.T.ravel()]
        file.save_as(tmp_path / "mask.dcm")
    found, source, _ = Masks().read(tmp_path / "mask.dcm", scan)
    np.testing.assert_array_equal(found, labels())
    assert source.resampled is None


def test_why_a_mask_is_not_written(tmp_path: Path) -> None:
    uid = generate_uid()
    (tmp_path / "halves").mkdir()
    for name, part in (("a.dcm", np.s_[:, :, :3]), ("b.dcm", np.s_[:, :, 3:])):
        shifted = AFFINE.copy()
        shifted[2, 3] += 2.5 * (3 if name == "b.dcm" else 0)
        one = write_enhanced(tmp_path / "halves" / name, PIXELS[part], shifted, slopes=[1.0] * PIXELS[part].shape[2])
        one.SeriesInstanceUID = uid
        one.save_as(tmp_path / "halves" / name)
    scan = read_dicom(tmp_path / "halves")
    np.testing.assert_array_equal(scan.stored, PIXELS)
    masks = (labels() == 1)[np.newaxis]
    why = seg.write_seg(tmp_path / "mask.dcm", scan, masks, ["a"], description="x")
    assert why == "the slices lie in 2 multi-frame files, and a SEG is only written for one, or for single slices"
    write_ct(tmp_path / "ct", PIXELS, AFFINE)
    rewrite(tmp_path / "ct", lambda dataset: delattr(dataset, "FrameOfReferenceUID"))
    why = seg.write_seg(tmp_path / "mask.dcm", read_dicom(tmp_path / "ct"), masks, ["a"], description="x")
    assert why == "the scan has no Frame of Reference UID, which a SEG must refer to"
    assert not (tmp_path / "mask.dcm").exists()
