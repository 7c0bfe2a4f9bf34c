"""Large scans: what is done in parts, kept small or not done again equals the simple way over the whole scan."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from hypothesis import given, settings
from hypothesis import strategies as st

from mafl_cli.case import memory
from mafl_cli.case.prepare import prepare
from mafl_cli.case.request import AttackRequest
from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.samples import Changed, OfScan, stacked
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.original import Original
from mafl_cli.scans import nifti_write, recipes
from mafl_cli.scans.nifti import read_image
from mafl_cli.scans.nifti_write import write_difference, write_image, write_labels
from mafl_cli.search.goals import Goal

CPU = torch.device("cpu")


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path]:
    """A scan of 20 slices, more than go through the network together, and a network that takes them as they are."""
    scan, model = tmp_path / "scan.nii.gz", tmp_path / "model.ts"
    nib.save(nib.Nifti1Image(scan_array((24, 20, 20)), np.diag([-1.0, -1, 1, 1])), scan)
    torch.jit.script(Threshold(2).eval()).save(str(model))
    return scan, model


def _attack(case: tuple[Path, Path], out: Path, *more: object) -> Any:
    scan, model = case
    found = mafl(
        "attack", scan, "--target", "erase:1:sphere@-12,-10,3,3", "--model", model, "--steps", 4, "--device", "cpu",
        "-v", "--slice-axis", "k", "-o", out, *more,
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    return found


@pytest.mark.parametrize("more", [(), ("--save-as", "source"), ("--intensity", "zscore")])
def test_what_was_not_predicted_again_is_what_the_network_says(
    case: tuple[Path, Path], tmp_path: Path, more: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    _attack(case, out, *more)
    request = AttackRequest(
        images=(out / "adversarial.nii.gz",), out=tmp_path / "no", model=case[1], slice_axis="k", device="cpu",
        recipe=recipes.parse("erase:1"), intensity=Intensity(kind="zscore") if "zscore" in more else None,
    )  # fmt: skip
    again = prepare(request, CPU, lambda line: None)
    drawn = np.asarray(nib.load(out / "prediction_adversarial.nii.gz").dataobj)
    np.testing.assert_array_equal(drawn, again.subject.info.classes.encode(again.subject.to_labels(again.clean_labels)))


def test_only_slices_that_changed_go_through_the_network_once_more(
    case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    called = Original.__call__

    def counted(self: Original, x: torch.Tensor) -> Any:
        if not torch.is_grad_enabled():
            seen.append(len(x))
        return called(self, x)

    monkeypatch.setattr(Original, "__call__", counted)
    _attack(case, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    samples = report["cases"][0]["attack"]["samples"]
    assert 0 < samples["attacked"] < 16
    # The clean scan in batches of 16 and 4; of these the one with the change. Never all of them again.
    assert seen.count(16) == 2
    assert seen.count(4) <= 1 + (samples["attacked"] == 4)


def test_a_scan_lies_in_memory_once_and_labels_take_a_byte(case: tuple[Path, Path], tmp_path: Path) -> None:
    request = AttackRequest(
        images=(case[0],), out=tmp_path, model=case[1], slice_axis="k", device="cpu",
        recipe=recipes.parse("erase:1"), intensity=Intensity(),
    )  # fmt: skip
    found = prepare(request, CPU, lambda line: None)
    assert np.shares_memory(found.subject.scan.data, found.subject.clean.numpy())
    np.testing.assert_array_equal(found.subject.scan.data, read_image(case[0]).data)
    assert {each.dtype for each in (found.wanted, found.clean_labels)} == {torch.uint8}
    assert found.target.labels.dtype == np.uint8


def test_the_plan_is_what_the_process_holds_and_never_less_than_it_has_held(
    case: tuple[Path, Path], tmp_path: Path
) -> None:
    before = memory.peak_resident()
    output = _attack(case, tmp_path / "out").output
    said = re.search(r"memory: about ([\d.]+) GiB", output)
    assert said is not None, output
    after = memory.peak_resident()
    assert before is not None
    assert after is not None
    assert before / 2**30 - 0.01 <= float(said[1]) <= 1.25 * after / 2**30


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 12]), st.booleans())
def test_all_samples_judged_as_one(seed: int, classes: int, overlapping: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 2, 4, 5) if overlapping else (3, 4, 5)
    target, clean, found = (
        torch.from_numpy(rng.integers(0, 2 if overlapping else classes, shape, np.uint8)) for _ in range(3)
    )

    def goal(*labels: torch.Tensor) -> Goal:
        wanted, drawn = labels
        return Goal.of(wanted, drawn, classes, iou=0.6, hit=0.6, overlapping=overlapping)

    def as_one(labels: torch.Tensor) -> torch.Tensor:
        return labels.movedim(0, -1)[None].long().contiguous()

    each, together = goal(target, clean).judge_together(found)
    whole = goal(as_one(target), as_one(clean)).judge(as_one(found))
    alone = goal(target.long(), clean.long()).judge(found.long())
    for name in ("iou", "hit", "removal", "reached"):
        assert torch.equal(getattr(together, name), getattr(whole, name))
        assert torch.equal(getattr(each, name), getattr(alone, name))


@pytest.mark.parametrize("dtype", ["<i2", ">f4", "u1"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_files_written_in_parts_have_the_bytes_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, suffix: str
) -> None:
    stored = (100 * scan_array((9, 8, 7))).astype(dtype)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "scan.nii")
    like = read_image(tmp_path / "scan.nii")
    changed = like.data.copy()
    changed[2:4, 3, 5] += 2

    def written(name: str) -> list[bytes]:
        folder = tmp_path / name
        folder.mkdir()
        paths = [folder / f"{n}{suffix}" for n in range(4)]
        write_image(paths[0], like, changed, save_as="source", note="x")
        write_image(paths[1], like, changed, save_as="float32", note="x")
        write_difference(paths[2], like, changed, "x")
        write_labels(paths[3], like, (changed > 3).astype(np.int64))
        return [path.read_bytes() for path in paths]

    whole = written("whole")
    monkeypatch.setattr(nifti_write, "BLOCK", 2 * 9 * 8)
    assert written("parts") == whole
    np.testing.assert_array_equal(read_image(tmp_path / "parts" / f"1{suffix}").data, changed)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 30))
def test_a_sphere_in_its_box_is_the_sphere_in_the_scan(seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    affine, shape = np.eye(4), (7, 6, 5)
    affine[:3] = rng.normal(0, 2, (3, 4))
    affine[:3, :3] += 3 * np.eye(3)
    centre = affine[:3] @ np.append(rng.uniform(-3, 9, 3), 1)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    away = np.linalg.norm(places - centre, axis=-1)
    inside = recipes._inside(shape, affine, (*centre.tolist(), radius))
    clear = np.abs(away - radius) > 1e-9
    np.testing.assert_array_equal(inside[clear], (away <= radius)[clear])


@pytest.mark.parametrize("sliced", [True, False])
@pytest.mark.parametrize("orientation", ["native", "PSL"])
def test_samples_of_a_scan_are_the_rows_of_its_batch(sliced: bool, orientation: str) -> None:
    data = [scan_array((5, 6, 7)), scan_array((5, 6, 7)) + 1]
    layout = Layout.for_volume(np.diag([-1.0, 1, 1, 1]), orientation=orientation, slice_axis=1 if sliced else None)
    batch = stacked(data, layout)
    np.testing.assert_array_equal(batch, layout.to_batch(np.stack(data)))
    np.testing.assert_array_equal(layout.as_scan(batch), np.stack(data))
    there = OfScan(data, layout, CPU)
    rows = torch.tensor([0, len(batch) - 1])
    assert len(there) == len(batch)
    np.testing.assert_array_equal(there[rows].numpy(), batch[rows.numpy()])


def test_changed_samples_are_those_of_a_copy() -> None:
    clean = torch.rand(6, 1, 3, 3)
    changed, copy = Changed(clean, torch.tensor([1, 4])), clean.clone()
    changed[torch.tensor([4])] = copy[4:5] = torch.rand(1, 1, 3, 3)
    rows = torch.tensor([0, 4, 5])
    assert torch.equal(changed.whole(), copy)
    assert torch.equal(changed[rows], copy[rows])
    assert all(torch.equal(changed.one(row), copy[row]) for row in range(6))


@pytest.mark.parametrize("kind", ["none", "zscore", "minmax", "percentile", "window", "ct"])
def test_statistics_do_not_depend_on_how_a_scan_lies_in_memory(kind: Any) -> None:
    intensity = Intensity(kind=kind, min=0, max=1, lower=1, upper=99, mean=0, std=1)
    data = scan_array((31, 29, 23))
    turned = np.ascontiguousarray(data[::-1].transpose(2, 0, 1)).transpose(1, 2, 0)[::-1]
    one, other = (Preprocessing.freeze(intensity, [each], CPU) for each in (data, turned))
    assert one.is_as(other)
