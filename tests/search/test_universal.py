"""One change for many scans: what is found is compared with what can be said without a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import Bright, box, field, scan
from torch import Tensor

from mafl_cli.config import AttackConfig, preset
from mafl_cli.errors import UsageError
from mafl_cli.field.carry import Carry
from mafl_cli.field.layout import Layout
from mafl_cli.search.universal import Piece, Universal, search

SHAPE = (8, 6, 1)


def settings(**changes: Any) -> AttackConfig:
    usual: dict[str, Any] = {"eps": 0.2, "eps_unit": "model", "step": "cosine", "steps": 20, "after_goal": "continue"}
    return preset("mifgsm", **{**usual, **changes})


def pieces(scans: Tensor, targets: Tensor, config: AttackConfig, network: Bright | None = None) -> list[list[Piece]]:
    """A piece for each scan, (1, 1, 8, 6), all on one grid."""
    layout = Layout.for_volume(np.eye(4), orientation="native", slice_axis=2)
    way = Carry.of(SHAPE, np.eye(4), SHAPE, np.eye(4), layout, torch.device("cpu"))
    seen = field(network or Bright(scale=8))
    row = torch.tensor([0])
    return [
        [Piece.of(seen, clean[None], target[None], box(clean[None]), config, way, row)]
        for clean, target in zip(scans, targets, strict=True)
    ]


def found(scans: Tensor, targets: Tensor, config: AttackConfig) -> tuple[Universal, list[list[Piece]]]:
    parts = pieces(scans, targets, config)
    return search(parts, (1, *SHAPE), config), parts


@pytest.mark.parametrize("loss", ["ce", "margin", "dice"])
def test_each_scan_loses_just_what_the_ball_lets_it_lose(loss: str) -> None:
    scans = scan(6, 8, 6)
    targets = torch.zeros(6, 8, 6, dtype=torch.int64)
    change, parts = found(scans, targets, settings(mask_loss=loss))
    assert float(change.delta.abs().max()) <= 0.2 + 1e-6
    for (piece,), clean in zip(parts, scans, strict=True):
        bright = clean > 0.5
        wanted = float((bright & (clean < 0.7)).sum() / bright.sum())
        assert float(piece.verdict(change.delta).hit) == pytest.approx(wanted, abs=0.02)


def test_the_goal_of_all_is_reached_where_the_ball_is_large_enough() -> None:
    change, parts = found(scan(9, 8, 6), torch.ones(9, 8, 6, dtype=torch.int64), settings(eps=0.6))
    assert change.score == 1
    assert all(bool(piece.verdict(change.delta).reached) for (piece,) in parts)
    assert {forward - backward for forward, backward in change.passes} == {5}
    assert {backward for _, backward in change.passes} == {20}


def test_an_l2_ball_holds_the_shared_change() -> None:
    config = settings(norm="l2", eps=0.5, direction="l2", gradient_norm="l2", momentum=0.9)
    change, _ = found(scan(3, 8, 6), torch.zeros(3, 8, 6, dtype=torch.int64), config)
    assert 0.45 < float(change.delta.norm()) <= 0.5 + 1e-5


def test_scans_that_want_the_opposite_at_every_voxel_cannot_both_be_had() -> None:
    same = torch.full((2, 1, 8, 6), 0.45)
    same[1] = 0.55
    targets = torch.stack([torch.ones(8, 6), torch.zeros(8, 6)]).long()
    change, parts = found(same, targets, settings())
    hits = [float(piece.verdict(change.delta).hit) for (piece,) in parts]
    assert sum(hits) <= 1 + 1e-6


def test_one_voxel_may_be_told_by_one_scan_and_the_next_by_another() -> None:
    """Where only one of the scans has something to change, the change is what that one wants."""
    scans = torch.full((2, 1, 8, 6), 0.2)
    scans[0, :, :4], scans[1, :, 4:] = 0.6, 0.6
    change, parts = found(scans, torch.zeros(2, 8, 6, dtype=torch.int64), settings())
    assert all(bool(piece.verdict(change.delta).reached) for (piece,) in parts)


def test_the_change_is_counted_in_the_unit_of_eps() -> None:
    """Half of a range of 400 units is 200 of them."""
    config = settings(eps=0.5, eps_unit="range")
    clean = 100 + 400 * scan(1, 8, 6)
    layout = Layout.for_volume(np.eye(4), orientation="native", slice_axis=2)
    way = Carry.of(SHAPE, np.eye(4), SHAPE, np.eye(4), layout, torch.device("cpu"))
    limits = box(clean, 100.0, 500.0, unit=torch.tensor([50.0]))
    piece = Piece.of(
        field(Bright(6.0), 50.0), clean, torch.zeros(1, 8, 6, dtype=torch.int64), limits, config, way, torch.tensor([0])
    )
    changed = piece.changed(torch.full((1, *SHAPE), 0.25))
    assert torch.allclose(changed, (clean + 100).clamp(max=500))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"eps": None, "step_size": 0.1}, "needs a limit"), ({"step_size": 0.1}, "steps of a ball")],
)
def test_settings_without_a_common_ball_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        search([], (1, *SHAPE), settings(**changes))
