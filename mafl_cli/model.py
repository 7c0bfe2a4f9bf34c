"""A model file becomes a `Segmenter`: the only place that knows how PyTorch stores and traces models.

A loaded TorchScript module takes no hooks and cannot be traced symbolically, so it is *lifted*: run once under
`make_fx`, which records an FX graph of ATen operations. In that graph every intermediate value is a node, so the
*tap* (the layer whose features the attack compares) is one more output. A lifted graph holds for one exact input
shape, batch included; shapes are lifted on demand and kept.
"""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mafl_cli.card import ModelCard, find_card
from mafl_cli.config import Activation, Intensity
from mafl_cli.errors import ModelError, UsageError

DIVISORS = (1, 2, 4, 8, 16, 32, 64)

# How a network says no to an input; torch.jit.Error is what TorchScript makes of a `raise` inside the network.
_REFUSALS = (RuntimeError, ValueError, IndexError, AssertionError, torch.jit.Error)


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
class ModelInfo:
    """What a report says about a model. `assumptions` are sentences about what nobody stated."""

    name: str
    sha256: str
    format: str
    dims: int
    channels: tuple[str, ...]
    orientation: str
    classes: tuple[str, ...]
    activation: Activation
    intensity: Intensity
    divisor: int
    tap: str
    tap_shape: tuple[int, ...]
    card: str | None
    assumptions: tuple[str, ...]


Gives = Literal["logits", "softmax", "sigmoid", "probabilities"]


@dataclass(frozen=True)
class Lifted:
    """A network as a graph for one input shape: (B, C, *spatial) -> (raw segmentation, features).

    gives: what the network's own output is. Of a last "softmax" or "sigmoid" the graph returns the argument.
    tap, tap_shape: the node whose value the features are, and their (F, *coarse).
    """

    graph: fx.GraphModule
    gives: Gives
    tap: str
    tap_shape: tuple[int, ...]


class Segmenter:
    """A lifted model: (B, C, *spatial) in model units -> Prediction, differentiable with respect to the input.

    Make one with `load`. Every size must be a multiple of `divisor`; a size the network refuses raises ModelError.
    """

    def __init__(self, module: torch.nn.Module, name: str, output: _Output, device: torch.device, tap: str) -> None:
        self.device = device
        self.name = name
        self._module = module
        self._output = output
        self._wanted_tap = tap
        self._lifted: dict[tuple[int, ...], Lifted] = {}

    def __call__(self, x: Tensor) -> Prediction:
        """Raises ModelError if the network refuses the size of `x`."""
        # A graph is bound to its batch size, so batches are filled up to the next power of two: few graphs serve
        # a batch that shrinks as slices finish.
        batch = 1 << (len(x) - 1).bit_length()
        filled = torch.cat([x, x[-1:].expand(batch - len(x), *x.shape[1:])]) if batch > len(x) else x
        lifted = self.lifted(filled)
        raw, features = lifted.graph(filled)
        return Prediction(_logits(raw, lifted.gives)[: len(x)], (Patch(features[: len(x)]),))

    def lifted(self, x: Tensor) -> Lifted:
        """The graph for inputs of the shape of `x`, made now if there is none yet."""
        shape = tuple(x.shape)
        if shape not in self._lifted:
            try:
                with _quiet_torchscript():
                    graph = make_fx(self._module, _error_on_data_dependent_ops=False)(x.detach().clone())
            except _REFUSALS as exc:
                raise ModelError(
                    f"{self.name}: does not accept an input of shape {shape} ({_last_line(exc)})."
                ) from exc
            raw, gives = self._output.pick(graph)
            tap = _find_tap(graph.graph, raw, x, self._wanted_tap, self.name)
            tap_shape = tuple(_shape(tap) or ())[1:]
            _set_outputs(graph, raw, tap)
            self._lifted[shape] = Lifted(graph, gives, tap.name, tap_shape)
        return self._lifted[shape]


