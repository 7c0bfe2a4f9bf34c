"""What a derived DICOM object keeps: the standard's numbers, terms and codes, and a legal object of its class."""

from __future__ import annotations

import copy
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from dicom_kinds import KINDS, MARK, datasets, write
from pydicom.config import disable_value_validation
from pydicom.datadict import (  # type: ignore[attr-defined]
    DicomDictionary,
    dictionary_VR,
    tag_for_keyword,
)
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from mafl_cli.errors import InputError
from mafl_cli.scans.dicom import kept, seg
from mafl_cli.scans.dicom.read import DicomVolume, read_dicom
from mafl_cli.scans.dicom.write import prepared, write_series
from mafl_cli.scans.geometry import same_space
from mafl_cli.system.quiet import silence

IDENTITY = ("PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName", "StudyID")
DATE, UID = "19231017", "1.2.3.4.5.9876543.21"
TEXTS = {"AE", "AS", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}


def outputs(scan: DicomVolume, out: Path, *, redact: bool) -> list[Path]:
    """A derived series of a scan and masks drawn on both, written in a folder."""
    scan = prepared(scan, redact=redact)
    data = scan.data.copy()
    data[3:6, 3:6] += 5
    out.mkdir(parents=True)
    write_series(out / "adversarial", scan, data, "how")
    for name, drawn_on in (("target", scan), ("prediction", read_dicom(out / "adversarial"))):
        seg.write_seg(out / f"{name}.dcm", drawn_on, (scan.data > 100)[None], ["bright"], description="MAFL TARGET")
    return sorted(out.rglob("*.dcm"))


def errors(file: Path) -> Counter[str]:
    said = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False).stderr
    return Counter(line for line in said.splitlines() if line.startswith("Error"))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("redact", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_as_legal_as_its_source(tmp_path: Path, kind: str, redact: bool) -> None:
    source = write(tmp_path / "scan", datasets(kind))
    before = errors(source[0])
    assert sum(before.values()) <= (4 if "legacy" in kind else 0), before
    for file in outputs(read_dicom(tmp_path / "scan"), tmp_path / "out", redact=redact):
        allowed = before if file.parent.name == "adversarial" else Counter()
        assert not errors(file) - allowed, file.name


def planted(dataset: Dataset) -> Dataset:
    """With text, dates and UIDs in every attribute that the dictionary has, where none was."""
    for tag, entry in DicomDictionary.items():
        vr, keyword = entry[0], entry[4]
        if tag in dataset or not keyword or Tag(tag).group < 8 or tag == tag_for_keyword("SpecificCharacterSet"):
            continue
        if vr in TEXTS:
            dataset.add_new(tag, vr, MARK)
        elif vr in ("DA", "DT"):
            dataset.add_new(tag, vr, DATE)
        elif vr == "UI":
            dataset.add_new(tag, vr, UID)
    dataset.private_block(0x0011, "VENDOR", create=True).add_new(0x01, "LO", MARK)
    return dataset


@pytest.mark.parametrize("kind", ["PT", "enhanced MR"])
def test_no_text_stays_but_who_and_which_study(tmp_path: Path, kind: str) -> None:
    made = datasets(kind)[:1]
    with disable_value_validation():
        (source,), nested = made, planted(Dataset())
        del nested[0x00110010], nested[0x00111001]
        for item in source.get("SharedFunctionalGroupsSequence", ()):
            item.FrameVOILUTSequence[0].update(nested)
        for keyword in ("AcquisitionContextSequence", "RequestAttributesSequence"):
            setattr(source, keyword, [nested])
        for keyword in IDENTITY:
            setattr(source, keyword, MARK)
        source.PatientBirthDate = DATE
        planted(source)
        # These would make it no scan.
        for keyword in ("DimensionOrganizationType", "PixelDataProviderURL"):
            source.pop(keyword, None)
        write(tmp_path / "scan", made)
    with silence():
        scan = read_dicom(tmp_path / "scan", series="1")
        files = {redact: outputs(scan, tmp_path / str(redact), redact=redact) for redact in (False, True)}
    assert len(files[False]) == len(files[True]) == 3
    for redact, written in files.items():
        for file in written:
            dataset = pydicom.dcmread(file)
            for element in dataset.iterall():
                said = element.keyword in IDENTITY and not redact
                assert said or element.VR == "SQ" or MARK not in str(element.value), (redact, file.name, element)
                dated = element.keyword in ("PatientBirthDate", "StudyDate", *kept._TIMES) and not redact
                assert dated or element.VR == "SQ" or DATE not in str(element.value), (redact, file.name, element)
                assert not element.tag.is_private
                assert (
                    UID not in str(element.value)
                    or element.VR == "SQ"
                    or (not redact and element.keyword in kept._UIDS)
                ), (redact, file.name, element)


def test_numbers_terms_and_codes_stay(tmp_path: Path) -> None:
    write(tmp_path / "pt", datasets("PT"))
    outputs(read_dicom(tmp_path / "pt"), tmp_path / "out", redact=False)
    new = pydicom.dcmread(tmp_path / "out" / "adversarial" / "0001.dcm")
    (nuclide,) = new.RadiopharmaceuticalInformationSequence
    assert (nuclide.RadionuclideTotalDose, nuclide.RadionuclideHalfLife) == (3e8, 6586.2)
    assert nuclide.RadiopharmaceuticalStartTime == "110000"
    assert nuclide.RadionuclideCodeSequence[0].CodeMeaning == "^18^Fluorine"
    assert "Radiopharmaceutical" not in nuclide
    (position,) = new.PatientOrientationCodeSequence
    assert position.PatientOrientationModifierCodeSequence[0].CodeMeaning == "supine"
    assert (new.Units, new.CorrectedImage, new.DecayCorrection, new.PatientWeight) == (
        "BQML",
        ["DECY", "ATTN"],
        "START",
        70,
    )
    assert new.AcquisitionTime == "120000"
    assert new.ImagePositionPatient == read_dicom(tmp_path / "pt").datasets[0].ImagePositionPatient


@pytest.mark.parametrize(
    ("kind", "image_type"),
    [
        ("PT", ["DERIVED", "PRIMARY"]),
        ("NM", ["DERIVED", "PRIMARY", "STATIC", "EMISSION"]),
        ("MR", ["DERIVED", "SECONDARY", "OTHER"]),
        ("CT", ["DERIVED", "SECONDARY", "AXIAL"]),
        ("enhanced MR", ["DERIVED", "PRIMARY", "VOLUME", "NONE"]),
    ],
)
def test_image_types_are_those_of_the_standard(tmp_path: Path, kind: str, image_type: list[str]) -> None:
    write(tmp_path / "scan", datasets(kind))
    scan = read_dicom(tmp_path / "scan")
    write_series(tmp_path / "out", scan, scan.data, "how")
    assert pydicom.dcmread(tmp_path / "out" / "0001.dcm").ImageType == image_type


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("CT", ["ORIGINAL", "PRIMARY", MARK, "SPIRAL"], ["DERIVED", "SECONDARY", "AXIAL", "SPIRAL"]),
        ("MR", ["ORIGINAL", MARK, MARK, MARK], ["DERIVED", "SECONDARY", "OTHER", "OTHER"]),
        ("MR", MARK, ["DERIVED", "SECONDARY"]),
    ],
)
def test_words_of_an_image_type_that_are_no_terms_leave_their_places(
    tmp_path: Path, kind: str, before: list[str], after: list[str]
) -> None:
    made = datasets(kind)
    for dataset in made:
        dataset.ImageType = before
    write(tmp_path / "scan", made)
    scan = read_dicom(tmp_path / "scan")
    write_series(tmp_path / "out", scan, scan.data, "how")
    assert pydicom.dcmread(tmp_path / "out" / "0001.dcm").ImageType == after


