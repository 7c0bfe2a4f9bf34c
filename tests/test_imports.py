"""The package is layered: imports go one way, scans know no torch, and tensor code reads no scans."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mafl_cli

PACKAGE = Path(mafl_cli.__file__).parent
# From the ground up. What stands in one line imports what stands above it, and nothing else but its own room.
ORDER = [
    {"errors", "codes"},
    {"names", "classes"},
    {"config"},
    {"system"},
    {"scans", "network", "measure"},
    {"field", "results", "listing"},
    {"search", "show"},
    {"trust"},
    {"case"},
    {"judging", "batch"},
    {"api"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
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


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(module) for module in MODULES} - {"demo"} == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    inside = {
        room(name.removeprefix("mafl_cli.")) for name in imported(MODULES[module]) if name.startswith("mafl_cli.")
    }
    others = (inside & set(LEVEL)) - {room(module)}
    assert not {other for other in others if LEVEL[other] >= LEVEL[room(module)]}


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in ("scans", "listing")])
def test_what_reads_files_knows_no_torch(module: str) -> None:
    assert not {name for name in imported(MODULES[module]) if name.split(".")[0] in ("torch", "monai")}


@pytest.mark.parametrize(
    "module", [module for module in MODULES if room(module) in ("network", "field", "search", "trust")]
)
def test_what_knows_torch_reads_no_scans(module: str) -> None:
    forbidden = {"nibabel", "SimpleITK", "pydicom", "highdicom"}
    assert not {name for name in imported(MODULES[module]) if name.split(".")[0] in forbidden}


def test_no_two_modules_import_each_other() -> None:
    """Neither directly nor round a corner."""
    arrows = {
        module: {name.removeprefix("mafl_cli.") for name in imported(path)} & set(MODULES) - {module}
        for module, path in MODULES.items()
    }
    free = {module for module, others in arrows.items() if not others}
    while len(free) < len(arrows):
        more = {module for module, others in arrows.items() if others <= free} - free
        assert more, f"a circle among {sorted(set(arrows) - free)}"
        free |= more


TESTS = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_imports_a_test(path: Path) -> None:
    assert not [name for name in imported(path) if name.split(".")[0].startswith("test_")]


def test_tests_are_in_the_rooms_of_the_package() -> None:
    assert {path.parent.name for path in TESTS.rglob("test_*.py")} <= set(LEVEL) | {"whole", "tests"}
