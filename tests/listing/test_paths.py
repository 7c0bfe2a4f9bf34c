"""A path that is there is that path, whatever characters are in it; commas and colons only part what is not."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array

from mafl_cli import names
from mafl_cli.scans import recipes

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("text", "there", "found"),
    [
        ("a,b", [], ("a", "b")),
        ("a,b", ["a,b", "a", "b"], ("a,b",)),
        ("a,b,c", ["a,b"], ("a,b", "c")),
        ("a,b,c", ["b,c"], ("a", "b,c")),
        ("a, b , c,d", ["b ", "c,d"], ("a", "b", "c,d")),
        (" a,b", [" a", "b"], (" a", "b")),
        (",a,", [",a,"], (",a,",)),
        (",a", ["a"], None),
        ("a,", ["a"], None),
        ("a,,b", [], None),
        (" ", [], None),
    ],
)
def test_what_stands_between_commas(text: str, there: list[str], found: tuple[str, ...] | None) -> None:
    assert names.between(text, ",", set(there).__contains__) == found


@pytest.mark.parametrize("text", ["erase:1", "copy:mask.nii.gz", "swap:1,2"])
def test_a_file_called_like_a_recipe_is_a_mask(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.parse(text) is not None
    (tmp_path / text).touch()
    assert recipes.parse(text) is None


def test_a_mask_called_like_a_sphere_is_copied_whole(tmp_path: Path) -> None:
    mask = tmp_path / "a,b:sphere@1,2,3,4"
    spherical = recipes.parse(f"copy:{mask}")
    mask.touch()
    whole = recipes.parse(f"copy:{mask}")
    assert spherical is not None
    assert whole is not None
    assert (spherical.mask, spherical.sphere) == (tmp_path / "a,b", (1, 2, 3, 4))
    assert (whole.mask, whole.sphere) == (mask, None)
    both = recipes.parse(f"copy:{mask}:sphere@5,6,7,8")
    assert both is not None
    assert (both.mask, both.sphere) == (mask, (5, 6, 7, 8))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a,b:c")
    image = scan_array((16, 16, 3))
    for name in ("t1, first.nii.gz", "t2,copy:1.nii.gz", "t1"):
        nib.save(nib.Nifti1Image(image, AFFINE), folder / f"{name.removesuffix('.nii.gz')}.nii.gz")
    nib.save(nib.Nifti1Image((image > 0.2).astype("u1"), AFFINE), folder / "mask,1:x.nii.gz")
    torch.jit.trace(Threshold(2, channels=2), torch.zeros(1, 2, 16, 16)).save(folder / "two,2.ts")
    return folder


@pytest.mark.parametrize("target", ["mask,1:x.nii.gz", "copy:mask,1:x.nii.gz", "copy:mask,1:x.nii.gz:sphere@8,8,2,9"])
def test_commas_and_colons_in_the_paths_of_an_attack(case: Path, tmp_path: Path, target: str) -> None:
    kind, mask = ("copy:", target.removeprefix("copy:")) if target.startswith("copy:") else ("", target)
    mask = f"{kind}{case / mask}"
    channels = f"{case / 't1, first.nii.gz'}, {case / 't2,copy:1.nii.gz'}"
    done = mafl(
        "attack", "--channels", channels, "--guide", channels, "--target", mask, "-m", case / "two,2.ts",
        "--within", case / "mask,1:x.nii.gz", "--dry-run", "-o", tmp_path / "out,1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out,1" / "target.nii.gz").exists()


def test_commas_in_the_paths_of_an_evaluation(case: Path) -> None:
    mask, scans = case / "mask,1:x.nii.gz", f"{case / 't1, first.nii.gz'},{case / 't2,copy:1.nii.gz'}"
    options = ("--original", scans, "--adversarial", scans, "--target", mask, "--ground-truth", mask)
    done = mafl("evaluate", *options, "-m", case / "two,2.ts")
    assert done.exit_code == 0, done.output


def test_a_mask_with_a_comma_that_is_not_there(case: Path, tmp_path: Path) -> None:
    options = ("--target", tmp_path / "gone,1.nii.gz", "-m", case / "two,2.ts", "-o", tmp_path / "out")
    done = mafl("attack", "--channels", f"{case / 't1.nii.gz'},{case / 't2,copy:1.nii.gz'}", *options)
    assert done.exit_code == 3
    assert "--target gone,1.nii.gz does not exist: check the path." in done.output
