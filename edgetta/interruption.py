"""Ctrl-C, SIGTERM and their like at a time of our choosing: after a step, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM")
ENDING: tuple[int, ...] = tuple(int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name))
"""Signals that end a process which does not listen to them, and that one can listen to: a terminal that is closed, a
limit on processor time, a service manager, an operator."""

SIGNALS: tuple[int, ...] = (int(signal.SIGINT), *ENDING)


class Terminated(KeyboardInterrupt):
    """One of `ENDING`. A KeyboardInterrupt, so that what ends well on Ctrl-C ends well on it."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = int(number)

    @property
    def told(self) -> str:
        """What ended the process, in words."""
        return "terminated" if self.number == signal.SIGTERM else f"ended by {signal.Signals(self.number).name}"


@contextmanager
def held() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and their like wait until the block is done; then they do what they would have done.

    A block that raises still hands the signal on. Outside the main thread, where Python delivers no signals, the block
    simply runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    earlier: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    for number in SIGNALS:
        # None: a handler that was not installed from Python and could not be put back.
        if signal.getsignal(number) is not None:
            earlier[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


@contextmanager
def termination_raises() -> Iterator[None]:
    """Within the block each signal of `ENDING` raises `Terminated` instead of ending the process at once.

    Only in the main thread, and only those that were not set to be ignored (as `nohup` does) or handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    taken = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
