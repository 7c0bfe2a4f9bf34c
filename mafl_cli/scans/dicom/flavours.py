"""What a DICOM header says about a picture being no slice of a volume: mosaics, localizers, projections, captures.

Programs that go by pixels alone take a mosaic for one large slice, and a localizer for the first of the others.

Words. *flavour*: what kind of picture a header says a frame is, as a noun phrase for people; "" for a plain slice.
Defined terms of the standard come first, then what the large vendors write in their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

_LOCALIZER = "a localizer"
_PROJECTION = "a projection through a volume (MIP)"
_RENDERING = "a rendering of a volume"
_CAPTURE = "a screen capture"

# Values of Image Type and Frame Type (PS3.3 C.7.6.1.1.2, C.8.16.1), and of Volume Based Calculation Technique
# (C.8.16.2.1.3), with blanks for underscores.
_FLAVOURS = tuple(
    (re.compile(pattern), flavour)
    for pattern, flavour in (
        (r"LOCALI[ZS]ER|SCOUT|TOPOGRAM|SURVEY|CT SOM\d+ TOP", _LOCALIZER),
        (r"(THIN |THICK )?M(AX|IN)? ?IP( .+)?|PROJECTION( IMAGE)?|PJN", _PROJECTION),
        (r"VRT|SSD|(VOLUME|SURFACE|3D) REND(ER|ERED|ERING)", _RENDERING),
        (r"CURVED( MPR)?|CPR", "a curved reformat"),
        (r"SCREEN ?(SAVE|SHOT|CAPTURE)|CAPTURE", _CAPTURE),
        (r"CT SOM\d+ PROT|PATIENT PROTOCOL|DOSE( (REPORT|INFO))?|REPORT", "a protocol or dose report"),
        (r"POSDISP", "a picture of where slices lie"),
    )
)
_TILES = re.compile(r"MOSAIC|MONTAGE|COLLAGE")

# Siemens says how many slices a mosaic has, whatever became of its Image Type.
_SIEMENS = "SIEMENS MR HEADER"
_SIEMENS_GROUP, _IMAGES_IN_MOSAIC = 0x0019, 0x0A


def no_image_of_slices(header: Dataset) -> str | None:
    """What a whole file is that no choice of frames makes a volume of: tiles, which must be cut apart first."""
    frames = [*_frame_types(header, 0)] or [header]
    if any(_TILES.search(value) for item in (header, *frames) for value in _values(item)) or _tiles(header) > 1:
        return "a mosaic, one picture tiled with many slices: split it first (dcm2niix makes NIfTI of it)"
    if header.get("TotalPixelMatrixColumns") or str(header.get("DimensionOrganizationType", "")).startswith("TILED"):
        return "one large picture stored in tiles (as whole-slide microscopy is), not a scan"
    return None


def flavour_of(header: Dataset, index: int, *, placed: bool) -> str:
    """The flavour of a frame; "" for a slice. placed: whether the frame has a place in the patient."""
    for item in (header, *_frame_types(header, index)):
        values = [*_values(item), _plain(item.get("VolumeBasedCalculationTechnique"))]
        for pattern, flavour in _FLAVOURS:
            if any(pattern.fullmatch(value) for value in values):
                return flavour
        if header.get("Modality") == "NM" and {"TOMO", "GATED TOMO"} & set(values):
            return "a projection that no volume was made from yet"
    if not placed and str(header.get("SOPClassUID", "")).startswith(SecondaryCaptureImageStorage):
        return "a Secondary Capture (of a screen or a film) without a place in the patient"
    return ""


def _tiles(header: Dataset) -> int:
    try:
        return int(header.private_block(_SIEMENS_GROUP, _SIEMENS)[_IMAGES_IN_MOSAIC].value)
    except (KeyError, TypeError, ValueError):
        return 0


def _values(item: Dataset) -> list[str]:
    value = item.get("ImageType") if "ImageType" in item else item.get("FrameType")
    several = value if hasattr(value, "__iter__") and not isinstance(value, str) else (value,)
    return [_plain(part) for part in several]


def _plain(value: object) -> str:
    return " ".join(str(value or "").upper().replace("_", " ").split())


def _frame_types(header: Dataset, index: int) -> Iterator[Dataset]:
    """The items of a frame's functional groups that have a Frame Type; each modality has a sequence of its own."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    groups = [*per_frame[index : index + 1], *(header.get("SharedFunctionalGroupsSequence") or ())]
    for group in groups:
        for element in group:
            if element.VR == "SQ":
                yield from (item for item in element.value if "FrameType" in item)
