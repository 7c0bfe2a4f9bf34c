"""What is left of changes that were made to survive, after what they were made for and after what they were not.

    python benchmarks/surviving.py --cache DIR [--task mr ct] [--steps 100] [--every 1] [--out docs]

DIR is what `travel_made.py` made; the network is the first surrogate of each task. A hit is a voxel that the target
changes and that is drawn so after the transform. Prints the table of transfer.md, and with --out writes surviving.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mafl_cli.case.prepare import prepare
from mafl_cli.case.request import AttackRequest
from mafl_cli.case.surviving import Aimed, labels_after, left_after
from mafl_cli.case.worst import searched
from mafl_cli.config import preset
from mafl_cli.field.transforms import parse
from mafl_cli.measure.visibility import visibility_of
from mafl_cli.scans.body import unmeasured

CPU = torch.device("cpu")
MADE_FOR = "jpeg:90,blur:0.5,resample:1.5,noise:0.01,gamma:0.8"
OTHERS = "jpeg:50,jpeg2000:10,blur:1,median:3,resample:2,noise:0.03,gamma:1.25,bits:6,lowpass:0.5,crop:1"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--task", nargs="+", default=["mr", "ct"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=1, help="Every n-th problem only.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    networks = json.loads((options.cache / "networks.json").read_text())
    problems = json.loads((options.cache / "problems.json").read_text())
    rows: list[dict[str, Any]] = []
    for task in options.task:
        network = next(each for each in networks if each["task"] == task and each["role"] == "surrogate")
        for problem in [each for each in problems if each["task"] == task][:: options.every]:
            for survive in (None, MADE_FOR):
                rows.append(measured(problem, options.cache, network["file"], survive, options.steps))
            print(task, problem["name"], file=sys.stderr, flush=True)
        show(task, [row for row in rows if row["task"] == task])
    if options.out:
        lines = ",\n".join(json.dumps(row) for row in rows)
        head = json.dumps({"steps": options.steps, "torch": torch.__version__})[:-1]
        (options.out / "surviving.json").write_text(f'{head}, "rows": [\n{lines}\n]}}\n')


def measured(problem: dict[str, Any], cache: Path, model: str, survive: str | None, steps: int) -> dict[str, Any]:
    """One attack, and what is left of it after each transform."""
    config = preset("mafl", steps=steps, survive=survive)
    request = AttackRequest(
        images=(cache / problem["scan"],), targets=(cache / problem["target"],), model=cache / model,
        out=Path("unused"), config=config,
    )  # fmt: skip
    case = prepare(request, CPU, lambda line: None)
    subject = case.subject
    found = searched(case, config, None)
    data = subject.as_volume(found.adversarial.whole())
    changed = [replace(scan, data=each) for scan, each in zip(subject.scans, data, strict=True)]
    aimed = Aimed(case.target.labels, subject.to_labels(case.clean_labels), subject.info.classes)
    left = {}
    for transform in parse([*MADE_FOR.split(","), *OTHERS.split(",")]):
        before, after = (labels_after(transform, scans, subject) for scans in (subject.scans, changed))
        told = left_after(transform, before, after, aimed, (config.goal_iou, config.goal_hit))
        left[transform.name] = (told.adversarial.hit_rate.value, told.goal_reached)
    seen = visibility_of(
        subject.scans, changed, channels=subject.info.channels, slice_axis=subject.slices.index,
        outside=[unmeasured(each) for each in subject.scans],
    )  # fmt: skip
    return {
        "task": problem["task"],
        "problem": problem["name"],
        "survive": survive,
        "goal_reached": bool(found.reached(case, config).all()),
        "l2": float(((found.adversarial.whole() - subject.clean) / subject.preprocessing.unit[0]).norm()),
        "d_prime": seen.d_prime.value,
        "compression_equivalent": seen.compression_equivalent.value,
        "left": left,
        "passes": found.forward + found.backward,
    }


def show(task: str, rows: list[dict[str, Any]]) -> None:
    """Transforms down, plain and made to survive across; then the price."""
    plain, made = ([row for row in rows if bool(row["survive"]) is asked] for asked in (False, True))
    print(f"\n{task}: {len(plain)} problems\n")
    print("| after | plain | made to survive | at the goal |\n| --- | ---: | ---: | ---: |")
    for name in plain[0]["left"]:
        mark = "**" if name in MADE_FOR.split(",") else ""
        rates = [np.mean([row["left"][name][0] for row in each]) for each in (plain, made)]
        held = sum(row["left"][name][1] for row in made)
        print(f"| {mark}{name}{mark} | {rates[0]:.2f} | {rates[1]:.2f} | {held} |")
    ratios = {
        what: np.array([b[what] / a[what] for a, b in zip(plain, made, strict=True)])
        for what in ("l2", "d_prime", "passes")
    }
    for what, values in ratios.items():
        print(f"- {what}: x {np.exp(np.log(values).mean()):.2f} ({values.min():.2f} to {values.max():.2f})")
    for each, name in ((plain, "plain"), (made, "made")):
        print(f"- {name}: goal reached {sum(row['goal_reached'] for row in each)} of {len(each)}")


if __name__ == "__main__":
    main()
