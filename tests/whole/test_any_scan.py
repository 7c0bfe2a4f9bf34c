"""The whole command on what hospitals have: any orientation, DICOM in and out, targets without drawing, no names."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from itertools import permutations, product
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from commands import Threshold, mafl, scan_array
from dicoms import write_ct, write_enhanced
from nibabel.orientations import apply_orientation, inv_ornt_aff
from typer.testing import Result

from mafl_cli.case import pipeline
from mafl_cli.case.request import AttackRequest
from mafl_cli.config import AttackConfig
from mafl_cli.results import report
from mafl_cli.scans import recipes
from mafl_cli.system.records import plain

SHAPE = (12, 10, 5)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2, 0, -20], [0, 0, 5, 7], [0, 0, 0, 1]])
SLOPE, INTER = 0.5, -100.0
QUICK = ("--steps", 12, "--device", "cpu", "-q")


def stored_array() -> np.ndarray:
    """A bright ball in int16: native values between -100 and 900."""
    return np.rint(2000 * scan_array(SHAPE)).astype(np.int16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.jit.script(Threshold(2)).save(folder / "flat.ts")
    (folder / "flat.toml").write_text(
        '[input]\ndims = 2\nchannels = ["CT"]\norientation = "RAS"\nintensity = { kind = "minmax" }\n'
        '[output]\nclasses = ["background", "ball"]\n'
    )
    return folder / "flat.ts"


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    write_ct(tmp_path / "ct", stored_array(), AFFINE, slope=SLOPE, inter=INTER)
    return tmp_path / "ct"


def attack(scan: Path, target: str, model: Path, out: Path, *more: object) -> Result:
    return mafl("attack", scan, "--target", target, "--model", model, "-o", out, *QUICK, *more)


def finished(result: Result, out: Path) -> dict:
    assert result.exit_code == 0, result.output
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    jsonschema.validate(found, json.loads(report.SCHEMA.read_text(encoding="utf-8")))
    return found


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


# --- orientation --------------------------------------------------------------------------------------------------

TURNS = [
    np.stack([np.array(axes), np.array(flips)], axis=1).astype(float)
    for axes in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]


def right_handed(turn: np.ndarray) -> bool:
    """DICOM has no other: its slices are counted along row x column."""
    return np.linalg.det((AFFINE @ inv_ornt_aff(turn, SHAPE))[:3, :3] * [1, 1, 1]) > 0


def run(scan: Path, model: Path, out: Path, **settings: object) -> dict:
    request = AttackRequest(
        images=(scan,),
        out=out,
        recipe=recipes.parse("shift:1:4,0,0mm"),
        model=model,
        device="cpu",
        config=AttackConfig(steps=8),
        **settings,  # type: ignore[arg-type]
    )
    return plain(pipeline.run_attack(request))


def numbers(found: dict) -> dict[str, float]:
    """Every number about the attack; spacing turns with the axes."""
    case = found["cases"][0]
    flat: dict[str, float] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                walk(each, f"{name}.{key}")
        elif isinstance(value, list):
            for index, each in enumerate(value):
                walk(each, f"{name}.{index}")
        elif isinstance(value, (int, float)):
            flat[name] = float(value)

    for part in ("metrics", "attack", "target"):
        walk(case[part], part)
    return {name: value for name, value in flat.items() if "spacing_mm" not in name}


@pytest.mark.parametrize("kind", ["float32", "int16", "dicom"])
def test_the_same_attack_however_the_scan_is_stored(tmp_path: Path, model: Path, kind: str) -> None:
    stored = stored_array()
    first = None
    for number, turn in enumerate(TURNS):
        if kind == "dicom" and not right_handed(turn):
            continue
        turned, affine = apply_orientation(stored, turn), AFFINE @ inv_ornt_aff(turn, SHAPE)
        scan, out = tmp_path / f"scan{number}.nii", tmp_path / f"out{number}"
        if kind == "dicom":
            scan = tmp_path / f"scan{number}"
            write_ct(scan, turned, affine, slope=SLOPE, inter=INTER)
        elif kind == "int16":
            header = nib.Nifti1Header()
            header.set_data_dtype(np.int16)
            image = nib.Nifti1Image(turned, affine, header)
            image.header.set_slope_inter(SLOPE, INTER)
            nib.save(image, scan)
            raw = bytearray(scan.read_bytes())  # nibabel rescales what it is given; the numbers are stored ones.
            raw[352:] = turned.astype("<i2").tobytes(order="F")
            scan.write_bytes(bytes(raw))
        else:
            nib.save(nib.Nifti1Image((turned * SLOPE + INTER).astype(np.float32), affine), scan)
        found = run(scan, model, out, save_as=None if kind == "dicom" else "source")
        delta = apply_orientation(voxels(out / "perturbation.nii.gz"), inverse(turn))
        assert np.abs(delta).max() > 0
        if first is None:
            first = (delta, numbers(found))
        np.testing.assert_array_equal(delta, first[0])
        assert numbers(found) == pytest.approx(first[1], rel=1e-6, abs=1e-9)
    assert first is not None


def inverse(turn: np.ndarray) -> np.ndarray:
    back = np.zeros((3, 2))
    for axis, (place, flip) in enumerate(turn):
        back[int(place)] = (axis, flip)
    return back


# --- DICOM in, DICOM out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["series", "enhanced", "zip"])
def test_dicom_in_and_out(ct: Path, model: Path, tmp_path: Path, kind: str) -> None:
    scan = ct
    if kind == "enhanced":
        scan = tmp_path / "scan.dcm"
        write_enhanced(scan, stored_array(), AFFINE, slopes=[SLOPE] * SHAPE[2])
    elif kind == "zip":
        scan = Path(shutil.make_archive(str(tmp_path / "scan"), "zip", ct))
    out = tmp_path / "out"
    found = finished(attack(scan, "shift:1:4,0,0mm", model, out), out)
    case = found["cases"][0]
    assert case["attack"]["goal_reached"]
    assert case["inputs"][0]["format"] == "dicom"
    assert case["quantisation"][0]["save_as"] == "source"
    assert case["quantisation"][0]["step_native"] == SLOPE
    assert case["quantisation"][0]["max_difference_from_memory_native"] == 0
    names = [each["name"] for each in case["files"]]
    assert names[0] == "adversarial/0001.dcm"
    assert {"prediction_adversarial.dcm", "target.dcm", "perturbation.nii.gz", "target.nii.gz"} <= set(names)

    if kind == "enhanced":
        from mafl_cli.scans.dicom.read import read_dicom

        values = read_dicom(out / "adversarial").data
    else:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(out / "adversarial")))
        values = SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    # What the model makes of the re-read series, without any code of mafl: minmax, slices, argmax.
    scaled = (values - values.min()) / (values.max() - values.min())
    slices = torch.from_numpy(np.flip(scaled.transpose(2, 0, 1), (1, 2)).copy())[:, None]  # LPS -> RAS
    drawn = Threshold(2)(slices).argmax(dim=1).numpy()
    expected = np.flip(drawn, (1, 2)).transpose(1, 2, 0)
    np.testing.assert_array_equal(voxels(out / "prediction_adversarial.nii.gz"), expected)
    np.testing.assert_array_equal(voxels(out / "target.nii.gz"), expected)

    assert mafl("evaluate", out).exit_code == 0
    assert mafl("visualize", out).exit_code == 0
    assert (out / "figure.png").stat().st_size > 10_000


def test_a_dicom_seg_is_a_target(ct: Path, model: Path, tmp_path: Path) -> None:
    attack(ct, "shift:1:4,0,0mm", model, tmp_path / "first")
    found = finished(attack(ct, str(tmp_path / "first" / "target.dcm"), model, tmp_path / "out"), tmp_path / "out")
    assert found["cases"][0]["target"]["files"][0]["name"] == "target.dcm"
    np.testing.assert_array_equal(
        voxels(tmp_path / "out" / "target.nii.gz"), voxels(tmp_path / "first" / "target.nii.gz")
    )


def test_what_dicom_is_no_mask(ct: Path, model: Path, tmp_path: Path) -> None:
    attack(ct, "shift:1:4,0,0mm", model, tmp_path / "first")
    (tmp_path / "segs").mkdir()
    result = attack(ct, str(tmp_path / "segs"), model, tmp_path / "out")
    assert result.exit_code == 3
    assert "segs: is a folder with 0 DICOM SEG files: give one mask" in result.output
    result = attack(ct, str(ct / "IM0000"), model, tmp_path / "out")
    assert result.exit_code == 3
    assert "IM0000: is DICOM, but not a segmentation (SEG)" in result.output
    shutil.copy(tmp_path / "first" / "target.dcm", tmp_path / "segs")
    finished(attack(ct, str(tmp_path / "segs"), model, tmp_path / "out"), tmp_path / "out")


def test_inspect_tells_series_apart(ct: Path) -> None:
    write_ct(ct / "more", stored_array()[:, :, :3], AFFINE, SeriesNumber=9, Modality="MR")
    assert "series 2, modality MR, frames 3, columns 12, rows 10" in mafl("inspect", ct).stdout


def test_the_adversarial_series_is_attacked_again(ct: Path, model: Path, tmp_path: Path) -> None:
    attack(ct, "shift:1:4,0,0mm", model, tmp_path / "first")
    again = attack(
        tmp_path / "first" / "adversarial", str(tmp_path / "first" / "target.nii.gz"), model, tmp_path / "out"
    )
    assert finished(again, tmp_path / "out")["cases"][0]["attack"]["samples"]["attacked"] == 0


@pytest.mark.parametrize("place", [".", "out", "deep/er/out"])
def test_results_never_go_into_the_source(ct: Path, model: Path, place: str) -> None:
    before = sorted(ct.rglob("*"))
    result = attack(ct, "erase:1", model, ct / place)
    assert result.exit_code == 2
    assert "lies in the scan's own folder" in result.output
    assert sorted(ct.rglob("*")) == before
    result = attack(ct / "IM0000", "erase:1", model, ct)
    assert result.exit_code == 2
    assert sorted(ct.rglob("*")) == before


def test_a_dicom_file_of_floats_is_not_promised(ct: Path, model: Path, tmp_path: Path) -> None:
    result = attack(ct, "erase:1", model, tmp_path / "out", "--save-as", "float32")
    assert result.exit_code == 2
    assert "which holds the integers of its source" in result.output
    assert not (tmp_path / "out").exists()


def test_series_and_gaps_are_options(ct: Path, model: Path, tmp_path: Path) -> None:
    write_ct(ct / "more", stored_array()[:, :, :3], AFFINE, slope=SLOPE, SeriesNumber=9)
    result = attack(ct, "erase:1", model, tmp_path / "out")
    assert result.exit_code == 3
    assert "choose one with --series NUMBER. There are 1: CT, 5 of 12 x 10; 2: CT, 3 of 12 x 10." in result.output
    found = finished(attack(ct, "erase:1", model, tmp_path / "out", "--series", "2"), tmp_path / "out")
    assert found["cases"][0]["inputs"][0]["shape"] == [12, 10, 3]
    for path in (ct / "more").iterdir():
        if pydicom.dcmread(path).InstanceNumber == 2:
            path.unlink()
    write_ct(ct / "third", stored_array(), AFFINE, SeriesNumber=10)
    for path in (ct / "third").iterdir():
        if pydicom.dcmread(path).InstanceNumber == 2:
            path.unlink()
    result = attack(ct / "third", "erase:1", model, tmp_path / "gap")
    assert result.exit_code == 3
    assert "10 mm between instance 1 and instance 3" in result.output
    found = finished(attack(ct / "third", "erase:1", model, tmp_path / "gap", "--allow-gaps"), tmp_path / "gap")
    assert "taken as evenly spaced" in found["cases"][0]["inputs"][0]["warnings"][-1]
    assert mafl("evaluate", tmp_path / "gap").exit_code == 0


def test_padding_never_changes(model: Path, tmp_path: Path) -> None:
    stored = stored_array()
    stored[:3] = -3000
    write_ct(tmp_path / "ct", stored, AFFINE, slope=SLOPE, inter=INTER, PixelPaddingValue=-3000)
    out = tmp_path / "out"
    found = finished(attack(tmp_path / "ct", "dilate:1:3mm", model, out, "--intensity", "window:-100,900"), out)
    assert found["cases"][0]["bounds"]["padding_voxels"] == [int((stored == -3000).sum())]
    assert not voxels(out / "perturbation.nii.gz")[stored == -3000].any()
    again = [pydicom.dcmread(path).pixel_array for path in sorted((out / "adversarial").iterdir())]
    assert (np.stack(again) == -3000).sum() == (stored == -3000).sum()


@pytest.mark.parametrize("how", ["axial", "sagittal", "3d"])
def test_slopes_that_differ_from_slice_to_slice_are_kept(model: Path, tmp_path: Path, how: str) -> None:
    slopes = [0.5, 4.0, 0.5, 4.0, 0.5]
    stored = np.rint(stored_array() * 0.5 / np.array(slopes)).astype(np.int16)
    write_ct(tmp_path / "pet", stored, AFFINE, slope=slopes, inter=0.0, Modality="PT")
    out = tmp_path / "out"
    options: tuple[object, ...] = ("--slice-axis", how)
    if how == "3d":
        model = tmp_path / "deep.ts"
        torch.jit.script(Threshold(3)).save(model)
        options = ("--intensity", "minmax")
    case = finished(attack(tmp_path / "pet", "shift:1:4,0,0mm", model, out, *options), out)["cases"][0]
    assert case["quantisation"][0]["max_difference_from_memory_native"] < 1e-3
    change = voxels(out / "perturbation.nii.gz") / np.array(slopes)
    np.testing.assert_allclose(change, np.rint(change), atol=1e-4)
    assert np.abs(change).max() > 0


def test_every_dicom_that_pydicom_ships_ends_well(model: Path, tmp_path: Path) -> None:
    data = Path(pydicom.__file__).parent / "data"
    places = [*data.rglob("*.dcm"), *sorted({path.parent for path in data.rglob("*.dcm")})]
    done = 0
    for number, place in enumerate(places):
        out = tmp_path / str(number)
        result = mafl(
            "attack", place, "--target", "erase:1", "--model", model, "-o", out, "--steps", 2, "--device", "cpu", "-q"
        )
        assert result.exit_code in (0, 3), (place, result.output)
        if result.exit_code:
            assert re.fullmatch(r"mafl: [^\n]+\n", result.output), (place, result.output)
            assert not out.exists()
        else:
            done += 1
    assert done >= 25


# --- targets and bounds -------------------------------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    nib.save(nib.Nifti1Image(stored_array(), AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.mark.parametrize(
    "recipe",
    ["erase:ball", "shift:1:4,0,0mm", "dilate:1:2mm", "erode:1:2mm", "erase:1:sphere@20,-28,17,5",
     "swap:0,1:sphere@22,-30,17,3"],
)  # fmt: skip
def test_recipes_are_targets(scan: Path, model: Path, tmp_path: Path, recipe: str) -> None:
    out = tmp_path / "out"
    found = finished(attack(scan, recipe, model, out, "--steps", 60), out)["cases"][0]
    assert found["target"]["recipe"] == recipe
    assert found["target"]["files"] == []
    target, clean = voxels(out / "target.nii.gz"), voxels(out / "prediction_clean.nii.gz")
    assert found["target"]["voxels"] == {"background": int((target == 0).sum()), "ball": int((target == 1).sum())}
    assert found["metrics"]["post_write"]["changed_voxels"] == int((target != clean).sum()) > 0
    assert found["metrics"]["post_write"]["hit_rate"]["value"] > 0.9


def test_copy_paints_a_mask_over_the_prediction(scan: Path, model: Path, tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[:3, :3, 2] = 255
    nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / "more.nii.gz")
    out = tmp_path / "out"
    found = finished(attack(scan, f"copy:{tmp_path / 'more.nii.gz'}", model, out, "--label-map", "255:1"), out)
    clean, target = voxels(out / "prediction_clean.nii.gz"), voxels(out / "target.nii.gz")
    np.testing.assert_array_equal(target, np.maximum(clean, mask > 0))
    assert found["cases"][0]["target"]["recipe"] == "copy:more.nii.gz"


def test_dry_run_shows_the_target_and_attacks_nothing(scan: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("attack", scan, "--target", "erase:1", "--model", model, "-o", out, "--device", "cpu")
    result = mafl(*command, "--dry-run")
    assert result.exit_code == 0
    assert {path.name for path in out.iterdir()} == {"prediction_clean.nii.gz", "target.nii.gz"}
    count = int(voxels(out / "prediction_clean.nii.gz").sum())
    assert re.search(rf"ball +{count} +0 +-{count}\n", result.stdout)
    assert f"{count} voxels must change, in" in result.stdout
    shown = json.loads(mafl(*command, "--dry-run", "-q", "--json", "-").stdout)
    assert shown["changed_voxels"] == count
    assert shown["clean_voxels"]["ball"] == count
    # What a dry run leaves is in nobody's way, and is not left over.
    finished(mafl(*command, "--steps", 5), out)
    assert mafl(*command, "--dry-run").exit_code == 2


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("erase:1:sphere@900,0,0,3", 3, "changes no voxel inside the sphere"),
        ("erase:5", 2, "does not have class '5'; it has 0 background, 1 ball"),
        ("shift:1:10mm", 2, "write shift:CLASS:X,Y,Zmm"),
        ("copy:nowhere.nii.gz", 3, "nowhere.nii.gz does not exist"),
    ],
)
def test_recipes_that_cannot_be_followed(
    scan: Path, model: Path, tmp_path: Path, target: str, code: int, words: str
) -> None:
    result = attack(scan, target, model, tmp_path / "out")
    assert result.exit_code == code
    assert words in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_masks_on_another_grid(scan: Path, model: Path, tmp_path: Path) -> None:
    turned, affine = np.zeros((24, 20, 10), np.uint8), AFFINE.copy()
    turned[10:18, 6:14, 2:8] = 1
    affine[:3, :3] /= 2
    nib.save(nib.Nifti1Image(turned, affine), tmp_path / "fine.nii.gz")
    out = tmp_path / "out"
    result = attack(scan, str(tmp_path / "fine.nii.gz"), model, out)
    assert result.exit_code == 3
    assert "24 x 20 x 10 voxels of 1 x 1 x 2.5 mm" in result.output
    assert "--resample-target" in result.output
    found = finished(attack(scan, str(tmp_path / "fine.nii.gz"), model, out, "--resample-target"), out)
    counts = found["cases"][0]["target"]["files"][0]["resampled"]
    assert counts == {"1": {"before": 8 * 8 * 6, "after": int(voxels(out / "target.nii.gz").sum())}}


def test_within_and_body_only(scan: Path, model: Path, tmp_path: Path) -> None:
    roi = np.zeros(SHAPE, np.uint8)
    roi[3:9, 2:8] = 1
    nib.save(nib.Nifti1Image(roi, AFFINE), tmp_path / "roi.nii.gz")
    out = tmp_path / "out"
    found = finished(
        attack(scan, "dilate:1:2mm", model, out, "--within", tmp_path / "roi.nii.gz", "--eps-hu", 300), out
    )
    changed = voxels(out / "perturbation.nii.gz") != 0
    assert changed.any()
    assert not changed[roi == 0].any()
    bounds = found["cases"][0]["bounds"]
    assert bounds["within"]["name"] == "roi.nii.gz"
    assert bounds["allowed_voxels"] == int(roi.sum())
    assert bounds["eps_native"] == [300]
    unit = found["cases"][0]["space"]["native_units_per_model_unit"][0]
    assert bounds["eps_model"] == pytest.approx([300 / unit])

    found = finished(attack(scan, "erode:1:2mm", model, tmp_path / "body", "--body-only"), tmp_path / "body")
    bounds = found["cases"][0]["bounds"]
    assert 0 < bounds["body_voxels"] == bounds["allowed_voxels"] < np.prod(SHAPE)

    nib.save(nib.Nifti1Image(0 * roi, AFFINE), tmp_path / "empty.nii.gz")
    result = attack(scan, "erase:1", model, tmp_path / "no", "--within", tmp_path / "empty.nii.gz")
    assert result.exit_code == 3
    assert "empty.nii.gz labels no voxel" in result.output


# --- privacy ------------------------------------------------------------------------------------------------------

MARK = "Zweistein"
ALLOWED = ("PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName", "StudyID")
PERSONAL = (
    *ALLOWED,
    *("InstitutionName", "InstitutionAddress", "StationName", "OperatorsName", "PerformingPhysicianName"),
    *("StudyDescription", "SeriesDescription", "ProtocolName", "PatientComments", "OtherPatientIDs"),
    *("DeviceSerialNumber",),
    *("PatientAddress", "RequestedProcedureDescription", "AdditionalPatientHistory", "InstitutionalDepartmentName"),
)  # fmt: skip


def texts(folder: Path) -> dict[str, bytes]:
    """Contents of all files, unpacked."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = gzip.decompress(raw) if path.suffix == ".gz" else raw
    return found


