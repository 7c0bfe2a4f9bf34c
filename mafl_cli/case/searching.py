"""The search over the samples of one case: slices, windows or the whole volume, in batches that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as made_field
from types import EllipsisType

import torch
from torch import Tensor

from mafl_cli.case.detecting import clean_totals
from mafl_cli.case.faithful import Faithfulness, ask, ask_again
from mafl_cli.case.problem import Problem
from mafl_cli.case.surviving import Survivors
from mafl_cli.case.visible import Rulers
from mafl_cli.codes import Outcome, Reason
from mafl_cli.config import AttackConfig
from mafl_cli.field.field import Field, ScanField
from mafl_cli.field.preprocess import per_channel
from mafl_cli.field.samples import Changed, Drawn, Samples
from mafl_cli.measure.records import LocalOptimum
from mafl_cli.network import chance
from mafl_cli.network.load import ModelInfo
from mafl_cli.results.report import Trace
from mafl_cli.results.worst_report import WorstCase
from mafl_cli.search import traces
from mafl_cli.search.certificate import Estimate
from mafl_cli.search.limits import Limits
from mafl_cli.search.loop import AttackResult, StepRecord, attack

WATCHED = 4
"""How many samples are looked at to tell whether the attack can be believed: those with most to change."""
# How often statistics may be frozen anew at the changed scan before what is left is reported as it is.
_REFREEZES = 3


@dataclass(frozen=True)
class Progress:
    """done of total steps, and what the current step reached."""

    done: int
    total: int
    record: StepRecord


@dataclass(frozen=True)
class Watched:
    """What is kept of the search of some samples, to tell whether it can be believed.

    rows: which they are, in rising order. ended: where the search stood at its end, (C, *spatial), for those whose best
    result is the clean sample. falls: what the gradients promised from step to step, and what came, (steps,) each.
    """

    rows: tuple[int, ...]
    ended: dict[int, Tensor] = made_field(default_factory=dict)
    falls: dict[int, tuple[Tensor, Tensor]] = made_field(default_factory=dict)

    @staticmethod
    def of(case: Problem, todo: Tensor) -> Watched:
        """Those with most voxels to change. todo: (n,), the samples that will be attacked."""
        counts = case.edit(todo).flatten(1).sum(dim=1)
        most = counts.argsort(descending=True, stable=True)[:WATCHED]
        return Watched(tuple(sorted(todo[most].tolist())))

    def keep(self, rows: Tensor, part: Part, result: AttackResult) -> None:
        """Take over what is to be kept of a search. rows: the samples of the part."""
        for place, row in enumerate(rows.tolist()):
            if row not in self.rows:
                continue
            self.falls[row] = (result.falls.promised[:, place], result.falls.came[:, place])
            self.ended.pop(row, None)
            if not bool(result.l2[place]):
                self.ended[row] = part.pasted(result.last)[place]


@dataclass(frozen=True)
class Found:
    """What the search brought, in memory. outcomes has one entry per sample, None where none was attacked.

    drawn: the prediction of the adversarial samples. info: of the model, with what this scan has shown of it.
    faithful: how far the graph was from the file.
    estimate: how far each change is above the shortest near it. unknown: why there is none, where no sample has one.
    constant: samples that were left out because they have one value. trace: see `search.traces.joined`. watched: where
    the search of some samples led, see `WATCHED`. worst: who found what, where several searches were made.
    """

    adversarial: Changed
    drawn: Drawn
    info: ModelInfo
    faithful: Faithfulness
    outcomes: tuple[Outcome | None, ...]
    forward: int
    backward: int
    estimate: Estimate
    unknown: Reason = Reason.NO_ESTIMATE
    constant: int = 0
    trace: Trace = made_field(default_factory=lambda: traces.joined([]))
    watched: Watched = Watched(())
    worst: WorstCase | None = None

    @property
    def local_optimum(self) -> LocalOptimum:
        """How far all changes together are above the shortest near them."""
        return self.estimate.joined(self.unknown)

    def reached(self, case: Problem, config: AttackConfig) -> Tensor:
        """Which samples draw the target: bool (B,)."""
        return case.goal(config).judge(self.drawn.labels).reached


Follow = Callable[["Part", Tensor], Field]
"""The function whose slopes are followed in the place of a part's own; given the part and its samples."""


