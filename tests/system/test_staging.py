"""Results take their place whole, at whatever moment a process is ended or a disk is full; see `moments`."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mafl_cli.errors import DiskFullError
from mafl_cli.results.folder import staged
from mafl_cli.system import locks, staging

MOMENTS = Path(__file__).parents[1] / "support" / "moments.py"


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of files are made and removed."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ends copies of its own process")
def test_killed_before_any_of_its_file_operations_a_command_leaves_the_old_or_the_new_results(fast: Path) -> None:
    run = subprocess.run([sys.executable, MOMENTS, fast], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["wrong"] == []
    # If operations are no longer heard of, nothing was tried.
    assert min(said["moments"].values()) > 10


def test_a_new_folder_has_the_mode_of_the_one_whose_place_it_takes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    for text in ("old", "new"):
        with staged(out, overwrite=True) as stage:
            (stage / "report.json").write_text(text)
    assert (out / "report.json").read_text() == "new"
    assert out.stat().st_mode & 0o777 == 0o750


def test_results_are_replaced_in_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep").rmdir()
    (out / "report.json").write_text("old")
    monkeypatch.chdir(out)
    before = out.stat().st_ino
    with staged(Path(), overwrite=True) as stage:
        (stage / "report.json").write_text("new")
    assert (out.stat().st_ino, Path("report.json").read_text()) == (before, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_results_behind_a_link_are_replaced_there(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "disk" / "run" / "report.json").write_text("old")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "run")
    with staged(tmp_path / "out", overwrite=True) as stage:
        (stage / "report.json").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "run" / "report.json").read_text() == "new"
    assert len(list((tmp_path / "disk").iterdir())) == 1


def test_a_file_that_comes_while_results_are_exchanged_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange, out = staging._exchange, tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("old")

    def late(one: Path, other: Path) -> None:
        (out / "notes.txt").write_text("mine")
        exchange(one, other)

    monkeypatch.setattr(staging, "_exchange", late)
    with staged(out, overwrite=True) as stage:
        (stage / "report.json").write_text("new")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"report.json": "new", "notes.txt": "mine"}


def test_what_leads_out_of_a_folder_is_not_finished(tmp_path: Path) -> None:
    """A run may come from anybody."""
    for number, (gone, order) in enumerate([(["../private"], []), ([], [".."]), (["report.json"], ["a"])]):
        work = tmp_path / "run" / f".mafl-work-{number:08d}"
        work.mkdir(parents=True)
        (work / "held").write_text("")
        (work / "plan.json").write_text(json.dumps({"gone": gone, "order": order}))
        (work / "ready").symlink_to(tmp_path / "private")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a").write_text("secret")
    (tmp_path / "run" / "report.json").write_text("old")
    staging.recover(tmp_path / "run")
    assert (tmp_path / "private" / "a").read_text() == "secret"
    assert (tmp_path / "run" / "report.json").read_text() == "old"
    assert not (tmp_path / "run" / "a").exists()


def test_where_there_are_no_locks_nothing_is_taken_for_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with staging.workspace(tmp_path) as work:
        with staging.workspace(tmp_path):
            pass
        assert work.new.is_dir()
    assert list(tmp_path.iterdir()) == []


def fill_up(out: Path, number: int) -> None:
    with staged(out, overwrite=False) as stage:
        (stage / "report.json").write_text("half")
        try:
            raise OSError(number, os.strerror(number))
        except OSError as exc:
            raise ValueError("in tag (0010,0010)") from exc


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_whatever_a_library_makes_of_it(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskFullError, match=r"^out: no space left on the disk; make room, and give the command again"):
        fill_up(tmp_path / "out", number)
    assert list(tmp_path.iterdir()) == []
