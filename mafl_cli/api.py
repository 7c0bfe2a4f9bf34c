"""The library: what `import mafl_cli` offers, and what the command line calls.

Arrays in, arrays out: `attack`. Files in, a report out: `attack_scan`, `evaluate`, `inspect`. Errors are those of
`mafl_cli.errors`; a parameter is named between backticks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mafl_cli.case.arrays import Attacked, Loaded, Sizes, View, attack_arrays, load_model
from mafl_cli.case.inspection import inspect
from mafl_cli.case.pipeline import run_attack
from mafl_cli.case.pipeline import show_target as _show_target
from mafl_cli.case.problem import Say
from mafl_cli.case.request import DEMO_MODEL, AttackRequest, ModelRequest
from mafl_cli.case.searching import Progress
from mafl_cli.config import AttackConfig, preset
from mafl_cli.errors import UsageError
from mafl_cli.judging import gates, transforms
from mafl_cli.judging.evaluation import EvaluateRequest, run_evaluation
from mafl_cli.judging.gates import Gate
from mafl_cli.judging.trials import Trials
from mafl_cli.network.card import check_orientation, check_overlap, check_roi, check_spacing
from mafl_cli.network.intensity import Intensity
from mafl_cli.results.evaluation_report import Evaluation
from mafl_cli.results.report import DryRun, Report
from mafl_cli.scans import recipes
from mafl_cli.scans.masks import Masks
from mafl_cli.scans.recipes import Recipe
from mafl_cli.scans.volume import Volume

if TYPE_CHECKING:
    import torch

__all__ = [
    "Attacked",
    "Loaded",
    "Sizes",
    "Volume",
    "attack",
    "attack_request",
    "attack_scan",
    "evaluate",
    "inspect",
    "load_model",
    "show_target",
]

Files = str | Path | Sequence[str | Path]
_SETTINGS = {each.name for each in fields(AttackConfig)} - {"method"}
_SEEN_AS = ("mode", "slice_axis", "orientation", "intensity", "spacing", "roi", "overlap")


def _silent(line: str) -> None:
    pass


def attack(
    model: torch.nn.Module | Loaded | str | Path,
    image: Any,
    target: Any,
    *,
    eps: float | None = None,
    method: str = "mafl",
    steps: int = 150,
    guide: Any = None,
    within: Any = None,
    say: Say = _silent,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Attacked[Any]:
    """Change images as little as possible so that the model draws the target.

        network = MyUNet().eval()                        # (B, 1, H, W) -> (B, K, H, W)
        found = mafl.attack(network, image, target)      # image (B, 1, H, W), target (B, H, W)
        found.success, found.sizes.linf                  # (B,) each

    Samples do not influence each other. The model is left as it was: mode, hooks, gradients; a caller's
    `torch.no_grad()` does not matter. An `nn.Module` needs no export, and is asked in evaluation mode.

    Args:
        model: an `nn.Module`, the path of a TorchScript or .pt2 file, or what `load_model` gives. It takes
            (B, C, *spatial) and gives logits or probabilities, (B, K, *spatial). A file is a program: use only files
            you trust.
        image: (B, C, *spatial), real numbers; NumPy, or a tensor, which is attacked on its device. In 2-D a batch of
            slices, in 3-D of volumes. Its range, channel by channel over the batch, is where changed voxels may lie.
        target: (B, *spatial), class numbers in [0, K); for regions that may overlap (B, R, *spatial), 0 or 1.
        eps: the change stays in a ball of this radius, in model units: those of the image unless `intensity` scales
            it. None: the method's; mafl has no ball, and seeks the smallest change.
        method: mafl, mafl-paper, asma, pgd, mifgsm, segpgd, cospgd, ssah or dag.
        steps: forward passes for each sample, at least 1.
        guide: like image: what has what the target shows; the feature term pulls towards it.
        within: bool (B, *spatial): only these voxels may change.
        options: fields of `mafl_cli.config.AttackConfig` (goal_iou, norm, mask_loss, ...), and intensity, roi, overlap
            and spacing, see `mafl_cli.case.arrays.View`.
        say: receives one line for each thing that was assumed. on_progress: called after each step.
    Returns: adversarial images, prediction, per-sample success, sizes of the change, trace; NumPy or tensors, as image.
    Raises: InputError for arrays of a wrong shape; ModelError for a model that cannot be attacked; UsageError for
        settings that do not exist or do not go together.
    """
    view = {each.name: options.pop(each.name) for each in fields(View) if each.name in options}
    config = settings(method, {"eps": eps, "steps": steps, **options})
    return attack_arrays(
        model, image, target, config, guide=guide, within=within, view=View(**view), say=say, on_progress=on_progress
    )


def settings(method: str, chosen: Mapping[str, Any]) -> AttackConfig:
    """A method's settings with some of them changed; None stands for the method's own.

    Raises: UsageError for a setting that does not exist, is out of its range, or does not go with the others.
    """
    for name in chosen:
        _require_known(name, _SETTINGS | {each.name for each in fields(View)})
    return preset(method, **{name: value for name, value in chosen.items() if value is not None})


def _require_known(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise UsageError(f"there is no option {name!r}; there are: {', '.join(sorted(known))}.")


def attack_scan(
    scan: Files | Volume,
    target: Files | Recipe | None,
    *,
    model: str | Path | Loaded = DEMO_MODEL,
    out: str | Path | None = None,
    say: Say = _silent,
    detail: Say = _silent,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Report:
    """Attack one scan, write the result folder, and return the report: what `mafl attack` does.

        report = mafl.attack_scan("scan.nii.gz", "erase:1", model="model.ts", out="mafl-out")

    Args:
        scan: NIfTI or DICOM, or a `Volume`; one for each channel of the model, in its order.
        target: a mask file (one for each region that may overlap), or a recipe such as "erase:1".
        model: TorchScript or .pt2; a program: use only files you trust.
        out: folder for the results; None keeps nothing but the report.
        options: fields of `AttackConfig` and of `mafl_cli.case.request.AttackRequest`.
        say, detail: receive lines for a user, and for the curious. on_progress: called after each step.
    Returns: the report, every number measured on the written file, read again; see docs/python.md.
    Raises: the errors of `mafl_cli.errors`; then nothing is left behind.
    """

    def run(folder: Path) -> Report:
        request = attack_request(scan, target, model=model, out=folder, **options)
        return run_attack(request, say=say, detail=detail, on_progress=on_progress)

    if out is not None:
        return run(Path(out))
    with tempfile.TemporaryDirectory(prefix="mafl-") as folder:
        return run(Path(folder) / "results")


def show_target(request: AttackRequest, *, say: Say = _silent, detail: Say = _silent) -> DryRun:
    """Make the target without attacking: write it and the clean prediction, and return what would be asked for."""
    return _show_target(request, say=say, detail=detail)


def attack_request(
    scan: Files | Volume,
    target: Files | Recipe | None,
    *,
    model: str | Path | Loaded = DEMO_MODEL,
    out: str | Path = "mafl-out",
    method: str = "mafl",
    config: AttackConfig | None = None,
    **options: Any,
) -> AttackRequest:
    """What is asked of one case, from the words of `attack_scan`.

    Args:
        config: all settings of the method at once, instead of some of them among the options.
    Raises: UsageError for an option that does not exist.
    """
    own = {each.name for each in fields(AttackRequest)} - {"images", "volumes", "targets", "recipe", "model", "config"}
    chosen = {name: options.pop(name) for name in _SETTINGS & set(options)}
    for name in options:
        _require_known(name, own | _SETTINGS | {"label_map", "resample_target"})
    masks = Masks(options.pop("resample_target", False), options.pop("label_map", None) or {})
    for name in ("guides", "attack_channels"):
        if options.get(name) is not None:
            options[name] = tuple(options[name])
    scans = (scan,) if isinstance(scan, Volume) else _paths(scan)
    recipe = target if isinstance(target, Recipe) else recipes.parse(target) if isinstance(target, str) else None
    volumes = tuple(each for each in scans if isinstance(each, Volume))
    return AttackRequest(
        images=tuple(Path(each.name) if isinstance(each, Volume) else each for each in scans),
        volumes=volumes,
        targets=() if target is None or recipe is not None else _paths(target),
        recipe=recipe,
        masks=masks,
        model=model.path if isinstance(model, Loaded) else Path(model),
        out=Path(out),
        config=settings(method, chosen) if config is None else config,
        **{**options, **_seen_as(options)},
    )


def _paths(given: Any) -> tuple[Any, ...]:
    if isinstance(given, (str, Path)):
        return (Path(given),)
    return tuple(each if isinstance(each, Volume) else Path(each) for each in given)


def _seen_as(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a model sees scans, as settings of a `ModelRequest`. Raises UsageError for what cannot be."""
    found = {name: options[name] for name in _SEEN_AS if options.get(name) is not None}
    checks: dict[str, Callable[[Any], Any]] = {
        "intensity": lambda value: Intensity.parse(value) if isinstance(value, str) else value,
        "orientation": check_orientation,
        "spacing": lambda value: (0.0,) if value == "native" else check_spacing(value),
        "roi": lambda value: (0,) if value == "none" else check_roi(value),
        "overlap": check_overlap,
    }
    return {name: checks[name](value) if name in checks else value for name, value in found.items()}


