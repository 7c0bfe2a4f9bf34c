"""The sanity ladder: an attack that works reaches no less with more steps or a larger change, and all
without a limit.

Where it does, the search fails by itself, and what it misses says nothing of the model (Carlini et al., On Evaluating
Adversarial Robustness, 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mafl_cli.codes import Alarm
from mafl_cli.results.trust_report import AlarmRecord, Ladder, Rung

BEHIND = 0.05
"""Score by which a sample must be behind the rung before: two short searches differ by a little."""

_SAID = {"steps": "more steps", "change": "a larger change", "no_limit": "no limit"}


def judged(samples: Sequence[int], rungs: Sequence[Rung]) -> Ladder:
    """The ladder with its broken rungs marked. rungs: in the order in which they were climbed."""
    found: list[Rung] = []
    for number, rung in enumerate(rungs):
        before = rungs[number - 1] if number and rungs[number - 1].more == rung.more else None
        found.append(replace(rung, broken=_is_broken(rung, before)))
    return Ladder(samples=tuple(samples), rungs=tuple(found))


def broken_rungs(ladder: Ladder | None) -> tuple[AlarmRecord, ...]:
    """One that names what more of did not reach more; none where every rung holds."""
    kinds = dict.fromkeys(rung.more for rung in ladder.rungs if rung.broken) if ladder else {}
    if not kinds:
        return ()
    said = Alarm.LADDER.sentence.replace("{}", ", ".join(_SAID[kind] for kind in kinds))
    return (AlarmRecord(code=Alarm.LADDER, sentence=said),)


def _is_broken(rung: Rung, before: Rung | None) -> bool:
    if rung.more == "no_limit":
        return rung.reached < len(rung.score)
    if before is None:
        return False
    # A score far below 0 is no farther from the target than 0: both draw nothing of it.
    return any(max(now, 0.0) < max(then, 0.0) - BEHIND for now, then in zip(rung.score, before.score, strict=True))
