"""What a network takes and gives, found out by trying: dimensions, channels, sizes, and which output it is."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch
from torch import Tensor

from mafl_cli.errors import ModelError
from mafl_cli.network.card import ModelCard
from mafl_cli.network.lifting import Output, leaves
from mafl_cli.network.model_file import ModelFile, attempt
from mafl_cli.network.reasons import TOO_SMALL, is_out_of_memory, meaning

DIVISORS = (1, 2, 4, 8, 16, 32, 64)
_MOST = 2**31
"""Values of one input: more is a mistake in a card, and would take the machine with it."""


def input_kind(file: ModelFile, card: ModelCard, name: str, device: torch.device) -> tuple[int, int]:
    """(spatial dimensions, channels): from the export or the card, else the first convolution, else by trying."""
    module, kernel = file.module, file.kernel
    if file.example is not None:
        dims = len(file.example) - 2
        if dims not in (2, 3):
            raise ModelError(
                f"{name}: takes an input of {dims + 2} axes; "
                "export it for (batch, channel, rows, columns) or (batch, channel, and three axes)."
            )
        if file.example[1] is not None:
            return _stated_kind(dims, file.example[1], card, name)
    stated = len(card.channels) if card.channels else None
    guesses = [(dims, channels) for dims in (2, 3) for channels in (1, 2, 3, 4)]
    shown = None if kernel is None else (len(kernel) - 2, kernel[1])
    if shown is not None:
        guesses = [shown, *guesses]
    guesses = [(d, c) for d, c in guesses if card.dims in (None, d) and stated in (None, c)]
    refusal: Any = None
    for dims, channels in guesses:
        # A 3-D convolution takes a 2-D batch for one volume without a batch axis, and its samples for channels:
        # more samples than there are channels to try.
        outputs = run(module, torch.zeros(5, channels, *((64,) * 2 if dims == 2 else (32,) * 3), device=device))
        if isinstance(outputs, Exception):
            refusal = refusal or outputs
        elif any(leaf.ndim == dims + 2 and len(leaf) == 5 for leaf in _tensors(outputs)):
            return dims, channels
    if guesses and (guesses[0] == shown or (card.dims and stated)):
        return guesses[0]  # a network that takes one size only; its own words follow when that is tried
    if kernel is not None:
        raise _otherwise(len(kernel) - 2, kernel[1], card, name)
    because = "" if refusal is None else f" ({meaning(refusal)})"
    raise ModelError(
        f"{name}: accepts no image of 1 to 4 channels in 2-D or 3-D{because}; "
        "state dims and channels in a TOML file beside it."
    )


def _stated_kind(dims: int, channels: int, card: ModelCard, name: str) -> tuple[int, int]:
    """What the file says, if the card agrees."""
    if card.dims not in (None, dims) or (card.channels and len(card.channels) != channels):
        raise _otherwise(dims, channels, card, name)
    return dims, channels


def _otherwise(dims: int, channels: int, card: ModelCard, name: str) -> ModelError:
    """What is wrong where a card, or who asks without one, says something else than the network."""
    takes = f"{name}: takes {channels} channel(s) in {dims}-D"
    if card.source is not None:
        return ModelError(f"{takes}, {card.source} says otherwise; correct the card.")
    return ModelError(f"{takes}, not {len(card.channels or ()) or 'any'} in {card.dims or dims}-D, as is asked of it.")


def run(module: torch.nn.Module, x: Tensor) -> Any:
    """What the network gives for x, without gradient, or the exception with which it refuses x.

    Raises: what PyTorch raises when the memory does not suffice, which says nothing about the network.
    """
    given = x.detach().clone()  # It may work on its input in place.
    with torch.no_grad():
        outputs = attempt(lambda: module(given))
    if isinstance(outputs, Exception) and is_out_of_memory(outputs):
        raise outputs
    return outputs


def padded(size: tuple[int, ...], divisor: int) -> tuple[int, ...]:
    return tuple(n + -n % divisor for n in size)


def accepted(
    file: ModelFile, card: ModelCard, channels: int, size: tuple[int, ...], name: str, device: torch.device
) -> tuple[int, Output, Tensor]:
    """The smallest divisor whose padded size the network takes, which output is the segmentation, and its value."""
    for divisor in _divisors(card.divisor, size):
        given = padded(size, divisor)
        if channels * math.prod(given) > _MOST:
            raise ModelError(
                f"{name}: an input of {' x '.join(map(str, given))} voxels is too large; see divisor and roi."
            )
        # One member of an ensemble takes and gives what all of them do.
        outputs = run(file.member or file.module, _ramp(channels, given, device))
        if _gives_labels(outputs):
            raise ModelError(f"{name}: {_LABELS}.")
        if any(tuple(leaf.shape[2:]) == given for leaf in _tensors(outputs)):
            leaf, raw = _segmentation(outputs, given, name)
            return divisor, Output(leaf, _looks_like_probabilities(raw, card)), raw
        if card.divisor and not (isinstance(outputs, Exception) and meaning(outputs) == TOO_SMALL):
            break
    smaller = _smaller(file.module, card, channels, size, device)
    if smaller is None:
        raise _refusal(file, channels, size, name, device, card)
    return smaller


def _gives_labels(output: Any) -> bool:
    """Whether all that a network gives is integers; no size makes logits of them."""
    tensors = [leaf for leaf in leaves(output) if isinstance(leaf, Tensor)]
    return bool(tensors) and not any(leaf.is_floating_point() for leaf in tensors)


def _divisors(stated: int | None, size: tuple[int, ...]) -> tuple[int, ...]:
    """Multiples to pad to, in the order in which they are tried.

    A stated one says at which sizes a network's layers fit together, not which is large enough: for a scan of few
    voxels larger multiples of it are tried too.
    """
    if stated is None:
        return DIVISORS
    larger = (stated * factor for factor in DIVISORS[1:])
    return (stated, *(divisor for divisor in larger if min(size) < divisor <= DIVISORS[-1]))


def _smaller(
    module: torch.nn.Module, card: ModelCard, channels: int, size: tuple[int, ...], device: torch.device
) -> tuple[int, Output, Tensor] | None:
    """A segmentation that is smaller than the input by a constant (valid convolutions) or by a whole factor.

    Two sizes tell which: the difference stays the same, or the ratio does.
    """
    seen: list[tuple[tuple[int, ...], int, Tensor]] = []
    for extra in range(96):
        given = tuple(n + extra for n in size)
        outputs = run(module, _ramp(channels, given, device))
        for index, leaf in enumerate(leaves(outputs)):
            if (
                _is_plain(leaf)
                and leaf.ndim == len(size) + 2
                and leaf.is_floating_point()
                and all(0 < b < a for a, b in zip(given, leaf.shape[2:], strict=True))
            ):
                seen.append((given, index, leaf))
                break
        if len(seen) < 2:
            continue
        (small, index, raw), (large, _, other) = seen[0], seen[-1]
        lost = tuple(a - b for a, b in zip(small, raw.shape[2:], strict=True))
        bounded = _looks_like_probabilities(raw, card)
        if lost == tuple(a - b for a, b in zip(large, other.shape[2:], strict=True)) and min(lost) > 0:
            return 1, Output(index, bounded, margin=lost), raw
        factors = {a / b for a, b in zip((*small, *large), (*raw.shape[2:], *other.shape[2:]), strict=True)}
        if len(factors) == 1 and (factor := factors.pop()) == int(factor) <= DIVISORS[-1]:
            divisor = next(d for d in (*DIVISORS, 1) if all(n % d == 0 for n in (*small, *large)) and d >= factor)
            return divisor, Output(index, bounded, coarse=int(factor)), raw
    return None


def _ramp(channels: int, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Not zeros: an instance norm over a constant image is 0 / 0 in some networks."""
    return torch.linspace(0, 1, channels * math.prod(size), device=device).view(1, channels, *size)


