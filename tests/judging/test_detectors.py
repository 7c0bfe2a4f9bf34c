"""Detectors: scores by hand of made scans, the ROC over cases, what is unknown with one case, and command-line runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Blobs, Threshold, mafl, scan_array
from evaluations import require_fits
from judged import case, detected, judged
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from mafl_cli.codes import Reason
from mafl_cli.judging import detectors, gates, robustness_card, terminal
from mafl_cli.measure.roc import area_interval
from mafl_cli.measure.value import defined, undefined
from mafl_cli.results.detection_report import Roc, Scores
from mafl_cli.results.quantities import EVALUATED
from mafl_cli.system import records


def roc(*cases: Sequence[tuple[float, float]]) -> Roc:
    """cases: (clean, adversarial) of each slice."""
    return detectors.roc(
        "entropy", [[Scores(slice=None, clean=a, adversarial=b) for a, b in slices] for slices in cases]
    )


def test_all_slices_of_all_cases_make_one_curve() -> None:
    found = roc([(0.0, 0.5), (0.5, 1.0)], [(0.1, 0.2)])
    assert (found.cases, found.n) == (2, 3)
    # Of 9 pairs 7 are in order and 1 is a tie.
    assert found.auc.value == pytest.approx((7 + 0.5) / 9)
    records.to_json(found)


def test_slices_of_a_scan_count_once_in_the_interval() -> None:
    two = [[(0.1, 0.9)] * 40, [(0.2, 0.8)] * 40]
    assert roc(*two).ci95 == area_interval(1.0, 2)
    assert roc(*two, []).ci95 == area_interval(1.0, 2)


def test_a_single_case_says_nothing_of_others() -> None:
    found = roc([(0.1, 0.9)] * 40)
    assert found.auc == defined(1.0)
    assert found.ci95 is None


def test_one_false_alarm_in_twenty_is_allowed_and_fewer_scans_are_too_few() -> None:
    clean = [0.9] + [0.1] * 19
    assert roc([(each, 0.5) for each in clean]).tpr_at_5_percent_fpr == defined(1.0)
    assert roc([(each, 0.5) for each in [0.9, *clean[:-1]]]).tpr_at_5_percent_fpr == defined(0.0)
    assert roc([(each, 0.5) for each in clean[1:]]).tpr_at_5_percent_fpr == undefined(Reason.FEW_SAMPLES)


def test_without_samples_nothing_is_known() -> None:
    found = roc([], [])
    assert (found.cases, found.n, found.ci95) == (0, 0, None)
    assert found.auc == found.tpr_at_5_percent_fpr == undefined(Reason.NO_CHANGED_SAMPLE)


def test_gates_know_the_area_of_each_detector_of_a_case() -> None:
    told = case("told", detection=detected((0.1, 0.8), (0.2, 0.9)))
    hidden = case("hidden", detection=detected((0.8, 0.1), (0.9, 0.2)))
    for name in ("blur_auc", "entropy_auc", "margin_auc"):
        assert EVALUATED[name].of_evaluation(told) == defined(1.0)
        assert gates.judge(gates.parse(f"{name} < 0.8"), [told]).status == "pass"
        found = gates.judge(gates.parse(f"{name} < 0.8"), [told, hidden])
        assert (found.status, found.observed) == ("fail", 0.0)


def test_a_gate_on_a_detector_that_was_not_asked_fails() -> None:
    found = gates.judge(gates.parse("entropy_auc < 0.8"), [case()])
    assert found.status == "fail"
    assert "needs the detectors" in found.reason
    assert "entropy_auc" not in judged([case()]).aggregate.figures


def test_card_and_terminal_have_a_line_for_each_detector() -> None:
    one = judged([case("one", detection=detected((0.1, 0.8), (0.2, 0.9)))])
    lines = [line for line in terminal.terminal(one).splitlines() if line.split()[:1] in (["entropy"], ["margin"])]
    assert [line.split() for line in lines] == [
        [name, "1.0000", "unknown:", "one", "case", "-", "2", "1"] for name in ("entropy", "margin")
    ]
    both = judged([case(name, detection=detected((0.1, 0.8), (0.2, 0.9))) for name in ("one", "two")])
    low, high = area_interval(1.0, 2)
    for name, score in detectors.SCORES.items():
        row = f"| {name} | {score} | 2 | 4 | 1.0000 | {low:.3f} to {high:.3f} | - |"
        assert row in robustness_card.card(both)


# --- the command --------------------------------------------------------------------------------------------------


class Probable(nn.Module):
    """A network that gives probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Threshold(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.inner(x), dim=1)


