"""What is asked of one run: the scans, the model, the view of the scan, and the attack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_args

from mafl_cli.config import (
    Activation,
    AttackConfig,
    EnsembleRule,
    Mode,
    Precision,
    SaveAs,
    SliceAxisChoice,
    require_type,
)
from mafl_cli.errors import UsageError
from mafl_cli.network.card import (
    Spacing,
    WindowSize,
    check_orientation,
    check_overlap,
    check_roi,
    check_spacing,
    read_taps,
)
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.opening import Opening, read_folds
from mafl_cli.network.source import Closed, Command, Drawer, Joined, Model, Own
from mafl_cli.scans.masks import Masks
from mafl_cli.scans.recipes import Recipe
from mafl_cli.scans.volume import Volume

DEMO_MODEL = Path(__file__).parents[1] / "demo" / "model.ts"


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model and how it is to see scans. `None` for a property of the model means: what its card says.

    folds, mirror, trust: see `network.opening.Opening`. spacing: mm, along the model's axes. roi: voxels of a
    window. classes: names, background first, of a model that only draws.
    """

    model: Model = DEMO_MODEL
    folds: tuple[str, ...] | None = None
    mirror: bool | None = None
    trust: bool = False
    mode: Mode = "auto"
    slice_axis: SliceAxisChoice | None = None
    precision: Precision = "float32"
    orientation: str | None = None
    intensity: Intensity | None = None
    spacing: Spacing | None = None
    roi: WindowSize | None = None
    overlap: float | None = None
    tap: str = "auto"
    classes: tuple[str, ...] | None = None

    @property
    def opening(self) -> Opening:
        """What the user says about opening the model."""
        return Opening(folds=self.folds, mirror=self.mirror, trust=self.trust)


@dataclass(frozen=True, kw_only=True)
class AttackRequest(ModelRequest):
    """One case: paths and settings.

    images: one file (or DICOM folder) for each channel of the model, in its order. volumes: the same, where they were
    read already; images then only name them. series, allow_gaps: see
    `scans.dicom.read.read_dicom`. targets: one mask, or one for each region that may overlap others; none with a
    recipe. masks: how mask files are read. starts: an earlier adversarial scan or perturbation, at which one search of
    the method worst begins. ladder: try whether more steps and larger changes reach more. within: a mask; only its
    voxels may change, and with body_only only those of the body. redact: keep the names of the files out of
    everything, and text, patient and study out of headers. strict: refuse a scan of which the model makes far more when
    it is read another way, see `mafl_cli.case.readings`.
    attack_channels: names or numbers of the channels that may change; all if None. save_as: None is float32 for NIfTI,
    source for DICOM and for a model that only draws. untargeted: draw anything else than on the clean scan, without a
    target. size_limit: GiB, see `mafl_cli.system.sizes`; None is what holds where the request is followed.
    """

    images: tuple[Path, ...]
    volumes: tuple[Volume, ...] = ()
    out: Path
    targets: tuple[Path, ...] = ()
    recipe: Recipe | None = None
    series: str | None = None
    allow_gaps: bool = False
    masks: Masks = field(default_factory=Masks)
    within: Path | None = None
    body_only: bool = False
    guides: tuple[Path, ...] = ()
    starts: tuple[Path, ...] = ()
    ladder: bool = False
    save_as: SaveAs | None = None
    device: str = "auto"
    attack_channels: tuple[str, ...] | None = None
    redact: bool = False
    overwrite: bool = False
    strict: bool = False
    size_limit: float | None = None
    untargeted: bool = False
    config: AttackConfig = field(default_factory=AttackConfig)


SEEN_AS = (
    *("mode", "slice_axis", "orientation", "intensity", "spacing", "roi", "overlap", "precision", "tap"),
    *("folds", "mirror"),
)
"""The options that say how a model sees scans."""
_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "slice_axis": get_args(SliceAxisChoice),
    "precision": get_args(Precision),
    "save_as": get_args(SaveAs),
    "activation": get_args(Activation),
}


