"""Ensembles: several models of any kind are one function, with the gradient of the mean of their answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from torch import Tensor, nn

import mafl_cli as lib
from mafl_cli.api import attack_request
from mafl_cli.batch.batch import request_hash
from mafl_cli.batch.tables import finished_row
from mafl_cli.config import EnsembleRule
from mafl_cli.errors import ModelError, UsageError
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Grids
from mafl_cli.field.tiling import Tiling
from mafl_cli.field.whole import Whole
from mafl_cli.field.windows import Windows
from mafl_cli.network import kinds
from mafl_cli.network.card_file import find_card
from mafl_cli.network.gradient import difference
from mafl_cli.network.load import load
from mafl_cli.network.opening import Opening
from mafl_cli.network.source import Joined
from mafl_cli.results.read import read_report

CPU = torch.device("cpu")


def network(seed: int, *, dims: int = 2, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    return nn.Sequential(conv(1, 6, 3, padding=1), nn.Tanh(), conv(6, classes, 3, padding=1)).eval()


class Probabilities(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.inner(x), dim=1)


def saved(module: nn.Module, path: Path, card: str = "", *, dims: int = 2) -> Path:
    example = torch.rand(1, 1, *(16,) * dims)
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(module, (example,)), str(path))
    elif path.suffix == ".onnx":
        names = {"x": {2 + axis: f"size{axis}" for axis in range(dims)}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (example,), str(path), input_names=["x"], dynamic_axes=names, dynamo=False)
    else:
        torch.jit.trace(module, example).save(str(path))
    if card:
        path.with_suffix(".toml").write_text(card)
    return path


def scaled(intensity: str) -> str:
    return f'[input]\norientation = "native"\nintensity = "{intensity}"\n'


def loaded(model: Joined, size: tuple[int, ...] = (16, 16)) -> tuple:
    return load(model, device=CPU, size=lambda dims: size)


def by_autograd(modules: list[nn.Module], scales: list, x: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Logits of the mean of modules on native voxels, and the gradient of a weighed sum of them."""
    x = x.clone().requires_grad_()
    answers = [module(scale(x)) for module, scale in zip(modules, scales, strict=True)]
    if rule == "mean":
        mean = torch.stack(answers).mean(dim=0)
    else:
        mean = torch.stack([torch.softmax(each, dim=1) for each in answers]).mean(dim=0).log()
    return mean.detach(), torch.autograd.grad(weighed(mean), x)[0]


def weighed(logits: Tensor) -> Tensor:
    weights = torch.rand(logits.shape, generator=torch.Generator().manual_seed(5))
    return (torch.log_softmax(logits, dim=1) * weights).sum()


