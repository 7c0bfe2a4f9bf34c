"""Scans, target and model brought together on one grid: everything that can be wrong with them is found out here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli import body, recipes, targets, volume
from mafl_cli.card import ModelCard, find_card
from mafl_cli.config import AttackConfig, Intensity, Mode, Precision, SaveAs, SliceAxisChoice
from mafl_cli.errors import InputError, UsageError
from mafl_cli.geometry import Layout, SliceAxis, choose_slice_axis, require_same_space
from mafl_cli.goals import Goal
from mafl_cli.limits import Grid, Limits
from mafl_cli.model import ModelInfo, Segmenter, load
from mafl_cli.preprocess import Preprocessing
from mafl_cli.recipes import Recipe
from mafl_cli.resample import Grids
from mafl_cli.scans import read_scan
from mafl_cli.targets import Masks, Source, Target
from mafl_cli.windows import Scan, Tiling, Whole, Windows, fewer, slices_per_batch

DEMO_MODEL = Path(__file__).parent / "demo" / "model.ts"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """One case: paths and settings. `None` for a property of the model means: what its card says.

    images: one file (or DICOM folder) for each channel of the model, in its order. series, allow_gaps: see
    `dicom.read_dicom`. targets: one mask, or one for each region that may overlap others; none with a
    recipe. masks: how mask files are read. within: a mask; only its voxels may change, and with body_only only those
    of the body. redact: keep the names of the files out of everything, and what is optional out of headers.
    attack_channels: names or numbers of the channels that may change; all if None. save_as: None is float32 for NIfTI,
    source for DICOM. spacing: mm, along the model's axes, or (0,) for the scan's own. roi: voxels of a window, or (0,)
    for no windows.
    """

    images: tuple[Path, ...]
    out: Path
    targets: tuple[Path, ...] = ()
    recipe: Recipe | None = None
    series: str | None = None
    allow_gaps: bool = False
    masks: Masks = field(default_factory=Masks)
    within: Path | None = None
    body_only: bool = False
    guides: tuple[Path, ...] = ()
    model: Path = DEMO_MODEL
    mode: Mode = "auto"
    slice_axis: SliceAxisChoice | None = None
    save_as: SaveAs | None = None
    device: str = "auto"
    precision: Precision = "float32"
    orientation: str | None = None
    intensity: Intensity | None = None
    spacing: tuple[float, ...] | None = None
    roi: tuple[int, ...] | None = None
    overlap: float | None = None
    attack_channels: tuple[str, ...] | None = None
    tap: str = "auto"
    redact: bool = False
    overwrite: bool = False
    config: AttackConfig = field(default_factory=AttackConfig)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Scans and model on one grid, and what the model makes of them. Batches are (B, C, *spatial), native units."""

    scans: tuple[volume.Volume, ...]
    save_as: SaveAs
    segmenter: Segmenter
    info: ModelInfo
    card: ModelCard
    slices: SliceAxis
    layout: Layout
    preprocessing: Preprocessing
    grids: Grids
    tiling: Tiling | None
    clean: Tensor
    say: Say

    @property
    def scan(self) -> volume.Volume:
        """The first channel: it stands for the grid of all."""
        return self.scans[0]

    @property
    def mode(self) -> Mode:
        return "2d" if self.layout.sliced else "3d"

    def field(self, data: NDArray[np.float32] | None = None, *, exact: bool = True) -> Scan:
        """The attacked function, with the statistics of the clean scan, or of `data` (C, I, J, K), frozen in.

        exact: in float32, whatever the precision of the search.
        """
        preprocessing = self.preprocessing
        if data is not None:
            preprocessing = Preprocessing.freeze(preprocessing.intensity, data, self.clean.device)
        segmenter = self.segmenter.exact if exact else self.segmenter
        if self.tiling is None:
            return Whole(segmenter, preprocessing, self.info.divisor, self.grids)
        batch = max(1, 2**20 // int(np.prod(self.tiling.roi))) if self.clean.device.type == "cpu" else 4
        return Windows(segmenter, preprocessing, self.tiling, self.grids, batch=batch, say=self.say)

    def batch(self, data: NDArray[np.float32]) -> Tensor:
        """(C, I, J, K) native -> batch."""
        return torch.from_numpy(self.layout.to_batch(data)).to(self.clean.device)

    def to_volume(self, batch: Tensor) -> NDArray[np.float32]:
        """Batch -> (C, I, J, K) native."""
        array: NDArray[np.float32] = self.layout.from_batch(batch.cpu().numpy())
        return array

    def to_labels(self, labels: Tensor) -> NDArray[np.int64]:
        """Predicted classes -> (I, J, K), or (R, I, J, K) for overlapping regions."""
        whole = labels if self.info.overlapping else labels.unsqueeze(1)
        array: NDArray[np.int64] = self.layout.from_batch(whole.cpu().numpy())
        return array if self.info.overlapping else array[0]

    def to_file(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """A label map as it is written: class numbers, or bit codes of overlapping regions."""
        return targets.coded(labels) if self.info.overlapping else labels

    def groups(self, rows: Tensor, work: Callable[[Tensor, float], None]) -> None:
        """Do `work` for a few samples at a time, with the share that is done before; fewer when memory is short."""
        size = slices_per_batch(self.clean[0, 0].numel()) if self.layout.sliced else 1
        done = 0
        while done < len(rows):
            try:
                work(rows[done : done + size], done / len(rows))
            except RuntimeError as exc:
                size = fewer(size, exc, self.say, f"{self.info.name}: one {'slice' if self.layout.sliced else 'scan'}")
            else:
                done += size

    def labels(self, field: Scan, batch: Tensor) -> Tensor:
        """Predicted classes: (B, *spatial), or (B, R, *spatial) for overlapping regions."""
        parts: list[Tensor] = []
        self.groups(torch.arange(len(batch)), lambda rows, _: parts.append(field.labels(batch[rows])))
        return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What may change, beside the voxels' values: where, and how much of the scan that is.

    allowed: bool (I, J, K), None for everywhere. within: the file it came from. body_voxels: None without body_only.
    """

    allowed: NDArray[np.bool_] | None = None
    within: Source | None = None
    body_voxels: int | None = None


@dataclass(frozen=True, kw_only=True)
class Case(Subject):
    """A subject with a target, and the limits that the attack has.

    wanted: (B, *spatial) class indices, or (B, R, *spatial), 0 or 1, for regions that may overlap.
    clean_labels: the prediction of the clean scan, likewise.
    """

    target: Target
    wanted: Tensor
    clean_labels: Tensor
    guide: Tensor | None
    bounds: Bounds
    limits: Limits

    def goal(self, config: AttackConfig) -> Goal:
        """What counts as reached."""
        classes = 2 if self.info.overlapping else len(self.info.classes)
        return Goal.of(self.wanted, self.clean_labels, classes, config, overlapping=self.info.overlapping)

    def differs(self, labels: Tensor) -> Tensor:
        """Where a prediction is not the target: bool (B, *spatial)."""
        differs = labels != self.wanted
        return differs.any(dim=1) if self.info.overlapping else differs


def prepare(request: AttackRequest, device: torch.device, say: Say) -> Case:
    """Read everything, bring it together, and let the model draw the clean scan.

    Raises: the errors of `mafl_cli.errors`, each naming the file and what to do.
    """
    subject = _subject(request, device, say)
    scans, info, layout = subject.scans, subject.info, subject.layout
    scan = scans[0]
    recipe = request.recipe
    # Names and files first: what is wrong with them should not take a prediction to find out.
    if recipe is not None:
        recipes.classes(recipe, info.classes, info.overlapping)
    files = ((recipe.mask,) if recipe.mask else ()) if recipe else request.targets
    target = _read_target(files, scan, info, request.masks) if files else None
    bounds = _bounds(request, scan, say)
    guide = _guide(request, scans, layout, subject.preprocessing, say) if request.guides else None
    for warning in target.warnings if target else ():
        say(warning)
    clean_labels = subject.labels(subject.field(), subject.clean)
    if recipe is not None:
        frame = recipes.Frame(scan.affine, subject.slices.index if layout.sliced else None)
        labels, note = recipes.follow(
            recipe, subject.to_labels(clean_labels), info.classes, frame, target.labels if target else None
        )
        say(note)
        target = Target(labels, target.files if target else (), (note,), recipe.text)
    assert target is not None
    masks = target.labels if info.overlapping else target.labels[np.newaxis]
    wanted = torch.from_numpy(layout.to_batch(masks)).to(device)
    limits = _limits(subject)
    frozen = limits.frozen | _unattacked(request.attack_channels, info, subject.clean)
    if bounds.allowed is not None:
        frozen = frozen | ~torch.from_numpy(layout.to_batch(bounds.allowed[np.newaxis])).to(device)
    return Case(
        **{each.name: getattr(subject, each.name) for each in fields(subject)},
        target=target,
        wanted=wanted if info.overlapping else wanted[:, 0],
        clean_labels=clean_labels,
        guide=guide,
        bounds=bounds,
        limits=replace(limits, frozen=frozen),
    )


def _subject(request: AttackRequest, device: torch.device, say: Say) -> Subject:
    scans = _read_channels(request.images, say, series=request.series, allow_gaps=request.allow_gaps)
    if request.redact:
        scans = tuple(volume.without_notes(each) for each in scans)
    scan = scans[0]
    save_as = request.save_as or ("source" if any(each.format == "dicom" for each in scans) else "float32")
    if save_as == "float32" and any(each.format == "dicom" for each in scans):
        raise UsageError("--save-as float32: DICOM holds the integers of its source; leave the option out.")
    card = find_card(request.model).merged(
        orientation=request.orientation,
        intensity=request.intensity,
        spacing=request.spacing,
        roi=request.roi,
        overlap=request.overlap,
    )
    dims = {"2d": 2, "3d": 3}.get(request.mode, card.dims)
    if card.dims not in (None, dims):
        raise UsageError(f"--mode {request.mode}: the model is {card.dims}-D.")
    if request.guides and request.config.feature_weight == 0:
        raise UsageError(f"--guide needs a feature term, which {request.config.method} has not: give --feature-weight.")
    slices = choose_slice_axis(scan.affine, scan.shape, request.slice_axis or card.slice_axis)

    def laid_out(dims: int) -> tuple[Layout, Grids, Tiling | None]:
        layout = Layout.for_volume(
            scan.affine, orientation=card.orientation or "native", slice_axis=slices.index if dims == 2 else None
        )
        shape = tuple(scan.shape[axis] for axis in layout.axes[3 - dims :])
        return layout, _grids(card, layout, scan, shape), _tiling(card, dims)

    def size(dims: int) -> tuple[int, ...]:
        _, grids, tiling = laid_out(dims)
        return grids.there.shape_out if tiling is None else tiling.roi

    segmenter, info, card = load(
        request.model, device=device, card=replace(card, dims=dims), size=size, tap=request.tap,
        precision=request.precision,
    )  # fmt: skip
    for sentence in info.assumptions:
        say(f"assumed for {info.name}: {sentence}")
    if len(info.channels) != len(scans):
        raise InputError(
            f"{scan.name}: {_count(len(scans), 'channel')} given, the model takes {len(info.channels)} "
            f"({', '.join(info.channels)}): give their files in this order with --channels."
        )
    layout, grids, tiling = laid_out(info.dims)
    assert card.intensity is not None
    data = np.stack([each.data for each in scans])
    if card.intensity.kind == "none" and card.source is None and float(np.abs(data).max()) > 100:
        say(
            f"{scan.name}: values up to {float(np.abs(data).max()):.6g} go into the model unscaled; "
            "most networks expect scaled input: see --intensity."
        )
    try:
        preprocessing = Preprocessing.freeze(card.intensity, data, device)
    except InputError as exc:
        raise InputError(f"{scan.name}: {exc}") from exc
    return Subject(
        scans=scans,
        save_as=save_as,
        segmenter=segmenter,
        info=info,
        card=card,
        slices=slices,
        layout=layout,
        preprocessing=preprocessing,
        grids=grids,
        tiling=tiling,
        clean=torch.from_numpy(layout.to_batch(data)).to(device),
        say=say,
    )


def _read_channels(
    paths: Sequence[Path], say: Say, *, series: str | None = None, allow_gaps: bool = False
) -> tuple[volume.Volume, ...]:
    """One scan for each channel, all on the grid of the first."""
    found: list[volume.Volume] = []
    for path in paths:
        found.append(read_scan(path, series=series, allow_gaps=allow_gaps))
        for warning in found[-1].warnings:
            say(warning)
        first, last = found[0], found[-1]
        require_same_space(first.name, first.shape, first.affine, last.name, last.shape, last.affine)
    return tuple(found)


def _read_target(paths: Sequence[Path], scan: volume.Volume, info: ModelInfo, masks: Masks) -> Target:
    read = targets.read_regions if info.overlapping else targets.read_target
    return read(paths, scan, info.classes, masks)


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
            raise InputError(f"{source.name}: is empty, so --within it no voxel may change.")
    if request.body_only:
        inside = body.body_mask(scan.name, scan.data, scan.padding)
        voxels = int(inside.sum())
        allowed = inside if allowed is None else allowed & inside
        if not allowed.any():
            raise InputError(f"{scan.name}: no voxel of --within lies in the body, so none may change.")
    return Bounds(allowed=allowed, within=source, body_voxels=voxels)


def _grids(card: ModelCard, layout: Layout, scan: volume.Volume, shape: tuple[int, ...]) -> Grids:
    """The scan's grid along the batch's axes, and the network's at the spacing it was trained with."""
    if card.spacing is None or not any(card.spacing):
        return Grids.same(shape)
    if len(card.spacing) not in (len(shape), 3):
        raise UsageError(f"spacing has {len(card.spacing)} numbers, the model {len(shape)} dimensions.")
    return Grids.at_spacing(shape, layout.batch_spacing(scan.affine), card.spacing[-len(shape) :], card.resample)


def _tiling(card: ModelCard, dims: int) -> Tiling | None:
    if card.roi is None or not any(card.roi):
        return None
    if len(card.roi) != dims:
        raise UsageError(f"roi has {len(card.roi)} numbers, the model {dims} dimensions.")
    return Tiling(card.roi, card.overlap, card.blend)


def _unattacked(wanted: Sequence[str] | None, info: ModelInfo, clean: Tensor) -> Tensor:
    """Bool (1, C, 1, ...): channels that must not change."""
    keep = torch.zeros(len(info.channels), dtype=torch.bool, device=clean.device)
    if wanted is not None:
        numbers = {name: index for index, name in enumerate(info.channels)}
        numbers |= {str(index): index for index in range(len(info.channels))}
        for name in wanted:
            if name not in numbers:
                raise UsageError(
                    f"--attack-channels: the model has no channel {name!r}; it has {', '.join(info.channels)}."
                )
        keep[:] = True
        keep[[numbers[name] for name in wanted]] = False
    return keep.view(1, -1, *(1,) * (clean.ndim - 2))


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _guide(
    request: AttackRequest, scans: Sequence[volume.Volume], layout: Layout, preprocessing: Preprocessing, say: Say
) -> Tensor:
    """A scan that has what the target shows, as a batch in the native units of the attacked one.

    Raises: GeometryError when it lies on another grid; InputError when it cannot be read or scaled.
    """
    if len(request.guides) != len(scans):
        raise UsageError(f"--guide: {_count(len(request.guides), 'file')} given for {_count(len(scans), 'channel')}.")
    guides = _read_channels(request.guides, say, allow_gaps=request.allow_gaps)
    scan, guide = scans[0], guides[0]
    require_same_space(scan.name, scan.shape, scan.affine, guide.name, guide.shape, guide.affine)
    data = np.stack([each.data for each in guides])
    device = preprocessing.unit.device
    try:
        own = Preprocessing.freeze(preprocessing.intensity, data, device)
    except InputError as exc:
        raise InputError(f"{guide.name}: {exc}") from exc
    return preprocessing.translate(torch.from_numpy(layout.to_batch(data)).to(device), own)


def _limits(subject: Subject) -> Limits:
    scans, preprocessing, clean = subject.scans, subject.preprocessing, subject.clean
    low, high = preprocessing.low.clone(), preprocessing.high.clone()
    frozen = preprocessing.keep(clean)
    grids = [volume.stored_grid(scan, subject.save_as) for scan in scans]
    for channel, (scan, grid) in enumerate(zip(scans, grids, strict=True)):
        values = clean[:, channel]
        if grid is not None:
            low[channel] = max(float(low[channel]), float(grid.low.min()))
            high[channel] = min(float(high[channel]), float(grid.high.max()))
        if preprocessing.nonzero_only and not bool((values < 0).any()):
            # Zero is background by definition there; the darkest tissue is the floor.
            low[channel] = values[values > 0].min()
        if scan.padding is not None:
            outside = torch.from_numpy(subject.layout.to_batch(scan.padding[np.newaxis])).to(clean.device)
            frozen[:, channel] |= outside[:, 0]
            # A measured voxel must not become padding either.
            low[channel] = max(float(low[channel]), float(scan.data[~scan.padding].min()))
    return Limits(
        low=low,
        high=high,
        unit=preprocessing.unit,
        frozen=frozen,
        grid=_stored_values(subject.layout, grids, clean),
        nonzero=preprocessing.nonzero_only,
    )


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
