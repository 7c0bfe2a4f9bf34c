"""Which cases a batch has: files, patterns, folders, data sets and manifests become a list of cases.

Names and places only. No voxel is read, and of DICOM no more than it takes to tell what a file is and whether two
folders are of one study: a list of ten thousand cases must not take longer than a look at the folder.

Words. *name*: what a case is called on the disk or in a manifest, as it stands there; masks are found by it. *id*:
what mafl calls it, made of the name; a folder may be called so on any system, and it never holds a UID.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, TextIO, get_args

from mafl_cli import scans
from mafl_cli.errors import InputError
from mafl_cli.names import public_name

STDIN = "-"

Kind = Literal["dataset", "bids", "files", "folders", "scan", "nested", "nothing"]

_NIFTI = (".nii", ".nii.gz")
_MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson")
_SUFFIX = re.compile(r"(?:\.nii)?\.gz$|\.(?:nii|zip|dcm)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(.+)_(\d{4})", re.ASCII | re.DOTALL)

# What lies beside scans and is none: not worth opening to find out.
_BESIDE = re.compile(
    r"\.(?:json|txt|csv|tsv|jsonl|ndjson|md|xml|html|pdf|log|toml|ya?ml|png|jpe?g|bmp|gif|tiff?|bval|bvec|mat|pkl|np[yz]"
    r"|h5|ctbl|label|tfm|py|sh)",
    re.IGNORECASE,
)

# Longest id, in bytes of UTF-8: any file system takes it, with room for what is put behind it.
_LONGEST = 120
_UNSAFE = frozenset('<>:"/\\|?*')
_UNPRINTED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_DEVICE = re.compile(r"CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9¹²³]", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """A case, and its files as they were named: relative paths stay relative.

    case_id: unique in the list, safe as a folder's name on Linux, macOS and Windows, and no UID. images: one for each
    channel. targets: its own masks; none if the target is that of the whole batch. problem: why it cannot be run.
    """

    case_id: str
    images: tuple[Path, ...]
    targets: tuple[Path, ...] = ()
    ground_truth: Path | None = None
    guides: tuple[Path, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class _Found:
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


def is_batch(sources: Sequence[str]) -> bool:
    """Whether these are a batch, and not the one scan that `mafl attack` takes, or a file that is not there.

    Raises InputError for a folder that cannot be read.
    """
    if len(sources) != 1:
        return bool(sources)
    source, path = sources[0], Path(sources[0])
    if _is_folder(path):
        return _kind(path) not in ("scan", "nothing")
    if _is_there(path):
        return _is_list(path)
    return source == STDIN or _is_pattern(source)


def find(
    sources: Sequence[str], *, target: str | None = None, ground_truth: Path | None = None, stdin: TextIO | None = None
) -> list[CaseFiles]:
    """All cases, in the order of the sources; those of one source in natural order, of a manifest in its own.

    Args:
        sources: scans, quoted patterns, folders, data sets, manifests, or "-" for a manifest on standard input.
        target: of a folder of masks each case takes the one with its name; anything else is the whole batch's.
        ground_truth: a folder of masks, likewise.
        stdin: read instead of standard input.
    Raises: InputError when a source cannot be read or holds no case; what is wrong with one case is its `problem`.
    """
    found: list[_Found] = []
    for is_scan, run in groupby(sources, key=_is_plain_scan):
        if is_scan:  # Together: files named one by one may be channels of one case.
            found += _of_files([Path(source) for source in run])
        else:
            found += [each for source in run for each in _of_source(source, stdin)]
    if not found:
        raise InputError("there is no case: give scans, a folder of them, or a manifest.")
    if len(sources) > 1:
        found = _once(found)
    if target is not None and _is_folder(Path(target)):
        found = _with_targets(found, Path(target))
    if ground_truth is not None:
        found = _with_ground_truth(found, ground_truth)
    return [
        CaseFiles(
            case_id=case_id,
            images=each.images,
            targets=each.targets,
            ground_truth=each.ground_truth,
            guides=each.guides,
            problem=None if each.problem is None else f"{case_id}: {each.problem}",
        )
        for case_id, each in zip(distinct_ids([each.names[0] for each in found]), found, strict=True)
    ]


# --- names and ids ------------------------------------------------------------------------------------------------


def case_name(path: Path) -> str:
    """What a file or folder calls its case: its name without the suffixes that scans have, in Unicode's NFC."""
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return _nfc(_SUFFIX.sub("", name))


