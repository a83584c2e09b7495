"""The peak of a call: resident memory at its highest, above the loaded, warmed-up model, as the kernel counts it.

    peak = measure_peak(lambda: adapter.step(images))

The kernel's high-water mark is reset before each call, so that nothing earlier shows in it. What the C library keeps
of freed memory would hide a peak (it is counted as resident already) or inflate it: it is given back before each call,
and measuring processes (`fresh_process.py`) fix its thresholds.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetta.errors import EdgettaError

Source = Literal["high-water mark", "sampled", "device"]
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_SAMPLE_SECONDS = 0.0005


@dataclass(frozen=True)
class Peak:
    """Resident memory of this process around a call, in bytes.

    peak    the highest during the call, above `level`
    held    what is still resident behind the call, above `level`, before anything is given back
    level   before the call: model loaded and warmed up, free memory given back
    source  "high-water mark": the kernel's own; "sampled": read every half millisecond, so a lower bound, where the
            kernel does not let its mark be reset; "device": of a GPU, see `device_peak.py`
    """

    peak: int
    held: int
    level: int
    source: Source


def measure_peak(
    run: Callable[[], object],
    *,
    warm_up: int = 2,
    repetitions: int = 2,
    release: Callable[[], object] | None = None,
) -> Peak:
    """The highest peak of `repetitions` calls of `run`, after `warm_up` calls that do not count.

    `release` gives back what the engine caches; it is called before each measured call. What `run` returns is freed
    after its call. Raises `EdgettaError` where the system does not tell resident memory (it needs Linux).
    """
    for _ in range(warm_up):
        run()
    peaks = []
    for _ in range(max(1, repetitions)):
        if release is not None:
            release()
        give_back()
        level = resident()
        with _watched() as mark:
            result = run()
        held = resident()
        del result
        peaks.append(Peak(max(0, mark.highest - level), max(0, held - level), level, mark.source))
    return max(peaks, key=lambda peak: peak.peak)


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return _status("VmRSS")


def give_back() -> None:
    """Collect garbage and return free memory of the C library to the system, where it knows how."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class _Mark:
    highest: int
    source: Source


@contextlib.contextmanager
def _watched() -> Iterator[_Mark]:
    """The highest resident level of the block, known at its end."""
    if reset_high_water():
        mark = _Mark(0, "high-water mark")
        yield mark
        mark.highest = _status("VmHWM")
        return
    mark, done = _Mark(resident(), "sampled"), threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            mark.highest = max(mark.highest, resident())

    thread = threading.Thread(target=sample, name="edgetta-memory", daemon=True)
    thread.start()
    try:
        yield mark
    finally:
        mark.highest = max(mark.highest, resident())
        done.set()
        thread.join()


def reset_high_water() -> bool:
    """Let the kernel's high-water mark start again at the present level; False where it does not allow that."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def high_water() -> int:
    """The highest resident level, in bytes, since the last reset."""
    return _status("VmHWM")


def _status(field: str) -> int:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        raise EdgettaError(f"this system does not tell {field} in {_STATUS}; measure memory on Linux")
    return int(found[1]) * 1024
