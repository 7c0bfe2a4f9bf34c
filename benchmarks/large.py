"""What a large CT costs outside the network, part by part, and the most memory that its process holds.

    python benchmarks/large.py [--slices 100 300] [--size 512] [--steps 1] [--model model.ts] [--keep FOLDER]

A made-up CT (int16: body, lungs, a bone, noise), an edit in a small sphere, the model that comes with mafl. Each scan
is attacked in a process of its own, for the sake of its peak. CPU seconds are those of all threads: on a busy machine
they say more than the clock.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from mafl_cli.case.pipeline import run_attack
from mafl_cli.case.request import DEMO_MODEL, AttackRequest
from mafl_cli.config import preset
from mafl_cli.network import segmenter
from mafl_cli.scans.recipes import parse
from mafl_cli.system.records import plain

SPHERE = "swap:1,2:sphere@0,-50,0,12"


def made_up(path: Path, slices: int, size: int) -> None:
    """An ellipse of 40 HU with texture and noise in air, with lungs and a bone; 0.8 x 0.8 x 1 mm at 512."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, size, dtype=np.float32)], indexing="ij")
    texture = ndimage.gaussian_filter(rng.standard_normal((size, size), np.float32), 6)
    texture /= texture.std()
    lungs = (((np.abs(x) - 0.35) / 0.22) ** 2 + (y / 0.3) ** 2) < 1
    bone = ((x / 0.08) ** 2 + ((y + 0.42) / 0.1) ** 2) < 1
    scan = np.empty((size, size, slices), np.int16)
    for k in range(slices):
        body = (x / 0.8) ** 2 + (y / 0.62) ** 2 < 1 - 0.3 * (k / slices - 0.5) ** 2
        plane = np.where(body, 40 + 60 * np.roll(texture, 3 * k, 0), -1000)
        plane = np.where(bone, 700, np.where(lungs, -800 + 50 * texture, plane))
        scan[..., k] = np.clip(np.rint(plane + 15 * rng.standard_normal((size, size))), -1024, 3071)
    mm = 0.8 * 512 / size
    affine = np.diag([-mm, -mm, 1.0, 1.0])
    affine[:3, 3] = (mm * size / 2, mm * size / 2, -slices / 2)
    nib.save(nib.Nifti1Image(scan, affine), path)


@contextmanager
def in_network() -> Iterator[dict[str, float]]:
    """Seconds by the clock and of the processor in the network: lifting it aside, forward and backward."""
    spent = {"clock": 0.0, "cpu": 0.0}
    forward, backward = segmenter.Segmenter.__call__, torch.autograd.grad

    def timed(work: Any) -> Any:
        def run(*arguments: Any, **more: Any) -> Any:
            clock, cpu = time.perf_counter(), time.process_time()
            try:
                return work(*arguments, **more)
            finally:
                spent["clock"] += time.perf_counter() - clock
                spent["cpu"] += time.process_time() - cpu

        return run

    segmenter.Segmenter.__call__, torch.autograd.grad = timed(forward), timed(backward)  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        segmenter.Segmenter.__call__, torch.autograd.grad = forward, backward  # type: ignore[method-assign]


def measured(scan: Path, out: Path, network: Path, steps: int) -> dict[str, Any]:
    """One attack in this process."""
    request = AttackRequest(
        images=(scan,), out=out, recipe=parse(SPHERE), model=network, device="cpu", config=preset("mafl", steps=steps)
    )
    said: list[str] = []
    clock, cpu = time.perf_counter(), time.process_time()
    with in_network() as spent:
        case = plain(run_attack(request, detail=said.append).case)
    return {
        "clock": time.perf_counter() - clock,
        "cpu": time.process_time() - cpu,
        "network": spent,
        "parts": case["timing_s"],
        "peak": case["memory"]["peak_resident_bytes"],
        "plan": said[-1],
    }


def row(slices: int, found: dict[str, Any]) -> str:
    outside = [found[kind] - found["network"][kind] for kind in ("clock", "cpu")]
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in found["parts"].items())
    return (
        f"| {slices} | {outside[0]:.1f} | {outside[1]:.1f} | {found['network']['clock']:.1f} | {parts} |"
        f" {found['peak'] / 1e9:.2f} | {found['plan']} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--keep", type=Path, help="folder for the scans and results; else they are deleted")
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], options.one[1], options.model, options.steps)))
        return
    print("| slices | outside the network, s | the same, CPU s | network, s | parts, s | peak, GB | said before |")
    print("| ---: | ---: | ---: | ---: | --- | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        work = options.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for slices in options.slices:
            scan = work / f"ct{slices}.nii.gz"
            if not scan.is_file():
                made_up(scan, slices, options.size)
            command = [sys.executable, __file__, "--one", scan, work / f"out{slices}", "--model", options.model]
            done = subprocess.run(
                [*map(str, command), "--steps", str(options.steps)], stdout=subprocess.PIPE, text=True, check=True
            )
            print(row(slices, json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
