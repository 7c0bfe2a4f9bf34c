"""An attacked function behind what happens to scans on their way: the transforms of `field.transforms`, with a slope.

Linear ones have their own, and so have the power and the median. A codec and a coarser number of bits have none that
leads anywhere: there the slope is that of doing nothing, which is *backward pass differentiable approximation*
(Athalye et al., ICML 2018), and the numbers are those of the codec itself. Noise is drawn anew in every pass, and what
is cut off at a border is cut off at another one, so that nothing can be made for a single draw (*expectation over
transformation*, Athalye et al.).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mafl_cli.field.field import Field, Losses, Slopes
from mafl_cli.field.transforms import KINDS, Span, Transform
from mafl_cli.network.prediction import Prediction
from mafl_cli.scans.body import blanked

Change = Callable[[Tensor], Tensor]


class Through:
    """A function of what a change makes of a scan, drawn on the scan as it was.

    A pass of `slopes` is one through the function, and one through the change and back. Features are those of the
    changed scan.
    """

    def __init__(self, field: Field, change: Change, back: Change | None = None) -> None:
        """change: of (B, C, *spatial), differentiable. back: of logits, (B, K, ...), onto the grid of the scan."""
        self._field, self._change, self._back = field, change, back

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *spatial), native units."""
        return self._returned(self._field.predict(self._change(x)))

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """One forward pass, and one backward pass for each of the losses."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            changed = self._change(leaf)
        found = self._field.slopes(changed.detach(), lambda prediction: losses(self._returned(prediction)))
        gradients = [torch.autograd.grad(changed, leaf, each, retain_graph=True)[0] for each in found.gradients]
        return replace(found, prediction=self._returned(found.prediction), gradients=gradients)

    def _returned(self, prediction: Prediction) -> Prediction:
        if self._back is None:
            return prediction
        return replace(prediction, logits=self._back(prediction.logits))


@dataclass(frozen=True)
class Scene:
    """What transforms need to know of the clean scan.

    spans: of each channel. blank: the value of its background, where somebody has blanked it. plane: the two axes of a
    batch along which slices are. zero_kept: whether exact zeros are a background by definition, which no transform
    touches. seed: of what is drawn.
    """

    spans: tuple[Span, ...]
    blank: tuple[float | None, ...]
    plane: tuple[int, int]
    zero_kept: bool
    seed: int

    @staticmethod
    def of(clean: Tensor, plane: tuple[int, int], *, zero_kept: bool, seed: int) -> Scene:
        """clean: (B, C, *spatial), native units, all of the scan."""
        channels = [clean[:, channel].cpu().numpy() for channel in range(clean.shape[1])]
        spans = tuple(map(Span.of, channels))
        blank = tuple(None if blanked(each) is None else span.low for each, span in zip(channels, spans, strict=True))
        return Scene(spans, blank, plane, zero_kept, seed)


def behind(field: Field, transform: Transform, scene: Scene) -> Field:
    """The function behind a transform."""
    if transform.kind == "crop":
        shifts = _Shifts(int(transform.strength), scene)
        return Through(field, shifts.there, shifts.back)
    return Through(field, _Change(transform, scene))


def neighbours(field: Field, transforms: Sequence[Transform], scene: Scene) -> Field:
    """The function behind something like these transforms, another one in each pass: one of them, as strong as it is or
    further, on the scan moved by up to a voxel. What is made for them alone is lost at the next strength, and by a
    shift."""
    near = _Neighbours(transforms, scene)
    return Through(field, near.there, near.back)


class _Change:
    """A transform of (B, C, *spatial), as often as it is called; with a slope."""

    def __init__(self, transform: Transform, scene: Scene) -> None:
        self._kind, self._strength, self._scene = transform.kind, transform.strength, scene
        self._generator = torch.Generator().manual_seed(scene.seed)

    def __call__(self, x: Tensor) -> Tensor:
        scene, channels = self._scene, []
        for channel, (span, blank) in enumerate(zip(scene.spans, scene.blank, strict=True)):
            turned = x[:, channel : channel + 1].movedim(scene.plane, (-2, -1))
            planes = self._planes(turned.reshape(-1, *turned.shape[-2:]), span, blank).clamp(span.low, span.high)
            channels.append(planes.view(turned.shape).movedim((-2, -1), scene.plane))
        changed = torch.cat(channels, dim=1)
        return torch.where(x == 0, x, changed) if scene.zero_kept else changed

    def _planes(self, x: Tensor, span: Span, blank: float | None) -> Tensor:
        """Slices (N, H, W)."""
        kind, strength = self._kind, self._strength
        if kind in ("blur", "resample"):
            rows, columns = (_along(kind, strength, side).to(x) for side in x.shape[-2:])
            return rows @ x @ columns.T
        if kind == "lowpass":
            return _lowpass(x, strength)
        if kind == "median":
            return _median(x, int(strength))
        if kind == "gamma" and span.high > span.low:
            # At the lowest value itself the slope may be infinite.
            scaled = ((x - span.low) / (span.high - span.low)).clamp(1e-6, 1)
            return scaled**strength * (span.high - span.low) + span.low
        if kind == "noise":
            noise = torch.randn(x.shape, generator=self._generator).to(x) * (strength * span.range)
            return x + (noise if blank is None else noise * (x != blank))
        # All others have no slope that leads anywhere.
        before = x.detach().cpu().double().numpy()
        after = KINDS[kind].change(before, strength, span)
        return x + torch.from_numpy(after - before).to(x)


@lru_cache(maxsize=64)
def _along(kind: str, strength: float, side: int) -> Tensor:
    """What a linear transform does along one axis: (side, side)."""
    identity = np.eye(side)
    if kind == "blur":
        from scipy import ndimage

        return torch.from_numpy(ndimage.gaussian_filter1d(identity, strength, axis=0, mode="nearest"))
    from skimage.transform import resize

    as_it_is = {"order": 1, "mode": "edge", "preserve_range": True}
    small = resize(identity, (max(1, round(side / strength)), side), anti_aliasing=True, **as_it_is)
    return torch.from_numpy(resize(small, (side, side), **as_it_is))


def _lowpass(x: Tensor, cutoff: float) -> Tensor:
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(2 * height, device=x.device, dtype=torch.float64).unsqueeze(1)
    columns = torch.fft.rfftfreq(2 * width, device=x.device, dtype=torch.float64)
    gain = 1 / torch.sqrt(1 + (torch.hypot(rows, columns) / (0.5 * cutoff)) ** 8)
    mirrored = torch.cat([x, x.flip(-2)], dim=-2)
    mirrored = torch.cat([mirrored, mirrored.flip(-1)], dim=-1)
    kept = torch.fft.irfft2(torch.fft.rfft2(mirrored) * gain.to(x), s=mirrored.shape[-2:])
    within: Tensor = kept[..., :height, :width]
    return within


def _median(x: Tensor, size: int) -> Tensor:
    """With the slope of the voxel that is the median."""
    before, after = size // 2, size - 1 - size // 2
    padded = torch.nn.functional.pad(x.unsqueeze(1), (before, after, before, after), mode="replicate").squeeze(1)
    windows = padded.unfold(1, size, 1).unfold(2, size, 1).flatten(3)
    return windows.kthvalue(size * size // 2 + 1, dim=3).values


class _Shifts:
    """Rows and columns cut off on two sides and padded on the others, and logits moved back; another way in each pass.

    What was cut off was not there to be predicted: background.
    """

    def __init__(self, voxels: int, scene: Scene, among: Sequence[int] = (-1, 1)) -> None:
        """among: the ways along each axis, of which one is drawn; 0 for none."""
        self._voxels, self._plane, self._among = voxels, scene.plane, among
        self._generator = torch.Generator().manual_seed(scene.seed)
        self._ways, self._dims = (1, 1), 0

    def there(self, x: Tensor) -> Tensor:
        """(B, C, *spatial), the edge repeated."""
        self._dims = x.ndim
        down, right = torch.randint(0, len(self._among), (2,), generator=self._generator).tolist()
        self._ways = (self._among[down], self._among[right])
        for axis, way in zip(self._plane, self._ways, strict=True):
            x = x.index_select(axis, self._from(x, axis, way).clamp(0, x.shape[axis] - 1))
        return x

    def back(self, logits: Tensor) -> Tensor:
        """(B, K, ...) of the last call, on the scan as it was."""
        background = torch.full_like(logits, -1.0)
        background[:, 0] = 1.0
        for axis, way in zip(self._plane, self._ways, strict=True):
            # Regions that may overlap have one axis more before the spatial ones, which are the last.
            axis += logits.ndim - self._dims
            source = self._from(logits, axis, -way)
            there = (source >= 0) & (source < logits.shape[axis])
            moved = logits.index_select(axis, source.clamp(0, logits.shape[axis] - 1))
            shape = [1] * logits.ndim
            shape[axis] = -1
            logits = torch.where(there.view(shape), moved, background)
        return logits

    def _from(self, x: Tensor, axis: int, way: int) -> Tensor:
        """Which index each index gets its value from, beyond the border where it gets none."""
        return torch.arange(x.shape[axis], device=x.device) + way * self._voxels


class _Neighbours:
    """See `neighbours`."""

    def __init__(self, transforms: Sequence[Transform], scene: Scene) -> None:
        near = (each for transform in transforms for each in (transform, transform.further))
        # A crop is a shift already.
        self._changes = [_Change(each, scene) for each in near if each.kind != "crop"]
        self._shifts = _Shifts(1, scene, among=(-1, 0, 1))
        self._generator = torch.Generator().manual_seed(scene.seed)
        self.back = self._shifts.back

    def there(self, x: Tensor) -> Tensor:
        """(B, C, *spatial)."""
        if self._changes:
            drawn = int(torch.randint(0, len(self._changes), (1,), generator=self._generator))
            x = self._changes[drawn](x)
        return self._shifts.there(x)
