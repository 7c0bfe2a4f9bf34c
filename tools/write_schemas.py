"""Write the JSON schemas of the reports from their types: `python tools/write_schemas.py`."""

from __future__ import annotations

import json

from mafl_cli.results import report
from mafl_cli.system import records

if __name__ == "__main__":
    made = records.schema(report.Report, "mafl report")
    report.SCHEMA.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
