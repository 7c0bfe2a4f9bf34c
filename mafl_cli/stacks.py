"""Which DICOM frames make one volume, and where each of them lies.

A *stack* is what can be one volume: frames of one series with equal size, orientation, spacing and pixel format. A
stack whose slices do not follow each other at one distance is refused: programs that go on with the mean distance
(most of them only warn) place every slice wrongly.

Words. *instance*: a DICOM file, named in messages by its Instance Number, for file names are often UIDs.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    ParametricMapStorage,
    RTDoseStorage,
    SegmentationStorage,
)

from mafl_cli import codestreams, sizes, terms
from mafl_cli.errors import GeometryError, InputError
from mafl_cli.names import public_name
from mafl_cli.quiet import silence

# Share of the distance between slices (or of the pixel spacing) by which a slice may be off its place: positions
# are written with few digits, and a twentieth of a voxel gives no voxel another label.
_OFF = 0.05

# Series of which an error lists the details.
_LISTED = 20

# Modalities whose numbers mean something by themselves, and whose images are slices of something.
PHYSICAL = ("CT", "MR", "NM", "PT")

# Label Map Segmentation Storage, the newer kind of SEG.
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"

# Objects with pixels that are no scans, and what to do with them.
_NO_SCANS: dict[str, str] = {
    LABEL_MAP_SEGMENTATION: "a segmentation (DICOM SEG), which can be a --target, not a scan",
    SegmentationStorage: "a segmentation (DICOM SEG), which can be a --target, not a scan",
    RTDoseStorage: "an RT Dose, not a scan",
    ParametricMapStorage: "a Parametric Map, whose numbers are no scan's: convert it to NIfTI if it is one",
    MediaStorageDirectoryStorage: "a DICOMDIR whose folder holds no scan",
}

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Source:
    """One file in a folder or archive."""

    name: str
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, eq=False)
class Frame:
    """What must be known of one slice before its pixels are read. Lengths in mm, DICOM's LPS axes."""

    source: Source
    series: str
    order: int
    instance: str
    """"instance 12", or "frame 3": how to name it to the user."""
    index: int
    """In its file."""
    modality: str
    localizer: bool
    pixels: tuple[Any, ...]
    """Rows, columns, bits allocated and stored, sign, photometric interpretation."""
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    """Six direction cosines: along a row, along a column."""
    spacing: NDArray[np.float64] | None
    """Between rows, between columns."""
    thickness: float | None
    notes: tuple[str, ...]

    def fits(self, other: Frame) -> bool:
        """Whether both can be slices of one stack, wherever they are."""
        return (
            self.series == other.series
            and self.pixels == other.pixels
            and _close(self.orientation, other.orientation, 1e-3)
            and _close(self.spacing, other.spacing, 1e-3)
        )


Stack = list[Frame]


def is_dicom(path: Path) -> bool:
    """Whether `path` is for this module: a folder, a zip archive, or a DICOM file; its contents decide."""
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            head = _head(file)
    except OSError:
        return False
    return head.startswith(b"PK\x03\x04") or _is_dicom_head(head)


def is_directory_file(path: Path) -> bool:
    """Whether a file is a DICOMDIR."""
    return sop_class(path) == MediaStorageDirectoryStorage


def sop_class(path: Path) -> str:
    """SOP Class UID of a single DICOM file; "" when it has none or is no such file."""
    if not path.is_file() or not is_dicom(path):
        return ""
    try:
        with silence(), path.open("rb") as stream:
            return kind(parsed(public_name(path), stream, pixels=False))
    except InputError:
        return ""


# --- which slices belong together ---------------------------------------------------------------------------------


