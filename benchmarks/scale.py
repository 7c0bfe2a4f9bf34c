"""What a batch costs beside the attacks themselves, and whether it grows.

    python benchmarks/scale.py [--data DATA] [--cases 200] [--parts throughput overhead resume aggregate memory]

Small cases are cut from the sample scan. Prints each figure as it is measured; with --picture FILE also draws the
memory of the worker over the cases. `overhead` needs DATA, `cases/` and `models/` as the other benchmarks take them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import nibabel as nib
import numpy as np
import torch

from mafl_cli.batch import batch, tables
from mafl_cli.case.pipeline import run_attack
from mafl_cli.case.request import AttackRequest
from mafl_cli.config import preset
from mafl_cli.listing.cases import CaseFiles, find
from mafl_cli.network import segmenter
from mafl_cli.results.files import REPORT, RUN, TICKET
from mafl_cli.scans.recipes import parse
from mafl_cli.system.records import plain

SAMPLE = Path(__file__).resolve().parent.parent / "sample_data" / "brain_t1.nii.gz"


def small_scans(folder: Path, count: int) -> list[CaseFiles]:
    """Two axial slices each, from all over the brain."""
    folder.mkdir()
    scan = nib.load(SAMPLE)
    data = np.asarray(scan.dataobj)
    for number in range(count):
        k = 30 + number % 40
        nib.save(nib.Nifti1Image(data[8:-10, 8:-4, k : k + 2], scan.affine), folder / f"case_{number:04d}x.nii.gz")
    return find([str(folder)])


def request(steps: int) -> AttackRequest:
    return AttackRequest(
        images=(), out=Path(), recipe=parse("erode:2:3mm"), device="cpu", config=preset("mafl", steps=steps)
    )


def ran(cases: list[CaseFiles], out: Path, *, workers: int = 1, steps: int = 20) -> float:
    """Seconds of a batch with one thread for each worker."""
    started = perf_counter()
    batch.run_batch(
        batch.BatchRequest(cases=tuple(cases), attack=request(steps), out=out, workers=workers, threads=1),
        say=lambda line: None,
    )
    return perf_counter() - started


def throughput(work: Path) -> None:
    cases = small_scans(work / "few", 40)
    one, two = (ran(cases, work / f"out{n}", workers=n, steps=100) for n in (1, 2))
    print(f"throughput: 40 cases in {one:.1f} s with 1 worker, {two:.1f} s with 2: x {one / two:.2f}")


def resume(work: Path) -> None:
    cases = small_scans(work / "many", 1000)
    out = work / "done"
    ran(cases[:1], out)
    ticket = json.loads((out / cases[0].case_id / TICKET).read_text())
    for case in cases[1:]:
        shutil.copytree(out / cases[0].case_id, out / case.case_id)
        ticket["files"] = [batch.fingerprint(path) for path in case.images]
        (out / case.case_id / TICKET).write_text(json.dumps(ticket))
    seconds = ran(cases, out)
    print(f"resume: {seconds:.2f} s for 1000 finished cases, their tables made anew")


def aggregate(work: Path) -> None:
    out = work / "large"
    ran(small_scans(work / "one", 1), out)
    known = json.loads((out / RUN).read_text())
    (first,) = known["cases"]
    known["cases"] = [first, *(f"case_{number:05d}" for number in range(1, 10_000))]
    for case_id in known["cases"][1:]:
        (out / case_id).mkdir()
        (out / case_id / REPORT).hardlink_to(out / first / REPORT)
    (out / RUN).write_text(json.dumps(known))
    started = perf_counter()
    whole = tables.aggregate(out)
    assert whole.aggregate.ok == 10_000
    print(f"aggregate: {perf_counter() - started:.2f} s for 10000 reports")


def memory(work: Path, count: int, picture: Path | None) -> None:
    cases = small_scans(work / "row", count)
    out = work / "grown"
    ran(cases, out, steps=10)
    peaks = [
        json.loads((out / case.case_id / REPORT).read_text())["cases"][0]["memory"]["peak_resident_bytes"] / 2**20
        for case in cases
    ]
    early, late = max(peaks[: count // 10]), peaks[-1]
    print(f"memory: peak {peaks[0]:.0f} MiB after 1 case, {early:.0f} after {count // 10}, {late:.0f} after {count}")
    if picture is not None:
        _draw(peaks, picture)


def _draw(peaks: list[float], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(1, len(peaks) + 1), peaks, color="#D55E00")
    axes.set_ylim(0, 1.15 * max(peaks))
    axes.set_xlabel("cases done by one worker")
    axes.set_ylabel("peak resident memory, MiB")
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=130, metadata={"Software": None})


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """Seconds spent in the network, forward and backward."""
    spent = {"network": 0.0}
    forward, backward = segmenter.Segmenter.__call__, torch.autograd.grad

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            started = perf_counter()
            try:
                return work(*arguments, **more)
            finally:
                spent["network"] += perf_counter() - started

        return run

    segmenter.Segmenter.__call__, torch.autograd.grad = timed(forward), timed(backward)  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        segmenter.Segmenter.__call__, torch.autograd.grad = forward, backward  # type: ignore[method-assign]


def overhead(work: Path, data: Path) -> None:
    torch.set_num_threads(1)
    for name, part, file, images in (
        ("flair2d_pat0001", "slab12", "flair_unet2d.ts", ["image.nii.gz"]),
        ("brats3d_pat0003", "crop96", "brats_unet3d.ts", ["image_flair.nii.gz", "image_t1c.nii.gz"]),
    ):
        place = data / "cases" / name / part
        attack = AttackRequest(
            images=tuple(place / image for image in images), targets=(place / "target_dilated.nii.gz",), device="cpu",
            model=data / "models" / file, out=work / name, config=preset("mafl", steps=100),
        )  # fmt: skip
        # In a batch the model is loaded already: the second run is the one to look at.
        run_attack(replace(attack, config=preset("mafl", steps=2)))
        started = perf_counter()
        with counted() as spent:
            case = plain(run_attack(replace(attack, overwrite=True)).case)
        total = perf_counter() - started
        parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in case["timing_s"].items())
        print(f"overhead: {name}: {1 - spent['network'] / total:.1%} of {total:.1f} s outside the network ({parts})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--parts", nargs="+", default=["throughput", "resume", "aggregate", "memory", "overhead"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in options.parts:
            if part == "overhead":
                if options.data is None:
                    parser.error("overhead needs --data")
                overhead(work, options.data)
            elif part == "memory":
                memory(work, options.cases, options.picture)
            else:
                {"throughput": throughput, "resume": resume, "aggregate": aggregate}[part](work)


if __name__ == "__main__":
    main()
