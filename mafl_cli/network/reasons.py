"""What a PyTorch error means for somebody who exported a network: a clause to be read after the file's name."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from mafl_cli.errors import ModelError

# How a network says no to an input; torch.jit.Error is what TorchScript makes of a `raise` inside the network. A graph
# that does not fit what it is given can raise any of them.
REFUSALS = (
    RuntimeError, ValueError, LookupError, AssertionError, TypeError, AttributeError, ArithmeticError, torch.jit.Error,
)  # fmt: skip

_TYPES = {"half": "float16", "bfloat16": "bfloat16", "double": "float64", "float": "float32"}

Clause = str | Callable[[re.Match[str]], str]


def _of_type(found: re.Match[str]) -> str:
    types = [_TYPES.get(each.removeprefix("c10::").lower(), each) for each in found.groups()]
    other = next((each for each in types if each != "float32"), "another type")
    return f"its weights are {other} and the image is float32; convert it with .float() first"


def _of_backend(found: re.Match[str]) -> str:
    operator, backend = found.groups()
    if backend.startswith("Quantized"):
        return f"it is quantised ({operator}), and quantised operators have no gradient; export the float network"
    if backend.startswith("Mkldnn"):
        return "it was optimised for inference, which leaves no gradient; export it without optimize_for_inference"
    return _elsewhere(backend.lower())


def _elsewhere(device: str) -> str:
    return (
        f"it holds the device it was exported on ({device}); export it on the CPU, "
        "with no device named inside the network"
    )


def _of_derivative(found: re.Match[str]) -> str:
    operator = found.group(1).removeprefix("aten::")
    if operator in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention"):
        return (
            f"its operator {operator} has no gradient; export it with gradients on (not under torch.no_grad), "
            "after torch.backends.mha.set_fastpath_enabled(False)"
        )
    return f"its operator {operator} has no gradient; export it with another in its place"


TOO_SMALL = "the image is too small for its pooling, strides or padding"

_MEANINGS: tuple[tuple[str, Clause], ...] = (
    (
        r"Unknown builtin op: ([\w:.]+)|[Nn]o such operator ([\w:.]+)|operator ([\w:]+) does not exist"
        r"|Could not find (?:schema|operator) for ([\w:.]+)",
        lambda found: (
            f"it uses the operator {next(filter(None, found.groups())).rstrip('.')}, which this PyTorch does not have; "
            "export it without it"
        ),
    ),
    (
        r"file with version (\d+), but the maximum supported version for reading is (\d+)",
        lambda found: (
            f"it was written by a newer PyTorch (file version {found[1]}, this one reads up to {found[2]}); "
            "update PyTorch, or export it with this one"
        ),
    ),
    (
        r"(?:Serialized version|archive version|Saved archive version|opset version).*does not match",
        "it was written by another version of PyTorch, whose format differs; export it with this one",
    ),
    (r"Could not run '([\w:.]+)' with arguments from the '(\w+)' backend", _of_backend),
    (
        r"on a (CUDA|MPS|XPU) device but|(CUDA|cuda|MPS|XPU)[^.]* (?:is not|are not|not) (?:available|enabled)",
        lambda found: _elsewhere(next(filter(None, found.groups())).lower()),
    ),
    (
        r"[Nn]o CUDA GPUs|Found no NVIDIA|not compiled with CUDA|not linked with support for cuda|CUDA driver",
        lambda found: _elsewhere("cuda"),
    ),
    (
        r"(?:tensors? to be|Expected all tensors to be) on the same device[^.]*?(cuda|mps|xpu)",
        lambda found: _elsewhere(found[1]),
    ),
    (
        r"quantized::(\w+)",
        lambda found: (
            f"it is quantised ({found[1]}), and quantised operators have no gradient; export the float network"
        ),
    ),
    (r"Input type \(([\w:]+)\) and (?:bias|weight) type \(([\w:]+)\) should be the same", _of_type),
    (r"expected scalar type (\w+) but found (\w+)", _of_type),
    (r"to have the same dtype, but got: ([\w:]+) != ([\w:]+)", _of_type),
    (r"mixed dtype.*: expect (?:input|parameter).*?(\w+)", _of_type),
    (r"\"\w+\" not implemented for '(Half|BFloat16)'", _of_type),
    (
        r"Output size is too small|Padding size should be less|Kernel size can't be greater than actual input"
        r"|should be at least as (?:large|big)|smaller than kernel size|Expected more than 1 (?:spatial element|value)"
        r"|input (?:image )?(?:is )?smaller than|non-empty|Input and output sizes should be greater than 0",
        TOO_SMALL,
    ),
    (
        r"missing value for argument '(\w+)'|missing a required argument: '(\w+)'|missing \d+ required .*'(\w+)'",
        lambda found: (
            f"it takes another input beside the image ({next(filter(None, found.groups()))}); "
            "export it with that input fixed"
        ),
    ),
    (
        r"Trying to flatten user inputs with exported input tree spec",
        "it takes more than one image, or not as a plain tensor; export it with the image as its only input",
    ),
    (
        r"expected input\[[\d, ]+\] to have (\d+) channels, but got (\d+) channels",
        lambda found: (
            f"its convolution takes {found[1]} channels where {found[2]} come "
            "(channels last? export it for (batch, channel, ...))"
        ),
    ),
    (r"derivative for (\S+) is not implemented", _of_derivative),
    (
        r"modified by an inplace operation.*?output \d+ of (?:As)?(\w+?)Backward",
        lambda found: f"it changes the result of {found[1]} in place, which takes away the gradient; export it without",
    ),
    (
        r"leaf Variable that requires grad|modified by an inplace operation",
        "it changes a value in place that its gradient needs; export it without in-place operators",
    ),
    (r"tried to allocate|not enough memory|can't allocate memory|out of memory", "it needs more memory than there is"),
    (
        r"Sizes of tensors must match except in dimension \d+\. Expected size (\d+) but got size (\d+)"
        r"|The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)",
        lambda found: "its layers do not fit together at this size ({} and {})".format(*filter(None, found.groups())),
    ),
    (
        r"shape '(\[[\d, -]+\])' is invalid for input of size",
        lambda found: f"it was exported for another size (it reshapes to {found[1]})",
    ),
    (
        r"PytorchStreamReader failed|unpickler|Unpickler|unexpected (?:end|EOF)|storage.*out of (?:bounds|range)",
        "it is damaged",
    ),
)


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether fewer samples at a time may help."""
    # TorchScript and the libraries of a GPU raise errors of other classes, of which only the words tell.
    return isinstance(exc, (torch.OutOfMemoryError, MemoryError)) or bool(_NO_MEMORY.search(str(exc)))


