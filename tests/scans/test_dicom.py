"""DICOM in: every slice at its place with its own numbers, or one sentence that says why not."""

from __future__ import annotations

import shutil
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicoms import array_and_affine, by_simpleitk, rewrite, write_ct, write_enhanced
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, generate_uid

from mafl_cli.errors import GeometryError, InputError, MaflError
from mafl_cli.scans.dicom.read import describe_dicom, read_dicom
from mafl_cli.scans.formats import is_dicom

AFFINE = np.array([[-0.8, 0, 0, 50], [0, -0.7, 0, 30], [0, 0, 2.5, -20], [0, 0, 0, 1]])
PIXELS = np.random.default_rng(0).integers(-500, 2000, (9, 11, 7)).astype(np.int16)
PYDICOM = Path(pydicom.__file__).parent / "data"


@pytest.fixture
def ct(tmp_path: Path) -> Any:
    write_ct(tmp_path / "ct", PIXELS, AFFINE)
    return tmp_path / "ct"


# --- what is read -------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_reads_what_simpleitk_reads(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("series") / "ct"
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    # DICOM's rows, columns and slices are right-handed once the slices are sorted along row x column.
    turn *= np.sign(np.linalg.det(turn))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * rng.uniform(0.5, 4, 3), rng.uniform(-100, 100, 3)
    kind: Any = (np.int16, np.uint16, np.uint8)[rng.integers(3)]
    pixels = rng.integers(*((-500, 500) if kind is np.int16 else (0, 250)), (5, 6, 4)).astype(kind)
    slopes = rng.uniform(0.1, 3, 4).round(4).tolist()
    write_ct(folder, pixels, affine, slope=slopes, inter=float(rng.integers(-1024, 10)))
    scan = read_dicom(folder)
    values, place = by_simpleitk(folder)
    np.testing.assert_allclose(scan.data, values, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(scan.affine, place, atol=1e-4)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(scan.stored, pixels)
    np.testing.assert_array_equal(scan.slope.ravel(), slopes)


def test_bits_stored_sign_and_unused_bits(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(-2048, 2047, (5, 6, 4)).astype(np.int16)
    dirty = (pixels.astype(np.uint16) & 0x0FFF) | 0x5000  # 12 bits, and something else above them
    write_ct(tmp_path / "ct", dirty.view(np.int16), AFFINE, BitsStored=12, HighBit=11)
    scan = read_dicom(tmp_path / "ct")
    np.testing.assert_array_equal(scan.stored, pixels)
    assert [bound.item() for bound in scan.stored_range] == [-2048, 2047]


def test_padding_is_no_part_of_the_scan(tmp_path: Path) -> None:
    pixels = PIXELS.copy()
    pixels[:2] = -2000
    write_ct(tmp_path / "ct", pixels, AFFINE, PixelPaddingValue=-2000)
    scan = read_dicom(tmp_path / "ct")
    np.testing.assert_array_equal(scan.padding, pixels == -2000)
    write_ct(tmp_path / "range", pixels, AFFINE, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-400)
    np.testing.assert_array_equal(read_dicom(tmp_path / "range").padding, pixels <= -400)


def test_inverted_films_are_turned_round(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4095, (5, 6, 1)).astype(np.uint16)
    look: Any = {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"}
    write_ct(tmp_path / "film", pixels, AFFINE, inter=0.0, Modality="CR", **look)
    film = read_dicom(tmp_path / "film")
    np.testing.assert_array_equal(film.data, 4095.0 - pixels)
    assert "MONOCHROME1" in film.warnings[-1]
    write_ct(tmp_path / "ct", pixels, AFFINE, inter=-1024.0, **look)
    np.testing.assert_array_equal(read_dicom(tmp_path / "ct").data, pixels - 1024.0)


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    slopes = [1.0, 2, 1, 0.5, 1, 1, 1]
    write_enhanced(tmp_path / "ct.dcm", PIXELS, AFFINE, slopes=slopes)
    scan = read_dicom(tmp_path / "ct.dcm")
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-5)
    np.testing.assert_array_equal(scan.stored, PIXELS)
    np.testing.assert_allclose(scan.data, PIXELS * np.array(slopes) - 1024, atol=1e-3)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_pixels_that_only_gdcm_can_decode(tmp_path: Path, compressor: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (12, 16, 1)).astype(np.uint16)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(tmp_path / "one.dcm"))
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.Execute(SimpleITK.GetImageFromArray(pixels.transpose(2, 1, 0)))
    syntax = pydicom.dcmread(tmp_path / "one.dcm").file_meta.TransferSyntaxUID
    assert syntax == {"JPEG": pydicom.uid.JPEGLosslessSV1, "JPEG2000": pydicom.uid.JPEG2000Lossless}[compressor]
    np.testing.assert_array_equal(read_dicom(tmp_path / "one.dcm").stored, pixels)


@pytest.mark.parametrize("syntax", [pydicom.uid.RLELossless, pydicom.uid.DeflatedExplicitVRLittleEndian])
def test_compressed_series(ct: Any, syntax: Any) -> None:
    def compress(dataset: Any) -> None:
        if syntax == pydicom.uid.RLELossless:
            dataset.compress(syntax)
        dataset.file_meta.TransferSyntaxUID = syntax

    rewrite(ct, compress)
    np.testing.assert_array_equal(read_dicom(ct).stored, PIXELS)


def test_gantry_tilt_stays_in_the_affine(tmp_path: Path) -> None:
    tilted = AFFINE.copy()
    tilted[1, 2] = 0.9
    write_ct(tmp_path / "ct", PIXELS, tilted)
    scan = read_dicom(tmp_path / "ct")
    np.testing.assert_allclose(scan.affine, tilted, atol=1e-4)
    assert "sheared by 19.8 degrees" in scan.warnings[0]


# --- where it is read from ----------------------------------------------------------------------------------------


def test_folder_zip_and_dicomdir_are_one(ct: Any, tmp_path: Path) -> None:
    nested = tmp_path / "study" / "a" / "b"
    shutil.copytree(ct, nested)
    (tmp_path / "study" / "notes.txt").write_text("nothing")
    (tmp_path / "study" / ".DS_Store").write_bytes(b"x")
    directory = Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory.FileSetID = "SET"
    directory.save_as(tmp_path / "study" / "DICOMDIR", enforce_file_format=True)
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in nested.iterdir():
            archive.write(path, f"x/{path.name}")
    whole = read_dicom(ct)
    for place in (tmp_path / "study", tmp_path / "study.zip", tmp_path / "study" / "DICOMDIR"):
        assert is_dicom(place)
        scan = read_dicom(place)
        np.testing.assert_array_equal(scan.data, whole.data)
        assert scan.sha256 == whole.sha256


@pytest.mark.parametrize("name", ["../evil.dcm", "/etc/evil.dcm", "a/../../evil.dcm", "C:\\evil.dcm"])
def test_archives_that_point_outside_are_refused(ct: Any, tmp_path: Path, name: Any) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), next(ct.iterdir()).read_bytes())
    with pytest.raises(InputError, match=r"study.zip: the archive has entries that point outside of it"):
        read_dicom(tmp_path / "study.zip")


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "study.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InputError, match=r"study.zip: is a damaged zip archive"):
        read_dicom(tmp_path / "study.zip")


