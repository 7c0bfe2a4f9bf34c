"""The term of a search that knows detectors: its value by hand, its slope, and when a verdict counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mafl_cli.network.prediction import Prediction
from mafl_cli.network.uncertainty import scores, weighed
from mafl_cli.search.evasion import Evasion
from mafl_cli.search.goals import Verdict

ROWS = torch.arange(2)


def logits(seed: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(seed))


def said(x: Tensor) -> Prediction:
    return Prediction(x, ())


def reached() -> Verdict:
    ones = torch.ones(2)
    return Verdict(ones, ones, ones, torch.ones(2, dtype=torch.bool))


def totals(x: Tensor) -> Tensor:
    return weighed(x).flatten(2).sum(dim=2, dtype=torch.float64)


def test_a_clean_sample_is_not_above_itself_and_a_surer_one_has_no_slope() -> None:
    clean = logits(0)
    evasion = Evasion(("entropy", "margin"), said(clean), None, overlapping=False)
    assert evasion.excess(ROWS, said(clean)).tolist() == [0.0, 0.0]
    sure = (4 * clean).requires_grad_()
    term = evasion.term(ROWS, sure)
    assert term.tolist() == [0.0, 0.0]
    assert not torch.autograd.grad(term.sum(), sure)[0].any()


@pytest.mark.parametrize("names", [("entropy",), ("margin",), ("entropy", "margin")])
def test_a_doubtful_sample_is_above_by_what_the_scores_say(names: tuple[str, ...]) -> None:
    clean, changed = logits(0), logits(0) / 3
    evasion = Evasion(names, said(clean), None, overlapping=False)
    asked = [number for number, name in enumerate(("entropy", "margin")) if name in names]
    wanted = (scores(totals(changed)) - scores(totals(clean)))[:, asked].amax(dim=1).float()
    excess = evasion.excess(ROWS, said(changed))
    torch.testing.assert_close(excess, wanted)
    verdict = evasion.judged(reached(), ROWS, said(changed))
    assert verdict.reached.tolist() == [False, False]
    torch.testing.assert_close(verdict.score, 1 - wanted)
    # Down the slope the scores fall.
    x = changed.clone().requires_grad_()
    (slope,) = torch.autograd.grad(evasion.term(ROWS, x).sum(), x)
    after = evasion.excess(ROWS, said(changed - 0.5 * slope / slope.abs().amax()))
    assert (after < excess).all()


def test_of_a_part_what_lies_around_counts_too() -> None:
    clean, changed = logits(0), logits(0) / 3
    whole = totals(clean)
    part, other = clean[..., :4], clean[..., 4:]
    evasion = Evasion(("entropy",), said(part), whole, overlapping=False)
    alone = Evasion(("entropy",), said(clean), None, overlapping=False)
    together = torch.cat([changed[..., :4], other], dim=3)
    torch.testing.assert_close(
        evasion.excess(ROWS, said(changed[..., :4])), alone.excess(ROWS, said(together)), rtol=1e-5, atol=1e-6
    )


def test_samples_do_not_influence_each_other() -> None:
    clean = logits(0)
    evasion = Evasion(("entropy",), said(clean), None, overlapping=False)
    changed = torch.cat([clean[:1], clean[1:] / 3])
    assert evasion.judged(reached(), ROWS, said(changed)).reached.tolist() == [True, False]
    one = torch.tensor([1])
    torch.testing.assert_close(
        evasion.excess(one, said(changed[1:])), evasion.excess(ROWS, said(changed))[1:], rtol=0, atol=1e-7
    )


def test_the_blur_counts_what_moves_over_what_is_drawn() -> None:
    def both(moved: int) -> Prediction:
        first = torch.zeros(2, 2, 4, 5)
        first[:, 1, :2] = 1.0  # Ten voxels of class 1.
        first[:, 0, 2:] = 1.0
        second = first.clone()
        second[0, :, 0, :moved] = second[0, :, 0, :moved].flip(0)
        return Prediction(first, (), views=(said(first), Prediction(second, (), number=1)))

    evasion = Evasion(("blur",), both(1), None, overlapping=False)
    assert evasion.excess(ROWS, both(1)).tolist() == [0.0, 0.0]
    assert evasion.excess(ROWS, both(3)).tolist() == [pytest.approx(0.2), 0.0]
    assert evasion.judged(reached(), ROWS, both(3)).reached.tolist() == [False, True]


def test_without_numbers_nothing_is_evaded() -> None:
    clean = logits(0)
    evasion = Evasion(("entropy",), said(clean), None, overlapping=False)
    verdict = evasion.judged(reached(), ROWS, said(torch.full_like(clean, float("nan"))))
    assert verdict.reached.tolist() == [False, False]
    assert bool((verdict.score < 1).all())
