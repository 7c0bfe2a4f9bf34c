"""A MONAI bundle as a folder or a zip: `configs/metadata.json`, `configs/inference.json`, `models/model.pt`.

Without trust only plain values are read, and the network is made from its class among MONAI's own networks. With trust
the bundle's own parser evaluates its expressions, as `python -m monai.bundle run` would.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mafl_cli.errors import InputError, ModelError, UsageError, reason_of
from mafl_cli.names import outside
from mafl_cli.network.bundle import described
from mafl_cli.system import sizes

METADATA = "configs/metadata.json"
_LARGEST = 2**22
"""Bytes: a config that is longer is not a description."""
_INFERENCE = ("inference.json", "inference.yaml", "inference.yml", "evaluate.json", "evaluate.yaml")
_NETWORKS = ("network_def", "network", "net")
"""Where bundles have their network, the definition first."""


def is_bundle(model: Path) -> bool:
    """Whether a folder or a zip holds a bundle."""
    try:
        if model.is_dir():
            return (model / METADATA).is_file()
        return model.suffix.lower() == ".zip" and _root_in(model) is not None
    except (OSError, ValueError):
        return False


def _root_in(archive: Path) -> str | None:
    """The folder in a zip that is the bundle; None if there is none."""
    if not zipfile.is_zipfile(archive):
        return None
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if name == METADATA or name.endswith(f"/{METADATA}")]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return min(names, key=len).removesuffix(METADATA) if names else None


def files_of(model: Path) -> tuple[Path, ...]:
    """All that the bundle consists of, but what is there to be read by people."""
    if not model.is_dir():
        return (model,)
    kept = (model / part for part in ("configs", "models", "scripts"))
    return tuple(sorted(file for part in kept for file in part.rglob("*") if file.is_file() and file.suffix != ".pyc"))


def folder_of(model: Path) -> Path:
    """The bundle's folder; a zip is unpacked until this process ends. Raises ModelError for a damaged one."""
    if model.is_dir():
        return model
    stat = model.stat()
    kept, root = _unpacked(model.resolve(), stat.st_mtime_ns, stat.st_size)
    return Path(kept.name) / root


@lru_cache(maxsize=4)
def _unpacked(model: Path, mtime: int, size: int) -> tuple[tempfile.TemporaryDirectory[str], str]:
    name = outside(model.name)
    kept = tempfile.TemporaryDirectory(prefix="mafl-")
    try:
        with zipfile.ZipFile(model) as archive:
            members = archive.infolist()
            sizes.require(name, "declares files of {}", sum(member.file_size for member in members))
            for member in members:
                if not sizes.can_unpack(member):
                    raise ModelError(f"{name}: is packed by a method that is not read; pack it by deflate.")
                target = (Path(kept.name) / member.filename).resolve()
                if member.is_dir() or not target.is_relative_to(Path(kept.name).resolve()):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(sizes.unpacked(archive, member))
    except InputError as exc:
        raise ModelError(str(exc)) from exc
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
        raise ModelError(f"{name}: is damaged or cut off; copy or download it again.") from exc
    return kept, _root_in(model) or ""


# --- what it says -------------------------------------------------------------------------------------------------


def states(model: Path, trust: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of a card that the bundle states, and a sentence for each thing that is left out.

    Raises: ModelError for a config that cannot be read, or an expression that fails.
    """
    folder, name = folder_of(model), outside(model.name)
    metadata = _read(folder / METADATA, name)
    inference = _inference(folder, name)
    if trust and inference:
        with _running(folder, name):
            inference = _evaluated(_parser(folder, name, metadata, inference), inference)
    return described([metadata, inference], whole=True)


def _inference(folder: Path, name: str) -> dict[str, Any]:
    found = next((file for each in _INFERENCE if (file := folder / "configs" / each).is_file()), None)
    return {} if found is None else _read(found, name)


def _read(file: Path, name: str) -> dict[str, Any]:
    """A config as plain values. Raises ModelError for a file that holds something else."""
    try:
        if file.stat().st_size > _LARGEST:
            raise ModelError(f"{name}: {file.name} is too long for a description.")
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            value = json.loads(text)
        else:
            import yaml

            value = yaml.safe_load(text)
    except OSError as exc:
        raise ModelError(f"{name}: {file.name} cannot be read ({reason_of(exc)}).") from exc
    except ImportError as exc:
        raise ModelError(f"{name}: {file.name} needs PyYAML: pip install pyyaml.") from exc
    except Exception as exc:  # Parsers raise classes of their own.
        raise ModelError(f"{name}: {file.name} is damaged.") from exc
    if not isinstance(value, dict):
        raise ModelError(f"{name}: {file.name} must hold a table.")
    return value


def _parser(folder: Path, name: str, metadata: Mapping[str, Any], inference: Mapping[str, Any]) -> Any:
    """The bundle's own parser."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(dict(inference))
    parser["_meta_"] = dict(metadata)
    parser["bundle_root"] = str(folder)
    parser.parse(reset=True)
    return parser


@contextmanager
def _running(folder: Path, name: str) -> Iterator[None]:
    """Modules of the bundle are found; what its expressions raise becomes a sentence."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except (ModelError, UsageError):
        raise
    except Exception as exc:  # It is anybody's code.
        raise ModelError(f"{name}: an expression of the bundle fails: {_words(exc.__cause__ or exc)}.") from exc
    finally:
        sys.path.remove(str(folder))


def _words(exc: BaseException) -> str:
    """The first line of an error's own words, and its class where it has none."""
    line = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
    return outside(line).rstrip(". ")[:200]


def _evaluated(parser: Any, inference: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that are read, with the values of their expressions; what no plain value comes from stays as it is."""
    found = dict(inference)
    for part in ("preprocessing", "postprocessing"):
        table = inference.get(part)
        steps = table.get("transforms") if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(steps, list):
            places = (f"{part}::transforms::{number}" for number in range(len(steps)))
            values = [_values(parser, place, step) for place, step in zip(places, steps, strict=True)]
            found[part] = {**table, "transforms": values}
    if isinstance(inference.get("inferer"), dict):
        found["inferer"] = _values(parser, "inferer", inference["inferer"])
    return found


def _values(parser: Any, place: str, step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    return {
        key: _plain(parser.get_parsed_content(f"{place}::{key}")) if _is_written(value) else value
        for key, value in step.items()
        if key not in ("transform", "device", "reader", "writer")
    }


def _is_written(value: Any) -> bool:
    """Whether an expression or a reference stands in a value."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_written, value))
    return isinstance(value, str) and value.startswith(("$", "@"))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)) or type(value).__name__ in ("ndarray", "Tensor"):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value


