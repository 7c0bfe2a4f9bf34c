"""A network as a graph: run once under `make_fx`, which records the ATen operations that it is made of.

A loaded TorchScript module takes no hooks and cannot be traced symbolically. In the graph every intermediate value is a
node, so the *tap* (the layer whose features the attack compares) is one more output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mafl_cli.errors import ModelError
from mafl_cli.network.reasons import REFUSALS


@dataclass(frozen=True)
class Tap:
    """A layer whose features the attack compares: node name, (F, *coarse) of its features, weight among several."""

    name: str
    shape: tuple[int, ...]
    weight: float = 1.0


class NoLayer(ModelError):
    """A tap was asked for that the network does not have."""


Gives = Literal["logits", "softmax", "sigmoid", "probabilities"]


@dataclass(frozen=True)
class Lifted:
    """A network as a graph for one input shape: (B, C, *spatial) -> (raw segmentation, features of each tap).

    gives: what the network's own output is. For a last "softmax" or "sigmoid" the graph returns its argument.
    decides: whether the network looks at values of its input to decide what to compute (an `if`, a loop, a size), or at
    what chance has drawn; then the graph is what it did when it was recorded.
    random: whether it has random operators.
    """

    graph: fx.GraphModule
    gives: Gives
    taps: tuple[Tap, ...]
    decides: bool = False
    random: bool = False

    def as_given(self, raw: Tensor) -> Tensor:
        """What the network itself gives, from what the graph returns."""
        if self.gives == "softmax":
            return torch.softmax(raw, dim=1)
        return torch.sigmoid(raw) if self.gives == "sigmoid" else raw


def leaves(output: Any) -> list[Any]:
    """The leaves of a nested tuple, list or dict, in order."""
    if isinstance(output, dict):
        return [leaf for value in output.values() for leaf in leaves(value)]
    if isinstance(output, (tuple, list)):
        return [leaf for value in output for leaf in leaves(value)]
    return [output]


@dataclass(frozen=True)
class Output:
    """Which leaf of the network's output is the segmentation, and how it lies on the input's grid.

    bounded: whether its values could be probabilities. overlapping: regions, each with a logit of its own.
    margin: voxels that valid convolutions lose along each axis, both ends together. coarse: how many input voxels one
    of the output is wide.
    """

    leaf: int
    bounded: bool
    overlapping: bool = False
    margin: tuple[int, ...] = ()
    coarse: int = 1

    def pick(self, graph: fx.GraphModule) -> tuple[fx.Node, Gives]:
        """The node that holds the segmentation, before its softmax or sigmoid if that is the last step.

        Taking the step back is exact, where a logarithm of float32 probabilities has no gradient at sure voxels.
        """
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        node = leaves(output.args[0])[self.leaf]
        assert isinstance(node, fx.Node)
        gives = _ACTIVATIONS.get(node.target)
        # A softmax over an image axis is no class probability.
        if gives == "sigmoid" or (gives == "softmax" and node.args[1] in (1, 1 - len(shape_of(node) or ()))):
            before = node.args[0]
            assert isinstance(before, fx.Node)
            return before, gives
        # A convolution has no bounds: where its values lie is chance.
        return node, "probabilities" if self.bounded and "convolution" not in str(node.target) else "logits"


_ACTIVATIONS: dict[Any, Gives] = {
    torch.ops.aten._softmax.default: "softmax",
    torch.ops.aten.softmax.int: "softmax",
    torch.ops.aten.sigmoid.default: "sigmoid",
}


# --- making it ----------------------------------------------------------------------------------------------------


def lift(
    module: torch.nn.Module,
    x: Tensor,
    output: Output,
    taps: Sequence[tuple[str, float]],
    name: str,
    *,
    functional: bool,
) -> Lifted:
    """The graph of a network for inputs of the shape of `x`.

    Args:
        taps: wanted, see `network.card.read_taps`, with their weights. functional: without operators that work in
        place.
    Raises: what the network raises for such an input; ModelError for a tap that is not there.
    """
    x = x.detach().clone()
    graph = make_fx(module, _error_on_data_dependent_ops=False)(x)
    _see_through_detach(graph.graph)
    depending = depending_nodes(graph.graph)
    random = [node for node in graph.graph.nodes if _is_random(node)]
    decides = _decides(graph.graph, depending | depending_nodes(graph.graph, random))
    mutating = [node for node in graph.graph.nodes if node in depending and _mutates(node)]
    if mutating:
        _keep_input(graph)
        if functional or any(_reaches_others(node) for node in mutating):
            graph, whole = _without_mutation(graph, x)
            # What it keeps from one input to the next cannot be taken out: only the file itself knows.
            decides = decides or not whole
    raw, gives = output.pick(graph)
    nodes = [_find_tap(graph.graph, raw, x, wanted, name) for wanted, _ in taps]
    found = tuple(
        Tap(node.name, tuple(shape_of(node) or ())[1:], weight) for node, (_, weight) in zip(nodes, taps, strict=True)
    )
    _set_outputs(graph, [raw, *nodes])
    # What nothing comes of is gone by now.
    return Lifted(graph, gives, found, decides, any(map(_is_random, graph.graph.nodes)))


def _see_through_detach(graph: fx.Graph) -> None:
    """Take out what cuts the gradient off and changes no value: the graph is attacked as what it computes.

    A network whose cut is its gradient (a straight-through estimator) is attacked through its file; see
    `gradient.choose`.
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None


def _mutates(node: fx.Node) -> bool:
    schema = _schema(node)
    return schema is not None and schema.is_mutable