@dataclass(frozen=True)
class _Output:
    """Which leaf of the model's output is the segmentation, and whether its values could be probabilities."""

    leaf: int
    bounded: bool

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


_ACTIVATIONS: dict[Any, Gives] = {
    torch.ops.aten._softmax.default: "softmax",
    torch.ops.aten.softmax.int: "softmax",
    torch.ops.aten.sigmoid.default: "sigmoid",
}


def _logits(raw: Tensor, gives: Gives) -> Tensor:
    """Logits of at least two classes, (B, K, *spatial), from what the graph returns, (B, 1 or K, *spatial)."""
    if gives == "probabilities":
        # 1e-7 is about float32's resolution next to 1: the logit of a saturated voxel stays finite.
        p = raw.clamp(1e-7, 1 - 1e-7)
        raw = torch.log(p) - torch.log1p(-p) if raw.shape[1] == 1 else torch.log(p)
    if raw.shape[1] == 1:
        # softmax([-z/2, z/2])[1] = sigmoid(z): one logit becomes two classes and the rest of the program knows only
        # that. Both halves carry it, so that a loss on the background's logit alone has a slope too.
        return torch.cat([-raw / 2, raw / 2], dim=1)
    return raw


def load(
    path: Path,
    *,
    device: torch.device,
    card: ModelCard | None = None,
    size: Callable[[int], tuple[int, ...]] = lambda dims: (64,) * dims,
    tap: str = "auto",
) -> tuple[Segmenter, ModelInfo, ModelCard]:
    """Load a TorchScript file, find out what it takes and gives, and lift it.

    Args:
        path: the model file. It is a program: load only files you trust.
        card: what is known about the model; the TOML beside the file if None.
        size: spatial size the model will be used at (before padding), given its number of dimensions.
        tap: "auto" (last layer at the coarsest resolution) or a node name that `mafl inspect` lists.
    Returns: the segmenter, what a report says about it, and the card with every gap filled.
    Raises ModelError with the reason if the file cannot be attacked.
    """
    data_hash = _sniff(path)
    card = find_card(path) if card is None else card
    card, assumptions = card.with_assumptions()
    said = list(assumptions)
    module, first_kernel = _read(path, device)
    dims, channels = _input_kind(module, first_kernel, card, path.name, device)
    shape = size(dims)
    divisor, outputs = _accepted(module, card, channels, shape, path.name, device)
    if card.divisor is None and divisor > 1:
        said.append(f"divisor: not stated, found by trying: sizes are padded to multiples of {divisor}")
    leaf, raw = _segmentation(outputs, _padded(shape, divisor), path.name)
    count = raw.shape[1]
    segmenter = Segmenter(module, path.name, _Output(leaf, _looks_like_probabilities(raw)), device, tap)
    example = (1, channels, *_padded(shape, divisor))
    lifted = segmenter.lifted(torch.zeros(example, device=device))
    if lifted.gives != "logits":
        what = "probabilities" if lifted.gives == "probabilities" else f"a {lifted.gives}"
        said.append(f"output: {what}, not logits; the logits behind it are attacked")
    overlapping = count > 1 and lifted.gives == "sigmoid"
    activation: Activation = card.activation or ("sigmoid" if count == 1 or overlapping else "softmax")
    if activation == "sigmoid" and count > 1:
        raise ModelError(
            f"{path.name}: gives {count} overlapping regions (sigmoid); "
            "only exclusive classes (softmax) and a single sigmoid channel can be attacked. "
            'If its classes are exclusive, state activation = "softmax" in its card.'
        )
    if card.activation is None:
        kinds = "one channel" if count == 1 else f"{count} channels"
        said.append(f"activation: not stated, {activation} because the output has {kinds}")
    names = card.classes
    if names is None:
        names = ("background", *(f"class {index}" for index in range(1, max(count, 2))))
        said.append("classes: not stated, 0 is taken for background")
    elif len(names) != max(count, 2):
        raise ModelError(f"{path.name}: gives {max(count, 2)} classes, its card names {len(names)}.")
    card = replace(card, dims=dims, divisor=divisor, activation=activation, classes=names)
    _check(segmenter, example)
    info = ModelInfo(
        name=card.name or path.name,
        sha256=data_hash,
        format="torchscript",
        dims=dims,
        channels=card.channels or tuple(f"channel {index}" for index in range(channels)),
        orientation=card.orientation or "native",
        classes=names,
        activation=activation,
        intensity=card.intensity or Intensity(),
        divisor=divisor,
        tap=lifted.tap,
        tap_shape=lifted.tap_shape,
        card=card.source,
        assumptions=tuple(said),
    )
    return segmenter, info, card


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
    x = torch.zeros(shape, device=segmenter.device)
    nodes = _feature_nodes(segmenter.lifted(x).graph.graph, x)
    return [(node.name, size[1:]) for node, size in nodes]


