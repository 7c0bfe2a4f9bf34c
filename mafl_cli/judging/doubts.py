"""Why an attack may have failed, rather than the model held: from its report, and from other runs of the same scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mafl_cli.codes import Alarm
from mafl_cli.config import LABEL_ONLY
from mafl_cli.names import in_one_line
from mafl_cli.results.evaluation_report import AttackTold, FailedCase, JudgedCase
from mafl_cli.results.recorded import Recorded
from mafl_cli.results.trust_report import AlarmRecord

# IoU by which the run with the larger budget must be behind: two searches of one scan differ by a little.
_BEHIND = 0.05


def told(recorded: Recorded) -> AttackTold:
    """What the report of a run says that was tried."""
    settings, bounds = recorded.report.run.settings, recorded.case.bounds
    return AttackTold(
        method=settings.method,
        steps=settings.steps,
        norm=bounds.norm,
        eps_native=bounds.eps_native,
        confined=bounds.allowed_voxels is not None or bool(settings.attack_channels),
        trust=recorded.case.attack.trust,
    )


def of_attack(attack: AttackTold, *, reached: bool) -> tuple[AlarmRecord, ...]:
    """Doubts about one run. reached: whether the goal is, measured again."""
    if attack.method == LABEL_ONLY:
        return () if reached else (_alarm(Alarm.LABEL_ONLY, str(attack.steps)),)
    if attack.trust is None:
        return (_alarm(Alarm.NOT_CHECKED),)
    found = [alarm for alarm in attack.trust.alarms if alarm.code is not Alarm.NO_LIMIT]
    if not reached and attack.eps_native is None and not attack.confined:
        found.append(_alarm(Alarm.NO_LIMIT))
    return tuple(found)


def with_budgets(
    cases: Sequence[JudgedCase | FailedCase], groups: Iterable[Sequence[int]]
) -> list[JudgedCase | FailedCase]:
    """Cases with the doubt that a run of the same scan and target reached more though it was allowed less.

    groups: which cases asked the same of the same scan.
    """
    found = list(cases)
    for group in groups:
        runs = [(number, case) for number, case in enumerate(cases) if number in group and isinstance(case, JudgedCase)]
        for number, case in runs:
            better = next((other for _, other in runs if _shows_more(other, case)), None)
            if better is not None:
                alarm = _alarm(Alarm.MORE_BUDGET, in_one_line(better.case_id))
                found[number] = replace(case, doubts=(*case.doubts, alarm))
    return found


def _shows_more(smaller: JudgedCase, larger: JudgedCase) -> bool:
    """Whether a run got clearly farther with less than another one with more, both in the same way."""
    one, other = smaller.attack, larger.attack
    if one is None or other is None or one.eps_native is None or one.confined or other.confined:
        return False
    if (one.method, smaller.goal.iou, smaller.goal.hit) != (other.method, larger.goal.iou, larger.goal.hit):
        return False
    if one.steps > other.steps or larger.goal.reached:
        return False
    if other.eps_native is not None:
        pairs = list(zip(one.eps_native, other.eps_native, strict=True))
        if one.norm != other.norm or any(a > b for a, b in pairs) or all(a == b for a, b in pairs):
            return False
    scores = [case.metrics.post_write.target_iou.value for case in (smaller, larger)]
    if scores[0] is None or scores[1] is None:
        return smaller.goal.reached
    return smaller.goal.reached or scores[0] > scores[1] + _BEHIND


def _alarm(code: Alarm, what: str = "") -> AlarmRecord:
    return AlarmRecord(code=code, sentence=code.sentence.replace("{}", what))
