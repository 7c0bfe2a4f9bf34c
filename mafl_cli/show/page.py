"""One offline HTML page about one or more attacks, as a clinician would open it from a mail.

A single file: style, script and data stand in it, nothing is fetched, and its content security policy forbids that
anything is. What others wrote (names of files, classes, models) reaches the page as JSON and as text only, never as
markup. A scan gives the same page in all 48 ways of storing it, but for the array indices it names, and the same input
gives the same bytes.

The page is `page.html` with `page.css`, `page.js` and the data put in; `planes` tells how the pictures are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mafl_cli.codes import Outcome, Reason
from mafl_cli.errors import UsageError, cannot_be_written
from mafl_cli.results.envelope import NOTICE, Tool
from mafl_cli.results.quantities import PAGE, QUANTITIES
from mafl_cli.results.quantity import NumberFormat
from mafl_cli.results.report import CaseRecord, Model, Run
from mafl_cli.results.text import visible
from mafl_cli.show.display import MAX_MB
from mafl_cli.show.offline import as_json, document
from mafl_cli.show.planes import PageVolumes, PlaneStack, ViewerFacts

__all__ = ["PageCase", "PageVolumes", "Unread", "write"]

_MB = 1_000_000

# A page of many cases shows some of them properly rather than all of them not at all.
_LEAST_SHARE = 2 * _MB
# Bytes kept free for the sentence about the size.
_RESERVE = 2_000


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A case whose results cannot be read. error: why, as a sentence."""

    case_id: str
    error: str


