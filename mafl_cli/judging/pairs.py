"""What is to be judged: clean and adversarial scans with their target, from anybody's files; see `recorded` for runs.

Nothing here is taken on trust from a report: volumes, masks and hashes come from the files.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from mafl_cli.errors import InputError, UsageError
from mafl_cli.listing.cases import find
from mafl_cli.listing.folders import MaskFolder, by_case, contents, holds_cases, holds_slices
from mafl_cli.listing.manifests import MANIFESTS
from mafl_cli.names import between, is_there, natural, public_name, stem
from mafl_cli.results.recorded import PairSource, told_apart


def of_files(original: str, adversarial: str, target: str) -> list[PairSource]:
    """One pair of files, or every pair of two folders, matched by name; the target a mask, or a folder of masks.

    Several channels are given as files separated by commas, or in folders by names that end in _0000, _0001, ...
    Raises InputError if nothing is found, UsageError for a folder beside a file or a comma beside nothing.
    """
    one, other, mask = Path(original), Path(adversarial), Path(target)
    masks = _listed(target, "target")
    if not other.is_dir() or holds_slices(contents(other)):
        scan, changed = _listed(original, "original"), _listed(adversarial, "adversarial")
        return [PairSource(stem(public_name(scan[0])), original=scan, adversarial=changed, target=masks)]
    if not one.is_dir():
        raise UsageError(
            f"`adversarial` {public_name(other)} is a folder: `original` must be the folder of its clean scans."
        )
    changed_by, scan_by = by_case(other), by_case(one)
    if not changed_by:
        raise InputError(f"{public_name(other)}: holds no scan (.nii, .nii.gz, or folders of DICOM).")
    named = MaskFolder(mask) if holds_cases(mask) else None
    found = []
    names = sorted({*changed_by, *scan_by}, key=natural)
    for case_id, name in zip(told_apart([public_name(Path(name)) for name in names]), names, strict=True):
        wanted = masks if named is None else named.find([name])
        # A scan that nobody has attacked, or whose file was lost, must not be passed over.
        what = (
            "scan in `original`" if name not in scan_by
            else "scan in `adversarial`" if name not in changed_by
            else None if wanted else "mask in `target`"
        )  # fmt: skip
        found.append(
            PairSource(
                case_id,
                original=scan_by.get(name, ()),
                adversarial=changed_by.get(name, ()),
                target=wanted,
                missing=None if what is None else f"{case_id}: there is no {what} with this name.",
            )
        )
    return found


def mask_of(path: Path, case_id: str) -> Path:
    """The mask of a case: the file itself, the one with the case's name in a folder, or what a manifest says.

    Raises InputError if there is none.
    """
    if path.suffix.lower() in (*MANIFESTS, ".json") and not path.is_dir():
        mask = _listed_masks(path).get(case_id)
        if mask is None:
            raise InputError(f"{public_name(path)}: does not name a ground truth for {case_id}.")
        return mask
    if not holds_cases(path):
        return path
    found = MaskFolder(path).find([case_id, re.sub(r"_\d{4}$", "", case_id)])
    if not found:
        raise InputError(f"{public_name(path)}: holds no mask named {case_id}.")
    return found[0]


@lru_cache(maxsize=1)
def _listed_masks(path: Path) -> dict[str, Path | None]:
    return {case.case_id: case.ground_truth for case in find([str(path)])}


def _listed(text: str, parameter: str) -> tuple[Path, ...]:
    """Files separated by commas; one that is there may have commas in its name."""
    parts = between(text, ",", lambda name: is_there(Path(name)))
    if parts is None:
        raise UsageError(f"`{parameter}` has an empty entry in its comma-separated list.")
    return tuple(map(Path, parts))
