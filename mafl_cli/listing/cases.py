"""Which cases a batch has: files, patterns, folders, data sets and manifests become a list of cases.

A list of ten thousand cases must not take longer than a look at the folder: see `folders` for what is looked at.
"""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal, TextIO

from mafl_cli.errors import InputError
from mafl_cli.listing.datasets import anatomy, of_bids, of_dataset
from mafl_cli.listing.folders import (
    FoundCase,
    MaskFolder,
    contents,
    first_dicom,
    first_nifti,
    grouped,
    holds_cases,
    holds_slices,
    is_folder,
    is_nifti,
    is_zip,
    may_be_dicom,
    numbered,
    scans_in,
)
from mafl_cli.listing.manifests import MANIFESTS, of_manifest, of_stdin
from mafl_cli.names import case_name, distinct_ids, folded, is_there, nfc, public_name, token
from mafl_cli.scans import formats
from mafl_cli.system.quiet import silence

STDIN = "-"

FolderKind = Literal["dataset", "bids", "files", "folders", "scan", "nested", "nothing"]


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


def is_batch(sources: Sequence[str]) -> bool:
    """Whether these are a batch, and not the one scan that `mafl attack` takes, or a file that is not there.

    Raises InputError for a folder that cannot be read.
    """
    if len(sources) != 1:
        return bool(sources)
    source, path = sources[0], Path(sources[0])
    if is_folder(path):
        return _kind(path) not in ("scan", "nothing")
    if is_there(path):
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
    found: list[FoundCase] = []
    for is_scan, run in groupby(sources, key=_is_plain_scan):
        if is_scan:  # Together: files named one by one may be channels of one case.
            found += _of_files([Path(source) for source in run])
        else:
            found += [each for source in run for each in _of_source(source, stdin)]
    if not found:
        raise InputError("no cases: give scans, a folder of them, or a manifest.")
    if len(sources) > 1:
        found = _once(found)
    if target is not None and is_folder(Path(target)):
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


def redacted(found: Sequence[CaseFiles]) -> list[CaseFiles]:
    """The cases with hashes for names; what is wrong with one may name its files, and so is not said."""
    return [
        replace(
            case,
            case_id=case_id,
            problem=case.problem and f"{case_id}: its files are not in order; the list of cases says why.",
        )
        for case_id, case in zip(
            distinct_ids([token(case.images[0] if case.images else Path(case.case_id)) for case in found]),
            found,
            strict=True,
        )
    ]


def _once(found: Sequence[FoundCase]) -> list[FoundCase]:
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


def _is_list(path: Path) -> bool:
    """Whether a file is one that lists cases."""
    return path.suffix.lower() in (*MANIFESTS, ".json")


def _is_pattern(source: str) -> bool:
    return any(char in source for char in "*?[")


def _is_plain_scan(source: str) -> bool:
    path = Path(source)
    return is_there(path) and not is_folder(path) and not _is_list(path)


def _of_source(source: str, stdin: TextIO | None) -> list[FoundCase]:
    """The cases of anything but a scan's file."""
    path = Path(source)
    if is_folder(path):
        return _of_folder(path)
    if is_there(path):
        return of_dataset(path.parent, path) if path.suffix.lower() == ".json" else of_manifest(path)
    if source == STDIN:
        return of_stdin(sys.stdin if stdin is None else stdin)
    if _is_pattern(source):
        return _of_pattern(source)
    raise InputError(f"{public_name(path)}: there is no such file or folder.")


def _of_pattern(pattern: str) -> list[FoundCase]:
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
        elif may_be_dicom(path) and formats.is_dicom(path):
            chosen.append(path)
    if not chosen:
        raise InputError(f"no scan fits the pattern {_last(pattern)}: is it quoted, and are its folders right?")
    return _of_files(chosen)


