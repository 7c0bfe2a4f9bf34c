"""When a search that only shrinks its change has nothing left to gain."""

from __future__ import annotations

import torch

from mafl_cli.config import AttackConfig
from mafl_cli.search.best import Best, finished
from mafl_cli.search.goals import Verdict

ROWS = torch.arange(1)


def waited(shrinks: float, steps: int = 60) -> Best:
    """After so many steps at the goal, each of which takes this share of the length away."""
    clean = torch.zeros(1, 1, 4, 4)
    part, yes = torch.ones(1), torch.ones(1, dtype=torch.bool)
    best = Best.at(clean, Verdict(0 * part, 0 * part, 0 * part, ~yes), 0.99, bounded=False)
    for step in range(steps):
        length = part * (1 - shrinks) ** step
        best.update(ROWS, clean + length, Verdict(part, part, part, yes), length, length)
    return best


def test_small_gains_add_up_and_none_end_the_search() -> None:
    config = AttackConfig(patience=40)
    assert not bool(finished(waited(2e-3), ROWS, config, late=True))
    assert bool(finished(waited(0.0), ROWS, config, late=True))
    assert bool(finished(waited(5e-5), ROWS, config, late=True))
