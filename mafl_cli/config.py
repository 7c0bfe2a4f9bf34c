"""Every setting of a run, with its default, its range and its meaning. Standard library only.

The command line, the report and the library share these classes, so a word means the same in a flag, a parameter
and a JSON key. Lengths of a change are said in *model units* (what the network sees after intensity scaling)
unless a name says *native* (what the file holds: HU, scanner units).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mafl_cli.errors import UsageError
from mafl_cli.names import outside

# Worked out once, not for each report that is read.
_hints = cache(get_type_hints)

# What every changed scan says of itself, in NIfTI and in DICOM.
NOTE = "MAFL ADVERSARIAL - NOT FOR CLINICAL USE"

Mode = Literal["auto", "2d", "3d"]
SliceAxisChoice = Literal["auto", "i", "j", "k", "axial", "coronal", "sagittal"]
SaveAs = Literal["float32", "source"]
Activation = Literal["softmax", "sigmoid"]
MaskLoss = Literal["margin", "logit", "ce", "dice", "js", "segpgd", "cospgd", "dag"]
LowFrequency = Literal["penalty", "hard"]
GradientNorm = Literal["none", "l1", "l2"]
Direction = Literal["raw", "l2", "linf", "sign"]
Step = Literal["dynamic", "constant", "cosine", "asma"]
AfterGoal = Literal["shrink", "stop", "continue"]
EpsUnit = Literal["model", "native", "range", "noise"]
Norm = Literal["linf", "l2"]
Minimise = Literal["l2", "linf", "visibility"]
Detector = Literal["blur", "entropy", "margin"]
Evade = Literal["blur", "entropy", "margin", "all"]
Blend = Literal["gaussian", "constant"]
Resampling = Literal["corner", "edge"]
WindowsAs = Literal["monai", "nnunet"]
Precision = Literal["float32", "bf16", "fp16"]
EnsembleRule = Literal["mean", "mean-probabilities"]

DETECTORS: tuple[Detector, ...] = get_args(Detector)


@dataclass(frozen=True)
class Setting:
    """What is known of one setting, beside its type and default.

    help: its meaning, one or two sentences. low, high: its range; low is None unless it is a number. heading: where
    the command's help shows it; None for a setting without an option of its own. usual: whether many people use it.
    """

    help: str
    low: float | None
    high: float
    heading: str | None
    usual: bool


def setting(
    default: Any,
    help: str,
    low: float | None = None,
    high: float = float("inf"),
    *,
    heading: str | None = "Method",
    usual: bool = False,
) -> Any:
    """A field of `AttackConfig`: the one place where a setting is written. Checks and the command line read it."""
    return field(default=default, metadata={"setting": Setting(help, low, high, heading, usual)})


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Settings of the search for a change that makes the model draw the target: one row of the table of methods.

    The defaults are those of the method `mafl` and were chosen by our own measurements (see `docs/method.md`). With
    normalised gradients (`gradient_norm` l1 or l2) weights are relative: each term's gradient is brought to norm 1
    per sample before it is weighed, so the same numbers serve networks with logits of any scale and scans in any unit.
    With `gradient_norm` none they are the factors of the sum that is minimised.
    """

    method: str = setting(
        "mafl",
        "The preset that these settings started from. Only worst has an effect of its own: several searches, see "
        "docs/method.md.",
        heading=None,
    )
    steps: int = setting(
        100, "Forward passes per slice or volume, the final search of the scale included.", 1, 1_000_000, usual=True
    )
    goal_iou: float = setting(
        0.99, "IoU with the target, mean over its classes, that counts as reached.", 1e-6, 1, heading="Goal", usual=True
    )
    goal_hit: float = setting(
        0.99,
        "Share of the voxels that must change class, and of a class that must vanish, that counts as reached.",
        0, 1, heading="Goal",
    )  # fmt: skip
    aim: float | None = setting(
        None,
        "Score to keep while the change is made smaller: the least of IoU, hit rate and removal. Without it 1, "
            "which is "
        "every voxel, if both goals are at least 0.99; else the lower goal.",
        0, 1, heading="Goal",
    )  # fmt: skip
    after_goal: AfterGoal = setting(
        "shrink",
        "Once the goal is reached: shrink the change (`step` dynamic only), stop, or continue and keep the best.",
        heading="Goal",
    )
    until: float | None = setting(
        None,
        "Excess at which a slice or volume leaves the search: the estimated share by which its change is longer than "
        "the local optimum, 0.02 for 2 %. Never before the goal is reached. Without it all steps are taken.",
        1e-6, 1e6, heading="Goal",
    )  # fmt: skip

    survive: str | None = setting(
        None,
        "What the change must survive: it has to reach the goal on the scan, and after each of these transforms of "
        "slices, separated by commas, as jpeg:90,blur:0.5. Names and strengths are those of `transforms` "
            "of mafl evaluate.",
        heading="Goal",
    )  # fmt: skip

    transfer: float | None = setting(
        None,
        "Make the change for models that are not at hand, at this many times the length of the shortest change, as 2: "
        "made under random scale and shift. The members of an `ensemble` are surrogates, all followed at once. See "
            "docs/transfer.md.",
        0.1, 100, heading="Goal",
    )  # fmt: skip

    evade: Evade | None = setting(
        None,
        "Detector that the change must go round: its score may be no higher than that of the clean scan. Those of "
        "`detect` of mafl evaluate, or all of them.",
        heading="Goal",
    )  # fmt: skip

    mask_loss: MaskLoss = setting(
        "margin", "Loss that drives the prediction to the target; docs/method.md says which method has which."
    )
    kappa: float = setting(
        0.07,
        "Margin loss: by how much the target class must lead at first, relative to the clean prediction's mean margin.",
        0, 10,
    )  # fmt: skip
    adaptive_weights: bool = setting(
        True, "Margin loss: once the target is late, raise the weight of voxels that miss it with every step."
    )
    feature_weight: float = setting(
        0.03,
        "Weight of the feature cosine term, until the goal is first reached, with `step` dynamic in the first three "
        "tenths of the steps only. 0 switches it off.",
        0, 1000,
    )  # fmt: skip
    low_frequency: LowFrequency = setting(
        "penalty", "Low frequencies of the change: penalty pulls them towards zero, hard removes them after every step."
    )
    low_frequency_weight: float = setting(0.2, "Weight of the low-frequency penalty; 0 switches it off.", 0, 1000)
    low_frequency_levels: int = setting(
        1, "Depth of the Haar transform: what is constant over blocks of 2^N voxels is low frequency.", 1, 10
    )
    l2_weight: float = setting(
        1.0,
        "Weight of half the squared L2 length of the change; 0 switches it off. ASMA has the whole square, which is 2 "
        "with raw gradients.",
        0, 1e6,
    )  # fmt: skip
    peak_weight: float = setting(
        0.2,
        "How much more the largest voxels count in the L2 term, for a lower Linf at a little more L2; 0 is plain L2.",
        0,
        1000,
    )

    minimise: Minimise = setting(
        "l2",
        "What is made small: l2, the length of the change; linf, its largest voxel; or visibility, the length of what "
        "an eye sees of it. The last two make it longer, and need `step` dynamic.",
        usual=True,
    )

    gradient_norm: GradientNorm = setting(
        "none",
        "What the gradient of the mask loss is divided by, per sample: nothing (none), its L1 norm (l1, as MI-FGSM) or "
        "its L2 norm (l2).",
    )
    momentum: float = setting(
        0.7,
        "Share of the previous direction kept in the next. With `step` dynamic it begins at 0 and is full after three "
        "tenths of the steps.",
        0, 1,
    )  # fmt: skip
    direction: Direction = setting(
        "raw", "Step direction: the accumulated gradient as is (raw), at L2 or Linf norm 1, or its sign."
    )

    step: Step = setting(
        "dynamic",
        "Step length. dynamic: the way to the target by the slope of the loss, minus a pull back to the clean scan. "
        "constant: `step_size`. cosine: from `step_size` to 0. asma: `tau` + `beta` * IoU of the iterate.",
    )
    step_size: float | None = setting(
        None,
        "Length of a step as a share of the scan's range: per voxel for sign and linf, L2 length for l2, a factor "
        "of the gradient for raw. Without it 2.5 `eps` / `steps` (Madry et al., ICLR 2018).",
        1e-12, 1e6,
    )  # fmt: skip
    tau: float = setting(
        0.0, "ASMA step: its part that does not depend on the IoU, in the unit of `step_size`.", 0, 1e6
    )
    beta: float = setting(0.0, "ASMA step: its factor of the IoU, in the unit of `step_size`.", 0, 1e6)
    patience: int = setting(
        40,
        "With `after_goal` shrink, a slice or volume is finished when its change has not become 0.5 % smaller "
            "for this many steps; "
        "the first half of the steps is always taken.",
        1, 1_000_000, heading=None,
    )  # fmt: skip
    scale_search: int = setting(
        6,
        "Forward passes kept for the last bisection of the perturbation's scale, at most a quarter of the steps.",
        0, 100, heading=None,
    )  # fmt: skip

    eps: float | None = setting(
        None, "Radius of the ball around the clean scan that the change stays in, in `eps_unit`.", 1e-12, 1e9,
        heading=None,
    )  # fmt: skip
    eps_unit: EpsUnit = setting(
        "model",
        "Unit of `eps`: model units, native units (HU for CT), a share of the scan's range, or standard deviations of "
        "its own noise, channel by channel.",
        heading=None,
    )
    norm: Norm = setting(
        "linf",
        "How the size of the change is measured for `eps`: largest voxel (linf), or L2 length over the slice or "
            "volume.",
        heading="Budget",
    )  # fmt: skip
    random_start: bool = setting(
        False,
        "Begin at a random point of the ball, the same noise for every slice, instead of at the clean scan.",
        heading="Budget",
    )
    seed: int = setting(
        0, "Seed of PyTorch's generators and of the random start; nothing else in the search draws random numbers."
    )

    @property
    def aimed(self) -> float:
        """The score that `aim` stands for."""
        goal = min(self.goal_iou, self.goal_hit)
        return self.aim if self.aim is not None else 1.0 if goal >= 0.99 else goal

    @property
    def evaded(self) -> tuple[Detector, ...]:
        """The detectors that `evade` stands for."""
        return DETECTORS if self.evade == "all" else () if self.evade is None else (self.evade,)

    @property
    def certified(self) -> bool:
        """Whether the search estimates its excess, see `search.certificate`.

        That takes half-spaces of margins, a change that may go anywhere, and a length that is looked for.
        """
        return (
            self.step == "dynamic"
            and self.mask_loss == "margin"
            and self.low_frequency == "penalty"
            and self.eps is None
            and self.minimise == "l2"
            and self.survive is None
            and self.evade is None
        )

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_combinations()

    def _check_ranges(self) -> None:
        hints = _hints(AttackConfig)  # What reports say of a run are these and more.
        for each in fields(AttackConfig):
            value, about = getattr(self, each.name), each.metadata["setting"]
            kind = hints[each.name]
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise UsageError(
                    f"`{each.name}` must be one of {', '.join(get_args(kind))}, got {outside(str(value))!r}."
                )
            require_type(each.name, value, kind)
            if about.low is not None and value is not None and not about.low <= value <= about.high:
                raise UsageError(f"`{each.name}` must be from {about.low:g} to {about.high:g}, got {value}.")

    def _check_combinations(self) -> None:
        """Settings that each make sense but not together."""
        step, direction = self.step, self.direction
        dynamic, by_size = step == "dynamic", step in ("constant", "cosine")
        like_the_ball = self.eps is not None and direction in {"linf": ("linf", "sign"), "l2": ("l2",)}[self.norm]
        self._refuse(
            self.after_goal == "shrink" and self.l2_weight == 0,
            "`after_goal` shrink needs an `l2_weight` above 0, for nothing else makes the change smaller: set "
            "it, or choose "
            "stop or continue",
        )
        self._refuse(
            dynamic and (direction != "raw" or self.gradient_norm != "none" or self.step_size is not None),
            "`step` dynamic finds the length of each step by itself: it needs `direction` raw, `gradient_norm` none "
            "and no `step_size`",
        )
        self._refuse(
            dynamic and self.mask_loss in ("logit", "dag"),
            f"`step` dynamic needs a loss that falls to 0: {self.mask_loss} does not",
        )
        self._refuse(
            self.adaptive_weights and self.mask_loss != "margin",
            f"`adaptive_weights` are for the margin loss, not for {self.mask_loss}: switch them off",
        )
        self._refuse(
            self.method == "worst" and not (dynamic and self.mask_loss == "margin"),
            "`method` worst tries other losses by itself: leave out `mask_loss` and `step`",
        )
        self._refuse(
            self.until is not None and not self.certified,
            "`until` needs an estimate of the excess, which `step` dynamic gives with `mask_loss` margin, "
            "`low_frequency` penalty, and none of `eps`, `survive` and `evade`",
        )
        self._refuse(
            self.evade not in (None, "blur") and not (dynamic and self.mask_loss == "margin"),
            "`evade` weighs what a detector says against the margin loss of the dynamic step: it needs `step` dynamic "
            "and `mask_loss` margin",
        )
        self._refuse(
            self.step_size is not None and step == "asma",
            "`step_size` is not for `step` asma: set `tau` and `beta` instead",
        )
        self._refuse(
            by_size and self.step_size is None and not like_the_ball,
            f"`step` {step} along {direction} needs a `step_size`, or an `eps` of the same norm",
        )
        self._refuse(step == "asma" and self.tau + self.beta == 0, "`step` asma needs `tau` or `beta` above 0")
        self._refuse(
            step != "asma" and self.tau + self.beta > 0, f"`tau` and `beta` are for `step` asma, not for {step}"
        )
        self._refuse(self.random_start and self.eps is None, "`random_start` needs an `eps`: it draws from that ball")
        seen = self.minimise == "visibility"
        self._refuse(
            seen and not (dynamic and self.low_frequency == "penalty" and self.low_frequency_weight == 0),
            "`minimise` visibility needs `step` dynamic and no `low_frequency_weight`: the eye weighs frequencies by "
            "itself",
        )
        travels = self.transfer is not None
        self._refuse(
            travels and (any((self.eps, self.survive, self.evade)) or self.method == "worst" or self.minimise != "l2"),
            "`transfer` sets the length of the change by itself: leave out `eps`, `survive`, `evade`, `minimise` and "
            "`method` worst",
        )
        self._refuse(self.minimise == "linf" and not dynamic, "`minimise` linf needs `step` dynamic")
        self._refuse(
            self.minimise != "l2" and self.method == "worst", "`method` worst compares lengths: it needs `minimise` l2"
        )
        self._refuse(
            self.low_frequency == "hard" and self.low_frequency_weight > 0,
            "`low_frequency` hard leaves nothing to penalise: `low_frequency_weight` must be 0",
        )

    @staticmethod
    def _refuse(wrong: bool, sentence: str) -> None:
        if wrong:
            raise UsageError(f"{sentence}.")


