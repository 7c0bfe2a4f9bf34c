"""The table of quantities: each is read from the typed reports, and said in a form that the page knows too."""

from __future__ import annotations

import pytest
from judged import case

from mafl_cli.results.quantities import EVALUATED, QUANTITIES
from mafl_cli.results.quantity import value_of


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantity_is_in_some_report_and_has_a_value_in_its_span(name: str) -> None:
    quantity = QUANTITIES[name]
    assert any(quantity.read)
    low, high = quantity.span
    if name in EVALUATED:
        value = quantity.of_evaluation(case()).value
        assert value is None or low <= value <= high
        assert (quantity.shown(value) == "-") == (value is None)


def test_what_a_report_does_not_have_is_not_read_from_it() -> None:
    with pytest.raises(ValueError, match="not in the report of an evaluation"):
        QUANTITIES["forward"].of_evaluation(case())


def test_a_quantity_knows_its_place_in_the_report_of_an_attack() -> None:
    assert QUANTITIES["ssim_worst"].place == "metrics.size.ssim.worst"
    assert QUANTITIES["goal_reached"].place == "attack.goal_reached"
    assert {name for name, quantity in QUANTITIES.items() if quantity.place is None} == {
        "target_hd95", "prediction_drop", "volume_change", "prediction_hd95", "dice_clean", "dice_adversarial",
        "dice_drop", "psnr_at_goal", "linf_at_goal", "l2_at_goal", "pc_at_goal", "visibility", "curve_area",
        "curve_hit_area", "transfer_target_iou", "survival_target_iou",
        "blur_auc", "entropy_auc", "margin_auc",
    }  # fmt: skip


def test_the_mean_of_counts_is_not_rounded_to_a_count() -> None:
    visibility = QUANTITIES["visibility"]
    assert [visibility.shown(value) for value in (0.0, 0.5, 2.0)] == ["0", "0.50", "2"]


def test_beyond_every_change_is_what_is_worst_for_the_attacker() -> None:
    assert [QUANTITIES[name].beyond for name in ("psnr_at_goal", "linf_at_goal", "psnr_db")] == [
        float("-inf"), float("inf"), None,
    ]  # fmt: skip


def test_a_value_is_a_number_or_none() -> None:
    quantity = QUANTITIES["psnr_db"]
    found = quantity.of_evaluation(case(psnr_db=None))
    assert (value_of(found), value_of(2.5)) == (None, 2.5)
