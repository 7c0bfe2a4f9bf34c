"""What each ingredient of the attack buys: every row switches one of them off, on the same problems, in one run.

    python benchmarks/ablation.py [--data DIR] [--steps 150] [--out docs]

Writes docs/ablation.md. Ratios are to the full method, the geometric mean over the problems; *under blur* is the share
of the voxels to be changed that still have the target's class after a Gaussian blur of half a voxel.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import exp, log
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cases import load_case
from scipy import ndimage

from mafl_cli.config import AttackConfig
from mafl_cli.field.preprocess import per_channel
from mafl_cli.search.loop import attack
from mafl_cli.search.lowfreq import low_frequency_energy

ALWAYS = ("sample:hole", "sample:swap")
WITH_DATA = (
    "flair2d_pat0001/slab12:shifted20",
    "flair2d_pat0001/slab12:removed",
    "brats2d_pat0002/slab12:dilated",
    "brats2d_pat0002/slab12:otherpatient",
)
ROWS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no feature term": {"feature_weight": 0.0},
    "no low-frequency penalty": {"low_frequency_weight": 0.0},
    "five times the low-frequency penalty": {"low_frequency_weight": 1.0},
    "hard low-frequency constraint": {"low_frequency": "hard", "low_frequency_weight": 0.0},
    "no momentum": {"momentum": 0.0},
    "no dynamic step: unit steps of a falling length": {
        "step": "cosine",
        "direction": "l2",
        "gradient_norm": "l2",
        "step_size": 0.1,
    },
    "no weights for a late target": {"adaptive_weights": False},
    "no penalty on peaks": {"peak_weight": 0.0},
    "no margin (κ = 0)": {"kappa": 0.0},
    "no scale search": {"scale_search": 0},
    "aim at the goal only": {"aim": 0.99},
}


@dataclass(frozen=True)
class Outcome:
    """Over the samples of a problem: mean score, whole L2 and Linf (model units), low-frequency share, hits left."""

    score: float
    reached: int
    samples: int
    l2: float
    linf: float
    low_frequency: float
    under_blur: float


def solve(name: str, row: str, steps: int, data: Path | None) -> Outcome:
    torch.set_num_threads(1)
    case = load_case(name, data)
    found = attack(case.field, case.clean, case.target, AttackConfig(steps=steps, **ROWS[row]), case.limits)
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


def table(found: dict[str, list[Outcome]]) -> str:
    """The Markdown table; the first row of `found` is what the others are compared with."""
    base = next(iter(found.values()))
    lines = ["| | at the goal | score | L2 | Linf | low-frequency share | under blur |", "| --- |" + " --- |" * 6]

    def ratio(rows: list[Outcome], what: str) -> float:
        pairs = zip(rows, base, strict=True)
        return exp(sum(log(getattr(a, what) / getattr(b, what)) for a, b in pairs) / len(rows))

    def mean(rows: list[Outcome], what: str) -> float:
        return sum(getattr(each, what) for each in rows) / len(rows)

    for row, rows in found.items():
        reached, samples = sum(each.reached for each in rows), sum(each.samples for each in rows)
        lines.append(
            f"| {row} | {reached}/{samples} | {mean(rows, 'score'):.4f} | ×{ratio(rows, 'l2'):.2f} "
            f"| ×{ratio(rows, 'linf'):.2f} | {mean(rows, 'low_frequency'):.2f} | {mean(rows, 'under_blur'):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of development scans; without: the sample scan alone")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    arguments = parser.parse_args()
    names = ALWAYS if arguments.data is None else ALWAYS + WITH_DATA
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        running = {
            row: [pool.submit(solve, name, row, arguments.steps, arguments.data) for name in names] for row in ROWS
        }
        found = {row: [each.result() for each in futures] for row, futures in running.items()}
    command = "python benchmarks/ablation.py" + (" --data DATA" if arguments.data else "")
    text = f"""# Ablation

`{command} --steps {arguments.steps}`: {len(names)} problems
({", ".join(names)}),
{arguments.steps} passes, PyTorch {torch.__version__} on a CPU. Each row switches one thing off. L2 and Linf are ratios
to the first row (geometric mean over the problems); *under blur* is the share of the voxels to be changed that still
have the target's class after a Gaussian blur of half a voxel.

{table(found)}
"""
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "ablation.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