def _is_view(node: fx.Node) -> bool:
    """Whether it gives another tensor's memory."""
    schema = _schema(node)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)


def _reaches_others(node: fx.Node) -> bool:
    """Whether a node that works in place may change more than the one value whose place it takes."""
    changed = node.args[0] if node.args else None
    if (
        not isinstance(changed, fx.Node)
        or changed.op != "call_function"
        or (_is_view(changed) and not _mutates(changed))
    ):
        return True
    return any(user is not node for user in changed.users)


def _keep_input(graph: fx.GraphModule) -> None:
    """Let the graph work on a copy of its input: the caller's must stay, and a leaf takes no change in place."""
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            with graph.graph.inserting_after(node):
                copy = graph.graph.call_function(torch.ops.aten.clone.default, (node,))
            copy.meta = dict(node.meta)
            node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)


def _copied(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """`aten.copy`, which has no gradient of its own."""
    return source.to(self.dtype).expand(self.shape).clone()


def _without_mutation(graph: fx.GraphModule, x: Tensor) -> tuple[fx.GraphModule, bool]:
    """The same graph with every operator in place written as one that is not, and whether that could be done."""
    graph.recompile()
    try:
        rewritten = make_fx(
            torch.func.functionalize(graph, remove="mutations"),
            decomposition_table={torch.ops.aten.copy.default: _copied},
            _error_on_data_dependent_ops=False,
        )(x)
    except REFUSALS:
        return graph, False
    # What is changed in place beside the input (sizes, as traces hold them) takes no gradient with it.
    return rewritten, not any(map(_mutates, depending_nodes(rewritten.graph)))


_LOOKS = {
    getattr(torch.ops.aten, name)
    for name in (
        "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "masked_select",
        "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount", "repeat_interleave",
    )
    if hasattr(torch.ops.aten, name)
}  # fmt: skip


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def depending_nodes(graph: fx.Graph, on: Sequence[fx.Node] = ()) -> set[fx.Node]:
    """The input, or other nodes, and every node that depends on it."""
    depending: set[fx.Node] = set(on)
    for node in graph.nodes:
        if (node.op == "placeholder" and not on) or any(parent in depending for parent in node.all_input_nodes):
            depending.add(node)
    return depending


def _decides(graph: fx.Graph, depending: set[fx.Node]) -> bool:
    """Whether values of the input decide what is computed."""
    return any(
        isinstance(node.target, torch._ops.HigherOrderOperator)
        or (node in depending and getattr(node.target, "overloadpacket", None) in _LOOKS)
        for node in graph.nodes
    )


_NAMED = 12
"""Layers that a message names at most; `mafl inspect` lists all."""


# --- the tap ------------------------------------------------------------------------------------------------------


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a node's value, as it was recorded; None where it has none."""
    meta = node.meta.get("tensor_meta")
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def feature_nodes(graph: fx.Graph, x: Tensor) -> list[tuple[fx.Node, tuple[int, ...]]]:
    """Nodes holding a (B, F, *coarse) floating-point map that depends on the input, in order, with their shapes."""
    depending = depending_nodes(graph)
    found = []
    for node in graph.nodes:
        shape = shape_of(node)
        if (
            node in depending
            and node.op == "call_function"
            and shape is not None
            and len(shape) == x.ndim
            and shape[0] == len(x)
            and node.meta["tensor_meta"].dtype.is_floating_point
        ):
            found.append((node, shape))
    return found


def _find_tap(graph: fx.Graph, raw: fx.Node, x: Tensor, wanted: str, name: str) -> fx.Node:
    """The node called `wanted`; for "auto" the last one at the coarsest resolution before the way up begins.

    A network that never lowers the resolution has no bottleneck: there the input of its last convolution, the
    deepest features, is taken.
    """
    nodes = feature_nodes(graph, x)
    if wanted != "auto":
        for node, _ in nodes:
            if node.name == wanted:
                return node
        names = [node.name for node, _ in nodes]
        shown = ", ".join(names if len(names) <= _NAMED else [*names[: _NAMED // 2], "...", *names[-_NAMED // 2 :]])
        raise NoLayer(f"{name}: has no layer called {wanted!r}; it has {shown}.")
    full = math.prod(x.shape[2:])
    convolutions = [node for node, _ in nodes if "convolution" in str(node.target)]
    # Transformers hold tokens with the channels last: only what a convolution takes or gives is surely a map.
    ends = [end for node in convolutions for end in (node, node.args[0]) if isinstance(end, fx.Node)]
    maps = {shape[2:] for shape in map(shape_of, ends) if shape}
    # Gates of squeeze-and-excite blocks pool to a single voxel: channel statistics, not a feature map.
    sizes = {math.prod(shape) for shape in maps if math.prod(shape) > 1} or {full}
    if min(sizes) < full:
        coarsest = [node for node, shape in nodes if shape[2:] in maps and math.prod(shape[2:]) == min(sizes)]
        # A concatenation there joins a skip connection, which is already part of the way up.
        return ([node for node in coarsest if "cat" not in str(node.target)] or coarsest)[-1]
    known = {node for node, _ in nodes}
    if convolutions and convolutions[-1].args[0] in known:
        tap = convolutions[-1].args[0]
        assert isinstance(tap, fx.Node)
        return tap
    return raw


def _set_outputs(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
    """Make the graph return these values and nothing else."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    output.args = (tuple(nodes),)
    graph.graph.eliminate_dead_code()
    graph.recompile()
