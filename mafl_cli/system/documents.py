"""JSON and TOML that somebody else wrote, read strictly: what is wrong with a file is one sentence about it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mafl_cli.errors import InputError, cannot_be_read
from mafl_cli.names import one_line, outside, public_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Far more than mafl or a person writes; a larger file takes ten times its size in memory.
_MOST_BYTES = 64 * 2**20
# A whole number is at most what 64 bits hold.
_MOST_DIGITS = 19


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, with or without a byte order mark. Raises InputError."""
    name = public_name(path)
    text = _text(path, name, "is not TOML")
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except RecursionError as exc:
        raise InputError(f"{name}: cannot be read as TOML (it is nested too deeply).") from exc
    except ValueError as exc:
        # For a number with thousands of digits Python's own words are about Python.
        why = outside(str(exc)) if isinstance(exc, tomllib.TOMLDecodeError) else "a number has too many digits"
        raise InputError(f"{name}: is not TOML ({why}).") from exc
    return found


def read_json(path: Path, name: str | None = None) -> Any:
    """What a JSON file holds; its numbers are finite, its names occur once, its texts are one line each.

    name: what the file is called, if not by its own name.
    Raises: InputError, for anything that is not strict JSON, or larger than what a program here writes.
    """
    return _strict(path, name)[0]


def read_json_text(path: Path, name: str | None = None) -> tuple[Any, str]:
    """What `read_json` gives, and JSON text of the same: that of the file, where it can stay as it is.

    Raises: as `read_json`.
    """
    found, text = _strict(path, name)
    return found, json.dumps(found) if text is None else text


def _strict(path: Path, name: str | None) -> tuple[Any, str | None]:
    """What a JSON file holds, and its text unless that says more than what is taken of it."""
    name = name or public_name(path)
    text = _text(path, name, "cannot be read as JSON")
    try:
        found = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once
        )
        return (found, text) if _is_in_lines(text) else (_in_lines(found), None)
    except RecursionError as exc:
        raise InputError(f"{name}: cannot be read as JSON (it is nested too deeply).") from exc
    except json.JSONDecodeError as exc:
        raise InputError(f"{name}: cannot be read as JSON (line {exc.lineno} is damaged).") from exc
    except ValueError as exc:
        raise InputError(f"{name}: cannot be read as JSON ({exc}).") from exc


def _text(path: Path, name: str, problem: str) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as exc:
        raise cannot_be_read(name, exc) from exc
    if len(raw) > _MOST_BYTES:
        raise InputError(f"{name}: is larger than {_MOST_BYTES // 2**20} MiB, which no such file is.")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        raise InputError(f"{name}: {problem} (it is not UTF-8 text; save it as UTF-8).") from exc


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > _MOST_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _is_in_lines(text: str) -> bool:
    """Whether no text of a file that is strict JSON can need `one_line`, as in most: a batch has ten thousand reports
    to read."""
    if text.isascii():
        # All below a space is refused inside texts.
        return "\\" not in text and "\x7f" not in text
    # What would end a line is space between values, or stands behind a backslash.
    flat = text.replace("\n", " ").replace("\t", " ")
    return "\\" not in flat and one_line(flat) == flat


def _in_lines(value: Any) -> Any:
    """With each text on one line: a file may come from anybody, and is quoted in logs."""
    if isinstance(value, dict):
        return {one_line(name): _in_lines(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_in_lines(each) for each in value]
    return one_line(value) if isinstance(value, str) else value
