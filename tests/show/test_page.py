"""The page as a file: nothing leads out of it, it holds what the report and the scans hold, and it stays small."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from bodies import ORIENTATIONS, case, noisy, ras, stored_as, stored_slice
from pages import CLASSES, MASKS, blocks, decoded, page_case

from mafl_cli.errors import OutputError, UsageError
from mafl_cli.measure.value import Value
from mafl_cli.results.quantities import PAGE, QUANTITIES
from mafl_cli.results.quantity import NumberFormat
from mafl_cli.results.report import CaseRecord
from mafl_cli.results.text import visible
from mafl_cli.show import page
from mafl_cli.show.slices import oriented_slice
from mafl_cli.system.records import plain

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> & \u2028 ' \" </title> {{data}} \udc80"


def write(path: Any, *cases: Any, **settings: Any) -> Any:
    said = page.write(path, cases or [page_case()], **{"title": "a title", **settings})
    return path.read_text(encoding="ascii"), said


class Markup(HTMLParser):
    """All tags of a page with their attributes, and the text of its scripts and styles."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.content: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: Any) -> None:
        if self.tags and self.tags[-1][0] in self.content and self.cdata_elem:
            self.content[self.tags[-1][0]].append(data)


# --- a closed file ----------------------------------------------------------------------------------------------


