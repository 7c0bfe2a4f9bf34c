"""How good is the attack: mafl, other people's attacks and its own presets on the same problems with the same budget.

    python benchmarks/quality.py [--data DIR] [--cases GLOB...] [--passes 50 150 500] [--jobs 2] [--out docs]

A pass is one forward and one backward pass through the network for each slice or volume; the forward passes of mafl's
scale search count as one each. Every finished run is appended to a cache file, so an interrupted benchmark goes on
where it stopped; a run whose settings or program have changed is done again. Writes benchmark.json, and from it
(`tables.py`) benchmark.md and benchmark.png.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cases
import numpy as np
import peers
import tables
import torch
from cases import Case, all_names, is_volume, load_case
from torch import Tensor

from mafl_cli.classes import Classes
from mafl_cli.config import config_hash, preset
from mafl_cli.field import boxes, preprocess, tiling, whole, windows
from mafl_cli.measure import agreement, perturbation
from mafl_cli.measure.records import Size
from mafl_cli.network import load, prediction, segmenter
from mafl_cli.search import best, descent, goals, halpern, limits, losses, lowfreq, pressure, steps, terms
from mafl_cli.search import loop as engine

PRESETS = ("mafl-paper", "pgd", "mifgsm", "segpgd", "cospgd", "ssah", "dag")
METHODS = ("mafl", "asma", *PRESETS, "pdgd")
GOALS = (0.9, 0.95)
"""Further goals of mafl, beside its default, on the problems of the picture."""
COMMON = (cases, load, prediction, segmenter, preprocess, boxes, tiling, whole, windows, goals, limits, agreement)
"""The programs that every result depends on."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One run. `settings` change the preset of that name, or are the parameters of a peer."""

    case: str
    method: str
    passes: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Changes with the settings and with the programs that make the result, comments and docstrings aside."""
        peer = self.method in ("asma", "asma-published", "pdgd")
        sources = (
            (*COMMON, peers)
            if peer
            else (*COMMON, engine, terms, best, losses, pressure, lowfreq, steps, descent, halpern)
        )
        settings = {} if peer else asdict(preset(_preset_of(self.method), steps=self.passes))
        return config_hash([asdict(self), settings, [_program(Path(str(source.__file__))) for source in sources]])


@dataclass(frozen=True)
class Solution:
    """What a run found, (B, C, *spatial), and its passes through the network, counted per sample."""

    adversarial: Tensor
    passes: int
    forward: int
    backward: int
    seconds: float


def main() -> None:
    arguments = _arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    names = [name for name in all_names(arguments.data) if any(fnmatch(name, glob) for glob in arguments.cases)]
    if not names:
        raise SystemExit(f"no such case; there are: {', '.join(all_names(arguments.data))}.")
    todo = list(_tasks(names, sorted(arguments.passes), arguments.methods, arguments.published))
    rows, failed = _solve_all(todo, arguments.cache, arguments.data, arguments.jobs)
    matched, more = _solve_all(list(_matching(rows)), arguments.cache, arguments.data, arguments.jobs)
    rows, failed = rows + matched, failed + more
    order = {name: index for index, name in enumerate(names)}
    document = {
        "command": _command(arguments),
        "machine": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": platform.machine(),
            "processes": arguments.jobs,
            "threads": 1,
        },
        "passes": sorted(arguments.passes),
        "goal": preset("mafl").goal_iou,
        "cases": names,
        "rows": sorted(rows, key=lambda row: (order[row["case"]], row["method"], row["passes"])),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmark.json").write_text(_json(document))
    tables.write(arguments.out)
    if failed:
        raise SystemExit(f"{failed} runs failed; the tables leave them out.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of development scans; without: the sample scan alone")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="GLOB", help="which problems, as folder:target")
    parser.add_argument("--passes", nargs="+", type=int, default=[50, 150, 500], help="the presets get the middle one")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--published", action="store_true", help="also ASMA with its published step, 2501 passes")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mafl-benchmark.jsonl")
    return parser.parse_args()


def _command(arguments: argparse.Namespace) -> str:
    """The command line without the paths of this machine."""
    words = ["python benchmarks/quality.py"]
    words += ["--data DATA"] if arguments.data else []
    words += [] if arguments.cases == ["*"] else [f"--cases {' '.join(map(repr, arguments.cases))}"]
    words += [f"--passes {' '.join(map(str, sorted(arguments.passes)))}"]
    words += [] if set(arguments.methods) == set(METHODS) else [f"--methods {' '.join(arguments.methods)}"]
    return " ".join([*words, *(["--published"] if arguments.published else []), f"--jobs {arguments.jobs}"])


def _json(document: dict[str, Any]) -> str:
    """Strict JSON with a line for each entry, and for each row: a new run changes the lines of its rows."""

    def text(value: object) -> str:
        return json.dumps(value, allow_nan=False)

    rows = ",\n  ".join(map(text, document["rows"]))
    entries = [f"{text(key)}: {text(value)}" for key, value in document.items() if key != "rows"]
    return "{\n " + ",\n ".join([*entries, f'"rows": [\n  {rows}\n ]']) + "\n}\n"


# --- what to run --------------------------------------------------------------------------------------------


def _tasks(names: Sequence[str], passes: Sequence[int], methods: Sequence[str], published: bool) -> Iterator[Task]:
    """All runs, the problems one after the other, so that each process loads few of them."""
    middle = passes[len(passes) // 2]
    for name, method in itertools.product(names, methods):
        budgets, most = passes, passes[-1]
        if is_volume(name):
            # A pass through a cube costs as much as through ten slices: what decides, and no more.
            if method not in ("mafl", "asma"):
                continue
            budgets, most = [count for count in passes if count <= middle], middle
        if method == "mafl":
            yield from (Task(name, method, budget) for budget in budgets)
            if name in tables.pictured(names):
                yield from (Task(name, method, middle, {"goal_iou": goal, "goal_hit": goal}) for goal in GOALS)
        elif method == "asma":
            for tau in peers.TAUS:
                yield Task(name, method, most, {"tau": tau, "beta": 10 * tau, "marks": list(budgets)})
            if published and name in tables.pictured(names) and not is_volume(name):
                count = peers.PUBLISHED_PASSES
                yield Task(name, "asma-published", count, {**peers.PUBLISHED, "marks": [count]})
        elif method == "pdgd":
            yield Task(name, method, most)
        else:
            yield Task(name, method, middle)


def _matching(rows: Sequence[Row]) -> Iterator[Task]:
    """For each run of PDGD: mafl with the score that it reached as the goal, sample by sample."""
    for row in rows:
        if row["method"] == "pdgd":
            yield Task(row["case"], "mafl-as-pdgd", row["passes"], {"goals": row["scores"]})


def _preset_of(method: str) -> str:
    return "mafl" if method == "mafl-as-pdgd" else method


@cache
def _program(path: Path) -> str:
    """The text of a module without comments, line breaks and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# --- running ------------------------------------------------------------------------------------------------


