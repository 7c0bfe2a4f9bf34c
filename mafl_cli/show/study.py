"""A reader study as one offline HTML file: can people tell the changed slices from the clean ones?

The protocol is the one by which the limits of compression were found (Lee et al., Eur. Radiol. 17:1529, 2007): two
pictures of one slice take turns on the same place of the screen, and a reader says whether they can be told apart. As
many pairs are controls, the same picture twice, because who looks for a difference sees one now and then.

The page holds the pictures and nothing that says which pairs are changed; that is in the key beside it. Each picture is
stored as the grey levels of a screen, less the level before it, modulo 256; the second one from its last pixel to its
first, so that two equal pictures are not equal text. Who wants to cheat compares them by a program, as with any test
that shows both pictures.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.errors import InputError, UsageError
from mafl_cli.names import public_name
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION, TOOL
from mafl_cli.results.folder import write_text
from mafl_cli.results.reader_study import KeyPair, ScanName, ShownCase, StudyKey
from mafl_cli.scans.body import Air
from mafl_cli.scans.geometry import Affine
from mafl_cli.show.offline import as_json, document
from mafl_cli.show.screen import grey_levels, largest_spot
from mafl_cli.show.slices import box_around, oriented_slice
from mafl_cli.system.records import to_json

Levels = NDArray[np.uint8]

_MB = 1_000_000
# Slices from all over a scan that show what is air.
_SAMPLES = 24
_TITLE = "Reader study"


@dataclass(frozen=True, kw_only=True)
class StudyVolumes:
    """Both scans of a case, (I, J, K), native units."""

    clean: NDArray[Any]
    adversarial: NDArray[Any]
    affine: Affine
    slice_axis: int


@dataclass(frozen=True, kw_only=True)
class StudyCase:
    """A case of a study. changed_slices: how many differ at all. volumes: called once, when the case's turn comes."""

    shown: ShownCase
    changed_slices: int
    volumes: Callable[[], StudyVolumes]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Slice:
    """A slice that is shown, (rows, columns) in the radiological convention. spot: see `screen.largest_spot`."""

    case_id: str
    index: int
    clean: Levels
    adversarial: Levels
    aspect: float
    spot: float


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A pair as the script finds it. picture: see the module."""

    rows: int
    columns: int
    aspect: float
    picture: str


def key_path(page: Path) -> Path:
    """Where the key of a page lies: `study.html` has `study.key.json` beside it."""
    return page.with_suffix(".key.json")


def write(page: Path, cases: Sequence[StudyCase], *, pairs: int, seed: int, max_mb: float) -> str:
    """Write the page, and its key beside it.

    Args:
        cases: at least one. Their changed slices are taken by turns, of each those whose change is most visible.
        pairs: at most so many, at least 2; one half are controls, of the same slices.
        seed: of the order, of which slice is shown first, and of which scan a control shows.
        max_mb: the page is not larger, in millions of bytes; the pairs that are least visible are left out.
    Returns: a sentence on what is shown.
    Raises: InputError where no slice was changed; UsageError where not one pair fits, or files cannot be written.
    """
    random = np.random.default_rng(seed)
    slices = [
        each
        for case, number in zip(cases, _turns([case.changed_slices for case in cases], pairs // 2, random), strict=True)
        if number
        for each in _most_visible(case, number)
    ]
    if not slices:
        raise InputError("no slice was changed: there is nothing to tell apart.")
    slices.sort(key=lambda each: each.spot, reverse=True)
    found: list[tuple[KeyPair, _Shown]] = []
    left = max_mb * _MB - len(_page("0" * 64, []))
    for each in slices:
        two = [_pair(each, *names) for names in _both_kinds(random)]
        left -= sum(len(as_json(shown)) + 1 for _, shown in two)
        if left < 0:
            break
        found += two
    if not found:
        raise UsageError(f"one pair of slices alone needs more than {max_mb:g} MB: raise `max_mb`.")
    order = [found[n] for n in random.permutation(len(found))]
    shown = [each for _, each in order]
    key = StudyKey(
        schema_version=SCHEMA_VERSION,
        tool=TOOL,
        notice=NOTICE,
        kind="reader-study-key",
        study="0" * 64,
        pictures=hashlib.sha256("".join(each.picture for each in shown).encode()).hexdigest(),
        seed=seed,
        cases=tuple(case.shown for case in cases),
        pairs=tuple(pair for pair, _ in order),
    ).named()
    write_text(page, _page(key.study, shown))
    write_text(key_path(page), to_json(key))
    return _said(page, key, len(slices))


def _said(page: Path, key: StudyKey, chosen: int) -> str:
    changed = sum(pair.changed for pair in key.pairs)
    alike = sum(pair.changed and not pair.grey_levels for pair in key.pairs)
    left_out = f"; {chosen - changed} more changed slices did not fit" if chosen > changed else ""
    unseen = f"; in {alike} of the changed pairs no pixel of the screen differs" if alike else ""
    return (
        f"{len(key.pairs)} pairs, {changed} changed and {len(key.pairs) - changed} controls{unseen}{left_out}. Give "
        f"readers the page alone: {public_name(key_path(page))} says which pairs are changed."
    )


def _turns(there: Sequence[int], wanted: int, random: np.random.Generator) -> list[int]:
    """How many slices to take of each case: one of each by turns, as long as there are some."""
    taken = [0] * len(there)
    while sum(taken) < wanted and taken != list(there):
        for n in random.permutation(len(there)):
            if taken[n] < there[n] and sum(taken) < wanted:
                taken[n] += 1
    return taken


def _most_visible(case: StudyCase, number: int) -> list[_Slice]:
    """The slices of a case whose change is most visible, cut to the body."""
    volumes = case.volumes()
    window = case.shown.window.low, case.shown.window.high
    if not window[0] < window[1]:
        raise InputError(f"{case.shown.case_id}: the scan is constant, so that there is nothing to show.")
    axis, count = volumes.slice_axis, volumes.clean.shape[volumes.slice_axis]

    def plane(volume: NDArray[Any], index: int) -> NDArray[Any]:
        return np.ascontiguousarray(oriented_slice(volume, volumes.affine, axis, index)[0])

    both = ((n, plane(volumes.clean, n), plane(volumes.adversarial, n)) for n in range(count))
    spots = [
        (largest_spot(grey_levels(before, window), grey_levels(after, window)).levels, n)
        for n, before, after in both
        if not np.array_equal(before, after)
    ]
    chosen = sorted(spots, key=lambda each: (-each[0], each[1]))[:number]
    air = Air.around(np.stack([plane(volumes.clean, n) for n in range(0, count, max(1, count // _SAMPLES))]))
    keep = np.zeros(plane(volumes.clean, 0).shape, np.bool_)
    for _, n in chosen:
        before, after = plane(volumes.clean, n), plane(volumes.adversarial, n)
        keep |= (before != after) | (True if air is None else air.body(before))
    box = box_around(keep)
    aspect = oriented_slice(volumes.clean, volumes.affine, axis, 0)[2]
    return [
        _Slice(
            case_id=case.shown.case_id,
            index=n,
            clean=grey_levels(plane(volumes.clean, n)[box], window),
            adversarial=grey_levels(plane(volumes.adversarial, n)[box], window),
            aspect=aspect,
            spot=spot,
        )
        for spot, n in chosen
    ]


def _both_kinds(random: np.random.Generator) -> list[tuple[ScanName, ScanName]]:
    """What a changed pair and a control show first and second."""
    scans: tuple[ScanName, ScanName] = ("clean", "adversarial")
    first, twice = (int(n) for n in random.integers(0, 2, 2))
    return [(scans[first], scans[1 - first]), (scans[twice], scans[twice])]


def _pair(each: _Slice, first: ScanName, second: ScanName) -> tuple[KeyPair, _Shown]:
    levels = {"clean": each.clean, "adversarial": each.adversarial}
    one, other = levels[first], levels[second]
    key = KeyPair(
        case_id=each.case_id,
        slice=each.index,
        first=first,
        second=second,
        grey_levels=int(np.abs(one.astype(int) - other).max()),
    )
    stored = _steps(one.ravel()) + _steps(other.ravel()[::-1])
    text = base64.b64encode(zlib.compress(stored, 6)).decode("ascii")
    return key, _Shown(rows=one.shape[0], columns=one.shape[1], aspect=round(each.aspect, 6), picture=text)


def _steps(levels: Levels) -> bytes:
    """Levels (n,) less the one before, modulo 256."""
    return bytes((levels - np.concatenate([np.zeros(1, np.uint8), levels[:-1]])).tobytes())


def _page(study: str, shown: Sequence[_Shown]) -> str:
    data = {"version": SCHEMA_VERSION, "study": study, "pairs": list(shown)}
    return document("study", _TITLE, {"notice": NOTICE}, {"study": as_json(data)})
