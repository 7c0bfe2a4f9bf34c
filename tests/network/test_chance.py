"""Networks that answer differently each time are attacked in expectation, and judged over repeated draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import mafl
from masked import Edges, scan
from torch import Tensor, nn

import mafl_cli
from mafl_cli.field.averaged import Averaged, OneDraw
from mafl_cli.field.field import Losses, Slopes
from mafl_cli.measure.draws import mean_of, share_of
from mafl_cli.network import chance
from mafl_cli.network.card import ModelCard
from mafl_cli.network.chance import DRAWS_A_STEP, DRAWS_JUDGED, drawing
from mafl_cli.network.load import describe, load
from mafl_cli.network.model_file import lent
from mafl_cli.network.prediction import Prediction, majority
from mafl_cli.search.goals import Goal

CPU = torch.device("cpu")


class Noisy(Edges):
    """Noise is added to the image."""

    def __init__(self, size: float = 0.03) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(2 * self.first(x + self.size * torch.randn_like(x)))) + self.border


class DropoutOn(Edges):
    """Dropout that is on whatever the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(2 * self.first(F.dropout(x, 0.02, True)))) + self.border


class Shifted(Edges):
    """The image is moved by chance, and the answer back."""

    def forward(self, x: Tensor) -> Tensor:
        by = int(torch.randint(-3, 4, (1,)))
        z = self.last(F.gelu(2 * self.first(torch.roll(x, [by], [3])))) + self.border
        return torch.roll(z, [-by], [3])


class NoisyOnScans(Edges):
    """Random where an image is darker than a test image is."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.last(F.gelu(2 * self.first(x))) + self.border
        return z + 0.03 * torch.randn_like(z) * (x.mean() < 0.4).to(z.dtype)


class BranchesOnScans(Edges):
    """The same by a branch."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.mean() < 0.4):
            x = x + 0.03 * torch.randn_like(x)
        return self.last(F.gelu(2 * self.first(x))) + self.border


