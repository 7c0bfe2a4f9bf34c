"""Targets without drawing: recipes that change the model's own prediction of the clean scan.

    erase:1              class 1 vanishes; each of its parts gets the class that most of its border touches
    shift:1:10,0,0mm     class 1 moves 10 mm towards the patient's right (x, y, z of RAS+: right, front, up)
    dilate:1:5mm         class 1 takes everything within 5 mm
    erode:1:3mm          class 1 loses everything within 3 mm of another class, to the nearest one
    swap:1,2             classes 1 and 2 change places
    copy:mask.nii.gz     whatever the mask labels is painted over the prediction

A class is its number, or its name in the model. Every recipe may end in `:sphere@x,y,z,r`: then it counts only for
voxels within r mm of the point (x, y, z), in mm RAS+ as viewers show it.

Distances are in mm, from voxel centre to voxel centre, within a slice for a network that sees slices, else in all
directions. Regions that may overlap are changed one by one, as if each had a background of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mafl_cli.classes import Classes, Labels, in_any_map
from mafl_cli.errors import InputError, UsageError
from mafl_cli.names import is_there, outside, public_name
from mafl_cli.scans import geometry

RecipeKind = Literal["erase", "shift", "dilate", "erode", "swap", "copy"]
Map = NDArray[np.integer[Any]]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_SPHERE = re.compile(rf":sphere@({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER})(?:mm)?$")

# Distances nearer to each other than this, in mm, are one: rounding must not depend on how a scan is stored.
_SAME = 1e-6

_FORMS = {
    "erase": "erase:CLASS",
    "shift": "shift:CLASS:X,Y,Zmm",
    "dilate": "dilate:CLASS:Rmm",
    "erode": "erode:CLASS:Rmm",
    "swap": "swap:CLASS,CLASS",
    "copy": "copy:MASKFILE",
}


@dataclass(frozen=True)
class Recipe:
    """A recipe taken apart.

    text: as written, without folders. classes: numbers or names. mm: what follows them. sphere: x, y, z, r.
    """

    text: str
    kind: RecipeKind
    classes: tuple[str, ...] = ()
    mm: tuple[float, ...] = ()
    mask: Path | None = None
    sphere: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class PredictionGrid:
    """Where the voxels of a prediction are. slice_axis: 0, 1, 2 for a network that sees slices, else None."""

    affine: NDArray[np.float64]
    slice_axis: int | None

    @property
    def sampling(self) -> tuple[float, ...]:
        """mm along the axes, with slices out of each other's reach when each is for itself."""
        sizes = list(geometry.spacing(self.affine))
        if self.slice_axis is not None:
            sizes[self.slice_axis] = 1e9
        return tuple(sizes)


def parse(text: str) -> Recipe | None:
    """A recipe, or None when the text is none but a file's name, or the name of a file that is there.

    Raises UsageError for a recipe that is incomplete.
    """
    kind = text.split(":", 1)[0]
    if ":" not in text or kind not in get_args(RecipeKind) or is_there(Path(text)):
        return None
    whole = kind == "copy" and is_there(Path(text.partition(":")[2]))
    body, sphere = (text, None) if whole else _without_sphere(text, kind)
    rest = body.split(":", 1)[1]
    if kind == "copy":
        mask = Path(rest)
        if not mask.name:
            raise UsageError(f"`target` copy needs a mask: write {_FORMS[kind]}.")
        # Its folders are nobody's business.
        return Recipe(f"copy:{public_name(mask)}{text[len(body) :]}", "copy", mask=mask, sphere=sphere)
    if ":sphere" in body:
        raise UsageError(f"`target` {outside(text)!r}: a sphere must be written :sphere@x,y,z,r, four numbers in mm.")
    first, _, last = rest.partition(":")
    classes = tuple(part.strip() for part in first.split(","))
    mm = _lengths(last)
    wanted = {"erase": (1, 0), "shift": (1, 3), "dilate": (1, 1), "erode": (1, 1), "swap": (2, 0)}[kind]
    if not all(classes) or mm is None or (len(classes), len(mm)) != wanted:
        raise UsageError(f"`target` {outside(text)!r} is not complete: write {_FORMS[kind]}.")
    if kind in ("dilate", "erode") and mm[0] <= 0:
        raise UsageError(f"`target` {outside(text)!r}: the distance must be above 0 mm.")
    if kind == "swap" and classes[0] == classes[1]:
        raise UsageError(f"`target` {outside(text)!r} swaps a class with itself: name two classes.")
    return Recipe(text, kind, classes, mm, None, sphere)  # type: ignore[arg-type]


