"""The library: what `import mafl_cli` offers, and what the command line calls.

Arrays in, arrays out: `attack`. Files in, a report out: `attack_scan`, `evaluate`, `inspect`. Errors are those of
`mafl_cli.errors`; a parameter is named between backticks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mafl_cli.case.array_input import Array
from mafl_cli.case.arrays import A, Asked, Attacked, Loaded, Sizes, View, attack_arrays, load_model
from mafl_cli.case.inspection import inspect
from mafl_cli.case.pipeline import run_attack, show_target
from mafl_cli.case.problem import Say
from mafl_cli.case.request import (
    DEMO_MODEL,
    SEEN_AS,
    AttackRequest,
    ModelRequest,
    model_of,
    path_of,
    paths_of,
    require_known,
    seen_as,
    with_types,
    words_of,
)
from mafl_cli.case.searching import Progress
from mafl_cli.config import AttackConfig, EnsembleRule, label_only, preset
from mafl_cli.errors import UsageError
from mafl_cli.field import transforms
from mafl_cli.judging import gates
from mafl_cli.judging.evaluation import EvaluateRequest, run_evaluation
from mafl_cli.judging.gates import Gate
from mafl_cli.judging.given import Predictions
from mafl_cli.judging.trials import Trials
from mafl_cli.network import command
from mafl_cli.network.device import float32_by_default
from mafl_cli.network.source import Closed, Command, Drawer, Model
from mafl_cli.results.evaluation_report import Evaluation
from mafl_cli.results.report import Report
from mafl_cli.scans import recipes
from mafl_cli.scans.masks import Masks
from mafl_cli.scans.recipes import Recipe
from mafl_cli.scans.volume import Volume

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
SETTINGS = frozenset(each.name for each in fields(AttackConfig)) - {"method"}
"""Options of `attack` and `attack_scan` that are settings of the method: the fields of `AttackConfig`."""
ARRAY_OPTIONS = frozenset(each.name for each in fields(View))
"""Options of `attack` beside them."""
SCAN_OPTIONS = frozenset(each.name for each in fields(AttackRequest)) - {
    *("images", "volumes", "targets", "recipe", "masks", "model", "out", "config")
} | {"resample_target", "label_map"}
"""Options of `attack_scan` beside them."""
EVALUATE_OPTIONS = frozenset({*SEEN_AS, "device", "at_hand", "trust"}) - {"tap", "precision"}
"""Options of `evaluate` beside its parameters."""


def _silent(line: str) -> None:
    pass


def attack(
    model: torch.nn.Module | Loaded | str | Path,
    image: A,
    target: Array,
    *,
    eps: float | None = None,
    method: str = "mafl",
    steps: int | None = None,
    guide: Array | None = None,
    start: Array | None = None,
    within: Array | None = None,
    attack_channels: str | int | Sequence[str | int] | None = None,
    config: AttackConfig | None = None,
    say: Say = _silent,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Attacked[A]:
    """Change images as little as possible so that the model draws the target.

        network = MyUNet().eval()                        # (B, 1, H, W) -> (B, K, H, W)
        found = mafl.attack(network, image, target)      # image (B, 1, H, W), target (B, H, W)
        found.success, found.sizes.linf                  # (B,) each

    Samples do not influence each other. The model is left as it was: mode, hooks, gradients; a caller's
    `torch.no_grad()`, `inference_mode()` and `autocast()` do not matter. An `nn.Module` needs no export, and is asked
    in evaluation mode, in float32.

    Args:
        model: an `nn.Module`, the path of a model, or what `load_model` returns. It takes
            (B, C, *spatial) and gives logits or probabilities, (B, K, *spatial). A file is a program: use only files
            you trust.
        image: (B, C, *spatial), real numbers; NumPy, or a tensor, which is attacked on its device. In 2-D a batch of
            slices, in 3-D of volumes. Its range, channel by channel over the batch, is where changed voxels may lie.
        target: (B, *spatial), class numbers in [0, K); for regions that may overlap (B, R, *spatial), 0 or 1.
        eps: the change stays in a ball of this radius, in model units: those of the image unless `intensity` scales
            it. None: the method's; mafl has no ball, and seeks the smallest change.
        method: mafl, mafl-paper, asma, pgd, mifgsm, segpgd, cospgd, ssah, dag or worst.
        steps: forward passes for each sample, at least 1; worst makes as many once more. None: the method's.
        guide: like image: what has what the target shows; the feature term pulls towards it.
        start: like image: changed images, as another model's attack found them, that one search of worst begins at.
        within: bool (B, *spatial): only these voxels may change.
        attack_channels: names or numbers of the channels that may change; None for all.
        config: all settings of a method at once, as `preset` gives them, instead of `method`, `eps`, `steps` and
            settings among the options.
        say: receives one line for each thing that was assumed. on_progress: called after each step.
        options: other settings, the fields of `AttackConfig` (goal_iou, norm, mask_loss, ...), and how the model sees
            the image: intensity, roi, overlap, spacing, tap, precision, activation, see `mafl_cli.case.arrays.View`.
    Returns: adversarial images, prediction, per-sample success, sizes of the change, trace; NumPy or tensors, as image.
    Raises: InputError for arrays that cannot be used; ModelError for a model that cannot be attacked; UsageError for
        settings that do not exist or do not go together.
    """
    for name in options:
        require_known(name, SETTINGS | ARRAY_OPTIONS)
    view = View(**{name: options.pop(name) for name in ARRAY_OPTIONS & set(options)})
    chosen = settings(method, {"eps": eps, "steps": steps, **options}, config)
    asked = Asked(target=target, guide=guide, start=start, within=within, attack_channels=attack_channels, view=view)
    return attack_arrays(model, image, asked, chosen, say=say, on_progress=on_progress)


LABEL_ONLY_SETTINGS = frozenset({"goal_iou", "goal_hit", "eps", "eps_unit", "norm", "seed"})
"""Settings that a search without a gradient has, beside its number of queries."""


def _label_only(
    method: str, config: AttackConfig | None, given: Mapping[str, Any], *, untargeted: bool
) -> AttackConfig:
    """The settings of a search that sees labels alone. Raises: UsageError for those of others."""
    others = [
        name for name, value in given.items() if value is not None and name not in {*LABEL_ONLY_SETTINGS, "queries"}
    ]
    if method != "mafl" or config is not None or others:
        name = "method" if method != "mafl" else others[0] if others else "config"
        raise UsageError(f"with a model that only draws, leave out `{name}`: it is about gradients.")
    return label_only({name: value for name, value in given.items() if value is not None}, untargeted=untargeted)


def settings(method: str, chosen: Mapping[str, Any], config: AttackConfig | None = None) -> AttackConfig:
    """A method's settings with some of them changed; None stands for the method's own.

    config: all settings, instead of a method with some of them changed.
    Raises: UsageError for a setting that is out of its range or does not go with the others.
    """
    # What was computed with NumPy or PyTorch is a number all the same; reports hold Python's.
    given = {name: getattr(value, "item", lambda value=value: value)() for name, value in chosen.items()}
    given = {name: value for name, value in given.items() if value is not None}
    if config is None:
        return preset(method, **given)
    if given or method != "mafl":
        raise UsageError(f"`config` has all settings already: leave out {', '.join(given) or 'method'}.")
    return config


def attack_scan(
    scan: Files | Volume | Sequence[Volume],
    target: Files | Recipe | None,
    *,
    model: Files | Loaded = DEMO_MODEL,
    ensemble: EnsembleRule | None = None,
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
        model: a file or folder, see docs/models.md, or what `load_model` returns; a program: use only files you trust.
            Several with `ensemble`.
        ensemble: how the answers of several models become those of the one that is attacked: mean, of their logits, or
            mean-probabilities.
        options that are for a model that only draws: model_command, a program and its arguments, such as
            "program {input} {output}", or a function of scans, (I, J, K) for each channel, that gives their mask;
            command_timeout, seconds; queries, how often it may be asked; classes, their names; untargeted, to draw
            anything else, with None for the target. See docs/transfer.md.
        out: folder for the results; None keeps nothing but the report.
        options: method, settings of it (eps, steps, ...), or config with all of them; and the fields of
            `mafl_cli.case.request.AttackRequest`, as within, body_only, guides, attack_channels, save_as, device,
            redact, overwrite, intensity, roi, tap, precision: see docs/python.md.
        say, detail: receive lines for a user, and for the curious. on_progress: called after each step.
    Returns: the report, every number measured on the written file, read again; see docs/python.md.
    Raises: the errors of `mafl_cli.errors`; then nothing is left behind.
    """

    def run(folder: Path) -> Report:
        request = attack_request(scan, target, model=model, ensemble=ensemble, out=folder, **options)
        if not request.images:
            raise UsageError("`scan` must name at least one file.")
        if request.recipe is None and not request.targets and not request.untargeted:
            raise UsageError("`target` must be a mask file, or a recipe such as erase:1.")
        return run_attack(request, say=say, detail=detail, on_progress=on_progress)

    # The seed is that of the attack, and no caller's random numbers are to change with it.
    with torch.random.fork_rng(devices=()), float32_by_default():
        if out is not None:
            return run(path_of("out", out))
        with tempfile.TemporaryDirectory(prefix="mafl-") as folder:
            return run(Path(folder) / "results")


