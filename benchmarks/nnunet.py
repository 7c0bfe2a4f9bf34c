"""Attacks on nnU-Net results folders, judged by nnU-Net itself.

    pip install 'mafl[nnunet]'
    python benchmarks/nnunet.py [2d] [3d] [regions]

Trains three small configurations with nnU-Net (`nnunet_made.py`; minutes on two cores, once), and shows for each:

- whether mafl draws on the test scan what nnU-Net's own predictor draws: one fold, all folds, all folds mirrored;
- how far the gradient is from that of autograd through the same pipeline in one graph;
- whether `mafl attack case_0000.nii.gz --target TARGET --model FOLDER` reaches its goal, with nnU-Net drawing on the
  file as it was written: the lesion goes, or all of it, or the organ goes around a lesion that stays;
- what the gradient of everything takes beside nnU-Net's own prediction, in CPU time and memory.

`--cache DIR` keeps what was trained (default: ~/.cache/mafl-nnunet).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from nnunet_made import MADE, Made, prepare, train
from numpy.typing import NDArray
from torch import Tensor

from mafl_cli.case.memory import peak_resident
from mafl_cli.case.request import ModelRequest
from mafl_cli.case.subject import Subject, prepare_subject, read_channels
from mafl_cli.field.boxes import on_last_axes
from mafl_cli.network.nnunet.ensemble import Ensemble

CPU = torch.device("cpu")
WAYS: dict[str, dict[str, Any]] = {
    "one fold": {"folds": ("0",), "mirror": False},
    "all folds": {"mirror": False},
    "all folds, mirrored": {},
}


def main() -> None:
    """Train what is not there, and print a line for each thing that is shown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=[], choices=[*MADE, []])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "mafl-nnunet")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25, help="Training steps in an epoch.")
    parser.add_argument(
        "--attack", choices=WAYS, default="one fold", help="What is attacked; all take 16 times as long."
    )
    parser.add_argument("--timed", choices=TIMED, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    prepare(asked.cache)
    if asked.timed is not None:
        print(json.dumps(TIMED[asked.timed](MADE[asked.names[0]], asked.cache, asked.attack)))
        return
    for name in asked.names or MADE:
        made = MADE[name]
        with contextlib.redirect_stdout(sys.stderr):
            train(made, asked.cache, epochs=asked.epochs, steps=asked.steps)
        for way in WAYS:
            _show(name, f"agreement, {way}", _agreement(made, asked.cache, way))
        _show(name, "gradient off by", _gradient(made, asked.cache))
        for way in ("one fold", "all folds, mirrored"):
            _show(name, f"cost, {way}", _cost(name, asked.cache, way))
        for target, steps in made.attacks:
            found = _attack(made, asked.cache, asked.attack, target, steps)
            _show(name, f"{target}, {steps} steps, {asked.attack}", found)


def _show(name: str, what: str, found: object) -> None:
    print(f"{name:<8} {what:<40} {found}", flush=True)


def _subject(made: Made, cache: Path, **ways: Any) -> Subject:
    def say(line: str) -> None:
        """Nothing: what is assumed is not what is shown here."""

    request = ModelRequest(model=made.folder(cache), **ways)
    return prepare_subject(read_channels(made.scans(cache), say), request, CPU, say)


def _predictor(made: Made, cache: Path, *, folds: Sequence[str] | None = None, mirror: bool = True) -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirror, device=CPU, allow_tqdm=False)
        numbers = None if folds is None else tuple(map(int, folds))
        predictor.initialize_from_trained_model_folder(str(made.folder(cache)), use_folds=numbers)
    return predictor


def _drawn(predictor: Any, scans: Sequence[Path]) -> NDArray[np.int64]:
    """nnU-Net's own prediction of a scan's files, (I, J, K)."""
    reader = predictor.plans_manager.image_reader_writer_class()
    image, properties = reader.read_images([str(scan) for scan in scans])
    labels = predictor.predict_single_npy_array(image, properties, None, None, False)
    found: NDArray[np.int64] = np.asarray(labels).astype(np.int64).transpose(2, 1, 0)
    return found


def _as_labels(maps: NDArray[Any], made: Made, cache: Path) -> NDArray[np.int64]:
    """What mafl draws, (M, I, J, K), as nnU-Net writes it: of regions, the last one that holds a voxel."""
    order = json.loads((made.folder(cache) / "dataset.json").read_text()).get("regions_class_order")
    labels = np.zeros(maps.shape[1:], np.int64)
    if order is None:
        labels += maps[0]
        return labels
    for region, label in zip(maps, order, strict=True):
        labels[region > 0] = label
    return labels


