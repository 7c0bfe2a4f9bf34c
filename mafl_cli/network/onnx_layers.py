"""ONNX operators in PyTorch: convolutions, pooling, norms, padding and resampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.network.onnx_operators import Call, Operator

_CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX_POOLS: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_MEAN_POOLS: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _sizes(call: Call, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    ones = [1] * len(kernel)
    return list(call.attribute("strides") or ones), list(call.attribute("dilations") or ones)


def _pads(call: Call, x: Tensor, kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels to be put before and behind each spatial axis."""
    count = len(kernel)
    strides, dilations = _sizes(call, kernel)
    auto = call.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, edge, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + (edge - 1) * dilation + 1 - size, 0)
            less = total // 2
            pads.append((less, total - less) if auto == "SAME_UPPER" else (total - less, less))
        return pads
    stated = list(call.attribute("pads") or ()) if auto == "NOTSET" else []
    stated = stated or [0] * 2 * count
    return list(zip(stated[:count], stated[count:], strict=True))


def _for_torch(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As torch's pad wants it: the last axis first."""
    return [amount for pair in reversed(pads) for amount in pair]


def _even(pads: Sequence[tuple[int, int]]) -> bool:
    return all(before == behind for before, behind in pads)


def _conv(call: Call) -> Tensor:
    x, weight, bias = call.input(0), call.input(1), call.input(2)
    kernel = weight.shape[2:]
    strides, dilations = _sizes(call, kernel)
    pads = _pads(call, x, kernel)
    if _even(pads):
        padding = [before for before, _ in pads]
    else:
        x, padding = F.pad(x, _for_torch(pads)), [0] * len(kernel)
    found: Tensor = _CONVOLUTIONS[len(kernel) - 1](
        x, weight, bias, strides, padding, dilations, call.attribute("group", 1)
    )
    return found


def _conv_transpose(call: Call) -> Tensor:
    x, weight, bias = call.input(0), call.input(1), call.input(2)
    kernel = weight.shape[2:]
    strides, dilations = _sizes(call, kernel)
    extra = list(call.attribute("output_padding") or [0] * len(kernel))
    pads = list(_pads(call, x, kernel)) if call.attribute("auto_pad", "NOTSET") == "NOTSET" else [(0, 0)] * len(kernel)
    shape = call.attribute("output_shape")
    auto = call.attribute("auto_pad", "NOTSET")
    if shape is None and auto.startswith("SAME"):
        shape = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    if shape is not None:
        for axis, wanted in enumerate(shape[-len(kernel) :]):
            full = strides[axis] * (x.shape[2 + axis] - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1
            extra[axis] += max(wanted - full, 0)
            total = max(full - wanted, 0)
            less = total // 2
            pads[axis] = (less, total - less) if auto == "SAME_UPPER" else (total - less, less)
    even = _even(pads)
    padding = [before for before, _ in pads] if even else [0] * len(kernel)
    found: Tensor = _TRANSPOSED[len(kernel) - 1](
        x, weight, bias, strides, padding, extra, call.attribute("group", 1), dilations
    )
    if even:
        return found
    inside: Any = (..., *(slice(b, n - a) for (b, a), n in zip(pads, found.shape[2:], strict=True)))
    return found[inside]


def _max_pool(call: Call) -> Tensor:
    if call.outputs > 1:
        raise ValueError("its operator MaxPool gives indices, which is not known here")
    x, kernel = call.input(0), call.attribute("kernel_shape")
    strides, dilations = _sizes(call, kernel)
    pads = _pads(call, x, kernel)
    padding = [before for before, _ in pads]
    if not _even(pads) or any(2 * pad > edge for pad, edge in zip(padding, kernel, strict=True)):
        x, padding = F.pad(x, _for_torch(pads), value=-math.inf), [0] * len(kernel)
    found: Tensor = _MAX_POOLS[len(kernel) - 1](
        x, kernel, strides, padding, dilations, bool(call.attribute("ceil_mode", 0))
    )
    return found


def _mean_pool(call: Call) -> Tensor:
    x, kernel = call.input(0), call.attribute("kernel_shape")
    strides, dilations = _sizes(call, kernel)
    if any(dilation != 1 for dilation in dilations):
        raise ValueError("its operator AveragePool has dilations, which is not known here")
    pads = _pads(call, x, kernel)
    pool, ceil = _MEAN_POOLS[len(kernel) - 1], bool(call.attribute("ceil_mode", 0))
    whole = bool(call.attribute("count_include_pad", 0))
    padding = [before for before, _ in pads]
    if _even(pads) and all(2 * pad <= edge for pad, edge in zip(padding, kernel, strict=True)):
        even: Tensor = pool(x, kernel, strides, padding, ceil, whole)
        return even
    around = _for_torch(pads)
    mean: Tensor = pool(F.pad(x, around), kernel, strides, 0, ceil)
    return mean if whole else mean / pool(F.pad(torch.ones_like(x[:1, :1]), around), kernel, strides, 0, ceil)


def _over_space(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _batch_norm(call: Call) -> Tensor:
    if call.attribute("training_mode", 0):
        raise ValueError("its operator BatchNormalization is in training mode; export the network in eval mode")
    x, scale, bias, mean, var = call.given
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, call.attribute("epsilon", 1e-5))


def _instance_norm(call: Call) -> Tensor:
    x, scale, bias = call.given
    # As its formula, which one voxel has an answer to as well.
    return _normalised(x, _over_space(x), call.attribute("epsilon", 1e-5)) * _along(scale, x) + _along(bias, x)


def _normalised(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    variance, mean = torch.var_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + epsilon)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return values.view(1, -1, *(1,) * (like.ndim - 2))


def _group_norm(call: Call) -> Tensor:
    x, scale, bias = call.given
    groups = call.attribute("num_groups")
    if call.version < 21:  # One for each group then.
        scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.attribute("epsilon", 1e-5))


def _layer_norm(call: Call) -> tuple[Tensor, ...]:
    x, scale, bias = call.input(0), call.input(1), call.input(2)
    axes = list(range(call.attribute("axis", -1) % x.ndim, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + call.attribute("epsilon", 1e-5))
    normal = (x - mean) * inverse * scale
    return (normal if bias is None else normal + bias), mean, inverse


def _rms_norm(call: Call) -> Tensor:
    x, scale = call.given
    axes = list(range(call.attribute("axis", -1) % x.ndim, x.ndim))
    mean: Tensor = x.square().mean(axes, keepdim=True)
    return x / torch.sqrt(mean + call.attribute("epsilon", 1e-5)) * scale


def _lp_norm(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    length = torch.linalg.vector_norm(x, call.attribute("p", 2), call.attribute("axis", -1), True)
    return x / torch.where(length == 0, 1, length)


def _lrn(call: Call) -> Tensor:
    names = (("size", None), ("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    size, alpha, beta, bias = (call.attribute(*name) for name in names)
    return F.local_response_norm(call.input(0), size, alpha, beta, bias)


def _mean_variance(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    variance, mean = torch.var_mean(x, call.attribute("axes") or [0, 2, 3], correction=0, keepdim=True)
    return (x - mean) / (torch.sqrt(variance) + 1e-9)


# --- padding and resampling ---------------------------------------------------------------------------------------


def _taken(x: Tensor, axis: int, places: Tensor) -> Tensor:
    return x.index_select(axis, places.to(x.device))


def _pad(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    stated, axes = call.numbers("pads", 1) or [], call.numbers("axes", 3)
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    before, behind = stated[: len(axes)], stated[len(axes) :]
    pads = [(0, 0)] * x.ndim
    for axis, *pair in zip(axes, before, behind, strict=True):
        pads[axis] = (pair[0], pair[1])
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        return F.pad(x, _for_torch(pads), value=call.number("value", 2) or 0.0)
    for axis, (first, last) in enumerate(pads):
        if (first, last) == (0, 0):
            continue
        size = x.shape[axis]
        places = torch.arange(-first, size + last)
        if mode == "edge":
            places = places.clamp(0, size - 1)
        elif mode == "wrap":
            places = places % size
        else:
            period = max(2 * (size - 1), 1)
            places = (size - 1) - ((places % period) - (size - 1)).abs()
        x = _taken(x, axis, places)
    return x


def _resize(call: Call) -> Tensor:
    x: Tensor = call.input(0)
    if call.version < 11:  # Resize 10 and Upsample: x, scales.
        scales, sizes = call.input(1), None
        scales = call.attribute("scales") if scales is None else scales
        coordinates, rounding = "asymmetric", "floor"
    else:
        scales, sizes = call.input(2), call.input(3)
        coordinates = call.attribute("coordinate_transformation_mode", "half_pixel")
        rounding = call.attribute("nearest_mode", "round_prefer_floor")
    if call.attribute("antialias", 0) or call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError("its operator Resize keeps ratios or smooths edges (antialias), which is not known here")
    axes = call.attribute("axes") or list(range(x.ndim))
    factors, wanted = [1.0] * x.ndim, list(x.shape)
    for place, axis in enumerate(axes):
        if sizes is not None and np.size(sizes):
            wanted[axis] = int(np.ravel(sizes)[place])
            factors[axis] = wanted[axis] / x.shape[axis]
        else:
            factors[axis] = float(np.ravel(scales)[place])
            wanted[axis] = math.floor(x.shape[axis] * factors[axis])
    mode = call.attribute("mode", "nearest")
    quick = _interpolated(x, factors, wanted, mode, coordinates, rounding)
    if quick is not None:
        return quick
    for axis, (factor, size) in enumerate(zip(factors, wanted, strict=True)):
        if size != x.shape[axis] or factor != 1:
            x = _resized(x, axis, _positions(x.shape[axis], size, factor, coordinates), mode, rounding, call)
    return x


def _interpolated(
    x: Tensor, factors: Sequence[float], wanted: Sequence[int], mode: str, coordinates: str, rounding: str
) -> Tensor | None:
    """By PyTorch's own interpolation, which is faster, where it is the same."""
    exact = all(abs(f * n - size) < 1e-4 for f, n, size in zip(factors, x.shape, wanted, strict=True))
    if not exact or tuple(wanted[:2]) != tuple(x.shape[:2]) or x.ndim not in (4, 5):
        return None
    size = list(wanted[2:])
    if mode == "nearest" and (coordinates, rounding) == ("asymmetric", "floor"):
        return F.interpolate(x, size, mode="nearest")
    linear = {4: "bilinear", 5: "trilinear"}[x.ndim]
    if mode == "linear" and coordinates == "align_corners" and min(size) > 1:
        return F.interpolate(x, size, mode=linear, align_corners=True)
    if mode == "linear" and (coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and min(size) > 1)):
        return F.interpolate(x, size, mode=linear, align_corners=False)
    return None


def _positions(given: int, wanted: int, factor: float, coordinates: str) -> Tensor:
    """Where the values of an axis are taken from, float64."""
    out = torch.arange(wanted, dtype=torch.float64)
    if coordinates == "align_corners":
        return out * (given - 1) / (wanted - 1) if wanted > 1 else torch.zeros_like(out)
    if coordinates == "asymmetric":
        return out / factor
    if coordinates == "pytorch_half_pixel" and wanted <= 1:
        return torch.zeros_like(out)
    if coordinates == "half_pixel_symmetric":
        adjusted = wanted / (factor * given)
        return given / 2 * (1 - adjusted) + (out + 0.5) / factor - 0.5
    if coordinates not in ("half_pixel", "pytorch_half_pixel"):
        raise ValueError(f"its operator Resize counts positions by {coordinates}, which is not known here")
    return (out + 0.5) / factor - 0.5


def _resized(x: Tensor, axis: int, positions: Tensor, mode: str, rounding: str, call: Call) -> Tensor:
    last = x.shape[axis] - 1
    if mode == "nearest":
        rounded = {
            "floor": torch.floor,
            "ceil": torch.ceil,
            "round_prefer_floor": lambda p: torch.ceil(p - 0.5),
            "round_prefer_ceil": lambda p: torch.floor(p + 0.5),
        }[rounding](positions)
        return _taken(x, axis, rounded.long().clamp(0, last))
    shape = (-1, *(1,) * (x.ndim - axis - 1))
    if mode == "linear":
        inside = positions.clamp(0, last)
        low = inside.floor().long()
        weight = (inside - low).to(x).view(shape)
        below = _taken(x, axis, low)
        return below + (_taken(x, axis, (low + 1).clamp(max=last)) - below) * weight
    low = positions.floor().long()
    weights = torch.stack(
        [_cubic(positions - (low + shift), call.attribute("cubic_coeff_a", -0.75)) for shift in _TAPS]
    )
    if call.attribute("exclude_outside", 0):
        inside = torch.stack([(low + shift >= 0) & (low + shift <= last) for shift in _TAPS])
        weights = weights * inside / (weights * inside).sum(dim=0)
    parts = (
        _taken(x, axis, (low + shift).clamp(0, last)) * weight.to(x).view(shape)
        for shift, weight in zip(_TAPS, weights, strict=True)
    )
    return sum(parts, torch.zeros((), dtype=x.dtype, device=x.device))


_TAPS = (-1, 0, 1, 2)


def _cubic(distance: Tensor, a: float) -> Tensor:
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _grid_sample(call: Call) -> Tensor:
    x, grid = call.given
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(call.attribute("mode", "linear"), call.attribute("mode"))
    return F.grid_sample(
        x,
        grid,
        mode=mode or "bilinear",
        padding_mode=call.attribute("padding_mode", "zeros"),
        align_corners=bool(call.attribute("align_corners", 0)),
    )


LAYERS: Mapping[str, Operator] = {
    "Conv": Operator(_conv),
    "ConvTranspose": Operator(_conv_transpose),
    "MaxPool": Operator(_max_pool),
    "AveragePool": Operator(_mean_pool),
    "GlobalAveragePool": Operator(lambda call: call.input(0).mean(_over_space(call.input(0)), keepdim=True)),
    "GlobalMaxPool": Operator(lambda call: call.input(0).amax(_over_space(call.input(0)), keepdim=True)),
    "BatchNormalization": Operator(_batch_norm),
    "InstanceNormalization": Operator(_instance_norm),
    "GroupNormalization": Operator(_group_norm),
    "LayerNormalization": Operator(_layer_norm),
    "RMSNormalization": Operator(_rms_norm),
    "LpNormalization": Operator(_lp_norm),
    "LRN": Operator(_lrn),
    "MeanVarianceNormalization": Operator(_mean_variance),
    # In evaluation mode.
    "Dropout": Operator(lambda call: (call.input(0), torch.ones_like(call.input(0), dtype=torch.bool)), plain=(1, 2)),
    "Pad": Operator(_pad, plain=(1, 2, 3)),
    "Resize": Operator(_resize, plain=(1, 2, 3)),
    "Upsample": Operator(_resize, plain=(1,)),
    "GridSample": Operator(_grid_sample),
}
