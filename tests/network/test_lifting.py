"""Networks that work in place, decide by what they see, or fail in the backward pass: right, or refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import mafl
from problems import SmallUNet
from torch import Tensor, nn

from mafl_cli.errors import ModelError
from mafl_cli.network.lifting import Output
from mafl_cli.network.load import load
from mafl_cli.network.model_file import lent
from mafl_cli.network.reasons import meaning
from mafl_cli.network.segmenter import Segmenter

CPU = torch.device("cpu")


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Base(nn.Module):
    """Bright voxels are class 1: a mean of the neighbourhood against 0.35."""

    if TYPE_CHECKING:  # TorchScript would look at it.
        seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)
        self.register_buffer("seen", torch.zeros(1))
        with torch.no_grad():
            self.first.weight.fill_(1 / 9)
            self.first.bias.fill_(0.0)
            self.last.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]).view(2, 4, 1, 1))
            self.last.bias.copy_(torch.tensor([1.4, -1.4]))

    def logits(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


# Each network as it is exported, and the same function without working in place.


class ScalesInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        x *= 1.2
        return self.logits(x)

    def plain(self, x: Tensor) -> Tensor:
        return self.logits((x - 0.1) * 1.2)


class ScalesPart(Base):
    def forward(self, x: Tensor) -> Tensor:
        x[:, :, :4] *= 2.0
        x[x < 0.1] = 0.0
        return self.logits(x)

    def plain(self, x: Tensor) -> Tensor:
        x = torch.cat([2 * x[:, :, :4], x[:, :, 4:]], dim=2)
        return self.logits(torch.where(x < 0.1, torch.zeros_like(x), x))


class Rectifies(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(torch.relu_(x))

    def plain(self, x: Tensor) -> Tensor:
        return self.logits(torch.relu(x))


class HandSoftmax(Base):
    def forward(self, x: Tensor) -> Tensor:
        p = torch.exp(self.logits(x))
        p /= p.sum(dim=1, keepdim=True)
        return p

    def plain(self, x: Tensor) -> Tensor:
        return torch.softmax(self.logits(x), dim=1)


class HandNorm(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y.sub_(y.mean(dim=(2, 3), keepdim=True))
        y.div_(torch.sqrt(y.pow(2).mean(dim=(2, 3), keepdim=True) + 1e-2))
        return self.last(y)

    def plain(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y - y.mean(dim=(2, 3), keepdim=True)
        return self.last(y / torch.sqrt(y.pow(2).mean(dim=(2, 3), keepdim=True) + 1e-2))


class Gate(Base):
    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        gate *= 2.0
        return self.logits(x) * gate

    def plain(self, x: Tensor) -> Tensor:
        return self.logits(x) * (2 * torch.sigmoid(x))


class ChangedSoftmax(Base):
    """The last softmax is changed through a view: it must not be taken off."""

    def forward(self, x: Tensor) -> Tensor:
        p = torch.softmax(self.logits(x), dim=1)
        p[:, :1] *= 0.3
        return p

    def plain(self, x: Tensor) -> Tensor:
        return torch.softmax(self.logits(x), dim=1) * torch.tensor([0.3, 1.0]).view(1, 2, 1, 1)


class Pieces(Base):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 2, x.shape[2], x.shape[3])
        y = self.logits(x)
        for index in range(2):
            out[:, index] = 2.0 * y[:, index]
        return out

    def plain(self, x: Tensor) -> Tensor:
        return 2 * self.logits(x)


class Counts(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1.0
        return self.logits(x)

    def plain(self, x: Tensor) -> Tensor:
        return self.logits(x)


class Remembers(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.copy_(x.mean())
        return self.logits(x) + self.seen

    def plain(self, x: Tensor) -> Tensor:
        return self.logits(x) + x.mean()


def opened(module: nn.Module, folder: Path, **settings: Any) -> Segmenter:
    """Script a network and load it as an attack does."""
    torch.jit.script(module.eval()).save(folder / "net.ts")
    segmenter, _, _ = load(folder / "net.ts", device=CPU, size=lambda dims: (16,) * dims, **settings)
    return segmenter


IN_PLACE = (
    ScalesInput,
    ScalesPart,
    Rectifies,
    HandSoftmax,
    HandNorm,
    Gate,
    ChangedSoftmax,
    Pieces,
    Counts,
    Remembers,
)


@pytest.mark.parametrize(
    ("kind", "form"),
    [*((kind, "ts") for kind in IN_PLACE), *((kind, "pt2") for kind in (ScalesPart, HandSoftmax))],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_networks_that_work_in_place_are_attacked_as_they_are(kind: Any, form: str, tmp_path: Path) -> None:
    net = kind().eval().requires_grad_(False)
    if form == "ts":
        segmenter = opened(net, tmp_path)
    else:
        torch.export.save(torch.export.export(kind().eval(), (image(1, 1, 16, 16),)), tmp_path / "net.pt2")
        segmenter, _, _ = load(tmp_path / "net.pt2", device=CPU, size=lambda dims: (16,) * dims)
    x = image(1, 1, 16, 16, seed=3)
    before = x.clone()
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    answer, plain = segmenter(mine).logits, net.plain(theirs)
    if kind is HandSoftmax:
        plain = torch.log(plain)
    torch.testing.assert_close(answer, plain, rtol=1e-4, atol=1e-5)
    weight = image(1, 2, 16, 16, seed=4)
    gradients = [
        torch.autograd.grad((each * weight).sum(), leaf)[0] for each, leaf in ((answer, mine), (plain, theirs))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        segmenter(x)
    assert torch.equal(x, before), "the caller's image was changed"


def test_a_lower_precision_works_in_place_too(tmp_path: Path) -> None:
    segmenter = opened(HandSoftmax(), tmp_path, precision="bf16")
    x = image(1, 1, 16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(segmenter(x).logits[:, 1].sum(), x)
    assert gradient.any()


# --- no gradient --------------------------------------------------------------------------------------------------


class Attending(Base):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 8, stride=8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.up = nn.ConvTranspose2d(8, 2, 8, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        b, c, rows, columns = h.shape
        tokens = self.layer(h.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, c, rows, columns)
        return self.logits(x) + 0.01 * self.up(tokens)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_attention_traced_without_gradients_names_its_operator_and_the_remedy(tmp_path: Path) -> None:
    with torch.no_grad():
        torch.jit.trace(Attending().eval(), image(1, 1, 16, 16), check_trace=False).save(tmp_path / "net.ts")
    result = mafl("inspect", tmp_path / "net.ts")
    assert result.exit_code == 4
    assert "net.ts: " in result.stderr
    assert "operator _transformer_encoder_layer_fwd has no gradient; export it with gradients on" in result.stderr


class Refuses(Base):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.max() > 2.0):
            raise ValueError("image too bright")
        return self.logits(x)


def test_a_network_that_refuses_this_scan_is_one_sentence(tmp_path: Path) -> None:
    torch.jit.script(Refuses().eval()).save(tmp_path / "net.ts")
    scan = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(5 * scan, np.eye(4)), tmp_path / "scan.nii.gz")
    result = mafl(
        "attack", tmp_path / "scan.nii.gz", "--target", "erase:1", "--model", tmp_path / "net.ts", "--mode", "2d",
        "--slice-axis", "k", "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 4
    assert "net.ts: " in result.stderr
    assert "image too bright" in result.stderr
    assert not (tmp_path / "out").exists()


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("Unknown builtin op: mylib::conv2d.\nHere are some suggestions", "operator mylib::conv2d, which this PyTorch"),
        (
            "[enforce fail] . Attempted to read a PyTorch file with version 99, but the maximum supported version for "
            "reading is 10. The version of your PyTorch", "(file version 99, this one reads up to 10)",
        ),
        (
            "Could not run 'aten::empty.memory_format' with arguments from the 'CUDA' backend. This could be\n"
            "CPU: registered at /__w/x/y.cpp:1 [kernel]", "the device it was exported on (cuda)",
        ),
        ("Torch not compiled with CUDA enabled", "the device it was exported on (cuda)"),
        ("Could not run 'quantized::conv2d.new' with arguments from the 'QuantizedCPU' backend", "it is quantised"),
        ("Input type (float) and bias type (c10::Half) should be the same", "its weights are float16"),
        ("expected m1 and m2 to have the same dtype, but got: float != double", "its weights are float64"),
        (
            "Given input size: (1x4x4). Calculated output size: (1x0x0). Output size is too small",
            "too small for its pooling",
        ),
        ("Padding size should be less than the corresponding input dimension, but got: padding (300", "too small for"),
        ("Kernel size can't be greater than actual input size", "too small for its pooling"),
        ("forward() is missing value for argument 'prompt'. Declaration: f(x) -> Tensor", "another input beside"),
        (
            "Given groups=1, weight of size [4, 1, 3, 3], expected input[1, 64, 1, 64] to have 1 channels, but got 64 "
            "channels instead", "takes 1 channels where 64 come",
        ),
        ("derivative for aten::histc is not implemented", "operator histc has no gradient"),
        (
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            "[torch.FloatTensor [1]], which is output 0 of ExpBackward0, is at version 1", "changes the result of Exp",
        ),
        ("The size of tensor a (7) must match the size of tensor b (8) at", "together at this size (7 and 8)"),
        ("The following operation failed\n  at /home/me/net.py:3\nRuntimeError: wants 48 rows", "wants 48 rows"),
        ("failed to read /home/me/private/weights.bin", "failed to read weights.bin"),
    ],
)  # fmt: skip
def test_the_meaning_of_an_error(error: str, words: str) -> None:
    found = meaning(RuntimeError(error))
    assert words in found
    assert "\n" not in found
    assert "/" not in found.replace("://", "")


# --- what else files are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{\"w\": 1}", "is a safetensors file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
        (bytes(4) + b"TFL3" + bytes(100), "is a TensorFlow Lite model"),
        (b"\x1f\x8b\x08" + bytes(100), "is gzip-compressed"),
    ],
)  # fmt: skip
def test_files_of_other_kinds_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "net.ts").write_bytes(content)
    with pytest.raises(ModelError, match=rf"^net\.ts: {words}"):
        load(tmp_path / "net.ts", device=CPU)


class Outputs(Base):
    def __init__(self, form: int) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        if self.form == 0:
            return z.permute(0, 2, 3, 1)
        return z[0] if self.form == 1 else z.half()


@pytest.mark.parametrize(("form", "words"), [(0, "has the channels last"), (1, "lacks the batch or the channel axis")])
def test_outputs_of_another_layout_are_named(form: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"^net\.ts: .*{words}"):
        opened(Outputs(form), tmp_path)


class Twice(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(x)[:, 1] - self.logits(x)[:, 0])


def test_a_refusal_of_a_frozen_network_is_no_crash(tmp_path: Path) -> None:
    """PyTorch crashes when a frozen module fails, the second time that a process loads it."""
    path = tmp_path / "net.ts"
    torch.jit.script(Twice().eval()).save(path)
    for _ in range(3):
        with pytest.raises(ModelError, match="lacks the batch or the channel axis"):
            load(path, device=CPU, size=lambda dims: (16,) * dims)


# --- operators that were compiled together -------------------------------------------------------------------------


@pytest.fixture
def compiling() -> Iterator[None]:
    """TorchScript compiles neighbouring operators into one, as it does on a GPU; here they are interpreted."""
    torch._C._jit_override_can_fuse_on_cpu(True)
    torch._C._jit_set_te_must_use_llvm_cpu(False)
    yield
    torch._C._jit_set_te_must_use_llvm_cpu(True)
    torch._C._jit_override_can_fuse_on_cpu(False)


class Pointwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = SmallUNet(2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return y * 2 + torch.tanh(y) * 0.5 - 1


def test_what_torchscript_compiles_is_recorded_all_the_same(compiling: None, tmp_path: Path) -> None:
    torch.jit.script(Pointwise().eval()).save(tmp_path / "net.ts")
    network, x = torch.jit.load(tmp_path / "net.ts"), image(1, 1, 16, 16)
    with torch.no_grad():
        expected = [network(x) for _ in range(3)][-1]
        assert "TensorExpr" in str(network.graph_for(x))
    segmenter, _, _ = load(tmp_path / "net.ts", device=CPU, size=lambda dims: (16,) * dims)
    torch.testing.assert_close(segmenter(x).logits, expected)
    # One that the caller has used, and that was compiled, so too.
    with lent(network) as file:
        logits = Segmenter(file, "net", Output(0, bounded=False), CPU)(x.requires_grad_()).logits
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.any()
