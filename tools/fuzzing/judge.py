"""What must never be seen, whatever the input: the judge of one command."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.forks import Ended, Room
from fuzzing.stock import MARK

RESULTS = (0, 5, 6)
"""Exit codes after which results may lie there; after all others everything is as before."""
DOCUMENTED = (0, 2, 3, 4, 5, 6)
LARGEST = 4 * 2**30
"""Bytes of memory that an input may take."""

_NOISE = re.compile(r"\w*Warning\b|\bWARNING\b|^\[[EWF]\d|\[[EWF]\d{3,4} |Exception ignored|core dumped", re.M)
_PLACES = re.compile(r'File "[^"]*", line \d+|/site-packages/|/dist-packages/|\.cpp:\d+|\.py", line')
_ESCAPES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Trial:
    """A command that is to be judged.

    arguments: behind `mafl`. what: was done to its input, in words. results: names in the room's place that may appear
    when it ends with results. secrets: texts that must not be in what it says or reports. as_json: stdout is JSON.
    """

    arguments: tuple[str, ...]
    what: str
    results: tuple[str, ...] = ()
    secrets: tuple[str, ...] = (MARK,)
    stdin: bytes = b""
    encoding: str = "utf-8"
    as_json: bool = False


@dataclass(frozen=True)
class Seen:
    """Something that must not be. detail: one line."""

    kind: str
    detail: str = ""


@dataclass
class Before:
    """What lay in a room's place before the command: size and time of each file."""

    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    @staticmethod
    def of(place: Path) -> Before:
        files = {}
        for path in sorted(place.rglob("*")):
            found = path.lstat()
            kind = 0 if stat.S_ISDIR(found.st_mode) else found.st_mtime_ns
            files[str(path.relative_to(place))] = (0 if kind == 0 else found.st_size, kind)
        return Before(files)


def judge(room: Room, trial: Trial, before: Before, ended: Ended, largest: int = LARGEST) -> list[Seen]:
    """All that was seen and must not be."""
    out, err = (_text(path, trial.encoding) for path in (room.stdout, room.stderr))
    seen = [
        *_end(ended, largest),
        *_words(room, trial, out, err),
        *_sentence(ended, err),
        *_traces(room, trial, before, ended),
    ]
    if ended.code == 0 and trial.as_json:
        seen += _json(out)
    return seen


def _text(path: Path, encoding: str) -> str:
    return path.read_bytes().decode(encoding, errors="replace") if path.exists() else ""


def _end(ended: Ended, largest: int) -> list[Seen]:
    seen = []
    if ended.late:
        seen.append(Seen("hang", f"{ended.cpu_s:.0f} s CPU"))
    elif ended.signal is not None:
        seen.append(Seen("crash", f"signal {ended.signal}"))
    elif ended.code == 1:
        seen.append(Seen("exit 1"))
    elif ended.code not in DOCUMENTED:
        seen.append(Seen("exit code", str(ended.code)))
    if ended.peak_bytes > largest:
        seen.append(Seen("memory", f"{ended.peak_bytes / 2**30:.1f} GiB"))
    return seen


def _words(room: Room, trial: Trial, out: str, err: str) -> list[Seen]:
    both = out + err
    seen = []
    if "Traceback" in both:
        seen.append(Seen("traceback", both.strip().rpartition("\n")[2][:200]))
    elif found := _PLACES.search(both):
        seen.append(Seen("place in code", found[0][:200]))
    if found := _NOISE.search(err):
        seen.append(Seen("noise", _line_of(err, found.start())))
    if str(room.root) in both or str(room.root.resolve()) in both:
        seen.append(Seen("path", _line_of(both, both.find(str(room.root)))))
    for secret in trial.secrets:
        if secret in both:
            seen.append(Seen("marker", _line_of(both, both.find(secret))))
            break
    if found := _ESCAPES.search(both):
        seen.append(Seen("control character", repr(_line_of(both, found.start()))))
    return seen


def _line_of(text: str, at: int) -> str:
    start = text.rfind("\n", 0, max(at, 0)) + 1
    return text[start : text.find("\n", start) if "\n" in text[start:] else None][:300]


def _sentence(ended: Ended, err: str) -> list[Seen]:
    """A refusal ends with one sentence that begins with the program's name."""
    if ended.code not in (2, 3, 4, 5, 6):
        return []
    lines = err.rstrip("\n").split("\n")
    named = [line for line in lines if line.startswith("mafl: ")]
    if len(named) != 1:
        return [Seen("sentence", f"{len(named)} lines begin with mafl: {err[:200]!r}")]
    if lines[-1] != named[0]:
        return [Seen("sentence", f"not the last line: {lines[-1][:200]!r}")]
    if not re.search(r"[.!?)]$", named[0]) or len(named[0]) > 1500:
        return [Seen("sentence", f"no sentence, or too long: {named[0][-200:]!r}")]
    return []


def _traces(room: Room, trial: Trial, before: Before, ended: Ended) -> list[Seen]:
    """Files that are left, or were changed."""
    now = Before.of(room.place).files
    seen = []
    lost = [name for name, found in before.files.items() if now.get(name) != found and not _is_result(name, trial)]
    if lost:
        seen.append(Seen("input changed", lost[0]))
    new = [name for name in now if name not in before.files]
    hidden = [name for name in new if any(part.startswith(".mafl-") for part in Path(name).parts)]
    strange = new if ended.code not in RESULTS else [name for name in new if not _is_result(name, trial)]
    if hidden or strange:
        seen.append(Seen("left behind", (hidden or strange)[0]))
    if left := sorted(path.name for path in room.temporary.iterdir()):
        seen.append(Seen("left in temporary", left[0]))
    return seen


def _is_result(name: str, trial: Trial) -> bool:
    return Path(name).parts[0] in trial.results


def _json(out: str) -> list[Seen]:
    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        json.loads(out, parse_constant=no_number)
    except ValueError as exc:
        return [Seen("no JSON on stdout", str(exc)[:200])]
    return []


def signature(seen: Seen, message: str) -> str:
    """What findings of one cause have in common: the kind, and its words without numbers and names."""
    # Of these the detail is a number that differs from time to time.
    words = message if seen.kind in ("crash", "hang", "memory") or not seen.detail else seen.detail
    words = re.sub(r"\.mafl-\w+", ".mafl-X", words)
    return f"{seen.kind}: {re.sub(r'[0-9]+', 'N', words)[:160]}"


def last_line(room: Room, encoding: str = "utf-8") -> str:
    return _text(room.stderr, encoding).rstrip("\n").rpartition("\n")[2]


def secrets_in(folder: Path, secrets: Sequence[str]) -> str | None:
    """The first file below a folder, unpacked, that holds one of these texts."""
    import gzip

    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        if any(secret.encode() in raw for secret in secrets):
            return str(path.relative_to(folder))
    return None
