"""mafl: how small a change to a scan makes a segmentation model draw the mask an attacker chose.

import mafl_cli as mafl

found = mafl.attack(network, image, target)                                  # arrays in, arrays out
report = mafl.attack_scan("scan.nii.gz", "erase:1", out="mafl-out")          # files in, a report out

What is offered is loaded when it is first asked for, so that the import itself costs nothing. See docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mafl_cli.api import Attacked, Loaded, attack, attack_scan, evaluate, load_model
    from mafl_cli.case.inspection import inspect
    from mafl_cli.config import PRESETS, AttackConfig, preset
    from mafl_cli.errors import (
        DiskFullError,
        GeometryError,
        InputError,
        MaflError,
        ModelError,
        OutputError,
        UsageError,
    )
    from mafl_cli.results.evaluation_report import Evaluation
    from mafl_cli.results.report import Report
    from mafl_cli.scans.formats import read_scan
    from mafl_cli.scans.volume import Volume

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "AttackConfig",
    "Attacked",
    "DiskFullError",
    "Evaluation",
    "GeometryError",
    "InputError",
    "Loaded",
    "MaflError",
    "ModelError",
    "OutputError",
    "Report",
    "UsageError",
    "Volume",
    "__version__",
    "attack",
    "attack_scan",
    "evaluate",
    "inspect",
    "load_model",
    "preset",
    "read_scan",
]
# Where a name is that needs no network library; all others are in `api`.
_HOMES = {
    **dict.fromkeys(("AttackConfig", "PRESETS", "preset"), "config"),
    **dict.fromkeys([name for name in __all__ if name.endswith("Error")], "errors"),
    "Evaluation": "results.evaluation_report",
    "Report": "results.report",
    "Volume": "scans.volume",
    "inspect": "case.inspection",
    "read_scan": "scans.formats",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
