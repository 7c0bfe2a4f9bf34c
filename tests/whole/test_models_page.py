"""The page on kinds of models: every command that stands on it runs, on small models of each kind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from nnunet_folders import ARCHITECTURE, write_checkpoint, write_folder

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
LINES = [
    *re.findall(r"\| `(mafl attack .+?)` \|", PAGE),
    *(line for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()),
]
SHORT = {"-t": "--target", "-m": "--model"}
COMMANDS = list(
    dict.fromkeys(
        " ".join(SHORT.get(word, word) for word in line.partition("  #")[0].split())
        for line in LINES
        if line.startswith("mafl ")
    )
)
"""Each once, whether it is written with short options or long ones."""
DRAWS = 5
"""With these random weights the networks of the page draw class 1 on the scan."""
PROGRAM = """#!{python}
import sys

import nibabel as nib
import numpy as np

scan = nib.load(sys.argv[1])
nib.save(nib.Nifti1Image((np.asarray(scan.dataobj) > 0.5).astype(np.uint8), scan.affine), sys.argv[2])
"""
"""Draws what is bright."""
NNUNET = "nnUNetTrainer__nnUNetPlans__3d_fullres"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan, a mask, and models under the names of the page: nnU-Net's and ONNX if they can be had."""
    folder = tmp_path_factory.mktemp("models")
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for name in ("scan", "case_0000"):
        nib.save(nib.Nifti1Image(scan_array((16, 16, 6)), affine), folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image((scan_array((16, 16, 6)) > 0.5).astype(np.uint8), affine), folder / "truth.nii.gz")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        warnings.simplefilter("ignore")
        torch.manual_seed(DRAWS)
        exec(next(text for text in CODE if "torch.export.save" in text), {"__name__": "page"})
        Path("mynets.py").write_text(next(text for text in CODE if text.startswith("# mynets.py")))
        torch.jit.script(Threshold(2)).save("a.ts")
        for name in ("spleen_ct", "spleen_ct_segmentation"):
            _bundle(name)
        program = Path("program")
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(0o755)
        with contextlib.suppress(ImportError):
            _onnx()
        with contextlib.suppress(ImportError):
            _nnunet(folder)
    return folder


def _bundle(folder: str) -> None:
    from monai.bundle import init_bundle
    from monai.networks.nets import UNet

    channels = {"0": "background", "1": "spleen"}
    definition = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    ends = {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": {"num_channels": 2, "channel_def": channels}}}
    inference = {"network_def": {"_target_": "UNet", **definition}, "inferer": {"_target_": "SimpleInferer"}}
    init_bundle(folder, network=UNet(**definition), metadata_str={"network_data_format": ends}, inference_str=inference)


def _onnx() -> None:
    import onnx  # noqa: F401

    axes = {name: {0: "batch", 2: "height", 3: "width"} for name in ("image", "logits")}
    for name in ("model", "b"):
        torch.onnx.export(
            Threshold(2), (torch.zeros(1, 1, 16, 16),), f"{name}.onnx", dynamo=False, input_names=["image"],
            output_names=["logits"], dynamic_axes=axes,
        )  # fmt: skip


def _nnunet(folder: Path) -> None:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    place = write_folder(folder, name=NNUNET, folds=("0", "2"))
    for fold in (0, 2):
        arguments = (ARCHITECTURE[key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import"))
        network = get_network_from_plans(*arguments, 1, 3, deep_supervision=True)
        write_checkpoint(place / f"fold_{fold}/checkpoint_final.pth", network)
    place.parent.rename(folder / "Dataset004_X")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(models: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setenv("PATH", str(models), prepend=os.pathsep)
    torch.manual_seed(DRAWS)
    words = shlex.split(command.replace("Dataset004_X/...", f"Dataset004_X/{NNUNET}"))[1:]
    for word in words:
        is_optional = word.endswith(".onnx") or word.startswith("Dataset004_X")
        if is_optional and not Path(word).exists():
            pytest.skip(f"{word} cannot be made here")
    if words[0] == "evaluate":
        assert mafl("attack", "scan.nii.gz", "-t", "erase:1", "-m", "a.ts", "--steps", 2, "--overwrite").exit_code == 0
    is_closed = "--model-command" in words
    more: dict[str, list[object]] = {
        "attack": ["--queries" if is_closed else "--steps", 4 if is_closed else 2, "--overwrite"],
        "inspect": ["--overwrite"] if "--write" in words else [],
    }
    result = mafl(*words, *more.get(words[0], []))
    assert result.exit_code == 0, result.stderr
    if words[0] == "attack":
        report = json.loads((models / "mafl-out" / "report.json").read_text())
        attack = report["cases"][0]["attack"]
        assert (attack["queries"]["asked"] if is_closed else attack["passes"]["backward"]) > 0


def test_every_kind_has_a_command() -> None:
    assert len(COMMANDS) > 15
