"""Resampling: MONAI's and PyTorch's numbers, and crops that equal the crop of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Spacing

from mafl_cli.field.resample import Grids

SPACINGS = [((1.0, 1.0, 1.0), (1.5, 2.0, 0.7)), ((0.9, 3.0, 1.5), (1.5, 1.5, 1.5)), ((2.0, 1.0, 1.2), (1.0, 1.0, 5.0))]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("old", "new"), SPACINGS)
def test_corner_is_what_monai_does(old: tuple[float, ...], new: tuple[float, ...]) -> None:
    x = noise(2, 10, 13, 8)
    theirs = Spacing(new, mode="bilinear", padding_mode="border")(
        MetaTensor(x, affine=torch.diag(torch.tensor([*old, 1.0])))
    )
    ours = Grids.at_spacing(x.shape[1:], old, new, "corner").to_network(x)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs.as_tensor(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "old", "new"),
    [(12, 2.85, 3.3), (11, 1.0, 2.5), (9, 1.4995, 1.5), (9, 1.498, 1.5), (1, 3.0, 0.7), (2, 1.0, 9.0)],
)
def test_corner_rounds_to_the_size_that_monai_rounds_to(size: int, old: float, new: float) -> None:
    """Sizes half-way between two voxels, spacings that are nearly the wanted one, and single voxels."""
    x = noise(1, size, 3, 3)
    affine = torch.diag(torch.tensor([old, 1.0, 1.0, 1.0], dtype=torch.float64))
    theirs = Spacing((new, 1.0, 1.0), mode="bilinear", padding_mode="border")(MetaTensor(x, affine=affine))
    ours = Grids.at_spacing(x.shape[1:], (old, 1, 1), (new, 1, 1), "corner").to_network(x)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs.as_tensor(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), SPACINGS)
def test_edge_is_what_pytorch_does(old: tuple[float, ...], new: tuple[float, ...]) -> None:
    x = noise(1, 2, 10, 13, 8)
    grids = Grids.at_spacing(x.shape[2:], old, new, "edge")
    expected = F.interpolate(x, size=grids.to_network.shape_out, mode="trilinear", align_corners=False)
    torch.testing.assert_close(grids.to_network(x), expected, rtol=0, atol=1e-5)
    back = F.interpolate(expected, size=x.shape[2:], mode="trilinear", align_corners=False)
    torch.testing.assert_close(grids.from_network(expected), back, rtol=0, atol=1e-5)


@given(size=st.integers(1, 12), old=st.floats(0.4, 4), new=st.floats(0.4, 4), kind=st.sampled_from(["corner", "edge"]))
def test_any_size_and_spacing_keeps_the_grid_and_constants(size: int, old: float, new: float, kind: Any) -> None:
    grids = Grids.at_spacing((size,), (old,), (new,), kind)
    ones = torch.ones(1, size)
    assert grids.from_network.shape_out == (size,)
    torch.testing.assert_close(grids.from_network(grids.to_network(ones)), ones)
    line = grids.to_network(torch.arange(size, dtype=torch.float32)[None])[0]
    assert (line.diff() > -1e-5).all()
    assert float(line.min()) >= 0
    assert float(line.max()) <= size - 1


def test_the_same_spacing_changes_nothing() -> None:
    x = noise(1, 1, 5, 6)
    for grids in (Grids.same((5, 6)), Grids.at_spacing((5, 6), (1, 2), (1, 2), "edge")):
        assert torch.equal(grids.to_network(x), x)
        assert grids.to_network.needs((slice(1, 3), slice(0, 6))) == (slice(1, 3), slice(0, 6))


@pytest.mark.parametrize("kind", ["corner", "edge"])
@pytest.mark.parametrize("new", [0.6, 1.0, 2.3])
def test_a_part_from_the_inputs_it_needs_is_the_part_of_the_whole(new: float, kind: Any) -> None:
    x = noise(1, 20, 15)
    there = Grids.at_spacing((20, 15), (1, 1), (new, new), kind).to_network
    rows, columns = there.shape_out
    for box in ((slice(0, 2), slice(1, 4)), (slice(rows - 3, rows), slice(2, columns))):
        given = there.needs(box)
        near: Any = (..., *given)
        far: Any = (..., *box)
        torch.testing.assert_close(there.cut(box, given)(x[near]), there(x)[far])
        within = there.within(given)
        assert all(
            inner.start <= part.start and part.stop <= inner.stop for inner, part in zip(within, box, strict=True)
        )


def test_the_gradient_is_exact() -> None:
    there = Grids.at_spacing((4, 5), (1, 1), (0.7, 1.6), "corner").to_network
    assert torch.autograd.gradcheck(there, (noise(1, 4, 5).double().requires_grad_()))
