"""Models without a file: an nn.Module of the caller's, and a function that makes one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array

import mafl_cli
from mafl_cli.errors import ModelError, UsageError
from mafl_cli.network import kinds
from mafl_cli.network.card import ModelCard
from mafl_cli.network.card_file import find_card
from mafl_cli.network.load import load
from mafl_cli.network.opening import Opening

CPU = torch.device("cpu")
CODE = """
from pathlib import Path
Path("imported").touch()
from commands import Threshold

def bare():
    return Threshold(3)

def with_card():
    return Threshold(3), {"input": {"orientation": "RAS"}, "output": {"classes": ["ground", "ball"]}}

def wrong_card():
    return Threshold(3), {"input": {"orientation": "UP"}}

def nothing():
    return 3

def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a scan and a module of the user's own, which leaves a file when it is imported."""
    (tmp_path / "mynets.py").write_text(CODE, encoding="utf-8")
    nib.save(nib.Nifti1Image(scan_array(), np.eye(4)), tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    from mafl_cli.network import function

    function._made_by.cache_clear()
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    return tmp_path


@pytest.mark.parametrize("command", [("attack", "scan.nii.gz", "-t", "erase:1", "-m"), ("inspect",)])
def test_nothing_is_imported_without_trust(command: tuple[str, ...], here: Path) -> None:
    run = mafl(*command, "mynets:bare")
    assert run.exit_code == 2
    assert "mynets:bare is Python code, which would run: add --trust" in run.stderr
    assert not (here / "imported").exists()
    assert "mynets" not in sys.modules


def test_a_function_is_attacked_judged_and_shown(here: Path) -> None:
    facts = mafl("inspect", "mynets:with_card", "--trust")
    assert facts.exit_code == 0, facts.stderr
    assert "ball" in facts.stdout
    run = mafl(
        "attack", "scan.nii.gz", "-t", "erase:1", "-m", "mynets:with_card", "--trust", "-o", "out", "--require-success",
        "--steps", 60,
    )  # fmt: skip
    assert run.exit_code == 0, run.stderr
    report = (here / "out" / "report.json").read_text()
    assert '"mynets:with_card"' in report
    assert str(here) not in report
    judged = mafl("evaluate", "out", "-m", "mynets:with_card", "--trust", "--fail-if", "hit_rate < 0.5")
    assert judged.exit_code == 0, judged.stderr + judged.stdout


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("mynets:nothing", "mynets:nothing: must return an nn.Module, or one with its card, got int"),
        ("mynets:broken", r"mynets:broken: gives no network: no weights here \(RuntimeError\)"),
        ("mynets:missing", r"mynets:missing: gives no network: .*\(AttributeError\)"),
        ("not_there:missing", r"not_there:missing: gives no network: .*\(ModuleNotFoundError\)"),
        ("mynets:wrong_card", "the card of mynets:wrong_card: orientation must be three axis codes"),
    ],
)
def test_what_is_wrong_with_a_function_is_one_sentence(function: str, said: str, here: Path) -> None:
    with pytest.raises(ModelError, match=said):
        load(Path(function), device=CPU, opening=Opening(trust=True))


def test_a_file_of_such_a_name_is_a_file(here: Path) -> None:
    torch.jit.script(Threshold(3).eval()).save("mynets:bare")
    _, info, _ = load(Path("mynets:bare"), device=CPU)
    assert info.format == "torchscript"
    assert not (here / "imported").exists()


def test_a_network_in_memory_is_attacked_on_scans(here: Path) -> None:
    network: Any = Threshold(3).train()
    card = {"input": {"orientation": "RAS"}, "output": {"classes": ["ground", "ball"]}}
    model = mafl_cli.load_model(network, card=card)
    assert (model.info.name, model.info.classes.names, model.card.orientation) == (
        "Threshold", ("ground", "ball"), "RAS",
    )  # fmt: skip
    report = mafl_cli.attack_scan("scan.nii.gz", "erase:1", model=model, out="out", steps=60)
    assert report.case.attack.goal_reached
    assert report.model.name == "Threshold"
    verdict = mafl_cli.evaluate("out", model=model, fail_if=["hit_rate < 0.5"])
    assert not verdict.failed_gates
    with pytest.raises(UsageError, match="load_model"):
        mafl_cli.attack_scan("scan.nii.gz", "erase:1", model=network)


def test_a_loaded_network_is_attacked_on_arrays() -> None:
    model = mafl_cli.load_model(Threshold(3))
    image = scan_array()[None, None]
    found = mafl_cli.attack(model, image, np.zeros((1, *image.shape[2:]), np.int64), steps=40)
    assert found.success.all()


def test_the_hash_of_a_network_is_that_of_its_parts_and_numbers() -> None:
    def digest(network: torch.nn.Module) -> str:
        return kinds.digest(mafl_cli.load_model(network).source)

    same, other = Threshold(3), Threshold(3)
    assert digest(same) == digest(other)
    with torch.no_grad():
        other.head.bias += 1
    assert digest(same) != digest(other)


@pytest.mark.parametrize("card", [None, ModelCard(orientation="LPS"), {"input": {"orientation": "LPS"}}])
def test_a_card_may_be_given_in_any_form(card: Any, tmp_path: Path) -> None:
    stated = None if card is None else "LPS"
    source = mafl_cli.load_model(Threshold(3), card=card).source
    assert find_card(source).orientation == stated