def safe_id(name: str) -> str:
    """A name as a folder may have it on every system, without UIDs."""
    printable = "".join(
        "_" if char in _UNSAFE or unicodedata.category(char) in _UNPRINTED else char for char in _nfc(name)
    )
    # Windows drops dots and spaces at the end, and what begins with a dot is hidden.
    bare = public_name(Path(printable.strip(". ") or "case"))
    short = bare.encode()[:_LONGEST].decode(errors="ignore").strip(". ")
    return f"_{short}" if _DEVICE.fullmatch(short.split(".")[0].strip()) else short


def distinct_ids(names: Sequence[str]) -> list[str]:
    """Safe ids for names; where one was there before (in any case of letters), with a number behind it."""
    ids = [safe_id(name) for name in names]
    taken = {_folded(each) for each in ids}
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    for index, first in enumerate(ids):
        if _folded(first) in seen:
            # Nobody loses a name of his own to a number.
            while _folded(ids[index]) in taken:
                numbers[_folded(first)] += 1
                ids[index] = f"{first}-{numbers[_folded(first)] + 1}"
            taken.add(_folded(ids[index]))
        seen.add(_folded(first))
    return ids


def natural(text: str) -> tuple[list[str | int], str]:
    """Key for sorting case2 before case10."""
    parts = re.split(r"([0-9]+)", text.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    """What file systems that do not tell letters apart compare."""
    return _nfc(text.casefold())


def _once(found: Sequence[_Found]) -> list[_Found]:
    """Without what was named twice, by overlapping patterns for instance."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for each in found:
        key = tuple(str(path.absolute()) for path in each.images)
        if each.listed or key not in seen:
            kept.append(each)
        if not each.listed:
            seen.add(key)
    return kept


# --- sources ------------------------------------------------------------------------------------------------------


def _is_there(path: Path) -> bool:
    """As Path.exists, which raises an error for names that are too long for the disk."""
    try:
        return path.exists()
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    return _is_there(path) and path.is_dir()


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI, by its name."""
    return path.name.lower().endswith(_NIFTI)


def _is_list(path: Path) -> bool:
    """Whether a file is one that lists cases."""
    return path.suffix.lower() in (*_MANIFESTS, ".json")


def _is_pattern(source: str) -> bool:
    return any(char in source for char in "*?[")


def _is_plain_scan(source: str) -> bool:
    path = Path(source)
    return _is_there(path) and not _is_folder(path) and not _is_list(path)


def _of_source(source: str, stdin: TextIO | None) -> list[_Found]:
    """The cases of anything but a scan's file."""
    path = Path(source)
    if _is_folder(path):
        return _of_folder(path)
    if _is_there(path):
        return _of_dataset(path.parent, path) if path.suffix.lower() == ".json" else _of_manifest(path)
    if source == STDIN:
        return _of_stdin(sys.stdin if stdin is None else stdin)
    if _is_pattern(source):
        return _of_pattern(source)
    raise InputError(f"{public_name(path)}: there is no such file or folder.")


def _of_pattern(pattern: str) -> list[_Found]:
    """Files that are scans, and folders that are one; what else fits the pattern is passed over."""
    chosen: list[Path] = []
    folders: set[Path] = set()
    # Folders come before what is in them: a slice is no case if its series is one.
    fits = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern, and what is hidden.
    for path in sorted(map(Path, fits), key=lambda path: len(path.parts)):
        if path.name.startswith(".") or (folders and folders.intersection(path.parents)):
            continue
        if is_nifti(path):
            chosen.append(path)
        elif path.is_dir():
            if _kind(path) == "scan":
                folders.add(path)
                chosen.append(path)
        elif _may_be_dicom(path) and scans.is_dicom(path):
            chosen.append(path)
    if not chosen:
        raise InputError(f"no scan fits the pattern {_last(pattern)}: is it quoted, and are its folders right?")
    return _of_files(chosen)


def _last(pattern: str) -> str:
    """What may be shown of a pattern: no folders above the first wildcard."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if _is_pattern(part))
    return "/".join(public_name(Path(part)) for part in parts[first:])


def _of_files(paths: Sequence[Path]) -> list[_Found]:
    """Scans named one by one, or fitting a pattern. CASE_0000 brings all its channels, as for a single attack."""
    for path in paths:
        if not (is_nifti(path) or scans.is_dicom(path)):
            raise InputError(
                f"{public_name(path)}: is no scan (NIfTI, DICOM, a zip of DICOM) and no manifest "
                f"({', '.join(_MANIFESTS)}, dataset.json)."
            )
    begun: dict[Path, set[str]] = {}
    for path in paths:
        parts = _numbered(path)
        if parts is not None and parts[1] == 0:
            begun.setdefault(path.parent, set()).add(parts[0])
    channels = [
        path
        for folder, names in begun.items()
        for path in _listing(folder).nifti
        if (parts := _numbered(path)) is not None and parts[0] in names
    ]
    return _told_apart(_grouped({str(path): path for path in (*paths, *channels)}.values()))


def _numbered(path: Path) -> tuple[str, int] | None:
    """("CASE", 1) for CASE_0001.nii.gz."""
    parts = _NUMBERED.fullmatch(case_name(path)) if is_nifti(path) else None
    return None if parts is None else (parts[1], int(parts[2]))


def _grouped(paths: Iterable[Path], channels: int | None = None) -> list[_Found]:
    """Cases, in natural order: a file each, or those that differ in nothing but four digits at the end.

    Digits are taken for channels in folders that have a 0000: case_0001 to case_0100 alone are a hundred cases.
    channels: how many each numbered case must have, if that is known.
    """
    split = [(path, str(path.parent), _numbered(path)) for path in paths]
    folders = {folder for _, folder, parts in split if parts is not None and parts[1] == 0}
    alone: list[_Found] = []
    groups: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for path, folder, parts in split:
        if parts is None:
            alone.append(_Found((case_name(path),), (path,)))
        elif folder in folders:
            groups.setdefault((folder, parts[0]), []).append((parts[1], path))
        else:
            alone.append(_Found((case_name(path), parts[0]), (path,)))
    together = [
        _Found(
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


def _told_apart(found: Sequence[_Found]) -> list[_Found]:
    """Scans of one name in several folders (p1/t1.nii.gz, p2/t1.nii.gz) with these folders in their names.

    Their masks may be named as the folders: p1.nii.gz.
    """
    several = Counter(_folded(each.names[0]) for each in found)
    twins: dict[str, set[Path]] = {}
    for each in found:
        if several[_folded(each.names[0])] > 1:
            twins.setdefault(_folded(each.names[0]), set()).add(_above(each))
    bases = {name: _common(folders) for name, folders in twins.items() if len(folders) > 1}
    named = []
    for each in found:
        base = bases.get(_folded(each.names[0]))
        folders = "" if base is None else _nfc("_".join(_above(each).relative_to(base).parts))
        named.append(replace(each, names=(f"{folders}_{each.names[0]}", folders)) if folders else each)
    return named


def _above(case: _Found) -> Path:
    return case.images[0].absolute().parent


def _common(folders: Iterable[Path]) -> str | None:
    try:
        return os.path.commonpath(folders)
    except ValueError:  # On several drives.
        return None


# --- folders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Listing:
    """What is in a folder, in natural order, without what is hidden. other: files that may be DICOM."""

    nifti: tuple[Path, ...]
    other: tuple[Path, ...]
    folders: tuple[Path, ...]


def _listing(folder: Path) -> _Listing:
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
                elif _may_be_dicom(path):
                    other.append(path)
    except OSError as exc:
        raise InputError(
            f"{public_name(folder)} cannot be read: {(exc.strerror or 'no reason given').lower()}."
        ) from exc
    return _Listing(*(tuple(sorted(each, key=lambda path: natural(path.name))) for each in (nifti, other, folders)))


def _may_be_dicom(path: Path) -> bool:
    """By its name. A DICOMDIR is the table of contents of what lies beside it."""
    return not _BESIDE.fullmatch(path.suffix) and path.name.upper() != "DICOMDIR"


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _kind(folder: Path) -> Kind:
    """What a folder is. Raises InputError when it cannot be read."""
    inside = _listing(folder)
    subfolders = {path.name for path in inside.folders}
    # nnU-Net puts a dataset.json beside its predictions, too.
    if subfolders & {"imagesTs", "imagesTr"} or (not inside.nifti and (folder / "dataset.json").is_file()):
        return "dataset"
    if any(_anatomy(inside)):
        return "bids"
    if any(not _is_zip(path) and scans.is_dicom(path) for path in inside.other):
        return "scan"
    if inside.nifti or any(map(_is_zip, inside.other)):
        return "files"
    series = [first for path in inside.folders if (first := _first_dicom(path)) is not None]
    if series:
        return "folders" if _several_studies(series) else "scan"
    return "nested" if _first_nifti(folder) is not None else "nothing"


def _of_folder(folder: Path) -> list[_Found]:
    kind = _kind(folder)
    if kind == "dataset":
        file = folder / "dataset.json"
        return _of_dataset(folder, file if file.is_file() else None)
    if kind == "bids":
        return _of_bids(folder)
    if kind == "files":
        return _scans_in(folder)
    if kind == "folders":
        return _of_subfolders(folder)
    if kind == "scan":
        return [_Found((case_name(folder),), (folder,))]
    name = public_name(folder)
    first = _first_nifti(folder)
    if first is not None:
        ending = ".nii.gz" if first.name.lower().endswith(".gz") else ".nii"
        above = "*/" * (len(first.relative_to(folder).parts) - 1)
        raise InputError(
            f"{name}: its scans lie in folders of their own; say which are the cases with a quoted pattern, such as "
            f"'{name}/{above}*{ending}', or with a manifest."
        )
    raise InputError(f"{name}: holds no scan (.nii, .nii.gz, or DICOM).")


def _scans_in(folder: Path) -> list[_Found]:
    """NIfTI files, zip archives, and folders that hold DICOM."""
    inside = _listing(folder)
    series = [path for path in inside.folders if _first_dicom(path) is not None]
    return _grouped((*inside.nifti, *filter(_is_zip, inside.other), *series))


def _of_subfolders(folder: Path) -> list[_Found]:
    """A case for each folder with DICOM, and for each empty one: there, an export went wrong."""
    found = []
    for path in _listing(folder).folders:
        empty = not any(files for _, _, files in os.walk(path))
        if empty or _first_dicom(path) is not None:
            found.append(_Found((case_name(path),), (path,), problem="the folder is empty." if empty else None))
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder that are not hidden, in a fixed order."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _first_dicom(folder: Path) -> Path | None:
    return next(
        (
            path
            for path in _walk(folder)
            if not is_nifti(path) and not _is_zip(path) and _may_be_dicom(path) and scans.is_dicom(path)
        ),
        None,
    )


def _first_nifti(folder: Path) -> Path | None:
    return next(filter(is_nifti, _walk(folder)), None)


def _several_studies(files: Sequence[Path]) -> bool:
    """Whether DICOM files, each from a folder of its own, are of more than one study.

    The folders of one study are its series, which `mafl attack` lets the user choose from.
    """
    first: str | None = None
    for path in files:
        study = _study(path)
        if first is not None and (study != first or not study):
            return True
        first = study
    return False


def _study(path: Path) -> str:
    """Study Instance UID; "" for a file that has none or is damaged."""
    from mafl_cli import stacks

    try:
        with stacks.silence(), path.open("rb") as stream:
            return str(stacks.parsed(public_name(path), stream, pixels=False).get("StudyInstanceUID") or "")
    except (InputError, OSError):
        return ""


def holds_cases(path: Path) -> bool:
    """Whether this is a folder of NIfTI files or of folders, and not the one folder of a DICOM series."""
    if not path.is_dir():
        return False
    inside = _listing(path)
    return bool(inside.nifti) or not any(map(scans.is_dicom, inside.other))


def by_case(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Files of each case of a folder, by the case's name and in the order of their channels.

    Of two cases with one name (a.nii and a.nii.gz) the first counts. Raises InputError when it cannot be read.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for each in _scans_in(folder):
        found.setdefault(each.names[0], each.images)
    return found


# --- BIDS ---------------------------------------------------------------------------------------------------------

_DRAWN = ("mask", "dseg", "probseg", "defacemask")


def _anatomy(root: _Listing) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Subject and session ("sub-01_ses-1"), and the images in `anat`, where there are any."""
    for subject in root.folders:
        if not subject.name.startswith("sub-"):
            continue
        sessions = [path for path in _listing(subject).folders if path.name.startswith("ses-")]
        for place in (subject, *sessions):
            anat = place / "anat"
            images = _listing(anat).nifti if anat.is_dir() else ()
            images = tuple(path for path in images if case_name(path).rpartition("_")[2] not in _DRAWN)
            if images:
                yield (subject.name if place is subject else f"{subject.name}_{place.name}"), images


def _of_bids(folder: Path) -> list[_Found]:
    places = list(_anatomy(_listing(folder)))
    for label, images in places:
        if len(images) > 1:
            everything = [path for _, each in places for path in each]
            suffixes = sorted({case_name(path).rpartition("_")[2] for path in everything}, key=natural)
            first = images[0]
            ending = first.name[len(_SUFFIX.sub("", first.name)) :]
            sessions = "ses-*/" if "_ses-" in label else ""
            entities = re.sub(r"^sub-[^_]*(_ses-[^_]*)?", "", case_name(first))
            name = public_name(folder)
            raise InputError(
                f"{name}: there are several images for {label} (in all: {', '.join(suffixes)}); choose one for each "
                f"with a quoted pattern, such as '{name}/sub-*/{sessions}anat/*{entities}{ending}', or with a manifest."
            )
    return [_Found((case_name(images[0]), _nfc(label)), images) for label, images in places]


# --- data sets of nnU-Net and of the Medical Segmentation Decathlon -----------------------------------------------


_SAID = ("channel_names", "modality", "training", "test", "testing", "dataset")


@dataclass(frozen=True)
class _Entry:
    """A case as a dataset.json lists it."""

    images: tuple[Path, ...]
    label: Path | None
    name: str | None = None


def _of_dataset(folder: Path, file: Path | None) -> list[_Found]:
    """Test cases if there are any, else training cases, with their labels as ground truth."""
    facts = _facts(file) if file is not None else {}
    name = public_name(folder if file is None else file)
    if file is not None and not facts.keys() & set(_SAID):
        raise InputError(
            f"{name}: is no data set of nnU-Net or of the Medical Segmentation Decathlon: it has none of "
            f"{', '.join(_SAID)}."
        )
    ending = facts.get("file_ending")
    if ending not in (None, *_NIFTI):
        raise InputError(f"{name}: its files end in {ending}, but mafl reads .nii.gz and .nii: convert them.")
    known = facts.get("channel_names") or facts.get("modality")
    channels = len(known) if isinstance(known, (dict, list)) else None
    listed = {
        "Ts": _entries(name, folder, facts.get("test") or facts.get("testing")),
        "Tr": _entries(name, folder, facts.get("training")) or _named_entries(name, folder, facts.get("dataset")),
    }
    for which, entries in listed.items():
        labels = folder / f"labels{which}"
        masks = MaskFolder(labels) if labels.is_dir() else None
        images = folder / f"images{which}"
        found = _of_entries(entries, channels)
        # A list is followed if any of its files is there: test cases are often listed, but not shared.
        if not any(_is_there(path) for each in found for path in each.images):
            there = _listing(images).nifti if images.is_dir() else ()
            found = _grouped((path for path in there if ending is None or path.name.endswith(ending)), channels)
        if found:
            return [_labelled(each, masks) for each in found]
    raise InputError(f"{name}: none of its cases is there (imagesTs, imagesTr).")


def _labelled(case: _Found, masks: MaskFolder | None) -> _Found:
    if case.ground_truth is not None or masks is None:
        return case
    found = masks.find(case.names)
    return replace(case, ground_truth=found[0] if len(found) == 1 else None)


def _facts(file: Path) -> Mapping[str, Any]:
    name = public_name(file)
    try:
        facts = json.loads(_decoded(name, _bytes(file)))
    except (ValueError, RecursionError):
        raise InputError(f"{name}: is damaged: it is no JSON.") from None
    if not isinstance(facts, dict):
        raise InputError(f"{name}: is damaged: it is no JSON object.")
    return facts


def _entries(name: str, folder: Path, listed: object) -> list[_Entry]:
    """Of a list with paths, or with {"image": path or paths, "label": path}."""
    if not isinstance(listed, list):
        return []
    return [
        _entry(name, folder, each.get("image"), each.get("label"))
        if isinstance(each, dict)
        else _entry(name, folder, each, None)
        for each in listed
    ]


def _named_entries(name: str, folder: Path, listed: object) -> list[_Entry]:
    """Of nnU-Net's {case: {"images": [paths], "label": path}}."""
    if not isinstance(listed, dict):
        return []
    entries = []
    for case, each in listed.items():
        if not isinstance(each, dict):
            raise InputError(f"{name}: is damaged: a case has no images.")
        entries.append(replace(_entry(name, folder, each.get("images"), each.get("label")), name=case))
    return entries


def _entry(name: str, folder: Path, images: object, label: object) -> _Entry:
    paths = images if isinstance(images, list) else [images]
    texts = [path for path in paths if isinstance(path, str) and path]
    if not texts or len(texts) < len(paths):
        raise InputError(f"{name}: is damaged: a case has no images.")
    return _Entry(tuple(folder / path for path in texts), folder / label if isinstance(label, str) and label else None)


def _of_entries(entries: Sequence[_Entry], channels: int | None) -> list[_Found]:
    # nnU-Net 1 lists CASE.nii.gz where CASE_0000.nii.gz, CASE_0001.nii.gz, ... are meant.
    numbered: dict[Path, dict[str, _Found]] = {}
    found = []
    for entry in entries:
        first = entry.images[0]
        parts = _numbered(first) if len(entry.images) > 1 else None
        case = entry.name or (parts[0] if parts is not None else case_name(first))
        images, problem = entry.images, _missing(entry.images)
        if problem is not None and len(entry.images) == 1:
            if first.parent not in numbered:
                inside = _listing(first.parent).nifti if first.parent.is_dir() else ()
                numbered[first.parent] = {each.names[0]: each for each in _grouped(inside, channels)}
            group = numbered[first.parent].get(case)
            if group is not None:
                images, problem = group.images, group.problem
        label = entry.label if entry.label is not None and _is_there(entry.label) else None
        found.append(_Found((_nfc(case),), images, ground_truth=label, problem=problem))
    return sorted(found, key=lambda each: natural(each.names[0]))


def _missing(paths: Iterable[Path]) -> str | None:
    """The first file that is not there, as a problem."""
    gone = next((path for path in paths if not _is_there(path)), None)
    return None if gone is None else f"{_shown(str(gone))} is not there."


# --- masks by name ------------------------------------------------------------------------------------------------


class MaskFolder:
    """Masks that have the names of cases. CASE_0000, CASE_0001, ... are the masks of regions, in their order."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError when the folder cannot be read."""
        inside = _listing(folder)
        self.name = public_name(folder)
        self._named: dict[str, tuple[Path, ...]] = {}
        # NIfTI first: it wins against DICOM of the same name.
        for path in inside.nifti:
            self._named[case_name(path)] = (*self._named.get(case_name(path), ()), path)
        for path in (*inside.other, *inside.folders):
            self._named.setdefault(case_name(path), (path,))
        self._numbered = {
            each.names[0]: each.images for each in _grouped(inside.nifti) if len(each.names) == 1 and not each.problem
        }

    def find(self, names: Sequence[str]) -> tuple[Path, ...]:
        """The masks of a case, by the first of its names that any has; () if there is none."""
        for masks in (self._named, self._numbered):
            for name in names:
                if _nfc(name) in masks:
                    return masks[_nfc(name)]
        return ()


def _with_targets(found: Sequence[_Found], folder: Path) -> list[_Found]:
    """Each case with its own mask, unless the folder is that of one DICOM SEG, or the manifest names one."""
    masks = MaskFolder(folder)
    own = [masks.find(each.names) for each in found]
    if not any(own) and not holds_cases(folder):
        return list(found)
    return [
        each if each.targets else replace(each, targets=mask, problem=each.problem or problem)
        for each, mask, problem in zip(found, own, _mismatches(found, own, masks.name), strict=True)
    ]


def _with_ground_truth(found: Sequence[_Found], folder: Path) -> list[_Found]:
    """As the targets. What a manifest names wins; what was found in a data set does not."""
    if not folder.is_dir():
        raise InputError(f"--ground-truth {public_name(folder)}: is no folder; give one of masks, named as the cases.")
    masks = MaskFolder(folder)
    own = [masks.find(each.names) for each in found]
    changed = []
    for each, mask, problem in zip(found, own, _mismatches(found, own, masks.name), strict=True):
        if len(mask) > 1:
            problem = f"there are several masks with this name in {masks.name}; the ground truth is one."
        if not (each.listed and each.ground_truth):
            each = replace(each, ground_truth=mask[0] if mask else None, problem=each.problem or problem)
        changed.append(each)
    return changed


def _mismatches(found: Sequence[_Found], own: Sequence[tuple[Path, ...]], folder: str) -> Iterator[str | None]:
    """Why a case cannot take the mask that has its name."""
    several = Counter(each.names[0] for each in found)
    for each, mask in zip(found, own, strict=True):
        if not mask:
            yield f"there is no mask with this name in {folder}."
        elif len({case_name(path) for path in mask}) < len(mask):
            yield f"there are several masks with this name in {folder}; keep one."
        elif several[each.names[0]] > 1:
            yield f"another case has this name, so its mask in {folder} may be either's; use a manifest."
        else:
            yield None


# --- manifests ----------------------------------------------------------------------------------------------------

_KNOWN = ("case", "image", "target", "ground_truth", "guide")
_ALLOWED = "case, image (or image_0, image_1, ..., or channel:NAME), target, ground_truth, guide"
_CHANNEL = re.compile(r"image_[0-9]+|channel:.+", re.DOTALL)

Cell = str | list[str]
_Rows = list[tuple[int, dict[str, Cell]]]


def _of_manifest(path: Path) -> list[_Found]:
    name = public_name(path)
    text = _decoded(name, _bytes(path))
    suffix = path.suffix.lower()
    rows = _json_rows(name, text) if suffix in (".jsonl", ".ndjson") else _rows(name, text, suffix == ".tsv")
    return _of_rows(name, rows, path.parent)


def _of_stdin(stdin: TextIO) -> list[_Found]:
    """Its first line says what it is: JSON begins with a brace, TSV has a tab."""
    name = "standard input"
    try:
        # Bytes, where there are any: what comes in is UTF-8, whatever the terminal speaks.
        given = stdin.buffer.read() if hasattr(stdin, "buffer") else stdin.read().encode()
    except (OSError, ValueError) as exc:
        raise InputError(f"{name} cannot be read.") from exc
    text = _decoded(name, given)
    first = text.lstrip("\r\n ").partition("\n")[0]
    rows = _json_rows(name, text) if first.startswith("{") else _rows(name, text, "\t" in first)
    return _of_rows(name, rows, Path())


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InputError(f"{public_name(path)} cannot be read: {(exc.strerror or 'no reason given').lower()}.") from exc


def _decoded(name: str, given: bytes) -> str:
    try:
        text = given.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{name}: is not text in UTF-8; save it as UTF-8.")
    return text


def _rows(name: str, text: str, tabs: bool) -> _Rows:
    """The lines of a table, each with its number and what stands under its columns' names."""
    lines: list[tuple[int, list[str]]] = []
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", strict=True, skipinitialspace=True
    )
    try:
        for line in reader:
            cells = [cell.strip() for cell in line]
            if any(cells):
                lines.append((reader.line_num, cells))
    except csv.Error as exc:
        raise InputError(f"{name}: line {reader.line_num} cannot be read ({exc}); look at its quotes.") from None
    if not lines:
        raise InputError(f"{name}: is empty.")
    header = lines[0][1]
    if len(header) == 1 and ";" in header[0]:
        raise InputError(f"{name}: its columns stand between semicolons; save it with commas, or as .tsv.")
    columns = [_column(cell) for cell in header]
    twice = [column for column, count in Counter(columns).items() if column and count > 1]
    if twice:
        raise InputError(f"{name}: has the column {_shown(twice[0])} twice.")
    rows: _Rows = []
    for number, cells in lines[1:]:
        # Spreadsheets end lines with any number of empty cells.
        if any(cell and not column for column, cell in zip([*columns, *[""] * len(cells)], cells, strict=False)):
            raise InputError(f"{name}: line {number} has a cell under no column's name; is a comma or a quote wrong?")
        rows.append((number, {column: cell for column, cell in zip(columns, cells, strict=False) if column}))
    # What the header names counts, even if no line says anything about it.
    _require_columns(name, [column for column in columns if column])
    return rows


