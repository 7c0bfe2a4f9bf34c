"""What is done about a search whose gradient is doubted: another one, by a gradient that says more.

Both are judged on the unchanged network, and the better of their results counts: a search by other slopes can only
find what the first one overlooked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mafl_cli.case.problem import Problem, Say
from mafl_cli.case.searching import Follow, Found, Part, Progress, search
from mafl_cli.case.worst import better_of, with_search
from mafl_cli.codes import Alarm
from mafl_cli.config import AttackConfig
from mafl_cli.errors import ModelError
from mafl_cli.field.field import Field
from mafl_cli.field.smoothed import Smoothed
from mafl_cli.results.trust_report import CheckPasses, GradientName, Ladder, SearchRecord


@dataclass(frozen=True)
class Settled:
    """The best of all searches of a case. searches: what is known of each, in order; found_by: whose the result is.

    follow: the function whose slopes found it, None for the network's own. ladder: None where nobody climbed it.
    """

    found: Found
    searches: tuple[SearchRecord, ...]
    found_by: int = 0
    follow: Follow | None = None
    ladder: Ladder | None = None


def settle(
    case: Problem,
    found: Found,
    searches: tuple[SearchRecord, ...],
    config: AttackConfig,
    say: Say,
    on_progress: Callable[[Progress], None] | None,
) -> Settled:
    """Search again where the checks doubt the first search, until one of them reaches the goal.

    Args: searches: the record of the first, with its alarms; none where nothing was searched.
    """
    best = Settled(found, searches)
    if not searches or not _is_doubted(case, searches[0], config):
        return best
    # Where no gradient is in doubt, nor is what reached its goal.
    among = None if searches[0].alarms else ~found.reached(case, config)
    for gradient, follow, how in _others(case, searches[0], config):
        say(f"{case.seen.info.name}: {_SAID[gradient]}")
        try:
            other = search(case, how, on_progress, follow, among=among)
        except ModelError as error:
            # A cure that takes away all that has a slope is none; what the first search found, and its alarms, stand.
            say(f"that search cannot be made: {error}")
            continue
        record = SearchRecord(
            gradient=gradient,
            goal_reached=bool((other.reached(case, config) | (False if among is None else ~among)).all()),
            explained=None,
            checks=(),
            alarms=(),
            samples=searches[0].samples,
            passes=CheckPasses(forward=0, backward=0),
        )
        searches = (*searches, record)
        if best.found.worst is None:
            joined, better = better_of(case, config, best.found, other)
            is_better = bool(better.any())
        else:
            joined = with_search(case, config, best.found, gradient, other, how.steps)
            is_better = joined.worst is not None and any(each.found_by == gradient for each in joined.worst.samples)
        by, along = (len(searches) - 1, follow) if is_better else (best.found_by, best.follow)
        best = Settled(joined, searches, by, along)
        if record.goal_reached:
            break
    return best


_SAID: dict[GradientName, str] = {
    "straight_through": "the search is made once more, with a slope where its operators have none that leads anywhere.",
    "smoothed": "the search is made once more, with the slope of its mean over small noise.",
}


def _is_doubted(case: Problem, first: SearchRecord, config: AttackConfig) -> bool:
    """Whether the gradients were seen to mislead, or nothing limits the change and still the goal is missed."""
    return bool(first.alarms) or not (first.goal_reached or case.is_limited(config))


def _others(
    case: Problem, first: SearchRecord, config: AttackConfig
) -> Iterator[tuple[GradientName, Follow, AttackConfig]]:
    """The searches that may help, the cheapest first, with their settings.

    They take twice the steps: slopes that stand in for those of the network are coarser, and a change that is longer
    for it would make the network look the harder to fool.
    """
    config = replace(config, steps=2 * config.steps)
    segmenter = case.seen.segmenter.exact
    # Where the file itself is differentiated, no graph stands for it.
    if segmenter.gradient_from == "graph":
        rows = torch.tensor(first.samples[:1], device=case.seen.clean.device)
        seen = next(case.seen.field().inputs(case.seen.clean[rows], case.edit(rows), 1))
        twin, plan = segmenter.straightened(seen)
        straight = replace(case.seen, segmenter=twin).field()

        def along(part: Part, rows: Tensor) -> Field:
            return Part.of(case, straight, rows).field

        if plan:
            yield "straight_through", along, config
    # Ten times as dear as a search: not where steps that are too long may be all that is wrong.
    if {alarm.code for alarm in first.alarms} & {Alarm.SLOPE, Alarm.ALONG}:

        def mean(part: Part, rows: Tensor) -> Field:
            return Smoothed(part.field, part.limits.unit, config.seed)

        yield "smoothed", mean, replace(config, feature_weight=0.0)
