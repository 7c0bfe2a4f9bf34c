"""The networks that people bring, with random weights: saved as they save them, lifted, tapped, attacked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import mafl
from monai.networks.nets import UNETR, AttentionUnet, DynUNet, SegResNet, SwinUNETR, UNet, VNet
from problems import Unit, box
from torch import Tensor, nn

from mafl_cli.config import preset
from mafl_cli.field.whole import Whole
from mafl_cli.network.load import load
from mafl_cli.search.loop import attack

CPU = torch.device("cpu")


def nnunet(name: str, dims: int) -> nn.Module:
    """nnU-Net v2's own network, three stages, deep supervision off as for prediction."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    blocks = {"n_blocks_per_stage": [1, 2, 2]} if name.startswith("Residual") else {"n_conv_per_stage": [2, 2, 2]}
    return getattr(unet, name)(
        input_channels=1, n_stages=3, features_per_stage=[4, 8, 16], conv_op=(nn.Conv2d, nn.Conv3d)[dims - 2],
        kernel_sizes=3, strides=[1, 2, 2], num_classes=3, n_conv_per_stage_decoder=[1, 1], conv_bias=True,
        norm_op=(nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2], norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False, **blocks,
    )  # fmt: skip


def unetr(dims: int) -> nn.Module:
    return UNETR(
        1, 3, (32,) * dims, feature_size=4, hidden_size=24, mlp_dim=24, num_heads=4, spatial_dims=dims
    )  # fmt: skip


# name: (network for 2 or 3 dimensions, edge of its input in 2-D and 3-D, whether it scripts)
NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, int], bool]] = {
    "UNet": (lambda d: UNet(d, 1, 3, (4, 8, 16), (2, 2), num_res_units=1), (32, 16), True),
    "DynUNet": (
        lambda d: DynUNet(
            d, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16], deep_supervision=True, deep_supr_num=1
        ),
        (32, 16),
        False,
    ),
    "AttentionUnet": (lambda d: AttentionUnet(d, 1, 3, (4, 8, 16), (2, 2)), (32, 16), True),
    "SegResNet": (lambda d: SegResNet(d, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)), (32, 16), True),
    "UNETR": (unetr, (32, 32), False),
    "SwinUNETR": (
        lambda d: SwinUNETR(1, 3, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), feature_size=12, spatial_dims=d),
        (64, 64),
        False,
    ),
    "VNet": (lambda d: VNet(d, 1, 3), (32, 32), True),
    "PlainConvUNet": (lambda d: nnunet("PlainConvUNet", d), (32, 16), False),
    "ResidualEncoderUNet": (lambda d: nnunet("ResidualEncoderUNet", d), (32, 16), False),
}
# Every network in one form, and every form and number of dimensions with one network; the rest of the matrix is slow.
USUAL = {
    ("UNet", 2, "scripted"), ("UNet", 3, "exported"), ("DynUNet", 2, "exported"), ("DynUNet", 3, "traced"),
    ("AttentionUnet", 2, "scripted"), ("SegResNet", 3, "scripted"), ("VNet", 2, "traced"), ("UNETR", 2, "exported"),
    ("PlainConvUNet", 3, "traced"), ("ResidualEncoderUNet", 2, "traced"),
}  # fmt: skip


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def saved(net: nn.Module, how: str, example: Tensor, path: Path) -> Path:
    with warnings.catch_warnings():
        # The networks look at the size of their input, and torch.export knows newer spellings of its own calls.
        warnings.simplefilter("ignore")
        if how == "exported":
            path = path.with_suffix(".pt2")
            torch.export.save(torch.export.export(net, (example,)), path)
        else:
            module: Any = torch.jit.script(net) if how == "scripted" else torch.jit.trace(net, example)
            module.save(str(path))
    return path