def _json_rows(name: str, text: str) -> _Rows:
    rows: _Rows = []
    # Not splitlines: it also splits at what may stand in a JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{name}: line {number} is no JSON.") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}: line {number} is no JSON object.")
        cells = {_column(key): _cell(name, number, key, value) for key, value in row.items()}
        if len(cells) < len(row):
            raise InputError(f"{name}: line {number} has a column twice.")
        rows.append((number, cells))
    _require_columns(name, list(dict.fromkeys(column for _, row in rows for column in row)))
    return rows


def _cell(name: str, number: int, column: str, value: object) -> Cell:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and _column(column) in ("image", "target", "guide"):
        texts = [each for each in value if isinstance(each, str) and each]
        if len(texts) == len(value):
            return texts
    raise InputError(f"{name}: line {number}: {_shown(column)} must be a text, or for several files a list of texts.")


def _column(text: str) -> str:
    """A column's name, in small letters; of a channel's, only the first part."""
    text = text.strip()
    kind, colon, channel = text.partition(":")
    return f"{kind.lower()}{colon}{channel}"


def _require_columns(name: str, columns: Sequence[str]) -> None:
    channels = [column for column in columns if _CHANNEL.fullmatch(column)]
    unknown = [column for column in columns if column not in _KNOWN and column not in channels]
    if unknown:
        # A file without a header has values here, paths among them.
        shown = ", ".join(_shown(column) for column in unknown[:8])
        raise InputError(f"{name}: unknown column {shown}; there may be {_ALLOWED}.")
    images = ["image" in columns, *(any(each.startswith(kind) for each in channels) for kind in ("image_", "channel:"))]
    if "case" not in columns or not any(images):
        missing = "image" if "case" in columns else "case"
        raise InputError(f"{name}: has no column {missing}; there may be {_ALLOWED}.")
    if sum(images) > 1:
        raise InputError(f"{name}: names images in several ways; use image, or image_0 ..., or channel:NAME.")
    numbers = sorted(int(column[6:]) for column in channels if column.startswith("image_"))
    if numbers != list(range(len(numbers))):
        raise InputError(f"{name}: the columns of channels must be image_0, image_1, ... without a gap.")


