"""Pairs of scans judged from their files: did the attack work, how large was the change, and does the model pass.

Everything is measured again: volumes, masks and hashes come from the files, and a report is only asked what it says
of them. Nothing here looks at a clock: the same files give the same report. Its types: `results.evaluation_report`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mafl_cli.case.problem import Say
from mafl_cli.case.request import ModelRequest
from mafl_cli.codes import Outcome, Untested
from mafl_cli.errors import MaflError, UsageError, place_of
from mafl_cli.judging import chances, detectors, doubts, gates, totals, trials
from mafl_cli.judging.gates import Gate
from mafl_cli.judging.given import Given, Predictions
from mafl_cli.judging.judges import Comparison, Judge
from mafl_cli.judging.pairs import of_files
from mafl_cli.judging.trials import Trials
from mafl_cli.judging.truth import against_truth, true_labels
from mafl_cli.measure import agreement
from mafl_cli.measure.records import Draws, Reach, Size
from mafl_cli.names import outside
from mafl_cli.network import kinds
from mafl_cli.network.device import exactly, pick_device
from mafl_cli.network.reasons import enough_memory
from mafl_cli.network.source import Model
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION, TOOL, Environment, Failure
from mafl_cli.results.evaluation_report import (
    Evaluation,
    FailedCase,
    GoalRecord,
    JudgedCase,
    JudgedMetrics,
    JudgingModel,
    ProvesNothing,
)
from mafl_cli.results.files import PREDICTION_ADVERSARIAL, PREDICTION_CLEAN, TARGET
from mafl_cli.results.recorded import Pair, PairSource, Recorded, changed_files, distinct, of_runs
from mafl_cli.results.report import named_members

# Share of the clean prediction that the attacked model may draw otherwise now: machines round differently.
_MOST_DRIFT = 0.02
# Share of the data range below which a change is dust: 120 dB below it.
_DUST = 1e-6


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What is to be judged, by whom, and what must hold.

    runs: result folders, or folders of them; or else original, adversarial and target: files (several channels
    separated by commas) or folders. models: the first judges, the others are asked whether they are fooled too. Without
    any, a result folder is judged by the model it attacked if that is one of those at_hand; else the predictions in it
    are measured, but prove nothing: no gate passes on them. predictions: what a model drew that is not at hand, instead
    of any. ground_truth: a mask, or a folder of masks by the names of the cases.
    """

    runs: tuple[Path, ...] = ()
    original: str | None = None
    adversarial: str | None = None
    target: str | None = None
    models: tuple[ModelRequest, ...] = ()
    at_hand: tuple[ModelRequest, ...] = ()
    predictions: Predictions | None = None
    device: str = "auto"
    ground_truth: Path | None = None
    trials: Trials = field(default_factory=Trials)
    gates: tuple[Gate, ...] = ()


