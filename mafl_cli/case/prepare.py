"""Scans, target and model brought together on one grid: everything that can be wrong with them is found out here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case import readings
from mafl_cli.case.channel_names import order_by_name
from mafl_cli.case.closed import subject_of
from mafl_cli.case.faithful import looked_for_chance
from mafl_cli.case.problem import Problem, Say, kept_channels, limits_of, spoilt
from mafl_cli.case.request import AttackRequest
from mafl_cli.case.subject import Subject, counted, read_channels
from mafl_cli.classes import Labels
from mafl_cli.config import AttackConfig, SaveAs
from mafl_cli.errors import InputError, UsageError
from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.samples import Drawn, stacked
from mafl_cli.measure.noise import Noise, noise_of
from mafl_cli.network.source import Closed
from mafl_cli.scans import body, recipes, volume
from mafl_cli.scans.formats import prepared
from mafl_cli.scans.forms import require_same_grid
from mafl_cli.scans.masks import MaskFile, Target, read_masks
from mafl_cli.search.goals import Goal
from mafl_cli.search.label_only import Spoilt
from mafl_cli.search.limits import Grid, Limits


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What may change, beside the voxels' values: where, and how much of the scan that is.

    allowed: bool (I, J, K), None for everywhere. within: the file it came from. body_voxels: None without body_only.
    """

    allowed: NDArray[np.bool_] | None = None
    within: MaskFile | None = None
    body_voxels: int | None = None


@dataclass(frozen=True, kw_only=True)
class Case(Problem):
    """Scans with a target, and the limits that the attack has."""

    subject: Subject
    save_as: SaveAs
    target: Target
    bounds: Bounds
    untargeted: bool = False

    def goal(self, config: AttackConfig) -> Goal | Spoilt:
        """What counts as reached; of an untargeted attack, Dice with the clean prediction of at most `SPOILT`."""
        if not self.untargeted:
            return super().goal(config)
        return spoilt(self.seen.info.classes, self.clean_labels)

    @property
    def seen(self) -> Subject:
        """The scans, and the model that sees them."""
        return self.subject

    @property
    def batch_spacing(self) -> tuple[float, ...]:
        """mm between voxels along the spatial axes of the batch."""
        return tuple(self.subject.layout.batch_spacing(self.subject.scan.affine))

    @property
    def plane(self) -> tuple[int, int]:
        """The axes of the batch along which slices are shown."""
        if self.subject.layout.sliced:
            return 2, 3
        first, second = (n + 2 for n, axis in enumerate(self.subject.layout.axes) if axis != self.subject.slices.index)
        return first, second

    def noise(self) -> tuple[Noise | None, ...]:
        """The noise of each channel of the clean scan, native units; None where there is none to measure."""
        axis = self.subject.slices.index
        return tuple(noise_of(each.data, axis, body.unmeasured(each)) for each in self.subject.scans)

    def refrozen(self, batch: Tensor) -> Preprocessing:
        """The preprocessing with the statistics of a changed scan."""
        return self.subject.frozen(list(self.subject.as_volume(batch)))


def prepare(
    request: AttackRequest, device: torch.device, say: Say, lap: Callable[[str], None] = lambda part: None
) -> Case:
    """Read everything, bring it together, and let the model draw the clean scan.

    lap: called after each part with its name, "read" or "lift".
    Raises: the errors of `mafl_cli.errors`, each naming the file and what to do.
    """
    given = request.volumes or request.images
    read = read_channels(given, say, series=request.series, allow_gaps=request.allow_gaps)
    scans = tuple(prepared(each, redact=request.redact) for each in read)
    lap("read")
    scan = scans[0]
    closed = isinstance(request.model, Closed)
    dicom = any(each.format == "dicom" for each in scans)
    save_as = request.save_as or ("source" if dicom or closed else "float32")
    if save_as == "float32" and dicom:
        raise UsageError(
            "`save_as` float32 cannot be used for DICOM, which holds the integers of its source: leave it out."
        )
    if request.guides and request.config.feature_weight == 0:
        raise UsageError(
            f"a feature term is needed for `guides`, which {request.config.method} does not have: set `feature_weight` "
            "above 0."
        )
    if request.untargeted and not closed:
        raise UsageError("`untargeted` is for a model that only draws: give `target` erase:CLASS instead.")
    if request.starts and request.config.method != "worst" and not closed:
        raise UsageError(f"`starts` are for the method worst, not for {request.config.method}: leave them out.")
    subject = subject_of(scans, request, device, say)
    lap("lift")
    _ask_of_names(subject, request.strict, say)
    info, layout = subject.info, subject.layout
    # What was read lies in memory a second time until it is let go.
    del read
    scans = subject.scans
    scan = scans[0]
    recipe = request.recipe
    # Names and files first: what is wrong with them should not take a prediction to find out.
    if recipe is not None:
        recipes.class_numbers(recipe, info.classes)
    files = ((recipe.mask,) if recipe.mask else ()) if recipe else request.targets
    target = read_masks(files, scan, info.classes, request.masks) if files else None
    bounds = _bounds(request, scan, say)
    guide = _guide(request, scans, layout, subject.preprocessing, say) if request.guides else None
    start = _start(request, scans, layout, device, say) if request.starts else None
    for warning in target.warnings if target else ():
        say(warning)
    lap("read")
    of_files, before = target, subject.drawn(subject.clean, subject.preprocessing)
    # What a recipe makes of a prediction that makes no sense would be an error about the recipe.
    drawable = None if recipe is not None or target is None else target.labels
    if not closed:
        _ask_of_reading(subject, subject.to_labels(before.labels), drawable, request.strict, say)
    target, wanted = _aimed(subject, before, request, of_files)
    subject, drawn = (subject, before) if closed else looked_for_chance(subject, before, wanted)
    if drawn is not before:
        target, wanted = _aimed(subject, drawn, request, of_files)
    for note in target.warnings if recipe is not None else ():
        say(note)
    limits = _limits(subject, save_as)
    frozen = limits.frozen | kept_channels(request.attack_channels, info.channels, subject.clean)
    if bounds.allowed is not None:
        frozen = frozen | ~torch.from_numpy(layout.to_batch(bounds.allowed[np.newaxis])).to(device)
    case = Case(
        subject=subject,
        save_as=save_as,
        target=target,
        wanted=wanted,
        clean_labels=drawn.labels,
        clean_draws=drawn.draws,
        guide=guide,
        start=start,
        bounds=bounds,
        limits=replace(limits, frozen=frozen),
        confined=bounds.allowed is not None or bool(request.attack_channels),
        untargeted=request.untargeted,
    )
    return replace(case, limits=case.limits_for(request.config, [scan.name for scan in scans]))


