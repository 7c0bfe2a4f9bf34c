"""The command as a user meets it: what it prints, what it leaves in the folder, how it exits."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from commands import Threshold, mafl, scan_array
from scipy import ndimage
from typer.testing import Result

from mafl_cli import __version__
from mafl_cli.config import PRESETS
from mafl_cli.results import report

RESULTS = {
    "adversarial.nii.gz",
    "perturbation.nii.gz",
    "prediction_clean.nii.gz",
    "prediction_adversarial.nii.gz",
    "target.nii.gz",
    "report.json",
}
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.jit.script(Threshold(2)).save(folder / "flat.ts")
    torch.jit.script(Threshold(3)).save(folder / "deep.ts")
    torch.jit.script(Threshold(2, channels=2)).save(folder / "two_channels.ts")
    torch.save(Threshold(2).state_dict(), folder / "weights.pt")
    torch.export.save(torch.export.export(Threshold(2), (torch.zeros(1, 1, 16, 16),)), folder / "exported.pt2")
    (folder / "text.ts").write_text("not a model")

    class Hard(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x <= 0.5, x > 0.5], dim=1).to(x.dtype)

    torch.jit.script(Hard()).save(folder / "no_gradient.ts")
    return folder


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A folder with scan.nii.gz and mask.nii.gz (the ball's class moved by two voxels)."""
    scan = scan_array()
    image = nib.Nifti1Image(scan, AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    nib.save(image, tmp_path / "scan.nii.gz")
    mask = np.roll(scan > 0.5, 2, axis=0).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / "mask.nii.gz")
    return tmp_path


def attack(case: Path, models: Path, *more: object, model: str = "flat.ts") -> Result:
    return mafl(
        "attack", case / "scan.nii.gz", "--target", case / "mask.nii.gz", "--model", models / model,
        "-o", case / "out", "--device", "cpu", "--steps", 40, *more,
    )  # fmt: skip


# --- a run that works ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["flat.ts", "deep.ts"])
def test_attack_writes_the_six_files_and_a_report_that_fits_its_schema(case: Path, models: Path, model: str) -> None:
    result = attack(case, models, model=model)

    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (case / "out").iterdir()} == RESULTS
    done = json.loads((case / "out" / "report.json").read_text())
    jsonschema.Draft202012Validator(json.loads(report.SCHEMA.read_text())).validate(done)
    assert done["cases"][0]["attack"]["goal_reached"]
    assert done["cases"][0]["metrics"]["post_write"]["target_iou"]["value"] >= 0.99
    assert "The goal was reached." in result.stdout
    assert str(case) not in (case / "out" / "report.json").read_text()


@pytest.mark.parametrize("model", ["flat.ts", "deep.ts"])
def test_reported_prediction_is_what_the_original_model_says_about_the_file(
    case: Path, models: Path, model: str
) -> None:
    attack(case, models, model=model)
    written = nib.load(case / "out" / "adversarial.nii.gz").get_fdata(dtype=np.float32)
    network = torch.jit.load(models / model)

    batch = written.transpose(2, 0, 1)[:, None] if model == "flat.ts" else written[None, None]
    with torch.no_grad():
        labels = network(torch.from_numpy(batch.copy())).argmax(1).numpy()
    expected = labels.transpose(1, 2, 0) if model == "flat.ts" else labels[0]

    assert np.array_equal(nib.load(case / "out" / "prediction_adversarial.nii.gz").dataobj, expected)


def test_output_opens_with_the_input_geometry_in_nibabel_and_simpleitk(case: Path, models: Path) -> None:
    attack(case, models)
    for name in sorted(RESULTS - {"report.json"}):
        before, after = nib.load(case / "scan.nii.gz"), nib.load(case / "out" / name)
        assert np.array_equal(before.affine, after.affine)
        assert [int(after.header[key]) for key in ("sform_code", "qform_code", "xyzt_units")] == [1, 1, 2]
        first, second = (SimpleITK.ReadImage(str(path)) for path in (case / "scan.nii.gz", case / "out" / name))
        assert first.GetOrigin() == second.GetOrigin()
        assert first.GetDirection() == second.GetDirection()
        assert first.GetSpacing() == second.GetSpacing()