@pytest.mark.parametrize("rule", ["mean", "mean-probabilities"])
def test_prediction_and_gradient_are_those_of_the_mean_of_the_modules(rule: EnsembleRule, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    modules = [network(1), network(2), network(3)]
    files = (
        saved(modules[0], tmp_path / "one.ts", scaled("minmax")),
        saved(modules[1], tmp_path / "two.pt2", scaled("zscore")),
        saved(Probabilities(modules[2]), tmp_path / "three.onnx", scaled("window:-10,60")),
    )
    segmenter, info, card = loaded(Joined(files, rule))
    data = 20 + 30 * torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    array = data[:, 0].numpy()
    low, high, mean, std = array.min(), array.max(), array.mean(), array.std()
    scales = [lambda x: (x - low) / (high - low), lambda x: (x - mean) / std, lambda x: (x + 10) / 70]
    wanted, slope = by_autograd(modules, scales, data, rule)
    field = Whole(segmenter, Preprocessing.freeze(card.intensity, [array], CPU), info.divisor)
    drawn = field.predict(data).logits
    assert torch.allclose(torch.softmax(drawn, 1), torch.softmax(wanted, 1), atol=1e-5)
    found = field.slopes(data, lambda p: [weighed(p.logits)])
    assert torch.allclose(found.gradients[0], slope, atol=1e-5 * float(slope.abs().max()))
    # The files answer as their graphs do.
    ready = next(field.inputs(data[:1], torch.ones(1, 16, 16, dtype=torch.bool), 1))
    assert difference(segmenter, ready).largest < 1e-5
    assert [member.name for member in info.members] == ["one.ts", "two.pt2", "three.onnx"]
    assert [member.intensity.kind for member in info.members] == ["minmax", "zscore", "window"]


def test_windows_blend_the_mean_of_logits_as_they_blend_each_member(tmp_path: Path) -> None:
    modules = [network(1, dims=3), network(2, dims=3)]
    files = tuple(saved(each, tmp_path / f"{n}.ts", dims=3) for n, each in enumerate(modules))
    joined, info, _ = loaded(Joined(files), (8, 8, 8))
    x = torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    plain = Preprocessing.freeze(find_card(files[0]).with_assumptions()[0].intensity, [x[0, 0].numpy()], CPU)
    tiling, grids = Tiling((8, 8, 8), 0.5, "gaussian"), Grids.same((12, 12, 12))
    fields = [
        Windows(each, plain, tiling, grids, batch=1, say=print)
        for each in (joined, *(load(file, device=CPU, size=lambda dims: (8, 8, 8))[0] for file in files))
    ]
    whole, *alone = (field.slopes(x, lambda p: [(p.logits**2).sum()]) for field in fields)
    mean = torch.stack([each.prediction.logits for each in alone]).mean(dim=0)
    assert torch.allclose(whole.prediction.logits, mean, atol=1e-5)
    assert info.dims == 3


def test_one_member_at_a_time_keeps_what_a_gradient_needs(tmp_path: Path) -> None:
    files = tuple(saved(network(n), tmp_path / f"{n}.ts") for n in range(4))
    segmenter, _, _ = loaded(Joined(files))
    alone, _, _ = load(files[0], device=CPU, size=lambda dims: (16, 16))
    x = torch.rand(1, 1, 16, 16)
    assert segmenter.activation_bytes(x) == alone.activation_bytes(x)

    def kept(answers: Callable[[Tensor], object]) -> int:
        bytes_of: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            bytes_of[tensor.data_ptr()] = tensor.numel() * 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            answers(x.clone().requires_grad_())
        return sum(bytes_of.values())

    assert kept(segmenter) < kept(alone)


def test_single_logits_and_regions_are_joined_as_such() -> None:
    for channels, activation in ((1, None), (2, "sigmoid")):
        modules = [network(n, classes=channels) for n in (1, 2)]
        card = {"output": {"activation": activation}} if activation else None
        model = lib.load_model(modules, ensemble="mean", card=card, device="cpu")
        segmenter, info, _ = load(model.source, device=CPU, size=lambda dims: (16, 16))
        x = torch.rand(1, 1, 16, 16)
        mean = torch.stack([module(x) for module in modules]).mean(dim=0)
        assert info.activation == "sigmoid"
        assert torch.allclose(segmenter.original.raw(x), mean, atol=1e-5)
        assert torch.equal(segmenter(x).labels.long().view(-1), (mean > 0).long().view(-1))


def test_a_member_that_no_graph_stands_for_is_differentiated_itself() -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([-x, x if x.mean() > 0.5 else 2 * x], dim=1)

    other = network(1, classes=2)
    model = lib.load_model([Decides(), other], ensemble="mean", device="cpu")
    segmenter, info, _ = load(model.source, device=CPU, size=lambda dims: (16, 16))
    assert [member.gradient_from for member in info.members] == ["file", "graph"]
    x = torch.full((1, 1, 16, 16), 0.2, requires_grad=True)
    mean = (Decides()(x) + other(x)) / 2
    (wanted,) = torch.autograd.grad(weighed(mean), x, retain_graph=True)
    (found,) = torch.autograd.grad(weighed(segmenter(x).logits), x)
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_arrays_are_attacked_through_all_members(tmp_path: Path) -> None:
    bright = [nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)]
    for conv, middle in zip(bright, (0.3, 0.7), strict=True):
        conv.weight.data = torch.tensor([-10.0, 10.0]).view(2, 1, 1, 1)
        conv.bias.data = torch.tensor([10.0, -10.0]) * middle
    image = np.full((1, 1, 8, 8), 0.4, np.float32)
    image[..., 0] = 1
    target = np.ones((1, 8, 8), np.int64)
    target[0, :4] = 0
    found = lib.attack(lib.load_model(bright, ensemble="mean"), image, target, steps=20)
    # Together they draw what is above 0.5, where one alone needs 0.3.
    assert found.success.all()
    assert np.array_equal(found.adversarial[0, 0] > 0.5, target[0] == 1)


