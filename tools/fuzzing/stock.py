"""Good files, made once: small scans, masks, models, results. The parts spoil copies of them.

Every free text of a scan holds `MARK`, so that each input is a test of privacy too.
"""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

MARK = "Zweistein"
"""Stands for a patient's name; no output may hold it."""

SHAPE = (16, 16, 4)
AFFINE = np.array([[-2.0, 0, 0, 16], [0, -2, 0, 12], [0, 0, 5, 7], [0, 0, 0, 1]])
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Attributes with text that says something of people, and their value multiplicity does not matter.
PERSONAL = """
PatientName PatientID PatientBirthName PatientAddress PatientComments OtherPatientIDs OtherPatientNames InstitutionName
InstitutionAddress InstitutionalDepartmentName StationName OperatorsName PerformingPhysicianName ReferringPhysicianName
AccessionNumber StudyID StudyDescription SeriesDescription ProtocolName DeviceSerialNumber ImageComments
AdditionalPatientHistory RequestedProcedureDescription AdmittingDiagnosesDescription Manufacturer ManufacturerModelName
IdentifyingComments InsurancePlanIdentification ServiceEpisodeDescription PhysicianApprovingInterpretation
SequenceName PatientPosition ContrastBolusAgent SoftwareVersions AcquisitionDeviceProcessingDescription
DerivationDescription BodyPartExamined ScanOptions
""".split()  # noqa: SIM905
# A derived series carries these of its source: patient and study stay, or the two could not be compared.
KEPT = ("PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName", "StudyID")


@dataclass(frozen=True)
class Stock:
    """Where the good files are. All reading goes through caches that forks inherit."""

    root: Path

    def data(self, name: str) -> bytes:
        return _read(self.root / name)

    def copy(self, name: str, to: Path) -> Path:
        """A file or folder, linked where possible: damage replaces files and never writes into them."""
        source = self.root / name
        if source.is_dir():
            shutil.copytree(source, to, copy_function=_link)
        else:
            _link(str(source), str(to))
        return to

    def slices(self) -> list[Dataset]:
        """The CT series, in order; copies."""
        return [copy.deepcopy(each) for each in _series(self.root / "ct")]

    def dataset(self, name: str) -> Dataset:
        return copy.deepcopy(_dicom(self.root / name))


@lru_cache
def _read(path: Path) -> bytes:
    return path.read_bytes()


@lru_cache
def _dicom(path: Path) -> Dataset:
    return pydicom.dcmread(io.BytesIO(_read(path)))


@lru_cache
def _series(folder: Path) -> list[Dataset]:
    return [_dicom(path) for path in sorted(folder.iterdir())]


def _link(source: str, to: str) -> str:
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)
    return to


