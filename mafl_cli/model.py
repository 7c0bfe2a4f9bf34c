"""A model file becomes a `Segmenter`: the only place that knows how PyTorch stores and traces models.

A loaded TorchScript module takes no hooks and cannot be traced symbolically, so it is *lifted*: run once under
`make_fx`, which records an FX graph of ATen operations. In that graph every intermediate value is a node, so the
*tap* (the layer whose features the attack compares) is one more output. A lifted graph holds for one exact input
shape, batch included; shapes are lifted on demand and kept.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mafl_cli.card import ModelCard, find_card
from mafl_cli.config import Activation, Intensity, Precision
from mafl_cli.errors import ModelError, UsageError
from mafl_cli.modelfile import REFUSALS, ModelFile, import_compiler, last_line, quiet_torchscript, read_model

DIVISORS = (1, 2, 4, 8, 16, 32, 64)
KEPT_GRAPHS = 12
"""Lifted graphs kept at a time: each holds the network's constants once more."""
_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Patch:
    """Features at one tap.

    features: (B, F, *coarse). weight: the tap's, among several. see: brings a map on the logits' grid, (B, *spatial),
    onto the part of it that the features were made from, at any resolution.
    """

    features: Tensor
    weight: float = 1.0
    see: Callable[[Tensor], Tensor] = _as_it_is


@dataclass(frozen=True)
class Prediction:
    """What a network says of a batch, on the input's grid.

    logits: before softmax; (B, K, *spatial) with K >= 2 exclusive classes, or (B, 2, R, *spatial) for R regions that
    may overlap, each a problem of two classes. features: of each tap, or of each window and tap.
    """

    logits: Tensor
    features: tuple[Patch, ...]

    def detach(self) -> Prediction:
        """The same numbers without their history."""
        return Prediction(
            self.logits.detach(), tuple(replace(patch, features=patch.features.detach()) for patch in self.features)
        )


@dataclass(frozen=True)
class Tap:
    """A layer whose features the attack compares: node name, (F, *coarse) of its features, weight among several."""

    name: str
    shape: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class ModelInfo:
    """What a report says about a model. `assumptions` are sentences about what nobody stated.

    classes: names by index, background first; of the regions alone when they may overlap.
    """

    name: str
    sha256: str
    format: str
    dims: int
    channels: tuple[str, ...]
    orientation: str
    classes: tuple[str, ...]
    overlapping: bool
    activation: Activation
    intensity: Intensity
    divisor: int
    taps: tuple[Tap, ...]
    card: str | None
    assumptions: tuple[str, ...]


Gives = Literal["logits", "softmax", "sigmoid", "probabilities"]


@dataclass(frozen=True)
class Lifted:
    """A network as a graph for one input shape: (B, C, *spatial) -> (raw segmentation, features of each tap).

    gives: what the network's own output is. Of a last "softmax" or "sigmoid" the graph returns the argument.
    """

    graph: fx.GraphModule
    gives: Gives
    taps: tuple[Tap, ...]


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
        node = _leaves(output.args[0])[self.leaf]
        assert isinstance(node, fx.Node)
        gives = _ACTIVATIONS.get(node.target)
        # A softmax over an image axis is no class probability.
        if gives == "sigmoid" or (gives == "softmax" and node.args[1] in (1, 1 - len(_shape(node) or ()))):
            before = node.args[0]
            assert isinstance(before, fx.Node)
            return before, gives
        # A convolution has no bounds: where its values lie is chance.
        return node, "probabilities" if self.bounded and "convolution" not in str(node.target) else "logits"