class Darker(nn.Module):
    """A network like `Threshold`, for which a little less is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Threshold(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - 0.1)


def scan(folder: Path, name: str, data: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data, np.diag([-2.0, 2, -3, 1])), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def detect(folder: Path, clean: np.ndarray, *more: object) -> dict[str, Any]:
    """What the command says of a scan of which slices 1 and 4 were changed."""
    changed = clean.copy()
    changed[8:15, 6:11, [1, 4]] -= np.float32(0.3)
    mask = scan(folder, "mask", (changed > 0.5).astype(np.uint8))
    result = mafl(
        "evaluate", "--original", scan(folder, "clean", clean), "--adversarial", scan(folder, "changed", changed),
        "--target", mask, "--detect", "--json", "-", *more,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    require_fits(found)
    return found


def by_hand(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Entropy and 1 - margin of each sample, as shares, where what is not background counts by its probability.

    logits: (B, K, ...), or of regions (B, R, ...) as probabilities of two classes each.
    """
    chances = logits.detach().double().softmax(dim=1).numpy()
    share = 1 - chances[:, 0]
    ordered = np.sort(chances, axis=1)
    entropy = -(chances * np.log(chances)).sum(axis=1) / np.log(chances.shape[1])
    axes = tuple(range(1, share.ndim))
    parts = (entropy, 1 - ordered[:, -1] + ordered[:, -2])
    one, other = ((part * share).sum(axis=axes) / share.sum(axis=axes) for part in parts)
    return one, other


def told(found: dict[str, Any], name: str) -> list[tuple[int | None, float]]:
    """Slice and score of the clean scan, by a detector."""
    (detection,) = (each for each in found["cases"][0]["detection"] if each["detector"] == name)
    return [(sample["slice"], sample["clean"]) for sample in detection["samples"]]


def check(found: dict[str, Any], entropy: np.ndarray, margin: np.ndarray, slices: Sequence[int | None]) -> None:
    for name, scores in (("entropy", entropy), ("margin", margin)):
        said = told(found, name)
        assert [number for number, _ in said] == list(slices)
        wanted = [float(scores[number or 0]) for number in slices]
        assert [score for _, score in said] == pytest.approx(wanted, abs=2e-6)
    assert [each["detector"] for each in found["detection"]] == list(found["trials"]["detectors"])
    assert {(each["cases"], each["n"]) for each in found["detection"]} == {(1, len(slices))}


@pytest.mark.parametrize("orientation", ["native", "LPI"])
def test_slices_are_scored_in_the_order_of_the_file(tmp_path: Path, orientation: str) -> None:
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    clean = scan_array()
    found = detect(tmp_path, clean, "--model", tmp_path / "model.ts", "--orientation", orientation)
    check(found, *by_hand(Threshold(2)(torch.from_numpy(np.moveaxis(clean, 2, 0))[:, None])), [1, 4])


def test_probabilities_alone_are_enough(tmp_path: Path) -> None:
    torch.jit.script(Probable()).save(tmp_path / "model.ts")
    clean = scan_array()
    found = detect(tmp_path, clean, "--model", tmp_path / "model.ts")
    check(found, *by_hand(Threshold(2)(torch.from_numpy(np.moveaxis(clean, 2, 0))[:, None])), [1, 4])


def test_an_ensemble_is_one_model(tmp_path: Path) -> None:
    for name, model in (("one", Threshold(2)), ("two", Darker())):
        torch.jit.script(model).save(tmp_path / f"{name}.ts")
    clean = scan_array()
    found = detect(
        tmp_path, clean, "--model", tmp_path / "one.ts", "--model", tmp_path / "two.ts", "--ensemble", "mean"
    )
    batch = torch.from_numpy(np.moveaxis(clean, 2, 0))[:, None]
    check(found, *by_hand((Threshold(2)(batch) + Darker()(batch)) / 2), [1, 4])


def test_a_volume_has_one_score_through_windows_too(tmp_path: Path) -> None:
    torch.jit.script(Threshold(3)).save(tmp_path / "model.ts")
    clean = scan_array((24, 20, 12))
    found = detect(tmp_path, clean, "--model", tmp_path / "model.ts", "--mode", "3d", "--roi", "8,8,8")
    logits = sliding_window_inference(
        torch.from_numpy(clean)[None, None], (8, 8, 8), 4, Threshold(3), 0.5, mode="gaussian", sigma_scale=0.125
    )
    check(found, *by_hand(logits), [None])


def test_regions_that_overlap_are_scored_together(tmp_path: Path) -> None:
    net = Blobs(2, [[1.0], [1.0]], [0.5, 0.7])
    torch.jit.script(net).save(tmp_path / "model.ts")
    (tmp_path / "model.toml").write_text('[output]\nactivation = "sigmoid"\nclasses = ["whole", "core"]\n')
    clean = scan_array()
    found = detect(tmp_path, clean, "--model", tmp_path / "model.ts")
    each = net(torch.from_numpy(np.moveaxis(clean, 2, 0))[:, None])
    check(found, *by_hand(torch.stack([torch.zeros_like(each), each], dim=1)), [1, 4])
