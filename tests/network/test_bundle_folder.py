"""MONAI bundle folders and zips: the network sees what their evaluator shows it, and nothing runs without trust."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import mafl
from monai.bundle import ConfigParser, init_bundle
from monai.networks.nets import UNet

from mafl_cli.case.request import ModelRequest
from mafl_cli.case.subject import prepare_subject
from mafl_cli.errors import ModelError, UsageError
from mafl_cli.network import kinds
from mafl_cli.network.card_file import find_card
from mafl_cli.network.load import load
from mafl_cli.network.opening import Opening
from mafl_cli.scans.formats import read_scan

CPU = torch.device("cpu")
AFFINE = np.array([[-1.2, 0, 0, 30], [0, 1.0, 0, -20], [0, 0, 2.4, -30], [0, 0, 0, 1]])
DEFINITION: dict[str, Any] = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2],
}  # fmt: skip
METADATA = {
    "name": "Ball CT",
    "network_data_format": {
        "inputs": {"image": {"num_channels": 1, "spatial_shape": ["2*n", "2*n", "2*n"], "channel_def": {"0": "CT"}}},
        "outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "background", "1": "ball"}}},
    },
}
INFERENCE: dict[str, Any] = {
    "imports": ["$import glob", "$import os"],
    "device": "$torch.device('cpu')",
    "ckpt_path": "$@bundle_root + '/models/model.pt'",
    "image": "scan.nii.gz",
    "network_def": DEFINITION,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 16], "overlap": 0.5, "mode": "gaussian"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
                "nearest_interp": False, "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        ],
    },
}  # fmt: skip


def volume(shape: tuple[int, int, int] = (46, 52, 26)) -> np.ndarray:
    """A bright ball in HU on a dark, textured ground."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    ball = 1 / (1 + np.exp(20 * (np.sqrt((grid**2).sum(axis=0)) - 0.5)))
    return (160 * ball - 60 + 15 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> UNet:
    """A network that was really trained, for a few seconds: its classes have borders and no noise."""
    torch.manual_seed(0)
    network = UNet(**{key: value for key, value in DEFINITION.items() if key != "_target_"})
    step = torch.optim.Adam(network.parameters(), 0.02)
    image = ((torch.from_numpy(volume((40, 40, 24))) + 57) / 221).clamp(0, 1)[None, None]
    truth = (torch.from_numpy(volume((40, 40, 24)) * 0 + 1)[None]).long() * 0
    grid = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (40, 40, 24)), indexing="ij"))
    truth[0] = (grid.square().sum(dim=0).sqrt() < 0.5).long()
    for _ in range(40):
        step.zero_grad()
        torch.nn.functional.cross_entropy(network(image), truth).backward()
        step.step()
    return network.eval()


