"""Ctrl-C and SIGTERM at a time of our choosing: after a step, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as service managers send it. A KeyboardInterrupt, so that what ends well on Ctrl-C ends well on it."""


@contextmanager
def held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block is done; then they do what they would have done.

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
    """Within the block SIGTERM raises `Terminated` instead of ending the process at once.

    Only in the main thread, and only where the signal was not set to be ignored or handled.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
