"""Cases for the page, and the page read again as its own script reads it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from math import ceil
from typing import Any

import numpy as np
from bodies import case, ras

from mafl_cli.classes import Classes
from mafl_cli.measure import agreement as metrics
from mafl_cli.measure import perturbation
from mafl_cli.show.page import PageCase
from mafl_cli.show.planes import PageVolumes
from mafl_cli.system.records import plain

MASKS = ("prediction_clean", "prediction_adversarial", "target")
CLASSES = ("background", "liver", "spleen")


def page_case(
    name: str = "a case",
    volumes: Any = None,
    affine: Any = None,
    slice_axis: int = 2,
    *,
    unit: str = "HU",
    classes: Any = CLASSES,
    reached: bool = True,
    model: str = "net.ts",
) -> Any:
    """A case whose report holds what mafl measures on these arrays."""
    volumes = case(classes=3) if volumes is None else volumes
    affine = ras() if affine is None else affine
    masks = {key: volumes[key].astype(np.int64)[np.newaxis] for key in MASKS}

    def agreement(key: Any) -> Any:
        return plain(
            metrics.agreement(
                masks[key], masks["target"], masks["prediction_clean"], Classes(tuple(classes)), spacing=(0.8, 1.1, 3.0)
            )
        )

    size = plain(
        perturbation.size(
            volumes["clean"],
            volumes["adversarial"],
            unit=1000.0,
            data_range=None,
            slice_axis=slice_axis,
            spacing=(1, 1, 1),
        )
    )
    report = {
        "case_id": name,
        "status": "ok",
        "error": None,
        "inputs": [
            {
                "channel": "CT",
                "name": f"{name}.nii.gz",
                "shape": list(volumes["clean"].shape),
                "spacing_mm": [0.8, 1.1, 3.0],
                "axcodes": "RAS",
                "dtype": "int16",
                "warnings": [f"{name}.nii.gz: a warning"],
            }
        ],
        "target": {"recipe": None, "files": [{"name": f"{name}-target.nii.gz"}]},
        "space": {"mode": "2d", "slice_axis": {"index": slice_axis, "name": "axial", "reason": ""}},
        "attack": {
            "outcome": "reached" if reached else "step_limit",
            "goal_reached": reached,
            "samples": {"kind": "slices", "total": 9, "attacked": 3, "reached": 3 if reached else 1},
            "passes": {"forward": 1510, "backward": 1450},
        },
        "metrics": {
            "clean": agreement("prediction_clean"),
            "post_write": agreement("prediction_adversarial"),
            "size": size,
            "size_per_channel": [size],
        },
    }
    return PageCase(
        report=report,
        model={
            "name": model,
            "sha256": "ab" * 32,
            "format": "torchscript",
            "dims": 2,
            "channels": ["CT"],
            "orientation": "RAS",
            "intensity": {"kind": "minmax"},
            "assumptions": ["the orientation is RAS"],
        },
        run={
            "method": "mafl",
            "seed": 0,
            "started": "2026-01-01T00:00:00+00:00",
            "settings": {"steps": 150, "goal_iou": 0.99, "goal_hit": 0.98, "eps": None},
        },
        tool={"name": "mafl", "version": "0.1.0"},
        classes=classes,
        volumes=lambda: PageVolumes(**volumes, affine=affine, slice_axis=slice_axis, unit=unit),
    )


def blocks(text: Any) -> Any:
    """The JSON of a page by the id of its element."""
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', text, re.DOTALL)
    return {name: json.loads(content) for name, content in found}


def decoded(viewer: Any, text: Any) -> Any:
    """The five planes of one slice: scans in native units, masks as labels."""
    raw = zlib.decompress(base64.b64decode(text, validate=True))
    rows, columns = viewer["rows"], viewer["columns"]
    grey = (ceil(rows / 2), ceil(columns / 2)) if viewer["halved"] else (rows, columns)
    planes, start = [], 0
    for shape in (grey, grey, (rows, columns), (rows, columns), (rows, columns)):
        size = shape[0] * shape[1]
        low, high = (np.frombuffer(raw, np.uint8, size, start + k * size).astype(np.int64) for k in (0, 1))
        planes.append(np.cumsum((low + 256 * high).reshape(shape), axis=1) & 0xFFFF)
        start += 2 * size
    assert start == len(raw)
    clean, change, before, after, target = planes
    change = (change + 0x8000 & 0xFFFF) - 0x8000
    clean = viewer["offset"] + clean * viewer["step"]
    return {
        "clean": clean,
        "adversarial": clean + change * viewer["difference_step"],
        "prediction_clean": before,
        "prediction_adversarial": (before + after) & 0xFFFF,
        "target": (before + target) & 0xFFFF,
    }
