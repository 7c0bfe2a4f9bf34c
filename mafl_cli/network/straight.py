"""A lifted network with gradients where its own say nothing: straight-through.

Rounding, comparisons and casts have the slope 0, fast waves have one that points anywhere, and saturated ends hide the
logits behind them, by design or not. An attack that follows such slopes fails because of the slopes, not because the
network resists (Athalye et al., ICML 2018, who replace them: *backward pass differentiable approximation*). Here each
such step of the graph keeps its values and is given the slope of the straight line that fits them; all decisions are
taken on a scan as the network sees it, by what the steps do with it.

The result is a second opinion on where to go. What is found with it is judged by the model file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx

from mafl_cli.network.lifting import Gives, Lifted, depending_nodes, shape_of

Cure = Literal["straight", "cut", "front", "output"]

_STEPS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "floor_divide", "heaviside"}
"""Operators whose slope is 0 wherever they have one."""
_WAVES = {"sin", "cos", "frac", "remainder", "fmod", "tan"}
_DETACHED = {"detach", "detach_", "lift_fresh_copy"}
_BOUNDS = {"clamp", "clip", "hardtanh", "hardsigmoid"}
_SATURATED = 0.01
"""Share of values at their bounds from which a clamp is taken to hide something."""
_FAST = 1.0
"""Radians by which the argument of a wave moves when the scan moves by `_NUDGE`: with more, its slope leads nowhere."""
_NUDGE = 3e-3
"""The noise with which steps are tried, as a share of the range of what the network sees."""
_ALIKE = 0.9
"""Share of its variance that a map has in common with the input to count as the input, put another way."""


@dataclass(frozen=True)
class Plan:
    """What is done at which node of a graph: its cure, and the slope of a straight one. Holds for every input size."""

    cures: Mapping[str, tuple[Cure, float]]
    operators: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.cures)


class _Through(torch.autograd.Function):
    """The value of one tensor with the gradient of another, times a slope."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, origin: Tensor, slope: float) -> Tensor:
        ctx.slope = slope
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, gradient * ctx.slope, None


def through(value: Tensor, origin: Tensor, slope: float) -> Tensor:
    """`value`, with the gradient of slope · `origin`, which has the same shape."""
    found: Tensor = _Through.apply(value, origin, slope)  # type: ignore[no-untyped-call]
    return found


def kept(value: Tensor) -> Tensor:
    """`value` without a gradient."""
    return value.detach()


def diagnose(lifted: Lifted, x: Tensor) -> Plan:
    """Where a graph's slopes say nothing about `x`, (1, C, *spatial) as the network sees it, and what helps."""
    look = _Look(lifted, x)
    cures: dict[str, tuple[Cure, float]] = {}
    for node in look.order:
        cure = look.cure(node)
        if cure is not None:
            cures[node.name] = cure
    front = look.front()
    if front is not None:
        cures[front[0]] = ("front", front[1])
    output = look.peeled()
    if output is not None:
        cures[output] = ("output", 1.0)
    names = {node.name: _operator(node) for node in look.order}
    said = {"front": "what comes before the first layer", "output": "what comes after the logits"}
    operators = dict.fromkeys(said.get(kind, names.get(name, name)) for name, (kind, _) in cures.items())
    return Plan(cures, tuple(operators))


