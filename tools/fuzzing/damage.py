"""Ways to spoil what a program reads: bytes, trees of values, lines of text. All chance comes from the `Random` given.

Every function returns the spoilt thing and says in a few words what was done to it.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

HEAD = 400
"""Bytes at the beginning that matter most: headers lie there."""

_SIGNATURES: tuple[bytes, ...] = (
    b"\x1f\x8b\x08\0",
    b"PK\x03\x04",
    b"\x80\x02}q",
    b"<!DOCTYPE html>",
    b"%PDF-1.7",
    b"\x89PNG\r\n\x1a\n",
    b"n+1\0",
    b"DICM",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
)


# --- bytes --------------------------------------------------------------------------------------------------------


def blind(rng: Random, data: bytes, times: int | None = None) -> tuple[bytes, str]:
    """Damage that knows nothing of the format."""
    said = []
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        how = rng.choice(_BLIND)
        data = how(rng, data)
        said.append(how.__name__.strip("_").replace("_", " "))
    return data, ", ".join(said)


def _place(rng: Random, data: bytes) -> int:
    end = min(HEAD, len(data)) if rng.random() < 0.5 else len(data)
    return rng.randrange(max(end, 1))


def _bits(rng: Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if spoilt:
            spoilt[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _cut_off(rng: Random, data: bytes) -> bytes:
    return data[: _place(rng, data)]


def _without_a_piece(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + rng.choice((1, 2, 4, 16, 512)) :]


def _bytes_put_in(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 16, 512))) + data[at:]


def _piece_elsewhere(rng: Random, data: bytes) -> bytes:
    at, to, size = _place(rng, data), _place(rng, data), rng.choice((4, 16, 128, 1024))
    piece = data[at : at + size]
    return data[:to] + piece + data[to + len(piece) :]


def _run_of_one_byte(rng: Random, data: bytes) -> bytes:
    at, size = _place(rng, data), rng.choice((4, 8, 64, 1024))
    return data[:at] + bytes([rng.choice((0, 255, 32, 127))]) * min(size, len(data) - at) + data[at + size :]


def _piece_many_times(rng: Random, data: bytes) -> bytes:
    at, size = _place(rng, data), rng.choice((1, 8, 64))
    return data[:at] + data[at : at + size] * rng.choice((2, 10, 1000)) + data[at + size :]


def _random_bytes_behind(rng: Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0", b"\n", rng.randbytes(7), bytes(1000), data))


def _other_signature(rng: Random, data: bytes) -> bytes:
    sign = rng.choice(_SIGNATURES)
    return sign + data[rng.choice((0, len(sign))) :]


def _packed_once_more(rng: Random, data: bytes) -> bytes:
    return rng.choice((gzip.compress(data, 1), zlib.compress(data, 1)))


def _next_to_nothing(rng: Random, data: bytes) -> bytes:
    return rng.choice((b"", b"\0", data[:1], b"\n", bytes(len(data))))


def _bytes_in_pairs(rng: Random, data: bytes) -> bytes:
    at = _place(rng, data) & ~1
    piece = bytearray(data[at : at + rng.choice((2, 4, 8, 256)) & ~1])
    even = len(piece) & ~1
    piece[0:even:2], piece[1:even:2] = piece[1:even:2], piece[0:even:2]
    return data[:at] + bytes(piece) + data[at + len(piece) :]


_BLIND: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(_bits, _bits, _bits, _cut_off, _without_a_piece, _bytes_put_in, _piece_elsewhere, _run_of_one_byte),
    *(_piece_many_times, _random_bytes_behind, _other_signature, _packed_once_more, _next_to_nothing, _bytes_in_pairs),
)


def gzip_bomb(size: int, head: bytes = b"") -> bytes:
    """A .gz of `head` and `size` zeros: members one behind the other, so that it takes no time to make."""
    block = 2**24
    return gzip.compress(head) + gzip.compress(bytes(block), 9) * math.ceil(size / block)


# --- trees --------------------------------------------------------------------------------------------------------

RAW = "\N{WHITE SMILING FACE}"
"""Around a text that is to stand in the file as it is, without quotes."""


def _raw(written: str) -> str:
    return f"{RAW}{written}{RAW}"


_ODD: tuple[Any, ...] = (
    *(None, True, False, "", " ", "x", "nan", "-1", "1e999", "@x", "$1 + 1", "a\nb", "a\tb", "\x1b[31mred\x1b[0m"),
    *("\0", "é" * 300, "x" * 5000, "../../etc/passwd", "/etc/passwd", "::error::x", "<b>x</b>", "[a](http://b)"),
    *(0, -1, 1, 2, 3, 255, 65536, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308, -1e308),
    *([], {}, [[]], [None], [1, 2], ["a"], [0, 0, 0], [1e9] * 3, [-1] * 3, [1] * 1000, {"a": 1}, {"": {}}, [True] * 3),
    *map(_raw, ("9" * 400, "9" * 5000, "1e400", "-0", f"1.{'0' * 400}1", '[{}, 1, "a"]')),
    *map(_raw, ("[" * 60 + "]" * 60, "[" * 100_000 + "]" * 100_000)),
)
_JSON_ONLY = tuple(map(_raw, ("NaN", "Infinity", "-Infinity", '"\\ud800"', '{"a":' * 2000 + "1" + "}" * 2000)))
_TOML_ONLY = tuple(
    map(_raw, ("nan", "inf", "1979-05-27T07:32:00Z", "07:32:00", "0x" + "f" * 300, "'''a\nb'''", "1_000", '"\\uD800"'))
)


def tree(rng: Random, value: Any, extra: Sequence[Any] = _JSON_ONLY) -> tuple[Any, str]:
    """A copy of a tree of dictionaries and lists with one to three of its values, keys or branches spoilt."""
    value, said = copy.deepcopy(value), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            break
        holder, key = rng.choice(places)
        how = rng.choice(("odd value",) * 6 + ("gone", "other type", "moved", "new key", "much more of it"))
        said.append(f"{key}: {how}")
        if how == "odd value":
            holder[key] = rng.choice((*_ODD, *extra))
            said[-1] += f" {str(holder[key])[:40]!r}"
        elif how == "gone":
            del holder[key]
        elif how == "other type":
            holder[key] = _other_type(rng, holder[key])
        elif how == "moved":
            other, place = rng.choice(places)
            if _still_there(other, place):
                holder[key] = copy.deepcopy(other[place])
        elif how == "new key" and isinstance(holder, dict):
            holder[rng.choice(("", "x", "é\n", "__class__", "a.b", str(key) + " ", "x" * 1000))] = 1
        elif isinstance(holder, list):
            holder[key : key + 1] = [holder[key]] * rng.choice((2, 3, 500))
    return value, "; ".join(said)


def _still_there(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def _other_type(rng: Random, value: Any) -> Any:
    if isinstance(value, (dict, list)):
        return rng.choice((str(value)[:100], 1, list(value), {str(index): each for index, each in enumerate(value)}))
    if isinstance(value, str):
        return rng.choice(([value], {value: value}, value.upper(), value[::-1], 1, value + value))
    return rng.choice((str(value), [value], {"value": value}, not value, -value if value else 1))


def as_json(rng: Random, value: Any) -> str:
    """JSON as other programs write it: with or without indents and escapes; now and then a key twice."""
    text = json.dumps(value, indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.5)
    text = _unquoted(text)
    if rng.random() < 0.03 and text.startswith("{"):
        text = "{" + text[1:-1] + "," + text[1:]
    return text


def as_toml(value: dict[str, Any]) -> str:
    """Tables of the first level as sections, all others inline."""
    lines = [f"{_key(key)} = {_toml(each)}" for key, each in value.items() if not isinstance(each, dict)]
    for key, each in value.items():
        if isinstance(each, dict):
            lines += ["", f"[{_key(key)}]", *(f"{_key(inner)} = {_toml(one)}" for inner, one in each.items())]
    return _unquoted("\n".join(lines) + "\n")


def toml_tree(rng: Random, value: dict[str, Any]) -> tuple[Any, str]:
    """As `tree`, with what only TOML can say."""
    return tree(rng, value, _TOML_ONLY)


def _key(key: Any) -> str:
    text = str(key)
    return text if text.isascii() and text.replace("_", "a").isalnum() else json.dumps(text)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if value is None:
        return '"none"'
    return json.dumps(value, ensure_ascii=False)


def _unquoted(text: str) -> str:
    """Put what is marked as raw in the place of the quoted mark."""
    for mark in (RAW, json.dumps(RAW)[1:-1]):
        while f'"{mark}' in text and f'{mark}"' in text:
            before, _, rest = text.partition(f'"{mark}')
            inner, _, after = rest.partition(f'{mark}"')
            text = before + inner.replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\") + after
    return text


# --- text ---------------------------------------------------------------------------------------------------------


def text(rng: Random, good: str) -> tuple[bytes, str]:
    """Damage to lines and characters, then how the text is encoded."""
    said = []
    for _ in range(rng.choice((0, 1, 1, 2))):
        how = rng.choice(_TEXT)
        good = how(rng, good)
        said.append(how.__name__.strip("_").replace("_", " "))
    form = rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32"))
    data = good.encode(form, errors="replace" if form in ("latin-1", "cp1252") else "surrogatepass")
    if form != "utf-8":
        said.append(form)
    if rng.random() < 0.1 or not said:
        data, what = blind(rng, data, 1)
        said.append(what)
    return data, ", ".join(said)


def _lines_in_another_order(rng: Random, good: str) -> str:
    lines = good.split("\n")
    rng.shuffle(lines)
    return "\n".join(lines)


def _a_line_twice(rng: Random, good: str) -> str:
    lines = good.split("\n")
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return "\n".join(lines)


def _without_a_line(rng: Random, good: str) -> str:
    lines = good.split("\n")
    lines.pop(rng.randrange(len(lines)))
    return "\n".join(lines)


def _other_line_ends(rng: Random, good: str) -> str:
    return good.replace("\n", rng.choice(("\r\n", "\r", "\n\n", "\u2028", "\x0b", "\n\r")))


def _a_character_gone_or_more(rng: Random, good: str) -> str:
    at = rng.randrange(len(good) + 1)
    more = rng.choice(
        ("", '"', "'", ",", ";", "\t", "\0", "[", "]", "{", "}", "=", ":", "\\", "#", "\ufeff", "\u202e", "\x1b[2J")
    )
    return good[:at] + more + good[at + rng.choice((0, 1)) :]


def _brackets(rng: Random, good: str) -> str:
    at, depth = rng.choice((0, rng.randrange(len(good) + 1))), rng.choice((50, 1200, 200_000))
    return good[:at] + rng.choice("[{(") * depth + good[at:]


def _digits(rng: Random, good: str) -> str:
    at = rng.randrange(len(good) + 1)
    return good[:at] + rng.choice("0123456789") * rng.choice((20, 400, 5000)) + good[at:]


def _first_line_of_a_spreadsheet(rng: Random, good: str) -> str:
    return rng.choice(("sep=;\n", "sep=,\n", "# comment\n", "\n\n", "\t\n", ",,,\n")) + good


def _other_separator(rng: Random, good: str) -> str:
    return good.replace(rng.choice((",", "\t", "=", ":")), rng.choice((";", "\t", ",", "|", " ", "")))


def _one_line_without_end(rng: Random, good: str) -> str:
    return good + rng.choice('a,\t["') * 200_000


_TEXT: tuple[Callable[[Random, str], str], ...] = (
    *(_lines_in_another_order, _a_line_twice, _without_a_line, _other_line_ends, _a_character_gone_or_more),
    *(_a_character_gone_or_more, _a_character_gone_or_more, _brackets, _digits, _first_line_of_a_spreadsheet),
    *(_other_separator, _one_line_without_end),
)
