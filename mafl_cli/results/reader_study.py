"""A reader study: its key, what a reader's browser saves, and the report on all readers.

A *pair* is two pictures of one slice as a screen shows them: the clean and the adversarial one (a *changed* pair), or
the same one twice (a *control*). A reader says of each whether the two are the same or different. Numbers of pairs
begin at 1, in the order in which they are shown. Schemas: `reader_study_*.schema.json`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, Len

from mafl_cli.measure.proportions import Proportion
from mafl_cli.measure.records import Window
from mafl_cli.results.envelope import Tool, Version
from mafl_cli.system.records import CONFIG, Count, Sha256, Text, plain

_SCHEMAS = Path(__file__).parent / "schemas"
KEY_SCHEMA = _SCHEMAS / "reader_study_key.schema.json"
ANSWERS_SCHEMA = _SCHEMAS / "reader_study_answers.schema.json"
SCHEMA = _SCHEMAS / "reader_study_report.schema.json"

ScanName = Literal["clean", "adversarial"]
Number = Annotated[int, Interval(ge=1)]
ReaderCode = Annotated[str, Text("^[A-Za-z0-9_-]{1,20}$")]
"""What a reader is called: never a name."""

# --- the key ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """What is shown of which slice."""

    case_id: str
    slice: Count
    """Along the slice axis of the scan."""
    first: ScanName
    second: ScanName
    grey_levels: Annotated[int, Interval(ge=0, le=255)]
    """Largest difference of a pixel on the screen, of 255."""

    @property
    def changed(self) -> bool:
        """Whether one of the two is the adversarial scan, and the other is not."""
        return self.first != self.second


@dataclass(frozen=True, kw_only=True)
class ShownCase:
    """The grey values in which the slices of a case are shown."""

    case_id: str
    channel: str
    window: Window


@dataclass(frozen=True, kw_only=True)
class StudyKey:
    """Which pairs of a page are changed. It stays with who makes the study."""

    __pydantic_config__ = CONFIG

    schema_version: Version
    tool: Tool
    notice: str
    kind: Literal["reader-study-key"]
    study: Sha256
    """Hash of all else in this file: page and answers name it, so that nobody exchanges the key afterwards."""
    pictures: Sha256
    """Hash of the pictures on the page, in their order."""
    seed: Count
    """It gives the order."""
    cases: Annotated[tuple[ShownCase, ...], Len(1)]
    pairs: Annotated[tuple[KeyPair, ...], Len(2)]

    def named(self) -> StudyKey:
        """With its own hash as `study`."""
        return replace(self, study=self._hash())

    @property
    def intact(self) -> bool:
        """Whether it is as it was written."""
        return self.study == self._hash()

    def _hash(self) -> str:
        told = {name: value for name, value in plain(self).items() if name != "study"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


# --- answers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    pair: Number
    answer: Literal["same", "different"]
    milliseconds: Count
    """From the first picture to the answer."""


@dataclass(frozen=True, kw_only=True)
class StudyAnswers:
    """What one reader said, as the browser saves it. Nothing about patients, and nothing of the key."""

    __pydantic_config__ = CONFIG

    schema_version: Version
    kind: Literal["reader-study-answers"]
    study: Sha256
    reader: ReaderCode
    answers: Annotated[tuple[Answer, ...], Len(1)]
    check: Annotated[str, Text("^[0-9a-f]{8}$")]
    """CRC-32 of the answers: it shows slips of an editor, and nobody's intent."""

    @property
    def intact(self) -> bool:
        """Whether the answers are those that the browser saved."""
        return self.check == checked(self.study, self.reader, self.answers)


def checked(study: str, reader: str, answers: Sequence[Answer]) -> str:
    """The CRC-32, eight hexadecimal digits, of lines of text: study, reader, and each answer."""
    lines = [study, reader, *(f"{each.pair} {each.answer} {each.milliseconds}" for each in answers)]
    return f"{zlib.crc32(chr(10).join(lines).encode()):08x}"


# --- the report ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Told:
    """recognised: changed pairs that were called different. false_alarms: controls that were."""

    recognised: Proportion
    false_alarms: Proportion


@dataclass(frozen=True, kw_only=True)
class ReaderTold(Told):
    """What one reader told apart."""

    reader: ReaderCode


@dataclass(frozen=True, kw_only=True)
class PairTold(KeyPair):
    """What was shown as one pair, and how many readers called it different."""

    pair: Number
    called_different: Count


@dataclass(frozen=True, kw_only=True)
class ReaderStudy:
    """What readers told apart."""

    __pydantic_config__ = CONFIG

    schema_version: Version
    tool: Tool
    notice: str
    command: Literal["evaluate"]
    study: Sha256
    seed: Count
    cases: Annotated[tuple[ShownCase, ...], Len(1)]
    changed: Number
    """Changed pairs."""
    controls: Number
    without_difference: Count
    """Changed pairs of which no pixel differs on a screen of 256 grey levels."""
    readers: Annotated[tuple[ReaderTold, ...], Len(1)]
    together: Told
    """All answers of all readers, as if they did not depend on each other. Several readers see the same pairs, so that
    the true interval is wider."""
    pairs: Annotated[tuple[PairTold, ...], Len(2)]
