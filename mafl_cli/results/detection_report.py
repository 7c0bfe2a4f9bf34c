"""What reports say of detectors: scores that should give an attack away."""

from __future__ import annotations

from dataclasses import dataclass

from mafl_cli.config import Detector
from mafl_cli.measure.value import Value
from mafl_cli.system.records import Count, Share


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a slice, or of the volume (slice null), in the clean and in the adversarial scan."""

    slice: Count | None
    clean: Share
    adversarial: Share


@dataclass(frozen=True, kw_only=True)
class Evasion:
    """What one detector says of the file of an attack that knows detectors.

    asked: whether this one was to be evaded. above: how many of the samples have a higher score than when they were
    clean.
    """

    detector: Detector
    asked: bool
    above: Count
    samples: tuple[Scores, ...]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What one detector says of a case. auc: area under the ROC curve over the samples of this case."""

    detector: Detector
    auc: Value
    samples: tuple[Scores, ...]


@dataclass(frozen=True, kw_only=True)
class Roc:
    """One detector over all samples of all cases; see `judging.detectors.roc`."""

    detector: Detector
    score: str
    """What is counted, in words."""
    cases: Count
    n: Count
    """Samples of each kind."""
    auc: Value
    ci95: tuple[Share, Share] | None
    """95 % interval of the area over other cases; null for fewer than 2."""
    tpr_at_5_percent_fpr: Value
    points: tuple[tuple[Share, Share], ...]
    """(false positive rate, true positive rate), from (0, 0) to (1, 1)."""
