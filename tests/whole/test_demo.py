"""The model and the scan that ship with mafl are what their README files say.

The reading, scaling and slicing here is done with nibabel and plain tensors, not with mafl's own code: the card is a
promise to any program that uses the model.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import mafl_cli
from mafl_cli.network.card_file import read_card
from mafl_cli.network.intensity import Intensity
from mafl_cli.network.load import load

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path(mafl_cli.__file__).parent / "demo"
SAMPLES = ROOT / "sample_data"
HEADBOX = ROOT.parent / "shared" / "data" / "cases" / "t1_gwm_headbox"
SCANS = ("brain_t1", "brain_labels", "target_swap", "target_hole")
# Another processor adds in another order.
ROUNDING = 0.005


@cache
def model() -> torch.jit.ScriptModule:
    return torch.jit.load(DEMO / "model.ts").eval()


def read(path: Path) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.load(path))


def voxels(name: str) -> np.ndarray:
    return np.asarray(read(SAMPLES / f"{name}.nii.gz").dataobj)


def predict(scan: np.ndarray) -> np.ndarray:
    """(I, J, K) RAS -> uint8 labels: min-max over the volume, axial slices, zeros up to the next multiple of 16."""
    low, high = float(scan.min()), float(scan.max())
    slices = torch.from_numpy((scan.astype(np.float32) - low) / (high - low)).permute(2, 0, 1)[:, None]
    height, width = slices.shape[2:]
    padded = torch.nn.functional.pad(slices, (0, -width % 16, 0, -height % 16))
    with torch.no_grad():
        labels = torch.cat([model()(part).argmax(dim=1) for part in padded.split(8)])
    return labels[:, :height, :width].permute(1, 2, 0).numpy().astype(np.uint8)


@cache
def clean() -> np.ndarray:
    return predict(voxels("brain_t1"))


def dice(found: np.ndarray, truth: np.ndarray) -> list[float]:
    pairs = [(found == label, truth == label) for label in range(3)]
    return [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]


def stated(row: str) -> list[float]:
    """The three Dice figures of a row of the table in the model's README."""
    text = (DEMO / "README.md").read_text(encoding="utf-8")
    (figures,) = re.findall(rf"^\| {re.escape(row)} \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    return [float(figure) for figure in figures]


def sphere(name: str) -> np.ndarray:
    """Voxels inside the sphere that the samples' README states for a target."""
    text = (SAMPLES / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"`{name}\.nii\.gz`.*?radius (\d+) mm around \((.+?)\) mm", text)
    radius, centre = float(found[0]), [float(mm) for mm in found[1].split(",")]
    image = read(SAMPLES / f"{name}.nii.gz")
    places = nib.affines.apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1))
    return np.linalg.norm(places - centre, axis=-1) <= radius


@pytest.mark.parametrize("shape", [(1, 16, 32), (1, 112, 128), (3, 96, 80), (2, 256, 192)], ids=str)
def test_the_model_takes_any_batch_and_any_size_that_divides(shape: tuple[int, ...]) -> None:
    batch, height, width = shape
    scan = torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model()(scan)
    assert logits.shape == (batch, 3, height, width)
    (gradient,) = torch.autograd.grad(logits.softmax(dim=1)[:, 1].sum(), scan)
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()


def test_slices_of_a_few_voxels_are_padded_as_far_as_the_model_needs() -> None:
    segmenter, info, _ = load(DEMO / "model.ts", device=torch.device("cpu"), size=lambda _: (6, 5))
    assert segmenter(torch.rand(2, 1, 32, 32)).logits.shape == (2, 3, 32, 32)
    assert info.divisor == 32
    assert "divisor: 16 gives a size that is too small for the network; padded to multiples of 32" in info.assumptions


def test_a_slice_is_segmented_the_same_alone_and_in_a_batch() -> None:
    scan = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([model()(part) for part in scan.split(1)])
    together = model()(scan)
    assert torch.equal(together.argmax(dim=1), alone.argmax(dim=1))
    # Other kernels add up in another order: a few units in the last place of the largest logits.
    assert (together - alone).abs().max() <= 4e-6 * alone.abs().max()


def test_the_sample_leaves_the_model_room_to_change_its_mind() -> None:
    """A saturated softmax has no gradient to follow, and would make every attack on the demo look hard."""
    scan = torch.from_numpy(voxels("brain_t1").astype(np.float32)).permute(2, 0, 1)[40:44, None]
    slices = torch.nn.functional.pad(scan / scan.max(), (0, -scan.shape[3] % 16, 0, -scan.shape[2] % 16))
    with torch.no_grad():
        surest = model()(slices).softmax(dim=1).amax(dim=1)
    assert surest.median() > 0.9
    assert surest.max() < 1 - 1e-5


