"""One change for many scans: the cases of a batch prepared together, one search, and a result folder for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mafl_cli.batch import batch, local, tables
from mafl_cli.batch.local import Row
from mafl_cli.batch.universal_summary import summed_up
from mafl_cli.case.faithful import Faithfulness, ask
from mafl_cli.case.hiding import hidden
from mafl_cli.case.pipeline import write_found
from mafl_cli.case.prepare import Case, prepare
from mafl_cli.case.problem import Say
from mafl_cli.case.request import AttackRequest
from mafl_cli.case.searching import Found
from mafl_cli.case.surviving import Survivors
from mafl_cli.codes import Outcome
from mafl_cli.config import NOTE, AttackConfig, config_hash
from mafl_cli.errors import DiskFullError, GeometryError, InputError, Interrupted, UsageError
from mafl_cli.field.carry import Carry
from mafl_cli.field.samples import Changed
from mafl_cli.listing.cases import CaseFiles
from mafl_cli.names import outside, public_name, sha256
from mafl_cli.network import chance
from mafl_cli.network.device import exactly, pick_device
from mafl_cli.results.batch_report import Ticket
from mafl_cli.results.folder import write_text, write_through
from mafl_cli.results.report import File, Report
from mafl_cli.results.universal_report import (
    UNIVERSAL,
    Role,
    SharedChange,
    UniversalReport,
)
from mafl_cli.scans import geometry, nifti_write
from mafl_cli.search.certificate import Estimate
from mafl_cli.search.loop import StepRecord
from mafl_cli.search.universal import Piece, Universal, require_possible, search
from mafl_cli.system import interrupts, sizes
from mafl_cli.system.records import to_json


@dataclass(frozen=True, kw_only=True)
class UniversalRequest:
    """What is asked of one change for many scans.

    attack: what all share; images, targets and out are put in for each. holdout: the share of the cases that the change
    is not made on, drawn by the seed, or their names; none if empty.
    """

    cases: tuple[CaseFiles, ...]
    attack: AttackRequest
    out: Path
    holdout: float | tuple[str, ...] = ()
    overwrite: bool = False


@dataclass(frozen=True)
class _Scan:
    """A case that is ready: what is asked of it, and the way of the shared change to it."""

    request: AttackRequest
    case: Case
    carry: Carry


def roles(cases: Sequence[CaseFiles], holdout: float | tuple[str, ...], seed: int) -> dict[str, Role]:
    """Which cases the change is made on, and which are held out, by their names.

    Raises: UsageError for names that no case has, and where no case is left to make it on.
    """
    names = [case.case_id for case in cases]
    if isinstance(holdout, tuple):
        held = set(holdout)
        for name in holdout:
            if name not in names:
                raise UsageError(f"`holdout`: there is no case {outside(name)!r}: cases have the names of their scans.")
    else:
        count = math.ceil(holdout * len(names)) if holdout > 0 else 0
        drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        held = {names[index] for index in drawn[:count]}
    if len(held) == len(names):
        raise UsageError("`holdout` leaves no case to make the change on: hold out fewer.")
    return {name: "held_out" if name in held else "made_on" for name in names}


def run_universal(
    request: UniversalRequest,
    *,
    say: Say,
    on_step: Callable[[int, StepRecord], None] = lambda total, record: None,
    on_row: Callable[[str, Row], None] = lambda case_id, row: None,
) -> UniversalReport:
    """Find one change for the cases, write what it makes of each, and return what it does.

    Writes the change (`universal.nii.gz`, numbered for several channels), `universal.json`, a result folder for each
    case, and the tables of a batch. All cases that the change is made on are in memory at the same time.

    Args:
        on_step: called after each step with how many there are at most. on_row: with what became of each case.
    Raises: UsageError for settings that cannot be, and a folder that holds results; InputError if no case is left to
        make the change on. What is wrong with one case is in its row.
    """
    config, attack = request.attack.config, request.attack
    require_possible(config)
    if attack.ladder:
        raise UsageError("`universal` does not climb a `ladder`: leave one of them out.")
    parts = roles(request.cases, request.holdout, config.seed)
    if not request.overwrite and any((request.out / case.case_id).exists() for case in request.cases):
        raise UsageError(
            f"{public_name(request.out)}: already holds results: choose another folder with `out`, or add `overwrite`."
        )
    settings = config_hash(config, batch.request_hash(attack), "universal", sorted(parts.items()))
    device = pick_device(attack.device)
    if attack.device == "auto":
        say(f"device: {device}")
    torch.manual_seed(config.seed)
    with (
        _told_when_interrupted(),
        batch.part_held(request.out, (0, 1)),
        sizes.limited(attack.size_limit),
        exactly(device),
    ):
        batch.claim(request.out, settings, request.cases, overwrite=request.overwrite)
        work = _Work(request, settings, device, on_row)
        made_on = [case for case in request.cases if parts[case.case_id] == "made_on"]
        scans = {case.case_id: scan for case in made_on if (scan := work.ready(case)) is not None}
        if not scans:
            tables.aggregate(request.out)
            raise InputError("no case is left to make the change on: failed.txt says what is wrong with each.")
        found, faithful = _found(list(scans.values()), config, on_step)
        change = _write_change(request.out, next(iter(scans)), next(iter(scans.values())), found, config)
        passes = dict(zip(scans, found.passes, strict=True))
        for case in request.cases:
            role = parts[case.case_id]
            scan = scans.pop(case.case_id, None) if role == "made_on" else work.ready(case)
            if scan is not None:
                work.written(
                    case, scan, found.delta, role, passes.get(case.case_id, (0, 0)), faithful.get(case.case_id)
                )
        whole = summed_up(parts, work.rows, work.ways, work.reports, change)
        write_text(request.out / UNIVERSAL, to_json(whole))
        tables.aggregate(request.out)
        return whole


@contextmanager
def _told_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as exc:
        said = "interrupted; scans that were written are whole, but there is no summary: the search begins anew."
        raise Interrupted(said, interrupts.exit_code(exc)) from exc


class _Work:
    """What becomes of the cases, one by one: whatever goes wrong with one is its own row."""

    def __init__(
        self,
        request: UniversalRequest,
        settings: str,
        device: torch.device,
        on_row: Callable[[str, Row], None],
    ) -> None:
        self._request, self._settings, self._device, self._on_row = request, settings, device, on_row
        self._first: Case | None = None
        self._grid = ""
        self.rows: dict[str, Row] = {}
        self.reports: dict[str, Report] = {}
        self.ways: dict[str, Carry] = {}

    def ready(self, case: CaseFiles) -> _Scan | None:
        """A case read and brought onto the model's grid; None for one that cannot be."""
        ready: list[_Scan] = []

        def work(say: Say) -> None:
            if case.problem is not None:
                raise InputError(case.problem)
            asked = batch.request_of(case, self._request.attack, self._request.out / case.case_id)
            with hidden(asked, say, lambda line: None) as hide:
                found = prepare(asked, self._device, hide.say)
                first = self._first or found
                scan, grid = found.subject.scan, first.subject.scan
                carry = Carry.of(grid.shape, grid.affine, scan.shape, scan.affine, found.subject.layout, self._device)
                if not bool(carry.inside.any()):
                    raise GeometryError(
                        f"{scan.name} does not overlap {self._grid}, whose grid the change is on: bring the scans of "
                        "one protocol into one space first, or leave this one out."
                    )
            if self._first is None:
                self._first, self._grid = found, case.case_id
            self.ways[case.case_id] = carry
            ready.append(_Scan(asked, found, carry))

        self._settled(case, local.guarded(case.case_id, work), done=False)
        return ready[0] if ready else None

    def written(
        self,
        case: CaseFiles,
        scan: _Scan,
        delta: Tensor,
        role: Role,
        passes: tuple[int, int],
        faithful: Faithfulness | None,
    ) -> None:
        """Change a scan, and write its result folder."""

        def work(say: Say) -> None:
            found = _changed(scan, delta, passes, faithful or Faithfulness(None))
            self.reports[case.case_id] = write_found(
                scan.request, scan.case, found, universal=role, say=say, detail=lambda line: None,
                ticket=self._ticket(case),
            )  # fmt: skip

        self._settled(case, local.guarded(case.case_id, work), done=True)

    def _settled(self, case: CaseFiles, row: Row, *, done: bool) -> None:
        if row.error is None and not done:
            return
        if row.error is not None and row.error.type == DiskFullError.__name__:
            raise DiskFullError(row.error.message)
        folder = self._request.out / case.case_id
        batch.settle(folder, local.Job(case.case_id, self._request.attack, self._ticket(case)), row)
        self.rows[case.case_id] = row
        self._on_row(case.case_id, row)

    def _ticket(self, case: CaseFiles) -> Ticket:
        return Ticket(request=self._settings, files=tuple(batch.fingerprint(path) for path in batch.files_of(case)))


