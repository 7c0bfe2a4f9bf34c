"""Whose gradient the search follows: that of the graph lifted from a model file, or that of the file itself.

A graph is recorded with one input. It is fast, has features, and is the derivative of what the network computes, as
long as the network computes the same for every input. It is compared with the file; where they differ, and where the
file's own gradient says more than the derivative (straight-through estimators), the file is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mafl_cli.errors import ModelError
from mafl_cli.network import chance
from mafl_cli.network.lifting import NoLayer
from mafl_cli.network.prediction import Prediction
from mafl_cli.network.reasons import REFUSALS, is_out_of_memory, meaning
from mafl_cli.network.segmenter import Segmenter

TOLERANCE = 1e-3
"""How far the graph's answer may be from the file's, as a share of the file's largest value, and of the voxels.

Freezing folds batch norm into convolutions, which moves the last digits: by 2e-6 at the most in the networks of
`tests/network/test_networks.py`. A network that does something else is off by far more.
"""
_ALIKE = 0.99
"""Cosine above which two gradients are one."""
_DIRECTIONS = 8
_STEP = 0.03
"""Length of a trial step as a share of the image's range: longer than a level of 6 bits, which averages out."""

_FIRST, _SECOND = 2018, 2025
"""Numbers of two draws, see `network.chance`: whether a network answers by chance shows in both."""
_RARE = 14
"""Draws that a network with random operators is asked for, before it is taken to answer the same each time."""

_CANNOT = "cannot be attacked: "
_DECIDES = "it decides by the values of its input (an if, a loop, a size)"
_CHANCES = "chance decides what it computes (a random shift or size)"
_DIFFERS = "the graph recorded from it answers otherwise"
_NO_GRAPH = "no graph can be recorded from it that has a gradient"
_OWN = "its own gradient (straight-through) explains its answers better than the derivative of what it computes"


@dataclass(frozen=True)
class Difference:
    """Between what the graph and the file answer to one input.

    largest: of the values, as a share of the file's largest value. moved: share of the voxels with another class.
    """

    largest: float
    moved: float

    @property
    def matters(self) -> bool:
        """Whether the graph does not stand for the file."""
        return not (self.largest <= TOLERANCE and self.moved <= TOLERANCE)


def difference(segmenter: Segmenter, ready: Tensor, theirs: Tensor | None = None, *, draw: int = _FIRST) -> Difference:
    """How far the graph is from the file for one input, (1, C, *spatial), as the network gets it, in one draw.

    theirs: what the file answers in this draw, if it was asked before.
    """
    original = segmenter.original
    if theirs is None:
        theirs = answered(segmenter, ready, draw)
    try:
        with drawing(segmenter, draw):
            mine = segmenter.exact.as_given(ready).float()
    except REFUSALS as exc:  # Sizes that other values had decided.
        if is_out_of_memory(exc):
            raise
        return Difference(torch.inf, 1.0)
    if mine.shape != theirs.shape:
        return Difference(torch.inf, 1.0)
    scale = torch.nan_to_num(theirs, nan=0.0, posinf=0.0, neginf=0.0).abs().amax()
    apart = _apart(mine, theirs) / (float(scale) or 1.0)
    moved = (original.labels(mine) != original.labels(theirs)).float().mean()
    return Difference(apart, float(moved))


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two answers; none where both are the same, NaN or infinite too."""
    same = (one == other) | (torch.isnan(one) & torch.isnan(other))
    return float(torch.nan_to_num(torch.where(same, 0.0, one - other).abs(), nan=torch.inf).amax())


def brightened(ready: Tensor) -> Tensor:
    """An input with a tenth of its range added."""
    return ready + 0.1 * (ready.amax() - ready.amin())


def difference_brightened(segmenter: Segmenter, ready: Tensor) -> Difference:
    """The same for a brighter input, and in another draw: what chance decided must not be a constant of the graph."""
    return difference(segmenter, brightened(ready), draw=_SECOND)


def drawing(segmenter: Segmenter, number: int) -> AbstractContextManager[None]:
    """A draw of a network, see `chance.drawing`."""
    return chance.drawing(number, device=segmenter.device)


def answered(segmenter: Segmenter, ready: Tensor, draw: int = _FIRST) -> Tensor:
    """What the file answers to one input in one draw: (1, n, *spatial)."""
    with torch.no_grad(), drawing(segmenter, draw):
        return segmenter.original.raw(ready).float()


def answers_by_chance(segmenter: Segmenter, ready: Tensor, answer: Tensor | None = None) -> bool:
    """Whether the file's answers to one input differ. answer: the first, if it was asked before."""
    one = answered(segmenter, ready) if answer is None else answer
    for number in range(_RARE if segmenter.original.has_random else 1):
        other = answered(segmenter, ready, _SECOND + number)
        # The threads of a GPU add up in any order; dropout shows in the first digits.
        slack = 0.0 if ready.device.type == "cpu" else 1e-4 * float(one.abs().amax())
        if one.shape != other.shape or _apart(one, other) > slack:
            return True
    return False