def require_type(name: str, value: object, kind: object) -> None:
    """Raise UsageError for a number, a bool or a text in the place of another; kind: the annotation of the field."""
    if value is None and type(None) in get_args(kind):
        return
    kinds = {kind, *get_args(kind)}
    for wanted, meant, said in (
        (bool, isinstance(value, bool), "True or False"),
        (int, isinstance(value, int) and not isinstance(value, bool), "a whole number"),
        (float, isinstance(value, (int, float)) and not isinstance(value, bool), "a number"),
    ):
        if wanted in kinds and not meant:
            raise UsageError(f"`{name}` must be {said}, got {value!r}.")


# What every baseline leaves out of the default method.
_PLAIN: dict[str, Any] = {
    "adaptive_weights": False,
    "feature_weight": 0.0,
    "low_frequency_weight": 0.0,
    "l2_weight": 0.0,
    "peak_weight": 0.0,
    "gradient_norm": "none",
    "momentum": 0.0,
    "step_size": None,
    "scale_search": 0,
}
_IN_A_BALL: dict[str, Any] = _PLAIN | {
    "mask_loss": "ce",
    "direction": "sign",
    "step": "constant",
    "eps": 8 / 255,
    "eps_unit": "range",
    "norm": "linf",
    "after_goal": "stop",
}

