"""One change for many scans: on how many others does it do what it does where it was made?

    python benchmarks/travel_made.py --data DIR --cache CACHE
    python benchmarks/universal.py --cache CACHE

The scans are the slices of `travel_made.py` that no network was taught, all brought onto one grid by dropping where
along the body they lie, as if each were the only one of its protocol. The class is to vanish (`erase`). On MR the
change is made on the slices of two patients, and held out are those of the third, or with `--random` a third of all
slices, drawn by the seed; on CT, of which there is one patient, a third of the slices.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from travel_made import TASKS, padded

from mafl_cli import api
from mafl_cli.batch.universal import UniversalRequest, run_universal
from mafl_cli.config import preset
from mafl_cli.listing.cases import CaseFiles
from mafl_cli.results.quantity import value_of

CLASSES = {"mr": (1, "tumour"), "ct": (5, "bones")}
PATIENT = "pat0002"
"""Whose slices are held out on MR."""
_FEWEST = 30
"""Pixels of the class that a slice must show."""


def scans(cache: Path, task: str, folder: Path) -> list[CaseFiles]:
    """Copies on one grid of the slices that show enough of the class."""
    index, _ = CLASSES[task]
    found = []
    for path in sorted((cache / task / "scans").glob("*.nii.gz")):
        labels = np.asarray(nib.load(cache / task / "labels" / path.name).dataobj)
        if (labels == index).sum() < _FEWEST:
            continue
        image = nib.load(path)
        affine = image.affine.copy()
        affine[:3, 3] = 0
        copy = folder / path.name
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), copy)
        found.append(CaseFiles(case_id=path.name.removesuffix(".nii.gz"), images=(copy,)))
    return found


def measure(
    cache: Path,
    task: str,
    network: str,
    cases: Sequence[CaseFiles],
    share: float,
    *,
    at_random: bool,
    **settings: Any,
) -> dict[str, Any]:
    """What one change within a share of the range does on the scans that it was made on, and on those held out.

    alone: what a change of its own does on each of those held out, with the same method and limit. noise: what random
    signs at the limit do there.
    """
    index, _ = CLASSES[task]
    names = tuple(case.case_id for case in cases if case.case_id.startswith(PATIENT) and not at_random)
    config = preset(
        "mifgsm",
        **{"eps": share, "eps_unit": "range", "step": "cosine", "after_goal": "continue", **settings},
    )
    with tempfile.TemporaryDirectory() as folder:
        asked = api.attack_request(
            (), f"erase:{index}", model=cache / task / network / "model.ts", out=folder, device="cpu", config=config
        )
        request = UniversalRequest(
            cases=tuple(cases), attack=asked, out=Path(folder), holdout=names or 1 / 3, overwrite=True
        )
        whole = run_universal(request, say=lambda line: None)
    rows = {role: [case for case in whole.cases if case.role == role] for role in ("made_on", "held_out")}
    held = {case.case_id for case in rows["held_out"]}
    alone = []
    for case in cases:
        if case.case_id in held:
            said = api.attack_scan(
                case.images, f"erase:{index}", model=cache / task / network / "model.ts", device="cpu", config=config
            ).case
            alone.append((value_of(said.metrics.post_write.hit_rate), said.attack.goal_reached))
    return {
        "task": task, "network": network, "eps": share, "steps": config.steps, "loss": config.mask_loss,
        "split": "patients" if names else "slices",
        **{role: _figures([(case.hit_rate, case.goal_reached) for case in part]) for role, part in rows.items()},
        "alone": _figures(alone),
        "noise": _figures([(noise(cache, task, network, case, share), None) for case in cases if case.case_id in held]),
    }  # fmt: skip


def noise(cache: Path, task: str, network: str, case: CaseFiles, share: float) -> float | None:
    """The share of the class that vanishes when each pixel goes up or down by the limit; None if none was drawn."""
    made = next(made for made in TASKS if made.name == task)
    module: Any = torch.jit.load(cache / task / network / "model.ts")
    image = np.asarray(nib.load(case.images[0]).dataobj)[..., 0]
    signs = np.random.default_rng(0).choice([-1, 1], image.shape)
    changed = np.clip(image + share * np.ptp(image) * signs, image.min(), image.max())
    if task == "mr":  # Zero is no tissue, and stays.
        changed = np.where(image == 0, 0, np.clip(changed, image[image > 0].min(), None))
    both = made.scaled(torch.from_numpy(np.stack([image, changed]).astype(np.float32)))
    with torch.inference_mode():
        before, after = module(padded(both, 32)[:, None]).argmax(1) == CLASSES[task][0]
    return float((before & ~after).sum() / before.sum()) if before.any() else None


def _figures(scans: Sequence[tuple[float | None, bool | None]]) -> dict[str, float]:
    """What is said of several scans, of each its hit rate and whether the goal was reached."""
    hits = [hit for hit, _ in scans if hit is not None]
    return {
        "scans": len(hits),
        "goal": sum(bool(reached) for _, reached in scans),
        "half": sum(hit >= 0.5 for hit in hits),
        "hit_rate": round(float(np.mean(hits)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="where travel_made.py has put its networks")
    parser.add_argument("--networks", nargs="*", default=["unet-a", "resunet-a"])
    parser.add_argument("--tasks", nargs="*", default=list(CLASSES))
    parser.add_argument("--eps", nargs="*", type=float, default=[0.01, 0.02, 0.04, 0.08])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--loss", default="ce")
    parser.add_argument("--random", action="store_true", help="hold out slices of all patients on MR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.tasks:
            cases = scans(arguments.cache, task, Path(folder))
            for network in arguments.networks:
                for share in arguments.eps:
                    settings = {"steps": arguments.steps, "mask_loss": arguments.loss, "at_random": arguments.random}
                    print(json.dumps(measure(arguments.cache, task, network, cases, share, **settings)), flush=True)


if __name__ == "__main__":
    main()
