"""The report of an evaluation: what the files of runs, or any pairs of scans, measure, and whether that passes.

Schema: `evaluation.schema.json`. Strict JSON, as the report of an attack; the same files give the same report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, Len

from mafl_cli.codes import Outcome, Reason, Untested
from mafl_cli.config import Detector, Norm
from mafl_cli.measure.records import Agreement, ClassAgreement, Consequences, Draws, Reach, Size, Survival, Visibility
from mafl_cli.measure.statistics import Statistics
from mafl_cli.measure.value import Value
from mafl_cli.results.detection_report import Detection, Roc
from mafl_cli.results.envelope import Environment, Failure, Tool, Version
from mafl_cli.results.gate_report import GateResult
from mafl_cli.results.report import NamedModel
from mafl_cli.results.trust_report import AlarmRecord, Trust
from mafl_cli.system.records import CONFIG, OPTIONAL, Count, Length, Sha256, Share, Which

SCHEMA = Path(__file__).parent / "schemas" / "evaluation.schema.json"

# --- who was asked, and what --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JudgingModel:
    """A model that drew predictions, or whose predictions the run holds."""

    name: str
    sha256: Sha256
    classes: tuple[str, ...]
    overlapping: bool
    """Whether the classes are regions that may overlap."""
    assumptions: tuple[str, ...]
    members: tuple[NamedModel, ...] | None = field(default=None, metadata=OPTIONAL)
    """The models of an ensemble."""


@dataclass(frozen=True, kw_only=True)
class TrialsAsked:
    """What was done beyond measuring the files as they are. null: not asked for."""

    transforms: tuple[str, ...]
    detectors: tuple[Detector, ...]
    curve_budgets: tuple[float, ...] | None
    curve_end: float | None


# --- one case -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GivenFile:
    name: str
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class GivenPredictions:
    """The mask files that were given as predictions; who or what drew them is not known."""

    clean: Annotated[tuple[GivenFile, ...], Len(1)]
    adversarial: Annotated[tuple[GivenFile, ...], Len(1)]


@dataclass(frozen=True, kw_only=True)
class ProvesNothing:
    """Why a case says nothing about the model, so that every gate fails."""

    code: Untested
    sentence: str


@dataclass(frozen=True, kw_only=True)
class AttackTold:
    """What was tried, and how far it can be believed, as the run's own report says."""

    method: str
    steps: Annotated[int, Interval(ge=1)]
    norm: Norm | None
    """Norm of the ball that the change had to stay in; null: no limit on its size."""
    eps_native: tuple[Length, ...] | None
    """Radius of the ball for each channel, native units."""
    confined: bool
    """Whether only some voxels or channels were allowed to change."""
    trust: Trust | None


@dataclass(frozen=True, kw_only=True)
class GoalRecord:
    """The goal as the attack judges it, on the whole scan."""

    iou: Share
    hit: Share
    reached: bool


@dataclass(frozen=True, kw_only=True)
class JudgedMetrics:
    clean: Agreement
    post_write: Agreement
    consequences: Consequences
    dice_with_clean: Value
    size: Size
    size_per_channel: Annotated[tuple[Size, ...], Len(1)]
    visibility: Visibility
    draws: Draws | None = field(default=None, metadata=OPTIONAL)
    """Only where the first model answers differently each time."""


@dataclass(frozen=True, kw_only=True)
class WithTruth:
    """One prediction against the true classes."""

    dice: Value
    iou: Value
    per_class: tuple[ClassAgreement, ...]


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Both predictions against the true classes."""

    clean: WithTruth
    adversarial: WithTruth
    dice_drop: Value


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What a model after the first draws."""

    model: str
    sha256: Sha256
    clean: Reach
    adversarial: Reach


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a multiple of the change does."""

    scale: Share
    linf_share: Length
    """Largest change of a voxel as a share of the data range."""
    linf_native: Length
    l2_model: Length
    psnr_db: Value
    target_iou: Value
    hit_rate: Value


@dataclass(frozen=True, kw_only=True)
class SmallestAtGoal(Value):
    """The least change known that reaches the goal, as a multiple (value) of a run's; its size is there if it is."""

    linf_share: Length | None = field(default=None, metadata=OPTIONAL)
    """Largest change of a voxel as a share of the data range."""
    linf_native: Length | None = field(default=None, metadata=OPTIONAL)
    l2_model: Length | None = field(default=None, metadata=OPTIONAL)
    psnr_db: Value | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (self.linf_share, self.linf_native, self.l2_model, self.psnr_db)
        if any((each is None) != (self.value is None) for each in sizes):
            raise ValueError("a multiple must have its size, and only that")

    @property
    def extent(self) -> tuple[float, float, float]:
        """Largest voxel, length and multiple, by which changes are compared. Raises ValueError where there is none."""
        if self.linf_share is None or self.l2_model is None:
            raise ValueError(f"undefined: {self.reason}")
        return self.linf_share, self.l2_model, self.number


