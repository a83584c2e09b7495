"""The peak on a GPU, with a double of its counters: torch's own, what engines take beside it, and the whole device."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgetta.memory import device_peak
from edgetta.memory.device_peak import CudaCounters, measure_device_peak
from edgetta.memory.room import Room
from edgetta.memory.step_peak import measure_calls

MB = 1_000_000


class Device:
    """A GPU of 8 GB on which torch and engines allocate; torch keeps what it has reserved until it is told not to."""

    def __init__(self, shared: bool = False) -> None:
        self.tensors, self.cached, self.engines, self.others, self.highest = 300 * MB, 0, 200 * MB, 1000 * MB, 0
        self.shared = shared
        self.calls = 0
        self._sampled = threading.Event()
        self._test = threading.get_ident()

    # what runs

    def torch_takes(self, count: int) -> None:
        self.tensors += count
        self.cached = max(0, self.cached - max(0, count))
        self.highest = max(self.highest, self.tensors)

    def torch_frees(self, count: int) -> None:
        self.tensors -= count
        self.cached += count

    def engine_takes(self, count: int) -> None:
        self.engines += count

    def is_seen(self) -> None:
        """Wait until the sampling thread has looked twice: once it has, it saw all of this moment."""
        sampling = any(thread.name == "edgetta-device-memory" for thread in threading.enumerate())
        for _ in range(2 if sampling else 0):  # none looks at what only warms up
            self._sampled.clear()
            assert self._sampled.wait(20)

    # what torch.cuda tells

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        self.cached = 0

    def reset_peak_memory_stats(self) -> None:
        self.highest = self.tensors

    def memory_allocated(self) -> int:
        return self.tensors

    def max_memory_allocated(self) -> int:
        return self.highest

    def memory_reserved(self) -> int:
        return self.tensors + self.cached

    def mem_get_info(self) -> tuple[int, int]:
        if threading.get_ident() != self._test:
            self._sampled.set()
        return 8000 * MB - self.used(), 8000 * MB

    def used(self) -> int:
        return self.tensors + self.cached + self.engines + self.others

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, number: int) -> Any:
        return SimpleNamespace(is_integrated=self.shared)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return install(Device(), monkeypatch)


def install(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Have torch.cuda be this device."""
    for name in (
        *("synchronize", "empty_cache", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"),
        *("memory_reserved", "mem_get_info", "current_device", "get_device_properties"),
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(device, name))
    return device


def step(device: Device) -> None:
    """Torch takes 100 MB and frees 60 of them; then an engine takes 80 for a while."""
    device.calls += 1
    device.torch_takes(100 * MB)
    device.torch_frees(60 * MB)
    device.engine_takes(80 * MB)
    device.is_seen()
    device.engine_takes(-80 * MB)
    device.torch_frees(40 * MB)


def test_engines_are_seen_beside_torch(device: Device) -> None:
    found = measure_device_peak(lambda: step(device))
    assert (found.torch, found.engine, found.device, found.machine) == (100 * MB, 80 * MB, 180 * MB, None)
    assert found.peak == 180 * MB and device.calls == 3


def test_a_short_peak_of_torch_is_not_missed(device: Device) -> None:
    """Between two samples: torch's own mark has it."""

    def run() -> None:
        device.torch_takes(500 * MB)
        device.torch_frees(500 * MB)
        device.empty_cache()

    found = measure_device_peak(run, repetitions=1)
    assert found.torch == found.peak == 500 * MB and found.engine == 0


def test_what_was_there_before_does_not_count(device: Device) -> None:
    device.torch_takes(2000 * MB)
    device.torch_frees(2000 * MB)  # reserved, and given back before anything is measured
    assert measure_device_peak(lambda: step(device)).device == 180 * MB


def test_a_jetson_tells_what_the_machine_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    device = install(Device(shared=True), monkeypatch)

    class Shared:
        def read(self) -> Room:
            return Room(6000 * MB - device.used() - 30 * MB * (device.engines > 200 * MB), "MemAvailable")

    monkeypatch.setattr(device_peak, "RoomMeter", Shared)
    found = measure_device_peak(lambda: step(device))
    assert found.machine == 210 * MB == found.peak, "the host's side of an engine counts, too"
    assert found.device == 180 * MB
    monkeypatch.setattr(Shared, "read", lambda self: None)
    assert CudaCounters().available() is None


def test_the_meter_of_steps_uses_it_on_a_gpu(device: Device) -> None:
    measured = measure_calls(lambda: step(device), gpu=True)
    assert measured["source"] == "device" and measured["peak_bytes"] == 180 * MB
    assert measured["held_bytes"] == measured["level_bytes"] == 0 < measured["seconds"]
