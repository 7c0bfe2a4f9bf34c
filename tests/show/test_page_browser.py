"""The page in a real browser, as its reader meets it."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bodies import case
from judged import survived
from matplotlib.image import imread
from pages import CLASSES, blocks, decoded, page_case

from mafl_cli.measure.observer import Screen
from mafl_cli.results.detection_report import Evasion, Scores
from mafl_cli.results.report import CaseRecord, Queries
from mafl_cli.show import page
from mafl_cli.show.screen import LOST, PLAIN, grey_levels, largest_spot, visible_where
from mafl_cli.system import records

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1></script>"


class Reader:
    """Someone who opened a page; `trouble` is what the console said and the network was asked for."""

    def __init__(self, browser: Any, path: Any, **settings: Any) -> None:
        self.data = blocks(path.read_text(encoding="ascii"))
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 1600}, **settings})
        self.page = self.context.new_page()
        self.trouble: list[Any] = []
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.trouble.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.asked: list[Any] = []
        self.page.goto(path.as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait until the picture shows the slice that the slider says."""
        self.page.wait_for_function("document.getElementById('picture').hasAttribute('aria-label')")
        self.page.wait_for_timeout(80)

    def viewer(self, number: int = 0) -> Any:
        return self.data["index"]["cases"][number]["viewer"]

    def planes(self, place: Any, number: int = 0) -> Any:
        return decoded(self.viewer(number), self.data[f"planes-{number}"][place])

    def press(self, key: Any) -> None:
        self.page.keyboard.press(key)
        self.settle()

    def hide_outlines(self) -> None:
        for layer in ("target", "before", "after"):
            self.page.locator(f"[data-layer={layer}]").set_checked(False)
        self.page.locator("#look").set_checked(False)

    def canvas(self) -> Any:
        """All of the canvas: (height, width, 3), 0 to 255."""
        url = self.page.evaluate("document.getElementById('picture').toDataURL('image/png')")
        found = imread(BytesIO(base64.b64decode(url.split(",")[1])))
        return np.round(found[..., :3] * 255).astype(int)

    def pixels(self, number: int = 0) -> Any:
        """What the canvas has in the middle of each voxel: (rows, columns, 3)."""
        viewer, whole = self.viewer(number), self.canvas()
        y, x = (
            ((np.arange(n) + 0.5) * whole.shape[axis] / n).astype(int)
            for axis, n in enumerate((viewer["rows"], viewer["columns"]))
        )
        return whole[y][:, x]

    def text(self, selector: Any) -> Any:
        return self.page.locator(selector).inner_text()

    def look(self, selector: Any, what: Any) -> Any:
        return self.page.locator(selector).evaluate(f"node => getComputedStyle(node).{what}")


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page of the given cases; in the end no console message and no request may have come up."""
    readers: list[Any] = []

    def open_page(*cases: Any, title: str = "a title", quiet: bool = True, written: Any = None, **settings: Any) -> Any:
        path = tmp_path / f"{len(readers)}.html"
        page.write(path, cases or [page_case()], title=title, **(written or {}))
        readers.append((Reader(browser, path, **settings), path, quiet))
        return readers[-1][0]

    yield open_page
    for reader, path, quiet in readers:
        assert reader.asked == [path.as_uri()]
        assert not quiet or reader.trouble == []
        reader.context.close()


def grey(values: Any, window: Any) -> Any:
    low, high = window
    return np.clip(np.round((values - low) / (high - low) * 255), 0, 255)


def test_scans_and_difference_are_what_the_file_holds(opened: Any) -> None:
    reader = opened()
    viewer = reader.viewer()
    reader.hide_outlines()
    shown = reader.planes(viewer["start"])
    for key, name in (("1", "clean"), ("2", "adversarial")):
        reader.press(key)
        pixels = reader.pixels()
        assert (pixels == pixels[..., :1]).all()
        assert np.abs(pixels[..., 0] - grey(shown[name], viewer["window"])).max() <= 1
    reader.press("3")
    pixels = reader.pixels()
    difference = shown["adversarial"] - shown["clean"]
    assert (pixels[difference == 0] == 0xF7).all()
    strong = np.abs(difference) > 0.5 * viewer["reach"]
    assert strong.any()
    # Blue below, red above.
    assert ((pixels[..., 0] - pixels[..., 2] > 0) == (difference > 0))[strong].all()


def test_amplification_sets_where_the_colours_end(opened: Any) -> None:
    reader = opened()
    viewer = reader.viewer()
    reader.hide_outlines()
    reader.page.locator("#gain").fill("0")
    faint = reader.pixels()
    said = reader.text("#gain-said")
    assert "×1," in said
    assert float(re.search(r"±([\d.]+) HU", said.replace("\u202f", ""))[1]) == pytest.approx(
        viewer["window"][1] - viewer["window"][0], rel=1e-3
    )
    assert reader.text("#badge") == "adversarial − clean"
    reader.page.locator("#gain").fill("12")
    strong = reader.pixels()
    assert np.ptp(strong, axis=2).mean() > 5 * np.ptp(faint, axis=2).mean()


def test_slider_arrows_and_strip_go_through_the_slices(opened: Any) -> None:
    reader = opened()
    viewer = reader.viewer()
    reader.hide_outlines()
    assert reader.page.locator("#slice").input_value() == str(viewer["start"])
    seen = []
    for place in range(len(viewer["index"])):
        reader.page.locator("#slice").fill(str(place))
        reader.settle()
        seen.append(reader.pixels()[..., 0])
        assert np.abs(seen[-1] - grey(reader.planes(place)["adversarial"], viewer["window"])).max() <= 1
        assert viewer["position"][place] in reader.text("#slice-said")
    assert (seen[0] != seen[4]).any()
    reader.page.locator("h1").click()
    reader.press("ArrowLeft")
    assert reader.page.locator("#slice").input_value() == "7"
    reader.page.locator("#picture").focus()
    reader.press("ArrowUp")
    assert reader.page.locator("#slice").input_value() == "8"
    reader.press("ArrowRight")  # There is no further one.
    assert reader.page.locator("#slice").input_value() == "8"
    # A slider that has the focus moves by itself, once, and leaves the letters alone.
    reader.page.locator("#slice").focus()
    reader.press("ArrowLeft")
    assert reader.page.locator("#slice").input_value() == "7"
    reader.press("1")
    assert reader.text("#badge") == "clean scan"
    box = reader.page.locator("#strip").bounding_box()
    reader.page.mouse.click(box["x"] + box["width"] * 2.5 / 9, box["y"] + box["height"] / 2)
    assert reader.page.locator("#slice").input_value() == "2"


def test_flicker_alternates_both_scans_and_stops(opened: Any) -> None:
    reader = opened()
    reader.hide_outlines()
    start = reader.text("#badge")
    reader.page.wait_for_timeout(600)
    assert reader.text("#badge") == start, "nothing moves unasked"
    reader.page.locator("#rate").fill("3")
    reader.page.locator("#flicker").click()
    seen = {}
    for _ in range(4):
        seen[reader.text("#badge")] = reader.pixels()
        before = reader.text("#badge")
        reader.page.wait_for_function("before => document.getElementById('badge').textContent !== before", arg=before)
    assert set(seen) == {"clean scan", "adversarial scan"}
    assert (seen["clean scan"] != seen["adversarial scan"]).any()
    reader.press("f")
    assert reader.page.locator("#flicker").get_attribute("aria-pressed") == "false"
    stopped = reader.text("#badge")
    reader.page.wait_for_timeout(500)
    assert reader.text("#badge") == stopped


def test_with_reduced_motion_each_press_changes_the_scan_once(opened: Any) -> None:
    reader = opened(reduced_motion="reduce")
    seen = [reader.text("#badge")]
    for _ in range(2):
        reader.press("f")
        seen.append(reader.text("#badge"))
        reader.page.wait_for_timeout(1200)
        assert reader.text("#badge") == seen[-1]
    assert seen == ["adversarial scan", "clean scan", "adversarial scan"]
    assert "reduced motion" in reader.text("#flicker-said")


def test_windows_are_those_of_the_scan(opened: Any) -> None:
    reader = opened()
    reader.hide_outlines()
    shown = reader.planes(reader.viewer()["start"])["adversarial"]
    presets = reader.page.locator("#preset option").all_inner_texts()
    windows = {"Soft tissue": (-160, 240), "Lung": (-1350, 150), "Bone": (-500, 1300), "Brain": (0, 80)}
    for n, name in enumerate(presets):
        found = windows.get(name.split(":")[0])
        if found:
            reader.page.locator("#preset").select_option(str(n))
            assert np.abs(reader.pixels()[..., 0] - grey(shown, found)).max() <= 1
    assert {name.split(":")[0] for name in presets} >= set(windows)
    reader.page.locator("#level").fill("100")
    reader.page.locator("#width").fill("50")
    assert np.abs(reader.pixels()[..., 0] - grey(shown, (75, 125))).max() <= 1
    assert reader.page.locator("#preset").input_value() == "own"


def test_native_units_have_no_windows_of_ct(opened: Any) -> None:
    reader = opened(page_case(unit="native units"))
    assert len(reader.page.locator("#preset option").all()) == 3


@pytest.mark.parametrize(("layer", "name"), [("target", "target"), ("after", "prediction_adversarial")])
def test_outlines_run_along_the_masks_in_the_colour_of_the_class(opened: Any, layer: Any, name: Any) -> None:
    volumes = case(classes=3)
    for mask in ("prediction_clean", "prediction_adversarial", "target"):
        volumes[mask] = volumes[mask] * 0
    volumes[name][12:24, 20:30, 4] = 1
    reader = opened(page_case(volumes=volumes))
    reader.page.locator("#slice").fill("4")
    reader.settle()
    reader.hide_outlines()
    plain = reader.canvas()
    reader.page.locator(f"[data-layer={layer}]").set_checked(True)
    outlined = reader.canvas()
    drawn = (outlined != plain).any(axis=2)
    mask = reader.planes(4)[name] == 1
    assert mask.sum() == 120
    # The line runs 0.2 voxels outside the middle of the outermost ones.
    for axis in (0, 1):
        size = drawn.shape[axis] / mask.shape[axis]
        inside, found = (np.flatnonzero(each.any(axis=1 - axis)) for each in (mask, drawn))
        edges = (inside[0] + 0.3) * size, (inside[-1] + 0.7) * size
        assert (found[0], found[-1]) == pytest.approx(edges, abs=4)
        middle = np.flatnonzero(drawn.take(int(np.mean(edges)), axis=axis))
        assert len(middle) < 0.2 * np.ptp(middle), "an outline, and no filled shape"
    colour = np.array([int(reader.viewer()["colours"][0][n : n + 2], 16) for n in (1, 3, 5)])
    seen = outlined[drawn] if layer == "after" else 2.2 * outlined[drawn] - 1.2 * plain[drawn]
    assert (np.abs(seen - colour).max(axis=1) < 12).mean() > 0.2
    boxes = reader.page.locator("#classes input")
    assert boxes.count() == 1
    boxes.first.set_checked(False)
    assert (reader.canvas() == plain).all()


def test_pointing_reads_the_voxel(opened: Any) -> None:
    reader = opened()
    viewer = reader.viewer()
    shown = reader.planes(viewer["start"])
    row, column = (int(n) for n in np.argwhere(shown["target"] != shown["prediction_clean"])[0])
    box = reader.page.locator("#picture").bounding_box()
    reader.page.mouse.move(
        box["x"] + (column + 0.5) * box["width"] / viewer["columns"],
        box["y"] + (row + 0.5) * box["height"] / viewer["rows"],
    )
    said = [
        part.replace("−", "-").replace("\u202f", "") for part in reader.page.locator("#readout span").all_inner_texts()
    ]
    values = [float(re.search(r"-?[\d.]+", part)[0]) for part in said[:2]]
    assert values == pytest.approx([shown["clean"][row, column], shown["adversarial"][row, column]], rel=1e-3)
    names = [CLASSES[shown[key][row, column]] for key in ("prediction_clean", "prediction_adversarial", "target")]
    levels = [int(grey(shown[key][row, column], viewer["window"])) for key in ("clean", "adversarial")]
    assert said[3] == f"on the screen {levels[0]} → {levels[1]} of 255"
    assert said[4] == f"prediction {names[0]} → {names[1]}"
    assert said[5] == f"target {names[2]}"


def test_the_ring_is_around_the_largest_change_that_the_window_shows(opened: Any) -> None:
    reader = opened()
    viewer = reader.viewer()
    assert viewer["start"] == int(np.argmax(viewer["seen"]))
    for window in (viewer["window"], (-160, 240)):
        reader.page.locator("#level").fill(str(sum(window) / 2))
        reader.page.locator("#width").fill(str(window[1] - window[0]))
        planes = reader.planes(viewer["start"])
        before, after = (grey_levels(planes[name], window) for name in ("clean", "adversarial"))
        spot = largest_spot(before, after)
        row, column, levels = map(float, reader.page.locator("#picture").get_attribute("data-look").split())
        assert (row, column) == (spot.row, spot.column)
        assert levels == pytest.approx(spot.levels, rel=0.02)
        largest = np.abs(after.astype(int) - before).max()
        assert f"a single pixel up to {largest}." in reader.text("#look-said")
    whole = reader.canvas()
    reader.page.locator("#look").set_checked(False)
    drawn = (whole != reader.canvas()).any(axis=2)
    middle = [np.flatnonzero(drawn.any(axis=1 - axis)).mean() / drawn.shape[axis] for axis in (0, 1)]
    assert middle == pytest.approx([(row + 0.5) / viewer["rows"], (column + 0.5) / viewer["columns"]], abs=0.01)
    reader.press("ArrowRight")
    reader.page.locator("#most-visible").click()
    assert reader.page.locator("#slice").input_value() == str(viewer["start"])


def test_the_map_is_where_the_change_would_be_seen_in_the_window_in_use(opened: Any) -> None:
    reader = opened()
    viewer = reader.viewer()
    reader.hide_outlines()
    reader.press("1")
    for window in (viewer["window"], (-160, 240)):
        reader.page.locator("#level").fill(str(sum(window) / 2))
        reader.page.locator("#width").fill(str(window[1] - window[0]))
        planes = reader.planes(viewer["start"])
        before, after = (grey_levels(planes[name], window) for name in ("clean", "adversarial"))
        degree = viewer["pixels_per_degree"]
        screen = Screen(math.tan(math.radians(1 / degree)) * 500)
        assert screen.pixels_per_degree == pytest.approx(degree)
        seen = visible_where(before, after, screen)
        assert not reader.page.locator("#map-key").is_visible()
        plain = reader.pixels()
        assert (plain == plain[..., :1]).all()
        reader.page.locator("#map").set_checked(True)
        assert reader.page.locator("#map-key").is_visible()
        coloured = (reader.pixels() != plain).any(axis=2)
        sure = np.abs(seen - LOST) > 0.02
        assert (seen > LOST).any()
        np.testing.assert_array_equal(coloured[sure], (seen > LOST)[sure])
        red, green, blue = np.moveaxis(reader.pixels()[seen > 1.1 * PLAIN], -1, 0)
        assert (red > green + 60).all()
        assert (red > blue + 60).all()
        reader.page.locator("#map").set_checked(False)


def test_where_the_window_hides_the_change_there_is_no_ring(opened: Any) -> None:
    reader = opened()
    reader.page.locator("#level").fill("5000")
    reader.page.locator("#width").fill("10")
    assert reader.text("#look-said") == "In this slice and window no pixel of the screen changes."


def numbers(reader: Any, section: Any) -> Any:
    return reader.page.locator(f"{section} .number").evaluate_all(
        "nodes => nodes.map(node => [node.dataset.path, node.dataset.value, node.textContent, "
        "node.closest('tr')?.dataset.case ?? null])"
    )


def follow(report: Any, path: Any) -> Any:
    for key in path.split("."):
        report = report[int(key)] if isinstance(report, list) else report[key]
    return report


def test_every_number_is_the_reports(opened: Any) -> None:
    empty = case(classes=3)
    empty["target"] = np.where(empty["target"] == 2, 0, empty["target"])
    reader = opened(page_case("one"), page_case("two", empty))
    for n in (0, 1):
        reader.page.locator(f"tr[data-case='{n}'] button").click()
        found = [(n, *entry) for section in ("#verdict", "#numbers") for entry in numbers(reader, section)]
        assert len(found) > 60
        found += [(int(entry[3]), *entry) for entry in numbers(reader, "#cases")]
        for case_number, path, value, text, _ in found:
            told = follow(reader.data["index"]["cases"][case_number]["report"], path)
            if told is None:
                assert value == "null"
                assert text.startswith("undefined: ")
                continue
            assert float(value) == told
            plain = text.replace("−", "-").replace("\u202f", "")
            shown = float(re.match(r"-?[\d.]+(e-?\d+)?", plain)[0])
            scale = 100 if "%" in plain else 1e-3 if "ml" in plain else 1
            assert shown == pytest.approx(told * scale, rel=5e-3, abs=5e-3 if "mm" in plain or "dB" in plain else 5e-5)
            assert (shown == 1) <= (told * scale > 0.999999)
    paths = {path for path, *_ in numbers(reader, "#numbers")}
    for path in ("target_iou.value", "target_dice.value", "hit_rate.value", "collateral.count", "removed.0.value"):
        assert {f"metrics.clean.{path}", f"metrics.post_write.{path}"} <= paths
    sizes = "l0.count l2.native l2.model linf.native linf.model psnr_db.value ssim.mean.value ssim.worst.value"
    assert {f"metrics.size.{path}" for path in (*sizes.split(), "low_frequency_share.value")} <= paths


def test_what_detectors_say_what_survives_and_what_the_attacker_knew_are_on_the_page(opened: Any) -> None:
    quiet, loud = (Scores(slice=n, clean=0.25, adversarial=adversarial) for n, adversarial in ((3, 0.125), (5, 0.75)))
    plain = page_case("plain")
    assert isinstance(plain.case, CaseRecord)
    told = replace(
        plain.case,
        attack=replace(plain.case.attack, queries=Queries(limit=200, asked=41, repeated=2)),
        metrics=replace(
            plain.case.metrics,
            evasion=(
                Evasion(detector="blur", asked=True, above=0, samples=(quiet,)),
                Evasion(detector="margin", asked=False, above=1, samples=(quiet, loud)),
            ),
            survival=(survived(0.625, "jpeg:90"),),
        ),
    )
    reader = opened(replace(plain, case=told), plain)
    rows = reader.page.locator("#numbers tbody tr").all_inner_texts()
    found = [row.split() for row in rows if row.split()[0] in ("blur", "margin", "jpeg:90")]
    arrow = "\u2192"
    assert found[0][:3] == ["jpeg:90", "0.6250", "0.6250"]
    assert [" ".join(row) for row in found[1:]] == [
        f"blur yes 0 of 1 0.2500 {arrow} 0.1250 slice 3",
        f"margin no 1 of 2 0.2500 {arrow} 0.7500 slice 5",
    ]
    assert "nothing but the labels that the model drew, asked 41 times of at most 200" in reader.text("#facts")
    reader.page.locator("tr[data-case='1'] button").click()
    assert "What detectors say" not in reader.text("#numbers")
    assert "Attacker knew\nthe model" in reader.text("#facts")


def test_cases_are_sorted_and_chosen_by_click_and_key(opened: Any) -> None:
    seeds = {"b": 1, "a": 2, "c": 3}
    cases = [page_case(name, case(seed=seed, classes=3), reached=name != "a") for name, seed in seeds.items()]
    reader = opened(*cases)

    def order() -> Any:
        return reader.page.locator("#cases tbody tr th").all_inner_texts()

    def head(n: Any) -> Any:
        return reader.page.locator("#cases thead th").nth(n)

    values = {each.case.case_id: records.plain(each.case)["metrics"]["size"]["psnr_db"]["value"] for each in cases}
    assert order() == ["b", "a", "c"]
    head(7).locator("button").click()
    assert order() == sorted(values, key=values.get)
    assert head(7).get_attribute("aria-sort") == "ascending"
    reader.page.keyboard.press("Enter")  # The heading keeps the focus.
    assert order() == sorted(values, key=values.get, reverse=True)
    assert head(7).get_attribute("aria-sort") == "descending"
    head(0).locator("button").click()
    assert order() == ["a", "b", "c"]
    assert head(7).get_attribute("aria-sort") is None
    assert reader.text("#verdict h2") == "b"
    reader.page.locator("#cases tbody tr button").first.focus()
    reader.press("Enter")
    assert reader.text("#verdict h2") == "a"
    assert "Goal not reached" in reader.text("#verdict")
    assert reader.page.locator("tr[aria-current] th").inner_text() == "a"
    reader.hide_outlines()
    place = reader.viewer(1)["start"]
    expected = grey(reader.planes(place, 1)["adversarial"], reader.viewer(1)["window"])
    assert np.abs(reader.pixels(1)[..., 0] - expected).max() <= 1


def test_hostile_names_are_shown_and_do_nothing(opened: Any) -> None:
    hostile = page_case(HOSTILE, classes=("background", HOSTILE, "b"), model=HOSTILE)
    reader = opened(hostile, page_case(), title=f"about {HOSTILE}")
    assert reader.page.evaluate("window.hacked") is None
    assert reader.page.locator("img").count() == 0
    assert reader.text("h1") == reader.page.title() == f"about {HOSTILE}"
    assert reader.text("#verdict h2") == HOSTILE
    assert HOSTILE in reader.text("#classes")
    assert HOSTILE in reader.text("#facts")


def test_the_policy_stops_what_is_not_the_pages_own(opened: Any) -> None:
    reader = opened(quiet=False)
    reader.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            document.body.append(script);
        }"""
    )
    assert reader.page.evaluate("fetch('data:text/plain,x').then(() => 'fetched', () => 'refused')") == "refused"
    assert reader.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in message for message in reader.trouble)


