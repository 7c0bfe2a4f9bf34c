"""Changes that survive what happens to scans on their way: their search, and what is left of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mafl_cli.case.problem import Problem, goal_of
from mafl_cli.case.subject import Subject
from mafl_cli.classes import Classes, Labels
from mafl_cli.config import AttackConfig
from mafl_cli.errors import UsageError
from mafl_cli.field.field import Field
from mafl_cli.field.through import Scene, behind, neighbours
from mafl_cli.field.together import Together
from mafl_cli.field.transforms import BLUR, Transform, parse
from mafl_cli.measure.agreement import quick_agreement
from mafl_cli.measure.records import AttackLeft, CleanLeft, Survival
from mafl_cli.scans.volume import Volume


def transforms_of(config: AttackConfig) -> tuple[Transform, ...]:
    """What a change must survive, in the order given. Raises UsageError for what is not known."""
    return () if config.survive is None else parse(config.survive.split(","), "survive")


class Survivors:
    """The attacked function together with itself behind each transform that the change must survive, and behind
    neighbours of them."""

    def __init__(self, case: Problem, config: AttackConfig) -> None:
        """Raises: UsageError for transforms that are not known, and for a guide, which needs features.

        The blur that is to be evaded counts as one of them.
        """
        blur = (BLUR,) if "blur" in config.evaded else ()
        # The blur first: the search asks the second function what moves.
        self._asked = transforms_of(config)
        self._transforms = (*blur, *(each for each in self._asked if each not in blur))
        self._case = case
        if not self._transforms:
            return
        if case.guide is not None:
            asked = "`evade` blur" if config.survive is None else "`survive`"
            raise UsageError(f"{asked} has no feature term, which `guides` need: leave out one of them.")
        seen = case.seen
        zeros = seen.preprocessing.nonzero_only
        self._scene = Scene.of(seen.clean, case.plane, zero_kept=zeros, seed=config.seed)

    @property
    def views(self) -> int:
        """How many functions are attacked together."""
        return 1 + len(self._transforms) + bool(self._asked)

    def of(self, field: Field, *seed: int) -> Field:
        """What is attacked of the function of a part. seed: of the draws of a model that answers by chance."""
        plain = self._case.expected(field, *seed)
        if not self._transforms:
            return plain
        others = (behind(field, each, self._scene) for each in self._transforms)
        # What is drawn anew in each pass would make the verdict a matter of luck: it is followed, and not judged.
        helper = self._case.expected(neighbours(field, self._asked, self._scene), *seed) if self._asked else None
        return Together([plain, *(self._case.expected(each, *seed) for each in others)], helper)


# --- what is left -------------------------------------------------------------------------------------------------


def labels_after(transform: Transform, scans: Sequence[Volume], subject: Subject) -> Labels:
    """What the model draws on scans, one for each channel, after a transform, on the grid of the scans as they were."""
    axis = subject.slices.index
    changed = []
    for scan in scans:
        data = transform(scan.data, axis)
        # A crop moves what is no measurement with all the rest.
        if transform.kind != "crop":
            if subject.preprocessing.nonzero_only:
                # Zero is no measurement for this model: it stays what it was.
                data[scan.data == 0] = 0
            if scan.padding is not None:
                data[scan.padding] = scan.data[scan.padding]
        changed.append(data)
    return transform.back(subject.predict(changed), axis)


@dataclass(frozen=True, eq=False)
class Aimed:
    """A target and the clean prediction, labels (M, I, J, K) of these classes."""

    target: Labels
    clean: Labels
    classes: Classes


def left_after(
    transform: Transform, clean: Labels, adversarial: Labels, aimed: Aimed, goal: tuple[float, float]
) -> Survival:
    """What is left of an attack after a transform.

    The target is still there if the model draws it where it was to draw otherwise, and else what it draws on the clean
    scan after the transform, which changes predictions by itself.

    Args: clean, adversarial: what the model draws then. goal: IoU and hit rate that count as reached.
    """
    wanted = np.where(aimed.target != aimed.clean, aimed.target, clean)
    target, before, prediction = (torch.from_numpy(each)[None] for each in (wanted, clean, adversarial))
    reached = goal_of(aimed.classes, target, before, iou=goal[0], hit=goal[1]).judge(prediction).reached
    after, without = (
        quick_agreement(labels, aimed.target, aimed.clean, aimed.classes) for labels in (adversarial, clean)
    )
    return Survival(
        transform=transform.name,
        goal_reached=bool(reached[0]),
        adversarial=AttackLeft(target_iou=after.target_iou, hit_rate=after.hit_rate, restored=after.restored),
        clean=CleanLeft(target_iou=without.target_iou, dice_with_clean=without.dice_with_clean),
    )
