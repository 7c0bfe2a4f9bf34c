"""Changes made to travel: their length, what they may not touch, and what pulls at them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mafl_cli.field.field import Losses, Slopes
from mafl_cli.network.prediction import Prediction
from mafl_cli.search import steps, travel
from mafl_cli.search.limits import Limits


class Small:
    """A function of convolutions. scale: of the logits."""

    def __init__(self, seed: int = 0, scale: float = 1.0, dims: int = 2) -> None:
        torch.manual_seed(seed)
        kind = nn.Conv2d if dims == 2 else nn.Conv3d
        self.inner, self.head = kind(1, 4, 3, padding=1), kind(4, 2, 1)
        self.scale = scale

    def predict(self, x: Tensor) -> Prediction:
        return Prediction(self.scale * self.head(torch.tanh(self.inner(x))), ()).detach()

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        x = x.detach().requires_grad_()
        prediction = Prediction(self.scale * self.head(torch.tanh(self.inner(x))), ())
        values = list(losses(prediction))
        gradients = [torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in values]
        return Slopes(prediction.detach(), [value.detach() for value in values], gradients, torch.zeros(()))


def problem(dims: int = 2, batch: int = 2) -> tuple[Tensor, Tensor, Limits]:
    torch.manual_seed(1)
    clean = torch.rand(batch, 1, *(12,) * dims) * 10
    target = torch.zeros(batch, *(12,) * dims, dtype=torch.long)
    target[:, 4:8] = 1
    frozen = torch.zeros_like(clean, dtype=torch.bool)
    frozen[..., :3] = True
    limits = Limits(low=torch.tensor([-50.0]), high=torch.tensor([60.0]), unit=torch.tensor([2.0]), frozen=frozen)
    return clean, target, limits


def travelled(fields: Any, dims: int = 2, budget: int = 12, **more: Any) -> Any:
    clean, target, limits = problem(dims)
    length = torch.tensor([3.0, 0.5])
    return travel.travel(fields, clean, target, limits, length, budget=budget, seed=0, **more), clean, length


@pytest.mark.parametrize("dims", [2, 3])
def test_the_length_is_spent_and_frozen_voxels_stay(dims: int) -> None:
    found, clean, length = travelled([Small(dims=dims)], dims)
    change = (found.adversarial - clean) / 2
    torch.testing.assert_close(steps.length(change), length, rtol=1e-3, atol=1e-4)
    assert bool((change[..., :3] == 0).all())


def test_the_same_again_is_the_same() -> None:
    first, second = (travelled([Small()])[0] for _ in range(2))
    assert torch.equal(first.adversarial, second.adversarial)


def test_a_surrogate_counts_no_more_for_longer_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """By margins in place of cross-entropy, whose shape changes with the scale of the logits."""

    def margin(surrogate: Any, prediction: Prediction) -> list[Tensor]:
        lead = prediction.logits[:, 1] - prediction.logits[:, 0]
        return [(lead * (1 - 2 * surrogate.target)).flatten(1).sum(dim=1)]

    monkeypatch.setattr(travel._Surrogate, "losses", margin)
    plain, loud = (travelled([Small(0), Small(1, scale)])[0] for scale in (1.0, 100.0))
    torch.testing.assert_close(plain.adversarial, loud.adversarial, rtol=1e-4, atol=1e-4)


def test_cross_entropy_falls_on_the_target() -> None:
    found, clean, _ = travelled([Small()])
    target = problem()[1]
    loss = [nn.functional.cross_entropy(Small().predict(x).logits, target) for x in (clean, found.adversarial)]
    assert loss[1] < loss[0]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("regions", [False, True])
def test_what_is_warped_comes_back(dims: int, regions: bool) -> None:
    axes = [torch.linspace(-1, 1, 24)] * dims
    x = torch.stack([torch.cos(2 * each) for each in torch.meshgrid(*axes, indexing="ij")]).sum(dim=0)[None, None]
    there, back = travel._zoomed(x, torch.Generator().manual_seed(3))
    logits = there(x)
    logits = torch.stack([logits, -logits], dim=1) if regions else logits
    again = back(logits)
    inside: Any = (..., *(slice(5, -5),) * dims)
    first = again[:, 0] if regions else again
    torch.testing.assert_close(first[inside], x[inside], atol=0.03, rtol=0)
    assert not torch.allclose(there(x)[inside], x[inside], atol=0.02)
