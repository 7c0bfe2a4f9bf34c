"""Model files: lifted networks compute what the original computes, taps lie where they should, and what cannot be
attacked is refused with its reason."""

from __future__ import annotations

import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import SegResNet, UNet
from problems import SmallUNet
from torch import Tensor, nn

from mafl_cli.classes import Classes
from mafl_cli.errors import ModelError, UsageError
from mafl_cli.network.card import ModelCard, read_taps
from mafl_cli.network.device import caution, exactly, pick_device
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.lifting import Output, Tap
from mafl_cli.network.load import ModelInfo, describe, load, taps
from mafl_cli.network.model_file import ModelFile
from mafl_cli.network.reasons import is_out_of_memory
from mafl_cli.network.segmenter import KEPT_GRAPHS, Segmenter

CPU = torch.device("cpu")


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def scripted(net: nn.Module) -> Any:
    return torch.jit.script(net.eval())


def traced(net: nn.Module) -> Any:
    first = next(p for p in net.parameters() if p.ndim > 3)
    size = (2, first.shape[1], *(16,) * (first.ndim - 2))
    with warnings.catch_warnings():
        # Their norms look at the size of the input.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return torch.jit.trace(net.eval(), image(*size))


def frozen(net: nn.Module) -> Any:
    return torch.jit.freeze(scripted(net))


def open_model(module: Any, folder: Path, size: int = 16, **settings: Any) -> tuple[Segmenter, ModelInfo]:
    """Save a ScriptModule (or script a module) and load it as an attack does."""
    path = folder / "net.ts"
    (module if isinstance(module, torch.jit.ScriptModule) else scripted(module)).save(path)
    segmenter, info, _ = load(path, device=CPU, size=lambda dims: (size,) * dims, **settings)
    return segmenter, info


def lambda_net(forward: Callable[[Tensor], Any], dims: int = 2, classes: int = 3, scale: float = 1.0) -> Any:
    """A traced network: one convolution, then `forward` on its output."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, classes, 3, padding=1)

        def forward(self, x: Tensor) -> Any:
            return forward(scale * self.conv(x))

    return torch.jit.trace(Net().eval(), image(2, 1, *(16,) * dims), strict=False, check_trace=False)


def _logits(network: Any, x: Tensor) -> Any:
    return network(x).logits


def with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and the gradient of a fixed random weighting of it."""
    x = x.clone().requires_grad_()
    y = function(x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    return y.detach(), torch.autograd.grad((y * weight).sum(), x)[0]


# --- same function ------------------------------------------------------------------------------------------------

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "2d batch norm": lambda: SmallUNet(2, 1, 2, "batch"),
    "2d instance norm": lambda: SmallUNet(2, 3, 4, "instance"),
    "3d batch norm": lambda: SmallUNet(3, 2, 3, "batch"),
    "3d instance norm": lambda: SmallUNet(3, 1, 2, "instance"),
    "2d monai unet": lambda: UNet(2, 1, 3, (4, 8, 16), (2, 2), num_res_units=1, norm="batch"),
    "3d monai segresnet": lambda: SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)),
}


@pytest.mark.parametrize("save", [scripted, traced, frozen], ids=["scripted", "traced", "frozen"])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_lifted_networks_equal_the_original(make: Callable[[], nn.Module], save: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = make().eval().requires_grad_(False)
    segmenter, info = open_model(save(net), tmp_path)
    folds = any(isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d)) for layer in net.modules())
    for batch, size in ((1, 16), (2, 16), (3, 16), (5, 8), (1, 24)):
        x = image(batch, len(info.channels), *(size,) * info.dims, seed=batch)
        ours, theirs = with_gradient(lambda x: segmenter(x).logits, x), with_gradient(net, x)
        # A batch that is filled up to the next power of two may be added up in another order.
        exact = not folds and batch in (1, 2)
        for mine, original in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, original, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)