@dataclass(frozen=True, kw_only=True)
class PageCase:
    """What the page says about one case, from its report, and how to come by what it shows."""

    case: CaseRecord | Unread
    model: Model
    run: Run
    tool: Tool
    classes: Sequence[str]
    """Name by label, background first."""
    volumes: Callable[[], PageVolumes]
    """Called once, when the case's turn comes, so that many cases never lie in memory together."""


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What several cases have in common."""

    model: Model
    run: Run
    tool: Tool
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _PageEntry:
    """A case as the script finds it. shared: its number in the list of these. seen: whether the change can be, as a
    sentence; empty where nothing was measured."""

    report: CaseRecord | Unread
    seen: str
    shared: int
    viewer: ViewerFacts | None = None


@dataclass(frozen=True, kw_only=True)
class _Printed:
    """How a quantity is named and printed, and where a report has it."""

    title: str
    form: NumberFormat
    place: str


@dataclass(frozen=True, kw_only=True)
class _Index:
    """All that the script knows but the planes. columns: names of the quantities in the table of cases."""

    notice: str
    sentences: dict[str, str]
    quantities: dict[str, _Printed]
    columns: tuple[str, ...]
    shared: list[_Shared]
    cases: list[_PageEntry]
    said: str = ""


def _index(cases: Sequence[PageCase]) -> _Index:
    shared: list[_Shared] = []
    entries = []
    for case in cases:
        facts = _Shared(model=case.model, run=case.run, tool=case.tool, classes=tuple(case.classes))
        if facts not in shared:
            shared.append(facts)
        seen = visible(case.case.metrics.visibility) if isinstance(case.case, CaseRecord) else ""
        entries.append(_PageEntry(report=case.case, seen=seen, shared=shared.index(facts)))
    return _Index(
        notice=NOTICE,
        sentences={**Outcome.sentences(), **Reason.sentences()},
        quantities={
            name: _Printed(title=quantity.title, form=quantity.form, place=quantity.place)
            for name, quantity in QUANTITIES.items()
            if quantity.place is not None
        },
        columns=PAGE,
        shared=shared,
        cases=entries,
    )


def write(
    path: Path,
    cases: Sequence[PageCase],
    *,
    title: str,
    max_mb: float = MAX_MB,
    window: tuple[float, float] | None = None,
) -> str:
    """Write the page.

    Args:
        cases: at least one; their order is that of the table.
        title: without anything that names the patient.
        max_mb: the file is not larger, in millions of bytes. Where all slices of all cases do not fit, a case first
            loses unchanged slices far from changed ones, then every other row and column of its scans, then its
            pictures; its numbers stay.
        window: native values shown black and white; None: 1st to 99th percentile of the body.
    Returns: one sentence on the size, what was left out and what was reduced; it stands on the page, too.
    Raises: UsageError when not even the numbers fit; OutputError when the file cannot be written.
    """
    index = _index(cases)
    left = int(max_mb * _MB) - len(_page(title, index, {})) - _RESERVE
    if left < 0:
        raise UsageError(f"the numbers of {len(cases)} cases alone need more than {max_mb:g} MB: raise `max_mb`.")

    planes: dict[int, list[str | None]] = {}
    reduced: list[str] = []
    for number, case in enumerate(cases):
        share = max(left // (len(cases) - number), min(left, _LEAST_SHARE))
        found = _viewer(case.volumes, share, window) if isinstance(case.case, CaseRecord) else None
        if found is not None:
            viewer, planes[number] = found
            index.cases[number] = replace(index.cases[number], viewer=viewer)
            left -= _cost(viewer) + _cost(planes[number])
            if viewer.reduced:
                reduced.append(viewer.reduced)
    said = _said(len(cases), sum(isinstance(case.case, CaseRecord) for case in cases) - len(planes), reduced)

    # The size stands on the page, and says itself how many digits it has.
    size = 0
    for _ in range(3):
        index = replace(index, said=said.format(size=f"{max(size / _MB, 0.1):.1f} MB"))
        text = _page(title, index, planes)
        if len(text) == size:
            break
        size = len(text)
    try:
        path.write_bytes(text.encode("ascii"))
    except OSError as exc:
        raise cannot_be_written(path.name, exc) from exc
    return index.said


def _said(cases: int, without: int, reduced: Sequence[str]) -> str:
    """The sentence about the page, with a place for `{size}`."""
    parts: list[str] = []
    if cases == 1:
        parts += reduced
    elif reduced:
        parts.append(f"the pictures of {len(reduced)} of {cases} cases are reduced, as said beside them")
    if without:
        whose = "its pictures" if cases == 1 else f"the pictures of {without} of {cases} cases"
        parts.append(f"{whose} did not fit and are left out; the numbers are all here")
    return "This page is {size}: " + ("; ".join(parts) or "every slice of every scan is in it") + "."


# --- text -------------------------------------------------------------------------------------------------------


def _cost(value: Any) -> int:
    """Bytes that a value takes on the page, with room for the tag around it."""
    return len(as_json(value)) + 100


def _page(title: str, index: _Index, planes: Mapping[int, Sequence[str | None]]) -> str:
    """The whole file, ASCII only."""
    data = {"index": as_json(index), **{f"planes-{number}": as_json(found) for number, found in planes.items()}}
    return document("page", title, {"notice": NOTICE}, data)


# --- one case ---------------------------------------------------------------------------------------------------


def _viewer(
    volumes: Callable[[], PageVolumes], limit: int, window: tuple[float, float] | None
) -> tuple[ViewerFacts, list[str | None]] | None:
    """What the page needs to show a case, and its slices, within `limit` bytes; None where that cannot be."""
    if limit < 20_000:
        return None
    stack = PlaneStack(volumes(), window)
    whole = stack.viewer()
    near = stack.near()
    many = len(stack.order)
    for keep, halved in ((range(many), False), (near, False), (range(many), True), (near, True)):
        viewer = replace(whole, halved=halved, reduced=_reduced(many - len(keep), halved))
        planes: list[str | None] = [None] * many
        left = limit - _cost(viewer) - 5 * many
        for place in keep:
            text = stack.encoded(place, halved)
            planes[place] = text
            left -= len(text) + 3
            if left < 0:
                break
        if left >= 0:
            return viewer, planes
    return None


def _reduced(left_out: int, halved: bool) -> str:
    parts = []
    if left_out:
        one = left_out == 1
        parts.append(f"{left_out} unchanged slice{' is' if one else 's are'} left out")
    if halved:
        parts.append("the scans are shown at half their resolution (means of 2 x 2 voxels), the masks in full")
    return "; ".join(parts)
