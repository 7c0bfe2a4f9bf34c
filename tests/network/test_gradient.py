"""What is attacked is what the file computes: the graph where it stands for the file, else the file itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import mafl
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

import mafl_cli
from mafl_cli.errors import ModelError
from mafl_cli.network.card import ModelCard
from mafl_cli.network.load import describe, load
from mafl_cli.network.model_file import lent

CPU = torch.device("cpu")


def scan_of(*scales: float, size: int = 24) -> np.ndarray:
    """Slices: a bright ball on a dark, textured ground in [0, 1], each times its scale."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size),) * 2, indexing="ij"))
    ball = 0.9 * np.exp(-3 * (grid**2).sum(axis=0)) + 0.1 * np.random.default_rng(0).random((size, size))
    return np.stack([scale * ball for scale in scales], axis=-1).astype(np.float32)


class Base(nn.Module):
    """Bright voxels are class 1: a mean of the neighbourhood against a half, as logits."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.first = conv(1, 4, 3, padding=1)
        self.last = conv(4, 2, 1)
        with torch.no_grad():
            self.first.weight.fill_(1 / 3**dims)
            self.first.bias.fill_(0.0)
            self.last.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]).view(2, 4, *(1,) * dims))
            self.last.bias.copy_(torch.tensor([2.0, -2.0]))

    def logits(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


# --- the path depends on the data ---------------------------------------------------------------------------------


class EightBit(Base):
    """An image with values above 1 is taken for 8-bit and divided by 255."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.max() > 1.0):
            x = x / 255.0
        return self.logits(x)


class EmptySlice(Base):
    """Slices that are nearly empty are not segmented: the same answer for all voxels, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.mean() < 0.2):
            return torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(x.shape[0], 2, x.shape[2], x.shape[3])
        return self.logits(x)


class Largest(Base):
    """Only the component around the brightest voxel counts: it grows until it grows no more."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        inside = (z[:, 1:] > z[:, :1]).float()
        seed = inside * (x >= x.max()).float()
        changed = True
        while changed:
            grown = inside * torch.nn.functional.max_pool2d(seed, 3, stride=1, padding=1)
            changed = bool((grown != seed).any())
            seed = grown
        lone = 4.0 * inside * (1 - seed)
        return z + torch.cat([lone, -lone], dim=1)


class Shifts(Base):
    """The answer is moved by as many voxels as the mean says."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(self.logits(x), [int(float(x.mean()) * 10) % 3], [2])


class Parts(Base):
    """Goes through the bright rows alone: their number is a size, and the loop's length."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        rows = torch.nonzero(x.amax(dim=3)[0, 0] > 0.9 * x.max())
        for k in range(len(rows)):
            z = z + 1e-3 * x[:, :, int(rows[k, 0]) : int(rows[k, 0]) + 1].mean()
        return z


class Chances(Base):
    """A branch before a last softmax that is sure of all voxels."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.max() > 1.0):
            x = x / 255.0
        return torch.softmax(20.0 * self.logits(x), dim=1)


PATHS = (EightBit, EmptySlice, Largest, Shifts, Parts, Chances)


def attacked(net: nn.Module, scan: np.ndarray, folder: Path, *arguments: object) -> Any:
    torch.jit.script(net.eval()).save(folder / "net.ts")
    nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / "scan.nii.gz")
    return mafl(
        "attack", folder / "scan.nii.gz", "--target", "erase:1", "--model", folder / "net.ts", "--slice-axis", "k",
        "--mode", "2d", "-o", folder / "out", "--steps", 20, *arguments,
    )  # fmt: skip


def drawn_by_the_file(path: Path, scan: Path) -> np.ndarray:
    """The file's own labels of each slice, without this program."""
    net = torch.jit.load(path)
    data = np.asanyarray(nib.load(scan).dataobj).astype(np.float32)
    with torch.no_grad():
        slices = [net(torch.from_numpy(data[None, None, :, :, k].copy())) for k in range(data.shape[2])]
    return np.stack([(z.argmax(dim=1) if z.shape[1] > 1 else z[:, 0] > 0).numpy()[0] for z in slices], axis=-1)


def require_own_predictions(folder: Path) -> None:
    for scan, mask in (("scan", "prediction_clean"), ("out/adversarial", "prediction_adversarial")):
        own = drawn_by_the_file(folder / "net.ts", folder / f"{scan}.nii.gz")
        assert np.array_equal(own, np.asanyarray(nib.load(folder / f"out/{mask}.nii.gz").dataobj)), mask


