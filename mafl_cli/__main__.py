"""`python -m mafl_cli`: the same as the `mafl` command."""

from mafl_cli.cli.application import main

main()