def find(name: str, path: Path) -> list[Stack]:
    """All stacks in `path`, by series number. Raises InputError when there is none."""
    frames: list[Frame] = []
    others: dict[str, int] = {}
    if is_directory_file(path):
        path = path.parent
    folder = path.is_dir() or _is_zip(path)
    for source in _sources(name, path):
        with source.open() as stream:
            if folder and not _is_dicom_head(_head(stream)):
                others["no DICOM"] = others.get("no DICOM", 0) + 1
                continue
            # Only as far as the pixels: a series is gone through to find its slices before any is decoded.
            header = parsed(source.name, stream, pixels=False)
        what = _why_no_scan(header)
        if what is None:
            frames += _frames(source, header)
        elif folder:
            others[what] = others.get(what, 0) + 1
        else:
            raise InputError(f"{name} is {what}.")
    if not frames:
        there = "; ".join(f"{count} x {what}" for what, count in others.items()) or "no files"
        raise InputError(f"{name} holds no DICOM image ({there}): give the folder of a series.")
    stacks: list[Stack] = []
    for frame in frames:
        for stack in stacks:
            if frame.fits(stack[0]):
                stack.append(frame)
                break
        else:
            stacks.append([frame])
    return sorted(stacks, key=lambda stack: (stack[0].order, stack[0].series))


def _sources(name: str, path: Path) -> Iterator[Source]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden and file.name != "DICOMDIR":
                yield Source(public_name(file), lambda file=file: _opened(file))  # type: ignore[misc]
    elif _is_zip(path):
        yield from _zipped(name, path)
    else:
        yield Source(name, lambda: _opened(path))


def _zipped(name: str, path: Path) -> Iterator[Source]:
    """The files of an archive. They are read in place: nothing is unpacked to the disk."""
    try:
        archive = zipfile.ZipFile(path)
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except Exception as exc:  # Damage comes as nearly any class.
        raise InputError(f"{name}: is a damaged zip archive; copy or export it again.") from exc
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename[:2]:
            raise InputError(f"{name}: the archive has entries that point outside of it; do not trust it.")
        if entry.flag_bits & 1:
            raise InputError(f"{name}: the archive is encrypted; unpack it first.")
        if not sizes.can_unpack(entry):
            raise InputError(f"{name}: the archive is packed by a rare method; unpack it, and give the folder.")
    total = sum(entry.file_size for entry in entries)
    sizes.require(name, "unpacks to {}", total, instead=", or unpack it and give the folder of one series")

    def unpacked(entry: zipfile.ZipInfo) -> BinaryIO:
        try:
            return io.BytesIO(sizes.unpacked(archive, entry))
        except Exception as exc:
            raise InputError(f"{name}: an entry of the archive is damaged; copy or export it again.") from exc

    for entry in sorted(entries, key=lambda entry: entry.filename):
        file = PurePosixPath(entry.filename)
        if not file.name.startswith(".") and "__MACOSX" not in file.parts and file.name != "DICOMDIR":
            yield Source(public_name(Path(file.name)), lambda entry=entry: unpacked(entry))  # type: ignore[misc]


def choose(name: str, stacks: list[Stack], series: str | None) -> Stack:
    if series is None:
        candidates = stacks
    elif series.isdecimal():
        if not 1 <= int(series) <= len(stacks):
            raise InputError(f"{name}: there is no series {series}. {_listing(stacks)}")
        candidates = [stacks[int(series) - 1]]
    else:
        candidates = [stack for stack in stacks if stack[0].series == series]
        if not candidates:
            raise InputError(f"{name}: there is no series with this UID. {_listing(stacks)}")
    if len(candidates) == 1:
        return candidates[0]
    if len({stack[0].series for stack in candidates}) > 1:
        raise InputError(f"{name} holds several series: choose one with --series NUMBER. {_listing(stacks)}")
    most = max(candidates, key=len)
    odd = [frame for stack in candidates if stack is not most for frame in stack]
    what = _odd_ones_out(most[0], odd)
    raise GeometryError(
        f"{name}: {_named(odd)} of the series {'differs' if len(odd) == 1 else 'differ'} from the other {len(most)} in "
        f"{what}: take one stack with --series NUMBER. {_listing(stacks)}"
    )


def _odd_ones_out(usual: Frame, odd: Stack) -> str:
    kinds = []
    if any(not _close(frame.orientation, usual.orientation, 1e-3) for frame in odd):
        kinds.append("orientation (a localizer?)" if any(frame.localizer for frame in odd) else "orientation")
    if any(frame.pixels[:2] != usual.pixels[:2] for frame in odd):
        kinds.append("size")
    if any(not _close(frame.spacing, usual.spacing, 1e-3) for frame in odd):
        kinds.append("pixel spacing")
    if any(frame.pixels[2:] != usual.pixels[2:] for frame in odd):
        kinds.append("pixel format")
    return " and ".join(kinds)


