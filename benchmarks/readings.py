"""How often a wrong view of a scan is found, and how often a right one is doubted.

    python benchmarks/readings.py                       # the sample scan and the model that comes with mafl
    python benchmarks/readings.py --data DIR            # and the networks of the benchmark

Each model is given its scan as it was trained, in every other order of the axes, in other intensity scalings, and with
its channels in another order. A setting is wrong where the prediction has a Dice below 0.5 with that of the right
setting, and harmless from 0.8 on. Then the question of `mafl attack` is asked: with a mask of what should be drawn, the
prediction of the right setting; and without one. Found: another setting is advised, whose Dice is 0.5 or more.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from sources import SOURCES, model_file

from mafl_cli.case.reading import SCALINGS, Reading, given_reading
from mafl_cli.case.readings import Readings, agreement, is_doubtful, looks_doubtful, try_readings
from mafl_cli.case.request import DEMO_MODEL, ModelRequest
from mafl_cli.case.subject import Subject, prepare_subject, read_channels
from mafl_cli.classes import Labels
from mafl_cli.errors import MaflError
from mafl_cli.network.intensity import Intensity

SAMPLE = Path(__file__).parents[1] / "sample_data" / "brain_t1.nii.gz"
WRONG, HARMLESS = 0.5, 0.8
CPU = torch.device("cpu")


def silent(line: str) -> None:
    """What is assumed is not asked here."""


@dataclass(frozen=True)
class Seen:
    """A model with a scan, and how it was trained to see it. source: in `sources.SOURCES`; None for the sample."""

    source: str | None
    images: tuple[str, ...] = ()
    intensity: Intensity | None = None
    orientation: str | None = "native"
    slice_axis: str | None = None


BRATS = Intensity(kind="zscore", region="nonzero", clip=(-5.0, 8.0))
MODELS = {
    "demo": Seen(None, orientation=None),
    "flair_unet2d": Seen("flair2d_pat0001/slab12", ("flair2d_pat0001/image",), Intensity(), slice_axis="k"),
    "flair_unet2d, raw scan": Seen(
        "flair2d_pat0001/slab12", ("flair2d_pat0001/image_raw_int16",), BRATS, slice_axis="k"
    ),
    "brats_unet2d": Seen(
        "brats2d_pat0002/slab12",
        ("brats2d_pat0002/image_flair", "brats2d_pat0002/image_t1c"),
        Intensity(),
        slice_axis="k",
    ),
    "brats_unet3d": Seen(
        "brats3d_pat0003/crop96",
        ("brats3d_pat0003/crop96/image_flair", "brats3d_pat0003/crop96/image_t1c"),
        Intensity(),
    ),
    "t1_gwm_meshnet3d": Seen("t1_gwm_headbox", ("t1_gwm_headbox/image",), Intensity(kind="minmax")),
    "deepbet bbox_model": Seen(
        "t1_brainmask_128", ("t1_brainmask_128/image",), Intensity.parse("percentile:0.5,99.5"), "RAS"
    ),
}


def subject_of(seen: Seen, data: Path | None) -> tuple[Subject, Path] | None:
    """The model with its scan, seen as it was trained; None where they cannot be had here."""
    if seen.source is None:
        model, images = DEMO_MODEL, [SAMPLE]
    else:
        found = None if data is None else model_file(SOURCES[seen.source], data)
        if found is None or data is None:
            return None
        model, images = found, [data / "cases" / f"{name}.nii.gz" for name in seen.images]
    view: dict[str, Any] = {
        "intensity": seen.intensity,
        "orientation": seen.orientation,
        "slice_axis": seen.slice_axis,
    }
    return prepare_subject(read_channels(images, silent), ModelRequest(model=model, **view), CPU, silent), model


def settings(right: Subject) -> Iterator[tuple[str, Reading]]:
    """The right one, all other orders of the axes, other scalings, and other orders of the channels."""
    given = given_reading(right)
    yield "right", given
    letters = given.orientation
    if given.slice_axis is None:
        yield from (("axes", replace(given, orientation="".join(codes))) for codes in list(permutations(letters))[1:])
    else:
        for axis in range(3):
            others = [letter for n, letter in enumerate(letters) if n != axis]
            for pair in (others, others[::-1]):
                codes = [*pair[:axis], letters[axis], *pair[axis:]]
                turned = replace(given, orientation="".join(codes), slice_axis="ijk"[axis])
                if turned != given:
                    yield "axes", turned
    yield from (("intensity", replace(given, intensity=text)) for text in SCALINGS if not text.startswith("window"))
    yield from (("channels", replace(given, order=order)) for order in list(permutations(given.order))[1:])


def as_read(right: Subject, reading: Reading, model: Path) -> Subject:
    """The same scan and model with another setting."""
    intensity = right.card.intensity if reading.intensity is None else Intensity.parse(reading.intensity)
    view: dict[str, Any] = {
        "intensity": intensity,
        "orientation": reading.orientation,
        "slice_axis": reading.slice_axis,
    }
    scans = [right.scans[number] for number in reading.order]
    return prepare_subject(scans, ModelRequest(model=model, **view), CPU, silent)


def asked(subject: Subject, drawn: Labels, wanted: Labels, *, masked: bool) -> Readings | None:
    """What `mafl attack` would find; None where it has no doubt."""
    if masked:
        doubtful = is_doubtful(drawn, wanted, subject.info.classes)
        return try_readings(subject, drawn, wanted, thorough=False) if doubtful else None
    return try_readings(subject, drawn, None, thorough=False) if looks_doubtful(subject, drawn) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with cases/ and models/")
    parser.add_argument("--only", action="append", help="a model, as the table names it")
    chosen = parser.parse_args()
    total: dict[tuple[bool, str], list[int]] = {}
    for name, seen in MODELS.items():
        if chosen.only and name not in chosen.only:
            continue
        there = subject_of(seen, chosen.data)
        if there is None:
            print(f"{name}: not here")
            continue
        right, model = there
        wanted = right.predict([scan.data for scan in right.scans])
        for kind, reading in settings(right):
            try:
                subject = as_read(right, reading, model)
                drawn = subject.predict([scan.data for scan in subject.scans])
            except MaflError as error:
                print(f"{name}: {kind}: cannot be tried: {error}")
                continue
            dice = agreement(drawn, wanted, right.info.classes)
            worth = "wrong" if dice < WRONG else "harmless" if dice >= HARMLESS else "between"
            for masked in (True, False):
                found = asked(subject, drawn, wanted, masked=masked)
                better = None if found is None else found.better
                said, good = "-", 0
                if found is not None and better is not None:
                    advised = as_advised(subject, better.reading, model)
                    reached = agreement(advised, wanted, right.info.classes)
                    said, good = f"{better.reading.options(found.given.reading)} (Dice {reached:.2f})", reached >= WRONG
                counts = total.setdefault((masked, worth), [0, 0, 0])
                counts[0] += 1
                counts[1] += better is not None
                counts[2] += int(good)
                score = "" if found is None else f" score {found.given.score:.2f}"
                how = "mask" if masked else "none"
                print(f"{name}: {kind} {short(reading)}: {worth} (Dice {dice:.2f}), {how}{score}: {said}", flush=True)
    print("\n| mask | setting | tried | another advised | of these with a Dice of 0.5 or more |\n" + "| --- " * 5 + "|")
    for (masked, worth), counts in sorted(total.items(), reverse=True):
        print(f"| {'yes' if masked else 'no'} | {worth} | {' | '.join(map(str, counts))} |")


def as_advised(subject: Subject, reading: Reading, model: Path) -> Labels:
    """What the model draws on all of the scan with a setting that was advised."""
    other = as_read(subject, reading, model)
    return other.predict([scan.data for scan in other.scans])


def short(reading: Reading) -> str:
    parts = (reading.orientation, reading.slice_axis, reading.intensity, "".join(map(str, reading.order)))
    return " ".join(part for part in parts if part)


if __name__ == "__main__":
    main()
