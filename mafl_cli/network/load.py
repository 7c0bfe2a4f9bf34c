"""A model file, checked and described: `load`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mafl_cli.classes import Classes
from mafl_cli.config import Activation, EnsembleRule, Precision
from mafl_cli.errors import ModelError, UsageError
from mafl_cli.names import outside
from mafl_cli.network.card import ModelCard, read_taps
from mafl_cli.network.card_file import find_card
from mafl_cli.network.chance import DRAWS_A_STEP, DRAWS_JUDGED
from mafl_cli.network.gradient import choose
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.joined import JoinedSegmenter
from mafl_cli.network.kinds import read_model
from mafl_cli.network.lifting import Gives, NoLayer, Output, Tap, feature_nodes
from mafl_cli.network.members import require_joinable
from mafl_cli.network.model_file import ModelFile
from mafl_cli.network.opening import PLAIN, Opening
from mafl_cli.network.probing import accepted, input_kind, padded
from mafl_cli.network.reasons import REFUSALS, enough_memory, is_out_of_memory
from mafl_cli.network.segmenter import GradientFrom, Segmenter
from mafl_cli.network.source import Model

BY_CHANCE = (
    "answers: differ each time (noise, or dropout that was left on?): "
    f"judged over {DRAWS_JUDGED} draws, and searched with the mean gradient of {DRAWS_A_STEP}"
)
"""What is said of a network that answers by chance."""


MEMBER_FACTS = ("name", "sha256", "format", "intensity", "card", "gradient_from")
"""What is said of a member of an ensemble where the ensemble is described."""


@dataclass(frozen=True)
class ModelInfo:
    """What a report says about a model.

    gradient_from: what the search differentiates. taps: none where that is the file. assumptions: sentences about what
    nobody stated. ensemble, members: of several models that are one function, how their answers become one, and what
    is known of each.
    """

    name: str
    sha256: str
    format: str
    dims: int
    channels: tuple[str, ...]
    orientation: str
    classes: Classes
    activation: Activation
    intensity: Intensity
    divisor: int
    gradient_from: GradientFrom
    taps: tuple[Tap, ...]
    card: str | None
    assumptions: tuple[str, ...]
    ensemble: EnsembleRule | None = None
    members: tuple[ModelInfo, ...] = ()

    def with_gradient(self, source: GradientFrom, sentence: str | None) -> ModelInfo:
        """With what a scan has shown: what was differentiated for it, and why, if that is not as it was loaded."""
        if source == self.gradient_from:
            return self
        said = self.assumptions if sentence is None else (*self.assumptions, sentence)
        return replace(self, gradient_from=source, taps=(), assumptions=said)

    def with_chance(self) -> ModelInfo:
        """With what a scan has shown: that its answers differ."""
        return replace(self, assumptions=(*self.assumptions, BY_CHANCE))

    def facts(self) -> dict[str, Any]:
        """As reports have it: `classes` are their names, and `overlapping` stands beside them."""
        facts: dict[str, Any] = {}
        for name, value in vars(self).items():
            if self.ensemble is None and name in ("ensemble", "members"):
                continue
            facts[name] = value
            if name == "classes":
                facts |= {"classes": self.classes.names, "overlapping": self.classes.overlapping}
        if self.members:
            facts["members"] = [{name: member.facts()[name] for name in MEMBER_FACTS} for member in self.members]
        return facts | {"intensity": dict(self.intensity.facts())}


def load(
    path: Model,
    *,
    device: torch.device,
    card: ModelCard | None = None,
    size: Callable[[int], tuple[int, ...]] | None = None,
    tap: str = "auto",
    precision: Precision = "float32",
    opening: Opening = PLAIN,
) -> tuple[Segmenter, ModelInfo, ModelCard]:
    """Load a model, find out what it takes and gives, and lift it.

    Args:
        path: a model of any of the kinds in `network.kinds`. It may be a program: load only what you trust.
        card: what is known about the model; what lies beside the file or in it if None.
        size: spatial size the model will be used at (before padding), given its number of dimensions; None is the one
            that it was exported for, else 64 voxels.
        tap: "auto" (last layer at the coarsest resolution) or a node name that `mafl inspect` lists; NAME:WEIGHT,
            several of them separated by commas.
        precision: of the search; `Segmenter.exact` judges in float32.
        opening: what the user says about opening it: whether its code may run, which folds.
    Returns: the segmenter, what a report says about it, and the card with every gap filled.
    Raises ModelError with the reason if the file cannot be attacked.
    """
    card = find_card(path, opening) if card is None else card
    file = read_model(path, device, opening)
    return describe(file, outside(path.name), device, card, size=size, tap=tap, precision=precision)


def describe(
    file: ModelFile,
    name: str,
    device: torch.device,
    card: ModelCard,
    *,
    size: Callable[[int], tuple[int, ...]] | None = None,
    tap: str = "auto",
    precision: Precision = "float32",
) -> tuple[Segmenter, ModelInfo, ModelCard]:
    """Like `load`, for a network that is loaded already. name: what it is called in messages."""
    with enough_memory(name, "one sample of this size"):
        return _describe(file, name, device, card, size, tap, precision)


def _describe(
    file: ModelFile,
    name: str,
    device: torch.device,
    card: ModelCard,
    size: Callable[[int], tuple[int, ...]] | None,
    tap: str,
    precision: Precision,
) -> tuple[Segmenter, ModelInfo, ModelCard]:
    wanted = read_taps(tap)
    if file.parts:
        return _describe_joined(file, name, device, card, size, tap, precision)
    card, assumptions = card.with_assumptions()
    said = list(assumptions)
    dims, channels = input_kind(file, card, name, device)
    fixed = None if file.example is None else tuple(each for each in file.example[2:] if each is not None)
    shape = size(dims) if size is not None else fixed if fixed is not None and len(fixed) == dims else (64,) * dims
    divisor, output, raw = accepted(file, card, channels, shape, name, device)
    if card.divisor is None and divisor > 1:
        said.append(f"divisor: not stated, found by trying: sizes are padded to multiples of {divisor}")
    elif card.divisor is not None and divisor > card.divisor:
        said.append(
            f"divisor: {card.divisor} gives a size that is too small for the network; padded to multiples of {divisor}"
        )
    said += _said_of_grid(output)
    count = raw.shape[1]
    segmenter = Segmenter(file, name, output, device, wanted, precision)
    segmenter.tried = example = (1, channels, *padded(shape, divisor))
    if file.members > 1:
        # A graph of all of them would keep what each of them needs for its gradient, at once.
        segmenter.take_file(for_good=True)
        said.append(
            f"gradient: of the mean over {file.members} passes (folds and mirrored inputs), one at a time, without a "
            "feature term"
        )
    textured = torch.rand(example, generator=torch.Generator().manual_seed(0)).to(device)
    segmenter.original.gives = gives = _gives(segmenter, textured)
    if gives != "logits":
        what = "probabilities" if gives == "probabilities" else f"a {gives}"
        said.append(f"output: {what}, not logits; the logits behind it are attacked")
    activation: Activation = card.activation or ("sigmoid" if count == 1 or gives == "sigmoid" else "softmax")
    if overlapping := activation == "sigmoid" and count > 1:
        segmenter.take_regions()
    if card.activation is None:
        kinds = "one channel" if count == 1 else f"{count} channels"
        said.append(
            f"activation: not stated, {activation} because the output has {kinds}"
            + (", each a probability of its own" if overlapping else "")
        )
    classes = _classes(card, count, overlapping, name)
    if card.classes is None:
        numbered = "regions are numbered" if overlapping else "0 is taken for background"
        said.append(f"classes: not stated, {numbered}")
    card = replace(card, dims=dims, divisor=divisor, activation=activation, classes=classes.names)
    if file.members == 1 and (sentence := choose(segmenter, textured)) is not None:
        said.append(sentence)
    if segmenter.by_chance:
        said.append(BY_CHANCE)
    elif segmenter.gradient_from == "graph" and (why := _not_together(segmenter, example)) is not None:
        segmenter.take_one_by_one()
        said.append(f"batch: {why}; one goes at a time")
    info = ModelInfo(
        name=outside(card.name or name),
        sha256=file.sha256,
        format=file.format,
        dims=dims,
        channels=tuple(map(outside, card.channels or (f"channel {index}" for index in range(channels)))),
        orientation=card.orientation or "native",
        classes=classes,
        activation=activation,
        intensity=card.intensity or Intensity(),
        divisor=divisor,
        gradient_from=segmenter.gradient_from,
        taps=() if segmenter.gradient_from == "file" else segmenter.lifted(segmenter.original.enlarged(textured)).taps,
        card=card.source,
        assumptions=tuple(said),
    )
    return segmenter, info, card


def _describe_joined(
    file: ModelFile,
    name: str,
    device: torch.device,
    card: ModelCard,
    size: Callable[[int], tuple[int, ...]] | None,
    tap: str,
    precision: Precision,
) -> tuple[Segmenter, ModelInfo, ModelCard]:
    """An ensemble, of which each member is described as it would be alone."""
    if tap != "auto":
        raise UsageError("`tap` cannot be used for an ensemble: the features of its members are not compared.")
    assert file.ensemble is not None
    cards = [find_card(part.model, part.opening) for part in file.parts]
    found = [
        _describe(
            part.file, outside(part.model.name), device, replace(own, dims=card.dims or own.dims), size, tap, precision
        )
        for part, own in zip(file.parts, cards, strict=True)
    ]
    segmenters, infos = [each[0] for each in found], [each[1] for each in found]
    classes = require_joinable(infos, [own.classes is not None for own in cards])
    card, assumptions = card.with_assumptions()
    said = [
        *assumptions,
        f"ensemble: {_RULES[file.ensemble]} of {len(infos)} models, one at a time, without a feature term",
    ]
    shared = set.intersection(*(set(info.assumptions) for info in infos)) - {BY_CHANCE}
    said += [line for line in infos[0].assumptions if line in shared and line not in said]
    said += [f"{info.name}: {line}" for info in infos for line in info.assumptions if line not in {*shared, BY_CHANCE}]
    named = next((info for info, own in zip(infos, cards, strict=True) if own.channels), infos[0])
    single = all(info.activation == "sigmoid" for info in infos) and not classes.overlapping
    activation: Activation = "sigmoid" if single or classes.overlapping else "softmax"
    intensity = card.intensity or Intensity()
    largest = map(max, zip(*(each.tried[2:] for each in segmenters), strict=True))
    segmenter = JoinedSegmenter(
        file,
        name,
        segmenters,
        device,
        tried=(*segmenters[0].tried[:2], *largest),
        own=intensity.kind == "members",
        single=single,
        overlapping=classes.overlapping,
    )
    if segmenter.by_chance:
        said.append(BY_CHANCE)
    divisor = math.lcm(*(info.divisor for info in infos))
    card = replace(card, dims=infos[0].dims, divisor=divisor, activation=activation, classes=classes.names)
    info = ModelInfo(
        name=outside(card.name or name),
        sha256=file.sha256,
        format=file.format,
        dims=infos[0].dims,
        channels=named.channels,
        orientation=card.orientation or "native",
        classes=classes,
        activation=activation,
        intensity=intensity,
        divisor=divisor,
        gradient_from=segmenter.gradient_from,
        taps=(),
        card=card.source,
        assumptions=tuple(said),
        ensemble=file.ensemble,
        members=tuple(infos),
    )
    return segmenter, info, card


_RULES: dict[EnsembleRule, str] = {
    "mean": "the mean of the logits",
    "mean-probabilities": "the mean of the probabilities",
}


def _gives(segmenter: Segmenter, x: Tensor) -> Gives:
    """What the network's own output is, as its graph shows; as its values show where no graph can be recorded."""
    if segmenter.original.file.members > 1:
        return "logits"
    try:
        return segmenter.exact.lifted(segmenter.original.enlarged(x)).gives
    except NoLayer:
        raise
    except ModelError:
        return "probabilities" if segmenter.original.output.bounded else "logits"