def _shown(text: str) -> str:
    """What may be a path, of this system or of Windows, without its folders."""
    return public_name(Path(PureWindowsPath(text).name or "(no name)"))


def _of_rows(name: str, rows: _Rows, folder: Path) -> list[_Found]:
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    channels = [column for column in columns if _CHANNEL.fullmatch(column)]
    if channels and channels[0].startswith("image_"):
        channels.sort(key=natural)
    found: list[_Found] = []
    lines: dict[str, int] = {}
    for number, row in rows:
        case = row.get("case", "")
        if not isinstance(case, str) or not case:
            raise InputError(f"{name}: line {number} names no case.")
        if _nfc(case) in lines:
            raise InputError(
                f"{name}: the case {safe_id(case)} stands in lines {lines[_nfc(case)]} and {number}; give each case a "
                "name of its own."
            )
        lines[_nfc(case)] = number
        found.append(_of_row(f"{name}: line {number}", row, channels, folder))
    if not found:
        raise InputError(f"{name}: lists no case.")
    return found


def _of_row(where: str, row: Mapping[str, Cell], channels: Sequence[str], folder: Path) -> _Found:
    # A channel's own column holds one path, whatever characters are in it.
    cells = [str(row.get(column, "")) for column in channels]
    images = tuple(folder / cell for cell in cells if cell) if channels else _paths(where, row, "image", folder)
    targets, truth, guides = (_paths(where, row, column, folder) for column in ("target", "ground_truth", "guide"))
    target = row.get("target")
    if isinstance(target, str) and _is_recipe(target) and not _is_there(folder / target):
        raise InputError(
            f"{where}: the target is a recipe, but a manifest names masks: give a recipe for all cases with --target."
        )
    if len(truth) > 1:
        raise InputError(f"{where}: the ground truth is one file.")
    if not images:
        problem: str | None = "has no image."
    elif "" in cells:
        problem = f"has no file for {_shown(channels[cells.index('')])}."
    else:
        problem = _missing((*images, *targets, *truth, *guides))
    name = _nfc(str(row["case"]))
    return _Found((name,), images, targets, truth[0] if truth else None, guides, problem, listed=True)


def _paths(where: str, row: Mapping[str, Cell], column: str, folder: Path) -> tuple[Path, ...]:
    """Files between semicolons; in JSON also those of a list."""
    cell = row.get(column, "")
    parts = cell if isinstance(cell, list) else [part.strip() for part in cell.split(";")] if cell else []
    if not all(parts):
        raise InputError(f"{where}: {column}: there is nothing before or after a semicolon.")
    return tuple(folder / part for part in parts)


def _is_recipe(text: str) -> bool:
    if ":" not in text:
        return False
    from mafl_cli import recipes

    return text.partition(":")[0] in get_args(recipes.Kind)
