"""One input after the other through the command, judged and counted."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import pkgutil
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import mafl_cli
from fuzzing import dicoms, models, runs, scans, stock, tables
from fuzzing.counts import Part
from fuzzing.forks import Child, Ended, Limits, Room, Streams, run_all
from fuzzing.judge import LARGEST, Before, Seen, Trial, judge, last_line, signature
from fuzzing.stock import RUNS, Stock

Make = Callable[[Random, Path, Stock], Trial]

# Name, how often it is chosen, and who makes its inputs.
READERS: dict[str, tuple[int, Make]] = {
    "nifti": (22, scans.scan),
    "mask": (8, scans.mask),
    "dicom": (16, dicoms.series),
    "multi-frame": (8, dicoms.enhanced),
    "seg": (7, dicoms.seg),
    "archive": (6, dicoms.archive),
    "model": (9, models.model),
    "network": (3, models.network),
    "bundle": (4, models.bundle),
    "card": (5, models.card),
    "report": (8, runs.report),
    "manifest": (7, tables.manifest),
    "gate": (5, tables.gate),
    "cluster": (2, tables.cluster),
    "name": (2, tables.name),
}

NOT_MADE = 98
"""Exit code of a child that could not make its input: no finding, and counted."""

_SAVED_OF_EACH = 3


@dataclass
class Fuzz:
    """Where things are, and what was counted so far. out: findings are saved there."""

    work: Path
    out: Path
    seed: int
    jobs: int = 1
    limits: Limits = field(default_factory=Limits)
    largest: int = LARGEST
    parts: dict[str, Part] = field(default_factory=dict)
    findings: dict[str, int] = field(default_factory=dict)
    """By signature, how often."""
    examples: dict[str, str] = field(default_factory=dict)
    """By signature, one as it was seen."""
    say: Callable[[str], None] = lambda line: None

    @property
    def stock(self) -> Stock:
        return Stock(self.work / "stock")

    def part(self, name: str) -> Part:
        return self.parts.setdefault(name, Part())

    def found(self, name: str, seen: Seen, message: str, room: Room | None, command: Sequence[str], what: str) -> None:
        """Count a finding, and save the first of each kind so that it can be tried again."""
        sign = f"{name}: {signature(seen, message)}"
        self.part(name).seen(seen.kind)
        self.findings[sign] = self.findings.get(sign, 0) + 1
        if sign not in self.examples:
            self.examples[sign] = f"{seen.detail or message}"[:300]
            self.say(f"{sign}")
        if self.findings[sign] > _SAVED_OF_EACH or room is None:
            return
        kept = self.out / f"{name}-{room.root.name}-{seen.kind.replace(' ', '-')}"
        with suppress(OSError, shutil.Error):
            shutil.copytree(room.root, kept, symlinks=True, ignore=_no_pipes)
        kept.mkdir(parents=True, exist_ok=True)
        said = {
            "command": ["mafl", *command],
            "what": what,
            "seen": seen.kind,
            "detail": seen.detail,
            "stderr": message,
        }
        (kept / "finding.json").write_text(json.dumps(said, indent=1), encoding="utf-8")


def _no_pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_fifo()]


# --- good files ---------------------------------------------------------------------------------------------------


def prepare(fuzz: Fuzz) -> None:
    """Make the good files, and load what the command loads, so that forks need not."""
    stock_root = fuzz.stock.root
    _build_the_command_once()
    if stock_root.exists():
        shutil.rmtree(stock_root)
    stock_root.mkdir(parents=True)
    warm: list[str] = []
    for name, work in (("files", lambda: stock.scans_and_models(stock_root)), *_commands(stock_root)):
        room = Room(fuzz.work / f"prepare-{name}").make()

        def noting(work: Callable[[], object] = work) -> int:
            try:
                work()
            finally:
                (room.root / "modules").write_bytes(pickle.dumps(list(sys.modules)))  # noqa: B023
            return 0

        ended = Child(room, noting, Limits(300, 600.0)).wait()
        if ended.code != 0:
            raise RuntimeError(f"the good file {name} cannot be made: {room.stderr.read_text()[-2000:]}")
        warm += pickle.loads((room.root / "modules").read_bytes())
        _import(warm)
        shutil.rmtree(room.root)
    load_all_of_mafl()


def load_all_of_mafl() -> None:
    """Every module of the command, so that no fork has to."""
    modules = pkgutil.walk_packages(mafl_cli.__path__, "mafl_cli.")
    _import([each.name for each in modules if each.name != "mafl_cli.__main__"])


def whole_command() -> Any:
    """The command line; typer puts it together of annotations at each call, half of what a small input takes."""
    import typer.main

    from mafl_cli.cli.application import app

    command = typer.main.get_command(app)
    for name, each in getattr(command, "commands", {}).items():
        # What its options are converted with is made when they are read.
        with suppress(Exception):
            each.make_context(name, ["x", "-t", "x", "-o", "x"])
    return command


def _build_the_command_once() -> None:
    import typer.main

    command = whole_command()
    typer.main.get_command = lambda typer_instance: command


def _commands(root: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    for name, arguments in RUNS.items():

        def work(arguments: Sequence[str] = arguments) -> object:
            os.chdir(root)
            return stock.run_command(arguments)

        yield name, work


def _import(names: Sequence[str]) -> None:
    """Modules that a child has needed; the next ones find them here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if name not in sys.modules and name.partition(".")[0] in _LIBRARIES:
                with suppress(Exception):
                    importlib.import_module(name)


