"""DICOM that is odd: numbers stored otherwise from slice to slice, pictures that are no slices, few digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from commands import Threshold, mafl
from dicoms import array_and_affine, by_simpleitk, rewrite, shorten, turned, write_ct, write_enhanced
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from mafl_cli.errors import GeometryError, InputError
from mafl_cli.scans.dicom import write
from mafl_cli.scans.dicom.read import describe_dicom, read_dicom

AFFINE = np.array([[-0.8, 0, 0, 50], [0, -0.7, 0, 30], [0, 0, 2.5, -20], [0, 0, 0, 1]])
PIXELS = np.random.default_rng(0).integers(0, 1000, (9, 11, 6)).astype(np.int16)


@pytest.fixture
def ct(tmp_path: Path) -> Any:
    write_ct(tmp_path / "ct", PIXELS, AFFINE)
    return tmp_path / "ct"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch

    path = tmp_path_factory.mktemp("model") / "model.ts"
    torch.jit.script(Threshold(2)).save(path)
    return path


# --- bits ---------------------------------------------------------------------------------------------------------


def write_with_bits(folder: Path, values: Any, stored: Any, signed: Any) -> None:
    """Values (I, J, K), each slice stored in its own bits and sign, with something in the bits that mean nothing."""
    for k, dataset in enumerate(write_ct(folder, values.astype(np.uint16), AFFINE, shuffle=False, inter=0.0)):
        bits = values[..., k].T.astype(np.int64) & (2 ** stored[k] - 1) | (0x5A5A << stored[k])
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = stored[k], stored[k] - 1, signed[k]
        dataset.PixelData = (bits & 0xFFFF).astype("<u2").tobytes()
        dataset.RescaleSlope = 1 + k
        dataset.save_as(folder / f"IM{k:04d}", enforce_file_format=True)


@settings(max_examples=8)
@given(data=st.data())
def test_bits_and_sign_may_differ_from_slice_to_slice(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("bits")
    stored = data.draw(st.lists(st.sampled_from([10, 12, 16]), min_size=4, max_size=4))
    signed = data.draw(st.lists(st.sampled_from([0, 1]), min_size=4, max_size=4))
    low = [-(2 ** (bits - 1)) if sign else 0 for bits, sign in zip(stored, signed, strict=True)]
    high = [2 ** (bits - sign) - 1 for bits, sign in zip(stored, signed, strict=True)]
    values = np.random.default_rng(0).integers(low, np.array(high) + 1, (5, 6, 4))
    values[0, 0], values[1, 0] = low, high
    write_with_bits(folder / "ct", values, stored, signed)
    scan = read_dicom(folder / "ct")
    np.testing.assert_array_equal(scan.stored, values)
    np.testing.assert_array_equal(scan.data, values * np.arange(1, 5))
    # Far beyond what any slice holds: each goes to the end of its own bits.
    changed = scan.data.copy()
    changed[2, :3], changed[2, 3:] = 1e6, -1e6
    write.write_series(folder / "out", scan, changed, "x")
    again = read_dicom(folder / "out")
    for k, file in enumerate(sorted((folder / "out").iterdir())):
        new = pydicom.dcmread(file)
        k = new.InstanceNumber - 1
        assert (new.BitsStored, new.HighBit, new.PixelRepresentation) == (stored[k], stored[k] - 1, signed[k])
    np.testing.assert_array_equal(again.stored[2, :3], np.broadcast_to(high, (3, 4)))
    np.testing.assert_array_equal(again.stored[2, 3:], np.broadcast_to(low, (3, 4)))
    rest = np.arange(5) != 2
    np.testing.assert_array_equal(again.stored[rest], values[rest])
    np.testing.assert_array_equal(again.data, by_simpleitk_slices(folder / "out"))


def by_simpleitk_slices(folder: Path) -> Any:
    """Values (I, J, K) by GDCM, slice by slice: as a series it reads all with the first one's type."""
    slices = {}
    for file in folder.iterdir():
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(file))
        values, place = array_and_affine(reader.Execute())
        slices[place[2, 3]] = values[..., 0]
    return np.stack([slices[z] for z in sorted(slices)], axis=-1)


