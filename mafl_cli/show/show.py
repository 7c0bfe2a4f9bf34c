"""Finished runs for the eye: a figure, a page, or the line that opens them in a viewer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mafl_cli.errors import InputError, UsageError
from mafl_cli.measure.records import Window
from mafl_cli.names import public_name
from mafl_cli.results import files, folder, read
from mafl_cli.results.reader_study import ShownCase
from mafl_cli.results.recorded import PairSource, distinct, of_runs, read_run
from mafl_cli.results.report import CaseRecord, Report
from mafl_cli.scans import nifti
from mafl_cli.show import display, figure, page, planes, study, viewers

# For regions that may overlap: each set of them has a name and a colour.
_MOST_REGIONS = 16


def show(
    runs: Sequence[Path],
    path: Path | None,
    *,
    rows: int = 3,
    window: str | None = None,
    max_mb: float = display.MAX_MB,
    overwrite: bool,
) -> str:
    """Write a figure of one run (.png, .pdf, .svg) or a page of one or more (.html); returns a line on what it shows.

    runs: result folders, or folders that hold some. path: None is figure.png in the run; for several runs page.html, in
        the folder that holds them if only that was named.
    rows: slices of a figure. window: of the grey values, see `show.display.parse_window`; None: what the body needs.
    Raises: InputError for a run that cannot be read; UsageError if the file is there or has another suffix, for a
        window that does not fit the scan, and for a figure of several runs.
    """
    sources = of_runs(runs)
    folders = [source.run for source in sources if source.run is not None and source.missing is None]
    if not folders:
        raise InputError(sources[0].missing or "there is no run.")
    alone = len(sources) == 1
    beside = runs[0] if len(runs) == 1 else Path()
    path = path or (folders[0] / "figure.png" if alone else beside / "page.html")
    paged = path.suffix.lower() == ".html"
    if not paged:
        figure.check_format(path)
        if not alone:
            raise UsageError(
                f"{public_name(path)}: a figure shows one run, {len(sources)} were given: write a page, .html."
            )
    _require_free(path, overwrite=overwrite)
    said: list[str] = []
    draw = _paged(sources, window, max_mb, said) if paged else _drawn(folders[0], window, rows, said)
    folder.write_through(path, draw)
    return f"{public_name(path)}: {said[0]}"


def reader_study(
    runs: Sequence[Path],
    path: Path,
    *,
    pairs: int = display.PAIRS,
    seed: int = 0,
    window: str | None = None,
    max_mb: float = display.MAX_MB,
    overwrite: bool,
) -> str:
    """Write a page on which people try to tell changed slices from clean ones, and its key; returns what is in them.

    Args: as in `show`, and as in `show.study.write`. path: .html; the key takes its place beside it, .key.json.
        window: None is the one in which each case's visibility was measured.
    Raises: as `show`; InputError for a run that is not complete, and where nothing was changed.
    """
    if path.suffix.lower() != ".html":
        raise UsageError(f"{public_name(path)}: a reader study must be .html: choose another suffix.")
    for file in (path, study.key_path(path)):
        _require_free(file, overwrite=overwrite)
    sources = of_runs(runs)
    reports, problems = _reports(sources)
    if problems:
        raise InputError(next(iter(problems.values())))
    shown = [_Shown.of(source.run, reports[source]) for source in sources if source.run]
    names = distinct([each.case.case_id for each in shown], sources)
    cases = [each.study_case(name, window) for each, name in zip(shown, names, strict=True)]
    return f"{public_name(path)}: {study.write(path, cases, pairs=pairs, seed=seed, max_mb=max_mb)}"


def _require_free(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError where a file is there that must stay."""
    if path.exists() and not overwrite:
        raise UsageError(f"{public_name(path)}: is there already: choose another name, or add `overwrite`.")


