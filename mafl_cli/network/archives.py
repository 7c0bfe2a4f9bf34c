"""The archive that a model file is: whole, of the size it claims, and with nothing in it that runs but the network.

PyTorch's own reader checks no checksums, believes every size that a record's pickle states (a weight record that was
cut short ends in a segmentation fault), and lets a TorchScript program write files. So all of that is looked at first,
with Python's zip reader and an unpickler that builds nothing.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mafl_cli.errors import ModelError
from mafl_cli.names import outside

_LARGEST_RATIO = 20
"""Bytes unpacked for each byte of the file: PyTorch stores weights as they are, only code is compressed."""
_ALLOWANCE = 2**24
"""Bytes that may always be unpacked, however small the file."""

# What damage to a zip archive raises, from its directory to the compressed bytes of a record.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
)


class Damaged(Exception):
    """The archive is not what was written: says where."""


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`, if it is a zip at all and unpacks to no more than its size explains.

    Raises Damaged if it is none; ModelError for what is too large.
    """
    try:
        archive = zipfile.ZipFile(path)
    except _BROKEN as exc:
        raise Damaged("its directory cannot be read") from exc
    with archive:
        total, most = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size * _LARGEST_RATIO
        if total > most + _ALLOWANCE:
            raise ModelError(
                f"{outside(path.name)}: would unpack to {total / 2**30:.1f} GiB, more than {_LARGEST_RATIO} "
                "times its size, "
                "which no model file does; save it anew with PyTorch."
            )
        yield archive


def check_whole(archive: zipfile.ZipFile) -> None:
    """Read every record against its checksum. Raises Damaged naming the first one that is not as it was written."""
    seen: set[str] = set()
    for entry in archive.infolist():
        if entry.filename in seen:
            raise Damaged(f"it holds {_shown(entry.filename)} twice")
        seen.add(entry.filename)
        try:
            with archive.open(entry) as record:
                while record.read(2**20):
                    pass
        except _BROKEN as exc:
            raise Damaged(f"its record {_shown(entry.filename)} is not as it was written") from exc


def read_record(archive: zipfile.ZipFile, name: str) -> bytes:
    """One record. Raises Damaged if it is not there or not readable."""
    try:
        return archive.read(name)
    except _BROKEN as exc:
        raise Damaged(f"its record {_shown(name)} is missing or cannot be read") from exc


def _shown(name: str) -> str:
    """A record's name without the archive's own: that is the name of a file on somebody's machine."""
    inside = name.partition("/")[2] or name
    return inside if re.fullmatch(r"[\w./-]{1,80}", inside) else "with a strange name"


# --- TorchScript --------------------------------------------------------------------------------------------------

# Operators that reach beyond the network: they write or map files and talk to other processes. Attribute access, in
# TorchScript's text also as getattr(x, "name"), is how any of them is named.
_REACHING = re.compile(
    rb"""(?: \. \s* | ["'] ) (save | from_file | load_tensor | rpc_async | rpc_sync | rpc_remote) \b
    | \b ops \s* \. \s* (c10d | _c10d_functional | symm_mem | debugprims | inductor | profiler) \b
    | \b torch \s* \. \s* classes \s* \. \s* (?! quantized ) (\w+)""",
    re.VERBOSE,
)


def check_torchscript(archive: zipfile.ZipFile, name: str) -> None:
    """Whether a TorchScript program stays within itself, and every tensor within the record that holds it.

    Raises Damaged, or ModelError for a program that reaches for files or other processes.
    """
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    roots = {entry.partition("/")[0] for entry in sizes}
    if len(roots) != 1:
        raise Damaged("its records lie in several folders")
    root = roots.pop()
    for entry in sizes:
        if entry.startswith(f"{root}/code/") and entry.endswith(".py"):
            found = _REACHING.search(read_record(archive, entry))
            if found is not None:
                what = next(part for part in found.groups() if part).decode()
                raise ModelError(
                    f"{name}: its program calls {what!r}, which reaches beyond the network (files, processes); "
                    "export the network alone."
                )
    for stem in ("data", "constants"):
        record = f"{root}/{stem}.pkl"
        held = {
            entry[len(root) + len(stem) + 2 :]: size for entry, size in sizes.items() if entry.startswith(record[:-4])
        }
        check_storages(read_record(archive, record), held, f"{stem}.pkl")


_ITEM_SIZES = {
    "Byte": 1, "Char": 1, "Bool": 1, "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4, "Long": 8, "Double": 8,
    "ComplexHalf": 4, "ComplexFloat": 8, "ComplexDouble": 16, "QInt8": 1, "QUInt8": 1, "QInt32": 4,
}  # fmt: skip


def check_storages(pickled: bytes, held: dict[str, int], where: str) -> None:
    """Whether every tensor of a pickle lies within the storage that it names, and every storage within its record.

    Args:
        held: bytes of each storage's record, by key.
    Raises Damaged.
    """
    reader = _Reader(pickled, held)
    try:
        reader.load()
    except Damaged:
        raise
    except Exception as exc:
        # Whatever a pickle of nonsense makes an unpickler raise.
        raise Damaged(f"its record {where} is not as it was written") from exc


class _Nothing:
    """Stands for every class and function that a pickle names: takes anything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return _Nothing()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Iterable[Any]) -> None:
        pass


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> _Nothing:
    """A tensor: only where it lies in its storage is looked at."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, int) or not all(isinstance(each, int) and each >= 0 for each in numbers):
        raise Damaged("a tensor in it has no proper place")
    last = offset + sum((edge - 1) * step for edge, step in zip(size, stride, strict=True))
    if all(size) and last >= storage:
        raise Damaged("a tensor in it reaches beyond its record")
    return _Nothing()


# Python's own unpickler in Python: the one in C grows its memo to any index that a pickle states.
class _Reader(pickle._Unpickler):
    """Reads a pickle without building anything of it: tensors are measured, all else is nothing."""

    def __init__(self, pickled: bytes, held: dict[str, int]) -> None:
        super().__init__(io.BytesIO(pickled), encoding="latin1")
        self._held = held

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_qtensor"):
            return _rebuilt
        if module == "torch" and name.endswith("Storage"):
            return name
        return _Nothing

    def persistent_load(self, pid: Any) -> int:
        """The number of elements in a storage."""
        kind, storage, key, _, count = pid
        width = _ITEM_SIZES.get(str(storage).removesuffix("Storage"), 1)
        if kind != "storage" or not isinstance(count, int) or count < 0:
            raise Damaged("a tensor in it has no proper place")
        if self._held.get(key, 0) < count * width:
            raise Damaged(f"the record of one of its weights holds {self._held.get(key, 0)} bytes of {count * width}")
        return count


def member(archive: zipfile.ZipFile, inside: Sequence[str] | set[str]) -> set[str]:
    """Which of these records the archive has, whatever its own name is."""
    have = {entry.partition("/")[2] for entry in archive.namelist()} | set(archive.namelist())
    return have & set(inside)
