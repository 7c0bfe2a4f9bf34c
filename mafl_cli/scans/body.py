"""Where the body is in a scan, so that an attack can be kept out of the air around it (`--body-only`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mafl_cli.errors import InputError

# Between air (-1000 HU) and fat (-100 HU).
_CT_SKIN = -300.0

# Scans with their background removed share one value outside, which no measured air does.
_SHARED = 0.05

# A part this small beside the largest is no limb but a table, a cable or noise.
_PART = 0.1


def body_mask(name: str, data: NDArray[np.float32], padding: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Voxels of the body, what it encloses included.

    Above -300 HU where a scan has HU (values below -500); above its lowest value where at least 5 % of the voxels share
    that; else above Otsu's threshold. Of that the large connected parts, filled slice by slice along all three axes.

    Args:
        data: (I, J, K), native units. padding: voxels that hold no measurement, or None.
    Raises: InputError when nothing or everything is body.
    """
    inside = np.ones(data.shape, bool) if padding is None else ~padding
    values = data[inside]
    lowest = float(values.min())
    if lowest < -500:
        body = inside & (data > _CT_SKIN)
    elif np.count_nonzero(values == lowest) >= _SHARED * values.size:
        body = inside & (data > lowest)
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
        raise InputError(f"{name}: body and air cannot be told apart; give --within MASK instead of --body-only.")
    return body


def _filled(body: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Each slice across an axis with its holes filled."""
    filled = np.stack([ndimage.binary_fill_holes(each) for each in np.moveaxis(body, axis, 0)])
    return np.asarray(np.moveaxis(filled, 0, axis))
