"""Frozen dataclasses as JSON and back: the one way in which reports are written, read and described.

A record is a stdlib dataclass. Its annotations say what its fields may be (`Annotated` with the bounds of
`annotated_types`); a docstring below a field is its description in the schema. Reading is strict: a field too many, one
that is missing, another type, a value out of range are bad input, with the place named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Interval, Le

from mafl_cli.errors import InputError, MaflError
from mafl_cli.names import escaped

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core.core_schema import CoreSchema

Record = TypeVar("Record")

CONFIG: Any = {"extra": "forbid", "strict": True, "allow_inf_nan": False, "use_attribute_docstrings": True}
"""`__pydantic_config__` of a record that is read on its own; what it holds is read likewise."""

Count = Annotated[int, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Length = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
AtMostOne = Annotated[float, Le(1)]


@dataclass(frozen=True)
class Text:
    """In an annotation: a text that is as `pattern` asks."""

    pattern: str

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        from pydantic_core.core_schema import str_schema

        return str_schema(pattern=self.pattern, strict=True)


@dataclass(frozen=True)
class Which:
    """In an annotation of a union of records: the field that says which of them it is."""

    field: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic import Field

        return handler.generate_schema(Annotated[source, Field(discriminator=self.field)])


Sha256 = Annotated[str, Text("^[0-9a-f]{64}$")]


OPTIONAL = {"optional": True}
"""Metadata of a field that JSON does not have where it is None."""


def plain(value: Any) -> Any:
    """What JSON has for a record, or for lists, tuples and dicts of some: dicts, lists, texts, numbers, None."""
    if is_dataclass(value):
        return {
            each.name: plain(held)
            for each in fields(value)
            if (held := getattr(value, each.name)) is not None or "optional" not in each.metadata
        }
    if isinstance(value, Mapping):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(held) for held in value]
    return value.value if isinstance(value, Enum) else value


def to_json(record: Any) -> str:
    """Strict JSON text of a record or a dict, one key a line, that can be printed anywhere.

    Raises ValueError on NaN or Infinity.
    """
    return escaped(json.dumps(plain(record), indent=1, allow_nan=False, ensure_ascii=False)) + "\n"


def read(kind: type[Record], found: Any, name: str) -> Record:
    """The record that `plain` made this of. found: as `documents.read_json` gives it; name: of the file, for messages.

    Raises InputError, naming the first place that is not as the record says.
    """
    # As JSON, where strict means strict, and lists are tuples all the same.
    return read_text(kind, json.dumps(found), name)


def read_text(kind: type[Record], text: str, name: str) -> Record:
    """As `read`, of JSON text as `documents.read_json_text` gives it: other text may have a name twice.

    Raises: as `read`.
    """
    from pydantic import ValidationError

    try:
        wanted: Any = kind
        made: Record = _adapter(wanted).validate_json(text)
        return made
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        place = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        asked = message[:1].lower() + message[1:]
        raise InputError(f"{name}: {place.removeprefix('.')[:80] or 'it'}: {asked[:160]}.") from exc
    except MaflError as exc:
        raise InputError(f"{name}: {exc}") from exc


def schema(kind: Any) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a record."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_adapter(kind).json_schema(),
        "title": f"mafl {kind.__name__.lower()}",
    }


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # Only who reads a report pays for the import.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
