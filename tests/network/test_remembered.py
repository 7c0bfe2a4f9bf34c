"""What batch norm remembers of a training, and how well what reaches it fits: closed forms, and every kind of file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mafl_cli.network.load import load
from mafl_cli.network.remembered import Layer, Watching, fit
from mafl_cli.network.source import Own

CPU = torch.device("cpu")


def norm(mean: float, deviation: float) -> nn.BatchNorm2d:
    """A layer of one channel that remembers these."""
    layer = nn.BatchNorm2d(1, eps=1e-12)
    layer.running_mean, layer.running_var = torch.tensor([mean]), torch.tensor([deviation**2])
    return layer.eval()


def reached(network: nn.Module, x: Tensor) -> tuple[Layer, ...]:
    with Watching() as watching:
        network(x)
    return watching.layers


def standard(seed: int = 0, size: int = 16) -> Tensor:
    """Numbers of mean 0 and variance 1: (2, 1, size, size)."""
    x = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return (x - x.mean()) / x.std(correction=0)


@pytest.mark.parametrize(
    ("scale", "shift", "divergence"),
    [(1, 0, 0), (3, 0, (9 + 1 / 9) / 2 - 1), (1, 0.5, 0.25), (2, 1, (5 / 1 + 2 / 4) / 2 - 1)],
)
def test_the_divergence_of_normal_distributions(scale: float, shift: float, divergence: float) -> None:
    """Remembered N(m, s²), now N(m + shift s, (scale s)²): half of (v + d²) / r + (r + d²) / v, less 1."""
    layers = reached(norm(2.0, 0.7), 2.0 + 0.7 * (scale * standard() + shift))
    # With no air at all to mix in the scan stands for itself.
    assert fit(layers, layers, 1.0) == pytest.approx(math.exp(-divergence), rel=1e-4)


def test_channels_and_layers_count_alike() -> None:
    one, two = norm(0.0, 2.0), nn.BatchNorm2d(3, eps=1e-12).eval()
    two.running_var = torch.tensor([1.0, 1.0, 9.0])
    x = standard()
    layers = reached(nn.Sequential(one, nn.Conv2d(1, 3, 1)), x)
    wide = reached(two, x.expand(-1, 3, -1, -1))
    quarter, ninth = (4 + 1 / 4) / 2 - 1, (9 + 1 / 9) / 2 - 1
    assert fit(layers, layers, 1.0) == pytest.approx(math.exp(-quarter), rel=1e-4)
    assert fit(wide, wide, 1.0) == pytest.approx(math.exp(-ninth / 3), rel=1e-4)
    both = (*layers, *wide)
    assert fit(both, both, 1.0) == pytest.approx(math.exp(-(quarter + ninth / 3) / 2), rel=1e-4)


@given(content=st.floats(0.1, 1), share=st.floats(0, 1), level=st.floats(-2, 2), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_how_much_air_there_was_in_training_does_not_matter(
    content: float, share: float, level: float, seed: int
) -> None:
    """What is remembered is a mixture of the scan and air: as much of it taken out, or added, as there can be."""
    x, air = standard(seed), torch.full((1, 1, 16, 16), level)
    low, high = 1 - 1 / content, max(1 - 0.1 / content, 0.0)
    mixed = low + share * (high - low)
    mean = mixed * level
    variance = (1 - mixed) + mixed * level**2 - mean**2
    # So little varies that no share of a grid fits.
    if variance < 0.2:
        return
    layer = norm(mean, math.sqrt(variance))
    found = fit(reached(layer, x), reached(layer, air), content)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    # In 32 bits it may be as layers are made, which remember nothing.
    if not layer.running_mean.any() and bool((layer.running_var == 1).all()):
        assert found is None
        return
    assert found is not None
    assert 0.9 < found <= 1 + 1e-9


@given(parts=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_passes_one_after_the_other_are_as_one(parts: int, seed: int) -> None:
    layer = norm(0.3, 1.4)
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    with Watching() as watching:
        for part in torch.chunk(x, parts):
            layer(part)
    (together,) = reached(layer, x)
    (apart,) = watching.layers
    assert apart.count == together.count
    assert torch.allclose(apart.total, together.total)
    assert torch.allclose(apart.squares, together.squares)


class Net(nn.Module):
    """Two layers that remember what reached them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.middle, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(2)
        for layer in (self.middle, self.last):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.uniform_(layer.running_mean, -0.3, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.second(torch.relu(self.middle(self.first(x)))))
        return found


@pytest.mark.parametrize("kind", ["script", "trace", "export", "module"])
def test_every_kind_of_file_gives_the_same(kind: str, tmp_path: Path) -> None:
    network, example = Net().eval(), torch.rand(2, 1, 32, 32)
    wanted = reached(network, example)
    if kind == "module":
        model: Path | Own = Own(network, "net")
    elif kind == "export":
        model = tmp_path / "net.pt2"
        auto = torch.export.Dim.AUTO
        torch.export.save(
            torch.export.export(network, (example,), dynamic_shapes=({0: auto, 2: auto, 3: auto},)), model
        )
    else:
        model = tmp_path / "net.ts"
        (torch.jit.script(network) if kind == "script" else torch.jit.trace(network, example)).save(str(model))
    segmenter, _, _ = load(model, device=CPU)
    with Watching() as watching:
        segmenter.original(example)
    assert len(watching.layers) == len(wanted) == 2
    for found, layer in zip(watching.layers, wanted, strict=True):
        assert found.count == layer.count
        for name in ("mean", "variance", "total", "squares"):
            assert torch.allclose(getattr(found, name), getattr(layer, name), rtol=1e-4)


def test_what_has_seen_nothing_or_forgets_at_once_tells_nothing() -> None:
    for layer in (nn.BatchNorm2d(1).eval(), norm(1.0, 2.0).train(), nn.InstanceNorm2d(1), nn.GroupNorm(1, 1)):
        assert reached(layer, standard()) == ()
    assert fit((), (), 0.5) is None