def test_voxels_far_from_the_edit_are_bit_identical(case: Path, models: Path) -> None:
    attack(case, models)
    before, after = (
        np.asarray(nib.load(path).dataobj) for path in (case / "scan.nii.gz", case / "out" / "adversarial.nii.gz")
    )
    clean, target = (
        np.asarray(nib.load(case / "out" / f"{name}.nii.gz").dataobj) for name in ("prediction_clean", "target")
    )
    edited_slices = (clean != target).any(axis=(0, 1))
    assert edited_slices.any()
    assert not edited_slices.all()
    assert np.array_equal(before[..., ~edited_slices], after[..., ~edited_slices])
    # The blur reaches one voxel. A voxel beside the edit may lose its class on the way and then counts as well.
    distance = ndimage.distance_transform_edt(clean == target, sampling=(1, 1, 1e9))
    assert np.array_equal(before[distance > 4], after[distance > 4])


def test_save_as_source_keeps_the_integers_and_their_scaling(case: Path, models: Path) -> None:
    stored = np.round(scan_array() * 500).astype(np.int16)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(0.002, 0)
    nib.save(image, case / "scan.nii.gz")

    result = attack(case, models, "--save-as", "source")

    assert result.exit_code == 0, result.stderr
    after = nib.load(case / "out" / "adversarial.nii.gz")
    assert after.get_data_dtype() == np.int16
    assert np.isclose(after.dataobj.slope, 0.002)
    raw = np.asarray(after.dataobj.get_unscaled())
    done = json.loads((case / "out" / "report.json").read_text())["cases"][0]
    assert done["quantisation"][0]["fraction_changed"] == pytest.approx((raw != stored).mean())
    assert done["quantisation"][0]["max_difference_from_memory_native"] < 1e-6
    assert done["metrics"]["in_memory"]["target_iou"] == done["metrics"]["post_write"]["target_iou"]
    assert done["attack"]["goal_reached"]


def test_two_runs_give_the_same_bytes(case: Path, models: Path) -> None:
    attack(case, models)
    first = {path.name: path.read_bytes() for path in (case / "out").iterdir()}
    attack(case, models, "--overwrite")
    second = {path.name: path.read_bytes() for path in (case / "out").iterdir()}

    reports = [json.loads(run.pop("report.json")) for run in (first, second)]
    for done in reports:
        del done["run"]["started"], done["cases"][0]["timing_s"], done["cases"][0]["memory"]
    assert first == second
    assert reports[0] == reports[1]


def test_json_on_stdout_is_the_report_and_nothing_else(case: Path, models: Path) -> None:
    result = attack(case, models, "--json", "-")
    assert json.loads(result.stdout) == json.loads((case / "out" / "report.json").read_text())


@pytest.mark.parametrize("name", ["scan.nii.gz", "mask.nii.gz", "flat.ts"])
def test_json_never_takes_the_place_of_an_input(case: Path, models: Path, name: str) -> None:
    file = (models if name == "flat.ts" else case) / name
    before = file.read_bytes()
    result = attack(case, models, "--json", file)
    assert result.exit_code == 2
    assert f"--json {name} is an input, a scan" in result.stderr
    assert file.read_bytes() == before
    assert not (case / "out").exists()


def test_quiet_says_nothing(case: Path, models: Path) -> None:
    result = attack(case, models, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_target_that_is_drawn_already_changes_nothing(case: Path, models: Path) -> None:
    attack(case, models)
    (case / "out" / "prediction_clean.nii.gz").rename(case / "mask.nii.gz")
    result = attack(case, models, "--overwrite")

    assert result.exit_code == 0, result.stderr
    assert "already meets the goal" in result.stdout
    trace = json.loads((case / "out" / "report.json").read_text())["cases"][0]["attack"]["trace"]
    assert not any(trace.values())
    before, after = (
        np.asarray(nib.load(path).dataobj) for path in (case / "scan.nii.gz", case / "out" / "adversarial.nii.gz")
    )
    assert np.array_equal(before, after)
    assert mafl("evaluate", case / "out").exit_code == 0


def test_empty_target_is_judged_by_hits_not_by_iou(case: Path, models: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((24, 20, 6), np.uint8), AFFINE), case / "mask.nii.gz")
    result = attack(case, models)

    assert result.exit_code == 0, result.stderr
    done = json.loads((case / "out" / "report.json").read_text())["cases"][0]
    post = done["metrics"]["post_write"]
    assert post["target_iou"] == {"value": None, "reason": "target_has_no_foreground"}
    assert post["hit_rate"]["value"] >= 0.99
    assert post["removed"][0]["value"] >= 0.99
    assert done["attack"]["goal_reached"]