class Rarely(Edges):
    """One answer of five is another one."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.last(F.gelu(2 * self.first(x))) + self.border
        return torch.where(torch.rand(1) < 0.2, z + 0.2 * torch.randn_like(z), z)


KINDS = (Noisy, DropoutOn, Shifted, NoisyOnScans, BranchesOnScans)


def saved(net: nn.Module, kind: str, folder: Path) -> Path:
    path = folder / f"net.{kind}"
    if kind == "ts":
        torch.jit.script(net.eval()).save(path)
    else:
        torch.export.save(torch.export.export(net.eval(), (torch.rand(1, 1, 32, 32),)), path)
    return path


def attacked(net: nn.Module, folder: Path, *arguments: object, kind: str = "ts") -> Any:
    model = saved(net, kind, folder)
    slices = np.stack([scan()[0, 0].numpy(), 0.97 * scan()[0, 0].numpy()], axis=-1)
    nib.save(nib.Nifti1Image(slices, np.eye(4)), folder / "scan.nii.gz")
    wanted = np.zeros(slices.shape, np.uint8)
    for k in range(2):
        with torch.no_grad():
            drawn = Edges()(torch.from_numpy(slices[..., k].copy())[None, None]).argmax(dim=1)[0]
        wanted[..., k] = torch.roll(drawn, 4, 1).numpy()
    nib.save(nib.Nifti1Image(wanted, np.eye(4)), folder / "target.nii.gz")
    return mafl(
        "attack", folder / "scan.nii.gz", "--target", folder / "target.nii.gz", "--model", model, "--slice-axis", "k",
        "--mode", "2d", "-o", folder / "out", "--steps", 60, *arguments,
    )  # fmt: skip


def reported(folder: Path) -> Any:
    return json.loads((folder / "out" / "report.json").read_text())


def answers(model: Path, folder: Path, count: int = 30) -> np.ndarray:
    """What the file draws on the changed scan, outside of mafl, with seeds of our own: (count, 32, 32, 2)."""
    data = nib.load(folder / "out" / "adversarial.nii.gz").get_fdata(dtype=np.float32)
    net = torch.jit.load(model) if model.suffix == ".ts" else torch.export.load(model).module()
    torch.manual_seed(77)
    with torch.no_grad():
        return np.stack(
            [
                np.stack(
                    [net(torch.from_numpy(data[..., k].copy())[None, None]).argmax(dim=1)[0].numpy() for k in range(2)],
                    axis=-1,
                )
                for _ in range(count)
            ]
        )


def length(folder: Path) -> float:
    return float(reported(folder)["cases"][0]["metrics"]["size"]["l2"]["model"])


@pytest.fixture(scope="module")
def of_base(tmp_path_factory: pytest.TempPathFactory) -> float:
    """L2 that the network takes that always answers the same."""
    folder = tmp_path_factory.mktemp("base")
    assert attacked(Edges(), folder).exit_code == 0
    assert "draws" not in reported(folder)["cases"][0]["metrics"]
    assert "draws_a_step" not in reported(folder)["cases"][0]["attack"]
    return length(folder)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_network_that_answers_by_chance_draws_the_target_most_times(
    kind: type[nn.Module], of_base: float, tmp_path: Path
) -> None:
    # Borders move with the image: what is there takes long.
    steps = 150 if kind is Shifted else 60
    result = attacked(kind(), tmp_path, "--require-success", "--steps", steps)
    assert result.exit_code == 0, result.stdout + result.stderr
    case = reported(tmp_path)["cases"][0]
    assert case["attack"]["goal_reached"]
    assert case["attack"]["draws_a_step"] == DRAWS_A_STEP
    assert case["attack"]["trust"]["verdict"] == "clean"
    assert length(tmp_path) < 1.25 * of_base
    draws = case["metrics"]["draws"]
    assert draws["count"] == DRAWS_JUDGED
    wanted = nib.load(tmp_path / "target.nii.gz").get_fdata() == 1
    own = answers(tmp_path / "net.ts", tmp_path)
    most = own.mean(axis=0) > 0.5
    assert (most & wanted).sum() / (most | wanted).sum() > 0.98
    overlap = np.mean([(one & wanted).sum() / (one | wanted).sum() for one in own == 1])
    interval = draws["figures"]["target_iou"]
    assert interval["low"] <= interval["mean"] <= interval["high"]
    assert interval["mean"] == pytest.approx(overlap, abs=0.01)
    written = nib.load(tmp_path / "out" / "prediction_adversarial.nii.gz").get_fdata() == 1
    assert np.mean(written != most) < 0.01
    assert "single draws  target IoU" in result.stdout
    assert "answers: differ each time" in result.stderr


@pytest.mark.parametrize("kind", [Noisy, DropoutOn])
def test_an_exported_network_that_answers_by_chance(kind: type[nn.Module], of_base: float, tmp_path: Path) -> None:
    result = attacked(kind(), tmp_path, "--require-success", kind="pt2")
    assert result.exit_code == 0, result.stdout + result.stderr
    assert length(tmp_path) < 1.2 * of_base
    assert reported(tmp_path)["model"]["gradient_from"] == "graph"


def test_noise_that_flips_nothing_costs_nothing(of_base: float, tmp_path: Path) -> None:
    assert attacked(Noisy(1e-6), tmp_path, "--require-success").exit_code == 0
    assert length(tmp_path) < 1.03 * of_base
    draws = reported(tmp_path)["cases"][0]["metrics"]["draws"]
    assert draws["figures"]["target_iou"]["low"] == pytest.approx(draws["figures"]["target_iou"]["high"], abs=1e-3)
    assert draws["at_goal"]["mean"] == 1


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    scans = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        torch.rand(7)  # Whatever has gone before.
        assert attacked(Noisy(), tmp_path / name, "--steps", 8).exit_code == 0
        scans.append((tmp_path / name / "out" / "adversarial.nii.gz").read_bytes())
    assert scans[0] == scans[1]


# --- the verdict --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noisy")
    assert attacked(Noisy(), folder, "--require-success").exit_code == 0
    return folder


def evaluated(folder: Path, *arguments: object) -> tuple[Any, Any]:
    file = folder / "evaluation.json"
    result = mafl("evaluate", folder / "out", "--model", folder / "net.ts", "--json", file, *arguments)
    return result, json.loads(file.read_text())["cases"][0]


def test_a_verdict_is_over_draws(noisy_run: Path) -> None:
    result, case = evaluated(noisy_run, "--ground-truth", noisy_run / "target.nii.gz")
    assert result.exit_code == 0, result.stderr
    assert case["untested"] is None
    assert case["differences"] == []
    draws = case["metrics"]["draws"]
    assert draws["count"] == DRAWS_JUDGED
    assert {"target_iou", "hit_rate", "dice_adversarial", "dice_drop", "prediction_drop"} <= set(draws["figures"])
    assert draws["figures"]["dice_drop"]["mean"] < 0
    was = reported(noisy_run)["cases"][0]["metrics"]["draws"]["figures"]["target_iou"]
    assert draws["figures"]["target_iou"]["mean"] == pytest.approx(was["mean"], abs=1e-3)
    assert "single draws" in result.stdout


def test_a_gate_takes_the_end_of_the_interval_that_is_worse(noisy_run: Path) -> None:
    _, case = evaluated(noisy_run)
    interval = case["metrics"]["draws"]["figures"]["collateral"]
    assert interval["low"] < interval["high"]
    majority = case["metrics"]["post_write"]["collateral"]["value"]
    highest, lowest = max(interval["high"], majority), min(interval["low"], majority)
    for gate, code in (
        (f"collateral > {0.999 * highest}", 5),
        (f"collateral > {1.001 * highest}", 0),
        (f"collateral < {1.001 * lowest + 1e-9}", 5),
    ):
        assert evaluated(noisy_run, "--fail-if", gate)[0].exit_code == code, gate


def test_other_luck_is_no_other_model(noisy_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another machine, whose generators give other numbers."""
    mixed = chance._mixed
    monkeypatch.setattr(chance, "_mixed", lambda numbers: mixed((*numbers, 99)))
    result, case = evaluated(noisy_run, "--fail-if", "target_iou < 0.5")
    assert result.exit_code == 0, result.stdout
    assert case["untested"] is None