def scan_array(shape: Sequence[int] = SHAPE) -> NDArray[np.float32]:
    """A bright ball on a dark, textured ground, in [0, 1]."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    ball = np.exp(-3 * (grid**2).sum(axis=0))
    return (0.9 * ball + 0.1 * np.random.default_rng(0).random(shape)).astype(np.float32)


def stored_array() -> NDArray[np.int16]:
    return np.rint(2000 * scan_array()).astype(np.int16)


# --- NIfTI --------------------------------------------------------------------------------------------------------


def nifti(array: NDArray[Any], *, kind: Any = nib.Nifti1Image, affine: NDArray[Any] = AFFINE) -> bytes:
    """A file with a marker in every text field."""
    image = kind(array, affine)
    for field in ("descrip", "db_name", "aux_file", "intent_name", "data_type", "unused_str"):
        if field in image.header:
            size = image.header.template_dtype[field].itemsize
            image.header[field] = f"{MARK}{field}"[:size].encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, f"patient {MARK}".encode()))
    return bytes(image.to_bytes())


# --- DICOM --------------------------------------------------------------------------------------------------------


def marked(dataset: Dataset) -> Dataset:
    """With a marker in each text of a person, in a private element, and in an item of a sequence."""
    for keyword in PERSONAL:
        setattr(dataset, keyword, f"{MARK}{PERSONAL.index(keyword)}"[:16])
    dataset.add_new((0x0009, 0x0010), "LO", "FUZZ")
    dataset.add_new((0x0009, 0x1001), "LO", MARK)
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99F", MARK
    dataset.RequestAttributesSequence = Items([copy.deepcopy(item)])
    dataset.RequestAttributesSequence[0].ScheduledProcedureStepDescription = MARK
    dataset.ProcedureCodeSequence = Items([item])
    return dataset


def ct_series() -> list[Dataset]:
    stored = stored_array()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    made = []
    for k in range(stored.shape[2]):
        dataset = marked(_slice(stored[..., k].T, k))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        made.append(dataset)
    return made


def _slice(pixels: NDArray[Any], k: int) -> Dataset:
    lps = _LPS @ AFFINE
    size = np.linalg.norm(lps[:3, :3], axis=0)
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, generate_uid()
    d.Modality, d.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    d.PatientBirthDate, d.PatientSex, d.StudyDate, d.StudyTime = "19231017", "O", "20200101", "120000"
    d.SeriesNumber, d.InstanceNumber, d.AcquisitionNumber = 3, k + 1, 1
    d.ImagePositionPatient = [f"{v:.6f}" for v in (lps @ [0, 0, k, 1])[:3]]
    d.ImageOrientationPatient = [f"{v:.8f}" for v in (*(lps[:3, 0] / size[0]), *(lps[:3, 1] / size[1]))]
    d.PixelSpacing, d.SliceThickness = [f"{size[1]:.6f}", f"{size[0]:.6f}"], f"{size[2]:.6f}"
    d.SpacingBetweenSlices, d.SliceLocation = f"{size[2]:.6f}", f"{5 * k:.6f}"
    d.Rows, d.Columns = pixels.shape
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = 8 * pixels.dtype.itemsize
    d.HighBit, d.PixelRepresentation = d.BitsStored - 1, int(pixels.dtype.kind == "i")
    d.RescaleSlope, d.RescaleIntercept, d.RescaleType = 1, -1024, "HU"
    d.WindowCenter, d.WindowWidth, d.PixelPaddingValue = 40, 400, -2000
    d.add_new("PixelData", "OW", pixels.tobytes())
    return d


def enhanced_ct() -> Dataset:
    """The series as one multi-frame file."""
    slices = ct_series()
    d = slices[0]
    d.SOPClassUID, d.NumberOfFrames, d.ImageType = (
        EnhancedCTImageStorage,
        len(slices),
        ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
    )
    shared, orientation, measures, kind = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = d.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = d.PixelSpacing, d.SliceThickness
    kind.FrameType = d.ImageType
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Items([orientation]), Items([measures])
    shared.CTImageFrameTypeSequence = Items([kind])
    d.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for number, each in enumerate(slices, start=1):
        position, values, content, group = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = each.ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
        content.FrameAcquisitionNumber, content.StackID, content.InStackPositionNumber = 1, "1", number
        content.DimensionIndexValues, content.FrameComments = [1, number], MARK
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Items([position]), Items([values])
        group.FrameContentSequence = Items([content])
        groups.append(group)
    d.PerFrameFunctionalGroupsSequence = Items(groups)
    d.PixelData = b"".join(each.PixelData for each in slices)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "SliceLocation",
    ):
        del d[keyword]
    return d


def segmentation(slices: Sequence[Dataset], kind: str) -> Dataset:
    """A SEG of two segments on the series. kind: as Segmentation Type has it."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    labels = np.moveaxis(mask_array(), 2, 0).transpose(0, 2, 1)
    parts: NDArray[Any] = (
        labels if kind != "FRACTIONAL" else np.stack([labels == 1, labels == 2], axis=-1).astype(float)
    )
    made = hd.seg.Segmentation(
        source_images=list(slices),
        pixel_array=parts,
        segmentation_type=kind,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                number, f"{MARK}{number}", codes.SCT.Tissue, codes.SCT.Tissue, hd.seg.SegmentAlgorithmTypeValues.MANUAL
            )
            for number in (1, 2)
        ],
        series_instance_uid=generate_uid(), series_number=90, sop_instance_uid=generate_uid(), instance_number=1,
        manufacturer=MARK, manufacturer_model_name=MARK, software_versions="0", device_serial_number=MARK,
    )  # fmt: skip
    made.PatientComments = MARK
    return made


def mask_array() -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:11, 4:11, 1:3] = 1
    labels[10:13, 3:6, 1:3] = 2
    return labels


# --- models -------------------------------------------------------------------------------------------------------