def attack_request(
    scan: Files | Volume | Sequence[Volume],
    target: Files | Recipe | None,
    *,
    model: Files | Loaded = DEMO_MODEL,
    ensemble: EnsembleRule | None = None,
    out: str | Path = "mafl-out",
    method: str = "mafl",
    config: AttackConfig | None = None,
    model_command: str | Callable[..., Any] | Command | Drawer | None = None,
    command_timeout: float | None = None,
    queries: int | None = None,
    **options: Any,
) -> AttackRequest:
    """What is asked of one case, from the words of `attack_scan`.

    Args:
        config: all settings of the method at once, instead of some of them among the options.
        model_command, command_timeout, queries: see `attack_scan`.
    Raises: UsageError for an option that does not exist.
    """
    for name in options:
        require_known(name, SETTINGS | SCAN_OPTIONS)
    if isinstance(model, torch.nn.Module):
        raise UsageError(
            "`model` must be a file for a scan, or what load_model returns: an nn.Module is attacked on arrays, by "
            "`mafl.attack`, and on scans after load_model(network)."
        )
    options = with_types({name: value for name, value in options.items() if value is not None})
    chosen = {name: options.pop(name) for name in SETTINGS & set(options)}
    masks = Masks(options.pop("resample_target", False), options.pop("label_map", {}))
    volumes, images = _scans(scan)
    closed = None if model_command is None else _closed_model(model_command, command_timeout, model)
    if closed is not None and ensemble is not None:
        raise UsageError("`ensemble` is for models with logits: leave it out.")
    if closed is not None and options.get("ladder"):
        raise UsageError("with a model that only draws, leave out `ladder`: it is about gradients.")
    if closed is None and (queries is not None or command_timeout is not None):
        raise UsageError("`queries` and `command_timeout` are for a model that only draws: give `model_command` too.")
    untargeted = bool(options.get("untargeted", False))
    if untargeted and target is not None:
        raise UsageError("`untargeted` asks for anything else than the clean prediction: leave out `target`.")
    if isinstance(target, str):
        target = recipes.parse(target) or target
    return AttackRequest(
        images=images,
        volumes=volumes,
        targets=() if target is None or isinstance(target, Recipe) else paths_of("target", target),
        recipe=target if isinstance(target, Recipe) else None,
        masks=masks,
        model=_attacked(model, ensemble) if closed is None else closed,
        out=path_of("out", out),
        config=settings(method, chosen, config)
        if closed is None
        else _label_only(method, config, {**chosen, "queries": queries}, untargeted=untargeted),
        **{**options, **seen_as(options)},
    )


