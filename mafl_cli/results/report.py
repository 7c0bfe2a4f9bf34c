"""The report of an attack: what ran, on what, and what the file on the disk measures. Schema: `report.schema.json`.

Strict JSON: no NaN, no Infinity; what is undefined is null with a reason. No absolute path, host or user name. Two
runs with the same seed on a CPU give equal reports but for `run.started` and each case's `timing_s` and `memory`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len

from mafl_cli.classes import Classes
from mafl_cli.codes import Outcome
from mafl_cli.config import Activation, AttackConfig, EnsembleRule, Norm, SaveAs, SliceAxisChoice
from mafl_cli.measure.records import Agreement, Consequences, Draws, LocalOptimum, Size, Survival, Visibility
from mafl_cli.measure.value import Value
from mafl_cli.results.detection_report import Evasion
from mafl_cli.results.envelope import Environment, Tool, Version
from mafl_cli.results.trust_report import Trust
from mafl_cli.results.worst_report import WorstCase
from mafl_cli.system.records import (
    CONFIG,
    OPTIONAL,
    AtMostOne,
    Count,
    Length,
    Positive,
    Sha256,
    Share,
    Text,
)

SCHEMA = Path(__file__).parent / "schemas" / "report.schema.json"

NumberPair = tuple[float, float]

# --- what ran -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings(AttackConfig):
    """Every setting of the run, by its option or parameter name. null is off or not given."""

    mode: Literal["2d", "3d"]
    slice_axis: SliceAxisChoice
    save_as: SaveAs
    device: str
    precision: str
    spacing: Annotated[tuple[Positive, ...], Len(2, 3)] | None
    """mm along the network's axes; null and [0]: the scan's own."""
    roi: Annotated[tuple[Annotated[int, Interval(ge=1)], ...], Len(2, 3)] | None
    """Voxels of a window; null: no windows."""
    overlap: Annotated[float, Interval(ge=0, lt=1)] | None
    blend: str | None
    attack_channels: tuple[str, ...] | None
    tap: str | None
    guide: tuple[str, ...] | None
    """Names of files."""
    allow_gaps: bool
    body_only: bool
    resample_target: bool
    label_map: dict[str, int] | None
    start: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)
    """Names of files that one search began at."""
    ladder: bool | None = field(default=None, metadata=OPTIONAL)
    """Whether it was tried that more steps and larger changes reach more."""
    universal: Literal["made_on", "held_out"] | None = field(default=None, metadata=OPTIONAL)
    """The change is one for many scans: whether this is one that it was made on."""
    untargeted: bool | None = field(default=None, metadata=OPTIONAL)
    """Whether anything else than the clean prediction was asked for; the target is then an empty mask."""
    folds: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)
    """Those of an nnU-Net results folder that made the model; not there: all."""
    mirror: bool | None = field(default=None, metadata=OPTIONAL)
    """Whether it was averaged over mirrored inputs; not there: as it was trained."""


@dataclass(frozen=True, kw_only=True)
class Run:
    command: Literal["attack"]
    started: str
    """UTC, ISO 8601. With timing_s and memory the only part that differs between equal runs."""
    settings: Settings
    config_hash: Annotated[str, Text("^sha256:[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class IntensityRecord:
    """How the model's input is scaled; what a kind does not need is not there."""

    kind: Literal["none", "minmax", "zscore", "window", "percentile", "ct", "each", "members"]
    region: Literal["all", "nonzero", "crop", "filled"] | None = field(default=None, metadata=OPTIONAL)
    min: float | None = field(default=None, metadata=OPTIONAL)
    max: float | None = field(default=None, metadata=OPTIONAL)
    to: NumberPair | None = field(default=None, metadata=OPTIONAL)
    clip: NumberPair | None = field(default=None, metadata=OPTIONAL)
    lower: float | None = field(default=None, metadata=OPTIONAL)
    upper: float | None = field(default=None, metadata=OPTIONAL)
    mean: float | None = field(default=None, metadata=OPTIONAL)
    std: Positive | None = field(default=None, metadata=OPTIONAL)
    each: tuple[IntensityRecord, ...] | None = field(default=None, metadata=OPTIONAL)
    """What each channel has, for the kind `each`; each member of an ensemble, for `members`."""


