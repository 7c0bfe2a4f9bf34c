"""Pairs of scans as they are found and read: result folders, single files, folders matched by name."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from dicoms import write_ct

from mafl_cli.errors import GeometryError, InputError, UsageError
from mafl_cli.judging.pairs import mask_of, of_files
from mafl_cli.results.read import read_report
from mafl_cli.results.recorded import changed_files, of_runs

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def nifti(path: Path, data: Any = None, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(scan_array((6, 5, 4)) if data is None else data, affine), path)
    return path


def ct(folder: Path, add: int = 0) -> Path:
    write_ct(folder, np.arange(120, dtype=np.int16).reshape(6, 5, 4) + add, AFFINE)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """original, adversarial and target, with two cases of one channel."""
    made = tmp_path / "original", tmp_path / "adversarial", tmp_path / "target"
    for folder in made:
        for name in ("a", "b"):
            nifti(folder / f"{name}.nii.gz")
    return made


def found(folders: Any) -> Any:
    return of_files(*map(str, folders))


def names(paths: Any) -> Any:
    return [path.name for path in paths]


# --- folders of scans ---------------------------------------------------------------------------------------------


def test_scans_and_masks_of_folders_are_matched_by_name(folders: Any) -> None:
    nifti(folders[0] / "nobody attacked this.nii.gz")
    nifti(folders[2] / "another mask.nii.gz")
    first, second, lost = found(folders)
    assert (first.case_id, second.case_id) == ("a", "b")
    assert lost.missing == "nobody attacked this: there is no scan in `adversarial` with this name."
    for part, folder in zip((first.original, first.adversarial, first.target), folders, strict=True):
        assert part == (folder / "a.nii.gz",)
    pair = first.read()
    assert np.array_equal(pair.clean[0].data, scan_array((6, 5, 4)))
    assert pair.recorded is None


def test_a_suffix_is_no_part_of_a_name(folders: Any) -> None:
    (folders[1] / "a.nii.gz").unlink()
    nifti(folders[1] / "a.nii")
    assert names(found(folders)[0].adversarial) == ["a.nii"]
    assert found(folders)[0].missing is None


def test_channels_have_numbers_and_one_mask(tmp_path: Path) -> None:
    for folder in ("original", "adversarial"):
        for name in ("scan_0001", "scan_0000", "other_0000"):
            nifti(tmp_path / folder / f"{name}.nii.gz", scan_array((3, 3, 3)) + int(name[-1]))
    for name in ("scan", "other"):
        nifti(tmp_path / "target" / f"{name}.nii.gz")
    other, scan = found([tmp_path / name for name in ("original", "adversarial", "target")])
    assert (other.case_id, scan.case_id) == ("other", "scan")
    assert names(scan.original) == names(scan.adversarial) == ["scan_0000.nii.gz", "scan_0001.nii.gz"]
    assert names(scan.target) == ["scan.nii.gz"]
    assert [each.data.max() > 1.5 for each in scan.read().clean] == [False, True]
    assert len(other.read().adversarial) == 1


@pytest.mark.parametrize("numbers", [("0001", "0004"), ("0001", "0002"), ("0007",)], ids=str)
def test_numbers_that_do_not_count_channels_belong_to_the_name(tmp_path: Path, numbers: Any) -> None:
    for folder in ("original", "adversarial", "target"):
        for number in numbers:
            nifti(tmp_path / folder / f"amos_{number}.nii.gz")
    sources = found([tmp_path / name for name in ("original", "adversarial", "target")])
    assert [source.case_id for source in sources] == [f"amos_{number}" for number in numbers]
    assert [names(source.target) for source in sources] == [[f"amos_{number}.nii.gz"] for number in numbers]
    assert len(sources[0].read().clean) == 1


def test_dicom_series_are_folders_in_a_folder_of_cases(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ct(tmp_path / "original" / name)
        ct(tmp_path / "adversarial" / name, add=1)
        nifti(tmp_path / "target" / f"{name}.nii.gz")
    sources = found([tmp_path / name for name in ("original", "adversarial", "target")])
    assert [source.case_id for source in sources] == ["a", "b"]
    pair = sources[1].read()
    assert np.all(pair.adversarial[0].data - pair.clean[0].data == 1)
    assert pair.target == (tmp_path / "target" / "b.nii.gz",)


def test_one_dicom_series_is_one_case(tmp_path: Path) -> None:
    ct(tmp_path / "before")
    ct(tmp_path / "after", add=1)
    (source,) = of_files(str(tmp_path / "before"), str(tmp_path / "after"), str(tmp_path / "mask.nii.gz"))
    assert source.case_id == "before"
    assert source.read().adversarial[0].data.shape == (6, 5, 4)


def test_cases_named_by_uids_are_found_by_them_and_never_called_by_them(tmp_path: Path) -> None:
    uids = ("1.2.840.113619.2.1", "1.2.840.113619.2.2")
    for uid in uids:
        for part in ("original", "adversarial"):
            ct(tmp_path / part / uid)
    nifti(tmp_path / "target" / f"{uids[1]}.nii.gz")
    first, second = found([tmp_path / name for name in ("original", "adversarial", "target")])
    assert (first.case_id, second.case_id) == ("dicom", "dicom (2)")
    assert "113619" not in first.missing
    assert names(second.original) == [uids[1]]
    assert second.missing is None


def test_names_that_are_no_text_are_shown_as_text(tmp_path: Path) -> None:
    name = b"\xff\x1b[31m\n.nii.gz".decode(errors="surrogateescape")
    for part in ("original", "adversarial", "target"):
        try:
            nifti(tmp_path / part / name)
        except (OSError, UnicodeError):
            pytest.skip("this file system has text for names")
    (of_folders,) = found([tmp_path / part for part in ("original", "adversarial", "target")])
    (of_one,) = found([tmp_path / part / name for part in ("original", "adversarial", "target")])
    for source in (of_folders, of_one):
        pair = source.read()
        assert {pair.case_id, pair.clean[0].name.removesuffix(".nii.gz")} == {"\ufffd\ufffd[31m\ufffd"}


@pytest.mark.parametrize(("part", "what"), [(0, "scan in `original`"), (2, "mask in `target`")])
def test_a_counterpart_that_is_missing_is_said_when_its_case_is_read(folders: Any, part: Any, what: Any) -> None:
    (folders[part] / "a.nii.gz").unlink()
    first, second = found(folders)
    with pytest.raises(InputError, match=f"^a: there is no {what} with this name\\.$"):
        first.read()
    assert second.read().case_id == "b"


def test_one_mask_can_be_the_target_of_all_cases(folders: Any, tmp_path: Path) -> None:
    mask = nifti(tmp_path / "mask.nii.gz")
    assert [source.target for source in found((*folders[:2], mask))] == [(mask,)] * 2
    listed = of_files(str(folders[0]), str(folders[1]), f"{mask},{mask}")
    assert [source.target for source in listed] == [(mask, mask)] * 2


def test_what_is_hidden_or_no_scan_is_no_case(folders: Any) -> None:
    for folder in folders:
        nifti(folder / "._a.nii.gz")
        (folder / "notes.txt").write_text("x")
        (folder / ".hidden").mkdir()
    assert [source.case_id for source in found(folders)] == ["a", "b"]


def test_a_folder_without_scans_is_an_input_error(folders: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^empty: holds no scan"):
        found((folders[0], tmp_path / "empty", folders[2]))


def test_a_folder_beside_a_file_is_a_usage_error(folders: Any) -> None:
    with pytest.raises(UsageError, match="`adversarial` adversarial is a folder"):
        found((folders[0] / "a.nii.gz", *folders[1:]))


# --- files --------------------------------------------------------------------------------------------------------


def test_a_pair_of_files_has_the_name_of_the_scan(folders: Any) -> None:
    (source,) = found([folder / "a.nii.gz" for folder in folders])
    assert source.case_id == "a"
    assert source.target == (folders[2] / "a.nii.gz",)
    assert source.read().clean[0].data.shape == (6, 5, 4)


def test_channels_of_files_are_separated_by_commas(folders: Any) -> None:
    original, adversarial, target = (f"{folder / 'a.nii.gz'}, {folder / 'b.nii.gz'}" for folder in folders)
    (source,) = of_files(original, adversarial, target)
    assert [len(part) for part in (source.original, source.adversarial, source.target)] == [2, 2, 2]
    assert len(source.read().clean) == 2
    (source,) = of_files(original, adversarial.split(",")[0], target)
    with pytest.raises(InputError, match="2 original and 1 adversarial scans"):
        source.read()


def test_a_comma_in_the_name_of_a_file_separates_nothing(folders: Any) -> None:
    named = nifti(folders[0] / "a,b.nii.gz")
    (source,) = of_files(str(named), str(folders[1] / "a.nii.gz"), str(folders[2] / "a.nii.gz"))
    assert source.original == (named,)


@pytest.mark.parametrize("part", range(3))
def test_a_comma_beside_nothing_is_a_usage_error(folders: Any, part: Any) -> None:
    texts = [str(folder / "a.nii.gz") for folder in folders]
    texts[part] += ","
    with pytest.raises(UsageError, match="empty entry in its comma-separated list"):
        of_files(*texts)


def test_files_that_are_not_there_or_lie_elsewhere_are_said_when_read(folders: Any, tmp_path: Path) -> None:
    (source,) = found([folders[0] / "a.nii.gz", folders[1] / "none.nii.gz", folders[2] / "a.nii.gz"])
    with pytest.raises(InputError, match=r"none\.nii\.gz"):
        source.read()
    moved = nifti(tmp_path / "moved.nii.gz", affine=np.diag([2.0, 2.0, 4.0, 1.0]))
    (source,) = found([folders[0] / "a.nii.gz", moved, folders[2] / "a.nii.gz"])
    with pytest.raises(GeometryError, match="moved"):
        source.read()


# --- masks by case ------------------------------------------------------------------------------------------------


def test_the_mask_of_a_case_is_the_file_itself_or_the_one_with_its_name(folders: Any) -> None:
    assert mask_of(folders[2] / "a.nii.gz", "anything") == folders[2] / "a.nii.gz"
    assert mask_of(folders[2], "b") == folders[2] / "b.nii.gz"
    with pytest.raises(InputError, match=r"^target: holds no mask named c"):
        mask_of(folders[2], "c")


def test_the_mask_of_a_channel_is_that_of_its_case_unless_it_has_its_own(folders: Any) -> None:
    assert mask_of(folders[2], "a_0000") == folders[2] / "a.nii.gz"
    own = nifti(folders[2] / "a_0000.nii.gz")
    assert mask_of(folders[2], "a_0000") == own
    assert mask_of(folders[2], "a") == folders[2] / "a.nii.gz"


# --- result folders -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder, as the command writes it."""
    folder = tmp_path_factory.mktemp("done")
    scan = nifti(folder / "patient.nii.gz", scan_array((16, 14, 4)))
    mask = nifti(folder / "mask.nii.gz", np.roll(scan_array((16, 14, 4)) > 0.5, 2, axis=0).astype(np.uint8))
    torch.jit.script(Threshold(2)).save(folder / "model.ts")
    result = mafl(
        "attack", scan, "--target", mask, "--model", folder / "model.ts", "-o", folder / "out",
        "--device", "cpu", "--steps", 20, "-q",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.fixture
def run(done: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(done, tmp_path / "run"))


def empty_runs(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "report.json").write_text("{}")


def test_a_result_folder_is_read_with_all_it_holds(run: Path) -> None:
    (source,) = of_runs([run])
    pair = source.read()
    assert (source.case_id, pair.case_id) == ("run", "patient")
    np.testing.assert_allclose(pair.clean[0].data, scan_array((16, 14, 4)), atol=1e-6)
    for name in ("prediction_clean", "prediction_adversarial", "target"):
        drawn = np.asarray(nib.load(run / f"{name}.nii.gz").dataobj)
        assert np.array_equal(getattr(pair.recorded, name), drawn[np.newaxis])
    assert changed_files(pair.recorded) == []
    assert pair.recorded.case.case_id == "patient"


def test_a_file_that_was_changed_is_named(run: Path) -> None:
    target = nib.load(run / "target.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(target.shape, np.uint8), target.affine), run / "target.nii.gz")
    assert changed_files(of_runs([run])[0].read().recorded) == ["target.nii.gz"]


def test_a_file_that_is_gone_is_an_input_error(run: Path) -> None:
    (run / "perturbation.nii.gz").unlink()
    with pytest.raises(InputError, match=r"^run: perturbation\.nii\.gz is missing"):
        of_runs([run])[0].read()


def test_a_report_that_is_none_is_an_input_error(run: Path) -> None:
    for text in ("{", "[]", "{}", json.dumps({"schema_version": "1.0.0", "cases": []})):
        (run / "report.json").write_text(text)
        with pytest.raises(InputError, match=r"^run/report\.json"):
            of_runs([run])[0].read()


def test_a_report_of_an_earlier_schema_gets_one_sentence(run: Path) -> None:
    said = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**said, "schema_version": "1.0.0"}))
    with pytest.raises(
        InputError, match=r"^run/report\.json: is a report of schema 1\.0\.0; this mafl reads 2\.0\.0: "
    ):
        of_runs([run])[0].read()


