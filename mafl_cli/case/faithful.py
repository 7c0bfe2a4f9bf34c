"""Whether what is attacked is what the model file computes: asked on the scan itself, before the search and after it.

A graph is recorded with one input, and the file may decide otherwise for another. So both are asked on the clean scan,
on a brighter one and on what the search found; and the file twice, for some networks answer differently each time on
scans alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.problem import Problem, Seen
from mafl_cli.case.subject import Subject
from mafl_cli.classes import in_any_map
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.samples import Drawn, OfScan, Samples
from mafl_cli.network import gradient
from mafl_cli.network.gradient import Difference
from mafl_cli.network.load import BY_CHANCE
from mafl_cli.results.report import Faithful

_MOST = 16
"""Slices, or windows, that are asked about before the search: those with most to change."""
_FEW = 8
"""Slices that are asked about twice: those with most to change."""


@dataclass(frozen=True)
class Faithfulness:
    """What was found on one scan.

    record: for the report. sentence: why the file itself is differentiated since then, if it is.
    """

    record: Faithful | None
    sentence: str | None = None


def ask(problem: Problem, rows: Tensor) -> Faithfulness:
    """Compare graph and file on the clean scan; where they differ, the file itself is differentiated.

    Args:
        rows: samples that will be attacked.
    Raises: ModelError if the file would be differentiated and has no gradient.
    """
    seen, edit = problem.seen, problem.edit()
    segmenter = seen.segmenter
    largest = edit.flatten(1).sum(dim=1)[rows].argsort(descending=True, stable=True)[:_MOST]
    clean = [ready for _, ready in _inputs(seen, seen.clean, seen.preprocessing, edit, rows[largest].tolist())]
    answers = [gradient.answered(segmenter, ready) for ready in clean]
    if segmenter.gradient_from == "file":
        return Faithfulness(None)
    apart = [gradient.difference(segmenter, *pair) for pair in zip(clean, answers, strict=True)]
    brighter = [gradient.difference_brightened(segmenter, ready) for ready in clean[:1]]
    record = Faithful(compared=len(clean), clean=_most(apart), brightened=_most(brighter), adversarial=None)
    if not any(each.matters for each in (*apart, *brighter)):
        return Faithfulness(record)
    return Faithfulness(record, _differentiate_file(seen, clean[0]))


def ask_again(
    problem: Problem, before: Faithfulness, found: Samples, statistics: Preprocessing, rows: Sequence[int]
) -> tuple[Faithfulness, list[int]]:
    """Compare graph and file on what the search found, and which samples were searched on what is not the model.

    Where there are any, the file itself is differentiated from then on.
    Raises: ModelError if the file has no gradient.
    """
    seen = problem.seen
    if before.record is None or seen.segmenter.gradient_from == "file":
        return before, []
    apart = [
        (row, ready, gradient.difference(seen.segmenter, ready))
        for row, ready in _inputs(seen, found, statistics, problem.edit(), rows)
    ]
    strayed = [(row, ready) for row, ready, each in apart if each.matters]
    after = replace(before, record=replace(before.record, adversarial=_most(each for _, _, each in apart)))
    if strayed:
        after = replace(after, sentence=_differentiate_file(seen, strayed[0][1]))
    return after, sorted({row for row, _ in strayed})


S = TypeVar("S", bound=Seen)


def looked_for_chance(seen: S, drawn: Drawn, wanted: Tensor) -> tuple[S, Drawn]:
    """The same, if the model answers the same each time where its prediction is not the target; else with what that
    means, and the prediction made anew.

    wanted: the target as labels (B, M, *spatial).
    """
    places = in_any_map(drawn.labels != wanted, 1)
    seen = _looked_for_chance(seen, drawn.samples, drawn.preprocessing, places)
    return seen, seen.drawn(drawn.samples, drawn.preprocessing) if seen.by_chance and not drawn.draws else drawn


def _looked_for_chance(seen: S, samples: Samples, statistics: Preprocessing, places: Tensor) -> S:
    """The same, if the model answers the same each time on the samples with most places; else with what that means.

    places: bool (B, *spatial), those of interest.
    """
    if seen.by_chance:
        return seen
    voxels = places.flatten(1).sum(dim=1)
    rows = [row for row in voxels.argsort(descending=True, stable=True).tolist() if voxels[row]][:_FEW]
    segmenter = seen.segmenter
    for _, ready in _inputs(seen, samples, statistics, places, rows):
        if gradient.answers_by_chance(segmenter, ready):
            segmenter.take_chance()
            seen.say(f"{seen.info.name}: {BY_CHANCE}.")
            return replace(seen, info=seen.info.with_chance())
    return seen


def looked_for_chance_in_scan(subject: Subject, data: Sequence[NDArray[np.float32]]) -> Subject:
    """The same on the samples of a scan that differ most from those of the subject.

    data: of the scan, (I, J, K) for each channel, native. Samples that are as they were in the subject are left out.
    """
    samples = OfScan(data, subject.layout, subject.clean.device)
    changed = torch.stack(
        [(samples[torch.tensor([row])][0] != clean).any(dim=0) for row, clean in enumerate(subject.clean)]
    )
    return _looked_for_chance(subject, samples, subject.frozen(data), changed)


def _inputs(
    seen: Seen, samples: Samples, statistics: Preprocessing, edit: Tensor, rows: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """What the network gets of samples around an edit, with the number of the sample."""
    field = seen.field(statistics)
    for row in rows:
        here = torch.tensor([row], device=seen.clean.device)
        for ready in field.inputs(samples[here], edit[here.to(edit.device)], max(1, _MOST // len(rows))):
            yield row, seen.segmenter.original.enlarged(ready)


def _differentiate_file(seen: Seen, ready: Tensor) -> str:
    sentence = gradient.differentiate_file(seen.segmenter, ready)
    seen.say(f"{seen.info.name}: {sentence}")
    return sentence


def _most(differences: Iterable[Difference]) -> float | None:
    """The largest difference; None where it is not finite, or where there is none."""
    largest = max((each.largest for each in differences), default=math.inf)
    return largest if math.isfinite(largest) else None
