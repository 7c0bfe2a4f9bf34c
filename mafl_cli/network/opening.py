"""How a model is to be opened, where that is the user's choice and not the model's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mafl_cli.errors import UsageError
from mafl_cli.names import outside


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a user says about opening a model.

    folds: of an nnU-Net results folder, "0", "1", ... or ("all",); None for all that are there. mirror: whether its
    answers are means over mirrored inputs; None as its training allowed. trust: whether code that the model brings
    along may run.
    """

    folds: tuple[str, ...] | None = None
    mirror: bool | None = None
    trust: bool = False


PLAIN = Opening()
"""Nothing said."""


def read_folds(given: object) -> tuple[str, ...]:
    """Read "all", or numbers, separated by commas or several. Raises UsageError for anything else."""
    text = given if isinstance(given, (str, int)) or not isinstance(given, Iterable) else ",".join(map(str, given))
    found = tuple(dict.fromkeys(part.strip() for part in str(text).split(",")))
    if found == ("all",) or all(part.isdecimal() and len(part) <= 3 for part in found):
        return tuple(part if part == "all" else str(int(part)) for part in found)
    raise UsageError(f"`folds` must be all, or numbers separated by commas, such as 0,2, got {outside(str(text))!r}.")
