"""Write a changed scan as a DICOM series derived from the one it came from (PS3.3 C.7.6.1.1.2, C.12.4).

The pixels differ, so every instance is new: its own UIDs, ImageType DERIVED, a reference to its source, and words that
no reader can miss. Study, patient and place stay, or the series could not be compared with its source. What says
more about people or places than a derived image needs is dropped.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mafl_cli import __version__
from mafl_cli.config import NOTE
from mafl_cli.dicom import DicomVolume
from mafl_cli.errors import OutputError
from mafl_cli.frames import Pixels, kind
from mafl_cli.quiet import silence
from mafl_cli.volume import to_stored

# Added to the source's Series Number, so that the new series stands apart from the scanner's in a list.
_SERIES_OFFSET = 9000

_LOSSLESS = (
    uid.RLELossless,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
)

# Type 2 of the standard: there in every object, empty where nothing is known.
PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyID", "StudyDate", "StudyTime"),
)

# No longer true of changed pixels.
_STALE = """
SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries
DigitalSignaturesSequence MACParametersSequence IconImageSequence EncryptedAttributesSequence
OriginalAttributesSequence ReferencedPerformedProcedureStepSequence StorageMediaFileSetUID
DataSetTrailingPadding PixelDataProviderURL ExtendedOffsetTable ExtendedOffsetTableLengths
ConcatenationUID InConcatenationNumber InConcatenationTotalNumber SOPInstanceUIDOfConcatenationSource
ConcatenationFrameOffsetNumber
""".split()  # noqa: SIM905

# Optional in every image object, and about people, places or the visit: PS3.15 annex E says what to look for.
_PERSONAL = """
InstitutionName InstitutionAddress InstitutionalDepartmentName InstitutionCodeSequence StationName
DeviceSerialNumber DeviceUID PerformingPhysicianName PerformingPhysicianIdentificationSequence OperatorsName
OperatorIdentificationSequence PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence
NameOfPhysiciansReadingStudy PhysiciansReadingStudyIdentificationSequence ReferringPhysicianAddress
ReferringPhysicianTelephoneNumbers ReferringPhysicianIdentificationSequence RequestingPhysician
RequestingService ConsultingPhysicianName ScheduledPerformingPhysicianName OtherPatientIDs
OtherPatientIDsSequence OtherPatientNames PatientBirthName PatientMotherBirthName PatientAddress
PatientTelephoneNumbers PatientTelecomInformation PatientComments PatientInsurancePlanCodeSequence
PatientReligiousPreference PatientInstitutionResidence MilitaryRank BranchOfService CountryOfResidence
RegionOfResidence ResponsiblePerson ResponsibleOrganization Occupation EthnicGroup AdditionalPatientHistory
MedicalRecordLocator IssuerOfPatientID IssuerOfPatientIDQualifiersSequence MedicalAlerts Allergies
AdmissionID AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence CurrentPatientLocation
VisitComments StudyComments StudyDescription ReasonForStudy ImageComments FrameComments
RequestAttributesSequence RequestedProcedureDescription RequestedProcedureID RequestedProcedureCodeSequence
RequestedProcedureComments PerformedProcedureStepID PerformedProcedureStepDescription
PerformedProcedureStepStartDate PerformedProcedureStepStartTime CommentsOnThePerformedProcedureStep
ScheduledProcedureStepID ScheduledProcedureStepDescription ReferencedStudySequence ReferencedPatientSequence
ReferencedVisitSequence IssuerOfAccessionNumberSequence ProtocolName ClinicalTrialSponsorName
ClinicalTrialProtocolID ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID
CustodialOrganizationSequence ContributingEquipmentSequence SourceApplicationEntityTitle InstanceCreatorUID
TextComments AcquisitionComments DetectorID GantryID CassetteID PlateID
FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest OrderEnteredBy PersonName
ContentCreatorName ContentCreatorIdentificationCodeSequence ReviewerName VerifyingObserverName
VerifyingObserverSequence NamesOfIntendedRecipientsOfResults OrderCallbackPhoneNumber ReasonForVisit PatientState
SpecialNeeds AdmittingDate AdmittingTime PerformedLocation PerformedStationName PerformedStationAETitle
ScheduledStationName ScheduledStationAETitle StationAETitle LastMenstrualDate SmokingStatus PatientBirthTime
PregnancyStatus DischargeDiagnosisDescription InterpretationText ResultsComments ReasonForTheRequestedProcedure
ImagePresentationComments
""".split()  # noqa: SIM905


def write_series(folder: Path, like: DicomVolume, data: NDArray[np.float32], derivation: str) -> None:
    """Write a changed scan as Explicit VR Little Endian files 0001.dcm, 0002.dcm, ..., one for each source file.

    Voxels equal to `like.data` keep their stored bits; others become rint((v - inter) / slope) of their slice, within
    what Bits Stored can hold.

    Args:
        folder: is made; must not be there.
        data: (I, J, K), native units, finite.
        derivation: how the pixels came about, for Derivation Description; no patient data.
    Raises: OutputError when the disk is full; ValueError for another shape or NaN.
    """
    if data.shape != like.shape or not np.isfinite(data).all():
        raise ValueError(f"expected finite values of shape {like.shape}, got shape {data.shape}")
    stored = to_stored(like, data).transpose(2, 1, 0)
    series, study, now = generate_uid(prefix=None), generate_uid(prefix=None), datetime.now()
    try:
        folder.mkdir()
        with silence():
            for index, source in enumerate(like.datasets):
                slices = sorted((frame, k) for k, (place, frame) in enumerate(like.frames) if place == index)
                pixels = stored[[k for _, k in slices]]
                dataset = _derived(source, pixels, derivation, series, study, now)
                if "NumberOfFrames" in dataset:
                    dataset.NumberOfFrames = len(slices)
                if "PerFrameFunctionalGroupsSequence" in dataset:
                    groups = dataset.PerFrameFunctionalGroupsSequence
                    dataset.PerFrameFunctionalGroupsSequence = [groups[frame] for frame, _ in slices]
                dataset.save_as(folder / f"{index + 1:04d}.dcm", enforce_file_format=True)
    except OSError as exc:
        raise OutputError(
            f"{folder.name}: cannot be written ({exc.strerror or 'the system gives no reason'})."
        ) from exc


def fill_empty(dataset: Dataset, keywords: Iterable[str]) -> None:
    """Add attributes that are missing, without a value."""
    for keyword in keywords:
        if keyword not in dataset:
            setattr(dataset, keyword, "")


def impersonal(source: Dataset) -> Dataset:
    """A copy without private elements, and without what says more of people and places than a derived object must."""
    new = Dataset()
    new.update(copy.deepcopy(dict(source.items())))
    new.remove_private_tags()
    _drop(new, {*_PERSONAL})
    new.file_meta = source.file_meta
    return new


def _derived(
    source: Dataset,
    pixels: NDArray[Any],
    derivation: str,
    series: str,
    study: str,
    now: datetime,
) -> Dataset:
    """One new instance. pixels: (frames, rows, columns), in the order of the source's frames.

    study: UID of one that is made up, for sources without.
    """
    new = impersonal(source)
    _drop(new, {*_STALE})
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    reference = Dataset()
    reference.ReferencedSOPClassUID = uid.UID(kind(source))
    reference.ReferencedSOPInstanceUID = source.get("SOPInstanceUID") or generate_uid(prefix=None)
    whole_series = Dataset()
    whole_series.SeriesInstanceUID = source.get("SeriesInstanceUID", "")
    whole_series.ReferencedInstanceSequence = Sequence([copy.deepcopy(reference)])
    purposed = copy.deepcopy(reference)
    purposed.PurposeOfReferenceCodeSequence = Sequence([_code(codes.DCM.SourceImageForImageProcessingOperation)])

    new.SOPClassUID = uid.UID(kind(source))
    new.SOPInstanceUID = generate_uid(prefix=None)
    new.SeriesInstanceUID = series
    new.SeriesNumber = int(source.get("SeriesNumber") or 0) + _SERIES_OFFSET
    new.SeriesDescription = new.ImageComments = NOTE
    new.SeriesDate = new.ContentDate = new.InstanceCreationDate = date
    new.SeriesTime = new.ContentTime = new.InstanceCreationTime = time
    _say_derived(new)
    new.DerivationDescription = derivation[:1024]
    new.DerivationCodeSequence = Sequence([_code(codes.DCM.PixelByPixelAddition)])
    new.SourceImageSequence = Sequence([purposed])
    new.ReferencedSeriesSequence = Sequence([whole_series])
    new.ContributingEquipmentSequence = Sequence([_equipment(date + time, derivation)])
    syntax = source.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and "LossyImageCompression" not in new:
        new.LossyImageCompression = "00" if syntax in _LOSSLESS else "01"
    if not new.get("StudyInstanceUID"):
        new.StudyInstanceUID = study
    fill_empty(new, (*PATIENT_AND_STUDY, "InstanceNumber", "Manufacturer"))
    if not new.get("Modality"):
        new.Modality = "OT"
    if "SharedFunctionalGroupsSequence" in new:
        _say_derived_frames(new, purposed, derivation)

    # As this file stores them: the others of the series may have other bits.
    own = Pixels.of(source)
    new.HighBit = own.high
    body = np.clip(pixels, *own.limits).astype(own.dtype.newbyteorder("<")).tobytes()
    new.add_new("PixelData", "OB" if own.allocated == 8 else "OW", body + b"\0" * (len(body) % 2))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.UID(kind(source))
    meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    new.file_meta = meta
    return new


def _say_derived_frames(new: Dataset, reference: Dataset, derivation: str) -> None:
    """What else an enhanced object needs: a Derivation Image group for its frames, and type 1 equipment attributes."""
    image = Dataset()
    image.DerivationDescription = derivation[:1024]
    image.DerivationCodeSequence = Sequence([_code(codes.DCM.PixelByPixelAddition)])
    image.SourceImageSequence = Sequence([copy.deepcopy(reference)])
    for item in new.get("PerFrameFunctionalGroupsSequence", ()):
        if "DerivationImageSequence" in item:
            del item.DerivationImageSequence
    new.SharedFunctionalGroupsSequence[0].DerivationImageSequence = Sequence([image])
    for keyword in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"):
        if not new.get(keyword):
            setattr(new, keyword, "unknown")


def _say_derived(new: Dataset) -> None:
    """Image Type, and Frame Type of each frame: enhanced objects must call them PRIMARY, all others SECONDARY."""
    enhanced = "SharedFunctionalGroupsSequence" in new
    second = "PRIMARY" if enhanced else "SECONDARY"
    new.ImageType = ["DERIVED", second, *list(new.get("ImageType") or ())[2:]]
    groups = [*new.get("SharedFunctionalGroupsSequence", ()), *new.get("PerFrameFunctionalGroupsSequence", ())]
    for item in groups:
        for element in item:
            for part in element.value if element.VR == "SQ" else ():
                if "FrameType" in part:
                    part.FrameType = ["DERIVED", second, *list(part.FrameType)[2:]]


def _drop(dataset: Dataset, keywords: set[str]) -> None:
    """Remove elements by keyword, inside sequences too."""
    for element in list(dataset):
        # All of the trial module goes, or what is left of it would be illegal; overlays and curves may show names.
        whole_group = element.tag.group & 0xFF00 in (0x5000, 0x6000)
        if element.keyword in keywords or element.keyword.startswith("ClinicalTrial") or whole_group:
            del dataset[element.tag]
        elif element.VR == "SQ":
            for item in element.value:
                _drop(item, keywords)


def _code(code: Any) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _equipment(time: str, derivation: str) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Sequence([_code(codes.DCM.ModifyingEquipment)])
    item.Manufacturer = item.ManufacturerModelName = "mafl"
    item.SoftwareVersions = __version__
    item.ContributionDateTime = time
    item.ContributionDescription = derivation[:1024]
    return item