_NO_MEMORY = re.compile(r"can't allocate memory|CUDA out of memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED")


@contextmanager
def enough_memory(name: str, what: str) -> Iterator[None]:
    """Raises ModelError, with one sentence, for PyTorch's errors of memory that nobody else took care of.

    name: of the model. what: goes through it.
    """
    try:
        yield
    except REFUSALS as exc:
        if not is_out_of_memory(exc):
            raise
        raise ModelError(
            f"{name}: {what} needs more memory than there is: choose a smaller `roi`, or another `device`."
        ) from exc


def is_of_network(exc: BaseException) -> bool:
    """Whether an error came out of a network's graph, forward or backward, and not out of this program."""
    # A backward pass of the network's own, in Python, has frames of its own below the engine's.
    return any(
        frame.filename.startswith("<eval_with_key>") or frame.name == "_engine_run_backward"
        for frame in traceback.extract_tb(exc.__traceback__)
    )


def meaning(exc: BaseException) -> str:
    """What a PyTorch error means, as a clause without a full stop; its own words where nobody knows."""
    text = str(exc)
    for pattern, clause in _MEANINGS:
        found = re.search(pattern, text, re.DOTALL if "inplace" in pattern else 0)
        if found is not None:
            return clause if isinstance(clause, str) else clause(found)
    return _own_words(text) or type(exc).__name__


def _own_words(text: str) -> str:
    """The last line of an error that says something: not code, not a place in a file, no folder."""
    lines = [line.strip() for line in text.splitlines()]
    telling = [line for line in lines if len(line) > 3 and not _NO_WORDS.search(line)]
    line = _FOLDERS.sub("", (telling or lines or [""])[-1])
    line = re.sub(r"^(?:builtins\.)?\w*(?:Error|Exception): ", "", line)
    return "".join(letter for letter in line if letter.isprintable() and letter != "`").rstrip(". ")[:200]


_NO_WORDS = re.compile(
    r"^(?:File |~|\^|<-+|def |return |Traceback|at .*\.py|Serialized |[\w.]+ = )|registered at |\.cpp:\d+|~~~|-> Tensor"
)
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[\\/][\w.+@-]+)+[\\/]")