def _agreement(made: Made, cache: Path, way: str) -> str:
    subject = _subject(made, cache, **WAYS[way])
    begin = time.perf_counter()
    maps = subject.predict([scan.data for scan in subject.scans])
    mine, between = _as_labels(maps, made, cache), time.perf_counter()
    theirs = _drawn(_predictor(made, cache, **WAYS[way]), made.scans(cache))
    took = (between - begin, time.perf_counter() - between)
    share = float((mine == theirs).mean())
    stored: Any = nib.load(cache / "raw" / made.data_set / "labelsTs" / "case.nii.gz")
    truth = np.asarray(stored.dataobj)
    dice = [2 * ((theirs == k) & (truth == k)).sum() / ((theirs == k).sum() + (truth == k).sum()) for k in (1, 2)]
    return (
        f"{share:.6%} of {mine.size} voxels ({int((theirs > 0).sum())} foreground; Dice with the truth "
        f"{dice[0]:.2f}, {dice[1]:.2f}); mafl {took[0]:.1f} s, "
        f"nnU-Net {took[1]:.1f} s"
    )


def _gradient(made: Made, cache: Path) -> str:
    """On a part of the scan, through all folds: the largest difference, as a share of the largest slope."""
    # One graph of all windows and mirrors of a volume takes minutes and gigabytes.
    way = "all folds, mirrored" if made.configuration == "2d" else "all folds"
    subject = _subject(made, cache, **WAYS[way])
    roi = subject.tiling.roi if subject.tiling else ()
    whole = subject.clean
    # Of volumes two windows, along the last axis.
    beyond = (2, 2, 2) if made.configuration == "2d" else (0, 0, 2)
    part = tuple(
        slice(max(size // 2 - edge // 2 - more, 0), size // 2 + edge // 2 + more)
        for size, edge, more in zip(whole.shape[2:], (max(edge, 4) for edge in roi), beyond, strict=True)
    )
    clean = whole[on_last_axes(part)].contiguous()
    data = [np.ascontiguousarray(channel) for channel in subject.layout.as_scan(clean.numpy())]
    scans = tuple(replace(scan, data=channel) for scan, channel in zip(subject.scans, data, strict=True))
    subject = replace(subject, clean=clean, scans=scans)
    frozen = subject.frozen(data)
    field = subject.field(frozen)
    x = clean.clone().requires_grad_()
    theirs = _one_graph(subject, frozen, x)
    pull = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0))
    (expected,) = torch.autograd.grad(theirs, x, pull)
    found = field.slopes(clean, lambda prediction: [(prediction.logits * pull).flatten(1).sum(dim=1)])
    apart = float((found.gradients[0] - expected).abs().max() / expected.abs().max())
    logits = float((found.prediction.logits - theirs.detach()).abs().max() / theirs.detach().abs().max())
    size = " x ".join(map(str, clean.shape[2:]))
    return f"{apart:.1e} of its largest slope; logits by {logits:.1e}; {size} voxels, {way}"


def _one_graph(subject: Subject, frozen: Any, x: Tensor) -> Tensor:
    """Logits of a volume, every pass and every window in one graph."""
    ensemble, tiling, grids = subject.segmenter.original.file.module, subject.tiling, subject.grids_for(frozen)
    assert isinstance(ensemble, Ensemble)
    assert tiling is not None
    box = on_last_axes(frozen.crop.box)
    inner = grids.to_network(frozen(x[box]))
    pads = tiling.padding(inner.shape[2:])
    ready = F.pad(inner, [amount for pad in reversed(pads) for amount in pad])
    weights, total, logits = tiling.weights(CPU), torch.zeros(ready.shape[2:]), None
    for start in tiling.starts(ready.shape[2:]):
        place = tuple(slice(first, first + edge) for first, edge in zip(start, tiling.roi, strict=True))
        one = _plain(ensemble, ready[on_last_axes(place)]) * weights
        ends = [(part.start, size - part.stop) for part, size in zip(place, ready.shape[2:], strict=True)]
        spread = F.pad(one, [amount for end in reversed(ends) for amount in end])
        logits = spread if logits is None else logits + spread
        total[place] += weights
    assert logits is not None
    sizes = zip(pads, inner.shape[2:], strict=True)
    logits = (logits / total)[on_last_axes([slice(before, before + size) for (before, _), size in sizes])]
    if subject.info.classes.overlapping:
        logits = torch.stack([-logits / 2, logits / 2], dim=1)
    back = grids.from_network(logits)
    around = back.new_full((*back.shape[:-3], *x.shape[2:]), -20.0)
    around[:, 0] = 20.0
    around[box] = back
    return around


