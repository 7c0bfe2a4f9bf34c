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

from mafl_cli import transforms
from mafl_cli.gates import FIGURES

DOCS = Path(__file__).resolve().parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


def test_every_figure_and_transform_is_explained() -> None:
    text = (DOCS / "evaluate.md").read_text(encoding="utf-8")
    for name, figure in FIGURES.items():
        assert f"| `{name}` | {figure.meaning}{', ' + figure.unit if figure.unit else ''} |" in text
    assert all(f"`{kind}`" in text for kind in transforms.KINDS)


def github(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["jobs"]["mafl"]["steps"] if "run" in step]


def gitlab(job: dict[str, Any]) -> list[str]:
    return [*job["robustness"]["before_script"], *job["robustness"]["script"]]


@pytest.mark.parametrize(
    ("number", "commands", "fragile", "code"),
    [(0, github, True, 5), (0, github, False, 0), (1, gitlab, False, 0)],
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
    for name in ("one", "two"):
        nib.save(nib.Nifti1Image(scan, np.eye(4)), scans / f"{name}.nii.gz")
    (tmp_path / "gates.toml").write_text(blocks("ci.md", "toml")[0])
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")

    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "mafl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mafl_cli "$@"\n')
    (folder / "mafl").chmod(0o755)
    root = str(DOCS.parent)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    lines = [line for line in commands(yaml.safe_load(blocks("ci.md", "yaml")[number])) if not line.startswith("pip ")]
    assert len(lines) >= 2
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code, ended.stderr
    assert ("gates failed" in ended.stderr) is fragile
    assert "# Robustness of model.ts" in (tmp_path / "robustness.md").read_text()
    assert (tmp_path / "robustness.xml").is_file()
