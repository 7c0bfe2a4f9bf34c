"""Does another commit give the same results? The same attacks are run from both, and what they write is compared.

    python tools/same_results.py REVISION [--keep FOLDER]

The attacks: the sample scan with both of its targets, a DICOM series made from it, two channels in 3-D with windows,
and a batch of three. Volumes and tables must be equal to the byte, DICOM files in their pixels and geometry, reports in
every number and truth value. A number that stands in another place of the report, as schemas moved some, must be there
under the same key: what was lost and what was gained is named. Words are not compared, so neither are times of day,
versions, UIDs and hashes; numbers that differ between two equal runs are left out by their key, see `PASSING`.

Exit code 0 when everything is equal, 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PASSING = {"timing_s", "memory"}
"""Keys of a report whose numbers differ between two equal runs: seconds of each part, and bytes that were held."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("revision", help="the commit to compare the working tree with")
    parser.add_argument("--keep", type=Path, help="keep the results in this folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = given.keep or Path(scratch)
        before = Path(scratch) / "before"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--detach", "--quiet", before, given.revision], check=True
        )
        try:
            inputs = make_inputs(work / "inputs")
            for name, checkout in (("old", before), ("new", ROOT)):
                for case, arguments in attacks(inputs).items():
                    run(checkout, [*arguments, "-o", work / name / case, "--device", "cpu", "--quiet"], inputs)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", before], check=True)
        wrong = 0
        for case in attacks(inputs):
            files, different = compare(work / "old" / case, work / "new" / case)
            wrong += len(different)
            print(f"{case:<12} {files} files, {len(different)} differ" + "".join(f"\n  {line}" for line in different))
    return 1 if wrong else 0


def attacks(inputs: Path) -> dict[str, list[str | Path]]:
    sample = ROOT / "sample_data"
    scan = sample / "brain_t1.nii.gz"
    return {
        "hole": ["attack", scan, "--target", sample / "target_hole.nii.gz", "--steps", "8"],
        "swap": ["attack", scan, "--target", sample / "target_swap.nii.gz", "--steps", "8"],
        "dicom": ["attack", inputs / "series", "--target", "erase:2", "--steps", "8"],
        "windows": [
            "attack", "--channels", f"{inputs / 'a.nii.gz'},{inputs / 'b.nii.gz'}", "--target", "dilate:1:2mm",
            "--model", inputs / "net.ts", "--roi", "12,12,6", "--steps", "10",
        ],
        "batch": ["attack", inputs / "batch", "--target", "erase:2", "--steps", "5"],
    }  # fmt: skip


def run(checkout: Path, arguments: list[str | Path], cwd: Path) -> None:
    command = [sys.executable, "-m", "mafl_cli", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])}: exit code {done.returncode}\n{done.stderr}")


# --- what is attacked ---------------------------------------------------------------------------------------------


def make_inputs(folder: Path) -> Path:
    """A DICOM series and a batch cut from the sample scan, and two channels with a small network for them."""
    import nibabel as nib
    import numpy as np

    folder.mkdir(parents=True)
    sample = nib.load(ROOT / "sample_data" / "brain_t1.nii.gz")
    part = sample.slicer[:, :, 48:52]
    _write_series(folder / "series", np.asanyarray(part.dataobj).astype(np.uint16), part.affine)
    (folder / "batch").mkdir()
    for index in range(3):
        nib.save(sample.slicer[:, :, 46 + 3 * index : 48 + 3 * index], folder / "batch" / f"case{index}.nii.gz")
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in (26, 22, 14)), indexing="ij"))
    ball = np.exp(-3 * (grid**2).sum(axis=0))
    for name in "ab":
        scan = (0.9 * ball + 0.1 * random.random(ball.shape)).astype(np.float32)
        nib.save(nib.Nifti1Image(scan, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{name}.nii.gz")
    _write_network(folder / "net.ts")
    return folder


def _write_network(path: Path) -> None:
    import torch

    mix, draw = torch.nn.Conv3d(2, 1, 3, padding=1, bias=False), torch.nn.Conv3d(1, 2, 1)
    assert draw.bias is not None
    with torch.no_grad():
        mix.weight.fill_(0.4 / 54)
        mix.weight[:, :, 1, 1, 1] += 0.3
        draw.weight[:] = torch.tensor([-4.0, 4.0]).view(2, 1, 1, 1, 1)
        draw.bias[:] = torch.tensor([2.0, -2.0])
    scripted: Any = torch.jit.script(torch.nn.Sequential(mix, draw).eval())
    scripted.save(str(path))


def _write_series(folder: Path, stored: Any, affine: Any) -> None:
    """(I, J, K) integers as MR slices."""
    import numpy as np
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir()
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    study, series, frame = (generate_uid(entropy_srcs=["same_results", name]) for name in ("study", "series", "frame"))
    for k in range(stored.shape[2]):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID = MRImageStorage
        slice_.SOPInstanceUID = generate_uid(entropy_srcs=["same_results", str(k)])
        slice_.Modality, slice_.ImageType = "MR", ["ORIGINAL", "PRIMARY", "OTHER"]
        slice_.PatientName, slice_.PatientID, slice_.StudyDate, slice_.StudyTime = "Same^Results", "1", "", ""
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.SeriesNumber, slice_.InstanceNumber = 1, k + 1
        slice_.ImagePositionPatient = [f"{value:.4f}" for value in (lps @ [0, 0, k, 1])[:3]]
        cosines = (*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1]))
        slice_.ImageOrientationPatient = [f"{value:.6f}" for value in cosines]
        slice_.PixelSpacing = [f"{spacing[1]:.4f}", f"{spacing[0]:.4f}"]
        slice_.SliceThickness = f"{spacing[2]:.4f}"
        slice_.Rows, slice_.Columns = stored.shape[1], stored.shape[0]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 0
        slice_.PixelData = np.ascontiguousarray(stored[..., k].T).tobytes()
        slice_.save_as(folder / f"{k}.dcm", enforce_file_format=True)