def seen_as(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a model sees scans, as fields of a `ModelRequest`; other options, and those that are None, are left out.

    options: as a caller writes them: intensity also as text ("window:-57,164"), spacing "native" and roi "none".
    Raises: UsageError for what cannot be.
    """
    found = {name: options[name] for name in SEEN_AS if options.get(name) is not None}
    for name in set(found) & set(_CHOICES):
        require_choice(name, found[name])
    if "intensity" in found:
        found["intensity"] = _intensity(found["intensity"])
    if "orientation" in found:
        found["orientation"] = check_orientation(str(found["orientation"]))
    if "spacing" in found and found["spacing"] != "native":
        found["spacing"] = check_spacing(_numbers("spacing", found["spacing"]))
    if "roi" in found and found["roi"] != "none":
        found["roi"] = check_roi(_numbers("roi", found["roi"]))
    if "overlap" in found:
        found["overlap"] = check_overlap(*_numbers("overlap", [found["overlap"]]))
    if "tap" in found:
        read_taps(found["tap"])
    if "folds" in found:
        found["folds"] = read_folds(found["folds"])
    if "mirror" in found:
        require_type("mirror", found["mirror"], bool)
    return found


def require_choice(name: str, value: object) -> None:
    """Raise UsageError unless the value is one of those that the option of this name has."""
    if value not in _CHOICES[name]:
        raise UsageError(f"`{name}` must be one of {', '.join(_CHOICES[name])}, got {value!r}.")


def require_known(name: str, known: Iterable[str]) -> None:
    """Raise UsageError unless there is an option of this name; a close one is suggested."""
    names = sorted(known)
    if name not in names:
        close = get_close_matches(name, names, n=1)
        there = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}."
        raise UsageError(f"there is no option {name!r}: {there}")


def path_of(name: str, value: object) -> Path:
    """The file or folder that a parameter names. Raises UsageError for what is not a path."""
    if not isinstance(value, (str, Path)):
        raise UsageError(f"`{name}` must be a path, as str or Path, got {type(value).__name__}.")
    return Path(value)


def model_of(models: object, ensemble: object = None) -> Model:
    """The model that is attacked: one, or several that `ensemble` makes one.

    models: a path, several, or what `network.source` has. Raises: UsageError for several without a rule, or one with.
    """
    several = tuple(models) if isinstance(models, (list, tuple)) else (models,)
    found = tuple(each if isinstance(each, (Own, Command, Drawer)) else path_of("model", each) for each in several)
    if ensemble is None:
        if len(found) != 1:
            raise UsageError(
                f"`model` must be one model, got {len(found)}: add `ensemble` mean to attack several as one function."
            )
        return found[0]
    if ensemble not in get_args(EnsembleRule):
        raise UsageError(f"`ensemble` must be one of {', '.join(get_args(EnsembleRule))}, got {ensemble!r}.")
    if len(found) < 2:
        raise UsageError(f"`ensemble` needs two models or more, got {len(found)}: name each of them as `model`.")
    members = tuple(each for each in found if not isinstance(each, Closed))
    if len(members) < len(found):
        raise UsageError("`ensemble` is for models with logits: one that only draws has none.")
    return Joined(members, cast(EnsembleRule, ensemble))


def paths_of(name: str, values: object) -> tuple[Path, ...]:
    """One path, or several. Raises UsageError for what is not a path."""
    if isinstance(values, (str, Path)) or not isinstance(values, Iterable):
        return (path_of(name, values),)
    return tuple(path_of(name, value) for value in values)


def words_of(values: str | int | Iterable[str | int]) -> tuple[str, ...]:
    """One word, or several."""
    return (str(values),) if isinstance(values, (str, int)) else tuple(map(str, values))


def _intensity(value: str | Intensity) -> Intensity:
    if isinstance(value, Intensity):
        return value
    if not isinstance(value, str):
        raise UsageError(f"`intensity` must be a text such as minmax, or an Intensity, got {value!r}.")
    return Intensity.parse(value)


def _numbers(name: str, values: Any) -> list[float]:
    try:
        if not isinstance(values, str):
            return [float(value) for value in values]
    except (TypeError, ValueError):
        pass
    raise UsageError(f"`{name}` must be numbers, such as (96, 96), got {values!r}.")


_BOOLS = (
    "allow_gaps",
    "body_only",
    "redact",
    "overwrite",
    "resample_target",
    "strict",
    "trust",
    "ladder",
    "untargeted",
)


def with_types(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of one case, of the types that an `AttackRequest` has. Raises UsageError for what has another one."""
    found = dict(options)
    for name in set(_BOOLS) & set(found):
        require_type(name, found[name], bool)
    if "save_as" in found:
        require_choice("save_as", found["save_as"])
    if "size_limit" in found:
        require_type("size_limit", found["size_limit"], float)
    if "within" in found:
        found["within"] = path_of("within", found["within"])
    for name in {"guides", "starts"} & set(found):
        found[name] = paths_of(name, found[name])
    if "attack_channels" in found:
        found["attack_channels"] = words_of(found["attack_channels"])
    if "classes" in found:
        found["classes"] = words_of(found["classes"])
    for name in {"series", "device"} & set(found):
        found[name] = str(found[name])
    if not isinstance(found.get("label_map", {}), Mapping):
        raise UsageError(f"`label_map` must be a dict of whole numbers, as {{255: 1}}, got {found['label_map']!r}.")
    return found