def _closed_model(
    given: str | Callable[..., Any] | Command | Drawer, timeout: float | None, model: object
) -> Command | Drawer:
    """A program, or a function in its place. Raises: as `network.command.parsed`; UsageError beside another model."""
    if model != DEMO_MODEL:
        raise UsageError("give `model` or `model_command`, not both.")
    if isinstance(given, str):
        return command.parsed(given, command.TIMEOUT_S if timeout is None else timeout)
    if timeout is not None:
        raise UsageError("`command_timeout` is for a program: leave it out.")
    if isinstance(given, Closed):
        return given
    return Drawer(given, getattr(given, "__name__", type(given).__name__))


def _scans(given: Files | Volume | Sequence[Volume]) -> tuple[tuple[Volume, ...], tuple[Path, ...]]:
    """What was read already, and the files, or their names. Raises UsageError for some of both."""
    scans: tuple[Any, ...] = (given,) if isinstance(given, Volume) or not isinstance(given, Sequence) else tuple(given)
    volumes = tuple(scan for scan in scans if isinstance(scan, Volume))
    if not volumes:
        return (), paths_of("scan", given)
    if len(volumes) < len(scans):
        raise UsageError("`scan` must be files or volumes, got some of both: read all of them first.")
    return volumes, tuple(Path(scan.name) for scan in volumes)


def _attacked(given: Files | Loaded, ensemble: EnsembleRule | None) -> Model:
    """The one model, or the ensemble. Raises: UsageError for several without a rule, or one with."""
    if not isinstance(given, Loaded):
        return model_of(given, ensemble)
    if ensemble is not None:
        raise UsageError("`ensemble` cannot be used for a model that is loaded: give it to load_model.")
    return given.source


def _models(given: Files | Loaded, ensemble: EnsembleRule | None) -> tuple[Model, ...]:
    """Those that judge, one after the other; those of an ensemble as one."""
    if isinstance(given, Loaded) or ensemble is not None:
        return (_attacked(given, ensemble),)
    return paths_of("model", given)