def _solve_all(todo: Sequence[Task], store: Path, data: Path | None, jobs: int) -> tuple[list[Row], int]:
    """The rows of all tasks, from the cache file or computed and added to it, and how many tasks failed."""
    known = _read_cache(store)
    keys = [task.key for task in todo]
    missing = {key: task for key, task in zip(keys, todo, strict=True) if key not in known}
    print(f"{len(todo)} runs, {len(missing)} of them not in {store}", flush=True)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool, store.open("a") as file:
        running = {pool.submit(solve, task, data): key for key, task in missing.items()}
        try:
            for count, future in enumerate(as_completed(running), 1):
                key, task = running[future], missing[running[future]]
                what = f"[{count}/{len(missing)}] {task.case} {task.method} {task.passes} {task.settings or ''}"
                if error := future.exception():
                    print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                known[key] = future.result()
                file.write(json.dumps({"key": key, "rows": known[key]}, allow_nan=False) + "\n")
                file.flush()
                last = known[key][-1]
                print(f"{what}: score {last['score']:.4f}, L2 {last['l2']:.3f}, {last['seconds']:.0f} s", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    done = [key for key in keys if key in known]
    return [row for key in done for row in known[key]], len(keys) - len(done)


def _read_cache(store: Path) -> dict[str, list[Row]]:
    known = {}
    for line in store.read_text().splitlines() if store.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # The last line of a run that was killed while writing.
        known[entry["key"]] = entry["rows"]
    return known


def solve(task: Task, data: Path | None) -> list[Row]:
    """Run a task and measure what it found: a row for each budget and rule."""
    case = _case(task.case, data)
    if task.method in ("asma", "asma-published"):
        rows = _asma(task, case)
    else:
        solution = {"pdgd": _pdgd, "mafl-as-pdgd": _one_by_one}.get(task.method, _engine)(task, case)
        rows = [{"goal": task.settings.get("goal_iou"), **_measure(case, solution)}]
    return [{"case": task.case, "method": task.method, **row} for row in rows]


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


def _pdgd(task: Task, case: Case) -> Solution:
    begin = time.perf_counter()
    x = peers.pdgd(case, task.passes)
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
    config = preset(_preset_of(task.method), steps=task.passes, **task.settings)
    begin = time.perf_counter()
    result = engine.attack(case.field, case.clean, case.target, config, case.limits)
    seconds = time.perf_counter() - begin
    return Solution(result.adversarial, task.passes, result.forward, result.backward, seconds)


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
        "forward": solution.forward,
        "backward": solution.backward,
        "seconds": round(solution.seconds, 2),
    }


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
