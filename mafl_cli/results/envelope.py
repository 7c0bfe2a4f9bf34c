"""What all reports have in common: which program wrote them, in which version of the schema, on what."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from mafl_cli import __version__
from mafl_cli.system.records import Count

if TYPE_CHECKING:
    import torch

Version = Literal["2.0.0"]

SCHEMA_VERSION: Version = "2.0.0"
NOTICE = "Adversarial data made to deceive a model. Not for clinical use."


@dataclass(frozen=True, kw_only=True)
class Tool:
    name: Literal["mafl"]
    version: str


TOOL = Tool(name="mafl", version=__version__)


@dataclass(frozen=True, kw_only=True)
class Device:
    type: Literal["cpu", "cuda"]
    name: str


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Versions and device; nothing that names the machine or its user."""

    python: str
    system: str
    device: Device
    threads: Count
    packages: dict[str, str]

    @staticmethod
    def here(device: torch.device) -> Environment:
        """The environment of this process."""
        import torch

        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        packages = ("torch", "monai", "nibabel", "numpy", "scipy", "scikit-image")
        return Environment(
            python=platform.python_version(),
            system=platform.system(),
            device=Device(type="cuda" if device.type == "cuda" else "cpu", name=name),
            threads=torch.get_num_threads(),
            packages={package: version(package) for package in packages},
        )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a case has no results. type: name of the error's class."""

    type: str
    message: str
