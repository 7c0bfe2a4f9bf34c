"""A search whose gradient is doubted is made again by slopes that say more, and the unchanged network judges."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from masked import MASKED, Wrapped, scan
from torch import Tensor, nn

import mafl_cli as mafl
from mafl_cli.codes import Alarm, Belief

OF_GRADIENTS = {Alarm.SLOPE, Alarm.ALONG, Alarm.DEAD, Alarm.BORDER, Alarm.LOOP}


def moved(network: nn.Module) -> tuple[Tensor, Tensor]:
    """A scan, and what is drawn on it moved by four voxels."""
    image = scan()
    with torch.no_grad():
        return image, torch.roll(network(image).argmax(1), 4, -1)


def attacked(network: nn.Module, **options: Any) -> mafl.Attacked[Tensor]:
    return mafl.attack(network, *moved(network), **{"steps": 30, **options})


@cache
def shortest() -> float:
    """The length that the network inside takes."""
    return float(attacked(Wrapped()).sizes.l2)


@pytest.mark.parametrize("kind", MASKED)
def test_a_network_that_hides_its_slope_is_broken_as_easily_as_the_one_inside(kind: str) -> None:
    network = MASKED[kind]()
    found = attacked(network)
    trust = found.trust
    assert {alarm.code for alarm in trust.searches[0].alarms} & OF_GRADIENTS
    assert trust.verdict is Belief.ANSWERED
    assert trust.found_by == "straight_through"
    assert [(each.gradient, each.goal_reached) for each in trust.searches] == [
        ("exact", trust.searches[0].goal_reached),
        ("straight_through", True),
    ]
    with torch.no_grad():
        drawn = network(found.adversarial).argmax(1)
    assert torch.equal(drawn, found.prediction)
    assert bool(found.success.all())
    assert float(found.sizes.l2) <= 1.15 * shortest()


def test_windows_are_searched_again_as_well() -> None:
    found = attacked(MASKED["waves finer than a step"](), roi=(16, 16))
    assert found.trust.found_by == "straight_through"
    assert bool(found.success.all())


class Noisy(nn.Module):
    """A network with a mask of its own: fine waves of a kind that no operator gives away."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Wrapped()

    def forward(self, x: Tensor) -> Tensor:
        # Two steps of a quadratic map over and over: as good as chance, and smooth.
        wave = x - x.floor()
        for _ in range(9):
            wave = 4 * wave * (1 - wave)
        logits: Tensor = self.inner(x)
        return logits + 0.05 * torch.cat([wave - 0.5, 0.5 - wave], dim=1)


def test_what_no_operator_gives_away_is_smoothed() -> None:
    found = attacked(Noisy())
    assert "smoothed" in [each.gradient for each in found.trust.searches]
    assert {alarm.code for alarm in found.trust.searches[0].alarms} & OF_GRADIENTS


@pytest.mark.parametrize("front", [lambda x: torch.sin(4000 * x), lambda x: (x * 65536) % 1.0], ids=["sine", "rest"])
def test_a_cure_that_leaves_no_slope_is_no_cure(front: Callable[[Tensor], Tensor]) -> None:
    found = attacked(Wrapped(front=front), steps=10)
    assert not bool(found.success.all())
    assert found.trust.verdict is Belief.ALARM
    assert found.trust.searches[0].alarms
    assert "straight_through" not in [each.gradient for each in found.trust.searches]
