"""DICOM Segmentation (SEG) objects: read one as a mask; write masks as one, with highdicom (extra `dicom`)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage, generate_uid

from mafl_cli import __version__
from mafl_cli.errors import InputError, is_disk_full
from mafl_cli.names import public_name
from mafl_cli.scans import geometry
from mafl_cli.scans.dicom import stacks
from mafl_cli.scans.dicom.frames import LABEL_MAP_SEGMENTATION, DicomFile, DicomFrame, frames_of, group, kind, parsed
from mafl_cli.scans.dicom.kept import PATIENT_AND_STUDY, fill_empty, kept, opened
from mafl_cli.scans.dicom.lattice import LPS_TO_RAS, aligned, spanned
from mafl_cli.scans.dicom.read import DicomVolume, decoded
from mafl_cli.scans.volume import LabelMap, Volume
from mafl_cli.system.quiet import silence

INSTALL = "pip install 'mafl[dicom]'"


def is_seg(path: Path) -> bool:
    """Whether a file is a DICOM SEG."""
    return stacks.sop_class(path) in (SegmentationStorage, LABEL_MAP_SEGMENTATION)


def available() -> bool:
    """Whether highdicom is installed."""
    from importlib.util import find_spec

    return find_spec("highdicom") is not None


def read_seg(path: Path, *, like: Volume | None = None, coded: bool = False) -> LabelMap:
    """Read a SEG: label n is segment number n.

    Frames are placed one by one, by their own coordinates, for a SEG leaves out empty ones. With fractions,
    probabilities and occupancies alike, a voxel is inside a segment at half of Maximum Fractional Value and above; what
    is exactly half in two segments belongs to the one of the lower number. Pixel Padding Value of a label map is
    background.

    Args:
        like: a scan. The mask is on its grid if every frame lies voxel on voxel in it, else on one of its own:
            (columns, rows, slices), from the first to the last slice that has a frame.
        coded: segments may overlap; segment n adds 2 ** (n - 1) to a voxel.
    Raises: InputError when it is damaged, its segments overlap (or are more than 16) and may not, or its frames lie on
        no grid.
    """
    with silence():
        return _Segments.read(path).mask(like, coded=coded)


@dataclass(frozen=True, eq=False)
class _Segments:
    """The frames of a SEG, decoded. fractions: Maximum Fractional Value; None where pixels are inside or not."""

    name: str
    sha256: str
    dataset: Dataset
    frames: list[DicomFrame]
    pixels: NDArray[Any]
    """(frames, rows, columns)."""
    label_map: bool
    fractions: int | None

    @staticmethod
    def read(path: Path) -> _Segments:
        """Raises InputError."""
        name, raw = public_name(path), path.read_bytes()
        dataset = parsed(name, io.BytesIO(raw), pixels=True)
        try:
            said = str(dataset.get("SegmentationType", ""))
            # First, for it refuses what declares too much.
            pixels = decoded(name, dataset, (int(dataset.Rows), int(dataset.Columns)))
            frames = frames_of(DicomFile(name, lambda: io.BytesIO(raw)), dataset)
            if not all(frame.placed and frame.spacing is not None and (frame.spacing > 0).all() for frame in frames):
                raise InputError(
                    f"{name}: its frames have no place in the patient; export the segments as NIfTI masks."
                )
            return _Segments(
                name,
                hashlib.sha256(raw).hexdigest(),
                dataset,
                frames,
                pixels,
                said == "LABELMAP" or kind(dataset) == LABEL_MAP_SEGMENTATION,
                int(dataset.MaximumFractionalValue) if said == "FRACTIONAL" else None,
            )
        except InputError:
            raise
        except Exception as exc:  # Damage comes as nearly any class.
            raise _damaged(name, exc) from exc

    def mask(self, like: Volume | None, *, coded: bool) -> LabelMap:
        """The mask, see `read_seg`."""
        if like is not None:
            labels = self._drawn(like.shape, like.affine, like.crude if isinstance(like, DicomVolume) else 0.0, coded)
            if labels is not None:
                return LabelMap(self.name, labels, like.affine, self.sha256, self._notes(like))
        shape, affine = spanned(self.name, self.frames)
        labels = self._drawn(shape, affine, 0.0, coded)
        if labels is None:
            raise InputError(f"{self.name}: its frames lie on no common grid; export the segments as NIfTI masks.")
        return LabelMap(self.name, labels, affine, self.sha256, self._notes(like))

    def _drawn(
        self, shape: tuple[int, int, int], affine: NDArray[np.float64], crude: float, coded: bool
    ) -> NDArray[np.int64] | None:
        """Labels (I, J, K) on a grid; None when a frame does not lie on its voxels.

        crude: radians by which the directions of the grid may be off. coded: as `read_seg`.
        """
        labels = np.zeros(shape, np.int64)
        # How much of a voxel its segment has: only halves can belong to two of them.
        share = None if self.fractions is None else np.zeros(shape, np.int64)
        try:
            for frame, pixels in zip(self.frames, self.pixels, strict=True):
                at = _places(self.name, frame, shape, affine, crude)
                if at is None:
                    return None
                numbers = self._numbers(frame, pixels)
                there = numbers > 0
                spot, new = tuple(axis[there] for axis in at), numbers[there]
                if coded:
                    if new.size and new.max() > 16:
                        raise InputError(f"{self.name}: has a segment number above 16; at most 16 regions may overlap.")
                    labels[spot] |= 1 << (new - 1)
                    continue
                clash = (labels[spot] > 0) & (labels[spot] != new)
                if share is not None:
                    parts = pixels[there].astype(np.int64)
                    halves = clash & (share[spot] + parts <= (self.fractions or 0))
                    new, clash = np.where(halves, np.minimum(new, labels[spot]), new), clash & ~halves
                    share[spot] = np.maximum(share[spot], parts)
                if clash.any():
                    raise InputError(
                        f"{self.name}: its segments overlap, so it is not a label map: export them as NIfTI masks."
                    )
                labels[spot] = new
        except InputError:
            raise
        except Exception as exc:
            raise _damaged(self.name, exc) from exc
        return labels

    def _numbers(self, frame: DicomFrame, pixels: NDArray[Any]) -> NDArray[np.int64]:
        """Segment numbers (rows, columns), 0 for none."""
        if self.label_map:
            padding = self.dataset.get("PixelPaddingValue")
            outside = 0 if padding is None else int(padding)
            return np.where(pixels == outside, 0, pixels).astype(np.int64)
        number = int(group(self.dataset, frame.index, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        inside = pixels > 0 if self.fractions is None else 2 * pixels.astype(np.int64) >= max(self.fractions, 1)
        return np.where(inside, np.int64(number), 0)

    def _notes(self, like: Volume | None) -> tuple[str, ...]:
        """What the user of a mask should know."""
        notes = []
        if self.fractions is not None:
            notes.append(f"{self.name}: holds fractions; a voxel is inside a segment at one half and above.")
        drawn_in = str(self.dataset.get("FrameOfReferenceUID") or "")
        scanned_in = str(like.datasets[0].get("FrameOfReferenceUID") or "") if isinstance(like, DicomVolume) else ""
        if like is not None and drawn_in and scanned_in and drawn_in != scanned_in:
            notes.append(
                f"{self.name}: has another frame of reference than {like.name}: it was drawn on another scan, or the "
                "patient had moved; its places are taken as they stand."
            )
        return tuple(notes)

    @property
    def facts(self) -> dict[str, Any]:
        """What `mafl inspect` says of how it is stored."""
        facts: dict[str, Any] = {"segmentation": "label map" if self.label_map else "binary"}
        if self.fractions is not None:
            said = str(self.dataset.get("SegmentationFractionalType", "")).lower()
            facts["segmentation"] = "fractional" + (f", {said}" if said in ("probability", "occupancy") else "")
            facts["inside_from"] = 0.5
        if self.label_map and self.dataset.get("PixelPaddingValue") is not None:
            facts["padding_value"] = int(self.dataset.PixelPaddingValue)
        return facts


def _damaged(name: str, exc: Exception) -> InputError:
    return InputError(f"{name}: is a damaged DICOM SEG ({type(exc).__name__}); export it again.")


def _places(
    name: str, frame: DicomFrame, shape: tuple[int, int, int], affine: NDArray[np.float64], crude: float
) -> tuple[NDArray[np.int64], ...] | None:
    """(rows, columns) voxel indices i, j, k of a frame's pixels on a grid; None if they are not its voxels."""
    assert frame.position is not None
    assert frame.spacing is not None
    along_row, along_column = aligned(name, frame, affine, crude).T
    plane = np.zeros((4, 3))
    plane[:3, 0] = along_column * frame.spacing[0]
    plane[:3, 1] = along_row * frame.spacing[1]
    plane[:, 2] = *frame.position, 1
    grid = np.linalg.inv(affine) @ LPS_TO_RAS @ plane
    rows, columns = np.meshgrid(*(np.arange(size) for size in frame.size), indexing="ij")
    exact = [axis[0] * rows + axis[1] * columns + axis[2] for axis in grid[:3]]
    whole = [np.rint(axis).astype(np.int64) for axis in exact]
    for axis, near, size in zip(exact, whole, shape, strict=True):
        if np.abs(axis - near).max() > 0.05 or near.min() < 0 or near.max() >= size:
            return None
    return tuple(whole)