def test_runs_are_found_below_folders_in_the_order_of_their_names(tmp_path: Path) -> None:
    empty_runs(tmp_path / "b", tmp_path / "a" / "second", tmp_path / "a" / "first")
    assert [source.run.relative_to(tmp_path).as_posix() for source in of_runs([tmp_path])] == [
        "a/first",
        "a/second",
        "b",
    ]
    assert [source.case_id for source in of_runs([tmp_path / "b", tmp_path / "a"])] == ["b", "first", "second"]


def reasons(*folders: Path) -> dict[str, str | None]:
    """What is found, and why it cannot be judged."""
    return {source.case_id: source.missing for source in of_runs(folders)}


def test_what_is_half_made_hidden_or_empty_is_found_with_the_reason(tmp_path: Path) -> None:
    empty_runs(tmp_path / "runs" / "a", tmp_path / "runs" / "b" / ".mafl-x1", tmp_path / "runs" / ".trash" / "c")
    empty_runs(tmp_path / "runs" / ".d")
    (tmp_path / "runs" / "e").mkdir()
    (tmp_path / "runs" / "killed" / ".mafl-x2").mkdir(parents=True)
    found = reasons(tmp_path / "runs")
    assert list(found) == ["a", "b", "e", "killed", ".d", "c"]
    assert (found["a"], found["b"], found["killed"]) == (None, None, None)
    for hidden in (".d", "c"):
        assert found[hidden] == (
            f"{hidden}: is in a hidden folder (a name with a dot), so it is not judged: rename that folder, or give "
            f"{hidden} by name."
        )
    assert found["e"] == "e: is empty: the results of an attack are missing here."
    for name in ("b", "killed"):
        source = next(each for each in of_runs([tmp_path / "runs"]) if each.case_id == name)
        with pytest.raises(InputError, match=rf"^{name}: holds no report\.json; the run did not finish"):
            source.read()


