"""Networks whose slopes say nothing: the cured graph keeps their values, and its slopes are those of what they hide."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from problems import SmallUNet
from torch import Tensor, nn

from mafl_cli.network.lifting import Lifted, Output, lift
from mafl_cli.network.straight import Plan, diagnose, straightened

X = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 36, 36, generator=torch.Generator().manual_seed(2)), 5, 1)


class Wrapped(nn.Module):
    def __init__(
        self, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda y: y
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.base, self.before, self.after = SmallUNet(), before, after
        with torch.no_grad():
            # Both classes are drawn, each on half of the image.
            self.base.head.bias -= self.base(X).flatten(2).median(dim=2).values[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.base(self.before(x)))


def lifted(module: nn.Module) -> Lifted:
    return lift(module.eval(), X, Output(0, bounded=False), [("auto", 1.0)], "m", functional=False)


def slope(graph: Lifted, x: Tensor) -> Tensor | None:
    """Of the first class's lead over the second."""
    x = x.clone().requires_grad_()
    logits = graph.graph(x)[0]
    if not logits.requires_grad:
        return None
    return torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), x)[0]


def alike(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None
    assert b is not None
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y.argmax(1), y.shape[1]).permute(0, 3, 1, 2).to(y.dtype)


FRONTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded": lambda x: torch.round(x * 32) / 32,
    "rounded, with a leak": lambda x: torch.round(x * 32) / 32 + 1e-3 * x,
    "rounded, with a false slope": lambda x: torch.round(x * 32) / 32 - 1e-3 * x.flip(-1),
    "cast to whole numbers": lambda x: (x * 255).to(torch.uint8).to(x.dtype) / 255,
    "counted levels": lambda x: torch.stack([(x > level / 32).to(x.dtype) for level in range(32)]).sum(0) / 32,
    "a fast wave added": lambda x: x + 1e-3 * torch.sin(1e5 * x),
    "a fast sawtooth added": lambda x: x + 1e-3 * torch.remainder(1e5 * x, 1.0),
    "stairs with round edges": lambda x: (
        torch.floor(x * 20) + torch.sigmoid(40 * (x * 20 - torch.floor(x * 20) - 0.5))
    ) / 20,
    "the sign of the slope turned": lambda x: 2 * torch.round(x * 1e6) / 1e6 - x,
    "every other column cut off": lambda x: torch.where(
        torch.arange(x.shape[-1]) // 4 % 2 == 0, x, torch.round(x * 1e6) / 1e6
    ),
}  # fmt: skip
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "saturated": lambda y: torch.tanh(1e3 * y),
    "clamped": lambda y: y.clamp(-0.01, 0.01),
    "one class alone, with a leak": lambda y: one_hot(y) + 1e-3 * y,
    "one class alone, with a false slope": lambda y: one_hot(y) - 1e-3 * y.flip(-1),
    "a hard softmax": lambda y: torch.softmax(1e4 * y, 1),
}
HONEST: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "scaled": lambda x: (x - x.mean()) / x.std(),
    "blurred": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "at half the resolution": lambda x: F.interpolate(
        F.interpolate(x, scale_factor=0.5, mode="bilinear"), scale_factor=2.0, mode="bilinear"
    ),
    "a wide window": lambda x: x.clamp(-1, 2),
    "a slow wave": lambda x: torch.sin(2 * x),
    "in half precision": lambda x: x.to(torch.bfloat16).to(torch.float32),
}


@pytest.mark.parametrize("kind", FRONTS)
def test_a_front_that_hides_the_slope_keeps_its_values_and_gets_the_networks_own(kind: str) -> None:
    network = lifted(Wrapped(FRONTS[kind]))
    plan = diagnose(network, X)
    cured = straightened(network, plan)
    assert plan
    assert torch.equal(cured.graph(X)[0], network.graph(X)[0])
    assert alike(slope(cured, X), slope(lifted(Wrapped()), X)) > 0.9


@pytest.mark.parametrize("kind", ENDS)
def test_an_end_that_hides_the_logits_is_taken_off(kind: str) -> None:
    network = lifted(Wrapped(after=ENDS[kind]))
    cured = straightened(network, diagnose(network, X))
    assert cured.gives == "logits"
    assert alike(slope(cured, X), slope(lifted(Wrapped()), X)) > 0.99


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_network_is_left_as_it_is(kind: str) -> None:
    network = lifted(Wrapped(HONEST[kind]))
    plan = diagnose(network, X)
    assert plan == Plan({}, ())
    assert torch.equal(straightened(network, plan).graph(X)[0], network.graph(X)[0])


def test_a_plan_holds_for_other_sizes() -> None:
    """Slices that leave a batch, and windows of other sizes, have graphs of their own."""
    module = Wrapped(FRONTS["rounded"])
    plan = diagnose(lifted(module), X)
    larger = torch.rand(2, 1, 48, 40, generator=torch.Generator().manual_seed(1))
    other = lift(module.eval(), larger, Output(0, bounded=False), [("auto", 1.0)], "m", functional=False)
    found = slope(straightened(other, plan), larger)
    assert found is not None
    assert bool((found != 0).any())
