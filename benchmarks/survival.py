"""What is left of an attack in other models and after what happens to scans, with more and less low frequency in it.

    python benchmarks/survival.py --data DATA [--steps 100] [--cases 'flair*' ...] [--out docs]

Attacks each case with the low-frequency term off, at its default, stronger, and as a hard constraint; then asks
`mafl evaluate` for transfer, survival and detection. DATA holds `cases/` and `models/` as the other benchmarks take
them. Writes survival.json, which `tables.py` makes a section of benchmark.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mafl_cli.case.pipeline import run_attack
from mafl_cli.case.request import DEMO_MODEL, AttackRequest, ModelRequest
from mafl_cli.config import preset
from mafl_cli.field.transforms import parse
from mafl_cli.judging.evaluation import EvaluateRequest, run_evaluation
from mafl_cli.judging.trials import Trials
from mafl_cli.results.evaluation_report import JudgedCase
from mafl_cli.system.records import plain

SAMPLE = Path(__file__).resolve().parent.parent / "sample_data"

VARIANTS: dict[str, dict[str, Any]] = {
    "off": {"low_frequency_weight": 0.0},
    "penalty 0.2 (default)": {},
    "penalty 1": {"low_frequency_weight": 1.0},
    "hard": {"low_frequency": "hard"},
}


class Swapped(torch.nn.Module):
    """A network with its classes 1 and 2 in the other order."""

    def __init__(self, net: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, [0, 2, 1]]


@dataclass(frozen=True)
class Problem:
    """A scan, a target, the model that is attacked, and one that is not."""

    name: str
    images: tuple[Path, ...]
    target: Path
    model: ModelRequest
    other: ModelRequest | None


def problems(data: Path, folder: Path) -> list[Problem]:
    """All problems; `folder` is for models that are made here."""
    models, cases = data / "models", data / "cases"
    tissue = folder / "meshnet.ts"
    torch.jit.script(Swapped(torch.jit.load(models / "t1_gwm_meshnet3d.ts"))).save(tissue)
    tissue.with_suffix(".toml").write_text(
        '[input]\ndims = 3\nintensity = { kind = "minmax" }\n[output]\nclasses = ["background", "grey", "white"]\n'
    )
    demo, meshnet = ModelRequest(model=DEMO_MODEL), ModelRequest(model=tissue)
    found = [
        Problem(f"sample:{name}", (SAMPLE / "brain_t1.nii.gz",), SAMPLE / f"target_{name}.nii.gz", demo, meshnet)
        for name in ("hole", "swap")
    ]
    flair, flat, deep = (
        ModelRequest(model=models / f"{name}.ts") for name in ("flair_unet2d", "brats_unet2d", "brats_unet3d")
    )
    for name, part, model, other in (
        ("flair2d_pat0001", "slab12", flair, None),
        ("brats2d_pat0002", "slab12", flat, None),
        ("brats3d_pat0003", "crop96", deep, flat),
    ):
        place = cases / name / part
        images = sorted(place.glob("image_[ft]*.nii.gz")) if model is not flair else [place / "image.nii.gz"]
        found += [
            Problem(f"{name}:{target}", tuple(images), place / f"target_{target}.nii.gz", model, other)
            for target in ("shifted20", "removed")
        ]
    return found


def measure(problem: Problem, variant: str, steps: int, folder: Path) -> dict[str, Any]:
    """One attack, and what is left of it."""
    out = folder / f"{problem.name}-{variant}".replace(":", "-").replace(" ", "-")
    config = preset("mafl", steps=steps, **VARIANTS[variant])
    settings = vars(problem.model)
    attack = AttackRequest(**settings, images=problem.images, targets=(problem.target,), out=out, config=config)
    case = run_attack(attack).case
    models = (problem.model,) if problem.other is None else (problem.model, problem.other)
    trials = Trials(transforms=parse(["all"]), detect=True)
    found = run_evaluation(EvaluateRequest(runs=(out,), models=models, trials=trials))
    post, size = case.metrics.post_write, case.metrics.size
    (judged,) = found.cases
    assert isinstance(judged, JudgedCase)
    (blur,) = (roc for roc in found.detection if roc.detector == "blur")
    return {
        "case": problem.name,
        "variant": variant,
        "goal_reached": case.attack.goal_reached,
        "target_iou": post.target_iou.value,
        "hit_rate": post.hit_rate.value,
        "l2": size.l2.model,
        "psnr_db": size.psnr_db.value,
        "ssim": size.ssim.mean_changed_slices.value,
        "low_frequency_share": size.low_frequency_share.value,
        "changed_slices": plain(size.changed_slices),
        "survival": plain(found.survival),
        "transfer": plain(judged.transfer),
        "auc": blur.auc.value,
        "samples": blur.n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=["*"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = [
            problem
            for problem in problems(options.data, Path(folder))
            if any(fnmatch.fnmatch(problem.name, pattern) for pattern in options.cases)
        ]
        for problem in chosen:
            for variant in VARIANTS:
                rows.append(measure(problem, variant, options.steps, Path(folder)))
                print(problem.name, variant, f"{rows[-1]['hit_rate']:.3f}", f"{rows[-1]['l2']:.3f}", file=sys.stderr)
    document = {"steps": options.steps, "torch": torch.__version__, "cases": options.cases}
    # A row a line: a person can find one, and a change of one is a change of a line.
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    (options.out / "survival.json").write_text(f'{json.dumps(document)[:-1]}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