def _listing(stacks: Sequence[Stack]) -> str:
    """Number, modality, count and size: nothing that names a patient."""
    lines = []
    for number, stack in enumerate(stacks[:_LISTED], start=1):
        facts = describe(number, stack)
        lines.append(f"{number}: {facts['modality']}, {facts['frames']} of {facts['columns']} x {facts['rows']}")
    more = f"; {len(stacks) - _LISTED} more, see `mafl inspect`" if len(stacks) > _LISTED else ""
    return "There are " + "; ".join(lines) + more + "."


def describe(number: int, stack: Stack) -> dict[str, Any]:
    rows, columns = stack[0].pixels[:2]
    return {
        "series": number,
        "modality": stack[0].modality + (" localizer" if stack[0].localizer else ""),
        "frames": len(stack),
        "columns": columns,
        "rows": rows,
    }


# --- the grid -----------------------------------------------------------------------------------------------------


def ordered(name: str, stack: Stack, allow_gaps: bool) -> tuple[Stack, NDArray[np.float64], tuple[str, ...]]:
    """Slices along the normal, the affine (voxel -> mm RAS+), and what is odd about them."""
    first = stack[0]
    notes = list(dict.fromkeys(note for frame in stack for note in frame.notes))
    if first.orientation is None or any(frame.position is None for frame in stack):
        if len(stack) > 1:
            without = [frame for frame in stack if frame.position is None or frame.orientation is None]
            raise GeometryError(
                f"{name}: {_named(without)} {'has' if len(without) == 1 else 'have'} no position or orientation in the "
                "patient, so the slices make no volume (a film, or a scan without geometry): give one frame, or NIfTI."
            )
        notes.append(f"{name}: has no position in the patient: left and right are a guess.")
        position, orientation = np.zeros(3), np.array([1.0, 0, 0, 0, 1, 0])
    else:
        position, orientation = first.position, first.orientation  # type: ignore[assignment]
    spacing = first.spacing
    if spacing is None:
        notes.append(f"{name}: has no pixel spacing; 1 mm is assumed.")
        spacing = np.ones(2)
    along_row, along_column = orientation[:3], orientation[3:]
    normal = np.cross(along_row, along_column)
    if not np.linalg.norm(normal) > 0.5 or not (spacing > 0).all():
        raise GeometryError(f"{name}: the orientation or pixel spacing in the header is unusable; export it again.")
    step = normal * (first.thickness or 1.0)
    if len(stack) > 1:
        stack = sorted(stack, key=lambda frame: float(_position(frame) @ normal))
        position = _position(stack[0])
        step = (_position(stack[-1]) - position) / (len(stack) - 1)
        notes += _require_even(name, stack, normal, float(spacing.min()), allow_gaps)
        tilt = math.degrees(math.acos(min(1.0, float(step @ normal) / float(np.linalg.norm(step)))))
        if tilt > 0.5:
            notes.append(f"{name}: the slices are sheared by {tilt:.1f} degrees (gantry tilt); the affine keeps it.")
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[1]
    affine[:3, 1] = along_column * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = position
    return stack, LPS_TO_RAS @ affine, tuple(notes)


