"""Which DICOM frames make one volume, and where each of them lies.

A *stack* is what can be one volume: frames of one series with equal size, orientation and spacing, all of them slices
or all of one other kind. How their numbers are stored may differ: each is read as its own header says.

Words. *instance*: a DICOM file, named in messages by its Instance Number, for file names are often UIDs. *flavour*: as
in `mafl_cli.scans.dicom.flavours`.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from pydicom.uid import MediaStorageDirectoryStorage

from mafl_cli.errors import GeometryError, InputError, cannot_be_read
from mafl_cli.names import public_name
from mafl_cli.scans.dicom.frames import (
    NO_PIXELS,
    PHYSICAL,
    DicomFile,
    DicomFrame,
    Stack,
    frames_of,
    head,
    is_dicom_head,
    kind,
    named,
    parsed,
    why_no_scan,
)
from mafl_cli.system import sizes
from mafl_cli.system.quiet import silence

# Series of which an error lists the details.
_LISTED = 20
_NIFTI, _NO_DICOM = "NIfTI file", "file of another kind"


def is_dicom(path: Path) -> bool:
    """Whether `path` is for this module: a folder, a zip archive, or a DICOM file; its contents decide."""
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            first = head(file)
    except OSError:
        return False
    return first.startswith(b"PK\x03\x04") or is_dicom_head(first)


def is_directory_file(path: Path) -> bool:
    """Whether a file is a DICOMDIR."""
    return sop_class(path) == MediaStorageDirectoryStorage


def sop_class(path: Path) -> str:
    """SOP Class UID of a single DICOM file; "" when it has none, or is not such a file."""
    if not path.is_file() or not is_dicom(path):
        return ""
    try:
        with silence(), path.open("rb") as stream:
            return kind(parsed(public_name(path), stream, pixels=False))
    except InputError:
        return ""


# --- which slices belong together ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundStacks:
    """All stacks of a folder, by series number. beside: what else lies there that may be meant, and how many of it."""

    stacks: list[Stack]
    beside: Mapping[str, int]


def find(name: str, path: Path) -> FoundStacks:
    """All stacks in `path`. Raises InputError when there is none."""
    frames: list[DicomFrame] = []
    others: Counter[str] = Counter()
    if is_directory_file(path):
        path = path.parent
    folder = path.is_dir() or _is_zip(path)
    for source in _sources(name, path):
        with source.open() as stream:
            if folder and not is_dicom_head(head(stream)):
                others[_NIFTI if source.name.lower().endswith((".nii", ".nii.gz")) else _NO_DICOM] += 1
                continue
            # Only as far as the pixels: a series is gone through to find its slices before any is decoded.
            header = parsed(source.name, stream, pixels=False)
        what = why_no_scan(header)
        if what is None:
            frames += frames_of(source, header)
        elif folder:
            others[what] += 1
        else:
            raise InputError(f"{name} is {what}.")
    if not frames:
        there = "; ".join(f"{count} x {what}" for what, count in others.items()) or "no files"
        advice = (
            "" if set(others) - {_NIFTI, _NO_DICOM} else " Give the folder of a series, or a NIfTI file by its name."
        )
        raise InputError(f"{name} holds no DICOM slices of a volume, but {there}.{advice}")
    stacks: list[Stack] = []
    for frame in _told_apart(frames):
        for stack in stacks:
            if frame.fits(stack[0]):
                stack.append(frame)
                break
        else:
            stacks.append([frame])
    beside = {what: count for what, count in others.items() if what != _NO_DICOM and NO_PIXELS not in what}
    return FoundStacks(sorted(stacks, key=lambda stack: (stack[0].order, stack[0].series)), beside)


def _told_apart(frames: Sequence[DicomFrame]) -> list[DicomFrame]:
    """Frames with names that no other of their series has: with the file where numbers alone would not do."""
    names = Counter((frame.series, frame.instance) for frame in frames)
    sources = list({id(frame.source): frame.source for frame in frames}.values())
    once = Counter(source.name for source in sources)
    # Files in several folders may have one name, and names that are UIDs are not shown.
    files = {
        id(source): source.name if once[source.name] == 1 else f"file {number} of {len(sources)}"
        for number, source in enumerate(sources, start=1)
    }
    # With several multi-frame files all are named, or frame 3 would be that of the one file that has so many.
    many = {frame.series for frame in frames if names[frame.series, "frame 1"] > 1}

    def named_by_file(frame: DicomFrame) -> DicomFrame:
        number = frame.instance.startswith(("frame ", "instance "))
        file = files[id(frame.source)]
        return replace(frame, instance=f"{frame.instance} of {file}" if number else file)

    return [
        named_by_file(frame)
        if names[frame.series, frame.instance] > 1 or (frame.series in many and frame.instance.startswith("frame "))
        else frame
        for frame in frames
    ]


def _sources(name: str, path: Path) -> Iterator[DicomFile]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden and file.name != "DICOMDIR":
                yield DicomFile(public_name(file), lambda file=file: _opened(file))  # type: ignore[misc]
    elif _is_zip(path):
        yield from _zipped(name, path)
    else:
        yield DicomFile(name, lambda: _opened(path))


def _zipped(name: str, path: Path) -> Iterator[DicomFile]:
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
            yield DicomFile(public_name(Path(file.name)), lambda entry=entry: unpacked(entry))  # type: ignore[misc]


def choose(name: str, found: FoundStacks, series: str | None) -> tuple[Stack, tuple[str, ...]]:
    """The stack to read, and what the user should know of the others.

    What a header calls no slice of a volume is only taken if the user chooses it.
    Raises: InputError when there are several series, or none that is one of slices; GeometryError when the slices of
        the one that is meant are not one stack.
    """
    stacks = found.stacks
    meant = _meant(name, stacks, series)
    slices = [stack for stack in meant if not stack[0].flavour] or meant
    if len(slices) > 1:
        raise _several(name, slices, stacks)
    (chosen,) = slices
    first = chosen[0]
    if first.flavour and first.modality in PHYSICAL and series is None:
        raise InputError(
            f"{name} is {first.flavour} by its header, not slices of a volume: give the series of slices, or "
            f"choose `series` {stacks.index(chosen) + 1} to take it as it is."
        )
    between = [frame for stack in stacks if _interleaved(chosen, stack) for frame in stack]
    if between:
        raise GeometryError(
            f"{name}: {named(between)} of the same series lie{'s' if len(between) == 1 else ''} between the slices of "
            f"this stack and differ{'s' if len(between) == 1 else ''} in {_differences(first, between)}: each is only "
            "part of a volume: export the series again, all slices alike."
        )
    notes = []
    if first.flavour:
        notes.append(f"{name}: is {first.flavour} by its header, not slices of a volume; taken as it is.")
    aside = [f"{_counted(stack)} ({stack[0].flavour})" for stack in meant if stack not in slices]
    aside += [f"{count} x {re.split('[,:]', what)[0]}" for what, count in found.beside.items()]
    if aside:
        notes.append(f"{name}: only the slices of one series are read; left aside: {', '.join(aside)}.")
    return chosen, tuple(notes)


def _meant(name: str, stacks: list[Stack], series: str | None) -> list[Stack]:
    """The stacks that the user may mean."""
    if series is None:
        return stacks
    if series.isdecimal():
        if not 1 <= int(series) <= len(stacks):
            raise InputError(f"{name}: there is no series {series}. {_listing(stacks)}")
        return [stacks[int(series) - 1]]
    meant = [stack for stack in stacks if stack[0].series == series]
    if not meant:
        raise InputError(f"{name}: there is no series with this UID. {_listing(stacks)}")
    return meant


def _several(name: str, candidates: list[Stack], stacks: list[Stack]) -> InputError:
    """Why several stacks are not one volume, and what to do."""
    if len({stack[0].series for stack in candidates}) > 1:
        return InputError(f"{name} holds several series: choose one with `series` NUMBER. {_listing(stacks)}")
    most = max(candidates, key=len)
    odd = [frame for stack in candidates if stack is not most for frame in stack]
    what = (
        f"{name}: {named(odd)} of the series {'differs' if len(odd) == 1 else 'differ'} from the other {len(most)} in "
        f"{_differences(most[0], odd)}"
    )
    if any(_interleaved(one, other) for one in candidates for other in candidates):
        # To take every second slice would be to attack half a patient at twice the distances.
        return GeometryError(
            f"{what}, and lie between them, so that no stack is a volume by itself: export the series again."
        )
    return GeometryError(f"{what}: take one stack with `series` NUMBER. {_listing(stacks)}")


def _interleaved(stack: Stack, other: Stack) -> bool:
    """Whether slices of another stack of the same series lie between those of this one."""
    first, second = stack[0], other[0]
    if stack is other or first.series != second.series or first.flavour != second.flavour:
        return False
    if not all(frame.placed for frame in (*stack, *other)):
        return False
    normals = [np.cross(frame.orientation[:3], frame.orientation[3:]) for frame in (first, second)]  # type: ignore[index]
    normal = normals[0]
    if not abs(float(normal @ normals[1])) > 0.9 * float(np.linalg.norm(normal) * np.linalg.norm(normals[1])):
        return False
    depths = np.sort([float(frame.position @ normal) for frame in stack])
    for frame in other:
        depth = float(frame.position @ normal)
        after = int(np.searchsorted(depths, depth))
        if 0 < after < len(depths):
            low, high = depths[after - 1], depths[after]
            # At the place of a slice it is another picture of it, not one in between.
            if min(depth - low, high - depth) > 0.1 * (high - low):
                return True
    return False


def _differences(usual: DicomFrame, odd: Stack) -> str:
    kinds = []
    if any(not frame.turned_as(usual) for frame in odd):
        kinds.append("orientation (a localizer?)" if any(frame.flavour for frame in odd) else "orientation")
    if any(frame.size != usual.size for frame in odd):
        kinds.append("size")
    if any(not frame.spaced_as(usual) for frame in odd):
        kinds.append("pixel spacing")
    return " and ".join(kinds)


def _counted(stack: Stack) -> str:
    return f"{len(stack)} image{'' if len(stack) == 1 else 's'}"


def _listing(stacks: Sequence[Stack]) -> str:
    """Number, modality, count and size: nothing that names a patient."""
    lines = []
    for number, stack in enumerate(stacks[:_LISTED], start=1):
        facts = describe(number, stack)
        lines.append(f"{number}: {facts['modality']}, {facts['frames']} of {facts['columns']} x {facts['rows']}")
    more = f"; {len(stacks) - _LISTED} more, see `mafl inspect`" if len(stacks) > _LISTED else ""
    return "There are " + "; ".join(lines) + more + "."


def describe(number: int, stack: Stack) -> dict[str, Any]:
    rows, columns = stack[0].size
    return {
        "series": number,
        "modality": stack[0].modality + (f" ({stack[0].flavour})" if stack[0].flavour else ""),
        "frames": len(stack),
        "columns": columns,
        "rows": rows,
    }


def siblings(name: str, path: Path, stack: Stack) -> tuple[str, ...]:
    """A warning for those who give one slice of a series and may mean all."""
    if not path.is_file() or len(stack) > 1 or stack[0].modality not in PHYSICAL:
        return ()
    others = sum(1 for file in path.parent.iterdir() if file != path and file.is_file() and is_dicom(file))
    if not others:
        return ()
    return (
        f"{name}: one slice, attacked alone; there are {others} more DICOM files beside it: give the folder for all.",
    )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as exc:
        raise cannot_be_read(public_name(path), exc) from exc
