"""What `tools/same_results.py` calls the same: numbers that moved are, numbers that changed are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import same_results

REPORT = {
    "run": {"seed": 0, "settings": {"steps": 8, "eps": 2.5}},
    "clean": {"iou": 0.25},
    "after": {"iou": 0.75},
    "trace": {"loss": [3.0, 2.0]},
    "timing_s": {"read": 0.1},
}
MOVED = {
    "run": {"settings": {"eps": 2.5, "steps": 8, "seed": 0}},
    "after": {"iou": 0.75},
    "clean": {"iou": 0.25},
    "trace": {"loss": [3.0, 2.0]},
    "timing_s": {"read": 0.2},
}


def test_a_number_may_move() -> None:
    assert same_results.changes(REPORT, MOVED) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"clean": {"iou": 0.75}, "after": {"iou": 0.25}}, "clean.iou: 0.25 became 0.75"),
        ({"trace": {"loss": [2.0, 3.0]}}, "trace.loss: 3 became 2"),
        ({"trace": {"loss": [3.0]}}, "trace.loss: 2 numbers became 1"),
        ({"after": {"iou": None}}, "lost iou 0.75, 1 times"),
        ({"more": {"hit": 1.0}}, "gained hit 1, 1 times"),
        ({"run": {"settings": {"eps": 2.5, "steps": 8, "seed": 1}}}, "lost seed 0, 1 times"),
        ({"run": {"settings": {"eps": 8, "steps": 2.5, "seed": 0}}}, "run.settings.steps: 8 became 2.5"),
    ],
)
def test_a_number_that_changed_is_named(changed: dict[str, object], line: str) -> None:
    assert line in same_results.changes(REPORT, MOVED | changed)


def test_reports_and_tables_of_two_folders_are_compared(tmp_path: Path) -> None:
    for name, report, table in (("old", REPORT, "a,1"), ("new", MOVED | {"clean": {"iou": 0.5}}, "a,2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "cases.csv").write_text(table)
    files, different = same_results.compare(tmp_path / "old", tmp_path / "new")
    assert files == 2
    assert different == ["cases.csv: other bytes", "report.json: clean.iou: 0.25 became 0.5"]
