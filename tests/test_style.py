"""The rules of docs/STYLE.md that a program can check, in every message, help text and docstring of the package."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import mafl_cli
from mafl_cli import api
from mafl_cli.case.arrays import View
from mafl_cli.case.request import AttackRequest
from mafl_cli.cli.flags import in_flags
from mafl_cli.config import AttackConfig

PACKAGE = Path(mafl_cli.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PARAMETERS = {
    *(each.name for settings in (AttackConfig, AttackRequest, View) for each in fields(settings)),
    *(name for call in (api.attack, api.attack_scan, api.evaluate) for name in inspect.signature(call).parameters),
}


def texts(path: Path) -> Iterator[str]:
    """Every text of a module; what an f-string puts in stands between braces."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {
        id(part)
        for joined in ast.walk(tree)
        if isinstance(joined, ast.JoinedStr)
        for part in ast.walk(joined)
        if part is not joined
    }
    for node in ast.walk(tree):
        if id(node) in parts:
            continue
        if isinstance(node, ast.JoinedStr):
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_sentence_trips_a_reader(path: Path) -> None:
    for text in texts(path):
        assert not re.search(r"(?:^[fr]?['\"]?|[.:;!?]\s+|\n\s*\n\s*)Of ", text), f"a sentence begins with Of: {text!r}"
        no_noun = re.search(r"(?<!there )\b(?:is|are) no (?!more\b|less\b|longer\b|one\b)\w+", text)
        assert not no_noun, f"say 'is not a': {text!r}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_backticks_in_a_message_enclose_a_parameter_or_a_command(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for raised in ast.walk(tree):
        if not isinstance(raised, ast.Raise):
            continue
        for text in (ast.unparse(node) for node in ast.walk(raised) if isinstance(node, (ast.JoinedStr, ast.Constant))):
            for inner in re.findall(r"`([^`]*)`", text):
                known = inner in PARAMETERS or in_flags(f"`{inner}`") != f"`{inner}`"
                assert known or inner.split()[0] in ("mafl", "mafl.attack", "git", "pip") or inner.startswith("{"), text
