"""Sliding windows: equal to MONAI's inferer with autograd through it, whatever is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from problems import Unit
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mafl_cli.config import AttackConfig
from mafl_cli.errors import ModelError
from mafl_cli.field.batches import fewer
from mafl_cli.field.resample import Grids
from mafl_cli.field.tiling import Tiling
from mafl_cli.field.whole import Whole
from mafl_cli.field.windows import Windows
from mafl_cli.network.prediction import Patch, Prediction
from mafl_cli.network.uncertainty import weighed
from mafl_cli.search.goals import Goal
from mafl_cli.search.limits import Limits
from mafl_cli.search.loop import attack


class Net(nn.Module):
    """A small network with a wide view: two convolutions around a pooling. Counts its windows."""

    name = "net"
    device = torch.device("cpu")

    def __init__(self, dims: int, channels: int = 1, classes: int = 2, regions: int = 0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        conv, pool = ((nn.Conv2d, nn.AvgPool2d), (nn.Conv3d, nn.AvgPool3d))[dims - 2]
        self.first = conv(channels, 6, 3, padding=1)
        self.pool = pool(2)
        self.deep = conv(6, 6, 3, padding=1)
        self.last = conv(6, 2 * regions or classes, 1)
        self.regions = regions
        self.forwards = 0
        self.requires_grad_(False)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.forwards += len(x)
        first = torch.tanh(self.first(x))
        deep = torch.tanh(self.deep(self.pool(first)))
        up = nn.functional.interpolate(deep, size=x.shape[2:], mode="nearest")
        logits = self.last(first + 2 * up)
        return (logits.unflatten(1, (2, self.regions)) if self.regions else logits), deep

    def forward(self, x: Tensor) -> Prediction:
        logits, deep = self.both(x)
        return Prediction(logits, (Patch(deep),))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def windows(net: Net, shape: Sequence[int], tiling: Tiling, **settings: Any) -> Windows:
    return Windows(net, Unit(), tiling, settings.pop("grids", Grids.same(shape)), **settings)  # type: ignore[arg-type]


def of_monai(net: Net, x: Tensor, tiling: Tiling) -> Tensor:
    logits = sliding_window_inference(
        x, tiling.roi, 3, lambda part: net.both(part)[0], tiling.overlap, mode=tiling.blend, sigma_scale=0.125
    )
    assert isinstance(logits, Tensor)
    return logits


CASES = [
    pytest.param((21, 30), (8, 12), id="2-D"),
    pytest.param((6, 19), (8, 8), id="2-D smaller than the window"),
    pytest.param((13, 17, 20), (8, 8, 8), id="3-D"),
    pytest.param((5, 17, 8), (8, 8, 8), id="3-D smaller than the window"),
]


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.625])
@pytest.mark.parametrize(("shape", "roi"), CASES)
def test_logits_and_gradient_are_those_of_autograd_through_monai(
    shape: tuple[int, ...], roi: tuple[int, ...], overlap: float, blend: Any
) -> None:
    net, tiling = Net(len(shape), channels=2, classes=3), Tiling(roi, overlap, blend)
    x = noise(2, 2, *shape)
    weight = noise(2, 3, *shape, seed=1)

    def loss(logits: Tensor) -> Tensor:
        return (logits.tanh() * weight).flatten(1).sum(dim=1)

    theirs = x.clone().requires_grad_()
    expected = of_monai(net, theirs, tiling)
    (gradient,) = torch.autograd.grad(loss(expected).sum(), theirs)
    field = windows(net, shape, tiling, batch=3)
    torch.testing.assert_close(field.predict(x).logits, expected, rtol=0, atol=1e-5)
    found = field.slopes(x, lambda prediction: [loss(prediction.logits), -2 * loss(prediction.logits)])
    torch.testing.assert_close(found.prediction.logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.gradients[0], gradient, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.gradients[1], -2 * gradient, rtol=1e-5, atol=1e-5)
    assert torch.equal(field.labels(x).long(), expected.argmax(dim=1))


@pytest.mark.parametrize("regions", [0, 2])
@pytest.mark.parametrize("spacing", [1.0, 1.7])
@pytest.mark.parametrize(("shape", "roi"), CASES)
def test_what_is_read_slab_by_slab_is_read_of_the_logits(
    shape: tuple[int, ...], roi: tuple[int, ...], spacing: float, regions: int
) -> None:
    net, x = Net(len(shape), classes=3, regions=regions), noise(2, 1, *shape)
    grids = Grids.at_spacing(shape, (1,) * len(shape), (spacing,) * len(shape), "corner")
    field = windows(net, shape, Tiling(roi), grids=grids, batch=3)
    torch.testing.assert_close(field.read(x, weighed), weighed(field.predict(x).logits), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spacing", [0.6, 1.7, 2.0, 3.75])
@pytest.mark.parametrize("kind", ["corner", "edge"])
@pytest.mark.parametrize(("shape", "roi"), [((41, 40), (8, 6)), ((19, 26, 23), (8, 8, 8))], ids=["2-D", "3-D"])
def test_on_the_networks_grid_it_is_resampling_around_monai(
    shape: tuple[int, ...], roi: tuple[int, ...], kind: Any, spacing: float
) -> None:
    net, tiling, x = Net(len(shape), classes=3), Tiling(roi), noise(2, 1, *shape)
    grids = Grids.at_spacing(shape, (1,) * len(shape), (spacing,) * len(shape), kind)
    theirs = x.clone().requires_grad_()
    expected = grids.from_network(of_monai(net, grids.to_network(theirs), tiling))
    (gradient,) = torch.autograd.grad(expected[:, 1].tanh().sum(), theirs)
    field = windows(net, shape, tiling, grids=grids, batch=4)
    found = field.slopes(x, lambda prediction: [prediction.logits[:, 1].tanh().flatten(1).sum(dim=1)])
    torch.testing.assert_close(found.prediction.logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.gradients[0], gradient, rtol=1e-5, atol=1e-5)
    assert torch.equal(field.labels(x).long(), expected.argmax(dim=1))


def test_overlapping_regions_are_blended_alike() -> None:
    net, tiling, x = Net(3, regions=3), Tiling((8, 8, 8)), noise(1, 1, 12, 16, 9)
    flat = sliding_window_inference(x, (8, 8, 8), 1, lambda part: net.both(part)[0].flatten(1, 2), 0.5, mode="gaussian")
    assert isinstance(flat, Tensor)
    field = windows(net, x.shape[2:], tiling)
    torch.testing.assert_close(field.predict(x).logits, flat.unflatten(1, (2, 3)), rtol=0, atol=1e-5)
    assert torch.equal(field.labels(x).long(), flat.unflatten(1, (2, 3)).argmax(dim=1))


def test_the_feature_term_goes_back_through_every_window() -> None:
    """Against autograd over all windows at once."""
    net, tiling, x = Net(2), Tiling((8, 8), 0.5), noise(2, 1, 13, 16)
    field = windows(net, x.shape[2:], tiling, batch=2)
    mask = (noise(2, 13, 16, seed=3) > 0.5).float()

    def loss(prediction: Prediction) -> Tensor:
        parts = [
            (patch.features**2 * nn.functional.adaptive_avg_pool2d(patch.see(mask)[:, None], 4)).flatten(1).sum(dim=1)
            for patch in prediction.features
        ]
        return torch.stack(parts).sum(dim=0) + prediction.logits[:, 1].flatten(1).sum(dim=1)

    found = field.slopes(x, lambda prediction: [loss(prediction)])
    leaf = x.clone().requires_grad_()
    total = of_monai(net, leaf, tiling)[:, 1].sum()
    for start in field.starts:
        at: Any = (..., *field.place(start))
        cut = nn.functional.adaptive_avg_pool2d(mask[at][:, None], 4)
        total = total + (net.both(leaf[at])[1] ** 2 * cut).sum()
    (expected,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(found.gradients[0], expected, rtol=1e-5, atol=1e-5)


# --- the part around an edit ----------------------------------------------------------------------------------------


def edit_in(shape: Sequence[int], *corner: int, edge: int = 3) -> Tensor:
    edit = torch.zeros(1, *shape, dtype=torch.bool)
    box: Any = (..., *(slice(first, first + edge) for first in corner))
    edit[box] = True
    return edit


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("spacing", [1.0, 0.8, 1.7, 3.6], ids=["same grid", "finer", "coarser", "much coarser"])
@pytest.mark.parametrize("kind", ["corner", "edge"])
@pytest.mark.parametrize(
    ("shape", "corner"), [((40, 12, 30), (12, 4, 9)), ((44, 20, 9), (0, 0, 0)), ((33, 33, 33), (30, 28, 30))]
)
def test_around_an_edit_it_is_the_function_of_the_whole_scan(
    shape: tuple[int, ...], corner: tuple[int, ...], overlap: float, spacing: float, kind: Any
) -> None:
    net, x = Net(3), noise(1, 1, *shape)
    grids = Grids.at_spacing(shape, (1, 1, 1), (spacing,) * 3, kind)
    whole = windows(net, shape, Tiling((8, 8, 8), overlap), grids=grids, batch=4)
    focus = whole.focus(x, edit_in(shape, *corner))
    at: Any = (..., *focus.box)
    assert focus.frozen is not None
    free = torch.zeros_like(edit_in(shape, *corner))
    free[at] = ~focus.frozen
    assert (free | ~edit_in(shape, *corner)).all()  # every voxel of the edit may change
    moved = x + free[:, None] * noise(1, 1, *shape, seed=5)

    def loss(prediction: Prediction) -> Tensor:
        return (prediction.logits[:, 0].tanh() ** 2).flatten(1).sum(dim=1)

    net.forwards = 0
    found = focus.field.slopes(moved[at], lambda prediction: [loss(prediction)])
    cropped = net.forwards
    expected = whole.slopes(moved, lambda p: [loss(Prediction(p.logits[at], ()))])
    torch.testing.assert_close(found.prediction.logits, expected.prediction.logits[at], rtol=0, atol=1e-5)
    inside = ~focus.frozen[:, None]
    torch.testing.assert_close(found.gradients[0] * inside, expected.gradients[0][at] * inside, rtol=1e-4, atol=1e-5)
    # Outside the box nothing has changed.
    outside = torch.ones(shape, dtype=torch.bool)
    outside[focus.box] = False
    before = whole.predict(x).logits
    torch.testing.assert_close(expected.prediction.logits[..., outside], before[..., outside], rtol=0, atol=1e-5)
    assert cropped < net.forwards - cropped


def test_slices_are_never_cut_so_that_their_number_does_not_matter() -> None:
    x, edit = noise(2, 1, 40, 30), torch.zeros(2, 40, 30, dtype=torch.bool)
    edit[:, 3, 4] = True
    field = windows(Net(2), (40, 30), Tiling((8, 8)))
    for rows in (slice(0, 1), slice(0, 2)):
        focus = field.focus(x[rows], edit[rows])
        assert (focus.field, focus.box, focus.frozen) == (field, (slice(0, 40), slice(0, 30)), None)


@pytest.mark.parametrize("corner", [(9, 11, 14), (10, 10, 10), (39, 0, 23), (2, 2, 2)])
@pytest.mark.parametrize("kind", ["corner", "edge"])
def test_an_edit_between_the_voxels_that_the_network_sees_is_attacked(kind: Any, corner: tuple[int, ...]) -> None:
    shape, net = (40, 24, 24), Net(3)
    grids = Grids.at_spacing(shape, (1, 1, 1), (3.6, 3.6, 3.6), kind)
    x, edit = noise(1, 1, *shape), edit_in(shape, *corner, edge=1)
    focus = windows(net, shape, Tiling((4, 4, 4)), grids=grids).focus(x, edit)
    assert focus.frozen is not None
    at: Any = (..., *focus.box)
    assert edit[at].sum() == 1
    assert not (edit[at] & focus.frozen).any()
    voxel = edit[at].float()
    found = focus.field.slopes(
        x[at],
        lambda p: [(p.logits[:, 1] * voxel).flatten(1).sum(1), (p.features[0].features ** 2).flatten(1).sum(1)],
    )
    for gradient in found.gradients:
        assert (gradient * ~focus.frozen[:, None]).any()


def test_windows_far_from_the_edit_never_run_again() -> None:
    shape = (64, 16, 16)
    counts = []
    for length in (64, 128):
        net, x = Net(3), noise(1, 1, length, 16, 16)
        focus = windows(net, x.shape[2:], Tiling((8, 8, 8))).focus(x, edit_in(x.shape[2:], 20, 6, 6))
        net.forwards = 0
        at: Any = (..., *focus.box)
        focus.field.slopes(x[at], lambda prediction: [prediction.logits.flatten(1).sum(dim=1)])
        counts.append(net.forwards)
    assert counts[0] == counts[1]
    assert math.prod(part.stop - part.start for part in focus.box) < math.prod(shape)


def test_the_second_pass_leaves_out_windows_without_a_slope() -> None:
    net, x = Net(2), noise(1, 1, 64, 8)
    field = windows(net, (64, 8), Tiling((8, 8), 0.0))
    net.forwards = 0
    field.slopes(x, lambda prediction: [prediction.logits[:, 0, :8].flatten(1).sum(dim=1)])
    assert net.forwards == 8 + 1


def test_an_attack_around_an_edit_changes_nothing_else_and_draws_the_target() -> None:
    shape = (40, 24, 24)
    net, x = Net(3, seed=2), 0.3 * noise(1, 1, *shape)
    whole = windows(net, shape, Tiling((16, 16, 16)), batch=4)
    clean = whole.labels(x).long()
    target = clean.clone()
    target[:, 4:8, 8:12, 8:12] = 1 - target[:, 4:8, 8:12, 8:12]
    focus = whole.focus(x, clean != target)
    assert focus.frozen is not None
    at: Any = (..., *focus.box)
    limits = Limits(
        low=torch.tensor([-5.0]), high=torch.tensor([5.0]), unit=torch.ones(1), frozen=focus.frozen[:, None]
    )
    config = AttackConfig(steps=60)
    found = attack(focus.field, x[at], target[at], config, limits)
    after = x.clone()
    after[at] = found.adversarial
    verdict = Goal.of(target, clean, 2, iou=config.goal_iou, hit=config.goal_hit).judge(whole.labels(after))
    assert verdict.reached.all()
    assert ((after != x)[:, 0] & (clean == target)).any()
    changed = (after != x)[0, 0].nonzero()
    assert int(changed[:, 0].max()) < 8 + 4  # a quarter of the window beyond the edit, and no further


# --- memory ---------------------------------------------------------------------------------------------------------


class Forgetful(Net):
    """Runs out of memory with more than `most` windows at a time."""

    most = 1

    def forward(self, x: Tensor) -> Prediction:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)


def test_out_of_memory_goes_on_with_fewer_windows_and_the_same_result() -> None:
    x, said = noise(1, 1, 20, 20), list[str]()
    expected = windows(Net(2), (20, 20), Tiling((8, 8))).slopes(x, lambda p: [p.logits.flatten(1).sum(dim=1)])
    field = windows(Forgetful(2), (20, 20), Tiling((8, 8)), batch=8, say=said.append)
    found = field.slopes(x, lambda p: [p.logits.flatten(1).sum(dim=1)])
    torch.testing.assert_close(found.gradients[0], expected.gradients[0])
    assert said == [f"not enough memory: going on with {n} at a time" for n in (4, 2, 1)]


class Failing(TorchDispatchMode):
    """Runs out of memory once: at the `at`-th operation that allocates while windows are run."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.count, self.armed = at, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.armed and all(result.alias_info is None for result in func._schema.returns):
            self.count += 1
            if self.count == self.at:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("what", ["slopes", "focus", "labels"])