PRESETS: dict[str, dict[str, Any]] = {
    "mafl": {},
    # What the paper's abstract names, and no more: neither a penalty on peaks nor weights of single voxels.
    "mafl-paper": {"adaptive_weights": False, "peak_weight": 0.0, "feature_weight": 0.1},
    "asma": _PLAIN
    | {
        "mask_loss": "logit",
        "l2_weight": 2.0,
        "direction": "raw",
        # Factors of the raw gradient. A thousand times the published ones, with which 2501 steps go nowhere.
        "step": "asma",
        "tau": 1e-4,
        "beta": 1e-3,
        "after_goal": "continue",
    },
    "pgd": _IN_A_BALL | {"random_start": True},
    "mifgsm": _IN_A_BALL | {"gradient_norm": "l1", "momentum": 1.0},
    "segpgd": _IN_A_BALL | {"mask_loss": "segpgd", "random_start": True},
    "cospgd": _IN_A_BALL | {"mask_loss": "cospgd", "random_start": True},
    "ssah": _PLAIN
    | {
        "kappa": 0.1,
        "feature_weight": 1.0,
        "low_frequency_weight": 0.1,
        "gradient_norm": "l2",
        "direction": "linf",
        "step": "cosine",
        "step_size": 0.02,
        "after_goal": "continue",
    },
    "dag": _PLAIN
    | {"mask_loss": "dag", "direction": "linf", "step": "constant", "step_size": 0.003, "after_goal": "stop"},
    # A search as mafl's, and then others; see `mafl_cli.case.worst`.
    "worst": {},
}
"""The methods: what each sets differently from the defaults of `AttackConfig`. Sources: `docs/method.md`."""


