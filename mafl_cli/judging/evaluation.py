"""Pairs of scans judged from their files: did the attack work, how large was the change, and does the model pass.

Everything is measured again: volumes, masks and hashes come from the files, and a report is only asked what it says
of them. Nothing here looks at a clock: the same files give the same report. Schema: `evaluation.schema.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mafl_cli import __version__
from mafl_cli.case.problem import Say
from mafl_cli.case.request import ModelRequest
from mafl_cli.codes import Outcome, Reason, Untested
from mafl_cli.errors import MaflError, UsageError, place_of
from mafl_cli.judging import gates, quantities, trials
from mafl_cli.judging.gates import Gate
from mafl_cli.judging.judges import Comparison, Judge
from mafl_cli.judging.pairs import mask_of, of_files
from mafl_cli.judging.trials import Trials
from mafl_cli.measure import agreement
from mafl_cli.network.device import pick_device
from mafl_cli.results import folder
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION, Environment
from mafl_cli.results.files import PREDICTION_ADVERSARIAL, PREDICTION_CLEAN, TARGET
from mafl_cli.results.recorded import Pair, Recorded, Source, changed_files, distinct, of_runs
from mafl_cli.scans.masks import Masks, read_masks
from mafl_cli.system.records import plain

SCHEMA = Path(__file__).parents[1] / "results" / "schemas" / "evaluation.schema.json"

# Share of the clean prediction that the attacked model may draw otherwise now: machines round differently.
_MOST_DRIFT = 0.02
# Of the data range: no larger change is there for a 32-bit float.
_ROUNDING = 2.0**-23


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What is to be judged, by whom, and what must hold.

    runs: result folders, or folders of them; or else original, adversarial and target: files (several channels
    separated by commas) or folders. models: the first judges, the others are asked whether they are fooled too. Without
    any, a result folder is judged by the model it attacked if that is one of those at_hand; else the predictions in it
    are measured, but prove nothing: no gate passes on them. ground_truth: a mask, or a folder of masks by the names of
    the cases.
    """

    runs: tuple[Path, ...] = ()
    original: str | None = None
    adversarial: str | None = None
    target: str | None = None
    models: tuple[ModelRequest, ...] = ()
    at_hand: tuple[ModelRequest, ...] = ()
    device: str = "auto"
    ground_truth: Path | None = None
    trials: Trials = field(default_factory=Trials)
    gates: tuple[Gate, ...] = ()


