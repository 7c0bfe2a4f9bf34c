"""Several channels, regions that overlap, windows, another spacing: the command on what people's networks take."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Blobs
from monai.inferers import sliding_window_inference
from typer.testing import CliRunner, Result

from mafl_cli.cli.application import app
from mafl_cli.results import report

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]])


def ball(shape: tuple[int, ...], centre: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = np.random.default_rng(int(10 * abs(centre))).random(shape)
    return (0.9 * np.exp(-4 * ((grid - centre) ** 2).sum(axis=0)) + 0.1 * noise).astype(np.float32)


def save(path: Path, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def mafl(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def finished(result: Result, out: Path) -> dict:
    assert result.exit_code == 0, result.stderr
    done = json.loads((out / "report.json").read_text())
    jsonschema.Draft202012Validator(json.loads(report.SCHEMA.read_text())).validate(done)
    return done


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """scan_0000 and scan_0001, three regions' masks, and networks."""
    shape = (20, 24, 6)
    save(tmp_path / "scan_0000.nii.gz", ball(shape, 0.1))
    save(tmp_path / "scan_0001.nii.gz", 400 * ball(shape, -0.1))
    one, two = ball(shape, 0.1), ball(shape, -0.1)
    regions = [one + two > 0.8, one > 0.5, two > 0.6]
    for index, region in enumerate(regions):
        save(tmp_path / f"mask{index}.nii.gz", np.roll(region, 2, axis=0).astype(np.uint8))
    codes = sum(np.roll(region, 2, axis=0).astype(np.uint8) << index for index, region in enumerate(regions))
    save(tmp_path / "codes.nii.gz", codes)
    card = '[input]\nchannels = ["T1", "T2"]\nintensity = "minmax"\n'
    torch.jit.script(Blobs(2, [[-0.5, -0.5], [0.5, 0.5]], [-0.4, 0.4])).save(tmp_path / "exclusive.ts")
    (tmp_path / "exclusive.toml").write_text(card)
    torch.jit.script(Blobs(2, [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [0.8, 0.5, 0.6])).save(tmp_path / "regions.ts")
    names = '[output]\nactivation = "sigmoid"\nclasses = ["whole", "one", "two"]\n'
    (tmp_path / "regions.toml").write_text(card + names)
    return tmp_path


def attack(case: Path, model: str, target: str, *more: object) -> Result:
    return mafl(
        "attack", "--target", target, "--model", case / model, "-o", case / "out", "--device", "cpu",
        "--steps", 60, *more,
    )  # fmt: skip


def test_channels_are_written_one_by_one_and_all_of_them(case: Path) -> None:
    both = f"{case / 'scan_0000.nii.gz'},{case / 'scan_0001.nii.gz'}"
    done = finished(attack(case, "exclusive.ts", str(case / "mask0.nii.gz"), "--channels", both), case / "out")
    (only,) = done["cases"]
    assert only["attack"]["goal_reached"]
    assert [entry["channel"] for entry in only["inputs"]] == ["T1", "T2"]
    sizes = only["metrics"]["size_per_channel"]
    assert only["metrics"]["size"]["l2"]["model"] == pytest.approx(np.hypot(*(s["l2"]["model"] for s in sizes)))
    network, batch = torch.jit.load(case / "exclusive.ts"), []
    for index in range(2):
        clean, after, change = (
            load(path)
            for path in (
                case / f"scan_000{index}.nii.gz",
                case / "out" / f"adversarial_000{index}.nii.gz",
                case / "out" / f"perturbation_000{index}.nii.gz",
            )
        )
        assert (clean != after).any()
        assert np.allclose(after - clean, change, rtol=0, atol=1e-6 * np.abs(clean).max())
        batch.append((after - after.min()) / (after.max() - after.min()))
    with torch.no_grad():
        labels = network(torch.from_numpy(np.stack(batch).transpose(3, 0, 1, 2).copy())).argmax(dim=1).numpy()
    assert np.array_equal(labels.transpose(1, 2, 0), load(case / "out" / "prediction_adversarial.nii.gz"))


def test_a_channel_that_is_not_attacked_stays_bit_identical(case: Path) -> None:
    image = case / "scan_0000.nii.gz"
    result = attack(case, "exclusive.ts", str(case / "mask0.nii.gz"), image, "--attack-channels", "T2")
    (only,) = finished(result, case / "out")["cases"]
    assert only["attack"]["goal_reached"]
    assert load(case / "out" / "adversarial_0000.nii.gz").tobytes() == load(image).tobytes()
    assert only["metrics"]["size_per_channel"][0]["l0"]["count"] == 0
    assert only["metrics"]["size_per_channel"][0]["psnr_db"] == {
        **only["metrics"]["size_per_channel"][0]["psnr_db"], "value": None, "reason": "identical"
    }  # fmt: skip
    assert only["metrics"]["size"]["psnr_db"]["value"] == only["metrics"]["size_per_channel"][1]["psnr_db"]["value"]
    for line in (mafl("evaluate", case / "out"), mafl("visualize", case / "out", "-o", case / "figure.png")):
        assert line.exit_code == 0, line.stderr
    assert (case / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("given", "said", "code"),
    [
        (["--channels", "{0}"], "1 channel given, the model takes 2 (T1, T2)", 3),
        (["--channels", "{0},,{1}"], "has an empty entry in its comma-separated list", 2),
        ([], "no scan: give IMAGE", 2),
        (["{0}", "--attack-channels", "FLAIR"], "the model has no channel 'FLAIR'; it has T1, T2", 2),
        (["{0}", "--guide", "{0}"], "must be one file for each of 2 channels, got 1", 2),
        (["{0}", "--roi", "8,8,8"], "--roi must be 2 numbers for this model, got 3", 2),
        (["{0}", "--roi", "8.5,8"], "must be two or three whole numbers", 2),
        (["{0}", "--overlap", "1"], "--overlap must be at least 0 and below 1, got 1", 2),
        (["{0}", "--spacing", "1,-1"], "must be two or three numbers above 0", 2),
        (["{0}", "--spacing", "a,b"], "must be numbers separated by commas", 2),
        (["{0}", "--target", "{2},{2}"], "must be one mask, for the model's classes exclude each other, got 2", 2),
    ],
)
def test_what_does_not_fit_is_one_line(case: Path, given: list[str], said: str, code: int) -> None:
    files = [str(case / name) for name in ("scan_0000.nii.gz", "scan_0001.nii.gz", "mask0.nii.gz")]
    result = attack(case, "exclusive.ts", files[2], "-q", *(part.format(*files) for part in given))
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
    assert result.stderr.count("\n") == 1
    assert not (case / "out").exists()


@pytest.mark.parametrize("target", ["files", "codes"])
def test_regions_that_overlap(case: Path, target: str) -> None:
    files = ",".join(str(case / f"mask{index}.nii.gz") for index in range(3))
    result = attack(
        case, "regions.ts", files if target == "files" else str(case / "codes.nii.gz"), case / "scan_0000.nii.gz"
    )
    done = finished(result, case / "out")
    (only,) = done["cases"]
    assert done["model"]["overlapping"]
    assert only["attack"]["goal_reached"]
    assert [entry["name"] for entry in only["metrics"]["post_write"]["per_class"]] == ["whole", "one", "two"]
    codes, wanted = load(case / "out" / "prediction_adversarial.nii.gz"), load(case / "codes.nii.gz")
    assert np.array_equal(load(case / "out" / "target.nii.gz"), wanted)
    scores = []
    for index in range(3):
        mine, its = codes >> index & 1, wanted >> index & 1
        scores.append((mine & its).sum() / (mine | its).sum())
        entry = only["metrics"]["post_write"]["per_class"][index]
        assert entry["iou"]["value"] == pytest.approx(scores[-1])
    assert only["metrics"]["post_write"]["target_iou"]["value"] == pytest.approx(np.mean(scores))
    assert only["metrics"]["post_write"]["accuracy"] == pytest.approx(
        np.mean([(codes >> index & 1) == (wanted >> index & 1) for index in range(3)])
    )
    # In the heading; for each region three scores, and its volume and diameter.
    assert mafl("evaluate", case / "out").stdout.count("->") == 1 + 3 * (3 + 2)
    assert mafl("visualize", case / "out", "-o", case / "figure.png").exit_code == 0
    if target == "codes":
        assert "read as bit codes" in result.stderr


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (["mask0", "mask1"], "must be 3 masks, one for each region (whole, one, two), or one bit-coded mask"),
        (["large"], "has the code 9, but codes of 3 regions reach 7 at most"),
    ],
)
def test_targets_for_other_regions_are_refused(case: Path, masks: list[str], said: str) -> None:
    save(case / "large.nii.gz", np.full((20, 24, 6), 9, np.uint8))
    files = ",".join(str(case / f"{mask}.nii.gz") for mask in masks)
    result = attack(case, "regions.ts", files, "-q", case / "scan_0000.nii.gz")
    assert result.exit_code in (2, 3)
    assert said in result.stderr


