"""Which problems there are: scans, targets and models of the benchmarks, and how the scans are cut.

A result depends on the entry of its own problem here and on no other, so that adding one leaves all others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PLANAR = ("removed", "eroded", "dilated", "shifted20", "otherpatient", "box")


@dataclass(frozen=True)
class Source:
    """A scan with a model and the targets that are asked of it.

    folder: below `cases/`. model: below `models/`, or of a package as `package:path`. images: one for each channel.
    cut: edges of the box around the edit that is attacked, in voxels; None for two whole slices, cut in their plane.
    window: edge of the sliding windows, which overlap by half; None where the network sees the box at once.
    intensity: what the network expects, where the scan is not stored that way; such scans are turned to RAS.
    grid: the drawn organ and a margin of a tenth, on a grid of so many voxels along each axis, as deepbet does it.
    """

    folder: str
    model: str
    images: tuple[str, ...]
    targets: tuple[str, ...]
    cut: tuple[int, int, int] | None = None
    window: int | None = None
    intensity: str | None = None
    grid: int | None = None


SOURCES = {
    "flair2d_pat0001/slab12": Source("flair2d_pat0001/slab12", "flair_unet2d.ts", ("image",), PLANAR),
    "brats2d_pat0002/slab12": Source(
        "brats2d_pat0002/slab12", "brats_unet2d.ts", ("image_flair", "image_t1c"), PLANAR
    ),
    "brats3d_pat0003/crop96": Source(
        "brats3d_pat0003/crop96", "brats_unet3d.ts", ("image_flair", "image_t1c"), ("removed", "shifted20"),
        cut=(64, 64, 64),
    ),
    "brats3d_windows": Source(
        "brats3d_pat0003/crop96", "brats_unet3d.ts", ("image_flair", "image_t1c"), ("shifted20",),
        cut=(96, 64, 64), window=64,
    ),
    "t1_gwm_headbox": Source(
        "t1_gwm_headbox", "t1_gwm_meshnet3d.ts", ("image_norm",), ("hole_sphere", "swap_sphere"), cut=(40, 40, 40)
    ),
    "t1_brainmask_128": Source(
        "t1_brainmask_128", "deepbet_bbox.pt", ("image",), ("eroded8mm", "hole16mm"),
        cut=(128, 128, 128), intensity="percentile:0.5,99.5",
    ),
    "deepbet_mask": Source(
        "t1_brainmask_128", "deepbet:data/models/model.pt", ("image",), ("hole16mm",),
        intensity="percentile:0.5,99.5", grid=160,
    ),
}  # fmt: skip


def model_file(source: Source, data: Path) -> Path | None:
    """Where a model is, or None: packages are optional."""
    package, _, inside = source.model.rpartition(":")
    if not package:
        path = data / "models" / inside
    else:
        try:
            path = Path(str(distribution(package).locate_file(inside)))
        except PackageNotFoundError:
            return None
    return path if path.is_file() else None


def missing(data: Path | None) -> dict[str, str]:
    """The problems that cannot be had here, and why."""
    absent = {}
    for name, source in SOURCES.items():
        package = source.model.rpartition(":")[0]
        if data is not None and model_file(source, data) is None:
            absent[name] = f"pip install --no-deps {package}" if package else f"{source.model} is not among the models"
    return absent


def all_names(data: Path | None) -> list[str]:
    """Every problem that can be loaded, as name:target."""
    names = ["sample:hole", "sample:swap"]
    if data is not None:
        absent = missing(data)
        names += [f"{name}:{each}" for name, source in SOURCES.items() if name not in absent for each in source.targets]
    return names


def source_of(name: str) -> Source | None:
    """None for the sample scan."""
    return SOURCES.get(name.partition(":")[0])


def is_volume(name: str) -> bool:
    """Whether the network is a 3-D one."""
    source = source_of(name)
    return source is not None and (source.cut is not None or source.grid is not None)
