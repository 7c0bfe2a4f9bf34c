"""Command lines and label files as the viewers' own readers take them apart, and what they leave in a run folder."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Blobs, Threshold, mafl, scan_array
from dicoms import write_ct

from mafl_cli.results.files import there
from mafl_cli.show.display import class_colour
from mafl_cli.show.viewers import LABEL_FILES, command, label_file

NAMES = {
    1: "liver",
    2: 'left "upper" lobe',
    3: "脾臓",
    4: "  two\n lines\t",
    5: "",
    6: "it's",
    7: "a + b",
    200: "x" * 500,
}


def itksnap_labels(text: str) -> dict[int, tuple[str, str]]:
    """Name and colour of each label, as ITK-SNAP reads them: a name runs from one quotation mark to the next."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            numbers, rest = line.split('"', 1)
            index, red, green, blue, opacity, visible, mesh = numbers.split()
            name = rest[: rest.index('"')]
            assert name, "an empty name is a syntax error there"
            assert (float(opacity), visible, mesh) == ((0, "0", "0") if index == "0" else (1, "1", "1"))
            found[int(index)] = (name, f"#{int(red):02X}{int(green):02X}{int(blue):02X}")
    return found


def slicer_colours(text: str) -> dict[int, tuple[str, str]]:
    """The same as 3D Slicer reads it: six columns between spaces, lines below 1024 bytes, apostrophes taken off."""
    found = {}
    for line in text.splitlines():
        assert len(line.encode()) < 1024
        if line and not line.startswith("#"):
            index, name, red, green, blue, opacity = line.split()
            assert opacity == ("0" if index == "0" else "255")
            assert name == name.strip("'")
            found[int(index)] = (name, f"#{int(red):02X}{int(green):02X}{int(blue):02X}")
    return found


def test_itksnap_reads_every_name_and_colour() -> None:
    text = label_file("itksnap", NAMES)
    assert text.splitlines()[1] == "# ITK-SnAP Label Description File"
    found = itksnap_labels(text)
    assert found.pop(0) == ("Clear Label", "#000000")
    assert {label: name for label, (name, _) in found.items()} == {
        1: "liver", 2: "left 'upper' lobe", 3: "脾臓", 4: "two lines", 5: "label 5", 6: "it's", 7: "a + b",
        200: "x" * 200,
    }  # fmt: skip
    assert all(colour == class_colour(label) for label, (_, colour) in found.items())


def test_slicer_reads_every_name_and_colour() -> None:
    text = label_file("slicer", NAMES)
    assert text.startswith("# Color table file\n")
    found = slicer_colours(text)
    assert found.pop(0) == ("background", "#000000")
    assert {label: name for label, (name, _) in found.items()} == {
        1: "liver", 2: 'left_"upper"_lobe', 3: "脾臓", 4: "two_lines", 5: "label_5", 6: "it’s", 7: "a_+_b",
        200: "x" * 200,
    }  # fmt: skip
    assert all(colour == class_colour(label) for label, (_, colour) in found.items())


AWKWARD = Path('/some where/it\'s $HOME/Bücher "x" \\n;')


def test_itksnap_is_started_with_three_files() -> None:
    line = command("itksnap", AWKWARD / "a.nii.gz", AWKWARD / "m.nii.gz", AWKWARD / "l.txt")
    assert shlex.split(line) == [
        "itksnap", "-g", f"{AWKWARD}/a.nii.gz", "-s", f"{AWKWARD}/m.nii.gz", "-l", f"{AWKWARD}/l.txt",
    ]  # fmt: skip


def calls(line: str) -> dict[str, list[object]]:
    """The first argument of each call in the Python code that Slicer is given."""
    program, option, code = shlex.split(line)
    assert (program, option) == ("Slicer", "--python-code")
    found: dict[str, list[object]] = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            first = node.args[0] if node.args else None
            value = first.value if isinstance(first, ast.Constant) else None
            found.setdefault(ast.unparse(node.func), []).append(value)
    return found


def test_slicer_is_given_python_that_names_the_files() -> None:
    found = calls(command("slicer", AWKWARD / "a.nii.gz", AWKWARD / "m.nii.gz", AWKWARD / "l.ctbl"))
    assert found["slicer.util.loadVolume"] == [f"{AWKWARD}/a.nii.gz"]
    assert found["slicer.util.loadColorTable"] == [f"{AWKWARD}/l.ctbl"]
    assert found["slicer.util.loadNodeFromFile"] == [f"{AWKWARD}/m.nii.gz"]


def test_a_series_is_opened_by_its_first_file_or_as_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "adversarial"
    folder.mkdir()
    for name in ("0002.dcm", "0001.dcm"):
        (folder / name).touch()
    mask = tmp_path / "m.nii.gz"
    assert shlex.split(command("itksnap", folder, mask, mask))[2] == str(folder / "0001.dcm")
    found = calls(command("slicer", folder, mask, mask))
    assert found["DICOMUtils.importDicom"] == [str(folder)]
    assert "slicer.util.loadVolume" not in found


