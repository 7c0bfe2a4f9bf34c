"""Reports as typed records: one way to JSON and back, and a schema that is made of the types."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
import write_schemas
from commands import Threshold, mafl, scan_array

from mafl_cli.errors import InputError
from mafl_cli.results import report
from mafl_cli.system import records


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("records")
    torch.jit.trace(Threshold(2), torch.zeros(1, 1, 24, 20)).save(str(work / "model.ts"))
    nib.save(nib.Nifti1Image(scan_array((24, 20, 3)), np.eye(4)), work / "scan.nii.gz")
    done = mafl(
        "attack", work / "scan.nii.gz", "--target", "erase:1", "-m", work / "model.ts", "-o", work / "out",
        "--steps", 3, "--device", "cpu", "--intensity", "none",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return dict(json.loads((work / "out" / "report.json").read_text(encoding="utf-8")))


def test_a_report_is_the_same_after_json_and_back(whole: dict[str, Any]) -> None:
    found = records.read(report.Report, whole, "report.json")
    assert records.plain(found) == whole
    assert json.loads(records.to_json(found)) == whole


def test_a_report_fits_its_schema(whole: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(json.loads(report.SCHEMA.read_text(encoding="utf-8"))).validate(whole)


@pytest.mark.parametrize("path", write_schemas.KINDS, ids=lambda path: path.name)
def test_each_schema_is_that_of_the_types(path: Path) -> None:
    schema = records.schema(write_schemas.KINDS[path])
    assert json.loads(path.read_text(encoding="utf-8")) == schema, "run python tools/write_schemas.py"


def at(found: Any, *keys: str | int) -> Any:
    for key in keys:
        found = found[key]
    return found


CASE = ("cases", 0)
POST = (*CASE, "metrics", "post_write")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda found: found.update(more=1), "more: unexpected"),
        (lambda found: at(found, *POST).update(more=1), r"cases\[0\]\.metrics\.post_write\.more"),
        (lambda found: at(found, *POST).pop("hit_rate"), r"post_write\.hit_rate: field required"),
        (lambda found: at(found, *POST).update(accuracy=1.5), r"post_write\.accuracy: .*less than or equal to 1"),
        (lambda found: at(found, *POST).update(accuracy="1"), r"post_write\.accuracy: .*valid number"),
        (lambda found: at(found, *POST).update(changed_voxels=-1), r"changed_voxels: .*greater than or equal to 0"),
        (lambda found: at(found, *POST).update(target_iou={"value": None}), r"target_iou: value must be a number"),
        (lambda found: at(found, *POST, "hit_rate").update(reason="both_empty"), r"hit_rate: value must be"),
        (lambda found: at(found, *CASE, "attack").update(outcome="The goal was reached."), r"attack\.outcome"),
        (lambda found: at(found, *CASE, "attack", "trace", "loss").append(1.0), r"trace: its lists must be equally"),
        (lambda found: at(found, *CASE, "inputs", 0).update(sha256="x"), r"inputs\[0\]\.sha256"),
        (lambda found: at(found, "run", "settings").update(norm="l7"), "norm"),
        (lambda found: at(found, "run", "settings").update(steps=1.5), r"run\.settings\.steps"),
    ],
)
def test_what_is_not_as_the_types_say_is_bad_input_with_its_place(
    whole: dict[str, Any], damage: Callable[[Any], object], said: str
) -> None:
    found = copy.deepcopy(whole)
    damage(found)
    with pytest.raises(InputError, match=f"^report.json.*{said}"):
        records.read(report.Report, found, "report.json")


def test_help_pays_for_no_library_of_records() -> None:
    code = "import sys, mafl_cli.results.report; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parent).returncode == 0
