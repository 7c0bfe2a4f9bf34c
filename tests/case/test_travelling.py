"""`mafl attack --transfer`: how long the change is, what it costs, and what other models make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import mafl, scan_array
from torch import Tensor, nn


class Deep(nn.Module):
    """A network with a way down and up."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.fine(x))
        up = torch.relu(self.up(torch.relu(self.coarse(fine))))
        out: Tensor = self.head(torch.cat([fine, up], dim=1))
        lead = 8 * (x[:, 0] - 0.5)
        return out * 0.3 + torch.stack([-lead, lead], dim=1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    scan = scan_array((24, 20, 3))
    nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / "scan.nii.gz")
    nib.save(nib.Nifti1Image(np.roll(scan > 0.5, 2, axis=0).astype(np.uint8), np.eye(4)), folder / "mask.nii.gz")
    for seed, name in enumerate(("one", "two", "other")):
        torch.manual_seed(seed)
        torch.jit.trace(Deep().eval(), torch.zeros(1, 1, 24, 20)).save(folder / f"{name}.ts")
        lines = "[input]\ndims = 2\ndivisor = 2\n" + ("intensity = { kind = 'minmax' }\n" if name == "two" else "")
        (folder / f"{name}.toml").write_text(lines)
    return folder


def attack(work: Path, out: str, *more: object, models: tuple[str, ...] = ("one",)) -> Any:
    named = [part for name in models for part in ("-m", work / f"{name}.ts")]
    result = mafl(
        "attack", work / "scan.nii.gz", "-t", work / "mask.nii.gz", *named, "-o", work / out, "--steps", 40, *more
    )
    assert result.exit_code == 0, result.stderr
    return json.loads((work / out / "report.json").read_text())


def transferred(work: Path, out: str) -> float:
    told = mafl("evaluate", work / out, "-m", work / "one.ts", "-m", work / "other.ts", "--json", "-")
    assert told.exit_code == 0, told.stderr
    (case,) = json.loads(told.stdout)["cases"]
    rate: float = case["transfer"][0]["adversarial"]["hit_rate"]["value"]
    return rate


def test_the_change_is_as_much_longer_as_asked_for_and_fools_another_model_more(work: Path) -> None:
    short, long = attack(work, "short"), attack(work, "long", "--transfer", 2)
    lengths = [each["cases"][0]["metrics"]["size"]["l2"]["model"] for each in (short, long)]
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.02)
    assert long["run"]["settings"]["transfer"] == 2
    assert short["run"]["settings"]["transfer"] is None
    assert transferred(work, "long") > transferred(work, "short")
    assert long["cases"][0]["attack"]["passes"]["forward"] > short["cases"][0]["attack"]["passes"]["forward"]


def test_members_of_an_ensemble_are_surrogates_each_with_its_own_intensity(work: Path) -> None:
    found = attack(work, "both", "--ensemble", "mean", "--transfer", 2, models=("one", "two"))
    assert found["cases"][0]["metrics"]["size"]["l2"]["model"] > 0
    again = attack(work, "again", "--ensemble", "mean", "--transfer", 2, models=("one", "two"))
    assert found["cases"][0]["metrics"]["size"] == again["cases"][0]["metrics"]["size"]


@pytest.mark.parametrize("other", [("--eps", 0.1), ("--survive", "blur:1"), ("--method", "worst")])
def test_what_also_sets_the_length_is_refused(work: Path, other: tuple[object, ...]) -> None:
    result = mafl(
        "attack", work / "scan.nii.gz", "-t", work / "mask.nii.gz", "-m", work / "one.ts", "-o", work / "none",
        "--transfer", 2, *other,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "--transfer sets the length of the change by itself" in " ".join(result.stderr.split())
