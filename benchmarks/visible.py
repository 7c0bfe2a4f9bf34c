"""What an attack that minimises visibility, or Linf, buys, and what it costs, beside the one that minimises L2.

    python benchmarks/visible.py --data DIR [--minimise visibility|linf] [--steps 100] [--cases GLOB...] [--out docs]

Each pair of `cases.py` is attacked both ways with the same goal and as many passes. Printed for each slice, and for
each volume: the score, L2 and Linf, and where it is most visible d' and the compression equivalent
(`mafl_cli.measure.visibility`); then what is so on average. The noise is that of the slices, or the box, as they are
cut. With `--out`, visibility.json is written there, pair by pair, which `tables.py` makes a section of benchmark.md;
pairs that were not asked for stay in it as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case, load_case
from numpy.typing import NDArray
from sources import all_names, is_volume
from visible_section import in_short

from mafl_cli.config import preset
from mafl_cli.field.preprocess import per_channel
from mafl_cli.measure.noise import noise_of
from mafl_cli.measure.observer import Screen, eye
from mafl_cli.measure.records import Visibility
from mafl_cli.measure.visibility import visibility_of
from mafl_cli.scans.body import blanked
from mafl_cli.search.loop import attack
from mafl_cli.search.ruler import Ruler, Visible

LEFT_OUT = ("t1_brainmask_128:*", "deepbet_mask:*")
"""Volumes of two million voxels and more: an hour each."""


@dataclass(frozen=True)
class Outcome:
    """One slice or volume. d_prime: None where the part that was cut out is too small for its noise to be known."""

    score: float
    l2: float
    linf: float
    d_prime: float | None
    equivalent: float
    equivalent_haarpsi: float
    equivalent_d_prime: float | None
    verdict: str


class Cut:
    """A part of a scan as a volume (I, J, K)."""

    axcodes = "RAS"

    def __init__(self, data: NDArray[Any]) -> None:
        self.data = data


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of development scans; without: the sample scan alone")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="GLOB", help="which pairs, as name:target")
    parser.add_argument("--minimise", choices=("visibility", "linf"), default="visibility")
    parser.add_argument("--out", type=Path, help="write visibility.json there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in all_names(arguments.data) if not any(fnmatch(name, glob) for glob in LEFT_OUT)]
    names = [name for name in names if any(fnmatch(name, glob) for glob in arguments.cases)]
    print(f"torch {torch.__version__}, one thread, {arguments.steps} steps, {len(names)} pairs")
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += compared(name, arguments.data, arguments.minimise, arguments.steps)
        if arguments.out:
            write(arguments.out / "visibility.json", rows, arguments.minimise, arguments.steps)
    for kind, some in (("slices", False), ("volumes", True)):
        if chosen := [row for row in rows if row["volume"] == some]:
            print(kind, in_short(chosen, arguments.minimise), sep="\n")


def write(path: Path, rows: list[dict[str, Any]], minimise: str, steps: int) -> None:
    """The rows, and those of other pairs that stand there already, if they were made in the same way."""
    command = f"python benchmarks/visible.py --data DATA --minimise {minimise} --steps {steps} --out docs"
    document = {"command": command, "torch": torch.__version__, "minimise": minimise}
    before = json.loads(path.read_text()) if path.is_file() else {}
    cases = {row["case"] for row in rows}
    if all(before.get(key) == value for key, value in document.items()):
        rows = rows + [row for row in before["rows"] if row["case"] not in cases]
    rows = sorted(rows, key=lambda row: (row["volume"], row["case"], row["slice"]))
    # A row a line: a person can find one, and a change of one is a change of a line.
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    path.write_text(f'{json.dumps(document)[:-1]}, "rows": [\n{lines}\n]}}\n')


def compared(name: str, data: Path | None, other: str, steps: int) -> list[dict[str, Any]]:
    """A row for each slice of a pair, or for the volume."""
    case = load_case(name, data)
    solved(case, "l2", 2)  # The first passes of a network are slower.
    both, seconds = {}, {}
    for minimise in ("l2", other):
        begin = time.process_time()
        adversarial, scores = solved(case, minimise, steps)
        seconds[minimise] = (time.process_time() - begin) / len(scores)
        both[minimise] = judged(case, adversarial, scores)
    found = []
    for place, outcomes in enumerate(zip(*both.values(), strict=True)):
        row = {"case": name, "slice": place, "volume": is_volume(name)}
        for minimise, outcome in zip(both, outcomes, strict=True):
            row[minimise] = {**asdict(outcome), "seconds": round(seconds[minimise], 2)}
        found.append(row)
        where = "volume" if is_volume(name) else f"slice {place}"
        print(f"{name} {where}: {' -> '.join(_said(outcome) for outcome in outcomes)}", flush=True)
    return found


def solved(case: Case, minimise: str, steps: int) -> tuple[torch.Tensor, list[float]]:
    """The adversarial slices or volume, and their scores."""
    settings: dict[str, Any] = {"minimise": minimise}
    ruler = ruler_of(case) if minimise == "visibility" else None
    found = attack(
        case.field, case.clean, case.target, preset("mafl", steps=steps, **settings), case.limits, ruler=ruler
    )
    return found.adversarial, found.verdict.score.tolist()


def ruler_of(case: Case) -> Ruler:
    """As `case.visible` makes it, with the noise of the part at hand. Slices lie along the first two spatial axes."""
    rows, columns = case.clean.shape[2:4]
    channels = _scans(case.clean) if case.clean.ndim == 5 else list(case.clean.permute(1, 2, 3, 0).numpy())
    sigmas = [noise_of(each, 2, blanked(each)) for each in channels]
    known = [1.0 if each is None else each.sigma for each in sigmas]
    unit = case.limits.unit if None not in sigmas else 1.0
    noise = torch.tensor(known if None not in sigmas else [1.0] * len(known)) / unit
    half = np.ascontiguousarray(eye((rows, columns), Screen.of((rows, columns)))[:, : columns // 2 + 1])
    return Visible(torch.from_numpy(half).float(), noise, (2, 3))


def _scans(samples: torch.Tensor) -> list[NDArray[Any]]:
    """The channels of one volume (1, C, I, J, K)."""
    return list(samples[0].numpy())


def judged(case: Case, adversarial: torch.Tensor, scores: Sequence[float]) -> list[Outcome]:
    """Size and visibility of each slice, or of the volume."""
    change = (adversarial - case.clean) / per_channel(case.limits.unit, case.clean)
    found = []
    for row, score in enumerate(scores):
        seen = _seen(case.clean[row], adversarial[row])
        found.append(
            Outcome(
                score,
                float(change[row].norm()),
                float(change[row].abs().max()),
                seen.d_prime.value,
                seen.compression_equivalent.number,
                seen.compression_equivalent_haarpsi.number,
                seen.compression_equivalent_d_prime.value,
                seen.verdict.value,
            )
        )
    return found


def _seen(clean: torch.Tensor, adversarial: torch.Tensor) -> Visibility:
    """Of one slice (C, H, W) or volume (C, I, J, K)."""
    scans: Any = [
        [Cut(channel.numpy().reshape(*channel.shape[:2], -1)) for channel in part] for part in (clean, adversarial)
    ]
    channels = [f"channel {n}" for n in range(len(clean))]
    outside = [blanked(scan.data) for scan in scans[0]]
    return visibility_of(*scans, channels=channels, slice_axis=2, outside=outside)


def _said(found: Outcome) -> str:
    d = "–" if found.d_prime is None else f"{found.d_prime:.1f}"
    return f"score {found.score:.4f} L2 {found.l2:.2f} Linf {found.linf:.2f} d' {d} {found.equivalent:.1f}:1"


if __name__ == "__main__":
    main()
