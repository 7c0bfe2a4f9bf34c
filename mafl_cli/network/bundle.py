"""What a MONAI bundle says about itself: its configs, or the extras that `ckpt_export` puts into a TorchScript file.

`metadata.json` describes tensors (channels, sizes, class names); `inference.json` the transforms around the network.
The latter is Python in JSON: `$` expressions would be evaluated by MONAI. Nothing is evaluated here; a reference (`@x`)
is looked up if a plain value stands there. What is not a plain value is left out, and said.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mafl_cli.errors import UsageError
from mafl_cli.network.card import short
from mafl_cli.network.intensity import Intensity
from mafl_cli.system import sizes

_LARGEST = 2**22
"""Bytes: an extra file that is longer is not a description."""


def read_bundle(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of a `ModelCard` that the bundle states, and a sentence for each thing that could not be read.

    Both are empty for a file without a bundle's extras.
    """
    return described(list(_documents(path)))


def described(documents: Sequence[Mapping[str, Any]], *, whole: bool = False) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The same for documents that were read already. whole: also say which transforms are left out."""
    metadata = next((entry for entry in documents if "network_data_format" in entry), None)
    if metadata is None:
        return {}, ()
    said: list[str] = []
    found = _of_tensors(metadata)
    for document in documents:
        if "preprocessing" in document or "inferer" in document:
            found |= _of_transforms(document, said) | _of_inferer(document, said) | _of_activation(document)
            if whole:
                _of_slices(document, found, said)
                said += _left_out(document, found)
    classes = found.get("classes")
    if found.get("activation") == "sigmoid" and classes and len(classes) == 1:
        found["classes"] = ("background", *classes)
    if isinstance(metadata.get("name"), str):
        found["name"] = metadata["name"]
    return found, tuple(said)


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if "/extra/" in member.filename and member.file_size <= _LARGEST and sizes.can_unpack(member):
                    try:
                        value = json.loads(sizes.unpacked(archive, member))
                    except (ValueError, RecursionError):
                        continue  # An extra file may hold anything.
                    if isinstance(value, dict):
                        yield value
    except (OSError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return  # Whoever loads the model says what is wrong with the file.


# --- metadata.json ------------------------------------------------------------------------------------------------


def _of_tensors(metadata: Mapping[str, Any]) -> dict[str, Any]:
    form = metadata["network_data_format"]
    found: dict[str, Any] = {}
    image, drawn = (_first(form, part) for part in ("inputs", "outputs"))
    channels = _names(image)
    if channels:
        found["channels"] = channels
    shape = image.get("spatial_shape")
    if isinstance(shape, list) and len(shape) in (2, 3):
        found["dims"] = len(shape)
        divisors = [int(size.split("*")[0]) for size in shape if isinstance(size, str) and _is_multiple(size)]
        if divisors:
            found["divisor"] = math.lcm(*divisors)
    classes = _names(drawn)
    if classes:
        found["classes"] = classes
    return found


def _first(form: Any, part: str) -> Mapping[str, Any]:
    """The description of the only, or first, tensor of inputs or outputs."""
    entries = [entry for entry in _table(_table(form).get(part)).values() if isinstance(entry, dict)]
    return entries[0] if entries else {}


def _names(tensor: Mapping[str, Any]) -> tuple[str, ...]:
    """Names by number, if there is one for each channel and nothing else."""
    named, count = tensor.get("channel_def"), tensor.get("num_channels")
    if not isinstance(named, dict) or type(count) is not int or len(named) != count:
        return ()
    names = [named.get(str(n)) for n in range(count)]
    texts = tuple(name for name in names if isinstance(name, str) and name)
    return texts if len(texts) == count else ()


def _is_multiple(text: str) -> bool:
    """Whether it is such as 16*n."""
    number, _, letter = text.partition("*")
    number = number.strip()
    return number.isascii() and number.isdigit() and len(number) < 9 and int(number) > 0 and letter.strip() == "n"


# --- inference.json -----------------------------------------------------------------------------------------------


def _of_transforms(document: Mapping[str, Any], said: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    steps = _table(document.get("preprocessing")).get("transforms")
    for step in steps if isinstance(steps, list) else []:
        kind = _target(step)
        if kind.startswith("Orientation"):
            _take(found, "orientation", _plain(document, step.get("axcodes"), str), kind, said)
        elif kind.startswith("Spacing"):
            spacing = _plain(document, step.get("pixdim"), list)
            _take(found, "spacing", None if spacing is None else tuple(map(_finite, spacing)), kind, said)
        elif kind.startswith(("ScaleIntensity", "NormalizeIntensity")):
            _take(found, "intensity", _intensity(document, kind.rstrip("d"), step), kind, said)
    return found


def _take(found: dict[str, Any], key: str, value: Any, kind: str, said: list[str]) -> None:
    if value is None:
        said.append(f"{kind} in the bundle is not a plain value; state {key} if it matters")
    else:
        found[key] = value


def _intensity(document: Mapping[str, Any], kind: str, step: Mapping[str, Any]) -> Intensity | None:
    """MONAI's intensity transforms as ours; None for what they do not have in common."""

    def number(key: str, otherwise: float | None = None) -> float:
        value = _plain(document, step.get(key, otherwise), (int, float))
        if value is None:
            raise UsageError(f"{key} is not a number.")
        return _finite(value)

    clip = step.get("clip", False) is True
    try:
        if kind == "ScaleIntensityRange":
            to = (number("b_min", 0), number("b_max", 1))
            return Intensity(kind="window", min=number("a_min"), max=number("a_max"), to=to, clip=to if clip else None)
        if kind == "ScaleIntensityRangePercentiles":
            to = (number("b_min"), number("b_max"))
            clip_to = to if clip else None
            return Intensity(kind="percentile", lower=number("lower"), upper=number("upper"), to=to, clip=clip_to)
        if kind == "ScaleIntensity" and (number("minv", 0), number("maxv", 1)) == (0, 1):
            return Intensity(kind="minmax")
        if kind == "NormalizeIntensity" and step.get("subtrahend") is None and step.get("divisor") is None:
            return Intensity(kind="zscore", region="nonzero" if step.get("nonzero", False) is True else "all")
    except UsageError:
        return None
    return None