class Threshold(torch.nn.Module):
    """Bright (above 0.5, after a light blur) is class 1."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d
        self.blur = conv(1, 1, 3, padding=1, bias=False)
        self.head = conv(1, 2, 1)
        with torch.no_grad():
            self.blur.weight.fill_(1 / 3**dims)
            self.head.weight[:] = torch.tensor([-4.0, 4.0]).view(2, 1, *(1,) * dims)
            self.head.bias[:] = torch.tensor([2.0, -2.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.blur(x)))


CARD: dict[str, Any] = {
    "name": "ball",
    "input": {
        "dims": 2, "channels": ["CT"], "orientation": "RAS", "slice_axis": "axial", "intensity": {"kind": "minmax"},
        "spacing": [2.0, 2.0, 5.0], "resample": "corner", "divisor": 1, "roi": [16, 16], "overlap": 0.5,
        "blend": "gaussian",
    },
    "output": {"activation": "softmax", "classes": ["background", "ball"]},
}  # fmt: skip
PLAIN_CARD = {"input": {"dims": 2, "intensity": {"kind": "minmax"}}, "output": {"classes": ["background", "ball"]}}

METADATA: dict[str, Any] = {
    "name": "Spleen CT",
    "version": "0.1.0",
    "network_data_format": {
        "inputs": {
            "image": {
                "type": "image", "format": "hounsfield", "num_channels": 1, "spatial_shape": ["16*n", "16*n", "4*n"],
                "dtype": "float32", "value_range": [0, 1], "is_patch_data": True, "channel_def": {"0": "CT"},
            }
        },
        "outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}},
    },
}  # fmt: skip
INFERENCE: dict[str, Any] = {
    "pixdim": [1.5, 1.5, 2.0],
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@pixdim", "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged", "keys": "image",
                "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True,
            },
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 4], "overlap": 0.5, "mode": "gaussian"},
    "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "softmax": True}]},
}  # fmt: skip


# --- all of it ----------------------------------------------------------------------------------------------------


def scans_and_models(root: Path) -> None:
    """What needs no run of mafl."""
    from fuzzing.damage import as_toml

    stored, labels = stored_array(), mask_array()
    for name, array in (("int16", stored), ("float32", scan_array()), ("uint8", (stored // 9).astype(np.uint8))):
        (root / f"{name}.nii").write_bytes(nifti(array))
    (root / "second.nii").write_bytes(nifti(scan_array(), kind=nib.Nifti2Image))
    (root / "mask.nii").write_bytes(nifti(labels))
    (root / "mask_float.nii").write_bytes(nifti(labels.astype(np.float32)))
    (root / "mask_second.nii").write_bytes(nifti(labels, kind=nib.Nifti2Image))
    image = nib.Nifti1Pair(stored, AFFINE)
    image.header["descrip"] = MARK.encode()
    image.to_filename(root / "pair.img")
    slices = ct_series()
    (root / "ct").mkdir()
    for number, dataset in enumerate(slices):
        dataset.save_as(root / "ct" / f"IM{number:04d}.dcm", enforce_file_format=True)
    enhanced_ct().save_as(root / "enhanced.dcm", enforce_file_format=True)
    for kind in ("BINARY", "FRACTIONAL", "LABELMAP"):
        segmentation(slices, kind).save_as(root / f"seg_{kind.lower()}.dcm")

    net, cube = Threshold(2).eval(), Threshold(3).eval()
    torch.jit.script(net).save(str(root / "flat.ts"))
    torch.jit.script(cube).save(str(root / "cube.ts"))
    torch.jit.trace(net, torch.zeros(1, 1, 16, 16)).save(str(root / "traced.ts"))
    torch.export.save(torch.export.export(net, (torch.zeros(1, 1, 16, 16),)), str(root / "flat.pt2"))
    torch.export.save(torch.export.export(cube, (torch.zeros(1, 1, 16, 16, 4),)), str(root / "cube.pt2"))
    extras = {"metadata.json": json.dumps(METADATA), "inference.json": json.dumps(INFERENCE)}
    torch.jit.script(cube).save(str(root / "bundle.ts"), _extra_files=extras)
    for name in ("flat", "traced"):
        (root / f"{name}.toml").write_text(as_toml(PLAIN_CARD))


RUNS: dict[str, tuple[str, ...]] = {
    "run": ("attack", "int16.nii", "-t", "shift:1:2,0,0mm", "-m", "flat.ts", "-o", "run", "--steps", "2", "-q"),
    "run_dicom": ("attack", "ct", "-t", "erase:1", "-m", "flat.ts", "-o", "run_dicom", "--steps", "2", "-q"),
    "batch": ("attack", "int16.nii", "float32.nii", "-t", "erase:1", "-m", "flat.ts", "-o", "batch", "--steps", "1"),
    "evaluated": ("evaluate", "run", "--json", "evaluation.json", "-q"),
}
"""Commands whose results are spoilt later; each in a fork."""


def run_command(arguments: Sequence[str]) -> int:
    """`mafl ARGUMENTS` in this process; ends as the command does."""
    from mafl_cli.cli.application import main

    sys.argv = ["mafl", *arguments]
    main()
    return 0