# --- comparing ----------------------------------------------------------------------------------------------------


def compare(old: Path, new: Path) -> tuple[int, list[str]]:
    """How many files were compared, and a line for each that differs."""
    names = {path.relative_to(folder) for folder in (old, new) for path in folder.rglob("*") if path.is_file()}
    names = {name for name in names if not any(part.startswith(".") for part in name.parts)}
    different = []
    for name in sorted(names):
        if not (old / name).exists() or not (new / name).exists():
            different.append(f"{name}: only in the {'old' if (old / name).exists() else 'new'} results")
        elif name.suffix == ".json":
            a, b = (json.loads((folder / name).read_text(encoding="utf-8")) for folder in (old, new))
            different += [f"{name}: {line}" for line in changes(a, b)]
        elif name.suffix == ".dcm":
            if pixels(old / name) != pixels(new / name):
                different.append(f"{name}: other pixels or another place")
        elif (old / name).read_bytes() != (new / name).read_bytes():
            different.append(f"{name}: other bytes")
    return len(names), different


def changes(old: Any, new: Any) -> list[str]:
    """A line for each place where two reports have other numbers, and for each number that is only in one of them.

    Numbers whose place is only in one report may have moved: they need only be in the other under the same key.
    """
    a, b = places(old), places(new)
    both = [place for place in a if place in b]
    lines = [f"{place}: {_first(a[place], b[place])}" for place in both if a[place] != b[place]]
    before, after = (
        Counter((place.rpartition(".")[2], number) for place in mine if place not in other for number in mine[place])
        for mine, other in ((a, b), (b, a))
    )
    for word, more in (("lost", before - after), ("gained", after - before)):
        lines += [f"{word} {key} {number:.17g}, {count} times" for (key, number), count in sorted(more.items())]
    return lines


def places(tree: Any) -> dict[str, list[float]]:
    """Every number and truth value of a report, by the keys that lead to it, in the order in which they stand."""
    found: dict[str, list[float]] = {}
    for place, number in _numbers(tree):
        found.setdefault(place, []).append(number)
    return found


def _numbers(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key not in PASSING:
                yield from _numbers(value, (*keys, key))
    elif isinstance(tree, list):
        for value in tree:
            yield from _numbers(value, keys)
    elif isinstance(tree, (int, float)):
        yield ".".join(keys), float(tree)


def _first(old: list[float], new: list[float]) -> str:
    """What became of the first number that differs, of those in one place."""
    for was, now in zip(old, new, strict=False):
        if was != now:
            return f"{was:.17g} became {now:.17g}"
    return f"{len(old)} numbers became {len(new)}"


def pixels(path: Path) -> tuple[object, ...]:
    import pydicom

    data = pydicom.dcmread(path)
    place = (data.get("ImagePositionPatient"), data.get("ImageOrientationPatient"), data.get("PixelSpacing"))
    return (bytes(data.PixelData), *(list(map(float, value)) if value else None for value in place))


if __name__ == "__main__":
    sys.exit(main())
