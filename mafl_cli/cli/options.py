"""What commands share of their options: headings, types, and how texts become settings. Nothing heavy is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
import typer.core

from mafl_cli.config import AttackConfig, Mode, Norm, SliceAxisChoice, budget, preset
from mafl_cli.errors import UsageError
from mafl_cli.names import between, is_there
from mafl_cli.system import sizes

# Headings of --help, in their order.
FILES, GOAL, METHOD, BUDGET, MODEL_INPUT, OUTPUT = "Files", "Goal", "Method", "Budget", "Model input", "Output"
TRIALS, GATES, BATCH = "Trials", "Gates", "Batch"

LogFormat = Literal["text", "json"]


# typer reads annotations at run time, also on Python 3.10.
MaybeInt = Optional[int]  # noqa: UP045
MaybeFloat = Optional[float]  # noqa: UP045
MaybeBool = Optional[bool]  # noqa: UP045
MaybeStr = Optional[str]  # noqa: UP045
MaybePath = Optional[Path]  # noqa: UP045


class Grouped(typer.core.TyperCommand):
    """A command whose options stand under headings in plain text; rich's panels would cost an import and a frame."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each heading, in the order of the options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                other = "Arguments" if parameter.param_type_name == "argument" else "Other"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or other, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def under(heading: str, *names: str, **settings: Any) -> Any:
    """An option under a heading."""
    return typer.Option(*names, rich_help_panel=heading, **settings)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.", rich_help_panel=OUTPUT)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel=OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=OUTPUT)]
Json = Annotated[
    MaybeStr,
    typer.Option("--json", metavar="FILE", help="Also write the report there; - is stdout.", rich_help_panel=OUTPUT),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that are there already.", rich_help_panel=FILES)
]


SizeLimit = Annotated[
    MaybeFloat,
    typer.Option(
        sizes.OPTION,
        metavar="GIB",
        envvar="MAFL_SIZE_LIMIT",
        help="Largest scan, mask or archive, as it would be in memory; above it a file is refused before it is "
        f"unpacked. [default: {sizes.DEFAULT_GIB:g}]",
        rich_help_panel=FILES,
    ),
]


# What a model is told of scans, by every command that asks one.
ModeOption = Annotated[Mode, under(MODEL_INPUT, help="Slice by slice or as a volume; auto asks the model.")]
SliceAxisOption = Annotated[
    Optional[SliceAxisChoice],  # noqa: UP045
    under(
        MODEL_INPUT,
        "--slice-axis",
        help="Where 2-D slices are cut. auto: across the largest spacing, else axial. "
        "[default: the model card's, else auto]",
    ),
]
OrientationOption = Annotated[
    MaybeStr,
    under(MODEL_INPUT, metavar="CODES", help="Axes the model expects, as RAS; native: the file's own. [default: card]"),
]
IntensityOption = Annotated[
    MaybeStr,
    under(
        MODEL_INPUT,
        metavar="KIND",
        help="Scaling the model expects: none, minmax, zscore, zscore-nonzero, window:MIN,MAX, "
        "percentile:LOWER,UPPER, ct:LOWER,UPPER,MEAN,STD. [default: card]",
    ),
]
SpacingOption = Annotated[
    MaybeStr,
    under(
        MODEL_INPUT,
        metavar="MM",
        help="Spacing the model was trained at, along its axes, as 1.5,1.5,2; native: the scan's. [default: card]",
    ),
]
RoiOption = Annotated[
    MaybeStr,
    under(
        MODEL_INPUT,
        metavar="VOXELS",
        help="Sliding windows of this size, as 96,96,96; none: in one piece. [default: card, else none]",
    ),
]
OverlapOption = Annotated[
    MaybeFloat, under(MODEL_INPUT, help="Of the windows, as a share of their size. [default: card, else 0.5]")
]
DeviceOption = Annotated[str, under(MODEL_INPUT, "--device", "-d", help="auto, cpu, cuda or cuda:N.")]


def model_settings(
    mode: Mode,
    slice_axis: SliceAxisChoice | None,
    orientation: str | None,
    intensity: str | None,
    spacing: str | None,
    roi: str | None,
    overlap: float | None,
) -> dict[str, Any]:
    """What the options say of how a model sees scans, as settings of a `ModelRequest`."""
    from mafl_cli.network.card import check_orientation, check_overlap, check_roi, check_spacing
    from mafl_cli.network.intensity import Intensity

    mm = None if spacing is None else (0.0,) if spacing == "native" else check_spacing(_numbers(spacing, "--spacing"))
    return {
        "mode": mode,
        "slice_axis": slice_axis,
        "spacing": mm,
        "roi": None if roi is None else (0,) if roi == "none" else check_roi(_numbers(roi, "--roi")),
        "intensity": None if intensity is None else Intensity.parse(intensity),
        "orientation": None if orientation is None else check_orientation(orientation),
        "overlap": None if overlap is None else check_overlap(overlap),
    }


