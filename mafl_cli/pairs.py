"""What is to be judged: clean and adversarial scans with their target, from result folders or from anybody's files.

Nothing here is taken on trust from a report: volumes, masks and hashes come from the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli import results, scans, targets, volume
from mafl_cli.errors import InputError, UsageError
from mafl_cli.geometry import require_same_space
from mafl_cli.names import public_name, stem

_NUMBERED = re.compile(r"(.+)_\d{4}")


@dataclass(frozen=True, eq=False)
class Recorded:
    """What a result folder says and holds beside its scans. Labels are (I, J, K), or (R, I, J, K) for regions.

    report: the whole of it; case: its entry for the case. differences: sentences on files that are not those the
    report describes.
    """

    report: Mapping[str, Any]
    case: Mapping[str, Any]
    prediction_clean: NDArray[np.int64]
    prediction_adversarial: NDArray[np.int64]
    target: NDArray[np.int64]
    differences: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """Clean and adversarial scans, a file for each channel, on one grid. target: mask files, unless recorded."""

    case_id: str
    clean: tuple[volume.Volume, ...]
    adversarial: tuple[volume.Volume, ...]
    target: tuple[Path, ...] = ()
    recorded: Recorded | None = None


@dataclass(frozen=True)
class Source:
    """Where a pair comes from; `read` brings it into memory. missing: what is not there, as a sentence."""

    case_id: str
    run: Path | None = None
    original: tuple[Path, ...] = ()
    adversarial: tuple[Path, ...] = ()
    target: tuple[Path, ...] = ()
    missing: str | None = field(default=None)

    def read(self) -> Pair:
        """Raises InputError when a file is missing or cannot be read, GeometryError when grids differ."""
        if self.missing is not None:
            raise InputError(self.missing)
        if self.run is not None:
            return _read_run(self.run)
        clean, adversarial = (
            tuple(scans.read_scan(path, allow_gaps=True) for path in paths)
            for paths in (self.original, self.adversarial)
        )
        if len(clean) != len(adversarial):
            raise InputError(
                f"{self.case_id}: {len(clean)} original and {len(adversarial)} adversarial scans; "
                "give one of each for every channel."
            )
        first = clean[0]
        for other in (*clean[1:], *adversarial):
            require_same_space(first.name, first.shape, first.affine, other.name, other.shape, other.affine)
        return Pair(self.case_id, clean, adversarial, self.target)


# --- finding ------------------------------------------------------------------------------------------------------


def of_runs(folders: Sequence[Path]) -> list[Source]:
    """Every result folder among these or below them, each once, in the order of their names.

    One that is not there or holds none is a source too: reading it raises InputError.
    """
    found: list[Path] = []
    for folder in folders:
        below = [folder]
        if folder.is_dir() and not (folder / results.REPORT).is_file():
            # What lies under a name with a dot is half made.
            reports = (path.relative_to(folder).parent for path in folder.rglob(results.REPORT))
            whole = sorted(path for path in reports if not any(part.startswith(".") for part in path.parts))
            below = [folder / path for path in whole] or [folder]
        found += below
    once = {folder.resolve(): folder for folder in reversed(found)}
    whole = [folder for folder in found if once[folder.resolve()] is folder]
    ids = _distinct([public_name(folder.resolve()) for folder in whole])
    return [Source(name, run=folder) for name, folder in zip(ids, whole, strict=True)]


def of_files(original: str, adversarial: str, target: str) -> list[Source]:
    """One pair of files, or every pair of two folders, matched by name; the target a mask, or a folder of masks.

    Several channels are given as files separated by commas, or in folders by names that end in _0000, _0001, ...
    Raises InputError if nothing is found, UsageError for a folder beside a file or a comma beside nothing.
    """
    one, other, mask = Path(original), Path(adversarial), Path(target)
    masks = _listed(target, "--target")
    if not _holds_cases(other):
        scan, changed = _listed(original, "--original"), _listed(adversarial, "--adversarial")
        return [Source(stem(public_name(scan[0])), original=scan, adversarial=changed, target=masks)]
    if not one.is_dir():
        raise UsageError(
            f"--adversarial {public_name(other)} is a folder, so --original must be the folder of its scans."
        )
    changed_by, scan_by = _by_case(other), _by_case(one)
    if not changed_by:
        raise InputError(f"{public_name(other)}: holds no scan (.nii, .nii.gz, or folders of DICOM).")
    found = []
    ids = _distinct([public_name(Path(name)) for name in changed_by])
    for case_id, (name, files) in zip(ids, changed_by.items(), strict=True):
        wanted = tuple(_masks(mask, name)) if _holds_cases(mask) else masks
        what = "scan in --original" if name not in scan_by else "mask in --target" if not wanted else None
        found.append(
            Source(
                case_id,
                original=tuple(scan_by.get(name, ())),
                adversarial=tuple(files),
                target=wanted,
                missing=None if what is None else f"{case_id}: there is no {what} with this name.",
            )
        )
    return found


def mask_of(path: Path, case_id: str) -> Path:
    """The mask of a case: the file itself, or the one with the case's name in a folder. Raises InputError."""
    if not _holds_cases(path):
        return path
    found = _masks(path, case_id)
    if not found:
        raise InputError(f"{public_name(path)}: holds no mask named {case_id}.")
    return found[0]