def test_both_colour_schemes_and_the_button_between_them(opened: Any) -> None:
    dark, light = opened(color_scheme="dark"), opened(color_scheme="light")

    def brightness(reader: Any, what: str = "backgroundColor") -> Any:
        return np.mean([int(n) for n in re.findall(r"\d+", reader.look("body", what))[:3]])

    assert brightness(dark) < 60 < 190 < brightness(light)
    assert brightness(dark, "color") > 190
    assert brightness(light, "color") < 60
    for reader, dark_now in ((dark, False), (light, True)):
        reader.page.locator("#theme").click()
        assert (brightness(reader) < 60) == dark_now


@pytest.mark.parametrize("width", [400, 768, 1280])
def test_nothing_is_wider_than_the_screen(opened: Any, width: Any) -> None:
    reader = opened(
        page_case("a_very_long_name_without_any_place_to_break_" * 3),
        page_case(),
        viewport={"width": width, "height": 800},
    )
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
    box = reader.page.locator("#picture").bounding_box()
    assert box["width"] > 150
    assert box["height"] < 800


def test_reduced_pages_are_shown_as_well(opened: Any) -> None:
    from bodies import noisy

    reader = opened(page_case(volumes=noisy()), written={"max_mb": 0.15})
    viewer = reader.viewer()
    assert viewer["halved"]
    reader.hide_outlines()
    shown = reader.planes(viewer["start"])["adversarial"].repeat(2, axis=0).repeat(2, axis=1)
    assert np.abs(reader.pixels()[..., 0] - grey(shown, viewer["window"])).max() <= 1
    assert "33 unchanged slices are left out" in reader.text("#said")
    assert "half their resolution" in reader.text("#convention")
    assert reader.page.locator("#slice").get_attribute("max") == "6"


def test_a_browser_without_the_unpacker_still_has_the_numbers(browser: Any, tmp_path: Path) -> None:
    page.write(tmp_path / "a.html", [page_case()], title="a title")
    context = browser.new_context()
    context.add_init_script("delete window.DecompressionStream")
    tab = context.new_page()
    tab.goto((tmp_path / "a.html").as_uri())
    assert "too old" in tab.locator("#problem").inner_text()
    assert tab.locator("#numbers .number").count() > 30
    context.close()