def test_several_series_are_listed_without_patient_data(ct: Any, tmp_path: Path) -> None:
    write_ct(tmp_path / "ct" / "more", PIXELS[:5, :6, :3], AFFINE, SeriesNumber=9, Modality="MR", PatientName="Secret")
    with pytest.raises(InputError) as caught:
        read_dicom(ct)
    text = str(caught.value)
    assert "choose one with `series` NUMBER. There are 1: CT, 7 of 9 x 11; 2: MR, 3 of 5 x 6." in text
    assert "Secret" not in text
    assert read_dicom(ct, series="2").shape == (5, 6, 3)
    uid = pydicom.dcmread(next((ct / "more").iterdir())).SeriesInstanceUID
    assert read_dicom(ct, series=uid).shape == (5, 6, 3)
    with pytest.raises(InputError, match=r"there is no series 3. There are 1: CT"):
        read_dicom(ct, series="3")
    with pytest.raises(InputError, match=r"there is no series with this UID"):
        read_dicom(ct, series="1.2.3")


def test_one_slice_of_a_series_is_one_slice(ct: Any) -> None:
    scan = read_dicom(ct / "IM0000")
    assert scan.shape == (9, 11, 1)
    assert "there are 6 more DICOM files beside it: give the folder" in scan.warnings[0]
    np.testing.assert_allclose(scan.spacing, (0.8, 0.7, 2.5))


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_missing_slice_is_named(ct: Any) -> None:
    rewrite(ct, lambda dataset: None)
    for path in list(ct.iterdir()):
        if pydicom.dcmread(path).InstanceNumber == 4:
            path.unlink()
    with pytest.raises(GeometryError, match=r"slices are 2.5 mm apart, but 5 mm between instance 3 and instance 5"):
        read_dicom(ct)
    scan = read_dicom(ct, allow_gaps=True)
    assert scan.shape == (9, 11, 6)
    assert "taken as evenly spaced" in scan.warnings[-1]


