"""What unpacks to more than the limit is refused by what it declares, before the memory is taken."""

from __future__ import annotations

import gzip
import json
import re
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from commands import Threshold, mafl, scan_array
from dicoms import write_ct
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit
from typer.testing import Result

from mafl_cli.batch import batch, local
from mafl_cli.errors import InputError, UsageError
from mafl_cli.network import bundle
from mafl_cli.results.batch_report import Ticket
from mafl_cli.scans.dicom.read import read_dicom
from mafl_cli.scans.dicom.seg import read_seg
from mafl_cli.scans.nifti import read_image, read_labels
from mafl_cli.system import sizes

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
MIB = 1 / 1024


def declaring(shape: tuple[int, int, int], dtype: str = "i2") -> bytes:
    """Header and extension flags of a NIfTI file that says it has so many voxels."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(AFFINE, 1)
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + bytes(4)


def gzipped_zeros(begin: bytes, megabytes: int) -> bytes:
    """Gzip data of `begin` and so many megabytes of zeros."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(begin)] + [packer.compress(bytes(2**20)) for _ in range(megabytes)]
    return b"".join([*parts, packer.flush()])


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    write_ct(tmp_path / "ct", np.arange(4 * 5 * 3).reshape(4, 5, 3).astype("i2"), AFFINE, shuffle=False)
    return tmp_path / "ct"


def test_a_scan_is_refused_by_the_size_its_header_declares(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzipped_zeros(declaring((512, 512, 1537)), 1))
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value) == (
        "scan.nii.gz: declares 512 x 512 x 1537 voxels of 16 bits, 3.002 GiB in memory, and the limit is 3 GiB; if the "
        "file is right, raise `size_limit` to 4."
    )
    with sizes.limited(4), pytest.raises(InputError, match="is truncated"):
        read_labels(path)


@pytest.mark.parametrize("read", [read_image, read_labels], ids=["scan", "mask"])
def test_the_limit_may_be_lowered_and_raised(tmp_path: Path, read: object) -> None:
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(np.arange(32 * 32 * 32).reshape(32, 32, 32).astype("u2"), AFFINE), path)
    with sizes.limited(MIB / 5), pytest.raises(InputError, match=r"32 x 32 x 32 voxels of 16 bits, 0\.00024"):
        read(path)  # type: ignore[operator]
    with sizes.limited(MIB / 3):
        read(path)  # type: ignore[operator]


@pytest.mark.parametrize("gib", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_size(gib: float) -> None:
    with pytest.raises(UsageError, match="`size_limit`"), sizes.limited(gib):
        pass


def test_data_that_go_on_behind_what_is_declared_are_not_kept(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype="i2").tobytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(declaring((2, 3, 4)) + voxels + b"xyz"))
    scan = read_image(path)
    assert scan.data.flat[-1] == 23
    assert scan.warnings[0] == "scan.nii.gz: 3 bytes follow the voxels that its header declares; they are ignored."
    path.write_bytes(gzipped_zeros(declaring((2, 3, 4)) + voxels, 3))
    with pytest.raises(InputError, match=r"^scan.nii.gz: goes on for more than 1048576 bytes behind the voxels"):
        read_image(path)


