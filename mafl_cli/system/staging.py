"""Results that take their place whole, whatever ends the process that makes them.

What is made lies in a *workspace* until it is finished: a hidden folder beside its place, held by its process, so that
a later one can tell what was left by one that has ended, and take it away. In it are:

    held       a file that is locked as long as the process lives
    new/       what is being made

A finished folder of results changes places with the earlier one in one step. Where that cannot be (a mount point, other
files beside the results, a system without that step), `new` becomes `ready` and its contents move one by one; who finds
a workspace with `ready` in it, and nobody holding it, finishes that:

    plan.json  in which order they move, and which earlier results have to go
    earlier/   what they took the place of
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mafl_cli.system import locks

_PREFIX = ".mafl-work-"
_NAME = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")
_HELD, _NEW, _READY, _EARLIER, _PLAN = "held", "new", "ready", "earlier", "plan.json"

# From Linux: renameat2, relative to the working folder, with RENAME_EXCHANGE.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass
class Workspace:
    """A folder in which results are made. path: where it lies; `publish` moves it."""

    path: Path

    @property
    def new(self) -> Path:
        """The folder to write to."""
        return self.path / _NEW


@contextmanager
def workspace(folder: Path) -> Iterator[Workspace]:
    """A workspace in a folder, on the same disk; gone when the block ends, unless moving from it had begun and failed.

    What others have left there is finished or taken away first. Raises OSError where it cannot be made.
    """
    recover(folder)
    with ExitStack() as stack:
        work = Workspace(_begun(folder, stack))
        try:
            yield work
        finally:
            # Windows removes nothing that is open.
            stack.close()
            if not (work.path / _READY).exists():
                _remove(work.path)


def _begun(folder: Path, stack: ExitStack) -> Path:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        try:
            stack.enter_context(locks.held(path / _HELD))
            (path / _NEW).mkdir()
            return path
        except (BlockingIOError, FileNotFoundError):
            # Another process saw it before it was held, and took it for left.
            continue
        except OSError:
            _remove(path)
            raise


def recover(folder: Path) -> None:
    """In a folder, finish what processes that have ended were about to put there, and take away what they left.

    Never touches a workspace that is held, or of another user. Raises nothing: in a folder that may only be read, all
    stays as it is.
    """
    with suppress(OSError):
        for path in sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)):
            with suppress(OSError, ValueError):
                if _is_own_folder(path):
                    _settle(path, folder)


def contents(path: Path) -> list[str]:
    """The names of what is being made in a workspace, or was."""
    folders = [folder for name in (_NEW, _READY, _EARLIER) if (folder := path / name).is_dir()]
    beside = [each.name for each in path.iterdir() if each.name not in (_HELD, _NEW, _READY, _EARLIER, _PLAN)]
    return beside + [each.name for folder in folders for each in folder.iterdir()]


def _is_own_folder(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())


def _settle(path: Path, folder: Path) -> None:
    if not (path / _HELD).exists():
        # It has only just been made, or nearly gone.
        path.rmdir()
        return
    with locks.taken_over(path / _HELD) as left:
        if left:
            if (path / _READY).exists():
                _move_in(path, folder)
            _remove(path)


def _remove(path: Path) -> None:
    """As far as that can be done; what makes it a workspace goes last."""
    with suppress(OSError):
        (path / _PLAN).unlink(missing_ok=True)
        for name in (_NEW, _READY, _EARLIER):
            shutil.rmtree(path / name, ignore_errors=True)
        if {each.name for each in path.iterdir()} <= {_HELD}:
            (path / _HELD).unlink(missing_ok=True)
            path.rmdir()


# --- taking their place -------------------------------------------------------------------------------------------


def publish(work: Workspace, out: Path, *, earlier: Collection[str], last: str, durable: bool) -> None:
    """Let what lies in `work.new` take the place of earlier results in `out`, the folder that the workspace lies in.

    At every moment `out` holds the old or the new ones whole, or `recover` makes it hold the new ones.

    Args:
        earlier: names in `out` of all earlier results; those that are not replaced go.
        last: of the names, the one that says that everything is there.
        durable: not even a power cut may leave half of them.
    Raises: OSError; then the old ones are untouched, or the next `recover` goes on.
    """
    if durable:
        flush(work.new)
    names = sorted((path.name for path in work.new.iterdir()), key=lambda name: (name == last, name))
    if not _exchanged(work, out, {*earlier, *names}):
        plan = work.path / _PLAN
        plan.write_text(json.dumps({"gone": sorted({*earlier} - {*names}), "order": names}), encoding="utf-8")
        if durable:
            flush_file(plan)
        work.new.rename(work.path / _READY)
        _move_in(work.path, out)
    shutil.rmtree(work.new, ignore_errors=True)


def _exchanged(work: Workspace, out: Path, results: Collection[str]) -> bool:
    """Whether the new folder could take the place of the old one in one step. results: names that may go with it."""
    place = out.resolve()
    beside = place.parent / work.path.name
    try:
        others = {path.name for path in place.iterdir()} - {*results, work.path.name}
        here = Path.cwd()
        # Who works in a folder would find himself in one that is gone.
        if others or place == here or place in here.parents or not _made_alike(work.new, place):
            return False
        # A folder cannot change places with one that it lies in.
        work.path.rename(beside)
    except OSError:
        return False
    work.path = beside
    try:
        _take_place(work.new, place)
    except OSError:
        beside.rename(place / beside.name)
        work.path = place / beside.name
        return False
    if work.new.exists():
        for path in work.new.iterdir():
            if path.name not in results:  # It came at the last moment.
                path.rename(place / path.name)
    return True


def _made_alike(new: Path, old: Path) -> bool:
    """Give one folder the mode of another; False where more than that tells them apart."""
    ours, theirs = new.stat(), old.stat()
    if (ours.st_uid, ours.st_gid) != (theirs.st_uid, theirs.st_gid) or _attributes(new) != _attributes(old):
        return False
    new.chmod(stat.S_IMODE(theirs.st_mode))
    return True


def _attributes(folder: Path) -> dict[str, bytes]:
    """Access lists and the like."""
    if not hasattr(os, "listxattr"):
        return {}
    try:
        return {name: os.getxattr(folder, name) for name in os.listxattr(folder)}
    except OSError:
        return {}


def _take_place(new: Path, old: Path) -> None:
    """Exchange two folders, or move one to the place of an empty one. Raises OSError where that is not one step."""
    try:
        _exchange(new, old)
    except OSError:
        new.rename(old)


def _exchange(one: Path, other: Path) -> None:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _move_in(path: Path, out: Path) -> None:
    """Move what is ready to its place, from wherever an earlier attempt has stopped."""
    plan = json.loads((path / _PLAN).read_text(encoding="utf-8"))
    away = any(name in ("", ".", "..") or Path(name).name != name for name in (*plan["gone"], *plan["order"]))
    if away or any((path / name).is_symlink() for name in (_READY, _EARLIER)):
        raise ValueError("this leads out of the folder, so it was not made here")
    (path / _EARLIER).mkdir(exist_ok=True)
    for name in plan["gone"]:
        _set_aside(out / name, path)
    for name in plan["order"]:
        ready, place = path / _READY / name, out / name
        if not os.path.lexists(ready):
            continue
        if ready.is_dir() or place.is_dir():  # A folder cannot take the place of another in one step, as a file can.
            _set_aside(place, path)
        ready.replace(place)
    (path / _READY).rmdir()


def _set_aside(place: Path, path: Path) -> None:
    if os.path.lexists(place):
        place.rename(path / _EARLIER / place.name)


# --- the disk -----------------------------------------------------------------------------------------------------


def flush(folder: Path) -> None:
    """Bring everything below a folder from the system's memory to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            flush_file(path)
    for path in (folder, *(each for each in folder.rglob("*") if each.is_dir())):
        with suppress(OSError):  # Windows cannot, and need not.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def flush_file(path: Path) -> None:
    """The same for one file."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
