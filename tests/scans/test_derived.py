"""DICOM out: a legal derived series that every reader takes for one volume, and masks as SEG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicoms import AFFINE, PIXELS, labels, write_ct, write_enhanced
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from mafl_cli.classes import Classes
from mafl_cli.errors import InputError
from mafl_cli.scans.dicom import kept, seg, write
from mafl_cli.scans.dicom.read import read_dicom
from mafl_cli.scans.geometry import same_space
from mafl_cli.scans.masks import Masks, read_masks

SLOPES = [1.0, 2, 1, 0.5, 1, 1, 1]
HOW = "MAFL ADVERSARIAL - NOT FOR CLINICAL USE. Adversarial perturbation by mafl, method mafl."


@pytest.fixture(params=["series", "enhanced"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "enhanced":
        write_enhanced(tmp_path / "ct.dcm", PIXELS, AFFINE, slopes=SLOPES)
        return tmp_path / "ct.dcm"
    write_ct(tmp_path / "ct", PIXELS, AFFINE, slope=SLOPES)
    return tmp_path / "ct"


@pytest.fixture
def written(source: Any, tmp_path: Path) -> Any:
    """The source, what was to be written, and the folder it was written to."""
    scan = read_dicom(source)
    data = scan.data.copy()
    data[2:5, 3:6] += np.random.default_rng(1).normal(0, 20, (3, 3, 7)).astype(np.float32)
    write.write_series(tmp_path / "out", scan, data, HOW)
    return scan, data, tmp_path / "out"


def test_the_values_are_the_nearest_that_each_slice_can_store(written: Any) -> None:
    scan, data, out = written
    again = read_dicom(out)
    assert np.abs(again.data - data).max() <= 1.0 + 1e-3  # half of the largest slope
    np.testing.assert_allclose(again.data, scan.data + scan.slope * np.rint((data - scan.data) / scan.slope), atol=1e-3)
    untouched = data == scan.data
    np.testing.assert_array_equal(again.stored[untouched], scan.stored[untouched])


def test_every_reader_sees_one_volume_at_the_same_place(written: Any) -> None:
    scan, _, out = written
    again = read_dicom(out)
    assert same_space(scan.shape, scan.affine, again.shape, again.affine)
    files = sorted(out.iterdir())
    if len(files) > 1:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)
        ids = reader.GetGDCMSeriesIDs(str(out))
        assert len(ids) == 1
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(out), ids[0]))
        image = reader.Execute()
        np.testing.assert_allclose(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), again.data, atol=1e-3)
        np.testing.assert_allclose(image.GetSpacing(), scan.spacing, atol=1e-5)
        volume = highdicom.get_volume_from_series([pydicom.dcmread(file) for file in files])
    else:
        volume = highdicom.imread(files[0]).get_volume()
    assert sorted(volume.spatial_shape) == sorted(scan.shape)
    ras = np.diag([-1, -1, 1, 1]) @ volume.affine
    centre = np.linalg.inv(ras) @ scan.affine @ [4, 5, 3, 1]
    np.testing.assert_allclose(centre, np.rint(centre), atol=1e-3)
    i, j, k = np.rint(centre[:3]).astype(int)
    np.testing.assert_allclose(volume.array[i, j, k], again.data[4, 5, 3], atol=1e-3)


def test_what_a_derived_image_must_say(written: Any) -> None:
    scan, _, out = written
    new = [pydicom.dcmread(file) for file in sorted(out.iterdir())]
    old = list(scan.datasets)
    assert len({dataset.SeriesInstanceUID for dataset in new}) == 1
    assert len({dataset.SOPInstanceUID for dataset in new}) == len(new)
    known = {dataset.SOPInstanceUID for dataset in old} | {dataset.SeriesInstanceUID for dataset in old}
    for before, after in zip(old, new, strict=True):
        enhanced = "SharedFunctionalGroupsSequence" in after
        assert after.SOPInstanceUID not in known
        assert after.SeriesInstanceUID not in known
        assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
        assert after.file_meta.MediaStorageSOPClassUID == after.SOPClassUID == before.SOPClassUID
        assert after.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        for keyword in (
            *("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "StudyID", "FrameOfReferenceUID"),
            *("Modality", "InstanceNumber", "Rows", "Columns", "BitsStored", "PixelRepresentation"),
        ):
            assert after[keyword].value == before[keyword].value, keyword
        if not enhanced:
            for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
                assert after[keyword].value == before[keyword].value, keyword
        assert after.ImageType[:2] == ["DERIVED", "PRIMARY" if enhanced else "SECONDARY"]
        assert after.ImageType[2:] == before.ImageType[2:]
        assert after.SeriesDescription == "MAFL ADVERSARIAL - NOT FOR CLINICAL USE"
        assert after.SeriesNumber == before.SeriesNumber + 9000
        assert after.DerivationDescription == HOW
        assert after.DerivationCodeSequence[0].CodeMeaning == "Pixel by pixel addition"
        (reference,) = after.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == before.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == before.SOPClassUID
        assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert after.ReferencedSeriesSequence[0].SeriesInstanceUID == before.SeriesInstanceUID
        (equipment,) = after.ContributingEquipmentSequence
        assert equipment.Manufacturer == "mafl"
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Modifying Equipment"
        assert after.ContentDate
        assert after.InstanceCreationDate


def test_the_source_stays_as_it_is(source: Any, tmp_path: Path) -> None:
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    before = [file.read_bytes() for file in files]
    scan = read_dicom(source)
    kept = [dataset.to_json() for dataset in scan.datasets]
    write.write_series(tmp_path / "out", scan, scan.data + 5, HOW)
    assert [file.read_bytes() for file in files] == before
    assert [dataset.to_json() for dataset in scan.datasets] == kept


def test_what_is_stale_or_private_or_personal_is_gone(tmp_path: Path) -> None:
    marker, code = "MARKER", Dataset()
    code.CodeMeaning = marker
    personal: Any = {
        "SmallestImagePixelValue": 3,
        "LargestImagePixelValue": 5,
        "InstitutionName": marker,
        "InstitutionAddress": marker,
        "StationName": marker,
        "OperatorsName": marker,
        "PerformingPhysicianName": marker,
        "PatientAddress": marker,
        "OtherPatientIDs": marker,
        "StudyDescription": marker,
        "ImageComments": marker,
        "ProtocolName": marker,
        "RequestedProcedureDescription": marker,
        "AdmittingDiagnosesCodeSequence": [code],
    }
    datasets = write_ct(tmp_path / "ct", PIXELS, AFFINE, **personal)
    for dataset, file in zip(datasets, sorted((tmp_path / "ct").iterdir()), strict=True):
        dataset.private_block(0x0011, "VENDOR", create=True).add_new(0x01, "LO", marker)
        dataset.add_new((0x6000, 0x0010), "US", 11)
        dataset.save_as(file, enforce_file_format=True)
    scan = read_dicom(tmp_path / "ct")
    write.write_series(tmp_path / "out", scan, scan.data + 5, HOW)
    for file in (tmp_path / "out").iterdir():
        assert marker.encode() not in file.read_bytes()
        dataset = pydicom.dcmread(file)
        assert not {"SmallestImagePixelValue", "LargestImagePixelValue"} & {element.keyword for element in dataset}
        assert not [element for element in dataset if element.tag.is_private or element.tag.group == 0x6000]


def test_every_attribute_of_the_lists_exists() -> None:
    lists = (kept._ELSEWHERE, kept._STALE, kept._UIDS, kept._TIMES, kept._TYPE_2, kept._STAND_INS, kept._TEXTS)
    assert not [keyword for each in lists for keyword in each if tag_for_keyword(keyword) is None]


def test_twelve_bits_are_never_left(tmp_path: Path) -> None:
    pixels = np.full((5, 6, 4), 2040, np.int16)
    pixels[0] = -2040
    write_ct(tmp_path / "ct", pixels, AFFINE, BitsStored=12, HighBit=11, inter=0.0)
    scan = read_dicom(tmp_path / "ct")
    write.write_series(tmp_path / "out", scan, scan.data * 2, HOW)
    assert read_dicom(tmp_path / "out").stored.max() == 2047
    assert read_dicom(tmp_path / "out").stored.min() == -2048


@pytest.mark.parametrize("lossy", [False, True])
def test_a_lossy_past_is_not_forgotten(tmp_path: Path, lossy: Any) -> None:
    compression: Any = {"LossyImageCompression": "01"} if lossy else {}
    write_ct(tmp_path / "ct", PIXELS, AFFINE, **compression)
    scan = read_dicom(tmp_path / "ct")
    write.write_series(tmp_path / "out", scan, scan.data + 5, HOW)
    said = pydicom.dcmread(tmp_path / "out" / "0001.dcm").get("LossyImageCompression")
    assert said == ("01" if lossy else None)


@pytest.mark.parametrize(
    ("name", "said"),
    [("JPEGLSNearLossless_16.dcm", "01"), ("MR_small_jpeg_ls_lossless.dcm", "00"), ("MR_small_RLE.dcm", "00")],
)
def test_how_the_source_was_compressed_is_said(tmp_path: Path, name: Any, said: Any) -> None:
    scan = read_dicom(Path(pydicom.__file__).parent / "data" / "test_files" / name)
    write.write_series(tmp_path / "out", scan, scan.data + 5, HOW)
    assert pydicom.dcmread(tmp_path / "out" / "0001.dcm").LossyImageCompression == said


# --- masks --------------------------------------------------------------------------------------------------------


def write_labels(path: Any, scan: Any) -> Any:
    masks = np.stack([labels() == 1, labels() == 2])
    return seg.write_seg(path, scan, masks, ["liver", "tumour"], description="MAFL TARGET - NOT FOR CLINICAL USE")


def test_masks_come_back_with_their_empty_frames(source: Any, tmp_path: Path) -> None:
    scan = read_dicom(source)
    assert write_labels(tmp_path / "mask.dcm", scan) is None
    assert seg.is_seg(tmp_path / "mask.dcm")
    raw = seg.read_seg(tmp_path / "mask.dcm")
    assert raw.labels.shape != scan.shape, "a SEG leaves out empty frames, and orders axes its own way"
    found, source_file, notes = Masks().read(tmp_path / "mask.dcm", scan)
    np.testing.assert_array_equal(found, labels())
    assert source_file.resampled is None
    assert notes == ()
    written = pydicom.dcmread(tmp_path / "mask.dcm")
    assert written.StudyInstanceUID == scan.datasets[0].StudyInstanceUID
    assert [segment.SegmentLabel for segment in written.SegmentSequence] == ["liver", "tumour"]


def test_a_seg_of_another_scan_is_refused(source: Any, tmp_path: Path) -> None:
    scan = read_dicom(source)
    write_labels(tmp_path / "mask.dcm", scan)
    moved = AFFINE.copy()
    moved[0, 3] += 0.3
    write_ct(tmp_path / "other", PIXELS, moved)
    with pytest.raises(InputError, match=r"not on the same grid.*`resample_target`"):
        Masks().read(tmp_path / "mask.dcm", read_dicom(tmp_path / "other"))
    found, file, _ = Masks(resample=True).read(tmp_path / "mask.dcm", read_dicom(tmp_path / "other"))
    assert file.resampled == {1: (12, 12), 2: (2, 2)}
    assert found.sum() == labels().sum()


def test_without_highdicom_masks_are_read_and_what_writes_them_is_said(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = read_dicom(source)
    write_labels(tmp_path / "mask.dcm", scan)
    monkeypatch.setattr(seg, "available", lambda: False)
    np.testing.assert_array_equal(seg.read_seg(tmp_path / "mask.dcm", like=scan).labels, labels())
    assert "highdicom is not installed" in write_labels(tmp_path / "again.dcm", scan)
    assert not (tmp_path / "again.dcm").exists()


def test_overlapping_segments_are_no_label_map(source: Any, tmp_path: Path) -> None:
    scan = read_dicom(source)
    both = np.stack([labels() > 0, labels() == 2])
    assert seg.write_seg(tmp_path / "mask.dcm", scan, both, ["a", "b"], description="X") is None
    with pytest.raises(InputError, match=r"mask.dcm: its segments overlap"):
        seg.read_seg(tmp_path / "mask.dcm")
    # For a model whose regions may overlap they are what is wanted.
    target = read_masks([tmp_path / "mask.dcm"], scan, Classes(("a", "b"), overlapping=True), Masks())
    np.testing.assert_array_equal(target.labels, both)


@pytest.mark.parametrize("kind", ["one slice", "sheared", "sparse", "label map", "another character set"])
def test_frames_are_placed_by_their_coordinates(tmp_path: Path, kind: Any) -> None:
    affine = AFFINE.copy()
    if kind == "sheared":
        affine[1, 2] = 0.9
    pixels = PIXELS[:, :, 2:3] if kind == "one slice" else PIXELS
    drawn = labels()[:, :, 2:3] if kind == "one slice" else labels()
    changes: Any = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"]} if kind == "another character set" else {}
    write_ct(tmp_path / "ct", pixels, affine, **changes)
    scan = read_dicom(tmp_path / "ct")
    masks = np.stack([drawn == 1, drawn == 2])[: 1 if kind == "one slice" else 2]
    assert seg.write_seg(tmp_path / "mask.dcm", scan, masks, ["a\\b", ""][: len(masks)], description="X") is None
    file = pydicom.dcmread(tmp_path / "mask.dcm")
    if kind == "sparse":
        del file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
        file.save_as(tmp_path / "mask.dcm")
    if kind == "label map":
        made = highdicom.seg.Segmentation(
            [seg._source(dataset) for dataset in scan.datasets], drawn.transpose(2, 1, 0).astype(np.uint8), "LABELMAP",
            list(highdicom.seg.segread(tmp_path / "mask.dcm").SegmentSequence), pydicom.uid.generate_uid(), 1,
            pydicom.uid.generate_uid(), 1, "m", "m", "1", "1",
        )  # fmt: skip
        made.save_as(tmp_path / "mask.dcm")
        assert seg.is_seg(tmp_path / "mask.dcm")
    found, source_file, _ = Masks().read(tmp_path / "mask.dcm", scan)
    np.testing.assert_array_equal(found, np.where(drawn == 2, 2, drawn) if kind != "one slice" else drawn == 1)
    assert source_file.resampled is None


def test_what_a_source_lacks_is_made_up_once(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", PIXELS, AFFINE)
    for path in (tmp_path / "ct").iterdir():
        dataset = pydicom.dcmread(path)
        for keyword in ("StudyInstanceUID", "InstanceNumber", "PatientSex", "Manufacturer", "SOPClassUID"):
            del dataset[keyword]
        dataset.save_as(path)
    scan = read_dicom(tmp_path / "ct")
    write.write_series(tmp_path / "out", scan, scan.data + 5, HOW)
    new = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").iterdir())]
    assert len({dataset.StudyInstanceUID for dataset in new}) == 1
    assert new[0].StudyInstanceUID
    for keyword in ("InstanceNumber", "PatientSex", "Manufacturer"):
        assert keyword in new[0]
    assert new[0].SOPClassUID == pydicom.uid.CTImageStorage


def test_an_enhanced_object_says_how_its_frames_were_derived(tmp_path: Path) -> None:
    source = write_enhanced(tmp_path / "ct.dcm", PIXELS, AFFINE, slopes=SLOPES)
    source.ConcatenationUID, source.InConcatenationNumber = pydicom.uid.generate_uid(), 1
    source.DeviceSerialNumber = "SECRET"
    source.save_as(tmp_path / "ct.dcm")
    scan = read_dicom(tmp_path / "ct.dcm")
    write.write_series(tmp_path / "out", scan, scan.data + 5, HOW)
    new = pydicom.dcmread(tmp_path / "out" / "0001.dcm")
    (image,) = new.SharedFunctionalGroupsSequence[0].DerivationImageSequence
    assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "ConcatenationUID" not in new
    assert new.DeviceSerialNumber == "none"


def test_overlays_and_curves_of_any_group_are_gone(tmp_path: Path) -> None:
    datasets = write_ct(tmp_path / "ct", PIXELS, AFFINE, ClinicalTrialSponsorName="S", ReviewerName="Jane")
    for dataset, path in zip(datasets, sorted((tmp_path / "ct").iterdir()), strict=True):
        dataset.add_new((0x6002, 0x1500), "LO", "Jane burned in")
        dataset.add_new((0x5000, 0x2500), "LO", "Jane's curve")
        dataset.save_as(path, enforce_file_format=True)
    scan = read_dicom(tmp_path / "ct")
    write.write_series(tmp_path / "out", scan, scan.data + 5, HOW)
    raw = (tmp_path / "out" / "0001.dcm").read_bytes()
    assert raw.count(b"Jane") == raw.count(b"Doe^Jane") == 1
    assert "ClinicalTrialSponsorName" not in pydicom.dcmread(tmp_path / "out" / "0001.dcm")
