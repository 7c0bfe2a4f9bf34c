"""Who judges: a model and what it draws on a pair of scans, and the labels that are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from mafl_cli.case import faithful
from mafl_cli.case.closed import subject_of
from mafl_cli.case.problem import Say, goal_of, spoilt
from mafl_cli.case.request import ModelRequest
from mafl_cli.case.subject import Subject
from mafl_cli.classes import Classes, Labels
from mafl_cli.config import AttackConfig
from mafl_cli.errors import InputError, UsageError
from mafl_cli.judging.given import Given
from mafl_cli.measure import agreement as metrics
from mafl_cli.measure import perturbation
from mafl_cli.measure.consequences import consequences
from mafl_cli.measure.records import Agreement, Consequences, Reach, Size, Unsettled, Visibility
from mafl_cli.measure.visibility import visibility_of
from mafl_cli.names import as_keys, public_name
from mafl_cli.network import kinds
from mafl_cli.network.card import check_orientation
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.source import Closed, Joined
from mafl_cli.results import files
from mafl_cli.results.evaluation_report import Transfer
from mafl_cli.results.recorded import Pair
from mafl_cli.results.report import IntensityRecord, Model
from mafl_cli.scans import masks
from mafl_cli.scans.body import unmeasured
from mafl_cli.scans.masks import Masks


def _as_attacked(model: ModelRequest, sha256: str, pair: Pair) -> ModelRequest:
    """For the model that was attacked: the settings it was attacked with, where the user gives no other."""
    recorded = pair.recorded
    if recorded is None or recorded.report.model.sha256 != sha256:
        return model
    said, settings = recorded.report.model, recorded.report.run.settings
    if isinstance(model.model, Closed):
        return replace(
            model,
            mode=settings.mode if model.mode == "auto" else model.mode,
            slice_axis=model.slice_axis or settings.slice_axis,
            intensity=model.intensity or Intensity(**_given(said.intensity)),
            classes=model.classes or said.classes,
        )
    given = _given(said.intensity)
    try:
        orientation = check_orientation(said.orientation)
        intensity = _in_order(model, recorded.report.model) if said.intensity.kind == "members" else Intensity(**given)
    except UsageError as exc:
        raise InputError(f"{public_name(recorded.folder)}/{files.REPORT}: {as_keys(str(exc))}") from exc
    return replace(
        model,
        mode=settings.mode if model.mode == "auto" else model.mode,
        slice_axis=model.slice_axis or settings.slice_axis,
        orientation=model.orientation or orientation,
        intensity=model.intensity or intensity,
        spacing=model.spacing or settings.spacing or "native",
        roi=model.roi or settings.roi or "none",
        overlap=settings.overlap if model.overlap is None else model.overlap,
        folds=model.folds or settings.folds,
        mirror=settings.mirror if model.mirror is None else model.mirror,
    )


def _in_order(model: ModelRequest, said: Model) -> Intensity:
    """What each member of an ensemble had in the attack, in the order in which the members are given now."""
    assert isinstance(model.model, Joined)
    had = [(member.sha256, Intensity(**_given(member.intensity))) for member in said.members or ()]
    both = zip(model.model.models, kinds.openings(model.model, model.opening), strict=True)
    found = []
    for digest in (kinds.digest(member, how) for member, how in both):
        # Each is taken once: a file may be a member twice.
        found.append(had.pop(next(place for place, (sha256, _) in enumerate(had) if sha256 == digest)))
    return Intensity(kind="members", each=tuple(intensity for _, intensity in found))


def _given(intensity: IntensityRecord) -> dict[str, Any]:
    """A record of a scaling as arguments of an `Intensity`."""
    given = {key: value for key, value in vars(intensity).items() if value is not None}
    if intensity.each is not None:
        given["each"] = tuple(Intensity(**_given(one)) for one in intensity.each)
    return given


@dataclass(frozen=True, eq=False)
class Judge:
    """A model, and what it draws on the clean and the adversarial scan.

    clean_draws, adversarial_draws: of a model that answers by chance, what each draw has; else none. unsettled: how
    far that can be told.
    """

    subject: Subject
    clean: Labels
    adversarial: Labels
    target: Labels
    clean_draws: tuple[Labels, ...]
    adversarial_draws: tuple[Labels, ...]
    unsettled: Unsettled

    @staticmethod
    def of(pair: Pair, model: ModelRequest, sha256: str, device: torch.device, say: Say) -> Judge:
        """Let a model draw both scans. sha256: of its file; the attacked model sees them as it did in the attack.

        Raises: as `case.subject.prepare_subject` and `scans.masks.read_masks`.
        """
        subject = subject_of(pair.clean, _as_attacked(model, sha256, pair), device, say)
        # A target that cannot be used should not take two predictions to find out.
        target = _target(pair, subject, say)
        if subject.oracle is None:
            subject = faithful.looked_for_chance_in_scan(subject, [each.data for each in pair.adversarial])
        clean, adversarial = (
            subject.drawn_on([each.data for each in scans]) for scans in (pair.clean, pair.adversarial)
        )
        return Judge(
            subject,
            subject.to_labels(clean.labels),
            subject.to_labels(adversarial.labels),
            target,
            tuple(map(subject.to_labels, clean.draws)),
            tuple(map(subject.to_labels, adversarial.draws)),
            Unsettled(clean=clean.unsettled, adversarial=adversarial.unsettled),
        )

    def verdict(self) -> Transfer:
        """What a model that was not attacked draws, and whether the attack fools it."""
        info = self.subject.info

        def quick(labels: Labels) -> Reach:
            return metrics.quick_agreement(labels, self.target, self.clean, info.classes)

        return Transfer(
            model=info.name, sha256=info.sha256, clean=quick(self.clean), adversarial=quick(self.adversarial)
        )


def _target(pair: Pair, subject: Subject, say: Say) -> Labels:
    """The target with the classes of this model."""
    info = subject.info
    if pair.recorded is None:
        found = masks.read_masks(pair.target, pair.clean[0], info.classes, Masks(adjustable=False))
        for warning in found.warnings:
            say(warning)
        return found.labels
    target, classes, named = pair.recorded.target, info.classes, pair.recorded.report.model.drawn
    if named.overlapping != classes.overlapping:
        raise InputError(
            f"{info.name}: cannot be compared with the attacked model: one has overlapping regions, the other does not."
        )
    if not classes.hold(target):
        raise InputError(
            f"{info.name}: draws {', '.join(classes.names)}; the target of {pair.case_id} has more classes: give "
            "a model with the same."
        )
    if classes != named:
        say(
            f"{info.name} draws {', '.join(classes.names)}; the target has {', '.join(named.names)}: "
            "classes are compared by their numbers."
        )
    return target


@dataclass(frozen=True, eq=False)
class Comparison:
    """The labels that are compared, as the model draws them, as given, or from the folder; and the change."""

    classes: Classes
    clean: Labels
    adversarial: Labels
    target: Labels
    goal: tuple[float, float]
    spacing: tuple[float, float, float]
    slice_axis: int
    size: Size
    size_per_channel: tuple[Size, ...]
    visibility: Visibility
    untargeted: bool = False

    @staticmethod
    def of(pair: Pair, judge: Judge | Given | None) -> Comparison:
        recorded, scan = pair.recorded, pair.clean[0]
        defaults = AttackConfig()
        goal = (defaults.goal_iou, defaults.goal_hit)
        if recorded is not None:
            settings = recorded.report.run.settings
            goal = (settings.goal_iou, settings.goal_hit)
        if isinstance(judge, Given):
            classes, channels, slice_axis = judge.classes, judge.channels, judge.slice_axis
            clean, adversarial, target = judge.clean, judge.adversarial, judge.target
            units = list(judge.units)
        elif judge is not None:
            info = judge.subject.info
            classes, channels = info.classes, info.channels
            clean, adversarial, target = judge.clean, judge.adversarial, judge.target
            units = [float(unit) for unit in judge.subject.preprocessing.unit]
            slice_axis = judge.subject.slices.index
        else:
            assert recorded is not None
            said = recorded.report.model
            classes, channels = said.drawn, said.channels
            clean, adversarial = recorded.prediction_clean, recorded.prediction_adversarial
            target = recorded.target
            units = list(recorded.case.space.native_units_per_model_unit)
            slice_axis = recorded.case.space.slice_axis.index
        size, per_channel = perturbation.size_of_channels(
            pair.clean, pair.adversarial, units=units, channels=channels, slice_axis=slice_axis
        )
        visibility = visibility_of(
            pair.clean,
            pair.adversarial,
            channels=channels,
            slice_axis=slice_axis,
            outside=[unmeasured(each) for each in pair.clean],
        )
        return Comparison(
            classes,
            clean,
            adversarial,
            target,
            goal,
            scan.spacing,
            slice_axis,
            size,
            per_channel,
            visibility,
            untargeted=recorded is not None and recorded.report.run.settings.untargeted is True,
        )

    def agreement(self, labels: Labels, target: Labels | None = None) -> Agreement:
        return metrics.agreement(
            labels,
            self.target if target is None else target,
            self.clean if target is None else target,
            self.classes,
            spacing=self.spacing,
        )

    def consequences(self) -> Consequences:
        return consequences(self.clean, self.adversarial, self.classes, spacing=self.spacing)

    def quick_agreement(self, labels: Labels) -> Reach:
        return metrics.quick_agreement(labels, self.target, self.clean, self.classes)

    def reached(self, labels: Labels) -> bool:
        """Whether this prediction of the whole scan is at the goal, as the attack judges it."""
        target, clean, prediction = (torch.from_numpy(x)[None] for x in (self.target, self.clean, labels))
        iou, hit = self.goal
        if self.untargeted:
            return bool(spoilt(self.classes, clean).judge(prediction).reached[0])
        goal = goal_of(self.classes, target, clean, iou=iou, hit=hit)
        return bool(goal.judge(prediction).reached[0])
