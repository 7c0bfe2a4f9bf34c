"""Every way to say which cases a batch has: what comes of it, and what is said when nothing does."""

from __future__ import annotations

import csv
import io
import json
import os
import string
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicoms import write_ct
from hypothesis import given, settings
from hypothesis import strategies as st

from mafl_cli.errors import InputError
from mafl_cli.listing import folders
from mafl_cli.listing.cases import CaseFiles, find, is_batch
from mafl_cli.names import distinct_ids

UID = "1.2.840.113619.2.55.3.604688119"


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def series(folder: Path, slices: int = 1, **changes: Any) -> Path:
    write_ct(folder, np.zeros((2, 2, slices), np.int16), np.eye(4), **changes)
    return folder


def ids(found: Sequence[CaseFiles]) -> list[str]:
    return [each.case_id for each in found]


def shown(found: Sequence[CaseFiles], base: Path) -> dict[str, list[str]]:
    """Images by case, as names below a folder."""
    return {each.case_id: [path.relative_to(base).as_posix() for path in each.images] for each in found}


def problems(found: Sequence[CaseFiles]) -> list[str]:
    return [each.problem for each in found if each.problem is not None]


def refusal(*sources: str | Path, **options: Any) -> str:
    """The one sentence, which names no folder."""
    with pytest.raises(InputError) as caught:
        find([str(source) for source in sources], **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(Path(tempfile.gettempdir())) not in message
    assert UID not in message
    return message


def table(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


# --- what is no batch ---------------------------------------------------------------------------------------------


def test_what_one_attack_takes_is_no_batch(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "c_0000.nii.gz", "z.zip", "empty/.keep")
    series(tmp_path / "series", 2)
    series(tmp_path / "patient" / "series")
    for one, number in (("head", 1), ("body", 2)):
        series(tmp_path / "study" / one, StudyInstanceUID=f"{UID}.1", SeriesInstanceUID=f"{UID}.2.{number}")
    singles = ["a.nii.gz", "c_0000.nii.gz", "z.zip", "series", "series/IM0000", "patient", "study", "empty", "absent"]
    for single in singles:
        assert not is_batch([str(tmp_path / single)]), single
    assert not is_batch([])
    assert not is_batch(["x" * 5000])
    # As one of several sources, each of them is a case.
    for single in ("a.nii.gz", "c_0000.nii.gz", "series", "patient", "study"):
        assert len(find([str(tmp_path / single)])) == 1


def test_a_series_with_its_conversion_beside_it_is_still_that_series(tmp_path: Path) -> None:
    touch(series(tmp_path / "s", 2), "converted.nii.gz", "converted.json")
    assert not is_batch([str(tmp_path / "s")])


def test_what_is_a_batch(tmp_path: Path) -> None:
    touch(tmp_path, "niftis/a.nii", "zips/a.zip", "list.csv", "list.TSV", "l.jsonl", "d.json", "deep/p1/a.nii.gz")
    series(tmp_path / "many" / "p1")
    series(tmp_path / "many" / "p2")
    for source in (
        "niftis",
        "zips",
        "list.csv",
        "list.TSV",
        "l.jsonl",
        "d.json",
        "deep",
        "many",
        "*.nii",
        "ab[12].nii",
    ):
        assert is_batch([str(tmp_path / source)]), source
    assert is_batch(["-"])
    assert is_batch(["a.nii.gz", "b.nii.gz"])


# --- files and patterns -------------------------------------------------------------------------------------------


def test_files_in_natural_order_with_their_channels(tmp_path: Path) -> None:
    touch(tmp_path, "c10_0000.nii.gz", "c2_0001.nii.gz", "c2_0000.nii.gz", "c10_0001.nii.gz", "b.nii", "other.nii")
    given_files = [str(tmp_path / name) for name in ("c10_0000.nii.gz", "c2_0000.nii.gz", "b.nii")]
    assert shown(find(given_files), tmp_path) == {
        "b": ["b.nii"],
        "c2": ["c2_0000.nii.gz", "c2_0001.nii.gz"],
        "c10": ["c10_0000.nii.gz", "c10_0001.nii.gz"],
    }


def test_a_pattern_brings_the_other_channels_and_passes_over_what_is_no_scan(tmp_path: Path) -> None:
    touch(tmp_path, "x/c1_0000.nii.gz", "x/c1_0001.nii.gz", "x/readme", "x/._c1_0000.nii.gz", "x/notes.txt")
    for pattern in ("x/*_0000.nii.gz", "x/*.nii.gz", "x/*", "**/*"):
        assert shown(find([str(tmp_path / pattern)]), tmp_path) == {"c1": ["x/c1_0000.nii.gz", "x/c1_0001.nii.gz"]}


def test_numbers_without_a_0000_are_no_channels(tmp_path: Path) -> None:
    touch(tmp_path, "case_0001.nii.gz", "case_0002.nii.gz", "case_0010.nii.gz")
    assert ids(find([str(tmp_path)])) == ["case_0001", "case_0002", "case_0010"]
    touch(tmp_path, "case_0000.nii.gz")
    assert ids(find([str(tmp_path / "*_0001*")])) == ["case_0001"]


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].nii.gz", "a1.nii.gz")
    assert not is_batch([str(tmp_path / "a[1].nii.gz")])
    assert shown(find([str(tmp_path / "a[1].nii.gz")]), tmp_path) == {"a[1]": ["a[1].nii.gz"]}


def test_scans_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    touch(tmp_path, "p2/anat/t1.nii.gz", "p10/anat/t1.nii.gz", "masks/p2_anat.nii.gz")
    found = find([str(tmp_path / "p*/anat/t1.nii.gz")], target=str(tmp_path / "masks"))
    assert ids(found) == ["p2_anat_t1", "p10_anat_t1"]
    assert found[0].targets == (tmp_path / "masks" / "p2_anat.nii.gz",)
    assert problems(found) == ["p10_anat_t1: there is no mask with this name in masks."]


def test_a_pattern_of_folders_takes_those_that_are_one_scan(tmp_path: Path) -> None:
    series(tmp_path / "p1" / "s", 2)
    series(tmp_path / UID)
    touch(tmp_path, "niftis/a.nii.gz", "docs/readme.txt")
    assert shown(find([str(tmp_path / "*")]), tmp_path) == {"dicom": [UID], "p1": ["p1"]}
    # With the files of a series in reach, its folder counts.
    assert ids(find([str(tmp_path / "p1" / "**")])) == ["p1"]
    assert len(find([str(tmp_path / "p1" / "s" / "IM*")])) == 2


def test_what_does_not_exist_or_is_no_scan_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "notes.txt", "empty/.keep", "deep/p1/x/a.nii.gz")
    assert refusal(tmp_path / "a.nii.gz", tmp_path / "absent.nii.gz").startswith("absent.nii.gz: there is no such")
    assert refusal(tmp_path / "a.nii.gz", tmp_path / "notes.txt").startswith("notes.txt: is neither a scan")
    assert refusal(tmp_path / "empty") == "empty: holds no scan (.nii, .nii.gz, or DICOM)."
    assert "'deep/*/*/*.nii.gz'" in refusal(tmp_path / "deep")
    assert refusal(tmp_path / UID / "*.nii").startswith("no scan fits the pattern *.nii:")
    assert refusal(tmp_path / UID).startswith("dicom: there is no such")
    assert refusal().startswith("no cases: give scans")


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_folder_of_nifti(tmp_path: Path) -> None:
    touch(tmp_path, "c10.nii.gz", "c2.nii", "C3.NII.GZ", ".hidden.nii.gz", "._c2.nii", "c2.json", "labels/c2.nii.gz")
    assert shown(find([str(tmp_path)]), tmp_path) == {"c2": ["c2.nii"], "C3": ["C3.NII.GZ"], "c10": ["c10.nii.gz"]}