def test_nothing_about_a_patient_leaves_the_scan(model: Path, tmp_path: Path) -> None:
    home = tmp_path / f"home_{MARK}"
    marks: Any = {keyword: f"{MARK}{number}" for number, keyword in enumerate(PERSONAL)}
    datasets = write_ct(
        home / "ct", stored_array(), AFFINE, slope=SLOPE, inter=INTER, PatientBirthDate="19231017", **marks
    )
    for path in list((home / "ct").iterdir()):
        path.rename(path.with_name(f"{pydicom.dcmread(path).SOPInstanceUID}.dcm"))
    uids = {dataset.SOPInstanceUID for dataset in datasets} | {datasets[0].SeriesInstanceUID}
    secrets = [MARK, "19231017", str(tmp_path), *uids, datasets[0].StudyInstanceUID]
    said = []
    out = tmp_path / "out"
    for arguments in (
        ("attack", home / "ct", "-t", "erase:1", "-m", model, "-o", out, "--steps", 5, "-v"),
        ("attack", home / "ct", "-t", "erase:1", "-m", model, "-o", out),
        ("attack", home / "ct", "-t", "erase:1", "-m", model, "-o", tmp_path / "dry", "--dry-run"),
        ("attack", home / "ct", "-t", "erase:1", "-m", model, "-o", home / "ct"),
        ("attack", home / "ct", "-t", home / "missing.nii", "-m", model, "-o", tmp_path / "no"),
        ("attack", next((home / "ct").iterdir()), "-t", "erase:1", "-m", model, "-o", tmp_path / "one"),
        ("attack", home / "ct", "-t", next((home / "ct").iterdir()), "-m", model, "-o", tmp_path / "no"),
        ("evaluate", out, "--json", out / "evaluation.json"),
        ("visualize", out),
        ("inspect", home / "ct"),
    ):
        result = mafl(*arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        said.append(result.output)
    for index, path in enumerate((home / "ct").iterdir()):
        if index == 2:
            dataset = pydicom.dcmread(path)
            dataset.ImagePositionPatient = [0, 0, 900]
            dataset.save_as(path)
    said.append(mafl("attack", home / "ct", "-t", "erase:1", "-m", model, "-o", tmp_path / "gap").output)
    assert "lie" in said[-1] or "apart" in said[-1]
    for text in said:
        assert not [secret for secret in secrets if secret in text], text
    dicom = 0
    for name, raw in texts(out).items():
        if name.endswith(".dcm"):
            dicom += 1
            dataset = pydicom.dcmread(out / name)
            left = {keyword for keyword in PERSONAL if MARK in str(dataset.get(keyword, ""))}
            assert left <= set(ALLOWED), name
            for element in dataset.iterall():
                assert MARK not in str(element.value) or element.keyword in ALLOWED, (name, element.keyword)
        else:
            assert not [secret for secret in secrets if secret.encode() in raw], name
    assert dicom == SHAPE[2] + 2  # the target is empty, so it is no SEG


def test_redact_hides_names_and_free_text(model: Path, tmp_path: Path) -> None:
    image = nib.Nifti1Image(stored_array(), AFFINE)
    image.header["descrip"] = image.header["db_name"] = image.header["intent_name"] = MARK
    image.header["aux_file"] = MARK
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, f"patient {MARK}".encode()))
    nib.save(image, tmp_path / f"{MARK}.nii.gz")
    mask = np.roll(stored_array() > 1000, 2, axis=0).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / f"{MARK}_mask.nii.gz")
    said = []
    for number, target in enumerate((f"{MARK}_mask.nii.gz", f"copy:{tmp_path}/{MARK}_mask.nii.gz", f"{MARK}_no.nii")):
        place = target if target.startswith("copy") else tmp_path / target
        out = tmp_path / f"out{number}"
        result = mafl(
            "attack", tmp_path / f"{MARK}.nii.gz", "-t", place, "-m", model, "-o", out, "--steps", 5, "-v",
            "--redact", "--within", tmp_path / f"{MARK}_mask.nii.gz", "--guide", tmp_path / f"{MARK}.nii.gz",
        )  # fmt: skip
        said.append(result.output)
        assert result.exit_code == (3 if number == 2 else 0), result.output
        if result.exit_code == 0:
            finished(result, out)
            mafl("visualize", out)
        for name, raw in texts(out).items() if out.exists() else ():
            assert MARK.encode() not in raw, name
    assert not [text for text in said if MARK in text]
    first = json.loads((tmp_path / "out0" / "report.json").read_text())["cases"][0]
    assert re.fullmatch(r"case-[0-9a-f]{12}", first["case_id"])
    assert first["inputs"][0]["name"] == first["case_id"]
    second = json.loads((tmp_path / "out1" / "report.json").read_text())["cases"][0]
    assert re.fullmatch(r"copy:case-[0-9a-f]{12}", second["target"]["recipe"])