@pytest.mark.parametrize("axis", ["axial", "coronal", "k", "j"])
def test_slice_axis_is_named_by_plane_or_by_array_axis(case: Path, models: Path, axis: str) -> None:
    attack(case, models, "--slice-axis", axis)
    said = json.loads((case / "out" / "report.json").read_text())["cases"][0]["space"]["slice_axis"]
    assert (said["name"], said["index"]) == (("axial", 2) if axis in ("axial", "k") else ("coronal", 1))


def test_the_report_has_the_trace_of_the_run(case: Path, models: Path) -> None:
    attack(case, models)
    done = json.loads((case / "out" / "report.json").read_text())["cases"][0]
    trace = done["attack"]["trace"]
    assert trace["step"][0] == 0
    assert len(trace["step"]) <= 40
    assert trace["l2_model"][0] == 0
    assert trace["loss"][-1] < trace["loss"][0]
    assert trace["reached"][-1] == done["attack"]["samples"]["reached"] / done["attack"]["samples"]["attacked"]
    assert trace["score"][-1] >= 0.99


def test_the_excess_is_said_and_reported_and_ends_the_search(case: Path, models: Path) -> None:
    whole = attack(case, models, "--steps", 80)
    said = json.loads((case / "out" / "report.json").read_text())["cases"][0]["attack"]
    optimum = said["local_optimum"]
    assert 0 < optimum["excess"]["value"] < 0.1
    assert 0.9 < optimum["kkt_cosine"]["value"] <= 1
    assert len(optimum["excess_per_sample"]) == said["samples"]["reached"] > 1
    assert f"  excess        {optimum['excess']['value']:.1%} above the local optimum" in whole.stdout
    early = attack(case, models, "--steps", 80, "--until", 0.08, "--overwrite")
    assert early.exit_code == 0, early.stderr
    sooner = json.loads((case / "out" / "report.json").read_text())["cases"][0]["attack"]
    assert sooner["goal_reached"]
    assert sooner["passes"]["backward"] < said["passes"]["backward"]
    assert max(sooner["local_optimum"]["excess_per_sample"].values()) <= 0.08


def test_a_method_without_an_estimate_says_why(case: Path, models: Path) -> None:
    result = attack(case, models, "--method", "pgd")
    assert "excess" not in result.stdout
    optimum = json.loads((case / "out" / "report.json").read_text())["cases"][0]["attack"]["local_optimum"]
    assert optimum["excess"] == {"value": None, "reason": "no_estimate"}
    assert optimum["excess_per_sample"] == {}
    refused = attack(case, models, "--method", "pgd", "--until", 0.1, "--overwrite")
    assert refused.exit_code == 2
    assert "--until needs an estimate of the excess" in " ".join(refused.stderr.split())


# --- methods ------------------------------------------------------------------------------------------------------


def settings_of(case: Path) -> dict[str, object]:
    run = json.loads((case / "out" / "report.json").read_text())["run"]
    return dict(run["settings"])


def change_of(case: Path) -> np.ndarray:
    return nib.load(case / "out" / "perturbation.nii.gz").get_fdata()