def run_evaluation(
    request: EvaluateRequest, *, say: Say = lambda line: None, on_case: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Judge every pair and return the report (see `evaluation.schema.json`).

    A case of several that cannot be read or judged is an entry with status "failed"; the only one raises.
    Args:
        say: receives one line for each thing a user should know.
        on_case: called before each case with its number and how many there are.
    Raises: the errors of `mafl_cli.errors`.
    """
    sources = _sources(request)
    hashes = {model.model: _hash(model.model) for model in (*request.models, *request.at_hand)}
    device = pick_device(request.device)
    cases: list[dict[str, Any]] = []
    alike: dict[object, list[dict[str, Any]]] = {}
    seen: dict[str, Mapping[str, Any]] = {}
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
            judges = [Judge.of(pair, model, hashes[model.model], device, say) for model in models]
            for facts in [_facts(judge) for judge in judges] or [_recorded_facts(pair)]:
                seen.setdefault(facts["sha256"], facts)
            cases.append(_judged(pair, judges, request, say))
            alike.setdefault(_scan_and_target(pair), []).append(cases[-1])
        except Exception as exc:
            if len(sources) == 1:
                raise
            cases.append(_failed(source.case_id, exc))
            said = cases[-1]["error"]["message"]
            say(said if said.startswith(f"{source.case_id}: ") else f"{source.case_id}: {said}")
    for case, name in zip(cases, distinct([case["case_id"] for case in cases], sources), strict=True):
        case["case_id"] = name
    if request.trials.curve:
        _join_curves(alike.values())
    found = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "mafl", "version": __version__},
        "notice": NOTICE,
        "command": "evaluate",
        "environment": plain(Environment.here(device)),
        "models": list(seen.values()),
        "trials": {
            "transforms": [each.name for each in request.trials.transforms],
            "detector": trials.DETECTOR.name if request.trials.detect else None,
            "curve_budgets": list(trials.CURVE_BUDGETS) if request.trials.curve else None,
            "curve_end": trials.CURVE_END if request.trials.curve else None,
        },
        "cases": cases,
        "aggregate": quantities.statistics_of(cases),
        "transfer": _transfer(cases),
        "survival": _survival(cases),
        "detection": trials.roc(_samples(cases)) if request.trials.detect else None,
    }
    return {
        **found,
        "gates": [gates.judge(gate, cases) for gate in request.gates],
    }


def _sources(request: EvaluateRequest) -> list[Source]:
    files = {"--original": request.original, "--adversarial": request.adversarial, "--target": request.target}
    missing = [option for option, value in files.items() if value is None]
    if request.runs:
        if len(missing) < len(files):
            raise UsageError("a RUN brings its own files: leave out --original, --adversarial and --target.")
        return of_runs(request.runs)
    if missing:
        raise UsageError(f"give RUN, or all of --original, --adversarial and --target ({', '.join(missing)} missing).")
    assert request.original is not None
    assert request.adversarial is not None
    assert request.target is not None
    return of_files(request.original, request.adversarial, request.target)


def _attacked(pair: Pair, request: EvaluateRequest, hashes: Mapping[Path, str]) -> tuple[ModelRequest, ...]:
    """Of the models at hand the one that a result folder's run attacked, if it is there."""
    assert pair.recorded is not None
    said = pair.recorded.report.model
    found = tuple(model for model in request.at_hand if hashes[model.model] == said.sha256)
    if request.trials.any and not found:
        raise UsageError(f"--transform, --detect and --curve ask the model: give {said.name} with --model.")
    return found[:1]


def _hash(model: Path) -> str:
    try:
        return folder.sha256(model)
    except OSError:
        return ""  # The loader says what is wrong with it.


def _facts(judge: Judge) -> dict[str, Any]:
    info = judge.subject.info
    return {
        "name": info.name,
        "sha256": info.sha256,
        "classes": list(info.classes),
        "overlapping": info.overlapping,
        "assumptions": list(info.assumptions),
    }


def _recorded_facts(pair: Pair) -> dict[str, Any]:
    assert pair.recorded is not None
    said = plain(pair.recorded.report.model)
    return {key: said[key] for key in ("name", "sha256", "classes", "overlapping", "assumptions")}


# --- one case -----------------------------------------------------------------------------------------------------


def _judged(pair: Pair, judges: Sequence[Judge], request: EvaluateRequest, say: Say) -> dict[str, Any]:
    """Measure one pair; see `cases` in the schema."""
    compared = Comparison.of(pair, judges[0] if judges else None)
    asked = request.trials
    truth = None if request.ground_truth is None else mask_of(request.ground_truth, pair.case_id)
    return {
        "case_id": pair.case_id,
        "status": "ok",
        "error": None,
        **_record(pair, compared, judged=bool(judges)),
        "goal": {"iou": compared.goal[0], "hit": compared.goal[1], "reached": compared.reached(compared.adversarial)},
        "metrics": {
            "clean": compared.agreement(compared.clean),
            "post_write": compared.agreement(compared.adversarial),
            "dice_with_clean": compared.reach(compared.adversarial)["dice_with_clean"],
            **compared.size,
        },
        "ground_truth": None if truth is None else _against_truth(pair, compared, truth, say),
        "transfer": [judge.verdict() for judge in judges[1:]],
        "survival": [trials.survival(pair, compared, judges[0], each) for each in asked.transforms],
        "detection": trials.detection(pair, judges[0]) if asked.detect else None,
        "curve": trials.curve(pair, compared, judges[0]) if asked.curve else None,
    }


def _failed(case_id: str, exc: Exception) -> dict[str, Any]:
    """What is wrong with one case ends the judgement of no other, an error of ours included."""
    message = str(exc) if isinstance(exc, MaflError) else f"internal error ({type(exc).__name__}{place_of(exc)})."
    return {"case_id": case_id, "status": "failed", "error": {"type": type(exc).__name__, "message": message}}


def _record(pair: Pair, compared: Comparison, *, judged: bool) -> dict[str, Any]:
    """What the run's own report says, where the files say otherwise, and why the case proves nothing, if so."""
    recorded, unchanged = pair.recorded, _unchanged(compared)
    if recorded is None:
        return {
            "predictions": "recomputed", "outcome": None, "files_intact": None, "differences": [],
            "untested": unchanged,
        }  # fmt: skip
    changed = changed_files(recorded)
    strangers = [Untested.FILE_CHANGED.sentence.format(name) for name in changed]
    outcome = recorded.case.attack.outcome
    redrawn, replaced = _redrawn(recorded, compared) if judged else ([], None)
    numbers = _differing_numbers(recorded, compared.reach(compared.adversarial), compared.size)
    # A mask that was put in with its hash is seen by the numbers, which are those of the masks that were written.
    own = _differing_numbers(recorded, _recorded_reach(recorded), compared.size) if redrawn else numbers
    model = recorded.report.model.name
    reasons = [
        _untested(Untested.FILE_CHANGED, changed[0]) if changed else None,
        _untested(Untested.NO_GRADIENT) if outcome == Outcome.NO_GRADIENT else None,
        unchanged,
        _untested(Untested.OTHER_NUMBERS, own[0]) if own else None,
        _untested(Untested.OTHER_MODEL, replaced) if replaced else None,
        None if judged else _untested(Untested.NO_MODEL, model),
    ]
    return {
        "predictions": "recomputed" if judged else "recorded",
        "outcome": outcome.value,
        "files_intact": not strangers,
        "differences": [*strangers, *redrawn, *numbers],
        "untested": next((reason for reason in reasons if reason is not None), None),
    }


def _untested(code: Untested, what: str = "") -> dict[str, str]:
    return {"code": code.value, "sentence": code.sentence.replace("{}", what)}


def _unchanged(compared: Comparison) -> dict[str, str] | None:
    """Why the pair shows nothing: there is no change, or none that is more than rounding."""
    channels = compared.size["size_per_channel"]
    if not any(each["l0"]["count"] for each in channels):
        return _untested(Untested.UNCHANGED)
    if all(each["linf"]["native"] <= _ROUNDING * each["data_range"]["value"] for each in channels):
        return _untested(Untested.ROUNDING)
    return None


def _redrawn(recorded: Recorded, compared: Comparison) -> tuple[list[str], str | None]:
    """Which masks of the folder the model draws otherwise now, and which shows that it is not what was attacked."""
    differences, reason = [], None
    for name, now, was in (
        (PREDICTION_CLEAN, compared.clean, recorded.prediction_clean),
        (PREDICTION_ADVERSARIAL, compared.adversarial, recorded.prediction_adversarial),
    ):
        other = int(np.count_nonzero(now != was)) if now.shape == was.shape else now.size
        if other:
            differences.append(f"{name}: the model draws {other} voxels otherwise")
        # Other settings, or another model: the attack was made for what is not here.
        if name == PREDICTION_CLEAN and other > _MOST_DRIFT * max(int(np.count_nonzero(was)), 1):
            reason = differences[-1]
    return differences, reason


def _recorded_reach(recorded: Recorded) -> dict[str, Any]:
    """What the masks in the folder measure among themselves."""
    model = recorded.report.model
    found = agreement.reach(
        recorded.prediction_adversarial,
        recorded.target,
        recorded.prediction_clean,
        classes=len(model.classes),
        overlapping=model.overlapping,
    )
    return dict(plain(found))


def _differing_numbers(recorded: Recorded, post: Mapping[str, Any], size: Mapping[str, Any]) -> list[str]:
    """Headline numbers of the report that are not those of the files."""
    differences = []
    for path, old, new in _headline_pairs(plain(recorded.case.metrics), {"post_write": post, **size}):
        # The clean scan is restored by a float32 subtraction, so the last digits may move; labels may not.
        if (old is None) != (new is None) or (old is not None and abs(old - new) > 1e-3 * max(abs(old), 1e-9)):
            differences.append(f"{path}: the report says {old}, the files say {new}")
    return differences


def _headline_pairs(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    pairs = [
        (f"post_write.{key}", was["post_write"][key]["value"], now["post_write"][key]["value"])
        for key in ("target_iou", "hit_rate")
    ]
    pairs += [(f"size.{key}.native", was["size"][key]["native"], now["size"][key]["native"]) for key in ("l2", "linf")]
    return [*pairs, ("size.psnr_db", was["size"]["psnr_db"]["value"], now["size"]["psnr_db"]["value"])]


def _against_truth(pair: Pair, compared: Comparison, path: Path, say: Say) -> dict[str, Any]:
    """Both predictions against the true classes: what the model was worth, and what the attack takes away."""
    mask = read_masks((path,), pair.clean[0], compared.names, Masks(adjustable=False), overlapping=compared.overlapping)
    for warning in mask.warnings:
        say(warning)
    both: dict[str, Any] = {}
    for name, labels in (("clean", compared.clean), ("adversarial", compared.adversarial)):
        found = compared.agreement(labels, mask.labels)
        both[name] = {"dice": found["target_dice"], "iou": found["target_iou"], "per_class": found["per_class"]}
    before, after = (both[name]["dice"]["value"] for name in ("clean", "adversarial"))
    undefined = {"value": None, "reason": Reason.TRUTH_HAS_NO_FOREGROUND}
    for name in both:
        for key in ("dice", "iou"):
            if both[name][key]["value"] is None:
                both[name][key] = undefined
    return {**both, "dice_drop": undefined if before is None else {"value": before - after}}


def _scan_and_target(pair: Pair) -> object:
    """Equal for runs that asked the same of the same scan."""
    if pair.recorded is None:
        return pair
    case = pair.recorded.case
    masks = [file.sha256 for file in case.files if file.name == TARGET]
    return (*(each.sha256 for each in case.inputs), *masks, pair.recorded.report.model.sha256)


def _join_curves(groups: Iterable[Sequence[dict[str, Any]]]) -> None:
    """Runs of one scan and target with different budgets are one curve: each of their cases gets what all show.

    The smallest change at a goal is found among the runs that asked for as much or more.
    """
    for group in groups:
        alone = [(case["goal"], dict(case["curve"])) for case in group]
        for case in group:
            enough = [curve for goal, curve in alone if all(goal[key] >= case["goal"][key] for key in ("iou", "hit"))]
            together = trials.joined([curve for _, curve in alone])
            smallest = trials.joined(enough)["smallest_at_goal"]
            case["curve"] |= {**together, "smallest_at_goal": smallest, "runs": len(group)}


# --- over all cases -----------------------------------------------------------------------------------------------


def _transfer(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the cases for each model that was not attacked."""
    done = [entry for case in cases if case["status"] == "ok" for entry in case["transfer"]]
    names = {entry["sha256"]: entry["model"] for entry in done}
    return [
        {
            "model": name,
            "sha256": sha256,
            **_means(
                [each for each in done if each["sha256"] == sha256], ("target_iou", "hit_rate", "dice_with_clean")
            ),
        }
        for sha256, name in names.items()
    ]


def _survival(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the cases for each transform."""
    done = [entry for case in cases if case["status"] == "ok" for entry in case["survival"]]
    return [
        {
            "transform": name,
            **_means([each for each in done if each["transform"] == name], ("target_iou", "hit_rate", "restored")),
            "clean_dice": _mean([each["clean"]["dice_with_clean"] for each in done if each["transform"] == name]),
        }
        for name in dict.fromkeys(entry["transform"] for entry in done)
    ]


def _means(entries: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    return {"n": len(entries), **{key: _mean([entry["adversarial"][key] for entry in entries]) for key in keys}}


def _mean(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over those that are defined."""
    values = [entry["value"] for entry in entries if entry["value"] is not None]
    return {"value": float(np.mean(values))} if values else {"value": None, "reason": entries[0]["reason"]}


def _samples(cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [sample for case in cases if case["status"] == "ok" for sample in case["detection"]["samples"]]