@dataclass(frozen=True, kw_only=True)
class Area:
    """Mean over all budgets from 0 to trials.curve_end."""

    target_iou: Value
    hit_rate: Value


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What multiples of the change do."""

    points: tuple[Point, ...]
    smallest_at_goal: SmallestAtGoal
    """Over all runs of this scan and target whose goal was as high."""
    area: Area
    """Over all runs of this scan and target."""
    runs: Annotated[int, Interval(ge=1)]


@dataclass(frozen=True, kw_only=True)
class JudgedCase:
    """A pair of scans that was measured."""

    case_id: str
    status: Literal["ok"]
    error: None
    predictions: Literal["recomputed", "recorded", "given"]
    """Drawn again by the first model, those in the result folder, or given as mask files."""
    outcome: Outcome | None
    """What the attack said when it ended; null without a run."""
    files_intact: bool | None
    """Whether every file is the one the run's report describes; null without a run."""
    differences: tuple[str, ...]
    """Sentences on what the run's report says and the files do not."""
    untested: ProvesNothing | None
    attack: AttackTold | None
    """null without a run: then nothing is known about the attack."""
    doubts: tuple[AlarmRecord, ...]
    """Why the attack may have failed, rather than the model held: gates that it does not fail are inconclusive."""
    goal: GoalRecord
    metrics: JudgedMetrics
    ground_truth: GroundTruth | None
    transfer: tuple[Transfer, ...]
    survival: tuple[Survival, ...]
    detection: tuple[Detection, ...]
    curve: Curve | None
    given: GivenPredictions | None = field(default=None, metadata=OPTIONAL)
    """Only where predictions were given."""

    @property
    def knows_units(self) -> bool:
        """Whether anything says what a model unit is: a model, or a run. Elsewhere it is one native unit."""
        return self.given is None or self.attack is not None

    @property
    def may_reach(self) -> bool:
        """Whether the goal is reached, or may be with other luck: a single draw of the model reaches it."""
        draws = self.metrics.draws
        return self.goal.reached or (draws is not None and draws.at_goal.mean > 0)


@dataclass(frozen=True, kw_only=True)
class FailedCase:
    """A case that could not be read or judged."""

    case_id: str
    status: Literal["failed"]
    error: Failure


# --- over all cases -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FigureStatistics(Statistics):
    """Statistics over the cases that have the figure. reasons: why the others do not have it, as codes."""

    undefined: Count
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, kw_only=True)
class JudgedAggregate:
    cases: Count
    ok: Count
    failed: Count
    goal_reached: Count
    doubtful: Count
    """Cases whose attack may have failed, rather than the model held."""
    figures: dict[str, FigureStatistics]
    """By the names that gates use."""


@dataclass(frozen=True, kw_only=True)
class TransferMeans:
    """Means of one model that was not attacked."""

    model: str
    sha256: Sha256
    n: Count
    target_iou: Value
    hit_rate: Value
    dice_with_clean: Value


@dataclass(frozen=True, kw_only=True)
class SurvivalMeans:
    """Means of one transform."""

    transform: str
    n: Count
    target_iou: Value
    hit_rate: Value
    restored: Value
    clean_dice: Value
    """Dice of the clean scan's predictions with and without the transform."""


# --- all of it ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation. A value of null comes with a reason."""

    __pydantic_config__ = CONFIG

    schema_version: Version
    tool: Tool
    notice: str
    command: Literal["evaluate"]
    environment: Environment
    models: tuple[JudgingModel, ...]
    """The first one judges; the others were asked for transfer."""
    trials: TrialsAsked
    cases: tuple[Annotated[JudgedCase | FailedCase, Which("status")], ...]
    aggregate: JudgedAggregate
    transfer: tuple[TransferMeans, ...]
    survival: tuple[SurvivalMeans, ...]
    detection: tuple[Roc, ...]
    gates: tuple[GateResult, ...]

    @property
    def judged(self) -> tuple[JudgedCase, ...]:
        """The cases that were measured."""
        return tuple(case for case in self.cases if isinstance(case, JudgedCase))

    @property
    def failed_gates(self) -> tuple[GateResult, ...]:
        return tuple(gate for gate in self.gates if gate.status != "pass")
