"""Attacks that know the detectors, judged by the detectors on the files that they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Blobs, Threshold, mafl, scan_array


def save(path: Path, data: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    scan = scan_array((24, 20, 6))
    save(folder / "scan.nii.gz", scan)
    save(folder / "mask.nii.gz", np.roll(scan > 0.5, 2, axis=0).astype(np.uint8))
    for dims in (2, 3):
        torch.jit.script(Threshold(dims)).save(folder / f"{dims}.ts")
    return folder


def attack(work: Path, out: str, *more: object) -> Any:
    result = mafl(
        "attack", work / "scan.nii.gz", "-t", work / "mask.nii.gz", "-o", work / out, "--steps", 60,
        "--device", "cpu", *more,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return result, json.loads((work / out / "report.json").read_text())["cases"][0]


def detected(work: Path, out: str, model: Path) -> dict[str, Any]:
    file = work / f"{out}.json"
    assert mafl("evaluate", work / out, "-m", model, "--detect", "--json", file).exit_code == 0
    return {each["detector"]: each["samples"] for each in json.loads(file.read_text())["cases"][0]["detection"]}


def above(samples: list[dict[str, float]]) -> int:
    return sum(each["adversarial"] > each["clean"] for each in samples)


WINDOWS = ("--mode", "3d", "--roi", "8,8,6")


@pytest.mark.parametrize(
    ("asked", "dims", "more"),
    [("entropy", 2, ()), ("all", 2, ()), ("margin", 3, ()), ("entropy", 3, WINDOWS), ("blur", 3, WINDOWS)],
)
def test_a_change_goes_round_the_detector_that_it_knows(
    work: Path, asked: str, dims: int, more: tuple[object, ...]
) -> None:
    model, name = work / f"{dims}.ts", f"{asked}-{dims}-{len(more)}"
    result, case = attack(work, name, "-m", model, "--evade", asked, *more)
    evasion = {each["detector"]: each for each in case["metrics"]["evasion"]}
    assert list(evasion) == ["blur", "entropy", "margin"]
    assert case["attack"]["goal_reached"]
    known = [each for each in evasion if asked in (each, "all")]
    assert [each for each in evasion if evasion[each]["asked"]] == known
    assert [evasion[each]["above"] for each in known] == [0] * len(known)
    count = len(evasion["blur"]["samples"])
    assert f"  evades        {known[0]} {count} of {count}" in result.stdout
    # What the report says is what the detectors of an evaluation say.
    said = detected(work, name, model)
    for each, record in evasion.items():
        assert [sample["slice"] for sample in said[each]] == [sample["slice"] for sample in record["samples"]]
        for side in ("clean", "adversarial"):
            wanted = [sample[side] for sample in record["samples"]]
            assert [sample[side] for sample in said[each]] == pytest.approx(wanted, abs=1e-5)


def test_a_change_that_knows_no_detector_is_found(work: Path) -> None:
    result, case = attack(work, "plain", "-m", work / "2.ts")
    assert "evasion" not in case["metrics"]
    assert "evades" not in result.stdout
    said = detected(work, "plain", work / "2.ts")
    assert all(above(samples) == len(samples) > 0 for samples in said.values())


def test_regions_that_overlap_are_evaded_together(tmp_path: Path) -> None:
    net = Blobs(2, [[1.0], [1.0]], [0.5, 0.7])
    torch.jit.script(net).save(tmp_path / "model.ts")
    (tmp_path / "model.toml").write_text('[output]\nactivation = "sigmoid"\nclasses = ["whole", "core"]\n')
    scan = scan_array()
    save(tmp_path / "scan.nii.gz", scan)
    for name, border in (("whole", 0.5), ("core", 0.7)):
        save(tmp_path / f"{name}.nii.gz", np.roll(scan > border, 2, axis=0).astype(np.uint8))
    result = mafl(
        "attack", tmp_path / "scan.nii.gz", "-t", f"{tmp_path / 'whole.nii.gz'},{tmp_path / 'core.nii.gz'}",
        "-m", tmp_path / "model.ts", "-o", tmp_path / "out", "--steps", 60, "--evade", "all", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    case = json.loads((tmp_path / "out" / "report.json").read_text())["cases"][0]
    assert case["attack"]["goal_reached"]
    assert [each["above"] for each in case["metrics"]["evasion"]] == [0, 0, 0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--evade", "fog"), "'blur', 'entropy', 'margin', 'all'"),
        (("--evade", "all", "--method", "pgd", "--eps", "0.1"), "--evade weighs what a detector says"),
    ],
)
def test_what_cannot_be_evaded_is_one_sentence(work: Path, more: tuple[str, ...], said: str) -> None:
    result = mafl(
        "attack", work / "scan.nii.gz", "-t", work / "mask.nii.gz", "-m", work / "2.ts", "-o", work / "no", *more
    )
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (work / "no").exists()