def _ask_of_names(subject: Subject, strict: bool, say: Say) -> None:
    """Say, or with `strict` refuse, where the names of the files are those of the channels in another order."""
    ordered = order_by_name([scan.name for scan in subject.scans], subject.card.channels or ())
    if ordered is None:
        return
    said = (
        f"{subject.info.name} takes {', '.join(subject.info.channels)}, and the names of the files say another order: "
        f"give them as {', '.join(ordered)}"
    )
    if strict:
        raise InputError(f"{said}, or leave out `strict`.")
    say(f"{said}, if the names are right.")


def _ask_of_reading(subject: Subject, drawn: Labels, wanted: Labels | None, strict: bool, say: Say) -> None:
    """Say, or with `strict` refuse, where the model would make far more of the scan if it were read another way.

    wanted: the target; None for one that is made from the prediction itself, and says nothing about it.
    """
    # The plans of nnU-Net leave no choice; and what chance draws is never steady.
    if subject.card.crop or subject.by_chance:
        return
    found = None
    if wanted is not None:
        if not readings.is_doubtful(drawn, wanted, subject.info.classes):
            return
        found = readings.try_readings(subject, drawn, wanted, thorough=False)
    if (found is None or found.better is None) and readings.looks_doubtful(subject, drawn):
        found = readings.try_readings(subject, drawn, None, thorough=False)
    better = None if found is None else found.better
    if found is None or better is None:
        return
    options = better.reading.options(found.given.reading)
    scores, fits = (better.given, better.score), (found.given.fit or 0.0, better.fit or 0.0)
    if better.measure == "agreement":
        what = "has little in common with the target (Dice {:.2f}), and much with {} (Dice {:.2f})"
    elif fits[0] * readings.BETTER["plausibility"] < fits[1]:
        # What reaches the norm layers is the surest sign of the three.
        scores = fits
        what = "comes of input unlike that of its training (fit {:.2f}), which it resembles with {} ({:.2f})"
    else:
        what = "is unsure or unsteady (plausibility {:.2f}), and far less so with {} ({:.2f})"
    what = what.format(scores[0], options, scores[1])
    said = f"{subject.info.name}: what it draws on {subject.scan.name} {what}: the model may expect such input"
    if strict:
        raise InputError(f"{said}. Try that, or leave out `strict`.")
    say(said)


def _aimed(subject: Subject, drawn: Drawn, request: AttackRequest, given: Target | None) -> tuple[Target, Tensor]:
    """The target, and the same as labels of the batch. drawn: the clean prediction. given: what masks say."""
    target, recipe = given, request.recipe
    if request.untargeted:
        if not bool((drawn.labels > 0).any()):
            raise InputError(
                f"{subject.scan.name}: {subject.info.name} draws nothing on the clean scan, so nothing can be taken "
                "away from it: give a `target`."
            )
        # Any other mask will do; an empty one is as far from the clean prediction as a mask can be.
        target = Target(np.zeros_like(subject.to_labels(drawn.labels)), (), (), "untargeted")
    if recipe is not None:
        frame = recipes.PredictionGrid(subject.scan.affine, subject.slices.index if subject.layout.sliced else None)
        labels, note = recipes.follow(
            recipe, subject.to_labels(drawn.labels), subject.info.classes, frame, given.labels if given else None
        )
        target = Target(labels, given.files if given else (), (note,), recipe.text)
    assert target is not None
    kind = torch.empty(0, dtype=drawn.labels.dtype).numpy().dtype
    target = replace(target, labels=target.labels.astype(kind))
    return target, torch.from_numpy(subject.layout.to_batch(target.labels)).to(subject.clean.device)


