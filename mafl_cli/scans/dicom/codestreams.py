"""How large compressed DICOM becomes, by what it declares, before a codec is asked: see `mafl_cli.system.sizes`.

A header can declare one size and the compressed picture in it another; codecs make room for their own.
"""

from __future__ import annotations

import math
import zlib
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from mafl_cli.errors import InputError
from mafl_cli.system import sizes

_BLOCK = 2**20

# Markers of JPEG that begin a frame's header: all of C0 to CF but the tables C4, C8, CC, and JPEG-LS.
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def require_inflatable(name: str, stream: BinaryIO) -> None:
    """Raise InputError for a deflated data set that becomes too large. The stream is at its beginning, and again then.

    pydicom would inflate it whole, for its header alone. What is damaged here is left to pydicom to say.
    """
    read_preamble(stream, True)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        size, packed = 0, stream.read(_BLOCK)
        while packed and not inflater.eof:
            size += len(inflater.decompress(packed, _BLOCK))
            sizes.require(name, "is deflated, and unpacks to {} or more", size)
            packed = inflater.unconsumed_tail or stream.read(_BLOCK)
    stream.seek(0)


def require_pixels(name: str, dataset: Dataset) -> None:
    """Raise InputError if the pixels that a file declares are too large, or those compressed in it larger.

    Raises TypeError or ValueError for a damaged header.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    samples, frames = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("NumberOfFrames") or 1)
    sizes.require_voxels(name, (columns, rows, samples * frames), int(dataset.BitsAllocated) / 8)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not isinstance(syntax, UID) or not syntax.is_encapsulated:
        return
    for fragment in generate_fragments(dataset.PixelData):
        said = _picture(fragment)
        if said is not None and math.prod(said) > columns * rows * samples:
            colours = "" if said[2] == samples else f" of {said[2]} colours"
            raise InputError(
                f"{name}: its header says {columns} x {rows} pixels, but they are compressed as a picture of {said[0]} "
                f"x {said[1]}{colours}; export it again."
            )


def _picture(fragment: bytes) -> tuple[int, int, int] | None:
    """Columns, rows and components, by the header of a JPEG or JPEG 2000 picture that begins here."""
    if fragment.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        at = fragment.find(b"\xff\x4f\xff\x51") + 4

        def number(offset: int, size: int = 4) -> int:
            return int.from_bytes(fragment[at + offset : at + offset + size], "big")

        return number(4) - number(12), number(8) - number(16), number(36, 2)
    at = 2 if fragment.startswith(b"\xff\xd8\xff") else len(fragment)
    while at + 9 < len(fragment) and fragment[at] == 0xFF:
        marker, length = fragment[at + 1], int.from_bytes(fragment[at + 2 : at + 4], "big")
        if marker in _FRAME_HEADERS:
            rows, columns = (int.from_bytes(fragment[at + n : at + n + 2], "big") for n in (5, 7))
            return columns, rows, fragment[at + 9]
        # A marker may be led by any number of FF.
        at += 1 if marker == 0xFF else 2 + length
    return None
