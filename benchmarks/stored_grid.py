"""What storing an attack on a CT as integers costs: searched on the integers, or rounded afterwards.

    python benchmarks/stored_grid.py --ct ct.nii.gz --labels labels.nii.gz

Trains a small 2-D network on the one CT it then attacks (a throw-away: its only purpose is to be attacked), turns the
CT into 16-bit integers (of 1 HU, or `--step-hu`), and attacks it twice: on the stored grid (`--save-as source`), and in
float32, which is then stored as floats, rounded, or cut off to integers. The last two are what a line of NumPy does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from numpy.typing import NDArray

from mafl_cli.case.pipeline import run_attack
from mafl_cli.case.prepare import prepare
from mafl_cli.case.request import AttackRequest
from mafl_cli.config import AttackConfig
from mafl_cli.measure import agreement
from mafl_cli.scans import nifti, recipes

CLASSES = ("background", "liver", "spleen", "kidneys", "colon", "vertebrae")
WINDOW = (-160.0, 240.0)
RECIPES = ("erase:liver", "dilate:spleen:6mm", "shift:kidneys:0,12,0mm")


def throwaway_model(ct: Path, labels: Path, folder: Path, *, steps: int, seed: int = 0) -> Path:
    """Train on every axial slice of one CT, and write a TorchScript file with its card; returns its path."""
    torch.manual_seed(seed)
    scan, truth = nib.as_closest_canonical(nib.load(ct)), nib.as_closest_canonical(nib.load(labels))
    low, high = WINDOW
    x = np.clip((np.asarray(scan.dataobj, dtype=np.float32) - low) / (high - low), 0, 1)
    images = torch.from_numpy(x.transpose(2, 0, 1)[:, None].copy())
    classes = torch.from_numpy(np.asarray(truth.dataobj).astype(np.int64).transpose(2, 0, 1).copy())
    pad = [n for size in (images.shape[3], images.shape[2]) for n in (0, -size % 16)]
    images, classes = F.pad(images, pad), F.pad(classes, pad)
    net = UNet(2, 1, len(CLASSES), (16, 32, 64, 96), (2, 2, 2), num_res_units=1, norm="batch")
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    weights = torch.tensor([0.2, *[1.0] * (len(CLASSES) - 1)])
    for _ in range(steps):
        rows = torch.randint(len(images), (12,))
        optimiser.zero_grad()
        F.cross_entropy(net(images[rows]), classes[rows], weights).backward()
        optimiser.step()
    path = folder / "throwaway.ts"
    torch.jit.trace(net.eval(), images[:1]).save(path)
    path.with_suffix(".toml").write_text(
        '[input]\ndims = 2\nchannels = ["CT"]\norientation = "RAS"\nslice_axis = "axial"\ndivisor = 16\n'
        f'intensity = {{ kind = "window", min = {low}, max = {high}, to = [0, 1] }}\n'
        f'[output]\nactivation = "softmax"\nclasses = {json.dumps(list(CLASSES))}\n'
    )
    return path


def as_integers(ct: Path, path: Path, step: float) -> Path:
    """The CT as int16, `step` HU between stored values."""
    image = nib.load(ct)
    stored = np.rint(np.asarray(image.dataobj) / step).astype(np.int16)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    made = nib.Nifti1Image(stored, image.affine, header)
    # Set now, so that nibabel takes the numbers as stored ones and chooses no scaling of its own.
    made.header.set_slope_inter(step, 0)
    nib.save(made, path)
    return path


def measure(request: AttackRequest, step: float) -> list[dict[str, Any]]:
    """Attack on the stored grid and in float32, and judge what each way of storing leaves."""
    cpu = torch.device("cpu")
    case = prepare(request, cpu, lambda line: None)
    subject = case.subject
    clean = subject.scan.data
    rows = []

    def row(how: str, data: NDArray[np.float32], loop: float | None) -> None:
        drawn = subject.predict([data])
        found = agreement.agreement(
            drawn, case.target.labels, subject.to_labels(case.clean_labels), subject.info.classes,
            spacing=subject.scan.spacing,
        )  # fmt: skip
        delta = data.astype(np.float64) - clean
        rows.append(
            {
                "recipe": request.recipe.text if request.recipe else None,
                "how": how,
                "iou_in_memory": loop,
                "iou": found.target_iou.value,
                "hit_rate": found.hit_rate.value,
                "l2_hu": float(np.sqrt((delta**2).sum())),
                "mean_hu": float(delta[delta != 0].mean()),
                "changed": float((delta != 0).mean()),
            }
        )

    for save_as in ("source", "float32"):
        with tempfile.TemporaryDirectory() as folder:
            settings = {**vars(request), "out": Path(folder) / "out", "save_as": save_as}
            loop = run_attack(AttackRequest(**settings)).case.metrics.in_memory.target_iou.value
            data = nifti.read_image(Path(folder) / "out" / "adversarial.nii.gz").data
        if save_as == "source":
            row("searched on the stored grid", data, loop)
            continue
        row("float32, stored as float32", data, loop)
        row("float32, rounded", (np.rint(data / step) * step).astype(np.float32), loop)
        row("float32, cut off (astype)", (np.trunc(data / step) * step).astype(np.float32), loop)
    return rows


def main() -> None:
    """Train, attack with three recipes, print one line for each way of storing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True, help="labels 0 to 5: " + ", ".join(CLASSES))
    parser.add_argument("--training-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--step-hu", type=float, default=1.0, help="between the values that the file can store")
    parser.add_argument("--eps-hu", type=float, help="bound the change too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        model = throwaway_model(given.ct, given.labels, folder, steps=given.training_steps)
        print(f"trained in {time.perf_counter() - began:.0f} s")
        scan = as_integers(given.ct, folder / "ct.nii.gz", given.step_hu)
        print(f"{'recipe':<24} {'how':<28} {'IoU memory':>10} {'IoU file':>9} {'hit':>7} {'L2 HU':>8} {'mean HU':>8}")
        for text in RECIPES:
            ball = {} if given.eps_hu is None else {"eps": given.eps_hu, "eps_unit": "native"}
            config = AttackConfig(steps=given.steps, **ball)
            request = AttackRequest(images=(scan,), out=folder, recipe=recipes.parse(text), model=model, config=config)
            for each in measure(request, given.step_hu):
                loop, iou = (f"{x:.4f}" if x is not None else "-" for x in (each["iou_in_memory"], each["iou"]))
                print(
                    f"{each['recipe']:<24} {each['how']:<28} {loop:>10} {iou:>9} {each['hit_rate']:>7.4f} "
                    f"{each['l2_hu']:>8.1f} {each['mean_hu']:>8.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