def test_a_sample_does_not_depend_on_the_batch_it_comes_in(tmp_path: Path) -> None:
    segmenter, _ = open_model(SmallUNet(norm="instance"), tmp_path)
    x = image(7, 1, 16, 16)
    together, alone = segmenter(x), segmenter(x[4:5])
    assert len(together.logits) == len(together.features[0].features) == 7
    torch.testing.assert_close(together.logits[4:5], alone.logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together.features[0].features[4:5], alone.features[0].features, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("save", [scripted, traced, frozen], ids=["scripted", "traced", "frozen"])
def test_parameters_never_take_a_gradient(save: Any, tmp_path: Path) -> None:
    segmenter, _ = open_model(save(SmallUNet()), tmp_path)
    x = image(1, 1, 16, 16).requires_grad_()
    segmenter(x).logits.sum().backward()
    assert x.grad is not None
    lifted = segmenter.lifted(x)
    weights = [getattr(lifted.graph, str(node.target)) for node in lifted.graph.graph.nodes if node.op == "get_attr"]
    assert len(weights) >= 8
    assert all(weight.grad is None and not weight.requires_grad for weight in weights)


def test_networks_saved_in_training_mode_are_evaluated(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    net = Net().train()
    segmenter, _ = open_model(torch.jit.script(net), tmp_path)
    x = image(1, 1, 16, 16)
    torch.testing.assert_close(segmenter(x).logits, net.eval()(x))


# --- forms of output ----------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Logits of three classes with company: `form` says which."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        z = self.conv(x)
        forms: dict[str, Any] = {
            "tuple": (z, z.mean(dim=(2, 3))),
            "list": [z, 2 * z],
            "dict": {"out": z, "aux": 2 * z},
            "coarse first": (F.avg_pool2d(z, 2), z),
            "deep supervision": (z, F.avg_pool2d(z, 2), F.avg_pool2d(z, 4)),
            "labels first": (z.argmax(dim=1, keepdim=True), z),
            "nested": (F.avg_pool2d(x, 2), (x.mean(), (z, z.argmax(dim=1)))),
        }
        return forms[self.form]


@pytest.mark.parametrize(
    "form", ["tuple", "list", "dict", "coarse first", "deep supervision", "labels first", "nested"]
)
def test_the_segmentation_is_found_among_several_outputs(form: str, tmp_path: Path) -> None:
    net = Heads(form).eval()
    module = torch.jit.trace(net, image(1, 1, 16, 16), strict=False)
    segmenter, info = open_model(module, tmp_path)
    x = image(1, 1, 16, 16, seed=3)
    assert len(info.classes) == 3
    torch.testing.assert_close(segmenter(x).logits, net.conv(x))


def test_one_logit_becomes_two_classes(tmp_path: Path) -> None:
    module = lambda_net(lambda z: z, classes=1, scale=10)
    segmenter, info = open_model(module, tmp_path)
    x = image(2, 1, 16, 16)
    z, logits = module(x), segmenter(x).logits
    assert (info.classes, info.activation) == (Classes(("background", "class 1")), "sigmoid")
    torch.testing.assert_close(logits[:, 1:] - logits[:, :1], z)
    torch.testing.assert_close(torch.softmax(logits, dim=1)[:, 1:], torch.sigmoid(z))


def own_logits(segmenter: Segmenter, x: Tensor, classes: int) -> Tensor:
    """What the network itself gives: of a single logit, the lead of the second of the two classes made of it."""
    logits = segmenter(x).logits
    return logits if classes > 1 else logits[:, 1:] - logits[:, :1]


@pytest.mark.parametrize("scale", [1.0, 100.0], ids=["unsure", "saturated"])
@pytest.mark.parametrize(
    ("classes", "activate", "said"),
    [
        (3, lambda z: torch.softmax(z, dim=1), "a softmax, not logits"),
        (1, torch.sigmoid, "a sigmoid, not logits"),
    ],
    ids=["softmax", "sigmoid"],
)
def test_a_last_activation_is_taken_back_exactly(
    classes: int, activate: Callable[[Tensor], Tensor], said: str, scale: float, tmp_path: Path
) -> None:
    plain = lambda_net(lambda z: z, classes=classes, scale=scale)
    segmenter, info = open_model(lambda_net(activate, classes=classes, scale=scale), tmp_path)
    x = image(2, 1, 16, 16)
    assert any(said in sentence for sentence in info.assumptions)
    ours, theirs = (with_gradient(f, x) for f in (lambda x: own_logits(segmenter, x, classes), plain))
    for mine, original in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine / scale, original / scale)


@pytest.mark.parametrize(
    ("classes", "activate"),
    [
        (3, lambda z: 0.5 * (torch.softmax(z, dim=1) + torch.softmax(2 * z, dim=1))),
        (1, lambda z: 0.5 * (torch.sigmoid(z) + torch.sigmoid(2 * z))),
    ],
    ids=["softmax", "sigmoid"],
)
def test_other_probabilities_are_noticed_and_inverted(
    classes: int, activate: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    module = lambda_net(activate, classes=classes)
    segmenter, info = open_model(module, tmp_path)
    x = image(2, 1, 16, 16)
    assert any("probabilities, not logits" in sentence for sentence in info.assumptions)
    found = torch.softmax(segmenter(x).logits, dim=1)
    torch.testing.assert_close(found[:, -classes:], module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_of_saturated_voxels_stay_finite(classes: int, tmp_path: Path) -> None:
    def hard(z: Tensor) -> Tensor:
        p = torch.sigmoid(z) if classes == 1 else torch.softmax(z, dim=1)
        return 0.5 * p + 0.5 * p

    segmenter, _ = open_model(lambda_net(hard, classes=classes, scale=1000), tmp_path)
    logits, gradient = with_gradient(lambda x: segmenter(x).logits, image(1, 1, 16, 16))
    assert torch.isfinite(logits).all()
    assert torch.isfinite(gradient).all()


def test_the_values_of_a_weak_network_are_not_mistaken_for_probabilities(tmp_path: Path) -> None:
    net = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        net.weight.fill_(0.4)
        net.bias.fill_(0.3)
    segmenter, info = open_model(net, tmp_path)
    x = image(1, 1, 16, 16)
    assert not any("probabilities" in sentence for sentence in info.assumptions)
    torch.testing.assert_close(own_logits(segmenter, x, 1), net(x))


@pytest.mark.parametrize("last", [torch.sigmoid, lambda z: z], ids=["probabilities", "logits"])
def test_regions_that_overlap_are_two_classes_each(last: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    card = ModelCard(activation="sigmoid", classes=("whole", "core", "rim"))
    segmenter, info = open_model(lambda_net(last), tmp_path, card=card)
    assert info.classes == Classes(("whole", "core", "rim"), overlapping=True)
    x = image(2, 1, 16, 16)
    logits = segmenter(x).logits
    assert logits.shape == (2, 2, 3, 16, 16)
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], lambda_net(lambda z: z)(x))


def test_a_last_sigmoid_over_several_channels_says_that_they_overlap(tmp_path: Path) -> None:
    _, info = open_model(lambda_net(torch.sigmoid), tmp_path)
    assert info.classes == Classes(("region 0", "region 1", "region 2"), overlapping=True)
    assert any("each a probability of its own" in sentence for sentence in info.assumptions)
    exclusive, info = open_model(lambda_net(torch.sigmoid), tmp_path, card=ModelCard(activation="softmax"))
    assert not info.classes.overlapping
    assert exclusive(image(1, 1, 16, 16)).logits.shape == (1, 3, 16, 16)


# --- outputs on another grid --------------------------------------------------------------------------------------


class Valid(nn.Module):
    """A U-Net of valid convolutions, as the first one was: the output is smaller than the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.deep = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.last = nn.Conv2d(8, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        deep = F.interpolate(torch.relu(self.deep(F.max_pool2d(first, 2))), scale_factor=2.0)
        lost = (first.shape[2] - deep.shape[2]) // 2
        cut = first[:, :, lost : lost + deep.shape[2], lost : lost + deep.shape[3]]
        return self.last(torch.cat([cut, deep], dim=1))


@pytest.mark.parametrize("size", [16, 17, 30])
def test_valid_convolutions_cover_the_whole_grid(size: int, tmp_path: Path) -> None:
    net = Valid().eval()
    segmenter, info = open_model(net, tmp_path, size=size)
    assert any("smaller than the input by" in sentence for sentence in info.assumptions)
    x = image(2, 1, size, size).requires_grad_()
    logits = segmenter(x).logits
    assert logits.shape == (2, 2, size, size)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert (gradient != 0).any()
    # Where the network needs no padding it says what it says by itself.
    lost = 64 - net(torch.zeros(1, 1, 64, 64)).shape[2]
    whole = image(1, 1, 64, 64)
    segmenter, _ = open_model(net, tmp_path, size=64)
    inner = slice(lost // 2, 64 - lost + lost // 2)
    torch.testing.assert_close(segmenter(whole).logits[..., inner, inner], net(whole), rtol=1e-5, atol=1e-6)


def test_coarser_logits_are_interpolated(tmp_path: Path) -> None:
    segmenter, info = open_model(lambda_net(lambda z: F.avg_pool2d(z, 4)), tmp_path)
    assert any("4 times coarser" in sentence for sentence in info.assumptions)
    x = image(2, 1, 16, 16)
    small = F.avg_pool2d(lambda_net(lambda z: z)(x), 4)
    expected = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmenter(x).logits, expected)


# --- torch.export, precision, one sample at a time ----------------------------------------------------------------


@pytest.mark.parametrize("open_sizes", [False, True], ids=["fixed", "any size"])
def test_exported_programs(open_sizes: bool, tmp_path: Path) -> None:
    net, auto = SmallUNet(2, 1, 3).eval().requires_grad_(False), torch.export.Dim.AUTO
    shapes = {"x": {0: auto, 2: auto, 3: auto}} if open_sizes else None
    program = torch.export.export(net, (image(2 if open_sizes else 1, 1, 16, 16),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    segmenter, info, _ = load(tmp_path / "net.pt2", device=CPU, size=lambda dims: (16,) * dims)
    assert info.format == "torch.export"
    for batch in (1, 3):
        x = image(batch, 1, 16, 16)
        for mine, original in zip(with_gradient(lambda x: segmenter(x).logits, x), with_gradient(net, x), strict=True):
            torch.testing.assert_close(mine, original, rtol=1e-5, atol=1e-6)
    if open_sizes:
        assert segmenter(image(1, 1, 24, 32)).logits.shape == (1, 3, 24, 32)
    else:
        with pytest.raises(ModelError, match=r"was exported for 16 x 16 voxels, not 20 x 20: use `roi` 16,16\."):
            load(tmp_path / "net.pt2", device=CPU, size=lambda dims: (20,) * dims)


def test_a_lower_precision_searches_and_float32_judges(tmp_path: Path) -> None:
    path = tmp_path / "net.ts"
    scripted(SmallUNet()).save(path)
    segmenter, _, _ = load(path, device=CPU, size=lambda dims: (16,) * dims, precision="bf16")
    x = image(2, 1, 16, 16)
    dtypes = {
        node.meta["tensor_meta"].dtype
        for node in segmenter.lifted(x).graph.graph.nodes
        if "convolution" in str(node.target)
    }
    assert dtypes == {torch.bfloat16}
    rough, fine = (with_gradient(partial(_logits, net), x) for net in (segmenter, segmenter.exact))
    assert rough[0].dtype == rough[1].dtype == torch.float32
    assert not torch.equal(rough[0], fine[0])
    for a, b in zip(rough, fine, strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)
    assert segmenter.exact.exact is segmenter.exact


def test_a_network_for_one_sample_takes_several(tmp_path: Path) -> None:
    """Traced with its batch baked in."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.reshape(1, 1, x.shape[2], x.shape[3]))

    net = One().eval().requires_grad_(False)
    segmenter, _ = open_model(torch.jit.trace(net, image(1, 1, 16, 16)), tmp_path, card=ModelCard(dims=2))
    x = image(3, 1, 16, 16)
    expected = torch.cat([net(part) for part in x.split(1)])
    torch.testing.assert_close(segmenter(x).logits, expected)
    assert segmenter(x).features[0].features.shape[0] == 3


def test_batch_norm_left_in_training_mode_takes_one_sample_at_a_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1))
    segmenter, info = open_model(traced(net), tmp_path)
    assert any("one goes at a time" in sentence for sentence in info.assumptions)
    x = image(3, 1, 16, 16)
    torch.testing.assert_close(segmenter(x).logits[1:2], net(x[1:2]).detach(), rtol=1e-4, atol=1e-5)


