"""Predictions in the place of a model: what a closed product drew is judged as if it had been asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from dicoms import write_ct
from evaluations import require_fits
from typer.testing import Result

from mafl_cli import api

AFFINE = np.diag([2.0, 2, 3, 1])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, its target, a model, and a run whose predictions are those of the model."""
    folder = tmp_path_factory.mktemp("given")
    scan = scan_array()
    save(folder / "scan.nii.gz", scan)
    save(folder / "mask.nii.gz", np.roll(scan > 0.5, 2, axis=0).astype(np.uint8))
    torch.manual_seed(0)
    torch.jit.script(Threshold(2)).save(folder / "model.ts")
    result = mafl(
        "attack", folder / "scan.nii.gz", "-t", folder / "mask.nii.gz", "-m", folder / "model.ts", "-o", folder / "run",
        "--steps", 20, "-q", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return folder


def judge(work: Path, clean: Path, adversarial: Path, *more: object) -> Result:
    return mafl(
        "evaluate", "--original", work / "scan.nii.gz", "--adversarial", work / "run" / "adversarial.nii.gz",
        "--target", work / "mask.nii.gz", "--prediction-clean", clean, "--prediction-adversarial", adversarial, *more,
    )  # fmt: skip


def drawn(work: Path) -> tuple[Path, Path]:
    return work / "run" / "prediction_clean.nii.gz", work / "run" / "prediction_adversarial.nii.gz"


def evaluated(result: Result, code: int = 0) -> dict:
    assert result.exit_code == code, result.stderr
    found = json.loads(result.stdout)
    require_fits(found)
    return found


def test_given_predictions_measure_what_the_model_that_drew_them_measures(work: Path) -> None:
    by_model = evaluated(
        mafl(
            "evaluate", "--original", work / "scan.nii.gz", "--adversarial", work / "run" / "adversarial.nii.gz",
            "--target", work / "mask.nii.gz", "--model", work / "model.ts", "--json", "-",
        )
    )["cases"][0]  # fmt: skip
    report = evaluated(judge(work, *drawn(work), "--json", "-"))
    (case,) = report["cases"]
    for part in ("clean", "post_write", "consequences", "dice_with_clean"):
        assert case["metrics"][part] == by_model["metrics"][part]
    assert case["metrics"]["size"]["l2"]["native"] == by_model["metrics"]["size"]["l2"]["native"]
    assert case["goal"] == by_model["goal"]
    assert report["models"] == []
    assert case["predictions"] == "given"
    assert [file["name"] for file in case["given"]["adversarial"]] == ["prediction_adversarial.nii.gz"]


def test_gates_card_junit_and_table_come_without_a_model_and_say_so(work: Path, tmp_path: Path) -> None:
    files = {"--card": "card.md", "--junit": "junit.xml", "--csv": "table.csv"}
    options = [part for option, name in files.items() for part in (option, tmp_path / name)]
    result = judge(work, *drawn(work), "--fail-if", "target_iou > 0.9", *options)
    assert result.exit_code == 5
    assert "Nothing is known about who or what drew them" in result.stdout
    assert "model units" not in result.stdout
    card = (tmp_path / "card.md").read_text()
    assert "# Robustness of an unknown model" in card
    assert "Nothing is known about who or what drew them" in card
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    assert (suite.get("name"), suite.get("failures")) == ("mafl an unknown model", "1")
    head, row = (line.split(",") for line in (tmp_path / "table.csv").read_text().splitlines())
    named = dict(zip(head, row, strict=True))
    assert named["l2_native"]
    assert named["l2_model"] == ""


def test_a_gate_in_model_units_fails_closed(work: Path) -> None:
    result = judge(work, *drawn(work), "--fail-if", "linf_model > 1000", "-q")
    assert result.exit_code == 5
    assert "linf_model is undefined: needs a model" in result.stderr


def test_folders_of_predictions_are_matched_by_name_and_a_lost_one_fails_its_case(work: Path, tmp_path: Path) -> None:
    clean, adversarial = drawn(work)
    parts = {
        "original": work / "scan.nii.gz", "adversarial": work / "run" / "adversarial.nii.gz",
        "target": work / "mask.nii.gz", "before": clean, "after": adversarial,
    }  # fmt: skip
    for part, file in parts.items():
        (tmp_path / part).mkdir()
        for name in ("a", "b"):
            shutil.copy(file, tmp_path / part / f"{name}.nii.gz")
    (tmp_path / "after" / "b.nii.gz").unlink()

    def asked(after: Path) -> Result:
        return mafl(
            "evaluate", "--original", tmp_path / "original", "--adversarial", tmp_path / "adversarial",
            "--target", tmp_path / "target", "--prediction-clean", tmp_path / "before",
            "--prediction-adversarial", after, "--json", "-",
        )  # fmt: skip

    first, lost = evaluated(asked(tmp_path / "after"), 6)["cases"]
    assert first["status"] == "ok"
    assert lost["error"]["message"] == "after: holds no mask named b, which `prediction_adversarial` needs."
    result = asked(tmp_path / "after" / "a.nii.gz")
    assert result.exit_code == 2
    assert "is one prediction, but there are 2 pairs: give a folder of predictions" in result.stderr


def test_a_run_is_judged_by_the_predictions_of_another_model_and_held_to_its_own_files(
    work: Path, tmp_path: Path
) -> None:
    clean, adversarial = drawn(work)
    before = np.asarray(nib.load(clean).dataobj)
    other = save(tmp_path / "other.nii.gz", np.roll(before, 1, axis=1))

    def asked(run: Path) -> dict:
        return evaluated(
            mafl(
                "evaluate", run, "--prediction-clean", other, "--prediction-adversarial", adversarial,
                "--fail-if", "hit_rate > 0.999", "--fail-if", "l2_model > 1000", "--json", "-",
            ),
            5,
        )  # fmt: skip

    (case,) = asked(work / "run")["cases"]
    assert case["untested"] is None
    assert case["files_intact"] is True
    (said,) = case["differences"]
    assert said.startswith("other.nii.gz: ")
    assert said.endswith("voxels are drawn otherwise than by model.ts, which was attacked")
    copy = tmp_path / "copy"
    shutil.copytree(work / "run", copy)
    save(copy / "prediction_clean.nii.gz", np.zeros_like(before))
    found = asked(copy)
    assert found["cases"][0]["untested"]["code"] == "file_changed"
    assert [gate["status"] for gate in found["gates"]] == ["fail", "fail"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: 255 * a, "has label 255, which neither mask.nii.gz nor prediction_clean.nii.gz has"),
        (lambda a: a + np.float32(0.25), "voxels are not whole numbers"),
        (lambda a: a[::2], "are not on the same grid"),
        (lambda a: a.astype(np.uint16) * 1000, "has label 1000, but masks without a model may have 0 to 255"),
    ],
    ids=["numbers", "probabilities", "grid", "not classes"],
)
def test_a_mask_that_cannot_be_a_prediction_of_the_scan_is_refused(
    work: Path, tmp_path: Path, change: object, said: str
) -> None:
    clean, adversarial = drawn(work)
    wrong = save(tmp_path / "wrong.nii.gz", change(np.asarray(nib.load(adversarial).dataobj)))  # type: ignore[operator]
    result = judge(work, clean, wrong, "--json", tmp_path / "report.json")
    assert result.exit_code == 3
    assert said in result.stderr
    assert "wrong.nii.gz" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "report.json").exists()


