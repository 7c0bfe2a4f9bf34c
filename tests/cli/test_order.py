"""What commands check and write first: wrong options before any file is read, files before lines about cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array

from mafl_cli.batch import batch
from mafl_cli.case.request import AttackRequest
from mafl_cli.cli.console import Voice
from mafl_cli.scans.formats import read_scan

WRONG = [
    (["--orientation", "up"], "orientation"),
    (["--intensity", "zebra"], "intensity"),
    (["--spacing", "1,0"], "spacing"),
    (["--roi", "8.5,8"], "roi"),
    (["--overlap", "1"], "overlap"),
]


@pytest.mark.parametrize(("options", "said"), [*WRONG, (["--tap", "x:0"], "tap"), (["--label-map", "a"], "label-map")])
def test_a_wrong_option_of_an_attack_is_said_before_a_file_is_missed(options: list[str], said: str) -> None:
    ended = mafl("attack", "nowhere.nii.gz", "-t", "no_mask.nii.gz", "-m", "no_model.ts", *options)
    assert ended.exit_code == 2
    assert said in ended.stderr
    assert "nowhere" not in ended.stderr


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_a_wrong_option_of_an_evaluation_is_said_before_a_file_is_missed(options: list[str], said: str) -> None:
    ended = mafl("evaluate", "nowhere", *options)
    assert ended.exit_code == 2
    assert said in ended.stderr
    assert "nowhere" not in ended.stderr


def test_an_option_of_one_scan_is_missed_before_a_model_is_named() -> None:
    ended = mafl("attack", "-t", "erase:1")
    assert ended.exit_code == 2
    assert ended.stderr.startswith("mafl: no scan")


def test_an_evaluation_is_written_before_its_cases_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    mask = np.zeros(scan_array().shape, np.uint8)
    for name, array in (("clean", scan_array()), ("changed", scan_array()), ("mask", mask)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    report = tmp_path / "report.json"
    there: dict[str, bool] = {}
    monkeypatch.setattr(Voice, "say", lambda self, line, **facts: there.setdefault(line, report.exists()))
    ended = mafl(
        "evaluate", "--original", tmp_path / "clean.nii.gz", "--adversarial", tmp_path / "changed.nii.gz", "--target",
        tmp_path / "mask.nii.gz", "--model", tmp_path / "model.ts", "--json", report,
    )  # fmt: skip
    assert ended.exit_code == 0, ended.stderr
    told = [seen for line, seen in there.items() if line.startswith("clean: ")]
    assert told
    assert all(told), there


def test_a_scan_that_was_read_already_does_not_change_what_a_batch_is_known_by(tmp_path: Path) -> None:
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    nib.save(nib.Nifti1Image(scan_array(), np.eye(4)), tmp_path / "scan.nii.gz")
    request = AttackRequest(images=(tmp_path / "scan.nii.gz",), out=tmp_path / "out", model=tmp_path / "model.ts")
    known = batch.request_hash(request)
    assert batch.request_hash(replace(request, volumes=(read_scan(tmp_path / "scan.nii.gz"),))) == known
