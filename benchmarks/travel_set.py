"""The set of `travel_made.py` as the benchmarks on it read it: networks, problems, attacks, and what can be seen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mafl_cli.case.prepare import Case, prepare
from mafl_cli.case.request import AttackRequest
from mafl_cli.case.subject import Subject
from mafl_cli.config import AttackConfig
from mafl_cli.measure.records import Visibility
from mafl_cli.measure.visibility import visibility_of
from mafl_cli.network.source import Model
from mafl_cli.scans.body import unmeasured
from mafl_cli.scans.volume import Volume

CPU = torch.device("cpu")
Entry = dict[str, Any]
"""A network or a problem, as its list has it; or a row of results."""


@dataclass(frozen=True)
class TravelSet:
    """What is measured, and how. networks, problems: of all tasks."""

    cache: Path
    tasks: tuple[str, ...]
    steps: int
    every: int
    out: Path | None
    networks: tuple[Entry, ...]
    problems: tuple[Entry, ...]

    @staticmethod
    def asked(about: str | None) -> TravelSet:
        """As the command line asks. about: what the script says of itself."""
        parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
        parser.add_argument("--cache", type=Path, required=True)
        parser.add_argument("--task", nargs="+", default=["mr", "ct"])
        parser.add_argument("--steps", type=int, default=100)
        parser.add_argument("--every", type=int, default=1, help="Every n-th problem only.")
        parser.add_argument("--out", type=Path)
        given = parser.parse_args()
        networks, problems = (
            json.loads((given.cache / f"{name}.json").read_text()) for name in ("networks", "problems")
        )
        return TravelSet(
            given.cache, tuple(given.task), given.steps, given.every, given.out, tuple(networks), tuple(problems)
        )

    def of_task(self, task: str) -> tuple[list[Entry], list[Entry]]:
        """The networks of a task, and the problems that are measured."""
        networks = [each for each in self.networks if each["task"] == task]
        problems = [each for each in self.problems if each["task"] == task]
        return networks, problems[:: self.every]

    def case(self, problem: Entry, model: Model, config: AttackConfig) -> Case:
        """A problem as an attack on a model starts from it."""
        request = AttackRequest(
            images=(self.cache / problem["scan"],), targets=(self.cache / problem["target"],), model=model,
            out=Path("unused"), config=config,
        )  # fmt: skip
        return prepare(request, CPU, lambda line: None)

    def write(self, name: str, rows: Sequence[Entry]) -> None:
        """The rows as JSON, a row a line, where that is asked for."""
        if self.out is not None:
            lines = ",\n".join(json.dumps(row) for row in rows)
            head = json.dumps({"steps": self.steps, "torch": torch.__version__})[:-1]
            (self.out / name).write_text(f'{head}, "rows": [\n{lines}\n]}}\n')


def seen(subject: Subject, changed: Sequence[Volume]) -> Visibility:
    """Whether a change can be seen."""
    return visibility_of(
        subject.scans, changed, channels=subject.info.channels, slice_axis=subject.slices.index,
        outside=[unmeasured(each) for each in subject.scans],
    )  # fmt: skip
