"""DICOM Segmentation (SEG) objects: read one as a mask, write masks as one, with highdicom (extra `dicom`)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage, generate_uid

from mafl_cli import __version__, codestreams, geometry, stacks
from mafl_cli.derived import PATIENT_AND_STUDY, fill_empty, impersonal
from mafl_cli.dicom import DicomVolume
from mafl_cli.errors import InputError
from mafl_cli.names import public_name
from mafl_cli.quiet import silence
from mafl_cli.volume import LabelMap, Volume

INSTALL = "pip install 'mafl[dicom]'"


def is_seg(path: Path) -> bool:
    """Whether a file is a DICOM SEG."""
    return stacks.sop_class(path) in (SegmentationStorage, stacks.LABEL_MAP_SEGMENTATION)


def available() -> bool:
    """Whether highdicom is installed."""
    from importlib.util import find_spec

    return find_spec("highdicom") is not None


def read_seg(path: Path, *, coded: bool = False) -> LabelMap:
    """Read a SEG: label n is segment number n. Only the slices between its first and last frame are there.

    coded: segments may overlap; segment n adds 2 ** (n - 1) to a voxel.
    Raises: InputError when it is damaged, its segments overlap (or are more than 16) and may not, or highdicom is not
        installed.
    """
    name = public_name(path)
    if not available():
        raise InputError(f"{name}: reading DICOM SEG needs highdicom: {INSTALL}.")
    import highdicom

    raw = path.read_bytes()
    with silence():
        try:
            whole = highdicom.seg.segread(path)
            codestreams.require_pixels(name, whole)
            numbers = [int(number) for number in whole.segment_numbers]
            found = whole.get_volume(combine_segments=not coded, relabel=False)
        except InputError:
            raise
        except Exception as exc:  # Overlaps, irregular frames and damage come as several classes.
            overlap = "overlap" in str(exc).lower()
            why = "its segments overlap, so it is no label map" if overlap else "it cannot be read as one volume"
            raise InputError(f"{name}: {why} ({type(exc).__name__}); export the segments as NIfTI masks.") from exc
        if coded and max(numbers) > 16:
            raise InputError(f"{name}: has segment number {max(numbers)}; at most 16 regions may overlap.")
        labels = np.asarray(found.array).astype(np.int64)
        if coded:
            labels = (labels > 0) @ (1 << (np.array(numbers) - 1))
        affine = stacks.LPS_TO_RAS @ np.asarray(found.affine, dtype=np.float64)
    return LabelMap(name, labels, affine, hashlib.sha256(raw).hexdigest(), ())


def place_frames(path: Path, like: Volume, *, coded: bool = False) -> LabelMap | None:
    """A SEG whose every frame lies on a slice of `like`, voxel on voxel; None when one does not.

    Frames are placed one by one, by their own coordinates: a SEG leaves out empty frames, and need not say how far
    apart the others are. coded: as `read_seg`. Raises: InputError when it is damaged, or segments overlap and may not.
    """
    name, raw = public_name(path), path.read_bytes()
    with silence():
        dataset = stacks.parsed(name, io.BytesIO(raw), pixels=True)
        try:
            codestreams.require_pixels(name, dataset)
            pixels = np.asarray(dataset.pixel_array).reshape(-1, int(dataset.Rows), int(dataset.Columns))
            fractions = dataset.get("SegmentationType") == "FRACTIONAL"
            if fractions:
                pixels = pixels >= 0.5 * int(dataset.MaximumFractionalValue)
            labels = np.zeros(like.shape, np.int64)
            for index, frame in enumerate(pixels):
                at = _places(dataset, index, frame.shape, like)
                if at is None:
                    return None
                drawn = frame.astype(np.int64)
                number = stacks.group(dataset, index, "SegmentIdentificationSequence").get("ReferencedSegmentNumber")
                if dataset.get("SegmentationType") != "LABELMAP":
                    drawn = (drawn > 0) * int(number)
                there = drawn > 0
                spot = tuple(axis[there] for axis in at)
                before, new = labels[spot], drawn[there]
                if coded:
                    new = before | (1 << (new - 1))
                elif ((before > 0) & (before != new)).any():
                    raise InputError(
                        f"{name}: its segments overlap, so it is no label map; export them as NIfTI masks."
                    )
                labels[spot] = new
        except InputError:
            raise
        except Exception as exc:  # Damage comes as nearly any class.
            raise InputError(f"{name}: is a damaged DICOM SEG ({type(exc).__name__}); export it again.") from exc
    if coded and labels.max() >= 2**16:
        raise InputError(f"{name}: has a segment number above 16; at most 16 regions may overlap.")
    return LabelMap(name, labels, like.affine, hashlib.sha256(raw).hexdigest(), ())


def _places(dataset: Dataset, index: int, shape: tuple[int, ...], like: Volume) -> tuple[NDArray[np.int64], ...] | None:
    """(rows, columns) voxel indices i, j, k of a frame's pixels in `like`; None if they are not its voxels."""
    position = stacks.group(dataset, index, "PlanePositionSequence").ImagePositionPatient
    turn = stacks.group(dataset, index, "PlaneOrientationSequence").ImageOrientationPatient
    spacing = stacks.group(dataset, index, "PixelMeasuresSequence").PixelSpacing
    plane = np.zeros((4, 3))
    plane[:3, 0] = np.array(turn[3:], dtype=np.float64) * float(spacing[0])
    plane[:3, 1] = np.array(turn[:3], dtype=np.float64) * float(spacing[1])
    plane[:, 2] = *(float(part) for part in position), 1
    grid = np.linalg.inv(like.affine) @ stacks.LPS_TO_RAS @ plane
    rows, columns = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    exact = [axis[0] * rows + axis[1] * columns + axis[2] for axis in grid[:3]]
    whole = [np.rint(axis).astype(np.int64) for axis in exact]
    for axis, near, size in zip(exact, whole, like.shape, strict=True):
        if np.abs(axis - near).max() > 0.05 or near.min() < 0 or near.max() >= size:
            return None
    return tuple(whole)


