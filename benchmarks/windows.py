"""What sliding windows cost: time of a step and memory, against the size of the edit and of the volume.

    python benchmarks/windows.py [--steps 5] [--out docs]

A 3-D U-Net with random weights sees windows of 32 voxels with half overlap. Every row is a process of its own, so that
its peak memory is its own; the rows of a table share nothing but the machine. Writes docs/windows.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

EDGE, FEATURES = 32, (8, 16, 32)
EDITS = (4, 16, 32, 64)
VOLUMES = ((96, 96, 96), (192, 96, 96), (192, 192, 96), (192, 192, 192), (384, 192, 192))
GOAL = 1.15


def measure(shape: tuple[int, int, int], edit: int, steps: int) -> dict[str, Any]:
    """One row: median seconds of a step after the first, windows that move, and the peak memory of the process."""
    import torch
    from monai.networks.nets import UNet

    from mafl_cli.config import preset
    from mafl_cli.field.preprocess import Preprocessing
    from mafl_cli.field.resample import Grids
    from mafl_cli.field.tiling import Tiling
    from mafl_cli.field.windows import Windows
    from mafl_cli.network.intensity import Intensity
    from mafl_cli.network.load import load
    from mafl_cli.search.limits import Limits
    from mafl_cli.search.loop import StepRecord, attack

    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.ts"
        torch.jit.script(UNet(3, 1, 2, FEATURES, (2, 2), num_res_units=1).eval()).save(str(path))
        segmenter, _, _ = load(path, device=device, size=lambda dims: (EDGE,) * dims)
    scan = torch.rand(1, 1, *shape)
    preprocessing = Preprocessing.freeze(Intensity(), list(scan[0].numpy()), device)
    whole = Windows(segmenter, preprocessing, Tiling((EDGE,) * 3), Grids.same(shape))
    wanted = torch.zeros(1, *shape, dtype=torch.bool)
    # In the middle of the smallest volume, wherever the others end.
    cube: Any = (0, *[slice(48 - edit // 2, 48 + edit // 2)] * 3)
    wanted[cube] = True
    begin = time.perf_counter()
    labels = whole.labels(scan)
    predicted = time.perf_counter() - begin
    target = torch.where(wanted, 1 - labels, labels)
    focus = whole.focus(scan, wanted)
    assert focus.frozen is not None
    part: Any = (..., *focus.box)
    laps = [time.perf_counter()]

    def on_step(_: StepRecord) -> None:
        laps.append(time.perf_counter())

    limits = Limits(preprocessing.low, preprocessing.high, preprocessing.unit, focus.frozen[:, None])
    attack(focus.field, scan[part], target[part], preset("mafl", steps=steps, scale_search=0), limits, on_step=on_step)
    seconds = [after - before for before, after in pairwise(laps[1:])]
    return {
        "voxels": scan.numel(),
        "windows": len(whole.starts),
        "box": [part.stop - part.start for part in focus.box],
        "step": median(seconds),
        "prediction": predicted,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def row(shape: tuple[int, int, int], edit: int, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--row", json.dumps([shape, edit, steps])]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"volume {shape}, edit {edit}: {found}", flush=True)
    return found


def table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Markdown; the last column is the time of a step over that of the row before."""
    lines = [
        "| | windows | part that is worked on | step, s | clean prediction, s | peak memory, MiB | step / row before |",
        "| --- |" + " ---: |" * 6,
    ]
    before = None
    for name, found in rows:
        ratio = "–" if before is None else f"×{found['step'] / before:.2f}"
        before = found["step"]
        box = " × ".join(map(str, found["box"]))
        lines.append(
            f"| {name} | {found['windows']} | {box} | {found['step']:.2f} | {found['prediction']:.1f} "
            f"| {found['memory']:.0f} | {ratio} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        shape, edit, steps = json.loads(arguments.row)
        print(json.dumps(measure(tuple(shape), edit, steps)))
        return
    import torch

    edits = [(f"{edit}³", row((192, 96, 96), edit, arguments.steps)) for edit in EDITS]
    volumes = [(" × ".join(map(str, shape)), row(shape, 8, arguments.steps)) for shape in VOLUMES]
    steps = [found["step"] for _, found in volumes]
    worst = max(after / before for before, after in pairwise(steps))
    text = f"""# Sliding windows

`python benchmarks/windows.py --steps {arguments.steps}`: PyTorch {torch.__version__}, one thread of an
{platform.machine()} CPU, a 3-D U-Net with random weights, windows of {EDGE}³ with half overlap. Median time of a step.
Peak memory is that of the whole process, Python and PyTorch included. The clean prediction goes through all windows
once.

## Against the size of the edit

A volume of 192 × 96 × 96 voxels.

{table(edits)}

## Against the size of the volume

An edit of 8³ voxels.

{table(volumes)}

Doubling the volume changes the time of a step by a factor of {worst:.2f} at the most \
(goal: below {GOAL}: {"reached" if worst < GOAL else "missed"}).
"""
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "windows.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
