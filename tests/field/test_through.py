"""Functions behind transforms: the numbers of the transforms of files, and slopes that finite differences confirm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mafl_cli.field.field import Losses, Slopes
from mafl_cli.field.through import Scene, Through, behind, neighbours
from mafl_cli.field.together import Together
from mafl_cli.field.transforms import Transform, parse
from mafl_cli.network.prediction import Prediction
from mafl_cli.search.goals import Goal

LINEAR = ["blur:0.5", "blur:2", "resample:1.5", "resample:2.7", "lowpass:0.4"]
SMOOTH = [*LINEAR, "median:3", "median:4", "gamma:0.8", "gamma:2"]
CODECS = ["bits:6", "jpeg:50", "jpeg2000:20"]


class Plain:
    """A function whose logits are polynomials of the voxels. seen: what it was asked of."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.seen: list[Tensor] = []

    def predict(self, x: Tensor) -> Prediction:
        self.seen.append(x)
        value = self.factor * x.sum(dim=1) / 100
        return Prediction(torch.stack([torch.zeros_like(value), value**3 - 1], dim=1), ())

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        x = x.detach().requires_grad_()
        prediction = self.predict(x)
        values = losses(prediction)
        gradients = [torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in values]
        (pull,) = torch.autograd.grad(values[0].sum(), prediction.logits)
        return Slopes(prediction.detach(), [value.detach() for value in values], gradients, pull)


def batch(*shape: int, seed: int = 0) -> Tensor:
    numbers = np.random.default_rng(seed).normal(40, 25, shape)
    return torch.from_numpy(np.clip(numbers, -20, 130)).double()


def scene(clean: Tensor, plane: tuple[int, int] = (2, 3), *, zero_kept: bool = False) -> Scene:
    return Scene.of(clean, plane, zero_kept=zero_kept, seed=0)


def the(name: str) -> Transform:
    (transform,) = parse([name])
    return transform


def margin(prediction: Prediction) -> list[Tensor]:
    wave = torch.linspace(-1, 1, prediction.logits[:, 0].numel()).view_as(prediction.logits[:, 0])
    return [((prediction.logits[:, 1] - prediction.logits[:, 0]) * wave).flatten(1).sum(dim=1)]


