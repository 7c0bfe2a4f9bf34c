"""Colours that no two classes share, and the windows that a user may name."""

from __future__ import annotations

import re

import pytest

from mafl_cli.errors import UsageError
from mafl_cli.measure.presets import WINDOWS
from mafl_cli.show.display import CLASS_COLOURS, class_colour, parse_window


def test_every_class_has_a_colour_of_its_own_and_the_first_those_of_the_figure() -> None:
    colours = [class_colour(label) for label in range(1, 256)]
    assert tuple(colours[: len(CLASS_COLOURS)]) == CLASS_COLOURS
    assert len(set(colours)) == 255
    assert all(re.fullmatch(r"#[0-9A-F]{6}", colour) for colour in colours)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("soft", -160, 240), ("lung", -1350, 150), ("bone", -500, 1300), ("brain", 0, 80)]
)
def test_presets_are_level_and_width_in_hu(name: str, low: float, high: float) -> None:
    assert parse_window(name, hounsfield=True) == (low, high)
    with pytest.raises(UsageError, match=f"^`window` {name} is for CT, in HU: give LOW,HIGH"):
        parse_window(name, hounsfield=False)


@pytest.mark.parametrize("hounsfield", [True, False])
@pytest.mark.parametrize(("text", "window"), [("-160,240", (-160, 240)), ("0.5, 1e3", (0.5, 1000))])
def test_numbers_are_for_every_scan(text: str, window: tuple[float, float], hounsfield: bool) -> None:
    assert parse_window(text, hounsfield=hounsfield) == window


@pytest.mark.parametrize("text", ["", "liver", "5", "5,5", "6,5", "1,2,3", "nan,5", "0,inf", "a,b", "SOFT"])
def test_what_is_no_window_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(UsageError, match=f"must be LOW,HIGH .* or one of {', '.join(WINDOWS)}"):
        parse_window(text, hounsfield=True)