def require_folders(files: Mapping[str, str | None]) -> None:
    """Before anything is computed: the folders that files will be written to must be there."""
    for option, file in files.items():
        if file not in (None, "-") and not Path(str(file)).parent.is_dir():
            raise UsageError(f"{option}: the folder of this file does not exist.")


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
            raise UsageError(f"{option} {place.name}: is an input, a scan or the report of a run; choose another name.")


def between_commas(text: str, option: str) -> tuple[str, ...]:
    """What stands between commas. Raises UsageError where nothing does."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise UsageError(f"{option}: there is nothing before or after a comma.")
    return parts


def files_between_commas(text: str, option: str) -> tuple[Path, ...]:
    """Files between commas; a file that is there may have commas in its name. Raises as `between_commas`."""
    found = between(text, ",", lambda name: is_there(Path(name)))
    if found is None:
        raise UsageError(f"{option}: there is nothing before or after a comma.")
    return tuple(map(Path, found))


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in between_commas(text, option)]
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a list of numbers, separated by commas.") from None


def read_label_map(text: str | None) -> dict[int, int]:
    """ "255:1,2:0" -> {255: 1, 2: 0}."""
    found: dict[int, int] = {}
    for part in between_commas(text, "--label-map") if text is not None else ():
        old, _, new = part.partition(":")
        if not (old.isdecimal() and new.isdecimal()) or int(old) in found:
            raise UsageError(f"--label-map {text!r} is not a list of OLD:NEW, whole numbers, each OLD once.")
        found[int(old)] = int(new)
    return found


def read_images(given: list[str], channels: str | None) -> tuple[Path, ...]:
    """The files of all channels: those listed, or the numbered siblings of IMAGE, or IMAGE alone."""
    listed = () if channels is None else files_between_commas(channels, "--channels")
    if len(given) > 1:
        raise UsageError("--channels are those of one scan; several IMAGEs are a batch, with numbered channels.")
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


def read_part(count: int | None, index: int | None) -> tuple[int, int]:
    """(index, count): the options, else what SLURM says of an array, else all."""
    if (count is None) != (index is None):
        raise UsageError("--num-parts and --part-id go together.")
    if count is None or index is None:
        return _part_of_array() or (0, 1)
    if index >= count:
        raise UsageError(f"--part-id {index}: the {count} parts are 0 to {count - 1}.")
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
        raise UsageError(f"SLURM says which task of an array this is, but not of how many; {advice}")
    if task.get("COUNT", count) != count:
        raise UsageError(
            f"the SLURM array has {task['COUNT']} tasks, but their numbers are not evenly spaced: cases would be left "
            f"out; {advice}"
        )
    index, rest = divmod(task["ID"] - first, step)
    if rest or not 0 <= index < count:
        raise UsageError(f"SLURM's task {task['ID']} is none of the {count} of its array, from {first} on; {advice}")
    return index, count


def read_settings(method: str, ball: dict[str, Any], **options: Any) -> AttackConfig:
    """The method's settings with what was given on the command line in their place."""
    config = preset(method, **{name: value for name, value in options.items() if value is not None}, **ball)
    if options["norm"] is not None and config.eps is None:
        raise UsageError("--norm is that of a ball: give --eps, --eps-hu, --eps-range or --budget-eps too.")
    return config


def read_ball(radii: dict[str, float | None], norm: Norm | None, goals: Mapping[str, object]) -> dict[str, Any]:
    """The ball that was asked for, as settings. Arguments: the options by their names; None is not given."""
    given = [(option, radius) for option, radius in radii.items() if radius is not None]
    if not given:
        return {}
    if len(given) > 1:
        raise UsageError(f"{' and '.join(option for option, _ in given)} exclude each other.")
    ((option, radius),) = given
    if option != "--budget-eps":
        return {"eps": radius, "eps_unit": {"--eps": "model", "--eps-hu": "native", "--eps-range": "range"}[option]}
    for goal, value in goals.items():
        if value is not None:
            raise UsageError(
                f"--budget-eps asks for the best result within a ball, so {goal} has no meaning beside it."
            )
    return budget(radius, norm or "linf")


def model_at_hand() -> Path:
    """The model that is used when none is named."""
    from mafl_cli.case.request import DEMO_MODEL

    return Path(os.environ.get("MAFL_MODEL") or DEMO_MODEL)


def models_at_hand() -> tuple[Path, ...]:
    """Those among which the one that a run attacked is looked for."""
    from mafl_cli.case.request import DEMO_MODEL

    return tuple(dict.fromkeys((model_at_hand(), DEMO_MODEL)))
