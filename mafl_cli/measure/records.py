"""What is measured of a prediction and of a change, as reports hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval as Interval_

from mafl_cli.codes import Sight
from mafl_cli.measure.value import Value
from mafl_cli.system.records import Count, Length, Share

# --- a prediction against the target ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Counted(Value):
    """A share, and how many voxels it is."""

    count: Count


@dataclass(frozen=True, kw_only=True)
class SurfaceDice(Value):
    """Normalised surface Dice."""

    tolerance_mm: Length


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """How many voxels a class has in the clean prediction, the target, and the prediction that is judged."""

    clean: Count
    target: Count
    prediction: Count


@dataclass(frozen=True, kw_only=True)
class ClassAgreement:
    """One class, or region, against the target."""

    index: Count
    name: str
    iou: Value
    dice: Value
    hd95_mm: Value
    nsd: SurfaceDice
    voxels: Voxels


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A class that the target empties."""

    index: Count
    name: str
    value: float
    """1: the class is gone, 0: as before, negative: grown."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A connected piece of the region that must change."""

    voxels: Count
    volume_mm3: Length
    hit_rate: Share


@dataclass(frozen=True, kw_only=True)
class Components:
    """How many pieces there are, and the largest of them, largest first."""

    count: Count
    largest: tuple[Component, ...]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Which variant of the two surface metrics is measured, and by which program."""

    tool: str
    hd95: str
    nsd: str
    spacing_mm: tuple[Length, ...]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A prediction against the target; see `measure.agreement.agreement`."""

    target_iou: Value
    target_dice: Value
    accuracy: Share
    foreground_accuracy: Value
    changed_voxels: Count
    hit_rate: Value
    collateral: Counted
    """Share of the voxels the target leaves alone that changed class all the same."""
    removed: tuple[Removed, ...]
    per_class: tuple[ClassAgreement, ...]
    per_component: Components
    distances: Distances


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """A volume in the clean prediction, and in that of the adversarial scan, ml."""

    clean: Length
    adversarial: Length


@dataclass(frozen=True, kw_only=True)
class Diameters:
    """Diameter of the largest component in both predictions, mm; see `measure.consequences`."""

    clean: Value
    adversarial: Value


@dataclass(frozen=True, kw_only=True)
class ClassConsequence:
    """What became of a class, or region, in the body; see `measure.consequences`."""

    index: Count
    name: str
    volume_ml: Volumes
    diameter_mm: Diameters
    hd95_mm: Value
    """Between the clean prediction and that of the adversarial scan."""

    @property
    def volume_change_ml(self) -> float:
        """Gained, or below 0 lost, by the attack."""
        return self.volume_ml.adversarial - self.volume_ml.clean

    @property
    def changed(self) -> bool:
        """Whether volume or surface is another."""
        return self.volume_change_ml != 0 or (self.hd95_mm.value or 0) > 0


@dataclass(frozen=True, kw_only=True)
class Redrawn:
    """Where the two predictions differ, all classes together: the region of doubt."""

    volume_ml: Length
    pieces: Count
    """Connected pieces; corners touch."""
    diameter_mm: Value
    """Diameter of the largest piece."""


@dataclass(frozen=True, kw_only=True)
class Consequences:
    """What the attack means for the body; see `measure.consequences`."""

    redrawn: Redrawn
    per_class: tuple[ClassConsequence, ...]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What one prediction has of the target; see `measure.agreement.quick_agreement`."""

    target_iou: Value
    hit_rate: Value
    restored: Value
    """Share of the attacked voxels that have the clean prediction's class again."""
    dice_with_clean: Value
    """Mean Dice with the clean prediction."""


# --- answers that differ each time -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over draws, and where the true one is with a confidence of 95 %."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Unsettled:
    """Voxels of a prediction that most of the first half of its draws have otherwise than most of the second."""

    clean: Count
    adversarial: Count


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What single draws of a network have that answers differently each time; all else is measured on what most of its
    draws have at each voxel, as the prediction files hold it."""

    count: Annotated[int, Interval_(ge=2)]
    """Draws of the clean scan, and as many of the adversarial one."""
    at_goal: Interval
    """Share of the draws that reach the goal."""
    figures: dict[str, Interval]
    """By the names that gates use, which take the end of the interval that is worse for the model."""
    unsettled: Unsettled


# --- a change -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Differing:
    """How many voxels differ."""

    count: Count
    fraction: Share


@dataclass(frozen=True, kw_only=True)
class InBothUnits:
    """A length in the scan's own units, and in those the network sees."""

    native: Length
    model: Length


