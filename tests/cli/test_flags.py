"""The library speaks of parameters; the command line has the flag of each in its place, and of nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl
from typer.main import get_command

import mafl_cli
from mafl_cli import errors
from mafl_cli.cli import app
from mafl_cli.cli.flags import in_flags
from mafl_cli.config import AttackConfig
from mafl_cli.names import Redaction

PACKAGE = Path(mafl_cli.__file__).parent
# Flags of other programs.
OTHERS = {"gdcmconv --raw", '"--python-code"', '"--test-only"'}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flags")
    nib.save(nib.Nifti1Image(np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 4, 4), np.eye(4)), folder / "a.nii.gz")
    torch.jit.script(Threshold(2)).save(folder / "model.ts")
    return folder


def attack(case: Path, *more: object, scan: Path | None = None, model: Path | None = None) -> str:
    """The last words of an attack that is refused."""
    command = ("attack", scan or case / "a.nii.gz", "-t", "erase:1", "-m", model or case / "model.ts", "-d", "cpu")
    refused = mafl(*command, "-o", case / "out", *more)
    assert refused.exit_code in (2, 3, 4), refused.output
    return refused.stderr.splitlines()[-1]


BELOW = sorted(path for path in PACKAGE.rglob("*.py") if PACKAGE / "cli" not in path.parents)


@pytest.mark.parametrize("path", BELOW, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_below_the_command_line_names_a_flag(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for other in OTHERS:
        text = text.replace(other, "")
    assert not re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
    assert not re.findall(r"(?:with|the|an?|add|give) -[a-z]\b", text)


def test_a_parameter_has_one_flag_in_all_commands() -> None:
    flags: dict[str, set[str]] = {}
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        for parameter in command.params:
            options = [option for option in parameter.opts if option.startswith("--")]
            flags.setdefault(parameter.name, set()).update(options[:1])
    assert not {name: found for name, found in flags.items() if len(found) > 1}


def test_every_setting_of_a_method_is_called_like_its_flag() -> None:
    for setting in fields(AttackConfig):
        if setting.metadata["setting"].heading is not None:
            assert in_flags(f"`{setting.name}`") == f"--{setting.name.replace('_', '-')}"


def test_only_parameters_between_backticks_are_translated() -> None:
    assert in_flags("`size_limit` must be above 0: see roi.") == "--size-limit must be above 0: see roi."
    assert in_flags("`runs` and `guides`") == "RUN and --guide"
    assert in_flags("`mafl inspect` lists `eps_unit` and ``") == "`mafl inspect` lists `eps_unit` and ``"


def test_what_is_wrong_with_an_option_names_it_as_it_was_typed(case: Path) -> None:
    assert attack(case, "--overlap", 1.5) == "mafl: --overlap must be at least 0 and below 1, got 1.5."
    assert attack(case, "--goal-iou", 2) == "mafl: --goal-iou must be from 1e-06 to 1, got 2.0."
    assert attack(case, "--size-limit", 0) == "mafl: --size-limit must be a number of GiB above 0, got 0."


def test_python_reads_of_parameters() -> None:
    with pytest.raises(errors.UsageError, match=r"^`overlap` must be at least 0 and below 1, got 1\.5\.$"):
        mafl_cli.attack_scan("a.nii.gz", "erase:1", overlap=1.5)
    with pytest.raises(errors.UsageError, match=r"^`fail_if` 'x > 1': the figure 'x' does not exist"):
        mafl_cli.evaluate("out", fail_if=["x > 1"])


def test_notices_and_objects_have_flags_too(case: Path, tmp_path: Path) -> None:
    bright = nib.Nifti1Image(1000 * np.arange(64, dtype=np.float32).reshape(4, 4, 4), np.eye(4))
    for name in ("a.nii.gz", "b.nii.gz"):
        nib.save(bright, tmp_path / name)
    command = ("-t", "erase:1", "-m", case / "model.ts", "-d", "cpu", "--steps", 1)
    one = mafl("attack", tmp_path / "a.nii.gz", *command, "-o", tmp_path / "one")
    assert "most networks expect scaled input: see --intensity." in one.stderr
    several = mafl(
        "attack", tmp_path, *command, "-o", tmp_path / "several", "--log-format", "json", "-v", "--roi", "0,0"
    )
    assert several.exit_code == 2
    assert json.loads(several.stderr.splitlines()[-1])["message"].startswith("--roi must be two or three whole numbers")


def test_a_key_of_a_file_is_named_as_a_key(case: Path, tmp_path: Path) -> None:
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    for line, said in {
        'intensity = "foo"': "intensity must be none",
        "overlap = 2": "overlap must be at least 0 and below 1, got 2.",
        'orientation = "XYZ"': "orientation must be three axis codes",
    }.items():
        (tmp_path / "model.toml").write_text(f"[input]\n{line}\n")
        refused = mafl("inspect", tmp_path / "model.ts")
        assert refused.exit_code == 4
        assert refused.stderr.startswith(f"mafl: model.toml: {said}")
        assert "--" not in refused.stderr
    (tmp_path / "g.toml").write_text('[gates]\nfooled = "x > 1"\n')
    refused = mafl("evaluate", tmp_path, "--gates", tmp_path / "g.toml")
    assert refused.stderr.startswith("mafl: g.toml: fooled = 'x > 1': the figure 'x' does not exist: use ")


def test_a_file_that_is_called_like_a_parameter_keeps_its_name(case: Path, tmp_path: Path) -> None:
    """A backtick in a name from outside is shown as an apostrophe, so that it cannot enclose a parameter."""
    for name in ("`roi`.nii.gz", "`roi`"):
        (tmp_path / name).write_bytes(b"not a scan")
        for said in (
            attack(case, scan=tmp_path / name),
            attack(case, "-t", tmp_path / name),
            attack(case, "--within", tmp_path / name),
            attack(case, model=tmp_path / name),
            attack(case, "--device", name),
            attack(case, "--tap", f"{name}:0"),
            attack(case, "--intensity", name),
            attack(case, "-t", f"erase:{name}"),
            mafl("inspect", tmp_path / name).stderr,
            mafl("evaluate", tmp_path / name).stderr,
            mafl("evaluate", "out", "--gates", tmp_path / name).stderr,
            mafl("evaluate", "out", "--fail-if", name).stderr,
            mafl("visualize", tmp_path / name).stderr,
            mafl("status", tmp_path / name).stderr,
        ):
            assert "'roi'" in said, said
            assert "--roi" not in said


def test_redaction_leaves_parameters_alone(tmp_path: Path) -> None:
    scan = tmp_path / "roi.nii.gz"
    scan.write_bytes(b"a")
    hidden = Redaction([scan], tmp_path / "out")("roi.nii.gz: `roi` must be three numbers.")
    assert hidden.endswith(": `roi` must be three numbers.")
    assert not hidden.startswith("roi")
