"""A reader study in a real browser, from the page to the interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import mafl
from scipy.stats import binomtest
from studies import key_of, study_case

from mafl_cli.show import study


def started(browser: Any, page: Path, reader: str, **settings: Any) -> tuple[Any, list[str]]:
    """A tab in which a reader has begun; and what it asked for or complained of."""
    tab = browser.new_context(viewport={"width": 1000, "height": 800}, **settings).new_page()
    trouble: list[str] = []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", lambda request: trouble.append(request.url))
    tab.goto(page.as_uri())
    tab.locator("#reader").fill(reader)
    tab.locator("#who button").click()
    return tab, trouble


def at_pair(tab: Any, number: int) -> None:
    tab.locator("#progress", has_text=f"pair {number} of").wait_for()
    tab.locator("#which", has_text="picture 1 of 2").wait_for()


def test_twenty_pairs_are_answered_saved_and_judged(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    study.write(page, [study_case("a"), study_case("b")], pairs=20, seed=3, max_mb=20)
    key = key_of(page)
    assert len(key.pairs) == 20
    tab, trouble = started(browser, page, "R-1")
    # Three of ten are recognised, and one control is taken for changed.
    changed = [n for n, pair in enumerate(key.pairs, 1) if pair.changed]
    controls = [n for n, pair in enumerate(key.pairs, 1) if not pair.changed]
    different = {*changed[:3], controls[4]}
    for number in range(1, 21):
        at_pair(tab, number)
        assert tab.locator("#same").is_disabled()
        tab.keyboard.press("d")  # Too early: only one picture was seen.
        tab.keyboard.press(" ")
        tab.locator("#which", has_text="picture 2 of 2").wait_for()
        tab.locator("#different" if number in different else "#same").click()
    with tab.expect_download() as download:
        tab.locator("#save").click()
    assert download.value.suggested_filename == "answers-R-1.json"
    saved = tmp_path / "answers-R-1.json"
    download.value.save_as(saved)
    assert [url for url in trouble if not url.startswith("blob:")] == [page.as_uri()]
    tab.context.close()

    ended = mafl("evaluate", "--reader-study", study.key_path(page), saved, "--json", "-")
    assert ended.exit_code == 0
    (told,) = json.loads(ended.stdout)["readers"]
    assert told["reader"] == "R-1"
    for name, count in (("recognised", 3), ("false_alarms", 1)):
        interval = binomtest(count, 10).proportion_ci(0.95, method="exact")
        assert (told[name]["count"], told[name]["of"]) == (count, 10)
        assert (told[name]["low"], told[name]["high"]) == pytest.approx((interval.low, interval.high))
    assert {each["pair"] for each in json.loads(ended.stdout)["pairs"] if each["called_different"]} == different


def test_pictures_take_turns_by_themselves_unless_less_motion_is_asked_for(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    study.write(page, [study_case()], pairs=2, seed=0, max_mb=20)
    tab, _ = started(browser, page, "R1")
    at_pair(tab, 1)
    tab.locator("#which", has_text="picture 2 of 2").wait_for()
    assert not tab.locator("#same").is_disabled()
    tab.context.close()
    tab, _ = started(browser, page, "R1", reduced_motion="reduce")
    at_pair(tab, 1)
    tab.wait_for_timeout(1100)
    assert tab.locator("#which").inner_text() == "picture 1 of 2"
    tab.keyboard.press(" ")
    assert tab.locator("#which").inner_text() == "picture 2 of 2"
    tab.context.close()


def test_a_name_is_not_a_code(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    study.write(page, [study_case()], pairs=2, seed=0, max_mb=20)
    tab, _ = started(browser, page, "Dr. Jane Doe")
    assert tab.locator("#begin").is_visible()
    assert tab.locator("#trial").is_hidden()
    tab.context.close()
