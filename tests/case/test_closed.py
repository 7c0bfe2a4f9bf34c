"""Attacks on models that only draw: what they are shown, what is counted, and what the report says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from commands import mafl, scan_array
from dicoms import write_ct
from numpy.typing import NDArray
from scipy import ndimage

from mafl_cli import api
from mafl_cli.errors import InputError, ModelError, UsageError
from mafl_cli.results.report import SCHEMA, Report

AFFINE = np.diag([2.0, 2, 3, 1])


def save(path: Path, array: np.ndarray) -> Path:
    image = nib.Nifti1Image(array, AFFINE)
    image.header["descrip"] = b"DOE^JANE"
    nib.save(image, path)
    return path


class Bright:
    """Class 1 where a slice is brighter than a border; counts how often it is asked."""

    def __init__(self, border: float = 0.5) -> None:
        self.border, self.asked = border, 0
        self.seen: list[NDArray[np.float32]] = []

    def __call__(self, scan: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
        self.asked += 1
        self.seen.append(scan[0].copy())
        drawn: NDArray[np.uint8] = (ndimage.uniform_filter(scan[0], (3, 3, 1)) > self.border).astype(np.uint8)
        return drawn


def array() -> np.ndarray:
    return scan_array((16, 14, 3))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save(tmp_path / "DOE_JANE.nii.gz", array())


def fits(report: Report) -> dict[str, Any]:
    from mafl_cli.system import records

    found: dict[str, Any] = records.plain(report)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(found)
    return found


# --- what it is shown, and what is counted ------------------------------------------------------------------------


def test_an_untargeted_attack_is_judged_on_the_file_and_its_queries_are_counted(scan: Path, tmp_path: Path) -> None:
    model = Bright()
    report = api.attack_scan(
        scan, None, untargeted=True, model_command=model, queries=40, eps=0.4, eps_unit="range", out=tmp_path / "out"
    )
    found = fits(report)
    attack, said = found["cases"][0]["attack"], found["model"]
    queries = attack["queries"]
    # The file that was written was asked about once more.
    assert model.asked == queries["asked"] + 1
    assert queries["asked"] <= queries["limit"] == 40
    assert attack["trace"]["step"] == list(range(len(attack["trace"]["step"])))
    assert attack["goal_reached"] is True
    assert (said["name"], said["format"], said["gradient_from"], said["taps"]) == ("Bright", "command", "none", [])
    before, after = (np.asarray(nib.load(tmp_path / "out" / f"prediction_{n}.nii.gz").dataobj) for n in CASES)
    assert 2 * np.sum(before & after) / (before.sum() + after.sum()) <= 0.5
    written = np.asarray(nib.load(tmp_path / "out" / "adversarial.nii.gz").dataobj)
    assert np.array_equal(model.seen[-1], written)
    assert float(np.abs(written - array()).max()) <= 0.4 * float(np.ptp(array())) + 1e-6
    assert not np.asarray(nib.load(tmp_path / "out" / "target.nii.gz").dataobj).any()


CASES = ("clean", "adversarial")


def test_a_targeted_attack_begins_at_a_start_and_the_same_question_is_asked_once(scan: Path, tmp_path: Path) -> None:
    data = array()
    clean = Bright()([data])
    target = save(tmp_path / "target.nii.gz", np.roll(clean, 1, axis=0))
    start = save(tmp_path / "start.nii.gz", np.roll(data, 1, axis=0))
    model = Bright()
    report = api.attack_scan(
        scan, target, model_command=model, queries=20, starts=start, mode="2d", goal_iou=0.9, goal_hit=0.9
    )
    attack = report.case.attack
    assert attack.goal_reached
    assert attack.queries is not None
    assert attack.trace is not None
    assert report.run.settings.start == ("start.nii.gz",)
    questions = {each.tobytes() for each in model.seen[:-1]}
    assert len(questions) == model.asked - 1 == attack.queries.asked
    assert attack.trace.reached[:2] == (0.0, 1.0)
    assert attack.trace.l2_model[-1] < attack.trace.l2_model[1]


def test_a_model_that_draws_the_target_already_is_left_alone(scan: Path, tmp_path: Path) -> None:
    target = save(tmp_path / "target.nii.gz", Bright()([array()]))
    report = api.attack_scan(scan, target, model_command=Bright(), queries=10)
    assert report.case.attack.outcome.value == "already_at_goal"
    assert report.case.metrics.size.l0.count == 0


def test_a_program_gets_a_private_copy_with_the_grid_and_type_of_the_scan(tmp_path: Path) -> None:
    data = (1000 * array()).astype(np.int16)
    save(tmp_path / "DOE_JANE.nii.gz", data)
    save(tmp_path / "answer.nii.gz", (data > 500).astype(np.uint8))
    draw = tmp_path / "draw.sh"
    draw.write_text(f'cp "$1" {tmp_path}/seen.nii.gz; echo "$1" > {tmp_path}/name; cp {tmp_path}/answer.nii.gz "$2"')
    result = mafl(
        "attack", tmp_path / "DOE_JANE.nii.gz", "-t", "erase:1", "--model-command", f"sh {draw} {{input}} {{output}}",
        "--queries", 3, "-o", tmp_path / "out", "-q",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    seen = nib.load(tmp_path / "seen.nii.gz")
    assert (seen.get_data_dtype(), seen.shape) == (np.dtype(np.int16), data.shape)
    assert np.array_equal(seen.affine, AFFINE)
    # What was asked last is the file that was written.
    assert np.array_equal(
        np.asarray(seen.dataobj), np.asarray(nib.load(tmp_path / "out" / "adversarial.nii.gz").dataobj)
    )
    assert b"DOE" not in seen.header.binaryblock
    place = Path((tmp_path / "name").read_text().strip())
    assert place.name == "scan_0000.nii.gz"
    assert not place.parent.exists()
    report = (tmp_path / "out" / "report.json").read_text()
    assert json.loads(report)["model"]["name"] == "sh"
    assert str(tmp_path) not in report
    assert "draw.sh" not in report


def test_a_series_of_dicom_is_shown_as_nifti_and_written_as_dicom(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", (1000 * array()).astype(np.int16), AFFINE)
    # write_ct stores from -1024 HU on.
    report = api.attack_scan(tmp_path / "ct", "erase:1", model_command=Bright(-524.0), queries=8, out=tmp_path / "out")
    assert report.run.settings.save_as == "source"
    assert (tmp_path / "out" / "adversarial").is_dir()


# --- what fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("echo 'no GPU in /opt/product/bin' >&2; exit 9", 4, "sh: ended with exit code 9; it said last: no GPU in bin"),
        ("true", 4, "did not write a mask"),
        ('cp {folder}/half.nii.gz "$2"', 4, "what it drew cannot be used: scan_0000.nii.gz and mask.nii.gz are not on"),
        ('cp {folder}/soft.nii.gz "$2"', 4, "are not whole numbers"),
        ('echo x > "$2"', 4, "what it drew cannot be used: mask.nii.gz"),
        ("sleep 60", 4, "did not end within 0.5 s"),
    ],
    ids=["code", "nothing", "grid", "probabilities", "no image", "hangs"],
)
def test_a_program_that_fails_leaves_a_sentence_and_nothing_else(
    scan: Path, tmp_path: Path, body: str, code: int, said: str
) -> None:
    save(tmp_path / "half.nii.gz", np.zeros((8, 14, 3), np.uint8))
    save(tmp_path / "soft.nii.gz", array())
    draw = tmp_path / "draw.sh"
    draw.write_text(body.replace("{folder}", str(tmp_path)))
    result = mafl(
        "attack", scan, "--untargeted", "--model-command", f"sh {draw} {{input}} {{output}}", "-o", tmp_path / "out",
        "-q", "--command-timeout", 0.5 if "hangs" in said or "sleep" in body else 60,
    )  # fmt: skip
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert str(tmp_path) not in result.stderr


def test_nothing_can_be_spoilt_where_nothing_is_drawn(scan: Path) -> None:
    with pytest.raises(InputError, match="Bright draws nothing on the clean scan"):
        api.attack_scan(scan, None, untargeted=True, model_command=Bright(9.0), queries=5)


def test_a_class_that_nobody_named_stops_the_search(scan: Path) -> None:
    def moody(data: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
        clean = np.array_equal(data[0], array())
        return np.where(data[0] > 0.5, 1 if clean else 3, 0).astype(np.uint8)

    with pytest.raises(ModelError, match="moody: drew label 3, which it did not draw on the clean scan"):
        api.attack_scan(scan, None, untargeted=True, model_command=moody, queries=5)
    named = api.attack_scan(
        scan, None, untargeted=True, model_command=moody, queries=2, classes=["background", "a", "b", "c"]
    )
    assert named.model.classes == ("background", "a", "b", "c")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"untargeted": True}, "`target`"),
        ({"method": "pgd"}, "leave out `method`: it is about gradients"),
        ({"momentum": 0.5}, "leave out `momentum`"),
        ({"ladder": True}, "leave out `ladder`"),
        ({"roi": (8, 8)}, "leave out `roi`"),
        ({"queries": 0}, "`queries` must be from 1"),
        ({"model": "x.ts"}, "`model` or `model_command`, not both"),
        ({"ensemble": "mean"}, "ensemble"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_needs_a_gradient_is_refused(scan: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        api.attack_scan(scan, "erase:1", model_command=Bright(), **options)


@pytest.mark.parametrize("option", ["queries", "command_timeout", "untargeted", "classes"])
def test_a_model_file_has_no_queries(scan: Path, option: str) -> None:
    options: dict[str, Any] = {"queries": 5, "command_timeout": 3.0, "untargeted": True, "classes": ["background", "a"]}
    value = options[option]
    with pytest.raises(UsageError, match=option):
        api.attack_scan(scan, None if option == "untargeted" else "erase:1", **{option: value})


# --- judged again -------------------------------------------------------------------------------------------------


def test_a_run_is_judged_by_the_program_by_predictions_or_not_at_all(scan: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    report = api.attack_scan(
        scan, None, untargeted=True, model_command=Bright(), queries=30, eps=0.4, eps_unit="range", out=run
    )
    gate = "prediction_drop > 0.9"
    again = api.evaluate(run, model_command=Bright(), fail_if=gate)
    (case,) = again.judged
    assert case.differences == ()
    assert case.goal.reached is report.case.attack.goal_reached is True
    assert again.gates[0].status == "pass"
    by_masks = api.evaluate(
        run,
        prediction_clean=run / "prediction_clean.nii.gz",
        prediction_adversarial=run / "prediction_adversarial.nii.gz",
        fail_if=gate,
    )
    assert by_masks.gates[0].status == "pass"
    assert by_masks.judged[0].metrics.post_write == case.metrics.post_write
    alone = api.evaluate(run, fail_if=gate)
    assert alone.gates[0].status == "fail"
    assert "give the model too" in alone.gates[0].reason
    assert "Bright" in alone.gates[0].reason


def test_a_search_by_labels_that_failed_passes_no_gate(scan: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    api.attack_scan(scan, None, untargeted=True, model_command=Bright(), queries=3, eps=1e-3, eps_unit="range", out=run)
    found = api.evaluate(run, model_command=Bright(), fail_if="prediction_drop > 0.5")
    assert found.judged[0].doubts[0].code == "label_only"
    assert found.gates[0].status == "inconclusive"
