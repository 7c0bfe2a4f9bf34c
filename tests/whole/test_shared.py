"""Real scans and real networks, where they are at hand: the command from file to report."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from typer.testing import CliRunner

from mafl_cli.cli.application import app

pytestmark = pytest.mark.shared


def cut(source: Path, into: Path, box: tuple[slice, slice, slice]) -> Path:
    """A part of a volume, with its affine, in the folder `into`."""
    nib.save(nib.load(source).slicer[box], into / source.name)
    return into / source.name


def attack(image: Path, target: Path | str, model: Path, out: Path, *options: str) -> dict:
    arguments = ["attack", image, "--target", target, "--model", model, "-o", out, "--device", "cpu", *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return json.loads((out / "report.json").read_text())["cases"][0]


@pytest.mark.parametrize("target", [pytest.param("target_shifted20", marks=pytest.mark.slow), "target_removed"])
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
    assert case["quantisation"][0]["dtype"] == "int16"
    before, after = (np.asarray(nib.load(path).dataobj) for path in (image, tmp_path / "out" / "adversarial.nii.gz"))
    assert after.dtype == np.int16
    assert np.array_equal(before == 0, after == 0)


def test_one_of_two_channels_is_attacked_and_the_other_stays(shared: Path, tmp_path: Path) -> None:
    folder, slab = shared / "cases" / "brats2d_pat0002" / "slab12", (slice(None), slice(None), slice(4, 6))
    flair, contrast, mask = (
        cut(folder / f"{name}.nii.gz", tmp_path, slab) for name in ("image_flair", "image_t1c", "target_shifted20")
    )

    case = attack(
        flair, mask, shared / "models" / "brats_unet2d.ts", tmp_path / "out",
        "--steps", "80", "--channels", f"{flair},{contrast}", "--attack-channels", "0",
    )  # fmt: skip

    assert case["attack"]["goal_reached"]
    before, after = (nib.load(path) for path in (contrast, tmp_path / "out" / "adversarial_0001.nii.gz"))
    assert np.asarray(before.dataobj).tobytes() == np.asarray(after.dataobj).tobytes()
    assert case["metrics"]["size_per_channel"][0]["l0"]["count"] > 0


@pytest.mark.slow
def test_scanner_integers_are_drawn_as_their_normalised_file(shared: Path, tmp_path: Path) -> None:
    folder, model = shared / "cases" / "flair2d_pat0001", shared / "models" / "flair_unet2d.ts"
    image, mask = folder / "image_raw_int16.nii.gz", folder / "target_removed.nii.gz"
    attack(image, mask, model, tmp_path / "out", "--steps", "1", "--intensity", "zscore-nonzero")
    ours, theirs = (
        np.asarray(nib.load(path).dataobj)
        for path in (tmp_path / "out" / "prediction_clean.nii.gz", folder / "clean_pred.nii.gz")
    )
    assert (ours == theirs).mean() >= 0.999
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.98


@pytest.mark.slow
def test_a_tumour_through_sliding_windows(shared: Path, tmp_path: Path) -> None:
    folder, box = shared / "cases" / "brats3d_pat0003" / "crop96", (slice(0, 96), slice(0, 64), slice(0, 64))
    flair, contrast, mask = (
        cut(folder / f"{name}.nii.gz", tmp_path, box) for name in ("image_flair", "image_t1c", "target_eroded")
    )

    case = attack(
        flair, mask, shared / "models" / "brats_unet3d.ts", tmp_path / "out",
        "--steps", "8", "--channels", f"{flair},{contrast}", "--roi", "48,48,48", "--overlap", "0.25",
    )  # fmt: skip

    assert case["space"]["mode"] == "3d"
    post = case["metrics"]["post_write"]
    assert post["hit_rate"]["value"] > 0.2


@pytest.mark.parametrize(
    ("edge", "steps"), [(40, 20), pytest.param(64, 150, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_tissue_in_a_3d_volume(shared: Path, tmp_path: Path, edge: int, steps: int) -> None:
    folder = shared / "cases" / "t1_gwm_headbox"
    box = slice(20, 20 + edge), slice(49, 49 + edge), slice(63, 63 + edge)
    image = cut(folder / "image_norm.nii.gz", tmp_path, box)
    mask = cut(folder / "target_shift4.nii.gz", tmp_path, box)

    case = attack(image, mask, shared / "models" / "t1_gwm_meshnet3d.ts", tmp_path / "out", "--steps", str(steps))

    assert case["space"]["mode"] == "3d"
    assert (case["attack"]["samples"]["kind"], case["attack"]["samples"]["attacked"]) == ("volume", 1)
    clean, post = case["metrics"]["clean"], case["metrics"]["post_write"]
    # Twenty steps do not reach this target; they must have come a good part of the way.
    assert post["target_iou"]["value"] > 2 * clean["target_iou"]["value"]
    assert case["attack"]["goal_reached"] == (case["attack"]["samples"]["reached"] == 1)
    assert nib.aff2axcodes(nib.load(tmp_path / "out" / "adversarial.nii.gz").affine) == ("L", "I", "A")


@pytest.mark.slow
def test_an_integer_dicom_series_holds_the_attack(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    stored_grid = importlib.import_module("stored_grid")
    from dicoms import write_ct

    whole = nib.as_closest_canonical(nib.load(shared / "ct" / "ct.nii.gz"))
    labels = nib.as_closest_canonical(nib.load(shared / "ct" / "labels.nii.gz"))
    box = (slice(None), slice(None), slice(100, 108))
    for image, name in ((whole, "ct.nii.gz"), (labels, "labels.nii.gz")):
        nib.save(image.slicer[box], tmp_path / name)
    model = stored_grid.throwaway_model(tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz", tmp_path, steps=80)
    part = whole.slicer[box]
    # DICOM's rows run to the back and its columns to the left: two axes turn round.
    turned = np.flip(np.rint(np.asarray(part.dataobj)), (0, 1)).astype(np.int16)
    affine = part.affine @ np.array(
        [[-1, 0, 0, part.shape[0] - 1], [0, -1, 0, part.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    stored = np.clip(turned + 1024, 0, 4095).astype(np.int16)
    write_ct(tmp_path / "series", stored, affine, BitsStored=12, HighBit=11, PixelRepresentation=0)

    case = attack(tmp_path / "series", "erase:liver", model, tmp_path / "out", "--save-as", "source")

    post, memory = case["metrics"]["post_write"], case["metrics"]["in_memory"]
    assert post["target_iou"]["value"] == pytest.approx(memory["target_iou"]["value"], abs=0.01)
    assert post["hit_rate"]["value"] > 0.95
    assert case["quantisation"][0]["max_difference_from_memory_native"] == 0
    assert case["quantisation"][0]["step_native"] == 1
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out" / "adversarial")))
    values = SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    change = np.asarray(nib.load(tmp_path / "out" / "perturbation.nii.gz").dataobj)
    np.testing.assert_array_equal(values - (stored - 1024), change)
