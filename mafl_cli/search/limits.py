"""Where an adversarial image may lie: the data box, frozen voxels, a ball, and the values a file can hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mafl_cli.config import AttackConfig, Norm
from mafl_cli.errors import UsageError
from mafl_cli.field.preprocess import per_channel
from mafl_cli.search import steps

# Share of a step that float32 may be off when whole steps are counted.
_SLACK = 1e-3


@dataclass(frozen=True)
class Ball:
    """How far a change may go. radius: (C,), native units: per voxel (linf), or of each channel's share (l2)."""

    radius: Tensor
    norm: Norm

    def clip(self, moved: Tensor) -> Tensor:
        """The nearest change inside. moved: (B, C, *spatial), native units."""
        radius = per_channel(self.radius, moved)
        if self.norm == "linf":
            return torch.clamp(moved, -radius, radius)
        return moved / steps.spread_out(steps.length(moved / radius).clamp_min(1), moved)

    def excludes(self, moved: Tensor) -> Tensor:
        """Bool, broadcasts with `moved`: voxels (linf) or samples (l2) that are outside, rounding errors aside."""
        share = moved / per_channel(self.radius, moved)
        if self.norm == "linf":
            return share.abs() > 1 + 1e-6
        return steps.spread_out(steps.length(share) > 1 + 1e-6, moved)

    def draw(self, clean: Tensor, seed: int) -> Tensor:
        """A random change inside, native units, the same for every sample: like clean, all rows equal.

        From a generator of its own, so that neither the batch nor the caller's random numbers matter.
        """
        generator = torch.Generator().manual_seed(seed)
        one = (1, *clean.shape[1:])
        if self.norm == "linf":
            share = 2 * torch.rand(one, generator=generator) - 1
        else:
            share = steps.unit(torch.randn(one, generator=generator))
            share = share * torch.rand((), generator=generator) ** (1 / share.numel())
        return (share.to(clean) * per_channel(self.radius, clean)).expand_as(clean).clone()


@dataclass(frozen=True)
class Grid:
    """The values that files of integers can hold. Tensors that broadcast with (B, C, *spatial), native units.

    step: between neighbouring values, 0 for a channel of floats. low, high: the outermost values.
    """

    step: Tensor
    low: Tensor
    high: Tensor

    def part(self, rows: Tensor, box: tuple[slice, ...] = ()) -> Grid:
        """The grid of some samples, cut to a box of the spatial axes. rows: (b,) indices into the batch."""

        def cut(values: Tensor) -> Tensor:
            values = values[rows] if len(values) > 1 else values
            for axis, bounds in enumerate(box, start=2):
                if values.shape[axis] > 1:
                    values = values[(slice(None),) * axis + (bounds,)]
            return values

        return Grid(cut(self.step), cut(self.low), cut(self.high))


