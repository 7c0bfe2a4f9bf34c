"""`mafl evaluate` as a CI job meets it: what is measured from the files, the verdict, the exit code, the reports."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
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

from mafl_cli.classes import Classes
from mafl_cli.codes import Outcome
from mafl_cli.field.transforms import parse
from mafl_cli.measure import agreement

AFFINE = np.diag([2.0, 2, 3, 1])


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scan, target, truth; models; two runs: one fooled the model, the other was `held` off by its budget."""
    folder = tmp_path_factory.mktemp("work")
    scan = scan_array()
    save(folder / "scan.nii.gz", scan)
    save(folder / "mask.nii.gz", np.roll(scan > 0.5, 2, axis=0).astype(np.uint8))
    save(folder / "truth.nii.gz", (scan > 0.45).astype(np.uint8))
    torch.manual_seed(0)
    other = Threshold(2)
    with torch.no_grad():
        other.head.bias += torch.tensor([-0.4, 0.4])
    for name, model in (("model", Threshold(2)), ("other", other)):
        torch.jit.script(model).save(folder / f"{name}.ts")
    for out, more in (("fooled", ()), ("held", ("--budget-eps", "0.01"))):
        result = attack(folder, "model.ts", out, *more)
        assert result.exit_code == 0, result.stderr
    return folder


def attack(folder: Path, model: str, out: str | Path, *more: object) -> Result:
    return mafl(
        "attack", folder / "scan.nii.gz", "-t", folder / "mask.nii.gz", "-m", folder / model, "-o", folder / out,
        "--steps", 30, "-q", "--device", "cpu", *more,
    )  # fmt: skip


def evaluated(result: Result, code: int = 0) -> dict:
    assert result.exit_code == code, result.stderr
    found = json.loads(result.stdout)
    require_fits(found)
    return found


# --- what is measured ---------------------------------------------------------------------------------------------


def test_a_run_measures_what_its_report_says(work: Path) -> None:
    found = evaluated(mafl("evaluate", work / "fooled", "-m", work / "model.ts", "--json", "-"))
    (case,) = found["cases"]
    said = json.loads((work / "fooled" / "report.json").read_text())["cases"][0]
    assert case["metrics"]["post_write"] == said["metrics"]["post_write"]
    assert case["metrics"]["size"]["l2"]["native"] == pytest.approx(said["metrics"]["size"]["l2"]["native"])
    assert (case["predictions"], case["differences"], case["files_intact"]) == ("recomputed", [], True)
    assert case["goal"]["reached"] is said["attack"]["goal_reached"] is True


def test_without_a_model_the_masks_in_the_folder_are_measured(work: Path) -> None:
    with_model, without = (
        evaluated(mafl("evaluate", work / "fooled", "--json", "-", *more)) for more in (("-m", work / "model.ts"), ())
    )
    assert without["cases"][0]["predictions"] == "recorded"
    assert without["cases"][0]["metrics"] == with_model["cases"][0]["metrics"]


