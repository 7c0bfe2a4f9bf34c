"""How voxel values become the numbers that a network takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mafl_cli.errors import UsageError
from mafl_cli.names import outside

IntensityKind = Literal["none", "minmax", "zscore", "window", "percentile", "ct", "each", "members"]
Region = Literal["all", "nonzero", "crop", "filled"]


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """How native voxel values become model units. Statistics are those of the whole volume, per channel.

    none:   y = x.
    minmax: y = (x - min) / (max - min).
    zscore: y = (x - mean) / std over `region`; with region "nonzero" all voxels that are exactly 0 stay 0, with
        "filled" all that lie outside.
    window: y = to[0] + (x - min) / (max - min) * (to[1] - to[0]).
    percentile: as window, min and max being the percentiles `lower` and `upper` (MONAI's
        ScaleIntensityRangePercentiles).
    ct: y = (clip(x, lower, upper) - mean) / std, all four in HU and given (nnU-Net's CTNormalization).
    each: every channel has its own, in `each`.
    members: every member of an ensemble has its own, in `each`; the channels come once for each of them.
    `region` is where statistics are taken: all voxels; each channel's that are not 0; or, as nnU-Net does it, the crop,
    which is the box around the voxels that are not 0 in any channel, or in it those voxels with their holes filled.
    `clip` (model units) is applied last; for a window it defaults to `to`.
    """

    kind: IntensityKind = "none"
    region: Region = "all"
    min: float = 0.0
    max: float = 1.0
    to: tuple[float, float] = (0.0, 1.0)
    clip: tuple[float, float] | None = None
    lower: float = 0.0
    upper: float = 100.0
    mean: float = 0.0
    std: float = 1.0
    each: tuple[Intensity, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in (("kind", IntensityKind), ("region", Region)):
            if getattr(self, name) not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                raise UsageError(
                    f"`intensity` {name} must be one of {allowed}, got {outside(str(getattr(self, name)))!r}."
                )
        for low, high, what in (
            (self.min, self.max, "window min and max"),
            (*self.to, "window to"),
            (*(self.clip or (0, 1)), "clip"),
            (self.lower, self.upper, "lower and upper"),
            (0, self.std, "std"),
        ):
            if not low < high:
                raise UsageError(f"`intensity` {what} must rise: {low:g} is not below {high:g}.")
        if self.kind == "percentile" and not 0 <= self.lower < self.upper <= 100:
            raise UsageError(
                f"`intensity` percentiles must lie within 0 to 100, got {self.lower:g} and {self.upper:g}."
            )

    def facts(self) -> dict[str, object]:
        """The settings that matter for this kind, JSON-ready."""
        used = {
            "window": ("min", "max", "to"),
            "zscore": ("region",),
            "minmax": ("region",) if self.region != "all" else (),
            "percentile": ("lower", "upper", "to"),
            "ct": ("lower", "upper", "mean", "std"),
        }.get(self.kind, ())
        facts = {"kind": self.kind, **{name: getattr(self, name) for name in used}}
        if self.each:
            facts["each"] = [each.facts() for each in self.each]
        return facts if self.clip is None else {**facts, "clip": self.clip}

    @property
    def plain(self) -> tuple[Intensity, ...]:
        """What it is made of: itself, or that of every channel and member."""
        return tuple(plain for each in self.each for plain in each.plain) or (self,)

    @property
    def regions(self) -> frozenset[Region]:
        """Where the statistics of its channels are taken."""
        return frozenset({self.region}.union(*(each.regions for each in self.each)))

    def of_channel(self, channel: int) -> Intensity:
        """What happens to one channel."""
        return self.each[channel] if self.kind == "each" else self

    @staticmethod
    def parse(text: str) -> Intensity:
        """Read the short form of the command line, see `_FORMS`. Raises UsageError for anything else."""
        if text in ("none", "minmax", "zscore"):
            return Intensity(kind=text)  # type: ignore[arg-type]
        if text == "zscore-nonzero":
            return Intensity(kind="zscore", region="nonzero")
        kind, _, rest = text.partition(":")
        try:
            numbers = [float(number) for number in rest.split(",")]
        except ValueError:
            numbers = []
        if all(map(math.isfinite, numbers)):
            if kind == "window" and len(numbers) == 2 and numbers[0] < numbers[1]:
                return Intensity(kind="window", min=numbers[0], max=numbers[1], clip=(0.0, 1.0))
            if kind == "percentile" and len(numbers) == 2 and numbers[0] < numbers[1]:
                return Intensity(kind="percentile", lower=numbers[0], upper=numbers[1], clip=(0.0, 1.0))
            if kind == "ct" and len(numbers) == 4:
                lower, upper, mean, std = numbers
                return Intensity(kind="ct", lower=lower, upper=upper, mean=mean, std=std)
        raise UsageError(f"`intensity` must be {_FORMS} (for example window:-57,164), got {outside(text)!r}.")


_FORMS = "none, minmax, zscore, zscore-nonzero, window:MIN,MAX, percentile:LOWER,UPPER or ct:LOWER,UPPER,MEAN,STD"