@pytest.mark.parametrize("net", PATHS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 255.0, 0.3)], ids=["alike", "mixed"])
def test_a_network_whose_path_depends_on_the_data_is_attacked_through_its_file(
    net: Any, scales: tuple[float, ...], tmp_path: Path
) -> None:
    result = attacked(net(), scan_of(*scales), tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "gradient: of the model file itself" in result.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["model"]["gradient_from"] == "file"
    assert report["model"]["taps"] == []
    case = report["cases"][0]
    assert case["attack"]["goal_reached"], case["attack"]
    require_own_predictions(tmp_path)
    judged = mafl("evaluate", tmp_path / "out", "--model", tmp_path / "net.ts", "--fail-if", "hit_rate > 0.5")
    assert judged.exit_code == 5, judged.stderr
    assert "differently" not in judged.stdout + judged.stderr


def test_windows_of_a_network_that_decides_are_those_of_monai_around_its_file(tmp_path: Path) -> None:
    """Windows of air are skipped: each decides for itself, in the search too."""
    scan = scan_of(*np.linspace(0.0, 1.0, 16), size=32)
    torch.jit.script(SkipsAir().eval()).save(tmp_path / "net.ts")
    (tmp_path / "net.toml").write_text(
        '[input]\ndims = 3\norientation = "native"\nroi = [16, 16, 8]\noverlap = 0.5\nintensity = { kind = "none" }\n'
    )
    nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "scan.nii.gz")
    result = mafl(
        "attack", tmp_path / "scan.nii.gz", "--target", "erase:1", "--model", tmp_path / "net.ts",
        "-o", tmp_path / "out", "--steps", 20,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["model"]["gradient_from"] == "file"
    assert report["cases"][0]["attack"]["goal_reached"]
    net = torch.jit.load(tmp_path / "net.ts")
    for name, mask in (("scan", "prediction_clean"), ("out/adversarial", "prediction_adversarial")):
        data = np.asanyarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj).astype(np.float32)
        with torch.no_grad():
            logits = sliding_window_inference(
                torch.from_numpy(data.copy())[None, None], (16, 16, 8), 1, net, 0.5, mode="gaussian"
            )
        own = logits.argmax(dim=1)[0].numpy()
        assert np.array_equal(own, np.asanyarray(nib.load(tmp_path / f"out/{mask}.nii.gz").dataobj)), mask


class SkipsAir(Base):
    def __init__(self) -> None:
        super().__init__(3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        if bool(x.max() < 0.3):
            return torch.stack([torch.ones_like(x[:, 0]), -torch.ones_like(x[:, 0])], dim=1) + 0.0 * z
        return z


# --- decisions that no graph shows --------------------------------------------------------------------------------


class Peeks(Base):
    """Reads a value in Python, which leaves no trace in a graph, and answers otherwise above a border."""

    def __init__(self, border: float) -> None:
        super().__init__()
        self.border = border

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().numpy().max()) > self.border:
            x = x / 5.0
        return self.logits(x)


def arrays(*scales: float) -> tuple[Tensor, Tensor]:
    """Images (B, 1, 24, 24), and the target that nothing is drawn on them."""
    image = torch.from_numpy(scan_of(*scales)).permute(2, 0, 1)[:, None].contiguous()
    return image, torch.zeros(len(image), 24, 24, dtype=torch.long)


@pytest.mark.parametrize(("border", "scales"), [(1.05, (1.0,)), (2.0, (5.0, 1.0)), (2.0, (1.0, 5.0))])
def test_a_hidden_decision_is_found_on_the_scan_and_the_file_is_attacked(
    border: float, scales: tuple[float, ...]
) -> None:
    net = Peeks(border).eval()
    image, target = arrays(*scales)
    found = mafl_cli.attack(net, image, target, steps=40)
    assert any("the graph recorded from it answers otherwise" in said for said in found.assumptions)
    with torch.no_grad():
        own = torch.cat([net(x).argmax(dim=1) for x in found.adversarial.split(1)])
    assert torch.equal(own, found.prediction)
    assert found.success.all()


class Dims(Base):
    """Answers otherwise once its brightest voxel is dark: the clean scan does not show it, the changed one does."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        if float(x.detach().numpy().max()) < 0.6:
            return z + torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
        return z


def test_a_decision_that_only_the_changed_scan_shows_is_found_after_the_search() -> None:
    net = Dims().eval()
    image, target = arrays(1.0)
    found = mafl_cli.attack(net, image, target, steps=60)
    with torch.no_grad():
        own = net(found.adversarial).argmax(dim=1)
    assert torch.equal(own, found.prediction)
    assert any("the graph recorded from it answers otherwise" in said for said in found.assumptions)
    assert found.success.all()


# --- gradients of its own -----------------------------------------------------------------------------------------


class Rounds(Base):
    """Quantisation-aware: rounded, with the gradient of no rounding."""

    def forward(self, x: Tensor) -> Tensor:
        q = torch.round(x * 15.0) / 15.0
        return self.logits(x + (q - x).detach())


class RoundsWithout(Base):
    """The same, under no_grad."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = torch.round(x * 15.0) / 15.0 - x
        return self.logits(x + shift)


