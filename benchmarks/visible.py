"""What an attack that minimises visibility, or Linf, buys, and what it costs, beside the one that minimises L2.

    python benchmarks/visible.py --data DIR [--minimise visibility|linf] [--steps 100] [--cases GLOB...]

Each pair of `cases.py` in 2-D is attacked both ways with the same goal and as many passes. Printed for each slice: the
score, L2 and Linf, and in its worst part d' and the compression equivalent (`mafl_cli.measure.visibility`); then what
is so on average. The noise is that of the slices as they are cut.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import geometric_mean, mean, median
from typing import Any

import numpy as np
import torch
from cases import Case, load_case
from sources import all_names, is_volume

from mafl_cli.config import preset
from mafl_cli.field.preprocess import per_channel
from mafl_cli.measure.noise import noise_of
from mafl_cli.measure.observer import Screen, eye
from mafl_cli.measure.records import Visibility
from mafl_cli.measure.visibility import visibility_of
from mafl_cli.scans.body import blanked
from mafl_cli.search.loop import attack
from mafl_cli.search.ruler import Ruler, Visible


@dataclass(frozen=True)
class Outcome:
    """One slice. d_prime: None where the part that was cut out is too small for its noise to be known."""

    score: float
    l2: float
    linf: float
    d_prime: float | None
    equivalent: float
    verdict: str


class Cut:
    """A slice as a volume of one."""

    axcodes = "RAS"

    def __init__(self, plane: torch.Tensor) -> None:
        self.data = plane.numpy()[:, :, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of development scans; without: the sample scan alone")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="GLOB", help="which pairs, as name:target")
    parser.add_argument("--minimise", choices=("visibility", "linf"), default="visibility")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in all_names(arguments.data) if not is_volume(name)]
    names = [name for name in names if any(fnmatch(name, glob) for glob in arguments.cases)]
    print(f"torch {torch.__version__}, one thread, {arguments.steps} steps, {len(names)} pairs")
    pairs: list[tuple[str, Outcome, Outcome]] = []
    other = arguments.minimise
    seconds = {"l2": 0.0, other: 0.0}
    for name in names:
        case = load_case(name, arguments.data)
        both = {}
        for minimise in seconds:
            begin = time.process_time()
            adversarial, scores = solved(case, minimise, arguments.steps)
            seconds[minimise] += time.process_time() - begin
            both[minimise] = judged(case, adversarial, scores)
        for row, (plain, seen) in enumerate(zip(both["l2"], both[other], strict=True)):
            pairs.append((name, plain, seen))
            print(f"{name} slice {row}: {_said(plain)} -> {_said(seen)}", flush=True)
    if arguments.json:
        document = [{"case": name, "l2": asdict(one), other: asdict(two)} for name, one, two in pairs]
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    _summary([(one, two) for _, one, two in pairs], seconds[other] / seconds["l2"])


def solved(case: Case, minimise: str, steps: int) -> tuple[torch.Tensor, list[float]]:
    """The adversarial slices, and their scores."""
    settings: dict[str, Any] = {"minimise": minimise}
    ruler = _ruler(case) if minimise == "visibility" else None
    found = attack(
        case.field, case.clean, case.target, preset("mafl", steps=steps, **settings), case.limits, ruler=ruler
    )
    return found.adversarial, found.verdict.score.tolist()


def _ruler(case: Case) -> Ruler:
    """As `case.visible` makes it, with the noise of the slices at hand."""
    rows, columns = case.clean.shape[2:]
    planes = [case.clean[:, channel].numpy() for channel in range(case.clean.shape[1])]
    sigmas = [noise_of(each, 0, blanked(each)) for each in planes]
    known = [1.0 if each is None else each.sigma for each in sigmas]
    unit = case.limits.unit if None not in sigmas else 1.0
    noise = torch.tensor(known if None not in sigmas else [1.0] * len(known)) / unit
    half = np.ascontiguousarray(eye((rows, columns), Screen.of((rows, columns)))[:, : columns // 2 + 1])
    return Visible(torch.from_numpy(half).float(), noise, (2, 3))


def judged(case: Case, adversarial: torch.Tensor, scores: list[float]) -> list[Outcome]:
    """Size and visibility of each slice."""
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
                seen.verdict.value,
            )
        )
    return found


def _seen(clean: torch.Tensor, adversarial: torch.Tensor) -> Visibility:
    """Of one slice (C, H, W)."""
    scans: Any = [[Cut(channel) for channel in slices] for slices in (clean, adversarial)]
    channels = [f"channel {n}" for n in range(len(clean))]
    outside = [blanked(scan.data) for scan in scans[0]]
    return visibility_of(*scans, channels=channels, slice_axis=2, outside=outside)


def _said(found: Outcome) -> str:
    d = "–" if found.d_prime is None else f"{found.d_prime:.1f}"
    return f"score {found.score:.4f} L2 {found.l2:.2f} Linf {found.linf:.2f} d' {d} {found.equivalent:.1f}:1"


def _summary(pairs: list[tuple[Outcome, Outcome]], time_ratio: float) -> None:
    drops = [1 - two.d_prime / one.d_prime for one, two in pairs if one.d_prime and two.d_prime is not None]
    if drops:
        print(f"d' lower by {mean(drops):.0%} on average, median {median(drops):.0%} ({len(drops)} slices)")
    ratios = [two.equivalent / one.equivalent for one, two in pairs]
    better = sum(ratio < 1 for ratio in ratios)
    print(f"compression equivalent lower in {better} of {len(pairs)}, x {geometric_mean(ratios):.2f}")
    for what in ("l2", "linf"):
        print(f"{what} x {geometric_mean([getattr(two, what) / getattr(one, what) for one, two in pairs]):.2f}")
    reached = [sum(each.score >= 0.99 for each in side) for side in zip(*pairs, strict=True)]
    print(f"at the goal: {reached[0]} and {reached[1]} of {len(pairs)}")
    print(f"time x {time_ratio:.2f}")


if __name__ == "__main__":
    main()
