"""What `mafl attack --universal` does: one change for all scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mafl_cli.cli.console import Voice, deliver, progress_of_cases
from mafl_cli.cli.reading import between_commas
from mafl_cli.errors import GateError, PartialError, UsageError

if TYPE_CHECKING:
    from mafl_cli.batch.local import Row
    from mafl_cli.case.request import AttackRequest
    from mafl_cli.listing.cases import CaseFiles

METHOD = "mifgsm"
"""Whose steps are taken unless another method is asked for: mafl's own seek a change of their own for each scan."""
_SETTINGS: dict[str, Any] = {"step": "cosine", "after_goal": "continue"}
"""What differs from it: steps that grow finer, and no end at the goal, so that scans held out are fooled too."""


def method_of(name: str, chosen: Mapping[str, Any], ball: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The method and its settings for one change: those that were asked for, or what suits it.

    ball: the settings of the limit, see `reading.read_ball`.
    """
    if name != "mafl":
        return name, dict(chosen)
    return METHOD, {**{key: value for key, value in _SETTINGS.items() if key not in ball}, **chosen}


def read_holdout(text: str | None) -> float | tuple[str, ...]:
    """A share from 0 to below 1, or names of cases between commas; none if there is no text.

    Raises: UsageError for another number.
    """
    if text is None:
        return ()
    try:
        share = float(text)
    except ValueError:
        return between_commas(text, "--holdout")
    if not 0 <= share < 1:
        raise UsageError(f"--holdout must be a share from 0 to below 1, or names of cases, got {share:g}.")
    return share


def attack_together(
    cases: Sequence[CaseFiles],
    attack: AttackRequest,
    holdout: float | tuple[str, ...],
    json_file: str | None,
    voice: Voice,
    *,
    require_success: bool,
) -> None:
    """Find one change for all cases; what goes wrong with some of them is said, and ends in exit code 6."""
    from mafl_cli.batch import universal, universal_summary
    from mafl_cli.listing.cases import redacted
    from mafl_cli.search.loop import StepRecord

    request = universal.UniversalRequest(
        cases=tuple(redacted(cases) if attack.redact else cases),
        attack=attack,
        out=attack.out,
        holdout=holdout,
        overwrite=attack.overwrite,
    )
    with progress_of_cases(voice, "step") as bar:

        def ended(case_id: str, row: Row) -> None:
            what = "done" if row.error is None else f"failed: {row.error.message}"
            for line in row.said:
                voice.detail(f"{case_id}: {line}", case_id=case_id)
            bar.write(lambda: voice.say(f"{case_id}: {what}", case_id=case_id, status=row.status))

        def stepped(total: int, record: StepRecord) -> None:
            bar.show(record.step + 1, total)

        whole = universal.run_universal(request, say=voice.say, on_step=stepped, on_row=ended)
    deliver(whole, universal_summary.format_universal(whole), json_file, voice)
    failed = sum(case.error is not None for case in whole.cases)
    if failed:
        raise PartialError(f"{failed} of {len(whole.cases)} cases failed; failed.txt says why.")
    missed = sum(not case.goal_reached for case in whole.cases)
    if require_success and missed:
        raise GateError(f"--require-success: the goal was not reached in {missed} of {len(whole.cases)} cases.")
