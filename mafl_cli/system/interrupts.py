"""Ctrl-C, and the signals by which systems end a process: all of them are exceptions, so that everything is put right.

SIGTERM is what schedulers and `kill` send, SIGHUP what a terminal sends when it is closed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_ALL = (signal.SIGINT, *_ENDING)


class Stopped(KeyboardInterrupt):
    """Like Ctrl-C, but by the signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(exc: KeyboardInterrupt) -> int:
    """What a shell says of a process that this ended: 128 and the signal's number."""
    return 128 + (exc.number if isinstance(exc, Stopped) else signal.SIGINT)


@contextmanager
def as_exceptions() -> Iterator[list[KeyboardInterrupt]]:
    """SIGTERM and SIGHUP raise `Stopped` in the block, once. Where they are ignored, as `nohup` does, they stay so.

    Yields a list of what was raised so, and for Ctrl-C: libraries that it goes through make errors of their own of it.
    """
    came: list[KeyboardInterrupt] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def stop(number: int, frame: FrameType | None) -> None:
        # A second one must not disturb the cleaning up.
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        came.append(Stopped(number))
        raise came[-1]

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(KeyboardInterrupt())
        raise came[-1]

    ctrl_c = signal.getsignal(signal.SIGINT)
    if ctrl_c is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    before = {each: signal.signal(each, stop) for each in _ENDING if signal.getsignal(each) is signal.SIG_DFL}
    try:
        yield came
    finally:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        if ctrl_c is signal.default_int_handler:
            signal.signal(signal.SIGINT, ctrl_c)


@contextmanager
def put_off() -> Iterator[None]:
    """Signals that would end the block are felt when it has ended well; processes that are started in it feel none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before: dict[int, Any] = {each: signal.getsignal(each) for each in _ALL}
    # Blocking is what new processes inherit. Here it is not enough: other threads may take a signal for this one.
    for each, handler in before.items():
        if callable(handler):
            signal.signal(each, lambda number, frame: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each, handler in before.items():
            if callable(handler):
                signal.signal(each, handler)
    if came:
        before[came[0]](came[0], None)


def ignore() -> None:
    """Ignore interrupts: for processes that another one will end."""
    for each in _ALL:
        signal.signal(each, signal.SIG_IGN)
