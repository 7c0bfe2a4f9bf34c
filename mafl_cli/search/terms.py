"""The terms of the objective, weighed against each other for each sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mafl_cli.config import AttackConfig
from mafl_cli.errors import UsageError
from mafl_cli.field.field import Field, Losses
from mafl_cli.network.prediction import Patch, Prediction, drawn
from mafl_cli.search import losses, steps
from mafl_cli.search.evasion import Evasion
from mafl_cli.search.goals import Goal, Verdict
from mafl_cli.search.moves import LowPass, Now
from mafl_cli.search.pressure import Pressure, margins


@dataclass(frozen=True)
class Terms:
    """The losses that need a gradient, with everything they compare with.

    targets, clean: (B, *spatial), class indices, of each function that is attacked. must: (B,), voxels where those of
    the first differ.
    pressures: what each voxel counts in the margin loss, of each function that is attacked; none for other losses.
    features, guide: of the clean scan and of a scan that has the target.
    evasion: what detectors may say of the first function; None where nobody cares.
    """

    config: AttackConfig
    targets: tuple[Tensor, ...]
    clean: tuple[Tensor, ...]
    must: Tensor
    pressures: tuple[Pressure, ...]
    features: tuple[Patch, ...]
    guide: tuple[Patch, ...] | None
    overlapping: bool
    evasion: Evasion | None

    @staticmethod
    def of(
        config: AttackConfig,
        field: Field,
        before: Prediction,
        target: Tensor,
        guide: Tensor | None,
        *,
        overlapping: bool,
        totals: Tensor | None = None,
    ) -> Terms:
        """totals: see `evasion.Evasion`."""
        if guide is not None and config.feature_weight == 0:
            raise UsageError("a guide needs a feature term: set `feature_weight` above 0.")
        views = before.views or (before,)
        clean = tuple(view.labels for view in views)
        edit = clean[0] != target
        # What a function draws otherwise than the first one on the clean scan is not what the change is to mend.
        targets = [target, *(torch.where(edit, target, each) for each in clean[1:])]
        if "blur" in config.evaded:
            # That detector asks whether both draw the same, wherever.
            targets[1] = target
        features = None if guide is None else field.predict(guide).features
        pressures = tuple(
            Pressure(-margins(view.logits, labels), labels == wanted, config.kappa)
            for view, labels, wanted in zip(views, clean, targets, strict=True)
            if config.mask_loss == "margin"
        )
        must = edit.flatten(1).sum(dim=1)
        evasion = Evasion(config.evaded, before, totals, overlapping=overlapping) if config.evaded else None
        return Terms(config, tuple(targets), clean, must, pressures, before.features, features, overlapping, evasion)

    def losses(self, rows: Tensor, *, progress: float, gain: Tensor | None, apart: bool) -> Losses:
        """The mask term, with `gain` (b,) times the feature term on the voxels that miss the target; or both apart."""

        def terms(prediction: Prediction) -> list[Tensor]:
            number, logits = prediction.number, prediction.logits
            target, clean = (steps.taken(each[number], rows) for each in (self.targets, self.clean))
            pressure = self.pressures[number] if self.pressures else None
            mask = losses.mask_loss(
                self.config.mask_loss, logits, target,
                pressure=pressure, rows=rows, clean=clean, progress=progress,
            )  # fmt: skip
            if pressure is not None and len(self.pressures) > 1:
                # So that logits of another scale do not count more.
                mask = mask / pressure.usual(rows)
            if self.evasion is not None and number == 0:
                # Voxels on their way to the target are in doubt for a while: it counts as that is reached.
                mask = mask + (1 - self._missing(rows, drawn(logits) != target)) * self.evasion.term(rows, logits)
            if gain is None:
                return [mask]
            unmet = (drawn(logits) != target).to(mask.dtype)
            feature = self._feature(prediction.features, rows, unmet)
            if apart:
                return [mask, feature]
            # Near the goal the mask term alone knows what is missing: the other fades with the voxels still unmet. It
            # lends its slope alone: the value says how far the target is.
            return [mask + gain * self._missing(rows, unmet) * (feature - feature.detach())]

        return terms

    def _feature(self, patches: tuple[Patch, ...], rows: Tensor, unmet: Tensor) -> Tensor:
        """The feature term, (B,), over all taps and windows: each counts by its weight and the voxels it misses."""
        if self.overlapping:
            unmet = unmet.amax(dim=1)
        total, mass = torch.zeros(len(rows), device=rows.device), torch.zeros(len(rows), device=rows.device)
        for index, (patch, clean) in enumerate(zip(patches, self.features, strict=True)):
            seen, reference = patch.see(unmet), steps.taken(clean.features, rows)
            if self.guide is None:
                value = losses.feature_cosine(patch.features, reference, seen)
            else:
                value = losses.feature_guide(patch.features, reference, self.guide[index].features[rows], seen)
            share = patch.weight * seen.flatten(1).mean(dim=1)
            total, mass = total + share * value, mass + share
        return total / torch.where(mass > 0, mass, torch.ones_like(mass))

    def _missing(self, rows: Tensor, unmet: Tensor) -> Tensor:
        """Voxels that miss the target as a share of those that had to change, at most 1: (b,)."""
        return (unmet.flatten(1).sum(dim=1) / self.must[rows].clamp_min(1)).clamp_max(1)

    def goal(self, classes: int) -> Goal:
        """What counts as reached. classes: how many the network draws."""
        first, *others = (
            Goal.of(
                target, clean, classes,
                iou=self.config.goal_iou, hit=self.config.goal_hit, overlapping=self.overlapping,
            )
            for target, clean in zip(self.targets, self.clean, strict=True)
        )  # fmt: skip
        return replace(first, others=tuple(others))

    def judge(self, goal: Goal, rows: Tensor, prediction: Prediction) -> Verdict:
        """Judge what a search has seen of some samples: whether they draw the target, and no detector says more of them
        than of the clean ones."""
        verdict = goal[rows].judge_prediction(prediction)
        return verdict if self.evasion is None else self.evasion.judged(verdict, rows, prediction)

    def lead(self, rows: Tensor) -> Tensor:
        """What of the last margin loss of a single function is the lead that it asks for: (b,)."""
        (pressure,) = self.pressures
        return pressure.lead(rows)

    def press(self, now: Now) -> None:
        """Adapt the margin loss of the dynamic step to how the last step changed the margins."""
        if self.config.step == "dynamic":
            late = now.is_late(self.config) & self.config.adaptive_weights
            for pressure in self.pressures:
                pressure.update(now.rows, late, (now.step + 1) / now.budget)
        if self.evasion is not None:
            self.evasion.press(now.rows)


class FeatureGains:
    """What the feature term counts beside the mask term, for each sample.

    One backward pass is enough for both terms once their gradients have been compared. That is done once, and not close
    to the clean image: there the similarity to it is at its top, and its gradient next to nothing.
    """

    def __init__(self, weight: float, config: AttackConfig, budget: int, like: Tensor) -> None:
        """weight: 0 where the network has no features. budget: steps that are taken. like: (B,)."""
        self._weight, self._compare_at = weight, 1 + budget // 20
        # It says where to search. The dynamic step, which goes as far as the slope says, needs a true slope later on.
        self._ends = math.ceil(0.3 * budget) if config.step == "dynamic" else budget
        self._gains = torch.zeros_like(like)

    def compare(self, step: int) -> bool:
        """Whether both gradients are needed apart in this step."""
        return step == self._compare_at

    def at(self, step: int, rows: Tensor, searching: Tensor) -> Tensor | None:
        """The gains of some samples, 0 for those that search no more, (b,) bool; None where the term is off."""
        if self._weight > 0 and self._compare_at <= step < self._ends and bool(searching.any()):
            return self._gains[rows] * searching
        return None

    def measure(self, rows: Tensor, mask_gradient: Tensor, feature_gradient: Tensor) -> None:
        """Set the gains from both gradients, (b, C, *spatial), model units."""
        mask, feature = steps.length(mask_gradient), steps.length(feature_gradient)
        self._gains[rows] = self._weight * steps.distance(mask, feature)


def without_low_frequency(delta: Tensor, config: AttackConfig, low: LowPass) -> Tensor:
    return delta - low(delta) if config.low_frequency == "hard" else delta