SURVIVING: dict[str, Any] = {"kappa": 0.2, "adaptive_weights": False, "low_frequency_weight": 0.0}
"""Defaults of a change that must survive transforms: low frequencies survive most of them, what is won by more is lost
less easily, and weights of single voxels in several functions at once pull against each other."""


def preset(name: str, **overrides: Any) -> AttackConfig:
    """The settings of a method, with some of them changed.

        config = mafl.preset("pgd", eps=0.05, eps_unit="model", steps=40)

    What only makes sense with a setting that is replaced goes with it: the sizes of another kind of step, and the
    weight of the low-frequency penalty under the hard constraint, or where visibility is minimised. `survive` has
    defaults of its own, see `SURVIVING`.
    Raises: UsageError for an unknown name, and for settings that do not go together.
    """
    if name not in PRESETS:
        raise UsageError(f"`method` must be one of {', '.join(PRESETS)}, got {name!r}.")
    settings = {**(SURVIVING if overrides.get("survive") else {}), **PRESETS[name], "method": name}
    if overrides.get("mask_loss", "margin") != "margin":
        settings["adaptive_weights"] = False
    if overrides.get("step", settings.get("step", "dynamic")) != settings.get("step", "dynamic"):
        settings = {key: value for key, value in settings.items() if key not in ("step_size", "tau", "beta")}
        if overrides["step"] == "asma" or "step" in PRESETS[name]:
            settings["step_size"] = None
    if overrides.get("low_frequency") == "hard" or overrides.get("minimise") == "visibility":
        settings["low_frequency_weight"] = 0.0
    return AttackConfig(**(settings | overrides))


