"""The networks that transfer is measured on: none is taught what is attacked, and targets are what they are called."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.network.card_file import find_card
from mafl_cli.network.opening import Opening


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    return importlib.import_module("travel_made")


@pytest.mark.parametrize("folds", ["AAAhhBBBhh", "AAAAhBBBBh"])
def test_no_slice_is_in_two_folds_and_none_that_is_attacked_was_taught(made: Any, folds: str) -> None:
    nothing = np.zeros((40, 2, 2))
    slices = made.Slices("p", list(range(7, 47)), nothing, nothing.astype(np.uint8), [np.eye(4)] * 40, folds)
    parts = [set(slices.fold(fold)) for fold in "ABh"]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 40


def test_targets_are_what_they_are_called(made: Any) -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[10:22, 14:26], labels[30:34] = 1, 2
    targets = dict(made.targets(labels, 2.0, 1))
    assert set(targets) == {"moved", "enlarged", "removed", "hole"}
    assert all((target[30:34] == 2).all() for target in targets.values())
    counts = {name: int((target == 1).sum()) for name, target in targets.items()}
    assert counts["removed"] == 0
    assert counts["moved"] == 144
    assert (targets["moved"][16:28, 8:20] == 1).all()
    assert counts["hole"] < 144 < counts["enlarged"]
    assert (targets["enlarged"] >= (labels == 1)).all()
    assert targets["hole"][15, 19] == 0
    assert targets["hole"][10, 14] == 1


def test_two_of_three_decide_and_the_truth_where_all_differ(made: Any) -> None:
    truth, one, other = (np.array(values, np.uint8) for values in ([0, 1, 1, 2], [0, 2, 1, 1], [1, 2, 0, 0]))
    assert made.voted(truth, [one, other]).tolist() == [0, 2, 1, 2]


@pytest.mark.parametrize("architecture", ["unet", "meshnet"])
def test_what_is_saved_draws_as_what_was_trained_and_its_card_is_read(
    made: Any, tmp_path: Path, architecture: str
) -> None:
    torch.manual_seed(0)
    network = made.Network("n", architecture, "A", 0, "surrogate")
    module = made.build(architecture, 2).eval()
    path = made.save(module, network, made.TASKS[0], tmp_path, (20, 24))
    x = torch.randn(1, 1, 48, 32)
    saved = torch.jit.load(path)
    assert torch.allclose(saved(x), module(x), atol=1e-5)
    card = find_card(path, Opening())
    assert (card.dims, card.classes) == (2, ("background", "tumour"))


@pytest.mark.parametrize("number", [0, 1])
def test_networks_are_taught_what_mafl_makes_of_a_file_by_the_card(made: Any, tmp_path: Path, number: int) -> None:
    task = made.TASKS[number]
    network = made.Network("n", "meshnet", "A", 0, "surrogate")
    card = find_card(made.save(made.build("meshnet", 2), network, task, tmp_path, (8, 8)), Opening())
    image = 400 * torch.randn(1, 6, 5)
    image[0, 0] = 0
    assert card.intensity is not None
    seen = Preprocessing.freeze(card.intensity, [image.movedim(0, 2).numpy()], torch.device("cpu"))
    assert torch.allclose(seen(image[None])[0], task.scaled(image), atol=1e-5)