def test_padding_has_the_sign_of_its_slice(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 400, (5, 6, 2))
    values[0] = [-512, 512]
    write_with_bits(tmp_path / "ct", values, [10, 10], [1, 0])
    rewrite(tmp_path / "ct", lambda dataset: dataset.add_new("PixelPaddingValue", "US", 512))
    np.testing.assert_array_equal(read_dicom(tmp_path / "ct").padding, np.abs(values) == 512)


def test_an_attack_ends_within_the_bits_of_each_slice(tmp_path: Path, model: Any) -> None:
    values = np.random.default_rng(0).integers(0, 1000, (24, 20, 4))
    write_with_bits(tmp_path / "ct", values, [10, 12, 10, 16], [0, 1, 0, 1])
    rewrite(tmp_path / "ct", lambda dataset: setattr(dataset, "RescaleSlope", 1))
    result = mafl(
        "attack", tmp_path / "ct", "--target", "erase:1", "--model", model, "-o", tmp_path / "out", "--steps", 3,
        "--device", "cpu", "-q",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    out = read_dicom(tmp_path / "out" / "adversarial")
    assert out.stored_range[1].ravel().tolist() == [1023, 2047, 1023, 32767]
    assert (out.stored != values).any(axis=(0, 1)).all()
    assert (out.stored.max(axis=(0, 1)) <= [1023, 2047, 1023, 32767]).all()


@pytest.mark.parametrize("many", [False, True])
def test_numbers_in_other_bits_than_the_lowest_are_refused(ct: Any, many: Any, model: Any, tmp_path: Path) -> None:
    rewrite(ct, lambda d: (setattr(d, "BitsStored", 12), setattr(d, "HighBit", 11)))
    rewrite(ct, lambda d: setattr(d, "HighBit", 15), lambda d: many or d.InstanceNumber == 2)
    result = mafl("attack", ct, "--target", "erase:1", "--model", model, "-o", tmp_path / "out")
    assert result.exit_code == 3
    who = "instances 1, 2, 3, 4, 5, 6" if many else "instance 2"
    assert f"ct: {who}: the 12 bits of a pixel end at bit 15 (High Bit), not at bit 11" in result.output
    assert not (tmp_path / "out").exists()


def test_slices_that_differ_in_sign_alone_are_one_volume_for_simpleitk_too(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", PIXELS, AFFINE)
    rewrite(tmp_path / "ct", lambda d: setattr(d, "PixelRepresentation", 0), lambda d: d.InstanceNumber % 2)
    values, place = by_simpleitk(tmp_path / "ct")
    scan = read_dicom(tmp_path / "ct")
    np.testing.assert_array_equal(scan.data, values)
    np.testing.assert_allclose(scan.affine, place, atol=1e-6)


# --- half a volume ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [(2,), (2, 4, 6)])
def test_no_advice_leads_to_every_second_slice(ct: Any, where: Any) -> None:
    rewrite(ct, lambda d: setattr(d, "PixelSpacing", [0.9, 0.9]), lambda d: d.InstanceNumber in where)
    with pytest.raises(
        GeometryError, match=r"in pixel spacing, and lie between them, so that no stack is a volume by itself"
    ) as e:
        read_dicom(ct)
    assert "`series`" not in str(e.value)
    for series in ("1", "2") if len(where) > 1 else ("1",):
        with pytest.raises(GeometryError, match=r"each is only part of a volume|are slices missing"):
            read_dicom(ct, series=series, allow_gaps=len(where) > 1)


def test_parts_that_lie_apart_can_be_chosen(ct: Any) -> None:
    rewrite(ct, lambda d: setattr(d, "PixelSpacing", [0.9, 0.9]), lambda d: d.InstanceNumber > 3)
    with pytest.raises(GeometryError, match=r"take one stack with `series` NUMBER"):
        read_dicom(ct)
    assert read_dicom(ct, series="1").shape[2] == 3


# --- pictures that are no slices ----------------------------------------------------------------------------------


def as_picture(*kinds: Any, **changes: Any) -> Any:
    def change(dataset: Any) -> None:
        dataset.ImageType = ["DERIVED", "SECONDARY", *kinds]
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)

    return change


FLAVOURS = [
    (["LOCALIZER"], "a localizer"),
    (["OTHER", "CT_SOM5 TOP"], "a localizer"),
    (["MIP"], "a projection through a volume"),
    (["PROJECTION IMAGE"], "a projection through a volume"),
    (["MAX_IP", "M"], "a projection through a volume"),
    (["VRT"], "a rendering of a volume"),
    (["CURVED_MPR"], "a curved reformat"),
    (["SCREEN SAVE"], "a screen capture"),
    (["OTHER", "CT_SOM5 PROT"], "a protocol or dose report"),
]


@pytest.mark.parametrize(("kinds", "what"), FLAVOURS)
def test_a_picture_that_is_no_slice_is_left_aside_or_refused(ct: Any, kinds: Any, what: Any) -> None:
    rewrite(ct, as_picture(*kinds), lambda d: d.InstanceNumber == 6)
    scan = read_dicom(ct)
    assert scan.shape == (9, 11, 5)
    assert f"left aside: 1 image ({what}" in scan.warnings[0]
    assert describe_dicom(ct)["refused_as_image"] is None
    rewrite(ct, as_picture(*kinds))
    with pytest.raises(InputError, match=rf"^ct is {what}.* by its header, not slices of a volume"):
        read_dicom(ct)
    chosen = read_dicom(ct, series="1")
    assert chosen.shape == (9, 11, 6)
    assert f"is {what}" in chosen.warnings[0]


def test_reformats_and_what_was_derived_are_slices(ct: Any) -> None:
    for kinds in (["MPR"], ["AXIAL", "REFORMATTED"], ["M", "ND", "NORM"], []):
        rewrite(ct, as_picture(*kinds))
        assert read_dicom(ct).warnings == ()


def test_what_the_user_chose_comes_back_from_its_result_folder(ct: Any, tmp_path: Path, model: Any) -> None:
    rewrite(ct, as_picture("LOCALIZER", RescaleIntercept=-500))
    result = mafl(
        "attack", ct, "--target", "erase:1", "--model", model, "-o", tmp_path / "out", "--steps", 1, "--series", 1,
        "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "is a localizer" in result.output
    result = mafl("evaluate", tmp_path / "out")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("how", ["image type", "frame type", "private"])
def test_a_mosaic_is_refused(ct: Any, tmp_path: Path, how: Any) -> None:
    def tiled(dataset: Any) -> None:
        if how == "image type":
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        else:
            dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 4)

    if how == "frame type":
        made = write_enhanced(tmp_path / "one.dcm", PIXELS, AFFINE, slopes=[1.0] * 6)
        made.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "MOSAIC"]
        made.save_as(tmp_path / "one.dcm")
        places = [tmp_path / "one.dcm"]
    else:
        rewrite(ct, tiled)
        places = [ct, ct / "IM0000"]
    for place in places:
        with pytest.raises(InputError, match=r"a mosaic, one picture tiled with many slices: split it first") as e:
            read_dicom(place, series=None)
        assert len(str(e.value).splitlines()) == 1
    if how == "image type":
        write_ct(ct / "slices", PIXELS, AFFINE)
        scan = read_dicom(ct)
        assert scan.shape == PIXELS.shape
        assert scan.warnings == ("ct: only the slices of one series are read; left aside: 6 x a mosaic.",)


