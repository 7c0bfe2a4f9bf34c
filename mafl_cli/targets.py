"""The target: the mask that the attacker wants the model to draw, on the grid of the image.

A target is a label map with the model's own class numbers. It must already lie on the image's grid: moving
it there would change which voxels are asked for, and that choice belongs to the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.errors import InputError, UsageError
from mafl_cli.geometry import require_same_space
from mafl_cli.volume import Volume, read_labels


@dataclass(frozen=True, eq=False)
class Target:
    """The mask to reach."""

    labels: NDArray[np.int64]
    """(I, J, K), class numbers in [0, num_classes); all 0 asks for an empty prediction. (R, I, J, K), 0 or 1, for
    regions that may overlap."""
    files: tuple[tuple[str, str], ...]
    """Name without its folder and SHA-256 of each file."""
    warnings: tuple[str, ...] = ()


def read_regions(paths: Sequence[Path], like: Volume, region_names: Sequence[str]) -> Target:
    """Read the target for a model whose regions may overlap.

    Either one file for each region, in the model's order, everything that is not 0 being inside; or one file of bit
    codes: region r adds 2 ** r to a voxel, so that 5 is regions 0 and 2.

    Raises: as `read_target`; UsageError for another number of files; InputError for codes of unknown regions.
    """
    count = len(region_names)
    if len(paths) not in (1, count):
        names = ", ".join(region_names)
        raise UsageError(f"--target: the model draws {count} regions ({names}): give {count} files, or one bit-coded.")
    masks = [read_labels(path) for path in paths]
    for mask in masks:
        require_same_space(like.name, like.shape, like.affine, mask.name, mask.labels.shape, mask.affine)
    warnings = [warning for mask in masks for warning in mask.warnings]
    if len(paths) == 1 and count > 1:
        codes = masks[0].labels
        if codes.max() >= 2**count:
            raise InputError(
                f"{masks[0].name}: has the code {codes.max()}, {count} regions reach up to {2**count - 1}; "
                "region r adds 2 to the power of r to a voxel: 1, 2, 4, ..."
            )
        labels = decoded(codes, count)
        found = ", ".join(f"{name} {int(part.sum())}" for name, part in zip(region_names, labels, strict=True))
        warnings.append(f"{masks[0].name}: read as bit codes; voxels in {found}")
    else:
        labels = np.stack([(mask.labels > 0).astype(np.int64) for mask in masks])
    return Target(labels, tuple((mask.name, mask.sha256) for mask in masks), tuple(warnings))


def decoded(codes: NDArray[np.integer[Any]], regions: int) -> NDArray[np.int64]:
    """Bit codes (I, J, K) as (R, I, J, K), 0 or 1."""
    return np.stack([(codes.astype(np.int64) >> region) & 1 for region in range(regions)])


def coded(regions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """(R, I, J, K), 0 or 1, as bit codes (I, J, K)."""
    total = np.zeros(regions.shape[1:], np.int64)
    for index, region in enumerate(regions):
        total += region.astype(np.int64) << index
    return total


def code_names(region_names: Sequence[str]) -> tuple[str, ...]:
    """What each bit code stands for, as a legend wants it: "background", "a", "b", "a + b", ..."""
    names = ["background"]
    for code in range(1, 2 ** len(region_names)):
        names.append(" + ".join(name for index, name in enumerate(region_names) if code >> index & 1))
    return tuple(names)


def read_target(path: Path, like: Volume, num_classes: int, class_names: Sequence[str]) -> Target:
    """Read a mask file as the target for one image and one model with exclusive classes.

    Args:
        like: the image; the mask must lie on its grid.
        num_classes: classes of the model, background included.
        class_names: one for each class; empty when the model gives none.
    Raises: GeometryError when the grids differ; InputError when the file is no label map (see `read_labels`)
        or has labels the model cannot draw.
    """
    mask = read_labels(path)
    require_same_space(like.name, like.shape, like.affine, mask.name, mask.labels.shape, mask.affine)
    _require_known(mask.name, mask.labels, num_classes, class_names)
    return Target(mask.labels, ((mask.name, mask.sha256),), mask.warnings)


def _require_known(name: str, labels: NDArray[np.int64], num_classes: int, class_names: Sequence[str]) -> None:
    found, counts = np.unique(labels, return_counts=True)
    unknown = [(int(label), int(n)) for label, n in zip(found, counts, strict=True) if label >= num_classes]
    if not unknown:
        return
    shown = ", ".join(f"{label} ({n} voxels)" for label, n in unknown[:8])
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    classes = ", ".join(f"{n} {class_name}" for n, class_name in enumerate(class_names))
    advice = "give a mask with the model's class numbers"
    if [label for label, _ in unknown] == [255] and len(found) <= 2:
        advice = "a 0/255 mask must be stored as 0 and the class number, so replace 255 by 1 or another class"
    raise InputError(
        f"{name}: the model cannot draw label {shown}{more}; "
        f"its classes are {classes or f'0 to {num_classes - 1}'}: {advice}."
    )