def _found(
    scans: Sequence[_Scan], config: AttackConfig, on_step: Callable[[int, StepRecord], None]
) -> tuple[Universal, dict[str, Faithfulness]]:
    """The search, and how far the graph of the model is from its file on each scan, by the name of the case."""
    first = scans[0].case.subject
    channels = len(first.scans)
    support = _support(scans, channels)
    faithful: dict[str, Faithfulness] = {}
    pieces: list[list[Piece]] = []
    survivors = [Survivors(scan.case, config) for scan in scans]
    for scan, views in zip(scans, survivors, strict=True):
        rows = _reached_by(scan, support)
        faithful[scan.request.out.name] = ask(scan.case, rows)
        pieces.append(_pieces(scan, rows, config, views))

    def renew(delta: Tensor) -> None:
        for scan, parts, views in zip(scans, pieces, survivors, strict=True):
            whole = scan.case.subject.clean.clone()
            for piece in parts:
                whole[piece.rows] = piece.changed(delta)
            field = scan.case.subject.field(scan.case.refrozen(whole), exact=False)
            for piece in parts:
                piece.field = views.of(field, config.seed)

    found = search(
        pieces,
        (channels, *first.scan.shape),
        config,
        spacing=geometry.spacing(first.scan.affine),
        renew=renew,
        on_step=lambda record: on_step(config.steps, record),
    )
    each = [chance.DRAWS_A_STEP if scan.case.subject.by_chance else 1 for scan in scans]
    passes = tuple(
        (forward * draws * views.views, backward * draws * views.views)
        for (forward, backward), draws, views in zip(found.passes, each, survivors, strict=True)
    )
    return replace(found, passes=passes), faithful