def test_copies_are_named(ct: Any) -> None:
    copy = pydicom.dcmread(ct / "IM0002")
    number, copy.InstanceNumber, copy.SOPInstanceUID = copy.InstanceNumber, 40, generate_uid()
    copy.save_as(ct / "copy")
    for allow in (False, True):
        with pytest.raises(
            GeometryError, match=rf"instance (40 and instance {number}|{number} and instance 40) lie at"
        ):
            read_dicom(ct, allow_gaps=allow)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"PixelSpacing": [0.9, 0.9]}, "pixel spacing"),
        ({"ImageOrientationPatient": [0.8, 0.6, 0, -0.6, 0.8, 0]}, "orientation"),
        ({"Rows": 9, "Columns": 11}, "size"),
    ],
)
def test_slices_that_do_not_belong_are_named(ct: Any, change: Any, what: Any) -> None:
    def differ(dataset: Any) -> None:
        for keyword, value in change.items():
            setattr(dataset, keyword, value)

    rewrite(ct, differ, lambda dataset: dataset.InstanceNumber in (2, 6))
    with pytest.raises(GeometryError, match=rf"instances [26], [26] of the series differ from the other 5 in {what}"):
        read_dicom(ct)


def test_a_slice_beside_the_others_is_named(ct: Any) -> None:
    def aside(dataset: Any) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x + 3, y, z]

    rewrite(ct, aside, lambda dataset: dataset.InstanceNumber == 3)
    with pytest.raises(GeometryError, match=r"instance 3 lies up to 3 mm beside the line of the other slices"):
        read_dicom(ct)


def test_slices_without_places(ct: Any) -> None:
    def nowhere(dataset: Any) -> None:
        del dataset.ImagePositionPatient

    rewrite(ct, nowhere, lambda dataset: dataset.InstanceNumber == 5)
    with pytest.raises(GeometryError, match=r"instance 5 has no position or orientation in the patient"):
        read_dicom(ct)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RescaleSlope": 0}, r"instance \d has an unusable rescale slope"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"7 x a colour image \(PALETTE COLOR\)"),
        ({"SOPClassUID": pydicom.uid.RTDoseStorage}, r"7 x an RT Dose"),
        ({"PixelData": b"\0" * 10}, r"pixels are damaged or cut off"),
        ({"PixelSpacing": [0, 0]}, r"pixel spacing in the header is unusable"),
        ({"ModalityLUTSequence": [Dataset()]}, r"Modality LUT"),
    ],
)
def test_what_cannot_be_read_is_said(ct: Any, change: Any, message: Any) -> None:
    def break_it(dataset: Any) -> None:
        for keyword, value in change.items():
            setattr(dataset, keyword, value)

    rewrite(ct, break_it)
    with pytest.raises(MaflError, match=message):
        read_dicom(ct)


