"""How good is the attack: mafl, other people's attacks and its own presets on the same problems with the same budget.

    python benchmarks/quality.py [--data DIR] [--cases GLOB...] [--passes 40 50 150 500] [--plan] [--jobs 2]

A pass is one forward and one backward pass through the network for each slice or volume; the forward passes of mafl's
scale search count as one each. `planned.py` says which runs are made; `--plan` says what they will take. Every finished
run is appended to a cache file, so an interrupted benchmark goes on where it stopped, and rows of benchmark.json are
taken over; a run whose settings or program have changed is done again. Rows of cases, methods and passes that were not
asked for stay as they are. Writes benchmark.json and best_known.json, and from these (`tables.py`) benchmark.md and
benchmark.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from math import isfinite, sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import known
import numpy as np
import peers
import planned
import released
import tables
import torch
from cases import Case, load_case
from planned import METHODS, Row, Task
from sources import all_names, missing
from torch import Tensor

from mafl_cli.classes import Classes
from mafl_cli.config import preset
from mafl_cli.field.preprocess import per_channel
from mafl_cli.measure import agreement, perturbation
from mafl_cli.measure.records import Size
from mafl_cli.search import loop as engine
from mafl_cli.search.certificate import Estimate


@dataclass(frozen=True)
class Solution:
    """What a run found, (B, C, *spatial), and its passes through the network, counted per sample.

    estimate: of the engine alone, how far each change is above the local optimum.
    """

    adversarial: Tensor
    passes: int
    forward: int
    backward: int
    seconds: float
    estimate: Estimate | None = None


def main() -> None:
    arguments = _arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    names = [name for name in all_names(arguments.data) if any(fnmatch(name, glob) for glob in arguments.cases)]
    if not names:
        raise SystemExit(f"no such case; there are: {', '.join(all_names(arguments.data))}.")
    skipped = _skipped(arguments)
    print("\n".join(f"left out: {what} ({why})" for what, why in skipped.items()))
    todo = list(planned.tasks(names, arguments.passes, arguments.methods, arguments.long))
    if arguments.plan:
        _plan(todo, arguments)
        return
    rows, failed = _solve_all(todo, arguments)
    kept = _kept(arguments, names)
    peers_too = [*rows, *kept] if "mafl" in arguments.methods else rows
    peers_too = [row for row in peers_too if row["case"] in names and row["passes"] in arguments.passes]
    matched, more = _solve_all(list(planned.matching(peers_too)), arguments)
    asked, failed = rows + matched, failed + more
    rows = asked + kept
    names = [name for name in all_names(arguments.data) if any(row["case"] == name for row in rows)]
    order = {name: index for index, name in enumerate(names)}
    document = {
        "command": _command(arguments),
        "machine": {
            "torch": ", ".join(sorted({row["torch"] for row in rows})),
            "python": platform.python_version(),
            "processor": platform.machine(),
            "processes": arguments.jobs,
            "threads": 1,
        },
        "adv-lib": released.version(),
        "skipped": skipped,
        "passes": sorted({row["passes"] for row in rows}),
        "goal": preset("mafl").goal_iou,
        "cases": names,
        "rows": sorted(rows, key=lambda row: (order[row["case"]], row["method"], row["passes"])),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmark.json").write_text(_json(document))
    known.improve(arguments.out, asked, preset("mafl").goal_iou)
    tables.write(arguments.out)
    if failed:
        raise SystemExit(f"{failed} runs failed; the tables leave them out.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of development scans; without: the sample scan alone")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="GLOB", help="which problems, as name:target")
    parser.add_argument("--passes", nargs="+", type=int, default=[40, 50, 150, 500], help="which of the planned ones")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--long", type=int, help="for slices one more run of so many passes, for the shortest known")
    parser.add_argument("--plan", action="store_true", help="say what is to be run and how long it takes, and end")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mafl-benchmark.jsonl")
    return parser.parse_args()


def _skipped(arguments: argparse.Namespace) -> dict[str, str]:
    """What cannot be run here, and how it could be."""
    skipped = missing(arguments.data)
    if released.version() is None:
        skipped |= dict.fromkeys(released.ATTACKS, released.INSTALL)
    return skipped


def _plan(todo: Sequence[Task], arguments: argparse.Namespace) -> None:
    """Print, for each problem, what is still to be run and for how long."""
    torch.set_num_threads(1)
    found = _recorded(arguments)
    left = [task for task in todo if task.key not in found]
    plan = planned.estimate(left, lambda name: planned.timed(load_case(name, arguments.data)))
    print(f"{len(todo)} runs, {len(todo) - len(left)} of them known")
    for name, runs, passes, seconds in plan:
        print(f"{name:40} {runs:3} runs {passes:7.0f} passes {seconds / passes:7.3f} s each {seconds / 60:6.1f} min")
    total = sum(seconds for *_, seconds in plan) / 60
    print(f"{total:.0f} CPU minutes, {total / arguments.jobs:.0f} with {arguments.jobs} processes")


def _command(arguments: argparse.Namespace) -> str:
    """The command line without the paths of this machine."""
    words = ["python benchmarks/quality.py"]
    words += ["--data DATA"] if arguments.data else []
    words += [] if arguments.cases == ["*"] else [f"--cases {' '.join(map(repr, arguments.cases))}"]
    words += [f"--passes {' '.join(map(str, sorted(arguments.passes)))}"]
    chosen = arguments.methods
    words += [] if set(chosen) == set(METHODS) else [f"--methods {' '.join(map(repr, chosen))}"]
    words += [f"--long {arguments.long}"] if arguments.long else []
    return " ".join([*words, f"--jobs {arguments.jobs}"])


def _json(document: dict[str, Any]) -> str:
    """Strict JSON with a line for each entry, and for each row: a new run changes the lines of its rows."""

    def text(value: object) -> str:
        return json.dumps(value, allow_nan=False)

    rows = ",\n  ".join(map(text, document["rows"]))
    entries = [f"{text(key)}: {text(value)}" for key, value in document.items() if key != "rows"]
    return "{\n " + ",\n ".join([*entries, f'"rows": [\n  {rows}\n ]']) + "\n}\n"


# --- running ------------------------------------------------------------------------------------------------


def _solve_all(todo: Sequence[Task], arguments: argparse.Namespace) -> tuple[list[Row], int]:
    """The rows of all tasks, recorded ones or computed and added to the cache file, and how many tasks failed."""
    found, store = _recorded(arguments), arguments.cache
    keys = [task.key for task in todo]
    left = {key: task for key, task in zip(keys, todo, strict=True) if key not in found}
    print(f"{len(todo)} runs, {len(left)} of them not in {store}", flush=True)
    pool_of = (arguments.jobs, get_context("spawn"), torch.set_num_threads, (1,))
    with ProcessPoolExecutor(*pool_of) as pool, store.open("a") as file:
        running = {pool.submit(solve, task, arguments.data): key for key, task in left.items()}
        try:
            for count, future in enumerate(as_completed(running), 1):
                key, task = running[future], left[running[future]]
                what = f"[{count}/{len(left)}] {task.case} {task.method} {task.passes} {task.settings or ''}"
                if error := future.exception():
                    print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                found[key] = future.result()
                file.write(json.dumps({"key": key, "rows": found[key]}, allow_nan=False) + "\n")
                file.flush()
                last = found[key][-1]
                print(f"{what}: score {last['score']:.4f}, L2 {last['l2']:.3f}, {last['seconds']:.0f} s", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    done = [key for key in keys if key in found]
    return [row for key in done for row in found[key]], len(keys) - len(done)


def _recorded(arguments: argparse.Namespace) -> dict[str, list[Row]]:
    """Rows by the key of their task: from the last benchmark.json, and from the cache file."""
    recorded: dict[str, list[Row]] = {}
    last = arguments.out / "benchmark.json"
    for row in json.loads(last.read_text())["rows"] if last.is_file() else []:
        if "key" in row:
            recorded.setdefault(row["key"], []).append(row)
    for line in arguments.cache.read_text().splitlines() if arguments.cache.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # The last line of a run that was killed while writing.
        recorded[entry["key"]] = entry["rows"]
    return recorded


def _kept(arguments: argparse.Namespace, names: Sequence[str]) -> list[Row]:
    """Rows of the last benchmark.json whose case, method or passes were not asked for now."""
    last = arguments.out / "benchmark.json"
    rows: list[Row] = json.loads(last.read_text())["rows"] if last.is_file() else []
    matched = (
        planned.PEERS if "mafl" in arguments.methods else [name for name in arguments.methods if name in planned.PEERS]
    )
    asked = {*arguments.methods, *(f"mafl as {method}" for method in matched)}
    return [
        row
        for row in rows
        if row["case"] not in names or row["method"] not in asked or row["passes"] not in arguments.passes
    ]


def solve(task: Task, data: Path | None) -> list[Row]:
    """Run a task and measure what it found: a row for each budget and rule."""
    case = _case(task.case, data)
    if task.method == "asma":
        rows = _asma(task, case)
    else:
        if task.method in planned.PEERS:
            solution = _peer(task, case)
        else:
            solution = (_one_by_one if "goals" in task.settings else _engine)(task, case)
        rows = [{"goal": task.settings.get("goal_iou"), **_measure(case, solution)}]
    named = {"case": task.case, "method": task.method, "key": task.key, "torch": torch.__version__}
    return [{**named, **row} for row in rows]


@cache
def _case(name: str, data: Path | None) -> Case:
    return load_case(name, data)


def _asma(task: Task, case: Case) -> list[Row]:
    begin = time.perf_counter()
    found = peers.asma(case, task.settings["tau"], task.settings["beta"], task.settings["marks"])
    seconds = time.perf_counter() - begin
    rows = []
    for (passes, rule), x in found.items():
        used = passes * len(case.clean)
        solution = Solution(x, passes, len(case.clean) + used, used, seconds * passes / task.passes)
        rows.append({"tau": task.settings["tau"], "rule": rule, **_measure(case, solution)})
    return rows


def _peer(task: Task, case: Case) -> Solution:
    begin = time.perf_counter()
    own = task.method == "pdgd"
    x = peers.pdgd(case, task.passes) if own else released.attack(task.method, case, task.passes)
    used = task.passes * len(case.clean)
    return Solution(x, task.passes, len(case.clean) + used, used, time.perf_counter() - begin)


def _one_by_one(task: Task, case: Case) -> Solution:
    """Every sample with a goal of its own, and no more than that."""
    names = ("goal_iou", "goal_hit", "aim")
    found = [
        _engine(replace(task, settings=dict.fromkeys(names, max(goal, 1e-6))), case[row : row + 1])
        for row, goal in enumerate(task.settings["goals"])
    ]
    return Solution(
        torch.cat([each.adversarial for each in found]),
        task.passes,
        forward=sum(each.forward for each in found),
        backward=sum(each.backward for each in found),
        seconds=sum(each.seconds for each in found),
    )


def _engine(task: Task, case: Case) -> Solution:
    assert task.preset is not None
    config = preset(task.preset, steps=task.passes, **task.settings)
    begin = time.perf_counter()
    result = engine.attack(case.field, case.clean, case.target, config, case.limits)
    seconds = time.perf_counter() - begin
    return Solution(result.adversarial, task.passes, result.forward, result.backward, seconds, result.estimate)


# --- measuring ----------------------------------------------------------------------------------------------


def _measure(case: Case, solution: Solution) -> Row:
    """The metrics over all samples of the case together, as plain numbers; None where one is not defined."""
    goal = peers.goal_of(case)
    labels = case.field.predict(solution.adversarial).logits.argmax(dim=1)
    verdict = goal.judge(labels)
    met = agreement.agreement(
        _volume(labels)[np.newaxis],
        _volume(case.target)[np.newaxis],
        _volume(case.field.predict(case.clean).logits.argmax(dim=1))[np.newaxis],
        Classes(tuple(f"class {index}" for index in range(goal.classes))),
        spacing=(1.0, 1.0, 1.0),
    )
    sizes = _sizes(case, solution.adversarial)
    squares = [size.l2.model**2 for size in sizes]
    hit = met.hit_rate.value
    overlap = met.target_iou.value
    return {
        "passes": solution.passes,
        "iou": hit if overlap is None else overlap,
        "accuracy": met.accuracy,
        "l2": sqrt(sum(squares)),
        "l2s": [round(length, 6) for length in _lengths(case, solution.adversarial)],
        "linf": max(size.linf.model for size in sizes),
        "psnr": _mean([size.psnr_db.value for size in sizes]),
        "ssim": _mean([size.ssim.mean.value for size in sizes]),
        "low_frequency": sum(
            share * square
            for size, square in zip(sizes, squares, strict=True)
            if (share := size.low_frequency_share.value) is not None
        )
        / (sum(squares) or 1),
        "hit": hit,
        "score": float(verdict.score.mean()),
        "scores": verdict.score.tolist(),
        "reached": int(verdict.reached.sum()),
        "samples": len(case.clean),
        **_estimated(solution.estimate),
        "forward": solution.forward,
        "backward": solution.backward,
        "seconds": round(solution.seconds, 2),
    }


def _estimated(estimate: Estimate | None) -> Row:
    """Excess and KKT cosine of each sample, None where there is no estimate."""
    if estimate is None:
        return {}
    return {
        name: [round(value, 4) if isfinite(value) else None for value in values.tolist()]
        for name, values in (("excess", estimate.excess), ("kkt_cosine", estimate.kkt_cosine))
    }


def _lengths(case: Case, adversarial: Tensor) -> list[float]:
    """L2 of the change of each sample, model units."""
    change = (adversarial - case.clean) / per_channel(case.limits.unit, case.clean)
    lengths: list[float] = change.flatten(1).norm(dim=1).tolist()
    return lengths


def _sizes(case: Case, adversarial: Tensor) -> list[Size]:
    """`measure.perturbation.size` of each channel, in model units."""
    return [
        perturbation.size(
            _volume(case.clean[:, channel] / unit),
            _volume(adversarial[:, channel] / unit),
            unit=1.0,
            data_range=None,
            slice_axis=2,
            spacing=(1.0, 1.0, 1.0),
        )
        for channel, unit in enumerate(case.limits.unit.tolist())
    ]


def _volume(batch: Tensor) -> np.ndarray[Any, Any]:
    """(B, H, W) or (1, I, J, K) as (I, J, K): slices lie along k."""
    array = batch.numpy()
    return array[0] if array.ndim == 4 else np.moveaxis(array, 0, -1)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of a value for each channel; one that is identical to the clean one has no PSNR."""
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None


if __name__ == "__main__":
    main()