def test_asma_runs_end_to_end_on_the_sample_scan(tmp_path: Path) -> None:
    samples = Path(__file__).parents[2] / "sample_data"
    result = mafl(
        "attack", samples / "brain_t1.nii.gz", "-t", samples / "target_hole.nii.gz", "-o", tmp_path / "out",
        "--device", "cpu", "--method", "asma", "--steps", 5, "--tau", 3e-3,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = settings_of(tmp_path)
    assert (said["method"], said["mask_loss"], said["step"]) == ("asma", "logit", "asma")
    assert (said["tau"], said["beta"], said["guide"], said["eps"]) == (3e-3, 1e-3, None, None)
    done = json.loads((tmp_path / "out" / "report.json").read_text())
    jsonschema.Draft202012Validator(json.loads(report.SCHEMA.read_text())).validate(done)
    assert change_of(tmp_path).any()


@pytest.mark.parametrize("method", [name for name in PRESETS if name != "asma"])
def test_every_method_has_its_name_in_the_report(case: Path, models: Path, method: str) -> None:
    result = attack(case, models, "--method", method, "--steps", 5)
    assert result.exit_code == 0, result.stderr
    assert settings_of(case)["method"] == method


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        (["--eps", 0.03], 0.03),
        (["--eps-hu", 0.03], 0.03),
        (["--eps-range", 0.03], 0.03 * float(np.ptp(scan_array()))),
        (["--method", "pgd", "--eps", 0.03], 0.03),
        (["--budget-eps", 0.03], 0.03),
    ],
)
def test_the_written_change_stays_in_its_ball(case: Path, models: Path, options: list[object], largest: float) -> None:
    result = attack(case, models, *options)
    assert result.exit_code == 0, result.stderr
    assert np.abs(change_of(case)).max() == pytest.approx(largest, rel=1e-3)
    if "--budget-eps" in options:
        said = settings_of(case)
        assert (said["goal_iou"], said["goal_hit"], said["after_goal"]) == (1, 1, "stop")


def test_a_ball_is_counted_in_the_noise_of_the_scan(case: Path, models: Path) -> None:
    noisy = 100 * scan_array((48, 40, 6)) + np.random.default_rng(3).normal(0, 2, (48, 40, 6))
    _save(case / "scan.nii.gz", noisy.astype(np.float32))
    result = attack(case, models, "--target", "erase:1", "--intensity", "window:0,100", "--eps-noise", 1.5)
    assert result.exit_code == 0, result.stderr
    bounds = json.loads((case / "out" / "report.json").read_text())["cases"][0]["bounds"]
    (sigma,), (radius,) = bounds["noise_sigma_native"], bounds["eps_native"]
    # That of the normal distribution, and the texture that is there already.
    expected = np.hypot(2, 10 / np.sqrt(12))
    assert expected / 1.3 < sigma < expected * 1.3
    assert radius == pytest.approx(1.5 * sigma)
    assert np.abs(change_of(case)).max() == pytest.approx(radius, rel=1e-3)


def test_a_scan_without_noise_has_no_ball_in_its_units(case: Path, models: Path) -> None:
    _save(case / "scan.nii.gz", np.where(scan_array() > 0.5, 1, 0).astype(np.float32))
    result = attack(case, models, "--eps-noise", 1.5)
    assert result.exit_code == 3
    assert "scan.nii.gz: no noise can be measured" in result.stderr
    assert "give --eps in another unit" in result.stderr
    assert not (case / "out").exists()


def test_a_ball_in_hu_holds_for_stored_integers(case: Path, models: Path) -> None:
    stored = np.round(scan_array() * 1000 - 500).astype(np.int16)
    nib.save(nib.Nifti1Image(stored, AFFINE), case / "scan.nii.gz")
    options = ("--save-as", "source", "--intensity", "window:-500,500")
    result = attack(case, models, "--eps-hu", 12, "--method", "mifgsm", *options)
    assert result.exit_code == 0, result.stderr
    after = np.asarray(nib.load(case / "out" / "adversarial.nii.gz").dataobj.get_unscaled())
    assert 0 < np.abs(after.astype(int) - stored).max() <= 12

    result = attack(case, models, "--eps-hu", 0.5, "-q", "--overwrite", *options)
    assert result.exit_code == 2
    assert "less than the step of 1 between the values the file can hold" in result.stderr


