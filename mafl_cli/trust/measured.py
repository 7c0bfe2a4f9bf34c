"""What a gradient promises, and what comes: at a scan, in random directions and along the gradient itself.

An attack follows the slope of its loss. Where rounding, a cut connection, a saturated output or a wave that is finer
than any step stands between the two, the slope says nothing of how the model answers, and a search that fails proves
nothing (Athalye et al., ICML 2018; Pintor et al., NeurIPS 2022). Here the mean margin of the voxels that must change
is compared with itself a small step away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mafl_cli.field.field import Field
from mafl_cli.network.prediction import Prediction
from mafl_cli.search import steps
from mafl_cli.search.pressure import margins
from mafl_cli.trust import directions

HALVES = 2
"""Parts of the voxels that must change, whose margins are looked at apart: each direction counts twice."""
# A margin that moves by less than this share of itself is where rounding leaves it.
_STILL = 1e-6
_NEAR, _BESIDE = 0.02, 0.12
"""Shares of the voxels that answer, by how near they are to the border between two classes: at it, and from there on
beside it."""
_FEW = 10
"""Voxels at a border that are enough to say something."""
_SEED = 20180710

Groups = Callable[[Tensor, Callable[[Tensor, float], None]], None]
"""Calls a work for some rows at a time, as many as fit; see `case.problem.Seen.groups`."""


@dataclass(frozen=True)
class Places:
    """Scans at which a gradient is looked at, and what an attack wants of them.

    x: (n, C, *spatial), native units. target: (n, *spatial), or (n, R, *spatial) for regions that may overlap. must:
    bool, like target, the voxels that must change; some in each scan. free: bool, like x, those that may be changed:
    zero is background to some networks, and a step off it is not a small change.
    """

    x: Tensor
    target: Tensor
    must: Tensor
    free: Tensor


@dataclass(frozen=True)
class Ways:
    """How a scan is changed to see what comes: so many directions of each kind, both ways, and along the gradient."""

    white: int
    smooth: int = 0
    along: bool = False
    seed: int = _SEED

    @property
    def directions(self) -> int:
        """Each is gone both ways."""
        return self.white + self.smooth

    @property
    def count(self) -> int:
        """Passes without a gradient."""
        return 2 * self.directions + self.along


@dataclass(frozen=True)
class Measured:
    """What was found at n scans.

    promised, came: (n, HALVES, directions), how the mean margin changes from one side of the scan to the other; white
        directions first. promised_along, came_along: (n,), how it falls by a step along the gradient, 0 if not asked.
    still: (n,), share of the voxels that must and may change whose margin nothing moved.
    border: (n,), how far white directions move the margins where two classes meet, over how far they move those beside;
        NaN where too few voxels answer. About 1, or more: classes meet where a model looks. A model whose output is
        flat there, like a cube of its logits, has next to nothing, and its shortest change is not found.
    forward, backward: passes that it took.
    """

    ways: Ways
    promised: Tensor
    came: Tensor
    promised_along: Tensor
    came_along: Tensor
    still: Tensor
    border: Tensor
    forward: int
    backward: int


def measure(field: Field, places: Places, ways: Ways, groups: Groups) -> Measured:
    """Compare promises with what comes: a pass with a gradient for each of the halves, and one for each way."""
    slopes = _Slopes.of(field, places, groups)
    x, target, must = places.x, places.target, places.must
    n, shares = len(x), _halves(must)
    total = slopes.gradients.sum(dim=1)
    size = directions.step_sizes(x, total)
    draws = [directions.white] * ways.white + [directions.smooth] * ways.smooth
    moves = [draw(x[:1], ways.seed + number) for number, draw in enumerate(draws)]
    downhill = directions.ALONG * size * total.sign()
    ends = torch.zeros(n, ways.count, HALVES, device=x.device)
    moved = torch.zeros_like(must)
    answers = torch.zeros(must.shape, device=x.device)

    def look(rows: Tensor, _: float) -> None:
        scan, way = rows // ways.count, rows % ways.count
        there = x[scan]
        for row, (place, number) in enumerate(zip(scan.tolist(), way.tolist(), strict=True)):
            if number == 2 * ways.directions:
                there[row] -= downhill[place]
            else:
                there[row] += (1 - 2 * (number % 2)) * places.free[place] * size[place] * moves[number // 2][0]
        margin = margins(field.predict(there).logits, target[scan])
        for half in range(HALVES):
            ends[scan, way, half] = (margin * shares[scan, half]).flatten(1).sum(dim=1)
        apart = (margin - slopes.margin[scan]).abs()
        for row, (place, number) in enumerate(zip(scan.tolist(), way.tolist(), strict=True)):
            moved[place] |= apart[row] > _STILL * slopes.margin[place].abs()
            if number < 2 * ways.white:
                answers[place] += apart[row]

    groups(torch.arange(n * ways.count, device=x.device), look)
    # Nothing that may change need be near a voxel that may not.
    movable = places.free.any(dim=1).view(n, *(1,) * (must.ndim - x.ndim + 1), *x.shape[2:])
    both = ends[:, : 2 * ways.directions].view(n, ways.directions, 2, HALVES)
    nothing = torch.zeros(n, device=x.device)
    return Measured(
        ways=ways,
        promised=torch.stack(
            [2 * (slopes.gradients * (size * move)[:, None]).flatten(2).sum(dim=2) for move in moves], 2
        ),
        came=(both[:, :, 0] - both[:, :, 1]).transpose(1, 2),
        promised_along=(total * downhill).flatten(1).sum(dim=1) if ways.along else nothing,
        came_along=(slopes.values - ends[:, -1]).sum(dim=1) if ways.along else nothing,
        still=_share(must & ~moved & movable, must & movable),
        border=torch.stack([_at_border(*each) for each in zip(slopes.margin, answers, strict=True)]),
        forward=n * (1 + ways.count),
        backward=n * HALVES,
    )


@dataclass(frozen=True)
class _Slopes:
    """Mean margins of the halves at n scans, (n, HALVES), and their gradients, (n, HALVES, C, *spatial).

    margin: of each voxel, like the target.
    """

    values: Tensor
    gradients: Tensor
    margin: Tensor

    @staticmethod
    def of(field: Field, places: Places, groups: Groups) -> _Slopes:
        x, target, shares = places.x, places.target, _halves(places.must)
        n = len(x)
        found = _Slopes(
            torch.zeros(n, HALVES, device=x.device),
            torch.zeros(n, HALVES, *x.shape[1:], device=x.device),
            torch.zeros(places.must.shape, device=x.device),
        )

        def differentiate(rows: Tensor, _: float) -> None:
            def values(prediction: Prediction) -> list[Tensor]:
                margin = margins(prediction.logits, target[rows])
                return [(margin * shares[rows, half]).flatten(1).sum(dim=1) for half in range(HALVES)]

            slopes = field.slopes(x[rows], values)
            found.values[rows] = torch.stack(slopes.values, dim=1).to(found.values)
            free = places.free[rows][:, None]
            found.gradients[rows] = steps.finite(torch.stack(slopes.gradients, dim=1)) * free
            found.margin[rows] = margins(slopes.prediction.logits, target[rows])

        groups(torch.arange(n, device=x.device), differentiate)
        return found


def _at_border(margin: Tensor, answers: Tensor) -> Tensor:
    """How far the margins nearest to 0 moved, over how far those beside did; NaN where too few moved at all."""
    margin, answers = margin[answers > 0].abs(), answers[answers > 0].double()
    near, beside = (round(share * len(margin)) for share in (_NEAR, _BESIDE))
    if near < _FEW:
        return torch.tensor(math.nan, device=margin.device)
    at, end = (margin.kthvalue(count).values for count in (near, beside))
    return (answers[margin <= at].mean() / answers[(margin > at) & (margin <= end)].mean()).float()


def _share(some: Tensor, of: Tensor) -> Tensor:
    """How many of some voxels there are, bool (n, ...), for each of others; 0 where there are none: (n,)."""
    return some.flatten(1).sum(dim=1) / of.flatten(1).sum(dim=1).clamp_min(1)


def _halves(must: Tensor) -> Tensor:
    """What each voxel counts in the mean over all that must change, first and second half apart: (n, HALVES, ...)."""
    flat = must.flatten(1)
    count = flat.sum(dim=1, keepdim=True)
    first = flat & (flat.cumsum(dim=1) <= (count + 1) // 2)
    return torch.stack([(half / count).view(must.shape) for half in (first, flat & ~first)], dim=1)
