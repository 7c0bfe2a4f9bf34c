"""What kind of file a model is, and how PyTorch reads it: TorchScript, a MONAI bundle's included, or .pt2.

A model file is a program. It is only run, never unpickled into this process: checkpoints and pickles are refused, and
so is an archive that is damaged or holds more than a network.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mafl_cli.config import EnsembleRule
from mafl_cli.errors import ModelError, reason_of
from mafl_cli.names import outside, sha256
from mafl_cli.network import archives, exported
from mafl_cli.network.opening import Opening
from mafl_cli.network.reasons import meaning
from mafl_cli.network.source import Model

Format = Literal["torchscript", "torch.export", "torch.nn", "onnx", "nnunet", "monai.bundle", "ensemble"]

_REMEDY = "save the network with torch.jit.script(net).save(...) or torch.jit.trace(net, example).save(...)"


@dataclass(frozen=True)
class ModelFile:
    """A loaded network, in evaluation mode, its parameters frozen.

    frozen: the same function with fewer operations, to be lifted. It must not be given what `module` refuses: an error
        in a frozen TorchScript module is at times a segmentation fault.
    kernel: shape of its first convolution's kernel, if it shows one. example: shape of the input that it was exported
    with, None for each size it leaves open; torch.export only. cuts: whether it may cut gradients off, or have some of
    its own, so that they are not the derivative of what it computes. members: how many passes of networks make one
    answer, whose mean it is; where there are several, `module` keeps of each no more than its input for a gradient, and
    `member` is one of them. parts, ensemble: of an ensemble, its members, and how they are joined; then `module` is
    none that can be run, see `joined`.
    """

    module: torch.nn.Module
    frozen: torch.nn.Module
    format: Format
    sha256: str
    kernel: tuple[int, ...] | None
    example: tuple[int | None, ...] | None
    cuts: bool
    members: int = 1
    member: torch.nn.Module | None = None
    parts: tuple[Part, ...] = ()
    ensemble: EnsembleRule | None = None


@dataclass(frozen=True)
class Part:
    """A member of an ensemble, what it was read from, and how it was opened."""

    file: ModelFile
    model: Model
    opening: Opening


def joined_file(parts: tuple[Part, ...], ensemble: EnsembleRule, digest: str) -> ModelFile:
    """Several models that are loaded, to be joined when they are described."""
    nothing = torch.nn.Identity()
    passes = sum(part.file.members for part in parts)
    return ModelFile(
        nothing, nothing, "ensemble", digest, None, None, cuts=False, members=passes, parts=parts, ensemble=ensemble
    )


def read_archive(path: Path, device: torch.device) -> ModelFile:
    """Load a TorchScript or .pt2 file.

    Raises: ModelError saying what the file is if it is none, or why PyTorch cannot load it.
    """
    digest = _digest(path)
    import_compiler()
    example = None
    try:
        kind = _sniff(path)
        with quiet_torchscript():
            if kind == "torch.export":
                program = exported.read_exported(path)
                example = _exported_with(program)
                cuts = any(word in str(program.graph_module.graph) for word in ("detach", "set_grad_enabled"))
                module: Any = program.module().to(device)
            else:
                module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
                cuts = _cuts(module)
    except archives.Damaged as exc:
        raise ModelError(f"{outside(path.name)}: is damaged or cut off: {exc}; copy or export it anew.") from exc
    except ModelError:
        raise
    except Exception as exc:  # Damaged programs make PyTorch raise nearly any class.
        raise ModelError(f"{outside(path.name)}: PyTorch cannot load it: {meaning(exc)}.") from exc
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    # Looked up before freezing, which turns parameters into constants.
    kernel = kernel_of(module)
    frozen = module
    if kind == "torchscript" and hasattr(module, "training"):  # one that is frozen already has lost this attribute
        module.eval()
        frozen = _frozen(module)
    return ModelFile(module, frozen, kind, digest, kernel, example, cuts)


def _cuts(module: Any) -> bool:
    """Whether a TorchScript program detaches something, or enters a no_grad (or another context), before freezing."""
    try:
        graph = module.inlined_graph
    except (AttributeError, RuntimeError):
        return True  # Whoever runs it says what is wrong with it.
    return any(graph.findNode(kind) is not None for kind in ("aten::detach", "prim::data", "prim::Enter"))


def _frozen(module: Any) -> torch.nn.Module:
    """TorchScript in evaluation mode with batch norm folded into the convolutions; as it is where that cannot be."""
    with quiet_torchscript(), suppress(RuntimeError):
        module = torch.jit.freeze(module)
    found: torch.nn.Module = module
    return found


def kernel_of(module: torch.nn.Module) -> tuple[int, ...] | None:
    """The shape of its first convolution's kernel, if it shows one."""
    return next((tuple(p.shape) for p in module.parameters() if p.ndim in (4, 5)), None)


def without_compiler(module: torch.nn.Module) -> torch.nn.Module:
    """What torch.compile makes of a module cannot be recorded; the module itself can."""
    inner: torch.nn.Module = getattr(module, "_orig_mod", module)
    return inner