def cases() -> list[Any]:
    found = []
    for name, (_, _, scripts) in NETWORKS.items():
        for dims in (2, 3):
            for how in ("scripted", "traced", "exported"):
                if how != "scripted" or scripts:
                    marks = [] if (name, dims, how) in USUAL else [pytest.mark.slow]
                    found.append(pytest.param(name, dims, how, id=f"{name} {dims}-D {how}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "dims", "how"), cases())
def test_a_network_is_lifted_tapped_and_attacked(name: str, dims: int, how: str, tmp_path: Path) -> None:
    make, edges, _ = NETWORKS[name]
    size = (edges[dims - 2],) * dims
    torch.manual_seed(0)
    net = make(dims).eval().requires_grad_(False)
    x = image(1, 1, *size)
    path = saved(net, how, x, tmp_path / "net.ts")
    segmenter, info, _ = load(path, device=CPU, size=lambda dims: size)
    assert info.gradient_from == "graph"

    # The same logits and the same input gradient. Freezing folds batch norm, which moves the last digits.
    weight = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    results = []
    for function in (lambda x: segmenter(x).logits, lambda x: first(net(x))):
        leaf = x.clone().requires_grad_()
        logits = function(leaf)
        results.append((logits.detach(), torch.autograd.grad((logits * weight).sum(), leaf)[0]))
    for mine, original in zip(*results, strict=True):
        scale = original.abs().max()
        torch.testing.assert_close(mine / scale, original / scale, rtol=0, atol=2e-5)

    # The bottleneck: coarser than the image by the same factor along every axis, with channels.
    (tap,) = info.taps
    factors = {edge / coarse for edge, coarse in zip(size, tap.shape[1:], strict=True)}
    assert len(factors) == 1
    assert factors.pop() >= 4
    assert tap.shape[0] >= 8

    # Twenty steps on a target that moves one block to another class.
    field = Whole(segmenter, Unit())  # type: ignore[arg-type]
    target = field.labels(x).long()
    block = (slice(None), *(slice(edge // 4, edge // 2) for edge in size))
    target[block] = (target[block] + 1) % 3
    found = attack(field, x, target, preset("mafl", steps=20), box(x, -1, 2))
    must = field.labels(x) != target
    before, after = (margin(field.predict(y).logits, target)[must].mean() for y in (x, found.adversarial))
    assert after < before
    assert (found.verdict.score > 0).all()


def first(output: Any) -> Tensor:
    while isinstance(output, (tuple, list)):
        output = output[0]
    assert isinstance(output, Tensor)
    return output


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """By how much each voxel misses the target."""
    return logits.amax(dim=1) - logits.gather(1, target[:, None])[:, 0]


@pytest.mark.parametrize(("name", "dims", "how"), cases())
def test_the_reported_prediction_is_the_files_own(name: str, dims: int, how: str, tmp_path: Path) -> None:
    """Run outside the program, voxel for voxel: each slice, or the volume, scaled to [0, 1] as `minmax` says."""
    make, edges, _ = NETWORKS[name]
    size = edges[dims - 2]
    torch.manual_seed(0)
    path = saved(make(dims).eval().requires_grad_(False), how, image(1, 1, *(size,) * dims), tmp_path / "net.ts")
    scan = np.random.default_rng(0).normal(100, 30, (size, size, 2 if dims == 2 else size)).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "scan.nii.gz")
    result = mafl(
        "attack", tmp_path / "scan.nii.gz", "--target", "erase:1", "--model", path, "--mode", f"{dims}d",
        "--slice-axis", "k", "--orientation", "native", "--intensity", "minmax", "--steps", 2, "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    net: Any = torch.export.load(path).module() if how == "exported" else torch.jit.load(path)
    for volume, mask in (("scan", "prediction_clean"), ("out/adversarial", "prediction_adversarial")):
        data = torch.from_numpy(np.asanyarray(nib.load(tmp_path / f"{volume}.nii.gz").dataobj).astype(np.float32))
        scaled = (data - data.min()) / (data.max() - data.min())
        samples = scaled.unbind(-1) if dims == 2 else [scaled]
        with torch.no_grad():
            own = [first(net(sample[None, None])).argmax(dim=1)[0].numpy() for sample in samples]
        drawn = np.asanyarray(nib.load(tmp_path / f"out/{mask}.nii.gz").dataobj)
        assert np.array_equal(np.stack(own, axis=-1) if dims == 2 else own[0], drawn), mask