def _listed(text: str, option: str) -> tuple[Path, ...]:
    """Files separated by commas; one file if there is one of that name."""
    parts = [text] if Path(text).exists() else [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option}: there is nothing before or after a comma.")
    return tuple(map(Path, parts))


def _masks(folder: Path, case_id: str) -> list[Path]:
    """Those with the name of the case; else, as masks have no channels, with this name without its number."""
    there = _scans(folder)
    return [path for path in there if stem(path.name) == case_id] or [
        path for path in there if stem(path.name) == _NUMBERED.sub(r"\1", case_id)
    ]


def _holds_cases(path: Path) -> bool:
    """Whether this is a folder of NIfTI files or of folders, and not the one folder of a DICOM series."""
    return path.is_dir() and (
        any(_is_nifti(inner) for inner in path.iterdir())
        or not any(inner.is_file() and scans.is_dicom(inner) for inner in path.iterdir())
    )


def _scans(folder: Path) -> list[Path]:
    """NIfTI files, and whatever is DICOM, in a folder of cases."""
    seen = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in seen if _is_nifti(path) or scans.is_dicom(path))


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.endswith((".nii", ".nii.gz"))


def _by_case(folder: Path) -> dict[str, list[Path]]:
    """Files of each case, in the order of their channels.

    Numbers that do not count from 0000 without a gap are no channels: amos_0001 and amos_0004 are two cases.
    """
    numbered: dict[str, list[Path]] = {}
    for path in _scans(folder):
        numbered.setdefault(_NUMBERED.sub(r"\1", stem(path.name)), []).append(path)
    found: dict[str, list[Path]] = {}
    for name, paths in numbered.items():
        channels = [f"{name}_{index:04d}" for index in range(len(paths))]
        if [stem(path.name) for path in paths] == channels:
            found[name] = paths
        else:
            for path in paths:
                found.setdefault(stem(path.name), []).append(path)
    return dict(sorted(found.items()))


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that came before."""
    taken, distinct = set(names), list[str]()
    for name in names:
        free = (f"{name} ({number})" for number in count(2))
        chosen = name if name not in distinct else next(each for each in free if each not in taken)
        taken.add(chosen)
        distinct.append(chosen)
    return distinct


# --- reading a result folder --------------------------------------------------------------------------------------


def _read_run(run: Path) -> Pair:
    """The clean scan is the adversarial file minus the perturbation file; in float32, so its last digit may differ."""
    report = results.read_report(run)
    case = report["cases"][0]
    differences = tuple(f"{name} is not the file the report describes" for name in _changed_files(run, case))
    clean, adversarial = _volumes(run, case["inputs"])
    masks = _label_maps(run, adversarial[0])
    names = report["model"]["classes"]
    if report["model"]["overlapping"]:
        masks = {name: targets.decoded(mask, len(names)) for name, mask in masks.items()}
    recorded = Recorded(
        report,
        case,
        masks[results.PREDICTION_CLEAN],
        masks[results.PREDICTION_ADVERSARIAL],
        masks[results.TARGET],
        differences,
    )
    return Pair(case["case_id"], clean, adversarial, recorded=recorded)


def _changed_files(run: Path, case: Mapping[str, Any]) -> list[str]:
    changed = []
    for entry in case["files"]:
        path = run / entry["name"]
        if not path.is_file():
            raise InputError(f"{public_name(run)}: {entry['name']} is missing; the run is not complete.")
        if results.sha256(path) != entry["sha256"]:
            changed.append(entry["name"])
    return changed


def _volumes(
    run: Path, inputs: Sequence[Mapping[str, Any]]
) -> tuple[tuple[volume.Volume, ...], tuple[volume.Volume, ...]]:
    """Clean and adversarial scans, one for each channel."""
    clean, changed = [], []
    names = results.adversarial([each["format"] for each in inputs])
    for name, change in zip(names, results.perturbation(len(names)), strict=True):
        adversarial = scans.read_scan(run / name, allow_gaps=True)
        perturbation = volume.read_float(run / change)
        require_same_space(name, adversarial.shape, adversarial.affine, change, perturbation.shape, perturbation.affine)
        changed.append(adversarial)
        clean.append(replace(adversarial, data=adversarial.data - perturbation.data))
    return tuple(clean), tuple(changed)


def _label_maps(run: Path, like: volume.Volume) -> dict[str, NDArray[np.int64]]:
    """Target and predictions by file name, on the grid of the scan."""
    found = {}
    for name in (results.PREDICTION_CLEAN, results.PREDICTION_ADVERSARIAL, results.TARGET):
        mask = volume.read_labels(run / name)
        require_same_space(like.name, like.shape, like.affine, name, mask.labels.shape, mask.affine)
        found[name] = mask.labels
    return found
