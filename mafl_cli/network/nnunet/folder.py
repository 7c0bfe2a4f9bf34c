"""The networks of an nnU-Net v2 results folder: their weights, and nnU-Net's own classes around them.

A checkpoint is read as weights alone; nothing that it names is run. The network's class comes from the plans, by name:
without trust it must be one of nnU-Net's own, made of PyTorch's layers.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mafl_cli.errors import ModelError, UsageError
from mafl_cli.names import outside, sha256
from mafl_cli.network import archives
from mafl_cli.network.model_file import ModelFile, import_compiler
from mafl_cli.network.nnunet.ensemble import Ensemble
from mafl_cli.network.nnunet.plans import PLANS, Plans, files_of, read_plans
from mafl_cli.network.opening import Opening
from mafl_cli.network.reasons import meaning

_OWN_NETWORKS = "dynamic_network_architectures."
_OWN_LAYERS = "torch.nn."
_TRAINER = "nnUNetTrainer"


def read_folder(folder: Path, device: torch.device, opening: Opening) -> ModelFile:
    """The mean of the folds, and of the mirrorings that the training allowed, as one network.

    Raises: ModelError where nnU-Net is not installed, a checkpoint is damaged, asks for trust or does not fit.
    """
    name, plans = outside(folder.name), read_plans(folder)
    files = files_of(folder, opening)
    import_compiler()
    checkpoints = [_checkpoint(path, plans, name, opening) for path in files[2:]]
    first = checkpoints[0]
    build = _builder(plans, first.trainer, name, opening)
    networks = []
    for path, checkpoint in zip(files[2:], checkpoints, strict=True):
        network = build()
        try:
            network.load_state_dict(checkpoint.weights)
        except (RuntimeError, TypeError, AttributeError) as exc:
            raise ModelError(
                f"{name}: the weights of {path.parent.name} do not fit the network of its {PLANS}: copy both from "
                "one training."
            ) from exc
        networks.append(network.to(device).eval())
    mirrored = _mirrored(first.mirrored, opening, name, 2 if plans.flat else 3)
    module = Ensemble(networks, mirrored, flat=plans.flat).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return ModelFile(
        module=module,
        frozen=module,
        format="nnunet",
        sha256=sha256(*files),
        kernel=None,
        example=(None, plans.channels, None, None, None),
        cuts=False,
        members=module.passes,
        member=Ensemble(networks[:1], (), flat=plans.flat).eval() if module.passes > 1 else None,
    )


def _mirrored(allowed: Sequence[int] | None, opening: Opening, name: str, dims: int) -> tuple[int, ...]:
    """The axes to mirror along."""
    axes = tuple(int(axis) for axis in allowed or ())
    if any(not 0 <= axis < dims for axis in axes):
        raise ModelError(f"{name}: its checkpoint mirrors along axes that the network does not have: {axes}.")
    if opening.mirror and not axes:
        raise UsageError(f"`mirror` cannot be used: {name} was trained without mirroring.")
    return () if opening.mirror is False else axes


# --- checkpoints --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Checkpoint:
    weights: Mapping[str, Any]
    trainer: str
    mirrored: Sequence[int] | None


def _checkpoint(path: Path, plans: Plans, name: str, opening: Opening) -> _Checkpoint:
    where = f"{name}: {path.parent.name}/{path.name}"
    try:
        with archives.open_archive(path) as archive:
            archives.check_whole(archive)
    except archives.Damaged as exc:
        raise ModelError(f"{where}: is damaged or cut off: {exc}; copy it anew.") from exc
    try:
        with _harmless():
            found = torch.load(path, map_location="cpu", weights_only=not opening.trust)
    except pickle.UnpicklingError as exc:
        raise ModelError(
            f"{where}: holds more than weights, and reading it would run code in it: if you trust whoever made it, "
            "use `trust`."
        ) from exc
    except Exception as exc:  # Damaged pickles make PyTorch raise nearly any class.
        raise ModelError(f"{where}: PyTorch cannot load it: {meaning(exc)}.") from exc
    try:
        trained = found["init_args"]["configuration"]
        checkpoint = _Checkpoint(
            found["network_weights"], str(found["trainer_name"]), found.get("inference_allowed_mirroring_axes")
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"{where}: is not a checkpoint of nnU-Net v2: copy the folder anew.") from exc
    if trained != plans.configuration_name:
        raise ModelError(
            f"{where}: was trained as {outside(str(trained))}, its folder is named {plans.configuration_name}: "
            "rename the folder as nnU-Net did."
        )
    return checkpoint


def _harmless() -> AbstractContextManager[Any]:
    """Numbers of NumPy, which nnU-Net's log in a checkpoint holds, may be read; they run nothing."""
    core = importlib.import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
    kinds = [np.dtype, *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")}]
    given: list[Any] = [core.scalar, *kinds]
    serialization: Any = torch.serialization
    if not hasattr(serialization, "safe_globals"):  # PyTorch 2.4
        serialization.add_safe_globals(given)
        return nullcontext()
    # NumPy 1 and 2 write two names for one function.
    given += [(core.scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    try:
        context: AbstractContextManager[Any] = serialization.safe_globals(given)
    except TypeError:  # PyTorch 2.5 takes no names.
        context = serialization.safe_globals([core.scalar, *kinds])
    return context


# --- the network --------------------------------------------------------------------------------------------------


def _builder(plans: Plans, trainer: str, name: str, opening: Opening) -> Callable[[], torch.nn.Module]:
    """What makes a network without its weights, as the trainer made it.

    Raises: ModelError where nnU-Net is missing, or a class is named that asks for trust.
    """
    try:
        with _quiet():
            tools: Any = importlib.import_module("nnunetv2.utilities.get_network_from_plans")
            handler: Any = importlib.import_module("nnunetv2.utilities.plans_handling.plans_handler")
    except ImportError as exc:
        raise ModelError(
            f"{name}: is an nnU-Net results folder, and nnU-Net is not installed: install it with "
            "`pip install 'mafl[nnunet]'`."
        ) from exc
    with _quiet():
        chosen = handler.ConfigurationManager(dict(plans.configuration))
        class_name, arguments = chosen.network_arch_class_name, chosen.network_arch_init_kwargs
        by_name = tuple(chosen.network_arch_init_kwargs_req_import)
    _require_own(class_name, arguments, by_name, name, opening)
    _require_plain(trainer, name)

    def build() -> torch.nn.Module:
        sizes = (plans.channels, plans.heads)
        try:
            with _quiet():
                made: torch.nn.Module = tools.get_network_from_plans(
                    class_name, arguments, by_name, *sizes, allow_init=False, deep_supervision=False
                )
        except Exception as exc:  # Classes of networks raise what they like for arguments that they do not know.
            raise ModelError(f"{name}: nnU-Net cannot build the network of its {PLANS}: {meaning(exc)}.") from exc
        return made

    return build


def _require_own(
    class_name: str, arguments: Mapping[str, Any], by_name: Sequence[str], name: str, opening: Opening
) -> None:
    """Raise ModelError if the plans name a class that is neither nnU-Net's own nor a layer of PyTorch's."""
    named = [(class_name, _OWN_NETWORKS)]
    named += [(str(arguments[key]), _OWN_LAYERS) for key in by_name if arguments.get(key) is not None]
    for found, own in named:
        if not opening.trust and not (found.startswith(own) and found.replace(".", "").replace("_", "").isalnum()):
            raise ModelError(
                f"{name}: its {PLANS} names {outside(found)}, which is not one of nnU-Net's own networks or PyTorch's "
                "layers, and building it would run its code: if you trust whoever made it, use `trust`."
            )


def _require_plain(trainer: str, name: str) -> None:
    """Raise ModelError for a trainer of nnU-Net's that builds another network than the one of the plans."""
    if trainer == _TRAINER or not trainer.isidentifier():
        return
    with _quiet():
        finder: Any = importlib.import_module("nnunetv2.utilities.find_class_by_name")
        base: Any = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
        package: Any = importlib.import_module("nnunetv2")
        place = Path(package.__path__[0]) / "training" / "nnUNetTrainer"
        try:
            found = finder.recursive_find_python_class(str(place), trainer, "nnunetv2.training.nnUNetTrainer")
        except Exception:  # It imports all trainers there are, and some want libraries that are missing or do not fit.
            found = None
    own = getattr(base, _TRAINER)
    if found is None or found.build_network_architecture is own.build_network_architecture:
        return  # One that is not known here may have its own network too: then its weights do not fit.
    raise ModelError(
        f"{name}: its trainer {outside(trainer)} builds a network of its own, not the one of its {PLANS}: export the "
        "network instead (docs/export.md)."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """nnU-Net prints and warns when it is imported: about folders for training, and about old plans."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
