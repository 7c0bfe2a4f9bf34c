"""A network that sees what it was not trained on: found by what it draws when the scan is read in other ways."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import mafl
from dicoms import LPS, write_ct
from torch import Tensor, nn

from mafl_cli.case.channel_names import order_by_name
from mafl_cli.case.inspection import tried_readings
from mafl_cli.case.plausible import plausible
from mafl_cli.case.reading import Reading
from mafl_cli.case.readings import DOUBTFUL
from mafl_cli.case.request import ModelRequest
from mafl_cli.case.subject import prepare_subject, read_channels
from mafl_cli.network.intensity import Intensity

SHAPE, BLOB = (32, 32, 6), (slice(12, 17), slice(12, 17), slice(2, 5))


class Shifted(nn.Module):
    """Draws what is bright in the first channel, a few voxels further along the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        bright = torch.roll(x[:, :1], 6, dims=-1) - 0.5
        return torch.cat([-bright, bright], dim=1) * 10


def saved(folder: Path, *, channels: int = 1, dims: int = 2) -> Path:
    path = folder / "net.ts"
    size = (32,) * dims
    torch.jit.trace(Shifted().eval(), torch.rand(1, channels, *size)).save(str(path))
    names = [str(n) for n in range(channels)]
    path.with_suffix(".toml").write_text(f"[input]\ndims = {dims}\nchannels = {names}\n")
    return path


def write(folder: Path, name: str, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / name)
    return folder / name


def scan(folder: Path, *, low: float = 0.0, high: float = 1.0, name: str = "scan.nii.gz", shape: tuple = SHAPE) -> Path:
    array = np.full(shape, low, np.float32)
    array[BLOB] = high
    # No two voxels alike: a scan of two values has no percentiles.
    return write(folder, name, array + np.linspace(0, 0.01 * (high - low), array.size, dtype=np.float32).reshape(shape))


def mask(folder: Path, axis: int, by: int, shape: tuple = SHAPE) -> Path:
    """What the network draws if its last axis is an axis of the scan, or runs against it."""
    array = np.zeros(shape, np.uint8)
    array[BLOB] = 1
    return write(folder, "mask.nii.gz", np.roll(array, by, axis=axis))


def test_a_scan_that_is_read_as_the_network_was_trained_has_no_better_reading(tmp_path: Path) -> None:
    found = tried_readings(saved(tmp_path), [scan(tmp_path)], mask(tmp_path, 1, 6))
    assert found.given.score == pytest.approx(1)
    assert found.better is None
    assert found.given.reading == Reading(orientation="RAS", slice_axis="k", intensity=None, order=(0,))


@pytest.mark.parametrize(("axis", "by", "last"), [(0, 6, "R"), (0, -6, "L"), (1, -6, "P")])
def test_the_order_and_direction_of_axes_is_found(tmp_path: Path, axis: int, by: int, last: str) -> None:
    found = tried_readings(saved(tmp_path), [scan(tmp_path)], mask(tmp_path, axis, by))
    assert found.given.score == 0
    assert found.better is not None
    assert found.better.score == pytest.approx(1)
    assert found.better.reading.orientation[1] == last
    assert found.better.reading.slice_axis == "k"
    assert found.better.reading.intensity is None


def test_the_axes_of_a_volume_are_found(tmp_path: Path) -> None:
    shape = (32, 32, 32)
    network = saved(tmp_path, dims=3)
    found = tried_readings(network, [scan(tmp_path, shape=shape)], mask(tmp_path, 0, -6, shape))
    assert found.better is not None
    assert found.better.reading.orientation[2] == "L"


def test_the_scaling_of_intensities_is_found(tmp_path: Path) -> None:
    found = tried_readings(saved(tmp_path), [scan(tmp_path, low=100, high=900)], mask(tmp_path, 1, 6))
    assert found.better is not None
    assert found.better.reading.options(found.given.reading) in (
        "`intensity` minmax",
        "`intensity` percentile:0.5,99.5",
    )


