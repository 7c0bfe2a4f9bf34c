"""What a derived DICOM object keeps of its source: an allow-list, for no list of what must go is ever complete.

An element stays when its place, its kind and its value are all allowed, inside sequences too: numbers, and the terms,
codes and times that the standard knows, which say how and where an image was made; and who the patient is and which
study it is of. Every value is made anew in the kind that the standard gives it, so that what was read can be written,
however damaged the source is. No other text gets through.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

import numpy as np
from pydicom.config import disable_value_validation
from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID
from pydicom.valuerep import DSfloat

from mafl_cli.names import one_line
from mafl_cli.scans.dicom import terms

# Who and what: type 2 of the standard, there in every object, empty where nothing is known.
PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyID", "StudyDate", "StudyTime"),
)
# Uptake values (SUV) are computed with them.
_BODY = ("PatientAge", "PatientSize", "PatientWeight")

# How an image was acquired, where it lies, how an eye or a vessel was scanned, how pixels are stored, what was counted.
_GROUPS = (0x0018, 0x0020, 0x0022, 0x0028, 0x0052, 0x0054)

# From other groups: what kind of image it is, of which part of the body, what its numbers mean, whom it no longer
# names.
_ELSEWHERE = frozenset(
    """
    ImageType FrameType Modality ConversionType PresentationIntentType
    AcquisitionDate AcquisitionTime AcquisitionDateTime
    PixelPresentation VolumetricProperties VolumeBasedCalculationTechnique ComplexImageComponent AcquisitionContrast
    AnatomicRegionSequence AnatomicRegionModifierSequence PrimaryAnatomicStructureSequence
    PrimaryAnatomicStructureModifierSequence
    AcquisitionContextSequence RealWorldValueMappingSequence MeasurementUnitsCodeSequence LUTLabel LUTExplanation
    RealWorldValueFirstValueMapped RealWorldValueLastValueMapped RealWorldValueSlope RealWorldValueIntercept
    DoubleFloatRealWorldValueFirstValueMapped DoubleFloatRealWorldValueLastValueMapped
    PresentationLUTShape SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    """.split()  # noqa: SIM905
)

# In the groups, but no longer true of changed pixels, or of a file that stands alone.
_STALE = frozenset(
    """
    SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries
    SmallestImagePixelValueInPlane LargestImagePixelValueInPlane VOILUTSequence ModalityLUTSequence
    InConcatenationNumber InConcatenationTotalNumber ConcatenationFrameOffsetNumber OtherStudyNumbers
    """.split()  # noqa: SIM905
)

# What an object is, and where it belongs: of itself alone, not of what its sequences speak of.
_OWN_UIDS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    "SynchronizationFrameOfReferenceUID",
)
_UIDS = frozenset((*_OWN_UIDS, "DimensionOrganizationUID", "IrradiationEventUID"))

# What decay is counted from, and when a frame was taken.
_TIMES = frozenset(
    """
    AcquisitionDate AcquisitionTime AcquisitionDateTime FrameAcquisitionDateTime FrameReferenceDateTime
    DecayCorrectionDateTime RadiopharmaceuticalStartTime RadiopharmaceuticalStopTime
    RadiopharmaceuticalStartDateTime RadiopharmaceuticalStopDateTime
    """.split()  # noqa: SIM905
)

# Must be there in some kind of image, and may be empty: what may not stay leaves its place behind.
_TYPE_2 = frozenset(
    """
    AcquisitionDate AcquisitionTime AcquisitionNumber InstanceNumber PositionReferenceIndicator Laterality
    PatientOrientation PatientPosition KVP SliceThickness EchoTime RepetitionTime EchoTrainLength
    ContrastBolusAgent ContrastBolusAgentDetected ContrastBolusAgentPhase ScanOptions MRAcquisitionType
    ASLTechniqueDescription ASLBolusCutoffTechnique CollimatorType CorrectedImage BeatRejectionFlag InterventionStatus
    ReprojectionMethod AcquisitionContextSequence PatientOrientationCodeSequence
    PatientGantryRelationshipCodeSequence EnergyWindowInformationSequence RadiopharmaceuticalInformationSequence
    DetectorInformationSequence ReceiveCoilManufacturerName TransmitCoilManufacturerName
    """.split()  # noqa: SIM905
)

DEIDENTIFIED = "mafl redact: no patient, study, time or text; UIDs hashed"
# Text for the standard, of which some words are terms, or our own; and what stands for any other.
_STAND_INS = {
    "RescaleType": "US",
    "StackID": "1",
    **dict.fromkeys(("ConvolutionKernel", "ImageFilter", "FilterType", "LUTLabel", "LUTExplanation"), "unknown"),
    **dict.fromkeys(("ReceiveCoilName", "TransmitCoilName", "MultiCoilElementName"), "unknown"),
    "DeidentificationMethod": "see the source",
}
# Text in which the standard's terms may stay.
_TEXTS = ("RescaleType", "FilterType")
_TERMS = {"Modality": terms.MODALITIES, "BodyPartExamined": terms.BODY_PARTS}

_INTEGERS = {
    "IS": (-(2**31), 2**31 - 1),
    "US": (0, 2**16 - 1),
    "SS": (-(2**15), 2**15 - 1),
    "US or SS": (-(2**15), 2**16 - 1),
    "UL": (0, 2**32 - 1),
    "SL": (-(2**31), 2**31 - 1),
    "UV": (0, 2**64 - 1),
    "SV": (-(2**63), 2**63 - 1),
}
_TIME_FORMS = {
    "AS": re.compile(r"[0-9]{3}[DWMY]"),
    "DA": re.compile(r"[0-9]{8}"),
    "TM": re.compile(r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?"),
    "DT": re.compile(r"[0-9]{4,14}(\.[0-9]{1,6})?([+-][0-9]{4})?"),
}
_REALS = ("DS", "FL", "FD")
# All kinds of values of which some may stay.
_KINDS = ("SQ", "CS", "LO", "SH", "UI", "AT", *_INTEGERS, *_REALS, *_TIME_FORMS)
_CODE, _SCHEME, _MEANING = (Tag(name) for name in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"))
# Sequences of codes that are not called so.
_CODED = (
    *("AnatomicRegionSequence", "AnatomicRegionModifierSequence", "PrimaryAnatomicStructureSequence"),
    *("PrimaryAnatomicStructureModifierSequence", "ContrastBolusAgentSequence"),
    *("ContrastBolusAdministrationRouteSequence", "TransducerIdentificationSequence"),
)
_SIGN = Tag("PixelRepresentation")
_IDENTITY = {Tag(keyword): dictionary_VR(keyword) for keyword in (*PATIENT_AND_STUDY, *_BODY)}
_COMPASS = re.compile("[LRAPHF]{1,3}")
# One item for each frame, and one for each index of a frame: neither may go.
_COUNTED = ("PerFrameFunctionalGroupsSequence", "DimensionIndexSequence")


_AnyDataset = TypeVar("_AnyDataset", bound=Dataset)


class Kept(Dataset):
    """A dataset of which all may stay."""


def kept(source: Dataset) -> Kept:
    """What may stay, in a new dataset; its file meta has the transfer syntax alone.

    Never raises: what cannot be decoded may not stay.
    """
    if isinstance(source, Kept):
        return source
    with disable_value_validation():
        new = _filtered(source, signed=_integer("US", _read(source, _SIGN)) == 1, new=Kept())
        for tag, vr in _IDENTITY.items():
            if tag in source:
                new.add_new(tag, vr, _identity(vr, _read(source, tag)))
        _drop_private_dimensions(new)
    meta = getattr(source, "file_meta", None)
    if meta is not None:
        new.file_meta = FileMetaDataset()
        new.file_meta.TransferSyntaxUID = meta.get("TransferSyntaxUID")
        kind = meta.get("MediaStorageSOPClassUID", "")
        if not new.get("SOPClassUID") and UID(str(kind)).is_valid:
            new.SOPClassUID = UID(str(kind))
    return new


def redacted(dataset: Kept) -> Kept:
    """What `kept` made, of nobody: no patient, study or time; hashes stand for UIDs, so equal ones stay equal."""
    new = _redacted(dataset, Kept())
    new.PatientIdentityRemoved, new.DeidentificationMethod = "YES", DEIDENTIFIED
    if hasattr(dataset, "file_meta"):
        new.file_meta = dataset.file_meta
    return new


def opened(source: Kept) -> Dataset:
    """A copy to which more may be added."""
    new = Dataset()
    for element in source:
        # Setting an attribute changes its element in place.
        new.add(copy.deepcopy(element) if element.VR == "SQ" else copy.copy(element))
    new.file_meta = source.file_meta
    return new


def fill_empty(dataset: Dataset, keywords: Iterable[str]) -> None:
    """Add attributes that are missing, without a value."""
    for keyword in keywords:
        if keyword not in dataset:
            setattr(dataset, keyword, "")


def coded(code: Code) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.add_new(_CODE, "SH", code.value)
    item.add_new(_SCHEME, "SH", code.scheme_designator)
    item.add_new(_MEANING, "LO", code.meaning)
    return item


def _redacted(dataset: Dataset, new: _AnyDataset) -> _AnyDataset:
    for element in dataset:
        keyword, vr = element.keyword, element.VR
        if keyword in PATIENT_AND_STUDY or (keyword in _TYPE_2 and vr in _TIME_FORMS):
            new.add_new(element.tag, vr, "")
        elif keyword in _BODY or vr in _TIME_FORMS:
            continue
        elif vr == "SQ":
            new.add_new(element.tag, vr, Sequence([_redacted(item, Dataset()) for item in element.value]))
        elif vr == "UI" and keyword != "SOPClassUID":
            digest = hashlib.sha256(str(element.value).encode()).digest()
            new.add_new(element.tag, vr, f"2.25.{int.from_bytes(digest[:16], 'big')}")
        else:
            new.add(element)
    return new


# --- what may stay ------------------------------------------------------------------------------------------------


def _filtered(source: Dataset, signed: bool, new: _AnyDataset) -> _AnyDataset:
    """`new` with what may stay. signed: whether numbers that are pixel values have a sign."""
    for tag in sorted(source.keys()):
        keyword = keyword_for_tag(tag)
        known = _has_a_place(tag, keyword) and (keyword not in _OWN_UIDS or isinstance(new, Kept))
        vr = dictionary_VR(tag) if known else ""
        if vr not in _KINDS:
            continue
        value = _read(source, tag)
        if value is not None:
            value = _items(keyword, value, signed) if vr == "SQ" else _values(keyword, vr, value)
            if value is None and keyword not in _TYPE_2:
                value = _STAND_INS.get(keyword)
                if value is None:
                    continue
        if vr == "US or SS":
            vr, value = ("SS" if signed else "US"), _wrapped(value, signed)
        new.add_new(tag, vr, value)
    return new


def _has_a_place(tag: BaseTag, keyword: str) -> bool:
    if not keyword or keyword in _STALE or tag in _IDENTITY:
        return False
    return tag.group in _GROUPS or keyword in _ELSEWHERE or keyword in _UIDS


def _read(source: Dataset, tag: BaseTag) -> Any:
    """A value; None for an empty one, and for one that cannot be decoded."""
    try:
        element = source.get(tag)
        return None if element is None or element.is_empty else element.value
    except Exception:  # What is nested is decoded here, and damage comes as nearly any class.
        return None


def _items(keyword: str, value: Any, signed: bool) -> Sequence | None:
    """What may stay of a sequence; None when that is nothing."""
    items = []
    for item in value if isinstance(value, Sequence) else ():
        left = _filtered(item, signed, Dataset())
        if keyword.endswith("CodeSequence") or keyword in _CODED:
            code = _known_code(str(_read(item, _CODE)), str(_read(item, _SCHEME)))
            if code is None:
                continue  # What qualifies it means nothing without it.
            left.update(coded(code))
        if len(left) or not len(item) or keyword in _COUNTED:
            items.append(left)
    return Sequence(items) if items else None


def _values(keyword: str, vr: str, value: Any) -> Any:
    """What may stay of one value or several; None when that is nothing."""
    each = list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]
    made = [_value(keyword, vr, part) for part in each]
    wanted = dictionary_VM(keyword)
    if wanted.isdecimal() and len(made) != int(wanted):
        return None
    if keyword in ("ImageType", "FrameType"):  # Each place has its meaning.
        return ["OTHER" if part is None else part for part in made]
    left = [part for part in made if part is not None]
    # Some of several terms may stay; several numbers stay all, or none.
    if not left or (vr != "CS" and len(left) < len(made)):
        return None
    return left[0] if len(left) == 1 else left


def _value(keyword: str, vr: str, value: Any) -> Any:
    """One value in the kind that the standard gives it; None when it may not stay."""
    if vr in _INTEGERS:
        return _integer(vr, value)
    if vr in _REALS:
        return _real(vr, value)
    if vr == "AT":
        return value if isinstance(value, int) and dictionary_has_tag(value) else None
    text = str(value)
    if vr in _TIME_FORMS:
        legal = keyword in _TIMES and bool(_TIME_FORMS[vr].fullmatch(text))
    elif vr == "UI":
        legal = keyword in _UIDS and UID(text).is_valid
    elif vr == "CS":
        legal = text in _TERMS.get(keyword, terms.WORDS)
        legal = legal or (keyword == "PatientOrientation" and bool(_COMPASS.fullmatch(text)))
    else:
        own = text in (_STAND_INS.get(keyword), DEIDENTIFIED)
        legal = own or (keyword in _TEXTS and text in terms.WORDS)
    return text if legal else None


def _integer(vr: str, value: Any) -> int | None:
    low, high = _INTEGERS[vr]
    try:
        number = int(value)
        return number if low <= number <= high and number == float(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _real(vr: str, value: Any) -> float | None:
    limit = float(np.finfo(np.float32).max) if vr == "FL" else math.inf
    try:
        if not abs(float(value)) <= limit or not math.isfinite(float(value)):
            return None
    except (TypeError, ValueError, OverflowError):
        return None
    # Digit by digit as the source has it, or as many as the field can hold.
    if vr == "DS":
        return value if isinstance(value, DSfloat) else DSfloat(float(value), auto_format=True)
    return float(value)


def _wrapped(value: Any, signed: bool) -> Any:
    """Pixel values as numbers of 16 bits, signed or not: some programs write the bits of one kind as the other."""
    if value is None:
        return None
    size = 2**16
    each = [number % size for number in (value if isinstance(value, list) else [value])]
    if signed:
        each = [number - size if number >= size // 2 else number for number in each]
    return each[0] if len(each) == 1 else each


def _identity(vr: str, value: Any) -> Any:
    """A value of the patient or the study, "" for none: text for names and numbers, else only what is legal."""
    first = (value[0] if len(value) else "") if isinstance(value, (MultiValue, Sequence)) else value
    text = "" if first is None or isinstance(first, Dataset) else one_line(str(first)).replace("\\", "/")
    if vr in ("DA", "TM", "AS"):
        return text if _TIME_FORMS[vr].fullmatch(text) else ""
    if vr == "CS":
        return text if text in ("M", "F", "O") else ""
    return (_real(vr, first) if first is not None else None) if vr == "DS" else text


def _drop_private_dimensions(dataset: Dataset) -> None:
    """Frames have an index for each dimension; one that is a vendor's own goes with its index."""
    dimensions = dataset.get("DimensionIndexSequence") or Sequence()
    known = [number for number, item in enumerate(dimensions) if item.get("DimensionIndexPointer") is not None]
    if len(known) == len(dimensions):
        return
    dataset.DimensionIndexSequence = Sequence([dimensions[number] for number in known])
    for frame in dataset.get("PerFrameFunctionalGroupsSequence") or ():
        for content in frame.get("FrameContentSequence") or ():
            values = content.get("DimensionIndexValues")
            each = list(values) if isinstance(values, (MultiValue, list)) else [values]
            if len(each) == len(dimensions):
                content.DimensionIndexValues = [each[number] for number in known]


@cache
def _known_code(value: str, scheme: str) -> Code | None:
    """The code with this value as the standard's code lists have it, with the meaning they give it."""
    if scheme not in (*codes.schemes(), "SRT"):
        return None
    # The old numbers of SNOMED (SRT) equal the new ones.
    asked, collection = Code(value, scheme, ""), getattr(codes, "SCT" if scheme == "SRT" else scheme)
    return next((code for code in collection.concepts.values() if code == asked), None)
