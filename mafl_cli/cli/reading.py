"""How texts of the command line become settings, and what is checked of them before anything is computed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mafl_cli.cli.console import Voice
from mafl_cli.config import AttackConfig, Norm, budget, preset
from mafl_cli.errors import UsageError
from mafl_cli.names import between, is_there, outside, public_name

if TYPE_CHECKING:
    from mafl_cli.scans.recipes import Recipe


def require_folders(files: Mapping[str, str | None]) -> None:
    """Before anything is computed: the folders that files will be written to must be there."""
    for option, file in files.items():
        if file not in (None, "-") and not Path(str(file)).parent.is_dir():
            raise UsageError(f"{option}: the folder of this file does not exist: make it, or choose another.")


def require_view(seen_as: Mapping[str, Any]) -> None:
    """Before any file is read: how the model is to see scans can be. Raises UsageError otherwise."""
    from mafl_cli.case import request

    request.seen_as(seen_as)


def require_no_input(files: Mapping[str, str | None], read: Sequence[Path]) -> None:
    """What is written must not take the place of what it is about.

    That is an input, a scan of any name, or in a folder that is read the report or the table of a run.
    """
    inputs = {path.resolve() for path in read}
    for option, file in files.items():
        if file in (None, "-"):
            continue
        place = Path(str(file)).resolve()
        scan = place.name.endswith((".nii", ".nii.gz", ".dcm"))
        report = place.name in ("report.json", "cases.csv") and place.exists() and inputs & set(place.parents)
        if place in inputs or scan or report:
            raise UsageError(
                f"{option} {public_name(place)} is an input, a scan or the report of a run: choose another name."
            )


def between_commas(text: str, option: str) -> tuple[str, ...]:
    """What stands between commas. Raises UsageError where nothing does."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise UsageError(f"{option} has an empty entry in its comma-separated list.")
    return parts


def files_between_commas(text: str, option: str) -> tuple[Path, ...]:
    """Files between commas; a file that is there may have commas in its name. Raises as `between_commas`."""
    found = between(text, ",", lambda name: is_there(Path(name)))
    if found is None:
        raise UsageError(f"{option} has an empty entry in its comma-separated list.")
    return tuple(map(Path, found))


def numbers(text: str, option: str) -> list[float]:
    """Numbers between commas. Raises UsageError for anything else."""
    try:
        return [float(part) for part in between_commas(text, option)]
    except ValueError:
        raise UsageError(f"{option} must be numbers separated by commas, got {outside(text)!r}.") from None


def read_label_map(text: str | None) -> dict[int, int]:
    """ "255:1,2:0" -> {255: 1, 2: 0}."""
    found: dict[int, int] = {}
    if text is None:
        return found
    for part in between_commas(text, "--label-map"):
        old, _, new = part.partition(":")
        if not (old.isdecimal() and new.isdecimal()) or int(old) in found:
            raise UsageError(
                "--label-map must be OLD:NEW, whole numbers, separated by commas, each OLD once, got "
                f"{outside(text)!r}."
            )
        found[int(old)] = int(new)
    return found


def read_images(given: list[str], channels: str | None) -> tuple[Path, ...]:
    """The files of all channels: those listed, or the numbered siblings of IMAGE, or IMAGE alone."""
    listed = () if channels is None else files_between_commas(channels, "--channels")
    if len(given) > 1:
        raise UsageError(
            "--channels are those of one scan: for several IMAGEs, a batch, number the files of the channels."
        )
    if not given:
        if not listed:
            raise UsageError("no scan: give IMAGE, or the files of all channels with --channels.")
        return listed
    image = Path(given[0])
    if listed:
        return listed if image in listed else (image, *listed)
    first = re.fullmatch(r"(.+)_0000(\.nii(?:\.gz)?)", image.name)
    if first is None:
        return (image,)
    found = [image]
    while (following := image.with_name(f"{first[1]}_{len(found):04d}{first[2]}")).exists():
        found.append(following)
    return tuple(found)


