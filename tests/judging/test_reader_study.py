"""What readers told apart: exact intervals, and files that do not belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from commands import mafl
from scipy.stats import binomtest
from studies import answered, key_of, put, study_case

from mafl_cli.judging.reader_study import judge_reader_study
from mafl_cli.measure.proportions import proportion
from mafl_cli.results.reader_study import ANSWERS_SCHEMA, SCHEMA, ReaderStudy
from mafl_cli.show import study
from mafl_cli.system import records


def written(page: Path, seed: int = 0) -> Path:
    study.write(page, [study_case()], pairs=14, seed=seed, max_mb=20)
    return study.key_path(page)


@pytest.mark.parametrize("of", [1, 7, 100])
def test_intervals_are_exact(of: int) -> None:
    for count in {0, 1, of // 3, of - 1, of}:
        found = proportion(count, of)
        known = binomtest(count, of).proportion_ci(0.95, method="exact")
        assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)
        assert found.low <= found.share <= found.high
    # The closed forms of the ends.
    assert proportion(0, of).high == pytest.approx(1 - 0.025 ** (1 / of))
    assert proportion(of, of).low == pytest.approx(0.025 ** (1 / of))


def test_nothing_is_a_share_of_nothing() -> None:
    for count, of in ((0, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="count must be"):
            proportion(count, of)


def test_readers_are_judged_one_by_one_and_together(tmp_path: Path) -> None:
    key_file = written(tmp_path / "s.html")
    key = key_of(tmp_path / "s.html")
    sharp = put(tmp_path / "1.json", answered(key, "sharp", lambda n, pair: pair.changed))
    eager = put(tmp_path / "2.json", answered(key, "eager", lambda n, pair: True))
    blind = put(tmp_path / "3.json", answered(key, "blind", lambda n, pair: False))
    found = judge_reader_study([sharp, eager, key_file, blind])
    counts = {each.reader: (each.recognised.count, each.false_alarms.count) for each in found.readers}
    assert counts == {"sharp": (7, 0), "eager": (7, 7), "blind": (0, 0)}
    assert (found.changed, found.controls) == (7, 7)
    assert found.together.recognised == proportion(14, 21)
    assert found.together.false_alarms == proportion(7, 21)
    assert {each.called_different for each in found.pairs if each.changed} == {2}
    assert {each.called_different for each in found.pairs if not each.changed} == {1}

    ended = mafl("evaluate", "--reader-study", key_file, sharp, eager, blind, "--json", tmp_path / "report.json")
    assert ended.exit_code == 0
    assert "7 changed pairs, 7 controls" in ended.stdout
    assert "14 of 21 (66.7%)" in ended.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    for kind, told in ((SCHEMA, report), (ANSWERS_SCHEMA, json.loads(sharp.read_text()))):
        jsonschema.Draft202012Validator(json.loads(kind.read_text(encoding="utf-8"))).validate(told)
    assert records.read(ReaderStudy, report, "report") == found


def edited(told: Any, change: str) -> Any:
    """Answers after a slip, or worse."""
    if change == "answer":
        first = told["answers"][0]
        first["answer"] = "same" if first["answer"] == "different" else "different"
    elif change == "cut":
        told["answers"].pop()
    elif change == "name":
        told["reader"] = "Jane Doe"
    elif change == "more":
        told["patient"] = "Doe"
    return told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("answer", "was edited after it was saved"),
        ("cut", "was edited after it was saved"),
        ("name", "reader: "),
        ("more", "patient: "),
    ],
)
def test_an_edited_file_is_refused(tmp_path: Path, change: str, said: str) -> None:
    key_file = written(tmp_path / "s.html")
    told = edited(answered(key_of(tmp_path / "s.html"), "R1", lambda n, pair: pair.changed), change)
    ended = mafl("evaluate", "--reader-study", key_file, put(tmp_path / "a.json", told))
    assert ended.exit_code == 2
    assert ended.stderr.startswith("mafl: a.json: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    keys = [written(tmp_path / f"{n}.html", seed=n) for n in (0, 1)]
    key = key_of(tmp_path / "0.html")
    good = answered(key, "R1", lambda n, pair: False)
    mine, foreign = put(tmp_path / "mine.json", good), put(tmp_path / "foreign.json", {"kind": "other"})
    twice = put(tmp_path / "twice.json", good)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    part = answered(key, "R2", lambda n, pair: False)
    part["answers"] = part["answers"][:5]
    short = put(tmp_path / "short.json", resealed(part))
    changed_key = json.loads(keys[0].read_text())
    changed_key["pairs"][0]["first"] = "clean" if changed_key["pairs"][0]["first"] == "adversarial" else "adversarial"
    other_key = put(tmp_path / "other.key.json", changed_key)
    for files, said in (
        ([keys[0]], "is the key; give the files that readers saved, too"),
        ([mine], "a reader study needs one key, got 0"),
        ([*keys, mine], "a reader study needs one key, got 2"),
        ([keys[1], mine], "mine.json: has answers of another study than 1.key.json"),
        ([keys[0], mine, twice], "twice.json: reader R1 is in mine.json too"),
        ([keys[0], foreign], "foreign.json: is not the key of a reader study, nor the answers of a reader"),
        ([keys[0], broken], "broken.json: cannot be read as JSON"),
        ([keys[0], tmp_path / "none.json"], "none.json: cannot be read"),
        ([keys[0], short], "short.json: must have one answer for each of 14 pairs, has 5 for 5"),
        ([other_key, mine], "other.key.json: was edited after it was saved: write the study again"),
    ):
        ended = mafl("evaluate", "--reader-study", *files)
        assert ended.exit_code == 2, said
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1


def resealed(told: Any) -> Any:
    """With the check of what it says now, as a browser that was stopped would save it."""
    from mafl_cli.results.reader_study import Answer, checked

    answers = [Answer(**each) for each in told["answers"]]
    return {**told, "check": checked(told["study"], told["reader"], answers)}


def test_what_is_about_models_is_not_ignored(tmp_path: Path) -> None:
    key_file = written(tmp_path / "s.html")
    mine = put(tmp_path / "a.json", answered(key_of(tmp_path / "s.html"), "R1", lambda n, pair: False))
    for option in (["--fail-if", "hit_rate > 0.5"], ["--curve"], ["--model", "m.ts"], ["--card", "c.md"]):
        ended = mafl("evaluate", "--reader-study", key_file, mine, *option)
        assert ended.exit_code == 2
        assert f"leave out {option[0]}" in ended.stderr
    ended = mafl("evaluate", "--reader-study", key_file, mine, "--json", key_file)
    assert ended.exit_code == 2
    assert "is an input" in ended.stderr