class Segmenter:
    """A lifted model: (B, C, *spatial) in model units -> Prediction, differentiable with respect to the input.

    Make one with `load`. Every size must be a multiple of `divisor`; a size the network refuses raises ModelError.

    exact: the same model in float32, to judge what a lower precision found; itself if it is that.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        name: str,
        output: Output,
        device: torch.device,
        taps: Sequence[tuple[str, float]] = (("auto", 1.0),),
        precision: Precision = "float32",
    ) -> None:
        self.device = device
        self.name = name
        self.exact = self if precision == "float32" else Segmenter(module, name, output, device, taps)
        self._module = module
        self._output = output
        self._wanted = tuple(taps)
        self._precision: Precision = precision
        self._lifted: OrderedDict[tuple[int, ...], Lifted] = OrderedDict()
        self._larger: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._one_by_one = False

    def __call__(self, x: Tensor) -> Prediction:
        """Raises ModelError if the network refuses the size of `x`."""
        if self._one_by_one and len(x) > 1:
            parts = [self(part) for part in torch.split(x, 1)]
            together = (
                replace(patch, features=torch.cat([part.features[index].features for part in parts]))
                for index, patch in enumerate(parts[0].features)
            )
            return Prediction(torch.cat([part.logits for part in parts]), tuple(together))
        # A graph is bound to its batch size, so batches are filled up to the next power of two: few graphs serve
        # a batch that shrinks as slices finish.
        batch = 1 << (len(x) - 1).bit_length()
        filled = torch.cat([x, x[-1:].expand(batch - len(x), *x.shape[1:])]) if batch > len(x) else x
        ready = self.enlarged(filled)
        try:
            lifted = self.lifted(ready)
        except ModelError:
            if len(filled) == 1:
                raise
            # Some networks were traced or exported for one sample and hold that number.
            self._one_by_one = True
            return self(x)
        raw, *features = lifted.graph(ready)
        logits = _logits(raw.float(), lifted.gives, overlapping=self._output.overlapping)
        pad = self._around(x) if any(self._output.margin) else []
        patches = tuple(
            Patch(feature[: len(x)].float(), tap.weight, lambda mask: F.pad(mask, pad))
            for feature, tap in zip(features, lifted.taps, strict=True)
        )
        return Prediction(self._onto_input(logits[: len(x)], x.shape[2:]), patches)

    def lifted(self, x: Tensor) -> Lifted:
        """The graph for inputs of the shape of `x`, made now if there is none yet."""
        shape = tuple(x.shape)
        if shape in self._lifted:
            self._lifted.move_to_end(shape)
            return self._lifted[shape]
        import_compiler()
        try:
            with quiet_torchscript(), self._casting():
                graph = make_fx(self._module, _error_on_data_dependent_ops=False)(x.detach().clone())
        except REFUSALS as exc:
            raise ModelError(f"{self.name}: does not accept an input of shape {shape} ({last_line(exc)}).") from exc
        raw, gives = self._output.pick(graph)
        nodes = [_find_tap(graph.graph, raw, x, wanted, self.name) for wanted, _ in self._wanted]
        weights = [weight for _, weight in self._wanted]
        taps = tuple(
            Tap(node.name, tuple(_shape(node) or ())[1:], weight) for node, weight in zip(nodes, weights, strict=True)
        )
        _set_outputs(graph, [raw, *nodes])
        self._lifted[shape] = Lifted(graph, gives, taps)
        if len(self._lifted) > KEPT_GRAPHS:
            self._lifted.popitem(last=False)
        return self._lifted[shape]

    def is_independent(self, shape: Sequence[int]) -> bool:
        """Whether what it says of a sample of `shape`, (1, C, *spatial), is the same next to another one."""
        generator = torch.Generator().manual_seed(1)
        both = torch.rand((2, *shape[1:]), generator=generator).to(self.device)
        both[1] = 3 * both[1] - 1
        with torch.no_grad():
            alone, together = self(both[:1]).logits, self(both).logits[:1]
        return bool((alone - together).abs().max() <= 1e-3 * alone.abs().max())

    def take_one_by_one(self) -> None:
        """From now on every sample goes through the network alone."""
        self._one_by_one = self.exact._one_by_one = True

    def activation_bytes(self, x: Tensor) -> int:
        """Bytes of all intermediate values for an input like `x`: what a backward pass keeps, at the most."""
        nodes = self.lifted(self.enlarged(x)).graph.graph.nodes
        metas = [node.meta.get("tensor_meta") for node in nodes if node.op == "call_function"]
        return sum(math.prod(meta.shape) * meta.dtype.itemsize for meta in metas if hasattr(meta, "shape"))

    def _casting(self) -> Any:
        """Under autocast the casts become part of the graph."""
        dtype = _DTYPES.get(self._precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def enlarged(self, x: Tensor) -> Tensor:
        """`x` as the network gets it: with edge values around it when valid convolutions take away so much."""
        return F.pad(x, self._around(x), mode="replicate") if any(self._output.margin) else x

    def _around(self, x: Tensor) -> list[int]:
        """What `enlarged` puts around `x`, as torch's pad wants it: the last axis first."""
        size = tuple(x.shape[2:])
        if size not in self._larger:
            self._larger[size] = self._accepted_above(x[:1])
        pad: list[int] = []
        for wanted, given, margin in zip(self._larger[size], size, self._output.margin, strict=True):
            pad = [margin // 2, wanted - given - margin // 2, *pad]
        return pad

    def _accepted_above(self, x: Tensor) -> tuple[int, ...]:
        """The smallest size the network takes that leaves the size of `x` after its margins."""
        least = [size + margin for size, margin in zip(x.shape[2:], self._output.margin, strict=True)]
        for extra in range(64):
            size = tuple(n + extra for n in least)
            outputs = _run(self._module, torch.zeros(1, x.shape[1], *size, device=x.device))
            if outputs is None:
                continue
            leaf = _leaves(outputs)[self._output.leaf]
            if tuple(leaf.shape[2:]) == tuple(n - m for n, m in zip(size, self._output.margin, strict=True)):
                return size
        raise ModelError(f"{self.name}: accepts no size that covers {' x '.join(map(str, x.shape[2:]))} voxels.")

    def _onto_input(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits on the input's grid."""
        if self._output.coarse > 1:
            flat = logits.flatten(1, -1 - len(size))
            mode = "bilinear" if len(size) == 2 else "trilinear"
            up = F.interpolate(flat, scale_factor=self._output.coarse, mode=mode, align_corners=False)
            logits = up.view(*logits.shape[: -len(size)], *up.shape[2:])
        inside: Any = (..., *(slice(n) for n in size))
        return logits[inside]


_ACTIVATIONS: dict[Any, Gives] = {
    torch.ops.aten._softmax.default: "softmax",
    torch.ops.aten.softmax.int: "softmax",
    torch.ops.aten.sigmoid.default: "sigmoid",
}


def _logits(raw: Tensor, gives: Gives, *, overlapping: bool) -> Tensor:
    """Logits of at least two classes, (B, K, *spatial) or (B, 2, R, *spatial), from the graph's (B, n, *spatial)."""
    one = overlapping or raw.shape[1] == 1
    if gives == "probabilities":
        # 1e-7 is about float32's resolution next to 1: the logit of a saturated voxel stays finite.
        p = raw.clamp(1e-7, 1 - 1e-7)
        raw = torch.log(p) - torch.log1p(-p) if one else torch.log(p)
    if not one:
        return raw
    # softmax([-z/2, z/2])[1] = sigmoid(z): one logit becomes two classes and the rest of the program knows only
    # that. Both halves carry it, so that a loss on the background's logit alone has a slope too.
    return torch.stack([-raw / 2, raw / 2], dim=1) if overlapping else torch.cat([-raw / 2, raw / 2], dim=1)


def load(
    path: Path,
    *,
    device: torch.device,
    card: ModelCard | None = None,
    size: Callable[[int], tuple[int, ...]] = lambda dims: (64,) * dims,
    tap: str = "auto",
    precision: Precision = "float32",
) -> tuple[Segmenter, ModelInfo, ModelCard]:
    """Load a model file, find out what it takes and gives, and lift it.

    Args:
        path: TorchScript or .pt2. It is a program: load only files you trust.
        card: what is known about the model; what lies beside the file or in it if None.
        size: spatial size the model will be used at (before padding), given its number of dimensions.
        tap: "auto" (last layer at the coarsest resolution) or a node name that `mafl inspect` lists; NAME:WEIGHT,
            several of them separated by commas.
        precision: of the search; `Segmenter.exact` judges in float32.
    Returns: the segmenter, what a report says about it, and the card with every gap filled.
    Raises ModelError with the reason if the file cannot be attacked.
    """
    wanted = read_taps(tap)
    file = read_model(path, device)
    card = find_card(path) if card is None else card
    card, assumptions = card.with_assumptions()
    said = list(assumptions)
    dims, channels = _input_kind(file, card, path.name, device)
    shape = size(dims)
    divisor, output, raw = _accepted(file, card, channels, shape, path.name, device)
    if card.divisor is None and divisor > 1:
        said.append(f"divisor: not stated, found by trying: sizes are padded to multiples of {divisor}")
    said += _said_of_grid(output)
    count = raw.shape[1]
    first = Segmenter(file.module, path.name, output, device)
    example = (1, channels, *_padded(shape, divisor))
    gives = first.lifted(first.enlarged(torch.zeros(example, device=device))).gives
    if gives != "logits":
        what = "probabilities" if gives == "probabilities" else f"a {gives}"
        said.append(f"output: {what}, not logits; the logits behind it are attacked")
    activation: Activation = card.activation or ("sigmoid" if count == 1 or gives == "sigmoid" else "softmax")
    output = replace(output, overlapping=activation == "sigmoid" and count > 1)
    if card.activation is None:
        kinds = "one channel" if count == 1 else f"{count} channels"
        said.append(
            f"activation: not stated, {activation} because the output has {kinds}"
            + (", each a probability of its own" if output.overlapping else "")
        )
    names = _class_names(card, count, output.overlapping, path.name)
    if card.classes is None:
        numbered = "regions are numbered" if output.overlapping else "0 is taken for background"
        said.append(f"classes: not stated, {numbered}")
    card = replace(card, dims=dims, divisor=divisor, activation=activation, classes=names)
    segmenter = Segmenter(file.module, path.name, output, device, wanted, precision)
    _check(segmenter.exact, example)
    if not segmenter.exact.is_independent(example):
        segmenter.take_one_by_one()
        said.append(
            "batch: the output of a sample depends on the others (batch norm in training mode?); one goes at a time"
        )
    info = ModelInfo(
        name=card.name or path.name,
        sha256=file.sha256,
        format=file.format,
        dims=dims,
        channels=card.channels or tuple(f"channel {index}" for index in range(channels)),
        orientation=card.orientation or "native",
        classes=names,
        overlapping=output.overlapping,
        activation=activation,
        intensity=card.intensity or Intensity(),
        divisor=divisor,
        taps=segmenter.lifted(segmenter.enlarged(torch.zeros(example, device=device))).taps,
        card=card.source,
        assumptions=tuple(said),
    )
    return segmenter, info, card


def read_taps(text: str) -> tuple[tuple[str, float], ...]:
    """NAME or NAME:WEIGHT, several separated by commas. Raises UsageError for a weight that is no number above 0."""
    found = []
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        try:
            value = float(weight or 1)
        except ValueError:
            value = 0.0
        if not name or not 0 < value < math.inf:
            raise UsageError(f"--tap {text!r} is not understood: use NAME or NAME:WEIGHT, separated by commas.")
        found.append((name, value))
    return tuple(found)


def _class_names(card: ModelCard, count: int, overlapping: bool, name: str) -> tuple[str, ...]:
    """Of the classes, or of the regions that may overlap. Raises ModelError if the card names another number."""
    needed = count if overlapping else max(count, 2)
    if card.classes is None:
        if overlapping:
            return tuple(f"region {index}" for index in range(count))
        return ("background", *(f"class {index}" for index in range(1, needed)))
    if len(card.classes) != needed:
        kind = "regions" if overlapping else "classes"
        raise ModelError(f"{name}: gives {needed} {kind}, its card names {len(card.classes)}.")
    return card.classes


def _said_of_grid(output: Output) -> list[str]:
    if any(output.margin):
        return [f"output: smaller than the input by {max(output.margin)} voxels; scans are padded with edge values"]
    if output.coarse > 1:
        return [f"output: {output.coarse} times coarser than the input; logits are interpolated"]
    return []


def pick_device(choice: str) -> torch.device:
    """ "cpu", "cuda", "cuda:N", "gpu" or "auto" (the first CUDA device if there is one, else the CPU).

    Raises UsageError with the reason when CUDA is asked for and cannot be had: a robustness gate that quietly
    runs somewhere else is not a gate.
    """
    name = "cuda" + choice[3:] if choice.startswith("gpu") else choice
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {choice} is not known: use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda":
        if torch.version.cuda is None:
            raise UsageError(f"--device {choice}: this PyTorch is a CPU-only build; install a CUDA build.")
        if not torch.cuda.is_available():
            raise UsageError(f"--device {choice}: no usable CUDA device (no GPU, or its driver is missing).")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"--device {choice}: there are {torch.cuda.device_count()} CUDA devices.")
    return device


def taps(segmenter: Segmenter, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Every node that could be a tap for an input of `shape` (1, C, *spatial), with its shape (F, *coarse)."""
    x = segmenter.enlarged(torch.zeros(shape, device=segmenter.device))
    nodes = _feature_nodes(segmenter.lifted(x).graph.graph, x)
    return [(node.name, size[1:]) for node, size in nodes]


# --- what it takes and gives --------------------------------------------------------------------------------------


def _input_kind(file: ModelFile, card: ModelCard, name: str, device: torch.device) -> tuple[int, int]:
    """(spatial dimensions, channels): from the export or the card, else the first convolution, else by trying."""
    module, kernel = file.module, file.kernel
    if file.example is not None and file.example[1] is not None:
        return _stated_kind(len(file.example) - 2, file.example[1], card, name)
    stated = len(card.channels) if card.channels else None
    guesses = [(dims, channels) for dims in (2, 3) for channels in (1, 2, 3, 4)]
    shown = None if kernel is None else (len(kernel) - 2, kernel[1])
    if shown is not None:
        guesses = [shown, *guesses]
    guesses = [(d, c) for d, c in guesses if card.dims in (None, d) and stated in (None, c)]
    for dims, channels in guesses:
        # A 3-D convolution takes a 2-D batch for one volume without a batch axis, and its samples for channels:
        # more samples than there are channels to try.
        outputs = _run(module, torch.zeros(5, channels, *((64,) * 2 if dims == 2 else (32,) * 3), device=device))
        if outputs is not None and any(leaf.ndim == dims + 2 and len(leaf) == 5 for leaf in _tensors(outputs)):
            return dims, channels
    if guesses and (guesses[0] == shown or (card.dims and stated)):
        return guesses[0]  # a network that takes one size only; its own words follow when that is tried
    if kernel is not None:
        raise ModelError(
            f"{name}: takes {kernel[1]} channel(s) in {len(kernel) - 2}-D, "
            f"{card.source or 'its card'} says otherwise; correct the card."
        )
    raise ModelError(
        f"{name}: accepts no image of 1 to 4 channels in 2-D or 3-D; state dims and channels in a TOML file beside it."
    )


def _stated_kind(dims: int, channels: int, card: ModelCard, name: str) -> tuple[int, int]:
    """What the file says, if the card agrees."""
    if card.dims not in (None, dims) or (card.channels and len(card.channels) != channels):
        raise ModelError(
            f"{name}: takes {channels} channel(s) in {dims}-D, "
            f"{card.source or 'its card'} says otherwise; correct the card."
        )
    return dims, channels


def _run(module: torch.nn.Module, x: Tensor) -> Any:
    """The model's output for x, or None if it refuses x."""
    try:
        with torch.no_grad(), quiet_torchscript():
            return module(x)
    except REFUSALS:
        return None


def _padded(size: tuple[int, ...], divisor: int) -> tuple[int, ...]:
    return tuple(n + -n % divisor for n in size)


def _accepted(
    file: ModelFile, card: ModelCard, channels: int, size: tuple[int, ...], name: str, device: torch.device
) -> tuple[int, Output, Tensor]:
    """The smallest divisor whose padded size the network takes, which output is the segmentation, and its value."""
    for divisor in (card.divisor,) if card.divisor else DIVISORS:
        padded = _padded(size, divisor)
        outputs = _run(file.module, _ramp(channels, padded, device))
        if outputs is None:
            continue
        if any(tuple(leaf.shape[2:]) == padded for leaf in _tensors(outputs)):
            leaf, raw = _segmentation(outputs, padded, name)
            return divisor, Output(leaf, _looks_like_probabilities(raw, card)), raw
    smaller = _smaller(file.module, card, channels, size, device)
    if smaller is None:
        _explain_refusal(file, channels, size, name, device, card)
        raise AssertionError("unreachable")
    return smaller


def _smaller(
    module: torch.nn.Module, card: ModelCard, channels: int, size: tuple[int, ...], device: torch.device
) -> tuple[int, Output, Tensor] | None:
    """A segmentation that is smaller than the input by a constant (valid convolutions) or by a whole factor.

    Two sizes tell which: the difference stays the same, or the ratio does.
    """
    seen: list[tuple[tuple[int, ...], int, Tensor]] = []
    for extra in range(96):
        given = tuple(n + extra for n in size)
        outputs = _run(module, _ramp(channels, given, device))
        for index, leaf in enumerate([] if outputs is None else _leaves(outputs)):
            if (
                isinstance(leaf, Tensor)
                and leaf.ndim == len(size) + 2
                and leaf.is_floating_point()
                and all(b < a for a, b in zip(given, leaf.shape[2:], strict=True))
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
        if len(factors) == 1 and (factor := factors.pop()) == int(factor):
            divisor = next(d for d in (*DIVISORS, 1) if all(n % d == 0 for n in (*small, *large)) and d >= factor)
            return divisor, Output(index, bounded, coarse=int(factor)), raw
    return None


def _ramp(channels: int, size: tuple[int, ...], device: torch.device) -> Tensor:
    """Not zeros: an instance norm over a constant image is 0 / 0 in some networks."""
    return torch.linspace(0, 1, channels * math.prod(size), device=device).view(1, channels, *size)


def _explain_refusal(
    file: ModelFile, channels: int, size: tuple[int, ...], name: str, device: torch.device, card: ModelCard
) -> None:
    """Raise ModelError with the network's own words about why no size would do."""
    shown = " x ".join(map(str, size))
    if file.example is not None and None not in file.example[2:] and file.example[2:] != size:
        fixed = file.example[2:]
        raise ModelError(
            f"{name}: was exported for {' x '.join(map(str, fixed))} voxels, not {shown}: "
            f"use --roi {','.join(map(str, fixed))}."
        )
    try:
        with torch.no_grad(), quiet_torchscript():
            outputs = file.module(torch.zeros(1, channels, *_padded(size, 32), device=device))
    except REFUSALS as exc:
        reason = last_line(exc)
    else:
        if any(isinstance(leaf, Tensor) and not leaf.is_floating_point() for leaf in _leaves(outputs)):
            raise ModelError(f"{name}: {_LABELS}.")
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in _tensors(outputs)) or "no tensor"
        reason = f"its output ({shapes}) is not on the input's grid"
    what = f"{channels} channel(s) of size {shown}"
    tried = f"accepts {what} neither as it is nor padded to multiples of 2 to 64"
    if card.divisor:
        tried = f"does not accept {what} padded to multiples of {card.divisor}"
    raise ModelError(f"{name}: {tried}: {reason}; if it was made for one size, give that with --roi.")


_LABELS = "gives labels (argmax), which have no gradient; export it before the argmax"


def _leaves(output: Any) -> list[Any]:
    """The leaves of a nested tuple, list or dict, in order."""
    if isinstance(output, dict):
        return [leaf for value in output.values() for leaf in _leaves(value)]
    if isinstance(output, (tuple, list)):
        return [leaf for value in output for leaf in _leaves(value)]
    return [output]


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in _leaves(output) if isinstance(leaf, Tensor) and leaf.ndim >= 4]


def _segmentation(outputs: Any, padded: tuple[int, ...], name: str) -> tuple[int, Tensor]:
    """(index among the leaves, value) of the first floating-point output on the input's grid.

    Deep supervision gives several; the full-resolution one is the answer.
    """
    for index, leaf in enumerate(_leaves(outputs)):
        if isinstance(leaf, Tensor) and tuple(leaf.shape[2:]) == padded and leaf.is_floating_point():
            return index, leaf
    raise ModelError(f"{name}: {_LABELS}.")


def _looks_like_probabilities(raw: Tensor, card: ModelCard) -> bool:
    """In [0, 1] and, unless they are of one class alone or of regions, with the sum 1."""
    inside = bool((raw >= 0).all() and (raw <= 1).all())
    if raw.shape[1] == 1 or card.activation == "sigmoid":
        return inside
    total = raw.sum(dim=1)
    return inside and bool(torch.allclose(total, torch.ones_like(total), atol=1e-3))


def _check(segmenter: Segmenter, shape: tuple[int, ...]) -> None:
    """Trial forward and backward on a fixed textured image. Raises ModelError if the model cannot be attacked."""
    name = segmenter.name
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator).to(segmenter.device).requires_grad_()
    logits = segmenter(x).logits
    if not torch.isfinite(logits).all():
        raise ModelError(f"{name}: gives NaN or infinite values for an ordinary image.")
    if not logits.requires_grad:
        raise ModelError(
            f"{name}: gives no gradient with respect to its input "
            "(optimize_for_inference, quantised, or detached); save it with torch.jit.script or torch.jit.trace."
        )
    (gradient,) = torch.autograd.grad((logits[:, -1] - logits[:, 0]).sum(), x, allow_unused=True)
    if gradient is None or not torch.isfinite(gradient).all() or not gradient.any():
        raise ModelError(f"{name}: its gradient with respect to the input is zero or not finite.")
    with torch.no_grad():
        if not torch.equal(segmenter(x).logits, segmenter(x).logits):
            raise ModelError(f"{name}: is not deterministic (dropout left on?); save it in eval mode.")


# --- the tap ------------------------------------------------------------------------------------------------------


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def _feature_nodes(graph: fx.Graph, x: Tensor) -> list[tuple[fx.Node, tuple[int, ...]]]:
    """Nodes holding a (B, F, *coarse) floating-point map that depends on the input, in order, with their shapes."""
    depends: set[fx.Node] = set()
    found = []
    for node in graph.nodes:
        if node.op == "placeholder" or any(parent in depends for parent in node.all_input_nodes):
            depends.add(node)
        else:
            continue
        shape = _shape(node)
        if (
            node.op == "call_function"
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
    nodes = _feature_nodes(graph, x)
    if wanted != "auto":
        for node, _ in nodes:
            if node.name == wanted:
                return node
        raise ModelError(f"{name}: has no layer called {wanted!r}; `mafl inspect` lists them.")
    full = math.prod(x.shape[2:])
    convolutions = [node for node, _ in nodes if "convolution" in str(node.target)]
    # Transformers hold tokens with the channels last: only what a convolution takes or gives is surely a map.
    ends = [end for node in convolutions for end in (node, node.args[0]) if isinstance(end, fx.Node)]
    maps = {shape[2:] for shape in map(_shape, ends) if shape}
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
