"""What an attack by one change for many scans says: the change, and what it does to each scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mafl_cli.codes import Outcome
from mafl_cli.config import EpsUnit, Norm
from mafl_cli.results.batch_report import BatchModel
from mafl_cli.results.envelope import Failure, Tool, Version
from mafl_cli.results.report import File
from mafl_cli.system.records import CONFIG, Count, Length, Share

SCHEMA = Path(__file__).parent / "schemas" / "universal.schema.json"
UNIVERSAL = "universal.json"
Role = Literal["made_on", "held_out"]


@dataclass(frozen=True, kw_only=True)
class SharedChange:
    """The one change, on the grid of the first scan that it was made on."""

    files: tuple[File, ...]
    """One for each channel."""
    unit: EpsUnit
    """What 1 is in the files: a model unit, a native unit, or the whole range of the scan that is changed."""
    eps: Length
    norm: Norm
    linf: Length
    l2: Length
    """Over all channels, in `unit`."""
    grid: str
    """The case whose grid it is on."""
    shape: tuple[Count, Count, Count]
    spacing_mm: tuple[Length, Length, Length]
    axcodes: str
    steps: Count


@dataclass(frozen=True, kw_only=True)
class UniversalCase:
    """One scan. What is measured is null where it failed, or where it is undefined."""

    case_id: str
    role: Role
    error: Failure | None
    outcome: Outcome | None
    resampled: bool | None
    """Whether the change was resampled onto the scan's grid."""
    overlap: Share | None
    """Share of the scan's voxels that the grid of the change covers."""
    hit_rate: Share | None
    target_iou: Share | None
    goal_reached: bool | None


@dataclass(frozen=True, kw_only=True)
class UniversalShare:
    """All scans of one role: means over those for which a number is defined."""

    cases: Count
    failed: Count
    goal_reached: Count
    hit_rate: Share | None
    target_iou: Share | None


@dataclass(frozen=True, kw_only=True)
class UniversalReport:
    """One change for many scans, and what it does on those that it was made on, and on others."""

    __pydantic_config__ = CONFIG

    schema_version: Version
    tool: Tool
    notice: str
    command: Literal["attack-universal"]
    model: BatchModel
    change: SharedChange
    cases: tuple[UniversalCase, ...]
    made_on: UniversalShare
    held_out: UniversalShare | None
    """null where no scan was held out."""