def test_only_some_lifted_graphs_are_kept(tmp_path: Path) -> None:
    segmenter, _ = open_model(SmallUNet(), tmp_path)
    first = segmenter.lifted(image(1, 1, 16, 16))
    assert segmenter.lifted(image(1, 1, 16, 16)) is first
    for size in range(18, 18 + 2 * KEPT_GRAPHS, 2):
        segmenter.lifted(image(1, 1, size, size))
    assert segmenter.lifted(image(1, 1, 16, 16)) is not first


def test_several_taps_with_weights(tmp_path: Path) -> None:
    segmenter, info = open_model(SmallUNet(), tmp_path, tap="auto:0.25, convolution")
    assert [(tap.name == "convolution", tap.weight) for tap in info.taps] == [(False, 0.25), (True, 1.0)]
    patches = segmenter(image(2, 1, 16, 16)).features
    assert [(tuple(patch.features.shape[1:]), patch.weight) for patch in patches] == [
        (tap.shape, tap.weight) for tap in info.taps
    ]


@pytest.mark.parametrize("text", ["", "a:0", "a:b", "a,,b", "a:-1", "a:inf"])
def test_taps_that_are_not_understood(text: str) -> None:
    with pytest.raises(UsageError, match=r"`tap` must be NAME or NAME:WEIGHT"):
        read_taps(text)


