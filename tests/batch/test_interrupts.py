"""Signals that end a process end a command as Ctrl-C does: with everything put right."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array

from mafl_cli.batch import local
from mafl_cli.case import inspection, pipeline
from mafl_cli.errors import Interrupted, ModelError
from mafl_cli.results import files
from mafl_cli.system import interrupts, staging

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture(autouse=True)
def undisturbed() -> object:
    """Pytest's own handlers, and those of who started it, are as they were afterwards."""
    before = {number: signal.getsignal(number) for number, _ in CODES}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_is_an_exit_code_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    monkeypatch.setattr(inspection, "inspect", lambda file, **_: signal.raise_signal(number))
    result = mafl("inspect", tmp_path / "scan.nii")
    assert (result.exit_code, result.stderr) == (code, "mafl: interrupted; nothing was kept.\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("error", [ModelError("net.ts: Stopped: 15."), RuntimeError("Stopped: 15")])
def test_an_interrupt_that_a_library_makes_another_error_of_is_still_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int, error: Exception
) -> None:
    def swallow(file: Path, **_: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise error from None

    monkeypatch.setattr(inspection, "inspect", swallow)
    result = mafl("inspect", tmp_path / "scan.nii")
    assert (result.exit_code, result.stderr) == (code, "mafl: interrupted; nothing was kept.\n")


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `nohup` wants it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(
        inspection, "inspect", lambda file, **_: signal.raise_signal(signal.SIGHUP) or {"kind": "image"}
    )
    assert mafl("inspect", tmp_path / "scan.nii").exit_code == 0


@pytest.mark.parametrize(("number", "code"), CODES)
def test_what_must_not_be_disturbed_is_not(number: signal.Signals, code: int) -> None:
    done = []

    def work() -> None:
        with interrupts.as_exceptions():
            with interrupts.put_off():
                signal.raise_signal(number)
                done.append("first")
            done.append("second")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert (done, interrupts.exit_code(caught.value)) == (["first"], code)


@pytest.fixture
def case(tmp_path: Path) -> list[object]:
    scan = scan_array((20, 16, 2))
    nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "scan.nii.gz")
    nib.save(nib.Nifti1Image(np.roll(scan > 0.5, 2, axis=0).astype(np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    return [
        "attack", tmp_path / "scan.nii.gz", "-t", tmp_path / "mask.nii.gz", "-m", tmp_path / "model.ts",
        "-o", tmp_path / "out", "--steps", 2, "--device", "cpu", "--overwrite",
    ]  # fmt: skip


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize(("number", "code"), CODES[1:])
def test_an_attack_that_is_ended_leaves_the_earlier_results_alone(
    case: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(pipeline, "searched", lambda *_: signal.raise_signal(number))
    assert mafl(*case).exit_code == code
    assert not out.exists()
    out.mkdir()
    (out / "report.json").write_text("old")
    assert mafl(*case).exit_code == code
    assert contents(out) == {"report.json": b"old"}
    assert not list(tmp_path.glob(".mafl-*"))


def test_a_signal_while_results_take_their_place_comes_too_late(
    case: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = staging.publish

    def disturbed(*arguments: Any, **more: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        publish(*arguments, **more)

    monkeypatch.setattr(staging, "publish", disturbed)
    result = mafl(*case)
    said = "mafl: out: interrupted when the results were in their place; they are whole."
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (143, said)
    assert files.REPORT in contents(tmp_path / "out")
    assert Interrupted("").exit_code == 130


def test_a_worker_whose_parent_is_gone_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_watch", lambda: None)
    monkeypatch.setattr(interrupts, "ignore", lambda: None)
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    local._serve(theirs, 0, 1)
