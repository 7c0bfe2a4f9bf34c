"""Attacks that survive what happens to scans on their way, judged by the transforms of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array

from mafl_cli.case.surviving import Aimed, left_after
from mafl_cli.classes import Classes
from mafl_cli.field.transforms import parse

MADE_FOR = "blur:1,resample:1.5,jpeg:90"


@pytest.fixture(scope="module", params=[2, 3])
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    scan = scan_array()
    nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / "scan.nii.gz")
    nib.save(nib.Nifti1Image(np.roll(scan > 0.5, 2, axis=0).astype(np.uint8), np.eye(4)), folder / "mask.nii.gz")
    torch.manual_seed(0)
    torch.jit.script(Threshold(request.param)).save(folder / "model.ts")
    return folder


def attack(work: Path, out: str, *more: object) -> Any:
    result = mafl(
        "attack",
        work / "scan.nii.gz",
        "-t",
        work / "mask.nii.gz",
        "-m",
        work / "model.ts",
        "-o",
        work / out,
        "--goal-iou",
        0.9,
        "--goal-hit",
        0.95,
        *more,
    )
    assert result.exit_code == 0, result.stderr
    return result, json.loads((work / out / "report.json").read_text())["cases"][0]


def test_a_change_survives_what_it_was_made_for_and_the_plain_one_does_not(work: Path) -> None:
    result, case = attack(work, "made", "--survive", MADE_FOR)
    left = case["metrics"]["survival"]
    assert [each["transform"] for each in left] == MADE_FOR.split(",")
    assert all(each["goal_reached"] for each in left)
    assert min(each["adversarial"]["hit_rate"]["value"] for each in left) >= 0.95
    assert "survives      3 of 3 transforms at the goal; hit rate after blur:1 " in result.stdout
    # A pass of the search is one for the scan, one for each transform, and one for a neighbour of them.
    assert case["attack"]["passes"]["forward"] % 5 == 0

    _, plain = attack(work, "plain")
    assert "survival" not in plain["metrics"]
    judged = {}
    for run in ("made", "plain"):
        out = work / f"{run}.json"
        asked = [part for name in MADE_FOR.split(",") for part in ("--transform", name)]
        assert mafl("evaluate", work / run, "-m", work / "model.ts", *asked, "--json", out).exit_code == 0
        judged[run] = json.loads(out.read_text())["cases"][0]["survival"]
    assert judged["made"] == left
    assert not any(each["goal_reached"] for each in judged["plain"])
    assert plain["metrics"]["size"]["l2"]["native"] < case["metrics"]["size"]["l2"]["native"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("blur:-1", "`survive`"),
        ("fog:1", "is not known: use all, blur"),
        ("", "is not known"),
    ],
)
def test_transforms_that_are_not_known_are_one_sentence(work: Path, asked: str, said: str) -> None:
    result = mafl(
        "attack", work / "scan.nii.gz", "-t", work / "mask.nii.gz", "-m", work / "model.ts", "-o", work / "none",
        "--survive", asked,
    )  # fmt: skip
    assert result.exit_code == 2
    assert said.replace("`survive`", "--survive") in " ".join(result.stderr.split())
    assert not (work / "none").exists()


def test_what_a_transform_does_by_itself_is_not_asked_of_the_change() -> None:
    clean = np.zeros((1, 6, 5, 4), np.uint8)
    clean[0, 2:4] = 1
    target = clean.copy()
    target[0, 0] = 1
    after_clean = clean.copy()
    after_clean[0, 3] = 0
    after = after_clean.copy()
    after[0, 0] = 1
    aimed = Aimed(target, clean, Classes(("background", "organ")))
    (transform,) = parse(["blur:1"])
    assert left_after(transform, after_clean, after, aimed, (0.99, 0.99)).goal_reached
    after[0, 0, 0] = 0
    found = left_after(transform, after_clean, after, aimed, (0.99, 0.99))
    assert not found.goal_reached
    assert found.adversarial.hit_rate.value == pytest.approx(0.8)
