"""Changes for models that are not at hand: the shortest one shows the way, and a longer one is made to travel."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mafl_cli.case.faithful import ask_again
from mafl_cli.case.problem import Problem
from mafl_cli.case.searching import Found, Part
from mafl_cli.codes import Outcome, Reason
from mafl_cli.config import AttackConfig
from mafl_cli.field.samples import Changed
from mafl_cli.search import steps
from mafl_cli.search.certificate import Estimate
from mafl_cli.search.travel import travel


def made_to_travel(case: Problem, config: AttackConfig, shortest: Found) -> Found:
    """A longer change of the samples that the first search changed, in half as many steps as that had.

    How it does elsewhere cannot be known here; the verdict is that of the models at hand.
    """
    times, seen = config.transfer, case.seen
    assert times is not None
    fields = seen.surrogate_fields()
    adversarial = Changed(seen.clean, shortest.adversarial.rows)
    adversarial[adversarial.rows] = shortest.adversarial.values
    changed = (shortest.adversarial.values != seen.clean[adversarial.rows]).flatten(1).any(dim=1)
    todo = adversarial.rows[changed]
    passes = [shortest.forward, shortest.backward]

    def work(rows: Tensor, _: float) -> None:
        parts = [Part.of(case, field, rows) for field in fields]
        part = parts[0]
        length = steps.length(part.change(shortest.adversarial[rows])) * times
        found = travel(
            [each.field for each in parts],
            part.clean,
            part.wanted,
            part.limits,
            length,
            budget=max(config.steps // 2, 1),
            seed=config.seed,
        )
        adversarial[rows] = part.pasted(found.adversarial)
        passes[0], passes[1] = passes[0] + found.forward, passes[1] + found.backward

    seen.groups(todo, work)
    statistics = case.refrozen(adversarial.whole())
    drawn = seen.drawn(adversarial, statistics, like=[case.clean_drawn])
    faithful, _ = ask_again(case, shortest.faithful, adversarial, statistics, todo.tolist())
    reached = case.goal(config).judge(drawn.labels).reached
    outcomes = tuple(
        before if before in (None, Outcome.ALREADY, Outcome.NO_GRADIENT)
        else Outcome.REACHED if reached[row]
        else Outcome.STEP_LIMIT
        for row, before in enumerate(shortest.outcomes)
    )  # fmt: skip
    return replace(
        shortest,
        adversarial=adversarial,
        drawn=drawn,
        faithful=faithful,
        outcomes=outcomes,
        forward=passes[0],
        backward=passes[1],
        estimate=Estimate.none(like=seen.clean),
        unknown=Reason.NO_ESTIMATE,
    )