def test_what_a_backward_pass_keeps_is_known_beforehand(tmp_path: Path) -> None:
    segmenter, _ = open_model(SmallUNet(), tmp_path)
    one, four = (segmenter.activation_bytes(image(1, 1, size, size)) for size in (16, 32))
    assert one > 16 * 16 * 4
    assert 3.5 < four / one < 4.5


# --- taps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: SmallUNet(2, 1, 2), (8, 8, 8)),
        (lambda: SmallUNet(3, 1, 2), (8, 8, 8, 8)),
        (lambda: UNet(2, 1, 3, (4, 8, 16), (2, 2), num_res_units=1, norm="batch"), (16, 4, 4)),
        (lambda: SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)), (16, 4, 4, 4)),
    ],
    ids=["2d", "3d", "monai unet", "monai segresnet"],
)
def test_the_tap_is_the_bottleneck(make: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    segmenter, info = open_model(make(), tmp_path)
    assert info.taps[0].shape == shape
    assert segmenter(image(2, 1, *(16,) * info.dims)).features[0].features.shape == (2, *shape)


def test_without_downsampling_the_tap_is_before_the_last_convolution(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    segmenter, info = open_model(net, tmp_path)
    x = image(1, 1, 16, 16)
    assert info.taps[0].shape == (5, 16, 16)
    torch.testing.assert_close(segmenter(x).features[0].features, net[:4](x))


def test_the_gate_of_a_squeeze_and_excite_block_is_no_bottleneck(tmp_path: Path) -> None:
    class Gated(SmallUNet):
        def forward(self, x: Tensor) -> Tensor:
            shallow = self.first(x)
            deep = self.deep(shallow)
            deep = deep * torch.sigmoid(deep.mean(dim=(2, 3), keepdim=True))
            return self.head(torch.cat([shallow, self.up(deep)], dim=1))

    _, info = open_model(Gated(), tmp_path)
    assert info.taps[0].shape == (8, 8, 8)


def test_a_named_tap(tmp_path: Path) -> None:
    net = SmallUNet(norm="instance").eval()
    segmenter, info = open_model(net, tmp_path)
    listed = dict(taps(segmenter))
    assert listed[info.taps[0].name] == info.taps[0].shape
    assert listed["convolution"] == (4, 16, 16)
    named, named_info = open_model(net, tmp_path, tap="convolution")
    x = image(3, 1, 16, 16)
    assert named_info.taps == (Tap("convolution", (4, 16, 16)),)
    torch.testing.assert_close(named(x).features[0].features, net.first[0](x))
    torch.testing.assert_close(named(x).logits, segmenter(x).logits)


def test_a_tap_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^net\.ts: has no layer called 'layer4'; it has "):
        open_model(SmallUNet(), tmp_path, tap="layer4")


# --- what it takes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [scripted, frozen], ids=["scripted", "frozen"])
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_dimensions_and_channels_are_found_out(
    dims: int, classes: int, channels: int, save: Any, tmp_path: Path
) -> None:
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    _, info = open_model(save(conv(channels, classes, 3, padding=1)), tmp_path)
    assert (info.dims, len(info.channels), len(info.classes)) == (dims, channels, classes)


@pytest.mark.parametrize(("size", "divisor", "stated"), [(16, 1, False), (15, 2, True), (13, 2, True)])
def test_the_divisor_is_found_by_trying(size: int, divisor: int, stated: bool, tmp_path: Path) -> None:
    _, info = open_model(SmallUNet(), tmp_path, size=size)
    assert info.divisor == divisor
    assert any(sentence.startswith("divisor") for sentence in info.assumptions) == stated


def test_what_the_card_says_is_taken(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(
        "name = 'Lesions'\n[input]\ndims = 2\nchannels = ['T1']\norientation = 'RAS'\nintensity = 'minmax'\n"
        "divisor = 4\n[output]\nactivation = 'softmax'\nclasses = ['background', 'lesion']\n"
    )
    _, info = open_model(SmallUNet(), tmp_path)
    assert info.assumptions == ()
    assert (info.name, info.channels, info.orientation, info.classes) == (
        "Lesions",
        ("T1",),
        "RAS",
        Classes(("background", "lesion")),
    )
    assert (info.intensity, info.divisor, info.card) == (Intensity(kind="minmax"), 4, "net.toml")


# --- refusals -----------------------------------------------------------------------------------------------------


def state_dict(path: Path) -> None:
    torch.save(SmallUNet().state_dict(), path)


def whole_module(path: Path) -> None:
    torch.save(SmallUNet(), path)


def legacy_checkpoint(path: Path) -> None:
    torch.save(SmallUNet().state_dict(), path, _use_new_zipfile_serialization=False)


def exported(path: Path) -> None:
    program = torch.export.export(SmallUNet(), (image(1, 1, 16, 16),))
    with path.open("wb") as file:
        torch.export.save(program, file)


def cut_off(path: Path) -> None:
    scripted(SmallUNet()).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (state_dict, r"is a checkpoint \(weights without the network\), not TorchScript"),
        (whole_module, "is a checkpoint"),
        (legacy_checkpoint, "is a Python pickle, not TorchScript"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a Python pickle, not TorchScript"),
        (lambda path: path.write_text("hello"), "is not a model file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (cut_off, "is a damaged or cut-off archive"),
        (other_archive, "is an archive without a TorchScript program"),
    ],
    ids=[
        "state dict",
        "pickled module",
        "old checkpoint",
        "pickle",
        "text",
        "empty",
        "cut off",
        "other archive",
    ],
)
def test_files_that_are_not_torchscript(write: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    write(path)
    with pytest.raises(ModelError, match=rf"^net\.pt: {reason}.*torch\.jit\.script") as caught:
        load(path, device=CPU)
    assert caught.value.exit_code == 4
    assert str(tmp_path) not in str(caught.value)


def test_damage_anywhere_is_a_refusal_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "net.ts"
    scripted(SmallUNet()).save(path)
    whole, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.choices(range(len(whole)), k=rng.choice([1, 4, 32])):
            damaged[place] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load(path, device=CPU, size=lambda dims: (16,) * dims)
        except ModelError:
            refused += 1
    assert refused > 20


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^gone\.ts: no such model file"):
        load(tmp_path / "gone.ts", device=CPU)
    (tmp_path / "folder.ts").mkdir()
    with pytest.raises(ModelError, match=r"^folder\.ts: is a folder"):
        load(tmp_path / "folder.ts", device=CPU)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_must_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "net.ts").write_bytes(b"PK")
    (tmp_path / "net.ts").chmod(0)
    with pytest.raises(ModelError, match=r"^net\.ts: cannot be read"):
        load(tmp_path / "net.ts", device=CPU)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda z: z.argmax(dim=1), r"gives labels \(argmax\)"),
        (lambda z: z.argmax(dim=1, keepdim=True), r"gives labels \(argmax\)"),
        (lambda z: z.argmax(dim=1, keepdim=True).float(), "no gradient"),
        (torch.round, "gradient with respect to the input is zero"),
        (lambda z: z * float("nan"), "gives NaN or infinite values"),
        (lambda z: z / 0, "gives NaN or infinite values"),
        (lambda z: z.mean(), "is not on the input's grid"),
        (
            lambda z: z.to_sparse(),
            r"its output is not a plain \(dense\) tensor; export it with \.to_dense\(\) at its end\.",
        ),
    ],
    ids=[
        "argmax",
        "argmax 1 channel",
        "argmax as float",
        "rounded",
        "nan",
        "inf",
        "scalar",
        "sparse",
    ],
)
def test_networks_that_cannot_be_attacked(forward: Callable[[Tensor], Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"^net\.ts: .*{reason}"):
        open_model(lambda_net(forward), tmp_path)


@pytest.mark.parametrize(
    ("forward", "activation"),
    [
        (lambda z: torch.cat([z[:, :1], -z[:, :1]], dim=1), "sigmoid"),
        (lambda z: z - z.mean(dim=(2, 3), keepdim=True), "softmax"),
    ],
    ids=["opposite regions", "mean 0"],
)
def test_logits_that_add_up_to_a_constant_have_a_gradient(
    forward: Callable[[Tensor], Any], activation: Any, tmp_path: Path
) -> None:
    _, info = open_model(lambda_net(forward), tmp_path, card=ModelCard(activation=activation))
    assert info.activation == activation


def test_logits_that_move_together_have_no_gradient(tmp_path: Path) -> None:
    """No class can win where all rise alike."""
    with pytest.raises(ModelError, match="gradient with respect to the input is zero"):
        open_model(lambda_net(lambda z: z[:, :1] + torch.zeros_like(z).detach()), tmp_path)


def test_labels_of_a_volume_are_called_labels(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gives labels \(argmax\)"):
        open_model(lambda_net(lambda z: z.argmax(dim=1), dims=3), tmp_path)


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (ModelCard(classes=("background", "a", "b")), "gives 2 classes, its card names 3"),
        (ModelCard(activation="sigmoid", classes=("a",)), "gives 2 regions, its card names 1"),
        (ModelCard(channels=("T1", "T2")), r"takes 1 channel\(s\) in 2-D, not 2 in 2-D, as is asked of it"),
        (ModelCard(dims=3), r"takes 1 channel\(s\) in 2-D, not any in 3-D"),
        (ModelCard(dims=3, channels=("T1",)), "accepts 1 channel.* of size 16 x 16 x 16 neither"),
        (ModelCard(divisor=1), "does not accept 1 channel.* padded to multiples of 1: "),
    ],
    ids=["classes", "activation", "channels", "dims", "dims and channels", "divisor"],
)
def test_cards_that_do_not_fit(card: ModelCard, reason: str, tmp_path: Path) -> None:
    size = 15 if card.divisor else 16
    with pytest.raises(ModelError, match=rf"^net\.ts: {reason}"):
        open_model(SmallUNet(), tmp_path, card=card, size=size)


