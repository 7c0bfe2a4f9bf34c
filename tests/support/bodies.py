"""Bodies with marks, masks and noise, in arrays of any orientation."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff

ORIENTATIONS = [
    np.column_stack([axes, signs]) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)
]


SPACING = (0.8, 1.1, 3.0)


def ras(spacing: Any = SPACING, rotation: Any = None) -> Any:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing)
    affine[:3, 3] = (-20, 15, 40)
    return affine


def stored_as(orientation: Any, volume: Any, affine: Any) -> Any:
    """The same volume with its array axes permuted and flipped, and where index (0, 0, 0) of each axis went."""
    return apply_orientation(volume, orientation), affine @ inv_ornt_aff(orientation, volume.shape)


def stored_slice(orientation: Any, shape: Any, axis: Any, index: Any) -> Any:
    """The slice axis and index that a slice of the first array has in the turned one."""
    new_axis, direction = orientation[axis]
    return int(new_axis), int(index if direction > 0 else shape[axis] - 1 - index)


def case(shape: Any = (40, 48, 9), seed: int = 0, classes: int = 2) -> Any:
    """A body in air with a bright mark at its right front, masks of some classes, and noise as the attack."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    centre, half = (np.array(shape) - 1) / 2, np.array(shape) / 2
    body = (((grid - centre) / (0.8 * half)) ** 2).sum(axis=-1) < 1
    clean = np.where(body, 40.0, -1000.0)
    where = tuple(slice(int(0.62 * n), int(0.75 * n)) for n in shape[:2])
    clean[where] = 200
    before = np.zeros(shape, np.int64)
    for index in range(1, classes):
        before[tuple(slice((7 * index) % (n // 2 + 1), (7 * index) % (n // 2 + 1) + n // 4 + 1) for n in shape)] = index
    target = np.roll(before, 3, axis=0)
    return {
        "clean": clean.astype(np.float32),
        "adversarial": (clean + rng.standard_normal(shape) * 5 * body).astype(np.float32),
        "prediction_clean": before,
        "prediction_adversarial": np.where(rng.random(shape) < 0.95, target, before),
        "target": target,
    }


def noisy(slices: int = 40, side: int = 96, changed: Any = (20,)) -> Any:
    """A scan that does not compress, changed and asked to change in some slices only."""
    rng = np.random.default_rng(0)
    clean = np.round(rng.normal(1000, 300, (side, side, slices))).astype(np.float32)
    adversarial, before = clean.copy(), np.zeros(clean.shape, np.int64)
    before[10:20, 10:20] = 1
    target = before.copy()
    for index in changed:
        adversarial[..., index] += np.round(rng.normal(0, 20, (side, side)))
        target[40:60, 40:60, index] = 2
    return {
        "clean": clean,
        "adversarial": adversarial,
        "prediction_clean": before,
        "prediction_adversarial": target,
        "target": target,
    }