def test_wherever_a_batch_runs_out_of_memory_nothing_counts_twice(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, run = (18, 6, 6), Windows.run
    x, weight = noise(1, 1, *shape), noise(1, *shape, seed=1)

    def answer(failing: Failing) -> list[Tensor]:
        def armed(self: Windows, *args: Any, **kwargs: Any) -> None:
            failing.armed = True
            run(self, *args, **kwargs)
            failing.armed = False

        monkeypatch.setattr(Windows, "run", armed)
        field = windows(Net(3), shape, Tiling((6, 6, 6)), batch=2)
        with failing:
            if what == "labels":
                return [field.labels(x)]
            focus = field.focus(x, edit_in(shape, 3, 2, 2))
            part: Any = (field, (...,)) if what == "slopes" else (focus.field, (..., *focus.box))
            found = part[0].slopes(
                x[part[1]],
                lambda p: [
                    (p.logits[:, 1] * weight[part[1]]).flatten(1).sum(1),
                    torch.stack([(patch.features**2).flatten(1).sum(1) for patch in p.features]).sum(0),
                ],
            )
        return [
            found.prediction.logits,
            *found.values,
            *found.gradients,
            *(p.features for p in found.prediction.features),
        ]

    counting = Failing(0)
    expected = answer(counting)
    assert counting.count > 20
    for at in range(1, counting.count + 1):
        torch.testing.assert_close(answer(Failing(at)), expected, rtol=1e-5, atol=1e-5)


def test_a_lack_of_memory_on_the_processor_is_known_by_its_message() -> None:
    said = list[str]()
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert fewer(4, caught.value, said.append, "net", "window") == 2
    assert len(said) == 1


def test_one_window_that_does_not_fit_is_one_sentence() -> None:
    net = Forgetful(2)
    net.most = 0
    with pytest.raises(
        ModelError,
        match=r"net: one window needs more memory than there is: choose a smaller `roi`\.",
    ):
        windows(net, (20, 20), Tiling((8, 8))).predict(noise(1, 1, 20, 20))


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        windows(Net(2), (20, 20), Tiling((8, 8)), batch=4).predict(noise(1, 3, 20, 20))


# --- in one piece, on another grid -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["corner", "edge"])
def test_in_one_piece_on_the_networks_grid_the_gradient_is_exact(kind: Any) -> None:
    shape, net = (11, 14), Net(2)
    grids = Grids.at_spacing(shape, (1.0, 2.0), (1.5, 1.5), kind)
    field = Whole(net, Unit(), divisor=4, grids=grids)  # type: ignore[arg-type]
    x = noise(1, 1, *shape)
    assert field.predict(x).logits.shape == (1, 2, *shape)
    found = field.slopes(x, lambda p: [p.logits[:, 1].flatten(1).sum(dim=1)])
    leaf = x.clone().requires_grad_()
    inner = grids.to_network(leaf)
    pad = (0, -inner.shape[3] % 4, 0, -inner.shape[2] % 4)
    logits = grids.from_network(net.both(nn.functional.pad(inner, pad))[0][..., : inner.shape[2], : inner.shape[3]])
    (expected,) = torch.autograd.grad(logits[:, 1].sum(), leaf)
    torch.testing.assert_close(found.gradients[0], expected)


@pytest.mark.parametrize(
    ("shape", "divisor", "padded"),
    [
        ((7, 9), 1, (7, 9)),
        ((7, 9), 4, (8, 12)),
        ((8, 16), 8, (8, 16)),
        ((1, 5, 9), 2, (2, 6, 10)),
        ((3, 5, 7), 16, (16, 16, 16)),
    ],
    ids=str,
)
def test_in_one_piece_it_is_padded_with_zeros_at_the_far_end(
    shape: tuple[int, ...], divisor: int, padded: tuple[int, ...]
) -> None:
    seen: list[Tensor] = []

    def net(x: Tensor) -> Prediction:
        seen.append(x)
        return Prediction(torch.cat([x, -x], dim=1), (Patch(x),))

    x = noise(2, 1, *shape).abs() + 1
    prediction = Whole(net, Unit(2.0), divisor).predict(x)  # type: ignore[arg-type]
    inside: Any = (..., *(slice(size) for size in shape))
    assert seen[0].shape[2:] == padded
    assert torch.equal(seen[0][inside], x / 2)
    assert int((seen[0] != 0).sum()) == x.numel()
    assert prediction.logits.shape[2:] == shape
    assert prediction.features[0].see(torch.ones(2, *shape)).shape[1:] == padded