def test_archives_are_refused_by_what_they_declare_to_unpack_to(ct: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(ct.iterdir()):
            archive.write(file, file.name)
        archive.writestr("zeros", bytes(2**20))
    with sizes.limited(MIB), pytest.raises(InputError) as caught:
        read_dicom(path)
    assert re.sub(r"0.0009\d+", "0.0009", str(caught.value)) == (
        "study.zip: unpacks to 0.0009 GiB, and the limit is 0.0009 GiB; if the file is right, raise "
        "`size_limit` to 1, or unpack it and give the folder of one series."
    )
    assert read_dicom(path).shape == (4, 5, 3)


def test_an_archive_that_declares_too_little_is_damaged_and_ends_there(ct: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IM1", next(ct.iterdir()).read_bytes() + bytes(64 * 2**20))
    raw = path.read_bytes()
    size, said = (struct.pack("<I", each) for each in (zipfile.ZipFile(path).infolist()[0].file_size, 4000))
    path.write_bytes(raw.replace(size, said))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"^study.zip: an entry of the archive is damaged"):
        read_dicom(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_archives_of_rare_methods_are_not_unpacked(ct: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.write(next(ct.iterdir()), "IM1")
    with pytest.raises(InputError, match="packed by a rare method; unpack it, and give the folder"):
        read_dicom(path)


def test_a_series_is_refused_before_its_pixels_are_read(ct: Path) -> None:
    with sizes.limited(MIB / 5000), pytest.raises(InputError, match=r"^ct: declares 4 x 5 x 3 voxels of 16 bits"):
        read_dicom(ct)
    for file in ct.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.Rows = dataset.Columns = 65535
        dataset.save_as(file)
    with pytest.raises(InputError, match=r"^ct: declares 65535 x 65535 x 3 voxels of 16 bits, 96 GiB in memory"):
        read_dicom(ct)


def test_a_deflated_data_set_is_inflated_no_further_than_the_limit(ct: Path) -> None:
    file = min(ct.iterdir())
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091010, "LO", "mafl")
    dataset.add_new(0x00091011, "OB", bytes(8 * 2**20))
    dataset.save_as(file, enforce_file_format=True)
    with sizes.limited(2 * MIB), pytest.raises(InputError, match=rf"^{file.name}: is deflated, and unpacks to 0.002"):
        read_dicom(file)
    assert read_dicom(file).shape == (4, 5, 1)


def jpeg(rows: int, columns: int) -> bytes:
    """The beginning of a JPEG picture, tables before the frame's header."""
    table = b"\xff\xdb\0\x43" + bytes(65)
    return b"\xff\xd8" + table + b"\xff\xc0\0\x0b\x08" + struct.pack(">HHB", rows, columns, 1) + bytes(6)


def jpeg2000(rows: int, columns: int, boxed: bool = False) -> bytes:
    size = struct.pack(">HHIIIIIIIIH", 41, 0, columns, rows, 0, 0, columns, rows, 0, 0, 1)
    return (b"\0\0\0\x0cjP  \r\n\x87\n" if boxed else b"") + b"\xff\x4f\xff\x51" + size + bytes(20)


@pytest.mark.parametrize(
    ("syntax", "picture"),
    [
        (JPEGBaseline8Bit, jpeg(60000, 50000)),
        (JPEG2000Lossless, jpeg2000(60000, 50000)),
        (JPEG2000Lossless, jpeg2000(60000, 50000, boxed=True)),
    ],
    ids=["jpeg", "jpeg2000", "jp2"],
)
def test_a_compressed_picture_of_another_size_never_reaches_its_codec(ct: Path, syntax: str, picture: bytes) -> None:
    file = min(ct.iterdir())
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = syntax  # type: ignore[assignment]
    dataset.PixelData = encapsulate([picture])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(file, enforce_file_format=True)
    with pytest.raises(InputError, match="says 4 x 5 pixels, but they are compressed as a picture of 50000 x 60000;"):
        read_dicom(file)


def test_a_segmentation_is_refused_by_its_frames(ct: Path) -> None:
    scan = read_dicom(ct)
    dataset = pydicom.dcmread(min(ct.iterdir()))
    dataset.NumberOfFrames, dataset.BitsAllocated = 2**24, 1
    path = ct.parent / "seg.dcm"
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"seg\.dcm: declares 4 x 5 x 16777216 voxels of 1 bits"), sizes.limited(1):
        read_seg(path, like=scan)


def test_the_extras_of_a_bundle_are_no_larger_than_they_declare(tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/extra/metadata.json", json.dumps({"network_data_format": {}, "x": " " * 5 * 2**20}))
    raw = path.read_bytes()
    size = struct.pack("<I", zipfile.ZipFile(path).infolist()[0].file_size)
    path.write_bytes(raw.replace(size, struct.pack("<I", 100)))
    assert bundle.read_bundle(path) == ({}, ())


# The commands


@pytest.fixture
def case(tmp_path: Path) -> Path:
    image = scan_array((16, 16, 3))
    nib.save(nib.Nifti1Image(image, AFFINE), tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image((image > 0.7).astype("u1"), AFFINE), tmp_path / "mask.nii.gz")
    torch.jit.trace(Threshold(2), torch.zeros(1, 1, 16, 16)).save(tmp_path / "model.ts")
    return tmp_path


def attack(case: Path, out: str, *more: object) -> Result:
    return mafl(
        "attack", case / "scan.nii.gz", "--target", case / "mask.nii.gz", "--model", case / "model.ts", "--steps", 1,
        "-o", case / out, *more,
    )  # fmt: skip


def test_every_command_that_reads_scans_has_the_option(case: Path) -> None:
    small = ("--size-limit", MIB / 1000)
    assert attack(case, "run").exit_code == 0
    pair = ("--original", case / "scan.nii.gz", "--adversarial", case / "run" / "adversarial.nii.gz")
    for found in (
        attack(case, "refused", *small),
        mafl("inspect", case / "scan.nii.gz", *small),
        mafl("evaluate", case / "run", *small),
        mafl("evaluate", *pair, "--target", case / "mask.nii.gz", "--model", case / "model.ts", *small),
        mafl("visualize", case / "run", *small),
    ):
        assert found.exit_code == 3, found.output
        assert "16 x 16 x 3 voxels of 32 bits" in found.output
        assert "raise --size-limit to 1." in found.output
    assert not (case / "refused").exists()
    assert mafl("inspect", case / "scan.nii.gz", "--size-limit", 0).exit_code == 2


def test_the_limit_reaches_the_workers_of_a_batch(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def stopped(request: batch.BatchRequest, **_: object) -> None:
        requests.append(request.attack)
        raise UsageError("stopped.")

    monkeypatch.setattr(batch, "run_batch", stopped)
    monkeypatch.setenv("MAFL_SIZE_LIMIT", str(MIB / 1000))
    options = ("--target", case / "mask.nii.gz", "--model", case / "model.ts", "-o", case / "out")
    assert mafl("attack", case / "scan.nii.gz", case / "mask.nii.gz", *options).exit_code == 2
    request = replace(requests[0], images=(case / "scan.nii.gz",), out=case / "out" / "scan")
    row = local.attack_one(local.Job("scan", request, Ticket(request="", files=())))
    assert "16 x 16 x 3 voxels of 32 bits" in row.error.message
    # The same results, so a run that was stopped by it goes on with a higher one.
    assert batch.request_hash(request) == batch.request_hash(replace(request, size_limit=9.0))


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """128 MiB of zeros in 130 kB, under a limit of less: measured in a process of its own."""
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzipped_zeros(declaring((512, 512, 256)), 128))
    assert bomb.stat().st_size < 2**18
    code = (
        "import resource, sys; from pathlib import Path; from mafl_cli.system import sizes; "
        "from mafl_cli.scans import nifti; "
        "from mafl_cli.errors import InputError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for read in (nifti.read_image, nifti.read_labels, nifti.describe_image):\n"
        "    try:\n        with sizes.limited(0.1): read(Path(sys.argv[1]))\n"
        "    except InputError as exc: assert '`size_limit` to 1' in str(exc)\n"
        "    else: sys.exit(3)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(bomb)], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 16 * 1024
