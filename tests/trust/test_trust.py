"""Whether an attack can be believed: alarms where the gradient lies, none where it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from commands import Threshold
from masked import HONEST, MASKED, Wrapped, scan
from problems import SmallUNet, Unit, box, pooled
from torch import Tensor, nn

import mafl_cli as mafl
from mafl_cli.codes import Alarm, Belief
from mafl_cli.config import preset
from mafl_cli.field.whole import Whole
from mafl_cli.network.prediction import Prediction
from mafl_cli.results.trust_report import Trust
from mafl_cli.search.loop import attack
from mafl_cli.trust import directions
from mafl_cli.trust.measured import Places, Ways, measure

OF_GRADIENTS = {Alarm.SLOPE, Alarm.ALONG, Alarm.DEAD, Alarm.BORDER, Alarm.LOOP}


def attacked(net: nn.Module, image: Tensor | None = None, **options: Any) -> mafl.Attacked[Tensor]:
    """What is drawn is to be moved by four voxels."""
    image = scan() if image is None else image
    with torch.no_grad():
        logits = net(image)
        clean = (logits > 0).long() if options.get("activation") == "sigmoid" else logits.argmax(1)
    return mafl.attack(net, image, torch.roll(clean, 4, -1), **{"steps": 30, **options})


def codes(trust: Trust) -> set[Alarm]:
    """What the first search is doubted for."""
    return {alarm.code for alarm in trust.searches[0].alarms} & OF_GRADIENTS


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_one_raises_none(kind: str) -> None:
    trust = attacked(HONEST[kind]()).trust

    assert not codes(trust)
    assert [each.gradient for each in trust.searches] == ["exact"]
    assert trust.searches[0].explained is not None
    assert trust.searches[0].explained > 0.9


def batch(count: int) -> Tensor:
    """Balls of several sizes."""
    return torch.cat([scan() ** (0.8 + 0.1 * number) for number in range(count)])


@pytest.mark.parametrize(
    ("net", "options"),
    [
        (Wrapped(), {"roi": (16, 16)}),
        (Wrapped(), {"method": "pgd", "eps": 0.2}),
        (Wrapped(), {"method": "asma", "goal_iou": 0.9}),
        (Wrapped(), {"after_goal": "stop"}),
        (SmallUNet(norm="instance"), {}),
        (Wrapped(back=lambda z: torch.cat([z[:, 1:] - z[:, :1], z[:, 1:] + 0.3], dim=1)), {"activation": "sigmoid"}),
    ],
    ids=["windows", "PGD", "ASMA", "stops at the goal", "instance norm", "regions"],
)
def test_whatever_is_attacked_is_checked(net: nn.Module, options: dict[str, Any]) -> None:
    trust = attacked(net, **options).trust

    assert not codes(trust)
    assert trust.searches[0].explained is not None


def test_voxels_that_must_stay_are_not_moved() -> None:
    """Zero is background to some networks: a step off it is not a small change. What must stay is not called dead."""
    net, clean = Wrapped(), scan()
    frozen = clean < 0.3
    seen: list[Tensor] = []

    def note(x: Tensor) -> Prediction:
        seen.append(x.detach())
        return _prediction(net, x)

    segmenter: Any = note
    unit: Any = Unit()
    must = torch.ones(1, 32, 32, dtype=torch.bool)
    places = Places(clean, torch.ones(1, 32, 32, dtype=torch.int64), must, ~frozen)

    found = measure(Whole(segmenter, unit), places, Ways(2, 2, along=True), lambda rows, work: work(rows, 0.0))

    assert len(seen) == 2
    moved = torch.cat(seen) != clean
    assert moved.any()
    assert not (moved & frozen).any()
    assert float(found.still) == 0
    torch.testing.assert_close(found.promised, found.came, rtol=0.05, atol=1e-5)


class Leads(nn.Module):
    """The lead of one class over the other is a power of the distance from 0, for half of the image; there is none in
    the other half."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        lead = x.sign() * x.abs() ** self.power * (torch.arange(x.shape[-1]) < x.shape[-1] // 2)
        return torch.cat([-lead, lead], dim=1) / 2


@pytest.mark.parametrize("power", [1, 2, 3])
def test_what_moves_at_the_border_is_compared_with_what_moves_beside(power: int) -> None:
    """Evenly spread distances: where a power of them is small, its slope is."""
    generator = torch.Generator().manual_seed(0)
    image = 1000 * (torch.rand(1, 1, 256, 512, generator=generator) - 0.5)
    segmenter: Any = lambda x: _prediction(Leads(power), x)  # noqa: E731
    unit: Any = Unit()
    places = Places(image, torch.ones_like(image[:, 0]).long(), image[:, 0] > -1e9, image > -1e9)

    found = measure(Whole(segmenter, unit), places, Ways(3), lambda rows, work: work(rows, 0.0))

    # Noise of 0.3 % of the range blurs the slope |z| ** (power - 1) a little at the border.
    near, beside = (sum(i ** (power - 1) for i in part) / len(part) for part in (range(100), range(100, 600)))
    assert float(found.border) == pytest.approx(near / beside, abs=0.05)


