"""What a case takes of the machine's memory: foretold before the search, and measured at its end."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

from mafl_cli.case.prepare import Case
from mafl_cli.network.probing import padded

# Perturbation, gradient, momentum and the other arrays of a step, each as large as the samples that are attacked
# together; float32.
_IN_A_STEP = 12
# Bytes for each voxel of two masks whose surfaces are compared.
_OF_MASKS = 8


def plan(case: Case) -> str:
    """What the search and the files will need at the most, as a line: GiB of the machine's memory, or the GPU's too."""
    subject = case.subject
    attacked = int(case.edited.sum())
    step, each, size = _in_network(case, attacked)
    held = resident() or 0
    on_host = subject.clean.device.type == "cpu"
    found = attacked * subject.clean[0].numel() * 4
    voxels = case.target.labels.size
    labels = case.clean_labels.element_size()
    # What was written is read as it is stored and as float32, which stays when it is measured: two predictions, turned
    # copies of two, and the masks whose surfaces are compared.
    stored = 4 if case.save_as == "float32" else subject.scan.dtype.itemsize
    files = subject.clean.numel() * 4 + max(subject.clean.numel() * stored, voxels * (4 * labels + _OF_MASKS))
    most = max(peak_resident() or 0, held + found + max(step if on_host else 0, files))
    what = "window" if subject.tiling else "slice" if subject.layout.sliced else "volume"
    there = "" if on_host else f"; {step / 2**30:.2f} GiB on the GPU"
    return (
        f"memory: about {most / 2**30:.2f} GiB at the most{there}: {held / 2**30:.2f} held now, up to "
        f"{step / 2**30:.2f} to search ({each / 2**30:.2f} for each {what} of {size} in the network), "
        f"{files / 2**30:.2f} to read and measure the files"
    )


def _in_network(case: Case, attacked: int) -> tuple[int, int, str]:
    """Bytes of a step of the search, and of a window, slice or volume in it (what the backward pass keeps), and its
    size in voxels."""
    subject = case.subject
    shape = subject.tiling.roi if subject.tiling else padded(subject.grids.to_network.shape_out, subject.info.divisor)
    example = torch.zeros(1, subject.segmenter.tried[1], *shape, device=subject.clean.device)
    each = subject.segmenter.activation_bytes(example)
    samples = min(subject.together, attacked)
    passes = subject.windows_together if subject.tiling else samples
    return passes * each + samples * subject.clean[0].numel() * 4 * _IN_A_STEP, each, " x ".join(map(str, shape))


def give_back() -> None:
    """Hand what is free to the system. The C library keeps what a network's many small arrays leave behind, which is
    as much as all that follows needs."""
    with suppress(OSError, AttributeError, TypeError):  # Only glibc has it.
        ctypes.CDLL(None).malloc_trim(0)


def used(device: torch.device) -> dict[str, int | None]:
    """Bytes: the most that the process has held so far, and what PyTorch has held on the device in this case."""
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"peak_resident_bytes": peak_resident(), "peak_device_bytes": held}


def peak_resident() -> int | None:
    """Bytes that the process has held at the most; None where the system does not say."""
    # On Linux, getrusage also counts what the parent held when it started this process.
    if (found := _status("VmHWM:")) is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int | None:
    """Bytes that the process holds now, or has held at the most; None where the system does not say."""
    found = _status("VmRSS:")
    return peak_resident() if found is None else found


def _status(field: str) -> int | None:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    return None
