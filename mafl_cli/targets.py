"""The target: the mask that the attacker wants the model to draw, on the grid of the image.

A target is a label map with the model's own class numbers. It must already lie on the image's grid: moving
it there would change which voxels are asked for, and that choice belongs to the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mafl_cli.errors import InputError
from mafl_cli.geometry import require_same_space
from mafl_cli.volume import Volume, read_labels


@dataclass(frozen=True, eq=False)
class Target:
    """The mask to reach."""

    labels: NDArray[np.int64]
    """(I, J, K), class numbers in [0, num_classes); all 0 asks for an empty prediction."""
    name: str
    """File name without its folder."""
    sha256: str
    warnings: tuple[str, ...] = ()


def read_target(path: Path, like: Volume, num_classes: int, class_names: Sequence[str]) -> Target:
    """Read a mask file as the target for one image and one model.

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
    return Target(mask.labels, mask.name, mask.sha256, mask.warnings)


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
