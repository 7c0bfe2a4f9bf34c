"""A NIfTI file taken apart as bytes: header, extensions, voxels. Nothing is asked of what they say.

The header is read first, and what it declares is all that is unpacked into memory (see `mafl_cli.system.sizes`).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from mafl_cli.errors import InputError, cannot_be_read
from mafl_cli.names import public_name
from mafl_cli.system import sizes

NO_EXTENSIONS = bytes(4)

_GZIP = b"\x1f\x8b"
_HEAD = 4096
_BLOCK = 2**20

_SIGNATURES = (
    (128, b"DICM", "a DICOM file"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"NRRD", "an NRRD file"),
    (0, b"%PDF", "a PDF"),
    (0, b"version https://git-lfs", "a Git LFS pointer, the file itself was not downloaded"),
    (0, b"<", "an HTML or XML page, perhaps a failed download"),
    (344, b"ni1\0", "the header half of a .hdr/.img pair"),
)


@dataclass(frozen=True, eq=False)
class NiftiFile:
    """A NIfTI file taken apart."""

    name: str
    header: Nifti1Header
    extensions: bytes
    """All bytes between header and voxels."""
    voxels: NDArray[Any]
    """The header's own shape and dtype, Fortran order, read-only."""
    slope: float
    inter: float
    sha256: str
    """Hash of the file as it lies on the disk."""
    notes: tuple[str, ...]
    """What is odd about it, as sentences."""


def load(path: Path) -> NiftiFile:
    """Read a .nii or .nii.gz file. Contents decide about compression, not the suffix.

    Raises: InputError for a file that is not NIfTI, damaged, cut off, without voxels, or above the limit of sizes.
    """
    name = public_name(path)
    with _opened(path) as raw:
        stream = _Stream(name, raw)
        head = b"".join(stream.blocks(_HEAD))
        header_class = _header_class(head)
        if header_class is None or not name.lower().endswith((".nii", ".nii.gz")):
            if stream.packed and head.startswith(_GZIP):
                raise InputError(f"{name} is gzipped twice: unpack it once with gunzip, and give what comes out.")
            advice = "rename it to .nii or .nii.gz" if header_class else "give NIfTI (.nii, .nii.gz) or DICOM"
            raise InputError(f"{name} is not a NIfTI file but {_sniff(head)}: {advice}.")
        log = _HeaderLog()
        try:
            header = header_class(head[: header_class.sizeof_hdr], check=False)
            header.check_fix(logger=log, error_level=40)
            shape, dtype = header.get_data_shape(), header.get_data_dtype()
            # Some programs leave 0 for "right after the header"; a file we write says it in full.
            offset = header.get_data_offset() or header.sizeof_hdr + len(NO_EXTENSIONS)
            header["vox_offset"] = offset
            slope, inter = header.get_slope_inter()
        except Exception as exc:  # A corrupt header makes nibabel raise nearly any class.
            # Only what nibabel says of a header's numbers: the text of an exception may quote anything.
            why = log.messages[-1] if log.messages else type(exc).__name__
            raise InputError(f"{name}: the NIfTI header is corrupt ({why}); export the scan again.") from exc
        if not shape or min(shape) <= 0:
            size = " x ".join(str(n) for n in shape) or "no axes"
            raise InputError(f"{name}: holds no voxels (its header says {size}); export the scan again.")
        needed = offset + math.prod(shape) * dtype.itemsize
        status = os.fstat(raw.fileno())
        if not stream.packed and stat.S_ISREG(status.st_mode) and status.st_size < needed:
            raise _truncated(name, status.st_size, needed)
        sizes.require_voxels(name, shape, dtype.itemsize, beside=offset)
        before = head[:offset] + b"".join(stream.blocks(offset - len(head)))
        body, there = stream.fill(head[offset:], needed - offset)
        if there < needed - offset:
            raise _truncated(name, len(before) + there, needed)
        behind = stream.behind(max(0, len(head) - needed), most=max(needed, _BLOCK))
    return NiftiFile(
        name=name,
        header=header,
        extensions=before[header_class.sizeof_hdr :],
        voxels=body.view(dtype).reshape(shape, order="F"),
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        sha256=stream.sha256(),
        notes=(*(f"{name}: odd NIfTI header: {message}." for message in log.messages), *behind),
    )


def _truncated(name: str, there: int, needed: int) -> InputError:
    return InputError(f"{name} is truncated: {there} of {needed} bytes are there; copy or export the file again.")