@dataclass(frozen=True, kw_only=True)
class TapRecord:
    """A layer whose features the attack compares."""

    name: str
    shape: tuple[Count, ...]
    """(features, *coarse) for one input."""
    weight: Positive


ModelFormat = Literal[
    "torchscript", "torch.export", "torch.nn", "onnx", "nnunet", "monai.bundle", "ensemble", "command"
]


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model of an ensemble."""

    name: str
    sha256: Sha256


def named_members(members: Iterable[Mapping[str, Any]]) -> tuple[NamedModel, ...] | None:
    """The models of an ensemble by their names, from what is known of them; None where there are none."""
    return tuple(NamedModel(name=member["name"], sha256=member["sha256"]) for member in members) or None


@dataclass(frozen=True, kw_only=True)
class MemberRecord(NamedModel):
    """A model of the attacked ensemble, and what it does not share with the others."""

    format: ModelFormat
    intensity: IntensityRecord
    card: str | None
    """File name its description was read from."""
    gradient_from: Literal["graph", "file"]


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str
    sha256: Sha256
    """For an ensemble, of its rule and the hashes of its members; for a program of nothing, for that is not known."""
    format: ModelFormat
    dims: Literal[2, 3]
    channels: Annotated[tuple[str, ...], Len(1)]
    orientation: str
    classes: Annotated[tuple[str, ...], Len(1)]
    overlapping: bool
    """Whether the classes are regions that may overlap, each with a background of its own."""
    activation: Activation
    intensity: IntensityRecord
    divisor: Annotated[int, Interval(ge=1)]
    taps: tuple[TapRecord, ...]
    """None where the file itself is differentiated."""
    card: str | None
    """File name the model's description was read from."""
    assumptions: tuple[str, ...]
    """What nobody stated and mafl assumed."""
    gradient_from: Literal["graph", "file", "none"] = "graph"
    """What the search differentiated: the graph lifted from the model file, or the file itself, where no graph stands
    for it; none where only labels were asked for. Predictions are the model's own in any case."""
    ensemble: EnsembleRule | None = field(default=None, metadata=OPTIONAL)
    """How the answers of the members become one; only of an ensemble."""
    members: Annotated[tuple[MemberRecord, ...], Len(2)] | None = field(default=None, metadata=OPTIONAL)

    @property
    def named_members(self) -> tuple[NamedModel, ...] | None:
        """The models of an ensemble by their names; None of a single model."""
        return named_members(vars(member) for member in self.members or ())

    @property
    def drawn(self) -> Classes:
        """What the numbers of the run's masks stand for."""
        return Classes(self.classes, self.overlapping)


# --- one case -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Input:
    """The file of one channel."""

    channel: str
    name: str
    format: Literal["nifti", "dicom"]
    sha256: Sha256
    shape: tuple[Count, Count, Count]
    spacing_mm: tuple[Length, Length, Length]
    axcodes: Annotated[str, Text("^[RLAPSI]{3}$")]
    dtype: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """Voxels of a label on its file's own grid, and on the scan's."""

    before: Count
    after: Count


@dataclass(frozen=True, kw_only=True)
class MaskFileRecord:
    """A mask file that was used."""

    name: str
    sha256: Sha256
    resampled: dict[str, Resampled] | None
    """By label; null where both grids are one."""


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    recipe: str | None
    """What was made of the clean prediction; null for mask files."""
    files: tuple[MaskFileRecord, ...]
    voxels: dict[str, Count]
    """Voxels of each class, by name."""


