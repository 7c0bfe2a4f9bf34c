"""The names of the files in a result folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    return sorted(path for path in out.iterdir() if is_result(path.name))


def is_result(name: str) -> bool:
    return name in {*SEGMENTATIONS, *SEGMENTATIONS.values(), REPORT, TICKET} or bool(_SCANS.fullmatch(name))


def changed_scans(names: Iterable[str]) -> bool:
    """Whether one of these names in a folder is that of an adversarial scan or of a perturbation."""
    return any(_SCANS.fullmatch(name) for name in names)
