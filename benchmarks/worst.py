"""What several searches bring: the method `worst` beside `mafl` alone, slice by slice.

    python benchmarks/worst.py --data DIR [--steps 50] [--cases GLOB...] [--ball 0.6]

Each pair of `cases.py` in 2-D is attacked by `mafl` and by `worst`, whose first search is the same. Printed for each
slice: the length, who found it, and its ratio to what `mafl` found; for all of them: how often it is smaller, by how
much, and what it costs in time. With --ball both are kept within that share of the largest change of `mafl`, and the
score counts instead of the length.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from cases import Case, load_case
from sources import SOURCES, all_names, is_volume, model_file, source_of
from torch import Tensor

import mafl_cli as mafl
from mafl_cli.case.request import DEMO_MODEL


@dataclass(frozen=True)
class Outcome:
    """What one method found for the slices of a pair; seconds for all of them."""

    lengths: list[float]
    scores: list[float]
    reached: list[bool]
    found_by: list[str]
    linf: list[float]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of development scans; without: the sample scan alone")
    parser.add_argument("--steps", type=int, default=50, help="of mafl, and of the first search of worst")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="GLOB", help="which pairs, as name:target")
    parser.add_argument("--ball", type=float, help="share of mafl's own largest change, as a bound for both")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in all_names(arguments.data) if not is_volume(name)]
    names = [name for name in names if any(fnmatch(name, glob) for glob in arguments.cases)]
    print(f"torch {torch.__version__}, one thread, {arguments.steps} steps, {len(names)} pairs")
    ratios: list[float] = []
    gains: list[float] = []
    times: list[float] = []
    longer = 0
    for name in names:
        case = load_case(name, arguments.data)
        alone = attacked(case, arguments.data, "mafl", arguments.steps)
        limit: dict[str, Any] = {"eps": arguments.ball * max(alone.linf)} if arguments.ball else {}
        if limit:
            alone = attacked(case, arguments.data, "mafl", arguments.steps, **limit)
        worst = attacked(case, arguments.data, "worst", arguments.steps, **limit)
        times.append(worst.seconds / alone.seconds)
        for row, (before, after) in enumerate(zip(alone.lengths, worst.lengths, strict=True)):
            text = f"score {alone.scores[row]:.4f} -> {worst.scores[row]:.4f}"
            gains.append(worst.scores[row] - alone.scores[row])
            if alone.reached[row] and worst.reached[row]:
                ratios.append(after / before)
                longer += after > before
                text += f", L2 {before:.3f} -> {after:.3f} ({after / before:.4f})"
            print(f"{name} slice {row}: {text}, by {worst.found_by[row]}", flush=True)
    print(f"time x {median(times):.2f} (median of pairs)")
    print(f"score: higher in {sum(gain > 0 for gain in gains)} of {len(gains)}, lower in {sum(g < 0 for g in gains)}")
    if ratios:
        smaller = [ratio for ratio in ratios if ratio < 1]
        print(f"both at the goal: {len(ratios)} slices; longer in {longer}, shorter in {len(smaller)}")
        print(f"L2 ratio: geometric mean {geometric_mean(ratios):.4f}, least {min(ratios):.4f}, most {max(ratios):.4f}")


def attacked(case: Case, data: Path | None, method: str, steps: int, **options: Any) -> Outcome:
    """What a method finds, through the library as anybody calls it."""
    source = source_of(case.name)
    if source is None:
        model: Path | None = DEMO_MODEL
        options["intensity"] = f"window:{float(case.limits.low.min())},{float(case.limits.high.max())}"
    else:
        assert data is not None
        model = model_file(SOURCES[case.name.partition(":")[0]], data)
        options["intensity"] = "none"
    assert model is not None
    begin = time.process_time()
    found = mafl.attack(
        mafl.load_model(model, device="cpu"), case.clean, case.target, method=method, steps=steps, **options
    )
    seconds = time.process_time() - begin
    count = len(case.clean)
    by = ["margin"] * count
    if found.worst is not None:
        for sample in found.worst.samples:
            by[sample.sample] = sample.found_by
    scores = torch.minimum(_numbers(found.iou), _numbers(found.hit)).tolist()
    unit = float(case.limits.unit.max())
    return Outcome(
        lengths=(_numbers(found.sizes.l2) / unit).tolist(),
        scores=scores,
        reached=[bool(value) for value in found.success],
        found_by=by,
        linf=_numbers(found.sizes.linf).tolist(),
        seconds=seconds,
    )


def _numbers(values: Tensor) -> Tensor:
    return values.double().nan_to_num(1.0)


if __name__ == "__main__":
    main()
