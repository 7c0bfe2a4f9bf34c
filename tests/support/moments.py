"""Ends a process at each of its file operations in turn, really by SIGKILL; run as a program by `test_staging`.

Prints a JSON object: for each way in which results take their place, at how many moments it was ended, and what was
wrong afterwards.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mafl_cli.errors import DiskFullError, MaflError, UsageError
from mafl_cli.results.files import there
from mafl_cli.results.folder import recover, staged, write_text
from mafl_cli.system import staging

FILES = ("adversarial.nii.gz", "perturbation.nii.gz", "prediction_adversarial.nii.gz", "prediction_clean.nii.gz")
_CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.chmod", "shutil.rmtree", "test.exchange"}
at_operation: Callable[[str], None] | None = None


def heard(event: str, arguments: tuple[object, ...]) -> None:
    if at_operation is None:
        return
    if event == "open" and isinstance(arguments[2], int):
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes or str(arguments[0]) == os.devnull:
            return
    elif event not in _CHANGES:
        return
    at_operation(event)


sys.addaudithook(heard)
exchange = staging._exchange
# No power is cut here, and a disk is slow.
os.fsync = lambda fd: None


def told_exchange(one: Path, other: Path) -> None:
    sys.audit("test.exchange")
    exchange(one, other)


def no_exchange(one: Path, other: Path) -> None:
    raise OSError(errno.EINVAL, "no such step")


# --- one case -----------------------------------------------------------------------------------------------------


def write(folder: Path, version: str, *, series: bool) -> None:
    """Results that name each other: a report and the files it is about."""
    for name in FILES[series:]:
        (folder / name).write_text(version)
    if series:
        (folder / "adversarial").mkdir()
        (folder / "adversarial" / "0001.dcm").write_text(version)
    (folder / "target.nii.gz" if version == "old" else folder / "target.dcm").write_text(version)
    (folder / "report.json").write_text(json.dumps({"version": version}))


def version_of(out: Path) -> str | None:
    """Of results that are whole; None if they are not, or not there."""
    try:
        version = json.loads((out / "report.json").read_text())["version"]
    except (OSError, ValueError):
        return None
    made = [path for path in there(out) if path.name != "report.json"]
    files = [file for path in made for file in (path.iterdir() if path.is_dir() else [path])]
    whole = len(files) == len(FILES) + 1 and all(file.read_text() == version for file in files)
    return version if whole else None


def left(out: Path) -> list[str]:
    return [path.name for path in (*out.parent.glob(".mafl-*"), *out.rglob(".mafl-*"))]


def replace(out: Path, series: bool) -> None:
    with staged(out, overwrite=True) as stage:
        write(stage, "new", series=series)


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Let a child do something and end it before its n-th operation; False if it has fewer."""
    global at_operation
    child = os.fork()
    if not child:
        seen = 0

        def count(event: str) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

        at_operation = count
        try:
            work()
        except BaseException as exc:
            print(type(exc).__name__, exc, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the child has failed")
    return os.WIFSIGNALED(status)


def begin(root: Path, name: str, *, series: bool, foreign: bool, first: bool) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    out = root / name
    out.mkdir(parents=True)
    if not first:
        write(out, "old", series=series)
    if foreign:
        (out / "notes.txt").write_text("mine")
    return out


# --- all moments --------------------------------------------------------------------------------------------------


def kills(root: Path, way: str, wrong: list[str]) -> int:
    """Returns how many moments there are."""
    series, foreign, first = way.endswith("series"), "beside" in way, "first" in way
    staging._exchange = no_exchange if "no exchange" in way else told_exchange
    at_once = not foreign and "no exchange" not in way
    number = 0
    while True:
        number += 1
        out = begin(root, "out", series=series, foreign=foreign, first=first)
        if not killed_at(number, partial(replace, out, series)):
            break
        where = f"{way}, moment {number}"
        if at_once and not first and version_of(out) is None:
            wrong.append(f"{where}: neither the old nor the new results are whole")
        if not first and not (out / "report.json").is_file():
            wrong.append(f"{where}: no report")
        # Killed again, while what was left is put right.
        if way == "no exchange, series" and number % 3 == 0:
            again = 0
            while killed_at(again := again + 1, partial(recover, out)):
                if not first and not (out / "report.json").is_file():
                    wrong.append(f"{where}, then {again}: no report")
        recover(out)
        if left(out):
            wrong.append(f"{where}: {left(out)} are left")
        if version_of(out) is None and not (first and not there(out)):
            wrong.append(f"{where}: not whole after the next start")
        if foreign and (out / "notes.txt").read_text() != "mine":
            wrong.append(f"{where}: a file of somebody else is gone")
        replace(out, series)
        if version_of(out) != "new" or left(out):
            wrong.append(f"{where}: the next run is not whole")
    if version_of(out) != "new" or left(out):
        wrong.append(f"{way}: not whole though nobody disturbed it")
    return number - 1


def full_disks(root: Path, way: str, wrong: list[str]) -> int:
    """The disk fills up at each operation: one that fails, or all that need room from then on."""
    series, foreign = way.endswith("series"), "beside" in way
    staging._exchange = told_exchange
    moments = 0
    for forever in (False, True):
        number, reached = 0, True
        while reached:
            number += 1
            out = begin(root, "out", series=series, foreign=foreign, first=False)
            reached, problem = full_at(number, forever, partial(replace, out, series))
            recover(out)
            if problem or left(out) or version_of(out) is None:
                wrong.append(f"{way}, full at {number}: {problem}, {version_of(out)}, left {left(out)}")
        moments += number - 1
    return moments


def full_at(number: int, forever: bool, work: Callable[[], object]) -> tuple[bool, str | None]:
    """Whether there are so many operations, and what else than a full disk was said of it."""
    global at_operation
    seen = 0

    def fail(event: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number or (forever and seen > number and event in ("open", "os.mkdir")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_operation, problem = fail, None
    try:
        work()
    except DiskFullError:
        pass
    except (OSError, MaflError) as exc:
        problem = f"{type(exc).__name__}: {exc}"
    finally:
        at_operation = None
    return seen >= number, problem


def files(root: Path, wrong: list[str]) -> int:
    """A file that takes the place of another."""
    number = 0
    while True:
        number += 1
        out = begin(root, "out", series=False, foreign=False, first=False)
        (out / "page.html").write_text("old")
        if not killed_at(number, partial(write_text, out / "page.html", "new")):
            return number - 1
        if (out / "page.html").read_text() not in ("old", "new"):
            wrong.append(f"a file, moment {number}: neither old nor new")
        write_text(out / "page.html", "new")
        if left(out) or (out / "page.html").read_text() != "new":
            wrong.append(f"a file, moment {number}: {left(out)} are left")


WAYS = (
    "one step",
    "one step, series",
    "first results",
    "first results, no exchange",
    "files beside",
    "no exchange",
    "no exchange, series",
)


def main(root: Path) -> None:
    os.umask(0o022)
    said, wrong = {}, list[str]()
    for way in WAYS:
        said[way] = kills(root, way, wrong)
    for way in ("one step", "files beside, series"):
        said[f"full disk, {way}"] = full_disks(root, way, wrong)
    said["a file"] = files(root, wrong)
    # A workspace whose process lives, and what only looks like one, are nobody's to take away.
    out = begin(root, "out", series=False, foreign=False, first=False)
    (out / ".mafl-notes").mkdir()
    (out / ".mafl-work-abcdefgh").write_text("a file of somebody")
    (out / ".mafl-work-stranger").mkdir()
    (out / ".mafl-work-stranger" / "letter.txt").write_text("a folder of somebody")
    with staging.workspace(out) as work:
        killed_at(1_000_000, lambda: recover(out))
        if not work.new.is_dir() or len(left(out)) != 4:
            wrong.append("what is not left was taken away")
    try:
        with staged(out, overwrite=False):
            wrong.append("earlier results were no reason to refuse")
    except UsageError:
        pass
    print(json.dumps({"moments": said, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
