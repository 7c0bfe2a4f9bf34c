"""What a gate must not pass on: runs that show nothing, that nobody can check, or whose reports are damaged."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import Result

from mafl_cli.batch import tables
from mafl_cli.case.request import DEMO_MODEL
from mafl_cli.cli.reading import models_at_hand
from mafl_cli.errors import InputError
from mafl_cli.results import read as records
from mafl_cli.results import recorded
from mafl_cli.results.files import FAILED, TICKET
from mafl_cli.results.quantities import TABLE
from mafl_cli.results.report import Report

AFFINE = np.diag([2.0, 2, 3, 1])
# Rules that the runs below pass when all is well.
GATES = ("--fail-if", "hit_rate > 0.9", "--fail-if", "psnr_db > 1000", "--fail-if", "linf_native > 5")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held against a small budget, and what it was made of."""
    folder = tmp_path_factory.mktemp("work")
    scan = scan_array((16, 14, 3))
    for name, array in (("scan", scan), ("mask", np.roll(scan > 0.5, 2, axis=0).astype(np.uint8))):
        nib.save(nib.Nifti1Image(array, AFFINE), folder / f"{name}.nii.gz")
    torch.jit.script(Threshold(2)).save(folder / "model.ts")
    assert attack(folder, folder / "held", "--budget-eps", 0.05).exit_code == 0
    return folder


def attack(work: Path, out: Path, *more: object) -> Result:
    return mafl(
        "attack", work / "scan.nii.gz", "-t", work / "mask.nii.gz", "-m", work / "model.ts", "-o", out, "--steps", 2,
        "-q", "--device", "cpu", *more,
    )  # fmt: skip


def judge(work: Path, *folders: Path, model: bool = True, gates: tuple[str, ...] = GATES) -> Result:
    return mafl("evaluate", *folders, *(("-m", work / "model.ts") if model else ()), *gates)


def copied(work: Path, to: Path) -> Path:
    return Path(shutil.copytree(work / "held", to))