@dataclass(frozen=True)
class Limits:
    """Where the adversarial image may lie. All in native units.

    low, high: (C,), the data box.
    grid: the values the files can hold, None when all hold floats.
    frozen: bool (B, C, *spatial), voxels that must not change.
    unit: (C,) native units per model unit.
    nonzero: a voxel that is not 0 must not become 0 (there, 0 means background).
    ball: how far from the clean image, or None for as far as the box goes.
    noise: (C,), standard deviation of each channel's own noise; None where nothing is counted in it.
    window: (C,) each, values beyond which the model sees no difference; None where it sees all. No voxel goes further
        out than it was, or than the window's end: that would make the change larger for nothing, and beyond the end
        there is no slope that would bring it back.
    """

    low: Tensor
    high: Tensor
    unit: Tensor
    frozen: Tensor
    grid: Grid | None = None
    nonzero: bool = False
    ball: Ball | None = None
    noise: Tensor | None = None
    window: tuple[Tensor, Tensor] | None = None

    def ends(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest value of each voxel, grid and ball apart. They broadcast with `clean`."""
        low, high = per_channel(self.low, clean), per_channel(self.high, clean)
        if self.window is None:
            return low, high
        first, last = (per_channel(end, clean) for end in self.window)
        return torch.maximum(low, torch.minimum(clean, first)), torch.minimum(high, torch.maximum(clean, last))

    def within(self, config: AttackConfig) -> Limits:
        """The same limits with the ball that the settings ask for.

        Raises: UsageError for a ball in which the file can hold nothing but the clean image.
        """
        if config.eps is None:
            return self
        ball = Ball(config.eps * self.ruler(config), config.norm)
        if self.grid is not None and bool(
            (per_channel(ball.radius, self.grid.step) * (1 + 1e-6) < self.grid.step).any()
        ):
            raise UsageError(
                f"`eps` {config.eps:g} is {float(ball.radius.min()):.3g} native units, less than the step of "
                f"{float(self.grid.step.max()):.3g} between the values the file can hold: allow more, or, for NIfTI, "
                "save as float32."
            )
        return replace(self, ball=ball)

    def ruler(self, config: AttackConfig) -> Tensor:
        """Native units per unit of `eps`: (C,). Raises: UsageError for noise that nobody has measured."""
        if config.eps_unit == "noise":
            if self.noise is None:
                raise UsageError("`eps_unit` noise needs the noise of the image, which nobody has measured.")
            return self.noise
        rulers = {"model": self.unit, "native": torch.ones_like(self.unit), "range": self.high - self.low}
        return rulers[config.eps_unit]

    def part(self, rows: Tensor, box: tuple[slice, ...]) -> Limits:
        """The limits of some samples, cut to a box of the spatial axes. rows: (b,) indices into the batch."""
        grid = None if self.grid is None else self.grid.part(rows, box)
        inside: Any = (..., *box)
        return replace(self, frozen=self.frozen[rows][inside], grid=grid)

    def project(self, clean: Tensor, delta: Tensor, rows: Tensor) -> Tensor:
        """The allowed image next to clean + delta. clean: (B, C, *spatial) native; delta: likewise, model units."""
        low, high = self.ends(clean)
        moved = delta * per_channel(self.unit, delta)
        keep = steps.taken(self.frozen, rows)
        if self.ball is not None:
            moved = self.ball.clip(moved)
            # A clean voxel outside the box would be taken to its border, however far that is.
            keep = keep | (clean < low) | (clean > high)
        grid = None if self.grid is None else self.grid.part(rows)
        if grid is not None:
            # Rounding the change, not the value: an unchanged voxel stays exactly what it was.
            step = grid.step
            finest = torch.where(step > 0, step, 1.0)
            exact, moved = moved, torch.where(step > 0, torch.round(moved / finest) * finest, moved)
            if self.ball is not None:
                inwards = torch.where(step > 0, torch.trunc(exact / finest) * finest, exact)
                moved = torch.where(self.ball.excludes(moved), inwards, moved)
            low, high = torch.maximum(low, grid.low), torch.minimum(high, grid.high)
            # The box may end between two values that can be stored: then the last one inside is the end.
            last = [torch.ceil((low - clean) / finest - _SLACK), torch.floor((high - clean) / finest + _SLACK)]
            low, high = (
                torch.where(step > 0, clean + n * finest, end) for n, end in zip(last, (low, high), strict=True)
            )
        x = clean + moved
        x = torch.minimum(torch.maximum(x, low, out=x), high, out=x)
        keep = keep | (moved == 0)
        if self.nonzero:
            keep |= x == 0
        return torch.where(keep, clean, x)

    def unrounded(self, clean: Tensor, delta: Tensor, rows: Tensor) -> Tensor:
        """Like `project`, but between the values that the file can hold."""
        return replace(self, grid=None).project(clean, delta, rows)

    def blocks(self, x: Tensor, clean: Tensor, gradient: Tensor) -> Tensor:
        """Voxels at an end of the box, or of a ball in the largest norm, that a step against the gradient would leave.

        x, clean: (b, C, *spatial), native units; gradient: likewise, of any length.  Returns: bool, like x.
        """
        low, high = self.ends(clean)
        nearly = 1e-6 * per_channel(self.high - self.low, x)
        if self.grid is not None:
            nearly = torch.maximum(self.grid.step / 2, nearly)
        if self.ball is not None and self.ball.norm == "linf":
            radius = per_channel(self.ball.radius, x)
            low, high = torch.maximum(low, clean - radius), torch.minimum(high, clean + radius)
        return ((x <= low + nearly) & (gradient > 0)) | ((x >= high - nearly) & (gradient < 0))
