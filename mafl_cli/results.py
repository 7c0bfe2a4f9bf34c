"""The result folder: what its files are called, how they get there whole or not at all, how they are read again."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from mafl_cli.errors import InputError, MaflError, OutputError, UsageError
from mafl_cli.names import one_line, public_name

PREDICTION_CLEAN = "prediction_clean.nii.gz"
PREDICTION_ADVERSARIAL = "prediction_adversarial.nii.gz"
TARGET = "target.nii.gz"
REPORT = "report.json"
# In a batch: what the results of a case were made from, so that a later run knows whether to make them again.
TICKET = ".case.json"
FAILED = "failed.json"
# What a batch knows of itself: the hash of its settings and the list of its cases.
RUN = ".mafl/run.json"


# Masks as DICOM SEG, beside the same masks as NIfTI, when the scan is DICOM.
SEGMENTATIONS = {
    name: name.removesuffix(".nii.gz") + ".dcm" for name in (PREDICTION_CLEAN, PREDICTION_ADVERSARIAL, TARGET)
}

_SCANS = re.compile(r"(adversarial|perturbation)(_\d{4})?(\.nii\.gz)?")


def adversarial(formats: Sequence[str]) -> tuple[str, ...]:
    """Names of the changed scan, one for each channel, numbered as nnU-Net does when there are several.

    formats: "nifti" makes a file, "dicom" a folder.
    """
    stems = _numbered("adversarial", len(formats))
    return tuple(stem + (".nii.gz" if kind == "nifti" else "") for stem, kind in zip(stems, formats, strict=True))


def perturbation(channels: int) -> tuple[str, ...]:
    """File names of the change, one for each channel."""
    return tuple(f"{stem}.nii.gz" for stem in _numbered("perturbation", channels))


def _numbered(stem: str, count: int) -> tuple[str, ...]:
    return (stem,) if count == 1 else tuple(f"{stem}_{index:04d}" for index in range(count))


def there(out: Path) -> list[Path]:
    """Results in a folder, of any run."""
    names = {*SEGMENTATIONS, *SEGMENTATIONS.values(), REPORT, TICKET}
    return sorted(path for path in out.iterdir() if path.name in names or _SCANS.fullmatch(path.name))


def changed_scans(names: Iterable[str]) -> bool:
    """Whether one of these names in a folder is that of an adversarial scan or of a perturbation."""
    return any(_SCANS.fullmatch(name) for name in names)


def listed(stage: Path) -> list[dict[str, str]]:
    """Name and SHA-256 of every file below a folder; the files of a series by their path in it."""
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    return [{"name": path.relative_to(stage).as_posix(), "sha256": sha256(path)} for path in files]


@contextmanager
def staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder inside `out`, whose contents move to `out` when the block ends well, the report last.

    After any error, an interrupt included, `out` is as it was before: earlier results untouched, nothing partial,
    and not even there if it was not there.

    Raises UsageError if results are there already (unless `overwrite`) or the folder cannot be made, and
    OutputError if the disk fills up.
    """
    made = check_writable(out, overwrite=overwrite)
    stage = Path(tempfile.mkdtemp(prefix=".mafl-", dir=out))
    try:
        yield stage
        earlier = there(out)
        # An old report must not vouch for new volumes, should the machine die between two renames.
        (out / REPORT).unlink(missing_ok=True)
        # Where the report is, everything it speaks of is.
        fresh = sorted(stage.iterdir(), key=lambda path: path.name == REPORT)
        old = stage / ".earlier"
        old.mkdir()
        for path in fresh:
            if (out / path.name).is_dir():  # A folder cannot take the place of another in one step, as a file can.
                (out / path.name).replace(old / path.name)
            path.replace(out / path.name)
        replaced = {path.name for path in fresh}
        for path in earlier:
            if path.exists() and path.name not in replaced:
                path.replace(old / path.name)
        shutil.rmtree(stage)
    except BaseException as exc:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(exc, OSError):
            raise _cannot_write(out, exc) from exc
        raise


def check_writable(out: Path, *, overwrite: bool) -> list[Path]:
    """Make the folder `out`; returns the folders that had to be made, innermost first.

    Raises UsageError if it cannot be made or written to, or already holds results and `overwrite` is not set.
    """
    found = there(out) if out.is_dir() else []
    # Masks alone are what `--dry-run` leaves: nothing that took an attack to make.
    kept = [path for path in found if path.name not in (PREDICTION_CLEAN, TARGET)]
    if kept and not overwrite:
        raise UsageError(
            f"{public_name(out)}: already holds results ({kept[0].name}); choose another folder with -o "
            "or add --overwrite."
        )
    made: list[Path] = []
    try:
        for folder in (out, *out.parents):
            if folder.exists():
                break
            made.append(folder)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".mafl-"):
            pass
    except OSError as exc:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise _cannot_write(out, exc) from exc
    return made