def test_an_old_code_of_snomed_is_known_and_a_local_one_is_not() -> None:
    dataset = Dataset()
    for keyword, value, scheme in (
        ("PatientOrientationCodeSequence", "F-10450", "SRT"),
        ("PatientGantryRelationshipCodeSequence", "F-10470", "99LOCAL"),
    ):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, MARK
        setattr(dataset, keyword, [item])
    new = kept.kept(dataset)
    assert new.PatientOrientationCodeSequence[0].CodeMeaning == "recumbent"
    assert len(new.PatientGantryRelationshipCodeSequence) == 0


def test_a_redacted_series_is_of_another_study_and_at_the_same_place(tmp_path: Path) -> None:
    source = pydicom.dcmread(write(tmp_path / "scan", datasets("PT"))[0])
    scan = read_dicom(tmp_path / "scan")
    written = [pydicom.dcmread(file) for file in outputs(scan, tmp_path / "out", redact=True)]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert {dataset[keyword].value for dataset in written} != {source[keyword].value}
        assert len({dataset[keyword].value for dataset in written}) == 1
    uids = {source[keyword].value for keyword in kept._UIDS - {"SOPClassUID"} if keyword in source}
    for dataset in written:
        assert not [dataset[keyword].value for keyword in kept.PATIENT_AND_STUDY if dataset[keyword].value]
        assert not {element.value for element in dataset.iterall() if element.VR == "UI"} & {
            *uids,
            source.SOPInstanceUID,
        }
    assert written[0].PatientIdentityRemoved == "YES"
    assert "PatientWeight" not in written[0]
    assert written[0].AcquisitionTime == ""
    again = read_dicom(tmp_path / "out" / "adversarial")
    assert same_space(scan.shape, scan.affine, again.shape, again.affine)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"7", 9007),
        (b"", 9000),
        (b"seven", 9000),
        (b"99999999999", 9000),
        (b"2147483647", 9000),
        (b"3\\4", 9000),
        (b"2.5", 9000),
    ],
)
def test_what_series_number_a_derived_series_gets(tmp_path: Path, value: bytes, number: int) -> None:
    (source, *_) = datasets("CT")
    source["SeriesNumber"] = raw("SeriesNumber", "IS", value)
    source["InstanceNumber"] = raw("InstanceNumber", "IS", value)
    with silence():
        write(tmp_path / "scan", [source])
    scan = prepared(read_dicom(tmp_path / "scan"), redact=False)
    write_series(tmp_path / "out", scan, scan.data, "how")
    assert pydicom.dcmread(tmp_path / "out" / "0001.dcm").SeriesNumber == number


