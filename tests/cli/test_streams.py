"""Nothing that is said ends a command: terminals of any encoding, full disks, streams that are closed or left."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mafl_cli.errors import OutputError
from mafl_cli.results.folder import write_text
from mafl_cli.system import streams

ROOT = str(Path(__file__).resolve().parents[2])
NAMES = ("Müller.nii.gz", "山田 \N{OLD ITALIC LETTER A}.nii.gz", os.fsdecode(b"\xff.nii.gz"))
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the Linux device that is always full")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for name in NAMES:
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 2), np.uint8), np.eye(4)), folder / "scan.nii.gz")
        (folder / "scan.nii.gz").rename(folder / name)
    return folder


def shell(line: str, scans: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line for bash, in which $MAFL is the command."""
    whole = {**os.environ, "PYTHONPATH": ROOT, "MAFL": f"{sys.executable} -m mafl_cli", "SCANS": str(scans)}
    return subprocess.run(["bash", "-c", line], env=whole | environment, capture_output=True, check=False)


LIST = '$MAFL attack "$SCANS" --target erase:1 --list'


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_a_terminal_does_not_know_are_escaped(scans: Path, encoding: str) -> None:
    result = shell(LIST, scans, PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, b"")
    said = result.stdout.decode(encoding)
    assert len(said.splitlines()) == len(NAMES)
    assert ("M\\u00fcller" if encoding == "ascii" else "Müller") in said
    assert "\\u5c71\\u7530 \\ud800\\udf00" in said


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (f"{LIST} >&-", 0, ""),
        (f"{LIST} 2>&-", 0, ""),
        ("$MAFL inspect nowhere.nii 2>&-", 3, ""),
        ("$MAFL inspect nowhere.nii 2>/dev/full", 3, ""),
        pytest.param(f"{LIST} >/dev/full", 1, "mafl: standard output: cannot be written to", marks=needs_full),
        pytest.param("$MAFL --help >/dev/full", 1, "mafl: standard output: cannot be written to", marks=needs_full),
    ],
)
def test_streams_that_take_nothing(scans: Path, line: str, code: int, said: str) -> None:
    result = shell(line, scans)
    assert result.returncode == code, result.stderr
    assert result.stderr.decode().startswith(said)
    assert result.stderr.count(b"\n") == bool(said)


@given(st.text(st.characters(exclude_categories=())))
def test_json_stays_json_in_every_encoding(text: str) -> None:
    for encoding in ("ascii", "cp1252", "utf-8", "utf-16"):
        written = io.BytesIO()
        stream = io.TextIOWrapper(written, encoding=encoding, errors=streams.ESCAPED)
        stream.write(json.dumps({"name": text}, ensure_ascii=False))
        stream.flush()
        # In JSON the halves of a character are one again.
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        assert json.loads(written.getvalue().decode(encoding)) == {"name": whole}


def test_text_files_take_every_text(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", '{"name": "\udcff"}')
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "\udcff"}


class Refusing(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        raise self.error


def test_data_that_is_lost_is_told_and_a_reader_who_leaves_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(BrokenPipeError()))
    with pytest.raises(BrokenPipeError):
        streams.put("text")
    monkeypatch.setattr(sys, "stdout", Refusing(OSError(5, "Input/output error")))
    with pytest.raises(OutputError, match=r"^standard output: cannot be written to \(Input/output error\); what was"):
        streams.put("text")