def evaluate(
    runs: Files = (),
    *,
    original: str | Path | None = None,
    adversarial: str | Path | None = None,
    target: str | Path | None = None,
    model: Files = (),
    ground_truth: str | Path | None = None,
    fail_if: Sequence[str | Gate] = (),
    trials: Trials | Sequence[str] = (),
    say: Say = _silent,
    on_case: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Measure runs, or pairs of scans, again from their files, and judge the model by gates: what `mafl evaluate` does.

        verdict = mafl.evaluate("mafl-out", model="model.ts", fail_if=["target_iou > 0.5"])

    Args:
        runs: result folders, or folders that hold some. original, adversarial, target: instead of them a pair of scans
            and a mask, or folders, matched by name.
        model: the first draws the predictions and judges, more are asked whether they are fooled too.
        ground_truth: what is really there: a mask, a folder of masks, or the manifest of a batch.
        fail_if: gates, see docs/evaluate.md. trials: transforms as "blur:1", or a `Trials`.
        options: device; mode, slice_axis, orientation, intensity, spacing, roi, overlap as for `attack_scan`; at_hand:
            models among which the one that a run attacked is looked for.
        on_case: called with how many cases are done, and how many there are.
    Returns: the report of the evaluation, see `results.evaluation_report` and docs/evaluate.md.
    Raises: the errors of `mafl_cli.errors`. A failed gate is no error: it stands in the report.
    """
    for name in options:
        _require_known(name, {*_SEEN_AS, "device", "at_hand"})
    seen_as = _seen_as(options)
    request = EvaluateRequest(
        runs=_paths(runs),
        original=None if original is None else str(original),
        adversarial=None if adversarial is None else str(adversarial),
        target=None if target is None else str(target),
        models=tuple(ModelRequest(model=each, **seen_as) for each in _paths(model)),
        at_hand=tuple(ModelRequest(model=each, **seen_as) for each in _paths(options.get("at_hand", ()))),
        device=options.get("device", "auto"),
        ground_truth=None if ground_truth is None else Path(ground_truth),
        trials=trials if isinstance(trials, Trials) else Trials(transforms=transforms.parse(trials)),
        gates=tuple(each if isinstance(each, Gate) else gates.parse(each) for each in fail_if),
    )
    return run_evaluation(request, say=say, on_case=on_case)