# --- its network --------------------------------------------------------------------------------------------------


def network_of(model: Path, trust: bool) -> Any:
    """The network with its weights, an `nn.Module`.

    Raises: UsageError if it needs trust; ModelError with the reason if there is none.
    """
    import torch

    folder, name = folder_of(model), outside(model.name)
    inference = _inference(folder, name)
    if trust:
        with _running(folder, name):
            parser = _parser(folder, name, _read(folder / METADATA, name), inference)
            place = next((each for each in _NETWORKS if each in inference), None)
            network = None if place is None else parser.get_parsed_content(place)
            stated = parser.get_parsed_content("ckpt_path") if "ckpt_path" in inference else None
    else:
        network, stated = _plain_network(inference, name), None
    if not isinstance(network, torch.nn.Module):
        raise ModelError(f"{name}: its inference config has no network_def that is a network.")
    weights = Path(stated) if isinstance(stated, str) and Path(stated).is_file() else folder / "models" / "model.pt"
    _load(network, weights, name, trust)
    return network


def _plain_network(inference: Mapping[str, Any], name: str) -> Any:
    """The network of a definition without expressions, one of MONAI's own."""
    import monai.networks.nets as nets
    import torch

    tables = (inference.get(each) for each in _NETWORKS)
    definition = next((table for table in tables if isinstance(table, dict) and "_target_" in table), None)
    if definition is None:
        raise _needs_trust(name, "its network is an expression")
    target, settings = str(definition["_target_"]), {}
    for key, value in definition.items():
        if key.startswith("_"):
            if key not in ("_target_", "_desc_", "_requires_", "_mode_"):
                raise _needs_trust(name, f"its network has {outside(key)}")
            continue
        settings[key] = _resolved(inference, value, name)
    made = getattr(nets, target.rpartition(".")[2], None)
    inside = target.rpartition(".")[0] in ("", "monai.networks.nets") or target.startswith("monai.networks.nets.")
    if not inside or not isinstance(made, type) or not issubclass(made, torch.nn.Module):
        raise _needs_trust(name, f"its network, {outside(target)}, is not one of MONAI's")
    if settings.get("pretrained"):
        settings["pretrained"] = (
            False  # Weights would be fetched from elsewhere, and the bundle's own take their place.
        )
    try:
        return made(**settings)
    except Exception as exc:  # MONAI's networks raise nearly any class for settings that do not go together.
        raise ModelError(f"{name}: its network cannot be made: {_words(exc)}.") from exc


def _resolved(inference: Mapping[str, Any], value: Any, name: str, depth: int = 0) -> Any:
    """A plain value, also behind references and in lists."""
    if depth > 16:
        raise ModelError(f"{name}: references of its network go in a circle.")
    if isinstance(value, str) and value.startswith("@"):
        found: Any = inference
        for part in value[1:].replace("#", "::").split("::"):
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            else:
                raise ModelError(f"{name}: its network refers to {outside(value)}, which is not there.")
        return _resolved(inference, found, name, depth + 1)
    if isinstance(value, str) and value.startswith(("$", "%")):
        raise _needs_trust(name, f"its network has an expression ({outside(value[:60])})")
    if isinstance(value, list):
        return [_resolved(inference, each, name, depth + 1) for each in value]
    if isinstance(value, dict):
        if "_target_" in value:
            raise _needs_trust(name, "its network has a part that is made by code")
        return {key: _resolved(inference, each, name, depth + 1) for key, each in value.items()}
    return value


def _needs_trust(name: str, why: str) -> UsageError:
    return UsageError(f"{name}: {why}, which is Python code: add `trust` if you know what it does.")


def _load(network: Any, weights: Path, name: str, trust: bool) -> None:
    """The weights of models/model.pt, put into the network. Raises ModelError if they are not its own."""
    import torch

    if not weights.is_file():
        raise ModelError(f"{name}: has no models/{outside(weights.name)}; download the weights of the bundle.")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as exc:  # A pickle may raise anything.
        if not trust:
            raise UsageError(
                f"{name}: models/{outside(weights.name)} holds more than numbers, or is damaged: add `trust` if you "
                "know what it does."
            ) from exc
        state = _by_pickle(weights, name)
    for key in ("state_dict", "model", "network", "net"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    try:
        network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    except (RuntimeError, AttributeError, TypeError, ValueError) as exc:
        raise ModelError(
            f"{name}: models/{outside(weights.name)} holds the weights of another network than its network_def."
        ) from exc


def _by_pickle(weights: Path, name: str) -> Any:
    import torch

    try:
        return torch.load(weights, map_location="cpu", weights_only=False)
    except Exception as exc:
        raise ModelError(f"{name}: models/{outside(weights.name)} is damaged; download it again.") from exc