def _last(pattern: str) -> str:
    """What may be shown of a pattern: no folders above the first wildcard."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if _is_pattern(part))
    return "/".join(public_name(Path(part)) for part in parts[first:])


def _of_files(paths: Sequence[Path]) -> list[FoundCase]:
    """Scans named one by one, or fitting a pattern. CASE_0000 brings all its channels, as for a single attack."""
    for path in paths:
        if not (is_nifti(path) or formats.is_dicom(path)):
            raise InputError(
                f"{public_name(path)}: is neither a scan (NIfTI, DICOM, a zip of DICOM) nor a manifest "
                f"({', '.join(MANIFESTS)}, dataset.json)."
            )
    begun: dict[Path, set[str]] = {}
    for path in paths:
        parts = numbered(path)
        if parts is not None and parts[1] == 0:
            begun.setdefault(path.parent, set()).add(parts[0])
    channels = [
        path
        for folder, names in begun.items()
        for path in contents(folder).nifti
        if (parts := numbered(path)) is not None and parts[0] in names
    ]
    return _told_apart(grouped({str(path): path for path in (*paths, *channels)}.values()))


def _told_apart(found: Sequence[FoundCase]) -> list[FoundCase]:
    """Scans of one name in several folders (p1/t1.nii.gz, p2/t1.nii.gz) with these folders in their names.

    Their masks may be named as the folders: p1.nii.gz.
    """
    several = Counter(folded(each.names[0]) for each in found)
    twins: dict[str, set[Path]] = {}
    for each in found:
        if several[folded(each.names[0])] > 1:
            twins.setdefault(folded(each.names[0]), set()).add(_above(each))
    bases = {name: _common(folders) for name, folders in twins.items() if len(folders) > 1}
    named = []
    for each in found:
        base = bases.get(folded(each.names[0]))
        folders = "" if base is None else nfc("_".join(_above(each).relative_to(base).parts))
        named.append(replace(each, names=(f"{folders}_{each.names[0]}", folders)) if folders else each)
    return named


def _above(case: FoundCase) -> Path:
    return case.images[0].absolute().parent


def _common(folders: Iterable[Path]) -> str | None:
    try:
        return os.path.commonpath(folders)
    except ValueError:  # On several drives.
        return None


def _kind(folder: Path) -> FolderKind:
    """What a folder is. Raises InputError when it cannot be read."""
    inside = contents(folder)
    subfolders = {path.name for path in inside.folders}
    # nnU-Net puts a dataset.json beside its predictions, too.
    if subfolders & {"imagesTs", "imagesTr"} or (not inside.nifti and (folder / "dataset.json").is_file()):
        return "dataset"
    if any(anatomy(inside)):
        return "bids"
    if holds_slices(inside):
        return "scan"
    if inside.nifti or any(map(is_zip, inside.other)):
        return "files"
    series = [first for path in inside.folders if (first := first_dicom(path)) is not None]
    if series:
        return "folders" if _several_studies(series) else "scan"
    return "nested" if first_nifti(folder) is not None else "nothing"


def _of_folder(folder: Path) -> list[FoundCase]:
    kind = _kind(folder)
    if kind == "dataset":
        file = folder / "dataset.json"
        return of_dataset(folder, file if file.is_file() else None)
    if kind == "bids":
        return of_bids(folder)
    if kind == "files":
        return scans_in(folder)
    if kind == "folders":
        return _of_subfolders(folder)
    if kind == "scan":
        return [FoundCase((case_name(folder),), (folder,))]
    name = public_name(folder)
    first = first_nifti(folder)
    if first is not None:
        ending = ".nii.gz" if first.name.lower().endswith(".gz") else ".nii"
        above = "*/" * (len(first.relative_to(folder).parts) - 1)
        raise InputError(
            f"{name}: its scans lie in folders of their own; say which are the cases with a quoted pattern, such as "
            f"'{name}/{above}*{ending}', or with a manifest."
        )
    raise InputError(f"{name}: holds no scan (.nii, .nii.gz, or DICOM).")


def _of_subfolders(folder: Path) -> list[FoundCase]:
    """A case for each folder with DICOM, and for each empty one: there, an export went wrong."""
    found = []
    for path in contents(folder).folders:
        empty = not any(files for _, _, files in os.walk(path))
        if empty or first_dicom(path) is not None:
            found.append(FoundCase((case_name(path),), (path,), problem="the folder is empty." if empty else None))
    return found


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
    from mafl_cli.scans.dicom import frames

    try:
        with silence(), path.open("rb") as stream:
            return str(frames.parsed(public_name(path), stream, pixels=False).get("StudyInstanceUID") or "")
    except (InputError, OSError):
        return ""


def _with_targets(found: Sequence[FoundCase], folder: Path) -> list[FoundCase]:
    """Each case with its own mask, unless the folder is that of one DICOM SEG, or the manifest names one."""
    masks = MaskFolder(folder)
    own = [masks.find(each.names) for each in found]
    if not any(own) and not holds_cases(folder):
        return list(found)
    return [
        each if each.targets else replace(each, targets=mask, problem=each.problem or problem)
        for each, mask, problem in zip(found, own, _mismatches(found, own, masks.name), strict=True)
    ]


def _with_ground_truth(found: Sequence[FoundCase], folder: Path) -> list[FoundCase]:
    """Cases with masks of a folder as ground truth. What a manifest names wins; what was found in a data set does
    not."""
    if not folder.is_dir():
        raise InputError(
            f"`ground_truth` {public_name(folder)} is not a folder: give a folder of masks, named as the cases."
        )
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


def _mismatches(found: Sequence[FoundCase], own: Sequence[tuple[Path, ...]], folder: str) -> Iterator[str | None]:
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
