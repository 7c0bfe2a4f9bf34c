"""Small reader studies, and answers to them. No test in here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bodies import case, ras

from mafl_cli.measure.records import Window
from mafl_cli.results.reader_study import Answer, KeyPair, ShownCase, StudyAnswers, StudyKey, checked
from mafl_cli.show import study
from mafl_cli.system import records
from mafl_cli.system.documents import read_json

WINDOW = Window(low=-160.0, high=240.0, rule="soft tissue")


def study_case(
    name: str = "a case", volumes: Any = None, affine: Any = None, slice_axis: int = 2, window: Window = WINDOW
) -> study.StudyCase:
    """A case of which some slices differ: seven of nine, without volumes."""
    volumes = case() if volumes is None else volumes
    changed = (volumes["clean"] != volumes["adversarial"]).any(axis=tuple({0, 1, 2} - {slice_axis})).sum()
    return study.StudyCase(
        shown=ShownCase(case_id=name, channel="CT", window=window),
        changed_slices=int(changed),
        volumes=lambda: study.StudyVolumes(
            clean=volumes["clean"],
            adversarial=volumes["adversarial"],
            affine=ras() if affine is None else affine,
            slice_axis=slice_axis,
        ),
    )


def key_of(page: Path) -> StudyKey:
    return records.read(StudyKey, read_json(study.key_path(page)), "key")


def answered(key: StudyKey, reader: str, different: Callable[[int, KeyPair], bool]) -> Any:
    """What the browser saves of a reader who calls those pairs different."""
    answers = tuple(
        Answer(pair=n, answer="different" if different(n, pair) else "same", milliseconds=1000 + n)
        for n, pair in enumerate(key.pairs, 1)
    )
    return records.plain(
        StudyAnswers(
            schema_version=key.schema_version,
            kind="reader-study-answers",
            study=key.study,
            reader=reader,
            answers=answers,
            check=checked(key.study, reader, answers),
        )
    )


def put(path: Path, found: Any) -> Path:
    path.write_text(json.dumps(found))
    return path