def bent(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


def forged(run: Path, name: str, array: Callable[[np.ndarray], np.ndarray]) -> None:
    """Another mask in the place of one, with its hash in the report."""
    image = nib.load(run / name)
    nib.save(nib.Nifti1Image(array(np.asarray(image.dataobj)), image.affine, image.header), run / name)
    digest = hashlib.sha256((run / name).read_bytes()).hexdigest()

    def put(report: dict[str, Any]) -> None:
        (file,) = (file for file in report["cases"][0]["files"] if file["name"] == name)
        file["sha256"] = digest

    bent(run, put)


def test_the_run_passes_as_long_as_nothing_is_wrong_with_it(work: Path) -> None:
    result = judge(work, work / "held")
    assert result.exit_code == 0, result.stderr


# --- runs that show nothing ---------------------------------------------------------------------------------------


def test_an_attack_that_changed_no_voxel_shows_nothing(work: Path, tmp_path: Path) -> None:
    assert attack(work, tmp_path / "still", "--budget-eps", 1e-9).exit_code == 0
    result = judge(work, tmp_path / "still")
    assert result.exit_code == 5
    assert "the adversarial scan is the original, so the model was not tested" in result.stderr.splitlines()[-1]


def test_a_model_that_withstands_a_budget_was_tested_and_passes(work: Path, tmp_path: Path) -> None:
    assert attack(work, tmp_path / "withstood", "--budget-eps", 0.01).exit_code == 0
    case = json.loads((tmp_path / "withstood" / "report.json").read_text())["cases"][0]
    assert case["metrics"]["post_write"]["hit_rate"]["value"] == 0
    assert case["metrics"]["size"]["linf"]["native"] == pytest.approx(0.01, rel=1e-4)
    assert judge(work, tmp_path / "withstood").exit_code == 0


def test_a_change_that_is_rounding_shows_nothing(work: Path, tmp_path: Path) -> None:
    scan = nib.load(work / "scan.nii.gz")
    dust = np.where(np.asarray(scan.dataobj) < 0.1, np.float32(1e-9), np.float32(0))
    for name, change, said in (("dust", dust, "by rounding alone"), ("real", 100_000 * dust, "PASS")):
        nib.save(nib.Nifti1Image(np.asarray(scan.dataobj) + change, AFFINE), tmp_path / f"{name}.nii.gz")
        result = mafl(
            "evaluate", "--original", work / "scan.nii.gz", "--adversarial", tmp_path / f"{name}.nii.gz", "-t",
            work / "mask.nii.gz", "-m", work / "model.ts", *GATES,
        )  # fmt: skip
        assert result.exit_code == (5 if name == "dust" else 0), result.stderr
        assert said in result.stderr + result.stdout


def test_what_cannot_be_judged_is_told_without_gates_too(work: Path, tmp_path: Path) -> None:
    assert attack(work, tmp_path / "still", "--budget-eps", 1e-9).exit_code == 0
    result = judge(work, tmp_path / "still", gates=())
    assert result.exit_code == 0
    assert "so the model was not tested" in result.stderr


def killed(run: Path) -> None:
    shutil.rmtree(run)
    (run / ".mafl-half").mkdir(parents=True)


def hidden(run: Path) -> None:
    shutil.move(run, run.with_name(".run"))


def inside(run: Path) -> None:
    shutil.move(run, run.parent / "held" / "inner")


def emptied(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


def failed(run: Path) -> None:
    emptied(run)
    error = {"type": "InputError", "message": "x.nii: is damaged."}
    (run / FAILED).write_text(json.dumps({"error": error}))


def without_report(run: Path) -> None:
    (run / "report.json").unlink()


def of_lost_batch(run: Path) -> None:
    (run / TICKET).write_text("{}")


@pytest.mark.parametrize("spoil", [killed, hidden, inside, emptied, failed, without_report, of_lost_batch])
def test_beside_a_run_that_passes_none_is_passed_over(
    work: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    copied(work, tmp_path / "runs" / "held")
    spoil(copied(work, tmp_path / "runs" / "other"))
    gated = judge(work, tmp_path / "runs")
    assert gated.exit_code == 5, gated.stderr
    assert "cannot be measured, so it fails: " in gated.stderr
    assert "PASS" not in gated.stdout
    assert judge(work, tmp_path / "runs", gates=()).exit_code == 6


@pytest.mark.parametrize("spoil", [killed, emptied, failed, without_report])
def test_where_nothing_can_be_read_it_is_bad_input(work: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(copied(work, tmp_path / "runs" / "other"))
    for gates in (GATES, ()):
        result = judge(work, tmp_path / "runs" / "other", gates=gates)
        assert result.exit_code == 3, result.stderr
        assert result.stderr.count("\n") == 1


# --- runs that nobody can check -----------------------------------------------------------------------------------


def test_without_the_model_no_gate_passes(work: Path) -> None:
    result = judge(work, work / "held", model=False)
    assert result.exit_code == 5
    assert "only the folder says what model.ts draws, for it is not at hand; give the model too" in result.stderr


def test_masks_that_were_put_in_with_their_hashes_pass_no_gate(work: Path, tmp_path: Path) -> None:
    assert attack(work, tmp_path / "fooled", "--steps", 60).exit_code == 0
    real = judge(work, tmp_path / "fooled")
    assert real.exit_code == 5
    clean = np.asarray(nib.load(tmp_path / "fooled" / "prediction_clean.nii.gz").dataobj)
    for name, mask in (("prediction_adversarial", clean), ("target", 1 - clean)):
        run = Path(shutil.copytree(tmp_path / "fooled", tmp_path / name))
        forged(run, f"{name}.nii.gz", partial(lambda mask, _: mask, mask))
        for model in (True, False):
            result = judge(work, run, model=model)
            assert result.exit_code == 5
            assert "post_write.target_iou: the report says 1.0" in result.stderr
    # With all the numbers made to fit, only the model knows better.
    run = tmp_path / "prediction_adversarial"
    held = json.loads(mafl("evaluate", run, "--json", "-").stdout)["cases"][0]["metrics"]
    bent(run, lambda report: report["cases"][0]["metrics"].update(post_write=held["post_write"]))
    gates = ("--fail-if", "hit_rate > 0.5")
    assert "only the folder says what model.ts draws" in judge(work, run, model=False, gates=gates).stderr
    assert judge(work, run, model=False, gates=gates).exit_code == 5
    caught = judge(work, run, gates=gates)
    assert caught.exit_code == 5
    assert "fail if hit_rate > 0.5: hit_rate is 1.0000 (scan)" in caught.stderr


def test_a_report_whose_numbers_are_not_those_of_its_files_passes_no_gate(work: Path, tmp_path: Path) -> None:
    for number, path in enumerate((("post_write", "hit_rate", "value"), ("size", "linf", "native"))):
        run = copied(work, tmp_path / str(number))

        def change(report: dict[str, Any], path: tuple[str, ...] = path) -> None:
            entry = report["cases"][0]["metrics"]
            for key in path[:-1]:
                entry = entry[key]
            entry[path[-1]] = 0.77

        bent(run, change)
        result = judge(work, run)
        assert result.exit_code == 5
        assert "so the report is not about these files" in result.stderr


def test_the_model_that_comes_with_mafl_is_at_hand_whatever_the_environment_says(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAFL_MODEL", raising=False)
    assert models_at_hand() == (DEMO_MODEL,)
    monkeypatch.setenv("MAFL_MODEL", str(work / "model.ts"))
    assert models_at_hand() == (work / "model.ts", DEMO_MODEL)
    assert judge(work, work / "held", model=False).exit_code == 0


# --- damaged reports ----------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a report, lists of numbers by their first entry."""
    found = [path] if path else []
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return found + [place for key, each in entries for place in places(each, (*path, key))]


def put(report: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(report)
    entry: Any = made
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    return made


@pytest.fixture(scope="module")
def spoilt(work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run whose report is written again and again, and what it should be."""
    run = copied(work, tmp_path_factory.mktemp("spoilt") / "run")
    return run, json.loads((run / "report.json").read_text())


odd = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.sampled_from([10**18, [], {}, [1], [[0]], {"value": "x"}, "../x"]),
)  # fmt: skip


def require_sentence(said: str) -> None:
    assert said.startswith("run")
    assert "\n" not in said
    assert len(said) < 400


@settings(max_examples=60)
@given(data=st.data())
def test_a_report_with_any_value_in_any_place_is_read_or_refused_by_name(
    spoilt: tuple[Path, dict[str, Any]], data: st.DataObject
) -> None:
    run, report = spoilt
    place = data.draw(st.sampled_from(places(report)))
    made = put(report, place, data.draw(odd))
    (run / "report.json").write_text(json.dumps(made))
    try:
        recorded.read_run(run)
    except InputError as exc:
        require_sentence(str(exc))
    # What a table reads of it, and resuming, is whole or as if it were not there.
    found = records.finished(run)
    assert found is None or tables.figures(found.case).keys() == set(TABLE)


WRONG = {
    "400 digits": lambda text: text.replace('"seed": 0', '"seed": ' + 400 * "9"),
    "5000 digits": lambda text: text.replace('"seed": 0', '"seed": ' + 5000 * "9"),
    "infinite": lambda text: text.replace('"seed": 0', '"seed": 1e999'),
    "NaN": lambda text: text.replace('"seed": 0', '"seed": NaN'),
    "deep": lambda text: text.replace('"seed": 0', '"seed": ' + 3000 * "[" + 3000 * "]"),
    "twice": lambda text: text.replace('"seed": 0', '"seed": 0, "seed": 0'),
    "missing": lambda text: text.replace('"seed": 0,', ""),
    "one more": lambda text: text.replace('"seed": 0', '"seed": 0, "sed": 0'),
    "another axis": lambda text: text.replace('"index": 2', '"index": 3'),
    "cut off": lambda text: text[:-200],
    "nothing": lambda text: "",
    "UTF-16": lambda text: text.encode("utf-16"),
    "Latin-1": lambda text: text.replace("scan", "sc\xe4n").encode("latin-1"),
    "bytes": lambda text: b"\x00\xff" * 50,
    "case by list": lambda text: json.dumps({**json.loads(text), "cases": {}}),
    "scalar": lambda text: "7",
}


@pytest.mark.parametrize("how", WRONG)
def test_a_damaged_report_is_bad_input_by_name_and_ends_no_other_judgement(
    work: Path, tmp_path: Path, how: str
) -> None:
    copied(work, tmp_path / "runs" / "held")
    run = copied(work, tmp_path / "runs" / "odd")
    text = (run / "report.json").read_text()
    made = WRONG[how](text)
    assert made != text
    (run / "report.json").write_bytes(made if isinstance(made, bytes) else made.encode())

    alone = judge(work, run, gates=())
    assert alone.exit_code == 3, alone.stderr
    assert alone.stderr.startswith("mafl: odd/report.json: ")
    assert alone.stderr.count("\n") == 1
    assert len(alone.stderr) < 400

    both = mafl("evaluate", tmp_path / "runs", "-m", work / "model.ts", "--json", "-", *GATES)
    assert both.exit_code == 5
    assert [(case["status"], "metrics" in case) for case in json.loads(both.stdout)["cases"]] == [
        ("ok", True), ("failed", False),
    ]  # fmt: skip


def test_a_report_with_a_byte_order_mark_is_read(work: Path, tmp_path: Path) -> None:
    run = copied(work, tmp_path / "run")
    (run / "report.json").write_bytes(b"\xef\xbb\xbf" + (run / "report.json").read_bytes())
    assert judge(work, run).exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report["model"].update(orientation="XYZ"),
        lambda report: report["model"].update(intensity={"kind": "window", "min": 5, "max": 1}),
        lambda report: report["model"].update(channels=["a", "b"]),
        lambda report: report["cases"][0]["space"].update(native_units_per_model_unit=[1, 1]),
        lambda report: report["cases"][0]["inputs"].append(report["cases"][0]["inputs"][0]),
        lambda report: report["run"]["settings"].update(spacing=[1]),
        lambda report: report["run"]["settings"].update(roi=[1, 2, 3]),
        lambda report: report["run"]["settings"].update(mode="3d"),
    ],
    ids=["orientation", "window", "channels", "units", "inputs", "spacing", "roi", "mode"],
)
def test_a_report_of_the_right_form_that_cannot_be_is_bad_input_by_name(
    work: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    run = copied(work, tmp_path / "run")
    bent(run, change)
    result = judge(work, run)
    assert result.exit_code == 3
    assert result.stderr.startswith("mafl: run/report.json: ")


@pytest.mark.parametrize("overlapping", [False, True])
def test_masks_with_classes_that_the_report_does_not_name_are_bad_input(
    work: Path, tmp_path: Path, overlapping: bool
) -> None:
    run = copied(work, tmp_path / "run")
    bent(run, lambda report: report["model"].update(classes=["a"], overlapping=overlapping))
    forged(run, "target.nii.gz", lambda mask: mask + 5)
    for model in (True, False):
        result = judge(work, run, model=model, gates=())
        assert result.exit_code == 3
        assert re.match(r"mafl: run: \w+\.nii\.gz has classes that its report\.json does not name\.\n$", result.stderr)


def test_an_error_of_ours_in_one_case_ends_no_other_judgement(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        copied(work, tmp_path / "runs" / name)
    read = records.read_report

    def broken(run: Path) -> Report:
        if run.name == "a":
            raise ZeroDivisionError("/home/somebody/scan.nii")
        return read(run)

    monkeypatch.setattr(recorded, "read_report", broken)
    result = judge(work, tmp_path / "runs")
    assert result.exit_code == 5
    assert "a: internal error (ZeroDivisionError in test_fail_closed.py, line " in result.stderr
    assert "somebody" not in result.stderr


def test_a_page_shows_the_runs_that_can_be_read_beside_those_that_cannot(work: Path, tmp_path: Path) -> None:
    copied(work, tmp_path / "runs" / "held")
    (copied(work, tmp_path / "runs" / "odd") / "report.json").write_text("{")
    result = mafl("visualize", tmp_path / "runs", "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr
    assert "odd/report.json: cannot be read as JSON" in (tmp_path / "page.html").read_text()
    assert mafl("visualize", tmp_path / "runs" / "odd", "-o", tmp_path / "other.html").exit_code == 3
