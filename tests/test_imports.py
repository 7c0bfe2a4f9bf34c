"""The package is layered: file readers know no torch, tensor code reads no files, and nobody imports upwards."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mafl_cli

PACKAGE = Path(mafl_cli.__file__).parent
LAYERS = [
    {"errors", "config", "locks", "interrupts", "staging", "streams", "quiet", "sizes", "terms"},
    {
        "archives",
        "reasons",
        "bundle",
        "card",
        "codestreams",
        "forms",
        "geometry",
        "losses",
        "lowfreq",
        "resample",
        "steps",
        "goals",
        "metrics",
        "entries",
        "perturbation",
        "quantiles",
        "surfaces",
        "names",
        "documents",
        "niftifile",
        "flavours",
        "body",
        "gates",
        "transforms",
        "display",
        "turned",
        "spectrum",
    },
    {"exported", "modelfile"},
    {"lifting"},
    {"probing"},
    {
        "volume",
        "frames",
        "lattice",
        "stacks",
        "recipes",
        "preprocess",
        "model",
        "windows",
        "limits",
        "attack",
        "plots",
        "viewers",
    },
    {"samples"},
    {"dicom", "kept"},
    {"derived", "seg"},
    {"scans", "targets", "folders"},
    {"datasets", "manifests"},
    {"subject", "report", "results", "records", "runfolders", "traces", "figures", "planes", "page", "cases"},
    {"case", "pairs"},
    {"judges", "memory"},
    {"trials"},
    {"publish"},
    {"runs"},
    {"pipeline", "evaluation", "pictures", "inspection"},
    {"engine"},
    {"cluster"},
    {"batch"},
    {"console", "options"},
    {"cli"},
    {"__main__"},
]
FILES_ONLY = {
    "sizes",
    "forms",
    "codestreams",
    "niftifile",
    "geometry",
    "volume",
    "flavours",
    "frames",
    "lattice",
    "stacks",
    "dicom",
    "derived",
    "seg",
    "scans",
    "targets",
    "recipes",
    "body",
    "names",
    "documents",
    "kept",
    "quiet",
    "terms",
    "cases",
    "folders",
    "datasets",
    "manifests",
}
TENSORS_ONLY = {
    "losses",
    "lowfreq",
    "resample",
    "steps",
    "goals",
    "preprocess",
    "samples",
    "archives",
    "reasons",
    "exported",
    "modelfile",
    "lifting",
    "probing",
    "model",
    "windows",
    "limits",
    "attack",
}


def imported(path: Path) -> set[str]:
    """Dotted names of every module a file imports, wherever the import stands, type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def level(module: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if module in layer)


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    inside = {name.split(".")[1] for name in imported(PACKAGE / f"{module}.py") if name.startswith("mafl_cli.")}
    upwards = {other for other in inside & set(MODULES) if level(other) > level(module)}
    assert not upwards


@pytest.mark.parametrize("module", sorted(FILES_ONLY))
def test_what_reads_files_knows_no_torch(module: str) -> None:
    assert not {name for name in imported(PACKAGE / f"{module}.py") if name.split(".")[0] in ("torch", "monai")}


@pytest.mark.parametrize("module", sorted(TENSORS_ONLY))
def test_what_knows_torch_reads_no_scans(module: str) -> None:
    forbidden = {"nibabel", "SimpleITK", "pydicom", "highdicom"}
    assert not {name for name in imported(PACKAGE / f"{module}.py") if name.split(".")[0] in forbidden}
