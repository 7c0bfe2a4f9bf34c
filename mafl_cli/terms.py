"""The words of the DICOM standard: the only ones out of a header that mafl shows.

Whatever a header says may be a name, in any attribute of a damaged file. So a value is quoted when it is a term that
the standard defines, and else described.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydicom.uid import UID

NO_TERM = "a value that is not a defined term"

# PS3.3 C.7.3.1.1.1, retired ones included.
MODALITIES = frozenset(
    """
    ANN AR ASMT AU BDUS BI BMD CD CF CFM CP CR CS CT CTPROTOCOL DD DF DG DM DMS DOC DS DX EC ECG EEG EMG EOG EPS ES FA
    FID FS GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS
    OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM
    SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC
    """.split()  # noqa: SIM905
)

PHOTOMETRIC_INTERPRETATIONS = frozenset(
    (
        *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "XYB"),
        *("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),
    )
)


def shown(value: Any, terms: Collection[str], otherwise: str = NO_TERM) -> str:
    """A value of a header as it may stand in a message: itself if it is one of the terms."""
    text = str(value)
    return text if text in terms else otherwise


def uid_name(value: Any, otherwise: str) -> str:
    """What the standard calls the thing with this UID."""
    name = UID(str(value)).name
    return otherwise if name == str(value) else name