def test_numbers_that_target_and_clean_prediction_do_not_share_are_refused_unless_named(
    work: Path, tmp_path: Path
) -> None:
    clean, adversarial = (2 * np.asarray(nib.load(path).dataobj) for path in drawn(work))
    before, after = save(tmp_path / "before.nii.gz", clean), save(tmp_path / "after.nii.gz", adversarial)
    result = judge(work, before, after)
    assert result.exit_code == 3
    assert "before.nii.gz has label 2, mask.nii.gz has 1, and none is in both" in result.stderr
    (case,) = evaluated(judge(work, before, after, "--classes", "background,liver,spleen", "--json", "-"))["cases"]
    assert [each["name"] for each in case["metrics"]["post_write"]["per_class"]] == ["liver", "spleen"]
    assert case["metrics"]["post_write"]["target_iou"]["value"] == 0
    result = judge(work, before, after, "--classes", "background,liver")
    assert result.exit_code == 3
    assert "has label 2, but --classes names 0 to 1" in result.stderr


def test_empty_predictions_prove_nothing(work: Path, tmp_path: Path) -> None:
    empty = np.zeros(scan_array().shape, np.uint8)
    before, after = save(tmp_path / "before.nii.gz", empty), save(tmp_path / "after.nii.gz", empty)
    result = judge(work, before, after, "--fail-if", "target_iou > 0.5")
    assert result.exit_code == 5
    assert "before.nii.gz is empty" in result.stderr
    assert "both given predictions are empty" in result.stderr
    # A model that draws nothing on the adversarial scan alone has been attacked.
    assert judge(work, drawn(work)[0], after, "--fail-if", "target_iou > 0.5").exit_code == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--curve",), "--transform, --detect and --curve must ask a model, but its predictions were given"),
        (("--transform", "blur:1"), "must ask a model"),
        (("--detect",), "must ask a model"),
        (("--model", "model.ts"), "leave out --model: no model is asked"),
        (("--roi", "8,8"), "leave out --roi: no model is asked"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_would_ask_a_model_is_refused(work: Path, more: tuple[str, ...], said: str) -> None:
    result = judge(work, *drawn(work), *more)
    assert result.exit_code == 2
    assert said in result.stderr


def test_one_prediction_and_the_same_twice_are_refused(work: Path) -> None:
    clean, _ = drawn(work)
    result = judge(work, clean, clean)
    assert (result.exit_code, "are the same" in result.stderr) == (2, True)
    result = mafl("evaluate", work / "run", "--prediction-clean", clean)
    assert (result.exit_code, "--prediction-adversarial is missing" in result.stderr) == (2, True)


def test_predictions_are_taken_on_a_series_of_dicom_too(tmp_path: Path) -> None:
    scan = (1000 * scan_array((12, 10, 4))).astype(np.int16)
    for name, add in (("before", 0), ("after", 3)):
        write_ct(tmp_path / name, scan + add, AFFINE)
    masks = {name: np.roll(scan > 500, by, axis=0).astype(np.uint8) for name, by in (("m", 2), ("c", 0), ("a", 1))}
    files = {name: save(tmp_path / f"{name}.nii.gz", mask) for name, mask in masks.items()}
    found = api.evaluate(
        original=tmp_path / "before", adversarial=tmp_path / "after", target=files["m"],
        prediction_clean=files["c"], prediction_adversarial=files["a"], fail_if="hit_rate > 0.99",
    )  # fmt: skip
    (case,) = found.judged
    expected = (masks["a"] & masks["m"]).sum() / (masks["a"] | masks["m"]).sum()
    assert case.metrics.post_write.target_iou.value == pytest.approx(expected)