def raw(keyword: str, vr: str, value: bytes) -> RawDataElement:
    """An element as a damaged file may have it."""
    tag, value = Tag(keyword), value + b" " * (len(value) % 2)
    return RawDataElement(tag, vr, len(value), value, 0, False, True, True)


def places(dataset: Dataset) -> list[tuple[Dataset, str]]:
    """Every element, nested ones too, that is no sequence and no pixels."""
    found = []
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                found += places(item)
        elif element.keyword not in ("PixelData", ""):
            found.append((dataset, element.keyword))
    return found


@pytest.mark.parametrize("kind", ["PT", "enhanced MR"])
def test_whatever_is_damaged_is_refused_on_reading_or_can_be_written(tmp_path: Path, kind: str) -> None:
    refused = 0
    source = datasets(kind)[0]
    damages = [(vr, value) for vr in (None, "UN", "SQ", "US", "LO") for value in (b"ZZ", b"9" * 40)]
    tried = range(0, len(places(source)), 7)
    for number in tried:
        made, file = copy.deepcopy(source), tmp_path / f"{number}.dcm"
        place, keyword = places(made)[number]
        damage, value = damages[number % len(damages)]
        vr = damage or dictionary_VR(keyword)
        # pydicom would make sense of most of it when it writes: so as text or bytes first, in fields of the same form.
        short = vr not in ("OB", "OW", "SQ", "UC", "UN", "UR", "UT")
        place[keyword] = raw(keyword, "LO" if short else "OB", value)
        with silence():
            made.save_as(file, enforce_file_format=False)
        field = struct.pack("<H" if short else "<xxL", len(value)) + value
        before = (b"LO" if short else b"OB") + field
        assert before in file.read_bytes()
        file.write_bytes(file.read_bytes().replace(before, vr.encode() + field))
        try:
            scan = prepared(read_dicom(file, series="1"), redact=number % 2 == 0)
        except InputError:
            refused += 1
            continue
        write_series(tmp_path / f"out{number}", scan, scan.data, "how")
    assert refused < len(tried) / 2


@pytest.mark.parametrize("where", ["header", "meta", "both"])
def test_a_kind_of_image_that_is_none_is_refused_before_the_search(tmp_path: Path, where: str) -> None:
    (source, *_) = datasets("CT")
    write(tmp_path / "scan", [source])
    dataset = pydicom.dcmread(tmp_path / "scan" / "0.dcm")
    with silence():
        if where != "meta":
            dataset.SOPClassUID = MARK
        if where != "header":
            dataset.file_meta.MediaStorageSOPClassUID = MARK  # type: ignore[assignment]
        dataset.save_as(tmp_path / "scan" / "0.dcm", enforce_file_format=False)
        scan = read_dicom(tmp_path / "scan")
    if where == "both":
        with pytest.raises(
            InputError, match="scan: the header of instance 1 is damaged and could not be written again"
        ):
            prepared(scan, redact=False)
    else:
        prepared(scan, redact=False)


def test_a_vendors_own_dimensions_go_with_their_indices(tmp_path: Path) -> None:
    source = datasets("enhanced MR")[0]
    item = Dataset()
    item.DimensionIndexPointer, item.DimensionIndexPrivateCreator = 0x00211001, MARK
    source.DimensionIndexSequence.insert(1, item)
    for number, frame in enumerate(source.PerFrameFunctionalGroupsSequence, start=1):
        frame.FrameContentSequence[0].DimensionIndexValues = [1, 77, number]
    new = kept.kept(source)
    assert [each.DimensionIndexPointer for each in new.DimensionIndexSequence] == [
        Tag("StackID"),
        Tag("InStackPositionNumber"),
    ]
    values = [frame.FrameContentSequence[0].DimensionIndexValues for frame in new.PerFrameFunctionalGroupsSequence]
    assert values == [[1, 1], [1, 2]]
