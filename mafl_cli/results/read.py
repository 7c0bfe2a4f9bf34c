"""What runs left behind, read again: reports, words of failures, lists of cases.

They may come from anybody. What mafl cannot have written is bad input, by name.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from mafl_cli.errors import InputError
from mafl_cli.names import one_line, public_name
from mafl_cli.results.batch_report import CaseList
from mafl_cli.results.envelope import SCHEMA_VERSION, Failure
from mafl_cli.results.files import FAILED, REPORT, RUN
from mafl_cli.results.report import Report, Settings
from mafl_cli.system import records, staging
from mafl_cli.system.documents import read_json, read_json_text

Record = TypeVar("Record")

_LONGEST = 1000
"""Characters of why a case failed."""


class OtherVersion(InputError):
    """A report of another version of the schema. problem: that, without what to do about it."""

    def __init__(self, name: str, version: str) -> None:
        self.problem = f"{name}: is a report of schema {version[:20]}; this mafl reads {SCHEMA_VERSION}"
        super().__init__(f"{self.problem}: attack the scan again.")


def read_report(run: Path) -> Report:
    """The report of a finished run folder; each of its texts is one line.

    Raises InputError if there is none, or none that mafl can have written.
    """
    name = public_name(run)
    staging.recover(run)
    if not run.is_dir():
        raise InputError(f"{name}: is not a result folder: give the folder that an attack wrote.")
    failure = read_failure(run)
    if failure is not None:
        why = failure.message.rstrip(".!? ")
        raise InputError(f"{why}." if ": " in why else f"{name}: failed when it was attacked: {why}.")
    path = run / REPORT
    if not path.is_file():
        raise InputError(f"{name}: holds no {REPORT}; the run did not finish or is another folder.")
    return _parsed(path, f"{name}/{REPORT}")


def finished(folder: Path) -> Report | None:
    """The report of a case of a batch; None if there is none, or none that is whole: it is as if it had not been run.

    Raises OtherVersion for a report of another version of the schema.
    """
    path = folder / REPORT
    try:
        return _parsed(path, f"{public_name(folder)}/{REPORT}") if path.is_file() else None
    except OtherVersion:
        raise
    except InputError:
        return None


def _parsed(path: Path, name: str) -> Report:
    found, text = read_json_text(path, name)
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, str) and version != SCHEMA_VERSION:
        raise OtherVersion(name, version)
    read = records.read_text(Report, text, f"{name}: is not a report of this mafl")
    always = {each.name for each in fields(Settings) if "optional" not in each.metadata}
    missing = sorted(always - found["run"]["settings"].keys())
    problem = f"run.settings.{missing[0]} is missing" if missing else _problem(read)
    if problem is not None:
        raise InputError(f"{name}: is not a report of this mafl: {problem}.")
    return read


def _problem(found: Report) -> str | None:
    """What is wrong with a report that has the right form."""
    case, settings, dims = found.case, found.run.settings, found.model.dims
    names = [PurePosixPath(file.name) for file in case.files]
    if any(name.is_absolute() or ".." in name.parts or not name.parts for name in names):
        return "it names files outside its folder"
    of_channels = (found.model.channels, case.space.native_units_per_model_unit, case.metrics.size_per_channel)
    if any(len(each) != len(case.inputs) for each in of_channels):
        return "its numbers of channels differ"
    if settings.mode != f"{dims}d" or case.space.mode != f"{dims}d":
        return f"its mode is not that of a {dims}-D model"
    spacing, roi = settings.spacing, settings.roi
    # A network of slices that goes through a volume has windows of one plane, and says nothing of the way across.
    planes = dims == 3 and roi is not None and roi[0] == 1
    if (roi is not None and len(roi) != dims) or (
        spacing is not None and len(spacing) not in ((2, 3) if planes else (dims, 3))
    ):
        return f"its spacing or roi is not that of a {dims}-D model"
    return None


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none that can be read."""
    try:
        found = read_json(path)
    except InputError:
        return None
    return found if isinstance(found, dict) else None


def read_record(kind: type[Record], path: Path) -> Record | None:
    """What a file holds of a kind of record; None where there is none that can be read."""
    try:
        return records.read_text(kind, read_json_text(path)[1], public_name(path))
    except InputError:
        return None


def read_failure(folder: Path) -> Failure | None:
    """Why a case of a batch failed; None where nothing says that it did."""
    path = folder / FAILED
    if not path.is_file():
        return None
    try:
        said = records.read(Failure, (read_object(path) or {}).get("error"), FAILED)
    except InputError:
        damaged = f"{public_name(folder)}: failed, but its {FAILED} is damaged, so the reason is lost."
        return Failure(type=InputError.__name__, message=damaged)
    return Failure(type=one_line(said.type)[:_LONGEST], message=one_line(said.message)[:_LONGEST])


def read_run(run: Path) -> CaseList | None:
    """What a batch knows of itself; None for a folder that is not a batch. Raises InputError when it is damaged."""
    if not (run / RUN).is_file():
        return None
    known = read_record(CaseList, run / RUN)
    if known is None:
        raise InputError(f"{public_name(run)}/{RUN}: is damaged; delete it, and give the command of the batch again.")
    return known


def batch_cases(run: Path) -> list[tuple[str, str | None]] | None:
    """The cases of a batch, and of each why it has no results, as a sentence; None for a folder that is not a batch.

    Raises: as `read_run`.
    """
    known = read_run(run)
    if known is None:
        return None
    found: list[tuple[str, str | None]] = []
    for case_id in known.cases:
        failure = read_failure(run / case_id)
        if failure is not None:
            found.append((case_id, failure.message))
        else:
            there = (run / case_id / REPORT).is_file()
            found.append((case_id, None if there else f"{case_id}: was not attacked yet."))
    return found