class _HeaderLog:
    """Stands in for nibabel's logger, which would print on stderr."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def log(self, level: int, message: str) -> None:
        if level >= 30:
            self.messages.append(message)


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    if path.is_dir():
        raise InputError(f"{public_name(path)} is a folder: give a file.")
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{public_name(path)} does not exist: check the path.") from None
    except OSError as exc:
        raise cannot_be_read(public_name(path), exc) from exc


class _Hashed:
    """A file that is read from its beginning to its end, and the hash of what was read."""

    def __init__(self, file: BufferedReader) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self.digest.update(block)
        return block

    read1 = read


class _Stream:
    """The bytes of a file, unpacked where they are gzip data; never more of them at a time than were asked for."""

    def __init__(self, name: str, file: BufferedReader) -> None:
        self._name, self._raw = name, _Hashed(file)
        start = file.peek(len(_GZIP))
        if not start:
            raise InputError(f"{name} is empty (0 bytes): copy or export the file again.")
        self.packed = start.startswith(_GZIP)
        self._file: Any = gzip.GzipFile(fileobj=self._raw, mode="rb") if self.packed else self._raw  # type: ignore[call-overload]
        self._foreign = False

    def blocks(self, length: int) -> Iterator[bytes]:
        """The next `length` bytes, piece by piece, fewer only at the end. Raises InputError for damage."""
        while length > 0 and (block := self._block(min(_BLOCK, length))):
            length -= len(block)
            yield block

    def _block(self, size: int) -> bytes:
        try:
            return self._file.read1(size)  # type: ignore[no-any-return]
        except EOFError:
            raise InputError(f"{self._name} is truncated: its gzip data end early; copy or export it again.") from None
        except (gzip.BadGzipFile, zlib.error) as exc:
            # Said of what follows a whole piece of gzip data; the file itself begins with one.
            if "Not a gzipped file" not in str(exc):
                raise InputError(f"{self._name}: its gzip data are damaged; copy or export it again.") from exc
            self._foreign = True
            return b""

    def fill(self, begun: bytes, length: int) -> tuple[NDArray[np.uint8], int]:
        """`length` bytes, of which the first were read before, and how many of them there are in the file."""
        body = np.empty(length, np.uint8)
        done = min(len(begun), length)
        body[:done] = np.frombuffer(begun[:done], np.uint8)
        for block in self.blocks(length - done):
            body[done : done + len(block)] = np.frombuffer(block, np.uint8)
            done += len(block)
        body.flags.writeable = False
        return body, done

    def behind(self, more: int, most: int) -> tuple[str, ...]:
        """Read to the end, for only there gzip says whether all is whole; sentences about what was there.

        more: bytes that were read before. Nothing is kept. Raises InputError for more than `most` bytes.
        """
        while block := self._block(_BLOCK):
            more += len(block)
            if more > most:
                raise InputError(
                    f"{self._name}: goes on for more than {most} bytes behind the voxels that its header declares, so "
                    "the header or the file is damaged; export it again."
                )
        notes = []
        if more:
            notes.append(f"{self._name}: {more} bytes follow the voxels that its header declares; they are ignored.")
        if self._foreign:
            notes.append(f"{self._name}: something else follows its gzip data; it is ignored.")
        while self._raw.read(_BLOCK):
            pass  # For the hash.
        return tuple(notes)

    def sha256(self) -> str:
        """Hash of the file as it lies on the disk, once it is read to its end."""
        return self._raw.digest.hexdigest()


def _header_class(content: bytes) -> type[Nifti1Header] | None:
    if content[344:348] == b"n+1\0":
        return Nifti1Header  # type: ignore[no-any-return]
    if content[4:8] == b"n+2\0" and len(content) >= Nifti2Header.sizeof_hdr:
        return Nifti2Header  # type: ignore[no-any-return]
    return None


def _sniff(content: bytes) -> str:
    """What a file seems to be, as a noun phrase."""
    if _header_class(content):
        return "a NIfTI file with another suffix"
    for offset, magic, what in _SIGNATURES:
        if content[offset : offset + len(magic)] == magic:
            return what
    if content[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return "an Analyze 7.5 or damaged NIfTI header"
    if not content.strip(b"\0"):
        return "a file of zero bytes, perhaps a failed copy"
    head = content[:512]
    if all(byte >= 0x20 or byte in b"\t\r\n" for byte in head) and b"\0" not in head:
        return "a text file"
    return "something unknown"