LABEL_ONLY = "label-only"
"""The method of a search that sees nothing but labels; no preset, for it has none of the other settings."""
QUERIES = 200
"""How often a model that only draws is asked, where nobody says: one that takes ten seconds is done in half an hour."""


def label_only(given: Mapping[str, Any], *, untargeted: bool) -> AttackConfig:
    """The settings of a search that sees nothing but labels, see `search.label_only`.

    given: `queries`, the goal, the ball and the seed. An untargeted change is as large as its ball, so it has one.
    Raises: UsageError for a setting out of its range.
    """
    ball = {"eps": 0.1, "eps_unit": "range"} if untargeted and "eps" not in given else {}
    queries = given.get("queries", QUERIES)
    rest = {name: value for name, value in given.items() if name != "queries"}
    try:
        return AttackConfig(**{**_PLAIN, "method": LABEL_ONLY, "steps": queries, "after_goal": "stop", **ball, **rest})
    except UsageError as exc:
        raise UsageError(str(exc).replace("`steps`", "`queries`")) from exc


def budget(eps: float, norm: Norm = "linf") -> dict[str, Any]:
    """Overrides for `preset`: the best score within a ball of `eps` model units, however long the change."""
    return {"eps": eps, "eps_unit": "model", "norm": norm, "goal_iou": 1.0, "goal_hit": 1.0, "after_goal": "stop"}


def config_hash(*settings: object) -> str:
    """SHA-256 over dataclasses or JSON values: equal settings give equal hashes on every machine."""
    plain = [asdict(s) if hasattr(s, "__dataclass_fields__") else s for s in settings]  # type: ignore[call-overload]
    text = json.dumps(plain, sort_keys=True, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