def test_files_that_mafl_was_writing_when_it_was_killed_are_no_attack(tmp_path: Path) -> None:
    empty_runs(tmp_path / "a")
    (tmp_path / ".mafl-x3").mkdir()
    (tmp_path / ".mafl-x3" / "page.html").write_text("")
    (tmp_path / ".mafl-x4").write_text("")
    assert reasons(tmp_path) == {"a": None}


def test_a_run_inside_a_run_is_found_and_judged_where_it_is_named(tmp_path: Path) -> None:
    empty_runs(tmp_path / "a", tmp_path / "a" / "more" / "inner")
    (tmp_path / "a" / "empty").mkdir()
    inside = (
        "inner: lies inside the results of a, and is not judged with them: move it elsewhere, or give it by name too."
    )
    assert reasons(tmp_path) == {"a": None, "inner": inside}
    assert reasons(tmp_path, tmp_path / "a" / "more") == {"a": None, "inner": None}


def test_a_link_to_a_run_that_is_found_does_not_put_it_out_of_its_place(tmp_path: Path) -> None:
    empty_runs(tmp_path / "a", tmp_path / "b")
    (tmp_path / ".latest").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "a" / "next").symlink_to(tmp_path / "b", target_is_directory=True)
    assert reasons(tmp_path) == {"a": None, "b": None}


