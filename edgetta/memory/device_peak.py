"""The peak of a call on a GPU: what torch counts, what engines take beside it, and what the device has lost in all.

torch's counter sees neither TensorRT nor ONNX Runtime, which allocate from the driver; the driver tells how much of
the device is free, but keeps no highest mark. So torch's own peak is exact, and the rest is sampled: a lower bound. A
Jetson's GPU shares the machine's memory, of which the system says how much is left (MemAvailable, or a group's limit).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from edgetta.memory.room import RoomMeter

_SAMPLE_SECONDS = 0.0005


class Counters(Protocol):
    """What there is to read of a GPU, in bytes."""

    def settle(self) -> None:
        """Wait for the device, and give back what torch has reserved and does not use."""

    def reset_peak(self) -> None:
        """Let torch's highest mark start again at the present level."""

    def allocated(self) -> int:
        """In torch's tensors."""

    def peak(self) -> int:
        """The highest of `allocated` since the reset."""

    def reserved(self) -> int:
        """Held by torch's allocator."""

    def used(self) -> int:
        """Of the device, by everybody."""

    def available(self) -> int | None:
        """Of the machine's memory, where the GPU shares it."""


@dataclass(frozen=True)
class DevicePeak:
    """The highest of a call above the level before it, in bytes.

    torch    in torch's tensors
    engine   taken from the driver beside torch: engines, their workspaces and contexts (sampled)
    device   of the device, by everybody (sampled); no less than either of the two
    machine  by which MemAvailable fell, on a GPU that shares the machine's memory (sampled); None on others
    """

    torch: int
    engine: int
    device: int
    machine: int | None

    @property
    def peak(self) -> int:
        """What must be free for the call."""
        return max(self.device, self.machine or 0)


def measure_device_peak(
    run: Callable[[], object], counters: Counters | None = None, *, warm_up: int = 1, repetitions: int = 2
) -> DevicePeak:
    """The highest of `repetitions` calls of `run`, after `warm_up` calls that do not count.

    counters   of the GPU; of torch's current CUDA device when None
    """
    counters = counters or CudaCounters()
    for _ in range(warm_up):
        run()
    found = [_measured(run, counters) for _ in range(max(1, repetitions))]
    return max(found, key=lambda peak: peak.peak)


def _measured(run: Callable[[], object], counters: Counters) -> DevicePeak:
    counters.settle()
    allocated, beside, used, available = (
        counters.allocated(),
        counters.used() - counters.reserved(),
        counters.used(),
        counters.available(),
    )
    counters.reset_peak()
    highest = {"engine": 0, "device": 0, "machine": 0}

    def sample() -> None:
        now, reserved, left = counters.used(), counters.reserved(), counters.available()
        highest["engine"] = max(highest["engine"], now - reserved - beside)
        highest["device"] = max(highest["device"], now - used)
        if available is not None and left is not None:
            highest["machine"] = max(highest["machine"], available - left)

    with _sampled(sample):
        result = run()
    torch_peak = max(0, counters.peak() - allocated)
    del result
    # What torch frees it keeps reserved: the device's own count would not see it twice, nor the sampler every peak.
    device = max(highest["device"], torch_peak, highest["engine"])
    return DevicePeak(torch_peak, highest["engine"], device, None if available is None else highest["machine"])


@contextmanager
def _sampled(sample: Callable[[], None]) -> Iterator[None]:
    """Within the block a thread calls `sample` every half millisecond, and it is called once more at the end."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            sample()

    thread = threading.Thread(target=loop, name="edgetta-device-memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sample()


class CudaCounters:
    """Those of torch's current CUDA device."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self._room = RoomMeter() if getattr(properties, "is_integrated", False) else None

    def settle(self) -> None:
        self._cuda.synchronize()
        self._cuda.empty_cache()

    def reset_peak(self) -> None:
        self._cuda.reset_peak_memory_stats()

    def allocated(self) -> int:
        return int(self._cuda.memory_allocated())

    def peak(self) -> int:
        self._cuda.synchronize()
        return int(self._cuda.max_memory_allocated())

    def reserved(self) -> int:
        return int(self._cuda.memory_reserved())

    def used(self) -> int:
        free, total = self._cuda.mem_get_info()
        return int(total - free)

    def available(self) -> int | None:
        room = None if self._room is None else self._room.read()
        return None if room is None else room.available
