"""How far an attack gets that sees nothing but labels: Dice and target IoU against queries.

    python benchmarks/label_only.py --data DIR

DIR holds development scans and models (`cases/*`, `models/*`), see `sources.py`. Untargeted: two slices each of
flair2d_pat0001 and brats2d_pat0002, with the whole search and with the stripes of DLA alone. Targeted: the two slices
of brats2d_pat0002, which both networks can read (one sees FLAIR alone), attacked on one network with mafl's default and
then, by labels, on the other; also from no start.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from cases import CPU, Case, load_case
from torch import Tensor

from mafl_cli.config import preset
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.whole import Whole
from mafl_cli.network.load import load
from mafl_cli.search import label_only
from mafl_cli.search.goals import Goal
from mafl_cli.search.label_only import Spoilt, spoil
from mafl_cli.search.label_targeted import aim
from mafl_cli.search.limits import Ball, Limits
from mafl_cli.search.loop import StepRecord, attack

UNTARGETED = ("flair2d_pat0001/slab12:removed", "brats2d_pat0002/slab12:removed")
TARGETED = "brats2d_pat0002/slab12:shifted20"
EPS = (8 / 255, 16 / 255, 0.1)
ASKED = (2, 10, 25, 50, 200)
AIMED = (1, 50, 200, 500, 1000, 2000)


def drawn(case: Case, x: Tensor) -> Tensor:
    """Labels (B, *spatial)."""
    with torch.no_grad():
        return case.field.predict(x).labels


def in_range(case: Case, eps: float) -> Limits:
    """Limits with a ball of a share of each channel's range."""
    return replace(case.limits, ball=Ball(eps * (case.limits.high - case.limits.low), "linf"))


def untargeted(case: Case, eps: float, seed: int, *, stripes: bool) -> list[StepRecord]:
    """What each query brought. stripes: without the first tries that are ours."""
    labels = drawn(case, case.clean)
    goal = Spoilt(labels, 2, 0.5)
    first = label_only._first if not stripes else lambda *given: ()
    with patch.object(label_only, "_first", first):
        found = spoil(
            lambda x: drawn(case, x), case.clean, labels, in_range(case, eps), goal,
            queries=max(ASKED), seed=seed, stop=False,
        )  # fmt: skip
    return list(found.records)


def pair_of_models(data: Path) -> tuple[Case, Case]:
    """The two slices as each network sees them: the second sees FLAIR alone."""
    both = load_case(TARGETED, data)
    flair = both.clean[:, :1].contiguous()
    segmenter, _, card = load(data / "models" / "flair_unet2d.ts", device=CPU, size=lambda dims: tuple(flair.shape[2:]))
    preprocessing = Preprocessing.freeze(both.preprocessing.intensity, [flair[:, 0].numpy()], CPU)
    limits = Limits(preprocessing.low, preprocessing.high, preprocessing.unit, preprocessing.keep(flair))
    field = Whole(segmenter, preprocessing, card.divisor or 1)
    return both, replace(
        both, name="flair", field=field, segmenter=segmenter, preprocessing=preprocessing, clean=flair, limits=limits
    )


def attacked(case: Case) -> Tensor:
    """An adversarial scan of this model, by mafl's default."""
    return attack(case.field, case.clean, case.target, preset("mafl"), case.limits).adversarial


def targeted(case: Case, start: Tensor | None, queries: int, seed: int) -> tuple[float, float, list[float], float]:
    """Means over the slices: target IoU of the clean scan and at the end, the score after each query (the least of IoU,
    hit rate and removal), and the length of the change."""
    labels = drawn(case, case.clean)
    goal = Goal.of(case.target, labels, 2, iou=0.99, hit=0.99)
    found = aim(
        lambda x: drawn(case, x), case.clean, labels, case.target, case.limits, goal,
        queries=queries, start=start, seed=seed,
    )  # fmt: skip
    scores = [record.score for record in found.records]
    return float(goal.judge(labels).iou.mean()), float(found.verdict.iou.mean()), scores, found.records[-1].l2


def at(values: list[float], query: int) -> str:
    return f"{values[min(query, len(values) - 1)]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=max(AIMED), help="of the targeted search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("untargeted", "targeted"))
    asked = parser.parse_args()
    if asked.only != "targeted":
        print("| case | eps, share of the range | search | " + " | ".join(f"{n} queries" for n in ASKED) + " |")
        print("| --- " * (len(ASKED) + 3) + "|")
        for name in UNTARGETED:
            whole = load_case(name, asked.data)
            for row in range(len(whole.clean)):
                for eps in EPS:
                    for stripes in (True, False):
                        records = untargeted(whole[row : row + 1], eps, asked.seed, stripes=stripes)
                        dice = [1 - record.score for record in records]
                        shown = " | ".join(at(dice, n) for n in ASKED)
                        how = "stripes alone" if stripes else "all"
                        print(f"| {name.split('_')[0]}, slice {row + 1} | {eps:.3f} | {how} | {shown} |", flush=True)
    if asked.only != "untargeted":
        print("| attacked by labels | start | clean | " + " | ".join(f"{n} queries" for n in AIMED) + " | IoU | L2 |")
        print("| --- " * (len(AIMED) + 5) + "|")
        brats, flair = pair_of_models(asked.data)
        found = {"brats": attacked(brats), "flair": attacked(flair)}
        for case, key in ((brats, "brats"), (flair, "flair")):
            change = (found[key] - case.clean) / case.limits.unit.view(1, -1, 1, 1)
            print(f"white box, {key}: L2 {float(change.flatten(1).norm(dim=1).mean()):.2f}")
        change = found["flair"] - flair.clean
        starts = {
            "brats": torch.cat([brats.clean[:, :1] + change, brats.clean[:, 1:]], dim=1),
            "flair": found["brats"][:, :1].contiguous(),
        }
        for case, key in ((brats, "brats"), (flair, "flair")):
            for start in (starts[key], None):
                clean, iou, scores, l2 = targeted(case, start, asked.queries, asked.seed)
                shown = " | ".join(at(scores, n) for n in AIMED)
                how = "none" if start is None else "the other network's"
                print(f"| {key} | {how} | {clean:.3f} | {shown} | {iou:.3f} | {l2:.2f} |", flush=True)


if __name__ == "__main__":
    main()
