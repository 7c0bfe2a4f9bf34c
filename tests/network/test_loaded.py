"""Models that stay loaded: for the same file and the same question, and for no other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mafl_cli.errors import ModelError
from mafl_cli.network.card import ModelCard
from mafl_cli.network.loaded import LoadedModels
from mafl_cli.network.segmenter import Segmenter


def saved(path: Path) -> Path:
    torch.manual_seed(0)
    torch.jit.script(nn.Conv2d(1, 2, 3, padding=1).eval()).save(path)
    return path


def asked(models: LoadedModels, path: Path, size: int = 16, **settings: Any) -> Segmenter:
    question: dict[str, Any] = {"card": ModelCard(), "tap": "auto", "precision": "float32"} | settings
    return models.get(path, device=torch.device("cpu"), size=lambda dims: (size,) * dims, **question)[0]


def test_the_same_question_finds_the_same_model(tmp_path: Path) -> None:
    path, models = saved(tmp_path / "net.ts"), LoadedModels()
    first = asked(models, path)
    assert asked(models, path) is first


@pytest.mark.parametrize(
    "other", [{"size": 32}, {"tap": "convolution"}, {"precision": "bf16"}, {"card": ModelCard(dims=2)}]
)
def test_another_question_is_loaded_anew(other: dict[str, Any], tmp_path: Path) -> None:
    path, models = saved(tmp_path / "net.ts"), LoadedModels()
    first = asked(models, path)
    assert asked(models, path, **other) is not first
    assert asked(models, path) is first


def test_a_file_that_changed_is_loaded_anew(tmp_path: Path) -> None:
    path, models = saved(tmp_path / "net.ts"), LoadedModels()
    first = asked(models, path)
    os.utime(path, ns=(1, 1))
    assert asked(models, path) is not first


def test_the_last_ones_that_were_asked_for_are_kept(tmp_path: Path) -> None:
    path, models = saved(tmp_path / "net.ts"), LoadedModels(kept=2)
    first, second = asked(models, path, 16), asked(models, path, 32)
    assert asked(models, path, 16) is first
    asked(models, path, 48)
    assert asked(models, path, 16) is first
    assert asked(models, path, 32) is not second


def test_a_file_that_is_gone_is_said_as_by_load(tmp_path: Path) -> None:
    path, models = saved(tmp_path / "net.ts"), LoadedModels()
    asked(models, path)
    path.unlink()
    with pytest.raises(ModelError, match=r"^net\.ts: no such model file"):
        asked(models, path)