def test_windows_in_3d_are_judged_by_the_same_inferer(case: Path) -> None:
    shape = (40, 24, 24)
    scan = save(case / "volume.nii.gz", ball(shape, -0.3))
    wanted = load(scan) > 0.5
    wanted[8:12, 6:10, 8:12] = False
    mask = save(case / "hole.nii.gz", wanted.astype(np.uint8))
    net = Blobs(3, [[-1.0], [1.0]], [-0.5, 0.5])
    torch.jit.script(net).save(case / "deep.ts")
    (case / "deep.toml").write_text("[input]\nroi = [16, 16, 16]\noverlap = 0.25\n")
    result = mafl(
        "attack", scan, "--target", mask, "--model", case / "deep.ts", "-o", case / "out", "--steps", 40, "-v"
    )
    done = finished(result, case / "out")
    assert "for each window of 16 x 16 x 16 in the network" in result.stderr
    assert done["run"]["settings"]["roi"] == [16, 16, 16]
    assert done["cases"][0]["attack"]["goal_reached"]
    after = load(case / "out" / "adversarial.nii.gz")
    with torch.no_grad():
        logits = sliding_window_inference(
            torch.from_numpy(after)[None, None], (16, 16, 16), 1, net, 0.25, mode="gaussian", sigma_scale=0.125
        )
    assert isinstance(logits, torch.Tensor)
    drawn = load(case / "out" / "prediction_adversarial.nii.gz")
    close = (logits[0, 1] - logits[0, 0]).abs().numpy() < 1e-4
    assert np.array_equal(logits.argmax(dim=1)[0].numpy()[~close], drawn[~close])
    assert not (after != load(scan))[30:].any()