# --- in a run folder ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run on a NIfTI scan."""
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    nib.save(nib.Nifti1Image(scan_array(), np.eye(4)), tmp_path / "scan.nii.gz")
    done = mafl(
        "attack", tmp_path / "scan.nii.gz", "-t", "erase:1", "-m", tmp_path / "model.ts", "-o", tmp_path / "out",
        "--steps", 3, "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return tmp_path / "out"


@pytest.mark.parametrize("viewer", ["itksnap", "slicer"])
def test_open_prints_the_line_writes_the_labels_and_draws_nothing(run: Path, viewer: str) -> None:
    before = {path.name for path in run.iterdir()}
    result = mafl("visualize", run, "--open", viewer, "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    for path in re.findall(r"/[^\s'\"]+", result.stdout):
        assert Path(path).is_file()
    assert {path.name for path in run.iterdir()} == before | {LABEL_FILES[viewer]}  # type: ignore[index]
    (judged,) = json.loads(mafl("evaluate", run, "--model", run.parent / "model.ts", "--json", "-").stdout)["cases"]
    assert (judged["files_intact"], judged["differences"]) == (True, [])

    assert mafl("visualize", run, "--open", viewer, "-o", run / "a.png").exit_code == 0
    assert (run / "a.png").exists()


def test_labels_that_a_user_changed_are_not_replaced_unasked(run: Path) -> None:
    for _ in range(2):
        assert mafl("visualize", run, "--open", "slicer").exit_code == 0
    path = run / LABEL_FILES["slicer"]
    right = path.read_text()
    path.write_text(right + "# mine\n")
    refused = mafl("visualize", run, "--open", "slicer")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--overwrite" in refused.stderr
    assert path.read_text().endswith("# mine\n")
    assert mafl("visualize", run, "--open", "slicer", "--overwrite").exit_code == 0
    assert path.read_text() == right


def test_label_files_are_no_results(run: Path) -> None:
    for name in LABEL_FILES.values():
        (run / name).touch()
    assert not {path.name for path in there(run)} & set(LABEL_FILES.values())


@pytest.mark.parametrize("lost", ["adversarial.nii.gz", "prediction_adversarial.nii.gz"])
def test_a_run_that_lost_a_file_is_not_opened(run: Path, lost: str) -> None:
    (run / lost).unlink()
    result = mafl("visualize", run, "--open", "itksnap")
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"{lost} is missing" in result.stderr


def test_a_dicom_run_is_opened_with_the_series_it_wrote(tmp_path: Path) -> None:
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    (tmp_path / "model.toml").write_text('[input]\nchannels = ["CT"]\nintensity = "minmax"\n')
    write_ct(tmp_path / "ct", np.round(scan_array() * 1000).astype(np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    done = mafl(
        "attack", tmp_path / "ct", "-t", "erase:1", "-m", tmp_path / "model.ts", "-o", tmp_path / "out", "--steps", 3,
        "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    result = mafl("visualize", tmp_path / "out", "--open", "itksnap")
    assert shlex.split(result.stdout)[2] == str(tmp_path / "out" / "adversarial" / "0001.dcm")
    result = mafl("visualize", tmp_path / "out", "--open", "slicer")
    assert calls(result.stdout)["DICOMUtils.importDicom"] == [str(tmp_path / "out" / "adversarial")]


def test_regions_that_overlap_have_a_label_for_every_code_that_occurs(tmp_path: Path) -> None:
    torch.jit.script(Blobs(2, [[1.0], [1.0], [-1.0]], [0.3, 0.6, -0.1])).save(tmp_path / "regions.ts")
    (tmp_path / "regions.toml").write_text('[output]\nactivation = "sigmoid"\nclasses = ["whole", "core", "air"]\n')
    nib.save(nib.Nifti1Image(scan_array(), np.eye(4)), tmp_path / "scan.nii.gz")
    done = mafl(
        "attack", tmp_path / "scan.nii.gz", "-t", "erase:core", "-m", tmp_path / "regions.ts", "-o", tmp_path / "out",
        "--steps", 3, "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["model"]["overlapping"]
    assert mafl("visualize", tmp_path / "out", "--open", "itksnap").exit_code == 0
    found = itksnap_labels((tmp_path / "out" / LABEL_FILES["itksnap"]).read_text())
    codes = {
        int(code)
        for name in ("prediction_clean", "prediction_adversarial", "target")
        for code in np.unique(nib.load(tmp_path / "out" / f"{name}.nii.gz").dataobj)
    }
    assert set(found) == codes | {0}
    assert found[3][0] == "whole + core"
    assert found[3][1] == class_colour(3)