@dataclass(frozen=True, kw_only=True)
class DataRange:
    """What PSNR and SSIM are relative to, native units, and the rule it comes from."""

    value: Length
    rule: str


@dataclass(frozen=True, kw_only=True)
class Psnr(Value):
    """Peak signal-to-noise ratio, dB, of a region."""

    data_range: Length
    region: str


@dataclass(frozen=True, kw_only=True)
class InSlice(Value):
    """A value of one slice, by its index along the slice axis."""

    slice: Count | None


@dataclass(frozen=True, kw_only=True)
class Ssim:
    """Structural similarity of the slices."""

    mean: Value
    mean_changed_slices: Value
    worst: InSlice
    """The slice that changed most visibly."""
    data_range: Length
    window: str


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a change is; see `measure.perturbation.size`."""

    l0: Differing
    l2: InBothUnits
    linf: InBothUnits
    mean_abs: InBothUnits
    volume_mm3: Length
    slices: Count
    changed_slices: Count
    data_range: DataRange
    psnr_db: Psnr
    psnr_changed_slices_db: Psnr
    """The same over the slices that changed."""
    ssim: Ssim
    low_frequency_share: Value


# --- whether a change can be seen ---------------------------------------------------------------------------------


MOST_COMPRESSED = 100.0
"""The largest JPEG 2000 ratio that a change is compared with."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The native values that are shown black and white, and the rule they come from."""

    low: float
    high: float
    rule: str


@dataclass(frozen=True, kw_only=True)
class GreyLevels:
    """What a screen of 256 grey levels shows of a change, in the window that shows most."""

    largest: Length
    """The largest change of any pixel."""
    share_above_1: Share
    """Share of the pixels that change by more than one level, in the slice with most of them."""


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Whether a change can be seen, where it is most visible; see `measure.visibility`. No reader study was made."""

    verdict: Sight
    """By `compression_equivalent`: to 5 it cannot be seen, from 10 it is visible."""
    channel: str
    slice: Count | None
    """Along the slice axis; null where nothing was changed."""
    patch: tuple[Count, Count] | None
    """First row and column of its part of 64 x 64 pixels with the largest d′, in the axes of the array."""
    window: Window
    """The one that shows most of the change: soft tissue, lung or bone for CT; for all else see `measure.windows`."""
    noise_sigma_native: Value
    """Standard deviation of the scan's own noise."""
    largest_over_noise: Value
    """Largest change of a voxel over the noise and texture around it."""
    d_prime: Value
    """How many standard deviations the change moves an observer with an eye filter, in the patch."""
    percent_correct: Value
    """How often that observer would name the changed one of two images, 0.5 to 1."""
    haarpsi: Value
    """Similarity of the displayed slices in their least similar patch and window, 0 to 1."""
    compression_equivalent: Value
    """JPEG 2000 ratio that makes this slice look as different: the larger of the two that follow, 1 to 100."""
    compression_equivalent_haarpsi: Value
    compression_equivalent_d_prime: Value
    grey_levels: GreyLevels
    psnr_patch_db: Value
    """PSNR in the patch, where no background flatters."""
    ssim_patch: Value
    """SSIM in the patch, by the data range and the window of `Size`."""


# --- a change against the shortest one near it -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LocalOptimum:
    """How far the change that the search found is above the shortest one near it that reaches the goal. An estimate to
    first order, not a bound, and only about what is near: another change, elsewhere, may be shorter."""

    excess: Value
    """Share by which the change is longer, 0.02 for 2 %; over all slices with an estimate, as one change."""
    kkt_cosine: Value
    """Cosine of the change and the weighted sum of the margins' slopes, downwards; 1 at a local optimum of L2."""
    excess_per_sample: dict[str, Length]
    """By the number of the slice along the slice axis, "0" for the volume; only those that have an estimate."""


@dataclass(frozen=True, kw_only=True)
class AttackLeft:
    """What the adversarial scan still has of the target after a transform."""

    target_iou: Value
    hit_rate: Value
    restored: Value


@dataclass(frozen=True, kw_only=True)
class CleanLeft:
    """What the transform does to the prediction of the clean scan."""

    target_iou: Value
    dice_with_clean: Value


@dataclass(frozen=True, kw_only=True)
class Survival:
    """What the model draws after a transform. goal_reached: whether that is the target still."""

    transform: str
    goal_reached: bool
    adversarial: AttackLeft
    clean: CleanLeft
