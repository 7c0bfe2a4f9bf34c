"""Real scans and real networks, where they are at hand: the command from file to report."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

from mafl_cli.cli import app

pytestmark = pytest.mark.shared


def cut(source: Path, into: Path, box: tuple[slice, slice, slice]) -> Path:
    """A part of a volume, with its affine, in the folder `into`."""
    nib.save(nib.load(source).slicer[box], into / source.name)
    return into / source.name


def attack(image: Path, target: Path, model: Path, out: Path, *options: str) -> dict:
    arguments = ["attack", image, "--target", target, "--model", model, "-o", out, "--device", "cpu", *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return json.loads((out / "report.json").read_text())["cases"][0]


@pytest.mark.parametrize("target", ["target_shifted20", "target_removed"])
def test_tumour_on_flair_slices(shared: Path, tmp_path: Path, target: str) -> None:
    folder, slab = shared / "cases" / "flair2d_pat0001" / "slab12", (slice(None), slice(None), slice(4, 6))
    image = cut(folder / "image.nii.gz", tmp_path, slab)
    mask = cut(folder / f"{target}.nii.gz", tmp_path, slab)

    case = attack(image, mask, shared / "models" / "flair_unet2d.ts", tmp_path / "out", "--steps", "80")

    post = case["metrics"]["post_write"]
    assert case["attack"]["samples"]["reached"] == 2
    assert post["hit_rate"]["value"] >= 0.99
    if target == "target_removed":
        assert post["target_iou"] == {"value": None, "reason": "target_has_no_foreground"}
        assert post["removed"][0]["value"] >= 0.99
    else:
        assert post["target_iou"]["value"] >= 0.99
    assert case["metrics"]["size"]["psnr_db"]["value"] > 30
    for path in (tmp_path / "out").glob("*.nii.gz"):
        assert SimpleITK.ReadImage(str(path)).GetSize() == (240, 240, 2)


def test_raw_scanner_integers_are_scored_with_their_own_statistics(shared: Path, tmp_path: Path) -> None:
    folder = shared / "cases" / "flair2d_pat0001"
    image = cut(folder / "image_raw_int16.nii.gz", tmp_path, (slice(None), slice(None), slice(66, 67)))
    mask = cut(folder / "target_shifted20.nii.gz", tmp_path, (slice(None), slice(None), slice(66, 67)))

    case = attack(
        image, mask, shared / "models" / "flair_unet2d.ts", tmp_path / "out",
        "--steps", "80", "--intensity", "zscore-nonzero", "--save-as", "source",
    )  # fmt: skip

    assert case["attack"]["goal_reached"]
    assert case["quantisation"]["dtype"] == "int16"
    before, after = (np.asarray(nib.load(path).dataobj) for path in (image, tmp_path / "out" / "adversarial.nii.gz"))
    assert after.dtype == np.int16
    assert np.array_equal(before == 0, after == 0)


def test_tissue_in_a_3d_volume(shared: Path, tmp_path: Path) -> None:
    folder, box = shared / "cases" / "t1_gwm_headbox", (slice(20, 84), slice(49, 113), slice(63, 127))
    image = cut(folder / "image_norm.nii.gz", tmp_path, box)
    mask = cut(folder / "target_hole_sphere.nii.gz", tmp_path, box)

    case = attack(image, mask, shared / "models" / "t1_gwm_meshnet3d.ts", tmp_path / "out", "--steps", "40")

    assert case["space"]["mode"] == "3d"
    assert case["attack"]["samples"] == {
        "kind": "volume", "total": 1, "attacked": 1, "reached": 1, "not_reached": 0, "skipped_constant": 0,
    }  # fmt: skip
    assert case["metrics"]["post_write"]["target_iou"]["value"] >= 0.99
    assert nib.aff2axcodes(nib.load(tmp_path / "out" / "adversarial.nii.gz").affine) == ("L", "I", "A")
