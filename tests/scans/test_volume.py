"""A written file must be the file that was read, but for what was changed; nibabel and SimpleITK judge."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.quaternions import angle_axis2mat
from SimpleITK import GetArrayFromImage, ReadImage

from mafl_cli.errors import InputError, OutputError
from mafl_cli.scans.nifti import describe_image, read_image, read_labels
from mafl_cli.scans.nifti_write import write_float, write_image, write_labels
from mafl_cli.scans.volume import stored_grid

SHAPE = (6, 5, 4)
NOTE = "MAFL ADVERSARIAL - NOT FOR CLINICAL USE"

STRAIGHT = np.array([[0.9, 0, 0, -20], [0, 0.8, 0, 33], [0, 0, 2.5, -8], [0, 0, 0, 1.0]])
LEFT_HANDED = STRAIGHT @ np.diag([-1, 1, 1, 1])
OBLIQUE = STRAIGHT.copy()
OBLIQUE[:3, :3] = angle_axis2mat(0.35, (1, -2, 3)) @ STRAIGHT[:3, :3]


def raw_values(dtype: Any, shape: Any = SHAPE, seed: int = 0) -> Any:
    """Stored numbers that use much of the type's range, its ends included."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return (rng.standard_normal(shape) * 300).astype(dtype)
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.itemsize < 4 else (-100_000, 100_000)
    values = rng.integers(low, high, shape, endpoint=True)
    values.flat[:2] = low, high
    return values.astype(dtype)