def test_where_nothing_answers_there_is_no_border() -> None:
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    segmenter: Any = lambda x: _prediction(Leads(1), 0 * x)  # noqa: E731
    unit: Any = Unit()
    places = Places(image, torch.ones_like(image[:, 0]).long(), image[:, 0] >= 0, image >= 0)

    assert bool(measure(Whole(segmenter, unit), places, Ways(1), lambda rows, work: work(rows, 0.0)).border.isnan())


@pytest.mark.parametrize("options", [{}, {"roi": (16, 16, 16)}], ids=["whole", "windows"])
def test_a_volume_is_checked(options: dict[str, Any]) -> None:
    image = scan(16)[:, :, None].repeat(1, 1, 20 if options else 16, 1, 1)

    trust = attacked(Threshold(3), image, **options).trust

    assert not codes(trust)
    assert trust.searches[0].samples == (0,)


def test_the_four_with_most_to_change_are_looked_at() -> None:
    image = batch(6)

    trust = attacked(Wrapped(), image).trust

    with torch.no_grad():
        clean = Wrapped()(image).argmax(1)
    counts = (clean != torch.roll(clean, 4, -1)).flatten(1).sum(dim=1)
    assert trust.searches[0].samples == tuple(sorted(counts.argsort(descending=True, stable=True)[:4].tolist()))
    # A search of 150 steps takes 150 forward and 144 backward passes for each of them; one backward is two forward.
    passes = trust.searches[0].passes
    assert passes.forward + 2 * passes.backward <= 0.06 * 4 * (150 + 2 * 144)


def test_a_sample_that_misleads_among_those_that_do_not_is_enough() -> None:
    """One of three has the wrong sign."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.honest, self.other = Wrapped(), MASKED["wrong sign"]()

        def forward(self, x: Tensor) -> Tensor:
            dark = x.amax(dim=(1, 2, 3), keepdim=True) < 0.8
            return torch.where(dark, self.other(x), self.honest(x))

    image = torch.cat([scan(), scan(), 0.75 * scan()])
    assert codes(attacked(Half(), image).trust)


def test_nothing_to_change_is_nothing_to_check() -> None:
    image = scan()
    with torch.no_grad():
        clean = Wrapped()(image).argmax(1)

    trust = mafl.attack(Wrapped(), image, clean, steps=5).trust

    assert (trust.verdict, trust.searches, trust.alarms) == (Belief.UNCHECKED, (), ())


def test_a_goal_that_is_missed_without_a_limit_is_an_alarm() -> None:
    assert {alarm.code for alarm in attacked(Wrapped(), steps=2).trust.alarms} == {Alarm.NO_LIMIT}
    assert not attacked(Wrapped(), steps=2, eps=0.01).trust.alarms
    within = torch.ones(1, 32, 32, dtype=torch.bool)
    assert not attacked(Wrapped(), steps=2, within=within).trust.alarms


def test_dust_is_an_alarm() -> None:
    assert Alarm.DUST in {alarm.code for alarm in attacked(Wrapped(), steps=5, eps=1e-7).trust.alarms}


def test_the_search_is_the_same_whether_it_is_watched_or_not() -> None:
    net = Wrapped()
    clean = batch(3)
    with torch.no_grad():
        target = torch.roll(net(clean).argmax(1), 4, -1)
    segmenter: Any = lambda x: _prediction(net, x)  # noqa: E731
    unit: Any = Unit()
    field = Whole(segmenter, unit)
    found = [
        attack(field, clean, target, preset("mafl", steps=20), box(clean), watch=watch)
        for watch in (None, torch.tensor([True, False, True]))
    ]

    assert torch.equal(found[0].adversarial, found[1].adversarial)
    assert found[0].falls.promised.isnan().all()
    assert found[1].falls.promised[:, [0, 2]].isfinite().any()
    assert found[1].falls.promised[:, 1].isnan().all()


def _prediction(net: nn.Module, x: Tensor) -> Prediction:
    return Prediction(net(x), pooled(x))


def test_a_step_is_measured_by_what_the_network_sees() -> None:
    """Thousands of HU lie in the scan, 400 in the window."""
    image = torch.linspace(-1000, 3000, 64 * 64).view(1, 1, 64, 64)
    inside = ((image > -160) & (image < 240)).float()

    assert directions.step_sizes(image, inside).item() == pytest.approx(0.003 * 400, rel=0.05)
    assert directions.step_sizes(image, torch.zeros_like(image)).item() == pytest.approx(0.003 * 4000, rel=0.05)


def test_directions_are_the_same_for_everybody_and_disturb_no_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()

    for draw in (directions.white, directions.smooth):
        one = draw(torch.zeros(1, 2, 24, 30), 7)
        assert torch.equal(one, draw(torch.zeros(1, 2, 24, 30), 7))
        assert one.square().mean().sqrt() == pytest.approx(1, abs=0.1)
    rough, even = (draw(torch.zeros(1, 1, 64, 64), 1).diff(dim=-1).square().mean() for draw in (
        directions.white, directions.smooth
    ))  # fmt: skip
    assert even < 0.1 * rough
    assert torch.equal(before, torch.get_rng_state())
