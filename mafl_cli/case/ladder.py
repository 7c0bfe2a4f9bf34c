"""The sanity ladder of one case: short searches with more and more steps, and with larger and larger changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mafl_cli.case.problem import Problem
from mafl_cli.case.remedies import Settled
from mafl_cli.case.searching import Part
from mafl_cli.codes import Outcome
from mafl_cli.config import AttackConfig
from mafl_cli.field.preprocess import per_channel
from mafl_cli.results.trust_report import Rung
from mafl_cli.search import steps
from mafl_cli.search.loop import attack
from mafl_cli.trust import ladder

STEPS = (10, 20, 40)
"""Steps of the rungs that have more and more; the others have the middle number."""
SIZES = (0.25, 0.5, 1.0, 2.0)
"""Limits of the change, as shares of the one that was set, or else of what was found."""


def climbed(case: Problem, settled: Settled, config: AttackConfig) -> Settled:
    """The result with its ladder, tried on the samples that were watched; as it is where none was attacked.

    The searches follow the gradient that found the result, and the network itself judges.
    """
    found = settled.found
    rows = [row for row in found.watched.rows if found.outcomes[row] not in (None, Outcome.ALREADY)]
    if not rows:
        return settled
    rungs = []
    for rung in _rungs(case, settled, config, rows):
        lengths, scores, reached = _searched(case, settled, rung.config, rows)
        eps = rung.config.eps
        rungs.append(
            Rung(
                more=rung.more,
                steps=rung.config.steps,
                eps=eps,
                eps_unit=None if eps is None else rung.config.eps_unit,
                norm=None if eps is None else rung.config.norm,
                score=tuple(scores),
                reached=sum(reached),
                l2_model=tuple(lengths),
                broken=False,
            )
        )
    return replace(settled, ladder=ladder.judged(rows, rungs))


@dataclass(frozen=True)
class _Planned:
    """A rung: what there is more of, and the settings of its search."""

    more: Literal["steps", "change", "no_limit"]
    config: AttackConfig


def _rungs(case: Problem, settled: Settled, config: AttackConfig, rows: list[int]) -> Iterator[_Planned]:
    """The rungs, from the lowest of each kind."""
    config = replace(config, until=None)
    for number in STEPS:
        yield _Planned("steps", replace(config, steps=number))
    middle = STEPS[len(STEPS) // 2]
    if config.eps is not None:
        limit = config
    else:
        change = settled.found.adversarial.whole()[rows] - case.seen.clean[rows]
        lengths = steps.length(change / per_channel(case.limits.unit, change))
        largest = float(lengths.max())
        if not largest:
            return
        limit = replace(config, eps=largest, eps_unit="model", norm="l2")
    assert limit.eps is not None
    for share in SIZES:
        yield _Planned("change", replace(limit, eps=share * limit.eps, steps=middle))
    if config.eps is not None and not case.confined:
        yield _Planned("no_limit", replace(config, eps=None, random_start=False, steps=max(config.steps, STEPS[-1])))


def _searched(
    case: Problem, settled: Settled, config: AttackConfig, rows: list[int]
) -> tuple[list[float], list[float], list[bool]]:
    """Length in model units, score, and whether the goal is reached, of each sample."""
    found: dict[int, tuple[float, float, bool]] = {}
    follow = settled.follow

    def work(some: Tensor, _: float) -> None:
        part = Part.of(case, case.seen.field(), some)
        result = attack(
            case.expected(part.field, config.seed), part.clean, part.wanted, config, part.limits,
            guide=part.guide if config.feature_weight > 0 else None,
            surrogate=None if follow is None else case.expected(follow(part, some), config.seed),
            spacing=case.batch_spacing,
        )  # fmt: skip
        score = result.verdict.score
        for place, row in enumerate(some.tolist()):
            found[row] = (float(result.l2[place]), float(score[place]), bool(result.verdict.reached[place]))

    case.seen.groups(torch.tensor(rows, device=case.seen.clean.device), work)
    lengths, scores, reached = zip(*(found[row] for row in rows), strict=True)
    return list(lengths), list(scores), list(reached)
