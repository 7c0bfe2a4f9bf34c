"""The attack on arrays: a batch of images along the model's axes, without files, affine or DICOM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.problem import Problem, Say, Seen
from mafl_cli.case.searching import Found, Progress, search
from mafl_cli.config import AttackConfig
from mafl_cli.errors import InputError, UsageError
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Grids
from mafl_cli.field.tiling import Tiling
from mafl_cli.network.card import ModelCard
from mafl_cli.network.card_file import find_card
from mafl_cli.network.device import pick_device
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.load import ModelInfo, describe
from mafl_cli.network.model_file import ModelFile, lent, read_model
from mafl_cli.results.report import Trace
from mafl_cli.search.limits import Limits

Array = Any  # a NumPy array or a tensor; which of them, says `A`
A = TypeVar("A")


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
    share of the voxels to be changed that were. sizes: of the change. trace: lists under step, loss, score, reached and
    l2_model, means over the samples that were attacked. assumptions: what nobody stated about the model, as sentences.
    """

    adversarial: A
    prediction: A
    success: A
    iou: A
    hit: A
    sizes: Sizes[A]
    trace: Trace
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """A model file that is loaded, to be given to several attacks; see `load_model`.

    info: what is known about it: dims, channels, classes, activation, divisor, and what was assumed.
    """

    path: Path
    device: torch.device
    card: ModelCard
    info: ModelInfo
    file: ModelFile


def load_model(path: str | Path, *, device: str = "auto") -> Loaded:
    """Load a TorchScript or .pt2 file and find out what it takes and gives.

    A model file is a program: load only files you trust.
    Raises: ModelError with the reason if it cannot be attacked; UsageError for a device that is not there.
    """
    path, where = Path(path), pick_device(device)
    card = find_card(path)
    file = read_model(path, where)
    _, info, _ = describe(file, path.name, where, card)
    return Loaded(path, where, card, info, file)


@dataclass(frozen=True, kw_only=True)
class ArrayProblem(Problem):
    """A batch of images with targets. spacing: mm along the spatial axes, None where they are alike."""

    spacing: tuple[float, ...] | None

    @property
    def batch_spacing(self) -> tuple[float, ...] | None:
        """mm between voxels along the spatial axes."""
        return self.spacing

    def refrozen(self, batch: Tensor) -> Preprocessing:
        """The preprocessing with the statistics of a changed batch."""
        return self.frozen(_by_channel(batch))


@dataclass(frozen=True, kw_only=True)
class View:
    """How the model sees the images.

    intensity: scaling between the image and the network; None is the card's, else none at all. roi, overlap: of sliding
    windows, voxels and share; a roi of None is the card's, else the image goes through the network in one piece.
    spacing: mm along the spatial axes, for what counts as low frequency; None where voxels are as long as wide.
    """

    intensity: str | Intensity | None = None
    roi: Sequence[int] | None = None
    overlap: float | None = None
    spacing: Sequence[float] | None = None


