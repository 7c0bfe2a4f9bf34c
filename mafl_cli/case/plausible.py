"""Does a prediction look like one of a network that sees what it was trained on? A number, without a mask to compare.

A network that is given something else seldom says so, but it wavers: what it draws is unsure, and changes when the scan
moves by a few voxels. And what reaches its batch norm layers is not what they remember, see `network.remembered`. All
three are looked at; none proves anything, for a network may also be wrong and sure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mafl_cli.case.problem import Seen
from mafl_cli.network.prediction import drawn
from mafl_cli.network.remembered import Layer, Watching, fit

_STEPS = (5, 3, 4)
"""Voxels by which a scan moves along its axes: no multiples of what networks pool by."""
_LEAST, _MOST = 1e-3, 0.98
"""Share of the part that is foreground, in any map: below the first a prediction is one of nothing, for what becomes of
a few voxels when the scan moves is chance; above the second it is one of everything."""
_SURE_OF_NOTHING = 0.9
"""How sure a network is, above chance, that a body shows nothing of what it draws, if it sees what it was trained on:
0.96 and more on slices without it; 0.86 on a scan that should have been scaled."""


@dataclass(frozen=True, eq=False)
class Plausible:
    """How much a prediction looks like one of a network that sees what it was trained on.

    plausibility: 0 to 1: how sure it is, times how steady, times `fit` where there is one. Where it draws nothing, 0 or
    1 for whether it is sure of that, times `fit`; 0 where it draws everything.
    fit: how well what reaches the norm layers fits what they remember, 0 to 1; None where none remembers.
    labels: what was drawn, (B, M, *spatial). nothing: whether that is next to nothing.
    """

    plausibility: float
    fit: float | None
    labels: Tensor
    nothing: bool


def plausible(seen: Seen, air: Tensor, content: float) -> Plausible:
    """How plausible it is what a network draws.

    Sure: how far the probability of the drawn class is above chance, the mean over the foreground. Steady: the Dice of
    each class, over those drawn, with what the network draws on the scan moved by a few voxels.

    Args:
        air: a batch of one, (1, C, *spatial), of nothing but what is around a body, native units.
        content: share of the batch that is not air, above 0 to 1.
    """
    with Watching() as watching:
        logits = seen.asked(seen.clean).logits
    layers = watching.layers or _inside_graph(seen, seen.clean)
    fitting = None
    if layers:
        with Watching() as watching:
            seen.asked(air)
        fitting = fit(layers, watching.layers or _inside_graph(seen, air), content)
    labels = drawn(logits)
    inside = labels > 0
    share, least = float(inside.flatten(1).float().mean()), 1 / logits.shape[1]
    sure = (torch.softmax(logits, dim=1).amax(dim=1) - least) / (1 - least)
    if share < _LEAST:
        # Air is easy to be sure of: all doubt is about the body.
        score = float(1 - (1 - float(sure.mean())) / content >= _SURE_OF_NOTHING)
    elif share > _MOST:
        score = 0.0
    else:
        score = float(sure[inside].mean()) * _steadiness(seen, labels)
    score *= 1.0 if fitting is None else fitting
    return Plausible(score, fitting, seen.info.classes.from_network(labels), share < _LEAST)


def _inside_graph(seen: Seen, x: Tensor) -> tuple[Layer, ...]:
    """What reaches the norm layers of a network that another program runs, by the graph that stands for it."""
    if seen.segmenter.format != "onnx":
        return ()
    field = seen.field()
    with torch.no_grad():
        # Making a graph is no pass: the first one makes it.
        field.predict(x[:1])
        watching = Watching()
        with watching:
            for sample in torch.split(x, 1):
                field.predict(sample)
    return watching.layers


def _steadiness(seen: Seen, labels: Tensor) -> float:
    """Mean Dice over the classes between what is drawn on the scan and on the scan that was moved, moved back."""
    dims = seen.clean.ndim - 2
    axes, steps = tuple(range(-dims, 0)), _STEPS[:dims]
    there = drawn(seen.asked(torch.roll(seen.clean, steps, axes)).logits)
    back = torch.roll(there, [-step for step in steps], axes)
    # What went over the edge came in on the other side.
    kept: Any = (..., *(slice(0, max(size - step, 1)) for size, step in zip(labels.shape[-dims:], steps, strict=True)))
    one, other = labels[kept], back[kept]
    found = []
    for value in range(1, int(max(one.max(), other.max())) + 1):
        here, moved = one == value, other == value
        if size := int(here.sum() + moved.sum()):
            found.append(2 * int((here & moved).sum()) / size)
    return sum(found) / len(found) if found else 0.0
