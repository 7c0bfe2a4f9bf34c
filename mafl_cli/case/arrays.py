"""The attack on arrays: a batch of images along the model's axes, without files, affine or DICOM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.array_input import Array, image_like, image_tensor, target_tensor, within_tensor
from mafl_cli.case.faithful import looked_for_chance
from mafl_cli.case.problem import Problem, Say, Seen, kept_channels, limits_of
from mafl_cli.case.remedies import Settled, settle
from mafl_cli.case.request import model_of, require_choice, seen_as, words_of
from mafl_cli.case.searching import Progress
from mafl_cli.case.trusting import believed, checked
from mafl_cli.case.worst import searched
from mafl_cli.classes import Classes
from mafl_cli.config import Activation, AttackConfig, EnsembleRule, Precision
from mafl_cli.errors import InputError, UsageError
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Grids
from mafl_cli.field.tiling import Tiling
from mafl_cli.measure.noise import Noise, noise_of
from mafl_cli.names import outside
from mafl_cli.network.card import ModelCard
from mafl_cli.network.card_file import find_card
from mafl_cli.network.device import exactly, float32_by_default, pick_device
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.kinds import read_model
from mafl_cli.network.load import ModelInfo, describe
from mafl_cli.network.model_file import ModelFile, lent
from mafl_cli.network.opening import Opening
from mafl_cli.network.reasons import enough_memory
from mafl_cli.network.source import Model, Own
from mafl_cli.results.report import Trace
from mafl_cli.results.trust_report import Trust
from mafl_cli.results.worst_report import WorstCase
from mafl_cli.search.limits import Limits

A = TypeVar("A", NDArray[Any], Tensor)
"""What the image is: all arrays of the result are of the same kind."""


@dataclass(frozen=True)
class Sizes(Generic[A]):
    """How large the change of each sample is, (B,), in the image's own units.

    l2: root of the sum of squares over all voxels and channels. linf: largest change of a voxel. share: of voxels that
    changed, in [0, 1].
    """

    l2: A
    linf: A
    share: A


@dataclass(frozen=True)
class Attacked(Generic[A]):
    """What an attack on arrays found. Arrays are NumPy or tensors on the image's device, as the image was.

    adversarial: (B, C, *spatial), float32, the image's units. prediction: what the model draws on it, like the target.
    success: bool (B,), whether the goal is reached. iou, hit: (B,), mean IoU with the target over its classes, and the
    share of the voxels to be changed that were. sizes: of the change. excess: (B,), estimated share by which the change
    is longer than the local optimum, NaN where there is no estimate; see docs/method.md. trace: lists under step, loss,
    score, reached and l2_model, means over the samples that were attacked. trust: whether the attack can be believed,
    see `mafl_cli.results.trust_report`. worst: with the method worst, who found what, see
    `mafl_cli.results.worst_report`; else None. assumptions: what nobody stated about the model, as sentences.
    """

    adversarial: A
    prediction: A
    success: A
    iou: A
    hit: A
    sizes: Sizes[A]
    excess: A
    trace: Trace
    trust: Trust
    worst: WorstCase | None
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded, to be given to several attacks, on arrays and on scans; see `load_model`.

    source: what it was loaded from. info: what is known about it: dims, channels, classes.names, activation, divisor,
    and the assumptions.
    """

    source: Model
    device: torch.device
    card: ModelCard
    info: ModelInfo
    file: ModelFile


def load_model(
    model: str | Path | torch.nn.Module | Sequence[str | Path | torch.nn.Module],
    *,
    ensemble: EnsembleRule | None = None,
    card: ModelCard | Mapping[str, Any] | str | Path | None = None,
    device: str = "auto",
    trust: bool = False,
) -> Loaded:
    """Load a model of any kind and find out what it takes and gives.

        model = mafl.load_model("model.ts", device="cpu")
        model.info.dims, model.info.classes.names, model.info.assumptions

        model = mafl.load_model(network, card={"input": {"orientation": "RAS", "intensity": "zscore"}})
        mafl.attack_scan("scan.nii.gz", "erase:1", model=model, steps=20)

        model = mafl.load_model(["one.ts", "other.onnx"], ensemble="mean")  # one function, attacked as a whole

    A model file is a program: load only files you trust. A network of your own is put into evaluation mode, and its
    parameters ask for no gradients any more.
    Args:
        model: a file or folder (see docs/models.md), `package.module:function`, or an `nn.Module`; several of them with
            `ensemble`.
        ensemble: how the answers of several models become one: mean, of their logits, or mean-probabilities.
        card: of an `nn.Module`: what it expects of a scan; the tables of a model's TOML file, or the path of one.
        device: for an `nn.Module`, auto is where it is.
        trust: whether Python code that comes with the model may run.
    Raises: ModelError with the reason if it cannot be attacked; UsageError for a device that is not there.
    """
    given = tuple(model) if isinstance(model, (list, tuple)) else (model,)
    networks = [each for each in given if isinstance(each, torch.nn.Module)]
    if card is not None and not networks:
        raise UsageError("a card is for an nn.Module: beside a file lies its TOML file.")
    own = next((each.device for network in networks for each in (*network.parameters(), *network.buffers())), None)
    where = own if device == "auto" and own is not None else pick_device(str(device))
    source = model_of([_own(each, card) if isinstance(each, torch.nn.Module) else each for each in given], ensemble)
    opening = Opening(trust=trust)
    known = find_card(source, opening)
    file = read_model(source, where, opening)
    with exactly(where), float32_by_default():
        _, info, _ = describe(file, source.name, where, known)
    return Loaded(source, where, known, info, file)


