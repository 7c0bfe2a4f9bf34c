"""How often a change fools networks that it was not made with, at equal length, and what each ingredient gives.

    python benchmarks/transfer.py --cache DIR [--task mr ct] [--steps 100] [--every 1] [--out docs]

DIR is what `travel_made.py` made: networks with their roles, scans that none of them saw, and targets. Every change but
the shortest has twice its length. A hit is a voxel that the target changes, that the victim did not draw so before, and
draws so now; intervals are 95 % of 10,000 bootstraps over the problems. d' and the compression equivalent say how well
each change can be seen. Writes transfer.json into --out, and prints the tables of transfer.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from travel_set import CPU, Entry, TravelSet, seen

from mafl_cli.case.prepare import Case
from mafl_cli.case.request import ModelRequest
from mafl_cli.case.searching import Found
from mafl_cli.case.subject import prepare_subject
from mafl_cli.case.travelling import made_to_travel
from mafl_cli.case.worst import searched
from mafl_cli.config import preset
from mafl_cli.field.preprocess import per_channel
from mafl_cli.network.source import Joined
from mafl_cli.search import travel

LENGTH = 2.0


@dataclass(frozen=True)
class Way:
    """How a change is made. many: by all surrogates. constants: of `search.travel`, in the place of its own."""

    name: str
    many: bool = False
    travels: bool = True
    scaled: bool = False
    constants: tuple[tuple[str, float], ...] = ()


WAYS = (
    Way("shortest", travels=False),
    Way("shortest, made longer", travels=False, scaled=True),
    Way("transfer"),
    Way("transfer, no scale and shift", constants=(("SCALE", 0.0), ("SHIFT", 0.0))),
    Way("transfer, unsmoothed slopes", constants=(("BLUR", 0.0),)),
    Way("transfer, no momentum", constants=(("MOMENTUM", 0.0),)),
    Way("shortest, made longer, surrogates", many=True, travels=False, scaled=True),
    Way("transfer, surrogates", many=True),
)


def main() -> None:
    asked = TravelSet.asked(__doc__)
    rows: list[Entry] = []
    for task in asked.tasks:
        networks, problems = asked.of_task(task)
        for problem in problems:
            rows += measured(asked, problem, networks)
            print(task, problem["name"], file=sys.stderr, flush=True)
        show(task, [row for row in rows if row["task"] == task], networks)
    asked.write("transfer.json", rows)


def measured(asked: TravelSet, problem: Entry, networks: list[Entry]) -> Iterator[Entry]:
    """A row for each way."""
    surrogates = [asked.cache / each["file"] for each in networks if each["role"] == "surrogate"]
    shortest: dict[bool, tuple[Case, Found]] = {}
    first_length = 0.0
    for way in WAYS:
        if way.many and len(surrogates) < 2:
            continue
        model = Joined(tuple(surrogates)) if way.many else surrogates[0]
        config = preset("mafl", steps=asked.steps)
        if way.many not in shortest:
            case = asked.case(problem, model, config)
            shortest[way.many] = (case, searched(case, config, None))
        case, found = shortest[way.many]
        native, clean = found.adversarial.whole(), case.subject.clean
        first_length = first_length or float((native - clean).norm())
        # The shortest change for all surrogates is longer than that for one; all have the same length here.
        multiple = LENGTH * first_length / float((native - clean).norm())
        if way.scaled:
            delta = multiple * (native - clean) / per_channel(case.limits.unit, clean)
            native = case.limits.project(clean, delta, torch.arange(len(clean)))
        if way.travels:
            with ExitStack() as changed:
                for name, value in way.constants:
                    changed.enter_context(mock.patch.object(travel, name, value))
                native = made_to_travel(case, replace(config, transfer=multiple), found).adversarial.whole()
        yield row_of(asked, problem, way, case, native, networks, first_length)


def row_of(
    asked: TravelSet, problem: Entry, way: Way, case: Case, native: Tensor, networks: list[Entry], first_length: float
) -> Entry:
    """What every network makes of a changed scan."""
    subject = case.subject
    changed = [replace(scan, data=data) for scan, data in zip(subject.scans, subject.as_volume(native), strict=True)]
    target = case.target.labels
    edit = subject.layout.from_batch(case.edit().numpy()[:, None])
    hits = {}
    for network in networks:
        own = ModelRequest(model=asked.cache / network["file"])
        victim = prepare_subject(subject.scans, own, CPU, lambda line: None)
        before, after = (victim.predict([scan.data for scan in scans]) for scans in (subject.scans, changed))
        wanted = edit & (before != target)
        hits[network["name"]] = float((wanted & (after == target)).sum() / max(1, wanted.sum()))
    visible = seen(subject, changed)
    return {
        "task": problem["task"],
        "problem": problem["name"],
        "way": way.name,
        "l2_over_shortest": float((native - subject.clean).norm()) / first_length,
        "d_prime": visible.d_prime.value,
        "compression_equivalent": visible.compression_equivalent.value,
        "hits": hits,
    }


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean and 95 % interval by 10,000 bootstraps of the problems."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def show(task: str, rows: list[Entry], networks: list[Entry]) -> None:
    """A table in Markdown: ways down, roles across; and what each ingredient gives."""
    roles = ("surrogate", "fold", "architecture", "both")
    named = {role: [each["name"] for each in networks if each["role"] == role] for role in roles}
    print(f"\n{task}: {len({row['problem'] for row in rows})} problems\n")
    print("| " + " | ".join(["change", "L2", "d'", *(f"{role} ({', '.join(named[role])})" for role in roles)]) + " |")
    print("| --- |" + " ---: |" * (2 + len(roles)))

    def rates(way: str, role: str) -> NDArray[np.float64]:
        here = [row for row in rows if row["way"] == way]
        return np.array([np.mean([row["hits"][name] for name in named[role]]) for row in here])

    ways = list(dict.fromkeys(row["way"] for row in rows))
    for way in ways:
        here = [row for row in rows if row["way"] == way]
        cells = []
        for role in roles:
            mean, low, high = interval(rates(way, role)) if named[role] else (np.nan,) * 3
            cells.append(f"{mean:.2f} ({low:.2f}–{high:.2f})")
        length = np.mean([row["l2_over_shortest"] for row in here])
        d_prime = np.mean([row["d_prime"] or np.nan for row in here])
        print(f"| {way} | {length:.2f} | {d_prime:.0f} | " + " | ".join(cells) + " |")
    for name, one, other in (
        ("transfer beside the shortest, as long", "transfer", "shortest, made longer"),
        ("scale and shift", "transfer", "transfer, no scale and shift"),
        ("smoothed slopes", "transfer", "transfer, unsmoothed slopes"),
        ("momentum", "transfer", "transfer, no momentum"),
        ("several surrogates", "transfer, surrogates", "transfer"),
    ):
        if one in ways and other in ways:
            gains = [interval(rates(one, role) - rates(other, role)) for role in roles[1:] if named[role]]
            print(f"- {name}: " + ", ".join(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, low, high in gains))


if __name__ == "__main__":
    main()
