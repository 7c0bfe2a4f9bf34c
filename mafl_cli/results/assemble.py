"""How a report is put together around a finished case, and what is said over all of its cases."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mafl_cli.config import AttackConfig, config_hash
from mafl_cli.names import stem
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION, TOOL, Environment
from mafl_cli.results.quantities import HEADLINES, QUANTITIES
from mafl_cli.results.quantity import Quantity, value_of
from mafl_cli.results.report import (
    Aggregate,
    CaseRecord,
    IntensityRecord,
    MaskFileRecord,
    MemberRecord,
    Model,
    Report,
    Run,
    Settings,
    Summary,
    TapRecord,
    TargetRecord,
)
from mafl_cli.system.records import plain

if TYPE_CHECKING:
    import torch

    from mafl_cli.network.load import ModelInfo


def attack_report(
    *,
    config: AttackConfig,
    model: ModelInfo,
    device: torch.device,
    case: CaseRecord,
    settings: Mapping[str, Any],
    started: str,
) -> Report:
    """The whole report around one finished case. settings: those of `Settings` that are not in `config`."""
    whole = Settings(**asdict(config), **settings)
    return Report(
        schema_version=SCHEMA_VERSION,
        tool=TOOL,
        notice=NOTICE,
        run=Run(
            command="attack",
            started=started,
            settings=whole,
            config_hash=config_hash(config, plain(settings), model.sha256),
        ),
        environment=Environment.here(device),
        model=_model(model),
        cases=(case,),
        aggregate=aggregate([case]),
        gates=(),
    )


def _model(model: ModelInfo) -> Model:
    facts = model.facts()
    taps = tuple(TapRecord(name=tap.name, shape=tuple(tap.shape), weight=tap.weight) for tap in model.taps)
    members = tuple(
        MemberRecord(**{**member, "intensity": _intensity(member["intensity"])}) for member in facts.get("members", ())
    )
    return Model(**{**facts, "intensity": _intensity(facts["intensity"]), "taps": taps, "members": members or None})


def _intensity(facts: Mapping[str, Any]) -> IntensityRecord:
    each = tuple(_intensity(one) for one in facts.get("each", ())) or None
    return IntensityRecord(**{**facts, "each": each})


def aggregate(cases: Sequence[CaseRecord]) -> Aggregate:
    """Counts, and mean, median and worst of the headline numbers over the cases where they are defined."""
    return Aggregate(
        cases=len(cases),
        ok=len(cases),
        failed=0,
        goal_reached=sum(case.attack.goal_reached for case in cases),
        metrics={name: _summary(QUANTITIES[name], cases) for name in HEADLINES},
    )


def _summary(quantity: Quantity, cases: Sequence[CaseRecord]) -> Summary:
    """Worst is said from the attacker's side: the target missed most, the change seen most."""
    values = [value for case in cases if (value := value_of(quantity.of_attack(case))) is not None]
    if not values:
        return Summary(n=0, mean=None, median=None, worst=None)
    worst = max(values) if quantity.better == "lower" else min(values)
    return Summary(n=len(values), mean=statistics.fmean(values), median=statistics.median(values), worst=worst)


def case_id(name: str) -> str:
    """The image's name without its suffixes."""
    return stem(name) or name


def renamed(report: Report, names: Callable[[str], str]) -> Report:
    """The report with every name of a file that was given changed by `names`, and what speaks of it."""
    settings = report.run.settings
    guide, start = (tuple(map(names, given or ())) or None for given in (settings.guide, settings.start))
    return replace(
        report,
        run=replace(report.run, settings=replace(settings, guide=guide, start=start)),
        cases=(_renamed_case(report.case, names),),
    )


def _renamed_case(case: CaseRecord, names: Callable[[str], str]) -> CaseRecord:
    within = case.bounds.within
    return replace(
        case,
        case_id=names(case.case_id),
        inputs=tuple(
            replace(each, name=names(each.name), warnings=tuple(names(line) for line in each.warnings))
            for each in case.inputs
        ),
        target=renamed_target(case.target, names),
        bounds=replace(case.bounds, within=None if within is None else _renamed_file(within, names)),
    )


def _renamed_file(file: MaskFileRecord, names: Callable[[str], str]) -> MaskFileRecord:
    return replace(file, name=names(file.name))


def renamed_target(target: TargetRecord, names: Callable[[str], str]) -> TargetRecord:
    """Like `renamed`, for a case's target."""
    recipe = target.recipe
    if recipe is not None and recipe.startswith("copy:"):
        recipe = names(recipe)
    return replace(target, files=tuple(_renamed_file(file, names) for file in target.files), recipe=recipe)
