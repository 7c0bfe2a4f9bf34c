"""What lies in a folder, what cases are called, and which files make one: the ground that lists of cases stand on.

Names and places only. No voxel is read, and of DICOM no more than it takes to tell what a file is.

Words. *name*: what a case is called on the disk or in a manifest, as it stands there; masks are found by it. *id*:
what mafl calls it, made of the name; a folder may be called so on any system, and it never holds a UID.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mafl_cli.errors import InputError, cannot_be_read
from mafl_cli.names import case_name, is_there, natural, nfc, public_name, shown_path
from mafl_cli.scans import formats

NIFTI = (".nii", ".nii.gz")
_NUMBERED = re.compile(r"(.+)_(\d{4})", re.ASCII | re.DOTALL)

# What lies beside scans and is none: not worth opening to find out.
_BESIDE = re.compile(
    r"\.(?:json|txt|csv|tsv|jsonl|ndjson|md|xml|html|pdf|log|toml|ya?ml|png|jpe?g|bmp|gif|tiff?|bval|bvec|mat|pkl|np[yz]"
    r"|h5|ctbl|label|tfm|py|sh)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FoundCase:
    """A case before it has its id. names: the first is its own; masks may have any of them.

    problem: what stands behind the id and a colon. listed: in a manifest, so that twice is meant twice.
    """

    names: tuple[str, ...]
    images: tuple[Path, ...]
    targets: tuple[Path, ...] = ()
    ground_truth: Path | None = None
    guides: tuple[Path, ...] = ()
    problem: str | None = None
    listed: bool = False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; like Path.is_dir, without errors."""
    return is_there(path) and path.is_dir()


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI, by its name."""
    return path.name.lower().endswith(NIFTI)


def numbered(path: Path) -> tuple[str, int] | None:
    """("CASE", 1) for CASE_0001.nii.gz."""
    parts = _NUMBERED.fullmatch(case_name(path)) if is_nifti(path) else None
    return None if parts is None else (parts[1], int(parts[2]))


def grouped(paths: Iterable[Path], channels: int | None = None) -> list[FoundCase]:
    """Cases, in natural order: a file each, or those that differ in nothing but four digits at the end.

    Digits are taken for channels in folders that have a 0000: case_0001 to case_0100 alone are a hundred cases.
    channels: how many each numbered case must have, if that is known.
    """
    split = [(path, str(path.parent), numbered(path)) for path in paths]
    folders = {folder for _, folder, parts in split if parts is not None and parts[1] == 0}
    alone: list[FoundCase] = []
    groups: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for path, folder, parts in split:
        if parts is None:
            alone.append(FoundCase((case_name(path),), (path,)))
        elif folder in folders:
            groups.setdefault((folder, parts[0]), []).append((parts[1], path))
        else:
            alone.append(FoundCase((case_name(path), parts[0]), (path,)))
    together = [
        FoundCase(
            (name,),
            tuple(path for _, path in sorted(files)),
            problem=_gap([number for number, _ in files], channels),
        )
        for (_, name), files in groups.items()
    ]
    return sorted((*alone, *together), key=lambda each: natural(str(each.images[0])))


def _gap(numbers: Sequence[int], channels: int | None) -> str | None:
    """What is wrong with the numbers of a case's channels."""
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        return f"channel {twice[0]:04d} is there twice; keep one file of it."
    wanted = max(numbers) + 1 if channels is None else channels
    missing = sorted(set(range(wanted)) - set(numbers))
    if missing:
        shown = ", ".join(f"{number:04d}" for number in missing[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        return f"channel {shown}{more} is missing." if len(missing) == 1 else f"channels {shown}{more} are missing."
    if len(numbers) > wanted:
        return f"has {len(numbers)} channels, but the data set {wanted}."
    return None


@dataclass(frozen=True)
class Contents:
    """What is in a folder, in natural order, without what is hidden. other: files that may be DICOM."""

    nifti: tuple[Path, ...]
    other: tuple[Path, ...]
    folders: tuple[Path, ...]


def contents(folder: Path) -> Contents:
    """Raises InputError when the folder cannot be read."""
    nifti, other, folders = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                path = folder / entry.name
                if entry.is_dir():
                    folders.append(path)
                elif is_nifti(path):
                    nifti.append(path)
                elif may_be_dicom(path):
                    other.append(path)
    except OSError as exc:
        raise cannot_be_read(public_name(folder), exc) from exc
    return Contents(*(tuple(sorted(each, key=lambda path: natural(path.name))) for each in (nifti, other, folders)))


def may_be_dicom(path: Path) -> bool:
    """Whether a file may be DICOM by its name. A DICOMDIR is the table of contents of what lies beside it."""
    return not _BESIDE.fullmatch(path.suffix) and path.name.upper() != "DICOMDIR"


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, by its name."""
    return path.suffix.lower() == ".zip"


def scans_in(folder: Path) -> list[FoundCase]:
    """NIfTI files, zip archives, and folders that hold DICOM."""
    inside = contents(folder)
    series = [path for path in inside.folders if first_dicom(path) is not None]
    return grouped((*inside.nifti, *filter(is_zip, inside.other), *series))


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder that are not hidden, in a fixed order."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def first_dicom(folder: Path) -> Path | None:
    """The first DICOM file below a folder."""
    return next(
        (
            path
            for path in _walk(folder)
            if not is_nifti(path) and not is_zip(path) and may_be_dicom(path) and formats.is_dicom(path)
        ),
        None,
    )


def first_nifti(folder: Path) -> Path | None:
    """The first NIfTI file below a folder."""
    return next(filter(is_nifti, _walk(folder)), None)


def holds_slices(inside: Contents) -> bool:
    """Whether DICOM slices lie directly in a folder: then it is the folder of a scan, whatever else is in there.

    A DICOM SEG among NIfTI files is one of the masks that may lie there.
    """
    return any(
        not is_zip(path) and formats.is_dicom(path) and not (inside.nifti and formats.is_mask(path))
        for path in inside.other
    )


def holds_cases(path: Path) -> bool:
    """Whether this is a folder of NIfTI files or of folders, and not the one folder of a DICOM series."""
    if not path.is_dir():
        return False
    inside = contents(path)
    return bool(inside.nifti) or not any(map(formats.is_dicom, inside.other))


def by_case(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Files of each case of a folder, by the case's name and in the order of their channels.

    Where two cases have one name (a.nii and a.nii.gz), the first counts. Raises InputError for a folder that cannot be
    read.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for each in scans_in(folder):
        found.setdefault(each.names[0], each.images)
    return found


def what_is_missing(paths: Iterable[Path]) -> str | None:
    """The first file that is not there, as a problem."""
    gone = next((path for path in paths if not is_there(path)), None)
    return None if gone is None else f"{shown_path(str(gone))} is not there."


class Places:
    """Where the files are that a list names, relative to a folder.

    Lists come from other systems: what is not there as it is written is looked for with Windows' backslashes as
    slashes, and in the other forms of Unicode (a Mac writes ö as o and two dots).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[Path, dict[str, str]] = {}

    def path(self, text: str) -> Path:
        """The file's place, also if nothing is there."""
        return self.find(text) or self._folder / text.strip()

    def find(self, text: str) -> Path | None:
        """The file or folder that a text names; None if there is none."""
        spelled = list(
            dict.fromkeys(each for whole in (text, text.strip()) for each in (whole, whole.replace("\\", "/")))
        )
        return next(filter(is_there, (self._folder / each for each in spelled)), None) or next(
            filter(None, (self._in_other_form(Path(each)) for each in spelled if not each.isascii())), None
        )

    def _in_other_form(self, path: Path) -> Path | None:
        place = self._folder
        for part in path.parts:
            if not is_there(place / part):
                part = self._by_form(place).get(nfc(part), "")
                if not part:
                    return None
            place = place / part
        return place

    def _by_form(self, folder: Path) -> dict[str, str]:
        """Names in a folder by their common form, but for those that several share."""
        if folder not in self._names:
            try:
                names = [path.name for path in folder.iterdir()]
            except OSError:
                names = []
            several = Counter(map(nfc, names))
            self._names[folder] = {nfc(name): name for name in names if several[nfc(name)] == 1}
        return self._names[folder]


class MaskFolder:
    """Masks that have the names of cases. CASE_0000, CASE_0001, ... are the masks of regions, in their order."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError when the folder cannot be read."""
        inside = contents(folder)
        self.name = public_name(folder)
        self._named: dict[str, tuple[Path, ...]] = {}
        # NIfTI first: it wins against DICOM of the same name.
        for path in inside.nifti:
            self._named[case_name(path)] = (*self._named.get(case_name(path), ()), path)
        for path in (*inside.other, *inside.folders):
            self._named.setdefault(case_name(path), (path,))
        self._numbered = {
            each.names[0]: each.images for each in grouped(inside.nifti) if len(each.names) == 1 and not each.problem
        }

    def find(self, names: Sequence[str]) -> tuple[Path, ...]:
        """The masks of a case, by the first of its names that any has; () if there is none."""
        for masks in (self._named, self._numbered):
            for name in names:
                if nfc(name) in masks:
                    return masks[nfc(name)]
        return ()


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises InputError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise cannot_be_read(public_name(path), exc) from exc


def decoded(name: str, given: bytes) -> str:
    """Text in UTF-8, with or without a byte order mark. Raises InputError for anything else."""
    try:
        text = given.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{name}: is not text in UTF-8; save it as UTF-8.")
    return text
