"""How large what is read may become: what a file declares is compared with a limit before anything is unpacked.

A few megabytes of gzip or zip can unpack to many gigabytes, and a damaged header can ask for any size. Voxels count as
they do in memory: what is stored, and the float32 that mafl makes of it. What is stored counts 4 bytes at least, for
a scan of smaller numbers is written as float32 and read again.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from mafl_cli.errors import InputError, UsageError

# A CT of 1536 slices of 512 x 512.
DEFAULT_GIB = 3.0

_GIB = 2**30
_FLOAT32 = 4
_BLOCK = 2**20

_allowed: ContextVar[float] = ContextVar("size limit in GiB", default=DEFAULT_GIB)


@contextmanager
def limited(gib: float | None) -> Iterator[None]:
    """Another limit for what is read inside; None changes nothing. Raises UsageError unless it is above 0."""
    if gib is not None and not 0 < gib < math.inf:
        raise UsageError(f"`size_limit` must be a number of GiB above 0, got {gib:g}.")
    token = _allowed.set(_allowed.get() if gib is None else gib)
    try:
        yield
    finally:
        _allowed.reset(token)


def limit() -> float:
    """What may be unpacked now, GiB."""
    return _allowed.get()


def require_voxels(name: str, shape: Sequence[int], itemsize: float, beside: int = 0) -> None:
    """Raise InputError if so many voxels, of `itemsize` bytes on the disk, are too large; beside: bytes to be added."""
    shown = " x ".join(str(size) for size in shape)
    total = math.ceil(math.prod(shape) * (max(itemsize, _FLOAT32) + _FLOAT32)) + beside
    require(name, f"declares {shown} voxels of {8 * itemsize:g} bits, {{}} in memory", total)


def require(name: str, what: str, size: int, *, instead: str = "") -> None:
    """Raise InputError if `size` bytes are above the limit.

    what: what the file declares, with {} for the size. instead: what can be done but raise the limit, as "or ...".
    """
    if size <= limit() * _GIB:
        return
    raise InputError(
        f"{name}: {what.format(f'{size / _GIB:.4g} GiB')}, and the limit is {limit():.4g} GiB; if the file is right, "
        f"raise `size_limit` to {max(1, math.ceil(size / _GIB))}{instead}."
    )


def unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """An entry of a zip archive, piece by piece: one that declares too little ends where it said, and is damaged then.

    Only for `can_unpack`. Raises what zipfile raises for damage.
    """
    content = bytearray()
    with archive.open(entry) as stream:
        while block := stream.read(_BLOCK):
            content += block
    return bytes(content)


def can_unpack(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry's method can be unpacked piece by piece, which Python does for no other."""
    return entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
