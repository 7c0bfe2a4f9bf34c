"""Whatever stands in a header, however damaged, no command shows it: a marker is planted into one after another."""

from __future__ import annotations

import copy
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from commands import Threshold, mafl, scan_array
from dicoms import write_ct
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from mafl_cli.scans.dicom import seg
from mafl_cli.scans.dicom.read import read_dicom
from mafl_cli.system.quiet import silence

MARK = "ZZPATIENT"
VALUE = f"{MARK}^JANE".encode()
IDENTITY = ("PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName", "StudyID")
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name", "unused_str")
AFFINE = np.array([[-0.8, 0, 0, 50], [0, -0.7, 0, 30], [0, 0, 2.5, -20], [0, 0, 0, 1]])
PIXELS = (scan_array((16, 16, 2)) * 1000).astype(np.int16)

# Attributes of a plain CT and some that other scanners write, all of which hold text.
TEXTS = (
    *("SpecificCharacterSet", "ImageType", "InstanceCreationDate", "SOPClassUID", "SOPInstanceUID", "StudyDate"),
    *("SeriesDate", "AcquisitionDate", "ContentDate", "StudyTime", "AccessionNumber", "Modality", "Manufacturer"),
    *("InstitutionName", "ReferringPhysicianName", "StationName", "SeriesDescription", "PatientName", "PatientID"),
    *("PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight", "BodyPartExamined", "SliceThickness", "KVP"),
    *("SpacingBetweenSlices", "ProtocolName", "ConvolutionKernel", "PatientPosition", "StudyInstanceUID"),
    *("SeriesInstanceUID", "StudyID", "SeriesNumber", "AcquisitionNumber", "InstanceNumber", "ImagePositionPatient"),
    *("ImageOrientationPatient", "FrameOfReferenceUID", "PositionReferenceIndicator", "SliceLocation"),
    *("ImageComments", "PhotometricInterpretation", "NumberOfFrames", "PixelSpacing", "WindowCenter"),
    *("RescaleIntercept", "RescaleSlope", "RescaleType", "LossyImageCompression", "ImagerPixelSpacing"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.ts"
    torch.jit.trace(Threshold(2).eval(), torch.zeros(1, 1, 16, 16)).save(path)
    return path


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No library speaks, by Python's logging or straight to the process's standard error."""
    yield
    assert not caplog.get_records("call")
    assert MARK not in "".join(capfd.readouterr())


def plant(source: Path, path: Path, tag: int, vr: str | None = None, value: bytes = VALUE) -> None:
    """A copy of a DICOM file with raw bytes as the value of one element. vr: None for the element's own."""
    known, value = vr or pydicom.datadict.dictionary_VR(tag), value + b" " * (len(value) % 2)
    with silence():
        dataset = pydicom.dcmread(source)
        place = dataset.file_meta if Tag(tag).group == 2 else dataset
        place[tag] = RawDataElement(Tag(tag), known, len(value), value, 0, False, True, True)
        dataset.save_as(path)


def say_nothing(*arguments: object) -> str:
    """What a command says; nothing of the marker, and it ends in no internal error."""
    result = mafl(*arguments)
    assert result.exit_code in (0, 3), result.output
    assert MARK not in result.output
    return result.output


def attack_quietly(scan: Path, model: Path, out: Path, *options: object) -> None:
    """An attack that leaves the marker nowhere, with and without --redact: not said, and in no file.

    But for the patient and the study of derived objects, without --redact.
    """
    for redact in ((), ("--redact",)):
        place = out / f"out{len(redact)}"
        target = () if "-t" in options else ("-t", "erase:1")
        say_nothing("attack", scan, *target, "-m", model, "-v", "--intensity", "none", "-o", place, *redact, *options)
        for path in place.rglob("*.*") if place.exists() else ():
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if path.suffix == ".dcm" and not redact:
                dataset = pydicom.dcmread(path)
                for keyword in IDENTITY:
                    dataset.pop(keyword, None)
                raw = str(dataset).encode()
            assert MARK.encode() not in raw, path.name


@pytest.fixture(scope="module")
def slice_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ct")
    write_ct(folder, PIXELS[..., :1], AFFINE, inter=0.0, SliceLocation="1", FrameOfReferenceUID="1.2.3")
    return next(folder.iterdir())


@pytest.mark.parametrize("vr", [None, "LO", "SQ", "UN"])
def test_no_value_of_a_header_is_shown(slice_file: Path, model: Path, tmp_path: Path, vr: str | None) -> None:
    harmless = slice_file
    places = TEXTS if vr is None else TEXTS[:: 3 if vr == "LO" else 4]
    for number, keyword in enumerate(places):
        tag, scan = tag_for_keyword(keyword), tmp_path / f"scan{number}.dcm"
        plant(slice_file, scan, tag, vr)
        if re.search("^refused_as_image +-$", say_nothing("inspect", scan), re.MULTILINE):
            plant(harmless, tmp_path / f"all{number}.dcm", tag, vr)
            harmless = tmp_path / f"all{number}.dcm"
        else:
            attack_quietly(scan, model, tmp_path)
    assert harmless != slice_file
    attack_quietly(harmless, model, tmp_path, "--steps", 1)
    assert len([*tmp_path.glob("out*/adversarial/*.dcm")]) == 2


@pytest.mark.parametrize("keyword", ["PatientName", "SOPClassUID", "Modality", "ImageType"])
def test_no_value_of_a_truncated_or_overlong_element_is_shown(
    slice_file: Path, model: Path, tmp_path: Path, keyword: str
) -> None:
    tag = tag_for_keyword(keyword)
    plant(slice_file, tmp_path / "whole.dcm", tag)
    raw = (tmp_path / "whole.dcm").read_bytes()
    place = raw.index(VALUE)
    damaged = {
        "cut": raw[: place + len(MARK)],
        "long": raw[: place - 2] + b"\xff\xff" + raw[place:],
        "lettered": raw[: place - 4] + b"ZZ" + raw[place - 2 :],
        "meta": raw[:140] + VALUE + raw[154:],
        "after meta": raw[:128] + b"DICM" + raw[raw.index(VALUE) - 8 :],
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.dcm").write_bytes(content)
        say_nothing("inspect", tmp_path / f"{name}.dcm")
        attack_quietly(tmp_path / f"{name}.dcm", model, tmp_path, "--dry-run")


@pytest.mark.parametrize("change", ["listed twice", "damaged reference", "label", "type"])
def test_no_value_of_a_mask_is_shown(model: Path, tmp_path: Path, change: str) -> None:
    write_ct(tmp_path / "ct", PIXELS, AFFINE, inter=0.0)
    scan = read_dicom(tmp_path / "ct")
    assert seg.write_seg(tmp_path / "mask.dcm", scan, (scan.data > 90)[None], ["bright"], description="X") is None
    mask = pydicom.dcmread(tmp_path / "mask.dcm")
    listed = mask.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    with silence():
        if change == "listed twice":
            listed.extend(copy.deepcopy(listed))
        elif change == "damaged reference":
            listed[0].ReferencedSOPInstanceUID = MARK
        elif change == "label":
            mask.SegmentSequence[0].SegmentLabel = mask.SegmentSequence[0].SegmentAlgorithmType = MARK
        else:
            mask.SegmentationType = MARK
        mask.save_as(tmp_path / "mask.dcm")
    said = say_nothing("inspect", tmp_path / "mask.dcm")
    # Grids that are moved are read by highdicom, which logs what it dislikes.
    write_ct(tmp_path / "moved", PIXELS, AFFINE + np.array([[0, 0, 0, 0.3]] + 3 * [[0] * 4]), inter=0.0)
    options = ("--dry-run", "--resample-target", "-t", tmp_path / "mask.dcm")
    result = mafl("attack", tmp_path / "moved", "-m", model, "-o", tmp_path / "out", *options)
    for text in (said, result.output):
        assert MARK not in text
        assert str(scan.datasets[0].SOPInstanceUID) not in text


@pytest.mark.parametrize("version", [1, 2])
def test_no_text_of_a_nifti_header_is_shown(model: Path, tmp_path: Path, version: int) -> None:
    image = (nib.Nifti1Image if version == 1 else nib.Nifti2Image)(PIXELS, AFFINE)
    for field in TEXT_FIELDS:
        if field in image.header:
            image.header[field] = MARK
    nib.save(image, tmp_path / "scan.nii")
    raw = (tmp_path / "scan.nii").read_bytes()
    code, size = (70, 2) if version == 1 else (12, 2)
    for number, damaged in enumerate(
        (raw, raw[:code] + b"ZZ" + raw[code + size :], raw[: len(raw) // 2], raw[: 540 // 3], gzip.compress(raw)[:-9])
    ):
        scan = tmp_path / (f"{number}.nii" + (".gz" if damaged[:1] == b"\x1f" else ""))
        scan.write_bytes(damaged)
        say_nothing("inspect", scan)
        attack_quietly(scan, model, tmp_path, "--dry-run", "--redact")
