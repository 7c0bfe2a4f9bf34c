"""Can a change be seen? What an eye and a screen make of it, beside what compression does to the same slice.

Radiologists have been tested on compression, not on attacks: by alternating display six of them told JPEG 2000 at 5:1
from the original in 0 to 3 % of 100 CTs (two copies of the same: 0 to 1 %), at 10:1 in 95 to 99 % (Eur. Radiol.
17:1529, 2007). So a change is put beside the compression of its own slice that looks as different, by two measures that
know nothing of each other: HaarPSI of the displayed pictures, and the d′ of an observer who knows what to look for.

Slices are looked at in their worst part of `PATCH` pixels, so that no background flatters. What is undefined has its
reason; nothing is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.codes import Reason, Sight
from mafl_cli.measure import haarpsi, value
from mafl_cli.measure.compression import jpeg2000
from mafl_cli.measure.noise import Noise, noise_of
from mafl_cli.measure.observer import Screen, eye, percent_correct
from mafl_cli.measure.perturbation import default_data_range, ssim_of_part
from mafl_cli.measure.records import MOST_COMPRESSED, GreyLevels, Visibility, Window
from mafl_cli.measure.value import Value
from mafl_cli.measure.windows import shown, windows_of

if TYPE_CHECKING:
    from mafl_cli.scans.volume import Volume

Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]

PATCH = 64
"""Side of the part of a slice that is looked at together, pixels."""
UNSEEN, SEEN = 5.0, 10.0
"""JPEG 2000 ratios: up to the first nobody told the two apart in the test above, from the second nearly everybody."""
RATIOS = (2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0, MOST_COMPRESSED)
"""What a slice is compressed to; between them the equivalent is interpolated."""
CANDIDATES = 3
"""Slices of a channel that are compared with their compression: those of the largest d′."""
# Pictures that are alike have a HaarPSI of 1 but for rounding.
_DUST = 1e-9
# Halves of a change that are looked at too: HaarPSI takes magnitudes, and an edge turned round is as steep as before.
_HALVES = (1.0, 0.5, 0.25, 0.125)


def visibility_of(
    clean: Sequence[Volume],
    adversarial: Sequence[Volume],
    *,
    channels: Sequence[str],
    slice_axis: int,
    outside: Sequence[Mask | None],
) -> Visibility:
    """How visible the change of a scan is, in the channel and slice where it is most so.

    Args:
        clean, adversarial: one for each channel. channels: their names; CT has a window of its own.
        slice_axis: 0, 1 or 2. outside: (I, J, K), voxels around the body or without measurement, for each channel.
    """
    found = [
        _of_channel(before, after, channel, slice_axis, beyond)
        for before, after, channel, beyond in zip(clean, adversarial, channels, outside, strict=True)
    ]
    return max(found, key=_rank)


def sight(equivalent: float) -> Sight:
    """The verdict on a change that looks like JPEG 2000 at this ratio."""
    return Sight.CANNOT if equivalent <= UNSEEN else Sight.LIMIT if equivalent < SEEN else Sight.VISIBLE


def _rank(found: Visibility) -> tuple[float, float]:
    return found.compression_equivalent.value or 0.0, found.grey_levels.largest


@dataclass(frozen=True)
class _Scan:
    """What is known of a channel: its noise, None without; its windows; its range, native units."""

    noise: Noise | None
    windows: tuple[Window, ...]
    data_range: float


def _of_channel(clean: Volume, adversarial: Volume, channel: str, slice_axis: int, outside: Mask | None) -> Visibility:
    # In the body's own axes, so that the way in which a file stores its voxels makes no difference.
    turn = _Turn.of(clean.axcodes, slice_axis)
    before, after = (turn.slices(each.data) for each in (clean, adversarial))
    windows = windows_of(clean.data, adversarial.data, channel, outside)
    shape = before.shape[1:]
    changed = [n for n in range(len(before)) if not np.array_equal(before[n], after[n])]
    if not changed:
        return _nothing(channel, windows[0])
    noise = noise_of(before, 0, None if outside is None else turn.slices(outside))
    scan = _Scan(noise, windows, default_data_range(clean.data).value)
    filtered = _Eye.of(shape, scan.noise)
    ranked = sorted(changed, key=lambda n: filtered.worst(_difference(before[n], after[n]))[0], reverse=True)
    slices = [_of_slice(before[n], after[n], scan, filtered) for n in ranked[:CANDIDATES]]
    place = max(range(len(slices)), key=lambda n: slices[n].equivalent)
    worst, index = slices[place], ranked[place]
    x, y = before[index].astype(np.float64), after[index].astype(np.float64)
    return Visibility(
        verdict=sight(worst.equivalent),
        channel=channel,
        slice=turn.stored(0, slice(index, index + 1), len(before)),
        patch=turn.corner(worst.patch, shape),
        window=worst.window,
        noise_sigma_native=_known(None if scan.noise is None else scan.noise.sigma),
        largest_over_noise=_largest(before, after, changed, scan.noise),
        d_prime=_known(None if scan.noise is None else worst.d_prime),
        percent_correct=_known(None if scan.noise is None else percent_correct(worst.d_prime)),
        haarpsi=value.defined(worst.haarpsi),
        compression_equivalent=value.defined(worst.equivalent),
        compression_equivalent_haarpsi=value.defined(worst.by_haarpsi),
        compression_equivalent_d_prime=_known(worst.by_d_prime),
        grey_levels=_grey(before, after, changed, scan),
        psnr_patch_db=_psnr(x[worst.patch], y[worst.patch], scan.data_range),
        ssim_patch=ssim_of_part(x, y, scan.data_range, worst.patch),
    )


@dataclass(frozen=True)
class _Turn:
    """From the axes of an array to slices (N, H, W) whose axes are those of the body (RAS+), in its order.

    axes: of the array, the slice axis first. against: which of them run the other way in the array.
    """

    axes: tuple[int, int, int]
    against: tuple[bool, bool, bool]

    @staticmethod
    def of(axcodes: Sequence[str], slice_axis: int) -> _Turn:
        """axcodes: of the array, as nibabel has them."""
        body = sorted(range(3), key=lambda axis: ["RL", "AP", "SI"].index(_line(axcodes[axis])))
        axes = (slice_axis, *(axis for axis in body if axis != slice_axis))
        first, second, third = axes
        against = (axcodes[first] in "LPI", axcodes[second] in "LPI", axcodes[third] in "LPI")
        return _Turn((first, second, third), against)

    def slices(self, data: NDArray[Any]) -> NDArray[Any]:
        """A view of the array (I, J, K)."""
        return np.flip(data.transpose(self.axes), tuple(axis for axis, flip in enumerate(self.against) if flip))

    def stored(self, axis: int, part: slice, size: int) -> int:
        """Where a part of a turned axis begins in the array."""
        return int(size - part.stop if self.against[axis] else part.start)

    def corner(self, patch: tuple[slice, slice], shape: tuple[int, ...]) -> tuple[int, int]:
        """The first row and column of a patch, along the axes of the array in their order."""
        found = {self.axes[n + 1]: self.stored(n + 1, part, shape[n]) for n, part in enumerate(patch)}
        first, second = (found[axis] for axis in sorted(found))
        return first, second


def _line(code: str) -> str:
    """The line of the body along which an axis runs."""
    return next(line for line in ("RL", "AP", "SI") if code in line)


def _nothing(channel: str, window: Window) -> Visibility:
    """What is said of a change that is not there."""
    none = value.undefined(Reason.IDENTICAL)
    return Visibility(
        verdict=Sight.CANNOT,
        channel=channel,
        slice=None,
        patch=None,
        window=window,
        noise_sigma_native=none,
        largest_over_noise=none,
        d_prime=none,
        percent_correct=none,
        haarpsi=none,
        compression_equivalent=none,
        compression_equivalent_haarpsi=none,
        compression_equivalent_d_prime=none,
        grey_levels=GreyLevels(largest=0.0, share_above_1=0.0),
        psnr_patch_db=none,
        ssim_patch=none,
    )


def _known(number: float | None) -> Value:
    return value.undefined(Reason.NO_NOISE) if number is None else value.defined(number)


def _difference(before: NDArray[np.generic], after: NDArray[np.generic]) -> Plane:
    return after.astype(np.float64) - before.astype(np.float64)


# --- a slice ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Eye:
    """The observer of `measure.observer` at patches of one size. passed: E²; variance: E⁴ NPS."""

    passed: Plane
    variance: Plane

    @staticmethod
    def of(shape: tuple[int, ...], noise: Noise | None) -> _Eye:
        """shape: of the slices. Where the noise is not known, all changes are held against the same one."""
        size = (min(PATCH, shape[0]), min(PATCH, shape[1]))
        passed = eye(size, Screen.of(shape)) ** 2
        return _Eye(passed, passed**2 * (1.0 if noise is None else noise.spectrum(size)))

    def worst(self, change: Plane) -> tuple[float, tuple[slice, slice]]:
        """The largest d′ of the patches of a change (H, W), and where that is; patches overlap by half."""
        height, width = self.passed.shape
        windows = np.lib.stride_tricks.sliding_window_view(change, self.passed.shape)
        rows, columns = (_starts(size, side) for size, side in zip(change.shape, (height, width), strict=True))
        patches = windows[np.ix_(rows, columns)].reshape(-1, height, width)
        busy = patches.any(axis=(1, 2))
        if not busy.any():
            return 0.0, (slice(0, height), slice(0, width))
        power = np.abs(np.fft.fft2(patches[busy])) ** 2 / change[:height, :width].size
        signal, variance = (np.tensordot(power, each, 2) for each in (self.passed, self.variance))
        d = signal / np.sqrt(np.maximum(variance, 1e-300))
        best = int(d.argmax())
        row, column = divmod(int(np.flatnonzero(busy)[best]), len(columns))
        return float(d[best]), (
            slice(rows[row], rows[row] + height),
            slice(columns[column], columns[column] + width),
        )


def _starts(size: int, side: int) -> list[int]:
    """Where patches begin along an axis, half a side apart, the last one at its end."""
    return sorted({*range(0, size - side + 1, max(1, side // 2)), size - side})


@dataclass(frozen=True)
class _Slice:
    """One slice at its worst patch, in the window that shows most of the change.

    haarpsi: the lowest of all windows. equivalent: the larger of the two ratios that look as different.
    """

    patch: tuple[slice, slice]
    window: Window
    d_prime: float
    haarpsi: float
    by_haarpsi: float
    by_d_prime: float | None

    @property
    def equivalent(self) -> float:
        return max(self.by_haarpsi, self.by_d_prime or 0.0)


def _of_slice(before: NDArray[np.generic], after: NDArray[np.generic], scan: _Scan, observer: _Eye) -> _Slice:
    plane, change = before.astype(np.float64), _difference(before, after)
    d, patch = observer.worst(change)
    packed = [jpeg2000(plane[None], ratio, float(plane.min()), float(plane.max()))[0] for ratio in RATIOS]
    looks = [_look(plane, change, packed, window) for window in scan.windows]
    # Where two windows show as much, the first: radiologists begin there.
    place = max(range(len(looks)), key=lambda n: looks[n][1])
    by_d = None if scan.noise is None else equivalent(d, [observer.worst(each - plane)[0] for each in packed])
    return _Slice(patch, scan.windows[place], d, min(similar for similar, _ in looks), looks[place][1], by_d)


def _look(plane: Plane, change: Plane, packed: Sequence[Plane], window: Window) -> tuple[float, float]:
    """The HaarPSI of a changed slice in a window, and the compression that looks as different there."""
    clean = haarpsi.responses(shown(plane, window))
    similar = min(_least(clean, shown(plane + part * change, window)) for part in _HALVES)
    return similar, equivalent(1 - similar, [1 - _least(clean, shown(each, window)) for each in packed])


def _least(clean: Plane, picture: Plane) -> float:
    """The lowest HaarPSI of the patches of a picture. clean: the responses of the other one."""
    found = haarpsi.similarity(clean, haarpsi.responses(picture))
    half = PATCH // haarpsi.HALVED
    height, width = found.weight.shape[1:]
    sides = (min(half, height), min(half, width))
    return min(
        found.index((slice(row, row + sides[0]), slice(column, column + sides[1])))
        for row in _starts(height, sides[0])
        for column in _starts(width, sides[1])
    )


def equivalent(unlike: float, compressed: Sequence[float]) -> float:
    """The ratio whose slice differs as much as a change does, from 1 to the largest of `RATIOS`.

    Args: unlike: how much the change differs, 0 for not at all. compressed: the same at each of `RATIOS`.
    """
    ratios = (1.0, *RATIOS)
    if unlike <= _DUST:  # A slice of one value comes back whole from any compression.
        return ratios[0]
    # A codec need not be worse at each larger ratio: the largest that is no worse than the change counts.
    worst = [0.0, *np.maximum.accumulate(compressed).tolist()]
    place = max(n for n, each in enumerate(worst) if each <= unlike)
    if place == len(RATIOS):
        return ratios[-1]
    share = (unlike - worst[place]) / (worst[place + 1] - worst[place])
    return float(np.exp(log(ratios[place]) + share * (log(ratios[place + 1]) - log(ratios[place]))))


# --- all changed slices -------------------------------------------------------------------------------------------


def _largest(
    before: NDArray[np.generic], after: NDArray[np.generic], changed: Sequence[int], noise: Noise | None
) -> Value:
    if noise is None:
        return value.undefined(Reason.NO_NOISE)
    return value.defined(
        max(
            float((np.abs(_difference(before[n], after[n])) / noise.near(before[n].astype(np.float64))).max())
            for n in changed
        )
    )


def _grey(before: NDArray[np.generic], after: NDArray[np.generic], changed: Sequence[int], scan: _Scan) -> GreyLevels:
    largest, above = 0.0, 0.0
    for n in changed:
        x, y = (each[n].astype(np.float64) for each in (before, after))
        for window in scan.windows:
            moved = np.abs(shown(y, window) - shown(x, window))
            largest, above = max(largest, float(moved.max())), max(above, float((moved > 1).mean()))
    return GreyLevels(largest=largest, share_above_1=above)


def _psnr(x: Plane, y: Plane, data_range: float) -> Value:
    square = float(((y - x) ** 2).mean())
    if not (square and data_range):
        return value.undefined(Reason.CONSTANT_IMAGE if square else Reason.IDENTICAL)
    return value.defined(20 * log(data_range / sqrt(square), 10))