def write_through(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then rename it there, so that `path` is whole or untouched.

    A link stays a link: the file behind it is replaced. What is no file is written to: root could rename a file over
    /dev/null.

    Raises UsageError if the folder cannot be written to, OutputError if the disk is full.
    """
    try:
        if path.exists() and not path.is_file():
            write(path)
            return
        file = path.resolve()
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".mafl-") as folder:
            temporary = Path(folder) / path.name
            write(temporary)
            temporary.replace(file)
    except OSError as exc:
        raise _cannot_write(path, exc, "choose another name") from exc


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file, whole or not at all. Raises as `write_through`."""
    write_through(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_report(run: Path) -> dict[str, Any]:
    """The report of a finished run folder. Raises InputError if there is none or it cannot be read."""
    path = run / REPORT
    if not run.is_dir():
        raise InputError(f"{public_name(run)}: no such run folder; give the -o folder of `mafl attack`.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number, parse_float=_finite)
    except FileNotFoundError as exc:
        raise InputError(
            f"{public_name(run)}: holds no {REPORT}; the run did not finish or is another folder."
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise InputError(f"{public_name(run)}/{REPORT}: cannot be read as JSON.") from exc
    if not _is_report(report):
        raise InputError(f"{public_name(run)}/{REPORT}: is not a report of this mafl, or not of one case.")
    return dict(_in_lines(report))


def _in_lines(value: Any) -> Any:
    """JSON with each of its texts on one line: a run may come from anybody, and is quoted in logs."""
    if isinstance(value, dict):
        return {one_line(name): _in_lines(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_in_lines(each) for each in value]
    return one_line(value) if isinstance(value, str) else value


def _is_report(report: Any) -> bool:
    """Whether everything is there that is read of a report; its files must lie in its folder."""
    try:
        (case,) = report["cases"]
        names = [PurePosixPath(file["name"]) for file in case["files"]]
        goals = [report["run"]["settings"][key] for key in ("goal_iou", "goal_hit")]
        sound = all(0 <= goal <= 1 for goal in goals) and isinstance(report["model"]["overlapping"], bool)
        needed = (
            [report["schema_version"], report["tool"], report["run"]["method"], case["case_id"], case["inputs"][0]],
            [report["model"][key] for key in ("name", "sha256", "classes", "overlapping", "channels", "assumptions")],
            [report["model"][key] for key in ("orientation", "intensity")],
            [report["run"]["settings"][key] for key in ("mode", "slice_axis", "spacing", "roi", "overlap")],
            [each["format"] for each in case["inputs"]],
            [case["space"]["slice_axis"]["index"], case["space"]["native_units_per_model_unit"][0]],
            [case["attack"]["outcome"], case["metrics"]["post_write"], case["metrics"]["size"]],
            [each["l2"]["model"] for each in case["metrics"]["size_per_channel"]],
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return False
    return bool(needed) and sound and not any(name.is_absolute() or ".." in name.parts for name in names)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_run(run: Path) -> dict[str, Any] | None:
    """What a batch knows of itself: "settings" and "cases"; None for a folder that is no batch.

    Raises InputError when it cannot be what mafl wrote; a case's name must not lead out of the folder.
    """
    known = read_object(run / RUN)
    if known is None and not (run / RUN).is_file():
        return None
    try:
        cases = known["cases"] if known is not None and isinstance(known["settings"], str) else [""]
        whole = all(name not in ("", ".", "..") and Path(name).name == name for name in cases)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{public_name(run)}/{RUN}: is damaged; delete it, and give the command of the batch again.")
    return known


def batch_cases(run: Path) -> list[tuple[str, str | None]] | None:
    """The cases of a batch, and of each why it has no results, as a sentence; None for a folder that is no batch."""
    known = read_run(run)
    if known is None:
        return None
    found: list[tuple[str, str | None]] = []
    for case_id in known["cases"]:
        failure = read_object(run / case_id / FAILED)
        if failure is not None:
            found.append((case_id, str(failure["error"]["message"])))
        else:
            there = (run / case_id / REPORT).is_file()
            found.append((case_id, None if there else f"{case_id}: was not attacked yet."))
    return found


def _cannot_write(path: Path, exc: OSError, advice: str = "choose another folder with -o") -> MaflError:
    name = public_name(path)
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{name}: no space left on the disk; make room, and give the command again.")
    return UsageError(f"{name}: cannot be written to ({exc.strerror}); {advice}.")
