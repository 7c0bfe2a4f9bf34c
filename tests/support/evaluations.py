"""Whether an evaluation's report fits its schema, and is the same after JSON and back. No test in here."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from mafl_cli.results.evaluation_report import SCHEMA, Evaluation
from mafl_cli.system import records


def require_fits(found: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    assert records.plain(records.read(Evaluation, found, "evaluation.json")) == found