def test_the_model_that_was_attacked_is_found_in_the_environment(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAFL_MODEL", str(work / "model.ts"))
    found = evaluated(mafl("evaluate", work / "fooled", "--json", "-"))
    assert found["cases"][0]["predictions"] == "recomputed"
    monkeypatch.setenv("MAFL_MODEL", str(work / "other.ts"))
    found = evaluated(mafl("evaluate", work / "fooled", "--json", "-"))
    assert found["cases"][0]["predictions"] == "recorded"


def test_a_pair_of_files_measures_the_same_as_the_run(work: Path) -> None:
    run = evaluated(mafl("evaluate", work / "fooled", "-m", work / "model.ts", "--json", "-"))["cases"][0]
    pair = evaluated(
        mafl(
            "evaluate", "--original", work / "scan.nii.gz", "--adversarial", work / "fooled" / "adversarial.nii.gz",
            "--target", work / "mask.nii.gz", "--model", work / "model.ts", "--json", "-",
        )
    )["cases"][0]  # fmt: skip
    assert pair["metrics"]["post_write"] == run["metrics"]["post_write"]
    assert pair["metrics"]["size"]["linf"]["native"] == pytest.approx(run["metrics"]["size"]["linf"]["native"])
    assert (pair["files_intact"], pair["outcome"], pair["case_id"]) == (None, None, "scan")


def test_folders_of_pairs_are_matched_by_name(work: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        for part, file in (
            ("clean", "scan.nii.gz"),
            ("changed", "fooled/adversarial.nii.gz"),
            ("masks", "mask.nii.gz"),
        ):
            if (name, part) != ("c", "masks"):
                (tmp_path / part).mkdir(exist_ok=True)
                shutil.copy(work / file, tmp_path / part / f"{name}.nii.gz")
    result = mafl(
        "evaluate", "--original", tmp_path / "clean", "--adversarial", tmp_path / "changed", "--target",
        tmp_path / "masks", "-m", work / "model.ts", "--json", "-", "--csv", tmp_path / "cases.csv",
    )  # fmt: skip
    found = evaluated(result, code=6)
    assert [(case["case_id"], case["status"]) for case in found["cases"]] == [("a", "ok"), ("b", "ok"), ("c", "failed")]
    assert "there is no mask in `target` with this name" in found["cases"][2]["error"]["message"]
    assert "1 of 3 cases could not be judged: c" in result.stderr
    assert found["aggregate"]["figures"]["hit_rate"]["ci95"] is not None
    assert len((tmp_path / "cases.csv").read_text().splitlines()) == 4


def test_the_same_run_gives_equal_json_twice(work: Path) -> None:
    texts = [
        mafl("evaluate", work / "fooled", "-m", work / "model.ts", "--json", "-", "--curve", "--detect",
             "--transform", "noise:0.02", "--fail-if", "target_iou > 0.5").stdout
        for _ in range(2)
    ]  # fmt: skip
    assert texts[0] == texts[1] != ""


def test_one_voxel_that_was_changed_since_is_seen(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "held", tmp_path / "run")
    path = tmp_path / "run" / "adversarial.nii.gz"
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[3, 4, 2] += 1e-4
    nib.save(nib.Nifti1Image(data, image.affine, image.header), path)

    told = mafl("evaluate", tmp_path / "run", "--json", "-")
    case = evaluated(told)["cases"][0]
    assert not case["files_intact"]
    assert "adversarial.nii.gz is not the file the report describes" in told.stderr

    gate = mafl("evaluate", tmp_path / "run", "--fail-if", "hit_rate > 0.99")
    assert gate.exit_code == 5
    assert "not the file the report describes" in gate.stderr


def test_a_file_that_the_report_does_not_list_is_not_trusted(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "held", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["cases"][0]["files"] = []
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    result = mafl("evaluate", tmp_path / "run", "--fail-if", "hit_rate > 0.99")
    assert result.exit_code == 5
    assert "adversarial.nii.gz is not the file the report describes" in result.stderr


@pytest.mark.parametrize("option", ["--json", "--junit", "--card", "--csv"])
@pytest.mark.parametrize("name", ["fooled/report.json", "fooled/adversarial.nii.gz", "truth.nii.gz", "model.ts"])
def test_a_verdict_never_takes_the_place_of_what_it_is_about(work: Path, option: str, name: str) -> None:
    before = (work / name).read_bytes()
    result = mafl(
        "evaluate",
        work / "fooled",
        "-m",
        work / "model.ts",
        "--ground-truth",
        work / "truth.nii.gz",
        option,
        work / name,
    )
    assert result.exit_code == 2
    assert "is an input, a scan or the report of a run" in result.stderr
    assert (work / name).read_bytes() == before


@pytest.mark.parametrize("name", ["report.json", "perturbation.nii.gz", "new.nii.gz"])
def test_a_verdict_never_takes_the_place_of_a_scan_or_of_a_run_beside_it(work: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(work / "held", tmp_path / "held")
    before = {path: path.read_bytes() for path in (tmp_path / "held").iterdir()}
    result = mafl(
        "evaluate", "--original", work / "scan.nii.gz", "--adversarial", tmp_path / "held" / "adversarial.nii.gz",
        "--target", work / "mask.nii.gz", "--model", work / "model.ts", "--json", tmp_path / "held" / name,
    )  # fmt: skip
    assert result.exit_code == 2
    assert f"--json {name} is an input, a scan or the report of a run" in result.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "held").iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
def test_a_link_stays_a_link_and_a_pipe_a_pipe(work: Path, tmp_path: Path) -> None:
    link, pipe = tmp_path / "link.csv", tmp_path / "pipe"
    link.symlink_to(tmp_path / "cases.csv")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    result = mafl("evaluate", work / "held", "--csv", link, "--junit", pipe)
    assert result.exit_code == 0, result.stderr
    assert link.is_symlink()
    assert (tmp_path / "cases.csv").read_text().startswith("case_id,")
    assert pipe.is_fifo()
    assert os.read(reader, 5) == b"<?xml"
    os.close(reader)


def test_a_windowed_resampled_run_is_drawn_again_as_it_was(work: Path, tmp_path: Path) -> None:
    torch.jit.script(Threshold(3)).save(tmp_path / "deep.ts")
    seen_as = ("--roi", "8,8,4", "--spacing", "2.5,2.5,3", "--orientation", "LPS", "--intensity", "window:-0.1,1.2")
    made = mafl(
        "attack", work / "scan.nii.gz", "-t", "erase:1", "-m", tmp_path / "deep.ts", "-o", tmp_path / "out",
        "--steps", 4, "-q", *seen_as,
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    found = evaluated(mafl("evaluate", tmp_path / "out", "-m", tmp_path / "deep.ts", "--json", "-"))["cases"][0]
    assert (found["predictions"], found["differences"]) == ("recomputed", [])
    # With other settings the model sees another scan, and that is said.
    other = evaluated(
        mafl("evaluate", tmp_path / "out", "-m", tmp_path / "deep.ts", "--spacing", "native", "--json", "-")
    )["cases"][0]
    assert any("the model draws" in line for line in other["differences"])


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report.update(cases=[]),
        lambda report: report.update(cases=2 * report["cases"]),
        lambda report: report["cases"][0]["files"].append({"name": "../fooled/target.nii.gz", "sha256": "0"}),
        lambda report: report["run"]["settings"].update(goal_iou=float("nan")),
        lambda report: report["run"]["settings"].update(goal_iou=float("inf")),
        lambda report: report["run"]["settings"].update(goal_hit="0.5"),
        lambda report: report["run"]["settings"].update(goal_hit=1.5),
        lambda report: report["run"].pop("settings"),
        lambda report: report["model"].update(overlapping="no"),
        lambda report: report["cases"][0].update(inputs=[]),
        lambda report: report.update(model=None),
    ],
)  # fmt: skip
def test_a_report_that_was_bent_is_bad_input(work: Path, tmp_path: Path, change: Callable[[dict], None]) -> None:
    shutil.copytree(work / "held", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    change(report)
    # 1e999 is JSON, and infinite; Infinity is none.
    (tmp_path / "run" / "report.json").write_text(json.dumps(report).replace("Infinity", "1e999"))
    result = mafl("evaluate", tmp_path / "run", "--fail-if", "hit_rate > 0.99")
    assert result.exit_code == 3
    assert result.stderr.startswith("mafl: run/report.json: ")
    assert result.stderr.count("\n") == 1


def test_names_in_a_report_add_no_line_and_move_no_cursor(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "held", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    said = "x\n::error::forged\x1b[2J"
    report["cases"][0]["case_id"] = report["model"]["name"] = said
    report["cases"][0]["files"].append({"name": said, "sha256": 64 * "0"})
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    (tmp_path / "run" / "x�::error::forged�[2J").touch()
    for more in (["--fail-if", "hit_rate > 0.99"], ["--curve"]):
        result = mafl("evaluate", tmp_path / "run", *more)
        assert result.exit_code != 0
        assert "forged" in result.stderr
        assert "\x1b" not in result.stderr
        assert not any(line.startswith("::") for line in result.stderr.splitlines())


def test_a_report_that_says_more_than_the_files_is_seen(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "fooled", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["cases"][0]["metrics"]["post_write"]["hit_rate"]["value"] = 0.1
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    assert "post_write.hit_rate: the report says 0.1" in mafl("evaluate", tmp_path / "run").stderr


def test_a_file_that_is_gone_is_bad_input(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "fooled", tmp_path / "run")
    (tmp_path / "run" / "target.nii.gz").unlink()
    result = mafl("evaluate", tmp_path / "run")
    assert result.exit_code == 3
    assert "target.nii.gz is missing, so the run is not complete" in result.stderr


def test_ground_truth_says_what_the_attack_takes_away(work: Path) -> None:
    found = evaluated(
        mafl("evaluate", work / "fooled", "--ground-truth", work / "truth.nii.gz", "--json", "-")
    )["cases"][0]["ground_truth"]  # fmt: skip
    truth = load(work / "truth.nii.gz") == 1
    expected = []
    for name in ("clean", "adversarial"):
        drawn = load(work / "fooled" / f"prediction_{name}.nii.gz") == 1
        expected.append(2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()))
        assert found[name]["dice"]["value"] == pytest.approx(expected[-1])
    assert found["dice_drop"]["value"] == pytest.approx(expected[0] - expected[1])
    assert expected[0] > expected[1]


def test_the_ground_truth_may_stand_in_a_manifest(work: Path, tmp_path: Path) -> None:
    listed = tmp_path / "cases.csv"
    listed.write_text(f"case,image,ground_truth\nscan,{work}/scan.nii.gz,{work}/truth.nii.gz\nx,{work}/scan.nii.gz,\n")
    alone, found = (
        evaluated(mafl("evaluate", work / "fooled", "--ground-truth", truth, "--json", "-"))["cases"][0]["ground_truth"]
        for truth in (work / "truth.nii.gz", listed)
    )
    assert found == alone
    other = tmp_path / "other.csv"
    other.write_text(f"case,image\nscan,{work}/scan.nii.gz\n")
    result = mafl("evaluate", work / "fooled", "--ground-truth", other)
    assert result.exit_code == 3
    assert "other.csv: does not name a ground truth for scan" in result.stderr


def test_other_models_are_asked_whether_they_are_fooled_too(work: Path) -> None:
    found = evaluated(
        mafl("evaluate", work / "fooled", "-m", work / "model.ts", "-m", work / "other.ts", "--json", "-")
    )
    (other,) = found["cases"][0]["transfer"]
    scan = torch.from_numpy(np.moveaxis(load(work / "fooled" / "adversarial.nii.gz"), 2, 0))[:, None]
    drawn = np.moveaxis(torch.jit.load(work / "other.ts")(scan).argmax(dim=1).numpy(), 0, 2)
    target = load(work / "mask.nii.gz")
    assert other["adversarial"]["target_iou"]["value"] == pytest.approx(
        (drawn & target).sum() / (drawn | target).sum(), abs=2e-3
    )
    assert found["transfer"][0]["target_iou"] == other["adversarial"]["target_iou"]
    assert [model["name"] for model in found["models"]] == ["model.ts", "other.ts"]


def test_classes_of_other_names_are_told(work: Path, tmp_path: Path) -> None:
    shutil.copy(work / "model.ts", tmp_path / "other.ts")
    (tmp_path / "other.toml").write_text('[output]\nclasses = ["background", "liver"]\n')
    result = mafl("evaluate", work / "fooled", "-m", work / "model.ts", "-m", tmp_path / "other.ts")
    assert result.exit_code == 0, result.stderr
    assert "other.ts draws background, liver; the target has background, class 1" in result.stderr


def test_a_dicom_run_is_judged_too(work: Path, tmp_path: Path) -> None:
    hounsfield = (1000 * (scan_array() - 0.5)).astype(np.int16)
    write_ct(tmp_path / "ct", hounsfield, AFFINE, inter=0.0)
    out = tmp_path / "out"
    made = mafl(
        "attack", tmp_path / "ct", "-t", "dilate:1:3mm", "-m", work / "model.ts", "-o", out, "--steps", 5, "-q",
        "--intensity", "window:-500,500",
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    found = evaluated(mafl("evaluate", out, "-m", work / "model.ts", "--json", "-", "--transform", "bits:8"))
    assert found["cases"][0]["differences"] == []
    assert found["cases"][0]["metrics"]["size"]["data_range"]["value"] == pytest.approx(
        json.loads((out / "report.json").read_text())["cases"][0]["metrics"]["size"]["data_range"]["value"]
    )


# --- trials -------------------------------------------------------------------------------------------------------


def test_transforms_are_applied_to_both_scans_and_only_these_are_left(work: Path) -> None:
    found = evaluated(
        mafl("evaluate", work / "fooled", "-m", work / "model.ts", "--json", "-", "--transform", "blur:1",
             "--transform", "crop:3")
    )  # fmt: skip
    assert [each["transform"] for each in found["survival"]] == ["blur:1", "crop:3"]
    network = torch.jit.load(work / "model.ts")
    clean, target = (load(work / "fooled" / f"{name}.nii.gz") for name in ("prediction_clean", "target"))
    for transform, said in zip(parse(["blur:1", "crop:3"]), found["cases"][0]["survival"], strict=True):
        changed = transform(load(work / "fooled" / "adversarial.nii.gz"), 2)
        labels = network(torch.from_numpy(np.moveaxis(changed, 2, 0))[:, None]).argmax(dim=1).numpy()
        drawn = transform.back(np.moveaxis(labels, 0, 2), 2)
        maps = [each[np.newaxis].astype(int) for each in (drawn, target, clean)]
        expected = agreement.quick_agreement(maps[0], maps[1], maps[2], Classes(("background", "bright")))
        assert said["adversarial"]["target_iou"]["value"] == pytest.approx(expected.target_iou.value, abs=2e-3)


def test_the_curve_rises_to_what_the_file_reaches_and_finds_the_smallest_change(work: Path) -> None:
    found = evaluated(mafl("evaluate", work / "fooled", "-m", work / "model.ts", "--json", "-", "--curve"))
    case = found["cases"][0]
    points, smallest = case["curve"]["points"], case["curve"]["smallest_at_goal"]
    size = case["metrics"]["size"]
    assert points[0] == {
        "scale": 0.0, "linf_share": 0.0, "linf_native": 0.0, "l2_model": 0.0,
        "psnr_db": {"value": None, "reason": "identical"},
        "target_iou": case["metrics"]["clean"]["target_iou"], "hit_rate": {"value": 0.0},
    }  # fmt: skip
    assert points[-1]["hit_rate"] == case["metrics"]["post_write"]["hit_rate"]
    assert points[-1]["linf_native"] == pytest.approx(size["linf"]["native"])
    assert points[-1]["psnr_db"]["value"] == pytest.approx(size["psnr_db"]["value"])
    # A network that is a threshold needs nearly all of the smallest change that was found.
    assert 0.9 < smallest["value"] <= 1
    assert smallest["psnr_db"]["value"] >= size["psnr_db"]["value"]
    assert found["aggregate"]["figures"]["psnr_at_goal"]["mean"] == smallest["psnr_db"]["value"]


def test_runs_of_one_scan_with_different_budgets_are_one_curve(work: Path, tmp_path: Path) -> None:
    for name in ("fooled", "held"):
        shutil.copytree(work / name, tmp_path / name)
    found = evaluated(mafl("evaluate", tmp_path, "-m", work / "model.ts", "--json", "-", "--curve"))
    fooled, held = (case["curve"] for case in found["cases"])
    assert fooled["runs"] == held["runs"] == 2
    assert fooled["area"] == held["area"]
    alone = evaluated(mafl("evaluate", work / "fooled", "-m", work / "model.ts", "--json", "-", "--curve"))
    assert fooled["area"]["hit_rate"]["value"] >= alone["cases"][0]["curve"]["area"]["hit_rate"]["value"]


def test_the_smallest_change_of_a_lower_goal_is_no_answer_to_a_higher_one(work: Path, tmp_path: Path) -> None:
    assert attack(work, "model.ts", tmp_path / "easy", "--goal-iou", 0.5, "--goal-hit", 0.3).exit_code == 0
    shutil.copytree(work / "fooled", tmp_path / "strict")
    judged = ("-m", work / "model.ts", "--json", "-", "--curve")
    easy, strict = (case["curve"] for case in evaluated(mafl("evaluate", tmp_path, *judged))["cases"])
    alone = evaluated(mafl("evaluate", work / "fooled", *judged))["cases"][0]["curve"]
    assert strict["smallest_at_goal"] == alone["smallest_at_goal"]
    assert easy["smallest_at_goal"]["linf_share"] < strict["smallest_at_goal"]["linf_share"]
    # The area asks for no goal.
    assert easy["area"] == strict["area"]


def test_the_detector_scores_each_changed_slice_in_both_scans(work: Path) -> None:
    found = evaluated(mafl("evaluate", work / "fooled", "-m", work / "model.ts", "--json", "-", "--detect"))
    changed = np.flatnonzero(load(work / "fooled" / "perturbation.nii.gz").any(axis=(0, 1)))
    names = ["blur", "entropy", "margin"]
    for detection, name in zip(found["cases"][0]["detection"], names, strict=True):
        assert detection["detector"] == name
        assert [sample["slice"] for sample in detection["samples"]] == changed.tolist()
    for detection in found["detection"]:
        assert detection["n"] == len(changed)
        assert 0 <= detection["auc"]["value"] <= 1


def test_trials_need_the_attacked_model(work: Path) -> None:
    result = mafl("evaluate", work / "fooled", "--curve")
    assert result.exit_code == 2
    assert "give model.ts as --model" in result.stderr


# --- the verdict --------------------------------------------------------------------------------------------------


def test_a_gate_passes_the_model_that_holds_and_fails_the_one_that_is_fooled(work: Path, tmp_path: Path) -> None:
    gate = ("-m", work / "model.ts", "--fail-if", "hit_rate > 0.5", "--junit", tmp_path / "junit.xml")
    held = mafl("evaluate", work / "held", *gate)
    assert held.exit_code == 0, held.stderr
    assert "PASS  fail if hit_rate > 0.5: hit_rate is 0.0" in held.stdout
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "0"

    fooled = mafl("evaluate", work / "fooled", *gate)
    assert fooled.exit_code == 5
    assert (
        fooled.stderr.strip().splitlines()[-1].startswith("mafl: 1 of 1 gates failed: fail if hit_rate > 0.5: hit_rate")
    )
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suite.get("failures") == "1"
    assert suite.find("testsuite/testcase/failure").get("message").startswith("observed ")


def test_several_runs_fail_for_the_worst_and_may_pass_for_the_mean(work: Path, tmp_path: Path) -> None:
    for name in ("fooled", "held"):
        shutil.copytree(work / name, tmp_path / "runs" / name)
    result = mafl(
        "evaluate", tmp_path / "runs", "-m", work / "model.ts", "--fail-if", "hit_rate > 0.9", "--fail-if",
        "mean(hit_rate) > 0.9", "--json", "-",
    )  # fmt: skip
    worst, mean = evaluated(result, code=5)["gates"]
    assert (worst["status"], mean["status"]) == ("fail", "pass")
    assert [each["status"] for each in worst["cases"]] == ["fail", "pass"]


def test_what_is_not_known_fails(work: Path, tmp_path: Path) -> None:
    result = mafl("evaluate", work / "held", "-m", work / "model.ts", "--fail-if", "dice_drop > 0.1")
    assert result.exit_code == 5
    assert "needs a ground truth" in result.stderr

    shutil.copytree(work / "held", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["cases"][0]["attack"]["outcome"] = Outcome.NO_GRADIENT.value
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    result = mafl("evaluate", tmp_path / "run", "--fail-if", "hit_rate > 0.5")
    assert result.exit_code == 5
    assert "the attack found no gradient, so the model was not tested" in result.stderr


def test_an_outcome_that_no_attack_has_is_bad_input(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "held", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["cases"][0]["attack"]["outcome"] = "Fine."
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    result = mafl("evaluate", tmp_path / "run", "--fail-if", "hit_rate > 0.5")
    assert result.exit_code == 3
    assert "cases[0].attack.outcome" in result.stderr


def test_a_scan_that_was_not_changed_proves_nothing(work: Path) -> None:
    result = mafl(
        "evaluate", "--original", work / "scan.nii.gz", "--adversarial", work / "scan.nii.gz", "--target",
        work / "mask.nii.gz", "--model", work / "model.ts", "--fail-if", "hit_rate > 0.5",
    )  # fmt: skip
    assert result.exit_code == 5
    assert "the adversarial scan is the original, so the model was not tested" in result.stderr


@pytest.mark.parametrize("other", [("--intensity", "window:-2,1"), ("-m", "other")], ids=str)
def test_what_was_not_attacked_like_this_proves_nothing(work: Path, other: tuple[str, str]) -> None:
    judge = work / f"{other[1]}.ts" if other[0] == "-m" else work / "model.ts"
    more = () if other[0] == "-m" else other
    result = mafl("evaluate", work / "fooled", "-m", judge, *more, "--fail-if", "psnr_db > 1000")
    assert result.exit_code == 5
    assert "so it is not what was attacked" in result.stderr


def test_no_run_is_passed_over_behind_a_link_or_without_its_report(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "held", tmp_path / "runs" / "a")
    (tmp_path / "runs" / "b").symlink_to(work / "fooled", target_is_directory=True)
    shutil.copytree(work / "held", tmp_path / "runs" / "c")
    (tmp_path / "runs" / "c" / "report.json").unlink()
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs", target_is_directory=True)
    found = evaluated(mafl("evaluate", tmp_path / "runs", "--fail-if", "hit_rate > 0.5", "--json", "-"), code=5)
    assert [(case["case_id"], case["status"]) for case in found["cases"]] == [
        ("scan (a)", "ok"), ("scan (fooled)", "ok"), ("c", "failed"),
    ]  # fmt: skip


def test_a_folder_that_cannot_be_looked_into_is_not_passed_over(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("held", "locked"):
        shutil.copytree(work / "held", tmp_path / "runs" / name)
    scandir = os.scandir

    def locked(path: Path | str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    result = mafl("evaluate", tmp_path / "runs", "-m", work / "model.ts", "--fail-if", "hit_rate > 0.5")
    assert result.exit_code == 5
    assert "cannot be measured, so it fails: locked: locked: cannot be read (Permission denied)." in result.stderr
    result = mafl("evaluate", tmp_path / "runs" / "locked", "--fail-if", "hit_rate > 0.5")
    assert (result.exit_code, result.stderr) == (3, "mafl: locked: cannot be read (Permission denied).\n")


def test_a_case_that_cannot_be_read_fails_the_gate(work: Path, tmp_path: Path) -> None:
    for name in ("held", "broken"):
        shutil.copytree(work / "held", tmp_path / "runs" / name)
    (tmp_path / "runs" / "broken" / "adversarial.nii.gz").write_bytes(b"nothing")
    assert mafl("evaluate", tmp_path / "runs").exit_code == 6
    result = mafl("evaluate", tmp_path / "runs", "--fail-if", "hit_rate > 0.5", "--junit", tmp_path / "junit.xml")
    assert result.exit_code == 5
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("errors") == "1"


def test_gates_come_from_a_file_too(work: Path, tmp_path: Path) -> None:
    (tmp_path / "gates.toml").write_text('[gates]\nmoved = "hit_rate > 0.5"\nvisible = "psnr_db < 10"\n')
    judge = ("-m", work / "model.ts", "--json", "-")
    found = evaluated(mafl("evaluate", work / "fooled", "--gates", tmp_path / "gates.toml", *judge), code=5)
    assert [(gate["name"], gate["status"]) for gate in found["gates"]] == [("moved", "fail"), ("visible", "pass")]


@pytest.mark.parametrize(
    ("given", "said", "code"),
    [
        (["{run}", "--fail-if", "target_io > 0.5"], "the figure 'target_io' does not exist: use target_iou", 2),
        (["{run}", "--fail-if", "fooled"], "is not understood: write FIGURE > NUMBER", 2),
        (["{run}", "--transform", "jpg"], "--transform 'jpg' is not known: use all, blur", 2),
        (["{run}", "--gates", "{scan}"], "scan.nii.gz: is not TOML", 3),
        (["{run}", "--original", "{scan}"], "with RUN, leave out --original", 2),
        (["--original", "{scan}", "--target", "{mask}"], "--adversarial missing", 2),
        ([], "give RUN, or all of --original, --adversarial and --target", 2),
        (["{run}", "--json", "-", "--csv", "-"], "must be different files", 2),
        (["{run}", "--json", "{run}/x", "--csv", "{run}/../fooled/x"], "must be different files", 2),
        (["{run}", "--junit", "{run}/none/j.xml"], "--junit: the folder of this file does not exist", 2),
        (["{run}", "--csv", "{run}/.."], "cannot be written to (Is a directory); choose another name.", 2),
        (["{run}", "--ground-truth", "{run}"], "holds no mask named scan", 3),
        (["{run}", "--model", "{mask}"], "mask.nii.gz", 4),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(work: Path, given: list[str], said: str, code: int) -> None:
    names = {"run": work / "fooled", "scan": work / "scan.nii.gz", "mask": work / "mask.nii.gz"}
    result = mafl("evaluate", "-q", *(part.format(**names) for part in given))
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--target", "small.nii.gz", "Resample small.nii.gz to the grid of"),
        ("--target", "percent.nii.gz", "1 class 1: give a mask with the model's class numbers."),
        ("--ground-truth", "small.nii.gz", "Resample small.nii.gz to the grid of"),
        ("--ground-truth", "percent.nii.gz", "1 class 1: give a mask with the model's class numbers."),
        ("--original", "mask.nii.gz,mask.nii.gz", "give the files of all channels in this order, separated by commas"),
    ],
)
def test_no_advice_names_an_option_of_another_command(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    mask = load(work / "mask.nii.gz")
    for name, array in (("mask", mask), ("small", mask[:-2]), ("percent", mask * 255)):
        save(Path(f"{name}.nii.gz"), array)
    given = {"--original": "mask.nii.gz", "--target": "mask.nii.gz", "--model": work / "model.ts", option: value}
    given["--adversarial"] = given["--original"]
    result = mafl("evaluate", "-q", *(part for each in given.items() for part in each))
    assert result.exit_code == 3
    assert said in result.stderr
    known = mafl("evaluate", "--help-all").stdout
    assert [word for word in re.findall(r"--[a-z-]+", result.stderr) if word not in known] == []


def test_in_a_github_job_the_page_gets_the_verdict_and_the_log_an_annotation(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "summary.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = mafl("evaluate", work / "fooled", "-m", work / "model.ts", "--fail-if", "hit_rate > 0.5", "--json", "-")
    evaluated(result, code=5)
    assert page.read_text().startswith("before\n# Robustness of model.ts\n\n**FAILED**: 1 of 1 gates failed.")
    assert "::error title=hit_rate > 0.5::hit_rate is " in result.stderr


def test_the_card_names_what_was_judged_and_what_that_does_not_say(work: Path) -> None:
    result = mafl(
        "evaluate", work / "fooled", "-m", work / "model.ts", "-m", work / "other.ts", "--card", "-", "--transform",
        "blur:1", "--detect", "--curve", "--fail-if", "ssim < 0.1",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    headings = [line for line in result.stdout.splitlines() if line.startswith("#")]
    assert headings == [
        "# Robustness of model.ts", "## The attack", "## Gates", "## Results", "## What became of the body",
        "## Transfer", "## Survival", "## Detection", "## Cases", "## Models", "## Limits",
    ]  # fmt: skip
    assert "**PASSED**" in result.stdout


def test_success_can_be_required_of_an_attack(work: Path) -> None:
    result = attack(work, "model.ts", "required", "--eps", 0.01, "--require-success")
    assert result.exit_code == 5
    assert "the goal was not reached" in result.stderr
    assert (work / "required" / "report.json").is_file()
    assert attack(work, "model.ts", "required", "--overwrite", "--require-success").exit_code == 0