def test_what_no_codec_decodes_names_the_syntax_and_the_remedy(ct: Any) -> None:
    def claim(dataset: Any) -> None:
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless

    rewrite(ct, claim)
    with pytest.raises(InputError, match=r"High-Throughput JPEG 2000 .* cannot be decoded here.*pip install pylibjpeg"):
        read_dicom(ct)


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_files_end_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    write_ct(folder / "ct", PIXELS[:, :, :2], AFFINE)
    path = folder / "ct" / "IM0000"
    raw = bytearray(path.read_bytes())
    # Shares of the length, for UIDs make it differ from file to file.
    for _ in range(data.draw(st.integers(1, 6))):
        raw[int(data.draw(st.floats(0, 1)) * (len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[max(1, int(data.draw(st.floats(0, 1)) * len(raw))) :]
    path.write_bytes(bytes(raw))
    for place in (path, folder / "ct"):
        scan = read_or_explain(place)
        assert isinstance(scan, str) or np.isfinite(scan.data).all()


def read_or_explain(path: Any) -> Any:
    """The scan, or the one sentence of its refusal; any other exception is a failure."""
    try:
        return read_dicom(path)
    except MaflError as exc:
        sentence = str(exc)
    assert sentence
    assert "\n" not in sentence
    return sentence


def corpus() -> Any:
    return sorted(path for path in PYDICOM.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.relative_to(PYDICOM).as_posix())
def test_every_file_that_pydicom_ships_is_read_or_explained(path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    scan = read_or_explain(path)
    if isinstance(scan, str):
        assert path.name in scan
    else:
        assert np.isfinite(scan.data).all()
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)
        reader.SetFileName(str(path))
        values, place = array_and_affine(reader.Execute())
        capfd.readouterr()
        np.testing.assert_allclose(scan.data, values, rtol=1e-6)
        np.testing.assert_allclose(scan.affine[:, [0, 1, 3]], place[:, [0, 1, 3]], atol=1e-4)
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


@pytest.mark.parametrize("folder", sorted({path.parent for path in corpus()}), ids=lambda path: path.name)
def test_every_folder_that_pydicom_ships_is_read_or_explained(folder: Path) -> None:
    assert read_or_explain(folder)


def test_a_name_that_is_a_uid_is_not_shown(tmp_path: Path) -> None:
    name = "1.2.840.113619.2.55.3.604688119"
    write_ct(tmp_path / name, PIXELS, AFFINE)
    assert read_dicom(tmp_path / name).name == "dicom"


# --- inspect ------------------------------------------------------------------------------------------------------


def test_inspect_says_what_is_there(ct: Any) -> None:
    facts = describe_dicom(ct)
    assert facts["stacks"] == [{"series": 1, "modality": "CT", "frames": 7, "columns": 9, "rows": 11}]
    assert facts["shape"] == [9, 11, 7]
    assert facts["rescale_slope"] == [1.0]
    assert facts["refused_as_image"] is None
    rewrite(ct, lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.3"), lambda d: d.InstanceNumber > 4)
    assert [each["frames"] for each in describe_dicom(ct)["stacks"]] == [3, 4]


def test_raw_dicom_without_preamble(ct: Any, tmp_path: Path) -> None:
    path = next(ct.iterdir())
    raw = path.read_bytes()
    length = struct.unpack("<I", raw[140:144])[0]
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(raw[144 + length :])  # Neither preamble nor file meta: explicit VR little endian as it stands.
    whole, scan = read_dicom(path), read_dicom(bare)
    np.testing.assert_array_equal(scan.data, whole.data)
    assert whole.datasets[0].SOPClassUID == CTImageStorage


def test_a_header_that_claims_any_number_of_frames_is_not_believed(ct: Any) -> None:
    rewrite(ct, lambda dataset: setattr(dataset, "NumberOfFrames", 2_000_000_000))
    with pytest.raises(InputError, match=r"says it has 2000000000 frames, but not where each lies"):
        read_dicom(ct)


def test_padding_values_beyond_bits_stored_are_matched(tmp_path: Path) -> None:
    pixels = PIXELS.clip(0).astype(np.uint16)
    pixels[:2] = 63536
    write_ct(tmp_path / "ct", pixels, AFFINE, BitsStored=12, HighBit=11, PixelPaddingValue=63536)
    padding = read_dicom(tmp_path / "ct").padding
    assert padding is not None
    assert padding[:2].all()


def test_odd_archives_end_in_one_sentence(ct: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "dot.zip", "w") as archive:
        archive.writestr(".", b"x")
        archive.writestr("IM", next(ct.iterdir()).read_bytes())
    assert read_or_explain(tmp_path / "dot.zip")
    with zipfile.ZipFile(tmp_path / "deflated.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IM", next(ct.iterdir()).read_bytes())
    raw = bytearray((tmp_path / "deflated.zip").read_bytes())
    raw[60:120] = bytes(60)
    (tmp_path / "deflated.zip").write_bytes(bytes(raw))
    assert "an entry of the archive is damaged" in read_or_explain(tmp_path / "deflated.zip")


def nested(depth: Any, tag: Any) -> Any:
    """An element whose value is a sequence in a sequence, so many deep."""
    value = b""
    for _ in range(depth):
        item = b"\x08\x00\x15\x11SQ\0\0" + len(value).to_bytes(4, "little") + value
        value = b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item
    return RawDataElement(tag, "SQ", len(value), value, 0, False, True)


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("PhotometricInterpretation", "its pixels are damaged"),
        ("SoftwareVersions", None),
        ("RequestAttributesSequence", "sequences nested more than 32 deep"),
    ],
)
def test_sequences_nested_without_end_take_no_time(ct: Any, keyword: Any, words: Any) -> None:
    """As text, which each level indents, two thousand of them are gigabytes."""

    def deepen(dataset: Any) -> None:
        dataset._dict[Tag(keyword)] = nested(2000, Tag(keyword))

    rewrite(ct, deepen)
    started = time.process_time()
    if words is None:
        assert read_dicom(ct).data.shape == PIXELS.shape
    else:
        with pytest.raises(InputError, match=words):
            read_dicom(ct)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("keyword", ["MediaStorageSOPClassUID", "ImplementationVersionName"])
def test_words_before_the_header_that_cannot_be_decoded_are_not_missed(ct: Any, keyword: Any) -> None:
    before = read_dicom(ct).data
    for path in ct.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta._dict[Tag(keyword)] = RawDataElement(Tag(keyword), "U\0", 4, b"1.2\0", 0, False, True)
        dataset.save_as(path, enforce_file_format=False)
        with pytest.raises(NotImplementedError):
            pydicom.dcmread(path).file_meta.get(keyword)
    np.testing.assert_array_equal(read_dicom(ct).data, before)
    assert describe_dicom(ct)
    assert is_dicom(ct)
