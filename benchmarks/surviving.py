"""What is left of changes that were made to survive, after what they were made for and after what they were not.

    python benchmarks/surviving.py --cache DIR [--task mr ct] [--steps 100] [--every 1] [--out docs]

DIR is what `travel_made.py` made; the network is the first surrogate of each task. A hit is a voxel that the target
changes and that is drawn so after the transform. Prints the table of transfer.md, and with --out writes surviving.json.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from travel_set import Entry, TravelSet, seen

from mafl_cli.case.surviving import Aimed, labels_after, left_after
from mafl_cli.case.worst import searched
from mafl_cli.config import preset
from mafl_cli.field.transforms import parse

MADE_FOR = "jpeg:90,blur:0.5,resample:1.5,noise:0.01,gamma:0.8"
OTHERS = "jpeg:50,jpeg2000:10,blur:1,median:3,resample:2,noise:0.03,gamma:1.25,bits:6,lowpass:0.5,crop:1"


def main() -> None:
    asked = TravelSet.asked(__doc__)
    rows: list[Entry] = []
    for task in asked.tasks:
        networks, problems = asked.of_task(task)
        model = asked.cache / next(each["file"] for each in networks if each["role"] == "surrogate")
        for problem in problems:
            rows += [measured(asked, problem, model, survive) for survive in (None, MADE_FOR)]
            print(task, problem["name"], file=sys.stderr, flush=True)
        show(task, [row for row in rows if row["task"] == task])
    asked.write("surviving.json", rows)


def measured(asked: TravelSet, problem: Entry, model: Path, survive: str | None) -> Entry:
    """One attack, and what is left of it after each transform."""
    config = preset("mafl", steps=asked.steps, survive=survive)
    case = asked.case(problem, model, config)
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
    visible = seen(subject, changed)
    return {
        "task": problem["task"],
        "problem": problem["name"],
        "survive": survive,
        "goal_reached": bool(found.reached(case, config).all()),
        "l2": float(((found.adversarial.whole() - subject.clean) / subject.preprocessing.unit[0]).norm()),
        "d_prime": visible.d_prime.value,
        "compression_equivalent": visible.compression_equivalent.value,
        "left": left,
        "passes": found.forward + found.backward,
    }


def show(task: str, rows: list[Entry]) -> None:
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
