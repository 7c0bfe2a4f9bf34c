"""nnU-Net results folders: what their plans say, which folds, and the mean of all passes as one function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunet_folders import ARCHITECTURE, RESAMPLING, configuration, write_checkpoint, write_folder
from torch import Tensor, nn

from mafl_cli.errors import MaflError, ModelError, UsageError
from mafl_cli.network.card import Interpolation, Resize
from mafl_cli.network.card_file import find_card
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.kinds import digest, read_model
from mafl_cli.network.nnunet.ensemble import Ensemble
from mafl_cli.network.nnunet.plans import files_of, read_plans
from mafl_cli.network.opening import Opening, read_folds

CPU = torch.device("cpu")


# --- plans ------------------------------------------------------------------------------------------------------------


def test_the_card_is_what_the_plans_say(tmp_path: Path) -> None:
    card = find_card(write_folder(tmp_path))

    assert (card.dims, card.channels, card.classes) == (3, ("T1",), ("background", "organ", "lesion"))
    assert (card.orientation, card.spacing, card.roi) == ("kji", (3.0, 1.0, 1.0), (8, 16, 16))
    assert card.intensity == Intensity(kind="zscore", region="filled")
    assert card.resize == Resize(Interpolation(3), Interpolation(1))
    assert (card.windows, card.overlap, card.crop, card.activation) == ("nnunet", 0.5, True, "softmax")
    assert card.source == "its plans.json"


def test_axes_are_transposed_and_turned_as_the_plans_say(tmp_path: Path) -> None:
    plans = {"transpose_forward": [2, 0, 1], "image_reader_writer": "NibabelIOWithReorient"}

    assert find_card(write_folder(tmp_path, plans=plans)).orientation == "RSA"


def test_a_network_of_slices_has_windows_of_one_plane(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        name="nnUNetTrainer__nnUNetPlans__2d",
        configurations={"2d": configuration(patch_size=[16, 24], spacing=[1.0, 1.0]), "3d_fullres": configuration()},
    )
    card = find_card(folder)

    assert (card.dims, card.roi, card.spacing) == (3, (1, 16, 24), (1.0, 1.0))


def test_configurations_inherit(tmp_path: Path) -> None:
    there = {"3d_fullres": configuration(), "big": {"inherits_from": "3d_fullres", "patch_size": [8, 32, 32]}}

    card = find_card(write_folder(tmp_path, name="nnUNetTrainer__nnUNetPlans__big", configurations=there))

    assert (card.roi, card.spacing) == ((8, 32, 32), (3.0, 1.0, 1.0))


def test_regions_and_channels_of_their_own(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        configurations={
            "3d_fullres": configuration(
                normalization_schemes=["CTNormalization", "RescaleTo01Normalization"], use_mask_for_norm=[False, False]
            )
        },
        data_set={
            "channel_names": {"1": "PET", "0": "CT"},
            "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
            "regions_class_order": [1, 2],
        },
    )
    card = find_card(folder)

    assert (card.channels, card.classes, card.activation) == (("CT", "PET"), ("whole", "core"), "sigmoid")
    assert card.intensity is not None
    assert card.intensity.each == (
        Intensity(kind="ct", lower=-60, upper=150, mean=40, std=20), Intensity(kind="minmax", region="crop")
    )  # fmt: skip


def test_a_network_without_resampling_sees_the_scan_s_own_voxels(tmp_path: Path) -> None:
    none = {key: "no_resampling_hack" if key.endswith(("data", "probabilities")) else {} for key in RESAMPLING}

    card = find_card(write_folder(tmp_path, configurations={"3d_fullres": configuration(**none)}))

    assert (card.spacing, card.resize) == (None, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"previous_stage": "3d_lowres"}, "is the second stage of a cascade"),
        ({"preprocessor_name": "MyPreprocessor"}, "its preprocessor_name must be DefaultPreprocessor, got MyPreproc"),
        ({"resampling_fn_data": "my_resampling"}, "resampling_fn_data my_resampling is not one that mafl rebuilds"),
        ({"resampling_fn_data_kwargs": {"order": 5}}, "resampling_fn_data has settings that mafl does not rebuild"),
        ({"normalization_schemes": ["MyNorm"]}, "mafl does not rebuild MyNorm"),
        ({"patch_size": [0, 16, 16]}, "roi must be"),
        ({"patch_size": "large"}, "cannot be understood"),
    ],
)
def test_what_cannot_be_rebuilt_is_one_sentence(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = write_folder(tmp_path, configurations={"3d_fullres": configuration(**changes)})

    with pytest.raises(ModelError, match=words) as failed:
        find_card(folder)
    assert failed.value.exit_code == 4
    assert str(failed.value).startswith(folder.name)


def test_labels_with_gaps_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, data_set={"labels": {"background": 0, "organ": 2}})

    with pytest.raises(ModelError, match="numbered from 0 without gaps"):
        find_card(folder)


def test_a_folder_of_another_name_is_refused(tmp_path: Path) -> None:
    there = {"3d_fullres": configuration(), "3d_lowres": configuration()}

    with pytest.raises(ModelError, match="end in one of its configurations"):
        find_card(write_folder(tmp_path, name="best", configurations=there))


# --- folds ------------------------------------------------------------------------------------------------------------


def test_all_folds_that_are_there_are_the_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, folds=("10", "2", "all"))

    there = [path.parent.name for path in files_of(folder, Opening())[2:]]
    assert there == ["fold_2", "fold_10"]
    assert files_of(folder, Opening(folds=("all",)))[2:] == files_of(folder, Opening())[2:]


def test_the_fold_of_all_cases_stands_in_where_it_is_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, folds=("all",))

    assert [path.parent.name for path in files_of(folder, Opening())[2:]] == ["fold_all"]


def test_a_fold_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, folds=("0", "1"))

    with pytest.raises(ModelError, match="`folds` must be among 0, 1"):
        files_of(folder, Opening(folds=("0", "4")))


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no fold_\*/checkpoint_final\.pth"):
        files_of(write_folder(tmp_path, folds=()), Opening())


def test_other_folds_are_another_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, folds=("0", "1"))

    assert digest(folder) != digest(folder, Opening(folds=("0",)))


def test_folds_are_read(tmp_path: Path) -> None:
    assert (read_folds("0, 2,2"), read_folds("all"), read_folds([1, 0])) == (("0", "2"), ("all",), ("1", "0"))
    with pytest.raises(UsageError, match="`folds` must be all, or numbers"):
        read_folds("0,best")


def test_folds_and_mirror_are_of_results_folders_alone(tmp_path: Path) -> None:
    for opening in (Opening(folds=("0",)), Opening(mirror=False)):
        with pytest.raises(UsageError, match="is for nnU-Net results folders"):
            read_model(tmp_path / "model.ts", CPU, opening)


# --- the mean of all passes -------------------------------------------------------------------------------------------


def small_network(seed: int, dims: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    layer = nn.Conv3d if dims == 3 else nn.Conv2d
    return nn.Sequential(layer(2, 4, 3, padding=1), nn.Tanh(), layer(4, 3, 3, padding=1)).eval()


def plain_mean(networks: list[nn.Module], x: Tensor, axes: list[list[int]]) -> Tensor:
    """In one graph."""
    passes = [torch.flip(network(torch.flip(x, dims)), dims) for network in networks for dims in axes]
    return torch.stack(passes).mean(dim=0)


def test_the_mean_over_folds_and_mirrors_has_the_gradient_of_one_graph() -> None:
    networks = [small_network(seed) for seed in range(2)]
    ensemble = Ensemble(networks, (0, 2), flat=False)
    x = torch.randn(1, 2, 4, 5, 6, generator=torch.Generator().manual_seed(3), requires_grad=True)
    pull = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(4))

    mine, theirs = ensemble(x), plain_mean(networks, x, [[], [2], [4], [2, 4]])

    assert ensemble.passes == 8
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(each, x, pull)[0] for each in (mine, theirs)))


def test_one_pass_at_a_time_is_in_memory() -> None:
    networks = [small_network(seed) for seed in range(4)]
    x = torch.randn(1, 2, 8, 8, 8, requires_grad=True)
    kept: list[int] = []

    def keep(saved: Tensor) -> Tensor:
        kept.append(saved.numel())
        return saved

    for count in (1, 4):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            Ensemble(networks[:count], (0, 1, 2), flat=False)(x)
    # Nothing is kept but the input of each pass.
    assert max(kept) <= x.numel()


def test_a_network_of_slices_sees_no_first_axis() -> None:
    networks = [small_network(seed, dims=2) for seed in range(2)]
    x = torch.randn(2, 2, 1, 6, 7, generator=torch.Generator().manual_seed(3))

    with torch.no_grad():
        mine = Ensemble(networks, (1,), flat=True)(x)
        theirs = plain_mean(networks, x[:, :, 0], [[], [3]])

    torch.testing.assert_close(mine[:, :, 0], theirs)


# --- checkpoints, with nnU-Net ----------------------------------------------------------------------------------------


def made(tmp_path: Path, architecture: dict[str, Any] = ARCHITECTURE, **changes: Any) -> Path:
    """A folder with weights for two folds; changes: of the checkpoints."""
    tools = pytest.importorskip("nnunetv2.utilities.get_network_from_plans")
    folder = write_folder(
        tmp_path, configurations={"3d_fullres": configuration(architecture=architecture)}, folds=("0", "1")
    )
    for fold in range(2):
        torch.manual_seed(fold)
        arguments = ARCHITECTURE["network_class_name"], ARCHITECTURE["arch_kwargs"], ARCHITECTURE["_kw_requires_import"]
        network = tools.get_network_from_plans(*arguments, 1, 3, deep_supervision=True)
        write_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth", network, **changes)
    return folder


def test_weights_load_without_trust(tmp_path: Path) -> None:
    folder = made(tmp_path)

    assert read_model(folder, CPU).members == 2 * 8
    assert read_model(folder, CPU, Opening(folds=("1",), mirror=False)).members == 1


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("touched", "w"))


def test_a_checkpoint_with_code_asks_for_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = made(tmp_path, extra=Hostile())

    with pytest.raises(ModelError, match=r"holds more than weights, .* use `trust`"):
        read_model(folder, CPU)
    assert not (tmp_path / "touched").exists()


def test_a_network_that_is_not_nnunet_s_own_asks_for_trust(tmp_path: Path) -> None:
    folder = made(tmp_path, ARCHITECTURE | {"network_class_name": "subprocess.Popen"})

    with pytest.raises(ModelError, match=r"names subprocess\.Popen, which is not one of nnU-Net's own"):
        read_model(folder, CPU)


def test_weights_of_another_network_do_not_fit(tmp_path: Path) -> None:
    arguments = ARCHITECTURE["arch_kwargs"] | {"features_per_stage": [4, 4]}
    folder = made(tmp_path, ARCHITECTURE | {"arch_kwargs": arguments})

    with pytest.raises(ModelError, match="the weights of fold_0 do not fit"):
        read_model(folder, CPU)


def test_another_trainer_with_the_network_of_the_plans_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net looks for a trainer by importing all it has, and one of them may lack a library here."""
    folder = made(tmp_path, trainer_name="nnUNetTrainerOfSomebody")

    def fails(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("nnunetv2.utilities.find_class_by_name.recursive_find_python_class", fails)
    assert read_model(folder, CPU).members == 2 * 8


def test_mirroring_that_was_not_trained_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, inference_allowed_mirroring_axes=None)

    assert read_model(folder, CPU).members == 2
    with pytest.raises(MaflError, match="was trained without mirroring"):
        read_model(folder, CPU, Opening(mirror=True))


def test_plans_of_another_training_are_noticed(tmp_path: Path) -> None:
    folder = made(tmp_path, init_args={"configuration": "3d_lowres"})

    with pytest.raises(ModelError, match="was trained as 3d_lowres"):
        read_model(folder, CPU)


def test_plans_know_how_many_channels_the_network_has(tmp_path: Path) -> None:
    plans = read_plans(write_folder(tmp_path))

    assert (plans.channels, plans.heads, plans.flat) == (1, 3, False)
