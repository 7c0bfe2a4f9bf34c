"""Draw `docs/recipes.png`: the clean prediction of the sample scan, and the target that each recipe makes of it.

python tools/draw_recipes.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import nibabel as nib
import numpy as np
from matplotlib import pyplot
from matplotlib.colors import ListedColormap

from mafl_cli.case.pipeline import show_target
from mafl_cli.case.request import AttackRequest
from mafl_cli.scans.recipes import parse

ROOT = Path(__file__).resolve().parent.parent
SCAN = ROOT / "sample_data" / "brain_t1.nii.gz"
HEIGHT = 0.45
RECIPES = (
    "erase:2",
    "shift:2:12,0,0mm",
    "dilate:2:3mm",
    "erode:2:2mm",
    "swap:1,2",
    "swap:1,2:sphere@30,10,{z:.0f},22",
    "copy:{folder}/mask.nii.gz",
)


def write_ball(path: Path, centre: tuple[float, float, float], radius: float) -> None:
    """A mask on the scan's grid: class 2 within `radius` mm of a point, mm RAS+."""
    image = nib.load(SCAN)
    places = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
    apart = np.linalg.norm(nib.affines.apply_affine(image.affine, places) - centre, axis=-1)
    nib.save(nib.Nifti1Image(2 * (apart <= radius).astype(np.uint8), image.affine), path)


def upright(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A volume in RAS, and its affine."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj), image.affine


def main() -> None:
    """One panel for the prediction, one for each recipe, on one axial slice in radiological convention."""
    scan, affine = upright(SCAN)
    k = int(HEIGHT * scan.shape[2])
    z = float(affine[2, 2] * k + affine[2, 3])
    panels = []
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        write_ball(folder / "mask.nii.gz", (30, 10, z), 15)
        for text in RECIPES:
            recipe = parse(text.format(z=z, folder=folder))
            assert recipe is not None
            show_target(AttackRequest(images=(SCAN,), recipe=recipe, out=out))
            if not panels:
                panels.append(("clean prediction", upright(out / "prediction_clean.nii.gz")[0]))
            panels.append((recipe.text, upright(out / "target.nii.gz")[0]))
    figure, axes = pyplot.subplots(2, 4, figsize=(12, 7), constrained_layout=True)
    colours = ListedColormap(["#00000000", "#3b9fd9b0", "#f2a03db0"])
    for ax, (title, labels) in zip(axes.flat, panels, strict=True):
        for array, settings in (
            (scan, {"cmap": "gray"}),
            (labels, {"cmap": colours, "vmin": 0, "vmax": 2, "interpolation": "nearest"}),
        ):
            ax.imshow(array[::-1, :, k].T, origin="lower", **settings)
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    figure.savefig(ROOT / "docs" / "recipes.png", dpi=80)


if __name__ == "__main__":
    main()
