"""The benchmarks' own arithmetic: what they say about the attack is only as good as their bookkeeping."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from mafl_cli.config import config_hash, preset

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = (
    "ablation", "cases", "figure", "known", "overhead", "peers", "phantom", "planned", "planted", "quality",
    "released", "results", "sources", "tables", "visible_section",
)  # fmt: skip


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
        "l2s": [2.0], "psnr": 30.0, "ssim": 0.9, "low_frequency": 0.5, "hit": score, "score": score, "scores": [score],
        "reached": 1, "samples": 1, "forward": passes + 1, "backward": passes, "seconds": 1.0,
    }  # fmt: skip
    return {**row, **changes}


def _document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"torch": "2", "python": "3", "processor": "x", "processes": 1, "threads": 1}
    passes = [50, 150, 500]
    return {
        "command": "c", "machine": machine, "passes": passes, "goal": 0.99, "cases": ["a"], "rows": rows,
        "adv-lib": None, "skipped": {"adv-lib PDGD": "pip install it"},
    }  # fmt: skip


def _asma(**changes: Any) -> dict[str, Any]:
    return _row("a", "asma", 150, **{"rule": "best IoU", "tau": 1e-4, **changes})


def test_asma_gets_the_step_size_with_the_highest_score_then_the_smallest_change(benchmarks: Any) -> None:
    rows = [_asma(score=0.9, l2=1.0), _asma(score=0.99501, l2=3.0), _asma(score=0.99502, l2=2.5)]
    results = benchmarks["results"].Results(_document(rows))
    assert results.asma("a", 150, "best IoU")["l2"] == 2.5


def test_beyond_the_goal_only_the_size_counts(benchmarks: Any) -> None:
    rows = [_asma(rule="at goal", score=0.991, l2=1.0), _asma(rule="at goal", score=1.0, l2=3.0)]
    results = benchmarks["results"].Results(_document(rows))
    assert results.asma("a", 150, "at goal")["l2"] == 1.0


def test_values_that_look_alike_are_a_tie_and_nothing_beats_an_unchanged_image(benchmarks: Any) -> None:
    compare = benchmarks["results"].compare
    ours, theirs = _row("a", "mafl", 150, l2=2.00001, iou=0.98), _row("a", "asma", 150, psnr=None)
    assert [compare(name, ours, theirs) for name in ("l2", "iou", "psnr")] == [0, -1, -1]
    assert compare("l2", {**ours, "l2": 1.9}, theirs) == 1


def _page(benchmarks: Any, rows: list[dict[str, Any]], best: dict[str, list[float]]) -> str:
    page: str = benchmarks["tables"].markdown(_document(rows), best, {case: ["a run"] for case in best})
    return page


def test_goals_are_judged_by_the_numbers(benchmarks: Any) -> None:
    mafl = [_row("a", "mafl", passes, goal=None, l2=1.0, linf=0.15, psnr=36.0) for passes in (50, 150, 500)]
    page = _page(benchmarks, [*mafl, _asma(), _asma(rule="at goal")], {})
    assert "| mean L2 ratio to the best ASMA, 150 passes ≤ 0.6 | 0.500 PASS |" in page
    assert "pairs ≥ 95 % | 0 % in the worst metric **MISS** |" in page
    assert "| mean L2 ratio to pdgd at its own score, 150 passes ≤ 1 | not run |" in page
    assert "Not run here: adv-lib PDGD: `pip install it`." in page


def test_the_shortest_known_is_what_changes_are_measured_by(benchmarks: Any) -> None:
    method = "mafl at the goal"
    rows = [
        _row("a", method, 50, goal=None, l2s=[2.3, 2.3], scores=[0.99, 1.0], samples=2),
        _row("a", method, 150, goal=None, l2s=[2.0, 2.1], scores=[0.99, 1.0], samples=2),
        _row("a", method, 500, goal=None, l2s=[1.0, 2.0], scores=[0.98, 1.0], samples=2, score=0.98),
    ]
    page = _page(benchmarks, rows, {"a": [2.0, 2.0]})
    assert "| L2 over the shortest known, 50 passes: median ≤ 1.15 | 1.150 PASS |" in page
    assert "| a | 2.000, 2.000 | 1.150 | 1.025 | (0.9800) | 150 | a run |" in page


def test_optimality_is_1_for_the_shortest_known_and_0_for_twice_as_much_or_a_miss(benchmarks: Any) -> None:
    known = benchmarks["known"]
    row = _row("a", "mafl", 50, l2s=[1.0, 3.0, 0.5, 1.5], scores=[1.0, 1.0, 0.9, 1.0])
    best = {"a": [1.0, 1.5, 0.5, 1.0]}
    assert known.ratios(row, best, 0.99) == [1.0, 2.0, None, 1.5]
    assert known.optimality([row], best, 0.99) == pytest.approx((1 + 0 + 0 + 0.5) / 4)


def test_the_estimate_of_the_search_is_counted_and_compared_with_what_is_known(benchmarks: Any) -> None:
    estimate = {"excess": [0.02, 0.3, None], "kkt_cosine": [0.995, 0.5, None]}
    row = _row(
        "a", "mafl at the goal", 50, goal=None, l2s=[1.05, 2.0, 1.0], scores=[1.0, 0.5, 1.0], samples=3, **estimate
    )
    page = _page(benchmarks, [row], {"a": [1.0, 1.0, 1.0]})
    assert "| 50 | 1 | 0 | 0 | 0 | 1 | 1 |" in page
    assert "| 50 | 1 | -3.0 | -3.0 | -3.0 | 1 |" in page


def test_rows_that_were_not_asked_for_stay(benchmarks: Any, tmp_path: Path) -> None:
    rows = [
        _row("a", "mafl", 50),
        _row("a", "mafl", 500),
        _row("a", "mafl as pdgd", 150),
        _asma(),
        _row("b", "mafl", 50),
    ]
    (tmp_path / "benchmark.json").write_text(json.dumps(_document(rows)))
    kept = benchmarks["quality"]._kept(argparse.Namespace(out=tmp_path, methods=["mafl"], passes=[50, 150]), ["a"])
    assert [(row["case"], row["method"], row["passes"]) for row in kept] == [
        ("a", "mafl", 500), ("a", "asma", 150), ("b", "mafl", 50),
    ]  # fmt: skip


def test_a_longer_change_or_a_miss_leaves_the_shortest_known_as_it_is(benchmarks: Any, tmp_path: Path) -> None:
    known = benchmarks["known"]
    known.improve(tmp_path, [_row("a", "mafl", 50, l2s=[2.0, 3.0], scores=[0.99, 0.99])], 0.99)
    known.improve(tmp_path, [_row("a", "asma", 150, l2s=[1.0, 2.5], scores=[0.98, 0.99])], 0.99)
    assert known.read(tmp_path) == {"a": [2.0, 2.5]}
    assert known.sources(tmp_path) == {"a": ["mafl, 50 passes", "asma, 150 passes"]}


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
    arguments = argparse.Namespace(cache=store, out=tmp_path, data=None, jobs=1)
    assert quality._solve_all([task], arguments) == (rows, 0)
    # What a page was made from serves as well.
    (tmp_path / "benchmark.json").write_text(json.dumps(_document(rows)))
    store.write_text("")
    assert quality._solve_all([task], arguments) == (rows, 0)


def test_a_result_depends_on_what_makes_it_and_on_nothing_else(benchmarks: Any, monkeypatch: Any) -> None:
    planned = benchmarks["planned"]
    tasks = {
        name: planned.Task(case, method, 50, {"tau": 1e-4} if method == "asma" else {})
        for name, case, method in (
            ("engine", "sample:hole", "mafl"),
            ("peer", "sample:hole", "asma"),
            ("windows", "brats3d_windows:shifted20", "asma"),
        )
    }
    before = {name: task.key for name, task in tasks.items()}

    def changed(file: str) -> set[str]:
        program = planned._program
        with monkeypatch.context() as patch:
            patch.setattr(planned, "_program", lambda path: "new" if path.name == file else program(path))
            return {name for name, task in tasks.items() if task.key != before[name]}

    assert changed("halpern.py") == {"engine"}
    assert changed("tiling.py") == {"windows"}
    assert changed("goals.py") == set(tasks)


def test_a_plan_says_what_is_to_be_run(benchmarks: Any) -> None:
    planned = benchmarks["planned"]
    tasks = list(planned.tasks(["sample:hole"], [50, 150], ["mafl", "asma"], None))
    assert [(task.method, task.passes) for task in tasks] == [("mafl", 50), ("mafl", 150), *[("asma", 150)] * 5]
    assert planned.estimate(tasks, lambda name: 0.5) == [("sample:hole", 7, 950.0, 475.0)]


def test_the_made_up_ct_has_its_organs_and_the_network_nnunets_size(benchmarks: Any) -> None:
    phantom = benchmarks["phantom"]
    scan, labels = phantom.made_up((48, 48, 24))
    assert set(np.unique(labels)) == set(range(len(phantom.CLASSES)))
    assert [round(float(np.median(scan[labels == k])), -1) for k in (1, 2, 4)] == [110, 190, 600]
    network = phantom.UNet(3, (32, 64, 128, 256, 320, 320))
    assert 25e6 < sum(each.numel() for each in network.parameters()) < 35e6
    with torch.no_grad():
        assert phantom.UNet(2, (4, 8, 8))(torch.zeros(1, 1, 16, 24)).shape == (1, 5, 16, 24)


def test_released_attacks_get_images_in_0_to_1_and_a_goal_that_mafl_would_take(benchmarks: Any) -> None:
    released, case = benchmarks["released"], benchmarks["cases"].load_case("sample:hole", None)[:1]
    view = released.UnitView(case)
    assert view.clean.min() >= 0
    assert view.clean.max() <= 1
    assert torch.allclose(view.native(view.clean), case.clean, atol=1e-2)
    assert torch.equal(view.native(torch.ones_like(view.clean))[case.limits.frozen], case.clean[case.limits.frozen])
    before = case.field.predict(case.clean).logits.argmax(dim=1)
    missing = (1 - view.share) * case.target.numel()
    assert missing <= 0.01 * int((before != case.target).sum()) + 1e-6
    image = view.clean.clone().requires_grad_()
    logits = view(image)
    assert torch.equal(logits.argmax(dim=1).view_as(before), before)
    logits[:, 1].sum().backward()
    wanted = case.field.slopes(case.clean, lambda prediction: [prediction.logits[:, 1].flatten(1).sum(dim=1)])
    found = image.grad.view_as(case.clean)
    assert torch.allclose(found, wanted.gradients[0] * view._span * ~view._fixed, rtol=1e-3, atol=1e-2)


def test_a_released_attack_moves_towards_the_target(benchmarks: Any) -> None:
    released = benchmarks["released"]
    if released.version() is None:
        pytest.skip(f"adv-lib is not installed: {released.INSTALL}")
    case = benchmarks["cases"].load_case("sample:hole", None)[:1]
    for method in released.ATTACKS:
        x = released.attack(method, case, 4)
        assert x.shape == case.clean.shape
        assert case.limits.low <= x.min()
        assert x.max() <= case.limits.high


def _outcome(benchmarks: Any, **changes: Any) -> Any:
    usual = {"score": 1.0, "reached": 2, "samples": 2, "l2": 1.0, "linf": 0.1, "low_frequency": 0.5, "under_blur": 0.2}
    return benchmarks["ablation"].Outcome(**{**usual, **changes})


def test_an_ingredient_is_judged_by_an_interval_over_the_problems(benchmarks: Any) -> None:
    ablation, whole = benchmarks["ablation"], _outcome(benchmarks)
    longer = [(_outcome(benchmarks, l2=length), whole) for length in (1.2, 1.25, 1.3)]
    middle, low, high = ablation.ratio(longer, "l2")
    assert middle == pytest.approx((1.2 * 1.25 * 1.3) ** (1 / 3))
    assert 1.1 < low < middle < high < 1.4
    assert ablation.sentence("no momentum", longer) == "- **Momentum**: the change is 24.9 % longer without it."
    either = [(_outcome(benchmarks, l2=length), whole) for length in (0.9, 1.1)]
    assert "no difference in length is shown (-0.5 % without it)" in ablation.sentence("no momentum", either)
    missed = [*longer, (_outcome(benchmarks, reached=0, l2=0.1), whole)]
    assert ablation.ratio(missed, "l2") == ablation.ratio(longer, "l2")
    assert "without it 2 slices fewer reach the goal" in ablation.sentence("no momentum", missed)


def test_every_ingredient_can_be_taken_out(benchmarks: Any) -> None:
    ablation = benchmarks["ablation"]
    for method in ("mafl-paper", "mafl"):
        whole, *rest = [preset(task.preset, **task.settings) for _, task in ablation.tasks(["a"], method, 4)]
        assert whole == preset(method)
        assert all(config != whole for config in rest)
        assert len({config_hash(config) for config in rest}) == len(rest)
    (_, task), *_, (_, last) = ablation.tasks(["sample:hole"], "mafl-paper", 3)
    assert ablation.solve(task, None).samples == ablation.solve(last, None).samples == 2


def test_the_page_of_planted_networks_counts_what_came_of_them(benchmarks: dict[str, ModuleType]) -> None:
    planted = benchmarks["planted"]
    found = [
        ("a", False, "waves", planted.Outcome("broken", 1.02, "straight through (slope)", 0)),
        ("b", False, "waves", planted.Outcome("refused", float("nan"), "it says why", 0)),
        ("a", True, "blur", planted.Outcome("dear", 2.5, "exact", 0)),
        ("b", True, "blur", planted.Outcome("broken", 1.0, "exact (dead)", 0)),
    ]
    page = planted.page(found, "python benchmarks/planted.py")
    assert "1 broken, 0 dear, 0 inconclusive, 1 refused, 0 passed" in page
    assert "2 attacks on honest ones: 1 with an alarm" in page
    assert "In 2 of the 2 the network draws the clean scan as the one inside does" in page
    assert "1 are broken, at 1.02 times its L2 or less" in page
    assert "| waves | broken, 1.02, straight through (slope) | refused |" in page
    assert "| blur | dear, 2.50, exact | broken, 1.00, exact (dead) |" in page


def test_visibility_counts_what_is_lower_what_is_higher_and_what_no_compression_reaches(benchmarks: Any) -> None:
    def outcome(d_prime: float | None, haarpsi: float, by_d: float, score: float = 1.0) -> dict[str, Any]:
        return {
            "score": score, "l2": 2.0, "linf": 1.0, "d_prime": d_prime, "equivalent": max(haarpsi, by_d),
            "equivalent_haarpsi": haarpsi, "equivalent_d_prime": by_d, "seconds": 1.0,
        }  # fmt: skip

    pairs = [
        (outcome(100.0, 20.0, 40.0), outcome(50.0, 30.0, 20.0)),
        (outcome(200.0, 20.0, 10.0), outcome(150.0, 40.0, 10.0, score=0.9)),
        (outcome(900.0, 50.0, 100.0), outcome(400.0, 60.0, 100.0)),
        (outcome(None, 20.0, 10.0), outcome(None, 10.0, 10.0)),
    ]
    rows = [
        {"case": "a", "slice": place, "volume": False, "l2": one, "visibility": two}
        for place, (one, two) in enumerate(pairs)
    ]
    document = {"command": "c", "torch": "2", "minimise": "visibility", "rows": rows}
    text = benchmarks["visible_section"].visibility(document)
    assert "| at the goal | 3 of 4, with L2 4 |" in text
    assert "| d' on average ≥ 30 % lower | 44 % PASS |" in text
    assert "| compression equivalent lower in ≥ 90 % | 50 % **MISS** |" in text
    assert "lower in 2 of 4, beyond 100:1 both times in 1, higher in 1; × 0.93 |" in text
    assert "| the same by HaarPSI alone | lower in 1 of 4; × 1.16 |" in text
    assert "| a, 3 | 1.0000 → 1.0000 | 2.00 → 2.00 | – → – | 20.0 → 10.0 | 20.0 → 10.0 | 10.0 → 10.0 |" in text
    assert "### Volumes" not in text
