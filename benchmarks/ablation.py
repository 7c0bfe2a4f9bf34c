"""What each ingredient of the attack buys: every row takes one out alone, on the same problems, in one run.

    python benchmarks/ablation.py [--data DIR] [--steps 100] [--jobs 1] [--plan] [--out docs]

First the five ingredients that the abstract of MAFL-Attack names, taken out of `mafl-paper`; then those of the default,
`mafl`. Writes docs/ablation.md. Finished runs are kept in a cache file, as by `quality.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from math import exp, log, sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import planned
import torch
from cases import load_case
from results import table
from scipy import ndimage, stats
from sources import all_names, is_volume

from mafl_cli.config import preset
from mafl_cli.field.preprocess import per_channel
from mafl_cli.search.loop import attack
from mafl_cli.search.lowfreq import low_frequency_energy

Settings = dict[str, Any]
Paired = list[tuple["Outcome", "Outcome"]]

STEPS = [{"step": "cosine", "direction": "l2", "gradient_norm": "l2", "step_size": size} for size in (0.03, 0.1, 0.3)]
"""Steps of a length that falls to 0, along the slope of the same terms; for each problem the best of three sizes."""
INGREDIENTS: dict[str, list[Settings]] = {
    "adaptive mask loss": [{"mask_loss": "ce"}],
    "feature-cosine loss": [{"feature_weight": 0.0}],
    "low-frequency constraint": [{"low_frequency_weight": 0.0}],
    "momentum": [{"momentum": 0.0}],
    "dynamic step": STEPS,
}
"""What takes an ingredient out. Without the adaptive mask all voxels count, by their mean cross-entropy."""
MORE: dict[str, list[Settings]] = {
    "weights for a late target": [{"adaptive_weights": False}],
    "penalty on peaks": [{"peak_weight": 0.0}],
    "wanted lead κ": [{"kappa": 0.0}],
    "scale search": [{"scale_search": 0}],
}
"""What the default has beside them."""
WHOLE = "everything"


@dataclass(frozen=True)
class Outcome:
    """Of one problem: mean score, slices at the goal, whole L2 and Linf (model units), low-frequency share, hits left.

    under_blur: share of the voxels to be changed that have the target's class after a Gaussian blur of half a voxel.
    """

    score: float
    reached: int
    samples: int
    l2: float
    linf: float
    low_frequency: float
    under_blur: float
    torch: str = torch.__version__

    @property
    def rank(self) -> tuple[float, ...]:
        """More slices at the goal, then less length; where none is there, more score."""
        return (self.reached, self.score if self.reached < self.samples else 1.0, -self.l2)


def solve(task: planned.Task, data: Path | None) -> Outcome:
    torch.set_num_threads(1)
    case = load_case(task.case, data)
    assert task.preset is not None
    config = preset(task.preset, steps=task.passes, **task.settings)
    found = attack(case.field, case.clean, case.target, config, case.limits)
    delta = (found.adversarial - case.clean) / per_channel(case.limits.unit, case.clean)
    energy = (delta**2).flatten(1).mean(dim=1)
    changed = case.field.predict(case.clean).logits.argmax(dim=1) != case.target
    blurred = ndimage.gaussian_filter(found.adversarial.numpy(), (0, 0, *(0.5,) * (case.clean.ndim - 2)))
    hits = case.field.predict(torch.from_numpy(blurred)).logits.argmax(dim=1) == case.target
    return Outcome(
        score=float(found.verdict.score.mean()),
        reached=int(found.verdict.reached.sum()),
        samples=len(delta),
        l2=float(delta.norm()),
        linf=float(delta.abs().max()),
        low_frequency=float(low_frequency_energy(delta).sum() / energy.sum().clamp_min(1e-30)),
        under_blur=float(hits[changed].float().mean()),
    )


def rows(method: str) -> dict[str, list[Settings]]:
    """What is compared: everything, and each ingredient taken out."""
    parts = INGREDIENTS if method == "mafl-paper" else INGREDIENTS | MORE
    whole: list[Settings] = [{}]
    return {WHOLE: whole, **{f"no {name}": how for name, how in parts.items()}}


def tasks(names: Sequence[str], method: str, steps: int) -> Iterator[tuple[str, planned.Task]]:
    for row, variants in rows(method).items():
        for settings in variants:
            yield from ((row, planned.Task(name, method, steps, settings)) for name in names)


# --- statistics ---------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t, one value for each problem; without limits for a single one."""
    middle = mean(values)
    if len(values) < 2:
        return middle, float("-inf"), float("inf")
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return middle, middle - reach, middle + reach


def ratio(pairs: Paired, what: str) -> tuple[float, float, float] | None:
    """Geometric mean of without / with, and its interval, over the problems where both are at the goal everywhere."""
    logs = [
        log(getattr(without, what) / getattr(whole, what))
        for without, whole in pairs
        if without.reached == without.samples and whole.reached == whole.samples
    ]
    if not logs:
        return None
    middle, low, high = interval(logs)
    return exp(middle), exp(low), exp(high)


def line(name: str, pairs: Paired) -> list[str]:
    """A row of the table. pairs: without the ingredient and with everything, problem by problem."""
    reached, samples = sum(each.reached for each, _ in pairs), sum(each.samples for each, _ in pairs)
    both = sum(a.reached == a.samples and b.reached == b.samples for a, b in pairs)
    cells = [name, f"{reached}/{samples}", f"{mean(each.score for each, _ in pairs):.4f}", str(both)]
    for what in ("l2", "linf"):
        found = ratio(pairs, what)
        if name == WHOLE:
            cells.append("1")
        else:
            cells.append("–" if found is None else f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]")
    cells.append(f"{mean(each.low_frequency for each, _ in pairs):.3f}")
    blur = f"{mean(each.under_blur for each, _ in pairs):.3f}"
    if name != WHOLE:
        middle, low, high = interval([a.under_blur - b.under_blur for a, b in pairs])
        blur += f" ({middle:+.3f} [{low:+.3f}, {high:+.3f}])"
    return [*cells, blur]