def _drawn(run: Path, window: str | None, rows: int, said: list[str]) -> Callable[[Path], None]:
    """What draws the figure; then `said` has the slices shown."""
    report = read.read_report(run)
    shown = _Shown.of(run, report)

    def paint(temporary: Path) -> None:
        slices = figure.panel(
            **shown.arrays(),
            class_names=_label_names(report),
            title=_title(shown.case) + (f" · {shown.channel}" if len(shown.case.inputs) > 1 else ""),
            path=temporary,
            rows=rows,
            window=shown.window(window),
            trace=shown.case.attack.trace,
        )
        said.append(f"slices {', '.join(map(str, slices))}")

    return paint


def _paged(sources: Sequence[PairSource], window: str | None, max_mb: float, said: list[str]) -> Callable[[Path], None]:
    """What writes the page; then `said` has a sentence on its size."""
    reports, problems = _reports(sources)
    shown = {source: _Shown.of(source.run, report) for source, report in reports.items() if source.run}
    names = distinct([shown[source].case.case_id if source in shown else source.case_id for source in sources], sources)
    some = next(iter(reports.values()))
    cases = []
    for source, name in zip(sources, names, strict=True):
        report, each = reports.get(source, some), shown.get(source)
        case = page.Unread(case_id=name, error=problems[source]) if each is None else replace(each.case, case_id=name)
        cases.append(
            page.PageCase(
                case=case,
                model=report.model,
                run=report.run,
                tool=report.tool,
                classes=_label_names(report),
                volumes=(each or shown[next(iter(shown))]).volumes,
            )
        )
    # A preset must fit every scan, not just the first.
    values = [each.window(window) for each in shown.values()]
    title = names[0] if len(cases) == 1 else f"{len(cases)} cases"
    return lambda temporary: said.append(page.write(temporary, cases, title=title, max_mb=max_mb, window=values[0]))


def _reports(sources: Sequence[PairSource]) -> tuple[dict[PairSource, Report], dict[PairSource, str]]:
    """Reports of the runs that have one, and why the others have none. Raises InputError where none has one."""
    reports: dict[PairSource, Report] = {}
    problems: dict[PairSource, str] = {}
    for source in sources:
        try:
            if source.missing is not None or source.run is None:
                raise InputError(source.missing or "there is no run.")
            reports[source] = read.read_report(source.run)
        except InputError as exc:
            problems[source] = str(exc)
    if not reports:
        raise InputError(next(iter(problems.values())))
    return reports, problems


@dataclass(frozen=True)
class _Shown:
    """The channel of a run that is shown: the one whose change is most visible."""

    run: Path
    case: CaseRecord
    index: int

    @staticmethod
    def of(run: Path, report: Report) -> _Shown:
        return _Shown(run, report.case, _most_visible(report.case))

    @property
    def channel(self) -> str:
        return self.case.inputs[self.index].channel

    def window(self, text: str | None) -> tuple[float, float] | None:
        return None if text is None else display.parse_window(text, hounsfield=self.channel == "CT")

    def arrays(self) -> dict[str, Any]:
        """What figures and pages are drawn from."""
        pair = read_run(self.run)
        assert pair.recorded is not None
        recorded, adversarial = pair.recorded, pair.adversarial[self.index]
        encode = recorded.report.model.drawn.encode
        masks = {
            name: encode(getattr(recorded, name)) for name in ("prediction_clean", "prediction_adversarial", "target")
        }
        return {
            "clean": pair.clean[self.index].data,
            "adversarial": adversarial.data,
            **masks,
            "affine": adversarial.affine,
            "slice_axis": self.case.space.slice_axis.index,
            "unit": "HU" if self.channel == "CT" else "native units",
        }

    def study_case(self, case_id: str, window: str | None) -> study.StudyCase:
        """As a reader study shows it. case_id: its name there."""
        chosen, measured = self.window(window), self.case.metrics.visibility.window
        return study.StudyCase(
            shown=ShownCase(
                case_id=case_id,
                channel=self.channel,
                window=measured if chosen is None else Window(low=chosen[0], high=chosen[1], rule="as it was given"),
            ),
            changed_slices=self.case.metrics.size_per_channel[self.index].changed_slices,
            volumes=self._both_scans,
        )

    def _both_scans(self) -> study.StudyVolumes:
        pair = read_run(self.run)
        adversarial = pair.adversarial[self.index]
        return study.StudyVolumes(
            clean=pair.clean[self.index].data,
            adversarial=adversarial.data,
            affine=adversarial.affine,
            slice_axis=self.case.space.slice_axis.index,
        )

    def volumes(self) -> planes.PageVolumes:
        return planes.PageVolumes(**self.arrays(), channel=self.channel if len(self.case.inputs) > 1 else None)