def run_evaluation(
    request: EvaluateRequest, *, say: Say = lambda line: None, on_case: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Judge every pair and return the report.

    A case of several that cannot be read or judged is an entry with status "failed"; the only one raises.
    Args:
        say: receives one line for each thing a user should know.
        on_case: called before each case with its number and how many there are.
    Raises: the errors of `mafl_cli.errors`.
    """
    sources = _sources(request)
    hashes = {model.model: kinds.digest(model.model, model.opening) for model in (*request.models, *request.at_hand)}
    device = pick_device(request.device)
    cases: list[JudgedCase | FailedCase] = []
    alike: dict[object, list[int]] = {}
    seen: dict[str, JudgingModel] = {}
    for number, source in enumerate(sources):
        if on_case is not None:
            on_case(number, len(sources))
        try:
            pair = source.read()
            if pair.recorded is None:  # What an attack says of its scan it has said.
                for warning in dict.fromkeys(
                    note for scan in (*pair.clean, *pair.adversarial) for note in scan.warnings
                ):
                    say(warning)
            models = request.models or _attacked(pair, request, hashes)
            with exactly(device), enough_memory(", ".join(model.model.name for model in models), "this scan"):
                given = None if request.predictions is None else Given.of(pair, request.predictions, say)
                judges = [Judge.of(pair, model, hashes[model.model], device, say) for model in models]
                for facts in [] if given else [_facts(judge) for judge in judges] or [_recorded_facts(pair)]:
                    seen.setdefault(facts.sha256, facts)
                cases.append(_judged(pair, judges, given, request, say))
            alike.setdefault(_scan_and_target(pair), []).append(number)
        except Exception as exc:
            if len(sources) == 1:
                raise
            failed = _failed(source.case_id, exc)
            cases.append(failed)
            said = failed.error.message
            say(said if said.startswith(f"{source.case_id}: ") else f"{source.case_id}: {said}")
    names = distinct([case.case_id for case in cases], sources)
    cases = [replace(case, case_id=name) for case, name in zip(cases, names, strict=True)]
    cases = doubts.with_budgets(cases, alike.values())
    if request.trials.curve:
        cases = _with_joined_curves(cases, alike.values())
    return Evaluation(
        schema_version=SCHEMA_VERSION,
        tool=TOOL,
        notice=NOTICE,
        command="evaluate",
        environment=Environment.here(device),
        models=tuple(seen.values()),
        trials=request.trials.asked(),
        cases=tuple(cases),
        aggregate=totals.aggregate(cases),
        transfer=totals.transfer(cases),
        survival=totals.survival(cases),
        detection=detectors.over_all(totals.judged(cases)) if request.trials.detect else (),
        gates=tuple(gates.judge(gate, cases) for gate in request.gates),
    )


def _sources(request: EvaluateRequest) -> list[PairSource]:
    found = _pairs(request)
    if request.predictions is not None:
        if request.trials.any:
            raise UsageError(
                "`transforms`, `detect` and `curve` must ask a model, but its predictions were given: leave them out, "
                "or give `model` instead."
            )
        request.predictions.require(found)
    return found


def _pairs(request: EvaluateRequest) -> list[PairSource]:
    files = {"`original`": request.original, "`adversarial`": request.adversarial, "`target`": request.target}
    missing = [parameter for parameter, value in files.items() if value is None]
    if request.runs:
        if len(missing) < len(files):
            raise UsageError(
                "with `runs`, leave out `original`, `adversarial` and `target`: they are in the result folders."
            )
        return of_runs(request.runs)
    if missing:
        raise UsageError(
            f"give `runs`, or all of `original`, `adversarial` and `target`: {', '.join(missing)} missing."
        )
    assert request.original is not None
    assert request.adversarial is not None
    assert request.target is not None
    return of_files(request.original, request.adversarial, request.target)


def _attacked(pair: Pair, request: EvaluateRequest, hashes: Mapping[Model, str]) -> tuple[ModelRequest, ...]:
    """The model that a result folder's run attacked, if it is among those at hand; none where it is not asked."""
    if request.predictions is not None:
        return ()
    assert pair.recorded is not None
    said = pair.recorded.report.model
    found = tuple(model for model in request.at_hand if hashes[model.model] == said.sha256)
    if request.trials.any and not found:
        raise UsageError(
            f"`transforms`, `detect` and `curve` need the model that was attacked: give {outside(said.name)} as "
            "`model`."
        )
    return found[:1]


def _facts(judge: Judge) -> JudgingModel:
    return _named(judge.subject.info.facts())


def _recorded_facts(pair: Pair) -> JudgingModel:
    assert pair.recorded is not None
    model = pair.recorded.report.model
    return _named({**vars(model), "members": [vars(member) for member in model.members or ()]})


def _named(facts: Mapping[str, Any]) -> JudgingModel:
    own = {each.name: facts[each.name] for each in fields(JudgingModel) if each.name != "members"}
    return JudgingModel(**own, members=named_members(facts.get("members", ())))


# --- one case -----------------------------------------------------------------------------------------------------


def _judged(pair: Pair, judges: Sequence[Judge], given: Given | None, request: EvaluateRequest, say: Say) -> JudgedCase:
    """Measure one pair. given: what a model drew that is not at hand; then there are no judges."""
    compared = Comparison.of(pair, judges[0] if judges else given)
    asked = request.trials
    truth = None if request.ground_truth is None else true_labels(pair, compared, request.ground_truth, say)
    quick = compared.quick_agreement(compared.adversarial)
    iou, hit = compared.goal
    reached = compared.reached(compared.adversarial)
    draws = chances.draws_by(judges[0], compared, truth, reached=reached) if judges else None
    said = _record(pair, compared, quick, draws, judge=judges[0] if judges else given)
    attack = None if pair.recorded is None else doubts.told(pair.recorded)
    return JudgedCase(
        case_id=pair.case_id,
        status="ok",
        error=None,
        predictions="recomputed" if judges else "recorded" if given is None else "given",
        given=None if given is None else given.files,
        outcome=None if pair.recorded is None else pair.recorded.case.attack.outcome,
        files_intact=said.files_intact,
        differences=said.differences,
        untested=said.untested,
        attack=attack,
        doubts=() if attack is None else doubts.of_attack(attack, reached=reached),
        goal=GoalRecord(iou=iou, hit=hit, reached=reached),
        metrics=JudgedMetrics(
            clean=compared.agreement(compared.clean),
            post_write=compared.agreement(compared.adversarial),
            consequences=compared.consequences(),
            dice_with_clean=quick.dice_with_clean,
            size=compared.size,
            size_per_channel=compared.size_per_channel,
            visibility=compared.visibility,
            draws=draws,
        ),
        ground_truth=None if truth is None else against_truth(compared, truth),
        transfer=tuple(judge.verdict() for judge in judges[1:]),
        survival=tuple(trials.survival(pair, compared, judges[0], each) for each in asked.transforms),
        detection=detectors.detection(pair, judges[0]) if asked.detect else (),
        curve=trials.curve(pair, compared, judges[0]) if asked.curve else None,
    )


def _failed(case_id: str, exc: Exception) -> FailedCase:
    """What is wrong with one case ends the judgement of no other, an error of ours included."""
    message = str(exc) if isinstance(exc, MaflError) else f"internal error ({type(exc).__name__}{place_of(exc)})."
    return FailedCase(case_id=case_id, status="failed", error=Failure(type=type(exc).__name__, message=message))


@dataclass(frozen=True)
class _Record:
    """Where the files say otherwise than the run's own report, and why the case proves nothing, if so."""

    files_intact: bool | None
    differences: tuple[str, ...]
    untested: ProvesNothing | None


def _record(
    pair: Pair, compared: Comparison, quick: Reach, draws: Draws | None, *, judge: Judge | Given | None
) -> _Record:
    """quick: what the adversarial prediction has of the target. draws: of a model that answers by chance."""
    recorded, unchanged = pair.recorded, _unchanged(pair, compared)
    if unchanged is None and isinstance(judge, Given) and not (judge.clean.any() or judge.adversarial.any()):
        unchanged = _untested(Untested.NOTHING_DRAWN)
    if recorded is None:
        return _Record(None, (), unchanged)
    changed = changed_files(recorded)
    strangers = [Untested.FILE_CHANGED.sentence.format(name) for name in changed]
    redrawn, replaced = _redrawn(recorded, compared, draws) if isinstance(judge, Judge) else ([], None)
    if isinstance(judge, Given):
        # Whoever drew them need not be who was attacked: a run is held to its own masks alone.
        quick, redrawn = _recorded_reach(recorded), list(judge.differences(pair))
    numbers = _differing_numbers(recorded, quick, compared.size, draws)
    # A mask that was put in with its hash is seen by the numbers, which are those of the masks that were written.
    own = _differing_numbers(recorded, _recorded_reach(recorded), compared.size, None) if redrawn else numbers
    model = recorded.report.model.name
    reasons = [
        _untested(Untested.FILE_CHANGED, changed[0]) if changed else None,
        _untested(Untested.NO_GRADIENT) if recorded.case.attack.outcome is Outcome.NO_GRADIENT else None,
        unchanged,
        _untested(Untested.OTHER_NUMBERS, own[0]) if own else None,
        _untested(Untested.OTHER_MODEL, replaced) if replaced else None,
        None if judge is not None else _untested(Untested.NO_MODEL, model),
    ]
    untested = next((reason for reason in reasons if reason is not None), None)
    return _Record(not strangers, (*strangers, *redrawn, *numbers), untested)


def _untested(code: Untested, what: str = "") -> ProvesNothing:
    return ProvesNothing(code=code, sentence=code.sentence.replace("{}", what))


def _unchanged(pair: Pair, compared: Comparison) -> ProvesNothing | None:
    """Why the pair proves nothing: nothing changed, or rounding alone."""
    channels = compared.size_per_channel
    if not any(size.l0.count for size in channels):
        return _untested(Untested.UNCHANGED)
    # As much as float32 can tell apart there.
    spacings = [float(np.spacing(np.abs(scan.data).max())) for scan in pair.clean]
    ends = (max(_DUST * size.data_range.value, least) for size, least in zip(channels, spacings, strict=True))
    if all(size.linf.native <= end for size, end in zip(channels, ends, strict=True)):
        return _untested(Untested.ROUNDING)
    return None


def _redrawn(recorded: Recorded, compared: Comparison, draws: Draws | None) -> tuple[list[str], str | None]:
    """Which masks of the folder the model draws otherwise now, and which shows that it is not what was attacked."""
    differences, reason = [], None
    clean, adversarial = chances.by_chance(draws)
    for name, now, was, chance in (
        (PREDICTION_CLEAN, compared.clean, recorded.prediction_clean, clean),
        (PREDICTION_ADVERSARIAL, compared.adversarial, recorded.prediction_adversarial, adversarial),
    ):
        other = int(np.count_nonzero(now != was)) if now.shape == was.shape else now.size
        if other > chance:
            differences.append(f"{name}: the model draws {other} voxels differently")
        # Other settings, or another model: the attack was made for what is not here.
        if name == PREDICTION_CLEAN and other > chance + _MOST_DRIFT * max(int(np.count_nonzero(was)), 1):
            reason = differences[-1]
    return differences, reason


def _recorded_reach(recorded: Recorded) -> Reach:
    """What the masks in the folder measure among themselves."""
    return agreement.quick_agreement(
        recorded.prediction_adversarial, recorded.target, recorded.prediction_clean, recorded.report.model.drawn
    )


def _differing_numbers(recorded: Recorded, post: Reach, size: Size, draws: Draws | None) -> list[str]:
    """Headline numbers of the report that are not those of the files."""
    was = recorded.case.metrics
    pairs = (
        ("post_write.target_iou", was.post_write.target_iou.value, post.target_iou.value),
        ("post_write.hit_rate", was.post_write.hit_rate.value, post.hit_rate.value),
        ("size.l2.native", was.size.l2.native, size.l2.native),
        ("size.linf.native", was.size.linf.native, size.linf.native),
        ("size.psnr_db", was.size.psnr_db.value, size.psnr_db.value),
    )
    return [
        f"{path}: the report says {old}, the files say {new}"
        for path, old, new in pairs
        if _differ(old, new, chances.width(recorded, draws, path.rpartition(".")[2]) if draws else 0.0)
    ]


def _differ(old: float | None, new: float | None, by_chance: float) -> bool:
    """The clean scan is restored by a float32 subtraction, so the last digits may move; labels may not, but by
    chance."""
    if old is None or new is None:
        return (old is None) != (new is None)
    return abs(old - new) > 1e-3 * max(abs(old), 1e-9) + by_chance


def _scan_and_target(pair: Pair) -> object:
    """Equal for runs that asked the same of the same scan."""
    if pair.recorded is None:
        return pair
    case = pair.recorded.case
    masks = [file.sha256 for file in case.files if file.name == TARGET]
    return (*(each.sha256 for each in case.inputs), *masks, pair.recorded.report.model.sha256)


def _with_joined_curves(
    cases: Sequence[JudgedCase | FailedCase], groups: Iterable[Sequence[int]]
) -> list[JudgedCase | FailedCase]:
    """Runs of one scan and target with different budgets are one curve: each of their cases gets what all show.

    The smallest change at a goal is found among the runs that asked for as much or more.
    """
    found = list(cases)
    for group in groups:
        alone = [
            (number, case, case.curve)
            for number, case in ((number, cases[number]) for number in group)
            if isinstance(case, JudgedCase) and case.curve is not None
        ]
        area = trials.areas(point for _, _, curve in alone for point in curve.points)
        for number, case, curve in alone:
            goal = case.goal
            enough = [other for _, each, other in alone if each.goal.iou >= goal.iou and each.goal.hit >= goal.hit]
            smallest = trials.smallest_of(enough)
            found[number] = replace(case, curve=replace(curve, area=area, smallest_at_goal=smallest, runs=len(alone)))
    return found