def test_an_internal_error_quotes_nothing(
    scan: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"patient {MARK} in {tmp_path}")

    monkeypatch.setattr(pipeline, "searched", fail)
    result = attack(scan, "erase:1", model, tmp_path / "out")
    assert result.exit_code == 1
    assert re.fullmatch(
        r"mafl: internal error \(RuntimeError in test_any_scan.py, line \d+\); run again with --debug.\n", result.output
    )


# --- nothing of the user's is lost --------------------------------------------------------------------------------


def test_overwrite_never_takes_an_inputs_place(ct: Path, model: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(ct, study / "adversarial")
    shutil.copytree(ct, study / "plain")
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    result = attack(study / "adversarial", "erase:1", model, study, "--overwrite")
    assert result.exit_code == 2
    assert "--out study holds adversarial, which is an input" in result.output
    attack(ct, "shift:1:4,0,0mm", model, tmp_path / "run")
    result = attack(ct, str(tmp_path / "run" / "target.nii.gz"), model, tmp_path / "run", "--overwrite")
    assert result.exit_code == 2
    assert "holds target.nii.gz, which is an input" in result.output
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


def test_a_report_that_has_no_place_is_refused_before_the_attack(ct: Path, model: Path, tmp_path: Path) -> None:
    result = attack(ct, "erase:1", model, tmp_path / "out", "--json", tmp_path / "JANE DOE" / "x.json")
    assert result.exit_code == 2
    assert result.output == "mafl: --json: the folder of this file does not exist: make it, or choose another.\n"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_never_deletes_an_attack(ct: Path, model: Path, tmp_path: Path) -> None:
    attack(ct, "shift:1:4,0,0mm", model, tmp_path / "run")
    result = attack(ct, "erase:1", model, tmp_path / "run", "--dry-run", "--overwrite")
    assert result.exit_code == 2
    assert "a target alone never takes the place of an attack: choose another folder with --out." in result.stderr
    assert "--overwrite" not in result.stderr
    assert (tmp_path / "run" / "adversarial").is_dir()


@pytest.mark.parametrize("name", ["2.25.298462782836314925775022199948168402023", "JANE_1.2.840.1.2.3.4"])
def test_no_uid_is_shown_and_redact_hides_what_stands_beside_it(
    ct: Path, model: Path, tmp_path: Path, name: str
) -> None:
    ct.rename(tmp_path / name)
    uid = name.rpartition("_")[2]
    for options in ((), ("--redact",)):
        out = tmp_path / f"out{len(options)}"
        result = mafl("attack", tmp_path / name, "-t", "erase:1", "-m", model, "-o", out, "--steps", 3, *options)
        assert result.exit_code == 0
        for text in (result.output, (out / "report.json").read_text()):
            assert uid not in text
            assert not options or "JANE" not in text
    assert uid not in mafl("inspect", tmp_path / "gone" / name).output