def test_frames_that_are_no_slices_stand_apart_in_a_multi_frame_file(tmp_path: Path) -> None:
    made = write_enhanced(tmp_path / "ct.dcm", PIXELS, AFFINE, slopes=[1.0] * 6)
    del made.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence
    for number, item in enumerate(made.PerFrameFunctionalGroupsSequence):
        kind = Dataset()
        kind.FrameType = ["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"]
        kind.VolumeBasedCalculationTechnique = "MAX_IP" if number == 0 else "NONE"
        item.CTImageFrameTypeSequence = [kind]
    made.save_as(tmp_path / "ct.dcm")
    scan = read_dicom(tmp_path / "ct.dcm")
    # The frames lie in the reverse order of the slices.
    np.testing.assert_array_equal(scan.stored, PIXELS[..., :5])
    assert "left aside: 1 image (a projection" in scan.warnings[0]


@pytest.mark.parametrize(("modality", "refused"), [("CT", True), ("CR", False), ("OT", False)])
def test_a_capture_without_a_place(ct: Any, modality: Any, refused: Any) -> None:
    def capture(dataset: Any) -> None:
        dataset.SOPClassUID, dataset.ConversionType = SecondaryCaptureImageStorage, "WSD"
        dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = modality, "1.2.3.4.5.6", 9
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    rewrite(ct, capture, lambda d: d.InstanceNumber == 6)
    scan = read_dicom(ct)
    assert scan.shape[2] == 5
    assert "a Secondary Capture" in scan.warnings[0]
    (alone,) = [path for path in ct.iterdir() if pydicom.dcmread(path).SeriesNumber == 9]
    if refused:
        with pytest.raises(InputError, match="is a Secondary Capture"):
            read_dicom(alone)
    else:
        assert "is a Secondary Capture" in read_dicom(alone).warnings[0]


