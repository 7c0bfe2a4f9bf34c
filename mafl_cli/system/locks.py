"""Files that processes hold, where the file system can: the system lets go when a process ends, however it ends.

On Windows, and on file systems of clusters that lack such locks, everything here succeeds and keeps nobody out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a file, alone or together with others who share it; it is made where it is missing.

    Raises: BlockingIOError if another process holds it and this one is not to wait.
    """
    with path.open("a+") as file:
        _lock(file, shared=shared, wait=wait)
        yield


@contextmanager
def taken_over(path: Path) -> Iterator[bool]:
    """Hold a file whose holder has ended: True. False if nobody can, or where it cannot be known who holds it."""
    try:
        file = path.open("r+")
    except OSError:
        yield False
        return
    with file:
        try:
            free = _lock(file, shared=False, wait=False)
        except BlockingIOError:
            free = False
        yield free


def is_free(path: Path) -> bool:
    """Whether nobody holds this file; False where that cannot be known. Needs no right to write."""
    try:
        with path.open() as file:
            return _lock(file, shared=True, wait=False)
    except OSError:
        return False


def _lock(file: IO[str], *, shared: bool, wait: bool) -> bool:
    """False where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