def search(
    case: Problem,
    config: AttackConfig,
    on_progress: Callable[[Progress], None] | None,
    follow: Follow | None = None,
    start: Samples | None = None,
    begun: int = 0,
    known: Faithfulness | None = None,
    among: Tensor | None = None,
) -> Found:
    """Attack every slice (or the volume) whose prediction is not the target yet, a few at a time.

    Statistics that are recomputed from the changed file (z-scores) drift a little from the frozen ones, and a few
    voxels with them; so does a search in lower precision. Samples that lose their goal by this are attacked again,
    in float32 and with the statistics frozen at the changed scan; and so are samples for which the graph turns out not
    to be the model, through its file. The trace is that of the first round: later ones begin anew with the few samples
    that are left, and do not continue it.

    Args:
        start, begun: changed samples to begin at, and steps that count as taken; see `search.loop.attack`.
        known: how far the graph is from the file, where an earlier search of the same case has asked.
        among: bool (B,), the samples that may be attacked; None for all.
    Raises: ModelError for a model that answers differently each time, or that only a graph of it has a gradient.
    """
    seen = case.seen
    flat = seen.clean.flatten(1)
    constant = (flat == flat[:, :1]).all(dim=1)
    differs = case.edited
    todo = torch.nonzero(differs & ~constant & (True if among is None else among)).flatten()
    adversarial = Changed(seen.clean, todo)
    outcomes: list[Outcome | None] = [None] * len(seen.clean)
    estimate = Estimate.none(like=seen.clean)
    passes = [0, 0]
    faithful = known or ask(case, todo)
    watched = Watched.of(case, todo)
    # In lower precision the noise of the logits is as large as what the last steps change.
    watch = torch.tensor([row in watched.rows for row in range(len(seen.clean))], device=seen.clean.device)
    watch &= seen.segmenter.exact is seen.segmenter
    # From draw to draw the loss moves though the scan does not.
    watch &= not seen.by_chance
    draws = chance.DRAWS_A_STEP if seen.by_chance else 1
    rulers, survivors = Rulers(case, config), Survivors(case, config)
    totals = clean_totals(case, config)
    together = draws * survivors.views
    field = seen.field(exact=False)
    drawn = case.clean_drawn
    rounds: list[list[traces.Group]] = []
    for number in range(_REFREEZES):
        groups: list[traces.Group] = []
        rounds.append(groups)

        def work(
            rows: Tensor,
            share: float,
            field: ScanField = field,
            todo: Tensor = todo,
            groups: list[traces.Group] = groups,
            number: int = number,
        ) -> None:
            part = Part.of(case, field, rows)
            records: list[StepRecord] = []
            result = attack(
                survivors.of(part.field, config.seed, number),
                part.clean,
                part.wanted,
                config,
                part.limits,
                guide=part.guide if config.feature_weight > 0 or follow is None else None,
                surrogate=None if follow is None else survivors.of(follow(part, rows), config.seed, number),
                start=None if start is None else part.change(start[rows]),
                begun=begun,
                ruler=rulers.of(part.clean),
                spacing=case.batch_spacing,
                watch=watch[rows],
                totals=None if totals is None else totals[rows],
                on_step=_relay(records, on_progress, share, len(rows) / len(todo), config.steps),
            )
            if not records:  # All were at their goal from the start.
                score = float(result.verdict.score.mean())
                records = [StepRecord(0, float(result.verdict.reached.float().mean()), score, 0.0, 0.0)]
            # Not before the search is done: one that runs out of memory is repeated with fewer samples.
            groups.append(traces.Group(len(rows), records))
            watched.keep(rows, part, result)
            adversarial[rows] = part.pasted(result.adversarial)
            estimate[rows] = result.estimate
            passes[0] += together * result.forward
            passes[1] += together * result.backward
            for row, outcome in zip(rows.tolist(), result.outcomes, strict=True):
                outcomes[row] = outcome

        seen.groups(todo, work)
        statistics = case.refrozen(adversarial.whole())
        field = seen.field(statistics)
        drawn = seen.drawn(adversarial, statistics, like=[case.clean_drawn])
        held = case.goal(config).judge(drawn.labels).reached
        lost = [row for row, outcome in enumerate(outcomes) if outcome is Outcome.REACHED and not held[row]]
        faithful, strayed = ask_again(case, faithful, adversarial, statistics, todo.tolist())
        if not lost and not strayed:
            break
        todo = torch.tensor(sorted({*lost, *strayed}), device=seen.clean.device)
    return Found(
        adversarial=adversarial,
        drawn=drawn,
        info=seen.info.with_gradient(seen.segmenter.gradient_from, faithful.sentence),
        faithful=faithful,
        outcomes=tuple(outcomes),
        constant=int((differs & constant).sum()),
        forward=passes[0],
        backward=passes[1],
        trace=traces.joined(rounds[0]),
        watched=watched,
        estimate=estimate,
        unknown=no_estimate(config, outcomes),
    )


