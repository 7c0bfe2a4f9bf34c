"""Arrays of a caller as tensors, with one sentence for what cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.errors import InputError

Array = NDArray[Any] | Tensor


def image_tensor(values: Array, device: torch.device) -> Tensor:
    """An image: (B, C, *spatial), float32, a copy in C order. Raises InputError for anything else."""
    x = _numbers(values, "image")
    shape = tuple(x.shape)
    if x.ndim not in (4, 5) or not x.numel():
        raise InputError(
            f"`image` must be (B, C, *spatial), with two or three spatial axes and at least one voxel, got {shape}."
        )
    return _finite(x, "image", device)


def image_like(values: Array, like: Tensor, name: str) -> Tensor:
    """An image of the same shape as the attacked one. name: of the parameter. Raises InputError for anything else."""
    x = _numbers(values, name)
    if x.shape != like.shape:
        raise InputError(f"`{name}` must have the shape of the image, {tuple(like.shape)}, got {tuple(x.shape)}.")
    return _finite(x, name, like.device)


def target_tensor(values: Array, device: torch.device) -> Tensor:
    """A target of any shape, int64. Raises InputError unless it holds whole numbers."""
    x = _numbers(values, "target")
    if x.is_floating_point():
        raise InputError("`target` must hold class numbers as integers, got real numbers: convert it first.")
    return x.to(device, torch.int64)


def within_tensor(values: Array, clean: Tensor) -> Tensor:
    """Where voxels may change: bool (B, *spatial). Raises InputError for another shape or type, and for no voxel."""
    x = _numbers(values, "within")
    expected = tuple(clean[:, 0].shape)
    if tuple(x.shape) != expected:
        raise InputError(f"`within` must have the shape (B, *spatial), {expected}, got {tuple(x.shape)}.")
    if x.is_floating_point():
        raise InputError("`within` must be bool or integers, got real numbers: compare it with a threshold first.")
    allowed = x.to(clean.device) != 0
    if not bool(allowed.any()):
        raise InputError("`within` allows no voxel to change: mark at least one.")
    return allowed


def _numbers(values: Array, name: str) -> Tensor:
    """Any real numbers as a tensor; arrays are copied, for PyTorch refuses some byte orders and strides."""
    if isinstance(values, Tensor):
        if values.is_complex() or values.is_quantized or values.layout != torch.strided:
            raise InputError(f"`{name}` must be a dense tensor of real numbers, got {values.dtype}, {values.layout}.")
        return values.detach()
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        what = type(values).__name__ if array.dtype.kind in "OUS" else str(array.dtype)
        raise InputError(f"`{name}` must be a NumPy array or a tensor of real numbers, got {what}.")
    plain = {"b": np.dtype(bool), "f": np.dtype(np.float64 if array.dtype.itemsize > 4 else np.float32)}
    return torch.from_numpy(np.array(array, dtype=plain.get(array.dtype.kind, np.dtype(np.int64)), order="C"))


def _finite(x: Tensor, name: str, device: torch.device) -> Tensor:
    # Not `contiguous`: with one channel it leaves the strides of "channels last", for which there are other kernels.
    x = x.to(device, torch.float32).clone(memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"`{name}` holds NaN, infinite values or values beyond float32: replace them first.")
    return x
