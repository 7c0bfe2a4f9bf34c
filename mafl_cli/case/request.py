"""What is asked of one run: the scans, the model, the view of the scan, and the attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mafl_cli.config import AttackConfig, Mode, Precision, SaveAs, SliceAxisChoice
from mafl_cli.network.intensity import Intensity
from mafl_cli.scans.masks import Masks
from mafl_cli.scans.recipes import Recipe
from mafl_cli.scans.volume import Volume

DEMO_MODEL = Path(__file__).parents[1] / "demo" / "model.ts"


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model and how it is to see scans. `None` for a property of the model means: what its card says.

    spacing: mm, along the model's axes, or (0,) for the scan's own. roi: voxels of a window, or (0,) for no windows.
    """

    model: Path = DEMO_MODEL
    mode: Mode = "auto"
    slice_axis: SliceAxisChoice | None = None
    precision: Precision = "float32"
    orientation: str | None = None
    intensity: Intensity | None = None
    spacing: tuple[float, ...] | None = None
    roi: tuple[int, ...] | None = None
    overlap: float | None = None
    tap: str = "auto"


@dataclass(frozen=True, kw_only=True)
class AttackRequest(ModelRequest):
    """One case: paths and settings.

    images: one file (or DICOM folder) for each channel of the model, in its order. volumes: the same, where they were
    read already; images then only name them. series, allow_gaps: see
    `scans.dicom.read.read_dicom`. targets: one mask, or one for each region that may overlap others; none with a
    recipe. masks: how mask files are read. within: a mask; only its voxels may change, and with body_only only those
    of the body. redact: keep the names of the files out of everything, and text, patient and study out of headers.
    attack_channels: names or numbers of the channels that may change; all if None. save_as: None is float32 for NIfTI,
    source for DICOM. size_limit: GiB, see `mafl_cli.system.sizes`; None is what holds where the request is followed.
    """

    images: tuple[Path, ...]
    volumes: tuple[Volume, ...] = ()
    out: Path
    targets: tuple[Path, ...] = ()
    recipe: Recipe | None = None
    series: str | None = None
    allow_gaps: bool = False
    masks: Masks = field(default_factory=Masks)
    within: Path | None = None
    body_only: bool = False
    guides: tuple[Path, ...] = ()
    save_as: SaveAs | None = None
    device: str = "auto"
    attack_channels: tuple[str, ...] | None = None
    redact: bool = False
    overwrite: bool = False
    size_limit: float | None = None
    config: AttackConfig = field(default_factory=AttackConfig)
