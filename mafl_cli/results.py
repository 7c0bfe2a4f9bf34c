"""The result folder: what its files are called, and how they get there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mafl_cli.errors import MaflError, OutputError, UsageError
from mafl_cli.names import public_name

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

# Folders and files of ours that are not finished.
_STAGE = ".mafl-"
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


def is_stage(path: Path) -> bool:
    """Whether a folder is where an attack at work, or one that was killed, gathers what it will leave."""
    return path.name.startswith(_STAGE) and path.is_dir() and (not any(path.iterdir()) or bool(there(path)))


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
    stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=out))
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
        with tempfile.NamedTemporaryFile(dir=out, prefix=_STAGE):
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
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=_STAGE) as folder:
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


def _cannot_write(path: Path, exc: OSError, advice: str = "choose another folder with -o") -> MaflError:
    name = public_name(path)
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{name}: no space left on the disk; make room, and give the command again.")
    return UsageError(f"{name}: cannot be written to ({exc.strerror}); {advice}.")