# --- after loading ------------------------------------------------------------------------------------------------


def choose(segmenter: Segmenter, x: Tensor) -> str | None:
    """Try the network out on a textured image, and choose what is differentiated.

    A graph that spoils its own gradient by working in place is made to work without.
    Args:
        x: (1, C, *spatial), model units.
    Returns: why the file is differentiated, as a sentence for people; None for the graph.
    Raises: ModelError if neither has a gradient, or if an answer is not finite.
    """
    with drawing(segmenter, _FIRST):
        return _chosen(segmenter, x)


def _chosen(segmenter: Segmenter, x: Tensor) -> str | None:
    name, ready = segmenter.name, segmenter.original.enlarged(x)
    answer = answered(segmenter, ready)
    if not torch.isfinite(answer).all():
        raise ModelError(f"{name}: gives NaN or infinite values for an ordinary image.")
    with suppress(ModelError):  # Why no graph can be made is said below.
        segmenter.original.has_random = segmenter.exact.lifted(ready).random
    if answers_by_chance(segmenter, ready, answer):
        segmenter.take_chance(for_good=True)
    graph = _Trial.of(segmenter.exact, x, name)
    if graph.refusal is not None:
        segmenter.take_functional()
        graph = _Trial.of(segmenter.exact, x, name)
    reason = _why_not_the_graph(segmenter, ready, answer, graph)
    # The file of most networks has the same gradient, which need not be asked for.
    own = _Trial(None, None, None)
    if reason is not None or not graph.leads or segmenter.cuts:
        own = _Trial.of(segmenter.original, x, name)
    if reason is None and own.leads and not (graph.leads and _explains_as_well(segmenter, ready)):
        reason = _OWN
    if reason == _DECIDES and not own.leads and graph.leads:
        reason = None  # What it decided holds here; every scan is compared again.
    if not (graph if reason is None else own).leads:
        raise _refusal(segmenter, graph, own, reason)
    if reason is not None:
        segmenter.take_file(for_good=True)
    if segmenter is not segmenter.exact and (refused := _Trial.of(segmenter, x, name).refusal) is not None:
        raise ModelError(f"{name}: cannot be attacked in this precision: {refused.removeprefix(_CANNOT)}.")
    return None if reason is None else said(reason)


def said(reason: str) -> str:
    """What a report says of a network whose file is differentiated."""
    return f"gradient: of the model file itself, without a feature term, because {reason}"


def differentiate_file(segmenter: Segmenter, ready: Tensor) -> str:
    """Differentiate the file from now on, for a scan on which the graph does not stand for it; returns the sentence.

    Raises: ModelError if the file has no gradient.
    """
    members = segmenter.members_of(ready)
    if len(members) > 1:
        # The graphs of the others stand for their files, which may have no gradient.
        differing = [each for each in members if difference(*each).matters or difference_brightened(*each).matters]
        members = differing or members
    for member, given in members:
        trial = _Trial.of(member.original, given, member.name)
        if trial.refusal is not None or trial.gradient is None:
            raise _refusal(member, trial, trial, _DIFFERS)
        member.take_file()
    return said(_DIFFERS)


@dataclass(frozen=True)
class _Trial:
    """A pass forward and backward. logits, gradient: None where there are none. refusal: why, to follow the name."""

    logits: Tensor | None
    gradient: Tensor | None
    refusal: str | None

    @staticmethod
    def of(network: Callable[[Tensor], Prediction], x: Tensor, name: str) -> _Trial:
        try:
            return _Trial(*_backward(network, x), None)
        except NoLayer:
            raise
        except ModelError as exc:
            return _Trial(None, None, str(exc).removeprefix(f"{name}: ").rstrip("."))
        except Exception as exc:  # A backward pass of a network's own may raise a class of its own.
            if is_out_of_memory(exc):
                raise
            return _Trial(None, None, _CANNOT + meaning(exc))

    @property
    def leads(self) -> bool:
        """Whether there is a way to go."""
        return self.gradient is not None and bool(torch.isfinite(self.gradient).all() and self.gradient.any())