class RoundsInside(Base):
    """Quantised activations, beside a little that is not: its derivative is there, and says next to nothing."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = y + (torch.round(y * 15.0) / 15.0 - y).detach()
        return self.last(y) + 0.01 * x


class FakeQuantised(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(torch.fake_quantize_per_tensor_affine(x, 1 / 31, 0, 0, 31))


class Detached(Base):
    """Most of what it computes is cut off from the gradient, and the rest points the other way."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * self.logits(x).detach() - self.logits(x)


def saved(net: nn.Module, form: str, folder: Path) -> Path:
    path = folder / ("net.pt2" if form == "pt2" else "net.ts")
    if form == "pt2":
        torch.export.save(torch.export.export(net.eval(), (torch.rand(1, 1, 24, 24),)), path)
    else:
        torch.jit.script(net.eval()).save(path)
    return path


@pytest.mark.parametrize("form", ["ts", "pt2"])
@pytest.mark.parametrize(
    ("net", "source"),
    [(Rounds, "file"), (RoundsWithout, "file"), (RoundsInside, "file"), (FakeQuantised, "graph"), (Detached, "graph")],
)
def test_the_gradient_that_explains_the_network_is_followed(net: Any, source: str, form: str, tmp_path: Path) -> None:
    path = saved(net(), form, tmp_path)
    _, info, _ = load(path, device=CPU, size=lambda dims: (24,) * dims)
    assert info.gradient_from == source
    nib.save(nib.Nifti1Image(scan_of(1.0, 0.9), np.eye(4)), tmp_path / "scan.nii.gz")
    result = mafl(
        "attack", tmp_path / "scan.nii.gz", "--target", "erase:1", "--model", path, "--slice-axis", "k",
        "--mode", "2d", "-o", tmp_path / "out", "--steps", 40,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    case = json.loads((tmp_path / "out/report.json").read_text())["cases"][0]
    assert case["attack"]["goal_reached"], case["attack"]


@pytest.mark.parametrize("form", ["ts", "pt2", "nn"])
def test_what_is_detached_counts_as_what_it_computes(form: str, tmp_path: Path) -> None:
    net, x = Detached().eval().requires_grad_(False), torch.rand(1, 1, 24, 24)
    if form == "nn":
        with lent(net) as file:
            segmenter, _, _ = describe(file, "net", CPU, ModelCard(), size=lambda dims: (24,) * dims)
    else:
        segmenter, _, _ = load(saved(net, form, tmp_path), device=CPU, size=lambda dims: (24,) * dims)
    weight = torch.rand(1, 2, 24, 24)
    gradients = []
    for function in (lambda x: segmenter(x).logits, net.logits):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad((function(leaf) * weight).sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


class OwnRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 15) / 15

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return slopes[0]


class OwnFunction(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(OwnRound.apply(x))


def test_a_gradient_that_is_written_in_python_is_followed() -> None:
    image, target = arrays(1.0)
    found = mafl_cli.attack(OwnFunction().eval(), image, target, steps=40)
    assert found.success.all()


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        raise KeyError("no slope today")


class BreaksBackward(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(Breaks.apply(x))


def test_a_backward_pass_that_fails_is_one_sentence() -> None:
    image, target = arrays(1.0)
    with pytest.raises(ModelError, match=r"^BreaksBackward: .*zero or not finite"):
        mafl_cli.attack(BreaksBackward().eval(), image, target)


# --- answers that differ each time --------------------------------------------------------------------------------


class NoisyOnScans(Base):
    """Random where an image is darker than a test image is."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.logits(x)
        return z + 0.3 * torch.randn_like(z) * (x.mean() < 0.4).to(z.dtype)


def test_a_network_that_is_random_on_scans_alone_is_found_out(tmp_path: Path) -> None:
    load(saved(NoisyOnScans(), "ts", tmp_path), device=CPU, size=lambda dims: (24,) * dims)
    result = attacked(NoisyOnScans(), scan_of(1.0, 1.0), tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "net.ts: answers: differ each time" in result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any(sentence.startswith("answers: differ") for sentence in report["model"]["assumptions"])


def test_a_judge_that_is_random_on_scans_alone_is_found_out(tmp_path: Path) -> None:
    assert attacked(Base(), scan_of(1.0, 1.0), tmp_path).exit_code == 0
    torch.jit.script(NoisyOnScans().eval()).save(tmp_path / "other.ts")
    file = tmp_path / "evaluation.json"
    result = mafl("evaluate", tmp_path / "out", "--model", tmp_path / "other.ts", "--json", file)
    assert result.exit_code == 0, result.stdout
    assert json.loads(file.read_text())["cases"][0]["metrics"]["draws"]["count"] > 1
