"""One name for a scan, wherever it is asked for, and none of it where names are hidden."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from mafl_cli.names import Redaction, case_name
from mafl_cli.results.assemble import case_id


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("scan.nii.gz", "scan"),
        ("SCAN.NII.GZ", "SCAN"),
        ("e.DCM", "e"),
        ("series.Zip", "series"),
        ("a.dcm.zip", "a.dcm"),
        (unicodedata.normalize("NFD", "Köln.nii"), "Köln"),
        (".nii.gz", ".nii.gz"),
    ],
)
def test_a_run_and_a_batch_call_a_scan_the_same(file: str, name: str) -> None:
    assert case_id(file) == name
    assert case_name(Path(file)) in (name, "")


@pytest.mark.parametrize("file", ["SCAN.NII.GZ", unicodedata.normalize("NFD", "Köln.nii.gz"), "a.dcm.zip"])
def test_the_name_of_a_case_is_hidden_like_that_of_its_file(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"voxels")
    hide = Redaction([tmp_path / file], tmp_path / "out")
    stem = file.split(".", 1)[0] if file != "a.dcm.zip" else "a.dcm"
    for shown in (case_id(file), stem, file):
        assert shown not in hide(f"{shown}: is larger than usual")
