"""Words of others on a terminal, in a log and in a CI job: they say something, and do nothing."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from hypothesis import given
from hypothesis import strategies as st

from mafl_cli import names
from mafl_cli.cli import console
from mafl_cli.cli.console import Voice

HOSTILE = [
    "::error file=a,line=1::forged", "\t ::stop-commands::x", "\u00a0::add-mask::a", "##[error]forged",
    "ok ##vso[task.setvariable variable=x]y", "##[group]a", "##teamcity[buildStop]", "\x1b[2J\x1b[31mred",
    "\x1b]8;;https://e.example\x1b\\link\x1b]8;;\x1b\\", "\x9b31m", "\x1b]0;title\x07", "two\rone",
    "section_start:1:x\r\x1b[0K", "\u202eevil\u202c", "\u2066a\u2069", "a\u200bb\u200d\ufeff", "\x08\x7f",
    "\u2028::error::x", "\udcff", "\U000e0041\U000e007f", "soft\xadhyphen",
]  # fmt: skip

MOVES = {"Cc", "Cs", "Zl", "Zp"}


def obeyed(text: str) -> bool:
    """Whether a runner of GitHub, Azure or TeamCity would take something in this for a command."""
    return any(line.strip().startswith("::") or re.search(r"##\w*\[", line) for line in text.split("\n"))


def moves(text: str) -> bool:
    hidden = re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\xad\U000e0000-\U000e007f]", text)
    return bool(hidden) or bool(set(map(unicodedata.category, re.sub("[\n\t]", "", text))) & MOVES)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_said_moves_nothing_and_is_no_command(text: str, as_json: bool, capsys: pytest.CaptureFixture) -> None:
    voice = Voice(1, False, as_json)
    for speak in (voice.say, voice.detail, voice.fail):
        speak(text)
        speak(f"{text}: is damaged")
    console.show_text(f"{text}\n\t{text}\n{text}")
    out, err = capsys.readouterr()
    assert (len(out.split("\n")), len(err.split("\n"))) == (4, 7)
    for said in (out, err):
        assert not moves(said)
        assert not obeyed(said)
    if as_json:
        assert json.loads(err.split("\n")[0])["message"] == text


@given(st.text(st.characters(codec=None)))
def test_any_text_is_harmless_and_its_json_says_the_same(text: str) -> None:
    line = names.harmless(text)
    assert not moves(line)
    assert not obeyed(line)
    assert names.harmless(line) == line
    found = names.escaped(json.dumps({text: [text]}, ensure_ascii=False, indent=1))
    assert json.loads(found) == {text: [text]}
    assert not moves(found)
    assert not obeyed(found)


@pytest.mark.parametrize("text", ["scan_1.nii.gz", "a: b :: c", "Größe 脳 🧠", "C++ #1 [x]", "a ## b", "it's 5 % of 3"])
def test_what_nobody_obeys_stays_as_it_is(text: str) -> None:
    assert names.harmless(text) == names.escaped(text) == text


@pytest.mark.skipif(sys.platform == "win32", reason="no such names")
@pytest.mark.parametrize("text", ["::error::a##[error]b##vso[c]", "\x1b[2Jx\u202ey"], ids=ascii)
def test_names_of_files_do_nothing_in_any_command(tmp_path: Path, text: str) -> None:
    file, folder = tmp_path / f"{text}.nii.gz", tmp_path / text
    file.write_bytes(b"nothing")
    folder.mkdir()
    commands = [
        ("attack", file, "-t", "erase:1", "-o", tmp_path / "out"), ("attack", file, file, "-t", "erase:1", "--list"),
        ("evaluate", folder), ("evaluate", file), ("visualize", folder, "-o", tmp_path / "x.html"), ("status", folder),
        ("merge", folder, "-o", tmp_path / "merged"), ("inspect", file),
        ("evaluate", "--original", file, "--adversarial", file, "--target", file),
        ("evaluate", folder, "--gates", file),
    ]  # fmt: skip
    for command in commands:
        result = mafl(*command)
        said = result.stdout + result.stderr
        assert said.strip()
        assert not obeyed(said), command
        assert not moves(said), command


def test_words_of_a_card_do_nothing_in_any_command(tmp_path: Path) -> None:
    texts = ("::error::a##[error]b", "\x1b[2Jx\u202ey\u200b", "@me https://e.example")
    obeying, moving, linking = map(json.dumps, texts)
    nib.save(nib.Nifti1Image(scan_array((16, 14, 3)), np.eye(4)), tmp_path / "scan.nii.gz")
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    card = f"name = {obeying}\n[input]\nchannels = [{moving}]\n[output]\nclasses = [{linking}, {obeying}]\n"
    model = tmp_path / "model.ts"
    model.with_suffix(".toml").write_text(card)
    attack = ("attack", tmp_path / "scan.nii.gz", "-t", "erase:1", "-m", model, "--steps", 2)
    out = tmp_path / "out"
    commands = [
        ("inspect", model), ("inspect", model, "--json"),
        (*attack, "-o", out, "--dry-run"), (*attack, "-o", out, "--log-format", "json"), ("evaluate", out, "-m", model),
        ("evaluate", out, "--curve"), ("visualize", out, "-o", tmp_path / "figure.png"),
        *(("evaluate", out, "-m", model, form, "-") for form in ("--card", "--json")),
    ]  # fmt: skip
    for each in commands:
        result = mafl(*each)
        assert result.exit_code == (2 if "--curve" in each else 0), result.stderr
        for said in (result.stdout, result.stderr):
            assert not obeyed(said), each
            assert not moves(said), each