def _of_inferer(document: Mapping[str, Any], said: list[str]) -> dict[str, Any]:
    inferer = document.get("inferer")
    if not isinstance(inferer, dict) or "SlidingWindow" not in _target(inferer):
        return {}
    found: dict[str, Any] = {}
    roi = _plain(document, inferer.get("roi_size"), list)
    if roi is None:
        said.append("the windows of the bundle's inferer are not a plain value; state roi")
        return found
    found["roi"] = tuple(map(_finite, roi))
    overlap = _plain(document, inferer.get("overlap", 0.25), (int, float))
    if overlap is None:
        said.append("the overlap of the bundle's windows is not a plain value; state overlap")
    else:
        found["overlap"] = _finite(overlap)
    mode = _plain(document, inferer.get("mode", "constant"), str)
    if mode in ("gaussian", "constant"):
        found["blend"] = mode
    return found


def _of_slices(document: Mapping[str, Any], found: dict[str, Any], said: list[str]) -> None:
    """A volume that a 2-D network sees slice by slice (SliceInferer)."""
    inferer = document.get("inferer")
    if not isinstance(inferer, dict) or _target(inferer) != "SliceInferer":
        return
    axis = _plain(document, inferer.get("spatial_dim", 0), int)
    if axis not in (0, 1, 2):
        said.append("the slices of the bundle's inferer are not a plain value; state slice_axis")
        return
    codes = found.get("orientation")
    letters = {"L": "sagittal", "R": "sagittal", "P": "coronal", "A": "coronal", "I": "axial", "S": "axial"}
    stated = isinstance(codes, str) and len(codes) == 3 and set(codes.upper()) <= set(letters)
    found |= {"dims": 2, "slice_axis": letters[codes.upper()[axis]] if stated and codes else "ijk"[axis]}
    roi = _plain(document, inferer.get("roi_size"), list)
    if roi is not None and len(roi) == 2:
        found["roi"] = tuple(map(_finite, roi))
    if len(found.get("spacing", ())) == 3:
        along = found["spacing"][axis]
        found["spacing"] = tuple(mm for place, mm in enumerate(found["spacing"]) if place != axis)
        said.append(f"the bundle resamples slices to a distance of {along:g} mm; mafl leaves them where they are")