def _without_sphere(text: str, kind: str) -> tuple[str, tuple[float, float, float, float] | None]:
    """A recipe without the sphere at its end, and the sphere."""
    found = _SPHERE.search(text)
    if found is None:
        return text, None
    x, y, z, r = (float(part) for part in found.groups())
    if r <= 0:
        raise UsageError(f"`target` {kind}: the sphere's radius must be above 0 mm, got {r:g}.")
    return text[: found.start()], (x, y, z, r)


def class_numbers(recipe: Recipe, classes: Classes) -> list[int]:
    """The numbers of the classes that a recipe names. Raises UsageError for one that the model does not have."""
    return [_number(recipe, text, classes) for text in recipe.classes]


def follow(
    recipe: Recipe, prediction: Labels, classes: Classes, frame: PredictionGrid, painted: Labels | None
) -> tuple[Labels, str]:
    """The target that a recipe makes, and one line about it.

    Args:
        prediction: (M, I, J, K).
        painted: for `copy`, the mask's labels, like `prediction`.
    Raises: UsageError for a class that the model does not have; InputError for one that it does not draw, and when
        nothing changes.
    """
    chosen = class_numbers(recipe, classes)
    for index in chosen:
        if not classes.mask(prediction, index).any():
            raise InputError(
                f"`target` {outside(recipe.text)}: the model draws no voxel of class {index} "
                f"({classes.names[index]}) in the "
                "clean scan, so there is nothing to change."
            )
    if recipe.kind == "copy":
        assert painted is not None
        wanted = np.where(painted > 0, painted, prediction)
        note = f"{int((painted > 0).sum())} labelled voxels painted over the prediction"
    elif recipe.kind == "swap":
        wanted, note = classes.swapped(prediction, *chosen), "swapped"
    else:
        wanted, note = _changed(recipe, prediction, classes, chosen[0], frame)
    if recipe.sphere is not None:
        wanted = np.where(_inside(prediction.shape[-3:], frame.affine, recipe.sphere), wanted, prediction)
    differs = in_any_map(wanted != prediction)
    if not differs.any():
        where = " inside the sphere" if recipe.sphere is not None else ""
        raise InputError(f"`target` {outside(recipe.text)} changes no voxel{where}: it is the clean prediction.")
    note = f"target {outside(recipe.text)}: {note}; {int(differs.sum())} voxels differ from the prediction"
    return wanted.astype(prediction.dtype), note


def _changed(
    recipe: Recipe, prediction: Labels, classes: Classes, index: int, frame: PredictionGrid
) -> tuple[Labels, str]:
    """What erase, shift, dilate and erode make of one class."""
    there = classes.mask(prediction, index)
    after, note = _MOVES[recipe.kind](there, recipe.mm, frame)
    number, value = classes.place(index)
    wanted, before = prediction.copy(), prediction[number]
    gone = there & ~after
    if classes.values == 2:  # Beside the class there is background alone.
        wanted[number][gone] = 0
    elif gone.any():
        fill = _nearest_other if recipe.kind == "erode" else _surroundings
        wanted[number][gone] = fill(before, there, frame)[gone]
    wanted[number][after] = value
    return wanted, note


def _erased(there: NDArray[np.bool_], mm: tuple[float, ...], frame: PredictionGrid) -> tuple[NDArray[np.bool_], str]:
    return np.zeros_like(there), f"{int(there.sum())} voxels erased"


def _dilated(there: NDArray[np.bool_], mm: tuple[float, ...], frame: PredictionGrid) -> tuple[NDArray[np.bool_], str]:
    after = ndimage.distance_transform_edt(~there, sampling=frame.sampling) <= mm[0] + _SAME
    return after, f"grown from {int(there.sum())} to {int(after.sum())} voxels"


def _eroded(there: NDArray[np.bool_], mm: tuple[float, ...], frame: PredictionGrid) -> tuple[NDArray[np.bool_], str]:
    if there.all():
        return there, "there is no border to shrink from"
    after = there & (ndimage.distance_transform_edt(there, sampling=frame.sampling) > mm[0] + _SAME)
    return after, f"shrunk from {int(there.sum())} to {int(after.sum())} voxels"