def _plain(ensemble: Ensemble, x: Tensor) -> Tensor:
    """The mean over all networks and mirrors, nothing left out of the graph."""
    flat = x.shape[2] == 1 and next(ensemble.parameters()).ndim == 4
    x = x.squeeze(2) if flat else x
    flips = [[axis + 2 for axis in axes] for axes in ensemble.flips]
    passes = [torch.flip(net(torch.flip(x, dims)), dims) for net in ensemble.networks for dims in flips]
    mean = torch.stack(passes).mean(dim=0)
    return mean.unsqueeze(2) if flat else mean


def _attack(made: Made, cache: Path, way: str, target: str, steps: int) -> str:
    """Attack with the command line, and let nnU-Net draw what was written."""
    out = cache / "attacks" / made.name
    scans, folder = made.scans(cache), made.folder(cache)
    command = [sys.executable, "-m", "mafl_cli", "attack", str(scans[0]), "--target", target, "--model", str(folder)]
    command += ["--steps", str(steps)]
    if "folds" in WAYS[way]:
        command += ["--folds", ",".join(WAYS[way]["folds"])]
    if "mirror" in WAYS[way]:
        command += ["--no-mirror"]
    begin = time.perf_counter()
    subprocess.run([*command, "--out", str(out), "--overwrite", "--quiet"], check=True)
    took = time.perf_counter() - begin
    report = json.loads((out / "report.json").read_text())
    written = sorted(out.glob("adversarial*.nii.gz"))
    theirs = _drawn(_predictor(made, cache, **WAYS[way]), written)
    before, after, wanted = (_labels_in(out / name, made, cache) for name in _MASKS)
    edit = before != wanted
    said = report["cases"][0]
    goal = "reached" if said["attack"]["goal_reached"] else "missed"
    iou = said["metrics"]["post_write"]["target_iou"].get("value")
    return (
        f"goal {goal}, target IoU {iou}; of {int(edit.sum())} voxels that must change, nnU-Net draws "
        f"{float((theirs == wanted)[edit].mean()):.2%} as wanted on the written file, and "
        f"{float((theirs == after).mean()):.4%} of all as the report says; {took:.0f} s"
    )


_MASKS = ("prediction_clean.nii.gz", "prediction_adversarial.nii.gz", "target.nii.gz")


def _labels_in(path: Path, made: Made, cache: Path) -> NDArray[np.int64]:
    """A mask of a result folder as nnU-Net's labels; regions are bits there."""
    stored: Any = nib.load(path)
    values = np.asarray(stored.dataobj).astype(np.int64)
    regions = sum(isinstance(value, list) for value in made.labels.values())
    if not regions:
        return values
    return _as_labels(np.stack([values >> bit & 1 for bit in range(len(made.labels) - 1)]), made, cache)


def _timed_prediction(made: Made, cache: Path, way: str) -> dict[str, float]:
    predictor = _predictor(made, cache, **WAYS[way])
    begin = time.process_time()
    _drawn(predictor, made.scans(cache))
    return {"seconds": time.process_time() - begin, "peak": peak_resident() or 0}


def _timed_slopes(made: Made, cache: Path, way: str) -> dict[str, float]:
    """What a step of the search asks for: the prediction, and the slopes of a loss of all of it."""
    subject = _subject(made, cache, **WAYS[way])
    field = subject.field(subject.frozen([scan.data for scan in subject.scans]))
    begin = time.process_time()
    field.slopes(subject.clean, lambda prediction: [prediction.logits.square().flatten(1).sum(dim=1)])
    return {"seconds": time.process_time() - begin, "peak": peak_resident() or 0}


TIMED = {"prediction": _timed_prediction, "slopes": _timed_slopes}


def _cost(name: str, cache: Path, way: str) -> str:
    """A forward and a backward pass of everything, beside a prediction; each in a process of its own."""
    found = {}
    for what in TIMED:
        command = [sys.executable, __file__, name, "--cache", str(cache), "--timed", what, "--attack", way]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        found[what] = json.loads(said.stdout.splitlines()[-1])
    ours, theirs = found["slopes"], found["prediction"]
    return (
        f"{ours['seconds']:.1f} s a gradient, {ours['seconds'] / theirs['seconds']:.1f} times nnU-Net's prediction "
        f"({theirs['seconds']:.1f} s); peak memory {ours['peak'] / 2**30:.2f} GiB, "
        f"{ours['peak'] / theirs['peak']:.1f} times nnU-Net's ({theirs['peak'] / 2**30:.2f} GiB)"
    )


if __name__ == "__main__":
    main()