def test_whatever_cannot_be_joined_is_said(tmp_path: Path) -> None:
    three = saved(network(1), tmp_path / "three.ts")
    two = saved(network(2, classes=2), tmp_path / "two.ts")
    turned = saved(network(3), tmp_path / "turned.ts", '[input]\norientation = "LPS"\n')
    with pytest.raises(ModelError, match=r"three\.ts and two\.ts cannot be joined: the number of classes .* 3 and 2"):
        loaded(Joined((three, two)))
    with pytest.raises(ModelError, match=r"three\.ts and turned\.ts cannot be joined: orientation .* LPS"):
        find_card(Joined((three, turned)))
    assert find_card(Joined((three, turned)), orientation="RAS").orientation == "RAS"
    with pytest.raises(UsageError, match="`folds`"):
        kinds.read_model(Joined((three, turned)), CPU, Opening(folds=("0",)))


def test_a_digest_is_of_the_members_and_their_rule_in_any_order(tmp_path: Path) -> None:
    one, two = saved(network(1), tmp_path / "one.ts"), saved(network(2), tmp_path / "two.ts")
    digests = [kinds.digest(each) for each in (Joined((one, two)), Joined((two, one)))]
    assert digests[0] == digests[1]
    others = (Joined((one, one)), Joined((one, two), "mean-probabilities"), one)
    assert not {kinds.digest(each) for each in others} & set(digests)
    assert kinds.digest(Joined((one, tmp_path / "none.ts"))) == ""


@pytest.fixture
def two_scalings(tmp_path: Path) -> tuple[Path, Path, Path, Path]:
    """A scan, a target on it, and two networks that draw the same on it with different scalings."""
    array = scan_array()
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii.gz")
    low, high = float(array.min()), float(array.max())
    paths = []
    for name, intensity in (("a.ts", "minmax"), ("b.ts", f"window:{low},{high + 1e-3}")):
        paths.append(saved(Threshold(2).eval(), tmp_path / name, scaled(intensity)))
    target = np.zeros(array.shape, np.uint8)
    target[8:12, 8:12] = 1
    nib.save(nib.Nifti1Image(target, np.eye(4)), tmp_path / "target.nii.gz")
    return tmp_path / "scan.nii.gz", tmp_path / "target.nii.gz", paths[0], paths[1]


def test_the_command_line_attacks_and_judges_an_ensemble(
    two_scalings: tuple[Path, Path, Path, Path], tmp_path: Path
) -> None:
    scan, target, one, two = two_scalings
    out = tmp_path / "out"
    models = ("--model", one, "--model", two)
    refused = mafl("attack", scan, "--target", target, *models, "-o", out)
    assert refused.exit_code == 2
    assert "--ensemble" in refused.stderr
    assert not out.exists()
    run = mafl("attack", scan, "--target", target, *models, "--ensemble", "mean", "-o", out, "--steps", 20)
    assert run.exit_code == 0, run.stderr
    model = json.loads((out / "report.json").read_text())["model"]
    assert (model["format"], model["ensemble"], model["intensity"]["kind"]) == ("ensemble", "mean", "members")
    assert [member["name"] for member in model["members"]] == ["a.ts", "b.ts"]
    assert [member["sha256"] for member in model["members"]] == [kinds.digest(one), kinds.digest(two)]
    # Judged by the same ensemble, in whatever order it is named and whatever lies beside it now.
    one.with_suffix(".toml").unlink()
    swapped = ("--model", two, "--model", one, "--ensemble", "mean")
    judged = mafl("evaluate", out, *swapped, "--fail-if", "target_iou < 0.9", "--json", tmp_path / "verdict.json")
    assert judged.exit_code == 0, judged.stderr
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert [member["name"] for member in verdict["models"][0]["members"]] == ["b.ts", "a.ts"]
    assert not verdict["cases"][0]["differences"]
    # A batch counts it as one model, and says which they are.
    row, named = finished_row("scan", read_report(out))
    assert row.status == "ok"
    assert [member.name for member in named.members or ()] == ["a.ts", "b.ts"]


def test_inspect_and_batches_know_ensembles(two_scalings: tuple[Path, Path, Path, Path]) -> None:
    _, _, one, two = two_scalings
    shown = mafl("inspect", one, two, "--ensemble", "mean-probabilities", "--json")
    assert shown.exit_code == 0, shown.stderr
    facts = json.loads(shown.stdout)
    assert facts["ensemble"] == "mean-probabilities"
    assert len(facts["members"]) == 2
    assert mafl("inspect", one, two).exit_code == 2
    assert mafl("inspect", one, two, "--ensemble", "mean", "--write").exit_code == 2
    rules: tuple[tuple[tuple[Path, Path], EnsembleRule], ...]
    rules = (((one, two), "mean"), ((one, two), "mean-probabilities"), ((one, one), "mean"), ((one, two), "mean"))
    hashes = [request_hash(attack_request((), "erase:1", model=models, ensemble=rule)) for models, rule in rules]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]