@dataclass(frozen=True, kw_only=True)
class SliceAxisRecord:
    index: Annotated[int, Interval(ge=0, le=2)]
    name: Annotated[str, Text("^(axial|coronal|sagittal)$")]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Space:
    mode: Literal["2d", "3d"]
    slice_axis: SliceAxisRecord
    network_shape: tuple[Annotated[int, Interval(ge=1)], ...]
    """Voxels that the network sees along its axes, at its spacing and before padding."""
    native_units_per_model_unit: Annotated[tuple[Positive, ...], Len(1)]
    """For each channel."""
    data_box_native: Annotated[tuple[NumberPair, ...], Len(1)]
    """Lowest and highest value of each channel."""


@dataclass(frozen=True, kw_only=True)
class BoundsRecord:
    """How far the change may go, for each channel, and where. null: no limit."""

    eps_native: tuple[float, ...] | None
    """Radius of the ball, in the scan's own units (HU for CT)."""
    eps_model: tuple[float, ...] | None
    """The same in the network's units."""
    norm: Norm | None
    within: MaskFileRecord | None
    body_voxels: Count | None
    """Voxels that `body_only` takes for the body."""
    allowed_voxels: Count | None
    """Voxels that may change, of the whole grid."""
    padding_voxels: tuple[Count, ...]
    """Voxels of each channel that DICOM marks as padding; they never change."""
    noise_sigma_native: tuple[Positive, ...] | None = field(default=None, metadata=OPTIONAL)
    """Standard deviation of each channel's own noise, where `eps` is counted in it; absent else."""


@dataclass(frozen=True, kw_only=True)
class SamplesRecord:
    """What was attacked on its own: slices, or the volume."""

    kind: Literal["slices", "volume"]
    total: Count
    attacked: Count
    reached: Count
    not_reached: Count
    skipped_constant: Count


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Through the network in the search, counted per slice or volume."""

    forward: Count
    backward: Count


@dataclass(frozen=True, kw_only=True)
class Trace:
    """How the search went: equally long lists, a value for each step, at most 200 of them, evenly spread, the first and
    the last among them. Means over the attacked samples; one that is finished keeps its last values, and groups that
    were attacked one after the other are joined by the number of the step. null where a value is not finite."""

    step: Annotated[tuple[Count, ...], Len(0, 200)]
    """Updates made so far."""
    loss: Annotated[tuple[float | None, ...], Len(0, 200)]
    """Loss of this step's iterate: the mask loss, with the feature term where that is on. Its weights change from step
    to step."""
    score: Annotated[tuple[AtMostOne | None, ...], Len(0, 200)]
    """Score of the best iterate so far: the least of IoU, hit rate and removal; what does not apply is 1."""
    reached: Annotated[tuple[Share, ...], Len(0, 200)]
    """Share of the samples at their goal."""
    l2_model: Annotated[tuple[Length | None, ...], Len(0, 200)]
    """Length of the best iterate so far, model units."""

    def __post_init__(self) -> None:
        if len({len(self.step), len(self.loss), len(self.score), len(self.reached), len(self.l2_model)}) > 1:
            raise ValueError("its lists must be equally long")


@dataclass(frozen=True, kw_only=True)
class Faithful:
    """How far the graph that the search differentiated is from the model file, on this scan: the largest difference of
    their outputs as a share of the file's largest value. null: not finite, or not compared, because the file itself was
    differentiated by then."""

    compared: Count
    """Slices or windows that were compared before the search."""
    clean: Length | None
    brightened: Length | None
    """On the scan with a tenth of its range added."""
    adversarial: Length | None
    """On what the search found."""


@dataclass(frozen=True, kw_only=True)
class Queries:
    """How often a model that only draws was asked in the search, the clean scan among them."""

    limit: Annotated[int, Interval(ge=1)]
    asked: Count
    repeated: Count
    """Questions that had been asked before, and were answered from memory."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    outcome: Outcome
    goal_reached: bool
    """On the whole scan, from the file read again."""
    samples: SamplesRecord
    passes: Passes
    draws_a_step: Annotated[int, Interval(ge=1)] | None = field(default=None, metadata=OPTIONAL)
    """Draws whose gradients are averaged, each with passes of its own; only where the model answers differently each
    time."""
    faithful: Faithful | None = field(default=None, metadata=OPTIONAL)
    """Not there where the file itself was differentiated from the start, or nothing."""
    trace: Trace | None = field(default=None, metadata=OPTIONAL)
    trust: Trust | None = field(default=None, metadata=OPTIONAL)
    """Whether the attack can be believed."""
    local_optimum: LocalOptimum | None = field(default=None, metadata=OPTIONAL)
    worst: WorstCase | None = field(default=None, metadata=OPTIONAL)
    """With the method `worst` alone."""
    queries: Queries | None = field(default=None, metadata=OPTIONAL)
    """Only where the model was asked for labels alone; `trace.step` counts them, the clean scan as 0."""


