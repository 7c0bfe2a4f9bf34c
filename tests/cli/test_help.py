"""What `--help` shows, how options come about, and what shells complete."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from commands import mafl
from typer.testing import CliRunner

from mafl_cli import cli
from mafl_cli.config import PRESETS, AttackConfig


def test_help_names_every_command_and_exit_code() -> None:
    said = mafl("--help").stdout
    for word in ("attack", "evaluate", "visualize", "inspect", "Exit codes", "130"):
        assert word in said


def test_help_of_attack_stands_under_headings_in_plain_text() -> None:
    said = mafl("attack", "--help-all").stdout
    headings = [line[:-1] for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "Arguments", "Files", "Goal", "Method", "Budget", "Model input", "Batch", "Output", "Other",
    ]  # fmt: skip
    assert said.index("--eps-hu") > said.index("Budget:") > said.index("--mask-loss") > said.index("Method:")
    assert "[default: the method's]" in " ".join(said.split())
    assert all(name in said for name in PRESETS)


def options_in(said: str) -> set[str]:
    return {line.split()[0].rstrip(",") for line in said.splitlines() if re.match(r"  -", line)}


def test_help_shows_what_people_use_and_help_all_the_rest() -> None:
    few, every = mafl("attack", "--help").stdout, mafl("attack", "--help-all").stdout
    assert 20 <= len(options_in(few)) <= 32
    assert options_in(few) < options_in(every)
    assert f"{len(options_in(every)) - len(options_in(few))} more options: --help-all" in few
    assert "more options" not in every
    # Showing all of them once does not change what --help shows.
    assert mafl("attack", "--help").stdout == few


def test_every_setting_of_a_method_has_an_option_or_says_that_it_has_none() -> None:
    """A new setting is one edit: its option comes from its field."""
    every = mafl("attack", "--help-all").stdout
    for each in fields(AttackConfig):
        about = each.metadata["setting"]
        flag = f"--{each.name.replace('_', '-')}"
        assert (flag in every) or about.heading is None, each.name
        assert about.help.endswith((".", ")")), each.name


def test_no_command_is_long_and_none_writes_many_parameters_by_hand() -> None:
    for path in Path(cli.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.body[0].lineno < 60, node.name
                assert len(node.args.args + node.args.kwonlyargs) <= 12, node.name


@pytest.mark.parametrize(
    ("shell", "words"), [("bash", "COMP_WORDS=mafl vis;COMP_CWORD=1"), ("zsh", "_TYPER_COMPLETE_ARGS=mafl vis")]
)
def test_shells_complete_commands(shell: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in words.split(";"):
        monkeypatch.setenv(*word.split("=", 1))
    monkeypatch.setenv("_MAFL_COMPLETE", f"complete_{shell}")
    assert "visualize" in CliRunner().invoke(cli.app, [], prog_name="mafl").stdout


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in mafl("--help").stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = ["rich", "torch", "monai", "numpy", "scipy", "skimage", "nibabel", "SimpleITK", "matplotlib", "tqdm"]
    code = (
        "import sys, mafl_cli.cli as cli, typer.testing\n"
        "typer.testing.CliRunner().invoke(cli.app, ['attack', '--help'])\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