def read_target(text: str | None, *, keep_folders: bool) -> Recipe | tuple[Path, ...] | None:
    """A recipe, or files between commas. In a batch a folder of masks has been looked into: each case has its own."""
    from mafl_cli.scans import recipes

    if text is None:
        return None
    recipe = recipes.parse(text)
    if recipe is not None:
        return recipe
    masks = files_between_commas(text, "--target")
    return () if not keep_folders and any(mask.is_dir() for mask in masks) else masks


def read_part(count: int | None, index: int | None) -> tuple[int, int]:
    """(index, count): the options, else what SLURM says of an array, else all."""
    if (count is None) != (index is None):
        raise UsageError("--num-parts and --part-id must be given together.")
    if count is None or index is None:
        return _part_of_array() or (0, 1)
    if index >= count:
        raise UsageError(f"--part-id must be 0 to {count - 1} for {count} parts, got {index}.")
    return index, count


def _part_of_array() -> tuple[int, int] | None:
    said = {key: os.environ.get(f"SLURM_ARRAY_TASK_{key}", "") for key in ("ID", "MIN", "MAX", "STEP", "COUNT")}
    task = {key: int(value) for key, value in said.items() if value.isdecimal()}
    if "ID" not in task:
        return None
    advice = "say which part this is with --num-parts and --part-id."
    first, step = task.get("MIN", 0), max(task.get("STEP", 1), 1)
    count = (task["MAX"] - first) // step + 1 if "MAX" in task else task.get("COUNT")
    if count is None:
        raise UsageError(f"SLURM says which task of an array this is, but not how many there are; {advice}")
    if task.get("COUNT", count) != count:
        raise UsageError(
            f"the SLURM array has {task['COUNT']} tasks, but their numbers are not evenly spaced: cases would be left "
            f"out; {advice}"
        )
    index, rest = divmod(task["ID"] - first, step)
    if rest or not 0 <= index < count:
        raise UsageError(f"SLURM's task {task['ID']} is not one of the {count} of its array, from {first} on; {advice}")
    return index, count


def read_settings(method: str, ball: Mapping[str, Any], given: Mapping[str, Any]) -> AttackConfig:
    """The method's settings with what was given on the command line in their place."""
    config = preset(method, **given, **ball)
    if "norm" in given and config.eps is None:
        raise UsageError("--norm needs a limit: give --eps, --eps-hu, --eps-range, --eps-noise or --budget-eps too.")
    return config


def read_ball(radii: dict[str, float | None], norm: Norm | None, goals: Mapping[str, object]) -> dict[str, Any]:
    """The ball that was asked for, as settings. Arguments: the options by their names; None is not given."""
    given = [(option, radius) for option, radius in radii.items() if radius is not None]
    if not given:
        return {}
    if len(given) > 1:
        raise UsageError(f"{' and '.join(option for option, _ in given)} exclude each other.")
    ((option, radius),) = given
    units = {"--eps": "model", "--eps-hu": "native", "--eps-range": "range", "--eps-noise": "noise"}
    if option in units:
        return {"eps": radius, "eps_unit": units[option]}
    for goal, value in goals.items():
        if value is not None:
            raise UsageError(f"--budget-eps asks for the best result within its radius: leave out {goal}.")
    return budget(radius, norm or "linf")


def model_at_hand() -> Path:
    """The model that is used when none is named."""
    from mafl_cli.case.request import DEMO_MODEL

    return Path(os.environ.get("MAFL_MODEL") or DEMO_MODEL)


def models_at_hand() -> tuple[Path, ...]:
    """Models among which the one that a run attacked is looked for."""
    from mafl_cli.case.request import DEMO_MODEL

    return tuple(dict.fromkeys((model_at_hand(), DEMO_MODEL)))


def model_or_default(voice: Voice) -> Path:
    """The model to use where none is named: $MAFL_MODEL, else the one that comes with mafl."""
    found = model_at_hand()
    voice.say(
        f"model: {outside(found.name)} (from $MAFL_MODEL)"
        if os.environ.get("MAFL_MODEL")
        else "model: the small brain-tissue model that comes with mafl (no --model given)"
    )
    return found
