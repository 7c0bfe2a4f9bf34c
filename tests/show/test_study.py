"""The page of a reader study as a file: what it shows, that it does not say which pairs are changed, and its key."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from bodies import ORIENTATIONS, case, noisy, ras, stored_as, stored_slice
from commands import mafl
from pages import blocks
from studies import WINDOW, key_of, study_case

from mafl_cli.errors import InputError, UsageError
from mafl_cli.measure.records import Window
from mafl_cli.results.reader_study import KEY_SCHEMA
from mafl_cli.show import study
from mafl_cli.show.screen import grey_levels, largest_spot
from mafl_cli.show.slices import oriented_slice

# All of `bodies.noisy`.
WIDE = Window(low=-500.0, high=2500.0, rule="all")


def write(page: Path, *cases: Any, pairs: int = 100, seed: int = 0, max_mb: float = 20) -> str:
    return study.write(page, cases or [study_case()], pairs=pairs, seed=seed, max_mb=max_mb)


def pictures(page: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both pictures of each pair, as the page's own script reads them."""
    found = []
    for pair in blocks(page.read_text(encoding="ascii"))["study"]["pairs"]:
        steps = np.frombuffer(zlib.decompress(base64.b64decode(pair["picture"])), np.uint8)
        first, second = (np.cumsum(part, dtype=np.uint8) for part in np.split(steps, 2))
        shape = (pair["rows"], pair["columns"])
        found.append((first.reshape(shape), second[::-1].reshape(shape)))
    return found


def test_each_pair_shows_what_its_key_says(tmp_path: Path) -> None:
    volumes = case()
    write(tmp_path / "s.html", study_case(volumes=volumes))
    key, shown = key_of(tmp_path / "s.html"), pictures(tmp_path / "s.html")
    assert len(shown) == len(key.pairs) == 14
    assert sum(pair.changed for pair in key.pairs) == 7
    assert sorted(pair.slice for pair in key.pairs if pair.changed) == sorted(
        pair.slice for pair in key.pairs if not pair.changed
    )
    for pair, both in zip(key.pairs, shown, strict=True):
        for name, picture in zip((pair.first, pair.second), both, strict=True):
            plane = grey_levels(oriented_slice(volumes[name], ras(), 2, pair.slice)[0], (WINDOW.low, WINDOW.high))
            # Cut to the body, which takes up most of this slice.
            assert picture.size > 0.5 * plane.size
            windows = np.lib.stride_tricks.sliding_window_view(plane, picture.shape)
            assert (windows == picture).all(axis=(2, 3)).any()
        assert np.array_equal(*both) != pair.changed
        assert pair.grey_levels == np.abs(both[0].astype(int) - both[1]).max()


def test_the_page_does_not_say_which_pairs_are_changed(tmp_path: Path) -> None:
    write(tmp_path / "s.html", study_case("Doe_John"))
    text = (tmp_path / "s.html").read_text(encoding="ascii")
    data = blocks(text)["study"]
    assert set(data) == {"version", "study", "pairs"}
    assert {frozenset(pair) for pair in data["pairs"]} == {frozenset(("rows", "columns", "aspect", "picture"))}
    assert "Doe_John" not in text
    assert "Doe_John" in study.key_path(tmp_path / "s.html").read_text()
    # Neither the text of a picture nor its length gives a control away: they lie among those of changed pairs.
    key = key_of(tmp_path / "s.html")
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for pair, shown in zip(key.pairs, data["pairs"], strict=True):
        sizes[pair.changed].append(len(shown["picture"]))
    assert min(sizes[False]) < max(sizes[True])
    assert max(sizes[False]) > min(sizes[True])
    assert max(sizes[False]) > 0.9 * max(sizes[True])


def test_nothing_leads_out_of_the_page(tmp_path: Path) -> None:
    write(tmp_path / "s.html")
    text = (tmp_path / "s.html").read_text(encoding="ascii")
    assert not re.findall(r"\w+://", text)
    assert "default-src 'none'" in text
    assert not re.search(r"<(?:link|img|iframe|script src)", text)


