"""Damaged DICOM: series, multi-frame files, segmentations, archives and DICOMDIRs."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from fuzzing.damage import blind
from fuzzing.judge import Trial
from fuzzing.stock import MARK, Stock

_TEXT_VRS = ("LO", "SH", "CS", "DS", "IS", "UI", "UT", "LT", "PN", "DA", "TM", "UN", "AE", "AS", "UR", "DT")
_BINARY_VRS = ("US", "SS", "UL", "SL", "FL", "FD", "OB", "OW", "OF", "AT", "SQ", "UN", "SV", "XX", "\0\0", "ob")
_VALUES = (
    *(b"", b" ", b"\0\0", b"0", b"-1", b"1 ", b"2 ", b"1e400 ", b"nan ", b"inf ", b"1\\2 ", b"1\\2\\3\\4\\5\\6\\7 "),
    *(
        b"\\\\",
        b"abc ",
        MARK.encode() + b" ",
        MARK.encode() + b"\\" + MARK.encode() + b"\\1",
        b"\x1b[31m" + b"x ",
        b"a\nb ",
    ),
    *(
        b"1.2.840.10008.1.2",
        b"1.2.840.10008.5.1.4.1.1.2 ",
        b"99999999999999999999",
        b"\xff" * 64,
        b"\xe9\xe8",
        b"x" * 70_000,
    ),
    *(
        struct.pack("<H", 0),
        struct.pack("<H", 1),
        struct.pack("<H", 65535),
        struct.pack("<d", float("nan")),
        b"0.0000001 ",
    ),
    *(
        b"DERIVED\\PRIMARY\\MOSAIC ",
        b"MONOCHROME1 ",
        b"RGB ",
        b"PALETTE COLOR ",
        b"20200230",
        b"ISO_IR 192",
        b"MR",
        b"SEG ",
    ),
)
# Attributes that decide what a file is and how its pixels are read: damaged more often than the others.
_TELLING = """
SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality ImageType SeriesNumber
InstanceNumber AcquisitionNumber ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness
SpacingBetweenSlices Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit
PixelRepresentation RescaleSlope RescaleIntercept PixelPaddingValue NumberOfFrames PixelData SpecificCharacterSet
SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence SegmentSequence ReferencedSeriesSequence
SegmentationType MaximumFractionalValue DimensionIndexSequence PlanePositionSequence DimensionIndexValues
PixelValueTransformationSequence ReferencedSegmentNumber SegmentNumber FrameContentSequence
""".split()  # noqa: SIM905


# --- one dataset --------------------------------------------------------------------------------------------------


def spoil(rng: Random, dataset: Dataset) -> str:
    """Change one to three elements, at any depth, in a way that a sound program would not write."""
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(dataset))
        telling = [place for place in places if place[0][place[1]].keyword in _TELLING]
        holder, tag = rng.choice(telling if telling and rng.random() < 0.65 else places)
        said.append(_spoil_one(rng, holder, tag))
    return ", ".join(said)


def _places(dataset: Dataset) -> list[tuple[Dataset, BaseTag]]:
    found = []
    for tag in list(dataset.keys()):
        item = dataset.get_item(tag)
        if isinstance(item, RawDataElement) and item.VR in (None, "", "SQ", "UN"):
            continue  # What was spoilt before.
        found.append((dataset, tag))
        element = dataset[tag]
        if element.VR == "SQ":
            for inner in element.value:
                found += _places(inner)
    return found


def _spoil_one(rng: Random, holder: Dataset, tag: BaseTag) -> str:
    element = holder[tag]
    name = element.keyword or str(tag)
    how = rng.choice(
        ("value",) * 6 + ("gone", "VR", "empty", "nested", "number", "sequence", "length", "twice", "deep")
    )
    if how == "gone":
        del holder[tag]
    elif how == "VR":
        vr = rng.choice((*_TEXT_VRS, *_BINARY_VRS))
        _put(holder, tag, vr, rng.choice(_VALUES))
        name += f" as {vr!r}"
    elif how == "empty":
        _put(holder, tag, "LO" if element.VR == "SQ" else element.VR, b"")
    elif how == "deep":
        _put(holder, tag, "SQ", _deep(rng.choice((2, 20, 400, 3000))))
    elif how in ("nested", "sequence"):
        inner = Dataset()
        inner.PatientName = inner.CodeMeaning = MARK
        holder[tag] = pydicom.DataElement(tag, "SQ", Items([inner] * rng.choice((0, 1, 1, 3))))
    elif how == "number":
        _put(holder, tag, element.VR, str(rng.choice((0, 1, -1, 2, 1e-9, 1e9, 1e300, 65536, 0.5, "1,5"))).encode())
    elif how == "length":
        raw = RawDataElement(tag, element.VR, rng.choice((1, 3, 2**20, 2**32 - 1)), rng.choice(_VALUES), 0, False, True)
        holder._dict[tag] = raw
    elif how == "twice":
        number = Tag(tag.group, min(tag.element + 1, 0xFFFF))
        _put(holder, number, element.VR if element.VR != "SQ" else "LO", rng.choice(_VALUES))
    else:
        _put(holder, tag, "LO" if element.VR == "SQ" else element.VR, rng.choice(_VALUES))
    return f"{name}: {how}"


def _deep(depth: int) -> bytes:
    """The value of a sequence with an item with a sequence with an item, and so on."""
    value = b""
    for _ in range(depth):
        item = b"\x08\x00\x15\x11SQ\0\0" + len(value).to_bytes(4, "little") + value
        value = b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item
    return value


def _put(holder: Dataset, tag: BaseTag, vr: str, value: bytes) -> None:
    """An element whose bytes are written as they are."""
    holder._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def written(rng: Random, dataset: Dataset) -> tuple[bytes, str]:
    """The dataset as a file, in any of the ways in which files are written, and now and then a wrong one."""
    stream, said = io.BytesIO(), ""
    how = rng.random()
    try:
        if how < 0.7:
            pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
        elif how < 0.8:
            syntax = rng.choice((ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian))
            dataset.file_meta.TransferSyntaxUID, said = syntax, syntax.name
            pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
        elif how < 0.85:
            said = "without preamble"
            pydicom.dcmwrite(stream, dataset, enforce_file_format=False)
            stream = io.BytesIO(stream.getvalue().replace(bytes(128) + b"DICM", b"", 1))
        else:
            said = _odd_meta(rng, dataset)
            pydicom.dcmwrite(stream, dataset, enforce_file_format=False)
    except Exception as exc:
        # What no library can write is made of what it has written.
        return stream.getvalue() or blind(rng, MARK.encode() * 100)[0], f"cut off ({type(exc).__name__})"
    data = stream.getvalue()
    if said == "" and rng.random() < 0.05:
        at = data.find(b"\x08\x00\x60\x00")
        data, said = data[:at] + data[at:] + data[at : at + 10], "an element twice"
    return data, said


def _odd_meta(rng: Random, dataset: Dataset) -> str:
    meta = dataset.file_meta
    how = rng.choice(("syntax", "syntax", "field", "gone", "class"))
    if how == "syntax":
        odd = (
            RLELossless,
            JPEGBaseline8Bit,
            JPEG2000Lossless,
            ExplicitVRBigEndian,
            MediaStorageDirectoryStorage,
            "1.2.3",
            MARK,
            "",
        )
        # Said, not done: the bytes stay as they were.
        value = str(rng.choice(odd)).encode()
        _put(meta, Tag(0x00020010), "UI", value + b"\0" * (len(value) % 2))
    elif how == "field":
        tag = rng.choice(list(meta.keys()))
        _put(meta, tag, rng.choice(("UI", "OB", "SH", "SQ", "UL")), rng.choice(_VALUES))
    elif how == "gone" and len(meta):
        del meta[rng.choice(list(meta.keys()))]
    else:
        _put(meta, Tag(0x00020002), "UI", rng.choice(_VALUES))
    return f"meta: {how}"


def _file(rng: Random, dataset: Dataset, spoilt: bool = True) -> tuple[bytes, str]:
    what = spoil(rng, dataset) if spoilt and rng.random() < 0.75 else ""
    data, more = written(rng, dataset)
    said = [each for each in (what, more) if each]
    if rng.random() < (0.1 if said else 1.0):
        data, more = blind(rng, data, None if not said else 1)
        said.append(more)
    return data, ", ".join(said)


# --- the parts ----------------------------------------------------------------------------------------------------


def series(rng: Random, place: Path, stock: Stock) -> Trial:
    """A CT series in a folder, with one, some or all of its slices damaged, or the wrong files beside them."""
    name = rng.choice(("series", "series", "1.2.840.113619.2.1", "a b"))
    folder = place / name
    folder.mkdir()
    what = _series_in(rng, folder, stock)
    return _used(rng, place, stock, rng.choice((name, str(folder))), what)


def _series_in(rng: Random, folder: Path, stock: Stock) -> str:
    slices, said = stock.slices(), []
    ill = rng.choice(([], [rng.randrange(len(slices))], [0], list(range(len(slices))), [1, 3]))
    if ill and len(ill) == len(slices) and rng.random() < 0.5:
        # The same damage in all of them, as a program would do it.
        seed = rng.random()
        for dataset in slices:
            what = spoil(Random(seed), dataset)
        said.append(f"all slices: {what}")
        ill = []
    for number, dataset in enumerate(slices):
        if number in ill:
            data, what = _file(rng, dataset)
            said.append(f"slice {number}: {what}")
        else:
            data = _plain(dataset)
        (folder / f"IM{number:04d}.dcm").write_bytes(data)
    if not said or rng.random() < 0.15:
        said.append(_beside(rng, folder, stock))
    return "; ".join(said)


def _plain(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    with suppress(Exception):
        pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _beside(rng: Random, folder: Path, stock: Stock) -> str:
    how = rng.choice(
        (
            "slice gone",
            "slice twice",
            "other file",
            "SEG",
            "enhanced",
            "NIfTI",
            "link",
            "empty file",
            "folder called .dcm",
            "pipe",
            "two series",
            "DICOMDIR",
        )
    )
    files = sorted(folder.iterdir())
    if how == "slice gone":
        rng.choice(files).unlink()
    elif how == "slice twice":
        (folder / "twice.dcm").write_bytes(rng.choice(files).read_bytes())
    elif how == "other file":
        (folder / rng.choice(("a.txt", "a.dcm", "Thumbs.db", "._IM0000.dcm"))).write_bytes(rng.randbytes(300))
    elif how in ("SEG", "enhanced", "NIfTI"):
        good = {"SEG": "seg_binary.dcm", "enhanced": "enhanced.dcm", "NIfTI": "int16.nii"}[how]
        (folder / good).write_bytes(stock.data(good))
    elif how == "link":
        (folder / "link.dcm").symlink_to(rng.choice(("nowhere", "..", files[0].name)))
    elif how == "empty file":
        (folder / "empty.dcm").write_bytes(b"")
    elif how == "folder called .dcm":
        (folder / "folder.dcm").mkdir()
    elif how == "pipe":
        import os

        os.mkfifo(folder / "pipe.dcm")
    elif how == "two series":
        for number, dataset in enumerate(stock.slices()):
            dataset.SeriesInstanceUID, dataset.SeriesNumber = "1.2.3.4.5", 9
            (folder / f"B{number}.dcm").write_bytes(_plain(dataset))
    else:
        (folder / "DICOMDIR").write_bytes(rng.choice((b"", rng.randbytes(500), stock.data("enhanced.dcm"))))
    return how


def enhanced(rng: Random, place: Path, stock: Stock) -> Trial:
    """A damaged multi-frame file, or two of them."""
    data, what = _file(rng, stock.dataset("enhanced.dcm"))
    (place / "scan.dcm").write_bytes(data)
    if rng.random() < 0.1:
        (place / "both").mkdir()
        (place / "both" / "a.dcm").write_bytes(data)
        (place / "both" / "b.dcm").write_bytes(_file(rng, stock.dataset("enhanced.dcm"))[0])
        return _used(rng, place, stock, "both", f"two of them: {what}")
    return _used(rng, place, stock, rng.choice(("scan.dcm", str(place / "scan.dcm"))), what)


def seg(rng: Random, place: Path, stock: Stock) -> Trial:
    """A damaged segmentation: inspected, or as the target of a sound series."""
    data, what = _file(rng, stock.dataset(f"seg_{rng.choice(('binary', 'fractional', 'labelmap'))}.dcm"))
    (place / "seg.dcm").write_bytes(data)
    file = rng.choice(("seg.dcm", str(place / "seg.dcm")))
    if rng.random() < 0.25:
        return Trial(("inspect", file), what)
    use = rng.choice(
        (("-t", file), ("-t", f"copy:{file}"), ("-t", "erase:1", "--within", file), ("-t", file, "--resample-target"))
    )
    end = ("--dry-run",) if rng.random() < 0.85 else ("--steps", "1")
    scan, model = str(stock.root / rng.choice(("ct", "ct", "int16.nii"))), str(stock.root / "flat.ts")
    return Trial(("attack", scan, *use, "-m", model, "-o", "out", *end, *_voice(rng)), what, results=("out",))


def archive(rng: Random, place: Path, stock: Stock) -> Trial:
    """A zip of a series, or a DICOMDIR beside it, damaged."""
    folder = place / "series"
    if rng.random() < 0.3:
        folder.mkdir()
        for number, dataset in enumerate(stock.slices()):
            (folder / f"IM{number:04d}").write_bytes(_plain(dataset))
        data, what = _directory(rng, folder)
        (folder / "DICOMDIR").write_bytes(data)
        return _used(rng, place, stock, "series/DICOMDIR", what)
    files = {f"series/IM{number:04d}": _plain(dataset) for number, dataset in enumerate(stock.slices())}
    data, what = _zip(rng, files)
    (place / "scan.zip").write_bytes(data)
    return _used(rng, place, stock, rng.choice(("scan.zip", str(place / "scan.zip"))), what)


def _directory(rng: Random, folder: Path) -> tuple[bytes, str]:
    from pydicom.fileset import FileSet

    made = FileSet()
    for file in sorted(folder.iterdir()):
        made.add(file)
    records = made._ds
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = (
        "IMAGE",
        rng.choice(("IM0000", "..\\..\\etc", "IM9999", ["A"] * 20, "")),
    )
    records.DirectoryRecordSequence = Items([record])
    return _file(rng, records)


def _zip(rng: Random, files: dict[str, bytes]) -> tuple[bytes, str]:
    how = rng.choice(
        ("entry damaged",) * 4 + ("archive damaged",) * 3 + ("names", "bomb", "many", "zip in a zip", "deep")
    )
    names = list(files)
    said = how
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made:
        if how == "entry damaged":
            name = rng.choice(names)
            files[name], more = blind(rng, files[name])
            said += f": {more}"
        elif how == "names":
            odd = rng.choice(
                (
                    "../out",
                    "/etc/x",
                    "C:\\x",
                    "a\\..\\b",
                    f"{MARK}/a",
                    "\x1b[31m",
                    "a\nb",
                    "x" * 300,
                    "",
                    ".hidden",
                    "1.2.840.10008.5.1.4",
                )
            )
            files[odd] = files[names[0]]
        elif how == "many":
            files |= {f"more/{number}": b"x" for number in range(3000)}
        elif how == "zip in a zip":
            inner = io.BytesIO()
            with zipfile.ZipFile(inner, "w") as second:
                for name, data in files.items():
                    second.writestr(name, data)
            files = {"series.zip": inner.getvalue()}
        elif how == "deep":
            files = {"/".join(["a"] * 500) + name: data for name, data in files.items()}
        for name, data in files.items():
            made.writestr(zipfile.ZipInfo(name), data, compress_type=made.compression)
        if how == "bomb":
            _add_bombs(made, files[names[0]], rng.choice((1, 4, 20)))
    data = stream.getvalue()
    if how == "archive damaged":
        data, more = blind(rng, data)
        said += f": {more}"
        if rng.random() < 0.5:
            # Into the directory at the end, where sizes and flags are.
            tail, more = blind(rng, data[-400:])
            data, said = data[:-400] + tail, f"{said}, directory: {more}"
    return data, said


def _add_bombs(made: zipfile.ZipFile, head: bytes, count: int) -> None:
    """Entries that unpack to 256 MiB each. They are packed once: the directory says how all are to be read."""
    packer, zeros = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(2**22)
    packed, checksum = packer.compress(head), zlib.crc32(head)
    for _ in range(64):
        packed, checksum = packed + packer.compress(zeros), zlib.crc32(zeros, checksum)
    packed += packer.flush()
    for number in range(count):
        made.writestr(zipfile.ZipInfo(f"series/bomb{number}"), packed, compress_type=zipfile.ZIP_STORED)
        entry = made.filelist[-1]
        entry.compress_type, entry.file_size, entry.CRC = zipfile.ZIP_DEFLATED, len(head) + 2**28, checksum


def _used(rng: Random, place: Path, stock: Stock, name: str, what: str) -> Trial:
    """The command: mostly a look at it, else an attack."""
    how = rng.random()
    if how < 0.65:
        as_json = rng.random() < 0.5
        return Trial(("inspect", name, *(("--json",) if as_json else ())), what, as_json=as_json)
    command = ["attack", name, "-t", "erase:1", "-m", str(stock.root / "flat.ts"), "-o", "out"]
    if rng.random() < 0.2:
        command += rng.choice((["--series", "1"], ["--series", "2"], ["--allow-gaps"]))
    if rng.random() < 0.3:
        command.append("--redact")
    command += ["--dry-run"] if how < 0.85 else ["--steps", "1"]
    return Trial((*command, *_voice(rng)), what, results=("out",))


def _voice(rng: Random) -> Sequence[Any]:
    return rng.choice(((), (), ("-q",), ("-v",)))
