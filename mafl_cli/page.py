"""One offline HTML page about one or more attacks, as a clinician would open it from a mail.

A single file: style, script and data stand in it, nothing is fetched, and its content security policy forbids that
anything is. What others wrote (names of files, classes, models) reaches the page as JSON and as text only, never as
markup. Pictures follow the radiological convention of `figures`, so a scan gives the same page in all 48 ways of
storing it, but for the array indices it names. The same input gives the same bytes.

Words. *plane*: one slice turned for the eye and cut to the body. *code*: the whole number a value is stored as,
value = offset + code * step. *asked for*: where the target differs from the clean prediction.

Each slice is one zlib stream, Base64, of five planes: clean, adversarial - clean, clean prediction, adversarial
prediction - clean prediction, target - clean prediction. Of each plane, 16-bit codes less their left neighbour, row by
row, modulo 65536; first all low bytes, then all high bytes. Codes rather than grey values let the page show any window
and say what a voxel holds.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from mafl_cli import figures
from mafl_cli.errors import OutputError, UsageError
from mafl_cli.geometry import Affine

NOTICE = "Adversarial data made to deceive a model. Not for clinical use."

_FILES = Path(__file__).parent
_MB = 1_000_000

# Non-integer values get so many steps over the window, or 65535 over all values where that is coarser.
_STEPS = 4095
# Of the range: values this near to whole numbers are stored as these. A clean scan found as the difference of two
# float32 files is off by the last digit.
_WHOLE = 1e-4
# Of the grey window: nearer than this to the value around the body counts as empty.
_EMPTY = 0.05
# Unchanged slices kept on each side of one that changed or was asked to, when space is short.
_NEIGHBOURS = 3
# A page of many cases shows some of them properly rather than all of them not at all.
_LEAST_SHARE = 2 * _MB
# Bytes kept free for the sentence about the size.
_RESERVE = 2_000


@dataclass(frozen=True, kw_only=True)
class PageCase:
    """What the page says about one case, from its report, and how to come by what it shows."""

    report: Mapping[str, Any]
    """One entry of `cases` in report.json."""
    model: Mapping[str, Any]
    run: Mapping[str, Any]
    tool: Mapping[str, Any]
    classes: Sequence[str]
    """Name by label, background first."""
    volumes: Callable[[], PageVolumes]
    """Called once, when the case's turn comes, so that many cases never lie in memory together."""


@dataclass(frozen=True, kw_only=True)
class PageVolumes:
    """The arrays of one case, (I, J, K) each: scans in native units, masks as labels."""

    clean: NDArray[Any]
    adversarial: NDArray[Any]
    prediction_clean: NDArray[Any]
    prediction_adversarial: NDArray[Any]
    target: NDArray[Any]
    affine: Affine
    slice_axis: int
    unit: str
    """"HU" or "native units"."""
    channel: str | None = None
    """Named on the page where a scan has several."""


