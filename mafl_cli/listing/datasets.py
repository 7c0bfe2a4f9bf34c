"""Cases of data sets: BIDS, nnU-Net (versions 1 and 2) and the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mafl_cli.errors import InputError
from mafl_cli.listing.folders import (
    NIFTI,
    Contents,
    FoundCase,
    MaskFolder,
    Places,
    contents,
    decoded,
    grouped,
    numbered,
    read_bytes,
    what_is_missing,
)
from mafl_cli.names import SUFFIX, case_name, is_there, natural, nfc, public_name

_DRAWN = ("mask", "dseg", "probseg", "defacemask")
_SAID = ("channel_names", "modality", "training", "test", "testing", "dataset")


def anatomy(root: Contents) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Subject and session ("sub-01_ses-1"), and the images in `anat`, where there are any."""
    for subject in root.folders:
        if not subject.name.startswith("sub-"):
            continue
        sessions = [path for path in contents(subject).folders if path.name.startswith("ses-")]
        for place in (subject, *sessions):
            anat = place / "anat"
            images = contents(anat).nifti if anat.is_dir() else ()
            images = tuple(path for path in images if case_name(path).rpartition("_")[2] not in _DRAWN)
            if images:
                yield (subject.name if place is subject else f"{subject.name}_{place.name}"), images


def of_bids(folder: Path) -> list[FoundCase]:
    """A case for each subject and session with an image. For several raises InputError with a pattern to use."""
    places = list(anatomy(contents(folder)))
    for label, images in places:
        if len(images) > 1:
            everything = [path for _, each in places for path in each]
            suffixes = sorted({case_name(path).rpartition("_")[2] for path in everything}, key=natural)
            first = images[0]
            ending = first.name[len(SUFFIX.sub("", first.name)) :]
            sessions = "ses-*/" if "_ses-" in label else ""
            entities = re.sub(r"^sub-[^_]*(_ses-[^_]*)?", "", case_name(first))
            name = public_name(folder)
            raise InputError(
                f"{name}: there are several images for {label} (in all: {', '.join(suffixes)}); choose one for each "
                f"with a quoted pattern, such as '{name}/sub-*/{sessions}anat/*{entities}{ending}', or with a manifest."
            )
    return [FoundCase((case_name(images[0]), nfc(label)), images) for label, images in places]


@dataclass(frozen=True)
class _DatasetEntry:
    """A case as a dataset.json lists it."""

    images: tuple[Path, ...]
    label: Path | None
    name: str | None = None


def of_dataset(folder: Path, file: Path | None) -> list[FoundCase]:
    """Test cases if there are any, else training cases, with their labels as ground truth."""
    facts = _facts(file) if file is not None else {}
    name = public_name(folder if file is None else file)
    if file is not None and not facts.keys() & set(_SAID):
        raise InputError(
            f"{name}: is not a data set of nnU-Net or of the Medical Segmentation Decathlon: it has none of "
            f"{', '.join(_SAID)}."
        )
    ending = facts.get("file_ending")
    if ending not in (None, *NIFTI):
        raise InputError(f"{name}: its files end in {ending}, but mafl reads .nii.gz and .nii: convert them.")
    known = facts.get("channel_names") or facts.get("modality")
    channels = len(known) if isinstance(known, (dict, list)) else None
    places = Places(folder)
    listed = {
        "Ts": _entries(name, places, facts.get("test") or facts.get("testing")),
        "Tr": _entries(name, places, facts.get("training")) or _named_entries(name, places, facts.get("dataset")),
    }
    for which, entries in listed.items():
        labels = folder / f"labels{which}"
        masks = MaskFolder(labels) if labels.is_dir() else None
        images = folder / f"images{which}"
        found = _of_entries(entries, channels)
        # A list is followed if any of its files is there: test cases are often listed, but not shared.
        if not any(is_there(path) for each in found for path in each.images):
            there = contents(images).nifti if images.is_dir() else ()
            found = grouped((path for path in there if ending is None or path.name.endswith(ending)), channels)
        if found:
            return [_labelled(each, masks) for each in found]
    raise InputError(f"{name}: none of its cases is there (imagesTs, imagesTr).")


def _labelled(case: FoundCase, masks: MaskFolder | None) -> FoundCase:
    if case.ground_truth is not None or masks is None:
        return case
    found = masks.find(case.names)
    return replace(case, ground_truth=found[0] if len(found) == 1 else None)


def _facts(file: Path) -> Mapping[str, Any]:
    name = public_name(file)
    try:
        facts = json.loads(decoded(name, read_bytes(file)))
    except (ValueError, RecursionError):
        raise InputError(f"{name}: is damaged: it is not JSON.") from None
    if not isinstance(facts, dict):
        raise InputError(f"{name}: is damaged: it is not a JSON object.")
    return facts


def _entries(name: str, places: Places, listed: object) -> list[_DatasetEntry]:
    """The cases of a list of paths, or of {"image": path or paths, "label": path}."""
    if not isinstance(listed, list):
        return []
    return [
        _entry(name, places, each.get("image"), each.get("label"))
        if isinstance(each, dict)
        else _entry(name, places, each, None)
        for each in listed
    ]


def _named_entries(name: str, places: Places, listed: object) -> list[_DatasetEntry]:
    """The cases of nnU-Net's {case: {"images": [paths], "label": path}}."""
    if not isinstance(listed, dict):
        return []
    entries = []
    for case, each in listed.items():
        if not isinstance(each, dict):
            raise InputError(f"{name}: is damaged: a case has no images.")
        entries.append(replace(_entry(name, places, each.get("images"), each.get("label")), name=case))
    return entries


def _entry(name: str, places: Places, images: object, label: object) -> _DatasetEntry:
    paths = images if isinstance(images, list) else [images]
    texts = [path for path in paths if isinstance(path, str) and path]
    if not texts or len(texts) < len(paths):
        raise InputError(f"{name}: is damaged: a case has no images.")
    return _DatasetEntry(
        tuple(map(places.path, texts)), places.path(label) if isinstance(label, str) and label else None
    )


def _of_entries(entries: Sequence[_DatasetEntry], channels: int | None) -> list[FoundCase]:
    # nnU-Net 1 lists CASE.nii.gz where CASE_0000.nii.gz, CASE_0001.nii.gz, ... are meant.
    groups: dict[Path, dict[str, FoundCase]] = {}
    found = []
    for entry in entries:
        first = entry.images[0]
        parts = numbered(first) if len(entry.images) > 1 else None
        case = entry.name or (parts[0] if parts is not None else case_name(first))
        images, problem = entry.images, what_is_missing(entry.images)
        if problem is not None and len(entry.images) == 1:
            if first.parent not in groups:
                inside = contents(first.parent).nifti if first.parent.is_dir() else ()
                groups[first.parent] = {each.names[0]: each for each in grouped(inside, channels)}
            group = groups[first.parent].get(case)
            if group is not None:
                images, problem = group.images, group.problem
        label = entry.label if entry.label is not None and is_there(entry.label) else None
        found.append(FoundCase((nfc(case),), images, ground_truth=label, problem=problem))
    return sorted(found, key=lambda each: natural(each.names[0]))
