"""The `Segmenter`: a network as a differentiable function, with the features an attack compares.

The file is read (`model_file`), tried out (`probing`) and lifted into a graph (`lifting`); see `load`. A lifted graph
holds for one exact input shape, batch included; shapes are lifted on demand and kept.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.config import Precision
from mafl_cli.errors import ModelError
from mafl_cli.network.lifting import Gives, Lifted, Output, leaves, lift
from mafl_cli.network.model_file import Format, ModelFile, quiet_torchscript
from mafl_cli.network.prediction import Patch, Prediction
from mafl_cli.network.probing import run
from mafl_cli.network.reasons import REFUSALS, is_out_of_memory, meaning

KEPT_GRAPHS = 12
"""Lifted graphs kept at a time: each holds the network's constants once more."""
_TOLERANCE = 1e-2
"""How far the graph's answer may be from the file's, in shares of the file's largest value."""
_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Segmenter:
    """A lifted model: (B, C, *spatial) in model units -> Prediction, differentiable with respect to the input.

    Make one with `load`. Every size must be a multiple of `divisor`; a size the network refuses raises ModelError.

    exact: the same model in float32, to judge what a lower precision found; itself if it is that.
    decides: whether the network looks at values of its input to decide what to compute: what the graph answers is then
        compared with the file, see `verifying`.
    tried: the shape, (1, C, *spatial), that it was tried with.
    """

    decides = False
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
        self._file = file
        self._output = output
        self._wanted = tuple(taps)
        self._precision: Precision = precision
        self._lifted: OrderedDict[tuple[int, ...], Lifted] = OrderedDict()
        self._larger: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._one_by_one = False
        self._functional = self._verifying = False

    @property
    def format(self) -> Format:
        """What the network was read from."""
        return self._file.format

    def __call__(self, x: Tensor) -> Prediction:
        """Raises ModelError if the network refuses the size of `x`."""
        if self._one_by_one and len(x) > 1:
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
        ready = self.enlarged(filled)
        try:
            lifted = self.lifted(ready)
        except ModelError:
            if len(filled) == 1:
                raise
            # Some networks were traced or exported for one sample and hold that number.
            self._one_by_one = True
            return self(x)
        raw, *features = lifted.graph(ready)
        if self._verifying and self.decides:
            self._verify(ready, lifted, raw)
        logits = _logits(raw.float(), lifted.gives, overlapping=self._output.overlapping)
        pad = self._around(x) if any(self._output.margin) else []
        patches = tuple(
            Patch(feature[: len(x)].float(), tap.weight, lambda mask: F.pad(mask, pad))
            for feature, tap in zip(features, lifted.taps, strict=True)
        )
        return Prediction(self._onto_input(logits[: len(x)], x.shape[2:]), patches)

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
                    self._file.frozen, x, self._output, self._wanted, self.name, functional=self._functional
                )  # fmt: skip
        except REFUSALS as exc:
            if is_out_of_memory(exc):
                raise
            raise ModelError(f"{self.name}: does not accept an input of shape {shape} ({meaning(exc)}).") from exc
        self._lifted[shape] = lifted
        if len(self._lifted) > KEPT_GRAPHS:
            self._lifted.popitem(last=False)
        return lifted

    @contextmanager
    def verifying(self) -> Iterator[None]:
        """Meanwhile answers of a network that decides by its input are compared with the file's, sample by sample.

        Calling it raises ModelError if the file says otherwise.
        """
        self._verifying = True
        try:
            yield
        finally:
            self._verifying = False

    def _verify(self, ready: Tensor, lifted: Lifted, raw: Tensor) -> None:
        outputs = run(self._file.module, ready)
        if isinstance(outputs, Exception):
            raise ModelError(f"{self.name}: refuses this scan: {meaning(outputs)}.")
        mine, theirs = lifted.as_given(raw), leaves(outputs)[self._output.leaf]
        if mine.shape != theirs.shape or not bool((mine - theirs).abs().max() <= _TOLERANCE * theirs.abs().max()):
            raise ModelError(
                f"{self.name}: decides by the values of its input (an if, a loop, or chance) and does not "
                "treat all of this scan alike, so no one graph stands for it; export it without that, for "
                "example with torch.where."
            )

    def is_independent(self, shape: Sequence[int]) -> bool:
        """Whether what it says of a sample of `shape`, (1, C, *spatial), is the same next to another one.

        The file itself is asked: a graph for two samples takes longer to record than to do without.
        """
        generator = torch.Generator().manual_seed(1)
        both = torch.rand((2, *shape[1:]), generator=generator).to(self.device)
        both[1] = 3 * both[1] - 1
        both = self.enlarged(both)
        own: Gives = "logits" if self.lifted(both[:1]).gives == "logits" else "probabilities"
        found = []
        for x in (both[:1], both):
            outputs = run(self._file.module, x)
            if isinstance(outputs, Exception):  # It holds the batch of its example somewhere inside.
                return False
            raw = leaves(outputs)[self._output.leaf].float()
            found.append(_logits(raw, own, overlapping=self._output.overlapping)[:1])
        alone, together = found
        return alone.shape == together.shape and bool((alone - together).abs().max() <= 1e-3 * alone.abs().max())

    def take_one_by_one(self) -> None:
        """From now on every sample goes through the network alone."""
        self._one_by_one = self.exact._one_by_one = True

    def take_decisions(self) -> None:
        """From now on graphs are recorded with what is to be predicted, one sample at a time; see `verifying`."""
        self.take_one_by_one()
        for each in (self, self.exact):
            each.decides = True
            each.forget()

    def take_regions(self) -> None:
        """From now on each channel of the output is a region of its own, and regions may overlap."""
        for each in (self, self.exact):
            each._output = replace(self._output, overlapping=True)

    def take_functional(self) -> None:
        """From now on graphs hold no operators that work in place."""
        for each in (self, self.exact):
            each._functional = True
            each.forget()

    def forget(self) -> None:
        """Let go of all graphs."""
        self._lifted.clear()

    def activation_bytes(self, x: Tensor) -> int:
        """Bytes of all intermediate values for an input like `x`: what a backward pass keeps, at the most."""
        nodes = self.lifted(self.enlarged(x)).graph.graph.nodes
        if self.decides:
            self.forget()  # It was recorded with an input that is none.
        metas = [node.meta.get("tensor_meta") for node in nodes if node.op == "call_function"]
        return sum(math.prod(meta.shape) * meta.dtype.itemsize for meta in metas if hasattr(meta, "shape"))

    def _casting(self) -> Any:
        """Under autocast the casts become part of the graph."""
        dtype = _DTYPES.get(self._precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def enlarged(self, x: Tensor) -> Tensor:
        """`x` as the network gets it: with edge values around it when valid convolutions take away so much."""
        return F.pad(x, self._around(x), mode="replicate") if any(self._output.margin) else x

    def _around(self, x: Tensor) -> list[int]:
        """What `enlarged` puts around `x`, as torch's pad wants it: the last axis first."""
        size = tuple(x.shape[2:])
        if size not in self._larger:
            self._larger[size] = self._accepted_above(x[:1])
        pad: list[int] = []
        for wanted, given, margin in zip(self._larger[size], size, self._output.margin, strict=True):
            pad = [margin // 2, wanted - given - margin // 2, *pad]
        return pad

    def _accepted_above(self, x: Tensor) -> tuple[int, ...]:
        """The smallest size the network takes that leaves the size of `x` after its margins."""
        least = [size + margin for size, margin in zip(x.shape[2:], self._output.margin, strict=True)]
        for extra in range(64):
            size = tuple(n + extra for n in least)
            given = leaves(run(self._file.module, torch.zeros(1, x.shape[1], *size, device=x.device)))
            leaf = given[self._output.leaf] if len(given) > self._output.leaf else None
            if isinstance(leaf, Tensor) and tuple(leaf.shape[2:]) == tuple(
                n - m for n, m in zip(size, self._output.margin, strict=True)
            ):
                return size
        raise ModelError(f"{self.name}: accepts no size that covers {' x '.join(map(str, x.shape[2:]))} voxels.")

    def _onto_input(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits on the input's grid."""
        if self._output.coarse > 1:
            flat = logits.flatten(1, -1 - len(size))
            mode = "bilinear" if len(size) == 2 else "trilinear"
            up = F.interpolate(flat, scale_factor=self._output.coarse, mode=mode, align_corners=False)
            logits = up.view(*logits.shape[: -len(size)], *up.shape[2:])
        inside: Any = (..., *(slice(n) for n in size))
        return logits[inside]


def _logits(raw: Tensor, gives: Gives, *, overlapping: bool) -> Tensor:
    """Logits of at least two classes, (B, K, *spatial) or (B, 2, R, *spatial), from the graph's (B, n, *spatial)."""
    one = overlapping or raw.shape[1] == 1
    if gives == "probabilities":
        # 1e-7 is about float32's resolution next to 1: the logit of a saturated voxel stays finite.
        p = raw.clamp(1e-7, 1 - 1e-7)
        raw = torch.log(p) - torch.log1p(-p) if one else torch.log(p)
    if not one:
        return raw
    # softmax([-z/2, z/2])[1] = sigmoid(z): one logit becomes two classes and the rest of the program knows only
    # that. Both halves carry it, so that a loss on the background's logit alone has a slope too.
    return torch.stack([-raw / 2, raw / 2], dim=1) if overlapping else torch.cat([-raw / 2, raw / 2], dim=1)