def _own(network: torch.nn.Module, card: object) -> Own:
    return Own(network, type(getattr(network, "_orig_mod", network)).__name__, card)


@dataclass(frozen=True, kw_only=True)
class ArrayProblem(Problem):
    """Images with targets. spacing: mm along the spatial axes, None where they are alike."""

    images: Seen
    spacing: tuple[float, ...] | None

    @property
    def seen(self) -> Seen:
        """The images, and the model that sees them."""
        return self.images

    @property
    def batch_spacing(self) -> tuple[float, ...] | None:
        """mm between voxels along the spatial axes."""
        return self.spacing

    @property
    def plane(self) -> tuple[int, int]:
        """The axes of the batch along which slices are shown: the last two."""
        return self.images.clean.ndim - 2, self.images.clean.ndim - 1

    def noise(self) -> tuple[Noise | None, ...]:
        """The noise of each channel of the clean images, their units; None where there is none to measure."""
        channels = _by_channel(self.images.clean)
        return tuple(noise_of(each.reshape(-1, *each.shape[-2:]), 0) for each in channels)

    def refrozen(self, batch: Tensor) -> Preprocessing:
        """The preprocessing with the statistics of a changed batch."""
        return self.images.frozen(_by_channel(batch))


@dataclass(frozen=True, kw_only=True)
class View:
    """How the model sees the images.

    intensity: scaling between the image and the network, as "zscore", "window:-57,164", ...; None is the card's, else
        none at all: the network gets the image as it is.
    roi, overlap: sliding windows of this size, voxels along each spatial axis, which overlap by a share in [0, 1). None
        is the card's roi, else the image goes through the network in one piece, as with "none".
    spacing: mm along the spatial axes, for what counts as low frequency; None or "native" where voxels are as long as
        wide.
    tap: layer whose features are compared, NAME or NAME:WEIGHT, several separated by commas; auto takes the deepest.
    precision: of the search; the result is judged in float32.
    activation: softmax for classes that exclude each other, sigmoid for regions that may overlap; None follows from the
        card, else from the target's shape and the output's.
    Raises: UsageError for what cannot be.
    """

    intensity: str | Intensity | None = None
    roi: Sequence[int] | Literal["none"] | None = None
    overlap: float | None = None
    spacing: Sequence[float] | Literal["native"] | None = None
    tap: str = "auto"
    precision: Precision = "float32"
    activation: Activation | None = None

    def __post_init__(self) -> None:
        checked = seen_as({each.name: getattr(self, each.name) for each in fields(self)})
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.activation is not None:
            require_choice("activation", self.activation)

    def seen_by(self, card: ModelCard, *, regions: bool) -> ModelCard:
        """The card with what is stated here. regions: whether the target has a mask for each region."""
        return card.merged(
            intensity=self.intensity,
            roi=self.roi,
            overlap=self.overlap,
            activation=self.activation or ("sigmoid" if regions and card.activation is None else None),
        )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of an attack on arrays beside its settings; see `mafl_cli.attack`."""

    target: Array
    guide: Array | None = None
    start: Array | None = None
    within: Array | None = None
    attack_channels: str | int | Sequence[str | int] | None = None
    view: View


def attack_arrays(
    model: torch.nn.Module | Loaded | str | Path,
    image: A,
    asked: Asked,
    config: AttackConfig,
    *,
    say: Say = lambda line: None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Attacked[A]:
    """See `mafl_cli.attack`."""
    if asked.start is not None and config.method != "worst":
        raise UsageError(f"`start` is for the method worst, not for {config.method}: leave it out.")
    with ExitStack() as stack:
        # A caller's no_grad or inference_mode would leave nothing to search with, and autocast would be recorded.
        stack.enter_context(float32_by_default())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        network = stack.enter_context(_network(model, image))
        stack.enter_context(torch.autocast(network.device.type, enabled=False))
        stack.enter_context(exactly(network.device))
        stack.enter_context(enough_memory(network.name, "the batch"))
        clean = image_tensor(image, network.device)
        problem = _problem(network, clean, asked, say)
        names = [f"`image`, channel {outside(name)}" for name in problem.images.info.channels]
        problem = replace(problem, limits=problem.limits_for(config, names))
        found = searched(problem, config, on_progress)
        settled = settle(problem, found, checked(problem, found, config), config, say, on_progress)
        like_image = _same if isinstance(image, Tensor) else _as_numpy
        return _result(problem, config, settled, like_image)


@dataclass(frozen=True)
class _Network:
    """A network, what it is called, what is known of it, and the device that it is on."""

    file: ModelFile
    name: str
    card: ModelCard
    device: torch.device


@contextmanager
def _network(model: torch.nn.Module | Loaded | str | Path, image: Array) -> Iterator[_Network]:
    """The network to attack, on the device of the image, if that is a tensor."""
    where = image.device if isinstance(image, Tensor) else None
    if isinstance(model, torch.nn.Module):
        own = next((each.device for each in (*model.parameters(), *model.buffers())), None)
        if where is not None and own not in (None, where):
            raise UsageError(f"`image` is on {where}, `model` on {own}: bring them onto one device.")
        device = where or own or torch.device("cpu")
        with lent(model) as file:
            yield _Network(file, type(model).__name__, ModelCard(orientation="native", intensity=Intensity()), device)
        return
    if isinstance(model, (str, Path)):
        path, device = Path(model), where or pick_device("auto")
        yield _Network(read_model(path, device), path.name, find_card(path), device)
        return
    if not isinstance(model, Loaded):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise UsageError(
            f"`model` must be an nn.Module, the path of a model file, or what load_model returns, got {kind}."
        )
    if where not in (None, model.device):
        raise UsageError(f"`image` is on {where}, `model` was loaded on {model.device}: bring them onto one device.")
    yield _Network(model.file, model.source.name, model.card, model.device)


def _problem(network: _Network, clean: Tensor, asked: Asked, say: Say) -> ArrayProblem:
    """Everything that can be wrong with the arrays is found here, before the search."""
    view = asked.view
    dims, size = clean.ndim - 2, tuple(clean.shape[2:])
    wanted = target_tensor(asked.target, clean.device)
    regions = wanted.ndim == clean.ndim
    _require_on_grid(wanted, clean)
    unstated = regions and view.activation is None and network.card.activation is None
    if unstated and bool((wanted.sum(dim=1) == 1).all()):
        raise InputError(
            "`target` is one-hot, one class at each voxel: use target.argmax(1), or `activation` 'sigmoid' for regions."
        )
    card = view.seen_by(network.card, regions=regions)
    spacing = None if view.spacing is None or isinstance(view.spacing, str) else tuple(view.spacing)
    for name, numbers in (("roi", card.roi), ("spacing", spacing)):
        if numbers is not None and len(numbers) != dims:
            raise UsageError(f"`{name}` must have a number for each of the {dims} spatial axes, got {len(numbers)}.")
    if card.dims not in (None, dims):
        raise InputError(f"`image` has {dims} spatial axes, the model takes {card.dims}.")
    if card.crop:
        raise UsageError(
            "`model` must be a network or a model file: an nnU-Net results folder asks for spacing and axes, which "
            "arrays do not have; give files to mafl.attack_scan."
        )
    tiling = Tiling(card.roi, card.overlap, card.blend) if card.roi is not None else None
    segmenter, info, card = describe(
        network.file,
        network.name,
        clean.device,
        replace(card, dims=dims),
        size=lambda dims: size if tiling is None else tiling.roi,
        tap=view.tap,
        precision=view.precision,
    )
    if unstated:
        sentence = "activation: not stated, sigmoid because the target has a mask for each region"
        info = replace(info, assumptions=(*info.assumptions, sentence))
    for sentence in info.assumptions:
        say(f"assumed for {network.name}: {sentence}")
    if clean.shape[1] != len(info.channels):
        raise InputError(f"`image` has {clean.shape[1]} channels, the model takes {len(info.channels)}.")
    preprocessing = Preprocessing.freeze(card.intensity or Intensity(), _by_channel(clean), clean.device)
    seen = Seen(
        segmenter=segmenter, info=info, preprocessing=preprocessing, grids=Grids.same(size), tiling=tiling,
        clean=clean, say=say,
    )  # fmt: skip
    before = seen.drawn(clean, preprocessing)
    target = _target(wanted, before.labels, info.classes)
    seen, before = looked_for_chance(seen, before, target)
    return ArrayProblem(
        images=seen,
        wanted=target,
        clean_labels=before.labels,
        clean_draws=before.draws,
        guide=None if asked.guide is None else image_like(asked.guide, clean, "guide"),
        start=None if asked.start is None else image_like(asked.start, clean, "start"),
        limits=_limits(preprocessing, clean, asked, info),
        confined=asked.within is not None or asked.attack_channels is not None,
        spacing=spacing,
    )


def _require_on_grid(wanted: Tensor, clean: Tensor) -> None:
    """Raise InputError for a target that is not on the image's grid, whatever the model's classes are."""
    batch, size = len(clean), tuple(clean.shape[2:])
    shape = tuple(wanted.shape)
    if len(shape) == clean.ndim and shape[1] == 1 and shape[2:] == size:
        raise InputError(f"`target` must be (B, *spatial), {(batch, *size)}, got {shape}: remove its channel axis.")
    if shape != (batch, *size) and not (len(shape) == clean.ndim and (shape[0], *shape[2:]) == (batch, *size)):
        raise InputError(f"`target` must be (B, *spatial), {(batch, *size)}, on the grid of the image, got {shape}.")


def _target(wanted: Tensor, labels: Tensor, classes: Classes) -> Tensor:
    """A target as networks draw it, as labels of the type of those that the model draws.

    Raises: InputError for another shape, or classes that are not the model's.
    """
    expected = tuple(classes.to_network(labels).shape)
    if tuple(wanted.shape) != expected:
        raise InputError(
            f"`target` must have the shape {expected}, for the model has {classes.in_words}, got {tuple(wanted.shape)}."
        )
    low, high, most = int(wanted.min()), int(wanted.max()), classes.values - 1
    if low < 0 or high > most:
        what = "0 or 1 for each region" if classes.overlapping else f"the model's classes, 0 to {most}"
        raise InputError(f"`target` must hold {what}, got {low} to {high}.")
    return classes.from_network(wanted.to(labels.dtype))


def _limits(preprocessing: Preprocessing, clean: Tensor, asked: Asked, info: ModelInfo) -> Limits:
    """What the batch allows on its own, in the channels and voxels that may change."""
    limits = limits_of(preprocessing, clean)
    names = asked.attack_channels
    frozen = limits.frozen | kept_channels(None if names is None else words_of(names), info.channels, clean)
    if asked.within is not None:
        frozen = frozen | ~within_tensor(asked.within, clean).unsqueeze(1)
    return replace(limits, frozen=frozen)


def _by_channel(batch: Tensor) -> list[NDArray[np.float32]]:
    return [batch[:, channel].cpu().numpy() for channel in range(batch.shape[1])]


def _result(
    problem: ArrayProblem,
    config: AttackConfig,
    settled: Settled,
    like_image: Callable[[Tensor], Any],
) -> Attacked[Any]:
    """settled: the best of all searches. like_image: a tensor as an array of the kind that the image is."""
    found = settled.found
    adversarial = found.adversarial.whole()
    moved = adversarial - problem.images.clean
    change = moved.flatten(1)
    span = (problem.limits.high - problem.limits.low).clamp_min(1e-30)
    share = float((moved.abs().transpose(0, 1).flatten(1).amax(dim=1) / span).max())
    verdict = problem.goal(config).judge(found.drawn.labels)
    return Attacked(
        adversarial=like_image(adversarial),
        prediction=like_image(problem.images.info.classes.to_network(found.drawn.labels).long()),
        success=like_image(verdict.reached),
        iou=like_image(verdict.iou),
        hit=like_image(verdict.hit),
        sizes=Sizes(
            l2=like_image(change.norm(dim=1)),
            linf=like_image(change.abs().amax(dim=1)),
            share=like_image((change != 0).float().mean(dim=1)),
        ),
        excess=like_image(found.estimate.excess),
        trace=found.trace,
        trust=believed(problem, settled, config, reached=bool(verdict.reached.all()), linf_share=share),
        worst=found.worst,
        assumptions=found.info.assumptions,
    )


def _same(value: Tensor) -> Tensor:
    return value


def _as_numpy(value: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = value.cpu().numpy()
    return array