def test_the_order_is_that_of_the_seed_and_the_key_fits_its_schema(tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(tmp_path / f"{name}.html", seed=seed)
        texts.append((tmp_path / f"{name}.html").read_bytes())
    assert texts[0] == texts[1]
    keys = [key_of(tmp_path / f"{name}.html") for name in "ac"]
    assert [key.seed for key in keys] == [0, 1]
    assert keys[0].pairs != keys[1].pairs
    assert len({key.study for key in keys}) == 2
    assert all(key.intact for key in keys)
    schema = json.loads(KEY_SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(study.key_path(tmp_path / "a.html").read_text()))


def test_a_scan_gives_the_same_pictures_however_it_is_stored(tmp_path: Path) -> None:
    volumes = case()
    write(tmp_path / "a.html", study_case(volumes=volumes))
    for orientation in (ORIENTATIONS[7], ORIENTATIONS[29]):
        turned = {name: stored_as(orientation, volumes[name], ras())[0] for name in ("clean", "adversarial")}
        affine = stored_as(orientation, volumes["clean"], ras())[1]
        axis, _ = stored_slice(orientation, volumes["clean"].shape, 2, 0)
        write(tmp_path / "b.html", study_case(volumes=turned, affine=affine, slice_axis=axis))
        one, other = (blocks((tmp_path / name).read_text())["study"]["pairs"] for name in ("a.html", "b.html"))
        assert one == other


def test_cases_take_turns_and_the_most_visible_slices_come_first(tmp_path: Path) -> None:
    few, many = noisy(side=32, changed=(3, 20)), noisy(side=32, changed=range(10, 30))
    for index in range(10, 30):
        many["adversarial"][..., index] = many["clean"][..., index]
        many["adversarial"][10:20, 10:20, index] += 2.0 * index
    both = study_case("few", few, window=WIDE), study_case("many", many, window=WIDE)
    said = write(tmp_path / "s.html", *both, pairs=16)
    chosen = {(pair.case_id, pair.slice) for pair in key_of(tmp_path / "s.html").pairs}
    assert chosen == {("few", 3), ("few", 20), *(("many", index) for index in range(24, 30))}
    assert said.startswith("16 pairs, 8 changed and 8 controls.")


def test_a_page_that_would_be_too_large_loses_the_least_visible_pairs(tmp_path: Path) -> None:
    volumes = noisy(side=64, changed=range(10, 20))
    for index in range(10, 20):
        volumes["adversarial"][10:20, 10:20, index] += 10.0 * (index - 9)
    said = write(tmp_path / "s.html", study_case(volumes=volumes, window=WIDE), max_mb=0.1)
    key = key_of(tmp_path / "s.html")
    shown = {pair.slice for pair in key.pairs}
    assert (tmp_path / "s.html").stat().st_size <= 100_000
    assert 2 <= len(shown) < 10
    assert f"{10 - len(shown)} more changed slices did not fit" in said
    assert shown == set(range(20 - len(shown), 20))
    with pytest.raises(UsageError, match="max_mb"):
        write(tmp_path / "t.html", study_case(volumes=volumes, window=WIDE), max_mb=0.01)


def test_a_change_that_no_screen_shows_is_shown_and_counted(tmp_path: Path) -> None:
    volumes = case()
    volumes["adversarial"] = volumes["clean"] + np.float32(0.1)
    said = write(tmp_path / "s.html", study_case(volumes=volumes))
    assert "in 9 of the changed pairs no pixel of the screen differs" in said


def test_without_a_change_there_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    volumes = case()
    volumes["adversarial"] = volumes["clean"]
    with pytest.raises(InputError, match="no slice was changed"):
        write(tmp_path / "s.html", study_case(volumes=volumes))
    assert not list(tmp_path.iterdir())


def test_a_spot_is_seen_and_a_pixel_is_not() -> None:
    grey = np.full((30, 30), 100, np.uint8)
    pixel, spot = grey.copy(), grey.copy()
    pixel[10, 10] += 60
    spot[8:13, 8:13] += 10
    assert largest_spot(grey, grey).levels == 0
    assert largest_spot(grey, pixel).levels < largest_spot(grey, spot).levels < 10
    found = largest_spot(grey, spot)
    assert (found.row, found.column) == (10, 10)
    assert largest_spot(spot, grey) == found


def test_levels_are_black_and_white_at_the_ends_of_the_window() -> None:
    plane = np.array([[-1000.0, -160.0, 40.0, 240.0, 3000.0]])
    assert grey_levels(plane, (-160, 240)).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "--reader-study", "s.pdf"], 2, "must be .html"),
        (["run", "--reader-study", "s.html", "-o", "f.png"], 2, "exclude each other"),
        (["run", "--reader-study", "there.html"], 2, "is there already"),
        (["run", "--reader-study", "s.html"], 3, "is not a result folder"),
        (["run", "--reader-study", "s.html", "--pairs", "1"], 2, "--pairs"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.key.json").write_text("mine")
    ended = mafl("visualize", *arguments)
    assert ended.exit_code == code
    assert said in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there.key.json"]
