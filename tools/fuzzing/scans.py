"""Damaged NIfTI files, as scans and as masks."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from fuzzing.damage import blind, gzip_bomb
from fuzzing.judge import Trial
from fuzzing.stock import AFFINE, MARK, Stock, mask_array, scan_array

_CODES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)
_INTEGERS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 100, 127, 128, 255, 256, 348, 540, 1000, 32767, 65535, 2**31 - 1, 2**40, 2**62)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.1, np.nan, np.inf, -np.inf, 1e-40, 1e-30, 1e30, 3e38, 352.5, -352.0, 1e10)
_TEXTS = (
    b"",
    b"\xff" * 80,
    b"n+1\0",
    b"ni1\0",
    b"n+2\0",
    b"n+2\0\r\n\x1a\n",
    MARK.encode(),
    b"\x1b[31m",
    b"a\nb",
    "é".encode(),
)


# --- a scan ---------------------------------------------------------------------------------------------------------


def scan(rng: Random, place: Path, stock: Stock) -> Trial:
    """One NIfTI file, .nii, .nii.gz or a .hdr/.img pair; inspected, looked at, or attacked."""
    good = stock.data(rng.choice(("int16.nii", "int16.nii", "float32.nii", "uint8.nii", "second.nii")))
    name, what = _damaged_file(rng, place, stock, good)
    return _trial(rng, place, stock, name, what)


def _trial(rng: Random, place: Path, stock: Stock, name: str, what: str) -> Trial:
    file = name if rng.random() < 0.5 else str(place / name)
    how = rng.random()
    if how < 0.7:
        as_json = rng.random() < 0.5
        return Trial(("inspect", file, *(("--json",) if as_json else ())), what, as_json=as_json)
    model = str(stock.root / "flat.ts")
    command = ["attack", file, "-t", rng.choice(("erase:1", "shift:1:2,0,0mm")), "-m", model, "-o", "out"]
    if how < 0.85:
        command.append("--dry-run")
    else:
        command += ["--steps", "1", *rng.choice(((), ("--save-as", "source"), ("--redact",), ("--body-only",)))]
    return Trial((*command, *_voice(rng)), what, results=("out",))


def _voice(rng: Random) -> tuple[str, ...]:
    return rng.choice(((), (), ("-q",), ("-v",)))


def _damaged_file(rng: Random, place: Path, stock: Stock, good: bytes) -> tuple[str, str]:
    """Write it; its name and what is wrong with it."""
    how = rng.random()
    if how < 0.08:
        return _pair(rng, place, stock)
    if how < 0.12:
        return _bomb(rng, place, good)
    if how < 0.22:
        data, what = _odd_voxels(rng)
    elif how < 0.70:
        data, what = odd_header(rng, good)
    else:
        data, what = blind(rng, good)
    if rng.random() < 0.15:
        data, more = blind(rng, data, 1)
        what += f", {more}"
    name = rng.choice(
        ("scan.nii", "scan.nii.gz", "scan.nii.gz", "SCAN.NII", "scan", "scan.img", "scan.hdr", "a b,c.nii.gz")
    )
    packed = name.endswith(".gz") or rng.random() < 0.1
    if packed:
        data = gzip.compress(data, 1)
        if rng.random() < 0.2:
            data, more = blind(rng, data, 1)
            what += f", packed: {more}"
    (place / name).write_bytes(data)
    return name, what


def _pair(rng: Random, place: Path, stock: Stock) -> tuple[str, str]:
    header, voxels = stock.data("pair.hdr"), stock.data("pair.img")
    what = "a pair"
    if rng.random() < 0.7:
        header, what = odd_header(rng, header)
    if rng.random() < 0.5:
        voxels, more = blind(rng, voxels)
        what += f", voxels: {more}"
    if rng.random() < 0.9:
        (place / "scan.hdr").write_bytes(header)
    if rng.random() < 0.9:
        (place / "scan.img").write_bytes(voxels)
    return rng.choice(("scan.hdr", "scan.img")), what


def _bomb(rng: Random, place: Path, good: bytes) -> tuple[str, str]:
    """A few kilobytes or megabytes that become gigabytes, with a header that says so, or does not."""
    header = _header_of(good)
    sides = rng.choice(((2000, 2000, 500), (1000, 1000, 1000), (32767, 32767, 1), (16, 16, 4), (600, 600, 600)))
    header["dim"][1:4] = sides
    size = rng.choice((2**28, 2**30, 3 * 2**30))
    (place / "scan.nii.gz").write_bytes(gzip_bomb(size, header.binaryblock + bytes(4)))
    return "scan.nii.gz", f"{size / 2**30:g} GiB of zeros, dim {sides}"


def _odd_voxels(rng: Random) -> tuple[bytes, str]:
    """A sound header over voxels that make no scan, or an unusual one."""
    array: np.ndarray = scan_array()
    how = rng.choice(
        (
            "nan",
            "one nan",
            "inf",
            "constant",
            "huge",
            "tiny",
            "steps",
            "2-D",
            "4-D",
            "5-D",
            "flat",
            "double",
            "int64",
            "complex",
            "colour",
            "one voxel",
            "mirror",
            "shear",
            "no axes",
        )
    )
    affine = AFFINE
    if how == "nan":
        array = array * np.nan
    elif how in ("one nan", "inf"):
        array.flat[rng.randrange(array.size)] = np.nan if how == "one nan" else np.inf
    elif how == "constant":
        array = array * 0 + rng.choice((0, 1, -1024))
    elif how in ("huge", "tiny"):
        array = array * np.float32(1e38 if how == "huge" else 1e-38)
    elif how == "steps":
        array = np.rint(array * 3).astype(np.int8)
    elif how in ("2-D", "4-D", "5-D"):
        array = (
            array[..., 0]
            if how == "2-D"
            else array[..., None].repeat(3, 3)
            if how == "4-D"
            else array[..., None, None].repeat(3, 4)
        )
    elif how == "flat":
        array = array[: rng.choice((1, 2))]
    elif how == "double":
        array = array.astype(np.float64) * 10.0 ** rng.choice((-300, 0, 300))
    elif how == "int64":
        array = (array * 2.0 ** rng.choice((20, 40, 62))).astype(np.int64)
    elif how == "complex":
        array = array.astype(np.complex64)
    elif how == "colour":
        array = np.zeros(array.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    elif how == "one voxel":
        array = array[:1, :1, :1]
    else:
        affine = affine.copy()
        affine[:3, :3] = {
            "mirror": -affine[:3, :3],
            "shear": affine[:3, :3] + [[0, 0, 3], [0, 0, 0], [0, 0, 0]],
            "no axes": np.zeros((3, 3)),
        }[how]
    kind = nib.Nifti2Image if rng.random() < 0.3 else nib.Nifti1Image
    image = kind(array, affine, dtype=array.dtype)
    return bytes(image.to_bytes()), f"voxels: {how}"


# --- its header -----------------------------------------------------------------------------------------------------


def _header_of(data: bytes) -> Any:
    if data[:4] == (540).to_bytes(4, "little"):
        return Nifti2Header(data[:540], check=False)
    return Nifti1Header(data[:348], check=False)


def odd_header(rng: Random, data: bytes) -> tuple[bytes, str]:
    """One to three fields with values that should not be there, or the whole in the other byte order."""
    header = _header_of(data)
    size, said = len(header.binaryblock), []
    rest = data[size:]
    for _ in range(rng.choice((1, 1, 2, 3))):
        field = rng.choice(header.template_dtype.names)
        kind = header.template_dtype[field]
        value, at = _odd_value(rng, field, kind), None
        if kind.subdtype is not None:
            at = rng.randrange(int(np.prod(kind.shape)))
            with np.errstate(all="ignore"):
                header[field].reshape(-1)[at] = _cast(value, kind.base)
        else:
            header[field] = _cast(value, kind)
        said.append(f"{field}{'' if at is None else f'[{at}]'} = {value!r}")
    if rng.random() < 0.15:
        field, values = _odd_whole(rng)
        if field in header.template_dtype.names:
            with np.errstate(all="ignore"):
                header[field] = values
            said.append(f"{field} = {values}")
    if rng.random() < 0.08:
        header = header.as_byteswapped()
        said.append("header in the other byte order")
    if rng.random() < 0.12:
        rest, more = _odd_extension(rng, rest)
        said.append(more)
    return header.binaryblock + rest, ", ".join(said)


def _odd_value(rng: Random, field: str, kind: np.dtype[Any]) -> Any:
    if kind.base.kind == "S":
        return rng.choice(_TEXTS)
    if field == "datatype":
        return rng.choice(_CODES)
    if kind.base.kind == "f":
        return rng.choice(_FLOATS)
    return rng.choice(_INTEGERS) * rng.choice((1, 1, 1, -1))


def _cast(value: Any, kind: np.dtype[Any]) -> Any:
    if kind.kind == "S":
        return np.array(value[: kind.itemsize], kind)
    if kind.kind == "f":
        with np.errstate(all="ignore"):
            return np.array(value).astype(kind)
    limits = np.iinfo(kind)
    return np.array(max(min(value, limits.max), limits.min)).astype(kind)


def _odd_whole(rng: Random) -> tuple[str, list[Any]]:
    field = rng.choice(("dim", "pixdim", "srow_x", "srow_y"))
    if field == "dim":
        sides = rng.choice(
            (
                [3, 16, 16, 4],
                [3, 32767, 32767, 32767],
                [4, 16, 16, 4, 0],
                [7, 1, 1, 1, 16, 16, 4],
                [2, 16, 64, 0],
                [3, 1, 1, 1024],
            )
        )
        return field, [*sides, *[1] * (8 - len(sides))]
    if field == "pixdim":
        return field, [rng.choice(_FLOATS) for _ in range(8)]
    return field, [rng.choice(_FLOATS) for _ in range(4)]


def _odd_extension(rng: Random, rest: bytes) -> tuple[bytes, str]:
    size = rng.choice((0, 8, 15, 16, 32, -16, 2**31 - 1, 17))
    block = b"\1\0\0\0" + size.to_bytes(4, "little", signed=True) + (6).to_bytes(4, "little") + MARK.encode()
    return block + rest[rng.choice((0, 4, len(block))) :], f"an extension of {size} bytes"


# --- masks ----------------------------------------------------------------------------------------------------------


def mask(rng: Random, place: Path, stock: Stock) -> Trial:
    """A damaged mask, as the target, the region or the truth of a sound scan, or inspected."""
    how = rng.random()
    if how < 0.35:
        data, what = odd_header(rng, stock.data(rng.choice(("mask.nii", "mask_float.nii", "mask_second.nii"))))
    elif how < 0.6:
        data, what = blind(rng, stock.data(rng.choice(("mask.nii", "mask_float.nii"))))
    else:
        data, what = _odd_labels(rng)
    name = rng.choice(("mask.nii", "mask.nii.gz"))
    if name.endswith(".gz"):
        data = gzip.compress(data, 1)
    (place / name).write_bytes(data)
    file = name if rng.random() < 0.5 else str(place / name)
    if rng.random() < 0.3:
        return Trial(("inspect", file), what)
    model, scan_file = str(stock.root / "flat.ts"), str(stock.root / rng.choice(("int16.nii", "ct")))
    use = rng.choice(
        (
            ("-t", file),
            ("-t", f"copy:{file}"),
            ("-t", "erase:1", "--within", file),
            ("-t", file, "--resample-target"),
            ("-t", file, "--label-map", "2:1"),
        )
    )
    end = ("--dry-run",) if rng.random() < 0.8 else ("--steps", "1")
    return Trial(("attack", scan_file, *use, "-m", model, "-o", "out", *end, *_voice(rng)), what, results=("out",))


def _odd_labels(rng: Random) -> tuple[bytes, str]:
    labels: np.ndarray = mask_array()
    affine = AFFINE.copy()
    how = rng.choice(
        (
            "huge",
            "negative",
            "fractions",
            "nan",
            "inf",
            "other grid",
            "shifted",
            "turned",
            "empty",
            "full",
            "other size",
            "4-D",
            "int64",
            "one slice",
            "noise",
        )
    )
    if how in ("huge", "negative"):
        labels = labels.astype(np.int32) * (2**30 if how == "huge" else -1)
    elif how in ("fractions", "nan", "inf"):
        labels = labels.astype(np.float32)
        labels.flat[rng.randrange(labels.size)] = {"fractions": 0.5, "nan": np.nan, "inf": np.inf}[how]
    elif how == "other grid":
        affine[:3, :3] *= rng.choice((0.5, 1.001, 2.0))
    elif how == "shifted":
        affine[:3, 3] += rng.choice((0.001, 1, 1000, 1e30))
    elif how == "turned":
        affine[:3, :3] = affine[:3, [1, 0, 2]]
    elif how in ("empty", "full"):
        labels = labels * 0 + (how == "full")
    elif how == "other size":
        labels = labels[1:]
    elif how == "4-D":
        labels = np.stack([labels == 1, labels == 2], axis=-1).astype(np.uint8)
    elif how == "int64":
        labels = labels.astype(np.int64) * 2**50
    elif how == "one slice":
        labels = labels[..., 1]
    else:
        labels = np.array([rng.randrange(256) for _ in range(labels.size)], np.uint8).reshape(labels.shape)
    kind = nib.Nifti2Image if rng.random() < 0.3 else nib.Nifti1Image
    return bytes(kind(labels, affine, dtype=labels.dtype).to_bytes()), f"labels: {how}"