def _why_not_the_graph(segmenter: Segmenter, ready: Tensor, answer: Tensor, graph: _Trial) -> str | None:
    if graph.refusal is not None:
        return _NO_GRAPH
    if segmenter.exact.lifted(ready).decides:
        return _CHANCES if segmenter.by_chance else _DECIDES
    differs = difference(segmenter, ready, answer).matters or difference_brightened(segmenter, ready).matters
    return _DIFFERS if differs else None


def _refusal(segmenter: Segmenter, graph: _Trial, own: _Trial, reason: str | None) -> ModelError:
    """Why a network cannot be attacked."""
    name = segmenter.name
    if graph.refusal is not None:
        return ModelError(f"{name}: {graph.refusal}.")
    if reason is not None and own.refusal is not None:
        return ModelError(f"{name}: cannot be attacked: {reason}, and the file {own.refusal}.")
    why = "(optimize_for_inference, quantised, or detached); save it with torch.jit.script or torch.jit.trace"
    if segmenter.format == "torch.nn":
        why = "(detached, turned into NumPy, or under torch.no_grad() in its forward); take that out"
    if segmenter.format == "onnx":
        why = "(onnxruntime has none); export it as TorchScript or .pt2"
    if reason is not None:
        return ModelError(f"{name}: cannot be attacked: {reason}, and the file itself gives no gradient {why}.")
    if graph.gradient is None:
        return ModelError(f"{name}: gives no gradient with respect to its input {why}.")
    return ModelError(f"{name}: its gradient with respect to the input is zero or not finite.")


def _backward(network: Callable[[Tensor], Prediction], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits, and the gradient of what the attack may ask of them; None if there is none."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        prediction = network(x)
        logits = prediction.logits
        if not logits.requires_grad:
            return logits.detach(), None
        (gradient,) = torch.autograd.grad(_contrast(logits), x, allow_unused=True, retain_graph=True)
        taps = sum(patch.features.sum() for patch in prediction.features if patch.features.requires_grad)
        if isinstance(taps, Tensor):
            torch.autograd.grad(taps, x, allow_unused=True)
    return logits.detach(), gradient


def _contrast(values: Tensor) -> Tensor:
    """One number of all logits, or of all that a network gives, (B, n, ...).

    No class wins where all logits rise alike, so their differences count; a single channel's are against zero. Weighed
    by chance: a plain sum is constant where regions are opposites, or where a last norm fixes the mean. Whole numbers,
    so that what cancels leaves none.
    """
    apart = values[:, 1:] - values[:, :-1] if values.shape[1] > 1 else values
    weights = torch.randint(1, 1000, apart.shape, generator=torch.Generator().manual_seed(0)).to(apart)
    return (weights * apart).sum()


def _explains_as_well(segmenter: Segmenter, ready: Tensor) -> bool:
    """Whether the graph's gradient foretells the file's answers to small changes no worse than the file's own."""
    original, lifted = segmenter.original, segmenter.exact.lifted(ready)
    graphs, owns = (
        _slope(answers, ready)
        for answers in (
            lambda x: lifted.as_given(_begun(lifted.graph)(x)[0]).float(),
            lambda x: original.raw(x).float(),
        )
    )
    if _cosine(graphs, owns) > _ALIKE or not owns.any():
        return True
    generator = torch.Generator().manual_seed(2)
    ways = torch.randn((_DIRECTIONS, *ready.shape), generator=generator).to(ready)
    ways *= _STEP * (ready.amax() - ready.amin())
    with torch.no_grad():
        came = torch.stack(
            [
                _contrast(original.raw(ready + way).float()) - _contrast(original.raw(ready - way).float())
                for way in ways
            ]
        )
    foretold = (_cosine(came, (ways * slope).flatten(1).sum(dim=1)) for slope in (graphs, owns))
    return next(foretold) >= next(foretold)


def _begun(graph: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A graph that draws what its file draws."""

    def answer(x: Tensor) -> Any:
        chance.begin()
        return graph(x)

    return answer


def _slope(answers: Callable[[Tensor], Tensor], ready: Tensor) -> Tensor:
    """The gradient of one number of all that a network gives."""
    x = ready.detach().clone().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(_contrast(answers(x)), x, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))