def describe_seg(path: Path) -> dict[str, Any]:
    """What `mafl inspect` says about a SEG. Raises: as `read_seg`."""
    with silence():
        stored = _Segments.read(path)
        mask = stored.mask(None, coded=False)
    labels, counts = np.unique(mask.labels, return_counts=True)
    return {
        "name": mask.name,
        "format": "DICOM SEG",
        **stored.facts,
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
    files = len(source.datasets)
    if files > 1 and any("NumberOfFrames" in dataset for dataset in source.datasets):
        return f"the slices lie in {files} multi-frame files, and a SEG is only written for one, or for single slices"
    # highdicom's own words for this and the above are one ValueError.
    if not all(dataset.get("FrameOfReferenceUID") for dataset in source.datasets):
        return "the scan has no Frame of Reference UID, which a SEG must refer to"
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
            if "FrameOfReferenceUID" not in made:  # Such images must have an orientation, which may be unknown.
                made.PatientOrientation = ""
            made.save_as(path)
        except Exception as exc:  # highdicom asks more of the source than many scanners write.
            if isinstance(exc, OSError) or is_disk_full(exc):
                raise
            return _missing(exc) or f"highdicom cannot make a SEG that refers to this scan ({type(exc).__name__})"
    return None


def _missing(exc: Exception) -> str | None:
    """The attribute whose absence an error is about, if it is one of the standard's."""
    tag = tag_for_keyword(exc.name or "") if isinstance(exc, AttributeError) else None
    return None if tag is None else f"the scan has no {dictionary_description(tag)}, which a SEG must refer to"


def _source(dataset: Dataset) -> Dataset:
    """An instance as a SEG may refer to it: nothing personal that the SEG would copy, and all that it must."""
    whole = opened(kept(dataset))
    fill_empty(whole, PATIENT_AND_STUDY)
    # All text was decoded on reading, and highdicom knows only some of the other character sets.
    whole.SpecificCharacterSet = "ISO_IR 192"
    return whole
