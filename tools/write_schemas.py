"""Write the JSON schemas of the reports from their types: `python tools/write_schemas.py`."""

from __future__ import annotations

import json

from mafl_cli.results import batch_report, evaluation_report, reader_study, report, universal_report
from mafl_cli.system import records

KINDS = {
    report.SCHEMA: report.Report,
    evaluation_report.SCHEMA: evaluation_report.Evaluation,
    batch_report.SCHEMA: batch_report.Batch,
    universal_report.SCHEMA: universal_report.UniversalReport,
    reader_study.KEY_SCHEMA: reader_study.StudyKey,
    reader_study.ANSWERS_SCHEMA: reader_study.StudyAnswers,
    reader_study.SCHEMA: reader_study.ReaderStudy,
}

if __name__ == "__main__":
    for path, kind in KINDS.items():
        path.write_text(json.dumps(records.schema(kind), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
