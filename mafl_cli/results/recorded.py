"""Runs as they were recorded: where they lie, what each holds, and which of its files changed since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from mafl_cli.classes import Labels
from mafl_cli.errors import InputError
from mafl_cli.names import public_name, sha256
from mafl_cli.results import files
from mafl_cli.results.files import PREDICTION_ADVERSARIAL, PREDICTION_CLEAN, REPORT, TARGET, TICKET
from mafl_cli.results.read import read_report
from mafl_cli.results.report import CaseRecord, Input, Report
from mafl_cli.results.run_folders import Place, places
from mafl_cli.scans import formats, nifti, volume
from mafl_cli.scans.forms import require_same_forms, require_same_grid
from mafl_cli.scans.geometry import require_same_space, same_space


@dataclass(frozen=True, eq=False)
class Recorded:
    """What a result folder says and holds beside its scans. Labels are (M, I, J, K), see `mafl_cli.classes`.

    folder: where it lies.
    """

    folder: Path
    report: Report
    prediction_clean: Labels
    prediction_adversarial: Labels
    target: Labels

    @property
    def case(self) -> CaseRecord:
        return self.report.case


@dataclass(frozen=True, eq=False)
class Pair:
    """Clean and adversarial scans, a file for each channel, on one grid. target: mask files, unless recorded."""

    case_id: str
    clean: tuple[volume.Volume, ...]
    adversarial: tuple[volume.Volume, ...]
    target: tuple[Path, ...] = ()
    recorded: Recorded | None = None


@dataclass(frozen=True)
class PairSource:
    """Where a pair comes from; `read` brings it into memory. missing: what is not there, as a sentence."""

    case_id: str
    run: Path | None = None
    original: tuple[Path, ...] = ()
    adversarial: tuple[Path, ...] = ()
    target: tuple[Path, ...] = ()
    missing: str | None = None

    def read(self) -> Pair:
        """Raises InputError when a file is missing or cannot be read, GeometryError when grids differ."""
        if self.missing is not None:
            raise InputError(self.missing)
        if self.run is not None:
            return read_run(self.run)
        clean, adversarial = (
            tuple(formats.read_scan(path, allow_gaps=True) for path in paths)
            for paths in (self.original, self.adversarial)
        )
        if len(clean) != len(adversarial):
            raise InputError(
                f"{self.case_id}: {len(clean)} original and {len(adversarial)} adversarial scans; "
                "give one of each for every channel."
            )
        clean, adversarial = (
            tuple(_on_grid_of(clean[0], scan) for scan in channels) for channels in (clean, adversarial)
        )
        return Pair(self.case_id, clean, adversarial, self.target)


def _on_grid_of(first: volume.Volume, scan: volume.Volume) -> volume.Volume:
    """A scan with the axes of another in the order of that one: converters turn them. Raises GeometryError."""
    if not same_space(first.shape, first.affine, scan.shape, scan.affine):
        require_same_forms(first, scan, coded=True)
    turned = formats.turned_onto(scan, first.shape, first.affine)
    if turned is None:
        require_same_grid(first, scan)
        return scan
    return turned


def of_runs(folders: Sequence[Path]) -> list[PairSource]:
    """Every result folder among these or below them, each once, in the order of their names; see `run_folders`.

    One that is not there, holds none or cannot be judged is a source too: reading it raises InputError.
    """
    found: dict[Path, Place] = {}
    for place in (place for folder in folders for place in places(folder)):
        # Each once, however often it was named; what is out of its place below one may be named as another.
        before = found.setdefault(place.folder.resolve(), place)
        if before.missing is not None and place.missing is None:
            found[place.folder.resolve()] = place
    names = told_apart([place.name for place in found.values()])
    return [
        PairSource(name, run=place.folder, missing=place.missing)
        for name, place in zip(names, found.values(), strict=True)
    ]


def told_apart(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that came before."""
    taken, distinct = set(names), list[str]()
    for name in names:
        free = (f"{name} ({number})" for number in count(2))
        chosen = name if name not in distinct else next(each for each in free if each not in taken)
        taken.add(chosen)
        distinct.append(chosen)
    return distinct


def distinct(case_ids: Sequence[str], sources: Sequence[PairSource]) -> list[str]:
    """Names of cases, those that several have with the name of their source behind them."""
    many = {name for name in case_ids if case_ids.count(name) > 1}
    return [
        f"{name} ({source.case_id})" if name in many else name for name, source in zip(case_ids, sources, strict=True)
    ]


def read_run(run: Path) -> Pair:
    """The scans and masks of a result folder.

    The clean scan is the adversarial file minus the perturbation file; in float32, so its last digit may differ.
    Raises: as `PairSource.read`.
    """
    report = read_report(run)
    case, classes = report.case, report.model.drawn
    for file in case.files:
        if not (run / file.name).is_file():
            raise InputError(
                f"{public_name(run)}: {file.name} is missing, so the run is not complete: attack the scan again."
            )
    clean, adversarial = _volumes(run, case.inputs)
    masks = {}
    for name, codes in _codes(run, adversarial[0]).items():
        if codes.max() >= classes.codes:
            raise InputError(f"{public_name(run)}: {name} has classes that its {REPORT} does not name.")
        masks[name] = classes.decode(codes)
    recorded = Recorded(
        run,
        report,
        masks[PREDICTION_CLEAN],
        masks[PREDICTION_ADVERSARIAL],
        masks[TARGET],
    )
    return Pair(case.case_id, clean, adversarial, recorded=recorded)


def changed_files(recorded: Recorded) -> list[str]:
    """Names of result files that are not those the report describes, whether changed since or never listed there."""
    said = {file.name: file.sha256 for file in recorded.case.files}
    there = [
        file.relative_to(recorded.folder).as_posix()
        for path in files.there(recorded.folder)
        if path.name not in (REPORT, TICKET)
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    ]
    return [name for name in sorted({*said, *there}) if said.get(name) != sha256(recorded.folder / name)]


def _volumes(run: Path, inputs: Sequence[Input]) -> tuple[tuple[volume.Volume, ...], tuple[volume.Volume, ...]]:
    """Clean and adversarial scans, one for each channel."""
    clean, changed = [], []
    names = files.adversarial([each.format for each in inputs])
    for name, change in zip(names, files.perturbation(len(names)), strict=True):
        adversarial = formats.read_written(run / name)
        perturbation = nifti.read_float(run / change)
        require_same_space(name, adversarial.shape, adversarial.affine, change, perturbation.shape, perturbation.affine)
        changed.append(adversarial)
        clean.append(replace(adversarial, data=adversarial.data - perturbation.data))
    return tuple(clean), tuple(changed)


def _codes(run: Path, like: volume.Volume) -> dict[str, Labels]:
    """Target and predictions by file name as they are written, (I, J, K), on the grid of the scan."""
    found: dict[str, Labels] = {}
    for name in (PREDICTION_CLEAN, PREDICTION_ADVERSARIAL, TARGET):
        mask = nifti.read_labels(run / name)
        require_same_space(like.name, like.shape, like.affine, name, mask.labels.shape, mask.affine)
        found[name] = mask.labels
    return found
