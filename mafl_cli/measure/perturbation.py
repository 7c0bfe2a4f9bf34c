"""How large a perturbation is, and how far a scan with it is from the clean one.

Words. *native*: the scan's own units (HU, ...); *model*: the units the network sees. *slice axis*: the array axis along
which slices are counted. What may be undefined is a `Value`; nothing is NaN or Infinity.

Only what changed is measured: elsewhere the difference is 0 and the structural similarity exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, log10, prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.codes import Reason
from mafl_cli.errors import UsageError
from mafl_cli.measure import value
from mafl_cli.measure.quantiles import percentiles
from mafl_cli.measure.records import DataRange, Differing, InBothUnits, InSlice, Psnr, Size, Ssim
from mafl_cli.measure.value import Value

if TYPE_CHECKING:
    from mafl_cli.scans.volume import Volume

Mask = NDArray[np.bool_]

# Radiology's habit for CT: 12 bits less some air, the range SynthRAD and others measure PSNR with. HU.
CT_RANGE = 4000.0

# Wang et al., IEEE TIP 13(4), 2004: Gaussian window, 11 wide, sigma 1.5.
SSIM_SIGMA = 1.5
SSIM_WINDOW = 11

# Half a window, in pixels: so far around a change slices may look different, and as far again must be looked at.
_SIMILAR = (SSIM_WINDOW - 1) // 2
# Slices that are taken out of the volume together, as neighbours share the lines that memory is read in.
_TOGETHER = 16
# Voxels that are compared together.
_BLOCK = 1 << 22


def size_of_channels(
    clean: Sequence[Volume],
    adversarial: Sequence[Volume],
    *,
    units: Sequence[float],
    channels: Sequence[str],
    slice_axis: int,
) -> tuple[Size, tuple[Size, ...]]:
    """`size` over all channels and of each. channels: their names; "CT" has a fixed data range."""
    sizes = [
        size(
            before.data,
            after.data,
            unit=unit,
            data_range=CT_RANGE if channel == "CT" else None,
            slice_axis=slice_axis,
            spacing=before.spacing,
            padding=before.padding,
        )
        for before, after, unit, channel in zip(clean, adversarial, units, channels, strict=True)
    ]
    return over_channels(sizes), tuple(sizes)


def over_channels(sizes: Sequence[Size]) -> Size:
    """One `size` for several channels: L2 over all of them, the largest Linf, PSNR and SSIM as means over channels.

    Native values add up different units where the channels have them; model units are the ones to read.
    """
    first = sizes[0]
    if len(sizes) == 1:
        return first

    def both(of: Callable[[Callable[[InBothUnits], float]], float]) -> InBothUnits:
        return InBothUnits(native=of(lambda length: length.native), model=of(lambda length: length.model))

    def mean(values: Sequence[Value]) -> Value:
        known = [each.value for each in values if each.value is not None]
        return value.mean(known, values[0].reason or Reason.IDENTICAL)

    def mean_psnr(values: Sequence[Psnr]) -> Psnr:
        found = mean(values)
        return replace(values[0], value=found.value, reason=found.reason)

    energies = [entry.l2.model**2 for entry in sizes]
    low = sum(
        energy * entry.low_frequency_share.number for energy, entry in zip(energies, sizes, strict=True) if energy
    )
    return replace(
        first,
        l0=Differing(
            count=sum(entry.l0.count for entry in sizes),
            fraction=sum(entry.l0.fraction for entry in sizes) / len(sizes),
        ),
        l2=both(lambda unit: sqrt(sum(unit(entry.l2) ** 2 for entry in sizes))),
        linf=both(lambda unit: max(unit(entry.linf) for entry in sizes)),
        mean_abs=both(lambda unit: sum(unit(entry.mean_abs) for entry in sizes) / len(sizes)),
        volume_mm3=max(entry.volume_mm3 for entry in sizes),
        changed_slices=max(entry.changed_slices for entry in sizes),
        data_range=DataRange(
            value=max(entry.data_range.value for entry in sizes),
            rule="the largest; each channel is measured with its own",
        ),
        psnr_db=mean_psnr([entry.psnr_db for entry in sizes]),
        psnr_changed_slices_db=mean_psnr([entry.psnr_changed_slices_db for entry in sizes]),
        ssim=replace(
            first.ssim,
            mean=mean([entry.ssim.mean for entry in sizes]),
            mean_changed_slices=mean([entry.ssim.mean_changed_slices for entry in sizes]),
            worst=min(
                (entry.ssim.worst for entry in sizes), key=lambda worst: inf if worst.value is None else worst.value
            ),
        ),
        low_frequency_share=value.ratio(low, sum(energies), Reason.IDENTICAL),
    )


def size(
    clean: NDArray[Any],
    adversarial: NDArray[Any],
    *,
    unit: float,
    data_range: float | None,
    slice_axis: int,
    spacing: Sequence[float],
    padding: Mask | None = None,
) -> Size:
    """Measure a perturbation, adversarial - clean.

    Args:
        clean, adversarial: (I, J, K), finite, native units, any real dtype.
        unit: native units in one model unit, above 0.
        data_range: native; what PSNR and SSIM are relative to. None: `default_data_range(clean)`.
        slice_axis: 0, 1 or 2.
        spacing: three numbers, mm.
        padding: (I, J, K), voxels outside the scanned field, which never change: no part of any mean or range.
    Returns:
        `l0`: voxels that differ, `count` and `fraction`.
        `l2`, `linf`, `mean_abs`: root of the sum of squares, largest magnitude, mean magnitude over all
            voxels; each in `native` and `model` units.
        `volume_mm3`: of the voxels that differ.
        `slices`, `changed_slices`: how many there are, and how many hold a voxel that differs.
        `data_range`: `value` and the `rule` it came from.
        `psnr_db`, `psnr_changed_slices_db`: 10 log10(range^2 / mean square); `identical`, `constant_image`.
        `ssim`: slice by slice, see `_ssim_summary`.
        `low_frequency_share`: share of the perturbation's energy that one Haar level keeps in its low-pass
            band, in the plane of the slices: 2 x 2 block means, odd sizes padded by repeating the edge;
            `identical`.
    Raises: UsageError when the data range is not a number above 0.
    """
    measured = None if padding is None else ~padding
    chosen = default_data_range(clean, measured) if data_range is None else _given(data_range)
    span = chosen.value

    voxels = clean.size if measured is None else int(np.count_nonzero(measured))
    before, after = (np.moveaxis(array, slice_axis, 0) for array in (clean, adversarial))
    inside = None if measured is None else np.moveaxis(measured, slice_axis, 0)
    no_ssim = _why_no_ssim(before.shape[1:], span)
    changed, place = _where(clean, adversarial, slice_axis)
    count, squares, magnitudes, largest, low = 0, 0.0, 0.0, 0.0, 0.0
    similarity: list[float] = []
    for index, x, y in _pairs(before, after, changed, place):
        delta = y - x
        count += int(np.count_nonzero(delta))
        squares += float(np.vdot(delta, delta))
        magnitudes += float(np.abs(delta).sum())
        largest = max(largest, float(np.abs(delta).max()))
        low += _low_pass_energy(delta)
        if not no_ssim:
            similarity.append(_ssim(x, y, span, place, None if inside is None else inside[index]))
    of_changed = len(changed) * prod(before.shape[1:])
    if inside is not None:
        of_changed = sum(int(np.count_nonzero(inside[index])) for index in changed)

    def both_units(native: float) -> InBothUnits:
        return InBothUnits(native=native, model=native / unit)

    return Size(
        l0=Differing(count=count, fraction=count / voxels),
        l2=both_units(sqrt(squares)),
        linf=both_units(largest),
        mean_abs=both_units(magnitudes / voxels),
        volume_mm3=count * prod(float(mm) for mm in spacing),
        slices=len(before),
        changed_slices=len(changed),
        data_range=chosen,
        psnr_db=_psnr(squares, voxels, span, "volume"),
        psnr_changed_slices_db=_psnr(squares, of_changed, span, "changed_slices"),
        ssim=_ssim_summary(similarity, changed, len(before), span, no_ssim),
        low_frequency_share=value.ratio(low, squares, Reason.IDENTICAL),
    )


def default_data_range(clean: NDArray[Any], measured: Mask | None = None) -> DataRange:
    """The span of a scan's values for PSNR and SSIM when nothing better is known: p99.9 - p0.1.

    A few hot voxels (vessels, metal) would otherwise set the scale. A scan with so little in it that both
    percentiles are equal gets max - min; a constant one 0, and has neither PSNR nor SSIM.

    Args:
        clean: any shape, native units. measured: likewise, the voxels that count, at least one; None for all.
    Returns: `value`, native units, and the `rule` in words.
    """
    lowest, low, high, highest = percentiles(clean, (0, 0.1, 99.9, 100), where=measured)
    if high > low:
        return DataRange(value=float(high - low), rule="p99.9 - p0.1 of the clean scan")
    return DataRange(value=float(highest - lowest), rule="max - min of the clean scan")


def _given(data_range: float) -> DataRange:
    if not 0 < data_range < inf:
        raise UsageError(f"the data range {data_range:g} is not a number above 0: give the span of the values.")
    return DataRange(value=float(data_range), rule="given")


@dataclass(frozen=True)
class _ChangedBox:
    """Where slices of a shape changed: the box around all of it, and the larger one that must be looked at."""

    shape: tuple[int, int]
    changed: tuple[slice, slice]

    @property
    def seen(self) -> tuple[slice, slice]:
        rows, columns = (
            # In whole blocks of two pixels, as the low-pass takes them.
            slice(low - low % 2, min(size, high + high % 2))
            for (low, high), size in zip(self._around(2 * _SIMILAR), self.shape, strict=True)
        )
        return rows, columns

    @property
    def unlike(self) -> tuple[slice, slice]:
        """Where the structural similarity can be below 1, and is counted: not in the border of half a window."""
        rows, columns = (
            slice(max(low, _SIMILAR), max(min(high, size - _SIMILAR), _SIMILAR))
            for (low, high), size in zip(self._around(_SIMILAR), self.shape, strict=True)
        )
        return rows, columns

    def _around(self, margin: int) -> list[tuple[int, int]]:
        return [
            (max(0, span.start - margin), min(size, span.stop + margin))
            for span, size in zip(self.changed, self.shape, strict=True)
        ]


def _where(clean: NDArray[Any], adversarial: NDArray[Any], slice_axis: int) -> tuple[list[int], _ChangedBox]:
    """The slices that changed, and where in their planes."""
    lines = [np.zeros(size, bool) for size in clean.shape]
    planes = max(1, _BLOCK // max(1, clean[0].size))
    for first in range(0, len(clean), planes):
        part = slice(first, first + planes)
        differs = clean[part] != adversarial[part]
        if differs.any():
            along = differs.any(axis=2)
            lines[0][part] = along.any(axis=1)
            lines[1] |= along.any(axis=0)
            lines[2] |= differs.any(axis=(0, 1))
    changed, *planar = (np.flatnonzero(lines[axis]).tolist() for axis in (slice_axis, *_planar(slice_axis)))
    rows, columns = (slice(line[0], line[-1] + 1) if line else slice(0) for line in planar)
    height, width = (clean.shape[axis] for axis in _planar(slice_axis))
    return changed, _ChangedBox((height, width), (rows, columns))


def _planar(slice_axis: int) -> tuple[int, int]:
    """The other two axes."""
    first, second = (axis for axis in range(3) if axis != slice_axis)
    return first, second


def _pairs(
    before: NDArray[Any], after: NDArray[Any], changed: Sequence[int], place: _ChangedBox
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """Each changed slice with its index, before and after, as much of it as must be looked at: float64 (H, W)."""
    for first in range(0, len(changed), _TOGETHER):
        some = changed[first : first + _TOGETHER]
        rows, columns = place.seen
        clean, adversarial = (np.ascontiguousarray(array[:, rows, columns][some]) for array in (before, after))
        for index, x, y in zip(some, clean, adversarial, strict=True):
            # A slice at a time: float64 sums, but never a float64 copy of the scan.
            yield index, x.astype(np.float64), y.astype(np.float64)


def _psnr(squares: float, voxels: int, data_range: float, region: str) -> Psnr:
    """Peak signal-to-noise ratio in dB from a sum of squared differences over a region of so many voxels."""
    if not squares:
        entry = value.undefined(Reason.IDENTICAL)
    elif not data_range:
        entry = value.undefined(Reason.CONSTANT_IMAGE)
    else:
        entry = value.defined(20 * log10(data_range) - 10 * log10(squares / voxels))
    return Psnr(entry.value, entry.reason, data_range=data_range, region=region)


def _why_no_ssim(slice_shape: Sequence[int], data_range: float) -> Reason | None:
    if min(slice_shape) < SSIM_WINDOW:
        return Reason.SMALL_SLICES
    return None if data_range else Reason.CONSTANT_IMAGE


def _ssim(
    x: NDArray[np.float64], y: NDArray[np.float64], data_range: float, place: _ChangedBox, measured: Mask | None
) -> float:
    """Structural similarity of two slices (H, W), in [-1, 1]; given as much of them as `place.seen`.

    The mean of the map leaves out a border of 5 pixels, where the window would leave the slice, and what is padding.

    Args:
        measured: (H, W), True outside of padding; None for all.
    """
    similarity = _similarity(x, y, data_range)
    unlike = place.unlike
    inner = tuple(
        slice(part.start - seen.start, part.stop - seen.start) for part, seen in zip(unlike, place.seen, strict=True)
    )
    found, counted = similarity[inner], prod(size - 2 * _SIMILAR for size in place.shape)
    if measured is not None:
        kept = measured[_SIMILAR:-_SIMILAR, _SIMILAR:-_SIMILAR]
        if kept.any():
            found, counted = found[measured[unlike]], int(np.count_nonzero(kept))
    # Outside the windows that see a change the map is exactly 1.
    return float((counted - found.size + found.sum()) / counted)


def ssim_of_part(x: NDArray[np.float64], y: NDArray[np.float64], data_range: float, part: tuple[slice, slice]) -> Value:
    """SSIM over a part of two slices (H, W), in [-1, 1]: the mean of the map, without the border of 5 pixels.

    Undefined: `slice_smaller_than_window`, `constant_image`.
    """
    no_ssim = _why_no_ssim(x.shape, data_range)
    if no_ssim:
        return value.undefined(no_ssim)
    rows, columns = (
        slice(max(each.start, _SIMILAR), min(each.stop, size - _SIMILAR))
        for each, size in zip(part, x.shape, strict=True)
    )
    return value.defined(float(_similarity(x, y, data_range)[rows, columns].mean()))


def _similarity(x: NDArray[np.float64], y: NDArray[np.float64], data_range: float) -> NDArray[np.float64]:
    """The map of the structural similarity, (H, W)."""
    from skimage.metrics import structural_similarity

    _, found = structural_similarity(
        x, y, data_range=data_range, gaussian_weights=True, sigma=SSIM_SIGMA, use_sample_covariance=False, full=True
    )
    similarity: NDArray[np.float64] = found
    return similarity


def _ssim_summary(
    values: Sequence[float], changed: Sequence[int], slices: int, data_range: float, no_ssim: Reason | None
) -> Ssim:
    """SSIM over slices: `mean`, `mean_changed_slices`, and the `worst` with its `slice`, as a mean hides one.

    Undefined: `slice_smaller_than_window`, `constant_image`; the last two also `identical`.

    Args:
        values: one for each changed slice; the others are exactly 1 and were not computed.
        changed: indices of the changed slices along the slice axis.
        no_ssim: why it is not defined for this scan, if so.
    """
    if values:
        lowest = int(np.argmin(values))
        of_changed = value.defined(sum(values) / len(values))
        worst = InSlice(float(values[lowest]), slice=changed[lowest])
    else:
        of_changed = value.undefined(no_ssim or Reason.IDENTICAL)
        worst = InSlice(None, of_changed.reason, slice=None)
    mean = value.undefined(no_ssim) if no_ssim else value.defined((sum(values) + slices - len(values)) / slices)
    return Ssim(
        mean=mean,
        mean_changed_slices=of_changed,
        worst=worst,
        data_range=data_range,
        window=f"gaussian, sigma {SSIM_SIGMA}, {SSIM_WINDOW} x {SSIM_WINDOW}",
    )


def _low_pass_energy(delta: NDArray[np.float64]) -> float:
    """Sum of squares of a slice (H, W) after one Haar low-pass: each 2 x 2 block replaced by its mean."""
    height, width = delta.shape
    padded = np.pad(delta, ((0, height % 2), (0, width % 2)), mode="edge")
    means = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).mean(axis=(1, 3))
    spread = means.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return float(np.vdot(spread, spread))