def batch(folder: Path, cases: Sequence[str], done: Sequence[str] = ()) -> Path:
    """The folder of a batch: its list, and cases of which some are done and the others failed."""
    (folder / ".mafl").mkdir(parents=True)
    (folder / ".mafl" / "run.json").write_text(json.dumps({"settings": "x", "cases": list(cases)}))
    for name in cases:
        (folder / name).mkdir(parents=True)
        (folder / name / ".case.json").write_text("{}")
        word = json.dumps({"error": {"type": "InputError", "message": f"{name}.nii: is damaged."}})
        (folder / name / ("report.json" if name in done else "failed.json")).write_text(word)
    return folder


def test_of_a_batch_every_case_is_found_and_what_lies_between_them(tmp_path: Path) -> None:
    night = batch(tmp_path / "night", ["c1", "c2"], done=["c2"])
    empty_runs(night / "other", night / "c2" / "again")
    advice = "and is not judged with them: move it elsewhere, or give it by name too."
    assert reasons(tmp_path) == {
        "c1": "c1.nii: is damaged.",
        "c2": None,
        "again": f"again: lies inside the results of c2, {advice}",
        "other": f"other: lies inside the results of night, {advice}",
    }


@pytest.mark.parametrize("left", ["tickets", "failures", "tables", "report"])
def test_a_batch_that_was_copied_without_its_hidden_files_may_lack_cases(tmp_path: Path, left: str) -> None:
    night = batch(tmp_path / "night", ["c1", "c2"], done=["c1", "c2"] if left != "failures" else ["c2"])
    shutil.rmtree(night / ".mafl")
    if left != "tickets":
        for name in ("c1", "c2"):
            (night / name / ".case.json").unlink()
    for name in {"tables": ("cases.csv", "failed.txt"), "report": ("report.json",)}.get(left, ()):
        (night / name).write_text('{"command": "attack-batch"}')
    found = reasons(night)
    assert list(found) == ["night", "c1", "c2"]
    assert "holds cases of a batch but not its list of them" in found["night"]
    (first, *_) = of_runs([night / "c1"])
    assert first.missing is None
    if left == "failures":
        with pytest.raises(InputError, match=r"^c1\.nii: is damaged\.$"):
            first.read()


