"""What happens to scans on their way to a model: compression, smoothing, resampling. What survives it is a real threat.

Each transform works in the planes of the slices, where both the attack and most viewers and archives work, and knows
nothing of the attack: what it needs of the scan (its range) it takes from the scan it is given. So the same function
is a test of the attack and a defence that could be put before the model.

Words. *range*: p0.1 to p99.9 of the scan, native units; *strength*: the number after the colon. `field.through` has
their slopes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.classes import Labels
from mafl_cli.errors import UsageError
from mafl_cli.measure.compression import Slices, jpeg2000, through
from mafl_cli.names import outside
from mafl_cli.scans.body import blanked

SliceArray = NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """What a whole scan goes from and to, native units.

    low, high: its values. dark, bright: its range; all of it where so little is in a scan that its percentiles are
    equal.
    """

    low: float
    high: float
    dark: float
    bright: float

    @staticmethod
    def of(values: NDArray[Any]) -> Span:
        """values: of any shape."""
        low, high = float(values.min()), float(values.max())
        dark, bright = (float(value) for value in np.percentile(values, (0.1, 99.9)))
        return Span(low, high, *((dark, bright) if dark < bright else (low, high)))

    @property
    def range(self) -> float:
        """How wide the range is."""
        return self.bright - self.dark


@dataclass(frozen=True)
class TransformKind:
    """A transform of slices (N, H, W) by a strength. meaning: of the strength. usual: what "all" stands for. further: a
    strength that does twice as much, or the opposite where there is one."""

    meaning: str
    low: float
    high: float
    usual: tuple[float, ...]
    change: Callable[[Slices, float, Span], Slices]
    further: Callable[[float], float]
    whole: bool = False
    """Strengths are whole numbers."""


@dataclass(frozen=True)
class Transform:
    """A kind with its strength, as "jpeg:75"."""

    kind: str
    strength: float

    @property
    def name(self) -> str:
        """What was asked for, in its shortest form."""
        return f"{self.kind}:{repr(self.strength).removesuffix('.0')}"

    @property
    def further(self) -> Transform:
        """The same kind at a strength that does twice as much, or the opposite; within what the kind takes."""
        kind = KINDS[self.kind]
        return Transform(self.kind, min(max(kind.further(self.strength), kind.low), kind.high))

    def __call__(self, data: SliceArray, slice_axis: int) -> SliceArray:
        """The scan after it; never below its lowest or above its highest value, as files of its type.

        Args:
            data: (I, J, K), finite, native units.
            slice_axis: 0, 1 or 2.
        """
        slices = np.moveaxis(data, slice_axis, 0).astype(np.float64)
        span = Span.of(slices)
        changed = np.clip(KINDS[self.kind].change(slices, self.strength, span), span.low, span.high)
        return np.ascontiguousarray(np.moveaxis(changed.astype(np.float32), 0, slice_axis))

    def back(self, labels: Labels, slice_axis: int) -> Labels:
        """A prediction (..., I, J, K) on the changed scan, on the grid of the scan as it was."""
        if self.kind != "crop":
            return labels
        moved: Labels = labels
        n = int(self.strength)
        for axis in (axis - 3 for axis in range(3) if axis != slice_axis):
            moved = np.roll(moved, n, axis)
            # What was cut off was not there to be predicted: background.
            np.moveaxis(moved, axis, 0)[:n] = 0
        return moved


BLUR = Transform("blur", 0.5)
"""A mild one, under which predictions of clean scans hardly move: that of the detectors, see docs/evaluate.md."""


def parse(texts: Sequence[str], setting: str = "transforms") -> tuple[Transform, ...]:
    """ "blur:1" or "jpeg" (its usual strengths) or "all", each transform once, in the order given.

    setting: what messages call it. Raises UsageError for a kind that does not exist or a strength it does not take.
    """
    found: dict[str, Transform] = {}
    for text in texts:
        kind, given, strength = text.partition(":")
        if kind == "all" and given:
            raise UsageError(f"`{setting}` {outside(text)!r}: all takes no strength.")
        for name in KINDS if text == "all" else (kind,):
            if name not in KINDS:
                raise UsageError(f"`{setting}` {outside(text)!r} is not known: use all, {', '.join(KINDS)}.")
            wanted = (_strength(text, strength, setting),) if given else KINDS[name].usual
            for each in wanted:
                transform = Transform(name, each)
                found.setdefault(transform.name, transform)
    return tuple(found.values())


def _strength(text: str, strength: str, setting: str) -> float:
    kind = KINDS[text.partition(":")[0]]
    try:
        value = float(strength)
    except ValueError:
        value = float("nan")
    if not kind.low <= value <= kind.high or (kind.whole and value != int(value)):
        whole = "a whole number" if kind.whole else "a number"
        raise UsageError(
            f"`{setting}` {outside(text)!r}: {kind.meaning} must be {whole} from {kind.low:g} to {kind.high:g}."
        )
    return value


# --- the transforms -----------------------------------------------------------------------------------------------


def _blur(slices: Slices, sigma: float, _: Span) -> Slices:
    from scipy import ndimage

    blurred: Slices = ndimage.gaussian_filter(slices, (0, sigma, sigma), mode="nearest")
    return blurred


def _median(slices: Slices, size: float, _: Span) -> Slices:
    from scipy import ndimage

    filtered: Slices = ndimage.median_filter(slices, (1, int(size), int(size)), mode="nearest")
    return filtered


def _resample(slices: Slices, factor: float, _: Span) -> Slices:
    """Down by the factor with the smoothing that avoids aliasing, and up again, both linear."""
    from skimage.transform import resize

    small = [max(1, round(n / factor)) for n in slices.shape[1:]]
    down = [resize(each, small, order=1, mode="edge", anti_aliasing=True, preserve_range=True) for each in slices]
    return np.stack([resize(each, slices.shape[1:], order=1, mode="edge", preserve_range=True) for each in down])


def _bits(slices: Slices, bits: float, span: Span) -> Slices:
    """2 ** bits equal steps from the lowest to the highest value."""
    if span.low == span.high:
        return slices
    steps = 2 ** int(bits) - 1
    rounded: Slices = np.rint((slices - span.low) / (span.high - span.low) * steps) / steps
    return rounded * (span.high - span.low) + span.low


def _jpeg(slices: Slices, quality: float, span: Span) -> Slices:
    """8 bits over the range, as scans are exported for slides and messages; what lies outside is cut off."""
    grey = np.rint(np.clip((slices - span.dark) / max(span.range, 1e-30), 0, 1) * 255).astype(np.uint8)
    again = [through(each, "JPEG", quality=int(quality)) for each in grey]
    return np.stack(again) / 255 * span.range + span.dark


def _jpeg2000(slices: Slices, ratio: float, span: Span) -> Slices:
    return jpeg2000(slices, ratio, span.low, span.high)


def _noise(slices: Slices, share: float, span: Span) -> Slices:
    """Gaussian, sigma as a share of the range. The same for every scan of that shape: nobody's luck.

    A background that somebody has blanked has no noise.
    """
    background = blanked(slices)
    measured = np.ones(slices.shape, np.bool_) if background is None else ~background
    noisy: Slices = slices + measured * np.random.default_rng(0).normal(0, share * span.range, slices.shape)
    return noisy


def _gamma(slices: Slices, gamma: float, span: Span) -> Slices:
    """A power of the values, scaled from the lowest to the highest to [0, 1]."""
    if span.low == span.high:
        return slices
    scaled: Slices = np.power(np.clip((slices - span.low) / (span.high - span.low), 0, 1), gamma)
    return scaled * (span.high - span.low) + span.low


def _crop(slices: Slices, voxels: float, _: Span) -> Slices:
    """Cut rows and columns off on one side, pad as many on the other: all moves, and the edge is repeated."""
    n = int(voxels)
    if n >= min(slices.shape[1:]):
        raise UsageError(
            f"`transforms` crop:{n} leaves nothing of slices of {slices.shape[1]} x {slices.shape[2]} voxels: "
            "cut off less."
        )
    moved: Slices = np.pad(slices[:, n:, n:], ((0, 0), (0, n), (0, n)), mode="edge")
    return moved


def _lowpass(slices: Slices, cutoff: float, _: Span) -> Slices:
    """Spatial frequencies above a share of the highest one (Nyquist) are taken away, with a soft edge (Butterworth 4).

    Mirrored first, so that opposite borders do not ring into each other.
    """
    height, width = slices.shape[1:]
    kept = np.empty_like(slices)
    rows, columns = np.fft.fftfreq(2 * height)[:, None], np.fft.rfftfreq(2 * width)[None]
    gain = 1 / np.sqrt(1 + (np.hypot(rows, columns) / (0.5 * cutoff)) ** 8)
    for index, each in enumerate(slices):
        mirrored = np.pad(each, ((0, height), (0, width)), mode="symmetric")
        kept[index] = np.fft.irfft2(np.fft.rfft2(mirrored) * gain, s=mirrored.shape)[:height, :width]
    return kept


def _double(strength: float) -> float:
    return 2 * strength


KINDS: dict[str, TransformKind] = {
    "blur": TransformKind("sigma of a Gaussian, voxels", 0.1, 20, (0.5, 1.0, 2.0), _blur, _double),
    "median": TransformKind("side of the window, voxels", 2, 31, (3, 5), _median, lambda side: side + 2, whole=True),
    "resample": TransformKind("factor, down and up again", 1.05, 16, (1.5, 2.0), _resample, lambda by: 2 * by - 1),
    "bits": TransformKind("bits a voxel keeps", 1, 16, (8, 6), _bits, lambda bits: bits - 1, whole=True),
    "jpeg": TransformKind("quality", 1, 100, (90, 50), _jpeg, lambda quality: 2 * quality - 100, whole=True),
    "jpeg2000": TransformKind("compression ratio", 1, 200, (10, 20), _jpeg2000, _double),
    "noise": TransformKind("sigma, share of the range", 1e-6, 1, (0.01, 0.03), _noise, _double),
    "gamma": TransformKind("exponent", 0.1, 10, (0.8, 1.25), _gamma, lambda exponent: 1 / exponent),
    "crop": TransformKind("voxels cut off, and padded on the other side", 1, 1000, (1, 4), _crop, _double, whole=True),
    "lowpass": TransformKind(
        "highest frequency kept, share of Nyquist", 0.01, 1, (0.5, 0.25), _lowpass, lambda share: share / 2
    ),
}
"""All transforms by name."""
