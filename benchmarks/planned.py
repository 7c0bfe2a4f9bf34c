"""Which runs the benchmark makes, what each takes, and what its result depends on."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cases
import peers
import released
from results import PICTURED
from sources import is_volume, source_of

from mafl_cli.config import config_hash, preset
from mafl_cli.field import boxes, preprocess, resample, tiling, whole, windows
from mafl_cli.measure import agreement
from mafl_cli.network import load, prediction, segmenter
from mafl_cli.search import goals, limits
from mafl_cli.search import loop as engine

AT_GOAL = "mafl at the goal"
"""mafl that aims at its goal and no further: what the shortest change is looked for with."""
PRESETS = ("pgd", "mifgsm", "segpgd", "cospgd", "ssah", "dag")
PEERS = ("pdgd", *released.ATTACKS)
METHODS = (AT_GOAL, "mafl", "mafl-paper", "asma", *PRESETS, *PEERS)
GOALS = (0.9, 0.95)
"""Further goals of mafl, beside its default, on the problems of the picture."""

SLICES: dict[str, tuple[int, ...]] = {
    AT_GOAL: (40, 50, 150, 500),
    "mafl": (50, 150),
    "mafl-paper": (50, 150),
    "asma": (50, 150),
    **dict.fromkeys(PRESETS, (50,)),
    **dict.fromkeys(PEERS, (150,)),
}
"""Passes for each method on slices."""
AS_RELEASED = {"adv-lib PDGD": 500, "adv-lib ALMA-prox": 500}
"""The steps that attacks have by default, on the slices of the picture."""
CUBE: dict[str, tuple[int, ...]] = {AT_GOAL: (40, 50, 150), "mafl": (50,), "mafl-paper": (50,), "asma": (50,)}
COMPARED = CUBE | {"mafl": (50, 150), "mafl-paper": (150,), "asma": (50, 150)}
VOLUMES: dict[str, dict[str, tuple[int, ...]]] = {
    "brats3d_pat0003/crop96:shifted20": COMPARED | {"adv-lib PDGD": (150,)},
    "brats3d_windows:shifted20": {AT_GOAL: (40, 50, 150), "mafl": (50,)},
    "t1_gwm_headbox:hole_sphere": COMPARED,
    "t1_brainmask_128:eroded8mm": {AT_GOAL: (50, 150)},
    "t1_brainmask_128:hole16mm": {AT_GOAL: (40, 50), "mafl": (50,), "asma": (50,)},
    "deepbet_mask:hole16mm": {AT_GOAL: (50,)},
}
"""The same for networks that see volumes, CUBE where nothing is said: a pass costs ten to a hundred slices."""

COMMON = (cases, load, prediction, segmenter, preprocess, boxes, whole, goals, limits, agreement)
"""The programs that every result depends on."""
OF_WINDOWS = (tiling, windows, resample)
ENGINE = sorted(Path(str(engine.__file__)).parent.glob("*.py"))

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One run. `settings` change the preset of that name, or are the parameters of a peer."""

    case: str
    method: str
    passes: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def preset(self) -> str | None:
        """Of mafl's own engine; None for a peer, which has none."""
        if self.method.startswith("mafl"):
            return "mafl-paper" if self.method == "mafl-paper" else "mafl"
        return self.method if self.method in PRESETS else None

    @property
    def key(self) -> str:
        """Changes with the settings, the entry of the problem and the programs that make the result.

        Comments and docstrings aside. What another problem or method needs does not count.
        """
        used = [Path(str(module.__file__)) for module in COMMON]
        if self.preset is not None:
            used += ENGINE
        elif self.method in released.ATTACKS:
            used.append(Path(released.__file__))
        used.append(Path(peers.__file__))
        source = source_of(self.case)
        if source is not None and source.window is not None:
            used += [Path(str(module.__file__)) for module in OF_WINDOWS]
        overrides = {} if "goals" in self.settings else self.settings
        settings = {} if self.preset is None else asdict(preset(self.preset, steps=self.passes, **overrides))
        library = released.version() if self.method in released.ATTACKS else None
        programs = [_program(path) for path in used]
        return config_hash([asdict(self), settings, repr(source), library, programs]).partition(":")[2][:16]

    @property
    def cost(self) -> float:
        """Passes of mafl that take about as long."""
        return self.passes * (4 / 3 if self.method in released.ATTACKS else 1)


def tasks(names: Sequence[str], passes: Sequence[int], methods: Sequence[str], long: int | None) -> Iterator[Task]:
    """All runs, the problems one after the other, so that each process loads few of them.

    passes: those that are wanted of the ones above. long: passes of one more run for each problem in slices.
    """
    for name in names:
        planned = VOLUMES.get(name, CUBE) if is_volume(name) else SLICES
        for method in methods:
            if method in released.ATTACKS and released.version() is None:
                continue
            budgets = [count for count in planned.get(method, ()) if count in passes]
            if method in AS_RELEASED and AS_RELEASED[method] in passes and name in PICTURED and not is_volume(name):
                budgets.append(AS_RELEASED[method])
            yield from _of_method(name, method, budgets)
        if long is not None and AT_GOAL in methods and not is_volume(name):
            yield from _of_method(name, AT_GOAL, [long])


def _of_method(name: str, method: str, budgets: Sequence[int]) -> Iterator[Task]:
    if method == "asma":
        for tau in peers.TAUS if budgets else ():
            yield Task(name, method, max(budgets), {"tau": tau, "beta": 10 * tau, "marks": list(budgets)})
        return
    for count in budgets:
        yield Task(name, method, count, {"aim": preset("mafl").goal_iou} if method == AT_GOAL else {})
        if method == "mafl" and count == 150 and name in PICTURED:
            yield from (Task(name, method, count, {"goal_iou": goal, "goal_hit": goal}) for goal in GOALS)


def matching(rows: Sequence[Row]) -> Iterator[Task]:
    """For each run of a peer that looks for the shortest change: mafl with the score it reached, sample by sample."""
    for row in rows:
        if row["method"] in PEERS:
            yield Task(row["case"], f"mafl as {row['method']}", row["passes"], {"goals": row["scores"]})


def estimate(todo: Sequence[Task], second: Callable[[str], float]) -> list[tuple[str, int, float, float]]:
    """For each problem: runs, passes, and CPU seconds. second: what a pass of mafl takes on a problem."""
    plan = []
    for name in dict.fromkeys(task.case for task in todo):
        mine = [task for task in todo if task.case == name]
        matched = sum(task.cost for task in mine if task.method in PEERS) * 0.75
        passes = sum(task.cost for task in mine) + matched
        plan.append((name, len(mine), passes, passes * second(name)))
    return plan


def timed(case: cases.Case) -> float:
    """CPU seconds of a pass of the default search on all samples of a case."""
    count = 3 if case.clean.ndim == 5 else 10
    begin = time.process_time()
    engine.attack(case.field, case.clean, case.target, preset("mafl", steps=count, scale_search=0), case.limits)
    return (time.process_time() - begin) / count


@cache
def _program(path: Path) -> str:
    """The text of a module without comments, line breaks and docstrings, the same in every version of Python."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
