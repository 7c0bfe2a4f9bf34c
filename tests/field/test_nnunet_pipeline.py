"""What nnU-Net does around its network, against the functions it calls; the gradient against one graph of it all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize
from torch import Tensor, nn

from mafl_cli.errors import InputError
from mafl_cli.field.boxes import on_last_axes
from mafl_cli.field.crop import Crop, CroppedScan
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Resample
from mafl_cli.field.spline import nnunet_grids
from mafl_cli.field.tiling import Tiling
from mafl_cli.field.windows import Windows
from mafl_cli.network.card import Interpolation, Resize
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.prediction import Prediction

CPU = torch.device("cpu")
CUBIC = Resize(Interpolation(3), Interpolation(1))
GRIDS = [
    ((9, 12, 11), (1.5, 1.0, 1.0), (1.0, 1.2, 0.7), None),
    ((6, 12, 11), (5.0, 1.0, 1.0), (4.0, 1.3, 0.8), 0),
    ((12, 5, 11), (1.0, 6.0, 1.1), (0.8, 1.0, 1.0), 1),
    ((12, 11, 6), (0.9, 1.0, 1.0), (1.2, 1.1, 4.0), 2),
    ((8, 12, 11), (0.2, 1.2, 1.2), (0.4, 1.0, 1.0), None),
]
"""Shape, spacing, spacing wanted, and the axis that nnU-Net resizes on its own."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ranges_of(scan: Tensor) -> list[tuple[Tensor, Tensor]]:
    lines = [scan[0].movedim(axis, 1).flatten(2) for axis in range(1, 4)]
    return [(line.amin(dim=-1), line.amax(dim=-1)) for line in lines]


def resized(scan: NDArray[np.float64], count: Sequence[int], separate: int | None, order: int) -> NDArray[np.float64]:
    """As nnU-Net does it with scikit-image and SciPy: planes first where an axis goes on its own, then nearest."""
    plain: dict[str, Any] = {"mode": "edge", "anti_aliasing": False, "order": order}
    if separate is None:
        whole: NDArray[np.float64] = resize(scan, count, **plain)
        return whole
    planes = np.moveaxis(scan, separate, 0)
    inner = [size for axis, size in enumerate(count) if axis != separate]
    stack = np.stack([resize(plane, inner, **plain) for plane in planes])
    at = (np.arange(count[separate]) + 0.5) * len(planes) / count[separate] - 0.5
    where = np.meshgrid(at, *(np.arange(size, dtype=float) for size in inner), indexing="ij")
    return np.moveaxis(ndimage.map_coordinates(stack, where, order=0, mode="nearest"), 0, separate)


# --- resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "old", "new", "separate"), GRIDS)
def test_scans_and_logits_are_resized_as_scikit_image_does(
    shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...], separate: int | None
) -> None:
    scan = noise(1, 2, *shape)
    grids = nnunet_grids(shape, old, new, CUBIC, ranges_of(scan))
    count = grids.to_network.shape_out
    assert count == tuple(round(a / b * n) for a, b, n in zip(old, new, shape, strict=True))

    there = grids.to_network(scan)
    for mine, one in zip(there[0], scan[0].double().numpy(), strict=True):
        np.testing.assert_allclose(mine.numpy(), resized(one, count, separate, 3), atol=2e-6)
    back = grids.from_network(there)
    for mine, one in zip(back[0], there[0].double().numpy(), strict=True):
        np.testing.assert_allclose(mine.numpy(), resized(one, shape, separate, 1), atol=2e-6)


@pytest.mark.parametrize(("shape", "old", "new", "separate"), GRIDS)
def test_scans_and_logits_are_resized_as_nnunet_itself_does(
    shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...], separate: int | None
) -> None:
    theirs = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    scan = noise(1, 1, *shape)
    grids = nnunet_grids(shape, old, new, CUBIC, ranges_of(scan))
    count = theirs.compute_new_shape(shape, old, new)

    there = theirs.resample_data_or_seg_to_shape(scan[0].numpy(), count, old, new, order=3, force_separate_z=None)
    back = theirs.resample_data_or_seg_to_shape(there, shape, new, old, order=1, force_separate_z=None)
    np.testing.assert_allclose(grids.to_network(scan)[0].numpy(), there, atol=2e-6)
    np.testing.assert_allclose(grids.from_network(torch.from_numpy(there)).numpy(), back, atol=2e-6)


