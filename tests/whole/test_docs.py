"""What the documents say is true: commands run, and what they list is all there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from commands import Threshold, scan_array

from mafl_cli.field import transforms
from mafl_cli.results.quantities import EVALUATED

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


def test_every_figure_and_transform_is_explained() -> None:
    text = (DOCS / "evaluate.md").read_text(encoding="utf-8")
    for name, figure in EVALUATED.items():
        said = f"{figure.meaning}{', ' + figure.unit if figure.unit else ''}"
        assert f"| `{name}` | {said} | {figure.range} |" in text
    assert all(f"`{kind}`" in text for kind in transforms.KINDS)


def github(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["jobs"]["mafl"]["steps"] if "run" in step]


def gitlab(job: dict[str, Any]) -> list[str]:
    return [*job["robustness"]["before_script"], *job["robustness"]["script"]]


def run_shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a CI job or a batch system would, with this mafl on the path."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    (place / "mafl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mafl_cli "$@"\n')
    (place / "mafl").chmod(0o755)
    whole = {
        **os.environ, "PATH": f"{place}:{os.environ['PATH']}", "PYTHONPATH": str(DOCS.parent), "OMP_NUM_THREADS": "1",
        **environment,
    }  # fmt: skip
    command = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=whole, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("number", "commands", "fragile", "code"),
    [(0, github, True, 5), pytest.param(0, github, False, 0, marks=pytest.mark.slow), (1, gitlab, False, 0)],
    ids=["github fails", "github passes", "gitlab passes"],
)
def test_the_jobs_of_the_ci_page_run_and_give_a_verdict(
    tmp_path: Path, number: int, commands: Any, fragile: bool, code: int
) -> None:
    scans = tmp_path / "robustness" / "scans"
    scans.mkdir(parents=True)
    scan = scan_array()
    # Just above the border, or far from it.
    scan = np.where(scan > 0.5, 0.51 if fragile else 0.95, 0.1).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, np.eye(4)), scans / "one.nii.gz")
    (tmp_path / "gates.toml").write_text(blocks("ci.md", "toml")[0])
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")

    lines = [line for line in commands(yaml.safe_load(blocks("ci.md", "yaml")[number])) if not line.startswith("pip ")]
    assert len(lines) >= 2
    ended = run_shell("\n".join(lines), tmp_path)
    assert ended.returncode == code, ended.stderr
    assert ("gates failed" in ended.stderr) is fragile
    assert "# Robustness of model.ts" in (tmp_path / "robustness.md").read_text()
    assert (tmp_path / "robustness.xml").is_file()


def test_the_slurm_array_of_the_scale_page_runs(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for number in range(2):
        nib.save(
            nib.Nifti1Image(np.roll(scan_array(), number, axis=1), np.eye(4)), tmp_path / "scans" / f"{number}.nii.gz"
        )
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    (script,) = blocks("scale.md", "bash")
    for task in range(2):
        array = {
            f"SLURM_ARRAY_TASK_{key}": str(value) for key, value in {"ID": task, "MIN": 0, "MAX": 1, "STEP": 1}.items()
        }
        ended = run_shell(script, tmp_path, **array)
        assert ended.returncode == 0, ended.stderr
    rows = (tmp_path / "runs" / "night" / "cases.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [["0", "ok"], ["1", "ok"]]
