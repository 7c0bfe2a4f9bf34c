"""The JSON report: what ran, on what, and what the file on the disk measures. Schema: `report.schema.json`.

Strict JSON: no NaN, no Infinity; what is undefined is null with a reason. No absolute path, host or user name. Two
runs with the same seed on a CPU give equal reports but for `run.started` and each case's `timing_s` and `memory`.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mafl_cli import __version__
from mafl_cli.config import AttackConfig, config_hash
from mafl_cli.names import escaped, stem

if TYPE_CHECKING:
    import torch

    from mafl_cli.network.load import ModelInfo

SCHEMA_VERSION = "2.0.0"
SCHEMA = Path(__file__).parent / "schemas" / "report.schema.json"
NOTICE = "Adversarial data made to deceive a model. Not for clinical use."


def attack_report(
    *,
    config: AttackConfig,
    model: ModelInfo,
    device: torch.device,
    case: Mapping[str, Any],
    settings: Mapping[str, Any],
    started: str,
) -> dict[str, Any]:
    """The whole report around one finished case (`case`: see `cases` in the schema)."""
    attack = asdict(config)
    seed, method = attack.pop("seed"), attack.pop("method")
    facts = asdict(model) | {"intensity": model.intensity.facts()}
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "mafl", "version": __version__},
        "notice": NOTICE,
        "run": {
            "command": "attack",
            "started": started,
            "seed": seed,
            "method": method,
            "settings": {**settings, **attack},
            "config_hash": config_hash(config, dict(settings), model.sha256),
        },
        "environment": environment(device),
        "model": facts,
        "cases": [dict(case)],
        "aggregate": aggregate([case]),
        "gates": [],
    }


def dry_run(
    *,
    case_id: str,
    target: Mapping[str, Any],
    clean: Mapping[str, int],
    changed_voxels: int,
    samples: tuple[str, int, int],
    bounds: Mapping[str, Any],
) -> dict[str, Any]:
    """What an attack would ask for. samples: slices or volume, how many there are, how many would be attacked."""
    kind, total, attacked = samples
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "mafl", "version": __version__},
        "command": "dry-run",
        "case_id": case_id,
        "target": dict(target),
        "clean_voxels": dict(clean),
        "changed_voxels": changed_voxels,
        "samples": {"kind": kind, "total": total, "attacked": attacked},
        "bounds": dict(bounds),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device; nothing that names the machine or its user."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ("torch", "monai", "nibabel", "numpy", "scipy", "scikit-image")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "device": {"type": device.type, "name": name},
        "threads": torch.get_num_threads(),
        "packages": {package: version(package) for package in packages},
    }


def aggregate(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, and mean, median and worst of the headline numbers over the cases where they are defined."""
    done = [case for case in cases if case["status"] == "ok"]
    numbers: dict[str, Any] = {}
    for name, pick, worst in _HEADLINES:
        values = [value for case in done if (value := pick(case)) is not None]
        numbers[name] = {
            "n": len(values),
            "mean": statistics.fmean(values) if values else None,
            "median": statistics.median(values) if values else None,
            "worst": worst(values) if values else None,
        }
    return {
        "cases": len(cases),
        "ok": len(done),
        "failed": len(cases) - len(done),
        "goal_reached": sum(case["attack"]["goal_reached"] for case in done),
        "metrics": numbers,
    }


# "Worst" is said from the attacker's side: the target missed most, the change seen most.
_HEADLINES: tuple[tuple[str, Any, Any], ...] = (
    ("target_iou", lambda case: case["metrics"]["post_write"]["target_iou"]["value"], min),
    ("hit_rate", lambda case: case["metrics"]["post_write"]["hit_rate"]["value"], min),
    ("l2_model", lambda case: case["metrics"]["size"]["l2"]["model"], max),
    ("linf_model", lambda case: case["metrics"]["size"]["linf"]["model"], max),
    ("psnr_db", lambda case: case["metrics"]["size"]["psnr_db"]["value"], min),
    ("ssim", lambda case: case["metrics"]["size"]["ssim"]["mean"]["value"], min),
)


def case_id(name: str) -> str:
    """The image's name without its suffixes."""
    return stem(name) or name


def renamed(report: Mapping[str, Any], names: Callable[[str], str]) -> dict[str, Any]:
    """A copy in which `names` has changed every name of a file that was given, and what speaks of it."""
    whole = copy.deepcopy(dict(report))
    settings = whole["run"]["settings"]
    settings["guide"] = [names(name) for name in settings["guide"] or ()] or None
    for case in whole["cases"]:
        case["case_id"] = names(case["case_id"])
        for each in case["inputs"]:
            each["name"], each["warnings"] = names(each["name"]), [names(line) for line in each["warnings"]]
        case["target"] = renamed_target(case["target"], names)
        if case["bounds"]["within"] is not None:
            case["bounds"]["within"]["name"] = names(case["bounds"]["within"]["name"])
    return whole


def renamed_target(target: Mapping[str, Any], names: Callable[[str], str]) -> dict[str, Any]:
    """As `renamed`, of a case's target."""
    files = [{**file, "name": names(file["name"])} for file in target["files"]]
    recipe = target["recipe"]
    if recipe is not None and recipe.startswith("copy:"):
        recipe = names(recipe)
    return {**target, "files": files, "recipe": recipe}


def to_json(report: Mapping[str, Any]) -> str:
    """Strict JSON text, one key a line, that can be printed anywhere. Raises ValueError on NaN or Infinity."""
    return escaped(json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)) + "\n"