def test_a_scaling_that_helps_a_scan_that_is_read_the_wrong_way_is_not_what_is_advised(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[BLOB] = 0.8
    # Brightened until it is drawn, and moved along the wrong axis, this lies where the blob should be drawn.
    array[18:23, 6:11, BLOB[2]] = 0.42
    found = tried_readings(saved(tmp_path), [write(tmp_path, "scan.nii.gz", array)], mask(tmp_path, 0, 6))
    assert found.better is not None
    assert found.better.score == pytest.approx(1)
    assert found.better.reading.intensity is None


def test_the_order_of_channels_is_found(tmp_path: Path) -> None:
    dark = write(tmp_path, "dark.nii.gz", np.random.default_rng(0).random(SHAPE, np.float32) * 0.1)
    found = tried_readings(saved(tmp_path, channels=2), [dark, scan(tmp_path)], mask(tmp_path, 1, 6))
    assert found.better is not None
    assert found.better.reading.options(found.given.reading) == "the channels in the order 2, 1"


@pytest.mark.parametrize(
    ("files", "channels", "ordered"),
    [
        (("p1_t1ce.nii.gz", "p1_flair.nii.gz"), ("FLAIR", "T1c"), ("p1_flair.nii.gz", "p1_t1ce.nii.gz")),
        (("p1_flair.nii.gz", "p1_t1ce.nii.gz"), ("FLAIR", "T1c"), None),
        (("sub-1_T2w.nii.gz", "sub-1_T1w.nii.gz"), ("T1", "T2"), ("sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz")),
        # A name that fits none, or two, says nothing; and T1 is not T1c.
        (("p1_t1c.nii.gz", "p1_b.nii.gz"), ("FLAIR", "T1c"), None),
        (("t1_to_flair.nii.gz", "flair.nii.gz"), ("FLAIR", "T1"), None),
        (("t1.nii.gz", "flair.nii.gz"), ("FLAIR", "T1c"), None),
        (("case_0000.nii.gz", "case_0001.nii.gz"), ("CT", "PET"), None),
        (("b.nii.gz", "a.nii.gz"), (), None),
    ],
)
def test_names_of_files_say_which_channel_they_are(
    files: tuple[str, ...], channels: tuple[str, ...], ordered: tuple[str, ...] | None
) -> None:
    assert order_by_name(files, channels) == ordered


def test_an_attack_says_that_files_are_in_the_order_of_other_channels(tmp_path: Path) -> None:
    network = saved(tmp_path, channels=2)
    network.with_suffix(".toml").write_text('[input]\ndims = 2\nchannels = ["FLAIR", "T1c"]\n')
    first, second = scan(tmp_path, name="a_flair.nii.gz"), scan(tmp_path, name="a_t1gd.nii.gz")
    common = ("--target", "erase:1", "--model", network, "--steps", 2)
    result = mafl("attack", "--channels", f"{second},{first}", *common, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "names of the files say another order: give them as a_flair.nii.gz, a_t1gd.nii.gz" in result.stderr
    refused = mafl("attack", "--channels", f"{second},{first}", *common, "--strict", "--out", tmp_path / "strict")
    assert refused.exit_code == 3
    assert "or leave out --strict" in refused.stderr
    assert not (tmp_path / "strict").exists()
    right = mafl("attack", "--channels", f"{first},{second}", *common, "--strict", "--out", tmp_path / "right")
    assert right.exit_code == 0, right.stderr
    assert "another order" not in right.stderr


def test_a_target_that_moves_what_is_there_is_no_reason_to_advise(tmp_path: Path) -> None:
    target = np.zeros(SHAPE, np.uint8)
    target[2:6, 24:29, 2:5] = 1
    found = tried_readings(saved(tmp_path), [scan(tmp_path)], write(tmp_path, "mask.nii.gz", target))
    assert found.given.score == 0
    assert found.better is None


def test_an_attack_says_which_reading_fits_the_target_and_strict_refuses(tmp_path: Path) -> None:
    network, image, target = saved(tmp_path), scan(tmp_path), mask(tmp_path, 0, -6)
    arguments = ("attack", image, "--target", target, "--model", network, "--steps", 4, "--out")
    result = mafl(*arguments, tmp_path / "out")
    assert "has little in common with the target (Dice 0.00), and much with --orientation" in result.stderr
    assert result.exit_code == 0
    result = mafl(*arguments, tmp_path / "strict", "--strict")
    assert result.exit_code == 3
    assert "or leave out --strict" in result.stderr
    assert not (tmp_path / "strict").exists()
    assert "little in common" not in mafl(*arguments, tmp_path / "erased", "--target", "erase:1").stderr


def test_inspect_shows_the_readings_and_writes_the_better_one(tmp_path: Path) -> None:
    network, image, wanted = saved(tmp_path), scan(tmp_path), mask(tmp_path, 0, -6)
    asked = ("inspect", network, "--scan", image, "--mask", wanted)
    found = json.loads(mafl(*asked, "--json").stdout)["readings"]
    assert found["given"]["agreement"] == 0
    assert found["others"][0]["agreement"] == 1
    assert found["better"].startswith("`orientation` ")
    assert mafl(*asked, "--write", "--overwrite").exit_code == 0
    assert json.loads(mafl(*asked, "--json").stdout)["readings"]["given"]["agreement"] == 1


def test_a_mask_without_a_scan_is_one_sentence(tmp_path: Path) -> None:
    result = mafl("inspect", saved(tmp_path), "--mask", mask(tmp_path, 1, 6))
    assert result.exit_code == 2
    assert "--scan is needed for --mask" in result.stderr


def unsure(folder: Path) -> Path:
    """A network that is sure of what lies in [0, 1], and draws a pattern of its own on anything else."""

    class Unsure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            beyond = (x.amax(dim=(2, 3), keepdim=True) > 2).to(x)
            rows = torch.arange(x.shape[2]).to(x).view(1, 1, -1, 1) % 4 - 1.5
            bright = (1 - beyond) * 10 * (x - 0.5) + beyond * 0.2 * (rows + 0 * x)
            return torch.cat([-bright, bright], dim=1)

    torch.jit.script(Unsure().eval()).save(str(folder / "net.ts"))
    (folder / "net.toml").write_text('[input]\ndims = 2\norientation = "RAS"\n')
    return folder / "net.ts"


def test_a_wrong_scaling_shows_without_a_mask(tmp_path: Path) -> None:
    network, image = unsure(tmp_path), scan(tmp_path, low=100, high=900, name="raw.nii.gz")
    found = tried_readings(network, [image], None)
    assert found.given.score < DOUBTFUL["plausibility"]
    assert found.better is not None
    assert found.better.reading.intensity in ("minmax", "percentile:0.5,99.5")
    assert tried_readings(network, [scan(tmp_path)], None).better is None
    figure = tmp_path / "readings.png"
    result = mafl("inspect", network, "--scan", image, "--figure", figure, "--json")
    facts = json.loads(result.stdout)["readings"]
    assert facts["given"]["plausibility"] < facts["others"][0]["plausibility"] <= 1
    assert facts["better"].startswith("`intensity` ")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert mafl("inspect", network, "--scan", image, "--figure", tmp_path / "readings.txt").exit_code == 2


def test_an_attack_by_a_recipe_asks_whether_the_prediction_is_plausible(tmp_path: Path) -> None:
    network, image = unsure(tmp_path), scan(tmp_path, low=100, high=900)
    arguments = ("attack", image, "--target", "erase:1", "--model", network, "--steps", 4, "--out")
    result = mafl(*arguments, tmp_path / "out")
    assert "is unsure or unsteady (plausibility 0." in result.stderr
    assert "far less so with --intensity" in result.stderr
    refused = mafl(*arguments, tmp_path / "strict", "--strict")
    assert refused.exit_code == 3
    assert not (tmp_path / "strict").exists()
    right = mafl(*arguments, tmp_path / "right", "--strict", "--intensity", "minmax")
    assert right.exit_code == 0, right.stderr
    assert "unsure" not in right.stderr


@pytest.mark.parametrize(("bias", "plausibility"), [(9.0, 0.0), (-0.5, 0.0), (-9.0, 1.0)])
def test_everything_is_not_plausible_and_nothing_where_the_network_is_sure(
    tmp_path: Path, bias: float, plausibility: float
) -> None:
    """A scan without what a network draws is one that it may well see as it was trained to."""
    layer = nn.Conv2d(1, 2, 1)
    layer.weight.data *= 1e-3
    layer.bias.data = torch.tensor([0.0, bias])
    torch.jit.trace(layer.eval(), torch.rand(1, 1, 32, 32)).save(str(tmp_path / "flat.ts"))
    found = tried_readings(tmp_path / "flat.ts", [scan(tmp_path)], None)
    assert found.given.score == plausibility
    assert found.better is None


class Remembering(nn.Module):
    """Draws what is above 0.5, and on values that are not scaled something else, just as sure and as steady."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        beyond = (x.amax(dim=(2, 3), keepdim=True) > 2).to(x)
        bright = (1 - beyond) * (x - 0.5) + beyond * (torch.roll(x, 10, dims=-1) - 500) + 0 * self.norm(x)
        return torch.cat([-bright, bright], dim=1) * 20


def remembering(folder: Path, image: Path, *, batch: bool = True) -> Path:
    """That network, trained on the scan as minmax scales it. batch: with a norm layer that remembers that."""
    scaled = np.asarray(nib.load(image).dataobj)
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min())
    norm = nn.BatchNorm2d(1) if batch else nn.InstanceNorm2d(1)
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_mean, norm.running_var = torch.tensor([scaled.mean()]), torch.tensor([scaled.var()])
    torch.jit.script(Remembering(norm).eval()).save(str(folder / "net.ts"))
    (folder / "net.toml").write_text('[input]\ndims = 2\norientation = "RAS"\n')
    return folder / "net.ts"


def test_norm_layers_remember_a_scaling_that_no_prediction_gives_away(tmp_path: Path) -> None:
    image = scan(tmp_path, low=100, high=900)
    network = remembering(tmp_path, image)
    facts = json.loads(mafl("inspect", network, "--scan", image, "--json").stdout)["readings"]
    assert facts["given"]["fit"] < 0.01
    assert facts["better"] in ("`intensity` minmax", "`intensity` percentile:0.5,99.5")
    assert facts["others"][0]["fit"] > 0.8
    attack = ("attack", image, "--target", "erase:1", "--model", network, "--steps", 2, "--strict", "--out")
    refused = mafl(*attack, tmp_path / "out")
    assert refused.exit_code == 3
    assert (
        "comes of input unlike that of its training (fit 0.00), which it resembles with --intensity" in refused.stderr
    )
    assert not (tmp_path / "out").exists()
    right = mafl(*attack, tmp_path / "out", "--intensity", "minmax")
    assert right.exit_code == 0, right.stderr
    assert "unlike that of its training" not in right.stderr


@pytest.mark.filterwarnings("ignore")
def test_norm_layers_of_a_network_that_onnxruntime_runs_are_seen_in_its_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    image = scan(tmp_path, low=100, high=900)
    network = torch.jit.load(str(remembering(tmp_path, image)))
    file = tmp_path / "net.onnx"
    torch.onnx.export(
        network, (torch.zeros(1, 1, 32, 32),), str(file), dynamo=False, input_names=["image"], output_names=["logits"]
    )
    for intensity, lowest, highest in (("none", 0.0, 0.01), ("minmax", 0.8, 1.0)):
        request = ModelRequest(model=file, intensity=Intensity.parse(intensity))
        subject = prepare_subject(read_channels([image], print), request, torch.device("cpu"), print)
        found = plausible(subject, torch.full_like(subject.clean[:1], 100.0), 0.5)
        assert found.fit is not None
        assert lowest <= found.fit <= highest


def test_without_such_layers_there_is_no_fit(tmp_path: Path) -> None:
    image = scan(tmp_path, low=100, high=900)
    found = tried_readings(remembering(tmp_path, image, batch=False), [image], None)
    assert found.given.score > 0.9
    assert found.better is None
    assert {tried.fit for tried in (found.given, *found.others)} == {None}
    assert found.facts()["given"]["fit"] is None


def test_slices_of_dicom_are_rows_by_columns_where_no_card_says_otherwise(tmp_path: Path) -> None:
    """A network taught on the arrays that DICOM readers hand out: its last axis runs along the columns of a row."""
    stored = np.zeros(SHAPE, np.uint16)
    stored[BLOB] = 1000
    write_ct(tmp_path / "series", stored, LPS)
    network = saved(tmp_path)
    network.with_suffix(".toml").write_text('[input]\ndims = 2\nintensity = { kind = "minmax" }\n')
    result = mafl(
        "attack",
        tmp_path / "series",
        "--target",
        "erase:1",
        "--model",
        network,
        "--steps",
        2,
        "--out",
        tmp_path / "out",
    )
    assert "orientation: not stated, rows x columns of the DICOM slices are used (PLS)" in result.stderr
    drawn = np.asarray(nib.load(tmp_path / "out" / "prediction_clean.nii.gz").dataobj)
    wanted = np.zeros(SHAPE, bool)
    wanted[18:23, 12:17, 2:5] = True
    assert np.array_equal(drawn > 0, wanted)
