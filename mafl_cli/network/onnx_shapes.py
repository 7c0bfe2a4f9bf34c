"""ONNX operators in PyTorch: what gives values another shape or place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.network.onnx_operators import Call, Operator


def _reshape(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    shape = call.numbers("shape", 1) or []
    if not call.attribute("allowzero", 0):
        shape = [x.shape[place] if size == 0 else size for place, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    axis = call.attribute("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    axes = call.numbers("axes", 1)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
    gone = {axis % x.ndim for axis in axes}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in gone])


def _unsqueeze(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    axes = call.numbers("axes", 1) or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    return x.permute(call.attribute("perm") or list(range(x.ndim))[::-1])


def _split(call: Call) -> tuple[Tensor, ...]:
    x: Tensor = call.input(0)
    axis, sizes = call.attribute("axis", 0), call.numbers("split", 1)
    if sizes is None:
        each = -(-x.shape[axis] // (call.attribute("num_outputs") or call.outputs))
        return x.split(each, axis)
    return x.split(sizes, axis)


def _slice(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    starts, ends = call.numbers("starts", 1) or [], call.numbers("ends", 2) or []
    axes = call.numbers("axes", 3) or list(range(len(starts)))
    steps = call.numbers("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken = range(x.shape[axis])[slice(start, end if step > 0 or end > -x.shape[axis] - 1 else None, step)]
        if step < 0:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))
        else:
            whole: list[slice] = [slice(None)] * x.ndim
            whole[axis] = slice(taken.start, taken.stop, taken.step)
            x = x[tuple(whole)]
    return x


def indices(values: NDArray[Any], size: int, device: torch.device) -> Tensor:
    """Indices, negative ones counted from the end."""
    whole = np.asarray(values, dtype=np.int64)
    return torch.from_numpy(np.where(whole < 0, whole + size, whole)).to(device)


def _gather(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    axis = call.attribute("axis", 0) % x.ndim
    chosen = indices(call.input(1), x.shape[axis], x.device)
    taken = x.index_select(axis, chosen.flatten())
    return taken.reshape(*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :])


def _gather_elements(call: Call) -> Tensor:
    x, axis = call.input(0), call.attribute("axis", 0)
    return torch.gather(x, axis, indices(call.input(1), x.shape[axis], x.device))


def _gather_nd(call: Call) -> Tensor:
    x, places = call.input(0), np.asarray(call.input(1), dtype=np.int64)
    if call.attribute("batch_dims", 0):
        raise ValueError("its operator GatherND has batch_dims, which is not known here")
    chosen: Tensor = x[tuple(indices(places[..., n], x.shape[n], x.device) for n in range(places.shape[-1]))]
    return chosen


def _scatter_nd(call: Call) -> Tensor:
    x, places, updates = call.given
    places = np.asarray(places, dtype=np.int64)
    at = tuple(indices(places[..., n], x.shape[n], x.device) for n in range(places.shape[-1]))
    reduction = call.attribute("reduction", "none")
    if reduction not in ("none", "add"):
        raise ValueError(f"its operator ScatterND has the reduction {reduction}, which is not known here")
    result: Tensor = x.index_put(at, updates, accumulate=reduction == "add")
    return result


def _scatter_elements(call: Call) -> Tensor:
    x, places, updates = call.given
    axis, reduction = call.attribute("axis", 0), call.attribute("reduction", "none")
    at = indices(places, x.shape[axis], x.device)
    if reduction == "none":
        return torch.scatter(x, axis, at, updates)
    kinds = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return torch.scatter_reduce(x, axis, at, updates, kinds[reduction])


def _depth_to_space(call: Call) -> Tensor:
    x, block = call.input(0), call.attribute("blocksize")
    n, c, h, w = x.shape
    if call.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(call: Call) -> Tensor:
    x, block = call.input(0), call.attribute("blocksize")
    n, c, h, w = x.shape
    order = (0, 1, 3, 5, 2, 4) if call.attribute("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(*order)
    return parts.reshape(n, c * block**2, h // block, w // block)


def _expand(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    return x.expand(torch.broadcast_shapes(x.shape, call.numbers("shape", 1) or []))


def _trilu(call: Call) -> Tensor:
    x, shift = call.input(0), int(call.number("k", 1) or 0)
    return torch.triu(x, shift) if call.attribute("upper", 1) else torch.tril(x, shift)


SHAPES: Mapping[str, Operator] = {
    "Reshape": Operator(_reshape, plain=(1,)),
    "Flatten": Operator(_flatten),
    "Squeeze": Operator(_squeeze, plain=(1,)),
    "Unsqueeze": Operator(_unsqueeze, plain=(1,)),
    "Transpose": Operator(_transpose),
    "Concat": Operator(lambda call: torch.cat(list(call.given), call.attribute("axis"))),
    "Split": Operator(_split, plain=(1,)),
    "Slice": Operator(_slice, plain=(-1,)),
    "Gather": Operator(_gather, plain=(1,)),
    "GatherElements": Operator(_gather_elements, plain=(1,)),
    "GatherND": Operator(_gather_nd, plain=(1,)),
    "ScatterND": Operator(_scatter_nd, plain=(1,)),
    "ScatterElements": Operator(_scatter_elements, plain=(1,)),
    "DepthToSpace": Operator(_depth_to_space),
    "SpaceToDepth": Operator(_space_to_depth),
    "Expand": Operator(_expand, plain=(1,)),
    "Tile": Operator(lambda call: call.input(0).repeat(call.numbers("repeats", 1)), plain=(1,)),
    "Trilu": Operator(_trilu, plain=(1,)),
}