@pytest.mark.parametrize("roi", ["none", "16,16"])
def test_another_spacing_and_precision(case: Path, roi: str) -> None:
    result = attack(
        case, "exclusive.ts", str(case / "mask0.nii.gz"), case / "scan_0000.nii.gz",
        "--spacing", "1.5,1.5", "--roi", roi, "--precision", "bf16", "--tap", "auto:2",
    )  # fmt: skip
    done = finished(result, case / "out")
    assert done["cases"][0]["space"]["network_shape"] == [26, 32]
    assert done["run"]["settings"]["precision"] == "bf16"
    assert done["model"]["taps"][0]["weight"] == 2
    assert done["cases"][0]["metrics"]["post_write"]["hit_rate"]["value"] > 0.9
    assert load(case / "out" / "adversarial_0000.nii.gz").shape == (20, 24, 6)


def test_an_exported_program_of_one_size_is_attacked_in_windows_of_that_size(case: Path) -> None:
    program = torch.export.export(Blobs(2, [[-0.5, -0.5], [0.5, 0.5]], [-0.4, 0.4]), (torch.zeros(1, 2, 16, 16),))
    torch.export.save(program, case / "net.pt2")
    (case / "net.toml").write_text((case / "exclusive.toml").read_text())
    image, mask = case / "scan_0000.nii.gz", str(case / "mask0.nii.gz")
    refused = attack(case, "net.pt2", mask, image, "-q")
    assert refused.exit_code == 4
    assert "was exported for 16 x 16 voxels, not 20 x 24: use --roi 16,16." in refused.stderr
    done = finished(attack(case, "net.pt2", mask, image, "--roi", "16,16"), case / "out")
    assert done["model"]["format"] == "torch.export"
    assert done["cases"][0]["attack"]["goal_reached"]


def test_slices_that_do_not_fit_together_go_in_smaller_groups(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mafl_cli.network import prediction, segmenter

    call = segmenter.Segmenter.__call__

    def short(self: segmenter.Segmenter, x: torch.Tensor) -> prediction.Prediction:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return call(self, x)

    image, mask = case / "scan_0000.nii.gz", str(case / "mask0.nii.gz")
    # The last digits depend on the size of a batch, and grow with every step.
    few = ("--steps", 5)
    whole = finished(attack(case, "exclusive.ts", mask, image, *few), case / "out")
    monkeypatch.setattr(segmenter.Segmenter, "__call__", short)
    result = attack(case, "exclusive.ts", mask, image, *few, "--overwrite")
    parts = finished(result, case / "out")
    assert "not enough memory: going on with" in result.stderr
    for key in ("target_iou", "hit_rate"):
        assert parts["cases"][0]["metrics"]["post_write"][key] == whole["cases"][0]["metrics"]["post_write"][key]
    sizes = [done["cases"][0]["metrics"]["size"]["l2"]["model"] for done in (parts, whole)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)
