"""Steps of other methods, by hand."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from problems import box, standing

from mafl_cli.config import AttackConfig, GradientNorm
from mafl_cli.search.descent import Descent

PLAIN = AttackConfig(step="constant", step_size=0.1, after_goal="stop", l2_weight=0, low_frequency_weight=0, momentum=0)


def descent(config: AttackConfig, like: torch.Tensor) -> Descent:
    """Of scans that range over 2 model units."""
    return Descent(config, box(like, -1, 1), like, lambda x: x)


@pytest.mark.parametrize("kind", get_args(GradientNorm))
def test_a_zero_or_broken_gradient_is_zero_in_every_norm(kind: GradientNorm) -> None:
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0], x[1, 0, 2, 2] = 0, float("nan")
    rule = descent(AttackConfig(**vars(PLAIN) | {"gradient_norm": kind}), x)
    found = rule.of_gradient(x)
    assert not found[0].any()
    assert torch.isfinite(found).all()
    assert found[1, 0, 2, 2] == 0
    assert torch.equal(found[2:], rule.of_gradient(x[2:]))


@pytest.mark.parametrize(
    ("settings", "step", "lengths"),
    [
        ({"step": "constant", "step_size": 0.1}, 0, (0.2, 0.2)),
        ({"step": "constant", "step_size": 0.1}, 3, (0.2, 0.2)),
        ({"step": "cosine", "step_size": 0.1}, 0, (0.2, 0.2)),
        ({"step": "cosine", "step_size": 0.1}, 2, (0.1, 0.1)),
        # ASMA takes tau alone in its first step, when nothing was judged yet.
        ({"step": "asma", "step_size": None, "tau": 0.1, "beta": 0.2}, 0, (0.2, 0.2)),
        ({"step": "asma", "step_size": None, "tau": 0.1, "beta": 0.2}, 1, (0.2, 0.4)),
    ],
)
def test_scheduled_steps_by_hand(settings: dict[str, object], step: int, lengths: tuple[float, float]) -> None:
    config = AttackConfig(**vars(PLAIN) | {"direction": "linf"} | settings)
    clean = torch.ones(2, 1, 1, 3)
    gradient = torch.tensor([0.75, -1.0, 0.0]).expand(2, 1, 1, 3).clone()
    now = standing(clean, gradient, step=step, budget=4, score=torch.tensor([0.0, 0.5]))
    moved = descent(config, clean).step(now) - 1
    torch.testing.assert_close(moved[:, 0, 0], torch.tensor([[-0.75 * n, n, 0] for n in lengths]))


def test_momentum_adds_what_was_gone_before() -> None:
    clean = torch.zeros(1, 1, 1, 3)
    rule = descent(AttackConfig(**vars(PLAIN) | {"momentum": 0.5, "direction": "raw"}), clean)
    gradient = torch.tensor([1.0, -2.0, 0.0]).view(1, 1, 1, 3)
    first = rule.step(standing(clean, gradient.clone()))
    second = rule.step(standing(clean, gradient.clone()))
    torch.testing.assert_close(second, 1.5 * first)