def straightened(lifted: Lifted, plan: Plan) -> Lifted:
    """The same graph with the cures of `plan`; its output may be logits that lie before what the network gives."""
    graph = _copied(lifted.graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    origins = {name: _origin(node) for name, node in nodes.items()}
    placeholder = next(node for node in graph.graph.nodes if node.op == "placeholder")
    gives: Gives = lifted.gives
    for name, (cure, slope) in plan.cures.items():
        node = nodes.get(name)
        if node is None:
            continue
        if cure == "output":
            (output,) = (each for each in graph.graph.nodes if each.op == "output")
            output.args = ((node, *output.args[0][1:]),)
            gives = "logits"
            continue
        origin = placeholder if cure == "front" else origins[name]
        with graph.graph.inserting_after(node):
            if cure == "cut":
                new = graph.graph.call_function(kept, (node,))
            else:
                new = graph.graph.call_function(through, (node, origin, slope))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
    graph.graph.lint()
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return replace(lifted, graph=graph, gives=gives)


class _Look:
    """What the nodes of a graph do with a scan, as it is and nudged by noise."""

    def __init__(self, lifted: Lifted, x: Tensor) -> None:
        graph = lifted.graph
        depending = depending_nodes(graph.graph)
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        self._raw: fx.Node = output.args[0][0]
        self._gives = lifted.gives
        self._graph, self._x = graph, x
        self._input = next(node for node in graph.graph.nodes if node.op == "placeholder")
        self.order = [node for node in graph.graph.nodes if node in depending and node.op == "call_function"]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape, generator=generator).to(x)
        self._noise = _NUDGE * (x.max() - x.min()).clamp_min(1e-6) * noise
        # Values of a whole network are large: only those that are looked at are kept.
        shapes = (tuple(x.shape), shape_of(self._raw))
        looked = [node for node in self.order if _is_suspect(node) or shape_of(node) in shapes]
        self._wanted = {self._input, *looked, *(parent for node in looked for parent in _sources(node))}
        self._here, self._there = (self._values(x), self._values(x + self._noise))

    def _values(self, x: Tensor) -> dict[fx.Node, Tensor]:
        wanted, found = self._wanted, {}

        class Listener(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n in wanted and isinstance(value, Tensor):
                    found[n] = value.detach().clone()
                return value

        with torch.no_grad():
            Listener(self._graph).run(x.clone())
        return found

    def cure(self, node: fx.Node) -> tuple[Cure, float] | None:
        """What helps at one node; None if its slope can be followed."""
        name, origin, value = _operator(node), _origin(node), self._here.get(node)
        if origin is None or value is None or origin not in self._here or not value.is_floating_point():
            return None
        argument = self._here[origin]
        if name in _WAVES:
            period = 1.0
            if name in ("remainder", "fmod"):
                other = node.args[1]
                size = self._here.get(other) if isinstance(other, fx.Node) else other
                if isinstance(size, Tensor):
                    size = float(size.abs().float().mean())
                period = abs(float(size)) if isinstance(size, (int, float)) else 1.0
            turn = 1.0 if name in ("sin", "cos", "tan") else 2 * math.pi / max(period, 1e-30)
            moved = float((self._there[origin] - argument).float().std()) * turn
            return ("cut", 0.0) if moved > _FAST else None
        if argument.shape != value.shape or not argument.is_floating_point():
            return None
        if name in _DETACHED:
            return "straight", 1.0
        if _is_stepped(node):
            slope, _ = _line(argument, value)
            return ("straight", slope) if slope else None
        if name in _BOUNDS and _is_two_sided(node):
            same = (value == value.max()) | (value == value.min())
            return ("straight", 1.0) if float(same.float().mean()) > _SATURATED else None
        return None

    def front(self) -> tuple[str, float] | None:
        """The last map that is the input put another way, if its own slope does not say how it answers; and a slope."""
        last = None
        for node in self.order:
            value = self._here.get(node)
            if node is self._raw or value is None or value.shape != self._x.shape or not value.is_floating_point():
                continue
            slope, alike = _line(self._x, value)
            if alike > _ALIKE:
                last = node, slope
        if last is None or self._is_honest(*last):
            return None
        return last[0].name, last[1]

    def _is_honest(self, node: fx.Node, slope: float) -> bool:
        """Whether a node's gradient promises what the nudge did to it, or is that of the straight line already."""
        x = self._x.clone().requires_grad_()
        with torch.enable_grad():
            value = _value_of(self._graph, node, x)
        if not value.requires_grad:
            return False
        change, line = self._there[node] - self._here[node], slope * self._noise
        promises = []
        for wanted in (change, line):
            size = float((wanted.double() ** 2).sum())
            (gradient,) = torch.autograd.grad(value, x, wanted.to(value.dtype), retain_graph=True, allow_unused=True)
            promised = 0.0 if gradient is None else float((gradient.double() * self._noise.double()).sum())
            promises.append(promised / size if size else 0.0)
        return any(0.7 < promise < 1.3 for promise in promises)

    def peeled(self) -> str | None:
        """The first map that draws the same labels as the output everywhere, if another than the output does."""
        raw, there = self._here.get(self._raw), self._there.get(self._raw)
        if raw is None or there is None:
            return None
        draw = _drawing(raw.shape[1], self._gives)
        # Saturated classes are level with each other, and which of them is drawn says nothing.
        drawn = [(draw(each), _is_clear(each)) for each in (raw, there)]
        if any(not bool(clear.any()) or bool((labels[clear] == labels[clear][0]).all()) for labels, clear in drawn):
            return None
        own = _drawing(raw.shape[1], "logits")
        for node in self.order:
            if node is self._raw:
                return None
            here = self._here.get(node)
            if here is None or here.shape != raw.shape or not here.is_floating_point():
                continue
            if all(
                bool((own(value) == labels)[clear].all())
                for value, (labels, clear) in zip((here, self._there[node]), drawn, strict=True)
            ):
                return str(node.name)
        return None


def _copied(graph: fx.GraphModule) -> fx.GraphModule:
    """The same nodes once more, and the same weights in memory once."""
    return fx.GraphModule(graph, deepcopy(graph.graph))


def _value_of(graph: fx.GraphModule, node: fx.Node, x: Tensor) -> Tensor:
    """The value of a node for x, with its gradient."""
    part = _copied(graph)
    (output,) = (each for each in part.graph.nodes if each.op == "output")
    output.args = (next(each for each in part.graph.nodes if each.name == node.name),)
    part.graph.eliminate_dead_code()
    part.recompile()
    found: Tensor = part(x)
    return found


def _drawing(channels: int, gives: Gives) -> Callable[[Tensor], Tensor]:
    """What labels a network's output stands for."""
    if channels > 1:
        return lambda raw: raw.argmax(dim=1)
    border = 0.5 if gives == "probabilities" else 0.0
    return lambda raw: raw > border


def _is_clear(raw: Tensor) -> Tensor:
    """Where one class is above the others: like labels."""
    if raw.shape[1] == 1:
        return torch.ones_like(raw, dtype=torch.bool)
    first, second = raw.topk(2, dim=1).values.unbind(1)
    return first > second


def _operator(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", node.name))


def _is_suspect(node: fx.Node) -> bool:
    """Whether what an operator does may say nothing of its slope."""
    name = _operator(node)
    return name in _WAVES or name in _DETACHED or (name in _BOUNDS and _is_two_sided(node)) or _is_stepped(node)


def _is_stepped(node: fx.Node) -> bool:
    """Whether its slope is 0 wherever it has one."""
    name = _operator(node)
    return name in _STEPS or (name == "div" and bool(node.kwargs.get("rounding_mode"))) or _from_integers(node)


def _sources(node: fx.Node) -> list[fx.Node]:
    """What a node is made from: its inputs, and the floating-point value that they came from."""
    origin = _origin(node)
    return [*node.all_input_nodes, *([] if origin is None else [origin])]


def _is_two_sided(node: fx.Node) -> bool:
    if _operator(node) not in ("clamp", "clip"):
        return True
    bounds = [*node.args[1:], *(node.kwargs.get(key) for key in ("min", "max"))]
    return sum(bound is not None for bound in bounds) == 2


def _from_integers(node: fx.Node) -> bool:
    """Whether a node of floating-point values is made from integers or truth values alone."""
    parents = [_is_floating(parent) for parent in node.all_input_nodes]
    return bool(parents) and all(floating is False for floating in parents)


def _is_floating(node: fx.Node) -> bool | None:
    """Whether its values are floating-point numbers; None where that was not recorded."""
    dtype = getattr(node.meta.get("tensor_meta"), "dtype", None)
    return None if dtype is None else bool(dtype.is_floating_point)


def _origin(node: fx.Node) -> fx.Node | None:
    """The first input of a node; behind integers and truth values, the floating-point value that they came from."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if node.op == "placeholder" or _is_floating(node):
            return node
    return None


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """(slope of the straight line that fits y over x, share of y's variance that it explains)."""
    x, y = (each.double() - each.double().mean() for each in (x, y))
    xx, yy, xy = float((x * x).sum()), float((y * y).sum()), float((x * y).sum())
    if xx == 0 or yy == 0:
        return 0.0, 0.0
    return xy / xx, xy * xy / (xx * yy)
