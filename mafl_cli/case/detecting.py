"""What detectors say of a scan: scores that a clinic could take of every scan, without knowing the attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.problem import Problem
from mafl_cli.case.subject import Subject
from mafl_cli.case.surviving import labels_after
from mafl_cli.classes import Labels
from mafl_cli.config import DETECTORS, AttackConfig, Detector
from mafl_cli.field.samples import OfScan
from mafl_cli.field.transforms import BLUR
from mafl_cli.network import uncertainty
from mafl_cli.results.detection_report import Evasion, Scores
from mafl_cli.scans.volume import Volume
from mafl_cli.search.evasion import moved

Found = Mapping[Detector, NDArray[np.float64]]
"""The score of each slice, or of the volume, by each detector."""


def scores_of(subject: Subject, scans: Sequence[Volume], labels: Labels) -> Found:
    """The scores of scans, one for each channel. labels: (M, I, J, K), what the model draws on them."""
    unsure = _unsure(subject, scans)
    return {"blur": _moved(subject, scans, labels), "entropy": unsure[0], "margin": unsure[1]}


def samples_of(subject: Subject, clean: Sequence[Volume], adversarial: Sequence[Volume], both: tuple[Found, Found]) -> (
    dict[Detector, tuple[Scores, ...]]
):  # fmt: skip
    """The scores of each slice that changed, or of the volume. both: those of the clean and of the adversarial scan."""
    sliced, axis = subject.layout.sliced, subject.slices.index
    differs = np.any([a.data != b.data for a, b in zip(clean, adversarial, strict=True)], axis=0)
    changed = np.moveaxis(differs, axis, 0).reshape(differs.shape[axis] if sliced else 1, -1).any(axis=1)
    before, after = both
    return {
        name: tuple(
            Scores(
                slice=int(index) if sliced else None,
                clean=float(before[name][index]),
                adversarial=float(after[name][index]),
            )
            for index in np.flatnonzero(changed)
        )
        for name in DETECTORS
    }


def evasion_of(
    subject: Subject, config: AttackConfig, again: Sequence[Volume], clean: Labels, adversarial: Labels
) -> tuple[Evasion, ...] | None:
    """What every detector says of the written file, `again`; None where no detector was to be evaded.

    clean, adversarial: what the model draws on the scan and on the file.
    """
    if config.evade is None:
        return None
    both = scores_of(subject, subject.scans, clean), scores_of(subject, again, adversarial)
    return tuple(
        Evasion(
            detector=name,
            asked=name in config.evaded,
            above=sum(sample.adversarial > sample.clean for sample in samples),
            samples=samples,
        )
        for name, samples in samples_of(subject, subject.scans, again, both).items()
    )


def clean_totals(case: Problem, config: AttackConfig) -> Tensor | None:
    """What a search compares scores of a part of a volume with, see `search.evasion`; None where it needs nothing."""
    seen = case.seen
    if seen.sliced or config.evaded in ((), ("blur",)):
        return None  # Slices are drawn as a whole.
    return seen.totals(seen.clean, seen.preprocessing, uncertainty.weighed)


def _moved(subject: Subject, scans: Sequence[Volume], labels: Labels) -> NDArray[np.float64]:
    """What of the drawn voxels a mild blur moves."""

    def by_sample(maps: Labels) -> Tensor:
        """(M, I, J, K) -> (samples, M, voxels...), slices in the order of the scan."""
        maps = np.moveaxis(maps, subject.slices.index + 1, 0) if subject.layout.sliced else maps[np.newaxis]
        return torch.from_numpy(np.ascontiguousarray(maps))

    return moved(by_sample(labels), by_sample(labels_after(BLUR, scans, subject))).numpy()


def _unsure(subject: Subject, scans: Sequence[Volume]) -> NDArray[np.float64]:
    """Entropy and closeness of what may be foreground: (2, slices or 1)."""
    data = [scan.data for scan in scans]
    samples = OfScan(data, subject.layout, subject.clean.device)
    totals = subject.totals(samples, subject.frozen(data), uncertainty.weighed)
    scores = uncertainty.scores(totals).cpu().numpy()
    # The batch may have the slices in another order: as a scan of one voxel a slice it is turned like any other.
    turned = subject.layout.from_batch(scores.reshape(*scores.shape, *(1,) * (subject.clean.ndim - 2)))
    found: NDArray[np.float64] = turned.reshape(2, -1)
    return found
