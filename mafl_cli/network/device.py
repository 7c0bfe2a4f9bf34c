"""Which device runs the network."""

from __future__ import annotations

import torch

from mafl_cli.errors import UsageError


def pick_device(choice: str) -> torch.device:
    """ "cpu", "cuda", "cuda:N", "gpu" or "auto" (the first CUDA device if there is one, else the CPU).

    Raises UsageError with the reason when CUDA is asked for and cannot be had: a robustness gate that quietly
    runs somewhere else is not a gate.
    """
    name = "cuda" + choice[3:] if choice.startswith("gpu") else choice
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {choice} is not known: use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda":
        if torch.version.cuda is None:
            raise UsageError(f"--device {choice}: this PyTorch is a CPU-only build; install a CUDA build.")
        if not torch.cuda.is_available():
            raise UsageError(f"--device {choice}: no usable CUDA device (no GPU, or its driver is missing).")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"--device {choice}: there are {torch.cuda.device_count()} CUDA devices.")
    return device
