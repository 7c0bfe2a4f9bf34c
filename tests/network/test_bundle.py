"""MONAI bundles: what they say is used, and nothing in them is run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing.stock import INFERENCE, METADATA
from monai.data import save_net_with_metadata
from problems import SmallUNet
from typer.testing import CliRunner

from mafl_cli.classes import Classes
from mafl_cli.cli.application import app
from mafl_cli.errors import ModelError
from mafl_cli.network.bundle import read_bundle
from mafl_cli.network.card import ModelCard
from mafl_cli.network.card_file import find_card, read_card, to_toml
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.load import load


def bundle(folder: Path, metadata: Any = METADATA, net: Any = None, **inference: Any) -> Path:
    path = folder / "model.ts"
    module = torch.jit.script(net or SmallUNet(3, 1, 2).eval())
    more = {"inference.json": json.dumps({**INFERENCE, **inference})}
    save_net_with_metadata(module, str(path), meta_values=metadata, more_extra_files=more)
    return path


def transforms(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"preprocessing": {"transforms": list(steps)}}


def test_a_bundle_fills_the_card(tmp_path: Path) -> None:
    card = find_card(bundle(tmp_path))
    assert (card.name, card.source, card.dims, card.divisor) == ("Spleen CT", "its bundle", 3, 16)
    assert (card.channels, card.classes) == (("CT",), ("background", "spleen"))
    assert (card.orientation, card.spacing) == ("RAS", (1.5, 1.5, 2.0))
    assert card.intensity == Intensity(kind="window", min=-57, max=164, clip=(0, 1))
    assert (card.roi, card.overlap, card.blend, card.activation) == ((16, 16, 4), 0.5, "gaussian", "softmax")
    segmenter, info, _ = load(tmp_path / "model.ts", device=torch.device("cpu"), size=lambda dims: (16,) * dims)
    assert (info.classes.names, info.card) == (("background", "spleen"), "its bundle")
    assert segmenter(torch.rand(1, 1, 16, 16, 16)).logits.shape == (1, 2, 16, 16, 16)


def test_a_toml_beside_it_goes_first(tmp_path: Path) -> None:
    path = bundle(tmp_path)
    (tmp_path / "model.toml").write_text("[input]\nspacing = [1, 1, 1]\n")
    card = find_card(path)
    assert (card.spacing, card.orientation, card.source) == ((1, 1, 1), "RAS", "model.toml, then its bundle")


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"_target_": "NormalizeIntensityd", "nonzero": True}, Intensity(kind="zscore", region="nonzero")),
        ({"_target_": "NormalizeIntensity"}, Intensity(kind="zscore")),
        ({"_target_": "monai.transforms.ScaleIntensityd"}, Intensity(kind="minmax")),
        ({"_target_": "ScaleIntensityd", "minv": -1}, None),
        (
            {"_target_": "ScaleIntensityRangePercentilesd", "lower": 1, "upper": 99, "b_min": -1, "b_max": 1},
            Intensity(kind="percentile", lower=1, upper=99, to=(-1, 1)),
        ),
        ({"_target_": "ScaleIntensityRanged", "a_min": "$-50", "a_max": 50}, None),
        ({"_target_": "ScaleIntensityRanged", "a_min": 50, "a_max": -50}, None),
        ({"_target_": "NormalizeIntensityd", "subtrahend": 3, "divisor": 2}, None),
    ],
)
def test_intensity_transforms(step: dict[str, Any], expected: Intensity | None, tmp_path: Path) -> None:
    fields, said = read_bundle(bundle(tmp_path, **transforms(step)))
    assert fields.get("intensity") == expected
    assert any("state intensity if it matters" in sentence for sentence in said) == (expected is None)


def test_expressions_are_never_evaluated_and_said(tmp_path: Path) -> None:
    trap = f"$__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    path = bundle(
        tmp_path,
        inferer={"_target_": "SlidingWindowInferer", "roi_size": trap},
        code=trap,
        **transforms(
            {"_target_": "Orientationd", "axcodes": trap},
            {"_target_": "Spacingd", "pixdim": "@code"},
            {"_target_": "ScaleIntensityd", "_disabled_": trap},
        ),
    )
    fields, said = read_bundle(path)
    assert not {"orientation", "spacing", "intensity", "roi"} & set(fields)
    assert len(said) == 3
    _, info, _ = load(path, device=torch.device("cpu"), size=lambda dims: (16,) * dims)
    assert set(said) <= set(info.assumptions)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "damage",
    [
        {"network_data_format": None},
        {"network_data_format": {"inputs": None, "outputs": []}},
        {"network_data_format": {"inputs": {"image": {"num_channels": 2, "channel_def": {"0": "a"}}}}},
        {"network_data_format": {"inputs": {"image": {"spatial_shape": ["256", 96, "0*n"]}}}},
        {"network_data_format": {"outputs": {"pred": {"num_channels": 1, "channel_def": None}}}},
    ],
)
def test_a_metadata_that_says_little_is_no_error(damage: dict[str, Any], tmp_path: Path) -> None:
    fields, _ = read_bundle(bundle(tmp_path, {**METADATA, **damage}))
    assert "channels" not in fields
    assert "divisor" not in fields


def test_an_orientation_that_is_none_is_refused_with_the_files_name(tmp_path: Path) -> None:
    path = bundle(tmp_path, **transforms({"_target_": "Orientationd", "axcodes": "ABC"}))
    with pytest.raises(ModelError, match=r"^model\.ts: in its bundle, orientation must be .* got 'ABC'"):
        find_card(path)


def test_overlapping_regions_of_a_bundle(tmp_path: Path) -> None:
    outputs = {"pred": {"num_channels": 3, "channel_def": {"0": "TC", "1": "WT", "2": "ET"}}}
    form = {**METADATA["network_data_format"], "outputs": outputs}
    path = bundle(
        tmp_path,
        {**METADATA, "network_data_format": form},
        SmallUNet(3, 1, 3).eval(),
        postprocessing={"transforms": [{"_target_": "Activationsd", "sigmoid": True}]},
    )
    _, info, _ = load(path, device=torch.device("cpu"), size=lambda dims: (16,) * dims)
    assert info.classes == Classes(("TC", "WT", "ET"), overlapping=True)


@pytest.mark.parametrize(
    ("inferer", "reason"),
    [
        ({"overlap": 1}, "overlap must be at least 0 and below 1, got 1"),
        ({"overlap": -0.25}, "overlap must be at least 0 and below 1, got -0.25"),
        ({"overlap": 1e999}, "overlap must be at least 0 and below 1, got inf"),
        ({"roi_size": [96]}, "roi must be two or three whole numbers of voxels, got 96"),
        ({"roi_size": [96, 96, 95.5]}, "roi must be two or three whole numbers of voxels, got 96,96,95.5"),
        ({"roi_size": [10**9, 10**9]}, "roi must have at most .* voxels in all, got 1e\\+09,1e\\+09"),
        ({"roi_size": [10**400, 96]}, "roi must be two or three whole numbers of voxels, got inf,96"),
    ],
)
def test_windows_that_cannot_be_are_refused_or_stated_beside_it(
    inferer: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    stated = {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], **inferer}
    path = bundle(tmp_path, inferer=stated)
    expected = rf"^model\.ts: in its bundle, {reason}.*: state it in a TOML file beside the model\.$"
    with pytest.raises(ModelError, match=expected):
        find_card(path)
    (tmp_path / "model.toml").write_text("[input]\nroi = [16, 16, 16]\noverlap = 0.25\n")
    card = find_card(path)
    assert (card.roi, card.overlap) == ((16, 16, 16), 0.25)


@pytest.mark.parametrize("overlap", ["0.5", [0.5], None, {"a": 1}, "$0.5", True])
def test_an_overlap_that_is_no_number_is_left_out_and_said(overlap: Any, tmp_path: Path) -> None:
    path = bundle(tmp_path, inferer={"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "overlap": overlap})
    fields, said = read_bundle(path)
    assert "overlap" not in fields
    assert "the overlap of the bundle's windows is not a plain value; state overlap" in said


NESTED: Any = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    "text",
    [
        NESTED,
        '{"network_data_format": ' + '{"a":' * 3000 + "1" + "}" * 3000 + "}",
        '{"network_data_format": ' + "9" * 5000 + "}",
        '{"network_data_format": NaN}',
        '{"network_data_format": [1, 2]}',
        '{"network_data_format": {"inputs": [1], "outputs": "x"}}',
        '{"network_data_format": {"inputs": {"a": {"num_channels": 1000000000, "channel_def": {"0": "CT"}}}}}',
        '{"network_data_format": {"inputs": {"a": {"num_channels": 1e999, "channel_def": {"0": {}}}}}}',
        '{"network_data_format": {"inputs": {"a": {"spatial_shape": ["\u00b2*n", NaN]}}}}',
        '{"network_data_format": {}, "preprocessing": [1], "postprocessing": "x", "inferer": 3}',
        '{"network_data_format": {}, "preprocessing": {"transforms": [{"_target_": {"a": []}}, 3, null]}}',
        '{"network_data_format": {}, "preprocessing": {"transforms": [{"_target_": "Spacingd", "pixdim": [NaN, 1]}]}}',
        '{"network_data_format": {}, "preprocessing": {"transforms": [{"_target_": "ScaleIntensityRanged",'
        ' "a_min": 1' + "0" * 400 + ', "a_max": 1e999}]}}',
    ],
)
def test_hostile_descriptions_say_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    torch.jit.script(SmallUNet(2).eval()).save(str(path), _extra_files={"metadata.json": text.encode()})
    card = find_card(path)
    assert (card.channels, card.divisor, card.spacing, card.intensity) == (None, None, None, None)


def test_other_files_have_no_bundle(tmp_path: Path) -> None:
    torch.jit.script(SmallUNet(2)).save(tmp_path / "net.ts")
    (tmp_path / "text").write_text("hello")
    for name in ("net.ts", "text", "absent"):
        assert read_bundle(tmp_path / name) == ({}, ())


def test_inspect_writes_a_card_that_is_read_back_the_same(tmp_path: Path) -> None:
    path = bundle(tmp_path, inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25})
    known = find_card(path)
    result = CliRunner().invoke(app, ["inspect", str(path), "--write"])
    assert (result.exit_code, result.stdout) == (0, "wrote model.toml\n"), result.stderr
    assert read_card(tmp_path / "model.toml") == known
    again = CliRunner().invoke(app, ["inspect", str(path), "--write"])
    assert again.exit_code == 2
    assert "model.toml: is there already: add --overwrite to replace it." in again.stderr
    assert CliRunner().invoke(app, ["inspect", str(path), "--write", "--overwrite"]).exit_code == 0


def test_what_is_not_known_is_written_as_a_comment(tmp_path: Path) -> None:
    torch.jit.script(SmallUNet(2, 2, 3)).save(tmp_path / "net.ts")
    assert CliRunner().invoke(app, ["inspect", str(tmp_path / "net.ts"), "--write"]).exit_code == 0
    card = read_card(tmp_path / "net.toml")
    assert (card.dims, card.divisor, card.activation, card.classes) == (
        2, 1, "softmax", ("background", "class 1", "class 2")
    )  # fmt: skip
    assert (card.orientation, card.intensity, card.roi) == (None, None, None)
    text = (tmp_path / "net.toml").read_text()
    assert "# orientation = " in text
    # Every line that is switched off is right as it stands.
    (tmp_path / "net.toml").write_text(re.sub(r"(?m)^# (\w+ = )", r"\1", text))
    assert read_card(tmp_path / "net.toml").orientation == "RAS"


@pytest.mark.parametrize(
    "intensity",
    ["none", "minmax", "zscore", "zscore-nonzero", "window:-57.5,164", "percentile:0.5,99.5", "ct:-1004,1588,-50,503"],
)
def test_every_intensity_is_written_and_read(intensity: str, tmp_path: Path) -> None:
    card = ModelCard(name='a "b" ü', intensity=Intensity.parse(intensity), spacing=(1.5, 2), roi=(8, 8), overlap=0.25)
    for each in (card, replace(card, intensity=replace(card.intensity, clip=None))):
        (tmp_path / "card.toml").write_text(to_toml(each), encoding="utf-8")
        assert read_card(tmp_path / "card.toml") == each
