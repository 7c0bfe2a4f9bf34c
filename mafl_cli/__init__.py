"""mafl: how small a change to a scan makes a segmentation model draw the mask an attacker chose.

import mafl_cli as mafl

found = mafl.attack(network, image, target)                                  # arrays in, arrays out
report = mafl.attack_scan("scan.nii.gz", "erase:1", out="mafl-out")          # files in, a report out

What is offered is loaded when it is first asked for, so that the import itself costs nothing. See docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mafl_cli.api import Attacked, Volume, attack, attack_scan, evaluate, inspect, load_model

__version__ = "0.1.0"
__all__ = ["Attacked", "Volume", "__version__", "attack", "attack_scan", "evaluate", "inspect", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "inspect":  # Looking at a scan needs no network library.
        from mafl_cli.case import inspection

        return inspection.inspect
    from mafl_cli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
