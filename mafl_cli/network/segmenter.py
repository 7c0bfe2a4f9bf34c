"""The `Segmenter`: a network as a differentiable function, with the features an attack compares.

The file is read (`model_file`), tried out (`probing`) and lifted into a graph (`lifting`); see `load`. A lifted graph
holds for one exact input shape, batch included; shapes are lifted on demand and kept. A network that no graph stands
for is attacked through its file (`original`), without features; see `gradient`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.config import Precision
from mafl_cli.errors import ModelError
from mafl_cli.network import chance, straight
from mafl_cli.network.lifting import Gives, Lifted, Output, lift
from mafl_cli.network.model_file import Format, ModelFile, quiet_torchscript
from mafl_cli.network.original import Original, logits_of
from mafl_cli.network.prediction import Patch, Prediction
from mafl_cli.network.probing import run
from mafl_cli.network.reasons import REFUSALS, is_out_of_memory, meaning
from mafl_cli.network.straight import Plan

KEPT_GRAPHS = 12
"""Lifted graphs kept at a time: each holds the network's constants once more."""
_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

GradientFrom = Literal["graph", "file", "none"]
"""What the search differentiates: the graph lifted from the model file, the file itself, or nothing."""


class Segmenter:
    """A model: (B, C, *spatial) in model units -> Prediction, differentiable with respect to the input.

    Make one with `load`. Every size must be a multiple of `divisor`; a size the network refuses raises ModelError.

    exact: the same model in float32; itself if it is that. original: its file, which judges what was found.
    gradient_from: what is differentiated.
    tried: the shape, (1, C, *spatial), that it was tried with.
    """

    gradient_from: GradientFrom = "graph"
    tried: tuple[int, ...] = ()

    def __init__(
        self,
        file: ModelFile,
        name: str,
        output: Output,
        device: torch.device,
        taps: Sequence[tuple[str, float]] = (("auto", 1.0),),
        precision: Precision = "float32",
    ) -> None:
        self.device = device
        self.name = name
        self.exact = self if precision == "float32" else Segmenter(file, name, output, device, taps)
        self.original: Original = (
            Original(file, name, output, device) if precision == "float32" else self.exact.original
        )
        self._file = file
        self._wanted = tuple(taps)
        self._precision: Precision = precision
        self._lifted: OrderedDict[tuple[int, ...], Lifted] = OrderedDict()
        self._one_by_one = self._functional = False
        self._plan: Plan | None = None
        self._loaded_with: GradientFrom = "graph"
        self._chance_for_good = False

    @property
    def format(self) -> Format:
        """What the network was read from."""
        return self._file.format

    @property
    def by_chance(self) -> bool:
        """Whether its file answers differently each time; then every pass should be in a draw, see `chance`."""
        return self.original.by_chance

    @property
    def members_in_turn(self) -> bool:
        """Whether one answer takes several passes, of which a gradient keeps one at a time."""
        return self._file.members > 1

    def members_of(self, ready: Tensor) -> list[tuple[Segmenter, Tensor]]:
        """The networks whose graphs are differentiated, each with what it gets of an input of this one."""
        return [(self, ready)]

    @property
    def surrogates(self) -> tuple[Segmenter, ...]:
        """The single networks that it is made of, in float32."""
        return (self.exact,)

    @property
    def cuts(self) -> bool:
        """Whether the gradient of its file may be another than the derivative of what it computes."""
        return self._file.cuts

    def __call__(self, x: Tensor) -> Prediction:
        """Raises ModelError if the network refuses the size of `x`."""
        if self.gradient_from == "file":
            with self._casting():
                return self.original(x)
        # What a batch shares, by chance, its samples would share.
        if (self._one_by_one or self.by_chance) and len(x) > 1:
            parts = [self(part) for part in torch.split(x, 1)]
            together = (
                replace(patch, features=torch.cat([part.features[index].features for part in parts]))
                for index, patch in enumerate(parts[0].features)
            )
            return Prediction(torch.cat([part.logits for part in parts]), tuple(together))
        # A graph is bound to its batch size, so batches are filled up to the next power of two: few graphs serve
        # a batch that shrinks as slices finish.
        batch = 1 << (len(x) - 1).bit_length()
        filled = torch.cat([x, x[-1:].expand(batch - len(x), *x.shape[1:])]) if batch > len(x) else x
        ready = self.original.enlarged(filled)
        try:
            lifted = self.lifted(ready)
        except ModelError:
            if len(filled) == 1:
                raise
            # Some networks were traced or exported for one sample and hold that number.
            self._one_by_one = True
            return self(x)
        chance.begin()
        raw, *features = lifted.graph(ready)
        gives: Gives = "probabilities" if lifted.gives == "probabilities" else "logits"
        logits = logits_of(raw.float(), gives, overlapping=self.original.output.overlapping)
        pad = self.original.around(x)
        patches = tuple(
            Patch(feature[: len(x)].float(), tap.weight, lambda mask: F.pad(mask, pad))
            for feature, tap in zip(features, lifted.taps, strict=True)
        )
        return Prediction(self.original.onto_input(logits[: len(x)], x.shape[2:]), patches)

    def as_given(self, ready: Tensor) -> Tensor:
        """What the graph gives in place of the file's own output, without gradient: (B, n, *spatial)."""
        with torch.no_grad():
            lifted = self.lifted(ready)
            chance.begin()
            return lifted.as_given(lifted.graph(ready)[0])

    def lifted(self, x: Tensor) -> Lifted:
        """The graph for inputs of the shape of `x`, made now if there is none yet."""
        shape = tuple(x.shape)
        if shape in self._lifted:
            self._lifted.move_to_end(shape)
            return self._lifted[shape]
        try:
            outputs = run(self._file.module, x)
            if isinstance(outputs, Exception):
                raise outputs
            if self._file.frozen is not self._file.module:
                # The first run of a ScriptModule takes notes of every value, each an operation to be recorded.
                run(self._file.frozen, x)
            with quiet_torchscript(), self._casting():
                lifted = lift(
                    self._file.frozen, x, self.original.output, self._wanted, self.name, functional=self._functional
                )  # fmt: skip
        except REFUSALS as exc:
            if is_out_of_memory(exc):
                raise
            raise ModelError(f"{self.name}: does not accept an input of shape {shape} ({meaning(exc)}).") from exc
        if self._plan is not None:
            lifted = straight.straightened(lifted, self._plan)
        self._lifted[shape] = lifted
        if len(self._lifted) > KEPT_GRAPHS:
            self._lifted.popitem(last=False)
        return lifted

    def straightened(self, x: Tensor) -> tuple[Segmenter, Plan]:
        """The same network with slopes that say where to go, see `straight`, and what was done to it.

        x: (1, C, *spatial), model units: what the operators do with it decides.
        """
        ready = self.original.enlarged(x)
        plan = straight.diagnose(self.lifted(ready), ready)
        twin = copy(self)
        twin._lifted, twin._plan, twin.exact = OrderedDict(), plan, twin
        return twin, plan

    def take_one_by_one(self) -> None:
        """From now on every sample goes through the network alone."""
        self._one_by_one = self.exact._one_by_one = True

    def take_file(self, *, for_good: bool = False) -> None:
        """From now on the file itself is differentiated, without features.

        for_good: for every scan; else until `renew`.
        """
        for each in (self, self.exact):
            each.gradient_from = "file"
            each._loaded_with = "file" if for_good else each._loaded_with
            each._lifted.clear()

    def take_chance(self, *, for_good: bool = False) -> None:
        """From now on it is known to answer differently each time. for_good: for every scan; else until `renew`."""
        self.original.by_chance = True
        self._chance_for_good = self._chance_for_good or for_good

    def renew(self) -> None:
        """Be as it was after loading: what one scan has shown of the network says nothing of the next."""
        self.original.by_chance = self._chance_for_good
        for each in (self, self.exact):
            each.gradient_from = each._loaded_with

    def take_regions(self) -> None:
        """From now on each channel of the output is a region of its own, and regions may overlap."""
        self.original.output = replace(self.original.output, overlapping=True)

    def take_functional(self) -> None:
        """From now on graphs hold no operators that work in place."""
        for each in (self, self.exact):
            each._functional = True
            each._lifted.clear()

    def activation_bytes(self, x: Tensor) -> int:
        """Bytes of all intermediate values for an input like `x`: what a backward pass keeps, at the most."""
        if self.gradient_from == "file":
            return _saved_bytes(self._file.member or self, x)
        nodes = self.lifted(self.original.enlarged(x)).graph.graph.nodes
        metas = [node.meta.get("tensor_meta") for node in nodes if node.op == "call_function"]
        return sum(math.prod(meta.shape) * meta.dtype.itemsize for meta in metas if hasattr(meta, "shape"))

    def _casting(self) -> Any:
        """Under autocast the casts become part of the graph."""
        dtype = _DTYPES.get(self._precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def _saved_bytes(network: Callable[[Tensor], object], x: Tensor) -> int:
    """Bytes that autograd keeps of a pass of `x`, each tensor counted once."""
    kept: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        kept[saved.data_ptr()] = saved.numel() * saved.element_size()
        return saved

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        network(x.detach().clone().requires_grad_())
    return sum(kept.values())
