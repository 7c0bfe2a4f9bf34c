"""The worst case of several searches: for each slice or volume the smallest change at the goal that any of them found.

The first search is the one that the settings describe, with all of its steps, so that what is kept can only be smaller.
The others share as many steps once more, by successive halving: short trials that begin elsewhere or follow another
loss, and then one search that goes on, for each sample, from the trial that leads there, or from the best change so far
where no trial comes close to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mafl_cli.case.faithful import Faithfulness
from mafl_cli.case.problem import Problem
from mafl_cli.case.searching import Found, Progress, Watched, no_estimate, search
from mafl_cli.case.travelling import made_to_travel
from mafl_cli.codes import Outcome
from mafl_cli.config import AttackConfig, MaskLoss
from mafl_cli.field.preprocess import per_channel
from mafl_cli.field.samples import Changed, Samples
from mafl_cli.results.worst_report import SampleTold, SearchName, SearchTold, WorstCase
from mafl_cli.search import steps
from mafl_cli.search.certificate import Estimate
from mafl_cli.search.goals import SLACK, Verdict

FEWEST = 20
"""Steps of a trial below which it tells nothing: with fewer there are fewer trials."""
CLOSE = 1.1
"""How much longer than the best change that of a trial may be for the search to go on from there."""
OF_LOSS = 0.4
"""Share of a trial that follows another loss; the margin then makes the change small, which no other loss does."""

Show = Callable[[Progress], None]


def searched(case: Problem, config: AttackConfig, on_progress: Show | None) -> Found:
    """What the method asks for: one search, one and a change made to travel, or the worst case of several.

    Raises: as `searching.search`.
    """
    if config.method != "worst":
        found = search(case, config, on_progress)
        return found if config.transfer is None else made_to_travel(case, config, found)
    total = 2 * config.steps
    first = search(case, config, _shown(on_progress, 0, total))
    best = begun(case, config, first)
    if best.worst is None:
        return best
    trials = _trials(case, config, first)
    trials = trials[: config.steps // (2 * FEWEST)]
    given = config.steps // (2 * len(trials)) if trials else 0
    leaders = _Leaders(case, config, best)
    for number, trial in enumerate(trials):
        found = trial.run(case, config, given, first, _shown(on_progress, config.steps + number * given, total))
        leaders.take(trial, found)
        best = with_search(case, config, best, trial.name, found, given)
    left = config.steps - len(trials) * given
    starts, followed = leaders.starts(best)
    names = [None if trial is None else trial.name for trial in followed]
    for loss in dict.fromkeys("margin" if trial is None else trial.goes_on for trial in followed):
        among = [loss == ("margin" if trial is None else trial.goes_on) for trial in followed]
        onward = search(
            replace(case, guide=None),
            _going_on(config, left, loss),
            _shown(on_progress, total - left, total),
            start=starts,
            begun=left,
            known=best.faithful,
            among=torch.tensor(among, device=case.seen.clean.device),
        )
        best = with_search(case, config, best, "onward", onward, left, names)
    return _no_longer(case, config, first, best)


def _no_longer(case: Problem, config: AttackConfig, first: Found, best: Found) -> Found:
    """The best of all; or the first search, where that reaches the goal of the whole scan with a shorter change.

    A slice that the first search missed counts less there than what it takes to reach it.
    """
    whole = case.goal(config).judge_together(first.drawn.labels)[1]
    if not bool(whole.reached) or float(_lengths(case, best).norm()) <= float(_lengths(case, first).norm()):
        return best
    alone = begun(case, config, first).worst
    assert best.worst is not None
    assert alone is not None
    worst = _recorded(best.worst.searches, alone.samples)
    return replace(first, forward=best.forward, backward=best.backward, worst=worst)


def _shown(on_progress: Show | None, done: int, total: int) -> Show | None:
    """Shows the steps of one search among those of all. done: those before it."""
    if on_progress is None:
        return None
    return lambda now: on_progress(Progress(min(done + now.done, total), total, now.record))


def _going_on(config: AttackConfig, given: int, loss: MaskLoss = "margin") -> AttackConfig:
    """The settings of a search that begins at a change: what finds a way there is not needed any more."""
    config = replace(config, method="mafl", steps=given, feature_weight=0.0, random_start=False)
    return config if loss == "margin" else replace(config, mask_loss=loss, adaptive_weights=False, until=None)


# --- trials -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """A short search that differs from the first.

    loss: what it follows at first; goes_on: later. begins: at a changed batch, None for the clean one. led: whether a
    search has led there. guided: the features of what the first search found pull.
    """

    name: SearchName
    loss: MaskLoss = "margin"
    goes_on: MaskLoss = "margin"
    begins: Samples | None = None
    led: bool = False
    guided: bool = False

    def run(self, case: Problem, config: AttackConfig, given: int, first: Found, show: Show | None) -> Found:
        """The search with `given` steps."""
        known, plain = first.faithful, replace(case, guide=None)
        if self.guided:
            guided = replace(case, guide=first.adversarial.whole())
            return search(guided, replace(config, method="mafl", steps=given, feature_weight=1.0), show, known=known)
        if self.loss == self.goes_on:
            begun = given if self.led else 0
            return search(plain, _going_on(config, given, self.loss), show, start=self.begins, begun=begun, known=known)
        before = max(round(OF_LOSS * given), 1)
        of_loss = replace(_going_on(config, before, self.loss), scale_search=0)
        led = search(plain, of_loss, show, known=known)
        config = _going_on(config, given - before, self.goes_on)
        then = search(plain, config, show, start=led.adversarial, begun=before, known=known)
        return replace(then, forward=led.forward + then.forward, backward=led.backward + then.backward)


def _trials(case: Problem, config: AttackConfig, first: Found) -> Sequence[_Trial]:
    """Those that can be made, the most promising first."""
    start = () if case.start is None else (_Trial("start", begins=case.start, led=True),)
    noise = _Trial("noise", begins=_Noise(case, first, config.seed))
    # Where there are no features, a guide pulls at nothing.
    guided = (_Trial("guided", guided=True),) if case.seen.info.taps else ()
    if config.eps is not None:
        # Within a ball other losses come closer to the target, and the margin gains nothing after them.
        dice, js, ce = (_Trial(loss, loss=loss, goes_on=loss) for loss in ("dice", "js", "ce"))
        return (*start, dice, js, ce, noise)
    return (*start, noise, _Trial("dice", loss="dice"), *guided, _Trial("ce", loss="ce"))


class _Leaders:
    """For each sample the trial that is ahead."""

    def __init__(self, case: Problem, config: AttackConfig, first: Found) -> None:
        self._case, self._config = case, config
        self._changed = Changed(case.seen.clean, first.adversarial.rows)
        none = torch.zeros(len(case.seen.clean), device=case.seen.clean.device)
        self._lengths, self._scores, self._reached = none, none - torch.inf, none > 0
        self._trials: list[_Trial | None] = [None] * len(none)

    def take(self, trial: _Trial, found: Found) -> None:
        """Take in what a trial found."""
        lengths, verdict = _lengths(self._case, found), _judged(self._case, self._config, found)
        closer = (verdict.score > self._scores + SLACK) & ~self._reached
        ahead = torch.where(verdict.reached, ~self._reached | (lengths < self._lengths), closer) & (lengths > 0)
        self._lengths = torch.where(ahead, lengths, self._lengths)
        self._scores = torch.where(ahead, verdict.score, self._scores)
        self._reached = torch.where(ahead, verdict.reached, self._reached)
        rows = torch.nonzero(ahead).flatten()
        self._changed[rows] = found.adversarial[rows]
        for row in rows.tolist():
            self._trials[row] = trial

    def starts(self, best: Found) -> tuple[Changed, Sequence[_Trial | None]]:
        """Where the last search begins, and whose change that is; None: the best so far."""
        starts = Changed(self._case.seen.clean, best.adversarial.rows)
        starts[best.adversarial.rows] = best.adversarial.values
        led = torch.tensor([trial is not None for trial in self._trials], device=self._lengths.device)
        verdict = _judged(self._case, self._config, best)
        close = self._reached & (self._lengths <= CLOSE * _lengths(self._case, best))
        # A trial that is as close to the goal with its few steps as anything else with many.
        close |= ~verdict.reached & (self._scores >= verdict.score - SLACK)
        close &= led
        rows = torch.nonzero(close).flatten()
        starts[rows] = self._changed[rows]
        return starts, [trial if ahead else None for trial, ahead in zip(self._trials, close.tolist(), strict=True)]


class _Noise:
    """The clean samples with noise as long as the change that was found of each, model units."""

    def __init__(self, case: Problem, found: Found, seed: int) -> None:
        self._clean = case.seen.clean
        self._unit = per_channel(case.limits.unit, self._clean)
        self._frozen = case.limits.frozen
        self._lengths = _lengths(case, found)
        # The same for every sample, so that none depends on its batch.
        self._noise = torch.randn((1, *self._clean.shape[1:]), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self._clean)

    def __getitem__(self, rows: Tensor) -> Tensor:
        noise = self._noise.to(self._clean) * ~self._frozen[rows]
        length = steps.length(noise).clamp_min(1e-12)
        return self._clean[rows] + noise * steps.spread_out(self._lengths[rows] / length, noise) * self._unit


# --- for each sample the better of two ----------------------------------------------------------------------------


def begun(case: Problem, config: AttackConfig, first: Found, name: SearchName = "margin") -> Found:
    """The first search, with the record that others are added to; without one where it attacked nothing."""
    rows = [row for row, outcome in enumerate(first.outcomes) if outcome not in (None, Outcome.ALREADY)]
    verdict, lengths = _judged(case, config, first), _lengths(case, first)
    samples = tuple(
        SampleTold(
            sample=row,
            found_by=name,
            began_at=None,
            reached=bool(verdict.reached[row]),
            l2_model=float(lengths[row]),
            l2_model_first=float(lengths[row]) if verdict.reached[row] else None,
        )
        for row in rows
    )
    told = _told(case, config, name, first, config.steps)
    return replace(first, worst=_recorded((told,), samples)) if rows else first


def better_of(case: Problem, config: AttackConfig, best: Found, other: Found) -> tuple[Found, Tensor]:
    """For each sample the better of two searches, and where that is the other one, bool (B,).

    Better is the smaller one at the goal, else the closer. Statistics of the whole scan change with each sample that is
    taken over. What loses its goal by that is not taken over, and nothing is where the others lose theirs.
    """
    better = _is_better(case, config, other, best)
    joined = best
    while bool(better.any()):
        joined = _joined(case, config, best, other, better)
        lost = (best.reached(case, config) | (better & other.reached(case, config))) & ~joined.reached(case, config)
        if not bool(lost.any()):
            break
        better = better & ~lost & bool((lost & better).any())
        joined = best
    passes = (best.forward + other.forward, best.backward + other.backward)
    return replace(joined, forward=passes[0], backward=passes[1]), better


def with_search(
    case: Problem,
    config: AttackConfig,
    best: Found,
    name: SearchName,
    other: Found,
    given: int,
    began_at: Sequence[SearchName | None] = (),
) -> Found:
    """`better_of` both, with a record of who found what.

    Args:
        best: with a record, see `begun`. given: steps that the other search had. began_at: whose change it began at,
            for each sample; none for one that did not go on from others.
    """
    assert best.worst is not None
    joined, better = better_of(case, config, best, other)
    verdict, lengths = _judged(case, config, joined), _lengths(case, joined)
    samples = tuple(
        replace(
            each,
            found_by=name,
            began_at=began_at[each.sample] if began_at else None,
            reached=bool(verdict.reached[each.sample]),
            l2_model=float(lengths[each.sample]),
        )
        if better[each.sample]
        else each
        for each in best.worst.samples
    )
    return replace(
        joined,
        worst=_recorded((*best.worst.searches, _told(case, config, name, other, given)), samples),
    )


def _recorded(searches: Sequence[SearchTold], samples: Sequence[SampleTold]) -> WorstCase:
    """The record, with how many samples each search found the result of."""
    kept = Counter(each.found_by for each in samples)
    together: dict[SearchName, SearchTold] = {}
    for each in searches:
        before = together.get(each.name)
        # The last search follows more than one loss, each on the samples that it suits.
        joined = each if before is None else _added(before, each)
        together[each.name] = replace(joined, kept=kept[each.name])
    return WorstCase(searches=tuple(together.values()), samples=tuple(samples))


def _added(one: SearchTold, other: SearchTold) -> SearchTold:
    return replace(
        one,
        forward=one.forward + other.forward,
        backward=one.backward + other.backward,
        attacked=one.attacked + other.attacked,
        reached=one.reached + other.reached,
    )


def _joined(case: Problem, config: AttackConfig, best: Found, other: Found, better: Tensor) -> Found:
    """The best so far, with those samples of another search that are better: bool (B,)."""
    rows = torch.nonzero(better).flatten()
    adversarial = Changed(case.seen.clean, best.adversarial.rows)
    adversarial[best.adversarial.rows] = best.adversarial.values
    adversarial[rows] = other.adversarial[rows]
    drawn = case.seen.drawn(adversarial, case.refrozen(adversarial.whole()), like=[best.drawn, other.drawn])
    outcomes = tuple(
        theirs if taken else mine
        for mine, theirs, taken in zip(best.outcomes, other.outcomes, better.tolist(), strict=True)
    )
    estimate = Estimate(*(each.clone() for each in (best.estimate.l2, best.estimate.excess, best.estimate.kkt_cosine)))
    theirs = other.estimate
    estimate[rows] = Estimate(theirs.l2[rows], theirs.excess[rows], theirs.kkt_cosine[rows])
    ended = {row: place for row, place in best.watched.ended.items() if not better[row]}
    return replace(
        best,
        adversarial=adversarial,
        drawn=drawn,
        info=other.info,
        faithful=max((best.faithful, other.faithful), key=_strayed),
        outcomes=outcomes,
        estimate=estimate,
        unknown=no_estimate(config, outcomes),
        # The gradients are those of one network: what the first search saw of them stands for all.
        watched=Watched(best.watched.rows, ended, best.watched.falls),
    )


def _strayed(faithful: Faithfulness) -> float:
    """How far the graph was from the file on what a search found, for comparing."""
    return 0.0 if faithful.record is None else faithful.record.adversarial or 0.0


def _is_better(case: Problem, config: AttackConfig, one: Found, other: Found) -> Tensor:
    """For each sample whether one search has the goal and the other has not, or the smaller change at the goal, or
    where neither reaches it comes closer: bool (B,)."""
    mine, theirs = _judged(case, config, one), _judged(case, config, other)
    smaller = _lengths(case, one) < _lengths(case, other)
    closer = mine.score > theirs.score + SLACK
    return torch.where(theirs.reached, mine.reached & smaller, mine.reached | closer)


def _judged(case: Problem, config: AttackConfig, found: Found) -> Verdict:
    return case.goal(config).judge(found.drawn.labels)


def _lengths(case: Problem, found: Found) -> Tensor:
    """Length of the change of each sample, model units: (B,)."""
    clean = case.seen.clean
    return steps.length((found.adversarial.whole() - clean).div_(per_channel(case.limits.unit, clean)))


def _told(case: Problem, config: AttackConfig, name: SearchName, found: Found, given: int) -> SearchTold:
    """What a search with `given` steps did; it has kept nothing yet."""
    attacked = torch.tensor([outcome is not None for outcome in found.outcomes], device=case.seen.clean.device)
    return SearchTold(
        name=name,
        steps=given,
        forward=found.forward,
        backward=found.backward,
        attacked=int(attacked.sum()),
        reached=int((found.reached(case, config) & attacked).sum()),
        kept=0,
    )