def describe_seg(path: Path) -> dict[str, Any]:
    """What `mafl inspect` says about a SEG. Raises: as `read_seg`."""
    mask = read_seg(path)
    labels, counts = np.unique(mask.labels, return_counts=True)
    return {
        "name": mask.name,
        "format": "DICOM SEG",
        "sha256": mask.sha256,
        "shape": list(mask.labels.shape),
        "spacing_mm": list(geometry.spacing(mask.affine)),
        "axcodes": geometry.axcodes(mask.affine),
        "labels": {int(label): int(count) for label, count in zip(labels, counts, strict=True)},
    }


def write_seg(
    path: Path,
    source: DicomVolume,
    masks: NDArray[Any],
    names: Sequence[str],
    *,
    description: str,
) -> str | None:
    """Write masks on the grid of `source` as one SEG that refers to its instances; returns why it could not, or None.

    Args:
        masks: bool (R, I, J, K), one segment each; at least one voxel set in all.
        names: of the segments; "" for an empty one.
    """
    if not available():
        return f"highdicom is not installed: {INSTALL}"
    if not masks.any():
        return "there is no voxel to draw"
    import highdicom as hd

    order = np.array([k for _, _, k in sorted((place, frame, k) for k, (place, frame) in enumerate(source.frames))])
    pixels = np.moveaxis(masks[..., order], (0, 1, 2, 3), (3, 2, 1, 0)).astype(np.uint8)
    algorithm = hd.AlgorithmIdentificationSequence(
        name="mafl", family=codes.cid7162.ArtificialIntelligence, version=__version__
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label.replace("\\", "/")[:64] or f"segment {number}",
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(names, start=1)
    ]
    with silence():
        try:
            made = hd.seg.Segmentation(
                source_images=[_source(dataset) for dataset in source.datasets],
                pixel_array=pixels,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=generate_uid(prefix=None),
                series_number=9100,
                sop_instance_uid=generate_uid(prefix=None),
                instance_number=1,
                manufacturer="mafl",
                manufacturer_model_name="mafl",
                software_versions=__version__,
                device_serial_number="none",
                series_description=description,
                content_description="Not for clinical use",
            )
            made.save_as(path)
        except OSError:
            raise
        except Exception as exc:  # highdicom asks more of the source than many scanners write.
            return f"the source lacks what a SEG must refer to ({type(exc).__name__})"
    return None


def _source(dataset: Dataset) -> Dataset:
    """An instance as a SEG may refer to it: nothing personal that the SEG would copy, and all that it must."""
    whole = impersonal(dataset)
    fill_empty(whole, PATIENT_AND_STUDY)
    # All text was decoded on reading, and highdicom knows only some of the other character sets.
    whole.SpecificCharacterSet = "ISO_IR 192"
    return whole
