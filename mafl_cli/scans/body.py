"""Where the body is: in a scan, so that an attack can be kept out of the air around it, and in pictures of its slices.

A scan whose background was blanked has one value there, `blanked`; for the others a scan is asked as a whole
(`body_mask`), and pictures, of which a few must do, by what lies along their border (`Air`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.errors import InputError
from mafl_cli.scans.volume import Volume

# Between air (-1000 HU) and fat (-100 HU).
_CT_SKIN = -300.0

# Scans with their background removed share one value outside, which no measured air does.
_SHARED = 0.05

# A part this small beside the largest is no limb but a table, a cable or noise.
_PART = 0.1

# Of the grey window: nearer than this to the value around the body counts as empty, and so much of the border must.
_EMPTY, _NEARLY_ALL = 0.05, 0.9


def body_mask(name: str, data: NDArray[np.float32], padding: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Voxels of the body, what it encloses included.

    Above -300 HU where a scan has HU (values below -500); above its lowest value where at least 5 % of the voxels share
    that; else above Otsu's threshold. The large connected parts of that are kept, and filled slice by slice along all
    three axes.

    Args:
        data: (I, J, K), native units. padding: voxels that hold no measurement, or None.
    Raises: InputError when nothing or everything is body.
    """
    from scipy import ndimage

    inside = np.ones(data.shape, bool) if padding is None else ~padding
    values = data[inside]
    if values.min() < -500:
        body = inside & (data > _CT_SKIN)
    elif (background := blanked(values)) is not None:
        body = inside.copy()
        body[inside] = ~background
    else:
        from skimage.filters import threshold_otsu

        body = inside & (data > threshold_otsu(values))
    parts, count = ndimage.label(body)
    if count:
        sizes = np.bincount(parts.ravel())[1:]
        body = np.isin(parts, 1 + np.nonzero(sizes >= _PART * sizes.max())[0])
    for axis in range(3):
        if min(size for other, size in enumerate(data.shape) if other != axis) > 2:
            body |= _filled(body, axis)
    body &= inside
    if not body.any() or body[inside].all():
        raise InputError(f"{name}: body and air cannot be told apart: give a mask as `within` instead of `body_only`.")
    return body


def _filled(body: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Each slice across an axis with its holes filled."""
    from scipy import ndimage

    filled = np.stack([ndimage.binary_fill_holes(each) for each in np.moveaxis(body, axis, 0)])
    return np.asarray(np.moveaxis(filled, 0, axis))


def blanked(values: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where the background was set to one value: bool, like values; None where it was not."""
    lowest: NDArray[np.bool_] = values == values.min()
    return lowest if np.count_nonzero(lowest) >= _SHARED * lowest.size else None


def unmeasured(scan: Volume) -> NDArray[np.bool_] | None:
    """Voxels without measurement, (I, J, K): padding, and a background that was set to one value; None for none."""
    background = blanked(scan.data)
    if background is None or background.all():
        return scan.padding
    return background if scan.padding is None else background | scan.padding


@dataclass(frozen=True)
class Air:
    """The empty space around the body in pictures: what is nearer than `tolerance` to `value`.

    It is what nearly all of the border of the pictures shows: 0 in most MR scans, -1000 HU in CT, and neither the
    smallest nor a known value after other people's preprocessing.
    """

    value: float
    tolerance: float

    @staticmethod
    def around(pictures: NDArray[np.float64]) -> Air | None:
        """The air in pictures (slices, rows, columns) of one scan; None where the body fills them."""
        border = np.concatenate(
            [pictures[:, edge].ravel() for edge in (0, -1)] + [pictures[..., edge].ravel() for edge in (0, -1)]
        )
        low, high = np.percentile(pictures, (1, 99))
        air = Air(float(np.median(border)), _EMPTY * float(high - low))
        return air if np.mean(~air.body(border)) >= _NEARLY_ALL else None

    def body(self, pictures: NDArray[np.float64]) -> NDArray[np.bool_]:
        """What is not air: bool, like pictures."""
        differs: NDArray[np.bool_] = np.abs(pictures - self.value) > self.tolerance
        return differs
