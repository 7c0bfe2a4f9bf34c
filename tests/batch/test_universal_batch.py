"""One change for many scans, from the command line: made on some, judged on others, on the files as written."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from typer.testing import Result

from mafl_cli.results import universal_report

EPS = 0.45


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scans/ of c0 to c5, c4 between the voxels of the others, c5 far away; and a model."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "scans").mkdir()
    for number in range(6):
        affine = np.eye(4)
        affine[:3, 3] = {4: (0.5, 0.25, 0.2), 5: (500, 0, 0)}.get(number, (0, 0, 0))
        scan = np.roll(scan_array((18, 16, 3)), number % 3, axis=1)
        nib.save(nib.Nifti1Image(scan, affine), folder / "scans" / f"c{number}.nii.gz")
    torch.jit.script(Threshold(2)).save(folder / "model.ts")
    return folder


def attack(data: Path, out: Path, *more: object) -> Result:
    return mafl(
        *("attack", data / "scans", "--target", "erase:1", "--model", data / "model.ts", "-o", out, "--device", "cpu"),
        *("--universal", "--steps", 8),
        *more,
    )


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("run") / "out"
    return out, attack(data, out, "--eps", EPS, "--holdout", "c1,c4")


def test_what_it_does_is_said_for_scans_it_was_made_on_and_for_others(run: tuple[Path, Result]) -> None:
    out, result = run
    said = json.loads((out / "universal.json").read_text())
    jsonschema.validate(said, json.loads(universal_report.SCHEMA.read_text()))
    assert {case["case_id"]: case["role"] for case in said["cases"]} == {
        "c0": "made_on", "c1": "held_out", "c2": "made_on", "c3": "made_on", "c4": "held_out", "c5": "made_on",
    }  # fmt: skip
    assert said["made_on"]["cases"] == 4
    assert said["made_on"]["failed"] == 1
    assert said["made_on"]["hit_rate"] > 0.9
    assert said["held_out"]["hit_rate"] > 0.7
    lines = result.stdout.splitlines()
    assert lines[0].startswith("one change for 5 scans, linf at most 0.45 model units")
    assert lines[1].startswith(f"  made on       hit rate {said['made_on']['hit_rate']:.4f}")
    assert lines[2].startswith(f"  held out      hit rate {said['held_out']['hit_rate']:.4f}")


def test_a_scan_that_lies_elsewhere_fails_alone(run: tuple[Path, Result]) -> None:
    out, result = run
    assert result.exit_code == 6
    assert (out / "failed.txt").read_text().startswith("c5\tc5.nii.gz does not overlap c0, whose grid")
    assert not (out / "c5" / "report.json").exists()


def test_every_scan_got_the_one_change_that_is_written(data: Path, run: tuple[Path, Result]) -> None:
    out, _ = run
    change = np.asarray(nib.load(out / "universal.nii.gz").dataobj)
    assert 0 < np.abs(change).max() <= EPS + 1e-6
    for name in ("c0", "c1", "c2"):
        clean, after = (np.asarray(nib.load(file).dataobj) for file in (
            data / "scans" / f"{name}.nii.gz", out / name / "adversarial.nii.gz",
        ))  # fmt: skip
        assert np.allclose(after, np.clip(clean + change, clean.min(), clean.max()), atol=1e-6)


def test_the_report_of_each_scan_says_that_the_change_is_shared(run: tuple[Path, Result]) -> None:
    out, _ = run
    said = {case["case_id"]: case for case in json.loads((out / "universal.json").read_text())["cases"]}
    for name, role in (("c0", "made_on"), ("c1", "held_out")):
        report = json.loads((out / name / "report.json").read_text())
        assert report["run"]["settings"]["universal"] == role
        assert report["cases"][0]["metrics"]["post_write"]["hit_rate"]["value"] == said[name]["hit_rate"]
        assert report["cases"][0]["attack"]["trust"]["verdict"] == "unchecked"
    assert [said[name]["resampled"] for name in ("c0", "c1", "c4")] == [False, False, True]


def test_the_same_command_gives_the_same_change(data: Path, run: tuple[Path, Result], tmp_path: Path) -> None:
    attack(data, tmp_path / "again", "--eps", EPS, "--holdout", "c1,c4")
    assert (tmp_path / "again" / "universal.nii.gz").read_bytes() == (run[0] / "universal.nii.gz").read_bytes()


def test_a_limit_in_noise_is_that_of_each_scan(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = attack(data, out, "--eps-noise", 2, "--holdout", "c1,c4,c5", "--steps", 2)
    assert result.exit_code == 6, result.stderr  # c5 lies elsewhere.
    assert result.stdout.startswith("one change for 5 scans, linf at most 2 times the scan's noise")
    for name in ("c0", "c1"):
        bounds = json.loads((out / name / "report.json").read_text())["cases"][0]["bounds"]
        assert bounds["eps_native"][0] == pytest.approx(2 * bounds["noise_sigma_native"][0])
        changed, clean = (
            np.asarray(nib.load(path).dataobj, np.float64)
            for path in (out / name / "adversarial.nii.gz", data / "scans" / f"{name}.nii.gz")
        )
        assert 0 < np.abs(changed - clean).max() <= bounds["eps_native"][0] * (1 + 1e-5)


def test_results_that_are_there_are_not_overwritten_unasked(data: Path, run: tuple[Path, Result]) -> None:
    result = attack(data, run[0], "--eps", EPS)
    assert result.exit_code == 2
    assert "already holds results" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--universal needs a limit: give --eps"),
        (("--eps", 0.1, "--holdout", "c9"), "there is no case 'c9'"),
        (("--eps", 0.1, "--holdout", "1.5"), "--holdout must be a share from 0 to below 1"),
        (("--eps", 0.1, "--holdout", "c0,c1,c2,c3,c4,c5"), "leaves no case to make the change on"),
        (("--eps", 0.1, "--workers", 2), "--workers cannot be used with --universal"),
        (("--eps", 0.1, "--method", "asma"), "which --method asma does not"),
    ],
)
def test_what_cannot_be_asked_of_one_change_is_said(
    data: Path, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    result = attack(data, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_one_scan_alone_and_a_holdout_without_one_change_are_refused(data: Path, tmp_path: Path) -> None:
    alone = ("attack", data / "scans" / "c0.nii.gz", "--target", "erase:1", "--model", data / "model.ts")
    for options, said in ((("--universal", "--eps", 1), "needs several scans"), (("--holdout", 0.5), "is for")):
        result = mafl(*alone, "-o", tmp_path / "out", *options)
        assert result.exit_code == 2
        assert said in result.stderr
