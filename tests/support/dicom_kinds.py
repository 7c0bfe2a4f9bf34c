"""One small scan as images of many DICOM classes, each with what its class asks for and with text in many places."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from dicoms import blank
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from mafl_cli.scans.dicom.kept import coded

MARK = "ZZPATIENT"
AFFINE = np.array([[-0.8, 0, 0, 50], [0, -0.7, 0, 30], [0, 0, 2.5, -20], [0, 0, 0, 1]])

# What each class has beyond a plain CT slice, in its own series.
_OWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "CT": (uid.CTImageStorage, "CT", {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "KVP": 120, "RescaleType": "HU"}),
    "MR": (
        uid.MRImageStorage,
        "MR",
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"], "ScanningSequence": "SE", "SequenceVariant": "SK",
            "ScanOptions": "FS", "MRAcquisitionType": "2D", "EchoTime": 20, "RepetitionTime": 500,
            "EchoTrainLength": 1, "FlipAngle": 90, "MagneticFieldStrength": 1.5, "ImagedNucleus": "1H",
        },
    ),
    "PT": (
        uid.PositronEmissionTomographyImageStorage,
        "PT",
        {
            "ImageType": ["ORIGINAL", "PRIMARY"], "SeriesDate": "20200101", "SeriesTime": "120000", "Units": "BQML",
            "CountsSource": "EMISSION", "SeriesType": ["STATIC", "IMAGE"], "NumberOfSlices": 2,
            "CorrectedImage": ["DECY", "ATTN"], "DecayCorrection": "START", "CollimatorType": "NONE",
            "FrameReferenceTime": 1000, "ActualFrameDuration": 60000, "DecayFactor": 1.1,
            "AcquisitionDate": "20200101", "AcquisitionTime": "120000", "PatientWeight": 70,
        },
    ),
    "NM": (
        uid.NuclearMedicineImageStorage,
        "NM",
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"], "NumberOfFrames": 1, "CountsAccumulated": 9,
            "EnergyWindowVector": 1, "NumberOfEnergyWindows": 1, "DetectorVector": 1, "NumberOfDetectors": 1,
            "FrameIncrementPointer": [Tag("EnergyWindowVector"), Tag("DetectorVector")],
            "ActualFrameDuration": 60000, "LossyImageCompression": "00",
        },
    ),
    "CR": (
        uid.ComputedRadiographyImageStorage,
        "CR",
        {"ImageType": ["ORIGINAL", "PRIMARY"], "ViewPosition": "PA", "PatientOrientation": ["L", "F"]},
    ),
    "US": (
        uid.UltrasoundImageStorage,
        "US",
        {"ImageType": ["ORIGINAL", "PRIMARY", "ABDOMINAL"], "PatientOrientation": "", "UltrasoundColorDataPresent": 0},
    ),
    "SC": (
        uid.SecondaryCaptureImageStorage,
        "OT",
        {"ImageType": ["ORIGINAL", "PRIMARY"], "PatientOrientation": "", "ConversionType": "WSD"},
    ),
}  # fmt: skip
SINGLE = (*_OWN,)
KINDS = (*SINGLE, "enhanced CT", "enhanced MR", "legacy CT", "legacy MR", "legacy PT")


def pixels(kind: str) -> NDArray[Any]:
    """(I, J, K) integers of a type that the class allows."""
    values = np.random.default_rng(0).integers(0, 250, (16, 16, 2))
    return values.astype({"US": np.uint8, "CR": np.uint16, "NM": np.uint16, "SC": np.uint16}.get(kind, np.int16))


def item(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def single(kind: str) -> list[Dataset]:
    """The slices of the scan, as one dataset each; of projections they are none of one volume."""
    stored = pixels(kind)
    sop_class, modality, own = _OWN[kind]
    study, series, place = generate_uid(), generate_uid(), generate_uid()
    made = []
    for k in range(stored.shape[2]):
        dataset = blank(stored[..., k].T, AFFINE, k)
        dataset.SOPClassUID, dataset.Modality = sop_class, modality
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, place
        dataset.PositionReferenceIndicator = ""
        dataset.AcquisitionNumber, dataset.KVP = 1, ""
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "US"
        dataset.BodyPartExamined = "BRAIN"
        if kind in ("CT", "MR"):
            dataset.PatientPosition = "HFS"
        dataset.AnatomicRegionSequence = [coded(codes.SCT.Brain)]
        for keyword, value in own.items():
            setattr(dataset, keyword, value)
        if kind == "PT":
            dataset.ImageIndex = k + 1
        if kind in ("PT", "NM"):
            _nuclear(dataset, kind)
        if kind in ("CR", "US", "SC", "NM"):
            _without_plane(dataset, kind)
        made.append(dataset)
    return made


def _without_plane(dataset: Dataset, kind: str) -> None:
    """Projections have no place in the patient."""
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"):
        del dataset[keyword]
    if kind != "NM":
        for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
            del dataset[keyword]


def _nuclear(dataset: Dataset, kind: str) -> None:
    nuclide = item(
        RadionuclideCodeSequence=[coded(codes.SCT._18Fluorine)],
        RadiopharmaceuticalStartTime="110000",
        RadionuclideTotalDose=3e8,
        RadionuclideHalfLife=6586.2,
        Radiopharmaceutical=MARK,
    )
    dataset.PatientOrientationCodeSequence = [coded(codes.SCT.Recumbent)]
    dataset.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = [coded(codes.SCT.Supine)]
    dataset.PatientGantryRelationshipCodeSequence = [coded(codes.SCT.Headfirst)]
    dataset.RadiopharmaceuticalInformationSequence = [nuclide]
    if kind == "NM":
        window = item(EnergyWindowLowerLimit=126, EnergyWindowUpperLimit=154)
        dataset.EnergyWindowInformationSequence = [item(EnergyWindowRangeSequence=[window], EnergyWindowName=MARK)]
        place = {key: dataset[key].value for key in ("ImagePositionPatient", "ImageOrientationPatient")}
        dataset.DetectorInformationSequence = [item(CollimatorType="PARA", CollimatorGridName=MARK, **place)]


def legacy(kind: str) -> Dataset:
    """Slices that were converted to one enhanced object, with what does not fit into it as it was."""
    made = {
        "CT": highdicom.legacy.LegacyConvertedEnhancedCTImage,
        "MR": highdicom.legacy.LegacyConvertedEnhancedMRImage,
        "PT": highdicom.legacy.LegacyConvertedEnhancedPETImage,
    }
    slices = single(kind)
    for dataset in slices:
        dataset.ProtocolName = dataset.SequenceName = dataset.ConvolutionKernel = MARK
    logging.disable()  # highdicom would have windows and a side of the brain.
    try:
        return made[kind](slices, generate_uid(), 4, generate_uid(), 1)
    finally:
        logging.disable(logging.NOTSET)


def enhanced(kind: str) -> Dataset:
    """The scan as one enhanced CT or MR object, as a scanner writes it."""
    stored = pixels(kind)
    dataset = single(kind)[0]
    for keyword in (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope"),
        *("RescaleIntercept", "RescaleType", "KVP", "ScanningSequence", "SequenceVariant", "ScanOptions", "FlipAngle"),
        *(
            "MRAcquisitionType",
            "EchoTime",
            "RepetitionTime",
            "EchoTrainLength",
            "ImagedNucleus",
            "AnatomicRegionSequence",
        ),
    ):
        if keyword in dataset:
            del dataset[keyword]
    frame_type = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.SOPClassUID = {"CT": uid.EnhancedCTImageStorage, "MR": uid.EnhancedMRImageStorage}[kind]
    dataset.ImageType, dataset.NumberOfFrames = frame_type, stored.shape[2]
    dataset.AcquisitionDateTime, dataset.AcquisitionDuration = "20200101120000", 10.0
    dataset.ContentDate, dataset.ContentTime, dataset.ContentQualification = "20200101", "120000", "PRODUCT"
    dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
    dataset.VolumeBasedCalculationTechnique, dataset.BurnedInAnnotation = "NONE", "NO"
    dataset.LossyImageCompression, dataset.PresentationLUTShape = "00", "IDENTITY"
    dataset.Manufacturer = dataset.ManufacturerModelName = dataset.DeviceSerialNumber = dataset.SoftwareVersions = MARK
    dataset.AcquisitionContextSequence = []
    organization = generate_uid()
    dataset.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organization)]
    pointers = (("FrameContentSequence", "StackID"), ("FrameContentSequence", "InStackPositionNumber"))
    dataset.DimensionIndexSequence = [
        item(
            DimensionIndexPointer=Tag(pointer), FunctionalGroupPointer=Tag(group),
            DimensionOrganizationUID=organization, DimensionDescriptionLabel=MARK,
        )
        for group, pointer in pointers
    ]  # fmt: skip
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    flavour = item(
        FrameType=frame_type, PixelPresentation="MONOCHROME", VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
    )  # fmt: skip
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.7, 0.8], SliceThickness=2.5)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        FrameAnatomySequence=[item(FrameLaterality="U", AnatomicRegionSequence=[coded(codes.SCT.Brain)])],
        PixelValueTransformationSequence=[
            item(RescaleIntercept=0, RescaleSlope=1, RescaleType="HU" if kind == "CT" else "US")
        ],
        FrameVOILUTSequence=[item(WindowCenter=100, WindowWidth=200, WindowCenterWidthExplanation=MARK)],
    )
    (_describe_ct if kind == "CT" else _describe_mr)(dataset, shared, flavour)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[float(v) for v in (lps @ [0, 0, k, 1])[:3]])],
            FrameContentSequence=[
                item(
                    StackID=MARK, InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1],
                    FrameAcquisitionNumber=1,
                    FrameAcquisitionDateTime="20200101120000", FrameReferenceDateTime="20200101120000",
                    FrameAcquisitionDuration=10.0, FrameComments=MARK,
                )
            ],
        )
        for k in range(stored.shape[2])
    ]  # fmt: skip
    body = np.ascontiguousarray(stored.transpose(2, 1, 0))
    dataset.add_new("PixelData", "OW", body.tobytes())
    return dataset


def _describe_ct(dataset: Dataset, shared: Dataset, flavour: Dataset) -> None:
    dataset.AcquisitionNumber = 1
    shared.CTImageFrameTypeSequence = [flavour]
    shared.CTAcquisitionTypeSequence = [item(AcquisitionType="SPIRAL", ConstantVolumeFlag="NO", FluoroscopyFlag="NO")]
    shared.CTAcquisitionDetailsSequence = [
        item(
            RotationDirection="CW", RevolutionTime=0.5, SingleCollimationWidth=1.0, TotalCollimationWidth=10.0,
            TableHeight=0.0, GantryDetectorTilt=0.0, DataCollectionDiameter=500.0,
        )
    ]  # fmt: skip
    shared.CTTableDynamicsSequence = [item(TableSpeed=1.0, TableFeedPerRotation=1.0, SpiralPitchFactor=1.0)]
    centre = {key: [0.0, 0.0, 0.0] for key in ("DataCollectionCenterPatient", "ReconstructionTargetCenterPatient")}
    shared.CTPositionSequence = [item(TablePosition=0.0, **centre)]
    shared.CTGeometrySequence = [item(DistanceSourceToDetector=1000.0, DistanceSourceToDataCollectionCenter=500.0)]
    shared.CTReconstructionSequence = [
        item(
            ReconstructionAlgorithm="FILTER_BACK_PROJ", ConvolutionKernel=MARK, ConvolutionKernelGroup="BRAIN",
            ReconstructionDiameter=250.0, ImageFilter=MARK, ReconstructionPixelSpacing=[0.7, 0.8],
            ReconstructionAngle=360.0,
        )
    ]  # fmt: skip
    shared.CTExposureSequence = [
        item(
            ExposureTimeInms=10.0,
            XRayTubeCurrentInmA=10.0,
            ExposureInmAs=1.0,
            ExposureModulationType="NONE",
            CTDIvol=1.0,
        )
    ]
    shared.CTXRayDetailsSequence = [item(KVP=120, FocalSpots=1.0, FilterType=MARK, FilterMaterial="ALUMINUM")]
    shared.IrradiationEventIdentificationSequence = [item(IrradiationEventUID=generate_uid())]


def _describe_mr(dataset: Dataset, shared: Dataset, flavour: Dataset) -> None:
    dataset.AcquisitionNumber, dataset.ApplicableSafetyStandardAgency = 1, "IEC"
    dataset.ResonantNucleus, dataset.KSpaceFiltering, dataset.PulseSequenceName = "1H", "NONE", MARK
    dataset.MRAcquisitionType, dataset.EchoPulseSequence = "2D", "SPIN"
    for keyword in (
        *("MultipleSpinEcho", "MultiPlanarExcitation", "PhaseContrast", "TimeOfFlightContrast", "SaturationRecovery"),
        *("EchoPlanarPulseSequence",),
    ):
        setattr(dataset, keyword, "NO")
    dataset.SteadyStatePulseSequence = dataset.SpectrallySelectedSuppression = dataset.OversamplingPhase = "NONE"
    dataset.GeometryOfKSpaceTraversal, dataset.SegmentedKSpaceTraversal = "RECTILINEAR", "SINGLE"
    dataset.RectilinearPhaseEncodeReordering, dataset.NumberOfKSpaceTrajectories = "LINEAR", 1
    dataset.ComplexImageComponent, dataset.AcquisitionContrast = "MAGNITUDE", "T1"
    flavour.ComplexImageComponent, flavour.AcquisitionContrast = "MAGNITUDE", "T1"
    shared.MRImageFrameTypeSequence = [flavour]
    shared.MRTimingAndRelatedParametersSequence = [
        item(
            RepetitionTime=500, FlipAngle=90, EchoTrainLength=1, RFEchoTrainLength=1, GradientEchoTrainLength=0,
            SpecificAbsorptionRateSequence=[
                item(SpecificAbsorptionRateDefinition="IEC_HEAD", SpecificAbsorptionRateValue=1.0)
            ],
            OperatingModeSequence=[item(OperatingModeType="RF", OperatingMode="IEC_NORMAL")],
            GradientOutputType="DB_DT", GradientOutput=1.0,
        )
    ]  # fmt: skip
    shared.MRFOVGeometrySequence = [
        item(
            InPlanePhaseEncodingDirection="ROW", MRAcquisitionFrequencyEncodingSteps=16,
            MRAcquisitionPhaseEncodingStepsInPlane=16, PercentSampling=100, PercentPhaseFieldOfView=100,
        )
    ]  # fmt: skip
    shared.MREchoSequence = [item(EffectiveEchoTime=20.0)]
    shared.MRModifierSequence = [
        item(
            InversionRecovery="NO", FlowCompensation="NONE", Spoiling="NONE", T2Preparation="NO",
            SpectrallySelectedExcitation="NONE", SpatialPresaturation="NONE", PartialFourier="NO",
            ParallelAcquisition="NO",
        )
    ]  # fmt: skip
    shared.MRImagingModifierSequence = [
        item(
            MagnetizationTransfer="NONE", BloodSignalNulling="NO", Tagging="NONE", TransmitterFrequency=63.8,
            PixelBandwidth=100,
        )
    ]  # fmt: skip
    shared.MRReceiveCoilSequence = [
        item(
            ReceiveCoilName=MARK, ReceiveCoilManufacturerName=MARK, ReceiveCoilType="BODY", QuadratureReceiveCoil="YES"
        )
    ]
    shared.MRTransmitCoilSequence = [
        item(TransmitCoilName=MARK, TransmitCoilManufacturerName=MARK, TransmitCoilType="BODY")
    ]
    shared.MRAveragesSequence = [item(NumberOfAverages=1)]


def datasets(kind: str) -> list[Dataset]:
    """The files of the scan as one of `KINDS`."""
    if kind in SINGLE:
        made = single(kind)
        return made if "ImagePositionPatient" in made[0] else made[:1]
    group, modality = kind.split()
    return [(legacy if group == "legacy" else enhanced)(modality)]


def write(folder: Path, made: list[Dataset]) -> list[Path]:
    """Write files into a folder that is made."""
    folder.mkdir(parents=True)
    for number, dataset in enumerate(made):
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())
