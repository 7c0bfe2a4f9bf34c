"""What is said over all cases of an evaluation: counts, statistics, and means of the trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from mafl_cli.codes import NOT_ASKED
from mafl_cli.measure.records import Survival
from mafl_cli.measure.statistics import summary
from mafl_cli.measure.value import Value, defined
from mafl_cli.results.evaluation_report import (
    FailedCase,
    FigureStatistics,
    JudgedAggregate,
    JudgedCase,
    SurvivalMeans,
    Transfer,
    TransferMeans,
)
from mafl_cli.results.quantities import EVALUATED

Entry = TypeVar("Entry", Transfer, Survival)


def judged(cases: Sequence[JudgedCase | FailedCase]) -> list[JudgedCase]:
    """The cases that were measured."""
    return [case for case in cases if isinstance(case, JudgedCase)]


def aggregate(cases: Sequence[JudgedCase | FailedCase]) -> JudgedAggregate:
    """Counts of cases, and of each quantity that was asked for its statistics over the cases that have it."""
    done = judged(cases)
    figures = {}
    for name, quantity in EVALUATED.items():
        values = [quantity.of_evaluation(case) for case in done]
        reasons = {value.reason for value in values if value.reason is not None}
        if len(reasons - NOT_ASKED) == 0 and all(value.value is None for value in values):
            continue
        found = summary([value.value for value in values])
        figures[name] = FigureStatistics(
            **vars(found), undefined=len(values) - found.n, reasons=tuple(sorted(reasons, key=str))
        )
    return JudgedAggregate(
        cases=len(cases),
        ok=len(done),
        failed=len(cases) - len(done),
        goal_reached=sum(case.goal.reached for case in done),
        doubtful=sum(bool(case.doubts) for case in done),
        figures=figures,
    )


def transfer(cases: Sequence[JudgedCase | FailedCase]) -> tuple[TransferMeans, ...]:
    """Means over the cases for each model that was not attacked."""
    models: dict[str, list[Transfer]] = {}
    for entry in (entry for case in judged(cases) for entry in case.transfer):
        models.setdefault(entry.sha256, []).append(entry)
    return tuple(
        TransferMeans(
            model=entries[-1].model,
            sha256=sha256,
            n=len(entries),
            target_iou=_mean(entries, lambda entry: entry.adversarial.target_iou),
            hit_rate=_mean(entries, lambda entry: entry.adversarial.hit_rate),
            dice_with_clean=_mean(entries, lambda entry: entry.adversarial.dice_with_clean),
        )
        for sha256, entries in models.items()
    )


def survival(cases: Sequence[JudgedCase | FailedCase]) -> tuple[SurvivalMeans, ...]:
    """Means over the cases for each transform."""
    transforms: dict[str, list[Survival]] = {}
    for entry in (entry for case in judged(cases) for entry in case.survival):
        transforms.setdefault(entry.transform, []).append(entry)
    return tuple(
        SurvivalMeans(
            transform=name,
            n=len(entries),
            target_iou=_mean(entries, lambda entry: entry.adversarial.target_iou),
            hit_rate=_mean(entries, lambda entry: entry.adversarial.hit_rate),
            restored=_mean(entries, lambda entry: entry.adversarial.restored),
            clean_dice=_mean(entries, lambda entry: entry.clean.dice_with_clean),
        )
        for name, entries in transforms.items()
    )


def _mean(entries: Sequence[Entry], pick: Callable[[Entry], Value]) -> Value:
    """Over those that are defined; at least one entry."""
    values = [pick(entry) for entry in entries]
    known = [value.value for value in values if value.value is not None]
    return defined(float(np.mean(known))) if known else values[0]