def test_channels_that_are_missing_or_there_twice_are_the_problem_of_their_case(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz", "c_0000.nii.gz", "c_0003.nii.gz")
    touch(tmp_path, "d_0000.nii.gz", "d_0000.nii", "e.nii.gz")
    found = find([str(tmp_path)])
    assert ids(found) == ["a", "b", "c", "d", "e"]
    assert problems(found) == [
        "b: channel 0000 is missing.",
        "c: channels 0001, 0002 are missing.",
        "d: channel 0000 is there twice; keep one file of it.",
    ]


def test_a_folder_of_dicom_folders(tmp_path: Path) -> None:
    for name in ("p10", "p2"):
        series(tmp_path / name / "study" / "series")
    series(tmp_path / ".half")
    touch(tmp_path, "notes/readme.txt", "p2/report.pdf", "DICOMDIR")
    (tmp_path / "p3").mkdir()
    found = find([str(tmp_path)])
    assert shown(found, tmp_path) == {"p2": ["p2"], "p3": ["p3"], "p10": ["p10"]}
    assert problems(found) == ["p3: the folder is empty."]


def test_dicom_without_a_study_is_a_case_each(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        series(tmp_path / name, StudyInstanceUID="")
    assert ids(find([str(tmp_path)])) == ["p1", "p2"]
    for name in ("p3", "p4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "damaged").write_bytes(bytes(128) + b"DICM" + b"\xff" * 9)
    assert ids(find([str(tmp_path)])) == ["p1", "p2", "p3", "p4"]


def test_nifti_zip_and_dicom_folders_in_one_folder(tmp_path: Path) -> None:
    series(tmp_path / "p1")
    touch(tmp_path, "p2.nii.gz", "p3.zip")
    assert shown(find([str(tmp_path)]), tmp_path) == {"p1": ["p1"], "p2": ["p2.nii.gz"], "p3": ["p3.zip"]}


def test_uids_are_never_shown(tmp_path: Path) -> None:
    masks = touch(tmp_path / "masks", f"{UID}.2.nii.gz")
    for number in (10, 2):
        series(tmp_path / "data" / f"{UID}.{number}")
    found = find([str(tmp_path / "data")], target=str(masks))
    assert [each.images[0].name for each in found] == [f"{UID}.2", f"{UID}.10"]
    assert ids(found) == ["dicom", "dicom-2"]
    assert found[0].targets == (masks / f"{UID}.2.nii.gz",)
    assert problems(found) == ["dicom-2: there is no mask with this name in masks."]
    manifest = table(tmp_path / f"{UID}.csv", f"case,image\n{UID},{UID}.nii\n{UID},b.nii\n")
    assert refusal(manifest).startswith("dicom.csv: the case dicom stands in lines 2 and 3;")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs folders that can be locked")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    locked = touch(tmp_path / "locked", "a.nii.gz")
    locked.chmod(0)
    try:
        assert refusal(locked) == "locked: cannot be read (Permission denied)."
    finally:
        locked.chmod(0o755)


# --- data sets ----------------------------------------------------------------------------------------------------


def dataset(folder: Path, facts: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def test_nnunet_2(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz", "labels": {}})
    touch(folder, *(f"imagesTr/case_{n}_000{channel}.nii.gz" for n in (1, 10, 2) for channel in (0, 1)))
    touch(folder, "labelsTr/case_1.nii.gz", "labelsTr/case_2.nii.gz", "imagesTr/case_3_0000.nii.gz")
    for source in (folder, folder / "dataset.json"):
        found = find([str(source)])
        assert is_batch([str(source)])
        assert ids(found) == ["case_1", "case_2", "case_3", "case_10"]
        assert found[0].ground_truth == folder / "labelsTr" / "case_1.nii.gz"
        assert found[3].ground_truth is None
        assert problems(found) == ["case_3: channel 0001 is missing."]
    touch(folder, "imagesTs/new_0000.nii.gz", "imagesTs/new_0001.nii.gz", "imagesTs/new_0002.nii.gz")
    touch(folder, "labelsTs/new.nii.gz")
    (new,) = find([str(folder)])
    assert new.ground_truth == folder / "labelsTs" / "new.nii.gz"
    assert new.problem == "new: has 3 channels, but the data set 2."


def test_nnunet_2_with_its_own_list(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a1.nii.gz", "elsewhere/a2.nii.gz", "elsewhere/a_seg.nii.gz")
    listed = {
        "a": {"images": ["../elsewhere/a1.nii.gz", "../elsewhere/a2.nii.gz"], "label": "../elsewhere/a_seg.nii.gz"}
    }
    folder = dataset(
        tmp_path / "d", {"channel_names": {"0": "x", "1": "y"}, "file_ending": ".nii.gz", "dataset": listed}
    )
    (case,) = find([str(folder)])
    assert case.case_id == "a"
    assert [path.name for path in case.images] == ["a1.nii.gz", "a2.nii.gz"]
    assert case.ground_truth == folder / "../elsewhere/a_seg.nii.gz"
    assert case.problem is None


def test_nnunet_1_lists_names_without_channels(tmp_path: Path) -> None:
    facts = {
        "modality": {"0": "T1", "1": "T2"},
        "training": [{"image": f"./imagesTr/p{n}.nii.gz", "label": f"./labelsTr/p{n}.nii.gz"} for n in (10, 2, 3)],
        "test": [],
    }
    folder = dataset(tmp_path, facts)
    touch(folder, *(f"imagesTr/p{n}_000{channel}.nii.gz" for n in (10, 2) for channel in (0, 1)))
    touch(folder, "labelsTr/p2.nii.gz")
    found = find([str(folder)])
    assert ids(found) == ["p2", "p3", "p10"]
    assert [path.name for path in found[0].images] == ["p2_0000.nii.gz", "p2_0001.nii.gz"]
    assert found[0].ground_truth == folder / "labelsTr" / "p2.nii.gz"
    assert problems(found) == ["p3: p3.nii.gz is not there."]


def test_a_folder_of_nnunet_without_its_json(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (case,) = find([str(tmp_path)])
    assert case.ground_truth == tmp_path / "labelsTr" / "a.nii.gz"


def test_predictions_of_nnunet_are_no_data_set(tmp_path: Path) -> None:
    dataset(tmp_path, {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    touch(tmp_path, "a.nii.gz", "plans.json")
    assert ids(find([str(tmp_path)])) == ["a"]


def decathlon(folder: Path) -> Path:
    training = [{"image": f"./imagesTr/liver_{n}.nii.gz", "label": f"./labelsTr/liver_{n}.nii.gz"} for n in (10, 9)]
    return dataset(
        folder,
        {"modality": {"0": "CT"}, "tensorImageSize": "3D", "training": training, "test": ["./imagesTs/t.nii.gz"]},
    )


def test_the_decathlon(tmp_path: Path) -> None:
    folder = decathlon(tmp_path)
    touch(folder, "imagesTr/liver_9.nii.gz", "imagesTr/._liver_9.nii.gz", "labelsTr/liver_9.nii.gz")
    found = find([str(folder / "dataset.json")])
    assert ids(found) == ["liver_9", "liver_10"]
    assert found[0].ground_truth == folder / "labelsTr" / "liver_9.nii.gz"
    assert problems(found) == ["liver_10: liver_10.nii.gz is not there."]
    touch(folder, "imagesTs/t.nii.gz")
    assert shown(find([str(folder)]), folder) == {"t": ["imagesTs/t.nii.gz"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged: it is not JSON"),
        ("[" * 100_000, "is damaged: it is not JSON"),
        ("[]", "is damaged: it is not a JSON object"),
        ('{"a": 1}', "is not a data set of nnU-Net"),
        ('{"channel_names": {"0": "x"}, "file_ending": ".nrrd"}', "end in .nrrd"),
        ('{"channel_names": {"0": "x"}, "file_ending": []}', "end in []"),
        ('{"channel_names": {"0": "x"}}', "none of its cases is there"),
        ('{"training": [{"label": "x"}]}', "is damaged: a case has no images"),
        ('{"training": [["x", 3]]}', "is damaged: a case has no images"),
        ('{"dataset": {"x": 3}}', "is damaged: a case has no images"),
        ('{"dataset": {"x": {"images": []}}}', "is damaged: a case has no images"),
        ('{"training": 7, "modality": 3}', "none of its cases is there"),
    ],
)
def test_a_dataset_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    message = refusal(table(tmp_path / "dataset.json", text))
    assert message.startswith("dataset.json: ")
    assert said in message


# --- BIDS ---------------------------------------------------------------------------------------------------------


def test_bids(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "bids",
        "dataset_description.json",
        "sub-10/anat/sub-10_T1w.nii.gz",
        "sub-2/ses-1/anat/sub-2_ses-1_T1w.nii.gz",
        "sub-2/ses-1/anat/sub-2_ses-1_T1w.json",
        "sub-2/ses-1/anat/sub-2_ses-1_desc-brain_mask.nii.gz",
        "sub-2/ses-1/anat/sub-2_ses-1_dseg.nii.gz",
        "sub-2/ses-2/func/sub-2_ses-2_bold.nii.gz",
        "derivatives/x/sub-10/anat/sub-10_T1w.nii.gz",
        "sourcedata/sub-10/anat/sub-10_T1w.nii.gz",
    )
    masks = touch(tmp_path / "masks", "sub-2_ses-1.nii.gz", "sub-10_T1w.nii.gz")
    assert is_batch([str(root)])
    found = find([str(root)], target=str(masks))
    assert ids(found) == ["sub-2_ses-1_T1w", "sub-10_T1w"]
    assert [each.targets[0].name for each in found] == ["sub-2_ses-1.nii.gz", "sub-10_T1w.nii.gz"]


def test_bids_with_several_images_asks_for_one(tmp_path: Path) -> None:
    root = touch(tmp_path / "bids", "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_FLAIR.nii.gz")
    assert len(find([str(root)])) == 2
    touch(root, "sub-2/anat/sub-2_T1w.nii.gz")
    message = refusal(root)
    assert "sub-2 (in all: FLAIR, T1w)" in message
    assert "'bids/sub-*/anat/*_FLAIR.nii.gz'" in message
    assert ids(find([str(root / "sub-*" / "anat" / "*_T1w.nii.gz")])) == ["sub-1_T1w", "sub-2_T1w"]
    root = touch(tmp_path / "b", *(f"sub-1/ses-a/anat/sub-1_ses-a_run-{run}_T1w.nii" for run in (1, 2)))
    assert "'b/sub-*/ses-*/anat/*_run-1_T1w.nii'" in refusal(root)


# --- manifests ----------------------------------------------------------------------------------------------------


def test_a_manifest_with_everything(tmp_path: Path) -> None:
    touch(
        tmp_path, "i/a0.nii", "i/a1.nii", "m/a.nii", "m/b1.nii", "m/b2.nii", "g.nii", "h.nii", "i/b 0.nii", "i/b1.nii"
    )
    text = (
        "\ufeffCase, Image,target,ground_truth,guide\r\n"
        '"a, first",i/a0.nii;i/a1.nii,m/a.nii,g.nii,g.nii;h.nii\r\n'
        "\r\n"
        ",,,,,,\r\n"
        "b,i/b 0.nii ; i/b1.nii,m/b1.nii;m/b2.nii,,\r\n"
        "c,i/c.nii,m/a.nii,,\r\n"
    )
    found = find([table(tmp_path / "list.csv", text)])
    assert found[0] == CaseFiles(
        case_id="a, first",
        images=(tmp_path / "i/a0.nii", tmp_path / "i/a1.nii"),
        targets=(tmp_path / "m/a.nii",),
        ground_truth=tmp_path / "g.nii",
        guides=(tmp_path / "g.nii", tmp_path / "h.nii"),
    )
    assert shown(found, tmp_path)["b"] == ["i/b 0.nii", "i/b1.nii"]
    assert [path.name for path in found[1].targets] == ["b1.nii", "b2.nii"]
    assert problems(found) == ["c: c.nii is not there."]


def test_columns_of_channels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n};x.nii" for n in range(12)))
    header = ["case", *(f"image_{n}" for n in (10, 11, *range(10)))]
    row = ["a", *(f"{n};x.nii" for n in (10, 11, *range(10)))]
    (case,) = find([table(tmp_path / "l.tsv", "\t".join(header) + "\n" + "\t".join(row))])
    assert [path.name for path in case.images] == [f"{n};x.nii" for n in range(12)]
    text = "case,channel:T2,channel:T1\na,0;x.nii,1;x.nii\nb,0;x.nii,\nc,,\n"
    found = find([table(tmp_path / "l.csv", text)])
    assert shown(found, tmp_path) == {"a": ["0;x.nii", "1;x.nii"], "b": ["0;x.nii"], "c": []}
    assert problems(found) == ["b: has no file for channel:T1.", "c: has no image."]


def test_json_lines(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b;c.nii", "d.nii")
    text = (
        '{"case": 7, "image": ["a.nii", "b;c.nii"], "target": "a.nii;d.nii"}\n\n'
        '{"case": "x\u2028y", "image": "d.nii", "target": null}\r\n'
    )
    found = find([table(tmp_path / "l.jsonl", text)])
    assert shown(found, tmp_path) == {"7": ["a.nii", "b;c.nii"], "x_y": ["d.nii"]}
    assert [path.name for path in found[0].targets] == ["a.nii", "d.nii"]
    lines = [{"case": "a", "channel:x": "a.nii", "channel:y": "d.nii"}]
    lines += [{"channel:y": "d.nii", "channel:x": "a.nii", "case": "b"}]
    text = "\n".join(map(json.dumps, lines))
    first, second = find([table(tmp_path / "l.ndjson", text)])
    assert first.images == second.images


@pytest.mark.parametrize(
    "text",
    [
        "case,image\na,a.nii\n",
        "case\timage\na\ta.nii\n",
        '\n{"case": "a", "image": "a.nii"}\n',
        "\ufeffcase,image\na,a.nii",
    ],
)
def test_standard_input_says_by_its_first_line_what_it_is(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(touch(tmp_path, "a.nii"))
    binary = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="latin-1")
    for stdin in (io.StringIO(text), binary):
        (case,) = find(["-"], stdin=stdin)
        assert case == CaseFiles(case_id="a", images=(Path("a.nii"),))
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert ids(find(["-"])) == ["a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "l.csv: is empty."),
        ("case,image\n", "l.csv: lists no cases."),
        ("case,target\n", "l.csv: has no column image; there may be"),
        ("image\n", "l.csv: has no column case; there may be"),
        ("case,image,age\n", "l.csv: unknown column age; there may be case, image (or image_0,"),
        ("p1,/home/doe/p1.nii\n", "l.csv: unknown column p1, p1.nii; there may be"),
        ("p1,C:\\doe\\p1.nii\n", "l.csv: unknown column p1, p1.nii; there may be"),
        ("case,image,/\n", "l.csv: unknown column (no name); there may be"),
        ("case,image,image_0\n", "l.csv: names images in several ways"),
        ("case,image_1,image_2\n", "must be image_0, image_1, ... without a gap"),
        ("case,image_0,image_00\n", "must be image_0, image_1, ... without a gap"),
        ("case,image,Image\n", "l.csv: has the column image twice."),
        ("case;image;age\n", "l.csv: unknown column age; there may be"),
        ("case\timage\tage\n", "l.csv: unknown column age; there may be"),
        ('# list\nsep=;\ncase;image\n"a;b.nii\n', "l.csv: line 4 cannot be read ("),
        ("case,image\na,b.nii,c.nii\n", "l.csv: line 2 has a cell under no column's name"),
        ("case,image\n\n,b.nii\n", "l.csv: line 3 names no case."),
        ("case,image\na,x;;y\n", "l.csv: line 2: image has an empty entry in its list, separated by semicolons."),
        ('case,image\n"a"b,x\n', "l.csv: line 2 cannot be read ("),
        ('case,image\n"a,x\n', "l.csv: line 2 cannot be read ("),
        ("case,image,target\na,x.nii,erase:1\n", "l.csv: line 2: the target is a recipe"),
        ("case,image,ground_truth\na,x.nii,y.nii;z.nii\n", "l.csv: line 2: ground_truth must be one file, got 2."),
        ("case,image\na,x.nii\nb,y.nii\na,z.nii\n", "l.csv: the case a stands in lines 2 and 4;"),
        ("case,image\ne\u0301,x.nii\n\u00e9,z.nii\n", "l.csv: the case \u00e9 stands in lines 2 and 3;"),
        ("case,image\na,x\0.nii\n", "l.csv: is not text in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(table(tmp_path / "l.csv", text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"case": "a"', "line 1 is not JSON."),
        ("[" * 100_000, "line 1 is not JSON."),
        ("[]", "line 1 is not a JSON object."),
        ('{"case": "a", "image": true}', "line 1: image must be a text"),
        ('{"case": "a", "image": ["a", ""]}', "line 1: image must be a text"),
        ('{"case": ["a"], "image": "a"}', "line 1: case must be a text"),
        ('{"case": "a", "image": "a", "age": 3}', "unknown column age"),
        ('{"case": "a", "image": "a", "Image": "b"}', "line 1 has a column twice."),
    ],
)
def test_json_lines_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(table(tmp_path / "l.jsonl", text))


@pytest.mark.parametrize(
    "text",
    [
        "case\timage\ttarget\na\ta, 1.nii;b.nii\tm.nii\n",
        'case;image;target\na;"a, 1.nii;b.nii";m.nii\n',
        'sep=;\r\ncase;image;target\r\na;"a, 1.nii;b.nii";m.nii\r\n',
        '"sep=\t"\n"case"\t"image"\t"target"\n"a"\t"a, 1.nii;b.nii"\t"m.nii"\n',
        'sep=,\ncase,image,target\na,"a, 1.nii;b.nii",m.nii\n',
        '\ufeff# from the PACS\n\n#\ncase,image,target\na,"a, 1.nii;b.nii",m.nii\n# the end\n#,,\n',
        'case,image,target\ra,"a, 1.nii;b.nii",m.nii\r',
        'case,image,target\na,".\\a, 1.nii;sub\\..\\b.nii",.\\m.nii\n',
    ],
    ids=["tabs", "semicolons", "sep=;", "sep=tab", "sep=,", "comments", "old-mac", "backslashes"],
)
@pytest.mark.parametrize("name", ["l.csv", "l.tsv"])
def test_tables_of_other_programs(tmp_path: Path, text: str, name: str) -> None:
    touch(tmp_path, "a, 1.nii", "b.nii", "m.nii", "sub/x.nii")
    (tmp_path / name).write_bytes(text.encode())
    (case,) = find([str(tmp_path / name)])
    assert case.problem is None
    assert [path.name for path in (*case.images, *case.targets)] == ["a, 1.nii", "b.nii", "m.nii"]


def test_a_case_may_be_called_like_a_comment(tmp_path: Path) -> None:
    touch(tmp_path, "#1.nii")
    found = find([table(tmp_path / "l.csv", "#case,image\ncase,image\n#1,#1.nii\n# a word,\n")])
    assert shown(found, tmp_path) == {"#1": ["#1.nii"]}


@pytest.mark.parametrize("kind", ["csv", "json", "dataset"])
def test_names_are_found_in_any_form_of_unicode(tmp_path: Path, kind: str) -> None:
    apart, joined = (unicodedata.normalize(form, "Größe/ä;ö.nii") for form in ("NFD", "NFC"))
    for there, named in ((apart, joined), (joined, apart)):
        folder = tmp_path / f"{kind}{there == apart}"
        touch(folder, there)
        if kind == "csv":
            source = table(folder / "l.csv", f"case,image\na,{named}\n")
        elif kind == "json":
            source = table(folder / "l.jsonl", json.dumps({"case": "a", "image": [named]}))
        else:
            source = table(folder / "dataset.json", json.dumps({"test": [named]}))
        (case,) = find([str(source)])
        assert case.images == (folder / there,)
        assert case.problem is None
    # Where both are there, each is itself.
    touch(folder, apart, joined)
    both = find([table(folder / "l.csv", f"case,image\na,{apart}\nb,{joined}\n")])
    assert [case.images for case in both] == [(folder / apart,), (folder / joined,)]


def test_what_is_there_under_a_name_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a;b.nii", "a", "b.nii", "x;y;z.nii", " c.nii", "erase:1")
    text = "case,image,target\n1,a;b.nii,\n2,a; b.nii,erase:1\n3,x;y;z.nii;a;b.nii;b.nii,\n4, c.nii,\n5, a,\n"
    found = find([table(tmp_path / "l.csv", text)])
    assert problems(found) == []
    assert shown(found, tmp_path) == {
        "1": ["a;b.nii"], "2": ["a", "b.nii"], "3": ["x;y;z.nii", "a;b.nii", "b.nii"], "4": [" c.nii"], "5": ["a"]
    }  # fmt: skip
    assert found[1].targets == (tmp_path / "erase:1",)


def test_a_manifest_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes("case,image\nä,b.nii".encode("utf-16"))
    assert refusal(tmp_path / "l.csv") == "l.csv: is not text in UTF-8; save it as UTF-8."
    (tmp_path / "l.csv").write_bytes("case,image\nä,b.nii".encode("latin-1"))
    assert refusal(tmp_path / "l.csv") == "l.csv: is not text in UTF-8; save it as UTF-8."


names = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufeff"), min_size=1, max_size=20
).filter(lambda text: text == text.strip())
paths = st.text(string.ascii_letters + string.digits + " ,'\"-äß%", min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)


@settings(max_examples=60)
@given(
    rows=st.dictionaries(
        names, st.tuples(st.lists(paths, min_size=1, max_size=3), paths | st.none()), min_size=1, max_size=5
    ),
    kind=st.sampled_from(["csv", "tsv", "jsonl"]),
    mark=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_manifests_say_what_was_written(rows: dict[str, Any], kind: str, mark: bool, end: str) -> None:
    rows = {unicodedata.normalize("NFC", name): row for name, row in rows.items()}
    if kind == "jsonl":
        lines = [{"case": name, "image": images, "target": target} for name, (images, target) in rows.items()]
        text = end.join(json.dumps(line, ensure_ascii=False) for line in lines)
    else:
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, delimiter="\t" if kind == "tsv" else ",", lineterminator=end)
        writer.writerow(["case", "image", "target"])
        writer.writerows([name, ";".join(images), target or ""] for name, (images, target) in rows.items())
        text = stream.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"list.{kind}"
        path.write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
        found = find([str(path)])
        for each, (images, target) in zip(found, rows.values(), strict=True):
            assert each.images == tuple(path.parent / image for image in images)
            assert each.targets == ((path.parent / target,) if target else ())
            assert each.problem is not None
            assert each.problem.startswith(each.case_id)


@settings(max_examples=60)
@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | st.text('case,image\n";a{}[]:', max_size=60).map(str.encode)
)
def test_no_manifest_breaks_the_reader(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("l.csv", "l.tsv", "l.jsonl", "dataset.json"):
            (Path(folder) / name).write_bytes(content)
            with suppress(InputError):
                find([str(Path(folder) / name)])


# --- masks --------------------------------------------------------------------------------------------------------


def test_each_case_gets_the_mask_with_its_name(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "a_0000.nii.gz", "b_0000.nii.gz", "c_0000.nii.gz", "d_0000.nii.gz", "e_0000.nii.gz")
    masks = touch(
        tmp_path / "masks",
        *("a.nii.gz", "b_0000.nii", "c_0000.nii.gz", "c_0001.nii.gz", "d.dcm", "d.json", "unused.nii.gz"),
    )
    found = find([str(data)], target=str(masks), ground_truth=masks)
    assert {each.case_id: [path.name for path in each.targets] for each in found} == {
        "a": ["a.nii.gz"],
        "b": ["b_0000.nii"],
        "c": ["c_0000.nii.gz", "c_0001.nii.gz"],
        "d": ["d.dcm"],
        "e": [],
    }
    assert [each.ground_truth for each in found[:2]] == [masks / "a.nii.gz", masks / "b_0000.nii"]
    assert problems(found) == [
        "c: there are several masks with this name in masks; the ground truth is one.",
        "e: there is no mask with this name in masks.",
    ]


def test_names_that_end_in_numbers_find_their_masks(tmp_path: Path) -> None:
    """nnU-Net's case_0000_0000.nii.gz is channel 0 of case_0000; a lone p_0001.nii.gz has a mask p.nii.gz."""
    data = touch(tmp_path / "data", "case_0000_0000.nii.gz", "case_0001_0000.nii.gz")
    masks = touch(tmp_path / "masks", "case_0000.nii.gz", "case_0001.nii.gz", "p.nii.gz")
    found = find([str(data)], target=str(masks))
    assert [each.targets for each in found] == [(masks / "case_0000.nii.gz",), (masks / "case_0001.nii.gz",)]
    touch(data, "p_0001.nii.gz")
    (single,) = find([str(data / "p_*")], target=str(masks))
    assert single.targets == (masks / "p.nii.gz",)


@pytest.mark.parametrize("target", ["erase:1", "mask.nii.gz", "seg", "absent", "a.nii,b.nii"])
def test_one_target_for_all(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(touch(tmp_path, "data/a.nii", "mask.nii.gz"))
    series(tmp_path / "seg")
    (case,) = find(["data"], target=target)
    assert case == CaseFiles(case_id="a", images=(Path("data/a.nii"),))


def test_dicom_masks_by_name(tmp_path: Path) -> None:
    masks = touch(series(tmp_path / "masks"), "b.json")
    (masks / "IM0000").rename(masks / "a.dcm")
    found = find([str(touch(tmp_path / "data", "a.nii", "b.nii"))], target=str(masks))
    assert found[0].targets == (masks / "a.dcm",)
    assert problems(found) == ["b: there is no mask with this name in masks."]


def test_a_manifest_wins_over_the_options_and_they_over_a_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "own.nii", "a.nii", "b.nii")
    masks = touch(tmp_path / "masks", "a.nii", "b.nii", "liver_9.nii.gz")
    manifest = table(tmp_path / "l.csv", "case,image,target,ground_truth\na,a.nii,own.nii,own.nii\nb,b.nii,,\n")
    first, second = find([manifest], target=str(masks), ground_truth=masks)
    assert (first.targets, first.ground_truth) == ((tmp_path / "own.nii",), tmp_path / "own.nii")
    assert (second.targets, second.ground_truth) == ((masks / "b.nii",), masks / "b.nii")
    folder = touch(decathlon(tmp_path / "d"), "imagesTr/liver_9.nii.gz", "labelsTr/liver_9.nii.gz")
    found = find([str(folder)], ground_truth=masks)
    assert found[0].ground_truth == masks / "liver_9.nii.gz"
    # The first thing that is wrong is said.
    assert problems(found) == ["liver_10: liver_10.nii.gz is not there."]


def test_a_mask_that_may_be_of_two_cases_is_nobodys(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.nii", "two/a.nii", "two/b.nii", "masks/a.nii", "masks/b.nii")
    found = find([str(tmp_path / "one"), str(tmp_path / "two")], target=str(tmp_path / "masks"))
    assert ids(found) == ["a", "a-2", "b"]
    why = "another case has this name, so its mask in masks may be either's; use a manifest."
    assert problems(found) == [f"a: {why}", f"a-2: {why}"]


def test_two_masks_of_one_name_are_not_those_of_two_regions(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.nii", "masks/a.nii", "masks/a.nii.gz")
    found = find([str(tmp_path / "data")], target=str(tmp_path / "masks"))
    assert problems(found) == ["a: there are several masks with this name in masks; keep one."]


def test_missing_files_are_named_without_their_folders(tmp_path: Path) -> None:
    text = "case,image\na,C:\\Users\\doe\\a.nii\nb,/home/doe/b.nii\n" + f"c,{UID}/{UID}.dcm\n"
    assert problems(find([table(tmp_path / "l.csv", text)])) == [
        "a: a.nii is not there.",
        "b: b.nii is not there.",
        "c: dicom.dcm is not there.",
    ]


def test_ground_truth_must_be_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.nii", "t.nii")
    for name in ("t.nii", "absent"):
        message = refusal(tmp_path / "data", ground_truth=tmp_path / name)
        assert message.startswith(f"`ground_truth` {name} is not a folder")


# --- several sources, and their names -----------------------------------------------------------------------------


def test_sources_of_all_kinds_together(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.nii", "one/b.nii", "x10.nii", "x9.nii", "glob/a.nii")
    series(tmp_path / "ct")
    manifest = table(tmp_path / "l.csv", "case,image\nz,x9.nii\na,x10.nii\n")
    sources = [
        tmp_path / "x10.nii",
        tmp_path / "x9.nii",
        tmp_path / "one",
        manifest,
        tmp_path / "ct",
        tmp_path / "gl*/*",
    ]
    found = find([str(source) for source in sources])
    assert ids(found) == ["x9", "x10", "a", "b", "z", "a-2", "ct", "a-3"]
    assert find([str(source) for source in sources]) == found


def test_a_scan_named_twice_is_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(touch(tmp_path, "a.nii", "b.nii"))
    assert ids(find(["a.nii", str(tmp_path), "*.nii", "a.nii"])) == ["a", "b"]
    # In a manifest, twice is meant twice.
    manifest = table(tmp_path / "l.csv", "case,image\nfirst,a.nii\nsecond,a.nii\n")
    assert ids(find([manifest, "a.nii"])) == ["first", "second", "a"]


def test_names_that_a_system_cannot_have(tmp_path: Path) -> None:
    odd = {
        "CON": "_CON",
        "Report.json": "_Report.json",
        "nul.nii": "_nul.nii",
        "lpt1": "_lpt1",
        "com¹": "_com¹",
        "a/b\\c": "a_b_c",
        'x<>:"|?*y': "x_______y",
        "dots...": "dots",
        ".hidden": "hidden",
        "..": "case",
        "...": "case-2",
        "a\u202eb": "a_b",
        "CONSOLE": "CONSOLE",
        "Größe": "Größe",
        "x" * 300: "x" * 120,
        "ß" * 300: "ß" * 60,
        f"scan {UID}": "scan dicom",
    }
    lines = [json.dumps({"case": name, "image": "x.nii"}) for name in odd]
    found = find([table(tmp_path / "l.jsonl", "\n".join(lines))])
    assert ids(found) == list(odd.values())


def test_ids_differ_in_more_than_the_case_of_letters_or_the_form_of_unicode() -> None:
    assert distinct_ids(["Case", "case", "CASE-2", "case"]) == ["Case", "case-3", "CASE-2", "case-4"]
    assert distinct_ids(["\u00e9", "e\u0301", "E\u0301"]) == ["\u00e9", "\u00e9-2", "\u00c9-3"]
    assert distinct_ids(["a", "a", "a-2", "a-2"]) == ["a", "a-3", "a-2", "a-2-2"]


@given(st.lists(st.text(max_size=12) | st.sampled_from(["a", "A", "a-2", "CON", "con", UID, f"{UID}.1"]), max_size=8))
def test_ids_are_safe_and_unique(given_names: list[str]) -> None:
    made = distinct_ids(given_names)
    assert len({unicodedata.normalize("NFC", each).casefold() for each in made}) == len(given_names)
    for each in made:
        assert each == each.strip(". ")
        assert each
        assert not set('<>:"/\\|?*\0\n') & set(each)
        assert UID not in each
        assert len(each.encode()) <= 130
        assert each.split(".")[0].strip().upper() not in ("CON", "NUL")


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system chooses the form")
def test_names_match_in_any_form_of_unicode(tmp_path: Path) -> None:
    touch(tmp_path, "data/Mu\u0308ller.nii", "masks/M\u00fcller.nii")
    (case,) = find([str(tmp_path / "data")], target=str(tmp_path / "masks"))
    assert case.case_id == "M\u00fcller"
    assert case.problem is None


def test_ten_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of them is opened, and no folder looked at more than a few times."""
    data, masks = tmp_path / "data", tmp_path / "masks"
    data.mkdir()
    masks.mkdir()
    for number in range(10_000):
        (data / f"case{number}_0000.nii.gz").touch()
        (masks / f"case{number}.nii.gz").touch()
    looked: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(str(path)) or scandir(path))
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a file was opened"))
    for source in (data, data / "*_0000.nii.gz"):
        found = find([str(source)], target=str(masks), ground_truth=masks)
        assert len(found) == 10_000
        assert not problems(found)
        assert ids(found)[:3] == ["case0", "case1", "case2"]
        assert found[9_999].targets == (masks / "case9999.nii.gz",)
    assert len(looked) < 20


# --- what pairs use -----------------------------------------------------------------------------------------------


def test_folders_by_case(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii", "a_0001.nii", "b.nii.gz", "b.nii", "masks/a.nii.gz")
    series(tmp_path / "ct")
    by_case = folders.by_case(tmp_path)
    assert {name: [path.name for path in files] for name, files in by_case.items()} == {
        "a": ["a_0000.nii", "a_0001.nii"],
        "b": ["b.nii"],
        "ct": ["ct"],
    }
    assert folders.holds_cases(tmp_path)
    assert not folders.holds_cases(tmp_path / "ct")
    assert not folders.holds_cases(tmp_path / "b.nii")
    masks = folders.MaskFolder(tmp_path / "masks")
    assert masks.find(["x", "a"]) == (tmp_path / "masks" / "a.nii.gz",)
    assert masks.find(["b"]) == ()


def test_lists_need_no_torch(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    code = (
        f"import sys; from mafl_cli.listing import cases; assert len(cases.find([{str(tmp_path)!r}])) == 2; "
        "assert not {'torch', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