@dataclass(frozen=True, kw_only=True)
class InMemory:
    """How well the prediction of what the search found, before it was written, agrees with the target."""

    target_iou: Value
    hit_rate: Value
    accuracy: Share


@dataclass(frozen=True, kw_only=True)
class Metrics:
    clean: Agreement
    in_memory: InMemory
    post_write: Agreement
    """Agreement of the prediction of the written file, read again."""
    consequences: Consequences
    size: Size
    size_per_channel: Annotated[tuple[Size, ...], Len(1)]
    visibility: Visibility
    draws: Draws | None = field(default=None, metadata=OPTIONAL)
    """Only where the model answers differently each time."""
    evasion: tuple[Evasion, ...] | None = field(default=None, metadata=OPTIONAL)
    """Only with `evade`: what each detector says of the file, also those that were not to be evaded."""
    survival: tuple[Survival, ...] | None = field(default=None, metadata=OPTIONAL)
    """Only with `survive`: what the model draws after each of the its transforms."""


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """What storing did to the change of one channel."""

    save_as: SaveAs
    dtype: str
    step_native: float | None
    fraction_changed: Share
    fraction_clipped: Share
    max_difference_from_memory_native: float


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The most that the process had held until then, and what PyTorch held on the device in this case."""

    peak_resident_bytes: Count | None
    peak_device_bytes: Count | None


@dataclass(frozen=True, kw_only=True)
class File:
    name: str
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    case_id: str
    status: Literal["ok"]
    error: None
    inputs: Annotated[tuple[Input, ...], Len(1)]
    """The scan, a file for each channel."""
    target: TargetRecord
    space: Space
    bounds: BoundsRecord
    attack: Attack
    metrics: Metrics
    quantisation: Annotated[tuple[Quantisation, ...], Len(1)]
    """For each channel."""
    timing_s: dict[str, float]
    """Seconds: read, lift (load the model and draw the clean scan), attack, check, write, measure."""
    memory: Memory
    files: tuple[File, ...]


# --- all of it ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Over the cases where the number is defined. worst: from the attacker's side."""

    n: Count
    mean: float | None
    median: float | None
    worst: float | None


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    cases: Count
    ok: Count
    failed: Count
    goal_reached: Count
    metrics: dict[str, Summary]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One attack. A value of null comes with a reason."""

    __pydantic_config__ = CONFIG

    schema_version: Version
    tool: Tool
    notice: str
    run: Run
    environment: Environment
    model: Model
    cases: tuple[CaseRecord]
    aggregate: Aggregate
    gates: tuple[()]

    @property
    def case(self) -> CaseRecord:
        """The one case that was attacked."""
        return self.cases[0]


@dataclass(frozen=True, kw_only=True)
class DryRunSamples:
    kind: Literal["slices", "volume"]
    total: Count
    attacked: Count


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What an attack would ask for."""

    schema_version: Version
    tool: Tool
    command: Literal["dry-run"]
    case_id: str
    target: TargetRecord
    clean_voxels: dict[str, Count]
    changed_voxels: Count
    samples: DryRunSamples
    bounds: BoundsRecord
