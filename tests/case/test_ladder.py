"""The sanity ladder: more steps and larger changes reach no less, and where they do the attack is in doubt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from torch import Tensor, nn

from mafl_cli.codes import Alarm
from mafl_cli.results import report
from mafl_cli.results.trust_report import Rung
from mafl_cli.trust import ladder


class Cut(nn.Module):
    """A network whose upper half answers to nothing: no change at all makes it draw a target there."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Threshold(2)
        self.lower = nn.Parameter((torch.arange(24) >= 12).float().view(1, 1, 24, 1))
        self.upper = nn.Parameter((1 - self.lower) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.inner(x)
        return self.lower * answer + self.upper


def rung(more: Any, *scores: float, reached: int = 0) -> Rung:
    return Rung(
        more=more, steps=10, eps=None, eps_unit=None, norm=None, score=scores, reached=reached,
        l2_model=(1.0,) * len(scores), broken=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rungs", "broken"),
    [
        ([rung("steps", 0.2, 0.5), rung("steps", 0.4, 0.46), rung("steps", 1.0, 1.0)], []),
        ([rung("steps", 0.2, 0.9), rung("steps", 0.4, 0.8)], [1]),
        ([rung("steps", 1.0), rung("change", 0.2), rung("change", 0.3)], []),
        ([rung("change", 0.2), rung("change", 0.9), rung("change", 0.1)], [2]),
        ([rung("change", -0.5), rung("change", -0.9)], []),
        ([rung("no_limit", 0.99, 0.98, reached=1)], [0]),
        ([rung("no_limit", 0.99, 0.99, reached=2)], []),
    ],
)
def test_a_rung_is_broken_where_more_reaches_less(rungs: list[Rung], broken: list[int]) -> None:
    judged = ladder.judged(range(2), rungs)
    assert [number for number, each in enumerate(judged.rungs) if each.broken] == broken
    assert [alarm.code for alarm in ladder.broken_rungs(judged)] == [Alarm.LADDER] * bool(broken)


def test_the_alarm_says_what_more_of_did_not_help() -> None:
    judged = ladder.judged([0], [rung("change", 0.9), rung("change", 0.1), rung("no_limit", 0.2)])
    (alarm,) = ladder.broken_rungs(judged)
    assert alarm.sentence == "the attack reaches less with more (a larger change, no limit)"
    assert ladder.broken_rungs(None) == ()


# --- from files to files ------------------------------------------------------------------------------------------


def climbed(folder: Path, network: nn.Module, *more: object) -> tuple[dict[str, Any], str]:
    """The report of an attack with a ladder, and what was said."""
    nib.save(nib.Nifti1Image(scan_array(), np.eye(4)), folder / "scan.nii.gz")
    mask = np.roll(scan_array() > 0.5, 2, axis=0).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / "mask.nii.gz")
    torch.jit.trace(network.eval(), torch.zeros(1, 1, 24, 20)).save(folder / "model.ts")
    result = mafl(
        "attack", folder / "scan.nii.gz", "-t", folder / "mask.nii.gz", "--model", folder / "model.ts",
        "-o", folder / "out", "--device", "cpu", "--steps", 30, "--ladder", *more,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    done: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    jsonschema.Draft202012Validator(json.loads(report.SCHEMA.read_text())).validate(done)
    assert done["run"]["settings"]["ladder"] is True
    return done["cases"][0]["attack"]["trust"], result.stdout


@pytest.mark.parametrize("options", [(), ("--eps", 0.2)])
def test_an_honest_network_breaks_no_rung(tmp_path: Path, options: tuple[object, ...]) -> None:
    trust, _ = climbed(tmp_path, Threshold(2), *options)
    assert trust["verdict"] == "clean"
    rungs = trust["ladder"]["rungs"]
    assert not any(each["broken"] for each in rungs)
    kinds = [each["more"] for each in rungs]
    assert kinds == ["steps"] * 3 + ["change"] * 4 + ["no_limit"] * bool(options)
    assert 1 <= len(trust["ladder"]["samples"]) <= 4
    assert all(len(each["score"]) == len(trust["ladder"]["samples"]) for each in rungs)
    sizes = [each["eps"] for each in rungs if each["more"] == "change"]
    assert sizes == sorted(sizes)


def test_a_network_that_cannot_draw_the_target_breaks_the_rung_without_a_limit(tmp_path: Path) -> None:
    trust, said = climbed(tmp_path, Cut(), "--eps", 0.3)
    assert "ladder" in [alarm["code"] for alarm in trust["alarms"]]
    assert [each["more"] for each in trust["ladder"]["rungs"] if each["broken"]] == ["no_limit"]
    assert trust["verdict"] == "alarm"
    assert "doubtful" in said
    judged = mafl("evaluate", tmp_path / "out", "--model", tmp_path / "model.ts", "--fail-if", "target_iou > 0.99")
    assert judged.exit_code == 5
    assert "inconclusive" in (judged.stdout + judged.stderr).lower()
