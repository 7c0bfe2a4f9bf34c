"""ONNX models: their graph in PyTorch answers as onnxruntime does and has its gradient; attacked and judged."""

from __future__ import annotations

import builtins
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from monai.networks.nets import SegResNet, UNet
from torch import Tensor, nn

from mafl_cli.errors import ModelError, UsageError
from mafl_cli.network import kinds
from mafl_cli.network.card_file import find_card
from mafl_cli.network.gradient import difference
from mafl_cli.network.load import load

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper = onnx.helper
CPU = torch.device("cpu")


def exported(network: nn.Module, path: Path, size: tuple[int, ...], *, is_open: bool, opset: int = 17) -> Path:
    """A network as PyTorch writes it. is_open: whether it takes images of any size."""
    axes = {"x": {2 + axis: f"size{axis}" for axis in range(len(size))}} if is_open else None
    channels = next(p for p in network.parameters() if p.ndim > 3).shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.rand(1, channels, *size),), str(path), input_names=["x"], dynamic_axes=axes,
            opset_version=opset, dynamo=False,
        )  # fmt: skip
    return path


def unet(dims: int) -> nn.Module:
    torch.manual_seed(0)
    return UNet(dims, 1, 3, (4, 8, 16), (2, 2), num_res_units=1)


def segresnet(dims: int) -> nn.Module:
    torch.manual_seed(0)
    return SegResNet(dims, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1))


CASES = {
    "2-D, one size": (unet, 2, 32, False, 17),
    "2-D, any size": (segresnet, 2, 32, True, 11),
    "3-D, one size": (segresnet, 3, 16, False, 17),
    "3-D, any size": (unet, 3, 16, True, 13),
}


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, ...]]:
    """An exported network, and a size that it takes: another one than that of its example if it takes any."""
    make, dims, edge, is_open, opset = CASES[request.param]
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    exported(make(dims), path, (edge,) * dims, is_open=is_open, opset=opset)
    return path, (edge + (16 if is_open else 0), *(edge,) * (dims - 1))


def test_the_graph_answers_as_onnxruntime_does(model: tuple[Path, tuple[int, ...]]) -> None:
    path, size = model
    segmenter, info, _ = load(path, device=CPU, size=lambda dims: size)
    assert (info.format, info.gradient_from, len(info.classes)) == ("onnx", "graph", 3)
    x = 4 * torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1)) - 1
    apart = difference(segmenter, x)
    assert apart.largest < 1e-5
    assert apart.moved == 0
    assert segmenter.activation_bytes(x) > 0