def _shifted(there: NDArray[np.bool_], mm: tuple[float, ...], frame: PredictionGrid) -> tuple[NDArray[np.bool_], str]:
    steps = np.rint(np.round(np.linalg.solve(frame.affine[:3, :3], np.array(mm)), 6)).astype(int)
    moved = frame.affine[:3, :3] @ steps
    after = np.zeros_like(there)
    source, place = [], []
    for step, size in zip(steps.tolist(), there.shape, strict=True):
        low, high = max(0, step), max(0, min(size, size + step))
        place.append(slice(low, max(low, high)))
        source.append(slice(low - step, max(low, high) - step))
    if all(part.start < part.stop for part in place):
        after[tuple(place)] = there[tuple(source)]
    lost = int(there.sum() - after.sum())
    shown = ", ".join(f"{part:.4g}" for part in moved + 0.0)
    return after, f"moved by {shown} mm, whole voxels" + (f"; {lost} voxels left the scan" if lost else "")


_Move = Callable[[NDArray[np.bool_], tuple[float, ...], PredictionGrid], tuple[NDArray[np.bool_], str]]
_MOVES: dict[str, _Move] = {"erase": _erased, "shift": _shifted, "dilate": _dilated, "erode": _eroded}


def _surroundings(prediction: Map, there: NDArray[np.bool_], frame: PredictionGrid) -> Map:
    """For each connected part (by faces) the class that most of the voxels around it have; background if none."""
    parts, _ = ndimage.label(there)
    filled = np.zeros_like(prediction)
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        grown = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        part = parts[grown] == number
        rim = ndimage.binary_dilation(part) & ~there[grown]
        if rim.any():
            filled[grown][part] = np.bincount(prediction[grown][rim]).argmax()
    return filled


def _nearest_other(prediction: Map, there: NDArray[np.bool_], frame: PredictionGrid) -> Map:
    """The class of the nearest voxel that is not there; of several at one distance, the lowest class."""
    filled, best = np.zeros_like(prediction), np.full(prediction.shape, np.inf)
    for index in np.unique(prediction[~there]).tolist():
        away = ndimage.distance_transform_edt(prediction != index, sampling=frame.sampling)
        nearer = away < best - _SAME
        filled[nearer], best[nearer] = index, away[nearer]
    return filled


def _inside(
    shape: Sequence[int], affine: NDArray[np.float64], sphere: tuple[float, float, float, float]
) -> NDArray[np.bool_]:
    # Only the box around it: the whole scan in float64 would be far larger than the scan.
    middle = np.linalg.solve(affine[:3, :3], np.array(sphere[:3]) - affine[:3, 3])
    reach = sphere[3] * np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1) + 1
    lows, highs = (np.clip(np.rint(middle + side * reach), -1, np.array(shape) + 1) for side in (-1, 1))
    box = tuple(
        slice(max(0, int(low)), max(0, min(size, int(high) + 1)))
        for low, high, size in zip(lows, highs, shape, strict=True)
    )
    axes = np.ogrid[box]
    squares: Any = 0.0
    for row, centre in zip(affine[:3], sphere[:3], strict=True):
        place: Any = sum(step * axis for step, axis in zip(row[:3], axes, strict=True)) + row[3]
        squares = squares + (place - centre) ** 2
    inside = np.zeros(tuple(shape), np.bool_)
    inside[box] = squares <= sphere[3] ** 2
    return inside


def _number(recipe: Recipe, text: str, classes: Classes) -> int:
    if text in classes.names:
        index = classes.names.index(text)
    elif text.isdecimal() and int(text) < len(classes):
        index = int(text)
    else:
        there = ", ".join(f"{number} {name}" for number, name in enumerate(classes.names))
        raise UsageError(
            f"`target` {outside(recipe.text)}: the model does not have class {outside(text)!r}; it has {there}."
        )
    if classes.is_background(index) and recipe.kind != "swap":
        raise UsageError(f"`target` {outside(recipe.text)}: class 0 is the background: name the class to change.")
    return index


def _lengths(text: str) -> tuple[float, ...] | None:
    """ "10,0,0mm" -> (10, 0, 0); () for nothing, None unless they are numbers."""
    if not text:
        return ()
    try:
        lengths = tuple(float(part) for part in text.strip().removesuffix("mm").split(","))
    except ValueError:
        return None
    # A shift of more than a kilometre is a slip of the pen, and not a number that voxels can be counted in.
    return lengths if all(abs(length) <= 1e6 for length in lengths) else None
