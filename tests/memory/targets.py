"""Functions that `test_fresh_process.py` calls in other processes."""

from __future__ import annotations

import os
import signal

from edgetta.errors import UsageError


def add(a: int, b: int) -> dict[str, int]:
    print("noise on the standard output")
    return {"sum": a + b, "process": os.getpid()}


def threshold() -> str | None:
    return os.environ.get("MALLOC_MMAP_THRESHOLD_")


def refuse() -> None:
    raise UsageError("batch 0 is none; use 1 or more")


def fail() -> None:
    raise ZeroDivisionError("nothing to divide by")


def exhaust() -> None:
    raise MemoryError


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashed() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def wait() -> None:
    signal.pause()
