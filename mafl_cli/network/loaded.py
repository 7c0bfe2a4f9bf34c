"""Models that stay loaded from one scan to the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from mafl_cli.config import Precision
from mafl_cli.network.card import ModelCard
from mafl_cli.network.kinds import changes
from mafl_cli.network.load import ModelInfo, load
from mafl_cli.network.opening import PLAIN, Opening
from mafl_cli.network.segmenter import Segmenter
from mafl_cli.network.source import Model

_KNOWN = 64
"""Models whose number of dimensions is remembered; without it a model is found out about again, and loaded anew."""


class LoadedModels:
    """Models that stay loaded for the next scan of the same size, the last ones that were asked for.

    kept: how many; two, for a judge beside the attacked model.
    """

    def __init__(self, kept: int = 2) -> None:
        self._kept = kept
        self._models: OrderedDict[object, tuple[Segmenter, ModelInfo, ModelCard]] = OrderedDict()
        self._dims: OrderedDict[object, int] = OrderedDict()

    def get(
        self,
        path: Model,
        *,
        device: torch.device,
        card: ModelCard,
        size: Callable[[int], tuple[int, ...]],
        tap: str,
        precision: Precision,
        opening: Opening = PLAIN,
    ) -> tuple[Segmenter, ModelInfo, ModelCard]:
        """Like `load`, with the same arguments: the model as it was left, where the file and they are the same.

        Raises: as `load`; then nothing is kept.
        """

        def fresh() -> tuple[Segmenter, ModelInfo, ModelCard]:
            return load(path, device=device, card=card, size=size, tap=tap, precision=precision, opening=opening)

        as_it_is = changes(path, opening)
        if as_it_is is None:
            return fresh()
        file = (path, as_it_is, tap, precision, card, device, opening)
        dims = card.dims or self._dims.get(file)
        model = self._models.pop((file, size(dims)), None) if dims else None
        if model is None:
            model = fresh()
            dims = self._dims[file] = model[1].dims
            _trim(self._dims, _KNOWN)
        assert dims is not None
        model[0].renew()
        self._models[file, size(dims)] = model
        _trim(self._models, self._kept)
        return model


def _trim(entries: OrderedDict[object, Any], most: int) -> None:
    """Let go of the oldest entries."""
    while len(entries) > most:
        entries.popitem(last=False)
