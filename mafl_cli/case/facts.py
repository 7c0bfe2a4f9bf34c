"""What the report says of a case: its scans, its target, its bounds, and what was measured on the written files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.detecting import evasion_of
from mafl_cli.case.oracle import Oracle
from mafl_cli.case.prepare import Case
from mafl_cli.case.remedies import Settled
from mafl_cli.case.searching import Found
from mafl_cli.case.surviving import Aimed, labels_after, left_after, transforms_of
from mafl_cli.case.trusting import believed
from mafl_cli.classes import Labels
from mafl_cli.codes import Outcome
from mafl_cli.config import AttackConfig
from mafl_cli.field.samples import Drawn
from mafl_cli.field.transforms import Transform
from mafl_cli.measure import agreement as metrics
from mafl_cli.measure import perturbation
from mafl_cli.measure.consequences import consequences
from mafl_cli.measure.draws import draws_of
from mafl_cli.measure.records import Agreement, Draws, Size, Survival, Unsettled
from mafl_cli.measure.value import Value
from mafl_cli.measure.visibility import visibility_of
from mafl_cli.network.chance import DRAWS_A_STEP
from mafl_cli.results import report
from mafl_cli.results.assemble import case_id
from mafl_cli.results.quantities import OF_DRAWS, QUANTITIES
from mafl_cli.scans import volume
from mafl_cli.scans.body import unmeasured
from mafl_cli.scans.masks import MaskFile
from mafl_cli.search.goals import Verdict

# Voxels that are compared together.
_BLOCK = 1 << 22


def facts_of(
    case: Case,
    config: AttackConfig,
    settled: Settled,
    again: list[volume.Volume],
    drawn: Drawn,
) -> report.CaseRecord:
    """Everything the report says about the case, from the file that was written (`again`) and its prediction.

    settled: what the search, or the best of several, found. drawn: the prediction of the file.
    What it took, and what is in the folder, is not known yet: `timing_s`, `memory` and `files` are empty.
    """
    found, subject, post_labels = settled.found, case.subject, drawn.labels
    scan, target, classes = subject.scan, case.target, subject.info.classes
    clean, post = subject.to_labels(case.clean_labels), subject.to_labels(post_labels)
    per_sample, together = case.goal(config).judge_together(post_labels)
    attacked = torch.tensor([outcome is not None for outcome in found.outcomes])
    reached = int((per_sample.reached.cpu() & attacked).sum())
    outcome = _overall(together, found)
    units = [float(unit) for unit in subject.preprocessing.unit]

    def agreement(labels: Labels) -> Agreement:
        return metrics.agreement(labels, target.labels, clean, classes, spacing=scan.spacing)

    size, sizes = perturbation.size_of_channels(
        subject.scans, again, units=units, channels=subject.info.channels, slice_axis=subject.slices.index
    )
    goal_reached = outcome in (Outcome.REACHED, Outcome.ALREADY)
    after = agreement(post)
    # As a rule the file holds what was in memory, and the distances take long.
    same = torch.equal(found.drawn.labels, post_labels)
    in_memory = after if same else agreement(subject.to_labels(found.drawn.labels))
    return report.CaseRecord(
        case_id=case_id(scan.name),
        status="ok",
        error=None,
        inputs=tuple(_input(channel, each) for channel, each in zip(subject.info.channels, subject.scans, strict=True)),
        target=target_of(case),
        space=_space(case, units),
        bounds=bounds_of(case, config),
        attack=report.Attack(
            outcome=outcome,
            goal_reached=goal_reached,
            samples=report.SamplesRecord(
                kind="slices" if subject.layout.sliced else "volume",
                total=len(subject.clean),
                attacked=int(attacked.sum()),
                reached=reached,
                not_reached=int(attacked.sum()) - reached,
                skipped_constant=found.constant,
            ),
            passes=report.Passes(forward=found.forward, backward=found.backward),
            draws_a_step=DRAWS_A_STEP if subject.by_chance else None,
            faithful=found.faithful.record,
            trace=found.trace,
            trust=believed(case, settled, config, reached=goal_reached, linf_share=_linf_share(sizes))
            if subject.oracle is None
            else None,
            local_optimum=found.local_optimum,
            worst=found.worst,
            queries=None if subject.oracle is None else _queries(subject.oracle, config),
        ),
        metrics=report.Metrics(
            clean=agreement(clean),
            in_memory=report.InMemory(
                target_iou=in_memory.target_iou, hit_rate=in_memory.hit_rate, accuracy=in_memory.accuracy
            ),
            post_write=after,
            consequences=consequences(clean, post, classes, spacing=scan.spacing),
            size=size,
            size_per_channel=sizes,
            visibility=visibility_of(
                subject.scans,
                again,
                channels=subject.info.channels,
                slice_axis=subject.slices.index,
                outside=[unmeasured(each) for each in subject.scans],
            ),
            draws=_draws(case, config, drawn, reached=goal_reached) if drawn.draws else None,
            evasion=evasion_of(subject, config, again, clean, post),
            survival=tuple(_survival(case, config, again, each) for each in transforms_of(config)) or None,
        ),
        quantisation=_quantisation(case, found, again),
        timing_s={},
        memory=report.Memory(peak_resident_bytes=None, peak_device_bytes=None),
        files=(),
    )


def _survival(case: Case, config: AttackConfig, again: Sequence[volume.Volume], transform: Transform) -> Survival:
    """What is left of the written file after a transform."""
    subject = case.subject
    aimed = Aimed(case.target.labels, subject.to_labels(case.clean_labels), subject.info.classes)
    before, after = (labels_after(transform, scans, subject) for scans in (subject.scans, again))
    return left_after(transform, before, after, aimed, (config.goal_iou, config.goal_hit))


def _queries(oracle: Oracle, config: AttackConfig) -> report.Queries:
    """What the search has asked; the file that was written was asked about once more."""
    return report.Queries(limit=config.steps, asked=oracle.asked - 1, repeated=oracle.repeated)


def _draws(case: Case, config: AttackConfig, drawn: Drawn, *, reached: bool) -> Draws:
    """What single draws of the model have, on the written file and on the clean scan."""
    subject, goal = case.subject, case.goal(config)
    clean = subject.to_labels(case.clean_labels)

    def measured(labels: Tensor) -> dict[str, Value]:
        return metrics.of_draw(subject.to_labels(labels), case.target.labels, clean, subject.info.classes)

    return draws_of(
        [
            measured(post) | {"target_iou_clean": measured(before)["target_iou"]}
            for post, before in zip(drawn.draws, case.clean_draws, strict=True)
        ],
        {name: QUANTITIES[name].span for name in OF_DRAWS},
        [bool(goal.judge_together(post)[1].reached[0]) for post in drawn.draws],
        reached=reached,
        unsettled=Unsettled(clean=case.clean_drawn.unsettled, adversarial=drawn.unsettled),
    )


def _linf_share(sizes: Sequence[Size]) -> float:
    """Largest change of a voxel as a share of the data range of its channel."""
    shares = [size.linf.native / size.data_range.value for size in sizes if size.data_range.value > 0]
    return max(shares, default=0.0)


def _input(channel: str, scan: volume.Volume) -> report.Input:
    i, j, k = scan.shape
    return report.Input(
        channel=channel,
        name=scan.name,
        format=scan.format,
        sha256=scan.sha256,
        shape=(i, j, k),
        spacing_mm=scan.spacing,
        axcodes=scan.axcodes,
        dtype=scan.dtype.name,
        warnings=tuple(scan.warnings),
    )


def _space(case: Case, units: Sequence[float]) -> report.Space:
    subject = case.subject
    slices = subject.slices
    return report.Space(
        mode="3d" if subject.mode == "3d" else "2d",
        slice_axis=report.SliceAxisRecord(index=slices.index, name=slices.name, reason=slices.reason),
        network_shape=tuple(subject.grids.to_network.shape_out),
        native_units_per_model_unit=tuple(units),
        data_box_native=tuple(
            (float(low), float(high)) for low, high in zip(case.limits.low, case.limits.high, strict=True)
        ),
    )


def voxels_of(case: Case, labels: Labels) -> dict[str, int]:
    """Voxels of each class, by name."""
    classes = case.subject.info.classes
    return {name: int(mask.sum()) for name, mask in zip(classes.names, classes.masks(labels), strict=True)}


def target_of(case: Case) -> report.TargetRecord:
    target = case.target
    return report.TargetRecord(
        recipe=target.recipe,
        files=tuple(_source(file) for file in target.files),
        voxels=voxels_of(case, target.labels),
    )


def _source(file: MaskFile) -> report.MaskFileRecord:
    counts = None
    if file.resampled is not None:
        counts = {str(label): report.Resampled(before=old, after=new) for label, (old, new) in file.resampled.items()}
    return report.MaskFileRecord(name=file.name, sha256=file.sha256, resampled=counts)


def bounds_of(case: Case, config: AttackConfig) -> report.BoundsRecord:
    """How far the change may go and where, per channel in both units; null where nothing limits it."""
    subject = case.subject
    ball, noise, bounds = case.limits.within(config).ball, case.limits.noise, case.bounds
    measured = True if subject.scan.padding is None else ~subject.scan.padding
    return report.BoundsRecord(
        eps_native=None if ball is None else tuple(float(each) for each in ball.radius),
        eps_model=None if ball is None else tuple(float(each) for each in ball.radius / case.limits.unit),
        noise_sigma_native=None if noise is None else tuple(float(each) for each in noise),
        norm=None if ball is None else ball.norm,
        within=None if bounds.within is None else _source(bounds.within),
        body_voxels=bounds.body_voxels,
        allowed_voxels=None if bounds.allowed is None else int(np.count_nonzero(bounds.allowed & measured)),
        padding_voxels=tuple(0 if scan.padding is None else int(scan.padding.sum()) for scan in subject.scans),
    )


def _overall(together: Verdict, found: Found) -> Outcome:
    """What became of the whole scan. together: its verdict as one sample, on the prediction of the written file."""
    if bool(together.reached[0]):
        return Outcome.REACHED if found.forward else Outcome.ALREADY
    tried = [outcome for outcome in found.outcomes if outcome is not None]
    if all(outcome is Outcome.NO_GRADIENT for outcome in tried):
        return Outcome.NO_GRADIENT
    return Outcome.STEP_LIMIT


def _quantisation(case: Case, found: Found, again: list[volume.Volume]) -> tuple[report.Quantisation, ...]:
    """What storing did to the change of each channel: type and step, and how far the file is from the memory."""
    entries = []
    for index, (scan, after) in enumerate(zip(case.subject.scans, again, strict=True)):
        grid = volume.stored_grid(scan, case.save_as)
        low, high = float(case.limits.low[index]), float(case.limits.high[index])
        changed, clipped, largest = 0, 0, 0.0
        for was, before, now in _parts(case, found, index, after.data):
            moved = now != was
            changed += int(np.count_nonzero(moved))
            clipped += int(np.count_nonzero(moved & ((now <= low) | (now >= high))))
            largest = max(largest, float(np.abs(now - before).max()))
        entries.append(
            report.Quantisation(
                save_as=case.save_as,
                dtype=after.dtype.name,
                step_native=None if grid is None else float(grid.step.max()),
                fraction_changed=changed / after.data.size,
                fraction_clipped=clipped / max(changed, 1),
                max_difference_from_memory_native=largest,
            )
        )
    return tuple(entries)


def _parts(
    case: Case, found: Found, channel: int, after: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """A channel as it was, as it was found, and as it was read again, some planes at a time."""
    for row, now in enumerate(case.subject.layout.as_batch(after[np.newaxis])[:, 0]):
        was, held = (each[channel].cpu().numpy() for each in (case.subject.clean[row], found.adversarial.one(row)))
        planes = max(1, _BLOCK // max(1, now[0].size))
        for first in range(0, len(now), planes):
            part = slice(first, first + planes)
            yield was[part], held[part], now[part]
