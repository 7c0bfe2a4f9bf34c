"""Every way to a GPU, and that it leads where the CPU's does.

After few steps voxels agree to a thousandth of the scan's range (the order of additions is another one); after many,
small differences have grown, and scores and lengths are compared. Nothing in here needs SimpleITK or highdicom.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Blobs, Threshold, mafl, scan_array
from problems import SmallUNet
from torch import Tensor, nn
from typer.testing import Result

import mafl_cli
from mafl_cli.errors import UsageError

DEVICE = "cuda"
pytestmark = pytest.mark.cuda

SHAPE = (24, 20, 12)
NETWORKS: dict[str, nn.Module] = {
    "bright2d": Threshold(2),
    "bright3d": Threshold(3),
    "regions": Blobs(3, [[1.0], [1.0]], [0.5, 0.7]),
    "batch2d": SmallUNet(2, 1, 3, "batch", seed=8),
    "instance3d": SmallUNet(3, 1, 2, "instance", seed=3),
}
VIEWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "slices": ("bright2d", ()),
    "volume": ("bright3d", ()),
    "regions that may overlap": ("regions", ()),
    "batch norm, slices": ("batch2d", ()),
    "instance norm, volume": ("instance3d", ()),
    "windows": ("bright3d", ("--roi", "8,8,8")),
    "windows in slices": ("bright2d", ("--roi", "16,16")),
    "another spacing": ("bright3d", ("--spacing", "3,3,3")),
    "another spacing, slices": ("bright2d", ("--spacing", "1.5,1.5")),
    "another spacing in windows": ("instance3d", ("--spacing", "1.5,1.5,3", "--roi", "16,16,8")),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "stored as integers": ("--save-as", "source"),
    "in the body": ("--body-only",),
    "z-scores": ("--intensity", "zscore-nonzero"),
    "a ball": ("--eps", "0.5"),
}


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A scan of integers with a bright ball, and a model of each kind."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(np.rint(1000 * scan_array(SHAPE)).astype(np.int16), affine), tmp_path / "scan.nii.gz")
    for name, network in NETWORKS.items():
        torch.jit.script(network.eval()).save(tmp_path / f"{name}.ts")
        regions = '[output]\nactivation = "sigmoid"\nclasses = ["one", "two"]\n' if name == "regions" else ""
        (tmp_path / f"{name}.toml").write_text(f'[input]\nintensity = "minmax"\n{regions}')
    return tmp_path


def attack(case: Path, model: str, out: str, device: str, *more: object) -> Result:
    target = more if "--target" in more else ("--target", "shift:1:4,2,0mm", *more)
    return mafl(
        "attack", case / "scan.nii.gz", "--model", case / f"{model}.ts", "-o", case / out, "--device", device, *target
    )  # fmt: skip


def finished(result: Result, out: Path) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj).astype(np.float64)


def on_both(case: Path, model: str, *more: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cases of the reports of a run on the CPU (folder `cpu`) and of one on the GPU (folder `gpu`)."""
    cpu = finished(attack(case, model, "cpu", "cpu", *more), case / "cpu")["cases"][0]
    gpu = finished(attack(case, model, "gpu", DEVICE, *more), case / "gpu")["cases"][0]
    return cpu, gpu


def agree(cpu: dict[str, Any], gpu: dict[str, Any], *, score: float, length: float) -> None:
    """Numbers of two runs. score: how far IoU and hit rate may be apart; length: the L2 of the change, as a share."""
    for name in ("target_iou", "hit_rate"):
        one, other = (each["metrics"]["post_write"][name] for each in (cpu, gpu))
        assert other == one if one["value"] is None else other["value"] == pytest.approx(one["value"], abs=score)
    one, other = (each["metrics"]["size"]["l2"]["model"] for each in (cpu, gpu))
    assert other == pytest.approx(one, rel=length)


# --- the same as on the CPU -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_after_few_steps_every_voxel_is_that_of_the_cpu(case: Path, view: str) -> None:
    model, options = VIEWS[view]
    cpu, gpu = on_both(case, model, "--steps", 4, *options)
    one, other = (voxels(case / folder / "adversarial.nii.gz") for folder in ("cpu", "gpu"))
    clean = voxels(case / "scan.nii.gz")
    assert (one != clean).any()
    assert np.abs(one - other).max() <= 1e-3 * np.ptp(clean)
    for name in ("prediction_clean", "target"):
        assert np.array_equal(voxels(case / "cpu" / f"{name}.nii.gz"), voxels(case / "gpu" / f"{name}.nii.gz"))
    assert cpu["attack"]["passes"] == gpu["attack"]["passes"]
    agree(cpu, gpu, score=0.02, length=1e-2)


