"""The library as a Python user meets it: arrays and files in, typed results out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Blobs, Threshold, mafl, scan_array
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


def test_the_floor_of_a_channel_is_its_own_on_arrays_as_through_files(tmp_path: Path) -> None:
    """Zero is background in the channel without negative values: none of its tissue becomes darker than the darkest."""
    tissue = scan_array((24, 20, 4))
    bare = tissue + 0.3
    bare[:3] = 0
    channels = (bare, tissue - 0.4)
    model = tmp_path / "model.ts"
    torch.jit.script(Threshold(2, channels=2)).save(model)
    (tmp_path / "model.toml").write_text("[input]\ndims = 2\nslice_axis = 'k'\nintensity = 'zscore-nonzero'\n")
    mask = save(tmp_path / "mask.nii.gz", np.zeros(tissue.shape, np.uint8))
    scans = [save(tmp_path / f"{index}.nii.gz", channel) for index, channel in enumerate(channels)]
    assert mafl_cli.attack_scan(scans, mask, model=model, out=tmp_path / "out", steps=12, device="cpu") is not None
    written = [nib.load(tmp_path / "out" / f"adversarial_{index:04d}.nii.gz").get_fdata() for index in range(2)]
    image = np.stack([np.moveaxis(channel, 2, 0) for channel in channels], axis=1)
    found = mafl_cli.attack(model, image, erased(), steps=12)
    mine = np.moveaxis(found.adversarial, 0, 3)
    assert abs(mine - written).max() < 1e-5
    assert mine[0][bare > 0].min() == bare[bare > 0].min()
    assert mine[1].min() == channels[1].min()
    assert (mine[0][bare == 0] == 0).all()


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
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    volume = mafl_cli.read_scan(str(save(tmp_path / "scan.nii.gz", scan_array())))
    before = sorted(tmp_path.iterdir())
    assert mafl_cli.attack_scan(volume, "erase:1", model=tmp_path / "model.ts", steps=3) is not None
    assert sorted(tmp_path.iterdir()) == before


def cut(**change: object) -> dict[str, Any]:
    return {"model": Threshold(2), "image": IMAGE, "target": erased(), "steps": 2} | change


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"image": IMAGE[0]}, InputError, r"`image` must be \(B, C, \*spatial\).*, got \(1, 24, 20\)"),
        ({"image": IMAGE * np.nan}, InputError, "`image` holds NaN"),
        ({"image": "scan.nii.gz"}, InputError, "`image` must be a NumPy array or a tensor of real numbers, got str"),
        ({"image": [[1], [1, 2]]}, InputError, "`image` must be a NumPy array .*, got list"),
        ({"image": IMAGE + 1j}, InputError, "`image` must be a NumPy array .*, got complex64"),
        ({"image": torch.ones(1, 1, 8, 8).to_sparse()}, InputError, "`image` must be a dense tensor"),
        ({"image": IMAGE[:0]}, InputError, "at least one voxel"),
        ({"image": IMAGE.astype(float) * 1e300}, InputError, "`image` holds .* values beyond float32"),
        ({"image": np.concatenate([IMAGE, IMAGE], axis=1)}, InputError, "`image` has 2 channels, the model takes 1"),
        ({"target": erased()[:1]}, InputError, r"`target` must be .*\(4, 24, 20\).*, got \(1, 24, 20\)"),
        ({"target": erased()[:, None]}, InputError, "remove its channel axis"),
        ({"target": np.stack([erased() + 1, erased()], axis=1)}, InputError, "`target` is one-hot"),
        (
            {"target": np.stack([erased()] * 3, axis=1), "model": Blobs(2, [[1.0], [1.0]], [0.3, 0.6])},
            InputError,
            "the model has 2 regions that may overlap",
        ),
        ({"target": np.stack([erased()] * 2, axis=1), "activation": "softmax"}, InputError, "2 classes that exclude"),
        ({"target": erased() + 2}, InputError, "`target` must hold the model's classes, 0 to 1, got 2 to 2"),
        ({"target": erased() - 1}, InputError, "got -1 to -1"),
        ({"target": erased() / 2}, InputError, "`target` must hold class numbers"),
        ({"within": erased()[:1]}, InputError, "`within` must have the shape"),
        ({"within": erased()}, InputError, "`within` allows no voxel to change"),
        ({"within": erased() * np.nan}, InputError, "`within` must be bool or integers"),
        ({"guide": IMAGE[:1]}, InputError, "`guide` must have the shape"),
        ({"guide": IMAGE * np.nan}, InputError, "`guide` holds NaN"),
        ({"guide": IMAGE, "feature_weight": 0}, UsageError, "needs a feature term"),
        ({"model": 3}, UsageError, "`model` must be an nn.Module, .* got a int"),
        ({"model": Threshold}, UsageError, "got the class Threshold"),
        ({"goal_iuo": 3}, UsageError, r"there is no option 'goal_iuo': did you mean goal_iou\?"),
        ({"xyz": 3}, UsageError, "there is no option 'xyz': there are: .*, kappa, .*, tap"),
        ({"method": "fgsm"}, UsageError, "`method` must be one of"),
        ({"steps": 0}, UsageError, "`steps` must be from 1 to 1e"),
        ({"steps": 2.5}, UsageError, "`steps` must be a whole number, got 2.5"),
        ({"steps": True}, UsageError, "`steps` must be a whole number, got True"),
        ({"eps": "a"}, UsageError, "`eps` must be a number, got 'a'"),
        ({"adaptive_weights": "no"}, UsageError, "`adaptive_weights` must be True or False"),
        (
            {"config": mafl_cli.preset("pgd"), "eps": 1},
            UsageError,
            "`config` has all settings already: leave out .*eps",
        ),
        ({"config": mafl_cli.preset("pgd"), "steps": None, "method": "pgd"}, UsageError, "leave out method"),
        ({"roi": (8, 8, 8)}, UsageError, "`roi` must have a number for each of the 2 spatial axes, got 3"),
        ({"roi": "8,8"}, UsageError, "`roi` must be numbers"),
        ({"roi": (8.5, 8)}, UsageError, "roi"),
        ({"overlap": 2}, UsageError, "overlap"),
        ({"spacing": 1.0}, UsageError, "`spacing` must be numbers"),
        ({"spacing": (1, 1, 1)}, UsageError, "`spacing` must have a number for each"),
        ({"intensity": 3}, UsageError, "`intensity` must be a text"),
        ({"intensity": "zebra"}, UsageError, "zebra"),
        ({"tap": "conv:0"}, UsageError, "tap"),
        ({"tap": "nowhere"}, ModelError, "has no layer called 'nowhere'; it has convolution"),
        ({"precision": "fp8"}, UsageError, "`precision` must be one of float32, bf16, fp16"),
        ({"activation": "relu"}, UsageError, "`activation` must be one of softmax, sigmoid"),
        ({"attack_channels": ["T1"]}, UsageError, "the model has no channel 'T1'"),
        ({"attack_channels": []}, UsageError, "`attack_channels` must name at least one channel"),
    ],
)
def test_what_is_wrong_is_said_in_words_of_the_call(
    change: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        mafl_cli.attack(**cut(**change))


class Around(torch.nn.Module):
    """What `change` makes of the answer of a good network."""

    def __init__(self, change: Callable[[torch.Tensor], object], dims: int = 2) -> None:
        super().__init__()
        self.net, self.change = Threshold(dims), change

    def forward(self, x: torch.Tensor) -> object:
        return self.change(self.net(x))


class OwnError(Exception):
    """As code of a network may have it."""


def failing(error: Exception) -> Callable[[torch.Tensor], object]:
    def fail(logits: torch.Tensor) -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Around(failing(OwnError("no such layer"))), "Around: accepts .*: no such layer"),
        (Around(failing(RuntimeError("sizes in /home/me/net.py"))), "Around: accepts .*: sizes in net.py"),
        (Around(lambda logits: None), "no tensor"),
        (Around(lambda logits: logits.detach().numpy()), "no tensor"),
        (Around(lambda logits: logits[..., :7, :3]), "is not on the input's grid"),
        (Around(lambda logits: logits.mean((2, 3))), "is not on the input's grid"),
        (Around(lambda logits: logits.movedim(1, -1)), "has the channels last"),
        (Around(lambda logits: logits.argmax(1)), "gives labels .*: leave the argmax out|gives labels"),
        (Around(lambda logits: torch.from_numpy(logits.detach().numpy())), r"gives no gradient \(detached"),
        (Around(lambda logits: logits / 0 * 0), "gives NaN or infinite values"),
        (Threshold(2).double(), r"its weights are float64 and the image is float32; convert it with .float\(\)"),
        (Threshold(2).half(), "its weights are float16"),
        (Threshold(3), r"takes 1 channel\(s\) in 3-D, not any in 2-D"),
    ],
)
def test_a_module_that_cannot_be_attacked_is_refused_in_one_sentence(model: torch.nn.Module, said: str) -> None:
    with pytest.raises(ModelError, match=said) as raised:
        mafl_cli.attack(**cut(model=model))
    assert "\n" not in str(raised.value)
    assert not any(each.requires_grad is False for each in model.parameters())


@pytest.mark.parametrize(
    "pack", [lambda y: (y, 2 * y), lambda y: [y], lambda y: {"out": y, "low": y[..., ::2, ::2]}, lambda y: {"a": (y,)}]
)
def test_the_segmentation_is_found_in_what_a_module_returns(pack: Callable[[torch.Tensor], object]) -> None:
    plain = mafl_cli.attack(**cut())
    packed = mafl_cli.attack(**cut(model=Around(pack)))
    assert np.array_equal(plain.adversarial, packed.adversarial)


@pytest.mark.parametrize(
    "given",
    [
        IMAGE.astype(np.float64),
        IMAGE.astype(">f4"),
        IMAGE[:, :, ::-1][:, :, ::-1],
        np.asfortranarray(IMAGE),
        np.broadcast_to(IMAGE, IMAGE.shape),
        IMAGE.tolist(),
        torch.from_numpy(IMAGE).double(),
        torch.from_numpy(IMAGE).to(memory_format=torch.channels_last),
    ],
    ids=["float64", "big-endian", "strides", "Fortran", "read-only", "lists", "double", "channels last"],
)
def test_the_same_image_in_another_form_gives_the_same(given: object) -> None:
    before = np.asarray(given).copy()
    found = mafl_cli.attack(**cut(image=given))
    assert np.array_equal(np.asarray(found.adversarial), mafl_cli.attack(**cut()).adversarial)
    assert np.array_equal(before, np.asarray(given))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16, np.uint64, np.int8, ">i4"])
def test_a_target_of_any_whole_type(kind: Any) -> None:
    found = mafl_cli.attack(**cut(target=erased().astype(kind)))
    assert np.array_equal(found.adversarial, mafl_cli.attack(**cut()).adversarial)


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu"), float64_by_default]
)
def test_what_a_caller_has_switched_on_does_not_matter(mode: Callable[[], AbstractContextManager[object]]) -> None:
    plain, network = mafl_cli.attack(**cut()), Threshold(2)
    with mode():
        given = torch.from_numpy(IMAGE) * 1  # Under inference_mode a tensor of its kind.
        found = mafl_cli.attack(**cut(model=network, image=given, target=torch.from_numpy(erased()) * 1))
    assert np.array_equal(found.adversarial.numpy(), plain.adversarial)
    assert all(each.requires_grad for each in network.parameters())


def test_a_caller_may_have_another_default_for_files_too(tmp_path: Path) -> None:
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    scan = save(tmp_path / "scan.nii.gz", scan_array())
    with float64_by_default():
        assert mafl_cli.load_model(tmp_path / "model.ts", device="cpu").info.dims == 2
        report = mafl_cli.attack_scan(scan, "erase:1", model=tmp_path / "model.ts", out=tmp_path / "out", steps=2)
        verdict = mafl_cli.evaluate(tmp_path / "out", model=tmp_path / "model.ts")
    assert verdict.judged[0].metrics.post_write.target_iou == report.case.metrics.post_write.target_iou


def test_a_module_made_under_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        network = Threshold(2)
    with pytest.raises(ModelError, match=r"was made under torch\.inference_mode"):
        mafl_cli.attack(**cut(model=network))


def test_hooks_of_a_module_are_heard() -> None:
    brighter = Threshold(2)
    brighter.register_forward_pre_hook(lambda _, given: (given[0] + 0.2,))
    brighter.blur.register_full_backward_hook(lambda *_: None)
    found = mafl_cli.attack(**cut(model=brighter, steps=20))
    with torch.no_grad():
        drawn = brighter(torch.from_numpy(found.adversarial)).argmax(1).numpy()
    assert np.array_equal(found.prediction, drawn)
    assert not np.allclose(found.adversarial, mafl_cli.attack(**cut(steps=20)).adversarial, atol=0.05)


def test_samples_of_a_batch_are_attacked_each_on_its_own() -> None:
    norm = torch.nn.BatchNorm2d(2)
    assert norm.running_mean is not None
    norm.running_mean += 0.1
    network = torch.nn.Sequential(Threshold(2), norm).train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    # The range is that of the batch: the same one is given to each.
    image = np.clip(IMAGE, 0.05, 0.9)
    image[:, :, 0, 0], image[:, :, 0, 1] = 0.0, 1.0
    # Few steps: the last digits depend on the size of a batch, and grow with every step.
    together = mafl_cli.attack(network, image, erased(), steps=4)
    for row in range(len(image)):
        alone = mafl_cli.attack(network, image[row : row + 1], erased()[:1], steps=4)
        assert np.allclose(alone.adversarial[0], together.adversarial[row], atol=1e-3)
    assert network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_only_the_channels_that_are_named_change() -> None:
    image = np.concatenate([IMAGE, IMAGE], axis=1)
    model = Threshold(2, channels=2)
    for channel in (1, "1", "channel 1"):
        found = mafl_cli.attack(**cut(model=model, image=image, attack_channels=[channel]))
        change = abs(found.adversarial - image).max(axis=(0, 2, 3))
        assert change[0] == 0
        assert change[1] > 0


def test_regions_that_may_overlap_have_a_mask_each() -> None:
    model = Blobs(2, [[1.0], [1.0]], [0.3, 0.6])
    target = np.stack([erased(), erased()], axis=1)
    found = mafl_cli.attack(**cut(model=model, target=target, steps=30))
    assert found.prediction.shape == target.shape
    assert found.success.all()
    assert "activation: not stated, sigmoid because the target has a mask for each region" in found.assumptions


def test_precision_windows_and_a_layer_of_features() -> None:
    found = mafl_cli.attack(**cut(steps=20, precision="bf16", roi=(16, 16), overlap=0.25, tap="convolution:2"))
    assert found.success.all()


def test_settings_are_one_object_or_single_words() -> None:
    config = mafl_cli.preset("pgd", eps=0.1, eps_unit="model", steps=4)
    assert isinstance(config, mafl_cli.AttackConfig)
    assert set(mafl_cli.PRESETS) >= {"mafl", "pgd"}
    given = cut(steps=None)
    whole = mafl_cli.attack(**given, config=config)
    single = mafl_cli.attack(**given | {"steps": np.int64(4)}, method="pgd", eps=np.float64(0.1), eps_unit="model")
    assert np.array_equal(whole.adversarial, single.adversarial)


def test_errors_are_public() -> None:
    for name in ("UsageError", "InputError", "GeometryError", "ModelError", "OutputError"):
        assert issubclass(getattr(mafl_cli, name), mafl_cli.MaflError)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"within_": 1}, r"there is no option 'within_': did you mean within\?"),
        ({"mode": "4d"}, "`mode` must be one of auto, 2d, 3d, got '4d'"),
        ({"save_as": "png"}, "`save_as` must be one of float32, source"),
        ({"tap": "x:0"}, "tap"),
        ({"roi": (1, 2, "a")}, "`roi` must be numbers"),
        ({"orientation": "up"}, "orientation"),
        ({"model": Threshold(2)}, "an nn.Module is attacked on arrays"),
        ({"model": None}, "`model` must be a path, as str or Path, got NoneType"),
        ({"within": IMAGE}, "`within` must be a path, as str or Path, got ndarray"),
        ({"guides": [3]}, "`guides` must be a path, as str or Path, got int"),
        ({"overwrite": "no"}, "`overwrite` must be True or False, got 'no'"),
        ({"size_limit": "3"}, "`size_limit` must be a number, got '3'"),
        ({"label_map": "0:1"}, "`label_map` must be a dict"),
    ],
)
def test_a_wrong_option_is_said_before_a_scan_is_read(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mafl_cli.attack_scan("nowhere.nii.gz", "erase:1", **options)


def test_a_scan_is_files_or_volumes(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", scan_array())
    both: list[Any] = [mafl_cli.read_scan(path), path]
    with pytest.raises(UsageError, match="`scan` must be files or volumes"):
        mafl_cli.attack_scan(both, "erase:1")


@pytest.mark.parametrize(
    ("scan", "target", "said"),
    [
        (IMAGE, "erase:1", "`scan` must be a path, as str or Path, got ndarray"),
        ([], "erase:1", "`scan` must name at least one file"),
        ("scan.nii.gz", None, "`target` must be a mask file, or a recipe"),
        ("scan.nii.gz", [], "`target` must be a mask file, or a recipe"),
        ("scan.nii.gz", IMAGE, "`target` must be a path, as str or Path, got ndarray"),
    ],
)
def test_a_scan_and_a_target_are_files(scan: Any, target: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mafl_cli.attack_scan(scan, target)


def test_a_pair_needs_a_model_and_a_single_word_is_a_list_of_one(tmp_path: Path) -> None:
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    scan = save(tmp_path / "scan.nii.gz", scan_array())
    mask = save(tmp_path / "mask.nii.gz", np.zeros(scan_array().shape, np.uint8))
    pair: dict[str, Any] = {"original": scan, "adversarial": scan, "target": mask}
    with pytest.raises(UsageError, match="`model` must name the model"):
        mafl_cli.evaluate(**pair)
    with pytest.raises(UsageError, match="there is no option 'spacings': did you mean spacing"):
        mafl_cli.evaluate(**pair, spacings=1)
    verdict = mafl_cli.evaluate(**pair, model=tmp_path / "model.ts", fail_if="target_iou > 0.5", trials="blur:1")
    assert len(verdict.gates) == len(verdict.survival) == 1


def test_random_numbers_of_the_caller_are_left_alone(tmp_path: Path) -> None:
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    scan = save(tmp_path / "scan.nii.gz", scan_array())
    given, state = cut(), torch.random.get_rng_state()
    mafl_cli.attack_scan(scan, "erase:1", model=tmp_path / "model.ts", steps=1, guides=None, within=None)
    mafl_cli.attack(**given)
    assert torch.equal(torch.random.get_rng_state(), state)
