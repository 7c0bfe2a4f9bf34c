"""Groups of options as dataclasses: a command names a group once, and typer sees each of its fields as an option.

    @dataclass
    class Words:
        quiet: Annotated[bool, under(OUTPUT, "--quiet", "-q", help="Say only what went wrong.")] = False

    @app.command()
    @expanded
    def status(run: Run, words: Words) -> None: ...

`mafl status RUN -q` then calls `status(run=RUN, words=Words(quiet=True))`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from functools import wraps
from typing import Annotated, Any, Optional, get_type_hints

import typer
import typer.core

from mafl_cli.cli.flags import in_flags
from mafl_cli.config import AttackConfig

# Headings of --help, in their order.
ARGUMENTS, OTHER = "Arguments", "Other"
FILES, GOAL, METHOD, BUDGET, MODEL_INPUT, OUTPUT = "Files", "Goal", "Method", "Budget", "Model input", "Output"
TRIALS, READERS, GATES, BATCH = "Trials", "Readers", "Gates", "Batch"
_ORDER = (ARGUMENTS, FILES, TRIALS, READERS, GOAL, METHOD, BUDGET, MODEL_INPUT, GATES, BATCH, OUTPUT, OTHER)

_EVERYTHING = "mafl_cli.help_all"


class Grouped(typer.core.TyperCommand):
    """A command whose options stand under headings in plain text; rich's panels would cost an import and a frame.

    Hidden options are those that few people need; --help-all shows them too.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each heading."""
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _ORDER}
        left_out = 0
        for parameter in self.get_params(ctx):
            hidden = getattr(parameter, "hidden", False)
            if hidden and not ctx.meta.get(_EVERYTHING, False):
                left_out += 1
                continue
            record = _shown(parameter, ctx) if hidden else parameter.get_help_record(ctx)
            if record is not None:
                other = ARGUMENTS if parameter.param_type_name == "argument" else OTHER
                names, about = record
                sections[getattr(parameter, "rich_help_panel", None) or other].append((names, in_flags(about)))
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(f"{left_out} more options: --help-all.")


def _shown(parameter: Any, ctx: Any) -> Any:
    """The lines of help of a hidden option."""
    parameter.hidden = False
    try:
        return parameter.get_help_record(ctx)
    finally:
        parameter.hidden = True


def _show_everything(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[_EVERYTHING] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


@dataclass
class HelpAll:
    """For commands with options that only --help-all shows."""

    help_all: Annotated[
        bool,
        typer.Option("--help-all", is_eager=True, callback=_show_everything, help="Show all options, and exit."),
    ] = False


def under(heading: str, *names: str, rare: bool = False, **settings: Any) -> Any:
    """An option under a heading of --help; a rare one is shown by --help-all alone."""
    return typer.Option(*names, rich_help_panel=heading, hidden=rare, **settings)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter whose type is a dataclass replaced by the fields of that dataclass."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(command).parameters.values():
        kind = hints[own.name]
        if not is_dataclass(kind):
            parameters.append(own.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[own.name] = kind
        types = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if each.default is MISSING else each.default,
                annotation=types[each.name],
            )
            for each in fields(kind)
        ]

    @wraps(command)
    def call(**given: Any) -> None:
        built = {
            name: kind(**{each.name: given.pop(each.name) for each in fields(kind)}) for name, kind in groups.items()
        }
        command(**given, **built)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return call


def of_settings(name: str) -> type:
    """A group with an option for each setting of a method; None stands for the method's own value.

    A new setting is one field of `AttackConfig`: its option, its help and its range follow from that.
    """
    types = get_type_hints(AttackConfig)
    made: list[Any] = []
    for each in fields(AttackConfig):
        about = each.metadata["setting"]
        if about.heading is None:
            continue
        varies = each.name not in ("steps", "goal_iou", "goal_hit", "aim", "seed")
        default = "the method's" if varies else "by the goals" if each.default is None else each.default
        option = under(about.heading, rare=not about.usual, help=f"{about.help} [default: {default}]")
        made.append((each.name, Annotated[Optional[types[each.name]], option], field(default=None)))  # noqa: UP045
    group = make_dataclass(name, made)
    group.__module__ = __name__
    return group


def given(group: Any) -> dict[str, Any]:
    """The options of a group that were given, by name."""
    return {each.name: value for each in fields(group) if (value := getattr(group, each.name)) is not None}
