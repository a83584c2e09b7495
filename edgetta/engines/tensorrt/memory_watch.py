"""How much memory something takes at most while it runs: of the process, and of the GPU, TensorRT's own included.

torch's statistics know nothing of what TensorRT allocates, so the free memory is watched.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_SECONDS = 0.02  # between two looks


class MemoryWatch:
    """`peak`: the most bytes that were taken since the watch began, in main memory and on the GPU together."""

    def __init__(self) -> None:
        self._resident, self._free = _resident(), _free_on_gpu()
        self.peak = 0

    def look(self) -> None:
        grown = max(0, _resident() - self._resident)
        self.peak = max(self.peak, grown + max(0, self._free - _free_on_gpu()))


@contextmanager
def watch_memory() -> Iterator[MemoryWatch]:
    """Watch from another thread for as long as the block runs."""
    watch = MemoryWatch()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_SECONDS):
            watch.look()

    thread = threading.Thread(target=look, name="memory watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.look()
        ended.set()
        thread.join()


def _resident() -> int:
    """Bytes of this process in main memory; 0 where the system does not say."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _free_on_gpu() -> int:
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