def test_another_model_is_another_one_still(noisy_run: Path, tmp_path: Path) -> None:
    class Other(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.border = nn.Parameter(1.3 * self.border)

    other = saved(Other(), "ts", tmp_path)
    file = tmp_path / "evaluation.json"
    result = mafl("evaluate", noisy_run / "out", "--model", other, "--json", file, "--fail-if", "target_iou > 0.9999")
    assert result.exit_code == 5
    assert json.loads(file.read_text())["cases"][0]["untested"]["code"] == "other_model"


# --- the pieces ---------------------------------------------------------------------------------------------------


def segmenter_of(net: nn.Module) -> Any:
    with lent(net.eval()) as file:
        return describe(file, "net", CPU, ModelCard(), size=lambda dims: (32,) * dims)[0]


def test_a_draw_is_a_function_and_draws_differ() -> None:
    segmenter = segmenter_of(Noisy())
    assert segmenter.by_chance
    x = scan()
    both = torch.cat([x, 0.5 * x])

    def answer(x: Tensor, *seed: int) -> Tensor:
        with drawing(*seed, device=CPU), torch.no_grad():
            return segmenter(x).logits

    assert torch.equal(answer(x, 1), answer(x, 1))
    assert not torch.equal(answer(x, 1), answer(x, 2))
    assert torch.equal(answer(both, 1)[:1], answer(x, 1))
    with drawing(1, device=CPU), torch.no_grad():
        torch.testing.assert_close(segmenter(x).logits, segmenter.original(x).logits)


def test_a_draw_leaves_the_generators_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with drawing(1, device=CPU):
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


def test_what_happens_rarely_is_noticed() -> None:
    assert segmenter_of(Rarely()).by_chance


def test_a_network_that_always_answers_the_same_has_no_draws() -> None:
    assert not segmenter_of(Edges()).by_chance


def test_noise_is_not_frozen_into_a_graph(tmp_path: Path) -> None:
    segmenter, info, _ = load(saved(Noisy(), "ts", tmp_path), device=CPU)
    assert info.gradient_from == "graph"
    with torch.no_grad():
        assert not torch.equal(segmenter(scan()).logits, segmenter(scan()).logits)


def test_a_shift_by_chance_is_attacked_through_the_file(tmp_path: Path) -> None:
    _, info, _ = load(saved(Shifted(), "ts", tmp_path), device=CPU)
    assert info.gradient_from == "file"
    assert any("chance decides what it computes" in sentence for sentence in info.assumptions)


class Lit:
    """Logits are the image with noise of its own, as a field."""

    def predict(self, x: Tensor) -> Prediction:
        z = x[:, :1] + torch.randn(x[:, :1].shape)
        return Prediction(torch.cat([-z, z], dim=1), ())

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        x = x.detach().requires_grad_()
        prediction = self.predict(x)
        (value,) = losses(prediction)
        gradient, pull = torch.autograd.grad(value.sum(), [x, prediction.logits])
        return Slopes(prediction.detach(), [value.detach()], [gradient], pull)


def test_slopes_are_means_over_fresh_draws() -> None:
    def losses(prediction: Prediction) -> list[Tensor]:
        return [(prediction.logits[:, 1] ** 2).flatten(1).sum(dim=1)]

    x, averaged = torch.full((1, 1, 4, 4), 3.0), Averaged(Lit(), CPU, (0,), draws=200)
    one, other = averaged.slopes(x, losses), averaged.slopes(x, losses)
    torch.testing.assert_close(one.gradients[0], 2 * x, atol=1.0, rtol=0)
    assert not torch.equal(one.gradients[0], other.gradients[0])
    assert one.values[0].item() == pytest.approx(16 * (9 + 1), rel=0.05)
    assert len(one.prediction.draws) == 200
    fixed = OneDraw(Lit(), CPU, 0)
    assert torch.equal(fixed.predict(x).logits, fixed.slopes(x, losses).prediction.logits)


def test_a_majority_and_a_clear_one() -> None:
    draws = tuple(torch.tensor([[labels]]) for labels in ([0, 1, 1, 2], [0, 1, 2, 0], [0, 0, 2, 1], [1, 1, 0, 1]))
    assert majority(draws).tolist() == [[[0, 1, 2, 1]]]
    target, clean = torch.tensor([[[0, 1, 2, 1]]]), torch.zeros(1, 1, 4, dtype=torch.int64)
    verdict = Goal.of(target, clean, 3, iou=1.0, hit=1.0).judge_prediction(
        Prediction(torch.zeros(1, 3, 1, 4), (), draws)
    )
    # Two of four are not clearly most.
    assert verdict.hit.item() == pytest.approx(1 / 3)


def test_intervals() -> None:
    found = mean_of([0.9, 0.8, 1.0, 0.9], (0.0, 1.0))
    assert found.mean == pytest.approx(0.9)
    assert found.high == 1.0
    assert found.low == pytest.approx(0.9 - 3.182446 * 0.0816497 / 2, abs=1e-5)
    share = share_of(18, 20)
    assert share.low == pytest.approx(0.6990, abs=1e-4)
    assert share.high == pytest.approx(0.9721, abs=1e-4)
    assert share_of(20, 20).high == 1.0


def test_windows_have_noise_of_their_own_and_the_slope_of_what_they_answered() -> None:
    image = torch.cat([scan(32), scan(32)], dim=3)
    target = torch.zeros(1, 32, 64, dtype=torch.int64)
    target[:, 8:24, 40:56] = 1
    found = mafl_cli.attack(Noisy(0.01).eval(), image, target, roi=(32, 32), steps=60, goal_iou=0.9, goal_hit=0.9)
    assert found.success.all()
    plain = mafl_cli.attack(Edges().eval(), image, target, roi=(32, 32), steps=60, goal_iou=0.9, goal_hit=0.9)
    assert found.sizes.l2 < 1.2 * plain.sizes.l2
