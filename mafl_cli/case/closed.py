"""Scans in front of a model of which nothing is seen but the labels that it draws, see `case.oracle`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mafl_cli.case.oracle import Oracle
from mafl_cli.case.problem import Say
from mafl_cli.case.request import ModelRequest
from mafl_cli.case.subject import Subject, prepare_subject
from mafl_cli.classes import Classes, Labels
from mafl_cli.errors import InputError, ModelError, UsageError
from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Grids
from mafl_cli.field.samples import Drawn, OfScan, Samples, stacked
from mafl_cli.names import outside
from mafl_cli.network import kinds
from mafl_cli.network.card import ModelCard
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.load import ModelInfo
from mafl_cli.network.source import Closed
from mafl_cli.scans.geometry import choose_slice_axis
from mafl_cli.scans.volume import Volume


@dataclass(frozen=True, kw_only=True)
class ClosedSubject(Subject):
    """Scans and a model that only draws: without a network nothing can be differentiated."""

    oracle: Oracle

    @property
    def by_chance(self) -> bool:
        """Nobody looks for it: every look would be a query."""
        return False

    def drawn(self, samples: Samples, preprocessing: Preprocessing, *, like: Sequence[Drawn] = ()) -> Drawn:
        batch = samples[torch.arange(len(samples))]
        labels = self.labels_on(list(self.as_volume(batch)))
        return Drawn(samples, preprocessing, torch.from_numpy(self.layout.to_batch(labels)))

    def labels_on(self, data: Sequence[NDArray[np.float32]], *, afresh: bool = False) -> Labels:
        """What is drawn on a scan, (I, J, K) for each channel, native -> (M, I, J, K). Raises: as `Oracle.codes`."""
        codes, classes = self.oracle.codes(data, afresh=afresh), self.info.classes
        if int(codes.max()) >= classes.codes:
            strange = sorted({int(code) for code in np.unique(codes) if code >= classes.codes})
            raise ModelError(
                f"{self.info.name}: drew label {', '.join(map(str, strange[:8]))}, which it did not draw on the clean "
                "scan: name all of its classes with `classes`."
            )
        return classes.decode(codes)

    def drawn_on_file(self, data: Sequence[NDArray[np.float32]], found: Drawn, clean: Drawn) -> Drawn:
        """Ask once more, whatever is known: of files that were written, it is the files that are judged."""
        labels = torch.from_numpy(self.layout.to_batch(self.labels_on(data, afresh=True)))
        asked = found.samples[torch.arange(len(found.samples))]
        if np.array_equal(np.stack(data), self.as_volume(asked)) and not torch.equal(labels, found.labels):
            self.say(
                f"{self.info.name}: draws the same scan differently each time: its numbers are those of one answer."
            )
        return Drawn(OfScan(data, self.layout, self.clean.device), self.preprocessing, labels)


def subject_of(scans: Sequence[Volume], request: ModelRequest, device: torch.device, say: Say) -> Subject:
    """Scans and a model of any kind on one grid. Raises: as `case.subject.prepare_subject`."""
    if isinstance(request.model, Closed):
        return _closed(scans, request, request.model, say)
    if request.classes is not None:
        raise UsageError("`classes` are for a model that only draws: others name their own, or their card does.")
    return prepare_subject(scans, request, device, say)


def _closed(scans: Sequence[Volume], request: ModelRequest, model: Closed, say: Say) -> ClosedSubject:
    """Let the model draw the clean scan, to know its classes."""
    _require_plain(request)
    scan = scans[0]
    # Nobody knows how it sees slices: one decision for all of a scan is right for any.
    sliced = request.mode == "2d" or (request.mode == "auto" and 1 in scan.shape)
    slices = choose_slice_axis(scan.affine, scan.shape, request.slice_axis or "auto")
    layout = Layout.for_volume(scan.affine, orientation="native", slice_axis=slices.index if sliced else None)
    intensity = request.intensity or Intensity(kind="minmax")
    try:
        preprocessing = Preprocessing.freeze(intensity, [each.data for each in scans], torch.device("cpu"))
    except InputError as exc:
        raise InputError(f"{scan.name}: {exc}") from exc
    oracle = Oracle(model, tuple(scans))
    drawn = oracle.codes([each.data for each in scans])
    highest, name = int(drawn.max()), outside(model.name)
    assumed = []
    if request.intensity is None:
        assumed.append("intensity: not stated, a model unit is the scan's range, from its lowest to its highest value")
    if request.classes is None:
        assumed.append(
            f"classes: not named, those up to {max(highest, 1)}, the highest that it draws on the clean scan"
        )
        if highest > _MOST_CLASSES:
            raise ModelError(f"{name}: drew label {highest}; classes are numbered from 0 to {_MOST_CLASSES}.")
        names = ("background", *(f"class {number}" for number in range(1, max(highest, 1) + 1)))
    else:
        names = tuple(map(outside, request.classes))
        if highest >= len(names):
            raise ModelError(
                f"{name}: drew label {highest}, but `classes` names 0 to {len(names) - 1}: name all of them."
            )
    for sentence in assumed:
        say(f"assumed for {name}: {sentence}")
    batch = stacked([each.data for each in scans], layout)
    channels = tuple(f"channel {number}" for number in range(len(scans)))
    info = ModelInfo(
        name=name, sha256=kinds.digest(model), format="command", dims=2 if sliced else 3, channels=channels,
        orientation="native", classes=Classes(names), activation="softmax", intensity=intensity, divisor=1,
        gradient_from="none", taps=(), card=None, assumptions=tuple(assumed),
    )  # fmt: skip
    return ClosedSubject(
        scans=tuple(replace(each, data=data) for each, data in zip(scans, layout.as_scan(batch), strict=True)),
        # Whoever asks for a network here would differentiate what has no derivative.
        segmenter=cast(Any, None),
        info=info,
        card=ModelCard(orientation="native", intensity=intensity),
        slices=slices,
        layout=layout,
        preprocessing=preprocessing,
        grids=Grids.same(tuple(batch.shape[2:])),
        tiling=None,
        clean=torch.from_numpy(batch),
        say=say,
        oracle=oracle,
    )


_MOST_CLASSES = 255


def _require_plain(request: ModelRequest) -> None:
    """Raise UsageError for what says how a network sees a scan: a program sees the scan as it is."""
    plain = ModelRequest(model=request.model)
    for name in ("precision", "orientation", "spacing", "roi", "overlap", "tap", "folds", "mirror"):
        if getattr(request, name) != getattr(plain, name):
            raise UsageError(f"with a model that only draws, leave out `{name}`: it sees the scan as it is.")
