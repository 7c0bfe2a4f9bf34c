"""What the numbers of labels stand for, for classes that exclude each other and for regions that may overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mafl_cli.classes import Classes, Foreground, in_any_map

ORGANS = Classes(("background", "liver", "spleen"))
REGIONS = Classes(("whole", "core"), overlapping=True)


def labels_of(classes: Classes) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.int64, (classes.maps, 2, 3, 2), elements=st.integers(0, classes.values - 1))


both = pytest.mark.parametrize("classes", [ORGANS, REGIONS], ids=["exclusive", "overlapping"])


@both
@given(data=st.data())
def test_codes_are_a_way_back_and_forth(classes: Classes, data: st.DataObject) -> None:
    labels = data.draw(labels_of(classes))
    codes = classes.encode(labels)
    assert codes.shape == (2, 3, 2)
    assert codes.max() < classes.codes == len(classes.code_names())
    np.testing.assert_array_equal(classes.decode(codes), labels)


@both
@given(data=st.data())
def test_a_voxel_is_in_the_classes_that_its_code_is_named_after(classes: Classes, data: st.DataObject) -> None:
    labels = data.draw(labels_of(classes))
    names = np.array(classes.code_names())[classes.encode(labels)]
    for each in classes.foreground:
        expected = [each.name in name.split(" + ") for name in names.ravel()]
        assert classes.mask(labels, each.index).ravel().tolist() == expected
    assert [int(mask.sum()) for mask in classes.masks(labels)] == [
        int(classes.mask(labels, index).sum()) for index in range(len(classes))
    ]


def test_numbers_and_names() -> None:
    assert ORGANS.foreground == (Foreground(1, "liver", 0, 1), Foreground(2, "spleen", 0, 2))
    assert REGIONS.foreground == (Foreground(0, "whole", 0, 1), Foreground(1, "core", 1, 1))
    assert REGIONS.code_names() == ("background", "whole", "core", "whole + core")
    assert [ORGANS.is_background(0), ORGANS.is_background(1), REGIONS.is_background(0)] == [True, False, False]


@both
@given(data=st.data())
def test_swapping_twice_changes_nothing(classes: Classes, data: st.DataObject) -> None:
    labels = data.draw(labels_of(classes))
    swapped = classes.swapped(labels, 0, 1)
    np.testing.assert_array_equal(classes.mask(swapped, 1), classes.mask(labels, 0))
    np.testing.assert_array_equal(classes.swapped(swapped, 0, 1), labels)


def test_labels_of_other_classes_do_not_fit() -> None:
    assert ORGANS.hold(np.full((1, 2, 2, 2), 2))
    assert not ORGANS.hold(np.full((1, 2, 2, 2), 3))
    assert not REGIONS.hold(np.zeros((3, 2, 2, 2), int))


@both
def test_what_networks_draw_has_no_axis_for_a_single_map(classes: Classes) -> None:
    for labels in (torch.zeros(4, classes.maps, 3, 2), np.zeros((4, classes.maps, 3, 2))):
        drawn = classes.to_network(labels)
        assert tuple(drawn.shape) == ((4, 2, 3, 2) if classes.overlapping else (4, 3, 2))
        assert tuple(classes.from_network(drawn).shape) == (4, classes.maps, 3, 2)


@given(labels_of(REGIONS))
def test_a_voxel_differs_where_any_of_its_maps_does(labels: np.ndarray) -> None:
    np.testing.assert_array_equal(in_any_map(labels > 0), REGIONS.encode(labels) > 0)
    batch = torch.from_numpy(labels)[None] > 0
    assert torch.equal(in_any_map(batch, axis=1), batch.any(dim=1))
    assert torch.equal(in_any_map(batch[:, :1], axis=1), batch[:, 0])
