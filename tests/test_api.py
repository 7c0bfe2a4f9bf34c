"""The library as a Python user meets it: arrays and files in, typed results out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from numpy.typing import NDArray

import mafl_cli
from mafl_cli.errors import InputError, ModelError, UsageError

IMAGE = np.moveaxis(scan_array((24, 20, 4)), 2, 0)[:, np.newaxis].copy()  # (B, 1, H, W)


def erased() -> NDArray[np.int64]:
    return np.zeros((len(IMAGE), *IMAGE.shape[2:]), dtype=np.int64)


def save(path: Path, array: NDArray[Any]) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path


def test_the_import_costs_nothing() -> None:
    code = "import sys, mafl_cli; dir(mafl_cli); print([n for n in ('torch', 'numpy', 'typer') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    for name in mafl_cli.__all__:
        assert name in dir(mafl_cli)
        assert name == "__version__" or getattr(mafl_cli, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'attacks'"):
        _ = mafl_cli.attacks


def test_a_module_is_attacked_on_arrays() -> None:
    found = mafl_cli.attack(Threshold(2), IMAGE, erased(), steps=20, goal_iou=0.9, goal_hit=0.9)
    assert isinstance(found.adversarial, np.ndarray)
    assert found.adversarial.dtype == np.float32
    assert found.adversarial.shape == IMAGE.shape
    assert found.success.all()
    assert found.success.dtype == bool
    change = (found.adversarial - IMAGE).reshape(len(IMAGE), -1)
    assert np.allclose(found.sizes.l2, np.linalg.norm(change, axis=1), rtol=1e-5)
    assert np.allclose(found.sizes.linf, abs(change).max(axis=1))
    assert set(vars(found.trace)) == {"step", "loss", "score", "reached", "l2_model"}
    with torch.no_grad():
        drawn = Threshold(2)(torch.from_numpy(found.adversarial)).argmax(1).numpy()
    assert np.array_equal(drawn, found.prediction)


def test_tensors_come_back_as_tensors_and_nothing_of_the_module_changes() -> None:
    network = Threshold(2).train()
    network.head.eval()
    network.blur.weight.requires_grad_(False)
    network.head.weight.grad = torch.ones_like(network.head.weight)
    seen = []
    hook = network.register_forward_hook(lambda *_: seen.append(1))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.from_numpy(IMAGE).requires_grad_()
    with torch.no_grad():
        found = mafl_cli.attack(network, x, torch.from_numpy(erased()), steps=4)
        assert not torch.is_grad_enabled()
    assert isinstance(found.adversarial, torch.Tensor)
    assert not found.adversarial.requires_grad
    assert network.training
    assert not network.head.training
    assert [each.requires_grad for each in network.parameters()] == [False, True, True]
    assert torch.equal(network.head.weight.grad, torch.ones_like(network.head.weight))
    assert network._forward_hooks == {hook.id: network._forward_hooks[hook.id]}
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert x.grad is None
    assert torch.equal(x.detach(), torch.from_numpy(IMAGE))


def test_a_ball_and_a_mask_hold() -> None:
    within = np.zeros((len(IMAGE), *IMAGE.shape[2:]), dtype=bool)
    within[:, 6:18, 6:14] = True
    found = mafl_cli.attack(Threshold(2), IMAGE, erased(), steps=4, eps=0.05, within=within)
    change = abs(found.adversarial - IMAGE)[:, 0]
    assert 0 < change.max() <= 0.05 + 1e-6
    assert not change[~within].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_attack_through_the_file_gives_the_same_perturbation(dims: int, tmp_path: Path) -> None:
    volume = scan_array((24, 20, 4)) if dims == 2 else scan_array((16, 16, 16))
    model = tmp_path / "model.ts"
    torch.jit.script(Threshold(dims)).save(model)
    (tmp_path / "model.toml").write_text(f"[input]\ndims = {dims}\nslice_axis = 'k'\n")
    mask = np.zeros(volume.shape, np.uint8)
    save(tmp_path / "mask.nii.gz", mask)
    scan = save(tmp_path / "scan.nii.gz", volume)
    report = mafl_cli.attack_scan(
        scan, tmp_path / "mask.nii.gz", model=model, out=tmp_path / "out", steps=8, device="cpu"
    )
    assert report is not None
    written = nib.load(tmp_path / "out" / "adversarial.nii.gz").get_fdata(dtype=np.float32)
    image = np.moveaxis(volume, 2, 0)[:, np.newaxis] if dims == 2 else volume[np.newaxis, np.newaxis]
    target = np.zeros((len(image), *image.shape[2:]), np.int64)
    for given in (Threshold(dims), model, str(model), mafl_cli.load_model(model, device="cpu")):
        found = mafl_cli.attack(given, image, target, steps=8)
        mine = np.moveaxis(found.adversarial[:, 0], 0, 2) if dims == 2 else found.adversarial[0, 0]
        assert np.abs(mine - written).max() < 1e-5
        assert np.abs(mine - volume).max() > 1e-2


def test_the_command_does_what_the_library_does(tmp_path: Path) -> None:
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    scan = save(tmp_path / "scan.nii.gz", scan_array())
    mafl_cli.attack_scan(scan, "erase:1", model=tmp_path / "model.ts", out=tmp_path / "a", steps=3)
    volume = mafl_cli.Volume
    assert volume.__name__ == "Volume"
    run = mafl("attack", scan, "-t", "erase:1", "-m", tmp_path / "model.ts", "-o", tmp_path / "b", "--steps", 3, "-q")
    assert run.exit_code == 0
    one, other = ((tmp_path / folder / "adversarial.nii.gz").read_bytes() for folder in "ab")
    assert one == other
    assert mafl_cli.evaluate(tmp_path / "a", model=tmp_path / "model.ts", fail_if=["hit_rate < 0.001"]) is not None
    assert mafl_cli.inspect(scan)["kind"] == "image"


def test_a_volume_that_was_read_already_is_attacked_and_nothing_is_kept(tmp_path: Path) -> None:
    from mafl_cli.scans.formats import read_scan

    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    volume = read_scan(save(tmp_path / "scan.nii.gz", scan_array()))
    before = sorted(tmp_path.iterdir())
    assert mafl_cli.attack_scan(volume, "erase:1", model=tmp_path / "model.ts", steps=3) is not None
    assert sorted(tmp_path.iterdir()) == before


class Labels(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0.5).long()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"image": IMAGE[0]}, InputError, r"`image` has the shape \(1, 24, 20\): expected \(B, C, \*spatial\)"),
        ({"image": IMAGE * np.nan}, InputError, "`image` holds NaN"),
        ({"image": np.concatenate([IMAGE, IMAGE], axis=1)}, InputError, "`image` has 2 channels, the model takes 1"),
        ({"target": erased()[:1]}, InputError, r"`target` has the shape \(1, 24, 20\): expected \(4, 24, 20\)"),
        ({"target": erased() + 2}, InputError, "`target` holds 2 to 2, the model's classes are 0 to 1"),
        ({"target": erased() / 2}, InputError, "`target` must hold class numbers"),
        ({"within": erased()[:1]}, InputError, "`within` has the shape"),
        ({"guide": IMAGE[:1]}, InputError, "`guide` has the shape"),
        ({"model": 3}, UsageError, "`model` must be an nn.Module"),
        ({"model": Labels()}, ModelError, "gives labels"),
        ({"stepz": 3}, UsageError, "there is no option 'stepz'; there are: .*steps"),
        ({"method": "fgsm"}, UsageError, "method 'fgsm' is not one of"),
        ({"steps": 0}, UsageError, "steps = 0 is outside"),
    ],
)
def test_what_is_wrong_is_said_in_words_of_the_call(
    change: dict[str, object], error: type[Exception], said: str
) -> None:
    given: dict[str, Any] = {"model": Threshold(2), "image": IMAGE, "target": erased(), "steps": 2} | change
    with pytest.raises(error, match=said):
        mafl_cli.attack(**given)
