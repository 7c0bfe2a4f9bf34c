"""Cases for the page, and the page read again as its own script reads it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import asdict
from math import ceil
from typing import Any

import numpy as np
from bodies import case, ras
from seen import visibility

from mafl_cli.classes import Classes
from mafl_cli.codes import Outcome
from mafl_cli.config import AttackConfig
from mafl_cli.measure import agreement as metrics
from mafl_cli.measure import perturbation
from mafl_cli.measure.consequences import consequences
from mafl_cli.measure.records import Agreement, LocalOptimum
from mafl_cli.measure.value import defined
from mafl_cli.results import report
from mafl_cli.results.envelope import Tool
from mafl_cli.show.page import PageCase
from mafl_cli.show.planes import PageVolumes

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
) -> PageCase:
    """A case whose report holds what mafl measures on these arrays."""
    volumes = case(classes=3) if volumes is None else volumes
    affine = ras() if affine is None else affine
    masks = {key: volumes[key].astype(np.int64)[np.newaxis] for key in MASKS}

    def agreement(key: str) -> Agreement:
        return metrics.agreement(
            masks[key], masks["target"], masks["prediction_clean"], Classes(tuple(classes)), spacing=(0.8, 1.1, 3.0)
        )

    size = perturbation.size(
        volumes["clean"],
        volumes["adversarial"],
        unit=1000.0,
        data_range=None,
        slice_axis=slice_axis,
        spacing=(1, 1, 1),
    )
    post = agreement("prediction_adversarial")
    found = report.CaseRecord(
        case_id=name,
        status="ok",
        error=None,
        inputs=(
            report.Input(
                channel="CT", name=f"{name}.nii.gz", format="nifti", sha256="ab" * 32, shape=volumes["clean"].shape,
                spacing_mm=(0.8, 1.1, 3.0), axcodes="RAS", dtype="int16", warnings=(f"{name}.nii.gz: a warning",),
            ),
        ),
        target=report.TargetRecord(
            recipe=None,
            files=(report.MaskFileRecord(name=f"{name}-target.nii.gz", sha256="ab" * 32, resampled=None),),
            voxels={},
        ),
        space=report.Space(
            mode="2d",
            slice_axis=report.SliceAxisRecord(index=slice_axis, name="axial", reason=""),
            network_shape=volumes["clean"].shape[:2],
            native_units_per_model_unit=(1000.0,),
            data_box_native=((0.0, 1.0),),
        ),
        bounds=report.BoundsRecord(
            eps_native=None, eps_model=None, norm=None, within=None, body_voxels=None, allowed_voxels=None,
            padding_voxels=(0,),
        ),
        attack=report.Attack(
            outcome=Outcome.REACHED if reached else Outcome.STEP_LIMIT,
            goal_reached=reached,
            samples=report.SamplesRecord(
                kind="slices", total=9, attacked=3, reached=3 if reached else 1, not_reached=0 if reached else 2,
                skipped_constant=0,
            ),
            passes=report.Passes(forward=1510, backward=1450),
            local_optimum=LocalOptimum(excess=defined(0.02), kkt_cosine=defined(0.98), excess_per_sample={"4": 0.02}),
        ),
        metrics=report.Metrics(
            clean=agreement("prediction_clean"),
            in_memory=report.InMemory(target_iou=post.target_iou, hit_rate=post.hit_rate, accuracy=post.accuracy),
            post_write=post,
            consequences=consequences(
                masks["prediction_clean"],
                masks["prediction_adversarial"],
                Classes(tuple(classes)),
                spacing=(0.8, 1.1, 3.0),
            ),
            size=size,
            size_per_channel=(size,),
            visibility=visibility(volumes["clean"], volumes["adversarial"], channel="CT", axis=slice_axis),
        ),
        quantisation=(),
        timing_s={},
        memory=report.Memory(peak_resident_bytes=None, peak_device_bytes=None),
        files=(),
    )  # fmt: skip
    return PageCase(
        case=found,
        model=report.Model(
            name=model, sha256="ab" * 32, format="torchscript", dims=2, channels=("CT",), orientation="RAS",
            classes=tuple(classes), overlapping=False, activation="softmax",
            intensity=report.IntensityRecord(kind="minmax"), divisor=1, taps=(), card=None,
            assumptions=("the orientation is RAS",),
        ),
        run=report.Run(
            command="attack",
            started="2026-01-01T00:00:00+00:00",
            settings=report.Settings(
                **asdict(AttackConfig()), mode="2d", slice_axis="auto", save_as="float32", device="auto",
                precision="float32", spacing=None, roi=None, overlap=None, blend=None, attack_channels=None, tap=None,
                guide=None, allow_gaps=False, body_only=False, resample_target=False, label_map=None,
            ),
            config_hash="sha256:" + "ab" * 32,
        ),
        tool=Tool(name="mafl", version="0.1.0"),
        classes=classes,
        volumes=lambda: PageVolumes(**volumes, affine=affine, slice_axis=slice_axis, unit=unit),
    )  # fmt: skip


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
