"""Programs as models: how they are started, and what becomes of those that fail."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mafl_cli.errors import ModelError, UsageError
from mafl_cli.network.command import parsed, run


def script(folder: Path, body: str) -> str:
    """A command line that runs a shell script on the two files."""
    path = folder / "draw.sh"
    path.write_text(body)
    return f"sh {path} {{input}} {{output}}"


def ask(folder: Path, body: str, timeout: float = 60.0, channels: int = 1) -> Path:
    """Let a script draw; returns the mask's place."""
    place = folder / "run"
    place.mkdir()
    inputs = [place / f"scan_{number:04d}.nii.gz" for number in range(channels)]
    for each in inputs:
        each.write_bytes(b"scan")
    run(parsed(script(folder, body), timeout), inputs, place / "mask.nii.gz", place)
    return place / "mask.nii.gz"


def test_a_program_gets_its_files_runs_in_their_folder_and_says_nothing(tmp_path: Path, capfd: object) -> None:
    mask = ask(tmp_path, 'echo loud; echo louder >&2; pwd > "$2"; cat "$1" >> "$2"')
    assert mask.read_text() == f"{tmp_path / 'run'}\nscan"
    out, err = capfd.readouterr()  # type: ignore[attr-defined]
    assert (out, err) == ("", "")


def test_an_argument_with_the_scan_is_repeated_for_each_channel(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    path = tmp_path / "list.sh"
    path.write_text('out="$1"; shift; for each in "$@"; do echo "$each" >> "$out"; done')
    inputs = [place / "scan_0000.nii.gz", place / "scan_0001.nii.gz"]
    run(parsed(f"sh {path} {{output}} --in={{input}} 'two words'"), inputs, place / "mask", place)
    assert (place / "mask").read_text().splitlines() == [*(f"--in={each}" for each in inputs), "two words"]


def test_a_shell_is_never_asked(tmp_path: Path) -> None:
    words = script(tmp_path, 'echo "$3" > "$2"')
    command = parsed(f"{words} '; touch {tmp_path}/hacked'")
    (tmp_path / "run").mkdir()
    run(command, [tmp_path / "scan"], tmp_path / "run" / "mask", tmp_path / "run")
    assert (tmp_path / "run" / "mask").read_text().strip() == f"; touch {tmp_path}/hacked"
    assert not (tmp_path / "hacked").exists()


def test_a_program_that_fails_is_quoted_without_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        ask(tmp_path, "echo first >&2; echo \"no model at $PWD/weights/best.pt: 'sorry'\" >&2; exit 7")
    assert str(error.value) == "sh: ended with exit code 7; it said last: no model at best.pt: 'sorry'"
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 3", "ended with exit code 3, and said nothing"),
        ("kill -9 $$", "was ended by SIGKILL"),
        ("echo no tumour >&2", "ended well, but did not write a mask to {output}; it said last: no tumour"),
        ('ln -s /etc/hostname "$2"', "did not write a mask"),
        ('mkdir "$2"', "did not write a mask"),
    ],
    ids=["code", "signal", "nothing", "link", "folder"],
)
def test_what_is_not_a_mask_is_said_in_a_sentence(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(ModelError) as error:
        ask(tmp_path, body)
    assert said in str(error.value)


def test_a_program_that_hangs_is_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"did not end within 0\.5 s") as error:
        ask(tmp_path, f"sleep 60 & echo $! > {tmp_path}/child; wait", timeout=0.5)
    assert "`command_timeout`" in str(error.value)
    assert not alive(int((tmp_path / "child").read_text()))


def test_what_a_program_leaves_behind_is_ended_too(tmp_path: Path) -> None:
    ask(tmp_path, f'sleep 60 > /dev/null 2>&1 & echo $! > {tmp_path}/child; echo > "$2"')
    assert not alive(int((tmp_path / "child").read_text()))


def test_ctrl_c_ends_the_program(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "child").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        waiting = threading.Thread(target=interrupt)
        waiting.start()
        with pytest.raises(KeyboardInterrupt):
            ask(tmp_path, f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/child; exec sleep 60")
        waiting.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not alive(int((tmp_path / "child").read_text()))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended, and that nobody has asked about, does not."""
    for _ in range(40):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("sh 'x {input} {output}", "quote that is not closed"),
        ("sh draw.sh", "put {input} and {output} among its arguments"),
        ("sh draw.sh {input}", "put {input} and {output} among its arguments"),
        ("no-such-program-here {input} {output}", "no-such-program-here is not a program that can be started"),
        ("/somewhere/secret/prog {input} {output}", "`model_command`: prog is not a program"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_before_it_runs(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parsed(text)
    assert said in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_is_some_seconds(timeout: float) -> None:
    with pytest.raises(UsageError, match="command_timeout"):
        parsed(f"{sys.executable} {{input}} {{output}}", timeout)
