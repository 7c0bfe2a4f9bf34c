"""The worst case of several searches: for each slice the smallest change, whoever found it, and who did is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from masked import MASKED, Wrapped, scan
from torch import Tensor, nn

import mafl_cli as library
from mafl_cli.codes import Belief
from mafl_cli.errors import InputError, UsageError
from mafl_cli.results import report

N = 40


class Doors(nn.Module):
    """Voxels of the middle change class once the left side or the right one is bright enough.

    The way on the left is short in logits and long in the image, and a gradient sees that one alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        left, right = x[..., :4].mean(dim=(1, 2, 3)), x[..., 12:].mean(dim=(1, 2, 3))
        best = torch.maximum(0.5 * (left - 0.8), 4 * (right - 0.3))
        lead = torch.full_like(x[:, 0], -1.0)
        lead[..., 6:10] = best.view(-1, 1, 1)
        return torch.stack([-lead, lead], dim=1)


def doors() -> tuple[Tensor, Tensor, Tensor]:
    """Two images, the target, and a start through the right door: in the second the left one is nearly open."""
    image = torch.zeros(2, 1, 8, 16)
    image[1, ..., :4] = 0.75
    image[..., 0, 5] = 1  # The range of the images.
    target = torch.zeros(2, 8, 16, dtype=torch.int64)
    target[..., 6:10] = 1
    start = image.clone()
    start[..., 12:] = 0.4
    return image, target, start


def attacked(**options: Any) -> library.Attacked[Tensor]:
    image, target, start = doors()
    return library.attack(Doors(), image, target, **{"method": "worst", "steps": N, "start": start, **options})


def test_each_slice_has_the_smallest_change_that_any_search_found() -> None:
    alone, found = attacked(method="mafl", start=None), attacked()
    assert found.worst is not None
    first, second = found.worst.samples
    assert bool(alone.success.all())
    assert bool(found.success.all())
    assert first.found_by == "start" or first.began_at == "start"
    assert "start" not in (second.found_by, second.began_at)
    assert float(found.sizes.l2[0]) < 0.5 * float(alone.sizes.l2[0])
    assert float(found.sizes.l2[1]) <= float(alone.sizes.l2[1])
    for told, now, before in zip(found.worst.samples, found.sizes.l2, alone.sizes.l2, strict=True):
        assert told.l2_model == pytest.approx(float(now))
        assert told.l2_model_first == pytest.approx(float(before))
        assert told.reached


def test_the_other_searches_share_as_many_steps_as_the_first_has() -> None:
    alone, found = attacked(method="mafl", start=None), attacked()
    assert found.worst is not None
    first, *others = found.worst.searches
    assert (first.name, first.steps) == ("margin", N)
    assert sum(each.steps for each in others) == N
    # What begins with the clean samples, and the draws of the last bisection, are one pass a sample each.
    assert all(each.forward <= 2 * (each.steps + 2) for each in found.worst.searches)
    assert sum(each.kept for each in found.worst.searches) == 2
    assert {each.attacked for each in found.worst.searches} == {2}
    assert alone.worst is None


@pytest.mark.parametrize("steps", [1, 2, 9, 21])
def test_few_steps_are_enough_for_fewer_searches(steps: int) -> None:
    alone, found = attacked(method="mafl", start=None, steps=steps), attacked(steps=steps)
    assert found.worst is not None
    assert next(each.steps for each in found.worst.searches) == steps
    assert sum(each.steps for each in found.worst.searches) == 2 * steps
    assert bool((found.sizes.l2[alone.success] <= alone.sizes.l2[alone.success]).all())
    assert bool((found.success >= alone.success).all())


def test_nothing_found_is_larger_than_what_one_search_finds() -> None:
    image, network = torch.cat([scan(), scan() ** 0.8]), Wrapped()
    with torch.no_grad():
        target = torch.roll(network(image).argmax(1), 4, -1)
    alone = library.attack(network, image, target, steps=N)
    found = library.attack(network, image, target, steps=N, method="worst")
    assert bool((found.success >= alone.success).all())
    assert bool((found.sizes.l2 <= alone.sizes.l2)[alone.success].all())
    with torch.no_grad():
        assert torch.equal(network(found.adversarial).argmax(1), found.prediction)
    again = library.attack(network, image, target, steps=N, method="worst")
    assert torch.equal(found.adversarial, again.adversarial)


def test_within_a_budget_the_closest_is_kept() -> None:
    alone = attacked(method="mafl", start=None, eps=0.5, goal_iou=1.0, goal_hit=1.0, after_goal="stop")
    found = attacked(eps=0.5, goal_iou=1.0, goal_hit=1.0, after_goal="stop")
    assert found.success.tolist() == [True, True]
    assert alone.success.tolist() == [False, True]
    assert float((found.adversarial - doors()[0]).abs().max()) <= 0.5 + 1e-6


