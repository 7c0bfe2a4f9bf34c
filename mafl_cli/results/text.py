"""A report as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from mafl_cli.codes import Alarm, Belief
from mafl_cli.measure.records import (
    MOST_COMPRESSED,
    ClassConsequence,
    Consequences,
    Draws,
    LocalOptimum,
    Size,
    Survival,
    Visibility,
)
from mafl_cli.measure.value import Value
from mafl_cli.names import in_one_line
from mafl_cli.results.detection_report import Evasion
from mafl_cli.results.report import CaseRecord, DryRun, Report
from mafl_cli.results.trust_report import Trust
from mafl_cli.results.worst_report import WorstCase

# Classes of which the consequences are said; a model may have a hundred.
_MOST_CLASSES = 3


def format_dry_run(shown: DryRun) -> str:
    """A table of the voxels of each class before and after, and what would be attacked."""
    samples, voxels = shown.samples, shown.target.voxels
    lines = [
        f"{shown.case_id}: nothing was attacked.",
        f"  {'class':<20} {'clean prediction':>18} {'target':>12} {'change':>12}",
    ]
    for name, before in shown.clean_voxels.items():
        lines.append(f"  {name[:20]:<20} {before:>18} {voxels[name]:>12} {voxels[name] - before:>+12}")
    what = f"{samples.attacked} of {samples.total} slices" if samples.kind == "slices" else "the volume"
    lines.append(f"  {shown.changed_voxels} voxels must change, in {what}.")
    allowed = shown.bounds.allowed_voxels
    if allowed is not None:
        lines.append(f"  {allowed} voxels may be altered.")
    return "\n".join(lines)


def format_summary(report: Report) -> str:
    """The few lines a person wants to see."""
    case = report.case
    attack, post, clean = case.attack, case.metrics.post_write, case.metrics.clean
    samples = attack.samples
    counts = f"   ({samples.reached} of {samples.attacked} attacked slices)" if samples.kind == "slices" else ""
    lines = [
        f"{case.case_id}: {attack.outcome.sentence}",
        f"  visibility    {visible(case.metrics.visibility)}",
        f"  target IoU    {number(post.target_iou)}   (clean scan {number(clean.target_iou)})",
        f"  hit rate      {number(post.hit_rate)}   of {post.changed_voxels} voxels that must change;"
        f" collateral {post.collateral.count} voxels",
        f"  goal reached  {'yes' if attack.goal_reached else 'no'}{counts}",
        *format_consequences(case.metrics.consequences),
        *_format_survival(case.metrics.survival),
        *_format_evasion(case.metrics.evasion),
        *format_draws(case.metrics.draws, attack.draws_a_step),
        *format_size(case.metrics.size),
        *_format_queries(report),
        *_format_local_optimum(attack.local_optimum),
        *_format_worst(attack.worst, samples.kind),
        *_format_stored_grid(case),
        f"  measured on   {case.files[0].name.split('/')[0]}, read again ({case.quantisation[0].dtype})",
        *(
            []
            if attack.trust is None
            else [f"  {'doubtful' if attack.trust.alarms else 'trust':<13} {said_of(attack.trust)}"]
        ),
    ]
    return "\n".join(lines)


def said_of(trust: Trust) -> str:
    """What the checks say of an attack, as a sentence."""
    if trust.alarms:
        # The first says most; all are in the report.
        gradients = trust.alarms[0].code not in (Alarm.NO_LIMIT, Alarm.DUST)
        what = "the result may be the attack's failure" if gradients else "this says nothing of the model"
        return _sentence(f"{trust.alarms[0].sentence}: {what}")
    if not trust.searches:
        return _sentence(trust.verdict.sentence)
    if trust.verdict is Belief.ANSWERED:
        name = trust.found_by.replace("_", " ")
        return _sentence(f"{trust.searches[0].alarms[0].sentence}; the result was found by a {name} gradient")
    explained = trust.searches[0].explained
    if explained is None:
        return _sentence(trust.verdict.sentence)
    return _sentence(f"the gradient explains {100 * explained:.0f} % of how this model answers")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def format_draws(draws: Draws | None, a_step: int | None = None) -> list[str]:
    """What single draws have of the target; nothing where a model always answers the same.

    a_step: how many each step of the search took.
    """
    if draws is None:
        return []
    spans = ", ".join(
        f"{name} {figure.mean:.4f} ({figure.low:.4f} to {figure.high:.4f})"
        for name, figure in (
            ("target IoU", draws.figures.get("target_iou")),
            ("hit rate", draws.figures.get("hit_rate")),
            ("at goal", draws.at_goal),
        )
        if figure is not None
    )
    cost = "" if a_step is None else f"; {a_step} passes for each of a step of the search"
    return [
        f"  single draws  {spans}",
        f"                means of {draws.count} with 95 % intervals; all else is of what most draws have{cost}",
    ]


def visible(found: Visibility) -> str:
    """Whether the change can be seen, as a sentence."""
    ratio, reason = found.compression_equivalent.value, found.compression_equivalent.reason
    if ratio is None:
        return _sentence(f"the change {found.verdict.sentence}: {'' if reason is None else reason.sentence}")
    shown = f"JPEG 2000 at {ratio:.{0 if ratio >= 10 else 1}f}:1{' or more' if ratio >= MOST_COMPRESSED else ''}"
    seen = f"the change {found.verdict.sentence}: slice {found.slice} looks as different as {shown}"
    return f"{_sentence(seen)} No reader was asked."


def format_consequences(found: Consequences) -> list[str]:
    """Where both predictions differ, and the classes whose volume changed most, in ml and mm."""
    redrawn = found.redrawn
    if not redrawn.pieces:
        return []
    pieces = "one region" if redrawn.pieces == 1 else f"{redrawn.pieces} regions"
    changed = sorted(filter(_shows, found.per_class), key=lambda each: abs(each.volume_change_ml), reverse=True)
    left = len(changed) - _MOST_CLASSES
    lines = [
        f"{redrawn.volume_ml:.4g} ml drawn otherwise, in {pieces}, the largest {_short(redrawn.diameter_mm)} mm long",
        *(
            f"{in_one_line(each.name)[:20]}: volume {each.volume_ml.clean:.4g} -> {each.volume_ml.adversarial:.4g} ml, "
            f"diameter {_short(each.diameter_mm.clean)} -> {_short(each.diameter_mm.adversarial)} mm, "
            f"HD95 {_short(each.hd95_mm)} mm"
            for each in changed[:_MOST_CLASSES]
        ),
        *([f"and {left} more classes: in the report"] if left > 0 else []),
    ]
    return [f"  {'' if n else 'consequence':<13} {line}" for n, line in enumerate(lines)]


def _shows(found: ClassConsequence) -> bool:
    """Whether the change of a class is large enough to be seen in rounded numbers."""
    volume = found.volume_ml
    return f"{volume.clean:.4g}" != f"{volume.adversarial:.4g}" or (found.hd95_mm.value or 0) >= 0.05


def _short(value: Value) -> str:
    return "-" if value.value is None else f"{value.value:.1f}"


def format_size(size: Size, *, model_units: bool = True) -> list[str]:
    """model_units: whether it is known what they are."""
    in_model_units = f" (model units {size.l2.model:.4g}, {size.linf.model:.4g})" if model_units else ""
    return [
        f"  change        L2 {size.l2.native:.5g}, Linf {size.linf.native:.5g} native units{in_model_units}",
        f"  PSNR          {number(size.psnr_db, '.2f', ' dB')}   data range {size.data_range.value:.6g}"
        f" ({size.data_range.rule})",
        f"  SSIM          {number(size.ssim.mean, '.5f')}   worst slice {number(size.ssim.worst, '.5f')}",
    ]


def _format_queries(report: Report) -> list[str]:
    """How often a model that only draws was asked; nothing for others."""
    attack = report.case.attack
    queries, trace = attack.queries, attack.trace
    if queries is None:
        return []
    lines = [f"  queries       {queries.asked} of {queries.limit}; nothing but labels was seen"]
    if report.run.settings.untargeted and trace is not None and trace.score and trace.score[-1] is not None:
        lines.append(f"  untargeted    Dice {1 - trace.score[-1]:.4f} with the clean prediction when the search ended")
    return lines


def _format_local_optimum(optimum: LocalOptimum | None) -> list[str]:
    """How far the change is above the local optimum; nothing where that is not known."""
    if optimum is None or optimum.excess.value is None:
        return []
    known = optimum.excess_per_sample.values()
    most = f", {max(known):.1%} in the worst slice" if len(known) > 1 else ""
    return [f"  excess        {optimum.excess.value:.1%} above the local optimum, estimated to first order{most}"]


def _format_survival(found: Sequence[Survival] | None) -> list[str]:
    """What is left after each transform that the change was to survive."""
    if found is None:
        return []
    held = sum(each.goal_reached for each in found)
    left = ", ".join(f"{each.transform} {number(each.adversarial.hit_rate)}" for each in found)
    return [f"  survives      {held} of {len(found)} transforms at the goal; hit rate after {left}"]


def _format_evasion(found: Sequence[Evasion] | None) -> list[str]:
    """How many slices, or volumes, have no higher score by each detector than before the attack."""
    if found is None:
        return []

    def told(each: Evasion) -> str:
        return f"{each.detector} {len(each.samples) - each.above} of {len(each.samples)}"

    asked = ", ".join(told(each) for each in found if each.asked)
    others = ", ".join(told(each) for each in found if not each.asked)
    return [f"  evades        {asked}{f'   (not asked for: {others})' if others else ''}"]


def _format_worst(worst: WorstCase | None, kind: str) -> list[str]:
    """Which searches shared the steps, and whose results were kept; nothing for a single search."""
    if worst is None:
        return []
    named = [(each.name.replace("_", " "), each) for each in worst.searches]
    shares = ", ".join(f"{name} {each.steps}" for name, each in named)
    kept = ", ".join(f"{name} {each.kept}" for name, each in named if each.kept)
    found = f"kept of {kept} slices" if kind == "slices" else f"kept of {kept.rpartition(' ')[0]}"
    return [f"  worst of      {shares} steps; {found}"]


def _format_stored_grid(case: CaseRecord) -> list[str]:
    """What the integers of the file did to the attack; nothing where it holds floats."""
    steps = [f"{each.step_native:.4g}" for each in case.quantisation if each.step_native is not None]
    if not steps:
        return []
    channels = [each for each in case.quantisation if each.step_native is not None]
    changed = max(each.fraction_changed for each in channels)
    clipped = max(each.fraction_clipped for each in channels)
    return [
        f"  stored grid   step {', '.join(steps)} native; {changed:.2%} of the voxels changed, {clipped:.2%} of these"
        f" clipped; IoU in memory {number(case.metrics.in_memory.target_iou)},"
        f" in the file {number(case.metrics.post_write.target_iou)}"
    ]


def number(entry: Value, form: str = ".4f", unit: str = "") -> str:
    if entry.reason is not None:
        return f"undefined ({entry.reason.sentence})"
    return f"{entry.value:{form}}{unit}"
