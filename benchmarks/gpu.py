"""What an attack costs on a GPU: a made-up CT, networks of nnU-Net's size, and mafl's own functions on them.

    python benchmarks/gpu.py [--device cuda] [--seconds 460] [--out docs/gpu.md] [--small]

Parts go in order of value and stop when the time is up; what did not fit is said. It needs neither SimpleITK nor
highdicom, and blocks them to show it. `--small --device cpu` runs all of it in a minute on any machine.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from phantom import Trained, UNet, made_up, saved, trained
from torch import Tensor

from mafl_cli.case.pipeline import run_attack
from mafl_cli.case.prepare import Case, prepare
from mafl_cli.case.request import AttackRequest
from mafl_cli.case.searching import Progress, search
from mafl_cli.config import Precision, preset
from mafl_cli.network.device import exactly, pick_device
from mafl_cli.network.segmenter import Segmenter
from mafl_cli.scans.recipes import parse

TARGET = "erase:2"


@dataclass(frozen=True)
class Size:
    """How large everything is, and how many steps are taken."""

    scan: tuple[int, int, int]
    slices: int
    window: tuple[int, int, int]
    features3: tuple[int, ...]
    features2: tuple[int, ...]
    teaching: tuple[int, float]
    steps: int


LARGE = Size(
    scan=(512, 512, 400), slices=12, window=(128, 128, 128), features3=(32, 64, 128, 256, 320, 320),
    features2=(32, 64, 128, 256, 512, 512, 512), teaching=(150, 45.0), steps=40,
)  # fmt: skip
SMALL = Size(
    scan=(40, 40, 24), slices=3, window=(16, 16, 16), features3=(4, 8, 8), features2=(4, 8, 8), teaching=(40, 20.0),
    steps=8,
)  # fmt: skip


@dataclass
class Book:
    """The page as it grows, and how much time is left."""

    device: torch.device
    ends: float
    lines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def write(self, *lines: str) -> None:
        self.lines += lines
        print("\n".join(lines), flush=True)

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        self.write("", f"## {title}", "", "| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows))

    @contextmanager
    def part(self, name: str, needs: float) -> Iterator[bool]:
        """A part that takes some `needs` seconds: gives whether there is time for it. One that fails is said too."""
        left = self.ends - time.perf_counter()
        if left < needs:
            self.missing.append(f"{name}: {left:.0f} s were left, it takes some {needs:.0f} s")
            yield False
            return
        print(f"--- {name} ({left:.0f} s left)", file=sys.stderr, flush=True)
        try:
            yield True
        except Exception as exc:
            import traceback

            traceback.print_exc()
            self.missing.append(f"{name}: {type(exc).__name__}: {str(exc)[:200]}")

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def timed(book: Book, work: Callable[[], Any], times: int) -> float:
    """Median seconds of a call, after one that does not count."""
    work()
    found = []
    for _ in range(times):
        begin = book.clock()
        work()
        found.append(book.clock() - begin)
    return median(found)


def request_of(scan: Path, model: Trained, out: Path, device: str, steps: int, precision: Precision) -> AttackRequest:
    return AttackRequest(
        images=(scan,), out=out, recipe=parse(TARGET), model=model.path, device=device, precision=precision,
        config=preset("mafl", steps=steps),
    )  # fmt: skip


# --- the network alone ----------------------------------------------------------------------------------------------


def bare(network: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """A forward and a backward pass of a frozen network down to its input."""

    def run() -> None:
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(network(leaf).float().sum(), leaf)

    return run


def alone(book: Book, model: Trained, window: Sequence[int]) -> None:
    """One window through the network itself, in each kind of arithmetic, and on the CPU."""
    network, x = model.network, torch.rand(1, 1, *window)
    begin = time.perf_counter()
    bare(network, x)()
    cpu = time.perf_counter() - begin
    network, x = network.to(book.device), x.to(book.device)
    rows = [("CPU, float32", cpu)]
    for name, strict, dtype in (
        ("float32, as mafl computes", True, None),
        ("float32 with TF32, PyTorch's default", False, None),
        ("bf16", True, torch.bfloat16),
        ("fp16", True, torch.float16),
    ):
        if dtype is not None and book.device.type == "cpu":
            continue
        casting = torch.autocast(book.device.type, dtype=dtype) if dtype is not None else nullcontext()
        with exactly(book.device) if strict else nullcontext(), casting:
            rows.append((name, timed(book, bare(network, x), 5)))
    model.network.cpu()
    exact = rows[1][1]
    book.table(
        f"One window of {' x '.join(map(str, window))}, forward and backward, the network alone",
        [(name, f"{1000 * seconds:.1f} ms, × {seconds / exact:.2f}") for name, seconds in rows],
    )


# --- a step of the search -------------------------------------------------------------------------------------------


class Enough(Exception):
    """Ends a search when what was wanted of it is known."""


@contextmanager
def counted() -> Iterator[Counter[tuple[tuple[int, ...], bool]]]:
    """Meanwhile, how often the network is called: by the shape of its input, and whether it is to be differentiated."""
    calls: Counter[tuple[tuple[int, ...], bool]] = Counter()
    call = Segmenter.__call__

    def noted(self: Segmenter, x: Tensor) -> Any:
        calls[tuple(x.shape), torch.is_grad_enabled() and x.requires_grad] += 1
        return call(self, x)

    Segmenter.__call__ = noted  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        Segmenter.__call__ = call  # type: ignore[method-assign]


@dataclass(frozen=True)
class Step:
    """seconds: of a step. calls: of the network in it. busy: share of the time that kernels run. syncs: places where
    the host waits, with how often in a step. peak: bytes."""

    seconds: float
    calls: dict[tuple[tuple[int, ...], bool], float]
    busy: float | None
    syncs: dict[str, float]
    peak: int


def step_of(book: Book, case: Case, steps: int, precision: Precision) -> Step:
    """A search that is watched: some steps by the clock, then two for waits of the host, then two for kernels."""
    config, on_gpu = preset("mafl", steps=200), book.device.type == "cuda"
    ticks: list[float] = []
    profiler: Any = None
    span = [0.0, 0.0]
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(book.device)
        profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        )

    with warnings.catch_warnings(record=True) as heard, counted() as calls:
        warnings.simplefilter("always")

        def on_progress(progress: Progress) -> None:
            ticks.append(book.clock())
            if progress.done == 1:
                calls.clear()
            elif progress.done == 1 + steps:
                if not on_gpu:
                    raise Enough
                heard.clear()
                torch.cuda.set_sync_debug_mode("warn")
            elif progress.done == 3 + steps:
                torch.cuda.set_sync_debug_mode("default")
                profiler.start()  # Which takes a while.
                span[0] = book.clock()
            elif progress.done == 5 + steps:
                span[1] = book.clock()
                profiler.stop()
                raise Enough

        try:
            search(case, config, on_progress)
        except Enough:
            pass
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    taken = len(ticks) - 1
    syncs: Counter[str] = Counter(
        f"{Path(each.filename).name}:{each.lineno}" for each in heard if "synchroniz" in str(each.message)
    )
    return Step(
        seconds=median(np.diff(ticks[: 1 + steps]).tolist()),
        calls={call: times / taken for call, times in calls.items()},
        busy=_busy(profiler) / (span[1] - span[0]) if on_gpu and span[1] else None,
        syncs={place: times / 2 for place, times in syncs.most_common()},
        peak=torch.cuda.max_memory_allocated(book.device) if on_gpu else 0,
    )


def _busy(profiler: Any) -> float:
    """Seconds of all kernels and copies."""
    cpu = torch.autograd.DeviceType.CPU  # type: ignore[attr-defined]
    rows = [row for row in profiler.key_averages() if row.device_type != cpu]
    return sum(getattr(row, "self_device_time_total", 0) for row in rows) / 1e6


def step_table(book: Book, title: str, case: Case, steps: int, precision: Precision) -> None:
    """A step of the search against bare passes of the same frozen network on the same inputs."""
    step = step_of(book, case, steps, precision)
    passes = {shape: times for (shape, backward), times in step.calls.items() if backward}
    without = {shape: times for (shape, backward), times in step.calls.items() if not backward}

    def bare_of(shape: tuple[int, ...]) -> float:
        x = torch.rand(shape, device=book.device)
        return timed(book, bare(lambda leaf: case.subject.segmenter(leaf).logits, x), 3)

    seconds = sum(times * bare_of(shape) for shape, times in passes.items())
    rows = [
        ("a step", f"{step.seconds:.3f} s"),
        ("bare forward and backward passes of the same inputs", f"{seconds:.3f} s"),
        ("ratio", f"{step.seconds / seconds:.3f}" if seconds else "-"),
        ("calls with gradient in a step", _shown(passes)),
        ("calls without gradient in a step", _shown(without)),
    ]
    if step.busy is not None:
        waits = ", ".join(f"{place} × {times:g}" for place, times in list(step.syncs.items())[:12]) or "none"
        rows += [
            ("share of the time that kernels run", f"{step.busy:.1%}"),
            ("the host waits for the GPU in a step", f"{sum(step.syncs.values()):g} times: {waits}"),
            ("peak of the GPU's memory", f"{step.peak / 2**30:.2f} GiB"),
        ]
    book.table(f"{title}: a step, {precision}", rows)


def _shown(calls: dict[tuple[int, ...], float]) -> str:
    return ", ".join(f"{times:g} of {' x '.join(map(str, shape))}" for shape, times in calls.items()) or "none"


# --- a whole attack -------------------------------------------------------------------------------------------------


def attack_rows(request: AttackRequest) -> list[str]:
    """One attack from file to report: the cells of a row."""
    begin, said = time.perf_counter(), list[str]()
    case = run_attack(request, say=said.append).case
    after, parts = case.metrics.post_write, case.timing_s
    iou, hit, length = after.target_iou.value, after.hit_rate.value, case.metrics.size.l2.model
    peak = case.memory.peak_device_bytes
    short = sum("not enough memory" in line for line in said)
    return [
        request.precision, "yes" if case.attack.goal_reached else "no", "-" if iou is None else f"{iou:.4f}",
        "-" if hit is None else f"{hit:.4f}", f"{length:.3f}", f"{time.perf_counter() - begin:.1f}",
        ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items()),
        "-" if peak is None else f"{peak / 2**30:.2f}" + (f" ({short} × fewer at a time)" if short else ""),
    ]  # fmt: skip


HEADING = ("precision", "goal reached", "IoU", "hit rate", "L2, model units", "seconds", "by part", "peak, GiB")


def attacks(
    book: Book, title: str, scan: Path, model: Trained, work: Path, device: str, steps: int, needs: float,
    precisions: Sequence[Precision],
) -> None:  # fmt: skip
    """Whole attacks in one precision after the other: as many as there is time for."""
    rows: list[list[str]] = []
    for precision in precisions:
        begin = time.perf_counter()
        with book.part(f"{title}, {precision}", needs) as go:
            if go:
                out = work / f"{scan.stem}-{precision}"
                rows.append(attack_rows(request_of(scan, model, out, device, steps, precision)))
                needs = 1.1 * (time.perf_counter() - begin)
    if rows:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        head = [f"| {' | '.join(HEADING)} |", f"|{' --- |' * len(HEADING)}"]
        book.write("", f"## {title}: {steps} steps, {TARGET}, from file to report", "", *head, *lines)


def run(book: Book, size: Size, work: Path, device: str, small: bool) -> None:
    scale = 0.1 if small else 1.0
    with exactly(book.device):  # Compiles and loads what the first call would pay for.
        bare(UNet(3, size.features3[:2]).to(book.device), torch.rand(1, 1, 16, 16, 16, device=book.device))()
    begin = time.perf_counter()
    scan, labels = made_up(size.scan)
    volume = saved(work / "ct.nii", scan)
    low = int(size.scan[2] * 0.45) - size.slices // 2
    slab = saved(work / "slab.nii", np.ascontiguousarray(scan[..., low : low + size.slices]))
    three = trained(
        work / "net3d.ts", size.features3, size.window, scan, labels, book.device, size.teaching,
        card=f"dims = 3\nroi = {list(size.window)}",
    )  # fmt: skip
    two = trained(
        work / "net2d.ts", size.features2, size.scan[:2], scan, labels, book.device, size.teaching,
        card='dims = 2\nslice_axis = "k"',
    )  # fmt: skip
    taken = time.perf_counter() - begin
    book.write("", f"Scan and networks took {taken:.0f} s to make. The networks, taught on windows of the scan:", "")
    for name, net in (("3-D", three), ("2-D", two)):
        book.write(
            f"- {name}: {net.parameters / 1e6:.1f} million parameters, {net.steps} steps of teaching in"
            f" {net.seconds:.0f} s, {net.accuracy:.1%} of the voxels right"
        )
    del labels, scan
    title3 = f"3-D, CT of {' x '.join(map(str, size.scan))}, windows"
    title2 = f"2-D, {size.slices} slices of {' x '.join(map(str, size.scan[:2]))}"

    def steps_of(title: str, path: Path, model: Trained, needs: float) -> None:
        for precision in both:
            with book.part(f"{title}: a step, {precision}", needs * scale) as go:
                if go:
                    watched(book, title, path, model, work, device, size, precision)

    # A CPU may take ten times as long in bf16 as in float32.
    both: tuple[Precision, ...] = ("bf16", "float32") if book.device.type == "cuda" else ("float32",)
    attacks(book, title3, volume, three, work, device, size.steps, 75 * scale, both[:1])
    steps_of(title2, slab, two, 10)
    attacks(book, title2, slab, two, work, device, size.steps, 15 * scale, both)
    with book.part("the network alone", 20 * scale) as go:
        if go:
            alone(book, three, size.window)
    steps_of(title3, volume, three, 45)
    if len(both) > 1:
        attacks(book, title3, volume, three, work, device, size.steps, 100 * scale, ("fp16",))
        attacks(book, title3, volume, three, work, device, size.steps, 380 * scale, ("float32",))


def watched(
    book: Book, title: str, path: Path, model: Trained, work: Path, device: str, size: Size, precision: Precision
) -> None:
    """The clean prediction of all of the scan, and a step of the search."""
    request = request_of(path, model, work / "none", device, size.steps, precision)
    with exactly(book.device):
        case = prepare(request, book.device, lambda line: None)
        if precision == "float32":
            begin = book.clock()
            case.subject.drawn(case.subject.clean, case.subject.preprocessing)
            book.write("", f"{title}: the prediction of the whole scan takes {book.clock() - begin:.1f} s.")
        step_table(book, title, case, 5, precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=460.0, help="time for all of it")
    parser.add_argument(
        "--out", default=str(Path(__file__).parents[1] / "docs" / "gpu.md"), help="the page; - for none"
    )
    parser.add_argument("--small", action="store_true", help="a small scan and small networks")
    options = parser.parse_args()
    blocked: dict[str, Any] = dict.fromkeys(("SimpleITK", "highdicom"))
    sys.modules.update(blocked)
    if options.small:
        torch.set_num_threads(1)
    device, small = pick_device(options.device), " --small" if options.small else ""
    book = Book(device, time.perf_counter() + options.seconds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = f"PyTorch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    if device.type == "cuda":
        versions += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    book.write(
        "# On a GPU",
        "",
        f"`python benchmarks/gpu.py{small} --device {options.device}`: {name}, {versions}, "
        f"{torch.get_num_threads()} CPU threads. Scan and networks are made on the spot; one run.",
    )
    with tempfile.TemporaryDirectory() as folder:
        run(book, SMALL if options.small else LARGE, Path(folder), options.device, options.small)
    if book.missing:
        book.write("", "## What did not fit, or failed", "", *(f"- {line}." for line in book.missing))
    if options.out != "-":
        Path(options.out).write_text("\n".join(book.lines) + "\n")


if __name__ == "__main__":
    main()
