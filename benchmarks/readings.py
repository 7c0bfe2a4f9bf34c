"""How often a wrong view of a scan is found, and how often a right one is doubted.

    python benchmarks/readings.py                       # the sample scan and the model that comes with mafl
    python benchmarks/readings.py --data DIR            # and the networks of the benchmark
    python benchmarks/readings.py --data DIR --travel CACHE         # and those that `travel_made.py` has made

Each model is given its scan as it was trained (`right`), with its axes in every other order, rows x columns as DICOM
has them among them (`axes`), with one axis against its direction (`flip`), in other intensity scalings (`intensity`),
and with its channels in another order (`channels`). A setting is wrong where the prediction has a Dice below 0.5 with
that of the right setting, and harmless from 0.8 on. Then the question of `mafl attack` is asked: with a mask of what
should be drawn, the prediction of the right setting; and without one. Found: another setting is advised; right, if its
Dice is 0.5 or more. For a right setting there is a margin, even where `mafl attack` has no doubt: without a mask, the
best score of another reading that would be advised if it were high enough, over its own.

Whole volumes take three times as long, so large ones are cut to their middle: 160 x 192 x 96 voxels for the networks
on slices, 128 x 128 x 128 for `t1_gwm_meshnet3d`. From the set of `travel_made.py` the CT volume is used, and for FLAIR
the slice of each patient with most tumour; both without a mask.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from sources import SOURCES, model_file

from mafl_cli.case.reading import SCALINGS, Reading, flipped, given_reading
from mafl_cli.case.readings import ALIKE, RIGHT, Readings, agreement, is_doubtful, looks_doubtful, try_readings
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
    """A model with a scan, and how it was trained to see it.

    source: in `sources.SOURCES`; None for the sample. cut: edges of the box in the middle that is used, in voxels.
    """

    source: str | None
    images: tuple[str, ...] = ()
    intensity: Intensity | None = None
    orientation: str | None = "native"
    slice_axis: str | None = None
    cut: tuple[int, int, int] | None = None


BRAIN = (160, 192, 96)
"""Most of a brain in a volume of BRATS, and a third of its voxels."""
BRATS = Intensity(kind="zscore", region="nonzero", clip=(-5.0, 8.0))
MODELS = {
    "demo": Seen(None, orientation=None),
    "flair_unet2d": Seen("flair2d_pat0001/slab12", ("flair2d_pat0001/image",), Intensity(), slice_axis="k", cut=BRAIN),
    "flair_unet2d, raw scan": Seen(
        "flair2d_pat0001/slab12", ("flair2d_pat0001/image_raw_int16",), BRATS, slice_axis="k", cut=BRAIN
    ),
    "brats_unet2d": Seen(
        "brats2d_pat0002/slab12",
        ("brats2d_pat0002/image_flair", "brats2d_pat0002/image_t1c"),
        Intensity(),
        slice_axis="k",
        cut=BRAIN,
    ),
    "brats_unet3d": Seen(
        "brats3d_pat0003/crop96",
        ("brats3d_pat0003/crop96/image_flair", "brats3d_pat0003/crop96/image_t1c"),
        Intensity(),
    ),
    "t1_gwm_meshnet3d": Seen(
        "t1_gwm_headbox", ("t1_gwm_headbox/image",), Intensity(kind="minmax"), cut=(128, 128, 128)
    ),
    "deepbet bbox_model": Seen(
        "t1_brainmask_128", ("t1_brainmask_128/image",), Intensity.parse("percentile:0.5,99.5"), "RAS"
    ),
}


def subjects(chosen: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Subject, Path]]:
    """Each model with its scan, seen as it was trained. folder: for scans that are cut out of others."""
    for name, seen in MODELS.items():
        if not name.startswith(tuple(chosen.only)):
            continue
        there = subject_of(seen, chosen.data, folder)
        if there is None:
            print(f"{name}: not here")
        else:
            yield name, *there
    if chosen.travel is None:
        return
    for network in json.loads((chosen.travel / "networks.json").read_text(encoding="utf-8")):
        task, model = network["task"], chosen.travel / network["file"]
        for scan in [chosen.data / "ct" / "ct.nii.gz"] if task == "ct" else most_tumour(chosen.travel / task):
            name = f"{task} {network['name']}" + ("" if task == "ct" else f", {scan.name.removesuffix('.nii.gz')}")
            if name.startswith(tuple(chosen.only)):
                yield (
                    name,
                    prepare_subject(read_channels([scan], silent), ModelRequest(model=model), CPU, silent),
                    model,
                )


def most_tumour(task: Path) -> list[Path]:
    """The slice of each patient with most that is labelled."""
    sizes: dict[str, tuple[int, Path]] = {}
    for path in sorted((task / "labels").glob("*.nii.gz")):
        size = int((np.asarray(nib.load(path).dataobj) > 0).sum())
        patient = path.name.split("_")[0]
        sizes[patient] = max(sizes.get(patient, (0, path)), (size, task / "scans" / path.name))
    return [path for _, path in sizes.values()]


def subject_of(seen: Seen, data: Path | None, folder: Path) -> tuple[Subject, Path] | None:
    """The model with its scan, seen as it was trained; None where they cannot be had here."""
    if seen.source is None:
        model, images = DEMO_MODEL, [SAMPLE]
    else:
        found = None if data is None else model_file(SOURCES[seen.source], data)
        if found is None or data is None:
            return None
        model, images = found, [data / "cases" / f"{name}.nii.gz" for name in seen.images]
    if seen.cut is not None:
        images = [cut_out(image, seen.cut, folder) for image in images]
    view: dict[str, Any] = {
        "intensity": seen.intensity,
        "orientation": seen.orientation,
        "slice_axis": seen.slice_axis,
    }
    return prepare_subject(read_channels(images, silent), ModelRequest(model=model, **view), CPU, silent), model


def cut_out(image: Path, edges: tuple[int, int, int], folder: Path) -> Path:
    """The middle of a scan, as a file."""
    scan = nib.load(image)
    starts = [(size - edge) // 2 for size, edge in zip(scan.shape, edges, strict=True)]
    middle = tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))
    nib.save(scan.slicer[middle], folder / image.name)
    return folder / image.name


def settings(right: Subject) -> Iterator[tuple[str, Reading]]:
    """The right one, other orders and directions of the axes, other scalings, and other orders of the channels."""
    given = given_reading(right)
    yield "right", given
    letters = given.orientation
    if given.slice_axis is None:
        yield from (("axes", replace(given, orientation="".join(codes))) for codes in list(permutations(letters))[1:])
        inside = [0, 1, 2]
    else:
        own = "ijk".index(given.slice_axis)
        inside = [axis for axis in range(3) if axis != own]
        for axis in range(3) if right.scan.shape[own] > 1 else [own]:
            others = [letter for n, letter in enumerate(letters) if n != axis]
            for pair in (others, others[::-1]):
                codes = [*pair[:axis], letters[axis], *pair[axis:]]
                turned = replace(given, orientation="".join(codes), slice_axis="ijk"[axis])
                if turned != given:
                    yield "axes", turned
    for mirrored in flipped(letters):
        against = [axis for axis in range(3) if mirrored[axis] != letters[axis]]
        if len(against) == 1 and against[0] in inside:
            yield "flip", replace(given, orientation=mirrored)
    hounsfield = float(right.scan.data.min()) < -300
    scalings = [text for text in SCALINGS if hounsfield or not text.startswith("window")]
    yield from (("intensity", replace(given, intensity=text)) for text in scalings)
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


def margin(found: Readings) -> float:
    """The best score of another reading that draws something else, over that of the given one: 0 if there is none."""
    rivals = [each.score for each in found.others if each.alike < ALIKE and not each.nothing]
    best = max((score for score in rivals if score >= RIGHT["plausibility"]), default=0.0)
    return best / max(found.given.score, 1e-9)


@dataclass
class Count:
    """How many settings of a kind there were, for how many another one was advised, and how often that was right."""

    tried: int = 0
    advised: int = 0
    good: int = 0

    def add(self, advised: bool, good: bool) -> None:
        self.tried, self.advised, self.good = self.tried + 1, self.advised + advised, self.good + good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with cases/ and models/")
    parser.add_argument("--travel", type=Path, metavar="CACHE", help="what travel_made.py has made; needs --data")
    parser.add_argument("--only", action="append", help="a model, as the table names it, or how its name begins")
    parser.add_argument("--kind", action="append", help="axes, flip, intensity or channels; all if not said")
    parser.add_argument("--without-mask", action="store_true", help="ask only what takes no mask, in half the time")
    chosen = parser.parse_args()
    chosen.only = chosen.only or [""]
    if chosen.travel is not None and chosen.data is None:
        parser.error("--travel needs --data: the CT volume is there.")
    totals: dict[tuple[str, ...], Count] = {}
    margins: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, right, model in subjects(chosen, Path(folder)):
            with_mask = not chosen.without_mask and name in MODELS
            wanted = [each for each in settings(right) if not chosen.kind or each[0] in ("right", *chosen.kind)]
            measure(name, right, model, wanted, totals, margins, with_mask=with_mask)
    heads = ("mask", "the network remembers", "setting", "what is wrong")
    print("\n| " + " | ".join((*heads, "tried", "another advised", "of these right")) + " |")
    print("| --- " * 7 + "|")
    for key, count in sorted(totals.items(), reverse=True):
        print(f"| {' | '.join(key)} | {count.tried} | {count.advised} | {count.good} |")
    print("\nlargest margins of right settings without a mask:")
    for ratio, where in sorted(margins, reverse=True)[:8]:
        print(f"{ratio:.2f} {where}")


def measure(
    name: str,
    right: Subject,
    model: Path,
    chosen: list[tuple[str, Reading]],
    totals: dict[tuple[str, ...], Count],
    margins: list[tuple[float, str]],
    *,
    with_mask: bool,
) -> None:
    """Ask for settings of one model with its scan, the right one first."""
    remembers = "-"
    wanted = right.predict([scan.data for scan in right.scans])
    for kind, reading in chosen:
        try:
            subject = as_read(right, reading, model)
            drawn = subject.predict([scan.data for scan in subject.scans])
        except MaflError as error:
            print(f"{name}: {kind}: cannot be tried: {error}")
            continue
        dice = agreement(drawn, wanted, right.info.classes)
        worth = (
            "right" if kind == "right" else "wrong" if dice < WRONG else "harmless" if dice >= HARMLESS else "between"
        )
        for masked in (False, True) if with_mask else (False,):
            found = asked(subject, drawn, wanted, masked=masked)
            better = None if found is None else found.better
            said, good, score = "-", False, ""
            if found is not None and better is not None:
                reached = agreement(as_advised(subject, better.reading, model), wanted, right.info.classes)
                said, good = f"{better.reading.options(found.given.reading)} (Dice {reached:.2f})", reached >= WRONG
            if kind == "right" and not masked:
                own = found or try_readings(subject, drawn, None, thorough=False)
                remembers = "no" if own.given.fit is None else "yes"
                margins.append((margin(own), f"{name}, score {own.given.score:.2f}"))
                score = f" margin {margin(own):.2f}"
            if found is not None:
                fit = "" if found.given.fit is None else f" fit {found.given.fit:.2f}"
                score += f" score {found.given.score:.2f}{fit}"
            key = ("yes" if masked else "no", remembers, worth, kind)
            totals.setdefault(key, Count()).add(better is not None, good)
            how = "mask" if masked else "none"
            print(f"{name}: {kind} {short(reading)}: {worth} (Dice {dice:.2f}), {how}{score}: {said}", flush=True)


def as_advised(subject: Subject, reading: Reading, model: Path) -> Labels:
    """What the model draws on all of the scan with a setting that was advised."""
    other = as_read(subject, reading, model)
    return other.predict([scan.data for scan in other.scans])


def short(reading: Reading) -> str:
    parts = (reading.orientation, reading.slice_axis, reading.intensity, "".join(map(str, reading.order)))
    return " ".join(part for part in parts if part)


if __name__ == "__main__":
    main()