def test_nothing_leads_out_of_the_page(tmp_path: Path) -> None:
    text, _ = write(tmp_path / "a.html")
    markup = Markup(text)
    # The one address is the name of the namespace of SVG, which is no place.
    assert set(re.findall(r"\w+://[^\"'\s]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not {key for _, attributes in markup.tags for key in attributes} & {
        "src",
        "href",
        "srcset",
        "action",
        "data",
    }
    assert not {tag for tag, _ in markup.tags} & {"link", "iframe", "object", "embed", "img", "form", "base"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|localStorage", text)


def test_the_policy_names_the_hashes_of_the_only_script_and_style(tmp_path: Path) -> None:
    text, _ = write(tmp_path / "a.html")
    markup = Markup(text)
    policy = next(a["content"] for _, a in markup.tags if a.get("http-equiv") == "Content-Security-Policy")
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    assert "unsafe" not in policy
    scripts = [attributes for tag, attributes in markup.tags if tag == "script"]
    assert [attributes.get("type") for attributes in scripts] == ["application/json"] * 2 + [None]
    for tag, content in (("script", markup.content["script"][-1]), ("style", "".join(markup.content["style"]))):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert parts[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not [key for _, attributes in markup.tags for key in attributes if key.startswith("on") or key == "style"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = page_case(HOSTILE, classes=("background", HOSTILE, "b"), model=HOSTILE)
    text, _ = write(tmp_path / "a.html", hostile, page_case(), title=HOSTILE)
    plain, _ = write(tmp_path / "b.html", page_case(), page_case())
    assert [tag for tag, _ in Markup(text).tags] == [tag for tag, _ in Markup(plain).tags]
    data = blocks(text)["index"]
    assert data["cases"][0]["report"]["case_id"] == HOSTILE
    assert data["shared"][0]["classes"][1] == HOSTILE
    assert "alert(1)</script>" not in text


# --- what is in it ----------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_report(tmp_path: Path) -> None:
    first, second = page_case("one"), page_case("two", case(seed=1, classes=3))
    text, _ = write(tmp_path / "a.html", first, second)
    data = blocks(text)["index"]
    assert [entry["report"] for entry in data["cases"]] == [plain(first.case), plain(second.case)]
    assert data["shared"] == [
        plain({"model": first.model, "run": first.run, "tool": first.tool, "classes": first.classes})
    ]
    assert data["notice"] in text.split("<main>")[0]


def test_the_page_says_first_whether_the_change_can_be_seen_as_the_console_does(tmp_path: Path) -> None:
    shown = page_case()
    text, _ = write(tmp_path / "a.html", shown)
    (entry,) = blocks(text)["index"]["cases"]
    assert isinstance(shown.case, CaseRecord)
    sight = shown.case.metrics.visibility
    assert entry["seen"] == visible(sight)
    assert entry["seen"].startswith(f"The change {sight.verdict.sentence}: slice {sight.slice} looks as different as ")
    assert entry["seen"].endswith(":1. No reader was asked.")
    for ratio, said in ((4.26, "4.3:1"), (23.7, "24:1"), (100.0, "100:1 or more")):
        assert f" JPEG 2000 at {said}. " in visible(replace(sight, compression_equivalent=Value(ratio)))


def test_the_page_knows_how_every_quantity_is_printed_and_names_no_other(tmp_path: Path) -> None:
    text, _ = write(tmp_path / "a.html")
    told = blocks(text)["index"]["quantities"]
    script = Markup(text).content["script"][-1]
    (forms,) = re.findall(r"const FORMS = \{(.*?)\};", script)
    assert set(re.findall(r'"([^"]+)":', forms)) == set(get_args(NumberFormat))
    named = {*re.findall(r'(?:quantity\(report, |titled\()"(\w+)"', script), *PAGE}
    assert len(named) > 8
    assert blocks(text)["index"]["columns"] == list(PAGE)
    assert named <= told.keys() == {name for name, each in QUANTITIES.items() if each.place}
    for place in (each["place"] for each in told.values()):
        found = blocks(text)["index"]["cases"][0]["report"]
        for key in place.split("."):
            found = found[key]


@pytest.mark.parametrize("slice_axis", [0, 1, 2], ids=["sagittal", "coronal", "axial"])
def test_planes_are_the_pictures_of_the_figures_cut_to_one_box(tmp_path: Path, slice_axis: Any) -> None:
    volumes, affine = case(classes=3), ras()
    text, _ = write(tmp_path / "a.html", page_case(volumes=volumes, slice_axis=slice_axis))
    found = blocks(text)
    viewer, planes = found["index"]["cases"][0]["viewer"], found["planes-0"]
    assert len(planes) == volumes["clean"].shape[slice_axis]
    assert viewer["step"] == 1.0
    for place, plane in enumerate(planes):
        shown = decoded(viewer, plane)
        for name, volume in volumes.items():
            whole, letters, aspect = oriented_slice(volume, affine, slice_axis, viewer["index"][place])
            assert viewer["letters"] == list(letters)
            assert viewer["aspect"] == pytest.approx(aspect, abs=1e-6)
            places = [
                (y, x)
                for y in range(whole.shape[0] - viewer["rows"] + 1)
                for x in range(whole.shape[1] - viewer["columns"] + 1)
            ]
            tolerance = 0 if name in (*MASKS, "clean") else viewer["difference_step"] / 2 + 1e-4
            assert any(
                np.allclose(
                    whole[y : y + viewer["rows"], x : x + viewer["columns"]], shown[name], rtol=0, atol=tolerance
                )
                for y, x in places
            )
    # Nothing that matters is cut away.
    kept = sum(np.count_nonzero(decoded(viewer, plane)["target"]) for plane in planes)
    assert kept == np.count_nonzero(volumes["target"])


@pytest.mark.parametrize(
    ("values", "step", "error"),
    [
        pytest.param(lambda x: np.round(x * 4000 - 1024), 1.0, 0, id="whole numbers"),
        pytest.param(lambda x: np.round(x * 4000 - 1024) + 2e-4 * x, 1.0, 3e-4, id="whole numbers but for rounding"),
        pytest.param(lambda x: x, None, 1 / 4095, id="from 0 to 1"),
        pytest.param(lambda x: x * 1e5, None, 1e5 / 4095, id="wide"),
        pytest.param(lambda x: np.where(x > 0.9999, 3e6, x * 1000), None, 3e6 / 65535, id="an outlier"),
        pytest.param(lambda x: np.round(x * 1e6), None, 1e6 / 4095, id="more than 16 bits"),
        pytest.param(lambda x: x * 0 + 7.5, None, 1e-9, id="constant"),
    ],
)
def test_values_come_back_within_half_a_step(tmp_path: Path, values: Any, step: Any, error: Any) -> None:
    rng = np.random.default_rng(0)
    volumes = case(classes=3)
    volumes["clean"] = values(rng.random(volumes["clean"].shape))
    spread = float(np.ptp(volumes["clean"])) or 1.0
    volumes["adversarial"] = volumes["clean"] + rng.normal(0, 0.01 * spread, volumes["clean"].shape)
    text, _ = write(tmp_path / "a.html", page_case(volumes=volumes))
    viewer = blocks(text)["index"]["cases"][0]["viewer"]
    assert step is None or viewer["step"] == step
    largest = np.abs(volumes["adversarial"] - volumes["clean"]).max()
    assert viewer["difference_step"] <= max(largest / 4095, 1e-9) * 1.0001 or viewer["difference_step"] == 1
    for place, plane in enumerate(blocks(text)["planes-0"]):
        shown = decoded(viewer, plane)
        for name, most in (("clean", error / 2 or 1e-9), ("adversarial", error / 2 + viewer["difference_step"] / 2)):
            whole = oriented_slice(volumes[name], ras(), 2, viewer["index"][place])[0]
            assert np.abs(whole[: viewer["rows"], : viewer["columns"]] - shown[name]).max() <= 2 * most + 1e-9 * spread


@pytest.mark.parametrize("number", [0, 5, 17, 31, 46])
def test_the_page_does_not_depend_on_how_the_scan_is_stored(tmp_path: Path, number: Any) -> None:
    orientation, volumes, affine = ORIENTATIONS[number], case(classes=3), ras()
    turned = {name: stored_as(orientation, volume, affine)[0] for name, volume in volumes.items()}
    new_axis, _ = stored_slice(orientation, volumes["clean"].shape, 2, 0)
    original = page_case(volumes=volumes)
    stored = page_case(volumes=turned, affine=stored_as(orientation, volumes["clean"], affine)[1], slice_axis=new_axis)
    first, second = (
        blocks(write(tmp_path / "a.html", replace(each, case=original.case))[0]) for each in (original, stored)
    )
    # Array indices depend on the storage; all else, the planes included, must not.
    for found in (first, second):
        viewer = found["index"]["cases"][0]["viewer"]
        assert sorted(viewer.pop("index")) == list(range(9))
        viewer.pop("axis")
    assert first == second


def test_slices_run_from_foot_to_head_and_start_where_most_changed(tmp_path: Path) -> None:
    volumes = case(classes=3)
    volumes["adversarial"] = volumes["clean"].copy()
    volumes["adversarial"][20, 20, 6] += 50
    volumes["adversarial"][20, 20, 2] += 20
    text, _ = write(tmp_path / "a.html", page_case(volumes=volumes))
    viewer = blocks(text)["index"]["cases"][0]["viewer"]
    assert viewer["index"] == list(range(9))
    assert viewer["position"][0] == "S 40.0 mm"
    assert viewer["start"] == 6
    assert viewer["change"][6] == 50
    assert viewer["largest"] == 50


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write(tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_window_can_be_given(tmp_path: Path) -> None:
    text, _ = write(tmp_path / "a.html", window=(-160, 240))
    assert blocks(text)["index"]["cases"][0]["viewer"]["window"] == [-160, 240]


@pytest.mark.parametrize(
    "changes",
    [
        {"clean": np.zeros((12, 12, 3)), "adversarial": np.zeros((12, 12, 3))},
        {name: np.zeros((12, 12, 3), np.uint8) for name in MASKS},
        {"target": np.full((12, 12, 3), 2)},
    ],
    ids=["constant", "empty masks", "target everywhere"],
)
def test_odd_cases_have_a_page(tmp_path: Path, changes: Any) -> None:
    text, _ = write(tmp_path / "a.html", page_case(volumes={**case((12, 12, 3), classes=3), **changes}))
    assert all(blocks(text)["planes-0"])


def test_a_single_voxel_has_a_page(tmp_path: Path) -> None:
    volumes = {name: np.ones((1, 1, 1), np.uint8) for name in case()}
    text, _ = write(tmp_path / "a.html", page_case(volumes=volumes))
    viewer = blocks(text)["index"]["cases"][0]["viewer"]
    assert decoded(viewer, blocks(text)["planes-0"][0])["clean"].tolist() == [[1]]


def test_labels_above_255_come_back(tmp_path: Path) -> None:
    volumes = case(classes=2)
    for name in MASKS:
        volumes[name] = volumes[name] * 300
    text, _ = write(tmp_path / "a.html", page_case(volumes=volumes, classes=[f"c{n}" for n in range(301)]))
    viewer = blocks(text)["index"]["cases"][0]["viewer"]
    assert viewer["labels"] == [300]
    assert 300 in decoded(viewer, blocks(text)["planes-0"][viewer["start"]])["target"]


def test_a_case_that_failed_has_its_row(tmp_path: Path) -> None:
    failed = replace(page_case(), case=page.Unread(case_id="bad", error="bad.nii.gz: is damaged."))
    text, said = write(tmp_path / "a.html", page_case(), failed)
    assert blocks(text)["index"]["cases"][1]["viewer"] is None
    assert "every slice" in said


# --- size -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_mb", "slices", "halved", "words"),
    [
        (20, 40, False, "every slice of every scan is in it"),
        (0.4, 7, False, "33 unchanged slices are left out"),
        (0.15, 7, True, "half their resolution"),
        (0.09, 0, None, "its pictures did not fit"),
    ],
    ids=["whole", "slices left out", "halved", "numbers only"],
)
def test_the_size_is_kept_and_what_that_cost_is_said(
    tmp_path: Path, max_mb: Any, slices: Any, halved: Any, words: Any
) -> None:
    volumes = noisy()
    text, said = write(tmp_path / "a.html", page_case(volumes=volumes), max_mb=max_mb)
    assert len(text) <= max_mb * 1e6
    assert words in said
    assert f"{len(text) / 1e6:.1f} MB" in said
    data = blocks(text)
    assert data["index"]["said"] == said
    viewer = data["index"]["cases"][0]["viewer"]
    if not slices:
        assert viewer is None
        return
    kept = [n for n, plane in enumerate(data["planes-0"]) if plane]
    assert len(kept) == slices
    assert 20 in kept
    assert viewer["halved"] == halved
    shown = decoded(viewer, data["planes-0"][20])
    if halved:
        picture = oriented_slice(volumes["adversarial"], ras(), 2, 20)[0].astype(float)
        means = picture.reshape(48, 2, 48, 2).mean(axis=(1, 3))
        assert np.abs(shown["adversarial"] - means).max() <= 1
    np.testing.assert_array_equal(shown["target"], oriented_slice(volumes["target"], ras(), 2, 20)[0])


def test_many_cases_share_the_space_and_are_loaded_one_by_one(tmp_path: Path) -> None:
    volumes, calls = noisy(), []

    def counted(n: Any) -> Any:
        each = page_case(f"case {n}", volumes=volumes)
        return replace(each, volumes=lambda: (calls.append(n), each.volumes())[1])

    text, said = write(tmp_path / "a.html", *(counted(n) for n in range(4)), max_mb=1.5)
    assert len(text) <= 1.5e6
    data = blocks(text)
    assert calls == [0, 1, 2, 3][: len(calls)]
    assert len(data["index"]["cases"]) == 4
    shown = sum(entry["viewer"] is not None for entry in data["index"]["cases"])
    assert 0 < shown == sum(name.startswith("planes") for name in data)
    assert "4 cases" in said


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"3 cases .* 0\.05 MB"):
        write(tmp_path / "a.html", *[page_case()] * 3, max_mb=0.05)
    assert not (tmp_path / "a.html").exists()


def test_a_missing_folder_is_one_sentence_without_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^a\.html: cannot be written") as caught:
        write(tmp_path / "secret" / "a.html")
    assert "secret" not in str(caught.value)


def test_classes_the_page_knows_are_the_names_by_label(tmp_path: Path) -> None:
    text, _ = write(tmp_path / "a.html")
    data = blocks(text)["index"]
    assert data["shared"][0]["classes"] == list(CLASSES)
    assert sorted(data["cases"][0]["viewer"]["labels"]) == [1, 2]
