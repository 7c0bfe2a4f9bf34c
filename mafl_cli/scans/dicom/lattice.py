"""Where DICOM slices lie: their directions, their order, and the one grid (affine) that they make.

A stack whose slices do not follow each other at one distance is refused: programs that go on with the mean distance
(most of them only warn) place every slice wrongly.

Headers hold decimal text. What is wrong by no more than its last digit is a rounding, and put right here: directions of
two digits are neither of length 1 nor perpendicular, and make a tilt of a stack that has none.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mafl_cli.errors import GeometryError
from mafl_cli.scans.dicom.frames import DicomFrame, Stack, named
from mafl_cli.system import sizes

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Share of the distance between slices (or of the pixel spacing) by which a slice may be off its place: positions
# are written with few digits, and a twentieth of a voxel gives no voxel another label.
_OFF = 0.05

# Directions that are off by this much are taken, however many digits they have: most programs write them so.
_CROOKED = 1e-3

# Angle in degrees between the slices' normal and the way from slice to slice that is worth a word.
_TILTED = 0.5


def ordered(name: str, stack: Stack, allow_gaps: bool) -> tuple[Stack, NDArray[np.float64], tuple[str, ...]]:
    """Slices along the normal, the affine (voxel -> mm RAS+), and what is odd about them."""
    first = stack[0]
    notes = list(dict.fromkeys(note for frame in stack for note in frame.notes))
    if len(stack) > 1:
        without = [frame for frame in stack if not frame.placed]
        if without:
            raise GeometryError(
                f"{name}: {named(without)} {'has' if len(without) == 1 else 'have'} no position or orientation in the "
                "patient, so the slices do not form a volume (a film, or a scan without geometry): give one "
                "frame, or NIfTI."
            )
    if not first.placed:
        notes.append(f"{name}: has no position in the patient: left and right are a guess.")
    if first.spacing is None:
        notes.append(f"{name}: has no pixel spacing; 1 mm is assumed.")
    spacing = np.ones(2) if first.spacing is None else first.spacing
    if not (spacing > 0).all():
        raise GeometryError(f"{name}: the pixel spacing in the header is unusable; export it again.")
    axes = np.eye(3)[:, :2] if not first.placed else directions(name, first)
    position = np.zeros(3) if first.position is None or not first.placed else first.position
    normal = np.cross(axes[:, 0], axes[:, 1])
    step = normal * (first.apart or first.thickness or 1.0)
    if len(stack) > 1:
        stack = sorted(stack, key=lambda frame: float(_position(frame) @ normal))
        position = _position(stack[0])
        step = (_position(stack[-1]) - position) / (len(stack) - 1)
        axes, tilt = _upright(axes, step, slack(first), 2 * _grain(stack) / (len(stack) - 1))
        normal = np.cross(axes[:, 0], axes[:, 1])
        notes += _require_even(name, stack, normal, float(spacing.min()), allow_gaps)
        if tilt > _TILTED:
            notes.append(f"{name}: the slices are sheared by {tilt:.1f} degrees (gantry tilt); the affine keeps it.")
    affine = np.eye(4)
    affine[:3, 0] = axes[:, 0] * spacing[1]
    affine[:3, 1] = axes[:, 1] * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = position
    return stack, LPS_TO_RAS @ affine, tuple(notes)


def spanned(name: str, frames: Stack) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """The smallest grid with all these frames on it, where some slices may have none and others several.

    Returns: its shape (columns, rows, slices) and affine. Raises GeometryError when the frames lie on no one grid.
    """
    first = frames[0]
    assert first.spacing is not None
    if not all(frame.size == first.size and frame.turned_as(first) and frame.spaced_as(first) for frame in frames):
        raise GeometryError(f"{name}: its frames differ in size, orientation or pixel spacing; export it again.")
    axes = directions(name, first)
    normal = np.cross(axes[:, 0], axes[:, 1])
    places = sorted((_position(frame) for frame in frames), key=lambda place: float(place @ normal))
    depths = np.array([float((place - places[0]) @ normal) for place in places])
    gaps = np.diff(depths)
    gaps, count, step = gaps[gaps > 1e-2], 1, normal * (first.apart or first.thickness or 1.0)
    if len(gaps):
        # Where the header does not say how far slices are apart, the smallest distance may be that of two or three.
        nearest = float(gaps.min())
        distances = (nearest, nearest / 2, nearest / 3) if first.apart is None else (first.apart, nearest)
        steps = (int(np.rint(depths[-1] / apart)) for apart in distances)
        found = next((n for n in steps if _fall_on(depths, depths[-1] / max(n, 1))), 0)
        if not found:
            raise GeometryError(f"{name}: its frames lie at uneven distances; export the segments as NIfTI masks.")
        count, step = found + 1, (places[-1] - places[0]) / found
        axes, _ = _upright(axes, step, slack(first), 2 * _grain(frames) / found)
    shape = (first.size[1], first.size[0], count)
    # A damaged position may be any distance away.
    sizes.require_voxels(name, shape, np.dtype(np.int64).itemsize)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[:, 0] * first.spacing[1], axes[:, 1] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, places[0]
    return shape, LPS_TO_RAS @ affine


def _fall_on(depths: NDArray[np.float64], apart: float) -> bool:
    """Whether all are multiples of a distance, but for a twentieth of it."""
    steps = depths / apart
    return bool(np.abs(steps - np.rint(steps)).max() <= _OFF)


def aligned(name: str, frame: DicomFrame, affine: NDArray[np.float64], crude: float) -> NDArray[np.float64]:
    """Like `directions`, but those of a grid's axes where the difference may be one of digits.

    affine: of the grid, RAS+. crude: radians by which its own axes may be off.
    """
    axes, grid = directions(name, frame), LPS_TO_RAS[:3, :3] @ affine[:3, :3]
    grid /= np.linalg.norm(grid, axis=0)
    for column in range(2):
        cosines = grid.T @ axes[:, column]
        nearest = int(np.abs(cosines).argmax())
        if math.acos(min(1.0, abs(float(cosines[nearest])))) <= slack(frame) + crude:
            axes[:, column] = np.sign(cosines[nearest]) * grid[:, nearest]
    return axes


def directions(name: str, frame: DicomFrame) -> NDArray[np.float64]:
    """(3, 2): unit vectors along a row and along a column, perpendicular; LPS. Raises GeometryError for others."""
    assert frame.orientation is not None
    raw = frame.orientation.reshape(2, 3).T
    lengths = np.linalg.norm(raw, axis=0)
    # Each of the three numbers may be off by half a unit of its last digit.
    off = math.sqrt(3) * frame.digit
    if not (np.abs(lengths - 1) <= off + _CROOKED).all() or not abs(raw[:, 0] @ raw[:, 1]) <= 2 * off + _CROOKED:
        raise GeometryError(
            f"{name}: the row and column directions of {frame.instance} are not of length 1 and perpendicular "
            f"(lengths {lengths[0]:.4g} and {lengths[1]:.4g}, scalar product {float(raw[:, 0] @ raw[:, 1]):.3g}): "
            "its header is damaged; export it again."
        )
    return _nearest(raw)


def _nearest(raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """The perpendicular unit vectors that are nearest to two that are almost such: (3, 2)."""
    left, _, right = np.linalg.svd(raw, full_matrices=False)
    return np.asarray(left @ right)


def slack(frame: DicomFrame) -> float:
    """How far, in radians, the directions of a slice may be off for the digits that they are written with."""
    return math.asin(min(1.0, math.sqrt(6) * frame.digit))


def _upright(
    axes: NDArray[np.float64], step: NDArray[np.float64], crude: float, grain: float
) -> tuple[NDArray[np.float64], float]:
    """Directions of a stack, and its tilt in degrees. A tilt that may be the rounding of the header's digits is none.

    crude: radians by which the directions may be off; grain: mm by which the step from slice to slice may be.
    """
    length = float(np.linalg.norm(step))
    if not length:
        return axes, 0.0  # All at one place, which is said elsewhere.
    normal, upright, ends = np.cross(axes[:, 0], axes[:, 1]), step / length, grain / length
    angle = math.acos(min(1.0, float(upright @ normal)))
    if angle > crude + ends:
        return axes, math.degrees(angle)
    # Positions are the better witness of the two where directions have few digits.
    return (axes if crude < ends else _nearest(axes - np.outer(upright, upright @ axes))), 0.0


def _require_even(name: str, stack: Stack, normal: NDArray[np.float64], pixel: float, allow_gaps: bool) -> list[str]:
    """Raise GeometryError unless slices, sorted, follow each other on a line at one distance."""
    places = np.stack([_position(frame) for frame in stack])
    depth = places @ normal
    steps = np.diff(depth)
    usual = float(np.median(steps))
    twins = np.nonzero(steps <= max(_OFF * usual, 1e-3))[0]
    if len(twins):
        pairs = [f"{stack[n].instance} and {stack[n + 1].instance}" for n in twins[:4]]
        more = f" and {len(twins) - 4} more pairs" if len(twins) > 4 else ""
        raise GeometryError(
            f"{name}: {'; '.join(pairs)}{more} lie at the same place: the series holds copies, or several time points, "
            "echoes or reconstructions: keep one of each."
        )
    rounding = 2 * _grain(stack)
    along = (depth - depth[0]) / (depth[-1] - depth[0])
    aside = np.linalg.norm(places - places[0] - along[:, None] * (places[-1] - places[0]), axis=1)
    beside = max(_OFF * pixel, 1e-2, min(rounding, pixel / 4))
    if aside.max() > beside:
        wrong = [stack[n] for n in np.nonzero(aside > beside)[0]]
        raise GeometryError(
            f"{name}: {named(wrong)} {'lies' if len(wrong) == 1 else 'lie'} up to {aside.max():.3g} mm beside the "
            "line of the other slices, so they do not form a volume: give one stack of parallel slices."
        )
    off = np.abs(steps - usual)
    gaps = np.nonzero(off > max(_OFF * usual, 1e-2))[0]
    even = np.linspace(depth[0], depth[-1], len(depth))
    if not len(gaps) or np.abs(depth - even).max() <= min(rounding, usual / 8):
        return []
    shown = [f"{steps[n]:.4g} mm between {stack[n].instance} and {stack[n + 1].instance}" for n in gaps[:4]] + (
        [f"{len(gaps) - 4} more"] if len(gaps) > 4 else []
    )
    what = f"{name}: slices are {usual:.4g} mm apart, but {', '.join(shown)}"
    if not allow_gaps:
        raise GeometryError(f"{what}: are slices missing? Complete the series, or go on with `allow_gaps`.")
    return [f"{what}: taken as evenly spaced; lengths in mm and places are off."]


def _grain(stack: Stack) -> float:
    """How far, in mm, a position may be off for the digits that it is written with: half a unit along each axis."""
    # Programs leave out zeros at the end, so the longest tells; whole numbers alone are taken at their word.
    return math.sqrt(3) * min((frame.grain for frame in stack if frame.grain), default=0.0)


def _position(frame: DicomFrame) -> NDArray[np.float64]:
    assert frame.position is not None
    return frame.position