@pytest.mark.parametrize("name", [*SMOOTH, *CODECS])
def test_numbers_are_those_of_the_transform_of_files(name: str) -> None:
    clean, plain = batch(3, 2, 14, 11), Plain()
    transform = the(name)
    behind(plain, transform, scene(clean)).predict(clean)
    for channel in range(2):
        expected = transform(clean[:, channel].numpy().astype(np.float32), 0)
        np.testing.assert_allclose(plain.seen[-1][:, channel].numpy(), expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("name", ["blur:1", "jpeg:70", "resample:2"])
def test_volumes_are_changed_in_the_planes_of_their_slices(name: str) -> None:
    clean, plain = batch(1, 1, 9, 12, 10), Plain()
    transform = the(name)
    behind(plain, transform, scene(clean, (2, 4))).predict(clean)
    expected = transform(clean[0, 0].numpy().astype(np.float32), 1)
    np.testing.assert_allclose(plain.seen[-1][0, 0].numpy(), expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_are_what_small_steps_do(name: str) -> None:
    clean = batch(2, 1, 8, 7)
    field = behind(Plain(), the(name), scene(clean))
    way = batch(2, 1, 8, 7, seed=1) - 40
    # Away from the lowest and highest value, beyond which transforms do not go.
    x = 10 + 0.8 * clean
    slope = (field.slopes(x, margin).gradients[0] * way).flatten(1).sum(dim=1)
    values = [margin(field.predict(x + step * way))[0] for step in (1e-6, -1e-6)]
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("name", CODECS)
def test_codecs_have_the_slope_of_doing_nothing_at_what_they_give(name: str) -> None:
    clean, plain = batch(1, 1, 16, 16), Plain()
    found = behind(plain, the(name), scene(clean)).slopes(clean, margin).gradients[0]
    there = plain.seen[-1]
    inside = (there > clean.min()) & (there < clean.max())
    torch.testing.assert_close(found[inside], Plain().slopes(there, margin).gradients[0][inside])


def test_zeros_that_are_no_measurement_stay_so() -> None:
    clean, plain = batch(1, 1, 12, 12), Plain()
    clean[..., :5] = 0
    behind(plain, the("blur:2"), scene(clean, zero_kept=True)).predict(clean)
    assert torch.equal(plain.seen[-1] == 0, clean == 0)


def test_noise_is_another_in_each_pass_and_as_strong_as_asked_for() -> None:
    clean, plain = batch(2, 1, 60, 60).clamp(0, 100), Plain()
    field = behind(plain, the("noise:0.05"), scene(clean))
    for _ in range(2):
        field.predict(clean)
    first, second = plain.seen
    assert not torch.equal(first, second)
    still = (clean > 20) & (clean < 80)
    assert float((first - clean)[still].std()) == pytest.approx(5, rel=0.05)


def test_a_background_that_was_blanked_has_no_noise() -> None:
    clean, plain = batch(1, 1, 30, 30).clamp(1, 100), Plain()
    clean[:, :, :15] = 0
    behind(plain, the("noise:0.05"), scene(clean)).predict(clean)
    assert bool((plain.seen[-1][:, :, :15] == 0).all())


@pytest.mark.parametrize("regions", [False, True])
def test_what_was_shifted_comes_back_but_for_what_was_cut_off(regions: bool) -> None:
    clean = batch(2, 1, 9, 8)

    class Regions(Plain):
        def predict(self, x: Tensor) -> Prediction:
            found = super().predict(x)
            return Prediction(torch.stack([found.logits, -found.logits], dim=2), ()) if regions else found

    field = behind(Regions(), the("crop:2"), scene(clean))
    whole = Regions().predict(clean).logits
    for _ in range(4):
        logits = field.predict(clean).logits
        inside = (logits == whole).flatten(0, -3).all(dim=0)
        assert int(inside.sum()) == 7 * 6
        lost = logits[:, 0] > logits[:, 1]
        assert bool(lost[..., ~inside].all())


def test_slopes_go_through_the_way_back() -> None:
    clean = batch(2, 1, 6, 5)
    shift = Through(Plain(), lambda x: x.roll(1, 2), lambda logits: logits.roll(-1, 2))
    # A function of each voxel alone does not notice.
    for mine, other in zip(shift.slopes(clean, margin).gradients, Plain().slopes(clean, margin).gradients, strict=True):
        torch.testing.assert_close(mine, other)


def test_neighbours_are_each_transform_or_the_next_strength_of_it_moved_by_up_to_a_voxel() -> None:
    clean, plain = batch(1, 1, 9, 8), Plain()
    field = neighbours(plain, [the("blur:0.5"), the("gamma:0.8"), the("crop:1")], scene(clean))
    for _ in range(120):
        field.predict(clean)
    ways = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    expected = {}
    for name in ("blur:0.5", "blur:1", "gamma:0.8", "gamma:1.25"):
        changed = Plain()
        behind(changed, the(name), scene(clean)).predict(clean)
        for way in ways:
            expected[name, way] = changed.seen[0].roll(way, (2, 3))[..., 1:-1, 1:-1]
    met = [
        {key for key, found in expected.items() if torch.allclose(seen[..., 1:-1, 1:-1], found)} for seen in plain.seen
    ]
    assert all(len(each) == 1 for each in met)
    drawn = set().union(*met)
    assert {name for name, _ in drawn} == {name for name, _ in expected}
    assert {way for _, way in drawn} == set(ways)


def test_neighbours_draw_where_the_scan_lies() -> None:
    clean = batch(1, 1, 9, 8)
    field = neighbours(Plain(), [the("crop:1")], scene(clean))
    for _ in range(10):
        logits = field.predict(clean).logits[..., 1:-1, 1:-1]
        assert torch.equal(logits, Plain().predict(clean).logits[..., 1:-1, 1:-1])


# --- together -----------------------------------------------------------------------------------------------------


def test_slopes_and_values_are_means_and_views_are_all() -> None:
    x, fields = batch(2, 1, 6, 5), (Plain(), Plain(2.0), Plain(-1.0))
    found, single = Together(fields).slopes(x, margin), [Plain(each.factor).slopes(x, margin) for each in fields]
    torch.testing.assert_close(found.values[0], torch.stack([each.values[0] for each in single]).mean(dim=0))
    torch.testing.assert_close(found.gradients[0], torch.stack([each.gradients[0] for each in single]).mean(dim=0))
    for number, (view, each) in enumerate(zip(found.prediction.views, single, strict=True)):
        assert view.number == number
        assert torch.equal(view.logits, each.prediction.logits)
    assert torch.equal(found.prediction.logits, single[0].prediction.logits)


def test_the_goal_is_what_the_worst_of_them_has() -> None:
    target, clean = torch.ones(1, 2, 5, dtype=torch.long), torch.zeros(1, 2, 5, dtype=torch.long)
    goal = Goal.of(target, clean, 2, iou=0.5, hit=0.5)
    goal = replace(goal, others=(goal,))

    def view(share: float) -> Any:
        logits = torch.zeros(1, 2, 2, 5)
        logits[:, 1].flatten()[:] = torch.where(torch.arange(10) < 10 * share, 1.0, -1.0)
        return Prediction(logits, ())

    for shares, reached in (((1.0, 0.6), True), ((1.0, 0.4), False), ((0.3, 1.0), False)):
        views = tuple(map(view, shares))
        verdict = goal.judge_prediction(Prediction(views[0].logits, (), views=views))
        assert bool(verdict.reached) is reached
        assert float(verdict.score) == pytest.approx(min(shares))


def test_a_helper_is_followed_and_not_judged() -> None:
    x, fields, helper = batch(2, 1, 6, 5), (Plain(), Plain(2.0)), Plain(-1.0)
    found, all_three = Together(fields, helper).slopes(x, margin), Together((*fields, helper)).slopes(x, margin)
    assert torch.equal(found.gradients[0], all_three.gradients[0])
    assert [view.judged for view in found.prediction.views] == [True, True, False]
    # The first two draw the same everywhere; the helper draws what nobody asked for.
    target = found.prediction.labels
    clean = 1 - target
    goal = Goal.of(target, clean, 2, iou=0.5, hit=0.5)
    goal = replace(goal, others=(goal, Goal.of(1 - target, clean, 2, iou=1, hit=1)))
    alike = replace(
        found.prediction, views=tuple(replace(view, logits=found.prediction.logits) for view in found.prediction.views)
    )
    assert bool(goal.judge_prediction(alike).reached.all())
    judged = replace(alike, views=tuple(replace(view, judged=True) for view in alike.views))
    assert not bool(goal.judge_prediction(judged).reached.any())
