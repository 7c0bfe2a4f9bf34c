"""Attacks on segmentation as their authors' library releases them: adv-lib (Rony et al., BSD-3), not part of mafl.

    pip install --no-deps adv-lib

It imports distutils: with Python 3.12 or newer it needs setuptools as well. Its programs run unchanged. What is put
around them:

- They take images in [0, 1]: a scan is shifted and divided by the range of its widest channel, so that lengths keep
  their proportions. What leaves the range of its own channel is clamped by the attacked function. Voxels that must not
  change, and clean ones that lie outside the range, stay as they are.
- They take planes: the first two axes of a volume are laid out as one.
- They count a slice as done when a share of all voxels has its class; an edit of few voxels meets 0.99 before it has
  begun. The share is chosen, slice by slice, so that as many voxels may be missing as one percent of those that must
  change, or of those of the target where these are fewer: then mafl's own goal is met as well.
- ALMA-prox's loss for targets divides a margin by a spread over four classes. Networks with fewer get classes that are
  never drawn, at the lowest logit of the image.

DDN and FMN of the same library take one label for an image: on masks they do not run.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from cases import Case
from torch import Tensor

from mafl_cli.network.prediction import Prediction

ATTACKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adv-lib PDGD": ("primal_dual_gradient_descent", "pdgd", {}),
    "adv-lib PDPGD": ("primal_dual_gradient_descent", "pdpgd", {"norm": 2}),
    "adv-lib ALMA-prox": ("alma_prox", "alma_prox", {}),
}
"""Method: module and function, and what it needs beside its defaults. ALMA-prox minimises Linf, the others L2."""
INSTALL = "pip install --no-deps adv-lib"


def version() -> str | None:
    """Of the library, None where it is not installed."""
    try:
        return distribution("adv-lib").version
    except PackageNotFoundError:
        return None


def attack(method: str, case: Case, passes: int) -> Tensor:
    """What an attack of the library finds: like case.clean, inside the range of the data.

    passes: forward and backward passes; each of ours takes one more forward pass, for the logits come before the loss.
    """
    module, name, settings = ATTACKS[method]
    run = getattr(_module(module), name)
    found = []
    for row in range(len(case.clean)):
        view = UnitView(case[row : row + 1])
        shared = {"targeted": True, "adv_threshold": view.share, "num_steps": passes}
        found.append(view.native(run(view, view.clean, view.target, **shared, **settings)))
    return torch.cat(found)


class UnitView:
    """A case of one sample as the library takes it: a function of images in [0, 1], shape (1, C, rows, columns).

    share: of the voxels that must have their class.
    """

    def __init__(self, case: Case) -> None:
        limits, clean = case.limits, case.clean
        ends = [_channels(bound, clean) for bound in (limits.low, limits.high)]
        unit = _channels(limits.unit, clean)
        self._case, self._low, self._high = case, *ends
        self._span = unit * float(((ends[1] - ends[0]) / unit).max())
        self._fixed = limits.frozen | (clean < self._low) | (clean > self._high)
        rows = clean.shape[2] if clean.ndim == 4 else clean.shape[2] * clean.shape[3]
        self._plane = (1, -1, rows, clean.shape[-1])
        self.clean = ((clean - self._low) / self._span).clamp(0, 1).reshape(self._plane)
        self.target = case.target.reshape(1, rows, -1)
        before = case.field.predict(clean).logits.argmax(dim=1)
        must, wanted = int((before != case.target).sum()), int((case.target > 0).sum())
        spared = 0.01 * (min(must, wanted) if wanted else must)
        self.share = 1 - spared / case.target.numel()

    def native(self, image: Tensor) -> Tensor:
        """An image of the library as the scan that the network sees, native units."""
        x = image.reshape(self._case.clean.shape) * self._span + self._low
        return torch.where(self._fixed, self._case.clean, torch.minimum(torch.maximum(x, self._low), self._high))

    def __call__(self, image: Tensor) -> Tensor:
        """(1, C, rows, columns) in [0, 1] -> logits (1, K, rows, columns), K at least 4."""
        logits: Tensor = _Logits.apply(self.native(image), self._case)
        flat = logits.flatten(2).view(1, logits.shape[1], *self._plane[2:])
        # The lowest at each voxel would make margin and spread of two classes the same, and their ratio flat.
        lowest = flat.detach().amin().expand_as(flat[:, :1])
        return torch.cat([flat, *[lowest] * max(4 - logits.shape[1], 0)], dim=1)


class _Logits(torch.autograd.Function):
    """The attacked function with its gradient, whichever way the field finds it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, case: Case) -> Tensor:
        ctx.save_for_backward(x)
        ctx.case = case
        return case.field.predict(x).logits

    @staticmethod
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor, None]:
        def pulled(prediction: Prediction) -> list[Tensor]:
            return [(prediction.logits * pull).flatten(1).sum(dim=1)]

        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            return ctx.case.field.slopes(x, pulled).gradients[0], None


@cache
def _module(name: str) -> Any:
    """A module of the library, without what its packages import on the way: visdom, torchvision and other attacks."""
    spec = find_spec("adv_lib")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"adv-lib is not installed: {INSTALL}")
    (root,) = spec.submodule_search_locations
    for package in ("attacks", "attacks.segmentation", "utils", "distances"):
        shell = ModuleType(f"adv_lib.{package}")
        shell.__path__ = [f"{root}/{package.replace('.', '/')}"]
        sys.modules.setdefault(shell.__name__, shell)
    sys.modules.setdefault("adv_lib.utils.visdom_logger", _named("visdom_logger", VisdomLogger=SimpleNamespace))
    # Compiling takes longer than a small problem, and changes no result.
    with mock.patch.object(torch, "compile", _as_it_is), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*distutils", category=DeprecationWarning)
        return importlib.import_module(f"adv_lib.attacks.segmentation.{name}")


def _named(name: str, **parts: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(parts)
    return module


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (like.ndim - 2))