@pytest.mark.parametrize("view", ["slices", "volume", "windows", "another spacing"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_after_many_steps_the_verdict_is_that_of_the_cpu(case: Path, view: str, settings: str) -> None:
    model, options = VIEWS[view]
    cpu, gpu = on_both(case, model, "--steps", 60, *options, *SETTINGS[settings])
    assert gpu["attack"]["goal_reached"] == cpu["attack"]["goal_reached"]
    agree(cpu, gpu, score=0.02, length=0.1)


@pytest.mark.parametrize("method", ["asma", "pgd", "mifgsm", "segpgd", "cospgd", "ssah", "dag", "mafl-paper"])
def test_every_method_runs(case: Path, method: str) -> None:
    cpu, gpu = on_both(case, "bright2d", "--steps", 10, "--method", method)
    agree(cpu, gpu, score=0.05, length=0.1)


def test_a_guide_and_a_mask_go_along(case: Path) -> None:
    """And what may change is the same voxels."""
    scan = nib.load(case / "scan.nii.gz")
    guide, within = voxels(case / "scan.nii.gz")[::-1], np.zeros(SHAPE, np.uint8)
    within[4:-4] = 1
    nib.save(nib.Nifti1Image(guide.astype(np.int16), scan.affine), case / "guide.nii.gz")
    nib.save(nib.Nifti1Image(within, scan.affine), case / "within.nii.gz")
    options = ("--guide", case / "guide.nii.gz", "--feature-weight", 0.3, "--within", case / "within.nii.gz")
    cpu, gpu = on_both(case, "batch2d", "--target", "erase:1", "--steps", 4, *options)
    agree(cpu, gpu, score=0.02, length=0.02)
    change = voxels(case / "gpu" / "adversarial.nii.gz") - voxels(case / "scan.nii.gz")
    assert change.any()
    assert not change[within == 0].any()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("view", ["slices", "volume", "windows"])
def test_a_lower_precision_finds_what_float32_finds(case: Path, view: str, precision: str) -> None:
    model, options = VIEWS[view]
    exact, fast = (
        finished(attack(case, model, out, DEVICE, "--steps", 60, *options, *more), case / out)
        for out, more in (("exact", ()), ("fast", ("--precision", precision)))
    )
    assert fast["run"]["settings"]["precision"] == precision
    assert fast["cases"][0]["attack"]["goal_reached"] == exact["cases"][0]["attack"]["goal_reached"]
    agree(exact["cases"][0], fast["cases"][0], score=0.03, length=0.3)


# --- what is computed, and where ------------------------------------------------------------------------------------


def test_float32_is_float32() -> None:
    """TF32 would be off by some 1e-4."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv3d(8, 32, 3), nn.Conv3d(32, 2, 3)).eval(), torch.rand(1, 8, 16, 16, 16)
    switches = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    from mafl_cli.network.device import exactly

    with torch.no_grad():
        expected = network.double()(x.double())
        network.float().to(DEVICE)
        with exactly(torch.device(DEVICE)):
            found = network(x.to(DEVICE))
    assert (found.cpu().double() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == switches


def test_operators_that_were_compiled_into_one_are_attacked_all_the_same(case: Path) -> None:
    network = torch.jit.load(case / "batch2d.ts", map_location=DEVICE).eval()
    image = torch.rand(2, 1, 16, 16, device=DEVICE)
    with torch.no_grad():
        drawn = [network(image).argmax(dim=1) for _ in range(4)][-1]
    target = drawn.clone()
    target[:, 4:12, 4:12] = (target[:, 4:12, 4:12] + 1) % 3
    found = mafl_cli.attack(network, image, target, steps=10)
    assert (found.adversarial != image).any()


def test_the_report_says_where_it_was_computed_and_what_that_took(case: Path) -> None:
    report = finished(attack(case, "bright3d", "out", DEVICE, "--steps", 4), case / "out")
    device, memory = report["environment"]["device"], report["cases"][0]["memory"]
    assert device["type"] == torch.device(DEVICE).type
    if device["type"] == "cuda":
        assert device["name"] == torch.cuda.get_device_name(DEVICE)
        assert memory["peak_device_bytes"] > np.prod(SHAPE) * 4
    assert finished(attack(case, "bright3d", "cpu", "cpu", "--steps", 4), case / "cpu")["cases"][0]["memory"][
        "peak_device_bytes"
    ] is None  # fmt: skip


def test_devices_are_what_was_asked_for(case: Path) -> None:
    for choice in ("auto", f"{DEVICE}:0"):
        result = attack(case, "bright2d", "out", choice, "--steps", 2, "--overwrite")
        assert finished(result, case / "out")["environment"]["device"]["type"] == torch.device(DEVICE).type
    said = attack(case, "bright2d", "none", "cuda:99", "--steps", 2, "-q")
    assert said.exit_code == 2
    assert said.stderr.startswith("mafl: --device cuda:99 does not exist: the last of this machine is cuda:")
    assert said.stderr.count("\n") == 1
    assert not (case / "none").exists()


@pytest.mark.parametrize("first", ["cpu", DEVICE])
def test_a_run_is_judged_on_the_other_device(case: Path, first: str) -> None:
    second = DEVICE if first == "cpu" else "cpu"
    finished(attack(case, "instance3d", "out", first, "--steps", 20), case / "out")
    found = []
    for device in (first, second):
        judged = mafl(
            "evaluate", case / "out", "--model", case / "instance3d.ts", "--device", device, "--json", case / "e.json",
            "--transform", "blur:1",
        )  # fmt: skip
        assert judged.exit_code == 0, judged.stderr
        found.append(json.loads((case / "e.json").read_text()))
    assert [each["environment"]["device"]["type"] for each in found] == [torch.device(d).type for d in (first, second)]
    for name in ("target_iou", "hit_rate"):
        one, other = (each["cases"][0]["metrics"]["post_write"][name]["value"] for each in found)
        assert other == pytest.approx(one, abs=0.01)
    one, other = (each["cases"][0]["survival"][0]["adversarial"]["target_iou"]["value"] for each in found)
    assert other == pytest.approx(one, abs=0.02)


@pytest.mark.parametrize("kind", ["scripted", "traced", "exported"])
def test_a_model_that_was_saved_on_one_device_is_read_on_the_other(case: Path, kind: str) -> None:
    network = SmallUNet(2, 1, 3, "batch", seed=8)
    example = torch.rand(1, 1, 24, 20)
    for home in ("cpu", DEVICE):
        network, example = network.to(home), example.to(home)
        if kind == "exported":
            path = case / "moved.pt2"
            torch.export.save(torch.export.export(network, (example,)), path)
        else:
            path = case / "moved.ts"
            made = torch.jit.script(network) if kind == "scripted" else torch.jit.trace(network, example)
            made.save(path)
        lengths = []
        for device in ("cpu", DEVICE):
            out = case / f"{home}-{device}".replace(":", "")
            result = mafl(
                "attack", case / "scan.nii.gz", "--target", "erase:1", "--model", path, "-o", out, "--device", device,
                "--steps", 4, "--intensity", "minmax", "--overwrite",
            )  # fmt: skip
            lengths.append(finished(result, out)["cases"][0]["metrics"]["size"]["l2"]["model"])
        assert lengths[1] == pytest.approx(lengths[0], rel=0.02)


def test_workers_share_a_gpu(case: Path) -> None:
    scans = case / "scans"
    scans.mkdir()
    for number in range(3):
        scan = nib.load(case / "scan.nii.gz")
        nib.save(
            nib.Nifti1Image(np.roll(voxels(case / "scan.nii.gz"), number, 0), scan.affine), scans / f"{number}.nii"
        )
    lengths = []
    for workers in (1, 2):
        out = case / f"workers{workers}"
        result = mafl(
            "attack", scans, "--target", "shift:1:4,2,0mm", "--model", case / "bright3d.ts", "-o", out, "-j", workers,
            "--device", DEVICE, "--steps", 4,
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        reports = [json.loads((out / str(number) / "report.json").read_text()) for number in range(3)]
        assert {each["environment"]["device"]["type"] for each in reports} == {torch.device(DEVICE).type}
        lengths.append([each["cases"][0]["metrics"]["size"]["l2"]["model"] for each in reports])
    assert lengths[1] == pytest.approx(lengths[0], rel=0.01)


# --- arrays ---------------------------------------------------------------------------------------------------------


def batch() -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(np.moveaxis(scan_array((24, 20, 4)), 2, 0)[:, None].copy())
    return image, torch.zeros(4, 24, 20, dtype=torch.long)


def test_tensors_stay_on_their_gpu_whatever_the_caller_does_with_gradients() -> None:
    image, target = batch()
    network = Threshold(2).to(DEVICE)
    where = image.to(DEVICE)
    with torch.no_grad():
        found = mafl_cli.attack(network, where, target, steps=20, goal_iou=0.9, goal_hit=0.9)
    held = (found.adversarial, found.prediction, found.success, found.iou, found.hit, *vars(found.sizes).values())
    assert {each.device for each in held} == {where.device}
    assert found.success.all()
    assert torch.equal(found.prediction, network(found.adversarial).argmax(dim=1))
    assert all(parameter.requires_grad for parameter in network.parameters())
    cpu = mafl_cli.attack(Threshold(2), image, target, steps=20, goal_iou=0.9, goal_hit=0.9)
    torch.testing.assert_close(found.sizes.l2.cpu(), cpu.sizes.l2, rtol=0.05, atol=0)
    as_arrays = mafl_cli.attack(network, image.numpy(), target.numpy(), steps=4)
    assert isinstance(as_arrays.adversarial, np.ndarray)


def test_a_loaded_model_takes_tensors_of_its_own_device(case: Path) -> None:
    image, target = batch()
    model = mafl_cli.load_model(case / "bright2d.ts", device=DEVICE)
    found = mafl_cli.attack(model, image.to(DEVICE), target, steps=4, intensity="minmax")
    assert found.adversarial.device == image.to(DEVICE).device
    if torch.device(DEVICE).type == "cuda":
        with pytest.raises(UsageError, match=r"^`image` is on cpu, `model` was loaded on cuda:0: bring"):
            mafl_cli.attack(model, image, target, steps=4)
        with pytest.raises(UsageError, match=r"^`image` is on cpu, `model` on cuda:0: bring"):
            mafl_cli.attack(Threshold(2).to(DEVICE), image, target, steps=4)


# --- memory ---------------------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """Bright voxels are class 1, at the expense of 64 channels that nothing comes of."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.bright = Threshold(dims)
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.many, self.few = conv(1, 64, 3, padding=1), conv(64, 2, 1)
        with torch.no_grad():
            self.few.weight.mul_(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bright(x) + self.few(torch.tanh(self.many(x)))


@pytest.fixture
def room() -> Iterator[Any]:
    """A function that leaves this process so many MiB of the GPU, besides what is taken; all of it again at the end."""
    if torch.device(DEVICE).type != "cuda":
        pytest.skip("only a GPU's memory can be limited")
    total = torch.cuda.get_device_properties(DEVICE).total_memory

    def limit(mib: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + mib * 2**20) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def wide(case: Path, dims: int) -> tuple[str, tuple[object, ...]]:
    """A model that takes some 17 MiB for each feature map of a slice, or of a window, and the options of an attack."""
    size = (256, 256, 16) if dims == 2 else (96, 64, 64)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image((1000 * scan_array(size)).astype(np.int16), affine), case / "scan.nii.gz")
    torch.jit.script(Wide(dims).eval()).save(case / "wide.ts")
    (case / "wide.toml").write_text('[input]\nintensity = "minmax"\n')
    return "wide", ("--steps", 6, "--target", "erase:1", *(("--roi", "40,40,40") if dims == 3 else ()))


def test_when_memory_runs_out_fewer_go_together_with_the_same_result(case: Path, room: Any) -> None:
    """In slices: cuDNN wants much room of its own for 3-D windows, and how much differs from GPU to GPU."""
    model, options = wide(case, 2)
    whole = finished(attack(case, model, "whole", DEVICE, *options), case / "whole")["cases"][0]
    room(220)
    result = attack(case, model, "parts", DEVICE, *options)
    parts = finished(result, case / "parts")["cases"][0]
    assert "not enough memory: going on with" in result.stderr
    agree(whole, parts, score=0.02, length=0.02)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_does_not_fit_alone_is_one_sentence(case: Path, dims: int, room: Any) -> None:
    model, options = wide(case, dims)
    room(24)
    result = attack(case, model, "out", DEVICE, *options, "-q")
    assert result.exit_code == 4, result.stderr
    assert result.stderr.startswith("mafl: wide.ts: ")
    assert "needs more memory than there is" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (case / "out").exists()
    torch.cuda.set_per_process_memory_fraction(1.0)
    finished(attack(case, model, "out", DEVICE, *options), case / "out")