class Smooth(nn.Module):
    """A small U-Net without kinks, so that its answers to a step are its slope's."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv, norm = ((nn.Conv2d, nn.InstanceNorm2d), (nn.Conv3d, nn.InstanceNorm3d))[dims - 2]
        self.first = nn.Sequential(conv(1, 4, 3, padding=1), norm(4, affine=True), nn.SiLU())
        self.down = nn.Sequential(conv(4, 8, 3, stride=2, padding=1), nn.GELU())
        self.up = nn.Upsample(scale_factor=2, mode=("bilinear", "trilinear")[dims - 2])
        self.head = conv(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.head(torch.cat([first, self.up(self.down(first))], dim=1))


@pytest.mark.parametrize(("dims", "is_open"), [(2, True), (3, False)])
def test_its_gradient_is_that_of_onnxruntimes_answers(dims: int, is_open: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, size = exported(Smooth(dims), tmp_path / "net.onnx", (16,) * dims, is_open=is_open), (16,) * dims
    segmenter, _, _ = load(path, device=CPU, size=lambda dims: size)
    generator = torch.Generator().manual_seed(2)
    x, way = (torch.randn(1, 1, *size, generator=generator) for _ in range(2))
    weights = torch.randn(1, 3, *size, generator=generator)

    def answer(at: Tensor) -> float:
        return float((weights.double() * segmenter.original(at).logits.double()).sum())

    x.requires_grad_()
    (gradient,) = torch.autograd.grad((weights * segmenter(x).logits).sum(), x)
    x = x.detach()
    came = (answer(x + 1e-2 * way) - answer(x - 1e-2 * way)) / 2e-2
    assert came == pytest.approx(float((gradient * way).sum()), rel=1e-3)


# --- operators ----------------------------------------------------------------------------------------------------


LEFT_OUT = {
    # The largest of no numbers at all.
    "test_reduce_max_empty_set", "test_reduce_min_empty_set",
    # Sizes that are no multiples: onnxruntime, which is followed, takes the size that came out in place of the scale.
    "test_resize_downsample_scales_linear_align_corners", "test_resize_downsample_scales_cubic_align_corners",
}  # fmt: skip


def _standard_cases() -> list[Any]:
    """Small models of the standard, with inputs and what is to come out: one operator each, in our tables."""
    from onnx.backend.test.case.node import collect_testcases

    from mafl_cli.network.onnx_graph import _TABLE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases("")
    return [
        case
        for case in found
        if len(case.model.graph.node) == 1
        and case.model.graph.node[0].op_type in _TABLE
        and case.model.graph.node[0].domain == ""
        and case.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        and case.name not in LEFT_OUT
        and all(isinstance(array, np.ndarray) for array in case.data_sets[0][0])
    ]


@pytest.mark.slow
def test_the_operators_do_what_the_standard_says() -> None:
    """Of each example of the standard the first input is the image; the others are constants of the graph."""
    from mafl_cli.network.onnx_graph import OnnxGraph

    done, refused, wrong = 0, [], []
    for case in _standard_cases():
        given, wanted = case.data_sets[0]
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for value, array in list(zip(model.graph.input, given, strict=True))[1:]:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = OnnxGraph(model)(torch.from_numpy(np.array(given[0])))
        except ValueError as exc:
            refused.append(f"{case.name}: {exc}")
            continue
        except Exception as exc:
            wrong.append(f"{case.name}: {type(exc).__name__} {exc}")
            continue
        done += 1
        for result, right in zip(results, wanted, strict=True):
            same = result.shape == right.shape and np.allclose(result, right, rtol=1e-3, atol=1e-5, equal_nan=True)
            if not same:
                wrong.append(f"{case.name}: {tuple(result.shape)} {tuple(right.shape)}")
    assert not wrong, "\n".join(wrong)
    assert done > 300
    assert len(refused) < 40, refused


def one_node(path: Path, operator: str, *, inputs: int = 1, domain: str = "", **attributes: Any) -> Path:
    """A model of one operator between two convolutions."""
    floats, shape = onnx.TensorProto.FLOAT, [1, 1, None, None]
    weight = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node(operator, ["a"], ["b"], domain=domain, **attributes),
        helper.make_node("Conv", ["b", "w"], ["y"]),
    ]
    given = [helper.make_tensor_value_info(f"x{n or ''}", floats, shape) for n in range(inputs)]
    out = helper.make_tensor_value_info("y", floats, shape)
    graph = helper.make_graph(nodes, "net", given, [out], [weight])
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def test_an_operator_without_a_gradient_is_named(tmp_path: Path) -> None:
    path = one_node(tmp_path / "net.onnx", "Hardmax", axis=1)
    with pytest.raises(ModelError, match=r"net.onnx: its operator Hardmax cannot be converted to PyTorch.*TorchScript"):
        load(path, device=CPU)
    run = mafl("inspect", path)
    assert run.exit_code == 4
    assert "Hardmax" in run.stderr


def test_a_function_of_the_standard_needs_no_entry(tmp_path: Path) -> None:
    """It is written out into the operators that it consists of."""
    path = one_node(tmp_path / "net.onnx", "MeanVarianceNormalization", axes=[0, 2, 3])
    file = kinds.read_model(path, CPU)
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(file.frozen(x)[0], file.module(x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no model"), "is damaged, or not ONNX"),
        (lambda path: path.write_bytes(b""), "is damaged, or not ONNX"),
        (lambda path: one_node(path, "Relu", inputs=2), "takes 2 inputs .x, x1."),
        (lambda path: one_node(path, "Relu", domain="ours"), "onnxruntime cannot load it"),
        (lambda path: None, "no such model file"),
    ],
)
def test_what_cannot_be_loaded_is_said(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=f"^net.onnx: {message}"):
        load(tmp_path / "net.onnx", device=CPU)


def test_weights_beside_the_file_are_part_of_the_model(tmp_path: Path) -> None:
    path = exported(unet(2), tmp_path / "whole.onnx", (32, 32), is_open=True)
    model, apart = onnx.load(path), tmp_path / "net.onnx"
    onnx.save_model(model, apart, save_as_external_data=True, location="net.data", size_threshold=16)
    x = torch.rand(1, 1, 32, 32)
    answers = [kinds.read_model(each, CPU).frozen(x)[0] for each in (path, apart)]
    assert torch.equal(*answers)
    before = kinds.digest(apart)
    weights = tmp_path / "net.data"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert kinds.digest(apart) != before
    weights.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"its weights are in net.data, which is not there"):
        load(apart, device=CPU)


def test_weights_are_read_from_its_own_folder_alone(tmp_path: Path) -> None:
    path = exported(unet(2), tmp_path / "whole.onnx", (32, 32), is_open=True)
    model = onnx.load(path)
    onnx.external_data_helper.convert_model_to_external_data(model, location="net.data", size_threshold=16)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    (tmp_path / "secret").write_bytes(b"1" * 10**6)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="lie outside its folder"):
        load(tmp_path / "in" / "net.onnx", device=CPU)


def test_without_its_packages_the_way_to_them_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *others: Any) -> Any:
        if name.startswith("onnx"):
            raise ImportError(name)
        return real(name, *others)

    (tmp_path / "net.onnx").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"net.onnx is an ONNX model.*pip install 'mafl\[onnx\]'"):
        load(tmp_path / "net.onnx", device=CPU)


# --- whole commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "is_open"), [(2, False), (3, True)])
def test_attack_evaluate_and_inspect_take_it(dims: int, is_open: bool, tmp_path: Path) -> None:
    model = exported(Threshold(dims), tmp_path / "net.onnx", (16,) * dims, is_open=is_open)
    nib.save(nib.Nifti1Image(scan_array(), np.diag((1.0, 1.0, 3.0, 1.0))), tmp_path / "scan.nii.gz")
    facts = mafl("inspect", model)
    assert facts.exit_code == 0, facts.stderr
    assert "onnx" in facts.stdout
    out = tmp_path / "out"
    run = mafl(
        "attack", tmp_path / "scan.nii.gz", "--model", model, "--target", "erase:1", "--out", out, "--steps", 60,
        "--require-success",
    )  # fmt: skip
    assert run.exit_code == 0, run.stderr
    assert find_card(model).roi == (None if is_open else (16, 16))
    judged = mafl("evaluate", out, "--model", model, "--fail-if", "hit_rate < 0.5")
    assert judged.exit_code == 0, judged.stdout + judged.stderr
    assert mafl("evaluate", out, "--model", model, "--fail-if", "hit_rate > 0.5").exit_code == 5
