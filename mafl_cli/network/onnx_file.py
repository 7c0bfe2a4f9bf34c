"""An ONNX file: onnxruntime runs it for every prediction, and its graph in PyTorch has the gradient.

A graph is data and no program: nothing in it runs but operators. Weights that lie beside the file are read from its own
folder alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mafl_cli.errors import ModelError, UsageError
from mafl_cli.names import outside, sha256
from mafl_cli.network.model_file import ModelFile

if TYPE_CHECKING:
    import onnx
    import onnxruntime

INSTALL = "pip install 'mafl[onnx]'"
_NAMED = 6
"""Operators that a message names at most."""


class OnnxRuntime(torch.nn.Module):
    """The file as onnxruntime runs it, on the CPU: (B, C, *spatial) -> its outputs, without gradient."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        super().__init__()
        self._session = session
        (given,) = session.get_inputs()
        self._input = given.name
        self._type = _NUMPY_TYPES[given.type]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Raises: ValueError with onnxruntime's own words for an input that it refuses."""
        array = np.ascontiguousarray(x.detach().cpu().numpy().astype(self._type, copy=False))
        try:
            results = self._session.run(None, {self._input: array})
        except Exception as exc:  # onnxruntime raises classes of its own.
            raise ValueError(_words(exc)) from exc
        return tuple(torch.from_numpy(np.array(result)).to(x.device) for result in results)


class Translated(torch.nn.Module):
    """The graph in PyTorch, for an image as the rest of the program has it: float32."""

    def __init__(self, graph: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._graph, self._dtype = graph, dtype

    def forward(self, x: Tensor) -> Any:
        return self._graph(x.to(self._dtype))


_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def read_onnx(path: Path, device: torch.device) -> ModelFile:
    """Load an ONNX model. Raises ModelError with the reason if it cannot be attacked."""
    name = outside(path.name)
    model = parsed(path)
    digest = sha256(*files_of(path))
    import onnx
    import onnxruntime

    from mafl_cli.network.onnx_graph import OnnxGraph, Unconvertible

    shape = _image(model, name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would wait for the next call with all their might.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        runtime = OnnxRuntime(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
    except Exception as exc:
        raise ModelError(f"{name}: onnxruntime cannot load it: {_words(exc)}.") from exc
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        graph = Translated(OnnxGraph(model), torch.from_numpy(np.zeros(1, runtime._type)).dtype)
    except Unconvertible as exc:
        shown = ", ".join(map(outside, exc.names[:_NAMED])) + (", ..." if len(exc.names) > _NAMED else "")
        operators = "operator" if len(exc.names) == 1 else "operators"
        raise ModelError(
            f"{name}: its {operators} {shown} cannot be converted to PyTorch, which gives the gradient; export it "
            "without, or as TorchScript or .pt2."
        ) from exc
    except Exception as exc:  # What a graph may hold is without end.
        raise ModelError(f"{name}: its graph cannot be converted to PyTorch: {_words(exc)}.") from exc
    kernels = (each.shape for each in graph.buffers() if each.ndim in (4, 5))
    kernel = next((tuple(each) for each in kernels), None)
    return ModelFile(
        module=runtime.eval(), frozen=graph.eval().to(device), format="onnx", sha256=digest, kernel=kernel,
        example=shape, cuts=False,
    )  # fmt: skip


def parsed(path: Path) -> onnx.ModelProto:
    """The file's graph, without weights that lie beside it.

    Raises: UsageError without the packages for ONNX; ModelError for a file that is not there, or not ONNX.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as exc:
        raise UsageError(
            f"{outside(path.name)} is an ONNX model, which needs onnx and onnxruntime: {INSTALL}."
        ) from exc
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except FileNotFoundError as exc:
        raise ModelError(f"{outside(path.name)}: no such model file.") from exc
    except Exception as exc:  # protobuf raises classes of its own.
        raise ModelError(f"{outside(path.name)}: is damaged, or not ONNX; copy or export it anew.") from exc
    if not model.graph.node:
        raise ModelError(f"{outside(path.name)}: is damaged, or not ONNX; copy or export it anew.")
    return model


def files_of(path: Path) -> tuple[Path, ...]:
    """The file, and those that hold its weights. Raises ModelError for weights outside its folder, or not there."""
    name, folder = outside(path.name), path.parent.resolve()
    found = [path]
    for place in sorted(set(_beside(parsed(path)))):
        beside = path.parent / place
        if not beside.resolve().is_relative_to(folder):
            raise ModelError(f"{name}: says that its weights lie outside its folder; export it anew.")
        if not beside.is_file():
            raise ModelError(
                f"{name}: its weights are in {outside(place)}, which is not there; put it beside the model."
            )
        found.append(beside)
    return tuple(found)


def _beside(model: onnx.ModelProto) -> Iterator[str]:
    import onnx

    for tensor in onnx.external_data_helper._get_all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def fixed_size(path: Path) -> tuple[int, ...] | None:
    """The size that the file was exported for, if it takes no other along any axis."""
    size = _image(parsed(path), outside(path.name))[2:]
    return None if len(size) not in (2, 3) or None in size else tuple(each for each in size if each is not None)


def _image(model: onnx.ModelProto, name: str) -> tuple[int | None, ...]:
    """The shape of its only input, None for sizes that are left open.

    Raises ModelError for another number of inputs, or numbers that are not those of an image.
    """
    weights = {each.name for each in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(outside(each.name) for each in inputs[:_NAMED])
        raise ModelError(f"{name}: takes {len(inputs)} inputs ({names}); export it with the image as its only input.")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in (1, 10, 11):
        raise ModelError(f"{name}: its input is not an image of floating-point numbers; export it for float32.")
    return tuple(axis.dim_value or None for axis in tensor.shape.dim)


def _words(exc: Exception) -> str:
    """What went wrong, in one line without the code and the place in onnxruntime's source."""
    text = str(exc).rsplit("Status Message:", 1)[-1].rsplit(" : ", 1)[-1].strip()
    line = next((each.strip() for each in text.splitlines() if each.strip()), type(exc).__name__)
    return outside(line).rstrip(". ")[:200]