def view(run: Path, viewer: viewers.Viewer, *, overwrite: bool) -> str:
    """Write the file that names and colours the run's labels for a viewer; returns the line that opens the run there.

    That line shows the channel whose change is most visible, with the prediction on it. Its paths are absolute: it is
    for any shell.

    Raises InputError for a run that cannot be read, UsageError if another file has the place of the labels.
    """
    said = read.read_report(run)
    scan = run / files.adversarial([each.format for each in said.case.inputs])[_most_visible(said.case)]
    mask, path = run / files.PREDICTION_ADVERSARIAL, run / viewers.LABEL_FILES[viewer]
    for needed in (scan, mask):
        if not needed.exists():
            raise InputError(
                f"{public_name(run)}: {needed.name} is missing, so the run is not complete: attack the scan again."
            )
    text = viewers.label_file(viewer, _named_labels(run, said))
    if not path.exists() or path.read_bytes() != text.encode():
        # A user may have chosen other colours.
        if path.exists() and not overwrite:
            raise UsageError(f"{path.name}: is there already and says something else: add `overwrite` to replace it.")
        folder.write_text(path, text)
    return viewers.command(viewer, scan.resolve(), mask.resolve(), path.resolve())


def _named_labels(run: Path, said: Report) -> dict[int, str]:
    """Names of the codes above 0: of every class, but of sets of regions only those that occur, for they are many."""
    names = dict(enumerate(_label_names(said)))
    if said.model.drawn.maps > 1:
        masks = (files.PREDICTION_CLEAN, files.PREDICTION_ADVERSARIAL, files.TARGET)
        used = {int(code) for name in masks for code in np.unique(nifti.read_labels(run / name).labels)}
        names = {code: names[code] for code in sorted(used)}
    names.pop(0, None)
    return names


def _most_visible(case: CaseRecord) -> int:
    """The number of the channel in which the change is most visible; the longest one where that is not a channel."""
    channels, sizes = [each.channel for each in case.inputs], case.metrics.size_per_channel
    seen = case.metrics.visibility.channel
    return channels.index(seen) if seen in channels else max(range(len(sizes)), key=lambda n: sizes[n].l2.model)


def _label_names(said: Report) -> Sequence[str]:
    """What each number in the run's masks stands for. Raises InputError for too many regions that may overlap."""
    classes = said.model.drawn
    if classes.maps > _MOST_REGIONS:
        raise InputError(
            f"{said.case.case_id}: has {classes.maps} regions that may overlap; up to {_MOST_REGIONS} can be shown."
        )
    return classes.code_names()


def _title(case: CaseRecord) -> str:
    iou = case.metrics.post_write.target_iou.value
    psnr = case.metrics.size.psnr_db.value
    parts = [case.case_id]
    parts.append("target is empty" if iou is None else f"target IoU {iou:.3f}")
    if psnr is not None:
        parts.append(f"PSNR {psnr:.1f} dB")
    if case.metrics.evasion is not None:
        told = ", ".join(f"{each.detector} {each.above} of {len(each.samples)}" for each in case.metrics.evasion)
        parts.append(f"detectors that say more than of the clean scan: {told}")
    return " · ".join(parts)
