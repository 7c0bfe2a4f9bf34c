"""A model without a file: a network in memory, and `package.module:function`, which makes one.

The function takes nothing and returns an `nn.Module`, or the module and its card: a `ModelCard`, a dict with the tables
of a model's TOML file, or the path of one.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mafl_cli.errors import MaflError, ModelError, UsageError
from mafl_cli.names import outside
from mafl_cli.network.model_file import (
    Format,
    ModelFile,
    import_compiler,
    kernel_of,
    require_gradient,
    without_compiler,
)
from mafl_cli.network.reasons import meaning
from mafl_cli.network.source import Own


def made_by(function: Path, trust: bool) -> Own:
    """What `package.module:function` gives. Its module is imported, and the function called, once.

    Raises: UsageError without trust; ModelError with the reason if there is no such function, or no network comes.
    """
    name = outside(str(function))
    if not trust:
        raise UsageError(f"{name} is Python code, which would run: add `trust` if you know what it does.")
    return _made_by(str(function))


@lru_cache(maxsize=8)
def _made_by(text: str) -> Own:
    module_name, _, function_name = text.partition(":")
    name = outside(text)
    with _from_here():
        try:
            called: Any = importlib.import_module(module_name)
            for part in function_name.split("."):
                called = getattr(called, part)
            result = called()
        except MaflError:
            raise
        except Exception as exc:  # It is anybody's code.
            raise ModelError(f"{name}: gives no network: {meaning(exc)} ({type(exc).__name__}).") from exc
    module, card = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"{name}: must return an nn.Module, or one with its card, got {outside(type(module).__name__)}."
        )
    return Own(module, name, card)


@contextmanager
def _from_here() -> Iterator[None]:
    """Modules of the working folder are found too, as `python -m` finds them."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)


def read_own(own: Own, device: torch.device) -> ModelFile:
    """The network, brought onto the device, in evaluation mode, its parameters frozen.

    Raises: ModelError for a network that was made under `torch.inference_mode()`.
    """
    return of_module(own.module, own.name, "torch.nn", digest_of(own), device)


def of_module(module: torch.nn.Module, name: str, kind: Format, sha256: str, device: torch.device) -> ModelFile:
    """The same for any module that was made for this program to have."""
    import_compiler()
    module = without_compiler(module)
    require_gradient(module, name)
    module.to(device).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return ModelFile(module, module, kind, sha256, kernel_of(module), None, cuts=True)


def digest_of(own: Own) -> str:
    """SHA-256 of its parts and their order, and of every number it holds."""
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", repr(own.module)).encode())
    digest.update(f"{type(own.module).__module__}.{type(own.module).__qualname__}".encode())
    for name, tensor in own.module.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