def _predictions(clean: object, adversarial: object, classes: tuple[str, ...] | None) -> Predictions | None:
    """What was drawn, where it is given. Raises UsageError for one prediction without the other."""
    given = {"prediction_clean": clean, "prediction_adversarial": adversarial}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 1:
        raise UsageError(f"`{missing[0]}` is missing: give what was drawn on both scans.")
    if missing:
        if classes is not None:
            raise UsageError(
                "`classes` are those of `model_command`, or of `prediction_clean` and `prediction_adversarial`: give "
                "these too."
            )
        return None
    return Predictions(str(clean), str(adversarial), classes)


def _require_no_model(given: Mapping[str, Any]) -> None:
    """Raise UsageError where something is given that is about a model, and would be ignored."""
    for name, value in given.items():
        if value not in (None, "auto"):
            raise UsageError(
                f"with `prediction_clean` and `prediction_adversarial`, leave out `{name}`: no model is asked."
            )


def evaluate(
    runs: Files = (),
    *,
    original: str | Path | None = None,
    adversarial: str | Path | None = None,
    target: str | Path | None = None,
    model: Files | Loaded = (),
    ensemble: EnsembleRule | None = None,
    model_command: str | Callable[..., Any] | Command | Drawer | None = None,
    command_timeout: float | None = None,
    prediction_clean: str | Path | None = None,
    prediction_adversarial: str | Path | None = None,
    classes: Sequence[str] | None = None,
    ground_truth: str | Path | None = None,
    fail_if: str | Gate | Sequence[str | Gate] = (),
    trials: Trials | str | Sequence[str] = (),
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
        ensemble: all of them are one model, as in an attack on an ensemble: mean or mean-probabilities.
        model_command, command_timeout: a program that draws, instead of model, see `attack_scan`.
        prediction_clean, prediction_adversarial: instead of a model what it drew on both scans: masks, or folders of
            masks, matched by name. classes: the names of their classes, background first.
        ground_truth: what is really there: a mask, a folder of masks, or the manifest of a batch.
        fail_if: gates, see docs/evaluate.md. trials: transforms as "blur:1", or a `Trials`.
        options: device; mode, slice_axis, orientation, intensity, spacing, roi, overlap as for `attack_scan`; at_hand:
            models among which the one that a run attacked is looked for; folds, mirror: of
            nnU-Net results folders; trust: whether Python code that comes with a model may run.
        on_case: called with how many cases are done, and how many there are.
    Returns: the report of the evaluation, see `results.evaluation_report` and docs/evaluate.md.
    Raises: the errors of `mafl_cli.errors`. A failed gate is not an error: it stands in the report.
    """
    for name in options:
        require_known(name, EVALUATE_OPTIONS)
    view = seen_as(options)
    named = None if classes is None else words_of(classes)
    predictions = _predictions(prediction_clean, prediction_adversarial, None if model_command is not None else named)
    if predictions is not None:
        asked = {"model": model or None, "model_command": model_command, "ensemble": ensemble}
        _require_no_model({**view, **asked})
    models: tuple[Model, ...] = () if predictions is not None else _models(model, ensemble)
    if model_command is not None:
        models = (_closed_model(model_command, command_timeout, models or DEMO_MODEL),)
    trust = bool(with_types({"trust": options.get("trust", False)})["trust"])
    if original is not None and not models and not runs and predictions is None:
        raise UsageError(
            "`model` must name the model that draws the predictions of a pair of scans; or give them, as "
            "`prediction_clean` and `prediction_adversarial`."
        )
    rules = (fail_if,) if isinstance(fail_if, (str, Gate)) else fail_if
    request = EvaluateRequest(
        runs=paths_of("runs", runs),
        original=None if original is None else str(original),
        adversarial=None if adversarial is None else str(adversarial),
        target=None if target is None else str(target),
        models=tuple(
            ModelRequest(model=each, trust=trust, classes=None if predictions is not None else named, **view)
            for each in models
        ),
        at_hand=tuple(ModelRequest(model=each, **view) for each in paths_of("at_hand", options.get("at_hand", ()))),
        predictions=predictions,
        device=str(options.get("device", "auto")),
        ground_truth=None if ground_truth is None else path_of("ground_truth", ground_truth),
        trials=trials if isinstance(trials, Trials) else Trials(transforms=transforms.parse(words_of(trials))),
        gates=tuple(rule if isinstance(rule, Gate) else gates.parse(rule) for rule in rules),
    )
    with float32_by_default():
        return run_evaluation(request, say=say, on_case=on_case)