def test_the_card_states_what_these_tests_do_to_a_scan() -> None:
    card = read_card(DEMO / "model.toml")
    assert card.intensity == Intensity(kind="minmax")
    assert (card.dims, card.orientation, card.slice_axis, card.divisor) == (2, "RAS", "axial", 16)
    assert (card.activation, card.classes) == ("softmax", ("background", "grey matter", "white matter"))


@pytest.mark.parametrize(
    ("path", "limit"),
    [(DEMO / "model.ts", 4e6), *((SAMPLES / f"{name}.nii.gz", 1e6) for name in SCANS)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_shipped_files_are_small(path: Path, limit: float) -> None:
    assert path.stat().st_size < limit


@pytest.mark.parametrize("name", SCANS)
def test_samples_lie_on_one_grid_with_a_sane_header(name: str) -> None:
    image, scan = nib.load(SAMPLES / f"{name}.nii.gz"), nib.load(SAMPLES / "brain_t1.nii.gz")
    assert image.shape == scan.shape
    np.testing.assert_array_equal(image.affine, scan.affine)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.header.get_zooms(), 2)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_the_scan_is_int16_and_uses_much_of_its_range() -> None:
    scan = voxels("brain_t1")
    assert scan.dtype == np.int16
    assert scan.min() == 0
    assert 1000 < scan.max() < 4096


@pytest.mark.parametrize("name", SCANS[1:])
def test_masks_are_uint8_and_hold_all_classes(name: str) -> None:
    mask = voxels(name)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1, 2}


@pytest.mark.parametrize("name", SCANS)
def test_packed_files_carry_no_time_and_no_name(name: str) -> None:
    header = (SAMPLES / f"{name}.nii.gz").read_bytes()[:10]
    assert header[3] == 0, "gzip flags: a file name or comment follows"
    assert header[4:8] == bytes(4), "gzip modification time"


def test_labels_follow_the_template() -> None:
    """Tissue labels lie where the scan has signal, and white matter is brighter than grey on T1."""
    scan, labels = voxels("brain_t1"), voxels("brain_labels")
    assert scan[labels == 2].mean() > 1.2 * scan[labels == 1].mean() > 0
    assert (scan[labels > 0] > 0).mean() > 0.98


def test_dice_on_the_sample_is_what_the_card_states() -> None:
    assert dice(clean(), voxels("brain_labels")) == pytest.approx(stated("sample scan, 2 mm"), abs=ROUNDING)


@pytest.mark.shared
@pytest.mark.skipif(not HEADBOX.is_dir(), reason="no development scans beside the checkout")
def test_agreement_on_a_stranger_is_what_the_card_states() -> None:
    # 0 background, 1 white, 2 grey in the reference.
    reference = np.array([0, 2, 1])[np.asarray(read(HEADBOX / "clean_pred.nii.gz").dataobj)]
    found = predict(np.asarray(read(HEADBOX / "image.nii.gz").dataobj))
    assert dice(found, reference) == pytest.approx(stated("another person, whole head, 1 mm"), abs=ROUNDING)


@pytest.mark.parametrize("name", SCANS[2:])
def test_a_target_is_the_clean_prediction_outside_its_sphere(name: str) -> None:
    apart = (voxels(name) != clean()) & ~sphere(name)
    # Where two classes tie, another processor may decide otherwise.
    assert apart.mean() < 1e-4


def test_targets_agree_outside_both_spheres() -> None:
    outside = ~sphere("target_swap") & ~sphere("target_hole")
    np.testing.assert_array_equal(voxels("target_swap")[outside], voxels("target_hole")[outside])


def test_the_swap_exchanges_grey_and_white_inside_its_sphere() -> None:
    inside = sphere("target_swap")
    exchanged = np.array([0, 2, 1])[clean()[inside]]
    assert (voxels("target_swap")[inside] == exchanged).mean() > 0.999
    assert min((exchanged == 1).sum(), (exchanged == 2).sum()) > 100, "both tissues are in the sphere"


def test_the_hole_is_background_in_white_matter() -> None:
    inside = sphere("target_hole")
    assert (voxels("target_hole")[inside] == 0).all()
    assert (clean()[inside] == 2).mean() > 0.8
