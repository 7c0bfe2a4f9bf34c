"""Damaged lists and rules: manifests, data sets, gate files, cluster tables, and names that files may have."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import damage
from fuzzing.judge import Trial
from fuzzing.stock import Stock

_COLUMNS = (
    "case",
    "image",
    "image_0",
    "image_1",
    "channel:CT",
    "target",
    "ground_truth",
    "guide",
    "",
    "Case",
    "x",
    "image ",
)


def manifest(rng: Random, place: Path, stock: Stock) -> Trial:
    """A list of cases as CSV, TSV, JSON lines, or dataset.json; listed, and now and then judged."""
    for name in ("a.nii", "b.nii", "m,1.nii", "mask.nii"):
        stock.copy("mask.nii" if name.startswith("mask") else "int16.nii", place / name)
    form = rng.choice(("csv", "csv", "tsv", "jsonl", "dataset.json", "stdin"))
    rows: list[Any] = [
        {"case": "one", "image": "a.nii", "target": "mask.nii"},
        {"case": "two", "image": rng.choice(("b.nii", "m,1.nii", "gone.nii", "a.nii;b.nii")), "target": "mask.nii"},
    ]
    if form == "dataset.json":
        data, what = _dataset(rng)
        name = rng.choice(("dataset.json", "other.json"))
    elif form == "jsonl" or (form == "stdin" and rng.random() < 0.3):
        said = []
        lines = []
        for row in rows:
            spoilt, more = damage.tree(rng, row) if rng.random() < 0.7 else (row, "")
            said.append(more)
            lines.append(damage.as_json(rng, spoilt).replace("\n", " "))
        data, what = "\n".join(lines).encode(errors="surrogatepass"), "; ".join(said)
        if rng.random() < 0.4:
            data, what = damage.text(rng, "\n".join(map(json.dumps, rows)))
        name = rng.choice(("cases.jsonl", "cases.ndjson"))
    else:
        data, what = _table(rng, rows, "\t" if form == "tsv" else ",")
        name = f"cases.{'csv' if form == 'stdin' else form}"
    if form == "stdin":
        return Trial(("attack", "-", "--list"), f"stdin: {what}", stdin=data)
    (place / name).write_bytes(data)
    file = rng.choice((name, str(place / name)))
    how = rng.random()
    if how < 0.85:
        return Trial(("attack", file, "--list"), what)
    run = str(stock.root / "run")
    return Trial(("evaluate", run, "--ground-truth", file, "-q"), what)


def _table(rng: Random, rows: list[Any], separator: str) -> tuple[bytes, str]:
    header, said = list(rows[0]), []
    if rng.random() < 0.4:
        at = rng.randrange(len(header) + 1)
        header[at : at + rng.choice((0, 1))] = [rng.choice(_COLUMNS)]
        said.append(f"columns {header}")
    lines = [separator.join(header)]
    for row in rows:
        cells = list(row.values())
        if rng.random() < 0.4:
            at = rng.randrange(len(cells))
            cells[at] = rng.choice(
                (
                    '"',
                    '"a',
                    'a"b',
                    "",
                    " ",
                    "x" * 140_000,
                    "a\nb",
                    "::error::x",
                    "\x1b[2Jx",
                    "..",
                    "/etc/passwd",
                    "é",
                    "=1+1",
                    "a\\b.nii",
                    "erase:1",
                    "\0",
                    "*.nii",
                    ";",
                    "a.nii;",
                    "1.2.840.113619.2.1",
                )
            )
            said.append(f"cell {cells[at][:20]!r}")
        lines.append(separator.join(cells))
    good = "\n".join(lines) + "\n"
    if said and rng.random() < 0.6:
        return good.encode(errors="surrogatepass"), ", ".join(said)
    data, more = damage.text(rng, good)
    return data, ", ".join([*said, more])


def _dataset(rng: Random) -> tuple[bytes, str]:
    good = {
        "name": "x",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "ball": 1},
        "numTraining": 2,
        "file_ending": ".nii",
        "training": [{"image": "./a.nii", "label": "./mask.nii"}, {"image": "./b.nii", "label": "./mask.nii"}],
        "test": ["./a.nii"],
        "modality": {"0": "CT"},
        "tensorImageSize": "3D",
    }
    if rng.random() < 0.8:
        value, what = damage.tree(rng, good)
        return damage.as_json(rng, value).encode(errors="surrogatepass"), what
    return damage.text(rng, json.dumps(good, indent=1))


_GATES = {
    "gates": {"strength": "target_iou > 0.5", "visible": "mean(psnr_db) < 40", "reach": "p95(linf_native) <= 12.5"}
}
_RULES = (
    "target_iou > 0.5",
    "target_iou>0.5",
    "mean(dice_drop) > 0.1",
    "p95(linf_model) >= 1e400",
    "median(ssim) < nan",
    "hit_rate > 50",
    "hit_rate > -1",
    "x > 1",
    "target_iou",
    "target_iou > ",
    "> 0.5",
    "target_iou == 0.5",
    "worst(target_iou) > 0.5",
    "mean(mean(ssim)) > 1",
    "__import__('os') > 1",
    "target_iou > 0.5 or 1",
    "ssim < 1e-400",
    "ssim < " + "9" * 400,
    "ssim < 0x10",
    "ssim < 1_0",
    "ssim < ١",
    "é > 1",
    "ssim\n< 1",
    "goal_reached > 0",
    "linf_at_goal < inf",
    "p95() > 1",
    "(target_iou) > 0.5",
    "target_iou > 0.5" * 50,
    "",
    " ",
    "\x1b[31m > 1",
    "::error:: > 1",
)


def gate(rng: Random, place: Path, stock: Stock) -> Trial:
    """A gate file, or a rule on the command line, beside a sound run."""
    outputs = rng.choice(((), ("--json", "-"), ("--card", "-"), ("--junit", "out/j.xml"), ("--csv", "out/c.csv")))
    (place / "out").mkdir()
    run = str(stock.root / rng.choice(("run", "run", "batch")))
    if rng.random() < 0.3:
        rule = rng.choice(_RULES)
        return Trial(
            ("evaluate", run, "--fail-if", rule, *outputs),
            f"rule {rule[:60]!r}",
            results=("out",),
            as_json="--json" in outputs,
        )
    if rng.random() < 0.65:
        good = {"gates": {**_GATES["gates"], "more": rng.choice(_RULES)}}
        value, what = damage.toml_tree(rng, good)
        data = damage.as_toml(value).encode(errors="surrogatepass")
    else:
        data, what = damage.text(rng, damage.as_toml(_GATES))
    (place / "gates.toml").write_bytes(data)
    file = rng.choice(("gates.toml", str(place / "gates.toml")))
    return Trial(("evaluate", run, "--gates", file, *outputs), what, results=("out",), as_json="--json" in outputs)


_SLURM = {"slurm": {"cores": 1, "memory": "1GB", "walltime": "00:10:00", "queue": "x", "job_extra_directives": ["--x"]}}


def cluster(rng: Random, place: Path, stock: Stock) -> Trial:
    """A SLURM table, or a scheduler file, that is damaged. There is no SLURM here: no table can be good."""
    for name in ("a.nii", "b.nii"):
        stock.copy("int16.nii", place / name)
    if rng.random() < 0.6:
        value, what = damage.toml_tree(rng, _SLURM)
        data = damage.as_toml(value).encode(errors="surrogatepass")
    else:
        data, what = damage.text(rng, damage.as_toml(_SLURM))
    (place / "cluster.toml").write_bytes(data)
    model = str(stock.root / "flat.ts")
    command = (
        "attack",
        "a.nii",
        "b.nii",
        "-t",
        "erase:1",
        "-m",
        model,
        "-o",
        "out",
        "--engine",
        "dask",
        "--slurm",
        "cluster.toml",
    )
    return Trial(command, what, results=("out",))


_NAMES = (
    "a.b.c.nii",
    "with space .nii",
    " lead.nii",
    "Größe.nii",
    "Gro\u0308ße.nii",
    'it\'s "q".nii',
    "x" * 240 + ".nii",
    "-o.nii",
    "line\nbreak.nii",
    "100%.nii",
    "{0}.nii",
    "a[1].nii",
    "头颅.nii",
    "$HOME.nii",
    "#1.nii",
    "con.nii",
    "trailing..nii",
    "::error::x.nii",
    "##[error]x.nii",
    "\x1b[31mred.nii",
    "a,b.nii",
    "a;b.nii",
    "a:b.nii",
    "1.2.840.113619.2.55.3.nii",
    "*.nii",
    "report.json.nii",
    "\u202egpj.nii",
    "a|b.nii",
    "<b>.nii",
    "tab\t.nii",
    "bad\udcff.nii",
    "~.nii",
    "..nii",
    ".hidden.nii",
    "@you.nii",
    "[x](http://y).nii",
)


def name(rng: Random, place: Path, stock: Stock) -> Trial:
    """Sound files whose names are not: listed, inspected, attacked, on terminals that know few letters."""
    chosen = rng.sample(_NAMES, rng.choice((1, 1, 2, 4)))
    (place / "scans").mkdir()
    for each in chosen:
        stock.copy("int16.nii", place / "scans" / each)
    if rng.random() < 0.3:
        odd = rng.choice(("up", "gone.nii", "folder.nii", "empty.nii"))
        target = place / "scans" / odd
        if odd in ("up", "gone.nii"):
            target.symlink_to(".." if odd == "up" else "nowhere")
        elif odd == "folder.nii":
            target.mkdir()
        else:
            target.write_bytes(b"")
        chosen.append(odd)
    first = f"scans/{chosen[0]}"
    model = str(stock.root / "flat.ts")
    command = rng.choice(
        (
            ("attack", "scans", "--list"),
            ("attack", "scans", "--list"),
            ("inspect", first),
            ("inspect", first, "--json"),
            ("attack", first, "-t", "erase:1", "-m", model, "-o", "out", "--dry-run"),
            ("attack", first, "-t", "erase:1", "-m", model, "-o", "out", "--steps", "1"),
            ("attack", first, "-t", first, "-m", model, "-o", "out", "--dry-run"),
            ("evaluate", "--original", first, "--adversarial", first, "-t", str(stock.root / "mask.nii"), "-m", model),
        )
    )
    encoding = rng.choice(("utf-8", "ascii", "latin-1", "cp1252"))
    return Trial(command, f"{chosen!r}"[:300], results=("out",), encoding=encoding)
