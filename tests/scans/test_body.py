"""Where the body is: the air around it, and its own holes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mafl_cli.errors import InputError
from mafl_cli.scans.body import body_mask


def disc(radius: Any, shape: Any = (64, 64), centre: Any = (32, 32)) -> Any:
    return np.hypot(*(np.indices(shape) - np.array(centre)[:, None, None])) < radius


def ct() -> Any:
    """A body with a lung, on a table, in noisy air, in a round field of view."""
    scan = np.random.default_rng(0).normal(-990, 10, (64, 64, 4)).clip(-1023)
    scan[disc(18)] = 40
    scan[disc(5)] = -850
    scan[20:44, 56] = 100
    scan[~disc(30)] = -1024
    return np.rint(scan).astype(np.float32)


def test_ct_goes_by_hounsfield_units_even_where_the_rim_is_one_value() -> None:
    found = body_mask("ct", ct(), None)
    np.testing.assert_array_equal(found, np.repeat(disc(18)[..., None], 4, axis=2))


def test_a_stripped_head_is_what_is_not_background() -> None:
    scan = np.zeros((64, 64, 4), np.float32)
    scan[disc(20)] = np.random.default_rng(0).uniform(0.1, 3, (disc(20).sum(), 4))
    np.testing.assert_array_equal(body_mask("mr", scan, None), scan > 0)


def test_noise_around_a_head_is_no_head() -> None:
    rng = np.random.default_rng(0)
    scan = rng.rayleigh(10, (64, 64, 4)).astype(np.float32)
    scan[disc(20)] += rng.uniform(200, 900, (disc(20).sum(), 4)).astype(np.float32)
    found = body_mask("mr", scan, None)
    inside = np.repeat(disc(20)[..., None], 4, axis=2)
    assert (found & inside).sum() > 0.95 * inside.sum()
    assert not (found & ~inside).any()


def test_padding_is_no_body_and_no_air() -> None:
    scan = ct()
    padding = np.repeat(~disc(30)[..., None], 4, axis=2)
    scan[padding] = 3000
    np.testing.assert_array_equal(body_mask("ct", scan, padding), body_mask("ct", ct(), None))


def test_what_has_no_air_is_refused() -> None:
    with pytest.raises(InputError, match=r"x: body and air cannot be told apart: give a mask as `within`"):
        body_mask("x", np.full((8, 8, 2), 40, np.float32) - 1000 * (np.arange(2) > 5), None)
