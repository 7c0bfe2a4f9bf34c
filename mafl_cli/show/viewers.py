"""How to look at a run in ITK-SNAP or 3D Slicer: the command line, and files that name and colour its labels.

Nothing is started here. Formats and options are those of the programs' documentation and sources; see docs/files.md.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from mafl_cli.show.display import class_colour

Viewer = Literal["itksnap", "slicer"]

LABEL_FILES: dict[Viewer, str] = {"itksnap": "labels_itksnap.txt", "slicer": "labels_slicer.ctbl"}

_ITKSNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
"""


def label_file(viewer: Viewer, names: Mapping[int, str]) -> str:
    """The text that tells a viewer names and colours of labels.

    Args:
        names: of the labels above 0; 0 is the background and not shown.
    """
    return _itksnap_labels(names) if viewer == "itksnap" else _slicer_colours(names)


def command(viewer: Viewer, scan: Path, mask: Path, labels: Path) -> str:
    """The line for a POSIX shell that opens a scan with a mask over it.

    Args:
        scan: a NIfTI file, or a folder with the files of one DICOM series.
        mask: a NIfTI label map.
        labels: what `label_file` wrote for this viewer.
    """
    return shlex.join(_itksnap(scan, mask, labels) if viewer == "itksnap" else _slicer(scan, mask, labels))


def _itksnap(scan: Path, mask: Path, labels: Path) -> list[str]:
    # It takes files only: of a DICOM file it reads the series that lies in the same folder.
    main = min(path for path in scan.iterdir() if path.is_file()) if scan.is_dir() else scan
    return ["itksnap", "-g", str(main), "-s", str(mask), "-l", str(labels)]


def _slicer(scan: Path, mask: Path, labels: Path) -> list[str]:
    if scan.is_dir():
        # Loading DICOM takes a database; a temporary one leaves the user's own alone.
        steps = [
            "import contextlib",
            "from DICOMLib import DICOMUtils",
            "stack = contextlib.ExitStack()",
            "db = stack.enter_context(DICOMUtils.TemporaryDICOMDatabase())",
            f"DICOMUtils.importDicom({_quoted(scan)}, db)",
            "[DICOMUtils.loadPatientByUID(uid) for uid in db.patients()]",
            "stack.close()",
        ]
    else:
        steps = [f"slicer.util.loadVolume({_quoted(scan)})"]
    steps += [
        f"colors = slicer.util.loadColorTable({_quoted(labels)})",
        # Not loadSegmentation: in older versions it takes no properties.
        f'slicer.util.loadNodeFromFile({_quoted(mask)}, "SegmentationFile", {{"colorNodeID": colors.GetID()}})',
    ]
    return ["Slicer", "--python-code", "; ".join(steps)]


def _quoted(path: Path) -> str:
    """A Python string in double quotes: the shell's single ones around it stay readable."""
    return json.dumps(str(path), ensure_ascii=False)


def _itksnap_labels(names: Mapping[int, str]) -> str:
    lines = ['    0     0    0    0        0  0  0    "Clear Label"']
    for label, name in names.items():
        red, green, blue = _rgb(label)
        # A quotation mark would end the name, and nothing can stand for it.
        shown = _one_line(label, name).replace('"', "'")
        lines.append(f'{label:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{shown}"')
    return _ITKSNAP_HEAD + "\n".join(lines) + "\n"


def _slicer_colours(names: Mapping[int, str]) -> str:
    lines = ["# Color table file", f"# {len(names) + 1} values", "0 background 0 0 0 0"]
    for label, name in names.items():
        red, green, blue = _rgb(label)
        # Spaces separate columns, and apostrophes are taken off the ends of a name.
        shown = "_".join(_one_line(label, name).replace("'", "’").split())
        lines.append(f"{label} {shown} {red} {green} {blue} 255")
    return "\n".join(lines) + "\n"


def _one_line(label: int, name: str) -> str:
    """A name without line breaks and control characters; both readers choke on an empty one, and on very long lines."""
    shown = " ".join("".join(char if char.isprintable() else " " for char in name).split())
    return shown[:200] or f"label {label}"


def _rgb(label: int) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(class_colour(label)[1:])
    return red, green, blue