def _require_even(name: str, stack: Stack, normal: NDArray[np.float64], pixel: float, allow_gaps: bool) -> list[str]:
    """Raise GeometryError unless slices, sorted, follow each other on a line at one distance."""
    places = np.stack([_position(frame) for frame in stack])
    depth = places @ normal
    steps = np.diff(depth)
    usual = float(np.median(steps))
    twins = np.nonzero(steps <= max(_OFF * usual, 1e-3))[0]
    if len(twins):
        pairs = [f"{stack[n].instance} and {stack[n + 1].instance}" for n in twins[:4]]
        more = f" and {len(twins) - 4} more pairs" if len(twins) > 4 else ""
        raise GeometryError(
            f"{name}: {'; '.join(pairs)}{more} lie at the same place: the series holds copies, or several time points, "
            "echoes or reconstructions: keep one of each."
        )
    along = (depth - depth[0]) / (depth[-1] - depth[0])
    aside = np.linalg.norm(places - places[0] - along[:, None] * (places[-1] - places[0]), axis=1)
    if aside.max() > max(_OFF * pixel, 1e-2):
        wrong = [stack[n] for n in np.nonzero(aside > max(_OFF * pixel, 1e-2))[0]]
        raise GeometryError(
            f"{name}: {_named(wrong)} {'lies' if len(wrong) == 1 else 'lie'} up to {aside.max():.3g} mm beside the "
            "line of the other slices: they make no volume."
        )
    off = np.abs(steps - usual)
    gaps = np.nonzero(off > max(_OFF * usual, 1e-2))[0]
    if not len(gaps):
        return []
    shown = [f"{steps[n]:.4g} mm between {stack[n].instance} and {stack[n + 1].instance}" for n in gaps[:4]] + (
        [f"{len(gaps) - 4} more"] if len(gaps) > 4 else []
    )
    what = f"{name}: slices are {usual:.4g} mm apart, but {', '.join(shown)}"
    if not allow_gaps:
        raise GeometryError(f"{what}: are slices missing? Complete the series, or go on with --allow-gaps.")
    return [f"{what}: taken as evenly spaced; lengths in mm and places are off."]


def _position(frame: Frame) -> NDArray[np.float64]:
    assert frame.position is not None
    return frame.position


def siblings(name: str, path: Path, stack: Stack) -> tuple[str, ...]:
    """A word for who gives one slice of a series and may mean all."""
    if not path.is_file() or len(stack) > 1 or stack[0].modality not in PHYSICAL:
        return ()
    others = sum(1 for file in path.parent.iterdir() if file != path and file.is_file() and is_dicom(file))
    if not others:
        return ()
    return (
        f"{name}: one slice, attacked alone; there are {others} more DICOM files beside it: give the folder for all.",
    )


# --- one file -----------------------------------------------------------------------------------------------------


def parsed(name: str, stream: BinaryIO, *, pixels: bool) -> FileDataset:
    """One file, from a stream at its beginning. Raises InputError when it is no DICOM or damaged."""
    head = _head(stream)
    if not head:
        raise InputError(f"{name} is empty (0 bytes): copy or export the file again.")
    try:
        codestreams.require_inflatable(name, stream)
        # A header without the preamble is against the standard, and common.
        dataset = pydicom.dcmread(stream, stop_before_pixels=not pixels, force=_looks_raw(head))
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = (
                ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            )
        for _ in dataset:  # Elements are only decoded when touched: better here than later.
            pass
    except pydicom.errors.InvalidDicomError:
        raise InputError(f"{name} is not a DICOM file: give a scan in NIfTI or DICOM.") from None
    except InputError:
        raise
    except Exception as exc:  # A damaged header makes pydicom raise nearly any class, with values in its message.
        raise InputError(f"{name}: is a damaged DICOM file ({type(exc).__name__}); export it again.") from exc
    return dataset


def kind(header: Dataset) -> str:
    """SOP Class UID, "" if the file says none."""
    return str(header.get("SOPClassUID") or getattr(header, "file_meta", Dataset()).get("MediaStorageSOPClassUID", ""))


def _why_no_scan(header: FileDataset) -> str | None:
    """What an object is, as a noun phrase, if it is no scan."""
    what = kind(header)
    if what in _NO_SCANS:
        return _NO_SCANS[what]
    if not what:
        return "a DICOM object of unknown kind, not a scan"
    if not header.get("Rows") or not header.get("Columns"):
        return f"{terms.uid_name(what, 'a DICOM object of unknown kind')} without pixels, not a scan"
    samples, colours = header.get("SamplesPerPixel", 1), str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if samples != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
        known = terms.shown(colours, terms.PHOTOMETRIC_INTERPRETATIONS)
        if known == terms.NO_TERM:
            return f"an image whose Photometric Interpretation is {known}; export it again"
        return f"a colour image ({known}): convert it to one plain number per pixel"
    return None