@pytest.mark.parametrize("cases", [[], ["c1"], ["c1", "c2"]])
def test_a_batch_in_which_everything_failed_is_as_many_cases(tmp_path: Path, cases: list[str]) -> None:
    found = reasons(batch(tmp_path / "night", cases))
    assert list(found) == (cases or ["night"])
    assert None not in found.values()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"cases": []}', '{"settings": "x", "cases": "abc"}', '{"settings": "x", "cases": [1]}',
     '{"settings": "x", "cases": ["../a"]}', '{"settings": "x", "cases": {"a": 1}}', "[" * 100_000, "\udcff",
     '{"settings": "x", "cases": ["a"], "cases": []}'],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_damaged_list_of_cases_is_one_case_that_cannot_be_judged_beside_the_others(tmp_path: Path, text: str) -> None:
    night = batch(tmp_path / "runs" / "night", ["c1"], done=["c1"])
    (night / ".mafl" / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    empty_runs(tmp_path / "runs" / "z")
    found = reasons(tmp_path / "runs")
    assert list(found) == ["night", "c1", "z"]
    assert "is damaged; delete it" in found["night"]
    assert (found["c1"], found["z"]) == (None, None)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"error": 3}', '{"error": {"type": "x"}}', '{"error": {"type": 1, "message": []}}', "\0",
             "[" * 100_000], ids=lambda text: text[:40],
)  # fmt: skip
def test_a_damaged_word_of_a_failure_is_a_failure(tmp_path: Path, text: str) -> None:
    night = batch(tmp_path / "night", ["c1", "c2"])
    (night / "c1" / "failed.json").write_text(text)
    said = "c1: failed, but its failed.json is damaged, so the reason is lost."
    assert reasons(night) == {"c1": said, "c2": "c2.nii: is damaged."}
    assert mafl("status", night, "--json", "-").exit_code == 0


def test_why_a_case_failed_is_said_in_one_sentence_whoever_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "c1").mkdir()
    for words, said in (
        ("scan.nii: is damaged.", "scan.nii: is damaged."),
        ("x", "c1: failed when it was attacked: x."),
        ("a\nb\x1b[2J", "c1: failed when it was attacked: a\ufffdb\ufffd[2J."),
    ):
        error = {"error": {"type": "InputError", "message": words}}
        (tmp_path / "c1" / "failed.json").write_text(json.dumps(error))
        with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
            read_report(tmp_path / "c1")
    error["error"]["message"] = "x" * 10_000
    (tmp_path / "c1" / "failed.json").write_text(json.dumps(error))
    with pytest.raises(InputError) as raised:
        read_report(tmp_path / "c1")
    assert len(str(raised.value)) < 1500


def test_a_dot_above_the_folder_that_was_named_does_not_hide_it(tmp_path: Path) -> None:
    empty_runs(tmp_path / ".cache" / "runs" / "a")
    assert [source.case_id for source in of_runs([tmp_path / ".cache" / "runs"])] == ["a"]


