"""The volumes of one case on their way to the result folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mafl_cli import __version__
from mafl_cli.case.prepare import Case
from mafl_cli.classes import Labels
from mafl_cli.config import NOTE, AttackConfig
from mafl_cli.results import files
from mafl_cli.results.files import SEGMENTATIONS
from mafl_cli.scans import formats, nifti_write, volume


@dataclass(frozen=True)
class Written:
    """The files of a case, in the format the scan came in."""

    case: Case
    stage: Path
    config: AttackConfig

    @property
    def _names(self) -> tuple[str, ...]:
        return files.adversarial([scan.format for scan in self.case.subject.scans])

    def scans(self, adversarial: NDArray[np.float32]) -> None:
        """Write the changed channels (C, I, J, K)."""
        case = self.case
        for name, scan, data in zip(self._names, case.subject.scans, adversarial, strict=True):
            formats.write_scan(self.stage / name, scan, data, save_as=case.save_as, note=NOTE, derivation=self._how())

    def again(self) -> list[volume.Volume]:
        """The changed channels read again from their files; what changed is written."""
        again = [formats.read_written(self.stage / name) for name in self._names]
        for name, scan, after in zip(files.perturbation(len(again)), self.case.subject.scans, again, strict=True):
            nifti_write.write_difference(self.stage / name, scan, after.data, NOTE)
        return again

    def masks(self, name: str, labels: Labels, drawn_on: volume.Volume | None = None, *, seg: bool = True) -> None:
        """Write a mask as NIfTI and, for a scan from DICOM, as SEG referring to `drawn_on` (the clean scan if None)."""
        subject, classes = self.case.subject, self.case.subject.info.classes
        nifti_write.write_labels(self.stage / name, subject.scan, classes.encode(labels))
        if not seg or subject.scan.format != "dicom":
            return
        problem = formats.write_masks(
            self.stage / SEGMENTATIONS[name],
            drawn_on or subject.scan,
            np.stack([classes.mask(labels, each.index) for each in classes.foreground]),
            [each.name for each in classes.foreground],
            description=f"MAFL {name.removesuffix('.nii.gz').replace('_', ' ').upper()} - NOT FOR CLINICAL USE",
        )
        if problem:
            subject.say(f"{SEGMENTATIONS[name]}: not written: {problem}; {name} has the mask.")

    def _how(self) -> str:
        """For a derived image's Derivation Description."""
        bound = (
            "" if self.config.eps is None else f", eps {self.config.eps:g} ({self.config.eps_unit}, {self.config.norm})"
        )
        return f"{NOTE}. Adversarial perturbation by mafl {__version__}, method {self.config.method}{bound}."