@pytest.mark.parametrize(("shape", "old", "new", "separate"), GRIDS)
def test_the_gradient_of_a_resized_scan_is_the_exact_adjoint(
    shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...], separate: int | None
) -> None:
    grids = nnunet_grids(shape, old, new, CUBIC)
    for resample in (Resample(grids.to_network.axes), grids.from_network):
        x = noise(1, 1, *resample.shape_in).requires_grad_()
        pull = noise(1, 1, *resample.shape_out, seed=1)
        y = resample(x)
        (adjoint,) = torch.autograd.grad(y, x, pull)
        assert float((y * pull).sum().detach()) == pytest.approx(float((x * adjoint).sum().detach()), abs=1e-3)


@pytest.mark.parametrize(("shape", "old", "new", "separate"), GRIDS)
def test_a_part_of_a_resized_scan_needs_a_part_of_the_scan(
    shape: tuple[int, ...], old: tuple[float, ...], new: tuple[float, ...], separate: int | None
) -> None:
    scan = noise(1, 2, *shape)
    resample = nnunet_grids(shape, old, new, CUBIC, ranges_of(scan)).to_network
    box = tuple(slice(1, max(2, count // 2)) for count in resample.shape_out)

    source = resample.needs(box)
    part = resample.cut(box, source)(scan[on_last_axes(source)])

    torch.testing.assert_close(part, resample(scan)[on_last_axes(box)], rtol=0, atol=2e-6)


def test_a_part_of_a_long_line_needs_few_of_its_voxels() -> None:
    resample = nnunet_grids((100, 4, 4), (1.0, 1.0, 1.0), (0.7, 1.0, 1.0), CUBIC).to_network

    source = resample.needs((slice(70, 72), slice(0, 4), slice(0, 4)))[0]
    assert source.stop - source.start < 32


def test_what_a_voxel_touches_is_all_that_its_change_moves() -> None:
    shape = (20, 6, 6)
    resample = nnunet_grids(shape, (1.0, 1.0, 1.0), (0.7, 1.0, 1.0), CUBIC).to_network
    mark = torch.zeros(1, 1, *shape)
    mark[..., 10, 3, 3] = 1
    moved = resample(1000 * mark).abs() > 1e-2

    assert bool((resample.touched(mark)[moved] > 0).all())


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_are_as_few_and_as_even_as_nnunet_s() -> None:
    tiling = Tiling((64, 16, 1), 0.5, windows="nnunet")

    starts = tiling.starts((110, 16, 3))
    assert sorted({start[0] for start in starts}) == [0, 23, 46]
    assert [start[1:] for start in starts[:3]] == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("roi", [(8, 12, 10), (1, 12, 10)])
def test_windows_and_weights_are_nnunet_s_own(roi: tuple[int, ...]) -> None:
    theirs = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    tiling, shape = Tiling(roi, 0.5, windows="nnunet"), (13, 31, 24)
    axes = [axis for axis, edge in enumerate(roi) if edge > 1]
    steps = theirs.compute_steps_for_sliding_window([shape[n] for n in axes], [roi[n] for n in axes], 0.5)

    for axis, starts in zip(axes, steps, strict=True):
        assert sorted({start[axis] for start in tiling.starts(shape)}) == starts
    weights = theirs.compute_gaussian(tuple(roi[n] for n in axes), 1 / 8, 10, device=CPU)
    torch.testing.assert_close(tiling.weights(CPU).view(weights.shape), weights.float(), rtol=2e-3, atol=0)


# --- crop and statistics ----------------------------------------------------------------------------------------------


def scan_in_air(seed: int = 0) -> list[NDArray[np.float32]]:
    """Two channels with zeros around them, a hole in both, and a voxel that is 0 in one of them alone."""
    rng = np.random.default_rng(seed)
    channels = [np.zeros((14, 16, 12), np.float32) for _ in range(2)]
    for number, channel in enumerate(channels):
        channel[2:11, 3:15, 1:10] = rng.uniform(50, 200, (9, 12, 9)) * (1 + 3 * number)
        channel[2, 3, 1:4] = 0
        channel[6, 8, 5] = 0
    channels[0][5, 5, 5] = 0
    return channels


def as_batch(scan: NDArray[Any]) -> NDArray[Any]:
    return scan[np.newaxis]


def test_the_crop_is_the_box_of_what_is_not_zero_and_its_holes_are_filled() -> None:
    crop = Crop.of(scan_in_air(), CPU)

    assert crop.box == (slice(2, 11), slice(3, 15), slice(1, 10))
    assert not crop.filled[0, 0, 0, 0, :3].any()
    assert bool(crop.filled[0, 0, 4, 5, 4])
    assert int((~crop.filled).sum()) == 3


def test_a_scan_of_zeros_has_no_crop() -> None:
    with pytest.raises(InputError, match="all voxels are 0"):
        Crop.of([np.zeros((3, 3, 3), np.float32)], CPU)


@pytest.mark.parametrize("region", ["crop", "filled"])
def test_statistics_are_those_of_the_crop(region: Any) -> None:
    scan = scan_in_air()
    frozen = Preprocessing.freeze(Intensity(kind="zscore", region=region), scan, CPU, turn=as_batch)
    assert frozen.crop is not None
    box, inside = frozen.crop.box, frozen.crop.filled[0, 0].numpy()
    x = torch.from_numpy(np.stack(scan))[on_last_axes(box)][None]

    y = frozen(x)
    for channel in range(2):
        cut = scan[channel][box]
        values = cut[inside] if region == "filled" else cut
        expected = (cut - values.mean(dtype=float)) / values.std(dtype=float)
        np.testing.assert_allclose(y[0, channel].numpy(), expected * (inside if region == "filled" else 1), atol=1e-5)


def test_channels_may_be_scaled_in_different_ways() -> None:
    scan = scan_in_air()
    ct = Intensity(kind="ct", lower=0, upper=100, mean=10, std=5)
    frozen = Preprocessing.freeze(
        Intensity(kind="each", each=(ct, Intensity(kind="minmax", region="crop"))), scan, CPU, turn=as_batch
    )
    assert frozen.crop is not None
    x = torch.from_numpy(np.stack(scan))[on_last_axes(frozen.crop.box)][None]

    y = frozen(x)
    torch.testing.assert_close(y[0, 0], (x[0, 0].clamp(0, 100) - 10) / 5)
    assert (float(y[0, 1].min()), float(y[0, 1].max())) == (0, 1)
    assert frozen.unit.tolist() == [5.0, pytest.approx(float(x[0, 1].max()))]


def test_zeros_around_must_stay_and_holes_may_change() -> None:
    scan = scan_in_air()
    frozen = Preprocessing.freeze(Intensity(kind="zscore", region="filled"), scan, CPU, turn=as_batch)
    keep = frozen.keep(torch.from_numpy(np.stack(scan))[None])

    assert bool(keep[0, :, 0].all())
    assert bool(keep[0, :, 2, 3, 1:4].all())
    assert not keep[0, :, 6, 8, 5].any()
    assert frozen.nonzero_only


# --- all together -----------------------------------------------------------------------------------------------------


class Net:
    """A small network with logits of three classes."""

    name, device = "net", CPU

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 3, padding=1))

    def __call__(self, x: Tensor) -> Prediction:
        return Prediction(self.layers(x), ())


SPACING, WANTED, ROI = (4.0, 1.1, 1.0), (3.5, 1.0, 1.3), (4, 8, 8)


MASKED = Intensity(kind="zscore", region="filled")
CT = Intensity(kind="ct", lower=-100, upper=500, mean=200, std=150)


def field_of(network: Net, scan: Sequence[NDArray[np.float32]], intensity: Intensity) -> CroppedScan:
    frozen = Preprocessing.freeze(intensity, scan, CPU, turn=as_batch)
    assert frozen.crop is not None
    ranges = None if frozen.moves else frozen.crop.ranges
    grids = nnunet_grids(frozen.crop.shape, SPACING, WANTED, CUBIC, ranges)
    inner = Windows(network, frozen, Tiling(ROI, 0.5, windows="nnunet"), grids)
    return CroppedScan(inner, frozen.crop.box, scan[0].shape, moves=frozen.moves)


def one_graph(network: Net, scan: Sequence[NDArray[np.float32]], x: Tensor) -> Tensor:
    """The logits as nnU-Net's predictor gets them, statistics included, in one graph: (1, 3, *spatial)."""
    crop = Crop.of(scan, CPU)
    box = on_last_axes(crop.box)
    inside = crop.filled.expand_as(x[box])
    values = x[box][inside].view(2, -1)
    mean, std = (each.view(1, 2, 1, 1, 1) for each in (values.mean(dim=1), values.std(dim=1, unbiased=False)))
    normal = (x[box] - mean) / std * crop.filled
    shape = tuple(normal.shape[2:])
    count = [round(a / b * n) for a, b, n in zip(SPACING, WANTED, shape, strict=True)]

    def along(values: Tensor, axis: int, line: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Tensor:
        unit = np.eye(values.shape[axis + 2])
        matrix = torch.from_numpy(np.stack([line(row) for row in unit], axis=1)).float()
        return (values.movedim(axis + 2, -1) @ matrix.T).movedim(-1, axis + 2)

    def edges(size: int, order: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        return lambda row: ndimage.zoom(row, size / len(row), order=order, mode="nearest", grid_mode=True)

    inner = along(along(normal, 1, edges(count[1], 3)), 2, edges(count[2], 3))
    low, high = normal.amin(dim=(3, 4), keepdim=True), normal.amax(dim=(3, 4), keepdim=True)
    inner = torch.minimum(torch.maximum(inner, low), high)
    ready = along(inner, 0, lambda row: row[((np.arange(count[0]) + 0.5) * shape[0] / count[0]).astype(int)])
    tiling = Tiling(ROI, 0.5, windows="nnunet")
    pads = tiling.padding(count)
    ready = F.pad(ready, [amount for pad in reversed(pads) for amount in pad])
    weights = tiling.weights(CPU)
    total, logits = torch.zeros(ready.shape[2:]), torch.zeros(1, 3, *ready.shape[2:])
    for start in tiling.starts(ready.shape[2:]):
        place = on_last_axes([slice(first, first + edge) for first, edge in zip(start, ROI, strict=True)])
        part = torch.zeros_like(logits)
        part[place] = network.layers(ready[place]) * weights
        logits, total = logits + part, total.clone()
        total[place] += weights
    within = [slice(before, before + n) for (before, _), n in zip(pads, count, strict=True)]
    logits = (logits / total)[on_last_axes(within)]
    logits = along(along(logits, 1, edges(shape[1], 1)), 2, edges(shape[2], 1))
    logits = along(logits, 0, lambda row: row[((np.arange(shape[0]) + 0.5) * count[0] / shape[0]).astype(int)])
    found = torch.full((1, 3, *x.shape[2:]), -20.0)
    found[:, 0] = 20
    found[box] = logits
    return found


def test_logits_and_gradient_are_those_of_one_graph() -> None:
    network, scan = Net(), scan_in_air()
    x = torch.from_numpy(np.stack(scan))[None].requires_grad_()
    pull = noise(1, 3, *scan[0].shape, seed=5)
    field = field_of(network, scan, MASKED)
    x = (x.detach() * torch.linspace(0.8, 1.2, 12)).requires_grad_()  # Not the scan that it was made for.

    theirs = one_graph(network, scan, x)
    (expected,) = torch.autograd.grad(theirs, x, pull)
    found = field.slopes(x.detach(), lambda prediction: [(prediction.logits * pull).flatten(1).sum(dim=1)])

    torch.testing.assert_close(found.prediction.logits, theirs.detach(), rtol=1e-4, atol=1e-5)
    assert float((found.gradients[0] - expected).abs().max() / expected.abs().max()) < 1e-4
    assert torch.equal(field.labels(x.detach()).long(), theirs.argmax(dim=1))
    assert not found.gradients[0][0, :, :2].any()


def test_the_function_around_an_edit_is_the_same_there() -> None:
    network, scan = Net(), scan_in_air()
    clean = torch.from_numpy(np.stack(scan))[None]
    edit = torch.zeros(1, *scan[0].shape, dtype=torch.bool)
    edit[0, 4:6, 6:8, 4:6] = True
    edit[0, 0, 0, 0] = True  # Outside of the crop: nothing can be drawn there.
    field = field_of(network, scan, CT)

    focus = field.focus(clean, edit)
    box = on_last_axes(focus.box)
    assert bool(edit[box].sum() == edit.sum())
    changed = clean.clone()
    if focus.frozen is not None:
        moving = ~focus.frozen
        changed[box] = torch.where(moving, changed[box] * 1.1, changed[box])
    part = focus.field.predict(changed[box])

    torch.testing.assert_close(part.logits, field.predict(changed).logits[box], rtol=1e-4, atol=1e-4)


def test_no_window_stays_as_it_is_where_statistics_follow_the_scan() -> None:
    network, scan = Net(), scan_in_air()
    clean = torch.from_numpy(np.stack(scan))[None]
    edit = torch.zeros(1, *scan[0].shape, dtype=torch.bool)
    edit[0, 4, 6, 4] = True
    field = field_of(network, scan, MASKED)

    focus = field.focus(clean, edit)
    assert focus.field is field
    assert focus.box == tuple(slice(0, size) for size in scan[0].shape)
