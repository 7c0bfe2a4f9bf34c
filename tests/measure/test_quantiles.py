"""Percentiles from histograms are those of NumPy, to the last bit."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mafl_cli.measure import quantiles
from mafl_cli.measure.quantiles import percentiles

numbers = (
    st.floats(-(2.0**100), 2.0**100, width=32) | st.integers(-4, 4).map(float) | st.sampled_from([0.0, -0.0, 2.0**-140])
)
scans = array_shapes(min_dims=1, max_dims=3, max_side=9).flatmap(
    lambda shape: arrays(np.float32, shape, elements=numbers)
)
ranks = st.lists(st.floats(0, 100) | st.sampled_from([0.1, 50.0, 99.9]), min_size=1, max_size=4)


@settings(max_examples=150)
@given(scans, ranks, st.integers(1, 40), st.sampled_from([np.float32, np.float64]))
def test_they_are_those_of_numpy(values: Any, ranks: Any, block: Any, precision: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantiles, "_BLOCK", block)
        found = percentiles(values, ranks, precision=precision)
    assert found == np.percentile(values.astype(precision), ranks).tolist()


@settings(max_examples=60)
@given(scans, ranks, st.integers(0, 2**32 - 1))
def test_only_what_counts_is_counted(values: Any, ranks: Any, seed: int) -> None:
    where = np.random.default_rng(seed).random(values.shape) < 0.5
    where.flat[0] = True
    assert percentiles(values, ranks, where=where) == np.percentile(values[where], ranks).tolist()


@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.uint8])
def test_other_types_too(dtype: Any) -> None:
    values = (100 * np.random.default_rng(0).random((7, 8, 9))).astype(dtype)
    assert percentiles(values, (0.1, 99.9)) == np.percentile(values, (0.1, 99.9)).tolist()


def test_a_large_scan_is_not_copied() -> None:
    values = np.random.default_rng(0).standard_normal((64, 256, 256), dtype=np.float32)
    tracemalloc.start()
    percentiles(values, (0.1, 99.9))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Two histograms of half the bits, and the blocks they are made of.
    assert peak < 24 * quantiles._BLOCK
