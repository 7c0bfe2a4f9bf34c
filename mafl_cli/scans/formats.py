"""Scans of any format, by what the file is: NIfTI (`mafl_cli.scans.volume`) or DICOM (`mafl_cli.scans.dicom.read`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mafl_cli.config import SaveAs
from mafl_cli.errors import InputError
from mafl_cli.names import public_name
from mafl_cli.scans import geometry, nifti, nifti_write, volume
from mafl_cli.scans.volume import LabelMap, Volume


def is_dicom(path: Path) -> bool:
    """Whether `path` will be read as DICOM: a folder, a zip archive, a DICOM file."""
    # A NIfTI file needs no look into it, and no import of pydicom.
    if path.name.lower().endswith((".nii", ".nii.gz")) and not path.is_dir():
        return False
    from mafl_cli.scans.dicom import stacks

    return stacks.is_dicom(path)


def is_mask(path: Path) -> bool:
    """Whether a file is a DICOM SEG."""
    from mafl_cli.scans.dicom import seg

    return seg.is_seg(path)


def is_whole_folder(path: Path) -> bool:
    """Whether a folder is read with all below it: one that was named, or a DICOMDIR's."""
    from mafl_cli.scans.dicom import stacks

    return path.is_dir() or stacks.is_directory_file(path)


def folder_of(path: Path) -> Path | None:
    """The folder that DICOM files come from; None for NIfTI."""
    if not is_dicom(path):
        return None
    return path.resolve() if path.is_dir() else path.resolve().parent


def read_scan(path: str | Path, *, series: str | None = None, allow_gaps: bool = False) -> Volume:
    """Read one channel of a scan: NIfTI, or DICOM (a folder, a .zip, a file).

        scan = mafl.read_scan("scan.nii.gz")
        scan.data, scan.affine                # (I, J, K) float32 in native units (HU for CT), (4, 4) voxel to mm RAS+

    Args:
        series: number or UID of the DICOM series, where there are several.
        allow_gaps: take DICOM slices at uneven distances as if they were even.
    Raises: as `scans.nifti.read_image` and `scans.dicom.read.read_dicom`: InputError, each naming the file.
    """
    path = Path(path)
    if not is_dicom(path):
        return nifti.read_image(path)
    from mafl_cli.scans.dicom import read

    return read.read_dicom(path, series=series, allow_gaps=allow_gaps)


def read_mask(path: Path, like: Volume, *, coded: bool) -> LabelMap:
    """Read a mask: NIfTI, or a DICOM SEG, of which on the voxels of `like` all of its grid.

    coded: its segments may overlap, and are codes; see `mafl_cli.classes`.
    Raises: as `scans.nifti.read_labels` and `scans.dicom.seg.read_seg`.
    """
    if not is_dicom(path):
        return nifti.read_labels(path)
    from mafl_cli.scans.dicom import seg

    name = public_name(path)
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if seg.is_seg(file)]
        if len(found) != 1:
            raise InputError(f"{name}: is a folder with {len(found)} DICOM SEG files: give one mask, NIfTI or SEG.")
        path = found[0]
    if seg.is_seg(path):
        return seg.read_seg(path, like=like, coded=coded)
    raise InputError(f"{name}: is DICOM, but not a segmentation (SEG): give a mask, NIfTI or SEG.")


def read_written(path: Path) -> Volume:
    """Read back what `write_scan` wrote: whatever its source was, and however uneven. Raises: as `read_scan`."""
    # A folder of ours holds one series; choosing it takes even what its header calls no slices.
    found = read_scan(path, series="1", allow_gaps=True)
    # Nobody writes it once more: of what the file stores, only the type is of interest.
    return replace(found, stored=np.broadcast_to(found.stored[:1, :1, :1].copy(), found.shape))


def turned_onto(scan: Volume, shape: volume.Shape, affine: NDArray[np.float64]) -> Volume | None:
    """A scan with its axes in the order and direction of a grid that has the same voxels, to be compared, not written.

    None when the voxels are others. The scan itself where nothing is to turn.
    """
    if geometry.same_space(shape, affine, scan.shape, scan.affine):
        return scan
    turn = geometry.turn_onto(scan.shape, scan.affine, shape, affine)
    if turn is None:
        return None
    order, flips = turn

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        return np.flip(array.transpose(order), flips)

    return Volume(
        name=scan.name,
        data=np.ascontiguousarray(turned(scan.data)),
        affine=affine,
        stored=turned(scan.stored),
        slope=turned(scan.slope),
        inter=turned(scan.inter),
        stored_range=(turned(scan.stored_range[0]), turned(scan.stored_range[1])),
        header=volume.plain_header(shape, affine),
        extensions=bytes(4),
        sha256=scan.sha256,
        warnings=scan.warnings,
        padding=None if scan.padding is None else np.ascontiguousarray(turned(scan.padding)),
    )


def prepared(scan: Volume, *, redact: bool) -> Volume:
    """A scan of which no more is left than may be written again.

    redact: no free text either, and no patient.
    Raises: as `scans.dicom.write.prepared`.
    """
    if scan.format == "nifti":
        return volume.without_notes(scan) if redact else scan
    from mafl_cli.scans.dicom import read, write

    assert isinstance(scan, read.DicomVolume)
    return write.prepared(volume.without_notes(scan) if redact else scan, redact=redact)


def write_scan(
    path: Path, like: Volume, data: NDArray[np.float32], *, save_as: SaveAs, note: str, derivation: str
) -> None:
    """Write a changed scan in the format of `like`: a file, or for DICOM a folder.

    note: for a NIfTI header. derivation: for DICOM. Raises: as `scans.nifti_write.write_image` and
    `scans.dicom.write.write_series`.
    """
    if like.format == "nifti":
        nifti_write.write_image(path, like, data, save_as=save_as, note=note)
        return
    from mafl_cli.scans.dicom import read, write

    assert isinstance(like, read.DicomVolume)
    write.write_series(path, like, data, derivation)


def write_masks(
    path: Path, drawn_on: Volume, masks: NDArray[np.bool_], names: Sequence[str], *, description: str
) -> str | None:
    """Write masks (R, I, J, K) as a DICOM SEG that refers to a DICOM scan; returns why that failed, or None."""
    from mafl_cli.scans.dicom import read, seg

    assert isinstance(drawn_on, read.DicomVolume)
    return seg.write_seg(path, drawn_on, masks, names, description=description)


def describe_dicom(path: Path) -> dict[str, Any]:
    """What `mafl inspect` says about a scan, or a mask, in DICOM. Raises: as `scans.dicom.read.describe_dicom`,
    `scans.dicom.seg.read_seg`.
    """
    from mafl_cli.scans.dicom import read, seg

    return seg.describe_seg(path) if seg.is_seg(path) else read.describe_dicom(path)
