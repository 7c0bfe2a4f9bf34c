"""The ICBM-152 maps that nilearn ships, read and written the same way by both building scripts.

Words. *T1*: template intensity, 0 to 255, brain only. *grey*, *white*: probability of the tissue, 0 to 1. All are
1 mm, RAS, (197, 233, 189).
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import nilearn.datasets
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_data"
DEMO = ROOT / "mafl_cli" / "demo"
CLASSES = ("background", "grey matter", "white matter")


@dataclass(frozen=True)
class Atlas:
    t1: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    affine: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """(I, J, K) uint8: the likeliest of background, grey and white matter."""
        background = 1 - self.grey - self.white
        return np.argmax([background, self.grey, self.white], axis=0).astype(np.uint8)

    def coarse(self, factor: int = 2) -> Atlas:
        """Block means: voxels `factor` times as wide. Sizes that do not divide lose their last voxels."""
        sizes = [n // factor for n in self.t1.shape]

        def block_mean(x: np.ndarray) -> np.ndarray:
            cut = x[tuple(slice(n * factor) for n in sizes)]
            blocks = cut.reshape(sizes[0], factor, sizes[1], factor, sizes[2], factor)
            return blocks.mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32)

        affine = self.affine @ np.diag([factor, factor, factor, 1.0])
        affine[:3, 3] += self.affine[:3, :3] @ np.full(3, (factor - 1) / 2)
        return Atlas(block_mean(self.t1), block_mean(self.grey), block_mean(self.white), affine)


def load() -> Atlas:
    folder = Path(nilearn.datasets.__file__).parent / "data"

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        image = nib.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
        return np.asarray(image.dataobj, dtype=np.float32), image.affine

    t1, affine = read("t1")
    return Atlas(t1, read("gm")[0] / 255, read("wm")[0] / 255, affine)


def save(path: Path, data: np.ndarray, affine: np.ndarray, description: str) -> None:
    """Write a NIfTI in MNI space, byte for byte the same on every run."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header["descrip"] = description.encode()
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, packed, mtime=0) as file:
        file.write(image.to_bytes())
    path.write_bytes(packed.getvalue())
