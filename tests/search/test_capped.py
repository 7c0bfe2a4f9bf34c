"""The smallest largest change: the point within a cap by its conditions, and a search beside its linear program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

import mafl_cli as mafl
from mafl_cli.config import preset
from mafl_cli.errors import UsageError
from mafl_cli.search.capped import nearest


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), cap=st.floats(0.5, 3), share=st.floats(0.05, 0.95))
def test_the_step_ends_within_the_cap_and_the_half_space_next_to_where_it_began(
    seed: int, cap: float, share: float
) -> None:
    start, normal = drawn(seed, 1, 1, 6, 7).clamp(-cap, cap), drawn(seed + 1, 1, 1, 6, 7)
    # What the cap allows, and where the start is.
    least, here = float(-cap * normal.abs().sum()), float((normal * start).sum())
    aim = here + share * (least - here)
    target, most = torch.tensor([[aim], [cap]], dtype=torch.float64)
    found = nearest(start, normal, target, most, 50)
    assert float(found.abs().max()) <= cap * (1 + 1e-12)
    assert float((normal * found).sum()) == pytest.approx(aim, abs=1e-8)
    # Karush-Kuhn-Tucker: each voxel went along its slope by one factor, as far as the cap lets it.
    moved = (start - found) / normal
    free = found.abs() < cap - 1e-12
    assert float(moved[free].std(unbiased=False)) < 1e-8
    if bool((~free).any()):
        assert float(moved[~free].max()) <= float(moved[free].mean()) + 1e-8


def test_no_step_is_taken_that_is_not_needed() -> None:
    start, normal = drawn(0, 2, 1, 4, 4), drawn(1, 2, 1, 4, 4)
    aim = (normal * start).flatten(1).sum(dim=1) + torch.tensor([1.0, -1.0])
    found = nearest(start, normal, aim.double(), torch.tensor([9.0, 9.0]).double(), 50)
    torch.testing.assert_close(found[0], start[0])
    assert not torch.equal(found[1], start[1])


SIZE = 16


class Linear(torch.nn.Module):
    """Two classes, whose margin at each pixel is a weighing of those around it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Conv2d(1, 1, 5, padding=2)
        with torch.no_grad():
            self.net.weight.copy_(0.15 * drawn(3, 1, 1, 5, 5))
            self.net.weight[0, 0, 2, 2] = 1
            self.net.bias.fill_(-0.5)

    def forward(self, x: Tensor) -> Tensor:
        margin = self.net(x)
        return torch.cat([-margin, margin], dim=1)


def test_a_linear_network_is_drawn_over_at_close_to_the_least_largest_change() -> None:
    network = Linear()
    image = torch.full((1, 1, SIZE, SIZE), 0.3)
    # No change leaves the range of the image: far more than is needed.
    image[0, 0, 0, 0], image[0, 0, -1, -1] = -4, 4
    with torch.no_grad():
        target = network(image).argmax(dim=1)
        target[0, 5:9, 6:11] = 1 - target[0, 5:9, 6:11]
        # The optimum is a linear program: least t with sign * margin >= 0 and |change| <= t.
        many, sign = SIZE**2, torch.where(target.flatten() == 1, 1.0, -1.0).numpy()
        margin = network.net(image).flatten().numpy()
        slopes = (network.net(torch.eye(many).view(-1, 1, SIZE, SIZE)) - network.net.bias).flatten(1).T.numpy()
    one, peak = np.eye(many), -np.ones((many, 1))
    rows = np.block([[-sign[:, None] * slopes, np.zeros((many, 1))], [one, peak], [-one, peak]])
    best = linprog(
        np.append(np.zeros(many), 1), A_ub=rows, b_ub=np.append(sign * margin, np.zeros(2 * many)), bounds=(None, None)
    )
    found = {
        minimise: mafl.attack(network, image, target, steps=150, minimise=minimise, goal_iou=1.0, goal_hit=1.0)
        for minimise in ("l2", "linf")
    }
    assert all(bool(each.success.all()) for each in found.values())
    assert best.fun * 0.999 < float(found["linf"].sizes.linf) < 1.15 * best.fun
    assert float(found["linf"].sizes.linf) < float(found["l2"].sizes.linf)
    assert float(found["linf"].sizes.l2) > float(found["l2"].sizes.l2)
    # An excess is about L2.
    assert torch.isnan(found["linf"].excess).all()


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("pgd", {"eps": 0.1}, "`minimise` linf needs `step` dynamic"),
        ("worst", {}, "`method` worst compares lengths"),
    ],
)
def test_what_does_not_go_with_linf_is_said(method: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        preset(method, minimise="linf", **options)