class Picky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != 48:
            raise ValueError("wants 48 rows")
        return self.conv(x)


def test_a_network_of_one_size(tmp_path: Path) -> None:
    _, info = open_model(Picky(), tmp_path, size=48)
    assert info.taps[0].shape == (2, 48, 48)
    with pytest.raises(ModelError, match=r"^net\.ts: accepts 1 channel.* of size 16 x 16 neither.*wants 48 rows"):
        open_model(Picky(), tmp_path, size=16)
    segmenter, _ = open_model(Picky(), tmp_path, size=48)
    with pytest.raises(
        ModelError, match=r"^net\.ts: does not accept an input of shape \(1, 1, 16, 16\).*wants 48 rows"
    ):
        segmenter(image(1, 1, 16, 16))


def test_a_network_optimised_for_inference(tmp_path: Path) -> None:
    module = torch.jit.optimize_for_inference(scripted(SmallUNet()))
    with pytest.raises(ModelError, match=r"^net\.ts: "):
        open_model(module, tmp_path)


def test_loading_says_nothing_about_torchscripts_age(tmp_path: Path) -> None:
    scripted(SmallUNet()).save(tmp_path / "net.ts")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        load(tmp_path / "net.ts", device=CPU)
    assert [str(warning.message) for warning in heard] == []


