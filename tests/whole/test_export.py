"""The page for networks whose file is refused: its code runs, its cards are read, its model is taken."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from mafl_cli.network.card_file import read_card
from mafl_cli.network.load import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_recipe_gives_a_model_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (code,) = (text for kind, text in BLOCKS if kind == "python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, {})
    (tmp_path / "monai.toml").write_text(next(text for kind, text in BLOCKS if kind == "toml"), encoding="utf-8")
    _, info, card = load(tmp_path / "monai.ts", device=torch.device("cpu"), size=lambda dims: (32,) * dims)
    assert (info.dims, len(info.classes), card.roi) == (3, 3, (32, 32, 32))


def test_the_cards_of_the_page_say_what_they_seem_to(tmp_path: Path) -> None:
    for index, (kind, text) in enumerate(BLOCKS):
        if kind == "toml":
            (tmp_path / f"{index}.toml").write_text(text, encoding="utf-8")
    monai, nnunet = (read_card(path) for path in sorted(tmp_path.glob("*.toml")))
    assert (monai.orientation, monai.spacing, monai.resample) == ("RAS", (1.5, 1.5, 2.0), "corner")
    assert (nnunet.orientation, nnunet.resample, nnunet.overlap) == ("SPL", "edge", 0.5)
    assert nnunet.intensity is not None
    assert (nnunet.intensity.kind, nnunet.intensity.std) == ("ct", 503.4)
