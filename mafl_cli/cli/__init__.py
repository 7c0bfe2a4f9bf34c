"""The command line: options, a request, one call, lines and an exit code.

Nothing heavy is imported here, so that `--help` answers at once; each command imports what it needs. The commands are
listed in the order in which they are imported.
"""

from mafl_cli.cli.application import app, main

from mafl_cli.cli import attack, evaluate, visualize, runs, inspect  # isort: skip

__all__ = ["app", "attack", "evaluate", "inspect", "main", "runs", "visualize"]