# --- memory -------------------------------------------------------------------------------------------------------


class Greedy(torch.nn.Module):
    """Asks for more memory than there is, in the words of a GPU, for more than `most` voxels."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3, padding=1)
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.conv(x)


def test_a_sample_that_does_not_fit_is_one_sentence_and_not_a_matter_of_its_size(tmp_path: Path) -> None:
    torch.jit.script(Greedy(5 * 64**2).eval()).save(tmp_path / "net.ts")
    with pytest.raises(ModelError, match=r"^net\.ts: one sample of this size needs more memory than there is: choose"):
        load(tmp_path / "net.ts", device=CPU, size=lambda dims: (160,) * dims)


def test_two_samples_that_do_not_fit_go_one_at_a_time_and_more_later_are_the_batchs_matter(tmp_path: Path) -> None:
    card = ModelCard(dims=2, channels=("image",))
    network = Greedy(5 * 64**2).eval().requires_grad_(False)
    file = ModelFile(network, network, "torch.nn", "", (2, 1, 3, 3), None, cuts=False)
    _, info, _ = describe(file, "net", CPU, card, size=lambda dims: (128,) * dims)
    assert "batch: two samples need more memory than there is; one goes at a time" in info.assumptions
    segmenter = Segmenter(file, "net", Output(0, bounded=False), CPU)
    with pytest.raises(RuntimeError, match="CUDA out of memory") as caught:
        segmenter(torch.rand(2, 1, 128, 128))
    assert is_out_of_memory(caught.value)


# --- devices ------------------------------------------------------------------------------------------------------


def test_the_device_is_what_was_asked_for() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("choice", ["cuda", "gpu", "cuda:0", "gpu:1"])
def test_cuda_without_cuda_is_refused(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=rf"^`device` {choice} (?:cannot be used|does not exist): ") as caught:
        pick_device(choice)
    assert caught.value.exit_code == 2


def test_a_gpu_has_its_number_as_tensors_on_it_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {"is_available": True, "device_count": 2, "current_device": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    found = {choice: pick_device(choice) for choice in ("auto", "cuda", "gpu", "cuda:0", "gpu:1")}
    assert found == {
        "auto": torch.device("cuda:1"), "cuda": torch.device("cuda:1"), "gpu": torch.device("cuda:1"),
        "cuda:0": torch.device("cuda:0"), "gpu:1": torch.device("cuda:1"),
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"^`device` cuda:2 does not exist: the last of this machine is cuda:1\.$"):
        pick_device("cuda:2")


@pytest.mark.parametrize("kinds", [False, True])
def test_a_gpu_computes_in_float32_only_meanwhile(kinds: bool) -> None:
    cudnn: Any = torch.backends.cudnn
    if kinds and not hasattr(cudnn, "conv"):
        pytest.skip("this PyTorch has one switch for all kinds of operators")
    try:
        if kinds:
            cudnn.conv.fp32_precision = "ieee"
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "tf32", "ieee"
        with exactly(torch.device("cuda:0")):
            assert cudnn.deterministic
            assert cudnn.conv.fp32_precision == "ieee" if kinds else not cudnn.allow_tf32
        assert not cudnn.deterministic
        assert cudnn.conv.fp32_precision == "tf32" if kinds else cudnn.allow_tf32
    finally:
        cudnn.allow_tf32 = True


@pytest.mark.parametrize(("version", "warned"), [(90100, False), (91002, True), (91500, False), (None, False)])
def test_a_cudnn_that_is_wrong_in_bf16_is_warned_of(
    version: int | None, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    said = caution(torch.device("cuda:0"), "bf16", 3)
    assert (said is not None) == warned
    assert said is None or said.startswith("precision bf16: cuDNN 9.10.2 computes large 3-D convolutions wrongly")
    assert caution(torch.device("cuda:0"), "bf16", 2) is caution(torch.device("cuda:0"), "fp16", 3) is None


@pytest.mark.parametrize("choice", ["", "cuda-0", "gpus", "tpu", "mps", "meta", "cuda:x", "cpu cuda"])
def test_devices_that_are_not_known(choice: str) -> None:
    with pytest.raises(UsageError, match=rf"^`device` must be auto, cpu, cuda or cuda:N, got .{choice}") as caught:
        pick_device(choice)
    assert caught.value.exit_code == 2


def test_softmax_over_another_axis_than_the_classes_is_left_in_the_network(tmp_path: Path) -> None:
    """Attention over the image as the last step is no class probability; taking it off would change the answer."""

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.conv(x), dim=3)

    network = Attention().eval()
    torch.jit.script(network).save(tmp_path / "attention.ts")
    segmenter, _, _ = load(tmp_path / "attention.ts", device=torch.device("cpu"))
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(segmenter(x).logits, network(x))