# These change neither values nor places, or are what reads a file.
_NOTHING = {
    "LoadImage", "EnsureChannelFirst", "EnsureType", "ToTensor", "ToDevice", "CastToType", "AddChannel",
    "AsChannelFirst", "Identity", "SelectItems", "DeleteItems", "CopyItems", "",
}  # fmt: skip
_UNDERSTOOD = {
    "Orientation", "Spacing", "ScaleIntensity", "ScaleIntensityRange", "ScaleIntensityRangePercentiles",
    "NormalizeIntensity",
}  # fmt: skip
_STATISTICS = ("ScaleIntensity", "NormalizeIntensity", "ScaleIntensityRangePercentiles")
_AFTERWARDS = {"Activations", "Invert", "AsDiscrete", "SaveImage"}


def _left_out(document: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each thing of a bundle that is not part of the attacked function."""
    scalings = 0
    for step in _steps(document, "preprocessing"):
        kind = _target(step).removesuffix("d")
        scalings += kind.startswith(("ScaleIntensity", "NormalizeIntensity"))
        if kind not in _NOTHING | _UNDERSTOOD:
            yield f"{_target(step)} of the bundle is left out: mafl does not know it"
        together = kind in _STATISTICS and step.get("channel_wise", False) is not True
        if together and len(found.get("channels", ())) > 1:
            yield f"{_target(step)} of the bundle takes one statistic for all channels; mafl takes one for each"
        mode = step.get("mode", "bilinear")
        if kind == "Spacing" and mode not in ("bilinear", ["bilinear"]) and found.get("spacing"):
            yield f"{_target(step)} of the bundle interpolates by {short(mode)}; mafl interpolates linearly"
    if scalings > 1:
        yield "the bundle scales intensities more than once; mafl does what its last step says"
    for step in _steps(document, "postprocessing"):
        kind = _target(step).removesuffix("d")
        if kind not in _NOTHING | _AFTERWARDS:
            yield f"{_target(step)} of the bundle is left out: the attacked function ends with the network's classes"
    inferer = document.get("inferer")
    kind = _target(inferer)
    if kind not in ("", "SimpleInferer", "SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer"):
        yield f"{kind} of the bundle is left out: mafl does not know it"


def _steps(document: Mapping[str, Any], part: str) -> list[Any]:
    steps = _table(document.get(part)).get("transforms")
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _of_activation(document: Mapping[str, Any]) -> dict[str, Any]:
    steps = _table(document.get("postprocessing")).get("transforms")
    for step in steps if isinstance(steps, list) else []:
        if _target(step).startswith("Activations"):
            for name in ("sigmoid", "softmax"):
                if step.get(name) is True:
                    return {"activation": name}
    return {}


def _target(step: Any) -> str:
    """The class of a component, without its module; empty if it is switched off."""
    if not isinstance(step, dict) or step.get("_disabled_") not in (None, False):
        return ""
    target = step.get("_target_")
    return target.rsplit(".", 1)[-1] if isinstance(target, str) else ""


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _finite(value: float) -> float:
    """As a float; infinite where an integer is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _plain(document: Mapping[str, Any], value: Any, kind: type | tuple[type, ...]) -> Any:
    """A value that stands there, also behind a reference; None for an expression or another type."""
    for _ in range(8):
        if not (isinstance(value, str) and value.startswith("@")):
            break
        parts = value[1:].replace("#", "::").split("::")
        value = document
        for part in parts:
            if isinstance(value, list) and part.isdecimal() and len(part) < 9 and int(part) < len(value):
                value = value[int(part)]
            else:
                value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, kind):
        return None
    if isinstance(value, str):
        return None if value.startswith(("$", "@")) else value
    if isinstance(value, list):
        plain = all(isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in value)
        return value if value and plain and min(value) > 0 else None
    return value