_LIBRARIES = {
    *("mafl_cli", "torch", "numpy", "scipy", "skimage", "nibabel", "pydicom", "highdicom", "SimpleITK", "matplotlib"),
    *(
        "PIL",
        "tqdm",
        "typer",
        "click",
        "monai",
        "pydantic",
        "email",
        "multiprocessing",
        "concurrent",
        "sympy",
        "mpl_toolkits",
    ),
    *(
        "distributed",
        "dask",
        "dask_jobqueue",
        "tornado",
        "html",
        "xml",
        "zipfile",
        "tarfile",
        "gzip",
        "csv",
        "tomllib",
        "tomli",
    ),
}


# --- readers ------------------------------------------------------------------------------------------------------


@dataclass
class _Running:
    name: str
    index: int
    command: tuple[str, ...] = ()


def readers(fuzz: Fuzz, inputs: Sequence[tuple[str, int]], until: float) -> None:
    """Try inputs: pairs of a part and a number; each is made of the seed, these two, and nothing else."""
    running: dict[int, _Running] = {}

    def starts() -> Iterator[Callable[[], Child]]:
        for name, index in inputs:
            if time.monotonic() > until:
                return

            def start(name: str = name, index: int = index) -> Child:
                child = _start(fuzz, name, index)
                running[child.pid] = _Running(name, index)
                return child

            yield start

    for done, (child, ended) in enumerate(run_all(starts(), fuzz.jobs), start=1):
        _settle(fuzz, running.pop(child.pid), child.room, ended)
        if done % 500 == 0:
            fuzz.say(f"{done} inputs, {sum(fuzz.findings.values())} findings")


def order(seed: int, count: int, only: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Which part is tried when: by weight, the same for the same seed."""
    rng = Random(f"order {seed}")
    names = [name for name in READERS if not only or name in only]
    if not names:
        return []
    weights = [READERS[name][0] for name in names]
    # Every part has its share, also of few inputs.
    chosen = rng.choices(names, weights, k=max(0, count - len(names)))
    chosen = (names + chosen)[:count]
    rng.shuffle(chosen)
    numbers: dict[str, int] = {}
    pairs = []
    for name in chosen:
        numbers[name] = numbers.get(name, -1) + 1
        pairs.append((name, numbers[name]))
    return pairs


def _start(fuzz: Fuzz, name: str, index: int) -> Child:
    room = Room(fuzz.work / f"{name}-{index}").make()
    made: list[Trial] = []

    def prepare() -> Streams:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rng = Random(f"{fuzz.seed} {name} {index}")
            try:
                trial = READERS[name][1](rng, room.place, fuzz.stock)
            except Exception as exc:
                (room.root / "not-made").write_text(repr(exc)[:500], encoding="utf-8", errors="replace")
                os._exit(NOT_MADE)
        made.append(trial)
        (room.root / "trial").write_bytes(pickle.dumps((trial, Before.of(room.place))))
        return Streams(trial.stdin, trial.encoding)

    return Child(room, lambda: stock.run_command(made[0].arguments), fuzz.limits, prepare=prepare)


def _settle(fuzz: Fuzz, which: _Running, room: Room, ended: Ended) -> None:
    part = fuzz.part(which.name)
    if not (room.root / "trial").exists():
        part.not_made += 1
        if not (room.root / "not-made").exists():
            fuzz.say(f"{which.name} {which.index}: the input itself could not be made ({ended})")
    else:
        trial, before = pickle.loads((room.root / "trial").read_bytes())
        part.count(ended)
        message = last_line(room, trial.encoding)
        for seen in judge(room, trial, before, ended, fuzz.largest):
            fuzz.found(which.name, seen, message, room, trial.arguments, trial.what)
        if (room.place / models.CANARY).exists():
            fuzz.found(which.name, Seen("code was run"), message, room, trial.arguments, trial.what)
    shutil.rmtree(room.root, ignore_errors=True)