def test_a_run_that_is_named_twice_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_runs(tmp_path / "a", tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    sources = of_runs([Path("b"), tmp_path, Path("a"), Path("b")])
    assert [source.case_id for source in sources] == ["b", "a"]


def test_runs_of_the_same_name_get_numbers_that_no_other_has(tmp_path: Path) -> None:
    empty_runs(*(tmp_path / part / "out" for part in "abc"), tmp_path / "d" / "out (2)")
    ids = [source.case_id for source in of_runs([tmp_path])]
    assert ids == ["out", "out (3)", "out (4)", "out (2)"]


def test_a_folder_named_by_a_uid_is_not_called_by_it(tmp_path: Path) -> None:
    empty_runs(tmp_path / "1.2.840.113619.2.1")
    assert of_runs([tmp_path])[0].case_id == "dicom"


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_what_is_no_run_is_said_when_it_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        zipfile.ZipFile(path, "w").close()
    (source,) = of_runs([path])
    with pytest.raises(InputError, match=r"^x: (is not a result folder|holds no report\.json)"):
        source.read()


# --- the same voxels in another order -----------------------------------------------------------------------------


def converted(path: Path, data: np.ndarray, turn: str) -> Path:
    """A NIfTI file as a converter leaves it: axes in another order and direction, the same voxels."""
    image = nib.Nifti1Image(data, AFFINE).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(turn))
    )
    nib.save(image, path)
    return path


@pytest.mark.parametrize("turn", ["LPS", "LAS", "IPR", "ASL", "RAS"])
@pytest.mark.parametrize("dicom", ["original", "adversarial"])
def test_a_series_and_its_conversion_are_one_grid(tmp_path: Path, turn: str, dicom: str) -> None:
    data = np.random.default_rng(0).integers(0, 500, (6, 5, 4)).astype(np.int16)
    write_ct(tmp_path / "series", data, AFFINE, inter=0.0)
    changed = data.copy()
    changed[1, 2, 3] += 7
    files = tmp_path / "series", converted(tmp_path / "scan.nii.gz", changed, turn)
    original, adversarial = files if dicom == "original" else files[::-1]
    (source,) = of_files(str(original), str(adversarial), str(tmp_path / "mask.nii.gz"))
    pair = source.read()
    clean, after = pair.clean[0], pair.adversarial[0]
    assert clean.data.shape == after.data.shape
    np.testing.assert_allclose(clean.affine, after.affine, atol=1e-4)
    (place,) = np.argwhere(clean.data != after.data)
    np.testing.assert_allclose(clean.affine @ [*place, 1], AFFINE @ [1, 2, 3, 1], atol=1e-3)
    assert after.data[tuple(place)] - clean.data[tuple(place)] == (7 if dicom == "original" else -7)


def test_another_grid_is_still_another_grid(tmp_path: Path) -> None:
    ct(tmp_path / "series")
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    for affine, shape in ((moved, (6, 5, 4)), (AFFINE, (5, 6, 4)), (AFFINE, (6, 5, 3))):
        nifti(tmp_path / "scan.nii.gz", scan_array(shape), affine)
        (source,) = of_files(str(tmp_path / "series"), str(tmp_path / "scan.nii.gz"), "mask.nii.gz")
        with pytest.raises(GeometryError, match="not on the same grid"):
            source.read()


def test_a_series_and_its_conversion_are_judged(tmp_path: Path) -> None:
    data = np.rint(1000 * scan_array((16, 14, 4))).astype(np.int16)
    write_ct(tmp_path / "series", data, AFFINE, slope=0.001, inter=0.0)
    changed = converted(tmp_path / "scan.nii.gz", (np.clip(data - 100, 0, None) / 1000).astype(np.float32), "LPS")
    mask = converted(tmp_path / "mask.nii.gz", (data > 600).astype(np.uint8), "LPS")
    torch.jit.script(Threshold(2)).save(tmp_path / "model.ts")
    told = {}
    for adversarial in (
        changed,
        nifti(tmp_path / "same.nii.gz", nib.as_closest_canonical(nib.load(changed)).get_fdata()),
    ):
        result = mafl(
            "evaluate", "--original", tmp_path / "series", "--adversarial", adversarial, "--target", mask,
            "--model", tmp_path / "model.ts", "--device", "cpu", "--json", "-",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        told[adversarial.name] = json.loads(result.stdout)["cases"][0]["metrics"]
    assert told["scan.nii.gz"] == told["same.nii.gz"]
    assert told["scan.nii.gz"]["post_write"]["target_iou"]["value"] > 0.2