def _frames(source: Source, header: Dataset) -> list[Frame]:
    try:
        number = header.get("InstanceNumber")
        count = int(header.get("NumberOfFrames") or 1)
        # Any number can stand in a header: each frame must have a place of its own.
        if count != 1 and count != len(header.get("PerFrameFunctionalGroupsSequence") or ()):
            raise InputError(
                f"{source.name}: says it has {count} frames, but not where each lies (a film, or damaged); export "
                "single slices, or use NIfTI."
            )
        instance = f"instance {int(number)}" if number is not None else f"the file {source.name}"
        return [
            _frame(source, header, index, f"frame {index + 1}" if count > 1 else instance) for index in range(count)
        ]
    except InputError:
        raise
    except Exception as exc:  # Values of the wrong kind or number, in any of a dozen attributes.
        raise InputError(
            f"{source.name}: its DICOM header is damaged ({type(exc).__name__}); export it again."
        ) from exc


def _frame(source: Source, header: Dataset, index: int, instance: str) -> Frame:
    kinds = [str(part).upper() for part in header.get("ImageType") or ()]
    measures = group(header, index, "PixelMeasuresSequence")
    spacing, notes = _vector(measures.get("PixelSpacing"), 2), []
    if spacing is None:
        spacing = _vector(header.get("ImagerPixelSpacing"), 2)
        if spacing is not None:
            notes.append(f"{source.name}: pixel spacing is that of the detector, not of the patient.")
    thickness = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness")
    return Frame(
        source=source,
        series=str(header.get("SeriesInstanceUID", "")),
        order=int(header.get("SeriesNumber") or 0),
        instance=instance,
        index=index,
        modality=terms.shown(header.get("Modality"), terms.MODALITIES, "unknown modality"),
        localizer="LOCALIZER" in kinds,
        pixels=(
            int(header.Rows),
            int(header.Columns),
            int(header.get("BitsAllocated", 16)),
            int(header.get("BitsStored", header.get("BitsAllocated", 16))),
            int(header.get("PixelRepresentation", 0)),
            str(header.get("PhotometricInterpretation", "MONOCHROME2")),
        ),
        position=_vector(group(header, index, "PlanePositionSequence").get("ImagePositionPatient"), 3),
        orientation=_vector(group(header, index, "PlaneOrientationSequence").get("ImageOrientationPatient"), 6),
        spacing=spacing,
        thickness=abs(float(thickness)) if thickness else None,
        notes=tuple(notes),
    )


def group(header: Dataset, index: int, sequence: str) -> Dataset:
    """Where an attribute of a frame is: its own functional group, that of all frames, or the file's top level."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    groups = [per_frame[index]] if index < len(per_frame) else []
    for item in [*groups, *(header.get("SharedFunctionalGroupsSequence") or ())]:
        if item.get(sequence):
            found: Dataset = item.get(sequence)[0]
            return found
    return header


# --- small things -------------------------------------------------------------------------------------------------


def _head(stream: BinaryIO) -> bytes:
    """The preamble and what follows it; the stream is at its beginning before and after."""
    head = stream.read(132)
    stream.seek(0)
    return head


def _is_dicom_head(head: bytes) -> bool:
    return head[128:132] == b"DICM" or _looks_raw(head)


def _looks_raw(raw: bytes) -> bool:
    """Whether bytes begin with an element of group 0002 or 0008, as DICOM without a preamble does."""
    return len(raw) >= 8 and ((raw[:2] in (b"\x02\0", b"\x08\0") and raw[3:4] == b"\0") or raw[:2] == b"\0\x08")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as exc:
        raise InputError(f"{public_name(path)} cannot be read: {(exc.strerror or 'no reason given').lower()}.") from exc


def _vector(value: Any, count: int) -> NDArray[np.float64] | None:
    if value is None or isinstance(value, str) or not hasattr(value, "__len__") or len(value) != count:
        return None
    vector = np.array([float(part) for part in value])
    return vector if np.isfinite(vector).all() else None


def _close(a: NDArray[np.float64] | None, b: NDArray[np.float64] | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.abs(a - b).max() <= tolerance)


def _named(frames: Sequence[Frame]) -> str:
    """ "instances 3, 4 and 2 more": a few, then how many."""
    names = [frame.instance for frame in frames]
    if len(names) == 1:
        return names[0]
    kind = names[0].split(" ")[0]
    if all(name.startswith(f"{kind} ") and kind in ("instance", "frame") for name in names):
        numbers = [name.split(" ")[1] for name in names]
        shown = ", ".join(numbers[:8])
        return f"{kind}s {shown}" + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
