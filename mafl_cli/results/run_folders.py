"""Which folders hold results, below those that somebody named: so that none is passed over.

A gate must not pass because a run was not found. What looks like results and cannot be judged is found too, with the
reason: an attack that was killed, a batch that lost its list, a run inside another or behind a name with a dot, a
folder with nothing in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mafl_cli.errors import InputError, cannot_be_read
from mafl_cli.names import public_name
from mafl_cli.results import read
from mafl_cli.results.files import FAILED, PREDICTION_ADVERSARIAL, REPORT, RUN, TICKET, changed_scans
from mafl_cli.results.folder import is_stage
from mafl_cli.system import staging

# The tables that a batch leaves beside its cases.
_TABLES = {"cases.csv", "failed.txt"}


@dataclass(frozen=True)
class Place:
    """A folder of results, or what should be one. missing: why it cannot be judged, as a sentence."""

    name: str
    folder: Path
    missing: str | None = None


@dataclass(frozen=True)
class _Visit:
    """A folder to be looked into. outer: the run or batch that it lies in. hidden: it is behind a name with a dot.

    case: a batch has named it already.
    """

    folder: Path
    outer: str | None = None
    hidden: bool = False
    case: bool = False


def places(root: Path) -> list[Place]:
    """All that is a run, a case of a batch, or less than that, at this folder or below it, in the order of the names.

    The folder itself where there is nothing: reading it says so. Links are followed, and each folder is met once.
    """
    found: dict[Path, Place] = {}
    seen: set[Path] = set()
    # What is out of place comes last: a link may lead to what is met in its own place too.
    left, later = [_Visit(root)], list[_Visit]()
    while left or later:
        visit = left.pop() if left else later.pop()
        if visit.folder.resolve() in seen:
            continue
        seen.add(visit.folder.resolve())
        here, inside = _look(visit, named=visit.folder == root)
        for place in here:
            # What a batch says of its case comes first, and counts.
            found.setdefault(place.folder.resolve(), place)
        for each in reversed(inside):
            (later if each.hidden or (each.outer and not each.case) else left).append(each)
    return list(found.values()) or [Place(public_name(root.resolve()), root)]


def _look(visit: _Visit, *, named: bool) -> tuple[list[Place], list[_Visit]]:
    """What a folder is, and what in it is to be looked into. named: by the user."""
    here, name = visit.folder, public_name(visit.folder.resolve())
    staging.recover(here)
    try:
        with os.scandir(here) as entries:
            there = sorted((entry.name, entry.is_dir()) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as exc:
        # It may hold the worst run.
        return [Place(name, here, str(cannot_be_read(name, exc)))], []
    files = [each for each, is_folder in there if not is_folder]
    folders = [each for each, is_folder in there if is_folder]
    inner = [each for each in folders if not each.startswith(".mafl")]
    found: list[Place] = []
    outer, cases = visit.outer, set[str]()
    if (here / RUN).is_file():
        found = _batch(here, name)
        cases = {each.folder.name for each in found}
        # Nobody knows what a damaged list names.
        outer = None if found[0].folder == here else name
    elif visit.case:
        outer = name
    elif _has_lost_its_list(here, files, inner):
        found = [Place(name, here, f"{name}: {_LOST}")]
    elif _has_results(here, files, folders):
        found = [Place(name, here, _out_of_place(name, visit))]
        outer = name
    elif not there and not named and outer is None and not visit.hidden:
        found = [Place(name, here, f"{name}: is empty: the results of an attack are missing here.")]
    if outer == name:
        # What lies in a series is compared with the report, file by file.
        inner = [each for each in inner if not changed_scans([each])]
    return found, [
        _Visit(here / each, outer, visit.hidden or each.startswith("."), case=each in cases) for each in inner
    ]


_LOST = (
    "holds cases of a batch but not its list of them (.mafl, a hidden folder), so that some may be missing; copy the "
    "whole folder, or name the folders of its cases."
)


def _batch(here: Path, name: str) -> list[Place]:
    """The cases of a batch, those without results too; the batch itself where it has none, or a damaged list."""
    try:
        known = read.batch_cases(here)
    except InputError as exc:
        return [Place(name, here, str(exc))]
    return [Place(case_id, here / case_id, missing) for case_id, missing in known or ()] or [
        Place(name, here, f"{name}: is a batch without cases.")
    ]


def _has_lost_its_list(here: Path, files: Sequence[str], folders: Sequence[str]) -> bool:
    return (
        set(files) >= _TABLES
        or _command(here, files) == "attack-batch"
        or any((here / each / mark).is_file() for each in folders for mark in (TICKET, FAILED))
    )


def _has_results(here: Path, files: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether an attack has been at work here: it has ended, has failed, or was killed."""
    marks = {REPORT, TICKET, FAILED, PREDICTION_ADVERSARIAL}
    if _command(here, files) == "evaluate":
        marks.remove(REPORT)
    return (
        bool(marks & set(files)) or changed_scans((*files, *folders)) or any(is_stage(here / each) for each in folders)
    )


def _command(here: Path, files: Sequence[str]) -> object:
    """What a report at the top of several runs is about; a run's own report does not say it there."""
    if REPORT not in files or changed_scans(files):
        return None
    return (read.read_object(here / REPORT) or {}).get("command")


def _out_of_place(name: str, visit: _Visit) -> str | None:
    if visit.outer is not None:
        return (
            f"{name}: lies inside the results of {visit.outer}, and is not judged with them: move it elsewhere, or "
            "give it by name too."
        )
    if visit.hidden:
        return (
            f"{name}: is in a hidden folder (a name with a dot), so it is not judged: rename that folder, or give "
            f"{name} by name."
        )
    return None