def require_gradient(module: torch.nn.Module, name: str) -> None:
    """Raise ModelError for a network that was made where there are no gradients."""
    if any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers())):
        raise ModelError(f"{name}: was made under torch.inference_mode(), where there is no gradient: make it outside.")


@contextmanager
def lent(module: torch.nn.Module) -> Iterator[ModelFile]:
    """A network of the caller's own, to be attacked as it is in evaluation mode.

    Afterwards each of its parts is in the mode it was in, and its parameters ask for gradients as they did.
    Raises: ModelError for a network that was made under `torch.inference_mode()`, through which no gradient goes.
    """
    import_compiler()
    inner = without_compiler(module)
    require_gradient(inner, type(module).__name__)
    modes = [(part, part.training) for part in inner.modules()]
    asked = [(parameter, parameter.requires_grad) for parameter in inner.parameters()]
    try:
        inner.eval()
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        # TorchScript that ran on a GPU before keeps the kernels it was compiled into; a frozen copy has none yet.
        own = isinstance(inner, torch.jit.ScriptModule) and hasattr(inner, "training")
        yield ModelFile(inner, _frozen(inner) if own else inner, "torch.nn", "", kernel_of(inner), None, cuts=True)
    finally:
        for parameter, wanted in asked:
            parameter.requires_grad_(wanted)
        for part, mode in modes:
            part.training = mode


def _exported_with(program: torch.export.ExportedProgram) -> tuple[int | None, ...] | None:
    """The shape of the first input, with None where the program leaves the size open."""
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and hasattr(node.meta.get("val"), "shape"):
            return tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)
    return None


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except IsADirectoryError as exc:
        raise ModelError(f"{outside(path.name)}: is a folder, not a model file.") from exc
    except FileNotFoundError as exc:
        raise ModelError(f"{outside(path.name)}: no such model file.") from exc
    except OSError as exc:
        raise ModelError(f"{outside(path.name)}: cannot be read ({reason_of(exc)}).") from exc


def _sniff(path: Path) -> Format:
    """Kind of an archive that is whole and holds nothing but a network.

    Raises ModelError saying what it is if it is something else; archives.Damaged.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{outside(path.name)}: {_without_archive(head, path.suffix.lower())}.")
    with archives.open_archive(path) as archive:
        names = archive.namelist()
        inside = {name.partition("/")[2] for name in names}
        if "constants.pkl" in inside:
            archives.check_whole(archive)
            archives.check_torchscript(archive, outside(path.name))
            return "torchscript"
        if "archive_format" in inside or exported.OLD in names:
            return "torch.export"
    raise ModelError(f"{outside(path.name)}: {_other_archive(set(names), inside)}.")


def _without_archive(head: bytes, suffix: str) -> str:
    """What a file that is not a zip archive is, and what to do."""
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the model; fetch the file itself with `git lfs pull`"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "is a web page, not a model (a download that needed a login or another link?); download it again"
    if head.startswith(b"PK"):
        return "is a damaged or cut-off archive; copy or download it again, or " + _REMEDY
    kinds: tuple[tuple[bool, str], ...] = (
        (not head, "is empty"),
        (head[:1] == b"\x80", "is a Python pickle, not TorchScript"),
        (head[8:9] == b"{" or suffix == ".safetensors", "is a safetensors file (weights without the network)"),
        (head.startswith(b"\x89HDF"), "is an HDF5 file (Keras?), which only TensorFlow can run"),
        (head[4:8] == b"TFL3", "is a TensorFlow Lite model, which gives no gradient"),
        (head[257:262] == b"ustar", "is a tar archive (an old checkpoint?), not TorchScript"),
        (head.startswith(b"\x1f\x8b"), "is gzip-compressed; unpack it first, if a model is in it"),
    )
    what = next((words for found, words in kinds if found), "is not a model file")
    return f"{what}; {_REMEDY}"


def _other_archive(names: set[str], inside: set[str]) -> str:
    """What a zip archive is that holds no program of PyTorch's."""
    packed = any(name.endswith((".ts", ".pt", ".pt2", ".pth")) for name in names)
    if packed:
        return "is a zip archive with a model file in it; unpack it and give that file"
    if {"config.json", "model.weights.h5"} <= names:
        return f"is a Keras model, which only TensorFlow can run; {_REMEDY}"
    if "data.pkl" in inside or "data.pkl" in names:
        return f"is a checkpoint (weights without the network), not TorchScript; {_REMEDY}"
    return f"is an archive without a TorchScript program; {_REMEDY}"


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """TorchScript without its warning, and operator by operator.

    It is deprecated in PyTorch and remains the exchange format: its warning is known, others are not. On a GPU it
    compiles neighbouring operators into one kernel, which no recording sees: the graph would not depend on its input.
    """
    compiles = torch._C._jit_texpr_fuser_enabled()
    torch._C._jit_set_texpr_fuser_enabled(False)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=category)
            yield
    finally:
        torch._C._jit_set_texpr_fuser_enabled(compiles)


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


def attempt(call: Callable[[], Any]) -> Any:
    """What a network answers, or the exception with which it refuses."""
    try:
        with quiet_torchscript():
            return call()
    except Exception as exc:  # Code of a network's own may raise a class of its own.
        return exc
