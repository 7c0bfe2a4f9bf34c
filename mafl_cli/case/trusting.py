"""Whether the attack of one case can be believed: the checks, on the samples that its search watched."""

from __future__ import annotations

import torch
from torch import Tensor

from mafl_cli.case.problem import Problem
from mafl_cli.case.remedies import Settled
from mafl_cli.case.searching import Found, Part
from mafl_cli.codes import Outcome
from mafl_cli.config import AttackConfig
from mafl_cli.field.averaged import OneDraw
from mafl_cli.results.trust_report import SearchRecord, Trust
from mafl_cli.trust.measured import Measured, Places, Ways, measure
from mafl_cli.trust.verdict import concluded, judged

# What both take together is 5 % of a search of 150 steps, if one slice or volume is all that is attacked.
_AT_CLEAN = Ways(white=2, smooth=2, along=True)
_AT_END = Ways(white=3, seed=20181015)


def checked(case: Problem, found: Found, config: AttackConfig) -> tuple[SearchRecord, ...]:
    """Look at the gradients of a search, at the clean samples and where it ended; none where nothing was searched.

    The network is asked in float32, and nothing that was found changes.
    """
    rows = [row for row in found.watched.rows if found.outcomes[row] not in (None, Outcome.ALREADY)]
    if not rows:
        return ()
    chosen = torch.tensor(rows, device=case.seen.clean.device)
    # One volume at a time: with windows, each has a part of its own.
    parts = [chosen] if case.seen.sliced else list(torch.split(chosen, 1))
    together = _together(case, found)
    clean: list[Measured] = []
    ended: list[Measured] = []
    for some in parts:
        part = Part.of(case, case.seen.field(), some)
        there = torch.stack([_ended(found, row) for row in some.tolist()])[part.box]
        for x, ways, into in ((part.clean, _AT_CLEAN, clean), (there, _AT_END, ended)):
            places = Places(x, part.wanted, _must(case, some, part), ~part.limits.frozen)
            field = OneDraw(part.field, x.device, config.seed) if case.seen.by_chance else part.field
            into.append(measure(field, places, ways, lambda rows, work: case.seen.groups(rows, work, together)))
    falls = [found.watched.falls[row] for row in rows]
    reached = bool(case.goal(config).judge(found.drawn.labels).reached.all())
    return (judged(clean, ended, falls, rows, gradient="exact", goal_reached=reached),)


def believed(case: Problem, settled: Settled, config: AttackConfig, *, reached: bool, linf_share: float) -> Trust:
    """What the checks say of a case whose result was measured.

    settled: what the searches found. reached: whether the result is at the goal. linf_share: largest change of a voxel
    as a share of the range of its channel.
    """
    limited = case.is_limited(config)
    return concluded(
        settled.searches,
        settled.found_by,
        goal_reached=reached,
        limited=limited,
        linf_share=linf_share,
        ladder=settled.ladder,
    )


def _must(case: Problem, rows: Tensor, part: Part) -> Tensor:
    """Which voxels must change, bool, like the target of the part."""
    before = case.seen.info.classes.to_network(case.clean_labels[rows][part.box]).long()
    return before != part.wanted


def _ended(found: Found, row: int) -> Tensor:
    """Where the search of a sample ended: its result, or where it stood if nothing was better than the clean one."""
    ended = found.watched.ended.get(row)
    return found.adversarial.one(row) if ended is None else ended


def _together(case: Problem, found: Found) -> int:
    """As many as went through the network together in the search: a graph is bound to its batch, and takes long to
    make."""
    attacked = sum(outcome is not None for outcome in found.outcomes)
    return 1 << (min(case.seen.together, attacked) - 1).bit_length()