# --- reading the file ---------------------------------------------------------------------------------------------


def _sniff(path: Path) -> str:
    """SHA-256 of a file that looks like TorchScript; ModelError saying what it is if it is something else."""
    try:
        data = path.read_bytes()
    except IsADirectoryError as exc:
        raise ModelError(f"{path.name}: is a folder, not a model file.") from exc
    except FileNotFoundError as exc:
        raise ModelError(f"{path.name}: no such model file.") from exc
    except OSError as exc:
        raise ModelError(f"{path.name}: cannot be read ({exc.strerror}).") from exc
    remedy = "save the network with torch.jit.script(net).save(...) or torch.jit.trace(net, example).save(...)"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # what damage to a zip's directory raises
        if not data:
            what = "is empty"
        elif data[:1] == b"\x80":
            what = "is a Python pickle, not TorchScript"
        elif path.suffix == ".onnx":
            what = "is an ONNX model, which gives no gradient"
        elif data[:2] == b"PK":
            what = "is a damaged or cut-off archive"
        else:
            what = "is not a model file"
        raise ModelError(f"{path.name}: {what}; {remedy}.") from None
    inside = {member.partition("/")[2] for member in members}
    if "constants.pkl" not in inside:
        if path.suffix == ".pt2" or "archive_format" in inside or "serialized_exported_program.json" in members:
            what = "is a torch.export archive (.pt2), not TorchScript"
        elif "data.pkl" in inside:
            what = "is a checkpoint (weights without the network), not TorchScript"
        else:
            what = "is an archive without a TorchScript program"
        raise ModelError(f"{path.name}: {what}; {remedy}.")
    return hashlib.sha256(data).hexdigest()


def _read(path: Path, device: torch.device) -> tuple[torch.nn.Module, tuple[int, ...] | None]:
    """The module, in evaluation mode and frozen, and the shape of its first convolution's kernel if it shows one."""
    try:
        with _quiet_torchscript():
            module: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    except (*_REFUSALS, EOFError) as exc:
        raise ModelError(f"{path.name}: PyTorch cannot load it ({_last_line(exc)}).") from exc
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    # Looked up before freezing, which turns parameters into constants.
    kernel = next((tuple(p.shape) for p in module.parameters() if p.ndim in (4, 5)), None)
    if hasattr(module, "training"):  # a module that is frozen already has lost this attribute
        module.eval()
        with _quiet_torchscript(), suppress(RuntimeError):
            # Folds batch norm into the convolutions: fewer operations, same function. What cannot be frozen
            # works as it is.
            module = torch.jit.freeze(module)
    return module, kernel


@contextmanager
def _quiet_torchscript() -> Iterator[None]:
    """TorchScript is deprecated in PyTorch and remains the exchange format: its warning is known, others are not."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=category)
        yield


def _last_line(exc: BaseException) -> str:
    """The last informative line of a PyTorch error, which often drags a whole TorchScript stack along."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    text = lines[-1] if lines else type(exc).__name__
    return text.removeprefix("RuntimeError: ").rstrip(".")[:200]


