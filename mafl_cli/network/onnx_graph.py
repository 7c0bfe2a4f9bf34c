"""An ONNX graph as a PyTorch module, so that it has a gradient.

What depends on the image's values is computed by PyTorch, operator by operator (`onnx_operators`, `onnx_shapes`,
`onnx_layers`). What does not (weights, sizes, indices) is computed by the reference implementation that the package
`onnx` brings, for any operator and version. Whether both together answer as the file does is not taken on trust:
predictions come from onnxruntime, and `network.gradient` compares the two on every scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import inliner, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from mafl_cli.network.onnx_layers import LAYERS
from mafl_cli.network.onnx_operators import OPERATORS, Call, Operator
from mafl_cli.network.onnx_shapes import SHAPES

Value = Tensor | NDArray[Any] | None
"""A tensor made from the image's values, or an array that no value of the image has a part in."""

_TABLE: Mapping[str, Operator] = {**OPERATORS, **SHAPES, **LAYERS}
_OF_SHAPE = ("Shape", "Size")
_OWN_DOMAINS = ("", "ai.onnx")


class Unconvertible(ValueError):
    """A graph has operators that PyTorch does not compute here. names: of them."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(", ".join(names))
        self.names = tuple(names)


@dataclass(frozen=True)
class Step:
    """A node. branches: of an `If`, the graphs of then and else."""

    node: onnx.NodeProto
    attributes: Mapping[str, Any]
    version: int
    branches: Mapping[str, Steps] = field(default_factory=dict)

    @cached_property
    def reference(self) -> ReferenceEvaluator:
        """The node as `onnx` itself computes it."""
        return ReferenceEvaluator(self.node, opsets={"": self.version})

    @property
    def kind(self) -> str:
        domain = self.node.domain
        return self.node.op_type if domain in _OWN_DOMAINS else f"{domain}.{self.node.op_type}"


@dataclass(frozen=True)
class Steps:
    """A graph, in order: its nodes, its constants, and the names of what it gives."""

    nodes: tuple[Step, ...]
    constants: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]


class OnnxGraph(torch.nn.Module):
    """The function of an ONNX model with one input: a tensor in the input's type -> its outputs, in order.

    Raises: Unconvertible, naming the operators, for a model that has others than those in the tables.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        model = _inlined(model)
        self._version = next(each.version for each in model.opset_import if each.domain in _OWN_DOMAINS)
        self._steps = self._read(model.graph)
        stated = set(self._steps.constants)
        (self._input,) = (each.name for each in model.graph.input if each.name not in stated)
        depending = {self._input}
        unknown = dict.fromkeys(_unknown(self._steps, depending, set(stated)))
        if unknown:
            raise Unconvertible(tuple(unknown))
        self._constants = self._folded()
        self._places: dict[str, str] = {}
        for name in _taken_as_tensors(self._steps, set(self._constants)):
            self._places[name] = f"weight_{len(self._places)}"
            self.register_buffer(self._places[name], torch.from_numpy(np.array(self._constants[name])))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self._run(self._steps, {**self._constants, self._input: x}, x.device)
        return tuple(self._tensor(name, found[name], x.device) for name in self._steps.outputs)

    def _read(self, graph: onnx.GraphProto) -> Steps:
        nodes = []
        for node in graph.node:
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            branches = {
                name: self._read(part) for name, part in attributes.items() if isinstance(part, onnx.GraphProto)
            }
            nodes.append(Step(node, attributes, self._version, branches))
        constants = {each.name: np.array(numpy_helper.to_array(each)) for each in graph.initializer}
        return Steps(tuple(nodes), constants, tuple(each.name for each in graph.output))

    def _folded(self) -> dict[str, NDArray[Any]]:
        """All values that not even the image's size has a part in."""
        known: dict[str, Any] = dict(self._steps.constants)
        for step in self._steps.nodes:
            names = list(step.node.input)
            if not step.branches and step.kind not in _RANDOM and all(not name or name in known for name in names):
                known.update(zip(step.node.output, _by_reference(step, known), strict=False))
        return known

    def _run(self, steps: Steps, known: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """All values of a graph. known: those that are there already, the outer graph's for a branch."""
        for step in steps.nodes:
            outputs = list(step.node.output)
            if all(name in self._constants for name in outputs if name):
                continue
            values = [known[name] if name else None for name in step.node.input]
            if step.kind == "If":
                branch = step.branches["then_branch" if _plain(step, values[0]).all() else "else_branch"]
                inner = self._run(branch, {**known, **branch.constants}, device)
                results: Sequence[Value] = [inner[name] for name in branch.outputs]
            elif step.kind in _OF_SHAPE and isinstance(values[0], Tensor):
                shape = np.array(values[0].shape, dtype=np.int64)
                first, last = (step.attributes.get(key) for key in ("start", "end"))
                results = [shape[first or 0 : last] if step.kind == "Shape" else np.array(shape.prod())]
            elif any(isinstance(value, Tensor) for value in values):
                results = self._by_torch(step, values, device)
            else:
                results = _by_reference(step, known)
            known.update(zip(outputs, results, strict=False))
        return known

    def _by_torch(self, step: Step, values: Sequence[Value], device: torch.device) -> Sequence[Value]:
        operator = _TABLE[step.kind]
        given: list[Any] = []
        for place, (name, value) in enumerate(zip(step.node.input, values, strict=True)):
            if value is None:
                given.append(None)
            elif operator.is_plain(place):
                given.append(_plain(step, value))
            else:
                given.append(self._tensor(name, value, device))
        result = operator.compute(Call(given, step.attributes, step.version, len(step.node.output)))
        return result if isinstance(result, (tuple, list)) else (result,)

    def _tensor(self, name: str, value: Value, device: torch.device) -> Tensor:
        if isinstance(value, Tensor):
            return value
        place = self._places.get(name)
        if place is not None:
            held: Tensor = getattr(self, place)
            return held
        return torch.from_numpy(np.array(value)).to(device)


_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


def _plain(step: Step, value: Value) -> NDArray[Any]:
    """A size, an index or a bound. Raises ValueError where the image's values decide about it."""
    if isinstance(value, np.ndarray):
        return value
    raise ValueError(f"its operator {step.kind} takes sizes or indices from the values of the image")


def _by_reference(step: Step, known: Mapping[str, Any]) -> list[NDArray[Any]]:
    """What a node makes of arrays alone."""
    given = {name: known[name] for name in step.node.input if name}
    return [np.asarray(value) for value in step.reference.run(None, given)]


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions written out, and those of the standard that no table has."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    missing = {
        ("", node.op_type)
        for node in _nodes(model.graph)
        if node.domain in _OWN_DOMAINS and node.op_type not in (*_TABLE, *_OF_SHAPE, "If", "Constant")
    }
    written_out: Callable[..., onnx.ModelProto] | None = getattr(inliner, "inline_selected_functions", None)
    if not missing or written_out is None:
        return model
    return written_out(model, sorted(missing), False, True)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _unknown(steps: Steps, depending: set[str], stated: set[str]) -> Iterator[str]:
    """Operators on the image's values that no table has. depending: names of such values, added to as it goes."""
    for step in steps.nodes:
        touched = any(name in depending for name in step.node.input)
        if step.kind == "If":
            for branch in step.branches.values():
                yield from _unknown(branch, depending, stated)
                touched = touched or any(name in depending for name in branch.outputs)
        elif (touched or step.branches or step.kind in _RANDOM) and step.kind not in (*_TABLE, *_OF_SHAPE):
            yield step.kind
        if touched and step.kind not in _OF_SHAPE:
            depending.update(name for name in step.node.output if name)


def _taken_as_tensors(steps: Steps, constants: set[str]) -> Iterator[str]:
    """Constants that PyTorch computes with, each once: they lie in the module, on its device."""
    seen: set[str] = set()
    for step in steps.nodes:
        operator = _TABLE.get(step.kind)
        for place, name in enumerate(step.node.input if operator is not None else ()):
            if name in constants and name not in seen and operator is not None and not operator.is_plain(place):
                seen.add(name)
                if not all(output in constants for output in step.node.output):
                    yield name