def attack_arrays(
    model: torch.nn.Module | Loaded | str | Path,
    image: Array,
    target: Array,
    config: AttackConfig,
    *,
    guide: Array | None = None,
    within: Array | None = None,
    view: View | None = None,
    say: Say = lambda line: None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Attacked[Any]:
    """See `mafl_cli.attack`."""
    tensors = isinstance(image, Tensor)
    # A caller's no_grad or inference_mode would leave nothing to search with.
    with torch.inference_mode(False), torch.enable_grad(), _network(model, image) as (file, name, card, device):
        clean = _image(image, device)
        problem = _problem(file, name, card, clean, target, guide, within, view or View(), say)
        found = search(problem, config, on_progress)
        result = _result(problem, config, found)
    if tensors:
        return result
    return _as_numpy(result)


@contextmanager
def _network(model: Any, image: Array) -> Iterator[tuple[ModelFile, str, ModelCard, torch.device]]:
    """The network, its name, what is known of it, and the device that it is on."""
    where = image.device if isinstance(image, Tensor) else None
    if isinstance(model, torch.nn.Module):
        own = next((each.device for each in (*model.parameters(), *model.buffers())), None)
        if where is not None and own not in (None, where):
            raise UsageError(f"`image` is on {where}, `model` on {own}: bring them onto one device.")
        with lent(model) as file:
            name = type(model).__name__
            yield (
                file,
                name,
                ModelCard(orientation="native", intensity=Intensity()),
                where or own or torch.device("cpu"),
            )
        return
    if isinstance(model, (str, Path)):
        path, device = Path(model), where or pick_device("auto")
        yield read_model(path, device), path.name, find_card(path), device
        return
    if not isinstance(model, Loaded):
        raise UsageError("`model` must be an nn.Module, the path of a model file, or what load_model gives.")
    if where not in (None, model.device):
        raise UsageError(f"`image` is on {where}, `model` was loaded on {model.device}: bring them onto one device.")
    yield model.file, model.path.name, model.card, model.device


def _image(image: Array, device: torch.device) -> Tensor:
    """(B, C, *spatial), float32, a copy. Raises InputError for anything else."""
    x = torch.as_tensor(image).detach()
    if x.ndim not in (4, 5) or x.is_complex() or not x.numel():
        raise InputError(
            f"`image` has the shape {tuple(x.shape)}: expected (B, C, *spatial), real numbers, "
            "two or three spatial axes."
        )
    x = x.to(device, torch.float32, copy=True).contiguous()
    if not bool(torch.isfinite(x).all()):
        raise InputError("`image` holds NaN or infinite values.")
    return x


def _problem(
    file: ModelFile,
    name: str,
    card: ModelCard,
    clean: Tensor,
    target: Array,
    guide: Array | None,
    within: Array | None,
    view: View,
    say: Say,
) -> ArrayProblem:
    wanted = torch.as_tensor(target).detach().to(clean.device)
    regions = wanted.ndim == clean.ndim
    intensity = Intensity.parse(view.intensity) if isinstance(view.intensity, str) else view.intensity
    card = card.merged(
        intensity=intensity,
        roi=None if view.roi is None else tuple(view.roi),
        overlap=view.overlap,
        activation="sigmoid" if regions and card.activation is None else None,
    )
    dims, size = clean.ndim - 2, tuple(clean.shape[2:])
    if card.dims not in (None, dims):
        raise InputError(f"`image` has {dims} spatial axes, the model takes {card.dims}.")
    tiling = Tiling(card.roi, card.overlap, card.blend) if card.roi is not None and any(card.roi) else None
    segmenter, info, card = describe(
        file, name, clean.device, replace(card, dims=dims), size=lambda dims: size if tiling is None else tiling.roi
    )
    for sentence in info.assumptions:
        say(f"assumed for {name}: {sentence}")
    if clean.shape[1] != len(info.channels):
        raise InputError(f"`image` has {clean.shape[1]} channels, the model takes {len(info.channels)}.")
    assert card.intensity is not None
    preprocessing = Preprocessing.freeze(card.intensity, _by_channel(clean), clean.device)
    seen = Seen(
        segmenter=segmenter, info=info, preprocessing=preprocessing, grids=Grids.same(size), tiling=tiling,
        clean=clean, say=say,
    )  # fmt: skip
    labels = seen.drawn(clean, preprocessing).labels
    return ArrayProblem(
        **vars(seen),
        wanted=_target(wanted, labels, len(info.classes), overlapping=info.overlapping),
        clean_labels=labels,
        guide=None if guide is None else _like(guide, clean, "guide"),
        limits=_limits(preprocessing, clean, within),
        spacing=None if view.spacing is None else tuple(view.spacing),
    )


def _target(wanted: Tensor, labels: Tensor, classes: int, *, overlapping: bool) -> Tensor:
    """The target in the type of labels. Raises InputError for another shape, or classes that are not the model's."""
    if tuple(wanted.shape) != tuple(labels.shape):
        raise InputError(f"`target` has the shape {tuple(wanted.shape)}: expected {tuple(labels.shape)}.")
    if wanted.is_floating_point() or wanted.is_complex():
        raise InputError("`target` must hold class numbers, as whole numbers.")
    low, high, most = int(wanted.min()), int(wanted.max()), 1 if overlapping else classes - 1
    if low < 0 or high > most:
        raise InputError(f"`target` holds {low} to {high}, the model's classes are 0 to {most}.")
    return wanted.to(labels.dtype)


def _like(values: Array, clean: Tensor, name: str) -> Tensor:
    x = torch.as_tensor(values).detach().to(clean.device, torch.float32)
    if x.shape != clean.shape:
        raise InputError(f"`{name}` has the shape {tuple(x.shape)}: expected that of the image, {tuple(clean.shape)}.")
    return x


def _limits(preprocessing: Preprocessing, clean: Tensor, within: Array | None) -> Limits:
    """The box is the range of the batch, channel by channel."""
    low, frozen = preprocessing.low.clone(), preprocessing.keep(clean)
    if within is not None:
        allowed = torch.as_tensor(within).to(clean.device) > 0
        if allowed.shape != clean[:, 0].shape:
            expected = tuple(clean[:, 0].shape)
            raise InputError(f"`within` has the shape {tuple(allowed.shape)}: expected (B, *spatial), {expected}.")
        frozen = frozen | ~allowed.unsqueeze(1)
    if preprocessing.nonzero_only and not bool((clean < 0).any()):
        # Zero is background by definition there; the darkest tissue is the floor.
        for channel in range(clean.shape[1]):
            values = clean[:, channel]
            low[channel] = values[values > 0].min()
    return Limits(
        low=low, high=preprocessing.high.clone(), unit=preprocessing.unit, frozen=frozen,
        nonzero=preprocessing.nonzero_only,
    )  # fmt: skip


def _by_channel(batch: Tensor) -> list[NDArray[np.float32]]:
    return [batch[:, channel].cpu().numpy() for channel in range(batch.shape[1])]


def _result(problem: ArrayProblem, config: AttackConfig, found: Found) -> Attacked[Tensor]:
    adversarial = found.adversarial.whole()
    change = (adversarial - problem.clean).flatten(1)
    verdict = problem.goal(config).judge(found.drawn.labels)
    return Attacked(
        adversarial=adversarial,
        prediction=found.drawn.labels.long(),
        success=verdict.reached,
        iou=verdict.iou,
        hit=verdict.hit,
        sizes=Sizes(l2=change.norm(dim=1), linf=change.abs().amax(dim=1), share=(change != 0).float().mean(dim=1)),
        trace=found.trace,
        assumptions=problem.info.assumptions,
    )


def _as_numpy(result: Attacked[Tensor]) -> Attacked[NDArray[Any]]:
    def plain(value: Tensor) -> NDArray[Any]:
        array: NDArray[Any] = value.cpu().numpy()
        return array

    return Attacked(
        adversarial=plain(result.adversarial),
        prediction=plain(result.prediction),
        success=plain(result.success),
        iou=plain(result.iou),
        hit=plain(result.hit),
        sizes=Sizes(plain(result.sizes.l2), plain(result.sizes.linf), plain(result.sizes.share)),
        trace=result.trace,
        assumptions=result.assumptions,
    )
