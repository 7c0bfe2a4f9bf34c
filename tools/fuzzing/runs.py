"""Damaged results: reports of runs, batches and evaluations, and the files beside them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

from fuzzing import damage
from fuzzing.dicoms import spoil, written
from fuzzing.judge import Trial
from fuzzing.scans import odd_header
from fuzzing.stock import Stock

_GATED = ("--fail-if", "target_iou > 0.9")


def report(rng: Random, place: Path, stock: Stock) -> Trial:
    """A run, or a batch, with a damaged report or damaged files; judged, shown, counted or joined."""
    kind = rng.choice(("run", "run", "run_dicom", "batch"))
    run = stock.copy(kind, place / "run")
    how = rng.random()
    what = _report(rng, run) if how < 0.7 else _files(rng, run)
    return Trial(_command(rng, place, kind), f"{kind}: {what}", results=("out",))


def _command(rng: Random, place: Path, kind: str) -> tuple[str, ...]:
    (place / "out").mkdir()
    run = rng.choice(("run", str(place / "run")))
    commands: list[tuple[str, ...]] = [
        ("evaluate", run),
        ("evaluate", run, *_GATED),
        ("evaluate", run, "--card", "out/card.md", "--csv", "out/t.csv", "--junit", "out/j.xml"),
        ("evaluate", run, "--json", "out/e.json", "-q"),
        ("evaluate", run, "--curve", *_GATED),
        ("evaluate", "."),
        ("visualize", run, "-o", "out/page.html"),
        ("status", run),
        ("merge", run, "-o", "out/joined"),
    ]
    weights = [4, 4, 2, 2, 1, 2, 1, 2, 1] if kind != "batch" else [3, 3, 1, 1, 0, 2, 1, 4, 3]
    return rng.choices(commands, weights)[0]


def _report(rng: Random, run: Path) -> str:
    """One of the JSON files, or the tables, in the folder."""
    texts = [path for path in sorted(run.rglob("*")) if path.suffix in (".json", ".csv") and path.is_file()]
    path = rng.choice([each for each in texts if each.name == "report.json"] if rng.random() < 0.6 else texts)
    good = path.read_text(encoding="utf-8")
    if path.suffix == ".json" and rng.random() < 0.8:
        value, what = damage.tree(rng, json.loads(good))
        data = damage.as_json(rng, value).encode(errors="surrogatepass")
    else:
        data, what = damage.text(rng, good)
    _replace(path, data)
    if rng.random() < 0.15 and path.name == "report.json":
        failed = {"case_id": "x", "error": {"type": "InputError", "message": "x"}, "ticket": {}}
        value, more = damage.tree(rng, failed)
        (path.parent / "failed.json").write_bytes(damage.as_json(rng, value).encode(errors="surrogatepass"))
        what += f"; failed.json: {more}"
    return f"{path.relative_to(run)}: {what}"


def _files(rng: Random, run: Path) -> str:
    """One of the volumes, masks or slices."""
    path = rng.choice([each for each in sorted(run.rglob("*")) if each.is_file() and each.suffix in (".gz", ".dcm")])
    how = rng.choice(("bytes", "header", "gone", "other"))
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "bytes":
        data, more = damage.blind(rng, data)
        _replace(path, data)
        how += f" ({more})"
    elif how == "other":
        other = rng.choice([each for each in sorted(run.rglob("*")) if each.is_file()])
        _replace(path, other.read_bytes())
    elif path.suffix == ".gz":
        data, more = odd_header(rng, gzip.decompress(data))
        _replace(path, gzip.compress(data, 1))
        how += f" ({more})"
    else:
        import pydicom

        dataset = pydicom.dcmread(path)
        how += f" ({spoil(rng, dataset)})"
        _replace(path, written(rng, dataset)[0])
    return f"{path.relative_to(run)}: {how}"


def _replace(path: Path, data: bytes) -> None:
    """A new file: the old one may be a link to the stock."""
    path.unlink()
    path.write_bytes(data)
