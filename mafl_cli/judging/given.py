"""Predictions that somebody gives as mask files, where there is no model to ask: what a closed product drew.

By whom they were drawn, and on which scans, nobody can know; what can be told from the files is asked of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mafl_cli.case.problem import Say
from mafl_cli.classes import Classes, Labels
from mafl_cli.errors import InputError, UsageError
from mafl_cli.listing.folders import MaskFolder, holds_cases
from mafl_cli.names import between, is_there, outside, public_name
from mafl_cli.results.evaluation_report import GivenFile, GivenPredictions
from mafl_cli.results.recorded import Pair, PairSource
from mafl_cli.scans.geometry import choose_slice_axis
from mafl_cli.scans.masks import Masks, Target, read_masks

# Of the predictions of a pair nobody says how many classes there are: so many numbers are class numbers.
_MOST_CLASSES = 256
_FIXED = Masks(adjustable=False)


@dataclass(frozen=True)
class Predictions:
    """Where the predictions of all pairs are: a mask each, or folders of masks by the names of the cases.

    classes: names of all classes, background first; None where the masks have to tell. With runs the attacked model
    names them.
    """

    clean: str
    adversarial: str
    classes: tuple[str, ...] | None = None

    def require(self, sources: Sequence[PairSource]) -> None:
        """Before anything is read. Raises UsageError where one mask would be the prediction of several scans."""
        for parameter, given in self.by_parameter().items():
            path = Path(given)
            if len(sources) > 1 and not (is_there(path) and path.is_dir()):
                raise UsageError(
                    f"`{parameter}` {public_name(path)} is one prediction, but there are {len(sources)} pairs: give a "
                    "folder of predictions, matched by name."
                )
        if Path(self.clean).resolve() == Path(self.adversarial).resolve():
            raise UsageError(
                "`prediction_clean` and `prediction_adversarial` are the same: give what was drawn on each of the two "
                "scans."
            )
        if self.classes is not None and any(source.run is not None for source in sources):
            raise UsageError("with `runs`, leave out `classes`: the attacked model names them.")
        if self.classes is not None and not 2 <= len(self.classes) <= _MOST_CLASSES:
            raise UsageError(
                f"`classes` must be 2 to {_MOST_CLASSES} names, background first, got {len(self.classes)}."
            )

    def by_parameter(self) -> dict[str, str]:
        return {"prediction_clean": self.clean, "prediction_adversarial": self.adversarial}


@dataclass(frozen=True, eq=False)
class Given:
    """What was drawn on the two scans of a pair, as files say, and the target with the same classes.

    units: native units in one model unit, for each channel; of a pair that no run describes 1, for nobody knows.
    """

    classes: Classes
    channels: tuple[str, ...]
    units: tuple[float, ...]
    slice_axis: int
    clean: Labels
    adversarial: Labels
    target: Labels
    files: GivenPredictions

    @staticmethod
    def of(pair: Pair, asked: Predictions, say: Say) -> Given:
        """Read the predictions of a pair.

        Raises: InputError where there is none, or where its labels are not those of the target; as
            `scans.masks.Masks.read`.
        """
        clean, adversarial = (_paths(given, pair.case_id, name) for name, given in asked.by_parameter().items())
        recorded, scan = pair.recorded, pair.clean[0]
        if recorded is not None:
            space = recorded.case.space
            classes, channels = recorded.report.model.drawn, recorded.report.model.channels
            units, axis = tuple(space.native_units_per_model_unit), space.slice_axis.index
            target, masks = recorded.target, [read_masks(each, scan, classes, _FIXED) for each in (clean, adversarial)]
        else:
            channels = tuple(f"channel {number}" for number in range(len(pair.clean)))
            units, axis = (1.0,) * len(channels), choose_slice_axis(scan.affine, scan.shape, "auto").index
            wanted, *masks = (_read(pair, paths) for paths in (pair.target, clean, adversarial))
            classes = _classes(wanted, masks[0], masks[1], asked.classes)
            target = wanted.labels
            for warning in wanted.warnings:
                say(warning)
        for mask in masks:
            for warning in mask.warnings:
                say(warning)
            if not mask.labels.any():
                say(f"{pair.case_id}: {_name(mask)} is empty: nothing is drawn there.")
        before, after = (tuple(GivenFile(name=file.name, sha256=file.sha256) for file in mask.files) for mask in masks)
        return Given(
            classes,
            channels,
            units,
            axis,
            masks[0].labels,
            masks[1].labels,
            target,
            GivenPredictions(clean=before, adversarial=after),
        )

    def differences(self, pair: Pair) -> tuple[str, ...]:
        """What the given clean prediction says about the model, beside that of the run; nothing without a run."""
        if pair.recorded is None:
            return ()
        other = int(np.count_nonzero((self.clean != pair.recorded.prediction_clean).any(axis=0)))
        if not other:
            return ()
        name = outside(pair.recorded.report.model.name)
        return (f"{self.files.clean[0].name}: {other} voxels are drawn otherwise than by {name}, which was attacked",)


def _paths(given: str, case_id: str, parameter: str) -> tuple[Path, ...]:
    """The masks of one prediction: the files themselves, or those with the case's name in a folder."""
    path = Path(given)
    if holds_cases(path):
        found = MaskFolder(path).find([case_id])
        if not found:
            raise InputError(f"{public_name(path)}: holds no mask named {case_id}, which `{parameter}` needs.")
        return found
    parts = between(given, ",", lambda name: is_there(Path(name)))
    if parts is None:
        raise UsageError(f"`{parameter}` has an empty entry in its comma-separated list.")
    return tuple(map(Path, parts))


