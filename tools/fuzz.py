"""Throw damaged and hostile files, kills and full disks at the command, and count what comes of it.

    python tools/fuzz.py --inputs 10000 --kills 210 --disks 60 --markers 300 --jobs 2 -o fuzz-out

The same seed makes the same inputs. What must never be seen (docs/reliability.md lists it) ends this with exit code 1,
and is saved below -o with its command, to be tried again. Needs Linux, and `pip install 'mafl[dicom,dask]'`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before PyTorch is loaded: forks have one thread each. What a job says of itself is not for the command that is tried.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
for name in ("MAFL_MODEL", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)

from fuzzing import counts, disks, drive, interrupts, markers  # noqa: E402

# Parts beside the readers: the option that says how many, and who does them.
EXTRAS: dict[str, tuple[str, Callable[[drive.Fuzz, int, float], None]]] = {
    "kill": ("kills", interrupts.kills),
    "disk": ("disks", disks.disks),
    "marker": ("markers", markers.markers),
}


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if anything was seen that must not be."""
    options = _options(arguments)
    if options.join:
        parts, findings, runs = counts.joined([_chosen(each) for each in options.join])
        return _tell(parts, findings, runs, options.markdown)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mafl-fuzz-") as work:
        fuzz = drive.Fuzz(Path(work), options.out.resolve(), options.seed, options.jobs, say=_say)
        drive.prepare(fuzz)
        # Forks share what is there now; a collection would copy it.
        gc.freeze()
        _try_all(fuzz, options, started + options.seconds)
    settings = {
        "command": shlex.join(["python", "tools/fuzz.py", *(sys.argv[1:] if arguments is None else arguments)]),
        "commit": _commit(),
        "minutes": (time.monotonic() - started) / 60,
        "seed": options.seed,
        "jobs": options.jobs,
    }
    fuzz.out.mkdir(parents=True, exist_ok=True)
    found = counts.as_json(fuzz.parts, fuzz.findings, fuzz.examples, settings)
    (fuzz.out / "counts.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return _tell(fuzz.parts, fuzz.findings, [settings], options.markdown)


def _tell(
    parts: dict[str, counts.Part], findings: dict[str, int], runs: list[dict[str, Any]], page: Path | None
) -> int:
    if page is not None:
        counts.write_figures(page, counts.figures(parts, runs))
    for rows in (counts.of_parts(parts), counts.of_findings(parts)):
        print(f"{counts.plain(rows)}\n")
    for sign, count in sorted(findings.items(), key=lambda pair: -pair[1]):
        print(f"{count:5} x {sign}")
    return 1 if findings else 0


def _commit() -> str:
    """Of the program that is tried, with a + if it has changed since."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"


def _chosen(said: str) -> tuple[Path, list[str]]:
    """FOLDER or FOLDER:PART,PART, as a counts.json and parts."""
    folder, _, parts = said.partition(":")
    return Path(folder) / "counts.json", [each for each in parts.split(",") if each]


def _try_all(fuzz: drive.Fuzz, options: argparse.Namespace, until: float) -> None:
    if options.at is not None:
        drive.readers(fuzz, [(name, options.at) for name in options.only], until)
        return
    drive.readers(fuzz, drive.order(fuzz.seed, options.inputs, options.only), until)
    for name, (option, go) in EXTRAS.items():
        if not options.only or name in options.only:
            go(fuzz, getattr(options, option), until)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Throw damaged files, kills and full disks at mafl, and count.")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same inputs")
    parser.add_argument("--inputs", type=int, default=1000, help="over all readers")
    parser.add_argument("--kills", type=int, default=0, help="of batches, workers, and runs that replace others")
    parser.add_argument("--disks", type=int, default=0, help="scenes on full disks")
    parser.add_argument("--markers", type=int, default=0, help="files with planted names")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then nothing new is begun")
    parser.add_argument(
        "--only", action="append", default=[], choices=[*drive.READERS, *EXTRAS], metavar="PART",
        help=f"may be given several times: {', '.join([*drive.READERS, *EXTRAS])}",
    )  # fmt: skip
    parser.add_argument("--at", type=int, metavar="N", help="with --only: its input of this number alone")
    parser.add_argument("--jobs", type=int, default=1, help="inputs at the same time")
    parser.add_argument(
        "--markdown", type=Path, metavar="PAGE", help="put the figures into this page, docs/reliability.md"
    )
    parser.add_argument(
        "--join", nargs="+", metavar="FOLDER[:PART,...]",
        help="try nothing: add up what earlier runs have left in these folders, or some parts of it",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, default=Path("fuzz-out"), help="folder for findings and counts.json")
    options = parser.parse_args(arguments)
    if options.at is not None and not options.only:
        parser.error("--at needs --only")
    return options


if __name__ == "__main__":
    sys.exit(main())
