"""Manifests: lists of cases as CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO, get_args

from mafl_cli.errors import InputError
from mafl_cli.listing.folders import FoundCase, Places, decoded, read_bytes, what_is_missing
from mafl_cli.names import between, natural, nfc, public_name, safe_id, shown_path

MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson")

_KNOWN = ("case", "image", "target", "ground_truth", "guide")
_ALLOWED = "case, image (or image_0, image_1, ..., or channel:NAME), target, ground_truth, guide"
_CHANNEL = re.compile(r"image_[0-9]+|channel:.+", re.DOTALL)

# With its end, that of old Macs too.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_SEPARATOR = re.compile(r"\"?sep=(.)\"?", re.IGNORECASE)

Cell = str | list[str]
_Rows = list[tuple[int, dict[str, Cell]]]


def of_manifest(path: Path) -> list[FoundCase]:
    """The cases of a manifest, in its order. Raises InputError for a line, or a column, that cannot be followed."""
    name = public_name(path)
    text = decoded(name, read_bytes(path))
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        rows = _json_rows(name, text)
    else:
        rows = _rows(name, text, "\t" if suffix == ".tsv" else ",")
    return _of_rows(name, rows, path.parent)


def of_stdin(stdin: TextIO) -> list[FoundCase]:
    """Its first line says what it is: that of JSON begins with a brace, that of a table names columns."""
    name = "standard input"
    try:
        # Bytes, where there are any: what comes in is UTF-8, whatever the terminal speaks.
        given = stdin.buffer.read() if hasattr(stdin, "buffer") else stdin.read().encode()
    except (OSError, ValueError) as exc:
        raise InputError(f"{name} cannot be read.") from exc
    text = decoded(name, given)
    rows = _json_rows(name, text) if text.lstrip().startswith("{") else _rows(name, text)
    return _of_rows(name, rows, Path())


def _rows(name: str, text: str, usual: str = ",") -> _Rows:
    """The lines of a table, each with its number and what stands under its columns' names.

    usual: what stands between cells if the line of columns does not say it.
    """
    start, above, delimiter = _header(text, usual)
    lines: list[tuple[int, list[str]]] = []
    # A name may begin with a space; before a quote it is there for the eye.
    spaced = re.search(f'{re.escape(delimiter)} +"', text) is not None
    reader = csv.reader(
        io.StringIO(text[start:], newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced
    )
    try:
        for line in reader:
            cells = [cell if cell.strip() else "" for cell in line]
            # A case may be called #1, but then it has a scan.
            if any(cells) and not (cells[0].lstrip().startswith("#") and not any(cells[1:])):
                lines.append((above + reader.line_num, cells))
    except csv.Error as exc:
        raise InputError(
            f"{name}: line {above + reader.line_num} cannot be read ({exc}); look at its quotes."
        ) from None
    if not lines:
        raise InputError(f"{name}: is empty.")
    header = lines[0][1]
    columns = [_column(cell) for cell in header]
    twice = [column for column, count in Counter(columns).items() if column and count > 1]
    if twice:
        raise InputError(f"{name}: has the column {shown_path(twice[0])} twice.")
    rows: _Rows = []
    for number, cells in lines[1:]:
        # Spreadsheets end lines with any number of empty cells.
        if any(cell and not column for column, cell in zip([*columns, *[""] * len(cells)], cells, strict=False)):
            raise InputError(f"{name}: line {number} has a cell under no column's name; is a comma or a quote wrong?")
        rows.append((number, {column: cell for column, cell in zip(columns, cells, strict=False) if column}))
    # What the header names counts, even if no line says anything about it.
    _require_columns(name, [column for column in columns if column])
    return rows


def _header(text: str, usual: str) -> tuple[int, int, str]:
    """Where the line of columns begins, how many lines are above it, and what stands between the cells of the table.

    Above it there may be comments, and the line in which Excel says what stands between cells (sep=;).
    """
    start, said = 0, None
    for above, line in enumerate(_LINE.findall(text)):
        content = line.strip("\r\n ")
        if found := _SEPARATOR.fullmatch(content):
            said = found[1]
        elif content and not content.startswith("#"):
            return start, above, said or max((usual, ",", "\t", ";"), key=lambda each: _columns(content, each))
        start += len(line)
    return start, 0, usual


def _columns(line: str, delimiter: str) -> int:
    """How many columns of a manifest a line names, if this stands between them."""
    cells = [_column(cell.strip(' "')) for cell in line.split(delimiter)]
    return sum(cell in _KNOWN or _CHANNEL.fullmatch(cell) is not None for cell in cells)


def _json_rows(name: str, text: str) -> _Rows:
    rows: _Rows = []
    # Not splitlines: it also splits at what may stand in a JSON text.
    for number, line in enumerate(_LINE.findall(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{name}: line {number} is not JSON.") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}: line {number} is not a JSON object.")
        cells = {_column(key): _cell(name, number, key, value) for key, value in row.items()}
        if len(cells) < len(row):
            raise InputError(f"{name}: line {number} has a column twice.")
        rows.append((number, cells))
    _require_columns(name, list(dict.fromkeys(column for _, row in rows for column in row)))
    return rows


def _cell(name: str, number: int, column: str, value: object) -> Cell:
    if value is None:
        return ""
    if isinstance(value, str):
        return value if value.strip() else ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and _column(column) in ("image", "target", "guide"):
        texts = [each for each in value if isinstance(each, str) and each]
        if len(texts) == len(value):
            return texts
    raise InputError(
        f"{name}: line {number}: {shown_path(column)} must be a text, or for several files a list of texts."
    )


def _column(text: str) -> str:
    """A column's name, in small letters; of a channel's, only the first part."""
    text = text.strip()
    kind, colon, channel = text.partition(":")
    return f"{kind.lower()}{colon}{channel}"


def _require_columns(name: str, columns: Sequence[str]) -> None:
    channels = [column for column in columns if _CHANNEL.fullmatch(column)]
    unknown = [column for column in columns if column not in _KNOWN and column not in channels]
    if unknown:
        # A file without a header has values here, paths among them.
        shown = ", ".join(shown_path(column) for column in unknown[:8])
        raise InputError(f"{name}: unknown column {shown}; there may be {_ALLOWED}.")
    images = ["image" in columns, *(any(each.startswith(kind) for each in channels) for kind in ("image_", "channel:"))]
    if "case" not in columns or not any(images):
        missing = "image" if "case" in columns else "case"
        raise InputError(f"{name}: has no column {missing}; there may be {_ALLOWED}.")
    if sum(images) > 1:
        raise InputError(f"{name}: names images in several ways; use image, or image_0 ..., or channel:NAME.")
    numbers = sorted(int(column[6:]) for column in channels if column.startswith("image_"))
    if numbers != list(range(len(numbers))):
        raise InputError(f"{name}: the columns of channels must be image_0, image_1, ... without a gap.")


def _of_rows(name: str, rows: _Rows, folder: Path) -> list[FoundCase]:
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    channels = [column for column in columns if _CHANNEL.fullmatch(column)]
    if channels and channels[0].startswith("image_"):
        channels.sort(key=natural)
    found: list[FoundCase] = []
    places = Places(folder)
    lines: dict[str, int] = {}
    for number, row in rows:
        case = str(row.get("case", "")).strip()
        if not case:
            raise InputError(f"{name}: line {number} names no case.")
        if nfc(case) in lines:
            raise InputError(
                f"{name}: the case {safe_id(case)} stands in lines {lines[nfc(case)]} and {number}; give each case a "
                "name of its own."
            )
        lines[nfc(case)] = number
        found.append(_of_row(f"{name}: line {number}", row, channels, places))
    if not found:
        raise InputError(f"{name}: lists no cases.")
    return found


def _of_row(where: str, row: Mapping[str, Cell], channels: Sequence[str], places: Places) -> FoundCase:
    # A channel's own column holds one path, whatever characters are in it.
    cells = [str(row.get(column, "")) for column in channels]
    images = tuple(map(places.path, filter(None, cells))) if channels else _paths(where, row, "image", places)
    targets, truth, guides = (_paths(where, row, column, places) for column in ("target", "ground_truth", "guide"))
    target = row.get("target")
    if isinstance(target, str) and _is_recipe(target) and places.find(target) is None:
        raise InputError(
            f"{where}: the target is a recipe, a manifest names masks: give one recipe for all cases with `target`."
        )
    if len(truth) > 1:
        raise InputError(f"{where}: ground_truth must be one file, got {len(truth)}.")
    if not images:
        problem: str | None = "has no image."
    elif "" in cells:
        problem = f"has no file for {shown_path(channels[cells.index('')])}."
    else:
        problem = what_is_missing((*images, *targets, *truth, *guides))
    name = nfc(str(row["case"]).strip())
    return FoundCase((name,), images, targets, truth[0] if truth else None, guides, problem, listed=True)


def _paths(where: str, row: Mapping[str, Cell], column: str, places: Places) -> tuple[Path, ...]:
    """Files between semicolons, unless they are in the name of one; in JSON also those of a list."""
    cell = row.get(column, "")
    if isinstance(cell, list) or not cell:
        return tuple(map(places.path, cell))
    found = between(cell, ";", lambda text: places.find(text) is not None)
    if found is None:
        raise InputError(f"{where}: {column} has an empty entry in its list, separated by semicolons.")
    return tuple(map(places.path, found))


def _is_recipe(text: str) -> bool:
    if ":" not in text:
        return False
    from mafl_cli.scans import recipes

    return text.partition(":")[0] in get_args(recipes.RecipeKind)
