"""The benchmarks' own arithmetic: what they say about the attack is only as good as their bookkeeping."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = ("cases", "peers", "tables", "quality", "overhead", "phantom")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts as modules, imported as they import each other."""
    import importlib

    monkeypatch.syspath_prepend(FOLDER)
    return {name: importlib.import_module(name) for name in NAMES}


def _row(case: str, method: str, passes: int, **changes: Any) -> dict[str, Any]:
    score = changes.get("score", 0.99)
    row = {
        "case": case, "method": method, "passes": passes, "iou": score, "accuracy": score, "l2": 2.0, "linf": 0.2,
        "psnr": 30.0, "ssim": 0.9, "low_frequency": 0.5, "hit": score, "score": score, "scores": [score], "reached": 1,
        "samples": 1, "forward": passes + 1, "backward": passes, "seconds": 1.0,
    }  # fmt: skip
    return {**row, **changes}


def _document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"torch": "2", "python": "3", "processor": "x", "processes": 1, "threads": 1}
    passes = [50, 150, 500]
    return {"command": "c", "machine": machine, "passes": passes, "goal": 0.99, "cases": ["a"], "rows": rows}


def _asma(**changes: Any) -> dict[str, Any]:
    return _row("a", "asma", 150, **{"rule": "best IoU", "tau": 1e-4, **changes})


def test_asma_gets_the_step_size_with_the_highest_score_then_the_smallest_change(benchmarks: Any) -> None:
    rows = [_asma(score=0.9, l2=1.0), _asma(score=0.99501, l2=3.0), _asma(score=0.99502, l2=2.5)]
    results = benchmarks["tables"].Results(_document(rows))
    assert results.asma("a", 150, "best IoU")["l2"] == 2.5


def test_beyond_the_goal_only_the_size_counts(benchmarks: Any) -> None:
    rows = [_asma(rule="at goal", score=0.991, l2=1.0), _asma(rule="at goal", score=1.0, l2=3.0)]
    results = benchmarks["tables"].Results(_document(rows))
    assert results.asma("a", 150, "at goal")["l2"] == 1.0


def test_values_that_look_alike_are_a_tie_and_nothing_beats_an_unchanged_image(benchmarks: Any) -> None:
    compare = benchmarks["tables"].compare
    ours, theirs = _row("a", "mafl", 150, l2=2.00001, iou=0.98), _row("a", "asma", 150, psnr=None)
    assert [compare(name, ours, theirs) for name in ("l2", "iou", "psnr")] == [0, -1, -1]
    assert compare("l2", {**ours, "l2": 1.9}, theirs) == 1


def test_goals_are_judged_by_the_numbers(benchmarks: Any) -> None:
    mafl = [_row("a", "mafl", passes, goal=None, l2=1.0, linf=0.15, psnr=36.0) for passes in (50, 150, 500)]
    page = benchmarks["tables"].markdown(_document([*mafl, _asma(), _asma(rule="at goal")]))
    assert "| mean L2 ratio ≤ 0.65 | 0.500 PASS | 0.500 PASS |" in page
    assert "| mean Linf ratio ≤ 0.55 | 0.750 **MISS** | 0.750 **MISS** |" in page
    assert "| mean L2 ratio to PDGD at its own score ≤ 1 | not run |" in page


def test_a_page_and_a_picture_from_what_was_run(benchmarks: Any, tmp_path: Path) -> None:
    (tmp_path / "benchmark.json").write_text(json.dumps(_document([_asma(), _row("a", "mafl", 150, goal=None)])))
    benchmarks["tables"].write(tmp_path)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_more_passes_never_give_asma_a_worse_image(benchmarks: Any) -> None:
    peers, case = benchmarks["peers"], benchmarks["cases"].load_case("sample:hole", None)
    found = peers.asma(case, 1e-3, 1e-2, (4, 12))
    goal = peers.goal_of(case)
    early, late = (
        goal.judge(case.field.predict(found[mark, "best IoU"]).logits.argmax(dim=1)).score for mark in (4, 12)
    )
    assert (late >= early).all()
    assert (late > 0).all()
    for x in found.values():
        assert case.limits.low <= x.min()
        assert x.max() <= case.limits.high
        assert torch.equal(x[case.limits.frozen], case.clean[case.limits.frozen])


def test_runs_that_are_known_are_not_run_again(benchmarks: Any, tmp_path: Path) -> None:
    quality = benchmarks["quality"]
    task = quality.Task("sample:hole", "asma", 2, {"tau": 1e-4, "beta": 1e-3, "marks": [2]})
    rows = quality.solve(task, None)
    assert [row["rule"] for row in rows] == ["best IoU", "at goal"]
    assert rows[0]["forward"] == 3 * rows[0]["samples"]
    store = tmp_path / "cache.jsonl"
    half_written = '{"key": "'
    store.write_text(json.dumps({"key": task.key, "rows": rows}) + "\n" + half_written)
    assert quality._solve_all([task], store, None, jobs=1) == (rows, 0)


def test_the_made_up_ct_has_its_organs_and_the_network_nnunets_size(benchmarks: Any) -> None:
    phantom = benchmarks["phantom"]
    scan, labels = phantom.made_up((48, 48, 24))
    assert set(np.unique(labels)) == set(range(len(phantom.CLASSES)))
    assert [round(float(np.median(scan[labels == k])), -1) for k in (1, 2, 4)] == [110, 190, 600]
    network = phantom.UNet(3, (32, 64, 128, 256, 320, 320))
    assert 25e6 < sum(each.numel() for each in network.parameters()) < 35e6
    with torch.no_grad():
        assert phantom.UNet(2, (4, 8, 8))(torch.zeros(1, 1, 16, 24)).shape == (1, 5, 16, 24)