def test_a_search_whose_gradient_is_doubted_is_one_of_them() -> None:
    network = MASKED["waves finer than a step"]()
    with torch.no_grad():
        target = torch.roll(network(scan()).argmax(1), 4, -1)
    found = library.attack(network, scan(), target, steps=30, method="worst")
    assert found.worst is not None
    assert found.trust.verdict is Belief.ANSWERED
    assert found.trust.found_by == found.worst.samples[0].found_by == "straight_through"
    assert found.worst.searches[-1].name == "straight_through"
    assert bool(found.success.all())


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"method": "mafl"}, UsageError, "`start` is for the method worst, not for mafl"),
        ({"start": torch.zeros(1, 1, 8, 16)}, InputError, "`start` must have the shape of the image"),
        ({"mask_loss": "ce"}, UsageError, "`method` worst tries other losses by itself"),
        ({"step": "constant", "step_size": 0.1, "direction": "l2"}, UsageError, "leave out `mask_loss` and `step`"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        attacked(**options)


# --- from files to files ------------------------------------------------------------------------------------------


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A folder with a scan, a mask, and a model."""
    nib.save(nib.Nifti1Image(scan_array(), np.eye(4)), tmp_path / "scan.nii.gz")
    mask = np.roll(scan_array() > 0.5, 2, axis=0).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
    torch.jit.trace(Threshold(2).eval(), torch.zeros(1, 1, 24, 20)).save(tmp_path / "model.ts")
    return tmp_path


def run(case: Path, out: str, *more: object) -> dict[str, Any]:
    result = mafl(
        "attack", case / "scan.nii.gz", "-t", case / "mask.nii.gz", "--model", case / "model.ts", "-o", case / out,
        "--device", "cpu", "--steps", N, *more,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    done: dict[str, Any] = json.loads((case / out / "report.json").read_text())
    jsonschema.Draft202012Validator(json.loads(report.SCHEMA.read_text())).validate(done)
    return done | {"said": result.output}


def test_the_report_says_who_found_each_slice_and_the_console_how_steps_were_shared(case: Path) -> None:
    alone, found = run(case, "alone"), run(case, "worst", "--method", "worst")
    one, both = alone["cases"][0], found["cases"][0]
    told = both["attack"]["worst"]
    assert "worst" not in one["attack"]
    assert len(told["samples"]) == both["attack"]["samples"]["attacked"]
    assert sum(each["kept"] for each in told["searches"]) == len(told["samples"])
    assert both["attack"]["passes"]["forward"] == sum(each["forward"] for each in told["searches"])
    assert both["metrics"]["size"]["l2"]["model"] <= one["metrics"]["size"]["l2"]["model"]
    squares = [each["l2_model"] ** 2 for each in told["samples"]]
    assert both["metrics"]["size"]["l2"]["model"] == pytest.approx(sum(squares) ** 0.5, rel=1e-3)
    assert f"worst of      margin {N}, " in found["said"]
    assert set(both) == set(one)
    # A run with none of this is judged like one with all of it.
    for out in ("alone", "worst"):
        judged = mafl("evaluate", case / out, "--model", case / "model.ts", "--fail-if", "target_iou > 0.99")
        assert judged.exit_code == 5, judged.stderr
        assert "is missing" not in judged.stderr


def test_statistics_of_the_whole_scan_are_those_of_what_was_put_together(case: Path) -> None:
    alone, found = (run(case, name, "--method", name, "--intensity", "zscore") for name in ("mafl", "worst"))
    attack = found["cases"][0]["attack"]
    assert attack["samples"]["reached"] >= alone["cases"][0]["attack"]["samples"]["reached"]
    assert attack["samples"]["reached"] == sum(each["reached"] for each in attack["worst"]["samples"])


@pytest.mark.parametrize("file", ["adversarial.nii.gz", "perturbation.nii.gz"])
def test_a_search_begins_at_an_earlier_result(case: Path, file: str) -> None:
    run(case, "earlier", "--method", "mafl", "--seed", 1)
    found = run(case, "worst", "--method", "worst", "--start", case / "earlier" / file)
    kind = "a changed scan" if file.startswith("adversarial") else "a perturbation"
    assert f"{file}: taken for {kind}" in found["said"]
    assert found["run"]["settings"]["start"] == [file]
    assert "start" in [each["name"] for each in found["cases"][0]["attack"]["worst"]["searches"]]


def test_a_start_that_does_not_fit_is_refused(case: Path) -> None:
    nib.save(nib.Nifti1Image(scan_array(), np.diag([2, 2, 2, 1])), case / "other.nii.gz")
    options = ("attack", case / "scan.nii.gz", "-t", "erase:1", "--model", case / "model.ts", "-o", case / "out")
    refused = mafl(*options, "--method", "worst", "--start", case / "other.nii.gz")
    assert refused.exit_code == 3
    assert "scan.nii.gz and other.nii.gz are not on the same grid" in refused.stderr
    refused = mafl(*options, "--start", case / "scan.nii.gz")
    assert refused.exit_code == 2
    assert "--start are for the method worst, not for mafl" in refused.stderr