def _read(pair: Pair, paths: Sequence[Path]) -> Target:
    """One mask of classes that exclude each other, whatever their numbers."""
    if len(paths) != 1:
        raise UsageError(
            f"{pair.case_id}: the target and each prediction must be one mask, got {len(paths)} files: only a run "
            "says which regions may overlap."
        )
    labels, file, notes = _FIXED.read(paths[0], pair.clean[0])
    return Target(labels[np.newaxis], (file,), notes)


def _classes(target: Target, clean: Target, adversarial: Target, names: tuple[str, ...] | None) -> Classes:
    """The classes that all masks of a pair have in common.

    Raises: InputError for labels that nothing explains: numbered otherwise, a class would count as gone or missed.
    """
    known = len(names) if names is not None else _MOST_CLASSES
    for mask in (target, clean, adversarial):
        if int(mask.labels.max()) >= known:
            what = "`classes` names" if names is not None else "masks without a model may have"
            strange = {label for label in _labels(mask) if label >= known}
            raise InputError(
                f"{_name(mask)}: has label {_some(strange)}, but {what} 0 to {known - 1}: number the classes in this "
                "way."
            )
    if names is not None:
        return Classes(tuple(map(outside, names)))
    wanted, drawn, redrawn = map(_labels, (target, clean, adversarial))
    if wanted and drawn and not wanted & drawn:
        raise InputError(
            f"{_name(clean)} has label {_some(drawn)}, {_name(target)} has {_some(wanted)}, and none is in both: "
            "number the classes alike in all masks, or name all of them with `classes`."
        )
    strange = redrawn - wanted - drawn
    if strange:
        raise InputError(
            f"{_name(adversarial)}: has label {_some(strange)}, which neither {_name(target)} nor {_name(clean)} has: "
            "number the classes alike in all masks, or name all of them with `classes`."
        )
    highest = max((*wanted, *drawn), default=1)
    return Classes(("background", *(f"class {number}" for number in range(1, highest + 1))))


def _name(mask: Target) -> str:
    return mask.files[0].name


def _labels(mask: Target) -> set[int]:
    """The labels of a mask above 0."""
    return {int(label) for label in np.unique(mask.labels)} - {0}


def _some(labels: set[int]) -> str:
    shown = sorted(labels)
    return ", ".join(map(str, shown[:8])) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
