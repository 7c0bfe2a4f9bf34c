"""How well detectors tell an attack, when it does not know them and when it does, and what knowing them costs.

    python benchmarks/detectors.py --data DATA [--steps 60] [--cases 'flair*' ...] [--keep FOLDER]

Attacks every second slice of each 2-D development slab, cut to the part around what is drawn and wanted, and the sample
scan: with the default attack, and with `evade` blur, entropy, margin and all. DATA holds `cases/` and `models/` as the
other benchmarks take them. Prints the tables of docs/transfer.md. Attacks that FOLDER holds are not made again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from results import geometric, table

from mafl_cli.case.pipeline import run_attack
from mafl_cli.case.request import DEMO_MODEL, AttackRequest, ModelRequest
from mafl_cli.config import DETECTORS, Evade, preset
from mafl_cli.judging.evaluation import EvaluateRequest, run_evaluation
from mafl_cli.judging.robustness_card import interval
from mafl_cli.judging.trials import Trials
from mafl_cli.results.evaluation_report import Evaluation
from mafl_cli.results.recorded import of_runs

SAMPLE = Path(__file__).resolve().parent.parent / "sample_data"
ATTACKS: tuple[Evade | None, ...] = (None, "blur", "entropy", "margin", "all")
_SLABS = (
    ("flair2d_pat0001", "flair_unet2d.ts", ("image",)),
    ("brats2d_pat0002", "brats_unet2d.ts", ("image_flair", "image_t1c")),
)
_TARGETS = ("shifted20", "removed", "dilated")


@dataclass(frozen=True)
class Problem:
    """A scan with a target, and the model that is attacked."""

    name: str
    images: tuple[Path, ...]
    target: Path
    model: ModelRequest


def problems(data: Path, folder: Path) -> list[Problem]:
    """All problems; cut-outs are written into `folder`."""
    found = []
    for case, model, images in _SLABS:
        place = data / "cases" / case / "slab12"
        cut = folder / case
        cut.mkdir()
        names = (*images, *(f"target_{target}" for target in _TARGETS))
        scans = {name: nib.load(place / f"{name}.nii.gz") for name in names}
        drawn = ("clean_pred", "target_shifted20", "target_box")
        masks = [np.asarray(nib.load(place / f"{name}.nii.gz").dataobj) for name in drawn]
        part = (*_around(np.any([mask > 0 for mask in masks], axis=(0, 3))), slice(None, None, 2))
        for name, scan in scans.items():
            nib.save(scan.slicer[part], cut / f"{name}.nii.gz")
        attacked = ModelRequest(model=data / "models" / model)
        found += [
            Problem(
                f"{case}:{target}", tuple(cut / f"{image}.nii.gz" for image in images), cut / f"target_{target}.nii.gz",
                attacked,
            )
            for target in _TARGETS
        ]  # fmt: skip
    image = (SAMPLE / "brain_t1.nii.gz",)
    return [*found, Problem("sample:hole", image, SAMPLE / "target_hole.nii.gz", ModelRequest(model=DEMO_MODEL))]


def _around(mask: np.ndarray[Any, Any], margin: int = 16, step: int = 16) -> tuple[slice, ...]:
    """The part of a plane around a mask, with sides that the networks take."""
    found = []
    for axis in range(2):
        index = np.flatnonzero(mask.any(axis=1 - axis))
        low, high = max(int(index[0]) - margin, 0), int(index[-1]) + 1 + margin
        side = -(-(high - low) // step) * step
        low = max(min(low, mask.shape[axis] - side), 0)
        found.append(slice(low, low + side))
    return tuple(found)


def attacked(problem: Problem, evade: Evade | None, steps: int, folder: Path) -> tuple[Path, dict[str, Any]]:
    """One attack: its folder, and what it cost."""
    out = folder / f"{problem.name}-{evade}".replace(":", "-")
    if not (out / "report.json").is_file():
        config = preset("mafl", steps=steps, evade=evade)
        settings = vars(problem.model)
        run_attack(AttackRequest(**settings, images=problem.images, targets=(problem.target,), out=out, config=config))
    recorded = of_runs([out])[0].read().recorded
    assert recorded is not None
    assert recorded.report.run.settings.steps == steps
    case = recorded.case
    return out, {
        "case": problem.name,
        "evade": evade,
        "slices": case.attack.samples.attacked,
        "slices_reached": case.attack.samples.reached,
        "l2": case.metrics.size.l2.model,
        "psnr_db": case.metrics.size.psnr_db.value,
    }


def told(report: Evaluation) -> dict[str, Any]:
    """What each detector says of the attacks together."""
    samples = [
        (each.detector, sample) for case in report.judged for each in case.detection for sample in each.samples
    ]  # fmt: skip
    return {
        roc.detector: {
            "auc": roc.auc.value,
            "interval": interval(roc),
            "found": roc.tpr_at_5_percent_fpr.value,
            "n": roc.n,
            "above": sum(s.adversarial > s.clean for name, s in samples if name == roc.detector),
        }
        for roc in report.detection
    }


def tables(rows: Sequence[dict[str, Any]], by_attack: dict[Evade | None, dict[str, Any]]) -> str:
    """The two tables of docs/transfer.md."""
    plain = {row["case"]: row for row in rows if row["evade"] is None}
    sizes, scores = [], []
    for evade, found in by_attack.items():
        mine = [row for row in rows if row["evade"] == evade]
        ratio = geometric([row["l2"] / plain[row["case"]]["l2"] for row in mine])
        lost = [row["psnr_db"] - plain[row["case"]]["psnr_db"] for row in mine]
        name = "default" if evade is None else f"`--evade {evade}`"
        reached, slices = (sum(row[key] for row in mine) for key in ("slices_reached", "slices"))
        sizes.append((name, f"{reached} of {slices}", f"{ratio:.2f}", f"{np.mean(lost):+.1f}"))
        cells = [f"{found[each]['auc']:.3f} ({found[each]['interval']})" for each in DETECTORS]
        higher = [f"{found[each]['above']} of {found[each]['n']}" for each in DETECTORS]
        scores.append((name, *cells, *higher))
    heads = [f"AUC, {name}" for name in DETECTORS] + [f"above the clean slice, {name}" for name in DETECTORS]
    return "\n\n".join(
        [
            table(("attack", *heads), scores),
            table(("attack", "slices at the goal", "L2, × default", "PSNR, dB"), sizes),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=["*"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    rows, by_attack = [], {}
    with tempfile.TemporaryDirectory() as folder:
        kept = options.keep or Path(folder)
        chosen = [
            problem
            for problem in problems(options.data, Path(folder))
            if any(fnmatch.fnmatch(problem.name, pattern) for pattern in options.cases)
        ]
        models = tuple({problem.model.model: problem.model for problem in chosen}.values())
        for evade in ATTACKS:
            runs = []
            for problem in chosen:
                run, row = attacked(problem, evade, options.steps, kept)
                runs.append(run)
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
            request = EvaluateRequest(runs=tuple(runs), at_hand=models, trials=Trials(detect=True))
            by_attack[evade] = told(run_evaluation(request))
            print(json.dumps(by_attack[evade]), file=sys.stderr, flush=True)
    print(tables(rows, by_attack))


if __name__ == "__main__":
    main()