@pytest.fixture
def here(trained: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle that MONAI made, and a scan."""
    monkeypatch.chdir(tmp_path)
    init_bundle(tmp_path / "ball", network=trained, metadata_str=METADATA, inference_str=INFERENCE)
    nib.save(nib.Nifti1Image(volume(), AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path


def changed(bundle: Path, **parts: Any) -> Path:
    """The bundle with other parts in its inference config; None takes one out."""
    file = bundle / "configs" / "inference.json"
    config = {**json.loads(file.read_text()), **parts}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return bundle


def of_evaluator(bundle: Path, scan: Path) -> np.ndarray:
    """What the bundle itself draws: its parser, its transforms, its inferer; ignite's evaluator does the same."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.read_meta(bundle / "configs" / "metadata.json")
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network")
    network.load_state_dict(torch.load(parser.get_parsed_content("ckpt_path"), weights_only=True))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's, of its own defaults and of codecs that are not installed.
        sample = parser.get_parsed_content("preprocessing")({"image": str(scan)})
        sample["pred"] = parser.get_parsed_content("inferer")(sample["image"][None], network.eval())[0]
        return parser.get_parsed_content("postprocessing")(sample)["pred"].numpy()[0]


def drawn(model: Path, scan: Path, *, trust: bool = False) -> np.ndarray:
    volume = read_scan(scan)
    subject = prepare_subject((volume,), ModelRequest(model=model, trust=trust), CPU, lambda line: None)
    return subject.predict([volume.data])[0]


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_it_draws_what_the_bundles_own_evaluator_draws(here: Path, trust: bool, zipped: bool) -> None:
    model = here / "ball"
    expected = of_evaluator(model, here / "scan.nii.gz")
    if zipped:
        model = Path(shutil.make_archive(str(here / "packed"), "zip", here, "ball"))
    mine = drawn(model, here / "scan.nii.gz", trust=trust)
    assert mine.shape == expected.shape
    assert 500 < mine.sum() < 20000
    assert (mine == expected).mean() >= 0.999
    card = find_card(model, Opening(trust=trust))
    assert (card.name, card.orientation, card.classes) == ("Ball CT", "RAS", ("background", "ball"))
    assert card.said == ()


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
        {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True},
        {
            "_target_": "ScaleIntensityRangePercentilesd",
            "lower": 1,
            "upper": 99,
            "b_min": 0,
            "b_max": 1,
            "keys": "image",
        },
        {"_target_": "ScaleIntensityd", "keys": "image"},
        {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1, "maxv": 1},
    ],
)
def test_every_scaling_is_inside_the_attacked_function(here: Path, step: dict[str, Any]) -> None:
    steps = [*INFERENCE["preprocessing"]["transforms"]]
    steps[4] = step
    # Where statistics are taken decides: mafl's are those of the scan itself.
    steps = [steps[0], steps[1], step, steps[2], steps[5]]
    bundle = changed(here / "ball", preprocessing={"_target_": "Compose", "transforms": steps})
    assert (drawn(bundle, here / "scan.nii.gz") == of_evaluator(bundle, here / "scan.nii.gz")).mean() >= 0.999


def test_attack_evaluate_and_inspect_take_it(here: Path) -> None:
    # Without resampling, for that leaves borders where the two draw otherwise, and an attack stops at borders.
    steps = [step for step in INFERENCE["preprocessing"]["transforms"] if step["_target_"] != "Spacingd"]
    changed(here / "ball", preprocessing={"_target_": "Compose", "transforms": steps})
    facts = mafl("inspect", "ball")
    assert facts.exit_code == 0, facts.stderr
    assert "Ball CT" in facts.stdout
    run = mafl("attack", "scan.nii.gz", "-m", "ball", "-t", "erase:1", "-o", "out", "--steps", 80, "--require-success")
    assert run.exit_code == 0, run.stderr
    judged = mafl("evaluate", "out", "-m", "ball", "--fail-if", "hit_rate < 0.5")
    assert judged.exit_code == 0, judged.stderr + judged.stdout
    redrawn = of_evaluator(here / "ball", here / "out" / "adversarial.nii.gz")
    assert redrawn.sum() < 0.1 * of_evaluator(here / "ball", here / "scan.nii.gz").sum()


# --- what may run -------------------------------------------------------------------------------------------------