def _not_together(segmenter: Segmenter, shape: tuple[int, ...]) -> str | None:
    """Why samples of this shape cannot go through a network together; None where they can."""
    example = segmenter.original.file.example
    if example is not None and example[0] == 1:
        return "it was exported for one sample"
    try:
        if segmenter.original.is_independent(shape):
            return None
    except REFUSALS as exc:
        if not is_out_of_memory(exc):
            raise
        return "two samples need more memory than there is"
    return "the output of a sample depends on the others (batch norm in training mode?)"


def _classes(card: ModelCard, count: int, overlapping: bool, name: str) -> Classes:
    """What `count` channels stand for. Raises ModelError if the card names another number of classes."""
    needed = count if overlapping else max(count, 2)
    if card.classes is None:
        if overlapping:
            return Classes(tuple(f"region {index}" for index in range(count)), overlapping=True)
        return Classes(("background", *(f"class {index}" for index in range(1, needed))))
    if len(card.classes) != needed:
        kind = "regions" if overlapping else "classes"
        raise ModelError(f"{name}: gives {needed} {kind}, its card names {len(card.classes)}.")
    return Classes(tuple(map(outside, card.classes)), overlapping)


def _said_of_grid(output: Output) -> list[str]:
    if any(output.margin):
        return [f"output: smaller than the input by {max(output.margin)} voxels; scans are padded with edge values"]
    if output.coarse > 1:
        return [f"output: {output.coarse} times coarser than the input; logits are interpolated"]
    return []


def taps(segmenter: Segmenter) -> list[tuple[str, tuple[int, ...]]]:
    """Every node that could be a tap, with its shape (F, *coarse) for an input of the shape that was tried.

    None where the file itself is differentiated.
    """
    if segmenter.gradient_from == "file":
        return []
    x = segmenter.original.enlarged(torch.zeros(segmenter.tried, device=segmenter.device))
    nodes = feature_nodes(segmenter.lifted(x).graph.graph, x)
    return [(node.name, size[1:]) for node, size in nodes]