def no_estimate(config: AttackConfig, outcomes: Sequence[Outcome | None]) -> Reason:
    """Why nothing is known of the local optimum, where that is so."""
    if Outcome.REACHED in outcomes or not config.certified:
        return Reason.NO_ESTIMATE
    return Reason.GOAL_NOT_REACHED if Outcome.STEP_LIMIT in outcomes else Reason.IDENTICAL


@dataclass(frozen=True)
class Part:
    """Some samples, cut to the part that the edit can reach; see `field.field.Focus`."""

    field: Field
    clean: Tensor
    wanted: Tensor
    guide: Tensor | None
    limits: Limits
    whole: Tensor
    box: tuple[EllipsisType | slice, ...]

    @staticmethod
    def of(case: Problem, field: ScanField, rows: Tensor) -> Part:
        whole = case.seen.clean[rows]
        edit = case.edit(rows)
        focus = field.focus(whole, edit)
        box: tuple[EllipsisType | slice, ...] = (..., *focus.box)
        limits = case.limits.part(rows, focus.box)
        if focus.frozen is not None:
            limits = replace(limits, frozen=limits.frozen | focus.frozen.unsqueeze(1))
        return Part(
            field=focus.field,
            clean=whole[box],
            wanted=case.seen.info.classes.to_network(case.wanted[rows][box]).long(),
            guide=None if case.guide is None else case.guide[rows][box],
            limits=limits,
            whole=whole,
            box=box,
        )

    def change(self, samples: Tensor) -> Tensor:
        """What changed samples (b, C, *spatial) differ by from the clean ones, cut to the part, model units."""
        return (samples[self.box] - self.clean) / per_channel(self.limits.unit, self.clean)

    def pasted(self, part: Tensor) -> Tensor:
        """The whole samples with the part in its place."""
        whole = self.whole.clone()
        whole[self.box] = part
        return whole


def _relay(
    records: list[StepRecord],
    on_progress: Callable[[Progress], None] | None,
    before: float,
    share: float,
    steps: int,
) -> Callable[[StepRecord], None]:
    """Keep what each step reached, and pass it on. before: share of the work that is done already; share: of this."""
    total = max(round(steps / share), 1)

    def on_step(record: StepRecord) -> None:
        records.append(record)
        if on_progress is not None:
            on_progress(Progress(round(before * total) + record.step + 1, total, record))

    return on_step