TRAPS: dict[str, dict[str, Any]] = {
    "import": {"imports": ["$import os", "$os.system('touch ran')"]},
    "network": {"network_def": None, "network": "$__import__('os').system('touch ran')"},
    "setting": {"network_def": {**DEFINITION, "channels": "$[4, __import__('os').system('touch ran')]"}},
    "reference": {"network_def": {**DEFINITION, "channels": "@x"}, "x": "$__import__('os').system('touch ran')"},
    "plain target": {"network_def": {"_target_": "os.system", "command": "touch ran"}},
    "target within": {"network_def": {**DEFINITION, "act": {"_target_": "os.system", "command": "touch ran"}}},
    "transform": {"preprocessing": {"transforms": [{"_target_": "os.system", "command": "touch ran"}]}},
    "value": {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": "$__import__('os').system('touch ran')"}},
    "switched off": {"network_def": {**DEFINITION, "_disabled_": "$__import__('os').system('touch ran')"}},
    "macro": {"network_def": {**DEFINITION, "channels": "%other.json::channels"}},
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_hostile_bundle_runs_nothing_without_trust(trap: str, here: Path) -> None:
    changed(here / "ball", **TRAPS[trap])
    for command in (("inspect", "ball"), ("attack", "scan.nii.gz", "-m", "ball", "-t", "erase:1", "--dry-run")):
        run = mafl(*command)
        assert run.exit_code in (0, 2), run.stderr
        if run.exit_code == 2:
            assert "add --trust" in run.stderr
    assert not (here / "ran").exists()


def test_with_trust_expressions_are_evaluated_by_the_bundles_parser(here: Path) -> None:
    bundle = changed(
        here / "ball",
        width="$[2 * 2, 8]",
        network_def={**DEFINITION, "channels": "@width"},
        inferer={
            "_target_": "SlidingWindowInferer",
            "roi_size": "$[32, 32, 8 + 8]",
            "overlap": 0.5,
            "mode": "gaussian",
        },
    )
    with pytest.raises(UsageError, match=r"ball: its network has an expression.*which is Python code: add `trust`"):
        load(bundle, device=CPU)
    assert find_card(bundle).roi is None
    assert find_card(bundle, Opening(trust=True)).roi == (32, 32, 16)
    assert (
        drawn(bundle, here / "scan.nii.gz", trust=True) == of_evaluator(bundle, here / "scan.nii.gz")
    ).mean() > 0.999


def test_a_pickle_of_weights_runs_nothing_without_trust(here: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (Path("ran"),)

    torch.save({"model": Trap()}, here / "ball" / "models" / "model.pt")
    with pytest.raises(UsageError, match=r"models/model.pt holds more than numbers, or is damaged: add `trust`"):
        load(here / "ball", device=CPU)
    assert not (here / "ran").exists()


def test_what_is_left_out_is_named(here: Path) -> None:
    steps = [*INFERENCE["preprocessing"]["transforms"], {"_target_": "Resized", "spatial_size": [32, 32, 32]}]
    after = [*INFERENCE["postprocessing"]["transforms"], {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}]
    bundle = changed(here / "ball", preprocessing={"transforms": steps}, postprocessing={"transforms": after})
    _, info, _ = load(bundle, device=CPU, size=lambda dims: (32, 32, 16))
    assert "Resized of the bundle is left out: mafl does not know it" in info.assumptions
    assert any("KeepLargestConnectedComponentd of the bundle is left out" in sentence for sentence in info.assumptions)


def other_network(**settings: Any) -> str:
    return json.dumps({**INFERENCE, "network_def": {**DEFINITION, **settings}})


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("configs/inference.json", "{", "ball: inference.json is damaged"),
        ("configs/metadata.json", "[]", "ball: metadata.json must hold a table"),
        ("configs/inference.json", other_network(channels=[4, 16]), "holds the weights of another network"),
        ("configs/inference.json", other_network(width=3), "ball: its network cannot be made: .*width"),
        ("models/model.pt", None, "has no models/model.pt"),
    ],
)
def test_what_is_wrong_with_a_bundle_is_one_sentence(file: str, text: str | None, said: str, here: Path) -> None:
    path = here / "ball" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ModelError, match=said):
        load(here / "ball", device=CPU)


def test_its_hash_is_that_of_configs_and_weights(here: Path) -> None:
    before = kinds.digest(here / "ball")
    assert len(before) == 64
    (here / "ball" / "docs" / "README.md").write_text("more")
    assert kinds.digest(here / "ball") == before
    changed(here / "ball", more=1)
    assert kinds.digest(here / "ball") != before
