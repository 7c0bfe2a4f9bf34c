"""What a batch writes beside the results of its cases: its list, tickets, failures, its report, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mafl_cli.codes import Alarm, Belief, Outcome
from mafl_cli.measure.statistics import Statistics
from mafl_cli.results.envelope import Failure, Tool, Version
from mafl_cli.results.report import NamedModel
from mafl_cli.system.records import CONFIG, OPTIONAL, Count, Length, Sha256

SCHEMA = Path(__file__).parent / "schemas" / "batch.schema.json"

# --- so that a later run knows what was done ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CaseList:
    """What a batch knows of itself; see `results.files.RUN`. settings: hash of what all its cases share."""

    __pydantic_config__ = CONFIG

    settings: str
    cases: tuple[str, ...]

    def __post_init__(self) -> None:
        if any(name in ("", ".", "..") or Path(name).name != name for name in self.cases):
            raise ValueError("the name of a case must not lead out of the folder")


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What the results of a case were made from; see `results.files.TICKET`.

    request: hash of the settings. files: a fingerprint of each, see `batch.batch.fingerprint`.
    """

    __pydantic_config__ = CONFIG

    request: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FailedAttack:
    """Word of a case that failed; see `results.files.FAILED`."""

    __pydantic_config__ = CONFIG

    case_id: str
    error: Failure
    ticket: Ticket


# --- its report ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BatchModel:
    """A model that was attacked."""

    name: str
    sha256: Sha256
    classes: tuple[str, ...]
    members: tuple[NamedModel, ...] | None = field(default=None, metadata=OPTIONAL)
    """The models of an ensemble."""


@dataclass(frozen=True, kw_only=True)
class BatchCase:
    """What the run says of a case. figures: by the names of `results.quantities`; null where undefined."""

    case_id: str
    status: Literal["ok", "failed", "pending"]
    error: Failure | None
    outcome: Outcome | None
    trust: Belief | None
    """Whether the attack can be believed."""
    alarms: tuple[Alarm, ...]
    """Why it may have failed, rather than the model held; its report has the numbers."""
    figures: dict[str, bool | float | None] | None


@dataclass(frozen=True, kw_only=True)
class BatchAggregate:
    ok: Count
    failed: Count
    pending: Count
    cases: Count
    goal_reached: Count
    doubtful: Count
    """Cases with alarms that nothing answers."""
    figures: dict[str, Statistics]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A run over many cases."""

    __pydantic_config__ = CONFIG

    schema_version: Version
    tool: Tool
    notice: str
    command: Literal["attack-batch"]
    settings_hash: str
    models: tuple[BatchModel, ...]
    cases: tuple[BatchCase, ...]
    aggregate: BatchAggregate


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a run is. Means and the largest peak are over the finished cases."""

    command: Literal["status"]
    cases: Count
    ok: Count
    failed: Count
    running: Count
    """A worker is at them."""
    pending: Count
    mean_seconds: dict[str, Length]
    """Seconds that each part of a case takes."""
    mean_passes: Length
    peak_resident_bytes: Count
