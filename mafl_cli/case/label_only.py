"""The search of a case whose model only draws: labels are all that is known, and each costs a query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mafl_cli.case.closed import ClosedSubject
from mafl_cli.case.faithful import Faithfulness
from mafl_cli.case.prepare import Case
from mafl_cli.case.remedies import Settled
from mafl_cli.case.searching import Found, Progress
from mafl_cli.codes import Outcome
from mafl_cli.config import AttackConfig
from mafl_cli.errors import UsageError
from mafl_cli.field.samples import Changed, Drawn
from mafl_cli.search import traces
from mafl_cli.search.certificate import Estimate
from mafl_cli.search.label_only import Spoilt, spoil
from mafl_cli.search.label_targeted import aim
from mafl_cli.search.loop import StepRecord


def found_by_labels(
    case: Case, subject: ClosedSubject, config: AttackConfig, on_progress: Callable[[Progress], None] | None
) -> Settled:
    """Attack the samples that have something to change, all at once: a query is about the whole scan.

    Raises: UsageError for an untargeted attack without a limit; ModelError where the model fails.
    """
    goal, todo = case.goal(config), torch.nonzero(_wanting(case)).flatten()
    adversarial = Changed(subject.clean, todo)
    outcomes: list[Outcome | None] = [None] * len(subject.clean)
    before = subject.oracle.asked
    result = None
    # The clean scan was the first query.
    queries = config.steps - 1
    if len(todo) and queries:
        to_network = subject.info.classes.to_network

        def ask(x: Tensor) -> Tensor:
            adversarial[todo] = x
            data = list(subject.as_volume(adversarial.whole()))
            labels = torch.from_numpy(subject.layout.to_batch(subject.labels_on(data)))
            return to_network(labels)[todo]

        def told(record: StepRecord) -> None:
            if on_progress is not None:
                on_progress(Progress(record.step, queries, record))

        clean, limits = subject.clean[todo], case.limits.within(config)
        limits = replace(limits, frozen=limits.frozen[todo], grid=limits.grid and limits.grid.part(todo))
        labels = to_network(case.clean_labels)[todo].long()
        if isinstance(goal, Spoilt):
            if limits.ball is None:
                raise UsageError("`untargeted` needs a limit of the change: give `eps`.")
            part = replace(goal, clean=goal.clean[todo])
            result = spoil(ask, clean, labels, limits, part, queries=queries, seed=config.seed, on_query=told)
        else:
            start = None if case.start is None else case.start[todo]
            wanted = to_network(case.wanted)[todo].long()
            result = aim(
                ask, clean, labels, wanted, limits, goal[todo],
                queries=queries, start=start, seed=config.seed, on_query=told,
            )  # fmt: skip
        adversarial[todo] = result.adversarial
        for row, reached in zip(todo.tolist(), result.verdict.reached.tolist(), strict=True):
            outcomes[row] = Outcome.REACHED if reached else Outcome.STEP_LIMIT
    statistics = subject.preprocessing
    drawn = subject.drawn(adversarial, statistics) if result is not None else case.clean_drawn
    found = Found(
        adversarial=adversarial,
        drawn=Drawn(drawn.samples, statistics, drawn.labels),
        info=subject.info,
        faithful=Faithfulness(None),
        outcomes=tuple(outcomes),
        forward=subject.oracle.asked - before,
        backward=0,
        trace=traces.joined([] if result is None else [traces.Group(len(result.l2), result.records)]),
        estimate=Estimate.none(subject.clean),
    )
    return Settled(found, ())


def _wanting(case: Case) -> Tensor:
    """Which samples have something to change: bool (B,)."""
    if case.untargeted:
        return (case.clean_labels > 0).flatten(1).any(1)
    return case.edited