def _refusal(
    file: ModelFile, channels: int, size: tuple[int, ...], name: str, device: torch.device, card: ModelCard
) -> ModelError:
    """Why no size would do, in the network's own words if nobody knows better."""
    shown = " x ".join(map(str, size))
    if file.example is not None and None not in file.example[2:] and file.example[2:] != size:
        fixed = file.example[2:]
        return ModelError(
            f"{name}: was exported for {' x '.join(map(str, fixed))} voxels, not {shown}: "
            f"use `roi` {','.join(map(str, fixed))}."
        )
    given = padded(size, card.divisor or 32)
    outputs = run(file.module, torch.zeros(1, channels, *given, device=device))
    if isinstance(outputs, Exception):
        reason = meaning(outputs)
    elif any(isinstance(leaf, Tensor) and not _is_plain(leaf) for leaf in leaves(outputs)):
        reason = "its output is not a plain (dense) tensor; export it with .to_dense() at its end"
    else:
        reason = _unlike_the_input([tuple(leaf.shape) for leaf in leaves(outputs) if isinstance(leaf, Tensor)], given)
    what = f"{channels} channel(s) of size {shown}"
    tried = f"accepts {what} neither as it is nor padded to multiples of 2 to 64"
    if card.divisor:
        tried = f"does not accept {what} padded to multiples of {card.divisor}"
    # What says how to export it needs no other advice.
    advice = (
        "" if "export it" in reason or "convert it" in reason else "; if it was made for one size, give that with `roi`"
    )
    return ModelError(f"{name}: {tried}: {reason}{advice}.")


def _unlike_the_input(shapes: list[tuple[int, ...]], given: tuple[int, ...]) -> str:
    """What is wrong with outputs of these shapes for an input of (1, C, *given)."""
    for shape in shapes:
        if shape[1:-1] == given:
            return f"its output {shape} has the channels last; export it with the channels on the second axis"
        if len(shape) == len(given) + 1 and shape[1:] == given:
            return f"its output {shape} lacks the batch or the channel axis; export it as (batch, channel, ...)"
    shown = ", ".join(map(str, shapes)) or "no tensor"
    return f"its output ({shown}) is not on the input's grid"


_LABELS = "gives labels (argmax), which have no gradient; leave the argmax out of the network"


def _tensors(output: Any) -> list[Tensor]:
    """Outputs that could be maps; none of a network that refused."""
    return [leaf for leaf in leaves(output) if _is_plain(leaf) and leaf.ndim >= 4]


def _is_plain(leaf: Any) -> TypeGuard[Tensor]:
    """Whether it has a value for each voxel: neither sparse nor without values."""
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_meta


def _segmentation(outputs: Any, padded: tuple[int, ...], name: str) -> tuple[int, Tensor]:
    """(index among the leaves, value) of the first floating-point output on the input's grid.

    Deep supervision gives several; the full-resolution one is the answer.
    """
    for index, leaf in enumerate(leaves(outputs)):
        if _is_plain(leaf) and tuple(leaf.shape[2:]) == padded and leaf.is_floating_point():
            return index, leaf
    raise ModelError(f"{name}: {_LABELS}.")


def _looks_like_probabilities(raw: Tensor, card: ModelCard) -> bool:
    """In [0, 1] and, unless they are of one class alone or of regions, with the sum 1."""
    inside = bool((raw >= 0).all() and (raw <= 1).all())
    if raw.shape[1] == 1 or card.activation == "sigmoid":
        return inside
    total = raw.sum(dim=1)
    return inside and bool(torch.allclose(total, torch.ones_like(total), atol=1e-3))