def test_a_guide_is_named_in_the_report_and_must_lie_on_the_grid(case: Path, models: Path) -> None:
    # The ball where the target wants it, from a scanner with another scale.
    _save(case / "guide.nii.gz", np.roll(scan_array(), 2, axis=0) * 700 + 20)
    options = ("--guide", case / "guide.nii.gz", "--intensity", "minmax", "--feature-weight", 0.5)
    result = attack(case, models, *options)
    assert result.exit_code == 0, result.stderr
    assert settings_of(case)["guide"] == ["guide.nii.gz"]
    assert json.loads((case / "out" / "report.json").read_text())["cases"][0]["attack"]["goal_reached"]

    _save(case / "guide.nii.gz", scan_array(), AFFINE + np.eye(4, k=3))
    result = attack(case, models, "--overwrite", "-q", *options)
    assert result.exit_code == 3
    assert "scan.nii.gz and guide.nii.gz are not on the same grid" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "fgsm"], "--method must be one of mafl, mafl-paper, asma"),
        (["--eps", 1, "--eps-hu", 5], "--eps and --eps-hu exclude each other"),
        (["--eps-range", 1, "--budget-eps", 5], "--eps-range and --budget-eps exclude each other"),
        (["--eps-hu", 1, "--eps-noise", 2], "--eps-hu and --eps-noise exclude each other"),
        (["--budget-eps", 0.1, "--goal-iou", 0.9], "within its radius: leave out --goal-iou"),
        (["--budget-eps", 0.1, "--after-goal", "shrink"], "within its radius: leave out --after-goal"),
        (["--norm", "l2"], "--norm needs a limit"),
        (["--random-start"], "--random-start needs an --eps"),
        (["--method", "pgd", "--after-goal", "shrink"], "--after-goal shrink needs an --l2-weight"),
        (["--direction", "sign"], "--step dynamic finds the length of each step by itself"),
        (["--mask-loss", "logit"], "needs a loss that falls to 0"),
        (["--method", "asma", "--step-size", 0.1], "--step-size is not for --step asma"),
        (
            ["--method", "pgd", "--guide", "scan.nii.gz"],
            "needed for --guide, which pgd does not have: set --feature-weight",
        ),
        (["--tau", 0.1], "--tau and --beta are for --step asma"),
    ],
)
def test_options_that_do_not_go_together_are_exit_2(
    case: Path, models: Path, options: list[object], message: str
) -> None:
    result = attack(case, models, "-q", *options)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert_one_clean_line(result, case)


# --- evaluate, visualize, inspect ---------------------------------------------------------------------------------


def test_visualize_draws_one_picture_and_does_not_overwrite_it(case: Path, models: Path) -> None:
    attack(case, models)
    assert mafl("visualize", case / "out").exit_code == 0
    assert (case / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")

    again = mafl("visualize", case / "out")
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("window", "code", "said"),
    [
        ("-0.5,1.5", 0, "figure.png: slices"),
        ("soft", 2, "--window soft is for CT, in HU: give LOW,HIGH"),
        ("5,4", 2, "--window must be LOW,HIGH"),
    ],
)
def test_visualize_takes_a_window(case: Path, models: Path, window: str, code: int, said: str) -> None:
    attack(case, models, "--steps", 2)
    result = mafl("visualize", case / "out", "--window", window)
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
    assert (case / "out" / "figure.png").exists() == (code == 0)


def test_visualize_takes_presets_for_a_ct_and_draws_reports_without_a_trace(case: Path, models: Path) -> None:
    attack(case, models, "--steps", 2)
    path = case / "out" / "report.json"
    done = json.loads(path.read_text())
    done["cases"][0]["inputs"][0]["channel"] = "CT"
    del done["cases"][0]["attack"]["trace"]
    path.write_text(json.dumps(done))
    result = mafl("visualize", case / "out", "--window", "soft", "-o", case / "figure.svg")
    assert result.exit_code == 0, result.stderr
    assert (case / "figure.svg").stat().st_size > 10_000


