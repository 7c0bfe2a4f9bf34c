"""Every setting of a run, with its default, its range and its meaning. Standard library only.

The command line, the report and the library share these classes, so a word means the same in a flag, a parameter
and a JSON key. Lengths of a change are said in *model units* (what the network sees after intensity scaling)
unless a name says *native* (what the file holds: HU, scanner units).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from mafl_cli.errors import UsageError

Mode = Literal["auto", "2d", "3d"]
SliceAxisChoice = Literal["auto", "i", "j", "k", "axial", "coronal", "sagittal"]
SaveAs = Literal["float32", "source"]
Activation = Literal["softmax", "sigmoid"]
IntensityKind = Literal["none", "minmax", "zscore", "window"]
Region = Literal["all", "nonzero"]


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Settings of the search for the smallest change that makes the model draw the target.

    The defaults were chosen by our own measurements (see `docs/method.md`); a weight of 0 switches a term off. Every
    weight is relative: each term's gradient is brought to length 1 per sample before it is weighed, so the same
    numbers serve networks with logits of any scale and scans in any unit.
    """

    steps: int = 150
    """Forward passes for each slice or volume, the final scale search included."""
    goal_iou: float = 0.99
    """Mean IoU over the classes of the target that counts as reached, in (0, 1]."""
    goal_hit: float = 0.99
    """Share of the voxels that must change class (and of a class that must vanish) that counts as reached."""
    kappa: float = 0.1
    """A voxel counts as won when the target class leads by this share of the clean prediction's typical margin."""
    feature_weight: float = 0.05
    """Feature cosine term at the tap, until the goal is first reached."""
    low_frequency_weight: float = 0.1
    """Pull of the perturbation's Haar low-pass part towards zero."""
    momentum: float = 0.6
    """Share of the previous direction kept in the next, in [0, 1)."""
    spread: float = 0.3
    """Damping of the per-voxel second-moment scaling; smaller spreads the change wider (lower Linf, higher L2)."""
    first_step: float = 0.5
    """Longest step, as a share of the distance to the target that loss and slope at the clean scan suggest."""
    radius_rate: float = 0.1
    """By how much the change is shortened in a step that finds the goal reached; falls with a cosine to a tenth."""
    along: float = 0.1
    """Step on the sphere once the goal was reached, as a share of its radius."""
    patience: int = 40
    """A slice or volume is finished when its change has not become 0.5 % smaller for this many steps.
    The first half of the steps is always taken."""
    scale_search: int = 6
    """Forward passes kept for the last bisection of the perturbation's scale, at most a quarter of the steps."""
    seed: int = 0
    """Seed of PyTorch's generators. The search itself draws no random numbers."""

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "steps": (1, 1_000_000),
            "goal_iou": (1e-6, 1),
            "goal_hit": (0, 1),
            "kappa": (0, 10),
            "feature_weight": (0, 10),
            "low_frequency_weight": (0, 10),
            "momentum": (0, 0.999),
            "spread": (1e-6, 1e6),
            "first_step": (1e-6, 100),
            "radius_rate": (1e-6, 0.5),
            "along": (1e-6, 1),
            "patience": (1, 1_000_000),
            "scale_search": (0, 100),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} = {value} is outside [{low:g}, {high:g}].")


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """How native voxel values become model units. Statistics are those of the whole volume, per channel.

    none:   y = x.
    minmax: y = (x - min) / (max - min).
    zscore: y = (x - mean) / std over `region`; with region "nonzero" all voxels that are exactly 0 stay 0.
    window: y = to[0] + (x - min) / (max - min) * (to[1] - to[0]).
    `clip` (model units) is applied last; for a window it defaults to `to`.
    """

    kind: IntensityKind = "none"
    region: Region = "all"
    min: float = 0.0
    max: float = 1.0
    to: tuple[float, float] = (0.0, 1.0)
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, choices in (("kind", IntensityKind), ("region", Region)):
            if getattr(self, name) not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                raise UsageError(f"intensity {name} {getattr(self, name)!r} is not one of: {allowed}.")
        for low, high, what in (
            (self.min, self.max, "window min and max"),
            (*self.to, "window to"),
            (*(self.clip or (0, 1)), "clip"),
        ):
            if not low < high:
                raise UsageError(f"intensity {what}: {low:g} is not below {high:g}.")

    def facts(self) -> dict[str, object]:
        """The settings that matter for this kind, JSON-ready."""
        used = {"window": ("min", "max", "to"), "zscore": ("region",)}.get(self.kind, ())
        facts = {"kind": self.kind, **{name: getattr(self, name) for name in used}}
        return facts if self.clip is None else {**facts, "clip": self.clip}

    @staticmethod
    def parse(text: str) -> Intensity:
        """Read the short form of the command line: none, minmax, zscore, zscore-nonzero, window:MIN,MAX.

        Raises UsageError for anything else.
        """
        if text in ("none", "minmax", "zscore"):
            return Intensity(kind=text)  # type: ignore[arg-type]
        if text == "zscore-nonzero":
            return Intensity(kind="zscore", region="nonzero")
        kind, _, numbers = text.partition(":")
        try:
            low, high = (float(number) for number in numbers.split(","))
        except ValueError:
            low = high = 0.0
        if kind != "window" or not -math.inf < low < high < math.inf:
            raise UsageError(
                f"--intensity {text!r} is not understood: "
                "use none, minmax, zscore, zscore-nonzero or window:MIN,MAX (for example window:-57,164)."
            )
        return Intensity(kind="window", min=low, max=high, clip=(0.0, 1.0))


def config_hash(*settings: object) -> str:
    """SHA-256 over dataclasses or JSON values: equal settings give equal hashes on every machine."""
    plain = [asdict(s) if hasattr(s, "__dataclass_fields__") else s for s in settings]  # type: ignore[call-overload]
    text = json.dumps(plain, sort_keys=True, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
