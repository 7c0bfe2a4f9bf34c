"""Which device runs the network, and how exactly it computes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mafl_cli.config import Precision
from mafl_cli.errors import UsageError
from mafl_cli.names import outside


def pick_device(choice: str) -> torch.device:
    """ "cpu", "cuda", "cuda:N", "gpu" or "auto" (the first CUDA device if there is one, else the CPU).

    A CUDA device comes with its number, as tensors on it give it.

    Raises UsageError with the reason when CUDA is asked for and cannot be had: a robustness gate that quietly
    runs somewhere else is not a gate.
    """
    name = "cuda" + choice[3:] if choice.startswith("gpu") else choice
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"`device` must be auto, cpu, cuda or cuda:N, got {outside(choice)!r}.")
    if device.type == "cuda":
        if torch.version.cuda is None:
            raise UsageError(
                f"`device` {choice} cannot be used: this PyTorch is a CPU-only build; install a CUDA build."
            )
        if not torch.cuda.is_available():
            raise UsageError(f"`device` {choice} cannot be used: there is no GPU, or its driver is missing.")
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UsageError(f"`device` {choice} does not exist: the last of this machine is cuda:{count - 1}.")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Meanwhile a GPU computes convolutions of float32 numbers in float32, and the same way each time.

    Left alone, cuDNN rounds them to the 10 bits of TF32: a prediction is then another one than the CPU's, and two of a
    GPU differ by the algorithm that it happened to take.
    """
    if device.type != "cuda":
        yield
        return
    before = _set_cudnn([(torch.backends.cudnn, "allow_tf32", False), (torch.backends.cudnn, "deterministic", True)])
    try:
        yield
    finally:
        _set_cudnn(before)


Switch = tuple[Any, str, object]
"""Whose attribute, its name, its value."""


def _set_cudnn(switches: list[Switch]) -> list[Switch]:
    """Set switches of cuDNN; returns them as they were."""
    cudnn: Any = torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That the first is an old one.
        try:
            before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
        except RuntimeError:
            # Somebody has used those that PyTorch has since 2.9, one for each kind of operator: then only these work.
            switches = [*((kind, "fp32_precision", "ieee") for kind in (cudnn.conv, cudnn.rnn)), *switches[1:]]
            before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
        for owner, name, value in switches:
            setattr(owner, name, value)
    return before


def caution(device: torch.device, precision: Precision, dims: int) -> str | None:
    """What is known against this precision on this device with this PyTorch: a sentence, or None."""
    if precision != "bf16":
        return None
    if device.type == "cuda" and dims == 3:
        # github.com/pytorch/pytorch/issues/163539: large volumes, cured in 9.15; releases before 9.10 are not affected.
        version: int = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
        if 91000 <= version < 91500:
            shown = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
            return (
                f"precision bf16: cuDNN {shown} computes large 3-D convolutions wrongly, and the search may not get "
                "far: update PyTorch, or use fp16."
            )
    if device.type == "cpu" and torch.__version__.startswith("2.13."):
        # github.com/pytorch/pytorch/issues/183815.
        return "precision bf16: PyTorch 2.13 is slower with it on a CPU than with float32."
    return None


@contextmanager
def float32_by_default() -> Iterator[None]:
    """New tensors are float32 in the block, whatever a caller of the library has for default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
