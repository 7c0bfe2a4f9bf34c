"""What the search costs beside the network: the time of a step over that of one bare forward and backward pass.

    python benchmarks/overhead.py [--data DIR] [--steps 40]
    python benchmarks/overhead.py --visibility [--data DIR]

After each step of the engine, the same lifted network runs once on the same batch, forward and backward (sum of the
target's logits), so that both see the same machine at the same moment. The median of the ratios is printed apart for
the steps before every sample reached its goal, where the feature term is at work, and after.

With `--visibility`: how much longer a step is that minimises visibility, and how much of a default attack goes into
saying whether its change can be seen. Both are shares of one run, in which what costs is timed by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import torch
from cases import SAMPLES, Case, load_case, whole_slices
from torch import Tensor
from visible import ruler_of

from mafl_cli.case.pipeline import run_attack
from mafl_cli.case.request import DEMO_MODEL, AttackRequest
from mafl_cli.config import AttackConfig, preset
from mafl_cli.measure.visibility import visibility_of
from mafl_cli.search.loop import StepRecord, attack
from mafl_cli.search.ruler import Ruler

GOAL = 1.05
STEP, SHARE = 1.10, 0.05
"""A step that minimises visibility, over one that does not; how much of a default attack goes into the measures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of development scans; without: the sample scan alone")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--visibility", action="store_true", help="what minimising and measuring it costs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problems = {"2-D, sample, cut-outs": load_case("sample:swap", None)}
    if arguments.data is not None:
        problems = {
            "2-D, flair, 4 whole slices": whole_slices("flair2d_pat0001/slab12:dilated", arguments.data, [2, 4, 6, 8]),
            "3-D, brats, cube": load_case("brats3d_pat0003/crop96:dilated", arguments.data),
        }
    print(f"torch {torch.__version__}, one thread, {arguments.steps} steps; goal <= {GOAL}")
    if arguments.visibility:
        for name, case in problems.items():
            ratio = weighted(case, preset("mafl", steps=arguments.steps, minimise="visibility"))
            print(f"{name} {tuple(case.clean.shape)}: a step that minimises visibility x {ratio:.3f} (<= {STEP})")
        print(f"the sample scan: {measured():.1%} of a default attack is its measures of visibility (<= {SHARE:.0%})")
        return
    for name, case in problems.items():
        for method, config in _configs(arguments.steps).items():
            searching, holding, bare = ratios(case, config)
            print(f"{name} {tuple(case.clean.shape)}, {method}: bare pass {1000 * bare:.0f} ms")
            for phase, found in (("before the goal", searching), ("at the goal", holding)):
                print(f"  {phase:16}{_judged(found)} ({len(found)} steps)", flush=True)


def _configs(steps: int) -> dict[str, AttackConfig]:
    """The search with and without the feature term; nobody leaves the batch, and no scale search ends it.

    With a goal that is soon reached, there are steps of both phases.
    """
    whole = preset("mafl", steps=steps, patience=steps, scale_search=0, goal_iou=0.8, goal_hit=0.8)
    return {"mafl": whole, "mafl without the feature term": replace(whole, feature_weight=0.0)}


def ratios(case: Case, config: AttackConfig) -> tuple[list[float], list[float], float]:
    """Time of each step over that of the bare pass after it, before and at the goal; median seconds of a bare pass."""
    bare_pass = _bare_pass(case)
    bare_pass()
    phases: dict[bool, list[float]] = {False: [], True: []}
    bare: list[float] = []
    at_goal, begin = False, None

    def on_step(record: StepRecord) -> None:
        nonlocal at_goal, begin
        end = perf_counter()
        bare_pass()
        bare.append(perf_counter() - end)
        # The first step shares its time with what comes before the loop.
        if begin is not None:
            phases[at_goal].append((end - begin) / bare[-1])
        at_goal, begin = record.reached == 1, perf_counter()

    attack(case.field, case.clean, case.target, config, case.limits, on_step=on_step)
    return phases[False], phases[True], median(bare)


class Timed:
    """A ruler that sums up the time it takes, seconds."""

    def __init__(self, ruler: Ruler) -> None:
        self._ruler, self.seconds = ruler, 0.0

    def _timed(self, method: Callable[..., Tensor], *given: Tensor) -> Tensor:
        begin = process_time()
        found = method(*given)
        self.seconds += process_time() - begin
        return found

    def coordinates(self, change: Tensor) -> Tensor:
        return self._timed(self._ruler.coordinates, change)

    def change(self, coordinates: Tensor) -> Tensor:
        return self._timed(self._ruler.change, coordinates)

    def slope(self, gradient: Tensor) -> Tensor:
        return self._timed(self._ruler.slope, gradient)

    def size(self, coordinates: Tensor, l2: Tensor) -> Tensor:
        return self._timed(self._ruler.size, coordinates, l2)


def weighted(case: Case, config: AttackConfig) -> float:
    """The time of a search that minimises visibility, over that of the same without its ruler."""
    _bare_pass(case)()
    ruler, begin = Timed(ruler_of(case)), process_time()
    attack(case.field, case.clean, case.target, config, case.limits, ruler=ruler)
    whole = process_time() - begin
    return whole / (whole - ruler.seconds)


def measured() -> float:
    """The share of an attack on the sample scan that the measures of visibility take. Its network is a fast one."""
    seconds = 0.0

    def timed(*given: Any, **named: Any) -> Any:
        nonlocal seconds
        begin = process_time()
        found = visibility_of(*given, **named)
        seconds += process_time() - begin
        return found

    with TemporaryDirectory() as folder, patch("mafl_cli.case.facts.visibility_of", timed):
        request = AttackRequest(
            images=(SAMPLES / "brain_t1.nii.gz",),
            targets=(SAMPLES / "target_hole.nii.gz",),
            model=DEMO_MODEL,
            out=Path(folder) / "run",
            config=preset("mafl"),
        )
        begin = process_time()
        run_attack(request)
        return seconds / (process_time() - begin)


def _bare_pass(case: Case) -> Callable[[], None]:
    ready = case.preprocessing(case.clean).detach()
    inside = (slice(None), slice(None), *(slice(size) for size in case.clean.shape[2:]))

    def run() -> None:
        x = ready.clone().requires_grad_()
        logits = case.segmenter(x).logits[inside]
        torch.autograd.grad(logits.gather(1, case.target[:, None]).sum(), x)

    return run


def _judged(found: list[float]) -> str:
    return f"{median(found):.3f} {'PASS' if median(found) <= GOAL else 'MISS'}" if found else "never"


if __name__ == "__main__":
    main()