def _pieces(scan: _Scan, rows: Tensor, config: AttackConfig, survivors: Survivors) -> list[Piece]:
    """The samples of a scan, as many together as go through its search."""
    case, subject = scan.case, scan.case.subject
    field = survivors.of(subject.field(exact=False), config.seed)
    pieces = []
    for some in torch.split(rows, subject.together):
        target = subject.info.classes.to_network(case.wanted[some]).long()
        limits = case.limits.part(some, ())
        pieces.append(Piece.of(field, subject.clean[some], target, limits, config, scan.carry, some))
    return pieces


def _support(scans: Sequence[_Scan], channels: int) -> Tensor:
    """Where the change can be: around the slices, or in the volumes, of which some scan has something to change."""
    total = torch.zeros(channels, *scans[0].carry.shape, device=scans[0].case.subject.clean.device)
    for scan in scans:
        rows = torch.nonzero(scan.case.edited).flatten()
        if len(rows):
            total += scan.carry.back(torch.ones_like(scan.case.subject.clean[rows]), rows)
    return (total > 0).to(total)


def _reached_by(scan: _Scan, change: Tensor) -> Tensor:
    """The samples of a scan that a change on the shared grid alters, constant ones left out: (b,)."""
    clean = scan.case.subject.clean
    moved = torch.stack(
        [(scan.carry(change, torch.tensor([row], device=clean.device)) != 0).any() for row in range(len(clean))]
    )
    flat = clean.flatten(1)
    return torch.nonzero(moved & (flat != flat[:, :1]).any(dim=1)).flatten()


def _changed(scan: _Scan, delta: Tensor, passes: tuple[int, int], faithful: Faithfulness) -> Found:
    """What the shared change makes of a scan, before it is written."""
    case, subject, config = scan.case, scan.case.subject, scan.request.config
    limits = case.limits.within(config)
    share = case.limits.ruler(config) / limits.unit
    rows = _reached_by(scan, delta)
    adversarial = Changed(subject.clean, rows)
    for some in torch.split(rows, subject.together):
        moved = scan.carry(delta, some) * share.view(1, -1, *(1,) * (subject.clean.ndim - 2))
        part = limits.part(some, ())
        adversarial[some] = part.project(subject.clean[some], moved, torch.arange(len(some), device=some.device))
    drawn = subject.drawn(adversarial, case.refrozen(adversarial.whole()), like=[case.clean_drawn])
    reached = case.goal(config).judge(drawn.labels).reached
    outcomes = tuple(
        None if not edited else Outcome.REACHED if met else Outcome.STEP_LIMIT
        for edited, met in zip(case.edited.tolist(), reached.tolist(), strict=True)
    )
    return Found(
        adversarial=adversarial,
        drawn=drawn,
        info=subject.info.with_gradient(subject.segmenter.gradient_from, faithful.sentence),
        faithful=faithful,
        outcomes=outcomes,
        # The prediction that judges it is one pass at least.
        forward=max(passes[0], len(rows)),
        backward=passes[1],
        estimate=Estimate.none(subject.clean),
    )


def _write_change(out: Path, name: str, scan: _Scan, found: Universal, config: AttackConfig) -> SharedChange:
    """Write the change on the grid of the first scan, and say what it is."""
    assert config.eps is not None
    delta = found.delta.cpu().numpy()
    volume = scan.case.subject.scan
    files = []
    for index, channel in enumerate(delta):
        file = out / (f"universal_{index:04d}.nii.gz" if len(delta) > 1 else "universal.nii.gz")
        write_through(file, partial(nifti_write.write_float, like=volume, data=channel, note=NOTE))
        files.append(File(name=file.name, sha256=sha256(file)))
    i, j, k = volume.shape
    return SharedChange(
        files=tuple(files),
        unit=config.eps_unit,
        eps=config.eps,
        norm=config.norm,
        linf=float(np.abs(delta).max()),
        l2=float(np.linalg.norm(delta.astype(np.float64))),
        grid=name,
        shape=(i, j, k),
        spacing_mm=geometry.spacing(volume.affine),
        axcodes=geometry.axcodes(volume.affine),
        steps=config.steps,
    )
