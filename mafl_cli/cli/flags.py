"""Parameters of the library in the words of the command line: `size_limit` is --size-limit there.

In a message of the library backticks enclose a parameter and nothing else; text from outside has none, see
`names.outside`. The flags are those that the commands declare: an option is called like the parameter that it sets, so
a new one needs no entry here.
"""

from __future__ import annotations

from functools import lru_cache

from typer.main import get_command

from mafl_cli.cli.application import app
from mafl_cli.names import renamed


def in_flags(message: str) -> str:
    """A message or a help of the library as the command line shows it; a parameter without a flag stays as it is."""
    return renamed(message, lambda parameter: _flags().get(parameter, f"`{parameter}`"))


@lru_cache(maxsize=1)
def _flags() -> dict[str, str]:
    """The flag of each option of any command, and of each argument what its help calls it, by parameter."""
    found: dict[str, str] = {}
    for command in getattr(get_command(app), "commands", {}).values():
        for parameter in command.params:
            options = [option for option in parameter.opts if option.startswith("--")]
            found[parameter.name] = options[0] if options else parameter.metavar or parameter.name
    return found
