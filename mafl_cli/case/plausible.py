"""Does a prediction look like one of a network that sees what it was trained on? A number, without a mask to compare.

A network that is given something else seldom says so, but it wavers: what it draws is unsure, and changes when the scan
moves by a few voxels. Both are looked at; neither proves anything, for a network may also be wrong and sure.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mafl_cli.case.problem import Seen
from mafl_cli.network.prediction import drawn

_STEPS = (5, 3, 4)
"""Voxels by which a scan moves along its axes: no multiples of what networks pool by."""
_MOST = 0.98
"""Share of the part that is foreground, in any map, from which a prediction is one of everything."""


def plausibility(seen: Seen) -> tuple[float, Tensor]:
    """How sure and how steady a prediction is: 0 (none, or of everything) to 1, and its labels (B, M, *spatial).

    The product of two means: how far the probability of the drawn class is above chance, over the foreground; and the
    Dice of each class, over those drawn, with what the network draws on the scan moved by a few voxels.
    """
    logits = seen.asked(seen.clean).logits
    labels = drawn(logits)
    inside = labels > 0
    maps = seen.info.classes.from_network(labels)
    if not inside.any() or bool(inside.flatten(1).float().mean() > _MOST):
        return 0.0, maps
    least = 1 / logits.shape[1]
    sure = (float(torch.softmax(logits, dim=1).amax(dim=1)[inside].mean()) - least) / (1 - least)
    return max(sure, 0.0) * _steadiness(seen, labels), maps


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
