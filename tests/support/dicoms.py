"""Small DICOM series for tests, written with pydicom alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_ct(
    folder: Path,
    stored: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    slope: float | list[float] = 1.0,
    inter: float = -1024.0,
    shuffle: bool = True,
    **changes: Any,
) -> list[Dataset]:
    """Write (I, J, K) integers as a CT series, one file a slice, in a folder that is made; returns the datasets.

    affine: voxel -> mm RAS+. changes: attributes for every slice; of a list, each slice takes its own entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    datasets = []
    for k in range(stored.shape[2]):
        dataset = blank(stored[..., k].T, affine, k)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.FrameOfReferenceUID = frame_of_reference
        dataset.RescaleSlope = slope[k] if isinstance(slope, list) else slope
        dataset.RescaleIntercept = inter
        for keyword, value in changes.items():
            setattr(dataset, keyword, value[k] if isinstance(value, list) and len(value) == stored.shape[2] else value)
        datasets.append(dataset)
    # File names say nothing about the order of slices in a real archive.
    order = np.random.default_rng(0).permutation(len(datasets)) if shuffle else range(len(datasets))
    for number, k in enumerate(order):
        datasets[int(k)].save_as(folder / f"IM{number:04d}", enforce_file_format=True)
    return datasets


def blank(pixels: NDArray[Any], affine: NDArray[np.float64], k: int) -> Dataset:
    """One CT slice. pixels: (rows, columns) integers."""
    lps = LPS @ affine
    column, row = np.linalg.norm(lps[:3, 0]), np.linalg.norm(lps[:3, 1])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Doe^Jane", "P1", "", "O"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20200101", "120000", ""
    dataset.ReferringPhysicianName, dataset.StudyID = "", "1"
    dataset.Manufacturer = "test"
    dataset.SeriesNumber, dataset.InstanceNumber = 3, k + 1
    dataset.ImagePositionPatient = [f"{v:.6f}" for v in (lps @ [0, 0, k, 1])[:3]]
    dataset.ImageOrientationPatient = [f"{v:.8f}" for v in (*(lps[:3, 0] / column), *(lps[:3, 1] / row))]
    dataset.PixelSpacing = [f"{row:.6f}", f"{column:.6f}"]
    dataset.SliceThickness = f"{np.linalg.norm(lps[:3, 2]):.6f}"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    body = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset.add_new("PixelData", "OB" if bits == 8 else "OW", body + b"\0" * (len(body) % 2))
    return dataset


def write_enhanced(path: Path, stored: NDArray[Any], affine: NDArray[np.float64], *, slopes: list[float]) -> Dataset:
    """Write (I, J, K) integers as one enhanced CT file; frames lie in the reverse order of the slices."""
    lps, count = LPS @ affine, stored.shape[2]
    dataset = blank(stored[..., 0].T, affine, 0)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        shared = dataset[keyword].value if keyword != "ImagePositionPatient" else None
        if keyword == "ImageOrientationPatient":
            orientation = Dataset()
            orientation.ImageOrientationPatient = shared
        elif keyword == "PixelSpacing":
            measures = Dataset()
            measures.PixelSpacing, measures.SliceThickness = shared, dataset.SliceThickness
        del dataset[keyword]
    dataset.SOPClassUID, dataset.NumberOfFrames = EnhancedCTImageStorage, count
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.FrameOfReferenceUID = generate_uid()
    kind = Dataset()
    kind.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    together = Dataset()
    together.PlaneOrientationSequence, together.PixelMeasuresSequence = [orientation], [measures]
    together.CTImageFrameTypeSequence = [kind]
    dataset.SharedFunctionalGroupsSequence = [together]
    groups, body = [], b""
    for number, k in enumerate(reversed(range(count)), start=1):
        position, values, content, group = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [f"{v:.6f}" for v in (lps @ [0, 0, k, 1])[:3]]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slopes[k], -1024, "HU"
        content.FrameAcquisitionNumber, content.StackID, content.InStackPositionNumber = 1, "1", number
        content.DimensionIndexValues = [1, number]
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        group.FrameContentSequence = [content]
        groups.append(group)
        body += stored[..., k].T.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.add_new("PixelData", "OW", body)
    dataset.save_as(path, enforce_file_format=True)
    return dataset


AFFINE = np.array([[-0.8, 0, 0, 50], [0, -0.7, 0, 30], [0, 0, 2.5, -20], [0, 0, 0, 1]])


PIXELS = np.random.default_rng(0).integers(-500, 2000, (9, 11, 7)).astype(np.int16)


def labels() -> Any:
    found = np.zeros(PIXELS.shape, np.int64)
    found[2:4, 3:6, 2] = 1
    found[2:4, 3:6, 4] = 1
    found[6, 7, 4:6] = 2
    return found


def rewrite(folder: Path, change: Any, where: Any = lambda dataset: True) -> None:
    """Change the files of a series in place."""
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        if where(dataset):
            change(dataset)
            dataset.save_as(path)


def by_simpleitk(folder: Path) -> Any:
    """Values (I, J, K) and affine (RAS+) of a series, as ITK reads it."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return array_and_affine(reader.Execute())


def array_and_affine(image: Any) -> Any:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


def turned(seed: int) -> Any:
    """A right-handed affine in a random direction, and its pixels."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [0.8, 1.3, 2.5], rng.uniform(-100, 100, 3)
    return affine


def shorten(digits: Any) -> Any:
    def change(dataset: Any) -> None:
        dataset.ImageOrientationPatient = [f"{float(v):.{digits}f}" for v in dataset.ImageOrientationPatient]

    return change
