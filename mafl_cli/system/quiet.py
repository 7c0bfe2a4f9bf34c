"""Other libraries are kept from speaking: what they dislike in a header they print, values and all.

mafl says itself what a user must know, in words that quote nothing from a file but known terms
(`mafl_cli.scans.dicom.terms`).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Those that read or write headers.
_LOGGERS = ("pydicom", "highdicom", "nibabel")


@contextmanager
def silence() -> Iterator[None]:
    """While a header is read or written: no warnings, and no logs of the libraries that do it, whoever calls mafl."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def mute() -> Iterator[None]:
    """While a codec works: what compiled code prints straight to the process's standard error goes nowhere."""
    try:
        kept = os.dup(2)
    except OSError:  # Closed: nothing can be printed there.
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextmanager
def libraries() -> Iterator[None]:
    """For a whole command, or a worker's job: no log and no warning of any library is shown.

    Warnings still count where they are turned into errors, as tests do.
    """
    logs, show = logging.root.manager.disable, warnings.showwarning
    logging.disable(logging.CRITICAL)
    warnings.showwarning = _nothing
    try:
        yield
    finally:
        logging.disable(logs)
        warnings.showwarning = show


def _nothing(*_: Any, **__: Any) -> None:
    """Stands in for what shows a warning."""