def write(
    path: Path,
    cases: Sequence[PageCase],
    *,
    title: str,
    max_mb: float = 20.0,
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
    shared: list[str] = []
    entries: list[dict[str, Any]] = []
    for case in cases:
        facts = _json({"model": case.model, "run": case.run, "tool": case.tool, "classes": list(case.classes)})
        if facts not in shared:
            shared.append(facts)
        entries.append({"report": case.report, "shared": shared.index(facts), "viewer": None})
    index = {"notice": NOTICE, "shared": [json.loads(facts) for facts in shared], "cases": entries, "said": ""}
    left = int(max_mb * _MB) - len(_page(title, index, {})) - _RESERVE
    if left < 0:
        raise UsageError(f"the numbers of {len(cases)} cases alone need more than {max_mb:g} MB; allow a larger page.")

    planes: dict[int, list[str | None]] = {}
    reduced: list[str] = []
    for number, case in enumerate(cases):
        share = max(left // (len(cases) - number), min(left, _LEAST_SHARE))
        found = _viewer(case.volumes, share, window) if case.report.get("metrics") else None
        if found is not None:
            entries[number]["viewer"], planes[number] = found
            left -= _cost(found[0]) + _cost(found[1])
            if found[0]["reduced"]:
                reduced.append(str(found[0]["reduced"]))
    said = _said(len(cases), sum(bool(case.report.get("metrics")) for case in cases) - len(planes), reduced)

    # The size stands on the page, and says itself how many digits it has.
    size = 0
    for _ in range(3):
        index["said"] = said.format(size=f"{max(size / _MB, 0.1):.1f} MB")
        text = _page(title, index, planes)
        if len(text) == size:
            break
        size = len(text)
    try:
        path.write_bytes(text.encode("ascii"))
    except OSError as exc:
        raise OutputError(f"{path.name}: cannot be written ({exc.strerror}).") from exc
    return str(index["said"])


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
    return "This page has {size}: " + ("; ".join(parts) or "every slice of every scan is in it") + "."


# --- text -------------------------------------------------------------------------------------------------------


def _json(value: Any) -> str:
    """Strict JSON in ASCII that no HTML parser can take for markup, whatever stands in its strings."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cost(value: Any) -> int:
    """Bytes that a value takes on the page, with room for the tag around it."""
    return len(_json(value)) + 100


def _page(title: str, index: Mapping[str, Any], planes: Mapping[int, Sequence[str | None]]) -> str:
    """The whole file, ASCII only."""
    style, script, template = (
        (_FILES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    data = [("index", _json(index)), *((f"planes-{number}", _json(found)) for number, found in planes.items())]
    parts: dict[str, str] = {
        "title": html.escape(title).encode("ascii", "xmlcharrefreplace").decode("ascii"),
        "notice": NOTICE,
        # Hashes rather than 'unsafe-inline': should anything else ever get into the page, it will not run.
        "policy": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": "\n".join(f'<script type="application/json" id="{name}">{text}</script>' for name, text in data),
    }
    # In one pass: what is put in is not searched for places to put something in.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- one case ---------------------------------------------------------------------------------------------------


def _viewer(
    volumes: Callable[[], PageVolumes], limit: int, window: tuple[float, float] | None
) -> tuple[dict[str, Any], list[str | None]] | None:
    """What the page needs to show a case, and its slices, within `limit` bytes; None where that cannot be."""
    if limit < 20_000:
        return None
    stack = _Stack(volumes(), window)
    facts = stack.facts()
    near = stack.near()
    many = len(stack.order)
    for keep, halved in ((range(many), False), (near, False), (range(many), True), (near, True)):
        facts |= {"halved": halved, "reduced": _reduced(many - len(keep), halved)}
        planes: list[str | None] = [None] * many
        left = limit - _cost(facts) - 5 * many
        for place in keep:
            text = stack.encoded(place, halved)
            planes[place] = text
            left -= len(text) + 3
            if left < 0:
                break
        if left >= 0:
            return facts, planes
    return None


def _reduced(left_out: int, halved: bool) -> str:
    parts = []
    if left_out:
        one = left_out == 1
        parts.append(f"{left_out} unchanged slice{' is' if one else 's are'} left out")
    if halved:
        parts.append("the scans are shown at half their resolution (means of 2 x 2 voxels), the masks in full")
    return "; ".join(parts)


class _Stack:
    """The slices of one case from foot to head, back to front or left to right, however they are stored."""

    def __init__(self, volumes: PageVolumes, window: tuple[float, float] | None) -> None:
        self._volumes = volumes
        shape, axis = volumes.clean.shape, volumes.slice_axis
        mm = [figures._position(shape, volumes.affine, axis, index) for index in range(shape[axis])]
        self.order = sorted(range(shape[axis]), key=lambda index: mm[index])
        self._mm = [mm[index] for index in self.order]
        grey = np.concatenate([self._plane("clean", place).ravel() for place in self._sample()])
        around, spread = self._around(grey)
        body = grey[np.abs(grey - around) > _EMPTY * spread] if around is not None else grey
        low, high = window or (float(value) for value in np.percentile(body if body.size else grey, (1, 99)))
        self.window = (low, high) if low < high else (low - 1, high + 1)
        self._survey(around, spread)

    def _plane(self, name: str, place: int) -> NDArray[Any]:
        """One picture (rows, columns) of a volume; contiguous, so that sums do not depend on the storage."""
        volume, axis = getattr(self._volumes, name), self._volumes.slice_axis
        picture, _, _ = figures.oriented_slice(volume, self._volumes.affine, axis, self.order[place])
        return np.ascontiguousarray(picture, dtype=np.float64 if name in ("clean", "adversarial") else np.int64)

    def _sample(self) -> list[int]:
        """Some slices over the whole scan: percentiles need no more."""
        return list(range(0, len(self.order), max(1, len(self.order) // 24)))

    def _around(self, grey: NDArray[np.float64]) -> tuple[float | None, float]:
        """The value around the body, None where there is no such thing, and the spread of grey values."""
        planes = [self._plane("clean", place) for place in self._sample()]
        border = np.concatenate([edge for plane in planes for edge in (plane[0], plane[-1], plane[:, 0], plane[:, -1])])
        low, high = np.percentile(grey, (1, 99))
        around, spread = float(np.median(border)), float(high - low)
        if np.mean(np.abs(border - around) <= _EMPTY * spread) < 0.9:
            return None, spread
        return around, spread

    def _survey(self, around: float | None, spread: float) -> None:
        """Go once through all slices: the box around the body and all masks, ranges, and what each slice holds."""
        self.change: list[float] = []
        self.asked: list[int] = []
        self.missed: list[int] = []
        labels: dict[int, list[int]] = {}
        keep: NDArray[np.bool_] | None = None
        lowest, highest, clean_rest = np.inf, -np.inf, 0.0
        steps: list[NDArray[np.float64]] = []
        self._largest, difference_rest = 0.0, 0.0
        for place in range(len(self.order)):
            clean, adversarial = self._plane("clean", place), self._plane("adversarial", place)
            before, after, target = (
                self._plane(name, place) for name in ("prediction_clean", "prediction_adversarial", "target")
            )
            delta = adversarial - clean
            lowest, highest = min(lowest, clean.min()), max(highest, clean.max())
            clean_rest = max(clean_rest, float(np.abs(clean - np.rint(clean)).max()))
            difference_rest = max(difference_rest, float(np.abs(delta - np.rint(delta)).max()))
            self._largest = max(self._largest, float(np.abs(delta).max()))
            steps.append(np.abs(delta[delta != 0])[:: max(1, delta.size // 20_000)])
            self.change.append(float(np.sqrt(np.square(delta).sum())))
            self.asked.append(int(np.count_nonzero(target != before)))
            self.missed.append(int(np.count_nonzero(target != after)))
            disputed = (before != after) | (before != target)
            for mask in (before, after, target):
                for label, count in zip(*np.unique(mask, return_counts=True), strict=True):
                    entry = labels.setdefault(int(label), [0, 0])
                    entry[0] += int(np.count_nonzero(disputed & (mask == label)))
                    entry[1] += int(count)
            inside = (before != 0) | (after != 0) | (target != 0) | (delta != 0)
            inside |= np.abs(clean - around) > _EMPTY * spread if around is not None else True
            keep = inside if keep is None else keep | inside
        assert keep is not None
        self._box = figures._box(keep)
        self._range = (float(lowest), float(highest))
        low, high = self.window
        span = highest - lowest
        whole = clean_rest <= _WHOLE * span and span <= 65535
        self._offset = float(np.rint(lowest)) if whole else float(lowest)
        self._step = 1.0 if whole else max(span / 65535, min(high - low, span) / _STEPS) or 1.0
        whole = difference_rest <= _WHOLE * self._largest and self._largest < 32768
        self._difference_step = 1.0 if whole else self._largest / _STEPS
        changed = np.concatenate(steps)
        self._reach = float(np.percentile(changed, 99.5)) if changed.size else 0.0
        # First those whose three masks disagree most, then the largest.
        self._labels = sorted((label for label in labels if label), key=lambda label: labels[label], reverse=True)

    def near(self) -> list[int]:
        """Slices that changed, were asked to, or missed the target, with their neighbours; some slice at least."""
        busy = [p for p in range(len(self.order)) if self.change[p] or self.asked[p] or self.missed[p]]
        busy = busy or [len(self.order) // 2]
        around = {p + shift for p in busy for shift in range(-_NEIGHBOURS, _NEIGHBOURS + 1)}
        return sorted(p for p in around if 0 <= p < len(self.order))

    def facts(self) -> dict[str, Any]:
        """All but the planes, for the script. Slices are lists by place."""
        volumes = self._volumes
        axis = volumes.slice_axis
        _, letters, aspect = figures.oriented_slice(volumes.clean, volumes.affine, axis, 0)
        body_axis = int(io_orientation(volumes.affine)[axis, 0])
        sides = (figures._POSITIVE[body_axis], figures._NEGATIVE[body_axis])
        down, across = self._box
        weight: Sequence[float] | None = next((w for w in (self.change, self.asked, self.missed) if any(w)), None)
        return {
            "rows": down.stop - down.start,
            "columns": across.stop - across.start,
            "aspect": round(aspect, 6),
            "letters": list(letters),
            "plane": figures._PLANES[body_axis],
            "axis": "ijk"[axis],
            "unit": volumes.unit,
            "channel": volumes.channel,
            "window": [_rounded(value) for value in self.window],
            "range": [_rounded(value) for value in self._range],
            "reach": _rounded(self._reach),
            "largest": _rounded(self._largest),
            "offset": self._offset,
            "step": self._step,
            "difference_step": self._difference_step,
            "labels": self._labels,
            "colours": list(figures._CLASS_COLOURS),
            "index": self.order,
            "position": [f"{sides[round(mm, 1) < 0]} {abs(mm):.1f} mm" for mm in self._mm],
            "change": [_rounded(value) for value in self.change],
            "asked": self.asked,
            "missed": self.missed,
            "start": int(np.argmax(weight)) if weight else len(self.order) // 2,
        }

    def encoded(self, place: int, halved: bool) -> str:
        """One slice, see the module. Halved: both scans as means of 2 x 2 pixels, the masks as they are."""
        clean, adversarial = (self._plane(name, place)[self._box] for name in ("clean", "adversarial"))
        if halved:
            clean, adversarial = _half(clean), _half(adversarial)
        before, after, target = (
            self._plane(name, place)[self._box] for name in ("prediction_clean", "prediction_adversarial", "target")
        )
        difference = adversarial - clean
        codes = (
            np.rint((clean - self._offset) / self._step).astype(np.int64),
            np.rint(difference / (self._difference_step or 1)).astype(np.int64),
            before,
            after - before,
            target - before,
        )
        return base64.b64encode(zlib.compress(b"".join(map(_packed, codes)), 6)).decode("ascii")


def _packed(codes: NDArray[np.int64]) -> bytes:
    """A plane (rows, columns) of whole numbers modulo 65536 as in the module's description."""
    steps = np.diff(codes, axis=1, prepend=0) & 0xFFFF
    return bytes((steps & 0xFF).astype(np.uint8).tobytes() + (steps >> 8).astype(np.uint8).tobytes())


def _half(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of 2 x 2 pixels; odd sizes repeat their edge."""
    padded = np.pad(picture, [(0, n % 2) for n in picture.shape], mode="edge")
    rows, columns = (ceil(n / 2) for n in picture.shape)
    return np.asarray(padded.reshape(rows, 2, columns, 2).mean(axis=(1, 3)))


def _rounded(value: float) -> float:
    """Six significant digits: what summing in another order changes is not there."""
    return float(f"{value:.6g}")
