"""The noise of a scan, estimated in the scan itself: how much there is, and at which spatial frequencies.

Where the anatomy is flat, what is left of small patches after their trend is taken away is noise. Its mean square is
σ², its Fourier transform the noise power spectrum (NPS; ICRU Report 54, 1996; Siewerdsen et al., Med. Phys. 29, 2002).
Magnitude images of MR are Rician (Gudbjartsson and Patz, MRM 34, 1995): well above the noise that is Gaussian, so only
patches there count; where a scan has none, σ is that of its air, which is Rayleigh.

Anatomy looks like noise wherever a patch is larger than what is flat in it, so patches are as small as they can be, and
larger ones are taken only where nearly all of a scan is flat. What is found errs on the side of too little noise where
noise is smooth, by up to a third: then a change counts as easier to see than it is.

Planes are (H, W), native units; frequencies are in cycles per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIDES = (24, 16, 12, 8)
"""Sides of the patches that are tried, pixels, at most half of the shorter side of a slice."""
FLAT, ALIKE, COMMON = 0.03, 1.2, 0.5
"""Patches count that vary at most `ALIKE` times as much as the share `FLAT` that varies least: patches that hold noise
alone differ by less than that. Where a share of at least `COMMON` counts, they hold noise; else smaller ones are
tried."""
SLICES = 24
"""Slices that are looked at, spread evenly."""
# Patches of a slice, spread evenly, and slices: so that the memory does not grow with the scan.
_OF_A_SLICE = 800
# Squares of this side that hold one value were blanked or clipped: noise of half a step between numbers makes none.
_ONE_VALUE = 4
# Scans with values below the first are in HU; what is below the second is air or lung, and less noisy than tissue.
_HU, _AIR = -500.0, -300.0
# Rings of the spectrum: from 0 to the corner of the plane of frequencies.
_RINGS = 24
_CORNER = float(np.sqrt(0.5))
# Less than this share of the values is what float32 leaves of a constant.
_DUST = 1e-6
# A magnitude image is Gaussian where it is above so many σ.
_GAUSSIAN = 3.0
# The median of a Rayleigh distribution over its σ.
_RAYLEIGH = float(np.sqrt(2 * np.log(2)))
# The share of patches without tissue that are surely air.
_DARK = 0.1
# Around a pixel, sigma of the Gaussian in pixels: what is slower counts as anatomy; and where its noise is averaged.
_FINE, _NEAR = 1.0, 4.0


@dataclass(frozen=True)
class Noise:
    """sigma: standard deviation, native units, above 0. power: of each ring, its mean over the plane sigma²."""

    sigma: float
    power: tuple[float, ...]

    def spectrum(self, shape: tuple[int, int]) -> Plane:
        """NPS at the frequencies of `np.fft.fft2` of a plane (H, W), native units squared.

        White noise has sigma² everywhere: the mean square of the transform of noise, over the number of pixels.
        """
        rings = (np.arange(_RINGS) + 0.5) * _CORNER / _RINGS
        found: Plane = np.interp(frequencies(shape), rings, self.power)
        return found

    def near(self, plane: Plane) -> Plane:
        """How much each pixel of a plane (H, W) differs from its neighbours, at least sigma: noise and texture."""
        from scipy import ndimage

        rest = plane - ndimage.gaussian_filter(plane, _FINE, mode="nearest")
        square = ndimage.gaussian_filter(rest**2, _NEAR, mode="nearest") / _left_of_white()
        found: Plane = np.maximum(np.sqrt(square), self.sigma)
        return found


def frequencies(shape: tuple[int, int]) -> Plane:
    """Those of `np.fft.fft2` of a plane (H, W), cycles per pixel, (H, W)."""
    found: Plane = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None])
    return found


def noise_of(data: NDArray[Any], slice_axis: int, outside: Mask | None = None) -> Noise | None:
    """The noise of a scan (I, J, K), in the planes of its slices; None where nothing varies, or slices are too small.

    Args:
        slice_axis: 0, 1 or 2.
        outside: (I, J, K), voxels that hold no measurement (padding, a background that was blanked).
    """
    slices = np.moveaxis(data, slice_axis, 0)
    beyond = None if outside is None else np.moveaxis(outside, slice_axis, 0)
    chosen = np.unique(np.linspace(0, len(slices) - 1, SLICES).round().astype(int))
    lowest = float(data.min())
    uncounted = [_uncounted(slices[n], None if beyond is None else beyond[n], lowest < _HU) for n in chosen]
    air: Noise | None = None
    for side in (each for each in SIDES if each <= min(slices.shape[1:]) // 2):
        patches = np.concatenate([_patches(slices[n], mask, side) for n, mask in zip(chosen, uncounted, strict=True)])
        if not len(patches):
            continue
        rests = _without_trend(patches)
        spread = rests.std(axis=(1, 2))
        gaussian = spread > _DUST * np.abs(patches).max()
        if lowest >= 0:
            gaussian &= patches.mean(axis=(1, 2)) > _GAUSSIAN * spread
        if not gaussian.any():
            # Large patches know it best, but small ones may yet have tissue.
            air = air or _of_air(patches)
            continue
        rests, spread = rests[gaussian], spread[gaussian]
        flat = spread <= ALIKE * np.quantile(spread, FLAT)
        if side == SIDES[-1] or flat.mean() >= COMMON:
            return Noise(float(np.sqrt((rests[flat] ** 2).mean())), _rings(rests[flat]))
    return air


def _of_air(patches: NDArray[np.float64]) -> Noise | None:
    """Where a magnitude image has no flat tissue: σ by the Rayleigh distribution of its air, and taken as white."""
    varied = patches[np.ptp(patches, axis=(1, 2)) > _DUST * np.abs(patches).max()]
    if not len(varied):
        return None
    sigma = float(np.quantile(np.median(varied, axis=(1, 2)), _DARK)) / _RAYLEIGH
    return Noise(sigma, (sigma**2,) * _RINGS) if sigma > 0 else None


def _uncounted(plane: NDArray[Any], outside: Mask | None, hounsfield: bool) -> Mask:
    """Pixels of a plane that say nothing about its noise: not measured, blanked, clipped, or air in HU."""
    from scipy import ndimage

    one = ndimage.maximum_filter(plane, _ONE_VALUE) == ndimage.minimum_filter(plane, _ONE_VALUE)
    # Even squares have no middle: the first is taken to begin two pixels before it, so this one ends two pixels behind.
    found: Mask = ndimage.maximum_filter(one, _ONE_VALUE, origin=-1)
    if hounsfield:
        found |= plane < _AIR
    return found if outside is None else found | outside


def _patches(plane: NDArray[Any], uncounted: Mask, side: int) -> NDArray[np.float64]:
    """Squares of a plane that overlap by half, and hold nothing that does not count: (n, side, side)."""
    windows, beyond = (
        np.lib.stride_tricks.sliding_window_view(each, (side, side))[:: side // 2, :: side // 2]
        for each in (plane, uncounted)
    )
    places = np.argwhere(~beyond.any(axis=(2, 3)))
    places = places[:: max(1, -(-len(places) // _OF_A_SLICE))]
    return windows[places[:, 0], places[:, 1]].astype(np.float64)


def _without_trend(patches: NDArray[np.float64]) -> NDArray[np.float64]:
    """Patches less the surface of second degree that fits each best. What it takes of the noise is given back."""
    side = patches.shape[1]
    basis = _surfaces(side)
    flat = patches.reshape(len(patches), -1)
    rests = flat - (flat @ basis.T) @ basis
    found: NDArray[np.float64] = (rests * np.sqrt(side**2 / (side**2 - len(basis)))).reshape(patches.shape)
    return found


@cache
def _surfaces(side: int) -> NDArray[np.float64]:
    """An orthonormal basis of surfaces of second degree on a square, (6, side²)."""
    y, x = (part.ravel() for part in np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j])
    basis, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))
    found: NDArray[np.float64] = basis.T
    return found


def _rings(rests: NDArray[np.float64]) -> tuple[float, ...]:
    """The power of noise patches (n, side, side) by frequency, scaled so that the plane's mean is their mean square."""
    side = rests.shape[1]
    taper = np.hanning(side + 2)[1:-1]
    power = (np.abs(np.fft.fft2(rests * np.outer(taper, taper))) ** 2).mean(axis=0)
    at = np.minimum((frequencies((side, side)) / _CORNER * _RINGS).astype(int), _RINGS - 1).ravel()
    counts = np.bincount(at, minlength=_RINGS)
    means = np.bincount(at, power.ravel(), _RINGS) / np.maximum(counts, 1)
    # The trend took the slowest frequencies with it, and small patches have few: those next to them say more.
    known = (counts > 0) & (np.arange(_RINGS) >= max(1, round(2.5 / side / _CORNER * _RINGS)))
    means = np.interp(np.arange(_RINGS), np.flatnonzero(known), means[known])
    rings = (np.arange(_RINGS) + 0.5) * _CORNER / _RINGS
    mean = np.interp(frequencies((64, 64)), rings, means).mean()
    return tuple((means * ((rests**2).mean() / mean)).tolist())


@cache
def _left_of_white() -> float:
    """The variance that white noise of variance 1 has left of it when what is slower than `_FINE` is taken away."""
    from scipy import ndimage

    point = np.zeros((33, 33))
    point[16, 16] = 1
    return float(((point - ndimage.gaussian_filter(point, _FINE)) ** 2).sum())
