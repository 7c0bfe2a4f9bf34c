"""Make `sample_data/`: a brain scan, its tissue labels, and two targets for the model that ships with mafl.

    pip install '.[demo]' && python tools/make_sample_data.py

Run it again after `train_demo_model.py`: the targets start from that model's own prediction.
"""

from __future__ import annotations

import numpy as np
import torch
from atlas import CLASSES, DEMO, SAMPLES, load, save

from mafl_cli.field.layout import Layout
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.whole import Whole
from mafl_cli.network.load import load as load_model

# Native units of the scan: arbitrary scanner units, 12 bits used.
SCALE = 16
SWAP_CENTRE_MM, SWAP_RADIUS_MM = (-40.0, -28.0, 40.0), 15.0
HOLE_CENTRE_MM, HOLE_RADIUS_MM = (24.0, 22.0, 24.0), 10.0


def sphere(shape: tuple[int, ...], affine: np.ndarray, centre: tuple[float, ...], radius: float) -> np.ndarray:
    """Voxels whose centre lies within `radius` mm of `centre` (mm)."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    places = voxels @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(places - np.asarray(centre), axis=-1) <= radius


def predict(scan: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The shipped model's labels, axial slice by axial slice: (I, J, K) RAS -> uint8."""
    layout = Layout.for_volume(affine, orientation="RAS", slice_axis=2)
    batch = torch.from_numpy(layout.to_batch(scan[None].astype(np.float32)))
    segmenter, info, card = load_model(
        DEMO / "model.ts", device=torch.device("cpu"), size=lambda dims: tuple(batch.shape[2:])
    )
    field = Whole(segmenter, Preprocessing.freeze(card.intensity, scan[None], torch.device("cpu")), info.divisor)
    labels = torch.cat([field.predict(part).logits.argmax(dim=1) for part in batch.split(8)])
    return layout.from_batch(labels[:, None].numpy())[0].astype(np.uint8)


def main() -> None:
    SAMPLES.mkdir(exist_ok=True)
    atlas = load().coarse(2)
    scan = np.rint(atlas.t1 * SCALE).astype(np.int16)
    save(SAMPLES / "brain_t1.nii.gz", scan, atlas.affine, "ICBM 152 2009a T1, brain only, 2 mm")
    save(SAMPLES / "brain_labels.nii.gz", atlas.labels, atlas.affine, "0 background 1 grey matter 2 white matter")

    clean = predict(scan, atlas.affine)
    swapped = clean.copy()
    inside = sphere(scan.shape, atlas.affine, SWAP_CENTRE_MM, SWAP_RADIUS_MM)
    swapped[inside & (clean == 1)], swapped[inside & (clean == 2)] = 2, 1
    save(SAMPLES / "target_swap.nii.gz", swapped, atlas.affine, "grey and white exchanged in a sphere")

    hole = clean.copy()
    hole[sphere(scan.shape, atlas.affine, HOLE_CENTRE_MM, HOLE_RADIUS_MM)] = 0
    save(SAMPLES / "target_hole.nii.gz", hole, atlas.affine, "a hole like a lesion in white matter")

    for name, target in (("target_swap", swapped), ("target_hole", hole)):
        print(f"{name}: {int((target != clean).sum())} voxels changed")
    for index, name in enumerate(CLASSES):
        wanted, given = atlas.labels == index, clean == index
        print(f"{name}: Dice of the clean prediction {2 * (wanted & given).sum() / (wanted.sum() + given.sum()):.4f}")


if __name__ == "__main__":
    main()
