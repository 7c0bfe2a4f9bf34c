"""The command line: options, a request, one call, lines and an exit code."""

from mafl_cli.cli.attack import app, main

__all__ = ["app", "main"]
