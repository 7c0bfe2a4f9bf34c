"""Whether an evaluation's report fits its schema. No test in here."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
from referencing import Registry, Resource

from mafl_cli.judging import evaluation
from mafl_cli.results import report


def require_fits(found: dict[str, Any]) -> None:
    shared = Resource.from_contents(json.loads(report.SCHEMA.read_text(encoding="utf-8")))
    registry: Registry[Any] = Registry().with_resource(report.SCHEMA.name, shared)
    schema = json.loads(evaluation.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema, registry=registry).validate(found)