@pytest.mark.parametrize("command", ["evaluate", "visualize"])
def test_a_folder_without_a_run_is_bad_input(tmp_path: Path, command: str) -> None:
    result = mafl(command, tmp_path)
    assert result.exit_code == 3
    assert "holds no report.json" in result.stderr


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("net.safetensors", b"\2\0\0\0\0\0\0\0{}", "is a safetensors file (weights without the network)"),
        ("net.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file (Keras?), which only TensorFlow can run"),
    ],
)
def test_inspect_knows_models_of_other_programs(tmp_path: Path, name: str, head: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(head + bytes(64))
    result = mafl("inspect", tmp_path / name)
    assert result.exit_code == 4
    assert f"{name}: {words}; save the network with" in result.stderr


def test_inspect_shows_a_scan_a_mask_and_a_model(case: Path, models: Path) -> None:
    scan = json.loads(mafl("inspect", case / "scan.nii.gz", "--json").stdout)
    assert (scan["kind"], scan["shape"], scan["axcodes"]) == ("image", [24, 20, 6], "LAS")
    mask = mafl("inspect", case / "mask.nii.gz")
    assert mask.exit_code == 0
    assert "labels" in mask.stdout
    model = json.loads(mafl("inspect", models / "flat.ts", "--json").stdout)
    assert (model["kind"], model["dims"], model["activation"]) == ("model", 2, "softmax")
    assert any(entry["tap"].endswith("*") for entry in model["taps"])


# --- bad input: one line, the right code, nothing left behind -------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def _save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(data, affine), path)


def _nan() -> np.ndarray:
    scan = scan_array()
    scan[3, 4, 2] = np.nan
    return scan


BAD_FILES = {
    "missing image": (lambda c: (c / "scan.nii.gz").unlink(), "scan.nii.gz does not exist"),
    "not a NIfTI": (lambda c: (c / "scan.nii.gz").write_bytes(gzip.compress(b"hello" * 200)), "is not a NIfTI file"),
    "truncated gzip": (lambda c: _truncate(c / "scan.nii.gz"), "is truncated"),
    "4-D image": (lambda c: _save(c / "scan.nii.gz", np.stack([scan_array()] * 2, axis=-1)), "2 volumes"),
    "NaN voxels": (lambda c: _save(c / "scan.nii.gz", _nan()), "1 of 2880 voxels are NaN"),
    "constant image": (lambda c: _save(c / "scan.nii.gz", np.ones((24, 20, 6), np.float32)), "is constant"),
    "missing mask": (lambda c: (c / "mask.nii.gz").unlink(), "mask.nii.gz does not exist"),
    "mask of another shape": (lambda c: _save(c / "mask.nii.gz", np.ones((24, 20, 5), np.uint8)), "same grid"),
    "mask elsewhere": (
        lambda c: _save(c / "mask.nii.gz", np.ones((24, 20, 6), np.uint8), AFFINE + np.eye(4, k=3)),
        "same grid",
    ),
    "unknown labels": (lambda c: _save(c / "mask.nii.gz", np.full((24, 20, 6), 7, np.uint8)), "cannot draw label 7"),
    "0/255 mask": (
        lambda c: _save(c / "mask.nii.gz", 255 * (scan_array() > 0.5).astype(np.uint8)),
        "--label-map 255:1",
    ),
    "probability mask": (lambda c: _save(c / "mask.nii.gz", scan_array()), "not whole numbers"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_one_line_and_exit_3(case: Path, models: Path, name: str) -> None:
    spoil, message = BAD_FILES[name]
    spoil(case)
    result = attack(case, models, "-q")

    assert result.exit_code == 3, result.stderr
    assert message in result.stderr
    assert_one_clean_line(result, case)


def test_mask_of_floats_that_are_nearly_whole_is_taken(case: Path, models: Path) -> None:
    mask = np.asarray(nib.load(case / "mask.nii.gz").dataobj).astype(np.float32) * np.float32(1.0000001)
    _save(case / "mask.nii.gz", mask)
    assert attack(case, models).exit_code == 0


BAD_MODELS = {
    "weights.pt": "is a checkpoint",
    "text.ts": "is not a model file",
    "absent.ts": "no such model file",
    "no_gradient.ts": "no gradient",
}


@pytest.mark.parametrize("model", BAD_MODELS)
def test_bad_model_is_one_line_and_exit_4(case: Path, models: Path, model: str) -> None:
    result = attack(case, models, "-q", model=model)

    assert result.exit_code == 4, result.stderr
    assert BAD_MODELS[model] in result.stderr
    assert_one_clean_line(result, case)


def test_model_of_two_channels_refuses_one_image(case: Path, models: Path) -> None:
    result = attack(case, models, "-q", model="two_channels.ts")
    assert result.exit_code == 3
    assert "the model takes 2" in result.stderr
    assert_one_clean_line(result, case)


def test_size_the_model_cannot_take_is_explained(case: Path, models: Path, tmp_path: Path) -> None:
    class Fixed(Threshold):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.blur(x.reshape(-1, 1, 96, 96)))

    torch.jit.script(Fixed(2)).save(models / "fixed.ts")
    result = attack(case, models, "-q", model="fixed.ts")
    assert result.exit_code == 4
    assert "24 x 20" in result.stderr
    assert_one_clean_line(result, case)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there_is_exit_2_and_no_silent_fallback(case: Path, models: Path) -> None:
    result = attack(case, models, "-q", "--device", "cuda")
    assert result.exit_code == 2
    assert "cuda" in result.stderr.lower()
    assert_one_clean_line(result, case)


def test_existing_results_are_kept_unless_overwrite(case: Path, models: Path) -> None:
    attack(case, models)
    before = {path.name: path.read_bytes() for path in (case / "out").iterdir()}
    result = attack(case, models, "-q")

    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert {path.name: path.read_bytes() for path in (case / "out").iterdir()} == before


def test_a_failed_rerun_leaves_the_old_results(case: Path, models: Path) -> None:
    attack(case, models)
    before = {path.name: path.read_bytes() for path in (case / "out").iterdir()}
    _truncate(case / "mask.nii.gz")
    assert attack(case, models, "--overwrite").exit_code == 3
    assert {path.name: path.read_bytes() for path in (case / "out").iterdir()} == before


def test_unwritable_output_is_exit_2(case: Path, models: Path) -> None:
    (case / "file").write_text("in the way")
    result = mafl(
        "attack", case / "scan.nii.gz", "-t", case / "mask.nii.gz", "-m", models / "flat.ts", "-q",
        "-o", case / "file" / "out",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert_one_clean_line(result, case)


def test_full_disk_is_exit_1_and_leaves_nothing(case: Path, models: Path) -> None:
    small = case / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        result = mafl(
            "attack", case / "scan.nii.gz", "-t", case / "mask.nii.gz", "-m", models / "flat.ts", "-q",
            "-o", small / "out", "--steps", 20,
        )  # fmt: skip
        assert result.exit_code == 1, result.stderr
        assert "no space left" in result.stderr
        assert_one_clean_line(result, case)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_interrupt_is_exit_130_and_leaves_nothing(case: Path, models: Path) -> None:
    command: list[Any] = [
        sys.executable, "-m", "mafl_cli", "attack", case / "scan.nii.gz", "-t", case / "mask.nii.gz",
        "-m", models / "flat.ts", "-o", case / "out", "--steps", "100000", "--goal-iou", "1", "--goal-hit", "1",
    ]  # fmt: skip
    temporary = case / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as run:
        while not list(case.glob("out/.mafl-*")):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert (run.returncode, said.splitlines()[-1:]) == (130, ["mafl: interrupted; nothing was kept."])
    assert not (case / "out").exists()
    # A compiler that nobody uses would leave an empty folder there.
    assert not list(temporary.iterdir())


def test_interrupt_inside_generated_code_is_exit_130_too(tmp_path: Path) -> None:
    (tmp_path / "entry.py").write_text(
        "from mafl_cli import cli; from mafl_cli.case import inspection\n"
        "inspection.inspect = lambda file, **_: exec('raise KeyboardInterrupt')\n"
        "cli.main()\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "entry", "inspect", "scan.nii"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (130, "mafl: interrupted; nothing was kept.\n")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--goal-iou", "1.5", "--goal-iou must be from"),
        ("--steps", "0", "steps"),
        ("--intensity", "magic", "zscore-nonzero"),
        ("--orientation", "RRS", "three axis codes"),
        ("--mode", "3d", "2-D"),
        ("--slice-axis", "diagonal", "diagonal"),
        ("--tap", "nowhere", "nowhere"),
    ],
)
def test_bad_option_names_itself(case: Path, models: Path, option: str, value: str, message: str) -> None:
    (models / "flat.toml").write_text('[input]\ndims = 2\nchannels = ["T1"]\n')
    try:
        result = attack(case, models, "-q", option, value)
    finally:
        (models / "flat.toml").unlink()
    assert result.exit_code == (4 if option == "--tap" else 2), result.stderr
    assert message in result.stderr
    assert not (case / "out").exists()


def assert_one_clean_line(result: Result, case: Path) -> None:
    """One sentence on stderr, no traceback, no folder name, no output."""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stderr.startswith("mafl: ")
    assert str(case) not in result.stderr
    assert result.stdout == ""
    assert not (case / "out").exists()
    assert not list(case.rglob(".mafl-*"))


# --- the command itself -------------------------------------------------------------------------------------------


def test_version() -> None:
    assert mafl("--version").stdout == f"mafl {__version__}\n"


def test_python_dash_m_is_the_same_command() -> None:
    run = subprocess.run([sys.executable, "-m", "mafl_cli", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"mafl {__version__}\n"
