"""What is said to Python users is true: the page, the README's three lines, and the notebook run as they stand."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, scan_array

import mafl_cli
from mafl_cli import api

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader has: a network, arrays, and the same as files in the folder."""
    volume = scan_array((16, 12, 3))
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    (tmp_path / "model.toml").write_text("[input]\ndims = 2\nslice_axis = 'k'\n")
    for name, array in (("scan", volume), ("mask", np.zeros(volume.shape, np.uint8))):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    image = np.moveaxis(volume, 2, 0)[:, np.newaxis]
    return {"network": Threshold(2), "image": image, "target": np.zeros((len(image), *image.shape[2:]), np.int64)}


def test_the_page_runs(names: dict[str, Any]) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for block in blocks(ROOT / "docs" / "python.md"):
            exec(block, names)
    lines = said.getvalue().splitlines()
    assert lines[0].startswith("[ True  True  True]")
    assert "True" in lines
    assert "target_iou > 0.5 fail" in said.getvalue()
    assert lines[-1] == "`target` must be (B, *spatial), (3, 16, 12), on the grid of the image, got (3, 15, 12)."


def test_the_page_on_kinds_of_models_runs(names: dict[str, Any]) -> None:
    for block in blocks(ROOT / "docs" / "models.md"):
        exec(block, names)
    assert names["report"].model.classes == ("other", "liver")


@pytest.mark.parametrize("name", ["attack", "attack_scan", "evaluate", "inspect", "load_model", "preset", "read_scan"])
def test_examples_of_docstrings_run(name: str, names: dict[str, Any]) -> None:
    names |= {"mafl": mafl_cli, "MyUNet": lambda: Threshold(2)}
    if name == "evaluate":
        mafl_cli.attack_scan("scan.nii.gz", "erase:1", model="model.ts", out="mafl-out", steps=4)
    lines = inspect.cleandoc(getattr(mafl_cli, name).__doc__ or "").splitlines()[2:]
    example = list(itertools.takewhile(lambda line: line.startswith("    "), lines))
    assert example
    for line in example:
        exec(line.strip(), names)


def test_the_page_names_every_option_and_class() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    of = {"attack": api.ARRAY_OPTIONS, "attack_scan": api.SCAN_OPTIONS, "evaluate": api.EVALUATE_OPTIONS}
    for function, options in of.items():
        rows = "\n".join(row for row in text.splitlines() if row.startswith("|") and f"`{function}`" in row)
        assert options <= set(re.findall(r"`(\w+)`", rows))
    silent = {"__version__", "Attacked", "Loaded", "Volume", "Evaluation"}
    assert set(mafl_cli.__all__) - silent <= set(re.findall(r"\w+", text))


def test_the_three_lines_of_the_readme_give_what_the_file_gives(names: dict[str, Any]) -> None:
    (block,) = blocks(ROOT / "README.md")
    assert len([line for line in block.splitlines() if line]) == 3
    exec(block, names)
    assert names["found"].success.all()
    mafl_cli.attack_scan("scan.nii.gz", "mask.nii.gz", model="model.ts", out="out", device="cpu")
    written = nib.load("out/perturbation.nii.gz").get_fdata(dtype=np.float32)
    mine = np.moveaxis((names["found"].adversarial - names["image"])[:, 0], 0, 2)
    assert np.abs(mine).max() > 1e-2
    assert np.abs(mine - written).max() < 1e-5


def test_the_notebook_runs_and_keeps_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "docs" / "attack_in_a_notebook.ipynb"
    assert path.stat().st_size < 300_000
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(path.parent)
    there: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in cells:
            exec("".join(cell["source"]), there)
    assert there["found"].success.all()