def _bounds(request: AttackRequest, scan: volume.Volume, say: Say) -> Bounds:
    """The voxels that may change, as the user limits them."""
    allowed, source, voxels = None, None, None
    if request.within is not None:
        # The target's label map is not about this file.
        labels, source, warnings = replace(request.masks, label_map={}).read(request.within, scan)
        for warning in warnings:
            say(warning)
        allowed = labels > 0
        if not allowed.any():
            raise InputError(
                f"{source.name} labels no voxel, so none may change: `within` needs a mask with labels above 0."
            )
    if request.body_only:
        inside = body.body_mask(scan.name, scan.data, scan.padding)
        voxels = int(inside.sum())
        allowed = inside if allowed is None else allowed & inside
        if not allowed.any():
            raise InputError(
                f"{scan.name}: no voxel of `within` lies in the body, so none may change: leave out `body_only`."
            )
    return Bounds(allowed=allowed, within=source, body_voxels=voxels)


def _guide(
    request: AttackRequest, scans: Sequence[volume.Volume], layout: Layout, preprocessing: Preprocessing, say: Say
) -> Tensor:
    """A scan that has what the target shows, as a batch in the native units of the attacked one.

    Raises: GeometryError when it lies on another grid; InputError when it cannot be read or scaled.
    """
    if len(request.guides) != len(scans):
        raise UsageError(
            f"`guides` must be one file for each of {counted(len(scans), 'channel')}, got {len(request.guides)}."
        )
    guides = read_channels(request.guides, say, allow_gaps=request.allow_gaps)
    scan, guide = scans[0], guides[0]
    require_same_grid(scan, guide)
    data = [each.data for each in guides]
    device = preprocessing.unit.device
    try:
        own = preprocessing.again(data)
    except InputError as exc:
        raise InputError(f"{guide.name}: {exc}") from exc
    return preprocessing.translate(torch.from_numpy(stacked(data, layout)).to(device), own)


def _start(
    request: AttackRequest, scans: Sequence[volume.Volume], layout: Layout, device: torch.device, say: Say
) -> Tensor:
    """A changed scan as a batch, native units: from an earlier adversarial scan, or from a perturbation.

    Raises: GeometryError when it lies on another grid; InputError when it cannot be read.
    """
    if len(request.starts) != len(scans):
        raise UsageError(
            f"`starts` must be one file for each of {counted(len(scans), 'channel')}, got {len(request.starts)}."
        )
    given = read_channels(request.starts, say, allow_gaps=request.allow_gaps)
    require_same_grid(scans[0], given[0])
    changed = []
    for scan, start in zip(scans, given, strict=True):
        # A changed scan is close to the scan, and a perturbation to nothing.
        is_scan = bool(np.linalg.norm(start.data - scan.data) < np.linalg.norm(start.data))
        say(f"{start.name}: taken for {'a changed scan' if is_scan else 'a perturbation'}, to begin a search at.")
        changed.append(start.data if is_scan else scan.data + start.data)
    return torch.from_numpy(stacked(changed, layout)).to(device)


def _limits(subject: Subject, save_as: SaveAs) -> Limits:
    """What the scans allow on their own, and what their files can hold."""
    scans, clean = subject.scans, subject.clean
    limits = limits_of(subject.preprocessing, clean)
    low, high, frozen = limits.low, limits.high, limits.frozen
    grids = [volume.stored_grid(scan, save_as) for scan in scans]
    for channel, (scan, grid) in enumerate(zip(scans, grids, strict=True)):
        if grid is not None:
            low[channel] = max(float(low[channel]), float(grid.low.min()))
            high[channel] = min(float(high[channel]), float(grid.high.max()))
        if scan.padding is not None:
            outside = torch.from_numpy(subject.layout.to_batch(scan.padding[np.newaxis])).to(clean.device)
            frozen[:, channel] |= outside[:, 0]
            # A measured voxel must not become padding either.
            darkest = scan.data.min(where=~scan.padding, initial=np.inf)
            low[channel] = max(float(low[channel]), float(darkest))
    return replace(limits, grid=_stored_values(subject.layout, grids, clean))


def _stored_values(layout: Layout, grids: Sequence[volume.StoredGrid | None], like: Tensor) -> Grid | None:
    """The stored grids of all channels, along the batch's axes."""
    if not any(grids):
        return None
    whole = volume.StoredGrid(*(np.full((1, 1, 1), value) for value in (0.0, -np.inf, np.inf)))
    parts = [[each.step, each.low, each.high] for each in (grid or whole for grid in grids)]

    def spread(values: Sequence[NDArray[np.float64]]) -> Tensor:
        turned = layout.to_batch(np.stack(np.broadcast_arrays(*values)))
        return torch.from_numpy(turned).to(like)

    step, low, high = (spread(values) for values in zip(*parts, strict=True))
    return Grid(step, low, high)
