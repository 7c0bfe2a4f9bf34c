"""Recipes turn a prediction into a target: what moves, how far in mm, and what takes its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from mafl_cli.classes import Classes
from mafl_cli.errors import InputError, UsageError
from mafl_cli.scans.recipes import PredictionGrid, Recipe, follow, parse

CLASSES = Classes(("background", "liver", "tumour"))
AFFINE = np.diag([2.0, 1.0, 4.0, 1.0])
VOLUME = PredictionGrid(AFFINE, None)
SLICES = PredictionGrid(AFFINE, 2)


def made(text: Any, prediction: Any, frame: Any = VOLUME, painted: Any = None) -> Any:
    """prediction, painted: the one map of exclusive classes."""
    return made_of(text, prediction[np.newaxis], CLASSES, frame, None if painted is None else painted[np.newaxis])[0]


def made_of(text: Any, prediction: Any, classes: Classes, frame: Any = VOLUME, painted: Any = None) -> Any:
    recipe = parse(text)
    assert recipe is not None
    return follow(recipe, prediction, classes, frame, painted)[0]


def ball(shape: Any = (12, 20, 8), centre: Any = (12, 10, 16), radius: float = 6.0, affine: Any = AFFINE) -> Any:
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    return (np.linalg.norm(places - centre, axis=-1) <= radius).astype(np.int64)


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("erase:1", Recipe("erase:1", "erase", ("1",))),
        ("erase:liver", Recipe("erase:liver", "erase", ("liver",))),
        ("shift:1:10,-2.5,0mm", Recipe("shift:1:10,-2.5,0mm", "shift", ("1",), (10, -2.5, 0))),
        ("dilate:2:5mm", Recipe("dilate:2:5mm", "dilate", ("2",), (5,))),
        ("erode:2:3", Recipe("erode:2:3", "erode", ("2",), (3,))),
        ("swap:1,2", Recipe("swap:1,2", "swap", ("1", "2"))),
        (
            "swap:1,2:sphere@1,-2,3.5,9",
            Recipe("swap:1,2:sphere@1,-2,3.5,9", "swap", ("1", "2"), sphere=(1, -2, 3.5, 9)),
        ),
        ("copy:/home/x/m.nii.gz", Recipe("copy:m.nii.gz", "copy", mask=Path("/home/x/m.nii.gz"))),
    ],
)
def test_what_a_recipe_says(text: Any, recipe: Any) -> None:
    assert parse(text) == recipe


@pytest.mark.parametrize("text", ["mask.nii.gz", "erase.nii", "a:b.nii", "C:/scans/erase.nii", "one.nii,two.nii"])
def test_a_file_is_no_recipe(text: Any) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("erase:", r"not complete: write erase:CLASS"),
        ("erase:1,2", r"write erase:CLASS"),
        ("shift:1:10mm", r"write shift:CLASS:X,Y,Zmm"),
        ("shift:1:a,b,cmm", r"write shift:CLASS"),
        ("dilate:1:-3mm", r"the distance must be above 0 mm"),
        ("swap:1", r"write swap:CLASS,CLASS"),
        ("swap:1,1", r"a class with itself"),
        ("copy:", r"needs a mask: write copy:MASK"),
        ("dilate:1:nan", r"write dilate:CLASS:Rmm"),
        ("erode:1:inf", r"write erode:CLASS:Rmm"),
        ("shift:1:nan,0,0mm", r"write shift:CLASS:X,Y,Zmm"),
        ("shift:1:1e30,0,0mm", r"write shift:CLASS:X,Y,Zmm"),
        ("erase:1:sphere@1,2,3", r"a sphere must be written :sphere@x,y,z,r"),
        ("erase:1:sphere@1,2,3,0", r"radius must be above 0"),
    ],
)
def test_incomplete_recipes(text: Any, message: Any) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_folders_of_a_mask_are_never_quoted() -> None:
    with pytest.raises(UsageError) as caught:
        parse("copy:/home/jane/:sphere@1,2,3,0")
    assert "jane" not in str(caught.value)


def test_erase_fills_with_what_surrounds_each_part() -> None:
    prediction = ball(radius=8)
    lesion = ball(radius=2.5).astype(bool)
    prediction[lesion] = 2
    prediction[0, 0, 0] = 2  # Another lesion, in the background.
    erased = made("erase:2", prediction)
    np.testing.assert_array_equal(erased, ball(radius=8))
    without_liver = made("erase:liver", prediction)
    assert not (without_liver == 1).any()
    assert ((without_liver == 2) == (prediction == 2)).all(), "a lesion in an erased organ stays"


def test_shift_is_in_mm_of_the_patient() -> None:
    prediction = ball(radius=3)
    moved = made("shift:1:4,-3,0mm", prediction)
    np.testing.assert_array_equal(moved, np.roll(prediction, (2, -3), axis=(0, 1)))
    # The same shift of a scan stored with two axes the other way.
    flipped = np.diag([-2.0, 1.0, -4.0, 1.0])
    flipped[0, 3], flipped[2, 3] = 22, 28
    again = made("shift:1:4,-3,0mm", np.flip(prediction, (0, 2)), PredictionGrid(flipped, None))
    np.testing.assert_array_equal(np.flip(again, (0, 2)), moved)


def test_what_leaves_the_scan_is_counted() -> None:
    prediction = ball(radius=3)
    recipe = parse("shift:1:12,0,0mm")
    labels, note = follow(recipe, prediction[np.newaxis], CLASSES, VOLUME, None)
    assert labels.sum() < prediction.sum()
    assert f"{prediction.sum() - labels.sum()} voxels left the scan" in note
    assert not made("shift:1:500,0,0mm", prediction).any()


@pytest.mark.parametrize("frame", [VOLUME, SLICES], ids=["3d", "2d"])
def test_dilate_and_erode_keep_their_distance(frame: Any) -> None:
    prediction = ball(radius=5)
    grown, shrunk = made("dilate:1:3mm", prediction, frame), made("erode:1:3mm", prediction, frame)
    place = np.argwhere(np.ones_like(prediction))
    distances = by_hand(prediction > 0, place, frame)
    np.testing.assert_array_equal(grown.ravel() > 0, distances <= 3)
    outside = by_hand(prediction == 0, place, frame)
    np.testing.assert_array_equal(shrunk.ravel() > 0, outside > 3)


def by_hand(there: Any, places: Any, frame: Any) -> Any:
    """mm from every voxel to the nearest one that is there, in its own slice if the frame says so."""
    sizes = np.array([2.0, 1.0, 4.0])
    steps = places[:, None] - np.argwhere(there)[None]
    apart = np.linalg.norm(steps * sizes, axis=-1)
    if frame.slice_axis is not None:
        apart[steps[..., frame.slice_axis] != 0] = np.inf
    return apart.min(axis=1)


def test_erode_lets_the_neighbours_in() -> None:
    prediction = np.zeros((9, 1, 1), np.int64)
    prediction[:, 0, 0] = [0, 0, 1, 1, 1, 1, 1, 2, 2]
    eroded = made("erode:1:2mm", prediction, PredictionGrid(np.eye(4), None))
    assert eroded.ravel().tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2]


def test_swap_and_its_sphere() -> None:
    prediction = np.zeros((10, 1, 1), np.int64)
    prediction[:, 0, 0] = [1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(made("swap:1,2", prediction), np.array([0, 2, 1])[prediction])
    half = made("swap:liver,2:sphere@0,0,0,6", prediction)  # 2 mm a voxel: the first four.
    assert half.ravel().tolist() == [2, 2, 1, 1, 0, 0, 1, 1, 2, 2]


def test_copy_paints_over_the_prediction() -> None:
    prediction, painted = ball(radius=6), 2 * ball(radius=2)
    np.testing.assert_array_equal(made("copy:m.nii", prediction, painted=painted), np.maximum(prediction, painted))


def test_regions_are_changed_one_by_one() -> None:
    whole, core = ball(radius=6), ball(radius=2)
    prediction = np.stack([whole, core])
    regions = Classes(("whole", "core"), overlapping=True)
    np.testing.assert_array_equal(made_of("erase:core", prediction, regions), np.stack([whole, 0 * core]))
    np.testing.assert_array_equal(made_of("swap:0,1", prediction, regions), np.stack([core, whole]))
    mark = np.zeros_like(prediction)
    mark[0, :2] = 1
    np.testing.assert_array_equal(made_of("copy:m.nii", prediction, regions, painted=mark)[1], core)
    grown = made_of("dilate:1:2mm", prediction, regions)
    np.testing.assert_array_equal(grown[0], whole)
    assert grown[1].sum() > core.sum()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("erase:2", InputError, r"draws no voxel of class 2 \(tumour\)"),
        ("swap:1,tumour", InputError, r"draws no voxel of class 2"),
        ("shift:1:0.4,0.4,1mm", InputError, r"changes no voxel"),
        ("erode:1:0.5mm", InputError, r"changes no voxel"),
        ("erase:1:sphere@500,0,0,3", InputError, r"changes no voxel inside the sphere"),
        ("erase:3", UsageError, r"not have class '3'; it has 0 background, 1 liver, 2 tumour"),
        ("erase:spleen", UsageError, r"not have class 'spleen'"),
        ("dilate:0:3mm", UsageError, r"class 0 is the background"),
    ],
)
def test_recipes_that_ask_for_nothing(text: Any, error: Any, message: Any) -> None:
    with pytest.raises(error, match=message):
        made(text, ball(radius=4))


@given(st.permutations(range(3)), st.tuples(*[st.sampled_from([-1, 1])] * 3))
def test_the_same_target_however_the_scan_is_stored(axes: Any, flips: Any) -> None:
    prediction = ball(radius=4)
    prediction[ball(radius=2).astype(bool)] = 2
    turn = np.stack([np.array(axes), np.array(flips)], axis=1).astype(float)
    turned = apply_orientation(prediction, turn).astype(np.int64)
    affine = AFFINE @ inv_ornt_aff(turn, prediction.shape)
    for text in ("erase:2", "shift:2:4,2,-4mm", "dilate:2:3mm", "erode:1:2mm", "swap:1,2:sphere@12,10,16,3"):
        expected = apply_orientation(made(text, prediction), turn)
        np.testing.assert_array_equal(made(text, turned, PredictionGrid(affine, None)), expected)