# --- what it takes and gives --------------------------------------------------------------------------------------


def _input_kind(
    module: torch.nn.Module, kernel: tuple[int, ...] | None, card: ModelCard, name: str, device: torch.device
) -> tuple[int, int]:
    """(spatial dimensions, channels): from the card, else from the first convolution, else by trying."""
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


def _run(module: torch.nn.Module, x: Tensor) -> Any:
    """The model's output for x, or None if it refuses x."""
    try:
        with torch.no_grad(), _quiet_torchscript():
            return module(x)
    except _REFUSALS:
        return None


def _padded(size: tuple[int, ...], divisor: int) -> tuple[int, ...]:
    return tuple(n + -n % divisor for n in size)


def _accepted(
    module: torch.nn.Module,
    card: ModelCard,
    channels: int,
    size: tuple[int, ...],
    name: str,
    device: torch.device,
) -> tuple[int, Any]:
    """The smallest divisor whose padded size the model takes and answers on the same grid, with its output."""
    for divisor in (card.divisor,) if card.divisor else DIVISORS:
        padded = _padded(size, divisor)
        # Not zeros: an instance norm over a constant image is 0 / 0 in some networks.
        ramp = torch.linspace(0, 1, channels * math.prod(padded), device=device).view(1, channels, *padded)
        outputs = _run(module, ramp)
        if outputs is not None and any(tuple(leaf.shape[2:]) == padded for leaf in _tensors(outputs)):
            return divisor, outputs
    tried = f"padded to multiples of {card.divisor}" if card.divisor else "nor padded to multiples of 2 to 64"
    _explain_refusal(module, channels, size, name, device, tried)
    raise AssertionError("unreachable")


def _explain_refusal(
    module: torch.nn.Module, channels: int, size: tuple[int, ...], name: str, device: torch.device, tried: str
) -> None:
    """Raise ModelError with the network's own words about why no size would do."""
    shown = " x ".join(map(str, size))
    try:
        with torch.no_grad(), _quiet_torchscript():
            outputs = module(torch.zeros(1, channels, *_padded(size, 32), device=device))
    except _REFUSALS as exc:
        reason = _last_line(exc)
    else:
        if any(isinstance(leaf, Tensor) and not leaf.is_floating_point() for leaf in _leaves(outputs)):
            raise ModelError(f"{name}: {_LABELS}.")
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in _tensors(outputs)) or "no tensor"
        reason = f"its output ({shapes}) is not on the input's grid"
    raise ModelError(f"{name}: accepts {channels} channel(s) of size {shown} neither as it is {tried}: {reason}.")


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


def _looks_like_probabilities(raw: Tensor) -> bool:
    inside = bool((raw >= 0).all() and (raw <= 1).all())
    if raw.shape[1] == 1:
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
    # Gates of squeeze-and-excite blocks pool to a single voxel: channel statistics, not a feature map.
    sizes = {math.prod(shape[2:]) for _, shape in nodes if math.prod(shape[2:]) > 1} or {full}
    if min(sizes) < full:
        coarsest = [node for node, shape in nodes if math.prod(shape[2:]) == min(sizes)]
        # A concatenation there joins a skip connection, which is already part of the way up.
        return ([node for node in coarsest if "cat" not in str(node.target)] or coarsest)[-1]
    convolutions = [node for node, _ in nodes if "convolution" in str(node.target)]
    known = {node for node, _ in nodes}
    if convolutions and convolutions[-1].args[0] in known:
        tap = convolutions[-1].args[0]
        assert isinstance(tap, fx.Node)
        return tap
    return raw


def _set_outputs(graph: fx.GraphModule, raw: fx.Node, tap: fx.Node) -> None:
    """Make the graph return (raw, tap) and nothing else."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    output.args = ((raw, tap),)
    graph.graph.eliminate_dead_code()
    graph.recompile()