def sentence(name: str, pairs: Paired) -> str:
    """What an ingredient buys, in words."""
    lost = sum(b.reached - a.reached for a, b in pairs)
    found = ratio(pairs, "l2")
    text = f"- **{name[3:].capitalize()}**: "
    goal = ""
    if lost:
        goal = f"without it {abs(lost)} slices {'fewer' if lost > 0 else 'more'} reach the goal"
    if found is None:
        return f"{text}{goal or 'without it no problem is at the goal'}."
    percent, apart = abs(100 * (found[0] - 1)), found[1] > 1 or found[2] < 1
    if apart:
        size = f"the change is {percent:.1f} % {'longer' if found[0] > 1 else 'shorter'} without it"
    else:
        size = f"no difference in length is shown ({100 * (found[0] - 1):+.1f} % without it)"
    return f"{text}{f'{goal}; ' if goal else ''}{size}."


# --- the page -----------------------------------------------------------------------------------------------


def section(method: str, names: Sequence[str], found: dict[tuple[str, str], list[Outcome]]) -> str:
    """found: for each row and problem the outcomes of its variants."""
    best = {key: max(outcomes, key=lambda outcome: outcome.rank) for key, outcomes in found.items()}
    lines, sentences = [], []
    for row in rows(method):
        pairs = [(best[row, name], best[WHOLE, name]) for name in names]
        lines.append(line(row, pairs))
        if row != WHOLE:
            sentences.append(sentence(row, pairs))
    head = ["", "at the goal", "score", "pairs", "L2", "Linf", "low-frequency share", "under blur"]
    return f"## {method}\n\n{table(head, lines)}\n\n" + "\n".join(sentences)


def page(command: str, names: Sequence[str], steps: int, versions: Sequence[str], sections: Sequence[str]) -> str:
    return f"""# Ablation

`{command}`: {len(names)} problems in 2-D
({", ".join(names)}),
{steps} passes, PyTorch {", ".join(versions)} on a CPU. Each row takes one ingredient out; the others stay as they are.

L2 and Linf are ratios to everything: the geometric mean over the problems in which both reach the goal on every slice
(column *pairs*), with its 95 % interval by Student's t over the logarithms of these ratios. An interval that holds 1
does not show a difference. *Under blur* is the share of the voxels to be changed that still have the target's class
after a Gaussian blur of half a voxel; in brackets the difference to everything, with its interval over all problems.

Taken out means: **adaptive mask loss**, all voxels count, by their mean cross-entropy; **feature-cosine loss** and
**low-frequency constraint**, weight 0; **momentum**, only the cut of the last step; **dynamic step**, steps of a length
that falls with a cosine to 0, along the slope of the same terms, for each problem the best of three lengths.

{(chr(10) * 2).join(sections)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of development scans; without: the sample scan alone")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--plan", action="store_true", help="say how long it takes, and end")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mafl-ablation.jsonl")
    arguments = parser.parse_args()
    names = [name for name in all_names(arguments.data) if not is_volume(name)]
    todo = {method: list(tasks(names, method, arguments.steps)) for method in ("mafl-paper", "mafl")}
    if arguments.plan:
        torch.set_num_threads(1)
        second = {name: planned.timed(load_case(name, arguments.data)) for name in names}
        total = sum(task.passes * second[task.case] for some in todo.values() for _, task in some)
        print(f"{sum(map(len, todo.values()))} runs, {total / 60:.0f} CPU minutes")
        return
    found = _solved([task for some in todo.values() for _, task in some], arguments)
    sections = []
    for method, some in todo.items():
        outcomes: dict[tuple[str, str], list[Outcome]] = {}
        for row, task in some:
            outcomes.setdefault((row, task.case), []).append(found[task.key])
        sections.append(section(method, names, outcomes))
    command = "python benchmarks/ablation.py" + (" --data DATA" if arguments.data else "")
    versions = sorted({outcome.torch for outcome in found.values()})
    text = page(f"{command} --steps {arguments.steps}", names, arguments.steps, versions, sections)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "ablation.md").write_text(text, encoding="utf-8")
    print(text)


def _solved(todo: Sequence[planned.Task], arguments: argparse.Namespace) -> dict[str, Outcome]:
    """By the key of the task, from the cache file or computed and added to it."""
    lines = arguments.cache.read_text().splitlines() if arguments.cache.exists() else []
    found = {entry.pop("key"): Outcome(**entry) for entry in map(json.loads, lines)}
    left = {task.key: task for task in todo if task.key not in found}
    print(f"{len(todo)} runs, {len(left)} of them not in {arguments.cache}", flush=True)
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool, arguments.cache.open("a") as file:
        running = {pool.submit(solve, task, arguments.data): key for key, task in left.items()}
        for count, future in enumerate(as_completed(running), 1):
            key, task = running[future], left[running[future]]
            found[key] = future.result()
            file.write(json.dumps({"key": key, **asdict(found[key])}) + "\n")
            file.flush()
            print(f"[{count}/{len(left)}] {task.case} {task.method} {task.settings}: {found[key]}", flush=True)
    return found


if __name__ == "__main__":
    main()
