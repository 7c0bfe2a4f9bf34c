"""Planted markers: a name in every text of a scan, its file and its folder, sound or damaged; nothing may show it.

Without `--redact` a changed NIfTI scan has its source's header, and a derived DICOM object the patient and study it
belongs to, at its top: these may hold the name, and nothing else. With it nothing may.
"""

from __future__ import annotations

import gzip
import io
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pydicom
from pydicom.dataelem import DataElement

from fuzzing import stock
from fuzzing.dicoms import spoil, written
from fuzzing.drive import Fuzz
from fuzzing.forks import Child, Room
from fuzzing.judge import Before, Seen, Trial, judge, last_line
from fuzzing.scans import odd_header
from fuzzing.stock import KEPT, MARK, Stock

_SECRETS = (MARK, "19231017")
"""The planted name, and the date of birth."""


def markers(fuzz: Fuzz, count: int, until: float) -> None:
    """`count` files, each through several commands, every other one with `--redact`."""
    for number in range(count):
        if time.monotonic() > until:
            return
        _one(fuzz, number)


def _one(fuzz: Fuzz, number: int) -> None:
    room = Room(fuzz.work / f"marker-{number}").make()
    rng = Random(f"{fuzz.seed} marker {number}")
    redact = number % 2 == 1
    room.place.joinpath(f"{MARK}-home").mkdir()
    made: list[tuple[str, str]] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.append(_plant(rng, room.place / f"{MARK}-home", fuzz.stock, redact, damaged=rng.random() < 0.5))
    except Exception as exc:
        fuzz.part("marker").not_made += 1
        fuzz.say(f"marker {number}: {exc!r}"[:200])
    for scan, what in made:
        file = str(room.place / f"{MARK}-home" / scan)
        for command in _commands(rng, file, fuzz.stock, redact):
            trial = Trial(command, what, results=("out", "page.html", "e.json", "e.csv"), secrets=_SECRETS)
            _try(fuzz, room, trial)
        if (room.place / "out").exists() and (name := _in_results(room.place, redact)):
            fuzz.found(
                "marker", Seen("marker", f"in {name}"), "", room, _commands(rng, file, fuzz.stock, redact)[0], what
            )
    fuzz.part("marker").inputs += 1
    shutil.rmtree(room.root, ignore_errors=True)


def _try(fuzz: Fuzz, room: Room, trial: Trial) -> None:
    before = Before.of(room.place)
    ended = Child(room, lambda: stock.run_command(trial.arguments), fuzz.limits).wait()
    fuzz.part("marker").ran(ended)
    for seen in judge(room, trial, before, ended, fuzz.largest):
        fuzz.found("marker", seen, last_line(room), room, trial.arguments, trial.what)


def _commands(rng: Random, file: str, good: Stock, redact: bool) -> list[tuple[str, ...]]:
    model = str(good.root / "flat.ts")
    more = (("--redact",) if redact else ()) + rng.choice(((), ("-v",)))
    if "seg" in Path(file).name:
        first = ("attack", str(good.root / "ct"), "-t", file, "-m", model, "-o", "out", "--steps", "1", *more)
    else:
        first = ("attack", file, "-t", "erase:1", "-m", model, "-o", "out", "--steps", "1", *more)
    # `inspect` has no --redact: it shows the name of the file that it is given.
    commands = [first] if redact else [("inspect", file), first]
    if rng.random() < 0.3:
        commands.append(("evaluate", "out", "--json", "e.json", "--csv", "e.csv"))
    if rng.random() < 0.15:
        commands.append(("visualize", "out", "-o", "page.html"))
    return commands


def _plant(rng: Random, home: Path, good: Stock, redact: bool, damaged: bool) -> tuple[str, str]:
    """Write a marked scan or mask; its name, marked too if names are to be hidden, and what was done to it."""
    name = f"{MARK}-scan" if redact else "scan"
    kind = rng.choice(("nifti", "nifti", "second", "pair", "series", "series", "series", "enhanced", "seg", "zip"))
    what = kind
    if kind in ("nifti", "second", "pair"):
        data = good.data(
            {"nifti": rng.choice(("int16.nii", "float32.nii")), "second": "second.nii", "pair": "pair.hdr"}[kind]
        )
        if damaged:
            data, more = odd_header(rng, data)
            what += f": {more}"
        if kind == "pair":
            (home / f"{name}.img").write_bytes(good.data("pair.img"))
            (home / f"{name}.hdr").write_bytes(data)
            return f"{name}.hdr", what
        (home / f"{name}.nii.gz").write_bytes(gzip.compress(data, 1))
        return f"{name}.nii.gz", what
    if kind in ("enhanced", "seg"):
        dataset = good.dataset(
            "enhanced.dcm" if kind == "enhanced" else rng.choice(("seg_binary.dcm", "seg_labelmap.dcm"))
        )
        what += f": {spoil(rng, dataset)}" if damaged else ""
        file = f"{name}{'-seg' if kind == 'seg' else ''}.dcm"
        (home / file).write_bytes(written(rng, dataset)[0])
        return file, what
    folder = home / name
    folder.mkdir()
    ill = rng.choice((range(4), [rng.randrange(4)])) if damaged else ()
    seed = rng.random()
    for number, dataset in enumerate(good.slices()):
        if number in ill:
            what = f"{kind}: {spoil(Random(seed), dataset)}"
        (folder / f"{MARK if redact else 'IM'}{number}.dcm").write_bytes(written(Random(1), dataset)[0])
    if kind == "zip":
        shutil.make_archive(str(folder), "zip", folder)
        return f"{name}.zip", what
    return name, what


def _in_results(place: Path, redact: bool) -> str | None:
    """The first result that holds a marker where none may be."""
    for path in _results(place):
        raw = path.read_bytes()
        if path.suffix == ".gz":
            if path.name.startswith("adversarial") and not redact:
                continue
            raw = gzip.decompress(raw)
        if path.suffix == ".dcm" and not redact:
            # What may say whom it is of.
            dataset = pydicom.dcmread(io.BytesIO(raw))
            for keyword in (*KEPT, "PatientBirthDate"):
                dataset[keyword].value = ""
            stream = io.BytesIO()
            dataset.save_as(stream)
            raw = stream.getvalue()
        if any(secret.encode() in raw for secret in _SECRETS):
            return f"{path.name}: {_element(raw)}" if path.suffix == ".dcm" else path.name
    return None


def _results(place: Path) -> Iterator[Path]:
    for name in ("out", "page.html", "e.json", "e.csv"):
        path = place / name
        yield from (
            sorted(each for each in path.rglob("*") if each.is_file())
            if path.is_dir()
            else [path]
            if path.exists()
            else []
        )


def _element(raw: bytes) -> str:
    """Where a DICOM file holds a marker, in words."""
    found = []
    dataset = pydicom.dcmread(io.BytesIO(raw))
    for each in (dataset.file_meta, dataset):
        each.walk(lambda _, element: found.append(element.keyword or str(element.tag)) if _marked(element) else None)
    return found[0] if found else "outside of its elements"


def _marked(element: DataElement) -> bool:
    return element.VR != "SQ" and any(secret in str(element.value) for secret in _SECRETS)