def test_a_series_of_captures_with_places_is_a_series(ct: Any) -> None:
    rewrite(ct, lambda d: setattr(d, "SOPClassUID", SecondaryCaptureImageStorage))
    assert read_dicom(ct).warnings == ()


def test_tiles_of_a_slide_are_no_scan(tmp_path: Path) -> None:
    made = write_enhanced(tmp_path / "slide.dcm", PIXELS, AFFINE, slopes=[1.0] * 6)
    made.DimensionOrganizationType = "TILED_FULL"
    made.save_as(tmp_path / "slide.dcm")
    with pytest.raises(InputError, match=r"slide.dcm is one large picture stored in tiles"):
        read_dicom(tmp_path / "slide.dcm")


@pytest.mark.parametrize("command", ["inspect", "attack", "evaluate"])
def test_a_nifti_file_beside_a_series_is_left_aside_and_said(ct: Any, tmp_path: Path, model: Any, command: Any) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Image(PIXELS, AFFINE), ct / "copy.nii.gz")
    said = "left aside: 1 x NIfTI file."
    if command == "inspect":
        assert said in describe_dicom(ct)["warnings"][0]
        return
    nib.save(nib.Nifti1Image((PIXELS > 500).astype(np.uint8), AFFINE), tmp_path / "mask.nii.gz")
    common = ("--target", tmp_path / "mask.nii.gz", "--model", model, "--device", "cpu")
    arguments = (
        ("attack", ct, *common, "--dry-run", "-o", tmp_path / "out")
        if command == "attack"
        else ("evaluate", "--original", ct, "--adversarial", ct, *common)
    )
    result = mafl(*arguments)
    assert result.exit_code == 0, result.output
    assert said in result.output


# --- names of slices ----------------------------------------------------------------------------------------------


def test_frames_of_several_files_are_named_with_their_file(tmp_path: Path) -> None:
    uid = generate_uid()
    (tmp_path / "both").mkdir()
    for name in ("a.dcm", "b.dcm"):
        made = write_enhanced(tmp_path / "both" / name, PIXELS[..., :2], AFFINE, slopes=[1.0] * 2)
        made.SeriesInstanceUID = uid
        made.save_as(tmp_path / "both" / name)
    with pytest.raises(
        GeometryError, match=r"frame 2 of a.dcm and frame 2 of b.dcm; frame 1 of a.dcm and frame 1 of b"
    ):
        read_dicom(tmp_path / "both")
    (tmp_path / "both" / "b.dcm").unlink()
    (tmp_path / "both" / "2.25.12345678901234567890").write_bytes((tmp_path / "both" / "a.dcm").read_bytes())
    with pytest.raises(GeometryError, match=r"frame 2 of dicom and frame 2 of a.dcm"):
        read_dicom(tmp_path / "both")


def test_instances_of_one_number_are_named_with_their_file(ct: Any) -> None:
    copy = pydicom.dcmread(ct / "IM0002")
    copy.SOPInstanceUID = generate_uid()
    copy.save_as(ct / "copy")
    number = copy.InstanceNumber
    with pytest.raises(GeometryError, match=rf"instance {number} of IM0002 and instance {number} of copy lie at"):
        read_dicom(ct)


