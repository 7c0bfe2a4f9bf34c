"""ONNX operators in PyTorch: arithmetic and reductions; `onnx_shapes` moves values about, and `onnx_layers` has layers.

Each follows https://onnx.ai/onnx/operators/ in all versions since opset 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """One use of an operator. given: inputs, None for those left out. outputs: how many are asked for."""

    given: Sequence[Any]
    attributes: Mapping[str, Any]
    version: int
    outputs: int

    def input(self, place: int) -> Any:
        """An input; None for one that is left out."""
        return self.given[place] if place < len(self.given) else None

    def attribute(self, name: str, otherwise: Any = None) -> Any:
        """An attribute; text as str."""
        value = self.attributes.get(name, otherwise)
        return value.decode() if isinstance(value, bytes) else value

    def numbers(self, name: str, place: int) -> list[int] | None:
        """Whole numbers that older versions have as an attribute, and newer ones as an input."""
        value = self.input(place)
        value = self.attributes.get(name) if value is None else value
        return None if value is None else [int(each) for each in np.ravel(value)]

    def number(self, name: str, place: int) -> float | None:
        """The same of one number."""
        value = self.input(place)
        value = self.attributes.get(name) if value is None else value
        return None if value is None else float(np.ravel(value)[0])


@dataclass(frozen=True)
class Operator:
    """compute: a call -> its result, or results. plain: inputs that are arrays of sizes, indices or bounds; a negative
    number is that input and all behind it."""

    compute: Callable[[Call], Any]
    plain: tuple[int, ...] = ()

    def is_plain(self, place: int) -> bool:
        """Whether an input is such an array."""
        return place in self.plain or any(each < 0 and place >= -each for each in self.plain)


def one(function: Callable[..., Tensor]) -> Operator:
    """An operator of one tensor without attributes."""
    return Operator(lambda call: function(call.input(0)))


def two(function: Callable[..., Tensor]) -> Operator:
    """An operator of two tensors, which broadcast."""
    return Operator(lambda call: function(call.input(0), call.input(1)))


def several(function: Callable[..., Tensor]) -> Operator:
    """An operator of one tensor or more, taken one after the other."""

    def compute(call: Call) -> Tensor:
        result: Tensor = call.given[0]
        for other in call.given[1:]:
            result = function(result, other)
        return result

    return Operator(compute)


# --- arithmetic ---------------------------------------------------------------------------------------------------


def _div(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _mod(call: Call) -> Tensor:
    x, y = call.given
    return torch.fmod(x, y) if call.attribute("fmod", 0) else torch.remainder(x, y)


def _mean(call: Call) -> Tensor:
    total: Tensor = sum(call.given[1:], call.given[0])
    return total / len(call.given)


def _clip(call: Call) -> Tensor:
    low, high = call.number("min", 1), call.number("max", 2)
    x: Tensor = call.input(0)
    return x if low is None and high is None else x.clamp(low, high)


def _is_inf(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    above, below = (bool(call.attribute(f"detect_{sign}", 1)) for sign in ("positive", "negative"))
    return (torch.isposinf(x) & above) | (torch.isneginf(x) & below)


def _prelu(call: Call) -> Tensor:
    x, slope = call.given
    return torch.where(x < 0, slope * x, x)


def _softplus(x: Tensor) -> Tensor:
    # torch's own is linear above 20, where float32 sees no difference.
    return F.softplus(x)


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def compute(call: Call) -> Tensor:
        x: Tensor = call.input(0)
        if call.version >= 13:
            return function(x, call.attribute("axis", -1))
        # Before, all axes from this one on were one.
        axis = call.attribute("axis", 1) % x.ndim
        return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).view(x.shape)

    return Operator(compute)


def _gemm(call: Call) -> Tensor:
    a, b, c = call.input(0), call.input(1), call.input(2)
    a = a.transpose(0, 1) if call.attribute("transA", 0) else a
    b = b.transpose(0, 1) if call.attribute("transB", 0) else b
    product: Tensor = call.attribute("alpha", 1.0) * (a @ b)
    return product if c is None else product + call.attribute("beta", 1.0) * c


def _cast(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    return x.to(torch_type(call.attribute("to")))


def torch_type(number: int) -> torch.dtype:
    """The type of PyTorch for one of ONNX. Raises ValueError for those that PyTorch does not have."""
    if number == onnx.TensorProto.BFLOAT16:
        return torch.bfloat16
    try:
        return torch.from_numpy(np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(number))).dtype
    except (TypeError, KeyError) as exc:
        raise ValueError(f"it holds numbers of a type that PyTorch does not have ({number})") from exc


# --- reductions ---------------------------------------------------------------------------------------------------

_Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduce(function: _Reduction) -> Operator:
    def compute(call: Call) -> Tensor:
        x: Tensor = call.input(0)
        axes = call.numbers("axes", 1)
        if not axes:
            if call.attribute("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(call.attribute("keepdims", 1)))

    return Operator(compute, plain=(1,))


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extremum(function: Callable[..., Tensor]) -> Operator:
    def compute(call: Call) -> Tensor:
        x, axis = call.input(0), call.attribute("axis", 0)
        keep = bool(call.attribute("keepdims", 1))
        if call.attribute("select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
        return function(x, dim=axis, keepdim=keep)

    return Operator(compute)


def _topk(call: Call) -> tuple[Tensor, Tensor]:
    count = int(np.ravel(call.input(1))[0])
    values, indices = torch.topk(call.input(0), count, call.attribute("axis", -1), bool(call.attribute("largest", 1)))
    return values, indices


def _cumsum(call: Call) -> Tensor:
    x, axis = call.input(0), int(np.ravel(call.input(1))[0])
    x = x.flip(axis) if call.attribute("reverse", 0) else x
    total: Tensor = x.cumsum(axis)
    total = total - x if call.attribute("exclusive", 0) else total
    return total.flip(axis) if call.attribute("reverse", 0) else total


_SELU = (1.67326319217681884765625, 1.05070102214813232421875)

_OF_ONE: Mapping[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan,     "Atanh": torch.atanh, "Ceil": torch.ceil,
    "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
    "HardSwish": F.hardswish, "Identity": lambda x: x, "IsNaN": torch.isnan,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": _softplus, "Softsign": F.softsign,
    "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip
_OF_TWO: Mapping[str, Callable[..., Tensor]] = {
    "Add": torch.add, "And": torch.logical_and, "Div": _div, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "MatMul": torch.matmul,
    "Mul": torch.mul, "Or": torch.logical_or, "Pow": torch.pow, "Sub": torch.sub, "Xor": torch.logical_xor,
}  # fmt: skip
_OF_SEVERAL: Mapping[str, Callable[..., Tensor]] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}

OPERATORS: Mapping[str, Operator] = {
    **{name: one(each) for name, each in _OF_ONE.items()},
    **{name: two(each) for name, each in _OF_TWO.items()},
    **{name: several(each) for name, each in _OF_SEVERAL.items()},
    "Mean": Operator(_mean),
    "Mod": Operator(_mod),
    "IsInf": Operator(_is_inf),
    "Clip": Operator(_clip, plain=(1, 2)),
    "PRelu": Operator(_prelu),
    "LeakyRelu": Operator(lambda call: F.leaky_relu(call.input(0), call.attribute("alpha", 0.01))),
    "Elu": Operator(lambda call: F.elu(call.input(0), call.attribute("alpha", 1.0))),
    "Celu": Operator(lambda call: F.celu(call.input(0), call.attribute("alpha", 1.0))),
    "Selu": Operator(
        lambda call: call.attribute("gamma", _SELU[1]) * F.elu(call.input(0), call.attribute("alpha", _SELU[0]))
    ),
    "ThresholdedRelu": Operator(lambda call: F.threshold(call.input(0), call.attribute("alpha", 1.0), 0.0)),
    "HardSigmoid": Operator(
        lambda call: (call.attribute("alpha", 0.2) * call.input(0) + call.attribute("beta", 0.5)).clamp(0, 1)
    ),
    "Swish": Operator(lambda call: call.input(0) * torch.sigmoid(call.attribute("alpha", 1.0) * call.input(0))),
    "Gelu": Operator(lambda call: F.gelu(call.input(0), approximate=call.attribute("approximate", "none"))),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Gemm": Operator(_gemm),
    "Einsum": Operator(lambda call: torch.einsum(call.attribute("equation"), *call.given)),
    "Cast": Operator(_cast),
    "CastLike": Operator(lambda call: call.input(0).to(call.input(1).dtype)),
    "Where": Operator(lambda call: torch.where(*call.given)),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_prod),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ArgMax": _extremum(torch.argmax),
    "ArgMin": _extremum(torch.argmin),
    "TopK": Operator(_topk, plain=(1,)),
    "CumSum": Operator(_cumsum, plain=(1,)),
}
