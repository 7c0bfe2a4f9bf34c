"""What was counted, as JSON, for a terminal, and as the figures of docs/reliability.md."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fuzzing.forks import Ended

REFUSALS = (2, 3, 4, 5, 6)

# What must never be seen: a heading, and the kinds of findings that stand under it.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "exit code 1, or an undocumented one": ("exit 1", "exit code"),
    "tracebacks": ("traceback", "place in code"),
    "crashes": ("crash",),
    "hangs": ("hang",),
    "more memory than allowed": ("memory",),
    "markers (names, texts of headers)": ("marker",),
    "absolute paths": ("path",),
    "words of other libraries": ("noise",),
    "refusals that are not one sentence": ("sentence",),
    "control characters": ("control character",),
    "files left after a refusal or a kill": ("left behind", "left in temporary"),
    "processes left": ("process left",),
    "inputs changed": ("input changed",),
    "finished cases or reports lost": ("lost",),
    "runs that did not go on afterwards": ("not resumed",),
    "code run that is no network": ("code was run",),
    "others": (),
}

BEGIN, END = "<!-- figures: made by tools/fuzz.py -->", "<!-- end of figures -->"


@dataclass
class Part:
    """Counts of one part. exits: by exit code, or minus the signal. kinds: of findings, how often.

    not_made: inputs that no generator could write. cpu_s: of the command and the making of its input.
    """

    inputs: int = 0
    exits: dict[int, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    not_made: int = 0
    kills: int = 0
    peak_bytes: int = 0
    cpu_s: float = 0.0

    def count(self, ended: Ended) -> None:
        """One more input, and how its command ended."""
        self.inputs += 1
        self.ran(ended)

    def ran(self, ended: Ended) -> None:
        """One more command for an input that is counted elsewhere."""
        code = -(ended.signal or 0) if ended.code is None else ended.code
        self.exits[code] = self.exits.get(code, 0) + 1
        self.peak_bytes = max(self.peak_bytes, ended.peak_bytes)
        self.cpu_s += ended.cpu_s

    def seen(self, kind: str) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def under(self, heading: str) -> int:
        """Findings under a heading of `FORBIDDEN`."""
        known = {kind for kinds in FORBIDDEN.values() for kind in kinds}
        kinds = FORBIDDEN[heading] or [kind for kind in self.kinds if kind not in known]
        return sum(self.kinds.get(kind, 0) for kind in kinds)


def total(parts: Iterable[Part]) -> Part:
    """The sum; of memory the largest."""
    whole = Part()
    for part in parts:
        for name in ("inputs", "not_made", "kills", "cpu_s"):
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        whole.peak_bytes = max(whole.peak_bytes, part.peak_bytes)
        counted: Any = ((whole.exits, part.exits), (whole.kinds, part.kinds))
        for mine, theirs in counted:
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count
    return whole


def of_parts(parts: Mapping[str, Part]) -> list[list[str]]:
    """A row of texts for each part, the columns' names first and the sum last."""
    rows = [
        [
            "part",
            "inputs",
            "results",
            *(f"exit {code}" for code in REFUSALS),
            "kills",
            "must not be",
            "peak GB",
            "CPU s",
        ]
    ]
    for name, part in [*parts.items(), ("all", total(parts.values()))]:
        counts = [part.inputs, part.exits.get(0, 0), *(part.exits.get(code, 0) for code in REFUSALS), part.kills]
        rows.append(
            [name, *map(str, [*counts, sum(part.kinds.values())]), f"{part.peak_bytes / 1e9:.1f}", f"{part.cpu_s:.0f}"]
        )
    return rows


def of_findings(parts: Mapping[str, Part]) -> list[list[str]]:
    """How often each thing was seen that must not be."""
    whole = total(parts.values())
    return [["must not be seen", "seen"], *([heading, str(whole.under(heading))] for heading in FORBIDDEN)]


def plain(rows: Sequence[Sequence[str]]) -> str:
    """For a terminal: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]))
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def figures(parts: Mapping[str, Part], runs: Sequence[Mapping[str, Any]]) -> str:
    """The figures of one run or of several as docs/reliability.md has them, the commands included.

    runs: the settings of each; see `tools/fuzz.py`.
    """
    whole = total(parts.values())
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}"
    said = (
        f"{whole.inputs} inputs, {whole.kills} kills among them: {whole.cpu_s / 60:.0f} minutes of CPU in "
        f"{counted(len(runs), 'run')}; {versions}. Peak memory of a process: {whole.peak_bytes / 1e9:.1f} GB. "
        f"{whole.not_made} inputs could not be written."
    )
    lines = [f"    {run['commit']}  {run['command']}" for run in runs]
    return "\n\n".join([said, markdown(of_parts(parts)), markdown(of_findings(parts)), "\n".join(lines)])


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def write_figures(page: Path, text: str) -> None:
    """Put the figures between the two marks of a page. Raises ValueError if it has none."""
    whole = page.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page.name}: has no place for figures")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def joined(runs: Sequence[tuple[Path, Sequence[str]]]) -> tuple[dict[str, Part], dict[str, int], list[dict[str, Any]]]:
    """Parts, findings and settings of several runs. runs: the counts.json of each, and which parts; none are all."""
    parts: dict[str, Part] = {}
    findings: dict[str, int] = {}
    settings = []
    for path, only in runs:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings.append(
            found["settings"] | ({"command": f"{found['settings']['command']}  # {', '.join(only)}"} if only else {})
        )
        for name, counts in found["parts"].items():
            if only and name not in only:
                continue
            counts["exits"] = {int(code): count for code, count in counts["exits"].items()}
            parts[name] = total([parts.get(name, Part()), Part(**counts)])
        for each in found["findings"]:
            if not only or each["what"].partition(":")[0] in only:
                findings[each["what"]] = findings.get(each["what"], 0) + each["count"]
    return parts, findings, settings


def as_json(
    parts: Mapping[str, Part], findings: Mapping[str, int], examples: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that was counted."""
    return {
        "settings": dict(settings),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "parts": {name: asdict(part) for name, part in parts.items()},
        "all": asdict(total(parts.values())),
        "findings": [
            {"what": sign, "count": count, "example": examples.get(sign, "")} for sign, count in findings.items()
        ],
    }