# --- digits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
@settings(max_examples=3)
@given(seed=st.integers(0, 10**6))
@example(
    seed=718
)  # With one digit 0.6, 0, 0.8 and 0, 1, 0: perpendicular and of length 1 by chance, and 4 degrees off.
@example(seed=1822)
def test_directions_of_few_digits_are_put_right(
    tmp_path_factory: pytest.TempPathFactory, seed: int, digits: Any
) -> None:
    folder = tmp_path_factory.mktemp("digits") / "ct"
    affine = turned(seed)
    # What rounding takes to 1.0 and 0.0 cannot be told from an axis of the patient.
    assume((np.round(affine[:3, :2] / [0.8, 1.3], digits) % 1).any())
    write_ct(folder, PIXELS[..., :4], affine)
    rewrite(folder, shorten(digits))
    scan = read_dicom(folder)
    assert scan.warnings == ()
    np.testing.assert_array_equal(scan.stored, PIXELS[..., :4])
    np.testing.assert_allclose(scan.spacing, [0.8, 1.3, 2.5], rtol=1e-5)
    axes = scan.affine[:3, :3] / scan.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    # The slices' own direction is known from where they lie; in the plane the digits are all there is.
    np.testing.assert_allclose(scan.affine[:3, 2:], affine[:3, 2:], atol=1e-4)
    assert np.abs(axes - affine[:3, :3] / [0.8, 1.3, 2.5]).max() < 2 * 10.0**-digits
    # What is written says what the source said, in its own digits.
    write.write_series(folder.parent / "out", scan, scan.data + 1, "x")
    said = {str(pydicom.dcmread(file).ImageOrientationPatient) for file in (folder.parent / "out").iterdir()}
    assert said == {str(dataset.ImageOrientationPatient) for dataset in scan.datasets}
    np.testing.assert_array_equal(read_dicom(folder.parent / "out").affine, scan.affine)


@pytest.mark.parametrize("tilt", [1, 5, 20])
@pytest.mark.parametrize("whole", [False, True])
def test_a_real_tilt_stays_a_tilt(tmp_path: Path, tilt: Any, whole: Any) -> None:
    """whole: as programs write it that have 1.0 and 0.0 for directions."""
    affine = AFFINE.copy()
    affine[1, 2] = 2.5 * np.tan(np.deg2rad(tilt))
    write_ct(tmp_path / "ct", PIXELS, affine)
    if whole:
        rewrite(tmp_path / "ct", shorten(1))
    scan = read_dicom(tmp_path / "ct")
    np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    assert f"sheared by {tilt:.1f} degrees" in scan.warnings[0]


@pytest.mark.parametrize(
    "directions",
    [
        ["1", "0", "0", "0.17", "0.98", "0"],
        ["0.8", "0", "0", "0", "0.8", "0"],
        ["1.000000", "0", "0", "0.0100000", "0.999950", "0"],
        ["1", "0", "0", "1", "0", "0"],
        ["0", "0", "0", "0", "1", "0"],
    ],
)
def test_directions_that_no_rounding_explains_are_refused(ct: Any, directions: Any) -> None:
    rewrite(ct, lambda d: setattr(d, "ImageOrientationPatient", directions))
    with pytest.raises(GeometryError, match=r"of length 1 and perpendicular \(lengths"):
        read_dicom(ct)


def test_places_of_few_digits_are_evenly_spaced(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[2, 2] = 0.625
    write_ct(tmp_path / "ct", PIXELS, affine)

    def shorten_places(dataset: Any) -> None:
        dataset.ImagePositionPatient = [f"{float(v):.1f}" for v in dataset.ImagePositionPatient]

    rewrite(tmp_path / "ct", shorten_places)
    scan = read_dicom(tmp_path / "ct")
    assert scan.warnings == ()
    np.testing.assert_allclose(scan.spacing[2], 0.62, atol=0.02)
    for path in (tmp_path / "ct").iterdir():
        if pydicom.dcmread(path).InstanceNumber == 3:
            path.unlink()
            break
    with pytest.raises(GeometryError, match="are slices missing"):
        read_dicom(tmp_path / "ct")


def test_slices_whose_directions_are_rounded_otherwise_are_one_stack(tmp_path: Path) -> None:
    affine = turned(3)
    write_ct(tmp_path / "ct", PIXELS, affine)
    rewrite(tmp_path / "ct", shorten(2), lambda d: d.InstanceNumber % 2)
    assert read_dicom(tmp_path / "ct").shape == PIXELS.shape
