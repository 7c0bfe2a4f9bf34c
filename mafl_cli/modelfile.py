"""What kind of file a model is, and how PyTorch reads it: TorchScript, a MONAI bundle's included, or .pt2.

A model file is a program. It is only run, never unpickled into this process: checkpoints and pickles are refused.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mafl_cli.errors import ModelError

Format = Literal["torchscript", "torch.export"]

# How a network says no to an input; torch.jit.Error is what TorchScript makes of a `raise` inside the network.
REFUSALS = (RuntimeError, ValueError, IndexError, AssertionError, torch.jit.Error)


@dataclass(frozen=True)
class ModelFile:
    """A loaded network, in evaluation mode, its parameters frozen.

    kernel: shape of its first convolution's kernel, if it shows one. example: shape of the input that it was exported
    with, None for each size it leaves open; torch.export only.
    """

    module: torch.nn.Module
    format: Format
    sha256: str
    kernel: tuple[int, ...] | None
    example: tuple[int | None, ...] | None


def read_model(path: Path, device: torch.device) -> ModelFile:
    """Load a model. Raises ModelError saying what the file is if it is none, or why PyTorch cannot load it."""
    kind, digest = _sniff(path)
    example = None
    try:
        with quiet_torchscript():
            if kind == "torch.export":
                program = torch.export.load(str(path))
                example = _exported_with(program)
                module: Any = program.module().to(device)
            else:
                module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    except (*REFUSALS, EOFError, KeyError, TypeError) as exc:
        raise ModelError(f"{path.name}: PyTorch cannot load it ({last_line(exc)}).") from exc
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    # Looked up before freezing, which turns parameters into constants.
    kernel = next((tuple(p.shape) for p in module.parameters() if p.ndim in (4, 5)), None)
    if kind == "torchscript" and hasattr(module, "training"):  # one that is frozen already has lost this attribute
        module.eval()
        with quiet_torchscript(), suppress(RuntimeError):
            # Folds batch norm into the convolutions: fewer operations, same function. What cannot be frozen
            # works as it is.
            module = torch.jit.freeze(module)
    return ModelFile(module, kind, digest, kernel, example)


def _exported_with(program: torch.export.ExportedProgram) -> tuple[int | None, ...] | None:
    """The shape of the first input, with None where the program leaves the size open."""
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and "val" in node.meta:
            return tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)
    return None


def _sniff(path: Path) -> tuple[Format, str]:
    """Kind and SHA-256 of a file that looks like a model; ModelError saying what it is if it is something else."""
    try:
        data = path.read_bytes()
    except IsADirectoryError as exc:
        raise ModelError(f"{path.name}: is a folder, not a model file.") from exc
    except FileNotFoundError as exc:
        raise ModelError(f"{path.name}: no such model file.") from exc
    except OSError as exc:
        raise ModelError(f"{path.name}: cannot be read ({exc.strerror}).") from exc
    remedy = "save the network with torch.jit.script(net).save(...) or torch.jit.trace(net, example).save(...)"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # what damage to a zip's directory raises
        if not data:
            what = "is empty"
        elif data[:1] == b"\x80":
            what = "is a Python pickle, not TorchScript"
        elif path.suffix == ".onnx":
            what = "is an ONNX model, which gives no gradient"
        elif data[:2] == b"PK":
            what = "is a damaged or cut-off archive"
        else:
            what = "is not a model file"
        raise ModelError(f"{path.name}: {what}; {remedy}.") from None
    inside = {member.partition("/")[2] for member in members}
    if "constants.pkl" not in inside:
        if "archive_format" in inside or "serialized_exported_program.json" in members:
            return "torch.export", hashlib.sha256(data).hexdigest()
        if "data.pkl" in inside:
            what = "is a checkpoint (weights without the network), not TorchScript"
        else:
            what = "is an archive without a TorchScript program"
        raise ModelError(f"{path.name}: {what}; {remedy}.")
    return "torchscript", hashlib.sha256(data).hexdigest()


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """TorchScript is deprecated in PyTorch and remains the exchange format: its warning is known, others are not."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=category)
        yield


def import_compiler() -> None:
    """Import what tracing asks of PyTorch's compiler, but let it make no cache folder in the temporary directory.

    Nothing is compiled here, so it would stay empty; and on a full disk, tracing would fail for it.
    """
    name, variable = "torch._inductor.compiler_bisector", "TORCHINDUCTOR_CACHE_DIR"
    if name in sys.modules:
        return
    before = os.environ.get(variable)
    # One that is there already, and that no other user can put anything into.
    os.environ[variable] = str(Path(torch.__file__).parent)
    try:
        with suppress(ImportError):  # Older releases have none.
            importlib.import_module(name)
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def last_line(exc: BaseException) -> str:
    """The last informative line of a PyTorch error, which often drags a whole TorchScript stack along."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = lines[-1] if lines else type(exc).__name__
    return text.removeprefix("RuntimeError: ").rstrip(".")[:200]
