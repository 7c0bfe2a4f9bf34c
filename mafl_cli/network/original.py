"""The model file itself as a function: what it answers is what the model draws.

A lifted graph (`segmenter`) is made for the search. Predictions that are reported, and that a graph is compared with,
come from here: the module as PyTorch loaded it, one sample at a time, as one would run it without this program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.errors import ModelError
from mafl_cli.network import chance
from mafl_cli.network.lifting import Gives, Output, leaves
from mafl_cli.network.model_file import ModelFile, attempt
from mafl_cli.network.prediction import Prediction, drawn
from mafl_cli.network.probing import run
from mafl_cli.network.reasons import is_out_of_memory, meaning

_LEAST = torch.finfo(torch.float32).tiny
"""Probability below which a softmax has lost its logit, and the logarithm its slope."""


class Original:
    """A model file as a function: (B, C, *spatial) in model units -> Prediction without features.

    Differentiable with respect to the input where gradients are on and the file has one. Every sample goes through it
    alone. It works on a copy of its input.

    gives: what its output is; "softmax" and "sigmoid" where that is the network's last step.
    by_chance: whether it answers differently each time; then every pass should be in a draw, see `chance`.
    has_random: whether a graph of it has random operators, which may do nothing most times.
    """

    gives: Gives = "logits"
    by_chance = has_random = False

    def __init__(self, file: ModelFile, name: str, output: Output, device: torch.device) -> None:
        self.file = file
        self.name = name
        self.output = output
        self.device = device
        self._larger: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __call__(self, x: Tensor) -> Prediction:
        """Raises ModelError if the file refuses a sample."""
        return Prediction(torch.cat([self._one(sample) for sample in torch.split(x, 1)]), ())

    def _one(self, x: Tensor) -> Tensor:
        raw = self.raw(self.enlarged(x)).float()
        logits = logits_of(raw, self.gives, overlapping=self.output.overlapping)
        if self.gives != "logits":
            logits = _as_drawn(logits, raw, overlapping=self.output.overlapping)
        return self.onto_input(logits, x.shape[2:])

    def raw(self, ready: Tensor) -> Tensor:
        """The file's own output for inputs of a size that it takes: (B, n, *spatial).

        Raises: ModelError if it refuses them; what PyTorch raises when the memory does not suffice.
        """
        wants_gradient = torch.is_grad_enabled() and ready.requires_grad
        chance.begin()
        outputs = attempt(lambda: self.file.module(ready.clone()))
        if isinstance(outputs, Exception):
            if is_out_of_memory(outputs):
                raise outputs
            raise ModelError(f"{self.name}: refuses this scan: {meaning(outputs)}.") from outputs
        found = leaves(outputs)
        raw = found[self.output.leaf] if len(found) > self.output.leaf else None
        if not isinstance(raw, Tensor) or raw.ndim != ready.ndim or len(raw) != len(ready):
            raise ModelError(f"{self.name}: gives another kind of output for this scan than for a test image.")
        if wants_gradient and not raw.requires_grad:
            # Somewhere it answers the same whatever it sees: there is no way to go, and no error.
            raw = raw + 0 * ready[(0,) * ready.ndim]
        return raw

    def labels(self, raw: Tensor) -> Tensor:
        """The classes that its own output stands for: (B, *spatial), or (B, R, *spatial) for regions."""
        if self.output.overlapping or raw.shape[1] == 1:
            inside = raw > (0.0 if self.gives == "logits" else 0.5)
            return inside.long() if self.output.overlapping else inside[:, 0].long()
        return drawn(raw)

    def is_independent(self, shape: Sequence[int]) -> bool:
        """Whether what it says of a sample of `shape`, (1, C, *spatial), is the same next to another one."""
        generator = torch.Generator().manual_seed(1)
        both = torch.rand((2, *shape[1:]), generator=generator).to(self.device)
        both[1] = 3 * both[1] - 1
        both = self.enlarged(both)
        answers = []
        for x in (both[:1], both):
            outputs = run(self.file.module, x)
            if isinstance(outputs, Exception):  # It holds the batch of its example somewhere inside.
                return False
            raw = leaves(outputs)[self.output.leaf].float()
            gives: Gives = "logits" if self.gives == "logits" else "probabilities"
            answers.append(logits_of(raw, gives, overlapping=self.output.overlapping)[:1])
        alone, together = answers
        return alone.shape == together.shape and bool((alone - together).abs().max() <= 1e-3 * alone.abs().max())

    # --- sizes --------------------------------------------------------------------------------------------------------

    def enlarged(self, x: Tensor) -> Tensor:
        """`x` as the network gets it: with edge values around it when valid convolutions take away so much."""
        return F.pad(x, self.around(x), mode="replicate") if any(self.output.margin) else x

    def around(self, x: Tensor) -> list[int]:
        """What `enlarged` puts around `x`, as torch's pad wants it: the last axis first."""
        if not any(self.output.margin):
            return []
        size = tuple(x.shape[2:])
        if size not in self._larger:
            self._larger[size] = self._accepted_above(x[:1])
        pad: list[int] = []
        for wanted, given, margin in zip(self._larger[size], size, self.output.margin, strict=True):
            pad = [margin // 2, wanted - given - margin // 2, *pad]
        return pad

    def _accepted_above(self, x: Tensor) -> tuple[int, ...]:
        """The smallest size the network takes that leaves the size of `x` after its margins."""
        least = [size + margin for size, margin in zip(x.shape[2:], self.output.margin, strict=True)]
        for extra in range(64):
            size = tuple(n + extra for n in least)
            given = leaves(run(self.file.module, torch.zeros(1, x.shape[1], *size, device=x.device)))
            leaf = given[self.output.leaf] if len(given) > self.output.leaf else None
            if isinstance(leaf, Tensor) and tuple(leaf.shape[2:]) == tuple(
                n - m for n, m in zip(size, self.output.margin, strict=True)
            ):
                return size
        raise ModelError(f"{self.name}: accepts no size that covers {' x '.join(map(str, x.shape[2:]))} voxels.")

    def onto_input(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits on the input's grid."""
        if self.output.coarse > 1:
            flat = logits.flatten(1, -1 - len(size))
            mode = "bilinear" if len(size) == 2 else "trilinear"
            up = F.interpolate(flat, scale_factor=self.output.coarse, mode=mode, align_corners=False)
            logits = up.view(*logits.shape[: -len(size)], *up.shape[2:])
        inside: Any = (..., *(slice(n) for n in size))
        return logits[inside]


def logits_of(raw: Tensor, gives: Gives, *, overlapping: bool) -> Tensor:
    """Logits of at least two classes, (B, K, *spatial) or (B, 2, R, *spatial), from an output (B, n, *spatial)."""
    one = overlapping or raw.shape[1] == 1
    if gives == "softmax" and not one:
        # The slope of the logarithm and that of the softmax cancel to that of the logits, down to the least number.
        return torch.log(raw.clamp_min(_LEAST))
    if gives != "logits":
        # 1e-7 is about float32's resolution next to 1: the logit of a saturated voxel stays finite.
        p = raw.clamp(1e-7, 1 - 1e-7)
        raw = torch.log(p) - torch.log1p(-p) if one else torch.log(p)
    if not one:
        return raw
    # softmax([-z/2, z/2])[1] = sigmoid(z): one logit becomes two classes and the rest of the program knows only
    # that. Both halves carry it, so that a loss on the background's logit alone has a slope too.
    return torch.stack([-raw / 2, raw / 2], dim=1) if overlapping else torch.cat([-raw / 2, raw / 2], dim=1)


def _as_drawn(logits: Tensor, raw: Tensor, *, overlapping: bool) -> Tensor:
    """Logits that draw what the probabilities draw.

    Two probabilities that are next to each other have one logarithm. There the probabilities stand for their logits.
    """
    one = overlapping or raw.shape[1] == 1
    plain = logits_of(raw - 0.5 if one else raw, "logits", overlapping=overlapping)
    return torch.where((drawn(logits) == drawn(plain)).unsqueeze(1), logits, plain)