def save(
    path: Any,
    raw: Any,
    affine: Any = STRAIGHT,
    *,
    forms: Any = (1, 1),
    slope: Any = None,
    inter: float = 0.0,
    endianness: str = "<",
    nifti2: bool = False,
    extension: Any = b"",
    units: int = 2,
    **fields: Any,
) -> Any:
    """A file put together by hand, so that its stored numbers and header fields are exactly these."""
    header = (nib.Nifti2Header if nifti2 else nib.Nifti1Header)(endianness=endianness)
    header.set_data_dtype(raw.dtype)
    header.set_data_shape(raw.shape)
    header.set_qform(affine, forms[1])
    header.set_sform(affine, forms[0])
    header["qform_code"], header["sform_code"] = forms[1], forms[0]
    if slope is not None:
        header["scl_slope"], header["scl_inter"] = slope, inter
    header["xyzt_units"] = units
    for name, value in fields.items():
        header[name] = value
    flags = bytes(4)
    if extension:
        size = -(-(len(extension) + 8) // 16) * 16
        body = struct.pack(endianness + "ii", size, 6) + extension
        flags = b"\x01\0\0\0" + body.ljust(size, b"\0")
    header["vox_offset"] = header.sizeof_hdr + len(flags)
    content = header.binaryblock + flags + raw.astype(header.get_data_dtype()).tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


SCANS = {
    "int16": {"raw": raw_values("i2")},
    "int16-slope": {"raw": raw_values("i2"), "slope": 0.25, "inter": -1024.0},
    "int16-negative-slope": {"raw": raw_values("i2"), "slope": -0.1, "inter": 7.0},
    "int16-slope-0-means-none": {"raw": raw_values("i2"), "slope": 0.0},
    "uint8": {"raw": raw_values("u1"), "cal_min": 10, "cal_max": 200},
    "uint16": {"raw": raw_values("u2"), "slope": 1.0, "inter": -1000.0},
    "int32": {"raw": raw_values("i4")},
    "float32": {"raw": raw_values("f4")},
    "float32-slope": {"raw": raw_values("f4"), "slope": 3.0, "inter": 1.5},
    "float64": {"raw": raw_values("f8")},
    "big-endian-int16": {"raw": raw_values("i2"), "endianness": ">", "slope": 2.0, "extension": b"a comment"},
    "big-endian-float32": {"raw": raw_values("f4"), "endianness": ">"},
    "left-handed": {"raw": raw_values("i2"), "affine": LEFT_HANDED},
    "oblique": {"raw": raw_values("i2"), "affine": OBLIQUE},
    "oblique-left-handed": {"raw": raw_values("u1"), "affine": OBLIQUE @ np.diag([1, -1, 1, 1])},
    "sform-only": {"raw": raw_values("i2"), "affine": OBLIQUE, "forms": (2, 0)},
    "qform-only": {"raw": raw_values("i2"), "affine": OBLIQUE, "forms": (0, 4)},
    "2d": {"raw": raw_values("i2", (6, 5))},
    "trailing-singletons": {"raw": raw_values("u1", (6, 5, 4, 1, 1)), "toffset": 1.5},
    "extension": {"raw": raw_values("i2"), "extension": b"<not=read/>" * 9},
    "nifti2": {"raw": raw_values("i2"), "nifti2": True, "slope": 0.5, "extension": b"x"},
    "header-text": {"raw": raw_values("i2"), "descrip": b"scanner", "aux_file": b"aux", "intent_name": b"T1"},
    "uncompressed": {"raw": raw_values("i2"), "suffix": ".nii"},
}


@pytest.fixture(params=SCANS, ids=str)
def scan(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    settings_ = dict(SCANS[request.param])
    return save(tmp_path / f"scan{settings_.pop('suffix', '.nii.gz')}", **settings_)


def content_of(path: Any) -> Any:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def header_of(path: Any) -> Any:
    """The header as on disk: nibabel's images would clear scl_slope."""
    content = content_of(path)
    header_class = nib.Nifti2Header if is_nifti2(path) else nib.Nifti1Header
    return header_class(content[: header_class.sizeof_hdr])


def raw_of(path: Any) -> Any:
    return np.asanyarray(nib.load(path).dataobj.get_unscaled())


def is_nifti2(path: Any) -> Any:
    """SimpleITK reads no NIfTI-2."""
    return content_of(path)[4:7] == b"n+2"


def assert_same_place_for_simpleitk(out: Any, scan: Any) -> None:
    if is_nifti2(scan):
        return
    written, source = ReadImage(str(out)), ReadImage(str(scan))
    assert written.GetSize() == source.GetSize()
    assert written.GetSpacing() == source.GetSpacing()
    assert written.GetOrigin() == source.GetOrigin()
    assert written.GetDirection() == source.GetDirection()
    np.testing.assert_allclose(squeezed(GetArrayFromImage(written).T), read_image(out).data, rtol=1e-6)


def squeezed(array: Any) -> Any:
    return array.reshape((*array.shape, 1, 1)[:3])


def perturbed(volume: Any, share: float = 0.4, seed: int = 1) -> Any:
    """Native values with some voxels moved by about 30 units, some of them out of the type's range."""
    rng = np.random.default_rng(seed)
    change = rng.normal(0, 30, volume.shape) + rng.normal(0, abs(volume.slope), volume.shape)
    return np.where(rng.random(volume.shape) < share, volume.data + change, volume.data).astype(np.float32)


# Reading


def test_native_values_agree_with_nibabel_and_simpleitk(scan: Any) -> None:
    volume = read_image(scan)
    image = nib.load(scan)
    np.testing.assert_array_equal(volume.data, squeezed(image.get_fdata()).astype(np.float32))
    if not is_nifti2(scan):
        by_itk = GetArrayFromImage(ReadImage(str(scan))).T
        np.testing.assert_allclose(volume.data, squeezed(by_itk), rtol=1e-6)
    np.testing.assert_array_equal(volume.affine, image.affine)
    assert volume.data.dtype == np.float32
    assert volume.data.flags.c_contiguous
    assert volume.warnings == ()
    assert volume.sha256 == hashlib.sha256(scan.read_bytes()).hexdigest()
    assert volume.dtype == image.get_data_dtype().newbyteorder("=")
    assert volume.axcodes == "".join(nib.aff2axcodes(image.affine))


def test_slope_0_switches_the_intercept_off_too(tmp_path: Path) -> None:
    """NIfTI-1: with scl_slope 0 the two fields are ignored. (SimpleITK adds the intercept all the same.)"""
    path = save(tmp_path / "scan.nii", raw_values("i2"), slope=0.0, inter=9.0)
    np.testing.assert_array_equal(read_image(path).data, raw_values("i2"))


@pytest.mark.parametrize(("units", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_affine_is_in_mm_whatever_unit_the_file_uses(tmp_path: Path, units: Any, mm: Any) -> None:
    path = save(tmp_path / "scan.nii", raw_values("i2"), units=units)
    np.testing.assert_allclose(read_image(path).spacing, np.array([0.9, 0.8, 2.5]) * mm)
    np.testing.assert_allclose(read_image(path).spacing, ReadImage(str(path)).GetSpacing(), rtol=1e-6)


@pytest.mark.parametrize("name", ["scan.nii", "scan.NII.GZ"])
def test_contents_decide_about_compression_not_the_suffix(tmp_path: Path, name: Any) -> None:
    path = save(tmp_path / "right.nii", raw_values("i2"))
    other = tmp_path / name
    other.write_bytes(path.read_bytes() if "GZ" in name else gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read_image(other).data, read_image(path).data)


def test_2d_file_without_a_third_axis_gets_a_unit_one(tmp_path: Path) -> None:
    flat = STRAIGHT.copy()
    flat[2, 2] = 0
    path = save(tmp_path / "slice.nii", raw_values("i2", (6, 5)), forms=(1, 0))
    header = header_of(path)
    header["srow_z"] = flat[2]
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    volume = read_image(path)
    assert volume.shape == (6, 5, 1)
    np.testing.assert_allclose(volume.spacing, (0.9, 0.8, 1), rtol=1e-6)


def test_warns_that_left_and_right_are_unknown(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", raw_values("i2"), forms=(0, 0))
    assert [w for w in read_image(path).warnings if "left and right are a guess" in w]


@pytest.mark.parametrize(("shift", "warned"), [(0.03, False), (0.05, True)])
def test_warns_when_sform_and_qform_disagree(tmp_path: Path, shift: Any, warned: Any) -> None:
    path = save(tmp_path / "scan.nii", raw_values("i2"), qoffset_y=33 + shift)
    warnings = read_image(path).warnings
    assert len(warnings) == warned
    assert all("scan.nii: sform and qform disagree by up to 0.05 mm" in warning for warning in warnings)
    np.testing.assert_allclose(read_image(path).affine, STRAIGHT, rtol=1e-6)


def test_a_broken_qform_beside_a_good_sform_is_only_a_warning(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", raw_values("i2"), quatern_b=3.0)
    assert read_image(path).warnings == ("scan.nii: the qform is corrupt; the sform is used.",)


def test_a_repaired_header_is_a_warning_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "scan.nii", raw_values("i2"), pixdim=[1, -0.9, 0.8, 2.5, 1, 1, 1, 1])
    (warning,) = read_image(path).warnings
    assert warning.startswith("scan.nii: odd NIfTI header: pixdim")
    assert capfd.readouterr() == ("", "")


def with_values(*values: Any) -> Any:
    raw = raw_values("f4")
    raw.flat[: len(values)] = values
    return raw


def patched(offset: Any, patch: Any) -> Any:
    def write(path: Any) -> None:
        content = bytearray(save(path, raw_values("i2")).read_bytes())
        content[offset : offset + len(patch)] = patch
        path.write_bytes(content)

    return write


def zipped(path: Any) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scan.nii", b"...")


REFUSALS = {
    "missing": ("scan.nii", lambda path: None, r"^scan.nii does not exist"),
    "folder": ("scan.nii", lambda path: path.mkdir(), r"^scan.nii is a folder"),
    "empty": ("scan.nii.gz", lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
    "zeros": ("scan.nii", lambda path: path.write_bytes(bytes(5000)), "a file of zero bytes"),
    "text": ("scan.nii", lambda path: path.write_text("i,j,k\n"), "not a NIfTI file but a text file"),
    "html": ("scan.nii.gz", lambda path: path.write_text("<!DOCTYPE html>"), "perhaps a failed download"),
    "lfs": ("scan.nii", lambda path: path.write_text("version https://git-lfs.x/1"), "Git LFS pointer"),
    "dicom": ("scan.nii", lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(300)), "a DICOM file"),
    "zip": ("scan.zip", zipped, "a zip archive"),
    "png": ("scan.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "a PNG picture"),
    "noise": ("scan.nii", lambda path: path.write_bytes(b"\x01\x02" * 500), "something unknown"),
    "pair": ("scan.nii", patched(344, b"ni1\0"), "the header half of a .hdr/.img pair"),
    "analyze": ("scan.nii", patched(344, bytes(4)), "an Analyze 7.5 or damaged"),
    "suffix": ("scan.img", lambda path: save(path, raw_values("i2")), "rename it to .nii or .nii.gz"),
    "truncated-gzip": (
        "scan.nii.gz",
        lambda path: path.write_bytes(save(path, raw_values("i2")).read_bytes()[:-20]),
        "scan.nii.gz is truncated: its gzip data end early",
    ),
    "damaged-gzip": (
        "scan.nii.gz",
        lambda path: path.write_bytes(save(path, raw_values("i2")).read_bytes()[:-8] + bytes(8)),
        "gzip data are damaged",
    ),
    "truncated": (
        "scan.nii",
        lambda path: path.write_bytes(save(path, raw_values("i2")).read_bytes()[:-1]),
        "truncated: 591 of 592 bytes are there",
    ),
    "header-only": (
        "scan.nii",
        lambda path: path.write_bytes(save(path, raw_values("i2")).read_bytes()[:348]),
        "truncated",
    ),
    "dtype-unknown": ("scan.nii", patched(70, struct.pack("<h", 999)), "the NIfTI header is corrupt"),
    "dtype-binary": ("scan.nii", patched(70, struct.pack("<h", 1)), "the NIfTI header is corrupt"),
    "offset": ("scan.nii", patched(108, struct.pack("<f", 20)), "the NIfTI header is corrupt"),
    "offset-nan": ("scan.nii", patched(108, struct.pack("<f", np.nan)), "the NIfTI header is corrupt"),
    "inter-inf": ("scan.nii", patched(112, struct.pack("<ff", 1, np.inf)), "the NIfTI header is corrupt"),
    "no-voxels": ("scan.nii", patched(42, struct.pack("<h", 0)), "holds no voxels .* 0 x 5 x 4"),
    "negative-size": ("scan.nii", patched(42, struct.pack("<hh", -6, -5)), "holds no voxels"),
    "no-dimensions": ("scan.nii", patched(40, struct.pack("<h", 0)), "holds no voxels"),
    "1d": ("scan.nii", lambda path: save(path, raw_values("i2", (7,))), "one row of 7 numbers"),
    "4d": ("scan.nii", lambda path: save(path, raw_values("i2", (6, 5, 4, 3))), r"holds 3 volumes \(4D\)"),
    "5d": ("scan.nii", lambda path: save(path, raw_values("i2", (6, 5, 4, 1, 3))), "a vector per voxel"),
    "complex": ("scan.nii", lambda path: save(path, raw_values("f4").astype("c8")), "holds complex numbers"),
    "rgb": (
        "scan.nii",
        lambda path: save(path, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        r"holds colours \(RGB\)",
    ),
    "nan": ("scan.nii", lambda path: save(path, with_values(np.nan, np.inf)), "2 of 120 voxels are NaN, Inf"),
    "huge": ("scan.nii", lambda path: save(path, raw_values("f4"), slope=3e38), "beyond float32"),
    "constant": ("scan.nii", lambda path: save(path, np.full(SHAPE, 7, "i2")), "every voxel is 7"),
    "affine-huge": (
        "scan.nii",
        lambda path: save(path, raw_values("i2"), STRAIGHT * [1, 1, 1, 1e12], nifti2=True),
        "affine is singular or not finite",
    ),
    "singular": (
        "scan.nii",
        lambda path: save(path, raw_values("i2"), srow_x=0, forms=(1, 0)),
        "affine is singular",
    ),
    "affine-nan": (
        "scan.nii",
        lambda path: save(path, raw_values("i2"), srow_x=np.nan, forms=(1, 0)),
        "affine is singular or not finite",
    ),
    "qform-only-broken": (
        "scan.nii",
        lambda path: save(path, raw_values("i2"), quatern_b=3.0, forms=(0, 1)),
        "the affine is unusable",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_with_the_reason_and_without_the_folder(tmp_path: Path, case: Any) -> None:
    name, make, message = REFUSALS[case]
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)
    assert name in str(caught.value)


def test_refuses_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.symlink_to(path)
    with pytest.raises(InputError, match=r"^scan.nii: cannot be read \("):
        read_image(path)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=300,
    derandomize=True,
)
@given(
    patches=st.lists(st.tuples(st.integers(0, 343), st.binary(min_size=1, max_size=4)), max_size=4),
    cut=st.integers(0, 592),
)
def test_a_damaged_file_is_read_or_refused_but_never_crashes(tmp_path: Path, patches: Any, cut: Any) -> None:
    path = tmp_path / "scan.nii"
    content = bytearray(save(path, raw_values("f4")).read_bytes())
    for offset, patch in patches:
        content[offset : offset + len(patch)] = patch
    path.write_bytes(content[: len(content) - (cut if cut < 100 else 0)])
    try:
        facts = describe_image(path)
    except InputError:
        return
    json.dumps(facts, allow_nan=False)
    if facts["refused_as_image"]:
        with pytest.raises(InputError, match=r"scan\.nii"):
            read_image(path)
    else:
        volume = read_image(path)
        assert np.isfinite(volume.data).all()
        assert min(volume.spacing) > 0


@pytest.mark.parametrize(
    ("dtype", "slope", "top", "rounded"),
    [
        ("i4", 1.0, 2**24, 0),
        ("i4", 1.0, 2**24 + 1, 1),
        ("u4", 1.0, 2**32 - 1, 1),
        ("i8", 1.0, -(2**40) - 1, 1),
        ("i8", 1.0, 2**40, 0),
        ("i4", 0.001, 2**24 + 1, 1),
        ("i2", 0.001, 20000, 0),
    ],
)
def test_whole_numbers_that_float32_cannot_tell_apart_are_said(
    tmp_path: Path, dtype: Any, slope: Any, top: Any, rounded: Any
) -> None:
    raw = np.arange(120).reshape(SHAPE).astype(dtype)
    raw[1, 1, 1] = top
    volume = read_image(save(tmp_path / "scan.nii", raw, slope=slope))
    said = f"scan.nii: {rounded} of 120 voxels hold numbers too large for float32 to tell them from their neighbours"
    assert [warning[: len(said)] for warning in volume.warnings] == [said] * rounded
    write_image(tmp_path / "out.nii", volume, volume.data, save_as="source", note=NOTE)
    np.testing.assert_array_equal(raw_of(tmp_path / "out.nii"), raw)


def test_masks_have_no_numbers_that_large(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels up to 1.67772e\+07"):
        read_labels(save(tmp_path / "mask.nii", np.where(MASK == 2, 2**24 + 1, MASK).astype("i4")))


def test_a_file_gzipped_twice_is_called_so(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", raw_values("i2"))
    path.write_bytes(gzip.compress(path.read_bytes()))
    for read in (read_image, read_labels, describe_image):
        with pytest.raises(InputError, match=r"^scan.nii.gz is gzipped twice: unpack it once with gunzip"):
            read(path)


@pytest.mark.parametrize("behind", [b"text", bytes(512) + b"text", b"x" * 3_000_000])
def test_what_follows_gzip_data_is_ignored_with_a_word(tmp_path: Path, behind: Any) -> None:
    path = save(tmp_path / "scan.nii.gz", raw_values("i2"))
    plain = read_image(path)
    path.write_bytes(path.read_bytes() + behind)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.data, plain.data)
    assert volume.warnings == ("scan.nii.gz: something else follows its gzip data; it is ignored.",)
    assert volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert describe_image(path)["warnings"] == list(volume.warnings)


def test_gzip_data_in_several_pieces_are_one_file(tmp_path: Path) -> None:
    content = save(tmp_path / "scan.nii", raw_values("i2")).read_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]) + bytes(100))
    volume = read_image(path)
    np.testing.assert_array_equal(volume.data, raw_values("i2"))
    assert volume.warnings == ()


# Writing a changed scan


@pytest.mark.parametrize("save_as", ["float32", "source"])
def test_written_scan_keeps_geometry_and_header(scan: Any, tmp_path: Path, save_as: Any) -> None:
    volume = read_image(scan)
    out = tmp_path / "adversarial.nii.gz"
    write_image(out, volume, perturbed(volume), save_as=save_as, note=NOTE)

    before, after = header_of(scan), header_of(out)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    allowed = {"descrip"}
    if save_as == "float32":
        allowed |= {"datatype", "bitpix", "scl_slope", "scl_inter"}
        assert (after["scl_slope"], after["scl_inter"]) == (1, 0)
    assert changed <= allowed
    assert after["descrip"].item() == NOTE.encode()
    byte_order = after.endianness
    assert byte_order == before.endianness
    offset = int(before["vox_offset"])
    assert content_of(out)[before.sizeof_hdr : offset] == content_of(scan)[before.sizeof_hdr : offset]

    source, written = nib.load(scan), nib.load(out)
    np.testing.assert_array_equal(written.affine, source.affine)
    assert written.shape == source.shape
    assert written.header.get_zooms() == source.header.get_zooms()
    assert written.header.get_xyzt_units() == source.header.get_xyzt_units()
    assert after.get_data_dtype() == (before.get_data_dtype() if save_as == "source" else byte_order + "f4")
    contents = [e.get_content() for e in source.header.extensions]
    assert [e.get_content() for e in written.header.extensions] == contents

    assert_same_place_for_simpleitk(out, scan)


def test_float32_file_holds_the_values_bit_for_bit(scan: Any, tmp_path: Path) -> None:
    volume = read_image(scan)
    data = perturbed(volume)
    out = tmp_path / "adversarial.nii.gz"
    write_image(out, volume, data, save_as="float32", note=NOTE)
    np.testing.assert_array_equal(squeezed(raw_of(out)), data)
    np.testing.assert_array_equal(read_image(out).data, data)


def test_source_file_keeps_untouched_bits_and_rounds_the_rest_to_the_nearest(scan: Any, tmp_path: Path) -> None:
    volume = read_image(scan)
    data = perturbed(volume)
    out = tmp_path / "adversarial.nii.gz"
    write_image(out, volume, data, save_as="source", note=NOTE)
    raw, source = squeezed(raw_of(out)), squeezed(raw_of(scan))
    untouched = data == volume.data
    assert raw.dtype == source.dtype
    assert 0.3 < untouched.mean() < 0.9
    assert raw[untouched].tobytes() == source[untouched].tobytes()

    grid = stored_grid(volume, "source")
    native = raw.astype(np.float64) * volume.slope + volume.inter
    if grid is None:
        np.testing.assert_allclose(native[~untouched], data[~untouched], rtol=1e-6, atol=1e-4)
        return
    error = native - data
    step, low, high = (values.item() for values in (grid.step, grid.low, grid.high))
    inside = (data >= low) & (data <= high)
    assert np.abs(error[inside]).max() <= step * 0.5001
    np.testing.assert_allclose(native[data > high], high)
    np.testing.assert_allclose(native[data < low], low)


def test_source_rounding_has_no_bias(tmp_path: Path) -> None:
    path = save(tmp_path / "ct.nii", np.random.default_rng(0).integers(-1000, 1000, (40, 40, 20)).astype("i2"))
    volume = read_image(path)
    change = np.random.default_rng(1).uniform(-3, 3, volume.shape).astype(np.float32)
    write_image(tmp_path / "out.nii", volume, volume.data + change, save_as="source", note=NOTE)
    error = read_image(tmp_path / "out.nii").data - volume.data - change
    # Uniform rounding errors have a standard deviation of 0.29; truncation would shift the mean by up to 0.5.
    assert abs(error.mean()) < 4 * 0.29 / np.sqrt(error.size)


@pytest.mark.parametrize("save_as", ["float32", "source"])
def test_same_input_gives_the_same_bytes_whatever_the_name(scan: Any, tmp_path: Path, save_as: Any) -> None:
    volume = read_image(scan)
    for name in ("a.nii.gz", "other.nii.gz"):
        write_image(tmp_path / name, volume, volume.data, save_as=save_as, note=NOTE)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "other.nii.gz").read_bytes()
    flags, mtime = content[3], content[4:8]
    assert (flags, mtime) == (0, bytes(4))


def test_unchanged_scan_written_as_source_differs_only_in_its_description(scan: Any, tmp_path: Path) -> None:
    volume = read_image(scan)
    out = tmp_path / "same.nii"
    write_image(out, volume, volume.data.copy(), save_as="source", note=NOTE)
    before, after = content_of(scan), bytearray(out.read_bytes())
    start = 240 if isinstance(volume.header, nib.Nifti2Header) else 148
    assert after[start : start + 80].rstrip(b"\0") == NOTE.encode()
    after[start : start + 80] = before[start : start + 80]
    assert bytes(after) == before


def test_float64_bits_beyond_float32_survive_where_nothing_changed(tmp_path: Path) -> None:
    raw = raw_values("f8") + np.pi * 1e-9
    volume = read_image(save(tmp_path / "scan.nii.gz", raw))
    data = volume.data.copy()
    data[0, 0, 0] += 1
    write_image(tmp_path / "out.nii.gz", volume, data, save_as="source", note=NOTE)
    written = raw_of(tmp_path / "out.nii.gz")
    assert written[0, 0, 0] == data[0, 0, 0]
    np.testing.assert_array_equal(written.ravel()[1:], raw.ravel()[1:])


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_64_bit_integers_are_clipped_not_wrapped(tmp_path: Path, dtype: Any) -> None:
    raw = np.arange(120).reshape(SHAPE).astype(dtype)
    volume = read_image(save(tmp_path / "scan.nii", raw))
    data = volume.data.copy()
    data[0, 0, 0], data[0, 0, 1] = 1e30, -1e30
    write_image(tmp_path / "out.nii", volume, data, save_as="source", note=NOTE)
    written = raw_of(tmp_path / "out.nii")
    limits = np.iinfo(dtype)
    assert int(written[0, 0, 1]) == limits.min
    assert 0.999 * limits.max < int(written[0, 0, 0]) <= limits.max


def test_a_stored_float_that_its_type_cannot_hold_is_clipped(tmp_path: Path) -> None:
    volume = read_image(save(tmp_path / "scan.nii", raw_values("f4"), slope=1e-30))
    data = volume.data.copy()
    data[0, 0, 0] = 1e20
    write_image(tmp_path / "out.nii", volume, data, save_as="source", note=NOTE)
    assert raw_of(tmp_path / "out.nii")[0, 0, 0] == np.finfo(np.float32).max


def test_a_long_note_is_cut_and_leaves_the_field_terminated(tmp_path: Path) -> None:
    volume = read_image(save(tmp_path / "scan.nii", raw_values("i2")))
    write_image(tmp_path / "out.nii", volume, volume.data, save_as="source", note="é" + "x" * 200)
    assert content_of(tmp_path / "out.nii")[148:228] == b"?" + b"x" * 78 + b"\0"


def test_zero_voxel_offset_means_right_after_the_header(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", raw_values("i2"), slope=1.0)
    content = bytearray(path.read_bytes())
    content[108:112] = bytes(4)
    path.write_bytes(content)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.data, raw_values("i2"))
    write_image(tmp_path / "out.nii", volume, volume.data, save_as="source", note=NOTE)
    np.testing.assert_array_equal(raw_of(tmp_path / "out.nii"), raw_values("i2"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("int16", (1, -32768, 32767)),
        ("int16-slope", (0.25, -1024 - 8192, -1024 + 32767 / 4)),
        ("int16-negative-slope", (0.1, 7 - 3276.7, 7 + 3276.8)),
        ("uint8", (1, 0, 255)),
        ("float32", None),
        ("float64", None),
    ],
)
def test_stored_grid(tmp_path: Path, kind: Any, expected: Any) -> None:
    volume = read_image(save(tmp_path / "scan.nii.gz", **SCANS[kind]))
    assert stored_grid(volume, "float32") is None
    grid = stored_grid(volume, "source")
    if expected is None:
        assert grid is None
    else:
        np.testing.assert_allclose([grid.step.item(), grid.low.item(), grid.high.item()], expected, rtol=1e-6)


@pytest.mark.parametrize("save_as", ["float32", "source"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_never_written(tmp_path: Path, save_as: Any, bad: Any) -> None:
    volume = read_image(save(tmp_path / "scan.nii", raw_values("i2")))
    data = volume.data.copy()
    data[1, 1, 1] = bad
    with pytest.raises(ValueError, match="expected finite values"):
        write_image(tmp_path / "out.nii", volume, data, save_as=save_as, note=NOTE)
    with pytest.raises(ValueError, match="expected finite values"):
        write_float(tmp_path / "out.nii", volume, data, NOTE)
    assert not (tmp_path / "out.nii").exists()


# Masks and perturbations

MASK = np.arange(120).reshape(SHAPE) % 4


def test_label_maps_lie_on_the_scans_grid(scan: Any, tmp_path: Path) -> None:
    volume = read_image(scan)
    labels = np.arange(np.prod(volume.shape)).reshape(volume.shape) % 3
    out = tmp_path / "mask.nii.gz"
    write_labels(out, volume, labels)
    check_derived(scan, out, np.uint8)
    np.testing.assert_array_equal(squeezed(raw_of(out)), labels)
    np.testing.assert_array_equal(read_labels(out).labels, labels)


@pytest.mark.parametrize("top", [1, 255, 256, 65535])
def test_label_maps_use_the_smallest_type(tmp_path: Path, top: Any) -> None:
    volume = read_image(save(tmp_path / "scan.nii", raw_values("i2")))
    labels = np.where(MASK == 3, top, MASK)
    write_labels(tmp_path / "mask.nii", volume, labels)
    assert header_of(tmp_path / "mask.nii").get_data_dtype() == (np.uint8 if top < 256 else np.uint16)
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.nii").labels, labels)


def test_perturbations_are_float32_on_the_scans_grid(scan: Any, tmp_path: Path) -> None:
    volume = read_image(scan)
    change = np.random.default_rng(3).normal(0, 1, volume.shape)
    out = tmp_path / "perturbation.nii.gz"
    write_float(out, volume, change, NOTE)
    check_derived(scan, out, np.float32)
    np.testing.assert_array_equal(squeezed(raw_of(out)), change.astype(np.float32))
    assert header_of(out)["descrip"].item() == NOTE.encode()


def check_derived(scan: Any, out: Any, dtype: Any) -> None:
    header = header_of(out)
    assert header.get_data_dtype().newbyteorder("=") == dtype
    assert (header["scl_slope"], header["scl_inter"], header["cal_min"], header["cal_max"]) == (1, 0, 0, 0)
    assert (int(header["intent_code"]), header["intent_name"].item()) == (0, b"")
    source, written = nib.load(scan), nib.load(out)
    assert written.shape == source.shape
    assert len(written.header.extensions) == 0
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(written.get_sform(), source.get_sform())
    np.testing.assert_array_equal(written.get_qform(), source.get_qform())
    assert_same_place_for_simpleitk(out, scan)


@pytest.mark.parametrize("labels", [np.full(SHAPE, -1), np.full(SHAPE, 65536), np.zeros((1, 2, 3), int)])
def test_impossible_label_maps_are_never_written(tmp_path: Path, labels: Any) -> None:
    volume = read_image(save(tmp_path / "scan.nii", raw_values("i2")))
    with pytest.raises(ValueError, match="expected labels in"):
        write_labels(tmp_path / "mask.nii", volume, labels)


@pytest.mark.parametrize(
    "settings_",
    [
        {"raw": MASK.astype("u1")},
        {"raw": MASK.astype("i2"), "endianness": ">"},
        {"raw": MASK.astype("f4")},
        {"raw": (MASK - 0.0009).astype("f8")},
        {"raw": (MASK * 10).astype("i2"), "slope": 0.1},
        {"raw": (MASK[..., None] + 5).astype("u2"), "slope": 1.0, "inter": -5.0},
    ],
    ids=["uint8", "big-endian", "float32", "nearly-whole", "scaled", "offset-4d"],
)
def test_masks_are_read_as_whole_numbers(tmp_path: Path, settings_: Any) -> None:
    mask = read_labels(save(tmp_path / "mask.nii.gz", **settings_))
    np.testing.assert_array_equal(mask.labels, MASK)
    assert mask.labels.dtype == np.int64
    assert mask.labels.flags.c_contiguous
    np.testing.assert_allclose(mask.affine, STRAIGHT, rtol=1e-6)


def test_a_mask_may_be_empty(tmp_path: Path) -> None:
    assert not read_labels(save(tmp_path / "mask.nii", np.zeros(SHAPE, "u1"))).labels.any()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (with_values(0.5), r"mask.nii: \d+ of 120 voxels are not whole numbers; a mask must be a label map"),
        (np.where(MASK == 2, 2.002, MASK), "30 of 120 voxels are not whole"),
        (np.where(MASK == 2, np.nan, MASK), "mask.nii: 30 of 120 voxels are NaN; a mask must have a label everywhere"),
        (np.where(MASK == 2, np.inf, MASK), "30 of 120 voxels are not whole"),
        ((MASK - 1).astype("i2"), r"negative labels \(down to -1\)"),
        ((MASK * 30000).astype("i4"), "labels up to 90000, a mask only up to 65535"),
        (np.where(MASK == 2, 1e300, MASK), r"labels up to 1e\+300"),
        (MASK.astype("c8"), "complex"),
        (np.stack([MASK, MASK], axis=3).astype("u1"), "2 volumes"),
    ],
    ids=["scan", "fraction", "nan", "inf", "negative", "large", "beyond-int64", "complex", "4d"],
)
def test_masks_that_are_no_label_maps_are_refused(tmp_path: Path, raw: Any, message: Any) -> None:
    path = save(tmp_path / "mask.nii", raw)
    with pytest.raises(InputError, match=message):
        read_labels(path)


# When the disk says no


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the Linux device that is always full")
def test_full_disk_is_one_sentence(tmp_path: Path, name: Any) -> None:
    raw = np.random.default_rng(0).integers(-9000, 9000, (64, 64, 64)).astype("i2")
    volume = read_image(save(tmp_path / "scan.nii", raw))
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OutputError, match=rf"^{name}: no space left on the disk; make room"):
        write_image(tmp_path / name, volume, volume.data, save_as="float32", note=NOTE)


def test_missing_and_forbidden_folders_are_one_sentence(tmp_path: Path) -> None:
    volume = read_image(save(tmp_path / "scan.nii", raw_values("i2")))
    with pytest.raises(OutputError, match=r"^out.nii: cannot be written \(No such file or directory\)\.$"):
        write_float(tmp_path / "gone" / "out.nii", volume, volume.data, NOTE)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(OutputError, match=r"Permission denied"):
        write_labels(locked / "mask.nii", volume, MASK)


# Describing


def test_describes_a_scan(tmp_path: Path) -> None:
    path = save(tmp_path / "ct.nii.gz", raw_values("i2"), LEFT_HANDED, slope=0.5, inter=-10.0, forms=(2, 1))
    facts = describe_image(path)
    json.dumps(facts, allow_nan=False)
    native = raw_values("i2") * 0.5 - 10
    assert facts["name"] == "ct.nii.gz"
    assert (facts["shape"], facts["axcodes"], facts["dtype"]) == ([6, 5, 4], "LAS", "int16")
    assert (facts["scl_slope"], facts["scl_inter"]) == (0.5, -10)
    assert (facts["sform_code"], facts["qform_code"], facts["units"]) == (2, 1, "mm")
    np.testing.assert_allclose(facts["spacing_mm"], [0.9, 0.8, 2.5], rtol=1e-6)
    assert facts["range"] == [native.min(), native.max()]
    assert facts["percentiles"]["50"] == np.median(native)
    assert facts["nonzero_fraction"] == np.mean(native != 0)
    assert (facts["labels"], facts["refused_as_image"], facts["warnings"]) == (None, None, [])


def test_describes_a_mask_with_its_labels(tmp_path: Path) -> None:
    facts = describe_image(save(tmp_path / "mask.nii", np.where(MASK == 3, 17.0, MASK)))
    assert facts["labels"] == {0: 30, 1: 30, 2: 30, 17: 30}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (np.full(SHAPE, 7, "i2"), {"range": [7, 7], "labels": {7: 120}, "nonzero_fraction": 1}),
        (np.full(SHAPE, np.nan, "f4"), {"range": None, "nan_voxels": 120, "labels": None}),
        (np.where(MASK == 1, np.inf, MASK), {"range": [0, 3], "infinite_voxels": 30, "nan_voxels": 0}),
        (raw_values("i2", (6, 5, 4, 2)), {"shape": [6, 5, 4, 2], "axcodes": "RAS"}),
        (raw_values("f4").astype("c8"), {"dtype": "complex64", "range": None, "axcodes": "RAS"}),
    ],
    ids=["constant", "nan", "inf", "4d", "complex"],
)
def test_describes_what_cannot_be_attacked_and_says_why(tmp_path: Path, raw: Any, expected: Any) -> None:
    facts = describe_image(save(tmp_path / "odd.nii", raw))
    json.dumps(facts, allow_nan=False)
    assert expected.items() <= facts.items()
    assert facts["refused_as_image"].startswith("odd.nii")


def test_describes_a_file_without_a_usable_affine(tmp_path: Path) -> None:
    facts = describe_image(save(tmp_path / "odd.nii", raw_values("i2"), srow_x=0, forms=(1, 0)))
    assert (facts["spacing_mm"], facts["axcodes"]) == (None, None)
    assert "singular" in facts["refused_as_image"]


def test_describing_passes_header_warnings_on(tmp_path: Path) -> None:
    facts = describe_image(save(tmp_path / "odd.nii", raw_values("i2"), forms=(0, 0)))
    assert "left and right" in facts["warnings"][0]
